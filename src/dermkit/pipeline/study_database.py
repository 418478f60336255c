"""The database of a study that several machines share: opening, heartbeats, and what is said when it drops out."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dermkit.errors import OutputError, UsageError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

HEARTBEAT_SECONDS = 30.0
_GRACE_SECONDS = 120


def open_database(url: str) -> "BaseStorage":
    """Return Optuna's storage in a database; raises `UsageError` where it cannot be used.

    A connection is tried before each use, so that a database that was started anew between two trials is no fault.
    """
    from optuna.storages import RDBStorage

    try:
        with without_experimental_warnings():
            return RDBStorage(
                url, heartbeat_interval=int(HEARTBEAT_SECONDS), grace_period=_GRACE_SECONDS,
                engine_kwargs={"pool_pre_ping": True},
            )  # fmt: skip
    except Exception as error:
        text = " ".join(str(error).split()).replace(url, "the database")[:200]
        raise UsageError(
            f"--storage: the database cannot be used: {type(error).__name__}: {text}",
            outcome="nothing was trained",
            remedy="check the URL, that the server runs, and that its Python driver is installed (docs/tuning.md)",
        ) from error


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn the error of a database that dropped out during the study into an `OutputError`."""
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except StorageInternalError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise OutputError(
            f"--storage: the database dropped out: {cause}",
            outcome="all finished trials, and the checkpoint of the one that ran",
            remedy="when the database answers again, give the same command again: it goes on",
        ) from error


@contextmanager
def heartbeat(storage: Any, trial_id: int, seconds: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Tell a database every so often that a trial's process lives; a beat that fails is left out."""
    from optuna.exceptions import StorageInternalError

    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(seconds):
            with suppress(StorageInternalError):
                storage.record_heartbeat(trial_id)

    storage.record_heartbeat(trial_id)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def without_experimental_warnings() -> Iterator[None]:
    """Silence Optuna's warnings that heartbeats and repeated trials are experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
        yield
