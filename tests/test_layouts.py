"""Layouts that come with tables: known answers, everything wrong listed by row, ids joined back, the commands."""

import csv
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import Cli, Invoke
from dermkit.audit.checks.finding import PlannedUse
from dermkit.cli.data import LayoutName, SchemeName, UseName
from dermkit.data.importers import run
from dermkit.data.importers.run import ImportOutcome, import_dataset
from dermkit.data.importers.table_rows import ImportOptions
from dermkit.data.manifest import load_dataset
from dermkit.errors import DataError, UsageError
from dermkit.recipes.schema import Scheme

ISIC = [f"ISIC_{number:07d}" for number in range(1, 10)]


def draw(path: Path) -> Path:
    """Save a picture that no other file name has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(path.name.encode(), "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make(root: Path, images: Iterable[str], **tables: str) -> Path:
    """Write pictures, and tables named by keyword."""
    for name in images:
        draw(root / name)
    root.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    return root


def bring(
    layout: str,
    root: Path,
    columns: Mapping[str, str] | None = None,
    *,
    join: Iterable[Path] = (),
    **options: object,
) -> ImportOutcome:
    said = ImportOptions(columns or {}, options.get("table"), options.get("images"), str(options.get("label", "")))  # type: ignore[arg-type]
    made = (root.parent if root.is_dir() or root.suffix == ".zip" else root.parent.parent) / "made"
    return import_dataset(layout, root, out=made, options=said, metadata_tables=list(join))


def import_from(file: Path, out: Path) -> ImportOutcome:
    return import_dataset("csv", file, out=out, options=ImportOptions(COLUMNS))


def table(outcome: ImportOutcome, *columns: str) -> list[tuple[str, ...]]:
    frame = outcome.dataset.manifest.sort_values("path")
    return list(frame[list(columns)].itertuples(index=False, name=None))


def codes(outcome: ImportOutcome) -> dict[str, int]:
    return {item["code"]: item["n"] for item in outcome.dataset.notes["warnings"]}


def refusals(outcome: ImportOutcome) -> dict[str, str]:
    return {item.path: item.reason for item in outcome.rejected}


def problems(layout: str, root: Path, columns: Mapping[str, str] | None = None, **options: object) -> list[str]:
    """Return the lines of the one error that an import ends in; nothing was written."""
    with pytest.raises(DataError) as caught:
        bring(layout, root, columns, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    made = root.parent / "made"
    assert [path.name for path in made.iterdir() if path.name != ".lock"] == []
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


# Any table ----------------------------------------------------------------------------------------------------------

COLUMNS = {"image": "file", "label": "dx", "lesion_id": "lesion", "given_split": "part", "skin_type": "fst"}
CSV = (
    "file;dx;lesion;age;sex;part;fst;patient_id;licence\n"
    "x/a.png;nevus;007;80.0;M;Train;2;P1;CC0\n"
    "b.png;melanoma;NA;NaN;unknown;TEST;type iv;;\n"
    "c;nevus;1e5;45,5;female;;;NA;CC-BY\n"
)
KNOWN = [
    ("b", "melanoma", "", "", "", "", "IV", "test", ""),
    ("deep/c", "nevus", "1e5", "", "45.5", "female", "", "", "CC-BY"),
    ("x/a", "nevus", "007", "P1", "80", "male", "II", "train", "CC0"),
]
SHOWN = ("image_id", "label", "lesion_id", "patient_id", "age", "sex", "skin_type", "given_split", "licence")
CSV_IMAGES = ("x/a.png", "b.png", "deep/c.png")


def test_a_table_with_its_columns_named(tmp_path: Path) -> None:
    outcome = bring("csv", make(tmp_path / "src", CSV_IMAGES, rows=CSV), COLUMNS)
    assert table(outcome, *SHOWN) == KNOWN
    assert (outcome.rejected, outcome.dataset.importer) == ([], "csv")
    names = CSV.splitlines()[0].split(";")
    assert outcome.dataset.notes["columns"] == names
    assert sorted(outcome.dataset.notes["columns_used"]) == sorted(names)


def test_columns_of_the_targets_own_names_need_no_word(tmp_path: Path) -> None:
    text = "image,dx,dx_type,sex\na.png,nv,histo,f\nb.png,mel,histo,m\n"
    outcome = bring("csv", make(tmp_path / "src", ["a.png", "b.png"], rows=text))
    assert table(outcome, "label", "sex") == [("nv", "female"), ("mel", "male")]
    assert outcome.dataset.notes["columns"] == ["image", "dx", "dx_type", "sex"]
    assert outcome.dataset.notes["columns_used"] == ["image", "sex", "dx"]


def test_the_table_and_the_images_may_lie_apart(tmp_path: Path) -> None:
    images = make(tmp_path / "pictures", CSV_IMAGES)
    root = make(tmp_path / "src", [], rows=CSV, other="x,y\n1,2\n")
    twice = make(tmp_path / "twice", [], rows=CSV, other=CSV)
    with pytest.raises(DataError, match=r"one table .* is needed, found: other\.csv, rows\.csv"):
        bring("csv", twice, images=images)
    assert table(bring("csv", root, COLUMNS, images=images), *SHOWN) == KNOWN
    for said in (Path("rows.csv"), root / "rows.csv"):
        with_table = bring("csv", images, COLUMNS, table=root / said, images=images)
        assert table(with_table, *SHOWN) == KNOWN
    assert table(bring("csv", root / "rows.csv", COLUMNS, images=images), *SHOWN) == KNOWN
    beside = make(tmp_path / "both", CSV_IMAGES, rows=CSV)
    with pytest.raises(UsageError, match="holds the data set of another source"):
        bring("csv", beside / "rows.csv", COLUMNS)
    shutil.rmtree(tmp_path / "made")
    for _ in range(2):
        assert table(import_from(beside / "rows.csv", tmp_path / "made"), *SHOWN) == KNOWN


@pytest.mark.parametrize(
    "value",
    ["part/a.png", "./part/a.png", "part\\a.png", "/data/x/part/a.png", "C:\\d\\part\\a.png", "A.PNG", "a", "a.jpg",
     "part/a"],
)  # fmt: skip
def test_an_image_is_found_by_path_name_or_stem(tmp_path: Path, value: str) -> None:
    root = make(tmp_path / "src", ["part/a.png", "part/b.png"], rows=f"image,label\n{value},nv\nb,nv\n")
    assert table(bring("csv", root), "path") == [("part/a.png",), ("part/b.png",)]


def test_names_in_another_unicode_form_are_found(tmp_path: Path) -> None:
    root = make(tmp_path / "src", ["cafe\u0301.png"], rows="image,label\ncaf\u00e9.png,nv\n")
    assert table(bring("csv", root), "path") == [("cafe\u0301.png",)]


def test_the_folders_of_a_path_decide_between_files_of_one_name(tmp_path: Path) -> None:
    images = ["train/nv/a.png", "test/nv/a.png", "test/nv/b.png"]
    text = "image,label,given_split\n/data/train/nv/a.png,nv,train\nx/test/nv/a.png,nv,test\nnv/b.png,nv,test\n"
    root = make(tmp_path / "src", images, rows=text)
    Image.new("RGB", (16, 12), "red").save(root / images[0])
    outcome = bring("csv", root)
    assert table(outcome, "path", "given_split") == [(name, name.split("/")[0]) for name in sorted(images)]


def test_no_value_leads_out_of_the_images(tmp_path: Path) -> None:
    draw(tmp_path / "secret.png")
    text = f"image,label\n../secret.png,nv\n{tmp_path / 'secret.png'},nv\na,nv\n"
    outcome = bring("csv", make(tmp_path / "src", ["a.png"], rows=text))
    assert table(outcome, "path") == [("a.png",)]
    assert set(refusals(outcome).values()) == {"missing"}


def test_rows_without_image_and_images_without_row_are_listed(tmp_path: Path) -> None:
    text = "image,label\ntrain/a.png,nv\ntest/a.png,nv\nb,mel\n"
    outcome = bring("csv", make(tmp_path / "src", ["test/a.png", "c.png", "b.png"], rows=text))
    assert refusals(outcome) == {"train/a.png": "missing", "c.png": "no_metadata"}
    assert [item.detail for item in outcome.rejected] == [
        "rows.csv has no row for it",
        "no image for this row of rows.csv (row 2)",
    ]
    assert codes(outcome)["no_metadata"] == 1


def test_a_one_hot_label_in_any_table(tmp_path: Path) -> None:
    text = "image,MEL,NV,odd\na,1.0,0.0,x\nb,0,1,y\n"
    outcome = bring("csv", make(tmp_path / "src", ["a.png", "b.png"], rows=text), {"label": "MEL, nv"})
    assert table(outcome, "label") == [("MEL",), ("NV",)]


def test_unreadable_metadata_are_unknown_and_counted(tmp_path: Path) -> None:
    rows = ["nv,45,3,back", "mel,85+,-1,-1", "nv,60-70,6,face", "mel,85+,-1,", "nv,0.5,1,arm", "mel,-1,dark,leg"]
    text = "image,label,age,skin_type,site\n" + "".join(f"{i}.png,{row}\n" for i, row in enumerate(rows))
    outcome = bring("csv", make(tmp_path / "src", [f"{i}.png" for i in range(6)], rows=text))
    assert [row[0] for row in table(outcome, "age")] == ["45", "", "", "", "0.5", ""]
    assert [row[0] for row in table(outcome, "skin_type")] == ["III", "", "VI", "", "I", ""]
    told = {note["code"]: note for note in outcome.dataset.notes["warnings"]}
    assert {code: told[f"unreadable_{code}"]["n"] for code in ("age", "skin_type", "site")} == {
        "age": 4, "skin_type": 3, "site": 1,
    }  # fmt: skip
    assert "'85+' 2" in told["unreadable_age"]["text"] and "'-1' 2" in told["unreadable_skin_type"]["text"]


BAD = (
    "image,label,age,given_split,lesion_id\n"
    "a.png,nv,1962,train,L1\n"  # 2: age
    ",nv,30,train,L1\n"  # 3: empty image
    "b.png,,forty,holdout,L2\n"  # 4: label, age, side
    "a.png,mel,-5,test,L3\n"  # 5: repeats, age
    "c.png,nv,30\n"  # 6: ragged
    "a,nv,30,train,L1\n"  # 7: a.png again by another name
    "twin.png,nv,30,train,L1\n"  # 8: two different files
    '"d.png"x,nv,30,train,L1\n'  # 9: broken quote
    "e.png,unknown,30,train,L1\n"  # 10: label
)


def test_all_problems_of_a_table_are_told_at_once(tmp_path: Path) -> None:
    root = make(tmp_path / "src", ["a.png", "b.png", "c.png", "x/twin.png", "y/twin.png"], rows=BAD)
    Image.new("RGB", (16, 12), "red").save(root / "y/twin.png")
    assert problems("csv", root) == [
        "row 3: the image is empty",
        "row 4: not one of train, validation, test: 'holdout'",
        "row 4: the label is empty or unknown",
        "row 5: image repeats that of row 2: 'a.png'",
        "row 6: 3 cells, the header has 5",
        "row 7: 'a' is the file of row 2 too: a.png",
        "row 8: 'twin.png' could be 2 different files: x/twin.png, y/twin.png",
        "row 9: text after a closed quote, before the next ','; a quote inside a value is written twice",
        "row 10: the label is empty or unknown",
        "row 10: there is no image 'e.png'",
    ]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": "diagnose"},
         ["row 1: has no column 'diagnose'; did you mean `diagnosis`? (it has: file, diagnosis)"]),
        ({"image": "f", "label": "g", "age": "h"}, 3),
        ({"image": "diagnosis", "label": "MEL,NV"}, 2),
    ],
)  # fmt: skip
def test_columns_that_are_not_there(tmp_path: Path, columns: dict[str, str], words: list[str] | int) -> None:
    root = make(tmp_path / "src", ["a.png"], rows="file,diagnosis\na,nv\n")
    found = problems("csv", root, columns)
    assert found == words if isinstance(words, list) else len(found) == words


def test_a_lesion_of_two_patients_is_told_with_its_row(tmp_path: Path) -> None:
    text = "image,label,lesion_id,patient_id\na,nv,1,P1\nb,nv,1,P2\nc,nv,1,\n"
    found = problems("csv", make(tmp_path / "src", ["a.png", "b.png", "c.png"], rows=text))
    assert found == ["row 3: lesion '1' belongs to patient 'P2' here, and to 'P1' in an earlier row"]


def test_a_table_without_image_or_label(tmp_path: Path) -> None:
    found = problems("csv", make(tmp_path / "src", ["a.png"], rows="x,y\na,nv\n"))
    assert found == [
        "row 1: has no column for the image (it has: x, y)",
        "row 1: has no column for the label (it has: x, y)",
    ]


def test_second_copies_count_once(tmp_path: Path) -> None:
    root = make(tmp_path / "src", ["a.png"], rows="image,label\na,nv\n")
    (root / "copy").mkdir()
    shutil.copy(root / "a.png", root / "copy" / "a.png")
    outcome = bring("csv", root)
    assert (codes(outcome)["second_copies"], outcome.rejected) == (1, [])


def test_options_that_a_layout_does_not_take(tmp_path: Path) -> None:
    root = make(tmp_path / "src", ["nv/a.png"])
    with pytest.raises(UsageError, match="the layout folder takes no --label"):
        bring("folder", root, label="dx")
    with pytest.raises(UsageError, match=r"--column lesion: is nothing .* did you mean `lesion_id`"):
        bring("csv", root, {"lesion": "x"})
    assert not (tmp_path / "made").exists()


# ISIC 2018 and 2019 -------------------------------------------------------------------------------------------------

TRUTH_2018 = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
GROUPS_2018 = (
    "image,lesion_id,diagnosis_confirm_type\n"
    f"{ISIC[0]},HAM_1,histopathology\n{ISIC[1]},HAM_1,histopathology\n{ISIC[2]},HAM_2,single image expert consensus\n"
)


def hot(image: str, at: int, n: int = 7) -> str:
    return ",".join([image, *("1.0" if place == at else "0.0" for place in range(n))]) + "\n"


def make_2018(root: Path) -> Path:
    make(root / "ISIC2018_Task3_Training_Input", [f"{name}.png" for name in ISIC[:3]])
    text = TRUTH_2018 + hot(ISIC[0], 0) + hot(ISIC[1], 0) + hot(ISIC[2], 3)
    make(root / "ISIC2018_Task3_Training_GroundTruth", [], ISIC2018_Task3_Training_GroundTruth=text)
    return make(root, [], ISIC2018_Task3_Training_LesionGroupings=GROUPS_2018)


def test_isic2018(tmp_path: Path) -> None:
    outcome = bring("isic2018", make_2018(tmp_path / "src"))
    assert table(outcome, "isic_id", "label", "lesion_id", "given_split") == [
        (ISIC[0], "MEL", "HAM_1", ""), (ISIC[1], "MEL", "HAM_1", ""), (ISIC[2], "AKIEC", "HAM_2", ""),
    ]  # fmt: skip
    assert [(item.name, item.malignancy) for item in outcome.dataset.classes] == [
        ("AKIEC", "indeterminate"), ("MEL", "malignant"),
    ]  # fmt: skip
    assert "diagnosis_confirm_type" in outcome.dataset.notes["columns"]
    assert "diagnosis_confirm_type" not in outcome.dataset.notes["columns_used"]
    assert (outcome.rejected, "other_files" in codes(outcome)) == ([], False)


def test_isic2018_with_its_test_side(tmp_path: Path) -> None:
    root = make_2018(tmp_path / "src")
    make(root / "test", [f"{ISIC[5]}.png"], ISIC2018_Task3_Test_GroundTruth=TRUTH_2018 + hot(ISIC[5], 1))
    outcome = bring("isic2018", root)
    assert table(outcome, "isic_id", "given_split") == [
        (ISIC[0], "train"), (ISIC[1], "train"), (ISIC[2], "train"), (ISIC[5], "test"),
    ]  # fmt: skip


def test_isic2018_tells_every_problem_of_every_table(tmp_path: Path) -> None:
    rows = [
        hot(ISIC[0], 0),
        hot(ISIC[1], 9),
        f"{ISIC[2]},1,1,0,0,0,0,0\n",
        hot(ISIC[0], 0),
        f"{ISIC[3]},0.5,0,0,0,0,0,0\n",
    ]
    root = make(tmp_path / "src", [f"{name}.png" for name in ISIC[:3]], Truth=TRUTH_2018 + "".join(rows))
    (root / "Groups.csv").write_text(f"image,lesion_id,age_approx\n{ISIC[0]},L1,45\n{ISIC[0]},L2,999\n")
    assert problems("isic2018", root) == [
        str(root / "Groups.csv"),
        f"row 3: image repeats that of row 2: '{ISIC[0]}'",
        str(root / "Truth.csv"),
        "row 3: marked as none of the classes",
        "row 4: marked as 2 classes: MEL, NV",
        f"row 5: image repeats that of row 2: '{ISIC[0]}'",
        "row 6: neither 0 nor 1: MEL '0.5'",
        f"row 6: there is no image '{ISIC[3]}'",
    ]


TRUTH_2019 = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
META_2019 = (
    "image,age_approx,anatom_site_general,lesion_id,sex\n"
    f"{ISIC[0]}_downsampled,55,anterior torso,MSK4_1,female\n{ISIC[1]},,,,\n{ISIC[2]},30,head/neck,BCN_2,male\n"
    f"{ISIC[8]},1,,,\n"
)


def test_isic2019(tmp_path: Path) -> None:
    truth = TRUTH_2019 + hot(f"{ISIC[0]}_downsampled", 7, 9) + hot(ISIC[1], 8, 9) + hot(ISIC[2], 3, 9)
    images = [f"in/{ISIC[0]}_downsampled.png", f"in/{ISIC[1]}.png", f"in/{ISIC[2]}_downsampled.png"]
    root = make(tmp_path / "src" / "packed", images, Truth=truth, Meta=META_2019)
    outcome = bring("isic2019", root.parent)
    assert table(outcome, "isic_id", "label", "lesion_id", "age", "sex", "site") == [
        (ISIC[0], "SCC", "MSK4_1", "55", "female", "anterior torso"),
        (ISIC[1], "UNK", "", "", "", ""),
        (ISIC[2], "AK", "BCN_2", "30", "male", "head/neck"),
    ]
    assert codes(outcome)["metadata_alone"] == 1
    assert outcome.dataset.manifest["path"].tolist() == images


def test_isic2019_without_metadata_knows_less(tmp_path: Path) -> None:
    root = make(tmp_path / "src", [f"{ISIC[0]}.png"], Truth=TRUTH_2019 + hot(ISIC[0], 0, 9))
    outcome = bring("isic2019", root)
    assert table(outcome, "label", "lesion_id", "age") == [("MEL", "", "")]
    assert codes(outcome)["no_groups"] == 1
    with pytest.raises(
        DataError, match=r"one table with the columns image, MEL, .*AKIEC.* is needed, found: none"
    ):
        bring("isic2018", root)


# ISIC 2020 ----------------------------------------------------------------------------------------------------------

HEAD_2020 = (
    "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
)
ROWS_2020 = (
    f"{ISIC[0]},IP_1,male,45.0,head/neck,unknown,benign,0\n{ISIC[1]},IP_1,,,,melanoma,malignant,1\n"
    f"{ISIC[2]},IP_2,female,50.0,torso,nevus,benign,0\n"
)


def make_2020(root: Path, rows: str = ROWS_2020, head: str = HEAD_2020) -> Path:
    test = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge\nISIC_0000099,IP_9,male,1,\n"
    return make(root, [f"jpeg/train/{name}.png" for name in ISIC[:3]], train=head + rows, test=test)


def test_isic2020(tmp_path: Path) -> None:
    outcome = bring("isic2020", make_2020(tmp_path / "src"))
    assert table(outcome, "isic_id", "label", "patient_id", "age", "sex", "site") == [
        (ISIC[0], "benign", "IP_1", "45", "male", "head/neck"), (ISIC[1], "malignant", "IP_1", "", "", ""),
        (ISIC[2], "benign", "IP_2", "50", "female", "torso"),
    ]  # fmt: skip
    assert {"target", "diagnosis"} <= set(outcome.dataset.notes["columns"]) - set(
        outcome.dataset.notes["columns_used"]
    )


def test_isic2020_by_diagnosis_lists_what_has_none(tmp_path: Path) -> None:
    outcome = bring("isic2020", make_2020(tmp_path / "src"), label="diagnosis")
    assert table(outcome, "isic_id", "label") == [(ISIC[1], "melanoma"), (ISIC[2], "nevus")]
    assert refusals(outcome) == {f"jpeg/train/{ISIC[0]}.png": "no_label"}


def test_isic2020_by_target_alone(tmp_path: Path) -> None:
    root = make_2020(tmp_path / "src", f"{ISIC[0]},0\n{ISIC[1]},1\n", "image_name,target\n")
    assert table(bring("isic2020", root), "label") == [("benign",), ("malignant",)]


def test_isic2020_problems(tmp_path: Path) -> None:
    rows = ROWS_2020 + f"{ISIC[3]},IP_3,,,,,malignant,0\n{ISIC[4]},IP_3,,,,,maligant,1\n"
    assert problems("isic2020", make_2020(tmp_path / "src", rows)) == [
        "row 5: benign_malignant is 'malignant', target is '0'",
        f"row 5: there is no image '{ISIC[3]}'",
        f"row 6: there is no image '{ISIC[4]}'",
        "row 6: unknown label 'maligant' (the labels are benign, malignant)",
    ]
    with pytest.raises(DataError, match="one table with the columns image_name and dx"):
        bring("isic2020", tmp_path / "src", label="dx")


def test_isic2020_published_duplicates_become_copy_groups(tmp_path: Path) -> None:
    root = make_2020(tmp_path / "src")
    pairs = f"image_name_1,image_name_2\n{ISIC[1]},{ISIC[2]}\n{ISIC[7]},{ISIC[8]}\n"
    (root / "ISIC_2020_Training_Duplicates.csv").write_text(pairs)
    outcome = bring("isic2020", root)
    assert table(outcome, "copy_group") == [("",), (ISIC[1],), (ISIC[1],)]
    assert codes(outcome)["published_duplicates"] == 2


# ISIC Archive -------------------------------------------------------------------------------------------------------

OLD = (
    "isic_id,attribution,copyright_license,age_approx,anatom_site_general,benign_malignant,diagnosis,lesion_id,sex\n"
    f"{ISIC[0]},MSKCC,CC-0,35,lower extremity,indeterminate/benign,nevus,IL_1,male\n"
    f"{ISIC[1]},Anonymous,CC-BY-NC,,,malignant,melanoma,,\n"
    f"{ISIC[2]},MSKCC,CC-0,85,,,,IL_3,female\n"
)
NEW = (
    "isic_id,attribution,copyright_license,age_approx,anatom_site_1,anatom_site_2,diagnosis_1,diagnosis_2,diagnosis_3,"
    "diagnosis_confirm_type,fitzpatrick_skin_type,patient_id,sex\n"
    f"{ISIC[0]},MSKCC,CC-0,35,Trunk,Back,Benign,Benign melanocytic,Nevus,histopathology,II,IP_1,male\n"
    f"{ISIC[1]},Barcelona,CC-BY-NC,,,,Malignant,,Melanoma Invasive,,,IP_1,\n"
    f"{ISIC[2]},Barcelona,CC-BY-NC,60,,,Indeterminate,,,,,,female\n"
)


def make_archive(root: Path, text: str, images: Iterable[str] = ISIC[:3]) -> Path:
    make(root, [f"{name}.png" for name in images], metadata=text)
    (root / "licenses").mkdir()
    (root / "licenses" / "CC-0.txt").write_text("free")
    (root / "attribution.txt").write_text("MSKCC")
    return root


def test_the_archives_old_schema(tmp_path: Path) -> None:
    outcome = bring("isic-archive", make_archive(tmp_path / "src", OLD))
    assert table(outcome, "isic_id", "label", "lesion_id", "age", "sex", "site", "licence", "attribution") == [
        (ISIC[0], "indeterminate", "IL_1", "35", "male", "lower extremity", "CC-0", "MSKCC"),
        (ISIC[1], "malignant", "", "", "", "", "CC-BY-NC", "Anonymous"),
    ]
    assert refusals(outcome) == {f"{ISIC[2]}.png": "no_label"}
    by_name = bring("isic-archive", tmp_path / "src", label="diagnosis")
    assert table(by_name, "label") == [("nevus",), ("melanoma",)]


def test_the_archives_new_schema(tmp_path: Path) -> None:
    outcome = bring("isic-archive", make_archive(tmp_path / "src", NEW))
    columns = ("label", "patient_id", "age", "sex", "site", "skin_type", "licence", "source")
    assert table(outcome, *columns) == [
        ("benign", "IP_1", "35", "male", "Trunk", "II", "CC-0", "ISIC Archive"),
        ("malignant", "IP_1", "", "", "", "", "CC-BY-NC", "ISIC Archive"),
        ("indeterminate", "", "60", "female", "", "", "CC-BY-NC", "ISIC Archive"),
    ]
    assert {"diagnosis_3", "diagnosis_confirm_type"} <= set(outcome.dataset.notes["columns"])
    by_name = bring("isic-archive", tmp_path / "src", label="diagnosis_3")
    assert table(by_name, "label") == [("Nevus",), ("Melanoma Invasive",)]
    assert refusals(by_name) == {f"{ISIC[2]}.png": "no_label"}


def test_the_archive_with_hardly_a_column(tmp_path: Path) -> None:
    root = make_archive(tmp_path / "src", f"isic_id,diagnosis\n{ISIC[0]},nevus\n", ISIC[:1])
    assert table(bring("isic-archive", root), "label", "licence", "age") == [("nevus", "", "")]
    (root / "metadata.csv").write_text(f"isic_id,sex\n{ISIC[0]},male\n")
    with pytest.raises(
        DataError, match=r"none of the columns diagnosis_1, benign_malignant, diagnosis \(it has: isic_id, sex\)"
    ):
        bring("isic-archive", root)


def test_downloads_that_failed_are_found(tmp_path: Path) -> None:
    root = make_archive(tmp_path / "src", NEW, [*ISIC[:2], ISIC[6]])
    (root / f"{ISIC[1]}.png").write_bytes(b"")
    outcome = bring("isic-archive", root)
    assert refusals(outcome) == {ISIC[2]: "missing", f"{ISIC[6]}.png": "no_metadata", f"{ISIC[1]}.png": "empty"}
    assert table(outcome, "isic_id") == [(ISIC[0],)]


def test_an_unknown_malignancy_of_the_archive(tmp_path: Path) -> None:
    root = make_archive(tmp_path / "src", NEW.replace("Malignant", "Malign"))
    assert problems("isic-archive", root) == [
        "row 3: diagnosis_1 is neither benign, malignant nor indeterminate: 'malign'"
    ]


# Ids joined back ----------------------------------------------------------------------------------------------------

HAM = (
    "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    f"HAM_1,{ISIC[0]},nv,histo,80.0,male,back\nHAM_1,{ISIC[1]},nv,histo,80.0,male,back\n"
    f"HAM_2,{ISIC[2]},mel,histo,,unknown,unknown\nHAM_3,ISIC_0099999,nv,histo,1,male,face\n"
)


def nine_folders(root: Path) -> Path:
    return make(
        root,
        [f"nevus/{ISIC[0]}.png", f"melanoma/{ISIC[1]}_downsampled.png", f"melanoma/{ISIC[2]}.png", "nevus/x.png"],
    )


def test_a_join_gives_lesions_back_and_keeps_the_label(tmp_path: Path) -> None:
    root = nine_folders(tmp_path / "src")
    ham = make(tmp_path, [], ham=HAM) / "ham.csv"
    outcome = bring("folder", root, join=[ham])
    assert table(outcome, "label", "lesion_id", "age", "sex", "site") == [
        ("melanoma", "HAM_1", "80", "male", "back"), ("melanoma", "HAM_2", "", "", ""),
        ("nevus", "HAM_1", "80", "male", "back"), ("nevus", "", "", "", ""),
    ]  # fmt: skip
    assert (codes(outcome)["joined"], codes(outcome)["join_labels"]) == (3, 1)
    notes = {item["code"]: item["text"] for item in outcome.dataset.notes["warnings"]}
    assert notes["joined"] == "ham.csv has a row for 3 of 4 images; filled: lesion_id 3, age 2, sex 2, site 2."
    assert f"melanoma/{ISIC[1]}_downsampled.png melanoma, not nv" in notes["join_labels"]
    assert "dx_type" in outcome.dataset.notes["columns"]
    assert "dx_type" not in outcome.dataset.notes["columns_used"]
    assert not (tmp_path / "made" / "conflicts.csv").exists()


def test_a_join_overwrites_nothing_and_lists_what_differs(tmp_path: Path) -> None:
    text = f"image,label,age,sex\n{ISIC[0]},nv,79,MALE\n{ISIC[2]},mel,50,female\n"
    root = make(tmp_path / "src", [f"{ISIC[0]}.png", f"{ISIC[2]}.png"], rows=text)
    patients = f"image_name,patient_id\n{ISIC[0]},IP_1\n"
    tables = make(tmp_path / "meta", [], ham=HAM, patients=patients)
    outcome = bring("csv", root, join=[tables / "ham.csv", tables / "patients.csv"])
    assert table(outcome, "lesion_id", "patient_id", "age", "sex") == [
        ("HAM_1", "IP_1", "79", "male"),
        ("HAM_2", "", "50", "female"),
    ]
    with (tmp_path / "made" / "conflicts.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [
            {"image_id": ISIC[0], "column": "age", "value": "79", "table_value": "80", "table": "ham.csv"}
        ]
    assert codes(outcome)["join_conflicts"] == 1
    bring("csv", root)
    assert not (tmp_path / "made" / "conflicts.csv").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has no column 'isic_id'"),
        ("image_id,lesion_id\nISIC_0099999,L1\n", "has a row for none of the 4 images"),
        (f"isic_id,lesion_id\n{ISIC[0]},L1\n{ISIC[0]}.jpg,L2\n",
         f"row 3: {ISIC[0]} again, with another lesion_id than row 2"),
    ],
)  # fmt: skip
def test_a_join_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        bring("folder", nine_folders(tmp_path / "src"), join=[make(tmp_path, [], meta=text) / "meta.csv"])
    with pytest.raises(DataError, match="no such table"):
        bring("folder", tmp_path / "src", join=[tmp_path / "none.csv"])


def test_the_same_row_twice_in_a_join_is_none(tmp_path: Path) -> None:
    meta = make(tmp_path, [], meta=f"isic_id,lesion_id\n{ISIC[0]},L1\n{ISIC[0]},L1\n") / "meta.csv"
    assert codes(bring("folder", nine_folders(tmp_path / "src"), join=[meta]))["joined"] == 1


def test_an_isic_id_of_a_column_has_one_spelling_and_is_joined(tmp_path: Path) -> None:
    text = "image,label,isic_id\na.png,nv,isic_0000001\nb.png,nv,ISIC_0000002.jpg\nc.png,nv,Own-7\n"
    root = make(tmp_path / "src", ["a.png", "b.png", "c.png"], rows=text)
    meta = "isic_id,lesion_id\nISIC_0000001,L1\nisic_0000002,L2\nown-7,L3\n"
    outcome = bring("csv", root, join=[make(tmp_path, [], meta=meta) / "meta.csv"])
    assert table(outcome, "isic_id", "lesion_id") == [
        ("ISIC_0000001", "L1"),
        ("ISIC_0000002", "L2"),
        ("Own-7", "L3"),
    ]


# The command line ---------------------------------------------------------------------------------------------------


def make_layout(layout: str, root: Path) -> tuple[Path, list[str]]:
    """Return a source in a layout, and the further words of its command."""
    if layout == "folder":
        return nine_folders(root), ["--join", str(make(root.parent, [], ham=HAM) / "ham.csv")]
    if layout == "ham10000":
        return make(root, [f"{name}.png" for name in ISIC[:3]], HAM10000_metadata=HAM), []
    if layout == "csv":
        return make(root, CSV_IMAGES, rows=CSV), [
            word for pair in COLUMNS.items() for word in ("--column", "=".join(pair))
        ]
    if layout == "isic2018":
        return make_2018(root), []
    if layout == "isic2019":
        truth = TRUTH_2019 + hot(ISIC[0], 7, 9) + hot(ISIC[1], 8, 9)
        return make(root, [f"{name}.png" for name in ISIC[:2]], Truth=truth, Meta=META_2019), []
    if layout == "isic2020":
        return make_2020(root), ["--label", "diagnosis"]
    if layout == "isic-archive":
        return make_archive(root, NEW), ["--label", "diagnosis_1"]
    root.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    for side in ("train", "test"):
        pixels = np.arange(3 * 768) + len(arrays)
        arrays[f"{side}_images"] = pixels.astype(np.uint8).reshape(3, 16, 16, 3)
        arrays[f"{side}_labels"] = np.arange(3, dtype=np.uint8)[:, None]
    np.savez_compressed(root / "dermamnist.npz", **arrays)  # type: ignore[arg-type]
    return root / "dermamnist.npz", []


LAYOUTS = ["folder", "ham10000", "csv", "isic2018", "isic2019", "isic2020", "isic-archive", "medmnist"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_from_the_command_line(tmp_path: Path, cli: Cli, layout: str) -> None:
    source, words = make_layout(layout, tmp_path / "src")
    done = cli("import", layout, source, "--out", "made", *words)
    expected = 7 if layout in ("ham10000", "isic2020") else 0
    assert done.returncode == expected, done.stderr
    dataset = load_dataset(tmp_path / "made")
    assert f"{len(dataset.manifest)} images" in done.stdout
    assert dataset.importer == layout
    assert all((dataset.image_root / path).is_file() for path in dataset.manifest["path"])
    assert not dataset.manifest["path"].str.startswith("/").any()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_from_a_zip(tmp_path: Path, invoke: Invoke, layout: str, wrapped: bool) -> None:
    source, words = make_layout(layout, tmp_path / "src")
    plain = invoke("import", layout, source, "--out", tmp_path / "plain", *words)
    folder = source if source.is_dir() else source.parent
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, ("outer/" if wrapped else "") + path.relative_to(folder).as_posix())
    from_zip = invoke("import", layout, tmp_path / "all.zip", "--out", tmp_path / "made", *words)
    assert from_zip[0] == plain[0]
    one, other = (load_dataset(tmp_path / name) for name in ("plain", "made"))
    pd.testing.assert_frame_equal(one.manifest, other.manifest)
    assert other.image_root.is_relative_to(tmp_path / "made" / "images")
    assert one.notes["columns"] == other.notes["columns"]


def test_a_folder_of_images_in_a_zip_can_be_named(tmp_path: Path) -> None:
    root = make(tmp_path / "src", ["pictures/a.png", "thumbs/a.png"], rows="image,label\na,nv\n")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for path in sorted(root.rglob("*.*")):
            packed.write(path, path.relative_to(root).as_posix())
    outcome = bring("csv", tmp_path / "all.zip", images=Path("pictures"))
    assert table(outcome, "path", "label") == [("a.png", "nv")]
    assert outcome.dataset.image_root == tmp_path / "made" / "images" / "pictures"


def test_the_commands_know_every_layout_scheme_and_use() -> None:
    assert list(get_args(LayoutName)) == [*run.LAYOUTS, run.MEDMNIST] == LAYOUTS
    assert get_args(SchemeName) == get_args(Scheme)
    assert get_args(UseName) == get_args(PlannedUse)


def test_words_of_the_command_that_are_wrong(tmp_path: Path, invoke: Invoke) -> None:
    source, _ = make_layout("csv", tmp_path / "src")
    for words, message in (
        (("--column", "image"), "not of the form TARGET=COLUMN"),
        (("--column", "image=a", "--column", "image=b"), "image is a already"),
        (("--column", "imag=a"), "did you mean `image`"),
    ):
        code, _, errors = invoke("import", "csv", source, "--out", tmp_path / "made", *words)
        assert (code, message in errors) == (2, True), errors
    code, _, errors = invoke("import", "csv", source, "--out", tmp_path / "made", "--column", "label=nothing")
    assert code == 3
    assert "has no column 'nothing'" in errors


def test_parts_of_a_download_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path / "src", ("HAM10000_images_part_1/a.png", "HAM10000_images_part_2/b.png"))
    with pytest.raises(DataError, match="named like parts of a download") as raised:
        import_dataset("folder", tmp_path / "src", out=tmp_path / "out")
    assert "ham10000" in raised.value.remedy
    make(tmp_path / "fine", ("nevus/a.png", "images/b.png"))
    assert import_dataset("folder", tmp_path / "fine", out=tmp_path / "out2").dataset.class_names == (
        "images",
        "nevus",
    )


def test_spellings_of_a_class_in_a_table_are_one_class(tmp_path: Path) -> None:
    rows = "image,label\na.png,Nevus\nb.png,nevus\nc.png, NEVUS \nd.png,nevus\ne.png,melanoma\n"
    outcome = bring("csv", make(tmp_path / "src", ("a.png", "b.png", "c.png", "d.png", "e.png"), rows=rows), {})
    assert outcome.dataset.class_names == ("melanoma", "nevus")
    assert any(note["code"] == "spellings" for note in outcome.dataset.notes["warnings"])
