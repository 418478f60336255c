"""Evaluate predictions of any other tool: a table of probabilities becomes a folder like a run's.

With a data set, labels, classes and groups come from its manifest; without one, the table needs a column `label`, and
malignancy is looked up by class name. Columns are matched by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.status import audit_state
from dermkit.data.diagnoses import (
    check_malignancy,
    classify_label,
    malignancy_question,
    unknown_malignancy,
    with_given_malignancy,
)
from dermkit.data.groups import leakage_groups, unknown_ids_warnings
from dermkit.data.importers.csv_tables import ProblemList, TextTable, find_column, read_csv_table
from dermkit.data.importers.match_files import match_files
from dermkit.data.manifest import Dataset, LesionClass
from dermkit.data.split import Split
from dermkit.errors import DataError
from dermkit.evaluation.evaluate import evaluate_run
from dermkit.evaluation.foreign_groups import FOREIGN_GROUP_COLUMNS, group_numbers, group_warnings
from dermkit.evaluation.foreign_splits import (
    DEFAULT_SPLIT,
    MAX_ROWS_LISTED,
    assign_splits,
    check_not_only_train,
    contradiction_error,
    read_split_names,
    split_warnings,
)
from dermkit.evaluation.openings import log_openings, openings_of_images
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.requested_targets import POLICY_SPLIT, check_options, check_targets
from dermkit.files import check_output, check_writable, fingerprint, sha256_file
from dermkit.images.headers import IMAGE_SUFFIXES
from dermkit.progress import Progress
from dermkit.render.cells import undefused
from dermkit.runs.layout import FOREIGN, GROUPS_FILE, LOCATION, OLD_FOREIGN_FILE, PREDICTIONS_FILE, RUN
from dermkit.runs.predictions import (
    FOREIGN_SUM_TOLERANCE,
    PROBABILITY_PREFIX,
    check_predictions,
    to_scored_set,
    write_groups,
    write_predictions,
)

ID_ALIASES = ("image_id", "image", "isic_id", "image_name", "path", "file", "filename", "file_name", "name", "id")
PREDICTION_FIELDS = ("label", "split", "fold", "seed", "predicted")
NOT_NUMBERS = frozenset({"", "nan", "inf", "-inf", "+inf", "infinity", "-infinity", "na", "n/a", "null", "none"})
"""What other tools write for a number that is not there, in lower case."""


@dataclass(frozen=True, eq=False)
class _ForeignTable:
    """A table as it was read. columns: class name -> column of its probability; ids: the table's name of each image."""

    table: TextTable
    ids: "pd.Series[str]"
    columns: dict[str, str]

    def column_values(self, name: str) -> "pd.Series[str] | None":
        """Return one of `PREDICTION_FIELDS` or another column, None where the table lacks it."""
        column = find_column(self.table.columns, name)
        return None if column is None else self.table.frame[column]

    def group_ids(self) -> pd.DataFrame:
        """Return those of `FOREIGN_GROUP_COLUMNS` that the table has, under these names."""
        columns = {name: self.column_values(name) for name in FOREIGN_GROUP_COLUMNS}
        return pd.DataFrame({name: column for name, column in columns.items() if column is not None})


def evaluate_foreign(
    file: Path,
    *,
    dataset: Dataset | None,
    out: Path | None,
    progress: Progress,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    open_test: bool = False,
    split: Split | None = None,
    malignancy: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Evaluate a table of predictions; returns the folder, without a report.

    open_test: sealed test images of the data set may be evaluated; that is logged in their seal. split: the data set's
    split that says which images are test images, None: its given split. malignancy: class -> one of
    `MALIGNANCIES`, without a data set. Raises `DataError` naming the rows or columns that cannot be used, `UsageError`
    for a class that is not there, `UsageError` or `OutputError` for the folder.
    """
    if not file.is_file():
        raise DataError(f"{file}: there is no such file", outcome="nothing was written", remedy="check the path")
    folder = out or file.with_name(f"{file.stem}-evaluated-{fingerprint(sha256_file(file))[:8]}")
    _check_output_folder(folder)
    foreign_table = _read_foreign_table(file, dataset)
    rows = (
        _rows_without_dataset(foreign_table, malignancy)
        if dataset is None
        else _rows_of_dataset(foreign_table, dataset, split)
    )
    classes, class_names = rows.classes, [lesion_class.name for lesion_class in rows.classes]
    predictions = check_predictions(
        _normalise_rows(rows.predictions, class_names), class_names, source_name=str(file)
    )
    _check_fittable(predictions, classes, options)
    check_writable(folder)  # makes the folder, so what is refused above leaves none
    openings = [] if dataset is None else openings_of_images(
        dataset, predictions["image_id"], is_allowed=open_test, model=folder, opened_by="--predictions",
        recipe=file.name, run="",
    )  # fmt: skip
    with log_openings(openings) as opening_texts:
        run_json = _run_json(file, predictions, rows, dataset)
        run_json["warnings"] += [*rows.warnings, *_group_warnings(foreign_table, rows, dataset), *opening_texts]
        write_predictions(folder / PREDICTIONS_FILE, class_names, predictions.to_numpy(dtype=object).tolist())
        _write_groups(folder, foreign_table, predictions, dataset)
        _write_folder_facts(folder, file, run_json, dataset)
    for warning in run_json["warnings"]:
        progress.say(f"warning: {warning}")
    evaluate_run(folder, dataset, options=options)
    return folder


def _check_output_folder(folder: Path) -> None:
    is_old = (folder / OLD_FOREIGN_FILE).is_file()
    marker = OLD_FOREIGN_FILE if is_old else FOREIGN.name
    check_output(folder, marker=marker, description="an evaluation of foreign predictions")


def _write_folder_facts(folder: Path, file: Path, run_json: dict[str, Any], dataset: Dataset | None) -> None:
    RUN.write(folder, run_json)
    FOREIGN.write(folder, {"file": file.name, "sha256": sha256_file(file)})
    (folder / OLD_FOREIGN_FILE).unlink(missing_ok=True)
    if dataset is not None:
        LOCATION.write(folder, {"images": str(dataset.image_root.resolve())})


def _check_fittable(predictions: pd.DataFrame, classes: Sequence[LesionClass], options: EvaluationOptions) -> None:
    """Check that the requested operating points can be fitted, before a file is written or an opening is logged."""
    check_options(options, set(predictions["split"]), untouched="nothing was written")
    validation = predictions[predictions["split"] == POLICY_SPLIT]
    if options.needs_policy:
        check_targets(to_scored_set(validation, classes, None), options, untouched="nothing was written")


# The table --------------------------------------------------------------------------------------------------------


def _read_foreign_table(file: Path, dataset: Dataset | None) -> _ForeignTable:
    problems = ProblemList()
    table = read_csv_table(file, problems, hint_columns=[*ID_ALIASES, *PREDICTION_FIELDS])
    problems.raise_if_any()
    column = next(
        (matching_column for name in ID_ALIASES if (matching_column := find_column(table.columns, name))), None
    )
    if column is None:
        raise _table_error(file, f"no column says which image a row is; one of {', '.join(ID_ALIASES)} is needed")
    if not len(table.frame):
        raise _table_error(file, "it has no row")
    return _ForeignTable(table, table.frame[column].map(undefused), _class_columns(table, column, dataset))


def _class_columns(table: TextTable, id_column: str, dataset: Dataset | None) -> dict[str, str]:
    """Return class -> column: columns that begin with p_, else those named like a class, else all numeric ones."""
    prefixed_columns = [name for name in table.columns if name.startswith(PROBABILITY_PREFIX)]
    if prefixed_columns:
        candidate_columns = {name.removeprefix(PROBABILITY_PREFIX): name for name in prefixed_columns}
    else:
        reserved_columns = {
            id_column,
            *(
                column
                for name in (*PREDICTION_FIELDS, *FOREIGN_GROUP_COLUMNS, *ID_ALIASES)
                if (column := find_column(table.columns, name))
            ),
        }
        free_columns = [name for name in table.columns if name and name not in reserved_columns]
        candidate_columns = {
            name: name for name in free_columns if dataset is not None or _is_numeric(table.frame[name])
        }
    if dataset is None:
        if len(candidate_columns) < 2:
            raise _table_error(table.path, "two columns of probabilities are needed, called p_CLASS or CLASS")
        return candidate_columns
    class_columns = {}
    for name in dataset.class_names:
        column = find_column(list(candidate_columns), name)
        if column is None:
            raise _table_error(
                table.path,
                f"no column of probabilities for class {name!r} of {dataset.name} (it has: "
                f"{', '.join(candidate_columns) or 'none'})",
            )
        class_columns[name] = candidate_columns[column]
    unknown_columns = [name for name in prefixed_columns if name not in class_columns.values()]
    if unknown_columns:
        raise _table_error(table.path, f"{', '.join(unknown_columns)}: no class of {dataset.name} is called so")
    return class_columns


def _is_numeric(column: "pd.Series[str]") -> bool:
    """Tell whether a column may hold a class's probabilities; a blank or nan among them is refused later, by its line.

    Left out instead, the class would be missing from every figure.
    """
    values = pd.to_numeric(column, errors="coerce")
    is_number = np.isfinite(values.to_numpy(dtype=np.float64))
    if is_number.all():
        return True
    is_absent = column.str.strip().str.lower().isin(NOT_NUMBERS).to_numpy() | np.isinf(values.to_numpy())
    return bool((is_number | is_absent).all() and is_number.any() and values[is_number].between(0, 1).all())


def _table_error(file: Path, problem: str) -> DataError:
    return DataError(
        f"{file}: {problem}", outcome="nothing was written", remedy="docs/metrics.md says which columns are read"
    )


# Rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _ForeignRows:
    """Rows as predictions.csv holds them, their classes, and what is to be said of them."""

    predictions: pd.DataFrame
    classes: tuple[LesionClass, ...]
    warnings: tuple[str, ...] = ()
    decided_classes: tuple[str, ...] = ()


def _rows_of_dataset(foreign_table: _ForeignTable, dataset: Dataset, split: Split | None) -> _ForeignRows:
    """Return the rows with ids, labels and splits of the data set; raises `DataError` for a row that names no image."""
    matched_rows = _matched_rows(foreign_table, dataset)
    _check_labels(foreign_table, matched_rows, dataset)
    column, table = foreign_table.column_values("split"), foreign_table.table
    table_names = None if column is None else read_split_names(column)
    names, contradicted_rows = assign_splits(matched_rows, table_names, dataset, split)
    if table_names is not None and len(contradicted_rows):
        raise contradiction_error(contradicted_rows, names, table_names, table, dataset)
    check_not_only_train(names, table.path, dataset, split)
    predictions = _prediction_rows(
        foreign_table, matched_rows["image_id"], matched_rows["path"], matched_rows["label"], dataset.class_names
    ).assign(split=names)
    warnings = split_warnings(names, matched_rows["image_id"], dataset, split)
    return _ForeignRows(predictions[names != ""].reset_index(drop=True), dataset.classes, tuple(warnings))


def _matched_rows(foreign_table: _ForeignTable, dataset: Dataset) -> pd.DataFrame:
    """Return the manifest's row of each row of the table."""
    manifest = dataset.manifest.reset_index(drop=True)
    positions = match_files(
        foreign_table.ids.tolist(), manifest["path"].tolist(), dataset.image_root, IMAGE_SUFFIXES
    ).positions
    positions_by_id = pd.Index(manifest["image_id"]).get_indexer(pd.Index(foreign_table.ids))
    positions_by_isic = (
        _unique_positions(manifest["isic_id"]).reindex(foreign_table.ids).fillna(-1).to_numpy().astype(np.int64)
    )
    positions = np.where(
        positions_by_id >= 0, positions_by_id, np.where(positions >= 0, positions, positions_by_isic)
    )
    unmatched_rows = np.flatnonzero(positions < 0)
    if len(unmatched_rows):
        row_list = ", ".join(
            f"{foreign_table.ids.iloc[i]!r} (row {foreign_table.table.row_numbers[i]})"
            for i in unmatched_rows[:MAX_ROWS_LISTED]
        )
        raise _table_error(
            foreign_table.table.path,
            f"{len(unmatched_rows)} of {len(positions)} rows name no image of {dataset.name}: {row_list}",
        )
    return manifest.iloc[positions].reset_index(drop=True)


def _check_labels(foreign_table: _ForeignTable, matched_rows: pd.DataFrame, dataset: Dataset) -> None:
    """Raise `DataError` where the table's labels are not those of the data set."""
    label = foreign_table.column_values("label")
    if label is not None:
        differing_rows = np.flatnonzero(label.to_numpy() != matched_rows["label"].to_numpy())
        if len(differing_rows):
            row_list = ", ".join(
                f"row {foreign_table.table.row_numbers[i]}" for i in differing_rows[:MAX_ROWS_LISTED]
            )
            raise _table_error(
                foreign_table.table.path,
                f"{len(differing_rows)} labels are not those of {dataset.name} ({row_list}); without "
                f"the column, its own are taken",
            )


def _unique_positions(ids: "pd.Series[str]") -> "pd.Series[int]":
    """Return id -> row of the manifest, without empty ids and ids that occur twice."""
    unique_ids = ids[(ids != "") & ~ids.duplicated(keep=False)]
    return pd.Series(unique_ids.index.to_numpy(), index=unique_ids.to_numpy())


def _rows_without_dataset(foreign_table: _ForeignTable, malignancy: Mapping[str, str]) -> _ForeignRows:
    label = foreign_table.column_values("label")
    if label is None:
        raise _table_error(
            foreign_table.table.path, "no column `label`; without a data set (--on) the table must say it"
        )
    names = list(foreign_table.columns)
    path = foreign_table.column_values("path")
    predictions = _prediction_rows(
        foreign_table, foreign_table.ids, foreign_table.ids if path is None else path, label, names
    )
    table_names = foreign_table.column_values("split")
    predictions["split"] = DEFAULT_SPLIT if table_names is None else read_split_names(table_names)
    check_malignancy(malignancy, names)
    classes = with_given_malignancy(tuple(map(classify_label, names)), malignancy)
    return _ForeignRows(predictions, classes, decided_classes=tuple(malignancy))


def _prediction_rows(
    foreign_table: _ForeignTable,
    ids: "pd.Series[str]",
    paths: "pd.Series[str]",
    labels: "pd.Series[str]",
    names: Sequence[str],
) -> pd.DataFrame:
    frame = pd.DataFrame({"image_id": ids.to_numpy(), "path": paths.to_numpy(), "label": labels.to_numpy()})
    for name in ("fold", "seed"):
        values = foreign_table.column_values(name)
        frame[name] = "" if values is None else values.to_numpy()
    probability_cells = foreign_table.table.frame[[foreign_table.columns[name] for name in names]]
    predicted_column = foreign_table.column_values("predicted")
    p = probability_cells.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    most_probable = np.array(names, dtype=object)[np.nan_to_num(p, nan=-1.0).argmax(axis=1)]
    frame["predicted"] = most_probable if predicted_column is None else predicted_column.to_numpy()
    for name in names:
        frame[PROBABILITY_PREFIX + name] = probability_cells[foreign_table.columns[name]].to_numpy()
    return frame


def _normalise_rows(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Rescale rows whose sum differs from 1 by rounding alone; `check_predictions` refuses larger differences."""
    columns = [PROBABILITY_PREFIX + name for name in names]
    p = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    sums = p.sum(axis=1, keepdims=True)
    is_rounded = np.isfinite(sums) & (np.abs(sums - 1) <= FOREIGN_SUM_TOLERANCE) & (np.abs(sums - 1) > 1e-12)
    frame = frame.copy()
    normalised = np.where(is_rounded, p / np.where(is_rounded, sums, 1.0), p)
    for class_number, column in enumerate(columns):
        texts = frame[column].astype(str).to_numpy(dtype=object)
        frame[column] = np.where(
            is_rounded[:, 0], [repr(float(value)) for value in normalised[:, class_number]], texts
        )
    return frame


# The folder -------------------------------------------------------------------------------------------------------


def _write_groups(
    folder: Path, foreign_table: _ForeignTable, frame: pd.DataFrame, dataset: Dataset | None
) -> None:
    if dataset is not None:
        write_groups(
            folder / GROUPS_FILE,
            dataset.manifest["image_id"],
            leakage_groups(dataset.manifest),
            frame["image_id"],
        )
        return
    numbers = group_numbers(foreign_table.ids, foreign_table.group_ids())
    if numbers is not None:
        write_groups(folder / GROUPS_FILE, foreign_table.ids, numbers, frame["image_id"])


def _group_warnings(foreign_table: _ForeignTable, rows: _ForeignRows, dataset: Dataset | None) -> list[str]:
    if dataset is None:
        return group_warnings(foreign_table.group_ids())
    return unknown_ids_warnings(dataset.manifest[dataset.manifest["image_id"].isin(rows.predictions["image_id"])])


def _run_json(file: Path, frame: pd.DataFrame, rows: _ForeignRows, dataset: Dataset | None) -> dict[str, Any]:
    notes = dict(dataset.notes) if dataset else {"malignancy_decided": list(rows.decided_classes)}
    counts = frame["split"].value_counts().to_dict()
    return {
        "recipe": file.stem,
        "system": "",
        "about": f"Predictions of another tool ({file.name})" + (f" on {dataset.name}." if dataset else "."),
        "dataset": {
            "name": dataset.name if dataset else "",
            "classes": [asdict(lesion_class) for lesion_class in rows.classes],
            "n": len(dataset.manifest) if dataset else frame["image_id"].nunique(),
            "manifest_sha256": dataset.manifest_sha256 if dataset else sha256_file(file),
            "licences": ", ".join(sorted(set(dataset.manifest["licence"]) - {""})) if dataset else "",
            "audit": audit_state(dataset, None) if dataset else {},
            "notes": notes,
        },
        "split": {
            "name": "foreign",
            "scheme": "foreign",
            "counts": {str(split_name): int(count) for split_name, count in counts.items()},
            "excluded": 0,
        },
        "seed": None,
        "fold": None,
        "weights": {},
        "warnings": _warnings(rows.classes, notes, dataset),
    }


def _warnings(classes: Sequence[LesionClass], notes: Mapping[str, Any], dataset: Dataset | None) -> list[str]:
    warnings = [
        "These predictions come from another tool. Whether its model has learned from these images, or was selected on "
        "this test split, is not known."
    ]
    if dataset is None:
        class_list = ", ".join(f"{lesion_class.name} {lesion_class.malignancy}" for lesion_class in classes)
        warnings.append(f"No data set was named: classes were judged by their names ({class_list}).")
    question = malignancy_question(classes, unknown_malignancy(classes, notes.get("malignancy_decided", ())))
    return [*warnings, question] if question else warnings
