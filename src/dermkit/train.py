"""One training run, readable top to bottom: an own loop on Lightning Fabric.

Order, augmentation and dropout come from (seed, epoch, image id) alone, so a run that was killed and resumed ends
with the same weights as one left alone (same machine, same thread count). A frozen backbone runs once per view.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray

from dermkit.checkpoint import BEST, LAST, Progress, load_checkpoint, save_checkpoint
from dermkit.data.augment import epoch_order
from dermkit.data.images import Preprocessing
from dermkit.errors import Diverged, Interrupted
from dermkit.files import fingerprint, write_rows
from dermkit.metrics.ranking import auroc
from dermkit.model import Net, freeze, parameter_groups, set_train_mode
from dermkit.recipe import OptimSpec, Phase, Recipe
from dermkit.samples import FeatureSource, PixelSource, Samples, Source

LOG_COLUMNS = (
    "epoch", "phase", "lr", "seconds", "train_loss", "train_accuracy",
    "val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc_macro",
)  # fmt: skip


_SHOWN = 24
"""Images on augmented.png: four rows of six."""


@dataclass(frozen=True)
class Job:
    """What a run trains on. pixels: (N, S, S, 3) uint8; labels: (N,) int64; train, validation: row numbers."""

    recipe: Recipe
    seed: int
    pixels: NDArray[np.uint8]
    pixels_key: str
    labels: NDArray[np.int64]
    image_ids: tuple[str, ...]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    n_classes: int
    preprocessing: Preprocessing
    cache: Path


@dataclass
class Hooks:
    """What the caller wants to hear; `stop` is asked after every batch and ends the run with a checkpoint."""

    epoch: Callable[[dict[str, Any], int], None] = lambda _row, _epochs: None
    step: Callable[[str, int, int], None] = lambda _what, _done, _total: None
    stop: Callable[[], bool] = lambda: False
    first_batch: Callable[[torch.Tensor, NDArray[np.int64]], None] = lambda _batch, _labels: None


@dataclass
class Run:
    """The state of one run between epochs."""

    job: Job
    folder: Path
    net: Net
    fabric: Fabric
    hooks: Hooks
    progress: Progress = field(default_factory=Progress)


def train(job: Job, net: Net, folder: Path, *, device: str = "auto", hooks: Hooks | None = None) -> Progress:
    """Train `net` in place, from the last checkpoint in `folder` if there is one; `net` ends as the recipe keeps it.

    Raises `Interrupted` (a checkpoint was written) and `Diverged` (a loss or weight is not finite).
    """
    fabric = Fabric(accelerator=device, devices=1, precision="32-true")
    run = Run(job, folder, net, fabric, hooks or Hooks())
    net.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run.progress = load_checkpoint(folder / LAST, net) or Progress()
    if run.progress.rows:  # a kill may have come between the checkpoint and the log
        write_log(folder.parent / "log.csv", run.progress)
    for number, phase in enumerate(job.recipe.phases):
        if number >= run.progress.phase:
            _train_phase(run, number, phase)
    _keep(run)
    return run.progress


def _train_phase(run: Run, number: int, phase: Phase) -> None:
    """Run the epochs of one phase that are still to do."""
    job, progress = run.job, run.progress
    if number > progress.phase:
        if job.recipe.keep == "best":
            load_checkpoint(run.folder / BEST, run.net)
        progress.start_phase(number)
        # The border is saved first: a kill after this phase's first best must not start it from that best.
        save_checkpoint(run.folder / LAST, run.net, progress, whole=_whole(job))
    freeze(run.net, phase)
    source = _source(run, phase)
    optimizer = _optimizer(run, phase)
    module, fabric_optimizer = run.fabric.setup(source.module(run.net), optimizer)
    if progress.optimizer:
        optimizer.load_state_dict(progress.optimizer)
    weights = _class_weights(job, source.samples, run.fabric.device)
    if not (run.folder / LAST).exists():
        save_checkpoint(run.folder / LAST, run.net, progress, whole=_whole(job))
    first = 1 + sum(item.epochs for item in job.recipe.phases[:number])
    while progress.phase_epoch < phase.epochs and not progress.out_of_patience(phase.patience):
        epoch = first + progress.phase_epoch
        started = time.perf_counter()
        lr = _schedule(optimizer, run, phase, progress.phase_epoch)
        set_train_mode(run.net, phase)
        train_row = _train_epoch(run, source, module, fabric_optimizer, epoch, weights)
        row = {"epoch": epoch, "phase": number, "lr": lr, **train_row, **_validate(run, source)}
        row["seconds"] = time.perf_counter() - started
        improved = progress.finish_epoch({name: row[name] for name in LOG_COLUMNS}, job.recipe.monitor)
        progress.optimizer = optimizer.state_dict()
        _save_epoch(run, improved)


def _save_epoch(run: Run, improved: bool) -> None:
    """Best first: if this is killed in between, the epoch is trained again to the same bits and saved again."""
    whole = _whole(run.job)
    if improved:
        save_checkpoint(run.folder / BEST, run.net, run.progress, whole=whole)
    save_checkpoint(run.folder / LAST, run.net, run.progress, whole=whole)
    write_log(run.folder.parent / "log.csv", run.progress)
    run.hooks.epoch(run.progress.rows[-1], sum(phase.epochs for phase in run.job.recipe.phases))


def _train_epoch(
    run: Run, source: Source, module: Any, optimizer: Any, epoch: int, weights: torch.Tensor | None
) -> dict[str, float]:
    """Train one epoch; returns the running loss and accuracy, as seen with augmentation and dropout on."""
    job, fabric = run.job, run.fabric
    torch.manual_seed(_epoch_seed(job.seed, epoch))
    order = epoch_order(len(source.samples), seed=job.seed, epoch=epoch)
    batches = _batches(order, job.recipe.optim.batch_size)
    total_loss, hits = 0.0, 0
    for step, rows in enumerate(batches):
        inputs = source.batch(rows, epoch=epoch, seed=job.seed).to(fabric.device)
        labels = torch.from_numpy(source.samples.labels[rows]).to(fabric.device)
        logits = module(inputs)
        loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=job.recipe.optim.label_smoothing)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise _diverged(run, source, rows, epoch, step)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        total_loss += value * len(rows)
        hits += int((logits.detach().argmax(1) == labels).sum())
        run.hooks.step("train", step + 1, len(batches))
        if run.hooks.stop():
            raise _interrupted(run, epoch)
    return {"train_loss": total_loss / len(order), "train_accuracy": hits / len(order)}


def _validate(run: Run, source: Source) -> dict[str, float]:
    """Score the validation images in evaluation mode; the loss is the plain cross-entropy, unweighted."""
    run.net.eval()
    labels = run.job.labels[run.job.validation]
    with torch.inference_mode():
        batches = _batches(np.arange(len(labels)), 64)
        logits = [source.validation_logits(run.net, rows).cpu().double() for rows in batches]
    joined = torch.cat(logits)
    probabilities = torch.softmax(joined, dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    loss = float(F.cross_entropy(joined, torch.from_numpy(labels)))
    return {
        "val_loss": loss,
        "val_accuracy": float((predicted == labels).mean()),
        "val_balanced_accuracy": balanced_accuracy_present(labels, predicted),
        "val_auroc_macro": auroc_macro_present(labels, probabilities),
    }


def balanced_accuracy_present(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return the mean recall over the classes that are there: a guide for training, not a reported figure."""
    return float(np.mean([(predicted[labels == item] == item).mean() for item in np.unique(labels)]))


def auroc_macro_present(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the mean one-vs-rest AUROC over the classes that are there: a guide for training (nan: one class)."""
    values = [auroc(probabilities[:, item], labels == item) for item in np.unique(labels)]
    return float(np.mean(values)) if values else float("nan")


def _source(run: Run, phase: Phase) -> Source:
    job = run.job
    samples = Samples.of(job.image_ids, job.labels, job.train, job.recipe.augment, job.recipe.grow, seed=job.seed)
    pixels = PixelSource(samples, job.pixels, job.validation, job.preprocessing, run.fabric.device)
    _show_batch(run, pixels, plain=phase.train_backbone == "none" and phase.views == 0)
    if phase.train_backbone != "none":
        return pixels
    return FeatureSource.build(
        pixels,
        run.net,
        pixels_key=job.pixels_key,
        # Two nets may share every tensor and still differ: padding and stride are no tensors.
        model_key=fingerprint(asdict(job.recipe.model), version("timm")),
        seed=job.seed,
        views=max(phase.views, 1),
        plain=phase.views == 0,
        cache=job.cache,
        on_step=run.hooks.step,
        stop=run.hooks.stop,
    )


def _show_batch(run: Run, pixels: PixelSource, *, plain: bool) -> None:
    """Hand the first batch of a run to the caller, as the net sees it."""
    if run.progress.rows:
        return
    rows = epoch_order(len(pixels.samples), seed=run.job.seed, epoch=1)[:_SHOWN]
    batch = pixels.batch(rows, epoch=1, seed=run.job.seed, plain_originals=plain)
    run.hooks.first_batch(batch, pixels.samples.labels[rows])


def _optimizer(run: Run, phase: Phase) -> torch.optim.Optimizer:
    spec: OptimSpec = run.job.recipe.optim
    groups = parameter_groups(run.net, phase)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=spec.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, run: Run, phase: Phase, epoch: int) -> float:
    """Set the learning rates of this epoch; returns the head's."""
    cosine = run.job.recipe.optim.schedule == "cosine"
    factor = 0.5 * (1 + float(np.cos(np.pi * epoch / phase.epochs))) if cosine else 1.0
    for group, base in zip(optimizer.param_groups, (phase.head_lr, phase.backbone_lr), strict=False):
        group["lr"] = base * factor
    return phase.head_lr * factor


def _class_weights(job: Job, samples: Samples, device: torch.device) -> torch.Tensor | None:
    if job.recipe.optim.class_weights == "none":
        return None
    counts = np.bincount(samples.labels, minlength=job.n_classes)
    weights = len(samples) / (job.n_classes * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _batches(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut an order into batches; a last batch of one joins its neighbour, since batch norm cannot train on one."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] == 1 and size > 1:
        cuts.pop()
    return list(np.split(order, cuts))


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _whole(job: Job) -> bool:
    """Tell whether checkpoints hold the backbone: one that is never trained is rebuilt from its weights."""
    return any(phase.train_backbone != "none" for phase in job.recipe.phases)


def _keep(run: Run) -> None:
    if run.job.recipe.keep == "best":
        load_checkpoint(run.folder / BEST, run.net)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in run.net.state_dict().values()):
        raise Diverged(f"{run.folder}: the trained weights are not finite", remedy="lower the learning rate")
    run.net.eval()


def write_log(path: Path, progress: Progress) -> None:
    """Write log.csv whole, a row per epoch; an undefined value is empty."""
    rows = [["" if value != value else value for value in row.values()] for row in progress.rows]
    write_rows(path, LOG_COLUMNS, rows)


def _interrupted(run: Run, epoch: int) -> Interrupted:
    return Interrupted(
        f"interrupted in epoch {epoch}",
        kept=f"{run.folder / LAST}, {len(run.progress.rows)} finished epochs",
        remedy="run the same command with --resume; it ends with the weights of a run left alone",
    )


def _diverged(run: Run, source: Source, rows: NDArray[np.int64], epoch: int, step: int) -> Diverged:
    names = ", ".join(source.samples.names(rows[:4]))
    return Diverged(
        f"the loss is not a number in epoch {epoch}, batch {step + 1} (images {names}, ...)",
        kept=f"{run.folder / LAST}, {len(run.progress.rows)} finished epochs",
        remedy="lower the learning rate in the recipe, or look at these images",
    )
