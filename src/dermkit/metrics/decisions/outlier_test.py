"""A conformal test for outliers: is a new image further from the training images than those of its kind are?

The p value of an image is the share of validation groups, itself counted among them, whose furthest image lies at least
as far away (Bates and others 2023). If the image is drawn as the validation images were, the chance that it is marked
is at most alpha, whatever the distance measures and however few groups there are. A group (lesion or patient) enters
with its largest distance, since several images of one lesion say no more about a new lesion.

Shapes: N images, G groups.
"""

import math
from collections.abc import Sequence

import numpy as np

from dermkit.metrics.stats.arrays import Floats, Ints

MAX_FALSE_ALARM_RATE = 0.05
"""Largest share of images of the same kind that may be marked."""

_TOLERANCE = 1e-4
"""Distances nearer to each other than this fraction are equal, so that rounding, which varies with the batch, decides
nothing.
"""


def largest_by_group(distances: Floats, groups: Ints) -> Floats:
    """Return the largest of the (N,) distances of each group, ascending, (G,)."""
    _, index = np.unique(groups, return_inverse=True)
    largest = np.full(int(index.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(largest, index, distances)
    return np.sort(largest)


def conformal_p_values(distances: Floats, calibration: Floats) -> Floats:
    """Return the p value of each of (N,) distances. calibration: (G,) of validation groups, ascending."""
    n_as_far = len(calibration) - np.searchsorted(calibration, distances * (1 - _TOLERANCE), side="left")
    return np.asarray((1 + n_as_far) / (len(calibration) + 1), dtype=np.float64)


def distance_threshold(calibration: Floats, *, alpha: float = MAX_FALSE_ALARM_RATE) -> float | None:
    """Return the distance above which p <= alpha: a conformal quantile of (G,) ascending distances.

    None where there are too few groups for any image to be marked: fewer than 1 / alpha - 1, which is 19 for 5 %.
    """
    rank = math.ceil((len(calibration) + 1) * (1 - alpha) - 1e-9)
    return float(calibration[rank - 1]) if 0 < rank <= len(calibration) else None


def can_mark(n_groups: Sequence[int], *, alpha: float = MAX_FALSE_ALARM_RATE) -> bool:
    """Return whether any image can be marked by nets with so many validation groups each.

    The smallest p value of a net is 1 / (groups + 1): one net needs 19 groups for 5 %, and several need 39 each, since
    `combine_p_values` doubles their mean.
    """
    smallest = combine_p_values(np.array([[1 / (n + 1)] for n in n_groups]))
    return bool(smallest[0] <= alpha + 1e-12)


def combine_p_values(p_values: Floats) -> Floats:
    """Return one p value of each image from those of several nets, (nets, N): twice their mean, at most 1.

    It is a p value however the nets depend on each other (Vovk and Wang 2020); of one net its own.
    """
    if len(p_values) == 1:
        return np.asarray(p_values[0], dtype=np.float64)
    return np.asarray(np.minimum(1.0, 2 * p_values.mean(axis=0)), dtype=np.float64)
