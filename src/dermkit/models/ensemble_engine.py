"""The mean of several nets, whatever runs them. Without torch.

Shapes: N images of S x S pixels, C features of an image, K classes, M columns of metadata.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import DataError
from dermkit.models.members import MemberFields, distinct_resizings, mean_probabilities
from dermkit.models.net_engine import FUSED_NET, Features, Metadata, NetEngine, PixelBatch


class EnsembleEngine:
    """Turns uint8 pixels into the weighted mean of nets' calibrated probabilities, as a `NetEngine` does of one.

    members: of each engine, what is done with its probabilities, and how its pixels were resized.
    """

    def __init__(self, engines: Sequence[NetEngine], members: Sequence[MemberFields]) -> None:
        self.engines, self.members = tuple(engines), tuple(members)
        resizings, self._resizing_of_member = distinct_resizings(self.members)
        self._n_resizings = len(resizings)
        variants = {engine.net_variant for engine in engines}
        self.net_variant = variants.pop() if len(variants) == 1 else f"{FUSED_NET} where possible"

    @property
    def max_batch_size(self) -> int:
        """Return how many images the device's memory holds in one pass of each net."""
        return min(engine.max_batch_size for engine in self.engines)

    def __call__(
        self, batch: PixelBatch, names: Sequence[str] = (), metadata: Sequence[Metadata] = ()
    ) -> NDArray[np.float64]:
        """Score resized pixels; returns probabilities (N, classes) float64. metadata: for each net; () = unknown."""
        return self.score(batch, names, metadata)[0]

    def score(
        self, batch: PixelBatch, names: Sequence[str] = (), metadata: Sequence[Metadata] = ()
    ) -> tuple[NDArray[np.float64], list[Features]]:
        """Return the same probabilities, and each net's features of its first view."""
        arrays = (batch,) if isinstance(batch, np.ndarray) else tuple(batch)
        if len(arrays) != self._n_resizings:
            raise DataError(
                f"a batch of {len(arrays)} arrays: this model's nets take images resized in {self._n_resizings} ways",
                remedy="give an array of resized pixels for each of the model's `resizings`",
            )
        outputs = [
            engine.score(arrays[index], names, encoded)
            for engine, index, encoded in zip(
                self.engines, self._resizing_of_member, metadata or [None] * len(self.engines), strict=True
            )
        ]
        probabilities = mean_probabilities([p for p, _ in outputs], self.members)
        return probabilities, [features for _, features in outputs]
