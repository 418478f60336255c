"""What a page owes to readers who cannot see it, zoom it or use a mouse: checks that need no browser.

`test_pages_in_browser.py` runs axe-core over the same pages.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise

SMALLEST_CONTRAST = 4.5
"""Of text against its ground (WCAG 2.2, 1.4.3, level AA)."""
SMALLEST_GRAPHIC_CONTRAST = 3.0
"""Of lines and dots that carry meaning (WCAG 2.2, 1.4.11)."""

_VOID = {"meta", "link", "img", "br", "hr", "input", "col", "source"}
_CONTROLS = {"input", "select", "textarea", "button"}
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_TEXT_ROLES = {"img", "group", "region"}


class _Page(HTMLParser):
    """A page as a list of (tag, attributes, text inside), in the order of the start tags; `problems` of nesting."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.parents: list[int | None] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parents.append(self._open[-1] if self._open else None)
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in _VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.elements[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for number in self._open:
            self.elements[number][2].append(data)

    def ancestors(self, number: int) -> Iterator[int]:
        parent = self.parents[number]
        while parent is not None:
            yield parent
            parent = self.parents[parent]


def page_problems(html: str) -> list[str]:
    """Return what is wrong with a page: language, title, headings, pictures, tables, controls, names, addresses."""
    page = _Page(html)
    return [
        *_document_problems(page), *_heading_problems(page), *_table_problems(page), *_name_problems(page),
        *_reference_problems(page),
    ]  # fmt: skip


def _text(parts: list[str]) -> str:
    return " ".join("".join(parts).split())


def _document_problems(page: _Page) -> Iterator[str]:
    tags = [tag for tag, _, _ in page.elements]
    if not any(tag == "html" and attributes.get("lang") for tag, attributes, _ in page.elements):
        yield "the page has no language"
    if not any(tag == "title" and _text(text) for tag, _, text in page.elements):
        yield "the page has no title"
    for tag in ("h1", "main"):
        if tags.count(tag) != 1:
            yield f"the page has {tags.count(tag)} <{tag}>"
    if not any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes, _ in page.elements):
        yield "a phone shows the page in the width of a desk"


def _heading_problems(page: _Page) -> Iterator[str]:
    headings = [(tag, _text(text)) for tag, _, text in page.elements if tag in _HEADINGS]
    for tag, text in headings:
        if not text:
            yield f"an empty <{tag}>"
    for (before, _), (after, text) in pairwise(headings):
        if int(after[1]) > int(before[1]) + 1:
            yield f"<{after}> {text!r} follows <{before}>"


def _table_problems(page: _Page) -> Iterator[str]:
    for number, (tag, attributes, text) in enumerate(page.elements):
        if tag == "th" and attributes.get("scope") not in ("col", "row", "colgroup", "rowgroup"):
            yield f"<th> {_text(text)!r} has no scope"
        if tag == "th" and not _text(text):
            yield "an empty <th>"
        if tag == "table":
            inside = [one for one, _ in enumerate(page.elements) if number in page.ancestors(one)]
            if not any(page.elements[one][0] == "th" for one in inside):
                yield f"a table without headers: {_text(text)[:60]!r}"


def _name_problems(page: _Page) -> Iterator[str]:
    """Yield pictures, controls, links and regions without a name that can be read aloud."""
    label_targets = {attributes.get("for") for tag, attributes, _ in page.elements if tag == "label"}
    for number, (tag, attributes, text) in enumerate(page.elements):
        is_named = bool(attributes.get("aria-label") or attributes.get("aria-labelledby"))
        if tag == "img" and not attributes.get("alt", "").strip():
            yield f"a picture without a text: {attributes.get('src', '')[:40]}"
        if (
            tag == "svg"
            and attributes.get("aria-hidden") != "true"
            and not (
                is_named or any(page.elements[one][0] == "title" for one in range(number, len(page.elements)))
            )
        ):
            yield "a drawing without a text"
        if tag in _CONTROLS and not is_named and attributes.get("type") != "hidden":
            in_label = any(page.elements[one][0] == "label" for one in page.ancestors(number))
            if (
                not in_label
                and attributes.get("id") not in label_targets
                and not (tag == "button" and _text(text))
            ):
                yield f"<{tag}> has no label"
        if tag == "a" and not _text(text) and not is_named:
            yield f"a link without words: {attributes.get('href')}"
        if attributes.get("role") in _TEXT_ROLES and not is_named:
            yield f"<{tag} role={attributes['role']}> has no name"
        if "scroll" in attributes.get("class", "").split() and attributes.get("tabindex") != "0":
            yield "a region that scrolls cannot be reached by the keyboard"
        if tag == "summary" and not _text(text):
            yield "a fold without words"


def _reference_problems(page: _Page) -> Iterator[str]:
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        yield f"two elements have the id {name!r}"
    for tag, attributes, _ in page.elements:
        for target in attributes.get("aria-labelledby", "").split():
            if target not in ids:
                yield f"<{tag}> is named by {target!r}, which is not there"
        address = attributes.get("href", "")
        if address.startswith("#") and address[1:] not in ids:
            yield f"a link to {address}, which is not there"
        if re.match(r"(https?:)?//", attributes.get("src", "") + address):
            yield f"the page leads outside: {attributes.get('src', '') + address}"


# Colours -------------------------------------------------------------------------------------------------------------


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, #rgb or #rrggbb, by the WCAG formula: 1 to 21."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    levels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (
        level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast_problems(style: str) -> list[str]:
    """Return each rule of a style sheet whose text is too faint: on its ground, else on white and on the page's grey.

    Colours are literal or variables of :root; a ground that is no plain colour is not judged.
    """
    variables = dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-fA-F]{3,6})", style))
    grounds = ["#ffffff", variables.get("--ground", "#ffffff")]
    problems = []
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)):
        text, ground = (_declared(name, body, variables) for name in ("color", "background"))
        if text is None:
            continue
        problems += [
            f"{selector.strip()}: {text} on {one}, {contrast(text, one):.2f}"
            for one in ([ground] if ground else grounds)
            if contrast(text, one) < SMALLEST_CONTRAST
        ]
    return problems


def _declared(name: str, body: str, variables: dict[str, str]) -> str | None:
    """Return the plain colour that a rule gives a property, None for another."""
    declared = re.search(rf"(?<![\w-]){name}(?:-color)?:\s*(var\((--[\w-]+)\)|#[0-9a-fA-F]{{3,6}}\b)", body)
    if declared is None:
        return None
    return variables.get(declared[2]) if declared[2] else declared[1]
