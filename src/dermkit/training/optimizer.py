"""The optimizer of a phase."""

from typing import Any

import torch

from dermkit.models.net import Net, parameter_groups
from dermkit.recipes.training_specs import OptimSpec, Phase


def make_optimizer(net: Net, phase: Phase, spec: OptimSpec) -> torch.optim.Optimizer:
    """Return the optimizer of a phase's trainable parameters: the head's group, then the backbone's, if it trains.

    Fused: one kernel for each weight in place of some ten, two to three times as fast on a CPU
    (benchmarks/speed.md). Its last bits are others than those of torch's plain loop.
    """
    groups = parameter_groups(net, phase)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True)
    optimizer_class = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return optimizer_class(groups, weight_decay=spec.weight_decay, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, each moment in the memory order of its weight.

    A checkpoint holds tensors in plain order. torch 2.13's fused kernels for CPUs go through weight, gradient and
    moments by memory address: moments in another order than the weight's would belong to other weights, unnoticed.
    Checkpoints of versions without fused kernels say so, and their runs go on without.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)
