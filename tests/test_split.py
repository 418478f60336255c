"""Splits keep lesions together, say why an image is left out, and refuse an overlap."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import MANIFEST_COLUMNS
from dermkit.data.split import Split, check_split, division_bytes, make_split, tables_by_fold
from dermkit.data.stratify import stratified_group_split
from dermkit.errors import DataError, UsageError
from dermkit.recipes.schema import SplitSpec, parse_split_spec

HOLDOUT = SplitSpec(scheme="holdout", seed=7, validation=0.15, test=0.15, folds=0, per_class=0, draw_from="")
KFOLD = replace(HOLDOUT, scheme="kfold", folds=5)
GIVEN = replace(HOLDOUT, scheme="given", validation=0.25, test=0.0)
AS_PUBLISHED = replace(GIVEN, scheme="given-as-published")


def manifest(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Make a manifest; what a row does not say is unknown, and its pixels are its own."""
    full = [
        dict.fromkeys(MANIFEST_COLUMNS, "") | {"pixel_sha256": f"own {i}", "width": "9"} | dict(r)
        for i, r in enumerate(rows)
    ]
    for number, row in enumerate(full):
        row["image_id"] = row["image_id"] or f"i{number:05d}"
    return pd.DataFrame(full, columns=list(MANIFEST_COLUMNS), dtype=str)


def lesions(counts: Mapping[str, int], photos: int = 1) -> list[dict[str, str]]:
    return [
        {"label": label, "lesion_id": f"{label}{n}"}
        for label, total in counts.items()
        for n in range(total)
        for _ in range(photos)
    ]


def published(train: int, test: int, classes: str = "ab") -> list[dict[str, str]]:
    return [
        {"image_id": f"{side}/{label}/{n}", "label": label, "given_split": side}
        for side, total in (("train", train), ("test", test))
        for label in classes
        for n in range(total)
    ]


def sides(split: Split) -> dict[str, str]:
    return dict(zip(split.frame["image_id"], split.frame["split"] + split.frame["fold"].astype(str), strict=True))


def why(split: Split) -> dict[str, str]:
    return dict(zip(split.excluded["image_id"], split.excluded["reason"], strict=True))


@st.composite
def manifests(draw: st.DrawFn) -> pd.DataFrame:
    """Up to 60 images whose lesions, patients, copies and pixels are tangled, plus enough lone ones to divide."""
    key = st.integers(0, 12).map(lambda n: "" if n < 5 else str(n))
    row = st.fixed_dictionaries(
        {
            "label": st.sampled_from("abc"),
            "lesion_id": key,
            "patient_id": st.sampled_from(["", "", "", "p1", "p2", "p3"]),
            "copy_group": st.sampled_from(["", "", "", "c1", "c2"]),
            "given_split": st.sampled_from(["train", "train", "test"]),
        }
    )
    tangled = [dict(item) for item in draw(st.lists(row, max_size=60))]
    for item in tangled:
        twin = draw(st.integers(0, 30))
        if twin < 8:
            item["pixel_sha256"] = f"twin {twin}"
    alone = [{"label": label, "given_split": side} for label in "abc" for side in ("train",) * 6 + ("test",)]
    return manifest(tangled + alone)


@given(manifests(), st.sampled_from([HOLDOUT, KFOLD, GIVEN]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_group_is_divided_and_no_image_is_lost(frame: pd.DataFrame, spec: SplitSpec, seed: int) -> None:
    split = make_split(frame, replace(spec, seed=seed), name="s")
    side = frame["image_id"].map(sides(split))
    by_group = side.groupby(leakage_groups(frame)).nunique()
    assert by_group.max() == 1
    for column in ("lesion_id", "patient_id", "copy_group", "pixel_sha256"):
        assert (side[frame[column] != ""].groupby(frame[column]).nunique() <= 1).all()
    assert sorted([*split.frame["image_id"], *split.excluded["image_id"]]) == sorted(frame["image_id"])
    assert (split.excluded["reason"] != "").all()
    assert split.leaks["total"] == split.leaks["validation"]["total"] == 0
    if spec is GIVEN:
        test = frame.loc[frame["given_split"] == "test", "image_id"]
        assert set(test) == set(split.frame.loc[split.frame["split"] == "test", "image_id"])


@given(manifests(), st.sampled_from([HOLDOUT, KFOLD, GIVEN, AS_PUBLISHED]), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_row_order_changes_nothing(frame: pd.DataFrame, spec: SplitSpec, random: Any) -> None:
    order = list(range(len(frame)))
    random.shuffle(order)
    first, second = (make_split(rows, spec, name="s") for rows in (frame, frame.iloc[order]))
    pd.testing.assert_frame_equal(first.frame, second.frame)
    pd.testing.assert_frame_equal(first.excluded, second.excluded)
    assert first.leaks == second.leaks


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=20, max_size=200),
    st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.2,) * 5]),
    st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_every_share_is_met_to_within_one_group(
    groups: list[tuple[int, int]], shares: tuple[float, ...], seed: int
) -> None:
    label = np.repeat([g[0] for g in groups], [g[1] for g in groups]).astype(np.int64)
    group = np.repeat(np.arange(len(groups)), [g[1] for g in groups]).astype(np.int64)
    side = stratified_group_split(label, group, shares, seed)
    for code in set(label.tolist()):
        sizes = [size for c, size in groups if c == code]
        found = np.bincount(side[label == code], minlength=len(shares))
        if len(sizes) >= len(shares):
            assert (found > 0).all()
        if len(sizes) >= 20:
            assert np.abs(found - np.array(shares) * sum(sizes)).max() <= max(sizes)


def test_shares_in_known_cases() -> None:
    one = np.zeros(10, np.int64)
    assert np.bincount(stratified_group_split(one, np.arange(10), (0.7, 0.15, 0.15), 0)).tolist() == [7, 2, 1]
    group = np.concatenate([np.repeat(np.arange(5), 10), np.arange(5, 205)])
    found = np.bincount(stratified_group_split(np.zeros(250, np.int64), group, (0.7, 0.15, 0.15), 0))
    assert np.abs(found - [175, 37.5, 37.5]).max() <= 1  # small groups even out what large ones cannot


def test_filling_a_gap_opens_no_other() -> None:
    """Six groups of two or three classes: giving one class its third side must not take another class's."""
    held = ["ab", "bc", "abc", "bc", "ac", "b"]
    pairs = [("abc".index(name), group) for group, names in enumerate(held) for name in names]
    label, group = np.array(pairs, dtype=np.int64).T
    side = stratified_group_split(label, group, (0.7, 0.15, 0.15), 0)
    assert [len(set(side[label == code].tolist())) for code in range(3)] == [3, 3, 3]


def _sizes_on(split: Split, frame: pd.DataFrame, side: str) -> NDArray[np.int64]:
    rows = frame["image_id"].isin(split.frame.loc[split.frame["split"] == side, "image_id"])
    return np.bincount(frame.loc[rows, "lesion_id"].value_counts(), minlength=4)


def test_the_test_side_gets_lesions_of_every_size() -> None:
    """A greedy pass by absolute need would leave only single photographs for the test side."""
    frame = manifest(
        lesions({"a": 200}) + [row | {"lesion_id": "big" + row["lesion_id"]} for row in lesions({"a": 100}, 3)]
    )
    assert _sizes_on(make_split(frame, HOLDOUT, name="s"), frame, "test").tolist()[1:] == [30, 0, 15]


def test_the_seed_decides() -> None:
    frame = manifest(lesions({"a": 40, "b": 40}))
    same, other = make_split(frame, HOLDOUT, name="s"), make_split(frame, replace(HOLDOUT, seed=8), name="s")
    assert sides(same) == sides(make_split(frame, HOLDOUT, name="s")) != sides(other)


@pytest.mark.parametrize("rows", [[{"label": "b"}], [{"label": "b", "lesion_id": "x"}] * 2])
def test_a_class_of_one_image_or_one_lesion_is_refused(rows: list[dict[str, str]]) -> None:
    frame = manifest(lesions({"a": 30}) + rows)
    with pytest.raises(DataError, match=rf"class 'b' has {len(rows)} image\(s\) in 1 group") as caught:
        make_split(frame, HOLDOUT, name="s")
    assert caught.value.exit_code == 3
    assert "merge the class" in caught.value.remedy


def test_two_lesions_go_to_train_and_test_and_three_to_every_side() -> None:
    frame = manifest(lesions({"a": 30, "b": 2, "c": 3}, photos=2))
    split = make_split(frame, HOLDOUT, name="s")
    side = split.frame.set_index("image_id")["split"]
    assert side[frame.loc[frame["label"] == "b", "image_id"]].value_counts().to_dict() == {"train": 2, "test": 2}
    assert side[frame.loc[frame["label"] == "c", "image_id"]].nunique() == 3
    assert split.notes == ("class 'b' has no image in validation",)


def test_folds_take_turns_and_a_class_needs_three_groups() -> None:
    frame = manifest(lesions({"a": 50, "b": 3}))
    split = make_split(frame, replace(KFOLD, validation=0.2), name="s")
    tables = tables_by_fold(split, frame)
    per_image = pd.concat(tables).groupby("image_id")["split"].agg(lambda seen: " ".join(sorted(seen)))
    assert set(per_image) == {"test train train train validation"}
    labels = frame.set_index("image_id")["label"]
    assert list(tables) == [0, 1, 2, 3, 4]
    for now in tables.values():
        assert set(labels[now.loc[now["split"] == "train", "image_id"]]) == {"a", "b"}
    with pytest.raises(DataError, match="class 'b' has 2"):
        make_split(manifest(lesions({"a": 50, "b": 2})), KFOLD, name="s")


def test_a_class_that_some_run_would_train_without_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def crowded(label: NDArray[np.int64], *_: object) -> NDArray[np.int64]:
        return np.where(label == 1, 0, np.arange(len(label)) % 5)

    monkeypatch.setattr("dermkit.data.split.stratified_group_split", crowded)
    with pytest.raises(DataError, match="class 'b' fits into 1 fold"):
        make_split(manifest(lesions({"a": 50, "b": 9})), KFOLD, name="s")


@given(manifests(), st.sampled_from([0.02, 0.07, 0.15, 0.3]), st.integers(3, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_part_of_the_next_fold_validates_by_group_and_what_it_leaves_is_trained_on(
    frame: pd.DataFrame, validation: float, folds: int, seed: int
) -> None:
    spec = replace(KFOLD, folds=folds, seed=seed, validation=validation)
    try:
        split = make_split(frame, spec, name="s")
    except DataError:
        return  # too few groups for so many folds
    group = pd.Series(leakage_groups(frame), index=frame["image_id"])
    fold_of = split.frame.set_index("image_id")["fold"]
    tables = tables_by_fold(split, frame)
    shuffled = tables_by_fold(split, frame.sample(frac=1.0, random_state=seed))
    for fold, rows in tables.items():
        pd.testing.assert_frame_equal(rows, shuffled[fold])
        ids = {name: rows.loc[rows["split"] == name, "image_id"] for name in ("train", "validation", "test")}
        assert sum(map(len, ids.values())) == len(split.frame)
        assert set(fold_of[ids["test"]]) == {fold} and set(fold_of[ids["validation"]]) == {(fold + 1) % folds}
        assert fold not in set(fold_of[ids["train"]])
        groups = [set(group[images]) for images in ids.values()]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
        if validation * folds >= 1.0:
            assert (fold + 1) % folds not in set(fold_of[ids["train"]])


def test_a_part_of_a_fold_has_its_size_and_classes() -> None:
    frame = manifest(lesions({"a": 2000, "b": 400, "c": 10}, photos=2))
    split = make_split(frame, replace(KFOLD, validation=0.07), name="s")
    labels = frame.set_index("image_id")["label"]
    for rows in tables_by_fold(split, frame).values():
        n = rows["split"].value_counts()
        assert n["validation"] == pytest.approx(0.07 * len(frame), abs=4)
        assert n["train"] == pytest.approx(0.73 * len(frame), abs=8)
        counts = labels[rows.loc[rows["split"] == "validation", "image_id"]].value_counts()
        assert counts["a"] == pytest.approx(280, abs=2) and counts["b"] == pytest.approx(56, abs=2)
        assert counts["c"] == 2, "two lesions of a fold: one of them validates"


def test_images_that_are_linked_by_one_left_out_stay_together_when_a_part_of_their_fold_validates() -> None:
    links = [{"lesion_id": "l{}"}, {"lesion_id": "l{}", "patient_id": "p{}"}, {"patient_id": "p{}"}]
    frame = manifest(
        {"label": label, **{name: f"{label}{text.format(n)}" for name, text in link.items()}}
        for label in "ab"
        for n in range(40)
        for link in links
    )
    split = make_split(frame, replace(KFOLD, validation=0.07, per_class=80), name="s")
    group = pd.Series(leakage_groups(frame), index=frame["image_id"])
    for rows in tables_by_fold(split, frame).values():
        train, validation = (
            set(group[rows.loc[rows["split"] == name, "image_id"]]) for name in ("train", "validation")
        )
        assert validation and not train & validation


def test_a_class_that_the_part_of_a_fold_lacks_is_said() -> None:
    frame = manifest(lesions({"a": 100, "b": 5}))
    split = make_split(frame, replace(KFOLD, validation=0.15), name="s")
    (note,) = split.notes
    assert note.startswith("class 'b': the part of fold 0, 1, 2, 3, 4 that validates has no image of it")
    assert make_split(frame, replace(KFOLD, validation=0.2), name="s").notes == ()


def test_what_identifies_a_division_says_which_part_validates() -> None:
    frame = manifest(lesions({"a": 50}))

    def identity(validation: float) -> bytes:
        split = make_split(frame, replace(KFOLD, validation=validation), name="s")
        return division_bytes(split, tables_by_fold(split, frame))

    assert identity(0.2) == identity(0.4), "whole folds validate"
    assert len({identity(validation) for validation in (0.05, 0.1, 0.2)}) == 3


def test_a_handwritten_file_of_folds_validates_on_whole_folds() -> None:
    frame = manifest(lesions({"a": 50}))
    split = replace(make_split(frame, replace(KFOLD, validation=0.02), name="s"), spec=None)
    assert [(rows["split"] == "validation").sum() for rows in tables_by_fold(split, frame).values()] == [10] * 5


def test_a_holdout_is_left_as_it_is() -> None:
    frame = manifest(lesions({"a": 30}))
    split = make_split(frame, HOLDOUT, name="s")
    tables = tables_by_fold(split, frame)
    assert list(tables) == [-1]
    pd.testing.assert_frame_equal(tables[-1], split.frame)


def _leaky() -> pd.DataFrame:
    """20 + 4 images per class; train/a/0..3 each tied to a test image in its own way, a/4 through a/3."""
    frame = manifest(published(20, 4)).set_index("image_id", drop=False)
    for column, train, test in (
        ("pixel_sha256", "train/a/0", "test/b/0"),
        ("lesion_id", "train/a/1", "test/a/1"),
        ("patient_id", "train/a/2", "test/a/2"),
        ("copy_group", "train/a/3", "test/a/3"),
    ):
        frame.loc[[train, test], column] = "shared"
    frame.loc[["train/a/3", "train/a/4"], "pixel_sha256"] = "chain"
    return frame.reset_index(drop=True)


def test_given_keeps_the_test_folder_and_says_why_train_images_left() -> None:
    split = make_split(_leaky(), GIVEN, name="s")
    assert why(split) == {
        "train/a/0": "same pixels as test image test/b/0",
        "train/a/1": "same lesion as test image test/a/1",
        "train/a/2": "same patient as test image test/a/2",
        "train/a/3": "same copy group as test image test/a/3",
        "train/a/4": "linked through other images to test image test/a/3",
    }
    assert split.frame["split"].value_counts().to_dict() == {"train": 26, "validation": 9, "test": 8}


def test_given_as_published_keeps_every_row_and_counts_leaks_per_class() -> None:
    split = make_split(_leaky(), AS_PUBLISHED, name="s")
    assert len(split.excluded) == 0
    assert {key: split.leaks[key] for key in ("n", "total", "identical_pixels", "same_group")} == {
        "n": 8, "total": 4, "identical_pixels": 1, "same_group": 3,
    }  # fmt: skip
    assert {name: counts["total"] for name, counts in split.leaks["per_class"].items()} == {"a": 3, "b": 1}
    assert split.leaks["validation"]["total"] == 0
    assert split.leaks["contradictions"] == 2
    with pytest.raises(DataError, match="4 image"):
        check_split(_leaky(), split)


def test_published_validation_stays_and_its_training_twins_leave() -> None:
    rows = published(10, 3) + [
        {"image_id": f"val/{c}/{n}", "label": c, "given_split": "val", "lesion_id": f"{c}{n}"}
        for c in "ab"
        for n in range(3)
    ]
    frame = manifest(rows)
    frame.loc[frame["image_id"].isin(["train/a/5", "val/b/1"]), "lesion_id"] = "b1"
    frame.loc[frame["image_id"].isin(["test/a/2", "val/b/2"]), "lesion_id"] = "b2"
    split = make_split(frame, GIVEN, name="s")
    assert why(split) == {
        "train/a/5": "same lesion as validation image val/b/1",
        "val/b/2": "same lesion as test image test/a/2",
    }
    assert (split.frame["split"] == "validation").sum() == 5
    assert make_split(frame, AS_PUBLISHED, name="s").leaks["validation"] == {
        "n": 6, "total": 1, "identical_pixels": 0, "same_group": 1,
    }  # fmt: skip


def test_given_needs_test_images_but_not_of_every_class() -> None:
    with pytest.raises(DataError, match="no published test images") as caught:
        make_split(manifest(published(10, 0)), GIVEN, name="s")
    assert "holdout" in caught.value.remedy
    frame = manifest(published(10, 3))
    lacking = frame[~((frame["label"] == "b") & (frame["given_split"] == "test"))]
    assert make_split(lacking, GIVEN, name="s").notes == ("class 'b' has no image in test",)
    with pytest.raises(DataError, match="class 'b' has 0 image"):
        make_split(frame[~((frame["label"] == "b") & (frame["given_split"] == "train"))], GIVEN, name="s")


def test_a_division_without_training_images_and_a_draw_from_test_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = manifest(published(10, 3))
    with pytest.raises(UsageError, match="draws from train only"):
        make_split(frame, replace(GIVEN, draw_from="test"), name="s")
    monkeypatch.setattr("dermkit.data.split.stratified_group_split", lambda label, *_: np.where(label == 1, 1, 0))
    with pytest.raises(DataError, match="class 'b' has no training image"):
        make_split(frame, GIVEN, name="s")


def test_folds_beside_published_test_images_keep_them_apart() -> None:
    """The older way stays too: folds of the published training images alone, the test images left out."""
    frame = manifest(published(20, 5))
    split = make_split(frame, replace(KFOLD, draw_from="train"), name="x")
    assert set(split.frame["fold"]) == set(range(5))
    assert set(split.frame["image_id"]) == set(frame.loc[frame["given_split"] == "train", "image_id"])
    for spec in (GIVEN, AS_PUBLISHED):
        split = make_split(frame, replace(spec, folds=5), name="x")
        test = split.frame["split"] == "test"
        assert set(split.frame.loc[test, "image_id"]) == set(frame.loc[frame["given_split"] == "test", "image_id"])
        assert set(split.frame.loc[test, "fold"]) == {-1}
        assert set(split.frame.loc[~test, "split"]) == {"fold"}
        assert split.frame.loc[~test, "fold"].value_counts().to_dict() == dict.fromkeys(range(5), 8)


@given(manifests(), st.sampled_from([GIVEN, AS_PUBLISHED]), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_fold_beside_test_images_validates_once_and_never_meets_its_groups(
    frame: pd.DataFrame, spec: SplitSpec, folds: int, seed: int
) -> None:
    split = make_split(frame, replace(spec, folds=folds, seed=seed), name="s")
    group = dict(zip(frame["image_id"], leakage_groups(frame), strict=True))
    test = set(frame.loc[frame["given_split"] == "test", "image_id"])
    validated: list[str] = []
    for rows in tables_by_fold(split, frame).values():
        ids = {name: set(rows.loc[rows["split"] == name, "image_id"]) for name in ("train", "validation", "test")}
        groups = {name: {group[image] for image in images} for name, images in ids.items()}
        assert ids["test"] == test
        assert not groups["train"] & groups["validation"]
        if spec.scheme == "given":
            assert not (groups["train"] | groups["validation"]) & groups["test"]
        validated += ids["validation"]
    pool = split.frame.loc[split.frame["split"] == "fold", "image_id"]
    assert sorted(validated) == sorted(pool), "each training image validates exactly once"
    assert sorted([*split.frame["image_id"], *split.excluded["image_id"]]) == sorted(frame["image_id"])
    assert split.leaks["validation"]["total"] == 0
    assert split.leaks["n"] == len(test)
    assert split.leaks["validation"]["n"] == len(pool)
    if spec.scheme == "given-as-published":
        learned = {group[image] for image in pool}
        assert split.leaks["total"] == sum(group[image] in learned for image in test)


def test_published_validation_images_join_the_folds() -> None:
    rows = published(10, 3) + [
        {"image_id": f"val/{label}/{n}", "label": label, "given_split": "validation"}
        for label in "ab"
        for n in range(5)
    ]
    frame = manifest(rows)
    frame.loc[frame["image_id"].isin(["train/a/0", "val/a/0"]), "lesion_id"] = "one"
    frame.loc[frame["image_id"].isin(["val/b/0", "test/b/0"]), "lesion_id"] = "two"
    split = make_split(frame, replace(GIVEN, folds=3), name="s")
    assert why(split) == {"val/b/0": "same lesion as test image test/b/0"}
    assert split.frame["split"].value_counts().to_dict() == {"fold": 29, "test": 6}
    side = sides(split)
    assert side["train/a/0"] == side["val/a/0"]
    assert split.notes == ("the published validation images are in the folds, like the published training images",)


def test_too_few_images_for_folds_are_refused_before_training() -> None:
    few = manifest([*published(20, 3), {"label": "c", "given_split": "train"}])
    with pytest.raises(DataError, match=r"class 'c' has 1 image\(s\) in 1 group") as caught:
        make_split(few, replace(GIVEN, folds=5), name="s")
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match=r"8 images in 8 groups .* cannot fill 9 folds"):
        make_split(manifest(published(4, 2)), replace(GIVEN, folds=9), name="s")
    one_patient = manifest(published(8, 2))
    one_patient.loc[one_patient["given_split"] == "train", "patient_id"] = "p"
    with pytest.raises(DataError, match="in 1 group"):
        make_split(one_patient, replace(GIVEN, folds=2), name="s")
    with pytest.raises(DataError, match=r"6 images in 6 groups .* cannot fill 7 folds"):
        make_split(manifest(lesions({"a": 3, "b": 3})), replace(KFOLD, folds=7), name="s")
    # A class of fewer groups than folds is in some validation folds only, and in every training split.
    split = make_split(
        manifest([*published(20, 3), *lesions({"c": 2})]).assign(
            given_split=lambda table: table["given_split"].replace("", "train")
        ),
        replace(GIVEN, folds=5), name="s",
    )  # fmt: skip
    assert "class 'c' has no image in test" in split.notes
    assert sum("class 'c' has no image in fold" in note for note in split.notes) == 3


def test_an_image_in_two_folds_or_in_a_fold_and_test_leaks() -> None:
    frame = manifest(published(4, 2, classes="a"))
    rows = pd.DataFrame({
        "image_id": frame["image_id"], "split": ["fold"] * 4 + ["test"] * 2, "fold": [0, 0, 1, 1, -1, -1],
    })  # fmt: skip
    split = Split("s", rows, rows.head(0), {})
    assert check_split(frame, split)["total"] == 0
    frame.loc[[0, 2], "lesion_id"] = "between folds"
    frame.loc[[1, 4], "pixel_sha256"] = "of test"
    leaks = check_split(frame, split, allow_leaks=True)
    assert (leaks["n"], leaks["identical_pixels"], leaks["total"]) == (2, 1, 1)
    assert leaks["validation"] == {"n": 4, "identical_pixels": 0, "same_group": 2, "total": 2}
    with pytest.raises(DataError, match=r"test/a/0 \(test\): same pixels as train/a/1 \(fold 0\)"):
        check_split(frame, split)


def test_unknown_given_names_are_refused() -> None:
    with pytest.raises(DataError, match="unknown names: holdout"):
        make_split(manifest([{"label": "a", "given_split": "holdout"}]), GIVEN, name="s")


def test_balancing_draws_from_train_and_gives_a_reason_for_every_other_row() -> None:
    frame = manifest(published(60, 10))
    frame.loc[frame["image_id"].isin(["train/a/0", "test/a/0"]), "pixel_sha256"] = "twin"
    spec = replace(HOLDOUT, per_class=40, draw_from="train")
    split = make_split(frame, spec, name="s")
    assert split.frame["image_id"].str.slice(0, 7).value_counts().to_dict() == {"train/a": 40, "train/b": 40}
    assert split.excluded["reason"].value_counts().to_dict() == {
        "not in draw_from=train": 20,
        "balance: not drawn (40 per class wanted)": 39,
        "same pixels as left-out image test/a/0": 1,
    }
    with pytest.raises(DataError, match="a has 59"):
        make_split(frame, replace(spec, per_class=60), name="s")


def test_wrong_names_and_an_empty_manifest_are_refused() -> None:
    frame = manifest(lesions({"a": 30}))
    with pytest.raises(UsageError, match="becomes a file name"):
        make_split(frame, HOLDOUT, name="../up")
    for name in ("nul", "a."):
        with pytest.raises(UsageError, match="Windows"):
            make_split(frame, HOLDOUT, name=name)
    with pytest.raises(DataError, match="no images"):
        make_split(frame.head(0), HOLDOUT, name="s")


def test_a_hundred_thousand_images_take_seconds() -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame("", index=range(n), columns=list(MANIFEST_COLUMNS))
    frame["image_id"] = [f"i{k:06d}" for k in range(n)]
    frame["pixel_sha256"] = frame["image_id"]
    frame["label"] = rng.choice(["a", "b", "c", "d"], n, p=[0.7, 0.2, 0.09, 0.01])
    frame["lesion_id"] = frame["label"] + pd.Series(rng.integers(0, 60_000, n)).astype(str)
    start = time.perf_counter()
    split = make_split(frame, HOLDOUT, name="s")
    assert time.perf_counter() - start < 20  # measured: 0.7 s on one core
    share = split.frame["split"].value_counts(normalize=True)
    assert share["test"] == pytest.approx(0.15, abs=0.001)


def test_a_share_that_is_no_share_is_named_without_the_validators_words() -> None:
    with pytest.raises(UsageError) as caught:
        parse_split_spec(scheme="holdout", seed=0, validation=0.15, test=20.0, folds=0, per_class=0, draw_from="")
    assert "(validation 0.15, test 20, folds 0): validation and test must be fractions" in caught.value.message
    assert "Value error" not in str(caught.value)
