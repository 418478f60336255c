"""Runs against each other: one table of their figures on validation and test, each with n and interval.

Whether two runs differ is not read off two intervals; where their test images differ, the table says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.errors import DataError, UsageError
from dermkit.files import read_json, write_text

COLUMNS = ("run", "split", "metric", "value", "low", "high", "n", "method", "reason")


@dataclass(frozen=True)
class Comparison:
    """table: a row per run, split and metric, columns as `COLUMNS`. same_images: split -> scored on the same images."""

    table: pd.DataFrame
    same_images: dict[str, bool]

    def wide(self, metrics: Sequence[str], *, split: str) -> pd.DataFrame:
        """Return one row per run, one text column per metric: `0.466 [0.379, 0.556], n 118`."""
        part = self.table[(self.table["split"] == split) & self.table["metric"].isin(list(metrics))]
        texts = [_text(row) for row in part.to_dict("records")]
        wide = part.assign(text=texts).pivot(index="run", columns="metric", values="text")
        return wide.reindex(columns=list(metrics)).astype(object).fillna("not reported")


def _text(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["value"]):
        return f"not defined: {row['reason']}"
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}, n {row['n']}"


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Read the metrics of two or more runs; raises `UsageError` for fewer, `DataError` for a run without metrics."""
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise UsageError("compare needs two different runs or more", remedy="dermkit compare RUN RUN...")
    rows: list[tuple[object, ...]] = []
    images: dict[str, list[frozenset[tuple[str, ...]]]] = {}
    for name, run in zip(_names(runs), runs, strict=True):
        for split, body in read_json(run / "metrics.json", format=1, error=DataError)["splits"].items():
            rows += [_row(name, split, metric, item) for metric, item in body["metrics"].items()]
        for split, part in _images(run).groupby("split"):
            images.setdefault(str(split), []).append(
                frozenset(zip(part["data"], part["image_id"], part["label"], strict=True))
            )
    same = {split: len(sets) == len(runs) and len(set(sets)) == 1 for split, sets in images.items()}
    return Comparison(pd.DataFrame(rows, columns=list(COLUMNS)), same)


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the last two parts of each path, and as many more as it takes to tell the runs apart."""
    parts = [run.resolve().parts for run in runs]
    depth = next(n for n in range(2, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(runs))
    return ["/".join(part[-depth:]) for part in parts]


def _images(run: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(run / "predictions.csv", usecols=["image_id", "split", "label"], dtype=str)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{run / 'predictions.csv'}: cannot be read: {error}", remedy="restore it or train again"
        ) from error
    return frame.assign(data=_data_of(run))


def _data_of(run: Path) -> str:
    """Return which manifest a run read: two sets may both hold a benign/1.jpg."""
    about = read_json(run / "run.json", format=1, error=DataError)
    return str(about.get("dataset", {}).get("manifest_sha256", ""))


def _row(run: str, split: str, metric: str, item: dict[str, object]) -> tuple[object, ...]:
    low, high = item["ci95"] if isinstance(item["ci95"], list) else (None, None)
    return run, split, metric, item["value"], low, high, item["n"], item["method"], item.get("reason", "")


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the table as CSV."""
    write_text(path, comparison.table.to_csv(index=False, lineterminator="\n"))
    return path
