"""Ultralytics classify through its public API: YOLO(yaml).train and .predict on torchvision nets without weights.

Settings: `defaults`, or `cache` (cache="ram"), `bf16` (amp="bf16"), `channels-last` and `batch32` (score). On a CPU it
sets its own workers to 0. Its Classify head puts a 1x1 convolution to 1280 channels before the pooling.
"""

import csv
import time
from pathlib import Path

import torch
from asked import Asked, Clock, answer, asked
from ultralytics import YOLO, __version__, settings

NETS = {"resnet50": (2048, "resnet50", 2), "mobilenetv2": (1280, "mobilenet_v2", 1)}


def net_of(given: Asked) -> YOLO:
    """Return the net by way of a model file of our own, as its documented TorchVision module takes it."""
    width, name, truncate = NETS[given.net]
    path = given.out / f"{name}-cls.yaml"
    path.write_text(
        "nc: 9\nbackbone:\n"
        f"  - [-1, 1, TorchVision, [{width}, {name}, null, True, {truncate}]]\n"
        "head:\n  - [-1, 1, Classify, [nc]]\n"
    )
    return YOLO(str(path), task="classify")


def finetune(given: Asked) -> None:
    """Its own augmentation (random crop, flip, RandAugment, erasing) and optimizer; `auto` is its default."""
    switches = given.only("cache", "bf16")
    model, clock = net_of(given), Clock()
    model.add_callback("on_train_epoch_start", lambda _trainer: clock.epoch())
    model.add_callback("on_train_batch_end", lambda trainer: clock.batch(count_of(trainer)))
    model.add_callback("on_train_epoch_end", lambda _trainer: clock.end())
    options = {"cache": "ram"} if "cache" in switches else {}
    if "bf16" in switches:
        options["amp"] = "bf16"
    model.train(
        data=str(given.images.resolve()), epochs=given.epochs, imgsz=given.size, batch=given.batch, pretrained=False,
        project=str(given.out.resolve()), device="cpu", seed=given.seed, **options,
    )  # fmt: skip
    n = len(model.trainer.train_loader.dataset)
    answer(**clock.figures(), n=n, versions=versions())


SEEN = {"n": 0}


def count_of(trainer: object) -> int:
    """Return how many images the batch before held: all batches are full but an epoch's last."""
    loader = trainer.train_loader
    size, n = loader.batch_size, len(loader.dataset)
    SEEN["n"] += 1
    last = SEEN["n"] % len(loader) == 0
    return n - size * (len(loader) - 1) if last else size


def score(given: Asked) -> None:
    """A folder through predict(stream=True) to a CSV; its default is one image at a time."""
    switches = given.only("channels-last", "batch32")
    model = net_of(given)
    started = time.perf_counter()
    options = {"batch": 32} if "batch32" in switches else {}
    if "channels-last" in switches:
        options["channels_last"] = True
    # A pattern, so that folders inside are read too; a folder alone is not searched through.
    source = f"{given.images.resolve()}/**/*.jpg"
    results = model.predict(source, stream=True, imgsz=given.size, verbose=False, device="cpu", **options)
    rows = [[Path(result.path).name, *result.probs.data.tolist()] for result in results]
    with (given.out / "predictions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    seconds = time.perf_counter() - started
    answer(inner_seconds=seconds, images_per_second=len(rows) / seconds, n=len(rows), versions=versions())


def versions() -> str:
    return f"ultralytics {__version__} torch {torch.__version__}"


if __name__ == "__main__":
    request = asked()
    settings.update({"sync": False})
    {"finetune": finetune, "score": score}[request.job](request)
