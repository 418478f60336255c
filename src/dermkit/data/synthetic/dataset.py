"""Synthetic dermoscopy data sets with known truth and planted faults, for the demo and for tests.

The images are drawn, not photographed: results on them say nothing about real skin.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from dermkit.data.synthetic.lesions import (
    ARTEFACT_RATES,
    CLASSES,
    MIXTURES,
    LesionTruth,
    draw_photograph,
    make_lesion,
    random_artefacts,
)
from dermkit.errors import UsageError
from dermkit.files import write_bytes, write_rows

__all__ = [
    "DEFAULT_CLASSES",
    "LesionTruth",
    "Photograph",
    "PlantedFaults",
    "draw_photograph",
    "make_dataset_folder",
    "make_lesion",
]

DatasetLayout = Literal["folder", "ham10000"]
DEFAULT_CLASSES = ("melanoma", "nevus", "seborrheic keratosis")
JPEG_QUALITY = 92
"""Of the JPEG files; public sets lie between 75 and 98."""
OTHER_JPEG_QUALITY = 80
"""Of the files of the other archive (`PlantedFaults.source`)."""
SYNTHETIC_ARCHIVE, OTHER_SYNTHETIC_ARCHIVE = "made archive", "other made archive"
DEFECTS = ("unreadable", "dark", "blurred", "empty", "tiny")
TINY_PHOTO_SIDE = 40
"""Side of a tiny photograph, in pixels."""
_BLUR = 5 / 450
"""Standard deviation of a planted blur, as a fraction of the image width."""


@dataclass(frozen=True)
class Photograph:
    """A file of a synthetic data set.

    label: according to the folder or table. image: path relative to the data set's folder. planted_fault: copy,
    sibling, contradiction or lesion_label, "" = none; partner: the photograph that it repeats or accompanies, as an
    index and later as a path. artefact: a planted one. archive: its origin. defect: one of `DEFECTS`.
    """

    truth: LesionTruth
    photo_seed: int
    given_split: str
    label: str
    image: str = ""
    planted_fault: str = ""
    partner: str = ""
    artefact: str = ""
    archive: str = SYNTHETIC_ARCHIVE
    defect: str = ""

    @property
    def faults(self) -> tuple[tuple[str, str], ...]:
        """All planted faults of this file, as (fault, partner)."""
        artefact = f"artefact {self.artefact}" if self.artefact else ""
        archive_fault = "source" if self.archive != SYNTHETIC_ARCHIVE else ""
        single_faults = [(fault, "") for fault in (artefact, archive_fault, self.defect) if fault]
        return (*([(self.planted_fault, self.partner)] if self.planted_fault else []), *single_faults)


@dataclass(frozen=True, kw_only=True)
class PlantedFaults:
    """Numbers of faults to plant, each listed in planted.csv. Fields after `siblings` change no other file.

    copies: training files repeated, byte for byte, in the test folder. contradictions: files repeated in the same
    split with another class. siblings: further photographs of training lesions in the test folder. lesion_labels:
    further photographs of a lesion, in the same split, with another class. artefact: (one of `ARTEFACT_RATES`, class,
    fraction): drawn on this fraction of the class's photographs, beside those that have it at random. source: (class,
    fraction): this fraction is from another archive, with another size, colours, border and JPEG tables. unreadable,
    dark, blurred, empty, tiny: photographs with this defect.
    """

    copies: int = 0
    contradictions: int = 0
    siblings: int = 0
    lesion_labels: int = 0
    artefact: tuple[str, str, float] | None = None
    source: tuple[str, float] | None = None
    unreadable: int = 0
    dark: int = 0
    blurred: int = 0
    empty: int = 0
    tiny: int = 0


def make_dataset_folder(
    out: Path,
    *,
    lesions_per_class: Mapping[str, int] | int,
    photos_per_lesion: tuple[int, int],
    size: int = 160,
    seed: int = 0,
    layout: DatasetLayout = "folder",
    given_test: float = 0.0,
    planted_faults: PlantedFaults | None = None,
) -> pd.DataFrame:
    """Write synthetic JPEG photographs with truth.csv, metadata.csv and, if faults are planted, planted.csv.

    Returns the table of truth.csv. lesions_per_class: for each of `DEFAULT_CLASSES`, or class -> number.
    photos_per_lesion: smallest and largest number. size: side in pixels. layout: `folder` is [train|test/]CLASS/x.jpg,
    `ham10000` is images/x.jpg and HAM10000_metadata.csv. given_test: fraction of each class's lesions in the test
    folder, by patient (`folder` only). metadata.csv has the manifest's columns. Raises `UsageError`, `OutputError`.
    """
    faults = planted_faults or PlantedFaults()
    lesion_counts = (
        dict.fromkeys(DEFAULT_CLASSES, lesions_per_class)
        if isinstance(lesions_per_class, int)
        else lesions_per_class
    )
    _check_request(lesion_counts, photos_per_lesion, layout, given_test, faults)
    rng = np.random.default_rng([seed, 5])
    photographs = _photograph_lesions(lesion_counts, photos_per_lesion, given_test, rng)
    photographs = _alter_photographs(
        _append_faults(photographs, faults, rng), faults, np.random.default_rng([seed, 8])
    )
    photographs = _assign_names(photographs, layout, rng)
    files: dict[Photograph, bytes] = {}
    for photograph in photographs:
        key = replace(photograph, given_split="", label="", image="", planted_fault="", partner="")
        if key not in files:
            files[key] = _render_file(photograph, size)
        write_bytes(out / photograph.image, files[key])
    table = _truth_table(photographs)
    write_rows(out / "truth.csv", list(table.columns), table.itertuples(index=False))
    if faults != PlantedFaults():
        fault_rows = [
            (fault, photograph.image, partner)
            for photograph in photographs
            for fault, partner in photograph.faults
        ]
        write_rows(out / "planted.csv", ["fault", "image", "partner"], sorted(fault_rows))
    _write_metadata(out, photographs, seed)
    if layout == "ham10000":
        _write_ham10000(out, photographs, seed)
    return table


def _check_request(
    lesion_counts: Mapping[str, int],
    photos_per_lesion: tuple[int, int],
    layout: DatasetLayout,
    given_test: float,
    faults: PlantedFaults,
) -> None:
    unknown = [
        name for name in lesion_counts if name not in CLASSES and (layout == "ham10000" or name not in MIXTURES)
    ]
    if unknown:
        choices = ", ".join([*CLASSES, *(MIXTURES if layout == "folder" else ())])
        raise UsageError(
            f"no made class for {', '.join(unknown)} in layout {layout}", remedy=f"choose from: {choices}"
        )
    if (
        not 1 <= photos_per_lesion[0] <= photos_per_lesion[1]
        or not 0 <= given_test < 1
        or any(n < 1 for n in lesion_counts.values())
    ):
        raise UsageError("lesions and photographs are at least 1, least before most; given_test is in 0 .. 1")
    if layout == "ham10000" and given_test:
        raise UsageError("layout ham10000 has no published test side", remedy="use folder")
    if (faults.copies or faults.siblings) and not given_test:
        raise UsageError("copies and siblings across the split need given_test above 0")
    if (faults.contradictions or faults.lesion_labels) and len(lesion_counts) < 2:
        raise UsageError("contradictory labels need two classes")
    if faults.artefact and faults.artefact[0] not in ARTEFACT_RATES:
        raise UsageError(
            f"no made artefact {faults.artefact[0]!r}", remedy=f"choose from: {', '.join(ARTEFACT_RATES)}"
        )
    class_fractions = [faults.artefact[1:]] if faults.artefact else []
    for name, fraction in [*class_fractions, *([faults.source] if faults.source else [])]:
        if name not in lesion_counts or not 0 < fraction <= 1:
            raise UsageError(
                f"a fault on the share {fraction:g} of class {name!r}: no such class here, or no share"
            )


def _photograph_lesions(
    lesion_counts: Mapping[str, int],
    photos_per_lesion: tuple[int, int],
    given_test: float,
    rng: np.random.Generator,
) -> list[Photograph]:
    """Return photographs of patients with one to three lesions of one class."""
    photographs: list[Photograph] = []
    for label, total in lesion_counts.items():
        n_test = round(given_test * total)
        n_lesions = 0
        while n_lesions < total:
            patient_id, tone = f"P{rng.integers(10**9):09d}", float(rng.beta(1.2, 4.5))
            split_name = "" if not given_test else "test" if n_lesions < n_test else "train"
            # All lesions of a patient are in one split.
            remaining = (n_test if split_name == "test" else total) - n_lesions
            for _ in range(min(remaining, int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])))):
                lesion_id = f"L{rng.integers(10**9):09d}"
                truth = make_lesion(
                    label, seed=int(rng.integers(2**40)), lesion_id=lesion_id, patient_id=patient_id, tone=tone
                )
                n_photos = int(rng.integers(photos_per_lesion[0], photos_per_lesion[1] + 1))
                photographs += [Photograph(truth, photo_seed, split_name, label) for photo_seed in range(n_photos)]
                n_lesions += 1
    return photographs


def _append_faults(
    photographs: list[Photograph], faults: PlantedFaults, rng: np.random.Generator
) -> list[Photograph]:
    """Append the planted faults; `partner` is the index of the original photograph."""
    train = [n for n, photograph in enumerate(photographs) if photograph.given_split != "test"]
    n_faults = faults.copies + faults.siblings + faults.contradictions + faults.lesion_labels
    if n_faults > len(train):
        raise UsageError(f"{n_faults} faults need as many training photographs; there are {len(train)}")
    originals = [int(n) for n in rng.choice(train, n_faults, replace=False)]
    labels = sorted({photograph.label for photograph in photographs})
    planted_photographs: list[Photograph] = []
    for index, n in enumerate(originals):
        photograph, partner = photographs[n], str(n)
        if index < faults.copies:
            planted_photographs.append(
                replace(photograph, given_split="test", planted_fault="copy", partner=partner)
            )
        elif index < faults.copies + faults.siblings:
            new_seed = photograph.photo_seed + 1000  # no photograph of the training split has it
            planted_photographs.append(
                replace(
                    photograph, photo_seed=new_seed, given_split="test", planted_fault="sibling", partner=partner
                )
            )
        else:
            wrong_label = str(rng.choice([label for label in labels if label != photograph.label]))
            if index < n_faults - faults.lesion_labels:
                planted_photographs.append(
                    replace(photograph, label=wrong_label, planted_fault="contradiction", partner=partner)
                )
            else:
                sibling = replace(photograph, photo_seed=photograph.photo_seed + 2000, label=wrong_label)
                planted_photographs.append(replace(sibling, planted_fault="lesion_label", partner=partner))
    return photographs + planted_photographs


def _alter_photographs(
    photographs: list[Photograph], faults: PlantedFaults, rng: np.random.Generator
) -> list[Photograph]:
    """Plant artefacts, archives and defects; duplicates get the artefact and archive of their original."""
    altered = list(photographs)
    if faults.artefact:
        name, label, fraction = faults.artefact
        for n in _choose_fraction(photographs, label, fraction, rng):
            altered[n] = replace(altered[n], artefact=name)
    if faults.source:
        for n in _choose_fraction(photographs, *faults.source, rng):
            altered[n] = replace(altered[n], archive=OTHER_SYNTHETIC_ARCHIVE)
    for n, photograph in enumerate(photographs):
        if photograph.planted_fault in ("copy", "contradiction"):
            original = altered[int(photograph.partner)]
            altered[n] = replace(photograph, artefact=original.artefact, archive=original.archive)
    defects = [name for name in DEFECTS for _ in range(getattr(faults, name))]
    partners = {int(photograph.partner) for photograph in photographs if photograph.partner}
    unaltered = [n for n, photograph in enumerate(altered) if not photograph.faults and n not in partners]
    if len(defects) > len(unaltered):
        raise UsageError(f"{len(defects)} photographs to spoil, and only {len(unaltered)} without another fault")
    for n, name in zip(rng.permutation(unaltered)[: len(defects)].tolist(), defects, strict=True):
        altered[n] = replace(altered[n], defect=name)
    return altered


def _choose_fraction(
    photographs: list[Photograph], label: str, fraction: float, rng: np.random.Generator
) -> list[int]:
    """Return the indices of a random fraction of the photographs labelled with a class."""
    class_photographs = [n for n, photograph in enumerate(photographs) if photograph.label == label]
    return [int(n) for n in rng.choice(class_photographs, round(fraction * len(class_photographs)), replace=False)]


def _assign_names(
    photographs: list[Photograph], layout: DatasetLayout, rng: np.random.Generator
) -> list[Photograph]:
    """Give every photograph a file name that reveals neither its class nor its lesion."""
    numbers = rng.permutation(len(photographs)) + 1
    named_photographs = []
    for photograph, number in zip(photographs, numbers, strict=True):
        folders = [photograph.given_split, photograph.label] if layout == "folder" else ["images"]
        named_photographs.append(
            replace(photograph, image="/".join([*filter(None, folders), f"MADE_{number:07d}.jpg"]))
        )
    return [
        replace(renamed, partner=named_photographs[int(renamed.partner)].image) if renamed.partner else renamed
        for renamed in named_photographs
    ]


def _render_file(photograph: Photograph, size: int) -> bytes:
    """Return a photograph as a JPEG file, with its artefact, archive and defect."""
    planted_artefacts = frozenset([photograph.artefact]) if photograph.artefact else frozenset[str]()
    pixels = draw_photograph(
        photograph.truth, photo_seed=photograph.photo_seed, size=size, artefacts=planted_artefacts
    )
    if photograph.archive != SYNTHETIC_ARCHIVE:
        return _as_other_archive(pixels)
    if photograph.defect == "unreadable":
        jpeg_bytes = _encode_jpeg(pixels)
        return jpeg_bytes[: len(jpeg_bytes) // 2]
    return _encode_jpeg(_apply_defect(pixels, photograph))


def _apply_defect(pixels: NDArray[np.uint8], photograph: Photograph) -> NDArray[np.uint8]:
    edge = len(pixels)
    if photograph.defect == "dark":
        return np.asarray(pixels * 0.2, np.uint8)
    if photograph.defect == "blurred":
        sigma = _BLUR * edge
        return np.asarray(gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)) + 0.5, np.uint8)
    if photograph.defect == "empty":
        noise = np.random.default_rng([photograph.truth.seed, 9]).normal(0, 1, pixels.shape)
        return np.asarray(np.clip(pixels.mean(axis=(0, 1)) + noise, 0, 255), np.uint8)
    if photograph.defect == "tiny":
        return np.asarray(Image.fromarray(pixels).resize((TINY_PHOTO_SIDE, TINY_PHOTO_SIDE), Image.Resampling.BOX))
    return pixels


def _as_other_archive(pixels: NDArray[np.uint8]) -> bytes:
    """Return a photograph as a JPEG file of another archive: smaller, yellower, with a dark frame, other tables."""
    tinted = (pixels * np.array([1.0, 0.96, 0.88])).astype(np.uint8)
    frame_width = max(1, round(0.015 * len(tinted)))
    tinted[:frame_width], tinted[-frame_width:], tinted[:, :frame_width], tinted[:, -frame_width:] = 12, 12, 12, 12
    edge = round(0.8 * len(tinted))
    stream = BytesIO()
    resized = Image.fromarray(tinted).resize((edge, edge), Image.Resampling.BICUBIC)
    resized.save(stream, "JPEG", quality=OTHER_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _truth_table(photographs: list[Photograph]) -> pd.DataFrame:
    """Return one row per file, sorted by path: labels, faults, artefacts, and how its lesion was drawn."""
    rows: list[dict[str, Any]] = []
    for photograph in sorted(photographs, key=lambda photograph: photograph.image):
        truth_fields = {
            key: value for key, value in asdict(photograph.truth).items() if key not in ("label", "appearance")
        }
        file_fields = {"image": photograph.image, "class": photograph.label, "true_class": photograph.truth.label}
        photo_fields = {
            "given_split": photograph.given_split,
            "planted": photograph.planted_fault,
            "photo_seed": photograph.photo_seed,
        }
        artefacts = random_artefacts(photograph.truth, photograph.photo_seed) | (
            {photograph.artefact: True} if photograph.artefact else {}
        )
        rows.append(file_fields | photo_fields | truth_fields | artefacts | asdict(photograph.truth.appearance))
    return pd.DataFrame(rows)


def _demographics(truth: LesionTruth, seed: int) -> tuple[int, str, str]:
    """Return age in years, sex and site, random per patient or lesion and independent of the class."""
    patient = np.random.default_rng([seed, 6, int(truth.patient_id[1:])])
    age, sex = 5 * int(patient.integers(4, 18)), str(patient.choice(["female", "male"]))
    lesion = np.random.default_rng([seed, 7, truth.seed])
    return age, sex, str(lesion.choice(["back", "lower extremity", "upper extremity", "trunk", "abdomen", "face"]))


def _write_metadata(out: Path, photographs: list[Photograph], seed: int) -> None:
    rows = [
        [
            *(photograph.image, photograph.label, photograph.truth.lesion_id, photograph.truth.patient_id),
            *(*_demographics(photograph.truth, seed), photograph.archive, photograph.given_split),
        ]
        for photograph in sorted(photographs, key=lambda photograph: photograph.image)
    ]
    header = ["image", "label", "lesion_id", "patient_id", "age", "sex", "site", "source", "given_split"]
    write_rows(out / "metadata.csv", header, rows)


def _write_ham10000(out: Path, photographs: list[Photograph], seed: int) -> None:
    rows = []
    for photograph in sorted(photographs, key=lambda photograph: photograph.image):
        age, sex, site = _demographics(photograph.truth, seed)
        lesion, image, dx = photograph.truth.lesion_id, Path(photograph.image).stem, CLASSES[photograph.label].dx
        rows.append([lesion, image, dx, "consensus", f"{age}.0", sex, site])
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    write_rows(out / "HAM10000_metadata.csv", header, rows)
