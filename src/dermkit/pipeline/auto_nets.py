"""The nets that `train auto` may choose from: weights files that are given, weights in the hub's cache, or none."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dermkit.errors import UntrustedError, UsageError
from dermkit.files import read_json, sha256_file
from dermkit.models.backbones import KNOWN_BACKBONES, WEIGHTS_CARD_FORMAT, list_backbones
from dermkit.models.hub import Argument, is_local_copy, resolve_hub_net
from dermkit.models.hub_files import WEIGHTS_FILE_NAME
from dermkit.models.hub_names import is_hub_name
from dermkit.recipes.schema import ModelSpec
from dermkit.recipes.strong import STRONG_1H

_MOST_CACHED = 3
_MOST_MULTIPLY_ADDS = 2.0
"""Thousand millions of multiply-adds an image: a larger net of the cache is not trained on a CPU unless it is named."""

_ANY_SIZE_TRANSFORMERS = ("vit_", "deit")
"""Plain transformers, whose position embedding timm resizes to that of the image (`dynamic_img_size`)."""
_ONE_SIZE = ("swin", "maxvit", "coatnet", "maxxvit", "mvit", "levit", "twins", "cait", "mixer")
"""Nets that take images of one size alone."""
_SMALLEST_SIZE, _STEP = 64, 32

SMALL_NET = "dermkit/cnn-s4"


def nets_at_hand(weights_files: Sequence[Path], *, has_gpu: bool) -> list[tuple[ModelSpec, Path | None]]:
    """Return the nets to choose from with their weights files, the preferred first; never none.

    weights_files: given by name, and then no others are taken; hf-hub:OWNER/NAME stands for a repository of the hub,
    a folder for the model.safetensors in it. Raises `UntrustedError` for a file that nothing describes, `UsageError`
    for weights that lack tensors.
    """
    if weights_files:
        return [_net_of(weights) for weights in dict.fromkeys(weights_files)]
    cached = [backbone.name for backbone in list_backbones() if backbone.weights == "cached"]
    small = [
        backbone
        for backbone in KNOWN_BACKBONES
        if backbone.name in cached and (has_gpu or backbone.giga_multiply_adds <= _MOST_MULTIPLY_ADDS)
    ]
    largest = sorted(small, key=lambda backbone: -backbone.giga_multiply_adds)[:_MOST_CACHED]
    return [(_model(backbone.name, {}, backbone.name), None) for backbone in largest] or [(_small_net(), None)]


def weights_identity(weights: Path) -> str | None:
    """Return what tells weights that were given from others: name on the hub, or hash; None where nothing does."""
    if is_hub_name(weights.as_posix()):
        return weights.as_posix()
    file = _file_of(weights)
    card_path = file.with_name(f"{file.name}.json")
    if card_path.is_file():
        sha256 = read_json(card_path, format=WEIGHTS_CARD_FORMAT).get("sha256")
        return None if sha256 is None else str(sha256)
    return sha256_file(file) if file.is_file() else None


def _file_of(weights: Path) -> Path:
    return weights / WEIGHTS_FILE_NAME if weights.is_dir() else weights


def _net_of(weights: Path) -> tuple[ModelSpec, Path | None]:
    """Return a net that was given, and its weights file; None where the hub has it."""
    if is_hub_name(weights.as_posix()):
        net = resolve_hub_net(weights.as_posix())
        return _model(str(net.name), {}, net.architecture), None
    file = _file_of(weights)
    if file.is_file() and is_local_copy(file):
        net = resolve_hub_net(str(weights), file)
        return _model(net.architecture, net.arguments, net.architecture), file
    return _net_of_card(file), file


def _net_of_card(file: Path) -> ModelSpec:
    card_path = file.with_name(f"{file.name}.json")
    if not file.is_file() or not card_path.is_file():
        raise UntrustedError(
            f"{file}: {'has no JSON beside it' if file.is_file() else 'there is no such weights file'}",
            outcome="nothing was trained",
            remedy="give the file with the JSON that was made with it (docs/training.md)",
        )
    card = read_json(card_path, format=WEIGHTS_CARD_FORMAT, error=UntrustedError)
    if card.get("missing"):
        raise UsageError(
            f"{file}: lacks tensors of its net, {len(card['missing'])} of them",
            outcome="nothing was trained",
            remedy="name its recipe: `train auto` takes whole nets alone",
        )
    arguments = {name: value for name, value in dict(card["model_args"]).items() if name != "num_classes"}
    return _model(str(card["model"]), arguments, str(card["model"]))


def _model(backbone: str, arguments: Mapping[str, Argument], architecture: str) -> ModelSpec:
    any_size = {"dynamic_img_size": True} if architecture.startswith(_ANY_SIZE_TRANSFORMERS) else {}
    return replace(STRONG_1H.model, backbone=backbone, backbone_args={**arguments, **any_size})


def input_size(model: ModelSpec, median_side: int) -> int:
    """Return the side of a net's input: 160 pixels, less for smaller images, or the one that its net is made for.

    Of a transformer it is a multiple of its patches.
    """
    net = resolve_hub_net(model.backbone) if is_hub_name(model.backbone) else None
    architecture = net.architecture if net else model.backbone
    if architecture.startswith(_ONE_SIZE):
        known = {one.name: one.image_size for one in KNOWN_BACKBONES}
        return net.input_size if net else known.get(architecture, 224)
    size = int(np.clip(_STEP * -(-median_side // _STEP), _SMALLEST_SIZE, STRONG_1H.image.size))
    patch = re.search(r"patch(\d+)", architecture)
    return size // int(patch[1]) * int(patch[1]) if patch and int(patch[1]) <= size else size


def _small_net() -> ModelSpec:
    return replace(
        STRONG_1H.model, backbone=SMALL_NET, backbone_args={}, weights="none", hidden=(128,), dropout=0.4
    )
