"""Are probability columns in another order than the classes? Found on half of the images, proved on the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dermkit.metrics.classification.roc import auroc, rank, ranking_figures

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GAIN, ERRORS = 0.2, 4.0
"""Least gain in mean AUROC, and in standard errors of it."""
OWN, OTHER = 0.55, 0.7
"""A column that says something of its own class is not misplaced; the order found must say more."""
EACH = 5
"""Images of a class that both halves need: the AUROC of fewer is mostly chance."""
MOST = 4000
"""Images looked at: enough to prove any order, and the resamples stay under 10 MB."""
RESAMPLES = 200


@dataclass(frozen=True)
class Order:
    """An order that fits better. columns: for each class the number of the column that is its own.

    own, found: mean AUROC of the moved classes as named and as found. name: `alphabetical`, `reversed` or "".
    """

    columns: tuple[int, ...]
    own: float
    found: float
    name: str


def find_order(p: Floats, labels: Ints, classes: Sequence[str]) -> Order | None:
    """Return the order of columns that fits the labels better than their names, None where the names are right.

    p: (N, K) in the named order. labels: (N,) class numbers. Rows are taken in their order, in turn for either half.
    """
    half = _halves(labels)
    first, second = half == 0, half == 1
    counts = (
        np.bincount(labels[first], minlength=len(classes)),
        np.bincount(labels[second], minlength=len(classes)),
    )
    able = np.flatnonzero(np.minimum(*counts) >= EACH)
    if len(able) < 2 or np.isnan(p).any():
        return None
    candidates = [("alphabetical", item) for item in _alphabetical(classes)]
    candidates += [("reversed", tuple(reversed(range(len(classes)))))]
    candidates += [("", _best(p[first], labels[first], able, len(classes)))]
    found = [order for name, item in candidates if (order := _proved(p[second], labels[second], able, item, name))]
    return max(found, key=lambda order: order.found - order.own, default=None)


def _halves(labels: Ints) -> Ints:
    """Deal the images of every class out to two halves; 2 = left out, beyond `MOST` in all."""
    half = np.full(len(labels), 2, dtype=np.int64)
    share = min(1.0, MOST / max(len(labels), 1))
    for item in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == item)
        rows = rows[: max(2 * EACH, round(share * len(rows)))]
        half[rows] = np.arange(len(rows)) % 2
    return half


def _alphabetical(classes: Sequence[str]) -> list[tuple[int, ...]]:
    """Return what columns mean if they, or the names given to them, are in alphabetical order."""
    ways = []
    for key in (str, str.casefold):
        order = sorted(range(len(classes)), key=lambda number: key(classes[number]))
        place = tuple(int(n) for n in np.argsort(order))
        ways += [tuple(order), place]
    return list(dict.fromkeys(ways))


def _best(p: Floats, labels: Ints, able: Ints, n: int) -> tuple[int, ...]:
    """Return the assignment of columns to the classes `able` with the largest sum of AUROCs; others keep their own."""
    table = np.array([[auroc(p[:, column], labels == item) for column in range(n)] for item in able])
    rows, columns = linear_sum_assignment(-table)
    chosen = {int(able[row]): int(column) for row, column in zip(rows, columns, strict=True)}
    left = [column for column in range(n) if column not in chosen.values()]
    for item in (item for item in range(n) if item not in chosen):
        chosen[item] = item if item in left else left[0]
        left.remove(chosen[item])
    return tuple(chosen[item] for item in range(n))


def _proved(p: Floats, labels: Ints, able: Ints, columns: tuple[int, ...], name: str) -> Order | None:
    """Return the order if these images, on which it was not found, bear it out."""
    moved = [int(item) for item in able if columns[item] != item]
    if not moved:
        return None
    weights = np.ones((1, len(labels)))
    own, found = (
        _mean(p, labels, moved, moved, weights),
        _mean(p, labels, moved, [columns[m] for m in moved], weights),
    )
    if own[0] > OWN or found[0] < OTHER or found[0] - own[0] < GAIN:
        return None
    drawn = _drawn(labels)
    gains = _mean(p, labels, moved, [columns[m] for m in moved], drawn) - _mean(p, labels, moved, moved, drawn)
    # A perfect separation has no spread at all: then the gain stands as it is.
    if gains.mean() < ERRORS * gains.std():
        return None
    return Order(columns, float(own[0]), float(found[0]), name)


def _mean(p: Floats, labels: Ints, items: list[int], columns: list[int], weights: Floats) -> Floats:
    """Return the mean AUROC of columns for classes, one per row of weights."""
    each = [
        ranking_figures(rank(p[:, column], labels == item), weights).auroc
        for item, column in zip(items, columns, strict=True)
    ]
    return np.asarray(np.mean(each, axis=0))


def _drawn(labels: Ints) -> Floats:
    """Return resamples, each class drawn by itself so that none is lost; (RESAMPLES, N) multiplicities."""
    rng = np.random.default_rng(0)
    weights = np.zeros((RESAMPLES, len(labels)))
    for item in np.unique(labels):
        rows = np.flatnonzero(labels == item)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
    return weights
