"""Sums that are equal on paper tie, and what a table of certain answers cannot say is not said."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from dermkit.metrics.classification import isic_scorer
from dermkit.metrics.classification.calibration import calibration_slope_intercept
from dermkit.metrics.classification.paired import paired_differences
from dermkit.metrics.classification.scored_set import ScoredSet, p_malignant, summed_probability
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.apply import select
from dermkit.metrics.decisions.conformal import ConformalRule
from dermkit.metrics.decisions.operating_points import fit_sensitivity_point, fit_specificity_point
from dermkit.metrics.decisions.policy import DecisionPolicy
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration, identity
from dermkit.metrics.stats import delong
from dermkit.metrics.stats.arrays import Floats, Ints

MALIGNANT = np.array([True, True, True, False, False])
NAMES = ["melanoma", "basal cell carcinoma", "squamous cell carcinoma", "nevus", "keratosis"]


def votes(k: int, rows: Ints) -> tuple[Floats, list[Fraction]]:
    """Return votes of k neighbours as probabilities, and the exact share of the first three classes."""
    return rows / k, [Fraction(int(row[:3].sum()), k) for row in rows]


def dense_ranks(values: list[Fraction]) -> list[int]:
    order = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]


@pytest.mark.parametrize("k", [2, 3, 5, 6, 7, 9, 10, 11, 13, 15, 20, 49, 97, 100])
def test_votes_of_neighbours_tie_exactly_where_their_shares_are_equal(k: int) -> None:
    rows = np.random.default_rng(k).multinomial(k, [0.3, 0.2, 0.1, 0.3, 0.1], size=400)
    p, exact = votes(k, rows)
    found = p_malignant(p, MALIGNANT)
    assert (rankdata(found, method="dense") - 1).astype(int).tolist() == dense_ranks(exact)
    np.testing.assert_allclose(found, [float(share) for share in exact], rtol=1e-9)


@given(st.integers(1, 7), st.data())
def test_printed_decimals_give_the_sum_that_paper_gives(digits: int, data: st.DataObject) -> None:
    """With so few digits the float is that of the decimal itself, so that thresholds written by hand hold too."""
    unit = 10**digits
    a = data.draw(st.integers(0, unit))
    b = data.draw(st.integers(0, unit - a))
    c = data.draw(st.integers(0, unit - a - b))
    for cells in itertools.permutations((a, b, c)):
        p = np.array([[*(cell / unit for cell in cells), (unit - a - b - c) / unit, 0.0]])
        assert p_malignant(p, MALIGNANT)[0] == float(Fraction(a + b + c, unit))


def test_the_order_of_the_columns_does_not_matter_and_one_class_is_left_as_it_is() -> None:
    p = np.random.default_rng(0).dirichlet([0.05] * 5, 2000)
    sums = {tuple(p_malignant(p[:, order], MALIGNANT).tolist()) for order in ([0, 1, 2, 3, 4], [2, 0, 1, 4, 3])}
    assert len(sums) == 1
    one = np.array([False, True, False, False, False])
    assert (summed_probability(p, one) == p[:, 1]).all()
    tiny = np.array([[1e-300, 1e-305, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [2e-300, 0.0, 0.0, 1.0, 0.0]])
    assert (np.diff(p_malignant(tiny, MALIGNANT)[[1, 0, 2]]) > 0).all(), "small ones keep their order"


def tied(n: int = 40) -> ScoredSet:
    """Return images whose malignant sum is .3, as .3 for malignant images and as .1 + .2 for the others."""
    true = np.where(np.arange(n) % 2, 0, 3)
    p = np.where((true == 0)[:, None], [0.0, 0.3, 0.0, 0.7, 0.0], [0.1, 0.2, 0.0, 0.7, 0.0])
    return ScoredSet(NAMES, MALIGNANT, true, np.full(n, 3), p, np.arange(n))


def test_nothing_but_ties_has_no_order() -> None:
    scored = tied()
    found = evaluate_split(scored, seed=0, resamples=50)["metrics"]
    assert found["auroc"]["value"] == 0.5
    assert found["average_precision"]["value"] == 0.5
    assert found["pauc_above_tpr80"]["value"] == pytest.approx(0.02)
    assert found["auc_sens_80"]["value"] == pytest.approx(0.18)
    assert (
        found["calibration_slope"]["value"] is None
        and "all odds are equal" in found["calibration_slope"]["reason"]
    )
    assert found["calibration_intercept"]["value"] == pytest.approx(np.log(0.7 / 0.3))
    assert delong.auroc_covariance(scored.p_malignant[None], scored.is_malignant, scored.groups).values[0] == 0.5


def test_a_threshold_on_a_tie_takes_all_of_it_at_fit_and_at_predict() -> None:
    scored = tied(200)
    low = fit_sensitivity_point(scored.p_malignant, scored.is_malignant, scored.groups, target=0.95)
    high = fit_specificity_point(scored.p_malignant, scored.is_malignant, scored.groups, target=0.95)
    assert low.threshold == 0.3 and high.threshold > 0.3
    rule = ConformalRule(0.1, np.zeros(5), np.zeros(5, dtype=np.int64))
    policy = DecisionPolicy(identity(5), {}, (low, high), rule, 200)
    for rows in (np.arange(200), np.arange(1), np.arange(1, 2)):
        called = select(policy, MALIGNANT).apply(scored.probabilities[rows]).is_positive
        assert called[:, 0].all() and not called[:, 1].any()
    eight = np.array([[0.7, 0.1, 0.0, 0.2, 0.0], [0.8, 0.0, 0.0, 0.1, 0.1]])
    assert (p_malignant(eight, MALIGNANT) >= 0.8).all(), ".7 + .1 is .7999999999999999 in floats"


@pytest.mark.parametrize("calibration", [identity(5), ProbabilityCalibration("temperature", 1.7, (0.0,) * 5)])
def test_rows_of_the_same_probabilities_stay_the_same_when_calibrated(calibration: ProbabilityCalibration) -> None:
    rows = np.random.default_rng(1).multinomial(10, [0.4, 0.2, 0.1, 0.2, 0.1], size=300) / 10
    found = calibration.apply(rows)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found[rows == 0] == 0).all(), "what was impossible stays so"
    seen: dict[tuple[float, ...], tuple[float, ...]] = {}
    for before, after in zip(rows, found, strict=True):
        key = tuple(sorted(before.tolist()))
        assert seen.setdefault(key, tuple(sorted(after.tolist()))) == tuple(sorted(after.tolist()))
    if calibration.kind == "none":
        assert (found == rows).all()


def test_the_official_scorer_sums_nothing_and_keeps_its_own_ties() -> None:
    scored = tied()
    p = np.roll(scored.probabilities, 1, axis=1)[:, [0, 4]]
    found = isic_scorer.official_score((scored.y_true == 3).astype(np.int64), p)
    assert found.per_class["auc"].tolist() == [0.5, 0.5]


def test_of_equal_probabilities_the_predicted_class_is_first_then_the_order_of_the_classes() -> None:
    p = np.array([[0.25, 0.25, 0.25, 0.25, 0.0]] * 4)
    true, called = np.array([3, 0, 1, 2]), np.array([3, 3, 3, 3])
    scored = ScoredSet(NAMES, MALIGNANT, true, called, p, np.arange(4))
    assert scored.rank_of_true.tolist() == [0, 1, 2, 3]
    metrics = evaluate_split(scored, seed=0, resamples=0)["metrics"]
    assert [metrics[name]["value"] for name in ("accuracy", "top_2_accuracy", "top_3_accuracy")] == [
        0.25,
        0.5,
        0.75,
    ]


# Certainty --------------------------------------------------------------------------------------------------------


def binary(p: Floats, event: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> ScoredSet:
    both = np.column_stack([1 - p, p])
    return ScoredSet(["benign", "malignant"], np.array([False, True]), event.astype(np.int64),
                     (p > 0.5).astype(np.int64), both, np.arange(len(p)))  # fmt: skip


def answers(wrong: float, seed: int = 0) -> ScoredSet:
    """Return 400 answers of 0 or 1."""
    generator = np.random.default_rng(seed)
    event = generator.random(400) < 0.5
    return binary(np.where(generator.random(400) < wrong, ~event, event).astype(np.float64), event)


def test_hard_answers_have_no_loss_no_slope_and_no_intercept() -> None:
    scored = answers(0.15)
    n_wrong = int((scored.y_pred != scored.y_true).sum())
    found = evaluate_split(scored, seed=0, resamples=50)["metrics"]
    for name in ("loss", "calibration_slope", "calibration_intercept"):
        assert found[name]["value"] is None and found[name]["ci95"] is None, name
        assert found[name]["reason"].startswith(("infinite", f"{n_wrong} images")), name
    assert f"infinite: {n_wrong} of 400 images" in found["loss"]["reason"]
    assert found["brier"]["value"] == pytest.approx(2 * n_wrong / 400) and found["brier"]["ci95"]
    right = evaluate_split(answers(0.0), seed=0, resamples=50)["metrics"]
    assert right["loss"]["value"] == 0.0
    assert right["calibration_intercept"]["value"] is None and right["calibration_slope"]["value"] is None


@pytest.mark.parametrize("margin", [1e-7, 1e-10, 1e-15])
def test_answers_moved_off_0_and_1_by_a_hair_say_no_more(margin: float) -> None:
    """The cut-off of Keras is 1e-7: as many errors either way leave every intercept equally likely."""
    event = np.arange(400) % 2 == 0
    said = np.where(np.arange(400) < 40, ~event, event).astype(np.float64)
    found = evaluate_split(binary(np.clip(said, margin, 1 - margin), event), seed=0, resamples=0)["metrics"]
    assert found["calibration_intercept"]["value"] is None
    assert "leave it open" in found["calibration_intercept"]["reason"]
    rate = 0.9
    assert found["calibration_slope"]["value"] == pytest.approx(
        np.log(rate / (1 - rate)) / -np.log(margin), rel=1e-2
    )
    assert found["loss"]["value"] == pytest.approx(-0.1 * np.log(margin), rel=1e-2)


def test_certain_and_right_images_change_nothing_and_are_named() -> None:
    """The fit is the limit of ever surer probabilities: that of the other images."""
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, 300)
    event = generator.random(300) < 1 / (1 + np.exp(-0.8 * logits))
    p = 1 / (1 + np.exp(-logits))
    certain = np.repeat([0.0, 1.0], 20)
    more_p, more_event = np.append(p, certain), np.append(event, certain > 0.5)
    alone = calibration_slope_intercept(p, event, np.arange(300))
    both = calibration_slope_intercept(more_p, more_event, np.arange(340))
    assert both.slope == pytest.approx(alone.slope) and both.intercept == pytest.approx(alone.intercept)
    assert (both.n_certain, both.n_refuted) == (40, 0)
    found = evaluate_split(binary(more_p, more_event), seed=0, resamples=0)["metrics"]
    assert "40 images of probability 0 or 1 have no part" in found["calibration_slope"]["reason"]
    assert "interval unreliable" in found["calibration_slope"]["reason"]
    refuted = calibration_slope_intercept(np.append(p, 0.0), np.append(event, True), np.arange(301))
    assert np.isnan([refuted.slope, refuted.intercept]).all() and refuted.n_refuted == 1


def test_next_to_1_the_other_classes_say_how_near() -> None:
    p = np.array([[0.6, 0.4 - 1e-12, 0.0, 1e-12, 0.0], [0.5, 0.5, 0.0, 0.0, 0.0], [0.1, 0.2, 0.0, 0.7, 0.0]])
    scored = ScoredSet(NAMES, MALIGNANT, np.array([0, 0, 3]), p.argmax(axis=1), p, np.arange(3))
    assert scored.p_malignant.tolist() == [1.0, 1.0, 0.3]
    assert scored.p_other.tolist() == [1e-12, 0.0, 0.7]


def test_a_loss_below_the_old_floor_is_what_it_is_and_an_infinite_one_is_not_compared() -> None:
    event = np.arange(100) % 2 == 0
    p = np.where(event, 0.8, 0.2)
    tiny = p.copy()
    tiny[0] = 1e-30
    loss = evaluate_split(binary(tiny, event), seed=0, resamples=0)["metrics"]["loss"]["value"]
    assert loss == pytest.approx((-np.log(1e-30) - 99 * np.log(0.8)) / 100)
    zero = p.copy()
    zero[0] = 0.0
    (gap,) = [d for d in paired_differences(binary(zero, event), binary(p, event), seed=0, resamples=20)
              if d.metric == "loss"]  # fmt: skip
    assert gap.estimate.value is None and gap.p is None and gap.estimate.reason
