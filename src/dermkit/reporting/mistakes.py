"""Wrong predictions with a small picture of each, for the pages that show them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.errors import ImageRefused
from dermkit.images.decode import open_image
from dermkit.render.sheets import data_uri

Images = Callable[[str], NDArray[np.uint8] | None]

SIDE = 144
"""Pixels of a thumbnail's side: colours and border of a lesion can be told, at about 6 kB."""


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction; uri is "" where the image is not at hand."""

    image_id: str
    path: str
    label: str
    predicted: str
    p_predicted: float
    p_label: float
    uri: str


def mistakes_of(wrong: pd.DataFrame, images: Images | None, root: Path | None) -> list[Mistake]:
    """Return the rows of a mistakes table with a thumbnail each; without `images` they are opened below `root`."""
    find = images or opener(wrong, root)
    return [
        Mistake(
            row["image_id"], row["path"], row["label"], row["predicted"],
            float(row["p_predicted"]), float(row["p_label"]), thumbnail(find(row["image_id"])),
        )
        for row in wrong.to_dict("records")
    ]  # fmt: skip


def thumbnail(pixels: NDArray[np.uint8] | None) -> str:
    """Return a small picture as a data URI, "" where there are no pixels."""
    return "" if pixels is None else data_uri(pixels, SIDE)


def opener(wrong: pd.DataFrame, root: Path | None) -> Images:
    """Return what opens an image of a table (image_id, path) below `root`, but no path that leads out of it."""
    paths = dict(zip(wrong["image_id"], wrong["path"], strict=True)) if len(wrong) else {}

    def find(image_id: str) -> NDArray[np.uint8] | None:
        path = None if root is None else root / paths[image_id]
        if root is None or path is None or not path.resolve().is_relative_to(root.resolve()):
            return None
        try:
            return open_image(path, name=image_id).pixels
        except ImageRefused:
            return None

    return find
