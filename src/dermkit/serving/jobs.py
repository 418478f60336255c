"""What the server asks of its worker, and how the two talk: JSON and bytes over a pipe, nothing pickled.

The worker opens images that strangers send. Whatever it answers is read as data.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MAX_ANSWER_BYTES = 64 * 2**20


class WorkerRefusal(StrEnum):
    """Why an image was refused that passed every check of a file, beside the codes of refused.csv."""

    ENDED_WORKER = "ended_worker"
    OUT_OF_TIME = "out_of_time"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_SCORED = "not_scored"


@dataclass(frozen=True, eq=False)
class ImageJob:
    """One image to score. data: bytes of its file. metadata: its age, sex and site as text, absent = unknown."""

    data: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ExplainJob:
    """One image to explain. class_name: None = the predicted one; against: None = all others."""

    data: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)
    class_name: str | None = None
    against: str | None = None


Job = ImageJob | ExplainJob

JobListener = Callable[..., None]
"""Told in the worker what happens: an event, the number of the job, and its answer."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told at its start; the fields are those of `ServeSettings` and `ServeLimits`."""

    model: Path
    target: str | None
    coverage: float | None
    device: str
    workers: int
    max_image_bytes: int
    worker_bytes: int


def send_message(connection: Connection, message: Mapping[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Send a JSON message, and bytes after it; raises `OSError` where nobody listens."""
    connection.send_bytes(json.dumps({**message, "n_parts": len(parts)}, allow_nan=False).encode())
    for part in parts:
        connection.send_bytes(part)


def receive_message(connection: Connection, *, max_bytes: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return the next message and its bytes; raises `EOFError` or `OSError` where the other end is gone.

    max_bytes: of each frame. A message that is no JSON object counts as a lost end too.
    """
    try:
        message = json.loads(connection.recv_bytes(max_bytes))
        parts = [connection.recv_bytes(max_bytes) for _ in range(message["n_parts"])]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EOFError("a broken message") from error
    return message, parts


def send_jobs(connection: Connection, jobs: Sequence[Job]) -> None:
    """Send jobs of one kind to the worker: images to score together, or one image to explain."""
    rows: list[dict[str, Any]] = []
    for job in jobs:
        row: dict[str, Any] = {"metadata": dict(job.metadata)}
        if isinstance(job, ExplainJob):
            row |= {"class_name": job.class_name, "against": job.against}
        rows.append(row)
    kind = "explain" if isinstance(jobs[0], ExplainJob) else "predict"
    send_message(connection, {"kind": kind, "jobs": rows}, [job.data for job in jobs])


def receive_jobs(connection: Connection, *, max_bytes: int) -> list[Job]:
    """Return the next jobs, in the worker; raises `EOFError` where the server is gone."""
    message, parts = receive_message(connection, max_bytes=max_bytes)
    make = ExplainJob if message["kind"] == "explain" else ImageJob
    return [make(data, **row) for data, row in zip(parts, message["jobs"], strict=True)]
