"""A checkpoint: weights, optimizer state and progress of a run in one safetensors file.

`net.NAME` is what the run would save as its model now. Where weights are averaged that is the average, and `raw.NAME`
is the tensor that training goes on from.

Tensors are stored as such, all else as JSON in the file's header. One file, so that its halves cannot be of different
moments; no pickle, because reading a pickle runs code.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors

from dermkit.errors import UntrustedError
from dermkit.files import write_bytes

CHECKPOINT_FORMAT = 4
_READABLE_FORMATS = ("2", "3", "4")
"""Format 4 added `raw.NAME`, which runs without averaged weights lack: a file of format 3 is one of theirs."""
LAST_CHECKPOINT = "last.safetensors"
BEST_CHECKPOINT = "best.safetensors"
MID_EPOCH_CHECKPOINT = "mid-epoch.safetensors"
"""Checkpoint of the running epoch; stale once the epoch ends or is retried."""
OLD_MID_EPOCH_CHECKPOINT = "inside.safetensors"
"""Its name up to format 2."""
_NAMES_OF_FORMAT_2 = {
    "loss": "loss_sum",
    "hits": "n_correct",
    "micro": "micro_batch_size",
    "waited": "epochs_without_improvement",
    "setbacks": "nan_recoveries",
    "rows": "log_rows",
}


@dataclass
class TrainingProgress:
    """What has been done: finished epochs with their log rows, the best so far, and the optimizer's state.

    raw_weights: name in the net's state -> raw tensor, as loaded, where the net that was loaded holds averaged ones.

    phase, phase_epoch: the running phase and its finished epochs, from 0. step: batches done in the running epoch;
    loss_sum, n_correct, seconds: summed over them. lr_scale: factor of every learning rate, halved each time that a
    value was not finite; nan_recoveries: one entry for each time. micro_batch_size: samples per pass (0 = the whole
    batch), less than a batch once memory ran out. best_value: of the monitored metric, negated for a loss.
    """

    phase: int = 0
    phase_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    n_correct: float = 0.0
    seconds: float = 0.0
    lr_scale: float = 1.0
    nan_recoveries: list[dict[str, Any]] = field(default_factory=list)
    micro_batch_size: int = 0
    epochs_without_improvement: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    log_rows: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=dict)
    raw_weights: dict[str, torch.Tensor] = field(default_factory=dict, compare=False)

    def start_phase(self, phase: int) -> None:
        """Reset epoch counters, patience, optimizer and raw weights; keep best_value."""
        self.phase, self.phase_epoch, self.epochs_without_improvement, self.optimizer = phase, 0, 0, {}
        self.raw_weights = {}
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin an epoch: no batch done yet."""
        self.step, self.loss_sum, self.n_correct, self.seconds = 0, 0.0, 0.0, 0.0

    def is_out_of_patience(self, patience: int) -> bool:
        """Return whether the phase ends early: `patience` epochs without improvement (0 = never)."""
        return patience > 0 and self.epochs_without_improvement >= patience

    def finish_epoch(self, row: dict[str, float], monitor: str) -> bool:
        """Add an epoch's row; returns whether it is the best so far by `monitor` (lower is better for a loss)."""
        self.log_rows.append(row)
        self.phase_epoch += 1
        self.start_epoch()
        value = row[monitor]
        score = -value if monitor.endswith("loss") else value
        is_best = self.best_value is None or math.isnan(self.best_value) or score > self.best_value
        if is_best:
            self.best_value, self.best_epoch, self.epochs_without_improvement = score, int(row["epoch"]), 0
        else:
            self.epochs_without_improvement += 1
        return is_best


def checkpoint_bytes(net: torch.nn.Module, *, with_average: bool = False) -> int:
    """Return an upper bound of the disk space of a run, in bytes.

    Four checkpoints (best, last, mid-epoch, and one being written) and the model; Adam keeps two moments per weight.
    with_average: whether weights are averaged, and checkpoints hold the raw ones too.
    """
    state_bytes: int = sum(tensor.nbytes for tensor in net.state_dict().values())
    parameter_bytes: int = sum(parameter.nbytes for parameter in net.parameters())
    return 4 * (state_bytes * (1 + with_average) + 2 * parameter_bytes) + state_bytes


def save_checkpoint(
    path: Path,
    net: torch.nn.Module,
    progress: TrainingProgress,
    *,
    with_backbone: bool,
    averaged: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint crash-safely: after a crash the file is the old one or the new one, never a part.

    Without `with_backbone` the backbone is left out; it is rebuilt from its weights file. averaged: the averaged values
    of the net's tensors, which then are the raw ones.
    """
    state, averaged = net.state_dict(), averaged or {}
    named_tensors = {
        **{f"net.{name}": averaged.get(name, tensor) for name, tensor in state.items()},
        **{f"raw.{name}": state[name] for name in averaged},
    }
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in named_tensors.items()
        if with_backbone or not name.partition(".")[2].startswith("backbone.")
    }
    in_tensors = ("optimizer", "raw_weights")
    progress_fields = {f.name: getattr(progress, f.name) for f in fields(progress) if f.name not in in_tensors}
    optimizer_fields: dict[str, Any] = {"groups": progress.optimizer.get("param_groups", []), "scalars": {}}
    for index, state in progress.optimizer.get("state", {}).items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                optimizer_fields["scalars"][f"{index}.{name}"] = value
    header = {
        "format": str(CHECKPOINT_FORMAT),
        "progress": json.dumps(progress_fields),
        "optimizer": json.dumps(optimizer_fields),
    }
    write_bytes(path, save_safetensors(tensors, metadata=header))


def is_continuation(mid_epoch_path: Path, last_progress: TrainingProgress) -> bool:
    """Return whether a mid-epoch checkpoint continues `last`: same phase, finished epochs and NaN recoveries.

    A stale one is left behind by a kill between writing `last` and deleting it, or by a retry at a lower rate.
    """
    if not mid_epoch_path.exists():
        return False
    mid_epoch, _, _ = _read(mid_epoch_path, with_tensors=False)
    return mid_epoch.step > 0 and (mid_epoch.phase, len(mid_epoch.log_rows), mid_epoch.nan_recoveries) == (
        last_progress.phase,
        len(last_progress.log_rows),
        last_progress.nan_recoveries,
    )


def load_checkpoint(path: Path, net: torch.nn.Module) -> TrainingProgress | None:
    """Load a checkpoint into `net` and return its progress; None where there is no file.

    Averaged weights are loaded where there are such; the raw ones are in the progress.

    Raises `UntrustedError` for a broken file or one of another net.
    """
    if not path.exists():
        return None
    progress, tensors, optimizer_fields = _read(path, with_tensors=True)
    _load_net(path, net, _named(tensors, "net."))
    progress.raw_weights = _named(tensors, "raw.")
    progress.optimizer = _optimizer_state(tensors, optimizer_fields)
    return progress


def read_progress(path: Path) -> TrainingProgress:
    """Return the progress of a checkpoint without its tensors; raises `UntrustedError` for a broken file."""
    return _read(path, with_tensors=False)[0]


def _read(path: Path, *, with_tensors: bool) -> tuple[TrainingProgress, dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            if header.get("format") not in _READABLE_FORMATS:
                raise ValueError(f"format {header.get('format')}, this dermkit reads format {CHECKPOINT_FORMAT}")
            names = stream.keys() if with_tensors else []
            loaded = {name: stream.get_tensor(name) for name in names}
        progress_fields = json.loads(header["progress"])
        if header["format"] == "2":
            progress_fields = _fields_from_format_2(progress_fields)
        return TrainingProgress(**progress_fields), loaded, json.loads(header["optimizer"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UntrustedError(
            f"{path}: not a checkpoint: {error}", remedy="delete the run folder, train anew"
        ) from error


def _fields_from_format_2(progress_fields: dict[str, Any]) -> dict[str, Any]:
    """Return the progress of a checkpoint of format 2 under the names of format 3; the values are the same."""
    return {_NAMES_OF_FORMAT_2.get(name, name): value for name, value in progress_fields.items()}


def _named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_net(path: Path, net: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    try:
        result = net.load_state_dict(state, strict=False)  # a backbone that is never trained is not in the file
    except RuntimeError as error:
        raise UntrustedError(f"{path}: belongs to another net: {error}", remedy="delete the run folder") from error
    missing_keys = [name for name in result.missing_keys if not name.startswith("backbone.")]
    if missing_keys or result.unexpected_keys:
        raise UntrustedError(
            f"{path}: belongs to another net: missing {missing_keys[:3]}, unexpected {result.unexpected_keys[:3]}",
            remedy="delete the run folder, train anew",
        )


def _optimizer_state(tensors: dict[str, torch.Tensor], optimizer_fields: dict[str, Any]) -> dict[str, Any]:
    if not optimizer_fields["groups"]:
        return {}
    state: dict[int, dict[str, Any]] = {}
    # JSON and safetensors know no nested dictionaries of tensors: "optimizer.<parameter>.<name>" is put together again.
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    for name, scalar in optimizer_fields["scalars"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = scalar
    return {"state": state, "param_groups": optimizer_fields["groups"]}
