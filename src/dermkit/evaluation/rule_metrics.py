"""What the image-blind rules reach on a split, and the paired difference of the net to each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dermkit.data.manifest import LesionClass
from dermkit.metrics.classification.paired import RULE_METRICS, differences_from_others
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.runs.image_blind import MEAN_COLOUR, RULE_TITLES
from dermkit.runs.predictions import to_scored_set

SHOWN_FIGURES = ("balanced_accuracy", "accuracy", "auroc", "sensitivity", "specificity")
COLOUR_FIGURES = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "sensitivity",
    "specificity",
    "auroc",
    "auroc_macro",
    "loss",
)

EXTERNAL_REASON = (
    "rules are fitted on training images, and a model on another data set comes without those of its run"
)
FOREIGN_REASON = "predictions of another tool come without the files of the images that it learned from"
OTHER_IMAGES_REASON = "it did not score the same images as the net"


def metrics_of_rules(
    scored_set: ScoredSet,
    rows: pd.DataFrame,
    rules: Mapping[str, pd.DataFrame],
    not_applicable: Mapping[str, str],
    *,
    classes: Sequence[LesionClass],
    groups: Mapping[str, int] | None,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `image_blind` of a split's body, and the figures of mean colour for its `baselines` ({} without).

    scored_set, rows: of the net on that split. rules: name -> predictions of the split. `image_blind` is {rules: {name:
    {metrics, difference}}, best: {metric: name}, not_applicable: {name: reason}}, {} where there is nothing to say.
    """
    reasons = dict(not_applicable)
    sets: dict[str, ScoredSet] = {}
    for name, frame in rules.items():
        if _image_key(frame) != _image_key(rows):
            reasons[name] = OTHER_IMAGES_REASON
        else:
            sets[name] = to_scored_set(frame, classes, groups)
    if not sets and not reasons:
        return {}, {}
    colour = evaluate_split(sets[MEAN_COLOUR], seed=seed)["metrics"] if MEAN_COLOUR in sets else {}
    colour_figures = {metric: colour[metric] for metric in COLOUR_FIGURES if metric in colour}
    if (
        set(sets) == {MEAN_COLOUR} and not reasons
    ):  # a run of a time when there was no other rule: its figures stay
        return {}, colour_figures
    metrics = {
        name: evaluate_split(rule_set, seed=seed, resamples=0)["metrics"] for name, rule_set in sets.items()
    }
    differences = differences_from_others(scored_set, sets, seed=seed) if sets else {}
    body = {
        "rules": {
            name: {
                "metrics": {metric: metrics[name][metric] for metric in SHOWN_FIGURES},
                "difference": {metric: estimate.as_dict() for metric, estimate in differences[name].items()},
            }
            for name in sorted(sets, key=_rule_order)
        },
        "best": {metric: best for metric in RULE_METRICS if (best := _best_rule(metrics, metric))},
        "not_applicable": {name: reasons[name] for name in sorted(reasons, key=_rule_order)},
    }
    return body, colour_figures


def _image_key(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return image and label of each row, in the order of `to_scored_set`."""
    rows = rows.sort_values(["image_id", "fold", "seed"], kind="stable")
    return list(zip(rows["image_id"], rows["label"], strict=True))


def _rule_order(name: str) -> tuple[int, str]:
    names = list(RULE_TITLES)
    return (names.index(name) if name in names else len(names), name)


def _best_rule(metrics: Mapping[str, Any], metric: str) -> str:
    """Return the rule with the highest value, the first of equals; "" where none is defined."""
    values = {name: body[metric]["value"] for name, body in metrics.items() if body[metric]["value"] is not None}
    return max(sorted(values, key=_rule_order), key=lambda name: values[name], default="")


RULE_HEADER = ("rule", "metric", "value", "low", "high", "difference", "difference_low", "difference_high", "n")


def rule_rows(split_metrics: Mapping[str, Any]) -> list[list[object]]:
    """Return figures and differences of a split's rules as rows of `RULE_HEADER`, the net first; [] without rules."""
    rules = (split_metrics.get("image_blind") or {}).get("rules") or {}
    bodies = {"net": {"metrics": split_metrics["metrics"], "difference": {}}, **rules} if rules else {}
    return [
        [
            name, metric, *_cells(body["metrics"][metric]), *_cells(body["difference"].get(metric) or {}),
            body["metrics"][metric]["n"],
        ]
        for metric in RULE_METRICS
        for name, body in bodies.items()
    ]  # fmt: skip


def _cells(estimate: Mapping[str, Any]) -> list[object]:
    value, bounds = estimate.get("value"), estimate.get("ci95") or ("", "")
    return ["" if value is None else value, *bounds]
