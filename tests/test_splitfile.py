"""Split files: written, read back, and refused where they do not fit the manifest."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from dermkit.data.manifest import MANIFEST_COLUMNS
from dermkit.data.split import Split, check_split, load_split, make_split, save_split
from dermkit.data.split_file import read_split_rows
from dermkit.errors import DataError
from dermkit.files import sha256_file
from dermkit.recipes.schema import SplitSpec

HOLDOUT = SplitSpec(scheme="holdout", seed=7, validation=0.15, test=0.15, folds=0, per_class=0, draw_from="")
KFOLD = replace(HOLDOUT, scheme="kfold", folds=5)
GIVEN = replace(HOLDOUT, scheme="given", validation=0.25, test=0.0)
AS_PUBLISHED = replace(GIVEN, scheme="given-as-published")


def images(n: int) -> pd.DataFrame:
    """Make a manifest of n unlinked images of one class, i00000 onwards."""
    frame = pd.DataFrame("", index=range(n), columns=list(MANIFEST_COLUMNS))
    frame["image_id"] = [f"i{number:05d}" for number in range(n)]
    return frame.assign(label="a", pixel_sha256=frame["image_id"])


def _hand_written(folder: Path, frame: pd.DataFrame, changes: Mapping[str, str]) -> Path:
    third = {0: "train", 1: "validation", 2: "test"}
    lines = [f"{name},{changes.get(name, third[n % 3])}," for n, name in enumerate(frame["image_id"])]
    folder.mkdir(exist_ok=True)
    path = folder / "mine.csv"
    path.write_text("image_id,split,fold\n" + "\n".join(line for line in lines if ",skip," not in line) + "\n")
    return path


def test_a_planted_lesion_on_both_sides_is_refused(tmp_path: Path) -> None:
    frame = images(60)
    load_split(_hand_written(tmp_path, frame, {}), frame)
    frame.loc[[0, 2], "lesion_id"] = "planted"
    with pytest.raises(DataError, match=r"i00002 \(test\): same lesion as i00000 \(train\)") as caught:
        load_split(_hand_written(tmp_path, frame, {}), frame)
    assert caught.value.exit_code == 3
    frame["lesion_id"] = ""
    frame.loc[[0, 1], "pixel_sha256"] = "planted"
    with pytest.raises(DataError, match=r"i00001 \(validation\): same pixels as i00000 \(train\)"):
        load_split(_hand_written(tmp_path, frame, {}), frame)
    frame["patient_id"] = "everyone"
    with pytest.raises(DataError, match=r"40 image\(s\)(.|\n)*and 20 more") as caught:
        load_split(_hand_written(tmp_path, frame, {}), frame)
    assert len(caught.value.message.splitlines()) == 22


def test_a_link_through_an_image_that_is_on_no_side_is_refused(tmp_path: Path) -> None:
    frame = images(9)
    frame.loc[[0, 3], "lesion_id"] = "x"
    frame.loc[[3, 2], "pixel_sha256"] = "y"
    with pytest.raises(DataError, match="linked through other images"):
        load_split(_hand_written(tmp_path, frame, {"i00003": "skip"}), frame)
    rows = pd.DataFrame(
        {"image_id": ["i00000", "i00001", "i00002"], "split": ["train", "validation", "test"], "fold": -1}
    )
    leaks = check_split(frame, Split("s", rows, rows.head(0), {}), allow_leaks=True)
    assert leaks["total"] == leaks["same_group"] == 1


def test_a_hand_written_file_is_checked_in_one_go(tmp_path: Path) -> None:
    frame = images(9)
    path = _hand_written(tmp_path, frame, {"i00000": "Train", "i00004": "skip"})
    with path.open("a") as stream:
        stream.write("i00008,test,\nnobody,train,\ni00004,train,2\n")
    (tmp_path / "mine.excluded.csv").write_text("image_id,reason\ni00007,blurred\nstranger,?\n")
    with pytest.raises(DataError) as caught:
        load_split(path, frame)
    assert caught.value.message.splitlines()[1:] == [
        "  unknown image (1): nobody",
        "  image named twice (1): i00008",
        "  unknown image among the excluded (1): stranger",
        "  image both in the split and excluded (1): i00007",
        "  split name other than train, validation, test (1): i00000: Train",
        "  wrong fold (1): i00004: 2",
    ]
    left_out = load_split(_hand_written(tmp_path / "other", frame, {"i00004": "skip"}), frame)
    assert left_out.excluded.to_numpy().tolist() == [["i00004", "not named in mine.csv"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("image,side\n", "lacks the columns image_id, split"),
        ("image_id,split\ni00000,train\n", "no image is in the test split"),
        ("image_id,split,fold\ni00000,fold,0\ni00001,fold,1\ni00002,fold,3\n", r"folds are \[0, 1, 3\]"),
        ("image_id,split,fold\ni00000,fold,0\ni00001,fold,1\n", "at least three"),
        ("image_id,split,fold\ni00000,fold,0\ni00001,test,\n", r"folds are \[0\].* at least two beside test"),
        ("image_id,split,fold\ni00000,fold,0\ni00001,fold,1\ni00002,test,1\n", r"wrong fold \(1\): i00002: 1"),
        ("image_id,split,fold\ni00000,fold,0\ni00001,fold,1\ni00002,train,\n", "other than fold, test"),
    ],
)
def test_a_broken_split_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_split(path, images(3))


def test_saved_and_loaded_alike(tmp_path: Path) -> None:
    frame = images(60)
    frame["given_split"] = ["train", "train", "test"] * 20
    frame.loc[[0, 2], "pixel_sha256"] = "twin"
    for spec in (HOLDOUT, KFOLD, GIVEN, AS_PUBLISHED, replace(GIVEN, folds=2), replace(AS_PUBLISHED, folds=5)):
        split = make_split(frame, spec, name=spec.scheme)
        again = load_split(save_split(split, tmp_path), frame)
        pd.testing.assert_frame_equal(again.frame, split.frame, check_dtype=False)
        pd.testing.assert_frame_equal(again.excluded, split.excluded, check_dtype=False)
        assert (again.leaks, again.spec, again.notes, again.name) == (split.leaks, spec, split.notes, spec.scheme)
    header, first = (tmp_path / "holdout.csv").read_text().splitlines()[:2]
    assert header == "image_id,split,fold"
    assert first.endswith(",")


def tangled(n: int) -> pd.DataFrame:
    """Make a manifest whose lesions, patients, copies and pixels hang together, by arithmetic alone."""
    at = range(n)
    frame = images(n).assign(
        label=[("a", "b", "a", "c")[number % 4] for number in at],
        lesion_id=[f"L{number * 7 % (n // 2)}" if number % 5 else "" for number in at],
        copy_group=[f"c{number % 9}" if number % 17 == 0 else "" for number in at],
        pixel_sha256=[f"p{number * 13 % (n - 50)}" for number in at],
        given_split=[("train", "train", "test")[number % 3] for number in at],
    )
    return frame.iloc[::-1]


@pytest.mark.parametrize(
    ("spec", "marks"),
    [
        (HOLDOUT, ("410b065e24d5", "81d1438cddd7")),
        (KFOLD, ("4e71cd05d516", "81d1438cddd7")),
        (GIVEN, ("dda39b31a6e5", "6d13f0779c41")),
    ],
)
def test_the_same_seed_gives_the_same_files_for_ever(
    tmp_path: Path, spec: SplitSpec, marks: tuple[str, str]
) -> None:
    """A split is part of every published figure: whoever makes it again must get the same bytes."""
    path = save_split(make_split(tangled(900), spec, name="s"), tmp_path)
    assert tuple(sha256_file(file)[:12] for file in (path, tmp_path / "s.excluded.csv")) == marks


def test_a_missing_file_and_a_wrong_spec_are_refused(tmp_path: Path) -> None:
    frame = images(30)
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        load_split(tmp_path / "none.csv", frame)
    path = save_split(make_split(frame, HOLDOUT, name="s"), tmp_path)
    beside = path.with_suffix(".json")
    beside.write_text(beside.read_text().replace('"seed"', '"sead"'))
    with pytest.raises(DataError, match="its spec is not valid"):
        load_split(path, frame)


def test_a_split_for_an_audit_may_lack_a_side(tmp_path: Path) -> None:
    frame = images(4)
    path = tmp_path / "mine.csv"
    path.write_text("image_id,split\ni00000,train\ni00001,test\n")
    rows, excluded = read_split_rows(path, frame, require_all_splits=False)
    assert rows["split"].tolist() == ["train", "test"]
    assert len(excluded) == 2
    for read in (read_split_rows, load_split):
        with pytest.raises(DataError, match="no image is in the validation split"):
            read(path, frame)
    path.write_text("image_id,split\n")
    with pytest.raises(DataError, match="no image is in any split"):
        read_split_rows(path, frame, require_all_splits=False)
    path.write_text("image_id,split\ni00000,train\ni00001,fold\n")
    with pytest.raises(DataError, match="split name other than fold"):
        read_split_rows(path, frame, require_all_splits=False)
