"""The decision policy: calibration, operating points, prediction sets and referral thresholds, fitted on validation.

The policy is plain numbers fitted on validation images alone; `evaluate_policy` measures it on other images. Validation
also selected the epoch, so its own figures are optimistic: rely on the test split.

Shapes: N images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dermkit.metrics.classification.probabilistic import log_loss
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions import conformal, operating_points, recalibration
from dermkit.metrics.decisions.operating_point_metrics import (
    DEFAULT_PREVALENCES,
    AtPrevalence,
    OperatingPointResult,
    evaluate_threshold,
)
from dermkit.metrics.decisions.operating_points import OperatingPoint
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.arrays import Bools, Floats, Ints, count, number_between, one_of
from dermkit.metrics.stats.estimate import Estimate, undefined_estimate

CALIBRATION_FOLDS = 5
DEFAULT_TARGETS = (("sensitivity", 0.95), ("sensitivity", 0.9), ("specificity", 0.9))
GUARANTEE_CONFIDENCE = 0.95
CONFORMAL_ALPHA = 0.1
REFERRAL_COVERAGES = tuple(number / 20 for number in range(19, 9, -1))
"""Fractions of images to answer, 95 % down to 50 %, for which referral thresholds are fitted; the rest are referred."""
ERROR_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)
"""Fractions of images answered, the surest ones, of which the error rate is told."""

CALIBRATION_METRICS = (
    "loss", "brier", "ece", "ece_classwise", "calibration_slope", "calibration_intercept", "brier_malignant",
)  # fmt: skip
"""Metrics that calibration can improve; of two classes it changes no order, and so no AUROC."""

_MAX_BIAS = 20.0
"""Fitted biases lie between -10 and 10 before their mean is taken off."""

CALIBRATION_FITS: Mapping[str, Callable[[Ints, Floats], ProbabilityCalibration]] = {
    "temperature": recalibration.fit_temperature,
    "bias": recalibration.fit_temperature_and_bias,
}


@dataclass(frozen=True)
class ReferralThreshold:
    """Answer an image if its calibrated confidence is at least `min_confidence`, else refer it.

    target_coverage: fraction of images to answer. validation_coverage: fraction answered on validation; above the
    target where confidences tie. error_rate: among the answered; optimistic, since these images also selected the
    epoch and the calibration.
    """

    target_coverage: float
    min_confidence: float
    validation_coverage: float
    error_rate: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, as model.json holds them."""
        return {
            "target_coverage": self.target_coverage,
            "min_confidence": self.min_confidence,
            "coverage": self.validation_coverage,
            "error": self.error_rate.as_dict(),
        }


@dataclass(frozen=True, eq=False)
class DecisionPolicy:
    """A fitted policy.

    out_of_fold_losses: validation log loss per kind of calibration, fitted out of fold. operating_points: the default
    ones, those saved in a model, and those requested for one evaluation, which a model does not hold.
    referral_thresholds: one for each of `REFERRAL_COVERAGES`; none in older files.
    """

    calibration: ProbabilityCalibration
    out_of_fold_losses: dict[str, float]
    operating_points: tuple[OperatingPoint, ...]
    conformal_rule: conformal.ConformalRule
    n_validation: int
    referral_thresholds: tuple[ReferralThreshold, ...] = ()

    @property
    def targets(self) -> set[tuple[str, float]]:
        """The (rate, target) of its operating points."""
        return {(point.rate, point.target) for point in self.operating_points}

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, as policy.json holds them; a model takes over all but `requested_points`."""
        return {
            "calibration": {
                **asdict(self.calibration),
                "bias": list(self.calibration.bias),
                "out_of_fold_loss": self.out_of_fold_losses,
            },
            "operating_points": [point.as_dict() for point in self.operating_points if not point.requested],
            "conformal": self.conformal_rule.as_dict(),
            "referral": [referral.as_dict() for referral in self.referral_thresholds],
            "n_validation_images": self.n_validation,
            "requested_points": [point.as_dict() for point in self.operating_points if point.requested],
        }


def policy_from_dict(policy_json: Mapping[str, Any]) -> DecisionPolicy:
    """Return the policy that `as_dict` wrote; raises `KeyError`, `TypeError` or `ValueError` for another object.

    Every number has its range: a threshold that is nan or above 1 would call every image negative.
    """
    calibration_json = policy_json["calibration"]
    calibration = calibration_from_dict(calibration_json)
    points = [OperatingPoint.from_dict(entry) for entry in policy_json["operating_points"]]
    requested_points = [
        OperatingPoint.from_dict(entry, requested=True) for entry in policy_json.get("requested_points", ())
    ]
    return DecisionPolicy(
        calibration,
        {str(kind): number_between(v, 0, 1e6) for kind, v in calibration_json["out_of_fold_loss"].items()},
        (*points, *requested_points),
        conformal.ConformalRule.from_dict(policy_json["conformal"]),
        count(policy_json["n_validation_images"]),
        tuple(_referral_from_dict(entry) for entry in policy_json.get("referral", ())),
    )


def calibration_from_dict(calibration_json: Mapping[str, Any]) -> ProbabilityCalibration:
    """Return the calibration of its plain numbers; raises `KeyError`, `TypeError` or `ValueError` for others."""
    return ProbabilityCalibration(
        one_of(calibration_json["kind"], ("none", *CALIBRATION_FITS)),
        number_between(calibration_json["temperature"], *recalibration.TEMPERATURE_RANGE),
        tuple(number_between(value, -_MAX_BIAS, _MAX_BIAS) for value in calibration_json["bias"]),
    )


def _referral_from_dict(referral_json: Mapping[str, Any]) -> ReferralThreshold:
    return ReferralThreshold(
        number_between(referral_json["target_coverage"], 0, 1), number_between(referral_json["min_confidence"], 0, 1),
        number_between(referral_json["coverage"], 0, 1),
        Estimate.from_dict(referral_json["error"]),
    )  # fmt: skip


def fit_policy(
    validation: ScoredSet,
    *,
    targets: Sequence[tuple[str, float]] = DEFAULT_TARGETS,
    alpha: float = CONFORMAL_ALPHA,
) -> DecisionPolicy:
    """Fit a policy on validation images.

    targets: (rate, value) of its operating points; one is left out if no image is malignant (for a specificity: not
    malignant). alpha: the prediction sets contain the true class with probability 1 - alpha, class by class.
    """
    losses = _out_of_fold_losses(validation)
    kind = min(losses, key=lambda candidate: (losses[candidate], list(losses).index(candidate)))
    calibration = (
        recalibration.identity(len(validation.classes))
        if kind == "none"
        else CALIBRATION_FITS[kind](validation.y_true, validation.probabilities)
    )
    calibrated_set = apply_calibration(validation, calibration)
    return DecisionPolicy(
        calibration,
        losses,
        fit_operating_points(calibrated_set, targets),
        conformal.fit_conformal(
            calibrated_set.y_true, calibrated_set.probabilities, alpha=alpha, groups=calibrated_set.groups
        ),
        len(validation.y_true),
        tuple(_referral_thresholds(calibrated_set, _risk_coverage(calibrated_set), REFERRAL_COVERAGES)),
    )


def fit_operating_points(
    calibrated_set: ScoredSet, targets: Sequence[tuple[str, float]]
) -> tuple[OperatingPoint, ...]:
    """Return an operating point for each (rate, target) that the calibrated validation images allow to fit."""
    return tuple(
        point
        for rate, target in targets
        if (point := _fit_operating_point(calibrated_set, rate, target)) is not None
    )


def _out_of_fold_losses(validation: ScoredSet) -> dict[str, float]:
    """Return the cross-validated log loss of each kind of calibration, groups kept together.

    Out of fold, because with few images a bias per class only fits noise.
    """
    y_true, p = validation.y_true, validation.probabilities
    losses = {"none": log_loss(y_true, p)}
    n_groups = validation.n_groups
    if n_groups < 2 * CALIBRATION_FOLDS:
        return losses
    fold_labels = np.random.default_rng(0).permutation(n_groups)[validation.groups] % CALIBRATION_FOLDS
    for kind, fit in CALIBRATION_FITS.items():
        out_of_fold_p = np.empty_like(p)
        for fold_number in range(CALIBRATION_FOLDS):
            is_held_out = fold_labels == fold_number
            out_of_fold_p[is_held_out] = fit(y_true[~is_held_out], p[~is_held_out]).apply(p[is_held_out])
        losses[kind] = log_loss(y_true, out_of_fold_p)
    return losses


def _fit_operating_point(calibrated_set: ScoredSet, rate: str, target: float) -> OperatingPoint | None:
    class_mask = calibrated_set.is_malignant if rate == "sensitivity" else ~calibrated_set.is_malignant
    if not calibrated_set.has_both_sides or not class_mask.any():
        return None
    fit_threshold = (
        operating_points.fit_sensitivity_point if rate == "sensitivity" else operating_points.fit_specificity_point
    )
    return fit_threshold(
        calibrated_set.p_malignant,
        calibrated_set.is_malignant,
        calibrated_set.groups,
        target=target,
        confidence=GUARANTEE_CONFIDENCE,
    )


def apply_calibration(scored_set: ScoredSet, calibration: ProbabilityCalibration) -> ScoredSet:
    """Return the scored set with calibrated probabilities and the predictions that follow from them."""
    p = calibration.apply(scored_set.probabilities)
    return replace(scored_set, y_pred=p.argmax(axis=1), probabilities=p)


# Evaluated on held-out images ---------------------------------------------------------------------


def evaluate_policy(
    policy: DecisionPolicy,
    scored_set: ScoredSet,
    *,
    evaluate_split: Callable[..., Mapping[str, Any]],
    seed: int,
    prevalences: tuple[float, ...] = DEFAULT_PREVALENCES,
) -> dict[str, Any]:
    """Return what metrics.json holds of a policy on one split. evaluate_split: `summary.evaluate_split`."""
    calibrated_set = apply_calibration(scored_set, policy.calibration)
    metrics = evaluate_split(calibrated_set, seed=seed, with_ranking=False)["metrics"]
    missing_reason = one_class_reason(calibrated_set) if policy.operating_points else "none was fitted"
    point_dicts = [
        {
            **point.as_dict(),
            "requested": point.requested,
            **rates_dict(evaluate_threshold(calibrated_set, point.threshold, prevalences=prevalences)),
        }
        for point in (() if missing_reason else policy.operating_points)
    ]
    return {
        "calibrated": {
            "kind": policy.calibration.kind,
            "metrics": {name: metrics[name] for name in CALIBRATION_METRICS if name in metrics},
        },
        "operating_points": point_dicts,
        "why_no_operating_points": missing_reason,
        "conformal": conformal_dict(
            [(policy.conformal_rule, np.arange(len(calibrated_set.y_true)))],
            policy.conformal_rule.prediction_sets(calibrated_set.probabilities),
            calibrated_set,
        ),
        "referral": _referral_dict(policy, calibrated_set),
    }


def one_class_reason(scored_set: ScoredSet) -> str:
    """Return why no operating point can be judged on these images, "" where it can."""
    if not scored_set.has_both_sides:
        return "the class table has not two sides, malignant and other"
    n_positive = int(scored_set.is_malignant.sum())
    if 0 < n_positive < len(scored_set.y_true):
        return ""
    return f"{'no' if n_positive == 0 else 'every'} image here is malignant"


def rates_dict(result: OperatingPointResult) -> dict[str, Any]:
    """Return the rates of an operating point, and what follows at each prevalence, as plain numbers."""
    return {
        "sensitivity": result.sensitivity.as_dict(),
        "specificity": result.specificity.as_dict(),
        "per_prevalence": [_prevalence_dict(at_prevalence) for at_prevalence in result.per_prevalence],
    }


def _prevalence_dict(at_prevalence: AtPrevalence) -> dict[str, Any]:
    return {
        "prevalence": at_prevalence.prevalence,
        "ppv": at_prevalence.ppv.as_dict(),
        "npv": at_prevalence.npv.as_dict(),
        "true_positives": at_prevalence.true_positives.as_dict(),
        "false_negatives": at_prevalence.false_negatives.as_dict(),
        "false_positives": at_prevalence.false_positives.as_dict(),
        "number_needed_to_biopsy": at_prevalence.number_needed_to_biopsy.as_dict(),
    }


def covers_true_class(rule: conformal.ConformalRule, calibrated_set: ScoredSet) -> Bools:
    """Return whether the prediction set of each image contains its true class, (N,)."""
    return contains_true_class(rule.prediction_sets(calibrated_set.probabilities), calibrated_set)


def contains_true_class(prediction_sets: Bools, scored_set: ScoredSet) -> Bools:
    """Return whether each of these sets, (N, K) masks, contains its image's true class, (N,)."""
    return np.asarray(prediction_sets[np.arange(len(scored_set.y_true)), scored_set.y_true], dtype=bool)


def conformal_dict(
    rules: Sequence[tuple[conformal.ConformalRule, Ints]], prediction_sets: Bools, calibrated_set: ScoredSet
) -> dict[str, Any]:
    """Return the coverage per class with its interval, and the 95 % range of what valid rules cover together.

    rules: each with the rows that it gives the sets of. prediction_sets: (N, K). The range assumes independent images,
    so it counts groups: more photographs of the same lesions do not narrow it.
    """
    is_covered = contains_true_class(prediction_sets, calibrated_set)
    alpha, per_class = rules[0][0].alpha, {}
    for k, class_name in enumerate(calibrated_set.classes):
        in_class = calibrated_set.y_true == k
        if not in_class.any():
            continue
        counts = [
            (int(rule.n_independent[k]), len(np.unique(calibrated_set.groups[rows[in_class[rows]]])))
            for rule, rows in rules
        ]
        n_groups = sum(n for _, n in counts)
        low, high = conformal.expected_coverage_range_of_rules(counts, alpha=alpha)
        coverage = intervals.proportion_estimate(is_covered[in_class], calibrated_set.groups[in_class])
        per_class[class_name] = {
            **coverage.as_dict(),
            "expected": [low / n_groups, high / n_groups],
            "n_groups": n_groups,
            "n_calibration_images": sum(int(rule.n_images[k]) for rule, _ in rules),
            "n_calibration_groups": sum(n for n, _ in counts),
        }
    set_sizes = np.bincount(prediction_sets.sum(axis=1), minlength=len(calibrated_set.classes) + 1)
    return {"coverage_target": 1 - alpha, "per_class": per_class, "set_sizes": set_sizes.tolist()}


def _risk_coverage(calibrated_set: ScoredSet) -> conformal.RiskCoverage:
    return conformal.risk_coverage(calibrated_set.confidence, calibrated_set.y_true == calibrated_set.y_pred)


def _referral_thresholds(
    calibrated_set: ScoredSet, curve: conformal.RiskCoverage, coverages: Sequence[float]
) -> Iterator[ReferralThreshold]:
    """Yield the referral threshold of each coverage, with the error rate among the answered images."""
    for coverage in coverages:
        index = int(np.searchsorted(curve.coverage, coverage - 1e-12))
        threshold = float(curve.confidence[index])
        error_rate = error_rate_among(calibrated_set, calibrated_set.confidence >= threshold)
        yield ReferralThreshold(coverage, threshold, float(curve.coverage[index]), error_rate)


def error_rate_among(calibrated_set: ScoredSet, is_answered: Bools) -> Estimate:
    """Return the fraction of wrong predictions among the answered images, (N,) mask."""
    if not is_answered.any():
        return undefined_estimate(0, "no image is that sure")
    is_wrong = calibrated_set.y_true != calibrated_set.y_pred
    return intervals.proportion_estimate(is_wrong[is_answered], calibrated_set.groups[is_answered])


def _referral_dict(policy: DecisionPolicy, calibrated_set: ScoredSet) -> dict[str, Any]:
    """Return the risk-coverage curve of a split at a few coverages, its area, and the policy's thresholds evaluated.

    The thresholds fitted on validation are those that `dermkit predict --coverage` uses.
    """
    curve = _risk_coverage(calibrated_set)
    error_by_coverage = {
        f"{referral.target_coverage:g}": {
            **referral.error_rate.as_dict(),
            "coverage": referral.validation_coverage,
            "min_confidence": referral.min_confidence,
        }
        for referral in _referral_thresholds(calibrated_set, curve, ERROR_COVERAGES)
    }
    return {
        "aurc": curve.aurc(),
        "error_by_coverage": error_by_coverage,
        "at_validation_thresholds": [
            referral_result(referral.target_coverage, referral.min_confidence, calibrated_set)
            for referral in policy.referral_thresholds
        ],
    }


def referral_result(
    target_coverage: float, min_confidence: float | Floats, calibrated_set: ScoredSet
) -> dict[str, Any]:
    """Return the coverage and the error rate of thresholds fitted on validation, on this split.

    min_confidence: one, or each image's own, (N,), of which there is no single number to name.
    """
    is_answered = np.asarray(calibrated_set.confidence >= min_confidence, dtype=bool)
    return {
        "target_coverage": target_coverage,
        "min_confidence": None if isinstance(min_confidence, np.ndarray) else min_confidence,
        "coverage": intervals.proportion_estimate(is_answered, calibrated_set.groups).as_dict(),
        "error": error_rate_among(calibrated_set, is_answered).as_dict(),
    }
