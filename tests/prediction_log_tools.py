"""Rows for tests of the prediction log, and a process that writes them and may be killed."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dermkit.images.statistics import ImageStatistics
from dermkit.prediction_log.database import parse_address
from dermkit.prediction_log.rows import PredictionRow
from dermkit.prediction_log.writer import default_outbox

MODEL_KEY = "ab" * 32
PIXELS = "cd" * 32

WRITER = """
import sys
from pathlib import Path
from dermkit.prediction_log.rows import PredictionRow
from dermkit.prediction_log.writer import open_log

log, name, outbox, timeout, rows_per_request = sys.argv[1:]
with open_log(log, Path(outbox), timeout=float(timeout)) as prediction_log:
    print("ready", flush=True)
    for number in range(1_000_000):
        rows = [
            PredictionRow(
                request_id=f"{name}-{number}", position=position, dermkit_version="0", model_key="ab" * 32,
                predicted="nv",
            )
            for position in range(int(rows_per_request))
        ]
        print(*prediction_log.append(rows), flush=True)  # an id on this pipe was acknowledged
"""


def prediction_row(number: int = 0, **changes: Any) -> PredictionRow:
    """Return a row with every field; `changes` replace some."""
    values: dict[str, Any] = {
        "request_id": f"request-{number}", "position": 0, "dermkit_version": "0.1.0", "model_key": MODEL_KEY,
        "preprocessing_sha256": "ef" * 32, "pixel_sha256": f"{number:064x}", "probabilities": {"nv": 0.75, "mel": 0.25},
        "calibrated_probabilities": {"nv": 0.7, "mel": 0.3}, "predicted": "nv",
        "operating_point": "sensitivity 0.95", "threshold": 0.4, "malignant_probability": 0.3, "positive": False,
        "referral": "answered", "prediction_set": ("nv", "mel"), "distance": 1.5, "p_value": 0.25,
        "outside_training_distribution": False, "site": "trunk", "device": "dermatoscope A", "age_group": "40-49",
        "statistics": ImageStatistics(600, 450, 180.5, 140.25, 130.0, 20.0, 21.0, 22.0, 1.1),
    }  # fmt: skip
    return PredictionRow(**{**values, **changes})


def start_writer(
    log: str, name: str, outbox: Path, *, timeout: float = 5.0, rows_per_request: int = 1
) -> "subprocess.Popen[str]":
    """Start a process that writes rows until it is killed, and prints the ids that were acknowledged."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, log, name, str(outbox), str(timeout), str(rows_per_request)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_writer(process: "subprocess.Popen[str]", seconds: float) -> list[str]:
    """Let a writer run for some seconds after it was ready, kill it, and return the ids that it acknowledged."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    lines = process.stdout.read().splitlines(keepends=True)
    process.wait()
    process.stdout.close()
    return [row_id for line in lines if line.endswith("\n") for row_id in line.split()]


def random_seconds(generator: random.Random) -> float:
    """Return how long a writer may live: mostly short, so that it is killed within its first commits too."""
    return generator.choice((0.0, 0.01, 0.05, 0.2)) * (1 + generator.random())


@contextmanager
def nowhere_to_write(path: str) -> Iterator[None]:
    """Take an SQLite log and its outbox away: the file is moved, and a file stands where the folder was."""
    database, folder = Path(path), default_outbox(parse_address(path))
    away, folder_away = database.with_name("away.sqlite"), folder.with_name("away.outbox")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{database}{suffix}").rename(f"{away}{suffix}")
    folder.rename(folder_away)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        folder_away.rename(folder)
        for suffix in ("-shm", "-wal", ""):
            with suppress(FileNotFoundError):
                Path(f"{away}{suffix}").rename(f"{database}{suffix}")


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the write lock of a database: to everybody else it is away."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()
