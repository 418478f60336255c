"""Predictions of other tools, through the real commands."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from conftest import Invoke


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def table(binary: Path) -> pd.DataFrame:
    """Return a table as another tool would write it: file names, classes as columns in another order."""
    manifest = dk.load_dataset(binary).manifest
    generator = np.random.default_rng(0)
    p = generator.beta(2, 2, len(manifest)) * 0.5 + 0.5 * (manifest["label"] == "malignant")
    names = [Path(path).name for path in manifest["path"]]
    unique = manifest["path"] if len(set(names)) < len(names) else pd.Series(names)
    return pd.DataFrame({"image": unique, "malignant": p, "benign": 1 - p}).sample(frac=1.0, random_state=1)


def test_a_table_becomes_a_run_with_the_data_sets_labels_and_groups(
    binary: Path, table: pd.DataFrame, invoke: Invoke, tmp_path: Path
) -> None:
    file = tmp_path / "other.csv"
    table.to_csv(file, index=False)
    code, out, err = invoke("evaluate", "--predictions", file, "--on", binary, "--out", tmp_path / "out")
    assert code == 0, err
    assert out.strip().endswith("report.html")
    data = dk.load_dataset(binary)
    metrics = read(tmp_path / "out" / "metrics.json")["splits"]["test"]
    is_test = dict(zip(data.manifest["path"], data.manifest["given_split"] == "test", strict=True))
    is_test |= {Path(path).name: value for path, value in is_test.items()}
    assert metrics["n"] == (data.manifest["given_split"] == "test").sum()
    labels = dict(zip(data.manifest["path"].map(lambda p: p), data.manifest["label"], strict=True))
    by_name = {Path(path).name: label for path, label in labels.items()} | labels
    pairs = zip(table["image"].tolist(), table["malignant"].tolist(), strict=True)
    right = [(p >= 0.5) == (by_name[image] == "malignant") for image, p in pairs if is_test[image]]
    assert metrics["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Predictions of another tool" in page and "come from another tool" in page
    n_train = len(data.manifest) - metrics["n"]
    assert f"{n_train} of {len(data.manifest)} rows are training images" in page
    check_page(page, f"other on {data.name}")


def test_it_can_be_compared_with_another_one(binary: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    data, folders = dk.load_dataset(binary), []
    for name, power in (("one", 1.0), ("two", 0.0)):
        p = 0.5 + (table["malignant"] - 0.5) * power + 1e-3
        file = tmp_path / f"{name}.csv"
        table.assign(malignant=p, benign=1 - p).to_csv(file, index=False)
        folders.append(dk.evaluate(None, predictions=file, dataset=data, out=tmp_path / name).parent)
    outcome = dk.compare(folders, out=tmp_path / "versus")
    assert outcome.same_images == {"train": True, "test": True}
    assert any("is better on" in sentence for sentence in outcome.sentences)


def test_without_a_data_set_the_table_says_it_all(table: pd.DataFrame, invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "alone.csv"
    labels = np.where(table["malignant"] > 0.5, "malignant", "benign")
    groups = [f"patient {i // 2}" if i < 20 else "" for i in range(len(table))]
    table.assign(label=labels, patient_id=groups).to_csv(file, index=False, sep=";")
    code, _, err = invoke("evaluate", "--predictions", file, "--out", tmp_path / "out")
    assert code == 0, err
    body = read(tmp_path / "out" / "metrics.json")
    assert body["positive"] == ["malignant"]
    assert body["splits"]["test"]["n_groups"] == len(table) - 10
    assert body["splits"]["test"]["metrics"]["accuracy"]["value"] == 1.0
    check_page((tmp_path / "out" / "report.html").read_text(), "alone")


def check_page(page: str, title: str) -> None:
    """See that a report of brought predictions claims nothing of a training that nobody saw."""
    assert f"<h1>{title}</h1>" in page
    assert "Predictions of another tool were evaluated" in page
    assert "was trained on" not in page and "an unrecorded number" not in page
    assert "Nothing was found in what a table shows: probabilities," in page
    for unseen in ("frozen batch norm", "picture shapes", "sides of the split", "NEXT_STEPS.txt", "recipe.json is",
                   "log.csv is", "environment.json is", 'id="training"', 'id="recipe"', 'id="next"'):  # fmt: skip
        assert unseen not in page, unseen
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page, target


def broken(table: pd.DataFrame, how: str) -> pd.DataFrame:
    if how == "no id":
        return table.drop(columns="image")
    if how == "no class":
        return table.drop(columns=["benign", "malignant"])
    if how == "foreign":
        return table.assign(image=["nobody.jpg", *table["image"][1:]])
    if how == "no sum":
        return table.assign(benign=table["benign"] + 0.5)
    if how == "one sum":
        return table.assign(
            benign=[table["benign"].iloc[0] + table["malignant"].iloc[0] / 2, *table["benign"][1:]]
        )
    if how == "no number":
        return table.assign(benign=["x", *table["benign"][1:]])
    if how == "twice":
        return pd.concat([table, table[:1]])
    if how == "label":
        return table.assign(label="benign")
    if how == "unknown":
        return table.rename(columns={"malignant": "p_malignant", "benign": "p_benign"}).assign(p_other=0.0)
    return table[:0]


@pytest.mark.parametrize(
    ("how", "what"),
    [("no id", "which image"), ("no class", "class 'benign'"), ("foreign", "nobody.jpg"),
     ("no sum", "--probabilities"), ("one sum", "another tool: 0.001): line 2"),
     ("no number", "finite number"), ("twice", "same image_id"),
     ("label", "labels are not those"),
     ("unknown", "p_other"), ("empty", "no row")],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    binary: Path, table: pd.DataFrame, invoke: Invoke, tmp_path: Path, how: str, what: str
) -> None:
    file = tmp_path / "bad.csv"
    broken(table, how).to_csv(file, index=False)
    code, _, err = invoke("evaluate", "--predictions", file, "--on", binary, "--out", tmp_path / "out")
    assert code == 3
    assert what in err and "bad.csv" in err
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_what_does_not_go_together(binary: Path, invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke("evaluate")
    assert code == 2 and "nothing to evaluate" in err
    code, _, err = invoke("evaluate", binary, "--predictions", tmp_path / "x.csv")
    assert code == 2 and "--predictions stands for" in err
    code, _, err = invoke("evaluate", "--predictions", tmp_path / "x.csv", "--on", binary)
    assert code == 3 and "x.csv" in err
