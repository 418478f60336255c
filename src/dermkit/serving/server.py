"""The server process: socket, signals, worker and event loop, from the start of a server to its end."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import APIRouter

from dermkit.errors import OutputError
from dermkit.progress import Progress
from dermkit.runs.registry import serving_model
from dermkit.serving.app import create_app, load_model_facts
from dermkit.serving.asgi import AsgiApp
from dermkit.serving.auth import KeyGuard, KeyRing
from dermkit.serving.http_protocol import guarded_protocol
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.recorder import PredictionRecorder
from dermkit.serving.routes import ServerState
from dermkit.serving.rules import RouteRule
from dermkit.serving.scoring_queue import ScoringQueue
from dermkit.serving.settings import ServeLimits, ServeSettings
from dermkit.serving.worker import run_worker
from dermkit.serving.worker_process import WorkerEntry, WorkerProcess

_OWN_FILES = 64
"""Files that the process has open besides its connections."""


def serve(
    settings: ServeSettings, *, recorder: PredictionRecorder | None = None, routers: Sequence[APIRouter] = (),
    rules: Sequence[RouteRule] = (), progress: Progress | None = None, entry: WorkerEntry = run_worker,
) -> None:  # fmt: skip
    """Serve a model until Ctrl-C or SIGTERM; then answer what was accepted, and return.

    recorder: keeps a record of predictions. routers, rules: paths beside those of the API. progress: told the address.
    entry: what the worker runs; another function in tests alone.

    Raises `UsageError` for a broken key file, `OutputError` for an address that cannot be bound, and what loading the
    model raises, all before the first connection is accepted.
    """
    say = (progress or Progress()).say
    # Of a registry the version that serves now: a worker that starts again loads the same one after a promotion.
    settings = replace(settings, model=serving_model(settings.model))
    guard = None if settings.keys is None else KeyGuard(KeyRing(settings.keys))
    with contextlib.closing(_bind(settings)) as listener:
        settings = replace(settings, limits=replace(settings.limits, max_connections=_allow_connections(settings)))
        server_metrics = ServerMetrics()
        if recorder is not None:
            recorder.watch(server_metrics.registry)
        queue = ScoringQueue(WorkerProcess(settings, entry=entry), settings.limits, server_metrics)
        state = ServerState(settings.limits, queue, server_metrics, recorder)
        app = create_app(settings, state, guard=guard, routers=routers, rules=rules)
        config = server_config(app, settings.limits)
        asyncio.run(_run(_Server(config, queue), settings, state, listener, say))


def server_config(app: AsgiApp, limits: ServeLimits) -> uvicorn.Config:
    """Return how uvicorn runs an application: with our protocol, and silent."""
    return uvicorn.Config(
        app, http=guarded_protocol(limits), ws="none", lifespan="on", loop="asyncio", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, backlog=limits.max_connections,
        timeout_keep_alive=limits.idle_seconds, timeout_graceful_shutdown=limits.stop_seconds,
    )  # fmt: skip


async def _run(
    server: "_Server", settings: ServeSettings, state: ServerState, listener: socket.socket,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    say(f"loading {settings.model}")
    model = await load_model_facts(state)
    server_metrics = state.metrics
    server_metrics.watch(
        waiting=lambda: state.queue.n_waiting, ready=lambda: float(not state.reasons_not_ready()),
        connections=lambda: len(server.server_state.connections),
    )  # fmt: skip
    listener.listen(settings.limits.max_connections)
    for warning in model.warnings:
        say(f"warning: {warning}")
    say(f"serving {model.model.name} on {address_text(listener)}  (Ctrl-C stops it)")
    try:
        await server.serve(sockets=[listener])
    finally:  # after a second Ctrl-C it may be in the middle of a batch
        state.queue.kill()


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with our exit code and refuses new work as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, queue: ScoringQueue) -> None:
        super().__init__(config)
        self._queue = queue

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on Ctrl-C and SIGTERM; uvicorn would raise them again at its end."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        old_handlers = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C does not wait for what was accepted."""
        self._queue.refuse_new()
        super().handle_exit(sig, frame)


def _bind(settings: ServeSettings) -> socket.socket:
    """Return a bound socket that does not listen yet; raises `OutputError`."""
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{settings.host}:{settings.port}: cannot be bound: {reason}", outcome="no server was started",
            remedy="choose another --port or --host, or stop what listens there",
        ) from error  # fmt: skip
    return listener


def address_text(listener: socket.socket) -> str:
    """Return the address of a bound socket as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_connections(settings: ServeSettings) -> int:
    """Let the process open as many files as there may be connections; returns how many the system allows."""
    n_connections = settings.limits.max_connections
    if sys.platform == "win32":
        return n_connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_files = n_connections + _OWN_FILES
    if hard != resource.RLIM_INFINITY:
        n_files = min(n_files, hard)
    if soft != resource.RLIM_INFINITY and soft < n_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, hard))
    return max(1, n_files - _OWN_FILES)


def log_to_stderr() -> None:
    """Write the lines of the server to standard error: no names of files, no images, no keys are among them.

    Libraries stay silent: their warnings quote what a client sent, and their tracebacks name files.
    """
    for name in ("uvicorn", "python_multipart", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("dermkit.serving", "dermkit.prediction_log"):
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
