"""How a training image's colours change: brightness, contrast, saturation, hue, and local contrast (CLAHE).

Images are (N, 3, H, W) float32 in 0..1. As in `geometry`, only operations whose rounding is fixed for each number.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dermkit.recipes.augmentation import AugmentSpec, ClaheSpec, HsvSpec
from dermkit.training.augment.geometry import column, onto
from dermkit.training.augment.random_numbers import Column, Draws

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as torchvision's colour changes use."""

LEVELS = 256
"""Grey levels that CLAHE counts."""

_TINY = 1e-12
"""In place of a divisor of 0 whose dividend is 0 too."""


def grey_of(batch: Tensor) -> Tensor:
    """Return (N, 1, H, W): the weighted mean of the channels."""
    red, green, blue = LUMA
    return batch[:, 0:1] * red + batch[:, 1:2] * green + batch[:, 2:3] * blue


def tone(batch: Tensor, spec: AugmentSpec, draws: Draws) -> Tensor:
    """Return brightness, contrast about the image's mean grey, and saturation changed, not clamped.

    All three are linear in the pixel and its grey, so that they make one step: a x + b grey + c.
    """
    if not (spec.brightness or spec.contrast or spec.saturation):
        return batch

    def factor(column: Column, among: Column, spread: float) -> NDArray[np.float64]:
        return 1.0 + np.where(draws.chosen(among, spec.toned), draws.uniform(column, spread), 0.0)

    brightness = factor(Column.BRIGHTNESS, Column.BRIGHTENED, spec.brightness)
    contrast = factor(Column.CONTRAST, Column.CONTRASTED, spec.contrast)
    share = factor(Column.SATURATION, Column.SATURATED, spec.saturation).astype(np.float32)
    gain = (brightness * contrast).astype(np.float32)
    changed = batch * column(gain * share, batch)
    if not (spec.contrast or spec.saturation):
        return changed
    grey = grey_of(batch)
    if spec.saturation:
        changed += grey * column(gain * (1.0 - share), batch)
    if spec.contrast:
        # Rows, then the column of rows: torch splits neither sum by batch size, so batches agree bit for bit.
        mean = grey.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        changed += mean * column((brightness * (1.0 - contrast)).astype(np.float32), batch)
    return changed


def shift_hsv(batch: Tensor, spec: HsvSpec, draws: Draws) -> Tensor:
    """Return the images with hue, saturation and value shifted, in 0..1."""
    hue, saturation, value = to_hsv(batch)
    hue += column((draws.uniform(Column.HSV_HUE, spec.hue) / 60.0).astype(np.float32), batch)
    if spec.saturation:
        more = draws.uniform(Column.HSV_SATURATION, spec.saturation).astype(np.float32)
        coloured = (saturation / _TINY).clamp_(max=1.0)
        saturation = (saturation + column(more, batch)).clamp_(0.0, 1.0).mul_(coloured)
    if spec.value:
        lighter = draws.uniform(Column.HSV_VALUE, spec.value).astype(np.float32)
        value = (value + column(lighter, batch)).clamp_(0.0, 1.0)
    return from_hsv(hue, saturation, value)


def to_hsv(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in -3..3 sixths of the circle, saturation and value in 0..1, each (N, 1, H, W); the hue of grey is 0.

    From red to cyan the hue is the same on either side of red, but for its sign: one sum of differences instead of a
    choice between three cases, which is six times as slow.
    """
    red, green, blue = batch[:, 0:1], batch[:, 1:2], batch[:, 2:3]
    more, less = torch.maximum(green, blue), torch.minimum(green, blue)
    value = torch.maximum(red, more)
    spread = value - torch.minimum(red, less)
    away = (more - less) + (more - red).clamp_(min=0.0) + (less - red).clamp_(min=0.0).mul_(2.0)
    hue = torch.copysign(away.div_(spread.clamp(min=_TINY)), green - blue)
    return hue, spread / value.clamp(min=_TINY), value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return (N, 3, H, W) of hue in sixths of the circle, any number of times round, saturation and value."""
    depth = value * saturation
    out = torch.empty((len(hue), 3, *hue.shape[2:]), device=hue.device)
    for channel, start in enumerate((5.0, 3.0, 1.0)):  # how far red, green and blue lie from where they are full
        at = hue + start
        at -= torch.floor(at * (1 / 6)).mul_(6.0)
        away = torch.minimum(at, 4.0 - at).clamp_(0.0, 1.0)
        out[:, channel : channel + 1] = value - away.mul_(depth)
    return out


def clahe(batch: Tensor, spec: ClaheSpec, draws: Draws) -> Tensor:
    """Return the images with their luma equalised tile by tile, in 0..1; what is added is the same in each channel.

    The counting is OpenCV's: the image is continued by reflection to whole tiles, counts over the limit are spread
    over all levels, and a pixel's curve is interpolated between those of the four nearest tiles.
    """
    limits = 1.0 + (draws.unit(Column.CLAHE_CLIP) * (spec.clip - 1.0))
    levels = (grey_of(batch)[:, 0] * (LEVELS - 1) + 0.5).floor_().clamp_(0, LEVELS - 1).long()
    curves = _curves(levels, spec.tiles, limits)
    height, width = levels.shape[1:]
    top, below, down = _between(height, spec.tiles, batch.device)
    left, right, along = _between(width, spec.tiles, batch.device)
    image = torch.arange(len(batch), device=batch.device)[:, None, None] * spec.tiles

    def at(row: Tensor, column: Tensor) -> Tensor:
        tile = (image + row[None, :, None]) * spec.tiles + column[None, None, :]
        return curves.take(tile * LEVELS + levels)

    upper = at(top, left) * (1.0 - along) + at(top, right) * along
    lower = at(below, left) * (1.0 - along) + at(below, right) * along
    equal = upper * (1.0 - down)[:, None] + lower * down[:, None]
    return (batch + (equal - levels / (LEVELS - 1))[:, None]).clamp_(0.0, 1.0)


def _between(n: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each pixel of an axis, the tiles whose middles it lies between, and its share of the second."""
    at = (np.arange(n) / -(-n // tiles) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    pair = np.clip(first, 0, tiles - 1), np.clip(first + 1, 0, tiles - 1)
    share = (at - first).astype(np.float32)
    return tuple(torch.from_numpy(item).to(device) for item in (*pair, share))  # type: ignore[return-value]


def _continued(n: int, tiles: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for an axis continued by reflection to whole tiles, the pixel at each place and its tile."""
    side = -(-n // tiles)
    places = np.arange(side * tiles)
    around = np.abs((places + n - 1) % max(2 * n - 2, 1) - (n - 1))
    return around, places // side


def _curves(levels: Tensor, tiles: int, limits: NDArray[np.float64]) -> Tensor:
    """Return (N * tiles * tiles * LEVELS) float32 in 0..1: what a level becomes in a tile. Counted in integers."""
    (rows, row_tiles), (columns, column_tiles) = (_continued(n, tiles) for n in levels.shape[1:])
    whole = levels[:, onto(rows, levels)][:, :, onto(columns, levels)]
    tile = onto(row_tiles[:, None] * tiles + column_tiles, levels)
    image = torch.arange(len(levels), device=levels.device)[:, None, None] * (tiles * tiles)
    places = ((image + tile) * LEVELS + whole).flatten()
    counts = torch.bincount(places, minlength=len(levels) * tiles * tiles * LEVELS).view(len(levels), -1, LEVELS)
    area = len(rows) * len(columns) // (tiles * tiles)
    limit = onto(np.maximum(limits * area // LEVELS, 1.0).astype(np.int64), levels).view(-1, 1, 1)
    over = (counts - limit).clamp_(min=0).sum(dim=2, keepdim=True)
    counts = torch.minimum(counts, limit) + over // LEVELS
    left = over % LEVELS
    step = (LEVELS // left.clamp(min=1)).clamp_(min=1)
    level = torch.arange(LEVELS, device=levels.device)
    counts += (level % step == 0) & (level // step < left)
    return (counts.cumsum(dim=2).float() / area).flatten()
