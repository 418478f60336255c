"""How a long job reports its progress to its caller."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Callbacks of a long job; by default they do nothing.

    say: gets one line of text. step: gets (name of the step, number done, total number), for a progress bar.
    """

    say: Callable[[str], None] = lambda _line: None
    step: Callable[[str, int, int], None] = lambda _what, _done, _total: None
