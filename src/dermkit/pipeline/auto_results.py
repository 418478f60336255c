"""What a race found: the leaderboard of out-of-fold figures, the recipe that was chosen, and its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.errors import DataError
from dermkit.evaluation.selection import selected_among
from dermkit.files import write_rows
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.pipeline.repeats import summarise_repeats
from dermkit.progress import Progress
from dermkit.reporting.auto_page import RACE_METRICS, write_auto_page
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import AUTO, LEADERBOARD_TABLE
from dermkit.runs.predictions import to_scored_set

CHOICE_METRIC = "balanced_accuracy"
"""What the leaderboard is ordered by: each class counts as much, whatever the mixture of the classes."""


@dataclass(frozen=True)
class FinishedRecipe:
    """A recipe that was trained on every fold. runs: one a fold, in order. seconds: of their training."""

    name: str
    runs: tuple[Path, ...]
    seconds: float


def write_results(
    folder: Path, document: dict[str, Any], recipes: Sequence[FinishedRecipe], progress: Progress
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
    scored_sets = [out_of_fold(recipe.runs) for recipe in recipes]
    selected = selected_among([scored_sets], CHOICE_METRIC, seed=document["seed"])
    chosen = recipes[selected.best]
    rows = [
        _row(recipe, scored_set, recipe is chosen, seed=document["seed"])
        for recipe, scored_set in zip(recipes, scored_sets, strict=True)
    ]
    _write_leaderboard(folder, document, rows)
    progress.say(f"the best out of fold: {chosen.name}")
    final = summarise_repeats(chosen.runs[0].parent, chosen.runs, monitor="val_balanced_accuracy")
    document["chosen"] = {
        "name": chosen.name, "folder": str(final.relative_to(folder)), "metric": CHOICE_METRIC,
        "value": selected.value, "corrected": selected.corrected.as_dict(), "optimism": selected.optimism,
        "n_recipes": len(recipes),
    }  # fmt: skip
    AUTO.write(folder, document)
    write_auto_page(folder)


def out_of_fold(runs: Sequence[Path]) -> ScoredSet:
    """Return the validation images of all folds, each as the net scored it that did not train on it."""
    folders = [RunFolder(run) for run in runs]
    rows = pd.concat([folder.predictions for folder in folders])
    groups: dict[str, int] = {}
    for folder in folders:
        groups |= folder.groups() or {}
    return to_scored_set(rows[rows["split"] == "validation"], folders[0].classes, groups or None)


def _write_leaderboard(folder: Path, document: Mapping[str, Any], rows: Sequence[Sequence[object]]) -> None:
    """Write leaderboard.csv, the best first, then the recipes that were not finished."""
    finished_names = {row[0] for row in rows}
    columns = [f"{metric}{end}" for metric in RACE_METRICS for end in ("", "_low", "_high")]
    names = [candidate["recipe"]["name"] for candidate in document["plan"]["candidates"]]
    unfinished = [
        (name, document["states"].get(name, "not begun"), False, *[""] * (len(columns) + 2))
        for name in names
        if name not in finished_names
    ]
    best_first = sorted(rows, key=lambda row: -float(str(row[3])))
    header = ("name", "state", "is_chosen", *columns, "n", "seconds")
    write_rows(folder / LEADERBOARD_TABLE, header, [*best_first, *unfinished])


def _row(recipe: FinishedRecipe, scored_set: ScoredSet, is_chosen: bool, *, seed: int) -> tuple[object, ...]:
    metrics = evaluate_split(scored_set, seed=seed)["metrics"]
    cells: list[object] = []
    for metric in RACE_METRICS:
        estimate = metrics[metric]
        low, high = estimate["ci95"] or ("", "")
        cells += ["" if estimate["value"] is None else estimate["value"], low, high]
    return (recipe.name, "complete", is_chosen, *cells, len(scored_set.y_true), round(recipe.seconds, 1))
