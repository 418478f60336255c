"""predictions.csv -> metrics.json and the tables beside it, without torch; classes are matched by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.errors import DataError
from dermkit.files import read_json, write_json, write_rows, write_text
from dermkit.lint.predictions import lint_predictions
from dermkit.lint.rules import as_rows, write_lint
from dermkit.metrics import tables
from dermkit.metrics.decision import Decision, decide, from_dict, judged
from dermkit.metrics.intervals import RESAMPLES
from dermkit.metrics.overfitting import diagnose_overfitting
from dermkit.metrics.scored import Scored
from dermkit.metrics.subgroups import UNKNOWN, age_band, gaps, subgroups
from dermkit.metrics.summary import summarise
from dermkit.predictions import (
    ATTRIBUTES,
    check_predictions,
    class_index,
    groups_of,
    probabilities_of,
    read_attributes,
    read_predictions,
    read_table,
    scored_of,
)
from dermkit.results import write_results

RUN_FORMAT = 1
DECISION = "decision.json"
DECISION_FORMAT = 1
SETTLES = "validation"
"""The side that calibration, operating points and sets are settled on."""

SPLIT_ORDER = ("train", "validation", "test")
SEAL_FACTS = ("name", "date", "n", "opening", "openings")
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
    decision: Decision | None = None,
    settle_alone: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the body of metrics.json for checked predictions, independent of the order of their rows.

    groups: image_id -> what is drawn together (lesion or patient); None takes every image as independent and warns.
    train_counts: images per class in training, for the baselines. attributes: by image_id, for figures by age, sex,
    site and skin type. decision: what a model settled before; without one, validation settles it for the other
    splits; settle_alone: also where there is no other yet, since the test side is sealed. Raises `DataError` for an
    image without group.
    """
    predictions = check_predictions(predictions, [item.name for item in classes])
    found = set(predictions["split"])
    order = [name for name in SPLIT_ORDER if name in found] + sorted(found - set(SPLIT_ORDER))
    warnings, splits = _class_warnings(classes), {}
    made = decision
    if groups is None:
        warnings.append("lesions and patients are unknown: intervals take every image as independent")
    for name in order:
        part = predictions[predictions["split"] == name]
        repeated = len(part) - part["image_id"].nunique()
        if repeated:
            warnings.append(f"{name}: {repeated} rows repeat an image (folds or seeds); repeats are one group")
        scored = scored_of(part, classes, groups)
        baselines = {} if train_counts is None else _baselines(scored, train_counts, seed)
        splits[name] = {**summarise(scored, seed=seed), "baselines": baselines}
        if attributes is not None:
            splits[name]["subgroups"] = _subgroups(scored, part, attributes)
        if made is not None:
            splits[name]["decided"] = judged(made, scored, summarise=summarise, seed=seed)
        elif name == SETTLES and (len(order) > 1 or settle_alone):
            made = decide(scored)
    return {
        "classes": [item.name for item in classes],
        "positive": [item.name for item in classes if item.malignancy == "malignant"],
        "bootstrap": {"resamples": RESAMPLES, "seed": seed, "unit": "image" if groups is None else "group"},
        "splits": splits,
        "decision": None if made is None else made.as_dict(),
        "warnings": warnings,
    }


def _subgroups(scored: Scored, part: pd.DataFrame, attributes: pd.DataFrame) -> dict[str, Any]:
    """Return the figures by each attribute of which something is known, with the gaps between groups."""
    ids = part.sort_values(["image_id", "fold", "seed"], kind="stable")["image_id"]
    known = attributes.reindex(ids).fillna("")
    found: dict[str, Any] = {}
    for name in ATTRIBUTES:
        values = known[name].tolist()
        labels = [age_band(value) if name == "age" else value or UNKNOWN for value in values]
        if set(labels) <= {UNKNOWN}:
            continue
        parts = subgroups(scored, labels, summarise=summarise)
        found[name] = {
            "groups": [
                {
                    "name": item.name, "n": item.n, "n_groups": item.n_groups, "malignant": item.positives,
                    "too_few": item.too_few,
                    "metrics": {figure: value.as_dict() for figure, value in item.metrics.items()},
                }
                for item in parts
            ],
            "gaps": [
                {"figure": gap.figure, "worst": gap.worst, "best": gap.best, **gap.difference.as_dict()}
                for gap in gaps(parts)
            ],
        }  # fmt: skip
    return found


def _class_warnings(classes: Sequence[LesionClass]) -> list[str]:
    unsure = [item.name for item in classes if item.malignancy == "indeterminate"]
    if not unsure:
        return []
    return [f"indeterminate, counted as not malignant in the binary figures: {', '.join(unsure)}"]


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
    decision: Decision | None = None,
    settle_alone: bool = False,
    seed: int = 0,
) -> Path:
    """Evaluate, write `metrics.json` and `figures/*` in `folder`, return the path of metrics.json.

    extra: further fields of metrics.json (leaks, overfitting, mapping, unmapped). colour: predictions of the rule
    that sees colour alone, for the baselines.
    """
    body = evaluate_predictions(
        predictions, classes=classes, groups=groups, train_counts=train_counts, attributes=attributes,
        decision=decision, settle_alone=settle_alone, seed=seed,
    )  # fmt: skip
    if body["decision"] is not None:
        write_json(folder / DECISION, body["decision"], format=DECISION_FORMAT)
    body |= dict(extra or {})
    body["warnings"] = [*warnings, *body["warnings"]]
    predictions = check_predictions(predictions, body["classes"])
    for name, split in body["splits"].items():
        part = predictions[predictions["split"] == name]
        if colour is not None and (colour["split"] == name).any():
            rule = scored_of(colour[colour["split"] == name], classes, groups)
            found = summarise(rule, seed=seed)["metrics"]
            split["baselines"]["mean_colour"] = {figure: found[figure] for figure in COLOUR_FIGURES}
        _write_tables(folder / "figures", name, split, scored_of(part, classes, groups))
        write_rows(folder / "figures" / f"mistakes_{name}.csv", MISTAKES_HEADER, mistakes(part, body["classes"]))
    return write_results(folder, body)


def _write_tables(figures: Path, name: str, split: Mapping[str, Any], scored: Scored) -> None:
    write_rows(
        figures / f"confusion_{name}.csv", ["label", *scored.classes], tables.confusion_rows(split, scored.classes)
    )
    write_rows(figures / f"roc_{name}.csv", tables.ROC_HEADER, tables.roc_rows(scored))
    write_rows(figures / f"confusions_{name}.csv", tables.CONFUSIONS_HEADER, tables.confusions(scored))
    write_rows(figures / f"calibration_{name}.csv", tables.CALIBRATION_HEADER, tables.calibration_rows(scored))
    write_rows(figures / f"classification_report_{name}.csv", tables.REPORT_HEADER, tables.report_rows(split))
    write_text(figures / f"classification_report_{name}.txt", tables.report_text(split))


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


def evaluate_run(run: Path, dataset: Dataset | None = None) -> Path:
    """Evaluate a run folder's predictions.csv; returns the path of its metrics.json.

    Groups come from `groups.csv` (image_id, group), else from the data set. Training counts for the baselines come
    from run.json (`split.train_counts`: class -> images), else from the data set and split.csv, else from predictions
    of the training split. What run.json says of a class mapping (`mapping`, `unmapped`) is carried over. Raises
    `DataError` for a missing or broken file.
    """
    about = read_json(run / "run.json", format=RUN_FORMAT, error=DataError)
    classes = _classes_of(about, run)
    predictions = read_predictions(run / "predictions.csv", [item.name for item in classes])
    split = about.get("split", {})
    leaks = split.get("leaks", {})
    extra: dict[str, Any] = {"leaks": leaks} | {key: about[key] for key in CARRIED if key in about}
    if seal := _seal_of(run):
        extra["seal"] = seal
    if (run / "log.csv").exists():
        extra["overfitting"] = diagnose_overfitting(read_table(run / "log.csv"))
    write_lint(run, [*about.get("lint", []), *_lint(run, about, predictions, classes, dataset)])
    return write_evaluation(
        run,
        predictions,
        classes=classes,
        groups=groups_of(run, dataset),
        train_counts=_train_counts(run, split, predictions, dataset),
        extra=extra,
        warnings=_leak_warnings(leaks),
        colour=_colour_of(run, [item.name for item in classes]),
        attributes=_attributes_of(run, dataset),
        decision=_decision_of(about, run),
        settle_alone=bool(seal),
    )


def _seal_of(run: Path) -> dict[str, Any]:
    """Return what metrics.json says of a sealed test side, {} where it is not; opening: None = not scored."""
    path = run / "seal.json"
    kept = read_json(path, format=RUN_FORMAT, error=DataError) if path.exists() else {}
    return {key: len(kept[key]) if key == "openings" else kept[key] for key in SEAL_FACTS} if kept else {}


def _attributes_of(run: Path, dataset: Dataset | None) -> pd.DataFrame | None:
    found = read_attributes(run)
    if found is not None or dataset is None:
        return found
    return dataset.manifest.set_index("image_id")[list(ATTRIBUTES)]


def _decision_of(about: Mapping[str, Any], run: Path) -> Decision | None:
    """Return what the model settled on its own validation images, where run.json says it: a test on other data."""
    if not about.get("decision"):
        return None
    try:
        return from_dict(about["decision"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{run / 'run.json'}: has a broken decision: {error}", remedy="evaluate again") from error


def _lint(
    run: Path,
    about: Mapping[str, Any],
    predictions: pd.DataFrame,
    classes: Sequence[LesionClass],
    dataset: Dataset | None,
) -> list[dict[str, Any]]:
    """Return what the lint finds in a run's predictions."""
    path, audit = run / "split.csv", about["dataset"].get("audit") or {}
    manifest = None if dataset is None or about.get("mapping") else dataset.manifest
    found = lint_predictions(
        predictions,
        [item.name for item in classes],
        diagnoses={item.name: item.diagnosis for item in classes},
        sides=read_table(path, "image_id", "split") if path.exists() else None,
        labels=None if manifest is None else dict(zip(manifest["image_id"], manifest["label"], strict=True)),
        audited=audit.get("state") == "done" and not audit.get("errors") and not audit.get("accepted"),
    )
    return as_rows(found)


def _colour_of(run: Path, classes: Sequence[str]) -> pd.DataFrame | None:
    path = run / "colour_rule.csv"
    return read_predictions(path, classes) if path.exists() else None


def _classes_of(about: Mapping[str, Any], run: Path) -> tuple[LesionClass, ...]:
    try:
        return tuple(LesionClass(**item) for item in about["dataset"]["classes"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{run / 'run.json'}: has no class table", remedy="train again, or restore it") from error


def _train_counts(
    run: Path, about: Mapping[str, Any], predictions: pd.DataFrame, dataset: Dataset | None
) -> dict[str, int] | None:
    if "train_counts" in about:
        return dict(about["train_counts"])
    labels = predictions.loc[predictions["split"] == "train", "label"]
    if dataset is not None and (run / "split.csv").exists():
        split = read_table(run / "split.csv", "image_id", "split")
        trained = split.loc[split["split"] == "train", "image_id"]
        labels = dataset.manifest.loc[dataset.manifest["image_id"].isin(trained), "label"]
    return {str(name): int(n) for name, n in labels.value_counts().items()} if len(labels) else None


def _leak_warnings(leaks: Mapping[str, Any]) -> list[str]:
    """Return a line per side whose images share a lesion or their pixels with images that were learned from."""
    sides = (("test", leaks), ("validation", leaks.get("validation", {})))
    return [
        f"the split leaks: {counts['total']} of {counts.get('n', '?')} {side} images share a lesion or their exact "
        f"pixels with images learned from; the {side} figures are not those of unseen lesions"
        for side, counts in sides
        if counts.get("total", 0)
    ]
