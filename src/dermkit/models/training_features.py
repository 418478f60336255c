"""What a net's training images look like to it: their features, reduced, to measure how far a new image lies from them.

Features are scaled to length 1 and projected on the main axes of the training images. The part outside these axes is
kept as one number, its length: foreign images differ there most, and parts of two images are taken for orthogonal. The
distance of an image is that to its k-th nearest training image (Sun and others 2022). No pixels are held. Without
torch.

Shapes: N images, C features of the net, D axes, R training images held.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.decisions.outlier_test import conformal_p_values, distance_threshold, largest_by_group
from dermkit.metrics.stats.arrays import Floats, Ints

MAX_AXES = 64
MAX_REFERENCE_IMAGES = 4000
"""Training images held at most: all of rare classes, and equally many of each frequent one."""

MAX_VALIDATION_IMAGES = 2000
"""Validation images that set the threshold, drawn at random where there are more."""

DISTANCE_NEIGHBOUR = 5
"""The distance is that to the fifth nearest training image; docs/decisions/0016-out-of-distribution.md."""

MAX_DISTANCE = 4.01
"""Features have length 1, so they lie within 2 of their mean; float16 changes that by less than a thousandth."""

_Features = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """Training images as their net sees them, and the distances of validation images.

    mean: (C,) of the training features at length 1. axes: (D, C), orthonormal. points: (R, D + 1), the coordinates of
    each training image on the axes, then the length of its part outside them. labels: (R,) positions in the classes of
    the net's output. groups: (R,) lesion or patient. pixel_keys: (R,) the first 8 bytes of each image's pixel hash.
    calibration: the largest distance in each validation group, ascending.
    """

    mean: _Features
    axes: _Features
    points: _Features
    labels: Ints
    groups: Ints
    pixel_keys: NDArray[np.uint64]
    image_ids: tuple[str, ...]
    calibration: Floats

    @property
    def threshold(self) -> float | None:
        """Return the distance above which an image is marked; None where there are too few validation groups."""
        return distance_threshold(self.calibration)

    def distances(self, features: _Features) -> Floats:
        """Return how far images (N, C) are from the training images, (N,) float64 from 0 to 4."""
        k = min(DISTANCE_NEIGHBOUR, len(self.points))
        return np.asarray(np.partition(self.pair_distances(features), k - 1, axis=1)[:, k - 1], dtype=np.float64)

    def p_values(self, distances: Floats) -> Floats:
        """Return the conformal p value of each distance, (N,)."""
        return conformal_p_values(distances, self.calibration)

    def pair_distances(self, features: _Features) -> _Features:
        """Return the distance of each image (N, C) to each training image, (N, R)."""
        return _pair_distances(project(features, self.mean, self.axes), self.points)


def project(features: _Features, mean: _Features, axes: _Features) -> _Features:
    """Return images (N, C) as points, (N, D + 1): coordinates on the axes, and the length of the part outside them."""
    centred = _unit(features) - mean
    coordinates = centred @ axes.T
    outside = np.maximum((centred**2).sum(axis=1) - (coordinates**2).sum(axis=1), 0)
    return np.column_stack([coordinates, np.sqrt(outside)]).astype(np.float32)


def _unit(rows: _Features) -> _Features:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _pair_distances(points: _Features, others: _Features) -> _Features:
    """Return the distances of points, (N, R): along the axes, and with both parts outside them."""
    along = points[:, :-1] @ others[:, :-1].T
    squares = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * along
    return np.asarray(np.sqrt(np.maximum(squares, 0)), dtype=np.float32)


def fit_training_features(
    features: _Features,
    validation: _Features,
    *,
    labels: Ints,
    groups: Ints,
    validation_groups: Ints,
    pixel_keys: NDArray[np.uint64],
    image_ids: Sequence[str],
) -> ReferenceFeatures:
    """Fit axes and threshold on features (R, C) of training images and (V, C) of validation images.

    labels, groups, pixel_keys, image_ids: of the training images, (R,). validation_groups: (V,).
    """
    unit = _unit(features)
    mean = unit.mean(axis=0)
    axes = _main_axes(unit - mean)
    points = project(features, mean, axes).astype(np.float16).astype(np.float32)  # as the file holds them
    held = ReferenceFeatures(mean, axes, points, labels, groups, pixel_keys, tuple(image_ids), np.empty(0))
    calibration = (
        largest_by_group(held.distances(validation), validation_groups) if len(validation) else np.empty(0)
    )
    return ReferenceFeatures(mean, axes, points, labels, groups, pixel_keys, tuple(image_ids), calibration)


def _main_axes(centred: _Features) -> _Features:
    """Return the main axes of (R, C) centred rows, (D, C) float32, rounded as the file holds them."""
    from sklearn.utils.extmath import randomized_svd  # here: a prediction needs none of it, and it takes a second

    n_axes = min(MAX_AXES, *centred.shape)
    _, _, vectors = randomized_svd(centred, n_axes, random_state=0)
    return np.asarray(vectors, dtype=np.float16).astype(np.float32)


def select_training_rows(labels: Ints, groups: Ints, *, n_max: int = MAX_REFERENCE_IMAGES) -> Ints:
    """Return the rows of at most `n_max` training images, ascending: rare classes whole, others cut to one size.

    Of a class that is cut, an image of each group comes before a second one of any; else they are drawn at random, the
    same every time.
    """
    if len(labels) <= n_max:
        return np.arange(len(labels))
    size = _size_per_class(np.bincount(labels), n_max)
    rng, rows = np.random.default_rng(0), []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        _, index = np.unique(groups[members], return_inverse=True)
        order = np.argsort(_occurrence(index), kind="stable")
        rows.append(members[order[:size]])
    return np.sort(np.concatenate(rows))


def _size_per_class(counts: Ints, n_max: int) -> int:
    """Return the largest size that no class may exceed so that at most `n_max` images remain, at least 1."""
    size = max(1, n_max // max(1, int(np.count_nonzero(counts))))
    while np.minimum(counts, size + 1).sum() <= n_max:
        size += 1
    return size


def _occurrence(index: Ints) -> Ints:
    """Return how many earlier entries are equal to each entry."""
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(index[order]) != 0])
    counted = np.arange(len(index)) - np.repeat(starts, np.diff(np.r_[starts, len(index)]))
    result = np.empty(len(index), dtype=np.int64)
    result[order] = counted
    return result
