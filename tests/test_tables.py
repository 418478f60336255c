"""Tables as people have them: what is written comes back, and what is wrong is listed, all of it, by row."""

import codecs
import csv
import io
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermkit.data.importers import csv_tables, normalise
from dermkit.data.importers.csv_tables import ProblemList, TextTable, find_column, read_csv_table, read_table_head
from dermkit.data.manifest import MAX_AGE
from dermkit.errors import DataError


def read(path: Path, data: bytes | str, encoding: str = "utf-8") -> tuple[TextTable, list[str]]:
    """Return a table and its problems as "row: text"."""
    path.write_bytes(data.encode(encoding) if isinstance(data, str) else data)
    problems = ProblemList()
    table = read_csv_table(path, problems)
    return table, [f"{row}: {text}" for _, row, text in sorted(problems.entries)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "t.csv"


# Anything comes back -----------------------------------------------------------------------------------------------

ENCODINGS = {"utf-8": b"", "utf-8-sig": b"", "utf-16": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-32": b""}
CELL = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufeff")
    | st.sampled_from(',;\t|"\n'),
    max_size=12,
)


@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=8).filter(
        lambda rows: any(cell.strip() for row in rows for cell in row)
    ),
    separator=st.sampled_from(csv_tables.SEPARATORS),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quote_all=st.booleans(),
    trailing=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_comes_back(
    file: Path,
    rows: list[tuple[str, str, str]],
    separator: str,
    encoding: str,
    end: str,
    quote_all: bool,
    trailing: bool,
) -> None:
    stream = io.StringIO(newline="")
    # With "\r" for line ends, Python's writer leaves a "\n" in a cell unquoted: no reader could know better.
    how: Literal[0, 1] = csv.QUOTE_ALL if quote_all or end == "\r" else csv.QUOTE_MINIMAL
    writer = csv.writer(stream, delimiter=separator, lineterminator=end, quoting=how)
    more = [""] if trailing else []
    writer.writerow(["image", "label", "remark", *more])
    writer.writerows([*row, *more] for row in rows)
    table, problems = read(file, ENCODINGS[encoding] + stream.getvalue().encode(encoding))
    assert problems == []
    whole = [tuple(cell.strip() for cell in row) for row in rows]
    kept = [(at, row) for at, row in enumerate(whole, start=2) if any(row)]
    assert list(table.frame.itertuples(index=False, name=None)) == [row for _, row in kept]
    assert table.row_numbers.tolist() == [at for at, _ in kept]
    assert table.columns == ("image", "label", "remark")


@pytest.mark.parametrize("separator", csv_tables.SEPARATORS)
def test_the_separator_is_found_by_content(file: Path, separator: str) -> None:
    file.write_text(f"image{separator}label\na, b; c{separator}nv\n".replace("a, b; c", '"a, b; c | d"'))
    assert read_table_head(file) == csv_tables.TableHead(separator, ("image", "label"))


def test_a_column_looked_for_decides_between_separators(file: Path) -> None:
    file.write_text("image;label,of,the,lesion\na;nv,x,y,z\n")
    assert read_table_head(file).separator == ","
    assert read_table_head(file, ["image"]).columns == ("image", "label,of,the,lesion")


def test_a_line_that_names_the_separator_is_a_row_but_no_header(file: Path) -> None:
    table, problems = read(file, "sep=;\nimage;label\na;nv\nb\n")
    assert table.columns == ("image", "label")
    assert table.row_numbers.tolist() == [3]
    assert problems == ["4: 1 cell, the header has 2"]


def test_ids_stay_text(file: Path) -> None:
    cells = ["007", "NA", "1e5", "1_000", "nan", "0x1F", "TRUE", "2024-01-02", "+5", "\uff11"]
    table, problems = read(file, "id,x\n" + "".join(f"{cell},1\n" for cell in cells))
    assert (table.frame["id"].tolist(), problems) == (cells, [])


def test_latin_1_is_read_with_a_note(file: Path) -> None:
    table, problems = read(file, "image,site\na,tête\n", "latin-1")
    assert table.frame["site"].tolist() == ["tête"]
    assert problems == []
    assert [(note.code, "Latin-1" in note.text) for note in table.notes] == [("latin1", True)]


def test_rows_are_counted_as_a_spreadsheet_counts(file: Path) -> None:
    text = 'image,remark\n\na,"two\nlines"\n,,\nb,x,y\nc,z\n'
    table, problems = read(file, text)
    assert table.frame["image"].tolist() == ["a", "c"]
    assert table.row_numbers.tolist() == [3, 6]
    assert problems == ["5: 3 cells, the header has 2"]


def test_columns_without_a_name_are_left_out_and_noted(file: Path) -> None:
    table, problems = read(file, ",image,label,,\n0,a,nv,,\n1,b,mel\n")
    assert (table.columns, problems) == (("image", "label"), [])
    assert table.frame["image"].tolist() == ["a", "b"]
    assert [note.code for note in table.notes] == ["nameless_column"]


def test_only_the_columns_that_were_asked_for_are_kept(file: Path) -> None:
    file.write_text("a,b,c\n1,2,3\n")
    table = read_csv_table(file, ProblemList(), usecols=["c", "a", "z"])
    assert list(table.frame) == ["a", "c"]
    assert table.columns == ("a", "b", "c")


def test_a_long_table_is_read_in_chunks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_tables, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(csv_tables, "_MAX_INTERNED", 3)
    table, _ = read(file, "a,b\n" + "".join(f"{i},{i % 5}\n" for i in range(100)))
    assert table.frame["a"].tolist() == [str(i) for i in range(100)]
    assert table.frame["b"].tolist() == [str(i % 5) for i in range(100)]
    assert table.row_numbers.tolist() == list(range(2, 102))


# What is wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["0: has no header and no rows"]),
        ("\n\n", ["0: has no header and no rows"]),
        ("image,label\n", ["0: has no rows"]),
        ("image,label\n,\n", ["0: has no rows"]),
        ("image,label,image\na,nv,b\n", ["1: the header names the column 'image' 2 times"]),
        ("image,label\na\nb,nv\nc,nv,x\n", ["2: 1 cell, the header has 2", "4: 3 cells, the header has 2"]),
        ('image,label\na,nv\nb,"nv\nc,nv\n', ["3: a quote is opened and never closed"]),
        (
            'image,label\n"a"x,nv\nb,nv\nc\n',
            [
                "2: text after a closed quote, before the next ','; a quote inside a value is written twice",
                "4: 1 cell, the header has 2",
            ],
        ),
        (f"image,label\na,{'x' * 200_000}\nb,nv\nc\n",
         ["2: cannot be taken apart: field larger than field limit (131072)",
          "4: 1 cell, the header has 2"]),
    ],
)  # fmt: skip
def test_all_problems_are_found_with_their_rows(file: Path, text: str, problems: list[str]) -> None:
    assert read(file, text)[1] == problems


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "control character"),
        (b"image,label\na\x00,nv\n", "control character"),
        (b"\xff\xfe\x00lesion", "cannot be read as a table"),
        ("image,label\na,nv\n".encode("utf-16-le"), "control character"),
        (b"\xef\xbb\xbfimage,label\n\xff,nv\n", "utf-8"),
    ],
)
def test_what_is_no_text_is_no_table(file: Path, data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        read(file, data)
    assert caught.value.exit_code == 3


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_csv_table(tmp_path / "none.csv", ProblemList())


def test_problems_of_two_tables_are_told_together(tmp_path: Path) -> None:
    problems = ProblemList()
    problems.raise_if_any()
    problems.add(tmp_path / "b.csv", 12, "late")
    problems.add(tmp_path / "b.csv", 3, "early")
    problems.add(tmp_path / "a.csv", 0, "whole")
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    lines = caught.value.message.splitlines()
    assert lines == [
        "2 tables: 3 problems:", str(tmp_path / "a.csv"), "  whole", str(tmp_path / "b.csv"), "  row 3: early",
        "  row 12: late",
    ]  # fmt: skip


def test_a_million_problems_are_counted_not_printed(tmp_path: Path) -> None:
    problems = ProblemList()
    for row in range(50_000):
        problems.add(tmp_path / "a.csv", row, "wrong")
    with pytest.raises(DataError, match="50000 problems") as caught:
        problems.raise_if_any()
    assert caught.value.message.endswith("... and 49500 more")
    assert len(caught.value.message.splitlines()) == 502
    assert len(problems.entries) < 50_000


def test_columns_are_found_by_case_and_spaces_only_if_one_is_meant() -> None:
    assert find_column(("Image", "label"), " image ") == "Image"
    assert find_column(("Image", "image"), "image") == "image"
    assert find_column(("Image", "IMAGE"), "image") is None
    assert find_column(("Image",), "imag") is None


# Values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "age"),
    [
        ("80.0", "80"), ("80", "80"), ("0", "0"), ("0.0", "0"), ("007", "7"), ("45.5", "45.5"), ("45,50", "45.5"),
        ("120", "120"), ("", ""), ("NaN", ""), ("NA", ""), ("N/A", ""), ("unknown", ""), ("None", ""), ("-", ""),
        ("0.5", "0.5"), ("85+", None),
        ("60-70", None), (">90", None), ("-1", None), ("121", None), ("1962", None),
        ("-5", None), ("1e1", None), ("forty", None), ("45 years", None),
        ("inf", None), ("٤٥", None), ("120.5", None),
    ],
)  # fmt: skip
def test_ages_are_years_or_unknown_or_wrong(given: str, age: str | None) -> None:
    assert normalise.parse_age(given) == age


def test_the_oldest_age_is_the_manifests() -> None:
    assert normalise.parse_age(str(MAX_AGE)) == str(MAX_AGE)
    assert normalise.parse_age(str(MAX_AGE + 1)) is None


def test_sex_skin_type_and_side_have_one_spelling() -> None:
    assert [normalise.parse_sex(item) for item in ("M", "male", "Female", "F", "NaN", "?", "Other")] == [
        "male", "male", "female", "female", "", "", "other",
    ]  # fmt: skip
    assert [
        normalise.parse_skin_type(item)
        for item in ("I", "iii", "Type IV", "FST 2", "6.0", "5", "NA", "VII", "dark")
    ] == [
        "I",
        "III",
        "IV",
        "II",
        "VI",
        "V",
        "",
        None,
        None,
    ]
    for item in ("-1", "-1.0", "-2", "_5", "0", "7", "III-IV", "12", "2.5"):
        assert normalise.parse_skin_type(item) is None, item
    assert [normalise.parse_sex(item) for item in ("-1", "9", "0.0", "X")] == [None, None, None, "x"]
    assert [normalise.parse_site(item) for item in ("-1", "99", "Back", "n/a")] == [None, None, "Back", ""]
    assert [normalise.parse_split(item) for item in ("Train", "VAL", "test", "nan", "holdout")] == [
        "train", "validation", "test", "", None,
    ]  # fmt: skip
