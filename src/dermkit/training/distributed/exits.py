"""How a launch of several ranks ended, judged by the ranks' exit codes. Without torch, and without processes: a test
can give it any sequence of exits."""

import signal
import time
from dataclasses import dataclass, field

LOST_NODE_CODE = -1000
"""The exit code of a rank whose machine went silent."""
EXIT_CODES = {*range(2, 8), 130}
"""dermkit's own exit codes (docs/walk.md) but 0 and 1: the command ends with them. Any other code but 0 means that a
rank was lost."""

GRACE_SECONDS = 60.0
"""Seconds that the other ranks have to end by themselves once a rank ended with such a code: a checkpoint takes time.
Chosen, not measured."""
POLL_SECONDS = 0.05
"""Seconds between two polls of the ranks, and between two readings of the rendezvous store."""
CODE_WAIT_SECONDS = 3.0
"""Seconds to wait for such a code when a rank ended with another one: when a rank ends, its partners fail in their next
collective, and their exit may be seen first. Chosen, not measured."""


@dataclass(frozen=True)
class ExitStatus:
    """How a launch ended. failure: what happened to a rank that was lost; "" where `code` is the command's own end."""

    code: int
    failure: str = ""


@dataclass
class RankExits:
    """The exit codes of a launch's ranks.

    exit_codes: rank -> code, negative for a signal. first_exit_time: monotonic seconds of the first exit that is a
    failure or rank 0's; 0 before it.
    """

    world_size: int
    exit_codes: dict[int, int] = field(default_factory=dict)
    first_exit_time: float = 0.0

    def add(self, rank: int, code: int) -> None:
        """Add a rank's exit; the first one reported counts."""
        if not self.first_exit_time and (code != 0 or rank == 0):
            self.first_exit_time = time.monotonic()
        self.exit_codes.setdefault(rank, code)

    def exit_status(self, *, interrupted: bool) -> ExitStatus | None:
        """Return how the launch ended, or None while it goes on.

        A code of dermkit's own decides, the lowest rank's first. Else a rank that was killed is the reason; a rank that
        ended with a foreign code is, too, unless a reason appears within `CODE_WAIT_SECONDS`.
        """
        dermkit_codes = [code for _, code in sorted(self.exit_codes.items()) if code in EXIT_CODES]
        failed_ranks = [rank for rank, code in self.exit_codes.items() if code != 0]
        seconds_since_exit = time.monotonic() - self.first_exit_time if self.first_exit_time else 0.0
        has_all_exits = len(self.exit_codes) == self.world_size
        if failed_ranks and not dermkit_codes and not interrupted:
            killed_ranks = [rank for rank in failed_ranks if self.exit_codes[rank] < 0]
            rank = (killed_ranks or failed_ranks)[0]
            is_certain = killed_ranks or has_all_exits or seconds_since_exit > CODE_WAIT_SECONDS
            return (
                ExitStatus(1, f"rank {rank} was lost: {_describe_exit(self.exit_codes[rank])}")
                if is_certain
                else None
            )
        if not has_all_exits and seconds_since_exit <= GRACE_SECONDS:
            return None
        return ExitStatus(dermkit_codes[0] if dermkit_codes else 130 if interrupted and failed_ranks else 0)


def _describe_exit(code: int) -> str:
    if code == LOST_NODE_CODE:
        return "its machine does not answer"
    if code >= 0:
        return f"it ended with code {code}"
    signal_names = {int(member): member.name for member in signal.Signals}
    return f"killed by {signal_names.get(-code, f'signal {-code}')}"
