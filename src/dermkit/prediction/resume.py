"""A prediction that is not finished yet: its list of images and its finished parts, in a folder inside the output.

A part is one table, written whole or not at all: every image of a stretch of the list, scored or refused, with the
size and time of change that its file had. What was killed goes on with the stretches that have no part.
"""

import csv
import json
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermkit.errors import DermkitError, UsageError
from dermkit.files import make_folder, output_errors, read_json, sha256_file, sync_folder, write_json, write_rows
from dermkit.prediction.inputs import Found, file_stat, read_list, shown, write_list

if TYPE_CHECKING:
    from dermkit.prediction.pixels import Scored

FORMAT = 1
FOLDER = "parts"
_NEW, _OLD = ".parts-new", ".parts-old"  # hidden, so that a folder with nothing else in it is an empty one
_LIST = "images.jsonl"
_JOB = "job.json"
PART_IMAGES = 4096
PART_SECONDS = 30.0
"""A part ends with whichever comes first: what is lost when a prediction is killed."""
_BEFORE = ("name", "image_id", "path", "predicted")
_AFTER = ("reason", "detail", "notes", "seen", "stat")


@dataclass(frozen=True)
class Row:
    """One image in a part. cells: its row of predictions.csv, as text; refusal: (reason, detail), empty if scored."""

    name: str
    path: str
    predicted: str
    probabilities: tuple[str, ...]
    image_id: str
    refusal: tuple[str, str]
    notes: tuple[str, ...]
    seen: str
    stat: str


def is_unfinished(out: Path) -> bool:
    """Tell whether a folder holds a prediction that was not finished."""
    return (out / FOLDER / _JOB).is_file()


def progress(out: Path) -> tuple[int, int] | None:
    """Return (images scored or refused, images) of a folder's unfinished prediction, None where none can be read."""
    try:
        facts = read_json(out / FOLDER / _JOB, format=FORMAT)
        job = Job(out / FOLDER, int(facts["images"]), int(facts["batch_size"]), tuple(facts["classes"]))
        return job.n - sum(end - start for start, end in job.gaps()), job.n
    except (DermkitError, OSError, KeyError, TypeError, ValueError, csv.Error):
        return None


@dataclass(frozen=True)
class Job:
    """One prediction: n images, scored in batches that begin at multiples of `batch_size`."""

    folder: Path
    n: int
    batch_size: int
    class_names: tuple[str, ...]

    @property
    def _header(self) -> tuple[str, ...]:
        return (*_BEFORE, *(f"p_{name}" for name in self.class_names), *_AFTER)

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[Found]:
        """Yield the images at positions start to stop of the list."""
        return read_list(self.folder / _LIST, start, stop)

    def gaps(self) -> list[tuple[int, int]]:
        """Return the stretches of the list that have no part: (start, end)."""
        ends = [(start, start + rows) for start, rows in sorted(self._parts().items())]
        edges = [0, *(edge for part in ends for edge in part), self.n]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def _parts(self) -> dict[int, int]:
        """Return start -> number of images of every part."""
        starts = (int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.csv"))
        return {start: sum(1 for _ in self._cells(start)) for start in starts}

    def drop_stale(self) -> int:
        """Remove the parts of which a file is not as it was when it was read; returns how many such files there are.

        A part that is no table of these images is removed as well.
        """
        stale = 0
        for path in sorted(self.folder.glob("part-*.csv")):
            changed = self._changed(path)
            stale += max(changed, 0)
            if changed:
                path.unlink()
        return stale

    def _changed(self, path: Path) -> int:
        """Return how many images of a part have another file now, -1 where it is not a part of this list."""
        try:
            start = int(path.stem.removeprefix("part-"))
            table = list(self._cells(start))
        except (ValueError, csv.Error):
            return -1
        changed = 0
        for cells, image in zip_longest(table, self.images(start, start + len(table))):
            if image is None or len(cells) != len(self._header) or cells[1] != shown(image.image_id):
                return -1
            changed += cells[-1] != file_stat(Path(image.path))
        return changed if table else -1

    def write(
        self,
        start: int,
        end: int,
        scored: Iterable["Scored"],
        seen: Mapping[str, str],
        on_part: Callable[[int], None] = lambda _rows: None,
    ) -> Generator[int, None, None]:
        """Write a stretch as parts; yields the position behind each image that was scored or refused.

        An interrupt leaves the whole batches that were scored before it in a last part. on_part: told the number of
        images of each part when it is on disk.
        """
        rows: list[tuple[object, ...]] = []
        began, first = time.monotonic(), start
        try:
            for image, item in zip(self.images(start, end), scored, strict=True):
                rows.append(self._row(image, item, seen))
                full = len(rows) >= PART_IMAGES or time.monotonic() - began > PART_SECONDS
                if full and len(rows) % self.batch_size == 0:
                    self._write_part(first, rows)
                    on_part(len(rows))
                    first, rows, began = first + len(rows), [], time.monotonic()
                yield first + len(rows)
        finally:
            whole = len(rows) if first + len(rows) == end else len(rows) // self.batch_size * self.batch_size
            if whole:
                self._write_part(first, rows[:whole])
                on_part(whole)

    def _write_part(self, start: int, rows: Sequence[tuple[object, ...]]) -> None:
        write_rows(self._path(start), self._header, rows)

    def _path(self, start: int) -> Path:
        return self.folder / f"part-{start:08d}.csv"

    def _row(self, image: Found, item: "Scored", seen: Mapping[str, str]) -> tuple[object, ...]:
        named = tuple(map(shown, image))
        if item.probabilities is None:
            nothing = [""] * len(self.class_names)
            refusal = (item.refusal.reason.value, shown(item.refusal.detail)) if item.refusal else ("", "")
            return (*named, "", *nothing, *refusal, "[]", "", item.stat)
        predicted = self.class_names[int(item.probabilities.argmax())]
        notes = json.dumps([shown(note) for note in item.notes])
        side = seen.get(item.pixel_sha256, "")
        return (*named, predicted, *map(float, item.probabilities), "", "", notes, side, item.stat)

    def _cells(self, start: int) -> Iterator[list[str]]:
        """Yield the rows of a part, none where its header is not ours."""
        with self._path(start).open(newline="", encoding="utf-8") as stream:
            table = csv.reader(stream)
            if next(table, None) == list(self._header):
                yield from table

    def rows(self) -> Iterator[Row]:
        """Yield every image of the list that has a part, in order, read from disk one by one."""
        width = len(self.class_names)
        for start in sorted(self._parts()):
            for cells in self._cells(start):
                name, image_id, path, predicted = cells[:4]
                reason, detail, notes, seen, stat = cells[4 + width :]
                yield Row(
                    name, path, predicted, tuple(cells[4 : 4 + width]), image_id,
                    (reason, detail), tuple(json.loads(notes)), seen, stat,
                )  # fmt: skip

    def remove(self) -> None:
        """Remove the parts, when all that they held is in the output: in one step, so that no half of it remains."""
        old = self.folder.with_name(_OLD)
        with output_errors(self.folder):
            self.folder.rename(old)
            shutil.rmtree(old)


def open_job(
    out: Path,
    arguments: Sequence[str],
    facts: Mapping[str, Any],
    *,
    batch_size: int,
    class_names: Sequence[str],
    leave_out: Sequence[Path] = (),
    restart: bool = False,
) -> Job:
    """List the images and begin a prediction in `out`, or return the same one that was begun there before.

    facts: plain JSON values that make it the same: the model, the device, the versions; `recipe` only names the
    model. Raises `UsageError` where another one is unfinished there, unless `restart`. Call it under the folder's lock.
    """
    folder, new = out / FOLDER, out / _NEW
    for left in (new, out / _OLD, *([folder] if restart else [])):
        shutil.rmtree(left, ignore_errors=True)
    make_folder(new)
    n = write_list(new / _LIST, arguments, leave_out=leave_out)
    relative = any(not Path(argument).is_absolute() for argument in arguments)  # from elsewhere: other files
    mine = {**facts, "working_directory": str(Path.cwd()) if relative else "", "batch_size": batch_size,
            "classes": list(class_names), "images": n, "list_sha256": sha256_file(new / _LIST)}  # fmt: skip
    if is_unfinished(out):
        _check_same(folder, new, mine)
        shutil.rmtree(new)
    else:
        write_json(new / _JOB, mine, format=FORMAT)
        with output_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
            sync_folder(out)
    return Job(folder, n, batch_size, tuple(class_names))


def _check_same(folder: Path, new: Path, mine: Mapping[str, Any]) -> None:
    try:
        there = read_json(folder / _JOB, format=FORMAT)
    except DermkitError:
        there = {}
    others = [name for name in mine if there.get(name) != mine[name] and name not in ("list_sha256", "recipe")]
    differ = [f"{name.replace('_', ' ')}: {_fact(there, name)} there, {_fact(mine, name)} now" for name in others]
    if there.get("list_sha256") != mine["list_sha256"]:
        differ.append(_first_difference(folder / _LIST, new / _LIST))
    if differ:
        shutil.rmtree(new)
        raise UsageError(
            f"{folder.parent}: an unfinished prediction is there, and it is another one ({'; '.join(differ)})",
            kept="all that it has scored",
            remedy="finish it with its own command in its own working directory, name a new folder with --out, "
            "or drop it with --restart",
        )


def _fact(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name) or "?"
    return (
        f"{facts.get('recipe', '?')} ({value[:12]})" if name == "model" and isinstance(value, str) else str(value)
    )


def _first_difference(there: Path, here: Path) -> str:
    pairs = zip_longest(_quiet(there), read_list(here))
    for number, (old, new) in enumerate(pairs, start=1):
        if old != new:
            named = [shown(item.path) if item else "nothing" for item in (old, new)]
            return f"image {number}: {named[0]} there, {named[1]} now"
    return "the list of images"


def _quiet(file: Path) -> Iterator[Found]:
    """Yield a list as far as it can be read."""
    try:
        yield from islice(read_list(file), None)
    except (OSError, ValueError, TypeError):
        return
