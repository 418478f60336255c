"""Run the five systems on real data and append what they reach to benchmarks/systems.csv; stop and go on at will.

    python benchmarks/systems.py run DATASETS WEIGHTS --out RUNS [--only s2]
    python benchmarks/systems.py table
    python benchmarks/systems.py published
    python benchmarks/systems.py colour DATASETS

DATASETS holds the imported data set folders isic9, melanoma10k and ham10000; WEIGHTS the weights files. A job whose
rows are there is skipped. Every figure is read from metrics.json, none is typed.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = HERE / "systems.csv"
HEADER = (
    "date", "commit", "machine", "threads", "versions", "job", "verb", "recipe", "dataset", "split", "seed", "weights",
    "minutes", "epochs", "side", "metric", "value", "low", "high", "n", "method", "leaks",
)  # fmt: skip
MOBILENET = "mobilenetv2_100.fp16.safetensors"
INCEPTION = "inception_v3.partial.fp16.safetensors"
METRICS = (
    "loss", "accuracy", "balanced_accuracy", "balanced_accuracy_present", "precision_macro_present", "recall_macro",
    "f1_macro", "f1_macro_present", "sensitivity", "specificity", "precision", "f1", "auroc", "auroc_macro",
    "average_precision_macro", "brier", "ece",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One command: verb and recipe (or grid) on a data set, per seed; split: a named split, or the recipe's own."""

    name: str
    verb: str
    recipe: str
    dataset: str
    weights: str = ""
    seeds: tuple[int, ...] = (0,)
    split: str = ""


def _s2(recipe: str, weights: str = MOBILENET, verb: str = "train") -> list[Job]:
    """Both readings of the published test folder, three seeds each."""
    return [
        Job(f"{recipe}, {split}", verb, recipe, "isic9", weights, (0, 1, 2), split)
        for split in ("given", "given-as-published")
    ]


JOBS: tuple[Job, ...] = (
    Job("S2 grid on validation", "tune", "s2-mobilenetv2-grid", "isic9", MOBILENET, (0,), "given"),
    *_s2("s2-resnet50-mobilenetv2"),
    *_s2("s2-normalised-mobilenetv2"),
    *_s2("s2-augmented-mobilenetv2"),
    *_s2("s2-dropout-mobilenetv2"),
    *_s2("s2-finetuned-mobilenetv2"),
    *_s2("s2-resnet50-scratch", ""),
    Job("S3, six repeats", "train", "s3-resnet50-mobilenetv2", "melanoma10k", MOBILENET),
    Job("S3 from scratch, six repeats", "train", "s3-resnet50-scratch", "melanoma10k"),
    Job("S4", "train", "s4-cnn", "isic9", "", (0, 1, 2)),
    Job("S1", "train", "s1-cnn", "melanoma10k", "", (0, 1, 2)),
    Job("S0 InceptionV3, grid", "tune", "s0-inception-v3-mixed7a-grid", "melanoma10k", INCEPTION),
    Job("S0 stand-in for ResNet50, grid", "tune", "s0-resnet50-mobilenetv2-grid", "melanoma10k", MOBILENET),
)


def run(datasets: Path, weights: Path, out: Path, only: str, seeds: int) -> None:
    """Run every job whose rows are not there yet."""
    for job in JOBS:
        if only and only.lower() not in job.name.lower():
            continue
        for seed in job.seeds[:seeds]:
            if (job.name, str(seed)) not in done():
                _run_one(job, seed, datasets, weights, out)


def done() -> set[tuple[str, str]]:
    """Return (job, first seed) of the rows that are there."""
    if not ROWS.exists():
        return set()
    with ROWS.open(newline="") as stream:
        return {(row["job"].split(" #")[0], row["seed"]) for row in csv.DictReader(stream)}


def _run_one(job: Job, seed: int, datasets: Path, weights: Path, out: Path) -> None:
    command = [sys.executable, "-m", "dermkit.cli", job.verb, job.recipe, str(datasets / job.dataset),
               "--out", str(out), "--seed", str(seed), "--device", "cpu", "--resume"]  # fmt: skip
    if job.weights:
        command += ["--weights", str(weights / job.weights)]
    if job.split:
        command += ["--split", job.split]
    print("run:", job.name, "seed", seed, flush=True)
    started = datetime.datetime.now(tz=datetime.UTC)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    minutes = (datetime.datetime.now(tz=datetime.UTC) - started).total_seconds() / 60
    if finished.returncode != 0:
        print(finished.stderr[-3000:], flush=True)
        raise SystemExit(f"{job.name} seed {seed}: exit code {finished.returncode}")
    folder = Path(finished.stdout.strip().splitlines()[-1]).parent
    append(job, seed, minutes, folder)


def append(job: Job, seed: int, minutes: float, folder: Path) -> None:
    """Append the rows of a run, or of every version of a repeated one."""
    summary = folder / "summary.json"
    runs = [folder]
    if summary.exists():
        runs = [folder / item["folder"] for item in json.loads(summary.read_text())["runs"]]
    rows = [row for path in runs for row in _rows(job, seed, minutes, path, many=len(runs) > 1)]
    fresh = not ROWS.exists()
    with ROWS.open("a", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if fresh:
            writer.writerow(HEADER)
        writer.writerows(rows)


def _rows(job: Job, seed: int, minutes: float, run: Path, *, many: bool) -> Iterator[tuple[Any, ...]]:
    facts, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    environment = json.loads((run / "environment.json").read_text())
    versions = " ".join(f"{key} {value}" for key, value in sorted(environment["versions"].items()))
    name = f"{job.name} #{facts['seed']}" if many else job.name
    weights = facts["weights"]
    common = (
        datetime.datetime.now(tz=datetime.UTC).date().isoformat(), commit(), machine(), environment["threads"],
        versions, name, job.verb, facts["recipe"], job.dataset, facts["split"]["scheme"], seed,
        f"{weights['origin']} {weights['sha256'][:12]}".strip(), round(minutes, 2), facts["stopped"]["epoch"],
    )  # fmt: skip
    leaks = facts["split"]["leaks"].get("total", 0)
    for side, body in metrics["splits"].items():
        for metric in METRICS:
            item = body["metrics"].get(metric)
            if item:
                low, high = item["ci95"] or ("", "")
                value = "" if item["value"] is None else item["value"]
                yield (*common, side, metric, value, low, high, item["n"], item["method"], leaks)


def commit() -> str:
    """Return the commit that was measured, marked when the tree had other changes in src."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    dirty = subprocess.run([*git, "status", "--porcelain", "../src"], capture_output=True, text=True, check=True)
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def machine() -> str:
    """Return processor and core count."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


SHOWN = ("accuracy", "balanced_accuracy", "precision_macro_present", "recall_macro", "f1_macro_present",
         "sensitivity", "specificity", "auroc", "auroc_macro", "average_precision_macro", "loss")  # fmt: skip


def table() -> str:
    """Return the measured tables as Markdown, one per system: a row per run and side, with every seed listed."""
    with ROWS.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    systems = sorted({row["job"][:2].upper() for row in rows})
    return "\n".join(
        f"### {name}\n\n{_table_of([r for r in rows if r['job'][:2].upper() == name])}" for name in systems
    )


def _table_of(rows: list[dict[str, str]]) -> str:
    lines = [
        "| recipe | split | seed | side | n | "
        + " | ".join(SHOWN)
        + " | leaks | epochs | min | weights | commit |",
        "|" + "---|" * (len(SHOWN) + 10),
    ]
    runs: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        seed = row["job"].split("#")[1] if "#" in row["job"] else row["seed"]
        key = (row["recipe"] + (" (chosen)" if row["verb"] == "tune" else ""), row["split"], seed, row["side"])
        runs.setdefault(key, {})[row["metric"]] = row
    for (recipe, split, seed, side), part in sorted(runs.items()):
        first = next(iter(part.values()))
        cells = " | ".join(_cell(part.get(name)) for name in SHOWN)
        leaks = first["leaks"] if side == "test" else ""
        lines.append(
            f"| {recipe} | {split} | {seed} | {side} | {part['accuracy']['n']} | {cells} | {leaks} | {first['epochs']} "
            f"| {first['minutes']} | {first['weights'] or 'none'} | {first['commit']} |"
        )
    return "\n".join(lines) + "\n"


def colour(datasets: Path) -> str:
    """Return what the rule that sees mean colour alone reaches on the published test folders."""
    import numpy as np

    from dermkit.data.cache.pixels import pixel_cache
    from dermkit.data.manifest import load_dataset
    from dermkit.data.split import make_split
    from dermkit.evaluation.colour_baseline import predict_by_colour
    from dermkit.images.preprocess import Preprocessing
    from dermkit.metrics.classification.roc import auroc
    from dermkit.metrics.classification.scored_set import p_malignant
    from dermkit.metrics.stats.intervals import wilson_interval
    from dermkit.recipes.experiments import GIVEN_SPLIT

    size = Preprocessing(
        size=64,
        resize="squash",
        interpolation="bilinear",
        divide_by=255.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    lines = ["| data set, published test folder | n | accuracy | AUROC, malignant |", "|---|---|---|---|"]
    for name in ("melanoma10k", "isic9"):
        data = load_dataset(datasets / name)
        sides = make_split(data.manifest, GIVEN_SPLIT, name="given").frame.set_index("image_id")["split"]
        cache = pixel_cache(data, data.manifest["image_id"].tolist(), size, folder=datasets / name / "cache")
        labels = np.array([data.class_names.index(label) for label in data.manifest["label"]])
        side = data.manifest["image_id"].map(sides).to_numpy()
        train, test = (np.flatnonzero(side == item) for item in ("train", "test"))
        p = predict_by_colour(cache.pixels, labels, train_rows=train, score_rows=test, n_classes=len(data.classes))
        right, n = int((p.argmax(axis=1) == labels[test]).sum()), len(test)
        low, high = wilson_interval(right, n)
        bad = np.isin(data.class_names, data.malignant_classes)
        area = auroc(p_malignant(p, bad), bad[labels[test]])
        lines.append(f"| {name} | {n} | {right / n:.3f} [{low:.3f}, {high:.3f}] | {area:.3f} |")
    return "\n".join(lines) + "\n"


PUBLISHED_S2 = (55, 118)
"""S2's published test accuracy, 46.61 %, as images right of images tested."""


def against_published() -> str:
    """Return S2's runs against 55 of 118: the difference with Newcombe's 95 % interval, and the verdict in words.

    The published predictions are not public, so the comparison is unpaired, though the test images are the same.
    Source: Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    from dermkit.metrics.stats.intervals import wilson_interval

    hits, n = PUBLISHED_S2
    share, bounds = hits / n, wilson_interval(hits, n)
    with ROWS.open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["job"].startswith(("S2", "s2")) and r["side"] == "test"]
    lines = ["| job | split | seed | right of 118 | difference to 55/118 | verdict |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["metric"] != "accuracy":
            continue
        value, total = float(row["value"]), int(row["n"])
        own = wilson_interval(round(value * total), total)
        low = value - share - ((value - own[0]) ** 2 + (bounds[1] - share) ** 2) ** 0.5
        high = value - share + ((own[1] - value) ** 2 + (share - bounds[0]) ** 2) ** 0.5
        verdict = "not distinguishable" if low <= 0 <= high else ("better" if low > 0 else "worse")
        lines.append(
            f"| {row['recipe']} | {row['split']} | {row['seed']} | {round(value * total)} | "
            f"{value - share:+.3f} [{low:+.3f}, {high:+.3f}] | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, str] | None) -> str:
    if row is None or row["value"] == "":
        return "not defined"
    interval = f" [{float(row['low']):.3f}, {float(row['high']):.3f}]" if row["low"] else ""
    return f"{float(row['value']):.3f}{interval}"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run")
    runner.add_argument("datasets", type=Path)
    runner.add_argument("weights", type=Path)
    runner.add_argument("--out", type=Path, default=Path("runs"))
    runner.add_argument("--only", default="", help="only jobs whose name holds this text")
    runner.add_argument("--seeds", type=int, default=9, help="at most this many seeds of each job")
    verbs.add_parser("table")
    verbs.add_parser("published")
    verbs.add_parser("colour").add_argument("datasets", type=Path)
    options = parser.parse_args()
    if options.verb == "colour":
        print(colour(options.datasets), end="")
    elif options.verb == "run":
        run(options.datasets, options.weights, options.out, options.only, options.seeds)
    else:
        print(table() if options.verb == "table" else against_published(), end="")


if __name__ == "__main__":
    main()
