"""The verdict on made scores: false warnings where they are sound, and faults named. Images: planted_faults.py.

    python benchmarks/planted_scores.py run [--seeds 20]
    python benchmarks/planted_scores.py table

A score is one normal feature, 2.5 standard deviations apart between malignant and other lesions, and its probability is
calibrated by construction; 400 test images, half of them malignant, four skin types. A rule has a feature of its own. A
fault changes one thing. A row is appended for each seed and fault; what has a row is not run again.
"""

import argparse
import datetime
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.data.manifest import LesionClass
from dermkit.evaluation.evaluate import EvaluationInput, evaluate_predictions
from dermkit.runs.belief import Belief, judge_belief
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import METRICS, RUN
from dermkit.runs.predictions import prediction_columns
from dermkit.runs.verdict import judge_run
from scale import add_rows, commit, machine, read_rows

ROWS = Path(__file__).parent / "planted_scores.csv"
HEADER = ("date", "commit", "machine", "fault", "seed", "verdict", "named", "codes")
CLASSES = (LesionClass("melanoma", "melanoma", "malignant"), LesionClass("nevus", "nevus", "benign"))
NAMES = [one.name for one in CLASSES]
N, SIGNAL = 400, 2.5
FAULTS = {
    "sound": "", "colour shortcut": "image_blind", "source shortcut": "image_blind", "failing group": "group",
    "too sure": "calibration", "other prevalence": "calibration", "leaked lesions": "leak",
}  # fmt: skip
"""Fault -> the code of the doubt that names it."""


def predictions(rng: np.random.Generator, fault: str, signal: float, groups: np.ndarray) -> pd.DataFrame:
    """Return a table of predictions of `N` test images."""
    share = 0.15 if fault == "other prevalence" else 0.5
    is_malignant = np.arange(N) < share * N
    centre = np.where(is_malignant, signal, -signal) / 2
    if fault == "failing group":
        centre = np.where(groups == "VI", centre * 0.1, centre)
    p = 1 / (1 + np.exp(-(3.0 if fault == "too sure" else 1.0) * signal * rng.normal(centre, 1.0)))
    rows = [
        [f"i{row}", f"i{row}.jpg", NAMES[int(not ill)], "test", "", "", NAMES[int(one < 0.5)], one, 1 - one]
        for row, (ill, one) in enumerate(zip(is_malignant, p, strict=True))
    ]
    return pd.DataFrame(rows, columns=prediction_columns(NAMES))


def judge(fault: str, seed: int) -> Belief:
    """Make scores, evaluate and judge them."""
    rng = np.random.default_rng([seed, list(FAULTS).index(fault)])
    groups = np.array(["I", "III", "V", "VI"])[np.arange(N) % 4]
    prevalence = fault if fault == "other prevalence" else ""
    signals = {"colour_histogram": 0.6, "source": 0.1, "border": 0.2}
    if fault.endswith("shortcut"):
        signals["source" if fault.startswith("source") else "colour_histogram"] = SIGNAL
    net = predictions(rng, fault, SIGNAL, groups)
    attributes = pd.DataFrame({"age": "", "sex": "", "site": "", "skin_type": groups}, index=net["image_id"])
    metrics = evaluate_predictions(
        EvaluationInput(
            net, classes=CLASSES, groups=None, train_counts=dict.fromkeys(NAMES, 500), attributes=attributes,
            rule_predictions={name: predictions(rng, prevalence, one, groups) for name, one in signals.items()},
        )
    )  # fmt: skip
    leaks = {"n": N, "total": 30 if fault == "leaked lesions" else 0}
    with tempfile.TemporaryDirectory() as scratch:
        METRICS.write(Path(scratch), {**metrics, "leaks": leaks})
        RUN.write(Path(scratch), {"split": {"scheme": "given"}})
        folder = RunFolder(Path(scratch))
        return judge_belief(folder, judge_run(folder), [])


def run(seeds: int) -> None:
    """Judge what has no row yet."""
    done = {(row["fault"], row["seed"]) for row in read_rows(ROWS)}
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    for seed in range(seeds):
        for fault, code in FAULTS.items():
            if (fault, str(seed)) not in done:
                belief = judge(fault, seed)
                codes = [doubt.code for doubt in belief.reasons]
                row = (today, commit(), machine(), fault, seed, belief.word, int(code in codes), " ".join(codes))
                add_rows(ROWS, HEADER, [row])
                print(fault, seed, belief.word, *codes, flush=True)


def table() -> str:
    """Return the counts as Markdown."""
    frame = pd.DataFrame(read_rows(ROWS))
    lines = ["| scores | seeds | named | do not believe | believe with care | believe |", "|" + "---|" * 6]
    for fault, group in frame.groupby("fault", sort=False):
        named = str(int(group["named"].astype(int).sum())) if FAULTS[str(fault)] else ""
        words = [
            int((group["verdict"] == word).sum()) for word in ("do not believe", "believe with care", "believe")
        ]
        lines.append(f"| {fault} | {len(group)} | {named} | " + " | ".join(map(str, words)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    if options.verb == "run":
        run(options.seeds)
    else:
        sys.stdout.write(table())


if __name__ == "__main__":
    main()
