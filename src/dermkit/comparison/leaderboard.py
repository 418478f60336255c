"""The leaderboard: every run's figures, and of several trainings their mean and spread."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dermkit.comparison.entries import Entry
from dermkit.metrics.stats.estimate import in_words, trust
from dermkit.runs.metrics_json import read_results

COLUMNS = (
    "run",
    "split",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "method",
    "reason",
    "trainings",
    "sd",
    "min",
    "max",
)


def wide(table: pd.DataFrame, metrics: Sequence[str], *, split: str) -> pd.DataFrame:
    """Return one row per run or group, one text column per metric: `0.466 [0.379, 0.556], n 118`."""
    part = table[(table["split"] == split) & table["metric"].isin(list(metrics))]
    texts = [_text(row) for row in part.to_dict("records")]
    made = part.assign(text=texts).pivot(index="run", columns="metric", values="text")
    return made.reindex(columns=list(metrics)).astype(object).fillna("not reported")


def _text(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["value"]):
        return f"not defined: {in_words(str(row['reason']))}"
    if row["trainings"] > 1:
        spread = "" if pd.isna(row["sd"]) else f" (SD {row['sd']:.3f})"
        lost = f"; {row['reason']}" if row["reason"] else ""
        return f"{row['value']:.3f}{spread}, mean of {row['trainings']}{lost}"
    return f"{row['value']:.3f}{_interval(row)}, n {row['n']}"


def _interval(row: Mapping[Any, Any]) -> str:
    """Return ` [low, high]`, marked where it is unreliable; one that misleads is not shown."""
    if pd.isna(row["low"]):
        return ""
    worth = trust({"ci95": (row["low"], row["high"]), "reason": row["reason"]})
    if worth == "none":
        return " (interval unreliable)"
    return f" [{row['low']:.3f}, {row['high']:.3f}]{' (unreliable)' if worth else ''}"


def board(found: Sequence[Entry]) -> pd.DataFrame:
    """Return every run's figures, and before those of a group's members their mean and spread."""
    rows: list[tuple[object, ...]] = []
    for entry in found:
        bodies = [read_results(run)["splits"] for run in entry.runs]
        members = [
            _row(name, split, metric, item)
            for name, splits in zip(entry.names, bodies, strict=True)
            for split, body in splits.items()
            for metric, item in body["metrics"].items()
        ]
        rows += [*(_mean_rows(entry.name, members) if entry.is_group else ()), *members]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64", "trainings": "Int64"})


def _mean_rows(name: str, members: Sequence[tuple[Any, ...]]) -> list[tuple[object, ...]]:
    """Return a group's rows: a mean has no interval of its own here, since trainings share their images."""
    made: list[tuple[object, ...]] = []
    for split, metric in dict.fromkeys((row[1], row[2]) for row in members):
        rows = [row for row in members if row[1:3] == (split, metric)]
        values = [float(row[3]) for row in rows if row[3] is not None]
        n = rows[0][6] if len({row[6] for row in rows}) == 1 else None
        if not values:
            made.append(
                (name, split, metric, None, None, None, n, "none", "in no training", len(rows), *[None] * 3)
            )
            continue
        lost = len(rows) - len(values)
        made.append((
            name, split, metric, statistics.fmean(values), None, None, n, f"mean of {len(values)} trainings",
            f"not defined in {lost} of {len(rows)} trainings" if lost else "", len(values),
            statistics.stdev(values) if len(values) > 1 else None, min(values), max(values),
        ))  # fmt: skip
    return made


def _row(run: str, split: str, metric: str, item: dict[str, object]) -> tuple[object, ...]:
    low, high = item["ci95"] if isinstance(item["ci95"], list) else (None, None)
    value, reason = item["value"], item.get("reason", "")
    return run, split, metric, value, low, high, item["n"], item["method"], reason, 1, None, None, None
