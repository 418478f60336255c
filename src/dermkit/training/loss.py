"""The loss of a training batch: the cross-entropy, weighted by class, focal, or of adjusted logits, as the recipe says.

Labels are of one class, or shares of two where images are mixed. With a teacher, the divergence from its softened
probabilities is a part of the loss. Validation and test use none of this: their loss is
the plain cross-entropy.

Shapes: B samples of a batch, N of an epoch, K classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dermkit.recipes.training_specs import DistilSpec, OptimSpec
from dermkit.training.augment.batch import class_shares


@dataclass(frozen=True)
class TrainingLoss:
    """Logits and targets to one number.

    class_weights: (K,) float32, None for none. logit_offsets: (K,) float32 that are added to the logits, None for none.
    distil: how much the teacher counts; targets are then (B, 2 K), as `distillation.with_teacher` makes them.
    """

    class_weights: Tensor | None
    label_smoothing: float
    focal_gamma: float = 0.0
    logit_offsets: Tensor | None = None
    distil: DistilSpec | None = None

    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss of B samples, a scalar.

        logits: (B, K) float32. targets: (B,) int64 classes, or (B, K) float32 shares that sum to 1. With a teacher a
        sample's loss is (1 - weight) times that of its label plus weight times temperature squared times the
        Kullback-Leibler divergence of the softened net from the softened teacher (Hinton 2015), all times its class
        weight; smoothing and the focal factor are of the label's part alone.
        """
        if self.distil is None:
            return self._label_loss(logits, targets)
        n_classes = logits.shape[1]
        shares, teacher = targets[:, :n_classes], targets[:, n_classes:]
        softened = F.log_softmax(logits / self.distil.temperature, dim=1)
        divergence = F.kl_div(softened, teacher, reduction="none").sum(1) * self.distil.temperature**2
        if self.class_weights is not None:
            divergence = divergence * (shares @ self.class_weights)
        weight = self.distil.weight
        return (1 - weight) * self._label_loss(logits, shares) + weight * divergence.sum()

    def _label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.logit_offsets is not None:
            logits = logits + self.logit_offsets
        reduction = "none" if self.focal_gamma else "sum"
        loss = F.cross_entropy(
            logits, targets, weight=self.class_weights, reduction=reduction, label_smoothing=self.label_smoothing
        )
        return (loss * focal_factor(logits, targets, self.focal_gamma)).sum() if self.focal_gamma else loss

    def total_weight(self, targets: Tensor) -> float:
        """Return the divisor that makes a summed loss a mean: the number of samples, or the sum of their class weights.

        That is torch's rule for `cross_entropy(weight=..., reduction="mean")`; a mixed sample counts by its shares. The
        focal factor is no weight in this sense (Lin 2017 does not divide by it either): easy images count less.
        """
        if self.class_weights is None:
            return float(len(targets))
        if targets.ndim == 1:
            return float(self.class_weights[targets].double().sum())
        shares = targets[:, : len(self.class_weights)]
        return float((shares.double() @ self.class_weights.double()).sum())


def focal_factor(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return (1 - p) ** gamma of each sample, (B,): Lin and others 2017 (arXiv:1708.02002), for several classes.

    p is the probability of the sample's label; of a mixed sample, of its two labels by their shares. Smoothing changes
    the cross-entropy that the factor multiplies and not p: a net that is sure and right counts as easy. Gradients go
    through the factor too, as in the paper.
    """
    shares = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
    # The sum of the other probabilities, and not 1 - p, which has no digits left where p is near 1. Below 1 gamma's
    # power has an infinite slope at 0, which the limit keeps from becoming nan.
    others = ((1.0 - shares) * logits.softmax(1)).sum(1)
    return others.clamp_min(torch.finfo(others.dtype).tiny).pow(gamma)


def make_loss(
    labels: NDArray[np.int64],
    n_classes: int,
    spec: OptimSpec,
    device: torch.device,
    distil: DistilSpec | None = None,
) -> TrainingLoss:
    """Return the recipe's loss. labels: (N,) int64 of the training samples, copies of small classes included."""
    counts = np.bincount(labels, minlength=n_classes)
    weights, offsets = class_weights(counts, spec), logit_offsets(counts, spec)
    return TrainingLoss(
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device),
        label_smoothing=spec.label_smoothing,
        focal_gamma=spec.focal_gamma,
        logit_offsets=None if offsets is None else torch.tensor(offsets, dtype=torch.float32, device=device),
        distil=distil,
    )


def class_weights(counts: NDArray[np.int64], spec: OptimSpec) -> NDArray[np.float64] | None:
    """Return (K,) weights of the loss: N / (K * images of the class), or the square root of that; None for none.

    counts: (K,) training samples of each class. `balanced` is scikit-learn's, but for a class without training images,
    which a split can produce: it counts as one image here, and is an error there.
    """
    if spec.class_weights == "none":
        return None
    balanced: NDArray[np.float64] = counts.sum() / (len(counts) * np.maximum(counts, 1))
    if spec.class_weights == "square_root":
        balanced = np.sqrt(balanced)
    return balanced


def logit_offsets(counts: NDArray[np.int64], spec: OptimSpec) -> NDArray[np.float64] | None:
    """Return (K,) tau times the logarithm of each class's frequency (Menon 2021, arXiv:2007.07314); None for none.

    The frequencies are those of the samples that an epoch shows, so after oversampling and square-root sampling: only
    then is the net's own output, without the offsets, that of equally frequent classes. Those of the images before it
    would correct twice. A class without training images counts as one image, since its logarithm is not finite.
    """
    if not spec.logit_adjustment:
        return None
    shares = class_shares(np.maximum(counts, 1), spec.sampling)
    offsets: NDArray[np.float64] = spec.logit_adjustment * np.log(shares)
    return offsets
