"""From the rows of tables to rows of the manifest: maps columns, checks values and finds each row's image file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.importers import normalise
from dermkit.data.importers.csv_tables import ProblemList, TextTable, find_first_column
from dermkit.data.importers.match_files import match_files
from dermkit.data.importers.records import Note, Rejected
from dermkit.data.manifest import MAX_AGE
from dermkit.data.unknown import known_id, or_unknown
from dermkit.errors import RejectionReason, first_of
from dermkit.images.formats import IMAGE_SUFFIXES

REASON_NO_METADATA = "no_metadata"
REASON_NO_LABEL = "no_label"
# Reasons beside those of `errors.RejectionReason`: a file without a row, and a row without a label.

TARGET_COLUMNS = (
    "image", "label", "lesion_id", "patient_id", "isic_id", "source", "licence", "attribution", "age", "sex", "site",
    "skin_type", "given_split", "copy_group",
)  # fmt: skip
"""Targets of a table's columns: columns of the manifest, and `image`, the file that a row is about."""

MALIGNANCY = "malignancy"
"""A further column of `TableRows`: what the table itself says of each row's malignancy, "" = unknown."""

METADATA_COLUMNS = MappingProxyType(
    {
        "lesion_id": ("lesion_id",),
        "patient_id": ("patient_id",),
        "age": ("age_approx", "age"),
        "sex": ("sex",),
        "site": ("anatom_site_general", "anatom_site_general_challenge", "anatom_site_1", "localization", "site"),
        "skin_type": ("fitzpatrick_skin_type", "skin_type"),
        "licence": ("copyright_license", "license", "licence"),
        "attribution": ("attribution",),
    }
)
"""Target -> the names of that column in ISIC tables and similar ones; the first that exists is used."""


@dataclass(frozen=True)
class ImportOptions:
    """How to read a source; which options apply depends on the layout.

    columns: target (one of `TARGET_COLUMNS`) -> column of the table. table: the table, if the source has several.
    images: the folder of the images, if it is not the source. label: the column of the label; for layout csv also
    several one-hot columns with commas. merge, rename: class -> the class that it becomes; drop: classes to leave out;
    as_written: spellings of one class, such as 0 and 0.0, stay apart. These four are of every layout.

        dk.ImportOptions(columns={"image": "file", "lesion_id": "lesion"}, label="dx", merge={"NV": "nevus"})
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    table: Path | None = None
    images: Path | None = None
    label: str = ""
    merge: Mapping[str, str] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    as_written: bool = False


DEFAULT_IMPORT_OPTIONS = ImportOptions()


@dataclass(frozen=True, eq=False)
class TableRows:
    """Rows of one or several tables, with their columns renamed to targets.

    frame: text, "" = unknown; `image` and any other of `TARGET_COLUMNS`. row_numbers: (n,), as `TextTable` counts.
    table_paths: the files; table_index: (n,) the file of each row. columns: names of all columns of the tables;
    columns_used: of those in the frame.
    """

    frame: pd.DataFrame
    row_numbers: NDArray[np.int64]
    table_paths: tuple[Path, ...]
    table_index: NDArray[np.int8]
    columns: tuple[str, ...]
    columns_used: tuple[str, ...]
    notes: tuple[Note, ...] = ()

    def report_rows(
        self, is_wrong: NDArray[np.bool_], problems: ProblemList, describe: Callable[[int], str]
    ) -> None:
        """Add a problem for every row where the mask is True. describe: index of a row -> text."""
        for index in np.flatnonzero(is_wrong).tolist():
            self.report_row(index, describe(index), problems)

    def report_row(self, index: int, text: str, problems: ProblemList) -> None:
        """Add a problem of the row at this index."""
        problems.add(self.table_paths[self.table_index[index]], int(self.row_numbers[index]), text)


def rows_of_table(table: TextTable, columns: Mapping[str, str]) -> TableRows:
    """Return the rows of a table. columns: target -> existing column of the table."""
    frame = pd.DataFrame({target: table.frame[name] for target, name in columns.items()})
    used = tuple(dict.fromkeys(columns.values()))
    table_index = np.zeros(len(table.row_numbers), np.int8)
    return TableRows(frame, table.row_numbers, (table.path,), table_index, table.columns, used, table.notes)


def with_column(table_rows: TableRows, target: str, cells: "pd.Series[str]", used: Sequence[str]) -> TableRows:
    """Return the rows with one more target. cells: its values. used: the columns that they come from."""
    frame = table_rows.frame.assign(**{target: cells.to_numpy()})
    return replace(table_rows, frame=frame, columns_used=tuple(dict.fromkeys([*table_rows.columns_used, *used])))


def concat_rows(row_sets: Sequence[TableRows]) -> TableRows:
    """Concatenate the rows of several tables."""
    frame = pd.concat([rows.frame for rows in row_sets], ignore_index=True).fillna("")
    return TableRows(
        frame,
        np.concatenate([rows.row_numbers for rows in row_sets]),
        tuple(path for rows in row_sets for path in rows.table_paths),
        np.concatenate([np.full(len(rows.row_numbers), index, np.int8) for index, rows in enumerate(row_sets)]),
        tuple(dict.fromkeys(name for rows in row_sets for name in rows.columns)),
        tuple(dict.fromkeys(name for rows in row_sets for name in rows.columns_used)),
        tuple(note for rows in row_sets for note in rows.notes),
    )


def metadata_columns(columns: Sequence[str]) -> dict[str, str]:
    """Return target -> column for every target of `METADATA_COLUMNS` that a table has."""
    candidates = {target: find_first_column(columns, names) for target, names in METADATA_COLUMNS.items()}
    return {target: name for target, name in candidates.items() if name}


# Values -----------------------------------------------------------------------------------------------------------

_VALUE_NORMALISERS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {
        "image": lambda value: value,
        "label": or_unknown,
        "lesion_id": known_id,
        "patient_id": known_id,
        "isic_id": or_unknown,
        "copy_group": known_id,
        "age": normalise.parse_age,
        "sex": normalise.parse_sex,
        "skin_type": normalise.parse_skin_type,
        "site": normalise.parse_site,
        "given_split": normalise.parse_split,
    }
)
_EXPECTED_TEXTS = MappingProxyType(
    {
        "age": f"ages that are no number of years from 0 to {MAX_AGE}",
        "sex": "sexes that are numbers",
        "site": "body sites that are numbers",
        "skin_type": "skin types that are none of I to VI",
    }
)
_MAX_EXAMPLES = 5


def normalise_values(table_rows: TableRows, problems: ProblemList) -> TableRows:
    """Return the rows with normalised values; metadata that cannot be read are unknown, and a note counts them.

    An unreadable split is a problem, because a split decides which images are tested on.
    """
    columns: dict[str, pd.Series[str]] = {}
    notes: list[Note] = []
    for target in table_rows.frame.columns:
        column = table_rows.frame[target]
        normaliser = _VALUE_NORMALISERS.get(target, or_unknown)
        normalised_of = {value: normaliser(value) for value in column.unique().tolist()}
        unreadable = [value for value, normalised in normalised_of.items() if normalised is None]
        is_unreadable = column.isin(unreadable).to_numpy(dtype=bool)
        if target == "given_split":
            table_rows.report_rows(is_unreadable, problems, partial(_split_problem, column))
        elif unreadable:
            notes.append(_unreadable_note(target, column[is_unreadable]))
        replacements = {
            value: normalised or "" for value, normalised in normalised_of.items() if normalised != value
        }
        columns[target] = (
            column.where(~column.isin(list(replacements)), column.map(replacements)) if replacements else column
        )
    return replace(table_rows, frame=pd.DataFrame(columns), notes=(*table_rows.notes, *notes))


def _split_problem(column: "pd.Series[str]", index: int) -> str:
    return f"not one of train, validation, test: {column.iloc[index]!r}"


def _unreadable_note(target: str, values: "pd.Series[str]") -> Note:
    counts = values.value_counts()
    examples = first_of((f"{str(value)!r} {n:,}" for value, n in counts.items()), _MAX_EXAMPLES)
    return Note(f"unreadable_{target}", f"Taken for unknown: {_EXPECTED_TEXTS[target]} ({examples}).", len(values))


def check_images(table_rows: TableRows, problems: ProblemList) -> None:
    """Report rows without an image, and rows that repeat an image."""
    image = table_rows.frame["image"]
    is_empty = (image == "").to_numpy(dtype=bool)
    table_rows.report_rows(is_empty, problems, lambda _: "the image is empty")
    is_repeat = image.duplicated().to_numpy(dtype=bool) & ~is_empty
    if is_repeat.any():
        first_index = {name: index for index, name in reversed(list(enumerate(image.tolist())))}
        table_rows.report_rows(
            is_repeat, problems, lambda index: _repeat_text(table_rows, first_index[image.iloc[index]], index)
        )


def _repeat_text(table_rows: TableRows, first_index: int, index: int) -> str:
    other_table = (
        ""
        if table_rows.table_index[first_index] == table_rows.table_index[index]
        else f" of {table_rows.table_paths[table_rows.table_index[first_index]].name}"
    )
    return (
        f"image repeats that of row {table_rows.row_numbers[first_index]}{other_table}: "
        f"{table_rows.frame['image'].iloc[index]!r}"
    )


def check_lesion_owners(table_rows: TableRows, problems: ProblemList) -> None:
    """Report lesion ids that occur with two patients: such ids are unique only within a patient."""
    if not {"lesion_id", "patient_id"} <= set(table_rows.frame.columns):
        return
    ids = table_rows.frame[["lesion_id", "patient_id"]]
    pairs = ids[(ids["lesion_id"] != "") & (ids["patient_id"] != "")].drop_duplicates()
    first_owner = pairs.drop_duplicates("lesion_id").set_index("lesion_id")["patient_id"]
    for index in pairs.index[pairs["lesion_id"].duplicated()].tolist():
        lesion, patient = ids.loc[index]
        text = (
            f"lesion {lesion!r} belongs to patient {patient!r} here, and to {first_owner[lesion]!r} "
            f"in an earlier row"
        )
        table_rows.report_row(index, text, problems)


def check_labels(table_rows: TableRows, problems: ProblemList, *, allowed: Sequence[str] = ()) -> None:
    """Report rows without a label, and labels other than `allowed`, if the layout has fixed labels."""
    label = table_rows.frame["label"]
    is_empty = (label == "").to_numpy(dtype=bool)
    table_rows.report_rows(is_empty, problems, lambda _: "the label is empty or unknown")
    if allowed:
        is_unknown = ~label.isin(allowed).to_numpy(dtype=bool) & ~is_empty
        table_rows.report_rows(
            is_unknown,
            problems,
            lambda index: f"unknown label {label.iloc[index]!r} (the labels are {', '.join(allowed)})",
        )


def labels_from_one_hot(table: TextTable, names: Sequence[str], problems: ProblemList) -> "pd.Series[str]":
    """Return (n,) labels from one-hot columns; a row without exactly one 1, or with other values, is a problem."""
    value_of_text = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": 0}
    columns = [table.frame[name] for name in names]
    count, label = np.zeros(len(table.row_numbers), int), np.full(len(table.row_numbers), "", dtype=object)
    is_invalid = np.zeros(len(table.row_numbers), bool)
    for name, column in zip(names, columns, strict=True):
        column_value = column.map(
            {value: value_of_text.get(value, -1) for value in column.unique().tolist()}
        ).to_numpy()
        is_invalid |= column_value == -1
        count += column_value == 1
        label[column_value == 1] = name
    for index in np.flatnonzero(is_invalid | (count != 1)).tolist():
        cells = [(name, column.iloc[index]) for name, column in zip(names, columns, strict=True)]
        problems.add(table.path, int(table.row_numbers[index]), _one_hot_problem(cells, bool(is_invalid[index])))
        label[index] = ""
    return pd.Series(label, dtype="str")


def _one_hot_problem(cells: Sequence[tuple[str, str]], is_invalid: bool) -> str:
    if is_invalid:
        invalid_cells = [f"{name} {value!r}" for name, value in cells if value not in ("0", "0.0", "1", "1.0", "")]
        return f"neither 0 nor 1: {', '.join(invalid_cells)}"
    positive_columns = [name for name, value in cells if value in ("1", "1.0")]
    return (
        f"marked as {len(positive_columns)} classes: {', '.join(positive_columns)}"
        if positive_columns
        else "marked as none of the classes"
    )


# Files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RowsWithFiles:
    """Rows with their files: columns for the manifest (`path` and the targets), rejected rows and files, notes."""

    columns: dict[str, list[str]]
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def attach_files(table_rows: TableRows, paths: Sequence[str], root: Path, problems: ProblemList) -> RowsWithFiles:
    """Find the file of each row. Rows without a file and files without a row are rejected.

    A row that could mean several different files, and two rows for one file, are problems. Rows without a label are
    rejected; layouts that require labels report them as problems before.
    """
    image = table_rows.frame["image"]
    matches = match_files(image.tolist(), paths, root, IMAGE_SUFFIXES)
    for index, candidates in sorted(matches.ambiguous_values.items()):
        text = f"{image.iloc[index]!r} could be {len(candidates)} different files: {', '.join(candidates)}"
        table_rows.report_row(index, text, problems)
    _check_shared_files(table_rows, matches.positions, paths, problems)
    has_file = matches.positions >= 0
    is_unlabelled = has_file & (table_rows.frame["label"] == "").to_numpy(dtype=bool)
    is_empty = (image == "").to_numpy(dtype=bool)
    missing_rows = np.flatnonzero(
        ~has_file & ~is_empty & ~np.isin(np.arange(len(image)), list(matches.ambiguous_values))
    )
    if problems.n_problems:  # the import fails and writes no refused.csv, so missing images are reported here
        for index in missing_rows.tolist():
            table_rows.report_row(index, f"there is no image {image.iloc[index]!r}", problems)
    table_names = [path.name for path in table_rows.table_paths]
    rejected = [
        Rejected(
            _escape_returns(image.iloc[index]),
            RejectionReason.MISSING.value,
            _no_image_text(table_names[table_rows.table_index[index]], table_rows.row_numbers[index]),
        )
        for index in missing_rows.tolist()
    ]
    rejected += [
        Rejected(
            paths[matches.positions[index]],
            REASON_NO_LABEL,
            _no_label_text(table_names[table_rows.table_index[index]], table_rows.row_numbers[index]),
        )
        for index in np.flatnonzero(is_unlabelled).tolist()
    ]
    has_file &= ~is_unlabelled
    unnamed_files, notes = _unnamed_files(
        matches.positions, matches.duplicate_files, paths, " or ".join(table_names)
    )
    targets = [target for target in table_rows.frame.columns if target != "image"]
    columns = {target: table_rows.frame[target][has_file].tolist() for target in targets}
    columns["path"] = [paths[index] for index in matches.positions[has_file].tolist()]
    return RowsWithFiles(columns, [*rejected, *unnamed_files], [*table_rows.notes, *notes])


def _no_image_text(table: str, row: int) -> str:
    return f"no image for this row of {table} (row {row})"


def _no_label_text(table: str, row: int) -> str:
    return f"{table} gives no label (row {row})"


def _check_shared_files(
    table_rows: TableRows, positions: NDArray[np.int64], paths: Sequence[str], problems: ProblemList
) -> None:
    """Report rows with the file of an earlier row, unless the image's name is repeated, which is reported already."""
    rows_with_file = np.flatnonzero(positions >= 0)
    repeated_rows = rows_with_file[pd.Series(positions[rows_with_file]).duplicated().to_numpy()]
    if not len(repeated_rows):
        return
    row_of_file = {int(positions[row]): row for row in rows_with_file[::-1].tolist()}
    image = table_rows.frame["image"]
    for row in repeated_rows.tolist():
        earlier_row = row_of_file[int(positions[row])]
        if image.iloc[earlier_row] != image.iloc[row]:
            text = (
                f"{image.iloc[row]!r} is the file of row {table_rows.row_numbers[earlier_row]} too: "
                f"{paths[positions[row]]}"
            )
            table_rows.report_row(row, text, problems)


def _unnamed_files(
    positions: NDArray[np.int64], duplicates: frozenset[int], paths: Sequence[str], table: str
) -> tuple[list[Rejected], list[Note]]:
    """Return the rejected files that no row names, and notes; further copies of a named file are only counted."""
    is_named = np.zeros(len(paths), bool)
    is_named[positions[positions >= 0]] = True
    is_named[list(duplicates)] = True
    rejected = [
        Rejected(paths[index], REASON_NO_METADATA, f"{table} has no row for it")
        for index in np.flatnonzero(~is_named).tolist()
    ]
    notes = []
    if rejected:
        notes.append(Note(REASON_NO_METADATA, f"Images without a row in {table} were left out.", len(rejected)))
    if duplicates:
        text = "Second copies of image files (same name, same bytes) left out."
        notes.append(Note("second_copies", text, len(duplicates)))
    return rejected, notes


def _escape_returns(name: str) -> str:
    return name.replace("\r", "\\r")
