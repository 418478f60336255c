"""What a test set of a given size can show: the least difference between two models that a test would find.

Both models answer for the same images, so that only images count on which one is right and the other wrong
(McNemar 1947). No normal approximation: with few images it promises too much.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.paired_tests import mid_p

RARE_PROBABILITY = 1e-9
"""Numbers of discordant images rarer than this are left out of the sum."""

MAX_IMAGES = 10_000_000
"""Beyond this no test set will decide."""


def mcnemar_power(
    n: int, difference: float, discordant_fraction: float, *, alpha: float = 0.05, use_mid_p: bool = False
) -> float:
    """Return the chance that the exact two-sided McNemar test finds a true difference in accuracy.

    n: images. discordant: share of images on which just one model is right; difference: at most that, both 0..1.
    mid: of the mid-p test instead. Raises `ValueError` outside these ranges.
    """
    if n < 1 or not 0 <= difference <= discordant_fraction <= 1 or not 0 < alpha < 1:
        raise ValueError(
            f"needs n > 0 and 0 <= difference <= discordant <= 1, not {n}, {difference}, {discordant_fraction}"
        )
    low, high = (
        binom.ppf(RARE_PROBABILITY, n, discordant_fraction),
        binom.isf(RARE_PROBABILITY, n, discordant_fraction),
    )
    n_discordant: Ints = np.arange(max(int(low), 0), int(high) + 1)
    better_fraction = (
        (discordant_fraction + difference) / (2 * discordant_fraction) if discordant_fraction else 0.5
    )
    # The least count for the better model at which the test says "different"; beyond `n_discordant` it never does.
    min_better = binom.isf(alpha / 2, n_discordant, 0.5) + 1
    if use_mid_p:
        # The mid-p rejects at most one count earlier than the exact test.
        earlier = np.asarray(min_better - 1, dtype=np.float64)
        min_better = np.where(mid_p(earlier, n_discordant - earlier) <= alpha, earlier, min_better)
    conditional_power: Floats = np.add(
        binom.sf(min_better - 1, n_discordant, better_fraction),
        binom.cdf(n_discordant - min_better, n_discordant, better_fraction),
    )
    return float((binom.pmf(n_discordant, n, discordant_fraction) * conditional_power).sum())


def expected_maximum_of_k(k: int) -> float:
    """Return how far the best of k equally good models is expected above the truth, in standard errors of one.

    k: at least 1. Of models whose errors are independent; errors that they share make it less. The mean of the largest
    of k standard normals.
    """
    if k < 1:
        raise ValueError(f"needs at least one model, not {k}")
    z: Floats = np.linspace(-9.0, 9.0, 20_001)
    return float(np.trapezoid(z * k * norm.pdf(z) * norm.cdf(z) ** (k - 1), z))


def mcnemar_images_needed(
    difference: float, discordant_fraction: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Return how many images the mid-p test needs to find that difference in accuracy with that power.

    None where the difference is 0, or where more than `MAX_IMAGES` would be needed.
    """
    if (
        difference <= 0
        or mcnemar_power(MAX_IMAGES, difference, discordant_fraction, alpha=alpha, use_mid_p=True) < power
    ):
        return None
    low, high = 1, MAX_IMAGES
    while high - low > max(1, low // 500):  # power has teeth; closer than this the number says nothing
        midpoint = (low + high) // 2
        if mcnemar_power(midpoint, difference, discordant_fraction, alpha=alpha, use_mid_p=True) < power:
            low = midpoint
        else:
            high = midpoint
    return high


def scaled_images_needed(
    n: int, difference: float, standard_error: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Return how many images would show a difference of any figure whose standard error on n images is
    `standard_error`.

    The error falls with the root of n; None where the difference or its error is 0.
    """
    if difference == 0 or standard_error <= 0:
        return None
    return math.ceil(n * (z_sum(alpha, power) * standard_error / difference) ** 2)


def z_sum(alpha: float, power: float) -> float:
    """Return how many standard errors a difference must be so that a two-sided z test at alpha has that power."""
    return float(norm.isf(alpha / 2) + norm.ppf(power))


def minimum_detectable_difference(
    n: int, discordant_fraction: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Return the smallest difference in accuracy that is found with that power; None where no difference is."""
    if n < 1 or mcnemar_power(n, discordant_fraction, discordant_fraction, alpha=alpha) < power:
        return None

    def power_excess(difference: float) -> float:
        return mcnemar_power(n, difference, discordant_fraction, alpha=alpha) - power

    return float(brentq(power_excess, 0.0, discordant_fraction, xtol=1e-6))


def effective_sample_size(groups: Ints) -> float:
    """Return how many independent images (N,) images are worth if those of one unit agree entirely (Kish 1965)."""
    group_sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(group_sizes.sum() ** 2 / (group_sizes**2).sum()) if len(group_sizes) else 0.0
