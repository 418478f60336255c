"""The folds of a recipe as one result: their rows pooled in the parent folder, and an ensemble of their nets.

docs/decisions/0011-cross-validation.md says why, 0012-folds-beside-test-images.md for folds of training images alone.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.out_of_distribution import pool_distances
from dermkit.files import fingerprint, write_rows
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.models.card import MAX_NETS, read_card
from dermkit.models.checksums import expected_hashes
from dermkit.models.ensemble import write_ensemble
from dermkit.pipeline.next_steps import write_parent_next_steps
from dermkit.progress import Progress
from dermkit.recipes.schema import load_recipe, save_recipe
from dermkit.runs.folder import RunFolder, read_table
from dermkit.runs.layout import (
    ATTRIBUTES_FILE,
    ENSEMBLE_TEST,
    ENVIRONMENT,
    EXCLUDED_FILE,
    GROUPS_FILE,
    IMAGE_BLIND,
    IMAGE_BLIND_FILE,
    LOCATION,
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    RUN,
)
from dermkit.runs.predictions import prediction_columns, to_scored_set, write_predictions, write_rule_predictions

_Json = dict[str, Any]
_OF_ONE_TRAINING = ("best", "stopped", "keep")
"""Fields of run.json that a single training has."""


@dataclass(frozen=True)
class CrossValidation:
    """The runs of every fold, seed by seed.

    runs_by_seed: seed -> the runs of its folds, in order; each seed has the same folds. The first seed is the one that
    pages show. scores_test_by_ensemble: whether the folds lie beside test images, which only the final model scores.
    """

    runs_by_seed: Mapping[int, tuple[Path, ...]]
    scores_test_by_ensemble: bool = False

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

    @property
    def member_seeds(self) -> list[int]:
        """The seeds whose nets are the final model: beside test images all that a model holds, else the shown one."""
        seeds = list(self.runs_by_seed)
        return seeds[: max(1, MAX_NETS // len(self.shown_runs))] if self.scores_test_by_ensemble else seeds[:1]

    @property
    def members(self) -> list[Path]:
        """The runs whose nets are the final model."""
        return [run for seed in self.member_seeds for run in self.runs_by_seed[seed]][:MAX_NETS]


def find_folds(runs: Sequence[Path]) -> CrossValidation | None:
    """Return the cross-validation that these runs are; None where they are of one split, or lack a fold.

    One fold alone is one only beside test images, where it is the rest that is trained on.
    """
    folds_by_seed: dict[int, dict[int, Path]] = {}
    are_beside_test: set[bool] = set()
    for run in runs:
        run_json = RUN.read(run)
        are_beside_test.add(bool(run_json["split"].get("leaves_test_to_ensemble")))
        if run_json["fold"] is None:
            return None
        folds_by_seed.setdefault(int(run_json["seed"]), {})[int(run_json["fold"])] = run
    fold_numbers = {tuple(sorted(folds)) for folds in folds_by_seed.values()}
    if len(fold_numbers) != 1 or len(are_beside_test) != 1:
        return None
    if len(next(iter(fold_numbers))) < 2 and are_beside_test != {True}:
        return None
    runs_by_seed = {seed: tuple(folds[fold] for fold in sorted(folds)) for seed, folds in folds_by_seed.items()}
    return CrossValidation(runs_by_seed, are_beside_test.pop())


def pool_folds(parent: Path, folds: CrossValidation) -> _Json:
    """Write the folds' rows and what is known of them into the parent folder; returns `pooled` of summary.json.

    Pooled test rows are there if every run scored its test images. Test rows that the ensemble of these very nets has
    scored stay there.
    """
    runs = [RunFolder(run) for run in folds.runs]
    class_names, splits = runs[0].class_names, _pooled_splits(runs)
    test_rows, test_rules = ensemble_test_rows(parent, folds, class_names)
    predictions = pd.concat([_rows_of(run.predictions, splits) for run in runs])
    _write_table(parent / PREDICTIONS_FILE, class_names, _with_test_rows(predictions, test_rows, folds))
    _pool_rules(parent, folds, splits, test_rules)
    if not folds.scores_test_by_ensemble:  # else it has scored them, or will
        pool_distances(parent, folds.shown_runs)
    tested = [parent] if len(test_rows) else []
    for name in (GROUPS_FILE, ATTRIBUTES_FILE):
        _write_union(parent / name, [run / name for run in [*folds.runs, *tested]])
    earlier = RUN.read_optional(parent)
    openings = {"openings": earlier["openings"]} if "openings" in earlier else {}
    RUN.write(parent, {**_parent_run_json(folds, predictions, splits), **openings})
    _write_origin(parent, folds)
    return {
        "n_folds": len(folds.shown_runs),
        "splits": list(splits),
        "shown_seed": folds.shown_seed,
        "scores_test_by_ensemble": folds.scores_test_by_ensemble,
        "seeds": [
            {"seed": seed, **_pooled_values(parent, predictions[predictions["seed"] == str(seed)], splits)}
            for seed in folds.runs_by_seed
        ],
    }


def _pool_rules(
    parent: Path, folds: CrossValidation, splits: Sequence[str], test_rules: Mapping[str, pd.DataFrame]
) -> None:
    """Write the rows of the image-blind rules that every fold has, each scored by the rule of its own fold.

    test_rules: test rows of the rules beside the ensemble, which may be more: they were fitted on more images.
    """
    runs = [RunFolder(run) for run in folds.shown_runs]
    tables, columns = [run.rule_predictions() for run in runs], prediction_columns(runs[0].class_names)
    common = [name for name in tables[0] if all(name in rules for rules in tables)]
    rows = {name: pd.concat([_rows_of(rules[name], splits) for rules in tables]) for name in common}
    none = pd.DataFrame(columns=columns)
    names = dict.fromkeys(
        [*test_rules, *common]
    )  # in the order in which the scoring of the test images wrote them
    pooled = {name: _with_test_rows(rows.get(name, none), test_rules.get(name, none), folds) for name in names}
    if pooled:
        write_rule_predictions(parent / IMAGE_BLIND_FILE, runs[0].class_names, pooled)
    if test_rules:
        return  # what was written with them is of the rules that scored the test images
    notes = [IMAGE_BLIND.read(run.path) for run in runs if IMAGE_BLIND.exists(run.path)]
    if notes:
        reasons = {name: reason for note in notes for name, reason in note["not_applicable"].items()}
        rules = {name: rule for name, rule in notes[0]["rules"].items() if name not in reasons}
        IMAGE_BLIND.write(parent, {"rules": rules, "not_applicable": reasons})


def _pooled_splits(runs: Iterable[RunFolder]) -> tuple[str, ...]:
    """Return the splits that every run scored: validation, and test unless it is sealed."""
    scored = [set(run.predictions["split"]) for run in runs]
    return tuple(name for name in ("validation", "test") if all(name in splits for splits in scored))


def _rows_of(predictions: pd.DataFrame, splits: Sequence[str]) -> pd.DataFrame:
    return predictions[predictions["split"].isin(list(splits))]


def _with_test_rows(rows: pd.DataFrame, test_rows: pd.DataFrame, folds: CrossValidation) -> pd.DataFrame:
    """Return the folds' rows; beside test images with those of the ensemble, in the order of their scoring."""
    if not folds.scores_test_by_ensemble:
        return rows
    return pd.concat([rows, test_rows]).sort_values("image_id", kind="stable")


def _write_table(path: Path, class_names: Sequence[str], predictions: pd.DataFrame) -> None:
    rows = predictions[prediction_columns(class_names)]
    write_predictions(path, class_names, rows.itertuples(index=False, name=None))


def _write_union(path: Path, tables: Sequence[Path]) -> None:
    """Write the rows of tables by image id, each image once."""
    frame = pd.concat([read_table(table) for table in tables if table.exists()] or [pd.DataFrame()])
    if len(frame):
        # Runs of an earlier version lack a column that others have.
        frame = frame.fillna("").drop_duplicates("image_id").sort_values("image_id")
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
    split_json = {name: value for name, value in first["split"].items() if name != "leaves_test_to_ensemble"}
    if folds.scores_test_by_ensemble:
        counts["test"] = int(split_json["counts"]["test"])
    elif "test" not in splits:
        warnings.append("Not every fold has scored its test images (sealed), so the test figures are not pooled.")
    return {
        **first,
        "fold": None,
        "split": {
            **split_json,
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
    write_parent_next_steps(parent, scores_test=folds.scores_test_by_ensemble)


def write_final_ensemble(parent: Path, folds: CrossValidation) -> _Json:
    """Write the parent's model, the mean of the members' nets; returns `final` of summary.json."""
    members, seeds = folds.members, [str(seed) for seed in folds.member_seeds]
    seeds_text = f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
    write_ensemble(parent / MODEL_FOLDER, [run / MODEL_FOLDER for run in members])
    return {
        "seed": folds.shown_seed,
        "fold": None,
        "folder": "",
        "members": [run.name for run in members],
        "chosen_by": "nothing: it is the only net that was trained"
        if len(members) == 1
        else f"nothing: it is the mean of the {len(members)} nets of {seeds_text}, one of "
        f"{_folds_text(len(members) // len(seeds), len(folds.shown_runs))}",
    }


# The test rows of the ensemble -------------------------------------------------------------------------------------


def ensemble_key(members: Sequence[Path]) -> str:
    """Return what tells an ensemble of these runs from another: their nets, views and calibrations."""
    return fingerprint([
        [expected_hashes(run / MODEL_FOLDER)[member["file"]], member["views"], card["calibration"]]
        for run in members
        for card in [read_card(run / MODEL_FOLDER)]
        for member in card["members"]
    ])  # fmt: skip


def ensemble_test_rows(
    parent: Path, folds: CrossValidation, class_names: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the test rows of predictions and image-blind rules that the ensemble of these nets scored."""
    columns = prediction_columns(class_names)
    none = pd.DataFrame(columns=columns)
    if not folds.scores_test_by_ensemble or not ENSEMBLE_TEST.exists(parent):
        return none, {}
    if ENSEMBLE_TEST.read(parent)["key"] != ensemble_key(folds.members):
        return none, {}
    rules = RunFolder(parent).rule_predictions()
    return _rows_of(read_table(parent / PREDICTIONS_FILE, *columns), ["test"]), {
        name: _rows_of(rows, ["test"]) for name, rows in rules.items()
    }


def has_scored_test(parent: Path, members: Sequence[Path]) -> bool:
    """Return whether the ensemble of these runs has scored the test images of a parent folder."""
    return ENSEMBLE_TEST.exists(parent) and ENSEMBLE_TEST.read(parent)["key"] == ensemble_key(members)


def _folds_text(n_members: int, n_folds: int) -> str:
    if n_members == n_folds:
        return "each fold"
    return f"each of the first {n_members} of {n_folds} folds, since a model holds no more nets"


def evaluate_folds(
    parent: Path, *, options: EvaluationOptions = DEFAULT_OPTIONS, device: str = "auto",
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Evaluate the pooled rows of the shown seed, as a run's are, and write the report; returns its path."""
    from dermkit.pipeline.run import evaluate_and_report

    return evaluate_and_report(
        parent, RunFolder(parent).images_root(), options=options, device=device, progress=progress
    )
