"""The seal of a test side: which images it is, and who has looked at it, in a file beside the split.

A test side that everybody looks at again and again is a validation side. NAME.seal.json names every sealed image with
its label and the hash of its pixels, and has one entry for each time that sealed images were scored. It is a record,
not a safe: whoever may write the folder may delete it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.errors import DataError, UsageError
from dermkit.files import canonical_json, lock, read_json, sha256_bytes, write_json

FORMAT = 1
ENDING = ".seal.json"
COLUMNS = ("image_id", "label", "pixel_sha256")
SIDES = ("train", "validation", "test")
LISTED = 5
WAIT = 30.0
"""Seconds to wait for another process that writes an opening; it needs a moment."""

MEETING = "Sealed test images"
"""How a run's warning begins that tells of sealed images on the sides of another split; a report calls it serious."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Opening:
    """One time that sealed images were scored, written before it began. n: sealed images that it was about.

    how: `--open-test`, `--on`, `--predictions`, or the split through which a training scored them. finished: whether
    the scoring came to its end; one that did not counts all the same.
    """

    date: str
    how: str
    recipe: str
    run: str
    model_sha256: str
    dermkit: str
    commit: str
    n: int
    finished: bool = False


@dataclass(frozen=True)
class Seal:
    """name: of the split that was sealed. date: ISO, UTC. rows: (image_id, label, pixel_sha256), sorted."""

    name: str
    date: str
    rows: tuple[Row, ...]
    openings: tuple[Opening, ...] = ()

    @property
    def sha256(self) -> str:
        """The hash of the sealed rows."""
        return sha256_bytes(canonical_json(self.rows).encode())

    def facts(self) -> dict[str, Any]:
        """Return what a run keeps of it: all but the rows."""
        return {
            "name": self.name, "date": self.date, "sha256": self.sha256, "n": len(self.rows),
            "openings": [asdict(item) for item in self.openings],
        }  # fmt: skip


@dataclass(frozen=True)
class Meeting:
    """How many sealed images of another split lie on each side of this one, by id or by identical pixels."""

    seal: Seal
    counts: dict[str, int]

    def sentence(self) -> str:
        """Return what a reader of the run's figures has to know."""
        places = [f"{n} on the {side} side" for side, n in self.counts.items() if n]
        ends = {
            "train": "the model has learned from them",
            "validation": "decisions were taken on them",
            "test": "scoring them counts as an opening of that seal",
        }
        said = "; ".join(f"{ends[side]}" for side, n in self.counts.items() if n)
        return (
            f"{MEETING} of split {self.seal.name} ({len(self.seal.rows)} images, sealed {self.seal.date[:10]}) lie on "
            f"the sides of the split used here: {', '.join(places)}. So {said}. On that test side, no figure of this "
            "model, or of one chosen by what was learned here, is that of an untouched test."
        )


def now() -> str:
    """Return the time as it is logged: ISO, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def rows_of(manifest: pd.DataFrame, image_ids: Iterable[str]) -> tuple[Row, ...]:
    """Return what a seal is taken of, for these images; those that the manifest lacks are left out."""
    chosen = manifest[manifest["image_id"].isin(set(image_ids))]
    return tuple(sorted(tuple(map(str, row)) for row in chosen[list(COLUMNS)].itertuples(index=False, name=None)))


def ids_of_test(frame: pd.DataFrame) -> list[str]:
    """Return the test images of a split's rows (image_id, split), sorted."""
    return sorted(frame.loc[frame["split"] == "test", "image_id"].tolist())


# Files ------------------------------------------------------------------------------------------------------------


def seal_path(folder: Path, name: str) -> Path:
    """Return where the seal of a split lies; folder: the data set's `splits/`."""
    return folder / f"{name}{ENDING}"


def read_seal(path: Path) -> Seal:
    """Read a seal; raises `DataError` for one that is broken, of an unknown format, or not as it was written."""
    body = read_json(path, format=FORMAT, error=DataError)
    try:
        openings = tuple(Opening(**item) for item in body["openings"])
        rows = tuple(tuple(str(cell) for cell in row) for row in body["rows"])
        seal = Seal(str(body["name"]), str(body["date"]), rows, openings)
        whole = bool(rows) and all(len(row) == len(COLUMNS) for row in rows) and body["sha256"] == seal.sha256
    except (KeyError, TypeError) as error:
        raise _broken(path, f"is not a seal: {error!r}") from error
    if not whole:
        raise _broken(path, "its rows are not those of its hash")
    if seal.name != path.name.removesuffix(ENDING):
        raise _broken(path, f"is the seal of split {seal.name}")
    return seal


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}", kept="nothing was scored", remedy="restore the file as it was written")


def read_seals(folder: Path) -> list[Seal]:
    """Return every seal of a data set's `splits/` folder, by name; raises `DataError` where one cannot be read."""
    return [read_seal(path) for path in sorted(folder.glob(f"*{ENDING}"))]


def _write(folder: Path, seal: Seal) -> None:
    path = seal_path(folder, seal.name)
    body = {
        "name": seal.name, "date": seal.date, "sha256": seal.sha256, "n": len(seal.rows),
        "openings": [asdict(item) for item in seal.openings], "rows": [list(row) for row in seal.rows],
    }  # fmt: skip
    write_json(path, body, format=FORMAT)


# Sealing ----------------------------------------------------------------------------------------------------------


def check_kept(folder: Path, name: str, frame: pd.DataFrame, manifest: pd.DataFrame) -> None:
    """Refuse a split under the name of a sealed one whose test rows are others.

    Raises `DataError` where label or pixels of a sealed image changed, `UsageError` where it is another division.
    """
    path = seal_path(folder, name)
    if not path.exists():
        return
    seal, ids = read_seal(path), ids_of_test(frame)
    if [row[0] for row in seal.rows] != ids:
        raise UsageError(
            f"{path}: split {name} is sealed, and its test side is another one: {_difference(seal, ids)}",
            kept="the split and its seal",
            remedy="give this split another name; a sealed test side is not exchanged",
        )
    _check_rows(seal, manifest, path)


def check_sealable(name: str, frame: pd.DataFrame) -> None:
    """Raise `UsageError` for k folds, and for a split without test images."""
    if (frame["split"] == "fold").any():
        raise UsageError(
            f"split {name}: k folds cannot be sealed, since every image is a test image of its fold",
            kept="nothing was written",
            remedy="seal a split of scheme given or holdout",
        )
    if not ids_of_test(frame):
        raise UsageError(
            f"split {name}: has no test images to seal",
            kept="nothing was written",
            remedy="divide with --test above 0",
        )


def seal_split(folder: Path, name: str, frame: pd.DataFrame, manifest: pd.DataFrame) -> Seal:
    """Seal the test side of a split, or return the seal that its test rows have already, under whichever name.

    folder: the data set's `splits/`. Raises `UsageError` for k folds and for a split without test images.
    """
    check_sealable(name, frame)
    rows = rows_of(manifest, ids_of_test(frame))
    with lock(folder, wait=WAIT):
        check_kept(folder, name, frame, manifest)
        known = next((seal for seal in read_seals(folder) if seal.rows == rows), None)
        if known is None:
            known = Seal(name, now(), rows)
            _write(folder, known)
    return known


# Meeting seals ----------------------------------------------------------------------------------------------------


def find_seal(folder: Path, manifest: pd.DataFrame, frame: pd.DataFrame) -> Seal | None:
    """Return the seal that the test side of these rows (image_id, split) has, under whichever name.

    Raises `DataError` where the images are the sealed ones, but a label or the pixels of one are not.
    """
    ids = ids_of_test(frame)
    for seal in read_seals(folder):
        if [row[0] for row in seal.rows] == ids:
            _check_rows(seal, manifest, seal_path(folder, seal.name))
            return seal
    return None


def find_meetings(folder: Path, manifest: pd.DataFrame, frame: pd.DataFrame) -> list[Meeting]:
    """Return the seals some of whose images lie on a side of these rows, but for the one of this very test side."""
    own = find_seal(folder, manifest, frame)
    pixels = dict(zip(manifest["image_id"], manifest["pixel_sha256"], strict=True))
    sides = {
        side: [(name, pixels.get(name, "")) for name in frame.loc[frame["split"] == side, "image_id"]]
        for side in SIDES
    }
    found = []
    for seal in read_seals(folder):
        if own is not None and seal.name == own.name:
            continue
        ids, shown = {row[0] for row in seal.rows}, {row[2] for row in seal.rows} - {""}
        counts = {
            side: sum(name in ids or shows in shown for name, shows in images) for side, images in sides.items()
        }
        if any(counts.values()):
            found.append(Meeting(seal, counts))
    return found


def find_looks(
    folder: Path, manifest: pd.DataFrame, image_ids: Iterable[str]
) -> list[tuple[Seal, tuple[Row, ...]]]:
    """Return the seals that some of these images are of, by id or by identical pixels, with the rows that they show."""
    asked = set(image_ids)
    pixels = set(manifest.loc[manifest["image_id"].isin(asked), "pixel_sha256"]) - {""}
    found = [
        (seal, tuple(row for row in seal.rows if row[0] in asked or row[2] in pixels))
        for seal in read_seals(folder)
    ]
    return [(seal, rows) for seal, rows in found if rows]


def check_looks(folder: Path, manifest: pd.DataFrame, looks: Iterable[tuple[Seal, Sequence[Row]]]) -> None:
    """Raise `DataError` where label or pixels of an image that is about to be looked at are not those sealed.

    A sealed image that stands under another id now is compared by its pixels. Beside its own id such a copy may have a
    label of its own: so it was when the seal was made.
    """
    for seal, rows in looks:
        present = rows_of(manifest, [row[0] for row in rows])
        here = {row[0] for row in present}
        moved = {row[2]: row for row in rows if row[0] not in here}
        shown = manifest.loc[manifest["pixel_sha256"].isin(set(moved)), list(COLUMNS)].astype(str)
        labels = dict(zip(shown["pixel_sha256"], shown["label"], strict=True))
        now_there = [*present, *((row[0], labels[pixels], pixels) for pixels, row in moved.items())]
        _refuse_changes(seal, rows, now_there, seal_path(folder, seal.name))


def _check_rows(seal: Seal, manifest: pd.DataFrame, path: Path) -> None:
    """Raise `DataError` that names what changed of the sealed images."""
    _refuse_changes(seal, seal.rows, rows_of(manifest, [row[0] for row in seal.rows]), path)


def _refuse_changes(seal: Seal, rows: Sequence[Row], found: Iterable[Row], path: Path) -> None:
    present = {row[0]: row for row in found}
    gone = [row[0] for row in rows if row[0] not in present]
    both = [(row, present[row[0]]) for row in rows if row[0] in present]
    changes = {
        "not in the manifest any more": gone,
        "with another label": [old[0] for old, new in both if old[1] != new[1]],
        "with other pixels": [old[0] for old, new in both if old[2] != new[2]],
    }
    said = [f"{len(names)} {what} ({_some(names)})" for what, names in changes.items() if names]
    if said:
        raise DataError(
            f"{path}: the test images are not what was sealed on {seal.date[:10]}: {'; '.join(said)}",
            kept="the seal; nothing was scored and no opening was logged",
            remedy="restore the images and labels that were sealed, or make and seal a split of another name",
        )


def _difference(seal: Seal, ids: Sequence[str]) -> str:
    sealed, given = {row[0] for row in seal.rows}, set(ids)
    lost, new = sorted(sealed - given), sorted(given - sealed)
    said = [f"{len(lost)} sealed images are not in it ({_some(lost)})"] if lost else []
    return "; ".join(said + ([f"{len(new)} are new ({_some(new)})"] if new else []))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


# Openings ---------------------------------------------------------------------------------------------------------


def log_opening(folder: Path, name: str, opening: Opening) -> Seal:
    """Add an opening to a seal, on disk before this returns; returns the seal with it as the last one."""
    return _change(folder, name, lambda seal: replace(seal, openings=(*seal.openings, opening)))


def end_opening(folder: Path, name: str, opening: Opening) -> Seal:
    """Note that the scoring of an opening, as it was logged, came to its end."""

    def ended(seal: Seal) -> Seal:
        at = number_of(seal, opening) - 1
        done = replace(opening, finished=True)
        return replace(seal, openings=(*seal.openings[:at], done, *seal.openings[at + 1 :]))

    return _change(folder, name, ended)


def number_of(seal: Seal, opening: Opening) -> int:
    """Return which opening of a seal this is, from 1; the last of equals. Raises `DataError` where it is not logged."""
    same = [at for at, item in enumerate(seal.openings, start=1) if replace(item, finished=False) == opening]
    if not same:
        raise DataError(
            f"split {seal.name}: its seal lost an opening of {opening.date}", remedy="restore the seal"
        )
    return same[-1]


def _change(folder: Path, name: str, change: Callable[[Seal], Seal]) -> Seal:
    with lock(folder, wait=WAIT):
        seal = change(read_seal(seal_path(folder, name)))
        _write(folder, seal)
    return seal


def check_log(seal: Seal, kept: Sequence[dict[str, Any]], path: Path) -> None:
    """Refuse a seal that lacks an opening which a run knows of: somebody put an older file in its place.

    kept: the openings as the run copied them.
    """
    known = [replace(Opening(**item), finished=False) for item in kept]
    if known != [replace(item, finished=False) for item in seal.openings[: len(known)]]:
        raise DataError(
            f"{path}: {len(seal.openings)} openings are logged, but not all {len(known)} that this run knows of",
            kept="nothing was scored",
            remedy="restore the newest version of the seal",
        )
