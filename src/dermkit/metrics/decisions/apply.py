"""What validation settled, applied to new images: calibrated probabilities, calls, sets of classes, answers withheld.

No label is looked at, and each row depends on itself alone: images may come in any number of pieces.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermkit.metrics.classification.scored_set import p_malignant
from dermkit.metrics.stats.arrays import Bools, Floats, Ints

if TYPE_CHECKING:
    from dermkit.metrics.decisions.policy import DecisionPolicy, ReferralThreshold

_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class PolicyOutput:
    """N images of K classes. probabilities: (N, K), calibrated; predicted: the most probable; confidence: of it.

    p_malignant: the malignant classes together. positive: (N, P), at each operating point. sets: (N, K), which
    classes are in the set; it may be empty. answered: False = referred; all True where nothing is to be referred.
    """

    probabilities: Floats
    y_pred: Ints
    confidence: Floats
    p_malignant: Floats
    is_positive: Bools
    prediction_sets: Bools
    is_answered: Bools


@dataclass(frozen=True, eq=False)
class ActivePolicy:
    """A decision, and what of it answers. malignant: (K,) classes.

    point: place in `policy.points` of the one that says positive, None for none; by_name: somebody named it.
    answering: what is answered and what referred, None to refer nothing.
    """

    policy: "DecisionPolicy"
    malignant_classes: Bools
    point_index: int | None
    is_requested: bool
    referral: "ReferralThreshold | None"

    @property
    def has_both_sides(self) -> bool:
        """Whether some classes are malignant and some are not."""
        return bool(self.malignant_classes.any() and not self.malignant_classes.all())

    def apply(self, probabilities: Floats) -> PolicyOutput:
        """Return what was settled for (N, K) probabilities as the net gave them, in the order of its classes.

        Raises `ValueError` for another shape.
        """
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.malignant_classes):
            raise ValueError(
                f"probabilities are {probabilities.shape}, not (N, {len(self.malignant_classes)}): one column per class"
            )
        p = self.policy.calibration.apply(probabilities)
        confidence = p.max(axis=1)
        malignancy = p_malignant(p, self.malignant_classes)
        thresholds = np.array([point.value for _, point in self.policy.operating_points], dtype=np.float64)
        min_confidence = self.referral.min_confidence if self.referral else -np.inf
        return PolicyOutput(
            probabilities=p,
            y_pred=np.asarray(p.argmax(axis=1), dtype=np.int64),
            confidence=confidence,
            p_malignant=malignancy,
            is_positive=malignancy[:, None] >= thresholds,
            prediction_sets=self.policy.conformal_rule.prediction_sets(p),
            is_answered=np.asarray(confidence >= min_confidence, dtype=bool),
        )


def select(
    policy: "DecisionPolicy",
    malignant_classes: Bools,
    *,
    target: tuple[str, float] | None = None,
    coverage: float | None = None,
) -> ActivePolicy:
    """Choose an operating point by its wish, such as ("sensitivity", 0.95), and the share of images to answer.

    at: None = the first whose promise is kept, and none where none is. refer: None = every image is answered. Raises
    `LookupError` for what was not settled.
    """
    guaranteed_indices = (
        index for index, (_, point_index) in enumerate(policy.operating_points) if point_index.guaranteed
    )
    point_index = next(guaranteed_indices, None) if target is None else _point_index(policy, *target)
    referrals = [
        referral
        for referral in policy.referral_thresholds
        if coverage is not None and abs(referral.target_coverage - coverage) < _TOLERANCE
    ]
    if coverage is not None and not referrals:
        raise LookupError(f"no confidence was settled for answering {coverage:g} of the images")
    return ActivePolicy(
        policy, malignant_classes, point_index, target is not None, referrals[0] if referrals else None
    )


def _point_index(policy: "DecisionPolicy", rate: str, target: float) -> int:
    for index, (point_rate, point) in enumerate(policy.operating_points):
        if point_rate == rate and abs(point.target - target) < _TOLERANCE:
            return index
    raise LookupError(f"no operating point was settled for {rate} {target:g}")
