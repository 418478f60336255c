"""A store of arrays of one shape, found by key: append-only files (segments), memory-mapped.

A key is the SHA-256 of what a row was computed from, 32 bytes: (n, 32) uint8 for n rows. A position is the number of a
row in all segments together, int64; -1 = not in the store.
"""

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

SEGMENT_BYTES = 48 * 2**20
"""Largest size of a segment. A killed build loses at most this, and a few are in memory; larger = fewer files."""
SEGMENT_ROWS = 1024
"""The same in rows. Computing the features of 1,024 images takes a minute or two on a CPU."""

_VERIFIERS = 4  # threads that hash segments; with more the disk is the limit
_ABANDONED_SECONDS = 3600.0  # age of a temporary file that is removed; writing one takes a second or two
_TOUCH_SECONDS = 60.0  # least time between two updates of a segment's time of use
_WRITE_ATTEMPTS = 5  # another process may evict a segment between its rename and its opening
_MAX_COPY_BYTES = 2**20  # rows of more bytes in all are copied one by one, without an intermediate array


@dataclass(eq=False)
class _Segment:
    """A file of a store; its first row has position `start`. mapping: None until its hash was checked."""

    path: Path
    header: SegmentHeader
    keys: NDArray[np.uint8]
    start: int
    mapping: OpenSegment | None = None
    is_dropped: bool = False
    last_touched: float = -math.inf


class Store:
    """Arrays of one shape and dtype in `folder/name`, each found by a 32-byte key.

    Any number of processes may add rows at once. Positions stay valid during the life of this object, even if another
    process evicts segments. `read` and `notes` may run in several threads, all other methods in one.

    Raises `ValueError` for a name that is no file name, an empty shape, or a dtype that is not numeric.
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
        self._starts = np.zeros(1, np.int64)  # position of each segment's first row, and the total number of rows
        self._known_names: set[str] = set()
        self._index: _Index | None = None
        self.refresh()

    def refresh(self) -> None:
        """Find segments that other processes have written."""
        try:
            names = sorted(os.listdir(self.folder))  # noqa: PTH208  only the names are needed
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
            return  # evicted since it was listed, or not readable
        else:
            self._known_names.add(path.name)
            if is_compatible:  # an intact segment of another shape is left alone
                self._register(_Segment(path, header, keys, int(self._starts[-1])))

    def _register(self, segment: _Segment) -> None:
        self._segments.append(segment)
        self._starts = np.append(self._starts, segment.start + segment.header.n)
        self._known_names.add(segment.path.name)
        self._index = None

    def _remove(self, path: Path) -> None:
        """Delete a broken segment, so that its rows are computed again."""
        with contextlib.suppress(OSError):  # in a read-only folder it stays and is ignored
            path.unlink(missing_ok=True)
            self._known_names.discard(path.name)

    def index(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return (n,) int64 positions of the keys (n, 32) uint8; -1 = not in the store.

        The hash of every segment with one of these positions is checked once per process; broken segments are dropped.
        Raises `OutputError` if too many files are open.
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
        """Check and map segments; broken and missing ones are dropped. Returns whether none was."""
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
        except OSError as error:  # evicted since it was listed, or unreadable
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
        """Raise `OutputError`, before anything is computed, if the disk has no room for this many rows."""
        check_writable(self.folder, rows * (self.row_bytes + KEY_BYTES))
        _remove_stale_temporaries(self.folder)

    def add(self, keys: NDArray[np.uint8], values: NDArray[Any], notes: Sequence[str] = ()) -> None:
        """Write rows as one segment, completely or not at all; best `rows_per_segment` at a time.

        keys: (n, 32) uint8. values: (n, *shape) of the store's dtype. notes: a short text per row, or none. Raises
        `ValueError` for other shapes or types, and `OutputError`.
        """
        n = len(keys)
        if values.shape != (n, *self.shape) or values.dtype != self.dtype or len(notes) not in (0, n):
            raise ValueError(
                f"{values.shape} {values.dtype} and {len(notes)} notes, expected ({n}, *{self.shape}) {self.dtype}"
            )
        if n == 0:
            return
        key_copy = np.array(_key_words(keys)).view(np.uint8)  # a copy: the caller may reuse the array
        segments.allow_open_files(1)
        make_folder(self.folder)
        with output_errors(self.folder):
            path, header, mapping = _write_atomically(self.folder, key_copy, np.ascontiguousarray(values), notes)
        if path.name not in self._known_names:
            self._register(_Segment(path, header, key_copy, int(self._starts[-1]), mapping))

    def read(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return a new array (n, *shape) of the rows at n positions, in their order; raises `IndexError`."""
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
        """Return the texts of the rows at these positions; raises `IndexError`."""
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
        """Free the memory of file pages that were read, for callers that read every row once."""
        for segment in self._segments:
            if segment.mapping is not None:
                segment.mapping.release()

    def _locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return segment numbers and rows of positions; raises `IndexError` for -1 and others outside the store."""
        positions = np.asarray(positions, np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < self._starts[-1]:
            raise IndexError("a position outside the store: its key was not found")
        segment_numbers = np.searchsorted(self._starts, positions, side="right") - 1
        return segment_numbers, positions - self._starts[segment_numbers]

    def _mapping_of(self, segment_number: int) -> OpenSegment:
        mapping = self._segments[segment_number].mapping
        if mapping is None:
            raise IndexError("a position that `index` has not returned")
        return mapping


class _Index:
    """An index of keys, sorted by their first 8 bytes; the other 24 are compared only where those are equal."""

    def __init__(self, live_segments: Sequence[_Segment]) -> None:
        key_words = np.concatenate(
            [_key_words(segment.keys) for segment in live_segments] or [np.empty((0, 4), np.uint64)]
        )
        spans = [np.arange(segment.start, segment.start + segment.header.n) for segment in live_segments]
        order = np.argsort(key_words[:, 0], kind="stable")  # stable: of equal keys always the first
        self._words = key_words[order]
        self._first = self._words[:, 0].copy()
        self._positions = np.concatenate([np.empty(0, np.int64), *spans])[order]

    def positions_of(self, key_words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return (n,) positions, -1 = not in the store. key_words: (n, 4) uint64."""
        positions = np.full(len(key_words), -1, np.int64)
        index = np.zeros(len(key_words), np.int64)
        pending = np.argsort(key_words[:, 0])  # sorted searches are ten times as fast
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
    """Return keys as (n, 4) uint64; they are only compared, so byte order does not matter."""
    if keys.ndim != 2 or keys.shape[1] != KEY_BYTES or keys.dtype != np.uint8:
        raise ValueError(f"keys are {keys.shape} {keys.dtype}, expected (n, {KEY_BYTES}) uint8")
    return np.ascontiguousarray(keys).view(np.uint64)


def hash_keys(prefix: str, rows: Iterable[bytes]) -> NDArray[np.uint8]:
    """Return (n, 32) uint8 keys: the SHA-256 of `prefix` and each row's bytes."""
    prefix_hash, digests = hashlib.sha256(prefix.encode()), bytearray()
    for row in rows:
        digest = prefix_hash.copy()
        digest.update(row)
        digests += digest.digest()
    return np.frombuffer(digests, np.uint8).reshape(-1, KEY_BYTES)


class StoredRows:
    """A view of rows of a store that is indexed like an (N, *shape) array; every access returns a copy.

    positions: (N,) int64, from `Store.index`; raises `IndexError` for any other.
    """

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
        """Return the rows of an index, a slice, row numbers (negative ones count from the end) or a bool mask."""
        if isinstance(rows, tuple):
            raise TypeError("rows of a store have one index: take rows first, then a part of them")
        index = np.empty(0, np.int64) if isinstance(rows, list) and not rows else rows  # NumPy makes [] floats
        positions = np.asarray(self._positions[index])
        return self._store.read(positions.reshape(-1)).reshape(*positions.shape, *self._store.shape)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows of a store cannot be an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)


# Writing and removing segments ----------------------------------------------------------------------------------


def _write_atomically(
    folder: Path, keys: NDArray[np.uint8], values: NDArray[Any], notes: Sequence[str]
) -> tuple[Path, SegmentHeader, OpenSegment]:
    """Write a segment completely or not at all, and map it; no fsync, because its hash shows torn writes."""
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
    """Write a segment under its final name. It is closed before the rename: Windows cannot rename open files."""
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
    """Remove the temporary files of killed processes below a folder."""
    for path in folder.rglob(f"{TEMP_PREFIX}*.seg"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def evict(folder: Path, max_bytes: int, *, spare_used: bool = False) -> int:
    """Remove the least recently used segments of all stores below a folder until at most `max_bytes` remain.

    Returns the number of bytes removed. Only segments are removed; processes that have one mapped can still read it.
    spare_used: do not remove segments that this process wrote or read, even if more than `max_bytes` remain.
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
