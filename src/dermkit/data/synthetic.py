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

from dermkit.data.lesions import CLASSES, MIXTURES, LesionTruth, artefacts_of, draw_photograph, make_lesion
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


@dataclass(frozen=True)
class Photograph:
    """One file of a made data set.

    image: path below the data set's folder. label: what the folder or table says. planted: the fault it is, with
    `partner`, the number and later the path of the photograph it repeats or accompanies.
    """

    truth: LesionTruth
    photo_seed: int
    given_split: str
    label: str
    image: str = ""
    planted: str = ""
    partner: str = ""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """Faults to plant in a folder with a published test side; each is listed in planted.csv.

    copies: training files repeated, byte for byte, in the test folder. contradictions: files repeated in the same
    split under another class. siblings: further photographs of training lesions put into the test folder.
    """

    copies: int = 0
    contradictions: int = 0
    siblings: int = 0


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
    """Write made photographs as JPEG, truth.csv and, where faults are planted, planted.csv; returns the truth table.

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
    shots = _number(_plant(shots, faults, rng), layout, rng)
    drawn: dict[tuple[int, int], bytes] = {}
    for shot in shots:
        key = (shot.truth.seed, shot.photo_seed)
        if key not in drawn:
            drawn[key] = _jpeg(draw_photograph(shot.truth, photo_seed=shot.photo_seed, size=size))
        write_bytes(out / shot.image, drawn[key])
    table = _truth_table(shots)
    write_rows(out / "truth.csv", list(table.columns), table.itertuples(index=False))
    if faults != Plant():
        found = [(shot.planted, shot.image, shot.partner) for shot in shots if shot.planted]
        write_rows(out / "planted.csv", ["fault", "image", "partner"], sorted(found))
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
    if layout == "ham10000" and (given_test or faults != Plant()):
        raise UsageError("layout ham10000 has no published test side and no planted faults", remedy="use folder")
    if (faults.copies or faults.siblings) and not given_test:
        raise UsageError("copies and siblings across the split need given_test above 0")
    if faults.contradictions and len(wanted) < 2:
        raise UsageError("contradictory labels need two classes")


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
    needed = faults.copies + faults.siblings + faults.contradictions
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
            extra.append(replace(shot, label=wrong, planted="contradiction", partner=partner))
    return shots + extra


def _number(shots: list[Photograph], layout: Layout, rng: np.random.Generator) -> list[Photograph]:
    """Give every photograph a file name that tells neither its class nor its lesion."""
    numbers = rng.permutation(len(shots)) + 1
    named = []
    for shot, number in zip(shots, numbers, strict=True):
        folders = [shot.given_split, shot.label] if layout == "folder" else ["images"]
        named.append(replace(shot, image="/".join([*filter(None, folders), f"MADE_{number:07d}.jpg"])))
    return [replace(s, partner=named[int(s.partner)].image) if s.partner else s for s in named]


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
        rows.append(
            file | photo | truth | artefacts_of(shot.truth, shot.photo_seed) | asdict(shot.truth.appearance)
        )
    return pd.DataFrame(rows)


def _write_ham10000(out: Path, shots: list[Photograph], seed: int) -> None:
    """Write the table; age, sex and site are drawn per patient and lesion without regard to the class."""
    rows = []
    for shot in sorted(shots, key=lambda shot: shot.image):
        patient = np.random.default_rng([seed, 6, int(shot.truth.patient_id[1:])])
        age, sex = 5 * int(patient.integers(4, 18)), str(patient.choice(["female", "male"]))
        lesion = np.random.default_rng([seed, 7, shot.truth.seed])
        site = str(lesion.choice(["back", "lower extremity", "upper extremity", "trunk", "abdomen", "face"]))
        dx = CLASSES[shot.truth.kind].dx
        rows.append([shot.truth.lesion_id, Path(shot.image).stem, dx, "consensus", f"{age}.0", sex, site])
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    write_rows(out / "HAM10000_metadata.csv", header, rows)
