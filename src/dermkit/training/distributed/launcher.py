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
from dermkit.threads import cores
from dermkit.training.distributed.environment import SUPERVISOR, Place, missing, number
from dermkit.training.distributed.rendezvous import LOST, Link, Team

COMMAND = (sys.executable, "-m", "dermkit.cli")
OWN_CODES = {*range(2, 8), 130}
"""Exit codes by which dermkit itself ends: the group ends with them; any other means that a rank was lost."""

GRACE = 60.0
"""Seconds that the others have to end by themselves, once a rank ended as dermkit does: a checkpoint takes time."""
SETTLE = 3.0
"""Seconds to wait for such a code when a rank ended with another: one rank's end makes its partners fail."""
TERM = 3.0
"""Seconds between SIGTERM and SIGKILL."""
TICK = 0.05
"""Seconds between two looks at the ranks."""
MEET = 600.0
"""Seconds that machines wait for each other."""


@dataclass(frozen=True)
class Verdict:
    """How a launch ended: with a code that is the command's own, or, with `lost`, because of what befell a rank."""

    code: int
    lost: str = ""


@dataclass
class Codes:
    """The exit codes of a launch's ranks, negative for a signal, and when the first end that matters was seen."""

    size: int
    ended: dict[int, int] = field(default_factory=dict)
    since: float = 0.0

    def add(self, rank: int, code: int) -> None:
        """Note an end; what matters is every bad one, and rank 0's."""
        if not self.since and (code != 0 or rank == 0):
            self.since = time.monotonic()
        self.ended.setdefault(rank, code)

    def judge(self, *, interrupted: bool) -> Verdict | None:
        """Return how the launch ended, or nothing while it may go on."""
        own = [code for _, code in sorted(self.ended.items()) if code in OWN_CODES]
        bad = [rank for rank, code in self.ended.items() if code != 0]
        waited = time.monotonic() - self.since if self.since else 0.0
        complete = len(self.ended) == self.size
        if bad and not own and not interrupted:
            killed = [rank for rank in bad if self.ended[rank] < 0]
            rank = (killed or bad)[0]
            sure = killed or complete or waited > SETTLE
            return Verdict(1, f"rank {rank} was lost: {_how(self.ended[rank])}") if sure else None
        if not complete and waited <= GRACE:
            return None
        return Verdict(own[0] if own else 130 if interrupted and bad else 0)


def _how(code: int) -> str:
    if code == LOST:
        return "its machine does not answer"
    if code >= 0:
        return f"it ended with code {code}"
    known = {int(item): item.name for item in signal.Signals}
    return f"killed by {known.get(-code, f'signal {-code}')}"


class Group:
    """The ranks of one machine in one launch, each the leader of a process group of its own."""

    def __init__(self, command: Sequence[str], places: Sequence[Place]) -> None:
        self.words: dict[int, IO[bytes]] = {}
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        for place in places:
            # Rank 0 speaks for all; what the others say is kept, and shown where they were the reason for the end.
            own = self.words.setdefault(place.rank, tempfile.TemporaryFile()) if place.rank else None  # noqa: SIM115
            self.running[place.rank] = subprocess.Popen(  # noqa: S603
                command, env=_environment(place), stdin=subprocess.DEVNULL, stdout=own, stderr=own, process_group=0
            )

    def poll(self) -> list[tuple[int, int]]:
        """Return (rank, exit code) of those that ended since the last call; what they left behind is killed."""
        ended = []
        for rank, process in list(self.running.items()):
            # Seen before it is buried: until then its number, and its group's, cannot be given to another process.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill(process.pid, signal.SIGKILL)
                ended.append((rank, process.wait()))
                del self.running[rank]
        return ended

    def interrupt(self) -> None:
        """Ask every rank to stop with a checkpoint; not its helpers, which it ends itself."""
        for process in self.running.values():
            process.send_signal(signal.SIGINT)

    def last_words(self, rank: int) -> str:
        """Return the end of what a rank said, if it was kept."""
        stream = self.words.get(rank)
        if stream is None:
            return ""
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4000))
        return stream.read().decode(errors="replace").strip()

    def end(self, wait: float = TERM) -> None:
        """End every rank and all that it started: SIGTERM, then SIGKILL; returns when no rank is left."""
        deadline = time.monotonic() + wait
        for process in self.running.values():
            _kill(process.pid, signal.SIGTERM)
        while self.running and time.monotonic() < deadline:
            self.poll()
            time.sleep(TICK)
        for process in self.running.values():
            _kill(process.pid, signal.SIGKILL)
        while self.running:
            self.poll()
            time.sleep(TICK)
        for stream in self.words.values():
            stream.close()


def _kill(group: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, how)


def _environment(place: Place) -> dict[str, str]:
    """Return a rank's environment: its place, a fair part of the cores, and whom to follow into death."""
    own_cores = max(1, cores() // place.local_size)
    defaults = {"OMP_NUM_THREADS": str(own_cores)}
    if place.address == "127.0.0.1":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks up the host's own name, which may lead nowhere
    own = {
        "RANK": place.rank, "WORLD_SIZE": place.size, "LOCAL_RANK": place.local_rank,
        "LOCAL_WORLD_SIZE": place.local_size, "NODE_RANK": place.node, "GROUP_RANK": place.node,
        "MASTER_ADDR": place.address, "MASTER_PORT": place.port, SUPERVISOR: os.getpid(),
    }  # fmt: skip
    return {**defaults, **os.environ, **{name: str(value) for name, value in own.items()}}


@dataclass(frozen=True)
class Site:
    """What a supervisor knows: machine `node` of `nodes`, ranks per machine, where they meet, and what to run."""

    node: int
    nodes: int
    devices: int
    address: str
    port: int
    command: tuple[str, ...]
    say: Callable[[str], None]

    def group(self, launch: int, port: int) -> Group:
        """Start this machine's ranks; a launch after the first goes on from the last checkpoint."""
        first, size = self.node * self.devices, self.nodes * self.devices
        places = [
            Place(first + local, size, local, self.devices, self.node, self.address, port)
            for local in range(self.devices)
        ]
        resume = ["--resume"] if launch and "--resume" not in self.command else []
        return Group([*self.command, *resume], places)


def supervise(
    arguments: Sequence[str],
    *,
    devices: int,
    nodes: int,
    restarts: int,
    say: Callable[[str], None],
    command: Sequence[str] = COMMAND,
) -> int:
    """Run a command line on `devices` ranks of each of `nodes` machines; returns its exit code.

    A rank that dies otherwise than with one of dermkit's exit codes ends the whole group, which is launched afresh with
    --resume, at most `restarts` times; then `DermkitError`. The first SIGINT, SIGTERM or SIGHUP asks the ranks to stop
    with a checkpoint, the second one kills them. Raises `UsageError` where several machines are not told where to meet.
    """
    site = _site(devices, nodes, (*command, *arguments), say)
    with _signals() as seen:
        return _follow(site, seen) if site.node else _lead(site, seen, restarts)


def _site(devices: int, nodes: int, command: tuple[str, ...], say: Callable[[str], None]) -> Site:
    if devices < 1 or nodes < 1:
        raise UsageError(f"--devices {devices} --nodes {nodes}: both are 1 or more")
    if nodes == 1:
        return Site(0, 1, devices, "127.0.0.1", 0, command, say)
    environ: Mapping[str, str] = os.environ
    if not environ.get("MASTER_ADDR"):
        raise missing("MASTER_ADDR")
    node = number(environ, "NODE_RANK")
    if not 0 <= node < nodes:
        raise UsageError(f"NODE_RANK={node}: is not one of the {nodes} machines", remedy=f"give 0 to {nodes - 1}")
    return Site(node, nodes, devices, environ["MASTER_ADDR"], number(environ, "MASTER_PORT"), command, say)


def _lead(site: Site, seen: list[int], restarts: int) -> int:
    """Launch until the command ends by itself or was launched too often."""
    team, code = Team(site.nodes, site.devices, site.port), 1
    try:
        for launch in range(restarts + 1):
            verdict = _launch(site, team, seen, launch)
            if not verdict.lost:
                code = verdict.code
                return code
            again = f"launching afresh from the last checkpoint, {launch + 1} of {restarts}"
            site.say(f"{verdict.lost}; {again if launch < restarts else 'not launched again'}")
        raise DermkitError(
            f"{verdict.lost}, after {restarts} fresh launches",
            kept="the last checkpoint",
            remedy="look at the messages above and the machine's log (out of memory?), then run it with --resume",
        )
    finally:
        team.close(code)


def _launch(site: Site, team: Team, seen: list[int], launch: int) -> Verdict:
    """Start all ranks on all machines, watch them, and leave none."""
    if not _met(site, team, seen):
        return Verdict(130)
    port = site.port + 1 + launch if site.nodes > 1 else _free_port()
    team.tell({"start": launch, "port": port})
    group, codes, forwarded = site.group(launch, port), Codes(site.nodes * site.devices), 0
    words: dict[int, str] = {}
    try:
        while (verdict := codes.judge(interrupted=bool(seen))) is None:
            if len(seen) > 1:
                return Verdict(130)
            if len(seen) > forwarded:
                forwarded = 1
                group.interrupt()
                team.tell({"interrupt": True})
            for rank, code in group.poll():
                codes.add(rank, code)
                words[rank] = group.last_words(rank)
            for rank, code, said in team.poll(launch):
                codes.add(rank, code)
                words[rank] = said
            time.sleep(TICK)
        _show(site, codes, words, verdict)
        return verdict
    finally:
        team.tell({"stop": launch})
        group.end(0.0 if len(seen) > 1 else TERM)


def _met(site: Site, team: Team, seen: list[int]) -> bool:
    """Wait until every machine is there; tells whether nobody stopped it."""
    deadline = time.monotonic() + MEET
    while not team.complete():
        if seen:
            return False
        if time.monotonic() > deadline:
            absent = sorted(set(range(1, site.nodes)) - set(team.links))
            raise DermkitError(
                f"no sign of machine {', '.join(map(str, absent))} for {MEET / 60:.0f} minutes",
                remedy=f"start it with NODE_RANK, MASTER_ADDR={site.address} and MASTER_PORT={site.port}",
            )
        time.sleep(TICK)
    return not seen


def _show(site: Site, codes: Codes, words: Mapping[int, str], verdict: Verdict) -> None:
    """Show what the first rank that failed said, unless rank 0 speaks for all."""
    bad = [rank for rank, code in codes.ended.items() if code != 0]
    if not bad or codes.ended.get(0) in OWN_CODES or not (verdict.lost or verdict.code):
        return
    for line in words.get(bad[0], "").splitlines():
        site.say(f"[rank {bad[0]}] {line}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _follow(site: Site, seen: list[int]) -> int:
    """Do as machine 0 says until it names the exit code; a leader that was started anew is met again."""
    while (link := _meet_leader(site, seen)) is not None:
        code = _obey(site, link, seen)
        link.close()
        if code is not None:
            return code
        site.say("machine 0 does not answer; waiting for it")
    return 130


def _meet_leader(site: Site, seen: list[int]) -> Link | None:
    """Return a connection to machine 0; nothing if somebody stopped it."""
    deadline = time.monotonic() + MEET
    while not seen:
        try:
            link = Link(socket.create_connection((site.address, site.port), timeout=5.0))
        except OSError as error:
            if time.monotonic() > deadline:
                raise DermkitError(
                    f"{site.address}:{site.port}: machine 0 was not there for {MEET / 60:.0f} minutes: {error}",
                    remedy="start it with NODE_RANK=0 and the same MASTER_ADDR, MASTER_PORT, --devices and --nodes",
                ) from error
            time.sleep(0.5)
        else:
            link.send({"machine": site.node})
            return link
    return None


def _obey(site: Site, link: Link, seen: list[int]) -> int | None:
    """Start and end ranks as the leader says; returns the exit code, or nothing where the leader is gone."""
    group, launch, forwarded = Group((), ()), -1, 0
    try:
        while link.open:
            for order in link.receive():
                if "finish" in order:
                    return int(order["finish"])
                if "stop" in order:
                    group.end()
                if "interrupt" in order:
                    group.interrupt()
                if "start" in order:
                    launch = int(order["start"])
                    group = site.group(launch, int(order["port"]))
            if len(seen) > 1:
                return 130
            if len(seen) > forwarded:
                forwarded = 1
                group.interrupt()
            for rank, code in group.poll():
                link.send({"launch": launch, "rank": rank, "code": code, "words": group.last_words(rank)})
            time.sleep(TICK)
        return None
    finally:
        group.end(0.0 if len(seen) > 1 else TERM)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the requests to stop that this process gets; SIGHUP counts unless it is ignored (nohup)."""
    seen: list[int] = []
    before: dict[int, Any] = {}
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(kind) is not signal.SIG_IGN or kind != signal.SIGHUP:
            before[kind] = signal.signal(kind, lambda number, _frame: seen.append(number))
    try:
        yield seen
    finally:
        for item, handler in before.items():
            signal.signal(item, handler)
