"""counterfactuals.json, counterfactuals.csv and the tables behind the curves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dermkit.files import write_rows
from dermkit.perturbation.changes import AnswerChange
from dermkit.perturbation.plan import ORIGINAL_INDEX, PICTURES_FOLDER, STRENGTHS
from dermkit.perturbation.results import ArtefactResult, CounterfactualResult, HiddenResult
from dermkit.render.cells import defused
from dermkit.runs.layout import COUNTERFACTUALS

COUNTERFACTUALS_TABLE, CURVES_TABLE_NAME = "counterfactuals.csv", "curves.csv"
REFUSED_IMAGES_TABLE = "refused.csv"
NOTICE = "Research use only. Not a medical device."


def write_image_rows(out: Path, result: CounterfactualResult, class_names: Sequence[str], *, is_raw: bool) -> None:
    """Write counterfactuals.csv: a row for each image and change, with its answers before and after."""
    header = (
        "image_id", "unit", "label", "artefact", "strength", "score_original", "score", "change", "predicted_original",
        "predicted", "positive_original", "positive",
    )  # fmt: skip
    clean = tuple if is_raw else defused
    write_rows(out / COUNTERFACTUALS_TABLE, header, (clean(row) for row in _image_rows(result, class_names)))


def _image_rows(result: CounterfactualResult, class_names: Sequence[str]) -> Iterator[tuple[object, ...]]:
    answers, rows = result.answers, result.selection.rows
    for image, (image_id, label) in enumerate(zip(rows["image_id"], rows["label"], strict=True)):
        for number, variant in enumerate(result.variants):
            if number == ORIGINAL_INDEX:
                continue
            before, after = float(answers.score[image, ORIGINAL_INDEX]), float(answers.score[image, number])
            positive = answers.is_positive
            decisions = (
                ("", "")
                if positive is None
                else (int(positive[image, ORIGINAL_INDEX]), int(positive[image, number]))
            )
            yield (
                image_id, int(answers.groups[image]), label, variant.name, round(variant.strength, 4), before, after,
                after - before, class_names[answers.y_pred[image, ORIGINAL_INDEX]],
                class_names[answers.y_pred[image, number]], *decisions,
            )  # fmt: skip


def write_curves(out: Path, result: CounterfactualResult) -> None:
    """Write the table of the mean change over strength of every artefact, with its band."""
    rows = (
        (
            one.artefact.name,
            round(strength, 4),
            change.score.value,
            *(change.score.ci95 or ("", "")),
            change.score.n,
        )
        for one in result.artefacts
        for strength, change in zip(STRENGTHS, one.changes, strict=True)
    )
    header = ("artefact", "strength", "mean_change", "low", "high", "n")
    write_rows(out / PICTURES_FOLDER / CURVES_TABLE_NAME, header, rows)


def write_counterfactuals(out: Path, result: CounterfactualResult, facts: dict[str, Any]) -> None:
    """Write counterfactuals.json. facts: of the model and the command."""
    selection, wording = result.selection, result.wording
    COUNTERFACTUALS.write(
        out,
        {
            "is_complete": True,
            **facts,
            "images": {
                "split": selection.split,
                "text": selection.text,
                "n": len(selection),
                "n_available": selection.n_available,
                "n_units": selection.n_units,
                "unit": "lesion or patient" if selection.has_units else "image",
            },
            "probability": wording.probability,
            "operating_point": wording.point or None,
            "strengths": list(STRENGTHS),
            "control": {"largest_change": result.control_change, "text": result.control_text},
            "multiplicity": result.multiplicity_text,
            "largest_deviation_from_predictions": result.largest_deviation,
            "artefacts": [_artefact_fields(one) for one in result.artefacts],
            "hidden": [_hidden_fields(one) for one in result.hidden],
            "lesion_known_by": result.mask_counts,
            "notice": NOTICE,
        },
    )


def write_unfinished(out: Path, facts: dict[str, Any]) -> None:
    """Write a counterfactuals.json that marks the folder as ours and says that nothing is complete."""
    COUNTERFACTUALS.write(out, {"is_complete": False, **facts, "artefacts": [], "notice": NOTICE})


def _artefact_fields(one: ArtefactResult) -> dict[str, Any]:
    changes = zip(STRENGTHS, one.changes, strict=True)
    return {
        "name": one.artefact.name,
        "title": one.artefact.title,
        "full_strength": one.artefact.strength_text,
        "is_shown": one.strongest.is_shown,
        "text": one.sentence,
        "by_strength": [{"strength": strength, **change_fields(change)} for strength, change in changes],
    }


def _hidden_fields(one: HiddenResult) -> dict[str, Any]:
    return {
        "name": one.name, "text": one.sentence, "measure": one.measure, "original": one.original.as_dict(),
        "remaining": one.remaining.as_dict(), **change_fields(one.change),
    }  # fmt: skip


def change_fields(change: AnswerChange) -> dict[str, Any]:
    """Return a change as JSON values."""
    return {
        "change": change.score.as_dict(),
        "p": change.p,
        "p_holm": change.p_holm,
        "label_changes": {**change.label_changes.as_dict(), "count": change.n_label_changes},
        "to_positive": change.n_to_positive,
        "to_negative": change.n_to_negative,
        "decision_changes": change.decision_changes.as_dict(),
        "sensitivity": change.sensitivity.as_dict(),
        "specificity": change.specificity.as_dict(),
        "accuracy": change.accuracy.as_dict(),
    }
