"""What the supervisors of several machines tell each other: JSON objects, one per line, over TCP.

Machine 0 listens. Whoever reaches its port can end a training, so it belongs on a network of one's own.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

LOST_NODE_CODE = -1000
"""The exit code of a rank whose machine went silent."""
HEARTBEAT_SECONDS, SILENCE_SECONDS = 5.0, 60.0
"""Seconds between two signs of life of a machine, and without one until it counts as lost."""


class Connection:
    """A connection to another machine's supervisor: JSON objects, one per line, and signs of life."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.buffer = b""
        self.sent_at = self.heard_at = time.monotonic()
        self.is_open = True

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; a broken connection is closed."""
        self.sent_at = time.monotonic()
        try:
            self.stream.settimeout(10.0)
            self.stream.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.close()

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that are there; closes the link where it is broken or was silent for too long."""
        if time.monotonic() - self.sent_at > HEARTBEAT_SECONDS:
            self.send({"alive": True})
        try:
            self.stream.settimeout(0.0)
            while chunk := self.stream.recv(65536):
                self.buffer, self.heard_at = self.buffer + chunk, time.monotonic()
            self.close()
        except BlockingIOError:
            if time.monotonic() - self.heard_at > SILENCE_SECONDS:
                self.close()
        except OSError:
            self.close()
        *lines, self.buffer = self.buffer.split(b"\n")
        try:
            return [message for message in map(json.loads, lines) if isinstance(message, dict)]
        except ValueError:  # not a supervisor
            self.close()
            return []

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        self.stream.close()


class Rendezvous:
    """The other machines, as the leader sees them, each with `devices` ranks; none with one machine."""

    def __init__(self, n_nodes: int, ranks_per_node: int, port: int) -> None:
        self.n_nodes, self.ranks_per_node = n_nodes, ranks_per_node
        self.connections: dict[int, Connection] = {}
        self.new_connections: list[Connection] = []
        self.server = socket.create_server(("", port)) if n_nodes > 1 else None
        if self.server is not None:
            self.server.setblocking(False)

    def accept_nodes(self) -> bool:
        """Let machines in that ask; tells whether all are there."""
        with contextlib.suppress(BlockingIOError):
            while self.server is not None:
                self.new_connections.append(Connection(self.server.accept()[0]))
        for connection in list(self.new_connections):
            for message in connection.receive():
                node_rank = message.get("machine")
                if isinstance(node_rank, int) and 0 < node_rank < self.n_nodes:
                    self.connections[node_rank] = connection
            if connection in self.connections.values() or not connection.is_open:
                self.new_connections.remove(connection)
        self.connections = {
            node_rank: connection for node_rank, connection in self.connections.items() if connection.is_open
        }
        return len(self.connections) == self.n_nodes - 1

    def broadcast(self, message: dict[str, Any]) -> None:
        """Send a message to every machine."""
        for connection in self.connections.values():
            connection.send(message)

    def poll(self, attempt: int) -> Iterator[tuple[int, int, str]]:
        """Yield (rank, exit code, last words) of ends on other machines; all of a machine that is gone."""
        for node_rank, connection in list(self.connections.items()):
            for message in connection.receive():
                if message.get("launch") == attempt:
                    yield int(message["rank"]), int(message["code"]), str(message["words"])
            if not connection.is_open:
                del self.connections[node_rank]
                first_rank = node_rank * self.ranks_per_node
                yield from (
                    (rank, LOST_NODE_CODE, "") for rank in range(first_rank, first_rank + self.ranks_per_node)
                )

    def close(self, code: int) -> None:
        """Let every machine end with a code."""
        self.broadcast({"finish": code})
        for connection in (*self.connections.values(), *self.new_connections):
            connection.close()
        if self.server is not None:
            self.server.close()
