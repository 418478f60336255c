"""One statistic over time: its reference, its evidence of drift, and its sums by period.

Shapes: N units, in the order of the log.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.estimate import Estimate
from dermkit.monitoring.checks import Statistic
from dermkit.monitoring.evidence import (
    HIGHER_ODDS_RATIOS,
    LOG_ODDS_SHIFTS,
    ODDS_RATIOS,
    RANK_SHARES,
    SHIFTS,
    SPREADS,
    Evidence,
    EvidencePath,
    Standing,
    event_bets,
    event_gains,
    number_bets,
    outcome_bets,
)
from dermkit.monitoring.ranks import ValueRanks, uniforms_of
from dermkit.monitoring.values import ValueSums, known

MIN_REFERENCE_UNITS = 30
MIN_MONITORED_UNITS = 10


@dataclass(frozen=True, eq=False)
class WatchedRows:
    """Of N units: times, (N,) in seconds since 1970; periods, (N,) names; row_numbers, (N,) from their random ids."""

    times: Floats
    periods: NDArray[np.str_]
    row_numbers: NDArray[np.uint64]


@dataclass(eq=False)
class Watch:
    """A statistic as it is watched. reference: its sums. source: what the reference is, in words. periods: name ->
    sums. standing: its evidence after its latest value. figure: the reference as shown, None = of its sums.
    is_of_log: whether rows of the log are its reference.
    """

    statistic: Statistic
    source: str
    ranks: ValueRanks = field(default_factory=ValueRanks)
    reference: ValueSums = field(default_factory=ValueSums)
    monitored: ValueSums = field(default_factory=ValueSums)
    periods: dict[str, ValueSums] = field(default_factory=dict)
    evidence: Evidence = field(init=False)
    standing: Standing = field(default_factory=Standing)
    figure: Estimate | None = None
    is_of_log: bool = False

    def __post_init__(self) -> None:
        n = len(self.odds_ratios)
        if self.statistic.is_event:
            self.evidence = Evidence(n * len(RANK_SHARES), n)
        else:
            n_bets = len(LOG_ODDS_SHIFTS) if self.statistic.is_residual else len(SHIFTS) + len(SPREADS)
            self.evidence = Evidence(n_bets)

    @property
    def latest(self) -> float:
        """Return the log of its capital."""
        return self.standing.log_capital

    @property
    def odds_ratios(self) -> tuple[float, ...]:
        """Return the changes of odds that are bet on."""
        return HIGHER_ODDS_RATIOS if self.statistic.is_one_sided else ODDS_RATIOS

    @property
    def reference_estimate(self) -> Estimate:
        """Return the figure that it is compared with, for people."""
        return self.figure or self.reference.estimate(is_event=self.statistic.is_event)

    @property
    def reason(self) -> str:
        """Return why it cannot be watched, "" where it can."""
        if not self.statistic.is_residual and self.reference.n < MIN_REFERENCE_UNITS:
            return f"the reference has {self.reference.n} units, {MIN_REFERENCE_UNITS} needed"
        return ""

    def add_reference(self, values: Floats) -> None:
        """Add (N,) values to the reference; NaN = unknown."""
        numbers = values[known(values)]
        self.reference.add(numbers)
        self.ranks.add(_inside(self.statistic.positions(numbers)))

    def add_counts(self, n_events: int, n: int) -> None:
        """Add so many events of n to the reference."""
        self.add_reference(np.repeat([1.0, 0.0], [n_events, n - n_events]))

    def update(self, values: Floats, batch: WatchedRows) -> tuple[Bools, EvidencePath]:
        """Take the next (N,) values, NaN = unknown; returns which are known, and the evidence after each of these."""
        mask = known(values)
        numbers = values[mask]
        self.monitored.add(numbers)
        names = batch.periods[mask]
        for name in dict.fromkeys(names.tolist()):
            self.periods.setdefault(name, ValueSums()).add(numbers[names == name])
        if self.reason:
            return mask, EvidencePath(np.zeros(len(numbers)), np.zeros(len(numbers), np.int64), batch.times[mask])
        uniforms = uniforms_of(batch.row_numbers[mask], self.statistic.salt)
        path = self._evidence_path(numbers, uniforms, batch.times[mask])
        self.standing = path.standing(-1) if len(path.log_capital) else self.standing
        return mask, path

    def _evidence_path(self, numbers: Floats, uniforms: Floats, times: Floats) -> EvidencePath:
        if self.statistic.is_residual:
            return self.evidence.update(outcome_bets(numbers), times)
        positions = _inside(self.statistic.positions(numbers))
        if not self.statistic.is_event:
            return self.evidence.update(number_bets(self.ranks.scores(positions, uniforms)), times)
        is_event = np.asarray(numbers > 0.5, dtype=bool)
        shares = self.ranks.shares_before(is_event)
        payments = event_bets(self.ranks.scores(positions, uniforms), self.odds_ratios)
        return self.evidence.update(payments, times, event_gains(is_event, shares, self.odds_ratios))


def _inside(positions: Floats) -> Floats:
    return np.clip(positions, 0, 1 - 1e-12)
