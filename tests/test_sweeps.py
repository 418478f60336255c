"""The temporary files of killed commands about results go with the next one; those of others that may run now stay."""

import shutil
from pathlib import Path

import pytest

import dermkit as dk
from dermkit.errors import OutputError
from dermkit.files import TEMP_PREFIX, lock
from dermkit.runs import folder as run_folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a run with a temporary picture, table and page of a killed command, and two of commands that run now."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    for name in ("a.png", "figures/b.png", "figures/c.csv", "d.html", "external/other/e.png", "checkpoints/f"):
        path = folder / name
        path = path.with_name(f"{TEMP_PREFIX}{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    return folder


def leftovers(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(f"{TEMP_PREFIX}*")}


def test_report_and_evaluate_sweep_what_a_killed_one_left(run: Path) -> None:
    others = {f"external/other/{TEMP_PREFIX}e.png", f"checkpoints/{TEMP_PREFIX}f"}
    assert len(leftovers(run)) == 6
    dk.report(run)
    assert leftovers(run) == others
    (run / "figures" / f"{TEMP_PREFIX}g.png").write_bytes(b"half")
    dk.evaluate(run)
    assert leftovers(run) == others


def test_compare_sweeps_its_folder(trained: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    dk.compare([trained, run], out=out)
    (out / f"{TEMP_PREFIX}x.png").write_bytes(b"half")
    dk.compare([trained, run], out=out)
    assert leftovers(out) == set()


def test_two_reports_at_once_wait_for_each_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.1)
    with lock(run), pytest.raises(OutputError, match="is in use by process"):
        dk.report(run)
