"""The exceptions of dermkit, each with an exit code of the command line.

A message says which file, what is wrong, what is left on disk and what to do. Every failure that a user can cause is
one of these; any other exception is a bug.
"""

import difflib
import errno
import re
from collections.abc import Iterable
from enum import StrEnum

# Control characters but tab and line feed, half surrogates, and those that turn the direction of writing.
_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str) -> str:
    """Return text for a terminal: a file or class name may hold sequences that move its cursor or hide its words."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


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


class ResourceError(OutputError):
    """The machine failed, not the data: memory ran out, or a disk or network drive gave an error. Exit code 5."""

    code = "resource"


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


def first_of(texts: Iterable[object], limit: int, separator: str = ", ") -> str:
    """Return the first texts as a list for a message, such as "a, b and 3 more"."""
    shown = list(map(str, texts))
    more_text = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return separator.join(shown[:limit]) + more_text


_FAULTS_OF_A_PATH = frozenset(
    getattr(errno, name)
    for name in "ENOENT EACCES EPERM ELOOP ENAMETOOLONG ENOTDIR EISDIR EINVAL ENXIO EFBIG EILSEQ".split()  # noqa: SIM905
)


def check_fault_of_path(error: OSError, path: object) -> None:
    """Return where an error says something of a file: absent, closed, no file. Raise `ResourceError` for any other.

    A failing disk, a lost network drive or too many open files say nothing of an image.
    """
    if error.errno is None or error.errno in _FAULTS_OF_A_PATH:
        return
    raise ResourceError(
        f"{path}: cannot be read now: {error.strerror or error}",
        outcome="what was finished before",
        remedy="see that the disk or network drive works, then give the same command again",
    ) from error


def out_of_memory(subject: object) -> ResourceError:
    """Return the error of a command that has no memory left; no file is to blame."""
    return ResourceError(
        f"{subject}: out of memory",
        outcome="what was finished before",
        remedy="end other programs or use fewer workers, then give the same command again; set a file aside that ends "
        "it each time",
    )
