"""An unfinished prediction on disk: what it is, its list of images, and an append-only table of what was scored.

The table is written while the net runs. When the same prediction is started again, the complete batches in it are
taken over and the others are scored. JSON lines are used because a torn line cannot be mistaken for a whole one: it
lacks its closing bracket.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from dermkit.errors import DermkitError, UntrustedError, UsageError
from dermkit.files import file_stat, make_folder, output_errors, read_json, sync_folder, write_chunks, write_json
from dermkit.metrics.stats.arrays import Bools, Floats, Ints
from dermkit.models.training_features import MAX_DISTANCE
from dermkit.prediction.inputs import ImageRef, utf8_safe
from dermkit.prediction.out_of_distribution import is_outside

if TYPE_CHECKING:
    from dermkit.prediction.pixels import ImageScore

PREDICTION_JOB_FORMAT = 4
_MIGRATIONS = {2: lambda job: {**job, "metadata": "", "format": 3}, 3: lambda job: {**job, "format": 4}}
"""Format 2 knew no model with a second input, and 3 none with training features: its rows have no distance."""
JOB_FOLDER = "unfinished"
_SCRATCH_FOLDER = ".unfinished-tmp"
"""A job is created in it and deleted from it, in one rename each; hidden, so that `out` counts as empty meanwhile."""
_OLD_JOB_FOLDER = "parts"
"""Where dermkit 0.1 before format 2 kept an unfinished prediction, in another layout."""
_JOB_FILE, _LIST_FILE, SCORES_FILE = "job.json", "images.jsonl", "scores.jsonl"
SAVE_IMAGES = 4096
_SAVE_SECONDS = 30.0
"""Scores are saved after so many images or seconds, whichever comes first: a killed prediction loses no more."""


class ScoreRow(NamedTuple):
    """One line of the table. position: in the list of images; probabilities: None where it was refused.

    distance: from the training images, and its p value; None where the model cannot tell.
    """

    position: int
    file_stat: str
    probabilities: Sequence[float] | None
    refusal: tuple[str, str]
    notes: Sequence[str]
    training_split: str
    distance: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """The results of N images of K classes, by position in the list of images.

    probabilities: (N, K) float64 as the net gave them, NaN where an image is not scored. is_done: (N,), scored or
    refused. refusals: (reason, detail). notes: what opening the image decided, such as "alpha composited on white".
    training_splits: split of the images that the model's training used. distances: (N, 2) float64, distance from the
    training images and p value, NaN where the model cannot tell.
    """

    probabilities: Floats
    is_done: Bools
    distances: Floats
    refusals: dict[int, tuple[str, str]] = field(default_factory=dict)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    training_splits: dict[int, str] = field(default_factory=dict)

    @property
    def scored(self) -> Ints:
        """Return the positions of the images that have probabilities."""
        return np.flatnonzero(~np.isnan(self.probabilities[:, 0]))

    @property
    def is_outside(self) -> Bools | None:
        """Return which of the scored images lie outside the training distribution; None where that is not known."""
        p_values = self.distances[self.scored, 1]
        if not len(p_values) or np.isnan(p_values).any():
            return None
        return np.asarray(is_outside(p_values), dtype=np.bool_)

    def add(self, row: ScoreRow) -> None:
        """Enter one image."""
        self.is_done[row.position] = True
        if row.probabilities is None:
            self.refusals[row.position] = row.refusal
            return
        self.probabilities[row.position] = row.probabilities
        if row.notes:
            self.notes[row.position] = tuple(row.notes)
        if row.training_split:
            self.training_splits[row.position] = row.training_split
        if row.distance is not None:
            self.distances[row.position] = row.distance


@dataclass(frozen=True)
class PredictionJob:
    """One prediction. Images are scored in batches that begin at multiples of `batch_size` in the list: resumed or
    not, a batch holds the same images and so gives the same bits.
    """

    folder: Path
    images: Sequence[ImageRef]
    class_names: tuple[str, ...]
    batch_size: int

    def read_scores(self) -> tuple[ScoreTable, int]:
        """Return the scores of earlier starts, and how many files changed since they were scored.

        Batches that are incomplete or of which a file changed are dropped, from the table on disk too.
        """
        n_images, n_classes = len(self.images), len(self.class_names)
        table = ScoreTable(
            np.full((n_images, n_classes), np.nan), np.zeros(n_images, dtype=bool), np.full((n_images, 2), np.nan)
        )
        is_current, n_changed = np.zeros(n_images, dtype=bool), 0
        path = self.folder / SCORES_FILE
        if not path.is_file():
            return table, 0
        for row, _ in _read_rows(path, n_images, n_classes):
            is_current[row.position] = row.file_stat == file_stat(Path(self.images[row.position].path))
            n_changed += not is_current[row.position]
        is_retained = _in_complete_batches(is_current, self.batch_size)

        def retained_lines() -> Iterator[str]:
            for row, line in _read_rows(path, n_images, n_classes):
                if is_retained[row.position]:
                    table.add(row)
                    yield line

        write_chunks(path, retained_lines())
        return table, n_changed

    def remove(self) -> None:
        """Delete the job when its results are written; renamed first, so that no half of it is left as a job."""
        scratch = self.folder.with_name(_SCRATCH_FOLDER)
        with output_errors(self.folder):
            self.folder.rename(scratch)
            shutil.rmtree(scratch)


def _read_rows(path: Path, n_images: int, n_classes: int) -> Iterator[tuple[ScoreRow, str]]:
    """Yield (row, line) of the table; lines that are no row of these images, such as a torn one, are skipped."""
    with path.open(encoding="ascii", errors="replace", newline="\n") as stream:
        for line in stream:
            try:
                row = ScoreRow(*json.loads(line))
                is_valid = (
                    type(row.position) is int and 0 <= row.position < n_images and isinstance(row.file_stat, str)
                )
                p = None if row.probabilities is None else np.array(row.probabilities, dtype=np.float64)
                if not is_valid or (p is not None and (p.shape != (n_classes,) or not np.isfinite(p).all())):
                    continue
                reason, detail = map(str, row.refusal)
                row = row._replace(
                    refusal=(reason, detail), notes=[*map(str, row.notes)], distance=_read_distance(row.distance)
                )
            except (ValueError, TypeError):
                continue
            yield row, line


def _read_distance(value: object) -> tuple[float, float] | None:
    """Return a distance and its p value; raises `ValueError` or `TypeError` for what is neither that nor null."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError("a distance is no list")
    distance, p = map(float, value)
    if not (0 <= distance <= MAX_DISTANCE and 0 <= p <= 1):  # false for nan
        raise ValueError("a distance is out of range")
    return distance, p


def _in_complete_batches(is_present: Bools, batch_size: int) -> Bools:
    """Return (N,) whether every image of an image's batch is present."""
    if not len(is_present):
        return is_present
    starts = np.arange(0, len(is_present), batch_size)
    is_complete = np.logical_and.reduceat(is_present, starts)
    return np.asarray(np.repeat(is_complete, batch_size)[: len(is_present)], dtype=bool)


class ScoreWriter:
    """Append scores to the table of a job; what was added is saved on exit, also after an exception or Ctrl-C.

    on_save: told how many images were saved.
    """

    def __init__(self, job: PredictionJob, on_save: Callable[[int], None] = lambda _n: None) -> None:
        self._path, self._batch_size, self._n_images = job.folder / SCORES_FILE, job.batch_size, len(job.images)
        self._on_save = on_save
        self._lines: list[str] = []
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.save()

    def add(self, row: ScoreRow) -> None:
        """Add one image; the file is written at the end of a batch, once there is enough to save."""
        self._lines.append(json.dumps(row) + "\n")
        is_due = len(self._lines) >= SAVE_IMAGES or time.monotonic() - self._saved_at > _SAVE_SECONDS
        if is_due and ((row.position + 1) % self._batch_size == 0 or row.position + 1 == self._n_images):
            self.save()

    def save(self) -> None:
        """Append what was added since the last time; raises `OutputError`."""
        lines, self._lines, self._saved_at = self._lines, [], time.monotonic()
        if not lines:
            return
        with output_errors(self._path), self._path.open("a", encoding="ascii") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
        self._on_save(len(lines))


def score_row(position: int, score: "ImageScore", training_images: Mapping[str, str]) -> ScoreRow:
    """Return one image's row. training_images: pixel hash -> split of the images that the model was trained on.

    Raises `UntrustedError` for probabilities that are not finite: in the table they mean "not scored".
    """
    if score.probabilities is None:
        refusal = score.refusal
        cells = (refusal.reason.value, utf8_safe(refusal.detail)) if refusal else ("", "")
        return ScoreRow(position, score.file_stat, None, cells, (), "")
    if not np.isfinite(score.probabilities).all():
        raise UntrustedError(
            f"{utf8_safe(score.name)}: the model gives probabilities that are not finite (nan or inf)",
            outcome="the image was neither called nor written",
            remedy="copy the model anew, or train it again",
        )
    notes = [utf8_safe(note) for note in score.notes]
    training_split = training_images.get(score.pixel_sha256, "")
    return ScoreRow(
        position, score.file_stat, score.probabilities.tolist(), ("", ""), notes, training_split, score.distance
    )


# Beginning a job, or finding it again ----------------------------------------------------------------------------


def has_unfinished_job(out: Path) -> bool:
    """Return whether a folder holds an unfinished prediction, of this dermkit or an older one."""
    return any((out / name / _JOB_FILE).is_file() for name in (JOB_FOLDER, _OLD_JOB_FOLDER))


def job_progress(out: Path) -> tuple[int, int] | None:
    """Return (images in complete saved batches, images) of an unfinished prediction, None where it cannot be read."""
    folder = out / JOB_FOLDER
    try:
        job_fields = read_json(folder / _JOB_FILE, format=PREDICTION_JOB_FORMAT, migrations=_MIGRATIONS)
        n_images, n_classes = int(job_fields["images"]), len(job_fields["classes"])
        is_saved = np.zeros(n_images, dtype=bool)
        if (folder / SCORES_FILE).is_file():
            for row, _ in _read_rows(folder / SCORES_FILE, n_images, n_classes):
                is_saved[row.position] = True
        return int(_in_complete_batches(is_saved, int(job_fields["batch_size"])).sum()), n_images
    except (DermkitError, OSError, KeyError, TypeError, ValueError):
        return None


def saved_inference_mode(out: Path) -> str:
    """Return what runs the nets in an unfinished prediction; "" where there is none, or its file cannot be read."""
    try:
        job_fields = read_json(out / JOB_FOLDER / _JOB_FILE, format=PREDICTION_JOB_FORMAT, migrations=_MIGRATIONS)
    except DermkitError:
        return ""
    mode = job_fields.get("inference_mode")
    return mode if isinstance(mode, str) else ""


def open_job(
    out: Path,
    images: Sequence[ImageRef],
    identity: Mapping[str, Any],
    *,
    batch_size: int,
    class_names: Sequence[str],
    has_relative_paths: bool,
    restart: bool = False,
) -> PredictionJob:
    """Begin a prediction in `out`, or return the same one that was begun there before.

    identity: JSON values that make it the same: model, device, versions; `recipe` only names the model. Raises
    `UsageError` where another one is unfinished there, unless `restart`. Call it under the folder's lock.
    """
    folder, scratch = out / JOB_FOLDER, out / _SCRATCH_FOLDER
    for leftover in (scratch, *((folder, out / _OLD_JOB_FOLDER) if restart else ())):
        shutil.rmtree(leftover, ignore_errors=True)
    _refuse_old_job(out)
    job_fields = {
        **identity,
        "working_directory": str(Path.cwd()) if has_relative_paths else "",  # from elsewhere they are other files
        "batch_size": batch_size,
        "classes": list(class_names),
        "images": len(images),
    }
    if (folder / _JOB_FILE).is_file():
        _check_same_job(folder, job_fields, images)
    else:
        make_folder(scratch)
        write_chunks(scratch / _LIST_FILE, map(_list_line, images))
        write_json(scratch / _JOB_FILE, job_fields, format=PREDICTION_JOB_FORMAT)
        with output_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
            sync_folder(out)
    return PredictionJob(folder, images, tuple(class_names), batch_size)


def _list_line(image: ImageRef) -> str:
    """Return a JSON line; ASCII, so that a file name that is not UTF-8 reads back as it was."""
    return json.dumps(image) + "\n"


def _refuse_old_job(out: Path) -> None:
    if (out / _OLD_JOB_FOLDER / _JOB_FILE).is_file():
        raise UsageError(
            f"{out / _OLD_JOB_FOLDER}: an unfinished prediction of an older dermkit is there, which this one cannot "
            "continue",
            outcome="all that it has scored",
            remedy="finish it with the dermkit that began it, name a new folder with --out, or drop it with --restart",
        )


def _check_same_job(folder: Path, job_fields: Mapping[str, Any], images: Sequence[ImageRef]) -> None:
    """Raise `UsageError` with the differences where the unfinished prediction is another one."""
    try:
        saved_fields = read_json(folder / _JOB_FILE, format=PREDICTION_JOB_FORMAT, migrations=_MIGRATIONS)
    except DermkitError:
        saved_fields = {}
    differences = [
        f"{name.replace('_', ' ')}: {_field_text(saved_fields, name)} there, {_field_text(job_fields, name)} now"
        for name in job_fields
        if saved_fields.get(name) != job_fields[name] and name != "recipe"
    ]
    list_difference = _list_difference(folder / _LIST_FILE, images)
    if differences or list_difference:
        raise UsageError(
            f"{folder.parent}: an unfinished prediction is there, and it is another one "
            f"({'; '.join([*differences, *list_difference])})",
            outcome="all that it has scored",
            remedy="finish it with its own command in its own working directory, name a new folder with --out, "
            "or drop it with --restart",
        )


def _field_text(job_fields: Mapping[str, Any], name: str) -> str:
    value = job_fields.get(name) or "?"
    is_model = name == "model" and isinstance(value, str)
    return f"{job_fields.get('recipe', '?')} ({value[:12]})" if is_model else str(value)


def _list_difference(list_file: Path, images: Sequence[ImageRef]) -> list[str]:
    """Return the first difference between the saved list of images and this one as a sentence, or none."""
    try:
        with list_file.open(encoding="ascii", errors="replace", newline="\n") as stream:
            for position, (line, image) in enumerate(zip_longest(stream, images), start=1):
                if line is None or image is None or line != _list_line(image):
                    saved_path = "nothing" if line is None else utf8_safe(str(json.loads(line)[2]))
                    path = "nothing" if image is None else utf8_safe(image.path)
                    return [f"image {position}: {saved_path} there, {path} now"]
    except (OSError, ValueError, TypeError, IndexError):
        return ["its list of images cannot be read"]
    return []
