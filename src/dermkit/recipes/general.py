"""Recipes for anybody's images: a folder or table without a published test split, whatever its classes are.

None of them has been measured on a public data set: they say where to start, not what to expect. The split is drawn by
patient and lesion, rare classes count as much as common ones, and training stops early.
"""

from dataclasses import replace

from dermkit.recipes.augmentation import PRESETS
from dermkit.recipes.schema import ImageSpec, ModelSpec, Recipe, SplitSpec
from dermkit.recipes.training_specs import ComputeSpec, OptimSpec, Phase

# Command: dermkit train quick DATASET. Expected: not measured. Cost: the frozen net sees each image five times, at
# 0.22 thousand million multiply-adds; then the head alone is trained.
QUICK = Recipe(
    name="quick",
    system="any",
    about="MobileNetV3 with ImageNet weights, frozen; the head trained on five views of each image. Minutes on a CPU.",
    image=ImageSpec(size=224, resize="squash", interpolation="bilinear", normalise="weights"),
    split=SplitSpec(scheme="holdout", seed=0, validation=0.15, test=0.2, folds=0, per_class=0, draw_from=""),
    model=ModelSpec(
        backbone="mobilenetv3_large_100", backbone_args={}, weights="imagenet", skip_blocks=(), hidden=(), dropout=0.3,
        drop_path=0.0, classifier=None, metadata=None,
    ),
    augment=PRESETS["light"],
    grow=None,
    mix=None,
    phases=(
        Phase(
            epochs=40, train_backbone="none", head_lr=1e-3, backbone_lr=0.0, views=5, freeze_batch_norm=True,
            patience=8,
            layer_decay=1.0, image_size=0,
        ),
    ),
    optim=OptimSpec(
        optimizer="adam", momentum=0.0, weight_decay=0.0, class_weights="balanced", label_smoothing=0.0,
        batch_size=32, schedule="constant", sampling="shuffled",
        focal_gamma=0.0, logit_adjustment=0.0, warmup_epochs=0.0, ema_decay=0.0, batch_norm_images=0,
    ),
    compute=ComputeSpec(precision="fastest", compile=False),
    monitor="val_loss",
    keep="best",
    seed=0,
    repeats=1,
    derived_from=None,
    smote=None, distil=None, test_views="identity",
)  # fmt: skip

# Command: dermkit train strong DATASET. Expected: not measured. Cost: 4.45 thousand million multiply-adds an image and
# about three times that in training: for a GPU.
STRONG = replace(
    QUICK,
    name="strong",
    about="ConvNeXt-Tiny with ImageNet weights: first its head, then all layers at a low rate. For a GPU.",
    model=replace(QUICK.model, backbone="convnext_tiny"),
    augment=PRESETS["dermoscopy"],
    phases=(
        replace(QUICK.phases[0], epochs=3, views=1, patience=0),
        Phase(
            epochs=20, train_backbone="all", head_lr=1e-4, backbone_lr=5e-5, views=0, freeze_batch_norm=False,
            patience=6,
            layer_decay=1.0, image_size=0,
        ),
    ),
    optim=replace(QUICK.optim, optimizer="adamw", weight_decay=0.05, schedule="cosine"),
)  # fmt: skip

# Command: dermkit train scratch DATASET. Expected: not measured.
SCRATCH = replace(
    QUICK,
    name="scratch",
    about="A small CNN from random weights: no weights, no network needed. For some thousand images and more.",
    image=ImageSpec(size=96, resize="squash", interpolation="bilinear", normalise="zero_one"),
    model=ModelSpec(
        backbone="dermkit/cnn-s4", backbone_args={}, weights="none", skip_blocks=(), hidden=(128,), dropout=0.4,
        drop_path=0.0, classifier=None, metadata=None,
    ),
    phases=(
        Phase(
            epochs=60, train_backbone="all", head_lr=1e-3, backbone_lr=1e-3, views=0, freeze_batch_norm=False,
            patience=10,
            layer_decay=1.0, image_size=0,
        ),
    ),
    compute=ComputeSpec(precision="float32", compile=False),
)  # fmt: skip
