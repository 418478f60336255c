"""What each group adds to the deviation of a metric: figures of disjoint images that share groups covary through it."""

from collections.abc import Callable

import numpy as np

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Bools, Floats, sum_by_group
from dermkit.metrics.stats.fold_auroc import fold_auroc


def group_influences(scored_set: ScoredSet, rows: Bools, metric: str) -> Floats:
    """Return what each group of all images adds to a metric of some of them, less its mean, (G,).

    rows: (N,) the images that the metric is of. metric: one of `INFLUENCES`. Zero where the metric does not exist.
    """
    return sum_by_group(INFLUENCES[metric](scored_set, rows), scored_set.groups, scored_set.n_groups)


def influence_correlation(first: Floats, second: Floats) -> float:
    """Return the correlation of two figures from their (G,) influences; exactly 0 if they share no group."""
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale > 0 else 0.0


def _proportion(mask: Bools, is_success: Bools) -> Floats:
    n = int(mask.sum())
    return np.where(mask, (is_success - is_success[mask].mean()) / n, 0.0) if n else np.zeros(len(mask))


def _is_called(scored_set: ScoredSet) -> Bools:
    return scored_set.malignant_classes[scored_set.y_pred]


def _mean_recall(scored_set: ScoredSet, rows: Bools) -> Floats:
    is_correct = scored_set.y_true == scored_set.y_pred
    present_classes = np.unique(scored_set.y_true[rows])
    recalls = [_proportion(rows & (scored_set.y_true == k), is_correct) for k in present_classes]
    return np.asarray(np.mean(recalls, axis=0), dtype=np.float64)


def _auroc(scored_set: ScoredSet, rows: Bools) -> Floats:
    nets = np.zeros(len(rows), dtype=np.int64) if scored_set.nets is None else scored_set.nets
    terms = np.zeros(len(rows))
    terms[rows] = fold_auroc(
        scored_set.p_malignant[rows],
        scored_set.is_malignant[rows],
        groups=scored_set.groups[rows],
        folds=nets[rows],
    ).deviations
    return terms


INFLUENCES: dict[str, Callable[[ScoredSet, Bools], Floats]] = {
    "accuracy": lambda scored, rows: _proportion(rows, scored.y_true == scored.y_pred),
    "balanced_accuracy": _mean_recall,
    "recall_macro_present": _mean_recall,
    "sensitivity": lambda scored, rows: _proportion(rows & scored.is_malignant, _is_called(scored)),
    "specificity": lambda scored, rows: _proportion(rows & ~scored.is_malignant, ~_is_called(scored)),
    "ppv": lambda scored, rows: _proportion(rows & _is_called(scored), scored.is_malignant),
    "npv": lambda scored, rows: _proportion(rows & ~_is_called(scored), ~scored.is_malignant),
    "auroc": _auroc,
}
"""Metric -> what each image adds to it, less its mean, (N,); first order, as in a sandwich variance."""
