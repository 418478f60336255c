"""Opening the database of a prediction log: SQLite in a file, or PostgreSQL by URL; and what its errors mean."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from dermkit.errors import DataError, OutputError, UsageError
from dermkit.files import fingerprint

SQLITE, POSTGRESQL = "sqlite", "postgresql"
DATABASE_SECONDS = 5.0
"""How long a write waits for a lock, and for PostgreSQL to answer, before the outbox takes the rows."""


class LogUnavailable(OutputError):
    """The log cannot be read or written now; the caller gives no answer, and tries again later. Exit code 5."""

    code = "log_unavailable"


@dataclass(frozen=True)
class LogAddress:
    """Where a prediction log lies. url: as SQLAlchemy reads it. name: for messages, without a password."""

    url: URL
    name: str

    @property
    def file(self) -> Path | None:
        """Return the file of an SQLite log, None for a server's."""
        return Path(self.url.database or "") if self.url.get_backend_name() == SQLITE else None

    @property
    def key(self) -> str:
        """Return 12 hex digits that tell this log from others: of where it lies, without user and password."""
        file, url = self.file, self.url
        if file is not None:
            return fingerprint(SQLITE, str(file.resolve()))
        host, port = url.query.get("host", url.host or ""), url.query.get("port", str(url.port or 5432))
        return fingerprint(POSTGRESQL, host, port, url.query.get("service", ""), url.database)


def parse_address(text: str | LogAddress) -> LogAddress:
    """Return the address of a log: the path of an SQLite file, `sqlite:///FILE`, or `postgresql://USER@HOST/NAME`.

    One that was parsed before is returned. Raises `UsageError` for any other kind of database.
    """
    if isinstance(text, LogAddress):
        return text
    if "://" not in text:
        if not text or text == ":memory:":
            raise _wrong_address("no file is named")
        return LogAddress(URL.create("sqlite+pysqlite", database=text), text)
    try:
        url = make_url(text.replace("postgres://", "postgresql://", 1))
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise _wrong_address("the URL cannot be read") from None
    if backend == SQLITE and url.database and url.database != ":memory:":
        return LogAddress(URL.create("sqlite+pysqlite", database=url.database), url.database)
    if backend == POSTGRESQL and url.database:
        with_driver = url if "+" in url.drivername else url.set(drivername="postgresql+psycopg")
        return LogAddress(with_driver, url.set(query={}).render_as_string(hide_password=True))
    raise _wrong_address(f"a database of {backend}, or without a name, cannot hold it")


def _wrong_address(problem: str) -> UsageError:
    return UsageError(
        f"prediction log: {problem}",
        outcome="nothing was written",
        remedy="give the path of an SQLite file, or postgresql://USER@HOST/DATABASE",
    )


def open_engine(address: LogAddress, *, writes: bool, timeout: float = DATABASE_SECONDS) -> Engine:
    """Return an engine whose transactions take the write lock at once (`writes`) or see one unchanging state.

    timeout: seconds, for a lock, a connection and a statement. An SQLite file must be there. Raises `UsageError`
    without the driver.
    """
    file = address.file
    try:
        if file is None:
            return _postgresql_engine(address.url, writes=writes, timeout=timeout)
        return _sqlite_engine(file, writes=writes, timeout=timeout)
    except (ImportError, NoSuchModuleError) as error:
        raise UsageError(
            f"{address.name}: the driver {address.url.drivername} is not installed",
            outcome="nothing was written",
            remedy="pip install 'dermkit[postgres]'",
        ) from error


def _sqlite_engine(file: Path, *, writes: bool, timeout: float) -> Engine:
    path = file.absolute()

    def connect() -> sqlite3.Connection:
        # mode=rw: a log that somebody moved away must not be begun anew, as an empty one.
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = _sqlite_text
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")  # what retention deletes is not to be read from free pages
        return connection

    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=4)
    event.listen(engine, "begin", lambda one: one.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN"))
    return engine


def _sqlite_text(data: bytes) -> str:
    """Return a text also where somebody wrote bytes that are none: its hash differs, and no error hides the row."""
    return data.decode("utf-8", "surrogateescape")


def _postgresql_engine(url: URL, *, writes: bool, timeout: float) -> Engine:
    arguments: dict[str, Any] = {}
    if url.drivername == "postgresql+psycopg":
        milliseconds = round(1000 * timeout)
        arguments = {
            "connect_timeout": min(10, max(2, round(timeout))), "keepalives_idle": 10, "tcp_user_timeout": milliseconds,
            # An administrator may have turned synchronous_commit off; a log of answers must outlive a crash.
            "options": f"-c synchronous_commit=on -c lock_timeout={milliseconds}"
            + (f" -c statement_timeout={milliseconds}" if writes else ""),
        }  # fmt: skip
    isolation: Any = "READ COMMITTED" if writes else "REPEATABLE READ"
    return create_engine(
        url, connect_args=arguments, isolation_level=isolation, pool_pre_ping=True, pool_size=1, max_overflow=4
    )


def create_file(address: LogAddress) -> bool:
    """Create the empty file of a new SQLite log, readable by its owner alone; returns whether it was absent.

    Raises `OutputError`.
    """
    file = address.file
    if file is None or file.exists():
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError as error:
        raise OutputError(
            f"{file}: cannot be written: {error.strerror or error}",
            outcome="nothing was written",
            remedy="check that the folder may be written to",
        ) from error
    return True


@contextmanager
def open_reader(address: LogAddress) -> Iterator[Connection]:
    """Yield a connection to a log that sees one state of it; raises `DataError`, `LogUnavailable` or `UsageError`."""
    file = address.file
    if file is not None and not file.is_file():
        raise DataError(f"{file}: there is no prediction log", remedy="check the path")
    engine = open_engine(address, writes=False)
    try:
        with log_errors(address), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def log_errors(address: LogAddress) -> Iterator[None]:
    """Turn an error of the database into `LogUnavailable`, and that of a file that is no database into `DataError`."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        if isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.OperationalError):
            raise DataError(
                f"{address.name}: the database is damaged, or is none: {cause}",
                outcome="the file as it is",
                remedy="restore it from a backup; `sqlite3 FILE .recover` saves what can be read",
            ) from error
        raise LogUnavailable(
            f"{address.name}: the database cannot be used: {error_text(error)}",
            outcome="every row that was acknowledged",
            remedy="see that the database runs and may be written to, then try again",
        ) from error


def error_text(error: BaseException) -> str:
    """Return the words of a database error, in one line and without a statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"


def lock_for_schema(connection: Connection) -> None:
    """Let one process at a time change the schema; in SQLite the transaction has the lock already."""
    if connection.dialect.name == POSTGRESQL:
        connection.execute(text("SELECT pg_advisory_xact_lock(726273001)"))
