"""What every peer is given and answers: a folder of images, weights, epochs; a table of probabilities and its times."""

import argparse
import csv
import json
import time
from pathlib import Path

BATCH = 32
STARTED = time.perf_counter()
"""A peer imports this module first, so that its own imports count."""


def given() -> argparse.Namespace:
    """Return images (train, validation and test, a folder per class in each), out, weights, epochs, size, seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def class_names(images: Path) -> list[str]:
    """Return the folders of the training images, sorted."""
    return sorted(folder.name for folder in (images / "train").iterdir())


def test_files(images: Path) -> list[Path]:
    """Return the test images, sorted."""
    return sorted(file for file in (images / "test").rglob("*") if file.is_file())


def write_predictions(options: argparse.Namespace, files: list[Path], probabilities: list[list[float]]) -> None:
    """Write predictions.csv: the image's name, then a probability for each class."""
    with (options.out / "predictions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", *class_names(options.images)])
        writer.writerows([file.name, *row] for file, row in zip(files, probabilities, strict=True))


def answer(seconds: float, seconds_per_epoch: float, versions: str) -> None:
    """Print what the runner reads. seconds: from the start to the saved model."""
    print(json.dumps({"seconds": seconds, "seconds_per_epoch": seconds_per_epoch, "versions": versions}))
