"""What a backbone cannot do in a phase of the recipe, told before anything is trained."""

import torch

from dermkit.errors import UsageError
from dermkit.models.net import Net, layer_groups
from dermkit.recipes.schema import Recipe


def check_phases(net: Net, recipe: Recipe) -> None:
    """Raise `UsageError` if the backbone has no layer groups for `layer_decay`, or does not take a phase's image size.

    The net scores a blank image of each size in evaluation mode, so its statistics and random numbers stay as they are.
    """
    if any(phase.layer_decay != 1.0 for phase in recipe.phases):
        layer_groups(net)
    for number, phase in enumerate(recipe.phases):
        if phase.train_size(recipe.image.size) != recipe.image.size:
            _check_size(net, recipe, number)


def _check_size(net: Net, recipe: Recipe, number: int) -> None:
    size, device = recipe.phases[number].image_size, next(net.parameters()).device
    training_flags = [module.training for module in net.modules()]
    net.eval()
    try:
        with torch.inference_mode():
            net(torch.zeros(1, 3, size, size, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"recipe {recipe.name}: phases.{number}.image_size is {size}, and {recipe.model.backbone} does not take "
            f"such images: {str(error).strip().splitlines()[0]}",
            outcome="nothing was trained",
            remedy=f"set phases.{number}.image_size to 0; a vision transformer takes several sizes with "
            'model.backbone_args {"dynamic_img_size": true}',
        ) from error
    finally:
        for module, is_training in zip(net.modules(), training_flags, strict=True):
            module.training = is_training
