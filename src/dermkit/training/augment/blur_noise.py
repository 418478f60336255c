"""Blur, median filter, noise and cutout of training images, each with random parameters per image.

Images are (B, 3, H, W) float32 in 0..1. Only operations that round each number by itself are used, no reductions whose
order of summation depends on the batch: an image's result must not depend on the others of its batch.
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
"""Noise takes one of 2^12 equally likely values: five of them are cut from each 64-bit hash."""


def blur_or_noise(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    """Return each image with one of the enabled changes (motion blur, median, Gaussian blur, noise), equally likely."""
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
    """Return each image's kernel side, (B,) int64: 3, 5, ... max_size, equally likely."""
    return 3 + 2 * rng.integers(Stream.BLUR_SIZE, (max_size - 1) // 2)


def motion_kernels(rng: CounterRng, max_size: int) -> NDArray[np.float32]:
    """Return (B, max_size, max_size) float32: a line of the image's kernel side at a random angle, summing to 1."""
    kernels = np.zeros((len(rng), max_size, max_size), dtype=np.float32)
    angles = rng.random(Stream.BLUR_ANGLE) * np.pi
    for image, (size, angle) in enumerate(zip(kernel_sizes(rng, max_size), angles, strict=True)):
        offsets = np.arange(size) - size // 2
        # Steps of one pixel along the longer axis, so that the line has no gaps.
        scale = max(abs(np.cos(angle)), abs(np.sin(angle)))
        rows = np.rint(offsets * np.sin(angle) / scale).astype(np.int64)
        columns = np.rint(offsets * np.cos(angle) / scale).astype(np.int64)
        kernels[image, rows + max_size // 2, columns + max_size // 2] = 1.0 / size
    return kernels


def gaussian_kernels(rng: CounterRng, max_size: int) -> NDArray[np.float32]:
    """Return (B, max_size) float32: a Gaussian truncated to the image's kernel side, summing to 1."""
    distances = np.abs(np.arange(max_size) - max_size // 2)
    sizes = kernel_sizes(rng, max_size)
    sigmas = np.array([_SIGMA_OF_SIZE[int(size)] for size in sizes])
    kernels: NDArray[np.float64] = np.exp(-0.5 * (distances / sigmas[:, None]) ** 2) * (
        distances <= sizes[:, None] // 2
    )
    kernels /= kernels.sum(axis=1, keepdims=True)
    return kernels.astype(np.float32)


def _convolve(batch: Tensor, kernels: NDArray[np.float32]) -> Tensor:
    """Return each image convolved with its own kernel, (B, rows, columns), the border mirrored.

    As a sum of shifted images, over all positions where any kernel of the batch is not 0: a weight of 0 adds exactly 0,
    so an image's result does not depend on the others' kernels.
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
    return _convolve(_convolve(batch, kernels[:, None, :]), kernels[:, :, None])  # separable: rows, then columns


def _median_blur(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    sizes = kernel_sizes(rng, spec.median)
    out = torch.empty_like(batch)
    for size in np.unique(sizes).tolist():
        index = to_device_of(np.flatnonzero(sizes == size), batch)
        out[index] = median_filter(batch[index], size)
    return out


def median_filter(batch: Tensor, size: int) -> Tensor:
    """Return each pixel's median over a size x size square, per channel, the border mirrored.

    Each column of the square is sorted (once for all squares that share it), then each row of equal ranks. Itself
    included, a value at rank (i, j) of that table has (i + 1)(j + 1) values not above it and (size - i)(size - j) not
    below it. Where either is more than half of all it is left out, as many on either side, and the median of the rest
    is that of all. Every comparison is one operation on whole images.
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
    """Return the values sorted at each pixel, by bubble sort: a fixed order of comparisons for all pixels."""
    for last in range(len(values) - 1, 0, -1):
        for low in range(last):
            values[low], values[low + 1] = _sort_pair(values[low], values[low + 1])
    return values


def _pixelwise_median(values: list[Tensor]) -> Tensor:
    """Return the median at each pixel, of an odd number of values.

    Forgetful selection: among n / 2 + 2 of the n values, the smallest and the largest cannot be the median of all; they
    are dropped, and the next value comes in.
    """
    n_candidates = len(values) // 2 + 2
    candidates, remaining = values[:n_candidates], values[n_candidates:]
    while len(candidates) > 1:
        candidates = _drop_extremes(candidates) + remaining[:1]
        remaining = remaining[1:]
    return candidates[0]


def _drop_extremes(values: list[Tensor]) -> list[Tensor]:
    """Return the values without the smallest and the largest at each pixel."""
    for low in range(len(values) - 1):
        values[low], values[low + 1] = _sort_pair(values[low], values[low + 1])
    for high in range(len(values) - 2, 0, -1):
        values[high - 1], values[high] = _sort_pair(values[high - 1], values[high])
    return values[1:-1]


def _sort_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(first, second), torch.maximum(first, second)


def _add_noise(batch: Tensor, spec: BlurNoiseSpec, rng: CounterRng) -> Tensor:
    min_variance, max_variance = spec.noise  # in squared grey levels of 0..255
    variances = min_variance + rng.random(Stream.NOISE_VARIANCE) * (max_variance - min_variance)
    scale = to_device_of((np.sqrt(variances) / 255.0).astype(np.float32), batch)
    return batch + standard_normals(rng, batch.shape[1:], batch.device) * scale.view(-1, 1, 1, 1)


@cache
def normal_table() -> NDArray[np.float32]:
    """Return 2^12 equally likely values, (4096,) float32: quantiles of the standard normal, scaled to variance 1."""
    values: NDArray[np.float64] = ndtri((np.arange(2**_NOISE_BITS) + 0.5) / 2**_NOISE_BITS)
    return (values / float(values.std())).astype(np.float32)


def standard_normals(rng: CounterRng, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return (B, *shape) standard normal numbers: `rng.hash_matrix(Stream.NOISE, ...)`, computed on the device.

    A noise value per pixel is too many to hash on the CPU and to copy.
    """
    values_per_word = 64 // _NOISE_BITS
    n_values = int(np.prod(shape))
    n_words = -(-n_values // values_per_word)
    start = torch.from_numpy(rng.hashes(Stream.NOISE).view(np.int64)).to(device)
    # As `CounterRng.hash_matrix`: the image's hash plus multiples of splitmix64's increment, mixed.
    steps = torch.arange(1, n_words + 1, device=device) * _to_signed(GOLDEN_GAMMA)
    hashes = _mix64(start[:, None] + steps)
    shifts = torch.arange(values_per_word, device=device) * _NOISE_BITS
    index = (hashes[:, :, None] >> shifts) & (2**_NOISE_BITS - 1)
    table = torch.from_numpy(normal_table()).to(device)
    return table[index.view(len(rng), -1)[:, :n_values]].view(-1, *shape)


def _to_signed(word: int) -> int:
    """Return the int64 with the same 64 bits: products of int64 wrap around to the bits of uint64's."""
    return word - 2**64 if word >= 2**63 else word


def _mix64(words: Tensor) -> Tensor:
    """Return `random_numbers.mix64` of int64 words: torch's shift repeats the sign bit, so those bits are masked."""
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _to_signed(MIX_MULTIPLIER_1)
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _to_signed(MIX_MULTIPLIER_2)
    return words ^ ((words >> 31) & (2**33 - 1))


def cutout(batch: Tensor, spec: CutoutSpec, rng: CounterRng) -> Tensor:
    """Return each image with one black square, clipped at the border (cutout, DeVries and Taylor 2017)."""
    axis_masks = [
        _square_mask(rng.random(stream), n, spec.side)
        for stream, n in ((Stream.CUTOUT_Y, batch.shape[-2]), (Stream.CUTOUT_X, batch.shape[-1]))
    ]
    rows, columns = (to_device_of(mask, batch) for mask in axis_masks)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, batch)


def _square_mask(centres: NDArray[np.float64], n: int, fraction: float) -> NDArray[np.bool_]:
    """Return (B, n) bool: which of an axis's n pixels lie in the square; centres: (B,) in 0..1."""
    length = round(fraction * n)
    start = np.floor(centres * n).astype(np.int64)[:, None] - length // 2
    return (np.arange(n) >= start) & (np.arange(n) < start + length)
