"""Array types that the metrics share, and a ratio that may be undefined."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

EPSILON = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [EPSILON, 1] before the logarithm, as in scikit-learn: an image costs at most 36.04."""


def ratio(numerator: Floats, denominator: Floats, is_defined: Bools) -> Floats:
    """Return numerator / denominator, NaN where `is_defined` is False; all of one shape."""
    quotient: Floats = np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=is_defined
    )
    return quotient


def sum_by_group(terms: Floats, group_index: Ints, n_groups: int) -> Floats:
    """Return the sum of the (N,) terms of each group, (G,); group_index: (N,) 0 to G - 1, groups may be empty."""
    return np.asarray(np.bincount(group_index, weights=terms, minlength=n_groups), dtype=np.float64)
