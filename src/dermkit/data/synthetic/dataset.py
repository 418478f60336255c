"""Made dermoscopy on disk, with known truth: the demo, the tests and the planted faults. Not about real skin."""

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
    ARTEFACTS,
    CLASSES,
    MIXTURES,
    LesionTruth,
    artefacts_of,
    draw_photograph,
    make_lesion,
)
from dermkit.errors import UsageError
from dermkit.files import write_bytes, write_rows

__all__ = [
    "DEFAULT_CLASSES",
    "LesionTruth",
    "Photograph",
    "Plant",
    "draw_photograph",
    "make_dataset_folder",
    "make_lesion",
]

Layout = Literal["folder", "ham10000"]
DEFAULT_CLASSES = ("melanoma", "nevus", "seborrheic keratosis")
QUALITY = 92
"""Of the JPEG files; real sets lie between 75 and 98."""
OTHER_QUALITY = 80
ARCHIVE, OTHER_ARCHIVE = "made archive", "other made archive"
SPOILS = ("unreadable", "dark", "blurred", "empty", "tiny")
TINY = 40
"""Pixels of the side of a tiny photograph."""
_BLUR = 5 / 450
"""Standard deviation of a planted blur, as a share of the side."""


@dataclass(frozen=True)
class Photograph:
    """One file of a made data set.

    image: path below the data set's folder. label: what the folder or table says. planted: the fault it is, with
    `partner`, the number and later the path of the photograph it repeats or accompanies. artefact: one planted on it.
    archive: where it is from. spoiled: a fault of the file itself, of `SPOILS`.
    """

    truth: LesionTruth
    photo_seed: int
    given_split: str
    label: str
    image: str = ""
    planted: str = ""
    partner: str = ""
    artefact: str = ""
    archive: str = ARCHIVE
    spoiled: str = ""

    @property
    def faults(self) -> tuple[tuple[str, str], ...]:
        """What is planted in it, as (fault, partner)."""
        artefact = f"artefact {self.artefact}" if self.artefact else ""
        source = "source" if self.archive != ARCHIVE else ""
        single = [(fault, "") for fault in (artefact, source, self.spoiled) if fault]
        return (*([(self.planted, self.partner)] if self.planted else []), *single)


@dataclass(frozen=True, kw_only=True)
class Plant:
    """Faults to plant; each is listed in planted.csv. Those behind `siblings` leave every other file as it was.

    copies: training files repeated, byte for byte, in the test folder. contradictions: files repeated in the same
    split under another class. siblings: further photographs of training lesions put into the test folder.
    lesion_labels: further photographs of a lesion, in the same split, under another class.
    artefact: (one of `ARTEFACTS`, class, share): drawn on that share of the class's photographs, beside those that
    have it by chance. source: (class, share): that share is from another archive, with its own size, colours, border
    and JPEG tables. unreadable, dark, blurred, empty, tiny: photographs spoiled so.
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
    photos: tuple[int, int],
    size: int = 160,
    seed: int = 0,
    layout: Layout = "folder",
    given_test: float = 0.0,
    plant: Plant | None = None,
) -> pd.DataFrame:
    """Write made photographs as JPEG, truth.csv, metadata.csv and, where faults are planted, planted.csv.

    Returns the truth table. metadata.csv has the manifest's column names, `image` for the path, for any layout.
    lesions_per_class: a number for each of `DEFAULT_CLASSES`, or per class. photos: least and most photographs of one
    lesion. given_test: share of each class's lesions in the published test folder, by whole patients (`folder` only).
    `folder` is [train|test/]CLASS/x.jpg; `ham10000` is images/x.jpg and HAM10000_metadata.csv. File names tell nothing.
    """
    faults = plant or Plant()
    wanted = (
        dict.fromkeys(DEFAULT_CLASSES, lesions_per_class)
        if isinstance(lesions_per_class, int)
        else lesions_per_class
    )
    _check_request(wanted, photos, layout, given_test, faults)
    rng = np.random.default_rng([seed, 5])
    shots = _shoot(wanted, photos, given_test, rng)
    shots = _mark(_plant(shots, faults, rng), faults, np.random.default_rng([seed, 8]))
    shots = _number(shots, layout, rng)
    drawn: dict[Photograph, bytes] = {}
    for shot in shots:
        key = replace(shot, given_split="", label="", image="", planted="", partner="")
        if key not in drawn:
            drawn[key] = _file(shot, size)
        write_bytes(out / shot.image, drawn[key])
    table = _truth_table(shots)
    write_rows(out / "truth.csv", list(table.columns), table.itertuples(index=False))
    if faults != Plant():
        found = [(fault, shot.image, partner) for shot in shots for fault, partner in shot.faults]
        write_rows(out / "planted.csv", ["fault", "image", "partner"], sorted(found))
    _write_metadata(out, shots, seed)
    if layout == "ham10000":
        _write_ham10000(out, shots, seed)
    return table


def _check_request(
    wanted: Mapping[str, int], photos: tuple[int, int], layout: Layout, given_test: float, faults: Plant
) -> None:
    unknown = [name for name in wanted if name not in CLASSES and (layout == "ham10000" or name not in MIXTURES)]
    if unknown:
        known = ", ".join([*CLASSES, *(MIXTURES if layout == "folder" else ())])
        raise UsageError(
            f"no made class for {', '.join(unknown)} in layout {layout}", remedy=f"choose from: {known}"
        )
    if not 1 <= photos[0] <= photos[1] or not 0 <= given_test < 1 or any(n < 1 for n in wanted.values()):
        raise UsageError("lesions and photographs are at least 1, least before most; given_test is in 0 .. 1")
    if layout == "ham10000" and given_test:
        raise UsageError("layout ham10000 has no published test side", remedy="use folder")
    if (faults.copies or faults.siblings) and not given_test:
        raise UsageError("copies and siblings across the split need given_test above 0")
    if (faults.contradictions or faults.lesion_labels) and len(wanted) < 2:
        raise UsageError("contradictory labels need two classes")
    if faults.artefact and faults.artefact[0] not in ARTEFACTS:
        raise UsageError(f"no made artefact {faults.artefact[0]!r}", remedy=f"choose from: {', '.join(ARTEFACTS)}")
    shares = [faults.artefact[1:]] if faults.artefact else []
    for name, share in [*shares, *([faults.source] if faults.source else [])]:
        if name not in wanted or not 0 < share <= 1:
            raise UsageError(f"a fault on the share {share:g} of class {name!r}: no such class here, or no share")


def _shoot(
    wanted: Mapping[str, int], photos: tuple[int, int], given_test: float, rng: np.random.Generator
) -> list[Photograph]:
    """Make patients with one to three lesions of a class each, and photograph them."""
    shots: list[Photograph] = []
    for label, total in wanted.items():
        test = round(given_test * total)
        made = 0
        while made < total:
            patient, tone = f"P{rng.integers(10**9):09d}", float(rng.beta(1.2, 4.5))
            side = "" if not given_test else "test" if made < test else "train"
            # A patient's lesions lie on one side.
            room = (test if side == "test" else total) - made
            for _ in range(min(room, int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])))):
                lesion_id = f"L{rng.integers(10**9):09d}"
                truth = make_lesion(
                    label, seed=int(rng.integers(2**40)), lesion_id=lesion_id, patient_id=patient, tone=tone
                )
                number = int(rng.integers(photos[0], photos[1] + 1))
                shots += [Photograph(truth, shot, side, label) for shot in range(number)]
                made += 1
    return shots


def _plant(shots: list[Photograph], faults: Plant, rng: np.random.Generator) -> list[Photograph]:
    """Append the planted faults; `partner` is the index of the photograph meant."""
    train = [n for n, shot in enumerate(shots) if shot.given_split != "test"]
    needed = faults.copies + faults.siblings + faults.contradictions + faults.lesion_labels
    if needed > len(train):
        raise UsageError(f"{needed} faults need as many training photographs; there are {len(train)}")
    chosen = [int(n) for n in rng.choice(train, needed, replace=False)]
    labels = sorted({shot.label for shot in shots})
    extra: list[Photograph] = []
    for place, n in enumerate(chosen):
        shot, partner = shots[n], str(n)
        if place < faults.copies:
            extra.append(replace(shot, given_split="test", planted="copy", partner=partner))
        elif place < faults.copies + faults.siblings:
            other = shot.photo_seed + 1000  # a photograph that the training side does not have
            extra.append(replace(shot, photo_seed=other, given_split="test", planted="sibling", partner=partner))
        else:
            wrong = str(rng.choice([label for label in labels if label != shot.label]))
            if place < needed - faults.lesion_labels:
                extra.append(replace(shot, label=wrong, planted="contradiction", partner=partner))
            else:
                second = replace(shot, photo_seed=shot.photo_seed + 2000, label=wrong)
                extra.append(replace(second, planted="lesion_label", partner=partner))
    return shots + extra


def _mark(shots: list[Photograph], faults: Plant, rng: np.random.Generator) -> list[Photograph]:
    """Plant what changes a photograph and adds none; a copy changes with what it is a copy of."""
    marked = list(shots)
    if faults.artefact:
        name, label, share = faults.artefact
        for n in _share_of(shots, label, share, rng):
            marked[n] = replace(marked[n], artefact=name)
    if faults.source:
        for n in _share_of(shots, *faults.source, rng):
            marked[n] = replace(marked[n], archive=OTHER_ARCHIVE)
    for n, shot in enumerate(shots):
        if shot.planted in ("copy", "contradiction"):
            original = marked[int(shot.partner)]
            marked[n] = replace(shot, artefact=original.artefact, archive=original.archive)
    spoils = [name for name in SPOILS for _ in range(getattr(faults, name))]
    partners = {int(shot.partner) for shot in shots if shot.partner}
    free = [n for n, shot in enumerate(marked) if not shot.faults and n not in partners]
    if len(spoils) > len(free):
        raise UsageError(f"{len(spoils)} photographs to spoil, and only {len(free)} without another fault")
    for n, name in zip(rng.permutation(free)[: len(spoils)].tolist(), spoils, strict=True):
        marked[n] = replace(marked[n], spoiled=name)
    return marked


def _share_of(shots: list[Photograph], label: str, share: float, rng: np.random.Generator) -> list[int]:
    """Choose a share of the photographs that are filed under a class."""
    mine = [n for n, shot in enumerate(shots) if shot.label == label]
    return [int(n) for n in rng.choice(mine, round(share * len(mine)), replace=False)]


def _number(shots: list[Photograph], layout: Layout, rng: np.random.Generator) -> list[Photograph]:
    """Give every photograph a file name that tells neither its class nor its lesion."""
    numbers = rng.permutation(len(shots)) + 1
    named = []
    for shot, number in zip(shots, numbers, strict=True):
        folders = [shot.given_split, shot.label] if layout == "folder" else ["images"]
        named.append(replace(shot, image="/".join([*filter(None, folders), f"MADE_{number:07d}.jpg"])))
    return [replace(s, partner=named[int(s.partner)].image) if s.partner else s for s in named]


def _file(shot: Photograph, size: int) -> bytes:
    """Draw, spoil and compress a photograph."""
    shown = frozenset([shot.artefact]) if shot.artefact else frozenset[str]()
    pixels = draw_photograph(shot.truth, photo_seed=shot.photo_seed, size=size, artefacts=shown)
    if shot.archive != ARCHIVE:
        return _from_elsewhere(pixels)
    if shot.spoiled == "unreadable":
        data = _jpeg(pixels)
        return data[: len(data) // 2]
    return _jpeg(_spoil(pixels, shot))


def _spoil(pixels: NDArray[np.uint8], shot: Photograph) -> NDArray[np.uint8]:
    side = len(pixels)
    if shot.spoiled == "dark":
        return np.asarray(pixels * 0.2, np.uint8)
    if shot.spoiled == "blurred":
        sigma = _BLUR * side
        return np.asarray(gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)) + 0.5, np.uint8)
    if shot.spoiled == "empty":
        noise = np.random.default_rng([shot.truth.seed, 9]).normal(0, 1, pixels.shape)
        return np.asarray(np.clip(pixels.mean(axis=(0, 1)) + noise, 0, 255), np.uint8)
    if shot.spoiled == "tiny":
        return np.asarray(Image.fromarray(pixels).resize((TINY, TINY), Image.Resampling.BOX))
    return pixels


def _from_elsewhere(pixels: NDArray[np.uint8]) -> bytes:
    """Compress a photograph as another archive has it: smaller, yellower, with a thin dark frame, other tables."""
    cast = (pixels * np.array([1.0, 0.96, 0.88])).astype(np.uint8)
    frame = max(1, round(0.015 * len(cast)))
    cast[:frame], cast[-frame:], cast[:, :frame], cast[:, -frame:] = 12, 12, 12, 12
    side = round(0.8 * len(cast))
    stream = BytesIO()
    small = Image.fromarray(cast).resize((side, side), Image.Resampling.BICUBIC)
    small.save(stream, "JPEG", quality=OTHER_QUALITY, subsampling=0)
    return stream.getvalue()


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _truth_table(shots: list[Photograph]) -> pd.DataFrame:
    """Return one row per file, sorted by path: what it is, what it shows, and how its lesion was drawn."""
    rows: list[dict[str, Any]] = []
    for shot in sorted(shots, key=lambda shot: shot.image):
        truth = {key: value for key, value in asdict(shot.truth).items() if key not in ("label", "appearance")}
        file = {"image": shot.image, "class": shot.label, "true_class": shot.truth.label}
        photo = {"given_split": shot.given_split, "planted": shot.planted, "photo_seed": shot.photo_seed}
        shown = artefacts_of(shot.truth, shot.photo_seed) | ({shot.artefact: True} if shot.artefact else {})
        rows.append(file | photo | truth | shown | asdict(shot.truth.appearance))
    return pd.DataFrame(rows)


def _about(truth: LesionTruth, seed: int) -> tuple[int, str, str]:
    """Return age, sex and site, drawn per patient and lesion without regard to the class."""
    patient = np.random.default_rng([seed, 6, int(truth.patient_id[1:])])
    age, sex = 5 * int(patient.integers(4, 18)), str(patient.choice(["female", "male"]))
    lesion = np.random.default_rng([seed, 7, truth.seed])
    return age, sex, str(lesion.choice(["back", "lower extremity", "upper extremity", "trunk", "abdomen", "face"]))


def _write_metadata(out: Path, shots: list[Photograph], seed: int) -> None:
    rows = [
        [
            *(shot.image, shot.label, shot.truth.lesion_id, shot.truth.patient_id),
            *(*_about(shot.truth, seed), shot.archive, shot.given_split),
        ]
        for shot in sorted(shots, key=lambda shot: shot.image)
    ]
    header = ["image", "label", "lesion_id", "patient_id", "age", "sex", "site", "source", "given_split"]
    write_rows(out / "metadata.csv", header, rows)


def _write_ham10000(out: Path, shots: list[Photograph], seed: int) -> None:
    rows = []
    for shot in sorted(shots, key=lambda shot: shot.image):
        age, sex, site = _about(shot.truth, seed)
        lesion, image, dx = shot.truth.lesion_id, Path(shot.image).stem, CLASSES[shot.label].dx
        rows.append([lesion, image, dx, "consensus", f"{age}.0", sex, site])
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    write_rows(out / "HAM10000_metadata.csv", header, rows)
