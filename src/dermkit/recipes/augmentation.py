"""What may change at random in a training image: the fields of a recipe's `augment`, and the presets by name.

Every field that affects a result is required: a preset's name is replaced by its full spec when a recipe is read.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from dermkit.errors import UsageError

STRICT_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

NonNegativeFloat = Annotated[float, Field(ge=0.0, le=1e6)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Degrees = Annotated[float, Field(ge=0.0, le=180.0)]


def _check_kernel_size(size: int) -> int:
    if (size and size % 2 == 0) or size == 1:
        raise ValueError("a kernel's size is odd and at least 3, or 0 for never")
    return size


KernelSize = Annotated[int, Field(ge=0, le=7), AfterValidator(_check_kernel_size)]


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class HsvSpec:
    """Shifts of hue, saturation and value, all three in the same images.

    p: probability for each image. hue: largest shift in degrees (20 = OpenCV's 10 of 180). saturation, value: added,
    in -x .. x of the full range 0..1 (OpenCV's 8-bit number / 255). An exactly grey pixel stays grey.
    """

    p: Fraction
    hue: Degrees
    saturation: Fraction
    value: Fraction


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class BlurNoiseSpec:
    """One of motion blur, median, Gaussian blur and Gaussian noise, at equal odds among those that are not 0.

    p: probability for each image. motion, median, gaussian: largest kernel size in pixels (odd, at most 7; 0 =
    never); the size is drawn from 3, 5, ... up to it, and Gaussian blur's sigma is 0.8 at 3, 1.1 at 5, 1.4 at 7.
    noise: smallest and largest variance, in squared 8-bit grey levels ([0, 0] = never).
    """

    p: Fraction
    motion: KernelSize
    median: KernelSize
    gaussian: KernelSize
    noise: tuple[NonNegativeFloat, NonNegativeFloat]

    @model_validator(mode="after")
    def _check(self) -> "BlurNoiseSpec":
        if self.noise[0] > self.noise[1]:
            raise ValueError("noise is the least variance, then the most")
        if not (self.motion or self.median or self.gaussian or self.noise[1]):
            raise ValueError("one of motion, median, gaussian and noise must be above 0; else leave it null")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class DistortSpec:
    """One of optical, grid and elastic distortion, at equal odds among those that are not 0.

    p: probability for each image. optical: radial distortion coefficient k, uniform in [-x, x]. A pixel at radius r
    (in image widths) is sampled at r (1 + k r^2), for negative k at r / (1 + abs(k) r^2). grid: the widths of
    grid_steps strips per axis are multiplied by 1 - x to 1 + x, then scaled to fill the image. elastic: largest
    displacement, as a fraction of the image width, of a smooth field with elastic_cells cells per axis. Samples
    outside the image are reflected.
    """

    p: Fraction
    optical: Fraction
    grid: Fraction
    grid_steps: Annotated[int, Field(ge=2, le=32)]
    elastic: Annotated[float, Field(ge=0.0, le=0.5)]
    elastic_cells: Annotated[int, Field(ge=1, le=32)]

    @model_validator(mode="after")
    def _check(self) -> "DistortSpec":
        if not (self.optical or self.grid or self.elastic):
            raise ValueError("one of optical, grid and elastic must be above 0; else leave it null")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class ClaheSpec:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of luma; colour differences stay.

    p: probability for each image. clip: the limit is uniform from 1 (hardly a change) to this, in multiples of a
    bin's mean count. tiles: per axis.
    """

    p: Fraction
    clip: Annotated[float, Field(ge=1.0, le=256.0)]
    tiles: Annotated[int, Field(ge=1, le=16)]


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class CutoutSpec:
    """One black square (DeVries and Taylor 2017), its centre anywhere in the image, clipped at the border.

    p: probability for each image. side: length of the square's side, as a fraction of the image's.
    """

    p: Fraction
    side: Fraction


@dataclass(frozen=True, kw_only=True, config=STRICT_CONFIG)
class AugmentSpec:
    """Random changes of a training image, each drawn uniformly; all zeros and nulls = none.

    horizontal_flip, vertical_flip, transpose: each applied with probability 1/2; together the three give the eight
    symmetries of the square with equal probability. p_geometric: probability that rotate, shift and zoom apply, all
    together. rotate: largest angle in degrees. shift: largest shift as a fraction of the image width. zoom: scale in
    1 - zoom .. 1 + zoom. fill: how pixels from outside the image are filled. p_colour: probability of brightness, of
    contrast and of saturation, each drawn by itself. brightness, contrast, saturation: factor in 1 - x .. 1 + x. Steps
    run in the order of the fields, except that distortion and the affine transform share one interpolation.
    """

    horizontal_flip: bool
    vertical_flip: bool
    transpose: bool
    p_geometric: Fraction
    rotate: Degrees
    shift: Fraction
    zoom: FractionBelowOne
    fill: Literal["reflect", "black", "edge"]
    distort: DistortSpec | None
    p_colour: Fraction
    brightness: Fraction
    contrast: Fraction
    saturation: Fraction
    hsv: HsvSpec | None
    blur_noise: BlurNoiseSpec | None
    clahe: ClaheSpec | None
    cutout: CutoutSpec | None


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
"""Named starting points. No preset has been shown to be better than another."""

PRESET_NOTES: Mapping[str, str] = {
    "none": "every image as it is",
    "s0": "the first system's: flips, 30 degrees, shift, zoom and brightness of a tenth",
    "s1": "the second system's: flips, 30 degrees, shift and zoom of a tenth",
    "s2": "the third system's: flips, 30 degrees, shift of a tenth",
    "s4": "the fifth system's: flips, 25 degrees, zoom of a fifth",
    "light": "the eight positions without interpolation, and a tenth of brightness, contrast and saturation",
    "dermoscopy": "the eight positions, any rotation, scale, a little shift, colour within what lamps differ by",
    "winner-2020": "the list of the SIIM-ISIC 2020 winner: distortion, CLAHE, blur, noise, cutout (slow)",
}
"""One line about each preset, for `dermkit recipes presets`."""


def find_preset(name: str, location: str = "") -> AugmentSpec:
    """Return a preset; raises `UsageError` with the closest name and the list. location: the file and field, if any."""
    if name in PRESETS:
        return PRESETS[name]
    suggestions = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean `{suggestions[0]}`?" if suggestions else ""
    raise UsageError(
        f"{location + ': ' if location else ''}unknown augmentation preset `{name}`{hint}",
        outcome="nothing was trained",
        remedy=f"take one of: {', '.join(PRESETS)}; or write the whole spec",
    )


def active_fields(spec: AugmentSpec) -> dict[str, Any]:
    """Return the fields that have an effect, as JSON values, for reports."""
    inactive_fields = {name for name, value in asdict(spec).items() if not value}
    is_geometric, is_colour = (
        spec.rotate or spec.shift or spec.zoom,
        spec.brightness or spec.contrast or spec.saturation,
    )
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
