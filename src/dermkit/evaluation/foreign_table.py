"""Reads the table of predictions of another tool: which column is the image, the label, and each class's probability.

What a table leaves open is read in the one way that fits, and said; where several fit, it is refused with the cure.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.data.class_names import class_key, find_class, group_names
from dermkit.data.diagnoses import classify_label, is_known_label
from dermkit.data.importers.csv_tables import (
    ProblemList,
    TextTable,
    find_column,
    find_first_column,
    read_csv_table,
)
from dermkit.data.importers.id_columns import IdColumns, find_id_columns
from dermkit.data.manifest import Dataset
from dermkit.errors import first_of
from dermkit.evaluation.foreign_classes import join_spellings, match_labels, match_name, sum_classes
from dermkit.evaluation.foreign_files import LABEL_ALIASES, has_reader, read_other_table
from dermkit.evaluation.foreign_groups import FOREIGN_GROUP_COLUMNS
from dermkit.evaluation.foreign_probabilities import (
    Numbers,
    check_scale,
    parse_numbers,
    table_error,
    to_probabilities,
)
from dermkit.evaluation.foreign_splits import MAX_ROWS_LISTED
from dermkit.render.cells import undefused
from dermkit.runs.predictions import PROBABILITY_PREFIX

ID_ALIASES = ("image_id", "image", "isic_id", "image_name", "path", "file", "filename", "file_name", "name", "id")
SCORE_ALIASES = (
    "y_score", "y_prob", "y_proba", "score", "prob", "proba", "probability", "y_pred", "pred", "prediction", "target",
)  # fmt: skip
"""Columns that hold the chance of the positive class alone; `target` is that of Kaggle's ISIC 2020 submissions."""
PREDICTION_FIELDS = ("label", "split", "fold", "seed", "predicted")
_METADATA_COLUMNS = (
    "age", "age_approx", "sex", "gender", "site", "anatom_site_general", "index", "idx", "row", "width", "height",
    "loss", "fitzpatrick", "skin_type", "epoch",
)  # fmt: skip
_ROW_NUMBER_COLUMN = re.compile(r"unnamed: ?\d+", re.IGNORECASE)
_POSITIVE_LABELS = frozenset({"1", "1.0", "true", "yes", "positive", "pos"})
_NEGATIVE_LABELS = frozenset({"0", "0.0", "false", "no", "negative", "neg"})


@dataclass(frozen=True, eq=False)
class ForeignTable:
    """A table as it was read.

    ids: the table's name of each image. labels: in the names of the classes where they are known by another, None
    without such a column. probabilities: class -> float64, NaN where a cell is no number. notes: what was assumed.
    id_columns: its lesion and patient ids that are called otherwise.
    """

    table: TextTable
    ids: "pd.Series[str]"
    labels: "pd.Series[str] | None"
    probabilities: pd.DataFrame
    notes: tuple[str, ...]
    id_columns: IdColumns

    def column_values(self, name: str) -> "pd.Series[str] | None":
        """Return one of `PREDICTION_FIELDS` or another column, None where the table lacks it."""
        column = find_column(self.table.columns, name)
        return None if column is None else self.table.frame[column]

    def group_ids(self) -> pd.DataFrame:
        """Return those of `FOREIGN_GROUP_COLUMNS` that the table has, also called otherwise, under these names."""
        columns = {name: self.column_values(name) for name in FOREIGN_GROUP_COLUMNS}
        renamed = {name: self.table.frame[column] for name, column in self.id_columns.ids.items()}
        return pd.DataFrame({name: column for name, column in columns.items() if column is not None} | renamed)


def read_foreign_table(file: Path, dataset: Dataset | None, scale: str | None = None) -> ForeignTable:
    """Read a table of predictions. scale: one of `SCALES`, None for probabilities with a sum of 1.

    Raises `DataError` naming the columns or rows that cannot be read, `UsageError` for an unknown scale.
    """
    check_scale(scale)
    table = _read_text(file)
    ids, notes = _image_ids(table, dataset)
    label_column = find_first_column(table.columns, LABEL_ALIASES) or _target_label(table)
    labels = None if label_column is None else table.frame[label_column]
    if labels is not None:
        labels, spelling_notes = join_spellings(labels)
        notes = [*notes, *spelling_notes]
    id_columns = find_id_columns(table)
    numbers = _numeric_columns(table, label_column, id_columns)
    if dataset is not None:
        columns, other_class = _dataset_columns(table, numbers, dataset)
        names, label_names = list(dataset.class_names), list(dataset.class_names)
    else:
        if labels is None:
            raise table_error(
                file,
                "no column `label`, which a table needs without a data set",
                "add a column `label` (or `y_true`), or name the data set that holds the labels: --on DATASET, as "
                "`dermkit import` makes it",
            )
        columns, other_class, column_notes = _columns_by_labels(table, numbers, labels)
        column_notes += id_columns.texts("If it holds ids, call it {target}.")
        names = [*(group[0] for group in group_names(columns)), *([other_class] if other_class else [])]
        notes, label_names = [*notes, *column_notes], names
    p, scale_notes = to_probabilities(columns, scale, file)
    probabilities = pd.DataFrame(p, columns=list(columns))
    if other_class:
        probabilities[other_class] = 1 - p[:, 0]
        notes.append(f"One column of probabilities: it was read as that of {next(iter(columns))}, and {other_class} as "
                     "the rest to 1.")  # fmt: skip
    probabilities, sum_notes = sum_classes(probabilities, names)
    labels, label_notes = _named_labels(labels, label_names)
    return ForeignTable(
        table, ids, labels, probabilities, (*notes, *label_notes, *scale_notes, *sum_notes), id_columns
    )


def _read_text(file: Path) -> TextTable:
    table = read_other_table(file) if has_reader(file) else _read_csv(file)
    if not len(table.frame):
        raise table_error(file, "it has no row")
    return table


def _read_csv(file: Path) -> TextTable:
    problems = ProblemList()
    table = read_csv_table(
        file, problems, hint_columns=[*ID_ALIASES, *PREDICTION_FIELDS, *LABEL_ALIASES, *SCORE_ALIASES]
    )
    problems.raise_if_any()
    return table


def _image_ids(table: TextTable, dataset: Dataset | None) -> tuple["pd.Series[str]", list[str]]:
    column = find_first_column(table.columns, ID_ALIASES)
    if column is None:
        if dataset is not None:
            raise table_error(
                table.path, f"no column says which image a row is; one of {', '.join(ID_ALIASES)} is needed"
            )
        note = (
            "No column says which image a row is: every row was taken as an image of its own, named by its row, so "
            "intervals take the images as independent."
        )
        return pd.Series([f"row {number}" for number in table.row_numbers], dtype="str"), [note]
    ids = table.frame[column].map(undefused)
    empty_rows = np.flatnonzero((ids == "").to_numpy())
    if len(empty_rows):
        raise table_error(
            table.path, f"{len(empty_rows)} rows have no {column} ({_row_list(table, empty_rows.tolist())})"
        )
    return ids, []


def _row_list(table: TextTable, rows: Sequence[int]) -> str:
    return first_of((f"row {table.row_numbers[i]}" for i in rows), MAX_ROWS_LISTED)


def _target_label(table: TextTable) -> str | None:
    """Return the column `target` where it is 0 or 1 and not the only score: then it is what Kaggle calls the truth."""
    column = find_column(table.columns, "target")
    if column is None or not set(table.frame[column]) <= {"0", "1", "0.0", "1.0"}:
        return None
    others = [name for name in SCORE_ALIASES if name != "target"]
    has_score = find_first_column(table.columns, others) is not None
    has_class = any(name.startswith(PROBABILITY_PREFIX) or is_known_label(name) for name in table.columns)
    return column if has_score or has_class else None


def _numeric_columns(table: TextTable, label_column: str | None, id_columns: IdColumns) -> dict[str, Numbers]:
    """Return the columns that may hold probabilities: those that begin with p_, else all other numeric ones."""
    prefixed_columns = [name for name in table.columns if name.startswith(PROBABILITY_PREFIX)]
    if prefixed_columns:
        return {name: parse_numbers(table.frame[name]) for name in prefixed_columns}
    reserved_names = (*PREDICTION_FIELDS, *FOREIGN_GROUP_COLUMNS, *ID_ALIASES, *_METADATA_COLUMNS)
    reserved_columns = {label_column, *(find_column(table.columns, name) for name in reserved_names)}
    reserved_columns |= {*id_columns.ids.values()}
    free_columns = [
        name for name in table.columns if name not in reserved_columns and not _ROW_NUMBER_COLUMN.fullmatch(name)
    ]
    return {name: parse_numbers(table.frame[name]) for name in free_columns}


def _class_name(column: str) -> str:
    return column.removeprefix(PROBABILITY_PREFIX)


def _column_of_class(name: str, columns: Sequence[str]) -> str | None:
    """Return the column of a class; of several that mean it, the first, to which the others are added."""
    return match_name(name, columns) or next(
        (column for column in columns if class_key(column) == class_key(name)), None
    )


def _dataset_columns(
    table: TextTable, numbers: Mapping[str, Numbers], dataset: Dataset
) -> tuple[dict[str, Numbers], str]:
    """Return the column of each class of the data set, and the class that is the rest to 1, "" for none."""
    column_of_name = {_class_name(column): column for column in numbers}
    matches = {name: _column_of_class(name, list(column_of_name)) for name in dataset.class_names}
    columns = {name: numbers[column_of_name[match]] for name, match in matches.items() if match is not None}
    missing_classes = [name for name in dataset.class_names if name not in columns]
    used_columns = {column_of_name[match] for match in matches.values() if match is not None}
    if len(used_columns) < len(columns):
        raise table_error(table.path, "one column of probabilities matches several classes; name them p_CLASS")
    more_columns = {
        name: numbers[column]
        for name, column in column_of_name.items()
        if column not in used_columns and find_class(name, dataset.class_names) in columns
    }
    used_columns |= {column_of_name[name] for name in more_columns}
    columns |= more_columns
    unknown_columns = [
        name for name in numbers if name.startswith(PROBABILITY_PREFIX) and name not in used_columns
    ]
    if unknown_columns:
        raise table_error(table.path, f"{', '.join(unknown_columns)}: no class of {dataset.name} is called so")
    if not missing_classes:
        return columns, ""
    if len(dataset.class_names) == 2 and len(missing_classes) == 1:
        return columns, missing_classes[0]
    score = find_first_column(list(numbers), SCORE_ALIASES)
    malignant_classes = [item.name for item in dataset.classes if item.malignancy == "malignant"]
    if score is not None and not columns and len(dataset.class_names) == 2 and len(malignant_classes) == 1:
        positive = malignant_classes[0]
        return {positive: numbers[score]}, next(name for name in dataset.class_names if name != positive)
    raise table_error(
        table.path,
        f"no column of probabilities for class {missing_classes[0]!r} of {dataset.name} (it has: "
        f"{', '.join(column_of_name) or 'none'})",
    )


def _columns_by_labels(
    table: TextTable, numbers: Mapping[str, Numbers], labels: "pd.Series[str]"
) -> tuple[dict[str, Numbers], str, list[str]]:
    """Return class -> column, the class that is the rest to 1 ("" for none), and notes, of a table without data set."""
    numeric = {name: column for name, column in numbers.items() if column.is_numeric}
    if any(name.startswith(PROBABILITY_PREFIX) for name in numbers):
        numeric = dict(numbers)
    columns = {_class_name(name): column for name, column in numeric.items()}
    label_names = sorted(set(labels) - {""})
    label_columns = list(dict.fromkeys(filter(None, (match_name(name, list(columns)) for name in label_names))))
    known_columns = [name for name in columns if name in label_columns or is_known_label(name)]
    score = find_first_column(list(columns), SCORE_ALIASES)
    if len(columns) == 1 or len(known_columns) == 1 or (score is not None and not known_columns):
        name = known_columns[0] if len(known_columns) == 1 else score or next(iter(columns))
        positive, negative = _binary_classes(name, label_names, table, is_score=name == score)
        return {positive: columns[name]}, negative, _left_out_note(columns, [name])
    if len(columns) < 2:
        raise table_error(table.path, "two columns of probabilities are needed, called p_CLASS or CLASS")
    class_columns = _classes_of_rows(table, columns, known_columns)
    return {name: columns[name] for name in class_columns}, "", _left_out_note(columns, class_columns)


def _left_out_note(columns: Mapping[str, Numbers], class_columns: Sequence[str]) -> list[str]:
    extra_columns = [name for name in columns if name not in class_columns]
    return [f"Columns that are no class were left out: {', '.join(extra_columns)}."] if extra_columns else []


def _classes_of_rows(table: TextTable, columns: Mapping[str, Numbers], known_columns: Sequence[str]) -> list[str]:
    """Return the columns that are classes: all, or those named like labels where these alone make up each row."""
    extra_columns = [name for name in columns if name not in known_columns]
    if not extra_columns or not known_columns or any(n.startswith(PROBABILITY_PREFIX) for n in table.columns):
        return list(columns)
    all_sums, known_sums = (_is_constant_sum(columns, names) for names in (list(columns), known_columns))
    if all_sums:
        return list(columns)
    if known_sums or all(not _is_unit(columns[name]) for name in extra_columns):
        return list(known_columns)
    raise table_error(
        table.path,
        f"whether {', '.join(extra_columns)} are classes like {', '.join(known_columns)} is not clear; name the "
        "columns of classes p_CLASS, or leave the others out",
    )


def _is_constant_sum(columns: Mapping[str, Numbers], names: Sequence[str]) -> bool:
    """Return whether the columns sum to 1 or to 100 in every row, but for rounding."""
    sums = np.sum([columns[name].values for name in names], axis=0)
    return bool(any((np.abs(sums - total) <= 0.05 * total).all() for total in (1, 100)))


def _is_unit(numbers: Numbers) -> bool:
    values = numbers.values[np.isfinite(numbers.values)]
    return bool(len(values) and values.min() >= 0 and values.max() <= 1)


def _binary_classes(
    column: str, label_names: Sequence[str], table: TextTable, *, is_score: bool
) -> tuple[str, str]:
    """Return the class that a single column is the probability of, and the other one."""
    if len(label_names) > 2:
        raise table_error(
            table.path,
            f"one column of probabilities ({column}) and {len(label_names)} labels; a column per class is needed",
        )
    if {name.lower() for name in label_names} <= _POSITIVE_LABELS | _NEGATIVE_LABELS:
        if is_score:
            return "malignant", "benign"
        return column, {"malignant": "benign", "benign": "malignant"}.get(column, f"not {column}")
    positive = None if is_score else match_name(column, label_names)
    if is_score:
        malignant_labels = [name for name in label_names if classify_label(name).malignancy == "malignant"]
        positive = malignant_labels[0] if len(malignant_labels) == 1 else None
    others = [name for name in label_names if name != positive]
    if positive is None or len(others) != 1:
        raise table_error(
            table.path,
            f"which of the labels ({', '.join(label_names)}) the column {column} is the probability of is not clear; "
            "call it p_CLASS",
        )
    return positive, others[0]


def _named_labels(
    labels: "pd.Series[str] | None", class_names: Sequence[str]
) -> tuple["pd.Series[str] | None", list[str]]:
    """Return the labels in the names of the classes, and what was assumed; unknown labels stay, to be refused."""
    if labels is None or set(labels) <= set(class_names):
        return labels, []
    names = match_labels(labels, class_names)
    unmatched_labels = [label for label, name in names.items() if name not in class_names]
    binary_labels = _POSITIVE_LABELS | _NEGATIVE_LABELS
    if len(class_names) == 2 and unmatched_labels and {text.lower() for text in unmatched_labels} <= binary_labels:
        malignant = [name for name in class_names if classify_label(name).malignancy == "malignant"]
        positive = malignant[0] if len(malignant) == 1 else class_names[0]
        if len(malignant) == 1 or class_names[1] == f"not {positive}":
            negative = next(name for name in class_names if name != positive)
            names |= {
                label: positive if label.lower() in _POSITIVE_LABELS else negative for label in unmatched_labels
            }
    changed_names = sorted((label, name) for label, name in names.items() if label != name)
    notes = [f"Labels were read as: {', '.join(f'{label} = {name}' for label, name in changed_names)}."]
    return labels.map(names), notes if changed_names else []


def check_one_label(table: TextTable, ids: "pd.Series[str]", labels: "pd.Series[str]") -> None:
    """Raise `DataError` for an image with two labels: in folds or seeds it stands in several rows, with one label."""
    n_labels = labels.groupby(ids.to_numpy()).nunique()
    contradicted_ids = n_labels.index[n_labels > 1].tolist()
    if contradicted_ids:
        rows = np.flatnonzero(ids.isin(contradicted_ids).to_numpy()).tolist()
        examples = ", ".join(map(str, contradicted_ids[:MAX_ROWS_LISTED]))
        raise table_error(
            table.path, f"{len(contradicted_ids)} images have two labels: {examples} ({_row_list(table, rows)})"
        )
