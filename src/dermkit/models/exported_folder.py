"""An exported folder: the names of its files, and what export.json says of the model. Without torch.

It holds the nets as ONNX or OpenVINO files, export.json for whoever runs them, and model.json, seen.csv and the
training features, with which dermkit does what it does with the model folder.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dermkit.data.manifest import LesionClass
from dermkit.errors import UntrustedError
from dermkit.files import JsonFile, canonical_json, sha256_bytes
from dermkit.models.card import EVALUATION_FIELD, MODEL_JSON, POLICY_FIELDS
from dermkit.models.checksums import CHECKSUM_FILE, expected_hashes
from dermkit.models.members import MemberFields

EXPORT = JsonFile("export.json", 2, error=UntrustedError)
"""Format 2 added what dermkit itself needs to predict from the folder: model.json, seen.csv and the training features
beside it, and in it `precision`, `model_key`, and of each net `training_features` and `test_pictures`."""

README_FILE = "README.md"

ONNX_FORMAT, OPENVINO_FORMAT = "onnx", "openvino"
SUFFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {ONNX_FORMAT: (".onnx",), OPENVINO_FORMAT: (".xml", ".bin")}
)
"""Format -> the endings of a net's files; the first is the one that is opened."""

FLOAT32, INT8 = "float32", "int8"
"""Precision of the weights and products of an exported net."""


def net_file(number: int, exported: str) -> str:
    """Return the name of the file that is opened to load a net. exported: `onnx` or `openvino`."""
    return f"net-{number}{SUFFIXES[exported][0]}"


def net_files(number: int, exported: str) -> tuple[str, ...]:
    """Return the names of all files of a net."""
    return tuple(Path(net_file(number, exported)).stem + suffix for suffix in SUFFIXES[exported])


def exported_features_file(number: int) -> str:
    """Return the name of the file of a net's training features."""
    return f"training_features-{number}.npz"


def is_exported(folder: Path) -> bool:
    """Return whether a folder is an exported one, by its checksums; raises `UntrustedError` for broken ones."""
    return (folder / CHECKSUM_FILE).is_file() and EXPORT.name in expected_hashes(folder)


def cards_by_format(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield a model.json, verified and readable, as the file has it, and as each later format has it up to today's.

    The version that exported a model wrote into export.json what the card was in the format of its day.
    """
    card = json.loads(content)
    yield card
    while card["format"] < MODEL_JSON.format:
        card = MODEL_JSON.migrations[card["format"]](card)
        yield card


def exported_model_key(export: Mapping[str, Any], file_hashes: Mapping[str, str]) -> str:
    """Return what names the answers of an exported folder: in float32 they are those of its model, in int8 they differ.

    export: of export.json. file_hashes: file name -> SHA-256. Raises `KeyError` where a net is not among them.
    """
    key = str(export["model_key"])
    if export["precision"] != INT8:
        return key
    names = [name for number in range(len(export["nets"])) for name in net_files(number, export["exported_to"])]
    return sha256_bytes(canonical_json([key, INT8, [file_hashes[name] for name in names]]).encode())


def described_card(card: Mapping[str, Any], classes: Sequence[LesionClass]) -> dict[str, Any]:
    """Return what export.json repeats of model.json."""
    return {
        "classes": [asdict(lesion_class) for lesion_class in classes],
        "policy": {name: card[name] for name in POLICY_FIELDS if name in card},
        EVALUATION_FIELD: card.get(EVALUATION_FIELD),
        "recipe": {name: card["recipe"].get(name) for name in ("name", "about")},
        "dataset": card["dataset"],
        "weights": card["weights"],
    }


def described_member(member: MemberFields) -> dict[str, Any]:
    """Return what export.json repeats of a net in model.json."""
    calibration = member.calibration
    return {
        "backbone": member.spec["backbone"],
        "preprocessing": asdict(member.preprocessing),
        "views": list(member.views),
        "metadata": None if member.metadata is None else member.metadata.as_dict(),
        "calibration": None if calibration is None else asdict(calibration),
        "class_order": list(member.class_order),
        "weight": member.weight,
    }
