"""Batched augmentation whose random numbers come from (seed, epoch, image) alone.

No generator is drawn from: every number is a hash of what it is for (`draws`). So batch size, order, workers, devices
and a resume in the middle of an epoch change nothing about how an image is changed.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dermkit.recipes.augmentation import AugmentSpec
from dermkit.training.augment.blur_noise import blur_or_noise, cutout
from dermkit.training.augment.colour import clahe, shift_hsv, tone
from dermkit.training.augment.geometry import move
from dermkit.training.augment.random_numbers import Column, Draws, Keys, balanced_order, epoch_order, image_key

__all__ = ["Keys", "augment_batch", "balanced_order", "batch_from_pixels", "epoch_order", "image_key"]

AUGMENTATION = 1
"""Raise it whenever an image is changed otherwise than before: features that older versions kept are then not found."""

_CACHED = 5 * 2**19
"""Bytes of float32 pixels that are worked on at once on a CPU: what stays in its cache is worked on sooner."""


def augment_batch(batch: Tensor, spec: AugmentSpec, *, seed: int, epoch: int, keys: Keys) -> Tensor:
    """Change each image of a batch at random; an image's changes depend on (seed, epoch, its key) alone.

    batch: (N, 3, H, W) float32 in 0..1, on any device; the result has the same form, clamped to 0..1, and the batch
    itself is left as it is. keys: one per image, from `image_key`. Where the spec changes nothing the batch itself is
    returned. The order: moves and distortion in one bilinear step; brightness, contrast about the image's mean grey
    and saturation, without clamping between them; hue; blur or noise; CLAHE; cutout.
    """
    draws = _draws(keys, len(batch), seed, epoch)
    if not changes_anything(spec):
        return batch
    out = torch.empty_like(batch)
    for part in _parts(batch.shape, batch.device):
        out[part] = _changed(batch[part].contiguous(), spec, draws.take(part))
    return out


def batch_from_pixels(
    pixels: Tensor,
    spec: AugmentSpec,
    *,
    seed: int,
    epoch: int,
    keys: Keys,
    divide_by: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Return (N, 3, H, W) float32 in channels-last memory: pixels / divide_by, augmented, less mean, over std.

    pixels: (N, H, W, 3) uint8, on any device. The numbers are those of `augment_batch` and the steps around it, bit
    for bit; a few images at a time go all the way while they are in the processor's cache.
    """
    draws = _draws(keys, len(pixels), seed, epoch)
    shape = (len(pixels), 3, *pixels.shape[1:3])
    out = torch.empty(shape, device=pixels.device, memory_format=torch.channels_last)
    centre, spread = (torch.tensor(item, device=pixels.device).view(1, 3, 1, 1) for item in (mean, std))
    for part in _parts(shape, pixels.device):
        unit = pixels[part].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        changed = _changed(unit.div_(divide_by), spec, draws.take(part))
        out[part] = changed.sub(centre).div_(spread)
    return out


def changes_anything(spec: AugmentSpec) -> bool:
    """Return whether the spec can change an image."""
    flips = spec.horizontal_flip or spec.vertical_flip or spec.transpose
    moves = spec.moved and (spec.rotate or spec.shift or spec.zoom)
    tones = spec.toned and (spec.brightness or spec.contrast or spec.saturation)
    parts = (spec.distort, spec.hsv, spec.blur_noise, spec.clahe, spec.cutout)
    return bool(flips or moves or tones) or any(part is not None and part.share > 0.0 for part in parts)


def _draws(keys: Keys, n: int, seed: int, epoch: int) -> Draws:
    if len(keys) != n:
        raise ValueError(f"{len(keys)} keys for {n} images")
    return Draws(np.asarray(keys, dtype=np.uint64), seed, epoch)


def _parts(shape: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Yield the images that are worked on at once: a few on a CPU, all on a GPU."""
    step = max(1, _CACHED // (4 * int(np.prod(shape[1:])) or 1)) if device.type == "cpu" else max(1, shape[0])
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _changed(batch: Tensor, spec: AugmentSpec, draws: Draws) -> Tensor:
    """Return a few images changed, in 0..1: another tensor, or the same where no image is."""
    out = tone(move(batch, spec, draws), spec, draws)
    if out is not batch:
        out = out.clamp_(0.0, 1.0)
    for column, share, change in _stages(spec):
        index = np.flatnonzero(draws.chosen(column, share))
        if len(index) == len(draws):
            out = change(out, draws=draws)
        elif len(index):
            chosen = torch.from_numpy(index).to(batch.device)
            out = out.clone() if out is batch else out
            out[chosen] = change(out[chosen], draws=draws.take(index))
    return out


def _stages(spec: AugmentSpec) -> list[tuple[Column, float, partial[Tensor]]]:
    """Return what follows moves and tone, in order: the column that says which images, their share, the change."""
    stages = []
    if spec.hsv is not None:
        stages.append((Column.HSV, spec.hsv.share, partial(shift_hsv, spec=spec.hsv)))
    if spec.blur_noise is not None:
        stages.append((Column.BLUR_NOISE, spec.blur_noise.share, partial(blur_or_noise, spec=spec.blur_noise)))
    if spec.clahe is not None:
        stages.append((Column.CLAHE, spec.clahe.share, partial(clahe, spec=spec.clahe)))
    if spec.cutout is not None:
        stages.append((Column.CUTOUT, spec.cutout.share, partial(cutout, spec=spec.cutout)))
    return stages
