"""Which rank a process is, read from the environment variables of torchrun (also set by our launcher) or srun.

Without torch: the command line asks before it decides whether torch is needed.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dermkit.errors import UsageError

SUPERVISOR_VARIABLE = "DERMKIT_SUPERVISOR"
"""Environment variable with the process id of the supervisor that started a rank."""
_PR_SET_PDEATHSIG = 1  # prctl(2), linux/prctl.h


@dataclass(frozen=True)
class RankInfo:
    """A rank's numbers: `rank` of `world_size` in all, `local_rank` of `local_world_size` on machine `node_rank`.

    master_address, master_port: where rank 0 listens. has_own_gpu: the scheduler may show each rank one GPU alone.
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
    """Return whether torchrun, srun or a supervisor started this process as one of several ranks."""
    return read_rank_info(os.environ) is not None


def is_first_rank() -> bool:
    """Return whether this process is rank 0, or the only one: of several, it alone prints."""
    rank_info = read_rank_info(os.environ)
    return rank_info is None or rank_info.rank == 0


def read_rank_info(environ: Mapping[str, str]) -> RankInfo | None:
    """Return the rank that an environment describes, in torchrun's names or srun's; None where it describes none.

    A NODE_RANK without a RANK is a machine's number for its supervisor, not a rank. Raises `UsageError` where some
    variables are missing or contradict each other.
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
    """Return the rank that srun's variables describe.

    Only srun sets SLURM_STEP_*. In a batch script SLURM_PROCID is 0 as well, but that is one process and no rank.
    """
    world_size, n_nodes = (
        int_variable(environ, "SLURM_STEP_NUM_TASKS"),
        int_variable(environ, "SLURM_STEP_NUM_NODES", 1),
    )
    if world_size % n_nodes:
        raise UsageError(f"srun: {world_size} tasks on {n_nodes} machines", remedy="give --ntasks-per-node")
    address = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    # From the job's number, so that two jobs on one machine do not use the same port.
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
    """Return an integer variable; raises `UsageError` where it is no number, or missing without a default."""
    text = environ.get(name, "" if default is None else str(default))
    if not text:
        raise missing_variable_error(name)
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{name}={text}: is not a number", remedy="correct the environment variable") from error


def missing_variable_error(name: str) -> UsageError:
    """Return the error for a variable that several machines or processes need and that is missing."""
    return UsageError(
        f"{name}: this environment variable is missing, and several machines or processes need it",
        remedy=f"set {name}, or leave --nodes, RANK and NODE_RANK away; docs/machines.md has examples",
    )


def die_with_parent() -> None:
    """Let this rank be killed when its supervisor ends, even if that is killed itself; Linux alone has this.

    A process without a supervisor is not changed. A rank calls this before all else: without a supervisor nobody would
    end a rank that waits for others in a collective.
    """
    parent_pid = os.environ.pop(SUPERVISOR_VARIABLE, "")
    if not parent_pid:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent_pid):  # it ended before prctl was called
        os.kill(os.getpid(), signal.SIGKILL)
