"""The optimizer of a phase, and its learning rates."""

import numpy as np
import torch

from dermkit.models.net import Net, parameter_groups
from dermkit.recipes.training_specs import OptimSpec, Phase


def make_optimizer(net: Net, phase: Phase, spec: OptimSpec) -> torch.optim.Optimizer:
    """Return the optimizer of a phase's trainable parameters: the head's group, then the backbone's, if it trains."""
    groups = parameter_groups(net, phase)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    optimizer_class = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return optimizer_class(groups, weight_decay=spec.weight_decay)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, phase: Phase, spec: OptimSpec, *, epoch: int, scale: float
) -> float:
    """Set the learning rates of an epoch (0 = the phase's first), times `scale`; returns the head's.

    cosine: Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5 with a minimum of 0 and no restart, one rate an
    epoch. The closed form and not torch's scheduler, which steps recursively and gives other last bits.
    """
    factor = 0.5 * (1 + float(np.cos(np.pi * epoch / phase.epochs))) if spec.schedule == "cosine" else 1.0
    for group, base_lr in zip(optimizer.param_groups, (phase.head_lr, phase.backbone_lr), strict=False):
        group["lr"] = base_lr * factor * scale
    return phase.head_lr * factor * scale
