"""The files of the server's page, without a browser: what they load, name, say and look like.

Every checker takes texts, so that a test below can plant a fault and see it refused.
"""

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import pytest

from dermkit.errors import RejectionReason
from page_checks import SMALLEST_CONTRAST, SMALLEST_GRAPHIC_CONTRAST, contrast

PAGE = Path(__file__).parents[1] / "src" / "dermkit" / "serving" / "page"
ROOT = "/page/"
INDEX = (PAGE / "index.html").read_text(encoding="utf-8")
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.glob("*.js"))}
STYLES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.glob("*.css"))}

# What would read a string as HTML or code, run against the policy of the page, or outlive the page.
FORBIDDEN = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser",
    "createContextualFragment", 'setAttribute("style"', "srcdoc", "javascript:", "localStorage", "sessionStorage",
    "indexedDB", "document.cookie", "serviceWorker", "caches.", "sendBeacon", "WebSocket", "EventSource",
)  # fmt: skip

# What stands on what: text needs 4.5, and shapes that say something 3 (WCAG 2.2, 1.4.3 and 1.4.11).
GROUNDS = ("ground", "surface", "raised", "sunken")
TEXT_PAIRS = (
    *((ink, ground) for ink in ("ink", "soft") for ground in (*GROUNDS, "accent-ground")),
    *(("ink", f"{kind}-ground") for kind in ("serious", "note", "good", "accent")),
    *((kind, f"{kind}-ground") for kind in ("serious", "note", "good", "accent")),
    *((kind, "surface") for kind in ("serious", "note", "good", "accent")),
    ("accent", "ground"), ("accent", "sunken"), ("on-accent", "accent"), ("surface", "ink"), ("soft", "serious-ground"),
    ("soft", "note-ground"), ("soft", "good-ground"),
)  # fmt: skip
SHAPE_PAIRS = (
    *((kind, "sunken") for kind in ("malignant", "benign", "indeterminate", "accent")),
    *(("edge", ground) for ground in ("ground", "surface", "raised")),
)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002  the base class calls it
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self.inline.append(f"<{self._inside}> holds text")

    def values(self, name: str) -> list[str]:
        """Return the values of an attribute, of all tags that have it."""
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def policy_problems(html: str) -> list[str]:
    """Return what the Content-Security-Policy of the page would block: inline scripts, styles and handlers."""
    parser = Tags(html)
    attributes = [f'<{tag} {name}="...">' for tag, names in parser.tags for name in names if blocked(name)]
    return [*parser.inline, *attributes]


def blocked(attribute: str) -> bool:
    """Say whether an attribute is an inline handler or style."""
    return attribute.startswith("on") or attribute == "style"


def asset_problems(html: str, scripts: Mapping[str, str], styles: Mapping[str, str]) -> Iterator[str]:
    """Yield what the page loads and does not have, what it has and nothing loads, and what is of another site."""
    files = {*scripts, *styles, "icon.svg"}
    parser = Tags(html)
    links = {link for link in (*parser.values("src"), *parser.values("href")) if not link.startswith("#")}
    imports = {
        name: set(re.findall(r'^(?:import|export)[^;]*?from "\./([^"]+)"', text, re.MULTILINE))
        for name, text in scripts.items()
    }
    reached, front = set(), {link.removeprefix(ROOT) for link in links if link.startswith(ROOT)}
    while front:
        reached |= front
        front = set().union(*(imports.get(name, set()) for name in front)) - reached
    yield from (f"{link} is not of this page" for link in sorted(links) if not link.startswith(ROOT))
    yield from (f"{name} does not exist" for name in sorted(reached - files))
    yield from (f"{name} is loaded by nothing" for name in sorted(files - reached))
    for name, text in {**scripts, **styles}.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"')]*", text)) - {"http://www.w3.org/2000/svg"}
        yield from (f"{name} names {address}" for address in sorted(addresses) if "127.0.0.1" not in address)
        yield from (f"{name} loads by url()" for _ in re.findall(r"url\(|@import", text) if name.endswith(".css"))


def import_problems(scripts: Mapping[str, str]) -> Iterator[str]:
    """Yield names that a module imports and the other does not export, or imports and never uses."""
    exports = {
        name: set(re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", text, re.MULTILINE))
        for name, text in scripts.items()
    }
    for name, text in scripts.items():
        for names, source in re.findall(r'^import \{([^}]*)\} from "\./([^"]+)"', text, re.MULTILINE):
            for imported in filter(None, map(str.strip, names.split(","))):
                if imported not in exports.get(source, set()):
                    yield f"{name}: {source} has no {imported}"
                if len(re.findall(rf"\b{imported}\b", text)) < 2:
                    yield f"{name}: {imported} is not used"


def unused_exports(scripts: Mapping[str, str]) -> list[str]:
    """Return the exports that no other file names."""
    return [
        f"{name}: {exported}"
        for name, text in scripts.items()
        for exported in re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", text, re.MULTILINE)
        if not any(re.search(rf"\b{exported}\b", other) for key, other in scripts.items() if key != name)
    ]


def id_problems(html: str, scripts: Mapping[str, str]) -> Iterator[str]:
    """Yield ids that scripts, labels and icons refer to and nothing has, and ids that occur twice."""
    ids = Tags(html).values("id")
    new_ids = set(re.findall(r'\bid: "([\w-]+)"', "\n".join(scripts.values())))
    yield from (f"{one} occurs twice" for one in sorted({one for one in ids if ids.count(one) > 1}))
    references = [(one, name) for name, text in scripts.items() for one in re.findall(r'byId\("([\w-]+)"\)', text)]
    references += [
        (f"icon-{one}", name) for name, text in scripts.items() for one in re.findall(r'\bicon\("(\w+)"\)', text)
    ]
    for attribute in ("for", "aria-labelledby", "aria-controls", "aria-describedby"):
        references += [(one, "index.html") for value in Tags(html).values(attribute) for one in value.split()]
    references += [(link[1:], "index.html") for link in Tags(html).values("href") if link.startswith("#")]
    yield from (f"{name} refers to #{one}" for one, name in sorted(set(references)) if one not in {*ids, *new_ids})


def forbidden_problems(scripts: Mapping[str, str]) -> list[str]:
    """Return what no script of the page may use."""
    return [f"{name} uses {word}" for name, text in scripts.items() for word in FORBIDDEN if word in text]


def colours(style: str) -> dict[str, tuple[str, str]]:
    """Return name -> (colour in light mode, in dark mode)."""
    pattern = r"--([\w-]+): light-dark\((#[0-9a-f]{6})(?:[0-9a-f]{2})?, (#[0-9a-f]{6})(?:[0-9a-f]{2})?\);"
    return {name: (light, dark) for name, light, dark in re.findall(pattern, style)}


def pair_problems(table: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield the pairs that are harder to tell apart than they may be."""
    for pairs, least in ((TEXT_PAIRS, SMALLEST_CONTRAST), (SHAPE_PAIRS, SMALLEST_GRAPHIC_CONTRAST)):
        for front, ground in pairs:
            for mode, colour, below in zip(("light", "dark"), table[front], table[ground], strict=True):
                if (ratio := contrast(colour, below)) < least:
                    yield f"{front} on {ground}, {mode}: {ratio:.2f} < {least}"


def codes(script: str, table: str) -> set[str]:
    """Return the keys of an exported table of a script."""
    match = re.search(rf"export const {table} = {{\n(.*?)\n}};", script, re.DOTALL)
    return set(re.findall(r"^  (\w+): [\[{]", match[1], re.MULTILINE)) if match else set()


def test_no_script_style_or_handler_is_inline() -> None:
    assert policy_problems(INDEX) == []


@pytest.mark.parametrize(
    "html", ['<p onclick="f()">', '<p style="color:red">', "<script>f()</script>", "<style>p{}</style>"]
)
def test_a_planted_inline_script_or_style_is_refused(html: str) -> None:
    assert len(policy_problems(html)) == 1


def test_all_that_is_loaded_is_there_and_all_that_is_there_is_loaded() -> None:
    assert list(asset_problems(INDEX, SCRIPTS, STYLES)) == []
    assert list(import_problems(SCRIPTS)) == []
    # The tables are read by the tests below.
    assert unused_exports(SCRIPTS) == ["problem_words.js: PROBLEM_WORDS", "refusal_words.js: REFUSAL_WORDS"]


@pytest.mark.parametrize(
    ("html", "scripts", "problem"),
    [
        ('<script src="/page/a.js"></script>', {}, "a.js does not exist"),
        ('<script src="https://cdn.example/a.js">', {}, "https://cdn.example/a.js is not of this page"),
        ("", {"a.js": ""}, "a.js is loaded by nothing"),
        ('<script src="/page/a.js">', {"a.js": 'import { f } from "./b.js";'}, "b.js does not exist"),
        (
            '<script src="/page/a.js">',
            {"a.js": 'fetch("https://example.org/x")'},
            "a.js names https://example.org/x",
        ),
    ],
)
def test_a_planted_asset_is_refused(html: str, scripts: dict[str, str], problem: str) -> None:
    assert problem in list(asset_problems(html, scripts, {}))


def test_a_planted_import_is_refused() -> None:
    scripts = {"a.js": 'import { f, g } from "./b.js";\ng();', "b.js": "export function g() {}"}
    assert list(import_problems(scripts)) == ["a.js: b.js has no f", "a.js: f is not used"]


def test_every_id_that_is_referred_to_exists_once() -> None:
    assert list(id_problems(INDEX, SCRIPTS)) == []
    fault_list = list(
        id_problems('<p id="a"><p id="a"><label for="b">', {"a.js": 'byId("c"); byId("d"); ({ id: "d" });'})
    )
    assert fault_list == ["a occurs twice", "index.html refers to #b", "a.js refers to #c"]


def test_no_string_is_read_as_html_and_nothing_outlives_the_page() -> None:
    assert forbidden_problems(SCRIPTS) == []
    assert forbidden_problems({"a.js": "node.innerHTML = name"}) == ["a.js uses innerHTML"]


def test_colours_can_be_told_apart_in_light_and_dark() -> None:
    table = colours(STYLES["colours.css"])
    assert {*chain.from_iterable((*TEXT_PAIRS, *SHAPE_PAIRS))} <= set(table)
    assert list(pair_problems(table)) == []
    assert "soft on ground, light: 1.00 < 4.5" in pair_problems({**table, "soft": table["ground"]})


def test_every_colour_is_in_one_file() -> None:
    other = {name: text for name, text in STYLES.items() if name not in ("colours.css", "print.css")}
    literal = {name: re.findall(r"#[0-9a-f]{3,8}\b(?=[;\s,)])", text) for name, text in other.items()}
    # A video is black where it has no picture, and what lies behind a window is dark in both modes.
    assert literal == {**{name: [] for name in other}, "dialogs.css": ["#05090ccc", "#000"]}


def test_every_problem_of_the_server_has_words() -> None:
    problems = pytest.importorskip("dermkit.serving.problems", reason="the server's packages are not installed")
    words = codes(SCRIPTS["problem_words.js"], "PROBLEM_WORDS")
    here = {"server_away", "connection_closed", "file_gone", "answer_unreadable"}
    assert words - here == {code.value for code in problems.ProblemCode}
    assert here <= words


def test_every_refusal_of_an_image_has_words() -> None:
    jobs = pytest.importorskip("dermkit.serving.jobs", reason="the server's packages are not installed")
    words = codes(SCRIPTS["refusal_words.js"], "REFUSAL_WORDS")
    assert words == {code.value for code in (*RejectionReason, *jobs.WorkerRefusal)}


def table_problems(scripts: Mapping[str, str]) -> list[str]:
    """Return the scripts that build a table themselves."""
    return [
        name for name, text in scripts.items() if name != "tables.js" and re.search(r'element\(\s*"table"', text)
    ]


def test_tables_are_built_in_one_place() -> None:
    assert re.search(r'element\("table"', SCRIPTS["tables.js"])
    assert table_problems(SCRIPTS) == []
    assert table_problems({"a.js": 'element(\n  "table", {})'}) == ["a.js"]


def test_the_notice_is_on_the_page_and_outside_all_that_is_hidden() -> None:
    head = INDEX.partition("<main>")[0]
    assert '<p class="notice">Research use only. Not a medical device.</p>' in head
    assert not re.search(r"\.notice \{[^}]*display: none", "\n".join(STYLES.values()))


def test_what_moves_asks_first() -> None:
    moving = {name: text for name, text in STYLES.items() if re.search(r"transition:|animation:", text)}
    for name, text in moving.items():
        outside = re.sub(r"@media \(prefers-reduced-motion: no-preference\) \{.*?\n\}", "", text, flags=re.DOTALL)
        assert not re.search(r"transition:|animation:", outside), name


def test_files_are_short() -> None:
    longest = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PAGE.iterdir()}
    assert {name: n for name, n in longest.items() if n > 225} == {}
