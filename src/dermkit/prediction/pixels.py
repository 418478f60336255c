"""Image files -> resized pixels and thumbnails; resized pixels may be stored on disk for the next prediction.

Stored pixels are pictures of people's skin: they are written only where a caller names a folder for them.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.cache.pixels import geometry, store_name
from dermkit.data.cache.store import Store
from dermkit.errors import ImageRejected
from dermkit.files import canonical_json, file_stat
from dermkit.images.decode import open_image, read_image_file
from dermkit.images.image_header import HeaderRejected
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.prediction.inputs import ImageRef, utf8_safe
from dermkit.render.sheets import thumbnail

THUMBNAIL_SIZE = 160
"""Longest edge of a picture on a sheet, in pixels."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image after decoding; the photograph at full size is not held, because a batch of them could fill the memory.

    pixels: (S, S, 3) uint8, resized, for each way in which the model's nets resize. thumbnail: (H, W, 3) uint8, at most
    `THUMBNAIL_SIZE` on its longest edge; None where none was wanted. key: 32-byte hash of the file's bytes and the
    resizing, b"" without a pixel store.
    """

    pixels: tuple[NDArray[np.uint8], ...]
    thumbnail: NDArray[np.uint8] | None
    pixel_sha256: str
    notes: tuple[str, ...]
    key: bytes = b""


ImageSource = Path | DecodedImage | ImageRejected
"""An image to score: a file that is still to be opened, one that is decoded already, or why it was refused."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """One image and its class probabilities, (K,) float64 in class order, summing to 1; or why it was refused.

    distance: its distance from the training images and p value, None where the model cannot tell. file_stat:
    "size:mtime_ns" of the file before it was read, "" where there is none.
    """

    name: str
    probabilities: NDArray[np.float64] | None
    distance: tuple[float, float] | None
    thumbnail: NDArray[np.uint8] | None
    pixel_sha256: str
    notes: tuple[str, ...]
    refusal: ImageRejected | None
    file_stat: str = ""


def score_frame(
    images: Sequence[ImageRef], scores: Sequence[ImageScore], class_names: Sequence[str]
) -> pd.DataFrame:
    """Return the scores of images as a table: `image_id`, `path`, `predicted`, `p_<class>` and `refused`.

    An image that was refused has no class, probabilities nan, and the reason with its detail in `refused`.
    """
    unknown = np.full(len(class_names), np.nan)
    p = np.array([unknown if score.probabilities is None else score.probabilities for score in scores])
    p = p.reshape(len(scores), len(class_names))
    refusals = ["" if score.refusal is None else score.refusal.message for score in scores]
    frame = pd.DataFrame(images, columns=list(ImageRef._fields))[["image_id", "path"]]
    frame["predicted"] = [
        "" if refusal else class_names[int(row.argmax())] for refusal, row in zip(refusals, p, strict=True)
    ]
    return pd.concat([frame, pd.DataFrame(p, columns=[f"p_{name}" for name in class_names])], axis=1).assign(
        refused=refusals
    )


@dataclass(frozen=True, eq=False)
class BatchImage:
    """An image of a batch: its name, what its source gave, and "size:mtime_ns" of its file, "" for none."""

    name: str
    content: DecodedImage | ImageRejected
    file_stat: str

    def with_score(self, scored: Iterator[tuple[NDArray[np.float64], tuple[float, float] | None]]) -> ImageScore:
        """Return the image's score: the next (probabilities, distance) of `scored`, or none where it was refused."""
        image = self.content
        if isinstance(image, ImageRejected):
            return ImageScore(self.name, None, None, None, "", (), image, self.file_stat)
        return ImageScore(
            self.name, *next(scored), image.thumbnail, image.pixel_sha256, image.notes, None, self.file_stat
        )


def decode_batch(
    images: Sequence[tuple[str, ImageSource]],
    resizings: Sequence[Preprocessing],
    *,
    n_thumbnails: int,
    pixel_store: "PixelStore | None",
) -> tuple[list[BatchImage], list[DecodedImage]]:
    """Return the images of a batch, and those that the pixel store does not hold yet.

    n_thumbnails: number of first images that get a thumbnail. pixel_store: where files are looked up, None = nowhere.
    """
    stats = [file_stat(source) if isinstance(source, Path) else "" for _, source in images]
    paths = [source for _, source in images if isinstance(source, Path)]
    stored = pixel_store.find(paths) if pixel_store else [None] * len(images)
    geometry_hash = pixel_store.geometry_hash if pixel_store else b""
    contents = [
        image or decode_image(
            source, name, resizings, with_thumbnail=index < n_thumbnails, geometry_hash=geometry_hash
        ) if isinstance(source, Path) else source
        for index, (image, (name, source)) in enumerate(zip(stored, images, strict=True))
    ]  # fmt: skip
    new_images = [
        image
        for image, stored_image in zip(contents, stored, strict=True)
        if stored_image is None and isinstance(image, DecodedImage)
    ]
    batch = [
        BatchImage(name, content, stat) for (name, _), content, stat in zip(images, contents, stats, strict=True)
    ]
    return batch, new_images if pixel_store else []


def decode_image(
    path: Path, name: str, resizings: Sequence[Preprocessing], *, with_thumbnail: bool, geometry_hash: bytes = b""
) -> DecodedImage | ImageRejected:
    """Open one image once and resize it in each of these ways; returns the rejection where it cannot be used."""
    try:
        image = open_image(path, name=name)
    except ImageRejected as refusal:
        return refusal
    small_pixels = _thumbnail(image.pixels) if with_thumbnail else None
    key = _pixel_key(bytes.fromhex(image.file_sha256), geometry_hash) if geometry_hash else b""
    pixels = tuple(resize_pixels(image.pixels, preprocessing) for preprocessing in resizings)
    return DecodedImage(pixels, small_pixels, image.pixel_sha256, image.notes, key)


def file_thumbnail(path: Path) -> NDArray[np.uint8] | None:
    """Return the thumbnail of a file, (H, W, 3) uint8; None where it is refused."""
    try:
        return _thumbnail(open_image(path).pixels)
    except ImageRejected:
        return None


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(thumbnail(pixels, THUMBNAIL_SIZE), dtype=np.uint8)


class PixelStore:
    """Resized pixels below a folder, found by the bytes of the image file: a renamed file is found too.

    Thread-safe, but for `add` and `flush`, which one thread calls. Added images are on disk after `flush`; before,
    whenever a segment is full.
    """

    def __init__(self, folder: Path, resizings: Sequence[Preprocessing]) -> None:
        geometries = [geometry(preprocessing) for preprocessing in resizings]
        key_fields = geometries[0] if len(geometries) == 1 else geometries
        self.geometry_hash = hashlib.sha256(canonical_json(key_fields).encode()).digest()
        self._sizes = [preprocessing.size for preprocessing in resizings]
        name = store_name(resizings[0]) if len(resizings) == 1 else f"pixels-{self.geometry_hash.hex()[:16]}"
        self._store = Store(folder, name, shape=_row_shape(self._sizes), dtype="uint8")
        self._lock = threading.Lock()
        self._unwritten: dict[bytes, DecodedImage] = {}
        self._n_read = 0

    def find(self, paths: Sequence[Path]) -> list[DecodedImage | None]:
        """Return the stored image of each file, None where there is none; every file is read and hashed."""
        keys = [self._file_key(path) for path in paths]
        readable = [index for index, key in enumerate(keys) if key]
        images: list[DecodedImage | None] = [None] * len(paths)
        if not readable:
            return images
        key_array = np.frombuffer(b"".join(keys[index] for index in readable), np.uint8).reshape(-1, 32)
        with self._lock:
            positions = self._store.index(key_array)
        stored = np.flatnonzero(positions >= 0)
        pixels, notes = self._store.read(positions[stored]), self._store.notes(positions[stored])
        for row, row_pixels, note in zip(stored.tolist(), pixels, notes, strict=True):
            record = json.loads(note)
            images[readable[row]] = DecodedImage(
                _split_row(row_pixels, self._sizes),
                None,
                record["pixel_sha256"],
                tuple(record["notes"]),
                keys[readable[row]],
            )
        with self._lock:
            self._n_read += len(stored)
            if (
                self._n_read >= self._store.rows_per_segment
            ):  # images are read once: memory maps of segments must not pile up
                self._n_read = 0
                self._store.release()
        return images

    def _file_key(self, path: Path) -> bytes:
        """Return the key of a file's bytes, b"" where they cannot be read; `open_image` then says why."""
        try:
            data = read_image_file(path)
        except HeaderRejected:
            return b""
        return _pixel_key(hashlib.sha256(data).digest(), self.geometry_hash)

    def add(self, images: Sequence[DecodedImage]) -> None:
        """Store images, each key once; written as soon as a segment is full."""
        self._unwritten.update((image.key, image) for image in images)
        if len(self._unwritten) >= self._store.rows_per_segment:
            self.flush()

    def flush(self) -> None:
        """Write the images that were added."""
        if not self._unwritten:
            return
        keys = np.frombuffer(b"".join(self._unwritten), np.uint8).reshape(-1, 32)
        images = list(self._unwritten.values())
        with self._lock:
            new_rows = np.flatnonzero(self._store.index(keys) < 0)
            self._store.add(
                keys[new_rows],
                np.stack([_joined_row(images[row].pixels) for row in new_rows])
                if len(new_rows)
                else self._empty_rows(),
                [_store_note(images[row]) for row in new_rows],
            )
        self._unwritten = {}

    def _empty_rows(self) -> NDArray[np.uint8]:
        return np.empty((0, *self._store.shape), np.uint8)


def _row_shape(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an image in the store: of several sizes they lie one after the other, as a vector."""
    return (sizes[0], sizes[0], 3) if len(sizes) == 1 else (sum(3 * size * size for size in sizes),)


def _joined_row(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return pixels[0] if len(pixels) == 1 else np.concatenate([array.ravel() for array in pixels])


def _split_row(row: NDArray[np.uint8], sizes: Sequence[int]) -> tuple[NDArray[np.uint8], ...]:
    if len(sizes) == 1:
        return (row,)
    ends = np.cumsum([3 * size * size for size in sizes])[:-1]
    return tuple(part.reshape(size, size, 3) for part, size in zip(np.split(row, ends), sizes, strict=True))


def _pixel_key(file_sha256: bytes, geometry_hash: bytes) -> bytes:
    return hashlib.sha256(file_sha256 + geometry_hash).digest()


def _store_note(image: DecodedImage) -> str:
    return canonical_json({"pixel_sha256": image.pixel_sha256, "notes": [utf8_safe(note) for note in image.notes]})
