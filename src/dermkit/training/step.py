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
from dermkit.training.distributed.process_group import ProcessGroup
from dermkit.training.samples import BatchSource

_Indices = NDArray[np.int64]
_MicroBatch = tuple[torch.Tensor, torch.Tensor]


class NotFiniteError(Exception):
    """Something that is not a number: the loss of a batch, or what it left behind. number: of the batch, from 0."""

    def __init__(self, batch_index: int, rows: _Indices, quantity: str = "the loss") -> None:
        super().__init__(quantity)
        self.batch_index = batch_index
        self.rows = rows
        self.quantity = quantity


@dataclass
class TrainStep:
    """What a step needs. micro: samples that one pass may hold (0 = all of this device's share)."""

    module: Any
    optimizer: Any
    fabric: Fabric
    process_group: ProcessGroup
    source: BatchSource
    compute: ComputeSpec
    class_weights: torch.Tensor | None
    label_smoothing: float
    n_classes: int
    seed: int
    micro_batch_size: int
    loss_sum: float = 0.0
    n_correct: float = 0.0
    _pending: tuple[int, _Indices, torch.Tensor, torch.Tensor] | None = field(default=None, init=False)

    def prepare(self, rows: _Indices, *, epoch: int) -> list[_MicroBatch]:
        """Return this device's inputs and targets of a batch, in even passes of at most `micro_batch_size`;
        some may be empty.
        """
        shard_size = -(-len(rows) // self.process_group.size)
        # As many passes on every device, or their batch norms would wait for each other for ever.
        row_chunks = np.array_split(
            self.process_group.shard(rows), -(-shard_size // (self.micro_batch_size or shard_size))
        )
        return [
            (
                self.source.batch(chunk, epoch=epoch, seed=self.seed),
                self.source.targets(chunk, epoch=epoch, seed=self.seed, n_classes=self.n_classes),
            )
            for chunk in row_chunks
        ]

    def __call__(self, batch_index: int, rows: _Indices, micro_batches: list[_MicroBatch], *, epoch: int) -> None:
        """Take one step. Raises `NotFiniteError` where the loss of the step before was no number.

        Its value is asked for only now, so that a GPU need not wait for it.
        """
        _seed_dropout(_step_seed(self.seed, epoch, batch_index, self.process_group.rank), self.fabric.device)
        weight = self._weight(rows, epoch)
        loss_total = torch.zeros((), device=self.fabric.device)
        n_correct = torch.zeros((), device=self.fabric.device)
        self.optimizer.zero_grad()
        for k, (inputs, targets) in enumerate(micro_batches):
            with self.fabric.no_backward_sync(self.module, enabled=k + 1 < len(micro_batches)):
                loss, chunk_correct = self._forward(inputs, targets)
                # Devices average their gradients, so each one's loss is scaled by how many they are.
                self.fabric.backward(loss * (self.process_group.size / weight))
            loss_total += loss.detach() / weight
            n_correct += chunk_correct
        self.flush()
        self.optimizer.step()
        self._pending = (batch_index, rows, loss_total, n_correct)

    def flush(self) -> None:
        """Add the last step's figures to the epoch's; raises `NotFiniteError` where its loss is none, on
        every device.
        """
        if self._pending is None:
            return
        batch_index, rows, loss_total, n_correct = self._pending
        self._pending = None
        value = float(loss_total)
        if self.process_group.any(not np.isfinite(value)):
            raise NotFiniteError(batch_index, rows)
        self.loss_sum += value * len(rows)
        self.n_correct += float(n_correct)

    def gather_sums(self) -> tuple[float, float]:
        """Return the epoch's summed loss and hits over all devices; rank 0 alone goes on with them."""
        sums = self.process_group.sum(torch.tensor([self.loss_sum, self.n_correct], dtype=torch.float64))
        self.loss_sum, self.n_correct = (
            (float(sums[0]), float(sums[1])) if self.process_group.rank == 0 else (0.0, 0.0)
        )
        return float(sums[0]), float(sums[1])

    def _forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(self.compute, self.fabric.device):
            logits = self.module(inputs)
        logits = logits.float()
        loss = F.cross_entropy(
            logits, targets, weight=self.class_weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        return loss, (logits.detach().argmax(1) == labels).sum()

    def _weight(self, rows: _Indices, epoch: int) -> float:
        """Return what the whole batch's loss is divided by: its size, or the sum of its classes' weights."""
        if self.class_weights is None:
            return float(len(rows))
        targets = self.source.targets(rows, epoch=epoch, seed=self.seed, n_classes=self.n_classes)
        if targets.ndim == 1:
            return float(self.class_weights[targets].double().sum())
        return float((targets.double() @ self.class_weights.double()).sum())


def _step_seed(seed: int, epoch: int, batch_index: int, rank: int) -> int:
    """Dropout draws from torch's generator: each step has its own, so that a step can be taken again alone."""
    return int(np.random.SeedSequence([seed, epoch, batch_index, rank]).generate_state(1, np.uint64)[0] >> 1)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what this device draws from: `torch.manual_seed` seeds every kind there is, which takes half of a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def train_batches(order: _Indices, size: int) -> list[_Indices]:
    """Cut an order into batches; a last batch of one joins its neighbour, since batch norm cannot train on one."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] == 1 and size > 1:
        cuts.pop()
    return list(np.split(order, cuts))
