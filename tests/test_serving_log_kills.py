"""A server with a log, as a process that is killed under load: what a client was answered is in the log, once."""

import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dermkit.prediction_log.writer import open_log
from server_parts import FORM_TYPE, form
from test_prediction_log_writer import check_acknowledged, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL as POSIX has it")
SERVER = str(Path(__file__).with_name("log_server.py"))
BODY = form(b"one", b"two", b"broken", groups='{"device": "A"}')


def start_server(*command: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a server and wait until it serves; returns its process and port."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return process, int(match[1])
    raise AssertionError("the server ended")


def ask(port: int, method: str = "POST", path: str = "/v1/predict", body: bytes | None = BODY) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": FORM_TYPE} if body is not None else {})
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return data
    finally:
        connection.close()


def collect(port: int, acknowledged: list[str], stop: threading.Event) -> None:
    """Ask until the server is gone; keep the ids of whole answers."""
    while not stop.is_set():
        try:
            answer = json.loads(ask(port))
        except (OSError, http.client.HTTPException, ValueError):
            return
        acknowledged += [image["prediction_id"] for image in answer["images"]]


def run_kills(folder: Path, n_kills: int) -> list[str]:
    """Kill a server under load again and again; returns the ids of what clients were answered.

    `kills.json` in the folder holds them after each kill, so that a campaign that was stopped goes on.
    """
    log, record = str(folder / "log.sqlite"), folder / "kills.json"
    progress: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"n_kills": 0, "ids": []}
    acknowledged: list[str] = progress["ids"]
    for kill in range(progress["n_kills"], n_kills):
        generator = random.Random(kill)
        process, port = start_server(SERVER, log)
        stop = threading.Event()
        clients = [threading.Thread(target=collect, args=(port, acknowledged, stop)) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(generator.uniform(0.1, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        stop.set()
        for client in clients:
            client.join()
        if process.stdout is not None:
            process.stdout.close()
        record.write_text(json.dumps({"n_kills": kill + 1, "ids": acknowledged}))
    with open_log(log) as prediction_log:
        wait_until(lambda: prediction_log.status.n_outbox == 0)
    check_acknowledged(log, acknowledged)
    return acknowledged


def test_a_server_writes_and_tells_of_its_log(tmp_path: Path) -> None:
    log = str(tmp_path / "log.sqlite")
    process, port = start_server(SERVER, log)
    answer = json.loads(ask(port))
    metrics = ask(port, "GET", "/metrics", None).decode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and process.stdout is not None
    process.stdout.close()
    assert "dermkit_log_rows 3.0" in metrics and "dermkit_log_database_up 1.0" in metrics
    ids = [image["prediction_id"] for image in answer["images"]]
    assert check_acknowledged(log, ids) == 3
    with open_log(log) as prediction_log:
        assert prediction_log.status.n_outbox == 0


def test_what_was_answered_is_in_the_log_after_a_kill(tmp_path: Path) -> None:
    assert run_kills(tmp_path, 1)


@pytest.mark.slow
def test_two_hundred_kills_of_a_server_under_load(tmp_path: Path) -> None:
    assert len(run_kills(tmp_path, 200)) > 1000
