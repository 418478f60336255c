"""What the files of a run folder say, put in words and rows: verdict, data facts, recipe.

Nothing is computed again: figures come from metrics.json.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from dermkit.metrics.stats.estimate import trust
from dermkit.recipes import schema
from dermkit.recipes.augmentation import fields_on
from dermkit.runs.folder import Json, Run, read_table

MOST_CONFUSIONS = 10
LOG_ROWS = 400
"""Epochs printed; beyond that every second, third, ... row is, which is said."""


# --- the verdict ---


@dataclass(frozen=True)
class Verdict:
    """Whether a split's result can be told from always naming the commonest class.

    judged: the figure that decides ("" = none has an interval). side: where its whole 95 % interval lies beside
    the rule's value; unknown also where that interval is worth nothing. rule_class, rule: the class that the rule
    names, and its estimates of accuracy and balanced accuracy.
    rule_key: where metrics.json holds them ("" = counted from its confusion matrix).
    """

    split: str
    judged: str
    side: Literal["above", "below", "unclear", "unknown"]
    rule_class: str
    rule: dict[str, float | None]
    rule_key: str


def verdict(run: Run, split: str) -> Verdict:
    """Compare balanced accuracy, or accuracy where that is undefined, with the rule that never looks."""
    body = run.metrics["splits"][split]
    name, rule, key = _majority(run, split)
    for judged in ("balanced_accuracy", "accuracy"):
        estimate = body["metrics"].get(judged) or {}
        bounds, dumb = estimate.get("ci95"), rule[judged]
        if bounds and dumb is not None:
            side: Literal["above", "below", "unclear", "unknown"] = (
                "above" if bounds[0] > dumb else "below" if bounds[1] < dumb else "unclear"
            )
            side = "unknown" if trust(estimate) == "none" else side
            return Verdict(split, judged, side, name, rule, key)
    return Verdict(split, "", "unknown", name, rule, key)


def _majority(run: Run, split: str) -> tuple[str, dict[str, float | None], str]:
    """Return the commonest training class and what naming it always reaches.

    Without the training counts: the commonest class of the split itself, which can only make the rule better.
    """
    body = run.metrics["splits"][split]
    stored = (body.get("baselines") or {}).get("majority")
    if stored:
        rule = {name: (stored.get(name) or {}).get("value") for name in ("accuracy", "balanced_accuracy")}
        return str(stored["class"]), rule, f"{split}.baselines.majority"
    totals = [sum(row) for row in body["confusion_matrix"]]
    n, most = sum(totals), max(totals, default=0)
    name = str(run.metrics["classes"][totals.index(most)])
    # A constant answer finds all of one class and nothing of the others.
    balanced = 1 / len(totals) if all(totals) else None
    return name, {"accuracy": most / n if n else None, "balanced_accuracy": balanced}, ""


# --- facts ---


def flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested JSON objects with their path in words."""
    for key, item in value.items():
        name = f"{above}, {key}" if above else str(key)
        if isinstance(item, Mapping):
            yield from flat(item, name)
        else:
            yield name, ", ".join(map(str, item)) if isinstance(item, list) else item


def excluded(run: Run) -> list[tuple[str, int]]:
    """Return how many images were left out for each reason, image names cut off so that reasons add up."""
    frame = read_table(run.folder / "excluded.csv")
    if frame is None or not len(frame):
        return []
    reasons = frame["reason"].map(lambda reason: re.sub(r"\bimage .+$", "image", str(reason)))
    return [(str(reason), int(n)) for reason, n in reasons.value_counts().items()]


def training_counts(run: Run) -> dict[str, int]:
    """Return training images per class where run.json has them, else {}."""
    counts = run.facts.get("split", {}).get("train_counts") or {}
    return {str(name): int(n) for name, n in counts.items()}


def confusions(run: Run, split: str) -> list[Json]:
    """Return the commonest confusions: label, predicted, n, total, mean_confidence, missed (a malignant class lost)."""
    frame = read_table(run.folder / "figures" / f"confusions_{split}.csv")
    per_class, positive = run.metrics["splits"][split]["per_class"], set(run.metrics.get("positive", []))
    rows = []
    for row in [] if frame is None else frame.to_dict("records"):
        body: Json = {
            "label": row["label"], "predicted": row["predicted"], "n": int(row["n"]),
            "mean_confidence": float(row["mean_confidence"]),
            "total": per_class.get(row["label"], {}).get("n", 0),
            "missed": row["label"] in positive and row["predicted"] not in positive,
        }  # fmt: skip
        rows.append(body)
    return sorted((row for row in rows if row["n"]), key=lambda row: -int(row["n"]))[:MOST_CONFUSIONS]


def log_rows(log: pd.DataFrame | None) -> Json:
    """Return the log's columns and at most `LOG_ROWS` rows as short text, and the step between rows."""
    if log is None or not len(log):
        return {"columns": [], "rows": [], "step": 1}
    step = -(-len(log) // LOG_ROWS)
    rows = [[_short(text) for text in row] for row in log.iloc[::step].to_numpy().tolist()]
    return {"columns": list(log.columns), "rows": rows, "step": step}


def _short(text: str) -> str:
    return f"{float(text):.4g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text) else text


# --- the recipe in words ---


def recipe_rows(value: schema.Recipe | None) -> list[tuple[str, str]]:
    """Return the recipe as rows for people; recipe.json holds it for machines."""
    if value is None:
        return []
    image, model, fields = value.image, value.model, schema.as_dict(value)
    scale = "pixels in 0 to 1" if image.normalise == "zero_one" else "normalised as the weights were trained"
    layers = [*(f"dense {width}, ReLU" for width in model.hidden), "dense, softmax"]
    rows = [
        ("About", value.about),
        ("Repeats the system", value.system),
        ("Images", f"{image.size} x {image.size} px ({image.resize}, {image.interpolation}), {scale}"),
        ("Backbone", f"{model.backbone}, weights: {model.weights}"),
        ("Head", f"{'; '.join(layers)}; dropout {model.dropout:g}"),
        *((f"Phase {number}", _phase(phase)) for number, phase in enumerate(value.phases, 1)),
        ("Loss and optimizer", f"cross-entropy; {_spec(fields['optim'])}"),
        ("Augmentation", _spec(fields_on(value.augment))),
        (
            "Growth of small classes",
            _spec({**fields["grow"], "augment": fields_on(value.grow.augment)} if value.grow else {}),
        ),
        ("Mixing of images", _spec(fields["mix"] or {})),
        ("Computed in", _spec(fields["compute"])),
        ("Split", _spec(fields["split"])),
        ("Weights kept", f"of the {value.keep} epoch by {value.monitor}"),
    ]
    return [(name, text) for name, text in rows if text]


def _phase(phase: schema.Phase) -> str:
    whole = {"none": "backbone frozen", "all": "whole net trained"}
    what = whole.get(
        str(phase.train_backbone), f"last {phase.train_backbone} layer groups of the backbone trained"
    )
    rates = f"learning rate of the head {phase.head_lr:g}"
    rates += f", of the backbone {phase.backbone_lr:g}" if phase.train_backbone != "none" else ""
    views = f", {phase.views} augmented views per image" if phase.views else ""
    stop = f"early stopping after {phase.patience} epochs" if phase.patience else "no early stopping"
    return f"up to {phase.epochs} epochs; {what}{views}; {rates}; {stop}"


def _spec(value: Mapping[str, Any]) -> str:
    """Return the fields of a spec that are on."""
    parts = [
        f"{name.replace('_', ' ')} {item}" for name, item in flat(value) if item not in (False, 0, "", "none")
    ]
    return "; ".join(parts).replace(" True", "") or "none"
