"""How often a 95 % interval holds the truth where one patient has lesions of both classes; see coverage.md.

    python benchmarks/coverage_mixed.py run --label after [--sims 1000]      appends to benchmarks/coverage_mixed.csv
    python benchmarks/coverage_mixed.py table

The groups are patients. "photographs": 1 to 20 images each, every one malignant or not on its own. "lesions": one to
five lesions, each with one to five images of one label; half of what images share is the patient's, half the lesion's.
What is shared is either difficulty (hard patients, whose images of both classes are wrong more often) or a shift
(patients whose images all look more malignant). Scores are normal and the threshold lies half way between the
classes, so that both rates and balanced accuracy have the same known truth, and PPV and NPV follow from it.
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

from coverage import scored
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.operating_point_metrics import evaluate_threshold
from dermkit.metrics.decisions.operating_points import predictive_values
from dermkit.metrics.stats.intervals import wilson_interval
from scale import add_rows, commit, read_rows

ROWS = Path(__file__).parent / "coverage_mixed.csv"
HEADER = (
    "label", "commit", "python", "n", "prevalence", "truth", "groups", "shared", "figure", "true_value", "sims", "held",
    "coverage", "low", "high", "width", "undefined", "marked", "groups_of_rarer", "method",
)  # fmt: skip
STRUCTURES, SHARED = ("photographs", "lesions"), ("difficulty", "shift")
SETTINGS = ((1000, 0.3, 0.8), (1000, 0.1, 0.8), (400, 0.3, 0.8))
"""Images, share of malignant ones, truth."""
ALIKE = 0.5
"""Share of the variance of scores that images of one patient have in common."""
SHOWN = ("balanced_accuracy", "ppv_5", "npv_5", "sensitivity", "specificity", "accuracy")
MOSTLY = 0.5
FIGURES = ("balanced_accuracy", "ppv_5", "npv_5", "ppv_20", "npv_20", "sensitivity", "specificity", "accuracy")


@dataclass(frozen=True)
class Cell:
    n: int
    prevalence: float
    truth: float
    groups: str
    shared: str


def cells() -> Iterator[Cell]:
    for (n, prevalence, truth), groups, shared in itertools.product(SETTINGS, STRUCTURES, SHARED):
        yield Cell(n, prevalence, truth, groups, shared)


def draw(cell: Cell, generator: np.random.Generator) -> ScoredSet:
    """Draw a test set of n images."""
    n = cell.n
    if cell.groups == "photographs":
        lesion = np.arange(n)
        patient = np.repeat(np.arange(n), generator.integers(1, 21, n))[:n]
        common = math.sqrt(ALIKE) * generator.normal(size=n)[patient]
    else:
        lesion = np.repeat(np.arange(n), generator.integers(1, 6, n))[:n]
        patient = np.repeat(np.arange(n), generator.integers(1, 6, n))[lesion]
        common = math.sqrt(ALIKE / 2) * (generator.normal(size=n)[patient] + generator.normal(size=n)[lesion])
    ill = (generator.random(n) < cell.prevalence)[lesion].astype(np.int64)
    noise = common + math.sqrt(1 - ALIKE) * generator.normal(size=n)
    side, apart = 2 * ill - 1, float(norm.ppf(cell.truth))
    odds = side * (apart + noise) if cell.shared == "difficulty" else side * apart + noise
    return scored(ill, 2 * apart * odds, patient)


def estimates(drawn: ScoredSet) -> dict[str, dict[str, Any]]:
    found = dict(evaluate_split(drawn, seed=0, resamples=0, with_ranking=False)["metrics"])
    for item in evaluate_threshold(drawn, 0.5, prevalences=(0.05, 0.2)).per_prevalence:
        percent = round(100 * item.prevalence)
        found |= {f"ppv_{percent}": item.ppv.as_dict(), f"npv_{percent}": item.npv.as_dict()}
    return found


def truths(cell: Cell) -> dict[str, float]:
    known = dict.fromkeys(("balanced_accuracy", "sensitivity", "specificity", "accuracy"), cell.truth)
    for percent in (5, 20):
        ppv, npv = predictive_values(cell.truth, cell.truth, percent / 100)
        known |= {f"ppv_{percent}": ppv or 0.0, f"npv_{percent}": npv or 0.0}
    return known


def simulate(cell: Cell, sims: int, label: str, tree: str) -> Iterator[tuple[object, ...]]:
    """Yield a row per figure."""
    generator, true = np.random.default_rng(11), truths(cell)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in FIGURES}
    rarer = []
    for _ in range(sims):
        drawn = draw(cell, generator)
        rarer.append(min(len(np.unique(drawn.groups[drawn.y_true == k])) for k in (0, 1)))
        found = estimates(drawn)
        for name in FIGURES:
            seen[name].append(found[name])
    for name in FIGURES:
        having = [item for item in seen[name] if item["ci95"] is not None]
        held = sum(item["ci95"][0] <= true[name] <= item["ci95"][1] for item in having)
        low, high = wilson_interval(held, len(having))
        width = float(np.mean([item["ci95"][1] - item["ci95"][0] for item in having]))
        marked = sum("unreliable" in item.get("reason", "") for item in having) / len(having)
        yield (
            label, tree, platform.python_version(), cell.n, cell.prevalence, cell.truth, cell.groups, cell.shared,
            name, round(true[name], 5), len(having), held, round(held / len(having), 4), round(low, 4),
            round(high, 4), round(width, 4), sims - len(having), round(marked, 4), float(np.median(rarer)),
            having[0]["method"],
        )  # fmt: skip


def run(label: str, sims: int, tree: str) -> None:
    there = {(row["label"], row["n"], row["prevalence"], row["groups"], row["shared"]) for row in read_rows(ROWS)}
    for cell in cells():
        key = (label, str(cell.n), str(cell.prevalence), cell.groups, cell.shared)
        if key not in there:
            made = list(simulate(cell, sims, label, tree))
            add_rows(ROWS, HEADER, made)
            print(*key, " ".join(f"{row[8]} {row[12]}" for row in made), flush=True)


def table() -> str:
    """Return the map as Markdown: coverage in percent, of each label; a star where most intervals are marked."""
    found = read_rows(ROWS)
    labels = list(dict.fromkeys(row["label"] for row in found))
    lines = [
        f"| a patient's | shared | n | malignant | patients with the rarer class | {' | '.join(SHOWN)} |",
        "|" + "---|" * (5 + len(SHOWN)),
    ]
    key = ("groups", "shared", "n", "prevalence")
    for cell in dict.fromkeys(tuple(row[name] for name in key) for row in found):
        part = {(row["figure"], row["label"]): row for row in found if tuple(row[name] for name in key) == cell}
        texts = [
            ", ".join(_covered(part[figure, label]) for label in labels if (figure, label) in part)
            for figure in SHOWN
        ]
        rarer = part[SHOWN[0], labels[-1]]["groups_of_rarer"]
        lines.append(f"| {' | '.join(cell)} | {rarer} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _covered(row: dict[str, str]) -> str:
    return f"{100 * float(row['coverage']):.1f}{'*' if float(row['marked']) > MOSTLY else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--label", default="after")
    parser.add_argument("--sims", type=int, default=1000)
    parser.add_argument("--commit", default=commit(), help="of the package that is imported, where it is another")
    given = parser.parse_args()
    if given.what == "table":
        print(table())
    else:
        run(given.label, given.sims, given.commit)


if __name__ == "__main__":
    main()
