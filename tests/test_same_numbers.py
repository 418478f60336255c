"""benchmarks/same_numbers.py refuses what it is there to refuse: one differing digit, in every kind of file."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def load_script() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "same_numbers.py"
    spec = importlib.util.spec_from_file_location("same_numbers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


same_numbers = load_script()

RUN_JSON = """{"auroc": 0.9120000000000001, "minutes": 3.1, "rows": [1, 2], "kept": "best",
"text": "The mean of 3 runs is 0.5 here."}"""
PAGE = """<html><style>p { margin: 3px }</style><p title="n 7">AUROC 0.912 after 3.1 minutes</p>
<table><tr><th>epoch</th><th>train seconds</th></tr><tr><td>1</td><td>2.5</td></tr></table>
<dl><dt>minutes</dt><dd>4</dd><dt>seed</dt><dd>0</dd></dl><img src="data:image/png;base64,AAAA">
<h2>Results of 1 run</h2><p>of 2 lesions</p><h3>Test, by sex</h3><p>0.5</p></html>"""


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal trees of one step, `demo`."""
    before, after = tmp_path / "before", tmp_path / "after"
    write(before / "record" / "setting.json", json.dumps({"paths": {}, "source_sha256": "old"}))
    write(before / "record" / "steps.csv", "step,command,code,seconds\ndemo,demo --out demo,0,1.5\n")
    write(before / "record" / "printed" / "demo.txt", "validation loss 0.25\n")
    write(before / "demo" / "0123456789ab-s0" / "run.json", RUN_JSON)
    write(before / "demo" / "decided.csv", "image_id,p_mel,seconds\na b,0.125,1\nc,0.5,2\n")
    write(before / "demo" / "report.html", PAGE)
    np.save(before / "demo" / "array.npy", np.arange(4.0))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + np.array([1, 2], dtype="<f4").tobytes()
    (before / "demo" / "member.safetensors").write_bytes(tensors)
    (before / "demo" / "sheet.png").write_bytes(b"picture")
    shutil.copytree(before, after)
    edit("record/setting.json", "old", "new")(after)
    edit("demo/0123456789ab-s0/run.json", '"kept"', '"keep"')(after)
    (after / "demo" / "decided.csv").rename(after / "demo" / "decisions.csv")
    (after / "demo" / "0123456789ab-s0").rename(after / "demo" / "ba9876543210-s0")
    return before, after


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        path = tree / name
        data = path.read_bytes()
        assert old.encode() in data
        path.write_bytes(data.replace(old.encode(), new.encode()))

    return change


RUN = "demo/ba9876543210-s0/run.json"


def compare(trees: tuple[Path, Path]) -> int:
    code: int = same_numbers.compare(*trees, ["demo"])
    return code


def test_equal_trees_are_equal(trees: tuple[Path, Path]) -> None:
    """A renamed file and a run folder of another hash included."""
    assert compare(trees) == 0


@pytest.mark.parametrize(
    "change",
    [
        edit(RUN, "0.9120000000000001", "0.9120000000000002"),
        edit(RUN, "[1, 2]", "[1]"),
        edit(RUN, '"best"', '"last"'),
        edit(RUN, "3 runs", "4 runs"),
        edit(RUN, '"auroc"', '"area"'),
        edit("demo/decisions.csv", "0.125", "0.1250"),
        edit("demo/decisions.csv", "a b", "a c"),
        edit("demo/decisions.csv", "p_mel", "p_nv"),
        edit("demo/decisions.csv", "c,0.5,2\n", ""),
        edit("demo/report.html", "0.912", "0.913"),
        edit("demo/report.html", "n 7", "n 8"),
        edit("demo/report.html", "of 2 lesions", "of 3 lesions"),
        edit("demo/report.html", "Results of 1 run", "Results of 2 runs"),
        edit("demo/report.html", "<td>1</td>", "<td>2</td>"),
        edit("demo/report.html", "<dd>0</dd>", "<dd>1</dd>"),
        edit("record/printed/demo.txt", "0.25", "0.26"),
        edit("record/steps.csv", ",0,1.5", ",3,1.5"),
        edit("record/steps.csv", "demo,demo", "other,demo"),
        edit("demo/member.safetensors", "\0\0\0@", "\0\0\1@"),
        edit("demo/array.npy", "\0\0\0@", "\0\1\0@"),
        lambda tree: (tree / "demo" / "report.html").unlink(),
        lambda tree: write(tree / "demo" / "new.csv", "a\n1\n"),
    ],
)
def test_planted_difference_is_refused(trees: tuple[Path, Path], change: Callable[[Path], None]) -> None:
    change(trees[1])
    assert compare(trees) == 1


@pytest.mark.parametrize(
    "change",
    [
        edit(RUN, "3.1", "2.9"),
        edit(RUN, "The mean of", "On average"),
        edit("demo/decisions.csv", "0.125,1", "0.125,9"),
        edit("demo/report.html", "3.1 minutes", "9 minutes"),
        edit("demo/report.html", "<p>0.5</p>", "<p>none</p>"),
        edit("demo/report.html", "<td>2.5</td>", "<td>9</td>"),
        edit("demo/report.html", "<dd>4</dd>", "<dd>9</dd>"),
        edit("demo/report.html", "margin: 3px", "margin: 4px"),
        edit("demo/sheet.png", "picture", "drawing"),
        edit("record/steps.csv", "1.5", "9.5"),
    ],
)
def test_times_words_and_pictures_are_no_differing_numbers(
    trees: tuple[Path, Path], change: Callable[[Path], None]
) -> None:
    change(trees[1])
    assert compare(trees) == 0


def test_renamed_keys_are_followed_where_they_are_named(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(RUN, '"auroc"', '"area"')(trees[1])
    assert compare(trees) == 1
    monkeypatch.setattr(same_numbers, "RENAMED", {**same_numbers.RENAMED, "run.json/auroc": "area"})
    assert compare(trees) == 0


def test_two_runs_of_one_version_keep_its_names(trees: tuple[Path, Path]) -> None:
    edit("record/setting.json", "new", "old")(trees[1])
    edit(RUN, '"keep"', '"kept"')(trees[1])
    assert compare(trees) == 1
    (trees[1] / "demo" / "decisions.csv").rename(trees[1] / "demo" / "decided.csv")
    assert compare(trees) == 0


def test_expected_differences_are_listed_with_their_reason(
    trees: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    edit("demo/report.html", "<p>0.5</p>", "<p>none</p>")(trees[1])
    assert compare(trees) == 0
    assert "an absent class is null" in capsys.readouterr().out


def test_unknown_kind_of_file_is_refused(trees: tuple[Path, Path]) -> None:
    for tree in trees:
        write(tree / "demo" / "table.parquet", "x")
    with pytest.raises(SystemExit, match="no way to compare"):
        compare(trees)


def test_every_step_has_a_name_of_its_own() -> None:
    names = [step.name for step in same_numbers.STEPS]
    assert len(names) == len(set(names))
