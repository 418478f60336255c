"""Our training step against that of timm's train.py: the same net, batch, optimizer and data in memory, in one process.

    python benchmarks/speed/train_step.py [--rounds 40] [--nets mobilenetv2_100 ...] [--table]

In a round every contender takes one step on the same batch, in turn and each round in another order, so that what else
the machine does hits them alike; ratios are taken within a round. `ours` is the step of `dermkit train`, `ours,
augmented` the same with the light augmentation, `timm` the body of the loop of train.py (commit aa4b585) with
--channels-last on a batch that is ready and normalised, so that it pays for no augmentation at all; `timm, fused` has
--opt-kwargs fused=True too. Rows are added to benchmarks/train_step.csv; a case that is there for this commit and
machine is not measured again. Set OMP_NUM_THREADS to choose the threads.
"""

import argparse
import csv
import datetime
import importlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import commit, machine
from torch import nn

import dermkit as dk
from dermkit.images.preprocess import Preprocessing
from dermkit.models.net import build_net, freeze, set_train_mode
from dermkit.models.weights import import_timm, resolve_weights
from dermkit.recipes.augmentation import NO_AUGMENTATION, PRESETS
from dermkit.recipes.experiments import full_phase
from dermkit.recipes.schema import Recipe
from dermkit.training.distributed.process_group import process_group_of, start_fabric
from dermkit.training.phase_setup import make_batch_source, make_pixel_source, make_train_step
from dermkit.training.state import TrainingHooks, TrainingJob, TrainingState

FILE = Path(__file__).resolve().parents[1] / "train_step.csv"
BATCH, N_IMAGES, N_CLASSES, WARM_UP = 32, 128, 9, 3
NETS: dict[str, tuple[int, dict[str, Any]]] = {
    "mobilenetv2_100": (128, {}),
    "vit_tiny_patch16_224": (160, {"img_size": 160}),
    "resnet50": (128, {}),
}
OPTIMIZERS = ("adamw", "sgd")
REFERENCES = ("timm", "timm, fused")
HEADER = (
    "date", "commit", "machine", "load", "torch", "net", "size", "optimizer", "precision", "who", "rounds", "ms",
    "reference", "ratio", "ratio_low", "ratio_high",
)  # fmt: skip

Step = Callable[[int], None]


def recipe_of(net: str, optimizer: Any, precision: Any, *, is_augmented: bool) -> Recipe:
    size, arguments = NETS[net]
    base = dk.find_recipe("scratch")
    return replace(
        base,
        image=replace(base.image, size=size),
        model=replace(base.model, backbone=net, backbone_args=arguments, weights="none", hidden=(), dropout=0.0),
        phases=(full_phase(1000, lr=1e-3),),
        augment=PRESETS["light"] if is_augmented else NO_AUGMENTATION,
        optim=replace(base.optim, optimizer=optimizer, momentum=0.9, weight_decay=0.01, batch_size=BATCH),
        compute=replace(base.compute, precision=precision, compile=False),
        grow=None,
        mix=None,
    )


def job_of(recipe: Recipe, cache: Path) -> TrainingJob:
    size, rng = recipe.image.size, np.random.default_rng(0)
    return TrainingJob(
        recipe=recipe,
        seed=0,
        pixels=rng.integers(0, 256, (N_IMAGES, size, size, 3), dtype=np.uint8),
        pixel_keys=np.zeros((N_IMAGES, 32), np.uint8),
        labels=np.arange(N_IMAGES) % N_CLASSES,
        image_ids=tuple(f"image-{k}" for k in range(N_IMAGES)),
        train_rows=np.arange(N_IMAGES),
        validation_rows=np.arange(N_IMAGES),
        n_classes=N_CLASSES,
        preprocessing=Preprocessing(
            size=size, resize="squash", interpolation="bilinear", divide_by=255.0,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        ),
        cache_folder=cache,
    )  # fmt: skip


def ours(recipe: Recipe, cache: Path, *, is_augmented: bool) -> Step:
    """Return a step of `dermkit train`; without augmentation the batches are prepared beforehand."""
    net = build_net(recipe.model, N_CLASSES, weights=resolve_weights(recipe.model, None), seed=0)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fabric = start_fabric("cpu")
    state = TrainingState(job_of(recipe, cache), cache, net, fabric, process_group_of(fabric), TrainingHooks())
    (phase,) = recipe.phases
    freeze(net, phase)
    set_train_mode(net, phase)
    train_step, optimizer = make_train_step(
        state, phase, make_batch_source(state, phase, make_pixel_source(state))
    )
    batches = np.split(np.arange(N_IMAGES), N_IMAGES // BATCH)
    ready = [train_step.prepare(rows, epoch=1) for rows in batches]

    def step(number: int) -> None:
        index = number % len(batches)
        micro_batches = train_step.prepare(batches[index], epoch=number) if is_augmented else ready[index]
        train_step.rates.set(optimizer, epoch=1, step=number)
        train_step(number, batches[index], micro_batches, epoch=1)

    return step


def timms(recipe: Recipe, cache: Path, **optimizer_arguments: Any) -> Step:
    """Return the body of train_one_epoch of timm's train.py, with its settings for one process."""
    timm = import_timm()
    create_optimizer = importlib.import_module("timm.optim").create_optimizer_v2
    losses = importlib.import_module("timm.utils").AverageMeter()
    model: nn.Module = timm.create_model(
        recipe.model.backbone, num_classes=N_CLASSES, **recipe.model.backbone_args
    ).to(memory_format=torch.channels_last)
    model.train()
    optimizer = create_optimizer(
        model, opt=recipe.optim.optimizer, lr=1e-3, weight_decay=recipe.optim.weight_decay, momentum=0.9,
        **optimizer_arguments,
    )  # fmt: skip
    loss_of = nn.CrossEntropyLoss()
    is_low = recipe.compute.precision == "bfloat16"
    job = job_of(recipe, cache)
    pixels = torch.from_numpy(job.pixels).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.22)
    batches, targets = torch.split(pixels, BATCH), torch.split(torch.from_numpy(job.labels), BATCH)

    def step(number: int) -> None:
        index = number % len(batches)
        inputs = batches[index].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            loss = loss_of(model(inputs), targets[index])
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), len(inputs))
        optimizer.zero_grad()

    return step


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return each contender's seconds a step, round by round."""
    seconds: dict[str, list[float]] = {who: [] for who in steps}
    names = list(steps)
    for number in range(WARM_UP + rounds):
        for who in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            steps[who](number)
            seconds[who].append(time.perf_counter() - start)
    return {who: values[WARM_UP:] for who, values in seconds.items()}


def measured_rows(case: dict[str, object], seconds: dict[str, list[float]]) -> list[dict[str, object]]:
    """Return a row for each of ours against each of timm's; a ratio above 1 says that ours is faster."""
    result: list[dict[str, object]] = []
    for who, reference in itertools.product(seconds, REFERENCES):
        ratios = sorted(theirs / own for theirs, own in zip(seconds[reference], seconds[who], strict=True))
        tail = len(ratios) // 10
        result.append({
            **case, "who": who, "rounds": len(ratios), "ms": f"{1000 * statistics.median(seconds[who]):.1f}",
            "reference": reference, "ratio": f"{statistics.median(ratios):.3f}",
            "ratio_low": f"{ratios[tail]:.3f}", "ratio_high": f"{ratios[-1 - tail]:.3f}",
        })  # fmt: skip
    return result


def read() -> list[dict[str, str]]:
    if not FILE.exists():
        return []
    with FILE.open(newline="") as stream:
        return list(csv.DictReader(stream))


def append(rows: Sequence[dict[str, object]]) -> None:
    is_new = not FILE.exists()
    with FILE.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, HEADER, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def run(net: str, optimizer: str, precision: str, rounds: int) -> None:
    case: dict[str, object] = {
        "commit": commit(), "machine": machine(), "torch": torch.__version__, "net": net, "size": NETS[net][0],
        "optimizer": optimizer, "precision": precision,
    }  # fmt: skip
    if any(all(row[name] == str(value) for name, value in case.items()) for row in read()):
        return
    load = f"{os.getloadavg()[0]:.1f}"
    with tempfile.TemporaryDirectory() as folder:
        plain, augmented = (recipe_of(net, optimizer, precision, is_augmented=flag) for flag in (False, True))
        steps = {
            "ours": ours(plain, Path(folder), is_augmented=False),
            "timm": timms(plain, Path(folder)),
            "ours, augmented": ours(augmented, Path(folder), is_augmented=True),
            "timm, fused": timms(plain, Path(folder), fused=True),
        }
        seconds = measure(steps, rounds)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    append(measured_rows({"date": today, "load": load, **case}, seconds))


def table() -> str:
    """Return the newest rows of ours, a line a case."""
    newest = {
        (row["net"], row["optimizer"], row["precision"], row["who"], row["reference"]): row
        for row in read()
        if row["who"].startswith("ours")
    }
    lines = ["| net | optimizer | precision | ours | against | ratio (10 to 90 %) | rounds |", "|" + "---|" * 7]
    for row in newest.values():
        ratio = f"{row['ratio']} ({row['ratio_low']} to {row['ratio_high']})"
        cells = [
            f"{row['net']}, {row['size']} px",
            row["optimizer"],
            row["precision"],
            f"{row['who']}: {row['ms']} ms",
        ]
        lines.append("| " + " | ".join([*cells, row["reference"], ratio, row["rounds"]]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument(
        "--nets", nargs="+", default=["mobilenetv2_100", "vit_tiny_patch16_224"], choices=list(NETS)
    )
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--table", action="store_true", help="print the rows that are there")
    given = parser.parse_args()
    if not given.table:
        for net, optimizer, precision in itertools.product(given.nets, given.optimizers, given.precisions):
            run(net, optimizer, precision, given.rounds)
    print(table())


if __name__ == "__main__":
    main()
