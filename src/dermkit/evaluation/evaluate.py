"""predictions.csv -> metrics.json and the tables beside it, without torch; classes are matched by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.evaluation import tables
from dermkit.evaluation.breakdowns import official_metrics, subgroups_by_attribute
from dermkit.evaluation.lint_run import lint_run_predictions
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.overfitting import diagnose_overfitting
from dermkit.evaluation.policy import (
    POLICY_SPLIT,
    PolicyWithExtras,
    check_options,
    fit_with_targets,
    policy_metrics,
)
from dermkit.files import write_rows, write_text
from dermkit.lint.rules import write_lint
from dermkit.metrics.classification import isic_scorer
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.policy import apply_calibration, policy_from_dict
from dermkit.metrics.stats.intervals import N_RESAMPLES
from dermkit.render.cells import defused
from dermkit.runs.documents import saved_content
from dermkit.runs.layout import FIGURES_FOLDER, LOG_FILE, OLD_POLICY_FILE, POLICY, PREDICTIONS_FILE
from dermkit.runs.metrics_json import write_metrics
from dermkit.runs.predictions import (
    check_predictions,
    class_indices,
    groups_for,
    probabilities_of,
    read_predictions,
    read_run_csv,
    to_scored_set,
)
from dermkit.runs.reader import (
    attributes_for,
    class_table,
    count_train_images,
    isic_ids_for,
    leak_warnings,
    policy_of,
    read_colour_predictions,
    read_run_json,
    seal_summary,
)

SPLIT_ORDER = ("train", "validation", "test")
COPIED_KEYS = ("mapping", "unmapped", "overlap")
"""What run.json says of a model on another data set and metrics.json repeats."""

MAJORITY_FIGURES = ("accuracy", "balanced_accuracy", "f1_macro", "sensitivity", "specificity")
COLOUR_FIGURES = (*MAJORITY_FIGURES, "auroc", "auroc_macro", "loss")
PRIOR_FIGURES = ("loss", "brier", "ece")


def evaluate_predictions(
    predictions: pd.DataFrame,
    *,
    classes: Sequence[LesionClass],
    groups: Mapping[str, int] | None,
    train_counts: Mapping[str, int] | None = None,
    attributes: pd.DataFrame | None = None,
    policy: PolicyWithExtras | None = None,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    isic_ids: Mapping[str, str] | None = None,
    fit_without_test: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the body of metrics.json for predictions, independent of the order of their rows.

    groups: image_id -> resampling unit (lesion or patient). None: every image is its own unit, which is warned of.
    train_counts: images per class in training, for the baselines. attributes: by image_id, for figures by age, sex,
    site and skin type. policy: a policy fitted earlier; without one, it is fitted on validation and evaluated on the
    other splits. fit_without_test: fit it even though the only other split is sealed. isic_ids: by image_id, for
    images that the official scorer leaves out. Raises `DataError` for an image without group, or for options that
    these images cannot serve.
    """
    return _evaluate_splits(
        _by_split(predictions, classes, groups),
        classes=classes,
        has_groups=groups is not None,
        train_counts=train_counts,
        attributes=attributes,
        policy=policy,
        options=options,
        isic_ids=isic_ids,
        fit_without_test=fit_without_test,
        seed=seed,
    )


SplitPredictions = tuple[pd.DataFrame, ScoredSet]
"""A split's checked rows, and the same as arrays."""


def _by_split(
    predictions: pd.DataFrame, classes: Sequence[LesionClass], groups: Mapping[str, int] | None
) -> dict[str, SplitPredictions]:
    """Check the table and return its splits in order."""
    predictions = check_predictions(predictions, [lesion_class.name for lesion_class in classes])
    split_names = set(predictions["split"])
    order = [name for name in SPLIT_ORDER if name in split_names] + sorted(split_names - set(SPLIT_ORDER))
    rows_by_split = {name: predictions[predictions["split"] == name] for name in order}
    return {
        name: (split_rows, to_scored_set(split_rows, classes, groups))
        for name, split_rows in rows_by_split.items()
    }


def _evaluate_splits(
    splits_in_order: Mapping[str, SplitPredictions],
    *,
    classes: Sequence[LesionClass],
    has_groups: bool,
    train_counts: Mapping[str, int] | None,
    attributes: pd.DataFrame | None,
    policy: PolicyWithExtras | None,
    options: EvaluationOptions,
    isic_ids: Mapping[str, str] | None,
    fit_without_test: bool,
    seed: int,
) -> dict[str, Any]:
    warnings, splits, fitted_policy = _general_warnings(classes, has_groups), {}, policy
    check_options(options, set(splits_in_order), policy)
    for split_name, (rows, scored_set) in splits_in_order.items():
        warnings += _repeat_warnings(split_name, rows)
        baselines = {} if train_counts is None else _baselines(scored_set, train_counts, seed)
        splits[split_name] = {**evaluate_split(scored_set, seed=seed), "baselines": baselines}
        if options.official:
            splits[split_name]["official"] = official_metrics(scored_set, rows, isic_ids)
        if attributes is not None:
            splits[split_name]["subgroups"] = subgroups_by_attribute(scored_set, rows, attributes, fitted_policy)
        if fitted_policy is not None:
            splits[split_name]["policy"] = policy_metrics(fitted_policy, scored_set, seed=seed, options=options)
        elif split_name == POLICY_SPLIT and (len(splits_in_order) > 1 or fit_without_test):
            fitted_policy = fit_with_targets(scored_set, options)
    return {
        "classes": [lesion_class.name for lesion_class in classes],
        "positive": [lesion_class.name for lesion_class in classes if lesion_class.malignancy == "malignant"],
        "bootstrap": {"resamples": N_RESAMPLES, "seed": seed, "unit": "group" if has_groups else "image"},
        "options": options.as_dict(),
        "splits": splits,
        "policy": None if fitted_policy is None else fitted_policy.as_dict(),
        "warnings": warnings,
    }


def _repeat_warnings(split_name: str, rows: pd.DataFrame) -> list[str]:
    n_repeated = len(rows) - rows["image_id"].nunique()
    return (
        [f"{split_name}: {n_repeated} rows repeat an image (folds or seeds); repeats are one group"]
        if n_repeated
        else []
    )


def _general_warnings(classes: Sequence[LesionClass], has_groups: bool) -> list[str]:
    indeterminate_classes = [
        lesion_class.name for lesion_class in classes if lesion_class.malignancy == "indeterminate"
    ]
    class_warnings = (
        [f"indeterminate, counted as not malignant in the binary figures: {', '.join(indeterminate_classes)}"]
        if indeterminate_classes
        else []
    )
    no_groups_warning = "lesions and patients are unknown: intervals take every image as independent"
    return class_warnings if has_groups else [*class_warnings, no_groups_warning]


def _baselines(scored_set: ScoredSet, train_counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Return the metrics of two image-blind baselines.

    They are: always the commonest training class, and the training class frequencies as probabilities.
    """
    counts = np.array([train_counts.get(name, 0) for name in scored_set.classes], dtype=np.float64)
    if not counts.any():
        return {}
    majority_index, n = int(counts.argmax()), len(scored_set.y_true)
    constant_predictions = np.full(n, majority_index, dtype=np.int64)

    def baseline_metrics(class_probabilities: NDArray[np.float64], names: Sequence[str]) -> dict[str, Any]:
        constant_set = ScoredSet(
            scored_set.classes,
            scored_set.malignant_classes,
            scored_set.y_true,
            constant_predictions,
            np.tile(class_probabilities, (n, 1)),
            scored_set.groups,
        )
        metrics = evaluate_split(constant_set, seed=seed, with_ranking=False)["metrics"]
        return {name: metrics[name] for name in names}

    return {
        "majority": {
            "class": scored_set.classes[majority_index],
            **baseline_metrics(np.eye(len(counts))[majority_index], MAJORITY_FIGURES),
        },
        "prior": baseline_metrics(counts / counts.sum(), PRIOR_FIGURES),
    }


def write_evaluation(
    folder: Path, predictions: pd.DataFrame, *, classes: Sequence[LesionClass], groups: Mapping[str, int] | None,
    train_counts: Mapping[str, int] | None = None, extra: Mapping[str, Any] | None = None, warnings: Sequence[str] = (),
    colour_predictions: pd.DataFrame | None = None, attributes: pd.DataFrame | None = None,
    policy: PolicyWithExtras | None = None, options: EvaluationOptions = DEFAULT_OPTIONS,
    isic_ids: Mapping[str, str] | None = None, fit_without_test: bool = False, seed: int = 0,
) -> Path:  # fmt: skip
    """Evaluate, write `metrics.json` and `figures/*` in `folder`, return the path of metrics.json.

    extra: further fields of metrics.json (leaks, overfitting, mapping, unmapped). colour_predictions:
    of the colour baseline. Files of optional analyses (official scorer, net benefit) that this evaluation does not make
    are removed.
    """
    splits_in_order = _by_split(predictions, classes, groups)
    metrics = _evaluate_splits(
        splits_in_order,
        classes=classes,
        has_groups=groups is not None,
        train_counts=train_counts,
        attributes=attributes,
        policy=policy,
        options=options,
        isic_ids=isic_ids,
        fit_without_test=fit_without_test,
        seed=seed,
    )
    _write_policy(folder, metrics["policy"])
    metrics |= dict(extra or {})
    metrics["warnings"] = [*warnings, *metrics["warnings"]]
    calibration = None if metrics["policy"] is None else policy_from_dict(metrics["policy"]).calibration
    for split_name, split_metrics in metrics["splits"].items():
        rows, scored_set = splits_in_order[split_name]
        if colour_predictions is not None and (colour_predictions["split"] == split_name).any():
            colour_rows = colour_predictions[colour_predictions["split"] == split_name]
            colour_set = to_scored_set(colour_rows, classes, groups)
            split_metrics["baselines"]["mean_colour"] = _colour_metrics(colour_set, seed)
        is_calibrated = calibration is not None and "policy" in split_metrics
        calibrated_set = apply_calibration(scored_set, calibration) if calibration and is_calibrated else None
        _write_split_files(folder / FIGURES_FOLDER, split_name, split_metrics, scored_set, calibrated_set)
        mistakes_path = folder / FIGURES_FOLDER / f"mistakes_{split_name}.csv"
        write_rows(mistakes_path, MISTAKES_HEADER, map(defused, mistake_rows(rows, metrics["classes"])))
    return write_metrics(folder, metrics)


def _colour_metrics(colour_set: ScoredSet, seed: int) -> dict[str, Any]:
    """Return the metrics of the colour baseline that are shown beside the net's."""
    metrics = evaluate_split(colour_set, seed=seed)["metrics"]
    return {metric: metrics[metric] for metric in COLOUR_FIGURES}


def _write_split_files(
    figures_folder: Path,
    split_name: str,
    split_metrics: Mapping[str, Any],
    scored_set: ScoredSet,
    calibrated_set: ScoredSet | None,
) -> None:
    """Write a split's tables of curves and of net benefit; calibrated_set: None without a calibration."""
    _write_tables(figures_folder, split_name, split_metrics, scored_set)
    _write_or_remove(
        figures_folder / f"net_benefit_{split_name}.csv", tables.NET_BENEFIT_HEADER,
        tables.net_benefit_rows(scored_set, calibrated_set),
    )  # fmt: skip


def _write_policy(folder: Path, policy: Mapping[str, Any] | None) -> None:
    (folder / OLD_POLICY_FILE).unlink(missing_ok=True)
    if policy is None:
        (folder / POLICY.name).unlink(missing_ok=True)
    else:
        POLICY.write(folder, policy)


def _write_or_remove(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table that not every evaluation has; without rows, what an earlier one left is removed."""
    if rows:
        write_rows(path, header, rows)
    else:
        path.unlink(missing_ok=True)


def _write_tables(figures: Path, split_name: str, split_metrics: Mapping[str, Any], scored_set: ScoredSet) -> None:
    write_rows(
        figures / f"confusion_{split_name}.csv",
        ["label", *scored_set.classes],
        tables.confusion_rows(split_metrics, scored_set.classes),
    )
    write_rows(figures / f"roc_{split_name}.csv", tables.ROC_HEADER, tables.roc_rows(scored_set))
    write_rows(
        figures / f"confusions_{split_name}.csv", tables.CONFUSIONS_HEADER, tables.confusion_pair_rows(scored_set)
    )
    write_rows(
        figures / f"calibration_{split_name}.csv", tables.CALIBRATION_HEADER, tables.calibration_rows(scored_set)
    )
    write_rows(
        figures / f"classification_report_{split_name}.csv",
        tables.REPORT_HEADER,
        tables.report_rows(split_metrics),
    )
    write_text(figures / f"classification_report_{split_name}.txt", tables.report_text(split_metrics))
    rows = isic_scorer.official_rows(split_metrics["official"]) if "official" in split_metrics else []
    _write_or_remove(figures / f"official_{split_name}.csv", isic_scorer.OFFICIAL_HEADER, rows)


MISTAKES_HEADER = ("image_id", "path", "label", "predicted", "p_predicted", "p_label")


def mistake_rows(rows: pd.DataFrame, classes: Sequence[str]) -> list[list[object]]:
    """Return the misclassified rows as `MISTAKES_HEADER`, worst first: by p_predicted, then by p_label."""
    p, row_numbers = probabilities_of(rows, classes), np.arange(len(rows))
    table = rows[["image_id", "path", "label", "predicted"]].assign(
        p_predicted=p[row_numbers, class_indices(rows["predicted"], classes)],
        p_label=p[row_numbers, class_indices(rows["label"], classes)],
    )
    wrong_rows = table[table["label"] != table["predicted"]]
    wrong_rows = wrong_rows.sort_values(["p_predicted", "p_label", "image_id"], ascending=[False, True, True])
    return [list(row) for row in wrong_rows.itertuples(index=False, name=None)]


def evaluate_run(
    run: Path,
    dataset: Dataset | None = None,
    *,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    policy: PolicyWithExtras | None = None,
) -> Path:
    """Evaluate a run folder's predictions.csv; returns the path of its metrics.json.

    Groups come from `groups.csv` (image_id, group), else from the data set. Training counts for the baselines come
    from run.json (`split_json.train_counts`: class -> images), else from the data set and split.csv, else from
    predictions
    of the training split. What run.json says of a class mapping (`mapping`, `unmapped`) is carried over. policy: one
    that was fitted elsewhere; by default that of run.json, if it holds one. Raises `DataError` for a missing or broken
    file, or options that these images cannot serve.
    """
    with saved_content(run):
        return _evaluate_run(run, dataset, options, policy)


def _evaluate_run(
    run: Path, dataset: Dataset | None, options: EvaluationOptions, policy: PolicyWithExtras | None
) -> Path:
    run_json = read_run_json(run)
    classes = class_table(run_json, run)
    predictions = read_predictions(run / PREDICTIONS_FILE, [lesion_class.name for lesion_class in classes])
    split_json, recorded_policy = run_json.get("split", {}), policy_of(run_json, run)
    leaks = split_json.get("leaks", {})
    extra_fields: dict[str, Any] = {"leaks": leaks} | {
        key: run_json[key] for key in COPIED_KEYS if key in run_json
    }
    if seal := seal_summary(run):
        extra_fields["seal"] = seal
    if (run / LOG_FILE).exists():
        extra_fields["overfitting"] = diagnose_overfitting(read_run_csv(run / LOG_FILE))
    lint_rows = [*run_json.get("lint", []), *lint_run_predictions(run, run_json, predictions, classes, dataset)]
    path = write_evaluation(
        run,
        predictions,
        classes=classes,
        groups=groups_for(run, dataset),
        train_counts=count_train_images(run, split_json, predictions, dataset),
        extra=extra_fields,
        warnings=leak_warnings(leaks),
        colour_predictions=read_colour_predictions(run, [lesion_class.name for lesion_class in classes]),
        attributes=attributes_for(run, dataset),
        policy=policy or (None if recorded_policy is None else PolicyWithExtras(recorded_policy)),
        fit_without_test=bool(seal),
        options=options,
        isic_ids=None if dataset is None else isic_ids_for(dataset),
    )
    write_lint(run, lint_rows)
    return path
