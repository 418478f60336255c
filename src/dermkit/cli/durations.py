"""Times on the command line: 45s, 30m, 2h."""

import re

from dermkit.errors import UsageError

_SECONDS_OF_UNIT = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Return the seconds of `--time`; raises `UsageError` for another text, or none above 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(
            f"--time {text}: not a time",
            outcome="nothing was trained",
            remedy="give seconds, minutes or hours: 45s, 30m, 2h",
        )
    return float(match[1]) * _SECONDS_OF_UNIT[match[2]]
