"""Where a process stands among those that train together, as its environment says: torchrun's names, or srun's."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dermkit.errors import UsageError

SUPERVISOR = "DERMKIT_SUPERVISOR"
"""The variable that tells a rank the process number of the supervisor that started it."""
_PR_SET_PDEATHSIG = 1  # prctl(2), linux/prctl.h


@dataclass(frozen=True)
class Place:
    """A rank's place: `rank` of `size` in all, `local_rank` of `local_size` on machine `node`.

    address, port: where rank 0 is met. one_gpu_each: the scheduler may show every rank one GPU of its own.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    address: str
    port: int
    one_gpu_each: bool = False


def started_as_rank() -> bool:
    """Tell whether torchrun, srun or a supervisor started this process as one of several ranks."""
    return find_place(os.environ) is not None


def find_place(environ: Mapping[str, str]) -> Place | None:
    """Return the place that an environment gives, in torchrun's names or srun's, or nothing.

    A NODE_RANK without a RANK is a machine's number for a supervisor, and no rank. Raises `UsageError` where half is
    missing.
    """
    if "RANK" in environ:
        return _torchrun_place(environ)
    if "NODE_RANK" not in environ and number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm_place(environ)
    return None


def _torchrun_place(environ: Mapping[str, str]) -> Place:
    rank, size = number(environ, "RANK"), number(environ, "WORLD_SIZE")
    local_size = number(environ, "LOCAL_WORLD_SIZE", 1)
    node = number(environ, "GROUP_RANK", number(environ, "NODE_RANK", rank // max(local_size, 1)))
    local_rank = number(environ, "LOCAL_RANK", rank % max(local_size, 1))
    if not (0 <= rank < size and 0 <= local_rank < local_size and size % local_size == 0):
        raise UsageError(
            f"RANK={rank} WORLD_SIZE={size} LOCAL_RANK={local_rank} LOCAL_WORLD_SIZE={local_size}: no rank's place",
            remedy="let torchrun or dermkit set them, the same number of processes on every machine",
        )
    address = environ.get("MASTER_ADDR", "127.0.0.1" if size == 1 else "")
    if not address:
        raise missing("MASTER_ADDR")
    return Place(rank, size, local_rank, local_size, node, address, number(environ, "MASTER_PORT", 29500))


def _slurm_place(environ: Mapping[str, str]) -> Place:
    """Only srun sets SLURM_STEP_*: a batch script's SLURM_PROCID is 0 too, but it is one process, not a rank."""
    size, nodes = number(environ, "SLURM_STEP_NUM_TASKS"), number(environ, "SLURM_STEP_NUM_NODES", 1)
    if size % nodes:
        raise UsageError(f"srun: {size} tasks on {nodes} machines", remedy="give --ntasks-per-node")
    address = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    # Two jobs on one machine must not meet: the port comes from the job's number.
    port = 20000 + (number(environ, "SLURM_JOB_ID", 0) + number(environ, "SLURM_STEP_ID", 0)) % 10000
    rank, local = number(environ, "SLURM_PROCID"), number(environ, "SLURM_LOCALID")
    node = number(environ, "SLURM_NODEID")
    return Place(rank, size, local, size // nodes, node, address, number(environ, "MASTER_PORT", port), True)


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's list: `gpu[03-05,9]-ib,x` -> `gpu03-ib`."""
    found = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a whole number from the environment; raises `UsageError` where there is none."""
    text = environ.get(name, "" if default is None else str(default))
    if not text:
        raise missing(name)
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{name}={text}: is not a number", remedy="correct the environment variable") from error


def missing(name: str) -> UsageError:
    """Return what to raise where a variable is needed and is not there."""
    return UsageError(
        f"{name}: this environment variable is missing, and several machines or processes need it",
        remedy=f"set {name}, or leave --nodes, RANK and NODE_RANK away; docs/machines.md has examples",
    )


def follow_supervisor() -> None:
    """Die when the supervisor dies, even if it is killed; a process that has none is left as it is (Linux).

    A rank calls this first of all: a rank that waits for others in a collective would wait for ever.
    """
    supervisor = os.environ.pop(SUPERVISOR, "")
    if not supervisor:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(supervisor):  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)
