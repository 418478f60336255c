"""The folds of a recipe as one result: their rows pooled in the parent folder, and an ensemble of their nets.

docs/decisions/0011-cross-validation.md says why.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.files import write_rows
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.models.card import MAX_NETS
from dermkit.models.ensemble import write_ensemble
from dermkit.pipeline.next_steps import write_parent_next_steps
from dermkit.recipes.schema import load_recipe, save_recipe
from dermkit.runs.folder import RunFolder, read_table
from dermkit.runs.layout import (
    ATTRIBUTES_FILE,
    COLOUR_FILE,
    ENVIRONMENT,
    EXCLUDED_FILE,
    GROUPS_FILE,
    LOCATION,
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    RUN,
)
from dermkit.runs.predictions import prediction_columns, to_scored_set, write_predictions

_Json = dict[str, Any]
_OF_ONE_TRAINING = ("best", "stopped", "keep")
"""Fields of run.json that a single training has."""


@dataclass(frozen=True)
class CrossValidation:
    """The runs of every fold, seed by seed.

    runs_by_seed: seed -> the runs of its folds, in order; each seed has the same folds. The first seed is the one that
    pages show and whose nets are the final model.
    """

    runs_by_seed: Mapping[int, tuple[Path, ...]]

    @property
    def shown_seed(self) -> int:
        """The first seed: it is known before anything is trained, so that nothing is selected."""
        return next(iter(self.runs_by_seed))

    @property
    def shown_runs(self) -> tuple[Path, ...]:
        """The runs of the shown seed."""
        return self.runs_by_seed[self.shown_seed]

    @property
    def runs(self) -> list[Path]:
        """All runs."""
        return [run for runs in self.runs_by_seed.values() for run in runs]


def find_folds(runs: Sequence[Path]) -> CrossValidation | None:
    """Return the cross-validation that these runs are; None where they are of one split, or lack a fold."""
    folds_by_seed: dict[int, dict[int, Path]] = {}
    for run in runs:
        run_json = RUN.read(run)
        if run_json["fold"] is None:
            return None
        folds_by_seed.setdefault(int(run_json["seed"]), {})[int(run_json["fold"])] = run
    fold_numbers = {tuple(sorted(folds)) for folds in folds_by_seed.values()}
    if len(fold_numbers) != 1 or len(next(iter(fold_numbers))) < 2:
        return None
    return CrossValidation({
        seed: tuple(folds[fold] for fold in sorted(folds)) for seed, folds in folds_by_seed.items()
    })  # fmt: skip


def pool_folds(parent: Path, folds: CrossValidation) -> _Json:
    """Write the folds' rows and what is known of them into the parent folder; returns `pooled` of summary.json.

    Pooled test rows are there if every run scored its test images.
    """
    runs = [RunFolder(run) for run in folds.runs]
    class_names, splits = runs[0].class_names, _pooled_splits(runs)
    predictions = pd.concat([_rows_of(run.predictions, splits) for run in runs])
    _write_table(parent / PREDICTIONS_FILE, class_names, predictions)
    colours = [RunFolder(run).colour_predictions() for run in folds.shown_runs]
    if all(colour is not None for colour in colours):
        colour_rows = pd.concat([_rows_of(colour, splits) for colour in colours if colour is not None])
        _write_table(parent / COLOUR_FILE, class_names, colour_rows)
    for name in (GROUPS_FILE, ATTRIBUTES_FILE):
        _write_union(parent / name, [run / name for run in folds.runs])
    RUN.write(parent, _parent_run_json(folds, predictions, splits))
    _write_origin(parent, folds)
    return {
        "n_folds": len(folds.shown_runs),
        "splits": list(splits),
        "shown_seed": folds.shown_seed,
        "seeds": [
            {"seed": seed, **_pooled_values(parent, predictions[predictions["seed"] == str(seed)], splits)}
            for seed in folds.runs_by_seed
        ],
    }


def _pooled_splits(runs: Iterable[RunFolder]) -> tuple[str, ...]:
    """Return the splits that every run scored: validation, and test unless it is sealed."""
    scored = [set(run.predictions["split"]) for run in runs]
    return tuple(name for name in ("validation", "test") if all(name in splits for splits in scored))


def _rows_of(predictions: pd.DataFrame, splits: Sequence[str]) -> pd.DataFrame:
    return predictions[predictions["split"].isin(list(splits))]


def _write_table(path: Path, class_names: Sequence[str], predictions: pd.DataFrame) -> None:
    rows = predictions[prediction_columns(class_names)]
    write_predictions(path, class_names, rows.itertuples(index=False, name=None))


def _write_union(path: Path, tables: Sequence[Path]) -> None:
    """Write the rows of tables by image id, each image once."""
    frame = pd.concat([read_table(table) for table in tables if table.exists()] or [pd.DataFrame()])
    if len(frame):
        frame = frame.drop_duplicates("image_id").sort_values("image_id")
        write_rows(path, tuple(frame.columns), frame.itertuples(index=False, name=None))


def _pooled_values(parent: Path, predictions: pd.DataFrame, splits: Sequence[str]) -> _Json:
    """Return split -> metric -> value of one seed's pooled rows."""
    folder = RunFolder(parent)
    groups, values = folder.groups(), {}
    for split in splits:
        scored_set = to_scored_set(predictions[predictions["split"] == split], folder.classes, groups)
        metrics = evaluate_split(scored_set, seed=0, resamples=0)["metrics"]
        values[split] = {name: estimate["value"] for name, estimate in metrics.items()}
    return values


def _parent_run_json(folds: CrossValidation, predictions: pd.DataFrame, splits: Sequence[str]) -> _Json:
    run_jsons = [RUN.read(run) for run in folds.shown_runs]
    first = {name: value for name, value in run_jsons[0].items() if name not in _OF_ONE_TRAINING}
    shown = predictions[predictions["seed"] == str(folds.shown_seed)]
    counts = {split: int((shown["split"] == split).sum()) for split in splits}
    train_counts = {
        name: round(float(np.mean([run["split"]["train_counts"][name] for run in run_jsons])))
        for name in run_jsons[0]["split"]["train_counts"]
    }
    warnings = [text for run in run_jsons for text in run["warnings"]]
    if "test" not in splits:
        warnings.append("Not every fold has scored its test images (sealed), so the test figures are not pooled.")
    return {
        **first,
        "fold": None,
        "split": {
            **first["split"],
            "counts": {"train": sum(train_counts.values()), **counts},
            "train_counts": train_counts,
        },
        "warnings": list(dict.fromkeys(warnings)),
        "lint": _unique_rows(row for run in run_jsons for row in run.get("lint", [])),
        "minutes": sum(float(run.get("minutes") or 0) for run in run_jsons),
    }


def _unique_rows(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    unique_rows: list[Mapping[str, Any]] = []
    for row in rows:
        if row not in unique_rows:
            unique_rows.append(row)
    return unique_rows


def _write_origin(parent: Path, folds: CrossValidation) -> None:
    """Write the recipe with all its seeds, and copies of what is the same in every fold."""
    first = folds.shown_runs[0]
    recipe = load_recipe(first / RECIPE_FILE)
    save_recipe(replace(recipe, repeats=len(folds.runs_by_seed)), parent / RECIPE_FILE)
    for name in (EXCLUDED_FILE, ENVIRONMENT.name, LOCATION.name):
        if (first / name).exists():
            shutil.copyfile(first / name, parent / name)
    write_parent_next_steps(parent)


def write_final_ensemble(parent: Path, folds: CrossValidation) -> _Json:
    """Write the parent's model, the mean of the shown seed's nets; returns `final` of summary.json."""
    members = folds.shown_runs[:MAX_NETS]
    write_ensemble(parent / MODEL_FOLDER, [run / MODEL_FOLDER for run in members])
    return {
        "seed": folds.shown_seed,
        "fold": None,
        "folder": "",
        "members": [run.name for run in members],
        "chosen_by": f"nothing: it is the mean of the {len(members)} nets of seed {folds.shown_seed}, one of "
        f"{_folds_text(len(members), len(folds.shown_runs))}",
    }


def _folds_text(n_members: int, n_folds: int) -> str:
    if n_members == n_folds:
        return "each fold"
    return f"each of the first {n_members} of {n_folds} folds, since a model holds no more nets"


def evaluate_folds(parent: Path, *, options: EvaluationOptions = DEFAULT_OPTIONS) -> Path:
    """Evaluate the pooled rows of the shown seed, as a run's are, and write the report; returns its path."""
    from dermkit.pipeline.run import evaluate_and_report

    return evaluate_and_report(parent, RunFolder(parent).images_root(), options=options)
