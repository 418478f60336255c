"""The exceptions of dermkit, each with an exit code of the command line.

A message says which file, what is wrong, what is left on disk and what to do. Every failure that a user can cause is
one of these; any other exception is a bug.
"""

import difflib
from collections.abc import Iterable
from enum import StrEnum


class DermkitError(Exception):
    """An error that the user can act on.

    outcome: what is left on disk, printed as "Kept: ...". remedy: what to do next, printed as "To do: ...".
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
    """The data cannot be used: no valid image, a class with one image, unknown labels, leaking splits. Exit code 3."""

    exit_code = 3
    code = "data"


class RejectionReason(StrEnum):
    """Why an image was rejected. The value is the reason code written to refused.csv."""

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
    """An image failed the safety checks. Exit code 3, or 7 if other images were processed.

    name: the file. reason: a code of `RejectionReason`. detail: what exactly is wrong, "" if the code says it all.
    """

    code = "image_refused"

    def __init__(self, name: str, reason: RejectionReason, detail: str = "") -> None:
        super().__init__(f"{name}: refused ({reason.value}){': ' + detail if detail else ''}")
        self.name = name
        self.reason = reason
        self.detail = detail


class DivergenceError(DermkitError):
    """The loss or the weights became NaN or infinite. Exit code 4."""

    exit_code = 4
    code = "diverged"


class OutputError(DermkitError):
    """An output cannot be written: no permission, a file where a folder must be, a full device. Exit code 5."""

    exit_code = 5
    code = "output"


class UntrustedError(DermkitError):
    """A model folder or weights file is not trusted or does not match. Exit code 6."""

    exit_code = 6
    code = "untrusted"


class RunInterrupt(DermkitError):
    """The user stopped the run, after a checkpoint was written. Exit code 130."""

    exit_code = 130
    code = "interrupted"


EXIT_SOME_REJECTED = 7
"""Exit code of a command that finished, but rejected and listed some images (3 if none remain)."""


def did_you_mean(name: str, known_names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return "; did you mean ...?" with the known name that is most similar, or "" if none is.

    cutoff: least similarity, 0..1, as `difflib.get_close_matches` measures it.
    """
    matches = difflib.get_close_matches(name, list(known_names), n=1, cutoff=cutoff)
    return f"; did you mean `{matches[0]}`?" if matches else ""
