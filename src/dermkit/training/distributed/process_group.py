"""The process group of a training: which rank this process is, and the collective operations that training needs.

A rank is one process on one device. Nothing is pickled: ranks send each other numbers and text only.
"""

import atexit
import contextlib
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
from dermkit.training.distributed.environment import RankInfo, read_rank_info

_COLLECTIVE_TIMEOUT = timedelta(days=1)
"""How long a rank waits for the others in a collective: rank 0 may score for hours, and lost ranks are noticed by the
supervisor, not by a timeout."""

_SINGLE_RANK = RankInfo(
    rank=0, world_size=1, local_rank=0, local_world_size=1, node_rank=0, master_address="127.0.0.1", master_port=0
)
_GLOO_DRAIN_SECONDS = 0.3
"""Seconds for gloo's threads to free the last tensors: microseconds of work, but they have to get Python's lock."""


@dataclass(frozen=True)
class ProcessGroup:
    """This rank of a process group. device: where tensors must lie for the backend (CPU for gloo, a GPU for NCCL).

    Every method but `shard` is collective: all ranks must call it, in the same order. With one rank nothing is sent.
    """

    rank: int
    size: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which writes and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any rank."""
        return bool(self._reduce(int(flag), "MAX"))

    def min(self, number: int) -> int:
        """Return the smallest of the ranks' numbers."""
        return self._reduce(number, "MIN")

    def shard(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's contiguous part of the rows (N,); in rank order, sizes differing by one at most."""
        return np.array_split(rows, self.size)[self.rank]

    def gather(self, tensor: Tensor) -> Tensor:
        """Return all ranks' rows in rank order, bit for bit.

        tensor: (N, ...); N may differ between ranks and be 0, type and row shape must be the same. Rows are sent as
        bytes, padded to the largest N, because backends gather only tensors of one shape.
        """
        if self.size == 1:
            return tensor
        width = int(np.prod(tensor.shape[1:])) * tensor.element_size()
        local_bytes = (
            tensor.detach().to(self.device).contiguous().view(-1).view(torch.uint8).view(len(tensor), width)
        )
        counts = self._gather_equal(torch.tensor([len(local_bytes)], device=self.device)).flatten().tolist()
        padded = local_bytes.new_zeros(max(counts), width)
        padded[: len(local_bytes)] = local_bytes
        gathered = self._gather_equal(padded)
        rows = torch.cat([block[:count] for block, count in zip(gathered, counts, strict=True)])
        return rows.view(-1).view(tensor.dtype).view(-1, *tensor.shape[1:]).to(tensor.device)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, added in rank order, so that every rank has the same bits. For small tensors."""
        return self.gather(tensor[None]).sum(0, dtype=tensor.dtype)

    def broadcast_text(self, text: str) -> str:
        """Return rank 0's text."""
        if self.size == 1:
            return text
        encoded = torch.tensor(list(text.encode()) if self.is_first else [], dtype=torch.uint8)
        return bytes(self.gather(encoded).cpu().numpy()).decode()

    def _reduce(self, number: int, operation: str) -> int:
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return int(tensor)

    def _gather_equal(self, tensor: Tensor) -> Tensor:
        """Return the ranks' tensors of one shape, stacked in rank order."""
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(tensors, tensor)
        return torch.stack(tensors)


SINGLE_PROCESS = ProcessGroup(0, 1)


def process_group_of(fabric: Fabric) -> ProcessGroup:
    """Return the ranks that a launched Fabric joined."""
    return ProcessGroup(fabric.global_rank, fabric.world_size, fabric.device)


def start_fabric(device: str, devices: int = 1, nodes: int = 1) -> Fabric:
    """Return a Fabric for this process, its process group joined: alone, or one rank of those in the environment.

    device: auto, cpu or cuda. devices, nodes: what the command asked for; 1 and 1 take what the environment says.
    Raises `UsageError` where both disagree, or where a rank has no GPU of its own.
    """
    rank_info = read_rank_info(os.environ)
    if rank_info is None or rank_info.world_size == 1:
        _check_single_process(devices * nodes)
        # Explicitly one rank: inside a SLURM job Fabric would count the job's tasks as ranks, and refuse.
        return Fabric(
            accelerator=device, devices=1, precision="32-true", plugins=[_FixedEnvironment(_SINGLE_RANK)]
        )
    _check_rank_count(rank_info, devices, nodes)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it says that it starts, on every rank
    rank_device = _rank_device(device, rank_info)
    strategy = DDPStrategy(
        parallel_devices=[rank_device] * rank_info.local_world_size,
        cluster_environment=_FixedEnvironment(rank_info),
        process_group_backend="nccl" if rank_device.type == "cuda" else "gloo",
        timeout=_COLLECTIVE_TIMEOUT,
        **_buffer_sync_off(),
    )
    nodes = rank_info.world_size // rank_info.local_world_size
    fabric = Fabric(strategy=strategy, devices=rank_info.local_world_size, num_nodes=nodes, precision="32-true")
    fabric.launch()
    atexit.register(_leave_process_group)
    return fabric


def _leave_process_group() -> None:
    """Destroy the process group at exit, and wait for gloo's threads to free their tensors.

    A thread that frees a tensor while the interpreter shuts down aborts the process: 1 exit in 12 without this, torch
    2.13. Destroying the group alone does not prevent it, since DistributedDataParallel keeps it alive.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        # A request to stop that comes now, as when a partner was lost, would be shown as a traceback.
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_GLOO_DRAIN_SECONDS)


def _buffer_sync_off() -> dict[str, Any]:
    """Return DistributedDataParallel's argument, by torch's version, for "do not broadcast buffers".

    `sync_batchnorm` gives every rank the same buffers already.
    """
    has_new_argument = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if has_new_argument else "broadcast_buffers": False}


def _check_single_process(n_devices: int) -> None:
    if n_devices > 1:
        raise UsageError(
            f"{n_devices} devices were asked for, but this process was started alone",
            remedy="use the command line's --devices, or start it with torchrun",
        )


def _check_rank_count(rank_info: RankInfo, devices: int, nodes: int) -> None:
    actual = (rank_info.local_world_size, rank_info.world_size // rank_info.local_world_size)
    if (devices, nodes) not in ((1, 1), actual):
        raise UsageError(
            f"--devices {devices} --nodes {nodes}, but there are {actual[0]} ranks on each of {actual[1]} machines",
            remedy="leave --devices and --nodes away under torchrun and srun, or give the same numbers",
        )


def _rank_device(device: str, rank_info: RankInfo) -> torch.device:
    """Return this rank's device: the GPU of its local number, or the only one that the scheduler lets it see."""
    n_visible = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cpu" or (device == "auto" and n_visible == 0):
        return torch.device("cpu")
    # srun may show each rank its own GPU alone, as number 0, whatever the rank's number is.
    index = 0 if n_visible == 1 and rank_info.has_own_gpu else rank_info.local_rank
    if index >= n_visible:
        raise UsageError(
            f"{rank_info.local_world_size} ranks on this machine, but {n_visible} GPUs are visible",
            remedy=f"--devices {max(n_visible, 1)}, or --device cpu",
        )
    return torch.device("cuda", index)


class _FixedEnvironment(ClusterEnvironment):
    """Gives Fabric the rank that we read from the environment; its own detection guesses and may start processes."""

    def __init__(self, rank_info: RankInfo) -> None:
        self.rank_info = rank_info

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.rank_info.master_address

    @property
    def main_port(self) -> int:
        return self.rank_info.master_port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.rank_info.world_size

    def set_world_size(self, size: int) -> None:
        """Do nothing: it is given."""

    def global_rank(self) -> int:
        return self.rank_info.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: it is given."""

    def local_rank(self) -> int:
        return self.rank_info.local_rank

    def node_rank(self) -> int:
        return self.rank_info.node_rank
