"""`audit --clean`: drops contradictions and exact copies from the manifest, and gives near copies one copy_group.

Images and lesion ids are not changed, and every dropped row has its reason in dropped.csv.
"""

import csv
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import AuditInput
from dermkit.data.groups import connect_rows, id_codes
from dermkit.data.importers.overview_page import render_overview
from dermkit.data.importers.records import read_rejected
from dermkit.data.manifest import Dataset, save_dataset
from dermkit.data.readers import no_readers
from dermkit.data.small_classes import shrunken_class_texts
from dermkit.data.staging import staged_changes
from dermkit.errors import DataError
from dermkit.files import write_bytes, write_rows, write_text
from dermkit.metrics.stats.arrays import Bools, Ints

DROPPED_COLUMNS = ("image_id", "path", "label", "reason", "code")

DUPLICATES, CONTRADICTIONS, DUPLICATES_ACROSS_SPLITS, NEAR_CONTRADICTIONS = "DA010", "DA011", "DA012", "DA014"
LESION_LABELS, ARCHIVE_IDS = "DA022", "DA024"
"""The checks whose findings are dropped; contradictions stay where their code was accepted."""

REPAIRED_BY_CLEANING = frozenset({"DA010", "DA011", "DA012", "DA013", "DA014", "DA015", "DA022", "DA024"})
REPAIRED_BY_SPLIT = frozenset({"DA012", "DA015", "DA020", "DA021", "DA024"})
"""Codes that a cleaning repairs (or turns into copy groups, which splits respect), and those of a new split."""

_PREFERRED_SPLITS = ("test", "validation")
"""Of exact copies the one in the first of these splits is retained: a published test split must stay complete."""

SMALL_CLASS = "small_class"
"""Code of the warning that a cleaning left a class with too few images."""

_RESOLVED_WARNINGS = {
    "contradictory_copies": CONTRADICTIONS, "lesion_labels": LESION_LABELS, "copies": "", "copies_across": "",
}  # fmt: skip
"""Import warnings that no longer hold after a cleaning -> the check whose acceptance keeps them true ("" = none)."""


@dataclass(frozen=True, eq=False)
class CleaningPlan:
    """keep_mask: (N,) rows to retain. dropped_rows: `DROPPED_COLUMNS`. copy_group: (N,) the new column."""

    keep_mask: Bools
    dropped_rows: pd.DataFrame
    copy_group: NDArray[np.object_]


def plan_cleaning(audit_input: AuditInput, accepted_codes: Collection[str]) -> CleaningPlan:
    """Decide which rows to drop and why, and which to group. accepted_codes: codes whose acceptance is valid."""
    frame, pairs = audit_input.frame, audit_input.pairs
    a, b = pairs["a"].to_numpy(np.int64), pairs["b"].to_numpy(np.int64)
    pixel_keys = id_codes(frame["pixel_sha256"])
    is_exact = (pairs["kind"] == "exact").to_numpy()
    pixel_groups = connect_rows(len(frame), a[is_exact], b[is_exact], pixel_keys)
    reason = np.full(len(frame), "", dtype=object)
    code = reason.copy()

    def drop(rows: Ints, reasons: list[str], check_code: str) -> None:
        is_new = reason[rows] == ""
        reason[rows[is_new]], code[rows[is_new]] = np.array(reasons, dtype=object)[is_new], check_code

    if CONTRADICTIONS not in accepted_codes:
        drop(*_contradictory_rows(frame, pixel_groups), CONTRADICTIONS)
    if NEAR_CONTRADICTIONS not in accepted_codes:
        drop(*_near_contradictory_rows(frame, pairs[~is_exact], pixel_groups), NEAR_CONTRADICTIONS)
    if ARCHIVE_IDS not in accepted_codes:
        drop(*_inconsistent_rows(frame, "isic_id", "ISIC id"), ARCHIVE_IDS)
    if LESION_LABELS not in accepted_codes:
        drop(*_inconsistent_rows(frame, "lesion_id", "lesion"), LESION_LABELS)
    for across_splits in (True, False):
        drop(
            *_redundant_duplicates(frame, pixel_groups, code == "", across_splits=across_splits),
            DUPLICATES_ACROSS_SPLITS if across_splits else DUPLICATES,
        )
    keep_mask = code == ""
    table = frame.loc[~keep_mask, ["image_id", "path", "label"]].assign(
        reason=reason[~keep_mask], code=code[~keep_mask]
    )
    return CleaningPlan(
        keep_mask, table.reset_index(drop=True), _copy_groups(frame, (a, b), pixel_groups, keep_mask)
    )


# Rows to drop ---------------------------------------------------------------------------------------------------


def _contradictory_rows(frame: pd.DataFrame, pixel_groups: Ints) -> tuple[Ints, list[str]]:
    """Return the rows whose pixels also occur under another label, and the reasons."""
    labels = frame["label"]
    rows = np.flatnonzero(labels.groupby(pixel_groups).transform("nunique") > 1).astype(np.int64)
    by_picture = frame.iloc[rows].groupby(pixel_groups[rows])
    images_by_group = {
        key: list(zip(members["image_id"], members["label"], strict=True)) for key, members in by_picture
    }
    texts = []
    for row in rows.tolist():
        duplicate_id, label = next(
            member for member in images_by_group[pixel_groups[row]] if member[1] != labels.iloc[row]
        )
        texts.append(f"same pixels as {duplicate_id}, which is labelled {label}")
    return rows, texts


def _near_contradictory_rows(
    frame: pd.DataFrame, near_pairs: pd.DataFrame, pixel_groups: Ints
) -> tuple[Ints, list[str]]:
    """Return the rows of near copies with different labels, with their exact copies, and the reasons."""
    ids, labels = frame["image_id"].to_numpy(), frame["label"].to_numpy()
    reason_by_row: dict[int, str] = {}
    for a, b, kind in zip(
        near_pairs["a"].tolist(), near_pairs["b"].tolist(), near_pairs["kind"].tolist(), strict=True
    ):
        if labels[a] != labels[b]:
            reason_by_row.setdefault(a, f"near copy ({kind}) of {ids[b]}, which is labelled {labels[b]}")
            reason_by_row.setdefault(b, f"near copy ({kind}) of {ids[a]}, which is labelled {labels[a]}")
    reason_by_group = {int(pixel_groups[row]): text for row, text in reason_by_row.items()}
    rows = np.flatnonzero(np.isin(pixel_groups, list(reason_by_group))).astype(np.int64)
    return rows, [reason_by_row.get(row, reason_by_group[int(pixel_groups[row])]) for row in rows.tolist()]


def _inconsistent_rows(frame: pd.DataFrame, column: str, noun: str) -> tuple[Ints, list[str]]:
    """Return the rows whose lesion id or ISIC id has several labels, and the reasons."""
    ids = frame[column]
    has_several_labels = (ids != "") & (frame["label"].groupby(ids).transform("nunique") > 1)
    rows = np.flatnonzero(has_several_labels).astype(np.int64)
    labels_by_id = {
        key: ", ".join(sorted(group_labels.unique()))
        for key, group_labels in frame["label"].iloc[rows].groupby(ids.iloc[rows])
    }
    return rows, [f"{noun} {name} carries several labels: {labels_by_id[name]}" for name in ids.iloc[rows]]


def _redundant_duplicates(
    frame: pd.DataFrame, pixel_groups: Ints, is_remaining: Bools, *, across_splits: bool
) -> tuple[Ints, list[str]]:
    """Return exact copies under one label but for the retained one, and reasons that name it.

    is_remaining: (N,) rows not dropped so far. across_splits: copies in another split than the retained one; else those
    in the same.
    """
    rows = np.flatnonzero(
        is_remaining & (pd.Series(pixel_groups).groupby(pixel_groups).transform("size") > 1).to_numpy()
    )
    table = frame.iloc[rows][["image_id", "label", "split", "given_split"]].assign(
        row=rows, same=pixel_groups[rows]
    )
    for column in ("split", "given_split"):
        table[column] = [
            _PREFERRED_SPLITS.index(split) if split in _PREFERRED_SPLITS else 2 for split in table[column]
        ]
    sorted_rows = table.sort_values(["same", "split", "given_split", "image_id"], kind="stable")
    # Copies under another label remain only where the contradiction was accepted: then each label retains one.
    retained_of_group = sorted_rows.groupby(["same", "label"])["row"].transform("first")
    is_redundant = sorted_rows["row"] != retained_of_group
    dropped_rows, retained_rows = (
        sorted_rows.loc[is_redundant, "row"].to_numpy(np.int64),
        retained_of_group[is_redundant].to_numpy(np.int64),
    )
    split, ids = frame["split"].to_numpy(), frame["image_id"].to_numpy()
    is_selected = (split[dropped_rows] != split[retained_rows]) == across_splits
    return dropped_rows[is_selected], [
        f"same pixels as {ids[row]}, which is kept" for row in retained_rows[is_selected].tolist()
    ]


# Copy groups ------------------------------------------------------------------------------------------------------


def _copy_groups(
    frame: pd.DataFrame, pairs: tuple[Ints, Ints], pixel_groups: Ints, keep_mask: Bools
) -> NDArray[np.object_]:
    """Return the copy_group of each row: components of pairs, identical pixels, ISIC ids and existing copy groups.

    Where only a dropped row connected two groups (as duplicate, lesion or patient), the copy group connects them.
    """
    current_names, n = frame["copy_group"].to_numpy(dtype=object), len(frame)
    id_keys = [id_codes(frame[column]) for column in ("lesion_id", "patient_id")]
    duplicate_keys = [pixel_groups, id_codes(frame["copy_group"]), id_codes(frame["isic_id"])]
    both_retained = keep_mask[pairs[0]] & keep_mask[pairs[1]]
    first, second = pairs[0][both_retained], pairs[1][both_retained]
    components_before = connect_rows(n, *pairs, *duplicate_keys, *id_keys)
    components_after = connect_rows(
        n, first, second, *(np.where(keep_mask, key, -1) for key in (*duplicate_keys, *id_keys))
    )
    fragments = pd.DataFrame(
        {
            "row": np.flatnonzero(keep_mask),
            "before": components_before[keep_mask],
            "after": components_after[keep_mask],
        }
    )
    fragments = fragments.drop_duplicates(["before", "after"])
    divided_fragments = fragments[fragments["before"].duplicated(keep=False)]
    head_rows = divided_fragments.groupby("before")["row"].transform("first").to_numpy(np.int64)
    first, second = np.append(first, head_rows), np.append(second, divided_fragments["row"].to_numpy(np.int64))
    component = connect_rows(n, first, second, *(np.where(keep_mask, key, -1) for key in duplicate_keys))
    sizes = np.bincount(component[keep_mask], minlength=int(component.max(initial=-1)) + 1)
    rows = np.flatnonzero(keep_mask & (sizes[component] > 1))
    used_names, name_by_component = set(current_names.tolist()), dict[int, str]()
    for component_id, member_rows in pd.Series(rows).groupby(component[rows]):
        members = member_rows.to_numpy()
        name_by_component[int(str(component_id))] = _group_name(
            set(current_names[members]) - {""}, frame["image_id"].iloc[members].min(), used_names
        )
    names = [
        name_by_component.get(component_id, current_name)
        for component_id, current_name in zip(component.tolist(), current_names, strict=True)
    ]
    return np.array(names, dtype=object)


def _group_name(existing_names: set[str], image_id: str, used_names: set[str]) -> str:
    """Return a group's name: the first of its existing names, else one from its first image."""
    if existing_names:
        return min(existing_names)
    name = f"copies of {image_id}"
    while name in used_names:
        name += "'"
    used_names.add(name)
    return name


# Writing ----------------------------------------------------------------------------------------------------------


def apply_cleaning(dataset: Dataset, plan: CleaningPlan, *, date: str) -> Dataset:
    """Write the cleaned manifest, dropped.csv and a copy of the old manifest; returns the cleaned data set.

    Writes nothing if there is nothing to change. Raises `DataError` if no row would remain.
    """
    manifest = dataset.manifest
    if not plan.keep_mask.any():
        raise DataError(
            f"{dataset.folder}: a cleaning would drop all {len(manifest)} images",
            outcome=f"the manifest as it was, and {dataset.folder / 'audit' / 'audit.html'} with what was found",
            remedy="look at audit.html; accept by code what must stay, e.g. --accept DA011",
        )
    if plan.keep_mask.all() and (plan.copy_group == manifest["copy_group"].to_numpy(dtype=object)).all():
        return dataset
    backup_name = _unused_backup_name(dataset.folder / "audit")
    frame = manifest.assign(copy_group=plan.copy_group)[plan.keep_mask].reset_index(drop=True)
    remaining_labels = set(frame["label"])
    cleaned_dataset = replace(
        dataset,
        manifest=frame,
        classes=tuple(lesion_class for lesion_class in dataset.classes if lesion_class.name in remaining_labels),
        notes={},
    )
    removed_classes = [
        lesion_class.name for lesion_class in dataset.classes if lesion_class.name not in remaining_labels
    ]
    cleaning_record = {
        "date": date,
        "from_manifest_sha256": dataset.manifest_sha256,
        "to_manifest_sha256": cleaned_dataset.manifest_sha256,
        "manifest": f"audit/manifest.{backup_name}.csv",
        "audit": f"audit/{backup_name}",
        "dropped": len(plan.dropped_rows),
        "by_code": dict(sorted(Counter(plan.dropped_rows["code"]).items())),
        "copy_groups": int(frame.loc[frame["copy_group"] != "", "copy_group"].nunique()),
        "classes_removed": removed_classes,
    }
    small_classes = shrunken_class_texts(manifest, frame)
    notes = _updated_notes(dataset.notes, cleaning_record, small_classes)
    cleaned_dataset = replace(cleaned_dataset, notes=notes)
    _save_cleaned(cleaned_dataset, dataset, plan, backup_name)
    return cleaned_dataset


def _save_cleaned(cleaned: Dataset, original: Dataset, plan: CleaningPlan, backup_name: str) -> None:
    """Write the files of a cleaning together; one that is killed changed nothing, or the next command finishes it."""
    folder = original.folder
    with staged_changes(folder) as changes:
        audit_files = changes.new_files / "audit"
        write_bytes(audit_files / f"manifest.{backup_name}.csv", (folder / "manifest.csv").read_bytes())
        write_bytes(audit_files / backup_name / "dataset.json", (folder / "dataset.json").read_bytes())
        dropped_rows = _all_dropped_rows(folder / "audit" / "dropped.csv", plan.dropped_rows, original)
        write_rows(audit_files / "dropped.csv", DROPPED_COLUMNS, dropped_rows)
        save_dataset(cleaned, changes.new_files)
        write_text(changes.new_files / "overview.html", render_overview(cleaned, read_rejected(folder) or []))
        with no_readers(folder, "the cleaning"):
            changes.commit()


def _unused_backup_name(folder: Path) -> str:
    """Return a name for the old manifest and its audit that no earlier cleaning used."""
    name, number = "before-clean", 2
    while (folder / f"manifest.{name}.csv").exists() or (folder / name).exists():
        name, number = f"before-clean-{number}", number + 1
    return name


def _all_dropped_rows(path: Path, dropped_rows: pd.DataFrame, dataset: Dataset) -> list[list[Any]]:
    """Return the dropped rows after those of earlier cleanings of this manifest, which `path` lists."""
    rows = dropped_rows.to_numpy(dtype=object).tolist()
    if not path.is_file():
        return rows
    image_ids = set(dataset.manifest["image_id"])
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in list(csv.reader(stream))[1:] if row and row[0] not in image_ids] + rows


def _updated_notes(
    notes: dict[str, Any], cleaning_record: dict[str, Any], small_classes: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """Return the notes of dataset.json with a record of the cleaning, without the warnings that it resolved."""
    remaining_warnings = [
        warning
        for warning in notes.get("warnings", [])
        if warning.get("code") not in _RESOLVED_WARNINGS
        or _RESOLVED_WARNINGS[warning["code"]] in notes.get("accepted", {})
    ]
    remaining_warnings += [{"code": SMALL_CLASS, "text": text, "n": n} for text, n in small_classes]
    if removed_classes := cleaning_record["classes_removed"]:
        text = f"Classes without an image after the cleaning, removed: {', '.join(removed_classes)}."
        remaining_warnings.append({"code": "classes_removed", "text": text, "n": 0})
    return {**notes, "warnings": remaining_warnings, "cleanings": [*notes.get("cleanings", []), cleaning_record]}
