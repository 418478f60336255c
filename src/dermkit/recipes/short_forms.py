"""The short forms of `--set`: epochs, batch size, learning rate, image size, backbone, folds, class weights, views,
classifier, SMOTE and metadata.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dermkit.errors import did_you_mean
from dermkit.recipes.derive import Assignment, recipe_change_error
from dermkit.recipes.frozen import CLASSIFIERS, SMOTE, ClassifierKind, classifier_phase
from dermkit.recipes.head_checks import DENSE_FIELDS
from dermkit.recipes.schema import Recipe
from dermkit.recipes.training_specs import METADATA_FIELDS


@dataclass(frozen=True, kw_only=True)
class ShortForms:
    """The short forms as they were given; None = not given.

    epochs: one number for every phase, or one a phase. learning_rate: that of the head in the first phase, the others
    keep their ratio to it; or one a phase, of the head. folds: k folds, of the training images where the recipe keeps
    published test images, else of all images. metadata: fields with commas, or "none".
    """

    epochs: str | None = None
    batch_size: int | None = None
    learning_rate: str | None = None
    image_size: int | None = None
    backbone: str | None = None
    folds: int | None = None
    class_weights: str | None = None
    test_views: str | None = None
    classifier: ClassifierKind | None = None
    smote: bool = False
    metadata: str | None = None


P_UNKNOWN = 0.1
"""Chance that `--metadata` sets a field of a training image to unknown. Chosen, not measured."""


def short_form_assignments(recipe: Recipe, forms: ShortForms, *, scheme: str = "") -> list[Assignment]:
    """Return what the short forms mean for this recipe; raises `UsageError` for numbers that do not fit its phases.

    scheme: of the split, where something else changes it.
    """
    simple_forms = (
        ("--batch-size", "optim.batch_size", forms.batch_size),
        ("--image-size", "image.size", forms.image_size),
        ("--backbone", "model.backbone", forms.backbone),
        ("--class-weights", "optim.class_weights", forms.class_weights),
        ("--test-views", "test_views", forms.test_views),
    )
    assignments = [
        Assignment(path, value, f"{flag} {value}") for flag, path, value in simple_forms if value is not None
    ]
    if forms.folds is not None:
        option = f"--folds {forms.folds}"
        fields = {"split.scheme": "kfold", "split.folds": forms.folds, "split.test": 0.0}
        if (scheme or recipe.split.scheme).startswith("given"):
            del fields["split.scheme"]
        assignments += [Assignment(path, value, option) for path, value in fields.items()]
    assignments += _classifier(recipe, forms.classifier) if forms.classifier is not None else []
    assignments += [Assignment("smote", asdict(SMOTE), "--smote")] if forms.smote else []
    assignments += [_metadata(forms.metadata)] if forms.metadata is not None else []
    assignments += _epochs(recipe, forms.epochs) if forms.epochs is not None else []
    assignments += _learning_rates(recipe, forms.learning_rate) if forms.learning_rate is not None else []
    return assignments


def _classifier(recipe: Recipe, kind: ClassifierKind) -> list[Assignment]:
    option = f"--classifier {kind}"
    first = recipe.phases[0]
    views = first.views if first.train_backbone == "none" and recipe.mix is None else 0
    phase = replace(classifier_phase(views), freeze_batch_norm=first.freeze_batch_norm)
    values: list[tuple[str, Any]] = [
        ("model.classifier", asdict(CLASSIFIERS[kind])),
        ("phases", json.loads(json.dumps([asdict(phase)]))),
        *((path, value) for path, (value, _) in DENSE_FIELDS.items()),
    ]
    return [Assignment(path, value, option) for path, value in values]


def _metadata(text: str) -> Assignment:
    option, names = f"--metadata {text}", [name.strip() for name in text.split(",")]
    if names == ["none"]:
        return Assignment("model.metadata", None, option)
    for name in names:
        if name not in METADATA_FIELDS or names.count(name) > 1:
            problem = "twice" if name in METADATA_FIELDS else f"unknown{did_you_mean(name, METADATA_FIELDS)}"
            raise recipe_change_error(
                f"{option}: {name!r} is {problem}", f"give some of {','.join(METADATA_FIELDS)}, or none"
            )
    fields = [name for name in METADATA_FIELDS if name in names]
    return Assignment("model.metadata", {"fields": fields, "p_unknown": P_UNKNOWN}, option)


def _epochs(recipe: Recipe, text: str) -> list[Assignment]:
    numbers = _numbers("--epochs", text, recipe)
    if any(not number.is_integer() for number in numbers):
        raise recipe_change_error(f"--epochs {text}: not a whole number", "give a number such as --epochs 20")
    epochs = numbers * len(recipe.phases) if len(numbers) == 1 else numbers
    return [
        Assignment(f"phases.{index}.epochs", int(count), f"--epochs {text}") for index, count in enumerate(epochs)
    ]


def _learning_rates(recipe: Recipe, text: str) -> list[Assignment]:
    numbers = _numbers("--lr", text, recipe)
    if not any(numbers):
        raise recipe_change_error(
            f"--lr {text}: nothing would be trained", "give a rate above 0, such as --lr 0.001"
        )
    first_rate = recipe.phases[0].head_lr
    if len(numbers) == 1 and not first_rate:
        raise recipe_change_error(
            f"--lr {text}: the first phase does not train the head", "--set phases.0.backbone_lr=..."
        )
    head_rates: Sequence[float] = (
        numbers if len(numbers) > 1 else [numbers[0] * phase.head_lr / first_rate for phase in recipe.phases]
    )
    return list(_rate_assignments(recipe, head_rates, text))


def _rate_assignments(recipe: Recipe, head_rates: Sequence[float], text: str) -> Iterator[Assignment]:
    for index, (phase, head_rate) in enumerate(zip(recipe.phases, head_rates, strict=True)):
        yield Assignment(f"phases.{index}.head_lr", _rounded(head_rate), f"--lr {text}")
        if phase.backbone_lr and phase.head_lr:
            rate = head_rate * phase.backbone_lr / phase.head_lr
            yield Assignment(f"phases.{index}.backbone_lr", _rounded(rate), f"--lr {text}")


def _rounded(rate: float) -> float:
    """Return a rate without the last bits of a product: 3e-05 and not 3.0000000000000004e-05."""
    return float(f"{rate:.12g}")


def _numbers(flag: str, text: str, recipe: Recipe) -> list[float]:
    """Return one number, or as many as the recipe has phases."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise recipe_change_error(
            f"{flag} {text}: not a number, nor numbers with commas", f"e.g. {flag} 20"
        ) from None
    if len(numbers) not in (1, len(recipe.phases)):
        raise recipe_change_error(
            f"{flag} {text}: {len(numbers)} numbers, but {recipe.name} has {_phases_text(recipe)}",
            f"give one number, or {len(recipe.phases)} with commas",
        )
    return numbers


def _phases_text(recipe: Recipe) -> str:
    trained = {"none": "head alone", "all": "whole net"}
    texts = [
        f"{trained.get(str(phase.train_backbone), f'last {phase.train_backbone} layer groups')}, {phase.epochs} epochs"
        for phase in recipe.phases
    ]
    return f"{len(texts)} phase{'s' * (len(texts) > 1)} ({'; '.join(texts)})"
