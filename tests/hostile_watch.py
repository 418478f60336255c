"""Hostile sources, what should become of them, and proof of what a command wrote.

A case says beforehand, by what it planted and not by what dermkit does, which pictures must come through with which
values, and what must be named as wrong. Every picture is different, so its pixels tell which row is whose.
"""

import csv
import hashlib
import io
import json
import os
import re
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

# Pictures ----------------------------------------------------------------------------------------------------------


WIDTH, HEIGHT = 12, 10


def pixels_of(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return 12 x 10 pixels that no other number has."""
    noise = hashlib.shake_128(f"hostile {number}".encode()).digest(WIDTH * HEIGHT * 3)
    return np.frombuffer(noise, np.uint8).reshape(HEIGHT, WIDTH, 3)


def picture(number: int, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_of(number)).save(stream, format)
    return stream.getvalue()


def mark(number: int) -> str:
    """Return the SHA-256 that the manifest must hold for a picture: of width, height and pixels."""
    return hashlib.sha256(struct.pack("<II", WIDTH, HEIGHT) + pixels_of(number).tobytes()).hexdigest()


# What should happen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """Something planted that must be named: by a pattern in the message, or by one in a row of refused.csv.

    Without `refused` it stops the import; with it, the rest goes on, unless something else stops it. late: seen only
    once images are opened, which a source that is stopped earlier never comes to.
    """

    message: str
    refused: str = ""
    late: bool = False


@dataclass
class Case:
    """A source on disk and what should become of it.

    arguments: of `dermkit import`, without --out. good: picture number -> column -> value of the manifest.
    wrong: what must be named. fatal: nothing may be imported, exit code 3. faults: what was planted, in words.
    maybe: picture number -> pattern; it may come through, or be named. may_stop: one wrong thing may stop the import;
    maybe_fatal: it may be refused as a whole although nothing else is wrong.
    """

    arguments: list[str]
    good: dict[int, dict[str, str]] = field(default_factory=dict)
    wrong: list[Wrong] = field(default_factory=list)
    maybe: dict[int, str] = field(default_factory=dict)
    fatal: bool = False
    may_stop: bool = False
    maybe_fatal: bool = False
    faults: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def judge(case: Case, code: int, message: str, out: Path) -> list[str]:
    """Return what is not right about an end; nothing where it is right."""
    if code == 3:
        return list(_wrongly_refused(case, message + "\n".join(_refused(out) if "refused.csv" in message else [])))
    if code not in (0, 7):
        return [f"exit code {code}: {message[-1500:]}"]
    if case.fatal:
        return [f"exit code {code} although the source must be refused as a whole"]
    return [*_unnamed(case, code, out), *_manifest_problems(case, out)]


def _wrongly_refused(case: Case, text: str) -> Iterator[str]:
    stops = any(case.may_stop or not item.refused for item in case.wrong)
    if not (case.fatal or stops or case.maybe_fatal or (case.may_stop and case.maybe)):
        yield "refused as a whole although nothing calls for it"
    # A source that is refused as a whole has no more to tell where it is no table or archive at all.
    if case.may_stop and (case.fatal or case.maybe_fatal):
        return
    for item in case.wrong:
        if not (item.late and (stops or case.fatal)) and not re.search(item.message, text):
            yield f"not named: {item.message}"
    if not (case.wrong or case.fatal or case.maybe_fatal):
        yield from (f"not named: {pattern}" for pattern in case.maybe.values() if not re.search(pattern, text))


def _unnamed(case: Case, code: int, out: Path) -> Iterator[str]:
    refused = _refused(out)
    if (code == 7) != bool(refused):
        yield f"exit code {code} with {len(refused)} refused"
    notes = [item["text"] for item in json.loads((out / "dataset.json").read_text())["warnings"]]
    for item in case.wrong:
        if not any(re.search(item.refused or item.message, line) for line in [*refused, *notes]):
            yield f"not listed as refused: {item.refused or item.message}"


def _refused(out: Path) -> list[str]:
    return [",".join(row.values()) for row in _read(out / "refused.csv")]


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _manifest_problems(case: Case, out: Path) -> Iterator[str]:
    rows = {row["pixel_sha256"]: row for row in _read(out / "manifest.csv")}
    listed = "\n".join(_refused(out))
    if len(rows) != len(_read(out / "manifest.csv")):
        yield "a picture is in the manifest twice"
    expected = {mark(number): (number, values) for number, values in case.good.items()}
    for number, pattern in case.maybe.items():
        if rows.pop(mark(number), None) is None and not re.search(pattern, listed):
            yield f"neither in the manifest nor refused by name: {pattern}"
    for key in rows.keys() - expected.keys():
        yield f"in the manifest, and should not be: {rows[key]['path']!r} ({rows[key]['label']!r})"
    for key, (number, values) in expected.items():
        if key not in rows:
            yield f"not in the manifest: picture {number} {values}"
            continue
        for column, value in values.items():
            if rows[key][column] != value:
                yield f"picture {number}: {column} is {rows[key][column]!r}, should be {value!r}"


# What was written --------------------------------------------------------------------------------------------------


def snapshot(root: Path, but: Path) -> dict[str, tuple[object, ...]]:
    """Return path -> kind, mode, size, time and content of everything under a folder, except below `but`."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(os.fsencode(root)):
        names[:] = [name for name in names if os.path.join(folder, name) != os.fsencode(but)]  # noqa: PTH118
        for name in [*names, *files]:
            path = os.path.join(folder, name)  # noqa: PTH118  bytes: not every name is text
            about = os.lstat(path)
            content = hashlib.sha256(_content(path)).hexdigest() if stat.S_ISREG(about.st_mode) else ""
            # Reading a folder changes no time; adding to one does.
            found[repr(path)] = (about.st_mode, about.st_size, about.st_mtime_ns, about.st_nlink, content)
    return found


def _content(path: bytes) -> bytes:
    with open(path, "rb") as stream:  # noqa: PTH123
        return stream.read()


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event -> the arguments that are changed, each with the place of the folder descriptor it is relative to, if any.
_EVENTS: Mapping[str, tuple[tuple[int, int | None], ...]] = MappingProxyType({
    "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),), "os.chown": ((0, 3),), "os.setxattr": ((0, None),),
})  # fmt: skip
_STARTS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"})
_watching: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        _watching[-1].append(_resolved(arguments[0], -1))
    elif event in _STARTS:
        _watching[-1].append(f"/{event} {arguments[0]}")
    for place, folder in _EVENTS.get(event, ()):
        _watching[-1].append(_resolved(arguments[place], -1 if folder is None else arguments[folder]))


def _resolved(path: object, folder: object) -> str:
    if isinstance(path, int):
        return os.path.realpath(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)  # type: ignore[arg-type]
    base = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
    return os.path.realpath(os.path.join(base, text))  # noqa: PTH118


@contextmanager
def writes() -> Iterator[list[str]]:
    """Record where this process writes, makes, moves, removes or starts anything, as Python itself reports it."""
    if _hook not in _hooked:
        sys.addaudithook(_hook)
        _hooked.append(_hook)
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


_hooked: list[object] = []


def outside(written: list[str], allowed: Path) -> list[str]:
    """Return the writes that are not in the allowed folder; the null device is nowhere."""
    root = os.path.realpath(allowed)
    return sorted(
        {path for path in written if path not in (root, "/dev/null") and not path.startswith(root + os.sep)}
    )


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    changed = [path for path in before.keys() & after.keys() if before[path] != after[path]]
    return sorted([f"changed {p}" for p in changed] + [f"new or gone {p}" for p in before.keys() ^ after.keys()])
