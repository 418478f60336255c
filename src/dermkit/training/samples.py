"""What a training epoch is made of: images, augmented copies of small classes, and mixtures of two.

A sample is an image, or a numbered copy of one; its random changes come from (seed, epoch, image id, copy) alone, so
neither batches, nor workers, nor devices change what the net sees.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dermkit.images.preprocess import ImageRows, Preprocessing
from dermkit.recipes.augmentation import AugmentSpec
from dermkit.recipes.schema import GrowSpec, MixSpec
from dermkit.training.augment.batch import augment_batch, balanced_order, batch_from_pixels, epoch_order, image_key
from dermkit.training.augment.mixup import Mixing, mix_batch, mix_labels, mixing

if TYPE_CHECKING:
    from dermkit.models.net import Net


@dataclass(frozen=True)
class Samples:
    """The samples of an epoch: row in the pixel array, copy number (0 = the image itself), label, random key."""

    rows: NDArray[np.int64]
    copies: NDArray[np.int64]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]
    image_ids: tuple[str, ...]
    augment: AugmentSpec
    grow: GrowSpec | None
    mix: MixSpec | None

    def __len__(self) -> int:
        return len(self.rows)

    def names(self, samples: NDArray[np.int64]) -> list[str]:
        """Return the image ids of samples, for messages."""
        return [self.image_ids[self.rows[index]] for index in samples]

    def order(self, sampling: str, *, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return which sample comes when in an epoch: `shuffled` or `balanced` (see `OptimSpec`)."""
        if sampling == "balanced":
            return balanced_order(self.labels, seed=seed, epoch=epoch)
        return epoch_order(len(self), seed=seed, epoch=epoch)

    def mixing(self, samples: NDArray[np.int64], *, seed: int, epoch: int) -> Mixing | None:
        """Return what these samples are mixed with in an epoch; None where the recipe mixes nothing."""
        if self.mix is None:
            return None
        return mixing(self.keys[samples], self.mix, samples, seed=seed, epoch=epoch, n=len(self))

    @classmethod
    def of(
        cls,
        image_ids: tuple[str, ...],
        labels: NDArray[np.int64],
        train: NDArray[np.int64],
        augment: AugmentSpec,
        grow: GrowSpec | None,
        *,
        seed: int,
        mix: MixSpec | None = None,
    ) -> "Samples":
        """Build the samples of the training rows; `grow` adds copies of the small classes' images, only here."""
        rows, copies = train, np.zeros(len(train), dtype=np.int64)
        if grow:
            extra_rows, extra_copies = _grown(labels, train, grow, seed)
            rows, copies = np.concatenate([rows, extra_rows]), np.concatenate([copies, extra_copies])
        keys = np.array([image_key(image_ids[r], int(c)) for r, c in zip(rows, copies, strict=True)], np.uint64)
        return cls(rows, copies, labels[rows], keys, image_ids, augment, grow, mix)


def _grown(
    labels: NDArray[np.int64], train: NDArray[np.int64], grow: GrowSpec, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (rows, copy numbers) that bring every smaller class to `grow.to` of the largest, evenly over images."""
    counts = np.bincount(labels[train])
    target = round(grow.to * int(counts.max()))
    rows: list[NDArray[np.int64]] = []
    copies: list[NDArray[np.int64]] = []
    for item in np.flatnonzero(counts):
        own = train[labels[train] == item]
        extra = min(max(target - len(own), 0), len(own) * (grow.most_copies - 1))
        order = np.random.default_rng([seed, int(item)]).permutation(own)
        rows.append(np.resize(order, extra))
        copies.append(1 + np.arange(extra) // len(own))
    return np.concatenate(rows), np.concatenate(copies)


class Source(Protocol):
    """Where batches come from: pixels through the whole net, or cached features through the head."""

    samples: Samples

    def module(self, net: "Net") -> torch.nn.Module:
        """Return the part of the net that a batch goes through."""
        ...

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        """Return the inputs of samples `rows` in this epoch."""
        ...

    def targets(self, rows: NDArray[np.int64], *, epoch: int, seed: int, n_classes: int) -> torch.Tensor:
        """Return the labels of samples `rows`: (N,) int64, or (N, classes) float32 shares where images are mixed."""
        ...

    def validation_logits(self, net: "Net", rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the logits of validation images `rows` in float32, without augmentation."""
        ...


class PixelSource:
    """Batches of augmented, mixed, normalised pixels.

    pixels: an array or cache, or the same as a tensor on the device, where it fits there.
    """

    def __init__(
        self,
        samples: Samples,
        pixels: ImageRows | torch.Tensor,
        validation: NDArray[np.int64],
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self.samples = samples
        self.pixels = pixels
        self.validation = validation
        self.preprocessing = preprocessing
        self.device = device
        self._mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)

    def module(self, net: "Net") -> torch.nn.Module:
        """Return the whole net."""
        return net

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        """Return (N, 3, S, S) float32: augmented by each sample's own random numbers, mixed, normalised."""
        samples, pre = self.samples, self.preprocessing
        if samples.grow is None and samples.mix is None:
            return batch_from_pixels(
                self._raw(samples.rows[rows]), samples.augment, seed=seed, epoch=epoch, keys=samples.keys[rows],
                divide_by=pre.divide_by, mean=pre.mean, std=pre.std,
            )  # fmt: skip
        batch = self._augmented(rows, epoch=epoch, seed=seed)
        mixes = self.samples.mixing(rows, seed=seed, epoch=epoch)
        if mixes is not None and len(rows):
            batch = mix_batch(batch, self._augmented(mixes.partner, epoch=epoch, seed=seed), mixes)
        return self._normalised(batch)

    def targets(self, rows: NDArray[np.int64], *, epoch: int, seed: int, n_classes: int) -> torch.Tensor:
        """Return the labels of samples `rows`, as shares where images are mixed."""
        labels = self.samples.labels
        mixes = self.samples.mixing(rows, seed=seed, epoch=epoch)
        if mixes is None:
            return torch.from_numpy(labels[rows]).to(self.device)
        side = self.preprocessing.size
        shares = mix_labels(labels[rows], labels[mixes.partner], mixes, n_classes, side=side)
        return shares.to(self.device)

    def originals(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        """Return samples `rows` as they are, normalised; only grown copies are augmented, and nothing is mixed."""
        return self._normalised(self._augmented(rows, epoch=epoch, seed=seed, plain_originals=True))

    def plain(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return validation images `rows` without augmentation, normalised."""
        return self._normalised(self._unit(self.validation[rows]))

    def validation_logits(self, net: "Net", rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the whole net's logits."""
        logits: torch.Tensor = net(self.plain(rows))
        return logits

    def _augmented(
        self, rows: NDArray[np.int64], *, epoch: int, seed: int, plain_originals: bool = False
    ) -> torch.Tensor:
        samples = self.samples
        batch = self._unit(samples.rows[rows])
        if samples.grow is None:
            if plain_originals:
                return batch
            return augment_batch(batch, samples.augment, seed=seed, epoch=epoch, keys=samples.keys[rows])
        copied = samples.copies[rows] > 0
        parts = [(copied, samples.grow.augment), *([] if plain_originals else [(~copied, samples.augment)])]
        for chosen, spec in parts:
            if chosen.any():
                index = torch.from_numpy(np.flatnonzero(chosen)).to(self.device)
                batch[index] = augment_batch(
                    batch[index], spec, seed=seed, epoch=epoch, keys=samples.keys[rows][chosen]
                )
        return batch

    def _unit(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return self._raw(rows).permute(0, 3, 1, 2).to(torch.float32).div_(self.preprocessing.divide_by)

    def _raw(self, rows: NDArray[np.int64]) -> torch.Tensor:
        if isinstance(self.pixels, torch.Tensor):
            return self.pixels[torch.from_numpy(rows).to(self.pixels.device)]
        return torch.from_numpy(self.pixels[rows]).to(self.device)

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.sub(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)


def resident(pixels: ImageRows, device: torch.device, *, share: float = 0.5) -> ImageRows | torch.Tensor:
    """Return the pixels as a tensor on a GPU where they fit into `share` of its free memory, else as they are."""
    if device.type != "cuda":
        return pixels
    one = pixels[np.zeros(1, dtype=np.int64)]
    if one.nbytes * len(pixels) > share * torch.cuda.mem_get_info(device)[0]:
        return pixels
    return upload(pixels, device)


def upload(pixels: ImageRows, device: torch.device, *, chunk: int = 1024) -> torch.Tensor:
    """Copy all pixels to a device, chunk by chunk: they need not lie in the machine's own memory whole."""
    shape = pixels[np.zeros(1, dtype=np.int64)].shape[1:]
    held = torch.empty((len(pixels), *shape), dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), chunk):
        rows = np.arange(start, min(start + chunk, len(pixels)))
        held[start : start + len(rows)] = torch.from_numpy(pixels[rows]).to(device)
    return held
