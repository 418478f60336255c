"""A frozen backbone's features: computed once per image and view, kept, and found again by any run, fold or seed.

A feature belongs to the net, the numbers it was computed in, the image's pixels, and the sample's own random numbers;
nothing else is in its key, so what another run has computed is not computed again.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dermkit.data.cache.store import Store, hashed
from dermkit.errors import DataError, Interrupted
from dermkit.files import canonical_json, fingerprint
from dermkit.models.inference import PASS, fast_backbone, passes, plain_float32, side_by_side, streams
from dermkit.models.net import Net, backbone_fingerprint
from dermkit.models.precision import autocast
from dermkit.recipes.schema import ComputeSpec, ModelSpec
from dermkit.training.augment.batch import AUGMENTATION
from dermkit.training.distributed.process_group import Ranks
from dermkit.training.samples import PixelSource, Samples

_KEPT = 1024
"""Images whose features are written at once: what an interruption loses at most."""

_HELD = 2**30
"""Bytes of one view's features that are held in memory; larger ones are read from the store batch by batch."""

_WAY = 1
"""Raise it whenever features are computed in another way than before: what older versions kept is then not found."""

FLOAT32 = ComputeSpec(precision="float32", compile=False)

Keys = NDArray[np.uint8]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Making:
    """What features are made with. row_keys: (N, 32) uint8, of every row of the pixel array, by content."""

    net: Net
    model: ModelSpec
    compute: ComputeSpec
    row_keys: Keys
    device: torch.device
    cache: Path
    ranks: Ranks
    on_step: Callable[[str, int, int], None]
    stop: Callable[[], bool]


class FeatureSource:
    """Batches of a frozen backbone's features, one view an epoch, in turn (see `Phase.views`)."""

    def __init__(
        self,
        pixels: PixelSource,
        store: Store,
        views: NDArray[np.int64],
        validation: NDArray[np.float32],
        *,
        plain: bool,
    ) -> None:
        self.samples = pixels.samples
        self.pixels = pixels
        self.store = store
        self.views = views
        self.validation = validation
        self.plain = plain
        self._held: tuple[int, NDArray[np.float32]] | None = None

    def module(self, net: Net) -> torch.nn.Module:
        """Return the head."""
        return net.head

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:  # noqa: ARG002
        """Return (N, width) float32: the epoch's view of these samples."""
        view = self._view(epoch) - 1
        if self.views.shape[1] * self.validation.shape[1] * 4 > _HELD:
            return torch.from_numpy(self.store.take(self.views[view][rows])).to(self.pixels.device)
        if self._held is None or self._held[0] != view:
            self._held = (view, self.store.take(self.views[view]))
        return torch.from_numpy(self._held[1][rows]).to(self.pixels.device)

    def targets(self, rows: NDArray[np.int64], *, epoch: int, seed: int, n_classes: int) -> torch.Tensor:
        """Return the labels of the epoch's view: mixed where the view's images were."""
        if self.plain:
            return torch.from_numpy(self.samples.labels[rows]).to(self.pixels.device)
        return self.pixels.targets(rows, epoch=self._view(epoch), seed=seed, n_classes=n_classes)

    def validation_logits(self, net: Net, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the head's logits."""
        logits: torch.Tensor = net.head(torch.from_numpy(self.validation[rows]).to(self.pixels.device))
        return logits

    def _view(self, epoch: int) -> int:
        return (epoch - 1) % len(self.views) + 1


def feature_source(pixels: PixelSource, making: Making, *, seed: int, views: int) -> FeatureSource:
    """Run the frozen backbone once per view and image, or find that in the cache; views 0 = the image as it is.

    Training features are computed as the recipe says, validation features in float32, as a served net computes.
    Raises `Interrupted` where `stop` asked for it; whole parts made so far are kept.
    """
    making.net.eval()
    fast, way = fast_backbone(making.net.backbone, pixels.preprocessing)
    samples, plain = pixels.samples, views == 0
    store = Store(
        making.cache, f"features-{_origin(making, pixels, way)}", shape=(making.net.n_features,), dtype="float32"
    )
    count = max(views, 1)
    total = len(samples) * count + len(pixels.validation)
    positions = []
    for view in range(1, count + 1):
        keys = _sample_keys(samples, making, seed=seed, view=view, plain=plain)

        batch = partial(pixels.originals if plain else pixels.batch, epoch=view, seed=seed)
        make = partial(_features, fast, making.compute, batch)
        positions.append(_made(store, keys, make, making, ((view - 1) * len(samples), total)))
    own = hashed("float32", map(bytes, making.row_keys[pixels.validation]))
    make = partial(_features, fast, FLOAT32, pixels.plain)
    checked = _made(store, own, make, making, (count * len(samples), total))
    return FeatureSource(pixels, store, np.stack(positions), store.take(checked), plain=plain)


def _origin(making: Making, pixels: PixelSource, way: str) -> str:
    """Two nets may share every tensor and still differ: padding and stride are no tensors."""
    how = [_WAY, AUGMENTATION, way, making.device.type, torch.__version__]
    return fingerprint(
        how, backbone_fingerprint(making.net), asdict(making.model), version("timm"), asdict(pixels.preprocessing)
    )


def _sample_keys(samples: Samples, making: Making, *, seed: int, view: int, plain: bool) -> Keys:
    """Return a key per sample: an image as it is has the same one in every run, a random view that of its numbers."""
    own = making.row_keys[samples.rows]
    precision = making.compute.precision
    changed = samples.copies > 0 if plain else np.ones(len(samples), dtype=bool)
    keys = hashed(precision, map(bytes, own)).copy()
    if not changed.any():
        return keys
    grow = asdict(samples.grow) if samples.grow else None
    how = canonical_json([precision, seed, view, asdict(samples.augment), grow])
    parts = [own, samples.keys.astype("<u8")[:, None].view(np.uint8)]
    mixes = None if plain else samples.mixing(np.arange(len(samples)), seed=seed, epoch=view)
    if mixes is not None:
        how += canonical_json([asdict(samples.mix) if samples.mix else None, len(samples)])
        parts += [own[mixes.partner], samples.keys[mixes.partner].astype("<u8")[:, None].view(np.uint8)]
    random = hashed(how, map(bytes, np.concatenate(parts, axis=1)))
    keys[changed] = random[changed]
    return keys


def _made(
    store: Store,
    keys: Keys,
    make: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    making: Making,
    span: tuple[int, int],
) -> NDArray[np.int64]:
    """Return where the features of all keys lie; every rank makes its share of those that are not there yet."""
    # Rank 0's look decides: another run may be adding at this moment, and the shares must be of one list.
    absent = torch.from_numpy(np.flatnonzero(store.find(keys) < 0))
    missing = making.ranks.share(making.ranks.gather(absent if making.ranks.first else absent[:0]).numpy())
    pending: list[NDArray[np.float32]] = []
    kept = done = 0
    for values in side_by_side(make, passes(missing, making.device), workers=streams(making.device)):
        pending.append(values)
        done += len(values)
        making.on_step("features", span[0] + done, span[1])
        stop = making.stop()
        if stop or done - kept >= _KEPT or done == len(missing):
            store.add(keys[missing[kept:done]], np.concatenate(pending))
            kept, pending = done, []
        if stop:
            raise Interrupted(
                "interrupted while features were made",
                kept=f"{making.cache}, the features of {done} images",
                remedy="run the same command with --resume",
            )
    making.ranks.barrier()
    store.refresh()
    places = store.find(keys)
    if (places < 0).any():
        raise DataError(
            f"{making.cache}: features that were just written are not there",
            kept="the run's checkpoints",
            remedy="run the same command with --resume; on several machines all must see this folder",
        )
    return places


def _features(
    backbone: torch.nn.Module, compute: ComputeSpec, batch: Callable[[Rows], torch.Tensor], rows: Rows
) -> NDArray[np.float32]:
    """Return (len(rows), width).

    The last image is repeated up to a whole pass: an input of another shape may round otherwise, and what is kept must
    not depend on what else was missing.
    """
    inputs = batch(rows)
    spare = PASS[inputs.device.type] - len(rows)
    inputs = torch.cat([inputs, inputs[-1:].expand(spare, -1, -1, -1)]) if spare else inputs
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(compute, inputs.device), plain_float32(inputs.device):
        features = backbone(inputs)[: len(rows)]
    return np.asarray(features.float().cpu().numpy(), dtype=np.float32)
