"""Every figure has one definition; where a second formula stays for speed or for a proof, it gives the same number."""

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binom

from dermkit.comparison.published import PublishedFigure, compatible_matrices
from dermkit.evaluation.tables import confusion_pair_rows, roc_rows
from dermkit.metrics.classification import calibration, confusion, probabilistic
from dermkit.metrics.classification.paired import difference_terms
from dermkit.metrics.classification.resampled_metrics import ResampledMetrics, compared_metrics
from dermkit.metrics.classification.roc import auroc
from dermkit.metrics.classification.scored_set import ScoredSet, p_malignant
from dermkit.metrics.classification.summary import evaluate_split
from dermkit.metrics.decisions.apply import select
from dermkit.metrics.decisions.policy import fit_policy
from dermkit.metrics.decisions.recalibration import log_loss_and_gradient
from dermkit.metrics.stats.arrays import Floats, Ints, sum_by_group
from dermkit.metrics.stats.delong import auroc_covariance
from dermkit.metrics.stats.paired_tests import mid_p
from dermkit.training.validation import validation_metrics


def random_split(seed: int, *, n: int = 80, k: int = 4, absent: tuple[int, ...] = ()) -> ScoredSet:
    """Return n images of k classes, the last two malignant; no image of the classes `absent`."""
    generator = np.random.default_rng(seed)
    y_true = generator.choice(np.setdiff1d(np.arange(k), absent), n)
    logits = generator.normal(0, 1, (n, k)) + 1.5 * np.eye(k)[y_true]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    malignant = np.arange(k) >= k - 2
    groups = np.unique(generator.integers(0, n // 2, n), return_inverse=True)[1].astype(np.int64)
    return ScoredSet([f"c{i}" for i in range(k)], malignant, y_true, p.argmax(axis=1), p, groups)


def mean_recall_of_present(labels: Ints, predicted: Ints) -> float:
    """Return the former formula: the mean over the labels that occur."""
    return float(np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)]))


@pytest.mark.parametrize("absent", [(), (1,), (0, 3)])
@pytest.mark.parametrize("k", [4, 8, 12])
def test_balanced_accuracy_is_one_function(k: int, absent: tuple[int, ...]) -> None:
    for seed in range(20):
        split = random_split(seed, k=k, absent=absent)
        matrix = confusion.confusion_matrix(split.y_true, split.y_pred, k)
        recall = confusion.recall(confusion.one_vs_rest_counts(matrix))
        strict, present = float(confusion.balanced_accuracy(matrix)), confusion.balanced_accuracy_present(matrix)
        assert present == mean_recall_of_present(split.y_true, split.y_pred), "to the last digit"
        assert np.array_equal(strict, recall.mean(), equal_nan=True)
        if set(split.y_true) == set(range(k)):
            assert strict == present
        metrics = evaluate_split(split, seed=0, resamples=0)["metrics"]
        assert metrics["recall_macro_present"]["value"] == present
        assert metrics["balanced_accuracy"]["value"] == (None if np.isnan(strict) else strict)
        resampled = compared_metrics(ResampledMetrics(split).point_estimates)["balanced_accuracy"]
        assert np.array_equal(resampled, [strict], equal_nan=True)


def test_a_mean_over_present_classes_is_of_one_set_of_classes() -> None:
    assert np.isnan(confusion.macro_mean(np.full(3, np.nan), present_only=True))
    with pytest.raises(ValueError, match="one value per class"):
        confusion.macro_mean(np.ones((2, 3)), present_only=True)


def test_training_monitors_the_same_figures() -> None:
    for seed in range(20):
        split = random_split(seed, absent=(2,) if seed % 2 else ())
        logits = np.log(split.probabilities)
        found = validation_metrics(logits, split.y_true)
        log_p = log_softmax(logits, axis=1)
        assert found["val_loss"] == float(-log_p[np.arange(80), split.y_true].mean())
        assert found["val_loss"] == pytest.approx(
            probabilistic.log_loss(split.y_true, split.probabilities), rel=1e-12
        )
        assert found["val_accuracy"] == float((split.y_pred == split.y_true).mean())
        assert found["val_balanced_accuracy"] == mean_recall_of_present(split.y_true, split.y_pred)
        areas = [auroc(np.exp(log_p)[:, c], split.y_true == c) for c in np.unique(split.y_true)]
        assert found["val_auroc_macro"] == float(np.mean(areas))
    one_class = validation_metrics(np.eye(3), np.zeros(3, dtype=np.int64))
    assert np.isnan(one_class["val_auroc_macro"]), "one class alone has no AUROC"


def test_accuracy_as_a_proportion_is_that_of_the_confusion_matrix() -> None:
    split = random_split(3)
    matrix = confusion.confusion_matrix(split.y_true, split.y_pred, 4)
    assert evaluate_split(split, seed=0, resamples=0)["metrics"]["accuracy"]["value"] == confusion.accuracy(matrix)


def test_terms_of_a_difference_sum_to_the_difference_of_balanced_accuracies() -> None:
    first, other = random_split(5), random_split(6)
    second = ScoredSet(
        first.classes, first.malignant_classes, first.y_true, other.y_pred, other.probabilities, first.groups
    )
    gap = difference_terms(first, second)["balanced_accuracy"].sum()
    values = [
        float(confusion.balanced_accuracy(confusion.confusion_matrix(s.y_true, s.y_pred, 4)))
        for s in (first, second)
    ]
    assert gap == pytest.approx(values[0] - values[1], abs=1e-12)


def test_a_printed_balanced_accuracy_is_that_of_two_classes() -> None:
    value = float(confusion.balanced_accuracy(np.array([[7, 3], [4, 16]])))
    figures = [PublishedFigure("balanced_accuracy", value, 1e-6)]
    matrices = compatible_matrices(figures, positives=20, negatives=10)
    assert (16, 4, 3, 7) in [(m.tp, m.fn, m.fp, m.tn) for m in matrices]


def test_no_probability_of_malignancy_is_above_one() -> None:
    """Three probabilities of .7, .2 and .1 sum to more than 1 in floating point; so did thresholds of a ROC table."""
    classes, malignant = ["nevus", "a", "b", "c"], np.array([False, True, True, True])
    p = np.array([[0.0, 0.7, 0.2, 0.1], [0.0, 0.1, 0.2, 0.7], [0.4, 0.3, 0.2, 0.1], [0.9, 0.05, 0.03, 0.02]] * 30)
    generator = np.random.default_rng(0)
    p = np.concatenate([p, np.pad(generator.dirichlet(np.ones(3), 500), ((0, 0), (1, 0)))])
    assert (p[:, malignant].sum(axis=1) > 1).any(), "else this test says nothing"
    assert p_malignant(p, malignant).max() == 1.0
    y_true = generator.integers(0, 4, len(p))
    split = ScoredSet(classes, malignant, y_true, p.argmax(axis=1), p, np.arange(len(p)))
    thresholds = [float(str(row[3])) for row in roc_rows(split) if row[0] == "malignant classes"]
    assert thresholds[0] == np.inf and max(thresholds[1:]) == 1.0
    assert np.array_equal(split.p_malignant, p_malignant(p, malignant))
    policy = fit_policy(split)
    output = select(policy, malignant).apply(p)
    assert np.array_equal(output.p_malignant, p_malignant(output.probabilities, malignant))
    assert output.p_malignant.max() <= 1.0


def test_the_area_under_the_roc_table_is_the_auroc() -> None:
    for seed in range(20):
        split = random_split(seed)
        points = np.array([row[1:3] for row in roc_rows(split) if row[0] == "malignant classes"], dtype=np.float64)
        area = float(np.trapezoid(points[:, 1], points[:, 0]))
        assert area == pytest.approx(auroc(split.p_malignant, split.is_malignant), abs=1e-12)
        delong_value = auroc_covariance(split.p_malignant[None], split.is_malignant, split.groups).values[0]
        assert delong_value == pytest.approx(area, abs=1e-12)


def test_confusion_pairs_are_counted_in_the_confusion_matrix() -> None:
    split = random_split(8)
    matrix = confusion.confusion_matrix(split.y_true, split.y_pred, 4)
    for label, predicted, n, fraction, _ in confusion_pair_rows(split):
        row, column = split.classes.index(str(label)), split.classes.index(str(predicted))
        assert (n, fraction) == (matrix[row, column], matrix[row, column] / matrix[row].sum())


def test_net_benefit_of_scores_and_of_counts_are_equal() -> None:
    split = random_split(9)
    score, positive = split.p_malignant, split.is_malignant
    for threshold in (0.05, 0.1, 0.2):
        called = score >= threshold
        tp, fp = int((called & positive).sum()), int((called & ~positive).sum())
        by_hand = (tp - fp * threshold / (1 - threshold)) / 80
        assert calibration.net_benefit(score, positive, np.array([threshold])).tolist() == [by_hand]
        name = f"net_benefit_{round(100 * threshold)}"
        assert ResampledMetrics(split).point_estimates.binary[name].tolist() == [by_hand]


def test_the_loss_with_a_gradient_is_the_log_loss() -> None:
    split = random_split(10)
    value, _ = log_loss_and_gradient(np.log(split.probabilities), split.y_true, 0.0, np.zeros(4))
    assert value == pytest.approx(probabilistic.log_loss(split.y_true, split.probabilities), rel=1e-12)


def test_mid_p_of_arrays_is_that_of_numbers() -> None:
    def former(first: int, second: int) -> float:
        if first == second:
            return 1.0
        n, smaller = first + second, min(first, second)
        return min(1.0, 2 * float(binom.cdf(smaller, n, 0.5)) - float(binom.pmf(smaller, n, 0.5)))

    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(40), np.arange(40)))
    assert mid_p(first, second).tolist() == [
        former(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]


def test_sums_by_group_keep_empty_groups() -> None:
    terms: Floats = np.array([1.0, 2.0, 4.0])
    assert sum_by_group(terms, np.array([2, 0, 2]), 4).tolist() == [2.0, 0.0, 5.0, 0.0]
