"""The optimizer of a phase."""

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
