"""The opening of a sealed test side: what is checked, what is logged before anything is scored, and what is scored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset
from dermkit.data.seal import Seal, end_opening, find_partial_overlaps, find_seal, log_opening, seal_path
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.score_run import score_splits
from dermkit.evaluation.seal_log import (
    LoggedOpening,
    check_run_seal,
    end_openings,
    log_overlap_openings,
    new_opening,
    seal_folder,
    write_run_seal,
)
from dermkit.files import lock
from dermkit.progress import Progress
from dermkit.runs.layout import MODEL_FOLDER, PREDICTIONS_FILE, RUN, RUN_SEAL, SPLIT_FILE
from dermkit.runs.predictions import read_run_csv
from dermkit.runs.reader import read_run_seal

MANIFEST_CHANGED_NOTE = (
    "The data set's manifest has changed since this run was trained; the sealed images, their labels and their pixels "
    "have not."
)


def open_test(run: Path, dataset: Dataset, *, progress: Progress) -> None:
    """Open the sealed test side for a run: its predictions.csv then has the test rows too, and nothing is evaluated.

    The opening is in the seal's file before the first image is scored. Raises `UsageError` for a folder that is no run,
    or whose test side is not sealed; `DataError` where split, classes or sealed images are not those of the training;
    `UntrustedError` for a model that is not as it was saved.
    """
    from dermkit.data.cache.pixels import pixel_cache
    from dermkit.prediction.predictor import load_model

    _check_run(run)
    with lock(run):
        run_json = _checked_run_json(run, dataset)
        split_table = _read_split_table(run, dataset)
        seal = _find_run_seal(run, dataset, split_table)
        # Whatever may refuse does so before the opening is logged: it would count.
        predictor = load_model(run / MODEL_FOLDER, device="auto", progress=progress)
        pixels = pixel_cache(
            dataset, split_table["image_id"].tolist(), predictor.preprocessing, folder=dataset.work_folder / "cache",
            on_progress=lambda count, total: progress.step("images", count, total),
        )  # fmt: skip
        opening = _log_opening(run, dataset, seal, split_table, run_json, progress)
        score_splits(
            run,
            dataset,
            split_table,
            ["test"],
            predictor=predictor,
            pixels=pixels,
            seed=run_json["seed"],
            fold=-1 if run_json["fold"] is None else run_json["fold"],
            progress=progress,
            retained_splits=["validation"],
        )
        _end_opening(run, dataset, opening)


# Checks -----------------------------------------------------------------------------------------------------------


def _check_run(run: Path) -> None:
    """Raise `UsageError` for a folder that is not a finished run."""
    missing_files = [name for name in (RUN.name, SPLIT_FILE, PREDICTIONS_FILE) if not (run / name).is_file()]
    if missing_files:
        raise UsageError(
            f"{run}: is not a finished run: no {', '.join(missing_files)}",
            outcome="nothing was scored",
            remedy="name the folder that train printed",
        )


def _checked_run_json(run: Path, dataset: Dataset) -> dict[str, Any]:
    """Return run.json of a run that was trained on the classes of this data set."""
    run_json = RUN.read(run)
    if run_json["dataset"]["classes"] != [asdict(lesion_class) for lesion_class in dataset.classes]:
        raise DataError(
            f"{run}: was trained on other classes than those of {dataset.folder}",
            outcome="nothing was scored",
            remedy="name the data set that the run was trained on",
        )
    return run_json


def _read_split_table(run: Path, dataset: Dataset) -> pd.DataFrame:
    """Return the run's own split; raises `DataError` where the data set lacks an image of it."""
    split_table = read_run_csv(run / SPLIT_FILE, "image_id", "split")
    unknown_ids = split_table.loc[~split_table["image_id"].isin(dataset.manifest["image_id"]), "image_id"].tolist()
    if unknown_ids:
        raise DataError(
            f"{run / 'split.csv'}: {len(unknown_ids)} of its images are not in {dataset.folder} (such "
            f"as {unknown_ids[0]})",
            outcome="nothing was scored",
            remedy="name the data set that the run was trained on, with the manifest of then",
        )
    return split_table


def _find_run_seal(run: Path, dataset: Dataset, split_table: pd.DataFrame) -> Seal:
    """Return the seal of the run's test side, as it was when the run was trained."""
    if not RUN_SEAL.exists(run):
        raise UsageError(
            f"{run}: its test side was not sealed when it was trained, so it is scored already",
            outcome="nothing was counted",
            remedy=f"dermkit evaluate {run}",
        )
    folder = seal_folder(dataset)
    seal = find_seal(folder, dataset.manifest, split_table)
    if seal is None:
        raise DataError(
            f"{run}: the test side that it was trained beside has no seal in {folder}",
            outcome="nothing was scored",
            remedy=f"restore {read_run_seal(run)['name']}.seal.json, or name the data set that the run was trained on",
        )
    check_run_seal(run, seal, seal_path(folder, seal.name))
    return seal


# The log ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opening:
    """An opening on its way. number: which one it is of its seal; met: those of other seals that it goes with."""

    seal: Seal
    number: int
    notes: tuple[str, ...]
    overlap_openings: tuple[LoggedOpening, ...]


def _log_opening(
    run: Path,
    dataset: Dataset,
    seal: Seal,
    split_table: pd.DataFrame,
    run_json: Mapping[str, Any],
    progress: Progress,
) -> _Opening:
    """Log the opening in the seal, then in the run."""
    folder, recipe = seal_folder(dataset), str(run_json["recipe"])
    n_previous = sum(
        (previous_opening.recipe, previous_opening.run) == (recipe, run.name) for previous_opening in seal.openings
    )
    if n_previous:
        progress.say(
            f"this run has opened the test side before ({n_previous} times), and this counts again. To "
            f"evaluate what was "
            f"scored then: dermkit evaluate {run}"
        )
    overlaps = find_partial_overlaps(folder, dataset.manifest, split_table)
    opening = new_opening(run / MODEL_FOLDER, command="--open-test", recipe=recipe, run=run.name, n=len(seal.rows))
    seal_with_opening = log_opening(folder, seal.name, opening)
    number = len(seal_with_opening.openings)
    notes = () if run_json["dataset"]["manifest_sha256"] == dataset.manifest_sha256 else (MANIFEST_CHANGED_NOTE,)
    write_run_seal(run, seal_with_opening, opening=number, notes=notes)
    split = str(run_json["split"]["name"])
    overlap_openings = log_overlap_openings(
        dataset, overlaps, model=run / MODEL_FOLDER, recipe=recipe, run=run.name, split=split
    )
    progress.say(f"opening {number} of the test side of split {seal.name} ({len(seal.rows)} images), logged")
    return _Opening(seal_with_opening, number, notes, tuple(overlap_openings))


def _end_opening(run: Path, dataset: Dataset, logged_opening: _Opening) -> None:
    """Note in the seals and in the run that the scoring came to its end; later openings belong to later reports."""
    opening = logged_opening.seal.openings[logged_opening.number - 1]
    seal = end_opening(seal_folder(dataset), logged_opening.seal.name, opening)
    seal_at_opening = replace(seal, openings=seal.openings[: logged_opening.number])
    write_run_seal(run, seal_at_opening, opening=logged_opening.number, notes=logged_opening.notes)
    end_openings(dataset, logged_opening.overlap_openings)
