"""What tells a run's model from another, whatever was noted in its card since."""

import json
from pathlib import Path
from typing import Any

from dermkit.files import canonical_json, read_regular, sha256_bytes

MODEL_CARD, MODEL_CHECKSUMS = "model.json", "SHA256SUMS"
"""Files of a model folder, as models/card.py and models/checksums.py call them: packages beside this one."""
_NOTES = ("evaluation",)
"""Fields of model.json that say what test images showed: they change no answer."""


def model_key(model: Path) -> str:
    """Return a hex SHA-256 of what decides a model's answers: its nets, and model.json without notes of evaluations.

    Operating points that a person asked for later change no answer either. "" where the folder holds no such model.
    """
    try:
        card = json.loads(read_regular(model / MODEL_CARD))
        lines = read_regular(model / MODEL_CHECKSUMS).decode("utf-8", "replace").splitlines()
        nets = sorted(line for line in lines if line.endswith(".safetensors"))
        return sha256_bytes(canonical_json([_answering(card), nets]).encode())
    except (OSError, ValueError):
        return ""


def _answering(card: Any) -> Any:
    """Return the fields of a card that decide answers; one that is no object as it is."""
    if not isinstance(card, dict):
        return card
    points = card.get("operating_points")
    if isinstance(points, list):
        points = [point for point in points if not (isinstance(point, dict) and point.get("requested"))]
    return {**{name: value for name, value in card.items() if name not in _NOTES}, "operating_points": points}
