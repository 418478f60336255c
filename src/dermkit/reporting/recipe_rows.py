"""A recipe as rows of name and text, for reports and papers: only what has an effect with it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from dermkit.recipes.augmentation import active_fields
from dermkit.recipes.schema import ClassifierSpec, ModelSpec, Recipe, changes_text, recipe_to_dict
from dermkit.recipes.training_specs import DistilSpec, Phase, SmoteSpec

_CLASSIFIER_TITLES = {
    "logistic": "logistic regression", "k_nearest": "nearest neighbours, weighted by distance",
    "svm": "support vector machine with a radial kernel", "gradient_boosting": "gradient-boosted trees",
}  # fmt: skip

_VIEWS = {
    "dihedral": "the mean of an image's eight symmetries",
    "dihedral_crops": "the mean of an image's eight symmetries and five crops",
    "choose": "the mean of those views of an image with the lowest log loss on validation images",
}


def flatten_json(tree: Mapping[str, Any], parent_name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested JSON objects with their path as text."""
    for key, child in tree.items():
        name = f"{parent_name}, {key}" if parent_name else str(key)
        if isinstance(child, Mapping):
            yield from flatten_json(child, name)
        else:
            yield name, ", ".join(map(str, child)) if isinstance(child, list) else child


def recipe_rows(recipe: Recipe | None) -> list[tuple[str, str]]:
    """Return the recipe as rows of name and text; recipe.json has the values."""
    from dermkit.recipes.effects import uses_augmentation  # here, since the chain of imports to it is long

    if recipe is None:
        return []
    image_spec, fields = recipe.image, recipe_to_dict(recipe)
    pixel_scaling = (
        "pixels in 0 to 1" if image_spec.normalise == "zero_one" else "normalised as the weights were trained"
    )
    start = "pretrained" if recipe.model.weights == "imagenet" else "random"
    grow = {**fields["grow"], "augment": active_fields(recipe.grow.augment)} if recipe.grow else {}
    rows = [
        ("About", recipe.about),
        ("Changed from", changes_text(recipe)),
        ("Repeats the system", recipe.system),
        (
            "Images",
            f"{image_spec.size} x {image_spec.size} px ({image_spec.resize}, "
            f"{image_spec.interpolation}), {pixel_scaling}",
        ),
        ("Backbone", f"{recipe.model.backbone}, {start} weights at the start"),
        ("Head", _head_text(recipe)),
        ("Second input", _spec_text(fields["model"]["metadata"]) if recipe.model.metadata else ""),
        *((f"Phase {number}", _phase_text(phase, recipe)) for number, phase in enumerate(recipe.phases, 1)),
        ("Loss and optimizer", _optimizer_text(recipe)),
        ("Augmentation", _spec_text(active_fields(recipe.augment)) if uses_augmentation(recipe) else "none"),
        ("Growth of small classes", _spec_text(grow)),
        ("SMOTE", _smote_text(recipe.smote)),
        ("Mixing of images", _spec_text(fields["mix"] or {})),
        ("Distillation", _distillation_text(recipe.distil)),
        ("Views of an image", _VIEWS.get(recipe.test_views, "")),
        ("Computed in", _spec_text(fields["compute"])),
        ("Split", _spec_text(fields["split"])),
        ("Weights kept", _kept_text(recipe)),
    ]
    return [(name, text) for name, text in rows if text]


def _has_effect(path: str, recipe: Recipe) -> bool:
    from dermkit.recipes.effects import why_without_effect  # as above

    return not why_without_effect(path, recipe)


def _head_text(recipe: Recipe) -> str:
    model: ModelSpec = recipe.model
    if model.classifier is not None:
        return _classifier_text(model.classifier, recipe)
    layers = [*(f"dense {width}, ReLU" for width in model.hidden), "dense, softmax"]
    return f"{'; '.join(layers)}; dropout {model.dropout:g}"


def _classifier_text(classifier: ClassifierSpec, recipe: Recipe) -> str:
    values = {name: value for name, value in asdict(classifier).items() if name != "kind"}
    settings = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in values.items()
        if _has_effect(f"model.classifier.{name}", recipe)
    ]
    return (
        f"{_CLASSIFIER_TITLES[classifier.kind]} (scikit-learn; {', '.join(settings)}) on features of the backbone"
    )


def _phase_text(phase: Phase, recipe: Recipe) -> str:
    views_text = f", {phase.views} augmented views per image" if phase.views else ""
    if recipe.model.classifier is not None:
        return f"backbone frozen{views_text}; the classifier fitted once"
    full_or_frozen_text = {"none": "backbone frozen", "all": "whole net trained"}
    trained_layers = full_or_frozen_text.get(
        str(phase.train_backbone), f"last {phase.train_backbone} layer groups of the backbone trained"
    )
    rates_text = f"learning rate of the head {phase.head_lr:g}"
    rates_text += f", of the backbone {phase.backbone_lr:g}" if phase.train_backbone != "none" else ""
    rates_text += f", times {phase.layer_decay:g} from each layer group down" if phase.layer_decay != 1.0 else ""
    size_text = f"; training images of {phase.image_size} px" if phase.image_size else ""
    stopping_text = (
        f"early stopping after {phase.patience} epochs without improvement"
        if phase.patience
        else "no early stopping"
    )
    return f"up to {phase.epochs} epochs; {trained_layers}{views_text}{size_text}; {rates_text}; {stopping_text}"


def _optimizer_text(recipe: Recipe) -> str:
    fields = {name: value for name, value in asdict(recipe.optim).items() if _has_effect(f"optim.{name}", recipe)}
    if recipe.model.classifier is not None:
        weights = [f"{name.replace('_', ' ')} {value}" for name, value in fields.items()]
        return f"the classifier's own; {', '.join(weights)}"
    return f"cross-entropy; {_spec_text(fields)}"


def _smote_text(smote: SmoteSpec | None) -> str:
    if smote is None:
        return ""
    return (
        f"features of smaller classes up to {smote.target_fraction:g} of the largest, each between two of "
        f"{smote.neighbours} nearest neighbours, in training alone"
    )


def _distillation_text(distil: DistilSpec | None) -> str:
    if distil is None:
        return ""
    share = f"{distil.weight:g} of the loss is that of a trained model's probabilities"
    return f"{share}, at temperature {distil.temperature:g}"


def _kept_text(recipe: Recipe) -> str:
    if recipe.model.classifier is not None:
        return ""
    if recipe.keep == "last":
        return "those of the last epoch"
    metric = recipe.monitor.removeprefix("val_").replace("_", " ").replace("auroc macro", "mean AUROC")
    return f"those of the epoch with the best {metric} on validation images"


def _spec_text(value: Mapping[str, Any]) -> str:
    """Return the fields of a spec that are on."""
    field_texts = [
        f"{name.replace('_', ' ')} {field_value}"
        for name, field_value in flatten_json(value)
        if field_value not in (False, 0, "", "none")
    ]
    return "; ".join(field_texts).replace(" True", "") or "none"
