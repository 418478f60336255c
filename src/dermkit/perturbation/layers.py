"""Layers of drawn artefacts: hair, ruler, ink, gel bubbles, dark corners and a sticker, for images of any size.

The artefacts are those of made images (data/synthetic/drawing.py), each of which multiplies an image by a field and
adds another. Drawn on black and on white, the two fields are known, and Pillow puts them on any image as uint8. Few
layers are drawn; each image takes one of them, mirrored or turned, so that no two need look alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageChops

from dermkit.data.synthetic import drawing

LAYER_SIDE = 256
"""Side of a layer in pixels; nets see images of 128 to 384 pixels."""
N_LAYERS = 6
"""Layers drawn of each artefact; with mirror images and quarter turns, 48 placements."""
N_LEVELS = 3
"""Steps in which hairs and bubbles become more: at a third, two thirds and all of the strength."""
_HAIRS_PER_LEVEL, _BUBBLES_PER_LEVEL = 7, 5

LayerName = Literal["hair", "ruler", "ink", "gel_bubbles", "dark_corners", "sticker"]
COUNTED_LAYERS = ("hair", "gel_bubbles")
"""Artefacts of which a greater strength is a greater number; of the others it is opacity."""
_CROPPED_LAYERS = ("hair", "gel_bubbles", "dark_corners")
"""Layers cut to the image's shape, since stretched they would look odd; the others have to keep their edges."""

_STICKER_COLOURS = np.array(
    [[0.16, 0.35, 0.72], [0.10, 0.52, 0.36], [0.92, 0.70, 0.12], [0.84, 0.30, 0.16]], np.float32
)
"""Colours of stickers in public archives: blue, green, yellow, orange."""


@dataclass(frozen=True)
class Placement:
    """Which layer an image gets, and how it is turned. turn: 0 to 7, quarter turns and their mirror images."""

    layer_number: int
    turn: int


def random_placement(rng: np.random.Generator) -> Placement:
    """Return a placement at random."""
    return Placement(int(rng.integers(N_LAYERS)), int(rng.integers(8)))


def put_layer(image: Image.Image, name: LayerName, strength: float, placement: Placement) -> Image.Image:
    """Return an RGB image with an artefact; strength: above 0 to 1. Pixels that it does not reach keep their bits."""
    level = min(N_LEVELS, int(np.ceil(strength * N_LEVELS - 1e-9))) if name in COUNTED_LAYERS else N_LEVELS
    gain, light = _fitted_layer(name, placement, level, image.size)
    changed = ImageChops.add(ImageChops.multiply(image, gain), light)
    return changed if name in COUNTED_LAYERS or strength >= 1 else Image.blend(image, changed, strength)


@lru_cache(maxsize=16)
def _fitted_layer(
    name: LayerName, placement: Placement, level: int, size: tuple[int, int]
) -> tuple[Image.Image, Image.Image]:
    """Return gain and light of a layer at an image's size; cached, since an image has it at several strengths."""
    gain, light = (
        _turned(picture, placement.turn) for picture in _drawn_layer(name, placement.layer_number, level)
    )
    box = _centre_box(size) if name in _CROPPED_LAYERS else None
    return gain.resize(size, Image.Resampling.BILINEAR, box), light.resize(size, Image.Resampling.BILINEAR, box)


def _centre_box(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part of a layer that has an image's shape."""
    width, height = (LAYER_SIDE * side / max(size) for side in size)
    left, top = (LAYER_SIDE - width) / 2, (LAYER_SIDE - height) / 2
    return left, top, left + width, top + height


def _turned(picture: Image.Image, turn: int) -> Image.Image:
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turn >= 4 else picture
    quarter_turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    method = quarter_turns[turn % 4]
    return mirrored if method is None else mirrored.transpose(method)


def _drawn_layer(name: LayerName, layer_number: int, level: int) -> tuple[Image.Image, Image.Image]:
    """Return gain and light of a layer, RGB: an image with the artefact is image * gain / 255 + light."""
    black, white = _draw_on_black_and_white(name, layer_number, level)
    return _to_picture(white - black), _to_picture(black)


def _to_picture(field: drawing.Field) -> Image.Image:
    return Image.fromarray(np.asarray(np.clip(field, 0, 1) * 255 + 0.5, np.uint8))


@lru_cache(maxsize=96)
def _draw_on_black_and_white(
    name: LayerName, layer_number: int, level: int
) -> tuple[drawing.Field, drawing.Field]:
    """Draw an artefact on black and on white; hairs and bubbles of a level are drawn upon those of the level below."""
    if level == 0:
        black = np.zeros((LAYER_SIDE, LAYER_SIDE, 3), np.float32)
        return black, black + 1
    lower_level = level - 1 if name in COUNTED_LAYERS else 0
    seed = [layer_number, lower_level, *name.encode()]
    black, white = (
        _DRAWERS[name](np.random.default_rng(seed), image)
        for image in _draw_on_black_and_white(name, layer_number, lower_level)
    )
    return black, white


def _draw_hairs(rng: np.random.Generator, image: drawing.Field) -> drawing.Field:
    return drawing.draw_hair(rng, image, _HAIRS_PER_LEVEL)


def _draw_bubbles(rng: np.random.Generator, image: drawing.Field) -> drawing.Field:
    return drawing.draw_bubbles(rng, image, _BUBBLES_PER_LEVEL)


def _draw_sticker(rng: np.random.Generator, image: drawing.Field) -> drawing.Field:
    """Draw a round coloured sticker that reaches in from an edge, as on photographs of children's lesions."""
    frame = drawing.frame_view(len(image))
    radius, angle = rng.uniform(0.32, 0.45), rng.uniform(0, 2 * np.pi)
    x, y = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.95, 1.15)
    depth = radius - np.hypot(frame.u - x, frame.v - y)
    mask = drawing.soft_step(np.asarray(depth, np.float32), 0.012)
    return drawing.blend(image, _STICKER_COLOURS[rng.integers(len(_STICKER_COLOURS))], mask)


_DRAWERS: dict[LayerName, Callable[[np.random.Generator, drawing.Field], drawing.Field]] = {
    "hair": _draw_hairs,
    "ruler": drawing.draw_ruler,
    "ink": drawing.draw_ink,
    "gel_bubbles": _draw_bubbles,
    "dark_corners": drawing.draw_dark_corners,
    "sticker": _draw_sticker,
}
