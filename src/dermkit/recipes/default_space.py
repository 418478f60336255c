"""The search space of a recipe where nobody gives one: ranges around its own values."""

from collections.abc import Iterator

from dermkit.recipes.augmentation import PRESETS
from dermkit.recipes.effects import is_frozen, why_without_effect
from dermkit.recipes.schema import Recipe
from dermkit.recipes.search_space import Choice, Dimension, Range, SearchSpace, parse_space

RATE_FACTOR = 10.0
"""Learning rates are tried from a tenth of the recipe's to ten times it: a rate is rarely off by more, and the wrong
one ruins a training. Chosen, not measured."""

_BATCH_SIZES = (8, 16, 32, 64, 128)


def default_space(recipe: Recipe, *, set_fields: tuple[str, ...] = ()) -> SearchSpace:
    """Return the fields that matter most for training, each around the recipe's value, if they have an effect with it.

    set_fields: fields that the command line sets, which stay as they are.
    """
    dimensions = {
        path: dimension
        for path, dimension in _candidates(recipe)
        if not why_without_effect(path, recipe)
        and not any(f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.") for name in set_fields)
    }
    content = SearchSpace(dimensions).as_dict()
    return parse_space(content, recipe, "the default search space", set_fields=set_fields)


def _candidates(recipe: Recipe) -> Iterator[tuple[str, Dimension]]:
    if recipe.model.classifier is not None:
        yield from _classifier_fields()
    else:
        yield from _rates(recipe)
        yield from _loss_and_batches(recipe)
    if augmentations := _augmentations(recipe):
        yield "augment", augmentations
    if recipe.smote is not None:
        yield "smote.target_fraction", Range(0.25, 1.0)


def _rates(recipe: Recipe) -> Iterator[tuple[str, Dimension]]:
    for index, phase in enumerate(recipe.phases):
        for field, rate in (("head_lr", phase.head_lr), ("backbone_lr", phase.backbone_lr)):
            if rate > 0:
                low, high = float(f"{rate / RATE_FACTOR:.3g}"), float(f"{rate * RATE_FACTOR:.3g}")
                yield f"phases.{index}.{field}", Range(low, high, log=True)
        if phase.train_backbone == "all" and not recipe.model.backbone.startswith("dermkit/"):
            yield f"phases.{index}.layer_decay", Range(0.5, 1.0)


def _loss_and_batches(recipe: Recipe) -> Iterator[tuple[str, Dimension]]:
    batch_size = recipe.optim.batch_size
    yield "optim.batch_size", Choice(tuple(sorted({*_BATCH_SIZES[1:4], batch_size})))
    yield "optim.weight_decay", Range(1e-6, 1e-1 if recipe.optim.optimizer == "adamw" else 1e-2, log=True)
    yield "optim.schedule", Choice(("constant", "cosine"))
    yield "optim.warmup_epochs", Choice((0.0, 1.0))
    yield "optim.ema_decay", Choice((0.0, 0.99))
    yield "optim.label_smoothing", Range(0.0, 0.2)
    yield "optim.focal_gamma", Choice((0.0, 1.0, 2.0))
    if (
        recipe.optim.sampling != "balanced"
    ):  # the two do not go together, so that balanced sampling is not tried either
        yield "optim.logit_adjustment", Choice((0.0, 0.5, 1.0))
    yield "optim.class_weights", Choice(("none", "square_root", "balanced"))
    yield "optim.sampling", Choice(("shuffled", "square_root"))
    yield "model.dropout", Range(0.0, 0.6)
    if not is_frozen(recipe) and not recipe.model.backbone.startswith("dermkit/"):
        yield "model.drop_path", Range(0.0, 0.3)


def _classifier_fields() -> Iterator[tuple[str, Dimension]]:
    yield "model.classifier.penalty", Range(1e-3, 1e3, log=True)
    yield "model.classifier.neighbours", Range(1, 100, log=True, is_whole=True)
    yield "model.classifier.iterations", Range(20, 500, log=True, is_whole=True)
    yield "model.classifier.learning_rate", Range(0.01, 0.5, log=True)
    yield "model.classifier.max_leaves", Choice((7, 15, 31))
    yield "optim.class_weights", Choice(("none", "square_root", "balanced"))


def _augmentations(recipe: Recipe) -> Choice | None:
    """Return presets that are tried, with the recipe's own first; None where it has a spec of its own.

    `winner-2020` is left out: it is slow.
    """
    own = next((name for name, spec in PRESETS.items() if spec == recipe.augment), None)
    return None if own is None else Choice(tuple(dict.fromkeys((own, "none", "light", "dermoscopy"))))
