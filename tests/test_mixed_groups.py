"""Patients with lesions of both classes: what sensitivity and specificity share belongs into intervals made of both."""

import numpy as np
import pytest
from scipy.stats import norm

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.subgroups import SUBGROUP_METRICS, subgroup_gaps, subgroup_metrics
from dermkit.metrics.classification.summary import CORRELATED_MEAN_METHOD, MEAN_METHOD, evaluate_split
from dermkit.metrics.decisions.operating_point_metrics import (
    CORRELATED_METHOD,
    PREDICTIVE_METHOD,
    evaluate_threshold,
)
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.arrays import Floats, Ints

RATE = 0.8


def draw(generator: np.random.Generator, shared: str, n: int = 600) -> ScoredSet:
    """Draw patients of 1 to 20 photographs of both classes, half of whose spread is the patient's."""
    patient = np.repeat(np.arange(n), generator.integers(1, 21, n))[:n]
    ill = (generator.random(n) < 0.4).astype(np.int64)
    side, apart = 2 * ill - 1, float(norm.ppf(RATE))
    noise = np.sqrt(0.5) * (generator.normal(size=n)[patient] + generator.normal(size=n))
    odds = side * (apart + noise) if shared == "difficulty" else side * apart + noise
    p = 1 / (1 + np.exp(-odds))
    return ScoredSet(["benign", "malignant"], np.array([False, True]), ill, (odds > 0).astype(np.int64),
                     np.column_stack([1 - p, p]), patient)  # fmt: skip


def sandwich(scored: ScoredSet) -> Floats:
    """Return the covariance of both recalls: regression of "right" on the two classes, clustered by patient."""
    design = np.column_stack([scored.y_true == 0, scored.y_true == 1]).astype(float)
    right = (scored.y_true == scored.y_pred).astype(float)
    bread = np.linalg.inv(design.T @ design)
    residual = right - design @ (bread @ design.T @ right)
    meat = np.zeros((2, 2))
    for patient in range(scored.n_groups):
        rows = scored.groups == patient
        sums = design[rows].T @ residual[rows]
        meat += np.outer(sums, sums)
    return np.asarray(bread @ meat @ bread, dtype=np.float64)


def correlations(scored: ScoredSet) -> Floats:
    masks = (scored.is_malignant, ~scored.is_malignant)
    return intervals.shared_groups(masks, [scored.y_pred == scored.y_true] * 2, scored.groups).correlations


@pytest.mark.parametrize(("shared", "sign"), [("difficulty", 1), ("shift", -1)])
def test_the_correlation_is_that_of_a_clustered_regression(shared: str, sign: int) -> None:
    scored = draw(np.random.default_rng(0), shared, 2000)
    covariance = sandwich(scored)
    groups = [len(np.unique(scored.groups[scored.y_true == k])) for k in (0, 1)]
    factor = np.sqrt(np.prod([g / (g - 1) for g in groups]))
    found = correlations(scored)
    spread = np.sqrt(np.diag(covariance) * [g / (g - 1) for g in groups])
    assert found[0, 1] == pytest.approx(factor * covariance[0, 1] / np.prod(spread))
    assert sign * found[0, 1] > 0.2 and found[0, 0] == found[1, 1] == 1.0


@pytest.mark.parametrize("shared", ["difficulty", "shift"])
def test_intervals_are_as_wide_as_what_they_cover_spreads(shared: str) -> None:
    """Taken as independent, those of the mean recall are a fifth too short, or a quarter too long."""
    generator = np.random.default_rng(1)
    ends: dict[str, list[tuple[float, float, float]]] = {"balanced_accuracy": [], "ppv": [], "npv": []}
    for _ in range(250):
        scored = draw(generator, shared)
        found = {"balanced_accuracy": evaluate_split(scored, seed=0, resamples=0, with_ranking=False)["metrics"]
                 ["balanced_accuracy"]}  # fmt: skip
        (item,) = evaluate_threshold(scored, 0.5, prevalences=(0.2,)).per_prevalence
        found |= {"ppv": item.ppv.as_dict(), "npv": item.npv.as_dict()}
        assert found["balanced_accuracy"]["method"] == CORRELATED_MEAN_METHOD
        assert item.ppv.method == CORRELATED_METHOD
        for name, estimate in found.items():
            ends[name].append((estimate["value"], *estimate["ci95"]))
    for name, triples in ends.items():
        values, low, high = np.array(triples).T
        assert np.mean(high - low) == pytest.approx(2 * intervals.Z * values.std(), rel=0.12), name


def test_patients_of_one_class_each_keep_their_interval_to_the_last_digit() -> None:
    generator = np.random.default_rng(2)
    mixed = draw(generator, "shift")
    parted = np.unique(2 * mixed.groups + mixed.y_true, return_inverse=True)[1].astype(np.int64)
    for groups in (parted, np.arange(len(parted))):
        scored = ScoredSet(mixed.classes, mixed.malignant_classes, mixed.y_true, mixed.y_pred, mixed.probabilities,
                           groups)  # fmt: skip
        assert (correlations(scored) == np.eye(2)).all()
        found = evaluate_split(scored, seed=0, resamples=0)
        recalls = [found["per_class"][name]["recall"] for name in scored.classes]
        d = np.array([[item["value"] - item["ci95"][0], item["ci95"][1] - item["value"]] for item in recalls])
        mean, half = found["metrics"]["balanced_accuracy"], np.sqrt((d**2).sum(axis=0)) / 2
        assert mean["ci95"] == [mean["value"] - half[0], mean["value"] + half[1]]
        assert mean["method"] == MEAN_METHOD
        assert evaluate_threshold(scored, 0.5).per_prevalence[0].ppv.method == PREDICTIVE_METHOD


def test_more_than_two_classes_and_recalls_without_spread() -> None:
    groups: Ints = np.repeat(np.arange(40), 6)
    true = np.tile([0, 0, 1, 1, 2, 2], 40)
    right = np.repeat(np.arange(40) % 4 > 0, 6)
    right[true == 2] = True
    called = np.where(right, true, (true + 1) % 3)
    p = np.eye(3)[called] * 0.7 + 0.1
    scored = ScoredSet(["a", "b", "c"], np.array([False, False, True]), true, called, p, groups)
    masks = [true == k for k in range(3)]
    shared = intervals.shared_groups(masks, [right] * 3, groups)
    found = shared.correlations
    assert shared.widening == pytest.approx(2.022691 / 1.959964), "Student's quantile at 39 degrees of freedom"
    np.testing.assert_allclose(found, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > -1e-9
    estimate = evaluate_split(scored, seed=0, resamples=0)["metrics"]["balanced_accuracy"]
    one = intervals.proportion_estimate(right[masks[0]], groups[masks[0]]).ci95
    all_right = intervals.proportion_estimate(right[masks[2]], groups[masks[2]]).ci95
    assert one is not None and all_right is not None
    low = estimate["value"] - shared.widening * np.sqrt((2 * (0.75 - one[0])) ** 2 + (1 - all_right[0]) ** 2) / 3
    assert estimate["ci95"][0] == pytest.approx(low), "two recalls that rise and fall together count as one, twice"


def test_gaps_between_body_sites_know_that_patients_have_lesions_on_both() -> None:
    """Easy patients are easy on both sites, so a gap spreads less than two figures of different patients would."""
    generator = np.random.default_rng(5)
    gaps: dict[str, list[tuple[float, float]]] = {}
    for _ in range(60):
        scored = draw(generator, "difficulty", 1500)
        labels = np.where(generator.random(1500) < 0.5, "back", "leg").tolist()
        for gap in subgroup_gaps(subgroup_metrics(scored, labels, evaluate_split=evaluate_split)):
            estimate = gap.difference
            assert estimate.method == "difference of figures that covary by group" and estimate.ci95 is not None
            sign = 1 if gap.best_group == "back" else -1
            gaps.setdefault(gap.metric, []).append(
                (sign * (estimate.value or 0.0), estimate.ci95[1] - estimate.ci95[0])
            )
    assert set(gaps) == set(SUBGROUP_METRICS) - {"recall_macro_present"}
    for name, pairs in gaps.items():
        values, widths = np.array(pairs).T
        assert widths.mean() == pytest.approx(2 * intervals.Z * values.std(), rel=0.3), name
    alone = draw(generator, "difficulty", 1500)
    parted = np.unique(2 * alone.groups + np.arange(1500) % 2, return_inverse=True)[1].astype(np.int64)
    apart = ScoredSet(
        alone.classes, alone.malignant_classes, alone.y_true, alone.y_pred, alone.probabilities, parted
    )
    for gap in subgroup_gaps(subgroup_metrics(apart, ["back", "leg"] * 750, evaluate_split=evaluate_split)):
        assert gap.difference.method == "difference of independent figures"
