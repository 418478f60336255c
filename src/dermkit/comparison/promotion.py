"""Whether a challenger takes the place of a champion: non-inferiority on every test, and harm in no group.

Every question about a whole test must be answered with "not worse": the lower bound of challenger less champion lies
above minus the margin. A wrong promotion needs all of them wrong at once, so their level needs no correction
(intersection-union test: at most 2.5 % at the margin). A single harmed group refuses, so the intervals of all groups
hold together (Bonferroni).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from dermkit.errors import UsageError
from dermkit.metrics.classification.paired import metric_difference
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.subgroups import MIN_LESIONS, UNKNOWN_GROUP, select_images
from dermkit.metrics.stats.arrays import Bools
from dermkit.metrics.stats.estimate import Estimate, reliability
from dermkit.metrics.stats.intervals import MIN_GROUPS, Z
from dermkit.metrics.stats.paired_proportions import proportion_difference
from dermkit.metrics.stats.power import MAX_IMAGES, z_sum

DEFAULT_MARGIN = 0.05
"""Largest loss that counts as none: of AUROC, balanced accuracy or sensitivity, as a fraction. A loss of .05 in
sensitivity is one melanoma in twenty; a smaller margin needs more test images (docs/update.md has the table)."""
FIGURES = ("auroc", "balanced_accuracy")
SENSITIVITY, SPECIFICITY = "sensitivity", "specificity"
BOTH_TESTS = "old and new"
_CONSTANT = "the challenger gives every image the same answer"
_SEED = 0
"""Of the bootstrap of balanced accuracy."""

PromotionOutcome = Literal["not worse", "worse", "undecided", "not shown worse", "too few", "not asked"]


@dataclass(frozen=True)
class PromotionRule:
    """metric: the figure that matters, of `FIGURES`. margin, sensitivity_margin: largest losses that count as none."""

    metric: str
    margin: float = DEFAULT_MARGIN
    sensitivity_margin: float = DEFAULT_MARGIN

    def __post_init__(self) -> None:
        if self.metric not in FIGURES:
            raise _unusable(f"--metric {self.metric}", f"one of {', '.join(FIGURES)}")
        for name, margin in (("--margin", self.margin), ("--sensitivity-margin", self.sensitivity_margin)):
            if not 0 < margin < 0.5:
                raise _unusable(f"{name} {margin:g}", "a fraction between 0 and 0.5, such as 0.05")

    def margin_of(self, metric: str) -> float:
        """Return the margin of a figure."""
        return self.sensitivity_margin if metric == SENSITIVITY else self.margin


@dataclass(frozen=True, eq=False)
class PairedTest:
    """The answers of champion and challenger to the same N images, in the same order.

    name: of the test. champion_calls, challenger_calls: (N,) whether an image is called malignant at the operating
    point of each, None without one. attributes: name -> (N,) the subgroup of each image.
    """

    name: str
    champion: ScoredSet
    challenger: ScoredSet
    champion_calls: Bools | None
    challenger_calls: Bools | None
    attributes: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class PromotionCheck:
    """One question and its answer. estimate: challenger less champion, its interval as the rule uses it.

    attribute, group: "" for all images of the test. n_units: independent lesions or patients behind the rarer side.
    images_needed: images of this kind (of the whole test, for sensitivity malignant ones) that would decide it with a
    power of 0.8; None where it is decided, or where more images of the same answers would not help.
    """

    test: str
    attribute: str
    group: str
    metric: str
    margin: float
    estimate: Estimate
    n_units: int
    outcome: PromotionOutcome
    images_needed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as promotion.json holds it."""
        return {
            "test": self.test, "attribute": self.attribute, "group": self.group, "metric": self.metric,
            "margin": self.margin, **self.estimate.as_dict(), "n_units": self.n_units, "outcome": self.outcome,
            "images_needed": self.images_needed,
        }  # fmt: skip


@dataclass(frozen=True)
class PromotionDecision:
    """Whether the challenger is promoted, why, and every question that was asked."""

    rule: PromotionRule
    checks: tuple[PromotionCheck, ...]
    group_level: float
    """Level of each group's interval, so that all hold together at 95 %."""

    @property
    def is_promoted(self) -> bool:
        """Whether every test shows "not worse" and no group is harmed."""
        return not any(check.outcome in ("worse", "undecided") for check in self.checks)

    @property
    def refusals(self) -> list[PromotionCheck]:
        """The checks that speak against a promotion."""
        return [check for check in self.checks if check.outcome in ("worse", "undecided")]


def decide_promotion(tests: Sequence[PairedTest], rule: PromotionRule) -> PromotionDecision:
    """Return whether the challenger is not worse than the champion on every test, and harms no group of any."""
    whole = [check for test in tests for check in _whole_checks(test, rule)]
    candidates = [one for test in [*tests, *_pooled(tests)] for one in _group_questions(test, rule)]
    n_decidable = sum(n_units >= MIN_LESIONS for *_, n_units in candidates)
    group_level = 1 - 0.05 / max(n_decidable, 1)
    groups = [_group_check(*candidate, rule, group_level) for candidate in candidates]
    return PromotionDecision(rule, (*whole, *groups), group_level)


# Whole tests --------------------------------------------------------------------------------------------------------


def _whole_checks(test: PairedTest, rule: PromotionRule) -> Iterator[PromotionCheck]:
    for metric in _metrics_of(test, rule):
        estimate, n_units = _difference(test, metric), _rarer_units(test, metric)
        if metric == rule.metric and not _tells_apart(test.challenger, metric):
            # A net that learned nothing is no match for anything, and a champion may be little better.
            estimate = Estimate(estimate.value, None, estimate.n, "none", _CONSTANT)
        margin = rule.margin_of(metric)
        outcome, needed = _non_inferiority(estimate, n_units, margin)
        yield PromotionCheck(test.name, "", "", metric, margin, estimate, n_units, outcome, needed)
    if test.champion_calls is not None:
        estimate = _difference(test, SPECIFICITY)
        units = _rarer_units(test, SPECIFICITY)
        yield PromotionCheck(test.name, "", "", SPECIFICITY, rule.margin, estimate, units, "not asked")


def _metrics_of(test: PairedTest, rule: PromotionRule) -> tuple[str, ...]:
    return (rule.metric,) if test.champion_calls is None else (rule.metric, SENSITIVITY)


def _non_inferiority(estimate: Estimate, n_units: int, margin: float) -> tuple[PromotionOutcome, int | None]:
    """Return the outcome of "not worse beyond the margin", and how many images would decide it."""
    if estimate.value is None or estimate.ci95 is None or reliability(estimate.as_dict()) == "none":
        return "undecided", None
    low, high = estimate.ci95
    if n_units < MIN_GROUPS:
        fewest = math.ceil(estimate.n * MIN_GROUPS / max(n_units, 1))
        return "undecided", max(fewest, _images_needed(estimate, margin) or 0)
    if low > -margin:
        return "not worse", None
    if high < -margin:
        return "worse", None
    return "undecided", _images_needed(estimate, margin)


def _images_needed(estimate: Estimate, margin: float) -> int | None:
    """Return how many images would show "not worse" with a power of 0.8, if the difference is what it seems."""
    assert estimate.value is not None and estimate.ci95 is not None  # noqa: S101  _non_inferiority has looked
    distance = estimate.value + margin
    if distance <= 0:
        return None
    standard_error = (estimate.ci95[1] - estimate.ci95[0]) / (2 * Z)
    needed = math.ceil(estimate.n * (z_sum(0.05, 0.8) * standard_error / distance) ** 2)
    return max(needed, estimate.n + 1) if needed <= MAX_IMAGES else None


# Groups -------------------------------------------------------------------------------------------------------------

_Question = tuple[PairedTest, str, str, str, int]
"""A subset of a test, its attribute and group, the figure, and the units behind its rarer side."""


def _pooled(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Return all tests as one, so that groups that are small in each can be decided; none for a single test."""
    if len(tests) < 2:
        return []
    names = [name for name in tests[0].attributes if all(name in test.attributes for test in tests)]
    return [
        PairedTest(
            BOTH_TESTS,
            _joined_set([test.champion for test in tests]),
            _joined_set([test.challenger for test in tests]),
            _joined_calls([test.champion_calls for test in tests]),
            _joined_calls([test.challenger_calls for test in tests]),
            {name: [label for test in tests for label in test.attributes[name]] for name in names},
        )
    ]


def _joined_calls(calls: Sequence[Bools | None]) -> Bools | None:
    known = [one for one in calls if one is not None]
    return np.concatenate(known) if len(known) == len(calls) else None


def _joined_set(sets: Sequence[ScoredSet]) -> ScoredSet:
    """Return the images of several tests as one set; a unit never lies in two of them."""
    offsets = np.cumsum([0, *(one.n_groups for one in sets)])
    return ScoredSet(
        sets[0].classes,
        sets[0].malignant_classes,
        np.concatenate([one.y_true for one in sets]),
        np.concatenate([one.y_pred for one in sets]),
        np.concatenate([one.probabilities for one in sets]),
        np.concatenate([one.groups + offset for one, offset in zip(sets, offsets[:-1], strict=True)]),
    )


def _group_questions(test: PairedTest, rule: PromotionRule) -> Iterator[_Question]:
    for attribute, labels in test.attributes.items():
        names = sorted(set(labels) - {UNKNOWN_GROUP, ""})
        if len(names) < 2:  # one group is the whole test again
            continue
        label_array = np.array(labels, dtype=object)
        for name in names:
            part = _select(test, np.flatnonzero(label_array == name))
            for metric in _metrics_of(test, rule):
                yield part, attribute, name, metric, _rarer_units(part, metric)


def _select(test: PairedTest, rows: "np.ndarray[Any, np.dtype[np.intp]]") -> PairedTest:
    indices = rows.astype(np.int64)
    return PairedTest(
        test.name,
        select_images(test.champion, indices),
        select_images(test.challenger, indices),
        None if test.champion_calls is None else test.champion_calls[indices],
        None if test.challenger_calls is None else test.challenger_calls[indices],
        {},
    )


def _group_check(
    part: PairedTest, attribute: str, group: str, metric: str, n_units: int, rule: PromotionRule, level: float
) -> PromotionCheck:
    margin, n = rule.margin_of(metric), len(part.champion.y_true)
    if n_units < MIN_LESIONS:
        reason = f"{n_units} units on the rarer side, {MIN_LESIONS} needed"
        estimate = Estimate(None, None, n, "none", reason)
        needed = math.ceil(n * MIN_LESIONS / max(n_units, 1))
        return PromotionCheck(part.name, attribute, group, metric, margin, estimate, n_units, "too few", needed)
    estimate = _widened(_difference(part, metric), level)
    # No interval: every image of the group says the same, such as a champion that is always right.
    is_worse = (
        estimate.value is not None and estimate.value < -margin and (estimate.ci95 is None or estimate.ci95[1] < 0)
    )
    outcome: PromotionOutcome = "worse" if is_worse else "not shown worse"
    return PromotionCheck(part.name, attribute, group, metric, margin, estimate, n_units, outcome)


def _widened(estimate: Estimate, level: float) -> Estimate:
    """Return an estimate with its 95 % interval widened to another level, by the ratio of normal quantiles."""
    if estimate.value is None or estimate.ci95 is None or level == 0.95:
        return estimate
    ratio = float(ndtri(0.5 + level / 2)) / Z
    low, high = (max(-1.0, min(1.0, estimate.value + ratio * (end - estimate.value))) for end in estimate.ci95)
    method = f"{estimate.method}, level {level:.4f} (all groups together 95 %)"
    return Estimate(estimate.value, (low, high), estimate.n, method, estimate.reason)


# Figures ------------------------------------------------------------------------------------------------------------


def _difference(test: PairedTest, metric: str) -> Estimate:
    """Return challenger less champion in one figure."""
    if metric in (SENSITIVITY, SPECIFICITY):
        assert test.champion_calls is not None and test.challenger_calls is not None  # noqa: S101  asked for only then
        is_wanted = metric == SENSITIVITY
        rows = test.champion.is_malignant == is_wanted
        return proportion_difference(
            test.challenger_calls[rows] == is_wanted,
            test.champion_calls[rows] == is_wanted,
            test.champion.groups[rows],
        )
    estimate = metric_difference(test.challenger, test.champion, metric, seed=_SEED)
    if estimate.value == 0 and reliability(estimate.as_dict()) == "none":
        return _indistinguishable(estimate, _rarer_units(test, metric))
    return estimate


def _tells_apart(scored: ScoredSet, metric: str) -> bool:
    """Return whether a model gives two images different answers, as far as a figure looks at them."""
    answers = scored.p_malignant if metric == "auroc" else scored.y_pred
    return len(np.unique(answers)) > 1


def _indistinguishable(estimate: Estimate, n_units: int) -> Estimate:
    """Return the interval of a difference of 0 that no resample changes: what n units without a difference allow."""
    reach = 1 - 0.025 ** (1 / max(n_units, 1))
    method = f"no difference in {n_units} units of the rarer side"
    return Estimate(0.0, (-reach, reach), estimate.n, method)


def _rarer_units(test: PairedTest, metric: str) -> int:
    """Return the independent units that decide a figure: of the rarer side, or of the rarest class."""
    scored = test.champion
    if metric == SENSITIVITY:
        return scored.n_groups_in(scored.is_malignant)
    if metric == SPECIFICITY:
        return scored.n_groups_in(~scored.is_malignant)
    if metric == "auroc":
        return min(scored.n_groups_in(scored.is_malignant), scored.n_groups_in(~scored.is_malignant))
    return min(scored.n_groups_in(scored.y_true == number) for number in range(len(scored.classes)))


def _unusable(what: str, remedy: str) -> UsageError:
    return UsageError(f"{what}: cannot be used", outcome="nothing was trained", remedy=f"give {remedy}")
