"""A registry: versions by name, a chained record, roll-back; kills, two processes and damage leave it readable."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dermkit.errors import UntrustedError, UsageError
from dermkit.files import TEMP_PREFIX
from dermkit.runs import registry as store
from dermkit.runs import registry_record
from dermkit.runs.registry import (
    Registry,
    check_registry_place,
    read_registry,
    record_decision,
    register_first,
    roll_back,
    serving_model,
)
from dermkit.runs.registry_record import RECORD_FILE, RegistryStep


def make_run(folder: Path, number: int) -> Path:
    """Write a folder with what a registry looks at in a run: a card and weights that are told apart."""
    model = folder / "model"
    model.mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"large")
    (model / "model.json").write_text(json.dumps({"format": 8, "members": [number]}), encoding="utf-8")
    (model / "net.safetensors").write_bytes(bytes([number]) * 100)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    register_first(tmp_path / "registry", make_run(tmp_path / "run1", 1), details={})
    return tmp_path / "registry"


def add(folder: Path, number: int, *, is_promoted: bool, champion: str | None = None) -> Registry:
    run = folder.parent / f"run{number}"
    champion = champion or read_registry(folder).current
    record_decision(
        folder, run if run.exists() else make_run(run, number), champion=champion, update=f"key{number}",
        is_promoted=is_promoted, details={"reasons": ["because"]},
    )  # fmt: skip
    return read_registry(folder)


def test_a_promoted_version_serves_a_refused_one_does_not_and_an_earlier_one_can_again(folder: Path) -> None:
    assert read_registry(folder).current == "v1"
    assert add(folder, 2, is_promoted=True).current == "v2"
    registry = add(folder, 3, is_promoted=False)
    assert [(version.name, version.state) for version in registry.versions] == [
        ("v1", "earlier"), ("v2", "serving"), ("v3", "refused"),
    ]  # fmt: skip
    assert serving_model(folder) == folder / "versions" / "v2" / "model"
    assert roll_back(folder, "v1", reason="drift").current == "v1"
    assert [step.kind for step in read_registry(folder).steps] == ["register", "promote", "refuse", "roll back"]
    assert read_registry(folder).steps[-1].details == {"from": "v2", "reason": "drift"}
    assert not (folder / "versions" / "v1" / "checkpoints").exists()
    assert serving_model(folder.parent) == folder.parent, "any other folder is a model folder as before"


@pytest.mark.parametrize(("name", "text"), [("v2", "refused"), ("v1", "serves already"), ("v9", "no version")])
def test_a_roll_back_that_makes_no_sense_is_refused(folder: Path, name: str, text: str) -> None:
    add(folder, 2, is_promoted=False)
    with pytest.raises(UsageError, match=text):
        roll_back(folder, name)
    assert len(read_registry(folder).steps) == 2


def test_a_decision_is_recorded_once_and_only_against_the_version_that_serves(folder: Path) -> None:
    add(folder, 2, is_promoted=True)
    assert len(add(folder, 2, is_promoted=True, champion="v1").steps) == 2, "the same update again"
    with pytest.raises(UsageError, match="v2 serves now, and the challenger was compared with v1"):
        add(folder, 3, is_promoted=True, champion="v1")
    assert len(read_registry(folder).versions) == 2


def _drop_a_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]), encoding="utf-8")


def _change_a_line(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace('"refuse"', '"promote"'), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [_drop_a_line, _change_a_line, lambda path: path.write_bytes(b"\xff"), lambda path: path.write_text("")],
)
def test_a_damaged_record_is_named_and_nothing_is_served(folder: Path, damage: Callable[[Path], object]) -> None:
    add(folder, 2, is_promoted=False)
    add(folder, 3, is_promoted=True)
    damage(folder / RECORD_FILE)
    with pytest.raises(UntrustedError, match=RECORD_FILE):
        serving_model(folder)
    with pytest.raises(UntrustedError):
        roll_back(folder, "v1")


_KEY = {"model_key": "0" * 64}


@pytest.mark.parametrize(
    "step",
    [
        RegistryStep(2, "", "promote", "../../elsewhere", "key2", _KEY),
        RegistryStep(2, "", "promote", "v2", "../../elsewhere", _KEY),
        RegistryStep(2, "", "promote", "v2", "key2", {}),
        RegistryStep(2, "", "promote", "v2", "key2", ["model_key"]),  # type: ignore[arg-type]
        RegistryStep(2, "", "promote", "v1", "key2", _KEY),
        RegistryStep(2, "", "begin", "v2", "key2", {}),
        RegistryStep(2, "", "roll back", "v7", "", {}),
        RegistryStep(2, "", "promote", 2, "key2", _KEY),  # type: ignore[arg-type]
    ],
)
def test_a_record_that_was_written_by_another_hand_is_refused(folder: Path, step: RegistryStep) -> None:
    lines = registry_record._lines([*read_registry(folder).steps, step])
    (folder / RECORD_FILE).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(UntrustedError, match="line 2"):
        serving_model(folder)


def test_a_record_that_is_nested_without_end_is_refused(folder: Path) -> None:
    (folder / RECORD_FILE).write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(UntrustedError, match="line 1"):
        read_registry(folder)


def test_another_model_in_a_version_is_noticed(folder: Path) -> None:
    (folder / "versions" / "v1" / "model" / "net.safetensors").write_bytes(b"other")
    with pytest.raises(UntrustedError, match="not the model that was added as v1"):
        serving_model(folder)
    add(folder, 2, is_promoted=True)
    with pytest.raises(UntrustedError):
        roll_back(folder, "v1")
    assert read_registry(folder).current == "v2"


def test_a_folder_that_is_no_registry_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a registry"):
        read_registry(tmp_path)


def test_what_a_killed_process_left_is_replaced(folder: Path) -> None:
    versions = folder / "versions"
    shutil.copytree(versions / "v1", versions / "v2")  # renamed, and killed before the record
    shutil.copytree(versions / "v1", versions / f"{TEMP_PREFIX}v2")
    assert add(folder, 2, is_promoted=True).current == "v2"
    assert (serving_model(folder) / "net.safetensors").read_bytes()[:1] == b"\x02"
    assert sorted(path.name for path in versions.iterdir()) == ["v1", "v2"]


def test_a_registry_whose_first_copy_was_killed_is_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    (folder / "versions" / f"{TEMP_PREFIX}v1").mkdir(parents=True)
    check_registry_place(folder)
    assert register_first(folder, make_run(tmp_path / "run1", 1), details={}).current == "v1"
    check_registry_place(folder)
    check_registry_place(tmp_path / "absent")


@pytest.mark.parametrize("name", ["notes.txt", "versions/v2/model.json"])
def test_a_folder_of_other_files_is_no_place_for_a_registry(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder" / name).parent.mkdir(parents=True)
    (tmp_path / "folder" / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is not empty and is not a registry"):
        check_registry_place(tmp_path / "folder")


def test_a_server_has_the_version_that_served_when_it_was_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn")
    from dermkit.serving import server
    from dermkit.serving.settings import ServeSettings

    models: list[Path] = []

    def worker(settings: ServeSettings, **_: object) -> None:
        models.append(settings.model)
        raise UsageError("far enough")

    monkeypatch.setattr(server, "WorkerProcess", worker)
    with pytest.raises(UsageError, match="far enough"):
        server.serve(ServeSettings(model=folder, port=0))
    assert models == [folder / "versions" / "v1" / "model"], "a worker that starts again must not find another"


def _add_many(folder: Path, first: int) -> None:
    for number in range(first, first + 6):
        while True:
            try:
                add(folder, number, is_promoted=True)
                break
            except UsageError:  # another process promoted meanwhile
                continue


def test_two_processes_leave_one_chain(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(folder, first)) for first in (10, 30)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    registry = read_registry(folder)
    assert len(registry.versions) == 13 and len({version.update for version in registry.versions}) == 13
    assert all(registry.model_folder(version.name) for version in registry.versions)


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_registry import add
for number in range(2, 120):
    add(Path(sys.argv[1]), number, is_promoted=number % 2 == 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_at_any_moment_leaves_a_registry_that_serves(folder: Path) -> None:
    for number in range(2, 120):
        make_run(folder.parent / f"run{number}", number)
    n_steps = []
    for round_number in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(folder), str(Path(__file__).parent)], env=dict(os.environ)
        )
        before = len(read_registry(folder).steps)
        while len(read_registry(folder).steps) < before + 3 and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.003 * round_number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        registry = read_registry(folder)
        assert registry.model_folder(registry.current).is_dir()
        n_steps.append(len(registry.steps))
    assert n_steps == sorted(n_steps) and n_steps[-1] > n_steps[0] >= 4
    assert add(folder, 119, is_promoted=True).model_folder(read_registry(folder).current)


def test_the_copy_of_a_version_survives_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_copy_file", full)
    with pytest.raises(Exception, match="cannot be written"):
        add(folder, 2, is_promoted=True)
    monkeypatch.undo()
    assert read_registry(folder).current == "v1" and add(folder, 2, is_promoted=True).current == "v2"
