"""predictions.csv -> metrics.json and the tables beside it, without torch; classes are matched by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.evaluation import tables
from dermkit.evaluation.breakdowns import official_of, subgroups_of
from dermkit.evaluation.lint_run import lint_of
from dermkit.evaluation.options import NOTHING, Asked
from dermkit.evaluation.overfitting import diagnose_overfitting
from dermkit.evaluation.policy import SETTLES, Settled, check_asked, judged_on, settle_on
from dermkit.files import write_json, write_rows, write_text
from dermkit.lint.rules import write_lint
from dermkit.metrics.classification import isic_scorer
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.classification.summary import summarise
from dermkit.metrics.decisions.policy import calibrated, from_dict
from dermkit.metrics.stats.intervals import RESAMPLES
from dermkit.runs.metrics_json import write_results
from dermkit.runs.predictions import (
    check_predictions,
    class_index,
    groups_of,
    probabilities_of,
    read_predictions,
    read_table,
    scored_of,
)
from dermkit.runs.reader import (
    attributes_of,
    classes_of,
    colour_of,
    decision_of,
    isic_ids_of,
    leak_warnings,
    read_about,
    seal_of,
    train_counts,
)

DECISION = "decision.json"
DECISION_FORMAT = 1
SPLIT_ORDER = ("train", "validation", "test")
CARRIED = ("mapping", "unmapped", "overlap")
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
    settled: Settled | None = None,
    asked: Asked = NOTHING,
    isic_ids: Mapping[str, str] | None = None,
    settle_alone: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the body of metrics.json for predictions, independent of the order of their rows.

    groups: image_id -> what is drawn together (lesion or patient); None takes every image as independent and warns.
    train_counts: images per class in training, for the baselines. attributes: by image_id, for figures by age, sex,
    site and skin type. settled: what a model settled before; without one, validation settles it for the other
    splits; settle_alone: also where there is no other yet, since the test side is sealed. isic_ids: by image_id, for
    images that the official scorer leaves out. Raises `DataError` for an image without group, or for something asked
    that these images cannot settle.
    """
    return _body(
        _sides(predictions, classes, groups), classes=classes, grouped=groups is not None, train_counts=train_counts,
        attributes=attributes, settled=settled, asked=asked, isic_ids=isic_ids, settle_alone=settle_alone, seed=seed,
    )  # fmt: skip


Side = tuple[pd.DataFrame, Scored]
"""A split's checked rows, and the same as arrays."""


def _sides(
    predictions: pd.DataFrame, classes: Sequence[LesionClass], groups: Mapping[str, int] | None
) -> dict[str, Side]:
    """Check the table and return its splits in order."""
    predictions = check_predictions(predictions, [item.name for item in classes])
    found = set(predictions["split"])
    order = [name for name in SPLIT_ORDER if name in found] + sorted(found - set(SPLIT_ORDER))
    parts = {name: predictions[predictions["split"] == name] for name in order}
    return {name: (part, scored_of(part, classes, groups)) for name, part in parts.items()}


def _body(
    sides: Mapping[str, Side],
    *,
    classes: Sequence[LesionClass],
    grouped: bool,
    train_counts: Mapping[str, int] | None,
    attributes: pd.DataFrame | None,
    settled: Settled | None,
    asked: Asked,
    isic_ids: Mapping[str, str] | None,
    settle_alone: bool,
    seed: int,
) -> dict[str, Any]:
    warnings, splits, made = _general_warnings(classes, grouped), {}, settled
    check_asked(asked, set(sides), settled)
    for name, (part, scored) in sides.items():
        warnings += _repeats(name, part)
        baselines = {} if train_counts is None else _baselines(scored, train_counts, seed)
        splits[name] = {**summarise(scored, seed=seed), "baselines": baselines}
        if asked.official:
            splits[name]["official"] = official_of(scored, part, isic_ids)
        if attributes is not None:
            splits[name]["subgroups"] = subgroups_of(scored, part, attributes, made)
        if made is not None:
            splits[name]["decided"] = judged_on(made, scored, seed=seed, asked=asked)
        elif name == SETTLES and (len(sides) > 1 or settle_alone):
            made = settle_on(scored, asked)
    return {
        "classes": [item.name for item in classes],
        "positive": [item.name for item in classes if item.malignancy == "malignant"],
        "bootstrap": {"resamples": RESAMPLES, "seed": seed, "unit": "group" if grouped else "image"},
        "asked": asked.as_dict(),
        "splits": splits,
        "decision": None if made is None else made.as_dict(),
        "warnings": warnings,
    }


def _repeats(name: str, part: pd.DataFrame) -> list[str]:
    repeated = len(part) - part["image_id"].nunique()
    return [f"{name}: {repeated} rows repeat an image (folds or seeds); repeats are one group"] if repeated else []


def _general_warnings(classes: Sequence[LesionClass], grouped: bool) -> list[str]:
    unsure = [item.name for item in classes if item.malignancy == "indeterminate"]
    said = (
        [f"indeterminate, counted as not malignant in the binary figures: {', '.join(unsure)}"] if unsure else []
    )
    alone = "lesions and patients are unknown: intervals take every image as independent"
    return said if grouped else [*said, alone]


def _baselines(scored: Scored, train_counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Return what two rules without eyes reach: always the commonest training class, and its class shares."""
    seen = np.array([train_counts.get(name, 0) for name in scored.classes], dtype=np.float64)
    if not seen.any():
        return {}
    top, n = int(seen.argmax()), len(scored.true)
    always = np.full(n, top, dtype=np.int64)

    def figures(shares: NDArray[np.float64], names: Sequence[str]) -> dict[str, Any]:
        dumb = Scored(
            scored.classes, scored.malignant, scored.true, always, np.tile(shares, (n, 1)), scored.groups
        )
        metrics = summarise(dumb, seed=seed, ranked=False)["metrics"]
        return {name: metrics[name] for name in names}

    return {
        "majority": {"class": scored.classes[top], **figures(np.eye(len(seen))[top], MAJORITY_FIGURES)},
        "prior": figures(seen / seen.sum(), PRIOR_FIGURES),
    }


def write_evaluation(
    folder: Path,
    predictions: pd.DataFrame,
    *,
    classes: Sequence[LesionClass],
    groups: Mapping[str, int] | None,
    train_counts: Mapping[str, int] | None = None,
    extra: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    colour: pd.DataFrame | None = None,
    attributes: pd.DataFrame | None = None,
    settled: Settled | None = None,
    asked: Asked = NOTHING,
    isic_ids: Mapping[str, str] | None = None,
    settle_alone: bool = False,
    seed: int = 0,
) -> Path:
    """Evaluate, write `metrics.json` and `figures/*` in `folder`, return the path of metrics.json.

    extra: further fields of metrics.json (leaks, overfitting, mapping, unmapped). colour: predictions of the rule
    that sees colour alone, for the baselines. What an earlier evaluation was asked for and this one is not, is removed.
    """
    sides = _sides(predictions, classes, groups)
    body = _body(
        sides, classes=classes, grouped=groups is not None, train_counts=train_counts, attributes=attributes,
        settled=settled, asked=asked, isic_ids=isic_ids, settle_alone=settle_alone, seed=seed,
    )  # fmt: skip
    _write_decision(folder / DECISION, body["decision"])
    body |= dict(extra or {})
    body["warnings"] = [*warnings, *body["warnings"]]
    made = None if body["decision"] is None else from_dict(body["decision"]).calibration
    for name, split in body["splits"].items():
        part, scored = sides[name]
        if colour is not None and (colour["split"] == name).any():
            rule = scored_of(colour[colour["split"] == name], classes, groups)
            found = summarise(rule, seed=seed)["metrics"]
            split["baselines"]["mean_colour"] = {figure: found[figure] for figure in COLOUR_FIGURES}
        _write_tables(folder / "figures", name, split, scored)
        judged = calibrated(scored, made) if made is not None and "decided" in split else None
        _write_or_drop(
            folder / "figures" / f"net_benefit_{name}.csv", tables.NET_BENEFIT_HEADER,
            tables.net_benefit_rows(scored, judged),
        )  # fmt: skip
        write_rows(folder / "figures" / f"mistakes_{name}.csv", MISTAKES_HEADER, mistakes(part, body["classes"]))
    return write_results(folder, body)


def _write_decision(path: Path, decision: Mapping[str, Any] | None) -> None:
    if decision is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, decision, format=DECISION_FORMAT)


def _write_or_drop(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table that not every evaluation has; without rows, what an earlier one left is removed."""
    if rows:
        write_rows(path, header, rows)
    else:
        path.unlink(missing_ok=True)


def _write_tables(figures: Path, name: str, split: Mapping[str, Any], scored: Scored) -> None:
    write_rows(
        figures / f"confusion_{name}.csv", ["label", *scored.classes], tables.confusion_rows(split, scored.classes)
    )
    write_rows(figures / f"roc_{name}.csv", tables.ROC_HEADER, tables.roc_rows(scored))
    write_rows(figures / f"confusions_{name}.csv", tables.CONFUSIONS_HEADER, tables.confusions(scored))
    write_rows(figures / f"calibration_{name}.csv", tables.CALIBRATION_HEADER, tables.calibration_rows(scored))
    write_rows(figures / f"classification_report_{name}.csv", tables.REPORT_HEADER, tables.report_rows(split))
    write_text(figures / f"classification_report_{name}.txt", tables.report_text(split))
    rows = isic_scorer.official_rows(split["official"]) if "official" in split else []
    _write_or_drop(figures / f"official_{name}.csv", isic_scorer.HEADER, rows)


MISTAKES_HEADER = ("image_id", "path", "label", "predicted", "p_predicted", "p_label")


def mistakes(part: pd.DataFrame, classes: Sequence[str]) -> list[list[object]]:
    """Return the wrong rows as `MISTAKES_HEADER`, worst first: surest of the wrong class, then least of the right."""
    p, rows = probabilities_of(part, classes), np.arange(len(part))
    table = part[["image_id", "path", "label", "predicted"]].assign(
        p_predicted=p[rows, class_index(part["predicted"], classes)],
        p_label=p[rows, class_index(part["label"], classes)],
    )
    wrong = table[table["label"] != table["predicted"]]
    wrong = wrong.sort_values(["p_predicted", "p_label", "image_id"], ascending=[False, True, True])
    return [list(row) for row in wrong.itertuples(index=False, name=None)]


def evaluate_run(
    run: Path, dataset: Dataset | None = None, *, asked: Asked = NOTHING, settled: Settled | None = None
) -> Path:
    """Evaluate a run folder's predictions.csv; returns the path of its metrics.json.

    Groups come from `groups.csv` (image_id, group), else from the data set. Training counts for the baselines come
    from run.json (`split.train_counts`: class -> images), else from the data set and split.csv, else from predictions
    of the training split. What run.json says of a class mapping (`mapping`, `unmapped`) is carried over. settled: what
    the model settled elsewhere, with wishes; by default its decision in run.json, if it is there. Raises `DataError`
    for a missing or broken file, or something asked that cannot be settled here.
    """
    about = read_about(run)
    classes = classes_of(about, run)
    predictions = read_predictions(run / "predictions.csv", [item.name for item in classes])
    split, decision = about.get("split", {}), decision_of(about, run)
    leaks = split.get("leaks", {})
    extra: dict[str, Any] = {"leaks": leaks} | {key: about[key] for key in CARRIED if key in about}
    if seal := seal_of(run):
        extra["seal"] = seal
    if (run / "log.csv").exists():
        extra["overfitting"] = diagnose_overfitting(read_table(run / "log.csv"))
    lint = [*about.get("lint", []), *lint_of(run, about, predictions, classes, dataset)]
    path = write_evaluation(
        run,
        predictions,
        classes=classes,
        groups=groups_of(run, dataset),
        train_counts=train_counts(run, split, predictions, dataset),
        extra=extra,
        warnings=leak_warnings(leaks),
        colour=colour_of(run, [item.name for item in classes]),
        attributes=attributes_of(run, dataset),
        settled=settled or (None if decision is None else Settled(decision)),
        settle_alone=bool(seal),
        asked=asked,
        isic_ids=None if dataset is None else isic_ids_of(dataset),
    )
    write_lint(run, lint)
    return path
