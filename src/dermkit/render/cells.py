"""Cells of a CSV that people open in a spreadsheet."""

import re
from collections.abc import Iterable

_FORMULA = re.compile(r"'*\s*[=+\-@]|'*[\t\r]")  # some spreadsheets take spaces before it away
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def defused(row: Iterable[object]) -> list[object]:
    """Return a CSV row in which no text is a formula to a spreadsheet: an apostrophe stands before = + - @."""
    return [f"'{cell}" if isinstance(cell, str) and is_formula(cell) else cell for cell in row]


def is_formula(cell: str) -> bool:
    """Tell whether a spreadsheet would compute a cell; also one that was defused, so that `undefused` is exact."""
    return bool(_FORMULA.match(cell)) and not _NUMBER.fullmatch(cell)


def undefused(cell: str) -> str:
    """Return what a defused cell was."""
    return cell[1:] if cell.startswith("'") and is_formula(cell) else cell
