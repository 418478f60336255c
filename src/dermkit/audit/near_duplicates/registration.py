"""Lays one image over another: is the second made from the first, and how?

A candidate comes with a rough guess, from two discs or from the frames. The guess is refined to an affine map, and
the pictures are compared where they overlap. Photographs of different lesions can look alike in their large shapes;
only a copy also agrees in its fine detail.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from dermkit.audit.scan.descriptors import CANVAS, blur, sample

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = 40
"""Points along each side of the first picture at which the two are compared."""
COARSE, FINE, LOCAL = 2.5, 1.0, 5.0
"""Blur in canvas pixels: for the first steps, for the last ones, and what `detail` is measured against."""
ROUGH_GRID = 20
"""The same for the first round, which only has to tell what is worth a second one."""
ROUGH_STEPS, FINE_STEPS = 6, 6
MARGIN = 0.12
"""Share of the shorter side that `Match.inner` leaves out on each side."""
CORNER, PLAIN = 4, 3
"""A corner that was filled has this many pixels each way within so many grey levels, also after a JPEG."""
FILL = 8
"""Grey levels within which a corner counts as one colour."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Small grey pictures, blurred. grey, detail: (P, CANVAS, CANVAS); size: (P, 2) width and height.

    seen: (P, CANVAS, CANVAS) 1 where the picture shows something, 0 beyond its edge and in corners that a turn filled.
    """

    seen: Floats
    grey: Floats
    detail: Floats
    size: Ints

    def take(self, rows: Ints) -> "Pictures":
        """Return some of the pictures, each as often as it is named."""
        return Pictures(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Agreement:
    """How pictures agree where one lies on the other.

    whole, detail: (P,) correlations, -1 .. 1. difference: (P,) grey levels, root mean square.
    """

    whole: Doubles
    detail: Doubles
    difference: Doubles


@dataclass(frozen=True, eq=False)
class Match:
    """How P pairs agree. matrix: (P, 2, 3) from the first picture to the second, in canvas pixels.

    everywhere: in the whole overlap. inner: without the outer parts of either picture, where a turn leaves slivers of
    fill. overlap: (P, 2) share of each picture that lies on the other.
    """

    matrix: Doubles
    everywhere: Agreement
    inner: Agreement
    overlap: Doubles


def prepare(canvas: NDArray[np.uint8], size: Ints, *, rough: bool) -> Pictures:
    """Blur small pictures for registration. canvas: (P, CANVAS, CANVAS); size: (P, 2)."""
    seen = _seen(canvas, size)
    sigmas = (COARSE,) if rough else (FINE, LOCAL)
    # What is not seen must not be blurred into what is.
    blurred: Floats = np.divide(blur(canvas * seen, sigmas), np.maximum(blur(seen, sigmas), np.float32(1e-3)))
    grey = blurred[:, 0]
    return Pictures(seen, grey, grey if rough else grey - blurred[:, 1], size)


def _seen(canvas: NDArray[np.uint8], size: Ints) -> Floats:
    """Return 1 within the pictures but for corners of one colour: a turn leaves them, and they match nothing."""
    at = np.arange(CANVAS)
    seen = ((at[:, None] < size[:, 1, None, None]) & (at < size[:, 0, None, None])).astype(np.float32)
    for number in np.flatnonzero(_plain_corners(canvas, size).any(axis=1)):
        width, height = (int(side) for side in size[number])
        filled = _filled(canvas[number, :height, :width].astype(np.int16))
        # A margin of two pixels, since blur carries the fill's edge inwards.
        seen[number, :height, :width][binary_dilation(filled, iterations=2)] = 0
    return seen


def _plain_corners(canvas: NDArray[np.uint8], size: Ints) -> NDArray[np.bool_]:
    """Say which corners, (P, 4), are of one colour over `CORNER` pixels: a quick test that most pictures fail."""
    image = np.arange(len(canvas))[:, None, None]
    step = np.arange(CORNER)
    plain = []
    for right, low in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x = step + right * (size[:, 0, None] - CORNER)
        y = step + low * (size[:, 1, None] - CORNER)
        block = canvas[image, y.clip(0)[:, :, None], x.clip(0)[:, None, :]]
        plain.append(np.ptp(block, axis=(1, 2)) <= PLAIN)
    return np.stack(plain, axis=1)


def _filled(picture: NDArray[np.int16]) -> NDArray[np.bool_]:
    filled = np.zeros(picture.shape, bool)
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        alike = np.abs(picture - picture[y, x]) <= FILL
        if alike.mean() > 0.01:
            regions = label(alike)[0]
            region = regions == regions[y, x]
            if picture[region].std() < FILL / 4:
                filled |= region
    return filled


def disc_guess(
    polar: tuple[NDArray[np.int8], NDArray[np.int8]], place: tuple[Floats, Floats]
) -> tuple[Doubles, Doubles]:
    """Guess maps from pairs of discs: (P, 2, 3) maps, and how well the turned discs agree, (P,) -1 .. 1.

    polar: two arrays (P, RINGS, ANGLES); place: two arrays (P, 3) of x, y, radius.
    """
    first, second = (values.astype(np.float32) for values in polar)
    rings, angles = first.shape[1:]
    weight = ((np.arange(rings) + 0.5) / rings).astype(np.float32)[:, None]
    waves = np.fft.rfft(first * weight, axis=-1), np.fft.rfft(second, axis=-1)
    straight = np.fft.irfft((waves[0].conj() * waves[1]).sum(axis=1), n=angles)
    mirrored = np.fft.irfft((waves[0] * waves[1]).sum(axis=1), n=angles)
    both = np.concatenate([straight, mirrored], axis=1)
    norms = [np.sqrt(((values**2) * weight).sum(axis=(1, 2))) for values in (first, second)]
    best = both.argmax(axis=1)
    agree = both[np.arange(len(best)), best] / np.maximum(norms[0] * norms[1], 1e-6)
    turn = 2 * np.pi * (best % angles + _between(both, best, angles)) / angles
    flip = np.where(best >= angles, -1.0, 1.0)
    scale = place[1][:, 2] / np.maximum(place[0][:, 2], 1e-6)
    linear = scale[:, None, None] * np.stack(
        [np.stack([np.cos(turn), -np.sin(turn) * flip], -1), np.stack([np.sin(turn), np.cos(turn) * flip], -1)], -2
    )
    shift = place[1][:, :2] - np.einsum("pij,pj->pi", linear, place[0][:, :2].astype(np.float64))
    return np.concatenate([linear, shift[..., None]], axis=-1), agree.astype(np.float64)


def _between(curve: Floats, best: Ints, angles: int) -> Doubles:
    """Return how far the vertex of the parabola through a peak of a closed curve lies from the peak."""
    rows, start = np.arange(len(best)), best - best % angles
    low, middle, high = (curve[rows, start + (best + step) % angles].astype(np.float64) for step in (-1, 0, 1))
    bend = low - 2 * middle + high
    shift = np.divide(low - high, 2 * bend, out=np.zeros_like(bend), where=np.abs(bend) > 1e-9)
    return np.asarray(shift.clip(-0.5, 0.5))


_TURNS = np.array(
    [[[a, 0], [0, b]] for a in (1, -1) for b in (1, -1)] + [[[0, a], [b, 0]] for a in (1, -1) for b in (1, -1)]
)
"""The eight ways to lay a square on itself."""


def frame_guess(
    square: tuple[NDArray[np.uint8], NDArray[np.uint8]], size: tuple[Ints, Ints]
) -> tuple[Doubles, Doubles]:
    """Guess maps from whole frames, the best of the eight ways: (P, 2, 3) maps and agreement (P,) -1 .. 1.

    square: two arrays (P, SQUARE, SQUARE, 3); size: two arrays (P, 2).
    """
    first, second = (values.astype(np.float32).mean(axis=-1) for values in square)
    ways = [_laid(second, way) for way in _TURNS]
    agree = np.stack([_correlate(first, other) for other in ways], axis=1)
    best = agree.argmax(axis=1)
    # From the unit square around 0 to canvas pixels of each picture.
    half = [(values - 1) / 2 for values in size]
    linear = _TURNS[best] * half[1][:, :, None] / half[0][:, None, :]
    shift = half[1] - np.einsum("pij,pj->pi", linear, half[0])
    return np.concatenate([linear, shift[..., None]], axis=-1), agree.max(axis=1).astype(np.float64)


def _laid(square: Floats, way: NDArray[np.int64]) -> Floats:
    """Return squares read along a way: value at x of the result is the square's value at way @ x."""
    swapped = square.transpose(0, 2, 1) if way[0, 0] == 0 else square
    # Rows are y. Without a swap, way[0, 0] turns x and way[1, 1] turns y; with it, x comes from y.
    across, down = (way[0, 0], way[1, 1]) if way[0, 0] else (way[1, 0], way[0, 1])
    return swapped[:, ::down, ::across]


def _correlate(first: Floats, second: Floats) -> Floats:
    parts = [values - values.mean(axis=(1, 2), keepdims=True) for values in (first, second)]
    scale = np.sqrt((parts[0] ** 2).sum(axis=(1, 2)) * (parts[1] ** 2).sum(axis=(1, 2)))
    out: Floats = (parts[0] * parts[1]).sum(axis=(1, 2)) / np.maximum(scale, 1e-6)
    return out


def register(first: Pictures, second: Pictures, guess: Doubles, *, rough: bool) -> Match:
    """Refine guessed maps (P, 2, 3) and say how the pictures of each pair agree.

    rough: few steps on blurred pictures at few points, a fifth of the work, to discard what is no copy at all.
    """
    points = _points(first.size, ROUGH_GRID if rough else GRID)
    pictures = (first.grey, second.grey)
    steps = ROUGH_STEPS if rough else FINE_STEPS
    matrix = _refined(pictures, (first.seen, second.seen), second.size, points, guess.astype(np.float64), steps)
    return _judged(first, second, points, matrix)


def _points(size: Ints, side: int) -> Doubles:
    """Return a grid over each picture: (P, side * side, 2)."""
    steps = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(steps, steps)
    unit = np.stack([x.ravel(), y.ravel()], axis=-1)
    return np.asarray(unit[None] * (size - 1)[:, None])


def _at(pictures: Floats, places: Doubles) -> Floats:
    """Return bilinear values at places (P, K, 2), clipped into the canvas."""
    inside = places.clip(0, CANVAS - 1.001)
    number = np.arange(len(pictures))
    values: Floats = sample(pictures, number[:, None], inside[..., None, None, 0], inside[..., None, None, 1])[
        ..., 0, 0
    ]
    return values


def _moved(matrix: Doubles, points: Doubles) -> Doubles:
    moved: Doubles = points @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]
    return moved


def _inside(places: Doubles, size: Ints) -> NDArray[np.bool_]:
    within = (places >= 0) & (places <= (size - 1)[:, None])
    return np.asarray(within.all(axis=-1))


def _refined(
    pictures: tuple[Floats, Floats],
    seen: tuple[Floats, Floats],
    size: Ints,
    points: Doubles,
    matrix: Doubles,
    steps: int,
) -> Doubles:
    """Take Gauss-Newton steps towards the map under which the second picture looks most like the first.

    Inverse compositional (Baker and Matthews 2004): the slopes are those of the first picture, taken once.
    """
    one, two = pictures
    ours = _at(seen[0], points) > 0.99
    values = _at(one, points).astype(np.float64)
    slope = [(_at(one, points + move) - _at(one, points - move)) / 2.0 for move in np.eye(2)]
    centre = points.mean(axis=1, keepdims=True)
    away = (points - centre) / CANVAS
    bases = [slope[axis] * part for axis in (0, 1) for part in (away[..., 0], away[..., 1], np.ones_like(values))]
    jacobian = np.stack(bases, axis=-1)
    for _ in range(steps):
        places = _moved(matrix, points)
        valid = (_inside(places, size) & ours & (_at(seen[1], places) > 0.99)).astype(np.float64)
        other = _at(two, places).astype(np.float64)
        error = _normal(other, valid) * _spread(values, valid)[:, None] - (values - _mean(values, valid)[:, None])
        weighted = jacobian * valid[..., None]
        hessian = weighted.transpose(0, 2, 1) @ jacobian
        hessian += np.eye(6) * (1e-3 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] / 6 + 1e-6)
        delta = np.linalg.solve(hessian, np.einsum("pki,pk->pi", weighted, error)[..., None])[..., 0]
        matrix = _composed(matrix, delta.clip(-20, 20), centre[:, 0])
    return matrix


def _composed(matrix: Doubles, delta: Doubles, centre: Doubles) -> Doubles:
    """Return the map after undoing a small map of the first picture."""
    linear = np.eye(2) + delta[:, [[0, 1], [3, 4]]] / CANVAS
    shift = delta[:, [2, 5]]
    # x -> linear (x - c) + c + shift, inverted.
    inverse = np.linalg.inv(linear + np.eye(2) * 1e-9)
    back = centre - np.einsum("pij,pj->pi", inverse, centre + shift)
    merged = matrix[:, :, :2] @ inverse
    moved = np.einsum("pij,pj->pi", matrix[:, :, :2], back) + matrix[:, :, 2]
    return np.concatenate([merged, moved[..., None]], axis=-1)


def _mean(values: Doubles, weight: Doubles) -> Doubles:
    out: Doubles = (values * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    return out


def _spread(values: Doubles, weight: Doubles) -> Doubles:
    centred = values - _mean(values, weight)[:, None]
    return np.sqrt(_mean(centred**2, weight))


def _normal(values: Doubles, weight: Doubles) -> Doubles:
    centred = values - _mean(values, weight)[:, None]
    out: Doubles = centred / np.maximum(np.sqrt(_mean(centred**2, weight)), 1e-3)[:, None]
    return out


def _judged(first: Pictures, second: Pictures, points: Doubles, matrix: Doubles) -> Match:
    places = _moved(matrix, points)
    ours = _at(first.seen, points) > 0.99
    valid = (_inside(places, second.size) & ours & (_at(second.seen, places) > 0.99)).astype(np.float64)
    grey = [_at(first.grey, points).astype(np.float64), _at(second.grey, places).astype(np.float64)]
    detail = [_at(first.detail, points).astype(np.float64), _at(second.detail, places).astype(np.float64)]
    margins = [
        np.minimum(at, (size - 1)[:, None] - at).min(axis=-1) / (size.min(axis=1)[:, None] - 1)
        for at, size in ((points, first.size), (places, second.size))
    ]
    inner = valid * (np.minimum(*margins) > MARGIN)
    area = np.abs(np.linalg.det(matrix[:, :, :2]))
    common = valid.mean(axis=1) * (first.size - 1).prod(axis=1)
    shown = [pictures.seen.sum(axis=(1, 2)) for pictures in (first, second)]
    overlap = np.stack([common / shown[0], common * area / shown[1]], axis=1).clip(0, 1)
    return Match(matrix, _agreement(grey, detail, valid), _agreement(grey, detail, inner), overlap)


def _agreement(grey: list[Doubles], detail: list[Doubles], weight: Doubles) -> Agreement:
    whole, sharp = (_mean(_normal(a, weight) * _normal(b, weight), weight) for a, b in (grey, detail))
    return Agreement(whole, sharp, np.sqrt(_mean((grey[0] - grey[1]) ** 2, weight)))
