"""Readers of image folders: what lies where, before any image is opened."""

import csv
import filecmp
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dermkit.data.images import IMAGE_SUFFIXES
from dermkit.data.manifest import is_age
from dermkit.data.walk import MISPLACED, NO_METADATA, Note, Refused, Rows, Walk, listed, make_frame
from dermkit.errors import DataError, Refusal

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test",
}  # fmt: skip
"""Folder name in lower case -> `given_split`."""

FOLDER_HELP = (
    "expected SOURCE/<class>/x.jpg or SOURCE/{train,val,test}/<class>/x.jpg "
    f"(endings: {' '.join(sorted(IMAGE_SUFFIXES))})"
)
_HAM_COLUMNS = ("lesion_id", "image_id", "dx")
_HAM_DX = frozenset({"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"})
_SHOWN = 10


def _folder(source: Path) -> Path:
    """Return the source, resolved; raises `DataError` where it is none."""
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise DataError(f"{source}: {what}", remedy="give the folder with the images")
    return source.resolve()


def _only_folder(root: Path) -> Path | None:
    """Return the single folder in which an archive was packed, if just one holds images and none lies beside it."""
    paths = listed(root)
    folders = [path for path in paths if path.is_dir() and not path.is_symlink() and _holds_images(path)]
    return folders[0] if len(folders) == 1 and not any(map(_may_be_image, paths)) else None


def _holds_images(folder: Path) -> bool:
    return any(map(_may_be_image, folder.rglob("*")))


def _may_be_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


# Folder per class -------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    path: Path
    given_split: str
    folder: str


def read_folder(source: Path) -> Rows:
    """Read a folder per class, with or without split folders above; the folders' names are labels and given splits.

    A class that is spelt in two ways in two split folders is one class, spelt as in training; twice in one folder is
    refused with `DataError`. Images outside class folders are refused one by one. Raises `DataError` where
    nothing is usable.
    """
    walk = Walk(_folder_root(source))
    found = list(_find_classes(walk))
    if not found:
        raise _nothing(source, walk)
    labels = _unify({item.folder for item in found}, _spellings(found), walk)
    paths = [item.path.relative_to(walk.root).as_posix() for item in found]
    walk.finish()
    frame = make_frame(
        path=paths,
        label=[labels[item.folder] for item in found],
        given_split=[item.given_split for item in found],
    )
    return Rows(frame, walk.root, walk.refused, [*walk.notes, *_same_looking(paths)])


def _folder_root(source: Path) -> Path:
    root = _folder(source)
    only = _only_folder(root)
    if only is None or only.name.lower() in SPLIT_FOLDERS:
        return root
    inside = listed(only)
    return only if any(path.is_dir() for path in inside) and not any(map(_may_be_image, inside)) else root


def _nothing(source: Path, walk: Walk) -> DataError:
    seen = "\n".join(f"  {item.path}: {item.reason}: {item.detail}" for item in walk.refused[:_SHOWN])
    more = f"\n{seen}" if seen else ""
    return DataError(f"{source}: nothing usable: no image in a class folder{more}", remedy=FOLDER_HELP)


def _find_classes(walk: Walk) -> Iterator[_Found]:
    folders, loose = walk.entries(walk.root)
    for path in loose:
        walk.refuse(path, MISPLACED, "not in a class folder")
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_FOLDERS]
    if not splits:
        yield from _find_images(walk, folders, "")
        return
    others = [folder for folder in folders if folder not in splits]
    count = walk.refuse_below(others, "beside the split folders")
    if count:
        names = ", ".join(folder.name for folder in others)
        walk.notes.append(Note("beside_splits", f"Images beside the split folders were left out: {names}.", count))
    for folder in splits:
        classes, loose = walk.entries(folder)
        for path in loose:
            walk.refuse(path, MISPLACED, "not in a class folder")
        yield from _find_images(walk, classes, SPLIT_FOLDERS[folder.name.lower()])


def _find_images(walk: Walk, classes: Sequence[Path], given_split: str) -> Iterator[_Found]:
    for folder in classes:
        below, files = walk.entries(folder)
        deeper = walk.refuse_below(below, "deeper than its class folder")
        if not files and not deeper:
            name = folder.relative_to(walk.root).as_posix()
            walk.notes.append(Note("empty_folder", f"The folder {name} holds no image.", 0))
        for path in files:
            yield _Found(path, given_split, folder.name)


def _spellings(found: Iterable[_Found]) -> dict[Path, set[str]]:
    """Return parent folder -> class folder names in it; training folders first, so that their spelling counts."""
    parents: dict[Path, set[str]] = defaultdict(set)
    for item in sorted(found, key=lambda item: item.given_split != "train"):
        parents[item.path.parent.parent].add(item.folder)
    return parents


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _unify(names: set[str], parents: Mapping[Path, set[str]], walk: Walk) -> dict[str, str]:
    """Return folder name -> label, one label for spellings that differ by case, outer spaces or Unicode form."""
    for parent, inside in parents.items():
        for same in _alike(inside):
            raise DataError(
                f"{parent}: two class folders differ only by case, spaces or Unicode form: {same}",
                remedy="rename them, or move their images together",
            )
    first: dict[str, str] = {}
    for parent in parents:
        for name in sorted(parents[parent]):
            first.setdefault(_folded(name), unicodedata.normalize("NFC", name).strip())
    for same in _alike(names):
        walk.notes.append(Note("spellings", f"Taken for one class: {same}.", 0))
    return {name: first[_folded(name)] for name in names}


def _alike(names: Iterable[str]) -> list[str]:
    together: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        together[_folded(name)].append(name)
    return [" and ".join(map(repr, same)) for same in together.values() if len(same) > 1]


def _same_looking(paths: Sequence[str]) -> list[Note]:
    """Two names that differ only by Unicode form stay two images: bytes decide; a person is told."""
    forms = Counter(unicodedata.normalize("NFC", path) for path in paths)
    extra = sum(n for n in forms.values() if n > 1)
    text = "File names that look the same and differ by Unicode form; each is an image of its own."
    return [Note("unicode_names", text, extra)] if extra else []


# HAM10000 ---------------------------------------------------------------------------------------------------------


def read_ham10000(source: Path) -> Rows:
    """Read a metadata table (`lesion_id, image_id, dx, ...`) and the images it names, in any folders below.

    Label: dx. dx_type gives the label away and is left out. A row without its image, and an image without a row, are
    refused and listed. Raises `DataError` for an unknown dx, a repeated image_id, or two different files for one.
    """
    root = _folder(source)
    if not _tables(root):
        root = _only_folder(root) or root
    walk = Walk(root)
    table, rows = _metadata(root)
    _check_rows(table, rows)
    files = _by_name(walk)
    present = [row for row in rows if row["image_id"] in files]
    for row in rows:
        if row["image_id"] not in files:
            walk.refused.append(
                Refused(row["image_id"], Refusal.MISSING.value, f"no image for this row of {table.name}")
            )
    _refuse_unnamed(walk, files, {row["image_id"] for row in rows}, table.name)
    if not present:
        raise DataError(
            f"{source}: nothing usable: none of the {len(rows)} images of {table.name} is there",
            remedy="put the image folders beside the table; files are found by image_id",
        )
    walk.other_files[".csv"] -= 1  # the table itself
    walk.other_files += Counter()  # drops zero counts
    walk.finish()
    frame = make_frame(
        path=[files[row["image_id"]].relative_to(walk.root).as_posix() for row in present],
        label=[row["dx"] for row in present],
        lesion_id=[_known(row["lesion_id"]) for row in present],
        age=[_number(row.get("age", "")) for row in present],
        sex=[_known(row.get("sex", "")) for row in present],
        site=[_known(row.get("localization", "")) for row in present],
    )
    return Rows(frame, walk.root, walk.refused, walk.notes)


def _metadata(root: Path) -> tuple[Path, list[dict[str, str]]]:
    tables = {path: rows for path in _tables(root) if (rows := _read_table(path)) is not None}
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables) or "none"
        raise DataError(
            f"{root}: one table with the columns {', '.join(_HAM_COLUMNS)} is needed, found: {names}",
            remedy="put HAM10000_metadata.csv beside the image folders, and no second table of its kind",
        )
    return next(iter(tables.items()))


def _tables(root: Path) -> list[Path]:
    return [path for path in listed(root) if path.suffix.lower() == ".csv" and path.is_file()]


def _read_table(path: Path) -> list[dict[str, str]] | None:
    """Return the rows of a metadata table, values stripped; None for a table of another kind."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if not set(_HAM_COLUMNS) <= set(reader.fieldnames or ()):
                return None
            return [{str(key): str(value or "").strip() for key, value in row.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}", remedy="restore the file") from error


def _check_rows(table: Path, rows: Sequence[Mapping[str, str]]) -> None:
    unknown = [(number, row["dx"]) for number, row in enumerate(rows, start=2) if row["dx"] not in _HAM_DX]
    repeated = [name for name, n in Counter(row["image_id"] for row in rows).items() if n > 1 or not name]
    problems = [f"row {number}: unknown dx {dx!r}" for number, dx in unknown]
    problems += [
        f"row {number}: age is not a number of years: {row['age']!r}"
        for number, row in enumerate(rows, start=2)
        if not is_age(_number(row.get("age", "")))
    ]
    problems += [f"image_id repeats or is empty: {name!r}" for name in repeated]
    if problems:
        raise DataError(
            f"{table}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  " + "\n  ".join(problems),
            kept="nothing was written",
            remedy=f"correct the table; dx is one of {', '.join(sorted(_HAM_DX))}",
        )


def _by_name(walk: Walk) -> dict[str, Path]:
    """Return image_id -> file. A second file of the same name must hold the same bytes, or `DataError`."""
    files: dict[str, Path] = {}
    different, copies = [], 0
    for path in walk.all_images(walk.root):
        name = path.stem.removesuffix("_downsampled")
        first = files.setdefault(name, path)
        if first is path:
            continue
        copies += 1
        if not path.is_file() or not first.is_file() or not filecmp.cmp(first, path, shallow=False):
            different.append(f"{first.relative_to(walk.root)} and {path.relative_to(walk.root)}")
    if different:
        raise DataError(
            f"{walk.root}: two different files for one image_id:\n  " + "\n  ".join(different),
            remedy="keep one of each",
        )
    if copies:
        walk.notes.append(
            Note("second_copies", "Second copies of image files (same name, same bytes) left out.", copies)
        )
    return files


def _refuse_unnamed(walk: Walk, files: Mapping[str, Path], named: set[str], table: str) -> None:
    unnamed = [path for name, path in files.items() if name not in named]
    for path in unnamed:
        walk.refuse(path, NO_METADATA, f"{table} has no row for it")
    if unnamed:
        walk.notes.append(Note(NO_METADATA, f"Images without a row in {table} were left out.", len(unnamed)))


def _known(value: str) -> str:
    return "" if value.lower() in ("unknown", "nan", "na", "none") else value


def _number(value: str) -> str:
    """Return "80" for "80.0", "" for unknown, and anything else as it is: the row check judges it."""
    text = _known(value)
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text
