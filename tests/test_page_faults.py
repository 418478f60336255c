"""What goes wrong with the server's page, in a browser: hostile names, problems, a server that is away, API keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser_pages import (
    OpenPage,
    ServerProcess,
    add,
    change_answers,
    drop,
    serve_page,
    texts,
    wait_until_done,
    write_picture,
)

pytestmark = pytest.mark.slow


def test_hostile_names_are_text(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    payloads = [
        "<img src=x onerror=alert(1)>.png",
        '"><svg onload=alert(2)>.png',
        "javascript:alert(3).png",
        "=cmd|' C calc'!A0.png",
    ]
    data = (pictures / "lesion-0.png").read_bytes()

    def poison(document: dict[str, Any]) -> None:
        one = document["images"][0]
        evil = "<img src=x onerror=alert(4)>"
        one["classes"][0]["name"] = one["predicted"] = one["decisions"]["predicted"] = evil
        one["decisions"]["prediction_set"] = [evil]
        one["notes"] = ["<svg onload=alert(5)>"]
        document["operating_point"] = "<b onmouseover=alert(6)>"

    change_answers(page, poison)
    drop(page, [(name, data) for name in payloads])
    wait_until_done(page, len(payloads))
    assert texts(page, ".image-name") == payloads
    assert "<img src=x onerror=alert(4)>" in page.inner_text(".headline .class")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    n_elements = page.eval_on_selector_all(
        "#answer *, #print-pages *, #image-list *",
        "all => all.filter((one) => one.matches('script, [onload], img[src=x], [onerror], [onmouseover]')).length",
    )
    assert n_elements == 0 and dialogs == []


def test_a_hostile_model_card_is_text(open_page: OpenPage) -> None:
    page = open_page(is_ready=False)
    evil = "<img src=x onerror=alert(1)>"

    def poison(document: dict[str, Any]) -> None:
        document["card"] = f"# {evil}\n\n**{evil}**\n\n| {evil} |\n|---|\n| `{evil}` |\n\n- {evil}"
        document["warnings"] = [evil]
        document["model"]["name"] = evil

    change_answers(page, poison, "**/v1/model")
    page.reload()
    page.click("#open-model-card:enabled")
    assert page.inner_text("#card-body").count(evil) >= 5
    assert page.locator("#card-body img").count() == 0


def problem(code: str, status: int, **headers: str) -> dict[str, Any]:
    document = {
        "type": "",
        "title": code,
        "status": status,
        "code": code,
        "detail": "what exactly",
        "request_id": "ab12",
    }
    return {"status": status, "json": document, "headers": {"content-type": "application/problem+json", **headers}}


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("fault", 500, "The server made an error"),
        ("field_not_valid", 422, "A value was not accepted"),
        ("host_not_allowed", 421, "not known by this name"),
        ("of_a_later_version", 418, "does not know (of_a_later_version)"),
    ],
)
def test_a_problem_is_said_with_what_to_do_and_can_be_tried_again(
    open_page: OpenPage, pictures: Path, code: str, status: int, words: str
) -> None:
    page = open_page()
    page.route("**/v1/predict", lambda route: route.fulfill(**problem(code, status)))
    add(page, pictures / "lesion-0.png")
    text = page.inner_text(".problem")
    assert words in text and "what exactly" in text and "Request ab12" in text
    if page.locator("#retry-image").count():
        page.unroute("**/v1/predict")
        page.click("#retry-image")
        page.wait_for_selector(".headline", timeout=60_000)


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(open_page: OpenPage, pictures: Path) -> None:
    page = open_page()
    n_asked = [0]

    def answer(route: Any) -> None:
        n_asked[0] += 1
        route.fulfill(**problem("queue_full", 503, **{"Retry-After": "1"})) if n_asked[
            0
        ] < 3 else route.continue_()

    page.route("**/v1/predict", answer)
    page.set_input_files("#image-files", str(pictures / "lesion-0.png"))
    page.wait_for_selector("text=The server is busy")
    page.wait_for_selector(".headline", timeout=60_000)
    assert n_asked[0] == 3


def test_a_file_that_is_gone_is_told_from_a_server_that_is_away(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page()
    page.evaluate(
        "() => { Blob.prototype.arrayBuffer = async () => { throw new DOMException('gone', 'NotFoundError'); }; }"
    )
    page.route("**/v1/predict", lambda route: route.abort())
    add(page, write_picture(tmp_path / "one.png"))
    assert "The file cannot be read any more" in page.inner_text(".problem")


def test_an_image_above_the_limit_is_not_sent(open_page: OpenPage, pictures: Path) -> None:
    page = open_page(is_ready=False)
    change_answers(page, lambda document: document["limits"].update(max_image_bytes=10), "**/v1/model")
    page.reload()
    page.wait_for_selector("#open-model-card:enabled")
    n_asked: list[str] = []
    page.on("request", lambda request: n_asked.append(request.url) if "predict" in request.url else None)
    add(page, pictures / "lesion-0.png")
    assert n_asked == []
    assert "larger than this server takes" in page.inner_text(".problem")


def test_files_come_with_hashes_and_are_not_sent_twice(open_page: OpenPage, server: ServerProcess) -> None:
    page = open_page()
    statuses: list[int] = []
    page.on("response", lambda response: statuses.append(response.status) if "/page/" in response.url else None)
    first = page.request.get(f"{server.url}/page/main.js")
    etag = first.headers["etag"]
    again = page.request.get(f"{server.url}/page/main.js", headers={"If-None-Match": etag})
    assert (first.status, again.status, again.body()) == (200, 304, b"")
    assert page.request.get(f"{server.url}/page/../server.py").status == 404
    assert page.request.get(f"{server.url}/page/%2e%2e%2fserver.py").status == 404
    policy = first.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    assert page.request.head(f"{server.url}/").status == 200


def test_a_server_that_is_away_is_said_and_found_again(browser: Any, trained: Path, pictures: Path) -> None:
    with serve_page(trained) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#open-model-card:enabled")
        server.stop()
        page.set_input_files("#image-files", str(pictures / "lesion-0.png"))
        page.wait_for_selector("#connection:has-text('The server does not answer')", timeout=30_000)
        assert "Waits" in page.inner_text(".image-item")
        server.start()
        page.wait_for_selector(".headline", timeout=60_000)
        assert page.locator("#connection").is_hidden()
        page.close()


def test_a_server_with_keys_asks_for_one_and_it_is_kept_in_memory_alone(
    browser: Any, trained: Path, pictures: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    n_elements = cli("keys", "make", "keys.json", "--name", "page")
    assert n_elements.returncode == 0, n_elements.stderr
    key = n_elements.stdout.strip()
    with serve_page(trained, "--keys", str(tmp_path / "keys.json")) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-input", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-message:has-text('does not take this API key')")
        page.fill("#key-input", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#open-model-card:enabled")
        add(page, pictures / "lesion-0.png")
        page.wait_for_selector(".headline")
        assert page.input_value("#key-input") == ""
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        page.wait_for_selector("#key-dialog[open]")
        page.close()
