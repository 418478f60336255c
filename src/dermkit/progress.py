"""What a long job tells its caller: lines for people, and steps for a progress bar."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """say: one line for people. step: (what, done, total) for a progress bar."""

    say: Callable[[str], None] = lambda _line: None
    step: Callable[[str, int, int], None] = lambda _what, _done, _total: None
