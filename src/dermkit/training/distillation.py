"""Targets of distillation (Hinton 2015): the labels' shares, and beside them the teacher's softened probabilities.

The teacher's probabilities are those of the original image, whatever augmentation shows the net; where two images are
mixed, theirs are mixed by the shares of their labels, after softening.

Shapes: B samples of a batch, N rows of the pixel array, K classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dermkit.training.augment.mixup import MixPlan


def soften(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float32]:
    """Return softmax(log p / temperature), (N, K) float32; a probability of 0 stays 0, a row of nan stays nan."""
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def with_teacher(
    targets: Tensor,
    teacher: NDArray[np.float32] | None,
    rows: NDArray[np.int64],
    partner_rows: NDArray[np.int64],
    mix_plan: MixPlan | None,
    *,
    n_classes: int,
    size: int,
) -> Tensor:
    """Return targets (B, 2 K): shares of labels, then the teacher's softened probabilities; without one as they are.

    targets: (B,) labels or (B, K) shares. teacher: (N, K), softened. rows, partner_rows: (B,) of the pixel array; the
    second of what the samples are mixed with. size: of the images, in pixels.
    """
    if teacher is None:
        return targets
    soft = teacher[rows]
    if mix_plan is not None:
        own_weights = mix_plan.label_weights(size)[:, None]
        soft = (own_weights * soft + (1 - own_weights) * teacher[partner_rows]).astype(np.float32)
    shares = F.one_hot(targets, n_classes).float() if targets.ndim == 1 else targets
    return torch.cat([shares, torch.from_numpy(soft).to(targets.device)], dim=1)
