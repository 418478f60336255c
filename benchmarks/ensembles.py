"""Ensembles: what fitted weights lose on few images, and what a model of several nets costs an image.

    python benchmarks/ensembles.py weights [--draws 200]
    python benchmarks/ensembles.py time IMAGES MODEL...

Rows are appended to benchmarks/ensembles.csv; those that are there are skipped, so that it may be stopped at any time.
"""

import argparse
import csv
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import numpy as np

from dermkit.metrics.decisions.mixture_weights import fit_mixture_weights
from dermkit.metrics.stats.arrays import Floats
from dermkit.prediction.load import load_model
from dermkit.prediction.predictor import Predictor

ROWS = Path(__file__).with_suffix(".csv")
HEADER = ("part", "case", "n", "what", "value", "unit")
NOISE: Mapping[str, Callable[[int], Floats]] = {
    "alike": lambda n_models: np.full(n_models, 1.0),
    "mixed": lambda n_models: np.linspace(0.5, 2.0, n_models),
    "one good": lambda n_models: np.append(0.3, np.full(n_models - 1, 2.5)),
}
"""Case -> standard deviation of each model's own noise; signal and common noise have 1.6 and 1."""
N_NEW = 4000


def greedy_weights(p_true: Floats, rounds: int = 50) -> Floats:
    """Return the weights of Caruana's selection with replacement (2004), each round the model that lowers the loss."""
    total, counts = np.zeros(len(p_true)), np.zeros(p_true.shape[1])
    for number in range(1, rounds + 1):
        losses = -np.log((total[:, None] + p_true) / number).mean(axis=0)
        chosen = int(losses.argmin())
        counts[chosen] += 1
        total += p_true[:, chosen]
    return np.asarray(counts / rounds, dtype=np.float64)


METHODS: Mapping[str, Callable[[Floats], Floats]] = {
    "equal": lambda p: np.full(p.shape[1], 1 / p.shape[1]),
    "convex": lambda p: fit_mixture_weights(p, prior=0.0),
    "convex, one image a model for equal ones": fit_mixture_weights,
    "convex, five images a model for equal ones": lambda p: fit_mixture_weights(p, prior=5.0),
    "greedy, 50 rounds": greedy_weights,
    "best single": lambda p: np.eye(p.shape[1])[int(np.log(p).mean(axis=0).argmax())],
}


def draw(rng: np.random.Generator, n: int, noise: Floats) -> Floats:
    """Return the models' probabilities of the true one of five classes, (n, models)."""
    y = rng.integers(0, 5, n)
    signal = rng.normal(size=(n, 5))
    signal[np.arange(n), y] += 1.6
    columns = []
    for amount in noise:
        z = (signal + amount * rng.normal(size=(n, 5))) * 1.6 / (1 + amount**2)
        e = np.exp(z - z.max(axis=1, keepdims=True))
        columns.append(e[np.arange(n), y] / e.sum(axis=1))
    return np.stack(columns, axis=1)


def simulate(draws: int) -> None:
    """Append the mean log loss on new images of each method, above that of the best weights there."""
    for n_models, case, n in product((3, 6), NOISE, (40, 120, 400)):
        name = f"{n_models} models, {case}"
        if is_done("weights", name, n):
            continue
        rng, excess = np.random.default_rng(n), dict.fromkeys(METHODS, 0.0)
        for _ in range(draws):
            noise = NOISE[case](n_models) * np.exp(rng.normal(0, 0.1, n_models))
            seen, new = draw(rng, n, noise), draw(rng, N_NEW, noise)
            least = -np.log(new @ fit_mixture_weights(new, prior=0.0)).mean()
            for method, fit in METHODS.items():
                excess[method] += float(-np.log(new @ fit(seen)).mean() - least) / draws
        append([("weights", name, n, method, f"{value:.5f}", "nats") for method, value in excess.items()])


def measure(images: Path, folders: list[Path]) -> None:
    """Append the time of an image in each model, alternating, and how far batches of 1 and 32 agree."""
    models = {folder: load_model(folder) for folder in folders}
    files = [(path.name, path) for path in sorted(images.rglob("*")) if path.suffix in (".png", ".jpg")][:96]
    for folder, model in models.items():
        name = model.card["recipe"].get("name", folder.name)
        if is_done("parity", name, len(files)):
            continue
        alone, together = (scores(model, files, size) for size in (1, 32))
        n_other = int((alone.argmax(1) != together.argmax(1)).sum())
        append([
            ("parity", name, len(files), "largest difference", f"{np.abs(alone - together).max():.2e}", "probability"),
            ("parity", name, len(files), "other labels", str(n_other), "images"),
            ("parity", name, len(files), "passes", str(sum(model.passes)), "an image"),
        ])  # fmt: skip
    seconds: dict[Path, list[float]] = {folder: [] for folder in folders}
    for _ in range(5):
        for folder, model in models.items():
            start = time.perf_counter()
            scores(model, files, 32)
            seconds[folder].append(time.perf_counter() - start)
    first = min(seconds[folders[0]])
    for folder, model in models.items():
        name, best = model.card["recipe"].get("name", folder.name), min(seconds[folder])
        append([
            ("time", name, len(files), "an image", f"{1000 * best / len(files):.2f}", "ms"),
            ("time", name, len(files), "beside the first model", f"{best / first:.2f}", "times"),
        ])  # fmt: skip


def scores(model: Predictor, files: list[tuple[str, Path]], batch_size: int) -> Floats:
    """Return the probabilities of files, read, decoded and scored, (N, K)."""
    found = [one.probabilities for one in model.score_files(files, batch_size=batch_size)]
    return np.stack([p for p in found if p is not None])


def is_done(part: str, case: str, n: int) -> bool:
    """Return whether the rows of a case are there."""
    if not ROWS.exists():
        return False
    with ROWS.open(newline="", encoding="utf-8") as stream:
        return any((row["part"], row["case"], row["n"]) == (part, case, str(n)) for row in csv.DictReader(stream))


def append(rows: list[tuple[object, ...]]) -> None:
    """Append rows, with the header where the file is new."""
    is_new = not ROWS.exists()
    with ROWS.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([HEADER, *rows] if is_new else rows)
    for row in rows:
        print(*row, sep="  ")


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("weights").add_argument("--draws", type=int, default=200)
    timing = parts.add_parser("time")
    timing.add_argument("images", type=Path)
    timing.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    if options.part == "weights":
        simulate(options.draws)
    else:
        measure(options.images, options.models)


if __name__ == "__main__":
    main()
