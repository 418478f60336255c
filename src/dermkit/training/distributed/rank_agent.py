"""One launch of the ranks of one machine, by torch's elastic agent.

torch's agent joins the machines, starts the ranks with torchrun's variables and redirects their output. Its own
restart is not used (`max_restarts=0`): torch 2.13 restarts for any exit code, ends with 1 whatever the ranks' code was,
and sends SIGTERM to the other ranks at once, while ours need up to a minute for a checkpoint. So this class decides
when a launch ends, in the two methods that torch documents as extension points, `_monitor_workers` and `_shutdown`.
"""

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import create_rdzv_handler

from dermkit.training.distributed.exits import POLL_SECONDS, ExitStatus, RankExits
from dermkit.training.distributed.rendezvous import Rendezvous

TERM_SECONDS = 3.0
"""Seconds between SIGTERM and SIGKILL. Few, since such a rank has lost its partners and cannot go on."""
JOIN_SECONDS = 60
"""Seconds that the agents of a launch wait for each other; all supervisors have joined before it begins."""
_OUTPUT_TAIL_BYTES = 4000
"""Bytes of a rank's last output that are shown where it was the reason for the end: about 40 lines."""


class RankAgent(LocalElasticAgent):
    """torch's agent, whose launch ends by dermkit's exit codes.

    signals: requests to stop, which the caller appends to while this runs. status: how the launch ended, None before.
    output_tails: rank -> its last output (machine 0 only).
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs: DefaultLogsSpecs,
        rendezvous: Rendezvous,
        attempt: int,
        signals: Sequence[int],
    ) -> None:
        super().__init__(spec, logs)
        self.rendezvous, self.attempt, self.signals = rendezvous, attempt, signals
        self.exits = RankExits(rendezvous.n_nodes * rendezvous.ranks_per_node)
        self.output_tails: dict[int, str] = {}
        self.status: ExitStatus | None = None
        self._ended: set[int] = set()
        self._is_interrupted = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Forward a request to stop, collect exit codes, and return to torch whether the launch is over."""
        self._forward_interrupt()
        for local_rank, code in self._poll():
            rank = worker_group.workers[local_rank].global_rank
            self.rendezvous.post_exit(self.attempt, rank, code, self._output_tail(local_rank))
        self.status = ExitStatus(130) if len(self.signals) > 1 else self._read_status()
        if self.status is None:
            return RunResult(WorkerState.HEALTHY)
        if self.rendezvous.node_rank == 0:
            self.rendezvous.post_status(self.attempt, self.status.code, self.status.failure)
        # Also for a good end: after SUCCEEDED torch waits for the other agents, which end by themselves here. The
        # command's exit code is in `status`.
        return RunResult(WorkerState.FAILED)

    def _read_status(self) -> ExitStatus | None:
        """Return how the launch ended, or None: machine 0 decides by all ranks' exit codes, the others read it."""
        if self.rendezvous.node_rank:
            status = self.rendezvous.read_status(self.attempt)
            return None if status is None else ExitStatus(*status)
        for rank, code, output in self.rendezvous.read_exits(self.attempt, self.exits.exit_codes):
            self.exits.add(rank, code)
            self.output_tails[rank] = output
        return self.exits.exit_status(interrupted=bool(self.signals))

    def _forward_interrupt(self) -> None:
        """Send SIGINT to every rank once; not to its process group, since a rank ends its helper processes itself."""
        if self._is_interrupted or not (self.signals or self.rendezvous.is_interrupted(self.attempt)):
            return
        self._is_interrupted = True
        if self.rendezvous.node_rank == 0:
            self.rendezvous.post_interrupt(self.attempt)
        for local_rank in self._running():
            self._process(local_rank).send_signal(signal.SIGINT)

    def _running(self) -> dict[int, int]:
        """Return local rank -> process number of the ranks that were not seen to end."""
        pids = self._pcontext.pids() if self._pcontext is not None else {}
        return {local_rank: pid for local_rank, pid in pids.items() if local_rank not in self._ended}

    def _poll(self) -> list[tuple[int, int]]:
        """Return (local rank, exit code) of ranks that ended since the last call, and kill what they left running."""
        exits = []
        for local_rank, pid in self._running().items():
            # WNOWAIT: it is not reaped yet, so its number and its group's cannot have been given to another process.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill_group(pid, signal.SIGKILL)
                self._ended.add(local_rank)
                exits.append((local_rank, self._process(local_rank).wait()))
        return exits

    def _process(self, local_rank: int) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = cast(Any, self._pcontext).subprocess_handlers[local_rank].proc
        return process

    def _output_tail(self, local_rank: int) -> str:
        """Return the last output of a rank; "" where it went to the console."""
        context = cast(Any, self._pcontext)
        paths = (context.stdouts[local_rank], context.stderrs[local_rank])
        tails = [Path(path).read_bytes()[-_OUTPUT_TAIL_BYTES:].decode(errors="replace") for path in paths if path]
        return "".join(tails).strip()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """End every rank and its process group: `death_sig`, then SIGKILL; returns when no rank is left.

        torch's own method leaves the processes that a killed rank had forked, and waits 30 seconds before SIGKILL.
        """
        deadline = time.monotonic() + (0.0 if len(self.signals) > 1 else TERM_SECONDS)
        for pid in self._running().values():
            _kill_group(pid, death_sig)
        while self._running() and time.monotonic() < deadline:
            self._poll()
            time.sleep(POLL_SECONDS)
        for pid in self._running().values():
            _kill_group(pid, signal.SIGKILL)
        while self._running():
            self._poll()
            time.sleep(POLL_SECONDS)
        super()._shutdown(death_sig, timeout)


def _kill_group(process_group_id: int, signal_number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_group_id, signal_number)


def run_agent(
    command: Sequence[str], rendezvous: Rendezvous, attempt: int, signals: Sequence[int], address: str, port: int
) -> RankAgent:
    """Run one launch on this machine to its end; returns the agent, which holds status and outputs.

    attempt: number of the launch, from 0. address, port: where the ranks meet; port 0 takes a free one (one machine).
    """
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the launcher says it in fewer words
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # the caller's handlers stay
    # This store is held to the end, and torch's rendezvous shares it: no other process can take the port in between.
    store = TCPStore(address, 0, None, True, timedelta(seconds=JOIN_SECONDS), False, True) if port == 0 else None
    port = store.port if store is not None else port
    parameters = RendezvousParameters(
        "static",
        f"{address}:{port}",
        f"launch-{attempt}",
        rendezvous.n_nodes,
        rendezvous.n_nodes,
        rank=rendezvous.node_rank,
        timeout=JOIN_SECONDS,
    )
    with tempfile.TemporaryDirectory() as folder:
        # Rank 0 alone writes to the console. Other ranks write to files, shown if one was the reason for the end.
        first_silent = 1 if rendezvous.node_rank == 0 else 0
        logs = DefaultLogsSpecs(
            folder, redirects=dict.fromkeys(range(first_silent, rendezvous.ranks_per_node), Std.ALL)
        )
        spec = WorkerSpec(
            role="rank",
            local_world_size=rendezvous.ranks_per_node,
            rdzv_handler=create_rdzv_handler(parameters),
            entrypoint=command[0],
            args=tuple(command[1:]),
            max_restarts=0,
            monitor_interval=POLL_SECONDS,
            master_addr=address,
            master_port=port,
        )
        agent = RankAgent(spec, logs, rendezvous, attempt, signals)
        agent.run()
    return agent
