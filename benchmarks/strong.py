"""Train the strong recipes on real data, append what they reach to benchmarks/strong.csv; stop and go on at will.

    python benchmarks/strong.py data DATASETS
    python benchmarks/strong.py run DATASETS WEIGHTS --out RUNS [--only isic9] [--seeds 1]
    python benchmarks/strong.py table

DATASETS holds the imported and cleaned data set folders (`dermkit audit --clean`) isic9, melanoma10k and ham10000;
`data` makes two more of them: isic9-118, the cleaned training images of isic9 with all 118 published test images, and
ham2500, a fixed part of ham10000 by lesion. WEIGHTS holds the weights files. A job whose rows are there is skipped, and
one that was stopped goes on with --resume. Every figure is read from metrics.json, none is typed.
"""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scale import add_rows, campaign_parsers, commit, machine, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "strong.csv"
HEADER = (
    "date", "commit", "machine", "job", "dataset", "seed", "command", "minutes", "split", "metric", "value", "low",
    "high", "n", "method", "run",
)  # fmt: skip
METRICS = (
    "accuracy", "balanced_accuracy", "recall_macro_present", "sensitivity", "specificity", "auroc", "auroc_macro",
    "auroc_macro_present", "loss", "ece",
)  # fmt: skip
MOBILENET = "mobilenetv2_100.fp16.safetensors"
VIT = "vit_tiny_patch16_224.fp16.safetensors"
GIVEN = ("--set", "split.scheme=given", "--set", "split.test=0", "--set", "split.folds=5")
ONE_NET = ("--set", "split.scheme=given", "--set", "split.test=0", "--set", "split.validation=0.15")
DISTILLED = (
    *ONE_NET, "--epochs", "16", "--set", 'distil={"weight": 0.5, "temperature": 2.0}', "--set",
    "optim.logit_adjustment=0",
)  # fmt: skip
FASTEST = ("--set", "compute.precision=fastest")
"""bfloat16 where the processor has it: .66 of the time of a step in float32 (MobileNetV2, 160 px, AVX-512 BF16)."""
SIXTEEN = ("--epochs", "16")
ON_VIT = (
    "--set", "model.backbone=vit_tiny_patch16_224", "--set", 'model.backbone_args={"dynamic_img_size": true}',
    "--set", "phases.0.backbone_lr=1e-4", *FASTEST,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training: its name, data set, recipe, weights file and further words of the command.

    teacher: the job whose model of the same seed it learns from, which must have run before.
    """

    name: str
    dataset: str
    recipe: str
    weights: str
    words: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    teacher: str = ""

    def command(self, datasets: str, weights: str, out: str, seed: int) -> list[str]:
        """Return the words after `dermkit`."""
        return [
            "train", self.recipe, f"{datasets}/{self.dataset}", "--weights", f"{weights}/{self.weights}", "--seed",
            str(seed), "--out", out, *self.words, *self._teacher_words(out, seed),
        ]  # fmt: skip

    def _teacher_words(self, out: str, seed: int) -> list[str]:
        if not self.teacher:
            return []
        runs = {row["run"] for row in read_rows(ROWS) if (row["job"], row["seed"]) == (self.teacher, str(seed))}
        folders = [folder for run in runs for folder in Path(out).glob(f"*/{run}")]
        return ["--teacher", str(folders[0]) if folders else f"{out}/TEACHER"]


# "plain batch norm": with `optim.batch_norm_images`, which both recipes have since docs/decisions/0019; the same words
# without that name are rows of the recipe before.
FINAL_JOBS = (
    Job("isic9, MobileNetV2", "isic9-118", "strong-night", MOBILENET, (*GIVEN, *FASTEST, *SIXTEEN), (0, 1, 2)),
    Job("isic9, ViT-Tiny", "isic9-118", "strong-night", VIT, (*GIVEN, *SIXTEEN, *ON_VIT), (0, 1, 2)),
    Job("isic9, distilled", "isic9-118", "strong-1h", MOBILENET, DISTILLED, teacher="isic9, MobileNetV2"),
    Job("isic9, one net", "isic9-118", "strong-1h", MOBILENET, (*ONE_NET, *FASTEST, *SIXTEEN)),
    Job(
        "isic9, one net, plain batch norm",
        "isic9-118",
        "strong-1h",
        MOBILENET,
        (*ONE_NET, *FASTEST, *SIXTEEN),
        (0, 1, 2),
    ),
    Job(
        "isic9, MobileNetV2, plain batch norm",
        "isic9-118",
        "strong-night",
        MOBILENET,
        (*GIVEN, *FASTEST, *SIXTEEN),
    ),
    Job("ham10000, MobileNetV2", "ham10000", "strong-night", MOBILENET, FASTEST),
    Job("melanoma10k, MobileNetV2", "melanoma10k", "strong-night", MOBILENET, (*GIVEN, *FASTEST)),
    Job("melanoma10k, one net", "melanoma10k", "strong-1h", MOBILENET, (*ONE_NET, *FASTEST)),
)
_FROZEN = Job("", "", "strong-5min", MOBILENET, GIVEN, (0, 1, 2))
_PARTS: dict[str, tuple[str, ...]] = {
    "all parts": (),
    "without adjusted logits": ("--set", "optim.logit_adjustment=0"),
    "class weights in their place": ("--set", "optim.logit_adjustment=0", "--set", "optim.class_weights=balanced"),
    "focal loss in their place": ("--set", "optim.logit_adjustment=0", "--set", "optim.focal_gamma=2"),
    "balanced sampling in their place": ("--set", "optim.logit_adjustment=0", "--set", "optim.sampling=balanced"),
    "without label smoothing": ("--set", "optim.label_smoothing=0"),
    "without warm-up": ("--set", "optim.warmup_epochs=0"),
    "constant rate": ("--set", "optim.schedule=constant", "--set", "optim.warmup_epochs=0"),
    "without weight decay": ("--set", "optim.weight_decay=0"),
    "without dropout": ("--set", "model.dropout=0"),
    "without augmentation": ("--set", "augment=none", "--set", "phases.0.views=0"),
    "one test-time view": ("--set", "test_views=identity"),
}
"""Parts of the frozen recipe, each switched off once."""
ABLATION_JOBS = tuple(
    replace(_FROZEN, name=f"ablation, {dataset}: {part}", dataset=dataset, words=(*split, *words))
    for dataset, split in (("isic9", GIVEN), ("ham2500", ("--folds", "5")))
    for part, words in _PARTS.items()
)
METADATA_JOBS = tuple(
    replace(
        _FROZEN, name=f"ablation, ham2500: with {text}", dataset="ham2500",
        words=("--folds", "5", "--metadata", fields),
    )
    for text, fields in (
        ("age, sex and site", "age,sex,site"), ("age alone", "age"), ("sex alone", "sex"), ("site alone", "site"),
    )
)  # fmt: skip
"""Metadata as a second input, against `ablation, ham2500: all parts` with the image alone; isic9 has no metadata."""
JOBS = (*FINAL_JOBS, *ABLATION_JOBS, *METADATA_JOBS)


def make_data(datasets: Path) -> None:
    """Make isic9-118 and ham2500 out of the cleaned data sets."""
    from dermkit.data.manifest import load_dataset, save_dataset

    isic9 = load_dataset(datasets / "isic9")
    before = pd.read_csv(isic9.folder / "audit" / "manifest.before-clean.csv", dtype=str, keep_default_na=False)
    is_dropped_test = (before["given_split"] == "test") & ~before["image_id"].isin(isic9.manifest["image_id"])
    dropped = before.loc[is_dropped_test, list(isic9.manifest.columns)].astype(
        {"width": "int64", "height": "int64"}
    )
    whole_test = pd.concat([isic9.manifest, dropped]).sort_values("image_id", ignore_index=True)
    ham = load_dataset(datasets / "ham10000")
    lesions = np.random.default_rng(0).permutation(np.unique(ham.manifest["lesion_id"]))
    counts = ham.manifest["lesion_id"].value_counts().reindex(lesions).cumsum()
    part = ham.manifest[ham.manifest["lesion_id"].isin(counts.index[counts <= 2500])].reset_index(drop=True)
    for dataset, name, manifest in ((isic9, "isic9-118", whole_test), (ham, "ham2500", part)):
        folder = datasets / name
        folder.mkdir(exist_ok=True)
        save_dataset(replace(dataset, folder=folder, name=name, manifest=manifest))
        print(name, len(manifest), "images")


def run(datasets: Path, weights: Path, out: Path, only: str, seeds: int) -> None:
    """Run every job whose rows are not there yet."""
    for job in JOBS:
        for seed in job.seeds[:seeds]:
            if only.lower() in job.name.lower() and (job.name, str(seed)) not in done():
                _run_one(job, seed, datasets, weights, out)


def done() -> set[tuple[str, str]]:
    """Return (job, seed) of the rows that are there."""
    return {(row["job"], row["seed"]) for row in read_rows(ROWS)}


def _run_one(job: Job, seed: int, datasets: Path, weights: Path, out: Path) -> None:
    words = job.command(str(datasets), str(weights), str(out), seed)
    print("run:", job.name, "seed", seed, flush=True)
    started = datetime.datetime.now(tz=datetime.UTC)
    finished = subprocess.run(
        [sys.executable, "-m", "dermkit.cli", *words, "--device", "cpu", "--resume"], stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    minutes = (datetime.datetime.now(tz=datetime.UTC) - started).total_seconds() / 60
    if finished.returncode != 0:
        raise SystemExit(f"{job.name} seed {seed}: exit code {finished.returncode}")
    folder = Path(finished.stdout.strip().splitlines()[-1]).parent
    command = " ".join(["dermkit", *job.command("DATASETS", "WEIGHTS", "RUNS", seed)])
    add_rows(ROWS, HEADER, list(_rows(job, seed, command, minutes, folder)))


def _rows(job: Job, seed: int, command: str, minutes: float, folder: Path) -> Iterator[tuple[Any, ...]]:
    metrics = json.loads((folder / "metrics.json").read_text())
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    common = (today, commit(), machine(), job.name, job.dataset, seed, command, round(minutes, 1))
    for split, body in metrics["splits"].items():
        for metric in METRICS:
            estimate = body["metrics"].get(metric)
            if estimate and estimate["value"] is not None:
                low, high = estimate["ci95"] or ("", "")
                value, n, method = estimate["value"], estimate["n"], estimate["method"]
                yield (*common, split, metric, value, low, high, n, method, folder.name)


SHOWN = ("accuracy", "balanced_accuracy", "auroc", "auroc_macro", "sensitivity", "specificity", "loss")


def table() -> str:
    """Return the measured figures as Markdown: a row per job, seed and split."""
    lines = [
        "| job | seed | split | n | " + " | ".join(SHOWN) + " | min | commit |",
        "|" + "---|" * (len(SHOWN) + 6),
    ]
    runs: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in read_rows(ROWS):
        runs.setdefault((row["job"], row["seed"], row["split"]), {})[row["metric"]] = row
    for (job, seed, split), by_metric in runs.items():
        first = next(iter(by_metric.values()))
        cells = " | ".join(_cell(by_metric.get(name)) for name in SHOWN)
        lines.append(
            f"| {job} | {seed} | {split} | {first['n']} | {cells} | {first['minutes']} | {first['commit']} |"
        )
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    interval = f" [{float(row['low']):.3f}, {float(row['high']):.3f}]" if row["low"] else ""
    return f"{float(row['value']):.3f}{interval}"


def main() -> None:
    """Parse and run."""
    parser, runner, _ = campaign_parsers(__doc__, seeds=9)
    runner.add_argument("--only", default="", help="only jobs whose name holds this text")
    options = parser.parse_args()
    if options.verb == "data":
        make_data(options.datasets)
    elif options.verb == "run":
        run(options.datasets, options.weights, options.out, options.only, options.seeds)
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
