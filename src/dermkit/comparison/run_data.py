"""What a comparison reads of each run, and the image ids by which runs of other data sets and tables are paired."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from dermkit.comparison.entries import ComparisonEntry
from dermkit.comparison.image_overlap import common_ids, ids_of_equal_files, is_without_dataset
from dermkit.comparison.repeated import ResampledRun, resample_run
from dermkit.data.manifest import LesionClass
from dermkit.runs.folder import RunFolder
from dermkit.runs.predictions import to_scored_set

BOOTSTRAP_SEED = 0


@dataclass(frozen=True, eq=False)
class RunData:
    """A run's classes, predictions, groups of images, data set, and number of training images (0 if unknown).

    is_unnamed: whether it is a table without a data set, whose images are known by their ids alone. dataset_hash: that
    of the other runs then, if they are of one data set, else "". images_root: None where the images are not at hand.
    is_paired_by_file: whether image ids were replaced by those of equal files of another data set.
    """

    name: str
    classes: tuple[LesionClass, ...]
    predictions: pd.DataFrame
    groups: Mapping[str, int] | None
    dataset_hash: str
    n_train: int
    is_unnamed: bool
    images_root: Path | None
    is_paired_by_file: bool = False

    def split_rows(self, split: str) -> pd.DataFrame:
        """Return the predictions of one split."""
        return self.predictions[self.predictions["split"] == split]

    def files(self) -> dict[str, Path | None]:
        """Return image id -> file below `images_root`, None for one outside of it; {} without the images."""
        if self.images_root is None:
            return {}
        root = self.images_root.resolve()
        paths = {
            image_id: (root / path).resolve()
            for image_id, path in zip(self.predictions["image_id"], self.predictions["path"], strict=True)
        }
        return {image_id: path if path.is_relative_to(root) else None for image_id, path in paths.items()}


@dataclass(frozen=True, eq=False)
class EntryData:
    """A comparison entry with its runs' data; bootstrap metrics are computed on first use."""

    entry: ComparisonEntry
    runs: tuple[RunData, ...]
    resampled_runs: dict[tuple[str, tuple[str, ...], bytes], ResampledRun] = field(default_factory=dict)

    def runs_by_images(self, split: str) -> dict[frozenset[str], list[RunData]]:
        """Return image ids -> the runs that scored just these: one set for repeated seeds, one per fold for folds."""
        runs_by_images: dict[frozenset[str], list[RunData]] = {}
        for run in self.runs:
            runs_by_images.setdefault(frozenset(run.split_rows(split)["image_id"]), []).append(run)
        return runs_by_images

    def resample(
        self, run: RunData, split: str, image_ids: tuple[str, ...], groups: Mapping[str, int] | None
    ) -> ResampledRun:
        """Return a run's metrics on resamples of the shared images, computed once."""
        rows = run.split_rows(split).set_index("image_id").loc[list(image_ids)].reset_index()
        # Runs may order their classes differently; the resampled groups must be the same.
        scored_set = to_scored_set(rows, sorted(run.classes, key=lambda lesion_class: lesion_class.name), groups)
        key = (run.name, image_ids, scored_set.groups.tobytes())
        if key not in self.resampled_runs:
            self.resampled_runs[key] = resample_run(scored_set, seed=BOOTSTRAP_SEED)
        return self.resampled_runs[key]


def read_entry(entry: ComparisonEntry) -> EntryData:
    return EntryData(
        entry, tuple(_read_run_data(name, run) for name, run in zip(entry.run_names, entry.runs, strict=True))
    )


def _read_run_data(name: str, folder: Path) -> RunData:
    run = RunFolder(folder)
    n_train = run.split_json.get("counts", {}).get("train", 0)
    is_unnamed = is_without_dataset(folder)
    dataset_hash = "" if is_unnamed else run.dataset_hash
    return RunData(
        name, run.classes, run.predictions, run.groups(), dataset_hash, int(n_train), is_unnamed, run.images_root()
    )


def pair_images(entry_data: Sequence[EntryData]) -> list[EntryData]:
    """Return the entries with image ids that are equal for equal images, where that can be known.

    Runs of one data set have them. A table without a data set is paired by id with the other tables, and with the runs
    of one data set (see `common_ids`). Runs of several data sets are paired by equal files, if these are at hand.
    """
    runs = [run for data in entry_data for run in data.runs]
    dataset_hashes = list(dict.fromkeys(run.dataset_hash for run in runs if not run.is_unnamed))
    if len(dataset_hashes) > 1:
        return (
            list(entry_data) if any(run.is_unnamed for run in runs) else _pair_by_file(entry_data, dataset_hashes)
        )
    if not any(run.is_unnamed for run in runs):
        return list(entry_data)
    ids_of_run = {
        run.name: names
        for run, names in zip(runs, common_ids([run.predictions["image_id"] for run in runs]), strict=True)
    }
    dataset_hash = next(iter(dataset_hashes), "")
    return [
        replace(data, runs=tuple(_with_ids(run, ids_of_run[run.name], dataset_hash) for run in data.runs))
        for data in entry_data
    ]


def _pair_by_file(entry_data: Sequence[EntryData], dataset_hashes: Sequence[str]) -> list[EntryData]:
    runs = [run for data in entry_data for run in data.runs]
    files_by_dataset: dict[str, dict[str, Path | None]] = {dataset_hash: {} for dataset_hash in dataset_hashes}
    for run in runs:
        files_by_dataset[run.dataset_hash] |= run.files()
    ids = ids_of_equal_files(list(files_by_dataset.values()))
    if ids is None:
        return list(entry_data)
    ids_of_dataset = dict(zip(dataset_hashes, ids, strict=True))
    return [
        replace(
            data,
            runs=tuple(
                replace(
                    _with_ids(run, ids_of_dataset[run.dataset_hash], dataset_hashes[0]), is_paired_by_file=True
                )
                for run in data.runs
            ),
        )
        for data in entry_data
    ]


def _with_ids(run: RunData, names: Mapping[str, str], dataset_hash: str) -> RunData:
    predictions = run.predictions.assign(image_id=run.predictions["image_id"].map(names))
    groups = None if run.groups is None else {names.get(name, name): group for name, group in run.groups.items()}
    return replace(run, predictions=predictions, groups=groups, dataset_hash=dataset_hash)
