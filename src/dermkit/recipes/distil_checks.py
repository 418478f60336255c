"""Whether a recipe's distillation and a teacher fit together: refused before anything is trained, not left out."""

from pathlib import Path

from dermkit.errors import UsageError
from dermkit.recipes.schema import Recipe

_NOTHING = "nothing was trained"


def check_distillation(recipe: Recipe, teacher: Path | None) -> None:
    """Raise `UsageError` for a recipe that needs a teacher and has none, or has one and would not heed it."""
    if recipe.distil is not None and teacher is None:
        raise UsageError(
            f"{recipe.name}: has `distil` and no teacher",
            outcome=_NOTHING,
            remedy="add --teacher MODEL_OR_RUN, or set distil to null",
        )
    if recipe.distil is None and teacher is not None:
        raise UsageError(
            f"--teacher {teacher}: {recipe.name} has no `distil`, so it would have no effect",
            outcome=_NOTHING,
            remedy='add --set \'distil={"weight": 0.5, "temperature": 2.0}\', or leave out --teacher',
        )
    if recipe.distil is not None and (recipe.optim.logit_adjustment or recipe.smote):
        raise UsageError(
            f"{recipe.name}: distil goes with neither optim.logit_adjustment, whose logits are not the net's own "
            "probabilities, nor smote, whose samples are no images that a teacher could see",
            outcome=_NOTHING,
            remedy="set one of them to null or 0",
        )
