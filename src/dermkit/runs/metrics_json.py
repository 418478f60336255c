"""metrics.json: read in any format that dermkit has written, written in the newest."""

from pathlib import Path
from typing import Any

from dermkit.runs.documents import check_metrics_json, saved_content
from dermkit.runs.layout import METRICS


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's metrics.json of this or an older format; raises `DataError` where it is missing or broken."""
    with saved_content(folder):  # a migration of an older format may miss anything
        metrics = METRICS.read(folder)
    check_metrics_json(metrics, folder / METRICS.name)
    return metrics


def write_metrics(folder: Path, metrics: dict[str, Any]) -> Path:
    """Write metrics.json, whole or not at all; returns its path."""
    return METRICS.write(folder, metrics)
