"""`dermkit serve` as a process: the numbers of the command line and of Python, keys, stopping, and what it refuses."""

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dermkit as dk
from conftest import Cli
from corner_net import save_corner_model
from dermkit.prediction_log.read import read_log
from dermkit.prediction_log.verify import verify_log
from dermkit.serving.key_file import make_key, revoke_key
from server_parts import FORM_TYPE, form, photo

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@dataclass
class Server:
    """A running `dermkit serve`."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def ask(self, method: str, path: str, body: bytes | None = None, key: str = "") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Content-Type": FORM_TYPE} if body is not None else {}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        is_json = "json" in str(response.headers["content-type"])
        return response.status, json.loads(data) if is_json else data.decode()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts `dermkit serve MODEL ARGS...` on a free port, and waits until it serves."""
    processes: list[subprocess.Popen[str]] = []

    def begin(model: Path, *args: str | Path) -> Server:
        log = tmp_path / f"log{len(processes)}.txt"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "dermkit.cli", "serve", str(model), "--port", "0", *map(str, args)],
                stdout=subprocess.PIPE, stderr=stream, text=True,
            )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                return Server(process, int(match[1]), log)
        raise AssertionError(log.read_text())

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def check_log(log: str, answer: Any) -> None:
    """Check that the log of a server that runs holds what it answered."""
    rows = [prediction.row for prediction in read_log(log)]
    assert verify_log(log).n_rows == len(rows)
    for row, image in zip(rows, answer["images"], strict=True):
        assert (row.row_id, row.request_id) == (image["prediction_id"], answer["request_id"])
        assert row.probabilities == {one["name"]: one["probability"] for one in image["classes"]}
        assert row.calibrated_probabilities == {
            one["name"]: one["calibrated_probability"] for one in image["classes"]
        }
        assert row.prediction_set == tuple(image["decisions"]["prediction_set"])
        assert (row.positive, row.threshold) == (image["decisions"]["positive"], answer["decision_threshold"])
        assert (row.model_key, row.pixel_sha256) == (answer["model"]["model_key"], image["pixel_sha256"])
        assert row.statistics is not None
        assert (row.statistics.width, row.statistics.height) == (image["width"], image["height"])


def test_a_server_answers_as_the_command_and_as_python_do(
    binary: Path, start: Callable[..., Server], cli: Cli, tmp_path: Path, trained: Path
) -> None:
    trained_model = trained / "model"
    images = sorted((binary.parent / "images" / "test").rglob("*.*g"))[:5]
    assert len(images) == 5
    keys = tmp_path / "keys.json"
    key, text = make_key(keys, name="a", scopes=["predict", "explain", "metrics"])
    log = str(tmp_path / "log.sqlite")
    server = start(trained_model, "--keys", keys, "--max-images", "5", "--log", log)
    assert server.ask("GET", "/ready") == (200, {"status": "ready", "reasons": []})

    body = form(*(path.read_bytes() for path in images))
    status, answer = server.ask("POST", "/v1/predict", body, text)
    assert status == 200 and answer["n_scored"] == 5
    model = dk.load_model(trained_model)
    expected = list(model.predict_images(list(images)))
    for got, one in zip(answer["images"], expected, strict=True):
        assert got["predicted"] == one.predicted
        for entry in got["classes"]:
            assert abs(entry["probability"] - one.probabilities[entry["name"]]) < 1e-4
        assert one.decisions is not None and got["decisions"]["positive"] is one.decisions.positive
        assert got["decisions"]["prediction_set"] == list(one.decisions.prediction_set)
        assert got["decisions"]["operating_point"] == one.decisions.operating_point == answer["operating_point"]
        assert abs(got["decisions"]["confidence"] - one.decisions.confidence) < 1e-4
        assert (got["distribution"] or {}).get(
            "outside_training_distribution"
        ) == one.outside_training_distribution
        assert got["training_split"] == one.training_split and got["notes"] == list(one.notes)
    check_log(log, answer)
    assert answer["model"]["files_sha256"] == model.files_sha256
    assert answer["model"]["model_key"] == model.model_key
    assert cli("predict", trained_model, *images, "--out", tmp_path / "out", "--device", "cpu").returncode == 0
    rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    names = [column.removeprefix("p_") for column in rows[0].split(",") if column.startswith("p_")]
    for got, row in zip(answer["images"], rows[1:], strict=True):
        assert got["predicted"] == row.split(",")[6]
        values = {name: float(cell) for name, cell in zip(names, row.split(",")[7:], strict=True)}
        assert all(abs(entry["probability"] - values[entry["name"]]) < 1e-4 for entry in got["classes"])

    status, card = server.ask("GET", "/v1/model", key=text)
    assert status == 200 and card["model"] == answer["model"] and [one["name"] for one in card["classes"]] == names
    assert card["limits"]["max_images"] == 5 and str(trained_model) not in json.dumps(card)
    assert card["evaluation"]["n"] > 0 and "accuracy" in card["evaluation"]["figures"]

    status, explained = server.ask("POST", "/v1/explain", form(images[0].read_bytes(), class_name=names[0]), text)
    assert status == 200 and explained["class_name"] == names[0], explained
    with Image.open(io.BytesIO(base64.b64decode(explained["heat_map_png"]))) as heat_map:
        assert (heat_map.mode, heat_map.size) == ("RGBA", (explained["width"], explained["height"]))
        assert np.asarray(heat_map)[..., 3].max() > 200
    assert abs(explained["probability"] - expected[0].probabilities[names[0]]) < 1e-4

    assert server.ask("GET", "/v1/model")[0] == 401
    assert "dermkit_images_total" in server.ask("GET", "/metrics", key=text)[1]
    revoke_key(keys, key.id)
    time.sleep(1.1)
    assert server.ask("GET", "/v1/model", key=text)[0] == 401

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    log = server.log.read_text()
    assert "POST /v1/predict 200" in log and f"key={key.id}" in log
    assert text not in log and "Jane" not in log and "Traceback" not in log


def test_what_waits_is_answered_when_the_server_is_stopped(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start(save_corner_model(tmp_path / "model"))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/explain", form(photo(1), field_name="image"), {"Content-Type": FORM_TYPE})
    time.sleep(0.3)  # a heat map takes longer than this the first time
    server.process.send_signal(signal.SIGTERM)
    assert connection.getresponse().status == 200
    assert server.process.wait(30) == 0


def test_ctrl_c_ends_a_server_that_still_loads_its_model(tmp_path: Path) -> None:
    model = save_corner_model(tmp_path / "model")
    command = [sys.executable, "-m", "dermkit.cli", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "loading" not in process.stdout.readline():
            pass
        start_time = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130 and time.monotonic() - start_time < 30
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "no API keys"),  # noqa: S104
        (["--host", "0.0.0.0", "--allow-host", "x.example"], 2, "no API keys"),  # noqa: S104
        (["--host", "0.0.0.0", "--keys", "keys.json"], 2, "--allow-host"),  # noqa: S104
        (["--keys", "absent.json"], 2, "absent.json"),
        (["--max-waiting", "2"], 2, "max_waiting"),
    ],
)
def test_a_server_that_may_not_start_says_why(
    invoke: Callable[..., tuple[int, str, str]], tmp_path: Path, args: list[str], code: int, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, _, err = invoke("serve", "model", "--port", "0", *args)
    assert (got, words in err) == (code, True), err


def test_a_folder_that_is_no_model_is_not_served(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = cli("serve", "empty", "--port", "0")
    assert result.returncode == 6 and "not a model folder" in result.stderr
