"""The server with a prediction log: a row before each answer, no answer without a row, and outcomes that come later."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dermkit.images.statistics import ImageStatistics
from dermkit.prediction_log import writer
from dermkit.prediction_log.database import DATABASE_SECONDS
from dermkit.prediction_log.export import export_log
from dermkit.prediction_log.read import read_log
from dermkit.prediction_log.verify import verify_log
from dermkit.prediction_log.writer import DATABASE_RETRY_SECONDS, PROBE_SECONDS, PredictionLog, open_log
from dermkit.serving.app import create_app, public_limits
from dermkit.serving.auth import KeyGuard, KeyRing
from dermkit.serving.feedback import FEEDBACK_RULES, MAX_OUTCOMES, feedback_router
from dermkit.serving.heat_map import MapMaker
from dermkit.serving.jobs import ExplainJob, Job
from dermkit.serving.key_file import make_key
from dermkit.serving.log_recorder import LogRecorder, groups_of_metadata, parse_groups
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.routes import ServerState
from dermkit.serving.schemas import ModelAnswer
from dermkit.serving.scoring_queue import ScoringQueue
from dermkit.serving.settings import ServeLimits, ServeSettings
from dermkit.serving.worker_process import Deliver
from prediction_log_tools import locked, nowhere_to_write, prediction_row
from server_parts import MODEL_FACTS, Client, QuickWorker, Reply, form, image_result, run

MODEL = {**MODEL_FACTS["model"], "model_key": "ab" * 32, "preprocessing_sha256": "cd" * 32, "version": "0.1.0"}
STATISTICS = asdict(ImageStatistics(600, 450, 180.5, 140.25, 130.0, 20.0, 21.0, 22.0, None))
DECISIONS = {
    "predicted": "nevus", "confidence": 0.75, "referral": "answered", "positive": True,
    "operating_point": "sensitivity 0.95", "malignant_probability": 0.25, "prediction_set": ["nevus", "melanoma"],
    "positive_at": {}, "is_point_broken": False,
}  # fmt: skip
DISTRIBUTION = {"distance": 1.5, "p_value": 0.01, "outside_training_distribution": True}


HEAT_MAP: dict[str, Any] = {
    "refusal": None, "predicted": "nevus", "class_name": "melanoma", "probability": 0.25,
    "probabilities": {"nevus": 0.75, "melanoma": 0.25}, "calibrated_probabilities": {}, "method": "m", "layer": "l",
    "heat_map_png": "", "picture_jpeg": "", "width": 8, "height": 8, "notes": [], "pixel_sha256": "12" * 32,
    "legend": {"text": "", "low": "", "high": "", "colours": [], "unseen": ""},
}  # fmt: skip


class FullWorker(QuickWorker):
    """Answers with every field that a row can hold; an image that begins with "broken" is refused."""

    def run(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        self.batches.append([job.data for job in jobs])
        for index, job in enumerate(jobs):
            if isinstance(job, ExplainJob) and not job.data.startswith(b"broken"):
                deliver(index, HEAT_MAP)
                continue
            if job.data.startswith(b"broken"):
                deliver(index, {"refusal": {"reason": "truncated", "detail": "Jane Doe 1970.jpg"}})
                continue
            answer = image_result(job.data)
            for one in answer["classes"]:
                one["calibrated_probability"] = one["probability"]
            pixels = job.data.hex().rjust(64, "0")[:64]
            deliver(index, {**answer, "decisions": DECISIONS, "distribution": DISTRIBUTION, "pixel_sha256": pixels,
                            "statistics": STATISTICS})  # fmt: skip


@asynccontextmanager
async def logging_server(log: PredictionLog, keys: Path | None = None) -> AsyncIterator[Client]:
    """Run a server without a socket that writes a log."""
    settings = ServeSettings(model=Path("model"), keys=keys, limits=ServeLimits())
    metrics, worker = ServerMetrics(), FullWorker()
    queue = ScoringQueue(worker, settings.limits, metrics)
    state = ServerState(settings.limits, queue, metrics, LogRecorder(log))
    guard = None if keys is None else KeyGuard(KeyRing(keys))
    app = create_app(settings, state, guard=guard, routers=[feedback_router(log)], rules=FEEDBACK_RULES)
    await queue.start()
    facts = {**MODEL_FACTS, "model": MODEL, "operating_point": "sensitivity 0.95", "decision_threshold": 0.2}
    state.facts = ModelAnswer(**facts, limits=public_limits(settings.limits))
    try:
        yield Client(app, state, worker)
    finally:
        await queue.stop()


async def send_outcomes(client: Client, outcomes: Any, key: str | None = None) -> Reply:
    body = json.dumps({"outcomes": outcomes}).encode()
    headers = {
        "content-type": "application/json", "content-length": str(len(body)),
        "authorization": None if key is None else f"Bearer {key}",
    }  # fmt: skip
    return await client.ask("POST", "/v1/feedback", [body], headers=headers)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log.sqlite")


def test_a_row_for_each_image_before_the_answer(path: str) -> None:
    async def main() -> dict[str, Any]:
        with open_log(path) as log:
            async with logging_server(log) as client:
                groups = json.dumps([{"site": "back", "device": "A"}, {}, {"age_group": "40-49"}])
                reply = await client.post("/v1/predict", form(b"one", b"broken", b"three", groups=groups))
                assert reply.status == 200
                return dict(reply.json)

    answer = run(main())
    rows = [prediction.row for prediction in read_log(path)]
    assert [row.row_id for row in rows] == [image["prediction_id"] for image in answer["images"]]
    assert {row.request_id for row in rows} == {answer["request_id"]}
    first, refusal, third = rows
    classes = answer["images"][0]["classes"]
    assert first.probabilities == {one["name"]: one["probability"] for one in classes}
    assert (
        first.calibrated_probabilities == first.probabilities
        and first.predicted == answer["images"][0]["predicted"]
    )
    assert (first.model_key, first.preprocessing_sha256, first.dermkit_version) == ("ab" * 32, "cd" * 32, "0.1.0")
    assert (first.threshold, first.positive, first.prediction_set) == (0.2, True, ("nevus", "melanoma"))
    assert (first.p_value, first.outside_training_distribution) == (0.01, True)
    assert first.statistics is not None and asdict(first.statistics) == STATISTICS
    assert (first.site, first.device, third.age_group) == ("back", "A", "40-49")
    assert refusal.refusal_reason == "truncated" and not refusal.predicted and not refusal.pixel_sha256
    assert verify_log(path).n_rows == 3
    data = b"".join(file.read_bytes() for file in Path(path).parent.iterdir() if file.is_file())
    assert b"Jane" not in data, "neither the name of the file nor the detail of a refusal is written"


def test_the_answered_class_is_logged_and_counted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECISIONS, "predicted", "calibrated")

    async def main() -> str:
        with open_log(path) as log:
            async with logging_server(log) as client:
                assert (await client.post("/v1/predict", form(b"one"))).json["images"][0][
                    "predicted"
                ] != "calibrated"
                return client.state.metrics.text().decode()

    text = run(main())
    assert [prediction.row.predicted for prediction in read_log(path)] == ["calibrated"]
    assert 'dermkit_predictions_total{class_name="calibrated"} 1.0' in text


def test_a_heat_map_is_of_the_answered_class() -> None:
    maker: Any = MapMaker.__new__(MapMaker)
    p = np.array([[0.6, 0.4]])
    maker._cases, maker._predictor = None, SimpleNamespace(class_names=("a", "b"), probabilities=lambda *_: p)
    maker._explainer = SimpleNamespace(
        resize=lambda pixels: [pixels], methods=("m",), layers=("l",),
        map_image=lambda _, __, size, ___: SimpleNamespace(combined=np.ones(size, np.float32)),
    )  # fmt: skip
    calibration = SimpleNamespace(apply=lambda raw: raw[:, ::-1])
    maker._policy = SimpleNamespace(policy=SimpleNamespace(calibration=calibration))
    image: Any = SimpleNamespace(pixels=np.zeros((8, 8, 3), np.uint8), pixel_sha256="")
    answer = maker.explain(image, ExplainJob(b""), None)
    assert (answer["predicted"], answer["class_name"]) == ("b", "b")
    assert (answer["probability"], answer["calibrated_probability"]) == (0.4, 0.6)
    assert answer["probabilities"] == {"a": 0.6, "b": 0.4} and answer["calibrated_probabilities"]["b"] == 0.6


def test_a_request_of_refused_images_has_its_rows_too(path: str) -> None:
    async def main() -> None:
        with open_log(path) as log:
            async with logging_server(log) as client:
                assert (await client.post("/v1/predict", form(b"broken"))).status == 422

    run(main())
    assert [prediction.row.refusal_reason for prediction in read_log(path)] == ["truncated"]


def test_a_heat_map_names_a_class_and_has_its_row(path: str) -> None:
    async def main() -> None:
        with open_log(path, timeout=0.05) as log:
            async with logging_server(log) as client:
                reply = await client.post("/v1/explain", form(b"one", field_name="image", class_name="melanoma"))
                assert reply.status == 200, reply.body
                assert (await client.post("/v1/explain", form(b"broken", field_name="image"))).status == 422
                with locked(path), pytest.MonkeyPatch.context() as patch:
                    patch.setattr("os.fsync", fail)
                    reply = await client.post("/v1/explain", form(b"one", field_name="image"))
                    assert (reply.status, reply.json["code"]) == (503, "not_logged")

    run(main())
    first, refusal = [prediction.row for prediction in read_log(path, route="explain")]
    assert (first.predicted, first.probabilities, first.pixel_sha256) == (
        "nevus", {"nevus": 0.75, "melanoma": 0.25}, "12" * 32,
    )  # fmt: skip
    assert refusal.refusal_reason == "truncated"
    assert list(read_log(path, route="predict")) == []


def test_while_nothing_can_be_written_the_server_is_not_ready(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(writer, "DATABASE_RETRY_SECONDS", 0.05)

    async def main() -> None:
        with open_log(path, timeout=0.05) as log:
            async with logging_server(log) as client:
                await until_ready(client)
                with nowhere_to_write(path):
                    reply = await until_ready(client, status=503)
                    assert reply.json["reasons"] == ["the prediction log cannot be written"]
                    refusal = await client.post("/v1/predict", form(b"one"))
                    assert (refusal.status, refusal.json["code"]) == (503, "not_logged")
                    assert refusal.n_read == 0 and not client.worker.batches, "no work was begun"
                    assert refusal.headers["retry-after"] == "2"
                    assert (await client.ask("GET", "/health")).status == 200
                await until_ready(client)
                assert (await client.post("/v1/predict", form(b"one"))).status == 200

    run(main())
    assert len(list(read_log(path))) == 1


async def until_ready(client: Client, *, status: int = 200, seconds: float = 10.0) -> Reply:
    """Ask /ready until it answers so; a second that a busy machine takes is none of the server's."""
    end = time.monotonic() + seconds
    while (reply := await client.ask("GET", "/ready")).status != status:
        assert time.monotonic() < end, reply.body
        await asyncio.sleep(0.01)
    return reply


@pytest.mark.slow
def test_a_load_balancer_hears_of_a_full_disk_in_time(path: str) -> None:
    """With the times of `dermkit serve`: 10 s to a probe and 5 s for the database to take a row."""

    async def main() -> None:
        with open_log(path) as log:
            async with logging_server(log) as client:
                await until_ready(client)
                with nowhere_to_write(path):
                    await until_ready(client, status=503, seconds=PROBE_SECONDS + DATABASE_SECONDS)
                await until_ready(client, seconds=DATABASE_RETRY_SECONDS + DATABASE_SECONDS)

    run(main())


def fail(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_without_a_row_there_is_no_answer(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with open_log(path, timeout=0.05) as log:
            async with logging_server(log) as client:
                with locked(path):
                    with monkeypatch.context() as patch:
                        patch.setattr("os.fsync", fail)
                        reply = await client.post("/v1/predict", form(b"one"))
                    assert (reply.status, reply.json["code"]) == (503, "not_logged")
                    assert reply.headers["retry-after"] and "images" not in reply.json
                    await until_ready(client)
                    assert (await client.post("/v1/predict", form(b"two"))).status == 200
                    outcome = {"pixel_sha256": "0" * 64, "diagnosis": "x", "source": "x", "time": "2026-12-01"}
                    away = await send_outcomes(client, [outcome])
                    assert (away.status, away.json["code"]) == (503, "log_away") and away.headers[
                        "retry-after"
                    ] == "5"

    run(main())
    with open_log(path) as log:
        while log.status.n_outbox:
            pass
    assert len(list(read_log(path))) == 1


@pytest.mark.parametrize(
    ("metadata", "groups"),
    [
        ({}, {}), ({"age": "unknown", "site": "NA"}, {}),
        ({"age": "55.5", "site": "back"}, {"site": "back", "age_group": "50-59"}),
        ({"age": "95"}, {"age_group": "90+"}), ({"age": "0", "sex": "female"}, {"age_group": "0-9"}),
    ],
)  # fmt: skip
def test_what_the_model_is_told_of_an_image_is_its_group_too(
    metadata: dict[str, str], groups: dict[str, str]
) -> None:
    assert groups_of_metadata(metadata) == groups


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[{}, {}]", '"x"', '{"name": "Jane Doe"}', '{"site": 3}', '{"site": "a\\nb"}', '{"device": "\\u202e"}',
     json.dumps({"site": "x" * 65}), "[" * 100_000],
)  # fmt: skip
def test_groups_that_the_log_does_not_take_are_refused(path: str, text: str) -> None:
    with pytest.raises(Problem) as failure:
        parse_groups(text, 1)
    assert failure.value.code is ProblemCode.FIELD_NOT_VALID


def test_wrong_groups_are_no_fault_of_the_log(path: str) -> None:
    async def main() -> None:
        with open_log(path) as log:
            async with logging_server(log) as client:
                reply = await client.post("/v1/predict", form(b"one", groups='{"patient": "Jane"}'))
                assert (reply.status, reply.json["code"]) == (422, "field_not_valid")
                assert not client.worker.batches, "nothing was scored for it"

    run(main())
    assert list(read_log(path)) == []


def test_what_a_semicolon_divides_is_no_formula(path: str, tmp_path: Path) -> None:
    with open_log(path) as log:
        log.append([prediction_row(0, site="x; =1+1;@y;z-1")])
    export_log(path, tmp_path / "log.csv")
    assert "x; '=1+1;'@y;z-1" in (tmp_path / "log.csv").read_text()


# Outcomes -------------------------------------------------------------------------------------------------------


def test_outcomes_come_later_and_once(path: str, tmp_path: Path) -> None:
    async def main() -> None:
        with open_log(path) as log:
            async with logging_server(log) as client:
                images = (await client.post("/v1/predict", form(b"one", b"two"))).json["images"]
                first = {"prediction_id": images[0]["prediction_id"], "diagnosis": "melanoma",
                         "source": "histopathology", "time": "2026-12-01"}  # fmt: skip
                second = {"pixel_sha256": images[1]["pixel_sha256"], "diagnosis": "=1+1", "source": "follow-up",
                          "time": "2026-12-02T08:00:00+01:00", "kind": "override"}  # fmt: skip
                reply = await send_outcomes(client, [first, second])
                assert (reply.status, reply.json["n_new"], reply.json["n_known"]) == (200, 2, 0)
                unknown = {**first, "prediction_id": "0" * 32}
                reply = await send_outcomes(client, [first, unknown])
                assert (reply.json["n_new"], reply.json["n_known"]) == (0, 1)
                assert reply.json["rejected"] == [
                    {"name": "0" * 32, "reason": "the log has no prediction of this id"}
                ]
                reply = await send_outcomes(client, [unknown])
                assert (reply.status, reply.json["code"]) == (422, "field_not_valid")

    run(main())
    first, second = read_log(path)
    assert first.outcome is not None and first.outcome.diagnosis == "melanoma"
    assert second.override is not None and second.outcome is None
    export_log(path, tmp_path / "log.csv")
    assert "'=1+1" in (tmp_path / "log.csv").read_text()


GOOD = {"prediction_id": "0" * 32, "diagnosis": "nevus", "source": "x", "time": "2026-12-01"}


@pytest.mark.parametrize(
    "outcomes",
    [
        [], [GOOD] * (MAX_OUTCOMES + 1), "text", [{**GOOD, "time": "soon"}], [{**GOOD, "diagnosis": ""}],
        [{**GOOD, "prediction_id": "' OR 1=1"}], [{**GOOD, "prediction_id": ""}], [{**GOOD, "kind": "guess"}],
        [{**GOOD, "patient": "Jane"}], [{**GOOD, "diagnosis": "a\x00"}], [{**GOOD, "source": "x" * 301}],
        [{**GOOD, "diagnosis": "\ud800"}], [{**GOOD, "time": "9999-12-31T23:59:59-14:00"}],
    ],
)  # fmt: skip
def test_a_wrong_outcome_is_a_problem_with_a_code(path: str, outcomes: Any) -> None:
    async def main() -> None:
        with open_log(path) as log:
            async with logging_server(log) as client:
                reply = await send_outcomes(client, outcomes)
                assert (reply.status, reply.json["code"]) == (422, "field_not_valid"), reply.body
                assert "Jane" not in reply.body.decode()

    run(main())


def test_feedback_has_a_scope_of_its_own(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    _, predict_key = make_key(keys, name="a", scopes=["predict"])
    _, feedback_key = make_key(keys, name="b", scopes=["feedback"])

    async def main() -> None:
        with open_log(path) as log:
            async with logging_server(log, keys) as client:
                codes = [(await send_outcomes(client, [GOOD], key)).json["code"] for key in (None, predict_key)]
                assert codes == ["key_missing", "scope_missing"]
                assert (await send_outcomes(client, [GOOD], feedback_key)).json["code"] == "field_not_valid"

    run(main())


def test_the_route_is_described(path: str) -> None:
    async def main() -> None:
        with open_log(path) as log:
            async with logging_server(log) as client:
                document = (await client.ask("GET", "/openapi.json")).json
                body = document["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["application/json"]
                assert body["schema"]["properties"]["outcomes"]["maxItems"] == MAX_OUTCOMES
                assert "$ref" not in json.dumps(body)

    run(main())
