"""Requests that nobody thought of: whatever is sent, the server answers in JSON, and never that it is at fault."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corner_net import save_corner_model
from dermkit.serving.problems import PROBLEM_TYPE, ProblemCode
from dermkit.serving.rules import API_RULES
from server_parts import BOUNDARY, FORM_TYPE, Reply, form, open_server, photo, run

PATHS = [rule.path for rule in API_RULES]
HEADER_NAMES = [
    "content-type", "content-length", "transfer-encoding", "host", "origin", "authorization", "expect", "cookie",
    "x-forwarded-for", "sec-fetch-site", "sec-fetch-mode", "content-encoding", "accept", "upgrade",
]  # fmt: skip
HEADER_VALUES = st.one_of(
    st.sampled_from(
        ["", "0", "5", "chunked", "localhost", FORM_TYPE, "multipart/form-data", "Bearer dk_1", "gzip"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40),
)
PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([
        b"--" + BOUNDARY, b"\r\n", b"\r\n\r\n", b"--", form(b"1"), form(metadata="{}"), photo(),
        b'Content-Disposition: form-data; name="images"', b'Content-Disposition: form-data; name="metadata"',
    ]),
)  # fmt: skip


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., Reply]]:
    """Return a function that asks one server, on one event loop."""
    with asyncio.Runner() as runner:
        context = open_server()
        client = runner.run(context.__aenter__())
        yield lambda *args, **headers: runner.run(client.ask(*args, **headers))
        runner.run(context.__aexit__(None, None, None))


@settings(max_examples=150)
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS"]),
    path=st.one_of(st.sampled_from(PATHS), st.text(max_size=20).map(lambda text: f"/{text}")),
    headers=st.dictionaries(st.sampled_from(HEADER_NAMES), HEADER_VALUES, max_size=4),
    pieces=st.lists(PIECES, max_size=8),
)
def test_any_request_has_an_answer(
    ask: Callable[..., Reply], method: str, path: str, headers: dict[str, str], pieces: list[bytes]
) -> None:
    encodable = {name: value for name, value in headers.items() if value.isascii()}
    reply = ask(method, path, pieces, headers={"content-type": FORM_TYPE, **encodable})
    assert 200 <= reply.status < 500 or reply.status == 501
    if reply.status >= 400:
        assert reply.headers["content-type"] == PROBLEM_TYPE
        assert json.loads(reply.body)["code"] in set(ProblemCode)
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_an_image_is_held_in_memory_and_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a temporary file")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(f"tempfile.{name}", refuse)

    async def check() -> None:
        async with open_server() as client:
            assert (await client.post("/v1/predict", form(bytes(5_000_000)))).status == 200

    run(check())


STATUSES = [400, 401, 403, 404, 405, 408, 413, 415, 421, 422, 431]
"""What a wrong request may get; 413 is none of those that schemathesis expects by itself."""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the command is ended as POSIX does")
def test_requests_drawn_from_the_description_find_no_failure(tmp_path: Path) -> None:
    """20,000 cases: 5,000 examples a path that takes a body, and those of the others."""
    command = [
        sys.executable,
        "-m",
        "dermkit.cli",
        "serve",
        str(save_corner_model(tmp_path / "model")),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = next(match[1] for line in server.stdout if (match := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        count = os.environ.get("DERMKIT_CAMPAIGN_COUNT", "5000")
        # Drawn bytes are no images and drawn words no classes, so that valid requests are refused.
        options = ["--max-examples", count, "--exclude-checks", "positive_data_acceptance", "--no-color"]
        checks = f"[checks.negative_data_rejection]\nexpected-statuses = {[str(one) for one in STATUSES]}\n"
        (tmp_path / "schemathesis.toml").write_text(checks)
        url = f"http://127.0.0.1:{port}/openapi.json"
        result = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", url, *options],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        server.terminate()
    assert result.returncode == 0, result.stdout[-5000:]
