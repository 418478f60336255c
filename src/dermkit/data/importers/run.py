"""From a folder of images to a checked data set folder: read, let every image in or refuse it, check, write."""

import difflib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from dermkit.data.identify import (
    KnownDataset,
    classify_label,
    describe_malignancy_source,
    is_known_label,
    recognise,
)
from dermkit.data.importers import archives
from dermkit.data.importers.folders_and_csv import read_csv, read_folder, read_ham10000
from dermkit.data.importers.isic import read_isic2018, read_isic2019, read_isic2020, read_isic_archive
from dermkit.data.importers.join_metadata import MetadataConflict, join_metadata
from dermkit.data.importers.medmnist import find_npz, read_medmnist
from dermkit.data.importers.open_images import open_images
from dermkit.data.importers.overview_page import render_overview
from dermkit.data.importers.records import Note, Records, Rejected
from dermkit.data.importers.table_rows import DEFAULT_IMPORT_OPTIONS, TARGET_COLUMNS, ImportOptions
from dermkit.data.manifest import DATASET_FORMAT, MALIGNANCIES, Dataset, LesionClass, Malignancy, save_dataset
from dermkit.errors import DataError, UsageError
from dermkit.files import (
    TEMP_PREFIX,
    check_output,
    check_writable,
    lock,
    read_json,
    sha256_file,
    sweep_temp,
    write_rows,
    write_text,
)
from dermkit.render.cells import defused

MEDMNIST = "medmnist"


@dataclass(frozen=True)
class _Layout:
    """How a layout is read, and what a person may say about it."""

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
"""Readers of folders; `MEDMNIST` is a file, and read in a way of its own."""

_N_EXAMPLES = 3
_MAX_LISTED = 100


@dataclass(frozen=True, eq=False)
class ImportOutcome:
    """What an import made: the data set as written, and the files and rows that were refused, sorted by path."""

    dataset: Dataset
    rejected: list[Rejected]


def import_dataset(
    layout: str,
    source: Path,
    *,
    out: Path,
    name: str = "",
    malignancy: Mapping[str, str] = MappingProxyType({}),
    options: ImportOptions = DEFAULT_IMPORT_OPTIONS,
    metadata_tables: Sequence[Path] = (),
    on_progress: Callable[[int, int], None] | None = None,
    on_unpack: Callable[[int, int], None] | None = None,
) -> ImportOutcome:
    """Write a data set folder: manifest.csv, dataset.json, location.json, refused.csv, overview.html.

    source: a folder, or a .zip of one, whose images are unpacked to `out/images`. name: default the known data set's,
    else the name of `out`. malignancy: class -> benign, malignant or indeterminate, over the table. options: what the
    layout asks for. joined: tables that give ids and metadata back. on_progress, on_unpack: called with (done, all).
    Raises `UsageError` (layout, option, class or malignancy unknown), `DataError` (nothing usable, rows that
    contradict each other; refused.csv is written even then) and `OutputError`.
    """
    _check_options(layout, options)
    _check_output_folder(layout, source, out, options)
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        records, conflicts = _read_source(layout, source, out, options, metadata_tables, on_unpack)
        _check_overrides(malignancy, _sorted_labels(records.frame["label"]))
        frame, rejected, notes = open_images(records, on_progress)
        rejected = sorted([*records.rejected, *rejected])
        write_rows(out / "refused.csv", Rejected._fields, map(defused, rejected))
        if frame.empty:
            raise _all_rejected_error(source, out, rejected)
        known_dataset = recognise(records.frame)
        frame = _with_licence(frame, known_dataset)
        classes = _classes(frame, malignancy)
        metadata = {
            **_dataset_metadata(known_dataset, malignancy, rejected),
            "columns": list(records.columns),
            "columns_used": list(records.columns_used),
        }
        dataset_name = name or (known_dataset.key if known_dataset else out.resolve().name)
        dataset = Dataset(
            folder=out, image_root=records.image_root, name=dataset_name, classes=classes, manifest=frame,
            importer=layout, notes=metadata,
        )  # fmt: skip
        warnings = [*records.notes, *notes, *_warnings(dataset, malignancy)]
        dataset = replace(dataset, notes={**dataset.notes, "warnings": [asdict(note) for note in warnings]})
        _save(dataset, conflicts)
        write_text(out / "overview.html", render_overview(dataset, rejected))
    return ImportOutcome(dataset, rejected)


def _check_options(layout: str, options: ImportOptions) -> None:
    """Raise `UsageError` for a layout that is none, or an option that it does not take."""
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
            suggestions = difflib.get_close_matches(target, TARGET_COLUMNS, n=1)
            hint = f"; did you mean {suggestions[0]}?" if suggestions else ""
            raise UsageError(
                f"--column {target}: is nothing that a column can be{hint}",
                remedy=f"one of: {', '.join(TARGET_COLUMNS)}",
            )


def _check_output_folder(layout: str, source: Path, out: Path, options: ImportOptions) -> None:
    """Refuse to write over other files or another source's data set; raises `UsageError`."""
    images = out / "images"
    if (archives.is_archive(source) or layout == MEDMNIST) and archives.has_source_record(images):
        archives.check_source(images, _source_file(layout, source))
        return  # an import that was stopped goes on
    check_output(out, marker="dataset.json", description="a data set folder")
    if (out / "location.json").is_file():
        earlier_root = Path(str(read_json(out / "location.json", format=1, error=DataError).get("images", "")))
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
    """Return the rows of a source with what tables give back; what is packed is unpacked to `out/images` first."""
    is_packed = archives.is_archive(source)
    if not is_packed and layout != MEDMNIST:
        return join_metadata(LAYOUTS[layout].reader(source, options), metadata_tables)
    images, file = out / "images", _source_file(layout, source)
    is_new = not (out / "dataset.json").exists()
    archives.check_source(images, file)
    unpack_result = archives.UnpackResult()
    try:
        archives.record_source(images, file)
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
        if is_new:  # nothing half-written stays behind
            shutil.rmtree(images, ignore_errors=True)
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


def _save_conflicts(out: Path, conflicts: Sequence[MetadataConflict]) -> None:
    """Write what tables said otherwise than the source; a list of an earlier import does not stay."""
    if conflicts:
        write_rows(out / "conflicts.csv", MetadataConflict._fields, map(defused, conflicts))
    else:
        (out / "conflicts.csv").unlink(missing_ok=True)


def _check_overrides(malignancy: Mapping[str, str], names: Sequence[str]) -> None:
    invalid = [f"{name}={value}" for name, value in malignancy.items() if value not in MALIGNANCIES]
    if invalid:
        raise UsageError(f"no malignancy: {', '.join(invalid)}", remedy=f"CLASS={'|'.join(MALIGNANCIES)}")
    for name in malignancy:
        if name not in names:
            suggestions = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"; did you mean {suggestions[0]!r}?" if suggestions else ""
            raise UsageError(
                f"no class {name!r} to set the malignancy of{hint}", remedy=f"one of: {', '.join(names)}"
            )


def _sorted_labels(labels: "pd.Series[str]") -> list[str]:
    """Return the distinct labels in the order of the classes: alphabetical, whatever the order of the files."""
    return sorted(labels.unique(), key=lambda label: (label.casefold(), label))


def _all_rejected_error(source: Path, out: Path, rejected: Sequence[Rejected]) -> DataError:
    reasons = Counter(rejection.reason for rejection in rejected)
    reasons_text = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
    return DataError(
        f"{source}: nothing usable: every image was refused ({reasons_text})",
        outcome=f"{out / 'refused.csv'} lists each with its reason",
        remedy="download the images again, or give the folder that holds the originals",
    )


# Classes, licence, facts ------------------------------------------------------------------------------------------


def _classes(frame: pd.DataFrame, malignancy: Mapping[str, str]) -> tuple[LesionClass, ...]:
    """Return the classes that have an image, with the malignancy that the person set over the table's."""
    malignancies: dict[str, Malignancy] = {malignancy_word: malignancy_word for malignancy_word in MALIGNANCIES}
    classes = map(classify_label, _sorted_labels(frame["label"]))
    return tuple(
        replace(lesion_class, malignancy=malignancies[malignancy.get(lesion_class.name, lesion_class.malignancy)])
        for lesion_class in classes
    )


def _with_licence(frame: pd.DataFrame, known_dataset: KnownDataset | None) -> pd.DataFrame:
    """Fill what no table said of an image with what is known of its data set."""
    if known_dataset is None:
        return frame
    defaults = {
        "source": known_dataset.title,
        "licence": known_dataset.licence,
        "attribution": known_dataset.attribution,
    }
    return frame.assign(**{name: frame[name].where(frame[name] != "", value) for name, value in defaults.items()})


def _dataset_metadata(
    known_dataset: KnownDataset | None, malignancy: Mapping[str, str], rejected: Sequence[Rejected]
) -> dict[str, Any]:
    reasons = Counter(rejection.reason for rejection in rejected)
    metadata: dict[str, Any] = {
        "malignancy_source": describe_malignancy_source(sorted(malignancy)),
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
    return metadata


# Batch checks: rows against each other; none of them stops an import ------------------------------------------------


def _warnings(dataset: Dataset, malignancy: Mapping[str, str]) -> Iterator[Note]:
    frame = dataset.manifest
    unknown_classes = [
        lesion_class.name
        for lesion_class in dataset.classes
        if not is_known_label(lesion_class.name) and lesion_class.name not in malignancy
    ]
    if unknown_classes:
        n = int(frame["label"].isin(unknown_classes).sum())
        text = (
            "No table knows these classes, they count as indeterminate; set them with --malignancy CLASS=VALUE: "
        )
        yield Note("unknown_class", text + ", ".join(unknown_classes) + ".", n)
    counts = frame["label"].value_counts()
    for name in sorted(counts.index[counts == 1]):
        yield Note("one_image_class", f"Class {name} has one image, so it cannot be split.", 1)
    yield from _inconsistency_note(frame, "lesion_id", "label", "lesion_labels", "One lesion under two labels")
    yield from _inconsistency_note(
        frame, "pixel_sha256", "label", "contradictory_copies", "Identical pixels under two labels"
    )
    yield from _inconsistency_note(
        frame, "pixel_sha256", "given_split", "copies_across", "Identical pixels in two given splits"
    )
    repeated_ids = frame[(frame["isic_id"] != "") & frame["isic_id"].duplicated(keep=False)]
    # With the same pixels they are copies, noted above.
    repeated_ids = repeated_ids[repeated_ids.groupby("isic_id")["pixel_sha256"].transform("nunique") > 1]
    yield from _inconsistency_note(repeated_ids, "isic_id", "label", "isic_labels", "One ISIC id under two labels")
    yield from _inconsistency_note(
        repeated_ids, "isic_id", "given_split", "isic_across", "One ISIC id in two given splits"
    )
    yield from _inconsistency_note(
        frame, "lesion_id", "given_split", "lesion_across", "One lesion in two given splits"
    )
    is_duplicate = frame["pixel_sha256"].duplicated(keep=False)
    if is_duplicate.any():
        yield Note("copies", "Images with identical pixels, whatever their label.", int(is_duplicate.sum()))
    if not (frame["lesion_id"].any() or frame["patient_id"].any()):
        text = "No lesion or patient ids: photographs of one lesion cannot be kept on one side of a split."
        yield Note("no_groups", text, len(frame))
    if _has_outdated_splits(dataset):
        text = "The folder splits/ was made from an earlier manifest of this folder: make the splits again."
        yield Note("old_splits", text, 0)
    yield from _void_acceptance_note(dataset.folder)


def _inconsistency_note(frame: pd.DataFrame, id_column: str, value: str, code: str, text: str) -> Iterator[Note]:
    """Note the images that share a known `id_column` and differ in `value`."""
    # Most ids stand alone: grouping a million of them to find that out would take minutes and a gigabyte.
    shared_rows = frame[(frame[id_column] != "") & frame[id_column].duplicated(keep=False)]
    is_inconsistent = shared_rows.groupby(id_column)[value].transform("nunique") > 1
    inconsistent_rows = shared_rows[is_inconsistent]
    if inconsistent_rows.empty:
        return
    ids = inconsistent_rows[id_column].drop_duplicates()
    examples = "; ".join(
        _join_paths(inconsistent_rows.loc[inconsistent_rows[id_column] == group_id, "path"].tolist())
        for group_id in ids[:_N_EXAMPLES]
    )
    overflow = f" (and {len(ids) - _N_EXAMPLES} more)" if len(ids) > _N_EXAMPLES else ""
    yield Note(code, f"{text}, such as {examples}{overflow}.", len(inconsistent_rows))


def _join_paths(paths: Sequence[str]) -> str:
    """Return paths that belong together as words; a picture may have a thousand copies."""
    overflow = f" and {len(paths) - _N_EXAMPLES} more" if len(paths) > _N_EXAMPLES else ""
    return " = ".join(paths[:_N_EXAMPLES]) + overflow


def _has_outdated_splits(dataset: Dataset) -> bool:
    return any((dataset.folder / "splits").glob("*.csv")) and _changes_manifest(dataset)


# What an audit of the earlier manifest left -----------------------------------------------------------------------


def _changes_manifest(dataset: Dataset) -> bool:
    """Say whether the folder still holds a manifest with other bytes."""
    old_manifest = dataset.folder / "manifest.csv"
    return old_manifest.is_file() and sha256_file(old_manifest) != dataset.manifest_sha256


def _void_acceptance_note(folder: Path) -> Iterator[Note]:
    """Note the findings that were accepted for the earlier manifest: the new dataset.json does not hold them."""
    path = folder / "dataset.json"
    if not path.is_file():
        return
    try:
        document = read_json(path, format=DATASET_FORMAT, error=DataError)
    except DataError:  # it is written anew
        return
    acceptance_maps = [document.get("accepted"), *_dict_values(document.get("accepted_against"))]
    codes = [str(code) for acceptances in acceptance_maps if isinstance(acceptances, dict) for code in acceptances]
    if codes:
        is_single = len(codes) == 1
        text = (
            f"{len(codes)} {'acceptance' if is_single else 'acceptances'} of the earlier manifest "
            f"{'is' if is_single else 'are'} "
            f"void, accept again what must stay: {', '.join(codes)}."
        )
        yield Note("void_acceptances", text, 0)


def _dict_values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _save(dataset: Dataset, conflicts: Sequence[MetadataConflict]) -> None:
    """Write the data set; what a cleaning dropped from another manifest is no longer listed, it may be back."""
    dropped_list = dataset.folder / "audit" / "dropped.csv"
    if dropped_list.is_file() and _changes_manifest(dataset):
        dropped_list.unlink()
    save_dataset(dataset)
    _save_conflicts(dataset.folder, conflicts)
