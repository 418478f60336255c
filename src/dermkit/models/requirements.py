"""What a recipe needs that can be seen without torch: its backbone's name, and its weights file."""

from pathlib import Path

from dermkit.errors import UntrustedError
from dermkit.models.backbones import check_backbone_name
from dermkit.recipes.distil_checks import check_distillation
from dermkit.recipes.experiments import RECIPES
from dermkit.recipes.head_checks import check_head_fields
from dermkit.recipes.schema import Recipe


def check_requirements(recipe: Recipe, weights_file: Path | None, teacher: Path | None = None) -> None:
    """Raise `UsageError` for a backbone that does not exist or fields without effect, `UntrustedError` for weights
    that are not there.
    """
    check_backbone_name(recipe.model)
    check_head_fields(recipe)
    check_distillation(recipe, teacher)
    if weights_file is not None and recipe.model.weights != "none" and not weights_file.exists():
        raise UntrustedError(
            f"{weights_file}: there is no such weights file",
            outcome="nothing was trained",
            remedy="check the path, or train from scratch, which needs no weights: "
            f"`dermkit train {scratch_recipe(recipe.name, recipe.model.backbone)} DATASET`",
        )


def scratch_recipe(name: str, backbone: str) -> str:
    """Return the named recipe that needs no weights: like that of `name`, else with the backbone, else a small CNN."""
    wanted = (backbone, "none")
    candidates = [f"{stem}-scratch" for stem in (name, name.removesuffix("-mobilenetv2"))]
    candidates += [
        recipe.name for recipe in RECIPES.values() if (recipe.model.backbone, recipe.model.weights) == wanted
    ]
    return next((candidate for candidate in candidates if candidate in RECIPES), "scratch")
