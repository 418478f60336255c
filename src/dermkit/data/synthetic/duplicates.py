"""Near duplicates of an image (re-encoded, resized, flipped, rotated, cropped), to test that an audit finds them."""

from collections.abc import Callable, Mapping
from io import BytesIO
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MakeCopy = Callable[[Image.Image, np.random.Generator], Image.Image]

_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)
_QUARTERS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
_FLIPS = (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE,
)  # fmt: skip


def _unchanged(image: Image.Image, _rng: np.random.Generator) -> Image.Image:
    return image


def _resize(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Resize by a factor of 0.5 to 1.5; every third image becomes a square, as in many data sets."""
    scale = rng.uniform(0.5, 1.5)
    width, height = (max(16, round(edge * scale)) for edge in image.size)
    if rng.random() < 1 / 3:
        width = height = min(width, height)
    return image.resize((width, height), _FILTERS[rng.integers(len(_FILTERS))])


def _flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(_FLIPS[rng.integers(len(_FLIPS))])


def _quarter_turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(_QUARTERS[rng.integers(len(_QUARTERS))])


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out a random window of 80 to 95 % of each side."""
    fraction = rng.uniform(0.8, 0.95)
    width, height = (round(edge * fraction) for edge in image.size)
    left, top = (
        int(rng.integers(0, length - window + 1))
        for length, window in zip(image.size, (width, height), strict=True)
    )
    return image.crop((left, top, left + width, top + height))


def _rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate by any angle; the corners are black or of the mean colour, the image grows, or is cropped inside."""
    angle = float(rng.uniform(5, 355))
    fill_mode = rng.integers(4)
    if fill_mode == 3:
        return _crop_inside(image.rotate(angle, Image.Resampling.BICUBIC, expand=True), image.size, angle)
    colour = tuple(int(value) for value in np.asarray(image).mean(axis=(0, 1))) if fill_mode == 1 else (0, 0, 0)
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=bool(fill_mode == 2), fillcolor=colour)


def _crop_inside(rotated: Image.Image, size: tuple[int, int], angle: float) -> Image.Image:
    """Cut out the largest window with the original aspect ratio that has no empty corners."""
    width, height = size
    sine, cosine = abs(np.sin(np.radians(angle))), abs(np.cos(np.radians(angle)))
    scale = min(width / (width * cosine + height * sine), height / (width * sine + height * cosine))
    half_width, half_height = width * scale / 2, height * scale / 2
    x, y = rotated.width / 2, rotated.height / 2
    return rotated.crop(
        (round(x - half_width), round(y - half_height), round(x + half_width), round(y + half_height))
    )


COPY_KINDS: Mapping[str, MakeCopy] = MappingProxyType(
    {
        "exact": _unchanged, "reencoded": _unchanged, "resized": _resize, "flipped": _flip, "rotated90": _quarter_turn,
        "cropped": _crop, "rotated": _rotate,
    }
)  # fmt: skip
"""Kind -> function that makes it. `exact` is saved as PNG, `reencoded` as JPEG of quality 40 to 95, others 60 to 95."""


def plant_copy(pixels: NDArray[np.uint8], kind: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a near duplicate of an image, as the bytes of a file and its suffix.

    pixels: (H, W, 3) uint8 RGB. kind: one of `COPY_KINDS`.
    """
    copy = COPY_KINDS[kind](Image.fromarray(pixels), rng)
    stream = BytesIO()
    if kind == "exact":
        copy.save(stream, "PNG")
        return stream.getvalue(), ".png"
    quality = int(rng.integers(40 if kind == "reencoded" else 60, 96))
    copy.save(stream, "JPEG", quality=quality)
    return stream.getvalue(), ".jpg"
