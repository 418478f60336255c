"""The table of `predict --metadata`: age, sex and site of new images, matched to their files, read strictly.

In an import a value that cannot be read is unknown and counted; here it would change a probability without a word, so
it is an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.data.importers.csv_tables import ProblemList, find_first_column, missing_column_text, read_csv_table
from dermkit.data.importers.match_files import normalised_stem
from dermkit.data.importers.normalise import parse_age, parse_sex, parse_site
from dermkit.data.importers.table_rows import METADATA_COLUMNS
from dermkit.data.manifest import MAX_AGE
from dermkit.errors import DataError, UsageError, did_you_mean
from dermkit.files import canonical_json, sha256_bytes, write_rows
from dermkit.images.formats import IMAGE_SUFFIXES
from dermkit.models.members import MemberFields, input_notes, metadata_fields
from dermkit.models.metadata import known_counts, known_metadata
from dermkit.prediction.inputs import ImageRef, utf8_safe
from dermkit.recipes.training_specs import METADATA_FIELDS
from dermkit.render.cells import defused, undefused

METADATA_FILE = "metadata.csv"
"""In the folder of a prediction: the values that each image was scored with, "" = unknown."""

_IMAGE_COLUMNS = ("image", "image_id", "isic_id", "image_name", "path", "file", "filename", "file_name")
_PARSERS: Mapping[str, tuple[Callable[[str], str | None], str]] = {
    "age": (parse_age, f"no number of years from 0 to {MAX_AGE}"),
    "sex": (parse_sex, "a number, and no word such as male"),
    "site": (parse_site, "a number, and no name of a body site"),
}
_NOTHING = "nothing was scored"


@dataclass(frozen=True, eq=False)
class ImageMetadata:
    """Metadata of the images of a prediction.

    table: a row for each image with the columns age, sex and site, "" = unknown. source: the name of the file, "" where
    none was given. n_with_row: how many images have a row of it; n_other_rows: rows about none of the images. columns:
    the fields that it has.
    """

    table: pd.DataFrame
    source: str = ""
    n_with_row: int = 0
    n_other_rows: int = 0
    columns: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The hex SHA-256 of the values."""
        return sha256_bytes(canonical_json(self.table.to_numpy(dtype=object).tolist()).encode())


def find_metadata(
    metadata: Path | pd.DataFrame | None, images: Sequence[ImageRef], members: Sequence[MemberFields], model: Path
) -> ImageMetadata | None:
    """Return the metadata of images for a model, all unknown where none are given; None for a model without them.

    Raises `UsageError` for a table beside a model that takes no metadata, `DataError` for one that cannot be read.
    """
    if not metadata_fields(members):
        if metadata is None:
            return None
        raise UsageError(
            f"{model}: takes no metadata, so --metadata would have no effect",
            outcome=_NOTHING,
            remedy="leave it out, or name a model that was trained with `--metadata`",
        )
    if metadata is None:
        return ImageMetadata(
            pd.DataFrame("", index=range(len(images)), columns=list(METADATA_FIELDS), dtype="object")
        )
    if isinstance(metadata, Path):
        return _read_file(metadata, images)
    frame = metadata.rename(columns=str)
    texts = pd.DataFrame({name: ["" if pd.isna(cell) else str(cell) for cell in frame[name]] for name in frame})
    return _match(Path("metadata"), texts, np.arange(len(frame)), images, ProblemList())


def _read_file(path: Path, images: Sequence[ImageRef]) -> ImageMetadata:
    if not path.is_file():
        raise DataError(f"{path}: there is no such table", outcome=_NOTHING, remedy="check --metadata")
    problems = ProblemList()
    table = read_csv_table(path, problems, hint_columns=[*_IMAGE_COLUMNS, *METADATA_FIELDS])
    return _match(path, table.frame, table.row_numbers, images, problems)


def _match(
    path: Path, frame: pd.DataFrame, row_numbers: Any, images: Sequence[ImageRef], problems: ProblemList
) -> ImageMetadata:
    """Return the rows of a table in the order of the images; raises `DataError` that lists all problems."""
    id_column, columns = _columns(path, list(frame.columns), problems)
    values = _values(path, frame, columns, row_numbers, problems)
    # An image may be named twice: its id then stands for each place that it has.
    distinct_images = list({image.image_id: image for image in images}.values())
    row_of_image: dict[str, int] = {}
    n_other, find = 0, _finder(distinct_images)
    for row, cell in enumerate(frame[id_column].tolist() if id_column else []):
        candidates = find(undefused(cell))
        if len(candidates) > 1:
            names = ", ".join(utf8_safe(image.name) for image in candidates[:3])
            problems.add(path, int(row_numbers[row]), f"{cell!r} may be any of {len(candidates)} images: {names}")
        for image in candidates if len(candidates) == 1 else ():
            first = row_of_image.setdefault(image.image_id, row)
            if not values.iloc[first].equals(values.iloc[row]):
                text = f"{cell!r} again, with other values than row {row_numbers[first]}"
                problems.add(path, int(row_numbers[row]), text)
        n_other += not candidates
    problems.raise_if_any("correct the table, whose columns are image, age, sex and site; row 1 is the header")
    if not row_of_image:
        raise DataError(
            f"{path}: has a row for none of the {len(distinct_images)} images",
            outcome=_NOTHING,
            remedy="name images by their file, such as lesion1.jpg, with its folder where two have one name",
        )
    cells = np.full((len(images), len(METADATA_FIELDS)), "", dtype=object)
    known = [index for index, image in enumerate(images) if image.image_id in row_of_image]
    cells[known] = values.to_numpy(dtype=object)[[row_of_image[images[index].image_id] for index in known]]
    matched = pd.DataFrame(cells, columns=list(METADATA_FIELDS))
    return ImageMetadata(matched, path.name, len(known), n_other, tuple(columns))


def _columns(path: Path, names: Sequence[str], problems: ProblemList) -> tuple[str | None, dict[str, str]]:
    """Return the column of the image, and field -> column; any other column is a problem: it may be misspelt."""
    id_column = find_first_column(names, _IMAGE_COLUMNS)
    candidates = {field: find_first_column(names, METADATA_COLUMNS[field]) for field in METADATA_FIELDS}
    columns: dict[str, str] = {field: name for field, name in candidates.items() if name is not None}
    if id_column is None:
        problems.add(path, 1, missing_column_text("image", names))
    for name in names:
        if name not in (id_column, *columns.values()):
            problems.add(path, 1, f"unknown column {name!r}{did_you_mean(name, METADATA_FIELDS)}")
    if not columns:
        problems.add(path, 1, f"no column is one of {', '.join(METADATA_FIELDS)}")
    return id_column, columns


def _values(
    path: Path, frame: pd.DataFrame, columns: Mapping[str, str], row_numbers: Any, problems: ProblemList
) -> pd.DataFrame:
    """Return the three fields of each row as text; a cell that cannot be read is a problem."""
    values: dict[str, list[str]] = {}
    for field in METADATA_FIELDS:
        cells = frame[columns[field]].tolist() if field in columns else [""] * len(frame)
        parse, problem = _PARSERS[field]
        parsed = [parse(cell.strip()) for cell in cells]
        for row in (row for row, value in enumerate(parsed) if value is None):
            problems.add(path, int(row_numbers[row]), f"{field} {cells[row]!r} is {problem}")
        values[field] = [value or "" for value in parsed]
    normalised = {
        field: known_metadata(pd.Series(cells, dtype="object"), field) for field, cells in values.items()
    }
    return pd.DataFrame(normalised)


def _finder(images: Sequence[ImageRef]) -> Callable[[str], list[ImageRef]]:
    """Return what finds the images that a cell names: an image's id or name, or a path of which one ends the other.

    An image in memory has the path "", by which a cell without a name must not find it.
    """
    exact: dict[str, list[ImageRef]] = {}
    by_stem: dict[str, list[ImageRef]] = {}
    for image in images:
        for name in {image.image_id, image.name, image.path} - {""}:
            exact.setdefault(name, []).append(image)
        if stem := normalised_stem(image.path, IMAGE_SUFFIXES):
            by_stem.setdefault(stem, []).append(image)

    def find(cell: str) -> list[ImageRef]:
        if cell in exact:
            return exact[cell]
        folders = _folders(cell)
        candidates = by_stem.get(normalised_stem(cell, IMAGE_SUFFIXES), [])
        return [image for image in candidates if _share_end(folders, _folders(image.path))]

    return find


def _folders(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/")[:-1] if part not in ("", ".")]


def _share_end(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether the shorter list of folders ends the longer one."""
    n = min(len(one), len(other))
    return list(one[len(one) - n :]) == list(other[len(other) - n :])


# What is said and written --------------------------------------------------------------------------------------------


def metadata_lines(metadata: ImageMetadata, members: Sequence[MemberFields]) -> list[str]:
    """Return what a prediction says of its second input before it scores."""
    fields, n = metadata_fields(members), len(metadata.table)
    if not metadata.source:
        return [
            f"warning: this model takes {', '.join(fields)} beside the image, and none were given (--metadata): all "
            f"{n:,} images are scored with them unknown"
        ]
    lines = [f"metadata: {metadata.source} has a row for {metadata.n_with_row:,} of {n:,} images"]
    if metadata.n_with_row < n:
        lines.append(
            f"warning: {n - metadata.n_with_row:,} images have no row and are scored with all fields unknown"
        )
    if absent := [name for name in fields if name not in metadata.columns]:
        lines.append(f"warning: the table has no column {', '.join(absent)}: unknown for all images")
    if unused := [name for name in metadata.columns if name not in fields]:
        lines.append(f"this model does not take {', '.join(unused)}: left out")
    if metadata.n_other_rows:
        lines.append(f"{metadata.n_other_rows:,} rows of the table are about none of these images")
    return [*lines, *input_notes(members, metadata.table)]


def describe_metadata(metadata: ImageMetadata | None, members: Sequence[MemberFields]) -> dict[str, Any] | None:
    """Return the entry `metadata` of predict.json; null for a model without a second input."""
    if metadata is None:
        return None
    fields = metadata_fields(members)
    return {
        "fields": list(fields),
        "table": metadata.source or None,
        "n_with_row": metadata.n_with_row,
        "n_known": known_counts(metadata.table, fields),
        "notes": input_notes(members, metadata.table),
    }


def used_metadata(table: pd.DataFrame, members: Sequence[MemberFields]) -> pd.DataFrame:
    """Return the values that images are scored with, a column for each field of a model.

    A category that no net knows counts as unknown and is left empty.
    """
    used = pd.DataFrame("", index=table.index, columns=list(metadata_fields(members)), dtype="object")
    for member in members:
        for name, values in ({} if member.metadata is None else member.metadata.used_values(table)).items():
            used[name] = used[name].where(used[name] != "", values)
    return used


def write_used_metadata(
    path: Path,
    metadata: ImageMetadata | None,
    members: Sequence[MemberFields],
    images: Sequence[ImageRef],
    rows: Sequence[int],
    *,
    is_raw: bool,
) -> None:
    """Write the values that images were scored with, and remove the table of an earlier prediction without any.

    A category that no net knows counts as unknown and is left empty. rows: the images that were scored.
    """
    if metadata is None:
        path.unlink(missing_ok=True)
        return
    used = used_metadata(metadata.table, members)
    clean = tuple if is_raw else defused
    cells = used.to_numpy(dtype=object)
    write_rows(
        path, ("image_id", *used.columns), (clean((utf8_safe(images[row].image_id), *cells[row])) for row in rows)
    )
