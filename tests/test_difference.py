"""Two models on the same images, end to end on arrays."""

from dataclasses import replace

import numpy as np
import pytest

from dermkit.comparison.verdict import verdict
from dermkit.metrics.classification.difference import COMPARED_METRICS, Difference
from dermkit.metrics.classification.paired import (
    bootstrap_p,
    correct_with_holm,
    difference_terms,
    paired_differences,
    sign_flip_p,
)
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import sum_by_group
from dermkit.metrics.stats.estimate import Estimate
from dermkit.metrics.stats.paired_tests import mcnemar, sign_flip_test


def pair(seed: int, n: int, *, skill: tuple[float, float], grouped: bool = False) -> tuple[ScoredSet, ScoredSet]:
    """Return two models of three classes, the second one malignant, that share half of their errors."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 3, n)
    shared = generator.normal(0, 1, (n, 3))
    groups = np.unique(generator.integers(0, n // 2, n), return_inverse=True)[1] if grouped else np.arange(n)
    made = []
    for strength in skill:
        logits = shared + generator.normal(0, 1, (n, 3)) + strength * np.eye(3)[true]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        made.append(
            ScoredSet(
                ["a", "b", "c"], np.array([False, True, False]), true, p.argmax(axis=1), p, groups.astype(np.int64)
            )
        )
    return made[0], made[1]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_better_model_is_found_and_named(grouped: bool) -> None:
    first, second = pair(0, 400, skill=(2.5, 1.0), grouped=grouped)
    (found,) = correct_with_holm([paired_differences(first, second, seed=0, resamples=400)])
    assert [item.metric for item in found] == list(COMPARED_METRICS)
    by_name = {item.metric: item for item in found}
    for name in ("accuracy", "balanced_accuracy", "auroc", "loss"):
        assert by_name[name].is_significant
        assert "new is better on 400 images" in verdict(by_name[name], "new", "old")
        p, corrected_p = by_name[name].p, by_name[name].p_holm
        assert p is not None and corrected_p is not None and corrected_p >= p
    loss = by_name["loss"].estimate
    assert loss.value is not None and loss.value < 0, "first less second: a lower loss is better"
    assert by_name["accuracy"].test == ("sign flips" if grouped else "McNemar, mid-p")
    assert by_name["sensitivity"].estimate.n == int((first.y_true == 1).sum())


def test_the_other_way_round_is_the_same_with_another_sign() -> None:
    first, second = pair(1, 200, skill=(2.0, 1.5))
    one, other = (
        paired_differences(first, second, seed=3, resamples=300),
        paired_differences(second, first, seed=3, resamples=300),
    )
    for a, b in zip(one, other, strict=True):
        assert a.estimate.value == pytest.approx(-(b.estimate.value or 0))
        assert a.p == pytest.approx(b.p)
        assert a.images_needed == b.images_needed


def test_a_model_does_not_differ_from_itself() -> None:
    first, _ = pair(2, 118, skill=(1.0, 1.0))
    (found,) = correct_with_holm([paired_differences(first, first, seed=0, resamples=200)])
    for item in found:
        assert item.estimate.value == 0.0
        assert item.p == 1.0 and not item.is_significant
        assert "not distinguishable on" in verdict(item, "a", "b")
        assert "would be needed" not in verdict(item, "a", "b"), "no number of images shows a difference of 0"


def test_how_many_would_be_needed_is_said_in_round_numbers() -> None:
    first, second = pair(3, 118, skill=(1.2, 1.1))
    found = {item.metric: item for item in paired_differences(first, second, seed=0, resamples=300)}
    text = verdict(found["accuracy"], "first", "second")
    assert "not distinguishable on 118 images" in text and "would be needed" in text
    number = int(text.split("about ")[1].split(" images would")[0].replace(",", ""))
    needed = found["accuracy"].images_needed
    assert needed is not None and abs(number - needed) <= 0.05 * needed and needed > 118


def test_other_images_are_refused() -> None:
    first, second = pair(4, 50, skill=(1.0, 1.0))
    other = ScoredSet(
        first.classes,
        first.malignant_classes,
        second.y_true[::-1],
        second.y_pred,
        second.probabilities,
        first.groups,
    )
    with pytest.raises(ValueError, match="the same images"):
        paired_differences(first, other, seed=0)


def test_shares_of_a_mean_are_its_terms() -> None:
    """Of a mean, what it loses without a unit is that unit's own term: the test is the exact one."""
    generator = np.random.default_rng(5)
    terms = generator.choice([-1.0, 0.0, 1.0], p=[0.15, 0.6, 0.25], size=40)
    without = (terms.sum() - terms) / (len(terms) - 1)
    found = sign_flip_p({"x": np.array([terms.mean()])}, {"x": without}, seed=7)
    assert found["x"] == pytest.approx(sign_flip_test(terms[:, None], seed=7)[0], abs=0.02)
    lost = np.where(np.arange(40) == 3, np.nan, without)
    assert sign_flip_p({"x": np.array([terms.mean()])}, {"x": lost}, seed=7) == {}


@pytest.mark.parametrize("grouped", [False, True])
def test_what_images_add_to_a_difference_sums_to_it(grouped: bool) -> None:
    first, second = pair(6, 90, skill=(1.5, 0.5), grouped=grouped)
    found = {item.metric: item for item in paired_differences(first, second, seed=0, resamples=50)}
    parts = difference_terms(first, second)
    assert set(parts) == {"accuracy", "balanced_accuracy", "sensitivity", "specificity", "loss", "brier"}
    for name, values in parts.items():
        assert values.sum() == pytest.approx(found[name].estimate.value, abs=1e-12)
        if grouped:
            sums = sum_by_group(values, first.groups, first.n_groups)
            assert found[name].p == pytest.approx(sign_flip_test(sums[:, None], seed=0)[0], abs=0.02)


def test_groups_that_answer_alike_are_no_proof() -> None:
    """Twelve lesions of ten photographs each: one model is right on nine lesions, the other one on five others."""
    lesion = np.repeat(np.arange(12), 10)
    right = [np.isin(lesion, (0, 1, 2, 3, 4, 5, 6)), np.isin(lesion, (5, 6, 7))]
    true = (lesion % 2).astype(np.int64)
    made = []
    for hit in right:
        predicted = np.where(hit, true, 1 - true)
        p = np.where(np.arange(2) == predicted[:, None], 0.8, 0.2)
        made.append(ScoredSet(["a", "b"], np.array([False, True]), true, predicted, p, lesion))
    (accuracy, *_) = paired_differences(*made, seed=0, resamples=200)
    # Six lesions speak, five for the one: of all 2 ** 6 exchanges 2 are farther apart, 12 as far, which count half.
    assert accuracy.p == pytest.approx((2 + 12 / 2) / 64, abs=0.02)
    assert mcnemar(right[0], right[1]).p < 0.001, "as images alone they would be proof"


def test_the_share_on_the_wrong_side() -> None:
    assert bootstrap_p(np.array([1.0] * 97 + [-1.0] * 2)) == pytest.approx(2 * 3 / 100)
    assert bootstrap_p(np.zeros(99)) == 1.0
    assert bootstrap_p(np.empty(0)) == 1.0


def test_two_images_in_order_are_no_proof() -> None:
    """A perfect model against constant scores: DeLong's variance is 0, which is no certainty."""
    true = np.array([0, 1])
    made = [
        ScoredSet(["a", "b"], np.array([False, True]), true, true, np.column_stack([1 - p, p]), np.arange(2))
        for p in (np.array([0.1, 0.9]), np.array([0.4, 0.6]) * 0 + 0.5)
    ]
    found = {item.metric: item for item in paired_differences(*made, seed=0, resamples=50)}
    auroc = found["auroc"]
    assert auroc.estimate.value == 0.5 and auroc.p is None and auroc.estimate.ci95 is None
    assert not auroc.is_significant


def test_differences_of_few_units_say_so() -> None:
    first, second = pair(7, 40, skill=(1.5, 0.5))
    found = {item.metric: item for item in paired_differences(first, second, seed=0, resamples=200)}
    positives = int(first.is_malignant.sum())
    assert positives < 30
    assert found["sensitivity"].estimate.reason == f"interval unreliable: {positives} units, 30 needed"
    assert "interval unreliable" in found["auroc"].estimate.reason
    assert found["accuracy"].estimate.reason == "", "forty images in all"


def test_what_one_unit_decides_has_no_test() -> None:
    """One malignant image: without it there is no average precision, so nothing can be exchanged."""
    first, second = pair(8, 40, skill=(1.5, 0.5))
    true = np.where(np.arange(40) == 0, 1, np.where(first.y_true == 1, 0, first.y_true))
    made = [
        ScoredSet(m.classes, m.malignant_classes, true, m.y_pred, m.probabilities, m.groups)
        for m in (first, second)
    ]
    found = {item.metric: item for item in paired_differences(*made, seed=0, resamples=200)}
    assert found["average_precision"].estimate.value is not None and found["average_precision"].p is None


def said(item: Difference) -> str:
    return verdict(item, "a", "b")


def test_a_number_of_images_that_are_there_already_is_not_asked_for() -> None:
    """Needed counts this question alone; the verdict counts all of them."""
    estimate = Estimate(0.05, (0.01, 0.09), 500, "paired bootstrap")
    item = Difference("accuracy", estimate, "sign flips", p=0.004, p_holm=0.12, images_needed=460)
    assert not item.is_significant and item.further_images_needed is None and item.is_lost_to_correction
    assert "would be needed" not in said(item) and "p is corrected for all comparisons" in said(item)
    assert "about 510 images would be needed" in said(replace(item, images_needed=510))
    assert replace(item, p_holm=0.01).further_images_needed == 460, "of what is found, fewer would have done"


def test_a_verdict_marks_its_interval_and_never_prints_nan() -> None:
    estimate = Estimate(0.05, (-0.01, 0.11), 20, "paired bootstrap", "interval unreliable: 20 units, 30 needed")
    item = Difference("accuracy", estimate, "sign flips", p=0.2)
    assert "+0.050 [-0.010, +0.110] (unreliable), sign flips" in said(item)
    flat = replace(estimate, reason="interval unreliable: every resample gave the same value")
    assert "(+0.050, no interval, sign flips" in said(replace(item, estimate=flat))
    bare = replace(estimate, ci95=None, reason="the images are one unit")
    assert "(+0.050, no interval, sign flips" in said(replace(item, estimate=bare))
    assert said(replace(item, estimate=bare, p=None, test="none")) == (
        "accuracy: not tested on 20 images: a is ahead, +0.050, no test (the images are one unit)."
    )
