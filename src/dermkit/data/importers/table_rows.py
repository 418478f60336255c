"""From rows of tables to rows of the manifest: columns mapped, values checked, each row with its image file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.importers import normalise
from dermkit.data.importers.csv_tables import Problems, Table, find_column
from dermkit.data.importers.match_files import match
from dermkit.data.importers.records import Note, Refused
from dermkit.errors import Refusal
from dermkit.images.headers import IMAGE_SUFFIXES

NO_METADATA = "no_metadata"
NO_LABEL = "no_label"
# Beside the reasons of `errors.Refusal`: a file without a row, and a row without a diagnosis.

TARGETS = (
    "image", "label", "lesion_id", "patient_id", "isic_id", "source", "licence", "attribution", "age", "sex", "site",
    "skin_type", "given_split", "copy_group",
)  # fmt: skip
"""What a column of a table can be; the manifest's columns, and the image that a row is about."""


METADATA = MappingProxyType(
    {
        "lesion_id": ("lesion_id",),
        "patient_id": ("patient_id",),
        "age": ("age_approx", "age"),
        "sex": ("sex",),
        "site": ("anatom_site_general", "anatom_site_general_challenge", "anatom_site_1", "localization", "site"),
        "skin_type": ("fitzpatrick_skin_type", "skin_type"),
        "licence": ("copyright_license", "license", "licence"),
        "attribution": ("attribution",),
    }
)
"""Target -> the names that ISIC and its relatives give that column, the first that is there counts."""


@dataclass(frozen=True)
class Options:
    """What a person says about a source. columns: target -> column of the table. label: the column of the label.

    table, images: where these lie, if not where the layout says.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    table: Path | None = None
    images: Path | None = None
    label: str = ""


PLAIN = Options()


@dataclass(frozen=True, eq=False)
class Listing:
    """Rows of tables under the targets' names. frame: text, "" = unknown; `image` and any other of `TARGETS`.

    rows: (n,) row numbers. tables, table: the files, and (n,) which of them a row is from.
    columns, used: names of all columns of the tables, and of those in the frame.
    """

    frame: pd.DataFrame
    rows: NDArray[np.int64]
    tables: tuple[Path, ...]
    table: NDArray[np.int8]
    columns: tuple[str, ...]
    used: tuple[str, ...]
    notes: tuple[Note, ...] = ()

    def report(self, wrong: NDArray[np.bool_], problems: Problems, say: Callable[[int], str]) -> None:
        """Note a problem for every row that is marked. say: place of a row -> words."""
        for at in np.flatnonzero(wrong).tolist():
            self.report_row(at, say(at), problems)

    def report_row(self, at: int, text: str, problems: Problems) -> None:
        """Note a problem of one row. at: its place."""
        problems.add(self.tables[self.table[at]], int(self.rows[at]), text)


def list_table(table: Table, columns: Mapping[str, str]) -> Listing:
    """Return the rows of a table by target. columns: target -> column of the table, each of which it has."""
    frame = pd.DataFrame({target: table.frame[name] for target, name in columns.items()})
    used = tuple(dict.fromkeys(columns.values()))
    where = np.zeros(len(table.rows), np.int8)
    return Listing(frame, table.rows, (table.path,), where, table.columns, used, table.notes)


def with_column(listing: Listing, target: str, cells: "pd.Series[str]", used: Sequence[str]) -> Listing:
    """Return the rows with one more target. used: the columns that the cells come from."""
    frame = listing.frame.assign(**{target: cells.to_numpy()})
    return replace(listing, frame=frame, used=tuple(dict.fromkeys([*listing.used, *used])))


def join_listings(listings: Sequence[Listing]) -> Listing:
    """Return the rows of several tables, one below the other."""
    frame = pd.concat([item.frame for item in listings], ignore_index=True).fillna("")
    return Listing(
        frame,
        np.concatenate([item.rows for item in listings]),
        tuple(path for item in listings for path in item.tables),
        np.concatenate([np.full(len(item.rows), at, np.int8) for at, item in enumerate(listings)]),
        tuple(dict.fromkeys(name for item in listings for name in item.columns)),
        tuple(dict.fromkeys(name for item in listings for name in item.used)),
        tuple(note for item in listings for note in item.notes),
    )


def known_columns(columns: Sequence[str]) -> dict[str, str]:
    """Return target -> column for every column of `METADATA` that a table has."""
    found = {target: [find_column(columns, name) for name in names] for target, names in METADATA.items()}
    return {target: next(filter(None, names)) or "" for target, names in found.items() if any(names)}


# Values -----------------------------------------------------------------------------------------------------------

_CLEANERS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {
        "image": lambda value: value, "label": normalise.known, "lesion_id": normalise.known,
        "patient_id": normalise.known, "isic_id": normalise.known, "age": normalise.years, "sex": normalise.sex,
        "skin_type": normalise.skin_type, "given_split": normalise.side,
    }
)  # fmt: skip
_WRONG = MappingProxyType(
    {
        "age": f"age is not a number of years from 0 to {normalise.OLDEST}",
        "given_split": "not one of train, validation, test",
    }
)


def clean(listing: Listing, problems: Problems) -> Listing:
    """Return the rows with one spelling for each value; ages and sides that are none are problems."""
    columns: dict[str, pd.Series[str]] = {}
    for target in listing.frame.columns:
        given = listing.frame[target]
        cleaner = _CLEANERS.get(target, normalise.known)
        table = {value: cleaner(value) for value in given.unique().tolist()}
        wrong = given.isin([value for value, right in table.items() if right is None]).to_numpy(dtype=bool)
        for at in np.flatnonzero(wrong).tolist():
            listing.report_row(at, f"{_WRONG[target]}: {given.iloc[at]!r}", problems)
        changed = {value: right or "" for value, right in table.items() if right != value}
        columns[target] = given.where(~given.isin(list(changed)), given.map(changed)) if changed else given
    return replace(listing, frame=pd.DataFrame(columns))


def check_ids(listing: Listing, problems: Problems) -> None:
    """Note rows without an image, and rows that name an image again."""
    image = listing.frame["image"]
    empty = (image == "").to_numpy(dtype=bool)
    listing.report(empty, problems, lambda _: "the image is empty")
    again = image.duplicated().to_numpy(dtype=bool) & ~empty
    if again.any():
        first = {name: at for at, name in reversed(list(enumerate(image.tolist())))}
        listing.report(again, problems, lambda at: _repeats(listing, first[image.iloc[at]], at))


def _repeats(listing: Listing, first: int, at: int) -> str:
    other = "" if listing.table[first] == listing.table[at] else f" of {listing.tables[listing.table[first]].name}"
    return f"image repeats that of row {listing.rows[first]}{other}: {listing.frame['image'].iloc[at]!r}"


def check_owners(listing: Listing, problems: Problems) -> None:
    """Note rows that give a lesion to another patient than an earlier row: its ids are numbers within a patient."""
    if not {"lesion_id", "patient_id"} <= set(listing.frame.columns):
        return
    ids = listing.frame[["lesion_id", "patient_id"]]
    pairs = ids[(ids["lesion_id"] != "") & (ids["patient_id"] != "")].drop_duplicates()
    first = pairs.drop_duplicates("lesion_id").set_index("lesion_id")["patient_id"]
    for at in pairs.index[pairs["lesion_id"].duplicated()].tolist():
        lesion, patient = ids.loc[at]
        text = f"lesion {lesion!r} belongs to patient {patient!r} here, and to {first[lesion]!r} in an earlier row"
        listing.report_row(at, text, problems)


def check_labels(listing: Listing, problems: Problems, *, allowed: Sequence[str] = ()) -> None:
    """Note rows without a label, and where a layout has fixed labels, any other. `label` is as in the table."""
    label = listing.frame["label"]
    empty = (label == "").to_numpy(dtype=bool)
    listing.report(empty, problems, lambda _: "the label is empty or unknown")
    if allowed:
        wrong = ~label.isin(allowed).to_numpy(dtype=bool) & ~empty
        listing.report(
            wrong, problems, lambda at: f"unknown label {label.iloc[at]!r} (the labels are {', '.join(allowed)})"
        )


def one_hot(table: Table, names: Sequence[str], problems: Problems) -> "pd.Series[str]":
    """Return the label of each row of columns with one 1; none, two, or another value is a problem, and then ""."""
    marks = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": 0}
    columns = [table.frame[name] for name in names]
    count, label = np.zeros(len(table.rows), int), np.full(len(table.rows), "", dtype=object)
    odd = np.zeros(len(table.rows), bool)
    for name, column in zip(names, columns, strict=True):
        mark = column.map({value: marks.get(value, -1) for value in column.unique().tolist()}).to_numpy()
        odd |= mark == -1
        count += mark == 1
        label[mark == 1] = name
    for at in np.flatnonzero(odd | (count != 1)).tolist():
        cells = [(name, column.iloc[at]) for name, column in zip(names, columns, strict=True)]
        problems.add(table.path, int(table.rows[at]), _not_one(cells, bool(odd[at])))
        label[at] = ""
    return pd.Series(label, dtype="str")


def _not_one(cells: Sequence[tuple[str, str]], odd: bool) -> str:
    if odd:
        wrong = [f"{name} {value!r}" for name, value in cells if value not in ("0", "0.0", "1", "1.0", "")]
        return f"neither 0 nor 1: {', '.join(wrong)}"
    ones = [name for name, value in cells if value in ("1", "1.0")]
    return f"marked as {len(ones)} classes: {', '.join(ones)}" if ones else "marked as none of the classes"


# Files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Attached:
    """Rows with their files: columns for the manifest (`path` and the targets), refused rows and files, notes."""

    columns: dict[str, list[str]]
    refused: list[Refused] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def attach(listing: Listing, paths: Sequence[str], root: Path, problems: Problems) -> Attached:
    """Give each row its file. A row without a file, and a file without a row, are refused and listed.

    A row that could mean several different files, and two rows for one file, are problems. A row whose label is
    still unknown is refused too: it is for the reader to say where that is a problem.
    """
    image = listing.frame["image"]
    found = match(image.tolist(), paths, root, IMAGE_SUFFIXES)
    for at, several in sorted(found.ambiguous.items()):
        text = f"{image.iloc[at]!r} could be {len(several)} different files: {', '.join(several)}"
        problems.add(listing.tables[listing.table[at]], int(listing.rows[at]), text)
    _check_taken(listing, found.positions, paths, problems)
    here = found.positions >= 0
    unlabelled = here & (listing.frame["label"] == "").to_numpy(dtype=bool)
    empty = (image == "").to_numpy(dtype=bool)
    absent = np.flatnonzero(~here & ~empty & ~np.isin(np.arange(len(image)), list(found.ambiguous)))
    if problems.n:  # no list of refused images will be written, so they are told here
        for at in absent.tolist():
            listing.report_row(at, f"there is no image {image.iloc[at]!r}", problems)
    names = [path.name for path in listing.tables]
    refused = [
        Refused(
            _shown(image.iloc[at]), Refusal.MISSING.value, _no_image(names[listing.table[at]], listing.rows[at])
        )
        for at in absent.tolist()
    ]
    refused += [
        Refused(paths[found.positions[at]], NO_LABEL, _no_label(names[listing.table[at]], listing.rows[at]))
        for at in np.flatnonzero(unlabelled).tolist()
    ]
    here &= ~unlabelled
    extra, notes = _unnamed(found.positions, found.copies, paths, " or ".join(names))
    columns = {
        target: listing.frame[target][here].tolist() for target in listing.frame.columns if target != "image"
    }
    columns["path"] = [paths[at] for at in found.positions[here].tolist()]
    return Attached(columns, [*refused, *extra], [*listing.notes, *notes])


def _no_image(table: str, row: int) -> str:
    return f"no image for this row of {table} (row {row})"


def _no_label(table: str, row: int) -> str:
    return f"{table} gives no label (row {row})"


def _check_taken(listing: Listing, positions: NDArray[np.int64], paths: Sequence[str], problems: Problems) -> None:
    """Note rows whose file an earlier row has; the same value twice is a repeated image already."""
    here = np.flatnonzero(positions >= 0)
    again = here[pd.Series(positions[here]).duplicated().to_numpy()]
    if not len(again):
        return
    first = {int(positions[at]): at for at in here[::-1].tolist()}
    image = listing.frame["image"]
    for at in again.tolist():
        other = first[int(positions[at])]
        if image.iloc[other] != image.iloc[at]:
            text = f"{image.iloc[at]!r} is the file of row {listing.rows[other]} too: {paths[positions[at]]}"
            problems.add(listing.tables[listing.table[at]], int(listing.rows[at]), text)


def _unnamed(
    positions: NDArray[np.int64], copies: frozenset[int], paths: Sequence[str], table: str
) -> tuple[list[Refused], list[Note]]:
    """Return the refused files that no row names, and notes; second copies of a named file are only counted."""
    named = np.zeros(len(paths), bool)
    named[positions[positions >= 0]] = True
    named[list(copies)] = True
    refused = [
        Refused(paths[at], NO_METADATA, f"{table} has no row for it") for at in np.flatnonzero(~named).tolist()
    ]
    notes = []
    if refused:
        notes.append(Note(NO_METADATA, f"Images without a row in {table} were left out.", len(refused)))
    if copies:
        text = "Second copies of image files (same name, same bytes) left out."
        notes.append(Note("second_copies", text, len(copies)))
    return refused, notes


def _shown(name: str) -> str:
    return name.replace("\r", "\\r")
