"""Batched augmentation whose random numbers come from (seed, epoch, image) alone.

No generator is drawn from: every number is a hash of what it is for. So batch size, order, workers, devices and a
resume in the middle of an epoch change nothing about how an image is changed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dermkit.recipe import AugmentSpec

Keys = Sequence[int] | NDArray[np.uint64]

FLIP_X, FLIP_Y, ROTATE, SHIFT_X, SHIFT_Y, ZOOM, BRIGHTNESS, CONTRAST, SATURATION = range(9)
"""One column of random numbers per change, so that switching one change on leaves the others' draws alone."""

ORDER = 100
"""The column that `epoch_order` draws from."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as torchvision's colour changes use."""

_PADDING = {"reflect": "reflection", "black": "zeros", "edge": "border"}
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64


def image_key(image_id: str, copy: int = 0) -> int:
    """Return a stable 64-bit number for an image; `copy` tells the grown copies of one image apart."""
    return int.from_bytes(hashlib.sha256(f"{image_id}\0{copy}".encode()).digest()[:8], "little")


def epoch_order(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of n images in an epoch, from (seed, epoch) alone and the same in every NumPy version."""
    ranks = _hash(np.arange(n, dtype=np.uint64), seed=seed, epoch=epoch, column=ORDER)
    return np.argsort(ranks, kind="stable").astype(np.int64)


def augment_batch(batch: Tensor, spec: AugmentSpec, *, seed: int, epoch: int, keys: Keys) -> Tensor:
    """Change each image of a batch at random; an image's changes depend on (seed, epoch, its key) alone.

    batch: (N, 3, H, W) float32 in 0..1, on any device; the result has the same form, clamped to 0..1. keys: one
    per image, from `image_key`. With a spec of zeros the batch itself is returned. First one bilinear affine step
    (flips, rotation, shift and zoom together), then brightness, contrast about the image's mean grey, and
    saturation, without clamping between them.
    """
    if len(keys) != len(batch):
        raise ValueError(f"{len(keys)} keys for {len(batch)} images")
    draws = _Draws(np.asarray(keys, dtype=np.uint64), seed, epoch)
    coloured = _colour(_move(batch, spec, draws), spec, draws)
    return coloured if coloured is batch else coloured.clamp_(0.0, 1.0)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit moves half of the output bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _hash(words: NDArray[np.uint64], *, seed: int, epoch: int, column: int) -> NDArray[np.uint64]:
    """Return one 64-bit hash per word. Array arithmetic wraps around silently, which is what is meant."""
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, column):
        state = _mix(state + np.uint64((part * _GOLDEN + _GOLDEN) % _WORD))
    return _mix(state + _mix(words + np.uint64(_GOLDEN)))


@dataclass(frozen=True)
class _Draws:
    """The random numbers of one batch in one epoch: a column of them per change, an entry per image."""

    words: NDArray[np.uint64]
    seed: int
    epoch: int

    def uniform(self, column: int, spread: float) -> NDArray[np.float64]:
        """Return one number per image, uniform in -spread..spread."""
        hashes = _hash(self.words, seed=self.seed, epoch=self.epoch, column=column)
        unit = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (2.0 * unit - 1.0) * spread

    def sign(self, column: int, wanted: bool) -> NDArray[np.float64]:
        """Return -1 for a flip and 1 for none, at even odds; all 1 where flips are not wanted."""
        return np.where(self.uniform(column, 1.0) < 0.0, -1.0 if wanted else 1.0, 1.0)


def _move(batch: Tensor, spec: AugmentSpec, draws: _Draws) -> Tensor:
    sign_x = draws.sign(FLIP_X, spec.horizontal_flip)
    sign_y = draws.sign(FLIP_Y, spec.vertical_flip)
    if spec.rotate or spec.shift or spec.zoom:
        theta = _theta(batch, spec, draws, sign_x, sign_y)
        grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
        return F.grid_sample(batch, grid, mode="bilinear", padding_mode=_PADDING[spec.fill], align_corners=False)
    if spec.horizontal_flip:  # flips alone need no interpolation, and so lose nothing
        batch = torch.where(_column(sign_x < 0, batch), batch.flip(-1), batch)
    if spec.vertical_flip:
        batch = torch.where(_column(sign_y < 0, batch), batch.flip(-2), batch)
    return batch


def _column(values: NDArray[np.generic], batch: Tensor) -> Tensor:
    """Return one value per image, shaped to multiply a batch and on its device."""
    return torch.from_numpy(values).to(batch.device).view(-1, 1, 1, 1)


def _theta(
    batch: Tensor,
    spec: AugmentSpec,
    draws: _Draws,
    sign_x: NDArray[np.float64],
    sign_y: NDArray[np.float64],
) -> Tensor:
    """Return (N, 2, 3): for each output position, where it is read from, in units of -1..1 over the image."""
    height, width = batch.shape[-2:]
    angle = np.deg2rad(draws.uniform(ROTATE, spec.rotate))
    scale = 1.0 + draws.uniform(ZOOM, spec.zoom)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    theta = np.empty((len(batch), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = cosine * sign_x, -sine * sign_x * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sine * sign_y * width / height, cosine * sign_y
    theta[:, 0, 2] = 2.0 * draws.uniform(SHIFT_X, spec.shift)
    theta[:, 1, 2] = 2.0 * draws.uniform(SHIFT_Y, spec.shift)
    return torch.from_numpy(theta).to(batch.device)


def _colour(batch: Tensor, spec: AugmentSpec, draws: _Draws) -> Tensor:
    """All three changes are linear in the pixel and its grey, so that they make one step: a x + b grey + c."""
    if not (spec.brightness or spec.contrast or spec.saturation):
        return batch
    brightness = 1.0 + draws.uniform(BRIGHTNESS, spec.brightness)
    contrast = 1.0 + draws.uniform(CONTRAST, spec.contrast)
    saturation = 1.0 + draws.uniform(SATURATION, spec.saturation)
    gain = (brightness * contrast).astype(np.float32)
    share = saturation.astype(np.float32)
    changed = batch * _column(gain * share, batch)
    if not (spec.contrast or spec.saturation):
        return changed
    red, green, blue = LUMA
    grey = batch[:, 0:1] * red + batch[:, 1:2] * green + batch[:, 2:3] * blue
    if spec.saturation:
        changed += grey * _column(gain * (1.0 - share), batch)
    if spec.contrast:
        # Rows, then the column of rows: torch splits neither sum by batch size, so batches agree bit for bit.
        mean = grey.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        changed += mean * _column((brightness * (1.0 - contrast)).astype(np.float32), batch)
    return changed
