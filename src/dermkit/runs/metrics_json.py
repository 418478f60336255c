"""metrics.json: its format, and how older ones are read.

Format 1 lacks the figures that format 2 added (npv, mcc, kappa, partial areas, parts of the Brier score, calibration,
net benefit). They are not made up: readers show what is there, and `dermkit evaluate RUN` writes it anew.
"""

from pathlib import Path
from typing import Any

from dermkit.errors import DataError
from dermkit.files import read_json, write_json

METRICS_FILE = "metrics.json"
METRICS_FORMAT = 2


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run's metrics.json of this or an older format; raises `DataError` where it is missing or broken."""
    return read_json(
        folder / METRICS_FILE, format=METRICS_FORMAT, error=DataError, migrations={1: _migrate_1_to_2}
    )


def write_metrics(folder: Path, metrics: dict[str, Any]) -> Path:
    """Write metrics.json, whole or not at all; returns its path."""
    write_json(folder / METRICS_FILE, metrics, format=METRICS_FORMAT)
    return folder / METRICS_FILE


def _migrate_1_to_2(metrics: dict[str, Any]) -> dict[str, Any]:
    return {**metrics, "format": 2}
