"""What a race found: the leaderboard of out-of-fold figures, the recipe that was chosen, and its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermkit.data.manifest import Dataset
from dermkit.data.split import Split
from dermkit.errors import DataError
from dermkit.evaluation.options import DEFAULT_OPTIONS
from dermkit.evaluation.selection import selected_among
from dermkit.files import write_rows
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.stats.estimate import reliability
from dermkit.pipeline.ensemble import ensemble
from dermkit.pipeline.ensemble_test import withhold_test
from dermkit.pipeline.repeats import summarise_repeats
from dermkit.progress import Progress
from dermkit.reporting.auto_page import RACE_METRICS, write_auto_page
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import AUTO, LEADERBOARD_TABLE
from dermkit.runs.predictions import to_scored_set

ENSEMBLE_FOLDER = "ensemble"
"""The ensemble of all recipes: its folder in that of a race, and its name in the leaderboard."""

CHOICE_METRIC = "balanced_accuracy"
"""What the leaderboard is ordered by: each class counts as much, whatever the mixture of the classes."""


@dataclass(frozen=True)
class FinishedRecipe:
    """A recipe that was trained on every fold of the race.

    split: with these folds. runs: one a fold, in order. seconds: of their training.
    """

    name: str
    split: Split
    runs: tuple[Path, ...]
    seconds: float


def write_results(
    folder: Path,
    document: dict[str, Any],
    dataset: Dataset,
    recipes: Sequence[FinishedRecipe],
    progress: Progress,
) -> None:
    """Write leaderboard.csv, the chosen model, auto.json and auto.html of a race's folder.

    document: what auto.json holds. Raises `DataError` where no recipe was finished.
    """
    if not recipes:
        raise DataError(
            f"{folder}: no recipe was trained to its end",
            outcome="the plan and what was trained",
            remedy="give more time, or look at the messages above",
        )
    finals = [_write_model(recipe, dataset) for recipe in recipes]
    if len(recipes) > 1:
        finals.append(_write_ensemble(folder, recipes, progress))
    selected = selected_among([[final.scored_set for final in finals]], CHOICE_METRIC, seed=document["seed"])
    chosen = finals[selected.best]
    metrics = [evaluate_split(final.scored_set, seed=document["seed"])["metrics"] for final in finals]
    rows = [
        _row(final, figures, is_chosen=final is chosen) for final, figures in zip(finals, metrics, strict=True)
    ]
    _write_leaderboard(folder, document, rows)
    progress.say(f"the best out of fold: {chosen.name}")
    document["chosen"] = {
        "name": chosen.name, "folder": str(chosen.folder.relative_to(folder)), "metric": CHOICE_METRIC,
        "estimate": metrics[selected.best][CHOICE_METRIC],
        "value": selected.value, "corrected": selected.corrected.as_dict(), "optimism": selected.optimism,
        "n_recipes": len(finals),
    }  # fmt: skip
    AUTO.write(folder, document)
    write_auto_page(folder)


@dataclass(frozen=True)
class _Final:
    """What may be chosen: a recipe, or the ensemble of all. folder: of its model and its out-of-fold predictions."""

    name: str
    scored_set: ScoredSet
    folder: Path
    seconds: float


def _write_model(recipe: FinishedRecipe, dataset: Dataset) -> _Final:
    """Write the model, the figures and the report of a recipe's folds; its test images stay unscored."""
    parent = recipe.runs[0].parent

    def leave_test(_members: Sequence[Path]) -> None:
        withhold_test(parent, dataset, recipe.split)

    # Heat maps load every fold's net again, in a time that is planned for trainings.
    summarise_repeats(
        parent, recipe.runs, monitor="val_balanced_accuracy", score_test=leave_test,
        options=replace(DEFAULT_OPTIONS, heat_maps=False),
    )  # fmt: skip
    return _Final(recipe.name, out_of_fold(parent), parent, recipe.seconds)


def _write_ensemble(folder: Path, recipes: Sequence[FinishedRecipe], progress: Progress) -> _Final:
    """Write the ensemble of all recipes, weighed on their out-of-fold predictions."""
    progress.say(f"the ensemble of {len(recipes)} recipes")
    out = folder / ENSEMBLE_FOLDER
    ensemble([recipe.runs[0].parent for recipe in recipes], out=out, progress=progress)
    return _Final(ENSEMBLE_FOLDER, out_of_fold(out), out, sum(recipe.seconds for recipe in recipes))


def out_of_fold(folder: Path) -> ScoredSet:
    """Return the validation images of all folds, each as nets scored it that did not train on it.

    folder: the parent folder of the folds, or an ensemble of several.
    """
    run = RunFolder(folder)
    rows = run.predictions
    return to_scored_set(rows[rows["split"] == "validation"], run.classes, run.groups())


def _write_leaderboard(folder: Path, document: Mapping[str, Any], rows: Sequence[Sequence[object]]) -> None:
    """Write leaderboard.csv, the best first, then the recipes that were not finished."""
    finished_names = {row[0] for row in rows}
    columns = [f"{metric}{end}" for metric in RACE_METRICS for end in ("", "_low", "_high")]
    names = [candidate["recipe"]["name"] for candidate in document["plan"]["candidates"]]
    unfinished = [
        (name, document["states"].get(name, "not begun"), False, *[""] * (len(columns) + 3))
        for name in names
        if name not in finished_names
    ]
    best_first = sorted(rows, key=lambda row: -float(str(row[3])))
    header = ("name", "state", "is_chosen", *columns, "n", "seconds", "unreliable")
    write_rows(folder / LEADERBOARD_TABLE, header, [*best_first, *unfinished])


def _row(final: _Final, metrics: Mapping[str, Any], *, is_chosen: bool) -> tuple[object, ...]:
    n = len(final.scored_set.y_true)
    cells: list[object] = []
    for metric in RACE_METRICS:
        estimate = metrics[metric]
        low, high = estimate["ci95"] or ("", "")
        cells += ["" if estimate["value"] is None else estimate["value"], low, high]
    doubtful = " ".join(metric for metric in RACE_METRICS if reliability(metrics[metric]))
    return (final.name, "complete", is_chosen, *cells, n, round(final.seconds, 1), doubtful)
