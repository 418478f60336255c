"""Array types that the metrics share, a ratio that may be undefined, and numbers of a file within their range."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

EPSILON = float(np.finfo(np.float64).eps)
"""Fits clip probabilities to [EPSILON, 1] before the logarithm, as scikit-learn does; reported figures do not."""


def ratio(numerator: Floats, denominator: Floats, is_defined: Bools) -> Floats:
    """Return numerator / denominator, NaN where `is_defined` is False; all of one shape."""
    quotient: Floats = np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=is_defined
    )
    return quotient


def number_between(value: object, low: float, high: float) -> float:
    """Return a number of a JSON file; raises `ValueError` for another type, nan, or outside its range (1e-9 apart)."""
    tolerance = 1e-9 * max(1.0, abs(low), abs(high))
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not low - tolerance <= value <= high + tolerance
    ):
        raise ValueError(f"{value!r} is not a number from {low:g} to {high:g}")
    return float(value)


def count(value: object) -> int:
    """Return a count of a JSON file, 0 to 10^9; raises `ValueError` for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**9:
        raise ValueError(f"{value!r} is not a count")
    return value


def one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    """Return a value of a JSON file that is one of some choices; raises `ValueError` for another value or type."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, choices))}")
    return value


def sum_by_group(terms: Floats, group_index: Ints, n_groups: int) -> Floats:
    """Return the sum of the (N,) terms of each group, (G,); group_index: (N,) 0 to G - 1, groups may be empty."""
    return np.asarray(np.bincount(group_index, weights=terms, minlength=n_groups), dtype=np.float64)
