"""Unpaired comparison of runs with published proportions, of other images or of images that cannot be matched.

The published proportion has an interval from its count; a run, or a recipe trained repeatedly, has its own. The
interval of the difference covers the sampling error of both; it says nothing about differences between the data sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dermkit.comparison.claims import CheckedClaim, CountedFigure
from dermkit.comparison.variance import VarianceComponents, interval_half_width
from dermkit.metrics.classification.subgroups import independent_difference
from dermkit.metrics.stats.estimate import NO_METHOD, Estimate, humanise, reliability, with_caveats
from dermkit.metrics.stats.intervals import CONFIDENCE_LEVEL, too_few

REPEATED_METHOD = "t over trainings and images, each in full"
COMPARED_SPLITS = ("test", "validation")
"""Splits that a published figure is compared with: test, else validation."""


@dataclass(frozen=True)
class PublishedComparison:
    """A run or recipe minus a published proportion, unpaired. n_trainings: runs of the recipe, 1 for a single run."""

    name: str
    split: str
    n_trainings: int
    claim: str
    published_figure: CountedFigure
    run_estimate: Estimate
    difference: Estimate

    @property
    def is_significant(self) -> bool:
        """Whether the 95 % interval of the difference excludes 0, without correction for multiple comparisons."""
        low, high = self.difference.ci95 or (-1.0, 1.0)
        return low > 0 or high < 0

    def sentence(self) -> str:
        """Return the verdict."""
        gap, (low, high) = self.difference.value or 0.0, self.difference.ci95 or (-1.0, 1.0)
        trainings_text = f", mean of {self.n_trainings} trainings" if self.n_trainings > 1 else ""
        leader = self.name if gap > 0 else self.claim
        is_ahead = f"{leader} is ahead" if gap else "neither is ahead"
        verdict_text = f"{leader} is higher" if self.is_significant else f"not distinguishable; {is_ahead}"
        caveat = (
            f" ({humanise(self.run_estimate.reason)})"
            if reliability(self.run_estimate.as_dict()) == "doubtful"
            else ""
        )
        return (
            f"{self.published_figure.metric}: {self.name} {self.run_estimate.value:.3f} (n "
            f"{self.run_estimate.n}{trainings_text}) against {self.claim} "
            f"{self.published_figure.value:g} (n {self.published_figure.n}): {verdict_text}, {gap:+.3f} "
            f"[{low:+.3f}, {high:+.3f}]{caveat}, "
            "unpaired."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what comparison.json holds of it."""
        return {
            "name": self.name,
            "split": self.split,
            "metric": self.published_figure.metric,
            "n_trainings": self.n_trainings,
            **self.difference.as_dict(),
            "run": self.run_estimate.as_dict(),
            "is_significant": self.is_significant,
            "sentence": self.sentence(),
        }


def compare_with_published(
    table: pd.DataFrame,
    names: Sequence[str],
    components: Mapping[str, Mapping[str, Mapping[str, VarianceComponents]]],
    claims: Sequence[CheckedClaim],
) -> dict[str, list[PublishedComparison]]:
    """Return claim -> the comparisons of every named run or recipe with each of its proportions.

    table: a row per run or recipe, split and metric (`LEADERBOARD_COLUMNS`). names: the runs and recipes to compare.
    components: recipe -> split -> metric -> variance components.
    """
    rows = table[table["run"].isin(list(names))]
    return {
        checked_claim.claim.name: [
            comparison
            for published_figure in checked_claim.counted_figures
            for comparison in _compare_figure(rows, components, checked_claim.claim.name, published_figure)
        ]
        for checked_claim in claims
    }


def _compare_figure(
    table: pd.DataFrame,
    components: Mapping[str, Mapping[str, Mapping[str, VarianceComponents]]],
    claim: str,
    published_figure: CountedFigure,
) -> Iterator[PublishedComparison]:
    split = next((split_name for split_name in COMPARED_SPLITS if (table["split"] == split_name).any()), "")
    rows = table[(table["split"] == split) & (table["metric"] == published_figure.metric) & table["value"].notna()]
    published_estimate = Estimate(
        published_figure.successes / published_figure.n,
        published_figure.ci95,
        published_figure.n,
        published_figure.method,
    )
    for row in rows.to_dict("records"):
        variance = components.get(str(row["run"]), {}).get(split, {}).get(published_figure.metric)
        if pd.isna(row["n"]):  # folds of different sizes
            continue
        run_estimate = _run_estimate(row) if variance is None else _repeated_estimate(variance, int(row["n"]))
        if reliability(run_estimate.as_dict()) != "none":
            n_trainings = 1 if variance is None else variance.n_runs
            yield PublishedComparison(
                str(row["run"]),
                split,
                n_trainings,
                claim,
                published_figure,
                run_estimate,
                independent_difference(run_estimate, published_estimate),
            )


def _run_estimate(row: Mapping[Any, Any]) -> Estimate:
    bounds = None if pd.isna(row["low"]) else (float(row["low"]), float(row["high"]))
    reason = "" if pd.isna(row["reason"]) else str(row["reason"])
    return Estimate(float(row["value"]), bounds, int(row["n"]), str(row["method"]), reason)


def _repeated_estimate(variance: VarianceComponents, n: int) -> Estimate:
    """Return the mean of repeated runs with a conservative interval for new runs and new images.

    Seed and image variance are added in full, each with its own t quantile.
    """
    n_groups = variance.n_groups or n
    if variance.sd_images is None or variance.sd is None or n_groups < 2:
        return Estimate(variance.mean, None, n, NO_METHOD, "no interval: folds, or one unit alone")
    variance_terms = (variance.sd_images**2, n_groups - 1), (variance.sd**2 / variance.n_runs, variance.n_runs - 1)
    half_width = interval_half_width(variance_terms, 1 - CONFIDENCE_LEVEL)
    bounds = max(0.0, variance.mean - half_width), min(1.0, variance.mean + half_width)
    return with_caveats(Estimate(variance.mean, bounds, n, REPEATED_METHOD), too_few(n_groups))
