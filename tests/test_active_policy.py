"""What validation settled, applied: answers by hand, and the same as evaluate has for the same images."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.apply import ActivePolicy, PolicyOutput, select
from dermkit.metrics.decisions.conformal import ConformalRule
from dermkit.metrics.decisions.operating_points import OperatingPoint
from dermkit.metrics.decisions.policy import (
    REFERRAL_COVERAGES,
    DecisionPolicy,
    ReferralThreshold,
    apply_calibration,
    evaluate_policy,
    fit_policy,
    policy_from_dict,
)
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration
from dermkit.metrics.stats.estimate import Estimate
from test_policy import split

MALIGNANT = np.array([False, True, True])
ERROR = Estimate(0.1, (0.05, 0.2), 80, "wilson")


def settled(
    *, bias: tuple[float, ...] = (0.0, 0.0, 0.0), kept: tuple[bool, bool] = (False, True)
) -> DecisionPolicy:
    """Return a decision by hand: probabilities are squared, and class b is in the set from exactly 1/3 on."""
    points = (
        OperatingPoint("sensitivity", 0.95, 0.25, 0.95, kept[0], 40),
        OperatingPoint("sensitivity", 0.9, 1 / 3, 0.95, kept[1], 40),
    )
    rule = ConformalRule(0.1, np.array([0.6, 0.3, 0.1]), np.array([90, 30, 20]))
    return DecisionPolicy(
        ProbabilityCalibration("bias", 0.5, bias),
        {"none": 1.0},
        points,
        rule,
        100,
        (ReferralThreshold(0.8, 0.6, 0.81, ERROR),),
    )


def applied(
    rows: list[list[float]], *, refer: float | None = None, decision: DecisionPolicy | None = None
) -> PolicyOutput:
    return select(decision or settled(), MALIGNANT, coverage=refer).apply(np.array(rows))


def test_the_answers_by_hand() -> None:
    found = applied([[0.5, 0.25, 0.25], [0.4, 0.2, 0.4], [0.2, 0.7, 0.1], [0.9, 0.1, 0.0]], refer=0.8)
    squared = np.array([[4, 1, 1], [4, 1, 4], [4, 49, 1], [81, 1, 0]])
    np.testing.assert_allclose(found.probabilities, squared / squared.sum(axis=1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(found.p_malignant, [2 / 6, 5 / 9, 50 / 54, 1 / 82], atol=1e-12)
    assert found.y_pred.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(found.confidence, [4 / 6, 4 / 9, 49 / 54, 81 / 82], atol=1e-12)
    assert found.is_positive[1:].tolist() == [[True, True], [True, True], [False, False]]
    assert found.prediction_sets.tolist() == [
        [True, False, True],
        [False, False, True],
        [False, True, False],
        [True, False, False],
    ]
    assert found.is_answered.tolist() == [True, False, True, True]
    assert applied([[0.4, 0.2, 0.4]]).is_answered.all(), "nobody asked to refer"


def test_shifts_change_the_class_and_sets_may_hold_none_or_all() -> None:
    shifted = applied([[0.5, 0.5, 0.0]], decision=settled(bias=(-math.log(3), 0.0, 0.0)))
    np.testing.assert_allclose(shifted.probabilities, [[0.25, 0.75, 0.0]], atol=1e-9)
    assert shifted.y_pred.tolist() == [1]
    strict = replace(
        settled(), conformal_rule=ConformalRule(0.1, np.array([0.6, 0.5, 0.5]), np.array([90, 30, 20]))
    )
    loose = replace(settled(), conformal_rule=ConformalRule(0.1, np.zeros(3), np.array([3, 3, 3])))
    third = [[1 / 3, 1 / 3, 1 / 3]]
    assert applied(third, decision=strict).prediction_sets.tolist() == [[False, False, False]]
    assert applied(third, decision=loose).prediction_sets.tolist() == [[True, True, True]]


def test_a_score_at_the_threshold_is_positive_and_a_confidence_at_the_bound_is_answered() -> None:
    plain = replace(settled(), calibration=ProbabilityCalibration("none", 1.0, (0.0,) * 3))
    p = select(plain, MALIGNANT).apply(np.array([[0.5, 0.3, 0.2]]))
    at = OperatingPoint("sensitivity", 0.9, float(p.p_malignant[0]), 0.95, True, 9)
    above = replace(at, threshold=float(np.nextafter(at.threshold, 1)))
    bound = replace(plain, operating_points=(at, above),
                    referral_thresholds=(ReferralThreshold(0.5, float(p.confidence[0]), 0.5, ERROR),))  # fmt: skip
    again = select(bound, MALIGNANT, coverage=0.5).apply(np.array([[0.5, 0.3, 0.2]]))
    assert again.is_positive.tolist() == [[True, False]]
    assert again.is_answered.tolist() == [True]


def test_the_first_point_that_is_promised_answers_unless_another_is_named() -> None:
    def place(decision: DecisionPolicy, at: tuple[str, float] | None = None) -> tuple[int | None, bool]:
        found = select(decision, MALIGNANT, target=at)
        return found.point_index, found.is_requested

    assert place(settled()) == (1, False)
    assert place(settled(kept=(True, True))) == (0, False)
    assert place(settled(kept=(False, False))) == (None, False)
    assert place(settled(kept=(False, False)), ("sensitivity", 0.95)) == (0, True)
    assert place(replace(settled(), operating_points=())) == (None, False)
    for wish in (("sensitivity", 0.8), ("specificity", 0.9)):
        with pytest.raises(LookupError, match="no operating point"):
            select(settled(), MALIGNANT, target=wish)
    with pytest.raises(LookupError, match="no referral threshold"):
        select(settled(), MALIGNANT, coverage=0.7)


def test_no_images_and_wrong_shapes() -> None:
    none = select(settled(), MALIGNANT).apply(np.empty((0, 3)))
    assert none.is_positive.shape == (0, 2) and none.prediction_sets.shape == (0, 3)
    for wrong in (np.full((2, 2), 0.5), np.full(3, 1 / 3)):
        with pytest.raises(ValueError, match="one column per class"):
            select(settled(), MALIGNANT).apply(wrong)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_images_may_come_in_any_pieces(seed: int, cuts: list[int]) -> None:
    chosen = select(settled(bias=(0.3, -0.2, -0.1)), MALIGNANT, coverage=0.8)
    p = np.random.default_rng(seed).dirichlet([0.4, 1, 2], 40)
    whole, edges = chosen.apply(p), [0, *sorted(cuts), 40]
    pieces = [chosen.apply(p[a:b]) for a, b in itertools.pairwise(edges)]
    for name in ("probabilities", "y_pred", "p_malignant", "is_positive", "prediction_sets", "is_answered"):
        assert np.array_equal(np.concatenate([getattr(piece, name) for piece in pieces]), getattr(whole, name))


def test_what_evaluate_says_of_a_test_side_is_what_is_applied_to_its_images() -> None:
    decision, test = fit_policy(split(0, 1200, 3.0)), split(1, 700, 3.0)
    body = evaluate_policy(decision, test, evaluate_split=evaluate_split, seed=0)
    told = body["referral"]["at_validation_thresholds"]
    assert [item["target_coverage"] for item in told] == list(REFERRAL_COVERAGES)
    for item in told:
        found = select(decision, test.malignant_classes, coverage=item["target_coverage"]).apply(
            test.probabilities
        )
        assert found.is_answered.mean() == item["coverage"]["value"]
        assert abs(found.is_answered.mean() - item["target_coverage"]) < 0.08, "drawn alike, so many are answered"
        wrong = (found.y_pred != test.y_true)[found.is_answered].mean()
        assert wrong == pytest.approx(item["error"]["value"], abs=1e-12)
        assert item["error"]["n"] == found.is_answered.sum()
    assert np.array_equal(found.probabilities, apply_calibration(test, decision.calibration).probabilities)
    assert np.bincount(found.prediction_sets.sum(axis=1), minlength=4).tolist() == body["conformal"]["set_sizes"]
    for place, item in enumerate(body["operating_points"]):
        called = found.is_positive[:, place]
        assert called[test.is_malignant].mean() == item["sensitivity"]["value"]
        assert 1 - called[~test.is_malignant].mean() == pytest.approx(item["specificity"]["value"], abs=1e-12)


def by_confidence(confidence: list[float], right: list[bool]) -> ScoredSet:
    """Return images of two classes of which the first is always called, with these confidences."""
    p = np.array([[value, 1 - value] for value in confidence])
    true = np.where(right, 0, 1)
    return ScoredSet(["a", "b"], np.array([False, True]), true, p.argmax(axis=1), p, np.arange(len(right)))


def test_the_confidence_of_a_share_by_hand() -> None:
    decision = fit_policy(by_confidence([0.9, 0.8, 0.7, 0.6], [True, True, False, False]))
    assert decision.calibration.kind == "none"
    half, most = decision.referral_thresholds[-1], decision.referral_thresholds[0]
    assert (half.target_coverage, half.validation_coverage, half.error_rate.value, half.error_rate.n) == (
        0.5,
        0.5,
        0.0,
        2,
    )
    assert half.min_confidence == pytest.approx(0.8)
    assert (most.target_coverage, most.validation_coverage, most.error_rate.value, most.error_rate.n) == (
        0.95,
        1.0,
        0.5,
        4,
    )
    tied = fit_policy(by_confidence([0.9, 0.7, 0.7, 0.7], [True, True, False, False])).referral_thresholds
    assert {item.validation_coverage for item in tied} == {1.0}, "images of equal confidence are answered together"
    assert tied[0].min_confidence == pytest.approx(0.7)


def test_what_was_settled_before_confidences_were_kept_is_still_read() -> None:
    body = fit_policy(split(9, 400, 2.0)).as_dict()
    assert len(body["referral"]) == len(REFERRAL_COVERAGES)
    older = {name: value for name, value in body.items() if name != "referral"}
    assert policy_from_dict(older).referral_thresholds == ()
    assert (
        policy_from_dict(json.loads(json.dumps(body))).referral_thresholds
        == policy_from_dict(body).referral_thresholds
    )
    assert (
        evaluate_policy(policy_from_dict(older), split(2, 50, 1.0), evaluate_split=evaluate_split, seed=0)[
            "referral"
        ]["at_validation_thresholds"]
        == []
    )
    broken = {**body, "referral": [{**body["referral"][0], "min_confidence": None}]}
    with pytest.raises(ValueError, match="None is not a number"):
        policy_from_dict(broken)


def test_a_class_table_with_one_side_is_told() -> None:
    def sides(*malignant: bool) -> bool:
        return ActivePolicy(settled(), np.array(malignant), None, False, None).has_both_sides

    assert sides(False, True, True)
    assert not sides(False, False, False)
    assert not sides(True, True, True)
