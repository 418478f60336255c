"""Puts lesion and patient ids, age, sex and site back on images that lost them, by the ids in their file names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.diagnoses import classify, contradict
from dermkit.data.importers.csv_tables import Problems, find_column, missing_column, read_table
from dermkit.data.importers.match_files import folded_stem
from dermkit.data.importers.reader import isic_id
from dermkit.data.importers.records import Note, Rows
from dermkit.data.importers.table_rows import Listing, clean, known_columns, list_table
from dermkit.errors import DataError
from dermkit.images.headers import IMAGE_SUFFIXES

ID_COLUMNS = ("isic_id", "image_id", "image_name", "image")
"""Columns that hold the id of an image, in HAM10000, the challenges and the Archive; the first that is there counts."""

LABEL_COLUMNS = ("dx", "diagnosis", "diagnosis_1", "benign_malignant")
"""Columns whose diagnosis is compared with the label; it never takes the label's place."""

_EXAMPLES = 3


class Conflict(NamedTuple):
    """A value that an image has, and another one that a table gives it; the first is kept."""

    image_id: str
    column: str
    kept: str
    other: str
    table: str


@dataclass(frozen=True, eq=False)
class _Found:
    """at: (images,) the row of the table for each image, -1 = none. table: the rows, cleaned."""

    at: NDArray[np.int64]
    table: Listing

    def column(self, name: str) -> "pd.Series[str]":
        """Return a column by image, "" where the table has no row."""
        given = self.table.frame[name].to_numpy(dtype=object)
        if not len(given):
            return pd.Series([""] * len(self.at), dtype="str")
        return pd.Series(np.where(self.at >= 0, given[self.at], ""), dtype="str")


def join(rows: Rows, tables: Sequence[Path]) -> tuple[Rows, list[Conflict]]:
    """Return the rows with empty values filled from tables, matched by ISIC id or file name, and what disagreed.

    Raises `DataError` for all problems of the tables, or where a table knows none of the images.
    """
    conflicts: list[Conflict] = []
    for path in tables:
        rows, found = _join_one(rows, path)
        conflicts += found
    return rows, conflicts


def _join_one(rows: Rows, path: Path) -> tuple[Rows, list[Conflict]]:
    problems = Problems()
    if not path.is_file():
        raise DataError(f"{path}: there is no such table", remedy="check --join")
    found, columns = _look_up(rows, path, problems)
    matched = int((found.at >= 0).sum())
    if not matched:
        raise DataError(
            f"{path}: has a row for none of the {len(rows.frame)} images",
            kept="nothing was written",
            remedy="images are found by the id in their file names, such as ISIC_0024306.jpg",
        )
    frame, conflicts, filled = rows.frame.copy(), [], []
    for target in columns:
        given, own = found.column(target), frame[target].reset_index(drop=True)
        other = (given != "") & (own != "") & (given.str.casefold() != own.str.casefold())
        conflicts += [
            Conflict(frame["image_id"].iloc[at], target, own.iloc[at], given.iloc[at], path.name)
            for at in np.flatnonzero(other).tolist()
        ]
        frame[target] = own.where(own != "", given).to_numpy()
        filled.append(f"{target} {int(((own == '') & (given != '')).sum())}")
    text = f"{path.name} has a row for {matched} of {len(frame)} images; filled: {', '.join(filled) or 'nothing'}."
    notes = [Note("joined", text, matched), *_conflict_notes(conflicts, path), *_label_notes(rows, found, path)]
    listing = found.table
    joined = replace(
        rows, frame=frame, notes=[*rows.notes, *listing.notes, *notes],
        columns=tuple(dict.fromkeys([*rows.columns, *listing.columns])),
        columns_used=tuple(dict.fromkeys([*rows.columns_used, *columns.values()])),
    )  # fmt: skip
    return joined, conflicts


def _look_up(rows: Rows, path: Path, problems: Problems) -> tuple[_Found, dict[str, str]]:
    """Read a table and find the row of each image; raises `DataError` for all problems."""
    table = read_table(path, problems, wanted=ID_COLUMNS)
    name = next(filter(None, (find_column(table.columns, name) for name in ID_COLUMNS)), None)
    if name is None:
        problems.add(path, 1, missing_column(ID_COLUMNS[0], table.columns))
        problems.check(f"the id of an image is looked for in {', '.join(ID_COLUMNS)}")
    columns = known_columns(table.columns)
    label = next(filter(None, (find_column(table.columns, name) for name in LABEL_COLUMNS)), None)
    listing = list_table(table, {"image": str(name), **columns, **({"label": label} if label else {})})
    listing = clean(listing, problems)
    keys = listing.frame["image"].map(_key)
    _check_repeats(listing, keys, [*columns], problems)
    problems.check()
    first = ~keys.duplicated().to_numpy(dtype=bool) & (keys != "").to_numpy(dtype=bool)
    places = np.flatnonzero(first)
    own = [_key(own or path) for own, path in zip(rows.frame["isic_id"], rows.frame["path"], strict=True)]
    at = pd.Index(keys.to_numpy(dtype=object)[places]).get_indexer(pd.Index(own, dtype="object"))
    where = np.where(at >= 0, places[at] if len(places) else -1, -1).astype(np.int64)
    return _Found(where, listing), columns


def _key(name: str) -> str:
    return isic_id(name) or folded_stem(name, IMAGE_SUFFIXES)


def _check_repeats(listing: Listing, keys: "pd.Series[str]", columns: Sequence[str], problems: Problems) -> None:
    """Note rows that say something else of an image than its first row; the same row twice is none."""
    again = keys.duplicated().to_numpy(dtype=bool) & (keys != "").to_numpy(dtype=bool)
    if not again.any():
        return
    first = {key: at for at, key in reversed(list(enumerate(keys.tolist())))}
    for at in np.flatnonzero(again).tolist():
        before = first[keys.iloc[at]]
        differ = [name for name in columns if listing.frame[name].iloc[at] != listing.frame[name].iloc[before]]
        if differ:
            text = f"{keys.iloc[at]} again, with another {', '.join(differ)} than row {listing.rows[before]}"
            problems.add(listing.tables[0], int(listing.rows[at]), text)


def _conflict_notes(conflicts: Sequence[Conflict], path: Path) -> list[Note]:
    if not conflicts:
        return []
    shown = "; ".join(
        f"{item.image_id} {item.column} {item.kept}, not {item.other}" for item in conflicts[:_EXAMPLES]
    )
    text = (
        f"Values that {path.name} gives otherwise were kept as they are (all in conflicts.csv), such as {shown}."
    )
    return [Note("join_conflicts", text, len(conflicts))]


def _label_notes(rows: Rows, found: _Found, path: Path) -> list[Note]:
    """Note images whose diagnosis in the table contradicts their label, which stays."""
    if "label" not in found.table.frame:
        return []
    pairs = pd.DataFrame({"own": rows.frame["label"].to_numpy(), "other": found.column("label").to_numpy()})
    contradicting = {
        (own, other)
        for own, other in pairs.drop_duplicates().itertuples(index=False)
        if other and contradict(classify(own), classify(other))
    }
    wrong = [at for at, pair in enumerate(zip(pairs["own"], pairs["other"], strict=True)) if pair in contradicting]
    if not wrong:
        return []
    shown = "; ".join(
        f"{rows.frame['path'].iloc[at]} {pairs['own'].iloc[at]}, not {pairs['other'].iloc[at]}"
        for at in wrong[:_EXAMPLES]
    )
    text = f"Labels that contradict the diagnosis in {path.name}; the label of the source stays, such as {shown}."
    return [Note("join_labels", text, len(wrong))]
