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
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
"""It is part of a segment's name, so that versions that differ in it never see each other's segments."""

KEY_BYTES = 32

_MAGIC = b"dermseg\n"
_PREFIX = len(_MAGIC) + hashlib.sha256().digest_size + 4  # magic, hash of all that follows, length of the header
_ALIGN = 64  # bytes; every type of number then lies where the processor wants it
_MOST_HEADER = 4096
_BLOCK = 2**20
_OTHER_FILES = 64  # room for what the rest of the process may open next
_OWN_NAME = re.compile(rf"[0-9a-f]{{32}}\.{FORMAT}\.seg")
_ANY_NAME = re.compile(r"[0-9a-f]{32}\.[0-9]+\.seg")

known: dict[str, tuple[int, int, int]] = {}
"""Segments that this process wrote or hashed, with inode, size and mtime: no second store hashes them again."""


@dataclass(frozen=True)
class Header:
    """What a segment says of itself. keys_at, notes_at, values_at, size: bytes."""

    shape: tuple[int, ...]
    dtype: str
    n: int
    note_bytes: int
    keys_at: int

    @property
    def notes_at(self) -> int:
        """Where the notes begin."""
        return self.keys_at + self.n * KEY_BYTES

    @property
    def values_at(self) -> int:
        """Where the values begin."""
        return _aligned(self.notes_at + self.note_bytes)

    @property
    def size(self) -> int:
        """The length of the file."""
        return self.values_at + self.n * math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, eq=False)
class Opened:
    """A segment's map. keys: (n, 32) uint8; values: (n, *shape), read-only; readable even when others evict it."""

    keys: NDArray[np.uint8]
    values: NDArray[Any]
    text: NDArray[np.uint8]
    mapped: mmap.mmap

    @classmethod
    def of(cls, stream: IO[bytes], header: Header) -> "Opened":
        """Map an open file."""
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        whole = np.frombuffer(mapped, np.uint8)
        keys = whole[header.keys_at : header.notes_at].reshape(-1, KEY_BYTES)
        values = whole[header.values_at :].view(header.dtype).reshape(-1, *header.shape)
        return cls(keys, values, whole[header.notes_at :][: header.note_bytes], mapped)

    def notes(self) -> list[str]:
        """Return the text of every row."""
        found: list[str] = json.loads(self.text.tobytes()) if len(self.text) else [""] * len(self.values)
        return found

    def let_go(self) -> None:
        """Give back the memory of what was read; the system holds the file's pages as long as it likes."""
        self.mapped.madvise(mmap.MADV_DONTNEED)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def write(
    stream: IO[bytes], keys: NDArray[np.uint8], values: NDArray[Any], notes: Sequence[str]
) -> tuple[str, Header]:
    """Write a segment into an empty file; return the name that it must be given, and its header.

    keys: (n, 32) uint8; values: (n, *shape); both contiguous. notes: n texts, or none.
    """
    text = json.dumps(list(notes)).encode() if any(notes) else b""
    shape, dtype = values.shape[1:], values.dtype.str
    facts = {"format": FORMAT, "shape": shape, "dtype": dtype, "n": len(keys), "note_bytes": len(text)}
    head = json.dumps(facts).encode()
    head = head.ljust(_aligned(_PREFIX + len(head)) - _PREFIX)
    header = Header(shape, dtype, len(keys), len(text), _PREFIX + len(head))
    padding = bytes(header.values_at - header.notes_at - header.note_bytes)
    digest = hashlib.sha256()
    stream.write(bytes(_PREFIX - 4))
    body = values.reshape(-1).view(np.uint8).data
    for part in (len(head).to_bytes(4, "little"), head, keys.data, text, padding, body):
        digest.update(part)
        stream.write(part)
    stream.seek(0)
    stream.write(_MAGIC + digest.digest())
    stream.flush()
    return f"{digest.hexdigest()[:32]}.{FORMAT}.seg", header


def remember(path: Path, stream: IO[bytes]) -> None:
    """Note that the content of an open file, which lies at `path`, is known to be whole."""
    known[str(path)] = _signature(stream)


def is_own(name: str) -> bool:
    """Say whether a file's name is that of a segment in this format."""
    return _OWN_NAME.fullmatch(name) is not None


def read_header(stream: IO[bytes]) -> Header:
    """Read the header, leaving the stream at the keys; raises `ValueError` where the file cannot be a whole one."""
    prefix = stream.read(_PREFIX)
    length = int.from_bytes(prefix[-4:], "little")
    if not prefix.startswith(_MAGIC) or len(prefix) < _PREFIX or length > _MOST_HEADER:
        raise ValueError("not a segment")
    try:
        value = json.loads(stream.read(length))
        shape = tuple(int(side) for side in value["shape"])
        header = Header(shape, str(value["dtype"]), int(value["n"]), int(value["note_bytes"]), _PREFIX + length)
        has_length = header.n > 0 and header.note_bytes >= 0 and header.size == os.fstat(stream.fileno()).st_size
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError("a broken header") from error
    if not has_length:
        raise ValueError("of another length than it states")
    return header


def is_whole(stream: IO[bytes]) -> bool:
    """Hash a file by reading, not by its map: a file cut short would kill the reader of a map with SIGBUS."""
    stream.seek(len(_MAGIC))
    stated, digest = stream.read(hashlib.sha256().digest_size), hashlib.sha256()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.digest() == stated


def open_segment(path: Path) -> Opened:
    """Map a segment, hashed unless this process did before; raises `ValueError` where it is not whole, or `OSError`."""
    with path.open("rb") as stream:
        header = read_header(stream)
        if known.get(str(path)) != _signature(stream) and not is_whole(stream):
            raise ValueError("changed")
        remember(path, stream)
        return Opened.of(stream, header)


def _signature(stream: IO[bytes]) -> tuple[int, int, int]:
    facts = os.fstat(stream.fileno())
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def touch(path: Path) -> None:
    """Make a segment the youngest; where that is not permitted, nothing can be evicted either."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        was_known = known.get(str(path)) == _signature(stream)
        os.utime(stream.fileno())
        if was_known:
            remember(path, stream)


def allow_open_files(more: int) -> None:
    """Raise the process's limit on open files where so many more would pass it: a map holds its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # the limit then shows when it is reached
        need = len(os.listdir("/dev/fd")) + more + _OTHER_FILES  # noqa: PTH208  not one path is wanted
        if soft != resource.RLIM_INFINITY and soft < need:
            most = need if hard == resource.RLIM_INFINITY else min(need, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def entries(folder: Path) -> list[tuple[int, Path, int]]:
    """Return mtime (ns), path and bytes of every segment below a folder, of any format."""
    found = []
    for path in folder.rglob("*.seg"):
        with contextlib.suppress(OSError):
            if _ANY_NAME.fullmatch(path.name) and path.is_file():
                with path.open("rb") as stream:
                    if stream.read(len(_MAGIC)) == _MAGIC:
                        facts = os.fstat(stream.fileno())
                        found.append((facts.st_mtime_ns, path, facts.st_size))
    return found
