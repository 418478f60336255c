"""Which classes are malignant: by the rows of a table, by the table of diagnoses, by a person, or asked for."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from conftest import Invoke
from dermkit.data.diagnoses import (
    UNKNOWN_MALIGNANCY,
    classify_label,
    is_known_label,
    malignancy_question,
    unknown_malignancy,
    with_given_malignancy,
)
from dermkit.errors import UsageError

MALIGNANT = (
    "Melanoma, NOS", "Melanoma Invasive", "melanoma (in situ)", "melanoma (less than 0.76 mm)", "Melanoma metastasis",
    "superficial spreading melanoma ssm", "Lentigo maligna melanoma", "acral-lentiginous melanoma",
    "amelanotic melanoma", "Squamous cell carcinoma, Invasive", "Squamous cell carcinoma, NOS",
    "Basal cell carcinoma (BCC)", "nodular BCC", "basal cell carcinoma morpheiform", "Bowen's disease",
    "Bowen\N{RIGHT SINGLE QUOTATION MARK}s disease",
    "Merkel cell carcinoma", "mycosis fungoides", "Kaposi sarcoma", "melanomas", "invasive SCC",
)  # fmt: skip
BENIGN = (
    "blue nevus", "dermal nevus", "reed or spitz nevus", "Clark's nevus", "Nevus, Atypical", "nevi",
    "congenital naevus", "Melanocytic nevi (nv)", "Benign keratosis-like lesions (bkl)", "NEV", "SEK", "halo nevus",
    "pyogenic granuloma", "seborrheic keratosis (irritated)", "Solar lentigo, NOS", "Verruca",
    "sebaceous hyperplasia",
)  # fmt: skip
UNKNOWN = (
    "not melanoma", "non-melanoma", "melanoma or nevus", "nevus vs melanoma", "Melanoma (excluded)", "malignant nevus",
    "Nevus (melanoma ruled out)", "keratoacanthoma", "miscellaneous", "melanomas are bad", "0", "positive", "cancer",
)  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "malignancy"), [(MALIGNANT, "malignant"), (BENIGN, "benign"), (UNKNOWN, "indeterminate")]
)
def test_clinical_spellings(labels: tuple[str, ...], malignancy: str) -> None:
    assert {label: classify_label(label).malignancy for label in labels} == dict.fromkeys(labels, malignancy)
    assert {is_known_label(label) for label in labels} == {malignancy != "indeterminate"}


@pytest.mark.parametrize(
    "names", [("0", "1"), ("negative", "positive"), ("no cancer", "cancer"), ("healthy", "ill")]
)
def test_the_positive_class_of_two_is_given_once(names: tuple[str, str]) -> None:
    classes = tuple(map(classify_label, names))
    question = malignancy_question(classes, unknown_malignancy(classes, ()))
    assert f'--malignancy "{names[1]}=malignant"' in question and question.startswith(UNKNOWN_MALIGNANCY)
    answered = with_given_malignancy(classes, {names[1]: "malignant"})
    assert [item.malignancy for item in answered] == ["benign", "malignant"]
    assert unknown_malignancy(answered, (names[1],)) == []


def test_a_third_class_of_unknown_malignancy_is_asked_for() -> None:
    classes = tuple(map(classify_label, ("mel", "nv", "odd", "akiec")))
    assert unknown_malignancy(classes, ()) == ["odd"]  # akiec is known to be neither
    assert malignancy_question(classes, ["odd"]).endswith('Give --malignancy "odd=benign|malignant".')
    assert malignancy_question(classes, unknown_malignancy(classes, ("odd",))) == ""


def import_table(folder: Path, header: str, rows: list[str], layout: str, **options: object) -> dk.Dataset:
    generator = np.random.default_rng(0)
    for i in range(len(rows)):
        (folder / "src").mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(
            folder / f"src/ISIC_{i:07d}.png"
        )
    lines = [f"ISIC_{i:07d},{row}" for i, row in enumerate(rows)]
    (folder / "src" / "metadata.csv").write_text("\n".join([header, *lines, ""]))
    malignancy = options.pop("malignancy", {})
    return dk.import_dataset(
        layout, folder / "src", out=folder / "ds", malignancy=malignancy,  # type: ignore[arg-type]
        options=dk.ImportOptions(**options),  # type: ignore[arg-type]
    ).dataset  # fmt: skip


def malignancies(dataset: dk.Dataset) -> dict[str, str]:
    return {item.name: item.malignancy for item in dataset.classes}


def warning_texts(dataset: dk.Dataset, code: str) -> list[str]:
    return [note["text"] for note in dataset.notes["warnings"] if note["code"] == code]


def test_rows_of_the_archive_decide(tmp_path: Path) -> None:
    rows = ["Malignant,Odd tumour", "Benign,Nevus", 'Malignant,"Melanoma, NOS"', "Indeterminate,Strange", ",Nevus"]
    dataset = import_table(tmp_path, "isic_id,diagnosis_1,diagnosis_3", rows, "isic-archive", label="diagnosis_3")
    assert malignancies(dataset) == {
        "Odd tumour": "malignant", "Nevus": "benign", "Melanoma, NOS": "malignant", "Strange": "indeterminate",
    }  # fmt: skip
    assert not warning_texts(dataset, "unknown_class")  # the rows say that "Strange" is neither
    assert "by columns of the table" in dataset.notes["malignancy_source"]


def test_target_decides_in_isic_2024_and_two_partitions_in_fitzpatrick(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = import_table(tmp_path / "a", "isic_id,target", ["0", "1", "0"], "isic-archive", label="target")
    assert malignancies(one) == {"0": "benign", "1": "malignant"}
    header, rows = "image,label,three_partition_label", ["odd,malignant", "rash,non-neoplastic", "mole,benign"]
    other = import_table(tmp_path / "b", header, rows, "csv")
    assert malignancies(other) == {"odd": "malignant", "rash": "benign", "mole": "benign"}


def test_target_of_any_table_means_nothing(tmp_path: Path) -> None:
    dataset = import_table(tmp_path, "image,label,target", ["odd,1", "nv,0", "mel,1"], "csv")
    assert malignancies(dataset)["odd"] == "indeterminate"
    assert '--malignancy "odd=benign|malignant"' in warning_texts(dataset, "unknown_class")[0]


def test_contradictory_rows_are_said(tmp_path: Path) -> None:
    rows = ["odd,benign", "odd,malignant", "odd,malignant", "nv,benign", "nv,malignant", "nv,malignant"]
    dataset = import_table(tmp_path, "image,label,benign_malignant", rows, "csv")
    assert malignancies(dataset) == {"nv": "benign", "odd": "malignant"}  # the table of diagnoses knows nv alone
    first, second = warning_texts(dataset, "class_contradiction")
    assert "nv contradict each other on malignancy (2 malignant, 1 benign); it counts as benign" in first
    assert "odd contradict" in second and "counts as malignant" in second


def test_a_person_overrules_rows(tmp_path: Path) -> None:
    rows = ["odd,benign", "odd,malignant", "nv,benign"]
    dataset = import_table(
        tmp_path, "image,label,benign_malignant", rows, "csv", malignancy={"odd": "indeterminate"}
    )
    assert malignancies(dataset) == {"nv": "benign", "odd": "indeterminate"}
    assert not warning_texts(dataset, "class_contradiction") and not warning_texts(dataset, "unknown_class")


def test_predictions_of_another_tool(tmp_path: Path, invoke: Invoke) -> None:
    generator = np.random.default_rng(1)
    is_ill = generator.random(200) < 0.4
    p = np.clip(generator.normal(0.4 + 0.3 * is_ill, 0.2), 0.01, 0.99)
    label = np.where(is_ill, "ill", "healthy")
    table = pd.DataFrame({"image": range(200), "label": label, "p_healthy": 1 - p, "p_ill": p})
    table.to_csv(tmp_path / "t.csv", index=False)
    code, _, err = invoke("evaluate", "--predictions", tmp_path / "t.csv", "--out", tmp_path / "asked")
    assert code == 0 and '--malignancy "ill=malignant"' in err
    page = (tmp_path / "asked" / "report.html").read_text()
    assert "Malignancy unknown" in page
    code, _, err = invoke(
        "evaluate",
        "--predictions",
        tmp_path / "t.csv",
        "--malignancy",
        "ill=malignant",
        "--out",
        tmp_path / "given",
    )
    assert code == 0 and "Malignancy unknown" not in err
    assert "Malignancy unknown" not in (tmp_path / "given" / "report.html").read_text()
    metrics = json.loads((tmp_path / "given" / "metrics.json").read_text())
    assert metrics["positive"] == ["ill"]
    sensitivity = metrics["splits"]["test"]["metrics"]["sensitivity"]["value"]
    assert sensitivity == pytest.approx(np.mean(p[is_ill] > 0.5))
    with pytest.raises(UsageError, match="no class 'sick'"):
        dk.evaluate(None, predictions=tmp_path / "t.csv", malignancy={"sick": "malignant"}, out=tmp_path / "x")
