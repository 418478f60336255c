"""LN001 to LN005: the recipe, pretrained weights, images and net of a training."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermkit.lint.rules import LintFinding, shared_images_finding

if TYPE_CHECKING:
    from dermkit.recipes.schema import Recipe

_Triple = tuple[float, float, float]

MAX_PIXEL_SHIFT = 0.25
"""Standard deviations. Rounding of published means moves a pixel by 0.01; pixels in 0..1 against ImageNet's by 2.1."""
MAX_STRETCH, MAX_ASPECT_SPREAD = 1.1, 1.2
MIN_DERIVED_IMAGES = 3
"""Fewest images across splits whose names show one origin; one or two may be chance."""

NAMED_SCALINGS: Mapping[str, tuple[_Triple, _Triple]] = {
    "pixels in 0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels in -1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's mean and deviation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's mean and deviation": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
    "caffe's (mean taken off, 0 to 255)": ((0.485, 0.456, 0.406), (1 / 255, 1 / 255, 1 / 255)),
}
"""Well-known scalings: mean and standard deviation of pixels in 0..1, per channel."""


@dataclass(frozen=True)
class BatchNormState:
    """The batch-norm layers of the backbone in one phase of training.

    n_updating: layers that update their running statistics. n_frozen: those of them whose weights are frozen.
    """

    n_layers: int
    n_updating: int
    n_frozen: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingFacts:
    """The input of the rules. What is unknown is None, and its rules are skipped.

    mean, std: of pixels in 0..1, as the net gets them. weights_mean, weights_std: as its weights were trained, None
    for random weights. batch_norm: one per phase, read from the net itself. images: manifest rows with `split`
    (train, validation, test).
    """

    recipe: "Recipe"
    mean: _Triple = (0.0, 0.0, 0.0)
    std: _Triple = (1.0, 1.0, 1.0)
    weights_mean: _Triple | None = None
    weights_std: _Triple | None = None
    batch_norm: Sequence[BatchNormState] | None = None
    images: pd.DataFrame | None = None


def lint_training(training: TrainingFacts) -> list[LintFinding]:
    """Return the findings of the rules on a training."""
    findings = [rule(training) for rule in _RULES]
    return [finding for finding in findings if finding is not None]


def _ln001(training: TrainingFacts) -> LintFinding | None:
    if training.weights_mean is None or training.weights_std is None:
        return None
    shift = _pixel_shift((training.mean, training.std), (training.weights_mean, training.weights_std))
    if shift <= MAX_PIXEL_SHIFT:
        return None
    is_frozen = any(phase.train_backbone == "none" for phase in training.recipe.phases)
    actual_scaling, expected_scaling = (
        _scaling_name(training.mean, training.std),
        _scaling_name(training.weights_mean, training.weights_std),
    )
    backbone = f"{'frozen ' if is_frozen else ''}{training.recipe.model.backbone}"
    return LintFinding(
        "LN001",
        "warning" if is_frozen else "note",
        f"The net gets {actual_scaling}, the weights of the {backbone} were trained with "
        f"{expected_scaling}: pixels arrive up to "
        f"{shift:.1f} standard deviations from where they are expected.",
        n=1,
    )


def _pixel_shift(actual: tuple[_Triple, _Triple], expected: tuple[_Triple, _Triple]) -> float:
    """Return the largest shift of a pixel in 0..1, in standard deviations as the weights expect them."""
    (mean, std), (right_mean, right_std) = (np.asarray(pair, dtype=np.float64) for pair in (actual, expected))
    pixels = np.array([[0.0], [1.0]])  # the difference is linear in the pixel: an end is the worst
    return float(np.abs((pixels - mean) / std - (pixels - right_mean) / right_std).max())


def _scaling_name(mean: _Triple, std: _Triple) -> str:
    """Return the name of a scaling, or its numbers."""
    for name, scaling in NAMED_SCALINGS.items():
        if _pixel_shift((mean, std), scaling) < 0.05 / min(scaling[1]):
            return name
    numbers = [" ".join(f"{value:.3g}" for value in values) for values in (mean, std)]
    return f"mean {numbers[0]} and deviation {numbers[1]}"


def _ln002(training: TrainingFacts) -> LintFinding | None:
    batch_norms = training.batch_norm
    frozen_phases = [
        (phase_number, batch_norm)
        for phase_number, batch_norm in enumerate(batch_norms or [], 1)
        if batch_norm.n_frozen
    ]
    if frozen_phases:
        phase_number, batch_norm = max(frozen_phases, key=lambda pair: pair[1].n_frozen)
        return LintFinding(
            "LN002",
            "warning",
            f"In phase {phase_number} {batch_norm.n_frozen} of {batch_norm.n_layers} batch-norm layers "
            f"update their statistics though their "
            "weights are frozen.",
            n=batch_norm.n_frozen,
        )
    for phase_number, phase in enumerate(training.recipe.phases, 1):
        is_partial = isinstance(phase.train_backbone, int) and not phase.freeze_batch_norm
        n_updating = batch_norms[phase_number - 1].n_updating if batch_norms else None
        if is_partial and n_updating != 0:
            return LintFinding(
                "LN002",
                "note",
                f"In phase {phase_number} only the last {phase.train_backbone} layer groups learn, and "
                f"their batch norm with "
                f"them, from batches of {training.recipe.optim.batch_size}.",
                n=n_updating or 1,
            )
    return None


def _ln003(training: TrainingFacts) -> LintFinding | None:
    images = training.images
    if images is None:
        return None
    splits = {split_name: images[images["split"] == split_name] for split_name in ("validation", "test")}
    if any(rows.empty for rows in splits.values()):
        return None
    validation = splits["validation"]
    test = splits["test"]
    is_shared = test["image_id"].isin(validation["image_id"]) | (
        (test["pixel_sha256"] != "") & test["pixel_sha256"].isin(validation["pixel_sha256"])
    )
    return shared_images_finding(int(is_shared.sum()), len(test))


def _ln004(training: TrainingFacts) -> LintFinding | None:
    images = training.images
    if images is None:
        return None
    images_in_split = images[images["split"].isin(["train", "validation", "test"])].reset_index(drop=True)
    flags = np.zeros(len(images_in_split), dtype=bool)
    for origin in (_origins(images_in_split["path"]), _archive_ids(images_in_split)):
        has_origin = origin != ""
        n_splits = images_in_split[has_origin].groupby(origin[has_origin])["split"].transform("nunique")
        n_pictures = images_in_split[has_origin].groupby(origin[has_origin])["pixel_sha256"].transform("nunique")
        flags[np.flatnonzero(has_origin)] |= ((n_splits > 1) & (n_pictures > 1)).to_numpy()
    n = int(flags.sum())
    if n < MIN_DERIVED_IMAGES:
        return None
    example = images_in_split.loc[flags, "path"].iloc[0]
    return LintFinding(
        "LN004",
        "error",
        f"{n:,} images are made from one another, by their names or ISIC ids, and stand on two sides of the split "
        f"(such as {example}).",
        n,
    )


_AUGMENTED_SUFFIX = re.compile(
    # Digits after a separator belong to the word before it; each character fits one place only, or a long name of many
    # such words would be tried in every way there is.
    r"(?i)(?:[\s_.-]*(?:aug(?:mented)?|h?v?flip(?:ped)?(?:lr|ud)?|rot(?:ated?)?|mirror(?:ed)?|zoom(?:ed)?|"
    r"crop(?:ped)?|shift(?:ed)?|bright(?:ness)?|contrast|noise|blur(?:red)?|smote|copy)(?:[\s_.-]?\d+)?)+$"
)
_GENERATED_NAME = re.compile(
    r"(?i)^.+?_original_(?P<file>.+?)(\.(jpe?g|png|bmp|tiff?))?_[0-9a-f]{8}(-[0-9a-f]{4,12}){4}$"
)
"""File names of the Augmentor package: CLASS_original_FILE_UUID."""
_NUMBERED_SUFFIX = re.compile(r"(_\d{1,6}_\d{1,5}|[\s_-]?\(\d{1,3}\))$")
"""File names of generators and copying file managers: only trusted if the original is there."""


def _origins(paths: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the picture that each file says it is made from, or that others are made from; "" = none.

    A name that ends in a word of augmentation is believed where what is left has a number, and so means one picture;
    one that ends in numbers only where its original exists. The original is the one in the file's own folder, else
    the only one of that name: folders that each number their files from 0 say nothing about each other.
    """
    path_fields = paths.str.extract(r"^(.*/)?([^/]+?)(?:\.[^./]*)?$").fillna("")
    folders, stems = path_fields[0], path_fields[1]
    folders_by_stem: dict[str, set[str]] = {}
    for folder, stem in zip(folders, stems, strict=True):
        folders_by_stem.setdefault(stem, set()).add(folder)
    origin_by_stem = {stem: _origin_stem(stem, set(folders_by_stem)) for stem in folders_by_stem}
    origin = [
        _resolve_origin(folder, stem, origin_by_stem[stem], folders_by_stem)
        for folder, stem in zip(folders, stems, strict=True)
    ]
    file_names = folders + stems
    referenced = {name for name, file_name in zip(origin, file_names, strict=True) if name and name != file_name}
    return pd.Series([name if name in referenced else "" for name in origin], index=paths.index)


def _resolve_origin(folder: str, stem: str, origin: str, folders_by_stem: Mapping[str, set[str]]) -> str:
    """Return folder and name of an origin, "" where several pictures have its name."""
    folders = folders_by_stem.get(origin, set())
    if origin == stem or folder in folders:
        return folder + origin
    if len(folders) == 1:
        return next(iter(folders)) + origin
    # Without its original, a short number may mean another picture in each folder.
    return "" if folders else origin if re.search(r"\d{4}", origin) else folder + origin


def _origin_stem(stem: str, known_stems: set[str]) -> str:
    if generated_match := _GENERATED_NAME.match(stem):
        return generated_match["file"]
    unaugmented = _AUGMENTED_SUFFIX.sub("", stem)
    if unaugmented != stem and (unaugmented in known_stems or re.search(r"\d", unaugmented)):
        return unaugmented
    unnumbered = _NUMBERED_SUFFIX.sub("", stem)
    return unnumbered if unnumbered in known_stems else stem


def _archive_ids(images: pd.DataFrame) -> "pd.Series[Any]":
    return images["isic_id"] if "isic_id" in images else pd.Series("", index=images.index, dtype=str)


def _ln005(training: TrainingFacts) -> LintFinding | None:
    images = training.images
    if images is None or training.recipe.image.resize != "squash" or images.empty:
        return None
    aspect = images["width"].to_numpy(dtype=np.float64) / images["height"].to_numpy(dtype=np.float64)
    stretch = float(np.median(np.maximum(aspect, 1 / aspect)))
    low, high = np.quantile(aspect, [0.05, 0.95])
    aspect_spread = float(high / low)
    if aspect_spread > MAX_ASPECT_SPREAD:
        by_class = pd.Series(aspect).groupby(images["label"].to_numpy()).median()
        class_text = (
            f" It tells class: {by_class.idxmin()} has {by_class.min():.2f}, {by_class.idxmax()} {by_class.max():.2f}."
            if by_class.max() / by_class.min() > MAX_STRETCH
            else ""
        )
        return LintFinding(
            "LN005",
            "warning",
            f"Squashed into squares, images of width over height {low:.2f} to {high:.2f} are each stretched "
            f"otherwise.{class_text}",
            len(images),
        )
    if stretch > MAX_STRETCH:
        return LintFinding(
            "LN005",
            "note",
            f"Squashed into squares, all images are stretched by about {stretch:.2f}.",
            len(images),
        )
    return None


_RULES: tuple[Callable[[TrainingFacts], LintFinding | None], ...] = (_ln001, _ln002, _ln003, _ln004, _ln005)
