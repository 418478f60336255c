"""Table of diagnoses with their malignancy and other names, and what two labels say of each other."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dermkit.data.manifest import LesionClass, Malignancy

MALIGNANCY_SOURCE = "ISIC Archive, field diagnosis_1 (Benign, Indeterminate, Malignant)"


@dataclass(frozen=True)
class Diagnosis:
    """A canonical diagnosis, and the other names it goes by in data sets; compared by `plain_name`."""

    name: str
    malignancy: Malignancy
    aliases: tuple[str, ...]
    remark: str = ""


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
        remark="a class named akiec also holds squamous cell carcinoma in situ (Bowen's disease)",
    ),
    Diagnosis(
        "pigmented benign keratosis", "benign",
        ("bkl", "benign keratosis", "benign keratosis like lesions", "benign keratosis like lesion"),
        remark="a class named bkl joins seborrheic keratosis, solar lentigo and lichenoid keratosis",
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
"""Labels that say how dangerous a lesion is, and not what it is."""


def plain_name(label: str) -> str:
    """Return a label as it is compared: case, accents' encoding, `_`, `-` and repeated spaces make no difference."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    return " ".join(re.split(r"[\s_\-]+", folded)).strip()


def find_diagnosis(label: str) -> Diagnosis | None:
    """Return the diagnosis that a label names, or None."""
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
    """Return the class of a label: its canonical diagnosis and malignancy, by `MALIGNANCY_SOURCE`.

    "benign" and "malignant" name no diagnosis (""); any other unknown label is indeterminate without a diagnosis.
    """
    diagnosis = find_diagnosis(label)
    if diagnosis:
        return LesionClass(label, diagnosis.name, diagnosis.malignancy)
    return LesionClass(label, "", MALIGNANCY_LABELS.get(plain_name(label), "indeterminate"))


def is_known_label(label: str) -> bool:
    """Say whether the tables know a label; an unknown one counts as indeterminate until a person decides."""
    return plain_name(label) in MALIGNANCY_LABELS or find_diagnosis(label) is not None


def canonical_name(label: str) -> str:
    """Return the one name under which a label is compared between data sets: "nv", "NV" and "nevi" are "nevus"."""
    diagnosis = find_diagnosis(label)
    return diagnosis.name if diagnosis else plain_name(label)


UMBRELLAS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "pigmented benign keratosis": frozenset({"seborrheic keratosis", "solar lentigo", "lichenoid keratosis"}),
        "actinic keratosis": frozenset({"squamous cell carcinoma"}),
    }
)
"""Classes that some data sets file other diagnoses under (bkl, akiec): their labels do not contradict each other."""


def contradict(first: LesionClass, second: LesionClass) -> bool:
    """Say whether two classes cannot both be right for one picture.

    Two diagnoses contradict unless one is filed under the other (`UMBRELLAS`, only under a short name such as bkl or
    akiec); otherwise benign contradicts malignant. A class that no table knows contradicts nothing but by its name.
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
    """Return the words that reports print about where the malignancy of the classes comes from."""
    return MALIGNANCY_SOURCE + (f"; set by hand: {', '.join(overridden_classes)}" if overridden_classes else "")
