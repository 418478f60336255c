"""The outbox: files on the local disk that hold rows while the database is away, until it has taken them in order.

A line is `HASH PREVIOUS CONTENT`: the content is a row as JSON, HASH is of the other two, PREVIOUS is the HASH of the
line before. Lines are flushed to the disk before a row counts as written. Each process has a file of its own, locked;
those of processes that ended are taken over by the next of the same log, which the name of a file begins with.
"""

import itertools
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from dermkit.errors import OutputError
from dermkit.files import canonical_json, check_writable, open_regular, output_errors, sha256_bytes, sync_folder
from dermkit.prediction_log.chain import GENESIS

_SUFFIX, _LOCK_SUFFIX, _DAMAGED_SUFFIX = ".rows", ".lock", ".damaged"
_LINE_BYTES = 2**22
"""Longest line that is read: a row of a thousand classes takes 60 kB."""
_PROBE_BYTES = 4096

_logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


class _OutboxFile:
    """One file of the outbox, locked by this process. `append` adds to its end, `read` goes on from its begin."""

    def __init__(self, path: Path, file_lock: FileLock) -> None:
        self.path = path
        self.n_damaged = 0
        self._lock = file_lock
        self._stream: BinaryIO | None = None
        self._previous = GENESIS
        self._read_offset = self._accepted_offset = 0

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows and flush them to the disk; raises `OSError`, and the file then ends as it did before."""
        if self._stream is None:
            self._stream = _create_private(self.path)
            sync_folder(self.path.parent)
        stream, previous = self._stream, self._previous
        end = stream.seek(0, os.SEEK_END)
        lines = bytearray()
        for row in rows:
            content = f"{previous} {canonical_json(dict(row))}"
            previous = sha256_bytes(content.encode())
            lines += f"{previous} {content}\n".encode()
        try:
            _write_all(stream, lines)
            os.fsync(stream.fileno())
        except OSError:
            with suppress(OSError):  # what stays is no line, or a row that is written twice and taken once
                os.ftruncate(stream.fileno(), end)
            raise
        self._previous = previous

    def check_writable(self) -> None:
        """Write a block behind the last row, flush it, and take it away again; raises `OSError`."""
        if self._stream is None:
            return
        end = self._stream.seek(0, os.SEEK_END)
        try:
            _write_all(self._stream, bytearray(_PROBE_BYTES))
            os.fsync(self._stream.fileno())
        finally:  # what stays after a kill has no end of a line, and is no row
            os.ftruncate(self._stream.fileno(), end)

    def read(self, n_rows: int) -> list[dict[str, Any]]:
        """Return the next rows that were not read yet, at most so many; lines that are damaged are counted."""
        rows: list[dict[str, Any]] = []
        with suppress(FileNotFoundError), open_regular(self.path) as stream:
            stream.seek(self._read_offset)
            while len(rows) < n_rows and (line := stream.readline(_LINE_BYTES)):
                self._read_offset = stream.tell()
                row = _parse_line(line)
                if row is not None:
                    rows.append(row)
                elif line.endswith(b"\n") or len(line) == _LINE_BYTES:
                    self.n_damaged += 1
        return rows

    def read_again(self) -> None:
        """Let `read` give again what was not accepted: it did not reach the database."""
        self._read_offset = self._accepted_offset

    def accept(self) -> None:
        """Note that every row which `read` returned is in the database."""
        self._accepted_offset = self._read_offset

    def end_writing(self) -> bool:
        """Close a file after a failed write; one without a row that counts is removed, and True returned."""
        if self._stream is not None:
            self._stream.close()
        is_empty = self._previous == GENESIS
        if is_empty:
            with suppress(OSError):
                self.remove()
        return is_empty

    def is_at_end(self) -> bool:
        """Whether `read` has returned every row."""
        try:
            return self._read_offset >= self.path.stat().st_size
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close the file and let other processes have it."""
        if self._stream is not None:
            self._stream.close()
        self._lock.release()

    def remove(self) -> None:
        """Remove the file, every row of which is in the database; one with damaged lines is set aside."""
        if self._stream is not None:
            self._stream.close()
        with suppress(FileNotFoundError):
            if self.n_damaged:
                self.path.replace(self.path.with_suffix(_DAMAGED_SUFFIX))
            else:
                self.path.unlink()
        with suppress(OSError):
            Path(self._lock.lock_file).unlink()
        self._lock.release()


class Outbox:
    """The rows that wait for the database, in a folder of their own. For one thread; several processes may share it."""

    def __init__(self, folder: Path, log_key: str) -> None:
        """Open the folder; raises `OutputError` where it cannot be written.

        log_key: `LogAddress.key` of the log that the rows are of. Files of other logs are left alone.
        """
        with output_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_writable(folder)
        self.folder, self._log_key = folder, log_key
        self._files: list[_OutboxFile] = []
        self._is_last_ours = False
        self._numbers = itertools.count()
        self.n_waiting = 0
        self.take_over()
        self._say_other_logs()

    def __bool__(self) -> bool:
        """Whether rows wait."""
        return bool(self._files)

    def take_over(self) -> None:
        """Take this log's files of processes that have ended; they come before ours, since their rows are older."""
        open_paths = {file.path for file in self._files}
        orphans: list[_OutboxFile] = []
        for path in sorted(self.folder.glob(f"{self._log_key}-*{_SUFFIX}")):
            if path in open_paths or (file_lock := _try_lock(path)) is None:
                continue
            if not path.exists():  # its owner has just emptied it
                file_lock.release()
                continue
            orphans.append(_OutboxFile(path, file_lock))
            self.n_waiting += _count_lines(path)
        self._files[:0] = orphans

    def _say_other_logs(self) -> None:
        names = [path.name for path in self.folder.glob(f"*{_SUFFIX}")]
        n_other = sum(not name.startswith(f"{self._log_key}-") for name in names)
        if n_other:
            _logger.warning(
                "%s: %d files hold rows of other logs and are left alone; a server that is started with the address "
                "of their log takes them", self.folder, n_other,
            )  # fmt: skip

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows, flushed to the disk; raises `OutputError`, and none of them counts as written then."""
        with output_errors(self.folder):
            if not self._is_last_ours:
                self._files.append(self._new_file())
                self._is_last_ours = True
            with self._last_file() as file:
                file.append(rows)
        self.n_waiting += len(rows)

    def check_writable(self) -> None:
        """Raise `OutputError` where `append` would: the file of this process is tried, else the folder."""
        if not self._is_last_ours:
            check_writable(self.folder)
            return
        with output_errors(self.folder), self._last_file() as file:
            file.check_writable()

    @contextmanager
    def _last_file(self) -> Iterator[_OutboxFile]:
        """Give the file of this process; after an `OSError` the next rows go to a new one."""
        try:
            yield self._files[-1]
        except OSError:
            self._is_last_ours = False  # after a failed flush nobody knows what the disk holds
            if self._files[-1].end_writing():
                self._files.pop()
            raise

    def _new_file(self) -> _OutboxFile:
        path = self.folder / f"{self._log_key}-{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}{_SUFFIX}"
        file_lock = _try_lock(path)
        if file_lock is None:
            raise OutputError(f"{path}: is in use", outcome="nothing was written", remedy="try again")
        return _OutboxFile(path, file_lock)

    def read(self, n_rows: int) -> list[dict[str, Any]]:
        """Return the oldest rows that wait and were not read yet, at most so many; [] at the end of a file."""
        return self._files[0].read(n_rows)

    def accept(self, rows: Sequence[Row]) -> None:
        """Note that rows which `read` returned are in the database."""
        self.n_waiting = max(0, self.n_waiting - len(rows))
        self._files[0].accept()

    def is_first_at_end(self) -> bool:
        """Whether `read` has returned every row of the oldest file."""
        return self._files[0].is_at_end()

    def read_again(self) -> None:
        """Let `read` give again what was not accepted: it did not reach the database."""
        self._files[0].read_again()

    def remove_first(self) -> int:
        """Remove the oldest file after its last row was accepted; returns how many of its lines were damaged."""
        with output_errors(self.folder):
            self._files[0].remove()
        first = self._files.pop(0)
        if not self._files:
            self._is_last_ours, self.n_waiting = False, 0
        return first.n_damaged

    def close(self) -> None:
        """Close every file; what waits is taken over by the next process."""
        for file in self._files:
            file.close()
        self._files, self._is_last_ours = [], False


def _create_private(path: Path) -> BinaryIO:
    """Create a file that is for its owner alone, and open it to be written without a buffer."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def _try_lock(path: Path) -> FileLock | None:
    """Return the lock of an outbox file, None where another process has it."""
    # Not of a thread: the writer's thread releases what the one that opened the outbox has locked.
    file_lock = FileLock(path.with_suffix(_LOCK_SUFFIX), timeout=0, mode=0o600, thread_local=False)
    try:
        file_lock.acquire()
    except Timeout:
        return None
    return file_lock


def _write_all(stream: BinaryIO, data: bytearray) -> None:
    """Write bytes to an unbuffered file, which may take fewer than it is given."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line; None where its end was never written, or it was damaged."""
    line_hash, _, content = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or sha256_bytes(content) != line_hash.decode("ascii", "replace"):
        return None
    row: dict[str, Any] = json.loads(content.partition(b" ")[2])
    return row


def _count_lines(path: Path) -> int:
    with open_regular(path) as stream:
        return sum(_ends_of_lines(stream))


def _ends_of_lines(stream: BinaryIO) -> Iterator[int]:
    while block := stream.read(2**20):
        yield block.count(b"\n")
