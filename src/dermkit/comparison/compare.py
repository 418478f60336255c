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
from dermkit.comparison.image_overlap import describe_shared_images, file_pairing_note, pairing_note
from dermkit.comparison.leaderboard import leaderboard, wide_table
from dermkit.comparison.repeated import (  # fmt: skip
    fold_differences,
    fold_variance_components,
    metric_values,
    training_differences,
    variance_components,
)
from dermkit.comparison.run_data import BOOTSTRAP_SEED, EntryData, RunData, pair_images, read_entry
from dermkit.comparison.variance import VarianceComponents
from dermkit.comparison.verdict import verdict
from dermkit.data.groups import connect_rows
from dermkit.data.manifest import LesionClass
from dermkit.metrics.classification.difference import Difference
from dermkit.metrics.classification.paired import correct_with_holm, paired_differences
from dermkit.runs.predictions import to_scored_set


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


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Compare evaluated runs, or folders of repeats; raises `UsageError` for fewer than two runs, `DataError` for none.

    `entries.group_runs` decides which runs are compared as repeated trainings of one recipe.
    """
    comparison_entries = group_runs(runs)
    table = leaderboard(comparison_entries)
    entry_data = pair_images([read_entry(entry) for entry in comparison_entries])
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


def _describe_split(
    entry_data: Sequence[EntryData], pairs: Sequence[EntryPair], split: str, *, is_same: bool
) -> str:
    images = {data.entry.name: {image for _, image, _ in _scored_images(data, split)} for data in entry_data}
    return describe_shared_images(
        {name: len(ids) for name, ids in images.items()},
        len(set.intersection(*images.values())),
        is_same=is_same,
        is_paired=any(pair.split == split and not pair.reason for pair in pairs),
    )


def _pairing_note(entry_data: Sequence[EntryData], pairs: Sequence[EntryPair]) -> str:
    unnamed_names = [data.entry.name for data in entry_data if any(run.is_unnamed for run in data.runs)]
    tested_pairs = [pair for pair in pairs if not pair.reason]
    if any(run.is_paired_by_file for data in entry_data for run in data.runs):
        return file_pairing_note([(pair.split, pair.n) for pair in tested_pairs])
    return pairing_note(
        [(pair.split, pair.n) for pair in tested_pairs if {pair.first, pair.second} & set(unnamed_names)],
        unnamed_names,
        is_mixed=len(unnamed_names) < len(entry_data),
    )


def _scored_images(entry: EntryData, split: str) -> frozenset[tuple[str, ...]]:
    """Return (data set, image, label) of the scored images: image ids alone may coincide between data sets."""
    return frozenset(
        (run.dataset_hash, *image_and_label)
        for run in entry.runs
        for image_and_label in zip(run.split_rows(split)["image_id"], run.split_rows(split)["label"], strict=True)
    )


# Pairs ------------------------------------------------------------------------------------------------------------


def _compare_entries(first: EntryData, second: EntryData, split: str) -> EntryPair:
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
    first: EntryData, second: EntryData, split: str, image_ids: tuple[str, ...]
) -> Sequence[Difference]:
    groups = _shared_groups([*first.runs, *second.runs], image_ids)
    resampled_runs = [
        [entry.resample(run, split, image_ids, groups) for run in entry.runs] for entry in (first, second)
    ]
    return training_differences(*resampled_runs)


def _fold_differences(first: EntryData, second: EntryData, split: str) -> Sequence[Difference]:
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


def _fold_metrics(runs: Sequence[RunData], classes: Sequence[LesionClass], split: str) -> list[dict[str, float]]:
    """Return each run's metrics; groups are not needed, they change only intervals."""
    return [metric_values(to_scored_set(run.split_rows(split), classes, None)) for run in runs]


def _why_folds_differ(first: EntryData, second: EntryData, split: str) -> str:
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


def _variance_by_split(entry: EntryData, splits: Sequence[str]) -> dict[str, dict[str, VarianceComponents]]:
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


def _why_incomparable(runs: Sequence[RunData], image_ids: Sequence[str], split: str) -> str:
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


def _compare_two_runs(first: RunData, second: RunData, split: str) -> EntryPair:
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


def _shared_groups(runs: Sequence[RunData], image_ids: Sequence[str]) -> dict[str, int] | None:
    """Return the groups of the shared images: those are in one group that are in one of any run.

    Runs of one data set have the same groups. Of two data sets, or a table, one may know lesions that the other lacks.
    """
    known = [
        run.groups
        for run in runs
        if run.groups is not None and all(image_id in run.groups for image_id in image_ids)
    ]
    if not known:
        return None
    keys = [np.array([groups[image_id] for image_id in image_ids], dtype=np.int64) for groups in known]
    codes = [np.unique(key, return_inverse=True)[1].astype(np.int64) for key in keys]
    none = np.empty(0, dtype=np.int64)
    return dict(zip(image_ids, connect_rows(len(image_ids), none, none, *codes).tolist(), strict=True))


def _correct_pairs(pairs: Sequence[EntryPair]) -> tuple[EntryPair, ...]:
    """Apply Holm's correction over all pairs and metrics of one split; each split is its own family."""
    corrected_pairs: dict[int, EntryPair] = {}
    for split in dict.fromkeys(pair.split for pair in pairs):
        indices = [index for index, pair in enumerate(pairs) if pair.split == split]
        families = correct_with_holm([pairs[index].differences for index in indices])
        for index, differences in zip(indices, families, strict=True):
            corrected_pairs[index] = replace(pairs[index], differences=tuple(differences))
    return tuple(corrected_pairs[index] for index in range(len(pairs)))


def _disagreements(entry_data: Sequence[EntryData], split: str) -> pd.DataFrame | None:
    """Return images that some runs have right and others wrong; None where runs share no images."""
    if len({run.dataset_hash for data in entry_data for run in data.runs}) > 1:
        return None
    return disagreement_table(
        {
            data.entry.name: [run.split_rows(split).set_index("image_id") for run in data.runs]
            for data in entry_data
        }
    )
