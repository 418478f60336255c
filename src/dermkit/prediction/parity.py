"""Whether an exported net gives what the torch net gives: probabilities, labels and features, and the worst case.

Shapes: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import UntrustedError
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.engines.scoring import BATCH_TOLERANCE, FEATURE_TOLERANCE, TOLERANCE
from dermkit.models.engines.sessions import NetOutputs, Session
from dermkit.models.members import MemberFields, distinct_resizings, mean_probabilities
from dermkit.prediction.parity_images import BATCH_SIZE, ParityImages

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

MAX_PIXELS_AT_ONCE = 128 * 224**2
"""That pass a net at once, each view counted: about a gigabyte. 32 images in 13 views at 224 px would need four."""


@dataclass(frozen=True)
class ParityReport:
    """How far an exported model lies from the torch model on n_images images; differences are the largest of all.

    images: what these are. worst_image: the name of that with the largest difference. n_different_labels: images with
    another most probable class, n_different_calls: on the other side of the operating point in use; both only where two
    numbers nearly tie. n_in_batch: size of the batch that single images are compared with, the smallest of all nets.
    names, expected, exported: of each image, and its probabilities from torch and from the exported nets, (N, K).
    """

    images: str
    n_images: int
    worst_image: str
    max_probability_difference: float
    n_different_labels: int
    n_different_calls: int
    max_batch_difference: float
    n_in_batch: int
    max_feature_difference: float
    names: tuple[str, ...] = field(default=(), repr=False, compare=False)
    expected: Floats = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    exported: Floats = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return it for the JSON, without the name of an image, which may be that of a patient."""
        names = (
            "images", "n_images", "max_probability_difference", "n_different_labels", "n_different_calls",
            "max_batch_difference", "n_in_batch", "max_feature_difference",
        )  # fmt: skip
        limits = {
            "tolerance": TOLERANCE,
            "batch_tolerance": BATCH_TOLERANCE,
            "feature_tolerance": FEATURE_TOLERANCE,
        }
        return {**{name: getattr(self, name) for name in names}, **limits}

    @property
    def problem(self) -> str:
        """What is too far apart, "" where nothing is. A difference that is no number is."""
        if not self.max_probability_difference <= TOLERANCE:
            return (
                f"a probability of {self.worst_image} differs by {self.max_probability_difference:.2g} "
                f"(at most {TOLERANCE:g} may be)"
            )
        if not self.max_batch_difference <= BATCH_TOLERANCE:
            return (
                f"a probability differs by {self.max_batch_difference:.2g} between an image alone and in a batch "
                f"(at most {BATCH_TOLERANCE:g} may be)"
            )
        if not self.max_feature_difference <= FEATURE_TOLERANCE:
            return (
                f"a feature differs by {self.max_feature_difference:.2g} standard deviations "
                f"(at most {FEATURE_TOLERANCE:g} may be)"
            )
        return ""

    def sentences(self) -> list[str]:
        """Return what a person reads."""
        return [
            f"compared with torch on {self.n_images} images ({self.images}): largest difference of a probability "
            f"{self.max_probability_difference:.2g} ({self.worst_image}; at most {TOLERANCE:g} may be)",
            f"labels that differ: {self.n_different_labels} of {self.n_images}; one image alone against a batch of "
            f"{self.n_in_batch}: {self.max_batch_difference:.2g}",
        ]

    def check(self, exported: str) -> None:
        """Raise `UntrustedError` where something is too far apart. exported: the format, for the message."""
        if self.problem:
            raise UntrustedError(
                f"the {exported} net does not give what the torch net gives: {self.problem}; {self.images}, "
                f"{self.n_images} of them",
                outcome="nothing was written",
                remedy="export it to the other format, or score images with torch: `dermkit predict MODEL IMAGES "
                "--out DIR`",
            )


_Inputs = tuple[Sequence[NDArray[np.uint8]], Sequence[NDArray[np.float32] | None]]
"""Pixels (N, S, S, 3) for each of the model's resizings, and metadata (N, M) for each net."""


@dataclass(frozen=True)
class _Batch:
    """Numbers of one batch: probabilities of torch and of the exported nets, (N, K), and the features' difference."""

    names: list[str]
    torch: Floats
    exported: Floats
    feature_difference: float


def compare_nets(predictor: "Predictor", sessions: Sequence[Session], images: ParityImages) -> ParityReport:
    """Return how far the exported nets, one session each, lie from those of the torch model.

    Metadata are random, so that a second input is compared too. Raises `ValueError` where no file can be used as an
    image.
    """
    batches: list[_Batch] = []
    batch_difference = None
    rng = np.random.default_rng(0)
    for names, pixels in images.batches(predictor.resizings):
        metadata = [
            None if member.metadata is None else rng.random((len(names), member.metadata.width), dtype=np.float32)
            for member in predictor.members
        ]
        outputs = run_sessions(predictor, sessions, pixels, metadata)
        batches.append(_compare_batch(predictor, names, (pixels, metadata), outputs))
        if batch_difference is None:
            batch_difference = _batch_difference(predictor, sessions, (pixels, metadata))
    if batch_difference is None:
        raise ValueError("no image to compare on: `check_usable` comes first")
    return _report(predictor, batches, batch_difference, images)


def run_sessions(
    predictor: "Predictor",
    sessions: Sequence[Session],
    pixels: Sequence[NDArray[np.uint8]],
    metadata: Sequence[NDArray[np.float32] | None],
) -> list[NetOutputs]:
    """Return the outputs of each net; pixels: for each of the model's resizings, metadata: for each net.

    Images pass a net in batches of `images_at_once`, so that memory does not grow with the number of views.
    """
    numbers = distinct_resizings(predictor.members)[1]
    return [
        _run_in_parts(session, pixels[number], encoded, images_at_once(member))
        for session, number, encoded, member in zip(sessions, numbers, metadata, predictor.members, strict=True)
    ]


def images_at_once(member: MemberFields) -> int:
    """Return how many images pass a net at once: `BATCH_SIZE`, halved until all views fit, but never one alone."""
    n_images, n_pixels = BATCH_SIZE, len(member.views) * member.preprocessing.size**2
    while n_images > 2 and n_images * n_pixels > MAX_PIXELS_AT_ONCE:
        n_images //= 2
    return n_images


def _run_in_parts(
    session: Session, pixels: NDArray[np.uint8], metadata: NDArray[np.float32] | None, size: int
) -> NetOutputs:
    parts = [slice(start, start + size) for start in range(0, len(pixels), size)]
    outputs = [session(pixels[part], None if metadata is None else metadata[part]) for part in parts]
    return NetOutputs(*(np.concatenate(arrays) for arrays in zip(*outputs, strict=True)))


def _run_rows(
    predictor: "Predictor",
    sessions: Sequence[Session],
    batch: _Inputs,
    rows: slice | NDArray[np.int64],
) -> Floats:
    """Return the probabilities (N, K) of some images of a batch."""
    pixels, metadata = batch
    outputs = run_sessions(
        predictor, sessions, [array[rows] for array in pixels],
        [None if encoded is None else encoded[rows] for encoded in metadata],
    )  # fmt: skip
    return _mean(predictor, outputs)


def _batch_difference(predictor: "Predictor", sessions: Sequence[Session], batch: _Inputs) -> float:
    """Return the largest difference of a probability between images one at a time and in batches that are full.

    Fewer images than `BATCH_SIZE` are repeated.
    """
    n_images = len(batch[0][0])
    alone = [_run_rows(predictor, sessions, batch, slice(n, n + 1)) for n in range(n_images)]
    together = _run_rows(predictor, sessions, batch, np.arange(BATCH_SIZE) % n_images)
    return float(np.abs(together[:n_images] - np.concatenate(alone)).max())


def _mean(predictor: "Predictor", outputs: Sequence[NetOutputs]) -> Floats:
    return mean_probabilities([output.probabilities for output in outputs], predictor.members)


def _compare_batch(
    predictor: "Predictor",
    names: list[str],
    batch: _Inputs,
    outputs: Sequence[NetOutputs],
) -> _Batch:
    expected, features = predictor.outputs(batch)
    differences = [
        float(np.abs(output.features - known).max() / max(float(known.std()), 1e-12))
        for output, known in zip(outputs, features, strict=True)
        if known is not None
    ]
    return _Batch(names, expected, _mean(predictor, outputs), max(differences, default=0.0))


def _report(
    predictor: "Predictor", batches: Sequence[_Batch], batch_difference: float, images: ParityImages
) -> ParityReport:
    names = [name for batch in batches for name in batch.names]
    expected, exported = (
        np.concatenate([getattr(batch, side) for batch in batches]) for side in ("torch", "exported")
    )
    differences = np.abs(exported - expected).max(axis=1)
    worst = int(np.argmax(differences))  # the place of a nan, where there is one
    policy = predictor.select_policy()
    n_calls = 0
    if policy is not None and np.isfinite(exported).all():
        calls = [policy.apply(p).is_positive for p in (expected, exported)]
        n_calls = int((calls[0] != calls[1]).any(axis=1).sum())
    return ParityReport(
        images.source, len(names), names[worst], float(differences[worst]),
        int((expected.argmax(axis=1) != exported.argmax(axis=1)).sum()), n_calls,
        batch_difference, min(map(images_at_once, predictor.members)),
        float(np.max([batch.feature_difference for batch in batches])), tuple(names), expected, exported,
    )  # fmt: skip
