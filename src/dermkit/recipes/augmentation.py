"""Random augmentation of training images: the fields of a recipe's `augment`, and named presets.

A preset's name in a recipe file is replaced by its full spec when the file is read. How each change is computed is in
`dermkit.training.augment`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from dermkit.errors import UsageError, did_you_mean
from dermkit.recipes.values import STRICT_CONFIG, Fraction, FractionBelowOne, NonNegativeFloat

Degrees = Annotated[float, Field(ge=0.0, le=180.0)]


def _check_kernel_size(size: int) -> int:
    if (size and size % 2 == 0) or size == 1:
        raise ValueError("a kernel size is odd and at least 3, or 0 for never")
    return size


KernelSize = Annotated[int, Field(ge=0, le=7), AfterValidator(_check_kernel_size)]


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class HsvSpec:
    """Shifts of hue, saturation and value, always all three together. Grey pixels stay grey."""

    p: Fraction
    """Probability of the shifts, for each image."""
    hue: Degrees
    """Largest shift of hue in degrees (20 = OpenCV's 10 of 180)."""
    saturation: Fraction
    """Largest shift of saturation, a channel in 0..1 (OpenCV's 8-bit number / 255)."""
    value: Fraction
    """Largest shift of value, a channel in 0..1 (OpenCV's 8-bit number / 255)."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class BlurNoiseSpec:
    """One of motion blur, median filter, Gaussian blur and Gaussian noise; those that are not 0 are equally likely.

    Kernel sizes are drawn from 3, 5, ... up to the largest. Sigma of the Gaussian blur is 0.8, 1.1, 1.4 pixels for
    sizes 3, 5, 7.
    """

    p: Fraction
    """Probability of one of the four, for each image."""
    motion: KernelSize
    """Motion blur: largest kernel size in pixels (odd, at most 7; 0 = never)."""
    median: KernelSize
    """Median filter: largest kernel size in pixels (odd, at most 7; 0 = never)."""
    gaussian: KernelSize
    """Gaussian blur: largest kernel size in pixels (odd, at most 7; 0 = never)."""
    noise: tuple[NonNegativeFloat, NonNegativeFloat]
    """Gaussian noise: smallest and largest variance, in squared grey levels of 0..255 ([0, 0] = never)."""

    @model_validator(mode="after")
    def _check(self) -> "BlurNoiseSpec":
        if self.noise[0] > self.noise[1]:
            raise ValueError("noise is the smallest variance, then the largest")
        if not (self.motion or self.median or self.gaussian or self.noise[1]):
            raise ValueError("one of motion, median, gaussian and noise must be above 0; else leave it null")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class DistortSpec:
    """One of optical, grid and elastic distortion; those that are not 0 are equally likely.

    Samples outside the image are reflected.
    """

    p: Fraction
    """Probability of one of the three, for each image."""
    optical: Fraction
    """Radial distortion coefficient k, uniform in [-x, x]: a pixel at radius r (in image widths) is sampled at r (1 + k
    r^2), for negative k at r / (1 + abs(k) r^2)."""
    grid: Fraction
    """The widths of grid_steps strips per axis are multiplied by 1 - x to 1 + x, then scaled to fill the image."""
    grid_steps: Annotated[int, Field(ge=2, le=32)]
    """Strips per axis of the grid distortion."""
    elastic: Annotated[float, Field(ge=0.0, le=0.5)]
    """Largest displacement, as a fraction of the image width, of a smooth field with elastic_cells cells per axis."""
    elastic_cells: Annotated[int, Field(ge=1, le=32)]
    """Cells per axis of the elastic distortion."""

    @model_validator(mode="after")
    def _check(self) -> "DistortSpec":
        if not (self.optical or self.grid or self.elastic):
            raise ValueError("one of optical, grid and elastic must be above 0; else leave it null")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ClaheSpec:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of luma; chroma is unchanged."""

    p: Fraction
    """Probability for each image."""
    clip: Annotated[float, Field(ge=1.0, le=256.0)]
    """The clip limit is uniform in [1, clip], in multiples of the mean count of a histogram bin; 1 changes hardly
    anything."""
    tiles: Annotated[int, Field(ge=1, le=16)]
    """Number of tiles per axis."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class CutoutSpec:
    """One black square (DeVries and Taylor 2017), centred at a random pixel and clipped at the border."""

    p: Fraction
    """Probability for each image."""
    side: Fraction
    """Side of the square as a fraction of the image width."""


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class AugmentSpec:
    """Random changes of a training image; amounts are uniform between their limits, and 0 or None means never.

    Steps run in the order of the fields, except that distortion and the affine transform share one interpolation.

        dk.find_preset("light")
    """

    horizontal_flip: bool
    """Whether images are mirrored left to right, with probability 1/2."""
    vertical_flip: bool
    """Whether images are mirrored top to bottom, with probability 1/2."""
    transpose: bool
    """Whether rows and columns change places, with probability 1/2; with both flips this gives the eight symmetries of
    the square with equal probability."""
    p_geometric: Fraction
    """Probability of rotate, shift and zoom, which are applied together."""
    rotate: Degrees
    """Largest angle in degrees, either way."""
    shift: Fraction
    """Largest shift as a fraction of the image width."""
    zoom: FractionBelowOne
    """The scale factor lies in [1 - zoom, 1 + zoom]."""
    fill: Literal["reflect", "black", "edge"]
    """How pixels from outside the image are filled."""
    distort: DistortSpec | None
    """One of optical, grid and elastic distortion; null = never."""
    p_colour: Fraction
    """Probability of brightness, of contrast and of saturation, each drawn independently."""
    brightness: Fraction
    """Brightness is multiplied by a factor in [1 - x, 1 + x]."""
    contrast: Fraction
    """Contrast is multiplied by a factor in [1 - x, 1 + x]."""
    saturation: Fraction
    """Saturation is multiplied by a factor in [1 - x, 1 + x]."""
    hsv: HsvSpec | None
    """Shifts of hue, saturation and value; null = never."""
    blur_noise: BlurNoiseSpec | None
    """One of motion blur, median filter, Gaussian blur and Gaussian noise; null = never."""
    clahe: ClaheSpec | None
    """Local contrast (CLAHE); null = never."""
    cutout: CutoutSpec | None
    """One black square; null = never."""


NO_AUGMENTATION = AugmentSpec(
    horizontal_flip=False, vertical_flip=False, transpose=False, p_geometric=1.0, rotate=0.0, shift=0.0, zoom=0.0,
    fill="reflect", distort=None, p_colour=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hsv=None,
    blur_noise=None, clahe=None, cutout=None,
)  # fmt: skip
_S2 = replace(NO_AUGMENTATION, horizontal_flip=True, vertical_flip=True, rotate=30.0, shift=0.1)
_S4 = replace(NO_AUGMENTATION, horizontal_flip=True, vertical_flip=True, rotate=25.0, zoom=0.2)
_DIHEDRAL = replace(NO_AUGMENTATION, horizontal_flip=True, vertical_flip=True, transpose=True)

PRESETS: Mapping[str, AugmentSpec] = {
    "none": NO_AUGMENTATION,
    "s0": replace(_S2, zoom=0.1, brightness=0.1),
    "s1": replace(_S2, zoom=0.1),
    "s2": _S2,
    "s4": _S4,
    "light": replace(_DIHEDRAL, brightness=0.1, contrast=0.1, saturation=0.1),
    "dermoscopy": replace(
        _DIHEDRAL, rotate=180.0, shift=0.05, zoom=0.15, brightness=0.15, contrast=0.15, saturation=0.15,
        hsv=HsvSpec(p=0.5, hue=8.0, saturation=0.0, value=0.0),
    ),
    "winner-2020": replace(
        _DIHEDRAL, p_geometric=0.85, rotate=15.0, shift=0.1, zoom=0.1, fill="black", p_colour=0.75, brightness=0.2,
        contrast=0.2,
        distort=DistortSpec(p=0.7, optical=1.0, grid=1.0, grid_steps=5, elastic=0.03, elastic_cells=4),
        hsv=HsvSpec(p=0.5, hue=20.0, saturation=20 / 255, value=10 / 255),
        blur_noise=BlurNoiseSpec(p=0.7, motion=5, median=5, gaussian=5, noise=(5.0, 30.0)),
        clahe=ClaheSpec(p=0.7, clip=4.0, tiles=8),
        cutout=CutoutSpec(p=0.7, side=0.375),
    ),
}  # fmt: skip
"""Named starting points. No preset has been shown to be better than another.

`winner-2020` has the augmentations of the winning entry of SIIM-ISIC 2020 (Ha, Liu and Liu, arXiv:2010.05351).
"""

PRESET_NOTES: Mapping[str, str] = {
    "none": "every image as it is",
    "s0": "of system S0: flips, rotation to 30 degrees, 10 % shift, zoom and brightness",
    "s1": "of system S1: flips, rotation to 30 degrees, 10 % shift and zoom",
    "s2": "of system S2: flips, rotation to 30 degrees, 10 % shift",
    "s4": "of system S4: flips, rotation to 25 degrees, 20 % zoom",
    "light": "the eight symmetries of the square (no interpolation), 10 % brightness, contrast, saturation",
    "dermoscopy": "the eight symmetries, any rotation, zoom, a little shift, colours as they differ by lamp",
    "winner-2020": "as the winner of SIIM-ISIC 2020: distortion, CLAHE, blur, noise, cutout (slow)",
}
"""One line about each preset, for `dermkit recipes presets`."""


def find_preset(name: str, location: str = "") -> AugmentSpec:
    """Return an augmentation preset by name; raises `UsageError` that suggests the closest name and lists all.

    location: the recipe file and field that name it, for the message.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise UsageError(
        f"{location + ': ' if location else ''}unknown augmentation preset `{name}`{did_you_mean(name, PRESETS)}",
        outcome="nothing was trained",
        remedy=f"take one of: {', '.join(PRESETS)}; or write the full spec",
    )


def active_fields(spec: AugmentSpec) -> dict[str, Any]:
    """Return the fields that have an effect, as JSON values, for reports."""
    inactive_fields = {name for name, value in asdict(spec).items() if not value}
    is_geometric = spec.rotate or spec.shift or spec.zoom
    is_colour = spec.brightness or spec.contrast or spec.saturation
    if not is_geometric or spec.p_geometric in (0.0, 1.0):
        inactive_fields.add("p_geometric")
    if not is_colour or spec.p_colour in (0.0, 1.0):
        inactive_fields.add("p_colour")
    if not is_geometric or not spec.p_geometric:
        inactive_fields |= {"rotate", "shift", "zoom", "fill"}
    if not spec.p_colour:
        inactive_fields |= {"brightness", "contrast", "saturation"}
    spec_json: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return {name: value for name, value in spec_json.items() if name not in inactive_fields}
