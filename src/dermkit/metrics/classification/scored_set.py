"""The scored images of one split, as checked arrays: the input of every metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dermkit.metrics.stats.arrays import Bools, Floats, Ints


def p_malignant(probabilities: Floats, malignant_classes: Bools) -> Floats:
    """Return the probability of malignancy of each image, (N,): the sum over the malignant classes, at most 1.

    probabilities: (N, K); malignant_classes: (K,) mask. The sum is capped because rounding can leave it above 1.
    """
    # A sum over strided rows may differ in its last bit; contiguous rows give one image one number everywhere.
    columns = np.ascontiguousarray(probabilities[:, malignant_classes])
    total: Floats = np.minimum(columns.sum(axis=1), 1.0)
    return total


@dataclass(frozen=True, eq=False)
class ScoredSet:
    """The scored images of one split.

    classes: K names. malignant_classes: (K,) mask. y_true, y_pred: (N,) class indices. probabilities: (N, K), rows sum
    to 1. groups: (N,) labels 0 to G - 1, each used: the resampling unit of an image (lesion, patient, or the image
    itself). Raises `ValueError` if shapes or labels do not fit, without images, or if a probability is not finite.
    """

    classes: Sequence[str]
    malignant_classes: Bools
    y_true: Ints
    y_pred: Ints
    probabilities: Floats
    groups: Ints

    def __post_init__(self) -> None:
        n, k = len(self.y_true), len(self.classes)
        if n < 1 or k < 2:
            raise ValueError(f"figures need an image and two classes, not {n} and {k}")
        shapes = (self.y_pred.shape, self.probabilities.shape, self.groups.shape, self.malignant_classes.shape)
        if shapes != ((n,), (n, k), (n,), (k,)):
            raise ValueError(f"shapes do not fit {n} images of {k} classes: {shapes}")
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
        """How many classes rank above the true one, (N,), 0 = first; ties go to the lower index, as in `argmax`."""
        p, rows = self.probabilities, np.arange(len(self.y_true))
        p_true = p[rows, self.y_true][:, None]
        is_earlier_class = np.arange(p.shape[1]) < self.y_true[:, None]
        return np.asarray(((p > p_true) | ((p == p_true) & is_earlier_class)).sum(axis=1), dtype=np.int64)

    @cached_property
    def p_malignant(self) -> Floats:
        """The probability of malignancy, (N,), 0 to 1."""
        return p_malignant(self.probabilities, self.malignant_classes)

    @cached_property
    def is_malignant(self) -> Bools:
        """Whether the true class is malignant, (N,)."""
        return self.malignant_classes[self.y_true]

    @cached_property
    def is_ungrouped(self) -> bool:
        """Whether every group has one image."""
        return self.n_groups == len(self.groups)
