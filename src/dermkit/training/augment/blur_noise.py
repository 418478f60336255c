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
from dermkit.training.augment.geometry import to_device_of
from dermkit.training.augment.random_numbers import (
    GOLDEN_GAMMA,
    MIX_MULTIPLIER_1,
    MIX_MULTIPLIER_2,
    CounterRng,
    Stream,
)

_SIGMA_OF_SIZE = {3: 0.8, 5: 1.1, 7: 1.4}
"""Gaussian blur's sigma for a kernel side, as OpenCV derives it: 0.3 ((side - 1) / 2 - 1) + 0.8."""

_NOISE_BITS = 12
"""Noise is drawn from 2^12 values of equal odds: the fifth part of a 64-bit hash each."""


def blur_or_noise(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    """Return each image blurred, median-filtered or made noisy: one of those that are on. In 0..1."""
    kinds = [kind for kind in ("motion", "median", "gaussian") if getattr(spec, kind)]
    kinds += ["noise"] if spec.noise[1] else []
    kind_index = rng.integers(Stream.BLUR_NOISE_KIND, len(kinds))
    functions = {"motion": _motion_blur, "median": _median_blur, "gaussian": _gaussian_blur, "noise": _add_noise}
    out = torch.empty_like(batch)
    for number, kind in enumerate(kinds):
        index = np.flatnonzero(kind_index == number)
        if len(index):
            out[to_device_of(index, batch)] = functions[kind](
                batch[to_device_of(index, batch)], spec, rng.select(index)
            )
    return out.clamp_(0.0, 1.0)


def kernel_sizes(rng: CounterRng, max_size: int) -> NDArray[np.int64]:
    """Return each image's kernel side: 3, 5 .. the largest."""
    return 3 + 2 * rng.integers(Stream.BLUR_SIZE, (max_size - 1) // 2)


def motion_kernels(rng: CounterRng, max_size: int) -> NDArray[np.float32]:
    """Return (N, largest, largest): a straight line of as many pixels as the side, at any angle, summing to 1."""
    kernels = np.zeros((len(rng), max_size, max_size), dtype=np.float32)
    angles = rng.random(Stream.BLUR_ANGLE) * np.pi
    for image, (size, angle) in enumerate(zip(kernel_sizes(rng, max_size), angles, strict=True)):
        offsets = np.arange(size) - size // 2
        scale = max(abs(np.cos(angle)), abs(np.sin(angle)))
        rows = np.rint(offsets * np.sin(angle) / scale).astype(np.int64)
        columns = np.rint(offsets * np.cos(angle) / scale).astype(np.int64)
        kernels[image, rows + max_size // 2, columns + max_size // 2] = 1.0 / size
    return kernels


def gaussian_kernels(rng: CounterRng, max_size: int) -> NDArray[np.float32]:
    """Return (N, largest): a Gaussian cut off at the image's own side, summing to 1."""
    distances = np.abs(np.arange(max_size) - max_size // 2)
    sizes = kernel_sizes(rng, max_size)
    sigmas = np.array([_SIGMA_OF_SIZE[int(size)] for size in sizes])
    kernels: NDArray[np.float64] = np.exp(-0.5 * (distances / sigmas[:, None]) ** 2) * (
        distances <= sizes[:, None] // 2
    )
    kernels /= kernels.sum(axis=1, keepdims=True)
    return kernels.astype(np.float32)


def _convolve(batch: Tensor, kernels: NDArray[np.float32]) -> Tensor:
    """Return each image convolved with its own kernel (N, rows, columns), the border mirrored.

    Sums of shifted images: a weight of 0 adds exactly nothing, so that no image feels its neighbours' kernels.
    """
    height, width = batch.shape[-2:]
    rows, columns = kernels.shape[1:]
    padded = F.pad(batch, (columns // 2, columns // 2, rows // 2, rows // 2), mode="reflect")
    weights = to_device_of(kernels, batch)
    out = torch.zeros_like(batch)
    for row, column in np.argwhere(kernels.any(axis=0)).tolist():
        window = padded[:, :, row : row + height, column : column + width]
        out += window * weights[:, row, column].view(-1, 1, 1, 1)
    return out


def _motion_blur(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    return _convolve(batch, motion_kernels(rng, spec.motion))


def _gaussian_blur(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    kernels = gaussian_kernels(rng, spec.gaussian)
    return _convolve(_convolve(batch, kernels[:, None, :]), kernels[:, :, None])


def _median_blur(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    sizes = kernel_sizes(rng, spec.median)
    out = torch.empty_like(batch)
    for size in np.unique(sizes).tolist():
        index = to_device_of(np.flatnonzero(sizes == size), batch)
        out[index] = median_filter(batch[index], size)
    return out


def median_filter(batch: Tensor, size: int) -> Tensor:
    """Return each pixel's median over a square, the border mirrored.

    Columns are sorted once for all squares that share them, then the values of equal rank in a square. Of these, what
    has more than half of all values below it or above it is left out, as many on either side; the median is that of
    the rest. Whole images are compared at once.
    """
    height, width = batch.shape[-2:]
    padded = F.pad(batch, (size // 2,) * 4, mode="reflect")
    ranks = _sort_pixelwise([padded[:, :, row : row + height] for row in range(size)])
    rows = [_sort_pixelwise([rank[..., column : column + width] for column in range(size)]) for rank in ranks]
    half = (size * size + 1) // 2
    candidates = [
        value
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
        if (i + 1) * (j + 1) <= half and (size - i) * (size - j) <= half
    ]
    return _pixelwise_median(candidates)


def _sort_pixelwise(values: list[Tensor]) -> list[Tensor]:
    """Return the values sorted at each pixel."""
    for last in range(len(values) - 1, 0, -1):
        for low in range(last):
            values[low], values[low + 1] = _sort_pair(values[low], values[low + 1])
    return values


def _pixelwise_median(values: list[Tensor]) -> Tensor:
    """Return the median at each pixel, of an odd number of values.

    Forgetful selection: of just over half of the values, the least and the greatest cannot be the median; they are
    dropped, and the next value comes in.
    """
    n_candidates = len(values) // 2 + 2
    candidates, remaining = values[:n_candidates], values[n_candidates:]
    while len(candidates) > 1:
        candidates = _drop_extremes(candidates) + remaining[:1]
        remaining = remaining[1:]
    return candidates[0]


def _drop_extremes(values: list[Tensor]) -> list[Tensor]:
    """Return the values without, at each pixel, the least and the greatest."""
    for low in range(len(values) - 1):
        values[low], values[low + 1] = _sort_pair(values[low], values[low + 1])
    for high in range(len(values) - 2, 0, -1):
        values[high - 1], values[high] = _sort_pair(values[high - 1], values[high])
    return values[1:-1]


def _sort_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(first, second), torch.maximum(first, second)


def _add_noise(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    min_variance, max_variance = spec.noise
    variances = min_variance + rng.random(Stream.NOISE_VARIANCE) * (max_variance - min_variance)
    scale = to_device_of((np.sqrt(variances) / 255.0).astype(np.float32), batch)
    return batch + standard_normals(rng, batch.shape[1:], batch.device) * scale.view(-1, 1, 1, 1)


@cache
def normal_table() -> NDArray[np.float32]:
    """Return 2^12 values of equal odds whose mean is 0 and variance 1: the standard normal, in steps."""
    values: NDArray[np.float64] = ndtri((np.arange(2**_NOISE_BITS) + 0.5) / 2**_NOISE_BITS)
    return (values / float(values.std())).astype(np.float32)


def standard_normals(rng: CounterRng, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return (N, *shape) standard normal numbers, from `rng.words_at(Column.NOISE, ..)`, hashed on the device."""
    values_per_word = 64 // _NOISE_BITS
    n_values = int(np.prod(shape))
    n_words = -(-n_values // values_per_word)
    start = torch.from_numpy(rng.hashes(Stream.NOISE).view(np.int64)).to(device)
    steps = torch.arange(1, n_words + 1, device=device) * _to_signed(GOLDEN_GAMMA)
    hashes = _mix64(start[:, None] + steps)
    shifts = torch.arange(values_per_word, device=device) * _NOISE_BITS
    index = (hashes[:, :, None] >> shifts) & (2**_NOISE_BITS - 1)
    table = torch.from_numpy(normal_table()).to(device)
    return table[index.view(len(rng), -1)[:, :n_values]].view(-1, *shape)


def _to_signed(word: int) -> int:
    """Return the signed number with the same 64 bits: torch multiplies those, and wraps around as is meant."""
    return word - 2**64 if word >= 2**63 else word


def _mix64(words: Tensor) -> Tensor:
    """`draws.mix64` for torch: a shift keeps the sign there, so the bits that come in are cut off."""
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _to_signed(MIX_MULTIPLIER_1)
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _to_signed(MIX_MULTIPLIER_2)
    return words ^ ((words >> 31) & (2**33 - 1))


def cutout(batch: Tensor, spec: CutoutSpec, rng: CounterRng) -> Tensor:
    """Return each image with one black square, cut off at the image's border."""
    axis_masks = [
        _square_mask(rng.random(stream), n, spec.side)
        for stream, n in ((Stream.CUTOUT_Y, batch.shape[-2]), (Stream.CUTOUT_X, batch.shape[-1]))
    ]
    rows, columns = (to_device_of(mask, batch) for mask in axis_masks)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, batch)


def _square_mask(centres: NDArray[np.float64], n: int, fraction: float) -> NDArray[np.bool_]:
    """Return (N, n): which pixels of an axis lie in the square; middles in 0..1."""
    length = round(fraction * n)
    start = np.floor(centres * n).astype(np.int64)[:, None] - length // 2
    return (np.arange(n) >= start) & (np.arange(n) < start + length)
