"""The rule that promotes a challenger: not worse on any test, no group harmed, and never without enough images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dermkit.comparison.promotion import PairedTest, PromotionRule, decide_promotion
from dermkit.comparison.promotion import _non_inferiority as non_inferiority
from dermkit.comparison.promotion_sentences import decision_sentences
from dermkit.errors import UsageError
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.estimate import Estimate
from dermkit.metrics.stats.paired_proportions import fewest_pairs, proportion_difference, tango_interval

RULE = PromotionRule("auroc")


def scored(truth: Any, log_odds: Any, groups: Any = None) -> ScoredSet:
    p = 1 / (1 + np.exp(-np.asarray(log_odds, dtype=float)))
    return ScoredSet(
        ("benign", "melanoma"), np.array([False, True]), truth, (p >= 0.5).astype(np.int64),
        np.column_stack([1 - p, p]), np.arange(len(truth)) if groups is None else groups,
    )  # fmt: skip


def paired_test(
    seed: int,
    *,
    n: int = 1500,
    name: str = "old",
    gain: float = 0.0,
    harmed: Sequence[float] = (),
    noise: float = 0.5,
) -> PairedTest:
    """Draw a test: gain is added to what the challenger sees of the truth; harmed: to that of each site."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.3).astype(np.int64)
    site = rng.integers(0, 3, n)
    shared = rng.normal(0, 1, n)
    shift = gain + np.array([*harmed, *[0.0] * 3])[site]
    champion = 1.2 * (2 * truth - 1) + 1.0 * shared + rng.normal(0, noise, n)
    challenger = (1.2 + shift) * (2 * truth - 1) + 1.0 * shared + rng.normal(0, noise, n)
    attributes = {"site": [f"site {number}" for number in site]}
    return PairedTest(
        name, scored(truth, champion), scored(truth, challenger), champion > -0.5, challenger > -0.5, attributes
    )


def test_an_equal_challenger_is_promoted_with_enough_images_and_a_worse_one_refused() -> None:
    promoted = decide_promotion([paired_test(1), paired_test(2, name="new")], RULE)
    assert promoted.is_promoted and not promoted.refusals
    refused = decide_promotion([paired_test(1), paired_test(2, name="new", gain=-1.2)], RULE)
    assert not refused.is_promoted
    assert {(check.test, check.outcome) for check in refused.refusals if not check.group} == {("new", "worse")}


def test_one_of_two_tests_alone_does_not_promote() -> None:
    decision = decide_promotion([paired_test(1, gain=-1.2), paired_test(2, name="new", gain=1)], RULE)
    assert not decision.is_promoted and {check.test for check in decision.refusals if not check.group} == {"old"}


def test_a_challenger_that_is_better_on_average_and_harms_one_group_is_refused_for_the_group() -> None:
    tests = [paired_test(3, harmed=(-1.0, 0.8, 0.8)), paired_test(4, name="new", harmed=(-1.0, 0.8, 0.8))]
    decision = decide_promotion(tests, replace(RULE, margin=0.1, sensitivity_margin=0.2))
    whole = [check for check in decision.checks if not check.group and check.outcome != "not asked"]
    assert {check.outcome for check in whole} == {"not worse"}
    assert {check.group for check in decision.refusals} == {"site 0"}


def test_too_few_images_refuse_and_name_a_count_that_decides() -> None:
    tests = [paired_test(5, n=130), paired_test(6, n=130, name="new")]
    decision = decide_promotion(tests, RULE)
    undecided = [check for check in decision.checks if check.outcome == "undecided"]
    assert not decision.is_promoted and undecided
    needed = [check.images_needed for check in undecided if check.images_needed]
    assert needed and all(count > 30 for count in needed)
    tiny = decide_promotion([paired_test(7, n=40)], RULE)
    assert all(
        check.outcome == "undecided" and (check.images_needed or 0) >= 60
        for check in tiny.checks if check.metric == "auroc" and not check.group
    )  # fmt: skip


def test_a_larger_test_decides_as_the_count_that_is_named_says() -> None:
    small = decide_promotion([paired_test(8, n=300)], PromotionRule("auroc", 0.02, 0.3))
    check = next(check for check in small.checks if check.metric == "auroc" and not check.group)
    assert check.outcome == "undecided" and check.images_needed
    results = [
        next(
            c for c in decide_promotion([paired_test(seed, n=4 * check.images_needed)], small.rule).checks
        ).outcome
        for seed in range(10, 16)
    ]
    assert results.count("not worse") >= 5


def test_small_groups_are_named_and_decide_nothing() -> None:
    decision = decide_promotion(
        [paired_test(9, n=300, harmed=(-0.4,))], replace(RULE, margin=0.3, sensitivity_margin=0.3)
    )
    groups = [check for check in decision.checks if check.group]
    assert groups and {check.outcome for check in groups} == {"too few"}
    assert all(check.images_needed for check in groups) and decision.is_promoted


def test_groups_that_are_small_in_each_test_are_decided_in_both() -> None:
    tests = [paired_test(seed, n=380, name=name) for seed, name in ((1, "old"), (2, "new"))]
    decision = decide_promotion(tests, RULE)
    decided = {check.test for check in decision.checks if check.group and check.outcome == "not shown worse"}
    assert decided == {"old and new"}


def test_the_same_model_twice_is_promoted_and_its_interval_has_a_width() -> None:
    test = paired_test(11)
    twin = replace(test, challenger=test.champion, challenger_calls=test.champion_calls)
    decision = decide_promotion([twin], RULE)
    figure = decision.checks[0].estimate
    assert decision.is_promoted and figure.value == 0 and figure.ci95 and figure.ci95[0] < 0 < figure.ci95[1]
    few = paired_test(11, n=120)
    decision = decide_promotion([replace(few, challenger=few.champion, challenger_calls=few.champion_calls)], RULE)
    assert not decision.is_promoted, "36 malignant images prove no two models equal"


def test_a_challenger_that_gives_every_image_the_same_answer_is_refused() -> None:
    test = paired_test(12)
    constant = scored(test.champion.y_true, np.zeros(len(test.champion.y_true)))
    decision = decide_promotion([replace(test, champion=constant, challenger=constant)], RULE)
    assert not decision.is_promoted
    assert {check.metric for check in decision.refusals if not check.group} >= {"auroc"}
    assert "the same answer" in decision.checks[0].estimate.reason


def test_a_constant_challenger_is_refused_also_where_the_champion_is_little_better() -> None:
    rng = np.random.default_rng(3)
    test = paired_test(12)
    champion = scored(test.champion.y_true, rng.normal(0, 1, len(test.champion.y_true)))
    constant = scored(test.champion.y_true, np.zeros(len(test.champion.y_true)))
    decision = decide_promotion(
        [replace(test, champion=champion, challenger=constant)], PromotionRule("auroc", 0.2)
    )
    assert not decision.is_promoted and "the same answer" in decision.checks[0].estimate.reason


def test_a_group_in_which_the_champion_is_always_right_and_the_challenger_never_is_harmed() -> None:
    truth = np.tile([0, 1], 400).astype(np.int64)
    is_harmed = np.arange(800) >= 680
    rng = np.random.default_rng(4)
    sign = 2 * truth - 1
    noise = rng.normal(0, 1, 800)
    champion = scored(truth, np.where(is_harmed, 3 * sign, 1.2 * sign + noise))
    challenger = scored(truth, np.where(is_harmed, -3 * sign, 1.2 * sign + noise))
    test = PairedTest(
        "old", champion, challenger, None, None, {"site": ["b" if one else "a" for one in is_harmed]}
    )
    decision = decide_promotion([test], PromotionRule("auroc", 0.45))
    assert "b" in {check.group for check in decision.refusals}


def test_an_interval_that_does_not_hold_its_value_decides_nothing() -> None:
    biased = Estimate(
        0.1, (0.02, 0.08), 400, "BCa", "interval unreliable: the bootstrap is biased and does not hold the value"
    )
    assert non_inferiority(biased, 100, 0.05) == ("undecided", None)


def test_a_promotion_without_an_operating_point_says_so() -> None:
    tests = [
        replace(paired_test(seed, name=name), champion_calls=None, challenger_calls=None)
        for seed, name in ((1, "old"), (2, "new"))
    ]
    decision = decide_promotion(tests, RULE)
    assert decision.is_promoted
    assert any("sensitivity at an operating point: not asked" in text for text in decision_sentences(decision))


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1, 0.3])
def test_the_fewest_images_that_can_decide_are_the_fewest(margin: float) -> None:
    fewest = fewest_pairs(margin)
    assert tango_interval(0, 0, fewest)[0] > -margin >= tango_interval(0, 0, fewest - 1)[0]


@pytest.mark.parametrize("values", [("f1", 0.05, 0.05), ("auroc", 0.0, 0.05), ("auroc", 0.05, 0.7)])
def test_a_rule_without_sense_is_refused(values: tuple[str, float, float]) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        PromotionRule(*values)


def test_wrong_promotions_at_the_margin_are_rare() -> None:
    """A sensitivity that is worse by exactly the margin passes at most 2.5 % of the time, plus chance."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(800):
        champion = rng.random(300) < 0.9
        challenger = np.where(rng.random(300) < 0.05 / 0.9, False, champion)
        low = proportion_difference(challenger, champion, np.arange(300)).ci95
        passed += low is not None and low[0] > -0.05
    assert passed / 800 <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 800)


def test_tango_without_discordance_is_what_the_closed_form_says() -> None:
    z2 = 1.959963984540054**2
    assert tango_interval(0, 0, 50) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-6)
    low, high = tango_interval(12, 4, 100)
    assert low < 0.08 < high and tango_interval(4, 12, 100) == pytest.approx((-high, -low), abs=1e-6)
    with pytest.raises(ValueError, match="discordant"):
        tango_interval(60, 50, 100)


def test_copies_of_a_unit_are_no_further_units() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(80) < 0.8, rng.random(80) < 0.7
    alone = proportion_difference(first, second, np.arange(80)).ci95
    copies = proportion_difference(np.repeat(first, 3), np.repeat(second, 3), np.repeat(np.arange(80), 3)).ci95
    assert alone and copies and copies == pytest.approx(alone, abs=0.02)
