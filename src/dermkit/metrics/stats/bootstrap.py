"""Figures of resamples and without each unit, joined once, and the interval that they give."""

from collections.abc import Callable, Mapping

import numpy as np

from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.estimate import Estimate

MOST_CORRECTED = 10_000
"""Units up to which the bootstrap is corrected; it needs every figure without each unit."""

NOT_RESAMPLED = "no interval: nothing was resampled"
_CHUNK = 256

Named = Mapping[str, Floats]


class Resampled:
    """Named figures of `units` units that are drawn together.

    figures: multiplicities (B, units) -> name -> (B, ...). without_each: unit numbers (C,) -> name -> (C, ...). name:
    how the bootstrap is called in a method. samples, left_out: name -> what the two gave; empty where there is nothing
    to draw from, or too much for a correction.
    """

    def __init__(
        self,
        units: int,
        *,
        figures: Callable[[Floats], Named],
        without_each: Callable[[Ints], Named],
        name: str,
        seed: int,
        resamples: int,
    ) -> None:
        # With one unit every resample is the sample itself: there is nothing to learn from it.
        drawn = intervals.resample_weights(np.arange(units), seed=seed, resamples=resamples if units > 1 else 0)
        self.samples = _joined([figures(weights) for weights in drawn])
        corrected = 1 < units <= MOST_CORRECTED and resamples > 0
        parts = np.array_split(np.arange(units), -(-units // _CHUNK)) if corrected else []
        self.left_out = _joined([without_each(rows) for rows in parts])
        self.method = f"{name}, {'BCa' if corrected else 'percentile'}, {resamples} resamples, seed {seed}"
        self.missing = intervals.ONE_GROUP if units == 1 else NOT_RESAMPLED

    def estimate(self, value: float, n: int, samples: Floats | None, left_out: Floats | None) -> Estimate:
        """Return a figure of n images with its interval from resampled values and those without each unit."""
        if samples is None:
            return Estimate(value, None, n, self.method, self.missing)
        interval = (
            intervals.percentile_interval(value, samples)
            if left_out is None
            else intervals.bca_interval(value, samples, left_out)
        )
        return Estimate(value, interval.ci95, n, self.method, interval.reason)


def _joined(parts: list[Named]) -> dict[str, Floats]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
