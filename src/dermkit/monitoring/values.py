"""The values that are watched: columns of units, sums of a column, and how a figure is written.

Shapes: N units.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.estimate import NO_METHOD, Estimate
from dermkit.metrics.stats.intervals import Z, proportion_interval

FIXED = "fixed"
"""Method of a figure that is no estimate: a limit, or what holds by definition, as its reason says."""
TEXT_FIELDS = ("site", "device", "age_group", "predicted")
STATISTICS = ("mean_red", "mean_green", "mean_blue", "sd_red", "sd_green", "sd_blue", "sharpness")
NUMBER_FIELDS = (
    *STATISTICS, "brightness", "pixels", "aspect", "distance", "outside", "malignant_probability",
    "highest_probability", "positive", "refused", "sensitivity", "specificity", "residual", "observed",
    "outcome_sequence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class UnitChunk:
    """Some units, in the order of the log.

    row_ids, pixels: of each. times: (N,) seconds since 1970. outcome_times: (N,), when its outcome was written, NaN
    without. row_numbers: (N,) from the random row ids. numbers: column -> (N,), NaN = unknown. texts: column -> N
    texts.
    """

    row_ids: list[str]
    pixels: list[str]
    times: Floats
    outcome_times: Floats
    row_numbers: NDArray[np.uint64]
    numbers: dict[str, Floats]
    texts: dict[str, list[str]]


@dataclass
class ValueSums:
    """Sums of values, from which mean and interval follow."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Floats) -> None:
        """Add (N,) values."""
        self.n += len(values)
        self.total += float(values.sum())
        self.squares += float((values**2).sum())

    @property
    def mean(self) -> float:
        """Return the mean; 0 without values."""
        return self.total / max(self.n, 1)

    @property
    def sd(self) -> float:
        """Return the standard deviation, n - 1 in the denominator; 0 below two values."""
        return math.sqrt(max(0.0, self.squares - self.n * self.mean**2) / (self.n - 1)) if self.n > 1 else 0.0

    def estimate(self, *, is_event: bool) -> Estimate:
        """Return mean or share with its 95 % interval; units are taken for independent."""
        if not self.n:
            return Estimate(None, None, 0, NO_METHOD, "no units")
        if is_event:
            interval, method = proportion_interval(round(self.total), self.n)
            return Estimate(round(self.total) / self.n, interval, self.n, method)
        if self.n < 2:
            return Estimate(self.mean, None, self.n, NO_METHOD, "no interval: one unit only")
        half_width = Z * self.sd / math.sqrt(self.n)
        return Estimate(self.mean, (self.mean - half_width, self.mean + half_width), self.n, "normal")


def mean_or_share_text(estimate: Estimate, *, is_event: bool) -> str:
    """Return a mean or share with interval and n, for people."""
    if estimate.value is None:
        return f"not known ({estimate.reason})"
    factor, sign = (100, " %") if is_event else (1, "")
    digits = ".1f" if is_event else ".3g"
    interval = (
        "" if estimate.ci95 is None else " [{}, {}]".format(*(f"{factor * one:{digits}}" for one in estimate.ci95))
    )
    if estimate.method == FIXED:
        return f"{factor * estimate.value:{digits}}{sign} ({estimate.reason})"
    return f"{factor * estimate.value:{digits}}{sign}{interval} (n = {estimate.n:,})"


def known(values: Floats) -> Bools:
    """Return which of (N,) numbers are known."""
    return np.asarray(np.isfinite(values), dtype=bool)
