"""Which uses a licence allows: a table, and a parser of licence texts of data sets."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from dermkit.audit.checks.finding import PlannedUse

LicenceVerdict = Literal["allowed", "forbidden", "unknown"]


@dataclass(frozen=True)
class Licence:
    """A licence's verdict on each use. redistribution: of images in a changed data set (cleaned, resized)."""

    name: str
    research: LicenceVerdict
    commercial: LicenceVerdict
    redistribution: LicenceVerdict
    condition: str = ""

    def verdict_for(self, use: PlannedUse) -> LicenceVerdict:
        """Return the licence's verdict on a use."""
        return {
            "research": self.research, "commercial": self.commercial, "redistribution": self.redistribution,
        }[use]  # fmt: skip


_ATTRIBUTION = "name the authors"
_SHARE_ALIKE = "pass it on under the same licence only"
_NOT_FOR_PROFIT = "not for profit"

# creativecommons.org/licenses: BY attribution, SA share alike, NC non-commercial, ND no derivatives.
_LICENCES = (
    Licence("CC0", "allowed", "allowed", "allowed"),
    Licence("CC BY", "allowed", "allowed", "allowed", _ATTRIBUTION),
    Licence("CC BY-SA", "allowed", "allowed", "allowed", f"{_ATTRIBUTION}; {_SHARE_ALIKE}"),
    Licence("CC BY-ND", "allowed", "allowed", "forbidden", f"{_ATTRIBUTION}; unchanged only"),
    Licence("CC BY-NC", "allowed", "forbidden", "allowed", f"{_ATTRIBUTION}; {_NOT_FOR_PROFIT}"),
    Licence(
        "CC BY-NC-SA", "allowed", "forbidden", "allowed", f"{_ATTRIBUTION}; {_NOT_FOR_PROFIT}; {_SHARE_ALIKE}"
    ),
    Licence(
        "CC BY-NC-ND", "allowed", "forbidden", "forbidden", f"{_ATTRIBUTION}; {_NOT_FOR_PROFIT}; unchanged only"
    ),
    Licence("non-commercial", "allowed", "forbidden", "unknown", "read its own terms"),
    Licence("all rights reserved", "unknown", "forbidden", "forbidden", "ask the owner"),
)
LICENCES: Mapping[str, Licence] = MappingProxyType({licence.name: licence for licence in _LICENCES})
UNKNOWN_LICENCE = Licence("unknown", "unknown", "unknown", "unknown", "ask the owner")

# Read in a text of which only letters and digits are left, in small letters, with single spaces between.
_CC0_PATTERN = re.compile(r"\bcc ?0\b|\bpublic ?domain\b|\bcommons zero\b")
_CC_FLAG_PATTERN = r"(?: (?:nc|non ?commercial|sa|share ?alike|nd|no ?deriv[a-z]*))"
_CC_BY_PATTERN = re.compile(
    # A bare "by" may be anybody's; a bare "attribution" may be a demand.
    rf"(?:\bcc ?by|\blicenses by|\bcommons "
    rf"attribution|\bby(?={_CC_FLAG_PATTERN}\b)|\battribution(?={_CC_FLAG_PATTERN}\b| [1-4] 0\b))"
    rf"({_CC_FLAG_PATTERN}*)\b"
)
_NON_COMMERCIAL_PATTERN = re.compile(r"\bnon ?commercial\b")
_RESERVED_PATTERN = re.compile(r"\ball rights reserved\b")


def read_licences(text: str) -> tuple[Licence, ...]:
    """Return the licences that a text names, in the table's order; `UNKNOWN_LICENCE` alone if it names no known one.

    Reads short names, long names and addresses of creativecommons.org. If a text names several licences, any of them
    may apply to the image.
    """
    normalised = " ".join(re.findall(r"[a-z0-9]+", unicodedata.normalize("NFKC", text).casefold()))
    remainder = _CC_BY_PATTERN.sub(" ", normalised)
    licence_names = {_cc_by_name(match[1]) for match in _CC_BY_PATTERN.finditer(normalised)}
    licence_names |= {"CC0"} if _CC0_PATTERN.search(remainder) else set()
    licence_names |= (
        {"non-commercial"} if not licence_names and _NON_COMMERCIAL_PATTERN.search(remainder) else set()
    )
    licence_names |= {"all rights reserved"} if _RESERVED_PATTERN.search(remainder) else set()
    return tuple(licence for name, licence in LICENCES.items() if name in licence_names) or (UNKNOWN_LICENCE,)


def _cc_by_name(flags: str) -> str:
    flag_words = flags.replace("non commercial", "noncommercial").replace("no deriv", "noderiv").split()
    flag_prefixes = {"NC": ("nc", "noncommercial"), "SA": ("sa", "share"), "ND": ("nd", "noderiv")}
    suffixes = [
        suffix_name
        for suffix_name, prefixes in flag_prefixes.items()
        if any(word.startswith(prefixes) for word in flag_words)
    ]
    # No licence has both SA and ND: the stricter one counts.
    final_suffixes = [suffix for suffix in suffixes if suffix != "SA" or "ND" not in suffixes]
    return "-".join(["CC BY", *final_suffixes])


def strictest(licences: Sequence[Licence], use: PlannedUse) -> LicenceVerdict:
    """Return the verdict on an image that has one of these licences: the strictest counts."""
    verdicts = {licence.verdict_for(use) for licence in licences}
    return "forbidden" if "forbidden" in verdicts else "unknown" if "unknown" in verdicts else "allowed"
