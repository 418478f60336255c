"""Where a process stands among those that train together, as its environment says: torchrun's names, or srun's."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dermkit.errors import UsageError

SUPERVISOR_VARIABLE = "DERMKIT_SUPERVISOR"
"""The variable that tells a rank the process number of the supervisor that started it."""
_PR_SET_PDEATHSIG = 1  # prctl(2), linux/prctl.h


@dataclass(frozen=True)
class RankInfo:
    """A rank's place: `rank` of `world_size` in all, `local_rank` of `local_world_size` on machine `node_rank`.

    address, port: where rank 0 is met. one_gpu_each: the scheduler may show every rank one GPU of its own.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    master_address: str
    master_port: int
    has_own_gpu: bool = False


def is_rank() -> bool:
    """Tell whether torchrun, srun or a supervisor started this process as one of several ranks."""
    return read_rank_info(os.environ) is not None


def read_rank_info(environ: Mapping[str, str]) -> RankInfo | None:
    """Return the place that an environment gives, in torchrun's names or srun's, or nothing.

    A NODE_RANK without a RANK is a machine's number for a supervisor, and no rank. Raises `UsageError` where half is
    missing.
    """
    if "RANK" in environ:
        return _torchrun_rank_info(environ)
    if "NODE_RANK" not in environ and int_variable(environ, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm_rank_info(environ)
    return None


def _torchrun_rank_info(environ: Mapping[str, str]) -> RankInfo:
    rank, world_size = int_variable(environ, "RANK"), int_variable(environ, "WORLD_SIZE")
    local_world_size = int_variable(environ, "LOCAL_WORLD_SIZE", 1)
    node_rank = int_variable(
        environ, "GROUP_RANK", int_variable(environ, "NODE_RANK", rank // max(local_world_size, 1))
    )
    local_rank = int_variable(environ, "LOCAL_RANK", rank % max(local_world_size, 1))
    if not (0 <= rank < world_size and 0 <= local_rank < local_world_size and world_size % local_world_size == 0):
        raise UsageError(
            f"RANK={rank} WORLD_SIZE={world_size} LOCAL_RANK={local_rank} "
            f"LOCAL_WORLD_SIZE={local_world_size}: no rank's place",
            remedy="let torchrun or dermkit set them, the same number of processes on every machine",
        )
    address = environ.get("MASTER_ADDR", "127.0.0.1" if world_size == 1 else "")
    if not address:
        raise missing_variable_error("MASTER_ADDR")
    return RankInfo(
        rank,
        world_size,
        local_rank,
        local_world_size,
        node_rank,
        address,
        int_variable(environ, "MASTER_PORT", 29500),
    )


def _slurm_rank_info(environ: Mapping[str, str]) -> RankInfo:
    """Only srun sets SLURM_STEP_*: a batch script's SLURM_PROCID is 0 too, but it is one process, not a rank."""
    world_size, n_nodes = (
        int_variable(environ, "SLURM_STEP_NUM_TASKS"),
        int_variable(environ, "SLURM_STEP_NUM_NODES", 1),
    )
    if world_size % n_nodes:
        raise UsageError(f"srun: {world_size} tasks on {n_nodes} machines", remedy="give --ntasks-per-node")
    address = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    # Two jobs on one machine must not meet: the port comes from the job's number.
    port = 20000 + (int_variable(environ, "SLURM_JOB_ID", 0) + int_variable(environ, "SLURM_STEP_ID", 0)) % 10000
    rank, local_rank = int_variable(environ, "SLURM_PROCID"), int_variable(environ, "SLURM_LOCALID")
    node_rank = int_variable(environ, "SLURM_NODEID")
    return RankInfo(
        rank,
        world_size,
        local_rank,
        world_size // n_nodes,
        node_rank,
        address,
        int_variable(environ, "MASTER_PORT", port),
        True,
    )


def first_host(node_list: str) -> str:
    """Return the first host of SLURM's list: `gpu[03-05,9]-ib,x` -> `gpu03-ib`."""
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", node_list)
    return "".join(group or "" for group in match.groups()) if match else node_list


def int_variable(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a whole number from the environment; raises `UsageError` where there is none."""
    text = environ.get(name, "" if default is None else str(default))
    if not text:
        raise missing_variable_error(name)
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{name}={text}: is not a number", remedy="correct the environment variable") from error


def missing_variable_error(name: str) -> UsageError:
    """Return what to raise where a variable is needed and is not there."""
    return UsageError(
        f"{name}: this environment variable is missing, and several machines or processes need it",
        remedy=f"set {name}, or leave --nodes, RANK and NODE_RANK away; docs/machines.md has examples",
    )


def die_with_parent() -> None:
    """Die when the supervisor dies, even if it is killed; a process that has none is left as it is (Linux).

    A rank calls this first of all: a rank that waits for others in a collective would wait for ever.
    """
    parent_pid = os.environ.pop(SUPERVISOR_VARIABLE, "")
    if not parent_pid:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent_pid):  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)
