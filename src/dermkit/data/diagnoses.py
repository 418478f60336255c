"""The table of diagnoses with their malignancy and other names, and the comparison of labels.

Malignancy is that of `MALIGNANCY_SOURCE`; an import can overrule it.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dermkit.data.manifest import LesionClass, Malignancy

MALIGNANCY_SOURCE = "ISIC Archive, field diagnosis_1 (Benign, Indeterminate, Malignant)"


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis: its canonical name, its malignancy, and its other names in data sets, as `plain_name` gives them."""

    name: str
    malignancy: Malignancy
    aliases: tuple[str, ...]


DIAGNOSES = (
    Diagnosis(
        "melanoma", "malignant",
        ("mel", "malignant melanoma", "melanoma nos", "melanoma invasive", "melanoma in situ", "melanoma metastasis"),
    ),
    Diagnosis(
        "nevus", "benign",
        ("nv", "nev", "nevi", "naevus", "naevi", "mole", "nevus nos", "common nevus", "melanocytic nevus",
         "melanocytic nevi", "melanocytic naevus", "melanocytic naevi", "atypical nevus", "dysplastic nevus"),
    ),
    Diagnosis("basal cell carcinoma", "malignant", ("bcc", "basal cell carcinomas")),
    Diagnosis(
        "squamous cell carcinoma", "malignant",
        ("scc", "squamous cell carcinoma nos", "squamous cell carcinoma invasive", "squamous cell carcinoma in situ"),
    ),
    Diagnosis(
        "actinic keratosis", "indeterminate",
        ("akiec", "ak", "ack", "actinic keratoses", "solar or actinic keratosis",
         "actinic keratoses and intraepithelial carcinoma"),
    ),
    Diagnosis(
        "pigmented benign keratosis", "benign",
        ("bkl", "benign keratosis", "benign keratosis like lesions", "benign keratosis like lesion"),
    ),
    Diagnosis("seborrheic keratosis", "benign", ("sk", "sek", "seborrhoeic keratosis", "seborrheic keratoses")),
    Diagnosis("solar lentigo", "benign", ("sl", "solar lentigines")),
    Diagnosis("lentigo", "benign", ("lentigo nos", "lentigo simplex")),
    Diagnosis("lichenoid keratosis", "benign", ("lplk", "lichen planus like keratosis")),
    Diagnosis("dermatofibroma", "benign", ("df", "dermatofibromas")),
    Diagnosis(
        "vascular lesion", "benign",
        ("vasc", "vascular", "vascular lesions", "angioma", "hemangioma", "haemangioma", "angiokeratoma"),
    ),
    Diagnosis("atypical melanocytic proliferation", "indeterminate", ("amp",)),
)  # fmt: skip

MALIGNANCY_LABELS: Mapping[str, Malignancy] = MappingProxyType(
    {"benign": "benign", "malignant": "malignant", "indeterminate": "indeterminate"}
)
"""Labels that state a malignancy instead of a diagnosis."""


def plain_name(label: str) -> str:
    """Return the form in which labels are compared: lower case, one Unicode form, single spaces for `_` and `-`."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    return " ".join(re.split(r"[\s_\-]+", folded)).strip()


def find_diagnosis(label: str) -> Diagnosis | None:
    """Return the diagnosis with this name or alias, or None."""
    plain_label = plain_name(label)
    return next(
        (
            diagnosis
            for diagnosis in DIAGNOSES
            if plain_label == diagnosis.name or plain_label in diagnosis.aliases
        ),
        None,
    )


def classify_label(label: str) -> LesionClass:
    """Return the class of a label, with the diagnosis and malignancy of the table.

    "benign", "malignant" and "indeterminate" have no diagnosis (""); any other unknown label is indeterminate.
    """
    diagnosis = find_diagnosis(label)
    if diagnosis:
        return LesionClass(label, diagnosis.name, diagnosis.malignancy)
    return LesionClass(label, "", MALIGNANCY_LABELS.get(plain_name(label), "indeterminate"))


def is_known_label(label: str) -> bool:
    """Return whether a label is a known diagnosis or malignancy; unknown ones count as indeterminate."""
    return plain_name(label) in MALIGNANCY_LABELS or find_diagnosis(label) is not None


def canonical_name(label: str) -> str:
    """Return the name by which labels of different data sets are compared: "nevus" for "nv", "NV" and "nevi"."""
    diagnosis = find_diagnosis(label)
    return diagnosis.name if diagnosis else plain_name(label)


UMBRELLAS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "pigmented benign keratosis": frozenset({"seborrheic keratosis", "solar lentigo", "lichenoid keratosis"}),
        "actinic keratosis": frozenset({"squamous cell carcinoma"}),
    }
)
"""Umbrella classes -> the diagnoses that data sets include in them under an abbreviated name.

HAM10000's bkl includes seborrheic keratosis, solar lentigo and lichenoid keratosis; its akiec includes squamous cell
carcinoma in situ (Bowen's disease) (Tschandl et al. 2018).
"""


def contradict(first: LesionClass, second: LesionClass) -> bool:
    """Return whether two classes cannot both be right for one image.

    Two different diagnoses contradict, except where one is an umbrella class of the other (`UMBRELLAS`); this counts
    only for abbreviated names such as bkl, since a spelt-out name means itself. If a diagnosis is unknown, benign
    contradicts malignant, and nothing else does.
    """
    if canonical_name(first.name) == canonical_name(second.name):
        return False
    if first.diagnosis and second.diagnosis:
        return first.diagnosis != second.diagnosis and not (_includes(first, second) or _includes(second, first))
    return {first.malignancy, second.malignancy} == {"benign", "malignant"}


def _includes(umbrella: LesionClass, member: LesionClass) -> bool:
    has_short_name = plain_name(umbrella.name) != umbrella.diagnosis
    return has_short_name and member.diagnosis in UMBRELLAS.get(umbrella.diagnosis, frozenset())


def describe_malignancy_source(overridden_classes: Sequence[str]) -> str:
    """Return the text in reports about the source of the malignancy of the classes."""
    return MALIGNANCY_SOURCE + (f"; set by hand: {', '.join(overridden_classes)}" if overridden_classes else "")
