"""Memory per row of import and split: a million rows must stay within 2 GB, as `benchmarks/scale.md` measures."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

MOST_BYTES_PER_ROW = 1700
"""Times a million, and 0.2 GB for the program itself: below 2 GB. Measured: import 1,270, split 1,010."""


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("scale", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scale", module)
    spec.loader.exec_module(module)
    return module


def test_the_made_source_is_what_it_says(tmp_path: Path, scale: ModuleType) -> None:
    scale.make_source(tmp_path / "s", 60)
    lines = (tmp_path / "s" / "table.csv").read_text().splitlines()
    assert len(lines) == 61
    first, again = (tmp_path / "s" / lines[at].split(",")[0] for at in (1, 7))
    assert first.samefile(again)  # six pictures, each under ten names
    assert scale.png(1) != scale.png(2)


def test_the_measure_sees_what_a_command_takes(tmp_path: Path, scale: ModuleType) -> None:
    small, large = (
        scale.measure([sys.executable, "-c", f"x = b'1' * {size}"], tmp_path / "log") for size in (1, 300_000_000)
    )
    assert (small.code, large.code) == (0, 0)
    assert 250 < large.maxrss_mb - small.maxrss_mb < 350
    assert small.maxrss_mb < 40  # and not what this process takes
    assert scale.measure([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log").code == 3


@pytest.mark.slow
def test_a_row_costs_less_than_two_kilobytes(tmp_path: Path, scale: ModuleType) -> None:
    peaks: dict[str, list[float]] = {job.what: [] for job in scale.JOBS}
    for n in (10_000, 100_000):
        source, data = tmp_path / f"source-{n}", tmp_path / f"data-{n}"
        scale.make_source(source, n)
        for job in scale.JOBS:
            command = [part.format(source=source, data=data) for part in job.command]
            done = scale.measure([sys.executable, "-m", "dermkit.cli", *command], tmp_path / "log")
            assert done.code == 0, (tmp_path / "log").read_text()
            peaks[job.what].append(done.maxrss_mb)
    per_row = {what: (large - small) * 2**20 / 90_000 for what, (small, large) in peaks.items()}
    assert max(per_row.values()) < MOST_BYTES_PER_ROW, per_row
