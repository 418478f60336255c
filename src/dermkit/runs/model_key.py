"""What tells a run's model from another, whatever was noted in its card since."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermkit.files import canonical_json, read_regular, sha256_bytes

MODEL_CARD, MODEL_CHECKSUMS = "model.json", "SHA256SUMS"
"""Files of a model folder, as models/card.py and models/checksums.py call them: packages beside this one."""
_NOTES = ("evaluation", "format")
"""Fields of model.json that change no answer: what test images showed, and how the file is written."""


def model_key(card: Any, file_hashes: Mapping[str, str]) -> str:
    """Return a hex SHA-256 of what decides a model's answers: its nets, and model.json without notes of evaluations.

    card: model.json in today's format; one that is no object is keyed as it is. file_hashes: file name -> SHA-256.
    Operating points that a person asked for later change no answer either.
    """
    nets = sorted((name, sha256) for name, sha256 in file_hashes.items() if name.endswith(".safetensors"))
    return sha256_bytes(canonical_json([_answering(card), nets]).encode())


def folder_model_key(model: Path) -> str:
    """Return the `model_key` of the model that a folder holds now, "" where it holds none.

    The card is not brought to today's format, which models/card.py alone can: one of an older format has another key
    than the model that was loaded from it.
    """
    try:
        card = json.loads(read_regular(model / MODEL_CARD))
        lines = read_regular(model / MODEL_CHECKSUMS).decode("utf-8", "replace").splitlines()
        parts = [line.partition("  ") for line in lines if not line.startswith("#")]
        return model_key(card, {name: sha256 for sha256, _, name in parts})
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
