"""The manifest: what it refuses, what survives writing and reading, and which rows belong together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermkit import files
from dermkit.data.groups import GROUP_COLUMNS, id_groups, leakage_groups
from dermkit.data.manifest import (
    MANIFEST_COLUMNS,
    Dataset,
    LesionClass,
    check_manifest,
    load_dataset,
    manifest_chunks,
    save_dataset,
)
from dermkit.errors import DataError
from dermkit.files import sha256_file

CLASSES = (LesionClass("mel", "melanoma", "malignant"), LesionClass("nv", "nevus", "benign"))


def make_rows(n: int = 4, **columns: list[Any]) -> pd.DataFrame:
    base: dict[str, Any] = {name: [""] * n for name in MANIFEST_COLUMNS}
    base |= {
        "image_id": [f"a/{i}" for i in range(n)], "path": [f"a/{i}.png" for i in range(n)],
        "label": [("mel", "nv")[i % 2] for i in range(n)], "pixel_sha256": [f"{i:064x}" for i in range(n)],
        "file_sha256": ["f" * 64] * n, "width": [20] * n, "height": [10] * n,
    }  # fmt: skip
    return pd.DataFrame({**base, **columns})


def make_dataset(folder: Path, frame: pd.DataFrame | None = None) -> Dataset:
    frame = make_rows() if frame is None else frame
    return Dataset(folder, folder.parent / "pictures", "made", CLASSES, frame, "folder", {"warnings": []})


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("image_id", "", "row 3: empty image_id"),
        ("image_id", "a/0", "row 3: image_id repeats: 'a/0'"),
        ("path", "/etc/passwd", "row 3: not a relative path"),
        ("path", "a/../../x.png", "row 3: not a relative path"),
        ("path", "", "row 3: not a relative path"),
        ("path", "a/0.png", "row 3: path repeats"),
        ("label", "melanoma", "row 3: unknown label (the classes are mel, nv): 'melanoma'"),
        ("label", "", "row 3: unknown label"),
        ("given_split", "Train", "row 3: given_split is none of train, validation, test: 'Train'"),
        ("age", "-1", "row 3: age is not"),
        ("age", "1962", "row 3: age is not"),
        ("age", "nan", "row 3: age is not"),
        ("age", "old", "row 3: age is not"),
        ("pixel_sha256", "F" * 64, "row 3: not a SHA-256"),
        ("file_sha256", "f" * 63, "row 3: not a SHA-256"),
        ("width", 0, "row 3: width must be at least 1: 0"),
        ("height", -4, "row 3: height must be at least 1: -4"),
    ],
)
def test_one_wrong_value_is_refused_with_its_row(column: str, value: object, says: str) -> None:
    frame = make_rows()
    first, _, *rest = frame[column].tolist()
    frame[column] = pd.Series([first, value, *rest], dtype=object)
    with pytest.raises(DataError) as caught:
        check_manifest(frame, CLASSES)
    assert says in caught.value.message
    assert "1 problem:" in caught.value.message


def test_all_problems_are_listed_at_once() -> None:
    frame = make_rows(label=["mel", "nevus", "nv", "x"], age=["5", "5", "200", ""])
    with pytest.raises(DataError) as caught:
        check_manifest(frame, CLASSES)
    assert "3 problems" in caught.value.message
    assert all(part in caught.value.message for part in ("row 3: unknown", "row 5: unknown", "row 4: age"))


def test_a_long_list_is_cut_and_counted() -> None:
    with pytest.raises(DataError, match=r"500 problems[\s\S]*and 480 more"):
        check_manifest(make_rows(500, label=["x"] * 500), CLASSES)


def test_missing_columns_and_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="missing columns: age, sex"):
        check_manifest(make_rows().drop(columns=["age", "sex"]), CLASSES)
    with pytest.raises(DataError, match="nothing usable"):
        check_manifest(make_rows(0), CLASSES)


def test_a_lesion_of_two_patients_is_refused() -> None:
    frame = make_rows(lesion_id=["1", "1", "2", ""], patient_id=["anna", "bert", "bert", "bert"])
    with pytest.raises(DataError, match="lesion '1' belongs to 2 patients: 'anna', 'bert'"):
        check_manifest(frame, CLASSES)
    check_manifest(frame.assign(patient_id=["anna", "", "bert", "bert"]), CLASSES)  # unknown is no second patient


def test_class_names_must_be_distinct() -> None:
    with pytest.raises(DataError, match="repeat"):
        check_manifest(make_rows(), (*CLASSES, CLASSES[0]))


# Writing and reading -----------------------------------------------------------------------------------------------

# What breaks tables: quotes, separators, every line end, formulas, "NA", leading zeros and spaces, other scripts.
WORDS = st.text(st.sampled_from(list("a0 ,;\"'\n\r\t=+-@\u00e9e\u0301\u4e2d\\")), min_size=1, max_size=6)
NASTY = st.one_of(WORDS, st.sampled_from(["NA", "nan", "007", "1e5", "=1+1", " x ", "None", "TRUE"]))


@settings(max_examples=80, deadline=None)
@given(st.lists(NASTY, min_size=4, max_size=4), st.lists(NASTY, min_size=4, max_size=4))
def test_any_text_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], sites: list[str]
) -> None:
    paths = [f"{i}/{name}" for i, name in enumerate(names)]
    dataset = make_dataset(tmp_path_factory.mktemp("d"), make_rows(image_id=paths, path=paths, site=sites))
    save_dataset(dataset)
    loaded = load_dataset(dataset.folder)
    assert loaded.manifest["path"].tolist() == paths
    assert loaded.manifest["site"].tolist() == sites
    assert loaded.manifest_sha256 == dataset.manifest_sha256 == sha256_file(dataset.folder / "manifest.csv")


def test_a_data_set_comes_back_whole(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", make_rows(lesion_id=["L1", "L1", "L2", ""], age=["40", "", "0", "85"]))
    save_dataset(dataset)
    loaded = load_dataset(tmp_path / "d")
    pd.testing.assert_frame_equal(loaded.manifest, dataset.manifest[list(MANIFEST_COLUMNS)], check_dtype=False)
    assert (loaded.name, loaded.classes, loaded.importer, loaded.notes) == (
        "made",
        CLASSES,
        "folder",
        {"warnings": []},
    )
    assert loaded.class_names == ("mel", "nv")
    assert loaded.malignant_classes == ("mel",)
    assert loaded.image_path("a/2") == tmp_path / "pictures" / "a/2.png"
    with pytest.raises(DataError, match="no image 'a/9'"):
        loaded.image_path("a/9")


def test_only_location_json_knows_where_the_images_lie(tmp_path: Path) -> None:
    save_dataset(make_dataset(tmp_path / "d"))
    shared = [(tmp_path / "d" / name).read_text() for name in ("manifest.csv", "dataset.json")]
    assert not any(str(tmp_path) in text for text in shared)
    assert json.loads((tmp_path / "d" / "location.json").read_text()) == {
        "format": 2,
        "images": str(tmp_path / "pictures"),
        "masks": "",
        "dataset": "",
    }


def test_counts_are_in_dataset_json(tmp_path: Path) -> None:
    frame = make_rows(given_split=["train", "train", "test", "train"], lesion_id=["L1", "L1", "", "L2"])
    save_dataset(make_dataset(tmp_path / "d", frame))
    assert json.loads((tmp_path / "d" / "dataset.json").read_text())["counts"] == {
        "images": 4, "lesions": 2, "patients": 0, "per_class": {"mel": 2, "nv": 2},
        "given_split": {"train": {"mel": 1, "nv": 2}, "test": {"mel": 1, "nv": 0}},
    }  # fmt: skip


def test_a_wrong_manifest_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        save_dataset(make_dataset(tmp_path / "d", make_rows(label=["x"] * 4)))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("name", "before", "after", "says"),
    [
        ("dataset.json", '"format": 2', '"format": 3', "format 3"),
        ("dataset.json", '"malignant"', '"evil"', "malignancy 'evil'"),
        ("dataset.json", '"classes"', '"klasses"', "lacks something"),
        ("location.json", '"images"', '"where"', "lacks something"),
        ("dataset.json", "{", "[", "is not JSON"),
        ("manifest.csv", ",20,10", ",20.5,10", "row 2: '20.5'"),
        ("manifest.csv", ",20,10", ",,10", "width is not a whole number"),
        ("manifest.csv", "image_id,path", "id,path", "missing columns: image_id"),
        ("manifest.csv", "mel", "mle", "unknown label"),
        ("manifest.csv", "a/0,a/0.png", "a/0,../0.png", "not a relative path"),
    ],
)
def test_a_changed_folder_is_refused(tmp_path: Path, name: str, before: str, after: str, says: str) -> None:
    save_dataset(make_dataset(tmp_path / "d"))
    path = tmp_path / "d" / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path / "d")
    assert says in caught.value.message
    assert str(tmp_path / "d") in caught.value.message


@pytest.mark.parametrize("name", ["dataset.json", "manifest.csv", "location.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_dataset(make_dataset(tmp_path / "d"))
    (tmp_path / "d" / name).unlink()
    with pytest.raises(DataError, match=name):
        load_dataset(tmp_path / "d")


def test_the_hash_sees_values_and_order_and_nothing_else() -> None:
    first = make_dataset(Path("d"))
    assert replace(first, name="other", manifest=make_rows()).manifest_sha256 == first.manifest_sha256
    assert replace(first, manifest=make_rows()[::-1]).manifest_sha256 != first.manifest_sha256
    assert replace(first, manifest=make_rows(sex=["", "", "", "female"])).manifest_sha256 != first.manifest_sha256
    assert "".join(manifest_chunks(make_rows())).splitlines()[0] == ",".join(MANIFEST_COLUMNS)


def test_a_large_manifest_is_hashed_and_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows are 250 MB of text, which must never lie in memory whole: `benchmarks/scale.md` measures it."""
    dataset = make_dataset(tmp_path / "d", make_rows(30_001, site=["back, left"] * 30_001))
    parts = list(manifest_chunks(dataset.manifest))
    text = "".join(manifest_chunks(dataset.manifest))
    assert text == "".join(parts)
    assert [part.count("\n") for part in parts] == [1, 10_000, 10_000, 10_000, 1]
    save_dataset(dataset)
    assert (tmp_path / "d" / "manifest.csv").read_text() == text
    assert dataset.manifest_sha256 == sha256_file(tmp_path / "d" / "manifest.csv")


def test_one_carriage_return_quotes_every_part(tmp_path: Path) -> None:
    frame = make_rows(20_001, site=[""] * 20_000 + ["a\rb"])
    assert all(line.startswith('"') for part in manifest_chunks(frame) for line in part.split("\n")[:-1])
    save_dataset(make_dataset(tmp_path / "d", frame))
    assert load_dataset(tmp_path / "d").manifest["site"].iloc[-1] == "a\rb"


# Groups ------------------------------------------------------------------------------------------------------------


def test_groups_reach_through_a_third_row() -> None:
    frame = make_rows(
        6,
        lesion_id=["L1", "L1", "", "L2", "", ""],
        patient_id=["", "P", "P", "", "", ""],
        copy_group=["", "", "", "c", "c", ""],
    )
    assert id_groups(frame).tolist() == [0, 0, 0, 1, 1, 2]


def test_the_same_word_in_two_columns_is_no_link() -> None:
    frame = make_rows(3, lesion_id=["1", "", ""], patient_id=["", "1", ""], copy_group=["", "", "1"])
    assert len(set(id_groups(frame).tolist())) == 3


IDS = st.sampled_from(["", "", "x", "y", "z"])


@settings(deadline=None)
@given(st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=14), st.randoms(use_true_random=False))
def test_groups_are_the_connected_components(rows: list[tuple[str, str, str]], order: Any) -> None:
    n = len(rows)
    linked = np.array([[any(a and a == b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows])
    reach = np.linalg.matrix_power((linked | np.eye(n, dtype=bool)).astype(float), n) > 0
    frame = make_rows(n, **{name: [row[i] for row in rows] for i, name in enumerate(GROUP_COLUMNS)})
    found = id_groups(frame)
    assert np.array_equal(found[:, None] == found[None, :], reach)
    mixed = list(range(n))
    order.shuffle(mixed)
    assert np.array_equal(leakage_groups(frame.assign(pixel_sha256=[f"{row}" for row in range(n)])), found)
    by_pixels = frame.assign(pixel_sha256=frame["copy_group"], copy_group="")
    assert np.array_equal(leakage_groups(by_pixels), found), "identical pixels join rows as a copy group does"
    again = id_groups(frame.iloc[mixed])
    assert np.array_equal(again[:, None] == again[None, :], reach[np.ix_(mixed, mixed)])


@pytest.mark.parametrize("path", ["C:/a.png", "..\\a.png", "nul.png", "a.png:stream", "a./a.png"])
def test_a_path_that_leads_elsewhere_on_windows_is_refused_there(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = make_rows()
    frame["path"] = [path, *frame["path"].tolist()[1:]]
    check_manifest(frame, CLASSES)  # a plain file name elsewhere
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    with pytest.raises(DataError, match="row 2: not a relative path"):
        check_manifest(frame, CLASSES)
    check_manifest(make_rows(), CLASSES)
