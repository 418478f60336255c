"""What validation settled, applied to new images: calibrated probabilities, calls, sets of classes, answers withheld.

No label is looked at, and each row depends on itself alone: images may come in any number of pieces.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermkit.metrics.stats.arrays import Bools, Floats, Ints

if TYPE_CHECKING:
    from dermkit.metrics.decisions.policy import Answering, Decision

_CLOSE = 1e-9


@dataclass(frozen=True, eq=False)
class Applied:
    """N images of K classes. probabilities: (N, K), calibrated; predicted: the most probable; confidence: of it.

    p_malignant: the malignant classes together. positive: (N, P), at each operating point. sets: (N, K), which
    classes are in the set; it may be empty. answered: False = referred; all True where nothing is to be referred.
    """

    probabilities: Floats
    predicted: Ints
    confidence: Floats
    p_malignant: Floats
    positive: Bools
    sets: Bools
    answered: Bools


@dataclass(frozen=True, eq=False)
class Chosen:
    """A decision, and what of it answers. malignant: (K,) classes.

    point: place in `decision.points` of the one that says positive, None for none; by_name: somebody named it.
    answering: what is answered and what referred, None to refer nothing.
    """

    decision: "Decision"
    malignant: Bools
    point: int | None
    by_name: bool
    answering: "Answering | None"

    @property
    def two_sided(self) -> bool:
        """Whether some classes are malignant and some are not."""
        return bool(self.malignant.any() and not self.malignant.all())

    def apply(self, probabilities: Floats) -> Applied:
        """Return what was settled for (N, K) probabilities as the net gave them, in the order of its classes.

        Raises `ValueError` for another shape.
        """
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.malignant):
            raise ValueError(
                f"probabilities are {probabilities.shape}, not (N, {len(self.malignant)}): one column per class"
            )
        p = self.decision.calibration.apply(probabilities)
        confidence = p.max(axis=1)
        together: Floats = np.minimum(p[:, self.malignant].sum(axis=1), 1.0)
        thresholds = np.array([point.value for _, point in self.decision.points], dtype=np.float64)
        least = self.answering.least if self.answering else -np.inf
        return Applied(
            probabilities=p,
            predicted=np.asarray(p.argmax(axis=1), dtype=np.int64),
            confidence=confidence,
            p_malignant=together,
            positive=together[:, None] >= thresholds,
            sets=self.decision.rule.sets(p),
            answered=np.asarray(confidence >= least, dtype=bool),
        )


def choose(
    decision: "Decision", malignant: Bools, *, at: tuple[str, float] | None = None, refer: float | None = None
) -> Chosen:
    """Choose an operating point by its wish, such as ("sensitivity", 0.95), and the share of images to answer.

    at: None = the first whose promise is kept, and none where none is. refer: None = every image is answered. Raises
    `LookupError` for what was not settled.
    """
    kept = (place for place, (_, point) in enumerate(decision.points) if point.kept)
    point = next(kept, None) if at is None else _place(decision, *at)
    found = [item for item in decision.answering if refer is not None and abs(item.share - refer) < _CLOSE]
    if refer is not None and not found:
        raise LookupError(f"no confidence was settled for answering {refer:g} of the images")
    return Chosen(decision, malignant, point, at is not None, found[0] if found else None)


def _place(decision: "Decision", rate: str, wish: float) -> int:
    for place, (name, point) in enumerate(decision.points):
        if name == rate and abs(point.wish - wish) < _CLOSE:
            return place
    raise LookupError(f"no operating point was settled for {rate} {wish:g}")
