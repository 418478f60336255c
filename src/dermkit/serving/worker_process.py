"""The worker as the server sees it: started, given jobs, watched, and ended when it hangs."""

import contextlib
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from dermkit.errors import DataError, DermkitError, OutputError, UntrustedError, UsageError
from dermkit.serving.jobs import (
    MAX_ANSWER_BYTES,
    ExplainJob,
    Job,
    WorkerRefusal,
    WorkerSettings,
    receive_message,
    send_jobs,
)
from dermkit.serving.settings import ServeLimits, ServeSettings
from dermkit.serving.worker import run_worker

_START_SECONDS = 600.0
"""Loading a large model from a slow disk; a worker that takes longer is ended."""
_END_SECONDS = 5.0
_MIN_TRANSFER_SECONDS = 0.5
"""For the rest of a message whose first bytes came at the last moment."""
_LOOK_SECONDS = 0.1
"""Between two looks at the clock while a message is under way."""

Deliver = Callable[[int, Mapping[str, Any]], None]
"""Gets the index of a job and its answer."""
WorkerEntry = Callable[[Connection, WorkerSettings], None]


class WorkerLost(Exception):
    """The worker ended or was ended in the middle of jobs.

    suspects: indices of those that may have done it; none where it ended before it had begun with any.
    """

    def __init__(self, reason: WorkerRefusal, suspects: Sequence[int]) -> None:
        super().__init__(reason.value)
        self.reason, self.suspects = reason, tuple(suspects)


class WorkerProcess:
    """One worker at a time, started afresh (spawn). Used by one thread at a time, but for `is_alive` and `kill`.

    entry: what the process runs; it is another function in tests of crashes alone.
    """

    def __init__(self, settings: ServeSettings, *, entry: WorkerEntry = run_worker) -> None:
        self._limits: ServeLimits = settings.limits
        self._settings = WorkerSettings(
            settings.model, settings.target, settings.coverage, settings.device, settings.workers,
            settings.limits.max_image_bytes, settings.limits.worker_bytes,
        )  # fmt: skip
        self._entry = entry
        self._process: Any = None
        self._connection: Connection | None = None
        self._watch = _TransferWatch(self.kill)

    @property
    def is_alive(self) -> bool:
        """Return whether the worker runs."""
        return self._process is not None and bool(self._process.is_alive())

    @property
    def process_id(self) -> int | None:
        """Return the worker's process id, None without one."""
        return self._process.pid if self.is_alive else None

    def start(self) -> dict[str, Any]:
        """Start a worker and wait until the model is loaded; returns what the model is.

        Raises the `DermkitError` of the loading, and `OutputError` where the worker ended without a word.
        """
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(
            target=self._entry, args=(other_end, self._settings), name="dermkit-worker", daemon=True
        )
        self._process.start()
        other_end.close()  # so that its end is noticed here
        try:
            message = self._next_message(time.monotonic() + _START_SECONDS)
        except (EOFError, OSError) as error:
            self.stop()
            raise OutputError(
                "the worker ended while it loaded the model", remedy="see that the machine has enough memory"
            ) from error
        if message["event"] == "error":
            self.stop()
            raise rebuild_error(message)
        facts: dict[str, Any] = message["facts"]
        return facts

    def kill(self) -> None:
        """End the worker at once; for any thread, so that one which waits for it waits no longer."""
        process = self._process  # another thread may be at its end
        if process is not None and process.is_alive():
            process.kill()

    def stop(self) -> None:
        """End the worker: it leaves when its pipe is closed, and is killed where it does not."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.join(_END_SECONDS if self._process.is_alive() else 0.0)
            self._kill()
            self._process = None

    def _kill(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join()

    def run(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        """Give jobs of one kind to the worker, and deliver each answer as it comes.

        Raises `WorkerLost` where the worker ends, or one image takes longer than it may; what was delivered stands.
        """
        watch = _JobWatch(jobs, self._limits)
        try:
            if self._connection is None:
                raise EOFError
            with self._watch.limit(watch.deadline):
                send_jobs(self._connection, jobs)
            while True:
                message = self._next_message(watch.deadline)
                if message["event"] == "done":
                    return
                if message["event"] == "answer":
                    deliver(message["index"], message["answer"])
                watch.note(message["event"], message["index"])
        except TimeoutError:
            self._kill()
            raise WorkerLost(WorkerRefusal.OUT_OF_TIME, watch.suspects) from None
        except (EOFError, OSError):
            self._kill()
            raise WorkerLost(WorkerRefusal.ENDED_WORKER, watch.suspects) from None

    def _next_message(self, deadline: float) -> dict[str, Any]:
        if self._connection is None or not self._connection.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        with self._watch.limit(deadline):
            return receive_message(self._connection, max_bytes=MAX_ANSWER_BYTES)[0]


class _TransferWatch:
    """Ends the worker where a message is not over by its deadline, so that one that stopped reading or writing does not
    hold the thread that waits for it.

    One thread looks at the clock for all messages: a timer for each, three an image, took .2 ms of processor time an
    image.
    """

    def __init__(self, end_worker: Callable[[], None]) -> None:
        self._end_worker = weakref.WeakMethod(
            end_worker
        )  # the thread must not keep a worker that nobody has any more
        self._deadline: float | None = None
        self._has_transfer = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def limit(self, deadline: float) -> Iterator[None]:
        """End the worker where the block takes longer than to a deadline of `time.monotonic`, and half a second."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True, name="dermkit-transfer-watch")
            self._thread.start()
        self._deadline = max(deadline, time.monotonic() + _MIN_TRANSFER_SECONDS)
        self._has_transfer.set()
        try:
            yield
        finally:
            self._deadline = None

    def _look(self) -> None:
        while True:
            self._has_transfer.wait()
            time.sleep(_LOOK_SECONDS)
            self._has_transfer.clear()  # before the deadline is read: a message that begins now sets it again
            deadline = self._deadline
            if deadline is not None:
                self._has_transfer.set()
                end_worker = self._end_worker()
                if end_worker is not None and time.monotonic() > deadline:
                    end_worker()
                del end_worker


class _JobWatch:
    """Which jobs are open, which image is being read, and until when the next message has to come."""

    def __init__(self, jobs: Sequence[Job], limits: ServeLimits) -> None:
        self._open = set(range(len(jobs)))
        self._start_times: dict[int, float] = {}
        self._has_begun = False
        is_explain = isinstance(jobs[0], ExplainJob)
        self._seconds = limits.explain_seconds if is_explain else limits.image_seconds
        self._last_time = time.monotonic()

    def note(self, event: str, index: int | None) -> None:
        self._last_time = time.monotonic()
        if index is None:
            return
        if event == "begin":
            self._start_times[index] = self._last_time
            self._has_begun = True
        elif event == "end":
            self._start_times.pop(index, None)
        elif event == "answer":
            self._open.discard(index)
            self._start_times.pop(index, None)

    @property
    def deadline(self) -> float:
        """Return when the image that is read longest is out of time; where none is read, all that the model has."""
        if self._start_times:
            return min(self._start_times.values()) + self._seconds
        return self._last_time + self._seconds * max(1, len(self._open))

    @property
    def suspects(self) -> list[int]:
        """Return the images that were being read, or all that are open where none was: the model then had them."""
        if not self._has_begun:
            return []
        reading = sorted(self._open & set(self._start_times))
        if not reading:
            return sorted(self._open)
        late = [index for index in reading if self._start_times[index] + self._seconds <= time.monotonic()]
        return late or reading


def rebuild_error(fields: Mapping[str, Any]) -> DermkitError:
    """Return the error that `error_fields` wrote, of a class with the same exit code."""
    classes = {cls.exit_code: cls for cls in (UsageError, DataError, OutputError, UntrustedError)}
    error_class = classes.get(fields["exit_code"], DermkitError)
    return error_class(fields["message"], outcome=fields["outcome"], remedy=fields["remedy"])
