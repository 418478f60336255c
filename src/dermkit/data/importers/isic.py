"""Readers of the ISIC challenges 2018 (task 3), 2019 and 2020, and of downloads from the ISIC Archive."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.data.importers.csv_tables import Problems, Table, read_head, read_table
from dermkit.data.importers.match_files import folded_stem
from dermkit.data.importers.normalise import SPLIT_NAMES
from dermkit.data.importers.reader import check_columns, finish, no_such_table, one_table, pick_column, walk_images
from dermkit.data.importers.records import Note, Rows
from dermkit.data.importers.table_rows import (
    PLAIN,
    Listing,
    Options,
    check_ids,
    check_labels,
    clean,
    join_listings,
    known_columns,
    list_table,
    one_hot,
    with_column,
)
from dermkit.data.importers.walk import Walk
from dermkit.images.headers import IMAGE_SUFFIXES

CLASSES_2018 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
CLASSES_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
NONE_OF_THEM = "UNK"
"""ISIC 2019's ninth class, "none of the others": no training image has it, test images do."""

MALIGNANCY_COLUMNS = ("diagnosis_1", "benign_malignant")
ARCHIVE_LABELS = (*MALIGNANCY_COLUMNS, "diagnosis")
"""Columns that the label of an archive download is taken from, if none is named: the first that is there."""

_BINARY = ("benign", "malignant")
_DUPLICATES = ("image_name_1", "image_name_2")
_SIDE_IN_NAME = re.compile(r"(?<![a-z])(training|train|validation|valid|val|test)(?![a-z])")


# 2018 and 2019: one-hot truth, metadata beside it -----------------------------------------------------------------


def read_isic2018(source: Path, options: Options = PLAIN) -> Rows:
    """Read task 3 of ISIC 2018: `image,MEL,NV,BCC,AKIEC,BKL,DF,VASC`, and the lesion groups of the second table.

    Truths of several sides may lie together; their names then give the published side. Raises `DataError` with all
    problems of all tables.
    """
    return _read_one_hot(source, options, CLASSES_2018, "ISIC2018_Task3_Training_GroundTruth.csv")


def read_isic2019(source: Path, options: Options = PLAIN) -> Rows:
    """Read ISIC 2019: `image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK`, and metadata of the second table.

    About 8 % of the images have no lesion_id, it stays unknown. `_downsampled` in a name may be there or not.
    """
    return _read_one_hot(source, options, CLASSES_2019, "ISIC_2019_Training_GroundTruth.csv")


@dataclass(frozen=True)
class _Tables:
    """The tables of a source by what they tell."""

    truths: list[Path]
    metadata: list[Path]


def _read_one_hot(source: Path, options: Options, classes: Sequence[str], usual: str) -> Rows:
    walk, paths = walk_images(source, options)
    problems = Problems()
    tables = _find_tables(walk, options, classes, usual)
    sides = [_side(path.name) for path in tables.truths] if len(tables.truths) > 1 else [""]
    listing = join_listings(
        [_truth(path, side, classes, problems) for path, side in zip(tables.truths, sides, strict=True)]
    )
    for path in tables.metadata:
        listing = _with_metadata(clean(listing, problems), path, problems)
    return finish(walk, listing, paths, problems, also=tables.metadata)


def _find_tables(walk: Walk, options: Options, classes: Sequence[str], usual: str) -> _Tables:
    needed = ("image", *classes)
    heads = {path: set(read_head(walk.root / path, needed).columns) for path in walk.tables}
    truths = [walk.root / path for path, columns in heads.items() if set(needed) <= columns]
    if options.table:
        truths = [one_table(walk, options, needed, usual)]
    if not truths:
        raise no_such_table(walk, needed, usual)
    metadata = [
        walk.root / path
        for path, columns in heads.items()
        if "image" in columns and known_columns(tuple(columns)) and not set(classes) <= columns
    ]
    return _Tables(truths, metadata)


def _side(name: str) -> str:
    found = _SIDE_IN_NAME.search(name.lower())
    return SPLIT_NAMES[found.group(1)] if found else ""


def _truth(path: Path, side: str, classes: Sequence[str], problems: Problems) -> Listing:
    table = read_table(path, problems, wanted=("image", *classes))
    check_columns(table, ("image", *classes), problems)
    names = [*classes, *([NONE_OF_THEM] if NONE_OF_THEM in table.columns else [])]
    listing = with_column(list_table(table, {"image": "image"}), "label", one_hot(table, names, problems), names)
    return with_column(listing, "given_split", pd.Series([side] * len(table.rows), dtype="str"), ())


def _with_metadata(listing: Listing, path: Path, problems: Problems) -> Listing:
    """Fill targets that are still empty from a table of metadata, by image."""
    table = read_table(path, problems, wanted=("image",))
    columns = known_columns(table.columns)
    more = clean(list_table(table, {"image": "image", **columns}), problems)
    check_ids(more, problems)
    keys = listing.frame["image"].map(_key)
    found = more.frame.assign(image=more.frame["image"].map(_key)).drop_duplicates("image").set_index("image")
    frame = listing.frame.copy()
    for target in columns:
        given = keys.map(found[target]).fillna("").astype("str")
        frame[target] = frame[target].where(frame[target] != "", given) if target in frame else given
    lost = int((~found.index.isin(keys)).sum())
    notes = [Note("metadata_alone", f"Rows of {path.name} about images without a label.", lost)] if lost else []
    return replace(
        listing, frame=frame, columns=_union(listing.columns, more.columns), used=_union(listing.used, more.used),
        notes=(*listing.notes, *more.notes, *notes),
    )  # fmt: skip


def _key(image: str) -> str:
    return folded_stem(image, IMAGE_SUFFIXES)


def _union(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))


# 2020 -------------------------------------------------------------------------------------------------------------


def read_isic2020(source: Path, options: Options = PLAIN) -> Rows:
    """Read ISIC 2020: `image_name,patient_id,sex,...,diagnosis,benign_malignant,target`.

    Label: benign_malignant, or else target (0 benign, 1 malignant); options.label names another column. Rows whose
    label is unknown are refused and listed. The published pairs of duplicates, if they lie there, become copy groups.
    """
    walk, paths = walk_images(source, options)
    problems = Problems()
    usual = "ISIC_2020_Training_GroundTruth.csv"
    labels = [options.label] if options.label else ["benign_malignant", "target"]
    path = one_table(walk, options, ("image_name",), usual, either=labels)
    table = read_table(path, problems, wanted=("image_name",))
    check_columns(table, ("image_name",), problems)
    name = pick_column(table, labels, problems)
    listing = list_table(table, {"image": "image_name", **known_columns(table.columns)})
    listing = clean(with_column(listing, "label", _binary_words(table, name), (name,)), problems)
    if name in ("benign_malignant", "target"):
        check_labels(listing, problems, allowed=_BINARY)
        _check_target(table, problems)
    listing, also = _with_duplicates(walk, listing, problems)
    return finish(walk, listing, paths, problems, also=also)


def _binary_words(table: Table, name: str) -> "pd.Series[str]":
    """Return a column; benign or malignant for the 0 and 1 of `target`."""
    words = {"0": "benign", "0.0": "benign", "1": "malignant", "1.0": "malignant"} if name == "target" else {}
    return table.frame[name].map(lambda value: words.get(value, value))


def _check_target(table: Table, problems: Problems) -> None:
    """Note rows whose two columns contradict each other."""
    if not {"target", "benign_malignant"} <= set(table.columns):
        return
    target, word = _binary_words(table, "target"), table.frame["benign_malignant"]
    both = target.isin(_BINARY) & word.isin(_BINARY)
    for at in np.flatnonzero(both & (target != word)).tolist():
        text = f"benign_malignant is {word.iloc[at]!r}, target is {table.frame['target'].iloc[at]!r}"
        problems.add(table.path, int(table.rows[at]), text)


def _with_duplicates(walk: Walk, listing: Listing, problems: Problems) -> tuple[Listing, list[Path]]:
    """Give images that a published list calls copies of each other one copy group, named after its first image."""
    lists = [
        path for path in walk.tables if set(_DUPLICATES) <= set(read_head(walk.root / path, _DUPLICATES).columns)
    ]
    leader: dict[str, str] = {}

    def first_of(image: str) -> str:
        while leader.get(image, image) != image:
            image = leader[image]
        return image

    for path in lists:
        table = read_table(walk.root / path, problems, wanted=_DUPLICATES, keep=_DUPLICATES)
        for one, other in table.frame[list(_DUPLICATES)].itertuples(index=False):
            low, high = sorted((first_of(one), first_of(other)))
            leader[low], leader[high] = low, low
    if not lists:
        return listing, []
    group = listing.frame["image"].map(lambda image: first_of(image) if image in leader else "")
    text = "Images of the published list of duplicates; each pair is kept on one side of a split."
    note = Note("published_duplicates", text, int((group != "").sum()))
    filled = replace(with_column(listing, "copy_group", group, ()), notes=(*listing.notes, note))
    return filled, [walk.root / path for path in lists]


# ISIC Archive -----------------------------------------------------------------------------------------------------


def read_isic_archive(source: Path, options: Options = PLAIN) -> Rows:
    """Read images `<isic_id>.<ending>` and `metadata.csv` of a download, any of whose columns may be missing.

    Label: diagnosis_1 (2025 and later) or benign_malignant, as benign, malignant or indeterminate, or else diagnosis;
    options.label names another column. Rows without a label, rows whose image was not downloaded, and images without
    a row are refused and listed. Licence and attribution are carried, image by image.
    """
    walk, paths = walk_images(source, options)
    problems = Problems()
    labels = [options.label] if options.label else list(ARCHIVE_LABELS)
    table = read_table(one_table(walk, options, ("isic_id",), "metadata.csv"), problems, wanted=("isic_id",))
    check_columns(table, ("isic_id",), problems)
    name = pick_column(table, labels, problems)
    columns = known_columns(table.columns)
    listing = with_column(list_table(table, {"image": "isic_id", **columns}), "label", table.frame[name], (name,))
    if name in MALIGNANCY_COLUMNS:
        listing = _malignancies(listing)
    listing = clean(listing, problems)
    if name in MALIGNANCY_COLUMNS:
        given = listing.frame["label"]
        wrong = ~given.isin(["", *_BINARY, "indeterminate"]).to_numpy(dtype=bool)
        listing.report(
            wrong,
            problems,
            lambda at: f"{name} is neither benign, malignant nor indeterminate: {given.iloc[at]!r}",
        )
    listing = with_column(listing, "source", pd.Series(["ISIC Archive"] * len(listing.rows), dtype="str"), ())
    return finish(walk, listing, paths, problems)


def _malignancies(listing: Listing) -> Listing:
    """Return labels in lower case, "indeterminate/benign" of the old schema as indeterminate."""
    words: Mapping[str, str] = {
        value: "indeterminate" if value.lower().startswith("indeterminate") else value.lower()
        for value in listing.frame["label"].unique().tolist()
    }
    return replace(listing, frame=listing.frame.assign(label=listing.frame["label"].map(words)))
