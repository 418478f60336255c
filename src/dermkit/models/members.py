"""The members of a model: nets, each with its own preprocessing, views and calibration, and its weight in the mean.

Without torch. Shapes: N images, K classes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dermkit.images.preprocess import Preprocessing
from dermkit.metrics.decisions.policy import calibration_from_dict
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import MAX_NETS
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.models.metadata import MetadataEncoder, known_counts, read_encoder, unseen_text
from dermkit.models.views import IDENTITY_VIEW, check_views
from dermkit.recipes.training_specs import METADATA_FIELDS, MetadataField

_MEMBER_KEYS = {
    "file",
    "spec",
    "views",
    "calibration",
    "preprocessing",
    "weight",
    "class_order",
    "metadata",
    "training_features",
}
_WEIGHT_TOLERANCE = 1e-6
_PREPROCESSING: TypeAdapter[Preprocessing] = TypeAdapter(Preprocessing)


@dataclass(frozen=True)
class MemberFields:
    """A member of model.json: its weights file, its net's spec as JSON, and what turns an image into its probabilities.

    calibration: None = none. views: whose probabilities are averaged. weight: in the mean over the members, which sum
    to 1. class_order: for each class of the model the column of the net's output. metadata: how the net's second input
    is encoded, None where it has none. training_features: the file of its training features, None without.
    """

    file: str
    spec: Mapping[str, Any]
    preprocessing: Preprocessing
    calibration: ProbabilityCalibration | None
    class_order: tuple[int, ...]
    views: tuple[str, ...] = IDENTITY_VIEW
    weight: float = 1.0
    metadata: MetadataEncoder | None = None
    training_features: str | None = None

    def calibrate(self, probabilities: Floats) -> Floats:
        """Return the net's probabilities (N, K) after its own calibration, in the model's order of classes."""
        p = probabilities if self.calibration is None else self.calibration.apply(probabilities)
        return p if self.class_order == tuple(range(len(self.class_order))) else p[:, self.class_order]


def read_members(card: Mapping[str, Any], file_names: Sequence[str] | None, n_classes: int) -> list[MemberFields]:
    """Return the members of a model.json; raises `ValueError`, `KeyError` or `TypeError` for a list that is none.

    file_names: those that SHA256SUMS lists, so that nothing outside the folder, or that was not verified, is read; None
    = the members' files are not read.
    """
    entries = card["members"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_NETS:
        n = len(entries) if isinstance(entries, list) else "no list of"
        raise ValueError(f"{n} members; a model has 1 to {MAX_NETS}")
    members = [_read_member(entry, file_names, n_classes) for entry in entries]
    if len({member.file for member in members}) < len(members):
        raise ValueError("two members have one weights file")
    if len(members) > 1 and any(member.calibration is None for member in members):
        raise ValueError("a member of several has no calibration of its own")
    total = math.fsum(member.weight for member in members)
    if abs(total - 1) > _WEIGHT_TOLERANCE:
        raise ValueError(f"the weights of the members sum to {total:.6g}, not to 1")
    return members


def _read_member(entry: Mapping[str, Any], file_names: Sequence[str] | None, n_classes: int) -> MemberFields:
    if not isinstance(entry, dict):
        raise TypeError("a member is no object")
    if others := sorted(set(entry) - _MEMBER_KEYS):
        raise ValueError(f"a member has {', '.join(map(repr, others[:5]))}, which is no field of one")
    file, calibration_json = entry["file"], entry["calibration"]
    if not isinstance(file, str) or (file_names is not None and file not in file_names):
        raise ValueError(f"the weights file {file!r} of a member is not one that {CHECKSUM_FILE} lists")
    calibration = None if calibration_json is None else calibration_from_dict(calibration_json)
    if calibration is not None and len(calibration.bias) != n_classes:
        raise ValueError(f"the calibration of member {file} is not for {n_classes} classes")
    return MemberFields(
        file,
        entry["spec"],
        _PREPROCESSING.validate_json(json.dumps(entry["preprocessing"])),
        calibration,
        _read_class_order(entry["class_order"], n_classes),
        check_views(entry["views"]),
        _read_weight(entry["weight"]),
        _read_metadata(entry["metadata"], entry["spec"]),
        _read_features_file(entry["training_features"], file_names),
    )


def _read_metadata(entry: Any, spec: Mapping[str, Any]) -> MetadataEncoder | None:
    """Return the encoder of a member; raises `ValueError` where it is broken or of other fields than its net's spec."""
    encoder = None if entry is None else read_encoder(entry)
    wanted = spec["metadata"]
    fields = [] if wanted is None else wanted["fields"]
    if fields != ([] if encoder is None else list(encoder.fields)):
        raise ValueError(
            f"the metadata of a member are not those of its net, {', '.join(map(str, fields)) or 'none'}"
        )
    return encoder


def _read_features_file(file: Any, file_names: Sequence[str] | None) -> str | None:
    """Return the file of training features; raises `ValueError` for one that is not verified."""
    if file is None:
        return None
    if not isinstance(file, str) or (file_names is not None and file not in file_names):
        raise ValueError(
            f"the training features {str(file)[:60]!r} of a member are not what {CHECKSUM_FILE} lists"
        )
    return file


def _read_weight(weight: Any) -> float:
    """Return the weight of a member; raises `ValueError` for what is no number from 0 to 1."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:  # false for nan
        raise ValueError(f"the weight {str(weight)[:40]} of a member is not a number from 0 to 1")
    return float(weight)


def _read_class_order(order: Any, n_classes: int) -> tuple[int, ...]:
    """Return the columns of a net's output; raises `ValueError` where they are not each column once."""
    is_list = isinstance(order, list) and len(order) == n_classes
    if not is_list or any(type(column) is not int for column in order) or sorted(order) != list(range(n_classes)):
        raise ValueError(f"the class_order of a member is not each of 0 to {n_classes - 1} once")
    return tuple(order)


def encode_for_members(
    members: Sequence[MemberFields], table: pd.DataFrame | None
) -> list[NDArray[np.float32] | None]:
    """Return the encoded metadata of images for each member, (N, M); None for one without a second input.

    table: a text column for each field that a member has, "" = unknown; None = all unknown.
    """
    return [
        None if table is None or member.metadata is None else member.metadata.encode(table) for member in members
    ]


def rows_for_members(
    encoded: Sequence[NDArray[np.float32] | None], rows: slice | NDArray[np.int64]
) -> list[NDArray[np.float32] | None]:
    """Return each member's encoded metadata of some images."""
    return [None if vectors is None else vectors[rows] for vectors in encoded]


def metadata_fields(members: Sequence[MemberFields]) -> tuple[MetadataField, ...]:
    """Return the fields that any member has as a second input, () for none."""
    used = {name for member in members if member.metadata is not None for name in member.metadata.fields}
    return tuple(name for name in METADATA_FIELDS if name in used)


def input_notes(members: Sequence[MemberFields], table: pd.DataFrame) -> list[str]:
    """Return what is to be said of images that a model with a second input scores; nothing for any other model.

    table: a text column for each field that a member has, "" = unknown.
    """
    fields = metadata_fields(members)
    if not fields:
        return []
    known = ", ".join(f"{name} of {n:,}" for name, n in known_counts(table, fields).items())
    unseen: dict[str, dict[str, int]] = {}
    for member in members:
        for name, counts in {} if member.metadata is None else member.metadata.unseen_categories(table).items():
            unseen[name] = {**unseen.get(name, {}), **counts}
    text = unseen_text(unseen)
    return [
        f"Metadata are a second input of this model; known among these {len(table):,} images: {known}. Probabilities "
        f"change with them.{' ' * bool(text)}{text}"
    ]


def mean_probabilities(probabilities: Sequence[Floats], members: Sequence[MemberFields]) -> Floats:
    """Return the weighted mean over members of their calibrated probabilities, (N, K). probabilities: of each net."""
    calibrated = [member.calibrate(p) for p, member in zip(probabilities, members, strict=True)]
    weights = [member.weight for member in members]
    if len(set(weights)) == 1:  # to the bit what the mean of several nets was before they had weights
        return np.asarray(np.mean(calibrated, axis=0), dtype=np.float64)
    total = np.zeros_like(calibrated[0])
    for weight, p in zip(weights, calibrated, strict=True):
        total += weight * p
    return np.asarray(total / total.sum(axis=1, keepdims=True), dtype=np.float64)


def distinct_resizings(members: Sequence[MemberFields]) -> tuple[tuple[Preprocessing, ...], tuple[int, ...]]:
    """Return one preprocessing for each way to resize an image, and which of them each member takes.

    Mean and standard deviation are applied later, by each net: members that differ in them alone share pixels.
    """
    keys = [(one.size, one.resize, one.interpolation) for one in (member.preprocessing for member in members)]
    distinct = list(dict.fromkeys(keys))
    preprocessings = tuple(members[keys.index(key)].preprocessing for key in distinct)
    return preprocessings, tuple(distinct.index(key) for key in keys)
