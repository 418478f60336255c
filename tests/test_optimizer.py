"""The optimizers: that fused ones compute what torch's plain ones do, also after a checkpoint."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dermkit.models.net import Net, freeze
from dermkit.recipes.experiments import full_phase
from dermkit.training.optimizer import load_optimizer, make_optimizer
from test_train import BASE

PHASE = full_phase(1, lr=1e-2)


def small_net() -> Net:
    """A net whose filters lie in another memory order than their shape's, as all convolutions in training."""
    torch.manual_seed(0)
    net = Net(torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(5, 2), 5)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def take_steps(net: Net, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()


def as_saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state as a checkpoint gives it back: every tensor in plain order."""
    state = optimizer.state_dict()
    tensors = {
        index: {name: value.clone().contiguous() for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    return {"state": tensors, "param_groups": state["param_groups"]}


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_a_fused_optimizer_computes_what_the_plain_one_does_also_after_a_checkpoint(kind: Any) -> None:
    spec = replace(BASE.optim, optimizer=kind, momentum=0.9, weight_decay=0.1)
    net, reference = small_net(), small_net()
    freeze(net, PHASE)
    optimizer = make_optimizer(net, PHASE, spec)
    assert all(group["fused"] for group in optimizer.param_groups)
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    momentum = {"momentum": 0.9} if kind == "sgd" else {}
    plain = kinds[kind](list(reference.parameters()), lr=1e-2, weight_decay=0.1, **momentum)
    take_steps(net, optimizer, range(3))
    resumed = make_optimizer(net, PHASE, spec)
    load_optimizer(resumed, as_saved(optimizer))
    take_steps(net, resumed, range(3, 6))
    take_steps(reference, plain, range(6))
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_run_of_a_version_without_fused_kernels_goes_on_without() -> None:
    net = small_net()
    freeze(net, PHASE)
    optimizer = make_optimizer(net, PHASE, BASE.optim)
    take_steps(net, optimizer, range(1))
    state = as_saved(optimizer)
    for group in state["param_groups"]:
        group["fused"] = None
    resumed = make_optimizer(net, PHASE, BASE.optim)
    load_optimizer(resumed, state)
    assert {group["fused"] for group in resumed.param_groups} == {None}
