"""The table of diagnoses with their malignancy and other names, and the comparison of labels.

Malignancy is that of `MALIGNANCY_SOURCE`; an import can overrule it.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from dermkit.data.manifest import MALIGNANCIES, LesionClass, Malignancy
from dermkit.errors import UsageError, did_you_mean

MALIGNANCY_SOURCE = "ISIC Archive, field diagnosis_1 (Benign, Indeterminate, Malignant)"


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis: its canonical name, its malignancy, and its other names in data sets, as `plain_name` gives them.

    qualifiers: words that may stand beside a name and make a subtype of it, which has the same malignancy ("nodular").
    """

    name: str
    malignancy: Malignancy
    aliases: tuple[str, ...]
    qualifiers: frozenset[str] = frozenset()


_CARCINOMA_WORDS = (
    "nos nodular superficial superficially spreading invasive infiltrating infiltrative morpheiform morphoeic "
    "sclerosing sclerosed pigmented micronodular basosquamous solid cystic multifocal ulcerated in situ cutaneous skin "
    "well moderately poorly differentiated keratinizing keratinising metastatic primary recurrent of the type subtype"
)
_MELANOMA_WORDS = (
    "nos malignant in situ invasive superficial spreading nodular lentigo maligna lentiginous acral amelanotic "
    "hypomelanotic desmoplastic spitzoid nevoid naevoid mucosal subungual cutaneous skin metastasis metastases "
    "metastatic primary recurrent ssm lmm alm nm thin thick early of the type subtype"
)
_NEVUS_WORDS = (
    "nos blue cellular dermal intradermal junctional junction compound congenital acquired common banal benign spitz "
    "reed or and of pigmented spindle cell clark clarks halo sutton combined recurrent persistent dysplastic atypical "
    "melanocytic papillomatous papillomatosus lentiginous agminated speckled unna miescher deep penetrating "
    "naevocellular nevocellular globular reticular spitzoid balloon type subtype"
)

DIAGNOSES = (
    Diagnosis(
        "melanoma", "malignant",
        ("mel", "malignant melanoma", "melanoma nos", "melanoma invasive", "melanoma in situ", "melanoma metastasis",
         "lentigo maligna", "melanoma (less than 0.76 mm)", "melanoma (0.76 to 1.5 mm)",
         "melanoma (more than 1.5 mm)", "ssm", "lmm"),
        frozenset(_MELANOMA_WORDS.split()),
    ),
    Diagnosis(
        "nevus", "benign",
        ("nv", "nev", "nevi", "naevus", "naevi", "mole", "nevus nos", "common nevus", "melanocytic nevus",
         "melanocytic nevi", "melanocytic naevus", "melanocytic naevi", "atypical nevus", "dysplastic nevus",
         "nevocellular nevus"),
        frozenset(_NEVUS_WORDS.split()),
    ),
    Diagnosis(
        "basal cell carcinoma", "malignant", ("bcc", "basal cell carcinomas", "basalioma", "basal cell epithelioma"),
        frozenset(_CARCINOMA_WORDS.split()),
    ),
    Diagnosis(
        "squamous cell carcinoma", "malignant",
        ("scc", "squamous cell carcinoma nos", "squamous cell carcinoma invasive", "squamous cell carcinoma in situ",
         "bowen", "bowens disease", "bowen disease", "bowen\'s disease", "morbus bowen", "intraepidermal carcinoma",
         "intraepithelial carcinoma", "spinocellular carcinoma", "cscc", "bod"),
        frozenset(_CARCINOMA_WORDS.split()),
    ),
    Diagnosis(
        "actinic keratosis", "indeterminate",
        ("akiec", "ak", "ack", "actinic keratoses", "solar keratosis", "solar keratoses", "solar or actinic keratosis",
         "actinic keratoses and intraepithelial carcinoma"),
    ),
    Diagnosis(
        "pigmented benign keratosis", "benign",
        ("bkl", "benign keratosis", "benign keratosis like lesions", "benign keratosis like lesion"),
    ),
    Diagnosis(
        "seborrheic keratosis", "benign",
        ("sk", "sek", "seborrhoeic keratosis", "seborrheic keratoses", "seborrhoeic keratoses"),
        frozenset({"pigmented", "irritated", "inflamed", "clonal", "nos"}),
    ),
    Diagnosis("solar lentigo", "benign", ("sl", "solar lentigines", "senile lentigo", "actinic lentigo")),
    Diagnosis("lentigo", "benign", ("lentigo nos", "lentigo simplex", "lentigines", "ink spot lentigo")),
    Diagnosis(
        "lichenoid keratosis", "benign",
        ("lplk", "lichen planus like keratosis", "benign lichenoid keratosis", "blk"),
    ),
    Diagnosis("dermatofibroma", "benign", ("df", "dermatofibromas", "fibrous histiocytoma")),
    Diagnosis(
        "vascular lesion", "benign",
        ("vasc", "vascular", "vascular lesions", "angioma", "hemangioma", "haemangioma", "angiokeratoma",
         "cherry angioma", "pyogenic granuloma", "granuloma pyogenic", "spider angioma", "lymphangioma",
         "port wine stain", "venous lake"),
    ),
    Diagnosis(
        "atypical melanocytic proliferation", "indeterminate",
        ("amp", "atypical intraepithelial melanocytic proliferation"),
    ),
    Diagnosis("merkel cell carcinoma", "malignant", ("mcc", "merkel cell tumor", "merkel cell tumour")),
    Diagnosis("sebaceous carcinoma", "malignant", ("sebaceous gland carcinoma",)),
    Diagnosis("adnexal carcinoma", "malignant", ("microcystic adnexal carcinoma", "eccrine porocarcinoma")),
    Diagnosis("dermatofibrosarcoma protuberans", "malignant", ("dfsp", "dermatofibrosarcoma")),
    Diagnosis("kaposi sarcoma", "malignant", ("kaposis sarcoma", "kaposi\'s sarcoma")),
    Diagnosis("angiosarcoma", "malignant", ("cutaneous angiosarcoma",)),
    Diagnosis(
        "cutaneous lymphoma", "malignant",
        ("mycosis fungoides", "ctcl", "cutaneous t cell lymphoma", "cutaneous b cell lymphoma"),
    ),
    Diagnosis("paget disease", "malignant", ("extramammary paget disease", "mammary paget disease", "pagets disease")),
    Diagnosis("cutaneous metastasis", "malignant", ("skin metastasis", "metastatic carcinoma")),
    Diagnosis(
        "keratinocyte carcinoma", "malignant",
        ("non melanoma skin cancer", "nonmelanoma skin cancer", "nmsc", "basal or squamous cell carcinoma"),
    ),
    Diagnosis("wart", "benign", ("verruca", "verruca vulgaris", "warts", "viral wart")),
    Diagnosis("skin tag", "benign", ("acrochordon", "fibroepithelial polyp", "fibroma molle")),
    Diagnosis("epidermal cyst", "benign", ("epidermoid cyst", "infundibular or epidermal cyst", "pilar cyst", "cyst")),
    *(
        Diagnosis(name, "benign", ())
        for name in (
            "neurofibroma", "sebaceous hyperplasia", "lipoma", "scar", "keloid", "clear cell acanthoma",
            "porokeratosis", "epidermal nevus", "becker nevus", "nevus sebaceous", "nevus spilus",
            "cafe au lait macule", "ephelis", "molluscum contagiosum",
            "syringoma", "trichoepithelioma", "pilomatricoma", "milia", "melanosis",
            "mucosal melanotic macule", "angiofibroma", "fibrous papule", "dermatosis papulosa nigra", "xanthoma",
            "psoriasis", "eczema", "atopic dermatitis", "acne", "rosacea", "normal skin",
        )
    ),
)  # fmt: skip

MALIGNANCY_LABELS: Mapping[str, Malignancy] = MappingProxyType(
    {"benign": "benign", "malignant": "malignant", "indeterminate": "indeterminate"}
)
"""Labels that state a malignancy instead of a diagnosis."""


UNKNOWN_MALIGNANCY = "Malignancy unknown: "
"""Beginning of the serious warning about classes that nothing says the malignancy of."""


def plain_name(label: str) -> str:
    """Return the form in which labels are compared: lower case, one Unicode form, single spaces for `_` and `-`."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    return " ".join(re.split(r"[\s_\-]+", folded)).strip()


@lru_cache(maxsize=4096)
def find_diagnosis(label: str) -> Diagnosis | None:
    """Return the diagnosis with this name or alias, also as a plural or with qualifiers ("Melanoma, NOS"), or None.

    "Basal cell carcinoma (BCC)" is one name twice. A word that is no qualifier ("not melanoma") leaves a label unknown.
    """
    plain_label = plain_name(label)
    if exact := _BY_NAME.get(plain_label):
        return exact
    outside, inside = re.sub(r"\([^()]*\)", " ", plain_label), " ".join(re.findall(r"\(([^()]*)\)", plain_label))
    first, second = _find_words(outside), _find_words(inside)
    if first and second and inside.strip():
        return first if first == second else None
    return _find_words(plain_label)


def _find_words(text: str) -> Diagnosis | None:
    """Return the diagnosis of a plain name without regard to punctuation, plurals and qualifiers."""
    words = re.sub(r"[^\w\s]", " ", text.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")).split()
    name = " ".join(words)
    exact = next(filter(None, map(_BY_NAME.get, (name, name.removesuffix("s"), name.removesuffix(" nos")))), None)
    if exact:
        return exact
    matches = {
        (len(head), _BY_NAME[head]): rest
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        if (head := " ".join(words[start:end])) in _BY_NAME
        and (rest := [*words[:start], *words[end:]])
        and set(rest) <= _BY_NAME[head].qualifiers
    }
    return max(matches, key=lambda match: match[0])[1] if matches else None


_BY_NAME: Mapping[str, Diagnosis] = MappingProxyType(
    {name: diagnosis for diagnosis in DIAGNOSES for name in (diagnosis.name, *diagnosis.aliases)}
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


def describe_malignancy_source(overridden_classes: Sequence[str], classes_by_rows: Sequence[str] = ()) -> str:
    """Return the text in reports about the source of the malignancy of the classes.

    overridden_classes: those that a person set. classes_by_rows: those that columns of the table decided, row by row.
    """
    by_rows_text = f"; by columns of the table: {', '.join(classes_by_rows)}" if classes_by_rows else ""
    by_hand_text = f"; set by hand: {', '.join(overridden_classes)}" if overridden_classes else ""
    return MALIGNANCY_SOURCE + by_rows_text + by_hand_text


def unknown_malignancy(classes: Sequence[LesionClass], decided_classes: Collection[str]) -> list[str]:
    """Return the classes that are indeterminate only because nothing says what they are.

    decided_classes: those whose malignancy a person or the rows of a table decided.
    """
    return [
        lesion_class.name
        for lesion_class in classes
        if lesion_class.malignancy == "indeterminate"
        and lesion_class.name not in decided_classes
        and not is_known_label(lesion_class.name)
    ]


def malignancy_question(classes: Sequence[LesionClass], unknown: Sequence[str]) -> str:
    """Return what to say of classes of unknown malignancy, with the flags to give; "" if there are none."""
    if not unknown:
        return ""
    flags = " ".join(f'--malignancy "{name}=benign|malignant"' for name in unknown)
    if not any(lesion_class.malignancy == "malignant" for lesion_class in classes):
        return (
            f"{UNKNOWN_MALIGNANCY}no class is known to be malignant, so its sensitivity, specificity and AUROC do not "
            f'exist. Say which one is, such as --malignancy "{unknown[-1]}=malignant" (in full: {flags}).'
        )
    is_one = len(unknown) == 1
    return (
        f"{UNKNOWN_MALIGNANCY}nothing says whether {', '.join(unknown)} {'is' if is_one else 'are'} malignant. "
        f"{'It counts' if is_one else 'They count'} as not malignant, and sensitivity is wrong if "
        f"{'it is' if is_one else 'one is'}. Give {flags}."
    )


def with_given_malignancy(
    classes: Sequence[LesionClass], given: Mapping[str, str], decided_classes: Collection[str] = ()
) -> tuple[LesionClass, ...]:
    """Return the classes with the malignancy that a person gave. given: class -> one of `MALIGNANCIES`.

    Of two classes of which one is given as malignant, the other is benign if nothing is known of it.
    """
    malignancies = dict(given)
    if len(classes) == 2 and "malignant" in given.values():
        unknown = unknown_malignancy(classes, {*given, *decided_classes})
        malignancies |= dict.fromkeys(unknown, "benign")
    return tuple(
        replace(c, malignancy=MALIGNANCY_LABELS[malignancies[c.name]]) if c.name in malignancies else c
        for c in classes
    )


def check_malignancy(malignancy: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise `UsageError` for a value that is none of `MALIGNANCIES`, or a class that is not in `names`."""
    invalid = [f"{name}={value}" for name, value in malignancy.items() if value not in MALIGNANCIES]
    if invalid:
        raise UsageError(f"no malignancy: {', '.join(invalid)}", remedy=f"CLASS={'|'.join(MALIGNANCIES)}")
    for name in malignancy:
        if name not in names:
            raise UsageError(
                f"no class {name!r} to set the malignancy of{did_you_mean(name, names, cutoff=0.5)}",
                remedy=f"one of: {', '.join(names)}",
            )
