"""Published sensitivity and specificity of physicians, drawn beside a ROC curve for orientation, never tested.

Each point is of other images, another prevalence and another task than the run, so a model above it is not shown to
be better than these readers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReaderStudy:
    """Sensitivity and specificity of readers for melanoma or malignant lesions, 0 to 1, with source and year."""

    readers: str
    sensitivity: float
    specificity: float
    task: str
    source: str
    year: int


READER_STUDIES = (
    ReaderStudy(
        "dermatologists, 92 studies", 0.875, 0.814, "melanoma among pigmented lesions, with or without dermoscopy",
        "Phillips et al., Dermatology Practical & Conceptual 10(1):e2020011", 2019,
    ),
    ReaderStudy(
        "primary care physicians, 10 studies", 0.799, 0.709,
        "melanoma among pigmented lesions, with or without dermoscopy",
        "Phillips et al., Dermatology Practical & Conceptual 10(1):e2020011", 2019,
    ),
    ReaderStudy(
        "58 dermatologists", 0.866, 0.713, "melanoma on 100 dermoscopic images, nothing else known",
        "Haenssle et al., Annals of Oncology 29:1836", 2018,
    ),
    ReaderStudy(
        "157 dermatologists", 0.741, 0.600, "melanoma on 100 dermoscopic images",
        "Brinker et al., European Journal of Cancer 113:47", 2019,
    ),
)  # fmt: skip
