"""Batches of cached features with those that SMOTE adds to each view, for dense layers.

Shapes: N samples of an epoch, R of them real and the others new, B of a batch, C features, K classes.
"""

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dermkit.recipes.training_specs import SmoteSpec
from dermkit.training.samples import Samples
from dermkit.training.smote import make_samples, n_new_samples

if TYPE_CHECKING:
    from dermkit.models.net import Net
    from dermkit.training.features import FeatureSource

_MAX_BYTES = 2**30
"""New features of all views are kept where they are at most this large; otherwise those of one view, which are made
again when its turn comes."""


class SmoteSource:
    """A feature source whose last samples are new ones: the first R are the real, whatever the view.

    Classes are counted with them, so class weights, sampling and logit adjustment see what an epoch shows. Validation
    features are those of the source.
    """

    def __init__(self, source: "FeatureSource", spec: SmoteSpec, *, seed: int) -> None:
        self.source, self.spec, self.seed = source, spec, seed
        self.samples = _with_new_samples(source.samples, spec)
        self._by_view: dict[int, NDArray[np.float32]] = {}
        self._lock = threading.Lock()  # batches are prepared by several threads

    def module(self, net: "Net") -> torch.nn.Module:
        """Return the head."""
        return self.source.module(net)

    def inputs(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> tuple[torch.Tensor, ...]:
        """Return the features of these samples; a recipe with SMOTE has no metadata, whose categories it would mix."""
        return (self.batch(rows, epoch=epoch, seed=seed),)

    def batch(self, rows: NDArray[np.int64], *, epoch: int, seed: int) -> torch.Tensor:
        """Return (B, C) float32 features of these samples in the epoch's view; rows: (B,)."""
        n_real = len(self.source.samples)
        is_new = rows >= n_real
        real = self.source.batch(rows[~is_new], epoch=epoch, seed=seed)
        if not is_new.any():
            return real
        features = real.new_empty(len(rows), real.shape[1])
        features[torch.from_numpy(~is_new)] = real
        new = self._new_features(epoch)[rows[is_new] - n_real]
        features[torch.from_numpy(is_new)] = torch.from_numpy(new).to(real.device)
        return features

    def targets(self, rows: NDArray[np.int64], *, epoch: int, seed: int, n_classes: int) -> torch.Tensor:  # noqa: ARG002
        """Return the labels of samples `rows`, (B,) int64."""
        return torch.from_numpy(self.samples.labels[rows]).to(self.source.pixel_source.device)

    def validation_logits(self, net: "Net", rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the head's logits, (B, K) float32, of validation images `rows`."""
        return self.source.validation_logits(net, rows)

    def _new_features(self, epoch: int) -> NDArray[np.float32]:
        view = self.source.view(epoch)
        with self._lock:
            if view not in self._by_view:
                all_real = np.arange(len(self.source.samples))
                features = self.source.batch(all_real, epoch=view, seed=self.seed).cpu().numpy()
                new = make_samples(features, self.source.samples.labels, self.spec, seed=self.seed, view=view)
                if new.features.nbytes * len(self.source.views) > _MAX_BYTES:
                    self._by_view.clear()
                self._by_view[view] = new.features
            return self._by_view[view]


def _with_new_samples(samples: Samples, spec: SmoteSpec) -> Samples:
    """Return the samples and the new ones behind them, class by class; their ids say that they are no images."""
    counts = n_new_samples(samples.labels, spec)
    labels = np.repeat(np.arange(len(counts)), counts)
    zeros = np.zeros(len(labels), dtype=np.int64)
    return replace(
        samples,
        rows=np.concatenate([samples.rows, len(samples.image_ids) + labels]),
        copy_numbers=np.concatenate([samples.copy_numbers, zeros]),
        labels=np.concatenate([samples.labels, labels]),
        keys=np.concatenate([samples.keys, zeros.astype(np.uint64)]),
        image_ids=(*samples.image_ids, *(f"SMOTE of class {label}" for label in range(len(counts)))),
    )
