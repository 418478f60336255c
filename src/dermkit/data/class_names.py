"""Which names mean one class: by number, by spelling, and by the synonyms and abbreviations of one diagnosis.

Subtypes are never joined: "melanoma in situ" has the diagnosis melanoma, and is a class beside "melanoma".
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

_SYNONYMS = (
    ("melanoma", "mel", "malignant melanoma"),
    ("nevus", "nv", "nev", "melanocytic nevus", "nevocellular nevus"),
    ("basal cell carcinoma", "bcc", "basalioma", "basal cell epithelioma"),
    ("squamous cell carcinoma", "scc", "spinocellular carcinoma"),
    ("actinic keratosis", "ak", "ack", "solar keratosis", "solar or actinic keratosis"),
    ("actinic keratosis and intraepithelial carcinoma", "akiec"),
    ("benign keratosis", "bkl", "benign keratosis like lesion"),
    ("seborrheic keratosis", "sk", "sek"),
    ("lichenoid keratosis", "lplk", "lichen planus like keratosis", "benign lichenoid keratosis"),
    ("solar lentigo", "sl", "actinic lentigo", "senile lentigo"),
    ("dermatofibroma", "df"),
    ("vascular lesion", "vasc", "vascular"),
    ("pyogenic granuloma", "granuloma pyogenic", "granuloma pyogenicum"),
    ("bowen disease", "bowens disease", "bowen", "morbus bowen", "bod"),
    ("superficial spreading melanoma", "ssm"),
    ("lentigo maligna melanoma", "lmm"),
    ("merkel cell carcinoma", "mcc"),
    ("dermatofibrosarcoma protuberans", "dfsp"),
    ("kaposi sarcoma", "kaposis sarcoma"),
    ("skin tag", "acrochordon"),
)
"""Names of exactly one class. Not here: what one name includes and the other does not, such as akiec (with Bowen's
disease) and ak, bkl and seborrheic keratosis, "nevus" and "dysplastic nevus", a diagnosis and its form in situ."""

_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "naevus": "nevus", "naevi": "nevus", "nevi": "nevus", "keratoses": "keratosis", "lentigines": "lentigo",
        "seborrhoeic": "seborrheic", "carcinomas": "carcinoma", "melanomas": "melanoma", "lesions": "lesion",
        "haemangioma": "hemangioma", "haemangiomas": "hemangioma", "hemangiomas": "hemangioma", "angiomas": "angioma",
        "dermatofibromas": "dermatofibroma", "tumour": "tumor", "tumours": "tumor", "tumors": "tumor", "warts": "wart",
        "naevoid": "nevoid", "naevocellular": "nevocellular", "moles": "mole", "cysts": "cyst", "tags": "tag",
        "granulomas": "granuloma", "angiokeratomas": "angiokeratoma", "carcinomata": "carcinoma",
    }
)  # fmt: skip
"""British and American spellings and plurals, word by word -> one form."""

_QUOTES = re.compile("['\"`\N{ACUTE ACCENT}\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
                     "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]")  # fmt: skip
_NUMBER = re.compile(r"([+-]?)0*([0-9]+)(?:\.(0*))?(?:e[+-]?0+)?")
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]*[1-9][0-9]*")
# A hyphen that is a sign stays: "grade -1" and "HER2-" are not "grade 1" and "HER2".
_SEPARATOR = re.compile(r"(?<=\w)-(?=\w)|(?<=\s)-+(?=\s)|(?<=[^\W\d])\.(?=[^\W\d])|[_,\s]")
_BRACKETS = re.compile(r"\(([^()]*)\)")
_BOOLEANS: Mapping[str, str] = MappingProxyType({"true": "1", "false": "0"})


def clean_label(label: str) -> str:
    """Return a label as it is shown: in one Unicode form, without spaces and invisible characters at its ends."""
    text = unicodedata.normalize("NFC", label).strip()
    return text.strip("".join(filter(_is_invisible, text))).strip() if any(map(_is_invisible, text)) else text


def _is_invisible(letter: str) -> bool:
    return unicodedata.category(letter) == "Cf"


@lru_cache(maxsize=4096)
def class_key(label: str) -> str:
    """Return what all names of one class have in common: "0" for 0 and 0.0, "nevus" for nv, NV, Naevus and nevi.

    Case, Unicode form, plurals and `_`, `-`, commas and spaces between words make no difference.
    """
    text = _plain(label)
    if number := _NUMBER.fullmatch(text):
        sign, digits, _ = number.groups()
        return f"-{digits}" if sign == "-" and digits != "0" else digits
    outside, inside = _BRACKETS.sub(" ", text), " ".join(_BRACKETS.findall(text))
    if inside.strip() and outside.strip() and (synonym := _synonym(outside)) and synonym == _synonym(inside):
        return synonym  # "Basal cell carcinoma (BCC)" is one name twice
    return _synonym(text) or _spelling(text)


def _plain(label: str) -> str:
    visible = "".join(letter for letter in _QUOTES.sub("", label) if not _is_invisible(letter))
    text = unicodedata.normalize("NFKC", visible).casefold()
    dashes = {letter for letter in text if unicodedata.category(letter) == "Pd" or letter == "\N{MINUS SIGN}"}
    return " ".join("".join("-" if letter in dashes else letter for letter in text).split())


def _spelling(text: str) -> str:
    words = _SEPARATOR.sub(" ", text.replace("(", " ").replace(")", " ")).split()
    return " ".join(_WORDS.get(word, word) for word in words)


def _synonym(text: str) -> str:
    """Return the first of the synonyms of a name, "" for a name that has none; "BasalCellCarcinoma" counts too."""
    spelling = _spelling(text)
    return _SYNONYM_OF.get(spelling) or _SYNONYM_OF.get(_solid(spelling)) or ""


def _solid(spelling: str) -> str:
    """Return a name written as one word; short ones stay apart from abbreviations ("s k" is not "sk")."""
    solid = spelling.replace(" ", "")
    return solid if len(solid) > 6 else spelling


_SYNONYM_OF: Mapping[str, str] = MappingProxyType(
    {form: group[0] for group in _SYNONYMS for name in group for form in (name, _solid(name))}
)


def group_names(names: Iterable[str]) -> list[list[str]]:
    """Return the names in groups of one class each, in the order of their first names.

    Numbers are joined only where all are whole: 173.1 and 173.10 may be codes. True and False are 1 and 0 where all
    names are booleans or these numbers.
    """
    names = list(dict.fromkeys(names))
    has_fractions = any(_FRACTION.fullmatch(_plain(name)) for name in names)
    keys = {name: class_key(name) for name in names}
    are_boolean = {_BOOLEANS.get(key, key) for key in keys.values()} <= {"0", "1"}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in keys.items():
        if has_fractions and _NUMBER.fullmatch(_plain(name)):
            key = f"{key} written {name}"
        groups[_BOOLEANS.get(key, key) if are_boolean else key].append(name)
    return list(groups.values())


def find_class(name: str, names: Sequence[str]) -> str | None:
    """Return the one of `names` that is equal, else the only one that means the same class, else None."""
    if name in names:
        return name
    matches = [other for other in names if class_key(other) == class_key(name)]
    return matches[0] if len(matches) == 1 else None


def preferred_name(names: Sequence[str], counts: Mapping[str, int]) -> str:
    """Return the name of a class that is written in several ways: a number as an integer, else the most frequent."""
    key = class_key(names[0])
    if key.lstrip("-").isdecimal():
        return key
    return clean_label(min(names, key=lambda name: (-counts.get(name, 0), name)))
