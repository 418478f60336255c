"""What stands in a split's body of metrics.json beside its figures: what was settled, groups of people, other rules."""

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
"""The side that calibration, operating points and sets are settled on."""

OperatingPoints = tuple[tuple[str, Threshold], ...]


@dataclass(frozen=True, eq=False)
class PolicyWithExtras:
    """A model's decision, and operating points beside it that a person asked for; of these the model knows nothing."""

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
    """Settle everything on validation images; raises `DataError` for a wish that these cannot settle."""
    return add_targets(fit_policy(validation), validation, options)


def add_targets(policy: DecisionPolicy, validation: ScoredSet, options: EvaluationOptions) -> PolicyWithExtras:
    """Return a decision with operating points for what is asked, but for those that it has; raises `DataError`."""
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
    """Raise `DataError` for a wish that validation images cannot settle, before anything is settled or written."""
    has_images = {"sensitivity": validation.is_malignant.any(), "specificity": (~validation.is_malignant).any()}
    has_binary_view = validation.has_both_sides
    if options.needs_policy and not (has_binary_view and all(has_images[rate] for rate, _ in options.targets)):
        raise _unfittable(validation, untouched)


def _unfittable(validation: ScoredSet, untouched: str) -> DataError:
    return DataError(
        f"an operating point cannot be settled: {_missing_outcome(validation)}",
        outcome=untouched, remedy="evaluate without --wish and --prevalence",
    )  # fmt: skip


def check_options(
    options: EvaluationOptions,
    splits: Collection[str],
    recorded_policy: PolicyWithExtras | None = None,
    *,
    untouched: str = "the last evaluation",
) -> None:
    """Refuse what no validation image is there to settle, or no other image to show; raises `DataError`.

    given: what a model settled before; it serves every prevalence, but no new wish. kept: what the error says of it.
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
            "operating points are settled on validation images and shown on others; these predictions are of "
            f"{', '.join(sorted(splits))} alone",
            outcome=untouched,
            remedy="a model on other data: dermkit evaluate RUN --on DATASET --wish ...; a table: a column `split`",
        )


def policy_metrics(
    policy: PolicyWithExtras, scored_set: ScoredSet, *, seed: int, options: EvaluationOptions = DEFAULT_OPTIONS
) -> dict[str, Any]:
    """Return how it does on images that had no part in it, at the usual prevalences and those asked for."""
    prevalences = tuple(sorted({*DEFAULT_PREVALENCES, *options.prevalences}))
    return evaluate_policy(
        policy.policy,
        scored_set,
        evaluate_split=evaluate_split,
        seed=seed,
        prevalences=prevalences,
        requested_points=policy.extra_points,
    )


# Parts of the people ----------------------------------------------------------------------------------------------
