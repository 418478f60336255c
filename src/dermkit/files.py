"""Crash-safe writes, hashes, locks, and JSON files with a `format` number.

Crash-safe: a file is written beside its final place, flushed to disk and renamed, so that after a crash there is either
the old file or the complete new one.
"""

import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath
from typing import Any

from dermkit.errors import DataError, DermkitError, OutputError, UsageError

TEMP_PREFIX = ".dermkit-tmp-"
"""Prefix of unfinished files, the only ones that a killed write leaves; `sweep_temp` removes them."""

MAX_TEXT_BYTES = 2**28
"""A JSON or text file that is read whole: metrics.json of a hundred classes takes 5 MB."""

NOT_REGULAR = "not a regular file"
"""How `open_regular` says that a path is a folder, pipe, socket or device."""

MAX_READ_BYTES = 2**36
"""Any other file, such as weights or an archive."""

ON_WINDOWS = os.name == "nt"

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file; an ending changes nothing: nul.txt is the device too.
_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE)
_FORBIDDEN_CHARACTERS = re.compile(r'[<>:"|?*\x00-\x1f]')


def sha256_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def open_regular(path: Path, *, max_bytes: int = MAX_READ_BYTES) -> io.BufferedReader:
    """Open a regular file for reading bytes; raises `OSError`, also for a pipe, a device, or too many bytes.

    Opening a pipe would wait for its writer, and a device may have no end. Without waiting, because the file may be
    replaced between the look and the opening.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, f"Is a directory, {NOT_REGULAR}", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = os.fdopen(os.open(path, flags), "rb")
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes:
        return stream
    stream.close()
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EFBIG, f"larger than {max_bytes:,} bytes", str(path))
    raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def read_regular(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the bytes of a regular file; raises `OSError` for anything else, or for more bytes than `max_bytes`."""
    with open_regular(path, max_bytes=max_bytes) as stream:
        return stream.read(os.fstat(stream.fileno()).st_size)


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a regular file, read in blocks; raises `OSError`."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces: the text that fingerprints are hashes of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(*values: object) -> str:
    """Return 12 hex digits of a hash of JSON-able values."""
    return sha256_bytes(canonical_json(values).encode())[:12]


def file_stat(path: Path) -> str:
    """Return "size:mtime_ns" of a file, to notice that it was rewritten; "" if there is no file."""
    try:
        stat_result = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""
    return f"{stat_result.st_size}:{stat_result.st_mtime_ns}"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into an `OutputError` that names the path and a remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}",
            outcome="every file there is either the old one or the complete new one",
            remedy="free space, check that every parent is a folder you may write to, close programs that have the "
            "file open, or choose another --out",
        ) from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, and return it; raises `OutputError`."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_writable(folder: Path, need_bytes: int = 0) -> None:
    """Raise `OutputError` before any work if the folder cannot be written to or has fewer than `need_bytes` free."""
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
    """Flush a folder's entries, so that a rename survives a power cut. Windows cannot open a folder for that."""
    if ON_WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(folder: Path, *, marker: str, description: str) -> None:
    """Raise `UsageError` unless the folder is empty, missing, or holds an earlier output of the same kind.

    marker: the file that an output of this kind contains. Hidden files and refused.csv do not count as content.
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


def windows_name_problem(name: str) -> str:
    """Return why one file or folder name cannot be used on Windows, or "" if it can."""
    if _RESERVED_NAMES.fullmatch(name):
        return "a name that Windows reserves for a device"
    if name != name.rstrip(" ."):
        return "a name that ends with a dot or a space, which Windows drops"
    if _FORBIDDEN_CHARACTERS.search(name):
        return "a character that Windows does not allow in a name"
    return ""


def check_file_name(name: str, description: str) -> None:
    """Raise `UsageError` for a name that cannot be one file's or folder's on every system; folders are copied around.

    description: what the name is of, such as "split name".
    """
    problem = "a path" if "/" in name or "\\" in name else windows_name_problem(name)
    if problem:
        raise UsageError(
            f"{description} {name!r}: becomes a file name, and is {problem}",
            outcome="nothing was written",
            remedy="use another name, of letters, digits, spaces, `.`, `_` and `-`",
        )


def windows_path_problem(path: str) -> str:
    """Return why a relative path cannot be used on Windows, or leads out of its folder there, or "" if it is fine."""
    windows_path = PureWindowsPath(path)
    if windows_path.drive or windows_path.root:
        return "an absolute path"
    if ".." in windows_path.parts:
        return "a path that leads out"
    return next(filter(None, map(windows_name_problem, windows_path.parts)), "")


def shell_path(path: Path | str) -> str:
    """Return a path as it is typed in a command. On Windows in double quotes, which no path there can hold."""
    if not ON_WINDOWS:
        return shlex.quote(str(path))
    return str(path) if re.fullmatch(r"[\w.:\\/-]+", str(path)) else f'"{path}"'


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file crash-safely: to a temporary file beside it, fsync, rename, fsync of the folder.

    write: gets the temporary path, which has the suffix of `path`. Raises `OutputError`.
    """
    make_folder(path.parent)
    with output_errors(path):
        handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("r+b") as stream:  # Windows flushes only what is open for writing
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes crash-safely."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text crash-safely, with `\\n` line ends on every system."""
    write_bytes(path, text.encode("utf-8"))


def write_chunks(path: Path, chunks: Iterable[str]) -> None:
    """Write UTF-8 text crash-safely, chunk by chunk, so that it is never completely in memory."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            stream.writelines(chunks)

    write_atomically(path, write)


def write_json(path: Path, value: Mapping[str, Any], *, format: int) -> None:
    """Write a JSON object crash-safely, its `format` number first. NaN and infinity raise `ValueError`."""
    write_text(path, json_text(value, format=format))


def json_text(value: Mapping[str, Any], *, format: int) -> str:
    """Return what `write_json` writes."""
    document = {"format": format, **{key: field_value for key, field_value in value.items() if key != "format"}}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV crash-safely. Floats are written with all their digits, so they read back to the same bits."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            plain_writer = csv.writer(stream, lineterminator="\n")
            # Python 3.11 does not quote a lone carriage return, which a reader takes for the end of a row.
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
    """Read a JSON object in a given `format`; older formats are converted by `migrations`.

    Raises `error` for a missing or broken file, one without a format number, or a format that cannot be converted. The
    key `format` is not in the result.
    """
    try:
        data = read_regular(path)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}", remedy="check the path") from cause
    return parse_json(data, path, format=format, error=error, migrations=migrations)


def parse_json(
    data: bytes,
    path: Path,
    *,
    format: int,
    error: type[DermkitError] = UsageError,
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Return what `read_json` does from bytes that were read, and perhaps hashed, before. path: for the messages."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_reject_constant, parse_float=_finite_float)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path}: is not JSON: {cause}", remedy="restore the file or make it again") from cause
    # `type`, not `isinstance`: a JSON `true` is an int to Python and would count as format 1.
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise error(f"{path}: has no `format` number, so it is not dermkit's", remedy="check the path")
    while value["format"] < format and migrations and value["format"] in migrations:
        try:
            value = migrations[value["format"]](value)
        except (LookupError, TypeError, AttributeError, ValueError) as cause:
            raise error(
                f"{path}: lacks something of format {value['format']}: {cause!r}", remedy="restore it"
            ) from cause
    if value["format"] != format:
        raise error(
            f"{path}: format {value['format']}, this dermkit reads format {format}",
            remedy="use the dermkit version that wrote it, or make it again",
        )
    return {key: field_value for key, field_value in value.items() if key != "format"}


@dataclass(frozen=True)
class JsonFile:
    """A JSON file that dermkit writes into a folder: its name, its format, and how older formats are read.

    migrations: format -> function that converts its content to a newer format. error: what `read` raises for a
    missing, broken or unknown file.
    """

    name: str
    format: int
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)
    error: type[DermkitError] = DataError

    def exists(self, folder: Path) -> bool:
        """Whether the folder holds it."""
        return (folder / self.name).is_file()

    def read(self, folder: Path) -> dict[str, Any]:
        """Return its content, converted to `format`; raises `error`."""
        return read_json(folder / self.name, format=self.format, error=self.error, migrations=self.migrations)

    def parse(self, data: bytes, path: Path) -> dict[str, Any]:
        """Return the same from bytes that were read, and perhaps verified, before. path: for the messages."""
        return parse_json(data, path, format=self.format, error=self.error, migrations=self.migrations)

    def read_optional(self, folder: Path) -> dict[str, Any]:
        """Return its content, {} if the folder has no such file; raises `error` for a broken one."""
        return self.read(folder) if (folder / self.name).exists() else {}

    def write(self, folder: Path, content: Mapping[str, Any]) -> Path:
        """Write it crash-safely, and return its path; raises `OutputError`."""
        write_json(folder / self.name, content, format=self.format)
        return folder / self.name


def _finite_float(text: str) -> float:
    """Return a JSON number; 1e999 would silently be infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, however deep it is; links are not followed, closed folders left out.

    A library's walk calls itself for each level, and ends at 1,000.
    """
    folders = [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def sweep_temp(folder: Path, *, skip: Collection[str] = ()) -> int:
    """Remove the unfinished files of killed writes below a locked folder; returns their number.

    skip: its sub-folders that other processes may write into now.
    """
    files = (path for path in walk_files(folder) if path.name.startswith(TEMP_PREFIX))
    stale_files = [path for path in files if path.relative_to(folder).parts[0] not in skip]
    for path in stale_files:
        path.unlink(missing_ok=True)
    return len(stale_files)


@contextmanager
def lock(folder: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """Lock a folder. A second process gets an `OutputError` that names the process, host and start time of the first.

    timeout: seconds to wait for the first process. The owner is written to `.lock-owner` as "process host time", and
    not to the locked file, which no other process can read on Windows.
    """
    from filelock import FileLock, Timeout  # here: it takes 60 ms, and most commands lock nothing

    make_folder(folder)
    owner_file = folder / ".lock-owner"
    file_lock = FileLock(folder / ".lock", timeout=timeout)
    with output_errors(folder / ".lock"):
        try:
            file_lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"{folder}: is in use by {_holder(owner_file)}",
                outcome="nothing was changed",
                remedy="wait for it to end, or choose another --out",
            ) from error
    try:
        start_time = datetime.now(UTC).isoformat(timespec="seconds")
        with output_errors(owner_file):
            owner_file.write_text(f"{os.getpid()} {socket.gethostname()} {start_time}", encoding="utf-8")
        yield
    finally:
        # Removed before the lock is released: later, it could be the file of the next owner. An error here must not
        # replace an error of the block.
        with suppress(OSError):
            owner_file.unlink(missing_ok=True)
        file_lock.release()


def _holder(owner_file: Path) -> str:
    """Describe the process that holds a lock. Its owner file can be missing or empty just after the lock was taken."""
    try:
        owner_text = read_regular(owner_file).decode("utf-8", "replace")
    except OSError:
        owner_text = ""
    process, host, start_time, *_ = (*owner_text.split(), "", "", "")
    owner = f"process {process}" if process else "another process"
    return f"{owner}{f' on {host}' if host else ''}{f' since {start_time}' if start_time else ''}"
