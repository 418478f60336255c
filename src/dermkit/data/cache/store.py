"""Rows of arrays, found again by a hash of what they were made from: append-only segments, memory-mapped."""

import contextlib
import errno
import hashlib
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dermkit.data.cache import segments
from dermkit.data.cache.segments import (
    KEY_BYTES,
    OpenSegment,
    SegmentHeader,
    is_intact,
    is_segment_name,
    open_segment,
    read_segment_header,
)
from dermkit.errors import OutputError
from dermkit.files import TEMP_PREFIX, check_writable, make_folder, output_errors

__all__ = ["KEY_BYTES", "SEGMENT_BYTES", "SEGMENT_ROWS", "Store", "StoredRows", "evict", "hash_keys"]

SEGMENT_BYTES = 48 * 2**20
"""What a killed build loses, and what it holds in memory: little. Files of a large store: not too many."""
SEGMENT_ROWS = 1024
"""The same for small rows: the features of 1,024 images are a minute or two of work on a processor."""

_VERIFIERS = 4  # hashing releases Python's lock; beyond this the disk is the limit
_ABANDONED_SECONDS = 3600.0  # seconds; a segment is written in one or two
_TOUCH_SECONDS = 60.0  # seconds; eviction counts in days, and a server looks for a few images at a time
_WRITE_ATTEMPTS = 5  # another process may evict a segment between its rename and its opening
_MAX_COPY_BYTES = 2**20  # bytes; larger parts are not worth a second copy


@dataclass(eq=False)
class _Segment:
    """One file; its first row has position `start`. opened: once it was found to be whole."""

    path: Path
    header: SegmentHeader
    keys: NDArray[np.uint8]
    start: int
    mapping: OpenSegment | None = None
    is_dropped: bool = False
    last_touched: float = -math.inf


class Store:
    """Arrays of one shape and type in `folder/name`, each found again by a 32-byte key.

    Any number of processes may add at once. A position is good for the life of this object, also after an eviction
    by another process. `read` and `notes` may run in several threads, the rest in one.
    """

    def __init__(self, folder: Path, name: str, *, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        kind = np.dtype(dtype)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or 0 in shape or kind.kind not in "buifc":
            raise ValueError(f"not a name, shape and type of numbers: {name!r}, {shape}, {kind}")
        self.folder = folder.resolve() / name
        self.shape = tuple(shape)
        self.dtype: np.dtype[Any] = kind
        self.row_bytes = math.prod(shape) * kind.itemsize
        self.rows_per_segment = max(1, min(SEGMENT_ROWS, SEGMENT_BYTES // self.row_bytes))
        self._segments: list[_Segment] = []
        self._starts = np.zeros(1, np.int64)  # of every segment, and the end of the last
        self._known_names: set[str] = set()
        self._index: _Index | None = None
        self.refresh()

    def refresh(self) -> None:
        """See the segments that others wrote meanwhile."""
        try:
            names = sorted(os.listdir(self.folder))  # noqa: PTH208  of thousands, the names alone are wanted
        except OSError:
            return
        for name in names:
            if name not in self._known_names and is_segment_name(name):
                self._discover(self.folder / name)

    def _discover(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                header = read_segment_header(stream)
                keys = np.frombuffer(stream.read(header.n * KEY_BYTES), np.uint8).reshape(-1, KEY_BYTES)
                is_compatible = (header.shape, header.dtype) == (self.shape, self.dtype.str)
                if not is_compatible and not is_intact(stream):
                    raise ValueError("changed")
        except ValueError:
            self._remove(path)
        except OSError:
            return  # evicted since it was listed, or not ours to read
        else:
            self._known_names.add(path.name)
            if is_compatible:  # a sound segment of another shape is not for this store, nor this store's to drop
                self._register(_Segment(path, header, keys, int(self._starts[-1])))

    def _register(self, segment: _Segment) -> None:
        self._segments.append(segment)
        self._starts = np.append(self._starts, segment.start + segment.header.n)
        self._known_names.add(segment.path.name)
        self._index = None

    def _remove(self, path: Path) -> None:
        """Delete a segment that is not whole, so that it is made again."""
        with contextlib.suppress(OSError):  # in a read-only folder it stays, and is passed over
            path.unlink(missing_ok=True)
            self._known_names.discard(path.name)

    def index(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the position of every key, -1 where it is absent. keys: (n, 32).

        Every segment that a position lies in was hashed in this process; what is not whole is dropped first.
        """
        key_words = _key_words(keys)
        while True:
            if self._index is None:
                self._index = _Index([segment for segment in self._segments if not segment.is_dropped])
            positions = self._index.positions_of(key_words)
            holding_segments = self._segments_holding(positions)
            if self._open_all([segment for segment in holding_segments if segment.mapping is None]):
                break
            self._index = None
        current_time = time.monotonic()
        for segment in holding_segments:
            if current_time > segment.last_touched + _TOUCH_SECONDS:
                segments.touch_segment(segment.path)
                segment.last_touched = current_time
        return positions

    def _segments_holding(self, positions: NDArray[np.int64]) -> list[_Segment]:
        segment_numbers = np.searchsorted(self._starts, positions[positions >= 0], side="right") - 1
        return [self._segments[segment_number] for segment_number in np.flatnonzero(np.bincount(segment_numbers))]

    def _open_all(self, unopened: Sequence[_Segment]) -> bool:
        """Hash and map segments; those that are not whole, or gone, are dropped. Returns whether none was."""
        if not unopened:
            return True
        segments.allow_open_files(len(unopened))
        with ThreadPoolExecutor(_VERIFIERS) as pool:
            return all(list(pool.map(self._open, unopened)))

    def _open(self, segment: _Segment) -> bool:
        try:
            mapping = open_segment(segment.path)
            if not np.array_equal(mapping.keys, segment.keys) or len(mapping.values) != segment.header.n:
                raise ValueError("changed since its keys were read")
            segment.mapping = mapping
            return True
        except ValueError:
            self._remove(segment.path)
        except OSError as error:  # evicted since it was listed, or the disk does not give it back
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise OutputError(
                    f"{self.folder}: {len(self._segments)} segments cannot be open at once: {error.strerror}",
                    outcome="all of them",
                    remedy="allow more open files (`ulimit -n`)",
                ) from error
            self._known_names.discard(segment.path.name)
        segment.is_dropped = True
        return False

    def check_room(self, rows: int) -> None:
        """Refuse with `OutputError`, before anything is computed, where so many rows plainly have no room."""
        check_writable(self.folder, rows * (self.row_bytes + KEY_BYTES))
        _remove_stale_temporaries(self.folder)

    def add(self, keys: NDArray[np.uint8], values: NDArray[Any], notes: Sequence[str] = ()) -> None:
        """Write rows as one segment, whole or not at all; `rows_per_segment` at a time are best.

        values: (n, *shape) of the store's type. notes: a short text per row, or none. Raises `OutputError`.
        """
        n = len(keys)
        if values.shape != (n, *self.shape) or values.dtype != self.dtype or len(notes) not in (0, n):
            raise ValueError(
                f"{values.shape} {values.dtype} and {len(notes)} notes, expected ({n}, *{self.shape}) {self.dtype}"
            )
        if n == 0:
            return
        key_copy = np.array(_key_words(keys)).view(np.uint8)  # a copy: the caller may fill the same array again
        segments.allow_open_files(1)
        make_folder(self.folder)
        with output_errors(self.folder):
            path, header, mapping = _write_atomically(self.folder, key_copy, np.ascontiguousarray(values), notes)
        if path.name not in self._known_names:
            self._register(_Segment(path, header, key_copy, int(self._starts[-1]), mapping))

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return a fresh, writable array (n, *shape): the rows at these positions, in this order."""
        segment_numbers, rows = self._locate(positions)
        result = np.empty((len(rows), *self.shape), self.dtype)
        order = np.argsort(segment_numbers, kind="stable")
        for block in np.split(order, np.flatnonzero(np.diff(segment_numbers[order])) + 1) if len(order) else []:
            values = self._mapping_of(segment_numbers[block[0]]).values
            if len(block) * self.row_bytes <= _MAX_COPY_BYTES:
                result[block] = values[rows[block]]
            else:
                for target, row in zip(block.tolist(), rows[block].tolist(), strict=True):
                    result[target] = values[row]
        return result

    def notes(self, positions: NDArray[np.int64]) -> list[str]:
        """Return the texts of the rows at these positions."""
        segment_numbers, rows = self._locate(positions)
        texts = {
            segment_number: self._mapping_of(segment_number).notes()
            for segment_number in np.unique(segment_numbers).tolist()
        }
        return [
            texts[segment_number][row]
            for segment_number, row in zip(segment_numbers.tolist(), rows.tolist(), strict=True)
        ]

    def release(self) -> None:
        """Give back the memory that what was read of the maps takes: for those who read everything once."""
        for segment in self._segments:
            if segment.mapping is not None:
                segment.mapping.release()

    def _locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return segment number and row of positions; -1 and others outside raise `IndexError`."""
        positions = np.asarray(positions, np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < self._starts[-1]:
            raise IndexError("a position outside the store: its key was not found")
        segment_numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return segment_numbers, positions - self._starts[segment_numbers]

    def _mapping_of(self, segment_number: int) -> OpenSegment:
        mapping = self._segments[segment_number].mapping
        if mapping is None:
            raise IndexError("a position that `find` has not given")
        return mapping


class _Index:
    """Keys in the order of their first 8 bytes, of which a million compare in a blink; the rest decides."""

    def __init__(self, live_segments: Sequence[_Segment]) -> None:
        key_words = np.concatenate(
            [_key_words(segment.keys) for segment in live_segments] or [np.empty((0, 4), np.uint64)]
        )
        spans = [np.arange(segment.start, segment.start + segment.header.n) for segment in live_segments]
        order = np.argsort(key_words[:, 0], kind="stable")  # stable: of two equal rows always the earlier
        self._words = key_words[order]
        self._first = self._words[:, 0].copy()
        self._positions = np.concatenate([np.empty(0, np.int64), *spans])[order]

    def positions_of(self, key_words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of every key, -1 where it is absent. words: (n, 4)."""
        positions = np.full(len(key_words), -1, np.int64)
        index = np.zeros(len(key_words), np.int64)
        pending = np.argsort(key_words[:, 0])  # in order, a million searches are ten times as fast
        index[pending] = np.searchsorted(self._first, key_words[pending, 0])
        while len(pending):
            pending = pending[index[pending] < len(self._first)]
            pending = pending[self._first[index[pending]] == key_words[pending, 0]]
            is_equal = _rows_equal(self._words[index[pending]], key_words[pending])
            positions[pending[is_equal]] = self._positions[index[pending[is_equal]]]
            pending = pending[~is_equal]
            index[pending] += 1
        return positions


def _rows_equal(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.bool_]:
    equal: NDArray[np.bool_] = (a == b).all(axis=1)
    return equal


def _key_words(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return keys as (n, 4) numbers; they are only ever compared, so the order of bytes does not matter."""
    if keys.ndim != 2 or keys.shape[1] != KEY_BYTES or keys.dtype != np.uint8:
        raise ValueError(f"keys are {keys.shape} {keys.dtype}, expected (n, {KEY_BYTES}) uint8")
    return np.ascontiguousarray(keys).view(np.uint64)


def hash_keys(prefix: str, rows: Iterable[bytes]) -> NDArray[np.uint8]:
    """Return a key per row, (n, 32): the SHA-256 of `prefix` and the row's bytes."""
    prefix_hash, digests = hashlib.sha256(prefix.encode()), bytearray()
    for row in rows:
        digest = prefix_hash.copy()
        digest.update(row)
        digests += digest.digest()
    return np.frombuffer(digests, np.uint8).reshape(-1, KEY_BYTES)


class StoredRows:
    """Rows of a store, in a given order, that read like an (N, *shape) array; every reading is a copy."""

    def __init__(self, store: Store, positions: NDArray[np.int64]) -> None:
        self._positions = np.array(positions, np.int64)
        for segment_number in np.unique(store._locate(self._positions)[0]).tolist():
            store._mapping_of(segment_number)  # raises here, not in the middle of an epoch
        self._store = store
        self.shape: tuple[int, ...] = (len(self._positions), *store.shape)
        self.dtype = store.dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Return the rows at a slice, at row numbers (negative ones count from the end), or where a mask is true."""
        if isinstance(rows, tuple):
            raise TypeError("rows of a store have one index: take rows first, then a part of them")
        index = np.empty(0, np.int64) if isinstance(rows, list) and not rows else rows  # [] would be of floats
        positions = np.asarray(self._positions[index])
        return self._store.read(positions.reshape(-1)).reshape(*positions.shape, *self._store.shape)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows of a store cannot be an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)


# Files: written whole, and removed --------------------------------------------------------------------------------


def _write_atomically(
    folder: Path, keys: NDArray[np.uint8], values: NDArray[Any], notes: Sequence[str]
) -> tuple[Path, SegmentHeader, OpenSegment]:
    """Write and map a segment, whole or not at all; without waiting for the disk, since its hash tells what tore."""
    for _ in range(_WRITE_ATTEMPTS):
        path, header = _write_segment_file(folder, keys, values, notes)
        with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
            segments.mark_verified(path, stream)
            return path, header, OpenSegment.from_stream(stream, header)
    raise OutputError(
        f"{folder}: another process removes segments as fast as they are written",
        outcome="the other segments",
        remedy="evict the store when nothing writes to it",
    )


def _write_segment_file(
    folder: Path, keys: NDArray[np.uint8], values: NDArray[Any], notes: Sequence[str]
) -> tuple[Path, SegmentHeader]:
    """Write a segment under its final name. It is closed before the rename: Windows renames no open file."""
    descriptor, name = tempfile.mkstemp(prefix=TEMP_PREFIX, suffix=".seg", dir=folder)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            segment_name, header = segments.write_segment(stream, keys, values, notes)
        path = folder / segment_name
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path, header


def _remove_stale_temporaries(folder: Path) -> None:
    """Remove what killed writers left below a folder."""
    for path in folder.rglob(f"{TEMP_PREFIX}*.seg"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def evict(folder: Path, max_bytes: int, *, spare_used: bool = False) -> int:
    """Remove the least recently used segments of all stores below a folder until at most `max_bytes` remain.

    Returns the bytes removed. Nothing but segments is touched; a map that a process has open stays readable there.
    spare_own: leave those that this process wrote or read, even where more than `max_bytes` then remains.
    """
    folder = folder.resolve()
    _remove_stale_temporaries(folder)
    segment_files = sorted(segments.list_segments(folder))
    excess = sum(size for _, _, size in segment_files) - max_bytes
    removed_bytes = 0
    for _, path, size in segment_files:
        if removed_bytes >= excess:
            break
        if not (spare_used and str(path) in segments.verified_segments):
            with contextlib.suppress(OSError):
                path.unlink()
                removed_bytes += size
    return removed_bytes
