"""The named recipes. Variants are made with `replace`; the replaced fields are what an ablation compares.

Above each: source, command, expected result with its spread over seeds, cost, machine. The figures and the commands
that measured them are in benchmarks/systems.md; what has not been measured is marked so. S0 to S4 are five published
systems, which these recipes repeat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dermkit.errors import UsageError, did_you_mean
from dermkit.recipes.augmentation import NO_AUGMENTATION, PRESETS
from dermkit.recipes.frozen import frozen_recipes
from dermkit.recipes.general import QUICK, SCRATCH, STRONG
from dermkit.recipes.schema import ImageSpec, ModelSpec, OversampleSpec, Recipe, SplitSpec
from dermkit.recipes.strong import STRONG_RECIPES
from dermkit.recipes.training_specs import ComputeSpec, OptimSpec, Phase

# ---- specs that several recipes share -------------------------------------------------------------------------

FLIPS_ROTATIONS_SHIFTS = PRESETS["s2"]
ROTATE_FLIP_ZOOM = PRESETS["s4"]

GIVEN_SPLIT = SplitSpec(
    scheme="given", seed=0, validation=0.2, test=0.0, folds=0, per_class=0, draw_from=""
)  # fmt: skip
GIVEN_SPLIT_AS_PUBLISHED = replace(GIVEN_SPLIT, scheme="given-as-published")

ADAM = OptimSpec(
    optimizer="adam", momentum=0.0, weight_decay=0.0, class_weights="none", label_smoothing=0.0,
    batch_size=32, schedule="constant", sampling="shuffled",
    focal_gamma=0.0, logit_adjustment=0.0, warmup_epochs=0.0, ema_decay=0.0, batch_norm_images=0,
)  # fmt: skip

COMPUTE_FLOAT32 = ComputeSpec(precision="float32", compile=False)
COMPUTE_FASTEST = ComputeSpec(precision="fastest", compile=False)

RESNET50 = ModelSpec(
    backbone="resnet50", backbone_args={}, weights="imagenet", skip_blocks=(), hidden=(), dropout=0.0,
    drop_path=0.0, classifier=None, metadata=None,
)  # fmt: skip
INCEPTION_V3 = replace(RESNET50, backbone="inception_v3", backbone_args={"aux_logits": False})
MOBILENET_V2 = replace(RESNET50, backbone="mobilenetv2_100", backbone_args={"pad_type": "same"})
"""Replaces ResNet50 where its weights are not available: 2.2 million parameters instead of 23.5."""


def head_phase(epochs: int, *, lr: float = 1e-3, views: int = 0, patience: int = 0) -> Phase:
    """Return a phase that trains only the head, on cached features of the frozen backbone.

    lr: learning rate. views: augmented views cached per image (0 = the image itself). patience: epochs without
    improvement before stopping (0 = never).
    """
    return Phase(
        epochs=epochs, train_backbone="none", head_lr=lr, backbone_lr=0.0, views=views,
        freeze_batch_norm=True, patience=patience, layer_decay=1.0, image_size=0,
    )  # fmt: skip


def full_phase(epochs: int, *, lr: float, patience: int = 0) -> Phase:
    """Return a phase that trains backbone and head at one learning rate.

    patience: epochs without improvement before stopping (0 = never).
    """
    return Phase(
        epochs=epochs, train_backbone="all", head_lr=lr, backbone_lr=lr, views=0,
        freeze_batch_norm=False, patience=patience, layer_decay=1.0, image_size=0,
    )  # fmt: skip


def from_scratch(recipe: Recipe) -> Recipe:
    """Return the recipe with random initial weights, for machines without pretrained weights; name and `about` say so.

    All layers are trained, for as many epochs as the recipe has: features of a frozen random net are of little use.
    """
    return replace(
        recipe,
        name=f"{recipe.name}-scratch",
        about=f"{recipe.about} Here from random weights, all layers trained: no ImageNet weights at hand.",
        model=replace(recipe.model, weights="none"),
        phases=(
            full_phase(sum(phase.epochs for phase in recipe.phases), lr=1e-3, patience=recipe.phases[0].patience),
        ),
    )


def on_mobilenet_v2(recipe: Recipe) -> Recipe:
    """Return the recipe with MobileNetV2 in place of ResNet50; name and `about` say so."""
    model = replace(recipe.model, backbone=MOBILENET_V2.backbone, backbone_args=MOBILENET_V2.backbone_args)
    return replace(
        recipe,
        name=f"{recipe.name}-mobilenetv2",
        about=f"{recipe.about} Stand-in backbone: MobileNetV2 in place of ResNet50.",
        model=model,
    )


# ---- S0: InceptionV3 against ResNet on 10,000 melanoma images ------------------------------------------------------

# Source: S0's report: resize, normalise, augment; both nets; several learning rates and batch sizes.
# Command: dermkit train s0-inception-v3 DATASET. Expected: not measured here (needs a GPU: about 5 h on two cores).
S0_INCEPTION = Recipe(
    name="s0-inception-v3",
    system="S0",
    about="InceptionV3, all layers trained, on benign against malignant.",
    image=ImageSpec(size=299, resize="squash", interpolation="bilinear", normalise="weights"),
    split=replace(GIVEN_SPLIT, validation=0.15),
    model=replace(INCEPTION_V3, dropout=0.3),
    augment=PRESETS["s0"],
    grow=None,
    mix=None,
    phases=(head_phase(3), full_phase(12, lr=1e-4, patience=4)),
    optim=ADAM,
    compute=COMPUTE_FASTEST,
    monitor="val_loss",
    keep="best",
    seed=0,
    repeats=1,
    derived_from=None,
    smote=None,
    distil=None,
    test_views="identity",
)
# Command: dermkit train s0-resnet50 DATASET. Expected: not measured here.
S0_RESNET = replace(
    S0_INCEPTION,
    name="s0-resnet50",
    about="ResNet50, all layers trained, on benign against malignant.",
    image=replace(S0_INCEPTION.image, size=224),
    model=replace(RESNET50, dropout=0.3),
)
# Reduced for two cores: frozen features at 160 px, five augmented views, the head's learning rate and batch size
# chosen on validation. Command: dermkit tune s0-inception-v3-grid DATASET (and s0-resnet50-grid).
S0_INCEPTION_FROZEN = replace(
    S0_INCEPTION,
    name="s0-inception-v3-frozen",
    about="InceptionV3 frozen, head trained on cached features of augmented views (reduced for two cores).",
    image=replace(S0_INCEPTION.image, size=160),
    phases=(head_phase(30, views=5, patience=8),),
)
S0_RESNET_FROZEN = replace(
    S0_INCEPTION_FROZEN,
    name="s0-resnet50-frozen",
    about="ResNet50 frozen, head trained on cached features of augmented views (reduced for two cores).",
    model=S0_RESNET.model,
)
# For weight files that lack tensors of InceptionV3's last two blocks: features are taken before these blocks.
# Expected on melanoma10k, settings chosen by the grid on validation, one seed. Cost: 15 min on 2 shared cores.
# This recipe: validation accuracy 0.909, test 0.914 [0.895, 0.930], n 1,000 (lr 1e-3, batch 16).
# `s0-resnet50-frozen-mobilenetv2`: validation 0.900, test 0.906 [0.886, 0.923] (lr 1e-4, batch 16).
S0_INCEPTION_MIXED7A = replace(
    S0_INCEPTION_FROZEN,
    name="s0-inception-v3-mixed7a",
    about="InceptionV3 frozen, features of block Mixed_7a (reduced for two cores, and for incomplete weights).",
    model=replace(S0_INCEPTION.model, skip_blocks=("Mixed_7b", "Mixed_7c")),
)

# ---- S1: a CNN for melanoma ----------------------------------------------------------------------------------

# Source: S1: conv + pool + dense + softmax, Adam, sparse categorical cross-entropy, augmentation, early stopping.
# Command: dermkit train s1-cnn DATASET. Expected on melanoma10k: validation accuracy 0.897, test 0.904
# [0.884, 0.921], n 1,000, seed 0. Cost: 4 min on 2 shared cores.
S1_CNN = Recipe(
    name="s1-cnn",
    system="S1",
    about="An own CNN (convolution, pooling, dense, softmax) on benign against malignant.",
    image=ImageSpec(size=64, resize="squash", interpolation="bilinear", normalise="zero_one"),
    split=replace(GIVEN_SPLIT, validation=0.15),
    model=replace(RESNET50, backbone="dermkit/cnn-s1", weights="none", hidden=(64,), dropout=0.3),
    augment=PRESETS["s1"],
    grow=None,
    mix=None,
    phases=(full_phase(30, lr=1e-3, patience=5),),
    optim=replace(ADAM, batch_size=64),
    compute=COMPUTE_FLOAT32,
    monitor="val_loss",
    keep="best",
    seed=0,
    repeats=1,
    derived_from=None,
    smote=None,
    distil=None,
    test_views="identity",
)

# ---- S2: ResNet50, nine classes ------------------------------------------------------------------------------

# Source: S2 as published: 128 px, pixels in 0..1, frozen ResNet50, own head, Adam, categorical cross-entropy,
# 10 epochs; published test accuracy 46.61 % (55 of 118; 95 % interval 37.9 to 55.6 %), test loss 2.8345.
# Command: dermkit train s2-resnet50 DATASET. Expected: needs ResNet50's ImageNet weights, not measured here. With
# `s2-resnet50-mobilenetv2`, seeds 0, 1, 2: test accuracy .381, .364, .390, loss 2.35, 2.33, 2.13.
S2_PUBLISHED = Recipe(
    name="s2-resnet50",
    system="S2",
    about="ResNet50 frozen, pixels in 0..1, own head, ten epochs, as published; nine classes.",
    image=ImageSpec(size=128, resize="squash", interpolation="bilinear", normalise="zero_one"),
    split=GIVEN_SPLIT_AS_PUBLISHED,
    model=replace(RESNET50, hidden=(256,)),
    augment=NO_AUGMENTATION,
    grow=None,
    mix=None,
    phases=(head_phase(10),),
    optim=ADAM,
    compute=COMPUTE_FASTEST,
    monitor="val_loss",
    keep="last",
    seed=0,
    repeats=1,
    derived_from=None,
    smote=None,
    distil=None,
    test_views="identity",
)
# One change at a time, as S2 suggests: normalisation, then augmentation, dropout, tuning, fine-tuning. Validation loss
# with MobileNetV2, scheme `given`, seeds 0, 1, 2: as published 1.72, 1.74, 1.71; normalised 1.36, 1.36, 1.36; augmented
# 1.38, 1.38, 1.38; dropout 1.32, 1.36, 1.31; fine-tuned 1.20, 1.22, 1.19 (test accuracy .483, .466, .441, n 118). Cost:
# under a minute each, fine-tuning 3, on 2 shared cores. `s2-mobilenetv2-grid` chose head rate and dropout.
S2_NORMALISED = replace(
    S2_PUBLISHED,
    name="s2-normalised",
    about="S2 with the normalisation that the frozen weights were trained with.",
    image=replace(S2_PUBLISHED.image, normalise="weights"),
    keep="best",
)
S2_AUGMENTED = replace(
    S2_NORMALISED,
    name="s2-augmented",
    about="S2 normalised, with rotations, flips and shifts (ten views of every image).",
    augment=FLIPS_ROTATIONS_SHIFTS,
    phases=(head_phase(20, views=10, patience=6),),
)
S2_DROPOUT = replace(
    S2_AUGMENTED,
    name="s2-dropout",
    about="S2 normalised and augmented, with dropout in the head.",
    model=replace(S2_AUGMENTED.model, dropout=0.4),
)


def add_finetuning(base: Recipe, *, name: str, about: str, n_layer_groups: int = 12) -> Recipe:
    """Return `base` followed by fine-tuning of the backbone's last layer groups at 1e-5, with frozen batch norm."""
    finetuning_phase = Phase(
        epochs=8,
        train_backbone=n_layer_groups,
        head_lr=1e-4,
        backbone_lr=1e-5,
        views=0,
        freeze_batch_norm=True,
        patience=3,
        layer_decay=1.0,
        image_size=0,
    )
    return replace(base, name=name, about=about, phases=(*base.phases, finetuning_phase))


S2_FINETUNED = add_finetuning(
    S2_DROPOUT,
    name="s2-finetuned",
    about="S2 normalised, augmented, with dropout, then its top layers fine-tuned at a very low rate.",
)

# ---- S3: ResNet50 repeated six times ---------------------------------------------------------------------------

# Source: S3: 584 benign and 584 malignant, split in three, six repeats, a log and weights per version, a final
# model; published accuracy .74, precision .76, recall .71, specificity .75 (no single confusion matrix gives these).
# Command: dermkit train s3-resnet50 DATASET. Expected with `s3-resnet50-mobilenetv2`, six seeds: test
# accuracy .826 with standard deviation .013 (.812 to .847), n 176. Cost: under a minute on 2 shared cores.
S3_RESNET = Recipe(
    name="s3-resnet50",
    system="S3",
    about="ResNet50 frozen, 584 benign and 584 malignant images, six repeats, the final model chosen on validation.",
    image=ImageSpec(size=128, resize="squash", interpolation="bilinear", normalise="weights"),
    split=SplitSpec(
        scheme="holdout", seed=0, validation=0.15, test=0.15, folds=0, per_class=584, draw_from="train"
    ),
    model=replace(RESNET50, hidden=(128,), dropout=0.2),
    augment=NO_AUGMENTATION,
    grow=None,
    mix=None,
    phases=(head_phase(20, patience=6),),
    optim=ADAM,
    compute=COMPUTE_FASTEST,
    monitor="val_loss",
    keep="best",
    seed=0,
    repeats=6,
    derived_from=None,
    smote=None,
    distil=None,
    test_views="identity",
)

# ---- S4: a CNN for several cancers ------------------------------------------------------------------------------

# Source: S4: small classes are oversampled by rotation, flips and zoom; own CNN, softmax, Adam, categorical
# cross-entropy, early stopping and checkpoints. Only the training split is oversampled.
# Command: dermkit train s4-cnn DATASET.
# Expected on isic9, `given`, seed 0: test accuracy .483 [.395, .572], n 118. Cost: 4 min on 2 shared cores.
S4_CNN = Recipe(
    name="s4-cnn",
    system="S4",
    about="An own CNN on nine classes, small classes grown by rotate, flip and zoom on the training split.",
    image=ImageSpec(size=64, resize="squash", interpolation="bilinear", normalise="zero_one"),
    split=GIVEN_SPLIT,
    model=replace(RESNET50, backbone="dermkit/cnn-s4", weights="none", hidden=(128,), dropout=0.4),
    augment=ROTATE_FLIP_ZOOM,
    grow=OversampleSpec(target_fraction=1.0, max_copies=8, augment=ROTATE_FLIP_ZOOM),
    mix=None,
    phases=(full_phase(30, lr=1e-3, patience=6),),
    optim=replace(ADAM, batch_size=64),
    compute=COMPUTE_FLOAT32,
    monitor="val_loss",
    keep="best",
    seed=0,
    repeats=1,
    derived_from=None,
    smote=None,
    distil=None,
    test_views="identity",
)

# ---- the demo ----------------------------------------------------------------------------------------------------

# Command: dermkit demo. Synthetic images, three classes, a small CNN.
DEMO = Recipe(
    name="demo",
    system="demo",
    about="A small CNN on synthetic images: shows the steps, says nothing about skin.",
    image=ImageSpec(size=64, resize="squash", interpolation="bilinear", normalise="zero_one"),
    split=SplitSpec(scheme="holdout", seed=0, validation=0.2, test=0.25, folds=0, per_class=0, draw_from=""),
    model=replace(RESNET50, backbone="dermkit/cnn-s4", weights="none", hidden=(32,), dropout=0.2),
    augment=replace(ROTATE_FLIP_ZOOM, rotate=180.0),
    grow=None,
    mix=None,
    phases=(full_phase(25, lr=2e-3, patience=8),),
    optim=replace(ADAM, batch_size=32),
    compute=COMPUTE_FLOAT32,
    monitor="val_loss",
    keep="best",
    seed=0,
    repeats=1,
    derived_from=None,
    smote=None,
    distil=None,
    test_views="identity",
)

_FROZEN = frozen_recipes(QUICK)
_BASES: Sequence[Recipe] = (
    S0_INCEPTION, S0_RESNET, S0_INCEPTION_FROZEN, S0_RESNET_FROZEN, S0_INCEPTION_MIXED7A,
    S1_CNN, S2_PUBLISHED, S2_NORMALISED, S2_AUGMENTED, S2_DROPOUT, S2_FINETUNED, S3_RESNET, S4_CNN, DEMO,
    QUICK, STRONG, SCRATCH, *_FROZEN,
)  # fmt: skip
_ON_RESNET = tuple(recipe for recipe in _BASES if recipe.model.backbone == "resnet50")

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *_BASES,
        *STRONG_RECIPES,
        *(on_mobilenet_v2(base) for base in _ON_RESNET),
        *(from_scratch(base) for base in _ON_RESNET),
    )
}
"""Every named recipe. `-mobilenetv2` and `-scratch` are for machines without ResNet50's pretrained weights."""

_SYSTEMS = ("s0-inception-v3", "s0-resnet50", "s1-cnn", "s2-resnet50", "s3-resnet50", "s4-cnn")
RECIPE_GROUPS: Mapping[str, Sequence[str]] = {
    "Your own images: quick, strong, or without any weights": ("quick", "strong", "scratch"),
    "The strongest for a time, on two cores or one GPU (`dermkit train auto` chooses by itself)": tuple(
        recipe.name for recipe in STRONG_RECIPES
    ),
    "Your own images in minutes: a frozen net, another head": tuple(recipe.name for recipe in _FROZEN),
    "The five published systems (docs/recipes.md)": _SYSTEMS,
    "S2 improved, one change after the other": ("s2-normalised", "s2-augmented", "s2-dropout", "s2-finetuned"),
    "S0 for a machine with few cores": ("s0-inception-v3-frozen", "s0-resnet50-frozen", "s0-inception-v3-mixed7a"),
    "With MobileNetV2 in place of ResNet50": tuple(name for name in RECIPES if name.endswith("-mobilenetv2")),
    "With random weights in place of ResNet50's": tuple(name for name in RECIPES if name.endswith("-scratch")),
    "To see the steps on synthetic images (`dermkit demo`)": ("demo",),
}
"""What somebody wants -> the names of the recipes for it."""


def make_grid(
    base: Recipe,
    *,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int] = (),
    dropouts: Sequence[float] = (),
) -> tuple[Recipe, ...]:
    """Return a variant of `base` for every combination of these values; their names say the values.

    learning_rates: of the head, in the first phase. batch_sizes, dropouts: empty = that of `base`.
    """
    return tuple(
        replace(
            base,
            name=f"{base.name}-lr{lr:g}-b{batch}-d{dropout:g}",
            model=replace(base.model, dropout=dropout),
            phases=(replace(base.phases[0], head_lr=lr), *base.phases[1:]),
            optim=replace(base.optim, batch_size=batch),
        )
        for lr in learning_rates
        for batch in batch_sizes or (base.optim.batch_size,)
        for dropout in dropouts or (base.model.dropout,)
    )


def _s0_grid(base: Recipe) -> tuple[Recipe, ...]:
    return make_grid(base, learning_rates=(1e-2, 1e-3, 1e-4), batch_sizes=(16, 32, 64))


def _s2_grid(base: Recipe) -> tuple[Recipe, ...]:
    return make_grid(base, learning_rates=(3e-3, 1e-3, 3e-4), batch_sizes=(32,), dropouts=(0.2, 0.4, 0.6))


GRIDS: Mapping[str, tuple[Recipe, ...]] = {
    "s0-inception-v3-grid": _s0_grid(S0_INCEPTION_FROZEN),
    "s0-inception-v3-mixed7a-grid": _s0_grid(S0_INCEPTION_MIXED7A),
    "s0-resnet50-grid": _s0_grid(S0_RESNET_FROZEN),
    "s0-resnet50-mobilenetv2-grid": _s0_grid(on_mobilenet_v2(S0_RESNET_FROZEN)),
    "s2-grid": _s2_grid(S2_DROPOUT),
    "s2-mobilenetv2-grid": _s2_grid(on_mobilenet_v2(S2_DROPOUT)),
}
"""Named grids for `dermkit tune`: recipes of which one is chosen, on the validation split alone."""


def find_recipe(name: str) -> Recipe:
    """Return a named recipe of `RECIPES`; raises `UsageError` that suggests the closest name."""
    if name in RECIPES:
        return RECIPES[name]
    raise _unknown_name_error("recipe", name, list(RECIPES))


def find_grid(name: str) -> tuple[Recipe, ...]:
    """Return the recipes of a named grid; raises `UsageError` that suggests the closest name."""
    if name in GRIDS:
        return GRIDS[name]
    raise _unknown_name_error("grid", name, list(GRIDS))


def _unknown_name_error(kind: str, name: str, known_names: list[str]) -> UsageError:
    hint = did_you_mean(name, known_names, cutoff=0.5) or f"; known: {', '.join(known_names)}"
    return UsageError(
        f"unknown {kind} `{name}`{hint}",
        outcome="nothing was done",
        remedy="`dermkit recipes list` shows all names"
        if kind == "recipe"
        else f"known grids: {', '.join(known_names)}",
    )
