"""The leaderboard: the metrics of every run, and the mean and spread of repeated trainings."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dermkit.comparison.entries import ComparisonEntry
from dermkit.metrics.stats.estimate import humanise, reliability
from dermkit.runs.folder import read_metrics

LEADERBOARD_COLUMNS = (
    "run",
    "split",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "method",
    "reason",
    "n_trainings",
    "sd",
    "min",
    "max",
)


def wide_table(table: pd.DataFrame, metrics: Sequence[str], *, split: str) -> pd.DataFrame:
    """Return one row per run or group, one text column per metric: `0.466 [0.379, 0.556], n 118`."""
    rows = table[(table["split"] == split) & table["metric"].isin(list(metrics))]
    texts = [_cell_text(row) for row in rows.to_dict("records")]
    pivoted = rows.assign(text=texts).pivot(index="run", columns="metric", values="text")
    return pivoted.reindex(columns=list(metrics)).astype(object).fillna("not reported")


def _cell_text(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["value"]):
        return f"not defined: {humanise(str(row['reason']))}"
    if row["n_trainings"] > 1:
        sd_text = "" if pd.isna(row["sd"]) else f" (SD {row['sd']:.3f})"
        missing_text = f"; {row['reason']}" if row["reason"] else ""
        return f"{row['value']:.3f}{sd_text}, mean of {row['n_trainings']}{missing_text}"
    return f"{row['value']:.3f}{_interval_text(row)}, n {row['n']}"


def _interval_text(row: Mapping[Any, Any]) -> str:
    """Return ` [low, high]`, marked if unreliable; a misleading interval is not shown."""
    if pd.isna(row["low"]):
        return ""
    reliability_grade = reliability({"ci95": (row["low"], row["high"]), "reason": row["reason"]})
    if reliability_grade == "none":
        return " (interval unreliable)"
    return f" [{row['low']:.3f}, {row['high']:.3f}]{' (unreliable)' if reliability_grade else ''}"


def leaderboard(entries: Sequence[ComparisonEntry]) -> pd.DataFrame:
    """Return the metrics of every run (`LEADERBOARD_COLUMNS`); a group's mean and spread come before its members."""
    rows: list[tuple[object, ...]] = []
    for entry in entries:
        splits_by_run = [read_metrics(run)["splits"] for run in entry.runs]
        members = [
            _metric_row(name, split, metric, estimate)
            for name, splits in zip(entry.run_names, splits_by_run, strict=True)
            for split, split_metrics in splits.items()
            for metric, estimate in split_metrics["metrics"].items()
        ]
        rows += [*(_mean_rows(entry.name, members) if entry.is_group else ()), *members]
    return pd.DataFrame(rows, columns=list(LEADERBOARD_COLUMNS)).astype({"n": "Int64", "n_trainings": "Int64"})


def _mean_rows(name: str, member_rows: Sequence[tuple[Any, ...]]) -> list[tuple[object, ...]]:
    """Return the rows of a group's means; they have no interval here, since the runs share their images."""
    mean_rows: list[tuple[object, ...]] = []
    for split, metric in dict.fromkeys((row[1], row[2]) for row in member_rows):
        rows = [row for row in member_rows if row[1:3] == (split, metric)]
        values = [float(row[3]) for row in rows if row[3] is not None]
        n = rows[0][6] if len({row[6] for row in rows}) == 1 else None
        if not values:
            mean_rows.append(
                (name, split, metric, None, None, None, n, "none", "in no training", len(rows), *[None] * 3)
            )
            continue
        n_undefined = len(rows) - len(values)
        mean_rows.append((
            name, split, metric, statistics.fmean(values), None, None, n, f"mean of {len(values)} trainings",
            f"not defined in {n_undefined} of {len(rows)} trainings" if n_undefined else "", len(values),
            statistics.stdev(values) if len(values) > 1 else None, min(values), max(values),
        ))  # fmt: skip
    return mean_rows


def _metric_row(run: str, split: str, metric: str, estimate: dict[str, object]) -> tuple[object, ...]:
    low, high = estimate["ci95"] if isinstance(estimate["ci95"], list) else (None, None)
    value, reason = estimate["value"], estimate.get("reason", "")
    return run, split, metric, value, low, high, estimate["n"], estimate["method"], reason, 1, None, None, None
