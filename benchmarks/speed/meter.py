"""One command, measured from outside: time, processor time, memory of the whole tree, and the line that it answers."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asked import MARK

EVERY = 2.0
"""Seconds between two looks at the memory of the tree: each costs the machine some milliseconds."""


@dataclass(frozen=True)
class Measured:
    """What a command cost.

    peak_rss_mb: largest resident set of any one process of the tree, as the system counted it. tree_mb: largest sum
    over the tree, memory shared by several counted once (PSS, sampled); 0 where the system does not tell.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    tree_mb: float
    answer: Mapping[str, Any]


def measure(command: Sequence[str], log: Path, *, env: Mapping[str, str], limit: float) -> Measured:
    """Run a command to its end; both its outputs go to `log`. It is ended after `limit` seconds (exit code -9)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
        )
        done, tree = threading.Event(), [0.0]
        watcher = threading.Thread(target=_watch, args=(process.pid, started + limit, done, tree), daemon=True)
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here: Popen must not try
    return Measured(
        process.returncode, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, tree[0], _answer(log)
    )


def _answer(log: Path) -> Mapping[str, Any]:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(MARK)]
    found: Mapping[str, Any] = json.loads(lines[-1][len(MARK) :]) if lines else {}
    return found


def _watch(group: int, end: float, done: threading.Event, tree: list[float]) -> None:
    while not done.wait(EVERY):
        tree[0] = max(tree[0], _group_mb(group))
        if time.perf_counter() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, 9)
            return


def _group_mb(group: int) -> float:
    """Return the proportional memory of all processes of a group, in MB (Linux; 0 elsewhere)."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # processes end while one looks
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total
