"""The writer of the prediction log: one thread that commits what requests hand to it, several requests in one commit.

`append` returns after the rows are on disk, in the database or in the outbox. Where neither takes them it raises, and
the caller gives no answer.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import SQLAlchemyError

from dermkit.errors import DermkitError
from dermkit.prediction_log.append import append_rows, touch_head
from dermkit.prediction_log.database import (
    DATABASE_SECONDS,
    LogAddress,
    LogUnavailable,
    create_file,
    error_text,
    open_engine,
    parse_address,
)
from dermkit.prediction_log.outbox import Outbox
from dermkit.prediction_log.rows import PredictionRow
from dermkit.prediction_log.schema import upgrade_schema
from dermkit.prediction_log.tables import PREDICTIONS

MAX_ROWS_PER_COMMIT = 500
_DRAIN_COMMITS = 4
"""Commits that empty the outbox, between two of requests: more than one, or it would never be empty under load."""
DATABASE_RETRY_SECONDS = 2.0
"""How long the writer leaves a database alone that did not take rows."""
TAKE_OVER_SECONDS = 30.0
"""How often the writer looks for outbox files of processes that have ended."""
PROBE_SECONDS = 10.0
"""After how long without a request the writer tries whether a row could be written."""

_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogStatus:
    """What the writer has done since it was opened.

    is_database_up: whether the last attempt reached the database. n_rows, n_commits: acknowledged rows, and the
    commits and flushes that wrote them. seconds: time that these took, waiting left out. n_outbox: rows that wait in
    the outbox. n_damaged: lines of the outbox that could not be read. problem: the last error of the database.
    is_silent: neither database nor outbox takes rows, as the last rows or the last probe showed.
    """

    is_database_up: bool = True
    n_rows: int = 0
    n_commits: int = 0
    seconds: float = 0.0
    n_outbox: int = 0
    n_damaged: int = 0
    problem: str = ""
    is_silent: bool = False


class LogDatabase:
    """The database of a log, for one thread. Raises `LogUnavailable` where it cannot be used now."""

    def __init__(self, address: LogAddress, *, timeout: float = DATABASE_SECONDS) -> None:
        self.address = address
        self._timeout = timeout
        self._engine: Engine | None = None
        self._file_identity: tuple[int, int] | None = None

    def append(self, table: Table, rows: Sequence[Any]) -> int:
        """Add rows (column -> value) in one transaction; returns how many were new. Safe to repeat."""
        return self._commit(lambda connection: append_rows(connection, table, rows))

    def probe(self) -> None:
        """Commit a change that changes nothing."""
        self._commit(lambda connection: touch_head(connection, PREDICTIONS))

    def _commit(self, act: Callable[[Connection], _Result]) -> _Result:
        try:
            with self._ready_engine().begin() as connection:
                return act(connection)
        except (SQLAlchemyError, OSError) as error:
            raise LogUnavailable(
                f"{self.address.name}: the database takes no rows: {error_text(error)}",
                outcome="every row that was acknowledged",
                remedy="see that the database runs, and that its disk has space",
            ) from error

    def _ready_engine(self) -> Engine:
        """Return the engine of the database that is there now; one that came back may need today's schema."""
        identity = self._identity()
        if self._engine is None or identity != self._file_identity:
            self.close()
            engine = open_engine(self.address, writes=True, timeout=self._timeout)
            try:
                upgrade_schema(engine, self.address)
            except BaseException:
                engine.dispose()
                raise
            self._engine, self._file_identity = engine, identity
        return self._engine

    def _identity(self) -> tuple[int, int] | None:
        """Return what tells the SQLite file from another; rows written to a deleted one would be lost."""
        file = self.address.file
        if file is None:
            return None
        status = file.stat()
        return status.st_dev, status.st_ino

    def close(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            self._engine.dispose()
        self._engine = None


@dataclass(frozen=True, eq=False)
class _Submission:
    """Rows that a request waits for."""

    rows: list[dict[str, Any]]
    ids: list[str]
    future: "Future[list[str]]"


class PredictionLog:
    """The prediction log of a server: `append` and `submit` may be called from any thread of the process.

    Not across a fork: open it in the process that uses it.
    """

    def __init__(self, database: LogDatabase, outbox: Outbox) -> None:
        """Start the writer; `open_log` is the usual way."""
        self._database, self._outbox = database, outbox
        self._queue: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._status = LogStatus(n_outbox=outbox.n_waiting)
        self._next_try = 0.0
        self._next_take_over = time.monotonic() + TAKE_OVER_SECONDS
        self._next_probe = time.monotonic() + PROBE_SECONDS
        self._is_closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def address(self) -> LogAddress:
        """Where the log lies."""
        return self._database.address

    @property
    def status(self) -> LogStatus:
        """What was done until now."""
        return self._status

    def submit(self, rows: Sequence[PredictionRow]) -> "Future[list[str]]":
        """Hand rows to the writer; the future gives their ids once they are on disk, or `LogUnavailable`."""
        future: Future[list[str]] = Future()
        submission = _Submission([row.columns() for row in rows], [row.row_id for row in rows], future)
        with self._closing:  # nothing may enter the queue behind its end
            if self._is_closed:
                raise LogUnavailable("prediction log: it was closed", remedy="open it again")
            self._queue.put(submission)
        return future

    def append(self, rows: Sequence[PredictionRow]) -> list[str]:
        """Write rows in one commit and return their ids; raises `LogUnavailable` where they could not be written."""
        return self.submit(rows).result()

    def close(self) -> None:
        """Write what was handed in, and stop. Rows in the outbox stay there, for the next start."""
        with self._closing:
            is_first, self._is_closed = not self._is_closed, True
            if is_first:
                self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The writer's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        is_open = True
        while is_open:
            submissions, is_open = self._take()
            if submissions:
                self._write(submissions)
            if time.monotonic() >= self._next_take_over:
                self._take_over()
            if self._outbox and time.monotonic() >= self._next_try:
                self._drain()
            if is_open and time.monotonic() >= self._next_probe:
                self._probe()
        self._outbox.close()
        self._database.close()

    def _take(self) -> tuple[list[_Submission], bool]:
        """Wait for submissions; returns all that are there, up to one commit, and False where the log is closed.

        Only until the database is to be tried again, outbox files are to be looked for, or a probe is due.
        """
        submissions: list[_Submission] = []
        n_rows = 0
        next_time = min(self._next_take_over, self._next_probe)
        if self._outbox:
            next_time = min(next_time, self._next_try)
        wait = max(0.0, next_time - time.monotonic())
        with suppress(queue.Empty):
            while n_rows < MAX_ROWS_PER_COMMIT:
                submission = self._queue.get(timeout=wait) if wait != 0 else self._queue.get_nowait()
                if submission is None:
                    return submissions, False
                submission.future.set_running_or_notify_cancel()  # who went away cannot cancel it any more
                submissions.append(submission)
                n_rows += len(submission.rows)
                wait = 0.0
        return submissions, True

    def _write(self, submissions: Sequence[_Submission]) -> None:
        """Write rows to the database, or to the outbox while older rows wait there, and answer who waits."""
        start_time = time.perf_counter()
        rows = [row for submission in submissions for row in submission.rows]
        try:
            if self._outbox or not self._try_database(lambda: self._database.append(PREDICTIONS, rows)):
                self._outbox.append(rows)
        except Exception as error:  # noqa: BLE001  the thread must live, and each request must hear of it
            unavailable = self._note_silent(error)
            for waiting in _waiting(submissions):
                waiting.future.set_exception(unavailable)
            return
        self._note_writable()
        self._note(n_rows=len(rows), seconds=time.perf_counter() - start_time)
        for waiting in _waiting(submissions):
            waiting.future.set_result(waiting.ids)

    def _probe(self) -> None:
        """Try whether rows could be written, where no request has shown it: `is_silent` of the status follows."""
        try:
            if self._outbox or not self._try_database(self._database.probe):
                self._outbox.check_writable()
        except Exception as error:  # noqa: BLE001  the thread must live
            self._note_silent(error)
        else:
            self._note_writable()

    def _note_silent(self, error: Exception) -> LogUnavailable:
        """Note that neither the database nor the outbox takes rows; returns what to tell of it."""
        unavailable = LogUnavailable(
            f"{self._database.address.name}: neither the database nor the outbox takes rows: {error_text(error)}",
            outcome="every row that was acknowledged",
            remedy=f"see that the database runs, and that {self._outbox.folder} can be written to",
        )
        if not self._status.is_silent:
            _logger.error("%s; requests get no answer", unavailable.message)
        self._status = replace(self._status, is_silent=True)
        self._next_probe = time.monotonic() + DATABASE_RETRY_SECONDS
        return unavailable

    def _note_writable(self) -> None:
        if self._status.is_silent:
            _logger.warning("%s: rows are written again", self._database.address.name)
            self._status = replace(self._status, is_silent=False)
        self._next_probe = time.monotonic() + PROBE_SECONDS

    def _note(self, *, n_rows: int = 0, seconds: float = 0.0, n_damaged: int = 0) -> None:
        status = self._status
        self._status = replace(
            status, n_rows=status.n_rows + n_rows, n_commits=status.n_commits + (n_rows > 0),
            seconds=status.seconds + seconds, n_outbox=self._outbox.n_waiting,
            n_damaged=status.n_damaged + n_damaged,
        )  # fmt: skip

    def _try_database(self, write: Callable[[], object]) -> bool:
        """Write to the database; returns False where it cannot be used now, and then leaves it alone a while."""
        try:
            write()
        except DermkitError as error:
            if self._status.is_database_up:
                _logger.warning("%s; rows go to %s", error.message, self._outbox.folder)
            self._status = replace(self._status, is_database_up=False, problem=error.message)
            self._next_try = time.monotonic() + DATABASE_RETRY_SECONDS
            return False
        if not self._status.is_database_up:
            _logger.warning("%s: the database takes rows again", self._database.address.name)
        self._status = replace(self._status, is_database_up=True)
        return True

    def _take_over(self) -> None:
        """Take the outbox files of processes that ended since the last look."""
        self._next_take_over = time.monotonic() + TAKE_OVER_SECONDS
        try:
            self._outbox.take_over()
        except (DermkitError, OSError) as error:
            self._status = replace(self._status, problem=error_text(error))
        self._note()

    def _drain(self) -> None:
        """Move the oldest rows of the outbox to the database, in a few commits."""
        for _ in range(_DRAIN_COMMITS):
            if self._outbox and time.monotonic() >= self._next_try:
                self._drain_once()

    def _drain_once(self) -> None:
        """Move rows as many as one commit takes; a file whose last row was among them is removed at once."""
        try:
            rows = self._outbox.read(MAX_ROWS_PER_COMMIT)
            if rows and not self._try_database(lambda: self._database.append(PREDICTIONS, rows)):
                self._outbox.read_again()
                return
            if rows:
                self._outbox.accept(rows)
                self._note()
            if self._outbox.is_first_at_end():
                self._note(n_damaged=self._outbox.remove_first())
        except (DermkitError, OSError, ValueError) as error:
            self._next_try = time.monotonic() + DATABASE_RETRY_SECONDS
            self._status = replace(self._status, problem=error_text(error))


def _waiting(submissions: Sequence[_Submission]) -> list[_Submission]:
    """Return those whose request still waits. The others are written too: their images were scored."""
    return [submission for submission in submissions if not submission.future.cancelled()]


def open_log(log: str, outbox: Path | None = None, *, timeout: float = DATABASE_SECONDS) -> PredictionLog:
    """Open the log of a server, create it or bring its schema up to date, and start the writer.

    log: the path of an SQLite file, or a URL (`parse_address`). outbox: folder of the rows that wait (default: beside
    an SQLite file, else `prediction-log-KEY.outbox`, with `LogAddress.key`). timeout: seconds that a write waits for
    the database. One that is away is no error: the outbox takes the rows. Raises `UsageError` for an address or a
    schema that cannot be used, `OutputError` where the outbox cannot be written.
    """
    address = parse_address(log)
    folder = outbox or default_outbox(address)
    create_file(address)
    waiting = Outbox(folder, address.key)
    database = LogDatabase(address, timeout=timeout)
    with suppress(LogUnavailable):
        database.append(PREDICTIONS, [])
    return PredictionLog(database, waiting)


def default_outbox(address: LogAddress) -> Path:
    """Return the folder of the outbox where none was named."""
    file = address.file
    return Path(f"prediction-log-{address.key}.outbox") if file is None else file.with_name(file.name + ".outbox")
