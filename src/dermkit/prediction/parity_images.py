"""The images on which an exported net is compared with its original: named ones, validation images, or drawn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermkit.data.synthetic.lesions import CLASSES, draw_photograph, make_lesion
from dermkit.errors import DataError, DermkitError, ImageRejected, UsageError
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.prediction.inputs import find_images
from dermkit.prediction.pixels import DecodedImage, decode_image
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import PREDICTIONS_FILE, run_of_model

MAX_PARITY_IMAGES = 1000
"""Images that are compared; of more, as many are taken at equal steps."""

BATCH_SIZE = 32
N_DRAWN = 32


@dataclass(frozen=True)
class ParityImages:
    """Images to compare on. source: what they are, for a sentence. files: (name, path); () = drawn ones.

    labels: name -> label and lesion, where these are known.
    """

    source: str
    files: tuple[tuple[str, Path], ...]
    labels: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def batches(
        self, resizings: Sequence[Preprocessing]
    ) -> Iterator[tuple[list[str], tuple[NDArray[np.uint8], ...]]]:
        """Yield names and pixels (N, S, S, 3) uint8 for each of `resizings`, at most `BATCH_SIZE` images at once.

        A file that cannot be used as an image is left out.
        """
        for start in range(0, len(self.files) or N_DRAWN, BATCH_SIZE):
            named = self._read(start, resizings) if self.files else _drawn(resizings)
            if named:
                pixels = tuple(np.stack(images) for images in zip(*(image for _, image in named), strict=True))
                yield [name for name, _ in named], pixels

    def _read(
        self, start: int, resizings: Sequence[Preprocessing]
    ) -> list[tuple[str, tuple[NDArray[np.uint8], ...]]]:
        decoded = (
            (name, decode_image(path, name, resizings, with_thumbnail=False))
            for name, path in self.files[start : start + BATCH_SIZE]
        )
        return [(name, image.pixels) for name, image in decoded if isinstance(image, DecodedImage)]


def _drawn(resizings: Sequence[Preprocessing]) -> list[tuple[str, tuple[NDArray[np.uint8], ...]]]:
    """Return synthetic lesions of every kind, the same in every process."""
    kinds = list(CLASSES)
    size = max(preprocessing.size for preprocessing in resizings)
    lesions = [make_lesion(kinds[n % len(kinds)], seed=n) for n in range(N_DRAWN)]
    images = [draw_photograph(lesion, photo_seed=0, size=size) for lesion in lesions]
    return [
        (f"drawn lesion {n + 1}", tuple(resize_pixels(image, preprocessing) for preprocessing in resizings))
        for n, image in enumerate(images)
    ]


def choose_images(model: Path, images: Sequence[str]) -> ParityImages:
    """Return the images that `images` names; without, validation images of the model's run where they are at hand.

    model: the run or model folder. Raises `UsageError` for an argument that matches nothing, `DataError` where none of
    the named files exists.
    """
    if images:
        return ParityImages("the images that were named", _spread(_named_files(images)))
    validation, labels = _validation_files(model)
    if validation:
        return ParityImages("validation images of the run", _spread(validation), labels)
    return ParityImages("drawn lesions, since no validation images of the run are at hand", ())


def _named_files(images: Sequence[str]) -> list[tuple[str, Path]]:
    try:
        files = [(ref.name, Path(ref.path)) for ref in find_images(images)]
    except UsageError as error:
        raise UsageError(
            f"--images {error.message}", outcome="nothing was written", remedy=error.remedy
        ) from error
    if not any(path.exists() for _, path in files):
        raise _none_usable(len(files), f"{files[0][1]}: there is no such file")
    return files


def _validation_files(model: Path) -> tuple[list[tuple[str, Path]], dict[str, tuple[str, int]]]:
    """Return name and path of a run's validation images, and the label and lesion of each name.

    None where the run or its images are elsewhere.
    """
    run = RunFolder(run_of_model(model))
    try:
        root = run.images_root()
        table, groups = run.table(PREDICTIONS_FILE), run.groups() or {}
    except DermkitError:  # a broken file of the run says nothing of the model
        return [], {}
    if root is None or table is None or not {"split", "path", "image_id", "label"} <= set(table):
        return [], {}
    rows = table[table["split"] == "validation"].drop_duplicates("path")
    files = [(str(path), root / str(path)) for path in rows["path"]]
    image_ids = [str(image_id) for image_id in rows["image_id"]]
    lesions = [groups.get(image_id, -1 - number) for number, image_id in enumerate(image_ids)]
    labels = {
        name: (str(label), lesion) for (name, _), label, lesion in zip(files, rows["label"], lesions, strict=True)
    }
    return [(name, path) for name, path in files if path.is_file()], labels


def _spread(files: Sequence[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
    """Return at most `MAX_PARITY_IMAGES` files, at equal steps."""
    if len(files) <= MAX_PARITY_IMAGES:
        return tuple(files)
    return tuple(files[index] for index in np.linspace(0, len(files) - 1, MAX_PARITY_IMAGES).round().astype(int))


def check_usable(images: ParityImages, resizings: Sequence[Preprocessing]) -> None:
    """Raise `DataError` where no file can be used as an image; the first that can ends the search."""
    if next(images.batches(resizings), None) is not None:
        return
    name, path = images.files[0]
    rejection = decode_image(path, str(path), resizings[:1], with_thumbnail=False)
    raise _none_usable(len(images.files), str(rejection) if isinstance(rejection, ImageRejected) else name)


def _none_usable(n_files: int, first: str) -> DataError:
    """Return the error of images of which none can be used. first: what is wrong with one of them."""
    return DataError(
        f"none of {n_files} files can be used as an image, so the exported net cannot be checked ({first})",
        outcome="nothing was written",
        remedy="name other images with --images, or leave it out",
    )
