"""Files -> what a net takes and what a prediction tells of them; resized pixels may be kept on disk for the next time.

What is kept are pictures of people's skin: only where a caller names a folder for them.
"""

import hashlib
import json
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermkit.data.cache.pixels import geometry, store_name
from dermkit.data.cache.store import Store
from dermkit.errors import ImageRefused
from dermkit.files import canonical_json
from dermkit.images.decode import MAX_FILE_BYTES, open_image
from dermkit.images.preprocess import Preprocessing, resize_pixels
from dermkit.prediction.inputs import shown
from dermkit.render.sheets import thumbnail

THUMBNAIL = 160
"""Pixels a side, at most: of the picture on a sheet."""


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of an image: a batch of photographs at full size could fill the memory.

    resized: (S, S, 3) uint8. thumbnail: (H, W, 3) uint8, at most `THUMBNAIL` a side; None where none was made.
    key: of the file's bytes and the geometry, 32 bytes.
    """

    resized: NDArray[np.uint8]
    thumbnail: NDArray[np.uint8] | None
    pixel_sha256: str
    notes: tuple[str, ...]
    key: bytes = b""


@dataclass(frozen=True, eq=False)
class Scored:
    """One image and its class probabilities (float64, in class order, summing to 1), or why it was refused.

    stat: size and time of change of the file before it was read, "" where there is none.
    """

    name: str
    probabilities: NDArray[np.float64] | None
    thumbnail: NDArray[np.uint8] | None
    pixel_sha256: str
    notes: tuple[str, ...]
    refusal: ImageRefused | None
    stat: str = ""


def look_at(
    path: Path, name: str, preprocessing: Preprocessing, *, with_thumbnail: bool, geometry: bytes = b""
) -> Look | ImageRefused:
    """Open one image and keep its small pictures."""
    try:
        image = open_image(path, name=name)
    except ImageRefused as refusal:
        return refusal
    small = _small(image.pixels) if with_thumbnail else None
    key = _key(bytes.fromhex(image.file_sha256), geometry) if geometry else b""
    return Look(resize_pixels(image.pixels, preprocessing), small, image.pixel_sha256, image.notes, key)


def picture_of(path: Path) -> NDArray[np.uint8] | None:
    """Return the thumbnail of a file, None where the gate refuses it."""
    try:
        return _small(open_image(path).pixels)
    except ImageRefused:
        return None


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(thumbnail(pixels, THUMBNAIL), dtype=np.uint8)


class KeptPixels:
    """Resized pixels below a folder, found again by the bytes of the file: a file that is renamed is still known.

    Any number of threads may call it. What was added is on disk after `flush`, and in whole segments before.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        side = preprocessing.size
        self.geometry = hashlib.sha256(canonical_json(geometry(preprocessing)).encode()).digest()
        self._store = Store(folder, store_name(preprocessing), shape=(side, side, 3), dtype="uint8")
        self._lock = threading.Lock()
        self._new: dict[bytes, Look] = {}
        self._taken = 0

    def find(self, paths: Sequence[Path]) -> list[Look | None]:
        """Return what is kept of files, None where nothing is; every file is read and hashed."""
        keys = [self._key_of(path) for path in paths]
        asked = [index for index, key in enumerate(keys) if key]
        looks: list[Look | None] = [None] * len(paths)
        if not asked:
            return looks
        packed = np.frombuffer(b"".join(keys[index] for index in asked), np.uint8).reshape(-1, 32)
        with self._lock:
            positions = self._store.find(packed)
        known = np.flatnonzero(positions >= 0)
        pixels, notes = self._store.take(positions[known]), self._store.notes(positions[known])
        for at, resized, note in zip(known.tolist(), pixels, notes, strict=True):
            said = json.loads(note)
            looks[asked[at]] = Look(resized, None, said["pixel_sha256"], tuple(said["notes"]), keys[asked[at]])
        with self._lock:
            self._taken += len(known)
            if self._taken >= self._store.rows_per_segment:  # a folder is read once: maps must not pile up
                self._taken = 0
                self._store.let_go()
        return looks

    def _key_of(self, path: Path) -> bytes:
        """Return the key of a file's bytes, or nothing where they cannot be read; the gate then says why."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
                return b""
            with path.open("rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError):
            return b""
        return _key(hashlib.sha256(data).digest(), self.geometry)

    def add(self, looks: Sequence[Look]) -> None:
        """Keep these, once each; written as soon as a segment is full."""
        self._new.update((look.key, look) for look in looks)
        if len(self._new) >= self._store.rows_per_segment:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        if not self._new:
            return
        keys = np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, 32)
        looks = list(self._new.values())
        with self._lock:
            fresh = np.flatnonzero(self._store.find(keys) < 0)
            self._store.add(
                keys[fresh],
                np.stack([looks[row].resized for row in fresh]) if len(fresh) else self._nothing(),
                [_note(looks[row]) for row in fresh],
            )
        self._new = {}

    def _nothing(self) -> NDArray[np.uint8]:
        return np.empty((0, *self._store.shape), np.uint8)


def _key(file_sha256: bytes, geometry: bytes) -> bytes:
    return hashlib.sha256(file_sha256 + geometry).digest()


def _note(look: Look) -> str:
    return canonical_json({"pixel_sha256": look.pixel_sha256, "notes": [shown(note) for note in look.notes]})
