"""Lint the predictions of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.manifest import Dataset, LesionClass
from dermkit.lint.predictions import lint_predictions
from dermkit.lint.rules import lint_rows
from dermkit.runs.folder import read_table
from dermkit.runs.layout import SPLIT_FILE


def lint_run_predictions(
    run: Path,
    run_json: Mapping[str, Any],
    predictions: pd.DataFrame,
    classes: Sequence[LesionClass],
    dataset: Dataset | None,
) -> list[dict[str, Any]]:
    """Return the lint findings about a run's predictions, as lint.json holds them."""
    path, audit = run / SPLIT_FILE, run_json["dataset"].get("audit") or {}
    manifest = None if dataset is None or run_json.get("mapping") else dataset.manifest
    findings = lint_predictions(
        predictions,
        [lesion_class.name for lesion_class in classes],
        diagnoses={lesion_class.name: lesion_class.diagnosis for lesion_class in classes},
        split_frame=_rows_to_score(path, predictions) if path.exists() else None,
        labels=None if manifest is None else dict(zip(manifest["image_id"], manifest["label"], strict=True)),
        is_audited=audit.get("state") == "done" and not audit.get("errors") and not audit.get("accepted"),
    )
    return lint_rows(findings)


def _rows_to_score(path: Path, predictions: pd.DataFrame) -> pd.DataFrame:
    """Return image_id and split of split.csv; the folds beside test images that were trained are validation images.

    Of the folds of a race one alone may have been trained.
    """
    rows = read_table(path, "image_id", "split")
    is_fold = rows["split"] == "fold"
    if not is_fold.any():
        return rows
    trained_folds = predictions.loc[predictions["split"] == "validation", "fold"].astype(str).unique()
    is_validation = is_fold & rows["fold"].isin(trained_folds)
    return rows.assign(split=rows["split"].mask(is_validation, "validation"))
