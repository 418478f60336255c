"""Artefacts and changes of a photograph that say nothing of the lesion, put on an image with a chosen strength.

Pixels are (H, W, 3) uint8 RGB of any size, and come back in the same shape. Strength is 0 to 1: 0 returns the same
bits, and equal image id, seed and strength return equal pixels. The greatest strengths are chosen as the worst that
still occurs in archives, by eye; none of them is measured.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFilter

from dermkit.images.preprocess import RgbPixels
from dermkit.perturbation.layers import LayerName, put_layer, random_placement

MAX_STOPS = 1.5
"""Greatest change of exposure, in stops: the light is divided or multiplied by 2.8."""
MAX_CAST_STOPS = 0.4
"""Greatest colour cast: red gains so many stops and blue loses them, or the other way round."""
MAX_BLUR = 0.012
"""Standard deviation of the greatest blur, as a fraction of the longer side."""
BEST_QUALITY, WORST_QUALITY = 75, 10
"""JPEG quality at strengths just above 0 and at 1."""
MAX_CROP = 0.4
"""Fraction of either side that the strongest crop cuts off."""
MAX_TURN = 90.0
"""Degrees of the greatest turn."""


@dataclass(frozen=True)
class Artefact:
    """name: in tables. title: for people, as the subject of "moves". strength_text: what strength 1 is."""

    name: str
    title: str
    strength_text: str


ARTEFACTS = (
    Artefact("hair", "Drawn hair", "21 hairs across the image; a third of the strength is a third of them"),
    Artefact("ruler", "A ruler at the edge", "fully opaque"),
    Artefact("ink", "Ink marks at the edge", "fully opaque"),
    Artefact("gel_bubbles", "Gel bubbles", "15 bubbles; a third of the strength is a third of them"),
    Artefact("dark_corners", "Dark corners", "black outside the round field of view"),
    Artefact("sticker", "A coloured sticker at the edge", "fully opaque"),
    Artefact("warm_cast", "A warm colour cast", f"red {MAX_CAST_STOPS:g} stops up, blue as much down"),
    Artefact("cool_cast", "A cool colour cast", f"blue {MAX_CAST_STOPS:g} stops up, red as much down"),
    Artefact("blur", "Blur", f"a Gaussian of {100 * MAX_BLUR:g} % of the longer side"),
    Artefact("underexposure", "Under-exposure", f"{MAX_STOPS:g} stops darker"),
    Artefact("overexposure", "Over-exposure", f"{MAX_STOPS:g} stops brighter"),
    Artefact("jpeg_quality", "JPEG compression", f"quality {WORST_QUALITY} of 100"),
    Artefact("crop", "A closer crop", f"{100 * MAX_CROP:.0f} % of either side cut off"),
    Artefact("turn", "A turn of the image", f"{MAX_TURN:.0f} degrees, corners mirrored"),
)
_LAYERS: tuple[LayerName, ...] = ("hair", "ruler", "ink", "gel_bubbles", "dark_corners", "sticker")


def add_artefact(pixels: RgbPixels, name: str, strength: float, *, image_id: str, seed: int = 0) -> RgbPixels:
    """Return an image with an artefact, (H, W, 3) uint8 as `pixels`; strength 0 returns `pixels` itself.

    name: of one of `ARTEFACTS`. Raises `ValueError` for another name, or a strength that is not 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"a strength is 0 to 1, not {strength}")
    if name not in _LAYERS and name not in _CHANGES:
        raise ValueError(f"no artefact is called {name!r}")
    if strength == 0:
        return pixels
    rng = _image_rng(image_id, name, seed)
    image = Image.fromarray(pixels)
    if name in _LAYERS:
        return np.asarray(put_layer(image, _LAYERS[_LAYERS.index(name)], strength, random_placement(rng)))
    return np.asarray(_CHANGES[name](image, strength, rng))


def _image_rng(image_id: str, name: str, seed: int) -> np.random.Generator:
    """Return the generator of an image and an artefact: the same at every strength."""
    digest = hashlib.sha256(f"{seed}\n{name}\n{image_id}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


# Changes of the whole photograph ------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _light_table(stops: float) -> tuple[int, ...]:
    """Return 256 levels of sRGB after the light was multiplied by 2 ** stops (IEC 61966-2-1)."""
    levels = np.arange(256) / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    light = np.clip(light * 2.0**stops, 0, 1)
    changed = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple(np.asarray(changed * 255 + 0.5, np.uint8).tolist())


def _change_light(image: Image.Image, red: float, green: float, blue: float) -> Image.Image:
    return image.point([*_light_table(red), *_light_table(green), *_light_table(blue)])


def _warm(image: Image.Image, strength: float, _rng: np.random.Generator) -> Image.Image:
    return _change_light(image, MAX_CAST_STOPS * strength, 0.0, -MAX_CAST_STOPS * strength)


def _cool(image: Image.Image, strength: float, _rng: np.random.Generator) -> Image.Image:
    return _change_light(image, -MAX_CAST_STOPS * strength, 0.0, MAX_CAST_STOPS * strength)


def _darken(image: Image.Image, strength: float, _rng: np.random.Generator) -> Image.Image:
    stops = -MAX_STOPS * strength
    return _change_light(image, stops, stops, stops)


def _brighten(image: Image.Image, strength: float, _rng: np.random.Generator) -> Image.Image:
    stops = MAX_STOPS * strength
    return _change_light(image, stops, stops, stops)


def _blur(image: Image.Image, strength: float, _rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(MAX_BLUR * strength * max(image.size)))


def _compress(image: Image.Image, strength: float, _rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=round(BEST_QUALITY + (WORST_QUALITY - BEST_QUALITY) * strength))
    return Image.open(buffer).convert("RGB")


def _crop(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Cut to a part of the image, its centre a little beside the middle, and enlarge it to the image's size."""
    width, height = image.size
    fraction = MAX_CROP * strength
    left, top = (side * fraction * rng.uniform(0.35, 0.65) for side in (width, height))
    box = (left, top, left + width * (1 - fraction), top + height * (1 - fraction))
    return image.resize(image.size, Image.Resampling.BILINEAR, box)


def _turn(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Turn the image about its centre to one side or the other; mirrored skin fills the corners."""
    width, height = image.size
    margin = int(np.ceil((np.hypot(width, height) - min(width, height)) / 2)) + 1
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    angle = float(MAX_TURN * strength * rng.choice([-1, 1]))
    turned = Image.fromarray(padded).rotate(angle, Image.Resampling.BILINEAR)
    return turned.crop((margin, margin, margin + width, margin + height))


_CHANGES: MappingProxyType[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = (
    MappingProxyType(
        {
            "warm_cast": _warm,
            "cool_cast": _cool,
            "blur": _blur,
            "underexposure": _darken,
            "overexposure": _brighten,
            "jpeg_quality": _compress,
            "crop": _crop,
            "turn": _turn,
        }
    )
)
