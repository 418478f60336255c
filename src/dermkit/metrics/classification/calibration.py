"""Whether probabilities mean what they say: parts of the Brier score, class by class ECE, slope and intercept, benefit.

All of it is about one event (a class, or malignant against the rest) of which (N,) probabilities were stated.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from dermkit.metrics.stats.arrays import EPSILON, Bools, Floats, Ints, ratio

_STEPS = 100
_SMALL = 1e-12
_SURE = 1e-9


@dataclass(frozen=True, eq=False)
class BrierParts:
    """The binary Brier score taken apart, each (...): score = reliability - resolution + uncertainty + within.

    reliability: squared gap between stated and seen frequency, 0 is best. resolution: how far the bins' frequencies
    lie apart, higher is better. uncertainty: of the labels alone. within: what bins of some width leave over
    (Stephenson, Coelho and Jolliffe 2008, Weather and Forecasting 23:752).
    """

    score: Floats
    reliability: Floats
    resolution: Floats
    uncertainty: Floats
    within: Floats


def brier_parts(n: Floats, stated: Floats, seen: Floats, squares: Floats) -> BrierParts:
    """Take the score apart from sums per bin, (..., BINS): images, probabilities, events; squares: (...) of p - y."""
    total = n.sum(axis=-1)
    some = total > 0
    rate = ratio(seen.sum(axis=-1), total, some)
    of_bin = np.divide(seen, n, out=np.zeros_like(n), where=n > 0)
    said = np.divide(stated, n, out=np.zeros_like(n), where=n > 0)
    reliability = ratio((n * (said - of_bin) ** 2).sum(axis=-1), total, some)
    resolution = ratio((n * (of_bin - rate[..., None]) ** 2).sum(axis=-1), total, some)
    uncertainty = rate * (1 - rate)
    score = ratio(squares, total, some)
    return BrierParts(score, reliability, resolution, uncertainty, score - reliability + resolution - uncertainty)


def classwise_ece_of_bins(gaps: Floats, total: Floats) -> Floats:
    """Return the mean over classes of each one's calibration error, (...); gaps: (..., K, BINS) sums of p - y."""
    per_class = np.abs(gaps).sum(axis=-1)
    return ratio(per_class.mean(axis=-1), total, total > 0)


# Slope and intercept ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recalibrated:
    """Logistic recalibration (Cox 1958): what the log odds would have to be multiplied with and shifted by.

    slope: 1 is right, below 1 too sure; NaN where no finite one exists. intercept: with the slope held at 1; 0 is
    right, below 0 the event is stated too often; NaN where all probabilities are 0 or 1 and right, since nothing can
    then be learned of it. *_variance: of these, over units that are drawn together.
    """

    slope: float
    slope_variance: float
    intercept: float
    intercept_variance: float


def recalibration(probability: Floats, event: Bools, units: Ints) -> Recalibrated:
    """Fit slope and intercept of (N,) probabilities by maximum likelihood; needs events and non-events.

    Variances are the sandwich's over units (Liang and Zeger 1986), times G / (G - 1). Raises `ValueError` without
    both sides.
    """
    if event.all() or not event.any():
        raise ValueError("calibration needs images with the event and images without")
    odds = log_odds(probability)
    y = event.astype(np.float64)
    intercept = slope = (np.nan, np.nan)
    if np.abs(y - probability).max() > _SURE:
        shift, variance = _fit(np.ones((len(y), 1)), y, odds, units)
        intercept = float(shift[0]), float(variance[0, 0])
    if not _separated(odds, event):
        both, variance = _fit(np.column_stack([np.ones(len(y)), odds]), y, np.zeros(len(y)), units)
        slope = float(both[1]), float(variance[1, 1])
    return Recalibrated(*slope, *intercept)


def log_odds(probability: Floats) -> Floats:
    """Return log(p / (1 - p)), of 0 and 1 as of the nearest number that the log loss tells from them."""
    p = np.clip(probability, EPSILON, 1 - EPSILON)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float64)


def _separated(odds: Floats, event: Bools) -> bool:
    """Tell whether one threshold parts the sides, or all odds are equal: the best slope is then no number."""
    yes, no = odds[event], odds[~event]
    return bool(yes.min() >= no.max() or yes.max() <= no.min())


def _fit(design: Floats, y: Floats, offset: Floats, units: Ints) -> tuple[Floats, Floats]:
    """Return coefficients (P,) and their variance (P, P): Newton's steps, halved while the likelihood falls."""
    beta = np.zeros(design.shape[1])
    best = _likelihood(design @ beta + offset, y)
    for _ in range(_STEPS):
        p = expit(design @ beta + offset)
        information = design.T @ (design * (p * (1 - p))[:, None])
        step = np.linalg.lstsq(information, design.T @ (y - p), rcond=None)[0]
        while (found := _likelihood(design @ (beta + step) + offset, y)) < best - _SMALL * abs(best):
            step = step / 2
        beta, best = beta + step, found
        if np.abs(step).max() <= _SMALL * (1 + np.abs(beta).max()):
            break
    return beta, _sandwich(design, y - expit(design @ beta + offset), design @ beta + offset, units)


def _likelihood(eta: Floats, y: Floats) -> float:
    return float((y * eta - np.logaddexp(0.0, eta)).sum())


def _sandwich(design: Floats, away: Floats, eta: Floats, units: Ints) -> Floats:
    p = expit(eta)
    bread = np.linalg.pinv(design.T @ (design * (p * (1 - p))[:, None]))
    count = int(units.max()) + 1
    sums = np.stack([np.bincount(units, weights=column * away, minlength=count) for column in design.T], axis=1)
    return np.asarray(bread @ (sums.T @ sums) @ bread * count / max(count - 1, 1), dtype=np.float64)


# Net benefit ------------------------------------------------------------------------------------------------------


def net_benefit(score: Floats, positive: Bools, thresholds: Floats) -> Floats:
    """Return the net benefit of calling score >= threshold positive, (T,) (Vickers and Elkin 2006).

    True positives per image, less false ones weighted with the odds of the threshold: at 0.1, nine needless biopsies
    weigh as much as one missed event. thresholds: 0 <= t < 1. Raises `ValueError` without images or outside.
    """
    if not len(score) or thresholds.min() < 0 or thresholds.max() >= 1:
        raise ValueError("net benefit needs images and thresholds from 0 to below 1")
    order = np.sort(score[positive]), np.sort(score[~positive])
    hits, alarms = (len(side) - np.searchsorted(side, thresholds, side="left") for side in order)
    return np.asarray((hits - alarms * thresholds / (1 - thresholds)) / len(score), dtype=np.float64)


def benefit_of_all(prevalence: float, thresholds: Floats) -> Floats:
    """Return the net benefit of calling every image positive, (T,); of calling none it is 0."""
    return np.asarray(prevalence - (1 - prevalence) * thresholds / (1 - thresholds), dtype=np.float64)
