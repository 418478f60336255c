"""The nets that `train auto` may choose from: weights files that are given, weights in the hub's cache, or none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dermkit.errors import UntrustedError, UsageError
from dermkit.files import read_json
from dermkit.models.backbones import KNOWN_BACKBONES, WEIGHTS_CARD_FORMAT, list_backbones
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

    weights_files: given by name, and then no others are taken. Raises `UntrustedError` for a file without its JSON,
    `UsageError` for weights that lack tensors.
    """
    if weights_files:
        return [(_net_of(file), file) for file in dict.fromkeys(weights_files)]
    cached = [backbone.name for backbone in list_backbones() if backbone.weights == "cached"]
    small = [
        backbone
        for backbone in KNOWN_BACKBONES
        if backbone.name in cached and (has_gpu or backbone.giga_multiply_adds <= _MOST_MULTIPLY_ADDS)
    ]
    largest = sorted(small, key=lambda backbone: -backbone.giga_multiply_adds)[:_MOST_CACHED]
    return [(_model(backbone.name, {}), None) for backbone in largest] or [(_small_net(), None)]


def _net_of(file: Path) -> ModelSpec:
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
    return _model(str(card["model"]), arguments)


def _model(backbone: str, arguments: dict[str, bool | int | float | str]) -> ModelSpec:
    if backbone.startswith(_ANY_SIZE_TRANSFORMERS):
        arguments = {**arguments, "dynamic_img_size": True}
    return replace(STRONG_1H.model, backbone=backbone, backbone_args=arguments)


def input_size(model: ModelSpec, median_side: int) -> int:
    """Return the side of a net's input: 160 pixels, less for smaller images, or the one that its net is made for."""
    if model.backbone.startswith(_ONE_SIZE):
        return next((one.image_size for one in KNOWN_BACKBONES if one.name == model.backbone), 224)
    return int(np.clip(_STEP * -(-median_side // _STEP), _SMALLEST_SIZE, STRONG_1H.image.size))


def _small_net() -> ModelSpec:
    return replace(
        STRONG_1H.model, backbone=SMALL_NET, backbone_args={}, weights="none", hidden=(128,), dropout=0.4
    )
