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
    """How an image becomes the net's input.

    size: side of the square input, in pixels. resize: `squash` ignores the aspect ratio, `pad` adds black bars, `crop`
    cuts out the central square. normalise: `zero_one` divides pixels by 255; `weights` also subtracts the mean and
    divides by the standard deviation that the pretrained weights were trained with.
    """

    size: Annotated[int, Field(ge=16, le=2048)]
    resize: Literal["squash", "pad", "crop"]
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box"]
    normalise: Literal["zero_one", "weights"]


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class SplitSpec:
    """How the images are split into training, validation and test.

    scheme: `given` and `given-as-published` keep the published test images (the first removes training images that
    share a group with them, the second does not); `holdout` and `kfold` draw anew, by group. validation, test:
    fractions of the images; with a given scheme, `validation` is a fraction of the published training images and
    `test` must be 0. folds: 0 unless the scheme is `kfold`. per_class: this many images are drawn from each class, all
    others are excluded (0 = all). draw_from: use only images of this `given_split` ("" = all).
    """

    scheme: Scheme
    seed: _Seed
    validation: float
    test: float
    folds: NonNegativeInt
    per_class: NonNegativeInt
    draw_from: str

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
    """Backbone and head.

    backbone: a timm name, or `dermkit/cnn-s1`, `dermkit/cnn-s4`. backbone_args: arguments of `timm.create_model` that
    the pretrained weights need. weights: `imagenet` (from the hub or --weights FILE) or `none` (random).
    skip_blocks: names of backbone modules that are replaced by the identity, to take features from an earlier layer.
    hidden: widths of the head's dense layers (ReLU). dropout: rate before each of the head's dense layers.
    """

    backbone: Annotated[str, Field(min_length=1, max_length=1000)]
    backbone_args: dict[str, bool | int | float | str]
    weights: Literal["imagenet", "none"]
    skip_blocks: Annotated[tuple[str, ...], Field(max_length=10_000)]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=16_384)], ...], Field(max_length=64)]
    dropout: FractionBelowOne


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class OversampleSpec:
    """Oversampling of small classes, in the training split only, by augmented copies.

    target_fraction: target size of the smaller classes, as a fraction of the largest (1.0 = equal sizes).
    max_copies: the most training images made from one image, itself included.
    """

    target_fraction: Annotated[float, Field(gt=0.0, le=1.0)]
    max_copies: PositiveInt
    augment: AugmentSpec


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class Phase:
    """One phase of training.

    train_backbone: `none` (frozen, batch-norm statistics too; features are cached), `all`, or how many of timm's last
    layer groups are trained. head_lr, backbone_lr: learning rates. views: with a frozen backbone, augmented views
    cached per image (0 = the image itself, without augmentation). freeze_batch_norm: batch-norm layers stay in
    evaluation mode. patience: epochs without improvement before stopping (0 = never); the weights of the best epoch
    are saved in any case.
    """

    epochs: PositiveInt
    train_backbone: Literal["none", "all"] | PositiveInt
    head_lr: NonNegativeFloat
    backbone_lr: NonNegativeFloat
    views: NonNegativeInt
    freeze_batch_norm: bool
    patience: NonNegativeInt


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class OptimSpec:
    """Loss and optimizer. The loss is the categorical cross-entropy of the softmax.

    batch_size: images per step, over all devices together. class_weights: `balanced` weights each class by the inverse
    of its frequency. sampling: `shuffled` shows every training image once an epoch; `balanced` draws the same number
    of images, each class equally often.
    """

    optimizer: Literal["adam", "adamw", "sgd"]
    momentum: FractionBelowOne
    weight_decay: NonNegativeFloat
    class_weights: Literal["none", "balanced"]
    label_smoothing: FractionBelowOne
    batch_size: PositiveInt
    schedule: Literal["constant", "cosine"]
    sampling: Literal["shuffled", "balanced"]


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class MixupSpec:
    """Mixup and CutMix of two training images and their labels, with one ratio from Beta(alpha, alpha).

    mixup: alpha of mixup (Zhang 2018); cutmix: alpha of CutMix (Yun 2019); 0 = never. If both are positive, each is
    used for half of the mixed images. p: probability that an image is mixed.
    """

    mixup: NonNegativeFloat
    cutmix: NonNegativeFloat
    p: Fraction

    @model_validator(mode="after")
    def _check(self) -> "MixupSpec":
        if not self.mixup and not self.cutmix:
            raise ValueError("mixup or cutmix must be above 0; leave `mix` null for no mixing")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ComputeSpec:
    """How training computes; validation, evaluation and prediction of a trained net always run in float32.

    precision: `bfloat16` computes matrix products and convolutions in bfloat16 (weights, losses and sums stay
    float32); `fastest` is bfloat16 on devices that multiply it in hardware, otherwise float32; it is chosen before the
    run and saved in its recipe.json. compile: whether the training step goes through `torch.compile`.
    """

    precision: Literal["float32", "bfloat16", "fastest"]
    compile: bool


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class Recipe:
    """All settings of one experiment; see the class of each field.

    system: the published system that it repeats ("S0" to "S4"). about: a description, without effect. grow, mix: None
    = no oversampling, no mixup. monitor: the validation metric that chooses the best epoch and, of `repeats` runs
    (seeds seed, seed + 1, ...), the final model. keep: whether the best or the last epoch becomes the model.

    Raises `pydantic.ValidationError` for an invalid value; `load_recipe` reports those of a file as `UsageError`.

        demo = dk.find_recipe("demo")
        wider = dataclasses.replace(demo, name="wider", model=dataclasses.replace(demo.model, hidden=(64,)))
    """

    name: RecipeName
    system: str
    about: str
    image: ImageSpec
    split: SplitSpec
    model: ModelSpec
    augment: AugmentSpec
    grow: OversampleSpec | None
    mix: MixupSpec | None
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, max_length=100)]
    optim: OptimSpec
    compute: ComputeSpec
    monitor: Monitor
    keep: Literal["best", "last"]
    seed: _Seed
    repeats: Annotated[int, Field(ge=1, le=10_000)]

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


def recipe_fingerprint(recipe: Recipe, **input_hashes: str) -> str:
    """Return 12 hex digits that identify an experiment up to its seed; they name its run folder.

    Hashed are the recipe without `about`, `system`, `seed` and `repeats`, and input_hashes: those of the manifest, the
    split and the weights.
    """
    recipe_json = recipe_with_format_2_names(recipe_to_dict(recipe))
    for key in ("about", "system", "seed", "repeats"):
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
        "cutout": CutoutSpec,
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
