"""What a run is, and where it stands: its job, what its caller wants to hear, its checkpoints and its log."""

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
from dermkit.files import read_json, write_rows
from dermkit.images.preprocess import ImageRows, Preprocessing
from dermkit.models.net import Net
from dermkit.recipes.schema import Recipe
from dermkit.training.checkpoint import BEST, INSIDE, LAST, Progress, load_checkpoint, save_checkpoint
from dermkit.training.distributed.process_group import Ranks

LOG_COLUMNS = (
    "epoch", "phase", "lr", "seconds", "train_seconds", "images_per_second", "train_loss", "train_accuracy",
    "val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc_macro",
)  # fmt: skip

PASSES = "passes.json"
"""Beside the checkpoints: how many samples one pass may hold on this machine, once memory ran out."""


@dataclass(frozen=True)
class Job:
    """What a run trains on.

    pixels: (N, S, S, 3) uint8, an array or a cache; row_keys: (N, 32) uint8, what each row shows, by content;
    labels: (N,) int64; train, validation: row numbers.
    """

    recipe: Recipe
    seed: int
    pixels: ImageRows
    row_keys: NDArray[np.uint8]
    labels: NDArray[np.int64]
    image_ids: tuple[str, ...]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    n_classes: int
    preprocessing: Preprocessing
    cache: Path
    workers: int = 0


@dataclass
class Hooks:
    """What the caller wants to hear; `stop` is asked after every batch and ends the run with a checkpoint."""

    epoch: Callable[[dict[str, Any], int], None] = lambda _row, _epochs: None
    step: Callable[[str, int, int], None] = lambda _what, _done, _total: None
    say: Callable[[str], None] = lambda _line: None
    stop: Callable[[], bool] = lambda: False
    first_batch: Callable[[torch.Tensor, NDArray[np.int64]], None] = lambda _batch, _labels: None


@dataclass
class Run:
    """The state of one run between epochs."""

    job: Job
    folder: Path
    net: Net
    fabric: Fabric
    ranks: Ranks
    hooks: Hooks
    progress: Progress = field(default_factory=Progress)
    saved: float = field(default_factory=time.monotonic)

    @property
    def last(self) -> Path:
        """Return where the last checkpoint lies."""
        return self.folder / LAST

    @property
    def whole(self) -> bool:
        """Tell whether checkpoints hold the backbone: one that is never trained is rebuilt from its weights."""
        return any(phase.train_backbone != "none" for phase in self.job.recipe.phases)

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint, on rank 0."""
        if self.ranks.rank == 0:
            save_checkpoint(self.folder / name, self.net, self.progress, whole=self.whole)
            if name == LAST:
                (self.folder / INSIDE).unlink(missing_ok=True)
        self.saved = time.monotonic()


def load_last(run: Run) -> None:
    """Load the last checkpoint, if there is one, and how much one pass may hold on this machine."""
    run.progress = load_checkpoint(run.last, run.net) or Progress()
    path = run.folder / PASSES
    run.progress.micro = int(read_json(path, format=1)["micro"]) if path.exists() else 0


def load_best(run: Run) -> None:
    """Load the best epoch's weights, if the recipe keeps those."""
    run.ranks.barrier()  # rank 0 has written what all of them read
    path = run.folder / BEST
    if run.job.recipe.keep == "best" and load_checkpoint(path, run.net) is None:
        raise UntrustedError(f"{path}: is gone", kept=str(run.last), remedy="delete the run folder, train anew")


def write_log(run: Run) -> None:
    """Write log.csv whole, a row per epoch; an undefined value is empty."""
    rows = [["" if value != value else value for value in row.values()] for row in run.progress.rows]
    if run.ranks.rank == 0:
        write_rows(run.folder.parent / "log.csv", LOG_COLUMNS, rows)
