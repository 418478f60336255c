"""What a test set of a given size can show: the least difference between two models that a test would find.

Both models answer for the same images, so that only images count on which one is right and the other wrong
(McNemar 1947). No normal approximation: with few images it promises too much.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

from dermkit.metrics.stats.arrays import Floats, Ints

RARE = 1e-9
"""Numbers of discordant images rarer than this are left out of the sum."""

MOST_IMAGES = 10_000_000
"""Beyond this no test set will decide."""


def mcnemar_power(
    n: int, difference: float, discordant: float, *, alpha: float = 0.05, mid: bool = False
) -> float:
    """Return the chance that the exact two-sided McNemar test finds a true difference in accuracy.

    n: images. discordant: share of images on which just one model is right; difference: at most that, both 0..1.
    mid: of the mid-p test instead. Raises `ValueError` outside these ranges.
    """
    if n < 1 or not 0 <= difference <= discordant <= 1 or not 0 < alpha < 1:
        raise ValueError(
            f"needs n > 0 and 0 <= difference <= discordant <= 1, not {n}, {difference}, {discordant}"
        )
    low, high = binom.ppf(RARE, n, discordant), binom.isf(RARE, n, discordant)
    split: Ints = np.arange(max(int(low), 0), int(high) + 1)
    share = (discordant + difference) / (2 * discordant) if discordant else 0.5
    # The least count for the better model at which the test says "different"; beyond `split` it never does.
    least = binom.isf(alpha / 2, split, 0.5) + 1
    if (
        mid
    ):  # it may say so one image earlier, and never two: a step of the exact p is a step and a half of this one
        least = np.where(_mid_p(split, np.asarray(least - 1, dtype=np.float64)) <= alpha, least - 1, least)
    found: Floats = np.add(binom.sf(least - 1, split, share), binom.cdf(split - least, split, share))
    return float((binom.pmf(split, n, discordant) * found).sum())


def best_of_chance(k: int) -> float:
    """Return how far the best of k equally good models is expected above the truth, in standard errors of one.

    k: at least 1. Of models whose errors are independent; errors that they share make it less. The mean of the largest
    of k standard normals.
    """
    if k < 1:
        raise ValueError(f"needs at least one model, not {k}")
    z: Floats = np.linspace(-9.0, 9.0, 20_001)
    return float(np.trapezoid(z * k * norm.pdf(z) * norm.cdf(z) ** (k - 1), z))


def _mid_p(split: Ints, better: Floats) -> Floats:
    """Return the two-sided mid-p where the better model alone is right on `better` of `split` images."""
    worse = split - better
    p = 2 * binom.cdf(worse, split, 0.5) - binom.pmf(worse, split, 0.5)
    return np.asarray(np.where(better > worse, p, 1.0), dtype=np.float64)


def images_needed(difference: float, discordant: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return how many images the mid-p test needs to find that difference in accuracy with that power.

    None where the difference is 0, or where more than `MOST_IMAGES` would be needed.
    """
    if difference <= 0 or mcnemar_power(MOST_IMAGES, difference, discordant, alpha=alpha, mid=True) < power:
        return None
    low, high = 1, MOST_IMAGES
    while high - low > max(1, low // 500):  # power has teeth; closer than this the number says nothing
        middle = (low + high) // 2
        if mcnemar_power(middle, difference, discordant, alpha=alpha, mid=True) < power:
            low = middle
        else:
            high = middle
    return high


def scaled_need(n: int, difference: float, error: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return how many images would show a difference of any figure whose standard error on n images is `error`.

    The error falls with the root of n; None where the difference or its error is 0.
    """
    if difference == 0 or error <= 0:
        return None
    reach = float(norm.isf(alpha / 2) + norm.ppf(power))
    return math.ceil(n * (reach * error / difference) ** 2)


def least_detectable_difference(
    n: int, discordant: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Return the smallest difference in accuracy that is found with that power; None where no difference is."""
    if n < 1 or mcnemar_power(n, discordant, discordant, alpha=alpha) < power:
        return None

    def gap(difference: float) -> float:
        return mcnemar_power(n, difference, discordant, alpha=alpha) - power

    return float(brentq(gap, 0.0, discordant, xtol=1e-6))


def effective_size(units: Ints) -> float:
    """Return how many independent images (N,) images are worth if those of one unit agree entirely (Kish 1965)."""
    sizes = np.unique(units, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0
