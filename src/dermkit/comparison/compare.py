"""Comparison of runs and recipes: every metric with its interval, and on the same images a test of each difference.

Runs on the same images are compared pairwise: interval, test corrected for multiplicity, verdict. Otherwise nothing is
tested, and the reason is given. Repeated trainings of a recipe are compared as a sample of what the recipe gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.comparison.disagreements import disagreement_table
from dermkit.comparison.entries import ComparisonEntry, group_runs
from dermkit.comparison.image_overlap import common_ids, describe_shared_images, is_without_dataset, pairing_note
from dermkit.comparison.leaderboard import leaderboard, wide_table
from dermkit.comparison.paired import correct_with_holm, paired_differences
from dermkit.comparison.repeated import (  # fmt: skip
    ResampledRun,
    fold_differences,
    fold_variance_components,
    metric_values,
    resample_run,
    training_differences,
    variance_components,
)
from dermkit.comparison.variance import VarianceComponents
from dermkit.comparison.verdict import Difference, verdict
from dermkit.data.manifest import LesionClass
from dermkit.runs.folder import RunFolder
from dermkit.runs.predictions import to_scored_set

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class EntryPair:
    """Two entries compared on one split.

    n: images that both scored. differences: empty if `reason` says why nothing is tested. design: "runs", "trainings"
    (repeated, on the same images) or "folds".
    """

    first: str
    second: str
    split: str
    n: int
    differences: tuple[Difference, ...]
    reason: str = ""
    design: str = "runs"

    def sentences(self) -> list[str]:
        """Return the verdict on every metric, or why there is none."""
        if self.reason:
            return [f"{self.first} and {self.second} on {self.split}: {self.reason}."]
        return [verdict(difference, self.first, self.second) for difference in self.differences]


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    entries: the runs and recipes. table: a row per run or recipe, split and metric (`LEADERBOARD_COLUMNS`).
    same_images: every split -> whether all scored the same images. image_texts: every split -> what is said of that.
    pairs: every two entries on every split, so none for a single recipe. disagreements: a split on which all runs share
    images -> those that some runs have right and others wrong, with all predictions. components: every repeated recipe
    -> split on which its runs are comparable -> metric. pairing_note: how tables without a data set were paired, "" for
    others. Without runs (published figures alone) it is `NO_COMPARISON`, and all are empty.
    """

    entries: tuple[ComparisonEntry, ...]
    table: pd.DataFrame
    same_images: Mapping[str, bool]
    pairs: tuple[EntryPair, ...]
    disagreements: Mapping[str, pd.DataFrame]
    components: Mapping[str, Mapping[str, Mapping[str, VarianceComponents]]]
    image_texts: Mapping[str, str] = field(default_factory=dict)
    pairing_note: str = ""

    @property
    def notes(self) -> list[str]:
        """Return notes on how runs were grouped, and on how images of tables without a data set were paired."""
        return [note for note in (*(entry.note for entry in self.entries), self.pairing_note) if note]

    @property
    def folders(self) -> list[Path]:
        """Return all runs that were read."""
        return [run for entry in self.entries for run in entry.runs]

    def wide_table(self, metrics: Sequence[str], *, split: str) -> pd.DataFrame:
        """Return one row per run or group, one text column per metric: `0.466 [0.379, 0.556], n 118`."""
        return wide_table(self.table, metrics, split=split)


NO_COMPARISON = Comparison((), leaderboard(()), {}, (), {}, {})


@dataclass(frozen=True, eq=False)
class _RunData:
    """A run's classes, predictions, groups of images, data set, and number of training images (0 if unknown).

    is_unnamed: whether it is a table without a data set, whose images are known by their ids alone. dataset_hash: that
    of the other runs then, if they are of one data set, else "".
    """

    name: str
    classes: tuple[LesionClass, ...]
    predictions: pd.DataFrame
    groups: Mapping[str, int] | None
    dataset_hash: str
    n_train: int
    is_unnamed: bool = False

    def split_rows(self, split: str) -> pd.DataFrame:
        """Return the predictions of one split."""
        return self.predictions[self.predictions["split"] == split]


@dataclass(frozen=True, eq=False)
class _EntryData:
    """A comparison entry with its runs' data; bootstrap metrics are computed on first use."""

    entry: ComparisonEntry
    runs: tuple[_RunData, ...]
    resampled_runs: dict[tuple[str, tuple[str, ...], bytes], ResampledRun] = field(default_factory=dict)

    def runs_by_images(self, split: str) -> dict[frozenset[str], list[_RunData]]:
        """Return image ids -> the runs that scored just these: one set for repeated seeds, one per fold for folds."""
        runs_by_images: dict[frozenset[str], list[_RunData]] = {}
        for run in self.runs:
            runs_by_images.setdefault(frozenset(run.split_rows(split)["image_id"]), []).append(run)
        return runs_by_images

    def resample(
        self, run: _RunData, split: str, image_ids: tuple[str, ...], groups: Mapping[str, int] | None
    ) -> ResampledRun:
        """Return a run's metrics on resamples of the shared images, computed once."""
        rows = run.split_rows(split).set_index("image_id").loc[list(image_ids)].reset_index()
        # Runs may order their classes differently; the resampled groups must be the same.
        scored_set = to_scored_set(rows, sorted(run.classes, key=lambda lesion_class: lesion_class.name), groups)
        key = (run.name, image_ids, scored_set.groups.tobytes())
        if key not in self.resampled_runs:
            self.resampled_runs[key] = resample_run(scored_set, seed=BOOTSTRAP_SEED)
        return self.resampled_runs[key]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Compare evaluated runs, or folders of repeats; raises `UsageError` for fewer than two runs, `DataError` for none.

    `entries.group_runs` decides which runs are compared as repeated trainings of one recipe.
    """
    comparison_entries = group_runs(runs)
    table = leaderboard(comparison_entries)
    entry_data = _pair_unnamed_tables([_read_entry(entry) for entry in comparison_entries])
    run_data = [run for data in entry_data for run in data.runs]
    splits = list(dict.fromkeys(split for run in run_data for split in run.predictions["split"]))
    pairs = [
        _compare_entries(*two_entries, split) for split in splits for two_entries in combinations(entry_data, 2)
    ]
    same_images = {split: len({_scored_images(data, split) for data in entry_data}) == 1 for split in splits}
    return Comparison(
        entries=comparison_entries,
        table=table,
        same_images=same_images,
        image_texts={
            split: _describe_split(entry_data, pairs, split, is_same=is_same)
            for split, is_same in same_images.items()
        },
        pairing_note=_pairing_note(entry_data, pairs),
        pairs=_correct_pairs(pairs),
        disagreements={
            split: table_of_split
            for split in splits
            if (table_of_split := _disagreements(entry_data, split)) is not None
        },
        components={
            data.entry.name: _variance_by_split(data, splits) for data in entry_data if data.entry.is_group
        },
    )


def _read_entry(entry: ComparisonEntry) -> _EntryData:
    return _EntryData(
        entry, tuple(_read_run_data(name, run) for name, run in zip(entry.run_names, entry.runs, strict=True))
    )


def _read_run_data(name: str, folder: Path) -> _RunData:
    run = RunFolder(folder)
    n_train = run.split_json.get("counts", {}).get("train", 0)
    is_unnamed = is_without_dataset(folder)
    dataset_hash = "" if is_unnamed else run.dataset_hash
    return _RunData(name, run.classes, run.predictions, run.groups(), dataset_hash, int(n_train), is_unnamed)


def _pair_unnamed_tables(entry_data: Sequence[_EntryData]) -> list[_EntryData]:
    """Return the entries with common image ids where some are tables without a data set (see `common_ids`).

    Beside runs of one data set such a table counts as one of it: equal ids with equal labels are then paired.
    """
    runs = [run for data in entry_data for run in data.runs]
    dataset_hashes = {run.dataset_hash for run in runs if not run.is_unnamed}
    if len(dataset_hashes) > 1 or not any(run.is_unnamed for run in runs):
        return list(entry_data)
    dataset_hash = next(iter(dataset_hashes), "")
    ids_of_run = {
        run.name: names
        for run, names in zip(runs, common_ids([run.predictions["image_id"] for run in runs]), strict=True)
    }
    return [
        replace(data, runs=tuple(_with_ids(run, ids_of_run[run.name], dataset_hash) for run in data.runs))
        for data in entry_data
    ]


def _with_ids(run: _RunData, names: Mapping[str, str], dataset_hash: str) -> _RunData:
    predictions = run.predictions.assign(image_id=run.predictions["image_id"].map(names))
    groups = None if run.groups is None else {names.get(name, name): group for name, group in run.groups.items()}
    return replace(run, predictions=predictions, groups=groups, dataset_hash=dataset_hash)


def _describe_split(
    entry_data: Sequence[_EntryData], pairs: Sequence[EntryPair], split: str, *, is_same: bool
) -> str:
    images = {data.entry.name: {image for _, image, _ in _scored_images(data, split)} for data in entry_data}
    return describe_shared_images(
        {name: len(ids) for name, ids in images.items()},
        len(set.intersection(*images.values())),
        is_same=is_same,
        is_paired=any(pair.split == split and not pair.reason for pair in pairs),
    )


def _pairing_note(entry_data: Sequence[_EntryData], pairs: Sequence[EntryPair]) -> str:
    unnamed_names = [data.entry.name for data in entry_data if any(run.is_unnamed for run in data.runs)]
    tested_pairs = [pair for pair in pairs if not pair.reason and {pair.first, pair.second} & set(unnamed_names)]
    return pairing_note(
        [(pair.split, pair.n) for pair in tested_pairs],
        unnamed_names,
        is_mixed=len(unnamed_names) < len(entry_data),
    )


def _scored_images(entry: _EntryData, split: str) -> frozenset[tuple[str, ...]]:
    """Return (data set, image, label) of the scored images: image ids alone may coincide between data sets."""
    return frozenset(
        (run.dataset_hash, *image_and_label)
        for run in entry.runs
        for image_and_label in zip(run.split_rows(split)["image_id"], run.split_rows(split)["label"], strict=True)
    )


# Pairs ------------------------------------------------------------------------------------------------------------


def _compare_entries(first: _EntryData, second: _EntryData, split: str) -> EntryPair:
    """Compare two single runs pairwise, and groups of runs as recipes."""
    if not (first.entry.is_group or second.entry.is_group):
        return _compare_two_runs(first.runs[0], second.runs[0], split)
    runs_by_images = first.runs_by_images(split), second.runs_by_images(split)
    has_folds = max(map(len, runs_by_images)) > 1
    design = "folds" if has_folds else "trainings"
    image_sets = [
        frozenset.intersection(*images_of_runs) if not has_folds else frozenset().union(*images_of_runs)
        for images_of_runs in runs_by_images
    ]
    image_ids = tuple(sorted(image_sets[0] & image_sets[1]))
    reason = _why_incomparable([*first.runs, *second.runs], image_ids, split)
    if not reason and has_folds:
        reason = _why_folds_differ(first, second, split)
    differences: Sequence[Difference] = ()
    if not reason:
        differences = (
            _fold_differences(first, second, split)
            if has_folds
            else _training_differences(first, second, split, image_ids)
        )
    return EntryPair(
        first.entry.name, second.entry.name, split, len(image_ids), tuple(differences), reason, design
    )


def _training_differences(
    first: _EntryData, second: _EntryData, split: str, image_ids: tuple[str, ...]
) -> Sequence[Difference]:
    groups = _shared_groups([*first.runs, *second.runs], image_ids)
    resampled_runs = [
        [entry.resample(run, split, image_ids, groups) for run in entry.runs] for entry in (first, second)
    ]
    return training_differences(*resampled_runs)


def _fold_differences(first: _EntryData, second: _EntryData, split: str) -> Sequence[Difference]:
    reference_run, first_folds, second_folds = (
        first.runs[0],
        first.runs_by_images(split),
        second.runs_by_images(split),
    )
    metrics_by_fold = [
        [_fold_metrics(folds[fold], reference_run.classes, split) for fold in first_folds]
        for folds in (first_folds, second_folds)
    ]
    pooled_rows = pd.concat([run.split_rows(split) for run in first.runs]).drop_duplicates("image_id")
    mean_n_train = np.mean([run.n_train for run in (*first.runs, *second.runs)])
    mean_n_test = np.mean([len(fold) for fold in first_folds])
    return fold_differences(
        *metrics_by_fold,
        pooled_set=to_scored_set(pooled_rows, reference_run.classes, None),
        n_train=round(mean_n_train),
        n_test=round(mean_n_test),
    )


def _fold_metrics(runs: Sequence[_RunData], classes: Sequence[LesionClass], split: str) -> list[dict[str, float]]:
    """Return each run's metrics; groups are not needed, they change only intervals."""
    return [metric_values(to_scored_set(run.split_rows(split), classes, None)) for run in runs]


def _why_folds_differ(first: _EntryData, second: _EntryData, split: str) -> str:
    """Return why two recipes cannot be compared fold by fold; "" if they can."""
    runs_by_images = [entry.runs_by_images(split) for entry in (first, second)]
    for entry, folds in zip((first, second), runs_by_images, strict=True):
        if frozenset() in folds:
            return f"not tested, since a run of {entry.entry.name} has no {split} images"
    if min(map(len, runs_by_images)) == 1:
        return "not tested, since one was tested on folds and the other was not"
    if runs_by_images[0].keys() != runs_by_images[1].keys():
        n_shared_folds = len(runs_by_images[0].keys() & runs_by_images[1].keys())
        counts = " and ".join(str(len(folds)) for folds in runs_by_images)
        return (
            f"not tested, since they were tested on different folds ({counts}, {n_shared_folds} of "
            f"them with the same images)"
        )
    runs_without_count = [run.name for entry in (first, second) for run in entry.runs if run.n_train < 1]
    return (
        f"not tested, since {runs_without_count[0]} does not say how many images it learnt from"
        if runs_without_count
        else ""
    )


def _variance_by_split(entry: _EntryData, splits: Sequence[str]) -> dict[str, dict[str, VarianceComponents]]:
    """Return split -> metric -> variance components of a group, for the splits on which its runs are comparable."""
    components: dict[str, dict[str, VarianceComponents]] = {}
    classes = entry.runs[0].classes
    for split in splits:
        runs_by_images = entry.runs_by_images(split)
        if (
            _why_incomparable(entry.runs, tuple(frozenset().union(*runs_by_images)), split)
            or frozenset() in runs_by_images
        ):
            continue
        if len(runs_by_images) == 1:
            image_ids = tuple(sorted(next(iter(runs_by_images))))
            groups = _shared_groups(entry.runs, image_ids)
            components[split] = variance_components(
                [entry.resample(run, split, image_ids, groups) for run in entry.runs]
            )
        else:
            components[split] = fold_variance_components(
                [_fold_metrics(fold_runs, classes, split) for fold_runs in runs_by_images.values()]
            )
    return components


def _why_incomparable(runs: Sequence[_RunData], image_ids: Sequence[str], split: str) -> str:
    """Return why runs cannot be compared image by image; "" if they can."""
    if len({run.dataset_hash for run in runs}) > 1:
        unnamed_tables = [run.name for run in runs if run.is_unnamed]
        if unnamed_tables:
            return (
                f"not comparable, since {unnamed_tables[0]} was evaluated without a data set and another was not; "
                "evaluate its table with --on DATASET"
            )
        return "not comparable, since they are of different data sets"
    if len({frozenset(lesion_class.name for lesion_class in run.classes) for run in runs}) > 1:
        return "not comparable, since their classes differ"
    malignancies = {frozenset((lesion.name, lesion.malignancy) for lesion in run.classes) for run in runs}
    if len(malignancies) > 1:
        return "not comparable, since they do not call the same classes malignant"
    if not image_ids:
        is_mixed = len({run.is_unnamed for run in runs}) > 1
        cure = " id; if they are of one data set, evaluate its table with --on DATASET" if is_mixed else ""
        return f"not comparable, since they share no image{cure}"
    rows_by_run = [run.split_rows(split) for run in runs]
    if any(rows["image_id"].duplicated().any() for rows in rows_by_run):
        return "not compared, since an image was scored more than once"
    labels = pd.concat([rows.loc[rows["image_id"].isin(image_ids), ["image_id", "label"]] for rows in rows_by_run])
    if labels.drop_duplicates()["image_id"].duplicated().any():
        return "not comparable, since the labels of shared images differ"
    return ""


def _compare_two_runs(first: _RunData, second: _RunData, split: str) -> EntryPair:
    rows_by_run = [run.split_rows(split) for run in (first, second)]
    image_ids = sorted(set(rows_by_run[0]["image_id"]) & set(rows_by_run[1]["image_id"]))
    reason = _why_incomparable([first, second], image_ids, split)
    if reason:
        return EntryPair(first.name, second.name, split, len(image_ids), (), reason)
    shared_rows = [rows.set_index("image_id").loc[image_ids].reset_index() for rows in rows_by_run]
    groups = _shared_groups([first, second], image_ids)
    scored_sets = [to_scored_set(rows, first.classes, groups) for rows in shared_rows]
    return EntryPair(
        first.name,
        second.name,
        split,
        len(image_ids),
        tuple(paired_differences(*scored_sets, seed=BOOTSTRAP_SEED)),
    )


def _shared_groups(runs: Sequence[_RunData], image_ids: Sequence[str]) -> dict[str, int] | None:
    """Return the groups of the first run that knows them for all shared images; the data set is the same."""
    for run in sorted(runs, key=lambda run: run.is_unnamed):
        if run.groups is not None and all(image_id in run.groups for image_id in image_ids):
            return dict(run.groups)
    return None


def _correct_pairs(pairs: Sequence[EntryPair]) -> tuple[EntryPair, ...]:
    """Apply Holm's correction over all pairs and metrics of one split; each split is its own family."""
    corrected_pairs: dict[int, EntryPair] = {}
    for split in dict.fromkeys(pair.split for pair in pairs):
        indices = [index for index, pair in enumerate(pairs) if pair.split == split]
        families = correct_with_holm([pairs[index].differences for index in indices])
        for index, differences in zip(indices, families, strict=True):
            corrected_pairs[index] = replace(pairs[index], differences=tuple(differences))
    return tuple(corrected_pairs[index] for index in range(len(pairs)))


def _disagreements(entry_data: Sequence[_EntryData], split: str) -> pd.DataFrame | None:
    """Return images that some runs have right and others wrong; None where runs share no images."""
    if len({run.dataset_hash for data in entry_data for run in data.runs}) > 1:
        return None
    return disagreement_table(
        {
            data.entry.name: [run.split_rows(split).set_index("image_id") for run in data.runs]
            for data in entry_data
        }
    )
