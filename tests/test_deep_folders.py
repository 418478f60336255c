"""Link loops, folders nested a thousand deep, paths too long for the system, closed folders and closed output."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.files import TEMP_PREFIX, sweep_temp, walk_files
from dermkit.prediction.inputs import find_images
from made_images import encoded, speckled

DEPTH = 1200


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with one image at its top and one 1,200 folders below."""
    root = tmp_path / "deep" / "a"
    root.mkdir(parents=True)
    (root / "top.png").write_bytes(encoded(speckled(), "PNG"))
    before = Path.cwd()
    os.chdir(root)
    for _ in range(DEPTH):
        Path("d").mkdir()
        os.chdir("d")
    Path("bottom.png").write_bytes(encoded(speckled(seed=2), "PNG"))
    Path(TEMP_PREFIX + "x").write_bytes(b"x")
    os.chdir(before)
    yield tmp_path / "deep"
    subprocess.run(["rm", "-rf", str(tmp_path / "deep")], check=True)  # deeper than Python's own removal goes


@pytest.fixture
def loops(tmp_path: Path) -> Path:
    """Return a folder with links that lead upwards, to themselves and to each other."""
    root = tmp_path / "loops"
    for name in ("benign", "malignant"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(encoded(speckled(seed=len(name)), "PNG"))
        (root / name / "up").symlink_to(root)
        (root / name / "again").symlink_to(root / name)
        (root / name / "self.png").symlink_to("self.png")
    return root


def test_links_that_lead_upwards_end(loops: Path, trained: Path, invoke: Invoke, tmp_path: Path) -> None:
    expected = ["benign/1.png", "malignant/1.png"]
    for pattern in (f"{loops}/**/*.png", f"{loops}/**", f"{loops}/*", str(loops)):
        paths = [os.path.relpath(image.path, loops) for image in find_images([pattern])]
        assert [path for path in paths if not path.endswith(("self.png", "up", "again"))][-2:] == expected, pattern
        assert len(paths) <= 8
    code, _, said = invoke("predict", trained, f"{loops}/**/*.png", "--out", tmp_path / "out")
    assert (code, "fault" in said) == (7, False)
    code, _, said = invoke("import", "folder", loops, "--out", tmp_path / "data")
    assert (code, "fault" in said) == (7, False)
    assert len(dk.load_dataset(tmp_path / "data").manifest) == 2


@pytest.mark.parametrize("pattern", ["**/*.png", "**", "a/**/*.png", "*/*.png", "a/**"])
def test_patterns_with_two_stars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    for name in ("a/1.png", "a/b/2.png", "a/.hidden/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    expected = ["a/1.png"] if pattern == "*/*.png" else ["a/1.png", "a/b/2.png"]
    for prefix in ("", f"{tmp_path}/"):
        assert sorted(os.path.relpath(image.path) for image in find_images([prefix + pattern])) == expected


def test_a_thousand_nested_folders_are_read(deep: Path, trained: Path, invoke: Invoke, tmp_path: Path) -> None:
    assert [image.name.rpartition("/")[2] for image in find_images([str(deep)])] == ["bottom.png", "top.png"]
    assert len(find_images([f"{deep}/**/*.png"])) == 2
    assert len(list(walk_files(deep))) == 3
    assert sweep_temp(deep) == 1
    code, _, said = invoke("predict", trained, deep, "--out", tmp_path / "out")
    assert (code, said.count("fault")) == (0, 0)
    code, _, said = invoke("import", "folder", deep, "--out", tmp_path / "data")
    assert code in (3, 7)
    assert "fault" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("length", [300, 5000])
def test_a_path_that_is_too_long_is_told_in_short(
    trained: Path, invoke: Invoke, tmp_path: Path, length: int
) -> None:
    long = tmp_path / ("x" * length)
    for command in (
        ["import", "folder", long, "--out", tmp_path / "data"],
        ["import", "folder", tmp_path, "--out", long],
        ["predict", trained, long, "--out", tmp_path / "out"],
        ["predict", long, long, "--out", tmp_path / "out"],
        ["predict", trained, f"{long}/*", "--out", tmp_path / "out"],
        ["audit", long],
        ["split", long],
        ["train", "demo", long],
        ["train", long, tmp_path],
        ["evaluate", long],
        ["evaluate", trained, "--on", long],
        ["evaluate", "--predictions", long],
        ["report", long],
        ["compare", long, long],
    ):
        code, _, said = invoke(*command)
        assert code in (2, 3, 5), (command[0], code, said)
        assert "fault in dermkit" not in said
        assert "Traceback" not in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_a_closed_folder_is_listed_and_the_rest_is_read(loops: Path, invoke: Invoke, tmp_path: Path) -> None:
    (loops / "benign" / "closed").mkdir(mode=0)
    code, _, said = invoke("import", "folder", loops, "--out", tmp_path / "data")
    assert (code, "fault" in said) == (7, False)
    assert "benign/closed,unreadable" in (tmp_path / "data" / "refused.csv").read_text()


def test_a_folder_that_cannot_be_listed_does_not_stop_an_import(
    loops: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loops / "benign" / "closed").mkdir()
    real = os.scandir

    def scandir(path: object) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    code, _, said = invoke("import", "folder", loops, "--out", tmp_path / "data")
    assert (code, "fault" in said) == (7, False)
    assert len(dk.load_dataset(tmp_path / "data").manifest) == 2


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "2>/dev/full", ">/dev/full", "</dev/null >&-"])
def test_closed_and_full_output_end_without_a_traceback(trained: Path, tmp_path: Path, closed: str) -> None:
    shutil.copy(trained / "run.json", tmp_path / "x.json")
    command = f"{sys.executable} -m dermkit.cli predict nowhere nothing --out out {closed}"
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode in (3, 5), ended
    assert "Traceback" not in ended.stderr + ended.stdout
    assert not list(tmp_path.glob("out/*"))
