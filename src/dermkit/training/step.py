"""One training step: the samples of a batch, over all devices, through the net, back, and into the weights.

The batch is the recipe's, whatever it is divided over. Its loss is the mean over the whole batch (weighted where
classes are), so every device divides by the batch's weight, not by its own share's.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray

from dermkit.models.precision import autocast
from dermkit.recipes.schema import ComputeSpec
from dermkit.training.distributed.process_group import Ranks
from dermkit.training.samples import Source

Rows = NDArray[np.int64]
Inputs = tuple[torch.Tensor, torch.Tensor]


class NotFinite(Exception):
    """Something that is not a number: the loss of a batch, or what it left behind. number: of the batch, from 0."""

    def __init__(self, number: int, rows: Rows, what: str = "the loss") -> None:
        super().__init__(what)
        self.number = number
        self.rows = rows
        self.what = what


@dataclass
class Stepper:
    """What a step needs. micro: samples that one pass may hold (0 = all of this device's share)."""

    module: Any
    optimizer: Any
    fabric: Fabric
    ranks: Ranks
    source: Source
    compute: ComputeSpec
    weights: torch.Tensor | None
    label_smoothing: float
    n_classes: int
    seed: int
    micro: int
    loss: float = 0.0
    hits: float = 0.0
    _due: tuple[int, Rows, torch.Tensor, torch.Tensor] | None = field(default=None, init=False)

    def prepare(self, rows: Rows, *, epoch: int) -> list[Inputs]:
        """Return this device's inputs and targets of a batch, in even passes of at most `micro`; some may be empty."""
        largest = -(-len(rows) // self.ranks.size)
        # As many passes on every device, or their batch norms would wait for each other for ever.
        parts = np.array_split(self.ranks.share(rows), -(-largest // (self.micro or largest)))
        return [
            (
                self.source.batch(part, epoch=epoch, seed=self.seed),
                self.source.targets(part, epoch=epoch, seed=self.seed, n_classes=self.n_classes),
            )
            for part in parts
        ]

    def take(self, number: int, rows: Rows, passes: list[Inputs], *, epoch: int) -> None:
        """Take one step. Raises `NotFinite` where the loss of the step before was no number.

        Its value is asked for only now, so that a GPU need not wait for it.
        """
        _seed_dropout(_step_seed(self.seed, epoch, number, self.ranks.rank), self.fabric.device)
        weight = self._weight(rows, epoch)
        total = torch.zeros((), device=self.fabric.device)
        hits = torch.zeros((), device=self.fabric.device)
        self.optimizer.zero_grad()
        for k, (inputs, targets) in enumerate(passes):
            with self.fabric.no_backward_sync(self.module, enabled=k + 1 < len(passes)):
                loss, right = self._forward(inputs, targets)
                # Devices average their gradients, so each one's loss is scaled by how many they are.
                self.fabric.backward(loss * (self.ranks.size / weight))
            total += loss.detach() / weight
            hits += right
        self.flush()
        self.optimizer.step()
        self._due = (number, rows, total, hits)

    def flush(self) -> None:
        """Add the last step's figures to the epoch's; raises `NotFinite` where its loss is none, on every device."""
        if self._due is None:
            return
        number, rows, total, hits = self._due
        self._due = None
        value = float(total)
        if self.ranks.any(not np.isfinite(value)):
            raise NotFinite(number, rows)
        self.loss += value * len(rows)
        self.hits += float(hits)

    def gathered(self) -> tuple[float, float]:
        """Return the epoch's summed loss and hits over all devices; rank 0 alone goes on with them."""
        sums = self.ranks.sum(torch.tensor([self.loss, self.hits], dtype=torch.float64))
        self.loss, self.hits = (float(sums[0]), float(sums[1])) if self.ranks.rank == 0 else (0.0, 0.0)
        return float(sums[0]), float(sums[1])

    def _forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(self.compute, self.fabric.device):
            logits = self.module(inputs)
        logits = logits.float()
        loss = F.cross_entropy(
            logits, targets, weight=self.weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        return loss, (logits.detach().argmax(1) == labels).sum()

    def _weight(self, rows: Rows, epoch: int) -> float:
        """Return what the whole batch's loss is divided by: its size, or the sum of its classes' weights."""
        if self.weights is None:
            return float(len(rows))
        targets = self.source.targets(rows, epoch=epoch, seed=self.seed, n_classes=self.n_classes)
        if targets.ndim == 1:
            return float(self.weights[targets].double().sum())
        return float((targets.double() @ self.weights.double()).sum())


def _step_seed(seed: int, epoch: int, number: int, rank: int) -> int:
    """Dropout draws from torch's generator: each step has its own, so that a step can be taken again alone."""
    return int(np.random.SeedSequence([seed, epoch, number, rank]).generate_state(1, np.uint64)[0] >> 1)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what this device draws from: `torch.manual_seed` seeds every kind there is, which takes half of a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def batches(order: Rows, size: int) -> list[Rows]:
    """Cut an order into batches; a last batch of one joins its neighbour, since batch norm cannot train on one."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] == 1 and size > 1:
        cuts.pop()
    return list(np.split(order, cuts))
