"""Misclassified images with thumbnails, for pages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.errors import ImageRejected
from dermkit.images.decode import open_image
from dermkit.render.sheets import data_uri
from dermkit.runs.predictions import ScoredImage

PixelFinder = Callable[[str], NDArray[np.uint8] | None]

THUMBNAIL_EDGE = 144
"""Side of a thumbnail in pixels: shows colours and border of a lesion, at about 6 kB."""


@dataclass(frozen=True)
class Mistake(ScoredImage):
    """A misclassified image; uri is "" if the image cannot be opened."""

    uri: str


def load_mistakes(
    mistake_table: pd.DataFrame,
    pixel_finder: PixelFinder | None,
    root: Path | None,
    pixel_hashes: Mapping[str, str],
) -> list[Mistake]:
    """Return the rows of a mistakes table with a thumbnail each; without `pixel_finder` they are opened below
    `root`.

    pixel_hashes: as of `image_opener`.
    """
    find_pixels = pixel_finder or image_opener(mistake_table, root, pixel_hashes)
    return [
        Mistake(
            row["image_id"], row["path"], row["label"], row["predicted"],
            float(row["p_predicted"]), float(row["p_label"]), mistake_uri(find_pixels(row["image_id"])),
        )
        for row in mistake_table.to_dict("records")
    ]  # fmt: skip


def mistake_uri(pixels: NDArray[np.uint8] | None) -> str:
    """Return a thumbnail as a data URI, "" without pixels."""
    return "" if pixels is None else data_uri(pixels, THUMBNAIL_EDGE)


def image_opener(image_table: pd.DataFrame, root: Path | None, pixel_hashes: Mapping[str, str]) -> PixelFinder:
    """Return a function that opens an image of a table (image_id, path) below `root`, and nothing outside of it.

    pixel_hashes: image_id -> hash of the pixels that were scored, where it is known. A file that holds others shows
    another lesion than the answer is about, and is not shown.
    """
    paths = dict(zip(image_table["image_id"], image_table["path"], strict=True)) if len(image_table) else {}

    def find_pixels(image_id: str) -> NDArray[np.uint8] | None:
        path = None if root is None else root / paths[image_id]
        if root is None or path is None or not path.resolve().is_relative_to(root.resolve()):
            return None
        try:
            image = open_image(path, name=image_id)
        except ImageRejected:
            return None
        return image.pixels if image.pixel_sha256 == pixel_hashes.get(image_id, image.pixel_sha256) else None

    return find_pixels
