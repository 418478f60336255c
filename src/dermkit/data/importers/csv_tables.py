"""Reads tables as people have them: any separator, encoding or line end; every cell is text; all problems at once."""

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.importers.records import Note
from dermkit.errors import DataError

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab"})
SEPARATORS = (",", ";", "\t", "|")
MOST_LISTED = 500
"""Problems printed for one import; a table with more was read in the wrong way, not typed wrong."""

_MOST_KEPT = 20_000  # problems kept to be put in order; a wrong column gives one per row
_SAMPLE = 1 << 16  # bytes that the separator is found by
_SAMPLE_ROWS = 50
_BLOCK = 1 << 20
_CHUNK = 10_000  # rows
_MOST_SHARED = 4096  # values of a column kept as one object each, such as "male"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


@dataclass
class Problems:
    """Everything that is wrong in the tables of one import, by file and row; raised together."""

    found: list[tuple[str, int, str]] = field(default_factory=list)
    n: int = 0

    def add(self, table: Path, row: int, text: str) -> None:
        """Note a problem. row: as a spreadsheet counts, the header is row 1; 0 = the file as a whole."""
        self.n += 1
        if len(self.found) < _MOST_KEPT:
            self.found.append((str(table), row, text))

    def check(self, remedy: str = "correct the table; row 1 is the header") -> None:
        """Raise one `DataError` that lists all problems, if there are any."""
        if not self.n:
            return
        listed = sorted(self.found)[:MOST_LISTED]
        tables = list(dict.fromkeys(table for table, _, _ in listed))
        lines: list[str] = []
        for table in tables:
            lines += [table] if len(tables) > 1 else []
            lines += [
                f"  row {row}: {text}" if row else f"  {text}" for name, row, text in listed if name == table
            ]
        more = [f"  ... and {self.n - MOST_LISTED} more"] if self.n > MOST_LISTED else []
        head = (
            f"{tables[0] if len(tables) == 1 else f'{len(tables)} tables'}: {self.n} problem{'s' * (self.n > 1)}:"
        )
        body = "\n".join([*lines, *more])
        raise DataError(f"{head}\n{body}", kept="nothing was written", remedy=remedy)


@dataclass(frozen=True, eq=False)
class Table:
    """A table as text. frame: the columns that were asked for, spaces around values removed.

    rows: (n,) the row of each, as a spreadsheet counts: the header is row 1, an empty row counts, a line break in
    quotes begins no row. columns: the names of all columns of the file.
    """

    path: Path
    frame: pd.DataFrame
    rows: NDArray[np.int64]
    columns: tuple[str, ...]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Head:
    """What the beginning of a table tells: its separator and the names of its columns, "" where one has none."""

    separator: str
    columns: tuple[str, ...]


def read_head(path: Path, wanted: Collection[str] = ()) -> Head:
    """Find the separator and the columns; of a file that is no table, one odd column. wanted: columns to look for."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_SAMPLE)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    # A character may be cut at the end of the sample: errors are for `read_table` to judge.
    return _head_of(data.decode(_mark(data) or "utf-8", "replace"), wanted)


def _head_of(sample: str, wanted: Collection[str]) -> Head:
    lines = io.StringIO(sample.lstrip("\ufeff"), newline="")
    told = _SEP_LINE.fullmatch(lines.readline())
    if not told:
        lines.seek(0)
    text = lines.read()
    guesses = [_guess(text, separator, wanted) for separator in ([told.group(1)] if told else SEPARATORS)]
    _, head = max(guesses, key=lambda guess: guess[0])
    return head


def _guess(sample: str, separator: str, wanted: Collection[str]) -> tuple[tuple[float, ...], Head]:
    """Return how well a separator explains a sample: columns looked for, rows as wide as the header, width."""
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator, skipinitialspace=True):
            rows += [row] if any(map(str.strip, row)) else []
            if len(rows) > _SAMPLE_ROWS:
                break
    except csv.Error:
        pass  # what stands before it is enough to guess by
    header = _names(rows[0]) if rows else ()
    even = np.mean([len(row) == len(header) for row in rows]) if rows else 0.0
    found = len(set(header) & set(wanted))
    return (found, len(header) > 1, float(even), len(header)), Head(separator, header)


def _names(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip().strip("\ufeff").strip() for name in row)


def read_table(
    path: Path, problems: Problems, *, wanted: Collection[str] = (), keep: Collection[str] = ()
) -> Table:
    """Read a table; what is wrong in it goes to `problems`, what can be read is read.

    wanted: columns that help to find the separator. keep: columns to keep (default: all). Raises `DataError` only
    where the file is no table at all.
    """
    encoding, notes = _encoding(path)
    head = read_head(path, [*wanted, *keep])
    with path.open(encoding=encoding, newline="") as stream:
        records = _records(path, stream, head.separator, problems)
        first, columns = next(((row, _names(cells)) for row, cells in records if any(cells)), (0, ()))
        _check_header(path, first, columns, problems)
        named = {name: at for at, name in reversed(list(enumerate(columns))) if name}
        kept = [name for name in named if not keep or name in keep][::-1]
        frame, rows = _columns(path, records, columns, [named[name] for name in kept], problems)
    frame.columns = pd.Index(kept)
    if not len(rows) and columns:
        problems.add(path, 0, "has no rows")
    listed = tuple(name for name in columns if name)
    return Table(path, frame, rows, listed, (*notes, *_nameless(path, columns)))


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path}: cannot be read as a table: {why}", remedy="restore the file, or save it as CSV in UTF-8"
    )


def _mark(data: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "")


def _encoding(path: Path) -> tuple[str, list[Note]]:
    """Return how a file is encoded: as its mark says, else UTF-8, else Latin-1 with a note; raises `DataError`."""
    try:
        with path.open("rb") as stream:
            marked = _mark(stream.read(4))
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    tried = [marked] if marked else ["utf-8", "cp1252", "latin-1"]
    for encoding in tried:
        try:
            _decode_all(path, encoding)
        except UnicodeError as error:
            if encoding == tried[-1]:
                raise _unreadable(path, str(error)) from error
            continue
        text = f"{path.name} is not UTF-8; it was read as Latin-1 ({encoding}): look at names with accents."
        return encoding, [Note("latin1", text, 1)] if encoding in ("cp1252", "latin-1") else []
    raise AssertionError  # the loop returns or raises


def check_text(path: Path) -> None:
    """Raise `DataError` where a file cannot be read as text."""
    _encoding(path)


def _decode_all(path: Path, encoding: str) -> None:
    """Decode a file to its end; raises `UnicodeError`, and `DataError` for control characters: no text at all."""
    with path.open(encoding=encoding, newline="") as stream:
        while block := stream.read(_BLOCK):
            found = _CONTROL.search(block)
            if found:
                raise _unreadable(path, f"it holds the control character {found.group()!r}, so it is no text")


def _records(
    path: Path, stream: io.TextIOBase, separator: str, problems: Problems
) -> Iterator[tuple[int, list[str]]]:
    """Yield row number and cells of each row that can be taken apart."""
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
            problems.add(path, row, _why(str(error), separator))


def _why(error: str, separator: str) -> str:
    if "unexpected end" in error:
        return "a quote is opened and never closed"
    if "expected after" in error:
        return f"text after a closed quote, before the next {separator!r}; a quote inside a value is written twice"
    return f"cannot be taken apart: {error}"


def _check_header(path: Path, row: int, columns: Sequence[str], problems: Problems) -> None:
    if not any(columns):
        problems.add(path, 0, "has no header and no rows")
    for name in dict.fromkeys(columns):
        if name and columns.count(name) > 1:
            problems.add(path, row, f"the header names the column {name!r} {columns.count(name)} times")


def _columns(
    path: Path,
    records: Iterator[tuple[int, list[str]]],
    columns: Sequence[str],
    kept: Sequence[int],
    problems: Problems,
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Collect the kept columns in chunks; rows of another width are problems, empty ones are left out."""
    width, needed = len(columns), max((at + 1 for at, name in enumerate(columns) if name), default=0)
    values: list[list[str]] = [[] for _ in kept]
    shared: list[dict[str, str]] = [{} for _ in kept]
    numbers: list[NDArray[np.int64]] = []
    rows: list[int] = []
    cells: list[list[str]] = []

    def flush() -> None:
        numbers.append(np.array(rows, np.int64))
        for column, known, at in zip(values, shared, kept, strict=True):
            column += [_share(known, row[at].strip()) for row in cells]
        rows.clear()
        cells.clear()

    for row, record in records:
        if not any(record) or not any(map(str.strip, record)):
            continue
        if len(record) < needed or (len(record) > width and any(map(str.strip, record[width:]))):
            problems.add(path, row, f"{len(record)} cell{'s' * (len(record) > 1)}, the header has {needed}")
            continue
        rows.append(row)
        cells.append(record)
        if len(rows) >= _CHUNK:
            flush()
    flush()
    frame = pd.DataFrame({at: pd.Series(column, dtype="str") for at, column in enumerate(values)})
    return frame, np.concatenate(numbers)


def _share(known: dict[str, str], value: str) -> str:
    """Return one object for equal values, while a column has few: a million times "male" is one text."""
    if len(known) < _MOST_SHARED:
        return known.setdefault(value, value)
    return known.get(value, value)


def _nameless(path: Path, columns: Sequence[str]) -> Iterator[Note]:
    """Note columns without a name that are no trailing separator: a table's numbered rows, or a name that was lost."""
    trimmed = list(columns)
    while trimmed and not trimmed[-1]:
        trimmed.pop()
    if "" in trimmed:
        yield Note("nameless_column", f"A column of {path.name} has no name and was left out.", trimmed.count(""))


def find_column(columns: Sequence[str], name: str) -> str | None:
    """Return the column of this name: as written, else by case and outer spaces if just one is meant; or None."""
    if name in columns:
        return name
    same = [column for column in columns if column.casefold() == name.strip().casefold()]
    return same[0] if len(same) == 1 else None


def missing_column(name: str, columns: Sequence[str]) -> str:
    """Return the words for a column that is not there."""
    close = get_close_matches(name, columns, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"has no column {name!r}{meant} (it has: {', '.join(columns[:40])})"
