"""How answers change: paired differences of each variant from the unchanged image, with intervals by resampling unit.

Shapes: N images, V variants, G units, F figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dermkit.metrics.stats.arrays import Bools, Floats, Ints, ratio, sum_by_group
from dermkit.metrics.stats.bootstrap import BootstrapSamples
from dermkit.metrics.stats.estimate import Estimate, undefined_estimate, with_caveats
from dermkit.metrics.stats.intervals import (
    CONFIDENCE_LEVEL,
    N_RESAMPLES,
    clopper_pearson_interval,
    design_effect,
    proportion_estimate,
    too_few,
)
from dermkit.metrics.stats.paired_tests import holm_adjust, sign_flip_test

NO_SIDES_REASON = "not applicable: the classes are not both malignant and other"
ALPHA = 0.05
"""Holm's adjusted p below which a change is said to be shown."""


@dataclass(frozen=True, eq=False)
class VariantAnswers:
    """The answers to N images in V variants, the unchanged image first.

    score: (N, V), P(malignant), or the probability of the true class. y_pred: (N, V) class index. is_positive: (N, V)
    at the operating point, None without both sides. is_malignant: (N,) by label, None without both sides. y_true: (N,),
    -1 for a label that the model does not have. groups: (N,) unit, 0 to G - 1.
    """

    score: Floats
    y_pred: Ints
    is_positive: Bools | None
    is_malignant: Bools | None
    y_true: Ints
    groups: Ints


@dataclass(frozen=True)
class AnswerChange:
    """What one variant changes. score: mean change of the probability. p, p_holm: sign flips over units; None untested.

    n_to_positive, n_to_negative: images that cross the operating point; None where there is none. decision_changes: the
    share of images that cross it, undefined where there is none. sensitivity, specificity, accuracy: their differences
    from the unchanged images.
    """

    score: Estimate
    label_changes: Estimate
    n_label_changes: int
    n_to_positive: int | None
    n_to_negative: int | None
    sensitivity: Estimate
    specificity: Estimate
    accuracy: Estimate
    decision_changes: Estimate
    p: float | None = None
    p_holm: float | None = None

    @property
    def decisions(self) -> Estimate:
        """The share of images whose decision changes; where there is none, whose label does."""
        return self.label_changes if self.decision_changes.value is None else self.decision_changes

    @property
    def n_decisions(self) -> int:
        """Images whose decision changes; where there is none, whose label does."""
        if self.n_to_positive is None or self.n_to_negative is None:
            return self.n_label_changes
        return self.n_to_positive + self.n_to_negative

    @property
    def is_shown(self) -> bool:
        """Whether the mean change is beyond chance after Holm's correction."""
        return self.p_holm is not None and self.p_holm <= ALPHA


def measure_changes(answers: VariantAnswers, *, tested: Sequence[int], seed: int = 0) -> list[AnswerChange]:
    """Return the change of each of the V variants. tested: numbers of the variants that make one family of tests."""
    n_variants = answers.score.shape[1]
    figures = _Figures(answers, seed)
    p_values = _p_values(answers, tested, seed)
    return [_change(answers, figures, number, p_values) for number in range(n_variants)]


def _p_values(answers: VariantAnswers, tested: Sequence[int], seed: int) -> dict[int, tuple[float, float]]:
    """Return variant -> p and Holm's p of its mean change of the probability."""
    if not tested:
        return {}
    n_groups = int(answers.groups.max()) + 1
    deltas = answers.score[:, list(tested)] - answers.score[:, :1]
    sums = np.stack([sum_by_group(column, answers.groups, n_groups) for column in deltas.T], axis=1)
    p = sign_flip_test(sums, seed=seed).tolist()
    return dict(zip(tested, zip(p, holm_adjust(p), strict=True), strict=True))


def _change(
    answers: VariantAnswers, figures: "_Figures", number: int, p_values: dict[int, tuple[float, float]]
) -> AnswerChange:
    is_changed = answers.y_pred[:, number] != answers.y_pred[:, 0]
    p, p_holm = p_values.get(number, (None, None))
    positive = answers.is_positive
    return AnswerChange(
        score=figures.estimate("score", number),
        label_changes=proportion_estimate(is_changed, answers.groups),
        n_label_changes=int(is_changed.sum()),
        n_to_positive=None if positive is None else int((positive[:, number] & ~positive[:, 0]).sum()),
        n_to_negative=None if positive is None else int((~positive[:, number] & positive[:, 0]).sum()),
        sensitivity=figures.estimate("sensitivity", number),
        specificity=figures.estimate("specificity", number),
        accuracy=figures.estimate("accuracy", number),
        decision_changes=undefined_estimate(0, NO_SIDES_REASON)
        if positive is None
        else proportion_estimate(positive[:, number] != positive[:, 0], answers.groups),
        p=p,
        p_holm=p_holm,
    )


class _Figures:
    """Means of differences over some of the images, all on the same resamples of units."""

    def __init__(self, answers: VariantAnswers, seed: int) -> None:
        self._groups, self._n_groups = answers.groups, int(answers.groups.max()) + 1
        self._masks, terms = _terms(answers)
        n_variants = answers.score.shape[1]
        self._columns = {name: number * n_variants for number, name in enumerate(terms)}
        self._sums = np.concatenate([self._sum(values) for values in terms.values()], axis=1)
        counts = [self._sum(self._masks[name][:, None].astype(np.float64)) for name in terms]
        self._counts = np.concatenate([np.repeat(count, n_variants, axis=1) for count in counts], axis=1)
        self._bootstrap = BootstrapSamples(
            self._n_groups,
            compute_metrics=lambda weights: {"mean": _means(weights @ self._sums, weights @ self._counts)},
            leave_one_group_out=lambda rows: {
                "mean": _means(
                    self._sums.sum(axis=0) - self._sums[rows], self._counts.sum(axis=0) - self._counts[rows]
                )
            },
            method_name="paired bootstrap by unit",
            seed=seed,
            resamples=N_RESAMPLES,
        )
        self._values = _means(self._sums.sum(axis=0), self._counts.sum(axis=0))

    def _sum(self, values: Floats) -> Floats:
        return np.stack([sum_by_group(column, self._groups, self._n_groups) for column in values.T], axis=1)

    def estimate(self, name: str, number: int) -> Estimate:
        """Return a figure's difference of one variant from the unchanged images."""
        if name not in self._columns:
            return undefined_estimate(0, NO_SIDES_REASON)
        mask = self._masks[name]
        if not mask.any():
            return undefined_estimate(0, f"not applicable: no image that {name} is about")
        column = self._columns[name] + number
        samples, jackknife = self._bootstrap.samples.get("mean"), self._bootstrap.jackknife.get("mean")
        estimate = self._bootstrap.estimate(
            float(self._values[column]), int(mask.sum()), None if samples is None else samples[:, column],
            None if jackknife is None else jackknife[:, column],
        )  # fmt: skip
        return with_caveats(estimate, too_few(len(np.unique(self._groups[mask]))))


def _terms(answers: VariantAnswers) -> tuple[dict[str, Bools], dict[str, Floats]]:
    """Return figure -> images that it is about, (N,), and figure -> differences from the unchanged image, (N, V)."""
    all_images, has_label = np.ones(len(answers.y_true), dtype=bool), answers.y_true >= 0
    is_correct = (answers.y_pred == answers.y_true[:, None]).astype(np.float64)
    masks = {"score": all_images, "accuracy": has_label}
    terms = {"score": answers.score - answers.score[:, :1], "accuracy": is_correct - is_correct[:, :1]}
    if answers.is_positive is not None and answers.is_malignant is not None:
        positive = answers.is_positive.astype(np.float64)
        masks |= {"sensitivity": answers.is_malignant, "specificity": ~answers.is_malignant}
        terms |= {"sensitivity": positive - positive[:, :1], "specificity": positive[:, :1] - positive}
    return masks, {name: values * masks[name][:, None] for name, values in terms.items()}


def _means(sums: Floats, counts: Floats) -> Floats:
    return ratio(sums, counts, counts > 0)


def order_worst_first(changes: Sequence[AnswerChange]) -> list[int]:
    """Return the order of artefacts by the decisions that their strongest change turns round, then by the mean's size.

    Without an operating point labels count in place of decisions.
    """
    sizes = [(change.n_decisions, abs(change.score.value or 0.0)) for change in changes]
    return sorted(range(len(changes)), key=lambda number: sizes[number], reverse=True)


def decision_bounds(answers: VariantAnswers, numbers: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return variant -> interval of the share of images whose decision changes; 95 % for all `numbers` at once.

    By Bonferroni's correction, so that the largest of them may be picked: exact, at the effective sample size of
    grouped images. Without an operating point labels count in place of decisions.
    """
    level = 1 - (1 - CONFIDENCE_LEVEL) / max(1, len(numbers))
    values = answers.y_pred if answers.is_positive is None else answers.is_positive
    return {
        number: _decision_bound(np.asarray(values[:, number] != values[:, 0]), answers.groups, level)
        for number in numbers
    }


def _decision_bound(is_changed: Bools, groups: Ints, level: float) -> tuple[float, float]:
    if len(is_changed) > 1 and len(np.unique(groups)) == 1:
        return 0.0, 1.0  # one lesion or patient says nothing of others
    is_independent = len(np.unique(groups)) == len(is_changed)
    effective_n = len(is_changed) / (1.0 if is_independent else design_effect(is_changed, groups))
    return clopper_pearson_interval(float(is_changed.mean()) * effective_n, effective_n, level=level)
