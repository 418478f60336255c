"""What S3 asked for as future work, each as a command on S3's own job, beside the published recipe.

    python benchmarks/wishes.py data DATASETS
    python benchmarks/wishes.py run DATASETS WEIGHTS --out RUNS
    python benchmarks/wishes.py table

`data` writes two splits of DATASETS/melanoma10k: s3, 584 images of each class as S3 drew them, and s3-all-benign, the
same validation and test images with all other benign training images beside them, so that SMOTE has a rare class to
fill. Every training is compared with the published recipe on the same test images by `dermkit compare`. A step whose
rows are in wishes.csv is skipped. WEIGHTS is the folder of weights files.
"""

import datetime
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scale import add_rows, campaign_parsers, commit, machine, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "wishes.csv"
HEADER = (
    "date", "commit", "machine", "wish", "command", "minutes", "figure", "value", "sd", "low", "high", "n",
    "difference", "difference_low", "difference_high", "p_holm", "verdict",
)  # fmt: skip
FIGURES = ("accuracy", "sensitivity", "specificity", "auroc", "loss")
MOBILENET = "mobilenetv2_100.fp16.safetensors"
VIT = "vit_tiny_patch16_224.fp16.safetensors"
BASE = "as published"
ENSEMBLE = "ensemble of the two nets"
DISTILLED = "the ensemble distilled into one net"
_ON_VIT = (
    "--backbone", "vit_tiny_patch16_224", "--set", 'model.backbone_args={"dynamic_img_size": true}', "--image-size",
    "160",
)  # fmt: skip
_DISTIL = ("--set", 'distil={"weight": 0.5, "temperature": 2.0}', "--set", "optim.logit_adjustment=0")


@dataclass(frozen=True)
class Wish:
    """A training: recipe, split, weights file and further words; members: the wishes whose models it is made of."""

    recipe: str
    split: str
    weights: str
    words: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


WISHES: dict[str, Wish] = {
    BASE: Wish("s3-resnet50-mobilenetv2", "s3", MOBILENET),
    "another net, ViT-Tiny": Wish("s3-resnet50-mobilenetv2", "s3", VIT, _ON_VIT),
    ENSEMBLE: Wish("", "s3", "", members=(BASE, "another net, ViT-Tiny")),
    "all benign images, SMOTE": Wish("s3-resnet50-mobilenetv2", "s3-all-benign", MOBILENET, ("--smote",)),
    "all benign images, class weights": Wish(
        "s3-resnet50-mobilenetv2", "s3-all-benign", MOBILENET, ("--class-weights", "balanced")
    ),
    "augmentation": Wish(
        "s3-resnet50-mobilenetv2", "s3", MOBILENET, ("--set", "augment=light", "--set", "phases.0.views=10")
    ),
    DISTILLED: Wish("strong-1h", "s3", MOBILENET, ("--set", "repeats=3", *_DISTIL), members=(ENSEMBLE,)),
    "all layers trained": Wish("strong-1h", "s3", MOBILENET, ("--set", "repeats=3")),
    "all benign images, unweighted": Wish("s3-resnet50-mobilenetv2", "s3-all-benign", MOBILENET),
}


def make_data(datasets: Path) -> None:
    """Write the splits s3 and s3-all-benign."""
    from dermkit.data.manifest import load_dataset
    from dermkit.data.split_file import excluded_frame, write_split_rows

    dataset = datasets / "melanoma10k"
    words = ("--scheme", "holdout", "--per-class", "584", "--draw-from", "train", "--name", "s3")
    _dermkit("split", str(dataset), *words)
    manifest = load_dataset(dataset).manifest
    drawn = pd.read_csv(dataset / "splits" / "s3.csv")
    is_added = (
        (manifest["given_split"] == "train") & (manifest["label"] == "benign")
        & ~manifest["image_id"].isin(drawn["image_id"])
    )  # fmt: skip
    added = pd.DataFrame({"image_id": manifest.loc[is_added, "image_id"], "split": "train", "fold": -1})
    rows = pd.concat([drawn.assign(fold=-1), added]).sort_values("image_id", ignore_index=True)
    write_split_rows(dataset / "splits" / "s3-all-benign.csv", rows, excluded_frame([], []))
    print(rows.merge(manifest[["image_id", "label"]], on="image_id").groupby(["split", "label"]).size())


def run(datasets: Path, weights: Path, out: Path) -> None:
    """Carry out every wish whose rows are not there yet, and compare it with the published recipe."""
    done = {row["wish"] for row in read_rows(ROWS)}
    for name, wish in WISHES.items():
        if name not in done:
            started = time.monotonic()
            folder = _carry_out(name, wish, datasets, weights, out)
            minutes = (time.monotonic() - started) / 60
            (out / "wishes" / f"{_slug(name)}.txt").write_text(str(folder), encoding="utf-8")
            add_rows(ROWS, HEADER, _rows(name, wish, folder, minutes, out))
            print(name, round(minutes, 1), "min", flush=True)


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _folder_of(name: str, out: Path) -> Path:
    return Path((out / "wishes" / f"{_slug(name)}.txt").read_text(encoding="utf-8"))


def _carry_out(name: str, wish: Wish, datasets: Path, weights: Path, out: Path) -> Path:
    """Return the folder of runs, or of the ensemble."""
    (out / "wishes").mkdir(parents=True, exist_ok=True)
    if name == ENSEMBLE:
        members = [str(_folder_of(member, out)) for member in wish.members]
        folder = out / "wishes" / _slug(name)
        _dermkit("ensemble", *members, "--out", str(folder))
        _dermkit("evaluate", str(folder), "--open-test", str(datasets / "melanoma10k"))
        return folder
    teacher = ["--teacher", str(_folder_of(wish.members[0], out))] if wish.members else []
    said = _dermkit(
        "train", wish.recipe, str(datasets / "melanoma10k"), "--split", wish.split, "--weights",
        str(weights / wish.weights), "--out", str(out / "wishes" / "runs"), "--device", "cpu", *wish.words, *teacher,
    )  # fmt: skip
    return Path(said.strip().splitlines()[-1]).parent


def _dermkit(*words: str) -> str:
    """Run a command and return what it writes to its standard output."""
    finished = subprocess.run(
        [sys.executable, "-m", "dermkit.cli", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return finished.stdout


def command_of(wish: Wish) -> str:
    """Return the command as a reader would type it."""
    if not wish.recipe:
        return "dermkit ensemble " + " ".join(f"RUNS/({member})" for member in wish.members)
    teacher = [f"--teacher ENSEMBLE/({member})" for member in wish.members]
    words = [f"'{word}'" if "{" in word or " " in word else word for word in wish.words]
    return " ".join(
        [
            "dermkit train",
            wish.recipe,
            "melanoma10k --split",
            wish.split,
            "--weights",
            wish.weights,
            *words,
            *teacher,
        ]
    )


def _rows(name: str, wish: Wish, folder: Path, minutes: float, out: Path) -> list[tuple[Any, ...]]:
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    common = (today, commit(), machine(), name, command_of(wish), round(minutes, 1))
    against = {} if name == BASE else _differences(name, folder, out)
    return [(*common, figure, *_figure(folder, figure), *against.get(figure, ("",) * 5)) for figure in FIGURES]


def _figure(folder: Path, figure: str) -> tuple[Any, ...]:
    """Return mean and standard deviation over trainings, or value and interval of a single model; then n."""
    runs = [path.parent for path in sorted(folder.glob("*/metrics.json"))] or [folder]
    estimates = [
        json.loads((run / "metrics.json").read_text(encoding="utf-8"))["splits"]["test"]["metrics"][figure]
        for run in runs
    ]
    values = [estimate["value"] for estimate in estimates]
    if len(runs) > 1:
        return (float(np.mean(values)), float(np.std(values, ddof=1)), "", "", estimates[0]["n"])
    return (values[0], "", *(estimates[0]["ci95"] or ("", "")), estimates[0]["n"])


def _differences(name: str, folder: Path, out: Path) -> dict[str, tuple[Any, ...]]:
    """Return difference to the published recipe, interval, corrected p and sentence, by figure, on the test images."""
    page = out / "wishes" / f"compare-{_slug(name)}"
    _dermkit("compare", str(_folder_of(BASE, out)), str(folder), "--out", str(page))
    pairs = json.loads((page / "comparison.json").read_text(encoding="utf-8"))["pairs"]
    return {
        figure: (found["value"], *(found["ci95"] or ("", "")), found["p_holm"], found["verdict"])
        for pair in pairs
        if pair["split"] == "test"
        for figure, found in pair["metrics"].items()
    }


def table() -> str:
    """Return the figures as Markdown: a row for each wish, and the sentences of accuracy."""
    rows = read_rows(ROWS)
    lines = ["| wish | " + " | ".join(FIGURES) + " | min |", "|" + "---|" * (len(FIGURES) + 2)]
    for name in WISHES:
        part = {row["figure"]: row for row in rows if row["wish"] == name}
        if part:
            cells = " | ".join(_cell(part[figure]) for figure in FIGURES)
            lines.append(f"| {name} | {cells} | {part['accuracy']['minutes']} |")
    told = [
        f"- {row['wish']}: {row['figure']} {row['verdict']}"
        for row in rows
        if row["verdict"] and row["figure"] in ("accuracy", "loss")
    ]
    return "\n".join([*lines, "", *told])


def _cell(row: dict[str, str]) -> str:
    if row["sd"]:
        return f"{float(row['value']):.3f} (SD {float(row['sd']):.3f})"
    return f"{float(row['value']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}]"


def main() -> None:
    parser, _, _ = campaign_parsers(__doc__, 1)
    given = parser.parse_args()
    if given.verb == "data":
        make_data(given.datasets)
    elif given.verb == "run":
        run(given.datasets, given.weights, given.out)
    else:
        print(table())


if __name__ == "__main__":
    main()
