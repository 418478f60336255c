"""Open a sealed test split, or the test images of an ensemble, which scores none by itself: check, log, then score."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.folds import rows_for_ensemble
from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.data.seal import Seal, find_partial_overlaps, find_seal, log_opening, read_seal, seal_path
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.openings import (
    check_run_seal,
    log_openings,
    new_opening,
    openings_of_overlaps,
    seal_folder,
    write_run_seal,
)
from dermkit.evaluation.predict_splits import predict_splits
from dermkit.files import lock, shell_path
from dermkit.pipeline.cross_validation import ensemble_key
from dermkit.progress import Progress
from dermkit.runs.folder import RunFolder, read_table
from dermkit.runs.layout import ENSEMBLE_TEST, MODEL_FOLDER, PREDICTIONS_FILE, RUN, RUN_SEAL, SPLIT_FILE, SUMMARY

MANIFEST_CHANGED_NOTE = (
    "The data set's manifest has changed since this run was trained; the sealed images, their labels and their pixels "
    "have not."
)


def open_test(run: Path, dataset: Dataset, *, progress: Progress) -> None:
    """Open the test split for a run: its predictions.csv then has the test rows too, and nothing is evaluated.

    The opening is in the seal's file, of an ensemble whose test split is not sealed in its run.json, before the first
    image is scored. Raises `UsageError` for a folder that is no run,
    or whose test split is not sealed; `DataError` where split, classes or sealed images are not those of the training;
    `UntrustedError` for a model that is not as it was saved.
    """
    from dermkit.data.cache.pixels import dataset_pixels
    from dermkit.prediction.load import load_model

    _check_run(run)
    with lock(run), reading(dataset, "evaluate"):
        run_json = _checked_run_json(run, dataset)
        split_table = _read_split_table(run, dataset)
        is_unsealed = _unsealed_openings(run_json) is not None and not RUN_SEAL.exists(run)
        seal = None if is_unsealed else _find_run_seal(run, dataset, split_table)
        # Whatever may refuse does so before the opening is logged: it would count.
        predictor = load_model(run / MODEL_FOLDER, device="auto", progress=progress)
        pixels, *other_pixels = [
            dataset_pixels(dataset, split_table["image_id"].drop_duplicates().tolist(), preprocessing, progress)
            for preprocessing in predictor.resizings
        ]
        log = (
            _log_unsealed_opening(run, split_table, run_json, progress)
            if seal is None
            else _log_opening(run, dataset, seal, split_table, run_json, progress)
        )
        with log:
            predict_splits(
                run, dataset, split_table, ["test"], predictor=predictor, pixels=pixels, seed=run_json["seed"],
                other_pixels=other_pixels,
                fold=-1 if run_json["fold"] is None else run_json["fold"], progress=progress,
                retained_splits=["validation"],
            )  # fmt: skip
            if RunFolder(run).scores_test_by_ensemble:
                members = [run / name for name in SUMMARY.read(run)["final"]["members"]]
                ENSEMBLE_TEST.write(run, {"key": ensemble_key(members)})


# Checks -----------------------------------------------------------------------------------------------------------


def _check_run(run: Path) -> None:
    """Raise `UsageError` for a folder that is not a finished run."""
    if RUN.exists(run) and RunFolder(run).ensemble and not (run / SPLIT_FILE).is_file():
        raise UsageError(
            f"{run}: its members were not trained on one split, so there are no test images that none of them learned "
            "from",
            outcome="nothing was scored",
            remedy="test it on other images: dermkit evaluate FOLDER --on OTHER_DATASET",
        )
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
    split_table = read_table(run / SPLIT_FILE, "image_id", "split")
    if (split_table["split"] == "fold").any():
        split_table = rows_for_ensemble(split_table)
    unknown_ids = split_table.loc[~split_table["image_id"].isin(dataset.manifest["image_id"]), "image_id"].tolist()
    if unknown_ids:
        raise DataError(
            f"{run / SPLIT_FILE}: {len(unknown_ids)} of its images are not in {dataset.folder} (such "
            f"as {unknown_ids[0]})",
            outcome="nothing was scored",
            remedy="name the data set that the run was trained on, with the manifest of then",
        )
    return split_table


def _find_run_seal(run: Path, dataset: Dataset, split_table: pd.DataFrame) -> Seal:
    """Return the seal of the run's test split, as it was when the run was trained."""
    if RunFolder(run).leaves_test_to_ensemble:
        raise UsageError(
            f"{run}: is the run of one fold, and the test images beside the folds are for the ensemble of all",
            outcome="no opening was counted",
            remedy=f"dermkit evaluate {shell_path(run.parent)} --open-test {shell_path(dataset.folder)}",
        )
    if not RUN_SEAL.exists(run):
        raise UsageError(
            f"{run}: its test split was not sealed when it was trained, so it is scored already",
            outcome="no opening was counted",
            remedy=f"dermkit evaluate {shell_path(run)}",
        )
    folder = seal_folder(dataset)
    seal = find_seal(folder, dataset.manifest, split_table)
    if seal is None:
        raise DataError(
            f"{run}: the test split of its training has no seal in {folder}",
            outcome="nothing was scored",
            remedy=f"restore {RunFolder(run).seal['name']}.seal.json, or name the data set that the run was trained on",
        )
    check_run_seal(run, seal, seal_path(folder, seal.name))
    return seal


# The log ----------------------------------------------------------------------------------------------------------


@contextmanager
def _log_opening(
    run: Path,
    dataset: Dataset,
    seal: Seal,
    split_table: pd.DataFrame,
    run_json: Mapping[str, Any],
    progress: Progress,
) -> Iterator[None]:
    """Log the opening in the seal, then in the run, before the block; mark it as finished in both after it."""
    path, recipe, model = seal_path(seal_folder(dataset), seal.name), str(run_json["recipe"]), run / MODEL_FOLDER
    _tell_previous_openings(run, seal, recipe, progress)
    overlap_openings = openings_of_overlaps(
        dataset, find_partial_overlaps(path.parent, dataset.manifest, split_table),
        model=model, recipe=recipe, run=run.name, split=str(run_json["split"]["name"]),
    )  # fmt: skip
    notes = () if run_json["dataset"]["manifest_sha256"] == dataset.manifest_sha256 else (MANIFEST_CHANGED_NOTE,)
    opening = new_opening(model, opened_by="--open-test", recipe=recipe, run=run.name, n=len(seal.rows))
    with log_opening(path, opening) as logged_seal:
        number = len(logged_seal.openings)
        write_run_seal(run, logged_seal, opening=number, notes=notes)
        with log_openings(overlap_openings):
            progress.say(f"opening {number} of seal {seal.name} ({len(seal.rows)} test images), logged")
            yield
    # Openings that were logged meanwhile belong to later reports.
    finished_seal = replace(logged_seal, openings=read_seal(path).openings[:number])
    write_run_seal(run, finished_seal, opening=number, notes=notes)


def _unsealed_openings(run_json: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the openings of test images that no training scores: of an ensemble of recipes, and of the folds of a
    race; None for any other run.
    """
    openings: list[dict[str, Any]] | None = (run_json.get("ensemble") or run_json).get("openings")
    return openings


@contextmanager
def _log_unsealed_opening(
    run: Path, split_table: pd.DataFrame, run_json: Mapping[str, Any], progress: Progress
) -> Iterator[None]:
    """Log in run.json that a model scores its test images; raises `UsageError` where it has done so before."""
    openings, n_test = _unsealed_openings(run_json) or [], int((split_table["split"] == "test").sum())
    is_scored = bool((RunFolder(run).predictions["split"] == "test").any())
    if is_scored or not n_test:
        raise UsageError(
            f"{run}: its {n_test} test images were scored on {openings[-1]['date']}"
            if is_scored
            else f"{run}: its split has no test images",
            outcome="nothing was scored",
            remedy=f"dermkit evaluate {shell_path(run)}",
        )
    opening = new_opening(
        run / MODEL_FOLDER, opened_by="--open-test", recipe=str(run_json["recipe"]), run=run.name, n=n_test
    )
    openings = [*openings, asdict(opening)]
    counts = {**run_json["split"]["counts"], "test": n_test}
    ensemble = run_json.get("ensemble")
    logged = {"ensemble": {**ensemble, "openings": openings}} if ensemble else {"openings": openings}
    RUN.write(run, {**run_json, **logged, "split": {**run_json["split"], "counts": counts}})
    progress.say(f"scoring {n_test} test images, opening {len(openings)}, logged in {RUN.name}")
    yield


def _tell_previous_openings(run: Path, seal: Seal, recipe: str, progress: Progress) -> None:
    n_previous = sum((opening.recipe, opening.run) == (recipe, run.name) for opening in seal.openings)
    if n_previous:
        progress.say(
            f"this run has opened the test split before ({n_previous} times), and this counts again. To evaluate what "
            f"was scored then: dermkit evaluate {run}"
        )
