"""Import: every layout, every refusal, nothing lost unsaid, and a page that shows it."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermkit.data.importers import open_images
from dermkit.data.importers.folders_and_csv import read_folder
from dermkit.data.importers.reader import extract_isic_id, image_ids
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.data.manifest import MANIFEST_COLUMNS, load_dataset
from dermkit.errors import DataError, ImageRejected, OutputError, RejectionReason, UsageError
from dermkit.images.decode import open_image


def draw(path: Path, seed: int | None = None, size: tuple[int, int] = (20, 16)) -> Path:
    """Save a picture of noise; without a seed, one that no other path has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = seed if seed is not None else int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_all(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        draw(root / name)
    return root


def bring(root: Path, layout: str = "folder", **malignancy: str) -> ImportOutcome:
    return import_dataset(layout, root, out=root.parent / "made", malignancy=malignancy)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def codes(outcome: ImportOutcome) -> dict[str, int]:
    return {item["code"]: item["n"] for item in outcome.dataset.notes["warnings"]}


def refusals(outcome: ImportOutcome) -> dict[str, str]:
    return {item.path: item.reason for item in outcome.rejected}


# Folder layouts ----------------------------------------------------------------------------------------------------

FLAT = ("benign/a.png", "benign/b.png", "malignant/a.png")


@pytest.mark.parametrize(
    ("train", "test", "train_is", "test_is"),
    [
        ("train", "test", "train", "test"),
        ("Train", "Test", "train", "test"),
        ("TRAINING", "val", "train", "validation"),
        ("training", "Valid", "train", "validation"),
        ("train", "Validation", "train", "validation"),
    ],
)
def test_split_folders_are_read_in_any_case(
    tmp_path: Path, train: str, test: str, train_is: str, test_is: str
) -> None:
    root = draw_all(tmp_path / "src", [f"{split}/{name}" for split in (train, test) for name in FLAT])
    frame = bring(root).dataset.manifest
    given = dict(zip(frame["image_id"], frame["given_split"], strict=True))
    assert given[f"{train}/benign/b"] == train_is
    assert given[f"{test}/malignant/a"] == test_is
    assert len(frame) == 6


def test_classes_without_split_folders(tmp_path: Path) -> None:
    frame = bring(draw_all(tmp_path / "src", FLAT)).dataset.manifest
    assert frame["image_id"].tolist() == ["benign/a", "benign/b", "malignant/a"]
    assert frame["label"].tolist() == ["benign", "benign", "malignant"]
    assert set(frame["given_split"]) == {""}


@pytest.mark.parametrize("inner", ["", "train"])
def test_a_single_folder_around_everything_changes_nothing(tmp_path: Path, inner: str) -> None:
    plain = draw_all(tmp_path / "plain" / "src" / inner, FLAT)
    draw(tmp_path / "plain" / "src" / "test" / "benign" / "z.png") if inner else None
    packed = tmp_path / "packed" / "src" / "melanoma_set"
    shutil.copytree(tmp_path / "plain" / "src", packed)
    (packed.parent / "__MACOSX").mkdir()
    (packed.parent / "readme.txt").write_text("about")
    first = bring(plain if not inner else plain.parent).dataset.manifest
    pd.testing.assert_frame_equal(bring(packed.parent).dataset.manifest, first)


def test_one_class_is_not_mistaken_for_a_wrapper(tmp_path: Path) -> None:
    frame = bring(draw_all(tmp_path / "src", ["nevus/a.png", "nevus/b.png"])).dataset.manifest
    assert frame["label"].tolist() == ["nevus", "nevus"]
    assert frame["image_id"].tolist() == ["nevus/a", "nevus/b"]


def test_what_systems_leave_behind_is_ignored(tmp_path: Path) -> None:
    root = draw_all(
        tmp_path / "src", [*FLAT, "__MACOSX/benign/._a.png", ".hidden/x.png", "benign/.a.png", "benign/._b.png"]
    )
    for name in ("Thumbs.db", "benign/Thumbs.db", "benign/.DS_Store", "desktop.ini"):
        (root / name).write_bytes(b"x")
    outcome = bring(root)
    assert len(outcome.dataset.manifest) == 3
    assert outcome.rejected == []
    assert "other_files" not in codes(outcome)


def test_images_outside_class_folders_are_listed(tmp_path: Path) -> None:
    names = ["train/mel/a.png", "train/mel/deep/b.png", "train/c.png", "d.png", "masks/e.png", "masks/x/f.png"]
    outcome = bring(draw_all(tmp_path / "src", names))
    assert outcome.dataset.manifest["image_id"].tolist() == ["train/mel/a"]
    assert refusals(outcome) == dict.fromkeys(names[1:], "misplaced")
    assert codes(outcome)["beside_splits"] == 2


def test_other_files_and_empty_folders_are_told(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    (root / "benign" / "note.txt").write_text("x")
    (root / "benign" / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    (root / "benign" / "scan.dcm").write_text("x")
    (root / "vascular").mkdir()
    outcome = bring(root)
    assert refusals(outcome) == {"benign/scan.dcm": "not_an_image"}
    assert codes(outcome)["other_files"] == 2
    assert codes(outcome)["empty_folder"] == 0
    assert outcome.dataset.class_names == ("benign", "malignant")


def test_labels_keep_spaces_and_case(tmp_path: Path) -> None:
    outcome = bring(draw_all(tmp_path / "src", ["Basal Cell  Carcinoma/a.png", "=cmd()/b.png"]))
    assert outcome.dataset.class_names == ("=cmd()", "Basal Cell  Carcinoma")


def test_one_class_in_two_spellings_is_one_class_spelt_as_in_training(tmp_path: Path) -> None:
    composed, split_up = "nævus é", unicodedata.normalize("NFD", "nævus é")
    names = ["Test/Nevus/a.png", "Train/nevus/a.png", f"Test/{split_up}/b.png", f"Train/{composed}/b.png"]
    outcome = bring(draw_all(tmp_path / "src", names))
    assert outcome.dataset.class_names == ("nevus", composed)
    assert codes(outcome)["spellings"] == 2
    assert outcome.dataset.manifest["path"].tolist() == sorted(names)  # paths keep their bytes


def test_names_that_look_alike_stay_two_images(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "mel/café.png") for form in ("NFC", "NFD")]
    outcome = bring(draw_all(tmp_path / "src", names))
    assert sorted(outcome.dataset.manifest["path"]) == sorted(names)
    assert outcome.dataset.manifest["image_id"].nunique() == 2
    assert codes(outcome)["unicode_names"] == 2


def test_ids_keep_their_ending_where_they_would_clash() -> None:
    paths = ["a/x.jpg", "a/x.png", "a/y.jpg", "b/x.jpg", "c/x.jpg", "c/x.png", "c/x.jpg.png"]
    assert image_ids(paths) == ["a/x.jpg", "a/x.png", "a/y", "b/x", "c/x.jpg", "c/x.png", "c/x.jpg.png"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("mel/ISIC_0024306.jpg", "ISIC_0024306"),
        ("mel/ISIC_0000000_downsampled.jpg", "ISIC_0000000"),
        ("mel/isic_0024306.jpg", "ISIC_0024306"),
        ("mel/copy of ISIC_0024306.jpg", "ISIC_0024306"),
        ("ISIC_0024306/photo.jpg", ""),
        ("mel/ISIC_00243061.jpg", ""),
        ("mel/XISIC_0024306.jpg", ""),
    ],
)
def test_isic_ids(path: str, found: str) -> None:
    assert extract_isic_id(path) == found


def test_hostile_names_come_back_from_the_tables(tmp_path: Path) -> None:
    names = ["mel/=1+1.png", "mel/a,b\n\"c\".png", "mel/ x .png", "mel/-@+.png"]  # fmt: skip
    root = draw_all(tmp_path / "src", names)
    (root / "mel" / "=bad\n,.png").write_bytes(b"")
    draw(root / "mel" / "d.png").rename(root / "mel" / "d\rd.png")
    outcome = bring(root)
    assert load_dataset(tmp_path / "made").manifest["path"].tolist() == sorted(names)
    rows = read_rows(tmp_path / "made" / "refused.csv")
    assert [(row["path"], row["reason"]) for row in rows] == [
        ("mel/=bad\n,.png", "empty"),
        ("mel/d\\rd.png", "bad_name"),
    ]
    assert len(outcome.rejected) == 2


def test_a_name_that_is_no_utf8_is_refused_and_listed(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    try:
        shutil.copy(os.fsencode(root / "benign/a.png"), os.fsencode(root / "benign") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    outcome = bring(root)
    assert refusals(outcome) == {"benign/\\udcff.png": "bad_name"}
    assert len(outcome.dataset.manifest) == 3


# Links and things that are no files ---------------------------------------------------------------------------------


def test_links_lead_nowhere(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    outside = draw_all(tmp_path / "private", ["p.png", "x/q.png"])
    (root / "benign" / "out.png").symlink_to(outside / "p.png")
    (root / "benign" / "inside.png").symlink_to("a.png")
    (root / "benign" / "gone.png").symlink_to("nothing.png")
    (root / "benign" / "self.png").symlink_to("self.png")
    (root / "benign" / "loop").symlink_to(root)
    (root / "other").symlink_to(outside)
    outcome = bring(root)
    found = refusals(outcome)
    assert found.pop("benign/self.png") in ("missing", "unreadable")
    assert found == {
        "benign/out.png": "link_not_followed", "benign/loop": "link_not_followed", "other": "link_not_followed",
        "benign/gone.png": "missing",
    }  # fmt: skip
    assert outcome.dataset.manifest["image_id"].tolist() == [
        "benign/a",
        "benign/b",
        "benign/inside",
        "malignant/a",
    ]
    assert str(tmp_path) not in (tmp_path / "made" / "refused.csv").read_text()


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    os.mkfifo(root / "benign" / "pipe.png")
    assert refusals(bring(root)) == {"benign/pipe.png": "unreadable"}


def test_the_source_may_hold_the_data_set_folder(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src" / "packed", [f"train/{name}" for name in FLAT]).parent
    first, again = (import_dataset("folder", root, out=root / "made") for _ in range(2))
    assert again.dataset.manifest_sha256 == first.dataset.manifest_sha256


# Images that are refused --------------------------------------------------------------------------------------------


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (20, 16), colour) for colour in ("red", "blue")]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def bomb() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 16)).save(stream, "BMP")
    data = bytearray(stream.getvalue())
    data[18:26] = (100_000).to_bytes(4, "little") * 2
    return bytes(data)


def test_hostile_images_are_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    whole = (root / "benign" / "a.png").read_bytes()
    planted = {
        "zero.jpg": b"", "cut.png": whole[: len(whole) // 2], "text.jpg": b"patient,diagnosis\n", "bomb.bmp": bomb(),
        "animated.png": animated(),
    }  # fmt: skip
    for name, data in planted.items():
        (root / "malignant" / name).write_bytes(data)
    outcome = bring(root)
    assert refusals(outcome) == {
        "malignant/zero.jpg": "empty", "malignant/cut.png": "truncated", "malignant/text.jpg": "not_an_image",
        "malignant/bomb.bmp": "too_large", "malignant/animated.png": "animated",
    }  # fmt: skip
    assert len(outcome.dataset.manifest) == 3
    assert [row["path"] for row in read_rows(tmp_path / "made" / "refused.csv")] == sorted(refusals(outcome))
    assert outcome.dataset.notes["refused"]["n"] == 5
    page = (tmp_path / "made" / "overview.html").read_text()
    assert all(f"malignant/{name}" in page for name in planted)


def test_a_class_of_which_nothing_remains_is_no_class(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    (root / "malignant" / "a.png").write_bytes(b"")
    assert bring(root).dataset.class_names == ("benign",)


def test_nothing_usable_is_an_error_and_still_listed(tmp_path: Path) -> None:
    (tmp_path / "src" / "mel").mkdir(parents=True)
    (tmp_path / "src" / "mel" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"nothing usable: every image was refused \(empty 1\)") as caught:
        bring(tmp_path / "src")
    assert caught.value.exit_code == 3
    assert "refused.csv" in caught.value.outcome
    assert len(read_rows(tmp_path / "made" / "refused.csv")) == 1
    assert not (tmp_path / "made" / "manifest.csv").exists()


@pytest.mark.parametrize("names", [[], ["a.png"], ["x/y/z/a.png"]])
def test_a_folder_without_class_folders_is_an_error(tmp_path: Path, names: list[str]) -> None:
    root = tmp_path / "src"
    root.mkdir()
    draw_all(root, names)
    with pytest.raises(DataError, match="nothing usable") as caught:
        bring(root)
    assert caught.value.exit_code == 3
    assert "<class>" in caught.value.remedy
    assert all(Path(name).name in caught.value.message for name in names)


def test_a_source_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        bring(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a folder"):
        bring(draw(tmp_path / "a.png"))


def test_an_output_that_cannot_be_written_is_refused_before_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    (tmp_path / "file").write_text("x")
    monkeypatch.delattr(open_images, "open_image")
    with pytest.raises(OutputError):
        import_dataset("folder", root, out=tmp_path / "file" / "made")


# What is written ----------------------------------------------------------------------------------------------------


def test_rows_hold_hashes_sizes_and_nothing_made_up(tmp_path: Path) -> None:
    root = tmp_path / "src"
    draw(root / "mel" / "ISIC_0000001.png", size=(31, 17))
    outcome = bring(draw_all(root, FLAT))
    row = outcome.dataset.manifest.set_index("image_id").loc["mel/ISIC_0000001"]
    image = open_image(root / "mel" / "ISIC_0000001.png")
    assert (row["pixel_sha256"], row["file_sha256"]) == (image.pixel_sha256, image.file_sha256)
    assert (row["width"], row["height"], row["isic_id"]) == (31, 17, "ISIC_0000001")
    unknown = [
        "lesion_id",
        "patient_id",
        "source",
        "licence",
        "attribution",
        "age",
        "sex",
        "site",
        "skin_type",
        "copy_group",
    ]
    assert all(row[name] == "" for name in unknown)
    assert outcome.dataset.name == "made"
    assert list(load_dataset(tmp_path / "made").manifest.columns) == list(MANIFEST_COLUMNS)


def test_the_same_images_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{label}/{i}.png" for label in ("mel", "nv") for i in range(40)]
    root = draw_all(tmp_path / "src", names)
    import_dataset("folder", root, out=tmp_path / "one" / "made")
    monkeypatch.setattr(open_images, "MAX_THREADS", 1)
    monkeypatch.setattr(open_images, "_IMAGES_PER_TASK", 7)
    import_dataset("folder", draw_all(tmp_path / "src", reversed(names)), out=tmp_path / "two" / "made")
    for name in ("manifest.csv", "dataset.json", "refused.csv", "overview.html"):
        assert (tmp_path / "one/made" / name).read_bytes() == (tmp_path / "two/made" / name).read_bytes(), name


def test_no_absolute_path_travels(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    (root / "benign" / "gone.png").symlink_to("nothing.png")
    bring(root)
    for path in (tmp_path / "made").iterdir():
        assert (str(tmp_path) in path.read_text()) == (path.name == "location.json"), path.name


def test_progress_counts_every_image_and_may_stop_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_all(tmp_path / "src", [f"mel/{i}.png" for i in range(60)])
    seen: list[tuple[int, int]] = []
    import_dataset("folder", root, out=tmp_path / "made", on_progress=lambda *at: seen.append(at))
    assert seen == [(i + 1, 60) for i in range(60)]

    opened: list[str] = []

    def count(path: Path, *, name: str) -> object:
        opened.append(name)
        return open_image(path, name=name)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(open_images, "open_image", count)
    monkeypatch.setattr(open_images, "MAX_THREADS", 1)
    monkeypatch.setattr(open_images, "_IMAGES_PER_TASK", 1)
    before = (tmp_path / "made" / "manifest.csv").read_bytes()
    draw(root / "mel" / "new.png")
    with pytest.raises(KeyboardInterrupt):
        import_dataset("folder", root, out=tmp_path / "made", on_progress=stop)
    assert len(opened) < 61
    assert (tmp_path / "made" / "manifest.csv").read_bytes() == before


# Classes and warnings -----------------------------------------------------------------------------------------------


def test_the_malignancy_table_can_be_overruled(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", ["akiec/a.png", "nv/a.png", "odd/a.png"])
    plain, changed = bring(root), bring(root, akiec="malignant", odd="benign")
    assert [item.malignancy for item in plain.dataset.classes] == ["indeterminate", "benign", "indeterminate"]
    assert [item.malignancy for item in changed.dataset.classes] == ["malignant", "benign", "benign"]
    assert codes(plain)["unknown_class"] == 1
    assert "unknown_class" not in codes(changed)
    assert changed.dataset.malignant_classes == ("akiec",)
    assert "ISIC Archive" in plain.dataset.notes["malignancy_source"]
    assert "set by hand: akiec, odd" in changed.dataset.notes["malignancy_source"]
    assert "set by hand: akiec, odd" in (tmp_path / "made" / "overview.html").read_text()


def test_wrong_words_are_usage_errors(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    with pytest.raises(UsageError, match="did you mean `malignant`"):
        bring(root, malignat="malignant")
    with pytest.raises(UsageError, match="benign=harmless"):
        bring(root, benign="harmless")
    with pytest.raises(UsageError, match="unknown layout 'folders'") as caught:
        bring(root, "folders")
    assert "ham10000" in caught.value.remedy
    assert not (tmp_path / "made" / "manifest.csv").exists()


def test_copies_and_contradictions_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "src"
    for name in ("train/mel/a.png", "train/nv/a.png", "test/nv/b.png", "train/mel/c.png", "train/mel/d.png"):
        draw(root / name, seed={"a": 1, "b": 1, "c": 2, "d": 2}[Path(name).stem])
    for name in ("train/nv/ISIC_0000001.png", "test/nv/ISIC_0000001.png", "test/mel/e.png", "train/nv/f.png"):
        draw(root / name)
    found = codes(bring(root))
    assert found["contradictory_copies"] == 3
    assert found["copies_across"] == 3
    assert found["copies"] == 5
    assert found["isic_across"] == 2
    assert "isic_labels" not in found
    assert found["no_groups"] == 9


def test_a_class_of_one_image_is_told(tmp_path: Path) -> None:
    assert codes(bring(draw_all(tmp_path / "src", FLAT)))["one_image_class"] == 1


def test_what_the_gate_decided_about_pixels_is_counted(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    Image.fromarray(np.full((9, 12, 4), 90, np.uint8)).save(root / "benign" / "clear.png")
    outcome = bring(root)
    assert codes(outcome)["pixels"] == 1
    assert "Alpha composited on white." in (tmp_path / "made" / "overview.html").read_text()


def test_splits_of_an_earlier_manifest_are_told(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    splits = tmp_path / "made" / "splits"
    ids = [f"{image_id},train,\n" for image_id in bring(root).dataset.manifest["image_id"]]
    splits.mkdir()
    (splits / "holdout.csv").write_text("image_id,split,fold\n" + "".join(ids))
    (splits / "holdout.excluded.csv").write_text("image_id,reason\n")
    assert "old_splits" not in codes(bring(root))
    draw(root / "benign" / "new.png")
    with pytest.raises(UsageError, match="would undo the split holdout"):  # without being asked to
        bring(root)
    out = tmp_path / "made"
    for _ in range(2):  # a repeated import says what the first one said
        assert "old_splits" in codes(import_dataset("folder", root, out=out, replace_earlier=True))


def test_what_was_accepted_and_dropped_for_an_earlier_manifest_is_told_and_kept_aside(tmp_path: Path) -> None:
    root, out = draw_all(tmp_path / "src", FLAT), tmp_path / "made"
    assert "void_acceptances" not in codes(bring(root))
    facts, dropped = out / "dataset.json", out / "audit" / "dropped.csv"
    accepted = {"accepted": {"DA011": {}, "DA020": {}}, "accepted_external": {"other": {"DA081": {}}}}
    facts.write_text(json.dumps({**json.loads(facts.read_text()), **accepted}))
    dropped.parent.mkdir()
    dropped.write_text("image_id,code,reason\n")
    outcome = bring(root)
    assert outcome.retained == ("3 acceptances of findings (DA011, DA020, DA081)",)
    assert load_dataset(out).notes["accepted"] == accepted["accepted"]  # the manifest is the same
    assert dropped.is_file()
    draw(root / "benign" / "new.png")
    with pytest.raises(UsageError, match=r"would undo 3 acceptances of findings \(DA011, DA020, DA081\)"):
        bring(root)
    for _ in range(2):
        outcome = import_dataset("folder", root, out=out, replace_earlier=True)
        notes = {item["code"]: item["text"] for item in outcome.dataset.notes["warnings"]}
        assert notes["void_acceptances"].startswith("3 acceptances of the earlier manifest are void")
        assert "DA011, DA020, DA081" in notes["void_acceptances"]
        assert not dropped.exists()
        assert (out / "audit" / "before-import" / "dropped.csv").is_file()
    assert "accepted" not in load_dataset(out).notes


@pytest.mark.parametrize("text", ["{", '{"format": 1, "accepted": 3, "accepted_against": [1]}'])
def test_a_broken_dataset_json_is_written_anew(tmp_path: Path, text: str) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    bring(root)
    (tmp_path / "made" / "dataset.json").write_text(text)
    assert "void_acceptances" not in codes(bring(root))


# HAM10000 -----------------------------------------------------------------------------------------------------------

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
HAM_ROWS = (
    "HAM_0000001,ISIC_0024306,nv,histo,80.0,male,back",
    "HAM_0000001,ISIC_0024307,nv,histo,80.0,male,back",
    "HAM_0000002,ISIC_0024308,mel,follow_up,,unknown,unknown",
    "HAM_0000003,ISIC_0024309,akiec,consensus,0.0,female,face",
)


def make_ham(root: Path, rows: Iterable[str] = HAM_ROWS, folders: tuple[str, str] = ("part_1", "part_2")) -> Path:
    rows = list(rows)
    for index, row in enumerate(rows):
        draw(root / folders[index % 2] / f"{row.split(',')[1]}.jpg")
    (root / "HAM10000_metadata.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return root


@pytest.mark.parametrize("folders", [("part_1", "part_2"), ("images", "images"), (".", "."), ("a/b", "a/c")])
@pytest.mark.parametrize("wrapped", [False, True])
def test_ham10000_wherever_its_images_lie(tmp_path: Path, folders: tuple[str, str], wrapped: bool) -> None:
    make_ham(tmp_path / "src" / ("ham" if wrapped else ""), folders=folders)
    outcome = bring(tmp_path / "src", "ham10000")
    frame = outcome.dataset.manifest.set_index("isic_id").sort_index()
    assert frame["label"].tolist() == ["nv", "nv", "mel", "akiec"]
    assert frame["lesion_id"].tolist() == ["HAM_0000001", "HAM_0000001", "HAM_0000002", "HAM_0000003"]
    assert frame["age"].tolist() == ["80", "80", "", "0"]
    assert frame["sex"].tolist() == ["male", "male", "", "female"]
    assert frame["site"].tolist() == ["back", "back", "", "face"]
    assert outcome.rejected == []
    assert "other_files" not in codes(outcome)


def test_ham10000_never_tells_how_a_diagnosis_was_confirmed(tmp_path: Path) -> None:
    bring(make_ham(tmp_path / "src"), "ham10000")
    text = (tmp_path / "made" / "manifest.csv").read_text()
    assert not any(word in text for word in ("dx_type", "histo", "follow_up", "consensus"))


def test_ham10000_is_known_with_licence_and_defects(tmp_path: Path) -> None:
    outcome = bring(make_ham(tmp_path / "src"), "ham10000")
    assert outcome.dataset.name == "made"
    assert set(outcome.dataset.manifest["licence"]) == {"CC BY-NC 4.0 or CC BY-NC-SA 4.0 (sources differ)"}
    assert outcome.dataset.notes["archive"] == "ISIC Archive"
    page = (tmp_path / "made" / "overview.html").read_text()
    assert "10.1038/sdata.2018.161" in page
    assert "of 10,015 published" in page
    assert "68.3 % of its melanomas" in page


def test_a_missing_image_and_an_unnamed_image_are_listed(tmp_path: Path) -> None:
    root = make_ham(tmp_path / "src")
    (root / "part_1" / "ISIC_0024308.jpg").unlink()
    draw(root / "part_2" / "ISIC_0099999.jpg")
    outcome = bring(root, "ham10000")
    assert refusals(outcome) == {"ISIC_0024308": "missing", "part_2/ISIC_0099999.jpg": "no_metadata"}
    assert codes(outcome)["no_metadata"] == 1
    assert len(outcome.dataset.manifest) == 3


def test_every_unknown_dx_and_repeated_id_is_listed(tmp_path: Path) -> None:
    rows = [*HAM_ROWS, "HAM_9,ISIC_0024310,mle,,,,", "HAM_9,ISIC_0024311,,,,,", "HAM_9,ISIC_0024306,nv,,,,"]
    with pytest.raises(DataError) as caught:
        bring(make_ham(tmp_path / "src", rows), "ham10000")
    assert "3 problems" in caught.value.message
    for part in (
        "row 6: unknown label 'mle'",
        "row 7: the label is empty or unknown",
        "row 8: image repeats that of row 2",
    ):
        assert part in caught.value.message


def test_a_wrong_age_stops_no_import(tmp_path: Path) -> None:
    rows = [HAM_ROWS[0].replace("80.0", "1962"), *HAM_ROWS[1:]]
    assert rows[0] != HAM_ROWS[0]
    assert codes(bring(make_ham(tmp_path / "src", rows), "ham10000"))["unreadable_age"] == 1


def test_one_lesion_under_two_labels_is_told(tmp_path: Path) -> None:
    rows = [*HAM_ROWS, "HAM_0000001,ISIC_0024310,mel,histo,80.0,male,back"]
    outcome = bring(make_ham(tmp_path / "src", rows), "ham10000")
    assert codes(outcome)["lesion_labels"] == 3


def test_two_files_for_one_row_must_be_the_same(tmp_path: Path) -> None:
    root = make_ham(tmp_path / "src")
    copy = root / "copies" / "ISIC_0024306.jpg"
    copy.parent.mkdir()
    shutil.copy(root / "part_1" / "ISIC_0024306.jpg", copy)
    assert codes(bring(root, "ham10000"))["second_copies"] == 1
    draw(copy, seed=9)
    with pytest.raises(DataError, match=r"copies/ISIC_0024306\.jpg"):
        bring(root, "ham10000")


def test_ham10000_needs_one_table_and_its_images(tmp_path: Path) -> None:
    root = make_ham(tmp_path / "src")
    (root / "hmnist.csv").write_text("pixel0000,label\n1,2\n")
    assert codes(bring(root, "ham10000"))["other_files"] == 1
    shutil.copy(root / "HAM10000_metadata.csv", root / "copy.csv")
    assert codes(bring(root, "ham10000"))["other_tables"] == 1  # the one with the published name is read, and said
    (root / "HAM10000_metadata.csv").rename(root / "another.csv")
    with pytest.raises(DataError, match=r"found: another\.csv, copy\.csv"):
        bring(root, "ham10000")
    for name in ("another.csv", "copy.csv"):
        (root / name).unlink()
    with pytest.raises(DataError, match="found: none"):
        bring(root, "ham10000")
    (root / "t.csv").write_text(f"\ufeff{HEADER}\nHAM_1,ISIC_0000001,nv,histo,1,male,back\n")
    with pytest.raises(DataError, match="nothing usable: none of the 1 images"):
        bring(root, "ham10000")
    (root / "t.csv").write_bytes(b"\xff\xfe\x00lesion")
    with pytest.raises(DataError, match="cannot be read as a table"):
        bring(root, "ham10000")


# The page -----------------------------------------------------------------------------------------------------------


def test_the_page_is_one_offline_file_without_exif(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", FLAT)
    exif = Image.Exif()
    exif[0x010E] = "SECRET PATIENT NAME"
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(root / "benign" / "x.jpg", exif=exif)
    bring(root)
    page = (tmp_path / "made" / "overview.html").read_text()
    assert "Research use only. Not a medical device." in page
    assert re.findall(r"(?:src|href)=\"(?!data:image/jpeg;base64,)", page) == []
    assert re.search(r"https?:|<script|url\(|@import", page) is None
    assert page.count("<img ") == 4
    for data in re.findall(r"base64,([^\"]+)", page):
        decoded = base64.b64decode(data)
        assert b"SECRET" not in decoded
        assert not dict(Image.open(io.BytesIO(decoded)).getexif())


def test_names_on_the_page_are_text_not_markup(tmp_path: Path) -> None:
    root = draw_all(tmp_path / "src", ['<b>x<b>/a"onerror=alert(1).png', "<script>/a.png"])
    (root / "<script>" / "<img src=x>.png").write_bytes(b"")
    bring(root)
    page = (tmp_path / "made" / "overview.html").read_text()
    assert "<script>" not in page
    assert "<b>x<b>" not in page
    assert "&lt;script&gt;" in page
    assert "<img src=x>" not in page
    assert '"onerror' not in page


def test_the_page_stays_small_and_shows_counts(tmp_path: Path) -> None:
    classes = [f"class {i:03d}" for i in range(300)]
    root = draw_all(tmp_path / "src", [f"{name}/a.png" for name in classes])
    for i in range(150):
        (root / "class 000" / f"bad{i:03d}.jpg").write_bytes(b"")
    bring(root)
    page = (tmp_path / "made" / "overview.html").read_text()
    assert len(page.encode()) < 5_000_000
    assert page.count("<img ") == 240
    assert all(f">{name}<" in page for name in classes)
    assert "bad099" in page
    assert "bad100" not in page
    assert "and 50 more" in page


def test_metadata_is_counted_on_the_page(tmp_path: Path) -> None:
    bring(make_ham(tmp_path / "src"), "ham10000")
    page = re.sub(r"<[^>]+>", " ", (tmp_path / "made" / "overview.html").read_text())
    words = " ".join(page.split())
    assert "0 to 9 1 80 to 89 2 Not given: 1 image." in words
    assert "Sex male 2 female 1 Not given: 1 image." in words
    assert "Photographs per lesion 1 2 lesions 2 1 lesion" in words
    assert "Sizes (width x height, pixels) 20 x 16 4 images" in words


def test_pictures_that_vanished_leave_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path, *, name: str) -> object:
        raise ImageRejected(name, RejectionReason.MISSING)

    monkeypatch.setattr("dermkit.data.importers.overview_page.open_image", gone)
    bring(draw_all(tmp_path / "src", FLAT))
    assert (tmp_path / "made" / "overview.html").read_text().count("<img ") == 0


def test_reading_opens_no_image(tmp_path: Path) -> None:
    (tmp_path / "src" / "mel").mkdir(parents=True)
    (tmp_path / "src" / "mel" / "a.jpg").write_bytes(b"")
    assert read_folder(tmp_path / "src").frame["path"].tolist() == ["mel/a.jpg"]
