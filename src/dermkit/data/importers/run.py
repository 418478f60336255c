"""Imports a data set: reads a source, opens every image, checks the rows and writes a data set folder."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from dermkit.data.diagnoses import (
    describe_malignancy_source,
)
from dermkit.data.identify import recognise
from dermkit.data.importers import archives
from dermkit.data.importers.class_changes import (
    ClassChanges,
    change_classes,
    classes_of_labels,
    inherits,
    malignancy_of_classes,
)
from dermkit.data.importers.earlier import (
    EarlierDataset,
    Reconciled,
    given_malignancies,
    read_earlier,
    reconcile,
    stage_backup,
)
from dermkit.data.importers.folders_and_csv import read_csv, read_folder, read_ham10000
from dermkit.data.importers.isic import read_isic2018, read_isic2019, read_isic2020, read_isic_archive
from dermkit.data.importers.join_metadata import MetadataConflict, join_metadata
from dermkit.data.importers.medmnist import find_npz, read_medmnist
from dermkit.data.importers.open_images import open_images
from dermkit.data.importers.overview_page import render_overview
from dermkit.data.importers.records import Note, Records, Rejected
from dermkit.data.importers.row_malignancy import ClassMalignancy, decide_classes
from dermkit.data.importers.row_warnings import row_warnings
from dermkit.data.importers.source_record import check_source, is_unpacked_by_us, record_source, remove_unpacked
from dermkit.data.importers.table_rows import DEFAULT_IMPORT_OPTIONS, TARGET_COLUMNS, ImportOptions
from dermkit.data.known_datasets import KnownDataset
from dermkit.data.manifest import DATASET, LOCATION, Dataset, save_dataset
from dermkit.data.masks import MASKS_TABLE, MaskRow, with_masks, write_masks
from dermkit.data.readers import no_readers
from dermkit.data.rejection_texts import count_reasons
from dermkit.data.staging import finish_changes, finish_killed_changes, staged_changes
from dermkit.errors import DataError, UsageError, did_you_mean
from dermkit.files import (
    TEMP_PREFIX,
    check_file_name,
    check_output,
    check_writable,
    lock,
    sweep_temp,
    write_rows,
    write_text,
)
from dermkit.render.cells import defused

MEDMNIST = "medmnist"


@dataclass(frozen=True)
class _Layout:
    """How a layout is read, and the fields of `ImportOptions` that it takes."""

    reader: Callable[[Path, ImportOptions], Records]
    allowed_options: frozenset[str] = frozenset()


LAYOUTS: Mapping[str, _Layout] = MappingProxyType(
    {
        "folder": _Layout(lambda source, _: read_folder(source)),
        "ham10000": _Layout(read_ham10000, frozenset({"table", "images"})),
        "csv": _Layout(read_csv, frozenset({"columns", "table", "images", "label"})),
        "isic2018": _Layout(read_isic2018, frozenset({"table", "images"})),
        "isic2019": _Layout(read_isic2019, frozenset({"table", "images"})),
        "isic2020": _Layout(read_isic2020, frozenset({"table", "images", "label"})),
        "isic-archive": _Layout(read_isic_archive, frozenset({"table", "images", "label"})),
    }
)
"""Layouts that are folders. `MEDMNIST` is a single file and read separately."""

_MAX_LISTED = 100


@dataclass(frozen=True, eq=False)
class ImportOutcome:
    """The result of an import.

    dataset: as written. rejected: the files and rows that are no images of it (path, reason, detail), sorted by path.
    retained: what people had made of the data set that was there, and that stays, as texts. masks: rows of masks.csv,
    of the images that have a mask, those that are refused among them.
    """

    dataset: Dataset
    rejected: list[Rejected]
    retained: tuple[str, ...] = ()
    masks: tuple[MaskRow, ...] = ()


def import_dataset(
    layout: str,
    source: Path,
    *,
    out: Path,
    name: str = "",
    malignancy: Mapping[str, str] = MappingProxyType({}),
    options: ImportOptions = DEFAULT_IMPORT_OPTIONS,
    metadata_tables: Sequence[Path] = (),
    masks: Path | None = None,
    replace_earlier: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_unpack: Callable[[int, int], None] | None = None,
) -> ImportOutcome:
    """Import a data set: open every image once and write a data set folder, which `load_dataset` reads.

    layout: folder (one per class), ham10000, isic2018, isic2019, isic2020, isic-archive, csv or medmnist. source: a
    folder, a .zip of one, or an .npz; packed images are unpacked to `out/images`, others stay where they are. name: by
    default that of `out`. malignancy: class -> benign, malignant or indeterminate, to overrule the table of diagnoses;
    malignant is the positive class of all metrics. metadata_tables: add ids, age, sex and site, matched by ISIC id or
    file name. masks: a folder of lesion masks, PNG by image name; None = those of the data set in `out`, if any.
    replace_earlier: what people made of the data set in `out` may be undone; else it is kept, or the import refused.
    on_progress, on_unpack: called with (images done, all images). Raises `UsageError` (unknown layout, option, class or
    malignancy, or something would be undone), `DataError` (no valid image, an invalid table) and `OutputError`, also
    where the data set is being read.

        dataset = dk.import_dataset("folder", Path("images"), out=Path("dataset")).dataset
    """
    _check_arguments(layout, source, out, options, name)
    with lock(out):
        _clear_remains(out)
        records, conflicts = _read_source(layout, source, out, options, metadata_tables, on_unpack)
        known_dataset, changes = recognise(records.frame), change_classes(records, options)
        records, earlier = changes.records, read_earlier(out)
        malignancy = malignancy_of_classes(malignancy, _sorted_labels(records.frame["label"]))
        given = {**({} if replace_earlier else given_malignancies(earlier, changes.labels_of_class)), **malignancy}
        frame, rejected, notes = open_images(records, on_progress)
        rejected = _checked_rejections(source, out, frame, [*records.rejected, *rejected], earlier)
        classes = classes_of_labels(_sorted_labels(frame["label"]), changes.labels_of_class)
        decision = decide_classes(classes, frame, records.malignancy_of_path, given=given)
        dataset = Dataset(
            folder=out, image_root=records.image_root, classes=decision.classes, importer=layout,
            manifest=_with_licence(frame, known_dataset), name=name or out.resolve().name,
            notes=_dataset_metadata(known_dataset, given, decision, rejected, changes),
        )  # fmt: skip
        dataset = _with_warnings(dataset, [*records.notes, *notes, *decision.notes], options)
        result = reconcile(earlier, dataset, name=name, given=malignancy, is_replacing=replace_earlier)
        dataset, mask_rows = with_masks(result.dataset, masks, out, on_progress)
        _save(replace(result, dataset=dataset), conflicts, rejected, earlier, mask_rows)
    return ImportOutcome(dataset, rejected, result.retained, tuple(mask_rows or ()))


def _clear_remains(out: Path) -> None:
    """Finish or remove what a killed import left in a folder."""
    finish_changes(out)
    sweep_temp(out, skip=("cache",))  # a training may be writing there


def _check_arguments(layout: str, source: Path, out: Path, options: ImportOptions, name: str) -> None:
    """Raise `UsageError` or `OutputError` for what can be refused before the source is read."""
    _check_options(layout, options, name)
    _check_output_folder(layout, source, out, options)


def _check_options(layout: str, options: ImportOptions, dataset_name: str) -> None:
    """Raise `UsageError` for an unknown layout, an option that it does not take, or a name that is no file name."""
    check_file_name(dataset_name, "data set name")
    if layout not in LAYOUTS and layout != MEDMNIST:
        raise UsageError(f"unknown layout {layout!r}", remedy=f"one of: {', '.join([*LAYOUTS, MEDMNIST])}")
    allowed_options = LAYOUTS[layout].allowed_options if layout in LAYOUTS else frozenset()
    flag_of = {"columns": "--column", "table": "--table", "images": "--images", "label": "--label"}
    for name, flag in flag_of.items():
        if getattr(options, name) and name not in allowed_options:
            flags_text = (
                ", ".join(flag_of[option] for option in flag_of if option in allowed_options) or "none of these"
            )
            raise UsageError(f"the layout {layout} takes no {flag}", remedy=f"it takes {flags_text}")
    for target in options.columns:
        if target not in TARGET_COLUMNS:
            raise UsageError(
                f"--column {target}: is nothing that a column can be{did_you_mean(target, TARGET_COLUMNS)}",
                remedy=f"one of: {', '.join(TARGET_COLUMNS)}",
            )


def _check_output_folder(layout: str, source: Path, out: Path, options: ImportOptions) -> None:
    """Raise `UsageError` if the output folder holds other files or another data set, `OutputError` if it takes none."""
    finish_killed_changes(out)
    check_writable(out)
    images = out / "images"
    if (archives.is_archive(source) or layout == MEDMNIST) and is_unpacked_by_us(images):
        check_source(images, _source_file(layout, source))
        return  # an interrupted import continues
    check_output(out, marker="dataset.json", description="a data set folder")
    if LOCATION.exists(out):
        earlier_root = Path(str(LOCATION.read(out).get("images", "")))
        image_root = (options.images or (source.parent if source.is_file() else source)).resolve()
        if image_root not in (earlier_root, *earlier_root.parents) and earlier_root.exists():
            raise UsageError(
                f"{out}: holds the data set of another source, {earlier_root}",
                outcome="that data set and its splits",
                remedy="name a new folder with --out",
            )


def _source_file(layout: str, source: Path) -> Path:
    return source if archives.is_archive(source) or layout != MEDMNIST else find_npz(source)


def _read_source(
    layout: str,
    source: Path,
    out: Path,
    options: ImportOptions,
    metadata_tables: Sequence[Path],
    on_unpack: Callable[[int, int], None] | None,
) -> tuple[Records, list[MetadataConflict]]:
    """Read a source and join its metadata tables. An archive is first unpacked to `out/images`."""
    is_packed = archives.is_archive(source)
    if not is_packed and layout != MEDMNIST:
        return join_metadata(LAYOUTS[layout].reader(source, options), metadata_tables)
    images, file = out / "images", _source_file(layout, source)
    is_new = not (out / "dataset.json").exists()
    check_source(images, file)
    unpack_result = archives.UnpackResult()
    try:
        record_source(images, file)
        if layout == MEDMNIST:
            return join_metadata(_read_medmnist(file, out, is_packed, on_unpack), metadata_tables)
        unpack_result = archives.unpack(source, images, on_progress=on_unpack)
        records = LAYOUTS[layout].reader(images, options)
        records = replace(
            records,
            rejected=[*records.rejected, *unpack_result.rejected],
            notes=[*records.notes, *unpack_result.notes],
        )
        return join_metadata(records, metadata_tables)
    except DataError as error:
        if is_new:  # leave no images without a data set
            remove_unpacked(images)
        members = "".join(
            f"\n  {rejection.path}: {rejection.reason}: {rejection.detail}"
            for rejection in unpack_result.rejected[:_MAX_LISTED]
        )
        raise DataError(error.message + members, outcome=error.outcome, remedy=error.remedy) from error


def _read_medmnist(
    file: Path, out: Path, is_packed: bool, on_unpack: Callable[[int, int], None] | None
) -> Records:
    if not is_packed:
        return read_medmnist(file, out / "images", on_progress=on_unpack)
    npz_path = out / f"{TEMP_PREFIX}medmnist.npz"
    try:
        name = archives.unpack_single(file, ".npz", npz_path)
        return read_medmnist(npz_path, out / "images", name=name, on_progress=on_unpack)
    finally:
        npz_path.unlink(missing_ok=True)


def _sorted_labels(labels: "pd.Series[str]") -> list[str]:
    """Return the distinct labels in alphabetical order, which is the order of the classes."""
    return sorted(labels.unique(), key=lambda label: (label.casefold(), label))


def _checked_rejections(
    source: Path, out: Path, frame: pd.DataFrame, rejected: Sequence[Rejected], earlier: EarlierDataset | None
) -> list[Rejected]:
    """Return the rejections in order; raises `DataError` if no image is left, and then lists them.

    Then refused.csv is written, unless it would take the place of that of an earlier data set.
    """
    if not frame.empty:
        return sorted(rejected)
    reason_counts = count_reasons(rejection.reason for rejection in rejected)
    reasons_text = ", ".join(f"{reason} {n}" for reason, n in reason_counts)
    if earlier is None:
        write_rows(out / "refused.csv", Rejected._fields, map(defused, sorted(rejected)))
    raise DataError(
        f"{source}: nothing usable: every image was refused ({reasons_text})",
        outcome=f"the data set in {out}" if earlier else f"{out / 'refused.csv'} lists each with its reason",
        remedy="download the images again, or give the folder that holds the originals",
    )


# Classes, licence, metadata ---------------------------------------------------------------------------------------


def _with_licence(frame: pd.DataFrame, known_dataset: KnownDataset | None) -> pd.DataFrame:
    """Fill empty source, licence and attribution with those of the published data set."""
    if known_dataset is None:
        return frame
    defaults = {
        "source": known_dataset.title,
        "licence": known_dataset.licence,
        "attribution": known_dataset.attribution,
    }
    return frame.assign(**{name: frame[name].where(frame[name] != "", value) for name, value in defaults.items()})


def _dataset_metadata(
    known_dataset: KnownDataset | None,
    given: Mapping[str, str],
    decision: ClassMalignancy,
    rejected: Sequence[Rejected],
    changes: ClassChanges,
) -> dict[str, Any]:
    """Return the entries of dataset.json beside those that `Dataset` has fields for."""
    reasons = Counter(rejection.reason for rejection in rejected)
    records, labels_of_class = changes.records, changes.labels_of_class
    inherited = [name for name in labels_of_class if inherits(name, labels_of_class)]
    metadata: dict[str, Any] = {
        "malignancy_source": describe_malignancy_source(sorted(given), decision.decided),
        "malignancy_decided": sorted({*given, *decision.decided, *inherited}),
        "malignancy_given": dict(sorted(given.items())),
        "refused": {"n": len(rejected), "reasons": dict(sorted(reasons.items()))},
    }
    if known_dataset:
        metadata |= {
            "known": known_dataset.key,
            "title": known_dataset.title,
            "archive": known_dataset.archive,
            "licence": known_dataset.licence,
            "attribution": known_dataset.attribution,
            "citation": known_dataset.citation,
            "defects": list(known_dataset.defects),
            "images_published": known_dataset.n_images,
        }
    changed = {name: list(labels) for name, labels in labels_of_class.items() if labels != (name,)}
    metadata |= {"class_labels": changed} if changed else {}
    return metadata | {"columns": list(records.columns), "columns_used": list(records.columns_used)}


# Warnings about rows that do not fit each other; none ends an import ----------------------------------------------


def _with_warnings(dataset: Dataset, notes: Sequence[Note], options: ImportOptions) -> Dataset:
    """Return the data set with these notes, those about its rows, and how its manifest was imported."""
    further_notes = {
        "class_changes": [
            *(f"--merge {old}={new}" for old, new in options.merge.items()),
            *(f"--rename {old}={new}" for old, new in options.rename.items()),
            *(f"--drop {name}" for name in options.drop),
        ],
        "warnings": [asdict(note) for note in (*notes, *row_warnings(dataset))],
        "imported_manifest_sha256": dataset.manifest_sha256,
    }
    return replace(dataset, notes={**dataset.notes, **further_notes})


# Writing ----------------------------------------------------------------------------------------------------------


def _save(
    result: Reconciled,
    conflicts: Sequence[MetadataConflict],
    rejected: Sequence[Rejected],
    earlier: EarlierDataset | None,
    mask_rows: Sequence[MaskRow] | None,
) -> None:
    """Write the data set's files together, those that differ. earlier: the data set that the folder holds, if any."""
    dataset = result.dataset
    with staged_changes(dataset.folder) as changes:
        folder = changes.new_files
        write_rows(folder / "refused.csv", Rejected._fields, map(defused, rejected))
        save_dataset(dataset, folder)
        if mask_rows:
            write_masks(mask_rows, folder)
        elif mask_rows is not None:
            changes.removed.append(MASKS_TABLE)
        if conflicts:
            write_rows(folder / "conflicts.csv", MetadataConflict._fields, map(defused, conflicts))
        else:
            changes.removed.append("conflicts.csv")
        write_text(folder / "overview.html", render_overview(dataset, rejected))
        if earlier and result.is_replacing:
            stage_backup(earlier, changes)
        if earlier and {"manifest.csv", DATASET.name} & set(changes.changed_paths()):
            with no_readers(dataset.folder, "the import"):
                changes.commit()
        else:
            changes.commit()
