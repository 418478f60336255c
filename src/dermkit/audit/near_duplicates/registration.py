"""Registration of image pairs: the affine map between two images, and how well they agree under it.

A candidate starts from a rough guess, of two discs or of the whole frames. The guess is refined to an affine map, and
the pictures are compared where they overlap. Photographs of different lesions can agree in their large shapes; only
duplicates also agree in fine detail.

Shapes: P pairs, K = grid_side ** 2 points of comparison, C = CANVAS_SIDE. Points are (P, K, 2) x and y in canvas
pixels; a map is (2, 3): y = map[:, :2] @ x + map[:, 2].
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from dermkit.audit.scan.descriptors import CANVAS_SIDE, blur, parabola_vertex, sample_bilinear
from dermkit.metrics.stats.arrays import Ints

_Float32s = NDArray[np.float32]
_Doubles = NDArray[np.float64]

GRID_SIDE = 40
"""Comparison points along each side of the first picture."""
COARSE_SIGMA, FINE_SIGMA, LOCAL_SIGMA = 2.5, 1.0, 5.0
"""Blur in canvas pixels: of the rough round, of the fine round, and what `detail` is measured against."""
ROUGH_GRID_SIDE = 20
"""The same for the rough round, which only selects the pairs of the fine one."""
ROUGH_STEPS, FINE_STEPS = 6, 6
INNER_MARGIN = 0.12
"""Fraction of the shorter side that `Registration.inner_similarity` leaves out at each edge."""
CORNER_SIDE, CORNER_TOLERANCE = 4, 3
"""A filled corner is a square of this many pixels within this many grey levels, also after JPEG compression."""
FILL_TOLERANCE = 8
"""Grey levels within which a corner counts as one colour."""


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Small grey pictures, blurred. grey, detail: (P, C, C); size: (P, 2) width and height.

    visible: (P, C, C) 1 inside the picture, 0 beyond its edge and in corners that a rotation filled.
    """

    visible: _Float32s
    grey: _Float32s
    detail: _Float32s
    size: Ints

    def select(self, rows: Ints) -> "PreparedImages":
        """Return the pictures `rows`; a row may occur several times."""
        return PreparedImages(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Similarity:
    """How P pairs agree in their overlap.

    correlation, detail_correlation: (P,) -1 .. 1. rms_difference: (P,) root mean square, in grey levels.
    """

    correlation: _Doubles
    detail_correlation: _Doubles
    rms_difference: _Doubles


@dataclass(frozen=True, eq=False)
class Registration:
    """P registered pairs. matrix: (P, 2, 3) maps from the first picture to the second.

    full_similarity: in the full overlap. inner_similarity: without a margin of either picture, where a rotation leaves
    slivers of fill. overlap_fractions: (P, 2) fraction of each picture that lies on the other.
    """

    matrix: _Doubles
    full_similarity: Similarity
    inner_similarity: Similarity
    overlap_fractions: _Doubles


def prepare_images(canvas: NDArray[np.uint8], size: Ints, *, is_rough: bool) -> PreparedImages:
    """Blur small pictures for registration. canvas: (P, C, C) uint8; size: (P, 2)."""
    visible = _visible_mask(canvas, size)
    sigmas = (COARSE_SIGMA,) if is_rough else (FINE_SIGMA, LOCAL_SIGMA)
    # Invisible pixels must not be blurred into visible ones.
    blurred_grey: _Float32s = np.divide(
        blur(canvas * visible, sigmas), np.maximum(blur(visible, sigmas), np.float32(1e-3))
    )
    grey = blurred_grey[:, 0]
    return PreparedImages(visible, grey, grey if is_rough else grey - blurred_grey[:, 1], size)


def _visible_mask(canvas: NDArray[np.uint8], size: Ints) -> _Float32s:
    """Return (P, C, C): 1 inside the pictures but for corners of one colour, which a rotation leaves, else 0."""
    positions = np.arange(CANVAS_SIDE)
    visible = ((positions[:, None] < size[:, 1, None, None]) & (positions < size[:, 0, None, None])).astype(
        np.float32
    )
    for index in np.flatnonzero(_is_plain_corner(canvas, size).any(axis=1)):
        width, height = (int(edge) for edge in size[index])
        fill_mask = _fill_mask(canvas[index, :height, :width].astype(np.int16))
        # A margin of two pixels, since blur carries the fill's edge inwards.
        visible[index, :height, :width][binary_dilation(fill_mask, iterations=2)] = 0
    return visible


def _is_plain_corner(canvas: NDArray[np.uint8], size: Ints) -> NDArray[np.bool_]:
    """Return (P, 4) flags of corners of one colour over `CORNER_SIDE` pixels: a quick test that most pictures fail."""
    image = np.arange(len(canvas))[:, None, None]
    step = np.arange(CORNER_SIDE)
    corner_flags = []
    for right, low in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x = step + right * (size[:, 0, None] - CORNER_SIDE)
        y = step + low * (size[:, 1, None] - CORNER_SIDE)
        block = canvas[image, y.clip(0)[:, :, None], x.clip(0)[:, None, :]]
        corner_flags.append(np.ptp(block, axis=(1, 2)) <= CORNER_TOLERANCE)
    return np.stack(corner_flags, axis=1)


def _fill_mask(picture: NDArray[np.int16]) -> NDArray[np.bool_]:
    fill_mask = np.zeros(picture.shape, bool)
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        is_alike = np.abs(picture - picture[y, x]) <= FILL_TOLERANCE
        if is_alike.mean() > 0.01:
            regions = label(is_alike)[0]
            region = regions == regions[y, x]
            if picture[region].std() < FILL_TOLERANCE / 4:
                fill_mask |= region
    return fill_mask


def guess_from_discs(
    polar: tuple[NDArray[np.int8], NDArray[np.int8]], keypoints: tuple[_Float32s, _Float32s]
) -> tuple[_Doubles, _Doubles]:
    """Guess maps from pairs of discs: (P, 2, 3) maps, and the correlation of the rotated discs, (P,) -1 .. 1.

    polar: two arrays (P, N_RINGS, N_ANGLES) int8; keypoints: two arrays (P, 3) of x, y, radius.
    """
    first, second = (values.astype(np.float32) for values in polar)
    rings, angles = first.shape[1:]
    weight = ((np.arange(rings) + 0.5) / rings).astype(np.float32)[:, None]
    waves = np.fft.rfft(first * weight, axis=-1), np.fft.rfft(second, axis=-1)
    direct = np.fft.irfft((waves[0].conj() * waves[1]).sum(axis=1), n=angles)
    mirror = np.fft.irfft((waves[0] * waves[1]).sum(axis=1), n=angles)
    correlations = np.concatenate([direct, mirror], axis=1)
    norms = [np.sqrt(((values**2) * weight).sum(axis=(1, 2))) for values in (first, second)]
    best_shift = correlations.argmax(axis=1)
    correlation = correlations[np.arange(len(best_shift)), best_shift] / np.maximum(norms[0] * norms[1], 1e-6)
    angle = 2 * np.pi * (best_shift % angles + _peak_offset(correlations, best_shift, angles)) / angles
    flip = np.where(best_shift >= angles, -1.0, 1.0)
    scale = keypoints[1][:, 2] / np.maximum(keypoints[0][:, 2], 1e-6)
    linear = scale[:, None, None] * np.stack(
        [
            np.stack([np.cos(angle), -np.sin(angle) * flip], -1),
            np.stack([np.sin(angle), np.cos(angle) * flip], -1),
        ],
        -2,
    )
    shift = keypoints[1][:, :2] - np.einsum("pij,pj->pi", linear, keypoints[0][:, :2].astype(np.float64))
    return np.concatenate([linear, shift[..., None]], axis=-1), correlation.astype(np.float64)


def _peak_offset(curve: _Float32s, best: Ints, angles: int) -> _Doubles:
    """Return the offset of the parabola's vertex from a peak of a closed curve, (P,) -0.5 .. 0.5."""
    rows, start = np.arange(len(best)), best - best % angles
    return parabola_vertex(*(curve[rows, start + (best + step) % angles] for step in (-1, 0, 1)))


_SQUARE_SYMMETRIES = np.array(
    [[[a, 0], [0, b]] for a in (1, -1) for b in (1, -1)] + [[[0, a], [b, 0]] for a in (1, -1) for b in (1, -1)]
)
"""(8, 2, 2) the symmetries of the square."""


def guess_from_frames(
    square: tuple[NDArray[np.uint8], NDArray[np.uint8]], size: tuple[Ints, Ints]
) -> tuple[_Doubles, _Doubles]:
    """Guess maps from whole frames, the best of the 8 symmetries: (P, 2, 3) maps and correlation (P,) -1 .. 1.

    square: two arrays (P, SQUARE_SIDE, SQUARE_SIDE, 3) uint8; size: two arrays (P, 2).
    """
    first, second = (values.astype(np.float32).mean(axis=-1) for values in square)
    orientations = [_warp(second, orientation) for orientation in _SQUARE_SYMMETRIES]
    correlations = np.stack([_correlate(first, oriented) for oriented in orientations], axis=1)
    best = correlations.argmax(axis=1)
    # From the unit square around 0 to canvas pixels of each picture.
    half_sizes = [(values - 1) / 2 for values in size]
    linear = _SQUARE_SYMMETRIES[best] * half_sizes[1][:, :, None] / half_sizes[0][:, None, :]
    shift = half_sizes[1] - np.einsum("pij,pj->pi", linear, half_sizes[0])
    return np.concatenate([linear, shift[..., None]], axis=-1), correlations.max(axis=1).astype(np.float64)


def _warp(square: _Float32s, orientation: NDArray[np.int64]) -> _Float32s:
    """Return (P, S, S) squares under a symmetry: the result at x is the square at orientation @ x."""
    transposed = square.transpose(0, 2, 1) if orientation[0, 0] == 0 else square
    # Rows are y. Without a swap, orientation[0, 0] flips x and [1, 1] flips y; with it, x comes from y.
    x_step, y_step = (
        (orientation[0, 0], orientation[1, 1]) if orientation[0, 0] else (orientation[1, 0], orientation[0, 1])
    )
    return transposed[:, ::y_step, ::x_step]


def _correlate(first: _Float32s, second: _Float32s) -> _Float32s:
    centred = [values - values.mean(axis=(1, 2), keepdims=True) for values in (first, second)]
    scale = np.sqrt((centred[0] ** 2).sum(axis=(1, 2)) * (centred[1] ** 2).sum(axis=(1, 2)))
    correlation: _Float32s = (centred[0] * centred[1]).sum(axis=(1, 2)) / np.maximum(scale, 1e-6)
    return correlation


def register_images(
    first: PreparedImages, second: PreparedImages, initial_maps: _Doubles, *, is_rough: bool
) -> Registration:
    """Refine guessed maps (P, 2, 3) and compare the pictures of each pair.

    is_rough: few points on blurred pictures, a fifth of the work, to discard pairs that are clearly unrelated.
    """
    points = _grid_points(first.size, ROUGH_GRID_SIDE if is_rough else GRID_SIDE)
    pictures = (first.grey, second.grey)
    steps = ROUGH_STEPS if is_rough else FINE_STEPS
    matrix = _refine(
        pictures, (first.visible, second.visible), second.size, points, initial_maps.astype(np.float64), steps
    )
    return _compare(first, second, points, matrix)


def _grid_points(size: Ints, grid_side: int) -> _Doubles:
    """Return a grid over each picture: (P, grid_side ** 2, 2)."""
    steps = (np.arange(grid_side) + 0.5) / grid_side
    x, y = np.meshgrid(steps, steps)
    unit = np.stack([x.ravel(), y.ravel()], axis=-1)
    return np.asarray(unit[None] * (size - 1)[:, None])


def _sample_at(pictures: _Float32s, points: _Doubles) -> _Float32s:
    """Return bilinear values, (P, K), at points (P, K, 2) clipped into the canvas."""
    clipped = points.clip(0, CANVAS_SIDE - 1.001)
    picture_index = np.arange(len(pictures))
    values: _Float32s = sample_bilinear(
        pictures, picture_index[:, None], clipped[..., None, None, 0], clipped[..., None, None, 1]
    )[..., 0, 0]
    return values


def _transform(matrix: _Doubles, points: _Doubles) -> _Doubles:
    mapped_points: _Doubles = points @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]
    return mapped_points


def _is_inside(points: _Doubles, size: Ints) -> NDArray[np.bool_]:
    is_within = (points >= 0) & (points <= (size - 1)[:, None])
    return np.asarray(is_within.all(axis=-1))


def _refine(
    pictures: tuple[_Float32s, _Float32s],
    visible: tuple[_Float32s, _Float32s],
    size: Ints,
    points: _Doubles,
    matrix: _Doubles,
    steps: int,
) -> _Doubles:
    """Return the maps (P, 2, 3) after Gauss-Newton steps that minimise the difference of the two pictures.

    Inverse compositional (Baker and Matthews 2004): gradients are those of the first picture, computed once.
    pictures, visible: two arrays (P, C, C) each. size: (P, 2) of the second picture. points: (P, K, 2).
    """
    first_grey, second_grey = pictures
    is_visible = _sample_at(visible[0], points) > 0.99
    first_values = _sample_at(first_grey, points).astype(np.float64)
    gradients = [
        (_sample_at(first_grey, points + unit_step) - _sample_at(first_grey, points - unit_step)) / 2.0
        for unit_step in np.eye(2)
    ]
    centre = points.mean(axis=1, keepdims=True)
    offsets = (points - centre) / CANVAS_SIDE
    bases = [
        gradients[axis] * factor
        for axis in (0, 1)
        for factor in (offsets[..., 0], offsets[..., 1], np.ones_like(first_values))
    ]
    jacobian = np.stack(bases, axis=-1)
    for _ in range(steps):
        mapped_points = _transform(matrix, points)
        valid = (
            _is_inside(mapped_points, size) & is_visible & (_sample_at(visible[1], mapped_points) > 0.99)
        ).astype(np.float64)
        second_values = _sample_at(second_grey, mapped_points).astype(np.float64)
        error = _standardise(second_values, valid) * _weighted_std(first_values, valid)[:, None] - (
            first_values - _weighted_mean(first_values, valid)[:, None]
        )
        weighted_jacobian = jacobian * valid[..., None]
        hessian = weighted_jacobian.transpose(0, 2, 1) @ jacobian
        hessian += np.eye(6) * (1e-3 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] / 6 + 1e-6)
        delta = np.linalg.solve(hessian, np.einsum("pki,pk->pi", weighted_jacobian, error)[..., None])[..., 0]
        matrix = _compose(matrix, delta.clip(-20, 20), centre[:, 0])
    return matrix


def _compose(matrix: _Doubles, delta: _Doubles, centre: _Doubles) -> _Doubles:
    """Return the maps composed with the inverse of a small map of the first picture. delta: (P, 6); centre: (P, 2)."""
    linear = np.eye(2) + delta[:, [[0, 1], [3, 4]]] / CANVAS_SIDE
    shift = delta[:, [2, 5]]
    # x -> linear (x - c) + c + shift, inverted.
    inverse = np.linalg.inv(linear + np.eye(2) * 1e-9)
    inverse_shift = centre - np.einsum("pij,pj->pi", inverse, centre + shift)
    merged_linear = matrix[:, :, :2] @ inverse
    translation = np.einsum("pij,pj->pi", matrix[:, :, :2], inverse_shift) + matrix[:, :, 2]
    return np.concatenate([merged_linear, translation[..., None]], axis=-1)


def _weighted_mean(values: _Doubles, weight: _Doubles) -> _Doubles:
    mean: _Doubles = (values * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    return mean


def _weighted_std(values: _Doubles, weight: _Doubles) -> _Doubles:
    residuals = values - _weighted_mean(values, weight)[:, None]
    return np.sqrt(_weighted_mean(residuals**2, weight))


def _standardise(values: _Doubles, weight: _Doubles) -> _Doubles:
    residuals = values - _weighted_mean(values, weight)[:, None]
    standardised: _Doubles = residuals / np.maximum(np.sqrt(_weighted_mean(residuals**2, weight)), 1e-3)[:, None]
    return standardised


def _compare(first: PreparedImages, second: PreparedImages, points: _Doubles, matrix: _Doubles) -> Registration:
    mapped_points = _transform(matrix, points)
    first_visible = _sample_at(first.visible, points) > 0.99
    valid = (
        _is_inside(mapped_points, second.size) & first_visible & (_sample_at(second.visible, mapped_points) > 0.99)
    ).astype(np.float64)
    grey = [
        _sample_at(first.grey, points).astype(np.float64),
        _sample_at(second.grey, mapped_points).astype(np.float64),
    ]
    detail = [
        _sample_at(first.detail, points).astype(np.float64),
        _sample_at(second.detail, mapped_points).astype(np.float64),
    ]
    margins = [
        np.minimum(positions, (size - 1)[:, None] - positions).min(axis=-1) / (size.min(axis=1)[:, None] - 1)
        for positions, size in ((points, first.size), (mapped_points, second.size))
    ]
    inner_valid = valid * (np.minimum(*margins) > INNER_MARGIN)
    scale_area = np.abs(np.linalg.det(matrix[:, :, :2]))
    common_area = valid.mean(axis=1) * (first.size - 1).prod(axis=1)
    visible_areas = [pictures.visible.sum(axis=(1, 2)) for pictures in (first, second)]
    overlap = np.stack([common_area / visible_areas[0], common_area * scale_area / visible_areas[1]], axis=1).clip(
        0, 1
    )
    return Registration(matrix, _similarity(grey, detail, valid), _similarity(grey, detail, inner_valid), overlap)


def _similarity(grey: list[_Doubles], detail: list[_Doubles], weight: _Doubles) -> Similarity:
    correlation, detail_correlation = (
        _weighted_mean(_standardise(a, weight) * _standardise(b, weight), weight) for a, b in (grey, detail)
    )
    return Similarity(correlation, detail_correlation, np.sqrt(_weighted_mean((grey[0] - grey[1]) ** 2, weight)))
