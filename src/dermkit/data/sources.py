"""Tables: diagnoses with their malignancy and other names, and known data sets with licence, citation and defects."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import pandas as pd

from dermkit.data.manifest import LesionClass, Malignancy

MALIGNANCY_SOURCE = "ISIC Archive, field diagnosis_1 (Benign, Indeterminate, Malignant)"

ARCHIVE = "ISIC Archive"
"""Where the pictures of all data sets below come from: tested on each other, they are no strangers."""


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

BINARY: Mapping[str, Malignancy] = MappingProxyType(
    {"benign": "benign", "malignant": "malignant", "indeterminate": "indeterminate"}
)
"""Labels that say how dangerous a lesion is, and not what it is."""


def plain_name(label: str) -> str:
    """Return a label as it is compared: case, accents' encoding, `_`, `-` and repeated spaces make no difference."""
    folded = unicodedata.normalize("NFKC", label).casefold()
    return " ".join(re.split(r"[\s_\-]+", folded)).strip()


def find_diagnosis(label: str) -> Diagnosis | None:
    """Return the diagnosis that a label names, or None."""
    plain = plain_name(label)
    return next((item for item in DIAGNOSES if plain == item.name or plain in item.aliases), None)


def classify(label: str) -> LesionClass:
    """Return the class of a label: its canonical diagnosis and malignancy, by `MALIGNANCY_SOURCE`.

    "benign" and "malignant" name no diagnosis (""); any other unknown label is indeterminate without a diagnosis.
    """
    found = find_diagnosis(label)
    if found:
        return LesionClass(label, found.name, found.malignancy)
    return LesionClass(label, "", BINARY.get(plain_name(label), "indeterminate"))


def is_known(label: str) -> bool:
    """Say whether the tables know a label; an unknown one counts as indeterminate until a person decides."""
    return plain_name(label) in BINARY or find_diagnosis(label) is not None


@dataclass(frozen=True, kw_only=True)
class Known:
    """A published data set, recognised by its content: folder names tell nothing.

    counts: given split -> plain class name -> images. file_name: pattern of every file's name without ending.
    lesion_id: pattern of every lesion id ("" = the set has none); with one, a part of the set is recognised too.
    """

    key: str
    title: str
    counts: Mapping[str, Mapping[str, int]] = field(hash=False)
    file_name: str
    lesion_id: str
    licence: str
    attribution: str
    citation: str
    defects: tuple[str, ...]

    @property
    def images(self) -> int:
        """The number of images as published."""
        return sum(sum(classes.values()) for classes in self.counts.values())


def _counts(**splits: Mapping[str, int]) -> Mapping[str, Mapping[str, int]]:
    return MappingProxyType({split: MappingProxyType(dict(classes)) for split, classes in splits.items()})


_NINE = (
    "actinic keratosis", "basal cell carcinoma", "dermatofibroma", "melanoma", "nevus", "pigmented benign keratosis",
    "seborrheic keratosis", "squamous cell carcinoma", "vascular lesion",
)  # fmt: skip

# Counts of copies below: measured on public copies resized to 180, 160 and 200 pixels, with `pixel_sha256`.
KNOWN = (
    Known(
        key="isic9",
        title="Skin cancer, nine classes (ISIC)",
        counts=_counts(
            train=dict(zip(_NINE, (114, 376, 95, 438, 357, 462, 77, 181, 139), strict=True)),
            test=dict(zip(_NINE, (16, 16, 16, 16, 16, 16, 3, 16, 3), strict=True)),
        ),
        file_name=r"ISIC_\d{7}(_downsampled)?",
        lesion_id="",
        licence="CC0, CC BY or CC BY-NC, image by image (see the ISIC Archive)",
        attribution="The ISIC Archive and its contributors",
        citation="International Skin Imaging Collaboration: ISIC Archive, a selection of nine classes in two folders.",
        defects=(
            "155 images stand in two classes each (310 files, identical pixels): 78 are both melanoma and seborrheic "
            "keratosis (which has 80 images), 77 are both actinic keratosis and nevus.",
            "18 of the 118 test images have an identical copy in Train, each under the other label.",
            "No lesion ids. By the ids of HAM10000, which 1,437 of these images belong to, 39 test images show a "
            "lesion that Train shows too.",
            "The test folder is small and not stratified: seborrheic keratosis and vascular lesion have 3 images.",
        ),
    ),
    Known(
        key="melanoma10k",
        title="Melanoma skin cancer, 10,000 images",
        counts=_counts(train={"benign": 5000, "malignant": 4605}, test={"benign": 500, "malignant": 500}),
        file_name=r"melanoma_\d+",
        lesion_id="",
        licence="CC0, CC BY or CC BY-NC, image by image (see the ISIC Archive)",
        attribution="The ISIC Archive and its contributors",
        citation="Melanoma Skin Cancer Dataset of 10000 Images; pictures from the ISIC Archive.",
        defects=(
            "The classes can be told apart without looking at the lesion: a rule from mean colour alone reaches 86 % "
            "accuracy and AUROC 0.95.",
            "22 images occur twice (44 files, identical pixels); 7 of these pairs have one copy in train, one in test.",
            "No lesion, patient or archive ids: photographs of one lesion cannot be kept together.",
        ),
    ),
    Known(
        key="ham10000",
        title="HAM10000",
        counts=MappingProxyType(
            {
                "": MappingProxyType(
                    {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}
                )
            }
        ),
        file_name=r"ISIC_00(2[4-9]|3[0-4])\d{3}(_downsampled)?",
        lesion_id=r"HAM_\d{7}",
        licence="CC BY-NC 4.0 or CC BY-NC-SA 4.0 (sources differ)",
        attribution="Tschandl, Rosendahl and Kittler, HAM10000 (2018)",
        citation=(
            "P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset, a large collection of multi-source "
            "dermatoscopic images of common pigmented skin lesions. Scientific Data 5, 180161 (2018). "
            "doi:10.1038/sdata.2018.161"
        ),
        defects=(
            "10,015 images of 7,470 lesions: a split that ignores lesions leaks 38.7 % of what it holds "
            "back, 68.3 % of its melanomas.",
            "dx_type (how the diagnosis was confirmed) gives the label away: it is left out of the manifest.",
            "akiec joins actinic keratosis and squamous cell carcinoma in situ; it counts as indeterminate.",
            "Age 0 is given for 39 images, and kept as published.",
        ),
    ),
)  # fmt: skip


def recognise(frame: pd.DataFrame) -> Known | None:
    """Return the known data set that these rows are, by their counts, file names and lesion ids; None if none.

    frame: manifest columns label, given_split, path and lesion_id.
    """
    names = frame["path"].str.extract(r"([^/]+?)(?:\.[^./]*)?$")[0]
    table = pd.crosstab(frame["given_split"], frame["label"].map(plain_name))
    counts = {str(s): {str(c): int(n) for c, n in row.items() if n} for s, row in table.iterrows()}
    return next((item for item in KNOWN if _is_that(item, counts, names, frame["lesion_id"])), None)


def _is_that(
    item: Known, counts: Mapping[str, Mapping[str, int]], names: "pd.Series[str]", lesions: "pd.Series[str]"
) -> bool:
    if not names.str.fullmatch(item.file_name).all():
        return False
    if item.lesion_id and lesions.str.fullmatch(item.lesion_id).all():
        return True
    return counts == {split: dict(classes) for split, classes in item.counts.items()}


def malignancy_source(overridden: Sequence[str]) -> str:
    """Return the words that reports print about where the malignancy of the classes comes from."""
    return MALIGNANCY_SOURCE + (f"; set by hand: {', '.join(overridden)}" if overridden else "")
