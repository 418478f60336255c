"""Calibration of one event's probabilities: Brier decomposition, classwise ECE, slope and intercept; net benefit.

The event is a class, or malignant against the rest; (N,) probabilities of it are judged.

Shapes: N images, T thresholds, P parameters of a fit.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from dermkit.metrics.stats.arrays import EPSILON, Bools, Floats, Ints, ratio, sum_by_group

_MAX_NEWTON_STEPS = 100
_TOLERANCE = 1e-12
_CERTAINTY_MARGIN = 1e-9


@dataclass(frozen=True, eq=False)
class BrierDecomposition:
    """Parts of the binary Brier score, each (...): score = reliability - resolution + uncertainty + within_bins.

    reliability: squared gap between stated and observed frequency, 0 is best. resolution: variance of the bins'
    observed frequencies, higher is better. uncertainty: variance of the labels. within_bins: what remains because bins
    have a width (Stephenson, Coelho and Jolliffe 2008, Weather and Forecasting 23:752).
    """

    score: Floats
    reliability: Floats
    resolution: Floats
    uncertainty: Floats
    within_bins: Floats


def decompose_brier(
    bin_counts: Floats, probability_sums: Floats, event_counts: Floats, squared_errors: Floats
) -> BrierDecomposition:
    """Decompose the Brier score from sums per bin, (..., N_BINS), and the total squared error, (...)."""
    total = bin_counts.sum(axis=-1)
    has_images = total > 0
    base_rate = ratio(event_counts.sum(axis=-1), total, has_images)
    bin_event_rate = np.divide(event_counts, bin_counts, out=np.zeros_like(bin_counts), where=bin_counts > 0)
    bin_mean_probability = np.divide(
        probability_sums, bin_counts, out=np.zeros_like(bin_counts), where=bin_counts > 0
    )
    reliability = ratio(
        (bin_counts * (bin_mean_probability - bin_event_rate) ** 2).sum(axis=-1), total, has_images
    )
    resolution = ratio((bin_counts * (bin_event_rate - base_rate[..., None]) ** 2).sum(axis=-1), total, has_images)
    uncertainty = base_rate * (1 - base_rate)
    score = ratio(squared_errors, total, has_images)
    return BrierDecomposition(
        score, reliability, resolution, uncertainty, score - reliability + resolution - uncertainty
    )


def classwise_ece_from_bins(residual_sums: Floats, total: Floats) -> Floats:
    """Return the mean over classes of each class's ECE, (...); residual_sums: (..., K, N_BINS) sums of p - y."""
    per_class = np.abs(residual_sums).sum(axis=-1)
    return ratio(per_class.mean(axis=-1), total, total > 0)


# Slope and intercept ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationLine:
    """Calibration slope and intercept (Cox 1958): the logistic regression of the outcome on the log odds.

    slope: 1 is right, below 1 overconfident; NaN if no finite one exists. intercept: with the slope held at 1; 0 is
    right, below 0 the event is predicted too often; NaN if all probabilities are 0 or 1 and right. *_variance: sandwich
    variances over groups.
    """

    slope: float
    slope_variance: float
    intercept: float
    intercept_variance: float


def calibration_slope_intercept(probability: Floats, is_event: Bools, groups: Ints) -> CalibrationLine:
    """Fit slope and intercept of (N,) probabilities by maximum likelihood.

    Variances are the sandwich estimator over groups (Liang and Zeger 1986), times G / (G - 1). Raises `ValueError`
    without events or without non-events.
    """
    if is_event.all() or not is_event.any():
        raise ValueError("calibration needs images with the event and images without")
    logits = log_odds(probability)
    y = is_event.astype(np.float64)
    intercept = slope = (np.nan, np.nan)
    if np.abs(y - probability).max() > _CERTAINTY_MARGIN:
        intercept_only, variance = _fit_logistic(np.ones((len(y), 1)), y, logits, groups)
        intercept = float(intercept_only[0]), float(variance[0, 0])
    if not _is_separated(logits, is_event):
        coefficients, variance = _fit_logistic(
            np.column_stack([np.ones(len(y)), logits]), y, np.zeros(len(y)), groups
        )
        slope = float(coefficients[1]), float(variance[1, 1])
    return CalibrationLine(*slope, *intercept)


def log_odds(probability: Floats) -> Floats:
    """Return log(p / (1 - p)), p clipped to [EPSILON, 1 - EPSILON]."""
    p = np.clip(probability, EPSILON, 1 - EPSILON)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float64)


def _is_separated(logits: Floats, is_event: Bools) -> bool:
    """Tell whether a threshold separates the two sides, or all odds are equal: no finite slope is best then."""
    event_logits, other_logits = logits[is_event], logits[~is_event]
    return bool(event_logits.min() >= other_logits.max() or event_logits.max() <= other_logits.min())


def _fit_logistic(design: Floats, y: Floats, offset: Floats, groups: Ints) -> tuple[Floats, Floats]:
    """Return coefficients (P,) and their variance (P, P): Newton steps, halved while the likelihood falls."""
    beta = np.zeros(design.shape[1])
    log_likelihood = _log_likelihood(design @ beta + offset, y)
    for _ in range(_MAX_NEWTON_STEPS):
        p = expit(design @ beta + offset)
        information = design.T @ (design * (p * (1 - p))[:, None])
        step = np.linalg.lstsq(information, design.T @ (y - p), rcond=None)[0]
        while (
            next_likelihood := _log_likelihood(design @ (beta + step) + offset, y)
        ) < log_likelihood - _TOLERANCE * abs(log_likelihood):
            step = step / 2
        beta, log_likelihood = beta + step, next_likelihood
        if np.abs(step).max() <= _TOLERANCE * (1 + np.abs(beta).max()):
            break
    return beta, _sandwich_variance(design, y - expit(design @ beta + offset), design @ beta + offset, groups)


def _log_likelihood(eta: Floats, y: Floats) -> float:
    return float((y * eta - np.logaddexp(0.0, eta)).sum())


def _sandwich_variance(design: Floats, residuals: Floats, eta: Floats, groups: Ints) -> Floats:
    p = expit(eta)
    bread = np.linalg.pinv(design.T @ (design * (p * (1 - p))[:, None]))
    n_groups = int(groups.max()) + 1
    group_sums = np.stack([sum_by_group(column * residuals, groups, n_groups) for column in design.T], axis=1)
    return np.asarray(
        bread @ (group_sums.T @ group_sums) @ bread * n_groups / max(n_groups - 1, 1), dtype=np.float64
    )


# Net benefit ------------------------------------------------------------------------------------------------------


def net_benefit_from_counts(
    tp: Floats | Ints, fp: Floats | Ints, n: Floats | int, thresholds: Floats | float
) -> Floats:
    """Return net benefit per image from true and false positives at a threshold, arrays of any one shape."""
    return np.asarray((tp - fp * thresholds / (1 - thresholds)) / n, dtype=np.float64)


def net_benefit(score: Floats, is_positive: Bools, thresholds: Floats) -> Floats:
    """Return the net benefit of calling score >= threshold positive, (T,) (Vickers and Elkin 2006).

    True positives per image, minus false positives weighted by the odds of the threshold: at 0.1, nine needless
    biopsies weigh as much as one missed event. thresholds: (T,), 0 <= t < 1. Raises `ValueError` for others, or without
    images.
    """
    if not len(score) or thresholds.min() < 0 or thresholds.max() >= 1:
        raise ValueError("net benefit needs images and thresholds from 0 to below 1")
    scores_by_class = np.sort(score[is_positive]), np.sort(score[~is_positive])
    tp, fp = (
        len(class_scores) - np.searchsorted(class_scores, thresholds, side="left")
        for class_scores in scores_by_class
    )
    return net_benefit_from_counts(tp, fp, len(score), thresholds)


def net_benefit_call_all(prevalence: float, thresholds: Floats) -> Floats:
    """Return the net benefit of calling every image positive, (T,); of calling none it is 0."""
    return np.asarray(prevalence - (1 - prevalence) * thresholds / (1 - thresholds), dtype=np.float64)
