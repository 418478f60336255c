"""The limits of the server, without a socket: what is refused, with which code, and how little was read for it."""

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dermkit.errors import UsageError
from dermkit.serving import limits
from dermkit.serving.key_file import make_key
from dermkit.serving.problems import PROBLEM_KINDS, PROBLEM_TYPE, ProblemCode
from dermkit.serving.recorder import ExplainRecord, PredictionRecord, PredictionRecorder
from dermkit.serving.settings import MEBIBYTE, ServeLimits, ServeSettings
from server_parts import BOUNDARY, FORM_TYPE, QuickWorker, Reply, form, open_server, run

HUGE = 300 * MEBIBYTE
PATH = re.compile(rb"[\s\"'(]/\w|\\\\|\.py\b")
"""What a path, or a line of a traceback, would show."""


async def endless(chunk: bytes = bytes(65536), *, first: bytes = b"") -> AsyncIterator[bytes]:
    """Yield a body without an end."""
    yield first
    while True:
        yield chunk


def check_problem(reply: Reply, code: ProblemCode) -> None:
    """Check that an answer is this problem, with every header of an answer, and nothing of the request in it."""
    assert (reply.status, reply.headers["content-type"]) == (PROBLEM_KINDS[code].status, PROBLEM_TYPE), reply
    document = reply.json
    assert document["code"] == code.value and document["status"] == reply.status
    assert document["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert b"Jane" not in reply.body and b"Traceback" not in reply.body and not PATH.search(reply.body)


def test_images_are_answered_in_order_and_refused_ones_beside_the_others() -> None:
    async def check() -> None:
        async with open_server() as client:
            images = [b"one", b"broken two", b"three"]
            reply = await client.post("/v1/predict", form(*images))
            assert reply.status == 200, reply
            answer = reply.json
            assert [image["position"] for image in answer["images"]] == [0, 1, 2]
            assert [image["refusal"] is None for image in answer["images"]] == [True, False, True]
            assert (answer["n_scored"], answer["n_refused"]) == (2, 1)
            assert answer["notice"] == "Research use only. Not a medical device."
            assert client.worker.batches == [images]
            text = (await client.ask("GET", "/metrics")).body.decode()
            assert 'dermkit_images_total{outcome="broken"} 1.0' in text
            assert 'dermkit_images_total{outcome="scored"} 2.0' in text

    run(check())


def test_an_image_that_is_refused_alone_is_a_problem_of_the_request_and_not_of_the_server() -> None:
    async def check() -> None:
        async with open_server() as client:
            reply = await client.post("/v1/predict", form(b"broken"))
            check_problem(reply, ProblemCode.IMAGE_REFUSED)
            assert reply.json["images"][0]["refusal"]["reason"] == "broken"

    run(check())


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-length": str(HUGE)}, ProblemCode.TOO_LARGE),
        ({"content-length": "9" * 30}, ProblemCode.TOO_LARGE),
        ({"content-length": "-1"}, ProblemCode.BAD_REQUEST),
        ({"content-type": "application/json"}, ProblemCode.WRONG_TYPE),
        ({"content-type": None}, ProblemCode.WRONG_TYPE),
        ({"content-encoding": "gzip"}, ProblemCode.WRONG_TYPE),
        ({"host": "evil.example"}, ProblemCode.HOST_NOT_ALLOWED),
        ({"host": None}, ProblemCode.HOST_NOT_ALLOWED),
        ({"host": "user@localhost"}, ProblemCode.HOST_NOT_ALLOWED),
        ({"origin": "https://evil.example"}, ProblemCode.ORIGIN_NOT_ALLOWED),
        ({"origin": "null"}, ProblemCode.ORIGIN_NOT_ALLOWED),
        ({"origin": "http://[::1"}, ProblemCode.ORIGIN_NOT_ALLOWED),
        ({"origin": "http://localhost:3000"}, ProblemCode.ORIGIN_NOT_ALLOWED),
        ({"sec-fetch-site": "cross-site"}, ProblemCode.ORIGIN_NOT_ALLOWED),
        ({"sec-fetch-site": "same-site"}, ProblemCode.ORIGIN_NOT_ALLOWED),
    ],
)
def test_headers_alone_are_enough_to_refuse(headers: dict[str, str | None], code: ProblemCode) -> None:
    async def check() -> None:
        async with open_server() as client:
            reply = await client.ask(
                "POST", "/v1/predict", endless(), headers={"content-type": FORM_TYPE, **headers}
            )
            check_problem(reply, code)
            assert reply.n_read == 0 and reply.headers["connection"] == "close"

    run(check())


def test_a_page_behind_a_proxy_may_ask_under_the_name_that_was_given() -> None:
    async def check() -> None:
        async with open_server(allowed_hosts=("Lesions.Example.org",)) as client:
            for host in ("localhost:8000", "lesions.example.org"):
                reply = await client.post(
                    "/v1/predict", form(b"one"), host=host, origin="https://lesions.example.org"
                )
                assert reply.status == 200

    run(check())


def test_head_is_get_without_a_body() -> None:
    async def check() -> None:
        async with open_server() as client:
            reply = await client.ask("HEAD", "/health")
            assert (reply.status, reply.headers["content-length"]) == (200, "18")
            assert (await client.ask("HEAD", "/v1/predict")).status == 405

    run(check())


def test_a_page_of_the_server_itself_may_ask() -> None:
    async def check() -> None:
        async with open_server() as client:
            same_origin = {
                "host": "localhost:8000",
                "origin": "http://localhost:8000",
                "sec_fetch_site": "same-origin",
            }
            assert (await client.post("/v1/predict", form(b"one"), **same_origin)).status == 200

    run(check())


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", ProblemCode.NOT_FOUND),
        ("GET", "/docs", ProblemCode.NOT_FOUND),
        ("GET", "/redoc", ProblemCode.NOT_FOUND),
        ("GET", "/v1/predict/", ProblemCode.NOT_FOUND),
        ("GET", "/v1/predict", ProblemCode.METHOD_NOT_ALLOWED),
        ("OPTIONS", "/v1/predict", ProblemCode.METHOD_NOT_ALLOWED),
        ("POST", "/health", ProblemCode.METHOD_NOT_ALLOWED),
    ],
)
def test_other_paths_and_methods_are_refused(method: str, path: str, code: ProblemCode) -> None:
    async def check() -> None:
        async with open_server() as client:
            reply = await client.ask(method, path, endless())
            check_problem(reply, code)
            assert reply.n_read == 0
            assert "access-control-allow-origin" not in reply.headers

    run(check())


def test_a_body_where_none_is_taken_is_refused() -> None:
    async def check() -> None:
        async with open_server() as client:
            for headers in ({"content-length": "5"}, {"transfer-encoding": "chunked"}):
                reply = await client.ask("GET", "/v1/model", endless(), headers=headers)
                check_problem(reply, ProblemCode.TOO_LARGE)
                assert reply.n_read == 0

    run(check())


SMALL = ServeLimits(max_images=2, max_image_bytes=100_000, max_body_bytes=300_000, max_waiting=4)


def part(name: str = "images") -> bytes:
    """Return the beginning of a form: a part whose content follows."""
    return form(b"", field_name=name).rsplit(b"\r\n--", 1)[0]


def open_form(**fields: str) -> bytes:
    """Return a form to which another can be added."""
    return form(**fields).rsplit(b"--" + BOUNDARY, 1)[0]


@pytest.mark.parametrize(
    ("first", "limits", "code"),
    [
        (part(), SMALL, ProblemCode.TOO_LARGE),  # one image
        (part(), ServeLimits(max_body_bytes=200_000), ProblemCode.TOO_LARGE),  # all of them
        (b"", SMALL, ProblemCode.BAD_REQUEST),  # never a part
        (part("metadata"), ServeLimits(), ProblemCode.TOO_LARGE),  # one field
        (part("path"), SMALL, ProblemCode.FIELD_NOT_VALID),
        (form(b"1", b"2", b"3"), SMALL, ProblemCode.TOO_MANY_IMAGES),
        (open_form(metadata="1") + form(metadata="2"), SMALL, ProblemCode.FIELD_NOT_VALID),
        (part(), ServeLimits(max_buffered_bytes=200_000), ProblemCode.QUEUE_FULL),
    ],
)
def test_a_body_without_a_length_is_refused_where_it_becomes_too_much(
    first: bytes, limits: ServeLimits, code: ProblemCode
) -> None:
    async def check() -> None:
        async with open_server(limits=limits) as client:
            headers = {"content-type": FORM_TYPE, "transfer-encoding": "chunked"}
            reply = await client.ask("POST", "/v1/predict", endless(first=first), headers=headers)
            check_problem(reply, code)
            assert reply.n_read <= 300_000 + 65_536 and reply.headers["connection"] == "close"

    run(check())


def test_bytes_that_were_refused_are_no_longer_counted() -> None:
    async def check() -> None:
        async with open_server(limits=ServeLimits(max_buffered_bytes=150_000)) as client:
            for _ in range(5):
                reply = await client.post("/v1/predict", form(bytes(100_000)))
                assert reply.status == 200
            check_problem(await client.post("/v1/predict", form(bytes(160_000))), ProblemCode.QUEUE_FULL)
            assert (await client.post("/v1/predict", form(b"1"))).status == 200

    run(check())


def test_a_slow_body_is_ended_and_a_steady_one_is_not() -> None:
    limits = ServeLimits(body_seconds=0.2, min_body_rate=1000, max_body_seconds=5)

    async def trickle(rate: float) -> AsyncIterator[bytes]:
        body = form(bytes(600))
        for start in range(0, len(body), 50):
            yield body[start : start + 50]
            await asyncio.sleep(50 / rate)

    async def check() -> None:
        async with open_server(limits=limits) as client:
            headers = {"content-type": FORM_TYPE}
            check_problem(
                await client.ask("POST", "/v1/predict", trickle(200), headers=headers), ProblemCode.TOO_SLOW
            )
            assert (await client.ask("POST", "/v1/predict", trickle(4000), headers=headers)).status == 200

    run(check())


@pytest.mark.parametrize(
    "body",
    [b"", b"--", b"no multipart at all", form(b"one")[:-10], form(b"one").replace(b"form-data", b"attachment")],
)
def test_a_broken_form_is_a_problem_of_the_request(body: bytes) -> None:
    async def check() -> None:
        async with open_server() as client:
            reply = await client.post("/v1/predict", body)
            assert reply.status in (400, 422), reply
            assert not client.worker.batches

    run(check())


def test_a_form_without_images_and_a_type_without_a_boundary_are_refused() -> None:
    async def check() -> None:
        async with open_server() as client:
            check_problem(await client.post("/v1/predict", form()), ProblemCode.FIELD_NOT_VALID)
            reply = await client.post("/v1/predict", form(b"1"), content_type="multipart/form-data")
            check_problem(reply, ProblemCode.BAD_REQUEST)

    run(check())


# The queue ----------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_answers_what_it_took() -> None:
    async def check() -> None:
        go = threading.Event()
        async with open_server(limits=ServeLimits(max_images=2, max_waiting=4)) as client:
            client.worker.wait = lambda: go.wait(30)
            waiting = [asyncio.create_task(client.post("/v1/predict", form(b"1", b"2"))) for _ in range(2)]
            while client.state.queue.n_waiting < 4:
                await asyncio.sleep(0.01)
            reply = await client.ask("POST", "/v1/predict", endless(), headers={"content-type": FORM_TYPE})
            check_problem(reply, ProblemCode.QUEUE_FULL)
            assert reply.n_read == 0 and int(reply.headers["retry-after"]) >= 1
            ready = await client.ask("GET", "/ready")
            assert (ready.status, ready.json["reasons"]) == (503, ["the queue is full"])
            assert (await client.ask("GET", "/health")).status == 200
            go.set()
            assert [(await task).status for task in waiting] == [200, 200]
            assert (await client.ask("GET", "/ready")).status == 200

    run(check())


async def gradual(body: bytes, wait: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield a body whose end comes when it may."""
    yield body[:50]
    await wait.wait()
    yield body[50:]


def test_of_requests_that_come_at_one_time_only_as_many_are_read_as_find_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def check() -> None:
        monkeypatch.setattr(limits, "_UPLOAD_SECONDS", 20.0)
        wait = asyncio.Event()
        async with open_server(limits=ServeLimits(max_images=1, max_waiting=4)) as client:
            headers = {"content-type": FORM_TYPE}

            def ask() -> asyncio.Task[Reply]:
                return asyncio.create_task(
                    client.ask("POST", "/v1/predict", gradual(form(b"1"), wait), headers=headers)
                )

            go = threading.Event()
            client.worker.wait = lambda: go.wait(30)
            tasks = [ask() for _ in range(20)]
            wait.set()
            done, _ = await asyncio.wait(tasks, timeout=5)
            while len(done) < 16:
                done, _ = await asyncio.wait(tasks, timeout=0.1)
            assert [(task.result().status, task.result().n_read) for task in done] == [(503, 0)] * 16
            go.set()
            assert sorted([(await task).status for task in tasks]) == [200] * 4 + [503] * 16

            monkeypatch.setattr(limits, "_UPLOAD_SECONDS", 0.05)
            wait.clear()
            slow = [ask() for _ in range(10)]  # uploads that take long keep nobody out
            await asyncio.sleep(0.01)
            assert (await client.post("/v1/predict", form(b"1"))).status == 200
            wait.set()
            await asyncio.wait(slow)

    run(check())


def test_images_of_several_requests_are_scored_together() -> None:
    async def check() -> None:
        go = threading.Event()
        async with open_server() as client:
            client.worker.wait = lambda: go.wait(30)
            first = asyncio.create_task(client.post("/v1/predict", form(b"0")))
            while not client.worker.batches:
                await asyncio.sleep(0.01)
            tasks = [
                first,
                *(asyncio.create_task(client.post("/v1/predict", form(b"%d" % n))) for n in range(1, 5)),
            ]
            while client.state.queue.n_waiting < 5:
                await asyncio.sleep(0.01)
            go.set()
            assert [(await task).status for task in tasks] == [200] * 5
            assert [len(batch) for batch in client.worker.batches] == [1, 4]

    run(check())


def test_a_client_that_leaves_gives_its_places_up() -> None:
    async def check() -> None:
        go = threading.Event()
        async with open_server() as client:
            client.worker.wait = lambda: go.wait(30)
            first = asyncio.create_task(client.post("/v1/predict", form(b"1")))
            while not client.worker.batches:
                await asyncio.sleep(0.01)
            request_task = asyncio.create_task(client.post("/v1/predict", form(b"2", b"3")))
            while client.state.queue.n_waiting < 3:
                await asyncio.sleep(0.01)
            request_task.cancel()
            await asyncio.wait([request_task])
            go.set()
            assert (await first).status == 200
            assert (await client.post("/v1/predict", form(b"4"))).status == 200
            assert client.worker.batches == [[b"1"], [b"4"]]

    run(check())


def test_a_server_that_stops_answers_what_it_took_and_takes_no_more() -> None:
    async def check() -> None:
        go = threading.Event()
        async with open_server() as client:
            client.worker.wait = lambda: go.wait(30)
            accepted = asyncio.create_task(client.post("/v1/predict", form(b"1")))
            while not client.worker.batches:
                await asyncio.sleep(0.01)
            stop = asyncio.create_task(client.state.queue.stop())
            await asyncio.sleep(0.05)
            check_problem(await client.post("/v1/predict", form(b"2")), ProblemCode.STOPPING)
            assert not stop.done()
            go.set()
            assert (await accepted).status == 200
            await stop
            assert not client.worker.is_alive

    run(check())


# Keys ---------------------------------------------------------------------------------------------------------------


def test_without_a_right_key_nothing_of_a_body_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, right = make_key(path, name="a", scopes=["explain"])
    wrong = right[:-4] + "AAAA"

    async def check() -> None:
        async with open_server(keys=path) as client:
            for authorization, code in (
                (None, ProblemCode.KEY_MISSING),
                ("Basic YTpi", ProblemCode.KEY_MISSING),
                ("Bearer nonsense", ProblemCode.KEY_NOT_VALID),
                (f"Bearer {wrong}", ProblemCode.KEY_NOT_VALID),
                (f"Bearer {right}", ProblemCode.SCOPE_MISSING),
            ):
                headers = {"content-type": FORM_TYPE, "content-length": str(HUGE), "authorization": authorization}
                reply = await client.ask("POST", "/v1/predict", endless(), headers=headers)
                check_problem(reply, code)
                assert reply.n_read == 0
                assert ("www-authenticate" in reply.headers) == (reply.status == 401)
            for path_of_all in ("/health", "/ready", "/openapi.json"):
                assert (await client.ask("GET", path_of_all)).status == 200
            assert (await client.ask("GET", "/metrics")).status == 401

    run(check())


# Errors, logs, records ----------------------------------------------------------------------------------------------


def test_a_fault_is_a_problem_without_a_traceback_and_the_log_has_no_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Recorder:
        field_names = ()

        def watch(self, registry: object) -> None:
            raise AssertionError(f"without a process nothing is measured: {registry}")

        def reasons_not_ready(self) -> list[str]:
            return []

        def check_fields(self, fields: object, n_images: int) -> None:
            assert fields is not None and n_images

        async def record(self, record: PredictionRecord) -> None:
            raise OSError(f"/srv/jane/secret.db is full: {record}")

        async def record_explain(self, record: ExplainRecord) -> None:
            raise OSError(f"/srv/jane/secret.db is full: {record}")

    caplog.set_level(logging.INFO)
    recorder: PredictionRecorder = Recorder()

    async def check() -> None:
        async with open_server(recorder=recorder) as client:
            check_problem(await client.post("/v1/predict", form(b"1")), ProblemCode.NOT_LOGGED)

        class Broken(QuickWorker):
            def run(self, jobs: Any, deliver: Any) -> None:
                raise RuntimeError(f"/srv/jane/lesion.jpg {jobs} {deliver}")

        async with open_server(worker=Broken()) as client:
            check_problem(await client.post("/v1/predict", form(b"1")), ProblemCode.FAULT)
        async with open_server() as client:
            client.state.queue = None  # type: ignore[assignment]
            check_problem(await client.post("/v1/predict", form(b"1")), ProblemCode.FAULT)
            await client.ask("GET", "/Jane?key=dk_1")

    run(check())
    assert "jane" not in caplog.text.lower() and "dk_1" not in caplog.text


def test_every_prediction_is_recorded_before_it_is_given(tmp_path: Path) -> None:
    path, records = tmp_path / "keys.json", list[PredictionRecord]()
    key, text = make_key(path, name="a", scopes=["predict"])

    class Recorder:
        field_names = ("device",)

        def watch(self, registry: object) -> None:
            raise AssertionError(f"without a process nothing is measured: {registry}")

        def reasons_not_ready(self) -> list[str]:
            return []

        def check_fields(self, fields: object, n_images: int) -> None:
            assert fields is not None and n_images

        async def record(self, record: PredictionRecord) -> None:
            records.append(record)

        async def record_explain(self, record: ExplainRecord) -> None:
            raise AssertionError(f"no heat map was asked for: {record}")

    async def check() -> None:
        async with open_server(keys=path, recorder=Recorder()) as client:
            body = form(b"1", b"broken", device="X100")
            reply = await client.post("/v1/predict", body, authorization=f"Bearer {text}")
            (record,) = records
            assert record.answer.model_dump() == reply.json
            assert (record.key_id, record.fields, record.metadata) == (key.id, {"device": "X100"}, ({}, {}))
            check_problem(
                await client.post("/v1/predict", form(b"broken"), authorization=f"Bearer {text}"),
                ProblemCode.IMAGE_REFUSED,
            )
            assert len(records) == 2

    run(check())


# Metadata -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ('{"age": 55, "sex": "female"}', True),
        ('[{"age": "55", "site": null}]', True),
        ("[]", False),
        ("[1]", False),
        ('[{"age": 55}, {"age": 5}]', False),
        ('{"age": "old"}', False),
        ('{"sex": 1}', False),
        ('{"sex": "1"}', False),
        ('{"weight": 1}', False),
        ('{"site": "a\\u0000b"}', False),
        ("{", False),
        ("[" * 5000, False),
    ],
)
def test_metadata_are_checked_before_anything_is_scored(text: str, is_taken: bool) -> None:
    async def check() -> None:
        async with open_server(facts={"metadata_fields": ["age", "sex", "site"]}) as client:
            reply = await client.post("/v1/predict", form(b"1", metadata=text))
            assert reply.status == (200 if is_taken else 422), reply
        async with open_server() as client:
            check_problem(await client.post("/v1/predict", form(b"1", metadata=text)), ProblemCode.FIELD_NOT_VALID)

    run(check())


@pytest.mark.parametrize(
    "fields", [{"class_name": "wart"}, {"against": "wart"}, {"class_name": "nevus", "against": "nevus"}]
)
def test_explain_takes_one_image_and_classes_of_the_model(fields: dict[str, str]) -> None:
    async def check() -> None:
        async with open_server() as client:
            body = form(b"1", field_name="image", **fields)
            check_problem(await client.post("/v1/explain", body), ProblemCode.FIELD_NOT_VALID)
            check_problem(await client.post("/v1/explain", form(b"1", b"2")), ProblemCode.FIELD_NOT_VALID)
            check_problem(await client.post("/v1/explain", form(b"1")), ProblemCode.NOT_SUPPORTED)

    run(check())


# What is said about the API -----------------------------------------------------------------------------------------


def test_openapi_has_the_closed_set_of_problems_and_no_page_is_loaded_from_elsewhere() -> None:
    async def check() -> None:
        async with open_server() as client:
            document = (await client.ask("GET", "/openapi.json")).json
            operation = document["paths"]["/v1/predict"]["post"]
            codes = {
                code
                for response in operation["responses"].values()
                for media in response.get("content", {}).values()
                for code in media.get("examples", {})
            }
            assert codes == {code.value for code in ProblemCode}
            assert "multipart/form-data" in operation["requestBody"]["content"]
            assert "http" not in json.dumps(document["paths"]).replace("HTTP", "")

    run(check())


def test_every_code_has_a_kind() -> None:
    assert set(PROBLEM_KINDS) == set(ProblemCode)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "lesions.example.org", "", "8.8.8.8"])  # noqa: S104
def test_a_public_host_needs_keys(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no API keys"):
        ServeSettings(model=Path("m"), host=host)
    with pytest.raises(UsageError, match="no API keys"):
        ServeSettings(model=Path("m"), host=host, allowed_hosts=("localhost",))
    names = ("lesions.example.org",)
    settings = ServeSettings(model=Path("m"), host=host, keys=tmp_path / "k", allowed_hosts=names)
    assert "lesions.example.org" in settings.trusted_hosts


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_this_machine_alone_needs_none(host: str) -> None:
    assert ServeSettings(model=Path("m"), host=host).trusted_hosts >= {"localhost"}


def test_limits_that_refuse_everything_are_refused() -> None:
    with pytest.raises(UsageError, match="max_waiting"):
        ServeLimits(max_images=9, max_waiting=8)
    with pytest.raises(UsageError, match="not above 0"):
        ServeLimits(max_images=0)
