"""Two data sets against each other: planted overlaps are found in every way, strangers are left alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermkit.audit.checks.finding import IMAGE_PAIR_COLUMNS, read_check_card
from dermkit.audit.dataset_links import NearDuplicateSearch
from dermkit.audit.external_overlap import LINKS_CHECKS, ExternalCheckResult, run_external_check
from dermkit.audit.run import pair_scanner
from dermkit.data.importers.run import import_dataset
from dermkit.data.manifest import Dataset, load_dataset, save_dataset
from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.data.synthetic.duplicates import plant_copy
from dermkit.errors import DataError, UsageError
from dermkit.progress import Progress

Change = dict[int, dict[str, str]]


def made(folder: Path, seed: int, change: Change | None = None) -> Dataset:
    """Return a made data set of 16 images, 8 of them melanoma; change: row -> manifest columns."""
    make_dataset_folder(
        folder / "images",
        lesions_per_class={"melanoma": 8, "nevus": 8},
        photos_per_lesion=(1, 1),
        size=96,
        seed=seed,
        given_test=0.25,
    )
    dataset = import_dataset("folder", folder / "images", out=folder / "data", name=folder.name).dataset
    for row, columns in (change or {}).items():
        for column, value in columns.items():
            dataset.manifest.loc[row, column] = value
    save_dataset(dataset)
    return load_dataset(dataset.folder)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    ids = {
        row: {"isic_id": f"ISIC_{row:07d}", "lesion_id": f"L{row:09d}", "patient_id": f"P{row:09d}"}
        for row in range(16)
    }
    return made(tmp_path_factory.mktemp("a") / "first", 1, ids)


def held(
    first: Dataset, second: Dataset, look: NearDuplicateSearch | None = None, **options: Any
) -> ExternalCheckResult:
    return run_external_check(first, second, progress=Progress(), near_duplicate_search=look, **options)


def codes(outcome: ExternalCheckResult) -> list[str]:
    return [item.card.code for item in outcome.findings]


def pairs(outcome: ExternalCheckResult) -> pd.DataFrame:
    return pd.read_csv(outcome.folder / "pairs.csv", dtype=str, keep_default_na=False)


def body(outcome: ExternalCheckResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.folder / "external.json").read_text())
    return found


def nobody(_first: Dataset, _second: Dataset, _watch: Progress) -> pd.DataFrame:
    """A search for near copies that finds none."""
    return pd.DataFrame({"a": [], "b": [], "distance": [], "kind": []}).astype({"a": int, "b": int, "kind": str})


def test_strangers_are_external(first: Dataset, tmp_path: Path) -> None:
    outcome = held(first, made(tmp_path / "second", 2), nobody)
    assert codes(outcome) == []
    assert outcome.is_external
    assert outcome.verdict.startswith(
        "Your external test set is external as far as can be seen: no image of second"
    )
    outcome.raise_for_errors()
    assert len(pairs(outcome)) == 0
    assert body(outcome)["is_external"] is True
    assert outcome.verdict in outcome.page.read_text()


def test_without_a_search_for_near_copies_nothing_is_called_external(first: Dataset, tmp_path: Path) -> None:
    outcome = held(first, made(tmp_path / "second", 2))
    assert not outcome.is_external
    assert "cannot be called external" in outcome.verdict
    assert "near copies were not searched" in outcome.verdict


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"isic_id": "ISIC_0000003"}, "id"),
        ({"lesion_id": "L000000003"}, "lesion"),
        ({"patient_id": "P000000003"}, "patient"),
    ],
)
def test_an_overlap_by_an_id_is_found(first: Dataset, tmp_path: Path, columns: dict[str, str], kind: str) -> None:
    second = made(tmp_path / "second", 2, {5: columns})
    outcome = held(first, second, nobody)
    assert codes(outcome)[0] == "DA080"
    found = pairs(outcome)
    assert list(found.columns) == list(IMAGE_PAIR_COLUMNS)
    assert found[["image_a", "image_b", "kind"]].to_numpy().tolist() == [
        [first.manifest["image_id"][3], second.manifest["image_id"][5], kind]
    ]
    assert body(outcome)["links_by_type"] == {
        way: int(way == kind) for way in ("exact", "file", "near", "id", "lesion", "patient")
    }
    with pytest.raises(DataError, match=r"not external: 1 of 16 images of second \(6\.2 %"):
        outcome.raise_for_errors()


def test_identical_pixels_and_contradictory_labels_are_found(first: Dataset, tmp_path: Path) -> None:
    make_dataset_folder(
        tmp_path / "s" / "images",
        lesions_per_class={"melanoma": 6, "nevus": 6},
        photos_per_lesion=(1, 1),
        size=96,
        seed=2,
    )
    rows = first.manifest.reset_index(drop=True)
    taken = rows[rows["label"] == "melanoma"].head(3)
    for number, image_id in enumerate(taken["image_id"]):
        pixels = Image.open(first.image_path(image_id))
        folder = "melanoma" if number else "nevus"  # one of the three is filed under the other label
        pixels.save(tmp_path / "s" / "images" / folder / f"copy{number}.png")
    second = import_dataset(
        "folder", tmp_path / "s" / "images", out=tmp_path / "s" / "data", name="second"
    ).dataset
    outcome = held(first, second, nobody)
    assert codes(outcome) == ["DA080", "DA081"]
    overlap, wrong = (item.finding for item in outcome.findings)
    assert overlap.n == 3
    assert overlap.per_class == {"melanoma": 2, "nevus": 1}
    assert overlap.figures["shared_images"]["proportion"] == 3 / 15
    low, high = overlap.figures["shared_images"]["ci95"]
    assert 0.06 < low < 0.08 < 0.4 < high < 0.5
    assert sum(overlap.figures["links_by_reference_split"].values()) == 3
    assert (pairs(outcome)["kind"] == "exact").all()
    assert pairs(outcome)["distance"].tolist() == ["0.0"] * 3
    assert wrong.n == 1
    assert "melanoma and nevus (1)" in wrong.sentence
    assert len(pd.read_csv(outcome.folder / "DA081.csv")) == 1
    html = outcome.page.read_text()
    assert html.count('<img src="data:image/jpeg') == 8
    assert "http" not in html.replace("http-equiv", "")


def test_near_copies_are_found_by_looking(first: Dataset, tmp_path: Path) -> None:
    second = made(tmp_path / "second", 2)
    rng = np.random.default_rng(0)
    planted = {}
    for number, kind in enumerate(("reencoded", "resized", "flipped", "rotated90", "cropped")):
        image_id = first.manifest["image_id"].iloc[number]
        pixels = np.asarray(Image.open(first.image_path(image_id)).convert("RGB"))
        data, ending = plant_copy(pixels, kind, rng)
        path = second.image_root / "train" / "nevus" / f"planted_{kind}{ending}"
        path.write_bytes(data)
        planted[f"train/nevus/planted_{kind}"] = image_id
    second = import_dataset("folder", second.image_root, out=second.folder, name="second").dataset
    outcome = held(first, second, pair_scanner(1))
    found = pairs(outcome)
    assert dict(zip(found["image_b"], found["image_a"], strict=True)) == planted
    assert not set(found["kind"]) & {"exact", "id", "file"}
    assert body(outcome)["links_by_type"]["near"] == 5
    assert (pd.to_numeric(found["distance"]) > 0).all()


def test_the_same_image_under_every_way_is_one_pair(first: Dataset, tmp_path: Path) -> None:
    make_dataset_folder(
        tmp_path / "s",
        lesions_per_class={"melanoma": 8, "nevus": 8},
        photos_per_lesion=(1, 1),
        size=96,
        seed=1,
        given_test=0.25,
    )
    second = import_dataset("folder", tmp_path / "s", out=tmp_path / "data", name="second").dataset
    for column in ("isic_id", "lesion_id", "patient_id"):
        second.manifest[column] = first.manifest[column].to_numpy()
    outcome = held(first, second, nobody)
    assert len(pairs(outcome)) == 16
    assert (pairs(outcome)["kind"] == "exact").all()
    assert set(body(outcome)["links_by_type"].values()) == {16, 0}
    assert "16 of 16 images of second (100.0 %" in outcome.findings[0].finding.sentence


def test_ids_that_every_set_numbers_anew_are_not_taken_for_the_same(tmp_path: Path) -> None:
    numbered = {row: {"lesion_id": f"lesion_{row}", "patient_id": str(row)} for row in range(16)}
    a, b = made(tmp_path / "a", 3, numbered), made(tmp_path / "b", 4, numbered)
    outcome = held(a, b, nobody)
    assert codes(outcome) == []
    assert body(outcome)["ambiguous_ids"] == {"lesion": 16, "patient": 16}
    # One picture that is the same by its ISIC id as well bears the numbers out.
    for dataset in (a, b):
        dataset.manifest.loc[2, "isic_id"] = "ISIC_0000002"
    sure = held(a, b, nobody)
    assert sure.findings[0].finding.n == 16
    assert body(sure)["ambiguous_ids"] == {}


def test_an_acceptance_stands_for_these_two_sets_as_they_are(tmp_path: Path) -> None:
    a = made(tmp_path / "a", 5, {0: {"isic_id": "ISIC_0000001"}})
    b = made(tmp_path / "b", 6, {0: {"isic_id": "ISIC_0000001"}})
    assert held(a, b).open_errors
    held(a, b, accept=["da080"]).raise_for_errors()
    again = held(load_dataset(a.folder), b)
    again.raise_for_errors()
    assert again.findings[0].acceptance is not None
    assert "accepted on" in again.page.read_text()
    b.manifest.loc[1, "isic_id"] = "ISIC_0000001"
    save_dataset(b)
    more = held(load_dataset(a.folder), load_dataset(b.folder))
    assert more.open_errors
    assert more.findings[0].invalid_reason == "the manifest has changed since"
    with pytest.raises(UsageError, match="no check has this code"):
        held(a, b, accept=["DA088"])


def test_two_sets_of_one_archive_without_overlap_are_a_note(tmp_path: Path) -> None:
    a = made(tmp_path / "a", 7, {row: {"isic_id": f"ISIC_{row:07d}"} for row in range(16)})
    b = made(tmp_path / "b", 8, {row: {"isic_id": f"ISIC_{row + 100:07d}"} for row in range(16)})
    outcome = held(a, b, nobody)
    assert codes(outcome) == ["DA082"]
    assert outcome.is_external
    outcome.raise_for_errors()


def test_a_set_is_not_held_against_itself(first: Dataset) -> None:
    with pytest.raises(UsageError, match="against itself"):
        held(first, first)


def test_names_that_are_no_folder_names(tmp_path: Path, first: Dataset) -> None:
    second = made(tmp_path / "second", 2)
    odd = Dataset(
        second.folder, second.image_root, "../a/ü?", second.classes, second.manifest, second.importer, second.notes
    )
    outcome = held(first, odd)
    assert outcome.folder.parent == first.folder / "audit"
    assert outcome.folder.name == "external-a---"[:10] or outcome.folder.name.startswith("external-")
    assert outcome.page.is_file()


def test_every_check_has_a_card() -> None:
    cards = [read_check_card(check) for check in LINKS_CHECKS]
    assert [read.code for read in cards] == ["DA080", "DA081", "DA082"]
    assert all(all((read.title, read.threshold, read.severity, read.effect)) for read in cards)


def test_a_set_that_could_not_be_opened_is_not_called_external(first: Dataset, tmp_path: Path) -> None:
    other = made(tmp_path / "other", 99)
    for path in other.manifest["path"].iloc[:3]:
        (other.image_root / path).unlink()
    outcome = held(first, other, pair_scanner())
    assert not body(outcome)["is_external"]
    assert "cannot be called external" in outcome.verdict
    assert "3 of 16 images of other could not be opened" in outcome.verdict
