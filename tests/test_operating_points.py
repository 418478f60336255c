"""Operating points: what they cost, with intervals that hold."""

from typing import Any

import numpy as np
import pytest

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.operating_point_metrics import OperatingPointResult, evaluate_threshold
from dermkit.metrics.decisions.operating_points import predictive_values
from dermkit.metrics.stats.estimate import UNRELIABLE_PREFIX
from dermkit.metrics.stats.intervals import ONE_GROUP_REASON, proportion_interval


def split(generator: np.random.Generator, n: int, shift: float) -> ScoredSet:
    true = (np.arange(n) % 3 == 0).astype(np.int64)
    odds = generator.normal(0, 1, n) + shift * (2 * true - 1)
    p = 1 / (1 + np.exp(-odds))
    return ScoredSet(["benign", "malignant"], np.array([False, True]), true, (p > 0.5).astype(np.int64),
                  np.column_stack([1 - p, p]), np.arange(n))  # fmt: skip


def test_the_rates_are_those_of_the_threshold_and_the_people_follow_from_them() -> None:
    scored = split(np.random.default_rng(0), 300, 1.0)
    found = evaluate_threshold(scored, 0.4)
    called = scored.p_malignant >= 0.4
    hits, n = int(called[scored.is_malignant].sum()), int(scored.is_malignant.sum())
    assert found.sensitivity.value == hits / n
    assert found.sensitivity.ci95 == proportion_interval(hits, n)[0]
    five = found.per_prevalence[1]
    assert five.prevalence == 0.05
    ppv, npv = predictive_values(hits / n, found.specificity.value or 0, 0.05)
    assert five.ppv.value == pytest.approx(ppv)
    assert five.npv.value == pytest.approx(npv)
    assert (five.true_positives.value or 0) + (five.false_negatives.value or 0) == pytest.approx(50)
    assert five.number_needed_to_biopsy.value == pytest.approx(1 / (ppv or 1))
    assert five.number_needed_to_biopsy.ci95 is not None and five.ppv.ci95 is not None
    assert five.number_needed_to_biopsy.ci95[0] == pytest.approx(1 / five.ppv.ci95[1])


@pytest.mark.parametrize(("n", "shift", "prevalence"), [(120, 1.0, 0.05), (300, 1.3, 0.01), (90, 0.8, 0.2)])
def test_predictive_values_hold_the_truth(n: int, shift: float, prevalence: float) -> None:
    generator, held = np.random.default_rng(1), np.zeros(2)
    rate = float((generator.normal(0, 1, 2_000_000) + shift > 0).mean())
    truth = predictive_values(rate, rate, prevalence)
    for _ in range(1500):
        (found,) = evaluate_threshold(split(generator, n, shift), 0.5, prevalences=(prevalence,)).per_prevalence
        for place, item in enumerate((found.ppv, found.npv)):
            low, high = item.ci95 or (1.0, 0.0)
            held[place] += low <= (truth[place] or 0) <= high
    assert (held / 1500 > 0.93).all() and (held / 1500 < 0.98).all()


@pytest.mark.parametrize(("threshold", "missing"), [(0.0, "npv"), (1.1, "ppv")])
def test_all_or_none_called_leaves_one_value_undefined(threshold: float, missing: str) -> None:
    scored = split(np.random.default_rng(2), 60, 1.0)
    for item in evaluate_threshold(scored, threshold).per_prevalence:
        assert getattr(item, missing).value is None and getattr(item, missing).reason
        other = item.ppv if missing == "npv" else item.npv
        assert other.value == pytest.approx(item.prevalence if missing == "npv" else 1 - item.prevalence)


DERIVED = ("true_positives", "false_negatives", "false_positives", "ppv", "npv", "number_needed_to_biopsy")


def of_groups(groups: np.ndarray[Any, np.dtype[np.int64]], threshold: float = 0.5) -> OperatingPointResult:
    """Judge 200 images, every second one malignant, of these groups."""
    true = np.arange(200) % 2
    p = np.clip(np.random.default_rng(4).normal(0.35 + 0.3 * true, 0.2), 0, 1)
    scored = ScoredSet(["benign", "malignant"], np.array([False, True]), true, (p > 0.5).astype(np.int64),
                    np.column_stack([1 - p, p]), np.unique(groups, return_inverse=True)[1])  # fmt: skip
    return evaluate_threshold(scored, threshold)


@pytest.mark.parametrize("side", [0, 1])
def test_a_rate_without_interval_lends_none_and_says_why(side: int) -> None:
    one_group = np.where(np.arange(200) % 2 == side, 0, np.arange(200)).astype(np.int64)
    found = of_groups(one_group)
    of = {0: ("false_positives", "ppv", "npv", "number_needed_to_biopsy"), 1: set(DERIVED) - {"false_positives"}}[
        side
    ]
    for name in DERIVED:
        item = getattr(found.per_prevalence[1], name)
        assert item.value is not None
        if name in of:
            assert (item.ci95, item.reason) == (None, ONE_GROUP_REASON), name
        else:
            assert item.ci95 is not None and item.reason == "", name


def test_what_follows_from_a_doubtful_rate_is_doubtful() -> None:
    twelve = np.where(np.arange(200) % 2 == 1, np.arange(200) % 12, 1000 + np.arange(200)).astype(np.int64)
    found = of_groups(twelve)
    assert found.sensitivity.reason.startswith(UNRELIABLE_PREFIX) and not found.specificity.reason
    for name in DERIVED:
        item = getattr(found.per_prevalence[0], name)
        assert item.ci95 is not None
        assert item.reason == ("" if name == "false_positives" else found.sensitivity.reason), name


def test_both_doubts_are_handed_on_once_each() -> None:
    few = np.arange(200) // 12
    found = of_groups(few, 0.0)  # everything is called: nothing is missed, all others are false alarms
    assert found.per_prevalence[0].ppv.reason == found.sensitivity.reason == found.specificity.reason
    assert (
        found.per_prevalence[0].npv.value is None
        and found.per_prevalence[0].npv.reason == "nobody is called negative"
    )
