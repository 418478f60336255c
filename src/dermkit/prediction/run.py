"""New images -> predictions.csv, decisions.csv and picture sheets; unreadable images are listed, the others are scored.

The list of images and their probabilities are held in memory and saved in the folder while the net runs: a prediction
that was stopped goes on when the same command is given again.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermkit.errors import OutputError, ResourceError, RunInterrupt, out_of_memory
from dermkit.files import (
    check_output,
    check_writable,
    lock,
    sweep_temp,
)
from dermkit.models.engines.packages import AUTO, TORCH
from dermkit.models.exported_folder import is_exported
from dermkit.prediction import decisions
from dermkit.prediction.inputs import find_images
from dermkit.prediction.locate import check_model_folder
from dermkit.prediction.metadata_table import ImageMetadata, find_metadata, metadata_lines
from dermkit.prediction.out_of_distribution import check_can_withhold
from dermkit.prediction.output import (
    N_TILES,
    PREDICT_FILE,
    PredictOutcome,
    Thumbnails,
    raise_all_rejected,
    write_output,
)
from dermkit.prediction.resume import (
    JOB_FOLDER,
    PredictionJob,
    ScoreTable,
    ScoreWriter,
    has_unfinished_job,
    job_progress,
    open_job,
    saved_inference_mode,
    score_row,
)
from dermkit.progress import Progress
from dermkit.threads import cpu_count

if TYPE_CHECKING:
    import pandas as pd

    from dermkit.prediction.predictor import Predictor


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
    metadata: "Path | pd.DataFrame | None" = None
    withhold_outside: bool = False
    engine: str | None = None


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
    metadata: "Path | pd.DataFrame | None" = None,
    withhold_outside: bool = False,
    engine: str | None = None,
    progress: Progress | None = None,
) -> PredictOutcome:
    """Score images with a model: predictions.csv, decisions.csv, refused.csv, predict.json, sheet-*.png.

    model: a model folder, the run folder that holds it, or an exported folder, which needs no torch. Continues the same
    prediction where it was stopped before, unless `restart`. images: files, folders, patterns.
    batch_size: images per forward pass, None = by the device. workers: threads, 0 = all cores. cache: a folder that
    stores the resized pixels. device: auto, cpu or cuda. target: the operating point that decides positive, such as
    "sensitivity=.95". coverage: fraction of images to answer, the others are referred. raw: names that a spreadsheet
    would compute stay as they are. metadata: age, sex and site of the images, for a model that takes them: a table with
    the column `image` (docs/predict.md); None = unknown. withhold_outside: decisions.csv holds no answer for images
    outside the training distribution. engine: of a model folder torch, onnxruntime, openvino, or auto, the fastest
    of those that are installed and give torch's numbers; None = torch. Of an exported folder what reads it
    (docs/predict.md).

    Raises `UntrustedError` for the model, `UsageError` where another prediction is unfinished in `out`, the policy has
    no such target or coverage, or the model cannot tell which images to withhold an answer for, `DataError` where no
    image could be read, `RunInterrupt` on Ctrl-C at any moment.
    """
    options = PredictOptions(
        batch_size, workers or cpu_count(), cache, device, restart, target, coverage, raw, metadata,
        withhold_outside, engine,
    )  # fmt: skip
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
    engine = options.engine if is_exported(model) else _engine_of_model_folder(out, options, progress)
    check_model_folder(model)
    image_list = find_images(images, exclude=[out, *([options.cache] if options.cache else [])])
    if not has_unfinished_job(out):
        check_output(out, marker=PREDICT_FILE, description="a folder of predictions")
    predictor = _load(model, engine, options, progress)
    policy = predictor.select_policy(target=options.target, coverage=options.coverage)
    if options.withhold_outside:
        check_can_withhold(predictor.outlier_test, has_policy=policy is not None)
    for sentence in decisions.broken_sentences(policy) if policy else ():
        progress.say(f"warning: {sentence}")
    metadata = find_metadata(options.metadata, image_list, predictor.members, predictor.folder)
    for line in metadata_lines(metadata, predictor.members) if metadata else ():
        progress.say(line)
    check_writable(out)
    with lock(out):
        sweep_temp(out)
        job = open_job(
            out, image_list, _job_identity(predictor, metadata), batch_size=options.batch_size or predictor.batch_size,
            class_names=predictor.class_names, restart=options.restart,
            has_relative_paths=any(not Path(argument).is_absolute() for argument in images),
        )  # fmt: skip
        scores, thumbnails = _score_missing(job, predictor, metadata, options, progress)
        outcome = write_output(
            job, scores, predictor, policy, metadata, thumbnails, options.workers, is_raw=options.raw,
            withholds_outside=options.withhold_outside,
        )  # fmt: skip
        job.remove()
    if not outcome.n_scored:
        raise_all_rejected(len(image_list), out)
    return outcome


def _engine_of_model_folder(out: Path, options: PredictOptions, progress: Progress) -> str:
    """Return the engine that scores: for `auto` the one that an unfinished prediction in `out` was begun with.

    Another measurement could choose another one, whose numbers have other last digits. Raises `UsageError` for an
    engine that is unknown or absent.
    """
    from dermkit.prediction.engine_choice import check_engine, engine_of

    engine = options.engine or TORCH
    mode = "" if options.restart or engine != AUTO else saved_inference_mode(out)
    if mode:
        engine = engine_of(mode)
        progress.say(f"engine: {engine}, since the unfinished prediction in {out} was begun with it")
    check_engine(engine)
    return engine


def _load(model: Path, engine: str | None, options: PredictOptions, progress: Progress) -> "Predictor":
    """Return the model on its engine. engine: None = what reads an exported folder."""
    if is_exported(model):
        from dermkit.prediction.exported_model import load_exported_model

        return load_exported_model(
            model, engine=engine, device=options.device, n_threads=options.workers, progress=progress
        )
    from dermkit.prediction.engine_choice import select_engine
    from dermkit.prediction.load import load_model

    predictor = load_model(model, device=options.device, progress=progress)
    return select_engine(
        predictor, engine or TORCH, threads=options.workers, batch_size=options.batch_size or 0, progress=progress
    )


def _job_identity(predictor: "Predictor", metadata: ImageMetadata | None) -> dict[str, Any]:
    """Return what decides the numbers besides the images; a stopped prediction continues only with the same."""
    return {
        "model": predictor.files_sha256,  # not of the folder, in which another model may lie by now
        "recipe": predictor.card["recipe"].get("name") or "unnamed",
        "device": predictor.runtime.device_type,
        "inference_mode": predictor.engine.net_variant,
        "versions": dict(predictor.runtime.versions),
        "metadata": "" if metadata is None else metadata.sha256,
    }


def _score_missing(
    job: PredictionJob,
    predictor: "Predictor",
    metadata: ImageMetadata | None,
    options: PredictOptions,
    progress: Progress,
) -> tuple[ScoreTable, Thumbnails]:
    """Score what was not scored before; returns all scores, and thumbnails of the first images decoded here."""
    from dermkit.prediction.pixels import PixelStore

    scores = _read_earlier_scores(job, progress)
    missing = np.flatnonzero(~scores.is_done).tolist()
    training_images = {pixels: split_name for pixels, _, split_name in predictor.training_images}
    thumbnails: Thumbnails = {}
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
        n_thumbnails=sum(index < N_TILES for index in missing),
        pixel_store=PixelStore(options.cache, predictor.resizings) if options.cache else None,
        metadata=None if metadata is None else metadata.table.iloc[missing],
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
