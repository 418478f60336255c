"""Alarms: what moved, since when, by how much, which images are behind it, and what to do."""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import Estimate
from dermkit.metrics.stats.intervals import Z, difference_interval
from dermkit.monitoring.checks import MONITOR_CHECKS, PERFORMANCE_CHECKS, Statistic
from dermkit.monitoring.drift import Crossing
from dermkit.monitoring.evidence import LOG_ODDS_SHIFTS, SHIFTS, SPREADS
from dermkit.monitoring.periods import day_of, minute_of
from dermkit.monitoring.units import UnitReader
from dermkit.monitoring.values import UnitChunk, ValueSums, known, mean_or_share_text
from dermkit.monitoring.watch import Watch

MAX_ALARM_IMAGES = 25
"""Images that an alarm names, those that moved most."""
HIGHER, LOWER, WIDER, NARROWER = "higher", "lower", "more spread", "less spread"


@dataclass(frozen=True)
class AlarmImage:
    """An image behind an alarm. time: when it was scored, in seconds. value: of the statistic."""

    row_id: str
    pixel_sha256: str
    time: float
    value: float
    site: str
    device: str


@dataclass(eq=False)
class Alarm:
    """An alarm while its images are collected. direction: what the statistic did. sums: of its values since then."""

    crossing: Crossing
    direction: str
    sums: ValueSums = field(default_factory=ValueSums)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _images: list[tuple[float, float, int, AlarmImage]] = field(default_factory=list)

    @property
    def statistic(self) -> Statistic:
        """Return the statistic that moved most."""
        return self.crossing.watch.statistic

    @property
    def images(self) -> list[AlarmImage]:
        """Return the images that moved most, these first."""
        return [entry[-1] for entry in sorted(self._images, key=lambda entry: entry[:3], reverse=True)]

    def add(self, chunk: UnitChunk, *, first_time: float) -> None:
        """Add a chunk's values since the drift began. first_time: of what is watched, not reference."""
        times = chunk.outcome_times if self.crossing.check in PERFORMANCE_CHECKS else chunk.times
        values = self.statistic.values(chunk)
        mask = known(values) & (times >= self.crossing.since) & (chunk.times >= first_time)
        self.sums.add(values[mask])
        weights = self._weights(values)
        for index in np.flatnonzero(mask).tolist():
            image = AlarmImage(
                chunk.row_ids[index], chunk.pixels[index], float(chunk.times[index]), float(values[index]),
                chunk.texts["site"][index], chunk.texts["device"][index],
            )  # fmt: skip
            entry = (float(weights[index]), float(times[index]), next(self._numbers), image)
            heapq.heappush(self._images, entry)
            if len(self._images) > MAX_ALARM_IMAGES:
                heapq.heappop(self._images)

    def _weights(self, values: Floats) -> Floats:
        """Return how far each value lies in the direction of the drift, (N,)."""
        if self.direction in (HIGHER, LOWER):
            return values if self.direction == HIGHER else -values
        distances = np.abs(values - self.crossing.watch.reference.mean)
        return np.asarray(distances if self.direction == WIDER else -distances, dtype=np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return the alarm as monitor.json holds it."""
        watch, statistic = self.crossing.watch, self.statistic
        (check,) = (one for one in MONITOR_CHECKS if one.name == self.crossing.check)
        return {
            "check": check.name, "title": check.title, "statistic": statistic.title, "direction": self.direction,
            "is_event": statistic.is_event,
            "raised": minute_of(self.crossing.time), "since": minute_of(self.crossing.since),
            "n_units_until_raised": self.crossing.n,
            "reference": watch.reference_estimate.as_dict(),
            "since_then": self.sums.estimate(is_event=statistic.is_event).as_dict(),
            "difference": difference_of(self.sums, watch).as_dict(),
            "sentence": self._sentence(watch), "action": check.action,
            "images": [
                {"row_id": one.row_id, "pixel_sha256": one.pixel_sha256, "time": minute_of(one.time),
                 "value": one.value, "site": one.site, "device": one.device}
                for one in self.images
            ],
        }  # fmt: skip

    def _sentence(self, watch: Watch) -> str:
        statistic = self.statistic
        text = mean_or_share_text(self.sums.estimate(is_event=statistic.is_event), is_event=statistic.is_event)
        before = mean_or_share_text(watch.reference_estimate, is_event=statistic.is_event)
        title = statistic.title[0].upper() + statistic.title[1:]
        spread = f"; standard deviation {self.sums.sd:.3g} against {watch.reference.sd:.3g}"
        return (
            f"{title}: {self.direction} since about {day_of(self.crossing.since)}: {text}, against {before} in the "
            f"reference{spread if self.direction in (WIDER, NARROWER) else ''}."
        )


def difference_of(later: ValueSums, watch: Watch) -> Estimate:
    """Return how much higher the later values are than the reference, with a 95 % interval.

    The rows were chosen because they differ, so the interval lies a little too far from 0.
    """
    is_event = watch.statistic.is_event
    first, second = later.estimate(is_event=is_event), watch.reference_estimate
    if first.value is None or second.value is None or first.ci95 is None:
        return Estimate(None, None, later.n, "none", "too few units")
    difference = first.value - second.value
    if second.ci95 is None:
        low, high = (bound - second.value for bound in first.ci95)
        return Estimate(difference, (low, high), later.n, first.method)
    if is_event:
        bounds = difference_interval((first.value, first.ci95), (second.value, second.ci95))
        return Estimate(difference, bounds, later.n, "newcombe")
    half_width = Z * math.sqrt(later.sd**2 / later.n + watch.reference.sd**2 / watch.reference.n)
    return Estimate(difference, (difference - half_width, difference + half_width), later.n, "normal")


def direction_of(crossing: Crossing) -> str:
    """Return what the bet that gained most says of the statistic."""
    if crossing.watch.statistic.is_event:
        return HIGHER if crossing.watch.odds_ratios[crossing.bet] > 1 else LOWER
    if crossing.watch.statistic.is_residual:
        return HIGHER if LOG_ODDS_SHIFTS[crossing.bet] > 0 else LOWER
    if crossing.bet < len(SHIFTS):
        return HIGHER if SHIFTS[crossing.bet] > 0 else LOWER
    return WIDER if SPREADS[crossing.bet - len(SHIFTS)] > 1 else NARROWER


def collect_alarms(crossings: Sequence[Crossing], reader: UnitReader, *, first_time: float) -> list[Alarm]:
    """Read the log once more for the images behind alarms; nothing is read where there is no alarm."""
    alarms = [Alarm(crossing, direction_of(crossing)) for crossing in crossings]
    for chunk in reader.chunks() if alarms else ():
        for alarm in alarms:
            alarm.add(chunk, first_time=first_time)
    return alarms
