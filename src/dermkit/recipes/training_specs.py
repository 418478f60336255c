"""The parts of a recipe that say how a net is trained: phases, mixing, loss, optimizer, precision."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from dermkit.recipes.values import (
    MIN_IMAGE_SIZE,
    STRICT_CONFIG,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

MetadataField = Literal["age", "sex", "site"]
METADATA_FIELDS: tuple[MetadataField, ...] = get_args(MetadataField)
"""Columns of the manifest that can be a net's second input, in the order that they always have."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class MetadataSpec:
    """Metadata of an image as the second input of a net, joined to the features of its backbone; an unknown value is
    an input of its own.
    """

    fields: Annotated[tuple[MetadataField, ...], Field(min_length=1, max_length=len(METADATA_FIELDS))]
    """Which of `age`, `sex` and `site` go in, in this order."""
    p_unknown: FractionBelowOne
    """Probability that a field of a training image is set to unknown, drawn anew for each field, image and epoch, so
    that the net also works without it."""

    @model_validator(mode="after")
    def _check(self) -> "MetadataSpec":
        if self.fields != tuple(name for name in METADATA_FIELDS if name in self.fields):
            raise ValueError(f"fields are some of {', '.join(METADATA_FIELDS)}, each once, in this order")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class SmoteSpec:
    """SMOTE (Chawla 2002): new feature vectors between those of neighbours of one small class, in the training split
    alone, and never of pixels.
    """

    target_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    """Target size of the smaller classes, as a fraction of the largest (1.0 = equal sizes)."""
    neighbours: Annotated[int, Field(ge=1, le=100)]
    """Nearest neighbours of its class that a new vector may lie towards; fewer where the class is smaller."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class DistilSpec:
    """Distillation (Hinton 2015): the net also learns the probabilities of a trained model, its teacher."""

    weight: Annotated[float, Field(gt=0.0, le=1.0)]
    """Fraction of the loss that is the teacher's (`--teacher`); the rest is that of the labels. The teacher's
    probabilities are those of the original image, whatever augmentation shows; of mixed images, mixed as the labels."""
    temperature: Annotated[float, Field(ge=1.0, le=100.0)]
    """Both softmaxes are softened by this temperature, and the loss is multiplied by its square."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class MixupSpec:
    """Mixup and CutMix of two training images and their labels, with one ratio from Beta(alpha, alpha)."""

    mixup: NonNegativeFloat
    """Alpha of mixup (Zhang 2018); 0 = never."""
    cutmix: NonNegativeFloat
    """Alpha of CutMix (Yun 2019); 0 = never. If both are positive, each is used for half of the mixed images."""
    p: Fraction
    """Probability that an image is mixed."""

    @model_validator(mode="after")
    def _check(self) -> "MixupSpec":
        if not self.mixup and not self.cutmix:
            raise ValueError("mixup or cutmix must be above 0; leave `mix` null for no mixing")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class Phase:
    """One phase of training."""

    epochs: PositiveInt
    """The most epochs of this phase; patience may end it earlier."""
    train_backbone: Literal["none", "all"] | PositiveInt
    """`none` (frozen, batch-norm statistics too; features are cached), `all`, or how many of timm's last layer groups
    are trained."""
    head_lr: NonNegativeFloat
    """Learning rate of the head."""
    backbone_lr: NonNegativeFloat
    """Learning rate of the trained layers of the backbone; 0 where it is frozen."""
    views: NonNegativeInt
    """With a frozen backbone, augmented views cached per image (0 = the image itself, without augmentation)."""
    freeze_batch_norm: bool
    """Whether batch-norm layers stay in evaluation mode."""
    patience: NonNegativeInt
    """Epochs without improvement before the phase ends (0 = never); the weights of the best epoch are saved in any
    case."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)]
    """Factor of the backbone's learning rate from each of timm's layer groups to the one below it, the last group
    having `backbone_lr`; 1 = one rate for the whole backbone."""
    image_size: Annotated[int, Field(ge=0, le=2048)]
    """Side of the training images in this phase, in pixels, at most `image.size`; 0 = `image.size`. Validation always
    has `image.size`."""

    @model_validator(mode="after")
    def _check(self) -> "Phase":
        if self.layer_decay != 1.0 and self.train_backbone in ("none", 1):
            raise ValueError(
                "layer_decay has no effect unless two layer groups of the backbone or more are trained"
            )
        if self.image_size and self.train_backbone == "none":
            raise ValueError(
                "image_size has no effect on a frozen backbone, whose features are cached at image.size"
            )
        if 0 < self.image_size < MIN_IMAGE_SIZE:
            raise ValueError(f"image_size is 0 or at least {MIN_IMAGE_SIZE}")
        return self

    def train_size(self, image_size: int) -> int:
        """Return the side of this phase's training images; image_size: the recipe's `image.size`."""
        return self.image_size or image_size


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class OptimSpec:
    """Loss and optimizer. The loss is the categorical cross-entropy of the softmax, changed by what stands here."""

    optimizer: Literal["adam", "adamw", "sgd"]
    """`adam`, `adamw` (weight decay apart from the gradient) or `sgd`, as torch has them."""
    momentum: FractionBelowOne
    """Momentum of `sgd`; the others do not use it."""
    weight_decay: NonNegativeFloat
    """Weight decay, as torch's optimizer takes it (0 = none)."""
    class_weights: Literal["none", "balanced", "square_root"]
    """`balanced` weights each class in the loss by the inverse of its frequency in the training split, `square_root` by
    the inverse of the square root of that; `none` weights every image equally."""
    label_smoothing: FractionBelowOne
    """Fraction of each label that is spread evenly over all classes."""
    focal_gamma: Annotated[float, Field(ge=0.0, le=10.0)]
    """Gamma of the focal loss (Lin 2017): each image's loss times (1 - its label's probability) to this power (of a
    mixed image, the probability of both labels by their fractions); 0 = plain cross-entropy."""
    logit_adjustment: Annotated[float, Field(ge=0.0, le=10.0)]
    """Tau of the logit-adjusted loss (Menon 2021): in training, tau times the logarithm of the class frequencies is
    added to the logits, so that the net alone favours no common class; the frequencies are those of an epoch, after
    `grow` and `sampling`; 0 = none."""
    batch_size: PositiveInt
    """Images per step, over all devices together."""
    schedule: Literal["constant", "cosine"]
    """Learning rate within a phase: `constant`, or `cosine` from the phase's rate down to 0."""
    warmup_epochs: Annotated[float, Field(ge=0.0, le=10_000.0)]
    """Epochs at the start of each phase over which the learning rates rise linearly from 0, step by step, at most those
    of the shortest phase; 0 = none."""
    ema_decay: FractionBelowOne
    """Decay per step of an exponential moving average of the weights, which is validated and saved in their place; in
    step n of a phase, from 0, at most (1 + n) / (10 + n); 0 = none."""
    batch_norm_images: NonNegativeInt
    """After each epoch, means and variances of batch norm are computed anew from so many training images without
    augmentation (Wu 2021, "Rethinking 'Batch' in BatchNorm"), in place of running means over the augmented batches of
    the epoch's last steps; layers that keep their statistics in a phase keep them; 0 = none."""
    sampling: Literal["shuffled", "balanced", "square_root"]
    """`shuffled` shows every training image once an epoch; `balanced` draws the same number of images, each class
    equally often, `square_root` each class in proportion to the square root of its size."""

    @model_validator(mode="after")
    def _check(self) -> "OptimSpec":
        if self.logit_adjustment and self.sampling == "balanced":
            raise ValueError(
                "logit_adjustment has no effect with balanced sampling, which shows all classes equally often"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ComputeSpec:
    """How training computes; validation, evaluation and prediction of a trained net always run in float32."""

    precision: Literal["float32", "bfloat16", "fastest"]
    """`bfloat16` computes matrix products and convolutions in bfloat16 (weights, losses and sums stay float32);
    `fastest` is bfloat16 on devices that multiply it in hardware, otherwise float32; it is chosen before the run and
    saved in its recipe.json."""
    compile: bool
    """Whether the training step goes through `torch.compile`."""
