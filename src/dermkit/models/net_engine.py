"""What scores the pixels of a model's nets, whatever runs them: the engine of a net, and the runtime of a model.

Without torch. Shapes: N images of S x S pixels, C features of an image, K classes, M columns of metadata.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dermkit import __version__
from dermkit.errors import DataError, UntrustedError
from dermkit.metrics.stats.arrays import Bools

if TYPE_CHECKING:
    from dermkit.models.members import MemberFields
    from dermkit.models.net import Net

FUSED_NET, UNFUSED_NET = "batch norms folded into convolutions", "as built"

_BATCH_SIZE = {"cpu": 16, "cuda": 64}
"""Images per forward pass in prediction: on a CPU as many as a core's own cache holds, on a GPU enough to occupy it
(not measured there: no GPU was at hand)."""

Metadata = NDArray[np.float32] | None
"""Encoded metadata (N, M) of a batch, None = unknown for all, or of a net without a second input."""

Features = NDArray[np.float32] | None
"""Pooled features (N, C) of a batch; None of a net that is not a backbone with a head."""

PixelBatch = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""Resized pixels (N, S, S, 3) of images; where members of a model resize in several ways, an array for each way."""

_Batch = TypeVar("_Batch")
_Output = TypeVar("_Output")


class NetEngine(Protocol):
    """What scores the pixels of one net. Thread-safe."""

    net_variant: str
    max_batch_size: int

    def score(
        self, batch: NDArray[np.uint8], names: Sequence[str] = (), metadata: Metadata = None
    ) -> tuple[NDArray[np.float64], Features]:
        """Return probabilities (N, K) and features (N, C) of resized pixels (N, S, S, 3) uint8.

        metadata: encoded; None = unknown for all images. Raises `UntrustedError` where an output is not finite.
        """
        ...


class Runtime(Protocol):
    """What runs the nets of a model: torch, or an engine that reads them from files.

    nets: those of torch, () where files hold them. device_type: cpu or cuda. versions: of software that the numbers
    depend on. n_threads: batches that are computed at once where nobody says how many.
    """

    @property
    def nets(self) -> tuple["Net", ...]: ...

    @property
    def device_type(self) -> str: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    @property
    def n_threads(self) -> int: ...

    def engines(self, members: "Sequence[MemberFields]", say: Callable[[str], None]) -> list[NetEngine]:
        """Return the engine of each member's net. say: told when a device's memory is too small for a batch."""
        ...

    def parallel_batches(
        self, compute: Callable[[_Batch], _Output], batches: Iterable[_Batch], *, workers: int
    ) -> Iterator[_Output]:
        """Yield compute(batch) in order from `workers` threads, each of which computes on one core."""
        ...


def software_versions() -> dict[str, str]:
    """Return the versions of software that numbers depend on, whatever runs the nets."""
    return {"dermkit": __version__, "python": platform.python_version(), "numpy": np.__version__}


def default_batch_size(device_type: str) -> int:
    """Return the default number of images per forward pass on a device, cpu or cuda."""
    return _BATCH_SIZE[device_type]


def check_pixels(batch: NDArray[np.uint8]) -> None:
    """Raise `DataError` for an array that is no batch of pixels, (N, S, S, 3) uint8."""
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
        raise DataError(f"batch is {batch.shape} {batch.dtype}, expected (N, S, S, 3) uint8")


def check_finite_rows(is_finite: Bools, subject: str, names: Sequence[str] = ()) -> None:
    """Raise `UntrustedError` unless all outputs of each of N images, (N,), are finite.

    Every comparison with nan is false, so that such an image would be called negative. names: of the images, else they
    are named by their place.
    """
    if is_finite.all():
        return
    rows = np.flatnonzero(~is_finite).tolist()
    listed_names = ", ".join(names[row] if names else f"image {row + 1} of the batch" for row in rows[:5])
    raise UntrustedError(
        f"{subject} gives numbers that are not finite (nan or inf) for {len(rows)} of {len(is_finite)} images: "
        f"{listed_names}{', ...' if len(rows) > 5 else ''}",
        outcome="no image of this batch was scored, called or written",
        remedy="these weights are broken or overflow: copy the model or the weights anew, or train it again",
    )
