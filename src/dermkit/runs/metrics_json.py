"""metrics.json: read in any format that dermkit has written, written in the newest."""

from pathlib import Path
from typing import Any

from dermkit.runs.layout import METRICS


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's metrics.json of this or an older format; raises `DataError` where it is missing or broken."""
    return METRICS.read(folder)


def write_metrics(folder: Path, metrics: dict[str, Any]) -> Path:
    """Write metrics.json, whole or not at all; returns its path."""
    return METRICS.write(folder, metrics)
