"""What the supervisors of several machines tell each other: keys in torch's `TCPStore`, which machine 0 holds.

The first machine counts the launches, collects the exit codes of all ranks and judges them; the others start and end
their ranks as it says. Whoever reaches its port can end a training, so it belongs on a network of one's own.

Keys, where `A` is the number of the launch: attempt; finish (exit code); beat/NODE (a counter, the sign of life);
A/joined/NODE; A/exit/RANK ([code, last output]); A/interrupt; A/status ([code, failure]); bye/NODE.
"""

import contextlib
import json
import time

from torch.distributed import DistError, HashStore, Store  # type: ignore[attr-defined]

from dermkit.training.distributed.exits import LOST_NODE_CODE

SILENCE_SECONDS = 60.0
"""Seconds without a sign of life until a machine counts as lost."""
FAREWELL_SECONDS = 10.0
"""Seconds that machine 0 keeps the store for the others to read the exit code."""


class Rendezvous:
    """One machine's view of a launch. store: shared with the other machines; with one machine it is private."""

    def __init__(self, node_rank: int, n_nodes: int, ranks_per_node: int, store: Store | None = None) -> None:
        self.node_rank, self.n_nodes, self.ranks_per_node = node_rank, n_nodes, ranks_per_node
        self.store = HashStore() if store is None else store
        self.n_beats = 0
        self.heard: dict[int, tuple[bytes, float]] = {}

    def open_attempt(self, attempt: int) -> None:
        """Announce a launch (machine 0)."""
        self.heard = {}
        self.store.set("attempt", str(attempt))

    def missing_nodes(self, attempt: int) -> list[int]:
        """Return the machines that did not join a launch yet."""
        return [node for node in range(1, self.n_nodes) if not self._has(f"{attempt}/joined/{node}")]

    def join_next(self, previous: int) -> int | None:
        """Join the launch that is on, if it is another than `previous`; returns its number, or nothing.

        A machine that joins a launch for the second time was started anew: its ranks of that launch are gone.
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
        """Tell machine 0 how a rank ended; the first report counts."""
        if not self._has(f"{attempt}/exit/{rank}"):
            self.store.set(f"{attempt}/exit/{rank}", json.dumps([code, output]))

    def read_exits(self, attempt: int, known: dict[int, int]) -> list[tuple[int, int, str]]:
        """Return (rank, exit code, last output) of ends that are not in `known`; all of a machine that is silent."""
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
        """Tell every machine how a launch ended (machine 0)."""
        self.store.set(f"{attempt}/status", json.dumps([code, failure]))

    def read_status(self, attempt: int) -> tuple[int, str] | None:
        """Return exit code and failure of a launch that ended."""
        self.beat()
        if not self._has(f"{attempt}/status"):
            return None
        code, failure = json.loads(self.store.get(f"{attempt}/status"))
        return code, failure

    def post_interrupt(self, attempt: int) -> None:
        """Ask the ranks of every machine to stop with a checkpoint (machine 0)."""
        self.store.set(f"{attempt}/interrupt", "")

    def is_interrupted(self, attempt: int) -> bool:
        """Tell whether machine 0 asked for a stop."""
        return self._has(f"{attempt}/interrupt")

    def exit_code(self) -> int | None:
        """Return the exit code of the whole command, once machine 0 named it."""
        if not self._has("finish"):
            return None
        code = int(self.store.get("finish"))
        with contextlib.suppress(DistError):
            self.store.set(f"bye/{self.node_rank}", "")
        return code

    def close(self, code: int) -> None:
        """Let every machine end with a code, and hold the store until those that live have read it (machine 0)."""
        self.store.set("finish", str(code))
        deadline = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline:
            waiting = [node for node in range(1, self.n_nodes) if self._has(f"beat/{node}")]
            if all(self._has(f"bye/{node}") for node in waiting):
                return
            time.sleep(0.05)

    def beat(self) -> None:
        """Give a sign of life."""
        self.n_beats += 1
        self.store.set(f"beat/{self.node_rank}", str(self.n_beats))

    def _post_lost(self, attempt: int, node: int) -> None:
        for rank in range(node * self.ranks_per_node, (node + 1) * self.ranks_per_node):
            self.post_exit(attempt, rank, LOST_NODE_CODE, "")

    def _has(self, key: str) -> bool:
        return bool(self.store.check([key]))
