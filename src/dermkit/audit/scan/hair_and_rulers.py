"""Thin dark lines in a photograph: hairs, and the marks of a ruler."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

Plane = NDArray[np.float32]

# All thresholds were set on made photographs with known truth and by eye on three public sets, at 160 to 256 pixels.
SMOOTH = 0.8
"""Standard deviation of the blur before, in pixels: hairs are 1 to 3 pixels wide."""
VALLEY = 0.025
"""Least curvature of a line, as a share of the brightness around it."""
DEPTH = 0.045
"""Least depth of a line below both its sides, as a share of their brightness."""
REACH = 3.0
"""Pixels from the middle of a line to its sides."""
FLAT = 0.25
"""The middle may lie above its neighbours by this share of the depth: lines fall between pixels."""
EVEN = 0.55
"""The darker side of a line has at least this share of the other's brightness: the rim of a dark field has not."""
RED = 0.45
"""A hair takes from red at least this share of what it takes from green; blood takes less."""

STRETCH = 1 / 7
"""Share of the side over which a hair runs on: longer than network, streaks, vessels and a ruler's marks do."""
UNBROKEN = 0.85
"""Share of such a stretch that must be line."""
BAR = 1.6
"""Pixels: lines that all lie so near to one straight line are the bar of a scale."""
MOST = 3000
"""Line pixels from which hairs are followed; of more an even choice."""

FEWEST = 4
"""Marks that make a row."""
MOST_MARKS = 300
"""Marks among which a row is looked for, the deepest: printed ones are deep."""
NEIGHBOURS = 3
"""Near marks of each that are tried as the next of its row."""
PARALLEL = 0.9
"""Cosine of twice the angle between marks: 13 degrees."""
LENGTHS, DEPTHS = 1.3, 0.8
"""Marks of a row differ by at most this in the logarithm of length (every fifth is longer) and of depth."""
MISS = 0.2
"""Error of a mark's place along its row, in steps of the row."""
BESIDE = 0.5
"""Distance of a mark from its row's line, in steps: a longer mark is centred beside the others."""
CLEAR = 1.3
"""A row counts in full from 1 / 1.3 of the parallel lines around it being its marks."""


@dataclass(frozen=True)
class Lines:
    """Pixels in the middle of thin dark lines, and which way the lines run.

    y, x: (N,) pixels. across: (N, 2) unit vector across the line, as y, x. depth: of the line below its sides, a
    share of their brightness. red: depth in red over that in green. even: whether both sides are about as bright.
    """

    shape: tuple[int, int]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    across: NDArray[np.float32]
    depth: Plane
    red: Plane
    even: NDArray[np.bool_]

    @cached_property
    def double(self) -> Plane:
        """`across` by twice its angle, (2, N)."""
        return _double(self.across)


def find_lines(red: Plane, green: Plane) -> Lines:
    """Find thin dark lines. red, green: (h, w) float32, 0..255."""
    plane = gaussian_filter(red, SMOOTH, mode="nearest", truncate=3.0)
    down, right = np.zeros_like(plane), np.zeros_like(plane)
    mixed = np.zeros_like(plane)
    down[1:-1] = plane[2:] + plane[:-2] - 2 * plane[1:-1]
    right[:, 1:-1] = plane[:, 2:] + plane[:, :-2] - 2 * plane[:, 1:-1]
    mixed[1:-1, 1:-1] = (plane[2:, 2:] + plane[:-2, :-2] - plane[2:, :-2] - plane[:-2, 2:]) / 4
    half = (down - right) / 2
    spread = np.sqrt(half * half + mixed * mixed)
    curve = (down + right) / 2 + spread
    # A spot curves both ways alike; a line only across.
    y, x = np.nonzero((curve > VALLEY * (plane + 20)) & (spread > 0.35 * curve))
    # Eigenvector of the largest curvature.
    turn = 0.5 * np.arctan2(mixed[y, x], half[y, x])
    across = np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)
    return _valleys(plane, green, y, x, across)


def _valleys(plane: Plane, green: Plane, y: NDArray[np.int64], x: NDArray[np.int64], across: Plane) -> Lines:
    """Keep the pixels at the bottom of a valley that rises on both sides; the foot of an edge rises on one."""
    sides = [_moved(plane.shape, y, x, across, step) for step in (REACH, -REACH)]
    rise = [plane[side] for side in sides]
    far = [plane[_moved(plane.shape, y, x, across, step)] for step in (2 * REACH, -2 * REACH)]
    near = [plane[_moved(plane.shape, y, x, across, step)] for step in (1.0, -1.0)]
    level = np.minimum(rise[0], rise[1])
    depth = (level - plane[y, x]) / (level + 10)
    low = np.minimum(green[sides[0]], green[sides[1]])
    loss = (low - green[y, x]) / (low + 10)
    bottom = plane[y, x] <= np.minimum(near[0], near[1]) + FLAT * (level - plane[y, x])
    even = np.minimum(level, np.minimum(*far)) > EVEN * np.maximum(np.maximum(*rise), np.maximum(*far))
    keep = bottom & (depth > DEPTH)
    red = depth / np.maximum(loss, 0.02)
    return Lines(plane.shape, y[keep], x[keep], across[keep], depth[keep], red[keep], even[keep])


def _moved(
    shape: tuple[int, ...], y: NDArray[np.int64], x: NDArray[np.int64], way: Plane, step: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    a = np.clip(np.rint(y + step * way[:, 0]).astype(np.int64), 0, shape[0] - 1)
    b = np.clip(np.rint(x + step * way[:, 1]).astype(np.int64), 0, shape[1] - 1)
    return a, b


def hair_length(lines: Lines) -> float:
    """Return the length of the dark lines that run on for a seventh of the side, in sides of the picture.

    Where all of it lies on one straight line it is the bar of a scale, and counts nothing.
    """
    side = max(lines.shape)
    dark = (lines.red > RED) & lines.even
    y, x, across = lines.y[dark], lines.x[dark], lines.across[dark]
    if len(y) < 10:
        return 0.0
    asked = np.unique(np.linspace(0, len(y) - 1, MOST).astype(np.int64))
    long = asked[_runs_on(lines.shape, y, x, across, asked, reach=max(8, round(side * STRETCH))) > UNBROKEN]
    if len(long) < 10 or _is_bar(y[long], x[long]):
        return 0.0
    return len(long) / len(asked) * len(y) / side


def _runs_on(
    shape: tuple[int, int],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    across: Plane,
    asked: NDArray[np.int64],
    *,
    reach: int,
) -> NDArray[np.floating]:
    """Return for each line pixel `asked` the share of `reach` steps along its line that meet a line of its direction.

    The best of all stretches of that length that hold the pixel; a step may miss the line by one pixel.
    """
    height, width = shape
    double = _double(across)
    # A frame as wide as the reach, so that no step leaves the field.
    field = np.zeros((2, height + 2 * reach + 2, width + 2 * reach + 2), np.float32)
    middle = (y + reach + 1, x + reach + 1)
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        field[:, middle[0] + down, middle[1] + right] = double
    field[:, middle[0], middle[1]] = double
    steps = np.arange(-reach, reach + 1, dtype=np.float32)
    at_y = (middle[0][asked, None] - steps * across[asked, 1:] + 0.5).astype(np.int32)
    at_x = (middle[1][asked, None] + steps * across[asked, :1] + 0.5).astype(np.int32)
    flat = at_y * field.shape[2] + at_x
    met = [plane.ravel()[flat] * own[asked, None] for plane, own in zip(field, double, strict=True)]
    total = np.zeros((len(asked), 2 * reach + 2), np.int16)
    np.cumsum(met[0] + met[1] > 0.7, axis=1, out=total[:, 1:])
    return np.asarray((total[:, reach:] - total[:, : reach + 2]).max(axis=1) / reach, np.float64)


def _is_bar(y: NDArray[np.int64], x: NDArray[np.int64]) -> bool:
    """Say whether the pixels lie on one straight line, but for a few."""
    points = np.stack([y, x], 1) - np.array([np.median(y), np.median(x)])
    _, _, ways = np.linalg.svd(points, full_matrices=False)
    aside = points @ ways[1]
    return bool(np.quantile(np.abs(aside - np.median(aside)), 0.85) < BAR)


@dataclass(frozen=True)
class _Marks:
    """Short lines: centre (M, 2) as y, x; double-angle direction across (M, 2); pixels, depth (M,)."""

    centre: NDArray[np.float64]
    double: NDArray[np.float64]
    length: NDArray[np.float64]
    depth: NDArray[np.float64]


def ruler_marks(lines: Lines) -> float:
    """Return how many marks stand in the longest row of equal, parallel, evenly spaced short lines.

    A row among other lines, as in a pigment network or in dense hair, counts for less.
    """
    marks = _find_marks(lines)
    if len(marks.centre) < FEWEST:
        return 0.0
    side = max(lines.shape)
    turn = 0.5 * np.arctan2(marks.double[:, 1], marks.double[:, 0])
    across = np.stack([np.cos(turn), np.sin(turn)], 1)
    gap = marks.centre[None] - marks.centre[:, None]
    distance = np.hypot(gap[..., 0], gap[..., 1]) + 1e-9
    ahead = np.einsum("ijk,ik->ij", gap, across)
    alike = marks.double @ marks.double.T > PARALLEL
    alike &= np.abs(np.log(marks.length[:, None] / marks.length)) < LENGTHS
    alike &= np.abs(np.log(marks.depth[:, None] / marks.depth)) < DEPTHS
    beside = alike & (ahead > 0.9 * distance) & (distance < 0.15 * side) & (distance > 0.012 * side)
    # The step of a row is the way to a near neighbour.
    near = np.argsort(np.where(beside, distance, np.inf), axis=1)[:, :NEIGHBOURS]
    best = 0.0
    for start, other in zip(np.repeat(np.arange(len(near)), near.shape[1]), near.ravel(), strict=True):
        if not beside[start, other]:
            continue
        row = _row(marks.centre, alike[start], int(start), gap[start, other])
        if len(row) >= FEWEST and len(row) > best:
            best = max(best, len(row) * _clear(lines, marks, row, gap[start, other]))
    return best


def _find_marks(lines: Lines) -> _Marks:
    # Upright and level lines apart, so that what lies crosswise at the foot of a mark does not join it to the next.
    upright = (np.abs(lines.across[:, 1]) > np.abs(lines.across[:, 0])).astype(int)
    planes = np.zeros((2, *lines.shape), bool)
    planes[upright, lines.y, lines.x] = True
    touching = np.zeros((3, 3, 3), int)
    touching[1] = 1
    numbered, count = label(planes, touching)
    of = numbered[upright, lines.y, lines.x] - 1
    n = np.maximum(np.bincount(of, minlength=count), 1)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(of, values, minlength=count) / n, np.float64)

    double = lines.double
    across = np.stack([mean(double[0]), mean(double[1])], 1)
    coherent = np.hypot(across[:, 0], across[:, 1])
    side = max(lines.shape)
    depth = mean(lines.depth)
    keep = np.flatnonzero((n >= 0.015 * side) & (n <= 0.25 * side) & (coherent > 0.85))
    keep = keep[np.argsort(-depth[keep], kind="stable")[:MOST_MARKS]]
    return _Marks(
        centre=np.stack([mean(lines.y), mean(lines.x)], 1)[keep],
        double=across[keep] / coherent[keep, None],
        length=n[keep].astype(np.float64),
        depth=depth[keep],
    )


def _double(across: Plane) -> Plane:
    """Return directions (2, N) by twice their angle, so that 179 and 1 degrees are near."""
    return np.stack([across[:, 0] ** 2 - across[:, 1] ** 2, 2 * across[:, 0] * across[:, 1]])


def _row(
    centre: NDArray[np.float64], alike: NDArray[np.bool_], start: int, pitch: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the marks that stand where a row from `start` in steps of `pitch` expects them; one in two may lack."""
    off = centre - centre[start]
    way = off @ pitch / (pitch @ pitch)
    place = np.rint(way)
    # A longer mark is centred beside the others.
    aside = np.abs(off @ np.array([-pitch[1], pitch[0]])) / (pitch @ pitch)
    fits = np.flatnonzero((np.abs(way - place) < MISS) & (aside < BESIDE) & alike)
    places, first = np.unique(place[fits], return_index=True)
    breaks = np.concatenate([[-1], np.flatnonzero(np.diff(places) > 2), [len(places) - 1]])
    longest = int(np.diff(breaks).argmax())
    return np.asarray(fits[first[breaks[longest] + 1 : breaks[longest + 1] + 1]], np.int64)


def _clear(lines: Lines, marks: _Marks, row: NDArray[np.int64], pitch: NDArray[np.float64]) -> float:
    """Return the share, times `CLEAR` and at most 1, of the parallel lines in a row's strip that are its marks."""
    step = float(np.hypot(*pitch))
    unit = pitch / step
    off = np.stack([lines.y, lines.x], 1) - marks.centre[row].mean(axis=0)
    along, aside = off @ unit, off @ np.array([-unit[1], unit[0]])
    reach = (marks.centre[row] - marks.centre[row].mean(axis=0)) @ unit
    inside = (along > reach.min() - step) & (along < reach.max() + step)
    inside &= np.abs(aside) < 1.5 * float(np.median(marks.length[row]))
    inside &= marks.double[row].mean(axis=0) @ lines.double > 0
    return float(min(1.0, CLEAR * marks.length[row].sum() / max(1, inside.sum())))
