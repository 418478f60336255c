"""The tables: diagnoses under all their names, and known data sets recognised by what is in them."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermkit.data.diagnoses import (
    DIAGNOSES,
    MALIGNANCY_LABELS,
    classify_label,
    contradict,
    is_known_label,
    plain_name,
)
from dermkit.data.identify import content_sha256, find_claimed, find_contained, identify, member_mask, recognise
from dermkit.data.known_datasets import KNOWN_DATASETS, KnownDataset
from dermkit.data.manifest import MALIGNANCIES


def rows_of(known: KnownDataset, keep: int | None = None) -> pd.DataFrame:
    """Return rows with the set's own counts, file names and ids, in folders that tell nothing."""
    labels = [
        (split, label) for split, classes in known.counts.items() for label, n in classes.items() for _ in range(n)
    ][:keep]
    n = len(labels)
    return pd.DataFrame(
        {
            "given_split": [split for split, _ in labels],
            "label": [label for _, label in labels],
            "path": [f"x/{i % 7}/{file_name(known, i)}.jpg" for i in range(n)],
            "lesion_id": [f"HAM_{i // 2:07d}" if known.lesion_id_pattern else "" for i in range(n)],
            "patient_id": [f"IP_{i // 9:07d}" if known.patient_id_pattern else "" for i in range(n)],
        }
    )


def file_name(known: KnownDataset, number: int) -> str:
    """Return a file name as the set has them, the ids of HAM10000 for its images."""
    if known.key == "ph2":
        return f"IMD{number:03d}"
    if known.key == "pad-ufes-20":
        return f"PAT_{number // 2}_{number}_{number % 999}"
    if known.file_pattern.startswith("ISIC"):
        of_ham = known.key in ("ham10000", "isic2018", "isic2019")
        return f"ISIC_{(24306 if of_ham else 5_000_000) + number:07d}"
    return f"melanoma_{number}" if known.key == "melanoma10k" else f"train_{number}"


def by_key(key: str) -> KnownDataset:
    return next(item for item in KNOWN_DATASETS if item.key == key)


@pytest.mark.parametrize(
    ("label", "diagnosis", "malignancy"),
    [
        ("mel", "melanoma", "malignant"),
        ("MEL", "melanoma", "malignant"),
        ("Melanoma", "melanoma", "malignant"),
        ("nv", "nevus", "benign"),
        ("melanocytic nevus", "nevus", "benign"),
        ("Melanocytic_Nevi", "nevus", "benign"),
        ("bcc", "basal cell carcinoma", "malignant"),
        ("Basal-Cell  Carcinoma", "basal cell carcinoma", "malignant"),
        ("squamous cell carcinoma", "squamous cell carcinoma", "malignant"),
        ("actinic keratosis", "actinic keratosis", "indeterminate"),
        ("akiec", "actinic keratosis", "indeterminate"),
        ("bkl", "pigmented benign keratosis", "benign"),
        ("seborrheic keratosis", "seborrheic keratosis", "benign"),
        ("df", "dermatofibroma", "benign"),
        ("vasc", "vascular lesion", "benign"),
        ("Benign", "", "benign"),
        ("malignant", "", "malignant"),
        ("something else", "", "indeterminate"),
        ("melanomas are bad", "", "indeterminate"),
        ("not melanoma", "", "indeterminate"),
    ],
)
def test_labels_are_classified(label: str, diagnosis: str, malignancy: str) -> None:
    found = classify_label(label)
    assert (found.name, found.diagnosis, found.malignancy) == (label, diagnosis, malignancy)
    assert is_known_label(label) == bool(diagnosis or label.lower() in MALIGNANCY_LABELS)


def test_no_name_means_two_diagnoses_and_all_are_written_plainly() -> None:
    names = Counter(name for item in DIAGNOSES for name in (item.name, *item.aliases))
    assert [name for name, n in names.items() if n > 1] == []
    assert all(plain_name(name) == name for name in names)
    assert all(item.malignancy in MALIGNANCIES for item in DIAGNOSES)


@given(st.text(max_size=20))
def test_plain_names_are_plain_already(text: str) -> None:
    once = plain_name(text)
    assert plain_name(once.upper().replace(" ", "__")) == plain_name(once.upper())
    assert "_" not in once
    assert "-" not in once
    assert "  " not in once


WITH_COUNTS = [item for item in KNOWN_DATASETS if not item.split_sizes]
"""Sets whose images per class and side are published; of the others the sides alone are."""


@pytest.mark.parametrize("known", WITH_COUNTS, ids=lambda item: item.key)
def test_a_known_set_is_recognised_by_its_content(known: KnownDataset) -> None:
    frame = rows_of(known)
    assert len(frame) == known.n_images
    assert recognise(frame) is known
    assert recognise(frame.sample(frac=1, random_state=0)) is known


@pytest.mark.parametrize("known", [item for item in KNOWN_DATASETS if item.split_sizes], ids=lambda item: item.key)
def test_a_set_is_recognised_by_its_sides_where_no_more_is_published(known: KnownDataset) -> None:
    labels = [label for label, n in known.class_counts.items() for _ in range(n)]
    labels += ["nv"] * (known.n_images - len(labels))
    sides = [side for side, n in known.split_sizes.items() for _ in range(n)]
    paths = [f"{i}.png" for i in range(known.n_images)]
    frame = pd.DataFrame({"given_split": sides, "label": labels, "path": paths, "lesion_id": ""})
    assert recognise(frame) is known
    assert recognise(frame.drop(index=0)) is not known


@pytest.mark.parametrize("key", ["isic9", "melanoma10k", "ham10000", "isic2019", "isic2020", "dermamnist"])
def test_a_few_missing_images_do_not_hide_a_set(key: str) -> None:
    frame = rows_of(by_key(key))
    found = identify(frame.drop(index=range(12)))
    assert found is not None
    assert found.description == f"{by_key(key).title} with 12 images missing"
    assert recognise(frame.drop(index=range(12))) is by_key(key)


def test_a_few_added_images_do_not_hide_a_set_but_are_not_of_it() -> None:
    frame = rows_of(by_key("isic9"))
    more = pd.concat(
        [frame, frame.head(3).assign(path=["ISIC_1111111.jpg", "ISIC_1111112.jpg", "ISIC_1111113.jpg"])]
    )
    found = identify(more.reset_index(drop=True))
    assert found is not None
    assert found.description.endswith("with 3 images more than published")
    assert recognise(more) is None  # its licence and citation would be stamped on strangers


@pytest.mark.parametrize("key", ["isic9", "melanoma10k", "isic2020"])
def test_counts_that_nearly_fit_prove_nothing_under_other_file_names(key: str) -> None:
    frame = rows_of(by_key(key)).drop(index=0)
    assert identify(frame.assign(path=[f"photo {i}.jpg" for i in range(len(frame))])) is None


@pytest.mark.parametrize("known", WITH_COUNTS, ids=lambda item: item.key)
def test_other_labels_and_sides_do_not_hide_a_set(known: KnownDataset) -> None:
    frame = rows_of(known)
    shouted = frame.assign(label=frame["label"].str.upper().str.replace(" ", "_"))
    assert recognise(shouted) is known
    found = identify(
        frame.assign(given_split=["train", "test"] * (len(frame) // 2) + ["train"] * (len(frame) % 2))
    )
    assert found is not None
    assert found.known_dataset.title.split(",")[0] in found.description
    assert found.relation == "divided"


def test_the_same_files_are_recognised_under_any_name_and_label() -> None:
    frame = pd.DataFrame(
        {
            "given_split": "",
            "label": ["a", "b"],
            "path": ["1", "2"],
            "lesion_id": "",
            "file_sha256": ["0" * 64, "1" * 64],
        }
    )
    assert content_sha256(frame) == content_sha256(frame[::-1]) != ""
    assert content_sha256(frame.assign(file_sha256=["0" * 64, ""])) == ""
    assert all(len(item.files_sha256) in (0, 64) for item in KNOWN_DATASETS)


def test_part_of_ham10000_is_recognised_by_its_ids() -> None:
    ham, part = by_key("ham10000"), rows_of(by_key("ham10000"), keep=50)
    assert recognise(part) is ham
    assert recognise(part.assign(lesion_id="")) is ham  # by ISIC ids
    nameless = part.assign(path=[f"{i}.jpg" for i in range(50)])
    assert recognise(nameless) is ham  # by lesion ids
    assert recognise(nameless.assign(lesion_id="")) is None
    found = identify(part)
    assert found is not None
    assert found.description == "a part of HAM10000: 50 of its 10,015 images"


def test_images_of_a_known_set_inside_another_are_counted_once() -> None:
    rows = rows_of(by_key("ham10000"), keep=30)
    strangers = rows.assign(path=[f"ISIC_{7_000_000 + i}.jpg" for i in range(30)], lesion_id="")
    both = pd.concat([rows, rows.head(4), strangers], ignore_index=True)
    (found,) = find_contained(both)
    assert (found.known_dataset.key, found.n_images, found.n_extra, 10015 - found.n_missing) == (
        "ham10000",
        34,
        30,
        30,
    )
    assert find_contained(strangers) == []


def test_the_ids_of_the_isic_2018_test_are_not_those_of_ham10000() -> None:
    frame = pd.DataFrame(
        {"path": ["ISIC_0034320.jpg", "ISIC_0034524.jpg", "ISIC_0036064.JPG", "ISIC_0036065.jpg"]}
    )
    assert member_mask(frame, by_key("ham10000")).tolist() == [True, False, False, False]
    assert member_mask(frame, by_key("isic2018")).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("HAM-10000 (copy)", ["ham10000"]), ("Skin_Cancer_MNIST", ["ham10000"]), ("ISIC 2019", ["isic2019"]),
        ("isic-challenge-2020", ["isic2020"]), ("dermamnist_224", ["dermamnist"]), ("DermaMNIST-C", ["dermamnist-c"]),
        ("dermamnist_extended_224", ["dermamnist-e"]), ("PAD-UFES-20", ["pad-ufes-20"]), ("ph2", ["ph2"]),
        ("Skin cancer 9 classes ISIC", ["isic9"]), ("melanoma_10k", ["melanoma10k"]), ("my clinic", []), ("isic", []),
        ("graph25", []),
    ],
)  # fmt: skip
def test_what_a_name_claims(name: str, keys: list[str]) -> None:
    assert [item.key for item in find_claimed([name])] == keys


@pytest.mark.parametrize(
    ("one", "other", "wrong"),
    [
        ("nv", "nevus", False), ("nv", "melanoma", True), ("nv", "malignant", True), ("mel", "malignant", False),
        ("benign", "malignant", True), ("bkl", "seborrheic keratosis", False), ("bkl", "nevus", True),
        ("pigmented benign keratosis", "seborrheic keratosis", True), ("akiec", "SCC", False),
        ("actinic keratosis", "scc", True), ("akiec", "malignant", False), ("odd", "nevus", False),
    ],
)  # fmt: skip
def test_which_labels_contradict_each_other(one: str, other: str, wrong: bool) -> None:
    assert contradict(classify_label(one), classify_label(other)) is wrong
    assert contradict(classify_label(other), classify_label(one)) is wrong


def test_published_numbers() -> None:
    published = {
        "isic9": 2239 + 118, "melanoma10k": 9605 + 1000, "ham10000": 10015, "isic2018": 10015 + 193 + 1512,
        "isic2019": 25331, "isic2020": 33126, "isic2024": 401059, "dermamnist": 7007 + 1003 + 2005,
        "dermamnist-c": 8215 + 573 + 1227, "dermamnist-e": 10015 + 193 + 1511, "ph2": 200, "pad-ufes-20": 2298,
    }  # fmt: skip
    assert {item.key: item.n_images for item in KNOWN_DATASETS} == published
    assert all(sum(counts.values()) == item.n_images for item in KNOWN_DATASETS for counts in item.other_counts)
    assert {side: sum(classes.values()) for side, classes in by_key("dermamnist").counts.items()} == {
        "train": 7007, "validation": 1003, "test": 2005,
    }  # fmt: skip
    assert by_key("dermamnist").class_counts == by_key("ham10000").class_counts
    assert sum(by_key("isic9").counts["test"].values()) == 118
    assert all(item.licence and item.citation and item.defects for item in KNOWN_DATASETS)
    assert all(
        other in {item.key for item in KNOWN_DATASETS} for item in KNOWN_DATASETS for other in item.contained_keys
    )
    labels = {label for item in KNOWN_DATASETS if item.key != "ph2" for label in item.class_counts}
    assert all(is_known_label(label) for label in labels)
