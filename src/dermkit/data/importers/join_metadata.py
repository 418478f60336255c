"""Adds lesion and patient ids, age, sex and site from tables to images, by the ISIC ids in their file names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.diagnoses import classify_label, contradict
from dermkit.data.importers.csv_tables import ProblemList, find_first_column, missing_column_text, read_csv_table
from dermkit.data.importers.match_files import normalised_stem
from dermkit.data.importers.reader import extract_isic_id
from dermkit.data.importers.records import Note, Records
from dermkit.data.importers.table_rows import TableRows, metadata_columns, normalise_values, rows_of_table
from dermkit.errors import DataError
from dermkit.images.formats import IMAGE_SUFFIXES

IMAGE_ID_COLUMNS = ("isic_id", "image_id", "image_name", "image")
"""Columns with the id of an image, in HAM10000, the ISIC challenges and the ISIC Archive; the first is used."""

DIAGNOSIS_COLUMNS = ("dx", "diagnosis", "diagnosis_1", "benign_malignant")
"""Columns whose diagnosis is compared with the label, but never replaces it."""

_N_EXAMPLES = 3


class MetadataConflict(NamedTuple):
    """A disagreement between an image's value and a table's; the image's value is used. A row of conflicts.csv."""

    image_id: str
    column: str
    value: str
    table_value: str
    table: str


@dataclass(frozen=True, eq=False)
class _RowLookup:
    """The row of a table for each of n images. row_of_image: (n,), -1 = none. table_rows: normalised."""

    row_of_image: NDArray[np.int64]
    table_rows: TableRows

    def column(self, name: str) -> "pd.Series[str]":
        """Return (n,) values of a column, "" for images without a row."""
        cells = self.table_rows.frame[name].to_numpy(dtype=object)
        if not len(cells):
            return pd.Series([""] * len(self.row_of_image), dtype="str")
        return pd.Series(np.where(self.row_of_image >= 0, cells[self.row_of_image], ""), dtype="str")


def join_metadata(records: Records, tables: Sequence[Path]) -> tuple[Records, list[MetadataConflict]]:
    """Fill empty values of images from tables, matched by ISIC id or file name; return them and the conflicts.

    Raises `DataError` that lists all problems of a table, or if a table has a row for none of the images.
    """
    conflicts: list[MetadataConflict] = []
    for path in tables:
        records, new_conflicts = _join_table(records, path)
        conflicts += new_conflicts
    return records, conflicts


def _join_table(records: Records, path: Path) -> tuple[Records, list[MetadataConflict]]:
    problems = ProblemList()
    if not path.is_file():
        raise DataError(f"{path}: there is no such table", remedy="check --join")
    lookup, columns = _find_rows(records, path, problems)
    n_matched = int((lookup.row_of_image >= 0).sum())
    if not n_matched:
        raise DataError(
            f"{path}: has a row for none of the {len(records.frame)} images",
            outcome="nothing was written",
            remedy="images are found by the id in their file names, such as ISIC_0024306.jpg",
        )
    frame, conflicts, fill_counts = records.frame.copy(), [], []
    for target in columns:
        table_values, image_values = lookup.column(target), frame[target].reset_index(drop=True)
        is_conflict = (
            (table_values != "")
            & (image_values != "")
            & (table_values.str.casefold() != image_values.str.casefold())
        )
        conflicts += [
            MetadataConflict(
                frame["image_id"].iloc[index],
                target,
                image_values.iloc[index],
                table_values.iloc[index],
                path.name,
            )
            for index in np.flatnonzero(is_conflict).tolist()
        ]
        frame[target] = image_values.where(image_values != "", table_values).to_numpy()
        fill_counts.append(f"{target} {int(((image_values == '') & (table_values != '')).sum())}")
    text = (
        f"{path.name} has a row for {n_matched} of {len(frame)} images; filled: "
        f"{', '.join(fill_counts) or 'nothing'}."
    )
    notes = [
        Note("joined", text, n_matched),
        *_conflict_notes(conflicts, path),
        *_label_notes(records, lookup, path),
    ]
    table_rows = lookup.table_rows
    joined_records = replace(
        records, frame=frame, notes=[*records.notes, *table_rows.notes, *notes],
        columns=tuple(dict.fromkeys([*records.columns, *table_rows.columns])),
        columns_used=tuple(dict.fromkeys([*records.columns_used, *columns.values()])),
    )  # fmt: skip
    return joined_records, conflicts


def _find_rows(records: Records, path: Path, problems: ProblemList) -> tuple[_RowLookup, dict[str, str]]:
    """Read a table and find each image's row; also return target -> column. Raises `DataError` for all problems."""
    table = read_csv_table(path, problems, hint_columns=IMAGE_ID_COLUMNS)
    id_column = find_first_column(table.columns, IMAGE_ID_COLUMNS)
    if id_column is None:
        problems.add(path, 1, missing_column_text(IMAGE_ID_COLUMNS[0], table.columns))
        problems.raise_if_any(f"the id of an image is looked for in {', '.join(IMAGE_ID_COLUMNS)}")
    columns = metadata_columns(table.columns)
    label_column = find_first_column(table.columns, DIAGNOSIS_COLUMNS)
    table_rows = rows_of_table(
        table, {"image": str(id_column), **columns, **({"label": label_column} if label_column else {})}
    )
    table_rows = normalise_values(table_rows, problems)
    keys = table_rows.frame["image"].map(_key)
    _check_repeats(table_rows, keys, [*columns], problems)
    problems.raise_if_any()
    is_first = ~keys.duplicated().to_numpy(dtype=bool) & (keys != "").to_numpy(dtype=bool)
    first_rows = np.flatnonzero(is_first)
    image_keys = [
        _key(image_keys or path)
        for image_keys, path in zip(records.frame["isic_id"], records.frame["path"], strict=True)
    ]
    positions = pd.Index(keys.to_numpy(dtype=object)[first_rows]).get_indexer(pd.Index(image_keys, dtype="object"))
    row_of_image = np.where(positions >= 0, first_rows[positions] if len(first_rows) else -1, -1).astype(np.int64)
    return _RowLookup(row_of_image, table_rows), columns


def _key(name: str) -> str:
    return extract_isic_id(name) or normalised_stem(name, IMAGE_SUFFIXES)


def _check_repeats(
    table_rows: TableRows, keys: "pd.Series[str]", columns: Sequence[str], problems: ProblemList
) -> None:
    """Report rows that give an image other values than its first row; equal rows are no problem."""
    is_repeat = keys.duplicated().to_numpy(dtype=bool) & (keys != "").to_numpy(dtype=bool)
    if not is_repeat.any():
        return
    first_row = {key: index for index, key in reversed(list(enumerate(keys.tolist())))}
    for index in np.flatnonzero(is_repeat).tolist():
        earlier = first_row[keys.iloc[index]]
        differing_columns = [
            name for name in columns if table_rows.frame[name].iloc[index] != table_rows.frame[name].iloc[earlier]
        ]
        if differing_columns:
            text = (
                f"{keys.iloc[index]} again, with another {', '.join(differing_columns)} than row "
                f"{table_rows.row_numbers[earlier]}"
            )
            table_rows.report_row(index, text, problems)


def _conflict_notes(conflicts: Sequence[MetadataConflict], path: Path) -> list[Note]:
    if not conflicts:
        return []
    examples = "; ".join(
        f"{conflict.image_id} {conflict.column} {conflict.value}, not {conflict.table_value}"
        for conflict in conflicts[:_N_EXAMPLES]
    )
    text = f"Values that {path.name} gives otherwise were kept as they are (all in conflicts.csv), such as {examples}."
    return [Note("join_conflicts", text, len(conflicts))]


def _label_notes(records: Records, lookup: _RowLookup, path: Path) -> list[Note]:
    """Note images whose diagnosis in the table contradicts their label; the label is used."""
    if "label" not in lookup.table_rows.frame:
        return []
    pairs = pd.DataFrame(
        {"label": records.frame["label"].to_numpy(), "table_label": lookup.column("label").to_numpy()}
    )
    contradicting = {
        (label, table_label)
        for label, table_label in pairs.drop_duplicates().itertuples(index=False)
        if table_label and contradict(classify_label(label), classify_label(table_label))
    }
    contradicting_rows = [
        index for index, pair in enumerate(pairs.itertuples(index=False, name=None)) if pair in contradicting
    ]
    if not contradicting_rows:
        return []
    examples = "; ".join(
        f"{records.frame['path'].iloc[index]} {pairs['label'].iloc[index]}, not {pairs['table_label'].iloc[index]}"
        for index in contradicting_rows[:_N_EXAMPLES]
    )
    text = (
        f"Labels that contradict the diagnosis in {path.name}; the label of the source stays, such as {examples}."
    )
    return [Note("join_labels", text, len(contradicting_rows))]
