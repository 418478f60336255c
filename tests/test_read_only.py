"""A data set on a read-only drive is audited and trained on; caches and the audit lie in the user's cache."""

import shutil
from pathlib import Path

import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.audit.status import audit_state
from dermkit.data import manifest
from dermkit.data.manifest import is_writable, work_folder_of
from dermkit.recipes.schema import Recipe


@pytest.fixture
def data(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data set folder that is read-only as far as dermkit can tell; root could write it all the same."""
    folder = Path(shutil.copytree(binary, tmp_path / "data", ignore=shutil.ignore_patterns("cache", "audit")))
    real = is_writable
    monkeypatch.setattr(manifest, "is_writable", lambda path: False if path.resolve() == folder else real(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return folder


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


def test_audit_and_training_write_nothing_into_a_read_only_data_set(
    data: Path, tiny: Recipe, tmp_path: Path, invoke: Invoke
) -> None:
    before = listing(data)
    code, out, said = invoke("audit", data)
    assert code in (0, 3)
    assert str(tmp_path / "user-cache") in out + said
    dataset = dk.load_dataset(data)
    assert (dataset.work_folder / "audit" / "audit.html").is_file()
    assert audit_state(dataset, None)["state"] in ("done", "outdated")
    run = dk.train(tiny, dataset, settings=dk.RunSettings(out=tmp_path / "runs", device="cpu"))
    assert (run / "report.html").is_file()
    assert list((dataset.work_folder / "cache").rglob("*.seg"))
    assert invoke("evaluate", run, "--on", data, "--out", tmp_path / "evaluated")[0] in (0, 3)
    assert listing(data) == before


def test_a_folder_that_can_be_written_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert work_folder_of(tmp_path) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    one, other = work_folder_of(tmp_path / "a" / "data"), work_folder_of(tmp_path / "b" / "data")
    assert one != other
    assert one.parent == other.parent == tmp_path / "c" / "dermkit"
    assert list(tmp_path.iterdir()) == []
