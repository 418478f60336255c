"""A hundred hostile texts through report, log, CSV, headers and page: none is live. Thirty identities: in no file."""

import base64
import csv
import io
import json
import logging
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from browser_pages import (
    OpenPage,
    browser,
    change_answers,
    draw_spot,
    drop,
    open_page,
    pictures,
    server,
    wait_until_done,
)
from conftest import Cli
from corner_net import save_corner_model
from dermkit.prediction_log.export import export_log
from dermkit.prediction_log.read import read_log
from dermkit.prediction_log.writer import open_log
from dermkit.reporting.report import write_report
from dermkit.runs.layout import RUN
from hostile_texts import FILE_NAME, PAYLOADS, identity_texts, jpeg_of_somebody, png_of_somebody
from server_parts import FORM_TYPE, form, open_server, run
from test_dicom import IDENTITY, dicom, photo
from test_report import Page, make_run
from test_serving_log import logging_server, send_outcomes

__all__ = ["browser", "open_page", "pictures", "server"]  # fixtures

SAFE_TYPES = ("application/json", "application/problem+json", "text/plain; version=0.0.4; charset=utf-8")


def is_formula(cell: str) -> bool:
    """Return whether a spreadsheet may take a cell, or what follows a semicolon in it, for a formula."""
    try:
        float(cell)
    except ValueError:
        return any(re.match(r"\s*[=+\-@]", part) for part in cell.split(";"))
    return False


def test_there_are_a_hundred_of_them_and_thirty_identities() -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 100
    assert len(set(identity_texts(IDENTITY))) >= 30
    assert is_formula("=1+1") and is_formula("x; @y") and not is_formula("'=1+1") and not is_formula("-1.5")


# Report -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_shows_each_and_has_the_tags_that_it_has_without(tmp_path: Path) -> None:
    run_folder = make_run(tmp_path, ("nevus", "melanoma"))
    facts = RUN.read(run_folder)

    def tags(texts: list[str], note: str) -> tuple[list[Any], str]:
        RUN.write(run_folder, {**facts, "warnings": texts, "dataset": {**facts["dataset"], "name": note}})
        (run_folder / "NEXT_STEPS.txt").write_text("\n".join(texts))
        page = Page(write_report(run_folder))
        return [(tag, sorted(found)) for tag, found in page.tags], page.text

    plain, _ = tags([f"warning {number}" for number in range(len(PAYLOADS))], "plain")
    hostile, text = tags(PAYLOADS, PAYLOADS[0])
    assert hostile == plain
    assert sum(payload in text for payload in PAYLOADS) >= 85, "they are shown as they are; others with escapes"


# Log and CSV ------------------------------------------------------------------------------------------------------


def test_the_log_takes_each_as_text_and_its_csv_has_no_formula(tmp_path: Path) -> None:
    path = str(tmp_path / "log.sqlite")

    async def main() -> list[int]:
        statuses = []
        with open_log(path) as log:
            async with logging_server(log) as client:
                for number, payload in enumerate(PAYLOADS):
                    body = form(
                        str(number).encode(), groups=json.dumps({"site": payload[:64], "device": payload[:64]})
                    )
                    reply = await client.post("/v1/predict", body)
                    assert reply.status in (200, 422), payload
                    statuses.append(reply.status)
                    if reply.status == 200:
                        outcome = {"prediction_id": reply.json["images"][0]["prediction_id"], "diagnosis": payload,
                                   "source": payload, "time": "2026-12-01"}  # fmt: skip
                        assert (await send_outcomes(client, [outcome])).status in (200, 422)
                        fields = form(str(number).encode(), metadata=payload)
                        assert (await client.post("/v1/predict", fields)).status in (200, 422)
        return statuses

    statuses = run(main())
    assert statuses.count(200) >= 80 and statuses.count(422) >= 10, "texts with control characters are refused"
    sites = [logged.row.site for logged in read_log(path) if logged.row.site]
    assert sites == [payload[:64] for payload, status in zip(PAYLOADS, statuses, strict=True) if status == 200]
    export_log(path, tmp_path / "log.csv")
    text = (tmp_path / "log.csv").read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) >= 80 and {len(row) for row in rows} == {len(rows[0])}
    assert [cell for row in rows for cell in row.values() if is_formula(cell)] == []


# Headers ----------------------------------------------------------------------------------------------------------

NAMES = ("host", "origin", "authorization", "cookie", "x-request-id", "x-forwarded-for", "content-type", "referer")


def test_no_header_comes_back_and_nothing_is_a_page(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with open_server() as client:
            for number, payload in enumerate(PAYLOADS):
                name = NAMES[number % len(NAMES)]
                for path in ("/v1/predict", "/v1/model", f"/{payload}", f"/v1/{payload}"):
                    headers = {"content-type": FORM_TYPE, name: payload}
                    body = [form(b"1", metadata=payload)] if path == "/v1/predict" else []
                    reply = await client.ask("POST" if body else "GET", path, body, headers=headers)
                    assert reply.status < 500, payload
                    assert reply.headers["content-type"] in SAFE_TYPES
                    assert reply.headers["x-content-type-options"] == "nosniff"
                    assert all(
                        payload not in value and not re.search(r"[\r\n\x00]", value)
                        for value in reply.headers.values()
                    )
                    assert {"set-cookie", "location", "x-evil"} & reply.headers.keys() == set()

    run(main())
    assert [payload for payload in PAYLOADS if len(payload) > 6 and payload in caplog.text] == []


# Page -------------------------------------------------------------------------------------------------------------

LIVE = """() => {
  // Attributes that a browser fetches, runs or goes to; a title or a label is a text, whatever it says.
  const live = ['src', 'srcset', 'srcdoc', 'href', 'xlink:href', 'action', 'formaction', 'data', 'poster', 'ping',
    'background', 'style'];
  return [...document.querySelectorAll('*')].filter((element) =>
    [...element.attributes].some((attribute) => attribute.name.startsWith('on') || live.includes(attribute.name) &&
      /^\\s*(javascript|vbscript|data:text)|evil\\.example/i.test(attribute.value))
    || element.matches('script:not([src]), iframe, object, embed, base, marquee, math'))
    .map((element) => element.outerHTML);
}"""


@pytest.mark.slow
def test_the_page_shows_each_and_none_is_live(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    dialogs: list[str] = []

    def note(dialog: Any) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    count = [0]

    def poison(document: dict[str, Any]) -> None:
        evil = PAYLOADS[count[0] % len(PAYLOADS)]
        count[0] += 1
        one = document["images"][0]
        one["classes"][0]["name"] = one["predicted"] = one["decisions"]["predicted"] = evil
        one["decisions"]["prediction_set"], one["notes"] = [evil], [evil]
        document["operating_point"], document["warnings"] = evil, [evil]

    change_answers(page, poison)
    data = (pictures / "lesion-0.png").read_bytes()
    names = [f"{payload.replace('/', ':')}.png" for payload in PAYLOADS]
    for start in range(0, len(names), 20):
        drop(page, [(name, data) for name in names[start : start + 20]])
        wait_until_done(page, min(start + 20, len(names)))
    assert count[0] >= len(PAYLOADS)
    for number in range(0, len(names), 9):  # each shows its answer when it is chosen
        page.locator("#image-list > li").nth(number).locator("button").first.click()
        assert page.evaluate(LIVE) == []
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(LIVE) == [] and dialogs == []
    with page.expect_download() as download:
        page.click("#export-csv")
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == len(PAYLOADS)
    cells = [cell for row in rows for cell in row.values() if cell]
    assert [cell for cell in cells if re.match(r"[=+\-@\t\r]", cell) and not _is_number(cell)] == []


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell) is not None


# Identities -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the command is ended as POSIX does")
def test_no_identity_is_in_a_file_that_is_written(tmp_path: Path, cli: Cli) -> None:
    """Through `dermkit serve` with a log, its CSV, heat maps, and `dermkit predict` on files of neutral names."""
    spot = draw_spot(0, (96, 72))
    images = {
        "one.jpg": jpeg_of_somebody(spot),
        "two.png": png_of_somebody(spot),
        "three.dcm": dicom(photo((96, 72))),
    }
    planted = identity_texts(IDENTITY)
    hidden = b"".join(images.values())
    absent = [text for text in planted if text.encode() not in hidden and text != FILE_NAME]
    assert absent == [], "each is in an image"
    model, source, written = tmp_path / "model", tmp_path / "source", tmp_path / "written"
    source.mkdir()
    written.mkdir()
    save_corner_model(model)
    for name, data in images.items():
        (source / name).write_bytes(data)
    answers = ask_server(model, written, images)
    assert cli("predict", str(model), str(source), "--out", str(written / "predicted")).returncode in (0, 7)
    assert cli("log", "export", str(written / "log.sqlite"), "--out", str(written / "log.csv")).returncode == 0
    files = [path for path in written.rglob("*") if path.is_file()]
    assert {"log.sqlite", "log.csv", "server.txt"} <= {path.name for path in files}
    content = {str(path): path.read_bytes() for path in files} | {"answers": answers}
    faults = [
        (name, text) for name, data in content.items() for text in planted
        for encoding in ("utf-8", "utf-16-le", "utf-16-be") if text.encode(encoding) in data
    ]  # fmt: skip
    assert faults == []
    sys.stdout.write(f"{len(planted)} identities, {len(content)} files, {len(faults)} found\n")


def ask_server(model: Path, folder: Path, images: dict[str, bytes]) -> bytes:
    """Score and explain each image by a server that writes a log into a folder; returns all answers, decoded."""
    answers = b""
    with (folder / "server.txt").open("w") as stream:
        command = [sys.executable, "-m", "dermkit.cli", "serve", str(model), "--port", "0", "--log", "log.sqlite"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, cwd=folder)
        assert process.stdout is not None
        lines = (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in process.stdout)
        port = next(match[1] for match in lines if match)
        try:
            for name, data in images.items():
                for route, field in (("predict", "images"), ("explain", "image")):
                    answer = post(f"http://127.0.0.1:{port}/v1/{route}", field, f"{FILE_NAME}-{name}", data)
                    answers += json.dumps(answer).encode()
                    for part in ("heat_map_png", "picture_jpeg"):
                        answers += base64.b64decode(answer.get(part, ""))
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()
    return answers


def post(url: str, field: str, name: str, data: bytes) -> dict[str, Any]:
    """Send a file of a name in a form, and return the answer."""
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310  a loopback address
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:  # noqa: S310
            answer: dict[str, Any] = json.load(reply)
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error
    return answer
