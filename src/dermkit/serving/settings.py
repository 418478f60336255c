"""What a server is told at its start: the model, the address, the keys, and the limits of every request."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from dermkit.errors import UsageError

MEBIBYTE = 2**20
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """The limits of a server. Sizes in bytes, times in seconds; each number was chosen, none is tuned.

    max_images: of one request. max_image_bytes, max_body_bytes: of one image and one body, as they arrive.
    max_buffered_bytes: of all bodies that are held at one time. max_waiting: images that wait for the model, of all
    requests. batch_size: images that the model takes together. max_connections: open at one time; a further one is
    closed at once. header_seconds: from the first moment of a request to the end of its headers.
    body_seconds, min_body_rate: a body may take this long, and longer by what arrived divided by this rate in bytes per
    second; at most max_body_seconds. send_seconds: for a client to take an answer. idle_seconds: between two requests
    of a connection. image_seconds: for one image in the worker, else the worker is ended; a batch may take as many
    times as long. explain_seconds: for one heat map. worker_bytes: memory that the worker may take beyond what the
    loaded model takes (Linux). stop_seconds: to answer what was accepted before the server stops.
    """

    max_images: int = 16
    max_image_bytes: int = 32 * MEBIBYTE
    max_body_bytes: int = 64 * MEBIBYTE
    max_buffered_bytes: int = 512 * MEBIBYTE
    max_waiting: int = 64
    batch_size: int = 32
    max_connections: int = 2048
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    min_body_rate: int = 64 * 1024
    max_body_seconds: float = 120.0
    send_seconds: float = 20.0
    idle_seconds: int = 5
    image_seconds: float = 20.0
    explain_seconds: float = 90.0
    worker_bytes: int = 4096 * MEBIBYTE
    stop_seconds: int = 60

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) <= 0:
                raise UsageError(f"{limit.name} = {getattr(self, limit.name)}: not above 0")
        if self.max_waiting < self.max_images:
            raise UsageError(
                f"max_waiting = {self.max_waiting} is less than max_images = {self.max_images}, so the largest request "
                "could never be accepted",
                remedy="let more images wait, or fewer be in a request",
            )


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What a server is told at its start.

    model: a model folder, the run folder that holds it, or a registry. host, port: the address to bind, port 0 = any
    that is free. keys: the file of API keys, None = none are asked for. allowed_hosts: names under which the server is
    reached besides the bound one. target, coverage, device: as in `dermkit predict`. workers: threads of the model,
    0 = all cores. Raises `UsageError` for an address that others reach without keys, and one without a name.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    target: str | None = None
    coverage: float | None = None
    device: str = "auto"
    workers: int = 0
    limits: ServeLimits = field(default_factory=ServeLimits)

    def __post_init__(self) -> None:
        if is_loopback(self.host):
            return
        if self.keys is None:
            raise UsageError(
                f"--host {self.host}: others can reach this address, and no API keys are asked for",
                outcome="no server was started",
                remedy="make keys with `dermkit keys make FILE --name NAME` and give --keys FILE, or leave out --host",
            )
        if is_wildcard(self.host) and not self.allowed_hosts:
            raise UsageError(
                f"--host {self.host}: stands for every address of this machine, so the names by which the server is "
                "reached are not known",
                outcome="no server was started",
                remedy="give each with --allow-host, such as --allow-host lesions.example.org",
            )

    @property
    def trusted_hosts(self) -> frozenset[str]:
        """Return the names and addresses, in lower case, that a request may name as its host."""
        bound = () if is_wildcard(self.host) else (self.host,)
        return self.named_hosts | {name.lower().strip("[]") for name in (*LOOPBACK_NAMES, *bound)}

    @property
    def named_hosts(self) -> frozenset[str]:
        """Return the names, in lower case, that were given besides the bound one: a proxy may stand there."""
        return frozenset(name.lower().strip("[]") for name in self.allowed_hosts)


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone; a name other than localhost is not trusted."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Return whether an address stands for every address of the machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return host == ""


def limits_with(changes: Mapping[str, float | None]) -> ServeLimits:
    """Return the limits with some of them changed, None = as they are."""
    values = {name: value for name, value in changes.items() if value is not None}
    return ServeLimits(**values)  # type: ignore[arg-type]
