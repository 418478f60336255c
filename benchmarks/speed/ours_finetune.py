"""Ours through the public workflow, and the bare step in the same process between the epochs.

The data set is imported already (`--images` is its folder), the experiment is a recipe.json (`--recipe`).
"""

import csv
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from asked import Asked, answer, asked
from bare import rate, ready, training_step

import dermkit as dk
from dermkit import __version__
from dermkit.files import read_json
from dermkit.models.net import build_net
from dermkit.models.weights import resolve_weights
from dermkit.recipes.formats import RECIPE_FORMAT
from dermkit.recipes.schema import Recipe, load_recipe

MOST = 32
"""Bare steps between two epochs at most."""


class Between:
    """Listens to a training: the times of its steps, and the bare step's turn after every epoch."""

    def __init__(self, given: Asked, recipe: Recipe, classes: int, n: int) -> None:
        self.given, self.recipe, self.n, self.classes = given, recipe, n, classes
        self.times: list[list[tuple[float, float]]] = []
        self.bare: list[float] = []
        self._net = build_net(recipe.model, classes, weights=resolve_weights(recipe.model, given.weights), seed=0)
        self._net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._step: Any = None
        self._batches = ready(given, min(n, MOST * given.batch))

    def step(self, what: str, done: int, total: int) -> None:
        if what != "train":
            return
        share = done / total
        if not self.times or share <= self.times[-1][-1][1]:
            self.times.append([])
        self.times[-1].append((time.perf_counter(), share))

    def say(self, line: str) -> None:
        print(line, flush=True)
        if line.startswith("epoch "):
            self.turn()

    def turn(self) -> None:
        """Measure the bare step once, as the run computes: same net, optimizer, batch, precision and layout."""
        if self._step is None:
            low = self.precision() == "bfloat16"
            context = (lambda: torch.autocast("cpu", dtype=torch.bfloat16)) if low else nullcontext
            self._step = training_step(self._net, context, self.classes)
        self.bare.append(rate(self._step, self._batches))

    def precision(self) -> str:
        """Return what the run says that it computes in: `fastest` is resolved there."""
        value: str = run_recipe(self.given.out).get("compute", {}).get("precision", "float32")
        return value

    def steady(self) -> list[float]:
        """Return images per second of each epoch, from the end of its first step to the end of its last."""
        pairs = [(times[0], times[-1]) for times in self.times if len(times) > 1]
        return [self.n * (end - start) / (last - first) for (first, start), (last, end) in pairs]


def run_recipe(out: Path) -> dict[str, Any]:
    found = sorted(out.rglob("recipe.json"))
    return read_json(found[-1], format=RECIPE_FORMAT) if found else {}


def n_train(out: Path, dataset: dk.Dataset, recipe: Recipe) -> int:
    made = dk.split(dataset, recipe.split, name=f"counted-{out.name}")
    return int((made.frame["split"] == "train").sum())


def main() -> None:
    given = asked()
    if given.recipe is None:
        raise SystemExit("--recipe is missing")
    recipe, dataset = load_recipe(given.recipe), dk.load_dataset(given.images)
    n = n_train(given.out, dataset, recipe)
    between = Between(given, recipe, len(dataset.classes), n)
    watch = dk.Progress(say=between.say, step=between.step)
    where = dk.RunSettings(out=given.out / "runs", device="cpu", weights=given.weights)
    folder = dk.train(recipe, dataset, settings=where, progress=watch)
    with (folder / "log.csv").open(newline="") as stream:
        log = list(csv.DictReader(stream))
    if not between.bare:
        between.turn()
    seconds = [float(row["seconds"]) for row in log]
    late = seconds[1:] or seconds
    steady, bare = between.steady(), between.bare
    pairs = list(zip(steady, bare, strict=False))
    answer(
        inner_seconds=statistics.median(late),
        images_per_second=n / statistics.median(late),
        steady_images_per_second=statistics.median(steady[1:] or steady) if steady else None,
        bare_images_per_second=statistics.median(bare[1:] or bare),
        of_bare=statistics.median(ours / own for ours, own in pairs[1:] or pairs) if pairs else None,
        epochs_images_per_second=[round(n / value, 2) for value in seconds],
        precision=between.precision(),
        n=n,
        train_loss=float(log[-1]["train_loss"]),
        val_loss=float(log[-1]["val_loss"]),
        versions=f"dermkit {__version__} torch {torch.__version__}",
    )


if __name__ == "__main__":
    main()
