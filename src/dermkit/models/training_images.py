"""seen.csv of a model folder: the images of its training and validation splits. Without torch."""

import csv
import io
from pathlib import Path

from dermkit.errors import UntrustedError
from dermkit.files import read_regular
from dermkit.models.card import TRAINING_IMAGES_FILE

TRAINING_IMAGE_COLUMNS = ("pixel_sha256", "isic_id", "split")


def read_training_images(folder: Path) -> dict[str, str]:
    """Return pixel hash -> split of the images that the model's training used."""
    path = folder / TRAINING_IMAGES_FILE
    if not path.is_file():
        return {}
    return {pixels: split_name for pixels, _, split_name in parse_training_images(read_regular(path), folder)}


def parse_training_images(data: bytes, folder: Path) -> tuple[tuple[str, str, str], ...]:
    """Return the rows of seen.csv; raises `UntrustedError` where it is another table."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
        if not rows or rows[0] != list(TRAINING_IMAGE_COLUMNS) or any(len(row) != 3 for row in rows[1:]):
            raise ValueError(f"its columns are not {', '.join(TRAINING_IMAGE_COLUMNS)}")
    except (ValueError, csv.Error) as error:
        raise UntrustedError(
            f"{folder / TRAINING_IMAGES_FILE}: is no list of images: {error}", remedy="copy it anew"
        ) from error
    return tuple((row[0], row[1], row[2]) for row in rows[1:])
