"""Figures that somebody printed: the interval that they left out, and whether they can all be true at once.

Binary figures of one test set are functions of three numbers: the share of positives, sensitivity and specificity.
All of them rise with both rates, so bounds on the three bound every figure, and what the bounds exclude is proved.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.intervals import proportion

NAMES = (
    "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "recall", "f1", "npv",
)  # fmt: skip
AVERAGED = ("precision", "recall", "f1")
"""What is also printed as a mean over both classes."""

_NARROW = 1e-4
_MOST_BOXES = 400_000
_HAIR = 1e-9

_Corner = Mapping[str, tuple[Floats, ...]]
"""Figures at one end of a box, each as the parts that it is the mean of."""


@dataclass(frozen=True)
class Printed:
    """A figure as it stands in print: value 0..1, and half of its last digit's step."""

    name: str
    value: float
    slack: float

    @property
    def low(self) -> float:
        """The least figure that is printed so."""
        return self.value - self.slack - _HAIR

    @property
    def high(self) -> float:
        """The largest figure that is printed so."""
        return self.value + self.slack + _HAIR


def printed(name: str, text: str) -> Printed:
    """Read `.4661`, `0.74` or `46.61%`; raises `ValueError` for a name or value that is no figure of 0 to 1."""
    if name not in NAMES:
        raise ValueError(f"{name}: not a figure that can be checked; known: {', '.join(NAMES)}")
    plain, scale = (text[:-1], 100.0) if text.endswith("%") else (text, 1.0)
    try:
        value = float(plain) / scale
    except ValueError:
        raise ValueError(f"{name}={text}: is no number") from None
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={text}: must lie in 0 to 1; a percentage is written with its sign")
    digits = len(plain.partition(".")[2])
    return Printed(name, value, 0.5 * 10.0**-digits / scale)


def counts_behind(share: Printed, n: int) -> range:
    """Return every count of n that is printed as this share: of .4661 and 118 it is 55 alone."""
    return range(max(0, math.ceil(share.low * n)), min(n, math.floor(share.high * n)) + 1)


def interval_of(share: Printed, n: int) -> tuple[int, tuple[float, float], str]:
    """Return the count behind a printed share of n images, its interval and the method; raises `ValueError` if none."""
    found = counts_behind(share, n)
    if not found:
        raise ValueError(f"{share.name} {share.value:g}: no count of {n} images is printed so")
    nearest = min(found, key=lambda count: abs(count / n - share.value))
    return nearest, *proportion(nearest, n)


# Matrices of a known size -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """A binary confusion matrix."""

    tp: int
    fn: int
    fp: int
    tn: int


def matrices(
    figures: Sequence[Printed], *, positives: int, negatives: int, averaged: bool = False
) -> list[Matrix]:
    """Return every confusion matrix of so many images from which all figures could have been printed.

    averaged: precision, recall and F1 are means over both classes, as `average="macro"` prints them.
    """
    tp, tn = np.meshgrid(
        _counts(figures, "sensitivity", positives, averaged),
        _counts(figures, "specificity", negatives, averaged),
        indexing="ij",
    )
    hits, cleared = tp.ravel(), tn.ravel()
    n = positives + negatives
    share = np.full(len(hits), positives / n)
    made = _figures(share, hits / max(positives, 1), cleared / max(negatives, 1), averaged)
    fits = np.ones(len(hits), dtype=bool)
    for item in figures:
        with np.errstate(invalid="ignore"):
            fits &= (made[item.name] >= item.low) & (made[item.name] <= item.high)
    return [
        Matrix(a, positives - a, negatives - b, b)
        for a, b in zip(hits[fits].tolist(), cleared[fits].tolist(), strict=True)
    ]


def _counts(figures: Sequence[Printed], rate: str, n: int, averaged: bool) -> NDArray[np.int64]:
    names = (rate, "recall") if rate == "sensitivity" and not averaged else (rate,)
    counts = [counts_behind(item, n) for item in figures if item.name in names]
    return np.array(sorted(set(range(n + 1)).intersection(*counts)), dtype=np.int64)


def _figures(q: Floats, recall: Floats, specificity: Floats, averaged: bool) -> dict[str, Floats]:
    """Return all figures from the share of positives and both rates; NaN where one is undefined."""
    one = _of_class(q, recall, specificity)
    other = _of_class(1 - q, specificity, recall)
    means = {name: (one[name] + other[name]) / 2 for name in AVERAGED}
    return {
        "accuracy": q * recall + (1 - q) * specificity,
        "balanced_accuracy": (recall + specificity) / 2,
        "sensitivity": recall,
        "specificity": specificity,
        "npv": other["precision"],
        **(means if averaged else one),
    }


def _of_class(q: Floats, recall: Floats, specificity: Floats) -> dict[str, Floats]:
    hits, alarms = q * recall, (1 - q) * (1 - specificity)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"precision": hits / (hits + alarms), "recall": recall, "f1": 2 * hits / (hits + q + alarms)}


# Any size ---------------------------------------------------------------------------------------------------------


def can_be(figures: Sequence[Printed], *, averaged: bool = False) -> bool | None:
    """Tell whether some confusion matrix, of any size, could have given these figures; None where it is not decided.

    Boxes of (share of positives, sensitivity, specificity) are halved; a box goes where some figure's bounds over it
    miss the printed value. False is proved, and True has an example; None means that neither was found before what is
    left was narrower than any rounding, or too much.
    """
    boxes = _start(figures, averaged)
    while len(boxes) and len(boxes) < _MOST_BOXES:
        boxes = boxes[_possible(boxes, figures, averaged)]
        if not len(boxes):
            return False
        if _fits(boxes.mean(axis=2), figures, averaged).any():
            return True
        if (boxes[:, :, 1] - boxes[:, :, 0]).max() < _NARROW:
            return None
        boxes = _halved(boxes)
    return None if len(boxes) else False


def _start(figures: Sequence[Printed], averaged: bool) -> Floats:
    bounds = {"sensitivity": [0.0, 1.0], "specificity": [0.0, 1.0]}
    for item in figures:
        name = "sensitivity" if item.name == "recall" and not averaged else item.name
        if name in bounds:
            low, high = bounds[name]
            bounds[name] = [max(low, item.low), min(high, item.high)]
    box = np.array([[[0.0, 1.0], *bounds.values()]])
    return box if (box[:, :, 0] <= box[:, :, 1]).all() else box[:0]


def _halved(boxes: Floats) -> Floats:
    """Cut every box in two along its longest side."""
    rows, side = np.arange(len(boxes)), (boxes[:, :, 1] - boxes[:, :, 0]).argmax(axis=1)
    middle = boxes[rows, side].mean(axis=1)
    lower, upper = boxes.copy(), boxes.copy()
    lower[rows, side, 1], upper[rows, side, 0] = middle, middle
    return np.concatenate([lower, upper])


def _possible(boxes: Floats, figures: Sequence[Printed], averaged: bool) -> Bools:
    """Tell which boxes the printed values do not exclude: every figure rises with both rates."""
    (q0, q1), (r0, r1), (s0, s1) = boxes[:, 0].T, boxes[:, 1].T, boxes[:, 2].T
    # With the share of positives the figures of one class rise and of the other fall: each is bounded on its own.
    corners = {end: [_parts(q, r, s) for q in (q0, q1)] for end, r, s in (("low", r0, s0), ("high", r1, s1))}
    left = np.ones(len(boxes), dtype=bool)
    for item in figures:
        low = _extreme(item.name, corners["low"], np.fmin, averaged)
        high = _extreme(item.name, corners["high"], np.fmax, averaged)
        left &= ~(low > item.high) & ~(high < item.low)  # undefined at a corner excludes nothing
    return left & _tied(boxes, corners, {item.name: item for item in figures}, averaged)


def _tied(
    boxes: Floats, corners: Mapping[str, Sequence[_Corner]], given: Mapping[str, Printed], averaged: bool
) -> Bools:
    """Tell which boxes F1 does not exclude: whatever the share of positives, it is tied to precision and recall.

    Where hardly an image is positive, precision is anything between 0 and 1 over the smallest box; what is printed of
    it then bounds F1.
    """
    ends = (("low", np.fmin), ("high", np.fmax))
    one = [_extreme("precision", corners[end], choose, averaged=False) for end, choose in ends]
    other = [_extreme("npv", corners[end], choose, averaged=False) for end, choose in ends]
    if "npv" in given:
        other = _within(other, given["npv"].low, given["npv"].high)
    if "precision" in given and averaged:
        low, high = 2 * given["precision"].low, 2 * given["precision"].high
        one, other = _within(one, low - other[1], high - other[0]), _within(other, low - one[1], high - one[0])
    elif "precision" in given:
        one = _within(one, given["precision"].low, given["precision"].high)
    left = (one[0] <= one[1] + _HAIR) & (other[0] <= other[1] + _HAIR)
    if "f1" not in given:
        return np.asarray(left, dtype=bool)
    f1 = [_harmonic(precision, recall) for precision, recall in zip(one, boxes[:, 1].T, strict=True)]
    if averaged:
        its = [_harmonic(precision, recall) for precision, recall in zip(other, boxes[:, 2].T, strict=True)]
        f1 = [(a + b) / 2 for a, b in zip(f1, its, strict=True)]
    return np.asarray(left & (f1[0] <= given["f1"].high) & (f1[1] >= given["f1"].low), dtype=bool)


def _within(bounds: Sequence[Floats], low: Floats | float, high: Floats | float) -> list[Floats]:
    return [np.maximum(bounds[0], low), np.minimum(bounds[1], high)]


def _harmonic(precision: Floats, recall: Floats) -> Floats:
    both = np.maximum(precision, 0.0) + recall
    return np.where(both > 0, 2 * np.maximum(precision, 0.0) * recall / np.where(both > 0, both, 1.0), 0.0)


def _parts(q: Floats, recall: Floats, specificity: Floats) -> dict[str, tuple[Floats, ...]]:
    """Return each figure as its parts, each monotone in q; a figure is their mean."""
    one, other = _of_class(q, recall, specificity), _of_class(1 - q, specificity, recall)
    single = _figures(q, recall, specificity, averaged=False)
    parts: dict[str, tuple[Floats, ...]] = {name: (value,) for name, value in single.items()}
    return parts | {f"averaged {name}": (one[name], other[name]) for name in AVERAGED}


def _extreme(name: str, corners: Sequence[_Corner], choose: np.ufunc, averaged: bool) -> Floats:
    key = f"averaged {name}" if averaged and name in AVERAGED else name
    parts = [choose(first, second) for first, second in zip(corners[0][key], corners[1][key], strict=True)]
    # An undefined corner (no positives, and none called) may hide any value: 0 and 1 bound it.
    blank = 0.0 if choose is np.fmin else 1.0
    ends = [np.where(np.isnan(a) | np.isnan(b), blank, part)
            for a, b, part in zip(corners[0][key], corners[1][key], parts, strict=True)]  # fmt: skip
    return np.asarray(np.mean(ends, axis=0), dtype=np.float64)


def _fits(points: Floats, figures: Sequence[Printed], averaged: bool) -> Bools:
    made = _figures(points[:, 0], points[:, 1], points[:, 2], averaged)
    fits = np.ones(len(points), dtype=bool)
    for item in figures:
        fits &= (made[item.name] >= item.low) & (made[item.name] <= item.high)
    return fits
