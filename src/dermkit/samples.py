"""What a training epoch is made of: images, augmented copies of small classes, and cached features.

A sample is an image, or a numbered copy of one; its random changes come from (seed, epoch, image id, copy) alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dermkit.data.augment import augment_batch, image_key
from dermkit.data.cache import cached_array
from dermkit.data.images import Preprocessing
from dermkit.errors import Interrupted
from dermkit.files import fingerprint
from dermkit.model import Net, backbone_fingerprint
from dermkit.recipe import AugmentSpec, GrowSpec

_CHUNK = 64
"""Images per forward pass when features are made: large enough for the cores, small enough for memory."""


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

    def __len__(self) -> int:
        return len(self.rows)

    def names(self, samples: NDArray[np.int64]) -> list[str]:
        """Return the image ids of samples, for messages."""
        return [self.image_ids[self.rows[index]] for index in samples]

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
    ) -> "Samples":
        """Build the samples of the training rows; `grow` adds copies of the small classes' images, only here."""
        rows, copies = train, np.zeros(len(train), dtype=np.int64)
        if grow:
            extra_rows, extra_copies = _grown(labels, train, grow, seed)
            rows, copies = np.concatenate([rows, extra_rows]), np.concatenate([copies, extra_copies])
        keys = np.array([image_key(image_ids[r], int(c)) for r, c in zip(rows, copies, strict=True)], np.uint64)
        return cls(rows, copies, labels[rows], keys, image_ids, augment, grow)


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

    def module(self, net: Net) -> torch.nn.Module:
        """Return the part of the net that a batch goes through."""
        ...

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        """Return the inputs of samples `rows` in this epoch."""
        ...

    def validation_logits(self, net: Net, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the logits of validation images `rows`, without augmentation."""
        ...


class PixelSource:
    """Batches of augmented, normalised pixels."""

    def __init__(
        self,
        samples: Samples,
        pixels: NDArray[np.uint8],
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

    def module(self, net: Net) -> torch.nn.Module:
        """Return the whole net."""
        return net

    def batch(
        self, rows: NDArray[np.int64], *, epoch: int, seed: int, plain_originals: bool = False
    ) -> torch.Tensor:
        """Return (N, 3, S, S) float32, augmented by each sample's own random numbers, normalised."""
        samples = self.samples
        batch = self._unit(samples.rows[rows])
        copied = samples.copies[rows] > 0
        parts = [] if plain_originals else [(~copied, samples.augment)]
        if samples.grow:
            parts.append((copied, samples.grow.augment))
        for chosen, spec in parts:
            if chosen.any():
                index = torch.from_numpy(np.flatnonzero(chosen)).to(self.device)
                batch[index] = augment_batch(
                    batch[index], spec, seed=seed, epoch=epoch, keys=samples.keys[rows][chosen]
                )
        return self._normalised(batch)

    def plain(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return validation images `rows` without augmentation, normalised."""
        return self._normalised(self._unit(self.validation[rows]))

    def validation_logits(self, net: Net, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the whole net's logits."""
        logits: torch.Tensor = net(self.plain(rows))
        return logits

    def _unit(self, rows: NDArray[np.int64]) -> torch.Tensor:
        batch = torch.from_numpy(self.pixels[rows]).to(self.device).permute(0, 3, 1, 2)
        return batch.to(torch.float32).div_(self.preprocessing.divide_by)

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.sub(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)


class FeatureSource:
    """Batches of a frozen backbone's cached features: (views, samples, width), one view an epoch, in turn."""

    def __init__(self, samples: Samples, features: NDArray[np.float32], validation: NDArray[np.float32]) -> None:
        self.samples = samples
        self.features = features
        self.validation = validation

    def module(self, net: Net) -> torch.nn.Module:
        """Return the head."""
        return net.head

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:  # noqa: ARG002
        """Return (N, width) float32: the epoch's view of these samples."""
        return torch.from_numpy(self.features[(epoch - 1) % len(self.features)][rows])

    def validation_logits(self, net: Net, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the head's logits."""
        device = next(net.head.parameters()).device
        logits: torch.Tensor = net.head(torch.from_numpy(self.validation[rows]).to(device))
        return logits

    @classmethod
    def build(
        cls,
        source: PixelSource,
        net: Net,
        *,
        pixels_key: str,
        model_key: str,
        seed: int,
        views: int,
        plain: bool,
        cache: Path,
        on_step: Callable[[str, int, int], None],
        stop: Callable[[], bool],
    ) -> "FeatureSource":
        """Run the frozen backbone once per view and image, or find that in the cache."""
        samples = source.samples
        net.eval()
        backbone = backbone_fingerprint(net)
        shared: Sequence[Any] = (backbone, model_key, pixels_key, asdict(source.preprocessing), net.n_features)
        random: Sequence[Any] = (seed, plain, asdict(samples.augment), samples.grow and asdict(samples.grow))
        where = fingerprint(*shared, *random, samples.keys.tolist())
        total = len(samples) * views + len(source.validation)

        def fill_train(out: NDArray[Any]) -> None:
            for view in range(views):
                epoch, done = view + 1, view * len(samples)
                batch = partial(source.batch, epoch=epoch, seed=seed, plain_originals=plain)
                _fill(out[view], net, batch, partial(_report, on_step, done, total), stop)

        def fill_validation(out: NDArray[Any]) -> None:
            _fill(out, net, source.plain, partial(_report, on_step, len(samples) * views, total), stop)

        ids = [samples.image_ids[row] for row in source.validation]
        return cls(
            samples,
            cached_array(cache, f"features-{where}", (views, len(samples), net.n_features), "float32", fill_train),
            cached_array(cache, f"features-{fingerprint(*shared, ids)}", (len(ids), net.n_features), "float32",
                         fill_validation),
        )  # fmt: skip


def _report(on_step: Callable[[str, int, int], None], before: int, total: int, done: int) -> None:
    on_step("features", before + done, total)


def _fill(
    out: NDArray[Any],
    net: Net,
    batch: Callable[[NDArray[np.int64]], torch.Tensor],
    on_done: Callable[[int], None],
    stop: Callable[[], bool],
) -> None:
    with torch.inference_mode():
        for start in range(0, len(out), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(out)))
            out[rows] = net.features(batch(rows)).float().cpu().numpy()
            on_done(int(rows[-1]) + 1)
            if stop():
                raise Interrupted("interrupted while features were made", kept="nothing yet", remedy="start again")
