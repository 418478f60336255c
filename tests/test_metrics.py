"""Every figure against an independent implementation, on random cases with ties, missing classes and extremes."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from sklearn import metrics as reference

from dermkit.errors import DataError
from dermkit.evaluation import tables
from dermkit.evaluation.overfitting import diagnose_overfitting
from dermkit.metrics.classification import confusion, probabilistic, resampled_metrics, roc
from dermkit.metrics.classification.resampled_metrics import MetricValues, ResampledMetrics
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.estimate import Estimate, undefined_estimate

TIGHT = 1e-9
CASES = 500


def make_scored(seed: int, *, grouped: bool = False) -> ScoredSet:
    """A random split: 2 to 7 classes, 1 to 60 images; some with ties, absent classes, perfect or inverted scores."""
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 8)), int(rng.integers(1, 61))
    present = rng.permutation(k)[: int(rng.integers(1, k + 1))]
    true = rng.choice(present, size=n).astype(np.int64)
    logits = rng.normal(size=(n, k)) + float(rng.choice([-30, 0, 1, 3, 30])) * np.eye(k)[true]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    if rng.random() < 0.4:
        p = np.round(p, 1) + 0.1  # many equal scores
    p /= p.sum(axis=1, keepdims=True)
    groups = np.unique(rng.integers(0, n, size=n), return_inverse=True)[1] if grouped else np.arange(n)
    return ScoredSet([f"c{i}" for i in range(k)], np.arange(k) < k // 2, true, p.argmax(axis=1), p, groups)


def summary(scored: ScoredSet, resamples: int = 20) -> dict[str, Any]:
    return evaluate_split(scored, seed=0, resamples=resamples)


def check(estimate: dict[str, Any], expected: float | None, what: str) -> None:
    if expected is None:
        assert estimate["value"] is None and estimate["ci95"] is None and estimate["reason"], what
    else:
        assert estimate["value"] == pytest.approx(expected, abs=TIGHT, rel=TIGHT), what


def expected_of_view(called: Any, truth: Any, score: Any) -> dict[str, float | None]:
    """One class against the rest by scikit-learn; None by the documented rules of undefined."""
    some, all_of_it = bool(truth.any()), bool(truth.all())
    ratios = reference.precision_recall_fscore_support(truth, called, average="binary", zero_division=0.0)
    flipped = reference.recall_score(~truth, ~called, zero_division=0.0)
    ranked = some and not all_of_it
    return {
        "precision": ratios[0] if some and called.any() else None,
        "recall": ratios[1] if some else None,
        "f1": ratios[2] if some else None,
        "specificity": None if all_of_it else flipped,
        "auroc": reference.roc_auc_score(truth, score) if ranked else None,
        "average_precision": reference.average_precision_score(truth, score) if ranked else None,
    }


@pytest.mark.parametrize("block", range(5))
def test_every_figure_agrees_with_scikit_learn_on_500_random_splits(block: int) -> None:
    for seed in range(block * CASES // 5, (block + 1) * CASES // 5):
        scored = make_scored(seed)
        body, k = summary(scored, resamples=2), len(scored.classes)
        everything: dict[str, list[float | None]] = {}
        for i, name in enumerate(scored.classes):
            expected = expected_of_view(scored.y_pred == i, scored.y_true == i, scored.probabilities[:, i])
            for view, value in expected.items():
                check(body["per_class"][name][view], value, f"seed {seed} {name} {view}")
                everything.setdefault(view, []).append(value)
        for view, values in everything.items():
            defined = [value for value in values if value is not None]
            whole = None if len(defined) < k else float(np.mean(defined))
            check(body["metrics"][f"{view}_macro"], whole, f"seed {seed} {view}_macro")
            check(body["metrics"][f"{view}_macro_present"], float(np.mean(defined)) if defined else None, view)
        check(body["metrics"]["balanced_accuracy"], body["metrics"]["recall_macro"]["value"], f"seed {seed}")
        if len(np.unique(scored.y_true)) == k:
            balanced = reference.balanced_accuracy_score(scored.y_true, scored.y_pred)
            check(body["metrics"]["balanced_accuracy"], balanced, f"seed {seed}")
        check_whole_split(scored, body, seed)


def check_whole_split(scored: ScoredSet, body: dict[str, Any], seed: int) -> None:
    true, p, found = scored.y_true, scored.probabilities, body["metrics"]
    k = len(scored.classes)
    p_true = p[np.arange(len(true)), true]
    # scikit-learn clips at 2e-16, which would be our own number where the truth has less.
    clipped = p_true.min() < np.finfo(float).eps
    loss = (
        -math.fsum(map(math.log, p_true)) / len(true) if clipped else reference.log_loss(true, p, labels=range(k))
    )
    check(found["loss"], loss, f"seed {seed} loss")
    check(found["accuracy"], reference.accuracy_score(true, scored.y_pred), f"seed {seed}")
    check(found["brier"], float(np.mean(((p - np.eye(k)[true]) ** 2).sum(axis=1))), f"seed {seed}")
    check(found["ece"], slow_ece(p.max(axis=1), true == scored.y_pred), f"seed {seed}")
    matrix = reference.confusion_matrix(true, scored.y_pred, labels=range(k))
    assert body["confusion_matrix"] == matrix.tolist()
    malignant = scored.malignant_classes
    score, called = sums_on_paper(p[:, malignant]), malignant[scored.y_pred]
    expected = expected_of_view(called, malignant[true], score)
    for view, value in expected.items():
        check(found[view], value, f"seed {seed} malignant {view}")
    assert found["sensitivity"] == found["recall"] and found["ppv"] == found["precision"]


def sums_on_paper(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return row sums as their first ten digits say: floats hold .1 + .2 for more than .3, which scikit-learn ranks."""
    return p[:, 0] if p.shape[1] == 1 else np.array([float(f"{math.fsum(row):.9e}") for row in p.tolist()])


def slow_ece(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_auroc_is_the_mann_whitney_statistic() -> None:
    rng = np.random.default_rng(1)
    scores, positive = np.round(rng.random(80), 1), rng.random(80) < 0.3
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert roc.auroc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=TIGHT)


def test_perfect_inverted_and_constant_scores() -> None:
    positive = np.array([True, True, False, False, False])
    for scores, auroc in ((positive * 1.0, 1.0), (positive * -1.0, 0.0), (np.full(5, 0.3), 0.5)):
        assert roc.auroc(scores, positive) == auroc
    constant = roc.ranking_metrics(roc.sort_scores(np.full(5, 0.3), positive), np.ones((1, 5)))
    assert constant.average_precision.tolist() == [0.4]


def test_roc_curve_keeps_the_corners_and_the_area() -> None:
    rng = np.random.default_rng(2)
    for digits in (1, 2, 9):
        scores, positive = np.round(rng.random(200), digits), rng.random(200) < 0.4
        curve = roc.roc_curve(scores, positive)
        assert reference.auc(curve.fpr, curve.tpr) == pytest.approx(roc.auroc(scores, positive), abs=TIGHT)
        assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
        for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
            assert tpr == (scores[positive] >= threshold).mean()
            assert fpr == (scores[~positive] >= threshold).mean()
        assert len(curve.fpr) <= len(reference.roc_curve(positive, scores, drop_intermediate=False)[0])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_weighted_ranking_equals_ranking_of_copied_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    scores, positive = np.round(rng.random(n), int(rng.integers(1, 4))), rng.random(n) < 0.5
    weights = rng.integers(0, 4, size=(5, n)).astype(np.float64)
    found = roc.ranking_metrics(roc.sort_scores(scores, positive), weights)
    for row, auroc, precision in zip(weights, found.auroc, found.average_precision, strict=True):
        rows = np.repeat(np.arange(n), row.astype(int))
        if positive[rows].all() or not positive[rows].any():
            assert np.isnan(auroc) and np.isnan(precision)
        else:
            assert auroc == pytest.approx(reference.roc_auc_score(positive[rows], scores[rows]), abs=TIGHT)
            expected = reference.average_precision_score(positive[rows], scores[rows])
            assert precision == pytest.approx(expected, abs=TIGHT)


def test_resampled_figures_equal_those_of_copied_rows() -> None:
    """The fast way (sums per group) and the slow way (rows copied per resample) give the same figures."""
    scored = next(s for s in (make_scored(i, grouped=True) for i in itertools.count()) if len(s.y_true) > 40)
    rows_of = [np.flatnonzero(scored.groups == g) for g in range(scored.n_groups)]
    plan = ResampledMetrics(scored)
    for weights in intervals.resample_weights(np.arange(scored.n_groups), seed=0, resamples=200):
        fast = plan.bootstrap(weights)
        for number, times in enumerate(weights.astype(int)):
            rows = np.concatenate([np.tile(rows_of[g], count) for g, count in enumerate(times)])
            same_plan(fast, number, scored, rows)


def test_a_true_class_is_among_the_first_as_sorting_says_also_where_probabilities_tie() -> None:
    """A rule that always names one class has no second choice: its ties must not count as hits."""
    for seed in range(200):
        scored = make_scored(seed)
        if len(scored.classes) < 4:
            continue
        order = np.argsort(-scored.probabilities, axis=1, kind="stable")
        metrics = summary(scored, resamples=0)["metrics"]
        for most in (2, 3):
            hits = (order[:, :most] == scored.y_true[:, None]).any(axis=1)
            check(metrics[f"top_{most}_accuracy"], float(hits.mean()), f"seed {seed}, top {most}")
    sure = ScoredSet(["a", "b", "c", "d"], np.array([False, True, False, False]), np.array([3, 2, 1, 0]),
                  np.zeros(4, dtype=np.int64), np.tile([1.0, 0.0, 0.0, 0.0], (4, 1)), np.arange(4))  # fmt: skip
    assert summary(sure, resamples=0)["metrics"]["top_2_accuracy"]["value"] == 0.5


def test_figures_without_each_group_are_those_of_the_other_groups() -> None:
    scored = next(s for s in (make_scored(i, grouped=True) for i in itertools.count()) if len(s.y_true) > 40)
    fast = ResampledMetrics(scored).leave_one_group_out(np.arange(scored.n_groups))
    for group in range(scored.n_groups):
        same_plan(fast, group, scored, np.flatnonzero(scored.groups != group))


def same_plan(fast: MetricValues, number: int, scored: ScoredSet, rows: NDArray[np.intp]) -> None:
    """Compare a row of resampled figures with those of the rows themselves."""
    fresh = np.unique(scored.groups[rows], return_inverse=True)[1]
    alone = ResampledMetrics(
        ScoredSet(
            scored.classes,
            scored.malignant_classes,
            scored.y_true[rows],
            scored.y_pred[rows],
            scored.probabilities[rows],
            fresh,
        )
    ).point_estimates
    right = scored.y_true[rows] == scored.y_pred[rows]
    assert fast.multiclass["accuracy"][number] == pytest.approx(right.mean(), abs=TIGHT)
    assert fast.multiclass["ece"][number] == pytest.approx(slow_ece(scored.confidence[rows], right), abs=TIGHT)
    loss = probabilistic.log_loss(scored.y_true[rows], scored.probabilities[rows])
    assert fast.multiclass["loss"][number] == pytest.approx(loss, abs=TIGHT, rel=TIGHT)
    for ours, theirs in (
        (fast.multiclass, alone.multiclass),
        (fast.one_vs_rest, alone.one_vs_rest),
        (fast.binary, alone.binary),
    ):
        for name in theirs:
            assert ours[name][number] == pytest.approx(theirs[name][0], abs=TIGHT, rel=TIGHT, nan_ok=True), name


def test_scores_in_groups_move_no_figure_and_hardly_a_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond many images the order of scores is kept in steps alone: the figure itself stays exact."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 6000)
    p = 1 / (1 + np.exp(-rng.normal(2.0 * true - 1.0, 1.5)))
    scored = ScoredSet(["a", "b"], np.array([False, True]), true, (p > 0.5).astype(int), np.column_stack([1 - p, p]),
                    np.arange(6000))  # fmt: skip
    fine = ResampledMetrics(scored)
    weights = next(intervals.resample_weights(scored.groups, seed=0, resamples=20))
    exact = fine.bootstrap(weights)
    monkeypatch.setattr(resampled_metrics, "MAX_EXACT_IMAGES", 100)
    coarse = ResampledMetrics(scored)
    rough = coarse.bootstrap(weights)
    for name in fine.point_estimates.binary:
        assert coarse.point_estimates.binary[name] == fine.point_estimates.binary[name]
        np.testing.assert_allclose(rough.binary[name], exact.binary[name], atol=2e-3, err_msg=name)
    np.testing.assert_allclose(rough.one_vs_rest["auroc"], exact.one_vs_rest["auroc"], atol=1e-4)
    np.testing.assert_allclose(
        rough.one_vs_rest["average_precision"], exact.one_vs_rest["average_precision"], atol=1e-3
    )


def test_resamples_draw_as_many_groups_as_there_are_and_repeat_with_the_seed() -> None:
    groups = np.array([0, 0, 1, 2, 2, 2])
    first, again, other = (
        np.concatenate(list(intervals.resample_weights(groups, seed=seed, resamples=500))) for seed in (4, 4, 5)
    )
    assert first.shape == (500, 6)
    assert (first[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (first == again).all() and not (first == other).all()
    assert first.mean() == pytest.approx(1.0, abs=0.1)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = make_scored(11)
    whole = summary(scored, resamples=64)
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", 32 * len(scored.y_true))
    # The generator is one stream, read in the same order whatever the length of a chunk.
    assert summary(scored, resamples=64) == whole


def test_group_bootstrap_is_wider_than_the_independent_one_on_clustered_images() -> None:
    """60 lesions with 5 photographs each, right or wrong together: the independent interval is 5**.5 too short."""
    rng = np.random.default_rng(0)
    lesions = np.repeat(np.arange(60), 5)
    true = np.repeat(rng.integers(0, 2, 60), 5)
    predicted = np.where(np.repeat(rng.random(60) < 0.75, 5), true, 1 - true)
    p = np.where(np.eye(2)[predicted] == 1, 0.8, 0.2)
    malignant = np.array([False, True])
    grouped = ScoredSet(["a", "b"], malignant, true, predicted, p, lesions)
    alone = ScoredSet(["a", "b"], malignant, true, predicted, p, np.arange(300))
    wide, narrow = (summary(scored, resamples=1000)["metrics"] for scored in (grouped, alone))
    for name in ("accuracy", "balanced_accuracy", "sensitivity", "auroc", "loss"):
        width = [item[name]["ci95"][1] - item[name]["ci95"][0] for item in (wide, narrow)]
        assert 1.7 < width[0] / width[1] < 2.9, name
    assert wide["accuracy"]["method"] == intervals.GROUPED_WILSON
    assert wide["loss"]["method"] == "bootstrap by group, BCa, 1000 resamples, seed 0"
    assert narrow["accuracy"]["method"] == "wilson"
    assert narrow["loss"]["method"].startswith("bootstrap by image")


def test_wilson_known_values() -> None:
    low, high = intervals.wilson_interval(55, 118)
    assert (round(100 * low, 1), round(100 * high, 1)) == (37.9, 55.6)
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29.
    for (successes, n), expected in {
        (81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718),
    }.items():  # fmt: skip
        assert intervals.wilson_interval(successes, n) == pytest.approx(expected, abs=6e-5)


@given(n=st.integers(1, 500), data=st.data())
@settings(max_examples=100, deadline=None)
def test_wilson_holds_the_share_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = intervals.wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1 and high > low
    assert intervals.wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=TIGHT)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="proportion"):
        intervals.wilson_interval(successes, n)


def test_intervals_say_when_they_are_not_to_be_trusted() -> None:
    some = np.linspace(0.4, 0.6, 100)
    assert intervals.percentile_interval(0.5, some).reason == ""
    tenth_gone = np.where(np.arange(100) % 10 == 0, np.nan, some)
    assert "10% of the resamples" in intervals.percentile_interval(0.5, tenth_gone).reason
    assert intervals.percentile_interval(0.5, np.where(np.arange(100) < 5, np.nan, some)).reason == ""
    assert "same value" in intervals.percentile_interval(1.0, np.ones(100)).reason
    assert "biased" in intervals.percentile_interval(0.1, some).reason
    nothing = intervals.percentile_interval(0.5, np.full(100, np.nan))
    assert nothing.ci95 is None and nothing.reason


def test_undefined_figures_are_null_with_a_reason() -> None:
    """Class c has no images, b is never predicted, nothing malignant is there; the JSON holds no NaN."""
    true, predicted = np.array([0, 0, 1]), np.array([0, 2, 0])
    p = np.eye(3)[predicted] * 0.7 + 0.1
    body = summary(ScoredSet(["a", "b", "c"], np.array([False, False, True]), true, predicted, p, np.arange(3)))
    json.dumps(body, allow_nan=False)
    a, b, c = (body["per_class"][name] for name in "abc")
    assert c["n"] == 0 and all(
        c[view]["reason"] == "no image of c" for view in ("precision", "recall", "f1", "auroc")
    )
    assert c["specificity"]["value"] == pytest.approx(2 / 3)
    assert b["precision"]["reason"] == "no image was predicted as b" and b["precision"]["n"] == 0
    assert b["f1"]["value"] == 0.0 and b["f1"]["n"] == 1 and b["recall"]["value"] == 0.0
    few = "interval unreliable: 2 units, 30 needed"
    exact = {"ci95": list(intervals.clopper_pearson_interval(1, 2)), "method": "clopper-pearson", "reason": few}
    assert a["recall"] == {"value": 0.5, "n": 2, **exact}
    metrics = body["metrics"]
    assert metrics["sensitivity"]["value"] is None and "malignant" in metrics["sensitivity"]["reason"]
    assert metrics["recall_macro"]["value"] is None and "c" in metrics["recall_macro"]["reason"]
    assert metrics["recall_macro_present"]["value"] == 0.25
    assert "2 of 3 classes, without: c" in metrics["recall_macro_present"]["reason"]
    assert metrics["precision_macro_present"]["value"] == 0.5
    assert metrics["balanced_accuracy"]["value"] is None


@pytest.mark.parametrize("malignant", [[False, False], [True, True]])
def test_binary_figures_need_two_sides_in_the_class_table(malignant: list[bool]) -> None:
    true = np.array([0, 1, 0])
    body = summary(ScoredSet(["a", "b"], np.array(malignant), true, true, np.eye(2)[true], np.arange(3)))
    for name in ("sensitivity", "specificity", "ppv", "precision", "recall", "f1", "auroc", "average_precision"):
        assert body["metrics"][name]["value"] is None and "class table" in body["metrics"][name]["reason"]
    assert body["metrics"]["accuracy"]["value"] == 1.0


def test_one_image_has_figures_but_no_bootstrap_interval() -> None:
    body = summary(ScoredSet(["a", "b"], np.array([False, True]), np.array([1]), np.array([1]),
                          np.array([[0.2, 0.8]]), np.array([0])))  # fmt: skip
    assert body["n"] == body["n_groups"] == 1
    assert body["metrics"]["loss"]["ci95"] is None and "one group" in body["metrics"]["loss"]["reason"]
    assert body["metrics"]["sensitivity"]["ci95"] == list(intervals.clopper_pearson_interval(1, 1))
    assert body["metrics"]["auroc"]["reason"] == "every image is of a malignant class"


def test_n_is_what_the_figure_rests_on() -> None:
    true, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    found = summary(
        ScoredSet(["a", "b"], np.array([False, True]), true, predicted, np.eye(2)[predicted], np.arange(5))
    )
    n = {
        name: found["metrics"][name]["n"] for name in ("sensitivity", "specificity", "ppv", "f1", "auroc", "loss")
    }
    assert n == {"sensitivity": 2, "specificity": 3, "ppv": 2, "f1": 3, "auroc": 5, "loss": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_true": np.array([], dtype=np.int64)}, "an image"),
        ({"classes": ["a"]}, "two classes"),
        ({"y_pred": np.array([0])}, "shapes"),
        ({"probabilities": np.ones((2, 3))}, "shapes"),
        ({"malignant_classes": np.array([True])}, "shapes"),
        ({"y_true": np.array([0, 2])}, "indices"),
        ({"y_pred": np.array([-1, 0])}, "indices"),
        ({"groups": np.array([0, 2])}, "groups"),
        ({"groups": np.array([1, 2])}, "groups"),
    ],
)
def test_scored_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "classes": ["a", "b"], "malignant_classes": np.array([True, False]), "y_true": np.array([0, 1]),
        "y_pred": np.array([0, 1]), "probabilities": np.full((2, 2), 0.5), "groups": np.array([0, 1]),
    }  # fmt: skip
    ScoredSet(**good)
    with pytest.raises(ValueError, match=message):
        ScoredSet(**(good | change))


@pytest.mark.parametrize(
    "arguments",
    [(float("nan"), None), (0.5, (0.1, float("inf"))), (None, (0.1, 0.2)), (None, None)],
)
def test_an_estimate_is_never_nan_nor_silently_empty(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="estimate"):
        Estimate(*arguments, n=1, method="none")
    assert undefined_estimate(3, "why").as_dict() == {
        "value": None,
        "ci95": None,
        "n": 3,
        "method": "none",
        "reason": "why",
    }


def test_plain_functions_refuse_or_mark_what_is_undefined() -> None:
    none = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="at least one"):
        probabilistic.log_loss(none, np.empty((0, 2)))
    with pytest.raises(ValueError, match="finite"):
        roc.auroc(np.array([0.1, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="positives and negatives"):
        roc.roc_curve(np.array([0.1, 0.2]), np.array([True, True]))
    assert np.isnan(roc.auroc(np.array([0.1, 0.2]), np.array([True, True])))
    assert np.isnan(confusion.accuracy(np.zeros((2, 2))))
    assert confusion.balanced_accuracy(np.array([[3, 1], [1, 1]])) == pytest.approx(0.625)


def test_a_sure_mistake_costs_the_clipped_loss() -> None:
    assert probabilistic.log_loss(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(36.04, abs=0.01)
    assert probabilistic.brier_terms(np.array([1]), np.array([[1.0, 0.0]])).tolist() == [2.0]


def test_confidence_bins_include_their_upper_edge() -> None:
    edges = np.arange(16) / 15
    assert probabilistic.bin_index(edges).tolist() == [0, *range(15)]
    bins = probabilistic.calibration_bins(np.array([0.5, 0.5]), np.array([True, False]))
    assert probabilistic.ece_from_bins(bins) == 0.0


def test_tables_agree_with_scikit_learn() -> None:
    scored = next(
        s for s in map(make_scored, range(99))
        if len(np.unique(s.y_true)) == len(s.classes) == len(np.unique(s.y_pred)) and (s.y_true != s.y_pred).any()
    )  # fmt: skip
    body = summary(scored)
    report = reference.classification_report(
        scored.y_true, scored.y_pred, output_dict=True, target_names=scored.classes
    )
    rows = {row[0]: dict(zip(tables.REPORT_HEADER, row, strict=True)) for row in tables.report_rows(body)}
    for name in (*scored.classes, "macro"):
        theirs = report["macro avg" if name == "macro" else name]
        for ours, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"), ("n", "support")):
            assert rows[name][ours] == pytest.approx(theirs[key], abs=TIGHT)
    text = tables.report_text(body)
    assert all(name in text for name in scored.classes) and f"{body['metrics']['accuracy']['value']:.3f}" in text
    wrong: Any = tables.confusion_pair_rows(scored)
    assert sum(row[2] for row in wrong) == (scored.y_true != scored.y_pred).sum()
    assert [row[2] for row in wrong] == sorted((row[2] for row in wrong), reverse=True)
    calibration: Any = tables.calibration_rows(scored)
    ece = sum(n * abs(confidence - right) for _, n, confidence, right in calibration if n) / len(scored.y_true)
    assert ece == pytest.approx(body["metrics"]["ece"]["value"], abs=TIGHT)


def make_log(train: list[float], val: list[float]) -> dict[str, list[float]]:
    n = len(train)
    return {
        "epoch": [float(i + 1) for i in range(n)], "train_loss": train, "val_loss": val,
        "train_accuracy": [0.9] * n, "val_accuracy": [0.6] * n,
    }  # fmt: skip


def test_overfitting_is_named_with_its_first_epoch() -> None:
    found = diagnose_overfitting(make_log([2.0, 1.5, 1.0, 0.6, 0.3, 0.1], [2.0, 1.6, 1.4, 1.5, 1.7, 2.0]))
    assert found["overfitting"] is True and found["epoch"] == 4
    assert found["gap_loss"] == pytest.approx(1.9) and found["gap_accuracy"] == pytest.approx(0.3)
    assert "from epoch 4" in found["sentence"] and "0.300" in found["sentence"] and "%" in found["rule"]


@pytest.mark.parametrize(
    ("train", "val", "verdict"),
    [
        ([2.0, 1.5, 1.0, 0.8], [2.0, 1.6, 1.4, 1.3], False),  # still getting better
        ([2.0, 1.5, 1.0, 0.8], [2.0, 1.4, 1.3, 1.6], False),  # one worse epoch is chance
        ([2.0, 1.0, 1.1, 1.2], [2.0, 1.4, 1.6, 1.8], False),  # training gets worse too: not overfitting
        ([2.0, 1.0, 0.9, 0.8], [2.0, 1.4, 1.41, 1.41], False),  # within the margin
        ([2.0, 1.0, 0.9, 0.8], [2.0, 1.4, 1.4, 1.6], False),  # equal minima: the last one counts
        ([2.0, 1.0], [1.0, 2.0], None),  # too few epochs
        ([2.0, 1.0, float("nan")], [1.0, 2.0, 3.0], None),
    ],
)
def test_what_is_not_overfitting(train: list[float], val: list[float], verdict: bool | None) -> None:
    found = diagnose_overfitting(make_log(train, val))
    assert found["overfitting"] is verdict and found["epoch"] is None
    json.dumps(found, allow_nan=False)


def test_a_log_without_a_column_or_with_text_is_refused() -> None:
    with pytest.raises(DataError, match="val_loss is not numeric"):
        diagnose_overfitting({**make_log([1.0], [1.0]), "val_loss": ["high"]})
    with pytest.raises(DataError, match="val_loss"):
        diagnose_overfitting({"epoch": [1], "train_loss": [1.0], "train_accuracy": [1.0], "val_accuracy": [1.0]})
