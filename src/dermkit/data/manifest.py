"""The manifest (a table with one row per image), the data set folder around it, and the checks of its rows."""

import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit import files
from dermkit.data.notes import migrate_notes
from dermkit.data.unknown import known_ids
from dermkit.errors import DataError
from dermkit.files import TEMP_PREFIX, JsonFile, canonical_json, fingerprint, open_regular, write_chunks

LOCATION = JsonFile(
    "location.json", 2, {1: lambda document: {**document, "masks": "", "dataset": "", "format": 2}}
)
"""Where the images of a data set, or of a run, lie on this machine. Format 2 added `masks`, the folder of a data set's
lesion masks, and `dataset`, the folder of a run's data set; "" without."""
MANIFEST_COLUMNS = (
    "image_id", "path", "label", "lesion_id", "patient_id", "isic_id", "source", "licence", "attribution",
    "age", "sex", "site", "skin_type", "given_split", "copy_group", "pixel_sha256", "file_sha256", "width", "height",
)  # fmt: skip
"""Text, "" = unknown; `INTEGER_COLUMNS` are positive integers, in pixels. docs/layouts.md describes each."""
INTEGER_COLUMNS = ("width", "height")
ID_COLUMNS = ("lesion_id", "patient_id", "copy_group")
GIVEN_SPLITS = ("", "train", "validation", "test")
MAX_AGE = 120
"""In years. The oldest verified person reached 122, so a larger number is a year of birth or a typing error."""

Malignancy = Literal["benign", "malignant", "indeterminate"]
MALIGNANCIES: tuple[Malignancy, ...] = get_args(Malignancy)

_DATASET_KEYS = ("name", "importer", "classes", "counts")
_MAX_LISTED = 20  # problems in one message
_ROWS_PER_CHUNK = 10_000


DATASET = JsonFile("dataset.json", 2, {1: lambda document: {**migrate_notes(document), "format": 2}})


@dataclass(frozen=True)
class LesionClass:
    """A class of a data set.

    name: its label in the manifest. diagnosis: its canonical name in the table of diagnoses, "" = unknown. malignancy:
    benign, malignant (the positive class) or indeterminate.
    """

    name: str
    diagnosis: str
    malignancy: Malignancy


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set folder in memory, without its pixels.

    image_root: the folder that the manifest's `path` is relative to. classes: in the order of the model's outputs.
    manifest: one row per image with the columns `MANIFEST_COLUMNS`; text, "" = unknown, and width, height as int64
    (pixels). mask_root: the folder of its lesion masks (`data/masks.py`) or None. importer: the layout that it was
    imported with. notes: other entries of dataset.json (warnings, licence, numbers of rejected images). files_sha256:
    of the files that it was read from, "" for one that was not read.
    """

    folder: Path
    image_root: Path
    name: str
    classes: tuple[LesionClass, ...]
    manifest: pd.DataFrame
    importer: str
    notes: dict[str, Any] = field(default_factory=dict)
    files_sha256: str = ""
    mask_root: Path | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels, in the order of the model's outputs."""
        return tuple(lesion_class.name for lesion_class in self.classes)

    @property
    def malignant_classes(self) -> tuple[str, ...]:
        """The labels of malignant classes: the positive ones of every metric of malignancy."""
        return tuple(lesion_class.name for lesion_class in self.classes if lesion_class.malignancy == "malignant")

    @cached_property
    def work_folder(self) -> Path:
        """Where caches and audits are written: the data set's folder, or the user's cache where that is read-only."""
        return work_folder_of(self.folder)

    @cached_property
    def manifest_sha256(self) -> str:
        """The hex SHA-256 of manifest.csv as `save_dataset` writes it."""
        digest = hashlib.sha256()
        for chunk in manifest_chunks(self.manifest):
            digest.update(chunk.encode())
        return digest.hexdigest()

    def image_path(self, image_id: str) -> Path:
        """Return the path of an image on this machine; raises `DataError` for an unknown id."""
        path = self._paths.get(image_id)
        if path is None:
            raise DataError(f"{self.folder}: no image {image_id!r} in the manifest", remedy="check the image_id")
        return self.image_root / path

    @cached_property
    def _paths(self) -> dict[str, str]:
        return dict(zip(self.manifest["image_id"].tolist(), self.manifest["path"].tolist(), strict=True))


def is_writable(folder: Path) -> bool:
    """Tell whether a folder takes a file, by making one: permissions alone do not say so on a mounted drive."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=TEMP_PREFIX):
            return True
    except OSError:
        return False


def work_folder_of(folder: Path) -> Path:
    """Return where caches and audits of a folder are written: in it, or in the user's cache where it is read-only."""
    if is_writable(folder):
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dermkit" / f"{folder.resolve().name[:60]}-{fingerprint(str(folder.resolve()))}"


def manifest_chunks(frame: pd.DataFrame) -> Iterator[str]:
    """Yield the manifest as CSV text in chunks, to limit memory: known columns in their order, `\\n` line ends."""
    columns = [frame[column] for column in MANIFEST_COLUMNS]
    # Python's writer does not quote a lone carriage return, which a reader takes for the end of a row.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if any(map(_has_carriage_return, columns)) else csv.QUOTE_MINIMAL
    yield _csv_text([MANIFEST_COLUMNS], quoting)
    for start in range(0, len(frame), _ROWS_PER_CHUNK):
        cells = [values.iloc[start : start + _ROWS_PER_CHUNK].tolist() for values in columns]
        yield _csv_text(zip(*cells, strict=True), quoting)


def _has_carriage_return(values: "pd.Series[Any]") -> bool:
    return any(isinstance(value, str) and "\r" in value for value in values.unique())


def _csv_text(rows: Iterable[Sequence[object]], quoting: Literal[0, 1]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n", quoting=quoting).writerows(rows)
    return stream.getvalue()


def save_dataset(dataset: Dataset, into: Path | None = None) -> None:
    """Check the manifest and write manifest.csv, dataset.json and location.json into the data set's folder.

    Only location.json contains a path of this machine; leave it out when sharing the folder. into: another folder, from
    which the files will be moved together. Raises `DataError` for invalid rows, and `OutputError`.
    """
    check_manifest(dataset.manifest, dataset.classes, source=str(dataset.folder / "manifest.csv"))
    folder = into or dataset.folder
    write_chunks(folder / "manifest.csv", manifest_chunks(dataset.manifest))
    masks = "" if dataset.mask_root is None else str(dataset.mask_root.resolve())
    LOCATION.write(folder, {"images": str(dataset.image_root.resolve()), "masks": masks, "dataset": ""})
    document = {
        "name": dataset.name,
        "importer": dataset.importer,
        "classes": [vars(lesion_class) for lesion_class in dataset.classes],
        "counts": manifest_counts(dataset.manifest, dataset.class_names),
    }
    extra_notes = {key: value for key, value in dataset.notes.items() if key not in document}
    DATASET.write(folder, {**document, **extra_notes})


def write_run_location(folder: Path, dataset: Dataset) -> None:
    """Write location.json of a run on a data set: where its images lie, and the data set's folder."""
    images, place = str(dataset.image_root.resolve()), str(dataset.folder.resolve())
    LOCATION.write(folder, {"images": images, "masks": "", "dataset": place})


def update_notes(dataset: Dataset, **notes: Any) -> Dataset:
    """Set notes in dataset.json, all else as it is there; returns the data set with them."""
    DATASET.write(dataset.folder, {**DATASET.read(dataset.folder), **notes})
    return replace(dataset, notes={**dataset.notes, **notes})


def manifest_counts(frame: pd.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the numbers of images, lesions and patients, and of images per class and given split.

    Only known ids of lesions and patients count, so 0 means that there are none.
    """
    table = pd.crosstab(frame["label"], frame["given_split"])
    splits = [name for name in GIVEN_SPLITS if name in table.columns]
    return {
        "images": len(frame),
        "lesions": int(frame.loc[frame["lesion_id"] != "", "lesion_id"].nunique()),
        "patients": int(frame.loc[frame["patient_id"] != "", "patient_id"].nunique()),
        "per_class": {name: int((frame["label"] == name).sum()) for name in class_names},
        "given_split": {
            split: {name: int(table[split].get(name, 0)) for name in class_names} for split in splits if split
        },
    }


def load_dataset(folder: Path) -> Dataset:
    """Read a data set folder that `import_dataset` wrote, and check its manifest; no image is opened.

    Changes that a killed import or cleaning had begun are made first. Raises `DataError` if the folder is missing or
    broken, or if rows are invalid (see `check_manifest`), and `OutputError` if such changes cannot be made.

        dataset = dk.load_dataset(Path("dataset"))
        dataset.class_names
    """
    from dermkit.data.staging import finish_killed_changes  # here: modules of runs import this one for a file name

    finish_killed_changes(folder)
    if not DATASET.exists(folder):
        raise DataError(
            f"{folder}: is not a data set folder: there is no {folder / DATASET.name}",
            remedy="check the path, or make one with `dermkit import`",
        )
    files_sha256 = dataset_files_sha256(folder)  # before they are read: one that is replaced meanwhile has another
    document, location = DATASET.read(folder), LOCATION.read(folder)
    try:
        classes = tuple(_read_class(entry) for entry in document["classes"])
        name, importer, images = str(document["name"]), str(document["importer"]), Path(location["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder}: dataset.json or location.json lacks something: {error!r}",
            remedy="import the data set again",
        ) from error
    frame = read_manifest(folder / "manifest.csv")
    check_manifest(frame, classes, source=str(folder / "manifest.csv"))
    notes = {key: entry for key, entry in document.items() if key not in _DATASET_KEYS}
    mask_root = Path(str(location["masks"])) if location.get("masks") else None
    return Dataset(folder, images, name, classes, frame, importer, notes, files_sha256, mask_root)


def dataset_files_sha256(folder: Path) -> str:
    """Return the hex SHA-256 of a data set's classes and manifest as they lie in its folder; notes may change."""
    digest = hashlib.sha256(canonical_json(DATASET.read(folder).get("classes")).encode())
    try:
        with open_regular(folder / "manifest.csv") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        raise _no_table_error(folder / "manifest.csv", error) from error
    return digest.hexdigest()


def _no_table_error(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a table: {error}", remedy="import the data set again")


def _read_class(entry: dict[str, Any]) -> LesionClass:
    if entry["malignancy"] not in MALIGNANCIES:
        raise ValueError(f"malignancy {entry['malignancy']!r} is none of {', '.join(MALIGNANCIES)}")
    return LesionClass(str(entry["name"]), str(entry["diagnosis"]), entry["malignancy"])


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest as text (007 keeps its zeros), width and height as int64.

    "NA" stays text, except in `ID_COLUMNS`: there it would join all images of unknown lesion to one.

    Raises `DataError` if the file is missing or not a table, or a width or height is not an integer.
    """
    try:
        with open_regular(path) as stream:
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _no_table_error(path, error) from error
    for column in INTEGER_COLUMNS:
        if column in frame.columns:
            frame[column] = _parse_integers(frame[column], column, path)
    for column in ID_COLUMNS:
        if column in frame.columns:
            frame[column] = known_ids(frame[column])
    return frame


def _parse_integers(values: "pd.Series[str]", column: str, path: Path) -> "pd.Series[int]":
    invalid = _invalid_positions(lambda value: re.fullmatch("[0-9]{1,9}", value) is not None, values)
    if len(invalid):
        rows = _shorten(f"row {index + 2}: {values.iloc[index]!r}" for index in invalid)
        raise DataError(f"{path}: {column} is not a whole number:\n{rows}", remedy="correct these rows")
    return values.astype(np.int64)


def check_manifest(frame: pd.DataFrame, classes: Sequence[LesionClass], *, source: str = "manifest") -> None:
    """Check every row and the rows against each other; raises one `DataError` that lists all problems.

    source: the file's name, for the message. Rows are numbered as in the CSV: the header is row 1. A lesion id with two
    patients is an error: such ids are unique only within a patient and would merge different patients into one group.
    """
    missing = [column for column in MANIFEST_COLUMNS if column not in frame.columns]
    if missing:
        raise DataError(f"{source}: missing columns: {', '.join(missing)}", remedy="import the data set again")
    if frame.empty:
        raise DataError(f"{source}: has no rows: nothing usable", remedy="import a folder that holds images")
    problems = list(_find_problems(frame, [lesion_class.name for lesion_class in classes]))
    if problems:
        raise DataError(
            f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{_shorten(problems)}",
            outcome="nothing was changed",
            remedy="correct these rows, or import the data set again",
        )


def _find_problems(frame: pd.DataFrame, names: Sequence[str]) -> Iterator[str]:
    if len(set(names)) < len(names) or "" in names:
        yield f"class names are empty or repeat: {', '.join(map(repr, names))}"
    checks: list[tuple[str, str, Callable[[str], bool]]] = [
        ("image_id", "empty image_id", lambda value: value != ""),
        ("path", "not a relative path inside the images", _is_inside),
        ("label", f"unknown label (the classes are {', '.join(names)})", set(names).__contains__),
        ("given_split", "given_split is none of train, validation, test", GIVEN_SPLITS.__contains__),
        ("age", f"age is not a number of years from 0 to {MAX_AGE}", is_age),
        ("pixel_sha256", "not a SHA-256", _is_sha256),
        ("file_sha256", "not a SHA-256", _is_sha256),
    ]
    for column, text, is_valid in checks:
        values = frame[column].astype(str)
        yield from (
            f"row {index + 2}: {text}: {values.iloc[index]!r}" for index in _invalid_positions(is_valid, values)
        )
    for column in ("image_id", "path"):
        repeated_rows = np.flatnonzero(frame[column].duplicated())
        yield from (f"row {index + 2}: {column} repeats: {frame[column].iloc[index]!r}" for index in repeated_rows)
    for column in INTEGER_COLUMNS:
        small_rows = np.flatnonzero(frame[column].to_numpy() < 1)
        yield from (
            f"row {index + 2}: {column} must be at least 1: {frame[column].iloc[index]}" for index in small_rows
        )
    yield from _shared_lesions(frame)


def _invalid_positions(is_valid: Callable[[str], bool], values: "pd.Series[str]") -> NDArray[np.intp]:
    """Return the positions of invalid values; every distinct value is checked once."""
    invalid_values = {value for value in set(values.tolist()) if not is_valid(value)}
    return np.flatnonzero(values.isin(invalid_values)) if invalid_values else np.empty(0, np.intp)


def _is_inside(path: str) -> bool:
    if files.ON_WINDOWS and files.windows_path_problem(path):
        return False
    if path and path[0] not in "/." and ".." not in path and "\0" not in path:
        return True  # nearly every path; parsing it takes a hundred times longer
    components = PurePosixPath(path).parts
    return bool(components) and path[0] != "/" and ".." not in components and "\0" not in path


def is_age(value: str) -> bool:
    """Return whether a text is an age in years up to `MAX_AGE`, or unknown ("")."""
    if value == "":
        return True
    try:
        return 0.0 <= float(value) <= MAX_AGE
    except ValueError:
        return False


def _is_sha256(value: str) -> bool:
    return len(value) == 64 and not value.strip("0123456789abcdef")


def _shared_lesions(frame: pd.DataFrame) -> Iterator[str]:
    ids = frame[["lesion_id", "patient_id"]]
    pairs = ids[(ids["lesion_id"] != "") & (ids["patient_id"] != "")].drop_duplicates()
    shared = pairs[pairs["lesion_id"].duplicated(keep=False)]
    for lesion, patients in shared.groupby("lesion_id")["patient_id"]:
        yield f"lesion {lesion!r} belongs to {len(patients)} patients: {_shorten(map(repr, patients), ', ')}"


def _shorten(lines: Any, separator: str = "\n") -> str:
    """Join the first `_MAX_LISTED` lines, and the number of others."""
    texts = [str(line) for line in lines]
    overflow = [f"... and {len(texts) - _MAX_LISTED} more"] if len(texts) > _MAX_LISTED else []
    indent = "  " if separator == "\n" else ""
    return separator.join(indent + line for line in [*texts[:_MAX_LISTED], *overflow])
