"""The difference of two proportions of the same images: Tango's score interval, which also holds without discordance.

A normal interval has no width where two models never disagree, and would call 30 images proof that they are equal.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, sum_by_group
from dermkit.metrics.stats.estimate import Estimate, undefined_estimate, with_caveats
from dermkit.metrics.stats.intervals import CONFIDENCE_LEVEL, Z, too_few

TANGO = "Tango's score interval"
_EDGE = 1e-9
"""Distance from -1 and 1 at which the search for a bound ends: the score is undefined at the ends."""


def tango_interval(
    first_only: float, second_only: float, n: float, *, level: float = CONFIDENCE_LEVEL
) -> tuple[float, float]:
    """Return Tango's interval of first proportion less second, of n paired images (Statistics in Medicine 1998, 891).

    first_only, second_only: images that one alone has right; counts need not be integers. Raises `ValueError` unless
    n > 0 and both are at least 0 and together at most n.
    """
    if n <= 0 or min(first_only, second_only) < 0 or first_only + second_only > n * (1 + _EDGE):
        raise ValueError(f"needs n > 0 and discordant images within it, not {first_only}, {second_only} of {n}")
    z = float(ndtri(0.5 + level / 2))

    def score(difference: float) -> float:
        b = 2 * n + (second_only - first_only)
        linear = b * difference - first_only - second_only
        constant = -second_only * difference * (1 - difference)
        root = np.sqrt(max(0.0, linear * linear - 8 * n * constant))
        q = (root - linear) / (4 * n)  # the likeliest rate of images that the second alone has right
        variance = n * (2 * q + difference * (1 - difference))
        gap = first_only - second_only - n * difference
        return float(gap / np.sqrt(max(variance, 1e-300)))

    def bound(end: float, sign: float) -> float:
        if sign * score(end) > -z:  # not rejected even at the end
            return end
        return float(brentq(lambda difference: sign * score(difference) + z, observed, end, xtol=1e-10))

    observed = (first_only - second_only) / n
    return bound(-1 + _EDGE, -1.0), bound(1 - _EDGE, 1.0)


def fewest_pairs(margin: float) -> int:
    """Return the fewest independent images with which Tango's interval can lie above -margin: none disagrees.

    margin: above 0, below 1.
    """
    return math.floor(Z**2 * (1 - margin) / margin) + 1


def proportion_difference(first_correct: Bools, second_correct: Bools, groups: Ints) -> Estimate:
    """Return the proportion of (n,) images that the first has right, less the second's, with Tango's interval.

    groups: (n,) resampling units; images of one unit count as few as their clustered variance says (effective sample
    size; without any discordance a unit counts once). Undefined without images.
    """
    n = len(groups)
    if not n:
        return undefined_estimate(0, "no such image")
    gaps = first_correct.astype(np.float64) - second_correct
    effective_n = n / _design_effect(gaps, groups)
    share = effective_n / n
    low, high = tango_interval(float((gaps > 0).sum()) * share, float((gaps < 0).sum()) * share, effective_n)
    n_groups = len(np.unique(groups))
    method = TANGO if n_groups == n else f"{TANGO} by group"
    return with_caveats(Estimate(float(gaps.mean()), (low, high), n, method), too_few(n_groups))


def _design_effect(gaps: Floats, groups: Ints) -> float:
    """Return the clustered variance of a mean of (n,) gaps over that of independent images, at least 1."""
    group_index = np.unique(groups, return_inverse=True)[1]
    n, n_groups = len(gaps), int(group_index.max()) + 1
    variance = float(gaps.var())
    if n_groups == n:
        return 1.0
    if variance == 0 or n_groups < 2:
        return n / n_groups
    sums = sum_by_group(gaps - gaps.mean(), group_index, n_groups)
    return max(1.0, float((sums**2).sum()) * n_groups / (n_groups - 1) / (n * variance))
