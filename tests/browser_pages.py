"""Parts for tests of the server's page in a browser: fixtures, a server process, pictures, and steps."""

import io
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 860}
_START_SECONDS = 300
OpenPage = Callable[..., Any]


def find_browser() -> str:
    """Return the path of a Chromium: that of CHROMIUM, or the system's; skips the test where there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium here: install one, or name one in CHROMIUM")
    return path


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser without a window whose camera shows a moving picture."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        yield browser
        browser.close()


class ServerProcess:
    """`dermkit serve` in a process of its own; `start` may be called again on the same port after `stop`."""

    def __init__(self, model: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "dermkit.cli", "serve", str(model), "--workers", "1", *options]
        self.url, self.lines = "", list[str]()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        port = re.sub(r".*:", "", self.url) or "0"
        self._process = subprocess.Popen(
            [*self._command, "--port", port], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        is_up = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process, is_up), daemon=True)
        self._reader.start()
        assert is_up.wait(_START_SECONDS) and self._process.poll() is None, "\n".join(self.lines)

    def _read(self, process: "subprocess.Popen[str]", is_up: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line.rstrip())
                if match := re.search(r"serving .* on (http://\S+)", line):
                    self.url = match[1]
                    is_up.set()
        is_up.set()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reader.join()
            self._process = None


@contextmanager
def serve_page(model: Path, *options: str) -> Iterator[ServerProcess]:
    """Yield a server of a model, with its page."""
    server = ServerProcess(model, *options)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def write_picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (96, 72)) -> Path:
    """Write a picture of a dark spot on light skin, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_spot(seed, size).save(path)
    return path


def picture_bytes() -> bytes:
    """Return such a picture as a PNG file."""
    stream = io.BytesIO()
    draw_spot(0, (96, 72)).save(stream, "PNG")
    return stream.getvalue()


def draw_spot(seed: int, size: tuple[int, int]) -> Image.Image:
    """Return a picture of a dark spot on light skin, with noise."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    is_spot = ((x - width / 2) / (width / 4)) ** 2 + ((y - height / 2) / (height / 4)) ** 2 < 1
    clean = np.where(is_spot[..., None], (110, 70, 50), (225, 185, 165))
    pixels = clean + np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# Fixtures and steps -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[ServerProcess]:
    pytest.importorskip("uvicorn", reason="the packages of the server are not installed")
    with serve_page(trained, "--target", "sensitivity=0.95") as one:
        yield one


@pytest.fixture
def open_page(browser: Any, server: ServerProcess) -> Iterator[OpenPage]:
    """Return a function that opens the page; the test fails where the page raised, or asked another machine."""
    contexts, faults = [], []

    def open_it(url: str = "", *, is_ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Security Policy" in line.text else None)
        page.on("request", lambda request: faults.extend(foreign_addresses(request.url, url or server.url)))
        page.goto(url or server.url)
        if is_ready:
            page.wait_for_selector("#open-model-card:enabled")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert faults == []


def foreign_addresses(request_url: str, page_url: str) -> list[str]:
    """Return the address of a request that leaves the server and the browser."""
    is_here = request_url.startswith((page_url, "blob:", "data:"))
    return [] if is_here else [f"asked {request_url}"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures: three that can be scored, and one file that is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        write_picture(folder / f"lesion-{number}.png", seed=number)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    return folder


def add(page: Any, *paths: Path) -> None:
    """Choose files, and wait until each is done with."""
    n = page.locator(".image-item").count() + len(paths)
    page.set_input_files("#image-files", [str(path) for path in paths])
    wait_until_done(page, n)


def wait_until_done(page: Any, n: int) -> None:
    """Wait until there are `n` images, and each is done with."""
    page.wait_for_selector(f"#image-list > li:nth-child({n})")
    page.wait_for_selector("#queue-progress", state="hidden", timeout=120_000)


def texts(page: Any, selector: str) -> list[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in page.locator(selector).all_text_contents()]


def drop(page: Any, files: list[tuple[str, bytes]], target: str = "body") -> None:
    """Drop files onto the page, as a file manager does."""
    page.evaluate(
        """([files, target]) => {
          const transfer = new DataTransfer();
          for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
          for (const type of ["dragenter", "dragover", "drop"])
            document.querySelector(target).dispatchEvent(
              new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        [[[name, list(data)] for name, data in files], target],
    )


def change_answers(page: Any, change: Callable[[dict[str, Any]], object], path: str = "**/v1/predict") -> None:
    """Let the page see the real server's answers with a change; those to images are all about one made picture.

    A browser does not show the files of a request to who intercepts it, so the picture is sent anew.
    """

    def answer(route: Any) -> None:
        url = route.request.url
        picture = {"name": "image", "mimeType": "image/png", "buffer": picture_bytes()}
        is_predict = url.endswith("/predict")
        response = page.request.post(url, multipart={"images": picture}) if is_predict else page.request.get(url)
        document = response.json()
        change(document)
        route.fulfill(status=response.status, json=document)

    page.route(path, answer)
