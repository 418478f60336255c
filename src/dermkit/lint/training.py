"""LN001 to LN005: a recipe, the weights and images that it meets, and the net that it makes of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermkit.lint.rules import Lint, same_images

if TYPE_CHECKING:
    from dermkit.recipes.schema import Recipe

Triple = tuple[float, float, float]

SHIFTED = 0.25
"""Standard deviations. Rounding of published means moves a pixel by 0.01; pixels in 0..1 against ImageNet's by 2.1."""
STRETCHED, MIXED = 1.1, 1.2
COPIES = 3
"""Images on two sides whose names say so; one or two may be a chance of numbering."""

SCALINGS: Mapping[str, tuple[Triple, Triple]] = {
    "pixels in 0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels in -1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's mean and deviation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's mean and deviation": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
    "caffe's (mean taken off, 0 to 255)": ((0.485, 0.456, 0.406), (1 / 255, 1 / 255, 1 / 255)),
}
"""Scalings that have a name: mean and standard deviation of pixels in 0..1."""


@dataclass(frozen=True)
class BatchNorm:
    """The batch-norm layers of the backbone in one phase, as the net is set for training.

    moving: layers that update their statistics. frozen: those of them whose own weights do not learn.
    """

    layers: int
    moving: int
    frozen: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What the rules look at. Whatever is unknown is None, and its rules are silent.

    mean, std: of pixels in 0..1, as they reach the net. weights_mean, weights_std: as its weights were trained, None
    for random weights. batch_norm: one per phase, read from the net itself. images: manifest rows with `split`
    (train, validation, test).
    """

    recipe: "Recipe"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    weights_mean: Triple | None = None
    weights_std: Triple | None = None
    batch_norm: Sequence[BatchNorm] | None = None
    images: pd.DataFrame | None = None


def lint_training(training: Training) -> list[Lint]:
    """Return what the rules about a training find."""
    found = [rule(training) for rule in _RULES]
    return [item for item in found if item is not None]


def _ln001(training: Training) -> Lint | None:
    if training.weights_mean is None or training.weights_std is None:
        return None
    off = _shift((training.mean, training.std), (training.weights_mean, training.weights_std))
    if off <= SHIFTED:
        return None
    frozen = any(phase.train_backbone == "none" for phase in training.recipe.phases)
    given, wanted = _scaling(training.mean, training.std), _scaling(training.weights_mean, training.weights_std)
    backbone = f"{'frozen ' if frozen else ''}{training.recipe.model.backbone}"
    return Lint(
        "LN001",
        "warning" if frozen else "note",
        f"The net gets {given}, the weights of the {backbone} were trained with {wanted}: pixels arrive up to "
        f"{off:.1f} standard deviations from where they are expected.",
        n=1,
    )


def _shift(given: tuple[Triple, Triple], wanted: tuple[Triple, Triple]) -> float:
    """Return by how much a pixel of 0..1 is off at most, in units of what the weights expect."""
    (mean, std), (right_mean, right_std) = (np.asarray(pair, dtype=np.float64) for pair in (given, wanted))
    pixels = np.array([[0.0], [1.0]])  # the difference is linear in the pixel: an end is the worst
    return float(np.abs((pixels - mean) / std - (pixels - right_mean) / right_std).max())


def _scaling(mean: Triple, std: Triple) -> str:
    """Name a scaling, by numbers where it has no name."""
    for name, known in SCALINGS.items():
        if _shift((mean, std), known) < 0.05 / min(known[1]):
            return name
    numbers = [" ".join(f"{value:.3g}" for value in values) for values in (mean, std)]
    return f"mean {numbers[0]} and deviation {numbers[1]}"


def _ln002(training: Training) -> Lint | None:
    state = training.batch_norm
    frozen = [(number, item) for number, item in enumerate(state or [], 1) if item.frozen]
    if frozen:
        number, item = max(frozen, key=lambda pair: pair[1].frozen)
        return Lint(
            "LN002",
            "warning",
            f"In phase {number} {item.frozen} of {item.layers} batch-norm layers update their statistics though their "
            "weights are frozen.",
            n=item.frozen,
        )
    for number, phase in enumerate(training.recipe.phases, 1):
        partly = isinstance(phase.train_backbone, int) and not phase.freeze_batch_norm
        moving = state[number - 1].moving if state else None
        if partly and moving != 0:
            return Lint(
                "LN002",
                "note",
                f"In phase {number} only the last {phase.train_backbone} layer groups learn, and their batch norm with "
                f"them, from batches of {training.recipe.optim.batch_size}.",
                n=moving or 1,
            )
    return None


def _ln003(training: Training) -> Lint | None:
    images = training.images
    if images is None:
        return None
    sides = {side: images[images["split"] == side] for side in ("validation", "test")}
    if any(part.empty for part in sides.values()):
        return None
    seen = sides["validation"]
    test = sides["test"]
    shared = test["image_id"].isin(seen["image_id"]) | (
        (test["pixel_sha256"] != "") & test["pixel_sha256"].isin(seen["pixel_sha256"])
    )
    return same_images(int(shared.sum()), len(test))


def _ln004(training: Training) -> Lint | None:
    images = training.images
    if images is None:
        return None
    spread = images[images["split"].isin(["train", "validation", "test"])].reset_index(drop=True)
    flags = np.zeros(len(spread), dtype=bool)
    for origin in (_origins(spread["path"]), _archive_ids(spread)):
        known = origin != ""
        sides = spread[known].groupby(origin[known])["split"].transform("nunique")
        pictures = spread[known].groupby(origin[known])["pixel_sha256"].transform("nunique")
        flags[np.flatnonzero(known)] |= ((sides > 1) & (pictures > 1)).to_numpy()
    n = int(flags.sum())
    if n < COPIES:
        return None
    example = spread.loc[flags, "path"].iloc[0]
    return Lint(
        "LN004",
        "error",
        f"{n:,} images are made from one another, by their names or ISIC ids, and stand on two sides of the split "
        f"(such as {example}).",
        n,
    )


_AUGMENTED = re.compile(
    # Digits after a separator belong to the word before it; each character fits one place only, or a long name of many
    # such words would be tried in every way there is.
    r"(?i)(?:[\s_.-]*(?:aug(?:mented)?|h?v?flip(?:ped)?(?:lr|ud)?|rot(?:ated?)?|mirror(?:ed)?|zoom(?:ed)?|"
    r"crop(?:ped)?|shift(?:ed)?|bright(?:ness)?|contrast|noise|blur(?:red)?|smote|copy)(?:[\s_.-]?\d+)?)+$"
)
_GENERATED = re.compile(
    r"(?i)^.+?_original_(?P<file>.+?)(\.(jpe?g|png|bmp|tiff?))?_[0-9a-f]{8}(-[0-9a-f]{4,12}){4}$"
)
"""How a well-known augmentation tool names what it writes: CLASS_original_FILE_UUID."""
_NUMBERED = re.compile(r"(_\d{1,6}_\d{1,5}|[\s_-]?\(\d{1,3}\))$")
"""How generators and copying file managers number: only believed where the original is there."""


def _origins(paths: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the picture that each file says it is made from, or that others are made from; "" = none.

    A name that ends in a word of augmentation is believed where what is left has a number, and so means one picture;
    one that ends in numbers only where its original exists. The original is the one in the file's own folder, else
    the only one of that name: folders that each number their files from 0 say nothing about each other.
    """
    parts = paths.str.extract(r"^(.*/)?([^/]+?)(?:\.[^./]*)?$").fillna("")
    folders, stems = parts[0], parts[1]
    homes: dict[str, set[str]] = {}
    for folder, stem in zip(folders, stems, strict=True):
        homes.setdefault(stem, set()).add(folder)
    bare = {stem: _origin(stem, set(homes)) for stem in homes}
    origin = [_placed(folder, stem, bare[stem], homes) for folder, stem in zip(folders, stems, strict=True)]
    own = folders + stems
    named = {name for name, place in zip(origin, own, strict=True) if name and name != place}
    return pd.Series([name if name in named else "" for name in origin], index=paths.index)


def _placed(folder: str, stem: str, origin: str, homes: Mapping[str, set[str]]) -> str:
    """Return folder and name of an origin, "" where several pictures have its name."""
    there = homes.get(origin, set())
    if origin == stem or folder in there:
        return folder + origin
    if len(there) == 1:
        return next(iter(there)) + origin
    # Without its original, a short number may mean another picture in each folder.
    return "" if there else origin if re.search(r"\d{4}", origin) else folder + origin


def _origin(stem: str, there: set[str]) -> str:
    if generated := _GENERATED.match(stem):
        return generated["file"]
    augmented = _AUGMENTED.sub("", stem)
    if augmented != stem and (augmented in there or re.search(r"\d", augmented)):
        return augmented
    numbered = _NUMBERED.sub("", stem)
    return numbered if numbered in there else stem


def _archive_ids(images: pd.DataFrame) -> "pd.Series[Any]":
    return images["isic_id"] if "isic_id" in images else pd.Series("", index=images.index, dtype=str)


def _ln005(training: Training) -> Lint | None:
    images = training.images
    if images is None or training.recipe.image.resize != "squash" or images.empty:
        return None
    aspect = images["width"].to_numpy(dtype=np.float64) / images["height"].to_numpy(dtype=np.float64)
    stretch = float(np.median(np.maximum(aspect, 1 / aspect)))
    low, high = np.quantile(aspect, [0.05, 0.95])
    mixed = float(high / low)
    if mixed > MIXED:
        by_class = pd.Series(aspect).groupby(images["label"].to_numpy()).median()
        own = (
            f" It tells class: {by_class.idxmin()} has {by_class.min():.2f}, {by_class.idxmax()} {by_class.max():.2f}."
            if by_class.max() / by_class.min() > STRETCHED
            else ""
        )
        return Lint(
            "LN005",
            "warning",
            f"Squashed into squares, images of width over height {low:.2f} to {high:.2f} are each stretched "
            f"otherwise.{own}",
            len(images),
        )
    if stretch > STRETCHED:
        return Lint(
            "LN005",
            "note",
            f"Squashed into squares, all images are stretched by about {stretch:.2f}.",
            len(images),
        )
    return None


_RULES: tuple[Callable[[Training], Lint | None], ...] = (_ln001, _ln002, _ln003, _ln004, _ln005)
