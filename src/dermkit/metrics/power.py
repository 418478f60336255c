"""What a test set of a given size can show: the least difference between two models that a test would find.

Both models answer for the same images, so that only images count on which one is right and the other wrong
(McNemar 1947). No normal approximation: with few images it promises too much.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from dermkit.metrics.counts import Floats, Ints

RARE = 1e-9
"""Numbers of discordant images rarer than this are left out of the sum."""


def mcnemar_power(n: int, difference: float, discordant: float, *, alpha: float = 0.05) -> float:
    """Return the chance that the exact two-sided McNemar test finds a true difference in accuracy.

    n: images. discordant: share of images on which just one model is right; difference: at most that, both 0..1.
    Raises `ValueError` outside these ranges.
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
    found: Floats = np.add(binom.sf(least - 1, split, share), binom.cdf(split - least, split, share))
    return float((binom.pmf(split, n, discordant) * found).sum())


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
