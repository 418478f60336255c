"""Colour augmentation: brightness, contrast, saturation, hue, and local contrast (CLAHE), random per image.

Images are (B, 3, H, W) float32 in 0..1. Only operations that round each number by itself are used, no reductions whose
order of summation depends on the batch: an image's result must not depend on the others of its batch.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dermkit.recipes.augmentation import AugmentSpec, ClaheSpec, HsvSpec
from dermkit.training.augment.geometry import broadcast_per_image, to_device_of
from dermkit.training.augment.random_numbers import CounterRng, Stream

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as torchvision's colour changes use."""

_N_LEVELS = 256
"""Grey levels of CLAHE's histograms."""

_EPSILON = 1e-12
"""Replaces a divisor of 0; its dividend is 0 too, so the quotient is 0."""


def to_grey(batch: Tensor) -> Tensor:
    """Return grey, (B, 1, H, W): the weighted mean of the channels."""
    red, green, blue = _LUMA_WEIGHTS
    return batch[:, 0:1] * red + batch[:, 1:2] * green + batch[:, 2:3] * blue


def jitter_colour(batch: Tensor, spec: AugmentSpec, rng: CounterRng) -> Tensor:
    """Return images with brightness, contrast about the image's mean grey, and saturation changed; not clamped.

    With factors b, c, s of a pixel x, its grey g and the image's mean grey m: x s + g (1 - s), then c times that plus
    m (1 - c), then b times all. That is one linear step, b c s x + b c (1 - s) g + b (1 - c) m.
    """
    if not (spec.brightness or spec.contrast or spec.saturation):
        return batch

    def factor(stream: Stream, apply_stream: Stream, spread: float) -> NDArray[np.float64]:
        return 1.0 + np.where(rng.bernoulli(apply_stream, spec.p_colour), rng.uniform(stream, spread), 0.0)

    brightness = factor(Stream.BRIGHTNESS, Stream.APPLY_BRIGHTNESS, spec.brightness)
    contrast = factor(Stream.CONTRAST, Stream.APPLY_CONTRAST, spec.contrast)
    saturation = factor(Stream.SATURATION, Stream.APPLY_SATURATION, spec.saturation).astype(np.float32)
    gain = (brightness * contrast).astype(np.float32)
    adjusted = batch * broadcast_per_image(gain * saturation, batch)
    if not (spec.contrast or spec.saturation):
        return adjusted
    grey = to_grey(batch)
    if spec.saturation:
        adjusted += grey * broadcast_per_image(gain * (1.0 - saturation), batch)
    if spec.contrast:
        # Mean over rows, then over columns: torch splits neither sum by batch size, so that images of batches of any
        # size agree bit for bit.
        mean = grey.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        adjusted += mean * broadcast_per_image((brightness * (1.0 - contrast)).astype(np.float32), batch)
    return adjusted


def shift_hsv(batch: Tensor, spec: HsvSpec, rng: CounterRng) -> Tensor:
    """Return the images with hue, saturation and value shifted, in 0..1."""
    hue, saturation, value = to_hsv(batch)
    hue += broadcast_per_image((rng.uniform(Stream.HSV_HUE, spec.hue) / 60.0).astype(np.float32), batch)
    if spec.saturation:
        saturation_shift = rng.uniform(Stream.HSV_SATURATION, spec.saturation).astype(np.float32)
        colour_mask = (saturation / _EPSILON).clamp_(max=1.0)  # 0 for grey, which has no hue to saturate, else 1
        saturation = (saturation + broadcast_per_image(saturation_shift, batch)).clamp_(0.0, 1.0).mul_(colour_mask)
    if spec.value:
        value_shift = rng.uniform(Stream.HSV_VALUE, spec.value).astype(np.float32)
        value = (value + broadcast_per_image(value_shift, batch)).clamp_(0.0, 1.0)
    return from_hsv(hue, saturation, value)


def to_hsv(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in -3..3 sixths of the circle, saturation and value in 0..1, each (N, 1, H, W); the hue of grey is 0.

    Hue is symmetric about red: its size follows from differences of channels, its sign is that of green - blue. That is
    six times as fast as the usual choice between three cases.
    """
    red, green, blue = batch[:, 0:1], batch[:, 1:2], batch[:, 2:3]
    max_green_blue, min_green_blue = torch.maximum(green, blue), torch.minimum(green, blue)
    value = torch.maximum(red, max_green_blue)
    chroma = value - torch.minimum(red, min_green_blue)
    hue_distance = (
        (max_green_blue - min_green_blue)
        + (max_green_blue - red).clamp_(min=0.0)
        + (min_green_blue - red).clamp_(min=0.0).mul_(2.0)
    )
    hue = torch.copysign(hue_distance.div_(chroma.clamp(min=_EPSILON)), green - blue)
    return hue, chroma / value.clamp(min=_EPSILON), value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return (B, 3, H, W) of hue in sixths of the circle (any number of turns), saturation and value, (B, 1, H, W)."""
    chroma = value * saturation
    out = torch.empty((len(hue), 3, *hue.shape[2:]), device=hue.device)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):  # the standard formula f(n) of HSV, n = 5, 3, 1
        position = hue + offset
        position -= torch.floor(position * (1 / 6)).mul_(6.0)
        intensity = torch.minimum(position, 4.0 - position).clamp_(0.0, 1.0)
        out[:, channel : channel + 1] = value - intensity.mul_(chroma)
    return out


def clahe(batch: Tensor, spec: ClaheSpec, rng: CounterRng) -> Tensor:
    """Return images with grey equalised tile by tile (CLAHE, Zuiderveld 1994), in 0..1; all channels change alike.

    The histograms are OpenCV's: the image is extended by reflection to whole tiles, counts above the clip limit are
    spread over all levels, and a pixel's curve is interpolated between those of the four nearest tiles. Grey alone is
    equalised, and its change is added to each channel, so that colours keep their differences.
    """
    limits = 1.0 + (rng.random(Stream.CLAHE_CLIP) * (spec.clip - 1.0))
    levels = (to_grey(batch)[:, 0] * (_N_LEVELS - 1) + 0.5).floor_().clamp_(0, _N_LEVELS - 1).long()
    curves = _tile_curves(levels, spec.tiles, limits)
    height, width = levels.shape[1:]
    top_tile, bottom_tile, row_weight = _neighbour_tiles(height, spec.tiles, batch.device)
    left_tile, right_tile, column_weight = _neighbour_tiles(width, spec.tiles, batch.device)
    image_offset = torch.arange(len(batch), device=batch.device)[:, None, None] * spec.tiles

    def curve_values(row: Tensor, column: Tensor) -> Tensor:
        tile = (image_offset + row[None, :, None]) * spec.tiles + column[None, None, :]
        return curves.take(tile * _N_LEVELS + levels)

    upper = (
        curve_values(top_tile, left_tile) * (1.0 - column_weight)
        + curve_values(top_tile, right_tile) * column_weight
    )
    lower = (
        curve_values(bottom_tile, left_tile) * (1.0 - column_weight)
        + curve_values(bottom_tile, right_tile) * column_weight
    )
    equalised = upper * (1.0 - row_weight)[:, None] + lower * row_weight[:, None]
    return (batch + (equalised - levels / (_N_LEVELS - 1))[:, None]).clamp_(0.0, 1.0)


def _neighbour_tiles(n: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of an axis's n pixels the two tiles whose centres it lies between, and the second's weight."""
    position = (np.arange(n) / -(-n // tiles) - 0.5).astype(np.float32)
    first_tile = np.floor(position).astype(np.int64)
    tile_pair = np.clip(first_tile, 0, tiles - 1), np.clip(first_tile + 1, 0, tiles - 1)
    weight = (position - first_tile).astype(np.float32)
    return tuple(torch.from_numpy(array).to(device) for array in (*tile_pair, weight))  # type: ignore[return-value]


def _reflect_to_tiles(n: int, tiles: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for an axis extended by reflection to whole tiles, each position's source pixel and tile."""
    tile_size = -(-n // tiles)
    positions = np.arange(tile_size * tiles)
    source_pixels = np.abs((positions + n - 1) % max(2 * n - 2, 1) - (n - 1))
    return source_pixels, positions // tile_size


def _tile_curves(levels: Tensor, tiles: int, limits: NDArray[np.float64]) -> Tensor:
    """Return (B * tiles * tiles * 256,) float32 in 0..1: what each level becomes in each tile.

    levels: (B, H, W) int64, 0 to 255. limits: (B,) clip limits, in multiples of a level's mean count. Histograms are
    integers, so no order of summation matters.
    """
    (rows, row_tiles), (columns, column_tiles) = (_reflect_to_tiles(n, tiles) for n in levels.shape[1:])
    padded_levels = levels[:, to_device_of(rows, levels)][:, :, to_device_of(columns, levels)]
    tile = to_device_of(row_tiles[:, None] * tiles + column_tiles, levels)
    image_offset = torch.arange(len(levels), device=levels.device)[:, None, None] * (tiles * tiles)
    bins = ((image_offset + tile) * _N_LEVELS + padded_levels).flatten()
    counts = torch.bincount(bins, minlength=len(levels) * tiles * tiles * _N_LEVELS).view(
        len(levels), -1, _N_LEVELS
    )
    area = len(rows) * len(columns) // (tiles * tiles)  # pixels of a tile
    limit = to_device_of(np.maximum(limits * area // _N_LEVELS, 1.0).astype(np.int64), levels).view(-1, 1, 1)
    excess = (counts - limit).clamp_(min=0).sum(dim=2, keepdim=True)
    counts = torch.minimum(counts, limit) + excess // _N_LEVELS
    remainder = excess % _N_LEVELS  # what cannot be spread evenly goes to every step-th level, as in OpenCV
    step = (_N_LEVELS // remainder.clamp(min=1)).clamp_(min=1)
    level = torch.arange(_N_LEVELS, device=levels.device)
    counts += (level % step == 0) & (level // step < remainder)
    return (counts.cumsum(dim=2).float() / area).flatten()
