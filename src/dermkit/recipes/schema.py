"""A recipe: all settings of one experiment, validated, read from and written to JSON.

Every field that affects a result is required, so an old recipe file does not depend on today's defaults.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from dermkit.errors import UsageError, did_you_mean
from dermkit.files import fingerprint, read_json, windows_name_problem, write_json
from dermkit.recipes.augmentation import (
    STRICT_CONFIG,
    AugmentSpec,
    BlurNoiseSpec,
    ClaheSpec,
    CutoutSpec,
    DistortSpec,
    Fraction,
    FractionBelowOne,
    HsvSpec,
    NonNegativeFloat,
    find_preset,
)
from dermkit.recipes.formats import MIGRATIONS, RECIPE_FORMAT, recipe_with_format_2_names

Scheme = Literal["given", "given-as-published", "holdout", "kfold"]


def _check_folder_name(name: str) -> str:
    if problem := windows_name_problem(name):
        raise ValueError(f"the name becomes a folder, and this is {problem}")
    return name


# The name becomes a folder under `runs`, so it can hold neither a separator nor a leading dot. Names that Windows
# cannot use are refused on every system, because runs are copied between machines.
RecipeName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100), AfterValidator(_check_folder_name)
]
# The widest seed that NumPy's RandomState, and so scikit-learn, takes is 2**32 - 1.
_Seed = Annotated[int, Field(ge=0, lt=2**32)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**7)]
PositiveInt = Annotated[int, Field(ge=1, le=10**6)]
Monitor = Literal["val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc_macro"]


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ImageSpec:
    """How an image becomes the net's input."""

    size: Annotated[int, Field(ge=16, le=2048)]
    """Side of the square input, in pixels."""
    resize: Literal["squash", "pad", "crop"]
    """`squash` ignores the aspect ratio, `pad` adds black bars, `crop` cuts out the central square."""
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box"]
    """How pixels are computed when an image is resized; `box` averages the pixels that each new one covers."""
    normalise: Literal["zero_one", "weights"]
    """`zero_one` divides pixels by 255; `weights` also subtracts the mean and divides by the standard deviation that
    the pretrained weights were trained with."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class SplitSpec:
    """How the images are split into training, validation and test."""

    scheme: Scheme
    """`given` and `given-as-published` keep the published test images (the first removes training images that share a
    group with them, the second does not); `holdout` and `kfold` draw anew, by group."""
    seed: _Seed
    """Random seed of the division, apart from that of training."""
    validation: float
    """Fraction of the images for validation, with `holdout`; with a given scheme, of the published training images.
    With `kfold` each fold is validation once, whatever stands here."""
    test: float
    """Fraction of the images for test, with `holdout` alone; a given scheme keeps the published test images, and with
    `kfold` each fold is the test split once."""
    folds: NonNegativeInt
    """Number of folds, at least 3, where the scheme is `kfold`; 0 elsewhere."""
    per_class: NonNegativeInt
    """This many images are drawn at random from each class and all others are excluded (0 = all images)."""
    draw_from: str
    """Use only images of this published split, such as `train` (empty = all images)."""

    @model_validator(mode="after")
    def _check(self) -> "SplitSpec":
        if not 0.0 < self.validation < 1.0 or not 0.0 <= self.test < 1.0 or self.validation + self.test >= 1.0:
            raise ValueError("validation and test must be fractions that leave something to train on")
        if self.folds < 3 if self.scheme == "kfold" else self.folds != 0:
            raise ValueError("kfold needs folds >= 3 (train, validation and test); other schemes need folds = 0")
        if self.scheme == "holdout" and self.test == 0.0:
            raise ValueError("holdout needs a test fraction above 0")
        if self.scheme.startswith("given") and self.test != 0.0:
            raise ValueError("given schemes keep the published test images, so test must be 0")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ModelSpec:
    """Backbone and head."""

    backbone: Annotated[str, Field(min_length=1, max_length=1000)]
    """A timm name (`dermkit recipes backbones`), or `dermkit/cnn-s1`, `dermkit/cnn-s4`."""
    backbone_args: dict[str, bool | int | float | str]
    """Arguments of `timm.create_model` that the pretrained weights need."""
    weights: Literal["imagenet", "none"]
    """Where training starts: `imagenet` (from the hub or --weights FILE) or `none` (random)."""
    skip_blocks: Annotated[tuple[str, ...], Field(max_length=10_000)]
    """Names of backbone modules that are replaced by the identity, to take features from an earlier layer."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=16_384)], ...], Field(max_length=64)]
    """Widths of the dense layers (ReLU) between the backbone and the classes."""
    dropout: FractionBelowOne
    """Dropout rate before each of the head's dense layers."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class OversampleSpec:
    """Oversampling of small classes, in the training split only, by augmented copies."""

    target_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    """Target size of the smaller classes, as a fraction of the largest (1.0 = equal sizes)."""
    max_copies: PositiveInt
    """The most training images made from one image, itself included."""
    augment: AugmentSpec
    """How the copies are changed, by the fields of `augment`; a preset's name stands for a whole spec."""


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


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class OptimSpec:
    """Loss and optimizer. The loss is the categorical cross-entropy of the softmax."""

    optimizer: Literal["adam", "adamw", "sgd"]
    """`adam`, `adamw` (weight decay apart from the gradient) or `sgd`, as torch has them."""
    momentum: FractionBelowOne
    """Momentum of `sgd`; the others do not use it."""
    weight_decay: NonNegativeFloat
    """Weight decay, as torch's optimizer takes it (0 = none)."""
    class_weights: Literal["none", "balanced"]
    """`balanced` weights each class in the loss by the inverse of its frequency in the training split; `none` weights
    every image equally."""
    label_smoothing: FractionBelowOne
    """Fraction of each label that is spread evenly over all classes."""
    batch_size: PositiveInt
    """Images per step, over all devices together."""
    schedule: Literal["constant", "cosine"]
    """Learning rate within a phase: `constant`, or `cosine` from the phase's rate down to 0."""
    sampling: Literal["shuffled", "balanced"]
    """`shuffled` shows every training image once an epoch; `balanced` draws the same number of images, each class
    equally often."""


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
class ComputeSpec:
    """How training computes; validation, evaluation and prediction of a trained net always run in float32."""

    precision: Literal["float32", "bfloat16", "fastest"]
    """`bfloat16` computes matrix products and convolutions in bfloat16 (weights, losses and sums stay float32);
    `fastest` is bfloat16 on devices that multiply it in hardware, otherwise float32; it is chosen before the run and
    saved in its recipe.json."""
    compile: bool
    """Whether the training step goes through `torch.compile`."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class FieldChange:
    """One field of a derived recipe that differs from the recipe it was derived from."""

    field: str
    """Path of the field, such as optim.batch_size."""
    before: str
    """Its value in the other recipe, as JSON."""
    after: str
    """Its value in this recipe, as JSON."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class Derivation:
    """Which recipe another was derived from, and by which changes."""

    recipe: RecipeName
    """Name of the recipe before the changes."""
    changes: tuple[FieldChange, ...]
    """Every field that was changed, by `--set` and its short forms."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class Recipe:
    """All settings of one experiment; `dermkit recipes explain FIELD` prints what stands below a field.

    Raises `pydantic.ValidationError` for an invalid value; `load_recipe` reports those of a file as `UsageError`.

        demo = dk.find_recipe("demo")
        wider = dataclasses.replace(demo, name="wider", model=dataclasses.replace(demo.model, hidden=(64,)))
    """

    name: RecipeName
    """Name of the recipe, and of the folder of its runs."""
    system: str
    """The published system that it repeats (`S0` to `S4`), or what else it is for. Without effect."""
    about: str
    """A description. Without effect."""
    image: ImageSpec
    """How an image becomes the net's input."""
    split: SplitSpec
    """How the images are split into training, validation and test."""
    model: ModelSpec
    """Backbone and head."""
    augment: AugmentSpec
    """Random changes of training images; a preset's name (`dermkit recipes presets`) stands for a whole spec."""
    grow: OversampleSpec | None
    """Oversampling of small classes in the training split, by augmented copies; null = none."""
    mix: MixupSpec | None
    """Mixup and CutMix of training images; null = none."""
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, max_length=100)]
    """Phases of training, one after the other: each begins with the weights of the one before, of its best epoch where
    `keep` is `best`."""
    optim: OptimSpec
    """Loss and optimizer."""
    compute: ComputeSpec
    """Precision and compilation of training."""
    monitor: Monitor
    """The validation metric that chooses the best epoch and, of `repeats` runs, the final model."""
    keep: Literal["best", "last"]
    """Whether the best or the last epoch becomes the model."""
    seed: _Seed
    """Random seed of weights, order and augmentation; of several runs the first one."""
    repeats: Annotated[int, Field(ge=1, le=10_000)]
    """Number of runs, with the seeds seed, seed + 1, ..."""
    derived_from: Derivation | None
    """What `dermkit train --set` changed, and of which recipe; null = nothing. A record, without effect."""

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.mix and all(phase.train_backbone == "none" and phase.views == 0 for phase in self.phases):
            raise ValueError("mix has no effect if every phase trains on cached features of unaugmented images")
        return self


_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Recipe)
_SPLIT_ADAPTER: TypeAdapter[SplitSpec] = TypeAdapter(SplitSpec)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values, without the `format` number."""
    recipe_json: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return recipe_json


def changes_text(recipe: Recipe) -> str:
    """Return what a recipe was derived from and how, "" if it was not."""
    record = recipe.derived_from
    if record is None:
        return ""
    changes = "; ".join(f"{change.field} {change.before} -> {change.after}" for change in record.changes)
    return f"{record.recipe} with {changes}"


def recipe_fingerprint(recipe: Recipe, **input_hashes: str) -> str:
    """Return 12 hex digits that identify an experiment up to its seed; they name its run folder.

    Hashed are the recipe without `about`, `system`, `seed`, `repeats` and `derived_from`, and input_hashes: those of
    the manifest, the split and the weights.
    """
    recipe_json = recipe_with_format_2_names(recipe_to_dict(recipe))
    for key in ("about", "system", "seed", "repeats", "derived_from"):
        del recipe_json[key]
    return fingerprint(recipe_json, input_hashes)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe file, which `load_recipe` and `dermkit train FILE DATASET` read; raises `OutputError`."""
    write_json(path, recipe_to_dict(recipe), format=RECIPE_FORMAT)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file of any format; raises `UsageError` that lists every invalid field and suggests names."""
    return parse_recipe(read_json(path, format=RECIPE_FORMAT, error=UsageError, migrations=MIGRATIONS), str(path))


def parse_recipe(recipe_json: Mapping[str, Any], source: str) -> Recipe:
    """Return the validated recipe of some JSON values; raises `UsageError` that lists every problem.

    source: where they come from, for the message. `augment` and `grow.augment` may be the name of a preset, which is
    replaced by its full spec.
    """
    try:
        return _ADAPTER.validate_json(json.dumps(_with_presets(recipe_json, source)))
    except ValidationError as error:
        problems = "\n".join("  " + _describe_error(details) for details in error.errors())
        raise UsageError(
            f"{source}: not a valid recipe:\n{problems}",
            outcome="nothing was trained",
            remedy="correct these fields; `dermkit recipes show NAME` prints a valid recipe",
        ) from error


def _with_presets(recipe_json: Mapping[str, Any], source: str) -> dict[str, Any]:
    grow = recipe_json.get("grow")
    grow_with_preset = {"grow": _with_preset(grow, f"{source}: grow.augment")} if isinstance(grow, Mapping) else {}
    return {**_with_preset(recipe_json, f"{source}: augment"), **grow_with_preset}


def _with_preset(spec_json: Mapping[str, Any], location: str) -> dict[str, Any]:
    name = spec_json.get("augment")
    return (
        {**spec_json, "augment": asdict(find_preset(name, location))} if isinstance(name, str) else {**spec_json}
    )


def _describe_error(details: Any) -> str:
    path = [str(component) for component in details["loc"]]
    text = f"{'.'.join(path) or 'recipe'}: {details['msg'].removeprefix('Value error, ')}"
    if details["type"] != "unexpected_keyword_argument":
        return text
    return f"{'.'.join(path)}: unknown field{did_you_mean(path[-1], _field_names(path[:-1]))}"


def _field_names(path: list[str]) -> list[str]:
    """Return the field names of the spec at `path` inside a recipe."""
    specs: dict[str, type] = {
        "image": ImageSpec, "split": SplitSpec, "model": ModelSpec, "augment": AugmentSpec,
        "grow": OversampleSpec, "mix": MixupSpec, "phases": Phase, "optim": OptimSpec, "compute": ComputeSpec,
        "distort": DistortSpec, "hsv": HsvSpec, "blur_noise": BlurNoiseSpec, "clahe": ClaheSpec,
        "cutout": CutoutSpec, "derived_from": Derivation, "changes": FieldChange,
    }  # fmt: skip
    names = [component for component in path if not component.isdigit() and component in specs]
    spec = specs[names[-1]] if names else Recipe
    return list(getattr(spec, "__dataclass_fields__", {}))


def parse_split_spec(
    *, scheme: str, seed: int, validation: float, test: float, folds: int, per_class: int, draw_from: str
) -> SplitSpec:
    """Return a validated `SplitSpec`; raises `UsageError` that lists every problem."""
    spec_json = {
        "scheme": scheme, "seed": seed, "validation": validation, "test": test,
        "folds": folds, "per_class": per_class, "draw_from": draw_from,
    }  # fmt: skip
    try:
        return _SPLIT_ADAPTER.validate_json(json.dumps(spec_json))
    except ValidationError as error:
        located_messages = (
            (".".join(map(str, details["loc"])), details["msg"].removeprefix("Value error, "))
            for details in error.errors()
        )
        problems = "; ".join(" ".join(located_message).strip() for located_message in located_messages)
        fractions_text = f"validation {validation:g}, test {test:g}, folds {folds}"
        raise UsageError(
            f"the split cannot be made like that ({fractions_text}): {problems}",
            remedy="see `dermkit split --help`",
        ) from error
