"""axe-core and a browser over every page: `pytest -m slow tests/test_pages_in_browser.py`.

The browser is the system's Chromium or Chrome, or the one of CHROMIUM; nothing is fetched.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from dermkit.recipes.schema import Recipe
from sample_pages import make_long_pages, make_quick_pages
from test_pages import SOUND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PHONE, DESK = 390, 1280
HIGHEST = 5_000  # pixels of an unfolded page on a desk

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    """Return a tab of a browser without a window."""
    browser_path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.fail("no browser: install chromium, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, trained: Path, binary: Path, tiny: Recipe) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {**make_quick_pages(folder, trained, binary), **make_long_pages(folder, trained, binary, tiny)}


def violations(tab: Page) -> list[str]:
    """Return what axe-core finds on the open page: rule, weight, first element."""
    entries: list[dict[str, Any]] = Axe().run(tab).response["violations"]
    return [f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}" for one in entries]


def open_page(tab: Page, path: Path, width: int, *, unfolded: bool) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(path.resolve().as_uri())
    if unfolded:
        tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")


def test_axe_finds_nothing_on_any_page_folded_and_unfolded(tab: Page, pages: dict[str, Path]) -> None:
    problems_by_view = {}
    for name, path in pages.items():
        for width, unfolded in ((PHONE, False), (DESK, False), (DESK, True)):
            open_page(tab, path, width, unfolded=unfolded)
            if problems := violations(tab):
                problems_by_view[name, width, unfolded] = problems
    assert problems_by_view == {}


def test_no_page_scrolls_sideways_on_a_phone_or_is_endless_on_a_desk(tab: Page, pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        for unfolded in (False, True):
            open_page(tab, path, PHONE, unfolded=unfolded)
            width = tab.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE, f"{name} is {width} pixels wide{', unfolded' if unfolded else ''}"
        open_page(tab, path, DESK, unfolded=False)
        height = tab.evaluate("document.documentElement.scrollHeight")
        assert height <= HIGHEST, f"{name} is {height} pixels high"


def test_a_planted_fault_is_found(tab: Page, tmp_path: Path) -> None:
    for number, (old, new, rule) in enumerate(
        [(' alt="a chart"', "", "image-alt"), ("<h2>", '<h2 style="color: #ddd">', "color-contrast")]
    ):
        page = tmp_path / f"{number}.html"
        page.write_text(SOUND, encoding="utf-8")
        open_page(tab, page, DESK, unfolded=False)
        assert violations(tab) == []
        page.write_text(SOUND.replace(old, new), encoding="utf-8")
        open_page(tab, page, DESK, unfolded=False)
        assert any(one.startswith(rule) for one in violations(tab))
