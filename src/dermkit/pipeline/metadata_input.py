"""The second input of a run: an encoder of its training images' metadata alone, and what is to be said of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from dermkit.data.manifest import Dataset
from dermkit.models.metadata import MetadataEncoder, fit_metadata, partly_known_text, unseen_text
from dermkit.progress import Progress
from dermkit.recipes.training_specs import MetadataSpec

if TYPE_CHECKING:
    from dermkit.training.metadata_batches import EncodedMetadata


def fit_encoder(spec: MetadataSpec, dataset: Dataset, split_table: pd.DataFrame) -> MetadataEncoder:
    """Return the encoder of the training images of a split; raises `DataError` for a field that none of them has."""
    return fit_metadata(spec.fields, _rows(dataset, split_table, ["train"]))


def encode_dataset(
    spec: MetadataSpec | None, dataset: Dataset, split_table: pd.DataFrame, progress: Progress
) -> "EncodedMetadata | None":
    """Return the metadata of every image of a data set, in the order of its manifest; None without a second input.

    progress: told of how many training images each field is known.
    """
    from dermkit.training.metadata_batches import EncodedMetadata

    if spec is None:
        return None
    encoder = fit_encoder(spec, dataset, split_table)
    progress.say(f"second input, known of training images: {partly_known_text(encoder)}")
    return EncodedMetadata(encoder, encoder.encode(dataset.manifest), spec.p_unknown)


def metadata_notes(spec: MetadataSpec | None, dataset: Dataset, split_table: pd.DataFrame) -> list[str]:
    """Return what the report says of the second input: fields, how often they are known, and categories that are new
    among the images that are scored.
    """
    if spec is None:
        return []
    encoder = fit_encoder(spec, dataset, split_table)
    scored = _rows(dataset, split_table, ["validation", "test"])
    unseen = unseen_text(encoder.unseen_categories(scored))
    return [encoder.sentence(), *([f"Of the validation and test images, {unseen}"] if unseen else [])]


def _rows(dataset: Dataset, split_table: pd.DataFrame, split_names: Sequence[str]) -> pd.DataFrame:
    """Return the manifest's rows of some splits."""
    ids = split_table.loc[split_table["split"].isin(split_names), "image_id"]
    return dataset.manifest[dataset.manifest["image_id"].isin(ids)]
