"""Which rows of another tool's table are test images: the data set says it, and a table that contradicts is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from dermkit.data.manifest import Dataset
from dermkit.data.split import Split
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.foreign_predictions import evaluate_foreign
from dermkit.evaluation.foreign_splits import assign_splits, read_split_names
from dermkit.progress import Progress


def evaluated(table: pd.DataFrame, dataset: Dataset, folder: Path, split: Split | None = None) -> Path:
    folder.mkdir()
    table.to_csv(folder / "table.csv", index=False)
    file, out = folder / "table.csv", folder / "out"
    return evaluate_foreign(file, dataset=dataset, out=out, progress=Progress(), split=split)


@pytest.fixture
def memorised(binary: Path) -> tuple[Dataset, pd.DataFrame]:
    """Return predictions that are right on every training image and wrong on every third test image."""
    dataset = dk.load_dataset(binary)
    manifest = dataset.manifest
    position = manifest.groupby("given_split").cumcount()
    is_right = (manifest["given_split"] == "train") | (position % 3 > 0)
    p = np.where(is_right == (manifest["label"] == "malignant"), 0.9, 0.1)
    return dataset, pd.DataFrame({"image": manifest["image_id"], "malignant": p, "benign": 1 - p})


def test_training_images_of_the_data_set_count_in_no_test_figure(
    memorised: tuple[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    dataset, table = memorised
    out = evaluated(table, dataset, tmp_path / "all")
    splits = json.loads((out / "metrics.json").read_text())["splits"]
    n_test = int((dataset.manifest["given_split"] == "test").sum())
    right = sum(number % 3 > 0 for number in range(n_test))
    assert splits["test"]["metrics"]["accuracy"]["value"] == pytest.approx(right / n_test)
    assert splits["test"]["n"] == n_test and splits["train"]["n"] == len(table) - n_test
    assert splits["train"]["metrics"]["accuracy"]["value"] == 1.0
    run_json = json.loads((out / "run.json").read_text())
    assert any(
        f"{len(table) - n_test} of {len(table)} rows are training images" in text for text in run_json["warnings"]
    )
    assert run_json["split"]["counts"] == {"train": len(table) - n_test, "test": n_test}


def test_a_table_of_training_images_alone_is_refused(
    memorised: tuple[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    dataset, table = memorised
    train = table[(dataset.manifest["given_split"] == "train").to_numpy()]
    with pytest.raises(DataError, match=f"none of its {len(train)} rows is of a test or validation image"):
        evaluated(train, dataset, tmp_path / "train")
    assert not (tmp_path / "train" / "out").exists()


def test_a_split_column_that_contradicts_the_data_set_is_refused_with_its_rows(
    memorised: tuple[Dataset, pd.DataFrame], tmp_path: Path
) -> None:
    dataset, table = memorised
    given = dataset.manifest["given_split"].to_numpy()
    rows = np.flatnonzero(given == "train") + 2
    with pytest.raises(DataError) as refused:
        evaluated(table.assign(split="TEST"), dataset, tmp_path / "test")
    assert f"contradicts {dataset.name} in {len(rows)} of {len(table)} rows" in str(refused.value)
    assert f"row {rows[0]}: test here, train there" in str(refused.value)
    spelt = np.where(given == "train", "Training", "TEST")
    out = evaluated(table.assign(Split=spelt), dataset, tmp_path / "spelt")
    assert set(json.loads((out / "metrics.json").read_text())["splits"]) == {"train", "test"}


def test_training_images_may_be_held_out_for_validation_where_the_data_set_has_none(
    memorised: tuple[Dataset, pd.DataFrame],
) -> None:
    dataset, _ = memorised
    manifest = dataset.manifest
    given = manifest["given_split"].to_numpy()
    names = np.where(given == "train", np.where(np.arange(len(given)) % 2, "validation", ""), "").astype(object)
    splits, contradicted = assign_splits(manifest, names, dataset, None)
    assert not len(contradicted)
    assert (splits == np.where(names == "validation", "validation", given)).all()
    divided = manifest.assign(given_split=np.where(np.arange(len(given)) == 0, "validation", given))
    _, contradicted = assign_splits(divided, names, replace(dataset, manifest=divided), None)
    assert len(contradicted) == ((names == "validation") & (divided["given_split"] == "train")).sum()


def test_a_named_split_decides_and_images_outside_it_are_left_out(
    memorised: tuple[Dataset, pd.DataFrame],
) -> None:
    dataset, _ = memorised
    ids = dataset.manifest["image_id"]
    frame = pd.DataFrame({"image_id": ids[:9], "split": ["train", "validation", "test"] * 3, "fold": -1})
    split = Split("mine", frame, pd.DataFrame({"image_id": ids[9:], "reason": "copy"}), {}, None, ())
    names, contradicted = assign_splits(dataset.manifest, None, dataset, split)
    assert names.tolist() == ["train", "validation", "test"] * 3 + [""] * (len(ids) - 9)
    said = np.full(len(ids), "test", dtype=object)
    names, contradicted = assign_splits(dataset.manifest, said, dataset, split)
    assert contradicted.tolist() == [0, 1, 3, 4, 6, 7] and (names[9:] == "").all()
    folds = replace(split, frame=frame.assign(split="fold", fold=[0, 1, 2] * 3))
    with pytest.raises(UsageError, match="made of folds"):
        assign_splits(dataset.manifest, None, dataset, folds)
    # Folds beside test images: a table may call its rows out-of-fold predictions; else they are of training images.
    is_test = frame["split"] == "test"
    beside = replace(split, frame=frame.assign(
        split=frame["split"].where(is_test, "fold"), fold=np.where(is_test, -1, np.arange(9) % 2)
    ))  # fmt: skip
    names, _ = assign_splits(dataset.manifest, None, dataset, beside)
    assert names[:9].tolist() == ["train", "train", "test"] * 3
    said = np.where(np.arange(len(ids)) % 3 == 2, "test", "validation").astype(object)
    names, contradicted = assign_splits(dataset.manifest, said, dataset, beside)
    assert names[:9].tolist() == ["validation", "validation", "test"] * 3 and not len(contradicted)


def test_split_names_are_read_in_any_case() -> None:
    column = pd.Series(["Validation", "Val", "VALID", "TEST", "training", "Train", "testing", "external", ""])
    expected = ["validation"] * 3 + ["test", "train", "train", "test", "external", ""]
    assert read_split_names(column).tolist() == expected
