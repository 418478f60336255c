"""DA050 to DA053: an artefact that goes with a class is found, chance is not, and a lesion counts once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audit_inputs import make_subject
from dermkit.audit.checks.artefacts import da050_hair, da051_ruler, da052_ink, da053_dark_corners
from dermkit.audit.checks.finding import (
    AuditInput,
    Finding,
    NotApplicable,
    Outcome,
    Severity,
    alpha_per_test,
    read_check_card,
)
from dermkit.audit.scan.artefacts import PRESENCE_THRESHOLDS
from dermkit.audit.scan.measures import MEASURE_COLUMNS, measure
from dermkit.data.synthetic.dataset import PlantedFaults, make_dataset_folder
from dermkit.images.decode import open_image

CHECKS = {"hair": da050_hair, "ruler": da051_ruler, "ink": da052_ink, "dark_corner": da053_dark_corners}


def _counted(
    counts: dict[str, tuple[int, int]], artefact: str = "hair", lesions: Sequence[str] = ()
) -> AuditInput:
    """An audit input with (images with the artefact, images without) per class."""
    label = [name for name, (some, none) in counts.items() for _ in range(some + none)]
    score = [value for some, none in counts.values() for value in [0.9] * some + [0.01] * none]
    return make_subject(label, manifest={"lesion_id": lesions} if lesions else {}, measures={artefact: score})


def _finding(outcome: Outcome) -> Finding:
    assert isinstance(outcome, Finding)
    return outcome


def test_a_class_with_more_hair_is_warned_of_with_prevalence_per_class() -> None:
    found = _finding(da050_hair(_counted({"mel": (60, 40), "nv": (20, 180), "bkl": (10, 90)})))
    assert found.severity is Severity.WARNING
    assert "60 (60 %, 95 % CI 50 to 69 %) of 100 images of mel" in found.sentence
    assert "30 (10 %, 95 % CI 7 to 14 %) of 300 of the rest: +50 points" in found.sentence
    assert "bkl 10 (10 %, 95 % CI 6 to 17 %) of 100" in found.sentence
    assert found.n == 90
    assert list(found.rows["label"][:60]) == ["mel"] * 60
    assert found.per_class == {"mel": 60, "nv": 20, "bkl": 10}
    assert found.figures["prevalence"]["mel"]["proportion"] == 0.6
    assert found.figures["class_against_rest"]["mel"]["difference"] == pytest.approx(0.5)
    assert found.figures["alpha"] == alpha_per_test(3)


def test_a_class_with_less_of_it_is_found_too_and_two_classes_are_one_test() -> None:
    found = _finding(da051_ruler(_counted({"benign": (80, 20), "malignant": (10, 90)}, "ruler")))
    assert "of 100 of malignant" in found.sentence or "of 100 of benign" in found.sentence
    assert found.figures["alpha"] == alpha_per_test(1)


@pytest.mark.parametrize(
    ("counts", "severity"),
    [
        ({"mel": (500, 500), "nv": (500, 500)}, None),
        ({"mel": (1000, 1000), "nv": (920, 1080)}, None),  # 4 points, sure but too small
        ({"mel": (1000, 3000), "nv": (720, 3280)}, Severity.NOTE),  # 7 points
        ({"mel": (8, 8), "nv": (4, 12)}, None),  # 25 points by chance
        ({"mel": (100, 0), "nv": (100, 0)}, None),  # all have it
    ],
)
def test_small_and_unsure_differences_are_no_warning(
    counts: dict[str, tuple[int, int]], severity: Severity | None
) -> None:
    outcome = da050_hair(_counted(counts))
    assert (outcome.severity if isinstance(outcome, Finding) else outcome) == severity


def test_photographs_of_one_lesion_are_one_case() -> None:
    """Two hairy patients with 40 photographs each are two cases, whatever the number of photographs."""
    counts = {"mel": (80, 150), "nv": (0, 100)}
    many = [f"L{n // 40}" for n in range(80)] + [f"M{n}" for n in range(250)]
    assert isinstance(da050_hair(_counted(counts)), Finding)
    assert da050_hair(_counted(counts, lesions=many)) is None


def test_clustered_chance_is_no_finding() -> None:
    """Lesions of one to four photographs that all show hair or all do not, without regard to the class."""
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(60):
        size = rng.integers(1, 5, 120)
        lesion, hairy = np.repeat(np.arange(120), size), rng.random(120) < 0.3
        label = np.where(np.arange(120) < 50, "mel", "nv")
        about = {"lesion_id": [f"L{n}" for n in lesion]}
        audit_input = make_subject(
            label[lesion].tolist(), manifest=about, measures={"hair": hairy[lesion].astype(float).tolist()}
        )
        false += isinstance(da050_hair(audit_input), Finding)
    assert false <= 1


def _heavy(rng: np.random.Generator) -> AuditInput:
    """25 lesions, a tenth of them with 40 times the photographs; hair is a lesion's own, whatever its class."""
    size = np.where(rng.random(25) < 0.1, 120, 3)
    lesion = np.repeat(np.arange(25), size)
    label, hairy = rng.choice(["mel", "nv"], 25)[lesion], (rng.random(25) < 0.4)[lesion]
    about = {"lesion_id": [f"L{n}" for n in lesion]}
    return make_subject(label.tolist(), manifest=about, measures={"hair": hairy.astype(float).tolist()})


def test_a_few_lesions_with_nearly_all_photographs_are_too_few_to_judge() -> None:
    rng = np.random.default_rng(11)
    false = sum(isinstance(da050_hair(_heavy(rng)), Finding) for _ in range(300))
    assert false <= 3


def test_a_planted_association_of_ordinary_lesions_is_still_found() -> None:
    rng = np.random.default_rng(12)
    for _ in range(5):
        lesion = np.repeat(np.arange(100), rng.integers(1, 5, 100))
        hairy = (rng.random(100) < np.where(np.arange(100) < 40, 0.8, 0.1))[lesion]
        label, about = np.where(lesion < 40, "mel", "nv"), {"lesion_id": [f"L{n}" for n in lesion]}
        audit_input = make_subject(label.tolist(), manifest=about, measures={"hair": hairy.astype(float).tolist()})
        assert _finding(da050_hair(audit_input)).severity is Severity.WARNING


def test_what_was_not_measured_is_not_judged() -> None:
    assert isinstance(da050_hair(make_subject(["a", "b"])), NotApplicable)
    tiny = make_subject(["a", "b"] * 50, measures={"ink": [float("nan")] * 100})
    assert isinstance(da052_ink(tiny), NotApplicable)
    assert isinstance(da050_hair(_counted({"mel": (9, 0), "nv": (50, 50)})), NotApplicable)
    assert isinstance(da050_hair(_counted({"mel": (50, 50)})), NotApplicable)
    part = make_subject(["a"] * 40 + ["b"] * 40, measures={"hair": [0.9] * 30 + [np.nan] * 10 + [0.0] * 40})
    found = _finding(da050_hair(part))
    assert found.figures["prevalence"]["a"]["total"] == 30


def test_cards_state_the_presence_threshold() -> None:
    for name, check in CHECKS.items():
        assert f"score >= {PRESENCE_THRESHOLDS[name]:.2f}" in read_check_card(check).threshold
        assert read_check_card(check).effect


def measured_folder(folder: Path) -> AuditInput:
    """Measure a made data set, whose metadata.csv says what each image is."""
    table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    files = [(folder / image).read_bytes() for image in table["image"]]
    images = [open_image(data) for data in files]
    rows = pd.DataFrame([measure(image, data) for image, data in zip(images, files, strict=True)])
    sizes = [image.pixels.shape for image in images]
    about = {name: table[name].tolist() for name in ("lesion_id", "patient_id")}
    about |= {"path": table["image"].tolist()}
    about |= {"width": [size[1] for size in sizes], "height": [size[0] for size in sizes]}
    return make_subject(
        table["label"].tolist(), manifest=about, measures={name: rows[name].tolist() for name in MEASURE_COLUMNS}
    )


@pytest.mark.parametrize(
    ("artefact", "column"), [("hair", "hair"), ("ruler", "ruler"), ("ink", "ink"), ("dark_corners", "dark_corner")]
)
def test_a_planted_association_is_found_in_pixels_and_no_other(tmp_path: Path, artefact: str, column: str) -> None:
    plant = PlantedFaults(artefact=(artefact, "melanoma", 0.8))
    wanted = {"melanoma": 30, "nevus": 40}
    make_dataset_folder(
        tmp_path, lesions_per_class=wanted, photos_per_lesion=(1, 1), size=128, seed=31, planted_faults=plant
    )
    audit_input = measured_folder(tmp_path)
    outcomes = {name: check(audit_input) for name, check in CHECKS.items()}
    found = _finding(outcomes.pop(column))
    assert found.severity is Severity.WARNING
    assert found.rows["label"][0] == "melanoma"
    assert set(outcomes.values()) == {None}
