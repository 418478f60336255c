"""Our training step against that of timm's train.py: the same net, batch, optimizer and data in memory.

    python benchmarks/speed/train_step.py [--rounds 40] [--nets mobilenetv2_100 ...] [--table]

Each contender is a process of its own, as the way that memory is kept belongs to the process. In a round every one
takes one step on the same batch while the others wait, in turn and each round in another order, so that what else the
machine does hits them alike; ratios are taken within a round, of the time on the clock and of the processor's time.
`ours` is the step of `dermkit train`, `ours, augmented` the same with the light augmentation, `timm` the body of the
loop of train.py (commit aa4b585) with --channels-last on a batch that is ready and normalised, so that it pays for no
augmentation at all; `timm, fused` has --opt-kwargs fused=True too. Rows are added to benchmarks/train_step.csv; a case
that is there for this commit and machine is not measured again. Set OMP_NUM_THREADS to choose the threads.
"""

import argparse
import contextlib
import csv
import datetime
import importlib
import itertools
import os
import statistics
import subprocess
import sys
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
from dermkit.training.memory import kept_memory
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
CONTENDERS = ("ours", "timm", "ours, augmented", "timm, fused")
HEADER = (
    "date", "commit", "machine", "load", "torch", "net", "size", "optimizer", "precision", "who", "rounds", "ms",
    "cpu_ms", "reference", "ratio", "ratio_low", "ratio_high", "cpu_ratio",
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


def contender(who: str, net: str, optimizer: str, precision: str) -> None:
    """Take a step for each number that is read, and answer with its seconds on the clock and of the processor."""
    is_ours, is_augmented = who.startswith("ours"), who == "ours, augmented"
    recipe = recipe_of(net, optimizer, precision, is_augmented=is_augmented)
    memory = kept_memory() if is_ours else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, memory:
        if is_ours:
            step = ours(recipe, Path(folder), is_augmented=is_augmented)
        else:
            step = timms(recipe, Path(folder), **({"fused": True} if who == "timm, fused" else {}))
        for line in sys.stdin:
            start, cpu_start = time.perf_counter(), time.process_time()
            step(int(line))
            print(time.perf_counter() - start, time.process_time() - cpu_start, flush=True)


def measure(net: str, optimizer: str, precision: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return each contender's seconds a step, on the clock and of the processor, round by round."""
    words = [sys.executable, __file__, "--nets", net, "--optimizers", optimizer, "--precisions", precision]
    # Threads that wait do not spin: one that waits for its turn would take the others' cores.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    processes = {
        who: subprocess.Popen(
            [*words, "--contender", who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for who in CONTENDERS
    }
    seconds: dict[str, list[tuple[float, float]]] = {who: [] for who in CONTENDERS}
    for number in range(WARM_UP + rounds):
        first = number % len(CONTENDERS)
        for who in CONTENDERS[first:] + CONTENDERS[:first]:
            given, answered = processes[who].stdin, processes[who].stdout
            if given is None or answered is None:
                raise SystemExit(f"{who}: has no pipes")
            given.write(f"{number}\n")
            given.flush()
            clock, cpu = answered.readline().split()
            seconds[who].append((float(clock), float(cpu)))
    for process in processes.values():
        process.communicate()
    return {who: values[WARM_UP:] for who, values in seconds.items()}


def measured_rows(
    case: dict[str, object], seconds: dict[str, list[tuple[float, float]]]
) -> list[dict[str, object]]:
    """Return a row for each of ours against each of timm's; a ratio above 1 says that ours is faster."""
    result: list[dict[str, object]] = []
    for who, reference in itertools.product(seconds, REFERENCES):
        pairs = list(zip(seconds[reference], seconds[who], strict=True))
        ratios = sorted(theirs[0] / own[0] for theirs, own in pairs)
        clock, cpu = (statistics.median(value[kind] for value in seconds[who]) for kind in (0, 1))
        tail = len(ratios) // 10
        result.append({
            **case, "who": who, "rounds": len(ratios), "ms": f"{1000 * clock:.1f}", "cpu_ms": f"{1000 * cpu:.1f}",
            "reference": reference, "ratio": f"{statistics.median(ratios):.3f}",
            "ratio_low": f"{ratios[tail]:.3f}", "ratio_high": f"{ratios[-1 - tail]:.3f}",
            "cpu_ratio": f"{statistics.median(theirs[1] / own[1] for theirs, own in pairs):.3f}",
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
    seconds = measure(net, optimizer, precision, rounds)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    append(measured_rows({"date": today, "load": load, **case}, seconds))


def table() -> str:
    """Return the newest rows of ours, a line a case."""
    newest = {
        (row["net"], row["optimizer"], row["precision"], row["who"], row["reference"]): row
        for row in read()
        if row["who"].startswith("ours")
    }
    lines = [
        "| net | optimizer | precision | ours | against | clock (10 to 90 %) | processor | rounds |",
        "|" + "---|" * 8,
    ]
    for row in newest.values():
        ratio = f"{row['ratio']} ({row['ratio_low']} to {row['ratio_high']})"
        cells = [
            f"{row['net']}, {row['size']} px",
            row["optimizer"],
            row["precision"],
            f"{row['who']}: {row['ms']} ms",
        ]
        lines.append("| " + " | ".join([*cells, row["reference"], ratio, row["cpu_ratio"], row["rounds"]]) + " |")
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
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contender(given.contender, given.nets[0], given.optimizers[0], given.precisions[0])
        return
    if not given.table:
        for net, optimizer, precision in itertools.product(given.nets, given.optimizers, given.precisions):
            run(net, optimizer, precision, given.rounds)
    print(table())


if __name__ == "__main__":
    main()
