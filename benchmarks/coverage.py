"""How often a 95 % interval holds the truth, in simulation; appends rows to benchmarks/coverage.csv; stop and go on.

    python benchmarks/coverage.py closed [--sims 2000] [--size 1000]
    python benchmarks/coverage.py boot [--sims 400] [--size 1000]
    python benchmarks/coverage.py table

A cell is n, prevalence, truth, and how images hang together. Scores are normal: the threshold lies half way between
the classes, so that sensitivity, specificity, accuracy and balanced accuracy all have the same known truth; AUROC has
cells of its own, where the classes lie as far apart as its truth wants. In grouped cells a lesion has one to five
images, half of whose spread is the lesion's. "as if alone" takes these images for independent: what most papers do.

`closed` simulates the figures whose intervals are formulas, and seven classes, of which two thirds are one; `boot`
those with bootstrap intervals, against their values on two million images, and beside them the bootstrap of what has a
formula. Both may run at the same time.
"""

import argparse
import functools
import itertools
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from dermkit.metrics.classification.resampled_metrics import MetricValues, ResampledMetrics, compared_metrics
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.metrics.stats.bootstrap import BootstrapSamples
from dermkit.metrics.stats.intervals import MIN_GROUPS, wilson_interval
from scale import add_rows, commit, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "coverage.csv"
HEADER = (
    "commit", "python", "n", "prevalence", "truth", "images", "classes", "figure", "true_value",
    "sims", "held", "coverage", "low", "high", "width", "undefined", "marked", "fewest_units", "method",
)  # fmt: skip
SIZES = (60, 120, 1000)
PREVALENCES = (0.1, 0.3, 0.5)
TRUTHS = (0.6, 0.8, 0.95, 0.98)
BOOT_TRUTHS = (0.8, 0.95)
SHOWN_FAILING = 0.8
"""The truth at which grouped images are taken as if alone; it is the same everywhere."""
SEVEN = (0.67, 0.11, 0.11, 0.05, 0.03, 0.015, 0.015)
IMAGES = ("alone", "grouped", "grouped, as if alone")
CLOSED = ("accuracy", "sensitivity", "specificity", "balanced_accuracy", "ppv", "npv")
BOOTSTRAPPED = (
    "f1", "mcc", "kappa", "f1_macro", "average_precision", "loss", "brier", "ece", "pauc_above_tpr80", "auc_sens_80",
    "sensitivity_at_specificity_90", "specificity_at_sensitivity_90", "calibration_slope", "calibration_intercept",
    "net_benefit_10",
)  # fmt: skip
KEY = ("n", "prevalence", "truth", "images", "classes", "figure")
BY_BOOTSTRAP = ", bootstrap"
MAIN = ("accuracy", "sensitivity", "specificity", "balanced_accuracy", "auroc")
LARGEST = 0.95
MOST = 5
"""Images of one lesion: one to five, all equally often."""
ALIKE = 0.5
"""Share of the spread of scores that images of one lesion have in common."""
POPULATION = 2_000_000


@dataclass(frozen=True)
class Cell:
    """n: images; truth: of what is measured; auroc: whether the classes lie so that it is the AUROC's truth."""

    n: int
    prevalence: float
    truth: float
    images: str
    auroc: bool = False
    classes: int = 2

    @property
    def apart(self) -> float:
        """Distance of the classes' means in standard deviations."""
        return (math.sqrt(2) if self.auroc else 2.0) * float(norm.ppf(self.truth))


def cells() -> Iterator[Cell]:
    for n, truth, images in itertools.product(SIZES, TRUTHS, IMAGES):
        if images == IMAGES[2] and truth != SHOWN_FAILING:
            continue
        for prevalence, auroc in itertools.product(PREVALENCES, (False, True)):
            yield Cell(n, prevalence, truth, images, auroc)
        yield Cell(n, 0.0, truth, images, classes=7)


def draw(cell: Cell, generator: np.random.Generator) -> ScoredSet:
    """Draw a test set: labels by lesion, log odds of the two-class posterior as scores."""
    grouped = cell.images != "alone"
    lesions = generator.integers(1, MOST + 1, cell.n) if grouped else np.ones(cell.n, dtype=np.int64)
    unit = np.repeat(np.arange(cell.n), lesions)[: cell.n]
    groups = unit if cell.images == "grouped" else np.arange(cell.n)
    own, shared = generator.normal(0, 1, cell.n), generator.normal(0, 1, cell.n)[unit]
    spread = math.sqrt(ALIKE) * shared + math.sqrt(1 - ALIKE) * own if grouped else own
    if cell.classes > 2:
        true = generator.choice(cell.classes, size=cell.n, p=SEVEN)[unit]
        return many_classes(true, spread < norm.ppf(cell.truth), groups, generator)
    ill = (generator.random(cell.n) < cell.prevalence)[unit]
    return scored(ill.astype(np.int64), cell.apart * (spread + cell.apart * (ill - 0.5)), groups)


def many_classes(true: Ints, right: Bools, groups: Ints, generator: np.random.Generator) -> ScoredSet:
    """Return images of seven classes of which some are right, the others called any other class."""
    k, n = len(SEVEN), len(true)
    predicted = np.where(right, true, (true + generator.integers(1, k, n)) % k)
    p = np.full((n, k), 0.1 / (k - 1))
    p[np.arange(n), predicted] = 0.9
    return ScoredSet([f"class {i}" for i in range(k)], np.arange(k) == 1, true, predicted, p, _from_0(groups))


def scored(true: Ints, odds: Floats, groups: Ints) -> ScoredSet:
    p = 1 / (1 + np.exp(-odds))
    return ScoredSet(
        ["benign", "malignant"], np.array([False, True]), true, (odds > 0).astype(np.int64),
        np.column_stack([1 - p, p]), _from_0(groups),
    )  # fmt: skip


def _from_0(groups: Ints) -> Ints:
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def truths(cell: Cell, figures: Sequence[str]) -> dict[str, float | None]:
    """Return the value of every figure; where no formula gives it, on very many independent images of the kind."""
    share, rate = cell.prevalence, cell.truth
    known: dict[str, float | None] = {"auroc": rate}
    if not cell.auroc:
        known = dict.fromkeys(("accuracy", "sensitivity", "specificity", "balanced_accuracy"), rate)
        found, right = share * rate, (1 - share) * rate
        known |= {"ppv": found / (found + (1 - share) * (1 - rate)), "npv": right / (right + share * (1 - rate))}
    return known if set(figures) <= set(known) else _of_many(share, rate) | known


@functools.cache
def _of_many(prevalence: float, truth: float) -> dict[str, float | None]:
    drawn = draw(Cell(POPULATION, prevalence, truth, "alone"), np.random.default_rng(99))
    return {name: item["value"] for name, item in evaluate_split(drawn, seed=0, resamples=0)["metrics"].items()}


def simulate(cell: Cell, figures: tuple[str, ...], sims: int, *, resamples: int) -> Iterator[tuple[object, ...]]:
    """Yield a row per figure."""
    wanted = [name.removesuffix(BY_BOOTSTRAP) for name in figures]
    true, generator = truths(cell, wanted), np.random.default_rng(7)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in figures}
    fewest = []
    for number in range(sims):
        drawn = draw(cell, generator)
        fewest.append(min(len(set(drawn.groups[drawn.y_true == k].tolist())) for k in range(cell.classes)))
        metrics = _estimates(drawn, figures, number, resamples)
        for name in figures:
            seen[name].append(metrics[name])
    for name in figures:
        having = [item for item in seen[name] if item["ci95"] is not None]
        value = true[name.removesuffix(BY_BOOTSTRAP)]
        if not having or value is None:
            continue
        held = sum(item["ci95"][0] - 1e-12 <= value <= item["ci95"][1] + 1e-12 for item in having)
        low, high = wilson_interval(held, len(having))
        width = float(np.mean([item["ci95"][1] - item["ci95"][0] for item in having]))
        marked = sum("unreliable" in item.get("reason", "") for item in having) / len(having)
        yield (
            commit(), platform.python_version(), cell.n, cell.prevalence, cell.truth, cell.images, cell.classes, name,
            round(value, 5), len(having), held, round(held / len(having), 4), round(low, 4), round(high, 4),
            round(width, 4), sims - len(having), round(marked, 4), float(np.median(fewest)), having[0]["method"],
        )  # fmt: skip


def _estimates(drawn: ScoredSet, figures: tuple[str, ...], seed: int, resamples: int) -> dict[str, dict[str, Any]]:
    ranked = resamples > 0 or "auroc" in figures
    body = evaluate_split(drawn, seed=seed, resamples=resamples, with_ranking=ranked)
    found: dict[str, dict[str, Any]] = dict(body["metrics"])
    wanted = [name.removesuffix(BY_BOOTSTRAP) for name in figures if name.endswith(BY_BOOTSTRAP)]
    return found | (bootstrapped(drawn, wanted, seed, resamples) if wanted else {})


def bootstrapped(drawn: ScoredSet, wanted: Sequence[str], seed: int, resamples: int) -> dict[str, dict[str, Any]]:
    """Return what has an interval by formula with one by bootstrap instead, by lesion where there are some."""
    plan = ResampledMetrics(drawn)

    def named(figures: MetricValues) -> dict[str, Floats]:
        every = compared_metrics(figures)
        return {name: every[name] for name in wanted}

    made = BootstrapSamples(
        drawn.n_groups,
        compute_metrics=lambda weights: named(plan.bootstrap(weights)),
        leave_one_group_out=lambda rows: named(plan.leave_one_group_out(rows)),
        method_name="bootstrap",
        seed=seed,
        resamples=resamples,
    )
    values = {name: float(value[0]) for name, value in named(plan.point_estimates).items()}
    return {
        name + BY_BOOTSTRAP: {"ci95": None}
        if math.isnan(value)
        else made.estimate(value, len(drawn.y_true), made.samples[name], made.jackknife[name]).as_dict()
        for name, value in values.items()
    }


def run(what: str, sims: int, size: int | None) -> None:
    there = {tuple(row[name] for name in KEY) for row in read_rows(ROWS)}
    for number, cell in enumerate(cells()):
        figures = _figures(what, cell)
        key = tuple(map(str, (cell.n, cell.prevalence, cell.truth, cell.images, cell.classes)))
        if not figures or size not in (None, cell.n) or any((*key, name) in there for name in figures):
            continue
        made = list(simulate(cell, figures, sims, resamples=0 if what == "closed" else 1000))
        add_rows(ROWS, HEADER, made)
        print(number, *key, " ".join(f"{row[7]} {row[11]}" for row in made), flush=True)


def _figures(what: str, cell: Cell) -> tuple[str, ...]:
    """Return what is measured in a cell."""
    if what == "closed":
        return ("accuracy", "balanced_accuracy") if cell.classes > 2 else ("auroc",) if cell.auroc else CLOSED
    if cell.classes > 2 or cell.truth not in BOOT_TRUTHS or cell.images == IMAGES[2]:
        return ()
    return ("auroc" + BY_BOOTSTRAP,) if cell.auroc else (*BOOTSTRAPPED, *(f + BY_BOOTSTRAP for f in CLOSED[:4]))


def table() -> str:
    """Return the map as Markdown: a line per figure, size and kind of images; coverage over prevalence and truth."""
    found = read_rows(ROWS)
    lines = [
        "| figure | images | n | seven classes | " + " | ".join(f"{p:.0%} malignant" for p in PREVALENCES) + " |",
        "|" + "---|" * 7,
    ]
    for name in dict.fromkeys(row["figure"] for row in found):
        for images, n in itertools.product(IMAGES, SIZES):
            part = [r for r in found if (r["figure"], r["images"], r["n"]) == (name, images, str(n))]
            if part:
                columns = [_spread([r for r in part if r["prevalence"] == str(p)]) for p in (0.0, *PREVALENCES)]
                lines.append(f"| {name} | {images} | {n} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def vouched() -> str:
    """Return the least and largest coverage of cells with 30 units of each class and a truth of .6 to .95."""
    lines = ["| figure | images | cells | least | most |", "|" + "---|" * 5]
    for name, images in itertools.product(MAIN, IMAGES):
        part = [r for r in read_rows(ROWS) if (r["figure"], r["images"]) == (name, images) and _inside(r)]
        if part:
            held = [100 * float(row["coverage"]) for row in part]
            lines.append(f"| {name} | {images} | {len(part)} | {min(held):.1f} | {max(held):.1f} |")
    return "\n".join(lines)


def _inside(row: dict[str, str]) -> bool:
    return float(row["fewest_units"]) >= MIN_GROUPS and float(row["truth"]) <= LARGEST


def _spread(part: list[dict[str, str]]) -> str:
    values = [f"{100 * float(row['coverage']):.1f}" for row in sorted(part, key=lambda row: float(row["truth"]))]
    return " ".join(values) if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("closed", "boot", "table"))
    parser.add_argument("--sims", type=int)
    parser.add_argument("--size", type=int, choices=SIZES, help="cells of so many images alone")
    given = parser.parse_args()
    if given.what == "table":
        print(vouched(), table(), sep="\n\n")
    else:
        run(given.what, given.sims or {"closed": 2000, "boot": 400}[given.what], given.size)


if __name__ == "__main__":
    main()
