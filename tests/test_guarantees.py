"""Conformal sets, controlled thresholds and calibration: what is promised is kept, counted in simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import approx_fprime
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from dermkit.metrics.classification.probabilistic import log_loss
from dermkit.metrics.decisions import conformal, operating_points, recalibration
from dermkit.metrics.stats.arrays import Floats, Ints


def drawn(generator: np.random.Generator, n: int, k: int = 3) -> tuple[Ints, Floats]:
    """Return classes of unequal share and probabilities that are right more often for the common ones."""
    true = generator.choice(k, n, p=[0.7, 0.22, 0.08][:k]).astype(np.int64)
    logits = generator.normal(0, 1, (n, k))
    logits[np.arange(n), true] += np.array([2.0, 1.0, 0.5])[true]
    p = np.exp(logits)
    return true, p / p.sum(axis=1, keepdims=True)


def test_every_class_is_covered_as_promised() -> None:
    generator, inside = np.random.default_rng(0), 0
    hits, n = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    marginal = np.zeros(3)
    for _ in range(200):
        true, p = drawn(generator, 600)
        rule = conformal.fit_conformal(true, p, alpha=0.1)
        new, q = drawn(generator, 500)
        sets = rule.prediction_sets(q)
        found_hits, found_n = (np.bincount(rows, minlength=3) for rows in (new[sets[np.arange(500), new]], new))
        for name in range(3):
            low, high = conformal.expected_coverage_range(int(rule.n_images[name]), int(found_n[name]), alpha=0.1)
            inside += low <= found_hits[name] <= high
        hits += found_hits
        n += found_n
        cut = np.sort(p[np.arange(600), true])[::-1][int(np.ceil(601 * 0.9)) - 1]
        marginal += [float((q[new == name, name] >= cut).mean()) for name in range(3)]
    assert (hits / n > 0.9 - 2 * np.sqrt(0.09 / n)).all(), "coverage per class reaches 90 %"
    assert (hits / n < 0.93).all(), "and no more than whole images cost"
    assert inside / 600 > 0.93, "within the binomial bound about as often as it says"
    assert marginal[2] / 200 < 0.8 < 0.92 < marginal[0] / 200, "one quantile for all sells the rare class short"


def test_a_class_with_too_few_images_is_in_every_set() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    rule = conformal.fit_conformal(np.array([0, 0, 1]), p, alpha=0.1)
    assert rule.min_probability.tolist() == [0.0, 0.0]
    assert rule.prediction_sets(p).all()
    many = np.tile([[0.9, 0.1]], (9, 1))  # the fewest for 90 %
    assert conformal.fit_conformal(np.zeros(9, dtype=np.int64), many, alpha=0.1).min_probability[0] == 0.9
    with pytest.raises(ValueError, match="alpha"):
        conformal.fit_conformal(np.array([0]), p[:1], alpha=1.0)


def test_every_image_twice_makes_the_same_rule() -> None:
    true, p = drawn(np.random.default_rng(5), 300)
    once = conformal.fit_conformal(true, p, alpha=0.1)
    twice = conformal.fit_conformal(
        np.repeat(true, 2), np.repeat(p, 2, axis=0), alpha=0.1, groups=np.arange(600) // 2
    )
    assert twice.min_probability.tolist() == once.min_probability.tolist()
    assert twice.n_images.tolist() == (2 * once.n_images).tolist()
    assert twice.n_independent.tolist() == once.n_independent.tolist() == once.n_images.tolist()


def test_many_photographs_of_few_lesions_are_too_few() -> None:
    p = np.tile([[0.9, 0.1]], (40, 1))
    rule = conformal.fit_conformal(np.zeros(40, dtype=np.int64), p, alpha=0.1, groups=np.arange(40) // 5)
    assert (int(rule.n_images[0]), int(rule.n_independent[0])) == (40, 8)
    assert rule.min_probability[0] == 0.0, "8 lesions promise nothing"


def test_withholding_the_least_sure() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.6, 0.5])
    right = np.array([True, True, False, True, False])
    curve = conformal.risk_coverage(confidence, right)
    assert curve.coverage.tolist() == [0.2, 0.6, 0.8, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 0.25, 0.4])
    assert curve.aurc() == pytest.approx(0.2 * 0 + 0.4 / 3 + 0.2 * 0.25 + 0.2 * 0.4)
    assert conformal.risk_coverage(confidence, np.ones(5, dtype=bool)).aurc() == 0.0


# Operating points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "wish"), [(60, 0.95), (100, 0.95), (200, 0.9), (59, 0.95)])
def test_the_threshold_misses_its_wish_no_more_often_than_stated(n: int, wish: float) -> None:
    generator, missed, plain = np.random.default_rng(1), 0, 0
    for _ in range(2000):
        score = generator.normal(0, 1, n)
        found = operating_points.fit_sensitivity_point(score, np.ones(n, dtype=bool), np.arange(n), target=wish)
        assert found.guaranteed
        missed += stats.norm.sf(found.threshold) < wish
        plain += stats.norm.sf(np.quantile(score, 1 - wish, method="lower")) < wish
    assert missed / 2000 <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 2000)
    assert plain / 2000 > 0.3, "the usual choice misses it about every other time"


def test_the_promise_of_specificity_is_kept_too() -> None:
    generator, missed = np.random.default_rng(2), 0
    for _ in range(1000):
        score = generator.normal(0, 1, 150)
        found = operating_points.fit_specificity_point(
            score, np.zeros(150, dtype=bool), np.arange(150), target=0.9
        )
        missed += stats.norm.cdf(found.threshold) < 0.9
        assert (score < found.threshold).mean() >= 0.9
    assert missed / 1000 <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 1000)


def test_units_stand_once_and_with_their_least_sure_image() -> None:
    generator = np.random.default_rng(3)
    score = generator.random(300)
    units = np.repeat(np.arange(100), 3)
    found = operating_points.fit_sensitivity_point(score, np.ones(300, dtype=bool), units, target=0.9)
    alone = operating_points.fit_sensitivity_point(
        score.reshape(100, 3).min(axis=1), np.ones(100, dtype=bool), np.arange(100), target=0.9
    )
    assert (found.threshold, found.n) == (alone.threshold, 100)


def test_too_few_images_promise_nothing_and_say_so() -> None:
    # 59 are the fewest for a target of 95 % with 95 % confidence: 0.95 ** 59 < 0.05 < 0.95 ** 58.
    score = np.linspace(0.1, 0.9, 58)
    found = operating_points.fit_sensitivity_point(score, np.ones(58, dtype=bool), np.arange(58), target=0.95)
    assert (found.guaranteed, found.threshold) == (False, 0.1)
    assert operating_points.fit_sensitivity_point(
        np.append(score, 0.95), np.ones(59, dtype=bool), np.arange(59), target=0.95
    ).guaranteed
    with pytest.raises(ValueError, match="images of the label"):
        operating_points.fit_sensitivity_point(score, np.zeros(58, dtype=bool), np.arange(58), target=0.95)


def test_a_thousand_people() -> None:
    ppv, npv = operating_points.predictive_values(0.9, 0.8, 0.05)
    people = operating_points.counts_per_thousand(0.9, 0.8, 0.05)
    counts = [people.true_positives, people.false_negatives, people.false_positives, people.true_negatives]
    assert counts == pytest.approx([45, 5, 190, 760])
    assert ppv == pytest.approx(45 / 235)
    assert npv == pytest.approx(760 / 765)
    assert people.number_needed_to_biopsy == pytest.approx(235 / 45)
    assert operating_points.predictive_values(0.0, 1.0, 0.05)[0] is None
    assert operating_points.predictive_values(1.0, 0.0, 0.05)[1] is None
    assert operating_points.counts_per_thousand(0.0, 1.0, 0.05).number_needed_to_biopsy is None


# Calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_put_in_is_found(factor: float) -> None:
    generator = np.random.default_rng(4)
    logits = generator.normal(0, 1.5, (20_000, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (p.cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1)
    sure = np.exp(logits * factor) / np.exp(logits * factor).sum(axis=1, keepdims=True)
    found = recalibration.fit_temperature(true, sure)
    assert found.temperature == pytest.approx(factor, rel=0.03)
    np.testing.assert_allclose(found.apply(sure).sum(axis=1), 1.0)
    assert (found.apply(sure).argmax(axis=1) == sure.argmax(axis=1)).all(), "no prediction changes"
    assert log_loss(true, found.apply(sure)) <= log_loss(true, sure) + 1e-12


def test_the_temperature_of_two_classes_is_a_logistic_regression_without_intercept() -> None:
    generator = np.random.default_rng(5)
    odds = generator.normal(0, 2, 500)
    true = (generator.random(500) < 1 / (1 + np.exp(-0.6 * odds))).astype(np.int64)
    p = 1 / (1 + np.exp(-odds))
    found = recalibration.fit_temperature(true, np.column_stack([1 - p, p]))
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, solver="newton-cholesky").fit(
        odds[:, None], true
    )
    assert 1 / found.temperature == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_shifts_mend_what_a_temperature_cannot() -> None:
    generator = np.random.default_rng(6)
    logits = generator.normal(0, 1, (5000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (p.cumsum(axis=1) < generator.random((5000, 1))).sum(axis=1)
    off = np.exp(logits + np.array([0.0, 1.0, -1.0]))
    off /= off.sum(axis=1, keepdims=True)
    found = recalibration.fit_temperature_and_bias(true, off)
    assert np.array(found.bias) == pytest.approx([0.0, -1.0, 1.0], abs=0.1)
    assert (
        log_loss(true, found.apply(off))
        < log_loss(true, recalibration.fit_temperature(true, off).apply(off)) - 0.05
    )


@given(seed=st.integers(0, 10_000), heat=st.floats(-2.5, 2.5))
def test_the_slopes_of_the_loss_are_those_that_small_steps_show(seed: int, heat: float) -> None:
    generator = np.random.default_rng(seed)
    logits, true = np.log(generator.dirichlet(np.ones(4), 30)), generator.integers(0, 4, 30)
    at = np.append(heat, generator.normal(0, 1, 4))

    def value(x: Floats) -> float:
        return recalibration.log_loss_and_gradient(logits, true, float(x[0]), x[1:] - x[1:].mean())[0]

    slopes = recalibration.log_loss_and_gradient(logits, true, heat, at[1:] - at[1:].mean())[1]
    np.testing.assert_allclose(slopes, approx_fprime(at, value, 1e-6), rtol=2e-4, atol=2e-5)
    direct = softmax(logits / np.exp(heat) + at[1:] - at[1:].mean(), axis=1)
    assert value(at) == pytest.approx(-np.log(direct[np.arange(30), true]).mean(), rel=1e-12)


def test_certain_and_absent_classes_leave_numbers() -> None:
    p = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    for true in (np.array([0, 1, 0]), np.array([0, 1, 1])):
        for fit in (recalibration.fit_temperature, recalibration.fit_temperature_and_bias):
            out = fit(true, p).apply(p)
            assert np.isfinite(out).all()
            np.testing.assert_allclose(out.sum(axis=1), 1.0)
    np.testing.assert_allclose(recalibration.identity(3).apply(p), p, atol=1e-12)
