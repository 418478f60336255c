"""Several runs of one recipe: their summary, its spread, and which one becomes the final model."""

import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dermkit.errors import DataError
from dermkit.files import read_json, write_json, write_rows
from dermkit.reporting.report import write_summary_report
from dermkit.runs.metrics_json import read_results

FORMAT = 1
_METRIC_OF_MONITOR = {
    "val_loss": "loss", "val_accuracy": "accuracy",
    "val_balanced_accuracy": "balanced_accuracy", "val_auroc_macro": "auroc_macro",
}  # fmt: skip


def metrics_of(run: Path, split: str) -> dict[str, float | None]:
    """Return metric name -> value of one split of a run (None = undefined); empty where the split is absent."""
    body = read_results(run)
    found: Mapping[str, Any] = body["splits"].get(split, {}).get("metrics", {})
    return {name: item["value"] for name, item in found.items()}


def validation_value(run: Path, monitor: str) -> float:
    """Return the monitored figure on validation, from the scored predictions; nan where it is undefined."""
    name = _METRIC_OF_MONITOR[monitor]
    found = metrics_of(run, "validation")
    value = found.get(name)
    if value is None:
        value = found.get("recall_macro_present" if name == "balanced_accuracy" else f"{name}_present")
    return float("nan") if value is None else value


def chosen(runs: Sequence[Path], monitor: str) -> int:
    """Return the number of the run that is best on validation; the first of equals. Nothing else is looked at.

    Raises `DataError` where the figure is undefined in every run.
    """
    sign = -1.0 if monitor == "val_loss" else 1.0
    values = [(number, sign * validation_value(run, monitor)) for number, run in enumerate(runs)]
    defined = [(number, value) for number, value in values if value == value]
    if not defined:
        raise DataError(
            f"{runs[0].parent}: {monitor} is undefined in all {len(runs)} runs, so none can be chosen",
            kept="the runs",
            remedy="give validation images of every class, or monitor val_loss",
        )
    return max(defined, key=lambda item: item[1])[0]


def summarise(parent: Path, runs: Sequence[Path], *, monitor: str) -> Path:
    """Write summary.json, summary.csv, the final model (best on validation) and a report; returns the folder."""
    facts = [read_json(run / "run.json", format=1, error=DataError) for run in runs]
    best = chosen(runs, monitor)
    rows = [
        {
            "seed": fact["seed"],
            "fold": fact["fold"],
            "folder": run.name,
            "validation": metrics_of(run, "validation"),
            "test": metrics_of(run, "test"),
        }
        for run, fact in zip(runs, facts, strict=True)
    ]
    summary = {
        "recipe": facts[0]["recipe"],
        "dataset": facts[0]["dataset"]["name"],
        "runs": rows,
        "final": {
            "seed": facts[best]["seed"],
            "fold": facts[best]["fold"],
            "folder": runs[best].name,
            "chosen_by": f"{monitor} on validation, {validation_value(runs[best], monitor):.6g}: best of {len(runs)}",
        },
        "metrics": {split: _spread([row[split] for row in rows]) for split in ("validation", "test")},
    }
    write_json(parent / "summary.json", summary, format=FORMAT)
    _write_csv(parent / "summary.csv", summary)
    _replace_model(runs[best] / "model", parent / "model")
    write_summary_report(parent)
    return parent


def _spread(rows: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """Return mean, sample standard deviation, least and most of each figure over the runs that define it."""
    result: dict[str, dict[str, float | int | None]] = {}
    for name in rows[0] if rows else ():
        values = [value for row in rows if (value := row.get(name)) is not None]
        if values:
            result[name] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values),
                "max": max(values),
                "n_runs": len(values),
            }
    return result


def _write_csv(path: Path, summary: Mapping[str, Any]) -> None:
    names = [(split, name) for split in ("validation", "test") for name in summary["runs"][0][split]]
    rows = [
        (row["seed"], "" if row["fold"] is None else row["fold"], row["folder"],
         row["folder"] == summary["final"]["folder"], *("" if row[s].get(n) is None else row[s][n] for s, n in names))
        for row in summary["runs"]
    ]  # fmt: skip
    write_rows(path, ("seed", "fold", "folder", "final", *(f"{split}_{name}" for split, name in names)), rows)


def _replace_model(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
