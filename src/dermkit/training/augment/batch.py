"""Batched augmentation whose random numbers depend on (seed, epoch, image) alone.

There is no generator with a state: every number is a hash of its purpose (`random_numbers`). So batch size, order,
workers, devices and a resume within an epoch do not change how an image is augmented.

Shapes: B images of a batch, 3 channels (RGB), H x W pixels. Values: float32 in 0..1 unless said otherwise.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dermkit.recipes.augmentation import AugmentSpec
from dermkit.training.augment.blur_noise import blur_or_noise, cutout
from dermkit.training.augment.colour import clahe, jitter_colour, shift_hsv
from dermkit.training.augment.geometry import transform_geometry
from dermkit.training.augment.random_numbers import (
    CounterRng,
    ImageKeys,
    Stream,
    balanced_order,
    class_shares,
    epoch_order,
    image_key,
    square_root_order,
)

__all__ = [
    "ImageKeys",
    "augment_and_normalise",
    "augment_batch",
    "augment_image",
    "balanced_order",
    "class_shares",
    "epoch_order",
    "image_key",
    "square_root_order",
]

AUGMENTATION_VERSION = 1
"""Part of every cached feature's key: raise it when augmentation changes, and older features are no longer found."""

_CHUNK_BYTES = 5 * 2**19
"""Bytes of float32 pixels per chunk on a CPU, chosen to fit the processor's cache: each step finds them there."""


def augment_batch(batch: Tensor, spec: AugmentSpec, *, seed: int, epoch: int, keys: ImageKeys) -> Tensor:
    """Augment each image of a batch at random; what happens to it depends on (seed, epoch, its key) alone.

    batch: (B, 3, H, W) float32 in 0..1, on any device; it is not changed. Returns the same shape, clamped to 0..1; the
    batch itself where the spec has no effect. keys: (B,) from `image_key`. The order: geometry and distortion in one
    bilinear resampling; brightness, contrast about the image's mean grey and saturation, without clamping in between;
    hue; blur or noise; CLAHE; cutout.
    """
    rng = _make_rng(keys, len(batch), seed, epoch)
    if not _has_effect(spec):
        return batch
    out = torch.empty_like(batch)
    for chunk in _chunks(batch.shape, batch.device):
        out[chunk] = _augment_chunk(batch[chunk].contiguous(), spec, rng.select(chunk))
    return out


def augment_image(
    pixels: NDArray[np.uint8], spec: AugmentSpec, *, image_id: str, seed: int, epoch: int
) -> NDArray[np.uint8]:
    """Return one image as it is augmented in an epoch of training, for people to look at.

    pixels: (H, W, 3) uint8 RGB, and so is the result. seed, epoch, image_id: they alone determine the augmentation.
    """
    batch = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)[None]
    (augmented,) = augment_batch(batch, spec, seed=seed, epoch=epoch, keys=[image_key(image_id)])
    augmented_pixels: NDArray[np.uint8] = augmented.permute(1, 2, 0).mul(255).round().byte().numpy()
    return augmented_pixels


def augment_and_normalise(
    pixels: Tensor,
    spec: AugmentSpec,
    *,
    seed: int,
    epoch: int,
    keys: ImageKeys,
    divide_by: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Return (pixels / divide_by, augmented, - mean) / std: (B, 3, H, W) float32 in channels-last memory.

    pixels: (B, H, W, 3) uint8, on any device. The same bits as `augment_batch` between the two scalings; but each chunk
    of images takes all steps while it is in the processor's cache.
    """
    rng = _make_rng(keys, len(pixels), seed, epoch)
    shape = (len(pixels), 3, *pixels.shape[1:3])
    out = torch.empty(shape, device=pixels.device, memory_format=torch.channels_last)
    mean_tensor, std_tensor = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std)
    )
    for chunk in _chunks(shape, pixels.device):
        # Contiguous by channel, as in `augment_batch`, so that both give the same bits; only `out` is channels_last.
        unit_pixels = pixels[chunk].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        augmented = _augment_chunk(unit_pixels.div_(divide_by), spec, rng.select(chunk))
        out[chunk] = augmented.sub(mean_tensor).div_(std_tensor)
    return out


def _has_effect(spec: AugmentSpec) -> bool:
    """Return whether the spec can change any image."""
    has_flips = spec.horizontal_flip or spec.vertical_flip or spec.transpose
    has_affine = spec.p_geometric and (spec.rotate or spec.shift or spec.zoom)
    has_colour = spec.p_colour and (spec.brightness or spec.contrast or spec.saturation)
    stage_specs = (spec.distort, spec.hsv, spec.blur_noise, spec.clahe, spec.cutout)
    return bool(has_flips or has_affine or has_colour) or any(
        stage_spec is not None and stage_spec.p > 0.0 for stage_spec in stage_specs
    )


def _make_rng(keys: ImageKeys, n: int, seed: int, epoch: int) -> CounterRng:
    if len(keys) != n:
        raise ValueError(f"{len(keys)} keys for {n} images")
    return CounterRng(np.asarray(keys, dtype=np.uint64), seed, epoch)


def _chunks(shape: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Yield slices of the batch: as many images as `_CHUNK_BYTES` on a CPU, all of them on a GPU."""
    chunk_size = (
        max(1, _CHUNK_BYTES // (4 * int(np.prod(shape[1:])) or 1)) if device.type == "cpu" else max(1, shape[0])
    )
    for start in range(0, shape[0], chunk_size):
        yield slice(start, min(start + chunk_size, shape[0]))


def _augment_chunk(batch: Tensor, spec: AugmentSpec, rng: CounterRng) -> Tensor:
    """Return augmented images in 0..1: a new tensor, or the same one where no image is changed."""
    out = jitter_colour(transform_geometry(batch, spec, rng), spec, rng)
    if out is not batch:
        out = out.clamp_(0.0, 1.0)
    for stream, p, apply in _stages(spec):
        index = np.flatnonzero(rng.bernoulli(stream, p))
        if len(index) == len(rng):  # all images: no copies of parts are needed
            out = apply(out, rng=rng)
        elif len(index):
            device_index = torch.from_numpy(index).to(batch.device)
            out = out.clone() if out is batch else out  # the caller's batch is not written to
            out[device_index] = apply(out[device_index], rng=rng.select(index))
    return out


def _stages(spec: AugmentSpec) -> list[tuple[Stream, float, partial[Tensor]]]:
    """Return the steps after geometry and colour, in order: (stream that selects images, probability, function)."""
    stages = []
    if spec.hsv is not None:
        stages.append((Stream.HSV, spec.hsv.p, partial(shift_hsv, spec=spec.hsv)))
    if spec.blur_noise is not None:
        stages.append((Stream.BLUR_NOISE, spec.blur_noise.p, partial(blur_or_noise, spec=spec.blur_noise)))
    if spec.clahe is not None:
        stages.append((Stream.CLAHE, spec.clahe.p, partial(clahe, spec=spec.clahe)))
    if spec.cutout is not None:
        stages.append((Stream.CUTOUT, spec.cutout.p, partial(cutout, spec=spec.cutout)))
    return stages
