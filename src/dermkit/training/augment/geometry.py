"""Arrays of one value or index per image, brought to where a batch lies."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dermkit.recipes.augmentation import AugmentSpec, DistortSpec
from dermkit.training.augment.random_numbers import Column, Draws


def onto(values: NDArray[np.generic], batch: Tensor) -> Tensor:
    """Return the values as a tensor on a batch's device."""
    return torch.from_numpy(values).to(batch.device)


def column(values: NDArray[np.generic], batch: Tensor) -> Tensor:
    """Return one value per image, shaped to go with a batch (N, 3, H, W) and on its device."""
    return onto(values, batch).view(-1, 1, 1, 1)


_PADDING = {"reflect": "reflection", "black": "zeros", "edge": "border"}


def move(batch: Tensor, spec: AugmentSpec, draws: Draws) -> Tensor:
    """Return the images flipped, transposed, moved and distorted; the batch itself where nothing is on.

    Images that are only flipped or transposed lose nothing: their pixels are moved, not interpolated.
    """
    height, width = batch.shape[-2:]
    if spec.transpose and height != width:
        raise ValueError(f"images of {height} x {width} pixels cannot be transposed")
    sign_x = draws.sign(Column.FLIP_X, spec.horizontal_flip)
    sign_y = draws.sign(Column.FLIP_Y, spec.vertical_flip)
    turned = draws.chosen(Column.TRANSPOSE, 0.5 if spec.transpose else 0.0)
    moves = bool(spec.rotate or spec.shift or spec.zoom)
    moved = draws.chosen(Column.MOVED, spec.moved if moves else 0.0)
    sampled = moved | draws.chosen(Column.DISTORT, spec.distort.share if spec.distort else 0.0)
    if sampled.all():
        return _sampled(batch, spec, draws)
    exact = _turned(batch, sign_x < 0, sign_y < 0, turned)
    if not sampled.any():
        return exact
    index = np.flatnonzero(sampled)
    out = exact.clone() if exact is batch else exact
    out[onto(index, batch)] = _sampled(batch[onto(index, batch)], spec, draws.take(index))
    return out


def _turned(
    batch: Tensor, flip_x: NDArray[np.bool_], flip_y: NDArray[np.bool_], turn: NDArray[np.bool_]
) -> Tensor:
    """Transpose, then flip; all images that are turned alike at once."""
    which = flip_x + 2 * flip_y + 4 * turn
    if not which.any():
        return batch
    out = torch.empty_like(batch)
    for position in np.unique(which).tolist():
        index = onto(np.flatnonzero(which == position), batch)
        part = batch[index].transpose(-1, -2) if position & 4 else batch[index]
        out[index] = part.flip([axis for axis, bit in ((-1, 1), (-2, 2)) if position & bit])
    return out


def _sampled(batch: Tensor, spec: AugmentSpec, draws: Draws) -> Tensor:
    height, width = batch.shape[-2:]
    places = _places(onto(_theta(spec, draws, height, width), batch), height, width)
    if spec.distort:
        places = _distorted(places, spec.distort, draws)
    grid = places.permute(0, 2, 3, 1)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode=_PADDING[spec.fill], align_corners=False)


def _theta(spec: AugmentSpec, draws: Draws, height: int, width: int) -> NDArray[np.float32]:
    """Return (N, 2, 3): for each output position, where it is read from, in units of -1..1 over the image."""
    moved = draws.chosen(Column.MOVED, spec.moved)
    angle = np.deg2rad(np.where(moved, draws.uniform(Column.ROTATE, spec.rotate), 0.0))
    scale = 1.0 + np.where(moved, draws.uniform(Column.ZOOM, spec.zoom), 0.0)
    sign_x = draws.sign(Column.FLIP_X, spec.horizontal_flip)
    sign_y = draws.sign(Column.FLIP_Y, spec.vertical_flip)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    theta = np.empty((len(draws), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = cosine * sign_x, -sine * sign_x * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sine * sign_y * width / height, cosine * sign_y
    theta[:, 0, 2] = np.where(moved, 2.0 * draws.uniform(Column.SHIFT_X, spec.shift), 0.0)
    theta[:, 1, 2] = np.where(moved, 2.0 * draws.uniform(Column.SHIFT_Y, spec.shift), 0.0)
    turned = draws.chosen(Column.TRANSPOSE, 0.5 if spec.transpose else 0.0)
    theta[turned] = theta[turned][:, ::-1]
    return theta


def _axis(n: int, device: torch.device) -> Tensor:
    """Return the middles of n pixels in -1..1."""
    return torch.linspace(-1.0, 1.0, n, device=device) * (n - 1) / n if n > 1 else torch.zeros(1, device=device)


def _places(theta: Tensor, height: int, width: int) -> Tensor:
    """Return (N, 2, H, W): x and y that each output pixel is read from; `F.affine_grid`'s numbers, ten times sooner."""
    along = theta[:, :, 0:1] * _axis(width, theta.device)
    down = theta[:, :, 1:2] * _axis(height, theta.device)
    return (along[:, :, None, :] + down[:, :, :, None]).add_(theta[:, :, 2, None, None])


def _distorted(places: Tensor, spec: DistortSpec, draws: Draws) -> Tensor:
    """Bend the places of the share of images that are distorted, each by one kind."""
    kinds = [kind for kind in ("optical", "grid", "elastic") if getattr(spec, kind)]
    bends = {"optical": _optical, "grid": _grid, "elastic": _elastic}
    chosen = draws.chosen(Column.DISTORT, spec.share)
    which = draws.one_of(Column.DISTORT_KIND, len(kinds))
    for number, kind in enumerate(kinds):
        index = np.flatnonzero(chosen & (which == number))
        if len(index):
            before = places[onto(index, places)]
            after = _within(bends[kind](before, spec, draws.take(index)))
            # What the move alone exposes is the fill's matter; what the distortion reads beyond is reflected.
            inside = (before.abs() <= 1.0).all(dim=1, keepdim=True)
            places[onto(index, places)] = torch.where(inside, after, before)
    return places


def _within(places: Tensor) -> Tensor:
    """Return the places brought into the image by reflection at its edges, and half a pixel further in.

    Nearer to an edge than the middle of the last pixel, black would be mixed in where that is the fill.
    """
    from_edge = places + 1.0
    folded = (from_edge - 4.0 * torch.floor(from_edge * 0.25 + 0.5)).abs_() - 1.0
    middles = torch.tensor([(n - 1) / n for n in (places.shape[-1], places.shape[-2])], device=places.device)
    last = middles[:, None, None]
    return torch.minimum(torch.maximum(torch.where(places.abs() <= 1.0, places, folded), -last), last)


def _optical(places: Tensor, spec: DistortSpec, draws: Draws) -> Tensor:
    k = draws.uniform(Column.OPTICAL, spec.optical).astype(np.float32)
    square = (places[:, 0:1] * places[:, 0:1] + places[:, 1:2] * places[:, 1:2]) * 0.25
    factor = 1.0 + square * column(np.abs(k), places)
    return torch.where(column(k >= 0, places), places * factor, places / factor)


def strip_widths(spec: DistortSpec, draws: Draws) -> NDArray[np.float64]:
    """Return (N, 2, grid_steps): the width of each strip where it is read, along x and along y; each sums to 2."""
    widths = 1.0 + draws.uniforms(Column.GRID, 2 * spec.grid_steps, spec.grid)
    widths = np.maximum(widths, 1e-6).reshape(-1, 2, spec.grid_steps)
    widths *= 2.0 / widths.sum(axis=2, keepdims=True)
    return widths


def _grid(places: Tensor, spec: DistortSpec, draws: Draws) -> Tensor:
    widths = onto(strip_widths(spec, draws).astype(np.float32), places)
    steps = (places + 1.0) * (spec.grid_steps / 2)
    out = torch.full_like(places, -1.0)
    for strip in range(spec.grid_steps):
        out += (steps - strip).clamp_(0.0, 1.0) * widths[:, :, strip, None, None]
    return out


def nodes_weights(n: int, cells: int) -> NDArray[np.float64]:
    """Return (cells + 3, n): each node's weight at each of n pixels, by uniform cubic B-splines; columns sum to 1."""
    at = (np.arange(n) + 0.5) / n * cells
    cell = np.minimum(np.floor(at).astype(np.int64), cells - 1)
    t = at - cell
    pieces = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((cells + 3, n))
    for offset, piece in enumerate(pieces):
        weights[cell + offset, np.arange(n)] = piece / 6
    return weights


def _elastic(places: Tensor, spec: DistortSpec, draws: Draws) -> Tensor:
    nodes = spec.elastic_cells + 3
    field = 2.0 * draws.uniforms(Column.ELASTIC, 2 * nodes * nodes, spec.elastic)
    known = onto(field.astype(np.float32).reshape(-1, 2, nodes, nodes), places)
    height, width = places.shape[-2:]
    across = onto(nodes_weights(width, spec.elastic_cells).astype(np.float32), places)
    down = onto(nodes_weights(height, spec.elastic_cells).astype(np.float32), places)
    rows = torch.zeros((*known.shape[:3], width), device=places.device)
    for node in range(nodes):
        rows += known[..., node, None] * across[node]
    out = places.clone()
    for node in range(nodes):
        out += rows[:, :, node, None, :] * down[node][:, None]
    return out
