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
from dermkit.data.importers.match_files import match_files
from dermkit.data.manifest import Dataset, LesionClass, write_run_location
from dermkit.data.split import Split
from dermkit.errors import DataError
from dermkit.evaluation.evaluate import evaluate_run
from dermkit.evaluation.foreign_classes import match_labels
from dermkit.evaluation.foreign_groups import group_numbers, group_warnings
from dermkit.evaluation.foreign_probabilities import table_error
from dermkit.evaluation.foreign_splits import (
    DEFAULT_SPLIT,
    MAX_ROWS_LISTED,
    assign_splits,
    check_not_only_train,
    contradiction_error,
    read_split_names,
    split_warnings,
)
from dermkit.evaluation.foreign_table import ForeignTable, check_one_label, read_foreign_table
from dermkit.evaluation.openings import log_openings, openings_of_images
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.requested_targets import POLICY_SPLIT, check_options, check_targets
from dermkit.files import check_output, check_writable, fingerprint, sha256_file
from dermkit.images.formats import IMAGE_SUFFIXES
from dermkit.progress import Progress
from dermkit.runs.layout import FOREIGN, GROUPS_FILE, OLD_FOREIGN_FILE, PREDICTIONS_FILE, RUN
from dermkit.runs.predictions import (
    PROBABILITY_PREFIX,
    check_predictions,
    to_scored_set,
    write_groups,
    write_predictions,
)


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
    probabilities: str | None = None,
) -> Path:
    """Evaluate a table of predictions; returns the folder, without a report.

    open_test: sealed test images of the data set may be evaluated; that is logged in their seal. split: the data set's
    split that says which images are test images, None: its given split. malignancy: class -> one of
    `MALIGNANCIES`, without a data set. probabilities: the scale of the numbers, one of `foreign_probabilities.SCALES`.
    Raises `DataError` naming the rows or columns that cannot be used, `UsageError` for a class that is not there,
    `UsageError` or `OutputError` for the folder.
    """
    if not file.is_file():
        raise DataError(f"{file}: there is no such file", outcome="nothing was written", remedy="check the path")
    folder = out or file.with_name(f"{file.stem}-evaluated-{fingerprint(sha256_file(file))[:8]}")
    _check_output_folder(folder)
    foreign_table = read_foreign_table(file, dataset, probabilities)
    rows = (
        _rows_without_dataset(foreign_table, malignancy)
        if dataset is None
        else _rows_of_dataset(foreign_table, dataset, split)
    )
    classes, class_names = rows.classes, [lesion_class.name for lesion_class in rows.classes]
    predictions = check_predictions(rows.predictions, class_names, source_name=str(file))
    _check_classes(file, class_names)
    _check_fittable(predictions, classes, options)
    check_writable(folder)  # makes the folder, so what is refused above leaves none
    openings = [] if dataset is None else openings_of_images(
        dataset, predictions["image_id"], is_allowed=open_test, model=folder, opened_by="--predictions",
        recipe=file.name, run="",
    )  # fmt: skip
    with log_openings(openings) as opening_texts:
        run_json = _run_json(file, predictions, rows, dataset)
        run_json["warnings"] += [*foreign_table.notes, *rows.warnings]
        run_json["warnings"] += [*_group_warnings(foreign_table, rows, dataset), *opening_texts]
        write_predictions(folder / PREDICTIONS_FILE, class_names, predictions.to_numpy(dtype=object).tolist())
        _write_groups(folder, foreign_table, predictions, dataset)
        _write_folder_facts(folder, file, run_json, dataset)
    for warning in run_json["warnings"]:
        progress.say(f"warning: {warning}")
    evaluate_run(folder, dataset, options=options)
    return folder


def _check_classes(file: Path, class_names: Sequence[str]) -> None:
    """Raise `DataError` for predictions of one class: every answer is right, and no figure says anything."""
    if len(class_names) < 2:
        raise DataError(
            f"{file}: all images and predictions are of one class, {', '.join(class_names)}; figures need two",
            outcome="nothing was written",
            remedy="evaluate on images of two classes or more; a data set is imported with all of them",
        )


def _check_output_folder(folder: Path) -> None:
    is_old = (folder / OLD_FOREIGN_FILE).is_file()
    marker = OLD_FOREIGN_FILE if is_old else FOREIGN.name
    check_output(folder, marker=marker, description="an evaluation of foreign predictions")


def _write_folder_facts(folder: Path, file: Path, run_json: dict[str, Any], dataset: Dataset | None) -> None:
    RUN.write(folder, run_json)
    FOREIGN.write(folder, {"file": file.name, "sha256": sha256_file(file)})
    (folder / OLD_FOREIGN_FILE).unlink(missing_ok=True)
    if dataset is not None:
        write_run_location(folder, dataset)


def _check_fittable(predictions: pd.DataFrame, classes: Sequence[LesionClass], options: EvaluationOptions) -> None:
    """Check that the requested operating points can be fitted, before a file is written or an opening is logged."""
    check_options(options, set(predictions["split"]), untouched="nothing was written")
    validation = predictions[predictions["split"] == POLICY_SPLIT]
    if options.needs_policy:
        check_targets(to_scored_set(validation, classes, None), options, untouched="nothing was written")


# Rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _ForeignRows:
    """Rows as predictions.csv holds them, their classes, and what is to be said of them."""

    predictions: pd.DataFrame
    classes: tuple[LesionClass, ...]
    warnings: tuple[str, ...] = ()
    decided_classes: tuple[str, ...] = ()


def _rows_of_dataset(foreign_table: ForeignTable, dataset: Dataset, split: Split | None) -> _ForeignRows:
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


def _matched_rows(foreign_table: ForeignTable, dataset: Dataset) -> pd.DataFrame:
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
        raise table_error(
            foreign_table.table.path,
            f"{len(unmatched_rows)} of {len(positions)} rows name no image of {dataset.name}: {row_list}",
        )
    return manifest.iloc[positions].reset_index(drop=True)


def _check_labels(foreign_table: ForeignTable, matched_rows: pd.DataFrame, dataset: Dataset) -> None:
    """Raise `DataError` where the table's labels are not those of the data set."""
    label = foreign_table.labels
    if label is not None:
        differing_rows = np.flatnonzero(label.to_numpy() != matched_rows["label"].to_numpy())
        if len(differing_rows):
            row_list = ", ".join(
                f"row {foreign_table.table.row_numbers[i]}" for i in differing_rows[:MAX_ROWS_LISTED]
            )
            raise table_error(
                foreign_table.table.path,
                f"{len(differing_rows)} labels are not those of {dataset.name} ({row_list}); without "
                f"the column, its own are taken",
            )


def _unique_positions(ids: "pd.Series[str]") -> "pd.Series[int]":
    """Return id -> row of the manifest, without empty ids and ids that occur twice."""
    unique_ids = ids[(ids != "") & ~ids.duplicated(keep=False)]
    return pd.Series(unique_ids.index.to_numpy(), index=unique_ids.to_numpy())


def _rows_without_dataset(foreign_table: ForeignTable, malignancy: Mapping[str, str]) -> _ForeignRows:
    label = pd.Series("", index=foreign_table.ids.index) if foreign_table.labels is None else foreign_table.labels
    check_one_label(foreign_table.table, foreign_table.ids, label)
    names = foreign_table.probabilities.columns.tolist()
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
    foreign_table: ForeignTable,
    ids: "pd.Series[str]",
    paths: "pd.Series[str]",
    labels: "pd.Series[str]",
    names: Sequence[str],
) -> pd.DataFrame:
    frame = pd.DataFrame({"image_id": ids.to_numpy(), "path": paths.to_numpy(), "label": labels.to_numpy()})
    for name in ("fold", "seed"):
        values = foreign_table.column_values(name)
        frame[name] = "" if values is None else values.to_numpy()
    p = foreign_table.probabilities[list(names)]
    most_probable = np.array(names, dtype=object)[p.fillna(-1.0).to_numpy(dtype=np.float64).argmax(axis=1)]
    predicted_column = foreign_table.column_values("predicted")
    frame["predicted"] = (
        most_probable if predicted_column is None else predicted_column.map(match_labels(predicted_column, names))
    )
    for name in names:
        frame[PROBABILITY_PREFIX + name] = p[name].to_numpy()
    return frame


# The folder -------------------------------------------------------------------------------------------------------


def _write_groups(folder: Path, foreign_table: ForeignTable, frame: pd.DataFrame, dataset: Dataset | None) -> None:
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


def _group_warnings(foreign_table: ForeignTable, rows: _ForeignRows, dataset: Dataset | None) -> list[str]:
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
