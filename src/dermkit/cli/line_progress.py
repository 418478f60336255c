"""Progress without a terminal: the lines that a job says and, while it says none, what is done and the time left."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dermkit.progress import Progress
from dermkit.training.distributed.environment import is_first_rank

SILENT_SECONDS = 15.0
"""A line is printed after so long without one: at least every 20 seconds, also where the machine is slow."""

_CHECK_SECONDS = 1.0


@dataclass
class _Step:
    """A step with a count: when it was first told of, and how far it was then and is now."""

    started_at: float
    n_at_start: int
    n_done: int
    total: int

    def text(self, name: str, now: float) -> str:
        """Return what is done of it, and the time left as far as it can be told."""
        n_since_start = self.n_done - self.n_at_start
        seconds_left = (
            (now - self.started_at) / n_since_start * (self.total - self.n_done) if n_since_start else None
        )
        left = "" if seconds_left is None else f", about {duration_text(seconds_left)} left"
        return f"{name}: {self.n_done:,} of {self.total:,}{left}"


@dataclass
class LineProgress:
    """What a job has said and done so far.

    print_line: prints one line. clock: seconds, for tests.
    """

    print_line: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    steps: dict[str, _Step] = field(default_factory=dict)
    last_line: str = ""

    def __post_init__(self) -> None:
        self.started_at = self.printed_at = self.clock()

    def say(self, line: str) -> None:
        """Print a line of the job."""
        self.last_line = line
        self._print(line)

    def step(self, name: str, n_done: int, total: int) -> None:
        """Take note of a count; a finished one is forgotten."""
        if n_done >= total:
            self.steps.pop(name, None)
            return
        step = self.steps.get(name)
        if step is None or n_done < step.n_done or total != step.total:  # a new epoch counts anew
            self.steps[name] = _Step(self.clock(), n_done, n_done, total)
        else:
            step.n_done = n_done

    def break_silence(self) -> None:
        """Print what is done and the time left, if nothing was printed for long."""
        now = self.clock()
        if now - self.printed_at < SILENT_SECONDS:
            return
        texts = [step.text(name, now) for name, step in list(self.steps.items())]
        if not texts:
            last = f"; last: {self.last_line}" if self.last_line else ""
            texts = [f"still working, for {duration_text(now - self.started_at)}{last}"]
        self._print("; ".join(texts))

    def _print(self, line: str) -> None:
        self.printed_at = self.clock()
        self.print_line(line)


def duration_text(seconds: float) -> str:
    """Return a duration in words: 40 s, 3 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def line_progress(print_line: Callable[[str], None]) -> Iterator[Progress]:
    """Yield a progress that prints lines, and breaks long silences; of several processes only the first one prints."""
    if not is_first_rank():
        yield Progress()
        return
    lines, is_over = LineProgress(print_line), threading.Event()

    def watch() -> None:
        while not is_over.wait(_CHECK_SECONDS):
            lines.break_silence()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield Progress(say=lines.say, step=lines.step)
    finally:
        is_over.set()
        thread.join()
