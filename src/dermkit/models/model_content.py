"""The verified bytes of a model folder or an exported one, and the values that they hold. Without torch.

A model folder holds safetensors, `model.json`, `MODEL_CARD.md`, `seen.csv` (its training images) and `SHA256SUMS`.
Every byte is verified before use, and nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dermkit.data.manifest import LesionClass
from dermkit.errors import UntrustedError
from dermkit.models.card import MODEL_JSON, TRAINING_IMAGES_FILE
from dermkit.models.card_fields import read_card_classes
from dermkit.models.checksums import CHECKSUM_FILE, VerifiedFiles, read_verified
from dermkit.models.exported_folder import EXPORT
from dermkit.models.members import MemberFields, read_members


@dataclass(frozen=True)
class ModelContent:
    """A model folder, or an exported one, in memory.

    files: name -> bytes, as verified. card: model.json in today's format. export: export.json, None in a model folder.
    """

    folder: Path
    files: VerifiedFiles
    card: Mapping[str, Any]
    classes: tuple[LesionClass, ...]
    members: tuple[MemberFields, ...]
    export: Mapping[str, Any] | None


def find_model_folder(folder: Path, name_in_run: str) -> Path:
    """Return the model folder in a run, any other folder as it is. name_in_run: what a run calls its model folder."""
    return folder / name_in_run if (folder / name_in_run / CHECKSUM_FILE).is_file() else folder


def read_model_content(folder: Path) -> ModelContent:
    """Verify and read a folder; raises `UntrustedError` where a byte differs or the card is broken.

    A model folder must hold the weights that its card names; an exported one holds nets of another kind.
    """
    files = read_verified(folder)
    for name in (MODEL_JSON.name, TRAINING_IMAGES_FILE):
        if name not in files:
            raise UntrustedError(f"{folder / CHECKSUM_FILE}: does not list {name}", remedy="copy the model anew")
    card = MODEL_JSON.parse(files[MODEL_JSON.name], folder / MODEL_JSON.name)
    export = EXPORT.parse(files[EXPORT.name], folder / EXPORT.name) if EXPORT.name in files else None
    try:
        classes = read_card_classes(card)
        for name in ("recipe", "dataset", "weights", "training"):
            if not isinstance(card[name], dict):
                raise TypeError(f"{name} is no object")
        members = read_members(card, list(files) if export is None else None, len(classes))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise broken_model(folder, error) from error
    return ModelContent(folder, files, card, classes, tuple(members), export)


def broken_model(folder: Path, error: Exception) -> UntrustedError:
    """Return the error of a folder whose files are verified and hold no model."""
    return UntrustedError(f"{folder}: not a model folder: {error}", remedy="copy it anew")
