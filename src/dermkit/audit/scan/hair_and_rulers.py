"""Thin dark lines in a photograph: hairs, and the marks of a ruler."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

_Plane = NDArray[np.float32]

# Thresholds were set on synthetic photographs with known truth and by eye on three public sets, at 160 to 256 pixels.
SMOOTHING_SIGMA = 0.8
"""Standard deviation of the first blur, in pixels: hairs are 1 to 3 pixels wide."""
MIN_CURVATURE = 0.025
"""Least curvature of a line, as a fraction of the brightness around it."""
MIN_DEPTH = 0.045
"""Least depth of a line below both its sides, as a fraction of their brightness."""
SIDE_DISTANCE = 3.0
"""Pixels from the middle of a line to its sides."""
BOTTOM_TOLERANCE = 0.25
"""The centre may be brighter than its neighbours by this fraction of the depth: lines fall between pixels."""
MIN_SIDE_RATIO = 0.55
"""Least ratio of the brightness of a line's darker side to the other: at the rim of a dark field it is lower."""
MIN_RED_RATIO = 0.45
"""Least ratio of a line's depth in red to its depth in green: hair darkens both, blood mostly green."""

STRETCH_FRACTION = 1 / 7
"""Length of a stretch of hair, as a fraction of the longer side: longer than network, streaks, vessels and marks."""
MIN_STRETCH_COVERAGE = 0.85
"""Fraction of such a stretch that must be line."""
MAX_BAR_WIDTH = 1.6
"""In pixels: lines that all lie this near to one straight line are the bar of a scale."""
MAX_LINE_PIXELS = 3000
"""Line pixels from which hairs are followed; of more an evenly spaced sample."""

MIN_ROW_MARKS = 4
"""Marks that make a row."""
MAX_MARKS = 300
"""Marks among which rows are searched, the deepest ones: printed marks are deep."""
N_NEIGHBOURS = 3
"""Nearest marks that are tried as the next one of a row."""
MIN_PARALLEL_COSINE = 0.9
"""Cosine of twice the angle between marks: 13 degrees."""
MAX_LENGTH_LOG_RATIO, MAX_DEPTH_LOG_RATIO = 1.3, 0.8
"""Largest difference within a row in log length (every fifth mark is longer) and in log depth."""
MAX_STEP_ERROR = 0.2
"""Error of a mark's position along its row, in steps of the row."""
MAX_LATERAL_OFFSET = 0.5
"""Distance of a mark from its row's line, in steps: a longer mark is centred beside the others."""
CLEAR_ROW_FACTOR = 1.3
"""A row counts in full if at least 1 / 1.3 of the parallel line pixels around it belong to its marks."""


@dataclass(frozen=True)
class Lines:
    """Centre pixels of thin dark lines, and the directions of the lines.

    y, x: (N,) pixels. normals: (N, 2) unit vectors across the line, as y, x. depth: (N,) of the line below its sides, a
    fraction of their brightness. red_ratio: (N,) depth in red over that in green. is_even: (N,) both sides are about
    equally bright.
    """

    shape: tuple[int, int]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    normals: NDArray[np.float32]
    depth: _Plane
    red_ratio: _Plane
    is_even: NDArray[np.bool_]

    @cached_property
    def double_angle(self) -> _Plane:
        """`normals` by twice its angle, (2, N)."""
        return _double_angle(self.normals)


def find_lines(red: _Plane, green: _Plane) -> Lines:
    """Find thin dark lines. red, green: (h, w) float32, 0..255."""
    plane = gaussian_filter(red, SMOOTHING_SIGMA, mode="nearest", truncate=3.0)
    d_yy, d_xx = np.zeros_like(plane), np.zeros_like(plane)
    d_xy = np.zeros_like(plane)
    d_yy[1:-1] = plane[2:] + plane[:-2] - 2 * plane[1:-1]
    d_xx[:, 1:-1] = plane[:, 2:] + plane[:, :-2] - 2 * plane[:, 1:-1]
    d_xy[1:-1, 1:-1] = (plane[2:, 2:] + plane[:-2, :-2] - plane[2:, :-2] - plane[:-2, 2:]) / 4
    half_difference = (d_yy - d_xx) / 2
    spread = np.sqrt(half_difference * half_difference + d_xy * d_xy)
    curvature = (d_yy + d_xx) / 2 + spread
    # A spot curves both ways alike; a line only across.
    y, x = np.nonzero((curvature > MIN_CURVATURE * (plane + 20)) & (spread > 0.35 * curvature))
    # Eigenvector of the largest curvature.
    angle = 0.5 * np.arctan2(d_xy[y, x], half_difference[y, x])
    normals = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    return _keep_valleys(plane, green, y, x, normals)


def _keep_valleys(
    plane: _Plane, green: _Plane, y: NDArray[np.int64], x: NDArray[np.int64], normals: _Plane
) -> Lines:
    """Return the pixels at the bottom of a valley that rises on both sides; the foot of an edge rises on one."""
    side_pixels = [_shifted_pixels(plane.shape, y, x, normals, step) for step in (SIDE_DISTANCE, -SIDE_DISTANCE)]
    side_levels = [plane[side_pixel] for side_pixel in side_pixels]
    far_levels = [
        plane[_shifted_pixels(plane.shape, y, x, normals, step)]
        for step in (2 * SIDE_DISTANCE, -2 * SIDE_DISTANCE)
    ]
    near_levels = [plane[_shifted_pixels(plane.shape, y, x, normals, step)] for step in (1.0, -1.0)]
    level = np.minimum(side_levels[0], side_levels[1])
    depth = (level - plane[y, x]) / (level + 10)
    green_level = np.minimum(green[side_pixels[0]], green[side_pixels[1]])
    green_depth = (green_level - green[y, x]) / (green_level + 10)
    is_bottom = plane[y, x] <= np.minimum(near_levels[0], near_levels[1]) + BOTTOM_TOLERANCE * (
        level - plane[y, x]
    )
    is_even = np.minimum(level, np.minimum(*far_levels)) > MIN_SIDE_RATIO * np.maximum(
        np.maximum(*side_levels), np.maximum(*far_levels)
    )
    keep_mask = is_bottom & (depth > MIN_DEPTH)
    red_ratio = depth / np.maximum(green_depth, 0.02)
    return Lines(
        plane.shape,
        y[keep_mask],
        x[keep_mask],
        normals[keep_mask],
        depth[keep_mask],
        red_ratio[keep_mask],
        is_even[keep_mask],
    )


def _shifted_pixels(
    shape: tuple[int, ...], y: NDArray[np.int64], x: NDArray[np.int64], direction: _Plane, step: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    shifted_y = np.clip(np.rint(y + step * direction[:, 0]).astype(np.int64), 0, shape[0] - 1)
    shifted_x = np.clip(np.rint(x + step * direction[:, 1]).astype(np.int64), 0, shape[1] - 1)
    return shifted_y, shifted_x


def hair_length(lines: Lines) -> float:
    """Return the length of the dark lines that continue for a seventh of the longer side, in longer sides.

    0 if all of it lies on one straight line: that is the bar of a scale.
    """
    longest_side = max(lines.shape)
    is_hair_like = (lines.red_ratio > MIN_RED_RATIO) & lines.is_even
    y, x, normals = lines.y[is_hair_like], lines.x[is_hair_like], lines.normals[is_hair_like]
    if len(y) < 10:
        return 0.0
    sampled_pixels = np.unique(np.linspace(0, len(y) - 1, MAX_LINE_PIXELS).astype(np.int64))
    long_pixels = sampled_pixels[
        _run_coverage(
            lines.shape, y, x, normals, sampled_pixels, reach=max(8, round(longest_side * STRETCH_FRACTION))
        )
        > MIN_STRETCH_COVERAGE
    ]
    if len(long_pixels) < 10 or _is_bar(y[long_pixels], x[long_pixels]):
        return 0.0
    return len(long_pixels) / len(sampled_pixels) * len(y) / longest_side


def _run_coverage(
    shape: tuple[int, int],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    normals: _Plane,
    sampled_pixels: NDArray[np.int64],
    *,
    reach: int,
) -> NDArray[np.floating]:
    """Return for each sampled pixel the fraction of `reach` steps along its line that meet a line of its direction.

    The best of all stretches of that length with the pixel; a step may miss the line by one pixel.
    """
    height, width = shape
    double_angle = _double_angle(normals)
    # Padded by the reach, so that no step leaves the array.
    field = np.zeros((2, height + 2 * reach + 2, width + 2 * reach + 2), np.float32)
    padded_yx = (y + reach + 1, x + reach + 1)
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        field[:, padded_yx[0] + dy, padded_yx[1] + dx] = double_angle
    field[:, padded_yx[0], padded_yx[1]] = double_angle
    steps = np.arange(-reach, reach + 1, dtype=np.float32)
    step_y = (padded_yx[0][sampled_pixels, None] - steps * normals[sampled_pixels, 1:] + 0.5).astype(np.int32)
    step_x = (padded_yx[1][sampled_pixels, None] + steps * normals[sampled_pixels, :1] + 0.5).astype(np.int32)
    flat_index = step_y * field.shape[2] + step_x
    alignment = [
        plane.ravel()[flat_index] * component[sampled_pixels, None]
        for plane, component in zip(field, double_angle, strict=True)
    ]
    cumulative = np.zeros((len(sampled_pixels), 2 * reach + 2), np.int16)
    np.cumsum(alignment[0] + alignment[1] > 0.7, axis=1, out=cumulative[:, 1:])
    return np.asarray((cumulative[:, reach:] - cumulative[:, : reach + 2]).max(axis=1) / reach, np.float64)


def _is_bar(y: NDArray[np.int64], x: NDArray[np.int64]) -> bool:
    """Return whether nearly all pixels lie on one straight line."""
    points = np.stack([y, x], 1) - np.array([np.median(y), np.median(x)])
    _, _, directions = np.linalg.svd(points, full_matrices=False)
    lateral = points @ directions[1]
    return bool(np.quantile(np.abs(lateral - np.median(lateral)), 0.85) < MAX_BAR_WIDTH)


@dataclass(frozen=True)
class _RulerMarks:
    """Short lines: centre (M, 2) as y, x; double-angle direction across (M, 2); pixels, depth (M,)."""

    centre: NDArray[np.float64]
    double_angle: NDArray[np.float64]
    length: NDArray[np.float64]
    depth: NDArray[np.float64]


def ruler_row_length(lines: Lines) -> float:
    """Return the number of marks in the longest row of similar, parallel, evenly spaced short lines.

    A row among other lines, as in a pigment network or dense hair, counts for less.
    """
    marks = _find_marks(lines)
    if len(marks.centre) < MIN_ROW_MARKS:
        return 0.0
    longest_side = max(lines.shape)
    angle = 0.5 * np.arctan2(marks.double_angle[:, 1], marks.double_angle[:, 0])
    normals = np.stack([np.cos(angle), np.sin(angle)], 1)
    offsets = marks.centre[None] - marks.centre[:, None]
    distance = np.hypot(offsets[..., 0], offsets[..., 1]) + 1e-9
    forward = np.einsum("ijk,ik->ij", offsets, normals)
    is_alike = marks.double_angle @ marks.double_angle.T > MIN_PARALLEL_COSINE
    is_alike &= np.abs(np.log(marks.length[:, None] / marks.length)) < MAX_LENGTH_LOG_RATIO
    is_alike &= np.abs(np.log(marks.depth[:, None] / marks.depth)) < MAX_DEPTH_LOG_RATIO
    is_neighbour = (
        is_alike
        & (forward > 0.9 * distance)
        & (distance < 0.15 * longest_side)
        & (distance > 0.012 * longest_side)
    )
    # The step of a row is the way to a near neighbour.
    neighbours = np.argsort(np.where(is_neighbour, distance, np.inf), axis=1)[:, :N_NEIGHBOURS]
    best_length = 0.0
    for start, neighbour in zip(
        np.repeat(np.arange(len(neighbours)), neighbours.shape[1]), neighbours.ravel(), strict=True
    ):
        if not is_neighbour[start, neighbour]:
            continue
        row = _marks_in_row(marks.centre, is_alike[start], int(start), offsets[start, neighbour])
        if len(row) >= MIN_ROW_MARKS and len(row) > best_length:
            best_length = max(best_length, len(row) * _row_clarity(lines, marks, row, offsets[start, neighbour]))
    return best_length


def _find_marks(lines: Lines) -> _RulerMarks:
    # Vertical and horizontal lines separately, so that a line across the foot of a mark does not join it to the next.
    is_upright = (np.abs(lines.normals[:, 1]) > np.abs(lines.normals[:, 0])).astype(int)
    planes = np.zeros((2, *lines.shape), bool)
    planes[is_upright, lines.y, lines.x] = True
    connectivity = np.zeros((3, 3, 3), int)
    connectivity[1] = 1
    labels, count = label(planes, connectivity)
    mark_index = labels[is_upright, lines.y, lines.x] - 1
    n = np.maximum(np.bincount(mark_index, minlength=count), 1)

    def mean_per_mark(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(mark_index, values, minlength=count) / n, np.float64)

    double_angle = lines.double_angle
    mean_direction = np.stack([mean_per_mark(double_angle[0]), mean_per_mark(double_angle[1])], 1)
    coherence = np.hypot(mean_direction[:, 0], mean_direction[:, 1])
    longest_side = max(lines.shape)
    depth = mean_per_mark(lines.depth)
    selected = np.flatnonzero((n >= 0.015 * longest_side) & (n <= 0.25 * longest_side) & (coherence > 0.85))
    selected = selected[np.argsort(-depth[selected], kind="stable")[:MAX_MARKS]]
    return _RulerMarks(
        centre=np.stack([mean_per_mark(lines.y), mean_per_mark(lines.x)], 1)[selected],
        double_angle=mean_direction[selected] / coherence[selected, None],
        length=n[selected].astype(np.float64),
        depth=depth[selected],
    )


def _double_angle(normals: _Plane) -> _Plane:
    """Return directions (2, N) at twice their angle, so that 179 and 1 degrees are close."""
    return np.stack([normals[:, 0] ** 2 - normals[:, 1] ** 2, 2 * normals[:, 0] * normals[:, 1]])


def _marks_in_row(
    centre: NDArray[np.float64], is_alike: NDArray[np.bool_], start: int, pitch: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the marks at the positions of a row from `start` in steps of `pitch`; every other one may be missing."""
    offsets = centre - centre[start]
    steps = offsets @ pitch / (pitch @ pitch)
    step_number = np.rint(steps)
    # A longer mark is centred beside the others.
    lateral = np.abs(offsets @ np.array([-pitch[1], pitch[0]])) / (pitch @ pitch)
    fitting_marks = np.flatnonzero(
        (np.abs(steps - step_number) < MAX_STEP_ERROR) & (lateral < MAX_LATERAL_OFFSET) & is_alike
    )
    step_numbers, first = np.unique(step_number[fitting_marks], return_index=True)
    breaks = np.concatenate([[-1], np.flatnonzero(np.diff(step_numbers) > 2), [len(step_numbers) - 1]])
    longest = int(np.diff(breaks).argmax())
    return np.asarray(fitting_marks[first[breaks[longest] + 1 : breaks[longest + 1] + 1]], np.int64)


def _row_clarity(lines: Lines, marks: _RulerMarks, row: NDArray[np.int64], pitch: NDArray[np.float64]) -> float:
    """Return the fraction of parallel line pixels around a row in its marks, times `CLEAR_ROW_FACTOR`, at most 1."""
    step = float(np.hypot(*pitch))
    unit = pitch / step
    offsets = np.stack([lines.y, lines.x], 1) - marks.centre[row].mean(axis=0)
    along, lateral = offsets @ unit, offsets @ np.array([-unit[1], unit[0]])
    extent = (marks.centre[row] - marks.centre[row].mean(axis=0)) @ unit
    in_strip = (along > extent.min() - step) & (along < extent.max() + step)
    in_strip &= np.abs(lateral) < 1.5 * float(np.median(marks.length[row]))
    in_strip &= marks.double_angle[row].mean(axis=0) @ lines.double_angle > 0
    return float(min(1.0, CLEAR_ROW_FACTOR * marks.length[row].sum() / max(1, in_strip.sum())))
