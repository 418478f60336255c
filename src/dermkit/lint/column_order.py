"""Probability columns in another order than the classes: found on half of the images, confirmed on the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from dermkit.metrics.classification.roc import auroc, ranking_metrics, sort_scores
from dermkit.metrics.stats.arrays import Floats, Ints

MIN_GAIN, MIN_GAIN_SE = 0.2, 4.0
"""Least gain in mean AUROC, and in standard errors of it."""
MAX_NAMED_AUROC, MIN_REORDERED_AUROC = 0.55, 0.7
"""Columns are not misplaced if their mean AUROC for their own class exceeds the first; a new order must exceed the
second."""
MIN_IMAGES_PER_HALF = 5
"""Fewest images of a class in each half: with fewer, an AUROC is mostly noise."""
MAX_ORDER_IMAGES = 4000
"""Most images used: enough to confirm any order, and the resamples stay under 10 MB."""
_N_RESAMPLES = 200


@dataclass(frozen=True)
class ColumnOrder:
    """An order that fits better. columns: for each class the index of its column.

    named_auroc, reordered_auroc: mean AUROC of the classes that move, as named and in this order. name: `alphabetical`,
    `reversed` or "".
    """

    columns: tuple[int, ...]
    named_auroc: float
    reordered_auroc: float
    name: str


def find_column_order(p: Floats, labels: Ints, classes: Sequence[str]) -> ColumnOrder | None:
    """Return the order of columns that fits the labels better than their names, None if the names are right.

    p: (N, K) in the named order. labels: (N,) class indices. Each class's rows alternate between the two halves.
    """
    half = _halves(labels)
    first, second = half == 0, half == 1
    counts = (
        np.bincount(labels[first], minlength=len(classes)),
        np.bincount(labels[second], minlength=len(classes)),
    )
    testable = np.flatnonzero(np.minimum(*counts) >= MIN_IMAGES_PER_HALF)
    if len(testable) < 2 or np.isnan(p).any():
        return None
    candidates = [("alphabetical", columns) for columns in _alphabetical_orders(classes)]
    candidates += [("reversed", tuple(reversed(range(len(classes)))))]
    candidates += [("", _best_assignment(p[first], labels[first], testable, len(classes)))]
    orders = [
        order
        for name, columns in candidates
        if (order := _confirm_order(p[second], labels[second], testable, columns, name))
    ]
    return max(orders, key=lambda order: order.reordered_auroc - order.named_auroc, default=None)


def _halves(labels: Ints) -> Ints:
    """Return (N,) half of each image, 0 or 1, alternating within a class; 2 = not used, beyond `MAX_ORDER_IMAGES`."""
    half = np.full(len(labels), 2, dtype=np.int64)
    fraction = min(1.0, MAX_ORDER_IMAGES / max(len(labels), 1))
    for class_code in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == class_code)
        rows = rows[: max(2 * MIN_IMAGES_PER_HALF, round(fraction * len(rows)))]
        half[rows] = np.arange(len(rows)) % 2
    return half


def _alphabetical_orders(classes: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the orders of columns if they, or the names given to them, are sorted alphabetically."""
    orders = []
    for key in (str, str.casefold):
        order = sorted(range(len(classes)), key=lambda number: key(classes[number]))
        ranks = tuple(int(n) for n in np.argsort(order))
        orders += [tuple(order), ranks]
    return list(dict.fromkeys(orders))


def _best_assignment(p: Floats, labels: Ints, testable: Ints, n: int) -> tuple[int, ...]:
    """Return the assignment of columns to the classes `testable` with the largest sum of AUROCs; others keep
    their own.
    """
    table = np.array(
        [[auroc(p[:, column], labels == class_code) for column in range(n)] for class_code in testable]
    )
    rows, columns = linear_sum_assignment(-table)
    column_of_class = {int(testable[row]): int(column) for row, column in zip(rows, columns, strict=True)}
    free_columns = [column for column in range(n) if column not in column_of_class.values()]
    for class_code in (class_code for class_code in range(n) if class_code not in column_of_class):
        column_of_class[class_code] = class_code if class_code in free_columns else free_columns[0]
        free_columns.remove(column_of_class[class_code])
    return tuple(column_of_class[class_code] for class_code in range(n))


def _confirm_order(
    p: Floats, labels: Ints, testable: Ints, columns: tuple[int, ...], name: str
) -> ColumnOrder | None:
    """Return the order if it is confirmed on these images, which are not those that it was found on."""
    moved_classes = [int(class_code) for class_code in testable if columns[class_code] != class_code]
    if not moved_classes:
        return None
    weights = np.ones((1, len(labels)))
    named_auroc, reordered_auroc = (
        _mean_auroc(p, labels, moved_classes, moved_classes, weights),
        _mean_auroc(p, labels, moved_classes, [columns[m] for m in moved_classes], weights),
    )
    if (
        named_auroc[0] > MAX_NAMED_AUROC
        or reordered_auroc[0] < MIN_REORDERED_AUROC
        or reordered_auroc[0] - named_auroc[0] < MIN_GAIN
    ):
        return None
    resamples = _resample_weights(labels)
    gains = _mean_auroc(p, labels, moved_classes, [columns[m] for m in moved_classes], resamples) - _mean_auroc(
        p, labels, moved_classes, moved_classes, resamples
    )
    # A perfect separation has no spread at all: then the gain stands as it is.
    if gains.mean() < MIN_GAIN_SE * gains.std():
        return None
    return ColumnOrder(columns, float(named_auroc[0]), float(reordered_auroc[0]), name)


def _mean_auroc(p: Floats, labels: Ints, class_codes: list[int], columns: list[int], weights: Floats) -> Floats:
    """Return the mean AUROC of columns for classes, one per row of weights."""
    aurocs = [
        ranking_metrics(sort_scores(p[:, column], labels == class_code), weights).auroc
        for class_code, column in zip(class_codes, columns, strict=True)
    ]
    return np.asarray(np.mean(aurocs, axis=0))


def _resample_weights(labels: Ints) -> Floats:
    """Return bootstrap multiplicities stratified by class, so that none is lost: (_N_RESAMPLES, N)."""
    rng = np.random.default_rng(0)
    weights = np.zeros((_N_RESAMPLES, len(labels)))
    for class_code in np.unique(labels):
        rows = np.flatnonzero(labels == class_code)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_N_RESAMPLES)
    return weights
