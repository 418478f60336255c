"""Messages between the supervisors of several machines, as keys of a torch `TCPStore` that machine 0 serves.

Machine 0 numbers the launches, collects the exit codes of all ranks and judges them; the others start and end their
ranks accordingly. Whoever reaches its port can end a training, so the port must stay inside a trusted network.

| key (A: number of the launch) | value | written by |
|---|---|---|
| attempt | A, the launch that is on | machine 0 |
| A/joined/NODE | how often the machine joined it | the machine |
| A/exit/RANK | [exit code, last output] | the rank's machine; machine 0 for a silent one |
| A/interrupt | "", a request to stop | machine 0 |
| A/status | [exit code, failure], how the launch ended | machine 0 |
| beat/NODE | a counter, the heartbeat | the machine |
| finish | the command's exit code | machine 0 |
| bye/NODE | "", `finish` was read | the machine |
"""

import contextlib
import json
import time

from torch.distributed import DistError, HashStore, Store  # type: ignore[attr-defined]

from dermkit.training.distributed.exits import LOST_NODE_CODE

SILENCE_SECONDS = 60.0
"""Seconds without a heartbeat after which a machine counts as lost. Chosen, not measured; heartbeats come up to 20
times a second."""
FAREWELL_SECONDS = 10.0
"""Seconds for which machine 0 keeps the store open so that the others can read the exit code."""


class Rendezvous:
    """One machine's connection to the others. store: shared with them; None with one machine, which needs none."""

    def __init__(self, node_rank: int, n_nodes: int, ranks_per_node: int, store: Store | None = None) -> None:
        self.node_rank, self.n_nodes, self.ranks_per_node = node_rank, n_nodes, ranks_per_node
        self.store = HashStore() if store is None else store
        self.heard: dict[int, tuple[bytes, float]] = {}

    def open_attempt(self, attempt: int) -> None:
        """Announce a launch (machine 0)."""
        self.heard = {}
        self.store.set("attempt", str(attempt))

    def missing_nodes(self, attempt: int) -> list[int]:
        """Return the machines that have not joined a launch yet."""
        return [node for node in range(1, self.n_nodes) if not self._has(f"{attempt}/joined/{node}")]

    def join_next(self, previous: int) -> int | None:
        """Join the current launch if it is not `previous`; returns its number, else None.

        A machine that joins a launch for the second time was restarted: its ranks of that launch are reported as lost.
        """
        self.beat()
        attempt = int(self.store.get("attempt")) if self._has("attempt") else -1
        if attempt in (-1, previous):
            return None
        if self.store.add(f"{attempt}/joined/{self.node_rank}", 1) == 1:
            return attempt
        self._post_lost(attempt, self.node_rank)
        return None

    def post_exit(self, attempt: int, rank: int, code: int, output: str) -> None:
        """Report a rank's exit to machine 0; the first report counts."""
        if not self._has(f"{attempt}/exit/{rank}"):
            self.store.set(f"{attempt}/exit/{rank}", json.dumps([code, output]))

    def read_exits(self, attempt: int, known: dict[int, int]) -> list[tuple[int, int, str]]:
        """Return (rank, exit code, last output) of exits that are not in `known` (machine 0).

        All ranks of a machine without a heartbeat for `SILENCE_SECONDS` count as lost. Only changes of the counter and
        this machine's own clock are used: clocks of machines differ.
        """
        for node in range(1, self.n_nodes):
            beat = self.store.get(f"beat/{node}") if self._has(f"beat/{node}") else b""
            last_beat, heard_at = self.heard.get(node, (b"", 0.0))
            if beat != last_beat or node not in self.heard:
                self.heard[node] = (beat, time.monotonic())
            elif time.monotonic() - heard_at > SILENCE_SECONDS:
                self._post_lost(attempt, node)
        ends = []
        for rank in range(self.n_nodes * self.ranks_per_node):
            if rank not in known and self._has(f"{attempt}/exit/{rank}"):
                code, output = json.loads(self.store.get(f"{attempt}/exit/{rank}"))
                ends.append((rank, code, output))
        return ends

    def post_status(self, attempt: int, code: int, failure: str) -> None:
        """Announce how a launch ended (machine 0)."""
        self.store.set(f"{attempt}/status", json.dumps([code, failure]))

    def read_status(self, attempt: int) -> tuple[int, str] | None:
        """Return (exit code, failure) of a launch that ended, else None; it is also a heartbeat."""
        self.beat()
        if not self._has(f"{attempt}/status"):
            return None
        code, failure = json.loads(self.store.get(f"{attempt}/status"))
        return code, failure

    def post_interrupt(self, attempt: int) -> None:
        """Ask the ranks of every machine to stop with a checkpoint (machine 0)."""
        self.store.set(f"{attempt}/interrupt", "")

    def is_interrupted(self, attempt: int) -> bool:
        """Return whether machine 0 asked for a stop."""
        return self._has(f"{attempt}/interrupt")

    def exit_code(self) -> int | None:
        """Return the command's exit code once machine 0 announced it, else None."""
        if not self._has("finish"):
            return None
        code = int(self.store.get("finish"))
        with contextlib.suppress(DistError):
            self.store.set(f"bye/{self.node_rank}", "")
        return code

    def close(self, code: int) -> None:
        """Announce the command's exit code, and keep the store open until the others have read it (machine 0)."""
        self.store.set("finish", str(code))
        deadline = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline:
            waiting = [node for node in range(1, self.n_nodes) if self._has(f"beat/{node}")]
            if all(self._has(f"bye/{node}") for node in waiting):
                return
            time.sleep(0.05)

    def beat(self) -> None:
        """Count the heartbeat up."""
        self.store.add(f"beat/{self.node_rank}", 1)

    def _post_lost(self, attempt: int, node: int) -> None:
        for rank in range(node * self.ranks_per_node, (node + 1) * self.ranks_per_node):
            self.post_exit(attempt, rank, LOST_NODE_CODE, "")

    def _has(self, key: str) -> bool:
        return bool(self.store.check([key]))
