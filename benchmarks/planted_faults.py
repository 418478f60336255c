"""Faults planted in made data: is each named among the reasons of a run's verdict, and is a clean twin left alone?

    python benchmarks/planted_faults.py run WEIGHTS WORK [--seeds 20] [--only FAULT]
    python benchmarks/planted_faults.py table

Each job draws benign and malignant lesions, plants one fault, audits the data set, trains a head on a frozen
MobileNetV2 of 64 px, and asks `runs/belief.py`. A row is appended for each; what has a row is not run again. A fault
is named where one of the at most three reasons of the first screen is of its kind. The clean twin of a seed has the
same lesions without a fault.
"""

import argparse
import datetime
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermkit.recipes.schema import Recipe
from dermkit.runs.belief import Belief
from dermkit.runs.doubts import Doubt
from scale import add_rows, commit, machine, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "planted_faults.csv"
HEADER = ("date", "commit", "machine", "fault", "seed", "verdict", "named", "codes", "reasons", "auroc", "seconds")
LESIONS = {"benign": 240, "malignant": 240}
GIVEN_TEST = 0.45
RARE_MALIGNANT = 5
"""Of the malignant test images, one in so many is kept where the test side has another prevalence than the training."""


@dataclass(frozen=True)
class Fault:
    """A fault. planted: fields of `PlantedFaults`. alter: changes files before the import. is_named: by a doubt."""

    planted: dict[str, object]
    alter: Callable[[Path, pd.DataFrame], None]
    is_named: Callable[[Doubt], bool]


def keep_files(_images: Path, _table: pd.DataFrame) -> None:
    """Change nothing."""


def tint_malignant(images: Path, table: pd.DataFrame) -> None:
    """Give nine in ten malignant images another white balance, as of one camera."""
    rng = np.random.default_rng(len(table))
    for name in _images_of(table, "malignant"):
        if rng.random() < 0.9:
            _change(images / name, lambda pixels: pixels * np.array([1.0, 0.86, 0.7]))


def fade_women(images: Path, table: pd.DataFrame) -> None:
    """Take nearly all contrast from the test images of women, as of skin that the net was not trained on."""
    for name in table.loc[(table["sex"] == "female") & (table["given_split"] == "test"), "image"].astype(str):
        _change(images / name, lambda pixels: 0.06 * pixels + 0.94 * np.median(pixels, axis=(0, 1)))


def drop_malignant(images: Path, table: pd.DataFrame) -> None:
    """Leave few malignant images in the test, as in practice, while half of the training images are malignant."""
    names = _images_of(table[table["given_split"] == "test"], "malignant")
    for number, name in enumerate(names):
        if number % RARE_MALIGNANT:
            (images / name).unlink()


def _images_of(table: pd.DataFrame, label: str) -> list[str]:
    return [str(name) for name in table.loc[table["label"] == label, "image"]]


def _change(path: Path, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
        tables = image.quantization  # type: ignore[attr-defined]
    changed = np.clip(np.rint(change(pixels)), 0, 255).astype(np.uint8)
    Image.fromarray(changed).save(path, qtables=tables)


def _mentions(*words: str) -> Callable[[Doubt], bool]:
    codes = ("image_blind", "strong_rule", "shortcut")
    return lambda doubt: doubt.code in codes and any(word in doubt.text.lower() for word in words)


FAULTS = {
    "clean": Fault({}, keep_files, lambda _: True),
    "colour shortcut": Fault({}, tint_malignant, _mentions("colour")),
    "source shortcut": Fault(
        {"source": ("malignant", 0.9)},
        keep_files,
        _mentions("archive", "source", "file", "jpeg", "border", "pixel"),
    ),
    "leaked lesions": Fault({"siblings": 25, "copies": 10}, keep_files, lambda doubt: doubt.code == "leak"),
    "artefact of a class": Fault(
        {"artefact": ("ruler", "malignant", 0.8)}, keep_files, _mentions("ruler", "artefact", "border")
    ),
    "failing group": Fault({}, fade_women, lambda doubt: doubt.code == "group"),
    "miscalibration": Fault({}, drop_malignant, lambda doubt: doubt.code == "calibration"),
}


def run_job(name: str, seed: int, weights: Path, work: Path) -> tuple[Belief, float]:
    """Draw, plant, audit, train and judge; returns the belief and the net's AUROC."""
    import dermkit as dk
    from dermkit.data.synthetic.dataset import PlantedFaults, make_dataset_folder
    from dermkit.lint.rules import read_lint
    from dermkit.runs.belief import judge_belief
    from dermkit.runs.folder import RunFolder
    from dermkit.runs.verdict import judge_run

    fault, images = FAULTS[name], work / "images"
    make_dataset_folder(
        images, lesions_per_class=LESIONS, photos_per_lesion=(1, 1), size=96, seed=seed, given_test=GIVEN_TEST,
        planted_faults=PlantedFaults(**fault.planted),  # type: ignore[arg-type]
    )  # fmt: skip
    fault.alter(images, pd.read_csv(images / "metadata.csv"))
    dataset = dk.import_dataset(
        "folder", images, out=work / "data", metadata_tables=(images / "metadata.csv",)
    ).dataset
    dk.audit_dataset(dataset)
    run = dk.train(
        _recipe(), dk.load_dataset(work / "data"), seed=seed,
        settings=dk.RunSettings(out=work / "runs", device="cpu", weights=weights),
    )  # fmt: skip
    folder = RunFolder(run)
    auroc = folder.metrics["splits"]["test"]["metrics"]["auroc"]["value"]
    return judge_belief(folder, judge_run(folder), read_lint(run)), auroc


def _recipe() -> Recipe:
    import dermkit as dk
    from dermkit.recipes.augmentation import PRESETS

    strong = dk.find_recipe("strong-5min")
    return replace(
        strong,
        name="planted-faults",
        image=replace(strong.image, size=64),
        split=replace(strong.split, scheme="given-as-published", validation=0.25, test=0.0),
        augment=PRESETS["none"],
        phases=(replace(strong.phases[0], views=0, epochs=20),),
        optim=replace(strong.optim, logit_adjustment=0.0),
        test_views="identity",
    )


def run(weights: Path, work: Path, seeds: int, only: str) -> None:
    """Run what has no row yet, seed by seed."""
    done = {(row["fault"], row["seed"]) for row in read_rows(ROWS)}
    for seed in range(seeds):
        for name in [only] if only else FAULTS:
            if (name, str(seed)) in done:
                continue
            folder = work / f"{name.replace(' ', '-')}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            start = time.perf_counter()
            belief, auroc = run_job(name, seed, weights, folder)
            named = any(map(FAULTS[name].is_named, belief.reasons))
            add_rows(ROWS, HEADER, [(
                datetime.datetime.now(tz=datetime.UTC).date().isoformat(), commit(), machine(), name, seed,
                belief.word, int(named), " ".join(doubt.code for doubt in belief.reasons),
                " | ".join(doubt.text for doubt in belief.reasons), f"{auroc:.4f}",
                f"{time.perf_counter() - start:.0f}",
            )])  # fmt: skip
            print(name, seed, belief.word, named, f"{auroc:.3f}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)


def table() -> str:
    """Return the counts as Markdown: how often each fault is named, and each word."""
    frame = pd.DataFrame(read_rows(ROWS))
    lines = ["| fault | seeds | named | do not believe | believe with care | believe |", "|" + "---|" * 6]
    for name, group in frame.groupby("fault", sort=False):
        named = "" if name == "clean" else str(int(group["named"].astype(int).sum()))
        words = [
            int((group["verdict"] == word).sum()) for word in ("do not believe", "believe with care", "believe")
        ]
        lines.append(f"| {name} | {len(group)} | {named} | " + " | ".join(map(str, words)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run")
    runner.add_argument("weights", type=Path)
    runner.add_argument("work", type=Path)
    runner.add_argument("--seeds", type=int, default=20)
    runner.add_argument("--only", choices=[*FAULTS], default="")
    verbs.add_parser("table")
    options = parser.parse_args()
    if options.verb == "run":
        run(options.weights, options.work, options.seeds, options.only)
    else:
        sys.stdout.write(table())


if __name__ == "__main__":
    main()
