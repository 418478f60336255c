"""An ensemble of recipes: one model of several runs' nets, weights fitted on images that none of them learned from.

The folder is like a run's: its model, the validation predictions that weights and policy were fitted on, a report.
No test image is scored; `dermkit evaluate FOLDER --open-test DATASET` does that, once, and logs it.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dermkit.data.manifest import LesionClass
from dermkit.errors import UsageError
from dermkit.files import check_output, check_writable, shell_path, write_rows, write_text
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.mixture_weights import BEST, EQUAL, FITTED, WeightChoice, choose_weights
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import ENSEMBLE_FIELD
from dermkit.models.ensemble import write_ensemble
from dermkit.pipeline.ensemble_sources import EnsembleSource, check_fittable, find_sources, is_fittable
from dermkit.pipeline.saved_targets import keep_saved_targets
from dermkit.progress import Progress
from dermkit.runs.folder import RunFolder, read_table, writing_into
from dermkit.runs.layout import (
    ATTRIBUTES_FILE,
    COUNTERFACTUALS,
    COUNTERFACTUALS_FOLDER,
    DISTANCES_FILE,
    ENSEMBLE_TABLE,
    GROUPS_FILE,
    IMAGE_BLIND,
    IMAGE_BLIND_FILE,
    LOCATION,
    MODEL_FOLDER,
    NEXT_STEPS_FILE,
    OUT_OF_DISTRIBUTION,
    PREDICTIONS_FILE,
    RUN,
    RUN_SEAL,
    SPLIT_FILE,
)
from dermkit.runs.predictions import (
    PREDICTION_COLUMNS,
    prediction_columns,
    to_scored_set,
    write_predictions,
    write_rule_predictions,
)

WeightScheme = Literal["fitted", "equal"]
ENSEMBLE_SEED = 0
"""Stands in the column `seed`: an ensemble has no seed of its own."""

_OF_ONE_TRAINING = (
    "best",
    "stopped",
    "keep",
    "continued_from",
    "minutes",
    "minutes_training",
    "overfitting",
    "openings",
)


@dataclass(frozen=True)
class EnsembleOutcome:
    """What `ensemble` wrote. report: None where no validation images could be used. sentences: what to read first."""

    folder: Path
    report: Path | None
    sentences: tuple[str, ...]


def ensemble(
    models: Sequence[Path], *, out: Path, weights: WeightScheme = "fitted", progress: Progress | None = None
) -> EnsembleOutcome:
    """Make one model of several runs or models, evaluate it on its members' validation images, and write a report.

    models: runs, folders of repeats or folds, or model folders. weights: fitted = on validation images that no member
    learned from, and used where they beat equal ones there in a cross-validation. Raises `UsageError` or `DataError`
    before anything is written where the models cannot be one.
    """
    progress = progress or Progress()
    if weights not in ("fitted", "equal"):
        raise UsageError(f"--weights {weights}: unknown", outcome="nothing was written", remedy="fitted or equal")
    sources = find_sources(models)
    if weights == "fitted":
        check_fittable(sources)
    problem = is_fittable(sources)
    check_output(out, marker=RUN.name, description="an ensemble")
    check_writable(out)
    _check_own_folder(out)
    if problem:
        return _write_unweighed(out, sources, problem)
    scored_set = _scored_set(sources[0])
    choice = choose_weights(scored_set, [source.scores(scored_set.classes) for source in sources])
    if weights == "equal" and choice.scheme == FITTED:
        choice = _equal_choice(choice, len(sources))
    progress.say(f"weights: {choice.reason}")
    return _write(out, sources, scored_set, choice, progress)


def _check_own_folder(out: Path) -> None:
    """Raise `UsageError` where the output is a run that it is made of, or any run that is no ensemble."""
    if RUN.exists(out) and not RunFolder(out).ensemble:
        raise UsageError(
            f"{out}: is a run, not an ensemble", outcome="everything there", remedy="name a new folder with --out"
        )


def _equal_choice(choice: WeightChoice, n_models: int) -> WeightChoice:
    weights = np.full(n_models, 1 / n_models)
    reason = f"equal ones, as asked; {choice.reason}"
    return WeightChoice(weights, EQUAL, choice.figures, choice.best, reason)


def _scored_set(source: EnsembleSource) -> ScoredSet:
    """Return labels and groups of the validation images; its probabilities are of this one model."""
    classes = tuple(LesionClass(**fields) for fields in source.card["classes"])
    assert source.run is not None  # noqa: S101  check_fittable said so
    return to_scored_set(source.rows, classes, source.run.groups())


# Writing ----------------------------------------------------------------------------------------------------------


def _write(
    out: Path, sources: Sequence[EnsembleSource], scored_set: ScoredSet, choice: WeightChoice, progress: Progress
) -> EnsembleOutcome:
    from dermkit.pipeline.run import evaluate_and_report

    description = _description(sources, choice, scored_set)
    run = sources[0].run
    assert run is not None  # noqa: S101  check_fittable said so
    openings = _earlier_openings(out)
    with writing_into(out):
        keep_saved_targets(out)
        _drop_earlier_checks(out)
        _write_model(out, sources, choice.weights, description)
        _write_rows(out, sources, scored_set, choice.weights)
        _copy_images(out, sources, run)
        _write_figures(out / ENSEMBLE_TABLE, choice)
        RUN.write(out, _run_json(sources, run, {**description, "openings": openings}, choice))
        write_text(out / NEXT_STEPS_FILE, _next_steps(out, sources))
        report = evaluate_and_report(out, run.images_root(), progress=progress)
    return EnsembleOutcome(out, report, tuple(_sentences(sources, choice)))


def _write_unweighed(out: Path, sources: Sequence[EnsembleSource], problem: str) -> EnsembleOutcome:
    """Write the model alone, of equal weights: there are no images to fit thresholds or figures on."""
    n = len(sources)
    weights = np.full(n, 1 / n)
    note = f"Equal weights. No thresholds and no figures: {problem}."
    description = {"weights": EQUAL, "n": 0, "sources": _source_rows(sources, weights), "note": note}
    with writing_into(out):
        _write_model(out, sources, weights, description)
        card = sources[0].card
        RUN.write(
            out,
            {
                **_names(sources),
                "dataset": card["dataset"],
                "ensemble": {**description, "openings": []},
                "warnings": [note],
            },
        )
    return EnsembleOutcome(out, None, (note,))


def _earlier_openings(out: Path) -> list[Any]:
    """Return how often an ensemble that is written anew has scored its test images: that goes on counting."""
    return list(RunFolder(out).ensemble.get("openings", [])) if RUN.exists(out) else []


def _names(sources: Sequence[EnsembleSource]) -> dict[str, Any]:
    names = " + ".join(dict.fromkeys(source.name for source in sources))
    return {
        "recipe": f"ensemble of {names}",
        "system": "",
        "about": f"The weighted mean of {len(sources)} models.",
    }


def _drop_earlier_checks(out: Path) -> None:
    """Leave nothing that was measured of the model that an ensemble had before: its report would show it as its own."""
    for name in (OUT_OF_DISTRIBUTION.name, DISTANCES_FILE):
        (out / name).unlink(missing_ok=True)
    counterfactuals = out / COUNTERFACTUALS_FOLDER
    if COUNTERFACTUALS.exists(counterfactuals):
        COUNTERFACTUALS.write(counterfactuals, {**COUNTERFACTUALS.read(counterfactuals), "is_complete": False})


def _write_model(
    out: Path, sources: Sequence[EnsembleSource], weights: Floats, description: Mapping[str, Any]
) -> None:
    names = _names(sources)
    fields = {
        "recipe": {"name": names["recipe"], "about": names["about"]},
        ENSEMBLE_FIELD: description,
    }
    models = [source.model for source in sources]
    write_ensemble(out / MODEL_FOLDER, models, weights=weights.tolist(), description=fields)


def _write_rows(out: Path, sources: Sequence[EnsembleSource], scored_set: ScoredSet, weights: Floats) -> None:
    """Write the ensemble's validation predictions: of each image by nets that had not learned from it."""
    names, rows = list(scored_set.classes), sources[0].rows
    calibrated = [source.scores(names).calibrated() for source in sources]
    p = np.tensordot(weights, np.stack(calibrated), axes=1)
    table = rows[list(PREDICTION_COLUMNS)].assign(seed=ENSEMBLE_SEED, predicted=np.array(names)[p.argmax(axis=1)])
    table = pd.concat(
        [table, pd.DataFrame(p, columns=prediction_columns(names)[len(PREDICTION_COLUMNS) :])], axis=1
    )
    write_predictions(out / PREDICTIONS_FILE, names, table.itertuples(index=False, name=None))


def _copy_images(out: Path, sources: Sequence[EnsembleSource], run: RunFolder) -> None:
    """Copy what the first model's run says of the images: groups, metadata, image-blind rules, split, seal."""
    for name in (GROUPS_FILE, ATTRIBUTES_FILE, LOCATION.name):
        _copy(run.path / name, out / name)
    rules = {
        name: rows[rows["split"] == "validation"].assign(seed=str(ENSEMBLE_SEED))
        for name, rows in run.rule_predictions().items()
    }
    if rules:
        write_rule_predictions(out / IMAGE_BLIND_FILE, run.class_names, rules)
    _copy(run.path / IMAGE_BLIND.name, out / IMAGE_BLIND.name)
    split = _common_split(sources)
    if split is None:
        (out / SPLIT_FILE).unlink(missing_ok=True)
        (out / RUN_SEAL.name).unlink(missing_ok=True)
        return
    write_rows(out / SPLIT_FILE, tuple(split.columns), split.to_numpy().tolist())
    if seal := run.seal:
        RUN_SEAL.write(out, {**seal, "opening_number": None})


def _copy(source: Path, destination: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, destination)


def _common_split(sources: Sequence[EnsembleSource]) -> pd.DataFrame | None:
    """Return the split that every run was trained on, its folds only where test images lie beside them.

    None for other folds, or where the splits differ: no test is common then.
    """
    tables = []
    for source in sources:
        if source.run is None or not (source.run.path / SPLIT_FILE).is_file():
            return None
        columns = ["image_id", "split", "fold"] if source.run.scores_test_by_ensemble else ["image_id", "split"]
        if source.is_folds and "fold" not in columns:
            return None
        table = read_table(source.run.path / SPLIT_FILE, *columns)[columns]
        tables.append(table.sort_values("image_id").reset_index(drop=True))
    return tables[0] if all(table.equals(tables[0]) for table in tables[1:]) else None


def _write_figures(path: Path, choice: WeightChoice) -> None:
    header = ("weights", "metric", "in_sample", "cross_validated", "ci95_low", "ci95_high", "method", "reason")
    rows = [
        (
            scheme, metric, _cell(figures.in_sample[metric]), _cell(estimate.value),
            *map(_cell, estimate.ci95 or (None, None)), estimate.method, estimate.reason,
        )
        for scheme, figures in choice.figures.items()
        for metric, estimate in figures.cross_validated.items()
    ]  # fmt: skip
    write_rows(path, header, rows)


def _cell(value: float | None) -> object:
    return "" if value is None else value


# What is said -----------------------------------------------------------------------------------------------------


def _source_rows(sources: Sequence[EnsembleSource], weights: Floats) -> list[dict[str, Any]]:
    return [
        {
            "recipe": source.name,
            "folder": "/".join(source.folder.resolve().parts[-2:]),
            "n_nets": len(source.card["members"]),
            "weight": float(weight),
        }
        for source, weight in zip(sources, weights, strict=True)
    ]


def _description(sources: Sequence[EnsembleSource], choice: WeightChoice, scored_set: ScoredSet) -> dict[str, Any]:
    n, is_folds = len(scored_set.y_true), sources[0].is_folds
    images = (
        f"{n} out-of-fold images, each scored by one net of every model, trained without it; the mean of all nets was "
        "tested on none of them"
        if is_folds
        else f"the {n} validation images that all models have in common; they had also stopped or selected each single "
        "net, and calibrated it"
    )
    verb = "fitted on" if choice.scheme == FITTED else "equal: they were tried on"
    return {
        "weights": choice.scheme,
        "fitted_on": "out-of-fold images" if is_folds else "validation images",
        "n": n,
        "sources": _source_rows(sources, choice.weights),
        "note": f"The weights are {verb} {images} ({choice.reason}). Thresholds were fitted on the same images, so "
        "their figures there are too good; test images had no part in it.",
    }


def _run_json(
    sources: Sequence[EnsembleSource], run: RunFolder, description: Mapping[str, Any], choice: WeightChoice
) -> dict[str, Any]:
    first = {name: value for name, value in run.run_json.items() if name not in _OF_ONE_TRAINING}
    n_validation = description["n"]
    counts = {**first["split"]["counts"], "validation": n_validation}
    texts = [text for source in sources if source.run for text in source.run.run_json["warnings"]]
    minutes = [source.run.run_json.get("minutes") or 0 for source in sources if source.run]
    return {
        **first,
        **_names(sources),
        "seed": ENSEMBLE_SEED,
        "fold": None,
        "split": {**first["split"], "counts": {name: n for name, n in counts.items() if name != "test"}},
        "ensemble": {**description, "sources": _with_recipes(description["sources"], sources)},
        "warnings": list(dict.fromkeys([description["note"], *_sentences(sources, choice), *texts])),
        "lint": [],
        "minutes": sum(map(float, minutes)),
    }


def _with_recipes(rows: Sequence[Mapping[str, Any]], sources: Sequence[EnsembleSource]) -> list[dict[str, Any]]:
    """Return the rows of the models with net, training, seed and versions of each, as METHODS.md says them."""
    from dermkit.reporting.paper_facts import member_facts  # here, since the chain of imports to it is long

    return [
        {**row, **(member_facts(source.run) if source.run else {})}
        for row, source in zip(rows, sources, strict=True)
    ]


def _sentences(sources: Sequence[EnsembleSource], choice: WeightChoice) -> list[str]:
    """Return the weights, and log loss and balanced accuracy of each way to weigh."""
    pairs = zip(choice.weights, sources, strict=True)
    weights = ", ".join(f"{weight:.3g} {source.name}" for weight, source in pairs)
    lines = [f"Weights ({choice.scheme}): {weights}."]
    titles = {FITTED: "fitted weights", EQUAL: "equal weights", BEST: f"best single ({sources[choice.best].name})"}
    for scheme, figures in choice.figures.items():
        texts = []
        for metric, title in (("loss", "log loss"), ("balanced_accuracy", "balanced accuracy")):
            estimate, own = figures.cross_validated[metric], figures.in_sample[metric]
            interval = f" ({estimate.ci95[0]:.3f} to {estimate.ci95[1]:.3f})" if estimate.ci95 else ""
            value = "not defined" if estimate.value is None else f"{estimate.value:.4f}{interval}"
            texts.append(f"{title} {value}, {'not defined' if own is None else f'{own:.4f}'} in sample")
        lines.append(f"{titles[scheme]}, cross-validated: {'; '.join(texts)}.")
    return lines


def _next_steps(out: Path, sources: Sequence[EnsembleSource]) -> str:
    folder, members = shell_path(out), " ".join(shell_path(source.folder) for source in sources)
    return f"""Research use only. Not a medical device.

Predict new images (files, folders, patterns):
  dermkit predict {shell_path(out / MODEL_FOLDER)} IMAGE... --out predictions

Score the test images that all members were trained without, once, when everything is decided:
  dermkit evaluate {folder} --open-test DATASET

Compare with its members, image by image:
  dermkit compare {folder} {members}

Test on another data set:
  dermkit evaluate {folder} --on OTHER_DATASET [--map CLASSES.json]
"""
