"""Broken tables: a table of rows is written as people's tools write it, and a few faults are planted in it."""

import csv
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hostile_watch import Case, Wrong, picture

HEADER = ("image", "diagnosis", "lesion", "patient", "age", "sex", "site")
MEANT = ("image", "label", "lesion_id", "patient_id", "age", "sex", "site")
MAPPED = [word for pair in zip(MEANT, HEADER, strict=True) for word in ("--column", "=".join(pair))]
METADATA = ("image_id", "dx", "lesion_id", "dx_type", "age", "sex", "localization")
"""The columns of HAM10000's table in the same order; dx_type tells no patient, and must not travel."""
TARGETS = ("path", "label", "lesion_id", "patient_id", "age", "sex", "site")
LABELS = ("NV", "MEL", "n\u00e6vus", "BCC")
HAM_LABELS = ("nv", "mel", "bcc", "akiec")
N = 14


@dataclass
class Row:
    """A row of the table. number: its picture, None where none may come of it. wrong: patterns, {row} = its number.

    raw: the line as it is written, instead of `cells`. path: of its image, where the table does not say it.
    """

    cells: list[str]
    number: int | None
    wrong: list[Wrong] = field(default_factory=list)
    raw: str | None = None
    path: str = ""

    def spoil(self, message: str, refused: str = "", *, late: bool = False) -> None:
        self.number = None
        self.wrong.append(Wrong(message, refused, late))


@dataclass
class Draft:
    """A table that is being spoilt. before: lines before the header. ending: what stands after the last row."""

    folder: Path
    rng: np.random.Generator
    layout: str
    rows: list[Row]
    header: list[str]
    separator: str = ","
    encoding: str = "utf-8"
    newline: str = "\n"
    quoting: Literal[0, 1] = csv.QUOTE_MINIMAL
    before: list[str] = field(default_factory=list)
    ending: str = "\n"
    whole: Callable[[bytes], bytes] = bytes
    wrong: list[Wrong] = field(default_factory=list)
    fatal: bool = False

    @property
    def image(self) -> str:
        return f"images/{int(self.rng.integers(1 << 30))}.png"

    def add(self, cells: list[str], number: int | None = None) -> Row:
        self.rows.append(Row(cells, number))
        return self.rows[-1]

    def save(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


Fault = Callable[[Draft, Row], None]


# Faults of one row -------------------------------------------------------------------------------------------------


def too_few_cells(draft: Draft, row: Row) -> None:
    row.cells = row.cells[:3]
    row.spoil(r"row {row}: 3 cells")


def too_many_cells(draft: Draft, row: Row) -> None:
    row.cells = [*row.cells, "", "one more"]
    row.spoil(r"row {row}: 9 cells")


def another_separator(draft: Draft, row: Row) -> None:
    other = ";" if draft.separator != ";" else ","
    row.raw = other.join(row.cells)
    row.spoil(r"row {row}: 1 cells?")


def empty_image(draft: Draft, row: Row) -> None:
    row.cells[0] = " "
    row.spoil(r"row {row}: .*image.* empty")


def empty_label(draft: Draft, row: Row) -> None:
    row.cells[1] = ""
    row.spoil(r"row {row}: .*label.* empty")


def unknown_label(draft: Draft, row: Row) -> None:
    """The labels of HAM10000 are fixed; in a table of one's own, a new word is a new class."""
    row.cells[1] = "novel"
    if draft.layout == "ham10000":
        row.spoil(r"row {row}: .*'novel'")


def repeated_image(draft: Draft, row: Row) -> None:
    again = draft.add([row.cells[0], draft.rows[0].cells[1] or "mel", "", "", "", "", ""])
    again.spoil(r"row {row}: .*repeats")


WRONG_AGES = ("-5", "1962", "abc", "12O", "1e99", "200", "0x20", "5\u00b2", "inf")


def wrong_age(draft: Draft, row: Row) -> None:
    """What is no age is an unknown age; the row stays."""
    row.cells[4] = str(draft.rng.choice(WRONG_AGES))


def missing_image(draft: Draft, row: Row) -> None:
    row.cells[0] = f"images/nowhere-{row.number}.png"
    row.spoil(rf"nowhere-{row.number}", rf"nowhere-{row.number}.*missing")


def image_outside(draft: Draft, row: Row) -> None:
    """A path that leads to a picture beside the source, which exists."""
    secret = str(draft.folder.parent / "outside" / "secret.png")
    ways = ["../outside/secret.png", secret, "images/../../outside/secret.png", "..\\outside\\secret.png"]
    ways += [f"file://{secret}", f"images/..{secret}"]
    row.cells[0] = ways[int(draft.rng.integers(len(ways)))]
    row.spoil(r"secret", r"secret")


def broken_image(draft: Draft, row: Row) -> None:
    data = picture(row.number or 0)
    damaged = [b"", b"GIF89a" + data, data[: len(data) // 2], b"<html>404</html>", b"\0" * 300]
    draft.save(row.cells[0], damaged[int(draft.rng.integers(len(damaged)))])
    row.spoil(row.cells[0], row.cells[0], late=True)


def formula(draft: Draft, row: Row) -> None:
    row.cells[6] = str(
        draft.rng.choice(["=1+1", "@SUM(A1)", "+41 79", "=cmd|' /C calc'!A0", '=HYPERLINK("x","y")'])
    )


def text_with_everything(draft: Draft, row: Row) -> None:
    row.cells[6] = 'back, "of" hand;\tleft|right\nsecond line'


def huge_cell(draft: Draft, row: Row) -> None:
    row.cells[6] = "x" * 140_000
    row.spoil(r"row {row}: ")


def long_cell(draft: Draft, row: Row) -> None:
    row.cells[6] = "x" * 30_000


def text_after_quote(draft: Draft, row: Row) -> None:
    row.raw = draft.separator.join(['"' + row.cells[0] + '"x', *row.cells[1:]])
    row.spoil(r"row {row}: ")


def header_again(draft: Draft, row: Row) -> None:
    row.cells = list(draft.header)
    row.spoil(r"row {row}\b", r"^image(_id)?,missing,.*\(row \d+\)")


def unknown_values(draft: Draft, row: Row) -> None:
    row.cells[2:] = [str(draft.rng.choice(["", "unknown", "NaN", "n/a", "None", "-"])) for _ in row.cells[2:]]


def spaces(draft: Draft, row: Row) -> None:
    row.cells = [f"  {cell}\u00a0 " for cell in row.cells]


def name_without_ending(draft: Draft, row: Row) -> None:
    row.cells[0] = row.cells[0].removeprefix("images/").removesuffix(".png")


def name_with_backslash(draft: Draft, row: Row) -> None:
    row.cells[0] = row.cells[0].replace("/", "\\")


def name_in_another_case(draft: Draft, row: Row) -> None:
    row.cells[0] = row.cells[0].upper()


def name_in_another_unicode_form(draft: Draft, row: Row) -> None:
    """The table says it with one character, the disk with two."""
    (draft.folder / row.cells[0]).rename(draft.folder / f"images/ne\u0301-{row.number}.png")
    row.cells[0], row.path = f"n\u00e9-{row.number}", f"images/ne\u0301-{row.number}.png"


def image_is_a_link_out(draft: Draft, row: Row) -> None:
    path = draft.folder / row.cells[0]
    path.unlink()
    path.symlink_to("../../outside/secret.png")
    row.spoil(rf"{row.cells[0]}\b", rf"{row.cells[0]}\b.*(link|missing)")


def image_is_a_folder(draft: Draft, row: Row) -> None:
    path = draft.folder / row.cells[0]
    path.unlink()
    path.mkdir()
    row.spoil(rf"{row.cells[0]}\b", rf"{row.cells[0]}\b.*missing")


def two_files_for_a_name(draft: Draft, row: Row) -> None:
    name = row.cells[0].removeprefix("images/")
    draft.save(f"more/{name}", picture(9000 + (row.number or 0)))
    row.cells[0] = name
    row.spoil(rf"row {{row}}: .*{name}")


def two_rows_for_a_file(draft: Draft, row: Row) -> None:
    again = draft.add([row.cells[0].removeprefix("images/").upper(), *row.cells[1:]])
    again.spoil(r"row {row}: ")


def lesion_of_two_patients(draft: Draft, row: Row) -> None:
    row.cells[2:4] = [f"shared{row.number}", "Ann"]
    other = next(item for item in draft.rows if item is not row and item.number is not None and not item.raw)
    other.cells[2:4] = [f"shared{row.number}", "Bob"]
    if draft.layout != "ham10000":
        draft.wrong.append(Wrong(f"shared{row.number}"))


def image_without_row(draft: Draft, row: Row) -> None:
    draft.save(f"images/extra-{row.number}.png", picture(8000 + (row.number or 0)))
    draft.wrong.append(Wrong("", rf"extra-{row.number}"))


ROW_FAULTS: tuple[Fault, ...] = (
    too_few_cells, too_many_cells, another_separator, empty_image, empty_label, unknown_label, repeated_image,
    wrong_age, missing_image, image_outside, broken_image, formula, text_with_everything, huge_cell, long_cell,
    text_after_quote, header_again, unknown_values, spaces, name_without_ending, name_with_backslash,
    name_in_another_case, name_in_another_unicode_form, image_is_a_link_out, image_is_a_folder, two_files_for_a_name,
    two_rows_for_a_file, lesion_of_two_patients, image_without_row,
)  # fmt: skip


# Faults of a whole file --------------------------------------------------------------------------------------------

FileFault = Callable[[Draft], None]


def _fatal(draft: Draft, message: str = "", whole: Callable[[bytes], bytes] | None = None) -> None:
    draft.fatal = True
    draft.wrong = [Wrong(message)] if message else []
    for row in draft.rows:
        row.wrong.clear()
    if whole:
        draft.whole = whole


def empty_file(draft: Draft) -> None:
    _fatal(draft, "table.csv", lambda _: b"")


def blank_lines_only(draft: Draft) -> None:
    _fatal(draft, "table.csv", lambda _: b"\n \n,,,\n\n")


def header_only(draft: Draft) -> None:
    draft.rows.clear()
    _fatal(draft, "no rows")


def column_twice(draft: Draft) -> None:
    draft.header[6] = draft.header[1]
    _fatal(draft, f"'{draft.header[1]}' 2 times")


def columns_missing(draft: Draft) -> None:
    lost = [draft.header[at] for at in (0, 1, 4)]
    draft.header[0], draft.header[1], draft.header[4] = "picture", "class", "years"
    _fatal(draft)
    draft.wrong = [Wrong(f"no column '{name}'") for name in lost]
    if draft.layout == "ham10000":  # its table is known by its columns, so without them there is none
        draft.wrong = [Wrong("lesion_id, image_id, dx")]


def nul_byte(draft: Draft) -> None:
    _fatal(draft, "table.csv", lambda data: data[:90] + b"\0" + data[90:])


def wide_without_mark(draft: Draft) -> None:
    _fatal(draft, "table.csv", lambda data: data.decode(draft.encoding).encode("utf-16-le"))


def binary(draft: Draft) -> None:
    _fatal(draft, "table.csv", lambda _: np.random.default_rng(1).bytes(4000))


def a_picture(draft: Draft) -> None:
    _fatal(draft, "table.csv", lambda _: picture(1))


def a_spreadsheet(draft: Draft) -> None:
    _fatal(draft, "table.csv", lambda _: b"PK\x03\x04\x14\x00\x06\x00\x08\x00" + bytes(400))


def a_web_page(draft: Draft) -> None:
    page = b"<!DOCTYPE html>\n<html><head><title>404, not found</title></head>\n<body>gone</body></html>\n"
    _fatal(draft, "'image'|image_id", lambda _: page)


def cut_character(draft: Draft) -> None:
    """UTF-16 whose last byte is lost."""
    draft.encoding = "utf-16"
    _fatal(draft, "table.csv", lambda data: data[:-1])


def open_quote(draft: Draft) -> None:
    """A quote that is never closed swallows what follows: it is named, with the row where the file ends."""
    row = draft.rows[-2]
    row.raw = draft.separator.join(['"' + row.cells[0], *row.cells[1:]])
    draft.quoting = csv.QUOTE_MINIMAL
    _fatal(draft, "quote is opened|larger than field limit")


def broken_after_a_mark(draft: Draft) -> None:
    """UTF-8 by its mark, and a byte that is none."""
    draft.encoding = "utf-8-sig"
    _fatal(draft, "table.csv", lambda data: data + b"\xff\xfe\n")


def many_columns(draft: Draft) -> None:
    """A table of 2,000 further columns is read like any other."""
    draft.header += [f"more-{at}" for at in range(2000)]
    for row in draft.rows:
        if row.raw is None and len(row.cells) == len(HEADER):
            row.cells += ["x"] * 2000


def a_second_table(draft: Draft) -> None:
    draft.save("other.csv", ",".join(draft.header).encode() + b"\nimages/p1.png,nv,,,,,\n")
    _fatal(draft, r"(?s)other\.csv.*table\.csv")


def the_table_is_a_pipe(draft: Draft) -> None:
    os.mkfifo(draft.folder / "table.csv")
    _fatal(draft, "table")


def the_table_is_a_folder(draft: Draft) -> None:
    (draft.folder / "table.csv").mkdir()
    _fatal(draft, "table")


def the_table_is_a_link_out(draft: Draft) -> None:
    draft.save("../outside/table.csv", ",".join(draft.header).encode() + b"\nimages/p1.png,nv,,,,,\n")
    (draft.folder / "table.csv").symlink_to("../outside/table.csv")
    _fatal(draft, "table")


FILE_FAULTS: tuple[FileFault, ...] = (
    empty_file, blank_lines_only, header_only, column_twice, columns_missing, nul_byte, wide_without_mark, binary,
    a_picture, a_spreadsheet, a_web_page, cut_character, open_quote, broken_after_a_mark, many_columns,
    a_second_table, the_table_is_a_pipe, the_table_is_a_folder, the_table_is_a_link_out,
)  # fmt: skip

STYLES: tuple[tuple[str, dict[str, object]], ...] = (
    ("semicolons, UTF-8 mark, CRLF", {"separator": ";", "encoding": "utf-8-sig", "newline": "\r\n"}),
    ("tabs, UTF-16", {"separator": "\t", "encoding": "utf-16"}),
    ("bars, every cell quoted", {"separator": "|", "quoting": csv.QUOTE_ALL}),
    ("line ends of an old system", {"newline": "\r", "ending": "\r"}),
    ("Windows-1252", {"encoding": "cp1252", "newline": "\r\n", "ending": ""}),
    ("a line sep=;", {"separator": ";", "before": ["sep=;"], "newline": "\r\n", "quoting": csv.QUOTE_ALL}),
    ("UTF-16 big end first, no last line end", {"encoding": "utf-16-be-mark", "ending": ""}),
    ("empty lines before, between and after", {"before": ["", ""], "ending": "\n\n\n,,,,,,\n"}),
    ("plain", {}),
)


# A case ------------------------------------------------------------------------------------------------------------


def make_table(folder: Path, seed: int) -> Case:
    """Write a source with a table, its pictures and its faults; the first fault goes round with the seed."""
    rng = np.random.default_rng([seed, 60])
    layout = "ham10000" if seed % 3 == 2 else "csv"
    labels, header = (HAM_LABELS, METADATA) if layout == "ham10000" else (LABELS, HEADER)
    draft = Draft(folder / "source", rng, layout, _rows(rng, labels), list(header))
    draft.save("../outside/secret.png", picture(7777))
    for row in draft.rows:
        draft.save(row.cells[0], picture(row.number or 0))
    every: list[Fault | FileFault] = [*ROW_FAULTS, *FILE_FAULTS]
    first = every[seed % len(every)]
    style, settings = STYLES[seed % len(STYLES)]
    for name, value in settings.items():
        setattr(draft, name, value)
    planted = [first] if first in ROW_FAULTS else []
    others = rng.choice(len(ROW_FAULTS), int(rng.integers(0, 4)), replace=False)
    planted += [ROW_FAULTS[at] for at in others.tolist() if ROW_FAULTS[at] is not first]
    spots = rng.choice(N, len(planted), replace=False).tolist()
    # The one that needs a second, sound row comes last.
    for fault, at in sorted(zip(planted, spots, strict=True), key=lambda item: item[0] is lesion_of_two_patients):
        fault(draft, draft.rows[at])
    if first not in ROW_FAULTS:
        first(draft)  # type: ignore[call-arg]
    names = [style, *(fault.__name__ for fault in planted), *([] if first in ROW_FAULTS else [first.__name__])]
    return _case(draft, names)


def _rows(rng: np.random.Generator, names: tuple[str, ...]) -> list[Row]:
    labels = rng.choice(names, N).tolist()
    sexes = ("male", "female")
    ages = rng.choice(["", "5", "40", "85"], N).tolist()
    return [
        Row([f"images/p{at}.png", labels[at], f"L{at // 2}", f"P{at // 4}", ages[at], sexes[at % 2], "torso"], at)
        for at in range(N)
    ]


def _case(draft: Draft, names: list[str]) -> Case:
    case = Case([], wrong=draft.wrong, fatal=draft.fatal, faults=names)
    text, at = io.StringIO(newline=""), 1
    for line in draft.before:
        text.write(line + draft.newline)
        at += 1
    _write(text, draft, draft.header)
    for row in draft.rows:
        at += 1
        if row.raw is None:
            _write(text, draft, row.cells)
        else:
            text.write(row.raw + draft.newline)
        if row.number is not None:
            case.good[row.number] = _expected(row, draft.layout)
        case.wrong += [
            Wrong(item.message.replace("{row}", rf"{at}\b"), item.refused, item.late) for item in row.wrong
        ]
    body = text.getvalue().removesuffix(draft.newline) + draft.ending
    mark = "utf-16-be-mark"
    data = (
        b"\xfe\xff" + body.encode("utf-16-be")
        if draft.encoding == mark
        else body.encode(draft.encoding, "replace")
    )
    if draft.encoding == mark:
        draft.encoding = "utf-16"
    if not os.path.lexists(draft.folder / "table.csv"):
        draft.save("table.csv", draft.whole(data))
    case.arguments = [draft.layout, str(draft.folder), *(MAPPED if draft.layout == "csv" else [])]
    return case


def _write(text: io.StringIO, draft: Draft, cells: list[str]) -> None:
    csv.writer(text, delimiter=draft.separator, lineterminator=draft.newline, quoting=draft.quoting).writerow(
        cells
    )


def _expected(row: Row, layout: str) -> dict[str, str]:
    unknown = {"unknown", "NaN", "n/a", "None", "-", *WRONG_AGES}
    cells = [cell.strip() for cell in row.cells[: len(TARGETS)]]
    values = dict(zip(TARGETS, ["" if cell in unknown else cell for cell in cells], strict=True))
    patient = {"patient_id": ""} if layout == "ham10000" else {}
    return {**values, **patient, "path": row.path or f"images/p{row.number}.png"}
