"""A decision policy applied to new images: calibrated probabilities, operating points, prediction sets, referral.

No labels are used, and each row depends on itself alone, so images may come in batches of any size.

Shapes: N images, K classes, P operating points.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermkit.metrics.classification.scored_set import p_malignant
from dermkit.metrics.stats.arrays import Bools, Floats, Ints

if TYPE_CHECKING:
    from dermkit.metrics.decisions.guarantees import BrokenGuarantee
    from dermkit.metrics.decisions.policy import DecisionPolicy, ReferralThreshold

_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class PolicyOutput:
    """Decisions for N images of K classes, at P operating points.

    probabilities: (N, K), calibrated. y_pred: (N,), the most probable class; confidence: (N,), its probability.
    p_malignant: (N,). is_positive: (N, P), p_malignant >= the threshold. prediction_sets: (N, K), possibly empty.
    is_answered: (N,), False = referred; all True without a referral threshold.
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
    """A policy with the operating point and the referral threshold that are in use.

    malignant_classes: (K,) mask. point_index: index of the operating point in use, None for none. is_requested: chosen
    by the user, not by default. referral: None to refer nothing. broken: guarantees that the test images broke.
    """

    policy: "DecisionPolicy"
    malignant_classes: Bools
    point_index: int | None
    is_requested: bool
    referral: "ReferralThreshold | None"
    broken: "tuple[BrokenGuarantee, ...]" = ()

    @property
    def broken_point(self) -> "BrokenGuarantee | None":
        """The broken guarantee of the operating point in use, None where that holds."""
        if self.point_index is None:
            return None
        point = self.policy.operating_points[self.point_index]
        return find_broken(self.broken, point.name)

    @property
    def has_both_sides(self) -> bool:
        """Whether some classes are malignant and some are not."""
        return bool(self.malignant_classes.any() and not self.malignant_classes.all())

    def apply(self, probabilities: Floats) -> PolicyOutput:
        """Return the decisions for (N, K) uncalibrated probabilities; raises `ValueError` for another shape or nan."""
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.malignant_classes):
            raise ValueError(
                f"probabilities are {probabilities.shape}, not (N, {len(self.malignant_classes)}): one column per class"
            )
        p = self.policy.calibration.apply(probabilities)
        if not (np.isfinite(probabilities).all() and np.isfinite(p).all()):
            raise ValueError(
                "probabilities must be finite before and after calibration: nan would be called negative"
            )
        confidence = p.max(axis=1)
        malignancy = p_malignant(p, self.malignant_classes)
        thresholds = np.array([point.threshold for point in self.policy.operating_points], dtype=np.float64)
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


def find_broken(broken: "tuple[BrokenGuarantee, ...]", point_name: str) -> "BrokenGuarantee | None":
    """Return the broken guarantee of an operating point, None where that holds."""
    return next((guarantee for guarantee in broken if guarantee.name == point_name), None)


def select(
    policy: "DecisionPolicy",
    malignant_classes: Bools,
    *,
    target: tuple[str, float] | None = None,
    coverage: float | None = None,
) -> ActivePolicy:
    """Select an operating point by its target, such as ("sensitivity", 0.95), and a referral threshold by its coverage.

    target: None = the first guaranteed one, if any. coverage: fraction of images to answer, None = all. Raises
    `LookupError` for a target or coverage that the policy does not hold.
    """
    guaranteed_indices = (index for index, point in enumerate(policy.operating_points) if point.guaranteed)
    point_index = next(guaranteed_indices, None) if target is None else _point_index(policy, *target)
    referrals = [
        referral
        for referral in policy.referral_thresholds
        if coverage is not None and abs(referral.target_coverage - coverage) < _TOLERANCE
    ]
    if coverage is not None and not referrals:
        raise LookupError(f"no referral threshold was fitted for answering {coverage:g} of the images")
    return ActivePolicy(
        policy, malignant_classes, point_index, target is not None, referrals[0] if referrals else None
    )


def _point_index(policy: "DecisionPolicy", rate: str, target: float) -> int:
    for index, point in enumerate(policy.operating_points):
        if point.rate == rate and abs(point.target - target) < _TOLERANCE:
            return index
    raise LookupError(f"no operating point was fitted for {rate} {target:g}")


def parse_target(text: str) -> tuple[str, float]:
    """Return (rate, value) of a target such as "sensitivity=.95" or "sensitivity 0.95".

    Neither is checked to be one that exists. Raises `ValueError`, whose message says what the text lacks.
    """
    rate, separator, number = text.strip().replace("=", " ", 1).partition(" ")
    if not separator:
        raise ValueError("says no rate and number")
    try:
        return rate, float(number)
    except ValueError:
        raise ValueError(f"{number.strip()!r} is no number") from None
