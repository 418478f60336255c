"""Nets in files as inference engines: what `InferenceEngine` is for torch, for ONNX Runtime and OpenVINO.

Shapes: N images of S x S pixels, C features of an image, K classes, M columns of metadata.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Floats
from dermkit.models.engines.sessions import NetOutputs, Session
from dermkit.models.inference import Features, Metadata, check_finite, default_batch_size
from dermkit.models.view_pixels import check_pixels


class SessionEngine:
    """Turns uint8 pixels into class probabilities by a `Session`. Thread-safe.

    net_variant: name and version of the engine. n_metadata: columns of the net's second input, 0 = none. n_views: of
    the net, which runs them as one batch.
    """

    def __init__(self, session: Session, net_variant: str, n_metadata: int = 0, n_views: int = 1) -> None:
        self.net_variant = net_variant
        self.device = torch.device("cpu")
        self.max_batch_size = 2**31
        self.session, self._n_metadata, self._n_views = session, n_metadata, n_views

    def score(
        self, batch: NDArray[np.uint8], names: Sequence[str] = (), metadata: Metadata = None
    ) -> tuple[Floats, Features]:
        """Score resized pixels (N, S, S, 3) uint8; returns probabilities (N, K) float64 and features (N, C) float32.

        metadata: encoded; None = unknown for all images. Raises `UntrustedError` where an output is not finite.
        """
        check_pixels(batch)
        if self._n_metadata and metadata is None:
            metadata = np.zeros((len(batch), self._n_metadata), dtype=np.float32)
        outputs = self._run(batch, metadata)
        check_finite(torch.from_numpy(outputs.logits), "the model", names)
        return outputs.probabilities, outputs.features

    def _run(self, batch: NDArray[np.uint8], metadata: Metadata) -> NetOutputs:
        """Run the net on parts of a batch that take, all views together, the memory of a batch of one view."""
        size = len(batch) if self._n_views == 1 else max(1, default_batch_size(self.device) // self._n_views)
        if size >= len(batch):
            return self.session(batch, metadata)
        parts = [slice(start, start + size) for start in range(0, len(batch), size)]
        outputs = [self.session(batch[part], None if metadata is None else metadata[part]) for part in parts]
        return NetOutputs(*(np.concatenate(arrays) for arrays in zip(*outputs, strict=True)))
