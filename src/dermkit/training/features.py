"""Features of a frozen backbone, computed once per image and view and cached for all runs, folds and seeds.

A feature's key holds what it depends on and nothing else: the net, the precision, the image's pixels, and the random
numbers of the sample's augmentation. So what any run has computed is not computed again.

Shapes: N samples of an epoch, B of a batch, V validation images, C features of an image.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dermkit.data.cache.store import Store, hash_keys
from dermkit.errors import DataError, RunInterrupt
from dermkit.files import canonical_json, fingerprint
from dermkit.models.inference import (
    EVAL_BATCH_SIZE,
    check_finite,
    eval_batches,
    exact_float32,
    fused_backbone,
    n_parallel_batches,
    parallel_batches,
)
from dermkit.models.net import Net, backbone_fingerprint
from dermkit.models.precision import autocast
from dermkit.progress import Progress
from dermkit.recipes.augmentation import AugmentSpec
from dermkit.recipes.formats import ADDED_MODEL_FIELDS, with_format_2_names
from dermkit.recipes.schema import ModelSpec, OversampleSpec
from dermkit.recipes.training_specs import ComputeSpec, MixupSpec
from dermkit.training.augment.batch import AUGMENTATION_VERSION
from dermkit.training.distributed.process_group import ProcessGroup
from dermkit.training.samples import PixelSource, Samples

_IMAGES_PER_WRITE = 1024
"""Images whose features are written at once: the most that an interruption loses. Chosen, not measured."""

_MAX_VIEW_BYTES = 2**30
"""A view of at most this many bytes is held in memory; a larger one is read from the store batch by batch."""

_COMPUTE_VERSION = 1
"""Part of every key: raise it when features are computed in another way, and older ones are no longer found."""

_FLOAT32 = ComputeSpec(precision="float32", compile=False)

_Keys = NDArray[np.uint8]
_Indices = NDArray[np.int64]


@dataclass(frozen=True)
class FeatureJob:
    """What features are computed with.

    pixel_keys: (rows, 32) uint8, a key of each row of the pixel array by its content. should_stop: asked after every
    batch.
    """

    net: Net
    model: ModelSpec
    compute: ComputeSpec
    pixel_keys: _Keys
    device: torch.device
    cache_folder: Path
    process_group: ProcessGroup
    progress: Progress
    should_stop: Callable[[], bool]


class FeatureSource:
    """Batches of a frozen backbone's features: the views take turns, one an epoch (see `Phase.views`).

    views: (views, N) int64, where each view's features lie in the store. validation_features: (V, C) float32.
    """

    def __init__(
        self,
        pixel_source: PixelSource,
        store: Store,
        views: NDArray[np.int64],
        validation_features: NDArray[np.float32],
        *,
        is_unaugmented: bool,
    ) -> None:
        self.samples = pixel_source.samples
        self.pixel_source = pixel_source
        self.store = store
        self.views = views
        self.validation_features = validation_features
        self.is_unaugmented = is_unaugmented
        self._view_cache: tuple[int, NDArray[np.float32]] | None = None

    def module(self, net: Net) -> torch.nn.Module:
        """Return the head."""
        return net.head

    def inputs(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> tuple[torch.Tensor, ...]:
        """Return (B, C) float32 features; with metadata (B, C + M), these beside them, mixed as the epoch's view."""
        samples, features = self.samples, self.batch(rows, epoch=epoch, seed=seed)
        mix_plan = None if self.is_unaugmented else samples.mix_plan(rows, seed=seed, epoch=self.view(epoch))
        size = self.pixel_source.preprocessing.size
        metadata = samples.metadata_inputs(rows, mix_plan, seed=seed, epoch=epoch, size=size)
        return (_joined(features, *metadata),)

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:  # noqa: ARG002
        """Return (B, C) float32 features of these samples in the epoch's view; rows: (B,)."""
        view_index = self.view(epoch) - 1
        if self.views.shape[1] * self.validation_features.shape[1] * 4 > _MAX_VIEW_BYTES:
            return torch.from_numpy(self.store.read(self.views[view_index][rows])).to(self.pixel_source.device)
        if self._view_cache is None or self._view_cache[0] != view_index:
            self._view_cache = (view_index, self.store.read(self.views[view_index]))
        return torch.from_numpy(self._view_cache[1][rows]).to(self.pixel_source.device)

    def targets(self, rows: NDArray[np.int64], *, epoch: int, seed: int, n_classes: int) -> torch.Tensor:
        """Return the targets of the epoch's view: mixed labels where its images were mixed."""
        if self.is_unaugmented:
            labels = torch.from_numpy(self.samples.labels[rows])
            return self.pixel_source.with_teacher(labels, rows, None, n_classes)
        return self.pixel_source.targets(rows, epoch=self.view(epoch), seed=seed, n_classes=n_classes)

    def validation_logits(self, net: Net, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the head's logits, (B, K) float32, of validation images `rows`."""
        features = torch.from_numpy(self.validation_features[rows]).to(self.pixel_source.device)
        logits: torch.Tensor = net.head(_joined(features, *self.pixel_source.validation_metadata(rows)))
        return logits

    def view(self, epoch: int) -> int:
        """Return the number of an epoch's view, from 1."""
        return (epoch - 1) % len(self.views) + 1


def _joined(features: torch.Tensor, *metadata: torch.Tensor) -> torch.Tensor:
    """Return features, and beside them the metadata of their images where there are some, as `Net` joins them."""
    return (
        torch.cat([features, *(vectors.to(features.device) for vectors in metadata)], dim=1)
        if metadata
        else features
    )


def feature_source(pixel_source: PixelSource, job: FeatureJob, *, seed: int, views: int) -> FeatureSource:
    """Run the frozen backbone once per view and image, unless the cache has its features.

    views: augmented views of each image; 0 = one view, without augmentation. Training features have the recipe's
    precision; validation features are float32, as in prediction. Raises `RunInterrupt` where `should_stop` says so; the
    cache then holds what was computed.
    """
    job.net.eval()  # frozen: batch norm uses its running statistics, dropout is off
    backbone, net_variant = fused_backbone(job.net.backbone, pixel_source.preprocessing)
    samples, is_unaugmented = pixel_source.samples, views == 0
    store = Store(
        job.cache_folder,
        f"features-{_store_fingerprint(job, pixel_source, net_variant)}",
        shape=(job.net.n_features,),
        dtype="float32",
    )
    n_views = max(views, 1)
    n_total = len(samples) * n_views + len(pixel_source.validation_rows)
    positions = []
    for view in range(1, n_views + 1):
        keys = _sample_keys(samples, job, seed=seed, view=view, is_unaugmented=is_unaugmented)

        make_batch = partial(
            pixel_source.unaugmented_batch if is_unaugmented else pixel_source.batch, epoch=view, seed=seed
        )
        compute_batch = partial(_compute_features, backbone, job.compute, make_batch)
        positions.append(_compute_missing(store, keys, compute_batch, job, ((view - 1) * len(samples), n_total)))
    validation_keys = hash_keys("float32", map(bytes, job.pixel_keys[pixel_source.validation_rows]))
    compute_batch = partial(_compute_features, backbone, _FLOAT32, pixel_source.validation_batch)
    validation_positions = _compute_missing(
        store, validation_keys, compute_batch, job, (n_views * len(samples), n_total)
    )
    return FeatureSource(
        pixel_source, store, np.stack(positions), store.read(validation_positions), is_unaugmented=is_unaugmented
    )


def _spec_fields(model: ModelSpec) -> dict[str, Any]:
    """Return the fields of `model` that features of a frozen backbone can depend on.

    Those of the dense layers stand at what a classifier has, so that heads of all kinds share features, and features
    of older versions are found.
    """
    without_layers = replace(model, hidden=(), dropout=0.0)
    return {name: value for name, value in asdict(without_layers).items() if name not in ADDED_MODEL_FIELDS}


def _store_fingerprint(job: FeatureJob, pixel_source: PixelSource, net_variant: str) -> str:
    """Return the store's name. The model spec is in it, since padding and stride are not in the state dict."""
    settings = [_COMPUTE_VERSION, AUGMENTATION_VERSION, net_variant, job.device.type, torch.__version__]
    return fingerprint(
        settings,
        backbone_fingerprint(job.net),
        _spec_fields(job.model),
        version("timm"),
        asdict(pixel_source.preprocessing),
    )


def _hashed_fields(spec: AugmentSpec | OversampleSpec | MixupSpec | None) -> Any:
    return with_format_2_names(asdict(spec)) if spec else None


def _sample_keys(samples: Samples, job: FeatureJob, *, seed: int, view: int, is_unaugmented: bool) -> _Keys:
    """Return a key per sample, (N, 32) uint8.

    An unaugmented image's key holds its pixels and the precision alone, so all runs share it. An augmented one's holds
    its random numbers too (settings, seed, view, sample key), and its partner's where it is mixed.
    """
    pixel_keys = job.pixel_keys[samples.rows]
    precision = job.compute.precision
    is_augmented = samples.copy_numbers > 0 if is_unaugmented else np.ones(len(samples), dtype=bool)
    keys = hash_keys(precision, map(bytes, pixel_keys)).copy()
    if not is_augmented.any():
        return keys
    augment_fields, oversample_fields = _hashed_fields(samples.augment), _hashed_fields(samples.oversample)
    settings = canonical_json([precision, seed, view, augment_fields, oversample_fields])
    # Little-endian, so that keys are the same on every kind of processor.
    key_columns = [pixel_keys, samples.keys.astype("<u8")[:, None].view(np.uint8)]
    mix_plan = None if is_unaugmented else samples.mix_plan(np.arange(len(samples)), seed=seed, epoch=view)
    if mix_plan is not None:
        settings += canonical_json([_hashed_fields(samples.mixup), len(samples)])
        key_columns += [
            pixel_keys[mix_plan.partner],
            samples.keys[mix_plan.partner].astype("<u8")[:, None].view(np.uint8),
        ]
    augmented_keys = hash_keys(settings, map(bytes, np.concatenate(key_columns, axis=1)))
    keys[is_augmented] = augmented_keys[is_augmented]
    return keys


def _compute_missing(
    store: Store,
    keys: _Keys,
    compute_batch: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    job: FeatureJob,
    progress_range: tuple[int, int],
) -> NDArray[np.int64]:
    """Return the store positions of all keys, (N,) int64; every rank computes its shard of the missing features."""
    # Rank 0 alone decides what is missing: another run may be writing, and all ranks must shard the same list.
    absent_rows = torch.from_numpy(np.flatnonzero(store.index(keys) < 0))
    shard = job.process_group.shard(
        job.process_group.gather(absent_rows if job.process_group.is_first else absent_rows[:0]).numpy()
    )
    unwritten: list[NDArray[np.float32]] = []
    n_written = n_done = 0
    for features in parallel_batches(
        compute_batch, eval_batches(shard, job.device), workers=n_parallel_batches(job.device)
    ):
        unwritten.append(features)
        n_done += len(features)
        job.progress.step("features", progress_range[0] + n_done, progress_range[1])
        is_stopping = job.should_stop()
        if is_stopping or n_done - n_written >= _IMAGES_PER_WRITE or n_done == len(shard):
            store.add(keys[shard[n_written:n_done]], np.concatenate(unwritten))
            n_written, unwritten = n_done, []
        if is_stopping:
            raise RunInterrupt(
                "interrupted while features were made",
                outcome=f"{job.cache_folder}, the features of {n_done} images",
                remedy="run the same command with --resume",
            )
    job.process_group.barrier()
    store.refresh()  # to see what the other ranks have written
    positions = store.index(keys)
    if (positions < 0).any():
        raise DataError(
            f"{job.cache_folder}: features that were just written are not there",
            outcome="the run's checkpoints",
            remedy="run the same command with --resume; on several machines all must see this folder",
        )
    return positions


def _compute_features(
    backbone: torch.nn.Module, compute: ComputeSpec, make_batch: Callable[[_Indices], torch.Tensor], rows: _Indices
) -> NDArray[np.float32]:
    """Return the features of samples `rows`, (len(rows), C) float32.

    Every batch is padded to the full size with its last image: kernels may round differently for other shapes, and a
    cached feature must not depend on which others were missing.
    """
    inputs = make_batch(rows)
    n_padding = EVAL_BATCH_SIZE[inputs.device.type] - len(rows)
    inputs = torch.cat([inputs, inputs[-1:].expand(n_padding, -1, -1, -1)]) if n_padding else inputs
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(compute, inputs.device), exact_float32(inputs.device):
        features = backbone(inputs)[: len(rows)]
    check_finite(features, f"the frozen backbone, in {compute.precision},")
    return np.asarray(features.float().cpu().numpy(), dtype=np.float32)
