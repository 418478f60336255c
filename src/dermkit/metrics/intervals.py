"""95 % intervals: Wilson for a proportion of independent images, bootstrap by group for everything else.

A group is a lesion or patient (whatever must be drawn together). Resamples are multiplicities, never copied rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from dermkit.metrics.counts import Floats, Ints

LEVEL = 0.95
RESAMPLES = 2000
UNDEFINED_SHARE = 0.05
"""Above this share of resamples in which a figure does not exist, its interval is called unreliable."""

CHUNK_ELEMENTS = 1 << 20
"""Weights held at once (8 MB as float64): near the cache's size, and memory stays flat for a million images."""

WILSON = "wilson"
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
    z = float(norm.ppf(0.5 + LEVEL / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and n the bound is exactly 0 or 1; rounding would leave it beside.
    return (0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half)


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


def _doubts(value: float, low: float, high: float, lost: float) -> list[str]:
    doubts = []
    if lost > UNDEFINED_SHARE:
        doubts.append(f"interval unreliable: undefined in {lost:.0%} of the resamples, which were dropped")
    # Without this allowance a constant figure's rounding would count as width.
    allowance = 1e-12 * max(1.0, abs(value))
    if high - low <= allowance:
        doubts.append("interval unreliable: every resample gave the same value")
    elif not low - allowance <= value <= high + allowance:
        doubts.append("interval unreliable: the bootstrap is biased and does not hold the value")
    return doubts
