"""Fit the decision policy on validation images and evaluate it on the other splits.

What several nets need is imported where it is used, which keeps the import chain short.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dermkit.errors import DataError, first_of
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.operating_point_metrics import DEFAULT_PREVALENCES
from dermkit.metrics.decisions.policy import (
    DecisionPolicy,
    apply_calibration,
    covers_true_class,
    evaluate_policy,
    fit_operating_points,
    fit_policy,
)
from dermkit.metrics.stats.arrays import Bools
from dermkit.runs.predictions import net_text

POLICY_SPLIT = "validation"
"""The split on which calibration, operating points and prediction sets are fitted."""
_MAX_NETS_NAMED = 5


def fit_with_targets(validation: ScoredSet, options: EvaluationOptions) -> DecisionPolicy:
    """Fit a policy on validation images; raises `DataError` for a target that cannot be fitted on them."""
    return add_targets(fit_policy(validation), validation, options)


def add_targets(policy: DecisionPolicy, validation: ScoredSet, options: EvaluationOptions) -> DecisionPolicy:
    """Return a policy with operating points for the targets it lacks; raises `DataError` where one cannot be fitted."""
    new_targets = [target for target in options.targets if target not in policy.targets]
    points = fit_operating_points(apply_calibration(validation, policy.calibration), new_targets)
    if len(points) < len(new_targets) or (options.needs_policy and not policy.operating_points and not points):
        raise _unfittable(validation, "the last evaluation")
    requested_points = (replace(point, requested=True) for point in points)
    return replace(policy, operating_points=(*policy.operating_points, *requested_points))


def _missing_outcome(validation: ScoredSet) -> str:
    if not validation.has_both_sides:
        return "the class table has not two sides, malignant and other"
    outcome = "malignant" if not validation.is_malignant.any() else "other than malignant"
    return f"no validation image is {outcome}"


def check_targets(validation: ScoredSet, options: EvaluationOptions, *, untouched: str) -> None:
    """Raise `DataError` for a target that validation images cannot fit, before anything is fitted or written."""
    if options.needs_policy and not _can_fit(validation, options):
        raise _unfittable(validation, untouched)


def _can_fit(validation: ScoredSet, options: EvaluationOptions) -> bool:
    has_images = {"sensitivity": validation.is_malignant.any(), "specificity": (~validation.is_malignant).any()}
    return validation.has_both_sides and all(has_images[rate] for rate, _ in options.targets)


def _check_nets(validation_by_net: Mapping[str, ScoredSet], options: EvaluationOptions) -> None:
    """Raise `DataError` that names the nets whose own validation images cannot fit a target.

    No other net's threshold stands in: each net has its own (decision 0011), and a guarantee would not hold with one of
    other scores.
    """
    problems = {
        label: _missing_outcome(images)
        for label, images in validation_by_net.items()
        if options.targets and images.has_both_sides and not _can_fit(images, options)
    }
    if problems:
        nets = first_of(
            [f"{net_text(label)}: {problem}" for label, problem in problems.items()], _MAX_NETS_NAMED, "; "
        )
        raise DataError(
            f"an operating point cannot be fitted for {len(problems)} of {len(validation_by_net)} nets, each of which "
            f"has its own: {nets}",
            outcome="the last evaluation",
            remedy="evaluate without --target; for such a target make the split with a larger split.validation (1 / "
            "folds: whole folds validate), and train again",
        )


def _unfittable(validation: ScoredSet, untouched: str) -> DataError:
    return DataError(
        f"an operating point cannot be fitted: {_missing_outcome(validation)}",
        outcome=untouched, remedy="evaluate without --target and --prevalence",
    )  # fmt: skip


def check_options(
    options: EvaluationOptions,
    splits: Collection[str],
    recorded_policy: DecisionPolicy | None = None,
    *,
    untouched: str = "the last evaluation",
) -> None:
    """Raise `DataError` if the options need validation images to fit on and others to evaluate on, and there are none.

    recorded_policy: an earlier policy: it serves any prevalence, but no new target. untouched: what stays as it was,
    for the message.
    """
    evaluated_splits = set(splits) - {"train", POLICY_SPLIT}
    if recorded_policy is not None:
        is_fittable = set(options.targets) <= recorded_policy.targets and bool(recorded_policy.targets)
    else:
        is_fittable = POLICY_SPLIT in splits and bool(evaluated_splits)
    if options.needs_policy and not is_fittable:
        raise DataError(
            "operating points are fitted on validation images and evaluated on others; these predictions are of "
            f"{', '.join(sorted(splits))} only",
            outcome=untouched,
            remedy="a model on other data: dermkit evaluate RUN --on DATASET --target ...; a table: a column `split`",
        )


@dataclass(frozen=True, eq=False)
class FittedPolicy:
    """What validation images were fitted to: one policy or, where several nets scored the images, one of each net.

    policy: what a model takes over. nets: F, the nets' own, by the label that `net_labels` gives their rows; empty for
    one net. Of several nets, `policy` is fitted on the validation images of all, as the mean of the nets takes them.
    """

    policy: DecisionPolicy
    nets: Mapping[str, DecisionPolicy] = field(default_factory=dict)

    def of_nets(self, labels: Sequence[str]) -> list[DecisionPolicy]:
        """Return the policies of these nets, in this order; none where one policy is for all."""
        return [self.nets[label] for label in labels] if self.nets and set(labels) <= set(self.nets) else []

    def calibrate(self, scored_set: ScoredSet, labels: Sequence[str]) -> ScoredSet:
        """Return the images with calibrated probabilities. labels: of the nets in `scored_set.rows_by_net`."""
        from dermkit.metrics.decisions.net_policies import calibrate_by_net

        if policies := self.of_nets(labels):
            return calibrate_by_net(policies, scored_set)
        return apply_calibration(scored_set, self.policy.calibration)

    def policy_images(self, validation: ScoredSet, labels: Sequence[str]) -> ScoredSet:
        """Return the images that `policy` was fitted on, before its own calibration. labels: of the nets in
        `validation.rows_by_net`.
        """
        from dermkit.metrics.decisions.net_policies import sharpen_by_net

        policies = self.of_nets(labels)
        return sharpen_by_net(policies, validation) if policies else validation

    def covers_true_class(self, scored_set: ScoredSet, labels: Sequence[str]) -> Bools:
        """Return whether the prediction set of each image contains its true class, (N,)."""
        from dermkit.metrics.decisions.net_policies import covers_true_class_by_net

        if policies := self.of_nets(labels):
            return covers_true_class_by_net(policies, scored_set)
        return covers_true_class(
            self.policy.conformal_rule, apply_calibration(scored_set, self.policy.calibration)
        )


def fit_for_nets(
    validation: ScoredSet, validation_by_net: Mapping[str, ScoredSet], options: EvaluationOptions
) -> FittedPolicy:
    """Fit on validation images that several nets scored; raises `DataError` as `fit_with_targets`.

    validation_by_net: the same images, of each net by itself, in the order of `validation.rows_by_net`.
    """
    from dermkit.metrics.decisions.net_policies import sharpen_by_net

    _check_nets(validation_by_net, options)
    nets = {label: fit_with_targets(images, options) for label, images in validation_by_net.items()}
    return FittedPolicy(fit_with_targets(sharpen_by_net(list(nets.values()), validation), options), nets)


def policy_metrics(
    fitted: FittedPolicy,
    scored_set: ScoredSet,
    labels: Sequence[str],
    *,
    seed: int,
    options: EvaluationOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """Return the policy's metrics on held-out images, at the default and the requested prevalences.

    labels: of the nets that scored them, in the order of `scored_set.rows_by_net`.
    """
    from dermkit.metrics.decisions.net_policies import evaluate_policies_by_net

    prevalences = tuple(sorted({*DEFAULT_PREVALENCES, *options.prevalences}))
    if policies := fitted.of_nets(labels):
        return evaluate_policies_by_net(
            policies, scored_set, evaluate_split=evaluate_split, seed=seed, prevalences=prevalences
        )
    return evaluate_policy(
        fitted.policy, scored_set, evaluate_split=evaluate_split, seed=seed, prevalences=prevalences
    )
