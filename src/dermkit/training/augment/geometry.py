"""Flips, transposition, affine moves and distortions of training images, in one bilinear resampling.

Images are (B, 3, H, W) float32 in 0..1; coordinates are (B, 2, H, W) float32, x and y, from -1 to 1 between the image's
edges (torch's `align_corners=False`). Only operations that round each number by itself are used, so that an image's
result does not depend on the others of its batch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dermkit.recipes.augmentation import AugmentSpec, DistortSpec
from dermkit.training.augment.random_numbers import CounterRng, Stream


def to_device_of(values: NDArray[np.generic], batch: Tensor) -> Tensor:
    """Return the values as a tensor on a batch's device."""
    return torch.from_numpy(values).to(batch.device)


def broadcast_per_image(values: NDArray[np.generic], batch: Tensor) -> Tensor:
    """Return one value per image, (B,), as a tensor (B, 1, 1, 1) on the batch's device."""
    return to_device_of(values, batch).view(-1, 1, 1, 1)


_PADDING_MODES = {"reflect": "reflection", "black": "zeros", "edge": "border"}


def transform_geometry(batch: Tensor, spec: AugmentSpec, rng: CounterRng) -> Tensor:
    """Return images flipped, transposed, moved and distorted; the batch itself where no image is changed.

    Images that are only flipped or transposed are permuted exactly, not interpolated. Raises `ValueError` where images
    that are not square are to be transposed.
    """
    height, width = batch.shape[-2:]
    if spec.transpose and height != width:
        raise ValueError(f"images of {height} x {width} pixels cannot be transposed")
    sign_x = rng.sign(Stream.FLIP_X, spec.horizontal_flip)
    sign_y = rng.sign(Stream.FLIP_Y, spec.vertical_flip)
    is_transposed = rng.bernoulli(Stream.TRANSPOSE, 0.5 if spec.transpose else 0.0)
    has_affine = bool(spec.rotate or spec.shift or spec.zoom)
    is_affine = rng.bernoulli(Stream.APPLY_AFFINE, spec.p_geometric if has_affine else 0.0)
    is_resampled = is_affine | rng.bernoulli(Stream.DISTORT, spec.distort.p if spec.distort else 0.0)
    if is_resampled.all():
        return _resample(batch, spec, rng)
    flipped_batch = _flip_and_transpose(batch, sign_x < 0, sign_y < 0, is_transposed)
    if not is_resampled.any():
        return flipped_batch
    index = np.flatnonzero(is_resampled)
    out = (
        flipped_batch.clone() if flipped_batch is batch else flipped_batch
    )  # the caller's batch is not written to
    out[to_device_of(index, batch)] = _resample(batch[to_device_of(index, batch)], spec, rng.select(index))
    return out


def _flip_and_transpose(
    batch: Tensor, flip_x: NDArray[np.bool_], flip_y: NDArray[np.bool_], is_transposed: NDArray[np.bool_]
) -> Tensor:
    """Return images transposed, then flipped; those of one orientation (of eight) at once."""
    orientations = flip_x + 2 * flip_y + 4 * is_transposed
    if not orientations.any():
        return batch
    out = torch.empty_like(batch)
    for orientation in np.unique(orientations).tolist():
        index = to_device_of(np.flatnonzero(orientations == orientation), batch)
        group = batch[index].transpose(-1, -2) if orientation & 4 else batch[index]
        out[index] = group.flip([axis for axis, bit in ((-1, 1), (-2, 2)) if orientation & bit])
    return out


def _resample(batch: Tensor, spec: AugmentSpec, rng: CounterRng) -> Tensor:
    height, width = batch.shape[-2:]
    coordinates = _affine_grid(to_device_of(_affine_matrices(spec, rng, height, width), batch), height, width)
    if spec.distort:
        coordinates = _distort(coordinates, spec.distort, rng)
    grid = coordinates.permute(0, 2, 3, 1)
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode=_PADDING_MODES[spec.fill], align_corners=False)


def _affine_matrices(spec: AugmentSpec, rng: CounterRng, height: int, width: int) -> NDArray[np.float32]:
    """Return (B, 2, 3) matrices that map an output position to the position it is read from, in -1..1."""
    is_affine = rng.bernoulli(Stream.APPLY_AFFINE, spec.p_geometric)
    angle = np.deg2rad(np.where(is_affine, rng.uniform(Stream.ROTATE, spec.rotate), 0.0))
    scale = 1.0 + np.where(is_affine, rng.uniform(Stream.ZOOM, spec.zoom), 0.0)
    sign_x = rng.sign(Stream.FLIP_X, spec.horizontal_flip)
    sign_y = rng.sign(Stream.FLIP_Y, spec.vertical_flip)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    theta = np.empty((len(rng), 2, 3), dtype=np.float32)
    # Coordinates are in units of half a width and half a height: a rotation in pixels needs their ratio.
    theta[:, 0, 0], theta[:, 0, 1] = cosine * sign_x, -sine * sign_x * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sine * sign_y * width / height, cosine * sign_y
    theta[:, 0, 2] = np.where(is_affine, 2.0 * rng.uniform(Stream.SHIFT_X, spec.shift), 0.0)
    theta[:, 1, 2] = np.where(is_affine, 2.0 * rng.uniform(Stream.SHIFT_Y, spec.shift), 0.0)
    # Transposed images read x where others read y: the rows of their matrices are exchanged.
    is_transposed = rng.bernoulli(Stream.TRANSPOSE, 0.5 if spec.transpose else 0.0)
    theta[is_transposed] = theta[is_transposed][:, ::-1]
    return theta


def _pixel_centres(n: int, device: torch.device) -> Tensor:
    """Return the centres of n pixels in -1..1."""
    return torch.linspace(-1.0, 1.0, n, device=device) * (n - 1) / n if n > 1 else torch.zeros(1, device=device)


def _affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 2, H, W): x and y that each output pixel is read from. As `F.affine_grid`, in a tenth of its time."""
    x_terms = theta[:, :, 0:1] * _pixel_centres(width, theta.device)
    y_terms = theta[:, :, 1:2] * _pixel_centres(height, theta.device)
    return (x_terms[:, :, None, :] + y_terms[:, :, :, None]).add_(theta[:, :, 2, None, None])


def _distort(coordinates: Tensor, spec: DistortSpec, rng: CounterRng) -> Tensor:
    """Return the coordinates with those of some images distorted (probability spec.p), by one kind each."""
    kinds = [kind for kind in ("optical", "grid", "elastic") if getattr(spec, kind)]
    functions = {"optical": _optical_distortion, "grid": _grid_distortion, "elastic": _elastic_distortion}
    is_distorted = rng.bernoulli(Stream.DISTORT, spec.p)
    kind_index = rng.integers(Stream.DISTORT_KIND, len(kinds))
    for number, kind in enumerate(kinds):
        index = np.flatnonzero(is_distorted & (kind_index == number))
        if len(index):
            original = coordinates[to_device_of(index, coordinates)]
            distorted = _reflect_inside(functions[kind](original, spec, rng.select(index)))
            # Positions that the affine move puts outside the image get the recipe's fill; positions that only the
            # distortion would read outside are reflected into the image.
            is_inside = (original.abs() <= 1.0).all(dim=1, keepdim=True)
            coordinates[to_device_of(index, coordinates)] = torch.where(is_inside, distorted, original)
    return coordinates


def _reflect_inside(coordinates: Tensor) -> Tensor:
    """Return coordinates reflected at the image's edges, and clamped to the centres of the outermost pixels.

    Beyond those centres, bilinear interpolation would mix in black where that is the fill.
    """
    edge_distance = coordinates + 1.0
    reflected = (edge_distance - 4.0 * torch.floor(edge_distance * 0.25 + 0.5)).abs_() - 1.0
    last_centres = torch.tensor(
        [(n - 1) / n for n in (coordinates.shape[-1], coordinates.shape[-2])], device=coordinates.device
    )
    limit = last_centres[:, None, None]
    return torch.minimum(
        torch.maximum(torch.where(coordinates.abs() <= 1.0, coordinates, reflected), -limit), limit
    )


def _optical_distortion(coordinates: Tensor, spec: DistortSpec, rng: CounterRng) -> Tensor:
    """Return coordinates times 1 + |k| r^2 / 4, or divided by it where k < 0; r is 1 at the middle of an edge."""
    k = rng.uniform(Stream.OPTICAL, spec.optical).astype(np.float32)
    radius_squared = (coordinates[:, 0:1] * coordinates[:, 0:1] + coordinates[:, 1:2] * coordinates[:, 1:2]) * 0.25
    factor = 1.0 + radius_squared * broadcast_per_image(np.abs(k), coordinates)
    return torch.where(broadcast_per_image(k >= 0, coordinates), coordinates * factor, coordinates / factor)


def strip_widths(spec: DistortSpec, rng: CounterRng) -> NDArray[np.float64]:
    """Return (B, 2, grid_steps) float64: source widths of the strips along x and y; each row sums to 2 (-1..1)."""
    widths = 1.0 + rng.uniform_matrix(Stream.GRID, 2 * spec.grid_steps, spec.grid)
    # At least 1e-6, so that a strip never folds back over its neighbour.
    widths = np.maximum(widths, 1e-6).reshape(-1, 2, spec.grid_steps)
    widths *= 2.0 / widths.sum(axis=2, keepdims=True)
    return widths


def _grid_distortion(coordinates: Tensor, spec: DistortSpec, rng: CounterRng) -> Tensor:
    widths = to_device_of(strip_widths(spec, rng).astype(np.float32), coordinates)
    steps = (coordinates + 1.0) * (spec.grid_steps / 2)
    out = torch.full_like(coordinates, -1.0)
    for strip in range(spec.grid_steps):
        out += (steps - strip).clamp_(0.0, 1.0) * widths[:, :, strip, None, None]
    return out


def spline_weights(n: int, cells: int) -> NDArray[np.float64]:
    """Return (cells + 3, n) float64: each node's weight at each of n pixels, by uniform cubic B-splines.

    Each column sums to 1.
    """
    position = (np.arange(n) + 0.5) / n * cells
    cell = np.minimum(np.floor(position).astype(np.int64), cells - 1)
    t = position - cell
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((cells + 3, n))
    for offset, basis_value in enumerate(basis):
        weights[cell + offset, np.arange(n)] = basis_value / 6
    return weights


def _elastic_distortion(coordinates: Tensor, spec: DistortSpec, rng: CounterRng) -> Tensor:
    """Return coordinates plus a smooth random field: a cubic B-spline over nodes with random displacements."""
    nodes = spec.elastic_cells + 3
    field = 2.0 * rng.uniform_matrix(Stream.ELASTIC, 2 * nodes * nodes, spec.elastic)
    displacements = to_device_of(field.astype(np.float32).reshape(-1, 2, nodes, nodes), coordinates)
    height, width = coordinates.shape[-2:]
    column_weights = to_device_of(spline_weights(width, spec.elastic_cells).astype(np.float32), coordinates)
    row_weights = to_device_of(spline_weights(height, spec.elastic_cells).astype(np.float32), coordinates)
    # The spline is separable: first along x, then along y. Summed node by node, in an order that no batch size changes.
    rows = torch.zeros((*displacements.shape[:3], width), device=coordinates.device)
    for node in range(nodes):
        rows += displacements[..., node, None] * column_weights[node]
    out = coordinates.clone()
    for node in range(nodes):
        out += rows[:, :, node, None, :] * row_weights[node][:, None]
    return out
