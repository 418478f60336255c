"""How often tests of two recipes by several trainings find a difference that is not there; rows in repeats.csv.

    python benchmarks/repeats.py seeds [--sims 2000]     trainings that differ in the seed, on the same images
    python benchmarks/repeats.py ranks [--sims 400]      the same through `compare`'s own code, for figures of order
    python benchmarks/repeats.py folds [--sims 2000]     five folds: recipes that are really trained
    python benchmarks/repeats.py table

seeds: an image's difficulty is shared by all (half of the variance), by the trainings of a recipe (0.2) and by one
training alone (0.3); a training's own accuracy strays by `seed_sd`. At a gap of 0 both recipes are equally good over
all trainings and all images, else the second one's accuracy is lower by it. folds: nearest means of two classes, one
recipe sees one half of equally good features and the other the other half, so that neither is better.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import norm, t

from dermkit.comparison import variance as comparison_variance
from dermkit.comparison.repeated import resample_run, training_differences
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats import paired_tests
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.intervals import resample_weights, wilson_interval
from scale import add_rows, commit, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "repeats.csv"
HEADER = ("commit", "job", "n", "trainings", "seed_sd", "gap", "test", "sims", "found", "rate", "low", "high")
SIZES = (118, 300, 1000)
TRAININGS = ("3/3", "6/6", "10/10", "6/1")
SEED_SD = (0.0, 0.01, 0.03)
GAPS = (0.0, 0.05)
ACCURACY = 0.8
SHARED, OF_RECIPE = 0.5, 0.2
ALPHA = 0.05
BOOT = 200
TWO_WAY_SIMS = 400
P = dict[str, list[float]]


def latent(n: int, counts: tuple[int, int], seed_sd: float, gap: float, of: np.random.Generator) -> list[Floats]:
    """Return two recipes' (S, n) scores; an image is right where its score is above 0."""
    spread = seed_sd / float(norm.pdf(norm.ppf(ACCURACY)))
    shared, made = math.sqrt(SHARED) * of.normal(0, 1, n), []
    for count, accuracy in zip(counts, (ACCURACY, ACCURACY - gap), strict=True):
        middle = float(norm.ppf(accuracy)) * math.sqrt(1 + spread**2)
        own = shared + math.sqrt(OF_RECIPE) * of.normal(0, 1, n)
        alone = math.sqrt(1 - SHARED - OF_RECIPE) * of.normal(0, 1, (count, n))
        made.append(middle + own + alone + of.normal(0, spread, (count, 1)))
    return made


def seeds(sims: int) -> None:
    for n, trained, seed_sd, gap in itertools.product(SIZES, TRAININGS, SEED_SD, GAPS):
        if there("seeds", n, trained, seed_sd, gap):
            continue
        one, other = (int(count) for count in trained.split("/"))
        generator, p = np.random.default_rng(7), P()
        for number in range(sims):
            first, second = ((made > 0).astype(float) for made in latent(n, (one, other), seed_sd, gap, generator))
            collect(p, naive(first, second))
            collect(p, ours(first, second, doubled=False))
            if min(one, other) > 1:
                collect(p, ours(first, second, doubled=True))
                if number < TWO_WAY_SIMS:
                    collect(p, two_way(first, second, generator))
        write("seeds", n, trained, seed_sd, gap, p)


def ours(first: Floats, second: Floats, *, doubled: bool) -> dict[str, float]:
    """Test with the variance of a mean over images in closed form, for speed. doubled: seeds as they stand."""
    n = first.shape[1]
    sides = []
    for right in (first, second):
        if len(right) < 2:
            sides.append(comparison_variance.VarianceComponents((float(right.mean()),), None, None, 0.0))
            continue
        between = float(right.mean(axis=1).std(ddof=1))
        seed = between if doubled else paired_tests.two_way_spread(right).sd_seed
        sides.append(
            comparison_variance.VarianceComponents(tuple(right.mean(axis=1).tolist()), between, seed, 0.0)
        )
    gap = first.mean(axis=0) - second.mean(axis=0)
    # Two draws at plus and minus one standard error: their variance is that of the mean over images.
    error = float(gap.std(ddof=1)) / math.sqrt(n) * math.sqrt((n - 1) / n)
    drawn = np.array([[error, -error]]), np.array([[0.0, 0.0]])
    found = comparison_variance.recipe_difference((sides[0], drawn[0]), (sides[1], drawn[1]), n_groups=n)
    name = "images and seeds, each in full" if doubled else "images and seeds apart (dermkit)"
    return {name: 1.0 if found is None or found.p is None else found.p}


def naive(first: Floats, second: Floats) -> dict[str, float]:
    """Return p of the tests that mind one source alone."""
    p = {"McNemar, first seeds": paired_tests.mcnemar(first[0] > 0, second[0] > 0).p}
    gap = first.mean(axis=0) - second.mean(axis=0)
    p["images alone (means over seeds)"] = of_t(float(gap.mean()), float(gap.var(ddof=1)) / len(gap), len(gap) - 1)
    if len(first) == len(second):
        each = first.mean(axis=1) - second.mean(axis=1)
        p["t over seeds"] = of_t(float(each.mean()), float(each.var(ddof=1)) / len(each), len(each) - 1)
    return p


def two_way(first: Floats, second: Floats, generator: np.random.Generator) -> dict[str, float]:
    """Draw trainings and images with replacement."""
    n, gaps = first.shape[1], []
    for weights in resample_weights(np.arange(n), seed=int(generator.integers(2**31)), resamples=BOOT):
        values = []
        for right in (first, second):
            of_run = weights @ right.T / n
            pick = generator.integers(0, len(right), of_run.shape)
            values.append(np.take_along_axis(of_run, pick, axis=1).mean(axis=1))
        gaps.append(values[0] - values[1])
    drawn = np.concatenate(gaps)
    below = float((drawn < 0).sum() + 0.5 * (drawn == 0).sum())
    return {"bootstrap of seeds and images": min(1.0, 2 * (min(below, BOOT - below) + 1) / (BOOT + 1))}


def of_t(value: float, variance: float, df: float) -> float:
    if variance <= 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * t.sf(abs(value) / math.sqrt(variance), df))


def ranks(sims: int) -> None:
    """Ask the code of `compare` itself, for figures that are no mean over images."""
    for n, trained, seed_sd in itertools.product((118, 300), ("3/3", "6/6"), (0.0, 0.03)):
        if there("ranks", n, trained, seed_sd, 0.0):
            continue
        one, other = (int(count) for count in trained.split("/"))
        generator, p = np.random.default_rng(11), P()
        for number in range(sims):
            true = (generator.random(n) < 0.4).astype(np.int64)
            sides = latent(n, (one, other), seed_sd, 0.0, generator)
            made = [
                [resample_run(as_scored(row, true), seed=number, resamples=BOOT) for row in side] for side in sides
            ]
            found = training_differences(*made)
            collect(p, {f"dermkit: {item.metric}": item.p for item in found if item.p is not None})
        write("ranks", n, trained, seed_sd, 0.0, p)


def as_scored(score: Floats, true: Ints) -> ScoredSet:
    """Return two classes: above 0 the score speaks for the true one."""
    odds = np.where(true == 1, score, -score)
    p = 1 / (1 + np.exp(-2 * odds))
    return ScoredSet(
        ["benign", "malignant"], np.array([False, True]), true, (odds > 0).astype(np.int64),
        np.column_stack([1 - p, p]), np.arange(len(true)),
    )  # fmt: skip


def folds(sims: int, k: int = 5, features: int = 8) -> None:
    """Train on overlapping sides; a fold's difference is one number, and the five of them are not independent."""
    for n in SIZES:
        if there("folds", n, str(k), 0.0, 0.0):
            continue
        generator, p = np.random.default_rng(13), P()
        for _ in range(sims):
            true = generator.integers(0, 2, n)
            seen = generator.normal(0, 1, (n, 2 * features)) + 0.6 * true[:, None] / math.sqrt(features) * 2
            fold = generator.permutation(n) % k
            gaps = []
            for test in (fold == number for number in range(k)):
                right = [
                    nearest(half[~test], true[~test], half[test]) == true[test] for half in np.split(seen, 2, 1)
                ]
                gaps.append(float(right[0].mean() - right[1].mean()))
            plain = of_t(float(np.mean(gaps)), float(np.var(gaps, ddof=1)) / k, k - 1)
            found = paired_tests.corrected_resampled_t(gaps, n_train=n - n // k, n_test=n // k)
            collect(p, {"t over folds": plain, "corrected resampled t (dermkit)": found.p})
        write("folds", n, str(k), 0.0, 0.0, p)


def nearest(seen: Floats, true: Ints, new: Floats) -> Ints:
    """Return the class whose mean is nearer."""
    far = [((new - seen[true == label].mean(axis=0)) ** 2).sum(axis=1) for label in (0, 1)]
    return np.asarray(far[1] < far[0], dtype=np.int64)


# Rows -------------------------------------------------------------------------------------------------------------


def there(job: str, n: int, trained: str, seed_sd: float, gap: float) -> bool:
    key = (job, str(n), trained, str(seed_sd), str(gap))
    return any(tuple(row[name] for name in HEADER[1:6]) == key for row in read_rows(ROWS))


def collect(into: P, found: dict[str, float]) -> None:
    for name, value in found.items():
        into.setdefault(name, []).append(value)


def write(job: str, n: int, trained: str, seed_sd: float, gap: float, p: P) -> None:
    add_rows(ROWS, HEADER, list(_rows(job, n, trained, seed_sd, gap, p)))
    print(
        job,
        n,
        trained,
        seed_sd,
        gap,
        {name: round(float(np.mean(np.array(v) <= ALPHA)), 3) for name, v in p.items()},
        flush=True,
    )


def _rows(job: str, n: int, trained: str, seed_sd: float, gap: float, p: P) -> Iterator[tuple[object, ...]]:
    for test, values in p.items():
        hits = sum(value <= ALPHA for value in values)
        low, high = wilson_interval(hits, len(values))
        yield (commit(), job, n, trained, seed_sd, gap, test, len(values), hits, round(hits / len(values), 4),
               round(low, 4), round(high, 4))  # fmt: skip


def table() -> str:
    """Return rates in percent as Markdown: false differences of each test, a column per size, trainings and seed SD."""
    found, lines = read_rows(ROWS), []
    for job, gap in dict.fromkeys((row["job"], row["gap"]) for row in found):
        part = [row for row in found if (row["job"], row["gap"]) == (job, gap)]
        cells = list(dict.fromkeys((row["trainings"], row["seed_sd"], row["n"]) for row in part))
        for trained, seed_sd in dict.fromkeys(cell[:2] for cell in cells):
            sizes = [cell[2] for cell in cells if cell[:2] == (trained, seed_sd)]
            lines += ["", f"{job}, gap {gap}, trainings {trained}, seed SD {seed_sd}", ""]
            lines += ["| test | " + " | ".join(f"n {n}" for n in sizes) + " |", "|---|" + "---|" * len(sizes)]
            for test in dict.fromkeys(row["test"] for row in part):
                rates = {
                    row["n"]: f"{100 * float(row['rate']):.1f}"
                    for row in part
                    if (row["test"], row["trainings"], row["seed_sd"]) == (test, trained, seed_sd)
                }
                if rates:
                    lines.append(f"| {test} | " + " | ".join(rates.get(n, "") for n in sizes) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seeds", "ranks", "folds", "table"))
    parser.add_argument("--sims", type=int, default=0, help="0: the number named above")
    given = parser.parse_args()
    if given.what == "table":
        print(table())
    elif given.what == "ranks":
        ranks(given.sims or 400)
    elif given.what == "folds":
        folds(given.sims or 2000)
    else:
        seeds(given.sims or 2000)


if __name__ == "__main__":
    main()
