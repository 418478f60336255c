"""`train auto` against fixed recipes, fastai, Keras and Ultralytics in the same time; rows go to benchmarks/auto.csv.

    python benchmarks/speed/setup.py --peer fastai keras ultralytics           # their environments, once
    python benchmarks/auto.py data DATASETS
    python benchmarks/auto.py run DATASETS WEIGHTS --out RUNS [--seconds 300] [--only auto fastai] [--seeds 3]
    python benchmarks/auto.py table RUNS

DATASETS holds isic9-118 (benchmarks/strong.py), melanoma10k and ham10000; `data` adds ham-mix, ham10000 with 1,500 of
its nevi. All contenders have the same images, split (one of five folds of `train auto` for validation), MobileNetV2
weights, image size and time, from the start of the process to the saved model. Peers get as many epochs as fit,
measured in a run of one epoch that does not count. Test images are scored afterwards, once for each row. Accuracies are
paired by test image: the interval of a difference is that of 2,000 bootstraps of the images' groups. What each image
was taken for stays in RUNS/scores. Stop and go on at will.
"""

import argparse
import csv
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scale import add_rows, campaign_parsers, commit, machine, read_rows

HERE = Path(__file__).parent
ROWS = HERE / "auto.csv"
HEADER = (
    "date", "commit", "machine", "versions", "dataset", "contender", "seed", "time", "seconds", "epochs",
    "balanced_accuracy", "accuracy", "n", "n_groups", "detail",
)  # fmt: skip
DATASETS = ("isic9-118", "melanoma10k", "ham10000", "ham-mix")
PEERS = ("fastai", "keras", "ultralytics")
FIXED = ("strong-5min", "strong-1h")
N_FOLDS = 5
IMAGE_SIZE = 160


@dataclass(frozen=True)
class Outcome:
    """What a contender reached. predicted: image_id -> class. detail: the recipe that was chosen."""

    seconds: float
    epochs: int
    predicted: dict[str, str]
    versions: str
    detail: str = ""


@dataclass(frozen=True)
class Contest:
    """What all contenders of one data set and seed have in common."""

    dataset: Path
    weights: Path
    out: Path
    seconds: float
    seed: int
    envs: Path

    @property
    def images(self) -> Path:
        """The folder of links to the images, by split and class."""
        return self.out / "images" / f"{self.dataset.name}-s{self.seed}"


def make_data(datasets: Path) -> None:
    """Make ham-mix: another mixture of the classes of ham10000, whole lesions."""
    from dermkit.data.manifest import load_dataset, save_dataset

    ham = load_dataset(datasets / "ham10000")
    manifest = ham.manifest
    rng = np.random.default_rng(0)
    is_nevus = manifest["label"] == "nv"
    nevus_lesions = rng.permutation(np.unique(manifest.loc[is_nevus, "lesion_id"]))
    counts = manifest.loc[is_nevus, "lesion_id"].value_counts().reindex(nevus_lesions).cumsum()
    keep = ~is_nevus | manifest["lesion_id"].isin(counts.index[counts <= 1500])
    folder = datasets / "ham-mix"
    folder.mkdir(exist_ok=True)
    mix = manifest[keep].reset_index(drop=True)
    save_dataset(replace(ham, folder=folder, name="ham-mix", manifest=mix))
    print(mix["label"].value_counts().to_dict())


def split_of(dataset_folder: Path, seed: int) -> pd.DataFrame:
    """Return image_id, split of the first fold of a race with this seed."""
    from dermkit.data.folds import rows_for_fold
    from dermkit.data.manifest import load_dataset
    from dermkit.pipeline.auto_recipes import fold_split
    from dermkit.pipeline.data import resolve_split
    from dermkit.pipeline.dataset_profile import profile_dataset
    from dermkit.recipes.strong import STRONG_1H

    dataset = load_dataset(dataset_folder)
    spec = fold_split(profile_dataset(dataset), N_FOLDS, seed)
    rows: pd.DataFrame = resolve_split(replace(STRONG_1H, split=spec), dataset, None).frame
    return rows_for_fold(rows, 0, N_FOLDS)[["image_id", "split"]]


def link_images(contest: Contest) -> None:
    """Link every image of the split under split, class and its number in the manifest."""
    from dermkit.data.manifest import load_dataset

    dataset = load_dataset(contest.dataset)
    labels = dict(zip(dataset.manifest["image_id"], dataset.manifest["label"], strict=True))
    for name in dataset.class_names:  # a class without images in a split has its folder too
        for split in ("train", "validation", "test"):
            (contest.images / split / name).mkdir(parents=True, exist_ok=True)
    names = {}
    for number, row in enumerate(split_of(contest.dataset, contest.seed).itertuples()):
        source = dataset.image_path(str(row.image_id))
        link = contest.images / str(row.split) / labels[row.image_id] / f"{number:06d}{source.suffix.lower()}"
        names[link.name] = str(row.image_id)
        if not link.exists():
            link.symlink_to(source)
    (contest.images / "names.json").write_text(json.dumps(names))


# Contenders ---------------------------------------------------------------------------------------------------------


def run_auto(contest: Contest) -> Outcome:
    """Train auto, then open the test of what it chose."""
    out = contest.out / f"auto-s{contest.seed}"
    duration = f"{contest.seconds:.0f}s"
    began = time.perf_counter()
    _dermkit(
        "train", "auto", str(contest.dataset), "--time", duration, "--weights", str(contest.weights), "--seed",
        str(contest.seed), "--out", str(out), "--device", "cpu",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    (folder,) = out.glob(f"auto-{contest.dataset.name}-*")
    document = json.loads((folder / "auto.json").read_text())
    chosen = folder / document["chosen"]["folder"]
    _dermkit("evaluate", str(chosen), "--open-test", str(contest.dataset))
    epochs = max(one["recipe"]["phases"][0]["epochs"] for one in document["plan"]["candidates"])
    detail = f"{document['chosen']['name']}: validation {document['chosen']['value']:.3f}"
    return Outcome(seconds, epochs, _predicted(chosen), _our_version(), detail)


def run_fixed(contest: Contest, recipe: str) -> Outcome:
    """Train one recipe on the same split, however long it takes."""
    out = contest.out / f"fixed-s{contest.seed}"
    split = contest.images / "split.csv"
    if not split.exists():
        split_of(contest.dataset, contest.seed).to_csv(split, index=False)
    began = time.perf_counter()
    last_line = _dermkit(
        "train", recipe, str(contest.dataset), "--weights", str(contest.weights), "--seed", str(contest.seed), "--out",
        str(out), "--split", str(split), "--device", "cpu",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return Outcome(seconds, 0, _predicted(Path(last_line).parent), _our_version())


def run_peer(contest: Contest, peer: str) -> Outcome:
    """Find how many epochs fit, then train that many."""
    first = _call_peer(contest, peer, 1)
    left = contest.seconds - first["seconds"]
    epochs = 1 + max(0, int(left / first["seconds_per_epoch"]))
    last = _call_peer(contest, peer, epochs) if epochs > 1 else first
    names = json.loads((contest.images / "names.json").read_text())
    table = pd.read_csv(contest.out / f"{peer}-s{contest.seed}" / "predictions.csv")
    classes = [column for column in table.columns if column != "file"]
    best = table[classes].to_numpy().argmax(axis=1)
    predicted = {names[file]: classes[number] for file, number in zip(table["file"], best, strict=True)}
    return Outcome(last["seconds"], epochs, predicted, last["versions"])


def _call_peer(contest: Contest, peer: str, epochs: int) -> dict[str, Any]:
    out = contest.out / f"{peer}-s{contest.seed}"
    python = contest.envs / peer / "bin" / "python"
    finished = subprocess.run(
        [
            str(python), str(HERE / "timed_peers" / f"{peer}_peer.py"), str(contest.images), str(out), "--weights",
            str(contest.weights), "--epochs", str(epochs), "--size", str(IMAGE_SIZE), "--seed", str(contest.seed),
        ],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answered: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return answered


def _dermkit(*words: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "dermkit.cli", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return finished.stdout.strip().splitlines()[-1]


def _predicted(run: Path) -> dict[str, str]:
    rows = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
    rows = rows[rows["split"] == "test"]
    return dict(zip(rows["image_id"], rows["predicted"], strict=True))


def _our_version() -> str:
    from dermkit import __version__

    return f"dermkit {__version__}"


# Rows -----------------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Run what has no row yet."""
    done = {(row["dataset"], row["contender"], row["seed"], row["time"]) for row in read_rows(ROWS)}
    for seed in range(options.seeds):
        for name in options.sets:
            contest = Contest(
                dataset=options.datasets / name, weights=options.weights, out=options.out / name,
                seconds=options.seconds, seed=seed, envs=options.envs,
            )  # fmt: skip
            link_images(contest)
            for contender in options.only:
                if (name, contender, str(seed), str(options.seconds)) not in done:
                    _run_one(contest, contender)


def _run_one(contest: Contest, contender: str) -> None:
    print(contest.dataset.name, contender, "seed", contest.seed, flush=True)
    if contender == "auto":
        outcome = run_auto(contest)
    elif contender in PEERS:
        outcome = run_peer(contest, contender)
    else:
        outcome = run_fixed(contest, contender)
    truth = _truth(contest)
    truth["predicted"] = truth["image_id"].map(outcome.predicted)
    if truth["predicted"].isna().any():
        raise SystemExit(f"{contender}: {int(truth['predicted'].isna().sum())} test images without a prediction")
    file = scores_file(contest.out.parent, contest.dataset.name, contender, contest.seed, contest.seconds)
    file.parent.mkdir(exist_ok=True)
    truth[["image_id", "group", "label", "predicted"]].to_csv(file, index=False, quoting=csv.QUOTE_MINIMAL)
    hits = (truth["label"] == truth["predicted"]).to_numpy()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    balanced = balanced_accuracy(truth["label"].to_numpy(), hits)
    add_rows(ROWS, HEADER, [(
        today, commit(), machine(), outcome.versions, contest.dataset.name, contender, contest.seed, contest.seconds,
        round(outcome.seconds, 1), outcome.epochs, balanced, float(hits.mean()), len(truth), truth["group"].nunique(),
        outcome.detail,
    )])  # fmt: skip
    print(f"  {outcome.seconds:.0f} s, {outcome.epochs} epochs, balanced accuracy {balanced:.3f}", flush=True)


def scores_file(runs: Path, dataset: str, contender: str, seed: int, seconds: float) -> Path:
    """Return where it stands what a contender took each test image for."""
    return runs / "scores" / f"{dataset}-{contender}-s{seed}-{seconds:.0f}s.csv"


def _truth(contest: Contest) -> pd.DataFrame:
    """Return image_id, label and group of the test images."""
    from dermkit.data.groups import id_groups
    from dermkit.data.manifest import load_dataset

    manifest = load_dataset(contest.dataset).manifest
    manifest = manifest.assign(group=id_groups(manifest))
    rows = split_of(contest.dataset, contest.seed)
    test = rows.loc[rows["split"] == "test", "image_id"]
    return manifest[manifest["image_id"].isin(test)][["image_id", "label", "group"]].reset_index(drop=True)


def balanced_accuracy(labels: NDArray[Any], hits: NDArray[np.bool_]) -> float:
    """Return the mean recall over the classes that the labels hold."""
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


# Table ----------------------------------------------------------------------------------------------------------------


def differences(first: pd.DataFrame, second: pd.DataFrame) -> tuple[float, float, float]:
    """Return ours less the other's balanced accuracy with its 95 % interval; rows: one image and seed each."""
    joined = first.merge(second, on=["image_id", "seed", "label", "group"], suffixes=("", "_other"))
    labels = joined["label"].to_numpy()
    hits = (joined["predicted"] == joined["label"]).to_numpy()
    other = (joined["predicted_other"] == joined["label"]).to_numpy()
    rng = np.random.default_rng(0)
    _, groups = np.unique(joined["group"].to_numpy(), return_inverse=True)
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([members[number] for number in rng.integers(len(members), size=len(members))])
        drawn.append(balanced_accuracy(labels[rows], hits[rows]) - balanced_accuracy(labels[rows], other[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return balanced_accuracy(labels, hits) - balanced_accuracy(labels, other), float(low), float(high)


def table(runs: Path) -> Iterator[str]:
    """Yield the figures as Markdown: of each data set, every contender beside auto."""
    yield "| data | contender | seeds | seconds | epochs | balanced accuracy | auto less it [95 %] | n |"
    yield "|---|---|---|---|---|---|---|---|"
    rows = pd.DataFrame(read_rows(ROWS))
    for _, group in rows.groupby(["dataset", "time"], sort=False):
        ours, dataset, limit = group[group["contender"] == "auto"], group["dataset"].iloc[0], group["time"].iloc[0]
        for contender, part in group.groupby("contender", sort=False):
            numbers = part[["seconds", "epochs", "balanced_accuracy"]].astype(float)
            text = ""
            if contender != "auto" and len(ours):
                value, low, high = differences(_scores(runs, ours), _scores(runs, part))
                text = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            spread = numbers["balanced_accuracy"]
            yield (
                f"| {dataset} | {contender} | {len(part)} | {numbers['seconds'].mean():.0f} of {float(limit):.0f} "
                f"| {numbers['epochs'].mean():.0f} | {spread.mean():.3f} ({spread.min():.3f} to {spread.max():.3f}) "
                f"| {text} | {part['n'].iloc[0]} |"
            )


def _scores(runs: Path, rows: pd.DataFrame) -> pd.DataFrame:
    frames = []
    for row in rows.to_dict("records"):
        file = scores_file(runs, row["dataset"], row["contender"], int(row["seed"]), float(row["time"]))
        frames.append(pd.read_csv(file, dtype=str).assign(seed=str(row["seed"])))
    return pd.concat(frames)


def main() -> None:
    """Parse and run."""
    parser, runner, table_parser = campaign_parsers(__doc__, seeds=3)
    runner.add_argument("--seconds", type=float, default=300.0)
    runner.add_argument("--sets", nargs="+", default=list(DATASETS))
    runner.add_argument("--only", nargs="+", default=["auto", *PEERS, *FIXED])
    runner.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "dermkit-peers")
    table_parser.add_argument("runs", type=Path)
    options = parser.parse_args()
    if options.verb == "data":
        make_data(options.datasets)
    elif options.verb == "run":
        run(options)
    else:
        print("\n".join(table(options.runs)))


if __name__ == "__main__":
    main()
