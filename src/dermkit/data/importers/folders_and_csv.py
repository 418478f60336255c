"""Readers of class folders, of HAM10000 and of any table. They list images and metadata; no image is opened."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dermkit.data.class_names import class_key, clean_label
from dermkit.data.importers.csv_tables import (
    ProblemList,
    TextTable,
    find_column,
    missing_column_text,
    read_csv_table,
)
from dermkit.data.importers.id_columns import find_id_columns
from dermkit.data.importers.normalise import split_of_folder
from dermkit.data.importers.reader import check_columns, find_table, make_frame, to_records, walk_images
from dermkit.data.importers.records import Note, Records
from dermkit.data.importers.row_malignancy import with_row_malignancy
from dermkit.data.importers.table_forms import read_with_header, with_split_columns
from dermkit.data.importers.table_rows import (
    DEFAULT_IMPORT_OPTIONS,
    TARGET_COLUMNS,
    ImportOptions,
    check_labels,
    labels_from_one_hot,
    normalise_values,
    rows_of_table,
    with_column,
)
from dermkit.data.importers.walk import (
    REASON_MISPLACED,
    FolderWalk,
    may_be_image,
    resolve_source,
    single_image_folder,
    visible_paths,
)
from dermkit.errors import DataError

FOLDER_HELP = (
    "expected SOURCE/<class>/x.jpg, SOURCE/{train,val,test}/<class>/x.jpg or SOURCE/<class>/{train,val,test}/x.jpg "
    "(images are known by their bytes, whatever they are called)"
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
"""Target -> column of HAM10000's table. dx_type (how the diagnosis was confirmed) is left out: it reveals the label."""

_HAM_REQUIRED = tuple(HAM_COLUMNS[target] for target in ("lesion_id", "image", "label"))
_HAM_LABELS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_IMAGE_COLUMN_NAMES = (
    "image", "path", "file", "filename", "file_name", "image_id", "image_name", "isic_id", "image_path", "filepath",
    "file_path", "img", "img_id", "img_name", "img_path", "fname", "md5hash", "ddi_file", "name", "id",
)  # fmt: skip
_LABEL_COLUMN_NAMES = (
    "label",
    "class",
    "dx",
    "diagnosis",
    "diagnostic",
    "target",
    "labels",
    "category",
    "disease",
)
_MAX_SHOWN = 100


# Folder per class -------------------------------------------------------------------------------------------------


class _FolderImage(NamedTuple):
    path: str
    given_split: str
    folder: str


def read_folder(source: Path) -> Records:
    """Read one folder per class, with or without split folders above; folder names are labels and given splits.

    Images outside class folders are rejected. Raises `DataError` if no image is left.
    """
    walk = FolderWalk(_folder_root(source))
    images = list(_find_classes(walk))
    if not images:
        raise _nothing_usable_error(source, walk)
    _check_class_names({image.folder for image in images}, source)
    paths = [image.path for image in images]
    walk.note_other_files()
    frame = make_frame(
        {
            "path": paths,
            "label": [clean_label(image.folder) for image in images],
            "given_split": [image.given_split for image in images],
        }
    )
    return Records(frame, walk.root, walk.rejected, [*walk.notes, *_lookalike_notes(paths)])


def _folder_root(source: Path) -> Path:
    root, is_first = resolve_source(source), True
    while True:
        subfolder = single_image_folder(root)
        if subfolder is None or split_of_folder(subfolder.name):
            return root
        is_wrapper = (
            is_first or _same(subfolder.name) == _same(root.name) or _DOWNLOAD_PART.fullmatch(subfolder.name)
        )
        if not is_wrapper:
            return root
        children = visible_paths(subfolder)
        if not any(path.is_dir() for path in children) or any(map(may_be_image, children)):
            return root
        inner = [path for path in children if path.is_dir()]
        is_double = len(inner) == 1 and _same(inner[0].name) == _same(subfolder.name)
        if is_double and any(map(may_be_image, visible_paths(inner[0]))):
            return root  # nevus/nevus/: a class, not a folder around classes
        root, is_first = subfolder, False


def _nothing_usable_error(source: Path, walk: FolderWalk) -> DataError:
    message = f"{source}: nothing usable: no image in a class folder{_rejected_lines(walk)}"
    return DataError(message, remedy=FOLDER_HELP)


def _rejected_lines(walk: FolderWalk) -> str:
    """Return a line per rejected file, for an error that ends an import."""
    lines = [
        f"  {rejection.path}: {rejection.reason}: {rejection.detail}" for rejection in walk.rejected[:_MAX_SHOWN]
    ]
    overflow_lines = (
        [f"  ... and {len(walk.rejected) - _MAX_SHOWN} more refused"] if len(walk.rejected) > _MAX_SHOWN else []
    )
    return "".join(f"\n{line}" for line in [*lines, *overflow_lines])


def _folder_name(path: str) -> str:
    return path.rpartition("/")[2]


def _find_classes(walk: FolderWalk) -> Iterator[_FolderImage]:
    folders, loose_files = walk.entries()
    for path in loose_files:
        walk.reject(path, REASON_MISPLACED, "not in a class folder")
    splits = [folder for folder in folders if split_of_folder(folder)]
    if not splits:
        yield from _find_images(walk, folders, "")
        return
    other_folders = [folder for folder in folders if folder not in splits]
    n_rejected = walk.reject_below(other_folders, "beside the split folders")
    if n_rejected:
        names = ", ".join(other_folders)
        walk.notes.append(
            Note("beside_splits", f"Images beside the split folders were left out: {names}.", n_rejected)
        )
    for folder in splits:
        classes, loose_files = _enter_double(walk, folder)
        for path in loose_files:
            walk.reject(path, REASON_MISPLACED, "not in a class folder")
        yield from _find_images(walk, classes, split_of_folder(folder))


def _find_images(walk: FolderWalk, classes: Sequence[str], given_split: str) -> Iterator[_FolderImage]:
    for folder in classes:
        subfolders, files = _enter_double(walk, folder)
        if (
            not given_split
            and not files
            and subfolders
            and all(split_of_folder(_folder_name(f)) for f in subfolders)
        ):
            yield from _find_split_images(walk, folder, subfolders)
            continue
        n_deeper = walk.reject_below(subfolders, "deeper than its class folder")
        if not files and not n_deeper:
            walk.notes.append(Note("empty_folder", f"The folder {folder} holds no image.", 0))
        for path in files:
            yield _FolderImage(path, given_split, _folder_name(folder))


def _find_split_images(walk: FolderWalk, folder: str, splits: Sequence[str]) -> Iterator[_FolderImage]:
    """Yield the images of a class folder that holds split folders: `<class>/{train,test}/x.jpg`."""
    for split_folder in splits:
        subfolders, files = _enter_double(walk, split_folder)
        walk.reject_below(subfolders, "deeper than its split folder")
        for path in files:
            yield _FolderImage(path, split_of_folder(_folder_name(split_folder)), _folder_name(folder))


def _enter_double(walk: FolderWalk, folder: str) -> tuple[list[str], list[str]]:
    """Return the entries of a folder, or of the only folder in it where that has the same name (train/train/)."""
    folders, files = walk.entries(folder)
    while not files and len(folders) == 1 and _same(_folder_name(folders[0])) == _same(_folder_name(folder)):
        folder = folders[0]
        folders, files = walk.entries(folder)
    return folders, files


def _same(name: str) -> str:
    return split_of_folder(name) or class_key(name)


_DOWNLOAD_PART = re.compile(
    r"(.*[\s_-])?(part[\s_-]?\d+|inputs?|images?|jpe?gs?|pictures?|photos?)", re.IGNORECASE
)


def _check_class_names(names: set[str], source: Path) -> None:
    """Raise `DataError` if all folders are named like parts of a download, which are no classes."""
    if all(_DOWNLOAD_PART.fullmatch(name) for name in names):
        names_text = ", ".join(sorted(names))
        raise DataError(
            f"{source}: these folders are named like parts of a download, not like classes: {names_text}",
            outcome="nothing was written",
            remedy="import by the table that holds the labels (ham10000, isic2018, isic2019, isic2020, isic-archive or "
            "csv), or rename the folders if they are classes",
        )


def _lookalike_notes(paths: Sequence[str]) -> list[Note]:
    """Note file names that differ only by Unicode form; they are separate images."""
    forms = Counter(unicodedata.normalize("NFC", path) for path in paths if not path.isascii())
    n_lookalike = sum(n for n in forms.values() if n > 1)
    text = "File names that look the same and differ by Unicode form; each is an image of its own."
    return [Note("unicode_names", text, n_lookalike)] if n_lookalike else []


# Tables -----------------------------------------------------------------------------------------------------------


def read_ham10000(source: Path, options: ImportOptions = DEFAULT_IMPORT_OPTIONS) -> Records:
    """Read HAM10000: a table `lesion_id,image_id,dx,...` and the images that it names, in any subfolders.

    The label is dx. Rows without an image and images without a row are rejected. Raises `DataError` that lists all
    problems of the table: an unknown dx, a repeated image_id, an invalid age, two different files for one row.
    """
    walk, paths = walk_images(source, options)
    problems = ProblemList()
    table_path = find_table(walk, options, _HAM_REQUIRED, "HAM10000_metadata.csv")
    table = read_csv_table(table_path, problems, hint_columns=_HAM_REQUIRED, usecols=tuple(HAM_COLUMNS.values()))
    check_columns(table, _HAM_REQUIRED, problems)
    columns = {target: name for target, name in HAM_COLUMNS.items() if name in table.frame}
    table_rows = normalise_values(rows_of_table(table, columns), problems)
    check_labels(table_rows, problems, allowed=_HAM_LABELS)
    return to_records(walk, table_rows, paths, problems)


def read_csv(source: Path, options: ImportOptions = DEFAULT_IMPORT_OPTIONS) -> Records:
    """Read any table with a row per image.

    source: a folder with the table and the images, or the table itself. options: which column is what; `label` may be
    several one-hot columns with commas. Raises `DataError` that lists all problems.
    """
    if source.is_file() and not options.table:
        options = replace(options, table=source, images=options.images or source.parent)
        source = source.parent
    walk, paths = walk_images(source, options)
    problems = ProblemList()
    usual_columns = (_IMAGE_COLUMN_NAMES, _LABEL_COLUMN_NAMES) if not options.columns else ()
    hint_columns = tuple(options.columns.values())
    path = find_table(walk, options, (), "the table", hint_columns=hint_columns, usual_columns=usual_columns)
    table = read_with_header(path, problems, hint_columns)
    table, columns = _with_id_columns(table, _column_mapping(table, options, problems))
    label = columns.pop("label", "")
    table_rows = with_split_columns(rows_of_table(table, columns), table, problems)
    if label in table.frame:
        table_rows = with_column(table_rows, "label", table.frame[label], (label,))
    elif label:
        names = [name.strip() for name in label.split(",")]
        table_rows = with_column(table_rows, "label", labels_from_one_hot(table, names, problems), names)
    table_rows = normalise_values(table_rows, problems)
    if label in table.frame:
        check_labels(table_rows, problems)
    return to_records(walk, with_row_malignancy(table_rows, table), paths, problems)


def _column_mapping(table: TextTable, options: ImportOptions, problems: ProblemList) -> dict[str, str]:
    """Return target -> column: as the options say, else the column with the target's name; raises `DataError`."""
    explicit_columns = dict(options.columns)
    if options.label:
        explicit_columns["label"] = options.label
    columns = {target: _resolve_column(table, name, problems) for target, name in explicit_columns.items()}
    names = {
        **{target: (target,) for target in TARGET_COLUMNS},
        "image": _IMAGE_COLUMN_NAMES,
        "label": _LABEL_COLUMN_NAMES,
    }
    used_columns = set(columns.values())
    for target, likely_names in names.items():
        candidates = [find_column(table.columns, name) for name in likely_names]
        free_column = next((name for name in candidates if name and name not in used_columns), "")
        if target not in columns and free_column:
            columns[target] = free_column
        elif target not in columns and target in ("image", "label"):
            text = f"has no column for the {target} (it has: {', '.join(table.columns[:40])})"
            problems.add(table.path, 1, text)
    if "image" not in columns or "label" not in columns or "" in columns.values():
        problems.raise_if_any("say which column is what: --column image=COLUMN --column label=COLUMN")
    return columns


def _with_id_columns(table: TextTable, columns: Mapping[str, str]) -> tuple[TextTable, dict[str, str]]:
    """Return target -> column with the columns of ids that nobody named, and the table with a note on each."""
    id_columns = find_id_columns(table, [*columns.values()], columns)
    texts = id_columns.texts("If it holds ids, say --column {target}={column}.")
    notes = [Note("id_column", text, len(table.row_numbers)) for text in texts]
    return replace(table, notes=(*table.notes, *notes)), {**columns, **id_columns.ids}


def _resolve_column(table: TextTable, name: str, problems: ProblemList) -> str:
    """Return the column of this name, or one-hot columns with commas; "" and a problem if one is missing."""
    column = find_column(table.columns, name)
    if column:
        return column
    matches = [find_column(table.columns, part_name.strip()) for part_name in name.split(",")]
    if len(matches) > 1 and all(matches):
        return ",".join(str(part_name) for part_name in matches)
    for part_name, match in zip(name.split(","), matches, strict=True):
        if not match:
            problems.add(table.path, 1, missing_column_text(part_name.strip(), table.columns))
    return ""
