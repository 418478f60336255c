"""Sweep the learning rates of a phase of a recipe over training batches; nothing is validated or saved."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from lightning_fabric import Fabric

from dermkit.errors import UsageError
from dermkit.models.inference import exact_float32
from dermkit.models.net import Net, freeze, set_train_mode
from dermkit.models.precision import is_out_of_memory
from dermkit.progress import Progress
from dermkit.training.batch_norm import check_batch_norm
from dermkit.training.distributed.process_group import process_group_of
from dermkit.training.phase_checks import check_phases
from dermkit.training.phase_setup import make_batch_source, make_pixel_source, make_train_step
from dermkit.training.rate_sweep import RateSweep, sweep, sweep_rates
from dermkit.training.state import TrainingHooks, TrainingJob, TrainingState
from dermkit.training.step import NotFiniteError, TrainStep, train_batches


def sweep_learning_rates(
    job: TrainingJob,
    net: Net,
    *,
    fabric: Fabric,
    phase_index: int,
    low: float,
    high: float,
    n_steps: int,
    progress: Progress,
) -> RateSweep:
    """Train `net` for some steps of a phase at head rates from low to high, and return the losses.

    The other parameter groups keep their ratio to the head's. Batches, augmentation, loss and optimizer are the
    recipe's; schedule, warm-up and averaged weights are not used. Validation images are not scored, and not looked at:
    the sweep is a choice, and would choose by them.
    """
    batch_size = job.recipe.optim.batch_size
    try:
        with exact_float32(fabric.device):
            take_step = _make_step(job, net, fabric, phase_index, progress)
            return sweep(take_step, sweep_rates(low, high, n_steps))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UsageError(
            f"{fabric.device}: memory does not hold a batch of {batch_size} images of this recipe",
            outcome="nothing was trained",
            remedy="choose a smaller optim.batch_size or image.size with --set; the rate depends on the batch size",
        ) from error


def _make_step(
    job: TrainingJob, net: Net, fabric: Fabric, phase_index: int, progress: Progress
) -> Callable[[int, float], float]:
    """Return what takes a step at a rate of the head, and returns its loss."""
    train_step, optimizer = _start_phase(job, net, fabric, phase_index, progress)
    base_rates, samples = train_step.rates.base, train_step.source.samples
    sampling, batch_size = job.recipe.optim.sampling, job.recipe.optim.batch_size
    n_batches = train_step.rates.n_steps

    def take_step(number: int, rate: float) -> float:
        epoch, index = 1 + number // n_batches, number % n_batches
        rows = train_batches(samples.order(sampling, seed=job.seed, epoch=epoch), batch_size)[index]
        for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * base_rate / base_rates[0]
        train_step.loss_sum = 0.0
        train_step(index, rows, train_step.prepare(rows, epoch=epoch), epoch=epoch)
        try:
            train_step.flush()
        except NotFiniteError:
            return float("nan")
        progress.step("train", index + 1, n_batches)
        return train_step.loss_sum / len(rows)

    return take_step


def _start_phase(
    job: TrainingJob, net: Net, fabric: Fabric, phase_index: int, progress: Progress
) -> tuple[TrainStep, torch.optim.Optimizer]:
    """Return step and optimizer of a phase, the net in training mode."""
    phase = job.recipe.phases[phase_index]
    training_job = replace(job, validation_rows=np.array([], dtype=np.int64))
    hooks = TrainingHooks(progress=progress)
    # The folder is where checkpoints would lie; none is written.
    state = TrainingState(training_job, job.cache_folder, net, fabric, process_group_of(fabric), hooks)
    net.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixel_source = make_pixel_source(state)
    check_phases(net, job.recipe)
    check_batch_norm(net, job.recipe, len(pixel_source.samples))
    freeze(net, phase)
    source = make_batch_source(state, phase, pixel_source)
    train_step, optimizer = make_train_step(state, phase, source)
    set_train_mode(net, phase)
    return train_step, optimizer
