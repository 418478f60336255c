"""The steps that all readers of tables share: walk the images, find the table, match rows to files, fill columns."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dermkit.data.importers.csv_tables import (
    ProblemList,
    TextTable,
    check_is_text,
    find_column,
    find_first_column,
    missing_column_text,
    read_table_head,
)
from dermkit.data.importers.records import Note, Records, Rejected
from dermkit.data.importers.table_rows import (
    MALIGNANCY,
    ImportOptions,
    TableRows,
    attach_files,
    check_images,
    check_lesion_owners,
)
from dermkit.data.importers.walk import FolderWalk, resolve_source, single_subfolder
from dermkit.data.manifest import INTEGER_COLUMNS, MANIFEST_COLUMNS
from dermkit.errors import DataError

_MAX_NAMED = 10
_ISIC_ID = re.compile(r"(?<![A-Za-z0-9])ISIC_\d{7}(?!\d)", re.IGNORECASE)


def make_frame(columns: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return a frame with every manifest column but hashes and sizes, sorted by path; missing columns are "".

    image_id and isic_id are taken from `path` where they are not given; ISIC ids are written in upper case.
    """
    paths = list(columns["path"])
    ids = [
        (extract_isic_id(table_id) or table_id) if table_id else extract_isic_id(path)
        for table_id, path in zip(columns.get("isic_id", [""] * len(paths)), paths, strict=True)
    ]
    column_values = {"image_id": image_ids(paths), **columns, "isic_id": ids}
    names = [name for name in MANIFEST_COLUMNS if name not in INTEGER_COLUMNS and not name.endswith("_sha256")]
    frame = pd.DataFrame(
        {name: pd.Series(column_values.get(name, [""] * len(paths)), dtype="str") for name in names}
    )
    return frame.sort_values("path", kind="stable").reset_index(drop=True)


def image_ids(paths: Sequence[str]) -> list[str]:
    """Return each path without its suffix, or with it where the id would not be unique."""
    ids = [_without_ending(path) for path in paths]
    if len(set(ids)) == len(ids):
        return ids
    id_of_path = dict(zip(paths, ids, strict=True))
    while True:
        counts = Counter(id_of_path.values())
        clashing_paths = [path for path in paths if counts[id_of_path[path]] > 1 and id_of_path[path] != path]
        if not clashing_paths:
            return [id_of_path[path] for path in paths]
        id_of_path.update({path: path for path in clashing_paths})


def _without_ending(path: str) -> str:
    head, dot, ending = path.rpartition(".")
    return head if dot and ending and "/" not in ending and head and head[-1] != "/" else path


def extract_isic_id(path: str) -> str:
    """Return the ISIC id in a file name ("ISIC_0000000" in "ISIC_0000000_downsampled.jpg"), or ""."""
    match = _ISIC_ID.search(path.rpartition("/")[2])
    return match.group().upper() if match else ""


def walk_images(source: Path, options: ImportOptions) -> tuple[FolderWalk, list[str]]:
    """Walk the folder of images; return the walk and the relative paths of all images."""
    image_folder = options.images
    if image_folder and not image_folder.is_dir() and (source / image_folder).is_dir():
        image_folder = source / image_folder  # relative to the source, as in an archive
    walk = FolderWalk(resolve_source(image_folder) if image_folder else single_subfolder(resolve_source(source)))
    paths = list(walk.all_images())
    if options.images and not options.table:
        table_walk = FolderWalk(single_subfolder(resolve_source(source)))
        list(table_walk.all_images())
        walk.tables = [(table_walk.root / path).as_posix() for path in table_walk.tables]
    return walk, paths


def find_table(
    walk: FolderWalk,
    options: ImportOptions,
    required_columns: Sequence[str],
    usual_name: str,
    *,
    alternatives: Sequence[str] = (),
    hint_columns: Sequence[str] = (),
    usual_columns: Sequence[Sequence[str]] = (),
) -> Path:
    """Return the table named in the options, or the only one with these columns in the highest folder.

    usual_name: its name in the published set, for messages. alternatives: it must have one of these columns too.
    hint_columns: columns that decide between several tables, then the names of `usual_columns`, of each of which a
    table must have one, then the usual name. Tables of a name such as sample_submission.csv come last, and files
    without the ending of a table are read where there is no other. Raises `DataError` for no table or several.
    """
    if options.table:
        locations = [options.table, walk.root / options.table]
        table_path = next((path for path in locations if path.is_file()), None)
        if table_path is None:
            raise DataError(f"{options.table}: there is no such table", remedy="check --table")
        return table_path.resolve()
    paths = [*walk.tables, *(path for path in walk.unnamed_tables if Path(path).stem == Path(usual_name).stem)]
    matching_tables = _with_columns(walk, paths, required_columns, alternatives)
    matching_tables = matching_tables or _with_columns(walk, walk.unnamed_tables, required_columns, alternatives)
    matching_tables = [path for path in matching_tables if not _is_submission(path)] or matching_tables
    min_depth = min((path.count("/") for path in matching_tables), default=0)
    candidates = [path for path in matching_tables if path.count("/") == min_depth]
    if len(candidates) > 1 and hint_columns:
        candidates = [path for path in candidates if _has_all(walk.root / path, hint_columns)] or candidates
    for names in usual_columns if len(candidates) > 1 else ():
        candidates = [path for path in candidates if _has_columns(walk.root / path, (), names)] or candidates
    if len(candidates) > 1:
        candidates = _usual_table(walk, candidates, usual_name)
    if len(candidates) != 1:
        raise missing_table_error(
            walk, required_columns, usual_name, alternatives=alternatives, candidates=candidates
        )
    return walk.root / candidates[0]


def _with_columns(
    walk: FolderWalk, paths: Sequence[str], required_columns: Sequence[str], alternatives: Sequence[str]
) -> list[str]:
    return [path for path in paths if _has_columns(walk.root / path, required_columns, alternatives)]


def _has_columns(path: Path, required_columns: Sequence[str], alternatives: Sequence[str]) -> bool:
    columns = read_table_head(path, [*required_columns, *alternatives]).columns
    return set(required_columns) <= set(columns) and (
        not alternatives or any(find_column(columns, name) for name in alternatives)
    )


def _usual_table(walk: FolderWalk, candidates: Sequence[str], usual_name: str) -> list[str]:
    """Return the only table with the name in the published set, with a note about the others; else all of them."""
    usual = [path for path in candidates if Path(path).stem == Path(usual_name).stem]
    if len(usual) != 1:
        return list(candidates)
    others = ", ".join(path for path in candidates if path not in usual)
    text = f"{usual[0]} was read; tables with the same columns were not: {others}."
    walk.notes.append(Note("other_tables", text, len(candidates) - 1))
    return usual


def _is_submission(path: str) -> bool:
    """Return whether a table is called like Kaggle's example of an answer, which holds no truth."""
    return "submission" in Path(path).stem.lower()


def _has_all(path: Path, names: Sequence[str]) -> bool:
    columns = read_table_head(path, names).columns
    return all(
        find_column(columns, name) or all(find_column(columns, name_part) for name_part in name.split(","))
        for name in names
    )


def missing_table_error(
    walk: FolderWalk,
    required_columns: Sequence[str],
    usual_name: str,
    *,
    alternatives: Sequence[str] = (),
    candidates: Sequence[str] = (),
) -> DataError:
    """Return the error for finding no table or several. Raises `DataError` at once if a table is not text."""
    if not candidates:
        for path in walk.tables:
            check_is_text(walk.root / path)
    requirement = f"with the columns {', '.join(required_columns)}" if required_columns else "(.csv, .tsv or .tab)"
    alternatives_text = f" and {' or '.join(alternatives)}" if alternatives else ""
    names = [Path(path).name if Path(path).is_absolute() else path for path in candidates]
    candidates_text = f"{', '.join(names) or 'none'}{_other_tables(walk, candidates)}"
    return DataError(
        f"{walk.root}: one table {requirement}{alternatives_text} is needed, found: {candidates_text}",
        remedy=f"put {usual_name} beside the images and no second table of its kind, or name it with --table",
    )


def _other_tables(walk: FolderWalk, candidates: Sequence[str]) -> str:
    """Name the tables without the columns, which can be failed downloads or tables of another layout."""
    other_names = [Path(path).name for path in walk.tables if path not in candidates]
    return f" (and without them: {', '.join(other_names[:_MAX_NAMED])})" if other_names else ""


def check_columns(table: TextTable, required_columns: Sequence[str], problems: ProblemList) -> None:
    """Raise `DataError` with all problems so far if a table lacks a column."""
    missing = [name for name in required_columns if name not in table.columns]
    for name in missing:
        problems.add(table.path, 1, missing_column_text(name, table.columns))
    if missing:
        problems.raise_if_any()


def pick_column(table: TextTable, names: Sequence[str], problems: ProblemList) -> str:
    """Return the first of these columns that a table has; raises `DataError` if it has none."""
    column = find_first_column(table.columns, names)
    if column is None:
        text = missing_column_text(names[0], table.columns) if len(names) == 1 else ""
        columns_text = ", ".join(table.columns[:40])
        problems.add(table.path, 1, text or f"has none of the columns {', '.join(names)} (it has: {columns_text})")
        problems.raise_if_any("name the column of the label with --label COLUMN")
    return str(column)


def to_records(
    walk: FolderWalk,
    table_rows: TableRows,
    paths: Sequence[str],
    problems: ProblemList,
    *,
    extra_tables: Sequence[Path] = (),
) -> Records:
    """Match rows to files and return the records.

    extra_tables: further tables that were read. Raises `DataError` that lists all problems, or if no image exists.
    """
    check_images(table_rows, problems)
    check_lesion_owners(table_rows, problems)
    files = attach_files(table_rows, paths, walk.root, problems)
    problems.raise_if_any()
    for path in (*table_rows.table_paths, *extra_tables):
        if path.is_relative_to(walk.root):
            walk.other_files[path.suffix.lower() or "no ending"] -= 1
    walk.other_files += Counter()  # drops zero counts
    walk.note_other_files()
    if not files.columns["path"]:
        names = ", ".join(path.name for path in table_rows.table_paths)
        raise DataError(
            f"{walk.root}: nothing usable: none of the {len(table_rows.row_numbers)} images of {names} is there",
            remedy="put the image folders beside the table, or name their folder with --images",
        )
    rejected: list[Rejected] = [*walk.rejected, *files.rejected]
    frame = make_frame(files.columns)
    malignancies = files.columns.get(MALIGNANCY, [])
    malignancy_of_path = {
        path: value for path, value in zip(files.columns["path"], malignancies, strict=False) if value
    }
    return Records(
        frame, walk.root, rejected, [*walk.notes, *files.notes], table_rows.columns, table_rows.columns_used,
        malignancy_of_path,
    )  # fmt: skip
