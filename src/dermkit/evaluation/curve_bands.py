"""Tables of the small curves of malignant against the rest, each with a 95 % band: ROC, precision-recall, calibration,
decision curve.

The bands are percentiles at each point of a bootstrap of groups (lesions, patients); of calibration they are intervals.
Shapes: N images, B resamples.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.metrics.stats.intervals import clustered_proportion_interval, resample_weights

RESAMPLES = 200
_N_BINS = 10
BAND_HEADERS: Mapping[str, tuple[str, ...]] = {
    "roc_band_*.csv": ("fpr", "tpr", "low", "high"),
    "precision_recall_*.csv": ("recall", "precision", "low", "high"),
    "calibration_malignant_*.csv": ("n", "stated", "observed", "low", "high", "calibrated"),
    "decision_curve_*.csv": ("threshold", "net_benefit", "low", "high", "call_all", "call_none", "calibrated"),
}
"""Name of a table in figures/, * for the split -> its columns. calibrated: 1 where the probabilities are the
calibrated ones that the model states, 0 where it has no calibration."""

THRESHOLDS: Floats = np.arange(1, 51) / 100
"""Thresholds of a decision curve: below half, at which one acts on a suspicion of cancer."""


def band_tables(scored_set: ScoredSet, calibrated_set: ScoredSet | None) -> dict[str, list[list[object]]]:
    """Return the rows of each table of `BAND_HEADERS`; none of any unless there are malignant and other images.

    None of ROC and precision-recall either where no net scored both: scores of different nets do not rank.
    calibrated_set: the same images with calibrated probabilities, None without a calibration.
    """
    positive = scored_set.is_malignant
    if not scored_set.has_both_sides or positive.all() or not positive.any():
        return {name: [] for name in BAND_HEADERS}
    stated = scored_set if calibrated_set is None else calibrated_set
    weights = np.concatenate(
        [np.ones((1, scored_set.n_groups)), *_resampled_weights(scored_set.n_groups)]
    )[:, scored_set.groups]  # fmt: skip
    is_calibrated = int(calibrated_set is not None)
    grid = np.linspace(0, 1, 51)
    roc, recall = (
        _grid_rows(grid, _mean_over_nets(scored_set, weights, curve))
        for curve in (_roc_curve(grid), _recall_curve(grid))
    )
    return {
        "roc_band_*.csv": roc,
        "precision_recall_*.csv": recall[1:],  # no image is called at a recall of 0, so it has no precision
        "calibration_malignant_*.csv": [[*row, is_calibrated] for row in _calibration_rows(stated)],
        "decision_curve_*.csv": [[*row, is_calibrated] for row in _benefit_rows(stated, weights)],
    }


def _resampled_weights(n_groups: int) -> Iterator[Floats]:
    if n_groups > 1:
        yield from resample_weights(np.arange(n_groups), seed=0, resamples=RESAMPLES)


def _grid_rows(grid: Floats, curves: Floats | None) -> list[list[object]]:
    if curves is None:
        return []
    return [[x, *row] for x, row in zip(grid.tolist(), _with_band(curves), strict=True)]


def _with_band(values: Floats) -> list[list[object]]:
    """Return [value, low, high] at each point; values: (1 + B, points), the images themselves first."""
    if len(values) == 1:
        return [[value, "", ""] for value in values[0].tolist()]
    resampled = np.where(
        np.isfinite(values[1:]), values[1:], values[0]
    )  # undefined in a resample: no spread from it
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    low, high = np.fmin(low, values[0]), np.fmax(high, values[0])
    return [list(row) for row in zip(values[0].tolist(), low.tolist(), high.tolist(), strict=True)]


def _mean_over_nets(
    scored_set: ScoredSet, weights: Floats, curve: Callable[[Floats, Bools, Floats], Floats]
) -> Floats | None:
    """Return the curve of each resample, (1 + B, points); None where no net scored malignant and other images.

    Of several nets the mean, weighted by the pairs of a malignant and another image that each can rank, as the AUROC.
    """
    shape = (len(weights), 1)
    total, n_pairs = np.zeros(shape), np.zeros(shape)
    for rows in scored_set.rows_by_net:
        positive, drawn = scored_set.is_malignant[rows], weights[:, rows]
        if positive.any() and not positive.all():
            pairs = ((drawn @ positive) * (drawn @ ~positive))[:, None]
            values = curve(scored_set.p_malignant[rows], positive, drawn)
            total = total + np.where(pairs > 0, pairs * values, 0.0)
            n_pairs += pairs
    if not n_pairs[0, 0]:
        return None
    mean: Floats = np.divide(total, n_pairs, out=np.full(total.shape, np.nan), where=n_pairs > 0)
    return mean


def _counts(score: Floats, positive: Bools, weights: Floats) -> tuple[Floats, Floats]:
    """Return true and false positives of each resample at each distinct score, highest first, (1 + B, T)."""
    order = np.argsort(-score, kind="stable")
    last_of_ties: Ints = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    called = weights[:, order]
    is_positive = positive[order]
    true_positives = np.cumsum(called * is_positive, axis=1)[:, last_of_ties]
    false_positives = np.cumsum(called * ~is_positive, axis=1)[:, last_of_ties]
    return true_positives, false_positives


def _roc_curve(grid: Floats) -> Callable[[Floats, Bools, Floats], Floats]:
    def sensitivity(score: Floats, positive: Bools, weights: Floats) -> Floats:
        curves = np.full((len(weights), len(grid)), np.nan)
        for number, (tp, fp) in enumerate(zip(*_counts(score, positive, weights), strict=True)):
            if tp[-1] and fp[-1]:
                curves[number] = np.interp(grid, np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1]))
        return curves

    return sensitivity


def _recall_curve(grid: Floats) -> Callable[[Floats, Bools, Floats], Floats]:
    def precision(score: Floats, positive: Bools, weights: Floats) -> Floats:
        curves = np.full((len(weights), len(grid)), np.nan)
        for number, (tp, fp) in enumerate(zip(*_counts(score, positive, weights), strict=True)):
            if tp[-1]:
                place = np.minimum(np.searchsorted(tp / tp[-1], grid - 1e-12), len(tp) - 1)
                called = (tp + fp)[place]
                curves[number] = np.divide(tp[place], called, out=np.full(len(grid), np.nan), where=called > 0)
        return curves

    return precision


def _calibration_rows(scored_set: ScoredSet) -> list[list[object]]:
    """Return n, mean probability, share of malignant and its interval of each tenth of the probability with images.

    The interval is that of a proportion of grouped images: a bootstrap has no width where all images are alike.
    """
    bins = np.minimum((scored_set.p_malignant * _N_BINS).astype(np.int64), _N_BINS - 1)
    rows: list[list[object]] = []
    for number in np.unique(bins):
        inside = bins == number
        is_malignant = scored_set.is_malignant[inside]
        bounds, _ = clustered_proportion_interval(is_malignant, scored_set.groups[inside])
        rows.append(
            [int(inside.sum()), float(scored_set.p_malignant[inside].mean()), float(is_malignant.mean()), *bounds]
        )
    return rows


def _benefit_rows(scored_set: ScoredSet, weights: Floats) -> list[list[object]]:
    """Return threshold, net benefit per image, its band, and that of calling every image and none malignant."""
    is_called = (scored_set.p_malignant[:, None] >= THRESHOLDS).astype(np.float64)
    positive, total = scored_set.is_malignant, weights.sum(axis=1, keepdims=True)
    odds = THRESHOLDS / (1 - THRESHOLDS)
    benefit = ((weights * positive) @ is_called - (weights * ~positive) @ is_called * odds) / total
    call_all = positive.mean() - (1 - positive.mean()) * odds
    return [
        [threshold, *row, everyone, 0.0]
        for threshold, row, everyone in zip(
            THRESHOLDS.tolist(), _with_band(benefit), call_all.tolist(), strict=True
        )
    ]
