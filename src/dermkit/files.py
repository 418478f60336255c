"""Crash-safe writes, hashes, locks, and the `format` number that every JSON of dermkit carries."""

import csv
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dermkit.errors import DermkitError, OutputError, UsageError

TEMP_PREFIX = ".dermkit-tmp-"
"""A write that was killed leaves only files with this prefix; `sweep_temp` removes them."""


def sha256_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces: the form that fingerprints are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(*values: object) -> str:
    """Return 12 hex digits that change whenever a JSON-able part changes."""
    return sha256_bytes(canonical_json(values).encode())[:12]


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into `OutputError`, naming the path and a remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}",
            outcome="earlier files there are untouched, or the new one is whole in their place",
            remedy="free space, check that every parent is a folder you may write to, or choose another --out",
        ) from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; raises `OutputError` where that is impossible."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_writable(folder: Path, need_bytes: int = 0) -> None:
    """Refuse before the work, not after it: the folder must take a write and have `need_bytes` free."""
    make_folder(folder)
    with output_errors(folder):
        with tempfile.TemporaryFile(dir=folder, prefix=TEMP_PREFIX) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise OutputError(
            f"{folder}: {free / 1e6:.0f} MB free, {need_bytes / 1e6:.0f} MB needed",
            outcome="what lies there already",
            remedy="free space or choose another --out",
        )


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(folder: Path, *, marker: str, description: str) -> None:
    """Refuse a folder that holds something else than an earlier output of the same kind, told by its `marker` file.

    Raises `UsageError`. Hidden files and the list of refused images do not count.
    """
    if not folder.is_dir() or (folder / marker).is_file():
        return
    visible_names = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    if set(visible_names) - {"refused.csv"}:
        raise UsageError(
            f"{folder}: is not empty and is not {description} (it holds {', '.join(visible_names[:3])})",
            outcome="everything there",
            remedy="name a new folder with --out",
        )


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all: beside it, fsync, rename, fsync of the folder.

    `write` gets the temporary path, which keeps the ending of `path`.
    """
    make_folder(path.parent)
    with output_errors(path):
        handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes crash-safely."""
    write_atomically(path, lambda temporary: _write_all_bytes(temporary, data))


def _write_all_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text crash-safely, with `\\n` line ends everywhere."""
    write_bytes(path, text.encode("utf-8"))


def write_chunks(path: Path, chunks: Iterable[str]) -> None:
    """Write UTF-8 text crash-safely, part by part, so that it never lies in memory whole."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            stream.writelines(chunks)

    write_atomically(path, write)


def write_json(path: Path, value: Mapping[str, Any], *, format: int) -> None:
    """Write a JSON object with its `format` number first; NaN and infinity are refused."""
    write_text(path, json_text(value, format=format))


def json_text(value: Mapping[str, Any], *, format: int) -> str:
    """Return what `write_json` writes."""
    document = {"format": format, **{key: field_value for key, field_value in value.items() if key != "format"}}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV crash-safely. Floats are written with `repr`, so they read back to the same bits."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            plain_writer = csv.writer(stream, lineterminator="\n")
            # Python 3.11 leaves a lone carriage return unquoted, and a reader would take it for a line's end.
            quoting_writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
            for row in itertools.chain([header], rows):
                has_carriage_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
                (quoting_writer if has_carriage_return else plain_writer).writerow(row)

    write_atomically(path, write)


def read_json(
    path: Path,
    *,
    format: int,
    error: type[DermkitError] = UsageError,
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Read a JSON object of a known `format`; older formats go through `migrations`, newer ones are refused.

    Raises `error` for a missing, broken or unknown file. The key `format` is removed from the result.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}", remedy="check the path") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{path}: is not JSON: {cause}", remedy="restore the file or make it again") from cause
    # `type`, not `isinstance`: JSON's true would pass for format 1.
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise error(f"{path}: has no `format` number, so it is not dermkit's", remedy="check the path")
    while value["format"] < format and migrations and value["format"] in migrations:
        value = migrations[value["format"]](value)
    if value["format"] != format:
        raise error(
            f"{path}: format {value['format']}, this dermkit reads format {format}",
            remedy="use the dermkit version that wrote it, or make it again",
        )
    return {key: field_value for key, field_value in value.items() if key != "format"}


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def sweep_temp(folder: Path) -> int:
    """Remove what killed writes left in a folder tree; returns how many. Call it under the folder's lock."""
    stale_files = [path for path in folder.rglob(TEMP_PREFIX + "*") if path.is_file()]
    for path in stale_files:
        path.unlink(missing_ok=True)
    return len(stale_files)


@contextmanager
def lock(folder: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """Hold a folder against a second process; the second one is refused and told who holds it, where and since when.

    wait: seconds that the second one waits first, for work that is done in a moment. `.lock` holds "process host time"
    while it is held; files of older versions hold the process number alone.
    """
    make_folder(folder)
    path = folder / ".lock"
    with output_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with output_errors(path):
            try:
                _acquire(descriptor, timeout)
            except BlockingIOError as error:
                raise OutputError(
                    f"{folder}: is in use by {_holder(descriptor)}",
                    outcome="nothing was changed",
                    remedy="wait for it to end, or choose another --out",
                ) from error
            now = datetime.now(UTC).isoformat(timespec="seconds")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()} {now}".encode(), 0)
        try:
            yield
        finally:
            # Emptied before it is given back, or a refusal just after the next lock would name this process. What
            # cannot be emptied (a full or lost device) is no reason to hide how the work ended.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, timeout: float) -> None:
    """Take a lock; raises `BlockingIOError` where somebody else still holds it after so many seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _holder(descriptor: int) -> str:
    """Return who holds a lock, as its file says."""
    process, host, start_time, *_ = (*os.pread(descriptor, 400, 0).decode(errors="replace").split(), "", "", "")
    owner = f"process {process}" if process else "another process"
    return f"{owner}{f' on {host}' if host else ''}{f' since {start_time}' if start_time else ''}"
