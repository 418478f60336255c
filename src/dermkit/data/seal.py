"""The seal of a test split: its images, and a log of every time that they were scored, in a file beside the split.

A test split that models are selected on is a second validation split. NAME.seal.json lists every sealed image with its
label and the hash of its pixels, and one opening for each time that some of them were scored. It is a record, not a
lock: whoever may write to the folder may delete it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.folds import fold_numbers, has_test_beside_folds
from dermkit.data.split_file import SPLITS
from dermkit.errors import DataError, UsageError
from dermkit.files import canonical_json, lock, read_json, sha256_bytes, write_json

SEAL_FORMAT = 2
SEAL_SUFFIX = ".seal.json"
SEAL_COLUMNS = ("image_id", "label", "pixel_sha256")
_MAX_LISTED = 5
LOCK_SECONDS = 30.0
"""Seconds to wait for another process that writes an opening."""

PARTIAL_OVERLAP_PREFIX = "Sealed test images"
"""Prefix of a run's warning about sealed images in another split; a report shows it as serious."""

SealedRow = tuple[str, ...]


@dataclass(frozen=True)
class Opening:
    """One time that sealed images were scored, on disk before the first of them is. n: number of those images.

    opened_by: `--open-test`, `--on`, `--predictions`, or `split NAME` for a training whose test split held some.
    finished: whether what can be evaluated was written; an opening that did not finish counts all the same.
    """

    date: str
    opened_by: str
    recipe: str
    run: str
    model_sha256: str
    dermkit: str
    commit: str
    n: int
    finished: bool = False


@dataclass(frozen=True)
class Seal:
    """A sealed test split. name: of the split; date: ISO, UTC; rows: (image_id, label, pixel_sha256), sorted."""

    name: str
    date: str
    rows: tuple[SealedRow, ...]
    openings: tuple[Opening, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the sealed rows."""
        return sha256_bytes(canonical_json(self.rows).encode())

    def summary(self) -> dict[str, Any]:
        """Return what a run's copy holds: all but the rows."""
        return {
            "name": self.name, "date": self.date, "sha256": self.sha256, "n": len(self.rows),
            "openings": [asdict(opening) for opening in self.openings],
        }  # fmt: skip


@dataclass(frozen=True)
class PartialOverlap:
    """Number of sealed images of another split in train, validation and test here, by id or by identical pixels."""

    seal: Seal
    counts: dict[str, int]

    def sentence(self) -> str:
        """Return the warning for the reader of the run's metrics."""
        split_counts = [f"{n} on the {split_name} side" for split_name, n in self.counts.items() if n]
        consequences = {
            "train": "the model has learned from them",
            "validation": "decisions were taken on them",
            "test": "scoring them counts as an opening of that seal",
        }
        consequence_text = "; ".join(f"{consequences[split_name]}" for split_name, n in self.counts.items() if n)
        return (
            f"{PARTIAL_OVERLAP_PREFIX} of split {self.seal.name} ({len(self.seal.rows)} images, sealed "
            f"{self.seal.date[:10]}) lie on "
            f"the sides of the split used here: {', '.join(split_counts)}. So {consequence_text}. On "
            f"that test side, no figure of this "
            "model, or of one chosen by what was learned here, is that of an untouched test."
        )


def utc_now() -> str:
    """Return the time as it is logged: ISO, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sealed_rows(manifest: pd.DataFrame, image_ids: Iterable[str]) -> tuple[SealedRow, ...]:
    """Return the rows of a seal of these images; images that the manifest lacks are left out."""
    selected = manifest[manifest["image_id"].isin(set(image_ids))]
    return tuple(
        sorted(tuple(map(str, row)) for row in selected[list(SEAL_COLUMNS)].itertuples(index=False, name=None))
    )


def test_image_ids(frame: pd.DataFrame) -> list[str]:
    """Return the test images of a split's rows (image_id, split), sorted."""
    return sorted(frame.loc[frame["split"] == "test", "image_id"].tolist())


# Files ------------------------------------------------------------------------------------------------------------


def seal_path(folder: Path, name: str) -> Path:
    """Return the path of a split's seal; folder: the data set's `splits/`."""
    return folder / f"{name}{SEAL_SUFFIX}"


def read_seal(path: Path) -> Seal:
    """Read a seal; raises `DataError` for one that is broken, of an unknown format, or not as it was written."""
    try:
        seal_json = read_json(path, format=SEAL_FORMAT, error=DataError, migrations={1: _from_format_1})
        openings = tuple(Opening(**entry) for entry in seal_json["openings"])
        rows = tuple(tuple(str(cell) for cell in row) for row in seal_json["rows"])
        seal = Seal(str(seal_json["name"]), str(seal_json["date"]), rows, openings)
        is_intact = (
            bool(rows)
            and all(len(row) == len(SEAL_COLUMNS) for row in rows)
            and seal_json["sha256"] == seal.sha256
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise _broken_seal(path, f"is not a seal: {error!r}") from error
    if not is_intact:
        raise _broken_seal(path, "its rows are not those of its hash")
    if seal.name != path.name.removesuffix(SEAL_SUFFIX):
        raise _broken_seal(path, f"is the seal of split {seal.name}")
    return seal


def _from_format_1(seal_json: dict[str, Any]) -> dict[str, Any]:
    """Return a seal with `opened_by` in each of its openings in place of `how`."""
    openings = [
        {"opened_by" if key == "how" else key: value for key, value in opening.items()}
        for opening in seal_json["openings"]
    ]
    return {**seal_json, "openings": openings, "format": 2}


def _broken_seal(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: {problem}", outcome="nothing was scored", remedy="restore the file as it was written"
    )


def read_seals(folder: Path) -> list[Seal]:
    """Return every seal of a data set's `splits/` folder, by name; raises `DataError` where one cannot be read."""
    return [read_seal(path) for path in sorted(folder.glob(f"*{SEAL_SUFFIX}"))]


def _write_seal(folder: Path, seal: Seal) -> None:
    path = seal_path(folder, seal.name)
    seal_json = {
        "name": seal.name, "date": seal.date, "sha256": seal.sha256, "n": len(seal.rows),
        "openings": [asdict(opening) for opening in seal.openings], "rows": [list(row) for row in seal.rows],
    }  # fmt: skip
    write_json(path, seal_json, format=SEAL_FORMAT)


# Sealing ----------------------------------------------------------------------------------------------------------


def check_sealed_split(folder: Path, name: str, frame: pd.DataFrame, manifest: pd.DataFrame) -> None:
    """Raise if a sealed split of this name has other test images than `frame`.

    `UsageError` for other images, `DataError` where label or pixels of a sealed image changed.
    """
    path = seal_path(folder, name)
    if not path.exists():
        return
    seal, ids = read_seal(path), test_image_ids(frame)
    if [row[0] for row in seal.rows] != ids:
        raise UsageError(
            f"{path}: split {name} is sealed, and its test side is another one: {_difference_text(seal, ids)}",
            outcome="the split and its seal",
            remedy="give this split another name; a sealed test side is not exchanged",
        )
    _check_rows(seal, manifest, path)


def check_sealable(name: str, frame: pd.DataFrame) -> None:
    """Raise `UsageError` for k folds of all images, and for a split without test images."""
    if fold_numbers(frame) and not has_test_beside_folds(frame):
        raise UsageError(
            f"split {name}: k folds cannot be sealed, since every image is a test image of its fold",
            outcome="nothing was written",
            remedy="seal a split of scheme given or holdout; folds beside published test images are --scheme given "
            "--folds 5",
        )
    if not test_image_ids(frame):
        raise UsageError(
            f"split {name}: has no test images to seal",
            outcome="nothing was written",
            remedy="divide with --test above 0",
        )


def seal_split(folder: Path, name: str, frame: pd.DataFrame, manifest: pd.DataFrame) -> Seal:
    """Seal the test split, or return the seal that its images already have, under whichever name.

    folder: the data set's `splits/`. Raises `UsageError` for k folds of all images and for a split without test images.
    """
    check_sealable(name, frame)
    rows = sealed_rows(manifest, test_image_ids(frame))
    with lock(folder, timeout=LOCK_SECONDS):
        check_sealed_split(folder, name, frame, manifest)
        existing_seal = next((seal for seal in read_seals(folder) if seal.rows == rows), None)
        if existing_seal is None:
            existing_seal = Seal(name, utc_now(), rows)
            _write_seal(folder, existing_seal)
    return existing_seal


# Finding seals ----------------------------------------------------------------------------------------------------


def find_seal(folder: Path, manifest: pd.DataFrame, frame: pd.DataFrame) -> Seal | None:
    """Return the seal of the test images of `frame` (image_id, split), under whichever name; None if they have none.

    Raises `DataError` where label or pixels of one of them changed since they were sealed.
    """
    ids = test_image_ids(frame)
    for seal in read_seals(folder):
        if [row[0] for row in seal.rows] == ids:
            _check_rows(seal, manifest, seal_path(folder, seal.name))
            return seal
    return None


def find_partial_overlaps(folder: Path, manifest: pd.DataFrame, frame: pd.DataFrame) -> list[PartialOverlap]:
    """Return the seals of other splits that have images in this one. frame: image_id, split."""
    own_seal = find_seal(folder, manifest, frame)
    pixels = dict(zip(manifest["image_id"], manifest["pixel_sha256"], strict=True))
    images_by_split = {
        split_name: [(name, pixels.get(name, "")) for name in frame.loc[frame["split"] == split_name, "image_id"]]
        for split_name in SPLITS
    }
    overlaps = []
    for seal in read_seals(folder):
        if own_seal is not None and seal.name == own_seal.name:
            continue
        ids, sealed_pixels = {row[0] for row in seal.rows}, {row[2] for row in seal.rows} - {""}
        counts = {
            split_name: sum(name in ids or pixel_hash in sealed_pixels for name, pixel_hash in images)
            for split_name, images in images_by_split.items()
        }
        if any(counts.values()):
            overlaps.append(PartialOverlap(seal, counts))
    return overlaps


def find_seals_of_images(
    folder: Path, manifest: pd.DataFrame, image_ids: Iterable[str]
) -> list[tuple[Seal, tuple[SealedRow, ...]]]:
    """Return the seals that some of these images are under, by id or by identical pixels, with the sealed rows."""
    requested_ids = set(image_ids)
    pixels = set(manifest.loc[manifest["image_id"].isin(requested_ids), "pixel_sha256"]) - {""}
    matches = [
        (seal, tuple(row for row in seal.rows if row[0] in requested_ids or row[2] in pixels))
        for seal in read_seals(folder)
    ]
    return [(seal, rows) for seal, rows in matches if rows]


def check_sealed_unchanged(
    folder: Path, manifest: pd.DataFrame, seals_with_rows: Iterable[tuple[Seal, Sequence[SealedRow]]]
) -> None:
    """Raise `DataError` where label or pixels of an image that is about to be scored are not those sealed.

    A sealed image that is listed under another id now is compared by its pixels. A duplicate beside the original id may
    have another label: it did when the seal was made.
    """
    for seal, rows in seals_with_rows:
        present_rows = sealed_rows(manifest, [row[0] for row in rows])
        present_ids = {row[0] for row in present_rows}
        row_by_pixels = {row[2]: row for row in rows if row[0] not in present_ids}
        same_pixel_rows = manifest.loc[
            manifest["pixel_sha256"].isin(set(row_by_pixels)), list(SEAL_COLUMNS)
        ].astype(str)
        labels = dict(zip(same_pixel_rows["pixel_sha256"], same_pixel_rows["label"], strict=True))
        current_rows = [
            *present_rows,
            *((row[0], labels[pixels], pixels) for pixels, row in row_by_pixels.items()),
        ]
        _raise_for_changes(seal, rows, current_rows, seal_path(folder, seal.name))


def _check_rows(seal: Seal, manifest: pd.DataFrame, path: Path) -> None:
    """Raise `DataError` that lists the sealed images that changed."""
    _raise_for_changes(seal, seal.rows, sealed_rows(manifest, [row[0] for row in seal.rows]), path)


def _raise_for_changes(
    seal: Seal, rows: Sequence[SealedRow], current_rows: Iterable[SealedRow], path: Path
) -> None:
    row_by_id = {row[0]: row for row in current_rows}
    missing_ids = [row[0] for row in rows if row[0] not in row_by_id]
    row_pairs = [(row, row_by_id[row[0]]) for row in rows if row[0] in row_by_id]
    changes = {
        "not in the manifest any more": missing_ids,
        "with another label": [
            sealed_row[0] for sealed_row, current_row in row_pairs if sealed_row[1] != current_row[1]
        ],
        "with other pixels": [
            sealed_row[0] for sealed_row, current_row in row_pairs if sealed_row[2] != current_row[2]
        ],
    }
    problem_texts = [
        f"{len(names)} {problem} ({_first_names(names)})" for problem, names in changes.items() if names
    ]
    if problem_texts:
        raise DataError(
            f"{path}: the test images are not what was sealed on {seal.date[:10]}: {'; '.join(problem_texts)}",
            outcome="the seal; nothing was scored and no opening was logged",
            remedy="restore the images and labels that were sealed, or make and seal a split of another name",
        )


def _difference_text(seal: Seal, ids: Sequence[str]) -> str:
    sealed_ids, split_ids = {row[0] for row in seal.rows}, set(ids)
    missing_ids, new_ids = sorted(sealed_ids - split_ids), sorted(split_ids - sealed_ids)
    clauses = (
        [f"{len(missing_ids)} sealed images are not in it ({_first_names(missing_ids)})"] if missing_ids else []
    )
    return "; ".join(clauses + ([f"{len(new_ids)} are new ({_first_names(new_ids)})"] if new_ids else []))


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")


# Openings ---------------------------------------------------------------------------------------------------------


@contextmanager
def log_opening(path: Path, opening: Opening) -> Iterator[Seal]:
    """Log an opening in the seal at `path` before the block, and mark it as finished after it.

    Yields the seal with the opening as its last one. After an exception it stays unfinished, and it counts. Raises
    `DataError` where the seal is broken or has lost the opening meanwhile.
    """
    yield _update_seal(path, lambda seal: replace(seal, openings=(*seal.openings, opening)))
    _update_seal(path, lambda seal: _with_finished(seal, opening))


def _with_finished(seal: Seal, opening: Opening) -> Seal:
    """Return the seal with the last one of its openings that equals `opening` marked as finished."""
    matches = [i for i, logged in enumerate(seal.openings) if replace(logged, finished=False) == opening]
    if not matches:
        raise DataError(
            f"split {seal.name}: its seal lost an opening of {opening.date}", remedy="restore the seal"
        )
    openings = list(seal.openings)
    openings[matches[-1]] = replace(opening, finished=True)
    return replace(seal, openings=tuple(openings))


def _update_seal(path: Path, update: Callable[[Seal], Seal]) -> Seal:
    with lock(path.parent, timeout=LOCK_SECONDS):
        seal = update(read_seal(path))
        _write_seal(path.parent, seal)
    return seal


def check_opening_log(seal: Seal, run_openings: Sequence[dict[str, Any]], path: Path) -> None:
    """Raise `DataError` for a seal without an opening that a run knows of: an older file was put in its place.

    run_openings: the openings in the run's own copy of the seal.
    """
    known_openings = [replace(Opening(**entry), finished=False) for entry in run_openings]
    if known_openings != [replace(entry, finished=False) for entry in seal.openings[: len(known_openings)]]:
        raise DataError(
            f"{path}: {len(seal.openings)} openings are logged, but not all {len(known_openings)} that "
            f"this run knows of",
            outcome="nothing was scored",
            remedy="restore the newest version of the seal",
        )
