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
from dermkit.prediction.inputs import ImageRef, file_stat, read_list, utf8_safe, write_list

if TYPE_CHECKING:
    from dermkit.prediction.pixels import ImageScore

PREDICTION_JOB_FORMAT = 1
SHARD_FOLDER = "parts"
_NEW_FOLDER, _OLD_FOLDER = (
    ".parts-new",
    ".parts-old",
)  # hidden, so that a folder with nothing else in it is an empty one
_LIST_FILE = "images.jsonl"
_JOB_FILE = "job.json"
SHARD_IMAGES = 4096
_SHARD_SECONDS = 30.0
"""A part ends with whichever comes first: what is lost when a prediction is killed."""
_LEADING_COLUMNS = ("name", "image_id", "path", "predicted")
_TRAILING_COLUMNS = ("reason", "detail", "notes", "seen", "stat")


@dataclass(frozen=True)
class ShardRow:
    """One image in a part. cells: its row of predictions.csv, as text; refusal: (reason, detail), empty if scored."""

    name: str
    path: str
    predicted: str
    probabilities: tuple[str, ...]
    image_id: str
    refusal: tuple[str, str]
    notes: tuple[str, ...]
    training_split: str
    stat_text: str


def has_unfinished_job(out: Path) -> bool:
    """Tell whether a folder holds a prediction that was not finished."""
    return (out / SHARD_FOLDER / _JOB_FILE).is_file()


def job_progress(out: Path) -> tuple[int, int] | None:
    """Return (images scored or refused, images) of a folder's unfinished prediction, None where none can be read."""
    try:
        job_fields = read_json(out / SHARD_FOLDER / _JOB_FILE, format=PREDICTION_JOB_FORMAT)
        job = PredictionJob(
            out / SHARD_FOLDER,
            int(job_fields["images"]),
            int(job_fields["batch_size"]),
            tuple(job_fields["classes"]),
        )
        return job.n_images - sum(end - start for start, end in job.gaps()), job.n_images
    except (DermkitError, OSError, KeyError, TypeError, ValueError, csv.Error):
        return None


@dataclass(frozen=True)
class PredictionJob:
    """One prediction: n images, scored in batches that begin at multiples of `batch_size`."""

    folder: Path
    n_images: int
    batch_size: int
    class_names: tuple[str, ...]

    @property
    def _header(self) -> tuple[str, ...]:
        return (*_LEADING_COLUMNS, *(f"p_{name}" for name in self.class_names), *_TRAILING_COLUMNS)

    def images(self, start: int = 0, stop: int | None = None) -> Iterator[ImageRef]:
        """Yield the images at positions start to stop of the list."""
        return read_list(self.folder / _LIST_FILE, start, stop)

    def gaps(self) -> list[tuple[int, int]]:
        """Return the stretches of the list that have no part: (start, end)."""
        spans = [(start, start + rows) for start, rows in sorted(self._shards().items())]
        edges = [0, *(edge for span in spans for edge in span), self.n_images]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def _shards(self) -> dict[int, int]:
        """Return start -> number of images of every part."""
        starts = (int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.csv"))
        return {start: sum(1 for _ in self._read_cells(start)) for start in starts}

    def drop_stale(self) -> int:
        """Remove the parts of which a file is not as it was when it was read; returns how many such files there are.

        A part that is no table of these images is removed as well.
        """
        n_stale = 0
        for path in sorted(self.folder.glob("part-*.csv")):
            n_changed = self._count_changed(path)
            n_stale += max(n_changed, 0)
            if n_changed:
                path.unlink()
        return n_stale

    def _count_changed(self, path: Path) -> int:
        """Return how many images of a part have another file now, -1 where it is not a part of this list."""
        try:
            start = int(path.stem.removeprefix("part-"))
            rows = list(self._read_cells(start))
        except (ValueError, csv.Error):
            return -1
        n_changed = 0
        for cells, image in zip_longest(rows, self.images(start, start + len(rows))):
            if image is None or len(cells) != len(self._header) or cells[1] != utf8_safe(image.image_id):
                return -1
            n_changed += cells[-1] != file_stat(Path(image.path))
        return n_changed if rows else -1

    def write(
        self,
        start: int,
        end: int,
        scores: Iterable["ImageScore"],
        training_images: Mapping[str, str],
        on_shard: Callable[[int], None] = lambda _rows: None,
    ) -> Generator[int, None, None]:
        """Write a stretch as parts; yields the position behind each image that was scored or refused.

        An interrupt leaves the whole batches that were scored before it in a last part. on_part: told the number of
        images of each part when it is on disk.
        """
        rows: list[tuple[object, ...]] = []
        start_time, shard_start = time.monotonic(), start
        try:
            for image, score in zip(self.images(start, end), scores, strict=True):
                rows.append(self._shard_cells(image, score, training_images))
                is_full = len(rows) >= SHARD_IMAGES or time.monotonic() - start_time > _SHARD_SECONDS
                if is_full and len(rows) % self.batch_size == 0:
                    self._write_shard(shard_start, rows)
                    on_shard(len(rows))
                    shard_start, rows, start_time = shard_start + len(rows), [], time.monotonic()
                yield shard_start + len(rows)
        finally:
            n_complete = (
                len(rows) if shard_start + len(rows) == end else len(rows) // self.batch_size * self.batch_size
            )
            if n_complete:
                self._write_shard(shard_start, rows[:n_complete])
                on_shard(n_complete)

    def _write_shard(self, start: int, rows: Sequence[tuple[object, ...]]) -> None:
        write_rows(self._shard_path(start), self._header, rows)

    def _shard_path(self, start: int) -> Path:
        return self.folder / f"part-{start:08d}.csv"

    def _shard_cells(
        self, image: ImageRef, score: "ImageScore", training_images: Mapping[str, str]
    ) -> tuple[object, ...]:
        reference_cells = tuple(map(utf8_safe, image))
        if score.probabilities is None:
            empty_cells = [""] * len(self.class_names)
            refusal = (score.refusal.reason.value, utf8_safe(score.refusal.detail)) if score.refusal else ("", "")
            return (*reference_cells, "", *empty_cells, *refusal, "[]", "", score.stat_text)
        predicted = self.class_names[int(score.probabilities.argmax())]
        notes = json.dumps([utf8_safe(note) for note in score.notes])
        training_split = training_images.get(score.pixel_sha256, "")
        return (
            *reference_cells,
            predicted,
            *map(float, score.probabilities),
            "",
            "",
            notes,
            training_split,
            score.stat_text,
        )

    def _read_cells(self, start: int) -> Iterator[list[str]]:
        """Yield the rows of a part, none where its header is not ours."""
        with self._shard_path(start).open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            if next(reader, None) == list(self._header):
                yield from reader

    def rows(self) -> Iterator[ShardRow]:
        """Yield every image of the list that has a part, in order, read from disk one by one."""
        n_classes = len(self.class_names)
        for start in sorted(self._shards()):
            for cells in self._read_cells(start):
                name, image_id, path, predicted = cells[:4]
                reason, detail, notes, training_split, stat_text = cells[4 + n_classes :]
                yield ShardRow(
                    name, path, predicted, tuple(cells[4 : 4 + n_classes]), image_id,
                    (reason, detail), tuple(json.loads(notes)), training_split, stat_text,
                )  # fmt: skip

    def remove(self) -> None:
        """Remove the parts, when all that they held is in the output: in one step, so that no half of it remains."""
        old_folder = self.folder.with_name(_OLD_FOLDER)
        with output_errors(self.folder):
            self.folder.rename(old_folder)
            shutil.rmtree(old_folder)


def open_job(
    out: Path,
    arguments: Sequence[str],
    identity: Mapping[str, Any],
    *,
    batch_size: int,
    class_names: Sequence[str],
    exclude: Sequence[Path] = (),
    restart: bool = False,
) -> PredictionJob:
    """List the images and begin a prediction in `out`, or return the same one that was begun there before.

    facts: plain JSON values that make it the same: the model, the device, the versions; `recipe` only names the
    model. Raises `UsageError` where another one is unfinished there, unless `restart`. Call it under the folder's lock.
    """
    folder, new_folder = out / SHARD_FOLDER, out / _NEW_FOLDER
    for leftover in (new_folder, out / _OLD_FOLDER, *([folder] if restart else [])):
        shutil.rmtree(leftover, ignore_errors=True)
    make_folder(new_folder)
    n_images = write_list(new_folder / _LIST_FILE, arguments, exclude=exclude)
    has_relative = any(not Path(argument).is_absolute() for argument in arguments)  # from elsewhere: other files
    job_fields = {
        **identity,
        "working_directory": str(Path.cwd()) if has_relative else "",
        "batch_size": batch_size,
        "classes": list(class_names),
        "images": n_images,
        "list_sha256": sha256_file(new_folder / _LIST_FILE),
    }
    if has_unfinished_job(out):
        _check_same_job(folder, new_folder, job_fields)
        shutil.rmtree(new_folder)
    else:
        write_json(new_folder / _JOB_FILE, job_fields, format=PREDICTION_JOB_FORMAT)
        with output_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            new_folder.rename(folder)
            sync_folder(out)
    return PredictionJob(folder, n_images, batch_size, tuple(class_names))


def _check_same_job(folder: Path, new_folder: Path, job_fields: Mapping[str, Any]) -> None:
    try:
        saved_fields = read_json(folder / _JOB_FILE, format=PREDICTION_JOB_FORMAT)
    except DermkitError:
        saved_fields = {}
    changed_names = [
        name
        for name in job_fields
        if saved_fields.get(name) != job_fields[name] and name not in ("list_sha256", "recipe")
    ]
    differences = [
        f"{name.replace('_', ' ')}: {_field_text(saved_fields, name)} there, {_field_text(job_fields, name)} now"
        for name in changed_names
    ]
    if saved_fields.get("list_sha256") != job_fields["list_sha256"]:
        differences.append(_first_difference(folder / _LIST_FILE, new_folder / _LIST_FILE))
    if differences:
        shutil.rmtree(new_folder)
        raise UsageError(
            f"{folder.parent}: an unfinished prediction is there, and it is another one ({'; '.join(differences)})",
            outcome="all that it has scored",
            remedy="finish it with its own command in its own working directory, name a new folder with --out, "
            "or drop it with --restart",
        )


def _field_text(job_fields: Mapping[str, Any], name: str) -> str:
    value = job_fields.get(name) or "?"
    return (
        f"{job_fields.get('recipe', '?')} ({value[:12]})"
        if name == "model" and isinstance(value, str)
        else str(value)
    )


def _first_difference(saved_list: Path, new_list: Path) -> str:
    pairs = zip_longest(_read_list_safely(saved_list), read_list(new_list))
    for position, (saved_image, new_image) in enumerate(pairs, start=1):
        if saved_image != new_image:
            path_texts = [utf8_safe(image.path) if image else "nothing" for image in (saved_image, new_image)]
            return f"image {position}: {path_texts[0]} there, {path_texts[1]} now"
    return "the list of images"


def _read_list_safely(file: Path) -> Iterator[ImageRef]:
    """Yield a list as far as it can be read."""
    try:
        yield from islice(read_list(file), None)
    except (OSError, ValueError, TypeError):
        return
