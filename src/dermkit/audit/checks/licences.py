"""Which use a licence allows: a table, and a reader of the ways in which data sets write licences."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from dermkit.audit.checks.finding import Use

Verdict = Literal["allowed", "forbidden", "unknown"]


@dataclass(frozen=True)
class Licence:
    """What a licence says of each use. Redistribution: passing on images in a changed data set (cleaned, resized)."""

    name: str
    research: Verdict
    commercial: Verdict
    redistribution: Verdict
    condition: str = ""

    def verdict(self, use: Use) -> Verdict:
        """Return what the licence says of a use."""
        return {
            "research": self.research, "commercial": self.commercial, "redistribution": self.redistribution,
        }[use]  # fmt: skip


_NAME = "name the authors"
_ALIKE = "pass it on under the same licence only"
_FREE = "not for profit"

# creativecommons.org/licenses: BY attribution, SA share alike, NC non-commercial, ND no derivatives.
_LICENCES = (
    Licence("CC0", "allowed", "allowed", "allowed"),
    Licence("CC BY", "allowed", "allowed", "allowed", _NAME),
    Licence("CC BY-SA", "allowed", "allowed", "allowed", f"{_NAME}; {_ALIKE}"),
    Licence("CC BY-ND", "allowed", "allowed", "forbidden", f"{_NAME}; unchanged only"),
    Licence("CC BY-NC", "allowed", "forbidden", "allowed", f"{_NAME}; {_FREE}"),
    Licence("CC BY-NC-SA", "allowed", "forbidden", "allowed", f"{_NAME}; {_FREE}; {_ALIKE}"),
    Licence("CC BY-NC-ND", "allowed", "forbidden", "forbidden", f"{_NAME}; {_FREE}; unchanged only"),
    Licence("non-commercial", "allowed", "forbidden", "unknown", "read its own terms"),
    Licence("all rights reserved", "unknown", "forbidden", "forbidden", "ask the owner"),
)
LICENCES: Mapping[str, Licence] = MappingProxyType({item.name: item for item in _LICENCES})
UNKNOWN = Licence("unknown", "unknown", "unknown", "unknown", "ask the owner")

# Read in a text of which only letters and digits are left, in small letters, with single spaces between.
_ZERO = re.compile(r"\bcc ?0\b|\bpublic ?domain\b|\bcommons zero\b")
_FLAG = r"(?: (?:nc|non ?commercial|sa|share ?alike|nd|no ?deriv[a-z]*))"
_BY = re.compile(
    # A bare "by" may be anybody's; a bare "attribution" may be a demand.
    rf"(?:\bcc ?by|\blicenses by|\bcommons attribution|\bby(?={_FLAG}\b)|\battribution(?={_FLAG}\b| [1-4] 0\b))"
    rf"({_FLAG}*)\b"
)
_OWN_TERMS = re.compile(r"\bnon ?commercial\b")
_RESERVED = re.compile(r"\ball rights reserved\b")


def read_licences(text: str) -> tuple[Licence, ...]:
    """Return the licences that a text names, in the table's order; `UNKNOWN` alone where it names none that is known.

    Short names, long names and addresses of creativecommons.org are understood. Of several names the image has one,
    and nobody says which.
    """
    plain = " ".join(re.findall(r"[a-z0-9]+", unicodedata.normalize("NFKC", text).casefold()))
    rest = _BY.sub(" ", plain)
    found = {_by_name(match[1]) for match in _BY.finditer(plain)}
    found |= {"CC0"} if _ZERO.search(rest) else set()
    found |= {"non-commercial"} if not found and _OWN_TERMS.search(rest) else set()
    found |= {"all rights reserved"} if _RESERVED.search(rest) else set()
    return tuple(item for name, item in LICENCES.items() if name in found) or (UNKNOWN,)


def _by_name(flags: str) -> str:
    words = flags.replace("non commercial", "noncommercial").replace("no deriv", "noderiv").split()
    starts = {"NC": ("nc", "noncommercial"), "SA": ("sa", "share"), "ND": ("nd", "noderiv")}
    parts = [short for short, start in starts.items() if any(word.startswith(start) for word in words)]
    # No licence joins SA and ND: of the two the stricter counts.
    kept = [part for part in parts if part != "SA" or "ND" not in parts]
    return "-".join(["CC BY", *kept])


def verdict(licences: Sequence[Licence], use: Use) -> Verdict:
    """Return the verdict on an image that has one of these licences: the strictest counts."""
    verdicts = {item.verdict(use) for item in licences}
    return "forbidden" if "forbidden" in verdicts else "unknown" if "unknown" in verdicts else "allowed"
