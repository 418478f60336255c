"""How often the paired tests find a difference that is not there, and one that is; rows in benchmarks/paired.csv.

    python benchmarks/paired.py tests [--sims 5000]
    python benchmarks/paired.py bootstrap [--sims 5000]
    python benchmarks/paired.py ranked [--sims 5000]
    python benchmarks/paired.py needed [--sims 2000]
    python benchmarks/paired.py table

Two models score the same images: their log odds have the same spread and go together by 0.3 or 0.8. At a gap of 0 both
are equally good, else the second one's accuracy is lower by it. Half of the spread of grouped images, three a lesion,
is the lesion's; "as if alone" is what McNemar's test would say of them, and is not used. What needs an order of scores
is tried a tenth as often, and at a gap of 0 on draws of its own (`ranked`); sign flips a tenth as often where there is
a gap. `bootstrap` is the p that the paired bootstrap, with 500 resamples, would give at a gap of 0, and is not used
either. `needed` asks what the verdict asks, how many images would show a difference, draws test sets of that size and
counts how often it is found there.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import norm

from dermkit.metrics.classification.confusion import macro_mean
from dermkit.metrics.classification.paired import bootstrap_p, linear_p, sign_flip_p
from dermkit.metrics.classification.resampled_metrics import MetricValues, ResampledMetrics
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats import delong, paired_tests, power
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.intervals import resample_weights, wilson_interval
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
KEY = ("job", "n", "together", "images", "gap")
EXCHANGED = ("accuracy", "sensitivity", "balanced_accuracy", "f1_macro", "mcc_multiclass", "loss", "brier")
RANKED = ("average_precision",)
RESAMPLES = 500
ALPHA = 0.05


def draw(
    n: int, together: float, gap: float, images: str, generator: np.random.Generator
) -> tuple[ScoredSet, ScoredSet]:
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
        made.append(ScoredSet(["benign", "malignant"], np.array([False, True]), true, (odds > 0).astype(np.int64),
                           np.column_stack([1 - p, p]), unit.astype(np.int64)))  # fmt: skip
    return made[0], made[1]


def run(job: str, sims: int) -> None:
    there = {tuple(row[name] for name in KEY) for row in read_rows(ROWS)}
    gaps = GAPS if job == "tests" else GAPS[:1]
    for gap, n, together, images in itertools.product(gaps, SIZES, TOGETHER, IMAGES):
        key = (job, str(n), str(together), images, str(gap))
        if key not in there:
            add_rows(ROWS, HEADER, list(rates(job, n, together, gap, images, sims)))
            print(*key, flush=True)


def rates(job: str, n: int, together: float, gap: float, images: str, sims: int) -> Iterator[tuple[object, ...]]:
    # Average precision is dear, and so has draws of its own.
    seed = 8 if job == "ranked" else 3
    generator, p, discordant = np.random.default_rng(seed), dict[str, list[float]](), []
    for number in range(sims):
        first, second = draw(n, together, gap, images, generator)
        found = paired_tests.mcnemar(first.y_pred == first.y_true, second.y_pred == second.y_true)
        discordant.append(found.first_only + found.second_only)
        made = _bootstrapped if job == "bootstrap" else _exchanged
        if job == "tests":
            scores = np.stack([first.p_malignant, second.p_malignant])
            areas = delong.auroc_covariance(scores, first.is_malignant, first.groups)
            _add(p, {"mid-p" if images == "alone" else "mid-p, as if alone": found.p,
                     "DeLong": delong.delong_test(areas, 0, 1)[2]})  # fmt: skip
        if job != "ranked" and (gap == 0 or number < sims // 10):
            _add(p, made(first, second, number, EXCHANGED))
        if job == "ranked" or number < sims // 10:
            _add(p, made(first, second, number, RANKED))
    for test, values in p.items():
        hits = sum(value <= ALPHA for value in values)
        low, high = wilson_interval(hits, len(values))
        yield (commit(), job, n, together, images, ACCURACY, gap, test, len(values), hits,
               round(hits / len(values), 4), round(low, 4), round(high, 4), float(np.mean(discordant)))  # fmt: skip


def _add(p: dict[str, list[float]], found: dict[str, float]) -> None:
    for name, value in found.items():
        p.setdefault(name, []).append(value)


def _plans(
    first: ScoredSet, second: ScoredSet, figures: Sequence[str]
) -> tuple[ResampledMetrics, ResampledMetrics]:
    return ResampledMetrics(first, with_ranking=figures == RANKED), ResampledMetrics(
        second, with_ranking=figures == RANKED
    )


def _gap(parts: Sequence[MetricValues], figures: Sequence[str]) -> dict[str, Floats]:
    one, other = (_named(part, ranked=figures == RANKED) for part in parts)
    return {name: one[name] - other[name] for name in figures}


def _exchanged(first: ScoredSet, second: ScoredSet, seed: int, figures: Sequence[str]) -> dict[str, float]:
    """Return what sign flips say, as `difference.differences` makes them."""
    plans = _plans(first, second, figures)
    without = _gap([plan.leave_one_group_out(np.arange(first.n_groups)) for plan in plans], figures)
    found = sign_flip_p(_gap([plan.point_estimates for plan in plans], figures), without, seed=seed)
    found |= {} if figures == RANKED else linear_p(first, second, seed=seed)
    return {f"sign flips: {name}": found[name] for name in figures if name in found}


def _bootstrapped(first: ScoredSet, second: ScoredSet, seed: int, figures: Sequence[str]) -> dict[str, float]:
    plans = _plans(first, second, figures)
    drawn = resample_weights(np.arange(first.n_groups), seed=seed, resamples=RESAMPLES)
    parts = [_gap([plan.bootstrap(weights) for plan in plans], figures) for weights in drawn]
    samples = {name: np.concatenate([part[name] for part in parts]) for name in figures}
    return {f"bootstrap: {name}": bootstrap_p(values[np.isfinite(values)]) for name, values in samples.items()}


def _named(figures: MetricValues, *, ranked: bool) -> dict[str, Floats]:
    if ranked:
        return {"average_precision": figures.one_vs_rest["average_precision"][:, -1]}
    recall, f1 = figures.one_vs_rest["recall"], figures.one_vs_rest["f1"]
    macro = {"balanced_accuracy": macro_mean(recall[:, :-1]), "f1_macro": macro_mean(f1[:, :-1])}
    return {**figures.multiclass, **macro, "sensitivity": recall[:, -1]}


def needed(sims: int) -> None:
    """Check what the verdict says of the images that would be needed."""
    there = {(row["job"], row["n"], row["together"], row["gap"]) for row in read_rows(ROWS)}
    for together, gap in itertools.product(TOGETHER, GAPS[1:]):
        share = discordance(together, gap)
        many = power.mcnemar_images_needed(gap, share)
        if many is None or ("needed", str(many), str(together), str(gap)) in there:
            continue
        generator, hits = np.random.default_rng(5), 0
        for _ in range(sims):
            first, second = draw(many, together, gap, "alone", generator)
            hits += paired_tests.mcnemar(first.y_pred == first.y_true, second.y_pred == second.y_true).p <= ALPHA
        low, high = wilson_interval(hits, sims)
        row = (commit(), "needed", many, together, "alone", ACCURACY, gap, "mid-p", sims, hits, round(hits / sims, 4),
               round(low, 4), round(high, 4), round(share * many, 1))  # fmt: skip
        add_rows(ROWS, HEADER, [row])
        print("needed", together, gap, many, hits / sims, flush=True)


def discordance(together: float, gap: float) -> float:
    """Return the share of images on which just one model is right."""
    first, second = draw(1_000_000, together, gap, "alone", np.random.default_rng(1))
    return float(((first.y_pred == first.y_true) != (second.y_pred == second.y_true)).mean())


def table() -> str:
    """Return false differences and power as Markdown, a line per test and size."""
    rows = [row for row in read_rows(ROWS) if row["job"] in ("tests", "ranked")]
    own = {_cell(row) for row in rows if row["job"] == "ranked"}
    found = [row for row in rows if row["job"] == "ranked" or _cell(row) not in own]
    lines = ["| test | images | n | " + " | ".join(f"gap {gap:g}" for gap in GAPS) + " |", "|" + "---|" * 7]
    for test, images, n in itertools.product(dict.fromkeys(row["test"] for row in found), IMAGES, SIZES):
        part = [row for row in found if (row["test"], row["images"], row["n"]) == (test, images, str(n))]
        if not part:
            continue
        cells = [
            " ".join(f"{100 * float(row['rate']):.1f}" for row in part if float(row["gap"]) == gap) for gap in GAPS
        ]
        lines.append(f"| {test} | {images} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in (*KEY[1:], "test"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tests", "bootstrap", "ranked", "needed", "table"))
    parser.add_argument("--sims", type=int, default=5000)
    given = parser.parse_args()
    if given.what == "table":
        print(table())
    elif given.what == "needed":
        needed(given.sims)
    else:
        run(given.what, given.sims)


if __name__ == "__main__":
    main()
