"""The figures of a run's splits, and the one on validation that its recipe monitors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermkit.runs.folder import read_metrics

_MONITOR_METRICS = {
    "val_loss": "loss", "val_accuracy": "accuracy",
    "val_balanced_accuracy": "balanced_accuracy", "val_auroc_macro": "auroc_macro",
}  # fmt: skip


def split_values(run: Path, split: str) -> dict[str, float | None]:
    """Return metric name -> value of one split of a run (None = undefined); empty where the split is absent."""
    run_metrics = read_metrics(run)
    estimates: Mapping[str, Any] = run_metrics["splits"].get(split, {}).get("metrics", {})
    return {name: estimate["value"] for name, estimate in estimates.items()}


def validation_value(run: Path, monitor: str) -> float:
    """Return the monitored metric on validation, from the scored predictions; nan where it is undefined."""
    value = split_values(run, "validation").get(monitored_metric(run, monitor))
    return float("nan") if value is None else value


def monitored_metric(run: Path, monitor: str) -> str:
    """Return the metric that a run is judged by: the mean over present classes if validation lacks a class."""
    name = _MONITOR_METRICS[monitor]
    if name == "loss" or split_values(run, "validation").get(name) is not None:
        return name
    return "recall_macro_present" if name == "balanced_accuracy" else f"{name}_present"
