"""Weights of an ensemble: against an independent optimiser, with few images, and never worse by choice than equal."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.mixture_weights import (
    BEST,
    EQUAL,
    FITTED,
    ModelScores,
    choose_weights,
    fit_mixture_weights,
)
from dermkit.metrics.decisions.recalibration import ProbabilityCalibration, fit_temperature, identity
from dermkit.metrics.stats.arrays import Floats, Ints


def drawn(n: int, noise: list[float], seed: int) -> tuple[Ints, list[Floats]]:
    """Return labels of five classes, and probabilities of a model for each amount of noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, n)
    signal = rng.normal(size=(n, 5))
    signal[np.arange(n), y] += 1.6
    models = []
    for amount in noise:
        z = (signal + amount * rng.normal(size=(n, 5))) * 1.6 / (1 + amount**2)
        e = np.exp(z - z.max(axis=1, keepdims=True))
        models.append(e / e.sum(axis=1, keepdims=True))
    return y, models


def labelled(y: Ints, groups: Ints | None = None) -> ScoredSet:
    p = np.full((len(y), 5), 0.2)
    return ScoredSet(
        list("abcde"),
        np.array([True, False, False, False, False]),
        y,
        p.argmax(1),
        p,
        np.arange(len(y)) if groups is None else groups,
    )


def plain(p: Floats) -> ModelScores:
    return ModelScores(p, np.zeros(len(p), dtype=np.int64), [identity(5)])


def p_true(y: Ints, models: list[Floats]) -> Floats:
    return np.stack([p[np.arange(len(y)), y] for p in models], axis=1)


def test_without_a_prior_the_weights_are_those_of_a_constrained_optimiser() -> None:
    y, models = drawn(300, [0.5, 1.0, 2.0], 1)
    p = p_true(y, models)
    found = fit_mixture_weights(p, prior=0.0)
    expected: Any = minimize(  # type: ignore[call-overload]
        lambda w: -np.log(p @ w).mean(), np.full(3, 1 / 3), method="SLSQP", bounds=[(0, 1)] * 3, tol=1e-14,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )  # fmt: skip
    assert found == pytest.approx(expected.x, abs=2e-3)
    assert -np.log(p @ found).mean() <= expected.fun + 1e-9
    assert found.sum() == pytest.approx(1, abs=1e-12) and (found >= 0).all()


def test_one_image_a_model_counts_for_equal_weights() -> None:
    y, models = drawn(300, [0.5, 1.0, 2.0], 1)
    p = p_true(y, models)
    weights = fit_mixture_weights(p)
    # The stationary point of the posterior: expected shares of the images and the prior's, over all.
    shares = p * weights / (p @ weights)[:, None]
    assert weights == pytest.approx((shares.sum(axis=0) + 1) / (300 + 3), abs=1e-8)
    assert fit_mixture_weights(np.full((4, 3), 0.3)) == pytest.approx([1 / 3] * 3)
    assert fit_mixture_weights(np.array([[1.0, 0.0]] * 9)) == pytest.approx([10 / 11, 1 / 11])


def test_a_better_model_gets_more_and_alike_ones_stay_equal_or_cost_little() -> None:
    y, models = drawn(400, [0.3, 2.5], 2)
    choice = choose_weights(labelled(y), [plain(p) for p in models])
    assert choice.scheme == FITTED and choice.weights[0] > 0.9 and choice.best == 0
    assert set(choice.figures) == {FITTED, EQUAL, BEST}
    new_y, new = drawn(20_000, [1.0, 1.0, 1.0], 99)
    for seed in range(8):  # 60 images, models alike: what is chosen costs hardly anything on new images
        y, models = drawn(60, [1.0, 1.0, 1.0], seed)
        weights = choose_weights(labelled(y), [plain(p) for p in models]).weights
        loss = -np.log(p_true(new_y, new) @ weights).mean()
        equal = -np.log(p_true(new_y, new).mean(axis=1)).mean()
        assert loss - equal < 0.02


def test_the_cross_validated_figure_of_noise_models_is_no_better_than_equal_weights() -> None:
    """Twelve models of noise: in sample the fitted weights look better, held out they do not, and are not taken."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 5, 60)
    models = [plain(rng.dirichlet(np.ones(5), 60)) for _ in range(12)]
    choice = choose_weights(labelled(y), models)
    fitted, equal = choice.figures[FITTED], choice.figures[EQUAL]
    assert fitted.in_sample["loss"] < equal.in_sample["loss"]  # type: ignore[operator]
    assert fitted.cross_validated["loss"].value > equal.cross_validated["loss"].value  # type: ignore[operator]
    assert choice.scheme == EQUAL and choice.weights == pytest.approx([1 / 12] * 12)
    assert choice.figures[BEST].in_sample["loss"] < choice.figures[BEST].cross_validated["loss"].value  # type: ignore[operator]


def test_photographs_of_a_lesion_are_in_one_fold() -> None:
    """Models that know lesions by heart: with four photographs of each, images alone would make weights look good."""
    lesions, excess = np.repeat(np.arange(15), 4), {"lesions": 0.0, "images": 0.0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 5, 15)[lesions]
        models = [plain(rng.dirichlet(np.ones(5), 15)[lesions]) for _ in range(8)]
        for name, groups in (("lesions", lesions), ("images", None)):
            figures = choose_weights(labelled(y, groups), models).figures
            losses = [figures[scheme].cross_validated["loss"].value or 0.0 for scheme in (FITTED, EQUAL)]
            excess[name] += (losses[0] - losses[1]) / 5
    assert excess["images"] < 0 < excess["lesions"]
    few = choose_weights(labelled(y[:36], lesions[:36]), [plain(m.probabilities[:36]) for m in models])
    assert few.scheme == EQUAL and not few.figures and "9 independent groups" in few.reason


def test_each_net_is_calibrated_by_its_own_and_anew_for_images_left_out() -> None:
    y, (p, _) = drawn(200, [0.5, 0.5], 3)
    nets = np.arange(200) % 2
    sharp = np.where(nets[:, None] == 0, p**3 / (p**3).sum(1, keepdims=True), p)
    own = [fit_temperature(y[nets == net], sharp[nets == net]) for net in (0, 1)]
    model = ModelScores(sharp, nets, own)
    assert own[0].temperature / own[1].temperature == pytest.approx(3, rel=0.25)
    assert model.calibrated()[nets == 1] == pytest.approx(own[1].apply(sharp[nets == 1]))
    part = np.arange(200) < 150
    anew = fit_temperature(y[part & (nets == 0)], sharp[part & (nets == 0)])
    assert model.calibrated_on(y, part)[nets == 0] == pytest.approx(anew.apply(sharp[nets == 0]))
    fixed = ModelScores(sharp, nets, [ProbabilityCalibration("none", 1.0, (0.0,) * 5)] * 2)
    assert fixed.calibrated_on(y, part) == pytest.approx(sharp)
