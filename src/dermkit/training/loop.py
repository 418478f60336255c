"""One training run, readable top to bottom: an own loop on Lightning Fabric.

Order, augmentation and dropout come from (seed, epoch, image id) or (seed, epoch, batch) alone, so a run that was
killed and resumed ends with the same weights as one left alone (same machine, same thread count). A frozen backbone
runs once per view. Several devices share every batch; rank 0 alone writes.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from dermkit.errors import DermkitError, Diverged, Interrupted, UsageError
from dermkit.files import check_writable, write_json
from dermkit.models.inference import passes, plain_float32, side_by_side, streams
from dermkit.models.net import Net, freeze, set_train_mode
from dermkit.models.precision import is_out_of_memory, settled
from dermkit.recipes.schema import Phase
from dermkit.threads import ahead
from dermkit.training.augment.batch import epoch_order
from dermkit.training.checkpoint import BEST, INSIDE, Progress, checkpoint_bytes, goes_on, load_checkpoint
from dermkit.training.distributed.process_group import ranks_of
from dermkit.training.distributed.sync_batchnorm import synchronise
from dermkit.training.features import Making, feature_source
from dermkit.training.optimizer import class_weights, make_optimizer, set_rates
from dermkit.training.samples import PixelSource, Samples, Source, resident
from dermkit.training.state import LOG_COLUMNS, PASSES, Hooks, Job, Run, load_best, load_last, write_log
from dermkit.training.step import NotFinite, Stepper, batches
from dermkit.training.validation import validation_guides

SETBACKS = 3
"""Times that a run steps back from a loss that is no number, each time at half the learning rates, before it stops."""

SAVE_SECONDS = 300.0
"""Inside an epoch, a checkpoint is written this often: what a killed run has to train again at most."""

_SHOWN = 24
"""Images on augmented.png: four rows of six."""


def train(job: Job, net: Net, folder: Path, *, fabric: Fabric, hooks: Hooks | None = None) -> Progress:
    """Train `net` in place, from the last checkpoint in `folder` if there is one; `net` ends as the recipe keeps it.

    Raises `Interrupted` (a checkpoint was written), `Diverged` (a loss is not a number again and again), `UsageError`
    (memory does not hold one image).
    """
    run = Run(job, folder, net, fabric, ranks_of(fabric), hooks or Hooks())
    net.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.ranks.size > 1:
        synchronise(net)
    held = sum(item.stat().st_size for item in folder.glob("*.safetensors"))  # these will be replaced
    check_writable(folder, checkpoint_bytes(net) - held)
    load_last(run)
    inside = folder / INSIDE
    if goes_on(inside, run.progress):
        run.progress = load_checkpoint(inside, net) or run.progress
    if run.progress.rows:  # a kill may have come between the checkpoint and the log
        write_log(run)
    with plain_float32(fabric.device):
        pixels = _pixels(run)
        for number, phase in enumerate(job.recipe.phases):
            if number >= run.progress.phase:
                _train_phase(run, number, phase, pixels)
        _keep(run)
    return run.progress


def _train_phase(run: Run, number: int, phase: Phase, pixels: PixelSource) -> None:
    """Run the epochs of one phase that are still to do."""
    job = run.job
    if number > run.progress.phase:
        load_best(run)
        run.progress.start_phase(number)
        # The border is saved first: a kill after this phase's first best must not start it from that best.
        run.save()
    freeze(run.net, phase)
    source = _source(run, phase, pixels)
    if not run.last.exists():
        run.save()
    run.ranks.barrier()
    first = 1 + sum(item.epochs for item in job.recipe.phases[:number])
    stepper, optimizer = _stepper(run, phase, source)
    while run.progress.phase_epoch < phase.epochs and not run.progress.out_of_patience(phase.patience):
        try:
            _run_epoch(run, phase, stepper, optimizer, first + run.progress.phase_epoch)
        except NotFinite as error:
            _step_back(run, stepper, error, first + run.progress.phase_epoch)
        except (RuntimeError, MemoryError) as error:
            _make_room(run, stepper, error)
        else:
            continue
        # What was tried is undone: the net and a fresh optimizer go on from the last checkpoint.
        stepper, optimizer = _stepper(run, phase, source)


def _run_epoch(run: Run, phase: Phase, stepper: Stepper, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Train one epoch, or what is left of it, validate, save and tell."""
    progress, job = run.progress, run.job
    before = progress.seconds
    started = time.perf_counter()
    lr = set_rates(optimizer, phase, job.recipe.optim, epoch=progress.phase_epoch, scale=progress.lr_scale)
    set_train_mode(run.net, phase)
    _train_epoch(run, stepper, optimizer, epoch, started)
    loss, hits = stepper.gathered()
    trained, n = before + time.perf_counter() - started, len(stepper.source.samples)
    _check(run, stepper, epoch, _is_finite(run.net), "a weight")
    figures = {"train_loss": loss / n, "train_accuracy": hits / n, **_validate(run, stepper, epoch)}
    times = {"train_seconds": trained, "images_per_second": n / trained}
    row = {"epoch": epoch, "phase": progress.phase, "lr": lr, **times, **figures}
    row["seconds"] = before + time.perf_counter() - started
    stepper.loss = stepper.hits = 0.0
    improved = progress.finish_epoch({name: row[name] for name in LOG_COLUMNS}, job.recipe.monitor)
    progress.optimizer = optimizer.state_dict()
    _save_epoch(run, improved)


def _train_epoch(run: Run, stepper: Stepper, optimizer: torch.optim.Optimizer, epoch: int, started: float) -> None:
    """Take the steps of an epoch that are still to do; now and then, and when asked to stop, a checkpoint is kept."""
    job, progress = run.job, run.progress
    order = stepper.source.samples.order(job.recipe.optim.sampling, seed=job.seed, epoch=epoch)
    todo = batches(order, job.recipe.optim.batch_size)
    before = progress.seconds

    def prepare(rows: NDArray[np.int64]) -> Any:
        return stepper.prepare(rows, epoch=epoch)

    coming = ahead(prepare, todo[progress.step :], workers=job.workers)
    for prepared in _closing(coming):
        rows = todo[progress.step]
        stepper.take(progress.step, rows, prepared, epoch=epoch)
        progress.step += 1
        run.hooks.step("train", progress.step, len(todo))
        stop, save = run.hooks.stop(), time.monotonic() - run.saved > SAVE_SECONDS
        if run.ranks.size > 1:  # rank 0's clock decides, and any rank may have been asked to stop
            wishes = run.ranks.sum(torch.tensor([stop, save and run.ranks.rank == 0], dtype=torch.int64))
            stop, save = bool(wishes[0]), bool(wishes[1])
        if stop or save:
            progress.seconds = before + time.perf_counter() - started
            _save_inside(run, stepper, optimizer, epoch)
        if stop:
            raise _interrupted(run, epoch)
    stepper.flush()


def _closing(coming: Iterator[Any]) -> Iterator[Any]:
    """Let the threads that work ahead go, however the loop ends."""
    try:
        yield from coming
    finally:
        coming.close()  # type: ignore[attr-defined]


def _save_inside(run: Run, stepper: Stepper, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Keep the middle of an epoch; a net that is no longer finite is not kept."""
    stepper.flush()
    run.progress.loss, run.progress.hits = stepper.gathered()
    _check(run, stepper, epoch, _is_finite(run.net), "a weight")
    run.progress.optimizer = optimizer.state_dict()
    run.save(INSIDE)


def _check(run: Run, stepper: Stepper, epoch: int, sound: bool, what: str) -> None:
    """Never keep a net that gives no numbers; the last batch is taken for the one that broke it."""
    if run.ranks.any(not sound):
        order = stepper.source.samples.order(run.job.recipe.optim.sampling, seed=run.job.seed, epoch=epoch)
        number = run.progress.step - 1
        raise NotFinite(number, batches(order, run.job.recipe.optim.batch_size)[number], what)


def _save_epoch(run: Run, improved: bool) -> None:
    """Best first: if this is killed in between, the epoch is trained again to the same bits and saved again."""
    if improved:
        run.save(BEST)
    run.save()
    write_log(run)
    run.hooks.epoch(run.progress.rows[-1], sum(phase.epochs for phase in run.job.recipe.phases))


def _stepper(run: Run, phase: Phase, source: Source) -> tuple[Stepper, torch.optim.Optimizer]:
    """Return what takes the phase's steps, from where the run's progress stands."""
    job, progress = run.job, run.progress
    recipe = job.recipe
    optimizer = make_optimizer(run.net, phase, recipe.optim)
    module: torch.nn.Module = source.module(run.net)
    if recipe.compute.compile:
        module = torch.compile(module)  # type: ignore[assignment]
    wrapped, stepping = run.fabric.setup(module, optimizer)
    if progress.optimizer:
        optimizer.load_state_dict(progress.optimizer)
    first = run.ranks.rank == 0
    stepper = Stepper(
        module=wrapped, optimizer=stepping, fabric=run.fabric, ranks=run.ranks, source=source,
        compute=settled(recipe.compute, run.fabric.device.type),
        weights=class_weights(source.samples.labels, job.n_classes, recipe.optim, run.fabric.device),
        label_smoothing=recipe.optim.label_smoothing, n_classes=job.n_classes, seed=job.seed, micro=progress.micro,
        loss=progress.loss if first else 0.0, hits=progress.hits if first else 0.0,
    )  # fmt: skip
    return stepper, optimizer


def _step_back(run: Run, stepper: Stepper, error: NotFinite, epoch: int) -> None:
    """Go back to the last checkpoint at half the rates; raises `Diverged` where that was done often enough."""
    names = stepper.source.samples.names(error.rows[:4])
    where = f"epoch {epoch}, batch {error.number + 1} (images {', '.join(names)}, ...)"
    what = f"{error.what} is not a number in {where}"
    load_last(run)
    kept = run.progress
    if len(kept.setbacks) >= SETBACKS:
        raise Diverged(
            f"{what}, after {SETBACKS} attempts at ever lower learning rates",
            kept=f"{run.last}, {len(kept.rows)} finished epochs",
            remedy="lower the learning rate in the recipe, or look at these images",
        )
    kept.lr_scale /= 2
    kept.setbacks.append(
        {"what": error.what, "epoch": epoch, "batch": error.number + 1, "images": names, "lr_scale": kept.lr_scale}
    )
    run.ranks.barrier()  # all have read it before it is written again
    run.save()
    run.hooks.say(f"{what}: back to where the epoch began, learning rates times {kept.lr_scale:g} from here")


def _make_room(run: Run, stepper: Stepper, error: BaseException) -> None:
    """Halve what one pass holds after memory ran out, and go back to the last checkpoint; raises any other error."""
    if not is_out_of_memory(error):
        raise error
    held = stepper.micro or -(-run.job.recipe.optim.batch_size // run.ranks.size)
    kept = f"{run.last}, {len(run.progress.rows)} finished epochs"
    least = 2 if any(isinstance(item, _BatchNorm) and item.training for item in run.net.modules()) else 1
    if held // 2 < least:
        raise UsageError(
            f"{run.fabric.device}: memory does not hold {held} image{'s' * (held > 1)} of this recipe",
            kept=kept,
            remedy="choose a smaller image.size or a smaller net in the recipe",
        ) from error
    write_json(run.folder / PASSES, {"micro": held // 2}, format=1)
    what = f"out of memory: batches are now added up from passes of {held // 2} images"
    if run.ranks.size > 1:  # the others wait for this rank, and cannot be told
        raise DermkitError(what, kept=kept, remedy="run the same command with --resume") from error
    stepper.optimizer.zero_grad()
    if run.fabric.device.type == "cuda":
        torch.cuda.empty_cache()
    load_last(run)
    run.hooks.say(f"{what}; batch norm, where it learns, sees these")


def _validate(run: Run, stepper: Stepper, epoch: int) -> dict[str, float]:
    """Score the validation images in evaluation mode and float32, every rank its share."""
    source = stepper.source
    run.net.eval()
    device = run.fabric.device
    rows = run.ranks.share(np.arange(len(run.job.validation)))

    def logits(part: NDArray[np.int64]) -> torch.Tensor:
        with torch.inference_mode():
            return source.validation_logits(run.net, part).cpu().double()

    empty = torch.empty(0, run.job.n_classes, dtype=torch.float64)
    joined = torch.cat([empty, *side_by_side(logits, passes(rows, device), workers=streams(device))])
    scored = run.ranks.gather(joined).numpy()
    _check(run, stepper, epoch, bool(np.isfinite(scored).all()), "a validation score")
    return validation_guides(scored, run.job.labels[run.job.validation])


def _pixels(run: Run) -> PixelSource:
    """Return the source of all phases: on a GPU that can hold them, the pixels are brought there once."""
    job, recipe, device = run.job, run.job.recipe, run.fabric.device
    samples = Samples.of(
        job.image_ids, job.labels, job.train, recipe.augment, recipe.grow, seed=job.seed, mix=recipe.mix
    )
    held = resident(job.pixels, device)
    return PixelSource(samples, held, job.validation, job.preprocessing, device)


def _source(run: Run, phase: Phase, pixels: PixelSource) -> Source:
    job, recipe, device = run.job, run.job.recipe, run.fabric.device
    _show_batch(run, pixels, plain=phase.train_backbone == "none" and phase.views == 0)
    if phase.train_backbone != "none":
        return pixels
    compute = settled(recipe.compute, device.type)
    making = Making(
        net=run.net, model=recipe.model, compute=compute, row_keys=job.row_keys, device=device, cache=job.cache,
        ranks=run.ranks, on_step=run.hooks.step, stop=run.hooks.stop,
    )  # fmt: skip
    return feature_source(pixels, making, seed=job.seed, views=phase.views)


def _show_batch(run: Run, pixels: PixelSource, *, plain: bool) -> None:
    """Hand the first batch of a run to the caller, as the net sees it."""
    if run.progress.rows or run.ranks.rank > 0:
        return
    rows = epoch_order(len(pixels.samples), seed=run.job.seed, epoch=1)[:_SHOWN]
    make = pixels.originals if plain else pixels.batch
    run.hooks.first_batch(make(rows, epoch=1, seed=run.job.seed), pixels.samples.labels[rows])


def _keep(run: Run) -> None:
    load_best(run)
    if not _is_finite(run.net):
        raise Diverged(f"{run.folder}: the trained weights are not finite", remedy="lower the learning rate")
    run.net.eval()


def _is_finite(net: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values())


def _interrupted(run: Run, epoch: int) -> Interrupted:
    return Interrupted(
        f"interrupted in epoch {epoch}, after batch {run.progress.step}",
        kept=f"{run.folder / INSIDE}, {len(run.progress.rows)} finished epochs and these batches",
        remedy="run the same command with --resume; it ends with the weights of a run left alone",
    )
