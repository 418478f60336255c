"""Mixing of two training images and their labels: mixup (Zhang 2018) and cutmix (Yun 2019).

A sample's partner depends on (seed, epoch, its key) alone and is any sample of the epoch, not only of the batch, so
that neither batch size nor the number of devices changes it.

Shapes: B samples of a batch, K classes, 3 channels, S x S pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from dermkit.recipes.training_specs import MixupSpec
from dermkit.training.augment.geometry import broadcast_per_image
from dermkit.training.augment.random_numbers import CounterRng, ImageKeys, Stream

NO_MIX, MIXUP, CUTMIX = range(3)
"""Kinds of mixing: none, a blend with the partner, or a square of the partner pasted in."""


@dataclass(frozen=True)
class MixPlan:
    """How B samples are mixed.

    partner: (B,) a sample of the epoch, the sample itself where `kind` is `NO_MIX`. kind: (B,) `NO_MIX`, `MIXUP` or
    `CUTMIX`. self_weight: (B,) in 0..1, lambda of the papers, before cutmix clips its square; 1 where `NO_MIX`.
    centres: (B, 2), row and column of the square's centre, in 0..1.
    """

    partner: NDArray[np.int64]
    kind: NDArray[np.int64]
    self_weight: NDArray[np.float64]
    centres: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.partner)

    def boxes(self, size: int) -> NDArray[np.int64]:
        """Return (B, 4) int64 in pixels: top, bottom, left, right of the pasted square, clipped; 0 where none.

        Its area before clipping is 1 - lambda of the image's (Yun 2019, equation 2).
        """
        length = np.floor(np.where(self.kind == CUTMIX, np.sqrt(1.0 - self.self_weight), 0.0) * size).astype(
            np.int64
        )
        start = np.floor(self.centres * size).astype(np.int64) - (length // 2)[:, None]
        edges = np.clip(np.stack([start, start + length[:, None]], axis=2), 0, size).reshape(-1, 4)
        return np.where((self.kind == CUTMIX)[:, None], edges, 0)

    def label_weights(self, size: int) -> NDArray[np.float64]:
        """Return the weight of each sample's own label, (B,) in 0..1.

        For cutmix it is the fraction of pixels that stay, which is above lambda where the square is clipped.
        """
        top, bottom, left, right = self.boxes(size).T
        return np.where(self.kind == CUTMIX, 1.0 - (bottom - top) * (right - left) / size**2, self.self_weight)


def make_mix_plan(
    keys: ImageKeys, spec: MixupSpec, samples: NDArray[np.int64], *, seed: int, epoch: int, n: int
) -> MixPlan:
    """Return how samples are mixed in an epoch of n samples.

    keys: (B,) of the samples, from `image_key`. samples: (B,) their numbers in 0..n - 1. Each sample of the epoch is
    equally likely as a partner. lambda is Beta(alpha, alpha), by inversion of its distribution: one random number gives
    one lambda, where a rejection sampler would need an unknown count.
    """
    if len(keys) != len(samples):
        raise ValueError(f"{len(keys)} keys for {len(samples)} samples")
    rng = CounterRng(np.asarray(keys, dtype=np.uint64), seed, epoch)
    is_cutmix = rng.bernoulli(Stream.MIX_KIND, 0.5 if spec.mixup and spec.cutmix else 1.0 if spec.cutmix else 0.0)
    is_mixed = rng.bernoulli(Stream.MIX, spec.p)
    kind = np.where(is_mixed, np.where(is_cutmix, CUTMIX, MIXUP), NO_MIX)
    alpha = np.where(is_cutmix, spec.cutmix, spec.mixup)
    self_weight = np.clip(betaincinv(alpha, alpha, rng.random(Stream.MIX_WEIGHT)), 0.0, 1.0)
    return MixPlan(
        partner=np.where(is_mixed, rng.integers(Stream.MIX_PARTNER, n), samples),
        kind=kind.astype(np.int64),
        self_weight=np.where(is_mixed, self_weight, 1.0),
        centres=np.stack([rng.random(Stream.MIX_Y), rng.random(Stream.MIX_X)], axis=1),
    )


def mix_batch(batch: Tensor, partners: Tensor, plan: MixPlan) -> Tensor:
    """Return (B, 3, S, S) float32: each image blended with its partner, or with a square of it pasted in.

    batch, partners: (B, 3, S, S) float32; partners: the images of `plan.partner`, in the same order. An image with
    `NO_MIX` is not changed.
    """
    size = batch.shape[-1]
    self_weight = broadcast_per_image(
        np.where(plan.kind == MIXUP, plan.self_weight, 1.0).astype(np.float32), batch
    )
    out = batch * self_weight + partners * (
        1.0 - self_weight
    )  # at a weight of 1, the batch itself to the last bit
    if not (plan.kind == CUTMIX).any():
        return out
    top, bottom, left, right = plan.boxes(size).T[:, :, None]
    positions = np.arange(size)
    rows, columns = (
        torch.from_numpy((positions >= start) & (positions < end)).to(batch.device)
        for start, end in ((top, bottom), (left, right))
    )
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], partners, out)


def mix_labels(
    labels: NDArray[np.int64], partners: NDArray[np.int64], plan: MixPlan, n_classes: int, *, size: int
) -> Tensor:
    """Return soft labels, (B, K) float32 on the CPU, of images of size x size pixels; rows sum to 1.

    labels, partners: (B,) int64, the classes of the samples and of `plan.partner`.
    """
    self_weights = plan.label_weights(size)
    rows = np.arange(len(labels))
    targets = np.zeros((len(labels), n_classes))
    targets[rows, labels] = self_weights
    targets[rows, partners] += 1.0 - self_weights
    return torch.from_numpy(targets.astype(np.float32))
