"""What is settled on validation, and how it does on test."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions import recalibration
from dermkit.metrics.decisions.policy import (
    CALIBRATION_METRICS,
    apply_calibration,
    evaluate_policy,
    fit_policy,
    policy_from_dict,
)


def split(seed: int, n: int, sharpness: float) -> ScoredSet:
    """Return three classes, the last two malignant; probabilities are the true ones made too sure by `sharpness`."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.2, (n, 3)) + np.array([1.0, 0.0, -0.5])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (p.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    sure = np.exp(sharpness * logits)
    sure /= sure.sum(axis=1, keepdims=True)
    return ScoredSet(["a", "b", "c"], np.array([False, True, True]), true, sure.argmax(axis=1), sure, np.arange(n))


def test_too_sure_probabilities_are_mended_and_the_mending_is_shown_on_test() -> None:
    decision = fit_policy(split(0, 1200, 3.0))
    assert decision.calibration.kind in ("temperature", "bias")
    assert decision.calibration.temperature == pytest.approx(3.0, rel=0.15)
    test = split(1, 1500, 3.0)
    body = evaluate_policy(decision, test, evaluate_split=evaluate_split, seed=0)
    json.dumps(body, allow_nan=False)
    before, after = evaluate_split(test, seed=0)["metrics"], body["calibrated"]["metrics"]
    assert set(after) == set(CALIBRATION_METRICS)
    assert after["loss"]["value"] < before["loss"]["value"] - 0.2
    assert after["ece"]["value"] < before["ece"]["value"] / 2
    low, high = after["calibration_slope"]["ci95"]
    assert low < 1 < high


def test_calibrations_are_fitted_on_one_thread_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two, which wait for each other, a fit takes ten times as long; the threads of before are there afterwards."""
    seen: list[set[int]] = []
    blas = ThreadpoolController().select(user_api="blas")
    if not blas.info():
        pytest.skip("the threads of this BLAS cannot be set")

    def threads() -> set[int]:
        return {library["num_threads"] for library in blas.info()}

    def minimise(*args: Any, **options: Any) -> Any:
        seen.append(threads())
        return minimize(*args, **options)

    monkeypatch.setattr("scipy.optimize.minimize", minimise)
    y_true = np.array([0, 1, 0, 1, 1, 0])
    p = np.random.default_rng(0).dirichlet((1, 1), 6)
    with blas.limit(limits=2):
        before = threads()
        first = recalibration.fit_temperature_and_bias(y_true, p)
        assert threads() == before
    assert seen == [{1}] * 4, "temperature, then biases too; each is searched again from where the search ended"
    with blas.limit(limits=1):
        assert recalibration.fit_temperature_and_bias(y_true, p) == first


def test_a_decision_is_plain_numbers_that_read_back() -> None:
    decision = fit_policy(split(9, 400, 2.0))
    text = json.dumps(decision.as_dict(), allow_nan=False)
    again = policy_from_dict(json.loads(text))
    assert json.dumps(again.as_dict()) == text
    test = split(10, 200, 2.0)
    assert evaluate_policy(again, test, evaluate_split=evaluate_split, seed=0) == evaluate_policy(
        decision, test, evaluate_split=evaluate_split, seed=0
    )


def test_good_probabilities_are_left_alone_or_nearly() -> None:
    decision = fit_policy(split(2, 2000, 1.0))
    p = split(3, 50, 1.0)
    np.testing.assert_allclose(
        apply_calibration(p, decision.calibration).probabilities, p.probabilities, atol=0.05
    )


def test_few_images_settle_nothing_but_what_they_can() -> None:
    few = split(4, 8, 3.0)
    decision = fit_policy(few)
    assert decision.calibration.kind == "none"
    assert all(not point.guaranteed for point in decision.operating_points)
    assert decision.conformal_rule.min_probability.max() == 0.0, "every class is in every set"
    json.dumps(decision.as_dict(), allow_nan=False)


def test_a_wish_is_kept_on_new_images_as_often_as_was_said() -> None:
    kept = 0
    for seed in range(120):
        decision = fit_policy(split(100 + seed, 300, 2.0), targets=(("sensitivity", 0.9),))
        new = apply_calibration(split(5, 4000, 2.0), decision.calibration)
        (point,) = decision.operating_points
        assert point.guaranteed
        kept += (new.p_malignant[new.is_malignant] >= point.threshold).mean() >= 0.9
    assert kept / 120 >= 0.9


def test_points_and_sets_are_told_with_intervals() -> None:
    body = evaluate_policy(
        fit_policy(split(6, 900, 2.0)), split(7, 900, 2.0), evaluate_split=evaluate_split, seed=0
    )
    point = body["operating_points"][0]
    assert point["name"] == "sensitivity 0.95" and point["guaranteed"]
    assert point["sensitivity"]["ci95"][0] <= point["sensitivity"]["value"] <= point["sensitivity"]["ci95"][1]
    assert [item["prevalence"] for item in point["per_prevalence"]] == [0.01, 0.05, 0.2]
    for item in body["conformal"]["per_class"].values():
        assert item["expected"][0] - 0.03 <= item["value"] <= item["expected"][1] + 0.03
    assert sum(body["conformal"]["set_sizes"]) == 900
    shares = body["referral"]["error_by_coverage"]
    assert shares["0.5"]["value"] < shares["1"]["value"]
    assert shares["0.5"]["n"] == pytest.approx(450, abs=5)


def test_one_sided_class_tables_have_no_points() -> None:
    one = split(8, 200, 1.0)
    flat = ScoredSet(one.classes, np.zeros(3, dtype=bool), one.y_true, one.y_pred, one.probabilities, one.groups)
    decision = fit_policy(flat)
    assert decision.operating_points == ()
    assert evaluate_policy(decision, flat, evaluate_split=evaluate_split, seed=0)["operating_points"] == []


def test_every_image_twice_is_expected_to_do_no_better() -> None:
    validation, test = split(6, 400, 2.0), split(7, 300, 2.0)
    twice = [
        ScoredSet(
            item.classes, item.malignant_classes, np.repeat(item.y_true, 2), np.repeat(item.y_pred, 2),
            np.repeat(item.probabilities, 2, axis=0), np.repeat(item.groups, 2),
        )
        for item in (validation, test)
    ]  # fmt: skip
    one, two = (
        evaluate_policy(fit_policy(own), new, evaluate_split=evaluate_split, seed=0)["conformal"]["per_class"]
        for own, new in ((validation, test), twice)
    )
    for name, item in one.items():
        assert two[name]["expected"] == item["expected"]
        assert (two[name]["n_calibration_groups"], two[name]["n_groups"]) == (
            item["n_calibration_images"],
            item["n"],
        )
        assert (two[name]["n_calibration_images"], two[name]["n"]) == (
            2 * item["n_calibration_images"],
            2 * item["n"],
        )


def test_a_rule_from_before_units_were_kept_counts_images() -> None:
    body = fit_policy(split(9, 400, 2.0)).as_dict()
    del body["conformal"]["n_groups"]
    older = policy_from_dict(body)
    assert older.conformal_rule.n_independent.tolist() == body["conformal"]["n_images"]
    assert older.as_dict() == body, "what was not kept is not made up"
    with pytest.raises(ValueError, match="2 classes have groups, 3 have images"):
        policy_from_dict({**body, "conformal": {**body["conformal"], "n_groups": [1, 2]}})
