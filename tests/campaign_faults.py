"""Writes that fail: every call that changes a file below some folders is counted, and one of them is refused.

The refusal comes where the operating system's would: from open, write, fsync, rename, chmod. A write that fails has
written half of it. A device that is full stays full.
"""

import builtins
import errno
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dermkit.files import sha256_file

KINDS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
FULL = (errno.ENOSPC, errno.EDQUOT)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Faults:
    """The calls below `folders`, in order; the one with number `at` (from 1) fails as `number` says.

    counts: what a path must be like for its calls to be counted. stays: later writes fail too, where a device is
    full. whole: hash of every file that was put in its place, as it was then.
    """

    folders: Sequence[Path]
    counts: Callable[[str], bool] = lambda _path: True
    at: int = 0
    number: int = errno.ENOSPC
    stays: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)
    struck: tuple[str, str] | None = None
    whole: dict[Path, str] = field(default_factory=dict)
    _guard: Any = field(default_factory=threading.RLock, repr=False)

    def strikes(self, call: str, path: str) -> bool:
        """Count a call and tell whether it has to fail."""
        with self._guard:
            if not any(path.startswith(f"{folder}{os.sep}") for folder in self.folders):
                return False
            if self.struck is not None:
                return self.stays and self.number in FULL and call == "write"
            if self.counts(path):
                self.calls.append((call, path))
                if len(self.calls) == self.at:
                    self.struck = (call, path)
                    return True
            return False

    def refuse(self, path: str) -> OSError:
        """Return the operating system's refusal."""
        return OSError(self.number, os.strerror(self.number), path)

    def check(self, call: str, path: str) -> None:
        """Raise where a call has to fail."""
        if self.strikes(call, path):
            raise self.refuse(path)


def path_of(file: Any) -> str:
    """Return the path of a path or of an open file's number."""
    if isinstance(file, int):
        try:
            return str(Path(f"/proc/self/fd/{file}").readlink())
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(file))  # noqa: PTH100  a path may be bytes, and a link is what is meant


class _Raw(io.FileIO):
    """A file whose writes may fail."""

    faults: Faults
    place: str

    def write(self, data: Any, /) -> int:
        """Write all of it, or half of it and fail."""
        if self.faults.strikes("write", self.place):
            view = memoryview(data).cast("B")
            super().write(view[: len(view) // 2])
            raise self.faults.refuse(self.place)
        return super().write(data)


def _opener(faults: Faults, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands for `open`."""

    def open_(
        file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        place = path_of(file)
        changes = set(mode) & set("wax+")
        if not changes or not any(place.startswith(f"{folder}{os.sep}") for folder in faults.folders):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            faults.check("open", place)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.faults, raw.place = faults, place
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    return open_


@contextmanager
def failing(faults: Faults) -> Iterator[Faults]:
    """Let this process's calls go through `faults`."""
    real_os_open, real_fsync, real_replace, real_chmod = os.open, os.fsync, os.replace, os.chmod

    def os_open(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if flags & WRITES:
            faults.check("open", path_of(path))
        return real_os_open(path, flags, mode, **more)

    def fsync(number: Any) -> None:
        faults.check("fsync", path_of(number if isinstance(number, int) else number.fileno()))
        real_fsync(number)

    def replace(source: Any, target: Any, **more: Any) -> None:
        faults.check("rename", path_of(source))
        real_replace(source, target, **more)
        if stat.S_ISREG(os.stat(target).st_mode):  # noqa: PTH116  a path may be text
            faults.whole[Path(path_of(target))] = sha256_file(Path(path_of(target)))

    def chmod(path: Any, mode: int, **more: Any) -> None:
        faults.check("chmod", path_of(path))
        real_chmod(path, mode, **more)

    opened = _opener(faults, io.open)
    with (
        patch.object(os, "open", os_open), patch.object(os, "fsync", fsync), patch.object(os, "replace", replace),
        patch.object(os, "chmod", chmod), patch.object(io, "open", opened), patch.object(builtins, "open", opened),
    ):  # fmt: skip
        yield faults
