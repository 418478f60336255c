"""metrics.json: its format, and how older ones are read.

Format 1 lacks the figures that format 2 added (npv, mcc, kappa, partial areas, parts of the Brier score, calibration,
net benefit). They are not made up: readers show what is there, and `dermkit evaluate RUN` writes it anew.
"""

from pathlib import Path
from typing import Any

from dermkit.errors import DataError
from dermkit.files import read_json, write_json

NAME = "metrics.json"
FORMAT = 2


def read_results(folder: Path) -> dict[str, Any]:
    """Read a run's metrics.json of this or an older format; raises `DataError` where it is missing or broken."""
    return read_json(folder / NAME, format=FORMAT, error=DataError, migrations={1: _from_1})


def write_results(folder: Path, body: dict[str, Any]) -> Path:
    """Write metrics.json, whole or not at all; returns its path."""
    write_json(folder / NAME, body, format=FORMAT)
    return folder / NAME


def _from_1(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "format": 2}
