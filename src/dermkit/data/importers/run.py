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

from dermkit.data.identify import Known, classify, is_known, malignancy_source, recognise
from dermkit.data.importers import archives
from dermkit.data.importers.folders_and_csv import read_csv, read_folder, read_ham10000
from dermkit.data.importers.isic import read_isic2018, read_isic2019, read_isic2020, read_isic_archive
from dermkit.data.importers.join_metadata import Conflict, join
from dermkit.data.importers.medmnist import find_npz, read_medmnist
from dermkit.data.importers.open_images import open_all
from dermkit.data.importers.overview_page import render_overview
from dermkit.data.importers.records import Note, Refused, Rows
from dermkit.data.importers.table_rows import PLAIN, TARGETS, Options
from dermkit.data.manifest import FORMAT, MALIGNANCIES, Dataset, LesionClass, Malignancy, save_dataset
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

MEDMNIST = "medmnist"


@dataclass(frozen=True)
class _Layout:
    """How a layout is read, and what a person may say about it."""

    read: Callable[[Path, Options], Rows]
    takes: frozenset[str] = frozenset()


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

_EXAMPLES = 3
_MOST_LISTED = 100


@dataclass(frozen=True, eq=False)
class ImportOutcome:
    """What an import made: the data set as written, and the files and rows that were refused, sorted by path."""

    dataset: Dataset
    refused: list[Refused]


def import_dataset(
    layout: str,
    source: Path,
    *,
    out: Path,
    name: str = "",
    malignancy: Mapping[str, str] = MappingProxyType({}),
    options: Options = PLAIN,
    joined: Sequence[Path] = (),
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
    _check_place(layout, source, out, options)
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        rows, conflicts = _read(layout, source, out, options, joined, on_unpack)
        _check_overrides(malignancy, _ordered(rows.frame["label"]))
        frame, refused, notes = open_all(rows, on_progress)
        refused = sorted([*rows.refused, *refused])
        write_rows(out / "refused.csv", Refused._fields, refused)
        if frame.empty:
            raise _all_refused(source, out, refused)
        known = recognise(rows.frame)
        frame = _with_licence(frame, known)
        classes = _classes(frame, malignancy)
        facts = {
            **_facts(known, malignancy, refused),
            "columns": list(rows.columns),
            "columns_used": list(rows.columns_used),
        }
        dataset = Dataset(
            folder=out, images=rows.images, name=name or (known.key if known else out.resolve().name), classes=classes,
            manifest=frame, importer=layout, notes=facts,
        )  # fmt: skip
        warnings = [*rows.notes, *notes, *_warnings(dataset, malignancy)]
        dataset = replace(dataset, notes={**dataset.notes, "warnings": [asdict(item) for item in warnings]})
        _save(dataset)
        _save_conflicts(out, conflicts)
        write_text(out / "overview.html", render_overview(dataset, refused))
    return ImportOutcome(dataset, refused)


def _check_options(layout: str, options: Options) -> None:
    """Raise `UsageError` for a layout that is none, or an option that it does not take."""
    if layout not in LAYOUTS and layout != MEDMNIST:
        raise UsageError(f"unknown layout {layout!r}", remedy=f"one of: {', '.join([*LAYOUTS, MEDMNIST])}")
    takes = LAYOUTS[layout].takes if layout in LAYOUTS else frozenset()
    words = {"columns": "--column", "table": "--table", "images": "--images", "label": "--label"}
    for name, flag in words.items():
        if getattr(options, name) and name not in takes:
            listed = ", ".join(words[item] for item in words if item in takes) or "none of these"
            raise UsageError(f"the layout {layout} takes no {flag}", remedy=f"it takes {listed}")
    for target in options.columns:
        if target not in TARGETS:
            close = difflib.get_close_matches(target, TARGETS, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(
                f"--column {target}: is nothing that a column can be{meant}",
                remedy=f"one of: {', '.join(TARGETS)}",
            )


def _check_place(layout: str, source: Path, out: Path, options: Options) -> None:
    """Refuse to write over other files or another source's data set; raises `UsageError`."""
    images = out / "images"
    if (archives.is_archive(source) or layout == MEDMNIST) and archives.is_marked(images):
        archives.check_mark(images, _packed(layout, source))
        return  # an import that was stopped goes on
    check_output(out, marker="dataset.json", what="a data set folder")
    if (out / "location.json").is_file():
        before = Path(str(read_json(out / "location.json", format=1, error=DataError).get("images", "")))
        place = (options.images or (source.parent if source.is_file() else source)).resolve()
        if place not in (before, *before.parents) and before.exists():
            raise UsageError(
                f"{out}: holds the data set of another source, {before}",
                kept="that data set and its splits",
                remedy="name a new folder with --out",
            )


def _packed(layout: str, source: Path) -> Path:
    return source if archives.is_archive(source) or layout != MEDMNIST else find_npz(source)


def _read(
    layout: str,
    source: Path,
    out: Path,
    options: Options,
    joined: Sequence[Path],
    on_unpack: Callable[[int, int], None] | None,
) -> tuple[Rows, list[Conflict]]:
    """Return the rows of a source with what tables give back; what is packed is unpacked to `out/images` first."""
    packed = archives.is_archive(source)
    if not packed and layout != MEDMNIST:
        return join(LAYOUTS[layout].read(source, options), joined)
    images, file = out / "images", _packed(layout, source)
    fresh = not (out / "dataset.json").exists()
    archives.check_mark(images, file)
    done = archives.Unpacked()
    try:
        archives.mark(images, file)
        if layout == MEDMNIST:
            return join(_read_medmnist(file, out, packed, on_unpack), joined)
        done = archives.unpack(source, images, on_progress=on_unpack)
        rows = LAYOUTS[layout].read(images, options)
        rows = replace(rows, refused=[*rows.refused, *done.refused], notes=[*rows.notes, *done.notes])
        return join(rows, joined)
    except DataError as error:
        if fresh:  # nothing half-written stays behind
            shutil.rmtree(images, ignore_errors=True)
        members = "".join(f"\n  {item.path}: {item.reason}: {item.detail}" for item in done.refused[:_MOST_LISTED])
        raise DataError(error.message + members, kept=error.kept, remedy=error.remedy) from error


def _read_medmnist(file: Path, out: Path, packed: bool, on_unpack: Callable[[int, int], None] | None) -> Rows:
    if not packed:
        return read_medmnist(file, out / "images", on_progress=on_unpack)
    inner = out / f"{TEMP_PREFIX}medmnist.npz"
    try:
        name = archives.unpack_only(file, ".npz", inner)
        return read_medmnist(inner, out / "images", name=name, on_progress=on_unpack)
    finally:
        inner.unlink(missing_ok=True)


def _save_conflicts(out: Path, conflicts: Sequence[Conflict]) -> None:
    """Write what tables said otherwise than the source; a list of an earlier import does not stay."""
    if conflicts:
        write_rows(out / "conflicts.csv", Conflict._fields, conflicts)
    else:
        (out / "conflicts.csv").unlink(missing_ok=True)


def _check_overrides(malignancy: Mapping[str, str], names: Sequence[str]) -> None:
    wrong = [f"{name}={word}" for name, word in malignancy.items() if word not in MALIGNANCIES]
    if wrong:
        raise UsageError(f"no malignancy: {', '.join(wrong)}", remedy=f"CLASS={'|'.join(MALIGNANCIES)}")
    for name in malignancy:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"no class {name!r} to set the malignancy of{meant}", remedy=f"one of: {', '.join(names)}"
            )


def _ordered(labels: "pd.Series[str]") -> list[str]:
    """Return the distinct labels in the order of the classes: alphabetical, whatever the order of the files."""
    return sorted(labels.unique(), key=lambda label: (label.casefold(), label))


def _all_refused(source: Path, out: Path, refused: Sequence[Refused]) -> DataError:
    reasons = Counter(item.reason for item in refused)
    listed = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items()))
    return DataError(
        f"{source}: nothing usable: every image was refused ({listed})",
        kept=f"{out / 'refused.csv'} lists each with its reason",
        remedy="download the images again, or give the folder that holds the originals",
    )


# Classes, licence, facts ------------------------------------------------------------------------------------------


def _classes(frame: pd.DataFrame, malignancy: Mapping[str, str]) -> tuple[LesionClass, ...]:
    """Return the classes that have an image, with the malignancy that the person set over the table's."""
    words: dict[str, Malignancy] = {word: word for word in MALIGNANCIES}
    found = map(classify, _ordered(frame["label"]))
    return tuple(replace(item, malignancy=words[malignancy.get(item.name, item.malignancy)]) for item in found)


def _with_licence(frame: pd.DataFrame, known: Known | None) -> pd.DataFrame:
    """Fill what no table said of an image with what is known of its data set."""
    if known is None:
        return frame
    facts = {"source": known.title, "licence": known.licence, "attribution": known.attribution}
    return frame.assign(**{name: frame[name].where(frame[name] != "", value) for name, value in facts.items()})


def _facts(known: Known | None, malignancy: Mapping[str, str], refused: Sequence[Refused]) -> dict[str, Any]:
    reasons = Counter(item.reason for item in refused)
    facts: dict[str, Any] = {
        "malignancy_source": malignancy_source(sorted(malignancy)),
        "refused": {"n": len(refused), "reasons": dict(sorted(reasons.items()))},
    }
    if known:
        facts |= {
            "known": known.key, "title": known.title, "archive": known.archive, "licence": known.licence,
            "attribution": known.attribution, "citation": known.citation, "defects": list(known.defects),
            "images_published": known.images,
        }  # fmt: skip
    return facts


# Batch checks: rows against each other; none of them stops an import ------------------------------------------------


def _warnings(dataset: Dataset, malignancy: Mapping[str, str]) -> Iterator[Note]:
    frame = dataset.manifest
    unknown = [item.name for item in dataset.classes if not is_known(item.name) and item.name not in malignancy]
    if unknown:
        n = int(frame["label"].isin(unknown).sum())
        text = (
            "No table knows these classes, they count as indeterminate; set them with --malignancy CLASS=VALUE: "
        )
        yield Note("unknown_class", text + ", ".join(unknown) + ".", n)
    counts = frame["label"].value_counts()
    for name in sorted(counts.index[counts == 1]):
        yield Note("one_image_class", f"Class {name} has one image, so it cannot be split.", 1)
    yield from _varying(frame, "lesion_id", "label", "lesion_labels", "One lesion under two labels")
    yield from _varying(
        frame, "pixel_sha256", "label", "contradictory_copies", "Identical pixels under two labels"
    )
    yield from _varying(
        frame, "pixel_sha256", "given_split", "copies_across", "Identical pixels in two given splits"
    )
    again = frame[(frame["isic_id"] != "") & frame["isic_id"].duplicated(keep=False)]
    # With the same pixels they are copies, noted above.
    again = again[again.groupby("isic_id")["pixel_sha256"].transform("nunique") > 1]
    yield from _varying(again, "isic_id", "label", "isic_labels", "One ISIC id under two labels")
    yield from _varying(again, "isic_id", "given_split", "isic_across", "One ISIC id in two given splits")
    yield from _varying(frame, "lesion_id", "given_split", "lesion_across", "One lesion in two given splits")
    copies = frame["pixel_sha256"].duplicated(keep=False)
    if copies.any():
        yield Note("copies", "Images with identical pixels, whatever their label.", int(copies.sum()))
    if not (frame["lesion_id"].any() or frame["patient_id"].any()):
        text = "No lesion or patient ids: photographs of one lesion cannot be kept on one side of a split."
        yield Note("no_groups", text, len(frame))
    if _splits_of_other_manifest(dataset):
        text = "The folder splits/ was made from an earlier manifest of this folder: make the splits again."
        yield Note("old_splits", text, 0)
    yield from _void_acceptances(dataset.folder)


def _varying(frame: pd.DataFrame, by: str, value: str, code: str, text: str) -> Iterator[Note]:
    """Note the images that share a known `by` and differ in `value`."""
    # Most ids stand alone: grouping a million of them to find that out would take minutes and a gigabyte.
    known = frame[(frame[by] != "") & frame[by].duplicated(keep=False)]
    varies = known.groupby(by)[value].transform("nunique") > 1
    found = known[varies]
    if found.empty:
        return
    ids = found[by].drop_duplicates()
    examples = "; ".join(_equal(found.loc[found[by] == item, "path"].tolist()) for item in ids[:_EXAMPLES])
    more = f" (and {len(ids) - _EXAMPLES} more)" if len(ids) > _EXAMPLES else ""
    yield Note(code, f"{text}, such as {examples}{more}.", len(found))


def _equal(paths: Sequence[str]) -> str:
    """Return paths that belong together as words; a picture may have a thousand copies."""
    more = f" and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else ""
    return " = ".join(paths[:_EXAMPLES]) + more


def _splits_of_other_manifest(dataset: Dataset) -> bool:
    return any((dataset.folder / "splits").glob("*.csv")) and _replaces_another(dataset)


# What an audit of the earlier manifest left -----------------------------------------------------------------------


def _replaces_another(dataset: Dataset) -> bool:
    """Say whether the folder still holds a manifest with other bytes."""
    before = dataset.folder / "manifest.csv"
    return before.is_file() and sha256_file(before) != dataset.manifest_sha256


def _void_acceptances(folder: Path) -> Iterator[Note]:
    """Note the findings that were accepted for the earlier manifest: the new dataset.json does not hold them."""
    path = folder / "dataset.json"
    if not path.is_file():
        return
    try:
        body = read_json(path, format=FORMAT, error=DataError)
    except DataError:  # it is written anew
        return
    parts = [body.get("accepted"), *_values(body.get("accepted_against"))]
    codes = [str(code) for part in parts if isinstance(part, dict) for code in part]
    if codes:
        one = len(codes) == 1
        text = (
            f"{len(codes)} {'acceptance' if one else 'acceptances'} of the earlier manifest {'is' if one else 'are'} "
            f"void, accept again what must stay: {', '.join(codes)}."
        )
        yield Note("void_acceptances", text, 0)


def _values(body: Any) -> list[Any]:
    return list(body.values()) if isinstance(body, dict) else []


def _save(dataset: Dataset) -> None:
    """Write the data set; what a cleaning dropped from another manifest is no longer listed, it may be back."""
    dropped = dataset.folder / "audit" / "dropped.csv"
    if dropped.is_file() and _replaces_another(dataset):
        dropped.unlink()
    save_dataset(dataset)
