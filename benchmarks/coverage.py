"""How often a 95 % interval holds the truth, in simulation; appends rows to benchmarks/coverage.csv; stop and go on.

    python benchmarks/coverage.py run [--sims 2000] [--boot 400] [--only CELL]
    python benchmarks/coverage.py table

A cell is n, prevalence, truth, and how images hang together. Scores are normal: the threshold lies half way between
the classes, so that sensitivity, specificity, accuracy and balanced accuracy all have the same known truth; AUROC has
cells of its own, where the classes lie as far apart as its truth wants. In grouped cells a lesion has one to five
images, half of whose spread is the lesion's. "as if alone" takes these images for independent: what most papers do.

The figures with closed intervals are simulated `--sims` times, those with bootstrap intervals `--boot` times, each
against its value on two million images.
"""

import argparse
import itertools
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from dermkit.metrics.counts import Floats, Ints
from dermkit.metrics.intervals import wilson
from dermkit.metrics.scored import Scored
from dermkit.metrics.summary import summarise
from scale import add_rows, commit, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "coverage.csv"
HEADER = (
    "commit", "python", "n", "prevalence", "truth", "images", "figure", "true_value", "sims", "held", "coverage",
    "low", "high", "width", "undefined", "marked", "positives", "method",
)  # fmt: skip
SIZES = (60, 120, 1000)
PREVALENCES = (0.1, 0.3, 0.5)
TRUTHS = (0.6, 0.7, 0.8, 0.9, 0.95)
IMAGES = ("alone", "grouped", "grouped, as if alone")
CLOSED = ("accuracy", "sensitivity", "specificity", "balanced_accuracy", "ppv", "npv")
BOOTSTRAPPED = (
    "f1", "mcc", "kappa", "f1_macro", "average_precision", "loss", "brier", "ece", "pauc_above_tpr80", "auc_sens_80",
    "sensitivity_at_specificity_90", "specificity_at_sensitivity_90", "calibration_slope", "calibration_intercept",
    "net_benefit_10",
)  # fmt: skip
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
    auroc: bool

    @property
    def apart(self) -> float:
        """Distance of the classes' means in standard deviations."""
        return (math.sqrt(2) if self.auroc else 2.0) * float(norm.ppf(self.truth))


def cells() -> Iterator[Cell]:
    for auroc, n, prevalence, truth, images in itertools.product(
        (False, True), SIZES, PREVALENCES, TRUTHS, IMAGES
    ):
        yield Cell(n, prevalence, truth, images, auroc)


def draw(cell: Cell, generator: np.random.Generator) -> Scored:
    """Draw a test set: labels by lesion, log odds of the two-class posterior as scores."""
    grouped = cell.images != "alone"
    lesions = generator.integers(1, MOST + 1, cell.n) if grouped else np.ones(cell.n, dtype=np.int64)
    unit = np.repeat(np.arange(cell.n), lesions)[: cell.n]
    ill = (generator.random(cell.n) < cell.prevalence)[unit]
    own, shared = generator.normal(0, 1, cell.n), generator.normal(0, 1, cell.n)[unit]
    spread = math.sqrt(ALIKE) * shared + math.sqrt(1 - ALIKE) * own if grouped else own
    odds = cell.apart * (spread + cell.apart * (ill - 0.5))
    groups = unit if cell.images == "grouped" else np.arange(cell.n)
    return scored(ill.astype(np.int64), odds, groups)


def scored(true: Ints, odds: Floats, groups: Ints) -> Scored:
    p = 1 / (1 + np.exp(-odds))
    return Scored(
        ["benign", "malignant"], np.array([False, True]), true, (odds > 0).astype(np.int64),
        np.column_stack([1 - p, p]), np.unique(groups, return_inverse=True)[1].astype(np.int64),
    )  # fmt: skip


def truths(cell: Cell) -> dict[str, float]:
    """Return the value of every figure on very many independent images of the same kind."""
    many = Cell(POPULATION, cell.prevalence, cell.truth, "alone", cell.auroc)
    body = summarise(draw(many, np.random.default_rng(99)), seed=0, resamples=0)
    found = {name: item["value"] for name, item in body["metrics"].items()}
    if cell.auroc:
        return found | {"auroc": cell.truth}
    return found | dict.fromkeys(("accuracy", "sensitivity", "specificity", "balanced_accuracy"), cell.truth)


def simulate(cell: Cell, figures: tuple[str, ...], sims: int, *, resamples: int) -> Iterator[tuple[object, ...]]:
    """Yield a row per figure."""
    true, generator = truths(cell), np.random.default_rng(7)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in figures}
    positives = []
    for number in range(sims):
        drawn = draw(cell, generator)
        positives.append(len(set(drawn.groups[drawn.is_malignant].tolist())))
        metrics = summarise(drawn, seed=number, resamples=resamples)["metrics"]
        for name in figures:
            seen[name].append(metrics[name])
    for name in figures:
        having = [item for item in seen[name] if item["ci95"] is not None]
        if not having or true[name] is None:
            continue
        held = sum(item["ci95"][0] - 1e-12 <= true[name] <= item["ci95"][1] + 1e-12 for item in having)
        low, high = wilson(held, len(having))
        width = float(np.mean([item["ci95"][1] - item["ci95"][0] for item in having]))
        marked = sum("unreliable" in item.get("reason", "") for item in having) / len(having)
        yield (
            commit(), platform.python_version(), cell.n, cell.prevalence, cell.truth, cell.images, name,
            round(true[name], 5), len(having), held, round(held / len(having), 4), round(low, 4), round(high, 4),
            round(width, 4), sims - len(having), round(marked, 4), float(np.median(positives)), having[0]["method"],
        )  # fmt: skip


def run(sims: int, boot: int, only: int | None) -> None:
    there = {(r["n"], r["prevalence"], r["truth"], r["images"], r["figure"] == "auroc") for r in read_rows(ROWS)}
    for number, cell in enumerate(cells()):
        key = (str(cell.n), str(cell.prevalence), str(cell.truth), cell.images, cell.auroc)
        if key in there or (only is not None and number != only):
            continue
        made = list(simulate(cell, ("auroc",) if cell.auroc else CLOSED, sims, resamples=0))
        if not cell.auroc and cell.images != "grouped, as if alone" and boot:
            made += simulate(cell, BOOTSTRAPPED, boot, resamples=1000)
        add_rows(ROWS, HEADER, made)
        print(number, *key, " ".join(f"{row[6]} {row[10]}" for row in made), flush=True)


def table() -> str:
    """Return the map as Markdown: a line per figure, size and kind of images; coverage over prevalence and truth."""
    found = read_rows(ROWS)
    lines = [
        "| figure | images | n | " + " | ".join(f"{p:.0%} malignant" for p in PREVALENCES) + " |",
        "|" + "---|" * 6,
    ]
    for name in dict.fromkeys(row["figure"] for row in found):
        for images, n in itertools.product(IMAGES, SIZES):
            part = [r for r in found if (r["figure"], r["images"], r["n"]) == (name, images, str(n))]
            if part:
                columns = [_spread([r for r in part if r["prevalence"] == str(p)]) for p in PREVALENCES]
                lines.append(f"| {name} | {images} | {n} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _spread(part: list[dict[str, str]]) -> str:
    values = [f"{100 * float(row['coverage']):.1f}" for row in sorted(part, key=lambda row: float(row["truth"]))]
    return " ".join(values) if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--sims", type=int, default=2000)
    parser.add_argument("--boot", type=int, default=400)
    parser.add_argument("--only", type=int, help="the cell with this number alone")
    given = parser.parse_args()
    if given.what == "table":
        print(table())
        return
    run(given.sims, given.boot, given.only)


if __name__ == "__main__":
    main()
