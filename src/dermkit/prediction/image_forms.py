"""Images as Python code has them: paths, Pillow images, arrays and tensors, one or many, in a list or an iterator.

An image in memory is converted and resized when it is taken from the caller: a caller that fills one buffer again and
again, or closes a file, must not change an image that waits for its batch. Files are opened later, in parallel.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermkit.errors import ImageRejected, UsageError
from dermkit.images.decode import pixel_sha256_of
from dermkit.images.in_memory import is_in_memory, read_pixels
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.models.members import MemberFields, metadata_fields
from dermkit.prediction.inputs import ImageRef, unique_names
from dermkit.prediction.metadata_table import find_metadata, metadata_lines
from dermkit.prediction.pixels import DecodedImage, ImageSource


class Tensor(Protocol):
    """A torch tensor, as far as it is used here: torch may not be installed."""

    @property
    def layout(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    def detach(self) -> Any: ...


ImageForm: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
"""An image: a path, a Pillow image, an array (H, W, 3) or (H, W) uint8, or a tensor of these shapes or (3, H, W)."""

_FORMS = "give paths, Pillow images, uint8 NumPy arrays (H, W, 3) or uint8 torch tensors (3, H, W)"
_NOTHING = "nothing was scored"


def _is_path(image: object) -> bool:
    return isinstance(image, str | os.PathLike)


def iterate_images(images: Any) -> Iterable[Any]:
    """Return what holds the images one by one; one image becomes a list of it, a batch of four axes a list of images.

    Raises `UsageError` for what is neither an image nor can be iterated over.
    """
    is_batch = is_in_memory(images) and getattr(images, "ndim", 0) == 4
    is_text_array = isinstance(images, np.ndarray) and images.dtype.kind in "OU"
    if is_batch or is_text_array or isinstance(images, pd.Series | pd.Index):
        return list(images)
    if _is_path(images) or is_in_memory(images):
        return [images]
    is_iterable = hasattr(images, "__iter__") or hasattr(images, "__getitem__")
    if not is_iterable or isinstance(images, bytes | bytearray | pd.DataFrame):
        raise UsageError(f"images: of type {type(images).__name__}", outcome=_NOTHING, remedy=_FORMS)
    return images  # type: ignore[no-any-return]


def divide_paths(images: Iterable[Any]) -> tuple[list[str], Iterable[Any] | None]:
    """Return the images as paths, and None; where one is no path, no paths and the images to iterate over."""
    if isinstance(images, list | tuple) and not all(map(_is_path, images)):
        return [], images
    paths: list[Any] = []
    iterator = iter(images)
    for image in iterator:
        if not _is_path(image):
            return [], chain(paths, [image], iterator)
        paths.append(image)
    return [os.fspath(path) for path in paths], None


# Names and metadata -------------------------------------------------------------------------------------------------


def list_names(images: Sequence[Any]) -> list[ImageRef]:
    """Return a name for each image of a list, with the ids that predictions.csv would hold.

    An image in memory is named by its position, from 0, and has the path "".
    """
    working_folder = f"{Path.cwd()}/"
    paths = [os.fspath(image) if _is_path(image) else f"\0{index}" for index, image in enumerate(images)]
    names = [str(index) if path[:1] == "\0" else Path(path).name for index, path in enumerate(paths)]

    def key(path: str) -> str:
        return path if path.startswith("/") else working_folder + path

    refs = {key(ref.path): ref for ref in unique_names(list(zip(names, paths, strict=True)))}
    return [refs[key(path)]._replace(path="" if path[:1] == "\0" else path) for path in paths]


def stream_names(images: Iterable[Any]) -> Iterator[tuple[Any, ImageRef]]:
    """Yield each image with a name: of a list as above, of an iterator the path as given, since others may follow."""
    if isinstance(images, list | tuple):
        yield from zip(images, list_names(images), strict=True)
        return
    for position, image in enumerate(images):
        path = os.fspath(image) if _is_path(image) else ""
        yield image, ImageRef(path or str(position), path or str(position), path)


def metadata_of_images(
    metadata: Path | pd.DataFrame | None, images: Iterable[Any], members: Sequence[MemberFields], model: Path
) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the metadata of images, a row for each, None for all unknown, and lines about them for the user.

    Raises `UsageError` for a table beside an iterator: which of its rows are about an image would be known at the end.
    """
    if isinstance(images, list | tuple):
        known = find_metadata(metadata, list_names(images), members, model)
        return (known.table, metadata_lines(known, members)) if known else (None, [])
    if metadata is not None:
        raise UsageError("metadata: given for an iterator", outcome=_NOTHING, remedy="give a list of images")
    fields = ", ".join(metadata_fields(members))
    line = f"warning: this model takes {fields} beside the image: all images are scored with them unknown"
    return None, [line] if fields else []


# From an image to its pixels ----------------------------------------------------------------------------------------


def image_sources(
    images: Iterable[tuple[Any, ImageRef]], resizings: Sequence[Preprocessing]
) -> Iterator[tuple[ImageRef, tuple[str, ImageSource]]]:
    """Yield the name of each image, and what it is called in messages with its path or its resized pixels.

    Raises `UsageError` for what is no image in any form.
    """
    for position, (image, ref) in enumerate(images):
        if _is_path(image):
            yield ref, (ref.name, Path(image))
        elif is_in_memory(image):
            yield ref, (f"image {position}", _decode(image, f"image {position}", resizings))
        else:
            raise UsageError(f"image {position}: of type {type(image).__name__}", outcome=_NOTHING, remedy=_FORMS)


def _decode(image: Any, name: str, resizings: Sequence[Preprocessing]) -> DecodedImage | ImageRejected:
    try:
        pixels, notes = read_pixels(image, name=name)
    except ImageRejected as refusal:
        return refusal
    resized = tuple(resize_pixels(pixels, preprocessing) for preprocessing in resizings)
    return DecodedImage(resized, None, pixel_sha256_of(pixels), notes)
