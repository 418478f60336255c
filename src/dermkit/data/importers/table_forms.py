"""Forms of tables that other tools write: without a header (MedMNIST, AutoML), and splits as flags (fastai)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from dermkit.data.importers.csv_tables import ProblemList, TextTable, find_column, read_csv_table, read_table_head
from dermkit.data.importers.medmnist import DERMAMNIST_CLASSES
from dermkit.data.importers.normalise import parse_split
from dermkit.data.importers.records import Note
from dermkit.data.importers.table_rows import TableRows, with_column
from dermkit.data.unknown import or_unknown
from dermkit.errors import DataError
from dermkit.images.formats import IMAGE_SUFFIXES
from dermkit.images.recognise import suffix_of

SPLIT_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "is_valid": "validation", "is_validation": "validation", "is_val": "validation", "is_test": "test",
        "is_train": "train",
    }
)  # fmt: skip
"""Columns that are true for the images of one split (fastai's is_valid) -> that split."""
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase", "data_split", "fold")
"""Columns that are read as the published split where all of their values name one."""
_BOOLEANS: Mapping[str, bool] = MappingProxyType(
    {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
)


def read_with_header(path: Path, problems: ProblemList, hint_columns: Collection[str]) -> TextTable:
    """Read a table, also one whose first row is data already: a row that names an image file is no header.

    Its columns are then called image, given_split (if a cell names one) and label; the classes of DermaMNIST get their
    names. Raises `DataError` where several columns could be the label.
    """
    columns = _columns_of_data(read_table_head(path, hint_columns).columns, path)
    if not columns:
        return read_csv_table(path, problems, hint_columns=hint_columns)
    table = read_csv_table(path, problems, columns_without_header=columns)
    text = f"{path.name} has no header; its columns were read as {', '.join(columns)}."
    table = replace(table, notes=(*table.notes, Note("no_header", text, len(table.row_numbers))))
    return _with_dermamnist_names(table)


def _columns_of_data(cells: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return the names of the columns of a first row that is data, () for a header."""
    images = [index for index, cell in enumerate(cells) if suffix_of(cell) in IMAGE_SUFFIXES]
    if len(images) != 1 or len(cells) < 2:
        return ()
    splits = [index for index, cell in enumerate(cells) if parse_split(cell)][:1]
    labels = [index for index in range(len(cells)) if index not in (*images, *splits)]
    if len(labels) != 1:
        raise DataError(
            f"{path}: has no header, and {len(labels)} of its {len(cells)} columns could be the label",
            outcome="nothing was written",
            remedy="write a first row with the names of the columns, such as image,label",
        )
    names = dict.fromkeys(images, "image") | dict.fromkeys(splits, "given_split") | dict.fromkeys(labels, "label")
    return tuple(names[index] for index in range(len(cells)))


def _with_dermamnist_names(table: TextTable) -> TextTable:
    """Return the table with the names of DermaMNIST's classes for 0 to 6, if it is called so."""
    numbers = {str(number): name for number, name in enumerate(DERMAMNIST_CLASSES)}
    if "derma" not in table.path.name.lower() or not set(table.frame["label"]) <= set(numbers):
        return table
    text = f"Classes 0 to 6 are taken for DermaMNIST's: {', '.join(DERMAMNIST_CLASSES)}."
    frame = table.frame.assign(label=table.frame["label"].map(numbers))
    return replace(table, frame=frame, notes=(*table.notes, Note("class_names", text, frame["label"].nunique())))


def with_split_columns(table_rows: TableRows, table: TextTable, problems: ProblemList) -> TableRows:
    """Return the rows with the split that a flag or a column of splits says, if the table names no given_split.

    A cell of a flag that is neither true nor false is a problem; a column whose values name no splits is left alone.
    """
    if "given_split" in table_rows.frame:
        return table_rows
    flags = {name: column for name in SPLIT_FLAGS if (column := find_column(table.columns, name))}
    if flags:
        return _with_flags(table_rows, table, flags, problems)
    for name in SPLIT_COLUMNS:
        column = find_column(table.columns, name)
        if column and column not in table_rows.columns_used:
            splits = [parse_split(value) for value in table.frame[column].unique()]
            if None not in splits and any(splits):
                text = f"The column {column} was read as the published split."
                note = Note("split_column", text, len(table.row_numbers))
                rows = with_column(table_rows, "given_split", table.frame[column], (column,))
                return replace(rows, notes=(*rows.notes, note))
    return table_rows


def _with_flags(
    table_rows: TableRows, table: TextTable, flags: Mapping[str, str], problems: ProblemList
) -> TableRows:
    split = np.full(len(table.row_numbers), "", dtype=object)
    for name, column in flags.items():
        texts = [or_unknown(value).strip().casefold() for value in table.frame[column]]
        values = [_BOOLEANS.get(text) for text in texts]
        is_wrong = np.array(
            [text != "" and value is None for text, value in zip(texts, values, strict=True)], bool
        )
        table_rows.report_rows(is_wrong, problems, lambda _, column=column: f"{column} is neither True nor False")  # type: ignore[misc]
        is_set = np.array([value is True for value in values], bool)
        is_unset = np.array([value is False for value in values], bool)
        rest = "" if name == "is_train" else "train"
        split = np.where(is_set, SPLIT_FLAGS[name], np.where(is_unset & (split == ""), rest, split))
    text = f"The split was read from {', '.join(flags.values())}."
    rows = with_column(table_rows, "given_split", pd.Series(split, dtype="str"), [*flags.values()])
    return replace(rows, notes=(*rows.notes, Note("split_column", text, len(split))))
