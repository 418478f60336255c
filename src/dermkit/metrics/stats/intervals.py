"""95 % intervals: of proportions by Wilson's score or Clopper and Pearson, of everything else by bootstrap.

A group is a lesion or patient (whatever must be drawn together). Resamples are multiplicities, never copied rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv
from scipy.stats import norm

from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.metrics.stats.estimate import NO_METHOD, UNRELIABLE, Estimate, doubted

LEVEL = 0.95
Z = float(norm.ppf(0.5 + LEVEL / 2))
"""Standard errors to either side."""

RESAMPLES = 2000
UNDEFINED_SHARE = 0.05
"""Above this share of resamples in which a figure does not exist, its interval is called unreliable."""

CHUNK_ELEMENTS = 1 << 20
"""Weights held at once (8 MB as float64): near the cache's size, and memory stays flat for a million images."""

ONE_GROUP = "no interval: one group only"
FEW = 30
"""Units below which a proportion gets the exact interval, which never covers too little, and no interval is relied on:
the coverage map (benchmarks/coverage.md) holds from here on."""

NEAR_THE_END = "so near to 0 or 1"
SELDOM = 2
"""Of the rarer outcome: below this the truth may lie so near to 0 or 1 that the interval holds it too seldom."""

WILSON = "wilson"
CLOPPER_PEARSON = "clopper-pearson"
GROUPED_WILSON = "wilson by group"
GROUPED_CLOPPER_PEARSON = "clopper-pearson by group"
BOOTSTRAP_IMAGES = "bootstrap by image, percentile"
BOOTSTRAP_GROUPS = "bootstrap by group, percentile"


@dataclass(frozen=True)
class Interval:
    """Bounds, None where there is no interval, and what makes them unreliable ("" = nothing)."""

    ci95: tuple[float, float] | None
    reason: str = ""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; raises `ValueError` unless 0 <= successes <= n and n > 0."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, not {successes} of {n}")
    return _score(successes / n, n)


def _score(share: float, n: float) -> tuple[float, float]:
    z = Z
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and 1 the bound is exactly that; rounding would leave it beside.
    return (0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half)


def clopper_pearson(successes: float, n: float) -> tuple[float, float]:
    """Return the exact interval of a proportion: 95 % at least, never less; counts need not be whole.

    Raises `ValueError` unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n > 0, not {successes} of {n}")
    tail = (1 - LEVEL) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def proportion(successes: int, n: int) -> tuple[tuple[float, float], str]:
    """Return the interval of a proportion of independent images, and its name."""
    if n < FEW:
        return clopper_pearson(successes, n), CLOPPER_PEARSON
    return wilson(successes, n), WILSON


def design_effect(hit: Bools, units: Ints) -> float:
    """Return how many times as far a proportion of (n,) images strays because images of one unit are alike (Kish).

    The variance of a ratio of sums over units, against independent images; at least 1, and 1 where it is not known
    because all images agree. units: (n,) labels.
    """
    n, share = len(hit), float(hit.mean())
    number = np.unique(units, return_inverse=True)[1]
    count = int(number.max()) + 1
    if share in (0.0, 1.0) or count < 2:
        return max(1.0, n / max(count, 1)) if share in (0.0, 1.0) else 1.0
    sums = np.bincount(number, weights=hit - share)
    variance = float((sums**2).sum()) / n**2 * count / (count - 1)
    return max(1.0, variance / (share * (1 - share) / n))


def clustered_proportion(hit: Bools, units: Ints) -> tuple[tuple[float, float], str]:
    """Return the interval of a proportion of (n,) images in units, as of so many independent ones (Korn, Graubard)."""
    n = len(hit)
    worth = n / design_effect(hit, units)
    successes = float(hit.mean()) * worth
    if worth < FEW:
        return clopper_pearson(min(successes, worth), worth), GROUPED_CLOPPER_PEARSON
    return _score(float(hit.mean()), worth), GROUPED_WILSON


def few(units: int, kind: str = "", *, needed: int = FEW) -> list[str]:
    """Return why intervals of so few independent units are not relied on; empty where they are enough."""
    return [] if units >= needed else [f"{UNRELIABLE}: {units} {kind}units, {needed} needed"]


def proportion_estimate(hit: Bools, groups: Ints) -> Estimate:
    """Return a proportion of (n,) images with the interval that suits their groups; none where they are one group."""
    n, successes, units = len(hit), int(hit.sum()), len(np.unique(groups))
    if units == n:
        (bounds, method), rarer = proportion(successes, n), min(successes, n - successes)
    elif units == 1:
        return Estimate(successes / n, None, n, NO_METHOD, ONE_GROUP)
    else:
        bounds, method = clustered_proportion(hit, groups)
        rarer = min(len(np.unique(groups[rows])) for rows in (hit, ~hit))
    near = [f"{UNRELIABLE}: {rarer} of {units} units on one side, {NEAR_THE_END}"] if rarer < SELDOM else []
    return doubted(Estimate(successes / n, bounds, n, method), few(units) or near)


def mean_of_proportions(shares: Floats, bounds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the interval of a mean of independent proportions from the interval of each (Newcombe 2001, MOVER)."""
    low, high = np.array(bounds, dtype=np.float64).T
    middle, k = float(shares.mean()), len(shares)
    down, up = np.sqrt(((shares - low) ** 2).sum()) / k, np.sqrt(((high - shares) ** 2).sum()) / k
    return max(0.0, middle - float(down)), min(1.0, middle + float(up))


def resample_weights(groups: Ints, *, seed: int, resamples: int = RESAMPLES) -> Iterator[Floats]:
    """Yield multiplicities of the images, (b, N), until `resamples` rows came; each row draws G groups of G.

    groups: (N,) labels 0 to G - 1, each used.
    """
    count = int(groups.max()) + 1
    rows = max(1, CHUNK_ELEMENTS // max(len(groups), 1))
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.integers(0, count, size=(size, count))
        drawn += np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield times.astype(np.float64)[:, groups]


def percentile_interval(value: float, samples: Floats) -> Interval:
    """Return the percentile interval of a figure from its resampled values (B,), NaN = undefined in that resample.

    Undefined resamples are dropped; over `UNDEFINED_SHARE` of them, or an interval without width, or one that
    does not hold the value (a biased figure), is said in `reason`.
    """
    kept = samples[np.isfinite(samples)]
    if not len(kept):
        return Interval(None, "no interval: undefined in every resample")
    tail = (1 - LEVEL) / 2
    low, high = (float(bound) for bound in np.quantile(kept, [tail, 1 - tail]))
    return Interval((low, high), "; ".join(_doubts(value, low, high, (len(samples) - len(kept)) / len(samples))))


def bca_interval(value: float, samples: Floats, left_out: Floats) -> Interval:
    """Return the bias-corrected and accelerated interval (Efron 1987): percentiles moved by bias and skewness.

    left_out: (G,) the figure without each unit in turn, NaN = undefined then. Where one unit decides whether the
    figure exists, or all values are equal, there is nothing to correct by and the percentile interval is returned.
    """
    plain = percentile_interval(value, samples)
    kept = samples[np.isfinite(samples)]
    away = left_out.mean() - left_out
    spread = float((away**2).sum())
    if plain.ci95 is None or not np.isfinite(spread) or spread <= 0:
        return plain
    share = ((kept < value).sum() + 0.5 * (kept == value).sum()) / len(kept)
    if not 0 < share < 1:
        return plain
    bias = float(norm.ppf(share))
    skewness = float((away**3).sum()) / (6 * spread**1.5)
    moved = [bias + (bias + z) / (1 - skewness * (bias + z)) for z in (-Z, Z)]
    low, high = (float(bound) for bound in np.quantile(kept, np.asarray(norm.cdf(moved), dtype=np.float64)))
    return Interval((low, high), "; ".join(_doubts(value, low, high, (len(samples) - len(kept)) / len(samples))))


def _doubts(value: float, low: float, high: float, lost: float) -> list[str]:
    doubts = []
    if lost > UNDEFINED_SHARE:
        doubts.append(f"{UNRELIABLE}: undefined in {lost:.0%} of the resamples, which were dropped")
    # Without this allowance a constant figure's rounding would count as width.
    allowance = 1e-12 * max(1.0, abs(value))
    if high - low <= allowance:
        doubts.append(f"{UNRELIABLE}: every resample gave the same value")
    elif not low - allowance <= value <= high + allowance:
        doubts.append(f"{UNRELIABLE}: the bootstrap is biased and does not hold the value")
    return doubts
