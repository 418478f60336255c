"""Power: the smallest difference between two models that a test set can show, and the images that a difference needs.

Both models predict the same images, so only discordant images count, which one model alone has right (McNemar 1947).
Binomial distributions are summed exactly; with few images a normal approximation is optimistic.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.paired_tests import mid_p

RARE_PROBABILITY = 1e-9
"""Tail probability of the number of discordant images that the sum leaves out."""

MAX_IMAGES = 10_000_000
"""Largest number of images that is named as needed; no test set is larger."""


def mcnemar_power(
    n: int, difference: float, discordant_fraction: float, *, alpha: float = 0.05, use_mid_p: bool = False
) -> float:
    """Return the power of the exact two-sided McNemar test against a true difference in accuracy.

    n: images. discordant_fraction: of images that only one model has right, 0 to 1; difference: 0 to that. use_mid_p:
    power of the mid-p test instead. Raises `ValueError` outside these ranges.
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
    # The least count in favour of the better model that is significant; above `n_discordant` none is.
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
    """Return the expected maximum of k standard normals: how optimistic the best of k equal models is, in SEs.

    k: at least 1. For independent errors; errors that the models share make it smaller.
    """
    if k < 1:
        raise ValueError(f"needs at least one model, not {k}")
    z: Floats = np.linspace(-9.0, 9.0, 20_001)
    return float(np.trapezoid(z * k * norm.pdf(z) * norm.cdf(z) ** (k - 1), z))


def mcnemar_images_needed(
    difference: float, discordant_fraction: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Return how many images the mid-p test needs to detect that difference in accuracy with that power.

    None if the difference is 0, or if more than `MAX_IMAGES` would be needed.
    """
    if (
        difference <= 0
        or mcnemar_power(MAX_IMAGES, difference, discordant_fraction, alpha=alpha, use_mid_p=True) < power
    ):
        return None
    low, high = 1, MAX_IMAGES
    while high - low > max(1, low // 500):  # power is a sawtooth in n: more digits mean nothing
        midpoint = (low + high) // 2
        if mcnemar_power(midpoint, difference, discordant_fraction, alpha=alpha, use_mid_p=True) < power:
            low = midpoint
        else:
            high = midpoint
    return high


def scaled_images_needed(
    n: int, difference: float, standard_error: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Return how many images are needed to detect a difference whose standard error on n images is known.

    The standard error falls with the square root of n. None if the difference or its error is 0.
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
    """Return the smallest difference in accuracy that is detected with that power; None if none is."""
    if n < 1 or mcnemar_power(n, discordant_fraction, discordant_fraction, alpha=alpha) < power:
        return None

    def power_excess(difference: float) -> float:
        return mcnemar_power(n, difference, discordant_fraction, alpha=alpha) - power

    return float(brentq(power_excess, 0.0, discordant_fraction, xtol=1e-6))


def effective_sample_size(groups: Ints) -> float:
    """Return the effective sample size of (N,) images if those of one group agree entirely (Kish 1965)."""
    group_sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(group_sizes.sum() ** 2 / (group_sizes**2).sum()) if len(group_sizes) else 0.0
