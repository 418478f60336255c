"""How a camera spoils a training image, and what hides part of it: blur, median, noise, cutout.

Images are (N, 3, H, W) float32 in 0..1. As in `geometry`, only operations whose rounding is fixed for each number.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional as F

from dermkit.recipes.augmentation import BlurNoiseSpec, CutoutSpec
from dermkit.training.augment.geometry import onto
from dermkit.training.augment.random_numbers import FIRST, GOLDEN, SECOND, Column, Draws

SIGMA = {3: 0.8, 5: 1.1, 7: 1.4}
"""Gaussian blur's sigma for a kernel side, as OpenCV derives it: 0.3 ((side - 1) / 2 - 1) + 0.8."""

BITS = 12
"""Noise is drawn from 2^12 values of equal odds: the fifth part of a 64-bit hash each."""


def blur_or_noise(batch: Tensor, spec: BlurNoiseSpec, draws: Draws) -> Tensor:
    """Return each image blurred, median-filtered or made noisy: one of those that are on. In 0..1."""
    kinds = [kind for kind in ("motion", "median", "gaussian") if getattr(spec, kind)]
    kinds += ["noise"] if spec.noise[1] else []
    which = draws.one_of(Column.BLUR_NOISE_KIND, len(kinds))
    changes = {"motion": _motion, "median": _median, "gaussian": _gaussian, "noise": _noisy}
    out = torch.empty_like(batch)
    for number, kind in enumerate(kinds):
        index = np.flatnonzero(which == number)
        if len(index):
            out[onto(index, batch)] = changes[kind](batch[onto(index, batch)], spec, draws.take(index))
    return out.clamp_(0.0, 1.0)


def kernel_sides(draws: Draws, largest: int) -> NDArray[np.int64]:
    """Return each image's kernel side: 3, 5 .. the largest."""
    return 3 + 2 * draws.one_of(Column.BLUR_SIDE, (largest - 1) // 2)


def motion_kernels(draws: Draws, largest: int) -> NDArray[np.float32]:
    """Return (N, largest, largest): a straight line of as many pixels as the side, at any angle, summing to 1."""
    kernels = np.zeros((len(draws), largest, largest), dtype=np.float32)
    angles = draws.unit(Column.BLUR_ANGLE) * np.pi
    for number, (side, angle) in enumerate(zip(kernel_sides(draws, largest), angles, strict=True)):
        along = np.arange(side) - side // 2
        longest = max(abs(np.cos(angle)), abs(np.sin(angle)))
        rows = np.rint(along * np.sin(angle) / longest).astype(np.int64)
        columns = np.rint(along * np.cos(angle) / longest).astype(np.int64)
        kernels[number, rows + largest // 2, columns + largest // 2] = 1.0 / side
    return kernels


def gaussian_kernels(draws: Draws, largest: int) -> NDArray[np.float32]:
    """Return (N, largest): a Gaussian cut off at the image's own side, summing to 1."""
    away = np.abs(np.arange(largest) - largest // 2)
    sides = kernel_sides(draws, largest)
    sigmas = np.array([SIGMA[int(side)] for side in sides])
    kernels: NDArray[np.float64] = np.exp(-0.5 * (away / sigmas[:, None]) ** 2) * (away <= sides[:, None] // 2)
    kernels /= kernels.sum(axis=1, keepdims=True)
    return kernels.astype(np.float32)


def _convolved(batch: Tensor, kernels: NDArray[np.float32]) -> Tensor:
    """Return each image convolved with its own kernel (N, rows, columns), the border mirrored.

    Sums of shifted images: a weight of 0 adds exactly nothing, so that no image feels its neighbours' kernels.
    """
    height, width = batch.shape[-2:]
    rows, columns = kernels.shape[1:]
    padded = F.pad(batch, (columns // 2, columns // 2, rows // 2, rows // 2), mode="reflect")
    weights = onto(kernels, batch)
    out = torch.zeros_like(batch)
    for row, column in np.argwhere(kernels.any(axis=0)).tolist():
        part = padded[:, :, row : row + height, column : column + width]
        out += part * weights[:, row, column].view(-1, 1, 1, 1)
    return out


def _motion(batch: Tensor, spec: BlurNoiseSpec, draws: Draws) -> Tensor:
    return _convolved(batch, motion_kernels(draws, spec.motion))


def _gaussian(batch: Tensor, spec: BlurNoiseSpec, draws: Draws) -> Tensor:
    kernels = gaussian_kernels(draws, spec.gaussian)
    return _convolved(_convolved(batch, kernels[:, None, :]), kernels[:, :, None])


def _median(batch: Tensor, spec: BlurNoiseSpec, draws: Draws) -> Tensor:
    sides = kernel_sides(draws, spec.median)
    out = torch.empty_like(batch)
    for side in np.unique(sides).tolist():
        index = onto(np.flatnonzero(sides == side), batch)
        out[index] = median_of(batch[index], side)
    return out


def median_of(batch: Tensor, side: int) -> Tensor:
    """Return each pixel's median over a square, the border mirrored.

    Columns are sorted once for all squares that share them, then the values of equal rank in a square. Of these, what
    has more than half of all values below it or above it is left out, as many on either side; the median is that of
    the rest. Whole images are compared at once.
    """
    height, width = batch.shape[-2:]
    padded = F.pad(batch, (side // 2,) * 4, mode="reflect")
    ranks = _in_order([padded[:, :, row : row + height] for row in range(side)])
    rows = [_in_order([rank[..., at : at + width] for at in range(side)]) for rank in ranks]
    half = (side * side + 1) // 2
    kept = [
        value
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
        if (i + 1) * (j + 1) <= half and (side - i) * (side - j) <= half
    ]
    return _middle(kept)


def _in_order(values: list[Tensor]) -> list[Tensor]:
    """Return the values sorted at each pixel."""
    for last in range(len(values) - 1, 0, -1):
        for low in range(last):
            values[low], values[low + 1] = _sorted(values[low], values[low + 1])
    return values


def _middle(values: list[Tensor]) -> Tensor:
    """Return the median at each pixel, of an odd number of values.

    Forgetful selection: of just over half of the values, the least and the greatest cannot be the median; they are
    dropped, and the next value comes in.
    """
    held = len(values) // 2 + 2
    kept, coming = values[:held], values[held:]
    while len(kept) > 1:
        kept = _without_ends(kept) + coming[:1]
        coming = coming[1:]
    return kept[0]


def _without_ends(values: list[Tensor]) -> list[Tensor]:
    """Return the values without, at each pixel, the least and the greatest."""
    for low in range(len(values) - 1):
        values[low], values[low + 1] = _sorted(values[low], values[low + 1])
    for high in range(len(values) - 2, 0, -1):
        values[high - 1], values[high] = _sorted(values[high - 1], values[high])
    return values[1:-1]


def _sorted(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(first, second), torch.maximum(first, second)


def _noisy(batch: Tensor, spec: BlurNoiseSpec, draws: Draws) -> Tensor:
    least, most = spec.noise
    variances = least + draws.unit(Column.NOISE_VARIANCE) * (most - least)
    scale = onto((np.sqrt(variances) / 255.0).astype(np.float32), batch)
    return batch + normals(draws, batch.shape[1:], batch.device) * scale.view(-1, 1, 1, 1)


@cache
def normal_table() -> NDArray[np.float32]:
    """Return 2^12 values of equal odds whose mean is 0 and variance 1: the standard normal, in steps."""
    values: NDArray[np.float64] = ndtri((np.arange(2**BITS) + 0.5) / 2**BITS)
    return (values / float(values.std())).astype(np.float32)


def normals(draws: Draws, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return (N, *shape) standard normal numbers, from `draws.words_at(Column.NOISE, ..)`, hashed on the device."""
    each = 64 // BITS
    count = int(np.prod(shape))
    words = -(-count // each)
    start = torch.from_numpy(draws.hashes(Column.NOISE).view(np.int64)).to(device)
    steps = torch.arange(1, words + 1, device=device) * _signed(GOLDEN)
    hashes = _mix64(start[:, None] + steps)
    shifts = torch.arange(each, device=device) * BITS
    index = (hashes[:, :, None] >> shifts) & (2**BITS - 1)
    table = torch.from_numpy(normal_table()).to(device)
    return table[index.view(len(draws), -1)[:, :count]].view(-1, *shape)


def _signed(word: int) -> int:
    """Return the signed number with the same 64 bits: torch multiplies those, and wraps around as is meant."""
    return word - 2**64 if word >= 2**63 else word


def _mix64(words: Tensor) -> Tensor:
    """`draws.mix64` for torch: a shift keeps the sign there, so the bits that come in are cut off."""
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _signed(FIRST)
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _signed(SECOND)
    return words ^ ((words >> 31) & (2**33 - 1))


def cutout(batch: Tensor, spec: CutoutSpec, draws: Draws) -> Tensor:
    """Return each image with one black square, cut off at the image's border."""
    inside = [
        _inside(draws.unit(column), n, spec.side)
        for column, n in ((Column.CUTOUT_Y, batch.shape[-2]), (Column.CUTOUT_X, batch.shape[-1]))
    ]
    rows, columns = (onto(item, batch) for item in inside)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, batch)


def _inside(middles: NDArray[np.float64], n: int, share: float) -> NDArray[np.bool_]:
    """Return (N, n): which pixels of an axis lie in the square; middles in 0..1."""
    side = round(share * n)
    first = np.floor(middles * n).astype(np.int64)[:, None] - side // 2
    return (np.arange(n) >= first) & (np.arange(n) < first + side)
