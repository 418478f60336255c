"""The files of a run folder have one table of names and formats, one reader, and commands that survive odd paths."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dermkit.data.importers.run import import_dataset
from dermkit.errors import DataError, UsageError
from dermkit.files import check_file_name, shell_path
from dermkit.pipeline import next_steps
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import METRICS, NEXT_STEPS_FILE, RUN

SRC = Path(__file__).parents[1] / "src" / "dermkit"

TABLES = (
    "runs/layout.py", "models/card.py", "models/checksums.py", "training/checkpoint.py", "training/state.py",
    "lint/rules.py",
)  # fmt: skip
"""What names the files of run, summary, model and checkpoint folders: `runs` may not be imported from below."""
LOCATION_TABLE = "data/manifest.py"
FILE = re.compile(r"[\w.-]+\.(json|csv|txt|md|html|png|safetensors)|SHA256SUMS")


def declared_names(path: Path) -> set[str]:
    """Return the file and folder names that a module's top level binds to a constant or a `JsonFile`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign):
            continue
        is_folder = ast.unparse(node.targets[0]).endswith("_FOLDER")
        for part in ast.walk(node.value):
            text = part.value if isinstance(part, ast.Constant) else None
            if isinstance(text, str) and (is_folder or FILE.fullmatch(text)):
                names.add(text)
    return names


def literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of what may name a file: whole strings, and what follows a `/` in an f-string or path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FILE.fullmatch(node.value):
            yield node.lineno, node.value
        if isinstance(node, ast.JoinedStr):
            for part in node.values:
                if isinstance(part, ast.Constant) and (found := re.search(r"/([\w.-]+)$", str(part.value))):
                    yield node.lineno, found[1]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            yield node.lineno, str(node.right.value).rpartition("/")[2]


def stray_names(src: Path) -> list[str]:
    """Return where a file or folder of a run is named outside the tables, or a format number given by hand."""
    names = {name for table in TABLES for name in declared_names(src / table)} | {"location.json"}
    found = set()
    for path in sorted(src.rglob("*.py")):
        module, tree = path.relative_to(src).as_posix(), ast.parse(path.read_text())
        allowed = declared_names(path) if module in (*TABLES, LOCATION_TABLE) else set()
        found |= {
            f"{module}:{line} {text}" for line, text in literals(tree) if text in names and text not in allowed
        }
        found |= {
            f"{module}:{node.value.lineno} format={node.value.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg == "format" and isinstance(node.value, ast.Constant)
        }
    return sorted(found)


def test_no_file_of_a_run_is_named_outside_the_tables() -> None:
    assert not stray_names(SRC), "import the name from runs/layout.py or the table of its package"


def test_a_name_stands_in_one_table() -> None:
    tables = [declared_names(SRC / table) for table in TABLES]
    names = [name for table in tables for name in table]
    assert {"run.json", "metrics.json", "summary.json", "model.json", "last.safetensors", "model"} <= set(names)
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize(
    ("planted", "refused"),
    [
        ('PATH = folder / "run.json"', "run.json"),
        ('NAMES = ("metrics.json", "other.json")', "metrics.json"),
        ("text = f\"{folder / 'split.csv'}: is broken\"", "split.csv"),
        ('text = f"{folder}/report.html"', "report.html"),
        ('path = run / "model"', "model"),
        ('path = run / "figures/intervals.png" / "checkpoints"', "checkpoints"),
        ('write_json(path, {}, format=1)', "format=1"),
    ],
)  # fmt: skip
def test_a_planted_name_is_refused(tmp_path: Path, planted: str, refused: str) -> None:
    for table in TABLES:
        (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / table).write_text((SRC / table).read_text())
    (tmp_path / "planted.py").write_text(f'"""run.json in a sentence, and a key: {{"model": 1}}."""\n{planted}\n')
    assert stray_names(tmp_path) == [f"planted.py:2 {refused}"]


def test_files_are_read_when_they_are_needed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert (run.run_json, run.seal, run.environment, run.next_steps) == ({}, {}, {}, "")
    assert run.recipe is None and run.log is None and run.groups() is None and run.images_root() is None
    with pytest.raises(DataError, match=r"metrics\.json"):
        _ = run.metrics
    with pytest.raises(DataError, match=r"run\.json"):
        _ = run.classes
    RUN.write(tmp_path, {"dataset": {"classes": [], "manifest_sha256": "ab"}})
    METRICS.write(tmp_path, {"splits": {}})
    assert run.run_json == {}, "what was read stays as it was"
    assert RunFolder(tmp_path).dataset_hash == "ab" and RunFolder(tmp_path).classes == ()
    with pytest.raises(DataError, match="has no split"):
        _ = RunFolder(tmp_path).metrics


@pytest.mark.parametrize(
    "name", ["con", "NUL", "aux.txt", "com1", "a.", "a ", "a/b", "a\\b", "..", ".", "/", "a:b", "a\n"]
)
def test_a_name_that_is_no_file_name_everywhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"data set name .*becomes a file name"):
        check_file_name(name, "data set name")


@pytest.mark.parametrize("name", ["nul", "../elsewhere"])
def test_such_a_data_set_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"data set name .*\n?.*nothing was written"):
        import_dataset("folder", tmp_path, out=tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "HAM10000", "made dermoscopy", "Haut und Läsion", "console", "a.b-c_d"])
def test_ordinary_names_are_taken(name: str) -> None:
    check_file_name(name, "data set name")


@pytest.mark.parametrize("name", ["runs", "my runs", "Doctor's runs", 'a "b" c', "$HOME; ls", "läsion"])
def test_the_next_commands_survive_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("dermkit.files.ON_WINDOWS", False)
    run, dataset, weights = tmp_path / name / "run", tmp_path / name / "data", tmp_path / name / "w.safetensors"
    next_steps.write_next_steps(run, dataset, weights, is_sealed=True)
    lines = (run / NEXT_STEPS_FILE).read_text(encoding="utf-8").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  dermkit ")]
    assert ["dermkit", "evaluate", str(run), "--open-test", str(dataset)] in commands
    assert ["dermkit", "predict", str(run / "model"), "IMAGE...", "--out", "predictions"] in commands
    assert ["dermkit", "serve", str(run / "model")] in commands
    (train,) = [words for words in commands if words[1] == "train"]
    assert train[2] == str(run / "recipe.json") and train[train.index("--weights") + 1] == str(weights)
    assert train[train.index("--split") + 1] == str(run / "split.csv")


def test_windows_paths_are_quoted_where_they_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermkit.files.ON_WINDOWS", True)
    assert shell_path(r"C:\runs\a") == r"C:\runs\a"
    assert shell_path(r"C:\my runs\a") == r'"C:\my runs\a"'
    assert shell_path(r"C:\a&b") == r'"C:\a&b"'
