"""The second input of a batch: encoded metadata of its samples, with random fields unknown, mixed as the images are.

Whether a field is unknown depends on (seed, epoch, sample, field) alone.

Shapes: N images of the data set, B samples of a batch, M columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermkit.models.metadata import MetadataEncoder
from dermkit.training.augment.mixup import MixPlan
from dermkit.training.augment.random_numbers import CounterRng, ImageKeys, Stream

_STREAMS: Mapping[str, Stream] = {
    "age": Stream.UNKNOWN_AGE, "sex": Stream.UNKNOWN_SEX, "site": Stream.UNKNOWN_SITE,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class EncodedMetadata:
    """The metadata of every image of a data set, encoded by the training images of a run.

    vectors: (N, M) float32, a row for each row of the pixel array. p_unknown: as the recipe has it.
    """

    encoder: MetadataEncoder
    vectors: NDArray[np.float32]
    p_unknown: float

    def training_vectors(
        self, rows: NDArray[np.int64], keys: ImageKeys, *, seed: int, epoch: int
    ) -> NDArray[np.float32]:
        """Return the vectors of samples (B, M), with fields set to unknown. rows: (B,) of the pixel array."""
        vectors = self.vectors[rows]
        if not self.p_unknown:
            return vectors
        rng = CounterRng(np.asarray(keys, dtype=np.uint64), seed, epoch)
        for name, columns in self.encoder.columns_of_field.items():
            vectors[rng.bernoulli(_STREAMS[name], self.p_unknown), columns] = 0.0
        return vectors


def mix_vectors(
    vectors: NDArray[np.float32], partners: NDArray[np.float32], plan: MixPlan, *, size: int
) -> NDArray[np.float32]:
    """Return vectors (B, M) mixed with their partners' by the shares of their labels. size: of the images, pixels."""
    self_weights = plan.label_weights(size).astype(np.float32)[:, None]
    return np.asarray(self_weights * vectors + (1 - self_weights) * partners, dtype=np.float32)
