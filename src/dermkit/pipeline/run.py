"""One run, from a plan to its report.

Pixels -> training -> model folder -> predictions -> metrics -> report; each stage leaves files, and the next one
reads them. Heavy imports are inside functions, so that a typo costs no torch.
"""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import write_run_location
from dermkit.data.split import save_split
from dermkit.errors import RunInterrupt, UsageError
from dermkit.evaluation.evaluate import evaluate_run
from dermkit.evaluation.openings import log_openings, openings_of_overlaps, write_run_seal
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.evaluation.predict_splits import predict_splits
from dermkit.files import (
    lock,
    make_folder,
    sweep_temp,
    write_rows,
)
from dermkit.models.card import with_extra_targets, write_policy
from dermkit.models.views import VIEW_SETS
from dermkit.pipeline.continuation import copy_checkpoints, offer_earlier_runs
from dermkit.pipeline.next_steps import write_next_steps
from dermkit.pipeline.plan import Continuation, Machine, RunPlan
from dermkit.pipeline.run_facts import (
    FinishedTraining,
    describe_model,
    describe_run,
    record_environment,
    training_lint,
)
from dermkit.pipeline.saved_targets import drop_saved_targets, saved_targets
from dermkit.progress import Progress
from dermkit.recipes.schema import save_recipe
from dermkit.render import charts, sheets
from dermkit.reporting.report import write_report
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import (
    AUGMENTED_SHEET,
    CHECKPOINTS_FOLDER,
    EXCLUDED_FILE,
    LOG_FILE,
    METRICS,
    MODEL_FOLDER,
    POLICY,
    PROGRESS_CHART,
    RECIPE_FILE,
    REPORT_FILE,
    RUN,
    RUN_SEAL,
    VIEW_CHOICE,
)
from dermkit.runs.verdict import summarise_test

if TYPE_CHECKING:
    from dermkit.data.cache.pixels import PixelCache
    from dermkit.models.net import Net
    from dermkit.pipeline.view_choice import ViewChoice
    from dermkit.prediction.predictor import Predictor
    from dermkit.training.checkpoint import TrainingProgress
    from dermkit.training.state import TrainingJob

_TRAIN_SIGNAL = "trains"
_REDRAW_SECONDS = 5.0
"""progress.png is redrawn at most this often: drawing costs more than an epoch on cached features."""


def run_plan(plan: RunPlan, machine: Machine) -> Path:
    """Train, save, score, evaluate and report one run; a finished one is left as it is.

    Where several processes train together, all of them call this: rank 0 does everything, the others train along.
    """
    from dermkit.training.distributed.process_group import process_group_of

    ranks = process_group_of(machine.fabric)
    if ranks.is_first:
        _run_on_rank0(plan, machine)
    elif ranks.broadcast_text("") == _TRAIN_SIGNAL:
        _train(plan, prepare_job(plan, machine), machine)
    ranks.barrier()  # what comes next may read the files of this run
    return plan.folder


def _run_on_rank0(plan: RunPlan, machine: Machine) -> None:
    from dermkit.training.checkpoint import LAST_CHECKPOINT
    from dermkit.training.distributed.process_group import process_group_of

    folder, progress, ranks = plan.folder, machine.progress, process_group_of(machine.fabric)
    if (folder / (REPORT_FILE if plan.has_report else METRICS.name)).exists():
        progress.say(f"{folder}: already finished; nothing to do")
        if plan.seal is not None and not plan.is_trial and not RUN_SEAL.exists(folder):
            progress.say(f"warning: it scored these test images before they were sealed as {plan.seal.name}")
        ranks.broadcast_text("finished")
        return
    if machine.settings.resume and plan.continued is None:
        offer_earlier_runs(plan, machine)
    with lock(folder):  # first of all: a run that is going on is nothing to resume or to delete
        if (folder / CHECKPOINTS_FOLDER / LAST_CHECKPOINT).exists() and not machine.settings.resume:
            raise UsageError(
                f"{folder}: was started before and is not finished",
                outcome="its checkpoints",
                remedy="add --resume to go on from them, or delete the folder to start anew",
            )
        sweep_temp(folder)
        if plan.continued is not None and not (folder / CHECKPOINTS_FOLDER / LAST_CHECKPOINT).exists():
            _begin_with_checkpoints(plan, plan.continued, machine)
        _write_run_start(plan, machine)
        started_at = time.perf_counter()
        prepared_job = prepare_job(plan, machine)
        ranks.broadcast_text(_TRAIN_SIGNAL)  # every image is decoded: the others find them in the cache
        _train_and_report(plan, prepared_job, machine, started_at)


def _begin_with_checkpoints(plan: RunPlan, continued: Continuation, machine: Machine) -> None:
    """Begin a run with the checkpoints of the run that it goes on from."""
    copy_checkpoints(plan, continued)
    machine.progress.say(f"goes on from {continued.folder}, after {continued.n_epochs} epochs")
    if continued.note:
        machine.progress.say(f"warning: {continued.note}")


@dataclass(frozen=True)
class PreparedJob:
    """A job with the net that it starts from, and the cache that its pixels lie in."""

    job: "TrainingJob"
    net: "Net"
    pixels: "PixelCache"
    lint: list[dict[str, Any]]


def prepare_job(plan: RunPlan, machine: Machine) -> PreparedJob:
    """Decode the images of a run and build its net."""
    from dermkit.data.cache.pixels import dataset_pixels, pixel_keys
    from dermkit.models.net import build_net, preprocessing_for
    from dermkit.pipeline.metadata_input import encode_dataset
    from dermkit.training.state import TrainingJob

    recipe, split_table = plan.recipe, plan.split_table
    metadata = encode_dataset(recipe.model.metadata, plan.dataset, plan.split_table, machine.progress)
    net = build_net(
        recipe.model, len(plan.dataset.classes), weights=plan.weights, seed=plan.seed,
        n_metadata=0 if metadata is None else metadata.encoder.width,
    )  # fmt: skip
    preprocessing = preprocessing_for(recipe.image, plan.weights)
    lint = training_lint(plan, net, preprocessing)
    manifest = plan.dataset.manifest
    cache_folder = plan.dataset.work_folder / "cache"
    # The whole data set is decoded once, so that every split, fold and recipe of this size shares the files.
    pixels = dataset_pixels(plan.dataset, manifest["image_id"].tolist(), preprocessing, machine.progress)
    class_names = pd.Index(plan.dataset.class_names)
    job = TrainingJob(
        recipe=recipe,
        seed=plan.seed,
        pixels=pixels.pixels,
        pixel_keys=pixel_keys(manifest, preprocessing),
        labels=class_names.get_indexer(pd.Index(manifest["label"])).astype(np.int64),
        image_ids=tuple(manifest["image_id"]),
        train_rows=_pixel_rows(split_table, "train", pixels.index),
        validation_rows=_pixel_rows(split_table, "validation", pixels.index),
        n_classes=len(class_names),
        preprocessing=preprocessing,
        cache_folder=cache_folder,
        workers=machine.settings.workers,
        groups=leakage_groups(manifest),
        teacher=_teacher_probabilities(plan, pixels, machine),
        metadata=metadata,
    )
    return PreparedJob(job, net, pixels, lint)


def _teacher_probabilities(plan: RunPlan, pixels: "PixelCache", machine: Machine) -> NDArray[np.float64] | None:
    """Return the teacher's probabilities by pixel row, nan where an image is not trained on; None without a teacher."""
    from dermkit.pipeline.teacher import teacher_table

    if plan.teacher is None:
        return None
    ids = plan.split_table.loc[plan.split_table["split"] == "train", "image_id"].tolist()
    table = teacher_table(
        plan.folder, plan.teacher, plan.dataset, ids, machine.progress, machine.fabric.device.type
    )
    p = np.full((len(pixels.index), len(plan.dataset.classes)), np.nan)
    p[[pixels.index[image_id] for image_id in ids]] = table
    return p


def _train_and_report(plan: RunPlan, prepared_job: PreparedJob, machine: Machine, started_at: float) -> None:
    from dermkit.data.cache.pixels import evict_to_size
    from dermkit.prediction.load import load_model

    progress, cache_folder = machine.progress, prepared_job.job.cache_folder
    training_progress = _train(plan, prepared_job, machine)
    _save_training(plan, prepared_job, training_progress, started_at, machine)
    predictor = load_model(plan.folder / MODEL_FOLDER, device=machine.fabric.device.type)
    _score_run(plan, predictor, prepared_job.pixels, progress)
    evict_to_size(cache_folder)
    cache_bytes = sum(file.stat().st_size for file in cache_folder.rglob("*") if file.is_file())
    progress.say(
        f"cache: {cache_bytes / 1e6:,.0f} MB in {cache_folder}, shared by all runs; it may be deleted at any time"
    )
    if not plan.has_report:
        evaluate_and_save_policy(plan.folder)
        return
    weights_file = machine.settings.weights
    write_next_steps(
        plan.folder, plan.dataset.folder, weights_file, is_sealed=plan.seal is not None,
        is_member=plan.leaves_test_to_ensemble,
        teacher=machine.settings.teacher,
    )  # fmt: skip
    write_run_location(plan.folder, plan.dataset)
    evaluate_and_report(
        plan.folder, plan.dataset.image_root, options=machine.settings.options,
        device=machine.fabric.device.type, progress=progress,
    )  # fmt: skip


def _pixel_rows(split_table: pd.DataFrame, split_name: str, index: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the pixel rows of one split's images, in the order of the table."""
    return np.array(
        [index[image_id] for image_id in split_table.loc[split_table["split"] == split_name, "image_id"]],
        dtype=np.int64,
    )


def evaluate_and_report(
    folder: Path,
    images: Path | None,
    *,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Evaluate a scored folder and write its report with pictures and heat maps from `images`; returns the report."""
    from dermkit.explanation.run_maps import update_heat_maps

    evaluate_and_save_policy(folder, options=options)
    update_heat_maps(
        folder, images, is_wanted=options.heat_maps, masks=options.masks, device=device, progress=progress
    )
    return write_report(folder, images_root=images)


def evaluate_and_save_policy(folder: Path, *, options: EvaluationOptions = DEFAULT_OPTIONS) -> None:
    """Evaluate a scored folder; no report is written.

    The folder's model gets the decision policy that was fitted on validation, what the test images showed of it, and
    the targets to be saved; those that it holds already, or held before it was written anew, are fitted and shown every
    time.
    """
    model = folder / MODEL_FOLDER
    model_targets = saved_targets(folder)
    evaluate_run(folder, options=options.with_targets(model_targets))
    if POLICY.exists(folder) and model.is_dir():
        targets_to_save = {*model_targets, *(options.targets if options.save_targets else ())}
        policy = with_extra_targets(POLICY.read(folder), targets_to_save)
        point_names = {point["name"] for point in policy["operating_points"]}
        write_policy(model, policy, evaluation=summarise_test(RunFolder(folder), point_names))
        drop_saved_targets(folder)


def _train(plan: RunPlan, prepared_job: PreparedJob, machine: Machine) -> "TrainingProgress":
    from dermkit.training.loop import train_net
    from dermkit.training.state import TrainingHooks

    job, progress, last_drawn = prepared_job.job, machine.progress, [time.monotonic()]
    n_epochs = sum(phase.epochs for phase in plan.recipe.phases)

    def on_epoch(row: Mapping[str, Any], epochs: int) -> None:
        progress.say(_epoch_line(row, epochs))
        progress.step("epochs", int(row["epoch"]), n_epochs)
        if plan.watch is not None:
            plan.watch.look(row)
        if time.monotonic() - last_drawn[0] > _REDRAW_SECONDS and machine.is_first:
            _draw_progress(plan.folder)
            last_drawn[0] = time.monotonic()

    with _stop_on_signal() as stop_requested:
        hooks = TrainingHooks(
            progress=progress, on_epoch=on_epoch,
            should_stop=lambda: stop_requested[0] or (plan.watch is not None and plan.watch.is_ended),
            on_first_batch=lambda batch, labels: _draw_batch(plan, job, batch, labels),
        )  # fmt: skip
        training_progress = train_net(
            job,
            prepared_job.net,
            make_folder(plan.folder / CHECKPOINTS_FOLDER),
            fabric=machine.fabric,
            hooks=hooks,
        )
    progress.step("epochs", n_epochs, n_epochs)
    if stop_requested[0]:
        raise RunInterrupt(
            "interrupted when training was done",
            outcome=f"{plan.folder / CHECKPOINTS_FOLDER}, all epochs",
            remedy="run the same command with --resume; it goes on with scoring",
        )
    return training_progress


def _save_training(
    plan: RunPlan,
    prepared_job: PreparedJob,
    training_progress: "TrainingProgress",
    started_at: float,
    machine: Machine,
) -> None:
    """Write the last training chart, run.json and the model folder."""
    from dermkit.pipeline.training_features import fit_on_job
    from dermkit.prediction.model_folder import save_model

    _draw_progress(plan.folder)
    seconds = time.perf_counter() - started_at
    run_json = describe_run(plan, FinishedTraining(training_progress, seconds, prepared_job.lint))
    save = partial(
        save_model,
        plan.folder / MODEL_FOLDER,
        prepared_job.net,
        spec=prepared_job.net.spec or plan.recipe.model,
        classes=plan.dataset.classes,
        preprocessing=prepared_job.job.preprocessing,
        metadata=describe_model(plan, run_json),
        encoder=None if prepared_job.job.metadata is None else prepared_job.job.metadata.encoder,
        # A pass over thousands of images: not for the model of a trial, nor for that of a rung, which is not kept.
        training_features=None if not plan.has_report else fit_on_job(
            prepared_job.job, prepared_job.net, plan.dataset.manifest, machine.progress
        ),
    )  # fmt: skip
    if plan.recipe.test_views != "choose":
        RUN.write(plan.folder, run_json)
        save(views=VIEW_SETS[plan.recipe.test_views])
        return
    save()
    choice = _choose_views(plan, prepared_job, machine)
    RUN.write(plan.folder, {**run_json, "warnings": [*run_json["warnings"], choice.sentence()]})
    VIEW_CHOICE.write(plan.folder, {"own": asdict(choice), "pooled": None, "applied": choice.name})
    save(views=choice.views)


def _choose_views(plan: RunPlan, prepared_job: PreparedJob, machine: Machine) -> "ViewChoice":
    """Choose the model's views with the net that was just saved."""
    from dermkit.pipeline.view_choice import choose_on_validation
    from dermkit.prediction.load import load_model

    predictor = load_model(plan.folder / MODEL_FOLDER, device=machine.fabric.device.type)
    choice = choose_on_validation(predictor, prepared_job.job, machine.progress)
    machine.progress.say(choice.sentence())
    return choice


def _score_run(plan: RunPlan, predictor: "Predictor", pixels: "PixelCache", progress: Progress) -> None:
    """Write predictions.csv for validation and test; a trial's and a sealed test split are not scored."""
    split_names = ["validation"] if plan.hides_test else ["validation", "test"]
    folder = plan.folder
    openings = [] if plan.hides_test else openings_of_overlaps(
        plan.dataset, plan.partial_overlaps, model=folder / MODEL_FOLDER, recipe=plan.recipe.name, run=folder.name,
        split=plan.split.name,
    )  # fmt: skip
    with log_openings(openings):
        predict_splits(
            folder, plan.dataset, plan.split_table, split_names,
            predictor=predictor, pixels=pixels, seed=plan.seed, fold=plan.fold, progress=progress,
            with_rules=plan.has_report,
        )  # fmt: skip


def _write_run_start(plan: RunPlan, machine: Machine) -> None:
    folder, progress = plan.folder, machine.progress
    save_recipe(replace(plan.recipe, seed=plan.seed, repeats=1), folder / RECIPE_FILE)
    if change := record_environment(folder, machine.settings):
        progress.say(f"warning: {change}")
    # The split as it was trained on, with the reasons and the scheme: a fold's run is then repeated like any other.
    save_split(replace(plan.split, name="split", frame=plan.split_table.assign(fold=-1)), folder)
    write_rows(
        folder / EXCLUDED_FILE, ("image_id", "reason"), plan.split.excluded[["image_id", "reason"]].to_numpy()
    )
    if plan.seal is not None:
        write_run_seal(folder, plan.seal, opening=None)
        progress.say(f"test split sealed ({len(plan.seal.rows)} images): it is not scored (docs/seal.md)")
    for overlap in plan.partial_overlaps:
        progress.say(f"warning: {overlap.sentence()}")
    if not RUN.exists(folder):
        RUN.write(folder, describe_run(plan))


@contextmanager
def _stop_on_signal() -> Iterator[list[bool]]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request to stop with a checkpoint; a second one ends at once."""
    stop_requested = [False]

    def handle(_number: int, _frame: object) -> None:
        if stop_requested[0]:
            raise KeyboardInterrupt
        stop_requested[0] = True

    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signals.append(signal.SIGHUP)
    try:
        previous_handlers = [signal.signal(signal_number, handle) for signal_number in signals]
    except ValueError:  # not the main thread: the caller keeps its own way of stopping
        yield stop_requested
        return
    try:
        yield stop_requested
    finally:
        for signal_number, handler in zip(signals, previous_handlers, strict=True):
            signal.signal(signal_number, handler)


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    return (
        f"epoch {int(row['epoch'])}/{epochs}  train loss {_loss_text(row['train_loss'])}"
        f" accuracy {row['train_accuracy']:.3f}"
        f"  validation loss {_loss_text(row['val_loss'])} accuracy {row['val_accuracy']:.3f}"
        f" balanced {row['val_balanced_accuracy']:.3f}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
    )


def _loss_text(loss: float) -> str:
    return f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.2e}"


def _draw_progress(folder: Path) -> None:
    charts.draw_progress(pd.read_csv(folder / LOG_FILE), folder / PROGRESS_CHART)


def _draw_batch(plan: RunPlan, job: "TrainingJob", batch: Any, labels: Any) -> None:
    """Draw augmented.png: a training batch as the net sees it, its normalisation undone for the eye."""
    names = plan.dataset.class_names
    mean = np.array(job.preprocessing.mean).reshape(1, 3, 1, 1)
    std = np.array(job.preprocessing.std).reshape(1, 3, 1, 1)
    unit_pixels = batch.cpu().numpy() * std + mean
    pixels = (unit_pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    tiles = [sheets.Tile(image, names[int(label)]) for image, label in zip(pixels, labels, strict=True)]
    sheet = sheets.contact_sheet(tiles, columns=6, title="A training batch as the net sees it")
    sheets.save_png(sheet, plan.folder / AUGMENTED_SHEET)
