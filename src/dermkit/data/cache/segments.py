"""Segments, the files of a store: rows with their keys, written once, named by the hash of their content.

Writes are not flushed to disk (no fsync): a torn or changed segment is recognised by its hash and computed again.

Arrays: keys (n, 32) uint8; values (n, *shape) of the store's dtype.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

try:
    import resource
except ImportError:  # Windows, where a map does not count as an open file
    resource = None  # type: ignore[assignment]

SEGMENT_FORMAT = 1
"""Part of a segment's name, so versions of dermkit with other formats ignore each other's segments."""

KEY_BYTES = 32

_MAGIC = b"dermseg\n"
_PREFIX = len(_MAGIC) + hashlib.sha256().digest_size + 4  # magic, hash of all that follows, length of the header
_ALIGN = 64  # bytes; the alignment of every numeric type, and a cache line
_MAX_HEADER = 4096  # bytes; a header takes about 100
_BLOCK_BYTES = 2**20
_SPARE_FILES = 64  # open files left for the rest of the process
_NAME_PATTERN = re.compile(rf"[0-9a-f]{{32}}\.{SEGMENT_FORMAT}\.seg")
_ANY_FORMAT_PATTERN = re.compile(r"[0-9a-f]{32}\.[0-9]+\.seg")

verified_segments: dict[str, tuple[int, int, int]] = {}
"""Path -> (inode, size, mtime) of segments that this process wrote or hashed; they are not hashed again."""


@dataclass(frozen=True)
class SegmentHeader:
    """The header of a segment of n rows; offsets and sizes are in bytes."""

    shape: tuple[int, ...]
    dtype: str
    n: int
    note_bytes: int
    keys_offset: int

    @property
    def notes_offset(self) -> int:
        """Offset of the notes."""
        return self.keys_offset + self.n * KEY_BYTES

    @property
    def values_offset(self) -> int:
        """Offset of the values."""
        return _aligned(self.notes_offset + self.note_bytes)

    @property
    def file_size(self) -> int:
        """Size of the file."""
        return self.values_offset + self.n * math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class OpenSegment:
    """A memory-mapped segment. keys: (n, 32) uint8; values: (n, *shape), read-only; valid after an eviction too."""

    keys: NDArray[np.uint8]
    values: NDArray[Any]
    notes_json: NDArray[np.uint8]
    file_map: mmap.mmap

    @classmethod
    def from_stream(cls, stream: IO[bytes], header: SegmentHeader) -> "OpenSegment":
        """Map an open file."""
        file_map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        file_bytes = np.frombuffer(file_map, np.uint8)
        keys = file_bytes[header.keys_offset : header.notes_offset].reshape(-1, KEY_BYTES)
        values = file_bytes[header.values_offset :].view(header.dtype).reshape(-1, *header.shape)
        return cls(keys, values, file_bytes[header.notes_offset :][: header.note_bytes], file_map)

    def notes(self) -> list[str]:
        """Return the note of every row, "" = none."""
        texts: list[str] = (
            json.loads(self.notes_json.tobytes()) if len(self.notes_json) else [""] * len(self.values)
        )
        return texts

    def release(self) -> None:
        """Free the memory of pages that were read; the system may keep them cached. Does nothing on Windows."""
        if hasattr(self.file_map, "madvise"):
            self.file_map.madvise(mmap.MADV_DONTNEED)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def write_segment(
    stream: IO[bytes], keys: NDArray[np.uint8], values: NDArray[Any], notes: Sequence[str]
) -> tuple[str, SegmentHeader]:
    """Write a segment into an empty file; return the name that it must be given, and its header.

    keys: (n, 32) uint8; values: (n, *shape); both contiguous. notes: n texts, or none.
    """
    notes_json = json.dumps(list(notes)).encode() if any(notes) else b""
    shape, dtype = values.shape[1:], values.dtype.str
    header_fields = {
        "format": SEGMENT_FORMAT,
        "shape": shape,
        "dtype": dtype,
        "n": len(keys),
        "note_bytes": len(notes_json),
    }
    header_json = json.dumps(header_fields).encode()
    header_json = header_json.ljust(_aligned(_PREFIX + len(header_json)) - _PREFIX)
    header = SegmentHeader(shape, dtype, len(keys), len(notes_json), _PREFIX + len(header_json))
    padding = bytes(header.values_offset - header.notes_offset - header.note_bytes)
    digest = hashlib.sha256()
    stream.write(bytes(_PREFIX - 4))
    value_bytes = values.reshape(-1).view(np.uint8).data
    for chunk in (
        len(header_json).to_bytes(4, "little"),
        header_json,
        keys.data,
        notes_json,
        padding,
        value_bytes,
    ):
        digest.update(chunk)
        stream.write(chunk)
    stream.seek(0)
    stream.write(_MAGIC + digest.digest())
    stream.flush()
    return f"{digest.hexdigest()[:32]}.{SEGMENT_FORMAT}.seg", header


def mark_verified(path: Path, stream: IO[bytes]) -> None:
    """Record that the open file at `path` is intact."""
    verified_segments[str(path)] = _signature(stream)


def is_segment_name(name: str) -> bool:
    """Return whether a file name is that of a segment of this format."""
    return _NAME_PATTERN.fullmatch(name) is not None


def read_segment_header(stream: IO[bytes]) -> SegmentHeader:
    """Read the header, up to the keys; raises `ValueError` for another file, or one of the wrong size."""
    prefix = stream.read(_PREFIX)
    length = int.from_bytes(prefix[-4:], "little")
    if not prefix.startswith(_MAGIC) or len(prefix) < _PREFIX or length > _MAX_HEADER:
        raise ValueError("not a segment")
    try:
        header_fields = json.loads(stream.read(length))
        shape = tuple(int(dimension) for dimension in header_fields["shape"])
        header = SegmentHeader(
            shape,
            str(header_fields["dtype"]),
            int(header_fields["n"]),
            int(header_fields["note_bytes"]),
            _PREFIX + length,
        )
        has_length = (
            header.n > 0 and header.note_bytes >= 0 and header.file_size == os.fstat(stream.fileno()).st_size
        )
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError("a broken header") from error
    if not has_length:
        raise ValueError("of another length than it states")
    return header


def is_intact(stream: IO[bytes]) -> bool:
    """Return whether a segment has its stated hash. Read, not mapped: a truncated map would kill the process."""
    stream.seek(len(_MAGIC))
    stated_digest, digest = stream.read(hashlib.sha256().digest_size), hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.digest() == stated_digest


def open_segment(path: Path) -> OpenSegment:
    """Map a segment after checking its hash, once per process; raises `ValueError` if it is broken, or `OSError`."""
    with path.open("rb") as stream:
        header = read_segment_header(stream)
        if verified_segments.get(str(path)) != _signature(stream) and not is_intact(stream):
            raise ValueError("changed")
        mark_verified(path, stream)
        return OpenSegment.from_stream(stream, header)


def _signature(stream: IO[bytes]) -> tuple[int, int, int]:
    status = os.fstat(stream.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def touch_segment(path: Path) -> None:
    """Make a segment the most recently used; if that is not permitted, it cannot be evicted either."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        was_verified = verified_segments.get(str(path)) == _signature(stream)
        os.utime(path)
        if was_verified:
            mark_verified(path, stream)


def allow_open_files(n_files: int) -> None:
    """Raise the process's limit of open files if it needs so many more: a mapped file counts as open."""
    if resource is None:
        return
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # opening a file then fails later
        n_needed = len(os.listdir("/dev/fd")) + n_files + _SPARE_FILES  # noqa: PTH208  only their number is needed
        if soft_limit != resource.RLIM_INFINITY and soft_limit < n_needed:
            new_limit = n_needed if hard_limit == resource.RLIM_INFINITY else min(n_needed, hard_limit)
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard_limit))


def list_segments(folder: Path) -> list[tuple[int, Path, int]]:
    """Return (mtime in ns, path, size in bytes) of every segment below a folder, of any format."""
    segments = []
    for path in folder.rglob("*.seg"):
        with contextlib.suppress(OSError):
            if _ANY_FORMAT_PATTERN.fullmatch(path.name) and path.is_file():
                with path.open("rb") as stream:
                    if stream.read(len(_MAGIC)) == _MAGIC:
                        status = os.fstat(stream.fileno())
                        segments.append((status.st_mtime_ns, path, status.st_size))
    return segments
