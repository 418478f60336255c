"""The exception tree: every class is an exit code and, later, an API problem code.

A message says which file, what is wrong, what was kept and what to do. Nothing else is raised on purpose.
"""

import re
from enum import StrEnum

# Control characters but tab and line feed, half surrogates, and those that turn the direction of writing.
_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str) -> str:
    """Return text for a terminal: a file or class name may hold sequences that move its cursor or hide its words."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class DermkitError(Exception):
    """An error that a person can act on.

    `kept` says what survived on disk; `remedy` says what to do next. Both are printed after the message.
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, outcome: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.outcome = outcome
        self.remedy = remedy

    def __str__(self) -> str:
        outcome_line = f"\nKept: {self.outcome}" if self.outcome else ""
        remedy_line = f"\nTo do: {self.remedy}" if self.remedy else ""
        return f"{self.message}{outcome_line}{remedy_line}"


class UsageError(DermkitError):
    """The command, a recipe name or a recipe field is wrong. Exit code 2."""

    exit_code = 2
    code = "usage"


class DataError(DermkitError):
    """The data cannot be used: nothing usable, one-image class, unknown label, overlap. Exit code 3."""

    exit_code = 3
    code = "data"


class RejectionReason(StrEnum):
    """Why an image was not let in. The value is the reason code written to files."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    TRUNCATED = "truncated"
    ANIMATED = "animated"
    MULTI_PAGE = "multi_page"
    UNDEFINED_PIXELS = "undefined_pixels"
    BROKEN = "broken"


class ImageRejected(DataError):
    """One image was refused at the gate. Exit code 3, or 7 where other images went on."""

    code = "image_refused"

    def __init__(self, name: str, reason: RejectionReason, detail: str = "") -> None:
        super().__init__(f"{name}: refused ({reason.value}){': ' + detail if detail else ''}")
        self.name = name
        self.reason = reason
        self.detail = detail


class DivergenceError(DermkitError):
    """The loss or the weights stopped being numbers. Exit code 4."""

    exit_code = 4
    code = "diverged"


class OutputError(DermkitError):
    """An output cannot be written: no permission, a file in the way, a full device. Exit code 5."""

    exit_code = 5
    code = "output"


class ResourceError(OutputError):
    """The machine failed, not the data: memory ran out, or a disk or network drive gave an error. Exit code 5."""

    code = "resource"


class UntrustedError(DermkitError):
    """A model folder or weights file is not trusted or does not match. Exit code 6."""

    exit_code = 6
    code = "untrusted"


class RunInterrupt(DermkitError):
    """A person stopped the run; a checkpoint was written. Exit code 130."""

    exit_code = 130
    code = "interrupted"


EXIT_SOME_REJECTED = 7
"""Done, but some images were refused and listed (3 if none remain)."""
