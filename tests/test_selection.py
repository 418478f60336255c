"""The value of the best of several configurations, corrected for having been chosen."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from dermkit.metrics.stats.selection import SelectedValue, correct_selection, select_best

Floats = NDArray[np.float64]


def corrected(correct: Floats, *, seed: int = 0, resamples: int = 300) -> SelectedValue:
    """Return the correction for a matrix of right (1) and wrong answers, images by configurations."""
    n = len(correct)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    left_out = (weights == 0).astype(float)
    return correct_selection(
        correct.mean(axis=0), weights @ correct / n, left_out @ correct / left_out.sum(axis=1, keepdims=True),
        higher_is_better=True, n=n, n_units=n, method="test",
    )  # fmt: skip


def answers(rng: np.random.Generator, accuracies: Floats, n: int, correlation: float) -> Floats:
    """Return right and wrong answers of configurations that share some of the difficulty of each image."""
    latent = np.sqrt(correlation) * rng.normal(size=(n, 1))
    latent = latent + np.sqrt(1 - correlation) * rng.normal(size=(n, len(accuracies)))
    return np.asarray(latent < norm.ppf(accuracies), dtype=np.float64)


def test_it_is_the_published_algorithm_step_by_step() -> None:
    """The same as a loop over resamples, written from the paper: choose on the drawn, score on the others."""
    correct = answers(np.random.default_rng(1), np.linspace(0.6, 0.8, 7), 40, 0.4)
    weights = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=50)
    expected = []
    for counts in weights:
        drawn = np.repeat(np.arange(40), counts)
        chosen = max(range(7), key=lambda k: (correct[drawn, k].sum(), -k))
        expected.append(correct[[i for i in range(40) if counts[i] == 0], chosen].mean())
    selected = corrected(correct, resamples=50)
    assert selected.corrected.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert selected.corrected.ci95 == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])), abs=1e-12)
    assert selected.value == correct.mean(axis=0).max()
    assert selected.optimism == pytest.approx(selected.value - np.mean(expected))


@pytest.mark.parametrize(
    ("accuracies", "optimism"),
    [(np.full(30, 0.8), 0.03), (np.append(np.full(29, 0.75), 0.85), -0.01), (np.full(1, 0.8), -0.01)],
)
def test_the_interval_holds_the_truth_and_the_plain_value_is_too_good(accuracies: Floats, optimism: float) -> None:
    rng = np.random.default_rng(3)
    studies = [corrected(answers(rng, accuracies, 150, 0.5), seed=k, resamples=200) for k in range(60)]
    truths = np.array([accuracies[study.best] for study in studies])
    estimates = np.array([study.corrected.value for study in studies], dtype=float)
    bounds = np.array([study.corrected.ci95 for study in studies])
    assert ((bounds[:, 0] <= truths) & (truths <= bounds[:, 1])).mean() >= 0.93
    assert np.mean([study.value for study in studies] - truths) >= optimism
    # Resamples of 63 % of the units miss the truly best one more often: never hopeful, a little too low.
    assert -0.04 < np.mean(estimates - truths) < 0.015


def test_a_smaller_value_may_be_better_and_undefined_ones_are_never_chosen() -> None:
    values = np.array([np.nan, 0.5, 0.4, 0.4])
    assert select_best(values, higher_is_better=False) == 2
    assert select_best(values, higher_is_better=True) == 1
    with pytest.raises(ValueError, match="no configuration"):
        select_best(np.array([np.nan]), higher_is_better=True)
    bags = np.array([[0.5, 0.3], [np.nan, np.nan], [0.2, 0.6]])
    left_out = np.array([[0.9, 0.7], [0.1, 0.1], [0.5, np.nan]])
    loss = correct_selection(
        np.array([0.4, 0.5]), bags, left_out, higher_is_better=False, n=9, n_units=9, method="test"
    )
    assert (loss.best, loss.value) == (0, 0.4) and loss.corrected.value == pytest.approx(0.6)
    assert loss.optimism == pytest.approx(0.2)
    assert "undefined in 33%" in loss.corrected.reason and "9 units" in loss.corrected.reason
    none = correct_selection(
        np.array([0.4]), np.full((2, 1), np.nan), np.ones((2, 1)), higher_is_better=True, n=9, n_units=9, method=""
    )
    assert none.corrected.value is None and none.optimism is None
