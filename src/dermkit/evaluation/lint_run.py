"""The lint of a run: its recipe, its training and its predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.lint.predictions import lint_predictions
from dermkit.lint.rules import as_rows
from dermkit.runs.predictions import read_table


def lint_of(
    run: Path,
    about: Mapping[str, Any],
    predictions: pd.DataFrame,
    classes: Sequence[LesionClass],
    dataset: Dataset | None,
) -> list[dict[str, Any]]:
    """Return what the lint finds in a run's predictions."""
    path, audit = run / "split.csv", about["dataset"].get("audit") or {}
    manifest = None if dataset is None or about.get("mapping") else dataset.manifest
    found = lint_predictions(
        predictions,
        [item.name for item in classes],
        diagnoses={item.name: item.diagnosis for item in classes},
        sides=read_table(path, "image_id", "split") if path.exists() else None,
        labels=None if manifest is None else dict(zip(manifest["image_id"], manifest["label"], strict=True)),
        audited=audit.get("state") == "done" and not audit.get("errors") and not audit.get("accepted"),
    )
    return as_rows(found)
