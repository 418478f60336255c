"""Descriptors of an image that survive resaving, resizing, flips, rotations and crops.

Two kinds, both invariant to flips and quarter turns. Global: the low frequencies of the whole image, resized to a
square; it finds resaved, resized, flipped and quarter-turned copies. Patches: discs around stable blobs and around the
centre, each as rings of grey values; the magnitudes of a ring's harmonics do not change under rotation, so crops and
free rotations are found too. No net and no weights are needed.

Shapes: N images in a batch, C = CANVAS_SIDE, L blur levels, D = N_DISCS, R = N_RINGS, A = N_ANGLES.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

_Float32s = NDArray[np.float32]
_Pixels = NDArray[np.uint8]

CANVAS_SIDE = 96
"""Side in pixels of the small grey picture; the longer side of the image is resized to it."""
TINT_SIDE = 24
"""Side in pixels of the two small colour pictures (Cb and Cr) of the canvas."""
SQUARE_SIDE = 32
"""Side in pixels of the square picture whose low frequencies are the global descriptor."""
N_FREQUENCIES = 8
N_DISCS = 32
"""Discs per image: one per `CENTRED_RADII` around the centre, the rest around the strongest blobs."""
CENTRED_RADII = (1.0, 0.89, 0.79, 0.71, 0.63, 0.56, 0.5)
"""Radii of the discs around the centre, in half shorter sides: a central crop to 80 % has its match among them."""
GLOBAL_WIDTH = N_FREQUENCIES * (N_FREQUENCIES - 1) + N_FREQUENCIES - 1 + 3
N_RINGS = 8
N_ANGLES = 32
N_HARMONICS = 6
PATCH_WIDTH = N_RINGS + N_RINGS * (N_HARMONICS - 1) + (N_RINGS - 1) * (N_HARMONICS - 1) + 2 + 4
DISC_RADIUS_SIGMAS = 3.2
"""Radius of a disc in standard deviations of its blob: the blob and about as much of what is around."""
SIGMAS = tuple(float(2.0 * 2 ** (step / 3)) for step in range(9))
"""In canvas pixels. Finer blobs are hairs and noise, coarser ones do not fit into a cropped image."""
MIN_DISC_CONTRAST = 2.0
"""Standard deviation in grey levels below which a disc has nothing to be recognised by."""


@dataclass(frozen=True, eq=False)
class SmallImage:
    """A small version of an image, uint8.

    canvas: (C, C) grey, edges repeated beyond width x height. tint: (2, TINT_SIDE, TINT_SIDE) Cb and Cr of the canvas.
    square: (SQUARE_SIDE, SQUARE_SIDE, 3) the whole image resized to a square.
    """

    canvas: _Pixels
    tint: _Pixels
    width: int
    height: int
    square: _Pixels


@dataclass(frozen=True, eq=False)
class ImageDescriptors:
    """The descriptors of N images.

    global_descriptor: (N, GLOBAL_WIDTH). patch_descriptors: (N, D, PATCH_WIDTH), 0 for no disc. polar_patches:
    (N, D, R, A) int8, grey values of a disc with mean 0 and standard deviation 32. keypoints: (N, D, 3) x, y and radius
    in canvas pixels, radius 0 = no disc.
    """

    global_descriptor: _Float32s
    patch_descriptors: _Float32s
    polar_patches: NDArray[np.int8]
    keypoints: _Float32s


def shrink(pixels: _Pixels) -> SmallImage:
    """Return the small version of an image. pixels: (H, W, 3) uint8."""
    image = Image.fromarray(pixels)
    scale = CANVAS_SIDE / max(image.size)
    width, height = (max(2, round(edge * scale)) for edge in image.size)
    # `reducing_gap` would change values a little; speed comes from the box filter on the way down.
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    padded_pixels = np.pad(resized, ((0, CANVAS_SIDE - height), (0, CANVAS_SIDE - width), (0, 0)), mode="edge")
    ycbcr = Image.fromarray(padded_pixels).convert("YCbCr")
    tint = np.asarray(ycbcr.resize((TINT_SIDE, TINT_SIDE), Image.Resampling.BOX))[..., 1:].transpose(2, 0, 1)
    square = np.asarray(image.resize((SQUARE_SIDE, SQUARE_SIDE), Image.Resampling.BICUBIC))
    return SmallImage(np.asarray(ycbcr)[..., 0], tint, width, height, square)


def describe_images(canvas: _Pixels, tint: _Pixels, sizes: NDArray[np.int64], square: _Pixels) -> ImageDescriptors:
    """Describe N images, given the stacked fields of `SmallImage`; sizes: (N, 2) width and height."""
    levels = blur(canvas.astype(np.float32), SIGMAS)
    keypoints = np.concatenate([_centres(sizes), _blobs(levels, sizes)], axis=1)
    polar_patches, grey, is_flat = _polar_patches(levels, keypoints, sizes)
    patch_descriptors = np.concatenate(
        [_invariants(polar_patches), grey, _patch_colours(tint, keypoints)], axis=-1
    )
    for array in (keypoints, polar_patches, patch_descriptors):
        array[is_flat] = 0
    return ImageDescriptors(
        _global_descriptor(square),
        patch_descriptors,
        np.rint(polar_patches * 32).clip(-127, 127).astype(np.int8),
        keypoints,
    )


def _global_descriptor(square: _Pixels) -> _Float32s:
    """Return (N, GLOBAL_WIDTH): low grey frequencies, invariant to flips and transposition, and the mean colour."""
    grey = square.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    magnitudes = np.abs(dctn(grey, axes=(1, 2), norm="ortho")[:, :N_FREQUENCIES, :N_FREQUENCIES]) / SQUARE_SIDE
    upper_indices = np.triu_indices(N_FREQUENCIES, 1)
    upper_terms, lower_terms = (
        magnitudes[:, upper_indices[0], upper_indices[1]],
        magnitudes[:, upper_indices[1], upper_indices[0]],
    )
    diagonal = magnitudes[:, range(1, N_FREQUENCIES), range(1, N_FREQUENCIES)]
    colour = square.astype(np.float32).mean(axis=(1, 2)) / 4
    return np.concatenate(
        [upper_terms + lower_terms, np.abs(upper_terms - lower_terms), diagonal, colour], axis=1
    ).astype(np.float32)


@lru_cache(maxsize=4)
def _kernels(sigmas: tuple[float, ...]) -> _Float32s:
    """Return one matrix per sigma that blurs along an axis, edges repeated: (L, C, C)."""
    positions = np.arange(CANVAS_SIDE)
    matrices = []
    for sigma in sigmas:
        half_width = int(4 * sigma) + 1
        weights = np.exp(-0.5 * (np.arange(-half_width, half_width + 1) / sigma) ** 2)
        matrix = np.zeros((CANVAS_SIDE, CANVAS_SIDE))
        for offset, weight in zip(range(-half_width, half_width + 1), weights / weights.sum(), strict=True):
            np.add.at(matrix, (positions, (positions + offset).clip(0, CANVAS_SIDE - 1)), weight)
        matrices.append(matrix)
    return np.asarray(matrices, np.float32)


def blur(canvas: _Float32s, sigmas: tuple[float, ...]) -> _Float32s:
    """Return canvases (N, C, C) blurred by each sigma: (N, L, C, C)."""
    kernels = _kernels(sigmas)
    blurred_in_x = canvas.reshape(-1, CANVAS_SIDE) @ kernels.reshape(-1, CANVAS_SIDE).T
    per_level = blurred_in_x.reshape(len(canvas), CANVAS_SIDE, len(kernels), CANVAS_SIDE).transpose(0, 2, 1, 3)
    per_sigma: _Float32s = kernels @ np.ascontiguousarray(per_level)
    return per_sigma


def _centres(sizes: NDArray[np.int64]) -> _Float32s:
    centre = (sizes - 1) / 2
    radius = np.asarray(sizes.min(axis=1)[:, None] / 2 * np.asarray(CENTRED_RADII))
    coordinates = [np.broadcast_to(centre[:, None, axis], radius.shape) for axis in (0, 1)]
    return np.stack([*coordinates, radius], axis=-1).astype(np.float32)


def _blobs(levels: _Float32s, sizes: NDArray[np.int64]) -> _Float32s:
    """Return (N, D - centred, 3): x, y, radius of the strongest blobs whose disc is inside. levels: (N, L, C, C)."""
    differences = levels[:, 1:] - levels[:, :-1]
    peak = np.zeros(differences.shape, bool)
    inner_values = differences[:, 1:-1, 1:-1, 1:-1]
    peak[:, 1:-1, 1:-1, 1:-1] = (
        (inner_values == _neighbour_extreme(differences, np.maximum)) & (inner_values > 0)
    ) | ((inner_values == _neighbour_extreme(differences, np.minimum)) & (inner_values < 0))
    image, level, y, x = np.nonzero(peak)
    strength = np.abs(differences[image, level, y, x])
    dx, dy, scale_offset = (_peak_offset(differences, (image, level, y, x), axis) for axis in (3, 2, 1))
    radius = DISC_RADIUS_SIGMAS * SIGMAS[0] * 2 ** ((level + scale_offset + 0.5) / 3)
    keypoints = np.stack([x + dx, y + dy, radius], axis=-1)
    reach = 0.6 * radius[:, None]
    is_within = (keypoints[:, :2] - reach >= -1) & (keypoints[:, :2] + reach <= sizes[image])
    fits_picture = np.asarray(is_within.all(axis=1))
    order = np.lexsort((-strength, image))
    order = order[fits_picture[order]]
    # The rank of each blob in its image, strongest first.
    rank = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    n_blobs = N_DISCS - len(CENTRED_RADII)
    blobs = np.zeros((len(levels), n_blobs, 3), np.float32)
    is_strongest = rank < n_blobs
    blobs[image[order][is_strongest], rank[is_strongest]] = keypoints[order][is_strongest]
    return blobs


def _neighbour_extreme(values: _Float32s, extreme: np.ufunc) -> _Float32s:
    """Return the extreme of each value and its neighbours in the last three axes, borders left out."""
    for axis in (1, 2, 3):
        length = values.shape[axis] - 2
        low, centre, high = (_slab(values, axis, start, length) for start in range(3))
        values = extreme(extreme(low, centre), high)
    return values


def _slab(values: _Float32s, axis: int, start: int, length: int) -> _Float32s:
    return values[(slice(None),) * axis + (slice(start, start + length),)]


def _peak_offset(values: _Float32s, peak: tuple[NDArray[np.intp], ...], axis: int) -> NDArray[np.float64]:
    """Return the offset of the parabola's vertex from each peak along an axis."""
    lower_index, upper_index = list(peak), list(peak)
    lower_index[axis], upper_index[axis] = peak[axis] - 1, peak[axis] + 1
    return parabola_vertex(*(values[tuple(index)] for index in (lower_index, peak, upper_index)))


def parabola_vertex(low: _Float32s, centre: _Float32s, high: _Float32s) -> NDArray[np.float64]:
    """Return the offset of the vertex of the parabola through three equidistant values, -0.5 .. 0.5; 0 for a line."""
    lower, middle, upper = (values.astype(np.float64) for values in (low, centre, high))
    curvature = lower - 2 * middle + upper
    shift = np.divide(lower - upper, 2 * curvature, out=np.zeros_like(curvature), where=np.abs(curvature) > 1e-9)
    return np.asarray(shift.clip(-0.5, 0.5))


def _polar_patches(
    levels: _Float32s, keypoints: _Float32s, sizes: NDArray[np.int64]
) -> tuple[_Float32s, _Float32s, NDArray[np.bool_]]:
    """Return the discs (N, D, R, A) with mean 0 and SD 1, their means and SDs (N, D, 2), and flat ones (N, D)."""
    angle = 2 * np.pi * np.arange(N_ANGLES) / N_ANGLES
    ring = (np.arange(N_RINGS) + 0.5) / N_RINGS
    radius = keypoints[..., 2]
    sample_x = keypoints[..., 0, None, None] + radius[..., None, None] * ring[:, None] * np.cos(angle)
    sample_y = keypoints[..., 1, None, None] + radius[..., None, None] * ring[:, None] * np.sin(angle)
    # Blurred by about the distance between rings, so that a small error in the radius has little effect.
    level = np.searchsorted(np.asarray(SIGMAS), radius * 0.09).clip(0, len(SIGMAS) - 1)
    x = sample_x.clip(0, sizes[:, 0, None, None, None] - 1.001)
    y = sample_y.clip(0, sizes[:, 1, None, None, None] - 1.001)
    values = sample_bilinear(
        levels.reshape(-1, CANVAS_SIDE, CANVAS_SIDE), np.arange(len(levels))[:, None] * len(SIGMAS) + level, x, y
    )
    weight = (ring / ring.sum())[:, None] / N_ANGLES
    mean = (values * weight).sum(axis=(-2, -1), keepdims=True)
    std = np.sqrt((((values - mean) ** 2) * weight).sum(axis=(-2, -1), keepdims=True))
    is_flat = (std[..., 0, 0] < MIN_DISC_CONTRAST) | (radius <= 0)
    grey = np.concatenate([mean[..., 0] / 50, np.log(np.maximum(std[..., 0], MIN_DISC_CONTRAST)) / 2], axis=-1)
    return ((values - mean) / np.maximum(std, 1e-3)).astype(np.float32), grey.astype(np.float32), is_flat


def _patch_colours(tint: _Pixels, keypoints: _Float32s) -> _Float32s:
    """Return the mean Cb and Cr of the inner and the outer half of each disc: (N, D, 4)."""
    angle = 2 * np.pi * np.arange(8) / 8
    ring = np.array([0.15, 0.35, 0.6, 0.85])
    x = keypoints[..., 0, None, None] + keypoints[..., 2, None, None] * ring[:, None] * np.cos(angle)
    y = keypoints[..., 1, None, None] + keypoints[..., 2, None, None] * ring[:, None] * np.sin(angle)
    scale = TINT_SIDE / CANVAS_SIDE
    row = (y * scale).astype(np.int64).clip(0, TINT_SIDE - 1)
    column = (x * scale).astype(np.int64).clip(0, TINT_SIDE - 1)
    image = np.arange(len(tint))[:, None, None, None]
    bands = [tint[:, band][image, row, column].astype(np.float32).mean(axis=-1) for band in (0, 1)]
    zones = [band[..., ring_slice].mean(axis=-1) for band in bands for ring_slice in (slice(0, 2), slice(2, 4))]
    return (np.stack(zones, axis=-1) / 20).astype(np.float32)


def sample_bilinear(
    pictures: _Float32s, picture_index: NDArray[np.int64], x: NDArray[np.floating], y: NDArray[np.floating]
) -> _Float32s:
    """Return bilinear values (..., R, A) of pictures (P, C, C). picture_index: (...); x, y: (..., R, A)."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fraction_x, fraction_y = (x - left).astype(np.float32), (y - top).astype(np.float32)
    base = (picture_index[..., None, None] * CANVAS_SIDE + top) * CANVAS_SIDE + left
    flat_pictures = pictures.reshape(-1)
    upper = flat_pictures[base] * (1 - fraction_x) + flat_pictures[base + 1] * fraction_x
    lower = (
        flat_pictures[base + CANVAS_SIDE] * (1 - fraction_x) + flat_pictures[base + CANVAS_SIDE + 1] * fraction_x
    )
    values: _Float32s = upper * (1 - fraction_y) + lower * fraction_y
    return values


def _invariants(polar: _Float32s) -> _Float32s:
    """Return rotation and flip invariants of discs (N, D, R, A): ring means, harmonics, relative phases of rings."""
    wave = np.fft.rfft(polar, axis=-1)[..., :N_HARMONICS] / N_ANGLES
    weight = np.sqrt((np.arange(N_RINGS) + 0.5) / N_RINGS)[:, None]
    wave = wave * weight
    means = wave[..., 0].real
    magnitudes = np.abs(wave[..., 1:])
    # A rotation shifts two rings' phases alike; a flip changes only the sign of the imaginary part.
    product = wave[..., 1:, 1:] * wave[..., :-1, 1:].conj()
    relative_phase = product.real / np.sqrt(np.abs(product) + 1e-4)
    flat_shape = (*polar.shape[:-2], -1)
    return np.concatenate(
        [feature.reshape(flat_shape) for feature in (means, magnitudes, relative_phase)], axis=-1
    ).astype(np.float32)
