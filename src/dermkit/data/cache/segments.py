"""The files that a store is made of: rows with their keys, written once, whole, under the hash of their content.

Nothing waits for the disk: a segment that a power cut tore, or that changed later, is told by its hash.
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
"""It is part of a segment's name, so that versions that differ in it never see each other's segments."""

KEY_BYTES = 32

_MAGIC = b"dermseg\n"
_PREFIX = len(_MAGIC) + hashlib.sha256().digest_size + 4  # magic, hash of all that follows, length of the header
_ALIGN = 64  # bytes; every type of number then lies where the processor wants it
_MAX_HEADER = 4096
_BLOCK_BYTES = 2**20
_SPARE_FILES = 64  # room for what the rest of the process may open next
_NAME_PATTERN = re.compile(rf"[0-9a-f]{{32}}\.{SEGMENT_FORMAT}\.seg")
_ANY_FORMAT_PATTERN = re.compile(r"[0-9a-f]{32}\.[0-9]+\.seg")

verified_segments: dict[str, tuple[int, int, int]] = {}
"""Segments that this process wrote or hashed, with inode, size and mtime: no second store hashes them again."""


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says of itself. keys_at, notes_at, values_at, size: bytes."""

    shape: tuple[int, ...]
    dtype: str
    n: int
    note_bytes: int
    keys_offset: int

    @property
    def notes_offset(self) -> int:
        """Where the notes begin."""
        return self.keys_offset + self.n * KEY_BYTES

    @property
    def values_offset(self) -> int:
        """Where the values begin."""
        return _aligned(self.notes_offset + self.note_bytes)

    @property
    def file_size(self) -> int:
        """The length of the file."""
        return self.values_offset + self.n * math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class OpenSegment:
    """A segment's map. keys: (n, 32) uint8; values: (n, *shape), read-only; readable even when others evict it."""

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
        """Return the text of every row."""
        texts: list[str] = (
            json.loads(self.notes_json.tobytes()) if len(self.notes_json) else [""] * len(self.values)
        )
        return texts

    def release(self) -> None:
        """Give back the memory of what was read; the system may keep the file's pages. Does nothing on Windows."""
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
    """Note that the content of an open file, which lies at `path`, is known to be whole."""
    verified_segments[str(path)] = _signature(stream)


def is_segment_name(name: str) -> bool:
    """Say whether a file's name is that of a segment in this format."""
    return _NAME_PATTERN.fullmatch(name) is not None


def read_segment_header(stream: IO[bytes]) -> SegmentHeader:
    """Read the header, leaving the stream at the keys; raises `ValueError` where the file cannot be a whole one."""
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
    """Hash a file by reading, not by its map: a file cut short would kill the reader of a map with SIGBUS."""
    stream.seek(len(_MAGIC))
    stated_digest, digest = stream.read(hashlib.sha256().digest_size), hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.digest() == stated_digest


def open_segment(path: Path) -> OpenSegment:
    """Map a segment, hashed unless this process did before; raises `ValueError` where it is not whole, or `OSError`."""
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
    """Make a segment the youngest; where that is not permitted, nothing can be evicted either."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        was_verified = verified_segments.get(str(path)) == _signature(stream)
        os.utime(path)
        if was_verified:
            mark_verified(path, stream)


def allow_open_files(n_files: int) -> None:
    """Raise the process's limit on open files where so many more would pass it: a map holds its file open."""
    if resource is None:
        return
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # the limit then shows when it is reached
        n_needed = len(os.listdir("/dev/fd")) + n_files + _SPARE_FILES  # noqa: PTH208  not one path is wanted
        if soft_limit != resource.RLIM_INFINITY and soft_limit < n_needed:
            new_limit = n_needed if hard_limit == resource.RLIM_INFINITY else min(n_needed, hard_limit)
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard_limit))


def list_segments(folder: Path) -> list[tuple[int, Path, int]]:
    """Return mtime (ns), path and bytes of every segment below a folder, of any format."""
    segments = []
    for path in folder.rglob("*.seg"):
        with contextlib.suppress(OSError):
            if _ANY_FORMAT_PATTERN.fullmatch(path.name) and path.is_file():
                with path.open("rb") as stream:
                    if stream.read(len(_MAGIC)) == _MAGIC:
                        status = os.fstat(stream.fileno())
                        segments.append((status.st_mtime_ns, path, status.st_size))
    return segments
