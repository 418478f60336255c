"""Folders that are named as a run or a model and are none: one refusal for all commands, with the runs by name."""

from pathlib import Path

import pytest

from conftest import Invoke
from dermkit.errors import DataError
from dermkit.explanation.nearest_cases import images_root
from dermkit.files import write_json
from dermkit.perturbation.run import _find_run as counterfactuals_run
from dermkit.pipeline.ensemble_sources import find_source
from dermkit.prediction.locate import check_folder, check_model_folder, find_runs, suggest_run
from dermkit.prediction.parity_images import _validation_files as validation_files
from dermkit.runs.layout import run_of_model

COMMANDS = (
    ("evaluate", "nowhere"), ("report", "nowhere"), ("compare", "nowhere"), ("compare", "RUN", "nowhere"),
    ("evaluate", "nowhere", "--on", "DATA"), ("evaluate", "nowhere", "--open-test", "DATA"),
    ("predict", "nowhere", "image.jpg", "--out", "out"),
)  # fmt: skip


def told(invoke: Invoke, words: tuple[str, ...], places: dict[str, Path]) -> tuple[int, str]:
    code, out, err = invoke(*(places.get(word, word) for word in words))
    assert "Traceback" not in err
    return code, out + err


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_folder_that_is_not_there(
    words: tuple[str, ...],
    invoke: Invoke,
    trained: Path,
    binary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = told(invoke, words, {"RUN": trained, "DATA": binary})
    assert code == 3
    assert "nowhere: there is no such folder" in text and "To do: check the path" in text
    assert not (tmp_path / "out").exists() and not (tmp_path / "comparison").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [(("evaluate", "runs"), 2), (("report", "runs"), 2), (("compare", "RUN", "runs"), 3),
     (("evaluate", "runs", "--on", "DATA"), 3), (("predict", "runs", "image.jpg", "--out", "out"), 3)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_a_folder_of_runs_names_them(
    words: tuple[str, ...], expected: int, invoke: Invoke, trained: Path, binary: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-s0", "tiny-s1"):
        write_json(tmp_path / "runs" / name / "run.json", {}, format=1)
    (tmp_path / "runs" / "other").mkdir()
    code, text = told(invoke, words, {"RUN": trained, "DATA": binary})
    assert code == expected
    assert "To do: name a run in it: runs/tiny-s0, runs/tiny-s1" in text and "other" not in text


def test_many_runs_are_counted_and_a_file_is_no_folder(tmp_path: Path) -> None:
    for number in range(8):
        write_json(tmp_path / f"r{number}" / "metrics.json", {}, format=1)
    assert len(find_runs(tmp_path)) == 8
    assert suggest_run(tmp_path, "").endswith("r4 or one of 3 more")
    assert suggest_run(tmp_path / "r0", "something else") == "something else"
    with pytest.raises(DataError, match="is a file, not a folder"):
        check_folder(tmp_path / "r0" / "metrics.json")
    check_model_folder(tmp_path / "r0")  # what is no model is told by what verifies it


def test_out_does_not_go_with_a_run(invoke: Invoke, trained: Path, tmp_path: Path) -> None:
    before = (trained / "metrics.json").stat().st_mtime_ns
    code, _, err = invoke("evaluate", trained, "--out", tmp_path / "x")
    assert code == 2
    assert "--out goes with --on or --predictions" in err
    assert (trained / "metrics.json").stat().st_mtime_ns == before, "nothing was evaluated in place"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", [".", "../model", "LINK", "WHOLE"])
def test_a_model_folder_is_known_however_it_is_named(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` and a link of another name have no `model` at their end, and lie in the run all the same."""
    run, model = trained.resolve(), (trained / "model").resolve()
    (tmp_path / "best").symlink_to(model)
    monkeypatch.chdir(model)
    folder = {"LINK": tmp_path / "best", "WHOLE": model}.get(name, Path(name))
    assert run_of_model(folder).resolve() == run
    assert images_root(folder) is not None and images_root(folder) == images_root(model)
    selected = counterfactuals_run(folder, None)
    assert selected is not None and selected.path.resolve() == run
    source = find_source(folder)
    assert source.run is not None and source.run.path.resolve() == run
    files, _ = validation_files(folder)
    assert files == validation_files(model)[0] and len(files) > 0


def test_a_folder_that_is_no_model_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert run_of_model(Path()) == Path() and run_of_model(Path("run")) == Path("run")
    assert run_of_model(Path("run/model")) == Path("run/model"), "a link called model that leads elsewhere"
