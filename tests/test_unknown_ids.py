"""What is not known joins no images: ids of lesions and patients in imports, manifests, tables and groups.csv."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from dermkit.data.groups import distinct_codes, id_codes, leakage_groups, unknown_ids_warnings
from dermkit.data.manifest import read_manifest
from dermkit.data.unknown import known_ids
from dermkit.evaluation.foreign_groups import group_numbers, group_warnings
from dermkit.runs.folder import RunFolder

UNKNOWN = ("NA", "", "unknown", "nan", "-", "none", " None ", "N/A", "NULL", "-1", "\N{EM DASH}", "?", "UNK")


@pytest.mark.parametrize("word", UNKNOWN)
def test_every_spelling_of_unknown_joins_nothing(word: str) -> None:
    ids = pd.Series(["L1", word, "L1", word, "L2"])
    assert known_ids(ids).tolist() == ["L1", "", "L1", "", "L2"]
    assert id_codes(ids).tolist() == [0, -1, 0, -1, 2]
    assert len(set(distinct_codes(ids))) == 4
    empty = [""] * 5
    frame = pd.DataFrame({"lesion_id": ids, "patient_id": empty, "copy_group": empty, "pixel_sha256": empty})
    assert leakage_groups(frame).tolist() == [0, 1, 0, 2, 3]


def test_real_ids_stay() -> None:
    ids = ["0", "1", "Nathan", "none-1", "IL_0000001", "-12", "A", "na2"]
    assert known_ids(pd.Series(ids)).tolist() == ids
    assert known_ids(pd.Series([None, np.nan, 3.0, "x"])).tolist() == ["", "", "3.0", "x"]
    assert known_ids(pd.Series([np.nan, np.nan])).tolist() == ["", ""]


def numbers(**columns: list[str]) -> list[int] | None:
    frame = pd.DataFrame(columns)
    found = group_numbers(pd.Series([f"i{i}" for i in range(len(frame))]), frame)
    return None if found is None else found.tolist()


@pytest.mark.parametrize("word", UNKNOWN)
def test_a_blank_patient_does_not_undo_a_lesion(word: str) -> None:
    assert numbers(patient_id=[word] * 4, lesion_id=["L1", "L1", "L2", word]) == [0, 0, 1, 2]
    assert numbers(patient_id=["P1", word, "P1", "P2"], lesion_id=["L1", "L2", "L3", "L3"]) == [0, 1, 0, 2]
    assert numbers(patient_id=[word] * 3, lesion_id=[word] * 3) is None


def test_groups_are_joined_by_lesion_and_by_patient() -> None:
    # Rows 0 and 1: one lesion; 1 and 2: one patient; 3 stands alone; 4 and 5: one lesion.
    patient = ["", "P1", "P1", "", "", "P2"]
    lesion = ["L1", "L1", "L2", "", "L9", "L9"]
    assert numbers(patient_id=patient, lesion_id=lesion) == [0, 0, 0, 1, 2, 2]


def test_lesion_numbers_within_patients_join_no_two_patients() -> None:
    ids = {"patient_id": ["A", "A", "B", "B", ""], "lesion_id": ["1", "2", "1", "2", "1"]}
    assert numbers(**ids) == [0, 0, 1, 1, 2]
    assert group_warnings(pd.DataFrame(ids)) == [
        "lesion ids that occur with several patients are taken as ids within a patient: 4 rows"
    ]


def test_rows_of_one_image_are_one_group() -> None:
    found = group_numbers(pd.Series(["a", "a", "b"]), pd.DataFrame({"lesion_id": ["L1", "", ""]}))
    assert found is not None and found.tolist() == [0, 0, 1]


def test_how_many_are_unknown_is_said() -> None:
    some = pd.DataFrame({"lesion_id": ["L1", "NA", "L2", ""], "patient_id": ["", "", "P", "P"]})
    assert unknown_ids_warnings(some) == [
        "lesion and patient are unknown for 1 of 4 images: intervals take each of them as independent"
    ]
    assert (
        "lesions and patients are unknown" in unknown_ids_warnings(some.assign(lesion_id="NA", patient_id="-"))[0]
    )
    assert unknown_ids_warnings(some.assign(lesion_id="L")) == []
    assert group_warnings(some) == unknown_ids_warnings(some)


def test_groups_csv_with_unknown_groups(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image_id,group\na,7\nb,NA\nc,\nd,7\n")
    groups = RunFolder.groups(SimpleNamespace(path=tmp_path))  # type: ignore[arg-type]
    assert groups is not None and groups["a"] == groups["d"] and len(set(groups.values())) == 3


def test_a_manifest_by_hand(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("image_id,lesion_id,patient_id,site\na,NA,nan,NA\nb,L1,-,back\n")
    frame = read_manifest(tmp_path / "manifest.csv")
    assert frame["lesion_id"].tolist() == ["", "L1"] and frame["patient_id"].tolist() == ["", ""]
    assert frame["site"].tolist() == ["NA", "back"]


@pytest.mark.parametrize(
    ("ids", "n_groups"),
    [
        # 100 of 400 images show 25 lesions, of the others nothing is known: 25 + 300 groups.
        ({"lesion_id": ["NA"] * 300}, 325),
        ({"patient_id": [""] * 300, "lesion_id": [""] * 300}, 325),
        (None, 400),
    ],
)
def test_a_table_of_another_tool(tmp_path: Path, ids: dict[str, list[str]] | None, n_groups: int) -> None:
    generator = np.random.default_rng(5)
    label = np.where(generator.random(400) < 0.3, "malignant", "benign")
    p = np.clip(generator.normal(0.35 + 0.3 * (label == "malignant"), 0.2), 0.01, 0.99)
    table = pd.DataFrame(
        {"image": [f"i{i}" for i in range(400)], "label": label, "p_benign": 1 - p, "p_malignant": p}
    )
    for column, rest in (ids or {}).items():
        known = [f"L{i // 4}" if column == "lesion_id" else "" for i in range(100)]
        table[column] = [*known, *rest]
    if ids is None:
        table["lesion_id"] = table["patient_id"] = "unknown"
    table.to_csv(tmp_path / "t.csv", index=False)
    out = dk.evaluate(None, predictions=tmp_path / "t.csv", out=tmp_path / "o").parent
    metrics, run = (json.loads((out / name).read_text()) for name in ("metrics.json", "run.json"))
    assert metrics["splits"]["test"]["n_groups"] == n_groups
    text = "lesions and patients are unknown" if ids is None else "unknown for 300 of 400 images"
    assert any(text in warning for warning in [*metrics["warnings"], *run["warnings"]])
