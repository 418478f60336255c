"""Measure tuning: kills of processes that share a study, and whether the corrected value holds the truth.

    python benchmarks/tuning.py kills       30 trials over two processes and one journal, five kills (about 2 minutes)
    python benchmarks/tuning.py optimism    simulated studies whose truth is known (about 3 minutes)

Each run appends rows to tuning.csv; tuning.md tells them.
"""

import csv
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from dermkit.data.importers.run import import_dataset
from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.metrics.stats.selection import SelectedValue, correct_selection
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.experiments import DEMO, head_phase
from dermkit.recipes.schema import save_recipe

TABLE = Path(__file__).with_suffix(".csv")
HEADER = ("date", "commit", "python", "what", "setting", "n", "figure", "value")
Floats = NDArray[np.float64]


def append_rows(what: str, setting: str, n: int, figures: dict[str, Any]) -> None:
    """Append a row a figure to tuning.csv and print it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=TABLE.parent
    ).stdout.strip()
    is_new = not TABLE.exists()
    with TABLE.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if is_new:
            writer.writerow(HEADER)
        for figure, value in figures.items():
            row = (time.strftime("%Y-%m-%d"), commit, platform.python_version(), what, setting, n, figure, value)
            writer.writerow(row)
            print(what, setting, n, figure, value, flush=True)


# Kills ----------------------------------------------------------------------------------------------------------------


def kill_campaign(
    recipe: Path, dataset: Path, out: Path, *, n_trials: int, n_kills: int, seed: int
) -> dict[str, Any]:
    """Share a study between two processes, kill one of them at random moments and start it again; returns counts."""
    generator = random.Random(seed)
    command = [
        sys.executable, "-m", "dermkit.cli", "tune", str(recipe), str(dataset), "--out", str(out), "--device", "cpu",
        "--trials", str(n_trials), "--no-final",
    ]  # fmt: skip
    start, n_killed = time.monotonic(), 0
    processes = [_start(command, out, number) for number in range(2)]
    while n_killed < n_kills:
        time.sleep(generator.uniform(5.0, 9.0))
        running = [number for number, process in enumerate(processes) if process.poll() is None]
        if not running:
            break
        victim = generator.choice(running)
        processes[victim].kill()
        processes[victim].wait()
        n_killed += 1
        processes[victim] = _start(command, out, victim)
    codes = [process.wait(timeout=900) for process in processes]
    return {**_counts(out), "kills": n_killed, "exit_codes": codes, "seconds": round(time.monotonic() - start)}


def _start(command: list[str], out: Path, number: int) -> "subprocess.Popen[bytes]":
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"process-{number}.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _counts(out: Path) -> dict[str, int]:
    """Return what tune.csv says: finished trials, those trained twice, and what is left."""
    table = pd.read_csv(next(out.glob("*/tune.csv")), keep_default_na=False)
    finished = table[table["state"].isin(["complete", "pruned"])]
    trained = finished[finished["same_as"].astype(str) == ""]
    return {
        "finished": len(finished),
        "trained_twice": int(trained["runs"].duplicated().sum()),
        "running": int(table["state"].isin(["running", "waiting"]).sum()),
        "repeated": int((finished["repeats"].astype(str) != "").sum()),
    }


def measure_kills() -> None:
    """Run the campaign on made images and a frozen small CNN."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = root / "images"
        make_dataset_folder(
            images, lesions_per_class={"melanoma": 60, "nevus": 60}, photos_per_lesion=(1, 1), size=48, seed=1,
            given_test=0.3,
        )  # fmt: skip
        dataset = import_dataset("folder", images, out=root / "data").dataset.folder
        recipe = replace(
            DEMO, name="frozen", image=replace(DEMO.image, size=24), augment=NO_AUGMENTATION,
            model=replace(DEMO.model, backbone="dermkit/cnn-s1", hidden=(8,)), phases=(head_phase(20),),
            optim=replace(DEMO.optim, batch_size=8),
        )  # fmt: skip
        save_recipe(recipe, root / "frozen.json")
        figures = kill_campaign(root / "frozen.json", dataset, root / "runs", n_trials=30, n_kills=5, seed=0)
    append_rows("kills", "two processes, one journal, five kills", 30, figures)


# Optimism -------------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Floats] = {
    "30 equal": np.full(30, 0.8),
    "one of 30 better by .03": np.append(np.full(29, 0.8), 0.83),
    "one of 30 better by .10": np.append(np.full(29, 0.75), 0.85),
    "30 from .70 to .85": np.linspace(0.7, 0.85, 30),
}


def corrected_study(accuracies: Floats, n: int, correlation: float, rng: np.random.Generator) -> SelectedValue:
    """Draw right and wrong answers of configurations on n images, and correct the best one's accuracy."""
    latent = np.sqrt(correlation) * rng.normal(size=(n, 1))
    latent = latent + np.sqrt(1 - correlation) * rng.normal(size=(n, len(accuracies)))
    correct = (latent < norm.ppf(accuracies)).astype(np.float64)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=400).astype(np.float64)
    left_out = (weights == 0).astype(np.float64)
    return correct_selection(
        correct.mean(axis=0), weights @ correct / n, left_out @ correct / left_out.sum(axis=1, keepdims=True),
        higher_is_better=True, n=n, n_units=n, method="simulated",
    )  # fmt: skip


def measure_optimism(n_studies: int = 400) -> None:
    """Append coverage and bias of the corrected value, and how much too good the plain one is."""
    rng = np.random.default_rng(0)
    for setting, accuracies in SETTINGS.items():
        for correlation in (0.0, 0.5, 0.9):
            for n in (100, 400):
                studies = [corrected_study(accuracies, n, correlation, rng) for _ in range(n_studies)]
                truths = np.array([accuracies[study.best] for study in studies])
                bounds = np.array([study.corrected.ci95 for study in studies])
                covered = (bounds[:, 0] <= truths) & (truths <= bounds[:, 1])
                values = np.array([study.corrected.value for study in studies], dtype=np.float64)
                append_rows("optimism", f"{setting}, correlation {correlation:g}", n, {
                    "plain_too_good": round(float(np.mean([study.value for study in studies] - truths)), 4),
                    "corrected_too_good": round(float(np.mean(values - truths)), 4),
                    "coverage": round(float(covered.mean()), 4),
                })  # fmt: skip


if __name__ == "__main__":
    {"kills": measure_kills, "optimism": measure_optimism}[sys.argv[1]]()
