"""Published metrics: the confidence interval that was not reported, and whether the reported numbers are consistent.

Binary metrics of one test set are functions of prevalence, sensitivity and specificity. All of them increase with both
rates, so bounds on these three bound every metric, and what the bounds exclude is proved impossible.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.intervals import proportion_interval

CHECKED_METRICS = (
    "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "recall", "f1", "npv",
)  # fmt: skip
MACRO_METRICS = ("precision", "recall", "f1")
"""Metrics that papers also report as a mean over both classes."""

_MIN_BOX_WIDTH = 1e-4
_MAX_BOXES = 400_000
_TOLERANCE = 1e-9

Reading = Literal["rounded", "cut off", "either"]
READINGS: tuple[Reading, ...] = ("rounded", "cut off")
"""How all figures of a paper may have been printed: .8667 as .867, or as .866."""

_CornerMetrics = Mapping[str, tuple[Floats, ...]]
"""Metrics at one corner of a box, each as the terms of which it is the mean."""


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure: value, 0 to 1, half a unit of its last printed digit, and how its digits came about."""

    name: str
    value: float
    half_step: float
    reading: Reading = "rounded"

    @property
    def low(self) -> float:
        """The smallest value that is printed so."""
        return self.value - (0.0 if self.reading == "cut off" else self.half_step) - _TOLERANCE

    @property
    def high(self) -> float:
        """The largest value that is printed so."""
        if self.reading == "rounded":
            return self.value + self.half_step + _TOLERANCE
        return self.value + 2 * self.half_step - _TOLERANCE


def parse_figure(name: str, text: str) -> PublishedFigure:
    """Parse `.4661`, `0.74` or `46.61%`; raises `ValueError` for an unknown name or a value outside 0 to 1."""
    if name not in CHECKED_METRICS:
        raise ValueError(f"{name}: not a figure that can be checked; known: {', '.join(CHECKED_METRICS)}")
    number_text, divisor = (text[:-1], 100.0) if text.endswith("%") else (text, 1.0)
    try:
        value = float(number_text) / divisor
    except ValueError:
        raise ValueError(f"{name}={text}: is no number") from None
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={text}: must lie in 0 to 1; a percentage is written with its sign")
    digits = len(number_text.partition(".")[2])
    return PublishedFigure(name, value, 0.5 * 10.0**-digits / divisor)


def read_as(figures: Iterable[PublishedFigure], reading: Reading) -> tuple[PublishedFigure, ...]:
    """Return the figures as printed in another way."""
    return tuple(replace(figure, reading=reading) for figure in figures)


def compatible_counts(figure: PublishedFigure, n: int) -> range:
    """Return every count of n that is printed as this proportion: for .4661 and 118 it is 55 alone."""
    return range(max(0, math.ceil(figure.low * n)), min(n, math.floor(figure.high * n)) + 1)


def count_and_interval(
    figure: PublishedFigure, n: int, readings: Sequence[Reading] = ("rounded",)
) -> tuple[tuple[int, ...], tuple[float, float], str]:
    """Return every count that can be behind a proportion of n images, the interval that spans theirs, and its method.

    Raises `ValueError` if no count fits.
    """
    counts = sorted(
        {count for reading in readings for count in compatible_counts(replace(figure, reading=reading), n)}
    )
    if not counts:
        raise ValueError(f"{figure.name} {figure.value:g}: no count of {n} images is printed so")
    (low, _), method = proportion_interval(counts[0], n)
    (_, high), _ = proportion_interval(counts[-1], n)
    return tuple(counts), (low, high), method


# Matrices of a known size -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BinaryMatrix:
    """A binary confusion matrix."""

    tp: int
    fn: int
    fp: int
    tn: int


def compatible_matrices(
    figures: Sequence[PublishedFigure], *, positives: int, negatives: int, macro: bool = False
) -> list[BinaryMatrix]:
    """Return every confusion matrix of so many images that gives all figures, as far as they are printed.

    macro: precision, recall and F1 are means over both classes, as scikit-learn's `average="macro"` gives them.
    """
    true_positives, true_negatives = _fitting_counts(figures, positives, negatives, macro)
    return [
        BinaryMatrix(n_tp, positives - n_tp, negatives - n_tn, n_tn)
        for n_tp, n_tn in zip(true_positives.tolist(), true_negatives.tolist(), strict=True)
    ]


def n_compatible_matrices(
    figures: Sequence[PublishedFigure], *, positives: int, negatives: int, macro: bool = False
) -> int:
    """Return how many `compatible_matrices` there are."""
    return len(_fitting_counts(figures, positives, negatives, macro)[0])


def _fitting_counts(
    figures: Sequence[PublishedFigure], positives: int, negatives: int, macro: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the true positives and true negatives of every matrix that fits."""
    tp, tn = np.meshgrid(
        _compatible_rate_counts(figures, "sensitivity", positives, macro),
        _compatible_rate_counts(figures, "specificity", negatives, macro),
        indexing="ij",
    )
    true_positives, true_negatives = tp.ravel(), tn.ravel()
    n = positives + negatives
    prevalence = np.full(len(true_positives), positives / n)
    metrics = _all_metrics(
        prevalence, true_positives / max(positives, 1), true_negatives / max(negatives, 1), macro
    )
    fits = np.ones(len(true_positives), dtype=bool)
    for figure in figures:
        with np.errstate(invalid="ignore"):
            fits &= (metrics[figure.name] >= figure.low) & (metrics[figure.name] <= figure.high)
    return true_positives[fits], true_negatives[fits]


def _compatible_rate_counts(
    figures: Sequence[PublishedFigure], rate: str, n: int, macro: bool
) -> NDArray[np.int64]:
    names = (rate, "recall") if rate == "sensitivity" and not macro else (rate,)
    counts = [compatible_counts(figure, n) for figure in figures if figure.name in names]
    return np.array(sorted(set(range(n + 1)).intersection(*counts)), dtype=np.int64)


def _all_metrics(q: Floats, recall: Floats, specificity: Floats, macro: bool) -> dict[str, Floats]:
    """Return all metrics at prevalence q, sensitivity and specificity, arrays of one shape; NaN where undefined."""
    positive_metrics = _class_metrics(q, recall, specificity)
    negative_metrics = _class_metrics(1 - q, specificity, recall)
    means = {name: (positive_metrics[name] + negative_metrics[name]) / 2 for name in MACRO_METRICS}
    return {
        "accuracy": q * recall + (1 - q) * specificity,
        "balanced_accuracy": (recall + specificity) / 2,
        "sensitivity": recall,
        "specificity": specificity,
        "npv": negative_metrics["precision"],
        **(means if macro else positive_metrics),
    }


def _class_metrics(q: Floats, recall: Floats, specificity: Floats) -> dict[str, Floats]:
    hits, alarms = q * recall, (1 - q) * (1 - specificity)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"precision": hits / (hits + alarms), "recall": recall, "f1": 2 * hits / (hits + q + alarms)}


# Any size ---------------------------------------------------------------------------------------------------------


def are_consistent(figures: Sequence[PublishedFigure], *, macro: bool = False) -> bool | None:
    """Tell whether some confusion matrix of any size gives these figures; None if undecided.

    Branch and bound over boxes of (prevalence, sensitivity, specificity): a box is dropped if the bounds of a metric
    over it exclude the printed value. False is proved; True has an example; None: undecided when the boxes are narrower
    than _MIN_BOX_WIDTH or more than _MAX_BOXES.
    """
    boxes = _first_box(figures, macro)
    while len(boxes) and len(boxes) < _MAX_BOXES:
        boxes = boxes[_is_possible(boxes, figures, macro)]
        if not len(boxes):
            return False
        if _is_matching(boxes.mean(axis=2), figures, macro).any():
            return True
        if (boxes[:, :, 1] - boxes[:, :, 0]).max() < _MIN_BOX_WIDTH:
            return None
        boxes = _halve(boxes)
    return None if len(boxes) else False


def _first_box(figures: Sequence[PublishedFigure], macro: bool) -> Floats:
    bounds = {"sensitivity": [0.0, 1.0], "specificity": [0.0, 1.0]}
    for figure in figures:
        name = "sensitivity" if figure.name == "recall" and not macro else figure.name
        if name in bounds:
            low, high = bounds[name]
            bounds[name] = [max(low, figure.low), min(high, figure.high)]
    box = np.array([[[0.0, 1.0], *bounds.values()]])
    return box if (box[:, :, 0] <= box[:, :, 1]).all() else box[:0]


def _halve(boxes: Floats) -> Floats:
    """Halve every box along its longest edge."""
    rows, axis = np.arange(len(boxes)), (boxes[:, :, 1] - boxes[:, :, 0]).argmax(axis=1)
    midpoint = boxes[rows, axis].mean(axis=1)
    lower, upper = boxes.copy(), boxes.copy()
    lower[rows, axis, 1], upper[rows, axis, 0] = midpoint, midpoint
    return np.concatenate([lower, upper])


def _is_possible(boxes: Floats, figures: Sequence[PublishedFigure], macro: bool) -> Bools:
    """Return which boxes the printed values do not exclude; every metric increases with both rates."""
    (q0, q1), (r0, r1), (s0, s1) = boxes[:, 0].T, boxes[:, 1].T, boxes[:, 2].T
    # With prevalence the metrics of one class increase and those of the other decrease, so each class is bounded alone.
    corners = {
        bound: [_metric_terms(q, r, s) for q in (q0, q1)] for bound, r, s in (("low", r0, s0), ("high", r1, s1))
    }
    is_possible = np.ones(len(boxes), dtype=bool)
    for figure in figures:
        low = _extreme_metric(figure.name, corners["low"], np.fmin, macro)
        high = _extreme_metric(figure.name, corners["high"], np.fmax, macro)
        is_possible &= ~(low > figure.high) & ~(high < figure.low)  # undefined at a corner excludes nothing
    return is_possible & _is_f1_possible(boxes, corners, {figure.name: figure for figure in figures}, macro)


def _is_f1_possible(
    boxes: Floats,
    corners: Mapping[str, Sequence[_CornerMetrics]],
    figure_of: Mapping[str, PublishedFigure],
    macro: bool,
) -> Bools:
    """Tell which boxes F1 does not exclude: whatever the share of positives, it is tied to precision and recall.

    Where hardly an image is positive, precision is anything between 0 and 1 over the smallest box; what is printed of
    it then bounds F1.
    """
    bound_functions = (("low", np.fmin), ("high", np.fmax))
    positive_precision = [
        _extreme_metric("precision", corners[bound], choose, macro=False) for bound, choose in bound_functions
    ]
    negative_precision = [
        _extreme_metric("npv", corners[bound], choose, macro=False) for bound, choose in bound_functions
    ]
    if "npv" in figure_of:
        negative_precision = _clip_bounds(negative_precision, figure_of["npv"].low, figure_of["npv"].high)
    if "precision" in figure_of and macro:
        low, high = 2 * figure_of["precision"].low, 2 * figure_of["precision"].high
        positive_precision, negative_precision = (
            _clip_bounds(positive_precision, low - negative_precision[1], high - negative_precision[0]),
            _clip_bounds(negative_precision, low - positive_precision[1], high - positive_precision[0]),
        )
    elif "precision" in figure_of:
        positive_precision = _clip_bounds(
            positive_precision, figure_of["precision"].low, figure_of["precision"].high
        )
    is_possible = (positive_precision[0] <= positive_precision[1] + _TOLERANCE) & (
        negative_precision[0] <= negative_precision[1] + _TOLERANCE
    )
    if "f1" not in figure_of:
        return np.asarray(is_possible, dtype=bool)
    f1 = [
        _harmonic_mean(precision, recall)
        for precision, recall in zip(positive_precision, boxes[:, 1].T, strict=True)
    ]
    if macro:
        negative_f1 = [
            _harmonic_mean(precision, recall)
            for precision, recall in zip(negative_precision, boxes[:, 2].T, strict=True)
        ]
        f1 = [(a + b) / 2 for a, b in zip(f1, negative_f1, strict=True)]
    return np.asarray(is_possible & (f1[0] <= figure_of["f1"].high) & (f1[1] >= figure_of["f1"].low), dtype=bool)


def _clip_bounds(bounds: Sequence[Floats], low: Floats | float, high: Floats | float) -> list[Floats]:
    return [np.maximum(bounds[0], low), np.minimum(bounds[1], high)]


def _harmonic_mean(precision: Floats, recall: Floats) -> Floats:
    total = np.maximum(precision, 0.0) + recall
    return np.where(total > 0, 2 * np.maximum(precision, 0.0) * recall / np.where(total > 0, total, 1.0), 0.0)


def _metric_terms(q: Floats, recall: Floats, specificity: Floats) -> dict[str, tuple[Floats, ...]]:
    """Return each metric as the terms of which it is the mean, each monotone in q."""
    positive_metrics, negative_metrics = (
        _class_metrics(q, recall, specificity),
        _class_metrics(1 - q, specificity, recall),
    )
    binary_metrics = _all_metrics(q, recall, specificity, macro=False)
    terms: dict[str, tuple[Floats, ...]] = {name: (value,) for name, value in binary_metrics.items()}
    return terms | {f"averaged {name}": (positive_metrics[name], negative_metrics[name]) for name in MACRO_METRICS}


def _extreme_metric(name: str, corners: Sequence[_CornerMetrics], choose: np.ufunc, macro: bool) -> Floats:
    key = f"averaged {name}" if macro and name in MACRO_METRICS else name
    extremes = [choose(first, second) for first, second in zip(corners[0][key], corners[1][key], strict=True)]
    # At an undefined corner (no positives, none predicted) any value is possible: 0 and 1 bound it.
    fallback = 0.0 if choose is np.fmin else 1.0
    filled = [np.where(np.isnan(a) | np.isnan(b), fallback, extreme)
            for a, b, extreme in zip(corners[0][key], corners[1][key], extremes, strict=True)]  # fmt: skip
    return np.asarray(np.mean(filled, axis=0), dtype=np.float64)


def _is_matching(points: Floats, figures: Sequence[PublishedFigure], macro: bool) -> Bools:
    metrics = _all_metrics(points[:, 0], points[:, 1], points[:, 2], macro)
    fits = np.ones(len(points), dtype=bool)
    for figure in figures:
        fits &= (metrics[figure.name] >= figure.low) & (metrics[figure.name] <= figure.high)
    return fits
