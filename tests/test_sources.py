"""The tables: diagnoses under all their names, and known data sets recognised by what is in them."""

from collections import Counter
from collections.abc import Mapping

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermkit.data.manifest import MALIGNANCIES
from dermkit.data.sources import BINARY, DIAGNOSES, KNOWN, Known, classify, is_known, plain_name, recognise

NAMES: Mapping[str, str] = {"isic9": "ISIC_{:07d}", "melanoma10k": "melanoma_{}", "ham10000": "ISIC_{:07d}"}


def rows_of(known: Known, keep: int | None = None) -> pd.DataFrame:
    """Return rows with the set's own counts, file names and lesion ids, in folders that tell nothing."""
    labels = [
        (split, label) for split, classes in known.counts.items() for label, n in classes.items() for _ in range(n)
    ][:keep]
    return pd.DataFrame(
        {
            "given_split": [split for split, _ in labels],
            "label": [label for _, label in labels],
            "path": [f"x/{i % 7}/{NAMES[known.key].format(24306 + i)}.jpg" for i in range(len(labels))],
            "lesion_id": [f"HAM_{i // 2:07d}" if known.lesion_id else "" for i in range(len(labels))],
        }
    )


def by_key(key: str) -> Known:
    return next(item for item in KNOWN if item.key == key)


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
    found = classify(label)
    assert (found.name, found.diagnosis, found.malignancy) == (label, diagnosis, malignancy)
    assert is_known(label) == bool(diagnosis or label.lower() in BINARY)


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


@pytest.mark.parametrize("known", KNOWN, ids=lambda item: item.key)
def test_a_known_set_is_recognised_by_its_content(known: Known) -> None:
    frame = rows_of(known)
    assert len(frame) == known.images
    assert recognise(frame) is known
    assert recognise(frame.sample(frac=1, random_state=0)) is known


@pytest.mark.parametrize("known", KNOWN, ids=lambda item: item.key)
def test_other_file_names_are_another_set(known: Known) -> None:
    frame = rows_of(known)
    frame.loc[5, "path"] = "x/photo of a lesion.jpg"
    assert recognise(frame) is None


@pytest.mark.parametrize("key", ["isic9", "melanoma10k"])
def test_one_image_less_is_another_set(key: str) -> None:
    assert recognise(rows_of(by_key(key)).drop(index=0)) is None


def test_part_of_ham10000_is_recognised_by_its_lesion_ids() -> None:
    part = rows_of(by_key("ham10000"), keep=50)
    assert recognise(part) is by_key("ham10000")
    assert recognise(part.assign(lesion_id="")) is None


def test_published_numbers() -> None:
    assert [item.images for item in KNOWN] == [2239 + 118, 9605 + 1000, 10015]
    assert sum(by_key("isic9").counts["test"].values()) == 118
    assert all(is_known(label) for item in KNOWN for classes in item.counts.values() for label in classes)
    assert all(item.licence and item.citation and item.defects for item in KNOWN)
