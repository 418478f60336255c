"""Workers with planted faults, each the function that a server's worker process runs in place of `run_worker`.

An image begins with what it does to the worker that reads it. No option of the server reaches any of this.
"""

import ctypes
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from dermkit.images.decode import LesionImage, open_image
from dermkit.serving import served_model
from dermkit.serving.jobs import ImageJob, JobListener, WorkerSettings
from dermkit.serving.served_model import ServedModel
from dermkit.serving.worker import run_worker

CRASH, KILL, HANG, MEMORY, CRASH_IN_NET = b"crash!", b"kill!!", b"hang!!", b"memory", b"net!!!"


def run_faulty_worker(connection: Connection, settings: WorkerSettings) -> None:
    """Run a worker that images can crash, kill, hang and fill."""
    served_model.open_image = open_faulty  # type: ignore[attr-defined,assignment]
    ServedModel.predict = predict_faulty  # type: ignore[method-assign]
    run_worker(connection, settings)


def open_faulty(data: bytes, *, name: str = "", unchecked_pixels: int = 0) -> LesionImage:
    """Open an image, or do what it says."""
    if data.startswith(CRASH):
        ctypes.string_at(0)
    if data.startswith(KILL):
        os.kill(os.getpid(), signal.SIGKILL)
    if data.startswith(HANG):
        time.sleep(3600)
    if data.startswith(MEMORY):
        raise_on_memory()
    return open_image(data, name=name, unchecked_pixels=unchecked_pixels)


def raise_on_memory() -> None:
    """Take more memory than a worker may have, as a decoder does."""
    try:
        np.ones(2**34, dtype=np.uint8)
    except MemoryError as error:
        from dermkit.errors import out_of_memory

        raise out_of_memory("image") from error


_predict = ServedModel.predict


def predict_faulty(self: ServedModel, jobs: Sequence[ImageJob], report: JobListener) -> None:
    """Read every image, and then end as a broken net would."""

    def report_reading(event: str, index: int | None = None, answer: object = None) -> None:
        report(event, index, answer)
        if event == "end" and index is not None and jobs[index].data.endswith(CRASH_IN_NET):
            time.sleep(0.05)  # the others are read meanwhile
            os._exit(3)

    _predict(self, jobs, report_reading)
