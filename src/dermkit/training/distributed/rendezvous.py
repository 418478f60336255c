"""What the supervisors of several machines tell each other: JSON objects, one per line, over TCP.

Machine 0 listens. Whoever reaches its port can end a training, so it belongs on a network of one's own.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

LOST = -1000
"""The exit code of a rank whose machine went silent."""
ALIVE, SILENCE = 5.0, 60.0
"""Seconds between two signs of life of a machine, and without one until it counts as lost."""


class Link:
    """A connection to another machine's supervisor: JSON objects, one per line, and signs of life."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.received = b""
        self.sent_at = self.heard_at = time.monotonic()
        self.open = True

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
        if time.monotonic() - self.sent_at > ALIVE:
            self.send({"alive": True})
        try:
            self.stream.settimeout(0.0)
            while part := self.stream.recv(65536):
                self.received, self.heard_at = self.received + part, time.monotonic()
            self.close()
        except BlockingIOError:
            if time.monotonic() - self.heard_at > SILENCE:
                self.close()
        except OSError:
            self.close()
        *lines, self.received = self.received.split(b"\n")
        try:
            return [item for item in map(json.loads, lines) if isinstance(item, dict)]
        except ValueError:  # not a supervisor
            self.close()
            return []

    def close(self) -> None:
        """Close the connection."""
        self.open = False
        self.stream.close()


class Team:
    """The other machines, as the leader sees them, each with `devices` ranks; none with one machine."""

    def __init__(self, nodes: int, devices: int, port: int) -> None:
        self.nodes, self.devices = nodes, devices
        self.links: dict[int, Link] = {}
        self.new: list[Link] = []
        self.server = socket.create_server(("", port)) if nodes > 1 else None
        if self.server is not None:
            self.server.setblocking(False)

    def complete(self) -> bool:
        """Let machines in that ask; tells whether all are there."""
        with contextlib.suppress(BlockingIOError):
            while self.server is not None:
                self.new.append(Link(self.server.accept()[0]))
        for link in list(self.new):
            for message in link.receive():
                machine = message.get("machine")
                if isinstance(machine, int) and 0 < machine < self.nodes:
                    self.links[machine] = link
            if link in self.links.values() or not link.open:
                self.new.remove(link)
        self.links = {machine: link for machine, link in self.links.items() if link.open}
        return len(self.links) == self.nodes - 1

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to every machine."""
        for link in self.links.values():
            link.send(message)

    def poll(self, launch: int) -> Iterator[tuple[int, int, str]]:
        """Yield (rank, exit code, last words) of ends on other machines; all of a machine that is gone."""
        for machine, link in list(self.links.items()):
            for message in link.receive():
                if message.get("launch") == launch:
                    yield int(message["rank"]), int(message["code"]), str(message["words"])
            if not link.open:
                del self.links[machine]
                first = machine * self.devices
                yield from ((rank, LOST, "") for rank in range(first, first + self.devices))

    def close(self, code: int) -> None:
        """Let every machine end with a code."""
        self.tell({"finish": code})
        for link in (*self.links.values(), *self.new):
            link.close()
        if self.server is not None:
            self.server.close()
