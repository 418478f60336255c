"""The samples of a training epoch (images, and copies of rare classes' images), and the batches made of them.

A sample is an image or a numbered copy of one. Its augmentation depends on (seed, epoch, image id, copy number) alone,
so neither batch size, nor workers, nor devices change what the net sees.

Shapes: N samples of an epoch, B of a batch, K classes, 3 channels, S x S pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dermkit.images.preprocess import PixelArray, Preprocessing
from dermkit.recipes.augmentation import AugmentSpec
from dermkit.recipes.schema import OversampleSpec
from dermkit.recipes.training_specs import MixupSpec
from dermkit.training.augment.batch import (
    augment_and_normalise,
    augment_batch,
    balanced_order,
    epoch_order,
    image_key,
    square_root_order,
)
from dermkit.training.augment.mixup import MixPlan, make_mix_plan, mix_batch, mix_labels
from dermkit.training.distillation import with_teacher
from dermkit.training.metadata_batches import EncodedMetadata, mix_vectors

if TYPE_CHECKING:
    from dermkit.models.net import Net


@dataclass(frozen=True)
class Samples:
    """The samples of an epoch, (N,) each: row of the pixel array, copy number (0 = the image), label, random key.

    image_ids: of every row of the pixel array. oversample, mixup: None where the recipe has none. teacher: softened
    probabilities of every row of the pixel array, (rows, K) float32; None without a teacher. metadata: the second
    input; None without one.
    """

    rows: NDArray[np.int64]
    copy_numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint64]
    image_ids: tuple[str, ...]
    augment: AugmentSpec
    oversample: OversampleSpec | None
    mixup: MixupSpec | None
    teacher: NDArray[np.float32] | None = None
    metadata: EncodedMetadata | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def ids_of(self, samples: NDArray[np.int64]) -> list[str]:
        """Return the image ids of samples (B,), for messages."""
        return [self.image_ids[self.rows[sample]] for sample in samples]

    def order(self, sampling: str, *, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the order of samples in an epoch, (N,) int64, as `OptimSpec.sampling` says."""
        if sampling == "balanced":
            return balanced_order(self.labels, seed=seed, epoch=epoch)
        if sampling == "square_root":
            return square_root_order(self.labels, seed=seed, epoch=epoch)
        return epoch_order(len(self), seed=seed, epoch=epoch)

    def mix_plan(self, samples: NDArray[np.int64], *, seed: int, epoch: int) -> MixPlan | None:
        """Return what samples (B,) are mixed with in an epoch; None where the recipe has no mixup."""
        if self.mixup is None:
            return None
        return make_mix_plan(self.keys[samples], self.mixup, samples, seed=seed, epoch=epoch, n=len(self))

    def metadata_inputs(
        self, samples: NDArray[np.int64], mix_plan: MixPlan | None, *, seed: int, epoch: int, size: int
    ) -> tuple[torch.Tensor, ...]:
        """Return the second input of samples (B,), (B, M) float32 on the CPU, mixed as the images are; () without one.

        Fields are set to unknown anew in each epoch. size: of the images, in pixels.
        """
        if self.metadata is None:
            return ()
        vectors, *partners = (
            self.metadata.training_vectors(self.rows[index], self.keys[index], seed=seed, epoch=epoch)
            for index in (samples, *([] if mix_plan is None else [mix_plan.partner]))
        )
        if mix_plan is not None:
            vectors = mix_vectors(vectors, partners[0], mix_plan, size=size)
        return (torch.from_numpy(vectors),)

    @classmethod
    def build(
        cls,
        image_ids: tuple[str, ...],
        labels: NDArray[np.int64],
        train_rows: NDArray[np.int64],
        augment: AugmentSpec,
        oversample: OversampleSpec | None,
        *,
        seed: int,
        mixup: MixupSpec | None = None,
    ) -> "Samples":
        """Build the samples of the training rows; only training images are oversampled, never validation or test.

        labels: (rows,) int64 of every row of the pixel array.
        """
        rows, copy_numbers = train_rows, np.zeros(len(train_rows), dtype=np.int64)
        if oversample:
            extra_rows, extra_numbers = _oversampled_rows(labels, train_rows, oversample, seed)
            rows, copy_numbers = np.concatenate([rows, extra_rows]), np.concatenate([copy_numbers, extra_numbers])
        keys = np.array(
            [image_key(image_ids[row], int(number)) for row, number in zip(rows, copy_numbers, strict=True)],
            np.uint64,
        )
        return cls(rows, copy_numbers, labels[rows], keys, image_ids, augment, oversample, mixup)


def _oversampled_rows(
    labels: NDArray[np.int64], train_rows: NDArray[np.int64], spec: OversampleSpec, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (rows, copy numbers) that bring the smaller classes to `spec.target_fraction` of the largest.

    The copies of a class are spread evenly over its images, at most `spec.max_copies` of an image, itself included.
    """
    counts = np.bincount(labels[train_rows])
    target_count = round(spec.target_fraction * int(counts.max()))
    rows: list[NDArray[np.int64]] = []
    copy_numbers: list[NDArray[np.int64]] = []
    for class_index in np.flatnonzero(counts):
        class_rows = train_rows[labels[train_rows] == class_index]
        n_extra = min(max(target_count - len(class_rows), 0), len(class_rows) * (spec.max_copies - 1))
        # Seeded by the class, so that a class's copies do not depend on the other classes.
        shuffled_rows = np.random.default_rng([seed, int(class_index)]).permutation(class_rows)
        rows.append(np.resize(shuffled_rows, n_extra))  # np.resize repeats the rows until there are enough
        copy_numbers.append(1 + np.arange(n_extra) // len(class_rows))
    return np.concatenate(rows), np.concatenate(copy_numbers)


class BatchSource(Protocol):
    """Where batches come from: pixels for the whole net, or cached features for the head alone."""

    samples: Samples

    def module(self, net: "Net") -> torch.nn.Module:
        """Return the module that takes a batch: the whole net, or its head."""
        ...

    def inputs(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> tuple[torch.Tensor, ...]:
        """Return what the module takes for samples `rows`, (B,), in this epoch."""
        ...

    def targets(self, rows: NDArray[np.int64], *, epoch: int, seed: int, n_classes: int) -> torch.Tensor:
        """Return the targets of samples `rows`: (B,) int64 labels, or (B, K) float32 shares where images are mixed.

        With a teacher (B, 2 K) float32: shares, and the teacher's softened probabilities.
        """
        ...

    def validation_logits(self, net: "Net", rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the logits of validation images `rows`, (B, K) float32, without augmentation."""
        ...


class PixelSource:
    """Batches of augmented, mixed, normalised pixels.

    pixels: (rows, S, S, 3) uint8, an array, a cache, or a tensor on the device where it fits there. train_size: side of
    the training images, at most S; 0 = S.
    """

    def __init__(
        self,
        samples: Samples,
        pixels: PixelArray | torch.Tensor,
        validation_rows: NDArray[np.int64],
        preprocessing: Preprocessing,
        device: torch.device,
        train_size: int = 0,
    ) -> None:
        self.samples = samples
        self.pixels = pixels
        self.validation_rows = validation_rows
        self.preprocessing = preprocessing
        self.device = device
        self.train_size = train_size
        self._mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)

    def with_train_size(self, train_size: int) -> "PixelSource":
        """Return a source of the same pixels whose training images have another side; 0 = that of the pixels."""
        return PixelSource(
            self.samples, self.pixels, self.validation_rows, self.preprocessing, self.device, train_size
        )

    def module(self, net: "Net") -> torch.nn.Module:
        """Return the whole net."""
        return net

    def inputs(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> tuple[torch.Tensor, ...]:
        """Return the images, (B, 3, T, T) float32, and with metadata these, (B, M) float32."""
        mix_plan = self.samples.mix_plan(rows, seed=seed, epoch=epoch)
        metadata = self.samples.metadata_inputs(
            rows, mix_plan, seed=seed, epoch=epoch, size=self.preprocessing.size
        )
        return self.batch(rows, epoch=epoch, seed=seed), *(vectors.to(self.device) for vectors in metadata)

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        """Return (B, 3, T, T) float32: augmented by each sample's own random numbers, mixed, normalised; T is
        `train_size`.

        The finished image is what is made smaller: kernels and noise, whose sizes are in pixels, and CutMix's squares
        then do to the image what they do at full size, and the same random numbers give the same picture in each phase.
        """
        batch = self._full_size_batch(rows, epoch=epoch, seed=seed)
        if self.train_size in (0, batch.shape[-1]) or not len(rows):
            return batch
        size = (self.train_size, self.train_size)
        # Antialiased: without it pixels would be skipped, as no resized image file has them skipped.
        smaller = F.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
        return smaller.contiguous(memory_format=torch.channels_last)

    def _full_size_batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        samples, preprocessing = self.samples, self.preprocessing
        # The usual case in one pass over the pixels; with copies or mixing the steps are taken one by one.
        if samples.oversample is None and samples.mixup is None:
            return augment_and_normalise(
                self._raw_pixels(samples.rows[rows]), samples.augment, seed=seed, epoch=epoch, keys=samples.keys[rows],
                divide_by=preprocessing.divide_by, mean=preprocessing.mean, std=preprocessing.std,
            )  # fmt: skip
        batch = self._augment(rows, epoch=epoch, seed=seed)
        mix_plan = self.samples.mix_plan(rows, seed=seed, epoch=epoch)
        if mix_plan is not None and len(rows):
            batch = mix_batch(batch, self._augment(mix_plan.partner, epoch=epoch, seed=seed), mix_plan)
        return self._normalise(batch)

    def targets(self, rows: NDArray[np.int64], *, epoch: int, seed: int, n_classes: int) -> torch.Tensor:
        """Return the labels of samples `rows`, (B,) int64, or (B, K) float32 shares where images are mixed."""
        labels = self.samples.labels
        mix_plan = self.samples.mix_plan(rows, seed=seed, epoch=epoch)
        size = self.preprocessing.size
        if mix_plan is None:
            targets = torch.from_numpy(labels[rows])
        else:
            targets = mix_labels(labels[rows], labels[mix_plan.partner], mix_plan, n_classes, size=size)
        return self.with_teacher(targets, rows, mix_plan, n_classes)

    def with_teacher(
        self, targets: torch.Tensor, rows: NDArray[np.int64], mix_plan: MixPlan | None, n_classes: int
    ) -> torch.Tensor:
        """Return the targets of samples `rows` on the device, with the teacher's beside them where there is one."""
        samples = self.samples
        partners = rows if mix_plan is None else mix_plan.partner
        targets = with_teacher(
            targets, samples.teacher, samples.rows[rows], samples.rows[partners], mix_plan,
            n_classes=n_classes, size=self.preprocessing.size,
        )  # fmt: skip
        return targets.to(self.device)

    def unaugmented_batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        """Return samples `rows` normalised; only copies are augmented, and nothing is mixed."""
        return self._normalise(self._augment(rows, epoch=epoch, seed=seed, copies_only=True))

    def plain_inputs(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Return samples `rows` as validation images are given: (B, 3, S, S) float32, and metadata, (B, M) float32."""
        image_rows = self.samples.rows[rows]
        return self._plain_batch(image_rows), *self._plain_metadata(image_rows)

    def validation_batch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return validation images `rows`, (B, 3, S, S) float32, normalised and not augmented."""
        return self._plain_batch(self.validation_rows[rows])

    def validation_logits(self, net: "Net", rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the whole net's logits of validation images `rows`, (B, K) float32."""
        logits: torch.Tensor = net(self.validation_batch(rows), *self.validation_metadata(rows))
        return logits

    def validation_metadata(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Return the second input of validation images `rows`, (B, M) float32; () without one."""
        return () if self.samples.metadata is None else self._plain_metadata(self.validation_rows[rows])

    def _plain_batch(self, image_rows: NDArray[np.int64]) -> torch.Tensor:
        return self._normalise(self._unit_pixels(image_rows))

    def _plain_metadata(self, image_rows: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        metadata = self.samples.metadata
        return () if metadata is None else (torch.from_numpy(metadata.vectors[image_rows]).to(self.device),)

    def _augment(
        self, rows: NDArray[np.int64], *, epoch: int, seed: int, copies_only: bool = False
    ) -> torch.Tensor:
        samples = self.samples
        batch = self._unit_pixels(samples.rows[rows])
        if samples.oversample is None:
            if copies_only:
                return batch
            return augment_batch(batch, samples.augment, seed=seed, epoch=epoch, keys=samples.keys[rows])
        is_copy = samples.copy_numbers[rows] > 0  # copies have their own augmentation (`oversample.augment`)
        masked_specs = [
            (is_copy, samples.oversample.augment),
            *([] if copies_only else [(~is_copy, samples.augment)]),
        ]
        for mask, spec in masked_specs:
            if mask.any():
                index = torch.from_numpy(np.flatnonzero(mask)).to(self.device)
                batch[index] = augment_batch(
                    batch[index], spec, seed=seed, epoch=epoch, keys=samples.keys[rows][mask]
                )
        return batch

    def _unit_pixels(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return self._raw_pixels(rows).permute(0, 3, 1, 2).to(torch.float32).div_(self.preprocessing.divide_by)

    def _raw_pixels(self, rows: NDArray[np.int64]) -> torch.Tensor:
        if isinstance(self.pixels, torch.Tensor):
            return self.pixels[torch.from_numpy(rows).to(self.pixels.device)]
        return torch.from_numpy(self.pixels[rows]).to(self.device)

    def _normalise(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.sub(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)


def pixels_on_device(
    pixels: PixelArray, device: torch.device, *, max_fraction: float = 0.5
) -> PixelArray | torch.Tensor:
    """Return the pixels as a tensor on a GPU where they fit into `max_fraction` of its free memory, else unchanged.

    max_fraction: the other half is for the net, its gradients and activations; chosen, not measured.
    """
    if device.type != "cuda":
        return pixels
    first_image = pixels[np.zeros(1, dtype=np.int64)]
    if first_image.nbytes * len(pixels) > max_fraction * torch.cuda.mem_get_info(device)[0]:
        return pixels
    return _upload(pixels, device)


def _upload(pixels: PixelArray, device: torch.device, *, chunk: int = 1024) -> torch.Tensor:
    """Copy all pixels to a device in chunks, so that they never lie in the machine's memory all at once."""
    shape = pixels[np.zeros(1, dtype=np.int64)].shape[1:]
    device_pixels = torch.empty((len(pixels), *shape), dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), chunk):
        rows = np.arange(start, min(start + chunk, len(pixels)))
        device_pixels[start : start + len(rows)] = torch.from_numpy(pixels[rows]).to(device)
    return device_pixels
