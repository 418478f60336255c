"""Calibration of one event's probabilities: Brier decomposition, classwise ECE, slope and intercept; net benefit.

The event is a class, or malignant against the rest; (N,) probabilities of it are judged.

Shapes: N images, T thresholds, P parameters of a fit.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, ratio, sum_by_group

_MAX_NEWTON_STEPS = 100
_TOLERANCE = 1e-12
_CERTAINTY_MARGIN = 1e-9
_NEAR_CERTAIN = 1e-6
_SCORE_TOLERANCE = 1e-9
_BEYOND_LOGITS = 40.0


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
    right, below 0 the event is predicted too often; NaN if no finite one exists. *_variance: sandwich variances over
    groups. n_certain: images of probability 0 or 1, n_refuted: those of them that are wrong. logit_sd: standard
    deviation of the log odds that are finite.
    """

    slope: float
    slope_variance: float
    intercept: float
    intercept_variance: float
    n_certain: int
    n_refuted: int
    logit_sd: float


def calibration_slope_intercept(
    probability: Floats, is_event: Bools, groups: Ints, *, complement: Floats | None = None
) -> CalibrationLine:
    """Fit slope and intercept of (N,) probabilities by maximum likelihood.

    complement: (N,) 1 - probability; near 1 it is used in its place, where it is known better than rounding leaves it.
    Variances are the sandwich estimator over groups (Liang and Zeger 1986), times G / (G - 1). Images
    with a probability of 0 or 1, whose log odds are infinite, have no part in the fit if they are right; if one is
    wrong there is no fit. Raises `ValueError` without events or without non-events.
    """
    if is_event.all() or not is_event.any():
        raise ValueError("calibration needs images with the event and images without")
    q = 1 - probability if complement is None else complement
    is_certain = (probability <= 0) | (q <= 0)
    n_refuted = int((is_certain & ((probability <= 0) == is_event)).sum())
    rows = np.flatnonzero(~is_certain)
    y, p, q, row_groups = is_event[rows], probability[rows], q[rows], groups[rows]
    is_near_1 = q < _NEAR_CERTAIN
    logits = np.log(p) - np.where(is_near_1, np.log(q), np.log1p(-np.where(is_near_1, 0.0, p)))
    intercept = slope = (np.nan, np.nan)
    if not n_refuted and y.any() and not y.all():
        intercept = _fit_intercept(logits, y, row_groups)
        slope = _fit_slope(logits, y, row_groups)
    if is_certain.any() and slope[0] <= 0:  # turned round, the certain images would all be wrong
        slope = (np.nan, np.nan)
    logit_sd = float(logits.std()) if len(rows) else 0.0
    return CalibrationLine(*slope, *intercept, int(is_certain.sum()), n_refuted, logit_sd)


def _fit_intercept(logits: Floats, y: Bools, groups: Ints) -> tuple[float, float]:
    """Return the intercept at a slope of 1 and its variance; NaN if all images are certain and right to the eye."""
    if np.abs(y - expit(logits)).max() <= _CERTAINTY_MARGIN:
        return np.nan, np.nan
    ones, target = np.ones((len(y), 1)), y.astype(np.float64)
    coefficients, variance = _fit_logistic(ones, target, logits, groups)
    shift = float(coefficients[0])
    if abs(_excess(shift, logits, target)) <= _SCORE_TOLERANCE * len(y):
        return shift, float(variance[0, 0])
    # Nearly certain images leave the likelihood flat, where Newton's steps are lost; the score is monotone.
    bound = float(np.abs(logits).max()) + _BEYOND_LOGITS
    shift = float(brentq(_excess, -bound, bound, args=(logits, target)))
    eta = logits + shift
    return shift, float(_sandwich_variance(ones, target - expit(eta), eta, groups)[0, 0])


def _excess(shift: float, logits: Floats, y: Floats) -> float:
    return float((expit(logits + shift) - y).sum())


def _fit_slope(logits: Floats, y: Bools, groups: Ints) -> tuple[float, float]:
    """Return the slope and its variance; NaN where a threshold parts events from others."""
    if _is_separated(logits, y):
        return np.nan, np.nan
    design = np.column_stack([np.ones(len(y)), logits])
    coefficients, variance = _fit_logistic(design, y.astype(np.float64), np.zeros(len(y)), groups)
    return float(coefficients[1]), float(variance[1, 1])


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
