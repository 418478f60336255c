"""The contents of a report as texts and rows: data facts, recipe.

Nothing is computed again: metrics come from metrics.json.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from dermkit.recipes import schema
from dermkit.recipes.augmentation import active_fields
from dermkit.recipes.training_specs import Phase
from dermkit.runs.folder import Json, RunFolder
from dermkit.runs.layout import EXCLUDED_FILE

MAX_CONFUSIONS = 10
MAX_LOG_ROWS = 400
"""Most epochs printed; of more every second, third, ... row is, and the page says so."""


# --- facts ---


def flatten_json(tree: Mapping[str, Any], parent_name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested JSON objects with their path as text."""
    for key, child in tree.items():
        name = f"{parent_name}, {key}" if parent_name else str(key)
        if isinstance(child, Mapping):
            yield from flatten_json(child, name)
        else:
            yield name, ", ".join(map(str, child)) if isinstance(child, list) else child


def exclusion_counts(run: RunFolder) -> list[tuple[str, int]]:
    """Return the number of excluded images per reason, without the image names in reasons."""
    frame = run.table(EXCLUDED_FILE)
    if frame is None or not len(frame):
        return []
    reasons = frame["reason"].map(lambda reason: re.sub(r"\bimage .+$", "image", str(reason)))
    return [(str(reason), int(n)) for reason, n in reasons.value_counts().items()]


def recorded_train_counts(run: RunFolder) -> dict[str, int]:
    """Return training images per class, {} if run.json does not have them."""
    counts = run.run_json.get("split", {}).get("train_counts") or {}
    return {str(name): int(n) for name, n in counts.items()}


def top_confusions(run: RunFolder, split: str) -> list[Json]:
    """Return the commonest confusions: label, predicted, n, total, mean_confidence, missed (a malignant class lost)."""
    frame = run.figures_table(f"confusions_{split}.csv")
    per_class, positive = run.metrics["splits"][split]["per_class"], set(run.metrics.get("positive", []))
    rows = []
    for row in [] if frame is None else frame.to_dict("records"):
        confusion: Json = {
            "label": row["label"], "predicted": row["predicted"], "n": int(row["n"]),
            "mean_confidence": float(row["mean_confidence"]),
            "total": per_class.get(row["label"], {}).get("n", 0),
            "missed": row["label"] in positive and row["predicted"] not in positive,
        }  # fmt: skip
        rows.append(confusion)
    return sorted((row for row in rows if row["n"]), key=lambda row: -int(row["n"]))[:MAX_CONFUSIONS]


def log_rows(log: pd.DataFrame | None) -> Json:
    """Return the log's columns and at most `MAX_LOG_ROWS` rows as short text, and the step between rows."""
    if log is None or not len(log):
        return {"columns": [], "rows": [], "step": 1}
    stride = -(-len(log) // MAX_LOG_ROWS)
    rows = [[_short_number(text) for text in row] for row in log.iloc[::stride].to_numpy().tolist()]
    return {"columns": list(log.columns), "rows": rows, "step": stride}


def _short_number(text: str) -> str:
    return f"{float(text):.4g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text) else text


# --- the recipe in words ---


def recipe_rows(selected_recipe: schema.Recipe | None) -> list[tuple[str, str]]:
    """Return the recipe as rows of name and text; recipe.json has the values."""
    if selected_recipe is None:
        return []
    image_spec, model_spec, fields = (
        selected_recipe.image,
        selected_recipe.model,
        schema.recipe_to_dict(selected_recipe),
    )
    pixel_scaling = (
        "pixels in 0 to 1" if image_spec.normalise == "zero_one" else "normalised as the weights were trained"
    )
    layers = [*(f"dense {width}, ReLU" for width in model_spec.hidden), "dense, softmax"]
    rows = [
        ("About", selected_recipe.about),
        ("Changed from", schema.changes_text(selected_recipe)),
        ("Repeats the system", selected_recipe.system),
        (
            "Images",
            f"{image_spec.size} x {image_spec.size} px ({image_spec.resize}, "
            f"{image_spec.interpolation}), {pixel_scaling}",
        ),
        ("Backbone", f"{model_spec.backbone}, weights: {model_spec.weights}"),
        ("Head", f"{'; '.join(layers)}; dropout {model_spec.dropout:g}"),
        ("Second input", _spec_text(fields["model"]["metadata"]) if model_spec.metadata else ""),
        *((f"Phase {number}", _phase_text(phase)) for number, phase in enumerate(selected_recipe.phases, 1)),
        ("Loss and optimizer", f"cross-entropy; {_spec_text(fields['optim'])}"),
        ("Augmentation", _spec_text(active_fields(selected_recipe.augment))),
        (
            "Growth of small classes",
            _spec_text(
                {**fields["grow"], "augment": active_fields(selected_recipe.grow.augment)}
                if selected_recipe.grow
                else {}
            ),
        ),
        ("Mixing of images", _spec_text(fields["mix"] or {})),
        ("Computed in", _spec_text(fields["compute"])),
        ("Split", _spec_text(fields["split"])),
        ("Weights kept", f"of the {selected_recipe.keep} epoch by {selected_recipe.monitor}"),
    ]
    return [(name, text) for name, text in rows if text]


def _phase_text(phase: Phase) -> str:
    full_or_frozen_text = {"none": "backbone frozen", "all": "whole net trained"}
    trained_layers = full_or_frozen_text.get(
        str(phase.train_backbone), f"last {phase.train_backbone} layer groups of the backbone trained"
    )
    rates_text = f"learning rate of the head {phase.head_lr:g}"
    rates_text += f", of the backbone {phase.backbone_lr:g}" if phase.train_backbone != "none" else ""
    views_text = f", {phase.views} augmented views per image" if phase.views else ""
    stopping_text = f"early stopping after {phase.patience} epochs" if phase.patience else "no early stopping"
    return f"up to {phase.epochs} epochs; {trained_layers}{views_text}; {rates_text}; {stopping_text}"


def _spec_text(value: Mapping[str, Any]) -> str:
    """Return the fields of a spec that are on."""
    field_texts = [
        f"{name.replace('_', ' ')} {field_value}"
        for name, field_value in flatten_json(value)
        if field_value not in (False, 0, "", "none")
    ]
    return "; ".join(field_texts).replace(" True", "") or "none"
