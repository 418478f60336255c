"""timm through its public API, in the order of its own documented training and inference scripts.

Settings: `defaults`, or `channels-last`, `bf16` (--amp --amp-dtype bfloat16), `workers2`, `compile` (--torchcompile).
"""

import csv
import time
from contextlib import nullcontext
from functools import partial

import timm
import torch
from asked import Asked, Clock, answer, asked
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

NETS = {"resnet50": ("resnet50", {}), "mobilenetv2": ("mobilenetv2_100", {"pad_type": "same"})}
TRAIN_WORKERS, INFERENCE_WORKERS = 4, 2  # the scripts' own defaults


def model_of(given: Asked, classes: int) -> torch.nn.Module:
    name, arguments = NETS[given.net]
    model = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
    return model.to(memory_format=torch.channels_last) if "channels-last" in given.switches else model


def autocast(given: Asked) -> partial:
    if "bf16" in given.switches:
        return partial(torch.autocast, device_type="cpu", dtype=torch.bfloat16)
    return partial(nullcontext)


def config_of(given: Asked, model: torch.nn.Module) -> dict:
    return resolve_data_config({"input_size": (3, given.size, given.size)}, model=model)


def finetune(given: Asked) -> None:
    """The loop of train.py: random crop, flip and colour jitter, SGD with momentum, label smoothing 0.1, cosine."""
    switches = given.only("channels-last", "bf16", "workers2", "compile")
    torch.manual_seed(42 + given.seed)
    dataset = create_dataset("", root=str(given.images / "train"), split="train", is_training=True)
    model = model_of(given, classes=len(dataset.reader.class_to_idx))
    config = config_of(given, model)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1 * given.batch / 256, weight_decay=2e-5, momentum=0.9)
    if "compile" in switches:
        model = torch.compile(model)
    loader = create_loader(
        dataset, input_size=config["input_size"], batch_size=given.batch, is_training=True,
        interpolation="random", mean=config["mean"], std=config["std"],
        num_workers=2 if "workers2" in switches else TRAIN_WORKERS, device=torch.device("cpu"), use_prefetcher=True,
    )  # fmt: skip
    loss_of = LabelSmoothingCrossEntropy(smoothing=0.1)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=given.epochs, updates_per_epoch=len(loader)
    )
    within, clock, losses = autocast(given), Clock(), []
    for epoch in range(given.epochs):
        model.train()
        clock.epoch()
        losses = []
        for inputs, target in loader:
            if "channels-last" in switches:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with within():
                loss = loss_of(model(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            clock.batch(len(target))
        clock.end()
        scheduler.step(epoch + 1)
    torch.save(model.state_dict(), given.out / "last.pth.tar")
    answer(**clock.figures(), train_loss=sum(losses) / len(losses), n=len(dataset), versions=versions())


def score(given: Asked) -> None:
    """The loop of inference.py: a folder -> a CSV of all probabilities (batch 256, two workers)."""
    switches = given.only("channels-last", "bf16", "compile")
    model = model_of(given, classes=9).eval()
    config = config_of(given, model)
    if "compile" in switches:
        model = torch.compile(model)
    dataset = create_dataset("", root=str(given.images), split="validation")
    loader = create_loader(
        dataset,
        batch_size=256,
        use_prefetcher=True,
        num_workers=INFERENCE_WORKERS,
        device=torch.device("cpu"),
        **config,
    )
    within, rows = autocast(given), []
    started = time.perf_counter()
    with torch.inference_mode():
        for inputs, _ in loader:
            if "channels-last" in switches:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with within():
                output = model(inputs)
            rows += output.softmax(-1).float().tolist()
    with (given.out / "predictions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            zip(loader.dataset.filenames(basename=True), *zip(*rows, strict=True), strict=True)
        )
    seconds = time.perf_counter() - started
    answer(inner_seconds=seconds, images_per_second=len(rows) / seconds, n=len(rows), versions=versions())


def versions() -> str:
    return f"timm {timm.__version__} torch {torch.__version__}"


if __name__ == "__main__":
    request = asked()
    {"finetune": finetune, "score": score}[request.job](request)
