"""Reads tables with any separator, encoding or line end; every cell is text, and all problems are reported at once.

pandas' readers fill short rows and lose row numbers silently, so they are not used (docs/decisions/0010).
"""

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.importers.records import Note
from dermkit.errors import DataError, did_you_mean
from dermkit.files import open_regular

SEPARATORS = (",", ";", "\t", "|")
MAX_REPORTED = 500
"""The most problems printed. A table with more was probably read with the wrong options."""

SAMPLE_BYTES = 1 << 16
"""As many bytes are read to detect the separator."""

_MAX_STORED = 20_000  # problems stored to be sorted; a wrong column causes one per row
_SAMPLE_ROWS = 50
_BLOCK_CHARS = 1 << 20
_CHUNK_ROWS = 10_000
_MAX_INTERNED = 4096  # distinct values of a column that are stored once, such as "male"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0e-\x1f]")
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


@dataclass
class ProblemList:
    """All problems of the tables of one import, as (file, row, text), raised as one error."""

    entries: list[tuple[str, int, str]] = field(default_factory=list)
    n_problems: int = 0

    def add(self, table: Path, row: int, text: str) -> None:
        """Add a problem. row: as a spreadsheet counts (the header is row 1); 0 = the whole file."""
        self.n_problems += 1
        if len(self.entries) < _MAX_STORED:
            self.entries.append((str(table), row, text))

    def raise_if_any(self, remedy: str = "correct the table; row 1 is the header") -> None:
        """Raise one `DataError` that lists all problems, if there are any."""
        if not self.n_problems:
            return
        first_entries = sorted(self.entries)[:MAX_REPORTED]
        tables = list(dict.fromkeys(table for table, _, _ in first_entries))
        lines: list[str] = []
        for table in tables:
            lines += [table] if len(tables) > 1 else []
            lines += [
                f"  row {row}: {text}" if row else f"  {text}"
                for name, row, text in first_entries
                if name == table
            ]
        overflow_lines = (
            [f"  ... and {self.n_problems - MAX_REPORTED} more"] if self.n_problems > MAX_REPORTED else []
        )
        heading = (
            f"{tables[0] if len(tables) == 1 else f'{len(tables)} tables'}: {self.n_problems} "
            f"problem{'s' * (self.n_problems > 1)}:"
        )
        details = "\n".join([*lines, *overflow_lines])
        raise DataError(f"{heading}\n{details}", outcome="nothing was written", remedy=remedy)


@dataclass(frozen=True, eq=False)
class TextTable:
    """A table as text.

    frame: the requested columns, without spaces around values. row_numbers: (n,) as a spreadsheet counts: the header
    is row 1, empty rows count, a line break in quotes does not start a row. columns: the names of all columns.
    """

    path: Path
    frame: pd.DataFrame
    row_numbers: NDArray[np.int64]
    columns: tuple[str, ...]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class TableHead:
    """The separator of a table and the names of its columns, "" for a column without a name."""

    separator: str
    columns: tuple[str, ...]


def read_table_head(path: Path, hint_columns: Collection[str] = ()) -> TableHead:
    """Detect the separator and the column names. A file that is not a table gives one meaningless column.

    hint_columns: expected names, which decide between separators. Raises `DataError` if the file cannot be read.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(SAMPLE_BYTES)
    except OSError as error:
        raise _unreadable_error(path, error.strerror or str(error)) from error
    # The sample may end inside a character, so decoding errors are left to `read_csv_table`.
    return _guess_head(data.decode(_encoding_of_bom(data) or "utf-8", "replace"), hint_columns)


def is_table_text(path: Path) -> bool:
    """Return whether a file begins as a table does (see `is_table_sample`)."""
    try:
        with open_regular(path) as stream:
            return is_table_sample(stream.read(SAMPLE_BYTES))
    except OSError:
        return False


def is_table_sample(data: bytes) -> bool:
    """Return whether bytes begin a table: text, at least two columns, and every row as wide as the header."""
    text = data.decode(_encoding_of_bom(data) or "utf-8", "replace").rpartition("\n")[0]
    if _CONTROL_CHARACTER.search(text) or not text.strip():
        return False
    score, head = max(
        (_rate_separator(text, separator, ()) for separator in SEPARATORS), key=lambda guess: guess[0]
    )
    return len(head.columns) > 1 and all(head.columns) and score[2] == 1.0 and "\n" in text.strip()


def _guess_head(sample: str, hint_columns: Collection[str]) -> TableHead:
    stream = io.StringIO(sample.lstrip("\ufeff"), newline="")
    separator_line = _SEP_LINE.fullmatch(stream.readline())
    if not separator_line:
        stream.seek(0)
    text = stream.read()
    guesses = [
        _rate_separator(text, separator, hint_columns)
        for separator in ([separator_line.group(1)] if separator_line else SEPARATORS)
    ]
    _, table_head = max(guesses, key=lambda guess: guess[0])
    return table_head


def _rate_separator(
    sample: str, separator: str, hint_columns: Collection[str]
) -> tuple[tuple[float, ...], TableHead]:
    """Return a score for a separator, and the header that it gives.

    The score, compared in this order: number of hint columns in the header, whether there are several columns, fraction
    of rows as wide as the header, width.
    """
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator, skipinitialspace=True):
            rows += [row] if any(map(str.strip, row)) else []
            if len(rows) > _SAMPLE_ROWS:
                break
    except csv.Error:
        pass  # the rows before the error are enough
    header = _column_names(rows[0]) if rows else ()
    even_fraction = np.mean([len(row) == len(header) for row in rows]) if rows else 0.0
    n_matches = len(set(header) & set(hint_columns))
    return (n_matches, len(header) > 1, float(even_fraction), len(header)), TableHead(separator, header)


def _column_names(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip().strip("\ufeff").strip() for name in row)


def read_csv_table(
    path: Path,
    problems: ProblemList,
    *,
    hint_columns: Collection[str] = (),
    usecols: Collection[str] = (),
    columns_without_header: Sequence[str] = (),
) -> TextTable:
    """Read a table; invalid rows are added to `problems` and left out.

    hint_columns: expected names, which help to detect the separator. usecols: columns to read (default: all).
    columns_without_header: the names of all columns of a table without a header, whose first row is data. Raises
    `DataError` only for a file that is not a table at all.
    """
    encoding, notes = _find_encoding(path)
    table_head = read_table_head(path, [*hint_columns, *usecols])
    with _open_text(path, encoding) as stream:
        records = _records(path, stream, table_head.separator, problems)
        header_row, columns = (
            (0, tuple(columns_without_header))
            if columns_without_header
            else next(((row, _column_names(cells)) for row, cells in records if any(cells)), (0, ()))
        )
        _check_header(path, header_row, columns, problems)
        position_of = {name: position for position, name in reversed(list(enumerate(columns))) if name}
        names = [name for name in position_of if not usecols or name in usecols][::-1]
        frame, rows = _read_columns(path, records, columns, [position_of[name] for name in names], problems)
    frame.columns = pd.Index(names)
    if not len(rows) and columns:
        problems.add(path, 0, "has no rows")
    column_names = tuple(name for name in columns if name)
    return TextTable(path, frame, rows, column_names, (*notes, *_nameless_column_notes(path, columns)))


def _open_text(path: Path, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_regular(path), encoding=encoding, newline="")


def _unreadable_error(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: cannot be read as a table: {reason}", remedy="restore the file, or save it as CSV in UTF-8"
    )


def _encoding_of_bom(data: bytes) -> str:
    return next((encoding for bom, encoding in _BYTE_ORDER_MARKS if data.startswith(bom)), "")


def _find_encoding(path: Path) -> tuple[str, list[Note]]:
    """Return a file's encoding: that of its byte order mark, else UTF-8, else Latin-1 with a note.

    Raises `DataError` for a file that is not text.
    """
    try:
        with open_regular(path) as stream:
            bom_encoding = _encoding_of_bom(stream.read(4))
    except OSError as error:
        raise _unreadable_error(path, error.strerror or str(error)) from error
    candidates = [bom_encoding] if bom_encoding else ["utf-8", "cp1252", "latin-1"]
    for encoding in candidates:
        try:
            _decode_all(path, encoding)
        except UnicodeError as error:
            if encoding == candidates[-1]:
                raise _unreadable_error(path, str(error)) from error
            continue
        text = f"{path.name} is not UTF-8; it was read as Latin-1 ({encoding}): look at names with accents."
        return encoding, [Note("latin1", text, 1)] if encoding in ("cp1252", "latin-1") else []
    raise AssertionError  # the loop returns or raises


def check_is_text(path: Path) -> None:
    """Raise `DataError` if a file cannot be read as text."""
    _find_encoding(path)


def _decode_all(path: Path, encoding: str) -> None:
    """Decode a file to its end; raises `UnicodeError`, or `DataError` for control characters."""
    with _open_text(path, encoding) as stream:
        while block := stream.read(_BLOCK_CHARS):
            match = _CONTROL_CHARACTER.search(block)
            if match:
                raise _unreadable_error(
                    path, f"it holds the control character {match.group()!r}, so it is no text"
                )


def _records(
    path: Path, stream: io.TextIOBase, separator: str, problems: ProblemList
) -> Iterator[tuple[int, list[str]]]:
    """Yield row number and cells of every row that can be parsed."""
    row = 0
    if _SEP_LINE.fullmatch(stream.readline().lstrip("\ufeff")):
        row = 1
    else:
        stream.seek(0)
    reader = csv.reader(stream, delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        row += 1
        try:
            yield row, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(path, row, _csv_error_text(str(error), separator))


def _csv_error_text(error: str, separator: str) -> str:
    if "unexpected end" in error:
        return "a quote is opened and never closed"
    if "expected after" in error:
        return f"text after a closed quote, before the next {separator!r}; a quote inside a value is written twice"
    return f"cannot be taken apart: {error}"


def _check_header(path: Path, row: int, columns: Sequence[str], problems: ProblemList) -> None:
    if not any(columns):
        problems.add(path, 0, "has no header and no rows")
    for name in dict.fromkeys(columns):
        if name and columns.count(name) > 1:
            problems.add(path, row, f"the header names the column {name!r} {columns.count(name)} times")


def _read_columns(
    path: Path,
    records: Iterator[tuple[int, list[str]]],
    columns: Sequence[str],
    positions: Sequence[int],
    problems: ProblemList,
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the columns at these positions and the row numbers; rows of another width are problems.

    Rows are collected in chunks, to limit memory; empty rows are left out.
    """
    width = len(columns)
    min_width = max((position + 1 for position, name in enumerate(columns) if name), default=0)
    values: list[list[str]] = [[] for _ in positions]
    pools: list[dict[str, str]] = [{} for _ in positions]
    row_number_chunks: list[NDArray[np.int64]] = []
    row_numbers: list[int] = []
    cells: list[list[str]] = []

    def flush() -> None:
        row_number_chunks.append(np.array(row_numbers, np.int64))
        for column, pool, position in zip(values, pools, positions, strict=True):
            column += [_intern(pool, record[position].strip()) for record in cells]
        row_numbers.clear()
        cells.clear()

    for row, record in records:
        if not any(record) or not any(map(str.strip, record)):
            continue
        if len(record) < min_width or (len(record) > width and any(map(str.strip, record[width:]))):
            problems.add(path, row, f"{len(record)} cell{'s' * (len(record) > 1)}, the header has {min_width}")
            continue
        row_numbers.append(row)
        cells.append(record)
        if len(row_numbers) >= _CHUNK_ROWS:
            flush()
    flush()
    frame = pd.DataFrame({position: pd.Series(column, dtype="str") for position, column in enumerate(values)})
    return frame, np.concatenate(row_number_chunks)


def _intern(pool: dict[str, str], value: str) -> str:
    """Return one object for equal values, while a column has few: a million times "male" is stored once."""
    if len(pool) < _MAX_INTERNED:
        return pool.setdefault(value, value)
    return pool.get(value, value)


def _nameless_column_notes(path: Path, columns: Sequence[str]) -> Iterator[Note]:
    """Note columns without a name, such as row numbers; empty names at the end come from trailing separators."""
    names = list(columns)
    while names and not names[-1]:
        names.pop()
    if "" in names:
        yield Note("nameless_column", f"A column of {path.name} has no name and was left out.", names.count(""))


def find_column(columns: Sequence[str], name: str) -> str | None:
    """Return the column of this name, or the only one that differs just by case and outer spaces; else None."""
    if name in columns:
        return name
    matches = [column for column in columns if column.casefold() == name.strip().casefold()]
    return matches[0] if len(matches) == 1 else None


def find_first_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column of the first of these names that the table has (see `find_column`), else None."""
    return next(filter(None, (find_column(columns, name) for name in names)), None)


def missing_column_text(name: str, columns: Sequence[str]) -> str:
    """Return the message about a missing column, with the closest name."""
    return f"has no column {name!r}{did_you_mean(name, columns)} (it has: {', '.join(columns[:40])})"
