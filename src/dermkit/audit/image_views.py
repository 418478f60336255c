"""Images and pairs of images as the audit's pages show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dermkit.data.manifest import Dataset
from dermkit.errors import DermkitError
from dermkit.images.decode import open_image
from dermkit.render.sheets import data_uri

_THUMBNAIL_SIDE = 144
"""Pixels of a thumbnail's longer side: about 6 kB, and two photographs of one lesion still look unlike duplicates."""


@dataclass(frozen=True)
class ImageView:
    """An image on a page. uri: "" where the image cannot be opened. measures: (name, value) texts of a check."""

    uri: str
    name: str
    path: str
    label: str
    malignancy: str
    split: str
    measures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class PairView:
    """Two images side by side; kind and distance are texts."""

    first: ImageView
    second: ImageView
    kind: str
    distance: str


class ImageViewer:
    """Makes the views of a data set's images; each image is opened once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._thumbnails: dict[str, str] = {}
        self.malignancies = {lesion_class.name: str(lesion_class.malignancy) for lesion_class in dataset.classes}

    def view(
        self, image_id: str, path: str, label: str, split: str, measures: Sequence[tuple[str, str]] = ()
    ) -> ImageView:
        """Return the view of an image."""
        malignancy, name = self.malignancies.get(label, ""), PurePosixPath(path).name
        return ImageView(self._thumbnail(image_id), name, path, label, malignancy, split, measures)

    def _thumbnail(self, image_id: str) -> str:
        """Return a small image as a data URI, "" where the file was rejected at import or is gone."""
        if image_id not in self._thumbnails:
            try:
                pixels = open_image(self._dataset.image_path(image_id), name=image_id).pixels
                self._thumbnails[image_id] = data_uri(pixels, _THUMBNAIL_SIDE)
            except DermkitError:
                self._thumbnails[image_id] = ""
        return self._thumbnails[image_id]
