"""Evaluate predictions.csv: metrics.json and the tables in `figures/`. Classes are matched by name; no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.errors import DataError
from dermkit.evaluation import tables
from dermkit.evaluation.breakdowns import official_metrics, subgroups_by_attribute
from dermkit.evaluation.curve_bands import BAND_HEADERS, band_tables
from dermkit.evaluation.lint_run import lint_run_predictions
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.overfitting import diagnose_overfitting
from dermkit.evaluation.requested_targets import (
    POLICY_SPLIT,
    FittedPolicy,
    check_options,
    fit_for_nets,
    fit_with_targets,
    policy_metrics,
)
from dermkit.evaluation.rule_metrics import (
    EXTERNAL_REASON,
    FOREIGN_REASON,
    RULE_HEADER,
    metrics_of_rules,
    rule_rows,
)
from dermkit.files import write_rows, write_text
from dermkit.lint.rules import write_lint
from dermkit.metrics.classification import isic_scorer
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.policy import DecisionPolicy, policy_from_dict
from dermkit.metrics.stats.intervals import N_RESAMPLES
from dermkit.render.cells import defused
from dermkit.runs.documents import saved_content
from dermkit.runs.folder import RunFolder, leak_warnings, read_table
from dermkit.runs.image_blind import RULE_TITLES
from dermkit.runs.layout import FIGURES_FOLDER, IMAGE_BLIND, LOG_FILE, METRICS, OLD_POLICY_FILE, POLICY, RUN
from dermkit.runs.predictions import (
    check_predictions,
    class_indices,
    net_labels,
    probabilities_of,
    to_scored_set,
)

SPLIT_ORDER = ("train", "validation", "test")
COPIED_KEYS = ("mapping", "unmapped", "overlap")
"""Fields that metrics.json copies from the run.json of an evaluation on another data set."""

MAJORITY_FIGURES = ("accuracy", "balanced_accuracy", "f1_macro", "sensitivity", "specificity")
PRIOR_FIGURES = ("loss", "brier", "ece")


class SplitPredictions(NamedTuple):
    """One split's checked rows, and the same as arrays."""

    rows: pd.DataFrame
    scored_set: ScoredSet

    @property
    def nets(self) -> list[str]:
        """The labels of the nets that scored the images, in the order of `scored_set.rows_by_net`."""
        return sorted(set(net_labels(self.rows)))


@dataclass(frozen=True, eq=False)
class EvaluationInput:
    """Predictions and what is known of their images: all that metrics.json is computed from.

    groups: image_id -> resampling unit (lesion or patient); None: every image is its own unit, with a warning.
    train_counts: images per class in training, for the baselines. attributes: age, sex, site and skin type by image_id.
    isic_ids: image_id -> ISIC id, for images that the official scorer leaves out. rule_predictions: of each image-blind
    rule; rules_not_applicable: rule -> why there is none. policy: one that was fitted earlier; None: fitted on
    validation and evaluated on the other splits. fit_without_test: fit it even where there is no other split, because
    that is sealed or not for this net. is_shared_policy: one policy for the images of all nets, since these are
    calibrated and all of them are members of the model. seed: of the bootstrap. warnings, extra_fields: further ones of
    metrics.json (leaks, overfitting, mapping, unmapped, seal).
    """

    predictions: pd.DataFrame
    _: KW_ONLY
    classes: Sequence[LesionClass]
    groups: Mapping[str, int] | None
    train_counts: Mapping[str, int] | None = None
    attributes: pd.DataFrame | None = None
    isic_ids: Mapping[str, str] | None = None
    rule_predictions: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    rules_not_applicable: Mapping[str, str] = field(default_factory=dict)
    policy: DecisionPolicy | None = None
    fit_without_test: bool = False
    is_shared_policy: bool = False
    options: EvaluationOptions = DEFAULT_OPTIONS
    seed: int = 0
    warnings: Sequence[str] = ()
    extra_fields: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def splits(self) -> dict[str, SplitPredictions]:
        """The splits in order; raises `DataError` for a broken table, or an image without group."""
        predictions = check_predictions(self.predictions, [lesion_class.name for lesion_class in self.classes])
        split_names = set(predictions["split"])
        order = [name for name in SPLIT_ORDER if name in split_names] + sorted(split_names - set(SPLIT_ORDER))
        rows_by_split = {name: predictions[predictions["split"] == name] for name in order}
        return {
            name: SplitPredictions(rows, to_scored_set(rows, self.classes, self.groups))
            for name, rows in rows_by_split.items()
        }

    @cached_property
    def fitted(self) -> FittedPolicy | None:
        """The decision policy: the earlier one, or fitted on validation images; None where neither can be."""
        if self.policy is not None:
            return FittedPolicy(self.policy)
        if POLICY_SPLIT not in self.splits or not (len(self.splits) > 1 or self.fit_without_test):
            return None
        validation = self.splits[POLICY_SPLIT]
        if len(validation.nets) == 1 or self.is_shared_policy:
            return FittedPolicy(fit_with_targets(validation.scored_set, self.options))
        by_net = {
            str(label): to_scored_set(rows, self.classes, self.groups)
            for label, rows in validation.rows.groupby(net_labels(validation.rows), sort=True)
        }
        return fit_for_nets(validation.scored_set, by_net, self.options)

    @property
    def policy_images(self) -> ScoredSet:
        """The validation images that the policy is fitted on, before its calibration."""
        validation = self.splits[POLICY_SPLIT]
        if self.fitted is None:
            return validation.scored_set
        return self.fitted.policy_images(validation.scored_set, validation.nets)

    def policy_for(self, split_name: str) -> FittedPolicy | None:
        """Return the policy to evaluate on a split: none on the images that it was fitted on, or on those before."""
        order = list(self.splits)
        is_later = POLICY_SPLIT in order and order.index(split_name) > order.index(POLICY_SPLIT)
        return self.fitted if self.policy is not None or is_later else None


def evaluate_predictions(data: EvaluationInput) -> dict[str, Any]:
    """Return the body of metrics.json, independent of the order of the rows.

    Raises `DataError` for a broken table, or for options that these images cannot serve.
    """
    splits, warnings = {}, _general_warnings(data)
    check_options(data.options, set(data.splits), data.policy)
    for split_name, predictions in data.splits.items():
        warnings += [*_repeat_warnings(split_name, predictions.rows), *_net_warnings(split_name, predictions.nets)]
        splits[split_name] = _split_metrics(data, split_name, data.policy_for(split_name))
    return {
        "classes": [lesion_class.name for lesion_class in data.classes],
        "positive": [lesion_class.name for lesion_class in data.classes if lesion_class.malignancy == "malignant"],
        "bootstrap": {
            "resamples": N_RESAMPLES, "seed": data.seed, "unit": "image" if data.groups is None else "group",
        },
        "options": data.options.as_dict(),
        "splits": splits,
        "policy": None if data.fitted is None else data.fitted.policy.as_dict(),
        "warnings": [*data.warnings, *warnings],
        **data.extra_fields,
    }  # fmt: skip


def _split_metrics(data: EvaluationInput, split_name: str, policy: FittedPolicy | None) -> dict[str, Any]:
    """Return one split's body of metrics.json. policy: None where none was fitted before this split."""
    predictions = data.splits[split_name]
    rows, scored_set = predictions.rows, predictions.scored_set
    image_blind, colour = _image_blind(data, split_name)
    baselines = {**_baselines(data, split_name), **({"mean_colour": colour} if colour else {})}
    metrics = {**evaluate_split(scored_set, seed=data.seed), "baselines": baselines}
    if image_blind:
        metrics["image_blind"] = image_blind
    if data.options.official:
        metrics["official"] = official_metrics(scored_set, rows, data.isic_ids)
    if data.attributes is not None:
        is_covered = None if policy is None else policy.covers_true_class(scored_set, predictions.nets)
        metrics["subgroups"] = subgroups_by_attribute(scored_set, rows, data.attributes, is_covered)
    if policy is not None:
        metrics["policy"] = policy_metrics(
            policy, scored_set, predictions.nets, seed=data.seed, options=data.options
        )
    return metrics


def _repeat_warnings(split_name: str, rows: pd.DataFrame) -> list[str]:
    n_repeated = len(rows) - rows["image_id"].nunique()
    return (
        [f"{split_name}: {n_repeated} rows repeat an image (folds or seeds); repeats are one group"]
        if n_repeated
        else []
    )


def _net_warnings(split_name: str, nets: Sequence[str]) -> list[str]:
    return (
        [
            f"{split_name}: {len(nets)} nets (folds or seeds) scored these images. Scores of different nets are not "
            "ranked against each other: AUROC, ROC curve and the like are means over the nets, weighted by their pairs"
        ]
        if len(nets) > 1
        else []
    )


def _general_warnings(data: EvaluationInput) -> list[str]:
    indeterminate_classes = [
        lesion_class.name for lesion_class in data.classes if lesion_class.malignancy == "indeterminate"
    ]
    class_warnings = (
        [f"indeterminate, counted as not malignant in the binary figures: {', '.join(indeterminate_classes)}"]
        if indeterminate_classes
        else []
    )
    no_groups_warning = "lesions and patients are unknown: intervals take every image as independent"
    return [*class_warnings, no_groups_warning] if data.groups is None else class_warnings


def _baselines(data: EvaluationInput, split_name: str) -> dict[str, Any]:
    """Return the metrics of the constant baselines, {} where the training counts are not known."""
    if data.train_counts is None:
        return {}
    return _blind_baselines(data.splits[split_name].scored_set, data.train_counts, data.seed)


def _image_blind(data: EvaluationInput, split_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `metrics_of_rules` of a split."""
    split = data.splits[split_name]
    rules = {name: frame[frame["split"] == split_name] for name, frame in data.rule_predictions.items()}
    return metrics_of_rules(
        split.scored_set, split.rows, {name: rows for name, rows in rules.items() if len(rows)},
        data.rules_not_applicable, classes=data.classes, groups=data.groups, seed=data.seed,
    )  # fmt: skip


def _blind_baselines(scored_set: ScoredSet, train_counts: Mapping[str, int], seed: int) -> dict[str, Any]:
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


def write_evaluation(folder: Path, data: EvaluationInput) -> Path:
    """Evaluate, write `metrics.json` and `figures/*` in `folder`, return the path of metrics.json.

    Files of optional analyses (official scorer, net benefit) that this evaluation does not make are removed.
    """
    metrics = evaluate_predictions(data)
    _write_policy(folder, metrics["policy"])
    for split_name, (rows, scored_set) in data.splits.items():
        split_metrics, policy = metrics["splits"][split_name], data.policy_for(split_name)
        calibrated_set = None if policy is None else policy.calibrate(scored_set, data.splits[split_name].nets)
        _write_split_files(folder / FIGURES_FOLDER, split_name, split_metrics, scored_set, calibrated_set)
        mistakes_path = folder / FIGURES_FOLDER / f"mistakes_{split_name}.csv"
        write_rows(mistakes_path, MISTAKES_HEADER, map(defused, mistake_rows(rows, metrics["classes"])))
    return METRICS.write(folder, metrics)


def _write_split_files(
    figures_folder: Path,
    split_name: str,
    split_metrics: Mapping[str, Any],
    scored_set: ScoredSet,
    calibrated_set: ScoredSet | None,
) -> None:
    """Write a split's tables of curves and of net benefit; calibrated_set: None without a calibration."""
    _write_tables(figures_folder, split_name, split_metrics, scored_set)
    _write_or_remove(figures_folder / f"image_blind_{split_name}.csv", RULE_HEADER, rule_rows(split_metrics))
    _write_or_remove(
        figures_folder / f"net_benefit_{split_name}.csv", tables.NET_BENEFIT_HEADER,
        tables.net_benefit_rows(scored_set, calibrated_set),
    )  # fmt: skip
    for name, rows in band_tables(scored_set, calibrated_set).items():
        _write_or_remove(figures_folder / name.replace("*", split_name), BAND_HEADERS[name], rows)


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
    policy: DecisionPolicy | None = None,
) -> Path:
    """Evaluate a run folder's predictions.csv; returns the path of its metrics.json.

    policy: one that was fitted elsewhere; by default that of run.json, if it holds one. Raises `DataError` for a
    missing or broken file, or options that these images cannot serve.
    """
    with saved_content(run):
        folder = RunFolder(run)
        data = _read_input(folder, dataset, options=options, policy=policy or _recorded_policy(folder))
        lint_findings = lint_run_predictions(run, folder.run_json, data.predictions, data.classes, dataset)
        path = write_evaluation(run, data)
        write_lint(run, [*folder.run_json.get("lint", []), *lint_findings])
        return path


def _read_input(
    run: RunFolder, dataset: Dataset | None, *, options: EvaluationOptions, policy: DecisionPolicy | None
) -> EvaluationInput:
    """Return what a run folder holds; groups, attributes and training counts that it lacks come from the data set.

    What run.json says of a class mapping (`COPIED_KEYS`) is carried over.
    """
    classes, predictions = run.classes, run.predictions  # a broken run.json is told before a broken table
    leaks, seal = run.split_json.get("leaks", {}), run.seal_summary()
    extra_fields = {"leaks": leaks, **{key: run.run_json[key] for key in COPIED_KEYS if key in run.run_json}}
    if seal:
        extra_fields["seal"] = seal
    if (run.path / LOG_FILE).exists():
        extra_fields["overfitting"] = diagnose_overfitting(read_table(run.path / LOG_FILE, as_text=False))
    return EvaluationInput(
        predictions,
        classes=classes,
        groups=run.groups(dataset),
        train_counts=run.train_counts(dataset),
        attributes=run.attributes(dataset),
        isic_ids=None if dataset is None else _isic_ids(dataset),
        rule_predictions=run.rule_predictions(),
        rules_not_applicable=_rules_not_applicable(run),
        policy=policy,
        fit_without_test=bool(seal or run.ensemble or run.leaves_test_to_ensemble) or run.pooled is not None,
        is_shared_policy=bool(run.ensemble),
        options=options,
        warnings=[*run.rung_warnings, *leak_warnings(leaks)],
        extra_fields=extra_fields,
    )


def _rules_not_applicable(run: RunFolder) -> dict[str, str]:
    """Return why rules were not fitted; {} for a run of a time when there were none."""
    if IMAGE_BLIND.exists(run.path):
        return dict(IMAGE_BLIND.read(run.path)["not_applicable"])
    if run.run_json.get("mapping"):
        return dict.fromkeys(RULE_TITLES, EXTERNAL_REASON)
    return dict.fromkeys(RULE_TITLES, FOREIGN_REASON) if run.split_json.get("scheme") == "foreign" else {}


def _isic_ids(dataset: Dataset) -> dict[str, str]:
    """Return image_id -> id in the ISIC Archive, of those that have one."""
    rows_with_id = dataset.manifest[dataset.manifest["isic_id"] != ""]
    return dict(zip(rows_with_id["image_id"], rows_with_id["isic_id"], strict=True))


def _recorded_policy(run: RunFolder) -> DecisionPolicy | None:
    """Return the policy that run.json records, None where it has none: only evaluations on other data do."""
    if not run.run_json.get("policy"):
        return None
    try:
        return policy_from_dict(run.run_json["policy"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{run.path / RUN.name}: has a broken policy: {error}", remedy="evaluate again") from error
