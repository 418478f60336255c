"""What tells a run's model from another, whatever was noted in its card since."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermkit.files import canonical_json, read_regular, sha256_bytes, sha256_file

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
    for path in model_cards(model):
        try:
            card = json.loads(read_regular(path))
        except (OSError, ValueError):  # another's file, or a broken card
            continue
        if isinstance(card, dict) and "members" in card:
            return model_key(card, {path.name: sha256_file(path) for path in model.glob("*.safetensors")})
    return ""


def model_cards(model: Path) -> list[Path]:
    """Return the JSON files of a model folder: the card, and what others put there."""
    return sorted(model.glob("*.json"))


def _answering(card: Any) -> Any:
    """Return the fields of a card that decide answers; one that is no object as it is."""
    if not isinstance(card, dict):
        return card
    points = card.get("operating_points")
    if isinstance(points, list):
        points = [point for point in points if not (isinstance(point, dict) and point.get("requested"))]
    return {**{name: value for name, value in card.items() if name not in _NOTES}, "operating_points": points}
