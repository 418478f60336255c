"""How often the paired tests find a difference that is not there, and one that is; rows in benchmarks/paired.csv.

    python benchmarks/paired.py run [--sims 5000]
    python benchmarks/paired.py needed [--sims 2000]
    python benchmarks/paired.py table

Two models score the same images: their log odds have the same spread and go together by 0.3 or 0.8. At a gap of 0 both
are equally good, else the second one's accuracy is lower by it. Half of the spread of grouped images, three a lesion,
is the lesion's; "as if alone" is what McNemar's test would say of them, and is not used. Sign flips, and the bootstrap
with 500 resamples, are tried `--sims` times at a gap of 0 (a tenth as often for what needs an order of scores, and for
power). `needed` asks what the verdict asks, how many images would show a difference, draws test sets of that size and
counts how often it is found there.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import norm

from dermkit.metrics import delong, paired, power
from dermkit.metrics.counts import Floats
from dermkit.metrics.difference import bootstrap_p, exchanged_p, linear_p
from dermkit.metrics.figures import Figures, Plan
from dermkit.metrics.intervals import wilson
from dermkit.metrics.resampled import Resampled
from dermkit.metrics.scored import Scored
from scale import add_rows, commit, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "paired.csv"
HEADER = ("commit", "job", "n", "together", "images", "accuracy", "gap", "test", "sims", "found", "rate", "low", "high",
          "discordant")  # fmt: skip
SIZES = (118, 300, 1000)
TOGETHER = (0.3, 0.8)
GAPS = (0.0, 0.02, 0.05, 0.1)
ACCURACY = 0.8
IMAGES = ("alone", "grouped")
EXCHANGED = ("accuracy", "sensitivity", "balanced_accuracy", "f1_macro", "mcc_multiclass", "loss", "brier")
RANKED = ("average_precision",)
RESAMPLES = 500
ALPHA = 0.05


def draw(
    n: int, together: float, gap: float, images: str, generator: np.random.Generator
) -> tuple[Scored, Scored]:
    """Draw a test set of two classes and two models. gap: by how much the second one's accuracy is lower."""
    per = 3 if images == "grouped" else 1
    unit = np.arange(n) // per
    true = (generator.random(n) < 0.4)[unit].astype(np.int64)

    def noise() -> Floats:
        own = generator.normal(0, 1, n)
        return own if per == 1 else math.sqrt(0.5) * own + math.sqrt(0.5) * generator.normal(0, 1, n)[unit]

    shared, made = noise(), []
    for accuracy in (ACCURACY, ACCURACY - gap):
        odds = float(norm.ppf(accuracy)) * (2 * true - 1) + math.sqrt(together) * shared
        odds = 2 * (odds + math.sqrt(1 - together) * noise())
        p = 1 / (1 + np.exp(-odds))
        made.append(Scored(["benign", "malignant"], np.array([False, True]), true, (odds > 0).astype(np.int64),
                           np.column_stack([1 - p, p]), unit.astype(np.int64)))  # fmt: skip
    return made[0], made[1]


def run(sims: int) -> None:
    there = {(row["job"], row["n"], row["together"], row["images"], row["gap"]) for row in read_rows(ROWS)}
    for gap, n, together, images in itertools.product(GAPS, SIZES, TOGETHER, IMAGES):
        key = ("tests", str(n), str(together), images, str(gap))
        if key not in there:
            add_rows(ROWS, HEADER, list(tests(n, together, gap, images, sims)))
            print(*key, flush=True)


def tests(n: int, together: float, gap: float, images: str, sims: int) -> Iterator[tuple[object, ...]]:
    generator = np.random.default_rng(3)
    mid = "mid-p" if images == "alone" else "mid-p, as if alone"
    p: dict[str, list[float]] = {mid: [], "DeLong": []}
    discordant = []
    for number in range(sims):
        first, second = draw(n, together, gap, images, generator)
        found = paired.mcnemar(first.predicted == first.true, second.predicted == second.true)
        discordant.append(found.first + found.second)
        p[mid].append(found.p)
        scores = np.stack([first.p_malignant, second.p_malignant])
        p["DeLong"].append(delong.difference(delong.areas(scores, first.is_malignant, first.groups), 0, 1)[2])
        if gap == 0 or number < sims // 10:
            _exchanged(first, second, number, EXCHANGED, p)
        if number < sims // 10:
            _exchanged(first, second, number, RANKED, p)
    for test, values in p.items():
        hits = sum(value <= ALPHA for value in values)
        low, high = wilson(hits, len(values))
        yield (commit(), "tests", n, together, images, ACCURACY, gap, test, len(values), hits,
               round(hits / len(values), 4), round(low, 4), round(high, 4), float(np.mean(discordant)))  # fmt: skip


def _exchanged(
    first: Scored, second: Scored, seed: int, figures: Sequence[str], p: dict[str, list[float]]
) -> None:
    """Add what sign flips and the paired bootstrap say, as `difference.differences` makes them."""
    ranked = figures == RANKED
    plans = Plan(first, ranked=ranked), Plan(second, ranked=ranked)

    def gap(parts: Sequence[Figures]) -> dict[str, Floats]:
        one, other = (_named(part, ranked=ranked) for part in parts)
        return {name: one[name] - other[name] for name in figures}

    drawn = Resampled(
        first.units, figures=lambda weights: gap([plan.resampled(weights) for plan in plans]),
        without_each=lambda rows: gap([plan.without_each(rows) for plan in plans]), name="paired", seed=seed,
        resamples=RESAMPLES,
    )  # fmt: skip
    found = exchanged_p(gap([plan.point for plan in plans]), drawn.left_out, seed=seed)
    found |= {} if ranked else linear_p(first, second, seed=seed)
    for name in figures:
        samples = drawn.samples[name]
        own = bootstrap_p(samples[np.isfinite(samples)])
        p.setdefault(f"sign flips: {name}", []).append(found.get(name, own))
        p.setdefault(f"bootstrap: {name}", []).append(own)


def _named(figures: Figures, *, ranked: bool) -> dict[str, Floats]:
    if ranked:
        return {"average_precision": figures.views["average_precision"][:, -1]}
    recall, f1 = figures.views["recall"], figures.views["f1"]
    macro = {"balanced_accuracy": recall[:, :-1].mean(axis=1), "f1_macro": f1[:, :-1].mean(axis=1)}
    return {**figures.overall, **macro, "sensitivity": recall[:, -1]}


def needed(sims: int) -> None:
    """Check what the verdict says of the images that would be needed."""
    there = {(row["job"], row["n"], row["together"], row["gap"]) for row in read_rows(ROWS)}
    for together, gap in itertools.product(TOGETHER, GAPS[1:]):
        share = discordance(together, gap)
        many = power.images_needed(gap, share)
        if many is None or ("needed", str(many), str(together), str(gap)) in there:
            continue
        generator, hits = np.random.default_rng(5), 0
        for _ in range(sims):
            first, second = draw(many, together, gap, "alone", generator)
            hits += paired.mcnemar(first.predicted == first.true, second.predicted == second.true).p <= ALPHA
        low, high = wilson(hits, sims)
        row = (commit(), "needed", many, together, "alone", ACCURACY, gap, "mid-p", sims, hits, round(hits / sims, 4),
               round(low, 4), round(high, 4), round(share * many, 1))  # fmt: skip
        add_rows(ROWS, HEADER, [row])
        print("needed", together, gap, many, hits / sims, flush=True)


def discordance(together: float, gap: float) -> float:
    """Return the share of images on which just one model is right."""
    first, second = draw(1_000_000, together, gap, "alone", np.random.default_rng(1))
    return float(((first.predicted == first.true) != (second.predicted == second.true)).mean())


def table() -> str:
    """Return false differences and power as Markdown, a line per test and size."""
    found = [row for row in read_rows(ROWS) if row["job"] == "tests"]
    lines = ["| test | images | n | " + " | ".join(f"gap {gap:g}" for gap in GAPS) + " |", "|" + "---|" * 7]
    for test, images, n in itertools.product(dict.fromkeys(row["test"] for row in found), IMAGES, SIZES):
        part = [row for row in found if (row["test"], row["images"], row["n"]) == (test, images, str(n))]
        cells = [
            " ".join(f"{100 * float(row['rate']):.1f}" for row in part if float(row["gap"]) == gap) for gap in GAPS
        ]
        lines.append(f"| {test} | {images} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "needed", "table"))
    parser.add_argument("--sims", type=int, default=5000)
    given = parser.parse_args()
    if given.what == "table":
        print(table())
    elif given.what == "needed":
        needed(given.sims)
    else:
        run(given.sims)


if __name__ == "__main__":
    main()
