"""Readers of the ISIC challenges 2018 (task 3), 2019 and 2020, and of downloads from the ISIC Archive."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.data.importers.csv_tables import ProblemList, TextTable, read_csv_table, read_table_head
from dermkit.data.importers.match_files import normalised_stem
from dermkit.data.importers.normalise import SPLIT_ALIASES
from dermkit.data.importers.reader import (
    check_columns,
    find_table,
    missing_table_error,
    pick_column,
    to_records,
    walk_images,
)
from dermkit.data.importers.records import Note, Records
from dermkit.data.importers.row_malignancy import with_row_malignancy
from dermkit.data.importers.table_rows import (
    DEFAULT_IMPORT_OPTIONS,
    ImportOptions,
    TableRows,
    check_images,
    check_labels,
    concat_rows,
    labels_from_one_hot,
    metadata_columns,
    normalise_values,
    rows_of_table,
    with_column,
)
from dermkit.data.importers.walk import FolderWalk
from dermkit.images.formats import IMAGE_SUFFIXES

CLASSES_2018 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
CLASSES_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
UNKNOWN_CLASS = "UNK"
"""ISIC 2019's ninth class, "none of the others", which only test images have."""

MALIGNANCY_COLUMNS = ("diagnosis_1", "benign_malignant")
ARCHIVE_LABELS = (*MALIGNANCY_COLUMNS, "diagnosis")
"""Columns that the label of an Archive download is taken from, unless the options name one; the first is used."""

_BINARY_LABELS = ("benign", "malignant")
_DUPLICATE_COLUMNS = ("image_name_1", "image_name_2")
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(training|train|validation|valid|val|test)(?![a-z])")


# 2018 and 2019: one-hot labels, and tables of metadata ------------------------------------------------------------


def read_isic2018(source: Path, options: ImportOptions = DEFAULT_IMPORT_OPTIONS) -> Records:
    """Read task 3 of ISIC 2018: `image,MEL,NV,BCC,AKIEC,BKL,DF,VASC`, and lesion ids of the second table.

    There may be ground-truth tables of several splits; their names then give the published split. Raises `DataError`
    that lists all problems of all tables.
    """
    return _read_one_hot(source, options, CLASSES_2018, "ISIC2018_Task3_Training_GroundTruth.csv")


def read_isic2019(source: Path, options: ImportOptions = DEFAULT_IMPORT_OPTIONS) -> Records:
    """Read ISIC 2019: `image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK`, and metadata of the second table.

    About 8 % of the images have no lesion id. `_downsampled` at the end of a name makes no difference. Raises
    `DataError` that lists all problems of all tables.
    """
    return _read_one_hot(source, options, CLASSES_2019, "ISIC_2019_Training_GroundTruth.csv")


@dataclass(frozen=True)
class _SourceTables:
    """The tables of a source: with one-hot labels (ground truth), and with metadata."""

    truths: list[Path]
    metadata: list[Path]


def _read_one_hot(source: Path, options: ImportOptions, classes: Sequence[str], usual_name: str) -> Records:
    walk, paths = walk_images(source, options)
    problems = ProblemList()
    tables = _find_tables(walk, options, classes, usual_name)
    split_names = [_split_of_name(path.name) for path in tables.truths] if len(tables.truths) > 1 else [""]
    table_rows = concat_rows(
        [
            _read_truth(path, split_name, classes, problems)
            for path, split_name in zip(tables.truths, split_names, strict=True)
        ]
    )
    for path in tables.metadata:
        table_rows = _fill_metadata(normalise_values(table_rows, problems), path, problems)
    return to_records(walk, table_rows, paths, problems, extra_tables=tables.metadata)


def _find_tables(
    walk: FolderWalk, options: ImportOptions, classes: Sequence[str], usual_name: str
) -> _SourceTables:
    required_columns = ("image", *classes)
    columns_of = {path: set(read_table_head(walk.root / path, required_columns).columns) for path in walk.tables}
    truths = [walk.root / path for path, columns in columns_of.items() if set(required_columns) <= columns]
    if options.table:
        truths = [find_table(walk, options, required_columns, usual_name)]
    if not truths:
        raise missing_table_error(walk, required_columns, usual_name)
    metadata = [
        walk.root / path
        for path, columns in columns_of.items()
        if "image" in columns and metadata_columns(tuple(columns)) and not set(classes) <= columns
    ]
    return _SourceTables(truths, metadata)


def _split_of_name(name: str) -> str:
    match = _SPLIT_IN_NAME.search(name.lower())
    return SPLIT_ALIASES[match.group(1)] if match else ""


def _read_truth(path: Path, split_name: str, classes: Sequence[str], problems: ProblemList) -> TableRows:
    table = read_csv_table(path, problems, hint_columns=("image", *classes))
    check_columns(table, ("image", *classes), problems)
    names = [*classes, *([UNKNOWN_CLASS] if UNKNOWN_CLASS in table.columns else [])]
    table_rows = with_column(
        rows_of_table(table, {"image": "image"}), "label", labels_from_one_hot(table, names, problems), names
    )
    return with_column(
        table_rows, "given_split", pd.Series([split_name] * len(table.row_numbers), dtype="str"), ()
    )


def _fill_metadata(table_rows: TableRows, path: Path, problems: ProblemList) -> TableRows:
    """Fill empty targets from a table of metadata, matched by image."""
    table = read_csv_table(path, problems, hint_columns=("image",))
    columns = metadata_columns(table.columns)
    metadata_rows = normalise_values(rows_of_table(table, {"image": "image", **columns}), problems)
    check_images(metadata_rows, problems)
    keys = table_rows.frame["image"].map(_key)
    metadata_by_key = (
        metadata_rows.frame.assign(image=metadata_rows.frame["image"].map(_key))
        .drop_duplicates("image")
        .set_index("image")
    )
    frame = table_rows.frame.copy()
    for target in columns:
        cells = keys.map(metadata_by_key[target]).fillna("").astype("str")
        frame[target] = frame[target].where(frame[target] != "", cells) if target in frame else cells
    n_unmatched = int((~metadata_by_key.index.isin(keys)).sum())
    notes = (
        [Note("metadata_alone", f"Rows of {path.name} about images without a label.", n_unmatched)]
        if n_unmatched
        else []
    )
    return replace(
        table_rows,
        frame=frame,
        columns=_union_in_order(table_rows.columns, metadata_rows.columns),
        columns_used=_union_in_order(table_rows.columns_used, metadata_rows.columns_used),
        notes=(*table_rows.notes, *metadata_rows.notes, *notes),
    )


def _key(image: str) -> str:
    return normalised_stem(image, IMAGE_SUFFIXES)


def _union_in_order(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))


# 2020 -------------------------------------------------------------------------------------------------------------


def read_isic2020(source: Path, options: ImportOptions = DEFAULT_IMPORT_OPTIONS) -> Records:
    """Read ISIC 2020: `image_name,patient_id,sex,...,diagnosis,benign_malignant,target`.

    The label is benign_malignant, or else target (0 benign, 1 malignant); options.label names another column. Rows with
    an unknown label are rejected. Pairs of the published table of duplicates, if it is there, become copy groups.
    Raises `DataError` that lists all problems.
    """
    walk, paths = walk_images(source, options)
    problems = ProblemList()
    usual_name = "ISIC_2020_Training_GroundTruth.csv"
    labels = [options.label] if options.label else ["benign_malignant", "target"]
    path = find_table(walk, options, ("image_name",), usual_name, alternatives=labels)
    table = read_csv_table(path, problems, hint_columns=("image_name",))
    check_columns(table, ("image_name",), problems)
    label_column = pick_column(table, labels, problems)
    table_rows = rows_of_table(table, {"image": "image_name", **metadata_columns(table.columns)})
    table_rows = normalise_values(
        with_column(table_rows, "label", _binary_labels(table, label_column), (label_column,)), problems
    )
    if label_column in ("benign_malignant", "target"):
        check_labels(table_rows, problems, allowed=_BINARY_LABELS)
        _check_target(table, problems)
    table_rows = with_row_malignancy(table_rows, table)
    table_rows, duplicate_lists = _add_duplicate_groups(walk, table_rows, problems)
    return to_records(walk, table_rows, paths, problems, extra_tables=duplicate_lists)


def _binary_labels(table: TextTable, name: str) -> "pd.Series[str]":
    """Return a column as text, with benign and malignant for the 0 and 1 of `target`."""
    label_of = {"0": "benign", "0.0": "benign", "1": "malignant", "1.0": "malignant"} if name == "target" else {}
    return table.frame[name].map(lambda value: label_of.get(value, value))


def _check_target(table: TextTable, problems: ProblemList) -> None:
    """Report rows in which target and benign_malignant contradict each other."""
    if not {"target", "benign_malignant"} <= set(table.columns):
        return
    target, malignancy = _binary_labels(table, "target"), table.frame["benign_malignant"]
    is_comparable = target.isin(_BINARY_LABELS) & malignancy.isin(_BINARY_LABELS)
    for index in np.flatnonzero(is_comparable & (target != malignancy)).tolist():
        text = f"benign_malignant is {malignancy.iloc[index]!r}, target is {table.frame['target'].iloc[index]!r}"
        problems.add(table.path, int(table.row_numbers[index]), text)


def _add_duplicate_groups(
    walk: FolderWalk, table_rows: TableRows, problems: ProblemList
) -> tuple[TableRows, list[Path]]:
    """Give published duplicates one copy group, named after its first image; also return the tables that list them."""
    list_paths = [
        path
        for path in walk.tables
        if set(_DUPLICATE_COLUMNS) <= set(read_table_head(walk.root / path, _DUPLICATE_COLUMNS).columns)
    ]
    representative: dict[str, str] = {}

    def representative_of(image: str) -> str:
        while representative.get(image, image) != image:
            image = representative[image]
        return image

    for path in list_paths:
        table = read_csv_table(
            walk.root / path, problems, hint_columns=_DUPLICATE_COLUMNS, usecols=_DUPLICATE_COLUMNS
        )
        for first, second in table.frame[list(_DUPLICATE_COLUMNS)].itertuples(index=False):
            low, high = sorted((representative_of(first), representative_of(second)))
            representative[low], representative[high] = low, low
    if not list_paths:
        return table_rows, []
    group = table_rows.frame["image"].map(
        lambda image: representative_of(image) if image in representative else ""
    )
    text = "Images of the published list of duplicates; each pair is kept in one split."
    note = Note("published_duplicates", text, int((group != "").sum()))
    grouped_rows = replace(with_column(table_rows, "copy_group", group, ()), notes=(*table_rows.notes, note))
    return grouped_rows, [walk.root / path for path in list_paths]


# ISIC Archive -----------------------------------------------------------------------------------------------------


def read_isic_archive(source: Path, options: ImportOptions = DEFAULT_IMPORT_OPTIONS) -> Records:
    """Read a download of the ISIC Archive: `metadata.csv` and images `<isic_id>.<suffix>`.

    All columns but isic_id and a label may be missing. The label is diagnosis_1 (2025 and later) or benign_malignant,
    as benign, malignant or indeterminate, or else diagnosis; options.label names another column. Rows without a label,
    rows without an image and images without a row are rejected. Licence and attribution are taken image by image.
    Raises `DataError` that lists all problems.
    """
    walk, paths = walk_images(source, options)
    problems = ProblemList()
    labels = [options.label] if options.label else list(ARCHIVE_LABELS)
    table = read_csv_table(
        find_table(walk, options, ("isic_id",), "metadata.csv"), problems, hint_columns=("isic_id",)
    )
    check_columns(table, ("isic_id",), problems)
    label_column = pick_column(table, labels, problems)
    columns = metadata_columns(table.columns)
    table_rows = with_column(
        rows_of_table(table, {"image": "isic_id", **columns}), "label", table.frame[label_column], (label_column,)
    )
    if label_column in MALIGNANCY_COLUMNS:
        table_rows = _normalise_malignancy(table_rows)
    table_rows = normalise_values(table_rows, problems)
    if label_column in MALIGNANCY_COLUMNS:
        label_cells = table_rows.frame["label"]
        is_invalid = ~label_cells.isin(["", *_BINARY_LABELS, "indeterminate"]).to_numpy(dtype=bool)
        table_rows.report_rows(
            is_invalid,
            problems,
            lambda index: (
                f"{label_column} is neither benign, malignant nor indeterminate: {label_cells.iloc[index]!r}"
            ),
        )
    table_rows = with_column(
        table_rows, "source", pd.Series(["ISIC Archive"] * len(table_rows.row_numbers), dtype="str"), ()
    )
    return to_records(walk, with_row_malignancy(table_rows, table), paths, problems)


def _normalise_malignancy(table_rows: TableRows) -> TableRows:
    """Return labels in lower case; "indeterminate/benign" and alike of older downloads become indeterminate."""
    malignancy_of: Mapping[str, str] = {
        value: "indeterminate" if value.lower().startswith("indeterminate") else value.lower()
        for value in table_rows.frame["label"].unique().tolist()
    }
    return replace(table_rows, frame=table_rows.frame.assign(label=table_rows.frame["label"].map(malignancy_of)))
