"""What measurements need beforehand: parts of the images, recipes of ours, a model; and what a run of ours left."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asked import pictures, side_folder

DERMKIT = (sys.executable, "-m", "dermkit.cli")

SIZES = {"s2": (128, 128), "agree": (128, 128), "finetune": (128, 160), "score": (128, 128)}
"""Pixels of a side for (resnet50, mobilenetv2)."""

RECIPES = {"resnet50": "s2-resnet50", "mobilenetv2": "s2-resnet50-mobilenetv2"}


class NotPrepared(RuntimeError):
    """What a measurement needs beforehand could not be made."""


@dataclass(frozen=True)
class Options:
    """What the command line chose. count: images taken of the set (0 = all); weights: for mobilenetv2 alone."""

    job: str
    images: Path
    work: Path
    envs: Path
    nets: Sequence[str]
    weights: Path | None
    epochs: int
    batch: int
    count: int
    size: int
    only: Sequence[str]
    settings: Sequence[str]


def size_of(options: Options, net: str) -> int:
    return options.size or SIZES[options.job][net == "mobilenetv2"]


def model_for(options: Options, net: str, model: Path) -> Callable[[], None]:
    """Return what trains a model of that net for one epoch on a few images: to be timed, not to be believed."""

    def ready() -> None:
        if (model / "SHA256SUMS").exists():
            return
        work = model.with_name(model.name + "-made")
        shutil.rmtree(work, ignore_errors=True)
        few = work / "few"
        chosen = pictures(options.images)[:60]
        for number, path in enumerate(chosen):
            _link(path, few / ("nevus", "melanoma", "dermatofibroma")[number % 3] / path.name)
        quietly((*DERMKIT, "import", "folder", str(few), "--out", str(work / "data")), codes=(0, 7))
        holdout = {"scheme": "holdout", "validation": 0.2, "test": 0.2}
        file = write_recipe(replace(options, epochs=1, weights=None), net, "float32", split=holdout, mark="model")
        quietly((*DERMKIT, "train", str(file), str(work / "data"), "--out", str(work / "runs")))
        sums = next((work / "runs").rglob("model/SHA256SUMS"))
        shutil.copytree(sums.parent, model)

    return ready


# Files that commands need -----------------------------------------------------------------------------------------


def subset(options: Options) -> Path:
    """Return the set itself, or with a count a smaller one: as many training images, evenly over the sorted names."""
    train = side_folder(options.images, "train")
    if not options.count or train is None:
        return options.images
    files, test = pictures(train), side_folder(options.images, "test")
    root = options.work / f"subset-{options.images.name}-{options.count}"
    sides = {"train": evenly(files, options.count)}
    if test:
        sides["test"] = evenly(pictures(test), options.count * len(pictures(test)) // len(files))
    for side, chosen in sides.items():
        for path in chosen:
            _link(path, root / side / path.parent.name / path.name)
    return root


def evenly(files: Sequence[Path], count: int) -> list[Path]:
    """Return `count` files spread over the sorted names, and the first two of every folder beside."""
    chosen = {files[place * len(files) // count] for place in range(min(count, len(files)))}
    for folder in {path.parent for path in files}:
        chosen.update([path for path in files if path.parent == folder][:2])
    return sorted(chosen)


def flat_subset(options: Options) -> Path:
    """Return the folder to score, or with a count a folder of as many of its images."""
    if not options.count:
        return options.images
    root = options.work / f"flat-{options.images.name}-{options.count}"
    for path in pictures(options.images)[: options.count]:
        _link(path, root / path.name)
    return root


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another device
        shutil.copyfile(source, target)


def write_recipe(
    options: Options,
    net: str,
    precision: str,
    *,
    whole: bool = False,
    normalise: str = "zero_one",
    size: int = 0,
    split: Mapping[str, Any] | None = None,
    mark: str = "",
) -> Path:
    """Write S2's recipe with what a job changes of it; returns the file. whole: all layers trained, augmented."""
    base = RECIPES.get(net, "s1-cnn")
    shown = subprocess.run([*DERMKIT, "recipes", "show", base], capture_output=True, text=True, check=True)
    recipe = json.loads(shown.stdout)
    used = options.weights is not None and net == "mobilenetv2" and not whole
    recipe["name"] = "-".join(filter(None, ("speed", options.job, net, precision, mark)))
    recipe["model"]["weights"] = "imagenet" if used else "none"
    recipe["image"].update(size=size or size_of(options, net), normalise=normalise)
    recipe["compute"]["precision"] = precision
    recipe["optim"]["batch_size"] = options.batch
    phase = recipe["phases"][0]
    phase.update(epochs=options.epochs, patience=0)
    if whole:
        recipe["model"]["hidden"] = []
        recipe["split"]["validation"] = 0.05
        recipe["augment"].update(horizontal_flip=True, vertical_flip=True, rotate=30.0, shift=0.1, zoom=0.1)
        recipe["augment"].update({name: 1.0 for name in ("p_geometric",) if name in recipe["augment"]})
        phase.update(train_backbone="all", head_lr=1e-4, backbone_lr=1e-4, freeze_batch_norm=False)
    recipe["split"].update(split or {})
    path = options.work / "recipes" / f"{recipe['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe, indent=1))
    return path


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def log_of(runs: Path) -> Callable[[], Mapping[str, Any]]:
    """Return what reads the last epoch of a run of ours."""

    def after() -> Mapping[str, Any]:
        folder = max(runs.rglob("log.csv"), key=lambda path: path.stat().st_mtime).parent
        last = table_of(folder / "log.csv")[-1]
        made = json.loads((folder / "recipe.json").read_text())
        return {
            **{name: float(last[name]) for name in ("train_loss", "val_loss", "val_accuracy")},
            "precision": made.get("compute", {}).get("precision", "float32"),
            "test_accuracy": _test_accuracy(folder / "predictions.csv"),
        }

    return after


def _test_accuracy(path: Path) -> float | None:
    rows = [row for row in table_of(path) if row.get("split") == "test"] if path.exists() else []
    if not rows or not {"label", "predicted"} <= set(rows[0]):
        return None
    return sum(row["label"] == row["predicted"] for row in rows) / len(rows)


def quietly(command: Sequence[str], *, codes: Sequence[int] = (0,), env: Mapping[str, str] | None = None) -> None:
    """Run a command that is not measured; ends with what it printed where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    if done.returncode not in codes:
        raise NotPrepared(f"{' '.join(command)}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
