"""Mixing of two training images and of their labels: mixup (Zhang 2018) and cutmix (Yun 2019).

What a sample is mixed with comes from (seed, epoch, its key) alone, and is any sample of the epoch, not of the batch:
neither batch size nor the number of devices changes it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from dermkit.recipes.schema import MixupSpec
from dermkit.training.augment.geometry import broadcast_per_image
from dermkit.training.augment.random_numbers import CounterRng, ImageKeys, Stream

NO_MIX, MIXUP, CUTMIX = range(3)
"""What is done to a sample: nothing, blending, or a rectangle pasted into it."""


@dataclass(frozen=True)
class MixPlan:
    """What N samples are mixed with.

    partner: which sample of the epoch, itself where `kind` is ALONE. self_weight: how much of itself a sample keeps,
    as drawn, 1 where ALONE; `label_weights` says how much it keeps of an image of so many pixels. centres: (N,
    2), row and column of the middle of the pasted square, in 0..1.
    """

    partner: NDArray[np.int64]
    kind: NDArray[np.int64]
    self_weight: NDArray[np.float64]
    centres: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.partner)

    def boxes(self, size: int) -> NDArray[np.int64]:
        """Return (N, 4): top, bottom, left, right of what is pasted, in pixels, cut off at the border; 0 if nothing."""
        length = np.floor(np.where(self.kind == CUTMIX, np.sqrt(1.0 - self.self_weight), 0.0) * size).astype(
            np.int64
        )
        start = np.floor(self.centres * size).astype(np.int64) - (length // 2)[:, None]
        edges = np.clip(np.stack([start, start + length[:, None]], axis=2), 0, size).reshape(-1, 4)
        return np.where((self.kind == CUTMIX)[:, None], edges, 0)

    def label_weights(self, size: int) -> NDArray[np.float64]:
        """Return how much of itself each sample keeps; for cutmix, exactly the share of pixels that are not pasted."""
        top, bottom, left, right = self.boxes(size).T
        return np.where(self.kind == CUTMIX, 1.0 - (bottom - top) * (right - left) / size**2, self.self_weight)


def make_mix_plan(
    keys: ImageKeys, spec: MixupSpec, samples: NDArray[np.int64], *, seed: int, epoch: int, n: int
) -> MixPlan:
    """Return what samples are mixed with in an epoch of n samples.

    keys: the samples' own, from `image_key`; samples: their numbers in 0..n - 1, which are the partners of those that
    stay alone. A partner is any sample, at equal odds. share is Beta(alpha, alpha), by inversion.
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
    """Return (N, 3, S, S): each image blended with its partner, or with a rectangle of it pasted in.

    partners: (N, 3, S, S), the images of `plan.partner` in the same order. An image that stays alone is not changed.
    """
    size = batch.shape[-1]
    self_weight = broadcast_per_image(
        np.where(plan.kind == MIXUP, plan.self_weight, 1.0).astype(np.float32), batch
    )
    out = batch * self_weight + partners * (1.0 - self_weight)  # at a share of 1, the batch itself to the last bit
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
    """Return (N, classes) float32 on the CPU: each label's share, of images of side x side pixels; rows sum to 1.

    labels, partners: (N,), the classes of the samples and of `plan.partner`.
    """
    self_weights = plan.label_weights(size)
    rows = np.arange(len(labels))
    targets = np.zeros((len(labels), n_classes))
    targets[rows, labels] = self_weights
    targets[rows, partners] += 1.0 - self_weights
    return torch.from_numpy(targets.astype(np.float32))
