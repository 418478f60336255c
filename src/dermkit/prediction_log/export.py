"""A log as a CSV file that people may open in a spreadsheet."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from dermkit.files import write_rows
from dermkit.prediction_log.read import LoggedPrediction, flat_columns, read_log
from dermkit.prediction_log.rows import PredictionRow
from dermkit.render.cells import defused

_FORMULA_PART = re.compile(r"([;\t]\s*)(?=[=+\-@])")


def export_log(log: str, out: Path, since: datetime | None = None, until: datetime | None = None) -> int:
    """Write the rows of a log as CSV, with today's outcomes, and return their number; in bounded memory.

    No cell is a formula to a spreadsheet: an apostrophe stands before = + - @, also after a semicolon. Unknown values
    are empty. Raises as `read_log` does, and `OutputError`.
    """
    names = export_columns()
    n_rows = 0

    def rows() -> Iterator[list[object]]:
        nonlocal n_rows
        for prediction in read_log(log, since, until):
            n_rows += 1
            columns = flat_columns(prediction)
            yield defused("" if columns[name] is None else _in_one_cell(columns[name]) for name in names)

    write_rows(out, names, rows())
    return n_rows


def _in_one_cell(cell: object) -> object:
    """Return a text in which what follows a semicolon is no formula, where a spreadsheet divides cells there."""
    return _FORMULA_PART.sub(r"\1'", cell) if isinstance(cell, str) else cell


def export_columns() -> tuple[str, ...]:
    """Return the columns of the CSV file."""
    row = PredictionRow(request_id="", position=0, dermkit_version="", model_key="0" * 64, predicted="x")
    return tuple(flat_columns(LoggedPrediction(row)))
