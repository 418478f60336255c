"""One pass over the log: every statistic is ranked against its reference, and each check's evidence is followed.

Rows before `reference_until` are the reference, the later ones are watched. Outcomes are taken in the order in which
they were written, since that is when they can be known.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from dermkit.metrics.decisions.outlier_test import MAX_FALSE_ALARM_RATE
from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.estimate import Estimate
from dermkit.models.card import MODEL_JSON
from dermkit.monitoring.checks import MONITOR_CHECKS, PERFORMANCE_CHECKS, Statistic, statistics_of
from dermkit.monitoring.evidence import EvidencePath, Standing, mean_capital
from dermkit.monitoring.performance import OutcomeTable
from dermkit.monitoring.periods import names_of_periods
from dermkit.monitoring.reference import MonitoredModel
from dermkit.monitoring.units import UnitReader
from dermkit.monitoring.values import FIXED, TEXT_FIELDS
from dermkit.monitoring.watch import MIN_REFERENCE_UNITS, Watch, WatchedRows

LOG_REFERENCE = "rows of the log before {date}"
TEST_REFERENCE = "test images of the model, at {point}"
VALIDATION_REFERENCE = "validation lesions of the model"
PROBABILITY_REFERENCE = "the P(malignant) of each image itself"


@dataclass(frozen=True)
class Crossing:
    """A check whose capital reached its limit. watch: the statistic that had gained most then. bet: number of its bet
    that had. time: when the limit was reached; since: when that gain began; both in seconds. n: values of the watch
    then.
    """

    check: str
    watch: Watch
    bet: int
    time: float
    since: float
    n: int


@dataclass(eq=False)
class CheckState:
    """A check as it is followed. evidence_by_period: largest log of its capital in each period, and the last."""

    name: str
    watches: list[Watch]
    limit: float
    crossing: Crossing | None = None
    log_capital: float = 0.0
    evidence_by_period: dict[str, float] = field(default_factory=dict)

    @property
    def active_watches(self) -> list[Watch]:
        """Return the statistics that have a reference."""
        return [watch for watch in self.watches if not watch.reason]

    def update(self, values: Mapping[int, Floats], batch: WatchedRows) -> None:
        """Take the next N units. values: position of a watch -> (N,)."""
        paths = []
        standings = [watch.standing for watch in self.active_watches]
        for number, watch in enumerate(self.watches):
            path = watch.update(values[number], batch)
            if not watch.reason:
                paths.append(path)
        if not paths or not len(batch.times):
            return
        log_capital = mean_capital(paths, np.array([one.log_capital for one in standings]))
        for name in dict.fromkeys(batch.periods.tolist()):
            self.evidence_by_period[name] = max(
                self.evidence_by_period.get(name, -math.inf), float(log_capital[batch.periods == name].max())
            )
        self.log_capital = float(log_capital[-1])
        if self.crossing is None and (log_capital >= self.limit).any():
            self.crossing = self._crossing(paths, standings, int(np.argmax(log_capital >= self.limit)), batch)

    def _crossing(
        self,
        paths: Sequence[tuple[Bools, EvidencePath]],
        standings: Sequence[Standing],
        row: int,
        batch: WatchedRows,
    ) -> Crossing:
        """Return what had gained most when the limit was reached, at this one of the N units.

        standings: of each statistic before these units, which holds until its first value among them.
        """
        gains = []
        for watch, before, (mask, path) in zip(self.active_watches, standings, paths, strict=True):
            n_here = int(mask[: row + 1].sum())
            standing = path.standing(n_here - 1) if n_here else before
            gains.append((standing, watch, watch.monitored.n - len(path.log_capital) + n_here))
        standing, watch, n = max(gains, key=lambda gain: gain[0].log_capital)
        return Crossing(self.name, watch, standing.bet, float(batch.times[row]), standing.start, n)


def start_checks(
    model: MonitoredModel,
    operating_point: str,
    text_counts: Mapping[str, Counter[str]],
    *,
    limit: float,
    date: str,
) -> dict[str, CheckState]:
    """Return name -> check, with what the model folder knows as reference.

    operating_point: of the log, "" for none. text_counts: of each text field, the units of the reference by value.
    limit: log of the capital at which a check raises an alarm. date: until when rows are the reference, "" for none.
    """
    watches: dict[str, list[Watch]] = defaultdict(list)
    for statistic in statistics_of(text_counts):
        for watch in _watches_of(statistic, model, operating_point, date):
            watches[statistic.check].append(watch)
    return {check.name: CheckState(check.name, watches[check.name], limit) for check in MONITOR_CHECKS}


def _watches_of(statistic: Statistic, model: MonitoredModel, operating_point: str, date: str) -> Iterator[Watch]:
    rate = model.test_rates.get(operating_point, {}).get(statistic.column)
    if statistic.is_residual:
        figure = Estimate(0.0, None, 0, FIXED, "by definition")
        yield Watch(statistic, PROBABILITY_REFERENCE, figure=figure)
    elif rate is not None and (rate.n_effective >= MIN_REFERENCE_UNITS or not date):
        figure = Estimate(rate.value, rate.ci95, rate.n, MODEL_JSON.name)
        watch = Watch(statistic, TEST_REFERENCE.format(point=operating_point), figure=figure)
        watch.add_counts(round(rate.value * rate.n_effective), rate.n_effective)
        yield watch
    elif date:
        yield Watch(statistic, LOG_REFERENCE.format(date=date), is_of_log=True)
    elif statistic.column == "outside" and model.n_validation_groups:
        n = model.n_validation_groups
        figure = Estimate(MAX_FALSE_ALARM_RATE, None, n, FIXED, f"limit by design, on {n:,} validation lesions")
        watch = Watch(replace(statistic, is_one_sided=True), VALIDATION_REFERENCE, figure=figure)
        watch.add_counts(math.floor(MAX_FALSE_ALARM_RATE * (n + 1) + 1e-9), n)
        yield watch
    else:
        yield Watch(statistic, "")


def count_texts(reader: UnitReader) -> dict[str, Counter[str]]:
    """Return how many units have each value of the text fields, "" left out."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in TEXT_FIELDS}
    for chunk in reader.chunks():
        for name in TEXT_FIELDS:
            counts[name].update(text for text in chunk.texts[name] if text)
    return counts


def follow(
    reader: UnitReader, checks: Mapping[str, CheckState], *, reference_until: datetime | None, period: str
) -> OutcomeTable:
    """Take all units of a log through the checks; returns the outcomes that came back for watched units."""
    outcomes = OutcomeTable()
    end = -math.inf if reference_until is None else reference_until.timestamp()
    for chunk in reader.chunks():
        times, is_reference = chunk.times, chunk.times < end
        outcomes.add(chunk, ~is_reference)
        batch = WatchedRows(
            times[~is_reference], names_of_periods(times[~is_reference], period), chunk.row_numbers[~is_reference]
        )
        for check in checks.values():
            values = {number: watch.statistic.values(chunk) for number, watch in enumerate(check.watches)}
            for number, watch in enumerate(check.watches):
                if watch.is_of_log:
                    watch.add_reference(values[number][is_reference])
            if check.name not in PERFORMANCE_CHECKS:
                check.update({number: one[~is_reference] for number, one in values.items()}, batch)
    _follow_outcomes(outcomes, checks, period)
    return outcomes


def _follow_outcomes(outcomes: OutcomeTable, checks: Mapping[str, CheckState], period: str) -> None:
    for columns in outcomes.batches():
        batch = WatchedRows(columns.times, names_of_periods(columns.times, period), columns.row_numbers)
        for name in PERFORMANCE_CHECKS:
            watches = checks[name].watches
            checks[name].update(
                {number: columns.numbers[watch.statistic.column] for number, watch in enumerate(watches)}, batch
            )
