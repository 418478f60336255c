"""What of an image survives resaving, resizing, flips, turns and crops: its small picture, and discs around blobs.

Two descriptions, both blind to flips and quarter turns. The frame: the low frequencies of the whole picture, squashed
to a square; it finds resaved, resized, flipped and quarter-turned copies. The discs: around stable blobs and around
the centre, each as rings of grey values; the size of a ring's harmonics does not change when the disc is turned, so
crops and free turns are found as well. No net and no weights are needed.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

CANVAS = 96
"""Side in pixels of the small grey picture; the longer side of the image is brought to it."""
TINT = 24
"""Side in pixels of the two small pictures of colour (Cb and Cr) that lie over the canvas."""
SQUARE = 32
"""Side in pixels of the squashed picture whose low frequencies describe the frame."""
FREQUENCIES = 8
DISCS = 32
"""Discs per image: `CENTRED` around the centre, the rest around the strongest blobs."""
CENTRED = (1.0, 0.89, 0.79, 0.71, 0.63, 0.56, 0.5)
"""Radii of the discs around the centre, in half shorter sides: a central crop to 80 % has its match among them."""
FRAME_WIDTH = FREQUENCIES * (FREQUENCIES - 1) + FREQUENCIES - 1 + 3
RINGS = 8
ANGLES = 32
HARMONICS = 6
DISC_WIDTH = RINGS + RINGS * (HARMONICS - 1) + (RINGS - 1) * (HARMONICS - 1) + 2 + 4
REACH = 3.2
"""Radius of a disc in standard deviations of its blob: the blob and about as much of what is around."""
SIGMAS = tuple(float(2.0 * 2 ** (step / 3)) for step in range(9))
"""Pixels of the canvas. Finer blobs are hairs and noise, coarser ones do not fit into a cropped picture."""
FLAT = 2.0
"""Grey levels of standard deviation below which a disc shows nothing that could be recognised."""


@dataclass(frozen=True, eq=False)
class Small:
    """One image made small.

    canvas: (CANVAS, CANVAS) grey, edges repeated beyond width x height. tint: (2, TINT, TINT) Cb and Cr of the same.
    square: (SQUARE, SQUARE, 3) the whole image squashed.
    """

    canvas: Pixels
    tint: Pixels
    width: int
    height: int
    square: Pixels


@dataclass(frozen=True, eq=False)
class Description:
    """A batch of N images described.

    frame: (N, FRAME_WIDTH). disc: (N, DISCS, DISC_WIDTH), zero where there is none. polar: (N, DISCS, RINGS, ANGLES)
    int8, grey values of a disc without mean and scaled to standard deviation 32. place: (N, DISCS, 3) x, y and radius
    in canvas pixels, radius 0 = no disc.
    """

    frame: Floats
    disc: Floats
    polar: NDArray[np.int8]
    place: Floats


def shrink(pixels: Pixels) -> Small:
    """Make an image small. pixels: (H, W, 3) uint8."""
    image = Image.fromarray(pixels)
    scale = CANVAS / max(image.size)
    width, height = (max(2, round(side * scale)) for side in image.size)
    # `reducing_gap` would change values a little; speed comes from the box filter on the way down.
    small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    padded = np.pad(small, ((0, CANVAS - height), (0, CANVAS - width), (0, 0)), mode="edge")
    bands = Image.fromarray(padded).convert("YCbCr")
    tint = np.asarray(bands.resize((TINT, TINT), Image.Resampling.BOX))[..., 1:].transpose(2, 0, 1)
    square = np.asarray(image.resize((SQUARE, SQUARE), Image.Resampling.BICUBIC))
    return Small(np.asarray(bands)[..., 0], tint, width, height, square)


def describe(canvas: Pixels, tint: Pixels, size: NDArray[np.int64], square: Pixels) -> Description:
    """Describe a batch of N images: the fields of `Small`, stacked; size is (N, 2), width and height."""
    levels = blur(canvas.astype(np.float32), SIGMAS)
    place = np.concatenate([_centres(size), _blobs(levels, size)], axis=1)
    polar, grey, flat = _polar(levels, place, size)
    disc = np.concatenate([_invariants(polar), grey, _colours(tint, place)], axis=-1)
    for item in (place, polar, disc):
        item[flat] = 0
    return Description(_frame(square), disc, np.rint(polar * 32).clip(-127, 127).astype(np.int8), place)


def _frame(square: Pixels) -> Floats:
    """Return low frequencies of grey that no flip or transposition changes, and the mean colour."""
    grey = square.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    size = np.abs(dctn(grey, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]) / SQUARE
    upper = np.triu_indices(FREQUENCIES, 1)
    one, other = size[:, upper[0], upper[1]], size[:, upper[1], upper[0]]
    diagonal = size[:, range(1, FREQUENCIES), range(1, FREQUENCIES)]
    colour = square.astype(np.float32).mean(axis=(1, 2)) / 4
    return np.concatenate([one + other, np.abs(one - other), diagonal, colour], axis=1).astype(np.float32)


@lru_cache(maxsize=4)
def _kernels(sigmas: tuple[float, ...]) -> Floats:
    """Return one matrix per sigma that blurs along an axis, edges repeated; shape (levels, CANVAS, CANVAS)."""
    at = np.arange(CANVAS)
    made = []
    for sigma in sigmas:
        reach = int(4 * sigma) + 1
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        matrix = np.zeros((CANVAS, CANVAS))
        for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
            np.add.at(matrix, (at, (at + offset).clip(0, CANVAS - 1)), weight)
        made.append(matrix)
    return np.asarray(made, np.float32)


def blur(canvas: Floats, sigmas: tuple[float, ...]) -> Floats:
    """Return canvases (N, CANVAS, CANVAS) blurred by each sigma: (N, levels, CANVAS, CANVAS)."""
    kernels = _kernels(sigmas)
    along = canvas.reshape(-1, CANVAS) @ kernels.reshape(-1, CANVAS).T
    rows = along.reshape(len(canvas), CANVAS, len(kernels), CANVAS).transpose(0, 2, 1, 3)
    blurred: Floats = kernels @ np.ascontiguousarray(rows)
    return blurred


def _centres(size: NDArray[np.int64]) -> Floats:
    middle = (size - 1) / 2
    radius = np.asarray(size.min(axis=1)[:, None] / 2 * np.asarray(CENTRED))
    places = [np.broadcast_to(middle[:, None, axis], radius.shape) for axis in (0, 1)]
    return np.stack([*places, radius], axis=-1).astype(np.float32)


def _blobs(levels: Floats, size: NDArray[np.int64]) -> Floats:
    """Return x, y and radius of the strongest blobs whose disc lies in the picture: (N, DISCS - centred, 3)."""
    found = levels[:, 1:] - levels[:, :-1]
    peak = np.zeros(found.shape, bool)
    inner = found[:, 1:-1, 1:-1, 1:-1]
    peak[:, 1:-1, 1:-1, 1:-1] = ((inner == _around(found, np.maximum)) & (inner > 0)) | (
        (inner == _around(found, np.minimum)) & (inner < 0)
    )
    image, level, y, x = np.nonzero(peak)
    strength = np.abs(found[image, level, y, x])
    dx, dy, step = (_vertex(found, (image, level, y, x), axis) for axis in (3, 2, 1))
    radius = REACH * SIGMAS[0] * 2 ** ((level + step + 0.5) / 3)
    place = np.stack([x + dx, y + dy, radius], axis=-1)
    reach = 0.6 * radius[:, None]
    fits = (place[:, :2] - reach >= -1) & (place[:, :2] + reach <= size[image])
    inside = np.asarray(fits.all(axis=1))
    order = np.lexsort((-strength, image))
    order = order[inside[order]]
    # The place of each blob in its image's list, strongest first.
    rank = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    most = DISCS - len(CENTRED)
    out = np.zeros((len(levels), most, 3), np.float32)
    kept = rank < most
    out[image[order][kept], rank[kept]] = place[order][kept]
    return out


def _around(values: Floats, extreme: np.ufunc) -> Floats:
    """Return the extreme of each value and its neighbours in the last three axes, borders left out."""
    for axis in (1, 2, 3):
        length = values.shape[axis] - 2
        low, middle, high = (_slab(values, axis, start, length) for start in range(3))
        values = extreme(extreme(low, middle), high)
    return values


def _slab(values: Floats, axis: int, start: int, length: int) -> Floats:
    return values[(slice(None),) * axis + (slice(start, start + length),)]


def _vertex(values: Floats, at: tuple[NDArray[np.intp], ...], axis: int) -> NDArray[np.float64]:
    """Return how far from a peak the parabola through it and its neighbours has its vertex: -0.5 to 0.5."""
    before, after = list(at), list(at)
    before[axis], after[axis] = at[axis] - 1, at[axis] + 1
    low, middle, high = (values[tuple(index)].astype(np.float64) for index in (before, at, after))
    bend = low - 2 * middle + high
    shift = np.divide(low - high, 2 * bend, out=np.zeros_like(bend), where=np.abs(bend) > 1e-9)
    return np.asarray(shift.clip(-0.5, 0.5))


def _polar(levels: Floats, place: Floats, size: NDArray[np.int64]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return discs as rings of grey values (mean 0, standard deviation 1), what those were, and which are flat."""
    angle = 2 * np.pi * np.arange(ANGLES) / ANGLES
    ring = (np.arange(RINGS) + 0.5) / RINGS
    radius = place[..., 2]
    out_x = place[..., 0, None, None] + radius[..., None, None] * ring[:, None] * np.cos(angle)
    out_y = place[..., 1, None, None] + radius[..., None, None] * ring[:, None] * np.sin(angle)
    # Blurred by about the distance between rings, so that a small error of the radius changes little.
    level = np.searchsorted(np.asarray(SIGMAS), radius * 0.09).clip(0, len(SIGMAS) - 1)
    x = out_x.clip(0, size[:, 0, None, None, None] - 1.001)
    y = out_y.clip(0, size[:, 1, None, None, None] - 1.001)
    values = sample(
        levels.reshape(-1, CANVAS, CANVAS), np.arange(len(levels))[:, None] * len(SIGMAS) + level, x, y
    )
    weight = (ring / ring.sum())[:, None] / ANGLES
    mean = (values * weight).sum(axis=(-2, -1), keepdims=True)
    spread = np.sqrt((((values - mean) ** 2) * weight).sum(axis=(-2, -1), keepdims=True))
    flat = (spread[..., 0, 0] < FLAT) | (radius <= 0)
    grey = np.concatenate([mean[..., 0] / 50, np.log(np.maximum(spread[..., 0], FLAT)) / 2], axis=-1)
    return ((values - mean) / np.maximum(spread, 1e-3)).astype(np.float32), grey.astype(np.float32), flat


def _colours(tint: Pixels, place: Floats) -> Floats:
    """Return the mean colour of a disc's inside and outside: (N, DISCS, 4)."""
    angle = 2 * np.pi * np.arange(8) / 8
    ring = np.array([0.15, 0.35, 0.6, 0.85])
    x = place[..., 0, None, None] + place[..., 2, None, None] * ring[:, None] * np.cos(angle)
    y = place[..., 1, None, None] + place[..., 2, None, None] * ring[:, None] * np.sin(angle)
    scale = TINT / CANVAS
    row = (y * scale).astype(np.int64).clip(0, TINT - 1)
    column = (x * scale).astype(np.int64).clip(0, TINT - 1)
    image = np.arange(len(tint))[:, None, None, None]
    bands = [tint[:, band][image, row, column].astype(np.float32).mean(axis=-1) for band in (0, 1)]
    zones = [band[..., part].mean(axis=-1) for band in bands for part in (slice(0, 2), slice(2, 4))]
    return (np.stack(zones, axis=-1) / 20).astype(np.float32)


def sample(
    pictures: Floats, number: NDArray[np.int64], x: NDArray[np.floating], y: NDArray[np.floating]
) -> Floats:
    """Return bilinear values of pictures (P, CANVAS, CANVAS): `number` (...) picks one, x and y (..., R, A) places."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
    base = (number[..., None, None] * CANVAS + top) * CANVAS + left
    flat = pictures.reshape(-1)
    upper = flat[base] * (1 - right) + flat[base + 1] * right
    lower = flat[base + CANVAS] * (1 - right) + flat[base + CANVAS + 1] * right
    out: Floats = upper * (1 - down) + lower * down
    return out


def _invariants(polar: Floats) -> Floats:
    """Return what no turn and no flip of a disc changes: ring means, sizes of harmonics, how rings turn together."""
    wave = np.fft.rfft(polar, axis=-1)[..., :HARMONICS] / ANGLES
    weight = np.sqrt((np.arange(RINGS) + 0.5) / RINGS)[:, None]
    wave = wave * weight
    means = wave[..., 0].real
    sizes = np.abs(wave[..., 1:])
    # Two rings' harmonics turn together; a flip changes only the sign of the imaginary part.
    product = wave[..., 1:, 1:] * wave[..., :-1, 1:].conj()
    together = product.real / np.sqrt(np.abs(product) + 1e-4)
    flat = (*polar.shape[:-2], -1)
    return np.concatenate([item.reshape(flat) for item in (means, sizes, together)], axis=-1).astype(np.float32)
