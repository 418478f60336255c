"""Every page can be read by ear, by keyboard and on a phone, as far as that can be told without a browser."""

import re
from pathlib import Path

import pytest

import dermkit.render as render_package
from dermkit.render import style as chart_style
from page_checks import (
    SMALLEST_CONTRAST,
    SMALLEST_GRAPHIC_CONTRAST,
    contrast,
    contrast_problems,
    page_problems,
)
from sample_pages import make_quick_pages

TEMPLATES = sorted((Path(str(render_package.__file__)).parent / "templates").glob("*.j2"))
SOUND = """<!doctype html><html lang="en"><head><title>A page</title>
<meta name="viewport" content="width=device-width"></head><body><main><h1 id="a">A page</h1><h2>Part</h2>
<img src="data:," alt="a chart"><a href="#a">up</a>
<div class="scroll" tabindex="0" role="group" aria-label="Table"><table><tr><th scope="row">n</th><td>3</td></tr></table></div>
<label>Name <input></label></main></body></html>"""  # noqa: E501


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, trained: Path, binary: Path) -> dict[str, Path]:
    return make_quick_pages(tmp_path_factory.mktemp("pages"), trained, binary)


def test_every_page_can_be_read_by_ear_and_by_keyboard(pages: dict[str, Path]) -> None:
    problems = {name: page_problems(path.read_text(encoding="utf-8")) for name, path in pages.items()}
    assert {name: found for name, found in problems.items() if found} == {}


def test_every_page_says_what_it_is_not_for_and_loads_nothing(pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        page = path.read_text(encoding="utf-8")
        assert "Research use only. Not a medical device." in page, name
        assert "default-src 'none'" in page and "<script" not in page, name
        assert path.stat().st_size < 5e6, name


def test_text_stands_out_from_its_ground_on_every_page(pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        (style,) = re.findall(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert contrast_problems(style) == [], name


def test_the_colours_of_warnings_and_charts_stand_out() -> None:
    style = (TEMPLATES[0].parent / "base.html.j2").read_text(encoding="utf-8")
    colour = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", style))
    for text, ground in (
        ("ink", "serious-ground"), ("ink", "note-ground"), ("serious", "serious-ground"), ("note", "note-ground"),
        ("soft", "ground"), ("accent", "ground"),
    ):  # fmt: skip
        assert contrast(colour[text], colour[ground]) >= SMALLEST_CONTRAST, (text, ground)
    for one in (chart_style.TRAIN_COLOUR, chart_style.VALIDATION_COLOUR, chart_style.TEST_COLOUR):
        assert contrast(one, "#ffffff") >= SMALLEST_GRAPHIC_CONTRAST, one


def test_templates_whose_parts_few_pages_show_keep_the_same_rules() -> None:
    """A folded table of a rare case is in no page above; its markup is read in the template."""
    for path in TEMPLATES:
        text = re.sub(r"{#.*?#}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"<th(?![^>]*scope=)(?=[ >])[^>]*>", text), f"{path.name}: a <th> without scope"
        assert not re.findall(r"<th[^>]*></th>", text), f"{path.name}: an empty <th>"
        assert not re.findall(r"<img(?![^>]*alt=)[^>]*>", text), f"{path.name}: a picture without a text"
        bare = re.findall(r'(?<!sideways">)<table(?! class="(?:forests|key)")[^>]*>', text)
        assert not bare, f"{path.name}: {bare} may be wider than a phone"


def test_a_sound_page_has_no_problem() -> None:
    assert page_problems(SOUND) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (' lang="en"', "", "no language"),
        ("<title>A page</title>", "<title> </title>", "no title"),
        ('<meta name="viewport" content="width=device-width">', "", "a phone"),
        ("<main>", "<div>", "0 <main>"),
        ("<h1 ", "<h1>Two</h1><h1 ", "2 <h1>"),
        ("<h2>Part</h2>", "<h3>Part</h3>", "<h3> 'Part' follows <h1>"),
        ("<h2>Part</h2>", "<h2></h2>", "an empty <h2>"),
        (' alt="a chart"', "", "a picture without a text"),
        (' alt="a chart"', ' alt=""', "a picture without a text"),
        (' scope="row"', "", "has no scope"),
        (">n</th>", "></th>", "an empty <th>"),
        ('<th scope="row">n</th>', "<td>n</td>", "a table without headers"),
        (' tabindex="0"', "", "cannot be reached by the keyboard"),
        (' aria-label="Table"', "", "has no name"),
        ("<label>Name <input></label>", "<input>", "<input> has no label"),
        ("<label>Name <input></label>", "<button></button>", "<button> has no label"),
        (">up</a>", "></a>", "a link without words"),
        ('href="#a"', 'href="#b"', "a link to #b"),
        ('href="#a"', 'href="https://example.org"', "leads outside"),
        ("<h2>", '<h2 id="a">', "two elements have the id 'a'"),
        ("<main>", '<main aria-labelledby="b">', "named by 'b'"),
    ],
)
def test_a_planted_fault_of_a_page_is_found(old: str, new: str, problem: str) -> None:
    assert old in SOUND
    problems = page_problems(SOUND.replace(old, new))
    assert any(problem in one for one in problems), problems


def test_the_contrast_is_that_of_the_formula() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21) and contrast("#777777", "#777777") == 1
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)  # the grey that just falls short


@pytest.mark.parametrize(
    ("style", "n"),
    [
        (".a { color: #777; }", 2),
        (":root { --soft: #999999; } .a { color: var(--soft); background: #fff; }", 1),
        (".a { color: #fff; background: #27796f; } .b { border-color: #eee; }", 0),
        (".a { background: #eee; } .b { color: #1c2126; }", 0),
    ],
)
def test_a_faint_text_is_found(style: str, n: int) -> None:
    assert len(contrast_problems(style)) == n
