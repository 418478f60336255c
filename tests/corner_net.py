"""A model that looks at one corner of an image and at nothing else: where its heat map has to lie is known."""

from dataclasses import replace
from pathlib import Path

import torch

from dermkit.data.manifest import LesionClass
from dermkit.images.preprocess import Preprocessing
from dermkit.models.net import build_net
from dermkit.models.weights import resolve_weights
from dermkit.prediction.model_folder import ModelMetadata, save_model
from dermkit.recipes.experiments import DEMO

SIZE = 64
CLASSES = (LesionClass("nevus", "nevus", "benign"), LesionClass("melanoma", "melanoma", "malignant"))
TOP_LEFT, BOTTOM_RIGHT = 0, 15
"""Cells of the net's last map, 4 x 4."""


def save_corner_model(folder: Path, *, cell: int = TOP_LEFT) -> Path:
    """Save a model that calls an image melanoma for what is in one cell of its map, 16 x 16 of 64 x 64 pixels."""
    spec = replace(DEMO.model, backbone="dermkit/cnn-s1", hidden=(), weights="none", dropout=0.0)
    net = build_net(spec, 2, weights=resolve_weights(spec, None), seed=0).eval()
    head = next(module for module in net.head.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1].reshape(128, 16)[:, cell] = 0.2
        head.bias.copy_(torch.tensor([0.0, -4.0]))
    preprocessing = Preprocessing(
        size=SIZE, resize="crop", interpolation="bilinear", divide_by=255.0, mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    metadata = ModelMetadata({"name": "corner"}, {}, {}, {}, [])
    return save_model(folder, net, spec=spec, classes=CLASSES, preprocessing=preprocessing, metadata=metadata)
