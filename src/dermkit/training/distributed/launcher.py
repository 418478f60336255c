"""Several ranks of one command: started and joined by torch's elastic agent, launched afresh when one is lost.

Every rank runs the same command line and reads its rank from the environment, in torchrun's names. With several
machines there is one supervisor on each; that of machine 0 decides, and the others do as it says. torch is imported
inside functions: a command for one process never needs a supervisor, nor its three seconds of imports.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dermkit.errors import DermkitError, UsageError
from dermkit.threads import cpu_count
from dermkit.training.distributed.environment import SUPERVISOR_VARIABLE, int_variable, missing_variable_error
from dermkit.training.distributed.exits import EXIT_CODES, ExitStatus

if TYPE_CHECKING:
    from dermkit.training.distributed.rank_agent import RankAgent
    from dermkit.training.distributed.rendezvous import Rendezvous

_RANK_COMMAND = (sys.executable, "-m", "dermkit.cli")
_POLL_SECONDS = 0.05
"""Seconds between two looks at the other machines."""
RENDEZVOUS_SECONDS = 600.0
"""Seconds that machines wait for each other."""


@dataclass(frozen=True)
class NodeConfig:
    """What a supervisor knows: machine `node_rank` of `n_nodes`, ranks per machine, where they meet, what to run."""

    node_rank: int
    n_nodes: int
    ranks_per_node: int
    master_address: str
    master_port: int
    command: tuple[str, ...]
    say: Callable[[str], None]

    def run_ranks(self, rendezvous: "Rendezvous", attempt: int, signals: Sequence[int]) -> "RankAgent":
        """Run this machine's ranks to their end; a launch after the first goes on from the last checkpoint."""
        from dermkit.training.distributed.rank_agent import run_agent

        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // self.ranks_per_node)))
        if self.n_nodes == 1:
            # Else gloo looks up the host's own name, which may lead nowhere.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ[SUPERVISOR_VARIABLE] = str(os.getpid())
        resume = ["--resume"] if attempt and "--resume" not in self.command else []
        port = self.master_port + 1 + attempt if self.n_nodes > 1 else 0
        return run_agent([*self.command, *resume], rendezvous, attempt, signals, self.master_address, port)


def supervise(
    arguments: Sequence[str],
    *,
    devices: int,
    nodes: int,
    restarts: int,
    say: Callable[[str], None],
    command: Sequence[str] = _RANK_COMMAND,
) -> int:
    """Run a command line on `devices` ranks of each of `nodes` machines; returns its exit code.

    A rank that dies otherwise than with one of dermkit's exit codes ends the whole group, which is launched afresh with
    --resume, at most `restarts` times; then `DermkitError`. The first SIGINT, SIGTERM or SIGHUP asks the ranks to stop
    with a checkpoint, the second one kills them. Raises `UsageError` where several machines are not told where to meet.
    """
    config = _node_config(devices, nodes, (*command, *arguments), say)
    with _collected_signals() as signals:
        return _follow_leader(config, signals) if config.node_rank else _lead_nodes(config, signals, restarts)


def _node_config(devices: int, nodes: int, command: tuple[str, ...], say: Callable[[str], None]) -> NodeConfig:
    if devices < 1 or nodes < 1:
        raise UsageError(f"--devices {devices} --nodes {nodes}: both are 1 or more")
    if nodes == 1:
        return NodeConfig(0, 1, devices, "127.0.0.1", 0, command, say)
    environ: Mapping[str, str] = os.environ
    if not environ.get("MASTER_ADDR"):
        raise missing_variable_error("MASTER_ADDR")
    node_rank = int_variable(environ, "NODE_RANK")
    if not 0 <= node_rank < nodes:
        raise UsageError(
            f"NODE_RANK={node_rank}: is not one of the {nodes} machines", remedy=f"give 0 to {nodes - 1}"
        )
    return NodeConfig(
        node_rank, nodes, devices, environ["MASTER_ADDR"], int_variable(environ, "MASTER_PORT"), command, say
    )


def _lead_nodes(config: NodeConfig, signals: list[int], restarts: int) -> int:
    """Launch until the command ends by itself or was launched too often."""
    rendezvous, code = _open_rendezvous(config), 1
    try:
        for attempt in range(restarts + 1):
            status = _run_attempt(config, rendezvous, signals, attempt)
            if not status.failure:
                code = status.code
                return code
            next_step = f"launching afresh from the last checkpoint, {attempt + 1} of {restarts}"
            config.say(f"{status.failure}; {next_step if attempt < restarts else 'not launched again'}")
        raise DermkitError(
            f"{status.failure}, after {restarts} fresh launches",
            outcome="the last checkpoint",
            remedy="look at the messages above and the machine's log (out of memory?), then run it with --resume",
        )
    finally:
        rendezvous.close(code)


def _open_rendezvous(config: NodeConfig) -> "Rendezvous":
    """Return machine 0's rendezvous; with several machines its store listens on the master port."""
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from dermkit.training.distributed.rendezvous import Rendezvous

    store = None
    if config.n_nodes > 1:
        address = config.master_address
        store = TCPStore(address, config.master_port, None, config.node_rank == 0, timedelta(seconds=60), False)
    return Rendezvous(config.node_rank, config.n_nodes, config.ranks_per_node, store)


def _run_attempt(config: NodeConfig, rendezvous: "Rendezvous", signals: list[int], attempt: int) -> ExitStatus:
    """Run all ranks on all machines once, and leave none."""
    from torch.distributed import DistError

    rendezvous.open_attempt(attempt)
    if not _wait_for_nodes(config, rendezvous, signals, attempt):
        return ExitStatus(130)
    try:
        agent = config.run_ranks(rendezvous, attempt, signals)
    except DistError as error:
        if config.n_nodes == 1:
            raise
        rendezvous.post_status(attempt, 1, failure := f"the machines lost each other: {error}")
        return ExitStatus(1, failure)
    status = agent.status or ExitStatus(130 if signals else 1)
    _show_failed_output(config, agent.exits.exit_codes, agent.output_tails, status)
    return status


def _wait_for_nodes(config: NodeConfig, rendezvous: "Rendezvous", signals: list[int], attempt: int) -> bool:
    """Wait until every machine is there; tells whether nobody stopped it."""
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while missing_nodes := rendezvous.missing_nodes(attempt):
        if signals:
            return False
        if time.monotonic() > deadline:
            raise DermkitError(
                f"no sign of machine {', '.join(map(str, missing_nodes))} for {RENDEZVOUS_SECONDS / 60:.0f} minutes",
                remedy=f"start it with NODE_RANK, MASTER_ADDR={config.master_address} and "
                f"MASTER_PORT={config.master_port}",
            )
        time.sleep(_POLL_SECONDS)
    return not signals


def _show_failed_output(
    config: NodeConfig, exit_codes: Mapping[int, int], output_tails: Mapping[int, str], status: ExitStatus
) -> None:
    """Show what the first rank that failed said, unless rank 0 speaks for all."""
    failed_ranks = [rank for rank, code in exit_codes.items() if code != 0]
    if not failed_ranks or exit_codes.get(0) in EXIT_CODES or not (status.failure or status.code):
        return
    for line in output_tails.get(failed_ranks[0], "").splitlines():
        config.say(f"[rank {failed_ranks[0]}] {line}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _follow_leader(config: NodeConfig, signals: list[int]) -> int:
    """Do as machine 0 says until it names the exit code; a leader that was started anew is met again."""
    from torch.distributed import DistError

    while _wait_for_leader(config, signals):
        with contextlib.suppress(DistError):
            return _run_launches(config, _open_rendezvous(config), signals)
        config.say("machine 0 does not answer; waiting for it")
    return 130


def _wait_for_leader(config: NodeConfig, signals: list[int]) -> bool:
    """Wait until machine 0 listens; tells whether nobody stopped it."""
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not signals:
        try:
            socket.create_connection((config.master_address, config.master_port), timeout=5.0).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise DermkitError(
                    f"{config.master_address}:{config.master_port}: machine 0 was not there for "
                    f"{RENDEZVOUS_SECONDS / 60:.0f} minutes: {error}",
                    remedy="start it with NODE_RANK=0 and the same MASTER_ADDR, MASTER_PORT, --devices and --nodes",
                ) from error
            time.sleep(0.5)
        else:
            return True
    return False


def _run_launches(config: NodeConfig, rendezvous: "Rendezvous", signals: list[int]) -> int:
    """Run this machine's ranks in every launch that machine 0 announces; returns the exit code that it names."""
    previous = -1
    while (code := rendezvous.exit_code()) is None:
        if len(signals) > 1:
            return 130
        attempt = rendezvous.join_next(previous)
        if attempt is not None:
            config.run_ranks(rendezvous, attempt, signals)
            previous = attempt
        time.sleep(_POLL_SECONDS)
    return code


@contextmanager
def _collected_signals() -> Iterator[list[int]]:
    """Collect the requests to stop that this process gets; SIGHUP counts unless it is ignored (nohup)."""
    received: list[int] = []
    old_handlers: dict[int, Any] = {}
    for stop_signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop_signal) is not signal.SIG_IGN or stop_signal != signal.SIGHUP:
            old_handlers[stop_signal] = signal.signal(stop_signal, lambda number, _frame: received.append(number))
    try:
        yield received
    finally:
        for restored_signal, handler in old_handlers.items():
            signal.signal(restored_signal, handler)
