"""The strongest recipes for a time: five minutes, an hour, a night, on two cores or on one GPU.

One set of choices serves two classes and many: a frozen net or a fine-tuned one, trained on adjusted logits so that
rare classes count as much as common ones, with the mean of eight test-time views. What differs is how much is trained.
The figures that were measured, with their commands, stand in benchmarks/strong.md.
"""

from dataclasses import replace

from dermkit.recipes.augmentation import PRESETS
from dermkit.recipes.schema import ImageSpec, ModelSpec, Recipe, SplitSpec
from dermkit.recipes.training_specs import ComputeSpec, OptimSpec, Phase

STRONG_AUGMENTATION = replace(
    PRESETS["light"], p_geometric=0.8, rotate=15.0, shift=0.1, zoom=0.15, brightness=0.15, contrast=0.15,
    saturation=0.15,
)  # fmt: skip
"""The eight symmetries with a little rotation, shift, zoom and colour: mixing and stronger changes brought nothing on
isic9 (log/LOG.md)."""

BATCH_NORM_IMAGES = 1024
"""Training images for the statistics of batch norm, after each epoch: with 2,048 as good (log/LOG.md)."""

HOLDOUT = SplitSpec(scheme="holdout", seed=0, validation=0.15, test=0.2, folds=0, per_class=0, draw_from="")
FIVE_FOLDS = SplitSpec(scheme="kfold", seed=0, validation=0.07, test=0.2, folds=5, per_class=0, draw_from="")
"""Calibration and test-time views alone are chosen by validation images, so 7 % of all are enough, and 73 % train."""

_FROZEN_PHASE = Phase(
    epochs=30, train_backbone="none", head_lr=1e-3, backbone_lr=0.0, views=5, freeze_batch_norm=True, patience=0,
    layer_decay=1.0, image_size=0,
)  # fmt: skip
_FINETUNING_PHASE = Phase(
    epochs=12, train_backbone="all", head_lr=1e-3, backbone_lr=3e-4, views=0, freeze_batch_norm=False, patience=0,
    layer_decay=1.0, image_size=0,
)  # fmt: skip

# Command: dermkit train strong-5min DATASET. Cost: each image six times through the frozen net; then the head alone.
STRONG_5MIN = Recipe(
    name="strong-5min",
    system="any",
    about="MobileNetV2 frozen, its head on five views of each image, adjusted logits. Five minutes on two cores.",
    image=ImageSpec(size=160, resize="squash", interpolation="bilinear", normalise="weights"),
    split=HOLDOUT,
    model=ModelSpec(
        backbone="mobilenetv2_100", backbone_args={"pad_type": "same"}, weights="imagenet", skip_blocks=(), hidden=(),
        dropout=0.2, drop_path=0.0, classifier=None, metadata=None,
    ),
    augment=STRONG_AUGMENTATION,
    grow=None,
    mix=None,
    smote=None,
    distil=None,
    phases=(_FROZEN_PHASE,),
    optim=OptimSpec(
        optimizer="adamw", momentum=0.0, weight_decay=0.05, class_weights="none", label_smoothing=0.0,
        batch_size=32, schedule="cosine", sampling="shuffled",
        focal_gamma=0.0, logit_adjustment=1.0, warmup_epochs=1.0, ema_decay=0.0,
        batch_norm_images=0,
    ),
    compute=ComputeSpec(precision="float32", compile=False),
    monitor="val_balanced_accuracy",
    keep="last",
    test_views="dihedral",
    seed=0,
    repeats=1,
    derived_from=None,
)  # fmt: skip

# Command: dermkit train strong-1h DATASET.
STRONG_1H = replace(
    STRONG_5MIN,
    name="strong-1h",
    about="MobileNetV2, all layers trained for twelve epochs, adjusted logits, eight test-time views. An hour on two "
    "cores for 10,000 images.",
    phases=(_FINETUNING_PHASE,),
    optim=replace(STRONG_5MIN.optim, batch_norm_images=BATCH_NORM_IMAGES),
)

# Command: dermkit train strong-night DATASET.
STRONG_NIGHT = replace(
    STRONG_1H,
    name="strong-night",
    about="As strong-1h, on five folds: every image is predicted by a net that did not see it, and the model is the "
    "mean of the five nets. A night on two cores for 10,000 images.",
    split=FIVE_FOLDS,
)

# Not measured: no GPU was at hand. The same choices with a larger net, at the size of its weights.
STRONG_5MIN_GPU = replace(
    STRONG_1H,
    name="strong-5min-gpu",
    about="As strong-1h, for five minutes on one GPU: MobileNetV2, all layers trained.",
    compute=ComputeSpec(precision="fastest", compile=False),
    optim=replace(STRONG_1H.optim, batch_size=64),
)
STRONG_1H_GPU = replace(
    STRONG_5MIN_GPU,
    name="strong-1h-gpu",
    about="ConvNeXt-Tiny at 224 pixels, all layers trained for sixteen epochs, adjusted logits, eight test-time views. "
    "An hour on one GPU.",
    image=replace(STRONG_1H.image, size=224),
    model=replace(STRONG_1H.model, backbone="convnext_tiny", backbone_args={}, drop_path=0.1),
    phases=(replace(_FINETUNING_PHASE, epochs=16, backbone_lr=1e-4, layer_decay=0.8),),
    optim=replace(STRONG_5MIN_GPU.optim, batch_norm_images=0),
)
STRONG_NIGHT_GPU = replace(
    STRONG_1H_GPU,
    name="strong-night-gpu",
    about="As strong-1h-gpu, on five folds: the model is the mean of five nets. A night on one GPU.",
    split=FIVE_FOLDS,
)
STRONG_RECIPES = (STRONG_5MIN, STRONG_1H, STRONG_NIGHT, STRONG_5MIN_GPU, STRONG_1H_GPU, STRONG_NIGHT_GPU)
