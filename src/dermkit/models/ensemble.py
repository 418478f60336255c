"""Write a model folder of several nets: the weighted mean of their calibrated probabilities. Without torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dermkit.errors import DataError
from dermkit.files import make_folder, output_errors, write_bytes, write_rows, write_text
from dermkit.metrics.decisions import recalibration
from dermkit.metrics.decisions.policy import calibration_from_dict
from dermkit.models.card import (
    EMPTY_POLICY,
    MAX_NETS,
    MODEL_JSON,
    TRAINING_IMAGES_FILE,
    card_files,
    card_policy,
    features_file,
    member_file,
)
from dermkit.models.checksums import CHECKSUM_FILE, read_verified, write_checksums
from dermkit.models.training_images import TRAINING_IMAGE_COLUMNS, parse_training_images

_TRAINED_FIRST = ("train", "validation", "test")


def write_ensemble(
    folder: Path,
    models: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder whose members are the nets of these model folders; returns the folder, without a policy.

    weights: of each model in the mean, shared by its own nets as they share it there; None = equal ones; a model whose
    weight is 0 is left out. description: fields of the card that say what the ensemble is; None = of one training's
    folds. Every model is verified first. Raises `UntrustedError` for one that is not as it was saved, `DataError` where
    classes differ or there are too many nets.
    """
    make_folder(folder)
    with output_errors(folder):  # first of all, so that an interrupted call leaves no model
        (folder / CHECKSUM_FILE).unlink(missing_ok=True)
    shares = [1 / len(models)] * len(models) if weights is None else list(weights)
    cards: list[dict[str, Any]] = []
    members: list[dict[str, Any]] = []
    images: dict[tuple[str, str], str] = {}
    for model, share in zip(models, shares, strict=True):
        if share == 0:
            continue
        content = read_verified(model)
        card = MODEL_JSON.parse(content[MODEL_JSON.name], model / MODEL_JSON.name)
        cards.append(card)
        for member in _members_of(card, cards[0], model):
            file = member_file(len(members))
            write_bytes(folder / file, content[member["file"]])
            held = _copy_training_features(folder, content, member, len(members))
            members.append({**member, "file": file, "training_features": held, "weight": share * member["weight"]})
        _add_training_images(images, content[TRAINING_IMAGES_FILE], model)
    _write_rest(folder, _ensemble_card(cards, _with_unit_sum(members), description), images)
    return folder


def _copy_training_features(
    folder: Path, content: Mapping[str, bytes], member: Mapping[str, Any], number: int
) -> str | None:
    """Write the training features of a member under its number in the ensemble; returns the name, None without."""
    if member["training_features"] is None:
        return None
    file = features_file(number)
    write_bytes(folder / file, content[member["training_features"]])
    return file


def _write_rest(folder: Path, card: Mapping[str, Any], images: Mapping[tuple[str, str], str]) -> None:
    """Write all but the weights files, and remove those of an earlier ensemble of more members."""
    names = {member[field] for member in card["members"] for field in ("file", "training_features")}
    for file in (*folder.glob("member-*.safetensors"), *folder.glob("training_features-*.safetensors")):
        if file.name not in names:
            file.unlink()
    rows = [(*image, split) for image, split in sorted(images.items())]
    write_rows(folder / TRAINING_IMAGES_FILE, TRAINING_IMAGE_COLUMNS, rows)
    for name, text in card_files(card).items():
        write_text(folder / name, text)
    write_checksums(folder)


def check_members(models: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Raise `DataError` for model folders, with their cards, that cannot be members of one model."""
    for model, card in models:
        _members_of(card, models[0][1], model)
    if (n := sum(len(card["members"]) for _, card in models)) > MAX_NETS:
        raise DataError(
            f"{n} nets: a model holds at most {MAX_NETS}, since an image costs as many passes",
            outcome="nothing was written",
            remedy="name fewer models, or single runs in place of folds",
        )


def _members_of(card: Mapping[str, Any], first: Mapping[str, Any], model: Path) -> list[dict[str, Any]]:
    """Return the members of a model as those of an ensemble with the classes, by name, of its first model."""
    order = _class_order(card, first, model)
    if len(card["members"]) == 1 and card["members"][0]["calibration"] is None:
        return [{**card["members"][0], "class_order": order, "calibration": _own_calibration(card)}]
    return [
        {
            **member,
            "class_order": [member["class_order"][index] for index in order],
            "calibration": _without_bias(member["calibration"]),
        }
        for member in card["members"]
    ]


def _class_order(card: Mapping[str, Any], first: Mapping[str, Any], model: Path) -> list[int]:
    """Return, for each class of `first`, its position in the classes of a model."""
    classes = {entry["name"]: entry for entry in card["classes"]}
    wanted = {entry["name"]: entry for entry in first["classes"]}
    if classes != wanted:
        unequal = sorted(name for name in {*classes, *wanted} if classes.get(name) != wanted.get(name))
        raise DataError(
            f"{model}: has other classes than the model beside it, so they cannot be members of one "
            f"({', '.join(unequal[:5])} differ in name, diagnosis or malignancy)",
            outcome="the models",
            remedy="train them again on one data set with one class table",
        )
    return [list(classes).index(name) for name in wanted]


def _add_training_images(images: dict[tuple[str, str], str], table: bytes, model: Path) -> None:
    """Add the images that a member learned from; one that any member was trained on counts as trained on."""
    for pixels, isic_id, split in parse_training_images(table, model):
        seen_as = images.get((pixels, isic_id), split)
        images[pixels, isic_id] = min(seen_as, split, key=_TRAINED_FIRST.index)


def _with_unit_sum(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the members with weights that sum to 1, and equal ones equal to the last bit."""
    total = math.fsum(member["weight"] for member in members)
    weights = [round(member["weight"] / total, 12) for member in members]
    if len(set(weights)) == 1:
        weights = [1 / len(members)] * len(members)
    return [{**member, "weight": weight} for member, weight in zip(members, weights, strict=True)]


def _ensemble_card(
    cards: Sequence[Mapping[str, Any]], members: Sequence[Mapping[str, Any]], description: Mapping[str, Any] | None
) -> dict[str, Any]:
    training = {**cards[0]["training"], "fold": None, "best": None, "stopped": None}
    training["members"] = [
        entry for card in cards for entry in card["training"].get("members", [_seed_and_fold(card["training"])])
    ]
    card = {**cards[0], "members": members, **EMPTY_POLICY, "referral": [], "training": training}
    if description is None:
        return card
    return {**card, **description}


def _seed_and_fold(training: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": training["seed"], "fold": training["fold"]}


def _own_calibration(card: Mapping[str, Any]) -> dict[str, Any]:
    policy = card_policy(card)
    if policy is None:
        return asdict(recalibration.identity(len(card["classes"])))
    return _without_bias(policy["calibration"])


def _without_bias(calibration_json: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(calibration_from_dict(calibration_json).without_bias())
