"""Lesions, patients and archive ids on two sides or under two labels: planted, and clean."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_inputs import make_subject
from dermkit.audit.checks.duplicates import da012_exact_duplicates_across_splits
from dermkit.audit.checks.finding import AuditInput, Finding, NotApplicable, Severity, read_check_card
from dermkit.audit.checks.groups import (
    da020_lesions_across_splits,
    da021_patients_across_splits,
    da022_labels_within_lesion,
    da023_ids_missing,
    da024_archive_id_repeats,
    find_leaks,
)

CHECKS = (
    da020_lesions_across_splits, da021_patients_across_splits, da022_labels_within_lesion, da023_ids_missing,
    da024_archive_id_repeats,
)  # fmt: skip


def lesions(*rows: tuple[str, str, str], column: str = "lesion_id", **more: list[str]) -> AuditInput:
    """Return an audit input of rows (label, side, lesion)."""
    label, split, lesion = zip(*rows, strict=True)
    return make_subject(label, split=split, manifest={column: lesion, **more}, classes=("nv", "mel"))


LEAKING = (
    ("nv", "train", "a"), ("nv", "test", "a"),
    ("mel", "validation", "b"), ("mel", "test", "b"), ("mel", "test", "b"),
    ("mel", "train", "c"), ("mel", "validation", "c"),
    ("nv", "test", "d"), ("nv", "train", "e"), ("nv", "", "d"), ("mel", "test", ""), ("mel", "train", ""),
)  # fmt: skip


@pytest.mark.parametrize(
    ("check", "column"), [(da020_lesions_across_splits, "lesion_id"), (da021_patients_across_splits, "patient_id")]
)
def test_what_is_on_two_sides_is_counted_per_class(check: object, column: str) -> None:
    found = check(lesions(*LEAKING, column=column))  # type: ignore[operator]
    assert isinstance(found, Finding)
    assert (found.severity, found.n, dict(found.per_class)) == (Severity.ERROR, 4, {"nv": 1, "mel": 3})
    assert found.figures["test"]["per_class"]["mel"]["n"] == 2
    assert found.figures["test"]["per_class"]["mel"]["total"] == 3
    assert found.figures["validation"]["n"] == 1
    assert "Of 5 test images 3 (60 %, 95 % CI 23 to 88 %)" in found.sentence
    assert "mel 2 of 3 (67 %, 95 % CI 21 to 94 %)" in found.sentence
    siblings = found.rows.set_index("image_id")["sibling_image_id"].to_dict()
    assert siblings == {"0003": "0002", "0004": "0002", "0001": "0000", "0006": "0005"}
    assert found.rows["sibling_split"].tolist() == ["validation", "validation", "train", "train"]
    # The worst first: malignant test images.
    assert found.rows["label"].tolist() == ["mel", "mel", "nv", "mel"]


def test_a_side_may_hold_many_photographs_of_a_lesion() -> None:
    clean = lesions(("nv", "train", "a"), ("nv", "train", "a"), ("mel", "test", "b"), ("mel", "", "a"))
    assert da020_lesions_across_splits(clean) is None


def test_folds_leak_both_ways() -> None:
    rows = [
        ("nv", f"fold {k}", lesion) for k, lesion in [(0, "a"), (1, "a"), (0, "b"), (0, "b"), (2, "a"), (2, "")]
    ]
    found = da020_lesions_across_splits(lesions(*rows))
    assert isinstance(found, Finding)
    assert found.n == 3
    assert found.rows["sibling_image_id"].tolist() == ["0001", "0000", "0000"]
    assert "Of 6 images, each tested in its fold, 3 (50 %" in found.sentence


def test_folds_beside_test_images_leak_into_them_and_between_each_other() -> None:
    rows = [("fold 0", "a"), ("fold 1", "a"), ("fold 1", "b"), ("test", "b"), ("test", "c"), ("test", "c")]
    subject = lesions(*(("nv", side, lesion) for side, lesion in rows))
    found = da020_lesions_across_splits(subject)
    assert isinstance(found, Finding)
    assert (found.figures["test"]["n"], found.figures["fold"]["n"]) == (1, 2)
    assert "Of 3 test images 1 (33 %" in found.sentence
    assert "Of 3 images, each validated in its fold, 2 (67 %" in found.sentence
    assert found.rows["sibling_image_id"].tolist() == ["0002", "0001", "0000"]


def test_copies_in_two_folds_are_told_beside_those_of_test_images() -> None:
    split = ["fold 0", "fold 1", "fold 1", "test"]
    subject = make_subject(["nv"] * 4, split=split, pairs=[(0, 1, 0.0), (2, 3, 0.0)])
    found = da012_exact_duplicates_across_splits(subject)
    assert isinstance(found, Finding)
    assert {name: figures["n"] for name, figures in found.figures["splits"].items()} == {
        "test": 1, "fold 0": 1, "fold 1": 2,
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["fold 0", "fold 1", "fold 2", ""]), st.sampled_from("abcde ")), min_size=1)
)
def test_folds_agree_with_looking_at_every_pair(rows: list[tuple[str, str]]) -> None:
    audit_input = lesions(("nv", "fold 0", ""), *(("nv", side, key.strip()) for side, key in rows))
    (leak,) = find_leaks(audit_input, "lesion_id")
    side, key = audit_input.frame["split"].tolist(), audit_input.frame["lesion_id"].tolist()
    known = [i for i in range(len(key)) if key[i] and side[i]]
    expected = [i for i in known if any(key[j] == key[i] and side[j] != side[i] for j in known)]
    assert leak.leaking_rows.tolist() == expected
    for row, partner in zip(leak.leaking_rows, leak.leaking_siblings, strict=True):
        assert key[row] == key[partner]
        assert side[row] != side[partner] != ""


def test_no_split_and_no_ids_are_said() -> None:
    assert da020_lesions_across_splits(make_subject(["nv"], manifest={"lesion_id": ["a"]})) == NotApplicable(
        "no split"
    )
    assert da021_patients_across_splits(make_subject(["nv"], split=["test"])) == NotApplicable("no patient ids")
    assert da022_labels_within_lesion(make_subject(["nv"])) == NotApplicable("no lesion ids")
    assert da024_archive_id_repeats(make_subject(["nv"])) == NotApplicable("no ISIC ids")


def test_a_lesion_with_two_labels() -> None:
    ids = ["a", "a", "b", "b", "c", ""]
    found = da022_labels_within_lesion(
        make_subject(["nv", "mel", "nv", "nv", "mel", "nv"], manifest={"lesion_id": ids})
    )
    assert isinstance(found, Finding)
    assert (found.severity, found.n) == (Severity.ERROR, 2)
    assert found.rows["labels_of_lesion"].tolist() == ["mel / nv", "mel / nv"]
    assert found.sentence.startswith("Of 2 lesions with several images 1 (50 %")
    clean = make_subject(["nv", "nv", "mel", "nv"], manifest={"lesion_id": ["a", "a", "", ""]})
    assert da022_labels_within_lesion(clean) is None


def test_missing_ids_are_a_note() -> None:
    ids = {"lesion_id": ["a", "", ""], "patient_id": ["p", "q", "r"]}
    found = da023_ids_missing(make_subject(["nv", "mel", "mel"], manifest=ids))
    assert isinstance(found, Finding)
    assert (found.severity, found.n, found.kind, found.per_class) == (Severity.NOTE, 2, "table", {"mel": 2})
    assert "2 (67 %, 95 % CI 21 to 94 %) of 3 images have no lesion id" in found.sentence
    assert found.rows["without_lesion_id"].tolist() == [2, 0]
    nothing = da023_ids_missing(make_subject(["nv", "mel"]))
    assert isinstance(nothing, Finding)
    assert "No lesion ids (n 2)" in nothing.sentence
    assert da023_ids_missing(make_subject(["nv"], manifest={"lesion_id": ["a"], "patient_id": ["p"]})) is None


@pytest.mark.parametrize(
    ("label", "split", "pixels", "severity", "problem"),
    [
        (["nv", "mel"], ["train", "train"], "aa", Severity.ERROR, "two labels"),
        (["nv", "nv"], ["train", "test"], "aa", Severity.ERROR, "two sides"),
        (["nv", "nv"], ["train", ""], "ab", Severity.WARNING, "different pixels"),
        (["nv", "nv"], ["train", "train"], "aa", None, ""),
    ],
)
def test_one_archive_id_on_two_images(
    label: list[str], split: list[str], pixels: str, severity: Severity | None, problem: str
) -> None:
    ids = {"isic_id": ["ISIC_0000001"] * 2 + ["ISIC_0000002", ""], "pixel_sha256": [*pixels, "c", "d"]}
    found = da024_archive_id_repeats(
        make_subject([*label, "nv", "nv"], split=[*split, "train", "train"], manifest=ids)
    )
    if severity is None:
        assert found is None
        return
    assert isinstance(found, Finding)
    assert (found.severity, found.n) == (severity, 2)
    assert found.rows["problem"].tolist() == [problem] * 2
    assert found.rows["image_id"].tolist() == ["0000", "0001"]


def test_the_worst_archive_ids_come_first() -> None:
    ids = {"isic_id": ["x", "x", "y", "y", "z", "z"], "pixel_sha256": list("aabbcd")}
    found = da024_archive_id_repeats(
        make_subject(["nv", "nv", "nv", "mel", "nv", "nv"], split=["train", "test", *["train"] * 4], manifest=ids)
    )
    assert isinstance(found, Finding)
    assert found.rows["isic_id"].tolist() == list("yyxxzz")
    assert found.figures == {"two labels": 1, "two sides": 1, "different pixels": 1, "ids": 3, "total": 3}


def test_cards_can_be_read() -> None:
    cards = [read_check_card(check) for check in CHECKS]
    assert [item.code for item in cards] == [f"DA02{k}" for k in range(5)]
    assert all(item.title and item.effect.endswith(".") for item in cards)


def test_a_hundred_thousand_rows_take_no_time() -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"lesion_id": rng.integers(0, n // 2, n).astype(str)})
    split = np.array(["train", "validation", "test"], dtype=object)[rng.integers(0, 3, n)]
    audit_input = make_subject(
        ["nv"] * n, split=split.tolist(), manifest={"lesion_id": frame["lesion_id"].tolist()}
    )
    found = da020_lesions_across_splits(audit_input)
    assert isinstance(found, Finding)
    assert len(found.rows) == found.n > n // 4
