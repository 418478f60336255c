"""Our runs beside published shares: of other images, or of images that nobody can match, so without pairs.

What is printed has the count behind it, and an interval; a run, or a recipe by several trainings, has its own. Their
difference has an interval from both. It says what chance alone can explain, and nothing of other images being easier.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dermkit.comparison.claims import Checked, Counted
from dermkit.comparison.variance import Sources, reach
from dermkit.metrics.classification.subgroups import apart
from dermkit.metrics.stats.estimate import NO_METHOD, Estimate, doubted, in_words, trust
from dermkit.metrics.stats.intervals import LEVEL, few

SEVERAL = "t over trainings and images, each in full"
SIDES = ("test", "validation")
"""What a published figure is set beside: the test side, else validation."""


@dataclass(frozen=True)
class Beside:
    """A run or recipe less a published share, unpaired. trainings: of the recipe, 1 for a run."""

    name: str
    split: str
    trainings: int
    claim: str
    printed: Counted
    own: Estimate
    difference: Estimate

    @property
    def is_found(self) -> bool:
        """Whether chance alone does not explain the difference, each comparison taken by itself."""
        low, high = self.difference.ci95 or (-1.0, 1.0)
        return low > 0 or high < 0

    def sentence(self) -> str:
        """Return the verdict."""
        gap, (low, high) = self.difference.value or 0.0, self.difference.ci95 or (-1.0, 1.0)
        trained = f", mean of {self.trainings} trainings" if self.trainings > 1 else ""
        found = ("higher" if gap > 0 else "lower") if self.is_found else "not distinguishable"
        unsure = f" ({in_words(self.own.reason)})" if trust(self.own.as_dict()) == "doubtful" else ""
        return (
            f"{self.printed.figure}: {self.name} {self.own.value:.3f} (n {self.own.n}{trained}) against {self.claim} "
            f"{self.printed.value:g} (n {self.printed.n}): {found}, {gap:+.3f} [{low:+.3f}, {high:+.3f}]{unsure}, "
            "unpaired."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what comparison.json holds of it."""
        return {
            "name": self.name, "split": self.split, "figure": self.printed.figure, "trainings": self.trainings,
            **self.difference.as_dict(), "own": self.own.as_dict(), "found": self.is_found,
            "sentence": self.sentence(),
        }  # fmt: skip


def beside_print(
    table: pd.DataFrame,
    names: Sequence[str],
    spreads: Mapping[str, Mapping[str, Mapping[str, Sources]]],
    claims: Sequence[Checked],
) -> dict[str, list[Beside]]:
    """Return claim -> every recipe by several trainings and every run of none, less each of its shares.

    table: a row per run or recipe, split and figure (`board.COLUMNS`); of these, `names` are set beside. spreads:
    recipe -> split -> figure -> sources.
    """
    chosen = table[table["run"].isin(list(names))]
    return {
        item.claim.name: [
            found for printed in item.counted for found in _beside(chosen, spreads, item.claim.name, printed)
        ]
        for item in claims
    }


def _beside(
    table: pd.DataFrame,
    spreads: Mapping[str, Mapping[str, Mapping[str, Sources]]],
    claim: str,
    printed: Counted,
) -> Iterator[Beside]:
    split = next((side for side in SIDES if (table["split"] == side).any()), "")
    rows = table[(table["split"] == split) & (table["metric"] == printed.figure) & table["value"].notna()]
    known = Estimate(printed.successes / printed.n, printed.ci95, printed.n, printed.method)
    for row in rows.to_dict("records"):
        sources = spreads.get(str(row["run"]), {}).get(split, {}).get(printed.figure)
        if pd.isna(row["n"]):  # folds of different sizes
            continue
        own = _single(row) if sources is None else _several(sources, int(row["n"]))
        if trust(own.as_dict()) != "none":
            trainings = 1 if sources is None else sources.runs
            yield Beside(str(row["run"]), split, trainings, claim, printed, own, apart(own, known))


def _single(row: Mapping[Any, Any]) -> Estimate:
    bounds = None if pd.isna(row["low"]) else (float(row["low"]), float(row["high"]))
    reason = "" if pd.isna(row["reason"]) else str(row["reason"])
    return Estimate(float(row["value"]), bounds, int(row["n"]), str(row["method"]), reason)


def _several(sources: Sources, n: int) -> Estimate:
    """Return the mean of trainings with an interval for new trainings and new images, on the careful side.

    Both parts are taken in full, each with its own degrees of freedom: of two trainings there is one.
    """
    units = sources.units or n
    if sources.data is None or sources.between is None or units < 2:
        return Estimate(sources.mean, None, n, NO_METHOD, "no interval: folds, or one unit alone")
    parts = (sources.data**2, units - 1), (sources.between**2 / sources.runs, sources.runs - 1)
    half = reach(parts, 1 - LEVEL)
    bounds = max(0.0, sources.mean - half), min(1.0, sources.mean + half)
    return doubted(Estimate(sources.mean, bounds, n, SEVERAL), few(units))
