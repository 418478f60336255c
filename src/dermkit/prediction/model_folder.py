"""A trained net written as a model folder: safetensors, `model.json`, `MODEL_CARD.md`, `seen.csv`, checksums last."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors

from dermkit.data.manifest import LesionClass
from dermkit.files import make_folder, output_errors, write_bytes, write_rows, write_text
from dermkit.images.preprocess import Preprocessing
from dermkit.models.card import (
    EMPTY_POLICY,
    RESEARCH_ONLY,
    TRAINING_IMAGES_FILE,
    WEIGHTS_FILE,
    card_files,
    features_file,
)
from dermkit.models.checksums import CHECKSUM_FILE, write_checksums
from dermkit.models.inference import torch_versions
from dermkit.models.metadata import MetadataEncoder
from dermkit.models.net import Net
from dermkit.models.training_features import ReferenceFeatures
from dermkit.models.training_features_file import training_features_bytes
from dermkit.models.training_images import TRAINING_IMAGE_COLUMNS
from dermkit.models.views import IDENTITY_VIEW
from dermkit.recipes.schema import ModelSpec


@dataclass(frozen=True)
class ModelMetadata:
    """What a model folder says about its origin, as plain JSON values.

    training_images: (pixel_sha256, isic_id, split) of every image that the training used, so that a later prediction
    on one of them can be recognised.
    """

    recipe: Mapping[str, Any]
    dataset: Mapping[str, Any]
    weights: Mapping[str, Any]
    training: Mapping[str, Any]
    training_images: Sequence[tuple[str, str, str]]


def save_model(
    folder: Path,
    net: Net,
    *,
    spec: ModelSpec,
    classes: Sequence[LesionClass],
    preprocessing: Preprocessing,
    metadata: ModelMetadata,
    views: Sequence[str] = IDENTITY_VIEW,
    encoder: MetadataEncoder | None = None,
    training_features: ReferenceFeatures | None = None,
) -> Path:
    """Write a model folder, its checksums last; returns the folder.

    views: whose probabilities are averaged. encoder: of the metadata that the net takes as a second input.
    training_features: what the training images look like to the net, None = the model cannot tell foreign images.
    """
    make_folder(folder)
    # First of all, so that an interrupted save is no model: old checksums must not stand beside new files.
    with output_errors(folder):
        (folder / CHECKSUM_FILE).unlink(missing_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_bytes(folder / WEIGHTS_FILE, save_safetensors(state))
    if training_features is not None:
        write_bytes(folder / features_file(0), training_features_bytes(training_features))
    write_rows(folder / TRAINING_IMAGES_FILE, TRAINING_IMAGE_COLUMNS, metadata.training_images)
    member = {
        "file": WEIGHTS_FILE,
        "spec": asdict(spec),
        "preprocessing": asdict(preprocessing),
        "views": list(views),
        "calibration": None,
        "weight": 1.0,
        "class_order": list(range(len(classes))),
        "metadata": None if encoder is None else encoder.as_dict(),
        "training_features": None if training_features is None else features_file(0),
    }
    _write_card(
        folder, {"members": [member], "classes": [asdict(lesion_class) for lesion_class in classes]}, metadata
    )
    return folder


def _write_card(folder: Path, fields: Mapping[str, Any], metadata: ModelMetadata) -> None:
    """Write model.json and MODEL_CARD.md, and the checksums last. fields: `members` and `classes`."""
    card = {
        **fields,
        **EMPTY_POLICY,
        "recipe": metadata.recipe,
        "dataset": metadata.dataset,
        "weights": metadata.weights,
        "training": metadata.training,
        "versions": torch_versions(),
        "notice": RESEARCH_ONLY,
    }
    for name, text in card_files(card).items():
        write_text(folder / name, text)
    write_checksums(folder)
