"""New images -> predictions.csv, decided.csv and picture sheets; what cannot be read is listed, the rest is scored.

Nothing is held that grows with the number of images: they are listed, scored in parts and put together on disk. A
prediction that was stopped goes on when the same command is given again.
"""

import csv
import errno
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, OutputError, RejectionReason, RunInterrupt
from dermkit.files import check_output, check_writable, lock, sha256_file, sweep_temp, write_chunks, write_rows
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.models.locate import check_model_folder
from dermkit.prediction import decisions
from dermkit.prediction.decisions import DecisionCounts
from dermkit.prediction.inputs import ImageRef, check_arguments
from dermkit.prediction.resume import (
    SHARD_FOLDER,
    PredictionJob,
    ShardRow,
    has_unfinished_job,
    job_progress,
    open_job,
)
from dermkit.progress import Progress
from dermkit.render import sheets as render_sheets
from dermkit.runs.predictions import write_predictions
from dermkit.threads import cpu_count, ordered_map

if TYPE_CHECKING:
    from dermkit.metrics.decisions.apply import ActivePolicy
    from dermkit.prediction.pixels import ImageScore, PixelStore
    from dermkit.prediction.predictor import Predictor

PREDICT_JSON_FORMAT = 2
_TILES_PER_SHEET = 48
_MAX_SHEETS = 5
"""Pictures for the first 240 images; every image is in predictions.csv."""
_TILE_SIZE = 160


@dataclass(frozen=True)
class PredictOutcome:
    """What became of the images, counted; the lists are read from the output when they are asked for.

    decided: None where the model settled nothing on its validation images.
    """

    out: Path
    n_scored: int
    n_rejected: int
    n_notes: int
    n_training_images: int
    decision_counts: DecisionCounts | None = None

    @property
    def rejected_images(self) -> list[tuple[str, str, str]]:
        """Return (name, reason, detail) of the images that were not scored."""
        return list(_read_rejected(self.out))

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Return (name, note) of what the gate decided on the way."""
        return [(entry["image"], entry["note"]) for entry in self._read_predict_json()["notes"]]

    @property
    def training_images(self) -> list[tuple[str, str]]:
        """Return (name, split) of the images that the model's training looked at."""
        return [(entry["image"], entry["split"]) for entry in self._read_predict_json()["seen_in_training"]]

    def _read_predict_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads((self.out / "predict.json").read_text(encoding="utf-8"))
        return fields


def _read_rejected(out: Path) -> Iterator[tuple[str, str, str]]:
    with (out / "refused.csv").open(newline="", encoding="utf-8") as stream:
        for row in islice(csv.reader(stream), 1, None):
            yield row[0], row[1], row[2]


def predict(
    model: Path,
    images: Sequence[str],
    *,
    out: Path,
    batch_size: int | None = None,
    workers: int = 0,
    cache: Path | None = None,
    device: str = "auto",
    restart: bool = False,
    target: str | None = None,
    coverage: float | None = None,
    progress: Progress | None = None,
) -> PredictOutcome:
    """Score images with a model folder; writes predictions.csv, decided.csv, refused.csv, predict.json, sheet-*.png.

    Goes on where the same prediction was stopped before, unless `restart`. batch_size: images per forward pass, None
    = as the device likes it. workers: threads, 0 = all cores. cache: a folder that keeps the resized pixels. at: the
    operating point that says positive, such as "sensitivity=.95". refer: share of images to answer, the others are
    referred. Raises `UntrustedError` for the model, `UsageError` where another prediction is unfinished in `out` or
    `target` or `coverage` was not settled, `DataError` where no image could be read, `Interrupted` on Ctrl-C,
    wherever it comes.
    """
    options = PredictOptions(target, coverage)
    with _naming_saved_work(out):
        return _predict(
            model, images, out, batch_size, workers, cache, device, restart, options, progress or Progress()
        )


@dataclass(frozen=True)
class PredictOptions:
    """What of the settled things is to answer: an operating point, and the share of images to answer."""

    target: str | None
    coverage: float | None


@contextmanager
def _naming_saved_work(out: Path) -> Iterator[None]:
    """Name what is on disk where a prediction is interrupted or its device is full."""
    try:
        yield
    except KeyboardInterrupt:
        counts = job_progress(out)
        raise RunInterrupt(
            f"interrupted: {counts[0]} of {counts[1]} images are scored or refused" if counts else "interrupted",
            outcome=f"they are in {out / SHARD_FOLDER}" if counts else f"what was whole in {out}",
            remedy="give the same command again to go on" if counts else "give the same command again",
        ) from None
    except OutputError as error:
        counts, cause = job_progress(out), error.__cause__
        if counts is None or not isinstance(cause, OSError) or isinstance(cause, BlockingIOError):
            raise
        is_disk_full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OutputError(
            error.message,
            outcome=f"{counts[0]} of {counts[1]} images, scored or refused, in {out / SHARD_FOLDER}",
            remedy=f"{'free space' if is_disk_full else error.remedy}, then the same command again",
        ) from cause


def _predict(
    model: Path,
    images: Sequence[str],
    out: Path,
    batch_size: int | None,
    workers: int,
    cache: Path | None,
    device: str,
    restart: bool,
    options: PredictOptions,
    progress: Progress,
) -> PredictOutcome:
    from dermkit.prediction.pixels import PixelStore
    from dermkit.prediction.predictor import load_model

    check_model_folder(model)
    workers = workers or cpu_count()
    exclude = [out, *([cache] if cache else [])]
    check_arguments(images, exclude=exclude)
    if not has_unfinished_job(out):
        check_output(out, marker="predict.json", description="a folder of predictions")
    predictor = load_model(model, device=device, progress=progress.say)
    policy = predictor.select_policy(target=options.target, coverage=options.coverage)
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        job = open_job(
            out, images, _job_identity(predictor), batch_size=batch_size or predictor.batch_size,
            class_names=predictor.class_names, exclude=exclude, restart=restart,
        )  # fmt: skip
        pixel_store = PixelStore(cache, predictor.preprocessing) if cache else None
        thumbnails = _score_gaps(job, predictor, workers, pixel_store, progress)
        outcome = _write_output(job, predictor, policy, out, thumbnails, workers)
        job.remove()
    if not outcome.n_scored:
        _raise_all_rejected(job.n_images, out)
    return outcome


def _job_identity(predictor: "Predictor") -> dict[str, Any]:
    """Return what decides the figures beside the images; a stopped prediction goes on only with the same."""
    from dermkit.prediction.predictor import runtime_versions

    return {
        "model": sha256_file(predictor.folder / CHECKSUM_FILE),
        "recipe": predictor.card["recipe"].get("name") or "unnamed",
        "device": predictor.engine.device.type,
        "net": predictor.engine.net_variant,
        "versions": runtime_versions(),
    }


def _score_gaps(
    job: PredictionJob, predictor: "Predictor", workers: int, pixel_store: "PixelStore | None", progress: Progress
) -> dict[str, NDArray[np.uint8]]:
    """Score what has no part yet; returns name -> thumbnail of the first images, as far as they were decoded here."""
    from dermkit.prediction.predictor import read_training_images

    gaps = _find_gaps(job, progress)
    training_images = read_training_images(predictor.folder)
    thumbnails: dict[str, NDArray[np.uint8]] = {}
    n_done = n_written = job.n_images - sum(end - start for start, end in gaps)

    def on_shard(n_rows: int) -> None:
        nonlocal n_written
        n_written += n_rows
        if progress.step is Progress.step:  # no bar is shown: a log would stay silent for hours
            progress.say(f"{n_written} of {job.n_images} images scored or refused")

    for start, end in gaps:
        scores = _score_span(job, predictor, workers, pixel_store, (start, end), thumbnails)
        with closing(scores), closing(job.write(start, end, scores, training_images, on_shard)) as positions:
            for _ in positions:
                n_done += 1
                if n_done % job.batch_size == 0 or n_done == job.n_images:
                    progress.step("scoring", n_done, job.n_images)
    return thumbnails


def _find_gaps(job: PredictionJob, progress: Progress) -> list[tuple[int, int]]:
    """Return the stretches to score, and say what an earlier start of the same prediction left."""
    n_stale = job.drop_stale()
    if n_stale:
        progress.say(f"{n_stale} files changed since they were scored; their parts are scored again")
    gaps = job.gaps()
    n_done = job.n_images - sum(end - start for start, end in gaps)
    if n_done:
        progress.say(f"going on: {n_done} of {job.n_images} images were scored or refused before")
    return gaps


def _score_span(
    job: PredictionJob,
    predictor: "Predictor",
    workers: int,
    pixel_store: "PixelStore | None",
    span: tuple[int, int],
    thumbnails: dict[str, NDArray[np.uint8]],
) -> Generator["ImageScore", None, None]:
    """Yield the images of a stretch; thumbnails are put aside for the sheets."""
    n_thumbnails = max(0, _TILES_PER_SHEET * _MAX_SHEETS - span[0])
    files = ((image.name, Path(image.path)) for image in job.images(*span))
    scores = predictor.score_files(
        files, batch_size=job.batch_size, workers=workers, n_thumbnails=n_thumbnails, pixel_store=pixel_store
    )
    with closing(scores):
        for score in scores:
            if score.thumbnail is not None:
                thumbnails[score.name] = score.thumbnail
            yield score


# The output -------------------------------------------------------------------------------------------------------


def _write_output(
    job: PredictionJob,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    out: Path,
    thumbnails: Mapping[str, NDArray[np.uint8]],
    workers: int,
) -> PredictOutcome:
    """Put the parts together, row by row: sheets first, as they take longest, and predict.json last.

    While the parts are there, whatever of this was written is written again by the next start.
    """
    tiles = _tiles(job, predictor, policy, thumbnails, workers)
    sheets = _write_sheets(out, tiles, decisions.sheet_legend(policy), workers)
    counts = {"scored": 0, "refused": 0, "notes": 0, "seen": 0}

    def prediction_rows() -> Iterator[tuple[object, ...]]:
        for row in job.rows():
            counts["scored" if row.predicted else "refused"] += 1
            counts["notes"] += len(row.notes)
            counts["seen"] += bool(row.training_split)
            if row.predicted:
                yield (row.image_id, row.path, "", "", "", "", row.predicted, *row.probabilities)

    write_predictions(out / "predictions.csv", job.class_names, prediction_rows())
    n_present = counts["scored"] + counts["refused"]  # notes and seen are counted of the same images
    if n_present != job.n_images:
        raise DataError(f"{job.folder}: {n_present} of {job.n_images} images", remedy="give the command again")
    rejected_rows = ((row.name, *row.refusal) for row in job.rows() if not row.predicted)
    write_rows(out / "refused.csv", ("path", "reason", "detail"), rejected_rows if counts["refused"] else ())
    decision_counts = _write_decisions(job, policy, predictor.classes, out)
    outcome = PredictOutcome(
        out, counts["scored"], counts["refused"], counts["notes"], counts["seen"], decision_counts
    )
    _write_predict_json(outcome, job, predictor, policy, sheets)
    return outcome


def _write_decisions(
    job: PredictionJob, policy: "ActivePolicy | None", classes: Sequence[LesionClass], out: Path
) -> DecisionCounts | None:
    """Write decided.csv, or remove that of an earlier prediction where the model settled nothing."""
    if policy is None:
        (out / decisions.DECISIONS_FILE).unlink(missing_ok=True)
        return None
    rows = ((row.image_id, row.path, row.probabilities) for row in job.rows() if row.predicted)
    return decisions.write_decisions(out / decisions.DECISIONS_FILE, policy, classes, rows)


def _raise_all_rejected(n_images: int, out: Path) -> None:
    all_missing = all(reason == RejectionReason.MISSING for _, reason, _ in _read_rejected(out))
    raise DataError(
        f"none of {n_images} images could be read; first: {', '.join(next(_read_rejected(out)))}",
        outcome=f"{out / 'refused.csv'} lists each with its reason",
        remedy="check the path" if all_missing else "give JPEG, PNG, WebP, BMP or TIFF photographs",
    )


def _tiles(
    job: PredictionJob,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    thumbnails: Mapping[str, NDArray[np.uint8]],
    workers: int,
) -> list[render_sheets.Tile]:
    """Return the tiles of the first images that were scored; what has no thumbnail here is opened for it."""
    from dermkit.prediction.pixels import file_thumbnail

    pairs = (pair for pair in zip(job.rows(), job.images(), strict=True) if pair[0].predicted)

    def make_tile(pair: tuple[ShardRow, ImageRef]) -> render_sheets.Tile:
        row, image = pair
        thumbnail = thumbnails.get(image.name)
        return _make_tile(
            row, predictor.classes, policy, file_thumbnail(Path(image.path)) if thumbnail is None else thumbnail
        )

    return list(ordered_map(make_tile, islice(pairs, _TILES_PER_SHEET * _MAX_SHEETS), n_threads=workers))


def _make_tile(
    row: ShardRow,
    classes: Sequence[LesionClass],
    policy: "ActivePolicy | None",
    thumbnail: NDArray[np.uint8] | None,
) -> render_sheets.Tile:
    lines, colour = decisions.tile_caption(policy, classes, row.probabilities)
    pixels = thumbnail if thumbnail is not None else np.zeros((8, 8, 3), np.uint8)
    return render_sheets.Tile(pixels, "\n".join([PurePosixPath(row.name).name, *lines]), colour)


def _write_sheets(out: Path, tiles: Sequence[render_sheets.Tile], legend: str, workers: int) -> list[str]:
    def write_sheet(start: int) -> str:
        name = f"sheet-{start // _TILES_PER_SHEET + 1}.png"
        sheet_tiles = tiles[start : start + _TILES_PER_SHEET]
        title = (
            f"Predictions, images {start + 1} to {start + len(sheet_tiles)}. Research use only. Not "
            f"a medical device."
        )
        sheet = render_sheets.contact_sheet(sheet_tiles, columns=6, edge=_TILE_SIZE, title=title, note=legend)
        render_sheets.save_png(sheet, out / name)
        return name

    names = list(ordered_map(write_sheet, range(0, len(tiles), _TILES_PER_SHEET), n_threads=workers))
    for sheet in out.glob("sheet-*.png"):  # of an earlier prediction: there may be fewer now
        if sheet.name not in names:
            sheet.unlink()
    return names


def _write_predict_json(
    outcome: PredictOutcome,
    job: PredictionJob,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    sheets: Sequence[str],
) -> None:
    fields = {
        "format": PREDICT_JSON_FORMAT,
        "model_sha256": predictor.sha256,
        "recipe": predictor.card["recipe"].get("name"),
        "classes": list(predictor.class_names),
        "scored": outcome.n_scored,
        "refused": outcome.n_rejected,
        "sheets": list(sheets),
        "notice": "Research use only. Not a medical device.",
        "device": predictor.engine.device.type,
        "batch_size": min(job.batch_size, predictor.engine.max_batch_size),
        "net": predictor.engine.net_variant,
        "decision": decisions.describe_policy(policy, predictor.classes, outcome.decision_counts),
    }
    notes = ({"image": row.name, "note": note} for row in job.rows() for note in row.notes)
    training_images = (
        {"image": row.name, "split": row.training_split} for row in job.rows() if row.training_split
    )
    lists = {
        "notes": notes if outcome.n_notes else (),
        "seen_in_training": training_images if outcome.n_training_images else (),
    }
    write_chunks(outcome.out / "predict.json", _json_pieces(fields, lists))


def _json_pieces(fields: dict[str, Any], lists: Mapping[str, Iterable[Mapping[str, str]]]) -> Iterator[str]:
    """Yield a JSON object in pieces: its lists are as long as the list of images, and never lie in memory."""
    yield json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False)[:-2]
    for name, entries in lists.items():
        yield f',\n "{name}": ['
        for index, entry in enumerate(entries):
            yield ("," if index else "") + "\n  " + json.dumps(entry, ensure_ascii=False)
        yield "]"
    yield "\n}\n"
