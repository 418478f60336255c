"""The optimizer of a phase, its learning rates, and the weights of the classes."""

import numpy as np
import torch
from numpy.typing import NDArray

from dermkit.models.net import Net, parameter_groups
from dermkit.recipes.schema import OptimSpec, Phase


def make_optimizer(net: Net, phase: Phase, spec: OptimSpec) -> torch.optim.Optimizer:
    """Return the optimizer of what learns in a phase: the head's group first, then the backbone's, if any."""
    groups = parameter_groups(net, phase)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    optimizer_class = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return optimizer_class(groups, weight_decay=spec.weight_decay)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, phase: Phase, spec: OptimSpec, *, epoch: int, scale: float
) -> float:
    """Set the learning rates of an epoch (0 = the phase's first), times `scale`; returns the head's."""
    factor = 0.5 * (1 + float(np.cos(np.pi * epoch / phase.epochs))) if spec.schedule == "cosine" else 1.0
    for group, base_lr in zip(optimizer.param_groups, (phase.head_lr, phase.backbone_lr), strict=False):
        group["lr"] = base_lr * factor * scale
    return phase.head_lr * factor * scale


def class_weights(
    labels: NDArray[np.int64], n_classes: int, spec: OptimSpec, device: torch.device
) -> torch.Tensor | None:
    """Return (n_classes,) float32 weights of the loss, inversely to how often a class comes; None for none."""
    if spec.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=n_classes)
    weights = len(labels) / (n_classes * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=device)
