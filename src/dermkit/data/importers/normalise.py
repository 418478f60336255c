"""Normalises metadata values: unknown, age, sex, skin type, split. Ids stay as they are."""

import re
from types import MappingProxyType

from dermkit.data.manifest import MAX_AGE
from dermkit.data.unknown import or_unknown

SPLIT_ALIASES = MappingProxyType(
    {
        "train": "train", "training": "train", "val": "validation", "valid": "validation",
        "validation": "validation", "test": "test", "testing": "test",
    }
)  # fmt: skip
"""Name of a split in lower case -> `given_split`."""

_SPLIT_FOLDER = re.compile(
    r"(train|training|val|valid|validation|test|testing)(?:[\s_\-]*(?:set|split|data|dataset|images?|imgs|folder))*"
)

_SEX_ALIASES = MappingProxyType(
    {"m": "male", "male": "male", "man": "male", "f": "female", "female": "female", "woman": "female"}
)
_ROMAN_NUMERALS = ("I", "II", "III", "IV", "V", "VI")
_AGE_PATTERN = re.compile(r"([0-9]{1,3})(?:[.,]([0-9]+))?")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]*)?")
_SKIN_TYPE_PATTERN = re.compile(
    r"(?:(?:fitzpatrick|fst|skin|photo|type)[\s_\-]*)*(i{1,3}|iv|vi?|[1-6](?:\.0)?)", re.IGNORECASE
)


def parse_age(value: str) -> str | None:
    """Return an age in years ("80" for "80.0"), "" for unknown, None for anything else or above `MAX_AGE`."""
    text = or_unknown(value)
    match = _AGE_PATTERN.fullmatch(text)
    if text == "" or match is None:
        return None if text else ""
    integer_part, decimal_part = match.groups()
    decimals = (decimal_part or "").rstrip("0")
    age = str(int(integer_part)) + (f".{decimals}" if decimals else "")
    return age if float(age) <= MAX_AGE else None


def parse_sex(value: str) -> str | None:
    """Return "male", "female", "" for unknown, None for a number, and any other word in lower case."""
    text = or_unknown(value).lower()
    return None if _NUMBER.fullmatch(text) else _SEX_ALIASES.get(text, text)


def parse_site(value: str) -> str | None:
    """Return a body site as it is, "" for unknown, None for a number, which is a code of the table's own."""
    text = or_unknown(value)
    return None if _NUMBER.fullmatch(text) else text


def parse_skin_type(value: str) -> str | None:
    """Return a Fitzpatrick skin type as "I" to "VI", "" for unknown, None for anything else, such as -1 or VII."""
    text = or_unknown(value)
    match = _SKIN_TYPE_PATTERN.fullmatch(text)
    if match is None:
        return None if text else ""
    number = match.group(1)
    return _ROMAN_NUMERALS[int(number[0]) - 1] if number[0].isdigit() else number.upper()


def split_of_folder(name: str) -> str:
    """Return the `given_split` that a folder is named after ("Train", "test_set", "validation images"), or ""."""
    match = _SPLIT_FOLDER.fullmatch(name.strip().lower())
    return SPLIT_ALIASES[match.group(1)] if match else ""


def parse_split(value: str) -> str | None:
    """Return a `given_split`, "" for unknown, None for any other word."""
    text = or_unknown(value)
    return SPLIT_ALIASES.get(text.lower()) if text else ""
