"""The opening of a sealed test side: what is checked, what is logged before anything is scored, and what is scored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset
from dermkit.data.seal import Seal, end_opening, find_meetings, find_seal, log_opening, seal_path
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.score_run import score_sides
from dermkit.evaluation.seal_log import (
    Logged,
    check_kept_log,
    end_openings,
    log_meetings,
    new_opening,
    seals_of,
    write_kept,
)
from dermkit.files import lock, read_json
from dermkit.progress import Watch
from dermkit.runs.predictions import read_table
from dermkit.runs.reader import KEPT_SEAL, kept_seal

OTHER_MANIFEST = (
    "The data set's manifest has changed since this run was trained; the sealed images, their labels and their pixels "
    "have not."
)


def open_test(run: Path, dataset: Dataset, *, watch: Watch) -> None:
    """Open the sealed test side for a run: its predictions.csv then has the test rows too, and nothing is evaluated.

    The opening is in the seal's file before the first image is scored. Raises `UsageError` for a folder that is no run,
    or whose test side is not sealed; `DataError` where split, classes or sealed images are not those of the training;
    `UntrustedError` for a model that is not as it was saved.
    """
    from dermkit.data.cache.pixels import pixel_cache
    from dermkit.prediction.predictor import load_model

    _check_run(run)
    with lock(run):
        about = _facts(run, dataset)
        sides = _sides(run, dataset)
        seal = _seal(run, dataset, sides)
        # Whatever may refuse does so before the opening is logged: it would count.
        predictor = load_model(run / "model", device="auto", say=watch.say)
        pixels = pixel_cache(
            dataset, sides["image_id"].tolist(), predictor.preprocessing, folder=dataset.folder / "cache",
            on_progress=lambda done, total: watch.step("images", done, total),
        )  # fmt: skip
        logged = _log(run, dataset, seal, sides, about, watch)
        score_sides(
            run, dataset, sides, ["test"],
            predictor=predictor, pixels=pixels, seed=about["seed"],
            fold=-1 if about["fold"] is None else about["fold"], watch=watch, keep=["validation"],
        )  # fmt: skip
        _end(run, dataset, logged)


# Checks -----------------------------------------------------------------------------------------------------------


def _check_run(run: Path) -> None:
    """Raise `UsageError` for a folder that is not a finished run."""
    missing = [name for name in ("run.json", "split.csv", "predictions.csv") if not (run / name).is_file()]
    if missing:
        raise UsageError(
            f"{run}: is not a finished run: no {', '.join(missing)}",
            kept="nothing was scored",
            remedy="name the folder that train printed",
        )


def _facts(run: Path, dataset: Dataset) -> dict[str, Any]:
    """Return run.json of a run that was trained on the classes of this data set."""
    about = read_json(run / "run.json", format=1, error=DataError)
    if about["dataset"]["classes"] != [asdict(item) for item in dataset.classes]:
        raise DataError(
            f"{run}: was trained on other classes than those of {dataset.folder}",
            kept="nothing was scored",
            remedy="name the data set that the run was trained on",
        )
    return about


def _sides(run: Path, dataset: Dataset) -> pd.DataFrame:
    """Return the run's own split; raises `DataError` where the data set lacks an image of it."""
    sides = read_table(run / "split.csv", "image_id", "split")
    unknown = sides.loc[~sides["image_id"].isin(dataset.manifest["image_id"]), "image_id"].tolist()
    if unknown:
        raise DataError(
            f"{run / 'split.csv'}: {len(unknown)} of its images are not in {dataset.folder} (such as {unknown[0]})",
            kept="nothing was scored",
            remedy="name the data set that the run was trained on, with the manifest of then",
        )
    return sides


def _seal(run: Path, dataset: Dataset, sides: pd.DataFrame) -> Seal:
    """Return the seal of the run's test side, as it was when the run was trained."""
    if not (run / KEPT_SEAL).is_file():
        raise UsageError(
            f"{run}: its test side was not sealed when it was trained, so it is scored already",
            kept="nothing was counted",
            remedy=f"dermkit evaluate {run}",
        )
    folder = seals_of(dataset)
    seal = find_seal(folder, dataset.manifest, sides)
    if seal is None:
        raise DataError(
            f"{run}: the test side that it was trained beside has no seal in {folder}",
            kept="nothing was scored",
            remedy=f"restore {kept_seal(run)['name']}.seal.json, or name the data set that the run was trained on",
        )
    check_kept_log(run, seal, seal_path(folder, seal.name))
    return seal


# The log ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Logged:
    """An opening on its way. number: which one it is of its seal; met: those of other seals that it goes with."""

    seal: Seal
    number: int
    notes: tuple[str, ...]
    met: tuple[Logged, ...]


def _log(
    run: Path, dataset: Dataset, seal: Seal, sides: pd.DataFrame, about: Mapping[str, Any], watch: Watch
) -> _Logged:
    """Log the opening in the seal, then in the run."""
    folder, recipe = seals_of(dataset), str(about["recipe"])
    own = sum((item.recipe, item.run) == (recipe, run.name) for item in seal.openings)
    if own:
        watch.say(
            f"this run has opened the test side before ({own} times), and this counts again. To evaluate what was "
            f"scored then: dermkit evaluate {run}"
        )
    meetings = find_meetings(folder, dataset.manifest, sides)
    opening = new_opening(run / "model", how="--open-test", recipe=recipe, run=run.name, n=len(seal.rows))
    opened = log_opening(folder, seal.name, opening)
    number = len(opened.openings)
    notes = () if about["dataset"]["manifest_sha256"] == dataset.manifest_sha256 else (OTHER_MANIFEST,)
    write_kept(run, opened, opening=number, notes=notes)
    split = str(about["split"]["name"])
    met = log_meetings(dataset, meetings, model=run / "model", recipe=recipe, run=run.name, split=split)
    watch.say(f"opening {number} of the test side of split {seal.name} ({len(seal.rows)} images), logged")
    return _Logged(opened, number, notes, tuple(met))


def _end(run: Path, dataset: Dataset, logged: _Logged) -> None:
    """Note in the seals and in the run that the scoring came to its end; later openings belong to later reports."""
    opening = logged.seal.openings[logged.number - 1]
    seal = end_opening(seals_of(dataset), logged.seal.name, opening)
    kept = replace(seal, openings=seal.openings[: logged.number])
    write_kept(run, kept, opening=logged.number, notes=logged.notes)
    end_openings(dataset, logged.met)
