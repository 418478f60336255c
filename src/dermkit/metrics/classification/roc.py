"""Ranking metrics: ROC curve, AUROC, partial AUROC, average precision, and rates at a fixed other rate.

Scores are sorted once; each resample is a weighted count in that order. Weights are (B, N): how often each image was
drawn in each resample.

Shapes: N images, B resamples, T distinct scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.classification.confusion import CumulativeCounts
from dermkit.metrics.stats.arrays import Bools, Floats, Ints, ratio


@dataclass(frozen=True, eq=False)
class SortedScores:
    """Scores in descending order.

    order: (N,) image indices. is_positive: (N,) in that order. run_ends: (T,) last position of each run of equal
    scores. thresholds: (T,) the scores there.
    """

    order: NDArray[np.intp]
    is_positive: Bools
    run_ends: NDArray[np.intp]
    thresholds: Floats


@dataclass(frozen=True, eq=False)
class RankingMetrics:
    """AUROC and average precision, each (B,); NaN where a resample lacks positives or negatives."""

    auroc: Floats
    average_precision: Floats


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Points from (0, 0) to (1, 1), each (T,); positive means score >= threshold; the first threshold is inf."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


def sort_scores(scores: Floats, is_positive: Bools) -> SortedScores:
    """Sort (N,) scores once; raises `ValueError` for a score that is not finite."""
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite to have an order")
    order = np.argsort(-scores, kind="stable")
    sorted_values = scores[order]
    run_ends = np.flatnonzero(np.append(sorted_values[1:] != sorted_values[:-1], True)[: len(sorted_values)])
    return SortedScores(order, is_positive[order], run_ends, sorted_values[run_ends])


def ranking_metrics(sorted_scores: SortedScores, weights: Floats) -> RankingMetrics:
    """Return AUROC and average precision for each row of weights (B, N), given in the images' own order.

    AUROC counts a tied pair as half. Average precision is the sum of precision times the step in recall over
    the distinct scores (no interpolation), as scikit-learn defines it.
    """
    return auroc_and_ap(cumulative_counts(sorted_scores, weights))


def cumulative_counts(sorted_scores: SortedScores, weights: Floats) -> CumulativeCounts:
    """Return true and false positives at each distinct score as threshold, for each row of weights (B, N)."""
    sorted_weights = weights[:, sorted_scores.order]
    tp, fp = (
        np.cumsum(sorted_weights * sorted_scores.is_positive, axis=1),
        np.cumsum(sorted_weights * ~sorted_scores.is_positive, axis=1),
    )
    if len(sorted_scores.run_ends) < sorted_weights.shape[1]:
        tp, fp = tp[:, sorted_scores.run_ends], fp[:, sorted_scores.run_ends]
    return CumulativeCounts(tp, fp)


def auroc_and_ap(steps: CumulativeCounts) -> RankingMetrics:
    """Return AUROC and average precision, each (B,), as `ranking_metrics` defines them."""
    tp, fp = steps.tp, steps.fp
    n_positive, n_negative = tp[:, -1], fp[:, -1]
    is_defined = (n_positive > 0) & (n_negative > 0)
    new_tp = np.diff(tp, axis=1, prepend=0.0)
    # 1 - AUROC counts pairs whose negative scores higher; a tie counts half.
    negatives_above = fp.copy()
    negatives_above[:, 1:] += fp[:, :-1]
    lost_pairs = 0.5 * np.einsum("bt,bt->b", new_tp, negatives_above)
    auroc = 1.0 - ratio(lost_pairs, n_positive * n_negative, is_defined)
    n_called = tp + fp
    step_precision = np.divide(tp, n_called, out=np.zeros_like(tp), where=n_called > 0)
    ap = ratio(np.einsum("bt,bt->b", new_tp, step_precision), n_positive, is_defined)
    return RankingMetrics(auroc, ap)


def auroc(scores: Floats, is_positive: Bools) -> float:
    """Return the probability that a positive scores above a negative, ties half; NaN without one of the two."""
    return float(ranking_metrics(sort_scores(scores, is_positive), np.ones((1, len(scores)))).auroc[0])


def roc_curve(scores: Floats, is_positive: Bools) -> RocCurve:
    """Return the ROC curve without the points on a straight line between their neighbours.

    Raises `ValueError` without positives or without negatives.
    """
    if is_positive.all() or not is_positive.any():
        raise ValueError("a ROC curve needs positives and negatives")
    sorted_scores = sort_scores(scores, is_positive)
    tp = np.append(0, np.cumsum(sorted_scores.is_positive)[sorted_scores.run_ends])
    fp = np.append(0, sorted_scores.run_ends + 1 - tp[1:])
    thresholds = np.append(np.inf, sorted_scores.thresholds)
    is_corner = np.ones(len(tp), dtype=bool)
    is_corner[1:-1] = (np.diff(tp)[1:] * np.diff(fp)[:-1]) != (np.diff(tp)[:-1] * np.diff(fp)[1:])
    return RocCurve(fp[is_corner] / fp[-1], tp[is_corner] / tp[-1], thresholds[is_corner])


def mean_roc_curve(scores: Floats, is_positive: Bools, nets: Sequence[Ints]) -> RocCurve:
    """Return the mean over nets of their ROC curves, weighted by their pairs: its area is the AUROC within nets.

    nets: the rows that each scored. At a false positive rate it has the weighted mean of the sensitivities, below and
    above a step; its thresholds are NaN, since each net has its own. One net's curve is `roc_curve`. Raises
    `ValueError` where no net scored both positives and negatives.
    """
    if len(nets) == 1:
        return roc_curve(scores, is_positive)
    ranking_nets = [rows for rows in nets if is_positive[rows].any() and not is_positive[rows].all()]
    if not ranking_nets:
        raise ValueError("a ROC curve needs positives and negatives of one net")
    curves = [roc_curve(scores[rows], is_positive[rows]) for rows in ranking_nets]
    n_pairs = [int(is_positive[rows].sum()) * int((~is_positive[rows]).sum()) for rows in ranking_nets]
    fpr = np.unique(np.concatenate([curve.fpr for curve in curves]))
    bounds = np.array([_tpr_bounds(curve, fpr) for curve in curves])
    mean_bounds = np.average(bounds, axis=0, weights=n_pairs)
    return RocCurve(np.repeat(fpr, 2), mean_bounds.T.ravel(), np.full(2 * len(fpr), np.nan))


def _tpr_bounds(curve: RocCurve, fpr: Floats) -> Floats:
    """Return the least and the greatest sensitivity of a curve at each rate, (2, F); they differ where it steps up."""
    corners = np.unique(curve.fpr)
    least, greatest = (
        curve.tpr[np.searchsorted(curve.fpr, corners, side="left")],
        curve.tpr[np.searchsorted(curve.fpr, corners, side="right") - 1],
    )
    start = np.clip(np.searchsorted(corners, fpr, side="right") - 1, 0, len(corners) - 2)
    fraction = (fpr - corners[start]) / (corners[start + 1] - corners[start])
    between = greatest[start] + fraction * (least[start + 1] - greatest[start])
    is_corner, index = np.isin(fpr, corners), np.searchsorted(corners, fpr)
    return np.stack([np.where(is_corner, least[index], between), np.where(is_corner, greatest[index], between)])


PARTIAL_SENSITIVITY = 0.8
"""The sensitivity above which both challenge definitions (ISIC 2024, isic-challenge-scoring) measure the area."""

_ROUNDING = 1e-12
"""Tolerance of rates: 57/60 must count as 0.95 in spite of rounding."""


@dataclass(frozen=True, eq=False)
class RocCurveBatch:
    """ROC curves from (0, 0) to (1, 1), each (B, T + 1); rows without positives or negatives are NaN."""

    fpr: Floats
    tpr: Floats


def roc_curve_batch(steps: CumulativeCounts) -> RocCurveBatch:
    """Return the ROC curve of each row of cumulative counts."""
    zeros = np.zeros((len(steps.tp), 1))
    has_both_classes = (steps.tp[:, -1:] > 0) & (steps.fp[:, -1:] > 0)

    def cumulative_rate(counts: Floats) -> Floats:
        is_defined = np.broadcast_to(has_both_classes, counts.shape)
        rates = ratio(counts, np.broadcast_to(counts[:, -1:], counts.shape), is_defined)
        return np.concatenate([np.where(has_both_classes, zeros, np.nan), rates], axis=1)

    return RocCurveBatch(cumulative_rate(steps.fp), cumulative_rate(steps.tp))


def partial_auroc_2024(roc: RocCurveBatch, sensitivity: float = PARTIAL_SENSITIVITY) -> Floats:
    """Return ISIC 2024's partial AUROC, (B,): the area under the curve above a sensitivity, 0 to 1 - sensitivity."""
    low_t, high_t = roc.tpr[:, :-1], roc.tpr[:, 1:]
    low_f, high_f = roc.fpr[:, :-1], roc.fpr[:, 1:]
    cut = np.clip(sensitivity, low_t, high_t)  # the part of a step below it does not count
    rise = high_t - low_t
    fraction = np.divide(cut - low_t, rise, out=np.zeros_like(rise), where=rise > 0)
    fpr_at_cut = low_f + (high_f - low_f) * fraction
    return np.asarray(((high_t - cut) * (1 - (fpr_at_cut + high_f) / 2)).sum(axis=1), dtype=np.float64)


def fpr_at_sensitivity(roc: RocCurveBatch, sensitivity: float = PARTIAL_SENSITIVITY) -> Floats:
    """Return the false positive rate at which the curve first reaches a sensitivity, (B,), interpolated linearly."""
    rows = np.arange(len(roc.tpr))
    is_defined = ~np.isnan(roc.tpr[:, 0])
    step = np.maximum((np.nan_to_num(roc.tpr, nan=1.0) < sensitivity).sum(axis=1), 1)
    low_t, high_t = roc.tpr[rows, step - 1], roc.tpr[rows, step]
    fraction = ratio(sensitivity - low_t, high_t - low_t, is_defined)
    return np.asarray(roc.fpr[rows, step - 1] + (roc.fpr[rows, step] - roc.fpr[rows, step - 1]) * fraction)


def partial_auroc_isic(roc: RocCurveBatch, sensitivity: float = PARTIAL_SENSITIVITY) -> Floats:
    """Return isic-challenge-scoring's `auc_sens_80`, (B,): the area under the curve right of that sensitivity."""
    return partial_auroc_2024(roc, sensitivity) + sensitivity * (1 - fpr_at_sensitivity(roc, sensitivity))


def sensitivity_at_specificity(roc: RocCurveBatch, specificity: float) -> Floats:
    """Return the highest sensitivity at which the specificity is at least this, (B,), without interpolation."""
    is_allowed = roc.fpr <= 1 - specificity + _ROUNDING
    return _maximum_where(roc.tpr, is_allowed)


def specificity_at_sensitivity(roc: RocCurveBatch, sensitivity: float) -> Floats:
    """Return the highest specificity at which the sensitivity is at least this, (B,), without interpolation."""
    return _maximum_where(1 - roc.fpr, roc.tpr >= sensitivity - _ROUNDING)


def _maximum_where(values: Floats, is_allowed: Bools) -> Floats:
    maximum: Floats = np.where(is_allowed, values, -np.inf).max(axis=1)
    return np.where(np.isfinite(maximum), maximum, np.nan)
