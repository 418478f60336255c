"""What every figure is made from: the scored images of one split, as arrays that fit each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dermkit.metrics.stats.arrays import Bools, Floats, Ints


@dataclass(frozen=True, eq=False)
class Scored:
    """The scored images of one split.

    classes: K names. malignant: (K,). true, predicted: (N,) class indices. probabilities: (N, K), rows sum to 1.
    groups: (N,) labels 0 to G - 1 of what must be drawn together, each label used. Raises `ValueError` where
    shapes or labels do not fit, or without images.
    """

    classes: Sequence[str]
    malignant: Bools
    true: Ints
    predicted: Ints
    probabilities: Floats
    groups: Ints

    def __post_init__(self) -> None:
        n, k = len(self.true), len(self.classes)
        if n < 1 or k < 2:
            raise ValueError(f"figures need an image and two classes, not {n} and {k}")
        shapes = (self.predicted.shape, self.probabilities.shape, self.groups.shape, self.malignant.shape)
        if shapes != ((n,), (n, k), (n,), (k,)):
            raise ValueError(f"shapes do not fit {n} images of {k} classes: {shapes}")
        if min(self.true.min(), self.predicted.min()) < 0 or max(self.true.max(), self.predicted.max()) >= k:
            raise ValueError(f"class indices must be 0 to {k - 1}")
        if self.groups.min() != 0 or len(np.unique(self.groups)) != self.groups.max() + 1:
            raise ValueError("groups must be labelled 0 to G - 1, each used")

    @property
    def has_binary_view(self) -> bool:
        """Whether some classes are malignant and some are not."""
        return bool(self.malignant.any() and not self.malignant.all())

    @property
    def units(self) -> int:
        """How many groups there are."""
        return int(self.groups.max()) + 1

    def units_in(self, rows: Bools) -> int:
        """Return how many groups some of the images are of. rows: (N,)."""
        return int(rows.sum()) if self.independent else len(np.unique(self.groups[rows]))

    @cached_property
    def confidence(self) -> Floats:
        """The predicted class's probability, (N,)."""
        return self.probabilities[np.arange(len(self.true)), self.predicted]

    @cached_property
    def place_of_true(self) -> Ints:
        """How many classes come before the true one, (N,); of equal probabilities the first class, as in `argmax`."""
        p, rows = self.probabilities, np.arange(len(self.true))
        of_true = p[rows, self.true][:, None]
        earlier = np.arange(p.shape[1]) < self.true[:, None]
        return np.asarray(((p > of_true) | ((p == of_true) & earlier)).sum(axis=1), dtype=np.int64)

    @cached_property
    def p_malignant(self) -> Floats:
        """The malignant classes' probabilities together, (N,); sums that rounding left beside 1 are 1."""
        own = np.ascontiguousarray(self.probabilities[:, self.malignant])
        summed: Floats = np.minimum(own.sum(axis=1), 1.0)
        return summed

    @cached_property
    def is_malignant(self) -> Bools:
        """Whether the true class is malignant, (N,)."""
        return self.malignant[self.true]

    @cached_property
    def independent(self) -> bool:
        """Whether every group has one image."""
        return self.units == len(self.groups)
