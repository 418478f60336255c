"""Fields of a recipe that contradict its classifier or SMOTE: refused before anything is trained, not left out."""

from collections.abc import Mapping
from typing import Any

from dermkit.errors import UsageError
from dermkit.recipes.schema import Recipe

_DENSE_LAYERS = "a classifier stands in place of dense layers"
_NO_LOSS = "a classifier has a loss of its own"
_NO_STEPS = "a classifier is not trained in steps"
_ONE_LABEL = "mixed images have two labels, and a classifier takes one"

DENSE_FIELDS: Mapping[str, tuple[Any, str]] = {
    "model.hidden": ([], _DENSE_LAYERS), "model.dropout": (0.0, _DENSE_LAYERS),
    "model.drop_path": (0.0, "the backbone is frozen"),
    "optim.label_smoothing": (0.0, _NO_LOSS), "optim.focal_gamma": (0.0, _NO_LOSS),
    "optim.logit_adjustment": (0.0, f"{_NO_LOSS}; optim.class_weights and optim.sampling weigh its samples"),
    "optim.weight_decay": (0.0, f"{_NO_LOSS}, regularised by model.classifier"),
    "optim.warmup_epochs": (0.0, _NO_STEPS), "optim.ema_decay": (0.0, _NO_STEPS),
    "optim.batch_norm_images": (0, "the backbone is frozen"), "mix": (None, _ONE_LABEL),
    "distil": (None, "a classifier learns labels, not a teacher's probabilities"),
}  # fmt: skip
"""Field -> the value that it has to have with `model.classifier`, and why."""


def check_head_fields(recipe: Recipe) -> None:
    """Raise `UsageError` for fields that would have no effect, or a wrong one, with the classifier or SMOTE."""
    problems = _classifier_problems(recipe) if recipe.model.classifier else []
    if recipe.smote and recipe.mix:
        problems.append("mix: mixed images have two labels, and smote makes samples of one class")
    if recipe.smote and recipe.model.metadata:
        problems.append(
            "model.metadata: smote makes vectors between those of images, and no image is half a category"
        )
    if problems:
        raise UsageError(
            f"{recipe.name}: {'; '.join(problems)}",
            outcome="nothing was trained",
            remedy="set what is named to null, [] or 0; `--classifier KIND` does that for a classifier",
        )


def _classifier_problems(recipe: Recipe) -> list[str]:
    return [
        f"{path}: {reason}" for path, (value, reason) in DENSE_FIELDS.items() if _value_at(recipe, path) != value
    ]


def _value_at(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value
