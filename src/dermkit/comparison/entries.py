"""Group run folders into comparison entries: repeated trainings of one recipe are compared as one entry.

Repeats are a parent folder with a summary, or runs that differ in seed or fold alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermkit.errors import DataError, UsageError
from dermkit.files import canonical_json, read_regular, sha256_file
from dermkit.recipes.formats import migrate_recipe
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import RECIPE_FILE, RUN, SPLIT_FILE, SUMMARY

IGNORED_FIELDS = ("format", "about", "system", "seed", "repeats")
"""Fields of recipe.json that may differ within one recipe."""

MIN_FOLDERS_TO_GROUP = 3
"""Fewest folders for single runs to be grouped: two runs are always compared as two runs."""

_SEED_SUFFIX = re.compile(r"-s\d+(-f\d+)?$")


@dataclass(frozen=True)
class ComparisonEntry:
    """A single run, or several training runs of one recipe.

    run_names, runs: of the members, in order. note: how they were grouped, "" for a single run.
    """

    name: str
    run_names: tuple[str, ...]
    runs: tuple[Path, ...]
    note: str = ""

    @property
    def is_group(self) -> bool:
        """Whether there are several runs."""
        return len(self.runs) > 1


def group_runs(folders: Sequence[Path]) -> tuple[ComparisonEntry, ...]:
    """Return the comparison entries in the order given; a recognised group takes the position of its first run.

    Raises `UsageError` for a folder named twice, a rung of a leak ladder or fewer than two runs, `DataError` for a
    parent without its runs.
    """
    runs_by_folder = [_runs_of(folder) for folder in folders]
    all_runs = [run for runs in runs_by_folder for run in runs]
    _check_no_rung(all_runs)
    if len({run.resolve() for run in all_runs}) < max(len(all_runs), 2):
        raise UsageError(
            "compare needs two different runs or more", remedy="dermkit compare RUN RUN..., or a folder of repeats"
        )
    name_of_run = dict(zip(all_runs, _shortest_unique_names(all_runs), strict=True))
    parents = [folder for folder in folders if _is_parent(folder)]
    name_of_parent = dict(zip(parents, _shortest_unique_names(parents), strict=True)) if parents else {}
    single_runs = [folder for folder in folders if folder not in name_of_parent]
    family_of_run = _group_by_recipe(single_runs) if len(folders) >= MIN_FOLDERS_TO_GROUP else {}
    entries: list[ComparisonEntry] = []
    for folder, runs in zip(folders, runs_by_folder, strict=True):
        if folder in name_of_parent:
            names = tuple(name_of_run[run] for run in runs)
            entries.append(
                ComparisonEntry(
                    name_of_parent[folder], names, tuple(runs), _final_model_note(folder, name_of_parent[folder])
                )
            )
        elif folder not in family_of_run:
            name = name_of_run[folder]
            entries.append(ComparisonEntry(name, (name,), (folder,), _ensemble_note(folder, name)))
        elif family_of_run[folder][0] == folder:
            entries.append(_recipe_entry(family_of_run[folder], name_of_run))
    return _with_unique_names(entries)


def _check_no_rung(runs: Sequence[Path]) -> None:
    """Raise `UsageError` for a rung of a leak ladder: a leaderboard would show figures that are wrong on purpose."""
    for run in runs:
        if RunFolder(run).rung_warnings:
            raise UsageError(
                f"{run}: is a rung of a leak ladder, whose figures are no result",
                outcome="nothing was compared",
                remedy="read the ladder's ladder.html, which compares its rungs",
            )


def _is_parent(folder: Path) -> bool:
    """Return whether a folder's runs are compared in its place: not where it holds test rows of the folds' ensemble."""
    return (folder / SUMMARY.name).is_file() and not _is_of_ensemble(folder)


def _is_of_ensemble(folder: Path) -> bool:
    """Return whether a folder is of folds beside test images: its test rows are of their ensemble."""
    pooled = SUMMARY.read_optional(folder).get("pooled")
    return bool(pooled and pooled["scores_test_by_ensemble"])


def _ensemble_note(folder: Path, name: str) -> str:
    """Return the note that a folder's figures are of an ensemble and of its single nets; "" for any other folder."""
    if not _is_of_ensemble(folder):
        return ""
    n_members = len(SUMMARY.read(folder)["final"]["members"])
    if n_members == 1:
        return ""
    return (
        f"{name}: its test figures are of the ensemble of {n_members} nets; its validation figures are out-of-fold, "
        "each image scored by the one net that had not learned from it, and of single nets."
    )


def _runs_of(folder: Path) -> list[Path]:
    """Return the runs of a parent folder, as its summary lists them, or the folder itself."""
    if not _is_parent(folder):
        return [folder]
    summary_rows = SUMMARY.read(folder).get("runs", [])
    runs = [folder / str(row["folder"]) for row in summary_rows]
    missing_runs = [run.name for run in runs if not RUN.exists(run)]
    if missing_runs or not runs:
        raise DataError(
            f"{folder / SUMMARY.name}: "
            f"{'these runs are not there: ' + ', '.join(missing_runs) if missing_runs else 'lists no run'}",
            outcome="nothing was written",
            remedy="restore them, or name the runs that are there one by one",
        )
    return runs


def _final_model_note(folder: Path, name: str) -> str:
    """Return the note that a parent folder's model is one selected run; "" without a final model."""
    final_run = SUMMARY.read(folder).get("final", {})
    if not final_run:
        return ""
    if final_run.get("members"):
        return (
            f"{name}: its final model is the ensemble of {len(final_run['members'])} folds, which no image of this "
            "data set tests. These figures are of single nets, each on the images of the fold that it never saw."
        )
    return (
        f"{name}: its final model is {final_run.get('folder')}, the best of its trainings on "
        f"validation. That model's test "
        "figure is one training's; for the recipe stands the mean of all."
    )


def _group_by_recipe(runs: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return run -> all runs of its recipe, split and data, for runs that have such others."""
    families: dict[str, list[tuple[tuple[object, object], Path]]] = {}
    for run in runs:
        identity = _recipe_identity(run)
        if identity is not None:
            families.setdefault(identity[0], []).append((identity[1], run))
    # Two runs of one seed cannot be told apart: they are not grouped.
    distinct_families = [
        family
        for family in families.values()
        if 1 < len(family) == len({seed_and_fold for seed_and_fold, _ in family})
    ]
    return {run: [member for _, member in family] for family in distinct_families for _, run in family}


def _recipe_identity(run: Path) -> tuple[str, tuple[object, object]] | None:
    """Return what repeats of a run share with it, as text, and the run's (seed, fold).

    None if the files do not say: predictions of other tools, runs without their recipe.
    """
    if not all((run / name).is_file() for name in (RUN.name, RECIPE_FILE, SPLIT_FILE)):
        return None
    run_json = RUN.read(run)
    dataset_json, recipe_fields = run_json.get("dataset", {}), _read_fields(run / RECIPE_FILE)
    if (
        recipe_fields is None
        or not isinstance(run_json.get("seed"), int)
        or not dataset_json.get("manifest_sha256")
    ):
        return None
    shared_fields = {
        "recipe": {key: value for key, value in recipe_fields.items() if key not in IGNORED_FIELDS},
        "data": dataset_json["manifest_sha256"],
        "classes": dataset_json.get("classes"),
        "weights": run_json.get("weights", {}).get("sha256"),
        # The sides differ from fold to fold; what the folds are, the recipe and the data decide.
        "split": sha256_file(run / SPLIT_FILE)
        if run_json.get("fold") is None
        else run_json.get("split", {}).get("name"),
    }
    return canonical_json(shared_fields), (run_json["seed"], run_json.get("fold"))


def _read_fields(path: Path) -> dict[str, Any] | None:
    """Return a recipe's fields in today's format, without validation; None if the file is broken."""
    try:
        fields = json.loads(read_regular(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return migrate_recipe(fields) if isinstance(fields, dict) else None


def _recipe_entry(runs: Sequence[Path], name_of_run: Mapping[Path, str]) -> ComparisonEntry:
    run_names = [name_of_run[run] for run in runs]
    stems = {_SEED_SUFFIX.sub("", name) for name in run_names}
    name = stems.pop() if len(stems) == 1 else f"{run_names[0]} and {len(runs) - 1} more"
    note = (
        f"{name}: {len(runs)} runs share recipe, split and data and differ in the seed or fold alone "
        f"({', '.join(run.name for run in runs)}), so they are taken as trainings of one recipe."
    )
    return ComparisonEntry(name, tuple(run_names), tuple(runs), note)


def _with_unique_names(entries: Sequence[ComparisonEntry]) -> tuple[ComparisonEntry, ...]:
    """Return the entries with unique names: equal ones are numbered."""
    entry_names = [entry.name for entry in entries]
    unique_names = [
        name if entry_names.count(name) == 1 else f"{name} ({entry_names[:number].count(name) + 1})"
        for number, name in enumerate(entry_names)
    ]
    return tuple(
        replace(entry, name=name, note=entry.note.replace(entry.name, name, 1))
        for entry, name in zip(entries, unique_names, strict=True)
    )


def _shortest_unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the last two components of each path, and more if the names are not unique otherwise."""
    path_components = [folder.resolve().parts for folder in folders]
    depth = next(
        n
        for n in range(2, max(map(len, path_components)) + 1)
        if len({components[-n:] for components in path_components}) == len(folders)
    )
    return ["/".join(components[-depth:]) for components in path_components]
