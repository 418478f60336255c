"""A model folder of several nets: the mean of their probabilities after each one's own calibration. Without torch."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermkit.errors import DataError
from dermkit.files import make_folder, output_errors, write_bytes, write_rows, write_text
from dermkit.metrics.decisions import recalibration
from dermkit.metrics.decisions.policy import calibration_from_dict
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import (
    EMPTY_POLICY,
    MODEL_JSON,
    TRAINING_IMAGES_FILE,
    card_files,
    card_policy,
    member_file,
)
from dermkit.models.checksums import CHECKSUM_FILE, read_verified, write_checksums
from dermkit.models.views import IDENTITY_VIEW, check_views

MAX_NETS = 32
"""Nets in one model: an image costs as many passes. A five-fold training has five."""

_TRAINED_FIRST = ("train", "validation", "test")
_MEMBER_KEYS = {"file", "spec", "views", "calibration"}


@dataclass(frozen=True)
class MemberFields:
    """A member of model.json: its weights file, its net's spec as JSON, its calibration (None: none) and views."""

    file: str
    spec: Mapping[str, Any]
    calibration: ProbabilityCalibration | None
    views: tuple[str, ...] = IDENTITY_VIEW


def read_members(card: Mapping[str, Any], file_names: Sequence[str], n_classes: int) -> list[MemberFields]:
    """Return the members of a model.json; raises `ValueError`, `KeyError` or `TypeError` for a list that is none.

    file_names: those that SHA256SUMS lists, so that nothing outside the folder, or that was not verified, is read.
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
    return members


def _read_member(entry: Mapping[str, Any], file_names: Sequence[str], n_classes: int) -> MemberFields:
    if not isinstance(entry, dict):
        raise TypeError("a member is no object")
    if others := sorted(set(entry) - _MEMBER_KEYS):
        raise ValueError(
            f"a member has {', '.join(map(repr, others[:5]))}: classes and preprocessing are of all members"
        )
    file, calibration_json = entry["file"], entry["calibration"]
    if not isinstance(file, str) or file not in file_names:
        raise ValueError(f"the weights file {file!r} of a member is not one that {CHECKSUM_FILE} lists")
    calibration = None if calibration_json is None else calibration_from_dict(calibration_json)
    if calibration is not None and len(calibration.bias) != n_classes:
        raise ValueError(f"the calibration of member {file} is not for {n_classes} classes")
    return MemberFields(file, entry["spec"], calibration, check_views(entry["views"]))


def mean_probabilities(probabilities: Sequence[Floats], calibrations: Sequence[ProbabilityCalibration]) -> Floats:
    """Return the mean over members of their calibrated probabilities, (N, K). probabilities: (N, K) of each."""
    calibrated = [one.apply(p) for p, one in zip(probabilities, calibrations, strict=True)]
    return np.asarray(np.mean(calibrated, axis=0), dtype=np.float64)


def write_ensemble(folder: Path, models: Sequence[Path]) -> Path:
    """Write a model folder whose members are the nets of these model folders; returns the folder, without a policy.

    models: of one net each. Every one is verified first. Raises `UntrustedError` for one that is not as it was saved,
    `DataError` where their classes or preprocessing differ.
    """
    make_folder(folder)
    with output_errors(folder):  # first of all, so that an interrupted call leaves no model
        (folder / CHECKSUM_FILE).unlink(missing_ok=True)
    cards: list[dict[str, Any]] = []
    images: dict[tuple[str, str], str] = {}
    for number, model in enumerate(models):
        content = read_verified(model)
        card = MODEL_JSON.parse(content[MODEL_JSON.name], model / MODEL_JSON.name)
        _check_alike(card, cards[0] if cards else card, model)
        write_bytes(folder / member_file(number), content[card["members"][0]["file"]])
        cards.append(card)
        _add_training_images(images, content[TRAINING_IMAGES_FILE])
    for file in folder.glob("member-*.safetensors"):  # of an earlier ensemble of more members
        if file.name not in {member_file(number) for number in range(len(models))}:
            file.unlink()
    write_rows(
        folder / TRAINING_IMAGES_FILE,
        ("pixel_sha256", "isic_id", "split"),
        [(*image, split) for image, split in sorted(images.items())],
    )
    for name, text in card_files(_ensemble_card(cards)).items():
        write_text(folder / name, text)
    write_checksums(folder)
    return folder


def _check_alike(card: Mapping[str, Any], first: Mapping[str, Any], model: Path) -> None:
    for name in ("classes", "preprocessing"):
        if card[name] != first[name]:
            raise DataError(
                f"{model}: has other {name} than the model beside it, so they cannot be members of one",
                outcome="the models of the folds",
                remedy="train the folds again with one recipe on one data set",
            )


def _add_training_images(images: dict[tuple[str, str], str], table: bytes) -> None:
    """Add the images that a member learned from; one that any member was trained on counts as trained on."""
    for pixels, isic_id, split in list(csv.reader(io.StringIO(table.decode("utf-8"), newline="")))[1:]:
        seen_as = images.get((pixels, isic_id), split)
        images[pixels, isic_id] = min(seen_as, split, key=_TRAINED_FIRST.index)


def _ensemble_card(cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    members = [
        {**card["members"][0], "file": member_file(number), "calibration": _own_calibration(card)}
        for number, card in enumerate(cards)
    ]
    training = {**cards[0]["training"], "fold": None, "best": None, "stopped": None}
    training["members"] = [{"seed": card["training"]["seed"], "fold": card["training"]["fold"]} for card in cards]
    return {**cards[0], "members": members, **EMPTY_POLICY, "referral": [], "training": training}


def _own_calibration(card: Mapping[str, Any]) -> dict[str, Any]:
    policy = card_policy(card)
    if policy is None:
        return asdict(recalibration.identity(len(card["classes"])))
    return {name: policy["calibration"][name] for name in ("kind", "temperature", "bias")}
