"""The process that opens images and runs the model: what may crash, hang or take too much memory does so here."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermkit.errors import DermkitError
from dermkit.serving.jobs import ExplainJob, Job, JobListener, WorkerSettings, receive_jobs, send_message

if TYPE_CHECKING:
    from dermkit.serving.served_model import ServedModel


def run_worker(connection: Connection, settings: WorkerSettings) -> None:
    """Load the model, say so, and answer jobs until the server is gone."""
    _prepare_process()
    from dermkit.serving.served_model import ServedModel

    try:
        model = ServedModel(settings)
        facts = model.facts()
    except DermkitError as error:
        send_message(connection, {"event": "error", **error_fields(error)})
        return
    if model.is_on_cpu:  # a GPU's driver takes address space as it likes
        limit_memory(settings.worker_bytes)
    silence_stderr()
    send_message(connection, {"event": "ready", "facts": facts})
    while True:
        try:
            jobs = receive_jobs(connection, max_bytes=settings.max_image_bytes)
        except (EOFError, OSError):
            return
        answer_jobs(model, jobs, _Reporter(connection))


class _Reporter:
    """Tells the server what happens to each image, from any thread, so that it knows which one ended the worker."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def __call__(self, event: str, index: int | None = None, answer: Mapping[str, Any] | None = None) -> None:
        with self._lock:
            send_message(self._connection, {"event": event, "index": index, "answer": answer})


def answer_jobs(model: "ServedModel", jobs: Sequence[Job], report: JobListener) -> None:
    """JobListener the answer of each job, and that all are done."""
    explain_jobs = [job for job in jobs if isinstance(job, ExplainJob)]
    if explain_jobs:
        for index, job in enumerate(explain_jobs):
            report("begin", index)
            report("answer", index, model.explain(job))
    else:
        model.predict([job for job in jobs if not isinstance(job, ExplainJob)], report)
    report("done")


def _prepare_process() -> None:
    """Leave Ctrl-C to the server, which lets us finish; and end with it, also in the middle of an image."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_server, daemon=True, name="end-with-server").start()


def silence_stderr() -> None:
    """Drop what decoders in C, and the traces of a crash, write to standard error: it names files and tags of images.

    The server's own lines, which say how the worker was lost, come from another process.
    """
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _end_with_server() -> None:
    server = multiprocessing.parent_process()
    if server is not None:
        server.join()
        os._exit(1)


def limit_memory(extra_bytes: int) -> None:
    """Let the process take this much address space beyond what it has now; where that cannot be set, there is no limit.

    An image that needs more is refused, where else the system would end some process or other.
    """
    if sys.platform != "linux":
        return
    import resource

    with Path("/proc/self/statm").open(encoding="ascii") as stream:
        used_bytes = int(stream.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used_bytes + extra_bytes
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def error_fields(error: DermkitError) -> dict[str, Any]:
    """Return an error as JSON values, for `rebuild_error`."""
    return {
        "message": error.message, "outcome": error.outcome, "remedy": error.remedy, "exit_code": error.exit_code,
    }  # fmt: skip
