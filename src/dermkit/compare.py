"""Runs against each other: every figure with its interval, and on the same images a test of each difference.

Whether two runs differ is not read off two intervals. Where both scored the same images, these are paired and each
figure's difference has an interval, a test corrected for all that were made, and a sentence; where they did not,
nothing is tested and the sentence says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, UsageError
from dermkit.files import make_folder, read_json, write_rows, write_text
from dermkit.metrics.difference import Difference, corrected, differences, verdict
from dermkit.predictions import read_groups, read_predictions, scored_of
from dermkit.results import read_results

RUN_FORMAT = 1
COLUMNS = ("run", "split", "metric", "value", "low", "high", "n", "method", "reason")
PAIR_COLUMNS = (
    "first", "second", "split", "figure", "difference", "low", "high", "n", "test", "p", "p_holm", "first_alone_right",
    "second_alone_right", "images_needed", "method", "verdict",
)  # fmt: skip
DISAGREEMENT_COLUMNS = ("image_id", "path", "label", "wrong_in")
SEED = 0


@dataclass(frozen=True)
class Pair:
    """Two runs on one split. n: images that both scored; differences: empty where `reason` says why none is tested."""

    first: str
    second: str
    split: str
    n: int
    differences: tuple[Difference, ...]
    reason: str = ""

    def sentences(self) -> list[str]:
        """Return the verdict on every figure, or why there is none."""
        if self.reason:
            return [f"{self.first} and {self.second} on {self.split}: {self.reason}."]
        return [verdict(item, self.first, self.second) for item in self.differences]


@dataclass(frozen=True)
class Comparison:
    """table: a row per run, split and metric, columns as `COLUMNS`. same_images: split -> scored on the same images.

    pairs: every two runs on every split that both have. disagreements: split -> images that not all runs have right,
    with each run's answer.
    """

    table: pd.DataFrame
    same_images: dict[str, bool]
    pairs: tuple[Pair, ...]
    disagreements: dict[str, pd.DataFrame]

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


@dataclass(frozen=True, eq=False)
class _Side:
    """What a run says of its images: its classes, its predictions, their groups, and which data set they are of."""

    name: str
    classes: tuple[LesionClass, ...]
    predictions: pd.DataFrame
    groups: Mapping[str, int] | None
    data: str


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Compare two or more evaluated runs; raises `UsageError` for fewer, `DataError` for a folder that is no run."""
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise UsageError("compare needs two different runs or more", remedy="dermkit compare RUN RUN...")
    rows: list[tuple[object, ...]] = []
    names = _names(runs)
    for name, run in zip(names, runs, strict=True):
        for split, body in read_results(run)["splits"].items():
            rows += [_row(name, split, metric, item) for metric, item in body["metrics"].items()]
    sides = [_side(name, run) for name, run in zip(names, runs, strict=True)]
    splits = list(dict.fromkeys(split for side in sides for split in side.predictions["split"]))
    pairs = [_pair(*both, split) for split in splits for both in combinations(sides, 2)]
    return Comparison(
        table=pd.DataFrame(rows, columns=list(COLUMNS)),
        same_images={split: len({_images(side, split) for side in sides}) == 1 for split in splits},
        pairs=_corrected(pairs),
        disagreements={split: found for split in splits if (found := _disagreements(sides, split)) is not None},
    )


def _side(name: str, run: Path) -> _Side:
    about = read_json(run / "run.json", format=RUN_FORMAT, error=DataError)
    data = about.get("dataset", {})
    classes = tuple(LesionClass(**item) for item in data.get("classes", []))
    predictions = read_predictions(run / "predictions.csv", [item.name for item in classes])
    return _Side(name, classes, predictions, read_groups(run), str(data.get("manifest_sha256", "")))


def _images(side: _Side, split: str) -> frozenset[tuple[str, ...]]:
    """Return which images a run scored, of which data set: two sets may both hold a benign/1.jpg."""
    part = side.predictions[side.predictions["split"] == split]
    return frozenset((side.data, *pair) for pair in zip(part["image_id"], part["label"], strict=True))


# Pairs ------------------------------------------------------------------------------------------------------------


def _pair(first: _Side, second: _Side, split: str) -> Pair:
    parts = [side.predictions[side.predictions["split"] == split] for side in (first, second)]
    common = sorted(set(parts[0]["image_id"]) & set(parts[1]["image_id"]))

    def none(reason: str) -> Pair:
        return Pair(first.name, second.name, split, len(common), (), reason)

    if first.data != second.data:
        return none("not comparable, since they are of different data sets")
    if {item.name for item in first.classes} != {item.name for item in second.classes}:
        return none("not comparable, since their classes differ")
    if not common:
        return none("not comparable, since they share no image")
    if any(part["image_id"].duplicated().any() for part in parts):
        return none("not compared, since an image was scored more than once")
    chosen = [part.set_index("image_id").loc[common].reset_index() for part in parts]
    if (chosen[0]["label"] != chosen[1]["label"]).any():
        return none("not comparable, since the labels of shared images differ")
    shared = _shared_groups(first, second, common)
    scored = [scored_of(part, first.classes, shared) for part in chosen]
    return Pair(first.name, second.name, split, len(common), tuple(differences(*scored, seed=SEED)))


def _shared_groups(first: _Side, second: _Side, common: Sequence[str]) -> dict[str, int] | None:
    """Return the groups that one of them states for all shared images; both read the same data set."""
    for side in (first, second):
        if side.groups is not None and all(name in side.groups for name in common):
            return dict(side.groups)
    return None


def _corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Correct all questions of a split for each other; validation and test are asked apart."""
    made: dict[int, Pair] = {}
    for split in dict.fromkeys(pair.split for pair in pairs):
        places = [place for place, pair in enumerate(pairs) if pair.split == split]
        families = corrected([pairs[place].differences for place in places])
        for place, family in zip(places, families, strict=True):
            pair = pairs[place]
            made[place] = Pair(pair.first, pair.second, pair.split, pair.n, tuple(family), pair.reason)
    return tuple(made[place] for place in range(len(pairs)))


def _disagreements(sides: Sequence[_Side], split: str) -> pd.DataFrame | None:
    """Return images that some runs have right and others wrong, most divided first; None where no image is shared."""
    if len({side.data for side in sides}) > 1:
        return None
    parts = [side.predictions[side.predictions["split"] == split].set_index("image_id") for side in sides]
    shared = set.intersection(*(set(part.index) for part in parts))
    if not shared or any(part.index.has_duplicates for part in parts):
        return None
    common = sorted(shared)
    table = parts[0].loc[common, ["path", "label"]].reset_index()
    wrong = np.zeros(len(common), dtype=np.int64)
    for side, part in zip(sides, parts, strict=True):
        rows = part.loc[common]
        table[side.name] = rows["predicted"].to_numpy()
        wrong += (rows["predicted"] != rows["label"]).to_numpy().astype(np.int64)
    table.insert(3, "wrong_in", wrong)
    table = table[(wrong > 0) & (wrong < len(sides))]
    divided = np.abs(table["wrong_in"] - len(sides) / 2)
    order = np.lexsort((table["image_id"], divided))
    return table.iloc[order].reset_index(drop=True)


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the last two parts of each path, and as many more as it takes to tell the runs apart."""
    parts = [run.resolve().parts for run in runs]
    depth = next(n for n in range(2, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(runs))
    return ["/".join(part[-depth:]) for part in parts]


def _row(run: str, split: str, metric: str, item: dict[str, object]) -> tuple[object, ...]:
    low, high = item["ci95"] if isinstance(item["ci95"], list) else (None, None)
    return run, split, metric, item["value"], low, high, item["n"], item["method"], item.get("reason", "")


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write leaderboard.csv, pairs.csv and disagreements_<split>.csv; returns the first one's path."""
    make_folder(folder)
    write_text(folder / "leaderboard.csv", comparison.table.to_csv(index=False, lineterminator="\n"))
    write_rows(folder / "pairs.csv", PAIR_COLUMNS, [row for pair in comparison.pairs for row in _pair_rows(pair)])
    for split, table in comparison.disagreements.items():
        write_text(folder / f"disagreements_{split}.csv", table.to_csv(index=False, lineterminator="\n"))
    return folder / "leaderboard.csv"


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return what comparison.json holds: runs with their figures, pairs with their differences and sentences."""
    runs: dict[str, Any] = {}
    for row in comparison.table.astype(object).where(comparison.table.notna(), None).to_dict("records"):
        item = {name: row[name] for name in ("value", "low", "high", "n", "method", "reason")}
        runs.setdefault(row["run"], {}).setdefault(row["split"], {})[row["metric"]] = item
    pairs = [
        {
            "first": pair.first, "second": pair.second, "split": pair.split, "n": pair.n, "reason": pair.reason,
            "figures": {item.figure: _difference(pair, item) for item in pair.differences},
        }
        for pair in comparison.pairs
    ]  # fmt: skip
    return {"runs": runs, "same_images": comparison.same_images, "pairs": pairs}


def _difference(pair: Pair, item: Difference) -> dict[str, Any]:
    facts = asdict(item)
    return {
        **item.estimate.as_dict(), "test": item.test, "p": item.p, "p_holm": item.p_holm,
        "discordant": facts["discordant"], "images_needed": item.needed, "found": item.is_found,
        "verdict": verdict(item, pair.first, pair.second),
    }  # fmt: skip


def _pair_rows(pair: Pair) -> list[tuple[object, ...]]:
    if pair.reason:
        return [(pair.first, pair.second, pair.split, *[""] * 3, "", pair.n, *[""] * 7, pair.sentences()[0])]
    return [
        (
            pair.first, pair.second, pair.split, item.figure, *_blank(item.estimate.value),
            *(item.estimate.ci95 or ("", "")), item.estimate.n, item.test, *_blank(item.p), *_blank(item.p_holm),
            *(item.discordant or ("", "")), *_blank(item.needed), item.estimate.method,
            verdict(item, pair.first, pair.second),
        )
        for item in pair.differences
    ]  # fmt: skip


def _blank(value: float | None) -> tuple[object]:
    return ("" if value is None else value,)
