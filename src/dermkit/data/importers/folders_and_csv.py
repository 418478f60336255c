"""Readers of folders per class, of HAM10000 and of any table: what lies where, before any image is opened."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dermkit.data.importers.csv_tables import Problems, Table, find_column, missing_column, read_table
from dermkit.data.importers.normalise import SPLIT_NAMES
from dermkit.data.importers.reader import check_columns, finish, make_frame, one_table, walk_images
from dermkit.data.importers.records import Note, Rows
from dermkit.data.importers.table_rows import (
    PLAIN,
    TARGETS,
    Listing,
    Options,
    check_labels,
    clean,
    list_table,
    one_hot,
    with_column,
)
from dermkit.data.importers.walk import MISPLACED, Walk, listed, may_be_image, only_folder, source_folder
from dermkit.errors import DataError
from dermkit.images.headers import IMAGE_SUFFIXES

FOLDER_HELP = (
    "expected SOURCE/<class>/x.jpg or SOURCE/{train,val,test}/<class>/x.jpg "
    f"(endings: {' '.join(sorted(IMAGE_SUFFIXES))})"
)
HAM_COLUMNS = MappingProxyType(
    {
        "image": "image_id",
        "label": "dx",
        "lesion_id": "lesion_id",
        "age": "age",
        "sex": "sex",
        "site": "localization",
    }
)
"""Target -> column of HAM10000's table. dx_type tells how the diagnosis was confirmed, and so the diagnosis."""

_HAM_NEEDED = ("lesion_id", "image_id", "dx")
_HAM_DX = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_IMAGE_NAMES = ("image", "path", "file", "filename", "file_name", "image_id", "image_name", "isic_id")
_LABEL_NAMES = ("label", "class", "dx", "diagnosis")
_SHOWN = 100


# Folder per class -------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    path: str
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
    _check_parts({item.folder for item in found}, source)
    labels = _unify({item.folder for item in found}, _spellings(found), walk)
    paths = [item.path for item in found]
    walk.finish()
    frame = make_frame(
        {
            "path": paths,
            "label": [labels[item.folder] for item in found],
            "given_split": [item.given_split for item in found],
        }
    )
    return Rows(frame, walk.root, walk.refused, [*walk.notes, *_same_looking(paths)])


def _folder_root(source: Path) -> Path:
    root = source_folder(source)
    only = only_folder(root)
    if only is None or only.name.lower() in SPLIT_NAMES:
        return root
    inside = listed(only)
    return only if any(path.is_dir() for path in inside) and not any(map(may_be_image, inside)) else root


def _nothing(source: Path, walk: Walk) -> DataError:
    why = f"{source}: nothing usable: no image in a class folder{_refused_so_far(walk)}"
    return DataError(why, remedy=FOLDER_HELP)


def _refused_so_far(walk: Walk) -> str:
    """Return lines about what was refused besides, for an error that stops an import."""
    lines = [f"  {item.path}: {item.reason}: {item.detail}" for item in walk.refused[:_SHOWN]]
    more = [f"  ... and {len(walk.refused) - _SHOWN} more refused"] if len(walk.refused) > _SHOWN else []
    return "".join(f"\n{line}" for line in [*lines, *more])


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _find_classes(walk: Walk) -> Iterator[_Found]:
    folders, loose = walk.entries()
    for path in loose:
        walk.refuse(path, MISPLACED, "not in a class folder")
    splits = [folder for folder in folders if folder.lower() in SPLIT_NAMES]
    if not splits:
        yield from _find_images(walk, folders, "")
        return
    others = [folder for folder in folders if folder not in splits]
    count = walk.refuse_below(others, "beside the split folders")
    if count:
        names = ", ".join(others)
        walk.notes.append(Note("beside_splits", f"Images beside the split folders were left out: {names}.", count))
    for folder in splits:
        classes, loose = walk.entries(folder)
        for path in loose:
            walk.refuse(path, MISPLACED, "not in a class folder")
        yield from _find_images(walk, classes, SPLIT_NAMES[folder.lower()])


def _find_images(walk: Walk, classes: Sequence[str], given_split: str) -> Iterator[_Found]:
    for folder in classes:
        below, files = walk.entries(folder)
        deeper = walk.refuse_below(below, "deeper than its class folder")
        if not files and not deeper:
            walk.notes.append(Note("empty_folder", f"The folder {folder} holds no image.", 0))
        for path in files:
            yield _Found(path, given_split, _name(folder))


_PART = re.compile(r"(.*[\s_-])?(part[\s_-]?\d+|inputs?|images?|jpe?gs?|pictures?|photos?)", re.IGNORECASE)


def _check_parts(names: set[str], source: Path) -> None:
    """Refuse the parts of a download as classes: every figure would be about which part an image lay in."""
    if all(_PART.fullmatch(name) for name in names):
        listed = ", ".join(sorted(names))
        raise DataError(
            f"{source}: these folders are named like parts of a download, not like classes: {listed}",
            kept="nothing was written",
            remedy="import by the table that holds the labels (ham10000, isic2018, isic2019, isic2020, isic-archive or "
            "csv), or rename the folders if they are classes",
        )


def _spellings(found: Iterable[_Found]) -> dict[str, set[str]]:
    """Return parent folder -> class folder names in it; training folders first, so that their spelling counts."""
    parents: dict[str, set[str]] = defaultdict(set)
    for item in sorted(found, key=lambda item: item.given_split != "train"):
        parents[item.path.rpartition("/")[0].rpartition("/")[0]].add(item.folder)
    return parents


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _unify(names: set[str], parents: Mapping[str, set[str]], walk: Walk) -> dict[str, str]:
    """Return folder name -> label, one label for spellings that differ by case, outer spaces or Unicode form."""
    twice = [(parent, same) for parent, inside in parents.items() for same in _alike(inside)]
    if twice:
        listed = "\n".join(f"  {walk.root / parent}: {same}" for parent, same in twice)
        raise DataError(
            f"two class folders differ only by case, spaces or Unicode form:\n{listed}{_refused_so_far(walk)}",
            kept="nothing was written",
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
    forms = Counter(unicodedata.normalize("NFC", path) for path in paths if not path.isascii())
    extra = sum(n for n in forms.values() if n > 1)
    text = "File names that look the same and differ by Unicode form; each is an image of its own."
    return [Note("unicode_names", text, extra)] if extra else []


# Tables -----------------------------------------------------------------------------------------------------------


def read_ham10000(source: Path, options: Options = PLAIN) -> Rows:
    """Read a metadata table (`lesion_id, image_id, dx, ...`) and the images it names, in any folders below.

    Label: dx. dx_type gives the label away and is left out. A row without its image, and an image without a row, are
    refused and listed. Raises `DataError` with all problems of the table: an unknown dx, a repeated image_id, an age
    that is none, two different files for one row.
    """
    walk, paths = walk_images(source, options)
    problems = Problems()
    chosen = one_table(walk, options, _HAM_NEEDED, "HAM10000_metadata.csv")
    table = read_table(chosen, problems, wanted=_HAM_NEEDED, keep=tuple(HAM_COLUMNS.values()))
    check_columns(table, _HAM_NEEDED, problems)
    columns = {target: name for target, name in HAM_COLUMNS.items() if name in table.frame}
    listing = clean(list_table(table, columns), problems)
    check_labels(listing, problems, allowed=_HAM_DX)
    return finish(walk, listing, paths, problems)


def read_csv(source: Path, options: Options = PLAIN) -> Rows:
    """Read any table with a row per image. options: which column is what; `label` may be several, one-hot, with commas.

    source: a folder that holds the table and the images, or the table itself. Raises `DataError` with all problems.
    """
    if source.is_file() and not options.table:
        options = Options(options.columns, source, options.images or source.parent, options.label)
        source = source.parent
    walk, paths = walk_images(source, options)
    problems = Problems()
    path = one_table(walk, options, (), "the table", hints=tuple(options.columns.values()))
    table = read_table(path, problems, wanted=tuple(options.columns.values()))
    columns = _mapping(table, options, problems)
    label = columns.pop("label", "")
    listing = list_table(table, columns)
    if label in table.frame:
        listing = with_column(listing, "label", table.frame[label], (label,))
    elif label:
        names = [name.strip() for name in label.split(",")]
        listing = with_column(listing, "label", one_hot(table, names, problems), names)
    listing = _one_spelling(clean(listing, problems), walk)
    if label in table.frame:
        check_labels(listing, problems)
    return finish(walk, listing, paths, problems)


def _one_spelling(listing: Listing, walk: Walk) -> Listing:
    """Return the rows with one label for spellings that differ by case, spaces or Unicode form: the commonest."""
    if "label" not in listing.frame:
        return listing
    counts = listing.frame["label"].value_counts()
    names = sorted((str(name) for name in counts.index if name), key=lambda name: (-int(counts[name]), name))
    best: dict[str, str] = {}
    for name in names:
        best.setdefault(_folded(name), name)
    for same in _alike(names):
        walk.notes.append(Note("spellings", f"Taken for one class: {same}.", 0))
    return with_column(
        listing, "label", listing.frame["label"].map(lambda name: best.get(_folded(name), name)), ()
    )


def _mapping(table: Table, options: Options, problems: Problems) -> dict[str, str]:
    """Return target -> column: as a person said, else the column of the target's own name; raises `DataError`."""
    given = dict(options.columns)
    if options.label:
        given["label"] = options.label
    columns = {target: _column(table, name, problems) for target, name in given.items()}
    names = {**{target: (target,) for target in TARGETS}, "image": _IMAGE_NAMES, "label": _LABEL_NAMES}
    taken = set(columns.values())
    for target, likely in names.items():
        found = [find_column(table.columns, name) for name in likely]
        first = next((name for name in found if name and name not in taken), "")
        if target not in columns and first:
            columns[target] = first
        elif target not in columns and target in ("image", "label"):
            text = f"has no column for the {target} (it has: {', '.join(table.columns[:40])})"
            problems.add(table.path, 1, text)
    if "image" not in columns or "label" not in columns or "" in columns.values():
        problems.check("say which column is what: --column image=COLUMN --column label=COLUMN")
    return columns


def _column(table: Table, name: str, problems: Problems) -> str:
    """Return the column meant, or several with commas for a one-hot label; "" and a problem where one is missing."""
    whole = find_column(table.columns, name)
    if whole:
        return whole
    parts = [find_column(table.columns, part.strip()) for part in name.split(",")]
    if len(parts) > 1 and all(parts):
        return ",".join(str(part) for part in parts)
    for part, found in zip(name.split(","), parts, strict=True):
        if not found:
            problems.add(table.path, 1, missing_column(part.strip(), table.columns))
    return ""
