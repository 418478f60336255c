"""Hostile and corrupt model folders: none is loaded, nothing of them is executed, in bounded memory and time."""

import contextlib
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dermkit.data.manifest import LesionClass
from dermkit.errors import DermkitError, UntrustedError
from dermkit.export.run import export_model
from dermkit.models.engines.onnx_operators import onnx_operators
from dermkit.models.views import IDENTITY_VIEW
from dermkit.prediction.exported_model import load_exported_model
from dermkit.prediction.load import load_model
from hostile_models import CANARY, CASES, HARM, NET, Case
from test_export import CNN, random_net
from test_exported_model import photographs, save

pytest.importorskip("onnx", reason="dermkit[export] is not installed")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
__all__ = ["photographs"]  # a fixture

CLASSES = tuple(LesionClass(name, "", "benign") for name in ("nevus", "wart", "other"))
MAX_SECONDS = 20.0
"""To refuse a folder, in a process that has torch already."""
MAX_MB = 2000.0
"""Of the largest process; one that serves a good folder with torch takes some hundreds."""


@pytest.fixture(scope="module")
def folders(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a good folder of each kind."""
    base = tmp_path_factory.mktemp("good")
    model = save(base / "torch", random_net(CNN, 1), CNN, 32, photographs, classes=CLASSES, views=IDENTITY_VIEW)
    exported = export_model(model, to="onnx", out=base / "onnx", images=[str(photographs)]).folder
    return {"torch": model, "onnx": exported}


@pytest.fixture
def folder_of(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a copy goes; the process runs in a folder of its own, where a canary would lie."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "model"


def test_the_cases_are_distinct_and_the_folders_are_good(folders: dict[str, Path]) -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert all(load_model(folder).class_names == ("nevus", "wart", "other") for folder in folders.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_none_is_loaded(case: Case, folders: dict[str, Path], folder_of: Path) -> None:
    shutil.copytree(folders[case.kind], folder_of)
    case.make(folder_of)
    start_time = time.monotonic()
    with pytest.raises(DermkitError) as caught:
        load_model(folder_of)
    assert time.monotonic() - start_time < MAX_SECONDS
    assert caught.value.exit_code == 6, caught.value.message
    assert str(folder_of) in caught.value.message and len(caught.value.message) < 2000
    assert caught.value.remedy
    assert list(Path.cwd().iterdir()) == [], "something was executed, or written"


def test_openvino_runs_no_endless_net_either(folders: dict[str, Path], folder_of: Path) -> None:
    pytest.importorskip("openvino")
    assert load_exported_model(folders["onnx"], engine="openvino").class_names[0] == "nevus"
    shutil.copytree(folders["onnx"], folder_of)
    next(case for case in CASES if case.name == "a loop without end").make(folder_of)
    with pytest.raises(UntrustedError, match="which may run for ever"):
        load_exported_model(folder_of, engine="openvino")


def test_a_loop_in_a_branch_is_refused_by_openvino_too(folders: dict[str, Path], folder_of: Path) -> None:
    pytest.importorskip("openvino")
    shutil.copytree(folders["onnx"], folder_of)
    next(case for case in CASES if case.name == "a loop without end in a branch").make(folder_of)
    with pytest.raises(UntrustedError, match="which may run for ever"):
        load_exported_model(folder_of, engine="openvino")


def test_a_key_that_readers_in_c_shorten_hides_no_loop(folders: dict[str, Path]) -> None:
    content = (folders["onnx"] / NET).read_bytes()
    node = b"\x22\x04Loop"
    graph = b"\x0a" + bytes([len(node)]) + node
    wide_key = b"\xba\x80\x80\x80\x10"  # 0x3a, the field of the graph, and bit 32
    assert "Loop" in onnx_operators(content + b"\x3a" + bytes([len(graph)]) + graph)
    with pytest.raises(ValueError, match="32 bits"):
        onnx_operators(content + wide_key + bytes([len(graph)]) + graph)


def test_operators_are_those_that_onnx_reads(folders: dict[str, Path]) -> None:
    import onnx

    content = (folders["onnx"] / NET).read_bytes()
    model = onnx.load_from_string(content)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    assert onnx_operators(content) == {node.op_type for node in nodes}
    for cut in (1, len(content) // 2, len(content) - 1):
        with contextlib.suppress(ValueError):
            assert onnx_operators(content[:cut]) <= {node.op_type for node in nodes}


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x00\x00ORTM", b"\x3a\xff\x7f", b"\xff" * 20, b"\x3b", b"no net"]
)
def test_what_is_no_onnx_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        onnx_operators(content)


def test_a_canary_would_be_seen(folder_of: Path) -> None:
    pickle.loads(HARM).close()  # noqa: S301  that this runs code is the point
    assert Path(CANARY).exists()


def serve_once(folder: Path, cwd: Path) -> tuple[int, str, float]:
    """Run `dermkit serve` on a folder that it should refuse; returns exit code, messages, seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "dermkit.cli", "serve", str(folder), "--port", "0", "--workers", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd, timeout=600, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.returncode, done.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def children_mb() -> float:
    """Return the most memory that one of all child processes so far had."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


@pytest.mark.slow
def test_the_server_starts_with_none_of_them(folders: dict[str, Path], tmp_path: Path) -> None:
    faults, slowest = [], 0.0
    for number, case in enumerate(CASES):
        folder, cwd = tmp_path / str(number) / "model", tmp_path / str(number) / "run"
        shutil.copytree(folders[case.kind], folder)
        cwd.mkdir()
        case.make(folder)
        code, messages, seconds = serve_once(folder, cwd)
        slowest = max(slowest, seconds)
        is_clear = str(folder) in messages and "To do:" in messages and "Traceback" not in messages
        if code != 6 or not is_clear or list(cwd.iterdir()):
            faults.append(f"{case.name}: exit code {code}: {messages[-500:]}")
        shutil.rmtree(folder.parent)
    sys.stdout.write(
        f"{len(CASES)} folders, {len(faults)} faults, at most {slowest:.1f} s of processor time, "
        f"{children_mb():.0f} MB\n"
    )
    assert faults == []
    assert slowest < 60 and children_mb() < MAX_MB
