"""What people made of the data set that a folder holds already, and what another import into it may replace.

Cleanings, acceptances, splits, seals, corrections of the manifest and malignancies given by hand cost somebody's time.
An import of the same images keeps them; one of other images is refused where it would undo them, unless it is asked to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.class_names import class_key
from dermkit.data.importers.records import Note
from dermkit.data.manifest import DATASET, Dataset, load_dataset
from dermkit.data.seal import SEAL_SUFFIX
from dermkit.data.split import is_automatic_split
from dermkit.data.staging import StagedChanges
from dermkit.errors import DataError, UsageError, first_of
from dermkit.files import sha256_file, write_bytes

_BACKUP = "audit/before-import"
_DROPPED = "audit/dropped.csv"
_CARRIED_NOTES = ("accepted", "accepted_external", "cleanings")
_STANDING_WARNINGS = ("void_acceptances", "manifest_replaced")
"""Warnings of the import that replaced a manifest; they hold until the next one does."""


@dataclass(frozen=True, eq=False)
class EarlierDataset:
    """The data set that a folder holds. dataset: None where its files cannot be read. manifest_sha256: "" for none."""

    folder: Path
    dataset: Dataset | None
    manifest_sha256: str

    @property
    def notes(self) -> Mapping[str, Any]:
        """Its notes; {} where it cannot be read."""
        return self.dataset.notes if self.dataset else {}

    @cached_property
    def cleanings(self) -> list[Mapping[str, Any]]:
        """The records of its cleanings, the first one first."""
        cleanings = self.notes.get("cleanings")
        return [record for record in cleanings if isinstance(record, dict)] if isinstance(cleanings, list) else []

    def is_made_of(self, label: str, labels: Sequence[str]) -> bool:
        """Whether a class has images of these labels of the source, but for their spelling."""
        changed = self.notes.get("class_labels")
        earlier_labels = changed.get(label, [label]) if isinstance(changed, dict) else [label]
        return isinstance(earlier_labels, list) and set(map(class_key, map(str, earlier_labels))) == set(
            map(class_key, labels)
        )

    @property
    def imported_sha256(self) -> str:
        """The hash of the manifest that was imported, before cleanings and corrections."""
        first_known = self.cleanings[0].get("from_manifest_sha256") if self.cleanings else self.manifest_sha256
        return str(self.notes.get("imported_manifest_sha256") or first_known)

    @property
    def is_edited(self) -> bool:
        """Whether somebody changed manifest.csv otherwise than by a cleaning."""
        expected = self.cleanings[-1].get("to_manifest_sha256") if self.cleanings else self.imported_sha256
        return bool(self.dataset) and self.manifest_sha256 != expected

    def work_on_manifest(self) -> list[str]:
        """Return, as texts, what people did to the manifest itself."""
        return [*self._cleaning_texts(), *(["changes of manifest.csv by hand"] if self.is_edited else [])]

    def work_beside_manifest(self) -> list[str]:
        """Return, as texts, what people made that fits this manifest alone."""
        return [*self._acceptance_texts(), *self._split_texts()]

    def _cleaning_texts(self) -> Iterator[str]:
        for record in self.cleanings:
            yield (
                f"the cleaning of {record.get('date', 'an unknown date')} ({record.get('dropped', '?')} rows dropped, "
                f"{record.get('copy_groups', '?')} groups of copies)"
            )
        if not self.dataset and (self.folder / _DROPPED).is_file():
            yield f"the cleaning whose rows {_DROPPED} lists"

    def _acceptance_texts(self) -> Iterator[str]:
        if codes := accepted_codes(self.notes):
            yield f"{len(codes)} acceptance{'s' * (len(codes) > 1)} of findings ({first_of(codes, 10)})"

    def _split_texts(self) -> Iterator[str]:
        folder = self.folder / "splits"
        sealed = sorted(path.name.removesuffix(SEAL_SUFFIX) for path in folder.glob(f"*{SEAL_SUFFIX}"))
        names = [path.stem for path in sorted(folder.glob("*.csv")) if not path.stem.endswith(".excluded")]
        by_hand = [name for name in names if not is_automatic_split(name) and name not in sealed]
        if by_hand:
            yield f"the split{'s' * (len(by_hand) > 1)} {first_of(by_hand, 10)}"
        if sealed:
            yield f"the sealed split{'s' * (len(sealed) > 1)} {first_of(sealed, 10)}"


def accepted_codes(notes: Mapping[str, Any]) -> list[str]:
    """Return the codes of all findings that were accepted, of the data set and of others beside it."""
    external = notes.get("accepted_external")
    records = [notes.get("accepted"), *(external.values() if isinstance(external, dict) else [])]
    return [str(code) for acceptances in records if isinstance(acceptances, dict) for code in acceptances]


def read_earlier(folder: Path) -> EarlierDataset | None:
    """Return the data set that a folder holds, None if it holds none."""
    manifest = folder / "manifest.csv"
    if not manifest.is_file() and not DATASET.exists(folder):
        return None
    try:
        dataset = load_dataset(folder)
    except DataError:  # broken, and about to be written anew
        dataset = None
    return EarlierDataset(folder, dataset, sha256_file(manifest) if manifest.is_file() else "")


@dataclass(frozen=True, eq=False)
class Reconciled:
    """The data set to write. retained: what people had made and stays, as texts. is_replacing: the earlier one goes."""

    dataset: Dataset
    retained: tuple[str, ...] = ()
    is_replacing: bool = False


def reconcile(
    earlier: EarlierDataset | None, imported: Dataset, *, name: str, given: Mapping[str, str], is_replacing: bool
) -> Reconciled:
    """Return what an import writes where its folder holds a data set already.

    imported: as the source gives it now. name, given: the data set's name and the malignancies that were asked for.
    is_replacing: the earlier data set may go, with all that was made of it. Raises `UsageError` where something would
    be undone that nobody asked to undo.
    """
    if earlier is None:
        return Reconciled(imported)
    is_same_manifest = earlier.manifest_sha256 == imported.manifest_sha256
    on_manifest = [*earlier.work_on_manifest(), *_lost_class_changes(earlier, imported)]
    beside_manifest = earlier.work_beside_manifest()
    if is_replacing:
        has_work = bool(on_manifest or accepted_codes(earlier.notes) or not is_same_manifest)
        return _replaced(earlier, imported) if has_work else _same_manifest(earlier, imported, ())
    if is_same_manifest:
        return _same_manifest(earlier, imported, (*on_manifest, *beside_manifest))
    if earlier.dataset and earlier.imported_sha256 == imported.manifest_sha256:
        dataset = _with_choices(earlier.dataset, imported, given=given, name=name)
        return Reconciled(dataset, (*on_manifest, *beside_manifest))
    if on_manifest or beside_manifest:
        raise _undoing_error(earlier, imported, [*on_manifest, *beside_manifest])
    return _replaced(earlier, imported)


def _lost_class_changes(earlier: EarlierDataset, imported: Dataset) -> list[str]:
    """Return the merges, renames and drops of classes of the earlier import that this one lacks."""
    changes, changes_now = earlier.notes.get("class_changes"), imported.notes.get("class_changes", [])
    lost = [str(change) for change in changes if change not in changes_now] if isinstance(changes, list) else []
    return [f"{' '.join(lost)} of the earlier import"] if lost else []


def given_malignancies(
    earlier: EarlierDataset | None, labels_of_class: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the malignancies that a person gave at an earlier import, of classes that are still there.

    labels_of_class: class -> the labels that the source gives its images. A class that was made of other labels, by
    merging or renaming, has only the name in common.
    """
    given = earlier.notes.get("malignancy_given") if earlier else None
    return {
        str(label): str(value)
        for label, value in (given.items() if isinstance(given, dict) else ())
        if label in labels_of_class and earlier and earlier.is_made_of(label, labels_of_class[label])
    }


def _same_manifest(earlier: EarlierDataset, imported: Dataset, retained: tuple[str, ...]) -> Reconciled:
    """Return the imported data set with what was recorded of the same manifest."""
    carried = {key: earlier.notes[key] for key in _CARRIED_NOTES if earlier.notes.get(key)}
    standing = [
        warning
        for warning in earlier.notes.get("warnings", [])
        if isinstance(warning, dict) and warning.get("code") in _STANDING_WARNINGS
    ]
    warnings = [*imported.notes.get("warnings", []), *standing]
    return Reconciled(replace(imported, notes={**imported.notes, **carried, "warnings": warnings}), retained)


def _with_choices(kept: Dataset, imported: Dataset, *, given: Mapping[str, str], name: str) -> Dataset:
    """Return the data set as people left it, with what this import was asked for: a name, malignancies, and a place."""
    malignancy_of = {lesion_class.name: lesion_class.malignancy for lesion_class in imported.classes}
    classes = tuple(
        replace(lesion_class, malignancy=malignancy_of[lesion_class.name])
        if lesion_class.name in given and lesion_class.name in malignancy_of
        else lesion_class
        for lesion_class in kept.classes
    )
    choices = {key: imported.notes[key] for key in ("imported_manifest_sha256", "malignancy_given")}
    if given:
        choices |= {key: imported.notes[key] for key in ("malignancy_source", "malignancy_decided")}
    return replace(
        kept,
        image_root=imported.image_root,
        name=name or kept.name,
        classes=classes,
        notes={**kept.notes, **choices},
    )


def _replaced(earlier: EarlierDataset, imported: Dataset) -> Reconciled:
    """Return the imported data set, with warnings of what no longer fits it."""
    warnings = [*imported.notes.get("warnings", []), *map(asdict, _replacement_notes(earlier, imported))]
    return Reconciled(replace(imported, notes={**imported.notes, "warnings": warnings}), is_replacing=True)


def _replacement_notes(earlier: EarlierDataset, imported: Dataset) -> Iterator[Note]:
    if earlier.dataset:
        text = (
            f"This import replaced an earlier manifest of {len(earlier.dataset.manifest):,} images "
            f"by one of {len(imported.manifest):,}."
        )
        yield Note("manifest_replaced", text, len(imported.manifest))
    if codes := accepted_codes(earlier.notes):
        subject = (
            "acceptance of the earlier manifest is"
            if len(codes) == 1
            else "acceptances of the earlier manifest are"
        )
        yield Note(
            "void_acceptances", f"{len(codes)} {subject} void, accept again what must stay: {', '.join(codes)}.", 0
        )


def _undoing_error(earlier: EarlierDataset, imported: Dataset, work: Sequence[str]) -> UsageError:
    n_now = len(earlier.dataset.manifest) if earlier.dataset else "an unknown number of"
    return UsageError(
        f"{earlier.folder}: the source gives another manifest ({len(imported.manifest):,} images) than the folder "
        f"holds ({n_now} images), and writing it would undo {'; '.join(work)}",
        outcome="the data set there, as it was",
        remedy=f"import into a new folder with --out; or add --replace: the earlier manifest and its records are then "
        f"kept in {_BACKUP}, and cleanings, acceptances and splits are to be made again",
    )


def stage_backup(earlier: EarlierDataset, changes: StagedChanges) -> None:
    """Keep the manifest, the records and the list of dropped rows that are replaced, beside the new files."""
    if earlier.work_on_manifest() or accepted_codes(earlier.notes):
        backup, number = _BACKUP, 2
        while (earlier.folder / backup).exists():
            backup, number = f"{_BACKUP}-{number}", number + 1
        for name in ("manifest.csv", DATASET.name, _DROPPED):
            if (earlier.folder / name).is_file():
                write_bytes(changes.new_files / backup / Path(name).name, (earlier.folder / name).read_bytes())
    changes.removed.append(_DROPPED)


def has_outdated_splits(folder: Path, manifest: pd.DataFrame) -> bool:
    """Return whether a split in `splits/` names images that the manifest lacks, or says nothing of some that it has."""
    image_ids = set(manifest["image_id"])
    for path in sorted((folder / "splits").glob("*.csv")):
        excluded_path = path.with_suffix(".excluded.csv")
        named = _image_ids(path) | _image_ids(excluded_path)
        # A file that somebody wrote by hand may leave out images; one of ours says of each image where it is.
        is_outdated = named != image_ids if excluded_path.is_file() else not named <= image_ids
        if is_outdated and not path.stem.endswith(".excluded"):
            return True
    return False


def _image_ids(path: Path) -> set[str]:
    """Return the images that a table names; none where it cannot be read, which whoever uses the split is told."""
    try:
        return set(pd.read_csv(path, dtype=str, usecols=["image_id"], keep_default_na=False)["image_id"])
    except (OSError, ValueError):
        return set()
