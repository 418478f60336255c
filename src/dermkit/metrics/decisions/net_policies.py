"""The decision policies of several nets, each on the images that its net scored: those of cross-validation, pooled.

Each policy was fitted on its own net's validation images. A pooled operating point or referral has no single
threshold: every image is held against that of its net.

Shapes: N images, K classes, F nets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions import conformal
from dermkit.metrics.decisions.operating_point_metrics import DEFAULT_PREVALENCES, evaluate_threshold
from dermkit.metrics.decisions.operating_points import OperatingPoint
from dermkit.metrics.decisions.policy import (
    CALIBRATION_METRICS,
    ERROR_COVERAGES,
    DecisionPolicy,
    conformal_dict,
    contains_true_class,
    error_rate_among,
    one_class_reason,
    rates_dict,
    referral_result,
)
from dermkit.metrics.stats.arrays import Bools, Floats

BY_NET = "by net"
"""The kind of a calibration that each net has of its own."""


def calibrate_by_net(policies: Sequence[DecisionPolicy], scored_set: ScoredSet) -> ScoredSet:
    """Return the scored set with each net's own calibration. policies: F, in the order of `scored_set.rows_by_net`."""
    p = np.empty_like(scored_set.probabilities)
    for policy, rows in zip(policies, scored_set.rows_by_net, strict=True):
        p[rows] = policy.calibration.apply(scored_set.probabilities[rows])
    return replace(scored_set, y_pred=p.argmax(axis=1), probabilities=p)


def sharpen_by_net(policies: Sequence[DecisionPolicy], scored_set: ScoredSet) -> ScoredSet:
    """Return the scored set as a mean of the nets takes it: each net's calibration without its class biases."""
    without_bias = [replace(policy, calibration=policy.calibration.without_bias()) for policy in policies]
    return calibrate_by_net(without_bias, scored_set)


def covers_true_class_by_net(policies: Sequence[DecisionPolicy], scored_set: ScoredSet) -> Bools:
    """Return whether the prediction set of each image, by its net's own rule, contains its true class, (N,)."""
    return contains_true_class(_prediction_sets(policies, calibrate_by_net(policies, scored_set)), scored_set)


def evaluate_policies_by_net(
    policies: Sequence[DecisionPolicy],
    scored_set: ScoredSet,
    *,
    evaluate_split: Callable[..., Mapping[str, Any]],
    seed: int,
    prevalences: tuple[float, ...] = DEFAULT_PREVALENCES,
) -> dict[str, Any]:
    """Return what `evaluate_policy` returns, of the nets' own policies on the images that each scored.

    An operating point is there if every net has it; its `threshold` is None, `thresholds` are the nets'.
    """
    calibrated_set = calibrate_by_net(policies, scored_set)
    metrics = evaluate_split(calibrated_set, seed=seed, with_ranking=False)["metrics"]
    points_by_net = list(_common_points(policies))
    missing_reason = one_class_reason(calibrated_set) if points_by_net else "none was fitted for every net"
    return {
        "calibrated": {
            "kind": BY_NET,
            "kinds": [policy.calibration.kind for policy in policies],
            "metrics": {name: metrics[name] for name in CALIBRATION_METRICS if name in metrics},
        },
        "operating_points": [
            _point_dict(points, calibrated_set, prevalences)
            for points in (() if missing_reason else points_by_net)
        ],
        "why_no_operating_points": missing_reason,
        "conformal": conformal_dict(
            [
                (policy.conformal_rule, rows)
                for policy, rows in zip(policies, calibrated_set.rows_by_net, strict=True)
            ],
            _prediction_sets(policies, calibrated_set),
            calibrated_set,
        ),
        "referral": _referral_dict(policies, calibrated_set),
    }


def _common_points(policies: Sequence[DecisionPolicy]) -> Iterator[list[OperatingPoint]]:
    """Yield the nets' operating points of each target that all of them have."""
    for first in policies[0].operating_points:
        points = [
            point
            for policy in policies
            for point in policy.operating_points
            if (point.rate, point.target) == (first.rate, first.target)
        ]
        if len(points) == len(policies):
            yield points


def _by_image(values: Sequence[float], scored_set: ScoredSet) -> Floats:
    """Return each image's value, (N,), of its net's."""
    spread = np.empty(len(scored_set.y_true))
    for value, rows in zip(values, scored_set.rows_by_net, strict=True):
        spread[rows] = value
    return spread


def _point_dict(
    points: Sequence[OperatingPoint], calibrated_set: ScoredSet, prevalences: tuple[float, ...]
) -> dict[str, Any]:
    thresholds = [point.threshold for point in points]
    result = evaluate_threshold(calibrated_set, _by_image(thresholds, calibrated_set), prevalences=prevalences)
    return {
        **points[0].as_dict(),
        "guaranteed": all(point.guaranteed for point in points),
        "n": min(point.n for point in points),
        "threshold": None,
        "thresholds": thresholds,
        "requested": points[0].requested,
        **rates_dict(result),
    }


def _prediction_sets(policies: Sequence[DecisionPolicy], calibrated_set: ScoredSet) -> Bools:
    sets = np.zeros(calibrated_set.probabilities.shape, dtype=bool)
    for policy, rows in zip(policies, calibrated_set.rows_by_net, strict=True):
        sets[rows] = policy.conformal_rule.prediction_sets(calibrated_set.probabilities[rows])
    return sets


def _referral_dict(policies: Sequence[DecisionPolicy], calibrated_set: ScoredSet) -> dict[str, Any]:
    """Return the risk-coverage curve, the surest images of each net first, and the nets' thresholds evaluated."""
    rank = _confidence_rank(calibrated_set)
    curve = conformal.risk_coverage(rank, calibrated_set.y_true == calibrated_set.y_pred)
    error_by_coverage = {}
    for coverage in ERROR_COVERAGES:
        index = int(np.searchsorted(curve.coverage, coverage - 1e-12))
        error = error_rate_among(calibrated_set, rank >= curve.confidence[index])
        error_by_coverage[f"{coverage:g}"] = {
            **error.as_dict(), "coverage": float(curve.coverage[index]), "min_confidence": None,
        }  # fmt: skip
    referrals = zip(*(policy.referral_thresholds for policy in policies), strict=False)
    return {
        "aurc": curve.aurc(),
        "error_by_coverage": error_by_coverage,
        "at_validation_thresholds": [
            referral_result(
                thresholds[0].target_coverage,
                _by_image([one.min_confidence for one in thresholds], calibrated_set),
                calibrated_set,
            )
            for thresholds in referrals
        ],
    }


def _confidence_rank(calibrated_set: ScoredSet) -> Floats:
    """Return the fraction of its net's images that each image is at least as sure as, (N,)."""
    rank, confidence = np.empty(len(calibrated_set.y_true)), calibrated_set.confidence
    for rows in calibrated_set.rows_by_net:
        rank[rows] = np.searchsorted(np.sort(confidence[rows]), confidence[rows], side="right") / len(rows)
    return rank
