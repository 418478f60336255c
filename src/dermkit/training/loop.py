"""One training run, readable top to bottom: a loop of our own on Lightning Fabric.

Order and augmentation depend on (seed, epoch, image id) alone, dropout on (seed, epoch, batch), so a run that was
killed and resumed ends with the same weights as one left alone (same machine, same number of threads). A frozen
backbone runs once per view of an image, and its features are cached. Several ranks share every batch; rank 0 writes.

Shapes: B images of a batch, V validation images, K classes.
"""

import contextlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from dermkit.errors import DermkitError, DivergenceError, RunInterrupt, UsageError
from dermkit.files import check_writable
from dermkit.models.heads import ClassifierHead
from dermkit.models.inference import eval_batches, exact_float32, n_parallel_batches, parallel_batches
from dermkit.models.net import Net, freeze, set_train_mode
from dermkit.models.precision import is_out_of_memory
from dermkit.recipes.training_specs import Phase
from dermkit.threads import ordered_map
from dermkit.training.augment.batch import epoch_order
from dermkit.training.batch_norm import check_batch_norm
from dermkit.training.batch_norm_statistics import estimate_batch_norm
from dermkit.training.checkpoint import (
    BEST_CHECKPOINT,
    MID_EPOCH_CHECKPOINT,
    OLD_MID_EPOCH_CHECKPOINT,
    TrainingProgress,
    checkpoint_bytes,
    is_continuation,
    load_checkpoint,
)
from dermkit.training.classifier_phase import fit_classifier_epoch
from dermkit.training.distributed.process_group import process_group_of
from dermkit.training.distributed.sync_batchnorm import convert_sync_batch_norm
from dermkit.training.features import FeatureSource
from dermkit.training.memory import kept_memory
from dermkit.training.phase_checks import check_phases
from dermkit.training.phase_setup import make_batch_source, make_pixel_source, make_train_step
from dermkit.training.samples import PixelSource
from dermkit.training.state import (
    LOG_COLUMNS,
    MICRO_BATCH,
    TrainingHooks,
    TrainingJob,
    TrainingState,
    finish_average,
    load_best_checkpoint,
    load_last_checkpoint,
    return_to_last_checkpoint,
    start_average,
    train_on_first_rank,
    write_log,
)
from dermkit.training.step import NotFiniteError, TrainStep, train_batches
from dermkit.training.validation import validation_metrics

MAX_NAN_RECOVERIES = 3
"""Times that a run goes back to its last checkpoint because a value was not finite, each time at half the learning
rates, before it ends as diverged. Chosen, not measured: the last attempt is at an eighth of the recipe's rates."""

SAVE_SECONDS = 300.0
"""Seconds between checkpoints within an epoch: the most that a killed run has to train again. Chosen, not measured."""

_N_PREVIEW_IMAGES = 24
"""Images on augmented.png: four rows of six."""


def train_net(
    job: TrainingJob, net: Net, folder: Path, *, fabric: Fabric, hooks: TrainingHooks | None = None
) -> TrainingProgress:
    """Train `net` in place, from the last checkpoint in `folder` if there is one.

    It ends with the weights of the best or the last epoch, as the recipe's `keep` says. Raises `RunInterrupt` (a
    checkpoint was written), `DivergenceError` (values were not finite more than `MAX_NAN_RECOVERIES` times),
    `UsageError` (memory does not hold one image, or batch norm cannot learn from the recipe's batches) and
    `UntrustedError` (a checkpoint is broken or of another net).
    """
    state = TrainingState(job, folder, net, fabric, process_group_of(fabric), hooks or TrainingHooks())
    # channels_last: the memory order in which convolutions are fastest.
    net.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if state.process_group.size > 1:
        convert_sync_batch_norm(net)
    # Checkpoints that are there will be replaced: their space counts as free. A full disk is told now, not hours later.
    replaced_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed_bytes = checkpoint_bytes(net, with_average=job.recipe.optim.ema_decay > 0)
    check_writable(folder, needed_bytes - replaced_bytes)
    pixel_source = make_pixel_source(state)
    check_phases(net, job.recipe)
    check_batch_norm(net, job.recipe, len(pixel_source.samples))
    load_last_checkpoint(state)
    for mid_epoch_path in (folder / MID_EPOCH_CHECKPOINT, folder / OLD_MID_EPOCH_CHECKPOINT):
        if is_continuation(mid_epoch_path, state.progress):
            state.progress = load_checkpoint(mid_epoch_path, net) or state.progress
            break
    if state.progress.log_rows:  # an earlier process may have been killed between its checkpoint and its log
        write_log(state)
    is_on_cpu = fabric.device.type == "cpu"
    memory = kept_memory() if is_on_cpu else contextlib.nullcontext()
    with memory, exact_float32(fabric.device):  # else a GPU would round the inputs of float32 convolutions
        for phase_index, phase in enumerate(job.recipe.phases):
            if phase_index >= state.progress.phase:
                _train_phase(state, phase_index, phase, pixel_source)
        _load_final_weights(state)
    return state.progress


def _train_phase(state: TrainingState, phase_index: int, phase: Phase, pixel_source: PixelSource) -> None:
    """Run the epochs of one phase that are still to do."""
    job = state.job
    if phase_index > state.progress.phase:
        load_best_checkpoint(
            state
        )  # where the recipe keeps the best epoch, the next phase begins with its weights
        state.progress.start_phase(phase_index)
        # Otherwise a kill after this phase's first best epoch would restart the phase from that epoch's weights.
        state.save()
    freeze(state.net, phase)
    _show_batch(state, phase, pixel_source)
    source = make_batch_source(state, phase, pixel_source)
    if isinstance(state.net.head, ClassifierHead) and isinstance(source, FeatureSource):
        train_on_first_rank(state, partial(fit_classifier_epoch, state, state.net.head, source))
        return
    if not state.last_checkpoint.exists():
        state.save()  # so that a retry of the very first epoch has a checkpoint to go back to
    state.process_group.barrier()
    # Epochs are counted through all phases, from 1: their numbers seed order and augmentation.
    first_epoch = 1 + sum(earlier_phase.epochs for earlier_phase in job.recipe.phases[:phase_index])
    start_average(state)
    train_step, optimizer = make_train_step(state, phase, source)
    while state.progress.phase_epoch < phase.epochs and not state.progress.is_out_of_patience(phase.patience):
        try:
            _run_epoch(state, phase, train_step, optimizer, first_epoch + state.progress.phase_epoch)
        except NotFiniteError as error:
            _restore_after_nan(state, train_step, error, first_epoch + state.progress.phase_epoch)
        except (RuntimeError, MemoryError) as error:
            _halve_micro_batch(state, train_step, error)
        else:
            continue
        # The net is that of the last checkpoint again; the optimizer's moments must be so too.
        train_step, optimizer = make_train_step(state, phase, source)
    finish_average(state)


def _run_epoch(
    state: TrainingState, phase: Phase, train_step: TrainStep, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    """Train one epoch, or what is left of it after a resume; validate, save, and report it."""
    progress, job = state.progress, state.job
    previous_seconds = progress.seconds
    start_time = time.perf_counter()
    set_train_mode(state.net, phase)
    _train_epoch(state, train_step, optimizer, epoch, start_time)
    loss_sum, n_correct = train_step.gather_sums()
    # Seconds of an interrupted part of this epoch count too, so that images per second are those of the whole epoch.
    train_seconds, n_samples = previous_seconds + time.perf_counter() - start_time, len(train_step.source.samples)
    # The loss is checked in every step, but the last update can still overflow a weight.
    _check_finite(state, train_step, epoch, _is_finite(state.net), "a weight")
    estimate_batch_norm(state, train_step.source, epoch=epoch, max_pass_size=train_step.micro_batch_size)
    metrics = {
        "train_loss": loss_sum / n_samples,
        "train_accuracy": n_correct / n_samples,
        **_validate(state, train_step, epoch),
    }
    timings = {"train_seconds": train_seconds, "images_per_second": n_samples / train_seconds}
    lr = optimizer.param_groups[0]["lr"]  # the head's, in the epoch's last step
    row = {"epoch": epoch, "phase": progress.phase, "lr": lr, **timings, **metrics}
    row["seconds"] = previous_seconds + time.perf_counter() - start_time
    train_step.loss_sum = train_step.n_correct = 0.0
    is_best = progress.finish_epoch({name: row[name] for name in LOG_COLUMNS}, job.recipe.monitor)
    progress.optimizer = optimizer.state_dict()
    _save_epoch(state, is_best)


def _train_epoch(
    state: TrainingState, train_step: TrainStep, optimizer: torch.optim.Optimizer, epoch: int, start_time: float
) -> None:
    """Take the epoch's remaining steps; saves a checkpoint every `SAVE_SECONDS`, and before a requested stop."""
    job, progress = state.job, state.progress
    order = train_step.source.samples.order(job.recipe.optim.sampling, seed=job.seed, epoch=epoch)
    epoch_batches = train_batches(order, job.recipe.optim.batch_size)
    previous_seconds = progress.seconds

    def prepare_batch(rows: NDArray[np.int64]) -> Any:
        return train_step.prepare(rows, epoch=epoch)

    prepared_batches = ordered_map(prepare_batch, epoch_batches[progress.step :], n_threads=job.workers)
    with contextlib.closing(prepared_batches):  # however the loop ends, its threads end too
        for micro_batches in prepared_batches:
            rows = epoch_batches[progress.step]
            train_step.rates.set(optimizer, epoch=progress.phase_epoch, step=progress.step)
            train_step(progress.step, rows, micro_batches, epoch=epoch)
            if state.average is not None:
                state.average.update(state.net, progress.phase_epoch * len(epoch_batches) + progress.step)
            progress.step += 1
            state.hooks.progress.step("train", progress.step, len(epoch_batches))
            is_stopping, is_saving = _vote_to_stop_or_save(state)
            if is_stopping or is_saving:
                progress.seconds = previous_seconds + time.perf_counter() - start_time
                _save_mid_epoch(state, train_step, optimizer, epoch)
            if is_stopping:
                raise _interrupted_error(state, epoch)
    train_step.flush()


def _vote_to_stop_or_save(state: TrainingState) -> tuple[bool, bool]:
    """Return whether to stop, and whether a checkpoint is due, with the same answer on every rank.

    Any rank may have been asked to stop; rank 0's clock alone decides when to save, as clocks differ.
    """
    is_stopping, is_saving = state.hooks.should_stop(), time.monotonic() - state.last_save_time > SAVE_SECONDS
    if state.process_group.size == 1:
        return is_stopping, is_saving
    votes = torch.tensor([is_stopping, is_saving and state.process_group.is_first], dtype=torch.int64)
    n_stopping, n_saving = state.process_group.sum(votes).tolist()
    return n_stopping > 0, n_saving > 0


def _save_mid_epoch(
    state: TrainingState, train_step: TrainStep, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    """Write a mid-epoch checkpoint; raises `NotFiniteError` instead where the net is no longer finite."""
    train_step.flush()
    state.progress.loss_sum, state.progress.n_correct = train_step.gather_sums()
    _check_finite(state, train_step, epoch, _is_finite(state.net), "a weight")
    state.progress.optimizer = optimizer.state_dict()
    state.save(MID_EPOCH_CHECKPOINT)


def _check_finite(state: TrainingState, train_step: TrainStep, epoch: int, is_finite: bool, quantity: str) -> None:
    """Raise `NotFiniteError` on all ranks if any rank saw a value that is not finite; it names the last batch."""
    if state.process_group.any(not is_finite):
        order = train_step.source.samples.order(state.job.recipe.optim.sampling, seed=state.job.seed, epoch=epoch)
        batch_index = state.progress.step - 1
        raise NotFiniteError(
            batch_index, train_batches(order, state.job.recipe.optim.batch_size)[batch_index], quantity
        )


def _save_epoch(state: TrainingState, is_best: bool) -> None:
    """Write the epoch's checkpoints, the best one first.

    If the run is killed between the two, the epoch is trained again, to the same bits, and both are written again.
    """
    if is_best:
        state.save(BEST_CHECKPOINT)
    state.save()
    write_log(state)
    state.hooks.on_epoch(state.progress.log_rows[-1], sum(phase.epochs for phase in state.job.recipe.phases))


def _restore_after_nan(state: TrainingState, train_step: TrainStep, error: NotFiniteError, epoch: int) -> None:
    """Go back to the last checkpoint with half the learning rates.

    Raises `DivergenceError` once that was done `MAX_NAN_RECOVERIES` times.
    """
    image_ids = train_step.source.samples.ids_of(error.rows[:4])
    location = f"epoch {epoch}, batch {error.batch_index + 1} (images {', '.join(image_ids)}, ...)"
    problem = f"{error.quantity} is not a number in {location}"
    return_to_last_checkpoint(state)
    progress = state.progress
    if len(progress.nan_recoveries) >= MAX_NAN_RECOVERIES:
        raise DivergenceError(
            f"{problem}, after {MAX_NAN_RECOVERIES} attempts at ever lower learning rates",
            outcome=f"{state.last_checkpoint}, {len(progress.log_rows)} finished epochs",
            remedy="lower the learning rate in the recipe, or look at these images",
        )
    progress.lr_scale /= 2
    progress.nan_recoveries.append(
        {
            "what": error.quantity,
            "epoch": epoch,
            "batch": error.batch_index + 1,
            "images": image_ids,
            "lr_scale": progress.lr_scale,
        }
    )
    state.process_group.barrier()  # every rank has read the checkpoint before rank 0 writes it again
    state.save()
    state.hooks.progress.say(
        f"{problem}: back to where the epoch began, learning rates times {progress.lr_scale:g} from here"
    )


def _halve_micro_batch(state: TrainingState, train_step: TrainStep, error: BaseException) -> None:
    """Halve the micro-batch after memory ran out, and go back to the last checkpoint; any other error is raised.

    Gradients are summed over micro-batches, so the step stays that of the recipe's batch; batch norm that learns sees
    the smaller micro-batches. The new size is written down, so that a resumed run does not run out of memory again.
    """
    if not is_out_of_memory(error):
        raise error
    micro_batch_size = train_step.micro_batch_size or -(
        -state.job.recipe.optim.batch_size // state.process_group.size
    )
    saved_text = f"{state.last_checkpoint}, {len(state.progress.log_rows)} finished epochs"
    # Batch norm cannot compute a variance from one image.
    minimum = 2 if any(isinstance(module, _BatchNorm) and module.training for module in state.net.modules()) else 1
    if micro_batch_size // 2 < minimum:
        raise UsageError(
            f"{state.fabric.device}: memory does not hold {micro_batch_size} "
            f"image{'s' * (micro_batch_size > 1)} of this recipe",
            outcome=saved_text,
            remedy="choose a smaller image.size or a smaller net in the recipe",
        ) from error
    MICRO_BATCH.write(state.folder, {"size": micro_batch_size // 2})
    problem = f"out of memory: batches are now added up from passes of {micro_batch_size // 2} images"
    if state.process_group.size > 1:  # the other ranks wait in a collective: only a fresh launch reaches them
        raise DermkitError(problem, outcome=saved_text, remedy="run the same command with --resume") from error
    train_step.optimizer.zero_grad()
    if state.fabric.device.type == "cuda":
        torch.cuda.empty_cache()
    return_to_last_checkpoint(state)
    state.hooks.progress.say(f"{problem}; batch norm, where it learns, sees these")


def _validate(state: TrainingState, train_step: TrainStep, epoch: int) -> dict[str, float]:
    """Return the validation metrics, of averaged weights where the recipe averages them.

    Every rank scores its shard in evaluation mode and float32.
    """
    source = train_step.source
    state.net.eval()
    device = state.fabric.device
    # Small batches side by side, one thread each: faster, and logits do not depend on the number of threads.
    shard = state.process_group.shard(np.arange(len(state.job.validation_rows)))

    def batch_logits(rows: NDArray[np.int64]) -> torch.Tensor:
        with torch.inference_mode():
            return source.validation_logits(state.net, rows).cpu().double()

    empty = torch.empty(0, state.job.n_classes, dtype=torch.float64)
    with state.average.applied(state.net) if state.average else contextlib.nullcontext():
        shard_logits = torch.cat(
            [
                empty,
                *parallel_batches(batch_logits, eval_batches(shard, device), workers=n_parallel_batches(device)),
            ]
        )
    logits = state.process_group.gather(shard_logits).numpy()  # (V, K) float64, the same bits on every rank
    _check_finite(state, train_step, epoch, bool(np.isfinite(logits).all()), "a validation score")
    return validation_metrics(logits, state.job.labels[state.job.validation_rows])


def _show_batch(state: TrainingState, phase: Phase, pixel_source: PixelSource) -> None:
    """Hand the run's first batch to the caller, as the net sees it (augmented.png)."""
    if state.progress.log_rows or state.process_group.rank > 0:
        return
    pixel_source = pixel_source.with_train_size(phase.image_size)
    is_unaugmented = phase.train_backbone == "none" and phase.views == 0
    rows = epoch_order(len(pixel_source.samples), seed=state.job.seed, epoch=1)[:_N_PREVIEW_IMAGES]
    make_batch = pixel_source.unaugmented_batch if is_unaugmented else pixel_source.batch
    state.hooks.on_first_batch(make_batch(rows, epoch=1, seed=state.job.seed), pixel_source.samples.labels[rows])


def _load_final_weights(state: TrainingState) -> None:
    load_best_checkpoint(state)
    if not _is_finite(state.net):
        raise DivergenceError(
            f"{state.folder}: the trained weights are not finite", remedy="lower the learning rate"
        )
    state.net.eval()


def _is_finite(net: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values())


def _interrupted_error(state: TrainingState, epoch: int) -> RunInterrupt:
    return RunInterrupt(
        f"interrupted in epoch {epoch}, after batch {state.progress.step}",
        outcome=f"{state.folder / MID_EPOCH_CHECKPOINT}, {len(state.progress.log_rows)} finished epochs "
        f"and these batches",
        remedy="run the same command with --resume; it ends with the weights of a run left alone",
    )
