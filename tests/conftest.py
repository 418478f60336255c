"""Helpers that any test may use; fixtures of one room stay in that room's test file."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from matplotlib.figure import Figure

import dermkit as dk
from dermkit import cli as command_line
from dermkit.data.synthetic.dataset import PlantedFaults, make_dataset_folder
from dermkit.data.synthetic.lesions import CLASSES
from dermkit.explanation.run_maps import update_heat_maps
from dermkit.recipes.experiments import DEMO, ROTATE_FLIP_ZOOM, full_phase
from dermkit.recipes.schema import Recipe
from dermkit.render import style
from drawn_once import draw_once

# The nets here are so small that a second thread only waits: 6.2 s of processor time for a run, 2.1 s with one.
# It has to be said before torch is loaded; tests of bit-for-bit repetition ask for two threads themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Busy machines take more than the 200 ms that an example has by default: time is not what these tests are about.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

pytest_plugins = ["browser_pages"]

Cli = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., tuple[int, str, str]]


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def before_format_5(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card whose nets have what they had before format 5: one preprocessing, in the card, for all of them."""
    added = ("preprocessing", "weight", "class_order")
    members = [{name: value for name, value in member.items() if name not in added} for member in card["members"]]
    return {**card, "preprocessing": card["members"][0]["preprocessing"], "members": members}


@pytest.fixture(scope="module", autouse=True)
def heat_maps_where_they_are_tested(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave heat maps out of trainings within this process: half a second of processor time for each of hundreds.

    Commands in a process of their own make them, and so do the trainings of tests/test_run_heat_maps.py.
    """
    if request.module.__name__ == "test_run_heat_maps":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dermkit.explanation.run_maps.update_heat_maps", lambda *_, **__: None)
        yield


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Return a function that runs `dermkit ARGS...` in a process of its own, in `tmp_path`, without a hub."""

    def run(*args: str | Path, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dermkit.cli", *map(str, args)],
            cwd=cwd or tmp_path,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": str(tmp_path / "hub"),
                "COLUMNS": "200",
                "NO_COLOR": "1",
            },
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def render_once() -> Callable[[Figure], bytes]:
    """Return what draws equal figures once."""
    return draw_once(style.render_png)


@pytest.fixture(scope="session")
def render_svg_once() -> Callable[[Figure], bytes]:
    """Return what draws equal small pictures once."""
    return draw_once(style.render_svg)


@pytest.fixture(autouse=True)
def charts_drawn_once(
    monkeypatch: pytest.MonkeyPatch,
    render_once: Callable[[Figure], bytes],
    render_svg_once: Callable[[Figure], bytes],
) -> None:
    """Let charts of equal figures be drawn once in a session."""
    monkeypatch.setattr(style, "render_png", render_once)
    monkeypatch.setattr(style, "render_svg", render_svg_once)


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Return a function that runs `dermkit ARGS...` in this process: exit code, output, messages."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = command_line.run_command(lambda: command_line.app([*map(str, args)]), debug=False)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set folder: benign and malignant, with a published test side."""
    folder = tmp_path_factory.mktemp("binary")
    wanted = {"benign": 24, "malignant": 24}
    make_dataset_folder(
        folder / "images", lesions_per_class=wanted, photos_per_lesion=(1, 1), size=48, seed=1, given_test=0.3
    )
    return dk.import_dataset("folder", folder / "images", out=folder / "data").dataset.folder


@pytest.fixture(scope="session")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set folder of nine classes; two training images are copied into its published test side."""
    folder = tmp_path_factory.mktemp("nine")
    make_dataset_folder(
        folder / "images", lesions_per_class=dict.fromkeys(CLASSES, 6), photos_per_lesion=(1, 1), size=48, seed=2,
        given_test=0.34, planted_faults=PlantedFaults(copies=2),
    )  # fmt: skip
    return dk.import_dataset("folder", folder / "images", out=folder / "data").dataset.folder


@pytest.fixture(scope="session")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set folder in the layout and the seven classes of HAM10000, several photographs per lesion."""
    folder = tmp_path_factory.mktemp("seven")
    make_dataset_folder(
        folder / "images", lesions_per_class=dict.fromkeys(CLASSES, 4), photos_per_lesion=(1, 2), size=48, seed=3,
        layout="ham10000",
    )  # fmt: skip
    return dk.import_dataset("ham10000", folder / "images", out=folder / "data").dataset.folder


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """Return a recipe that trains in a second: an own CNN at 24 pixels, two epochs, augmented."""
    return replace(
        DEMO,
        name="tiny",
        image=replace(DEMO.image, size=24),
        model=replace(DEMO.model, backbone="dermkit/cnn-s1", hidden=(8,)),
        augment=ROTATE_FLIP_ZOOM,
        phases=(full_phase(2, lr=1e-2),),
        optim=replace(DEMO.optim, batch_size=8),
    )


@pytest.fixture(scope="session")
def trained(binary: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the finished run folder of `tiny` on `binary`; tests leave it as it is."""
    where = dk.RunSettings(out=tmp_path_factory.mktemp("runs"), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dermkit.explanation.run_maps.update_heat_maps", update_heat_maps)
        return dk.train(tiny, dk.load_dataset(binary), settings=where)
