"""Fit the decision policy on validation images and evaluate it on the other splits."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dermkit.errors import DataError
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.operating_points import DEFAULT_PREVALENCES
from dermkit.metrics.decisions.policy import (
    DecisionPolicy,
    apply_calibration,
    evaluate_policy,
    fit_operating_points,
    fit_policy,
    operating_point_dict,
)
from dermkit.metrics.decisions.thresholds import Threshold

POLICY_SPLIT = "validation"
"""The split on which calibration, operating points and prediction sets are fitted."""

OperatingPoints = tuple[tuple[str, Threshold], ...]


@dataclass(frozen=True, eq=False)
class PolicyWithExtras:
    """A decision policy, and operating points requested for one evaluation that the model folder does not hold."""

    policy: DecisionPolicy
    extra_points: OperatingPoints = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what policy.json holds; the model folder takes over all but `requested_points`."""
        return {
            **self.policy.as_dict(),
            "requested_points": [operating_point_dict(*point) for point in self.extra_points],
        }

    def calibrate(self, scored_set: ScoredSet) -> ScoredSet:
        """Return the images with calibrated probabilities."""
        return apply_calibration(scored_set, self.policy.calibration)


def fit_with_targets(validation: ScoredSet, options: EvaluationOptions) -> PolicyWithExtras:
    """Fit a policy on validation images; raises `DataError` for a target that cannot be fitted on them."""
    return add_targets(fit_policy(validation), validation, options)


def add_targets(policy: DecisionPolicy, validation: ScoredSet, options: EvaluationOptions) -> PolicyWithExtras:
    """Return a policy with operating points for the targets it lacks; raises `DataError` where one cannot be fitted."""
    fitted_targets = {(rate, point.target) for rate, point in policy.operating_points}
    new_targets = [target for target in options.targets if target not in fitted_targets]
    points = fit_operating_points(apply_calibration(validation, policy.calibration), new_targets)
    if len(points) < len(new_targets) or (options.needs_policy and not policy.operating_points and not points):
        raise _unfittable(validation, "the last evaluation")
    return PolicyWithExtras(policy, points)


def _missing_outcome(validation: ScoredSet) -> str:
    if not validation.has_both_sides:
        return "the class table has not two sides, malignant and other"
    outcome = "malignant" if not validation.is_malignant.any() else "other than malignant"
    return f"no validation image is {outcome}"


def check_targets(validation: ScoredSet, options: EvaluationOptions, *, untouched: str) -> None:
    """Raise `DataError` for a target that validation images cannot fit, before anything is fitted or written."""
    has_images = {"sensitivity": validation.is_malignant.any(), "specificity": (~validation.is_malignant).any()}
    has_binary_view = validation.has_both_sides
    if options.needs_policy and not (has_binary_view and all(has_images[rate] for rate, _ in options.targets)):
        raise _unfittable(validation, untouched)


def _unfittable(validation: ScoredSet, untouched: str) -> DataError:
    return DataError(
        f"an operating point cannot be fitted: {_missing_outcome(validation)}",
        outcome=untouched, remedy="evaluate without --target and --prevalence",
    )  # fmt: skip


def check_options(
    options: EvaluationOptions,
    splits: Collection[str],
    recorded_policy: PolicyWithExtras | None = None,
    *,
    untouched: str = "the last evaluation",
) -> None:
    """Raise `DataError` if the options need validation images to fit on and others to evaluate on, and there are none.

    recorded_policy: an earlier policy: it serves any prevalence, but no new target. untouched: what stays as it was,
    for the message.
    """
    evaluated_splits = set(splits) - {"train", POLICY_SPLIT}
    if recorded_policy is not None:
        fitted_targets = {
            (rate, point.target)
            for rate, point in (*recorded_policy.policy.operating_points, *recorded_policy.extra_points)
        }
        is_fittable = set(options.targets) <= fitted_targets and bool(fitted_targets)
    else:
        is_fittable = POLICY_SPLIT in splits and bool(evaluated_splits)
    if options.needs_policy and not is_fittable:
        raise DataError(
            "operating points are fitted on validation images and evaluated on others; these predictions are of "
            f"{', '.join(sorted(splits))} only",
            outcome=untouched,
            remedy="a model on other data: dermkit evaluate RUN --on DATASET --target ...; a table: a column `split`",
        )


def policy_metrics(
    policy: PolicyWithExtras, scored_set: ScoredSet, *, seed: int, options: EvaluationOptions = DEFAULT_OPTIONS
) -> dict[str, Any]:
    """Return the policy's metrics on held-out images, at the default and the requested prevalences."""
    prevalences = tuple(sorted({*DEFAULT_PREVALENCES, *options.prevalences}))
    return evaluate_policy(
        policy.policy,
        scored_set,
        evaluate_split=evaluate_split,
        seed=seed,
        prevalences=prevalences,
        requested_points=policy.extra_points,
    )
