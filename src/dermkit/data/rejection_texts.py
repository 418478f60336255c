"""What a reason code of refused.csv means, and what to do about it, for the terminal and the pages."""

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from dermkit.errors import RejectionReason

REASON_TEXTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        RejectionReason.MISSING: ("no file is there", "check the paths, or download it again"),
        "no_label": ("a row without a label", "fill in the label, or leave the row out"),
        "no_metadata": ("an image without a row in the table", "add a row for it, or leave it out"),
        RejectionReason.UNREADABLE: ("it cannot be read", "check its permissions, and that it is a file"),
        RejectionReason.EMPTY: ("it has no bytes", "download or copy it again"),
        RejectionReason.NOT_AN_IMAGE: ("of no image format", "nothing, if it is no image; else download it again"),
        RejectionReason.FORMAT_NOT_ALLOWED: ("a format that is not read", "save it as JPEG or PNG"),
        RejectionReason.TOO_LARGE: ("too many bytes or pixels", "save it smaller"),
        RejectionReason.TOO_SMALL: ("too few pixels", "give the original, not its thumbnail"),
        RejectionReason.TRUNCATED: ("cut short", "download or copy it again"),
        RejectionReason.ANIMATED: ("several pictures in one file", "save the one you mean as JPEG or PNG"),
        RejectionReason.MULTI_PAGE: ("several pages in one file", "save the one you mean as JPEG or PNG"),
        RejectionReason.UNDEFINED_PIXELS: ("pixels that are not defined", "save it anew in an image program"),
        RejectionReason.BROKEN: ("damaged", "download it again, or open it in an image program and save it anew"),
        "misplaced": ("not in a class folder", "move it into the folder of its class"),
        "link_not_followed": ("a link", "copy the file in its place"),
        "bad_name": ("a name that cannot be used", "rename it"),
        "encrypted": ("encrypted", "unpack the archive with its password and give the folder"),
        "duplicate_name": ("a name that occurs twice", "unpack the archive and give the folder"),
    }
)  # fmt: skip
"""Reason code -> what it means, and what to do. What lacks a file comes first, then what lacks a row or a label."""

_FIRST = (RejectionReason.MISSING, "no_label", "no_metadata")


def count_reasons(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Return (reason, number): rows that lack a file first, then rows and files that lack the other, then by number."""
    order = {str(reason): rank for rank, reason in enumerate(_FIRST)}
    return sorted(
        Counter(map(str, reasons)).items(), key=lambda entry: (order.get(entry[0], 9), -entry[1], entry[0])
    )


def rejection_lines(reasons: Iterable[str]) -> list[str]:
    """Return a line for each reason: how many, what it means, and what to do."""
    return [
        f"  {n:,} {reason}: {meaning}; to do: {advice}"
        for reason, n in count_reasons(reasons)
        for meaning, advice in [REASON_TEXTS.get(reason, ("see the file", "look at refused.csv"))]
    ]
