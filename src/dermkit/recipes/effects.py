"""Which fields of a recipe can change a number with it: a rate of a frozen backbone cannot."""

from collections.abc import Callable, Mapping, Sequence

from dermkit.recipes.augmentation import AugmentSpec
from dermkit.recipes.fields import generic_path
from dermkit.recipes.schema import Recipe
from dermkit.recipes.training_specs import Phase

_FROZEN = "the backbone is frozen (train_backbone none)"
_BACKBONE_PHASE_FIELDS = ("backbone_lr", "layer_decay", "freeze_batch_norm", "image_size")
_BACKBONE_FIELDS = ("model.drop_path", "optim.batch_norm_images")
_CLASSIFIER_FIELDS: Mapping[str, Sequence[str]] = {
    "penalty": ("logistic", "svm"), "neighbours": ("k_nearest",), "iterations": ("gradient_boosting",),
    "learning_rate": ("gradient_boosting",), "max_leaves": ("gradient_boosting",),
}  # fmt: skip
"""Field of `model.classifier` -> the kinds that use it."""
_WEIGHTS_OF_SAMPLES = ("optim.class_weights", "optim.sampling")
_NOT_OF_A_CLASSIFIER = (
    "optim.", "phases.N.epochs", "phases.N.head_lr", "phases.N.patience", "model.hidden", "model.dropout", "mix.",
    "keep",
)  # fmt: skip
"""Fields that say how dense layers are trained."""


def why_without_effect(path: str, recipe: Recipe, *, searched: Sequence[str] = ()) -> str:
    """Return why a field changes nothing with a recipe, "" if it can.

    searched: fields that take other values too; a field has no effect only if no value of theirs gives it one.
    """
    generic = generic_path(path)
    searched_paths = {generic_path(name) for name in searched}
    for gates, rule in _RULES:
        if searched_paths.isdisjoint(gates) and (reason := rule(path, generic, recipe)):
            return reason
    return ""


def is_frozen(recipe: Recipe) -> bool:
    """Whether no phase trains the backbone."""
    return all(phase.train_backbone == "none" for phase in recipe.phases)


def uses_augmentation(recipe: Recipe) -> bool:
    """Whether training shows augmented images: of a frozen backbone, cached views."""
    return any(phase.train_backbone != "none" or phase.views > 0 for phase in recipe.phases)


def _phase_of(path: str, recipe: Recipe) -> Phase | None:
    """Return the phase that a path is in, None for other paths and phases that are not there."""
    parts = path.split(".")
    if parts[0] != "phases" or len(parts) < 3 or not parts[1].isdigit() or int(parts[1]) >= len(recipe.phases):
        return None
    return recipe.phases[int(parts[1])]


def _frozen_backbone(path: str, generic: str, recipe: Recipe) -> str:
    phase, field = _phase_of(path, recipe), generic.rpartition(".")[2]
    if phase is not None and phase.train_backbone == "none" and field in _BACKBONE_PHASE_FIELDS:
        return _FROZEN
    return _FROZEN if generic in _BACKBONE_FIELDS and is_frozen(recipe) else ""


def _trained_backbone(path: str, generic: str, recipe: Recipe) -> str:
    phase = _phase_of(path, recipe)
    if phase is not None and phase.train_backbone != "none" and generic == "phases.N.views":
        return "views are cached for a frozen backbone only"
    return ""


def _augmentation(_path: str, generic: str, recipe: Recipe) -> str:
    if generic.split(".")[0] == "augment" and not uses_augmentation(recipe):
        return "features of unaugmented images are cached (views 0)"
    return ""


def _optimizer(_path: str, generic: str, recipe: Recipe) -> str:
    if generic == "optim.momentum" and recipe.optim.optimizer != "sgd":
        return f"the optimizer is {recipe.optim.optimizer}"
    return ""


def _classifier(_path: str, generic: str, recipe: Recipe) -> str:
    classifier = recipe.model.classifier
    if classifier is None:
        return ""
    field = generic.removeprefix("model.classifier.")
    if field in _CLASSIFIER_FIELDS and classifier.kind not in _CLASSIFIER_FIELDS[field]:
        return f"the classifier is {classifier.kind}"
    if generic in _WEIGHTS_OF_SAMPLES:
        return ""
    if any(generic == name or (name[-1] == "." and generic.startswith(name)) for name in _NOT_OF_A_CLASSIFIER):
        return "a classifier of scikit-learn is fitted in place of dense layers"
    return ""


def _inactive_amounts(_path: str, generic: str, recipe: Recipe) -> str:
    """A probability of changes that all have the amount 0."""
    spec: AugmentSpec = recipe.augment
    if generic in ("augment.p_geometric", "augment.fill") and not (spec.rotate or spec.shift or spec.zoom):
        return "rotate, shift and zoom are 0"
    if generic == "augment.p_colour" and not (spec.brightness or spec.contrast or spec.saturation):
        return "brightness, contrast and saturation are 0"
    return ""


_Rule = Callable[[str, str, Recipe], str]
_RULES: Sequence[tuple[Sequence[str], _Rule]] = (
    (("phases.N.train_backbone",), _frozen_backbone),
    (("phases.N.train_backbone",), _trained_backbone),
    (("phases.N.train_backbone", "phases.N.views"), _augmentation),
    (("optim.optimizer",), _optimizer),
    (("model.classifier", "model.classifier.kind"), _classifier),
    (("augment.rotate", "augment.shift", "augment.zoom", "augment.brightness", "augment.contrast",
      "augment.saturation"), _inactive_amounts),
)  # fmt: skip
"""(fields that a rule looks at, rule): it is not asked where one of these is searched too."""
