"""What the steps of a phase need: its batches, the training step and the optimizer."""

from dataclasses import replace

import numpy as np
import torch

from dermkit.models.precision import resolve_precision
from dermkit.recipes.training_specs import Phase
from dermkit.training.batch_norm import smallest_pass
from dermkit.training.distillation import soften
from dermkit.training.features import FeatureJob, feature_source
from dermkit.training.learning_rates import LearningRates
from dermkit.training.loss import make_loss
from dermkit.training.optimizer import load_optimizer, make_optimizer
from dermkit.training.samples import BatchSource, PixelSource, Samples, pixels_on_device
from dermkit.training.smote_source import SmoteSource
from dermkit.training.state import TrainingState
from dermkit.training.step import TrainStep, train_batches


def make_pixel_source(state: TrainingState) -> PixelSource:
    """Return the pixels of all phases as batches; they are copied to a GPU once, where it can hold them."""
    job, recipe, device = state.job, state.job.recipe, state.fabric.device
    samples = Samples.build(
        job.image_ids, job.labels, job.train_rows, recipe.augment, recipe.grow, seed=job.seed, mixup=recipe.mix
    )
    if recipe.distil is not None and job.teacher is not None:
        samples = replace(samples, teacher=soften(job.teacher, recipe.distil.temperature))
    if job.metadata is not None:
        samples = replace(samples, metadata=job.metadata)
    pixels = pixels_on_device(job.pixels, device)
    return PixelSource(samples, pixels, job.validation_rows, job.preprocessing, device)


def make_batch_source(state: TrainingState, phase: Phase, pixel_source: PixelSource) -> BatchSource:
    """Return the phase's batches: of pixels, or of the cached features of a frozen backbone."""
    job, recipe, device = state.job, state.job.recipe, state.fabric.device
    pixel_source = pixel_source.with_train_size(phase.image_size)
    if phase.train_backbone != "none":
        return pixel_source
    compute = resolve_precision(recipe.compute, device.type)
    feature_job = FeatureJob(
        net=state.net,
        model=state.net.spec or recipe.model,
        compute=compute,
        pixel_keys=job.pixel_keys,
        device=device,
        cache_folder=job.cache_folder,
        process_group=state.process_group,
        progress=state.hooks.progress,
        should_stop=state.hooks.should_stop,
    )
    source = feature_source(pixel_source, feature_job, seed=job.seed, views=phase.views)
    if recipe.smote is None or recipe.model.classifier is not None:  # a classifier's fit adds them itself
        return source
    return SmoteSource(source, recipe.smote, seed=job.seed)


def make_train_step(
    state: TrainingState, phase: Phase, source: BatchSource
) -> tuple[TrainStep, torch.optim.Optimizer]:
    """Return the phase's training step and optimizer, in the state that the run's progress holds."""
    job, progress = state.job, state.progress
    recipe = job.recipe
    optimizer = make_optimizer(state.net, phase, recipe.optim)
    base_rates = tuple(group["lr"] for group in optimizer.param_groups)
    n_steps = len(train_batches(np.arange(len(source.samples)), recipe.optim.batch_size))
    module: torch.nn.Module = source.module(state.net)
    if recipe.compute.compile:
        module = torch.compile(module)  # type: ignore[assignment]
    wrapped_module, wrapped_optimizer = state.fabric.setup(module, optimizer)
    if progress.optimizer:
        load_optimizer(optimizer, progress.optimizer)
    # The sums of an epoch that is resumed are those of all ranks: rank 0 alone goes on with them.
    is_first_rank = state.process_group.rank == 0
    train_step = TrainStep(
        module=wrapped_module,
        optimizer=wrapped_optimizer,
        rates=LearningRates(base_rates, phase, recipe.optim, n_steps, progress.lr_scale),
        fabric=state.fabric,
        process_group=state.process_group,
        source=source,
        compute=resolve_precision(recipe.compute, state.fabric.device.type),
        loss=make_loss(source.samples.labels, job.n_classes, recipe.optim, state.fabric.device, recipe.distil),
        n_classes=job.n_classes,
        seed=job.seed,
        micro_batch_size=progress.micro_batch_size,
        min_pass_size=smallest_pass(state.net, phase, phase.train_size(recipe.image.size))
        if progress.micro_batch_size
        else 1,
        loss_sum=progress.loss_sum if is_first_rank else 0.0,
        n_correct=progress.n_correct if is_first_rank else 0.0,
    )
    return train_step, optimizer
