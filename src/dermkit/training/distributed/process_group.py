"""The processes that train one net together: which one this is, and what they tell each other.

A rank is one process on one device. Nothing is pickled: what goes between ranks is numbers and text.
"""

import atexit
import inspect
import logging
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dermkit.errors import UsageError
from dermkit.training.distributed.environment import Place, find_place

PATIENCE = timedelta(days=1)
"""A rank waits this long for the others: rank 0 may score for hours, and lost ranks are the supervisor's to find."""

_ONE = Place(rank=0, size=1, local_rank=0, local_size=1, node=0, address="127.0.0.1", port=0)
_DROP = 0.3
"""Seconds for gloo's threads to drop the last tensors; they need microseconds, and the interpreter's lock."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. device: where tensors must lie for the group to send them.

    Every method but `share` is for all ranks together, in the same order on each; alone they send nothing.
    """

    rank: int
    size: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant

    @property
    def first(self) -> bool:
        """Tell whether this rank is the one that writes and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is true on some rank."""
        return bool(self._reduce(int(flag), "MAX"))

    def least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers."""
        return self._reduce(number, "MIN")

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's part of the rows: in one piece, sizes differing by one at most, in rank order."""
        return np.array_split(rows, self.size)[self.rank]

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all ranks in rank order, to the bit; their numbers may differ, and be 0.

        tensor: (N, ...), the same type and row shape on every rank.
        """
        if self.size == 1:
            return tensor
        width = int(np.prod(tensor.shape[1:])) * tensor.element_size()
        own = tensor.detach().to(self.device).contiguous().view(-1).view(torch.uint8).view(len(tensor), width)
        counts = self._gather_equal(torch.tensor([len(own)], device=self.device)).flatten().tolist()
        padded = own.new_zeros(max(counts), width)
        padded[: len(own)] = own
        table = self._gather_equal(padded)
        rows = torch.cat([part[:count] for part, count in zip(table, counts, strict=True)])
        return rows.view(-1).view(tensor.dtype).view(-1, *tensor.shape[1:]).to(tensor.device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, added in rank order, so every rank has the same bits. For small tensors."""
        return self.gather(tensor[None]).sum(0, dtype=tensor.dtype)

    def tell(self, text: str) -> str:
        """Return rank 0's text."""
        if self.size == 1:
            return text
        own = torch.tensor(list(text.encode()) if self.first else [], dtype=torch.uint8)
        return bytes(self.gather(own).cpu().numpy()).decode()

    def _reduce(self, number: int, how: str) -> int:
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, how))
        return int(tensor)

    def _gather_equal(self, tensor: Tensor) -> Tensor:
        """Return the ranks' tensors of one shape, stacked in rank order."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)


ALONE = Ranks(0, 1)


def ranks_of(fabric: Fabric) -> Ranks:
    """Return the ranks that a launched Fabric joined."""
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device)


def start(device: str, devices: int = 1, nodes: int = 1) -> Fabric:
    """Return a Fabric for this process, its process group joined: alone, or one rank of those in the environment.

    device: auto, cpu or cuda. devices, nodes: what the command asked for; 1 and 1 take what the environment says.
    Raises `UsageError` where both disagree, or where a rank has no GPU of its own.
    """
    place = find_place(os.environ)
    if place is None or place.size == 1:
        _check_alone(devices * nodes)
        # Told that it is alone: inside a SLURM job Fabric would take the job's tasks for ranks, and refuse.
        return Fabric(accelerator=device, devices=1, precision="32-true", plugins=[_Given(_ONE)])
    _check_asked(place, devices, nodes)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it says that it starts, on every rank
    own = _device(device, place)
    strategy = DDPStrategy(
        parallel_devices=[own] * place.local_size,
        cluster_environment=_Given(place),
        process_group_backend="nccl" if own.type == "cuda" else "gloo",
        timeout=PATIENCE,
        **_buffers_stay(),
    )
    nodes = place.size // place.local_size
    fabric = Fabric(strategy=strategy, devices=place.local_size, num_nodes=nodes, precision="32-true")
    fabric.launch()
    atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Leave the process group as the interpreter ends, and let gloo's threads drop what they hold of Python's.

    A thread that drops a tensor while the interpreter is torn down aborts the process: 1 end in 12 without this,
    torch 2.13. A closed group alone does not prevent it, since DistributedDataParallel keeps the group alive.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(_DROP)


def _buffers_stay() -> dict[str, Any]:
    """Return DistributedDataParallel's argument for "send no buffers": they are the same already (dermkit.syncnorm)."""
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if new else "broadcast_buffers": False}


def _check_alone(asked: int) -> None:
    if asked > 1:
        raise UsageError(
            f"{asked} devices were asked for, but this process was started alone",
            remedy="use the command line's --devices, or start it with torchrun",
        )


def _check_asked(place: Place, devices: int, nodes: int) -> None:
    found = (place.local_size, place.size // place.local_size)
    if (devices, nodes) not in ((1, 1), found):
        raise UsageError(
            f"--devices {devices} --nodes {nodes}, but there are {found[0]} ranks on each of {found[1]} machines",
            remedy="leave --devices and --nodes away under torchrun and srun, or give the same numbers",
        )


def _device(device: str, place: Place) -> torch.device:
    """Return this rank's device: the GPU of its local number, or the only one that the scheduler lets it see."""
    seen = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cpu" or (device == "auto" and seen == 0):
        return torch.device("cpu")
    number = 0 if seen == 1 and place.one_gpu_each else place.local_rank
    if number >= seen:
        raise UsageError(
            f"{place.local_size} ranks on this machine, but {seen} GPUs are visible",
            remedy=f"--devices {max(seen, 1)}, or --device cpu",
        )
    return torch.device("cuda", number)


class _Given(ClusterEnvironment):
    """The place that the environment gives, for Fabric, whose own detection guesses and may start processes."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.size

    def set_world_size(self, size: int) -> None:
        """Do nothing: it is given."""

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: it is given."""

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node
