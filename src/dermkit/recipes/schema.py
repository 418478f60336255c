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
    AugmentSpec,
    BlurNoiseSpec,
    ClaheSpec,
    CutoutSpec,
    DistortSpec,
    HsvSpec,
    find_preset,
)
from dermkit.recipes.formats import MIGRATIONS, RECIPE_FORMAT, recipe_with_format_2_names, without_additions
from dermkit.recipes.training_specs import (
    ComputeSpec,
    DistilSpec,
    MetadataSpec,
    MixupSpec,
    OptimSpec,
    Phase,
    SmoteSpec,
)
from dermkit.recipes.values import (
    MIN_IMAGE_SIZE,
    STRICT_CONFIG,
    FractionBelowOne,
    NonNegativeInt,
    PositiveInt,
)

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
Monitor = Literal["val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc_macro"]


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ImageSpec:
    """How an image becomes the net's input."""

    size: Annotated[int, Field(ge=MIN_IMAGE_SIZE, le=2048)]
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
    With `kfold` a part of the next fold, of this fraction of all images, validates a fold's net; 1 / folds or more is
    that whole fold. With folds beside test images each fold is validation once, whatever stands here."""
    test: float
    """Fraction of the images for test, with `holdout` alone; a given scheme keeps the published test images, and with
    `kfold` each fold is the test split once."""
    folds: NonNegativeInt
    """Number of folds. `kfold`: at least 3. `holdout` and the given schemes: 0, or at least 2 folds of the images
    outside the test split, drawn or published, whose ensemble alone is scored on the test images, once."""
    per_class: NonNegativeInt
    """This many images are drawn at random from each class and all others are excluded (0 = all images)."""
    draw_from: str
    """Use only images of this published split, such as `train` (empty = all images)."""

    @model_validator(mode="after")
    def _check(self) -> "SplitSpec":
        if not 0.0 < self.validation < 1.0 or not 0.0 <= self.test < 1.0 or self.validation + self.test >= 1.0:
            raise ValueError("validation and test must be fractions that leave something to train on")
        if self.scheme == "kfold" and self.folds < 3:
            raise ValueError("kfold needs folds >= 3 (train, validation and test)")
        if self.folds == 1:
            raise ValueError("folds is 0 (none) or at least 2")
        if self.scheme == "holdout" and self.test == 0.0:
            raise ValueError("holdout needs a test fraction above 0")
        if self.scheme.startswith("given") and self.test != 0.0:
            raise ValueError("given schemes keep the published test images, so test must be 0")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ClassifierSpec:
    """A classifier of scikit-learn that is fitted on features of the frozen backbone, in place of dense layers."""

    kind: Literal["logistic", "k_nearest", "svm", "gradient_boosting"]
    """`logistic` regression, `k_nearest` neighbours (votes weighted by distance), `svm` with a radial kernel, or
    `gradient_boosting` of trees on histograms."""
    penalty: Annotated[float, Field(gt=0.0, le=1e6)]
    """C of `logistic` and `svm`: the larger, the less regularised; the others do not use it."""
    neighbours: Annotated[int, Field(ge=1, le=1000)]
    """Neighbours of `k_nearest`; the others do not use it."""
    iterations: Annotated[int, Field(ge=1, le=5000)]
    """Trees per class of `gradient_boosting`; the others do not use it."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    """Shrinkage of each tree of `gradient_boosting`; the others do not use it."""
    max_leaves: Annotated[int, Field(ge=2, le=1024)]
    """Most leaves of a tree of `gradient_boosting`; the others do not use it."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ModelSpec:
    """Backbone and head."""

    backbone: Annotated[str, Field(min_length=1, max_length=1000)]
    """A timm name (`dermkit recipes backbones`), a repository of the hub as `hf-hub:OWNER/NAME` or
    `hf-hub:OWNER/NAME@REVISION` (`docs/backbones.md`), or `dermkit/cnn-s1`, `dermkit/cnn-s4`."""
    backbone_args: dict[str, bool | int | float | str]
    """Arguments of `timm.create_model` that the pretrained weights need."""
    weights: Literal["imagenet", "none"]
    """Where training starts: `imagenet` (pretrained, on whatever images; from the hub or --weights FILE) or `none`
    (random)."""
    skip_blocks: Annotated[tuple[str, ...], Field(max_length=10_000)]
    """Names of backbone modules that are replaced by the identity, to take features from an earlier layer."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=16_384)], ...], Field(max_length=64)]
    """Widths of the dense layers (ReLU) between the backbone and the classes."""
    dropout: FractionBelowOne
    """Dropout rate before each of the head's dense layers."""
    drop_path: FractionBelowOne
    """Stochastic depth (Huang 2016): the most probable drop of a residual block in training, as timm
    has it; 0 = none."""
    classifier: ClassifierSpec | None
    """A classifier fitted on frozen features in place of the dense layers (`docs/training.md`); null = dense layers."""
    metadata: MetadataSpec | None
    """Age, sex or site as a second input (`docs/training.md`); null = the image alone."""

    @model_validator(mode="after")
    def _check(self) -> "ModelSpec":
        if self.drop_path and self.backbone.startswith("dermkit/"):
            raise ValueError(f"drop_path drops residual blocks, and {self.backbone} has none")
        if self.drop_path and "drop_path_rate" in self.backbone_args:
            raise ValueError("drop_path and backbone_args.drop_path_rate are the same: leave one out")
        return self


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
    smote: SmoteSpec | None
    """SMOTE on features of the frozen backbone; null = none."""
    distil: DistilSpec | None
    """Distillation of a trained model; null = none."""
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
    test_views: Literal["identity", "dihedral", "dihedral_crops", "choose"]
    """Views of an image whose probabilities are averaged in validation, test and prediction of the trained model:
    itself (one pass), its eight symmetries of the square (8), or those and five crops of 0.875 of the side (13).
    `choose` takes the set with the lowest log loss on validation images; of folds beside test images one set for all
    nets, of folds of all images each net its own. Epochs are compared on the image itself."""
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
        is_frozen = all(phase.train_backbone == "none" for phase in self.phases)
        if self.smote and not is_frozen:
            raise ValueError("smote makes features of a frozen backbone, so every phase needs train_backbone none")
        if self.model.classifier and (not is_frozen or len(self.phases) != 1 or self.phases[0].epochs != 1):
            raise ValueError(
                "model.classifier is fitted once: it needs one phase of one epoch, train_backbone none"
            )
        if self.model.classifier and self.optim.ema_decay:
            raise ValueError("optim.ema_decay has no effect on model.classifier, which has no steps of training")
        if any(phase.image_size > self.image.size for phase in self.phases):
            raise ValueError("phases: image_size is larger than image.size")
        if self.model.drop_path and is_frozen:
            raise ValueError("model.drop_path has no effect if the backbone is frozen in every phase")
        if self.optim.batch_norm_images and is_frozen:
            raise ValueError("optim.batch_norm_images has no effect if the backbone is frozen in every phase")
        if self.optim.warmup_epochs > min(phase.epochs for phase in self.phases):
            raise ValueError(
                "optim.warmup_epochs is longer than a phase, which would never reach its learning rate"
            )
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
    recipe_json = recipe_with_format_2_names(without_additions(recipe_to_dict(recipe)))
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
        "grow": OversampleSpec, "mix": MixupSpec, "smote": SmoteSpec, "distil": DistilSpec,
        "classifier": ClassifierSpec, "metadata": MetadataSpec, "phases": Phase, "optim": OptimSpec,
        "compute": ComputeSpec, "distort": DistortSpec, "hsv": HsvSpec, "blur_noise": BlurNoiseSpec, "clahe": ClaheSpec,
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
