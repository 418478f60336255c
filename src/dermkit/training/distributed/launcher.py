"""One process per device: started, watched, ended together, and launched afresh when one is lost. No torch here.

Every rank runs the same command line and is told its place by the environment, in torchrun's names. With several
machines there is one supervisor on each; that of machine 0 leads, and the others do as it says (JSON lines over TCP).
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from dermkit.errors import DermkitError, UsageError
from dermkit.threads import cpu_count
from dermkit.training.distributed.environment import (
    SUPERVISOR_VARIABLE,
    RankInfo,
    int_variable,
    missing_variable_error,
)
from dermkit.training.distributed.rendezvous import LOST_NODE_CODE, Connection, Rendezvous

_RANK_COMMAND = (sys.executable, "-m", "dermkit.cli")
EXIT_CODES = {*range(2, 8), 130}
"""Exit codes by which dermkit itself ends: the group ends with them; any other means that a rank was lost."""

GRACE_SECONDS = 60.0
"""Seconds that the others have to end by themselves, once a rank ended as dermkit does: a checkpoint takes time."""
CODE_WAIT_SECONDS = 3.0
"""Seconds to wait for such a code when a rank ended with another: one rank's end makes its partners fail."""
TERM_SECONDS = 3.0
"""Seconds between SIGTERM and SIGKILL."""
POLL_SECONDS = 0.05
"""Seconds between two looks at the ranks."""
RENDEZVOUS_SECONDS = 600.0
"""Seconds that machines wait for each other."""


@dataclass(frozen=True)
class ExitStatus:
    """How a launch ended: with a code that is the command's own, or, with `failure`, because of what befell a rank."""

    code: int
    failure: str = ""


@dataclass
class RankExits:
    """The exit codes of a launch's ranks, negative for a signal, and when the first end that matters was seen."""

    world_size: int
    exit_codes: dict[int, int] = field(default_factory=dict)
    first_exit_time: float = 0.0

    def add(self, rank: int, code: int) -> None:
        """Note an end; what matters is every bad one, and rank 0's."""
        if not self.first_exit_time and (code != 0 or rank == 0):
            self.first_exit_time = time.monotonic()
        self.exit_codes.setdefault(rank, code)

    def exit_status(self, *, interrupted: bool) -> ExitStatus | None:
        """Return how the launch ended, or nothing while it may go on."""
        dermkit_codes = [code for _, code in sorted(self.exit_codes.items()) if code in EXIT_CODES]
        failed_ranks = [rank for rank, code in self.exit_codes.items() if code != 0]
        seconds_since_exit = time.monotonic() - self.first_exit_time if self.first_exit_time else 0.0
        has_all_exits = len(self.exit_codes) == self.world_size
        if failed_ranks and not dermkit_codes and not interrupted:
            killed_ranks = [rank for rank in failed_ranks if self.exit_codes[rank] < 0]
            rank = (killed_ranks or failed_ranks)[0]
            is_certain = killed_ranks or has_all_exits or seconds_since_exit > CODE_WAIT_SECONDS
            return (
                ExitStatus(1, f"rank {rank} was lost: {_describe_exit(self.exit_codes[rank])}")
                if is_certain
                else None
            )
        if not has_all_exits and seconds_since_exit <= GRACE_SECONDS:
            return None
        return ExitStatus(dermkit_codes[0] if dermkit_codes else 130 if interrupted and failed_ranks else 0)


def _describe_exit(code: int) -> str:
    if code == LOST_NODE_CODE:
        return "its machine does not answer"
    if code >= 0:
        return f"it ended with code {code}"
    signal_names = {int(member): member.name for member in signal.Signals}
    return f"killed by {signal_names.get(-code, f'signal {-code}')}"


class RankProcesses:
    """The ranks of one machine in one launch, each the leader of a process group of its own."""

    def __init__(self, command: Sequence[str], ranks: Sequence[RankInfo]) -> None:
        self.output_files: dict[int, IO[bytes]] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank_info in ranks:
            # Rank 0 speaks for all; what the others say is kept, and shown where they were the reason for the end.
            output_file = None
            if rank_info.rank:
                output_file = self.output_files.setdefault(rank_info.rank, tempfile.TemporaryFile())  # noqa: SIM115
            self.processes[rank_info.rank] = subprocess.Popen(  # noqa: S603
                command,
                env=_rank_environment(rank_info),
                stdin=subprocess.DEVNULL,
                stdout=output_file,
                stderr=output_file,
                process_group=0,
            )

    def poll(self) -> list[tuple[int, int]]:
        """Return (rank, exit code) of those that ended since the last call; what they left behind is killed."""
        exits = []
        for rank, process in list(self.processes.items()):
            # Seen before it is buried: until then its number, and its group's, cannot be given to another process.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill(process.pid, signal.SIGKILL)
                exits.append((rank, process.wait()))
                del self.processes[rank]
        return exits

    def interrupt(self) -> None:
        """Ask every rank to stop with a checkpoint; not its helpers, which it ends itself."""
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)

    def output_tail(self, rank: int) -> str:
        """Return the end of what a rank said, if it was kept."""
        stream = self.output_files.get(rank)
        if stream is None:
            return ""
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4000))
        return stream.read().decode(errors="replace").strip()

    def terminate(self, grace: float = TERM_SECONDS) -> None:
        """End every rank and all that it started: SIGTERM, then SIGKILL; returns when no rank is left."""
        deadline = time.monotonic() + grace
        for process in self.processes.values():
            _kill(process.pid, signal.SIGTERM)
        while self.processes and time.monotonic() < deadline:
            self.poll()
            time.sleep(POLL_SECONDS)
        for process in self.processes.values():
            _kill(process.pid, signal.SIGKILL)
        while self.processes:
            self.poll()
            time.sleep(POLL_SECONDS)
        for stream in self.output_files.values():
            stream.close()


def _kill(process_group_id: int, signal_number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_group_id, signal_number)


def _rank_environment(rank_info: RankInfo) -> dict[str, str]:
    """Return a rank's environment: its place, a fair part of the cores, and whom to follow into death."""
    n_threads = max(1, cpu_count() // rank_info.local_world_size)
    defaults = {"OMP_NUM_THREADS": str(n_threads)}
    if rank_info.master_address == "127.0.0.1":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks up the host's own name, which may lead nowhere
    rank_variables = {
        "RANK": rank_info.rank,
        "WORLD_SIZE": rank_info.world_size,
        "LOCAL_RANK": rank_info.local_rank,
        "LOCAL_WORLD_SIZE": rank_info.local_world_size,
        "NODE_RANK": rank_info.node_rank,
        "GROUP_RANK": rank_info.node_rank,
        "MASTER_ADDR": rank_info.master_address,
        "MASTER_PORT": rank_info.master_port,
        SUPERVISOR_VARIABLE: os.getpid(),
    }
    return {**defaults, **os.environ, **{name: str(value) for name, value in rank_variables.items()}}


@dataclass(frozen=True)
class NodeConfig:
    """What a supervisor knows: machine `node_rank` of `n_nodes`, ranks per machine, where they meet, and what
    to run.
    """

    node_rank: int
    n_nodes: int
    ranks_per_node: int
    master_address: str
    master_port: int
    command: tuple[str, ...]
    say: Callable[[str], None]

    def start_ranks(self, attempt: int, port: int) -> RankProcesses:
        """Start this machine's ranks; a launch after the first goes on from the last checkpoint."""
        first_rank, world_size = self.node_rank * self.ranks_per_node, self.n_nodes * self.ranks_per_node
        ranks = [
            RankInfo(
                first_rank + local_rank,
                world_size,
                local_rank,
                self.ranks_per_node,
                self.node_rank,
                self.master_address,
                port,
            )
            for local_rank in range(self.ranks_per_node)
        ]
        resume = ["--resume"] if attempt and "--resume" not in self.command else []
        return RankProcesses([*self.command, *resume], ranks)


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
    rendezvous, code = Rendezvous(config.n_nodes, config.ranks_per_node, config.master_port), 1
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


def _run_attempt(config: NodeConfig, rendezvous: Rendezvous, signals: list[int], attempt: int) -> ExitStatus:
    """Start all ranks on all machines, watch them, and leave none."""
    if not _wait_for_nodes(config, rendezvous, signals):
        return ExitStatus(130)
    port = config.master_port + 1 + attempt if config.n_nodes > 1 else _free_port()
    rendezvous.broadcast({"start": attempt, "port": port})
    processes, exits, n_forwarded = (
        config.start_ranks(attempt, port),
        RankExits(config.n_nodes * config.ranks_per_node),
        0,
    )
    output_tails: dict[int, str] = {}
    try:
        while (status := exits.exit_status(interrupted=bool(signals))) is None:
            if len(signals) > 1:
                return ExitStatus(130)
            if len(signals) > n_forwarded:
                n_forwarded = 1
                processes.interrupt()
                rendezvous.broadcast({"interrupt": True})
            for rank, code in processes.poll():
                exits.add(rank, code)
                output_tails[rank] = processes.output_tail(rank)
            for rank, code, tail in rendezvous.poll(attempt):
                exits.add(rank, code)
                output_tails[rank] = tail
            time.sleep(POLL_SECONDS)
        _show_failed_output(config, exits, output_tails, status)
        return status
    finally:
        rendezvous.broadcast({"stop": attempt})
        processes.terminate(0.0 if len(signals) > 1 else TERM_SECONDS)


def _wait_for_nodes(config: NodeConfig, rendezvous: Rendezvous, signals: list[int]) -> bool:
    """Wait until every machine is there; tells whether nobody stopped it."""
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not rendezvous.accept_nodes():
        if signals:
            return False
        if time.monotonic() > deadline:
            missing_nodes = sorted(set(range(1, config.n_nodes)) - set(rendezvous.connections))
            raise DermkitError(
                f"no sign of machine {', '.join(map(str, missing_nodes))} for {RENDEZVOUS_SECONDS / 60:.0f} minutes",
                remedy=f"start it with NODE_RANK, MASTER_ADDR={config.master_address} and "
                f"MASTER_PORT={config.master_port}",
            )
        time.sleep(POLL_SECONDS)
    return not signals


def _show_failed_output(
    config: NodeConfig, exits: RankExits, output_tails: Mapping[int, str], status: ExitStatus
) -> None:
    """Show what the first rank that failed said, unless rank 0 speaks for all."""
    failed_ranks = [rank for rank, code in exits.exit_codes.items() if code != 0]
    if not failed_ranks or exits.exit_codes.get(0) in EXIT_CODES or not (status.failure or status.code):
        return
    for line in output_tails.get(failed_ranks[0], "").splitlines():
        config.say(f"[rank {failed_ranks[0]}] {line}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _follow_leader(config: NodeConfig, signals: list[int]) -> int:
    """Do as machine 0 says until it names the exit code; a leader that was started anew is met again."""
    while (connection := _connect_to_leader(config, signals)) is not None:
        code = _run_orders(config, connection, signals)
        connection.close()
        if code is not None:
            return code
        config.say("machine 0 does not answer; waiting for it")
    return 130


def _connect_to_leader(config: NodeConfig, signals: list[int]) -> Connection | None:
    """Return a connection to machine 0; nothing if somebody stopped it."""
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not signals:
        try:
            connection = Connection(
                socket.create_connection((config.master_address, config.master_port), timeout=5.0)
            )
        except OSError as error:
            if time.monotonic() > deadline:
                raise DermkitError(
                    f"{config.master_address}:{config.master_port}: machine 0 was not there for "
                    f"{RENDEZVOUS_SECONDS / 60:.0f} minutes: {error}",
                    remedy="start it with NODE_RANK=0 and the same MASTER_ADDR, MASTER_PORT, --devices and --nodes",
                ) from error
            time.sleep(0.5)
        else:
            connection.send({"machine": config.node_rank})
            return connection
    return None


def _run_orders(config: NodeConfig, connection: Connection, signals: list[int]) -> int | None:
    """Start and end ranks as the leader says; returns the exit code, or nothing where the leader is gone."""
    processes, attempt, n_forwarded = RankProcesses((), ()), -1, 0
    try:
        while connection.is_open:
            for order in connection.receive():
                if "finish" in order:
                    return int(order["finish"])
                if "stop" in order:
                    processes.terminate()
                if "interrupt" in order:
                    processes.interrupt()
                if "start" in order:
                    attempt = int(order["start"])
                    processes = config.start_ranks(attempt, int(order["port"]))
            if len(signals) > 1:
                return 130
            if len(signals) > n_forwarded:
                n_forwarded = 1
                processes.interrupt()
            for rank, code in processes.poll():
                connection.send(
                    {"launch": attempt, "rank": rank, "code": code, "words": processes.output_tail(rank)}
                )
            time.sleep(POLL_SECONDS)
        return None
    finally:
        processes.terminate(0.0 if len(signals) > 1 else TERM_SECONDS)


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
