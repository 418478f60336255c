"""model.json and the card that people read; without torch.

Format 2 holds what was settled on validation images: calibration, operating points, the rule of conformal sets, and
from which confidence an image is answered.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dermkit.errors import UntrustedError
from dermkit.files import json_text, read_json
from dermkit.models.checksums import check, is_unfinished, replace_texts

FORMAT = 2
RESEARCH_ONLY = "Research use only. Not a medical device."

UNSETTLED: Mapping[str, Any] = {"calibration": {"kind": "none"}, "operating_points": [], "conformal": None}
"""What a model says of these before its validation images were evaluated."""

SETTLED = ("calibration", "operating_points", "conformal", "refer", "validation_images")
"""`refer` is not there in models that were settled before confidences for referral were kept."""


def read_card(folder: Path) -> dict[str, Any]:
    """Read model.json; raises `UntrustedError` where it is missing or broken."""
    return read_json(folder / "model.json", format=FORMAT, error=UntrustedError, migrations={1: _from_1})


def _from_1(card: dict[str, Any]) -> dict[str, Any]:
    return {**card, **UNSETTLED, "format": 2}


def card_files(card: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> text of model.json and MODEL_CARD.md."""
    return {"model.json": json_text(card, format=FORMAT), "MODEL_CARD.md": card_text(card)}


def settle(folder: Path, decision: Mapping[str, Any]) -> None:
    """Write into a model folder what was decided on its validation images; one that holds it already stays as it is.

    Stopped on the way, the folder is the model of before or of afterwards, and the next call finishes it.
    Raises `UntrustedError` where a file is not as it was saved: new checksums would vouch for it.
    """
    card, made = read_card(folder), {name: decision[name] for name in SETTLED if name in decision}
    same = {name: card[name] for name in SETTLED if name in card} == made
    if same and not is_unfinished(folder):
        return
    check(folder, kept="the model folder as it is, and the evaluation")
    kept = {name: value for name, value in card.items() if name not in SETTLED}
    replace_texts(folder, card_files({**kept, **made}))


def wishes_kept(folder: Path) -> tuple[tuple[str, float], ...]:
    """Return the wishes (rate, 0..1) that somebody asked this model to keep, beside the usual ones."""
    points = read_card(folder)["operating_points"]
    return tuple((str(item["rate"]), float(item["wish_rate"])) for item in points if item.get("asked"))


def with_kept(decision: Mapping[str, Any], wishes: Collection[tuple[str, float]]) -> dict[str, Any]:
    """Return what the model takes over of a decision.json: the operating points asked for only where wished so."""
    asked = [item for item in decision["asked_points"] if (item["rate"], item["wish_rate"]) in wishes]
    points = [*decision["operating_points"], *({**item, "asked": True} for item in asked)]
    return {**decision, "operating_points": points}


def settled(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a model settled on its validation images, as plain numbers; None where it settled nothing."""
    if card["conformal"] is None:
        return None
    return {name: card[name] for name in SETTLED if name in card}


def _calibration(own: Mapping[str, Any]) -> str:
    if own["kind"] == "none":
        return "Calibration: none. Probabilities are softmax outputs as trained; do not read them as risks."
    shift = " and one shift per class" if own["kind"] == "bias" else ""
    return (
        f"Calibration, fitted on the validation images alone: log probabilities divided by {own['temperature']:.3g}"
        f"{shift}. `predictions.csv` holds probabilities before it, `decided.csv` of `dermkit predict` after it."
    )


def card_text(card: Mapping[str, Any]) -> str:
    classes = "\n".join(
        f"| {item['name']} | {item['diagnosis'] or 'not known'} | {item['malignancy']} |"
        for item in card["classes"]
    )
    pre, weights, data = card["preprocessing"], card["weights"], card["dataset"]
    return f"""# Model card: {card["recipe"].get("name", "unnamed")}

**{RESEARCH_ONLY}**

{card["recipe"].get("about", "")}

## Classes, in the order of the probabilities

| class | canonical diagnosis | counted as |
|---|---|---|
{classes}

## Input

RGB, {pre["size"]} x {pre["size"]} px, {pre["resize"]}, {pre["interpolation"]}; divided by {pre["divide_by"]:g},
then mean {pre["mean"]} and standard deviation {pre["std"]}.

## Origin

- Net: {card["members"][0]["spec"]["backbone"]}; starting weights: {weights.get("origin", "?")}.
  {weights.get("note", "")} Licence of the weights: {weights.get("licence") or "not stated"}.
- Data: {data.get("name", "?")}, {data.get("n", "?")} images; licences: {data.get("licences") or "not stated"}.
- {_calibration(card["calibration"])}

Its figures, with intervals, are in `metrics.json` and `report.html` of the run that made it.
"""
