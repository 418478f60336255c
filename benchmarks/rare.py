"""Ways to train on a rare malignant class, 1 to 50: what each gains in sensitivity and costs elsewhere.

    python benchmarks/rare.py data DATASETS
    python benchmarks/rare.py run DATASETS WEIGHTS --out RUNS [--seeds 3]
    python benchmarks/rare.py table

`data` makes two data sets: rare-made of drawn lesions, and rare-ham of the melanomas and nevi of DATASETS/ham10000,
split by lesion. Both train on 50 benign images for each malignant one; their test images hold many more malignant ones,
so that a sensitivity rests on hundreds. Frozen MobileNetV2 features, the same for all ways and seeds; every way changes
one field of the recipe. Sensitivity and specificity are those of the more probable class. Calibration is that of the
probability of malignant as trained, on test images weighted to the mixture of the training, 1 to 50. Intervals:
sensitivity, specificity and AUROC from metrics.json; calibration by 1,000 bootstraps of the test images' groups.
"""

import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scale import add_rows, campaign_parsers, commit, machine, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "rare.csv"
HEADER = ("date", "commit", "machine", "dataset", "way", "seed", "command", "metric", "value", "low", "high", "n")
BENIGN_PER_MALIGNANT = 50
WAYS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "class weights": ("--set", "optim.class_weights=balanced"),
    "square-root class weights": ("--set", "optim.class_weights=square_root"),
    "balanced sampling": ("--set", "optim.sampling=balanced"),
    "square-root sampling": ("--set", "optim.sampling=square_root"),
    "focal loss, gamma 2": ("--set", "optim.focal_gamma=2"),
    "adjusted logits": ("--set", "optim.logit_adjustment=1"),
    "SMOTE": ("--smote",),
}
COMMON = (
    "--set", "split.scheme=given", "--set", "split.test=0", "--set", "split.validation=0.25", "--set", "augment=none",
    "--set", "phases.0.views=0", "--set", "test_views=identity", "--device", "cpu", "--resume",
)  # fmt: skip
FROM_METRICS = ("sensitivity", "specificity", "balanced_accuracy", "auroc")


def make_data(datasets: Path) -> None:
    """Make rare-made and rare-ham."""
    import dermkit as dk
    from dermkit.data.manifest import load_dataset, save_dataset

    source = datasets / "rare-made-images"
    _draw(source)
    dk.import_dataset("folder", source, out=datasets / "rare-made")
    ham = load_dataset(datasets / "ham10000")
    folder = datasets / "rare-ham"
    folder.mkdir(exist_ok=True)
    classes = tuple(one for one in ham.classes if one.diagnosis in ("melanoma", "nevus"))
    manifest = _rare_manifest(ham.manifest[ham.manifest["label"].isin([one.name for one in classes])], classes)
    save_dataset(replace(ham, folder=folder, name="rare-ham", manifest=manifest, classes=classes))
    print(manifest.groupby(["given_split", "label"]).size())


def _draw(source: Path) -> None:
    """Draw the made images, unless they are there."""
    from dermkit.data.synthetic.dataset import make_dataset_folder

    for side, counts, seed in (
        ("train", {"benign": 2000, "malignant": 40}, 1),
        ("test", {"benign": 500, "malignant": 300}, 2),
    ):
        if (source / side).exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "made"
            make_dataset_folder(made, lesions_per_class=counts, photos_per_lesion=(1, 1), seed=seed)
            for file in made.rglob("*.jpg"):
                (source / side / file.parent.name).mkdir(parents=True, exist_ok=True)
                (source / side / file.parent.name / f"{side}-{file.name}").write_bytes(file.read_bytes())


def _rare_manifest(manifest: pd.DataFrame, classes: Any) -> pd.DataFrame:
    """Return half the nevi for training with one melanoma for every 50 of them, and the others for the test."""
    malignant = [one.name for one in classes if one.malignancy == "malignant"]
    rng = np.random.default_rng(0)
    is_malignant = manifest["label"].isin(malignant).to_numpy()
    lesions = pd.Series(rng.permutation(np.unique(manifest["lesion_id"])))
    order = manifest["lesion_id"].map({lesion: number for number, lesion in lesions.items()})
    benign_lesions = order[~is_malignant]
    is_train = (~is_malignant) & (order <= benign_lesions.median()).to_numpy()
    n_malignant = int(is_train.sum()) // BENIGN_PER_MALIGNANT
    chosen = order[is_malignant].sort_values(kind="stable").index[:n_malignant]
    train_lesions = set(manifest.loc[is_train, "lesion_id"]) | set(manifest.loc[chosen, "lesion_id"])
    given_split = np.where(manifest["lesion_id"].isin(train_lesions), "train", "test")
    return manifest.assign(given_split=given_split).reset_index(drop=True)


def run(datasets: Path, weights: Path, out: Path, seeds: int) -> None:
    """Run what has no rows yet."""
    done = {(row["dataset"], row["way"], row["seed"]) for row in read_rows(ROWS)}
    for dataset in ("rare-made", "rare-ham"):
        for way, words in WAYS.items():
            for seed in range(seeds):
                if (dataset, way, str(seed)) not in done:
                    add_rows(ROWS, HEADER, list(_run_one(datasets, weights, out, dataset, way, words, seed)))


def _run_one(
    datasets: Path, weights: Path, out: Path, dataset: str, way: str, words: tuple[str, ...], seed: int
) -> Iterator[tuple[Any, ...]]:
    nothing = () if way == "adjusted logits" else ("--set", "optim.logit_adjustment=0")
    options = (*COMMON, *nothing, *words, "--seed", str(seed))
    finished = subprocess.run(
        [
            sys.executable, "-m", "dermkit.cli", "train", "strong-5min", str(datasets / dataset), "--weights",
            str(weights), "--out", str(out), *options,
        ],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    folder = Path(finished.stdout.strip().splitlines()[-1]).parent
    command = " ".join(["dermkit train strong-5min", dataset, "--weights", weights.name, *options])
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    common = (today, commit(), machine(), dataset, way, seed, command)
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in FROM_METRICS:
        estimate = metrics["splits"]["test"]["metrics"][name]
        yield (*common, name, estimate["value"], *(estimate["ci95"] or ("", "")), estimate["n"])
    yield from ((*common, *row) for row in _calibration_rows(folder, metrics["positive"]))
    print(dataset, way, seed, flush=True)


def _calibration_rows(folder: Path, malignant: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the mean probability of malignant over its frequency, and the Brier score, both at 1 to 50."""
    rows = pd.read_csv(folder / "predictions.csv")
    rows = rows[rows["split"] == "test"].merge(pd.read_csv(folder / "groups.csv"), on="image_id")
    p = rows[[f"p_{name}" for name in malignant]].sum(axis=1).to_numpy()
    y = rows["label"].isin(malignant).to_numpy()
    figures = _figures(p, y)
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(rows["group"] == group) for group in rows["group"].unique()]
    drawn = []
    for _ in range(1000):
        picks = np.concatenate([members[number] for number in rng.integers(len(members), size=len(members))])
        drawn.append(_figures(p[picks], y[picks]))
    for number, name in enumerate(("expected_over_observed", "brier")):
        low, high = np.quantile([one[number] for one in drawn], [0.025, 0.975])
        yield (name, figures[number], low, high, len(y))


def _figures(p: NDArray[np.float64], y: NDArray[np.bool_]) -> tuple[float, float]:
    weights = np.where(y, (~y).sum() / BENIGN_PER_MALIGNANT / max(1, y.sum()), 1.0)
    mean = float(np.average(p, weights=weights))
    return mean * (BENIGN_PER_MALIGNANT + 1), float(np.average((p - y) ** 2, weights=weights))


def table() -> str:
    """Return the figures as Markdown: mean over the seeds, and the interval of the first seed."""
    frame = pd.DataFrame(read_rows(ROWS)).astype({"value": float, "seed": int, "n": int})
    metrics = (*FROM_METRICS, "expected_over_observed", "brier")
    lines = ["| data | way | " + " | ".join(metrics) + " |", "|" + "---|" * (len(metrics) + 2)]
    for (dataset, way), group in frame.groupby(["dataset", "way"], sort=False):
        cells = []
        for metric in metrics:
            values = group[group["metric"] == metric].sort_values("seed")
            first = values.iloc[0]
            cells.append(f"{values['value'].mean():.3f} [{float(first['low']):.3f}, {float(first['high']):.3f}]")
        lines.append(f"| {dataset} | {way} | " + " | ".join(cells) + " |")
    first_rows = frame.drop_duplicates(["dataset", "metric"])
    counts = "; ".join(f"{row.dataset} {row.metric} {row.n}" for row in first_rows.itertuples())
    return "\n".join(lines) + f"\n\nn: {counts}\n"


def main() -> None:
    """Parse and run."""
    parser, _, _ = campaign_parsers(__doc__, seeds=3)
    options = parser.parse_args()
    if options.verb == "data":
        make_data(options.datasets)
    elif options.verb == "run":
        run(options.datasets, options.weights, options.out, options.seeds)
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
