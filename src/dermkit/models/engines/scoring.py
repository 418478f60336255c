"""Nets in files as inference engines: what `InferenceEngine` is for torch, for ONNX Runtime and OpenVINO.

Without torch. Shapes: N images of S x S pixels, C features of an image, K classes, M columns of metadata.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Floats
from dermkit.models.engines.sessions import NetOutputs, Session
from dermkit.models.members import MemberFields
from dermkit.models.net_engine import (
    Features,
    Metadata,
    NetEngine,
    check_finite_rows,
    check_pixels,
    default_batch_size,
)
from dermkit.threads import cpu_count, ordered_map

if TYPE_CHECKING:
    from dermkit.models.net import Net

TOLERANCE = 1e-4
"""Largest difference of a probability from that of torch."""

BATCH_TOLERANCE = 1e-5
"""Largest difference of a probability between an image alone and in a batch: torch's own is 6e-7."""

FEATURE_TOLERANCE = 1e-3
"""Largest difference of a feature, in standard deviations of the features: distances from training images rest on
them."""

INT8_TOLERANCE = 0.05
"""Largest difference of a probability of a net in int8 between two machines: processors round its products otherwise,
and an error in its ranges moves probabilities by much more."""

_CPU = "cpu"
_Batch = TypeVar("_Batch")
_Output = TypeVar("_Output")


class SessionEngine:
    """Turns uint8 pixels into class probabilities by a `Session`. Thread-safe.

    net_variant: name and version of the engine. n_metadata: columns of the net's second input, 0 = none. n_views: of
    the net, which runs them as one batch.
    """

    def __init__(self, session: Session, net_variant: str, n_metadata: int = 0, n_views: int = 1) -> None:
        self.net_variant = net_variant
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
        check_finite_rows(np.asarray(np.isfinite(outputs.logits).all(axis=(1, 2))), "the model", names)
        return outputs.probabilities, outputs.features

    def _run(self, batch: NDArray[np.uint8], metadata: Metadata) -> NetOutputs:
        """Run the net on parts of a batch that take, all views together, the memory of a batch of one view."""
        size = len(batch) if self._n_views == 1 else max(1, default_batch_size(_CPU) // self._n_views)
        if size >= len(batch):
            return self.session(batch, metadata)
        parts = [slice(start, start + size) for start in range(0, len(batch), size)]
        outputs = [self.session(batch[part], None if metadata is None else metadata[part]) for part in parts]
        return NetOutputs(*(np.concatenate(arrays) for arrays in zip(*outputs, strict=True)))


def session_engine(session: Session, member: MemberFields, net_variant: str) -> SessionEngine:
    """Return the engine of a member's net in a file. net_variant: name and version of what runs it."""
    n_metadata = 0 if member.metadata is None else member.metadata.width
    return SessionEngine(session, net_variant, n_metadata, len(member.views))


@dataclass(frozen=True)
class SessionRuntime:
    """Nets in files, an engine for each, as the `Runtime` of a model. versions: that the numbers depend on."""

    session_engines: tuple[SessionEngine, ...]
    versions: Mapping[str, str]

    @property
    def nets(self) -> tuple["Net", ...]:
        """Return no torch net."""
        return ()

    @property
    def device_type(self) -> str:
        """Return cpu: both engines are used on the processor alone."""
        return _CPU

    @property
    def n_threads(self) -> int:
        """Return how many batches are computed at once by default: one on each core."""
        return cpu_count()

    def engines(self, _members: Sequence[MemberFields], _say: Callable[[str], None]) -> list[NetEngine]:
        """Return the engine of each net."""
        return list(self.session_engines)

    def parallel_batches(
        self, compute: Callable[[_Batch], _Output], batches: Iterable[_Batch], *, workers: int
    ) -> Iterator[_Output]:
        """Yield compute(batch) in order from `workers` threads: a session computes on the thread that calls it."""
        return ordered_map(compute, batches, n_threads=max(1, workers))
