"""Recipes for anybody's images that train no backbone: a head is fitted on its features, which are computed once.

None of them has been measured on a public data set as it stands.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.schema import ClassifierSpec, Recipe
from dermkit.recipes.training_specs import Phase, SmoteSpec

ClassifierKind = Literal["logistic", "k_nearest", "svm", "gradient_boosting"]

_LOGISTIC = ClassifierSpec(
    kind="logistic", penalty=0.01, neighbours=15, iterations=100, learning_rate=0.1, max_leaves=15
)
CLASSIFIERS: Mapping[ClassifierKind, ClassifierSpec] = {
    "logistic": _LOGISTIC,
    "k_nearest": replace(_LOGISTIC, kind="k_nearest"),
    "svm": replace(_LOGISTIC, kind="svm", penalty=3.0),
    "gradient_boosting": replace(_LOGISTIC, kind="gradient_boosting"),
}
"""Settings of each kind where nobody gives others. Chosen, not measured."""

SMOTE = SmoteSpec(target_fraction=1.0, neighbours=5)
"""As imbalanced-learn does it by default: every class as large as the largest, five neighbours."""


def classifier_phase(views: int = 0) -> Phase:
    """Return the one phase of a recipe with a classifier. views: augmented views that are fitted together."""
    return Phase(
        epochs=1, train_backbone="none", head_lr=0.0, backbone_lr=0.0, views=views, freeze_batch_norm=True, patience=0,
        layer_decay=1.0, image_size=0,
    )  # fmt: skip


def frozen_recipes(base: Recipe) -> tuple[Recipe, ...]:
    """Return the recipes with a frozen backbone, each as `dermkit train NAME DATASET`; none has been measured.

    They share their features, which cost 4.6 thousand million multiply-adds an image, once; the rest takes seconds to
    minutes. An SVM is slow beyond some ten thousand images.

    base: what they have in common with other recipes for anybody's images; its one phase is that of the dense layers.
    """
    about = "ViT-Small with ImageNet-21k weights, frozen; {} on its features."
    linear = replace(
        base,
        name="frozen-linear",
        about=about.format("logistic regression"),
        model=replace(
            base.model, backbone="vit_small_patch16_224", dropout=0.0, classifier=CLASSIFIERS["logistic"]
        ),
        augment=NO_AUGMENTATION,
        phases=(classifier_phase(),),
    )

    def with_classifier(name: str, kind: ClassifierKind, words: str) -> Recipe:
        model = replace(linear.model, classifier=CLASSIFIERS[kind])
        return replace(linear, name=name, about=about.format(words), model=model)

    return (
        linear,
        replace(
            linear,
            name="frozen-mlp",
            about=about.format("one dense layer of 256"),
            model=replace(linear.model, hidden=(256,), dropout=0.3, classifier=None),
            phases=(replace(base.phases[0], views=0),),
        ),
        with_classifier("frozen-knn", "k_nearest", "the 15 nearest neighbours, weighted by distance,"),
        with_classifier("frozen-svm", "svm", "a support vector machine with a radial kernel"),
        with_classifier("frozen-boosting", "gradient_boosting", "gradient-boosted trees"),
        replace(
            linear,
            name="frozen-smote",
            about="frozen-linear with SMOTE in place of class weights, for rare classes.",
            smote=SMOTE,
            optim=replace(linear.optim, class_weights="none"),
        ),
    )
