"""The field `metadata` of a request: age, sex and site of its images, for a model that takes them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dermkit.data.importers.normalise import parse_age, parse_sex, parse_site
from dermkit.serving.problems import Problem, ProblemCode

_MAX_CHARACTERS = 64
_PARSERS = {"age": parse_age, "sex": parse_sex, "site": parse_site}


def parse_metadata(text: str | None, n_images: int, fields: Sequence[str]) -> list[dict[str, str]]:
    """Return the metadata of each image as text, absent = unknown; raises `Problem` for a wrong field.

    text: a JSON object for one image, or a list of an object for each, None = nothing known. fields: what the model
    takes.
    """
    if text is None:
        return [{} for _ in range(n_images)]
    if not fields:
        raise _wrong("this model takes no metadata")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("not JSON") from None
    rows = value if isinstance(value, list) else [value]
    if len(rows) != n_images:
        raise _wrong(f"{len(rows)} objects for {n_images} images")
    return [_parse_row(row, fields) for row in rows]


def _parse_row(row: Any, fields: Sequence[str]) -> dict[str, str]:
    if not isinstance(row, Mapping):
        raise _wrong("not an object for each image")
    if unknown := [name for name in row if name not in fields]:
        raise _wrong(f"{len(unknown)} unknown names; this model takes {', '.join(fields)}")
    values = {name: _parse_value(name, value) for name, value in row.items()}
    return {name: text for name, text in values.items() if text}


def _parse_value(name: str, value: Any) -> str:
    """Return a value as a cell of a table would hold it, "" = unknown."""
    if value is None:
        return ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (isinstance(value, str) or (is_number and name == "age")):
        raise _wrong(f"{name}: not text")
    text = str(value).strip()
    if len(text) > _MAX_CHARACTERS or not text.isprintable():
        raise _wrong(f"{name}: longer than {_MAX_CHARACTERS} characters, or not printable")
    if _PARSERS[name](text) is None:
        raise _wrong(
            f"{name}: {'no number of years' if name == 'age' else 'a number, whose meaning is not known'}"
        )
    return text


def _wrong(detail: str) -> Problem:
    return Problem(ProblemCode.FIELD_NOT_VALID, f"metadata: {detail}")
