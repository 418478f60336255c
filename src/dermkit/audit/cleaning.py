"""`audit --clean`: a new manifest without contradictions and exact copies, near copies tied together by copy_group.

Images and lesion ids are not touched, and every row that goes has its reason in dropped.csv.
"""

import csv
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.audit.checks.finding import Subject
from dermkit.data.groups import Ints, join, keys_of
from dermkit.data.importers.overview_page import render_overview
from dermkit.data.importers.walk import Refused
from dermkit.data.manifest import Dataset, save_dataset
from dermkit.errors import DataError
from dermkit.files import write_bytes, write_rows, write_text

DROPPED_COLUMNS = ("image_id", "path", "label", "reason", "code")

COPIES, CONTRADICTORY, COPIES_ACROSS, NEAR_CONTRADICTORY = "DA010", "DA011", "DA012", "DA014"
LESION_LABELS, ARCHIVE_IDS = "DA022", "DA024"
"""The checks whose findings are dropped; contradictions stay where their code was accepted."""

CLEANED = frozenset({"DA010", "DA011", "DA012", "DA013", "DA014", "DA015", "DA022", "DA024"})
PARTED = frozenset({"DA012", "DA015", "DA020", "DA021", "DA024"})
"""What a cleaning repairs or makes known to a split, and what a split then repairs."""

_PREFERRED = ("test", "validation")
"""Which of several exact copies is kept: a published test side must stay whole, so it comes first."""

_REPAIRED = {
    "contradictory_copies": CONTRADICTORY, "lesion_labels": LESION_LABELS, "copies": "", "copies_across": "",
}  # fmt: skip
"""The import's warnings that a cleaning makes untrue, and the code whose acceptance leaves them true."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Cleaning:
    """What is to be done. keep: (N,) flags. dropped: `DROPPED_COLUMNS`. copy_group: (N,) texts, as they become."""

    keep: Flags
    dropped: pd.DataFrame
    copy_group: NDArray[np.object_]


def plan_cleaning(subject: Subject, accepted: Collection[str]) -> Cleaning:
    """Decide which rows go, each with its reason, and which stay together. accepted: codes that stand accepted."""
    frame, pairs = subject.frame, subject.pairs
    a, b = pairs["a"].to_numpy(np.int64), pairs["b"].to_numpy(np.int64)
    pixels = keys_of(frame["pixel_sha256"])
    exact = (pairs["kind"] == "exact").to_numpy()
    same = join(len(frame), a[exact], b[exact], pixels)
    reason = np.full(len(frame), "", dtype=object)
    code = reason.copy()

    def drop(rows: Ints, why: list[str], by: str) -> None:
        first = reason[rows] == ""
        reason[rows[first]], code[rows[first]] = np.array(why, dtype=object)[first], by

    if CONTRADICTORY not in accepted:
        drop(*_contradicted(frame, same), CONTRADICTORY)
    if NEAR_CONTRADICTORY not in accepted:
        drop(*_near_contradicted(frame, pairs[~exact], same), NEAR_CONTRADICTORY)
    if ARCHIVE_IDS not in accepted:
        drop(*_inconsistent(frame, "isic_id", "ISIC id"), ARCHIVE_IDS)
    if LESION_LABELS not in accepted:
        drop(*_inconsistent(frame, "lesion_id", "lesion"), LESION_LABELS)
    for across in (True, False):
        drop(*_spare_copies(frame, same, code == "", across=across), COPIES_ACROSS if across else COPIES)
    keep = code == ""
    table = frame.loc[~keep, ["image_id", "path", "label"]].assign(reason=reason[~keep], code=code[~keep])
    return Cleaning(keep, table.reset_index(drop=True), _copy_groups(frame, (a, b), same, keep))


# What goes ------------------------------------------------------------------------------------------------------


def _contradicted(frame: pd.DataFrame, same: Ints) -> tuple[Ints, list[str]]:
    """Return the rows whose exact pixels also carry another label, and why."""
    labels = frame["label"]
    rows = np.flatnonzero(labels.groupby(same).transform("nunique") > 1).astype(np.int64)
    found = frame.iloc[rows].groupby(same[rows])
    lists = {key: list(zip(part["image_id"], part["label"], strict=True)) for key, part in found}
    texts = []
    for row in rows.tolist():
        other, label = next(item for item in lists[same[row]] if item[1] != labels.iloc[row])
        texts.append(f"same pixels as {other}, which is labelled {label}")
    return rows, texts


def _near_contradicted(frame: pd.DataFrame, near: pd.DataFrame, same: Ints) -> tuple[Ints, list[str]]:
    """Return the rows of near copies with different labels, and the exact copies of those rows, and why."""
    ids, labels = frame["image_id"].to_numpy(), frame["label"].to_numpy()
    why: dict[int, str] = {}
    for a, b, kind in zip(near["a"].tolist(), near["b"].tolist(), near["kind"].tolist(), strict=True):
        if labels[a] != labels[b]:
            why.setdefault(a, f"near copy ({kind}) of {ids[b]}, which is labelled {labels[b]}")
            why.setdefault(b, f"near copy ({kind}) of {ids[a]}, which is labelled {labels[a]}")
    reasons = {int(same[row]): text for row, text in why.items()}
    twins = np.flatnonzero(np.isin(same, list(reasons))).astype(np.int64)
    return twins, [why.get(row, reasons[int(same[row])]) for row in twins.tolist()]


def _inconsistent(frame: pd.DataFrame, column: str, noun: str) -> tuple[Ints, list[str]]:
    """Return the rows whose lesion, or whose photograph by its ISIC id, carries several labels, and why."""
    ids = frame[column]
    several = (ids != "") & (frame["label"].groupby(ids).transform("nunique") > 1)
    rows = np.flatnonzero(several).astype(np.int64)
    words = {
        key: ", ".join(sorted(part.unique())) for key, part in frame["label"].iloc[rows].groupby(ids.iloc[rows])
    }
    return rows, [f"{noun} {name} carries several labels: {words[name]}" for name in ids.iloc[rows]]


def _spare_copies(frame: pd.DataFrame, same: Ints, left: Flags, *, across: bool) -> tuple[Ints, list[str]]:
    """Return exact copies of one label that are not the one kept, and which one is kept.

    left: rows that have not gone yet. across: those on another side than the one kept; else those on the same side.
    """
    rows = np.flatnonzero(left & (pd.Series(same).groupby(same).transform("size") > 1).to_numpy())
    table = frame.iloc[rows][["image_id", "label", "split", "given_split"]].assign(row=rows, same=same[rows])
    for column in ("split", "given_split"):
        table[column] = [_PREFERRED.index(side) if side in _PREFERRED else 2 for side in table[column]]
    ordered = table.sort_values(["same", "split", "given_split", "image_id"], kind="stable")
    # Copies under another label are here only where the contradiction was accepted: then each label keeps one.
    kept = ordered.groupby(["same", "label"])["row"].transform("first")
    spare = ordered["row"] != kept
    gone, instead = ordered.loc[spare, "row"].to_numpy(np.int64), kept[spare].to_numpy(np.int64)
    side, ids = frame["split"].to_numpy(), frame["image_id"].to_numpy()
    chosen = (side[gone] != side[instead]) == across
    return gone[chosen], [f"same pixels as {ids[row]}, which is kept" for row in instead[chosen].tolist()]


# What stays together ----------------------------------------------------------------------------------------------


def _copy_groups(frame: pd.DataFrame, pairs: tuple[Ints, Ints], same: Ints, keep: Flags) -> NDArray[np.object_]:
    """Return the copy_group of each row: components of pairs, identical pixels, ISIC ids and existing copy groups.

    What only a row that goes tied together, as a copy or by a lesion or patient, is tied by a copy group instead.
    """
    given, n = frame["copy_group"].to_numpy(dtype=object), len(frame)
    ids = [keys_of(frame[column]) for column in ("lesion_id", "patient_id")]
    copies = [same, keys_of(frame["copy_group"]), keys_of(frame["isic_id"])]
    there = keep[pairs[0]] & keep[pairs[1]]
    first, second = pairs[0][there], pairs[1][there]
    before = join(n, *pairs, *copies, *ids)
    after = join(n, first, second, *(np.where(keep, key, -1) for key in (*copies, *ids)))
    parts = pd.DataFrame({"row": np.flatnonzero(keep), "before": before[keep], "after": after[keep]})
    parts = parts.drop_duplicates(["before", "after"])
    parted = parts[parts["before"].duplicated(keep=False)]
    heads = parted.groupby("before")["row"].transform("first").to_numpy(np.int64)
    first, second = np.append(first, heads), np.append(second, parted["row"].to_numpy(np.int64))
    component = join(n, first, second, *(np.where(keep, key, -1) for key in copies))
    sizes = np.bincount(component[keep], minlength=int(component.max(initial=-1)) + 1)
    rows = np.flatnonzero(keep & (sizes[component] > 1))
    taken, named = set(given.tolist()), dict[int, str]()
    for number, part in pd.Series(rows).groupby(component[rows]):
        members = part.to_numpy()
        named[int(str(number))] = _name(set(given[members]) - {""}, frame["image_id"].iloc[members].min(), taken)
    made = [named.get(number, old) for number, old in zip(component.tolist(), given, strict=True)]
    return np.array(made, dtype=object)


def _name(old: set[str], image_id: str, taken: set[str]) -> str:
    """Return a group's name: the first of its old ones, else one made of its first image."""
    if old:
        return min(old)
    name = f"copies of {image_id}"
    while name in taken:
        name += "'"
    taken.add(name)
    return name


# Writing ----------------------------------------------------------------------------------------------------------


def apply_cleaning(dataset: Dataset, plan: Cleaning, *, date: str) -> Dataset:
    """Write the cleaned manifest, dropped.csv and the old manifest beside it; returns the data set as it is now.

    Where there is nothing to do, nothing is written. Raises `DataError` where no row would remain.
    """
    manifest = dataset.manifest
    if not plan.keep.any():
        raise DataError(
            f"{dataset.folder}: a cleaning would drop all {len(manifest)} images",
            kept=f"the manifest as it was, and {dataset.folder / 'audit' / 'audit.html'} with what was found",
            remedy="look at audit.html; accept by code what must stay, e.g. --accept DA011",
        )
    if plan.keep.all() and (plan.copy_group == manifest["copy_group"].to_numpy(dtype=object)).all():
        return dataset
    audit = dataset.folder / "audit"
    before = _unused_name(audit)
    write_bytes(audit / f"manifest.{before}.csv", (dataset.folder / "manifest.csv").read_bytes())
    write_bytes(audit / before / "dataset.json", (dataset.folder / "dataset.json").read_bytes())
    _write_dropped(audit / "dropped.csv", plan.dropped, set(manifest["image_id"]))
    frame = manifest.assign(copy_group=plan.copy_group)[plan.keep].reset_index(drop=True)
    there = set(frame["label"])
    cleaned = replace(
        dataset, manifest=frame, classes=tuple(item for item in dataset.classes if item.name in there), notes={}
    )
    gone = [item.name for item in dataset.classes if item.name not in there]
    facts = {
        "date": date, "from_manifest_sha256": dataset.manifest_sha256, "to_manifest_sha256": cleaned.manifest_sha256,
        "manifest": f"audit/manifest.{before}.csv", "audit": f"audit/{before}", "dropped": len(plan.dropped),
        "by_code": dict(sorted(Counter(plan.dropped["code"]).items())),
        "copy_groups": int(frame.loc[frame["copy_group"] != "", "copy_group"].nunique()), "classes_removed": gone,
    }  # fmt: skip
    cleaned = replace(cleaned, notes=_notes(dataset.notes, facts))
    save_dataset(cleaned)
    write_text(dataset.folder / "overview.html", render_overview(cleaned, _refused(dataset.folder)))
    return cleaned


def _unused_name(folder: Path) -> str:
    """Return a name for the old manifest and its audit that no earlier cleaning took."""
    name, number = "before-clean", 2
    while (folder / f"manifest.{name}.csv").exists() or (folder / name).exists():
        name, number = f"before-clean-{number}", number + 1
    return name


def _write_dropped(path: Path, dropped: pd.DataFrame, images: Collection[str]) -> None:
    """Write what was dropped, behind what earlier cleanings of this manifest dropped."""
    rows = dropped.to_numpy(dtype=object).tolist()
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as stream:
            earlier = [row for row in list(csv.reader(stream))[1:] if row and row[0] not in images]
        rows = earlier + rows
    write_rows(path, DROPPED_COLUMNS, rows)


def _notes(notes: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the notes of dataset.json after a cleaning: what was done, and no warning that it made untrue."""
    stays = [
        item
        for item in notes.get("warnings", [])
        if item.get("code") not in _REPAIRED or _REPAIRED[item["code"]] in notes.get("accepted", {})
    ]
    if removed := facts["classes_removed"]:
        text = f"Classes without an image after the cleaning, removed: {', '.join(removed)}."
        stays.append({"code": "classes_removed", "text": text, "n": 0})
    return {**notes, "warnings": stays, "cleaned": [*notes.get("cleaned", []), facts]}


def _refused(folder: Path) -> list[Refused]:
    path = folder / "refused.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [Refused(*row) for row in list(csv.reader(stream))[1:] if len(row) == len(Refused._fields)]
