"""What every reader of tables does: walk the images, find the table, give each row its file, fill the columns."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dermkit.data.importers.csv_tables import Problems, Table, check_text, find_column, missing_column, read_head
from dermkit.data.importers.records import Refused, Rows
from dermkit.data.importers.table_rows import Listing, Options, attach, check_ids, check_owners
from dermkit.data.importers.walk import Walk, source_folder, unwrap
from dermkit.data.manifest import COLUMNS, INTEGER_COLUMNS
from dermkit.errors import DataError

_MOST_NAMED = 10
_ISIC_ID = re.compile(r"(?<![A-Za-z0-9])ISIC_\d{7}(?!\d)", re.IGNORECASE)


def make_frame(columns: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return rows with every manifest column but hashes and sizes, sorted by path; columns not given are "".

    `path` gives image_id where it is not given, and isic_id where it is empty; an ISIC id has one spelling.
    """
    paths = list(columns["path"])
    ids = [
        (isic_id(given) or given) if given else isic_id(path)
        for given, path in zip(columns.get("isic_id", [""] * len(paths)), paths, strict=True)
    ]
    known = {"image_id": image_ids(paths), **columns, "isic_id": ids}
    names = [name for name in COLUMNS if name not in INTEGER_COLUMNS and not name.endswith("_sha256")]
    frame = pd.DataFrame({name: pd.Series(known.get(name, [""] * len(paths)), dtype="str") for name in names})
    return frame.sort_values("path", kind="stable").reset_index(drop=True)


def image_ids(paths: Sequence[str]) -> list[str]:
    """Return each path without its ending; where that is not unique, with it."""
    ids = [_without_ending(path) for path in paths]
    if len(set(ids)) == len(ids):
        return ids
    chosen = dict(zip(paths, ids, strict=True))
    while True:
        counts = Counter(chosen.values())
        clashing = [path for path in paths if counts[chosen[path]] > 1 and chosen[path] != path]
        if not clashing:
            return [chosen[path] for path in paths]
        chosen.update({path: path for path in clashing})


def _without_ending(path: str) -> str:
    head, dot, ending = path.rpartition(".")
    return head if dot and ending and "/" not in ending and head and head[-1] != "/" else path


def isic_id(path: str) -> str:
    """Return the ISIC id in a file's name ("ISIC_0000000", also before "_downsampled"), or ""."""
    found = _ISIC_ID.search(path.rpartition("/")[2])
    return found.group().upper() if found else ""


def walk_images(source: Path, options: Options) -> tuple[Walk, list[str]]:
    """Return the walked folder of images and the paths of all images in it."""
    apart = options.images
    if apart and not apart.is_dir() and (source / apart).is_dir():
        apart = source / apart  # a folder of an archive, say
    walk = Walk(source_folder(apart) if apart else unwrap(source_folder(source)))
    paths = list(walk.all_images())
    if options.images and not options.table:
        beside = Walk(unwrap(source_folder(source)))
        list(beside.all_images())
        walk.tables = [str(beside.root / path) for path in beside.tables]
    return walk, paths


def one_table(
    walk: Walk,
    options: Options,
    needed: Sequence[str],
    usual: str,
    *,
    either: Sequence[str] = (),
    hints: Sequence[str] = (),
) -> Path:
    """Return the table that was named, or the only one with these columns, nearest to the top; raises `DataError`.

    either: it must have one of these columns too. hints: columns that decide between several tables.
    """
    if options.table:
        places = [options.table, walk.root / options.table]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise DataError(f"{options.table}: there is no such table", remedy="check --table")
        return found.resolve()
    fitting = [path for path in walk.tables if _fits(walk.root / path, needed, either)]
    top = min((path.count("/") for path in fitting), default=0)
    nearest = [path for path in fitting if path.count("/") == top]
    if len(nearest) > 1 and hints:
        nearest = [path for path in nearest if _has_all(walk.root / path, hints)] or nearest
    if len(nearest) != 1:
        raise no_such_table(walk, needed, usual, either=either, found=nearest)
    return walk.root / nearest[0]


def _fits(path: Path, needed: Sequence[str], either: Sequence[str]) -> bool:
    columns = read_head(path, [*needed, *either]).columns
    return set(needed) <= set(columns) and (not either or any(find_column(columns, name) for name in either))


def _has_all(path: Path, names: Sequence[str]) -> bool:
    columns = read_head(path, names).columns
    return all(
        find_column(columns, name) or all(find_column(columns, part) for part in name.split(",")) for name in names
    )


def no_such_table(
    walk: Walk, needed: Sequence[str], usual: str, *, either: Sequence[str] = (), found: Sequence[str] = ()
) -> DataError:
    """Return the error for no table, or several; raises the one of a table that is no text."""
    if not found:
        for path in walk.tables:
            check_text(walk.root / path)
    what = f"with the columns {', '.join(needed)}" if needed else "(.csv, .tsv or .tab)"
    more = f" and {' or '.join(either)}" if either else ""
    names = [Path(path).name if Path(path).is_absolute() else path for path in found]
    listed = f"{', '.join(names) or 'none'}{_other_tables(walk, found)}"
    return DataError(
        f"{walk.root}: one table {what}{more} is needed, found: {listed}",
        remedy=f"put {usual} beside the images and no second table of its kind, or name it with --table",
    )


def _other_tables(walk: Walk, found: Sequence[str]) -> str:
    """Name the tables that do not fit: an empty file is a download that failed, another header a wrong layout."""
    others = [Path(path).name for path in walk.tables if path not in found]
    return f" (and without them: {', '.join(others[:_MOST_NAMED])})" if others else ""


def check_columns(table: Table, needed: Sequence[str], problems: Problems) -> None:
    """Raise `DataError` with all problems so far, if a table lacks a column."""
    missing = [name for name in needed if name not in table.columns]
    for name in missing:
        problems.add(table.path, 1, missing_column(name, table.columns))
    if missing:
        problems.check()


def pick_column(table: Table, names: Sequence[str], problems: Problems) -> str:
    """Return the first of these columns that a table has; raises `DataError` where it has none."""
    found = next(filter(None, (find_column(table.columns, name) for name in names)), None)
    if found is None:
        text = missing_column(names[0], table.columns) if len(names) == 1 else ""
        listed = ", ".join(table.columns[:40])
        problems.add(table.path, 1, text or f"has none of the columns {', '.join(names)} (it has: {listed})")
        problems.check("name the column of the label with --label COLUMN")
    return str(found)


def finish(
    walk: Walk, listing: Listing, paths: Sequence[str], problems: Problems, *, also: Sequence[Path] = ()
) -> Rows:
    """Give the rows their files and hand everything over.

    also: further tables that were read. Raises `DataError` for all problems, or where no image is there.
    """
    check_ids(listing, problems)
    check_owners(listing, problems)
    attached = attach(listing, paths, walk.root, problems)
    problems.check()
    for path in (*listing.tables, *also):
        if path.is_relative_to(walk.root):
            walk.other_files[path.suffix.lower()] -= 1
    walk.other_files += Counter()  # drops zero counts
    walk.finish()
    if not attached.columns["path"]:
        names = ", ".join(path.name for path in listing.tables)
        raise DataError(
            f"{walk.root}: nothing usable: none of the {len(listing.rows)} images of {names} is there",
            remedy="put the image folders beside the table, or name their folder with --images",
        )
    refused: list[Refused] = [*walk.refused, *attached.refused]
    frame = make_frame(attached.columns)
    return Rows(frame, walk.root, refused, [*walk.notes, *attached.notes], listing.columns, listing.used)
