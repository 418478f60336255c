"""How good the answers were, of images whose outcome came back: sensitivity, specificity, observed against expected.

Which outcomes come back is decided by people who know the answer: these are no random images. Figures are by the time
at which an outcome was written to the log.

Shapes: N outcomes.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.estimate import NO_METHOD, Estimate
from dermkit.metrics.stats.intervals import CONFIDENCE_LEVEL
from dermkit.monitoring.periods import names_of_periods
from dermkit.monitoring.values import UnitChunk, ValueSums

OUTCOME_COLUMNS_USED = ("sensitivity", "specificity", "residual", "observed")
SELECTION_WARNING = (
    "Outcomes that come back are not a random sample: lesions that were excised, or that worried somebody, come back "
    "more often, and the model's own answer may have decided which. Sensitivity is then too high and specificity too "
    "low, and a change of who is followed up looks like a change of the model."
)
POISSON = "exact Poisson"
ALL_PERIODS = "all"
_BATCH = 500


@dataclass(frozen=True, eq=False)
class OutcomeBatch:
    """Some outcomes. times: (N,) seconds, when each was written. row_numbers: (N,). numbers: column -> (N,)."""

    times: Floats
    row_numbers: NDArray[np.uint64]
    numbers: Mapping[str, Floats]


class OutcomeTable:
    """The outcomes of watched units; 56 bytes each, and as many again while they are read in order."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in ("outcome_sequence", "time", *OUTCOME_COLUMNS_USED)}
        self._row_numbers = array("Q")

    def __len__(self) -> int:
        return len(self._row_numbers)

    def add(self, chunk: UnitChunk, is_watched: Bools) -> None:
        """Add those of a chunk's watched units that have an outcome."""
        for index in np.flatnonzero(is_watched & np.isfinite(chunk.numbers["outcome_sequence"])).tolist():
            for name in ("outcome_sequence", *OUTCOME_COLUMNS_USED):
                self._columns[name].append(chunk.numbers[name][index])
            self._columns["time"].append(chunk.outcome_times[index])
            self._row_numbers.append(int(chunk.row_numbers[index]))

    def batches(self) -> Iterator[OutcomeBatch]:
        """Yield the outcomes in the order of their writing."""
        columns = {name: np.array(values, dtype=np.float64) for name, values in self._columns.items()}
        row_numbers = np.array(self._row_numbers, dtype=np.uint64)
        order = np.argsort(columns["outcome_sequence"], kind="stable")
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            yield OutcomeBatch(
                columns["time"][rows], row_numbers[rows],
                {name: columns[name][rows] for name in OUTCOME_COLUMNS_USED},
            )  # fmt: skip


def performance_rows(outcomes: OutcomeTable, period: str) -> list[dict[str, Any]]:
    """Return the figures of each period and, last, of all of them: estimates as JSON holds them."""
    sums: dict[str, dict[str, ValueSums]] = {}
    for batch in outcomes.batches():
        names = names_of_periods(batch.times, period)
        for name in [*dict.fromkeys(names.tolist()), ALL_PERIODS]:
            mask = names == name if name != ALL_PERIODS else np.ones(len(names), dtype=bool)
            _add_period(sums.setdefault(name, {}), batch, mask)
    return [_period_row(name, sums[name]) for name in sorted(sums, key=lambda name: (name == ALL_PERIODS, name))]


def _add_period(sums: dict[str, ValueSums], batch: OutcomeBatch, mask: Bools) -> None:
    numbers = batch.numbers
    expected = numbers["observed"] - numbers["residual"]
    with_probability = np.where(np.isfinite(numbers["residual"]), numbers["observed"], np.nan)
    columns = {**numbers, "expected": expected, "observed_of_expected": with_probability}
    for name, values in columns.items():
        sums.setdefault(name, ValueSums()).add(values[mask & np.isfinite(values)])


def _period_row(name: str, sums: Mapping[str, ValueSums]) -> dict[str, Any]:
    return {
        "period": name,
        "n_outcomes": sums["observed"].n,
        "n_malignant": round(sums["observed"].total),
        "sensitivity": sums["sensitivity"].estimate(is_event=True).as_dict(),
        "specificity": sums["specificity"].estimate(is_event=True).as_dict(),
        "expected_malignant": sums["expected"].total,
        "observed_over_expected": observed_over_expected(
            round(sums["observed_of_expected"].total), sums["expected"].total, sums["expected"].n
        ).as_dict(),
    }


def observed_over_expected(observed: int, expected: float, n: int) -> Estimate:
    """Return malignant images observed over those that the probabilities expect, of n; 1 is calibrated in the large."""
    if n == 0 or expected <= 0:
        return Estimate(None, None, n, NO_METHOD, "no outcome of an image with a probability")
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low = float(chi2.ppf(tail, 2 * observed)) / 2 if observed else 0.0
    high = float(chi2.ppf(1 - tail, 2 * observed + 2)) / 2
    return Estimate(observed / expected, (low / expected, high / expected), n, POISSON)
