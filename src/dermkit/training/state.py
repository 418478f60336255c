"""What one training works on (job), reports to (hooks), and where it stands (state, checkpoints, log.csv).

Shapes: N images of the data set, B of a batch, S x S pixels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from dermkit.errors import UntrustedError
from dermkit.files import JsonFile, write_rows
from dermkit.images.preprocess import PixelArray, Preprocessing
from dermkit.models.net import Net, set_train_mode
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe
from dermkit.runs.layout import LOG_FILE
from dermkit.training.averaging import WeightAverage, load_tensors
from dermkit.training.checkpoint import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    MID_EPOCH_CHECKPOINT,
    OLD_MID_EPOCH_CHECKPOINT,
    TrainingProgress,
    load_checkpoint,
    save_checkpoint,
)
from dermkit.training.distributed.process_group import ProcessGroup
from dermkit.training.metadata_batches import EncodedMetadata

LOG_COLUMNS = (
    "epoch", "phase", "lr", "seconds", "train_seconds", "images_per_second", "train_loss", "train_accuracy",
    "val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc_macro",
)  # fmt: skip

MICRO_BATCH = JsonFile("micro_batch.json", 1)
"""Beside the checkpoints: the micro-batch size that fits this machine's memory, once it ran out."""
_OLD_MICRO_BATCH = JsonFile("passes.json", 1)
"""What micro_batch.json was called; it is still read."""


@dataclass(frozen=True)
class TrainingJob:
    """What a run trains on.

    pixels: (N, S, S, 3) uint8, an array or a cache. pixel_keys: (N, 32) uint8, a key of each row by its content.
    labels: (N,) int64, 0 to n_classes - 1. groups: (N,) int64, the same number for images that must not be divided;
    None: each image is its own. train_rows, validation_rows: rows of `pixels`, int64. workers: threads that prepare
    batches; 0 prepares them between steps. teacher: (N, K) probabilities that the net learns, nan for images that are
    not trained on; None without a teacher. metadata: the second input of a net that takes one.
    """

    recipe: Recipe
    seed: int
    pixels: PixelArray
    pixel_keys: NDArray[np.uint8]
    labels: NDArray[np.int64]
    image_ids: tuple[str, ...]
    train_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    n_classes: int
    preprocessing: Preprocessing
    cache_folder: Path
    workers: int = 0
    groups: NDArray[np.int64] | None = None
    teacher: NDArray[np.float64] | None = None
    metadata: EncodedMetadata | None = None


@dataclass
class TrainingHooks:
    """What the caller of a training hears, and how it ends one.

    progress: lines, and a step per batch. on_epoch: an epoch's row of the log, once it is saved, and the number of
    epochs. should_stop: asked after every batch; true ends the run with a checkpoint. on_first_batch: the run's first
    batch as the net sees it, (B, 3, S, S) float32 normalised, and its labels, (B,) int64.
    """

    progress: Progress = field(default_factory=Progress)
    on_epoch: Callable[[dict[str, Any], int], None] = lambda _row, _epochs: None
    should_stop: Callable[[], bool] = lambda: False
    on_first_batch: Callable[[torch.Tensor, NDArray[np.int64]], None] = lambda _batch, _labels: None


@dataclass
class TrainingState:
    """The state of one run: what it needs, what is done, and when a checkpoint was last written (monotonic seconds).

    average: of the weights of the running phase, None where the recipe averages none; the net then holds the raw ones.
    """

    job: TrainingJob
    folder: Path
    net: Net
    fabric: Fabric
    process_group: ProcessGroup
    hooks: TrainingHooks
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    last_save_time: float = field(default_factory=time.monotonic)
    average: WeightAverage | None = None

    @property
    def last_checkpoint(self) -> Path:
        """Return where the last checkpoint lies."""
        return self.folder / LAST_CHECKPOINT

    @property
    def saves_backbone(self) -> bool:
        """Return whether checkpoints hold the backbone: one that is never trained is rebuilt from its weights file."""
        return any(phase.train_backbone != "none" for phase in self.job.recipe.phases)

    def save(self, name: str = LAST_CHECKPOINT) -> None:
        """Write a checkpoint, on rank 0."""
        if self.process_group.rank == 0:
            save_checkpoint(
                self.folder / name,
                self.net,
                self.progress,
                with_backbone=self.saves_backbone,
                averaged=self.average.tensors if self.average else None,
            )
            if name == LAST_CHECKPOINT:  # the epoch is done or begins anew: its mid-epoch checkpoint is stale
                for stale_name in (MID_EPOCH_CHECKPOINT, OLD_MID_EPOCH_CHECKPOINT):
                    (self.folder / stale_name).unlink(missing_ok=True)
        self.last_save_time = time.monotonic()


def start_average(state: TrainingState) -> None:
    """Begin the average of a phase's weights, or go on with that of the loaded checkpoint; call it after `freeze`."""
    set_train_mode(state.net, state.job.recipe.phases[state.progress.phase])
    decay, raw_weights = state.job.recipe.optim.ema_decay, state.progress.raw_weights
    state.average = WeightAverage(state.net, decay) if decay else None
    load_tensors(state.net, raw_weights)
    state.progress.raw_weights = {}


def finish_average(state: TrainingState) -> None:
    """Let the net hold the average of the phase that ends, if it has one."""
    if state.average is not None:
        state.average.write_to(state.net)
        state.average = None


def load_last_checkpoint(state: TrainingState) -> None:
    """Load the last checkpoint, if there is one, and the micro-batch size of this machine."""
    state.progress = load_checkpoint(state.last_checkpoint, state.net) or TrainingProgress()
    state.progress.micro_batch_size = _read_micro_batch_size(state.folder)


def return_to_last_checkpoint(state: TrainingState) -> None:
    """Load the last checkpoint within its phase, so that the net holds the raw weights again."""
    load_last_checkpoint(state)
    start_average(state)


def _read_micro_batch_size(folder: Path) -> int:
    """Return the micro-batch size (0 = the whole batch), from today's file or that of older versions."""
    for file, key in ((MICRO_BATCH, "size"), (_OLD_MICRO_BATCH, "micro")):
        if file.exists(folder):
            return int(file.read(folder)[key])
    return 0


def load_best_checkpoint(state: TrainingState) -> None:
    """Load the best epoch's weights, if the recipe's `keep` is "best"."""
    state.process_group.barrier()  # rank 0 has written the file that every rank reads
    path = state.folder / BEST_CHECKPOINT
    if state.job.recipe.keep == "best" and load_checkpoint(path, state.net) is None:
        raise UntrustedError(
            f"{path}: is gone", outcome=str(state.last_checkpoint), remedy="delete the run folder, train anew"
        )


def train_on_first_rank(state: TrainingState, train_and_save: Callable[[], None]) -> None:
    """Train a phase of one epoch on rank 0, which saves it, and load it on the others, unless a checkpoint holds it."""
    if state.progress.phase_epoch:
        return
    train_and_save()
    state.process_group.barrier()
    if not state.process_group.is_first:
        load_last_checkpoint(state)
    write_log(state)
    state.hooks.on_epoch(state.progress.log_rows[-1], 1)


def write_log(state: TrainingState) -> None:
    """Write log.csv anew, a row per epoch; an undefined value (nan) is an empty field."""
    rows = [["" if value != value else value for value in row.values()] for row in state.progress.log_rows]
    if state.process_group.rank == 0:
        write_rows(state.folder.parent / LOG_FILE, LOG_COLUMNS, rows)
