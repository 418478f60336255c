"""Images are known by their bytes, by one rule for imports, archives and predictions; downloads as people have them."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pillow_heif
import pytest

from dermkit.data.importers.medmnist import DERMAMNIST_CLASSES
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.data.importers.table_rows import ImportOptions
from dermkit.errors import DataError
from dermkit.images.formats import image_kind
from dermkit.images.recognise import HEAD_BYTES, has_image_bytes
from dermkit.prediction.inputs import find_images
from made_images import FORMATS, encoded, save_noise, speckled

CAMERA_RAW = b"\0\0\0\x18ftypcrx \0\0\0\0" + bytes(3000)
OTHERS = {
    "notes.docx": b"PK\x03\x04" + bytes(40),
    "film.MOV": b"\0\0\0\x14ftypqt  " + bytes(40),
    "data.bin": bytes(500),
    "empty": b"",
    "labels.txt": b"a,b\n1,2\n",
    "page.html": b"<html>",
    "Icon\r": b"",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
}
"""Files beside photographs that are no images."""


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def jpeg(seed: int) -> bytes:
    return encoded(speckled(16, 12, seed), "JPEG")


def heic(seed: int) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(speckled(16, 12, seed)).save(buffer, format="HEIF")
    return buffer.getvalue()


def bring(root: Path, layout: str, **options: Any) -> ImportOutcome:
    return import_dataset(layout, root, out=root.parent / "out", options=ImportOptions(**options))


def refusals(outcome: ImportOutcome) -> dict[str, str]:
    return {item.path: item.reason for item in outcome.rejected}


def codes(outcome: ImportOutcome) -> set[str]:
    return {note["code"] for note in outcome.dataset.notes["warnings"]}


# One rule ---------------------------------------------------------------------------------------------------------

READ = ("a.jpg", "b.jfif", "c.JPE", "d.HEIC", "e.mpo", "f", "g.scan", "h.txt", "IMG.2024")
"""JPEGs, whatever they are called."""
TELEPHONES = ("i.heic", "j.jpg", "k.avif")
"""HEIC, HEIC and AVIF."""


def make_folder(root: Path) -> Path:
    """Write a class folder of JPEGs under odd names, images of other formats, and files that are none."""
    for seed, name in enumerate(READ):
        write(root / "nv" / name, jpeg(seed))
    for seed, name in enumerate(TELEPHONES, start=20):
        write(root / "nv" / name, heic(seed) if seed < 22 else encoded(speckled(16, 12, seed), "AVIF"))
    write(root / "nv" / "raw.cr3", CAMERA_RAW)
    write(root / "nv" / "moving.gif", b"GIF89a" + bytes(40))
    write(root / "nv" / "broken.jfif", b"nothing")
    write(root / "nv" / "dicom", bytes(128) + b"DICM" + bytes(20))
    save_noise(root / "mel" / "m.png", 99)
    for name, data in OTHERS.items():
        write(root / "nv" / name, data)
    return root


def test_import_and_predict_take_the_same_files(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "src")
    outcome = bring(root, "folder")
    read = sorted(path.removeprefix("nv/") for path in outcome.dataset.manifest["path"] if path.startswith("nv/"))
    assert read == sorted((*READ, *TELEPHONES))
    assert refusals(outcome) == {
        "nv/raw.cr3": "format_not_allowed", "nv/moving.gif": "format_not_allowed", "nv/dicom": "broken",
        "nv/broken.jfif": "not_an_image",
    }  # fmt: skip
    assert next(item.detail for item in outcome.rejected if item.path == "nv/raw.cr3").startswith("camera raw")
    found = {image.name for image in find_images([str(root)])}
    assert found == {*outcome.dataset.manifest["path"], *refusals(outcome)}
    assert [image.name for image in find_images([str(root / "nv" / "data.bin")])] == ["data.bin"]  # named itself


def test_an_archive_takes_the_same_files_as_a_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "src")
    of_folder = bring(root, "folder")
    archive = tmp_path / "zipped" / "src.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                packed.writestr(path.relative_to(root).as_posix(), path.read_bytes())
    of_archive = bring(archive, "folder")
    assert of_archive.dataset.manifest["path"].tolist() == of_folder.dataset.manifest["path"].tolist()
    assert refusals(of_archive) == refusals(of_folder)


def test_rows_find_images_of_any_ending(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "src")
    names = [*READ[:5], "f.jpg", "g.scan", "h", "IMG.2024", "m.png", "raw.cr3"]
    (root / "t.csv").write_text(
        "image,label\n" + "".join(f"{name},{'nv' if i % 2 else 'mel'}\n" for i, name in enumerate(names))
    )
    outcome = bring(root, "csv")
    assert len(outcome.dataset.manifest) == 10 - ("h" in refusals(outcome))
    reasons = refusals(outcome)
    assert reasons["nv/raw.cr3"] == "format_not_allowed"
    assert "missing" not in {reasons.get(name) for name in (*READ[:7], "IMG.2024", "m.png", "raw.cr3")}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_known_by_its_first_bytes(kind: str) -> None:
    assert image_kind(encoded(speckled(), kind)[:HEAD_BYTES]) == kind


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0$ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\0\0\0\x20ftypavif", "AVIF"), (CAMERA_RAW, "camera raw (CR3)"),
        (b"GIF87a", "GIF"), (b"PK\x03\x04", ""),
        (b"\0\0\0\x18ftypmp42", ""), (b"\0\0\1\0", ""), (b"\xff\x0a", ""), (b"BM text", ""), (b"", ""),
    ],
)  # fmt: skip
def test_foreign_images_are_told_from_other_files(head: bytes, kind: str) -> None:
    assert image_kind(head) == kind


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_nothing_but_a_regular_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not has_image_bytes(tmp_path / "pipe")
    assert not has_image_bytes(tmp_path)
    assert not has_image_bytes(tmp_path / "missing")


# Folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "{split}/{split}/{label}", "data/data/{split}/{label}", "{split}_set/{label}", "{split} images/{label}/{label}",
        "{label}/{split}", "{label}/{split}/{split}", "archive/{label}/{split}",
    ],
)  # fmt: skip
def test_doubled_folders_and_splits_below_classes(tmp_path: Path, form: str) -> None:
    for i, (split, label) in enumerate((s, c) for s in ("train", "test") for c in ("nv", "mel")):
        save_noise(tmp_path / "src" / form.format(split=split, label=label) / f"{i}.png", i)
    outcome = bring(tmp_path / "src", "folder")
    manifest = outcome.dataset.manifest
    assert sorted(zip(manifest["given_split"], manifest["label"], strict=True)) == [
        ("test", "mel"), ("test", "nv"), ("train", "mel"), ("train", "nv")
    ]  # fmt: skip
    assert not outcome.rejected


def test_a_class_folder_in_itself_is_one_class(tmp_path: Path) -> None:
    for i, label in enumerate(("nv", "mel")):
        save_noise(tmp_path / "src" / label / label / f"{i}.png", i)
    assert bring(tmp_path / "src", "folder").dataset.class_names == ("mel", "nv")


def test_the_folder_icons_of_macos_are_no_refused_images(tmp_path: Path) -> None:
    for i, label in enumerate(("nv", "mel")):
        save_noise(tmp_path / "src" / label / f"{i}.png", i)
        write(tmp_path / "src" / label / "Icon\r", b"")
        write(tmp_path / "src" / "@eaDir" / label / "thumb.jpg", jpeg(i))
    outcome = bring(tmp_path / "src", "folder")
    assert (outcome.rejected, outcome.dataset.class_names) == ([], ("mel", "nv"))


# Tables -----------------------------------------------------------------------------------------------------------

HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
HAM_ROWS = [f"HAM_{i},ISIC_{i:07d},{('nv', 'mel')[i % 2]},histo,50.0,male,back,vidir\n" for i in range(6)]


def test_ham10000_as_the_dataverse_gives_it(tmp_path: Path) -> None:
    """An archive with archives of images, the table without an ending, and the test set's table of the same columns."""
    source = tmp_path / "dataverse_files.zip"
    with zipfile.ZipFile(source, "w") as packed:
        for part in (1, 2):
            inner = tmp_path / "inner.zip"
            with zipfile.ZipFile(inner, "w") as images:
                for i in range(3 * part - 3, 3 * part):
                    images.writestr(f"ISIC_{i:07d}.jpg", jpeg(i))
            packed.write(inner, f"HAM10000_images_part_{part}.zip")
        packed.writestr("HAM10000_metadata", HAM + "".join(HAM_ROWS))
        packed.writestr("ISIC2018_Task3_Test_GroundTruth.csv", HAM + "HAM_9,ISIC_0000009,nv,histo,1,male,back,x\n")
        packed.writestr("README", "Read me, please.\nIt is no table\n")
    outcome = bring(source, "ham10000")
    assert len(outcome.dataset.manifest) == 6
    assert outcome.dataset.manifest["lesion_id"].tolist() == [f"HAM_{i}" for i in range(6)]


def test_ham10000_without_an_ending_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "src"
    for i in range(6):
        write(root / "HAM10000_images_part_1" / f"ISIC_{i:07d}.jpg", jpeg(i))
    (root / "HAM10000_metadata").write_text(HAM + "".join(HAM_ROWS))
    (root / "HAM10000_images_part_2.zip").write_bytes(b"PK\x03\x04")
    outcome = bring(root, "ham10000")
    assert len(outcome.dataset.manifest) == 6
    assert "archives" in codes(outcome)


def test_an_example_of_an_answer_is_no_truth(tmp_path: Path) -> None:
    root = tmp_path / "src"
    for i in range(6):
        write(root / "jpeg" / "train" / f"ISIC_{i:07d}.jpg", jpeg(i))
    rows = [f"ISIC_{i:07d},P{i},{('benign', 'malignant')[i % 2]},{i % 2}\n" for i in range(6)]
    (root / "train.csv").write_text("image_name,patient_id,benign_malignant,target\n" + "".join(rows))
    (root / "test.csv").write_text("image_name,patient_id\nISIC_0000009,P9\n")
    (root / "sample_submission.csv").write_text("image_name,target\nISIC_0052060,0\n")
    outcome = bring(root, "isic2020")
    assert outcome.dataset.manifest["label"].tolist() == ["benign", "malignant"] * 3
    assert bring(root, "csv").dataset.class_names == ("0", "1")


def make_rows(root: Path, header: str, rows: list[str], table: str = "t.csv") -> Path:
    for i in range(len(rows)):
        write(root / f"{i}.jpg", jpeg(i))
    (root / table).write_text(header + "".join(f"{row}\n" for row in rows))
    return root


def test_the_headerless_table_of_medmnist(tmp_path: Path) -> None:
    rows = ["TRAIN,0.jpg,0", "TRAIN,1.jpg,5", "VALIDATION,2.jpg,4", "TEST,3.jpg,5"]
    manifest = bring(make_rows(tmp_path / "src", "", rows, "dermamnist.csv"), "csv").dataset.manifest
    assert manifest["label"].tolist() == [DERMAMNIST_CLASSES[i] for i in (0, 5, 4, 5)]
    assert manifest["given_split"].tolist() == ["train", "train", "validation", "test"]


def test_other_tables_without_a_header(tmp_path: Path) -> None:
    outcome = bring(make_rows(tmp_path / "a" / "src", "", ["0.jpg;nv", "1.jpg;mel"]), "csv")
    assert outcome.dataset.manifest["label"].tolist() == ["nv", "mel"]
    assert "no_header" in codes(outcome)
    with pytest.raises(DataError, match="has no header, and 2 of its 3 columns could be the label"):
        bring(make_rows(tmp_path / "b" / "src", "", ["0.jpg,nv,benign", "1.jpg,mel,malignant"]), "csv")


@pytest.mark.parametrize(
    ("columns", "cells", "expected"),
    [
        ("is_valid", ("False", "True", "0", "1.0"), ["train", "validation", "train", "validation"]),
        (
            "is_valid,is_test",
            ("False,False", "True,False", "False,True", ","),
            ["train", "validation", "test", ""],
        ),
        ("split", ("Train", "val", "TEST", "training"), ["train", "validation", "test", "train"]),
        ("fold", ("0", "1", "2", "train"), ["", "", "", ""]),
    ],
)
def test_splits_as_flags_and_columns(
    tmp_path: Path, columns: str, cells: tuple[str, ...], expected: list[str]
) -> None:
    rows = [f"{i}.jpg,{('nv', 'mel')[i % 2]},{cell}" for i, cell in enumerate(cells)]
    outcome = bring(make_rows(tmp_path / "src", f"fname,labels,{columns}\n", rows), "csv")
    assert outcome.dataset.manifest["given_split"].tolist() == expected


def test_a_flag_that_is_neither_true_nor_false_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: is_valid is neither True nor False"):
        bring(make_rows(tmp_path / "src", "fname,label,is_valid\n", ["0.jpg,nv,True", "1.jpg,mel,2"]), "csv")


def test_columns_of_ids_that_nobody_named_are_read_where_they_are_ids(tmp_path: Path) -> None:
    """Columns `lesion` and `Patient ID` are what keeps photographs of one lesion together; a kind of lesion is not."""
    rows = [f"{i}.jpg,{('nv', 'mel')[i % 2]},{cell},P{i // 2}" for i, cell in enumerate(["L1", "L1", "NA", "L3"])]
    outcome = bring(make_rows(tmp_path / "a" / "src", "image,dx,lesion,Patient ID\n", rows), "csv")
    assert outcome.dataset.manifest["lesion_id"].tolist() == ["L1", "L1", "", "L3"]
    assert outcome.dataset.manifest["patient_id"].tolist() == ["P0", "P0", "P1", "P1"]
    texts = [note["text"] for note in outcome.dataset.notes["warnings"]]
    assert "The column lesion was read as the lesion_id." in texts
    assert not any(text.startswith("No lesion or patient ids") for text in texts)
    rows = [f"{i}.jpg,{('nv', 'mel')[i % 2]},flat,{i}.5" for i in range(4)]
    outcome = bring(make_rows(tmp_path / "b" / "src", "image,dx,lesion,subject\n", rows), "csv")
    assert set(outcome.dataset.manifest["lesion_id"]) == {""} == set(outcome.dataset.manifest["patient_id"])
    texts = [note["text"] for note in outcome.dataset.notes["warnings"]]
    assert any(text.endswith("If it holds ids, say --column lesion_id=lesion.") for text in texts)
    assert any(text.startswith("The column subject was not read") for text in texts)


def test_a_column_of_ids_that_the_command_names_is_the_one_that_is_read(tmp_path: Path) -> None:
    rows = [f"{i}.jpg,{('nv', 'mel')[i % 2]},L{i},M{i // 2}" for i in range(4)]
    source = make_rows(tmp_path / "src", "image,dx,lesion,mole\n", rows)
    outcome = bring(source, "csv", columns={"lesion_id": "mole"})
    assert outcome.dataset.manifest["lesion_id"].tolist() == ["M0", "M0", "M1", "M1"]
    assert "id_column" not in codes(outcome)
