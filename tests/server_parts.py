"""Parts for tests of the server: a worker without a process, an ASGI client without a socket, multipart bodies."""

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermkit.serving.app import create_app, public_limits
from dermkit.serving.auth import KeyGuard, KeyRing
from dermkit.serving.jobs import ExplainJob, Job
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.recorder import PredictionRecorder
from dermkit.serving.routes import ServerState
from dermkit.serving.schemas import ModelAnswer
from dermkit.serving.scoring_queue import ScoringQueue
from dermkit.serving.settings import ServeLimits, ServeSettings
from dermkit.serving.worker_process import Deliver

BOUNDARY = b"test-boundary"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY.decode()}"

MODEL_FACTS: dict[str, Any] = {
    "model": {"name": "m", "model_key": "k", "sha256": "s", "files_sha256": "f", "version": "0"},
    "classes": [
        {"name": "nevus", "diagnosis": "nevus", "malignancy": "benign"},
        {"name": "melanoma", "diagnosis": "melanoma", "malignancy": "malignant"},
    ],
    "training": {}, "performance": "not known", "evaluation": None, "operating_points": [], "operating_point": "",
    "decision_threshold": None, "coverage": None, "why_no_decision": "", "warnings": [], "metadata_fields": [],
    "explain": True, "why_no_explain": "", "out_of_distribution": False, "why_no_out_of_distribution": "",
    "card": "",
}  # fmt: skip


def image_result(data: bytes) -> dict[str, Any]:
    """Return what a worker says of an image, whose probability is made of its bytes."""
    p = hashlib.sha256(data).digest()[0] / 255
    names = [("nevus", "benign", 1 - p), ("melanoma", "malignant", p)]
    return {
        "refusal": None, "predicted": "melanoma" if p > 0.5 else "nevus",
        "classes": [
            {"name": name, "malignancy": malignancy, "probability": value, "calibrated_probability": None}
            for name, malignancy, value in names
        ],
        "decisions": None, "distribution": None, "notes": [], "training_split": "", "pixel_sha256": "0",
        "width": 8, "height": 8,
    }  # fmt: skip


class QuickWorker:
    """A worker that answers at once, or when `gate` is set; in the test's own process."""

    def __init__(self) -> None:
        self.is_alive, self.batches = False, list[list[bytes]]()
        self.wait: Callable[[], object] = lambda: None

    def start(self) -> dict[str, Any]:
        self.is_alive = True
        return dict(MODEL_FACTS)

    def stop(self) -> None:
        self.is_alive = False

    def kill(self) -> None:
        self.is_alive = False

    def run(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        self.batches.append([job.data for job in jobs])
        self.wait()
        for index, job in enumerate(jobs):
            if isinstance(job, ExplainJob):
                deliver(index, {"not_supported": "a test"})
            elif job.data.startswith(b"broken"):
                deliver(index, {"refusal": {"reason": "broken", "detail": ""}})
            else:
                deliver(index, image_result(job.data))


def form(*images: bytes, field_name: str = "images", **fields: str) -> bytes:
    """Return a multipart body of images and text fields."""
    named = [
        *((f'name="{field_name}"; filename="Jane Doe 1970.jpg"', data) for data in images),
        *((f'name="{name}"', text.encode()) for name, text in fields.items()),
    ]
    parts = [
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (BOUNDARY, name.encode(), data)
        for name, data in named
    ]
    return b"".join([*parts, b"--%s--\r\n" % BOUNDARY])


def photo(seed: int = 0, *, size: int = 64, format: str = "PNG") -> bytes:
    """Return the file of a small picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


@dataclass
class Reply:
    """An answer, and how many bytes of the request were read for it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    n_read: int = 0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Chunks = Sequence[bytes] | AsyncIterator[bytes]


@dataclass
class Client:
    """Asks an application without a socket, so that what it reads can be counted."""

    app: Any
    state: ServerState
    worker: QuickWorker
    headers: dict[str, str] = field(default_factory=lambda: {"host": "localhost"})

    async def ask(
        self, method: str, path: str, chunks: Chunks = (), *, headers: Mapping[str, str | None] | None = None
    ) -> Reply:
        """Send a request in chunks. headers: beside or in place of the usual ones, None = left out."""
        merged = {**self.headers, **(headers or {})}
        raw_headers = [(name.encode(), value.encode()) for name, value in merged.items() if value is not None]
        reply = Reply()
        iterator = _iterate(chunks)

        async def receive() -> dict[str, Any]:
            try:
                chunk = await anext(iterator)
            except StopAsyncIteration:
                if reply.status or reply.n_read < 0:
                    return {"type": "http.disconnect"}
                if is_ended:
                    await asyncio.sleep(3600)
                is_ended.append(True)
                return {"type": "http.request", "body": b"", "more_body": False}
            reply.n_read += len(chunk)
            return {"type": "http.request", "body": chunk, "more_body": True}

        is_ended: list[bool] = []

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert not reply.status, "two answers"
                reply.status = message["status"]
                reply.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            else:
                reply.body += message.get("body", b"")

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": raw_headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "state": {},
        }  # fmt: skip
        await self.app(scope, receive, send)
        return reply

    async def post(self, path: str, body: bytes, **headers: str | None) -> Reply:
        """Send a multipart body at once."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        merged = {"content-type": FORM_TYPE, "content-length": str(len(body)), **names}
        return await self.ask("POST", path, [body], headers=merged)


async def _iterate(chunks: Chunks) -> AsyncIterator[bytes]:
    if isinstance(chunks, Sequence):
        for chunk in chunks:
            yield chunk
    else:
        async for chunk in chunks:
            yield chunk


@asynccontextmanager
async def open_server(
    *, limits: ServeLimits | None = None, keys: Path | None = None, recorder: PredictionRecorder | None = None,
    worker: Any = None, facts: Mapping[str, Any] | None = None, allowed_hosts: tuple[str, ...] = (),
) -> AsyncIterator[Client]:  # fmt: skip
    """Run a server without a socket, whose worker is `QuickWorker`."""
    settings = ServeSettings(
        model=Path("model"), keys=keys, limits=limits or ServeLimits(), allowed_hosts=allowed_hosts
    )
    server_metrics, used_worker = ServerMetrics(), worker or QuickWorker()
    queue = ScoringQueue(used_worker, settings.limits, server_metrics)
    state = ServerState(settings.limits, queue, server_metrics, recorder)
    guard = None if keys is None else KeyGuard(KeyRing(keys))
    app = create_app(settings, state, guard=guard)
    await queue.start()
    state.facts = ModelAnswer(**{**MODEL_FACTS, **(facts or {})}, limits=public_limits(settings.limits))
    try:
        yield Client(app, state, used_worker)
    finally:
        await queue.stop()


def run(coroutine: Awaitable[Any]) -> Any:
    """Run a test's coroutine."""

    async def main() -> Any:
        return await asyncio.wait_for(coroutine, 500)

    return asyncio.run(main())
