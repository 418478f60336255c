"""New images -> predictions.csv, decisions.csv and picture sheets; unreadable images are listed, the others are scored.

The list of images and their probabilities are held in memory and saved in the folder while the net runs: a prediction
that was stopped goes on when the same command is given again.
"""

import csv
import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import DataError, OutputError, RejectionReason, ResourceError, RunInterrupt, out_of_memory
from dermkit.files import (
    check_output,
    check_writable,
    lock,
    read_json,
    sha256_file,
    sweep_temp,
    write_json,
    write_rows,
)
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import ENSEMBLE_FIELD, is_tested_ensemble
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.prediction import decisions
from dermkit.prediction.decisions import DecisionCounts
from dermkit.prediction.inputs import find_images, utf8_safe
from dermkit.prediction.locate import check_model_folder
from dermkit.prediction.resume import (
    JOB_FOLDER,
    PredictionJob,
    ScoreTable,
    ScoreWriter,
    has_unfinished_job,
    job_progress,
    open_job,
    score_row,
)
from dermkit.progress import Progress
from dermkit.render import sheets as render_sheets
from dermkit.render.cells import defused, undefused
from dermkit.runs.layout import PREDICTIONS_FILE
from dermkit.runs.predictions import write_predictions
from dermkit.threads import cpu_count, ordered_map

if TYPE_CHECKING:
    from dermkit.metrics.decisions.apply import ActivePolicy
    from dermkit.prediction.predictor import Predictor

PREDICT_JSON_FORMAT = 3
_PREDICT_FILE, _REFUSED_FILE = "predict.json", "refused.csv"
_TILES_PER_SHEET = 48
_MAX_SHEETS = 5
"""Pictures of the first 240 images; every image is in predictions.csv."""
_TILE_SIZE = 160
_Thumbnails = dict[int, NDArray[np.uint8]]
"""Position in the list of images -> (H, W, 3) uint8."""


@dataclass(frozen=True)
class PredictOutcome:
    """Counts of scored and refused images; the lists are read from the output folder on demand.

    decision_counts: None where the model has no decision policy.
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
        """Return (name, note) of what opening an image decided, such as "alpha composited on white"."""
        return [(entry["image"], entry["note"]) for entry in self._read_predict_json()["notes"]]

    @property
    def training_images(self) -> list[tuple[str, str]]:
        """Return (name, split) of the images that the model's training used."""
        return [(entry["image"], entry["split"]) for entry in self._read_predict_json()["training_images"]]

    def _read_predict_json(self) -> dict[str, Any]:
        return read_json(self.out / _PREDICT_FILE, format=PREDICT_JSON_FORMAT)


@dataclass(frozen=True)
class PredictOptions:
    """How images are scored; `predict` says what each option means."""

    batch_size: int | None
    workers: int
    cache: Path | None
    device: str
    restart: bool
    target: str | None
    coverage: float | None
    raw: bool = False


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
    raw: bool = False,
    progress: Progress | None = None,
) -> PredictOutcome:
    """Score images with a model folder: predictions.csv, decisions.csv, refused.csv, predict.json, sheet-*.png.

    Continues the same prediction where it was stopped before, unless `restart`. images: files, folders, patterns.
    batch_size: images per forward pass, None = by the device. workers: threads, 0 = all cores. cache: a folder that
    stores the resized pixels. device: auto, cpu or cuda. target: the operating point that decides positive, such as
    "sensitivity=.95". coverage: fraction of images to answer, the others are referred. raw: names that a spreadsheet
    would compute stay as they are.

    Raises `UntrustedError` for the model, `UsageError` where another prediction is unfinished in `out` or the policy
    has no such target or coverage, `DataError` where no image could be read, `RunInterrupt` on Ctrl-C at any moment.
    """
    options = PredictOptions(batch_size, workers or cpu_count(), cache, device, restart, target, coverage, raw)
    with _naming_saved_work(out):
        return _predict(model, images, out, options, progress or Progress())


@contextmanager
def _naming_saved_work(out: Path) -> Iterator[None]:
    """Say what is on disk where a prediction is interrupted or its device is full."""
    try:
        yield
    except KeyboardInterrupt:
        counts = job_progress(out)
        raise RunInterrupt(
            f"interrupted: {counts[0]} of {counts[1]} images are scored or refused" if counts else "interrupted",
            outcome=f"they are in {out / JOB_FOLDER}" if counts else f"the earlier files in {out}",
            remedy="give the same command again to go on" if counts else "give the same command again",
        ) from None
    except MemoryError as error:
        raise _with_saved_work(out_of_memory("the prediction"), out) from error
    except ResourceError as error:
        raise _with_saved_work(error, out) from error
    except OutputError as error:
        counts, cause = job_progress(out), error.__cause__
        if counts is None or not isinstance(cause, OSError) or isinstance(cause, BlockingIOError):
            raise
        is_disk_full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OutputError(
            error.message,
            outcome=f"{counts[0]} of {counts[1]} images, scored or refused, in {out / JOB_FOLDER}",
            remedy=f"{'free space' if is_disk_full else error.remedy}, then the same command again",
        ) from cause


def _with_saved_work(error: ResourceError, out: Path) -> ResourceError:
    """Return the error with what a prediction has saved."""
    counts = job_progress(out)
    outcome = (
        f"{counts[0]} of {counts[1]} images, scored or refused, in {out / JOB_FOLDER}" if counts else error.outcome
    )
    return ResourceError(error.message, outcome=outcome, remedy=error.remedy)


def _predict(
    model: Path, images: Sequence[str], out: Path, options: PredictOptions, progress: Progress
) -> PredictOutcome:
    from dermkit.prediction.predictor import load_model

    check_model_folder(model)
    image_list = find_images(images, exclude=[out, *([options.cache] if options.cache else [])])
    if not has_unfinished_job(out):
        check_output(out, marker=_PREDICT_FILE, description="a folder of predictions")
    predictor = load_model(model, device=options.device, progress=progress)
    policy = predictor.select_policy(target=options.target, coverage=options.coverage)
    for sentence in decisions.broken_sentences(policy) if policy else ():
        progress.say(f"warning: {sentence}")
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        job = open_job(
            out, image_list, _job_identity(predictor), batch_size=options.batch_size or predictor.batch_size,
            class_names=predictor.class_names, restart=options.restart,
            has_relative_paths=any(not Path(argument).is_absolute() for argument in images),
        )  # fmt: skip
        scores, thumbnails = _score_missing(job, predictor, options, progress)
        outcome = _write_output(job, scores, predictor, policy, thumbnails, options.workers, is_raw=options.raw)
        job.remove()
    if not outcome.n_scored:
        _raise_all_rejected(len(image_list), out)
    return outcome


def _job_identity(predictor: "Predictor") -> dict[str, Any]:
    """Return what decides the numbers besides the images; a stopped prediction continues only with the same."""
    from dermkit.prediction.predictor import runtime_versions

    return {
        "model": sha256_file(predictor.folder / CHECKSUM_FILE),
        "recipe": predictor.card["recipe"].get("name") or "unnamed",
        "device": predictor.engine.device.type,
        "inference_mode": predictor.engine.net_variant,
        "versions": runtime_versions(),
    }


def _score_missing(
    job: PredictionJob, predictor: "Predictor", options: PredictOptions, progress: Progress
) -> tuple[ScoreTable, _Thumbnails]:
    """Score what was not scored before; returns all scores, and thumbnails of the first images decoded here."""
    from dermkit.prediction.pixels import PixelStore

    scores = _read_earlier_scores(job, progress)
    missing = np.flatnonzero(~scores.is_done).tolist()
    training_images = {pixels: split_name for pixels, _, split_name in predictor.training_images}
    thumbnails: _Thumbnails = {}
    n_images = len(job.images)
    n_done = n_saved = n_images - len(missing)

    def on_save(n: int) -> None:
        nonlocal n_saved
        n_saved += n
        if progress.step is Progress.step:  # no bar is shown: a log would stay silent for hours
            progress.say(f"{n_saved} of {n_images} images scored or refused")

    image_scores = predictor.score_files(
        ((job.images[index].name, Path(job.images[index].path)) for index in missing),
        batch_size=job.batch_size,
        workers=options.workers,
        n_thumbnails=sum(index < _TILES_PER_SHEET * _MAX_SHEETS for index in missing),
        pixel_store=PixelStore(options.cache, predictor.resizings) if options.cache else None,
    )
    with closing(image_scores), ScoreWriter(job, on_save) as writer:
        for index, score in zip(missing, image_scores, strict=False):
            row = score_row(index, score, training_images)
            scores.add(row)
            writer.add(row)
            if score.thumbnail is not None:
                thumbnails[index] = score.thumbnail
            n_done += 1
            if n_done % job.batch_size == 0 or n_done == n_images:
                progress.step("scoring", n_done, n_images)
    return scores, thumbnails


def _read_earlier_scores(job: PredictionJob, progress: Progress) -> ScoreTable:
    """Return the scores that an earlier start of the same prediction saved, and say how many they are."""
    scores, n_changed = job.read_scores()
    if n_changed:
        progress.say(f"{n_changed} files changed since they were scored; their batches are scored again")
    n_done = int(scores.is_done.sum())
    if n_done:
        progress.say(f"going on: {n_done} of {len(job.images)} images were scored or refused before")
    return scores


# The output -------------------------------------------------------------------------------------------------------


def _write_output(
    job: PredictionJob,
    scores: ScoreTable,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    thumbnails: _Thumbnails,
    workers: int,
    *,
    is_raw: bool,
) -> PredictOutcome:
    """Write every file of the output: sheets first, as they take longest, and predict.json last.

    The job is still there meanwhile: if this is stopped, the next start writes all of it again.
    """
    if not scores.is_done.all():
        raise DataError(
            f"{job.folder}: {int(scores.is_done.sum())} of {len(job.images)} images",
            remedy="give the command again",
        )
    out, scored, clean = job.folder.parent, scores.scored, tuple if is_raw else defused
    tiles = _tiles(job, scores, predictor, policy, thumbnails, workers)
    sheets = _write_sheets(out, tiles, decisions.sheet_legend(policy, len(predictor.nets)), workers)
    scored_images, p = [job.images[index] for index in scored.tolist()], scores.probabilities[scored]
    predictions = (
        clean((utf8_safe(image.image_id), utf8_safe(image.path), "", "", "", "", job.class_names[k], *row))
        for image, k, row in zip(scored_images, p.argmax(axis=1).tolist(), _iter_rows(p), strict=True)
    )
    write_predictions(out / PREDICTIONS_FILE, job.class_names, predictions)
    refused = (
        clean((utf8_safe(job.images[index].name), *cells)) for index, cells in sorted(scores.refusals.items())
    )
    write_rows(out / _REFUSED_FILE, ("path", "reason", "detail"), refused)
    (out / decisions.OLD_DECISIONS_FILE).unlink(missing_ok=True)
    decision_counts = None
    if policy is None:  # the table of an earlier prediction would be of another model
        (out / decisions.DECISIONS_FILE).unlink(missing_ok=True)
    else:
        decision_counts = decisions.write_decisions(
            out / decisions.DECISIONS_FILE, policy, predictor.classes, scored_images, p, is_raw=is_raw
        )
        warnings = (*decision_counts.warnings, *_ensemble_warnings(predictor))
        decision_counts = replace(decision_counts, warnings=warnings)
    n_notes = sum(map(len, scores.notes.values()))
    outcome = PredictOutcome(
        out, len(scored), len(scores.refusals), n_notes, len(scores.training_splits), decision_counts
    )
    _write_predict_json(outcome, job, scores, predictor, policy, sheets)
    return outcome


def _ensemble_warnings(predictor: "Predictor") -> tuple[str, ...]:
    note = str((predictor.card.get(ENSEMBLE_FIELD) or {}).get("note", ""))
    return decisions.ensemble_warnings(predictor.passes, note, is_tested=is_tested_ensemble(predictor.card))


def _iter_rows(p: Floats) -> Iterator[list[float]]:
    """Yield rows as Python floats, which are written with all their digits; one by one, to save memory."""
    for row in p:
        yield row.tolist()


def _raise_all_rejected(n_images: int, out: Path) -> None:
    all_missing = all(reason == RejectionReason.MISSING for _, reason, _ in _read_rejected(out))
    raise DataError(
        f"none of {n_images} images could be read; first: {', '.join(next(_read_rejected(out)))}",
        outcome=f"{out / _REFUSED_FILE} lists each with its reason",
        remedy="check the path" if all_missing else "give JPEG, PNG, WebP, BMP or TIFF photographs",
    )


def _read_rejected(out: Path) -> Iterator[tuple[str, str, str]]:
    with (out / _REFUSED_FILE).open(newline="", encoding="utf-8") as stream:
        for row in islice(csv.reader(stream), 1, None):
            yield undefused(row[0]), row[1], row[2]


def _tiles(
    job: PredictionJob,
    scores: ScoreTable,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    thumbnails: Mapping[int, NDArray[np.uint8]],
    workers: int,
) -> list[render_sheets.Tile]:
    """Return the tiles of the first scored images; one without a thumbnail is opened again."""
    from dermkit.prediction.pixels import file_thumbnail

    def make_tile(index: int) -> render_sheets.Tile:
        image = job.images[index]
        thumbnail = thumbnails[index] if index in thumbnails else file_thumbnail(Path(image.path))
        lines, colour = decisions.tile_caption(policy, predictor.classes, scores.probabilities[index])
        pixels = thumbnail if thumbnail is not None else np.zeros((8, 8, 3), np.uint8)
        title = PurePosixPath(utf8_safe(image.name)).name
        return render_sheets.Tile(pixels, "\n".join([title, *lines]), colour)

    first_scored = scores.scored[: _TILES_PER_SHEET * _MAX_SHEETS].tolist()
    return list(ordered_map(make_tile, first_scored, n_threads=workers))


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
    scores: ScoreTable,
    predictor: "Predictor",
    policy: "ActivePolicy | None",
    sheets: Sequence[str],
) -> None:
    names = {index: utf8_safe(job.images[index].name) for index in {*scores.notes, *scores.training_splits}}
    fields = {
        "model_sha256": predictor.sha256,
        "recipe": predictor.card["recipe"].get("name"),
        "classes": list(predictor.class_names),
        "n_scored": outcome.n_scored,
        "n_refused": outcome.n_rejected,
        "sheets": list(sheets),
        "notice": "Research use only. Not a medical device.",
        "device": predictor.engine.device.type,
        "batch_size": min(job.batch_size, predictor.engine.max_batch_size),
        "inference_mode": predictor.engine.net_variant,
        "policy": decisions.describe_policy(policy, predictor.classes, outcome.decision_counts),
        "notes": [
            {"image": names[index], "note": note} for index in sorted(scores.notes) for note in scores.notes[index]
        ],
        "training_images": [
            {"image": names[index], "split": split_name}
            for index, split_name in sorted(scores.training_splits.items())
        ],
    }
    write_json(outcome.out / _PREDICT_FILE, fields, format=PREDICT_JSON_FORMAT)
