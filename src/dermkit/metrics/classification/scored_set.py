"""The scored images of one split, as checked arrays: the input of every metric.

Shapes: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dermkit.metrics.stats.arrays import Bools, Floats, Ints

SUM_DIGITS = 10
"""Significant digits of a sum of class probabilities. In floats .1 + .2 is above .3 and .7 + .1 below .8; sums that are
equal on paper are off by parts in 10^16, probabilities that a table or a net tells apart by parts in 10^8 or more."""

_SMALLEST_ROUNDED = 1e-290
_NEAR_CERTAIN = 1e-6


def p_malignant(probabilities: Floats, malignant_classes: Bools) -> Floats:
    """Return the probability of malignancy of each image, (N,): `summed_probability` of the malignant classes."""
    return summed_probability(probabilities, malignant_classes)


def summed_probability(probabilities: Floats, class_mask: Bools) -> Floats:
    """Return the summed probability of some classes, (N,), at most 1; equal sums tie, whatever rounding does.

    probabilities: (N, K); class_mask: (K,). A sum of several classes is taken from the smallest up, so that the order
    of the columns does not matter, and rounded to `SUM_DIGITS` significant digits; one class stays as it is.
    """
    columns = np.ascontiguousarray(probabilities[:, class_mask])
    if columns.shape[1] > 1:
        return np.minimum(_round_sums(np.sort(columns, axis=1).sum(axis=1)), 1.0)
    total: Floats = np.minimum(columns.sum(axis=1), 1.0)
    return total


def _round_sums(sums: Floats) -> Floats:
    """Return (N,) sums with SUM_DIGITS significant digits; below _SMALLEST_ROUNDED, where scaling overflows, as is."""
    exponents = np.floor(np.log10(np.maximum(sums, _SMALLEST_ROUNDED)))
    scale = 10.0 ** (SUM_DIGITS - 1 - exponents)
    return np.where(sums < _SMALLEST_ROUNDED, sums, np.rint(sums * scale) / scale)


@dataclass(frozen=True, eq=False)
class ScoredSet:
    """The scored images of one split.

    classes: K names. malignant_classes: (K,) mask. y_true, y_pred: (N,) class indices. probabilities: (N, K), rows sum
    to 1. groups: (N,) labels 0 to G - 1, each used: the resampling unit of an image (lesion, patient, or the image
    itself). nets: (N,) which net scored each image, None where one scored them all; scores of different nets, as those
    of cross-validation, are never ranked against each other. Raises `ValueError` if shapes or labels do not fit,
    without images, or if a probability is not finite.
    """

    classes: Sequence[str]
    malignant_classes: Bools
    y_true: Ints
    y_pred: Ints
    probabilities: Floats
    groups: Ints
    nets: Ints | None = None

    def __post_init__(self) -> None:
        n, k = len(self.y_true), len(self.classes)
        if n < 1 or k < 2:
            raise ValueError(f"figures need an image and two classes, not {n} and {k}")
        shapes = (self.y_pred.shape, self.probabilities.shape, self.groups.shape, self.malignant_classes.shape)
        if shapes != ((n,), (n, k), (n,), (k,)):
            raise ValueError(f"shapes do not fit {n} images of {k} classes: {shapes}")
        if self.nets is not None and self.nets.shape != (n,):
            raise ValueError(f"shapes do not fit: {n} images, nets {self.nets.shape}")
        if not np.isfinite(self.probabilities).all():
            raise ValueError("probabilities must be finite: a figure over nan would count it as negative")
        if min(self.y_true.min(), self.y_pred.min()) < 0 or max(self.y_true.max(), self.y_pred.max()) >= k:
            raise ValueError(f"class indices must be 0 to {k - 1}")
        if self.groups.min() != 0 or len(np.unique(self.groups)) != self.groups.max() + 1:
            raise ValueError("groups must be labelled 0 to G - 1, each used")

    @property
    def has_both_sides(self) -> bool:
        """Whether some classes are malignant and some are not."""
        return bool(self.malignant_classes.any() and not self.malignant_classes.all())

    @cached_property
    def rows_by_net(self) -> list[Ints]:
        """The images that each net scored, as row numbers."""
        return [np.flatnonzero(self.net_numbers == net) for net in np.unique(self.net_numbers)]

    @property
    def net_numbers(self) -> Ints:
        """The net that scored each image, (N,); 0 where one scored them all."""
        return np.zeros_like(self.groups) if self.nets is None else self.nets

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return int(self.groups.max()) + 1

    def n_groups_in(self, mask: Bools) -> int:
        """Return how many groups have an image in `mask`, (N,)."""
        return int(mask.sum()) if self.is_ungrouped else len(np.unique(self.groups[mask]))

    @cached_property
    def confidence(self) -> Floats:
        """The predicted class's probability, (N,)."""
        return self.probabilities[np.arange(len(self.y_true)), self.y_pred]

    @cached_property
    def rank_of_true(self) -> Ints:
        """How many classes rank above the true one, (N,), 0 = first.

        Of classes that tie the predicted one is first, then the lower index: a right prediction is among the first.
        """
        p, class_index, y_true = self.probabilities, np.arange(self.probabilities.shape[1]), self.y_true[:, None]
        p_true = np.take_along_axis(p, y_true, axis=1)
        is_predicted = class_index == self.y_pred[:, None]
        is_earlier = ((class_index < y_true) | is_predicted) & (self.y_true != self.y_pred)[:, None]
        return np.asarray(((p > p_true) | ((p == p_true) & is_earlier)).sum(axis=1), dtype=np.int64)

    @cached_property
    def p_malignant(self) -> Floats:
        """The probability of malignancy, (N,), 0 to 1."""
        return p_malignant(self.probabilities, self.malignant_classes)

    @cached_property
    def p_other(self) -> Floats:
        """1 - p_malignant, (N,): near certainty the sum over the other classes, which holds what 1 - p rounds away."""
        complement = 1 - self.p_malignant
        is_near_certain = complement < _NEAR_CERTAIN
        return np.where(
            is_near_certain, summed_probability(self.probabilities, ~self.malignant_classes), complement
        )

    @cached_property
    def p_true(self) -> Floats:
        """The true class's probability, (N,)."""
        return self.probabilities[np.arange(len(self.y_true)), self.y_true]

    @cached_property
    def is_malignant(self) -> Bools:
        """Whether the true class is malignant, (N,)."""
        return self.malignant_classes[self.y_true]

    @cached_property
    def is_ungrouped(self) -> bool:
        """Whether every group has one image."""
        return self.n_groups == len(self.groups)
