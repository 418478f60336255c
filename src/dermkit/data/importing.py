"""From a folder of images to a checked data set folder: read, let every image in or refuse it, check, write."""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from dermkit.data.images import open_image
from dermkit.data.layouts import read_folder, read_ham10000
from dermkit.data.manifest import MALIGNANCIES, Dataset, LesionClass, Malignancy, manifest_text, save_dataset
from dermkit.data.overview import render_overview
from dermkit.data.sources import ARCHIVE, Known, classify, is_known, malignancy_source, recognise
from dermkit.data.walk import Note, Refused, Rows
from dermkit.errors import DataError, ImageRefused, UsageError
from dermkit.files import check_output, check_writable, lock, read_json, sweep_temp, write_rows, write_text

READERS: Mapping[str, Callable[[Path], Rows]] = MappingProxyType(
    {"folder": read_folder, "ham10000": read_ham10000}
)

MOST_THREADS = 16
"""Beyond this the parts of the gate that hold Python's lock are the limit, not the decoders."""

_TASK = 32  # images per task: waking a thread for each one cost as much as a small image
_EXAMPLES = 3


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
    on_progress: Callable[[int, int], None] | None = None,
) -> ImportOutcome:
    """Write a data set folder: manifest.csv, dataset.json, location.json, refused.csv, overview.html.

    name: default the known data set's, else the name of `out`. malignancy: class -> benign, malignant or
    indeterminate, over the table. on_progress: called with (images done, images in all).
    Raises `UsageError` (layout, class or malignancy unknown), `DataError` (nothing usable, rows that contradict each
    other; refused.csv is written even then) and `OutputError`.
    """
    reader = READERS.get(layout)
    if reader is None:
        raise UsageError(f"unknown layout {layout!r}", remedy=f"one of: {', '.join(READERS)}")
    _check_place(source, out)
    check_writable(out)
    rows = reader(source)
    _check_overrides(malignancy, _ordered(rows.frame["label"]))
    with lock(out):
        sweep_temp(out)
        frame, refused, notes = _open_all(rows, on_progress)
        refused = sorted([*rows.refused, *refused])
        write_rows(out / "refused.csv", Refused._fields, refused)
        if frame.empty:
            raise _all_refused(source, out, refused)
        known = recognise(rows.frame)
        frame = _with_licence(frame, known)
        classes = _classes(frame, malignancy)
        dataset = Dataset(
            folder=out, images=rows.images, name=name or (known.key if known else out.resolve().name), classes=classes,
            manifest=frame, importer=layout, notes=_facts(known, malignancy, refused),
        )  # fmt: skip
        warnings = [*rows.notes, *notes, *_warnings(dataset, malignancy)]
        dataset = replace(dataset, notes={**dataset.notes, "warnings": [asdict(item) for item in warnings]})
        save_dataset(dataset)
        write_text(out / "overview.html", render_overview(dataset, refused))
    return ImportOutcome(dataset, refused)


def _check_place(source: Path, out: Path) -> None:
    """Refuse to write over other files or another source's data set; raises `UsageError`."""
    check_output(out, marker="dataset.json", what="a data set folder")
    if (out / "location.json").is_file():
        before = Path(str(read_json(out / "location.json", format=1, error=DataError).get("images", "")))
        if source.resolve() not in (before, *before.parents) and before.exists():
            raise UsageError(
                f"{out}: holds the data set of another source, {before}",
                kept="that data set and its splits",
                remedy="name a new folder with --out",
            )


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


# Images -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    pixel_sha256: str
    file_sha256: str
    width: int
    height: int
    notes: tuple[str, ...]


def _open_all(
    rows: Rows, on_progress: Callable[[int, int], None] | None
) -> tuple[pd.DataFrame, list[Refused], list[Note]]:
    """Open every image once; return the rows that were let in, with hashes and sizes, the refused, and the notes."""
    paths = rows.frame["path"].tolist()
    results: list[_Opened | Refused] = []
    for result in _in_order(rows.images, paths):
        results.append(result)
        if on_progress:
            on_progress(len(results), len(paths))
    opened = [item for item in results if isinstance(item, _Opened)]
    kept = rows.frame[[isinstance(item, _Opened) for item in results]].reset_index(drop=True)
    for column in ("pixel_sha256", "file_sha256", "width", "height"):
        kept[column] = pd.Series([getattr(item, column) for item in opened], dtype=None if opened else object)
    counts = Counter(note for item in opened for note in item.notes)
    notes = [Note("pixels", f"{text[0].upper()}{text[1:]}.", n) for text, n in sorted(counts.items())]
    return kept, [item for item in results if isinstance(item, Refused)], notes


def _in_order(root: Path, paths: Sequence[str]) -> Iterator[_Opened | Refused]:
    """Open images in threads, results in the order of `paths`.

    Threads, since decoders and hashes release Python's lock, and a started process would need the caller's script to
    be importable. 10,015 JPEGs of 200 x 150 on two busy cores: one thread 2.6 s, two 2.7 s, two processes 1.5 to
    2.4 s; the larger the images, the more the threads gain.
    """
    tasks = [paths[start : start + _TASK] for start in range(0, len(paths), _TASK)]
    pool = ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0))))
    try:
        for results in pool.map(lambda task: [_open_one(root / path, path) for path in task], tasks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _open_one(file: Path, path: str) -> _Opened | Refused:
    try:
        image = open_image(file, name=path)
    except ImageRefused as error:
        return Refused(path, error.reason.value, error.detail)
    height, width = image.pixels.shape[:2]
    return _Opened(image.pixel_sha256, image.file_sha256, width, height, image.notes)


# Classes, licence, facts ------------------------------------------------------------------------------------------


def _classes(frame: pd.DataFrame, malignancy: Mapping[str, str]) -> tuple[LesionClass, ...]:
    """Return the classes that have an image, with the malignancy that the person set over the table's."""
    words: dict[str, Malignancy] = {word: word for word in MALIGNANCIES}
    found = map(classify, _ordered(frame["label"]))
    return tuple(replace(item, malignancy=words[malignancy.get(item.name, item.malignancy)]) for item in found)


def _with_licence(frame: pd.DataFrame, known: Known | None) -> pd.DataFrame:
    if known is None:
        return frame
    return frame.assign(source=known.title, licence=known.licence, attribution=known.attribution)


def _facts(known: Known | None, malignancy: Mapping[str, str], refused: Sequence[Refused]) -> dict[str, Any]:
    reasons = Counter(item.reason for item in refused)
    facts: dict[str, Any] = {
        "malignancy_source": malignancy_source(sorted(malignancy)),
        "refused": {"n": len(refused), "reasons": dict(sorted(reasons.items()))},
    }
    if known:
        facts |= {
            "known": known.key, "title": known.title, "archive": ARCHIVE, "licence": known.licence,
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
    differs = (
        frame.groupby("isic_id")["pixel_sha256"].transform("nunique") > 1
    )  # the others are copies, noted above
    yield from _varying(frame[differs], "isic_id", "label", "isic_labels", "One ISIC id under two labels")
    yield from _varying(frame[differs], "isic_id", "given_split", "isic_across", "One ISIC id in two given splits")
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


def _varying(frame: pd.DataFrame, by: str, value: str, code: str, text: str) -> Iterator[Note]:
    """Note the images that share a known `by` and differ in `value`."""
    known = frame[frame[by] != ""]
    varies = known.groupby(by)[value].transform("nunique") > 1
    found = known[varies]
    if found.empty:
        return
    first = found.groupby(by, sort=False)["path"].agg(list).tolist()
    examples = "; ".join(" = ".join(paths) for paths in first[:_EXAMPLES])
    more = f" (and {len(first) - _EXAMPLES} more)" if len(first) > _EXAMPLES else ""
    yield Note(code, f"{text}, such as {examples}{more}.", len(found))


def _splits_of_other_manifest(dataset: Dataset) -> bool:
    before = dataset.folder / "manifest.csv"
    if not before.is_file() or not any((dataset.folder / "splits").glob("*.csv")):
        return False
    return before.read_bytes() != manifest_text(dataset.manifest).encode()
