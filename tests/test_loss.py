"""The loss of training: weights, focal factor, adjusted logits, and the order that square-root sampling shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dermkit.errors import UsageError
from dermkit.recipes.experiments import full_phase
from dermkit.recipes.schema import parse_recipe, recipe_to_dict
from dermkit.recipes.training_specs import MixupSpec
from dermkit.training.augment.random_numbers import square_root_order
from dermkit.training.loss import TrainingLoss, focal_factor, make_loss
from test_train import BASE, run

CPU = torch.device("cpu")
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(0, 2, (7, 4))
LABELS = np.array([0, 1, 2, 3, 0, 0, 2])
SHARES = RNG.dirichlet([1, 1, 1, 1], 7)
WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0])


def formula(logits: NDArray[np.float64], shares: NDArray[np.float64], *, smoothing: float, gamma: float) -> float:
    """The sum in float64, written down anew: sum of w y log p, times (1 - sum of the unsmoothed y p) ** gamma."""
    k = logits.shape[1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    smooth = (1 - smoothing) * shares + smoothing / k
    entropy = -(WEIGHTS * smooth * np.log(p)).sum(1)
    return float((entropy * (1 - (shares * p).sum(1)) ** gamma).sum())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("hard", [True, False])
def test_a_focal_loss_is_that_of_the_formula(gamma: float, smoothing: float, hard: bool) -> None:
    loss = TrainingLoss(torch.tensor(WEIGHTS).float(), smoothing, gamma)
    shares = np.eye(4)[LABELS] if hard else SHARES
    targets = torch.from_numpy(LABELS) if hard else torch.from_numpy(SHARES).float()
    value = float(loss.sum(torch.from_numpy(LOGITS).float(), targets))
    assert value == pytest.approx(formula(LOGITS, shares, smoothing=smoothing, gamma=gamma), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients_of_the_focal_loss_are_those_of_differences(gamma: float) -> None:
    loss = TrainingLoss(torch.tensor(WEIGHTS), 0.1, gamma)
    logits = torch.tensor(LOGITS, requires_grad=True)
    targets = torch.from_numpy(SHARES)
    assert torch.autograd.gradcheck(lambda x: loss.sum(x, targets), (logits,))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_a_net_that_is_quite_sure_has_finite_gradients(gamma: float) -> None:
    logits = torch.tensor([[300.0, 0.0], [-300.0, 0.0], [20.0, 0.0]], requires_grad=True)
    value = TrainingLoss(None, 0.0, gamma).sum(logits, torch.tensor([0, 0, 0]))
    value.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert float(value.detach()) == pytest.approx(300.0)
    # 1 - p keeps its digits near p = 1, where 1.0f - p has none
    factor = focal_factor(logits.detach(), torch.tensor([0, 0, 0]), 1.0)
    assert float(factor[2]) == pytest.approx(np.exp(-20.0) / (1 + np.exp(-20.0)), rel=1e-5)


@pytest.mark.parametrize("hard", [True, False])
def test_without_its_fields_the_loss_is_torchs_to_the_last_bit(hard: bool) -> None:
    weights, logits = torch.tensor(WEIGHTS).float(), torch.from_numpy(LOGITS).float()
    targets = torch.from_numpy(LABELS) if hard else torch.from_numpy(SHARES).float()
    expected = F.cross_entropy(logits, targets, weight=weights, reduction="sum", label_smoothing=0.1)
    assert torch.equal(TrainingLoss(weights, 0.1).sum(logits, targets), expected)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sampling", ["shuffled", "square_root"])
def test_adjusted_logits_have_the_logarithms_of_the_frequencies_that_an_epoch_shows(
    tau: float, sampling: Any
) -> None:
    labels = np.repeat([0, 1, 3], [90, 9, 1])  # class 2 has no training image and counts as one
    spec = replace(BASE.optim, logit_adjustment=tau, sampling=sampling)
    loss = make_loss(labels, 4, spec, CPU)
    counts = np.array([90.0, 9.0, 1.0, 1.0])
    frequencies = np.sqrt(counts) if sampling == "square_root" else counts
    adjusted = torch.from_numpy(LOGITS + tau * np.log(frequencies / frequencies.sum()))
    expected = F.cross_entropy(adjusted, torch.from_numpy(LABELS), reduction="sum")
    value = loss.sum(torch.from_numpy(LOGITS).float(), torch.from_numpy(LABELS))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def _fitted(optim: Any, x: torch.Tensor, labels: NDArray[np.int64]) -> torch.nn.Linear:
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    loss, targets = make_loss(labels, 2, optim, CPU), torch.from_numpy(labels)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss.sum(layer(x), targets) / loss.total_weight(targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer


def test_adjustment_and_weights_raise_the_balanced_accuracy_of_one_in_fifty() -> None:
    """Two normal distributions one deviation either side of 0: the best balanced accuracy is Phi(1) = .841."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [5000, 100])
    x = torch.from_numpy(rng.normal(0, 1, (5100, 2)) + np.stack([2.0 * labels - 1, 0 * labels], 1)).float()
    test_labels = np.repeat([0, 1], 4000)
    test = torch.from_numpy(rng.normal(0, 1, (8000, 2)) + np.stack([2.0 * test_labels - 1, 0 * test_labels], 1))
    reached = {}
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "adjusted": {"logit_adjustment": 1.0},
        "half": {"logit_adjustment": 0.5},
        "weights": {"class_weights": "balanced"},
        "roots": {"class_weights": "square_root"},
    }
    for name, fields in variants.items():
        layer = _fitted(replace(BASE.optim, **fields), x, labels)
        with torch.no_grad():
            guesses = layer(test.float()).argmax(1).numpy()
        reached[name] = float(np.mean([(guesses[test_labels == k] == k).mean() for k in (0, 1)]))
    assert reached["plain"] < 0.62
    assert reached["plain"] + 0.05 < reached["half"] < reached["adjusted"]
    assert reached["plain"] + 0.05 < reached["roots"] < reached["weights"]
    assert reached["adjusted"] == pytest.approx(0.841, abs=0.015)
    assert reached["weights"] == pytest.approx(0.841, abs=0.015)


def test_weights_of_the_square_root_are_between_none_and_balanced() -> None:
    labels = np.repeat([0, 1, 2], [64, 16, 1])
    loss = make_loss(labels, 3, replace(BASE.optim, class_weights="square_root"), CPU)
    assert loss.class_weights is not None
    assert (loss.class_weights / loss.class_weights[0]).tolist() == pytest.approx([1.0, 2.0, 8.0])
    soft = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    unit = float(loss.class_weights[0])
    assert loss.total_weight(soft) == pytest.approx(unit * (0.25 + 1.5 + 1.0))


def test_adjustment_without_effect_is_refused() -> None:
    fields = recipe_to_dict(BASE)
    fields["optim"] |= {"sampling": "balanced", "logit_adjustment": 1.0}
    with pytest.raises(UsageError, match="logit_adjustment has no effect with balanced sampling"):
        parse_recipe(fields, "mine.json")


# What an epoch shows


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 6), max_size=120), seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 50))
def test_a_square_root_order_has_the_classes_in_proportion_to_the_roots(
    labels: list[int], seed: int, epoch: int
) -> None:
    known = np.array(labels, dtype=np.int64)
    order = square_root_order(known, seed=seed, epoch=epoch)
    assert order.dtype == np.int64 and len(order) == len(labels)
    assert np.array_equal(order, square_root_order(known, seed=seed, epoch=epoch))
    classes, counts = np.unique(known, return_counts=True)
    exact = np.sqrt(counts) / np.sqrt(counts).sum() * len(known) if len(known) else counts
    for item, size, expected in zip(classes, counts, exact, strict=True):
        shown = order[known[order] == item]
        assert abs(len(shown) - expected) < 1
        for start in range(0, len(shown), size):
            assert len(set(shown[start : start + size].tolist())) == len(shown[start : start + size])


def test_over_epochs_a_class_is_shown_as_often_as_its_root() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 2])
    shown = np.mean(
        [np.bincount(labels[square_root_order(labels, seed=1, epoch=epoch)]) for epoch in range(1, 401)], axis=0
    )
    roots = np.sqrt([50, 7, 2])
    assert shown == pytest.approx(59 * roots / roots.sum(), abs=0.08)


@pytest.mark.parametrize(
    ("fields", "mix"),
    [
        ({"focal_gamma": 2.0}, None),
        ({"focal_gamma": 2.0}, MixupSpec(mixup=0.4, cutmix=1.0, p=0.8)),
        ({"logit_adjustment": 1.0}, None),
        ({"sampling": "square_root"}, None),
        ({"class_weights": "square_root"}, None),
    ],
)
def test_each_field_changes_what_is_trained(tmp_path: Path, fields: dict[str, Any], mix: MixupSpec | None) -> None:
    recipe = replace(
        BASE, mix=mix, phases=(full_phase(1, lr=1e-2),), model=replace(BASE.model, backbone="dermkit/cnn-s4")
    )
    rows = []
    for name, optim in (("plain", recipe.optim), ("changed", replace(recipe.optim, **fields))):
        _, progress = run(replace(recipe, optim=optim), tmp_path / name, imbalanced=True)
        rows.append(progress.log_rows[0])
    assert rows[0]["train_loss"] != rows[1]["train_loss"] and rows[0]["val_loss"] != rows[1]["val_loss"]
