"""Which batches batch norm can train on: it needs two values per channel, and a map of 1 x 1 has one for each image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dermkit.errors import UsageError
from dermkit.models.net import Net, freeze, set_train_mode
from dermkit.recipes.schema import Recipe
from dermkit.recipes.training_specs import Phase


def smallest_pass(net: Net, phase: Phase, image_size: int) -> int:
    """Return how many images a training pass of a phase needs at least: 2 where batch norm learns from 1 x 1 maps."""
    return 2 if single_value_layers(net, phase, image_size) else 1


def single_value_layers(net: Net, phase: Phase, image_size: int) -> list[str]:
    """Return the batch-norm layers that learn in a phase and see one value per channel for each image.

    The net scores one blank image in evaluation mode, so its statistics and random numbers stay as they are.
    """
    if phase.train_backbone == "none" or phase.freeze_batch_norm:
        return []
    single: list[str] = []

    def note_single(name: str, x: torch.Tensor) -> None:
        if x.numel() == x.shape[1]:
            single.append(name)

    with _restored(net):
        freeze(net, phase)
        set_train_mode(net, phase)
        layers = {
            name: layer for name, layer in net.named_modules() if isinstance(layer, _BatchNorm) and layer.training
        }
        hooks = [
            layer.register_forward_pre_hook(lambda _layer, inputs, name=name: note_single(name, inputs[0]))
            for name, layer in layers.items()
        ]
        net.eval()
        device = next(net.parameters()).device
        try:
            with torch.no_grad():
                net(torch.zeros(1, 3, image_size, image_size, device=device))
        finally:
            for hook in hooks:
                hook.remove()
    return single


@contextmanager
def _restored(net: nn.Module) -> Iterator[None]:
    """Restore which parameters learn and which modules are in training mode."""
    parameters, modules = list(net.parameters()), list(net.modules())
    flags: Sequence[Any] = [p.requires_grad for p in parameters], [module.training for module in modules]
    try:
        yield
    finally:
        for parameter, learns in zip(parameters, flags[0], strict=True):
            parameter.requires_grad_(learns)
        for module, is_training in zip(modules, flags[1], strict=True):
            module.training = is_training


def check_batch_norm(net: Net, recipe: Recipe, n_samples: int) -> None:
    """Raise `UsageError` before anything is trained if a batch of the recipe is one image and batch norm needs two.

    n_samples: training samples of an epoch. A last batch of one joins its neighbour, so only a batch size of 1 or a
    single sample leaves one.
    """
    if recipe.optim.batch_size > 1 and n_samples > 1:
        return
    for number, phase in enumerate(recipe.phases):
        size = phase.train_size(recipe.image.size)
        if layers := single_value_layers(net, phase, size):
            cause = "optim.batch_size is 1" if recipe.optim.batch_size == 1 else "there is one training image"
            raise UsageError(
                f"recipe {recipe.name}: {cause}, and batch norm cannot learn from it: in phase {number} the layer "
                f"{layers[0]} of {recipe.model.backbone} sees a map of 1 x 1 at "
                f"{f'image_size {size}' if phase.image_size else f'image.size {size}'}, one value without a variance",
                outcome="nothing was trained",
                remedy="set optim.batch_size to 2 or more, choose a larger image.size, or set "
                f"phases.{number}.freeze_batch_norm to true",
            )
