"""One training step: a batch, sharded over all ranks, forward, backward, and one update of the weights.

The batch size is the recipe's, however many ranks share it. The loss is the mean over the whole batch (weighted by
class weights), so every rank divides by the whole batch's weight, not by that of its own shard.

Shapes: B samples of the batch, M of a micro-batch, K classes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from dermkit.models.precision import autocast
from dermkit.recipes.training_specs import ComputeSpec
from dermkit.training.distributed.process_group import ProcessGroup
from dermkit.training.learning_rates import LearningRates
from dermkit.training.loss import TrainingLoss
from dermkit.training.samples import BatchSource

_Indices = NDArray[np.int64]
_MicroBatch = tuple[tuple[torch.Tensor, ...], torch.Tensor]


class NotFiniteError(Exception):
    """A value is not finite. quantity: which one; batch_index: the batch after which it was seen, from 0; rows: its
    samples.
    """

    def __init__(self, batch_index: int, rows: _Indices, quantity: str = "the loss") -> None:
        super().__init__(quantity)
        self.batch_index = batch_index
        self.rows = rows
        self.quantity = quantity


@dataclass
class TrainStep:
    """Takes the steps of a phase, and sums an epoch's loss and correct answers.

    micro_batch_size: samples per forward and backward pass; 0 = this rank's whole shard. min_pass_size: the fewest
    samples of a pass, 2 where batch norm needs them. loss_sum, n_correct: over the samples of the running epoch on this
    rank.
    """

    module: Any
    optimizer: Any
    rates: LearningRates
    fabric: Fabric
    process_group: ProcessGroup
    source: BatchSource
    compute: ComputeSpec
    loss: TrainingLoss
    n_classes: int
    seed: int
    micro_batch_size: int
    min_pass_size: int = 1
    loss_sum: float = 0.0
    n_correct: float = 0.0
    _pending: tuple[int, _Indices, torch.Tensor, torch.Tensor] | None = field(default=None, init=False)

    def prepare(self, rows: _Indices, *, epoch: int) -> list[_MicroBatch]:
        """Return this rank's inputs and targets of a batch, in even micro-batches of at most `micro_batch_size`.

        One that would have fewer than `min_pass_size` samples is not cut off, so that another is larger by one.
        rows: (B,) samples of the whole batch. A micro-batch may be empty, where there are more ranks than samples.
        """
        shard_size = -(-len(rows) // self.process_group.size)  # of the largest shard: divided, rounded up
        # Every rank takes the same number of passes: synchronised batch norm is collective, and would wait for ever.
        n_passes = -(-shard_size // (self.micro_batch_size or shard_size))
        n_passes = max(1, min(n_passes, shard_size // self.min_pass_size))
        row_chunks = np.array_split(self.process_group.shard(rows), n_passes)
        return [
            (
                self.source.inputs(chunk, epoch=epoch, seed=self.seed),
                self.source.targets(chunk, epoch=epoch, seed=self.seed, n_classes=self.n_classes),
            )
            for chunk in row_chunks
        ]

    def __call__(self, batch_index: int, rows: _Indices, micro_batches: list[_MicroBatch], *, epoch: int) -> None:
        """Take one step: (B,) rows, and their micro-batches from `prepare`.

        Raises `NotFiniteError` where the loss of the step before was not finite: it is read one step late, because
        reading it at once would make the CPU wait for the GPU.
        """
        _seed_dropout(_step_seed(self.seed, epoch, batch_index, self.process_group.rank), self.fabric.device)
        weight = self._weight(rows, epoch)
        loss_total = torch.zeros((), device=self.fabric.device)
        n_correct = torch.zeros((), device=self.fabric.device)
        self.optimizer.zero_grad()
        for k, (inputs, targets) in enumerate(micro_batches):
            # Gradients are summed over ranks once, in the last pass of the step.
            with self.fabric.no_backward_sync(self.module, enabled=k + 1 < len(micro_batches)):
                loss, chunk_correct = self._forward(inputs, targets)
                # DistributedDataParallel averages gradients over ranks; times their number, that is the sum.
                self.fabric.backward(loss * (self.process_group.size / weight))
            loss_total += loss.detach() / weight
            n_correct += chunk_correct
        self.flush()
        self.optimizer.step()
        self._pending = (batch_index, rows, loss_total, n_correct)

    def flush(self) -> None:
        """Add the last step's loss and correct answers to the epoch's sums.

        Raises `NotFiniteError` on every rank where the loss of any rank is not finite.
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
        """Return the epoch's summed loss and number of correct answers over all ranks.

        Rank 0 goes on with these sums and the others with 0, so that the next call does not count them twice.
        """
        sums = self.process_group.sum(torch.tensor([self.loss_sum, self.n_correct], dtype=torch.float64))
        self.loss_sum, self.n_correct = (
            (float(sums[0]), float(sums[1])) if self.process_group.rank == 0 else (0.0, 0.0)
        )
        return float(sums[0]), float(sums[1])

    def _forward(
        self, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(self.compute, self.fabric.device):
            logits = self.module(*inputs)
        logits = logits.float()  # the loss is computed in float32 also under bfloat16
        loss = self.loss.sum(logits, targets)
        labels = targets if targets.ndim == 1 else targets[:, : self.n_classes].argmax(1)
        return loss, (logits.detach().argmax(1) == labels).sum()

    def _weight(self, rows: _Indices, epoch: int) -> float:
        """Return the divisor of the whole batch's summed loss: its size, or the sum of its samples' class weights."""
        if self.loss.class_weights is None:
            return float(len(rows))
        targets = self.source.targets(rows, epoch=epoch, seed=self.seed, n_classes=self.n_classes)
        return self.loss.total_weight(targets)


def _step_seed(seed: int, epoch: int, batch_index: int, rank: int) -> int:
    """Return the seed of a step's dropout: one per (step, rank), so that a resumed run draws the same."""
    return int(np.random.SeedSequence([seed, epoch, batch_index, rank]).generate_state(1, np.uint64)[0] >> 1)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of this device alone.

    `torch.manual_seed` seeds those of every kind of device, which took half of a step's time.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def train_batches(order: _Indices, size: int) -> list[_Indices]:
    """Cut an order (N,) into batches of `size`; a last batch of one sample joins its neighbour.

    Batch norm cannot train on one sample.
    """
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] == 1 and size > 1:
        cuts.pop()
    return list(np.split(order, cuts))
