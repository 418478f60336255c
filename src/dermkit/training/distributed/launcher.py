"""Runs a command as several ranks, by torch's elastic agent, and launches all of them afresh when one is lost.

Every rank runs the same command line and reads its rank from environment variables, in torchrun's names. Each machine
has one supervisor; that of machine 0 leads, the others follow (`rendezvous`). A launch of one machine's ranks is in
`rank_agent`, the judgement of exit codes in `exits`. torch is imported inside functions: a command with one process
needs no supervisor, and should not pay its three seconds of imports.
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
from dermkit.training.distributed.exits import EXIT_CODES, POLL_SECONDS, ExitStatus

if TYPE_CHECKING:
    from dermkit.training.distributed.rank_agent import RankAgent
    from dermkit.training.distributed.rendezvous import Rendezvous

_RANK_COMMAND = (sys.executable, "-m", "dermkit.cli")
RENDEZVOUS_SECONDS = 600.0
"""Seconds that machines wait for each other: a scheduler may need minutes to start one anew. Chosen, not measured."""


@dataclass(frozen=True)
class NodeConfig:
    """What a supervisor is told: it runs `command` as `ranks_per_node` ranks on machine `node_rank` of `n_nodes`.

    master_address, master_port: of machine 0's rendezvous store. say: gets a line for people.
    """

    node_rank: int
    n_nodes: int
    ranks_per_node: int
    master_address: str
    master_port: int
    command: tuple[str, ...]
    say: Callable[[str], None]

    def run_ranks(self, rendezvous: "Rendezvous", attempt: int, signals: Sequence[int]) -> "RankAgent":
        """Run this machine's ranks to their end; every launch after the first has `--resume`.

        signals: requests to stop, which grow while this runs.
        """
        from dermkit.training.distributed.rank_agent import run_agent

        # torch's threads: the ranks share the cores evenly, instead of each taking all of them.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // self.ranks_per_node)))
        if self.n_nodes == 1:
            # Otherwise gloo resolves the host's own name, which may fail where the machine has no network.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ[SUPERVISOR_VARIABLE] = str(os.getpid())
        resume = ["--resume"] if attempt and "--resume" not in self.command else []
        # A new port for each launch, so that no rank can meet what is left of the launch before.
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
    """Run a command line as `devices` ranks on each of `nodes` machines; returns its exit code.

    Where a rank ends with one of dermkit's exit codes, all end with that. Where a rank is lost (any other end), all are
    ended and launched afresh with --resume, at most `restarts` times; then `DermkitError` is raised. The first SIGINT,
    SIGTERM or SIGHUP asks the ranks to stop with a checkpoint, the second kills them. Raises `UsageError` where several
    machines are not told where to meet.
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
    """Launch the ranks until the command ends by itself, at most 1 + `restarts` times; returns its exit code."""
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
    """Launch all ranks on all machines once; returns when none is left."""
    from torch.distributed import DistError

    rendezvous.open_attempt(attempt)
    if not _wait_for_nodes(config, rendezvous, signals, attempt):
        return ExitStatus(130)
    try:
        agent = config.run_ranks(rendezvous, attempt, signals)
    except DistError as error:
        if config.n_nodes == 1:
            raise
        # A machine was lost while the agents of this launch joined: that counts as a lost rank.
        rendezvous.post_status(attempt, 1, failure := f"the machines lost each other: {error}")
        return ExitStatus(1, failure)
    status = agent.status or ExitStatus(130 if signals else 1)
    _show_failed_output(config, agent.exits.exit_codes, agent.output_tails, status)
    return status


def _wait_for_nodes(config: NodeConfig, rendezvous: "Rendezvous", signals: list[int], attempt: int) -> bool:
    """Wait until every machine has joined the launch; returns False where a request to stop came first."""
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
        time.sleep(POLL_SECONDS)
    return not signals


def _show_failed_output(
    config: NodeConfig, exit_codes: Mapping[int, int], output_tails: Mapping[int, str], status: ExitStatus
) -> None:
    """Show the last output of the first rank that failed, unless rank 0's own output has told the reason."""
    failed_ranks = [rank for rank, code in exit_codes.items() if code != 0]
    if not failed_ranks or exit_codes.get(0) in EXIT_CODES or not (status.failure or status.code):
        return
    for line in output_tails.get(failed_ranks[0], "").splitlines():
        config.say(f"[rank {failed_ranks[0]}] {line}")


def _follow_leader(config: NodeConfig, signals: list[int]) -> int:
    """Run the launches that machine 0 announces until it names the exit code; a restarted leader is joined again."""
    from torch.distributed import DistError

    while _wait_for_leader(config, signals):
        with contextlib.suppress(DistError):
            return _run_launches(config, _open_rendezvous(config), signals)
        config.say("machine 0 does not answer; waiting for it")
    return 130


def _wait_for_leader(config: NodeConfig, signals: list[int]) -> bool:
    """Wait until machine 0 listens; returns False where a request to stop came first."""
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
    """Run this machine's ranks in every launch that machine 0 announces; returns the command's exit code."""
    previous = -1
    while (code := rendezvous.exit_code()) is None:
        if len(signals) > 1:
            return 130
        attempt = rendezvous.join_next(previous)
        if attempt is not None:
            config.run_ranks(rendezvous, attempt, signals)
            previous = attempt
        time.sleep(POLL_SECONDS)
    return code


@contextmanager
def _collected_signals() -> Iterator[list[int]]:
    """Collect the signals that ask this process to stop; SIGHUP counts unless it is ignored, as under nohup."""
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
