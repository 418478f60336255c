"""Does an image lie outside the training distribution? Its distance from the training images, and what is said of it.

Shapes: N images, C features of a net, R training images that a net holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import UsageError
from dermkit.files import write_rows
from dermkit.metrics.decisions.outlier_test import MAX_FALSE_ALARM_RATE, can_mark, combine_p_values
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.training_features import DISTANCE_NEIGHBOUR, ReferenceFeatures
from dermkit.prediction.inputs import ImageRef, utf8_safe
from dermkit.render.cells import defused
from dermkit.runs.layout import DISTANCES_FILE

OUT_OF_DISTRIBUTION_COLUMNS = ("image_id", "path", "distance", "p_value", "outside_training_distribution")
OUTSIDE_LEGEND = (
    f" Outside training data (amber): further from the training images than all but {MAX_FALSE_ALARM_RATE:.0%} of the "
    "validation lesions."
)
OUTLIER_METHOD = (
    f"distance to the {DISTANCE_NEIGHBOUR}th nearest training image in the net's features (Sun and others 2022), "
    "conformal p value from validation lesions"
)


@dataclass(frozen=True, eq=False)
class Distances:
    """How far images lie from the training images: distance, (N,), 0 to 4, and conformal p value, (N,), 0 to 1."""

    distance: Floats
    p_value: Floats


@dataclass(frozen=True, eq=False)
class OutlierTest:
    """The test of a model: that of each of its nets, None for a net whose model folder holds no training features."""

    nets: tuple[ReferenceFeatures | None, ...]

    @property
    def reason(self) -> str:
        """Return why the test is not applicable, "" where it is."""
        if not self.nets or any(net is None for net in self.nets):
            return (
                "the model folder holds no training features: it was trained by an older version or as a trial, or "
                "exported in int8"
            )
        if not can_mark([len(net.calibration) for net in self.nets if net is not None]):
            nets = "" if len(self.nets) == 1 else f" with {len(self.nets)} nets"
            return (
                f"{self.n_validation_groups} validation lesions are too few for a false-alarm rate of "
                f"{MAX_FALSE_ALARM_RATE:.0%}{nets}"
            )
        return ""

    @property
    def n_validation_groups(self) -> int:
        """Return how many lesions or patients set the threshold; of several nets the fewest."""
        return min((len(net.calibration) for net in self.nets if net is not None), default=0)

    def distances(self, features: Sequence[NDArray[np.float32] | None]) -> Distances | None:
        """Return the distances of images from (N, C) features of each net; None where the test is not applicable."""
        if self.reason:
            return None
        pairs = [
            (net, of_net) for net, of_net in zip(self.nets, features, strict=True) if net and of_net is not None
        ]
        if len(pairs) < len(self.nets):
            return None
        distances = [net.distances(of_net) for net, of_net in pairs]
        p_values = [net.p_values(one) for (net, _), one in zip(pairs, distances, strict=True)]
        return Distances(np.mean(distances, axis=0), combine_p_values(np.stack(p_values)))


def join_distances(batches: Sequence[Distances | None]) -> Distances | None:
    """Return the distances of batches one after the other; None where the test is not applicable, or without images."""
    known = [one for one in batches if one is not None]
    if not known:
        return None
    return Distances(
        np.concatenate([one.distance for one in known]), np.concatenate([one.p_value for one in known])
    )


def pairs_of(distances: Distances | None, n_images: int) -> list[tuple[float, float] | None]:
    """Return (distance, p value) of each of N images, None where the test is not applicable."""
    if distances is None:
        return [None] * n_images
    return list(zip(distances.distance.tolist(), distances.p_value.tolist(), strict=True))


def is_outside(p_value: float | Floats) -> Any:
    """Return whether a p value, or each of (N,), marks an image as outside the training distribution."""
    return p_value <= MAX_FALSE_ALARM_RATE + 1e-12


def check_can_withhold(test: OutlierTest, *, has_policy: bool) -> None:
    """Raise `UsageError` where a model cannot tell which images to withhold an answer for, or makes no decisions."""
    reason = test.reason or (
        "" if has_policy else "the model has no decision policy, so it gives no answer at all"
    )
    if reason:
        raise UsageError(
            f"--withhold-outside: {reason}", outcome="nothing was predicted", remedy="leave it out, or train again"
        )


def write_distance_table(
    path: Path, images: Iterable[tuple[ImageRef, tuple[float, float]]] | None, *, is_raw: bool
) -> None:
    """Write out_of_distribution.csv; None = not applicable: a table of an earlier prediction is removed.

    images: each with its distance and p value.
    """
    if images is None:
        path.unlink(missing_ok=True)
        return
    rows = (
        (utf8_safe(image.image_id), utf8_safe(image.path), distance, p, "yes" if is_outside(p) else "no")
        for image, (distance, p) in images
    )
    write_rows(path, OUT_OF_DISTRIBUTION_COLUMNS, rows if is_raw else map(defused, rows))


def describe_test(
    test: OutlierTest, outside: Sequence[Mapping[str, Any]] | None, *, is_withheld: bool
) -> dict[str, Any]:
    """Return the entry `out_of_distribution` of predict.json.

    outside: name, distance and p value of marked images; None where no image was scored.
    """
    if test.reason or outside is None:
        return {"file": None, "reason": test.reason or "no image was scored"}
    return {
        "file": DISTANCES_FILE,
        "method": OUTLIER_METHOD,
        "max_false_alarm_rate": MAX_FALSE_ALARM_RATE,
        "n_validation_groups": test.n_validation_groups,
        "is_withheld": is_withheld,
        "n_outside": len(outside),
        "outside": list(outside),
    }
