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

from dermkit.recipes.schema import MixSpec
from dermkit.training.augment.geometry import column
from dermkit.training.augment.random_numbers import Column, Draws, Keys

ALONE, MIXUP, CUTMIX = range(3)
"""What is done to a sample: nothing, blending, or a rectangle pasted into it."""


@dataclass(frozen=True)
class Mixing:
    """What N samples are mixed with.

    partner: which sample of the epoch, itself where `kind` is ALONE. share: how much of itself a sample keeps, as
    drawn, 1 where ALONE; `kept` says how much it keeps of an image of so many pixels. middles: (N, 2), row and column
    of the middle of the pasted square, in 0..1.
    """

    partner: NDArray[np.int64]
    kind: NDArray[np.int64]
    share: NDArray[np.float64]
    middles: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.partner)

    def boxes(self, side: int) -> NDArray[np.int64]:
        """Return (N, 4): top, bottom, left, right of what is pasted, in pixels, cut off at the border; 0 if nothing."""
        length = np.floor(np.where(self.kind == CUTMIX, np.sqrt(1.0 - self.share), 0.0) * side).astype(np.int64)
        first = np.floor(self.middles * side).astype(np.int64) - (length // 2)[:, None]
        edges = np.clip(np.stack([first, first + length[:, None]], axis=2), 0, side).reshape(-1, 4)
        return np.where((self.kind == CUTMIX)[:, None], edges, 0)

    def kept(self, side: int) -> NDArray[np.float64]:
        """Return how much of itself each sample keeps; for cutmix, exactly the share of pixels that are not pasted."""
        top, bottom, left, right = self.boxes(side).T
        return np.where(self.kind == CUTMIX, 1.0 - (bottom - top) * (right - left) / side**2, self.share)


def mixing(keys: Keys, spec: MixSpec, samples: NDArray[np.int64], *, seed: int, epoch: int, n: int) -> Mixing:
    """Return what samples are mixed with in an epoch of n samples.

    keys: the samples' own, from `image_key`; samples: their numbers in 0..n - 1, which are the partners of those that
    stay alone. A partner is any sample, at equal odds. share is Beta(alpha, alpha), by inversion.
    """
    if len(keys) != len(samples):
        raise ValueError(f"{len(keys)} keys for {len(samples)} samples")
    draws = Draws(np.asarray(keys, dtype=np.uint64), seed, epoch)
    pasted = draws.chosen(Column.MIX_KIND, 0.5 if spec.mixup and spec.cutmix else 1.0 if spec.cutmix else 0.0)
    mixed = draws.chosen(Column.MIX, spec.share)
    kind = np.where(mixed, np.where(pasted, CUTMIX, MIXUP), ALONE)
    alpha = np.where(pasted, spec.cutmix, spec.mixup)
    share = np.clip(betaincinv(alpha, alpha, draws.unit(Column.MIX_SHARE)), 0.0, 1.0)
    return Mixing(
        partner=np.where(mixed, draws.one_of(Column.MIX_PARTNER, n), samples),
        kind=kind.astype(np.int64),
        share=np.where(mixed, share, 1.0),
        middles=np.stack([draws.unit(Column.MIX_Y), draws.unit(Column.MIX_X)], axis=1),
    )


def mix_batch(batch: Tensor, partners: Tensor, mixes: Mixing) -> Tensor:
    """Return (N, 3, S, S): each image blended with its partner, or with a rectangle of it pasted in.

    partners: (N, 3, S, S), the images of `mixes.partner` in the same order. An image that stays alone is not changed.
    """
    side = batch.shape[-1]
    share = column(np.where(mixes.kind == MIXUP, mixes.share, 1.0).astype(np.float32), batch)
    out = batch * share + partners * (1.0 - share)  # at a share of 1, the batch itself to the last bit
    if not (mixes.kind == CUTMIX).any():
        return out
    top, bottom, left, right = mixes.boxes(side).T[:, :, None]
    places = np.arange(side)
    rows, columns = (
        torch.from_numpy((places >= first) & (places < end)).to(batch.device)
        for first, end in ((top, bottom), (left, right))
    )
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], partners, out)


def mix_labels(
    labels: NDArray[np.int64], partners: NDArray[np.int64], mixes: Mixing, n_classes: int, *, side: int
) -> Tensor:
    """Return (N, classes) float32 on the CPU: each label's share, of images of side x side pixels; rows sum to 1.

    labels, partners: (N,), the classes of the samples and of `mixes.partner`.
    """
    kept = mixes.kept(side)
    rows = np.arange(len(labels))
    targets = np.zeros((len(labels), n_classes))
    targets[rows, labels] = kept
    targets[rows, partners] += 1.0 - kept
    return torch.from_numpy(targets.astype(np.float32))
