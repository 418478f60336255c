"""Figures that depend on the order of scores alone: ROC curve, AUROC, average precision.

Weights are multiplicities, (B, N): row b says how often each image was drawn in resample b. The scores are sorted
once, and every resample is a weighted count along that order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.classification.confusion import Cumulated
from dermkit.metrics.stats.arrays import Bools, Floats, ratio


@dataclass(frozen=True, eq=False)
class Ranking:
    """Scores put in order once.

    order: (N,) image indices from the highest score to the lowest. positive: (N,) in that order. ends: (T,) the
    last place of each run of equal scores. thresholds: (T,) the scores there.
    """

    order: NDArray[np.intp]
    positive: Bools
    ends: NDArray[np.intp]
    thresholds: Floats


@dataclass(frozen=True, eq=False)
class RankingFigures:
    """AUROC and average precision, each (B,); NaN where a resample lacks positives or negatives."""

    auroc: Floats
    average_precision: Floats


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Points from (0, 0) to (1, 1), each (T,); positive means score >= threshold; the first threshold is inf."""

    fpr: Floats
    tpr: Floats
    threshold: Floats


def rank(scores: Floats, positive: Bools) -> Ranking:
    """Sort (N,) scores once; raises `ValueError` for a score that is not finite."""
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite to have an order")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])
    return Ranking(order, positive[order], ends, ordered[ends])


def ranking_figures(ranking: Ranking, weights: Floats) -> RankingFigures:
    """Return AUROC and average precision for each row of weights (B, N), given in the images' own order.

    AUROC counts a tied pair as half. Average precision is the sum of precision times the step in recall over
    the distinct scores (no interpolation), as scikit-learn defines it.
    """
    return areas_of(cumulated(ranking, weights))


def cumulated(ranking: Ranking, weights: Floats) -> Cumulated:
    """Return what lies at or above each distinct score, for each row of weights (B, N)."""
    drawn = weights[:, ranking.order]
    hits, alarms = np.cumsum(drawn * ranking.positive, axis=1), np.cumsum(drawn * ~ranking.positive, axis=1)
    if len(ranking.ends) < drawn.shape[1]:
        hits, alarms = hits[:, ranking.ends], alarms[:, ranking.ends]
    return Cumulated(hits, alarms)


def areas_of(steps: Cumulated) -> RankingFigures:
    """Return AUROC and average precision, each (B,), as `ranking_figures` defines them."""
    hits, alarms = steps.hits, steps.alarms
    positives, negatives = hits[:, -1], alarms[:, -1]
    defined = (positives > 0) & (negatives > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    # A positive loses to the negatives above it and half of those tied with it: 1 - AUROC, in pairs.
    lost = alarms.copy()
    lost[:, 1:] += alarms[:, :-1]
    lost_pairs = 0.5 * np.einsum("bt,bt->b", gained, lost)
    auroc = 1.0 - ratio(lost_pairs, positives * negatives, defined)
    all_seen = hits + alarms
    purity = np.divide(hits, all_seen, out=np.zeros_like(hits), where=all_seen > 0)
    precision = ratio(np.einsum("bt,bt->b", gained, purity), positives, defined)
    return RankingFigures(auroc, precision)


def auroc(scores: Floats, positive: Bools) -> float:
    """Return the chance that a positive image scores above a negative one; NaN without one of the two."""
    return float(_unweighted(scores, positive).auroc[0])


def average_precision(scores: Floats, positive: Bools) -> float:
    """Return the area under precision over recall as a step function; NaN without positives or negatives."""
    return float(_unweighted(scores, positive).average_precision[0])


def _unweighted(scores: Floats, positive: Bools) -> RankingFigures:
    return ranking_figures(rank(scores, positive), np.ones((1, len(scores))))


def roc_curve(scores: Floats, positive: Bools) -> RocCurve:
    """Return the ROC curve without the points that lie on a straight line between their neighbours.

    Raises `ValueError` without positives or without negatives.
    """
    if positive.all() or not positive.any():
        raise ValueError("a ROC curve needs positives and negatives")
    ranking = rank(scores, positive)
    tp = np.append(0, np.cumsum(ranking.positive)[ranking.ends])
    fp = np.append(0, ranking.ends + 1 - tp[1:])
    thresholds = np.append(np.inf, ranking.thresholds)
    corner = np.ones(len(tp), dtype=bool)
    corner[1:-1] = (np.diff(tp)[1:] * np.diff(fp)[:-1]) != (np.diff(tp)[:-1] * np.diff(fp)[1:])
    return RocCurve(fp[corner] / fp[-1], tp[corner] / tp[-1], thresholds[corner])


SENSITIVITY = 0.8
"""Where both official definitions cut."""

_HAIR = 1e-12
"""A rate of 57/60 must pass for 0.95: what rounding leaves is no difference."""


@dataclass(frozen=True, eq=False)
class Curves:
    """ROC curves from (0, 0) to (1, 1), each (B, T + 1); rows without positives or negatives are NaN."""

    fpr: Floats
    tpr: Floats


def curves_of(steps: Cumulated) -> Curves:
    """Return the ROC curve of each row of sums at falling scores."""
    start = np.zeros((len(steps.hits), 1))
    both = (steps.hits[:, -1:] > 0) & (steps.alarms[:, -1:] > 0)

    def rate(counted: Floats) -> Floats:
        wide = np.broadcast_to(both, counted.shape)
        part = ratio(counted, np.broadcast_to(counted[:, -1:], counted.shape), wide)
        return np.concatenate([np.where(both, start, np.nan), part], axis=1)

    return Curves(rate(steps.alarms), rate(steps.hits))


def pauc_above(roc: Curves, sensitivity: float = SENSITIVITY) -> Floats:
    """Return the area right of the curve and above a sensitivity, (B,), 0 to 1 - sensitivity; 2024's definition."""
    low_t, high_t = roc.tpr[:, :-1], roc.tpr[:, 1:]
    low_f, high_f = roc.fpr[:, :-1], roc.fpr[:, 1:]
    cut = np.clip(sensitivity, low_t, high_t)  # below it a step counts nothing
    rise = high_t - low_t
    share = np.divide(cut - low_t, rise, out=np.zeros_like(rise), where=rise > 0)
    at_cut = low_f + (high_f - low_f) * share
    return np.asarray(((high_t - cut) * (1 - (at_cut + high_f) / 2)).sum(axis=1), dtype=np.float64)


def false_alarms_at(roc: Curves, sensitivity: float = SENSITIVITY) -> Floats:
    """Return the false positive rate where the curve first reaches a sensitivity, (B,), straight between points."""
    rows = np.arange(len(roc.tpr))
    defined = ~np.isnan(roc.tpr[:, 0])
    step = np.maximum((np.nan_to_num(roc.tpr, nan=1.0) < sensitivity).sum(axis=1), 1)
    low_t, high_t = roc.tpr[rows, step - 1], roc.tpr[rows, step]
    share = ratio(sensitivity - low_t, high_t - low_t, defined)
    return np.asarray(roc.fpr[rows, step - 1] + (roc.fpr[rows, step] - roc.fpr[rows, step - 1]) * share)


def auc_above(roc: Curves, sensitivity: float = SENSITIVITY) -> Floats:
    """Return the area under the curve right of where it reaches a sensitivity, (B,): the official scorer's."""
    return pauc_above(roc, sensitivity) + sensitivity * (1 - false_alarms_at(roc, sensitivity))


def sensitivity_at(roc: Curves, specificity: float) -> Floats:
    """Return the highest sensitivity of a threshold that keeps at least this specificity, (B,); nothing in between."""
    allowed = roc.fpr <= 1 - specificity + _HAIR
    return _best(roc.tpr, allowed)


def specificity_at(roc: Curves, sensitivity: float) -> Floats:
    """Return the highest specificity of a threshold that keeps at least this sensitivity, (B,); nothing in between."""
    return _best(1 - roc.fpr, roc.tpr >= sensitivity - _HAIR)


def _best(values: Floats, allowed: Bools) -> Floats:
    best: Floats = np.where(allowed, values, -np.inf).max(axis=1)
    return np.where(np.isfinite(best), best, np.nan)
