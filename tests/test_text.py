"""Names that other people gave stay text: on a terminal, in Markdown, in a spreadsheet, on a sheet."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.errors import DataError, printable
from dermkit.models.card import markdown
from dermkit.prediction.run import predict
from dermkit.render import sheets
from dermkit.render.cells import defused, undefused
from made_images import encoded, speckled

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202egpj.exe\x7f\udc80"


def test_what_moves_a_cursor_is_escaped() -> None:
    assert printable("plain é 中\tx\ny") == "plain é 中\tx\ny"
    assert printable(ESCAPES) == ("\\x1b[31mred\\x1b]0;title\\x07\\x9b2J\\u202egpj.exe\\x7f\\udc80")
    assert all(character.isprintable() for character in printable(ESCAPES))


def test_no_escape_of_a_name_reaches_the_terminal(tmp_path: Path, trained: Path, invoke: Invoke) -> None:
    name = "\x1b[2J\x1b]0;owned\x07"
    for class_name in (f"benign{name}", "malignant"):
        (tmp_path / "images" / class_name).mkdir(parents=True)
        (tmp_path / "images" / class_name / f"{name}.png").write_bytes(
            encoded(speckled(seed=len(class_name)), "PNG")
        )
        (tmp_path / "images" / class_name / f"{name}broken.png").write_bytes(b"x")
    data = tmp_path / f"data{name}"
    for command in (
        ["import", "folder", tmp_path / "images", "--out", data],
        ["audit", data],
        ["split", data],
        ["predict", trained, tmp_path / "images", "--out", tmp_path / f"out{name}"],
        ["predict", trained, tmp_path / name, "--out", tmp_path / "other"],
        ["evaluate", trained, "--on", data],
        ["report", tmp_path / name],
    ):
        code, out, said = invoke(*command)
        assert code in (0, 2, 3, 7)
        assert "\x1b" not in out + said
        assert "\x07" not in out + said
    assert "\\x1b[2J" in said


def test_a_card_shows_names_and_follows_none() -> None:
    assert markdown("a|b\n\n# c") == "a\\|b \\# c"
    assert markdown("<script>alert(1)</script>") == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert markdown("![x](http://example.org) `y` *z*") == "!\\[x\\](http://example.org) \\`y\\` \\*z\\*"
    assert markdown("\x1b[31m&amp;") == "\\\\x1b\\[31m&amp;amp;"


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-cmd", "'-cmd"), ("@sum", "'@sum"), ("\tx", "'\tx"), ("\rx", "'\rx"),
        ("'=1", "''=1"), ("x=1", "x=1"), ("-1.5e-3", "-1.5e-3"), ("+2", "+2"), ("'x", "'x"), ("", ""),
        ("-1+1", "'-1+1"), ("  =1+1", "'  =1+1"), ("' =1", "'' =1"), (" x=1", " x=1"),
    ],
)  # fmt: skip
def test_a_cell_is_no_formula_and_reads_back(cell: str, written: str) -> None:
    assert defused([cell, 1.5, None]) == [written, 1.5, None]
    assert undefused(written) == cell


def test_predictions_are_defused_unless_asked_otherwise(trained: Path, tmp_path: Path, invoke: Invoke) -> None:
    names = ["=cmd|' calc'!A0.png", "-2+3.png", "@x.png", "+a.png", "plain.png"]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "images" / name).write_bytes(encoded(speckled(seed=number), "PNG"))
    (tmp_path / "images" / "=broken.png").write_bytes(b"x")
    outcome = predict(trained, [str(tmp_path / "images")], out=tmp_path / "out")
    assert [name for name, _, _ in outcome.rejected_images] == ["=broken.png"]
    for file in ("predictions.csv", "decisions.csv", "refused.csv"):
        with (tmp_path / "out" / file).open(newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert not [cell for cell in cells if cell[:1] in "=+@" and cell], file
    ids = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype=str)["image_id"]
    assert sorted(map(undefused, ids)) == sorted(Path(name).stem for name in names)
    assert invoke("predict", trained, tmp_path / "images", "--out", tmp_path / "raw", "--raw")[0] == 7
    ids = pd.read_csv(tmp_path / "raw" / "predictions.csv", dtype=str)["image_id"]
    assert sorted(ids) == sorted(Path(name).stem for name in names)


def test_refused_files_of_an_import_are_defused(tmp_path: Path, binary: Path, invoke: Invoke) -> None:
    shutil.copytree(binary.parent / "images", tmp_path / "images")
    folder = next(path.parent for path in (tmp_path / "images").rglob("*.jpg"))
    (folder / "x.jpg").write_bytes(b"")
    (tmp_path / "images" / "=x.jpg").write_bytes(b"")
    invoke("import", "folder", tmp_path / "images", "--out", tmp_path / "data")
    text = (tmp_path / "data" / "refused.csv").read_text()
    assert "\n'=x.jpg," in text
    assert dk.load_dataset(tmp_path / "data").class_names


def test_names_in_any_script_are_told_apart_on_a_sheet() -> None:
    signs = sheets._signs_of(sheets._font_for(frozenset({ord("é")}))[0])
    assert {ord("é"), ord("д"), ord("λ")} <= signs
    assert sheets._drawable("Näevus де λ", signs) == "Näevus де λ"
    assert sheets._drawable("é中", sheets._ASCII) == "e<4E2D>"
    assert sheets._drawable("中文\x1b", frozenset({*sheets._ASCII, ord("中"), ord("文")})) == "中文\\x1b"
    one, other = (
        np.asarray(sheets.contact_sheet([sheets.Tile(np.zeros((8, 8, 3), np.uint8), name)], columns=1, edge=64))
        for name in ("黑色素瘤", "黑色素痣")
    )
    assert (one != other).any()


def test_an_error_message_is_escaped(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError(f"{ESCAPES}: is wrong")

    monkeypatch.setattr("dermkit.data.importers.run.import_dataset", refuse)
    monkeypatch.setattr("dermkit.cli.data.check_images", refuse, raising=False)
    code, _, said = invoke("audit", tmp_path / "\x1b[2J")
    assert code == 3
    assert "\x1b" not in said


def test_commands_print_through_the_one_function_that_escapes() -> None:
    sources = (Path(__file__).parents[1] / "src" / "dermkit" / "cli").glob("*.py")
    users = {path.name for path in sources if re.search(r"\btyper\.echo\(", path.read_text("utf-8"))}
    assert users == {"console.py"}
