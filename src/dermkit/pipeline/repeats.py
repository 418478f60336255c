"""Repeats and folds of one recipe: their summary, mean and spread, and the run whose model is the final one."""

import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dermkit.errors import DataError
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.files import write_rows
from dermkit.pipeline.cross_validation import (
    CrossValidation,
    evaluate_folds,
    find_folds,
    pool_folds,
    write_final_ensemble,
)
from dermkit.pipeline.saved_targets import keep_saved_targets
from dermkit.pipeline.validation_values import monitored_metric, split_values, validation_value
from dermkit.progress import Progress
from dermkit.reporting.report import write_summary_report
from dermkit.runs.folder import writing_into
from dermkit.runs.layout import MODEL_FOLDER, RUN, SUMMARY, SUMMARY_TABLE


def best_run_index(runs: Sequence[Path], monitor: str) -> int:
    """Return the index of the run that is best on validation, the first of equals. Test metrics are never read.

    Raises `DataError` where the metric is undefined in every run.
    """
    sign = -1.0 if monitor == "val_loss" else 1.0
    signed_values = [(number, sign * validation_value(run, monitor)) for number, run in enumerate(runs)]
    defined_values = [(number, value) for number, value in signed_values if value == value]
    if not defined_values:
        raise DataError(
            f"{runs[0].parent}: {monitor} is undefined in all {len(runs)} runs, so none can be selected",
            outcome="the runs",
            remedy="give validation images of every class, or monitor val_loss",
        )
    return max(defined_values, key=lambda number_and_value: number_and_value[1])[0]


def summarise_repeats(
    parent: Path,
    runs: Sequence[Path],
    *,
    monitor: str,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    score_test: Callable[[Sequence[Path]], None] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Write summary.json, summary.csv, the final model and a report; returns the folder.

    Repeats on one split: the final model is the best on validation, which is the same images for all. Folds: it is the
    ensemble of one seed's folds, whose rows are pooled and evaluated like a run's. options: of that evaluation.
    score_test: scores the test images beside folds with that ensemble; it gets the runs whose nets are its members.
    device, progress: of the heat maps of pooled folds.
    """
    with writing_into(parent):
        folds = _summarise(parent, runs, monitor, score_test)
        if folds is None:
            write_summary_report(parent)
        else:
            evaluate_folds(parent, options=options, device=device, progress=progress)
    return parent


def _summarise(
    parent: Path,
    runs: Sequence[Path],
    monitor: str,
    score_test: Callable[[Sequence[Path]], None] | None,
) -> CrossValidation | None:
    """Write all but the report; returns the folds that these runs are, None for repeats on one split."""
    folds = find_folds(runs)
    pooled = None if folds is None else pool_folds(parent, folds)
    keep_saved_targets(parent)
    final = _write_best_model(parent, runs, monitor) if folds is None else write_final_ensemble(parent, folds)
    if folds is not None and folds.scores_test_by_ensemble and score_test is not None:
        score_test(folds.members)
    summary = {**_summary(runs), "final": final, "pooled": pooled}
    if pooled is not None:
        pooled["metrics"] = {
            split: _spread_by_metric([seed[split] for seed in pooled["seeds"]]) for split in pooled["splits"]
        }
    SUMMARY.write(parent, summary)
    _write_summary_csv(parent / SUMMARY_TABLE, summary)
    return folds


def _write_best_model(parent: Path, runs: Sequence[Path], monitor: str) -> dict[str, Any]:
    """Copy the model that is best on validation into the parent folder; returns `final` of summary.json."""
    best_index = best_run_index(runs, monitor)
    best_run, run_json = runs[best_index], RUN.read(runs[best_index])
    is_over_present = monitored_metric(best_run, monitor).endswith("_present")
    _replace_model(best_run / MODEL_FOLDER, parent / MODEL_FOLDER)
    return {
        "seed": run_json["seed"],
        "fold": run_json["fold"],
        "folder": best_run.name,
        "chosen_by": f"{monitor} on validation{' over the classes present' if is_over_present else ''}, "
        f"{validation_value(best_run, monitor):.6g}: best of {len(runs)} on the same validation images",
    }


def _summary(runs: Sequence[Path]) -> dict[str, Any]:
    run_jsons = [RUN.read(run) for run in runs]
    rows = [
        {
            "seed": run_json["seed"],
            "fold": run_json["fold"],
            "folder": run.name,
            "validation": split_values(run, "validation"),
            "test": split_values(run, "test"),
        }
        for run, run_json in zip(runs, run_jsons, strict=True)
    ]
    return {
        "recipe": run_jsons[0]["recipe"],
        "dataset": run_jsons[0]["dataset"]["name"],
        "runs": rows,
        "metrics": {split: _spread_by_metric([row[split] for row in rows]) for split in ("validation", "test")},
    }


def _spread_by_metric(rows: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | int | None]]:
    """Return mean, sample standard deviation, minimum and maximum of each metric over the runs that define it."""
    spread: dict[str, dict[str, float | int | None]] = {}
    for name in rows[0] if rows else ():
        values = [value for row in rows if (value := row.get(name)) is not None]
        if values:
            spread[name] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values),
                "max": max(values),
                "n_runs": len(values),
            }
    return spread


def _write_summary_csv(path: Path, summary: Mapping[str, Any]) -> None:
    names = [(split, name) for split in ("validation", "test") for name in summary["runs"][0][split]]
    rows = [
        (
            row["seed"],
            "" if row["fold"] is None else row["fold"],
            row["folder"],
            row["folder"] in (summary["final"]["folder"], *summary["final"].get("members", ())),
            *(
                "" if row[split_name].get(metric) is None else row[split_name][metric]
                for split_name, metric in names
            ),
        )
        for row in summary["runs"]
    ]
    write_rows(path, ("seed", "fold", "folder", "final", *(f"{split}_{name}" for split, name in names)), rows)


def _replace_model(source: Path, destination: Path) -> None:
    if destination.exists():
        shutil.rmtree(destination)
    shutil.copytree(source, destination)
