"""One spelling for the values of metadata: unknown, age, sex, skin type, side; ids stay the text that they are."""

import re
from types import MappingProxyType

UNKNOWN = frozenset(
    {
        "", "nan", "na", "n/a", "#n/a", "#na", "<na>", "nat", "none", "null", "nil", "unknown", "missing", "-", "--",
        "?", "not available", "not specified", "not known", "undefined",
    }
)  # fmt: skip
"""Spellings of "not known", in lower case."""

OLDEST = 120
"""Years; the limit of the manifest, which has it from the oldest verified person."""

SPLIT_NAMES = MappingProxyType(
    {
        "train": "train", "training": "train", "val": "validation", "valid": "validation",
        "validation": "validation", "test": "test", "testing": "test",
    }
)  # fmt: skip
"""Name of a side in lower case -> `given_split`."""

_SEXES = MappingProxyType(
    {"m": "male", "male": "male", "man": "male", "f": "female", "female": "female", "woman": "female"}
)
_ROMAN = ("I", "II", "III", "IV", "V", "VI")
_AGE = re.compile(r"([0-9]{1,3})(?:[.,]([0-9]+))?")
_SKIN = re.compile(r"(?:fitzpatrick|fst|skin|photo|type|[\s_\-])*(i{1,3}|iv|vi?|[1-6](?:\.0)?)", re.IGNORECASE)


def known(value: str) -> str:
    """Return a value, or "" where it only says that it is not known."""
    return "" if value.lower() in UNKNOWN else value


def years(value: str) -> str | None:
    """Return an age as a number of years ("80" for "80.0"), "" for unknown, None for what is no age."""
    text = known(value)
    found = _AGE.fullmatch(text)
    if text == "" or found is None:
        return None if text else ""
    whole, part = found.groups()
    digits = (part or "").rstrip("0")
    age = str(int(whole)) + (f".{digits}" if digits else "")
    return age if float(age) <= OLDEST else None


def sex(value: str) -> str:
    """Return "male", "female", "" for unknown, and any other word in lower case."""
    text = known(value).lower()
    return _SEXES.get(text, text)


def skin_type(value: str) -> str:
    """Return a Fitzpatrick type as "I" to "VI", "" for unknown, and anything else as it is."""
    text = known(value)
    found = _SKIN.fullmatch(text)
    if found is None:
        return text
    number = found.group(1)
    return _ROMAN[int(number[0]) - 1] if number[0].isdigit() else number.upper()


def side(value: str) -> str | None:
    """Return a `given_split`, "" for unknown, None for a word that is none."""
    text = known(value)
    return SPLIT_NAMES.get(text.lower()) if text else ""
