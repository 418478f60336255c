"""DA001 to DA006: planted bad images are found, each by its own check, and clean sets are not accused."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audit_inputs import make_subject
from dermkit.audit.checks.finding import AuditInput, Finding, NotApplicable, Outcome, Severity, read_check_card
from dermkit.audit.checks.images import (
    da001_unreadable,
    da002_ambiguous_decoding,
    da003_tiny,
    da004_dark_or_overexposed,
    da005_blurred,
    da006_near_empty,
)
from dermkit.data.synthetic.dataset import PlantedFaults, make_dataset_folder
from test_audit_artefacts import measured_folder

PLANTED = {
    "tiny": da003_tiny,
    "dark": da004_dark_or_overexposed,
    "blurred": da005_blurred,
    "empty": da006_near_empty,
}
ALL = (da001_unreadable, da002_ambiguous_decoding, *PLANTED.values())


def _finding(outcome: Outcome) -> Finding:
    assert isinstance(outcome, Finding)
    return outcome


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditInput, dict[str, set[str]]]:
    folder = tmp_path_factory.mktemp("spoiled")
    plant = PlantedFaults(dark=3, blurred=4, empty=2, tiny=3)
    make_dataset_folder(
        folder, lesions_per_class=30, photos_per_lesion=(1, 1), size=96, seed=9, planted_faults=plant
    )
    planted = pd.read_csv(folder / "planted.csv")
    return measured_folder(folder), {name: set(planted["image"][planted["fault"] == name]) for name in PLANTED}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_images_are_found_by_their_own_check(
    fault: str, spoiled: tuple[AuditInput, dict[str, set[str]]]
) -> None:
    audit_input, planted = spoiled
    found = _finding(PLANTED[fault](audit_input))
    assert set(found.rows["path"]) == planted[fault]
    assert found.n == len(planted[fault]) == sum(found.per_class.values())
    assert f"{found.n} images of 90" in found.sentence


@pytest.mark.parametrize("seed", [1, 2])
def test_a_clean_set_is_not_accused(tmp_path: Path, seed: int) -> None:
    make_dataset_folder(tmp_path, lesions_per_class=15, photos_per_lesion=(1, 1), size=96, seed=seed)
    audit_input = measured_folder(tmp_path)
    assert [check(audit_input) for check in ALL] == [None] * len(ALL)


def test_one_class_with_many_bad_images_is_a_warning() -> None:
    def dark(n: int) -> AuditInput:
        high = [40.0] * n + [200.0] * (200 - n)
        light = {
            "high_level": high,
            "bright_fraction": [0.0] * 200,
            "contrast": [20.0] * 200,
            "brightness": [99.0] * 200,
        }
        return make_subject(["mel"] * 100 + ["nv"] * 100, measures=light)

    assert _finding(da004_dark_or_overexposed(dark(4))).severity is Severity.NOTE
    found = _finding(da004_dark_or_overexposed(dark(5)))
    assert found.severity is Severity.WARNING
    assert "5 of 100" in found.sentence
    white = {"high_level": [255.0], "bright_fraction": [0.7], "contrast": [20.0], "brightness": [250.0]}
    assert (
        "0 dark, 1 overexposed"
        in _finding(da004_dark_or_overexposed(make_subject(["a"], measures=white))).sentence
    )


def test_a_set_that_is_small_by_design_gets_one_note() -> None:
    audit_input = make_subject(["mel", "nv"] * 500, manifest={"width": 28, "height": 28})
    found = _finding(da003_tiny(audit_input))
    assert found.severity is Severity.NOTE
    assert found.rows.to_dict("list") == {"width": [28], "height": [28], "images": [1000]}
    assert "small by design" in found.sentence
    assert da003_tiny(make_subject(["mel"] * 3, manifest={"width": 64, "height": 64})) is None


def test_blur_is_judged_within_the_set() -> None:
    def sharp(values: list[float]) -> AuditInput:
        n = len(values)
        light = {
            "high_level": [200.0] * n,
            "bright_fraction": [0.0] * n,
            "contrast": [20.0] * n,
            "brightness": [99.0] * n,
        }
        return make_subject(["mel"] * n, measures={"sharpness": values, **light})

    assert da005_blurred(sharp([0.3] * 20)) is None
    assert _finding(da005_blurred(sharp([1.0] * 20 + [0.3]))).n == 1
    assert isinstance(da005_blurred(sharp([1.0] * 9)), NotApplicable)
    assert da005_blurred(sharp([1.0] * 20 + [float("nan")])) is None


def test_a_dark_image_with_a_lesion_is_dark_and_a_black_one_is_empty() -> None:
    light = {"contrast": [2.5, 0.2, 2.5], "brightness": [25.0, 3.0, 120.0], "high_level": [40.0, 4.0, 124.0]}
    audit_input = make_subject(["a"] * 3, measures={**light, "bright_fraction": [0.0] * 3})
    assert _finding(da006_near_empty(audit_input)).rows["image_id"].tolist() == ["0001", "0002"]
    assert _finding(da004_dark_or_overexposed(audit_input)).rows["image_id"].tolist() == ["0000"]


def test_decisions_of_the_decoder_are_noted_by_kind() -> None:
    notes = ["", "alpha composited on white", "EXIF orientation applied; ICC profile ignored: broken (x)"]
    notes.append("ICC profile ignored: broken (another)")
    found = _finding(da002_ambiguous_decoding(make_subject(["a"] * 4, measures={"notes": notes})))
    assert found.severity is Severity.NOTE
    assert found.n == 3
    assert found.figures["decoding_choices"]["ICC profile ignored: broken"] == 2
    assert da002_ambiguous_decoding(make_subject(["a"], measures={"notes": [""]})) is None


def test_refused_and_changed_files_are_listed(tmp_path: Path) -> None:
    with (tmp_path / "refused.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "reason", "detail"], ["a/x.jpg", "truncated", "cut, short"]])
    audit_input = make_subject(["a", "b"], measures={"state": ["", "missing"]})
    object.__setattr__(audit_input.dataset, "folder", tmp_path)
    found = _finding(da001_unreadable(audit_input))
    assert found.severity is Severity.WARNING
    assert found.rows.to_numpy().tolist() == [
        ["0001.jpg", "missing", "since the import"],
        ["a/x.jpg", "truncated", "cut, short"],
    ]
    assert found.per_class == {"b": 1}
    audit_input.measures["state"] = ""
    assert _finding(da001_unreadable(audit_input)).severity is Severity.NOTE


def test_refusals_are_known_from_the_data_set_alone() -> None:
    audit_input = make_subject(["a"], notes={"refused": {"n": 3, "reasons": {"broken": 2, "truncated": 1}}})
    found = _finding(da001_unreadable(audit_input))
    assert found.n == 3
    assert "2 broken and 1 truncated" in found.sentence
    assert da001_unreadable(make_subject(["a"], notes={"refused": {"n": 0, "reasons": {}}})) is None


def test_without_measures_the_checks_do_not_apply() -> None:
    audit_input = make_subject(["a"] * 20, measures={"contrast": [np.nan] * 20})
    for check in (da002_ambiguous_decoding, da004_dark_or_overexposed, da005_blurred, da006_near_empty):
        assert isinstance(check(audit_input), NotApplicable)


def test_every_card_can_be_read() -> None:
    for number, check in enumerate(ALL, 1):
        assert read_check_card(check).code == f"DA{number:03d}"
        assert read_check_card(check).threshold
        assert read_check_card(check).effect
