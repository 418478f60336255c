"""Tables of other tools without a data set are paired by image id; images that one lacks are said."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

import dermkit as dk
from dermkit.comparison.compare import compare_runs
from dermkit.comparison.image_overlap import common_ids, describe_shared_images
from dermkit.evaluation.foreign_predictions import evaluate_foreign
from dermkit.progress import Progress

N = 200


def made_table(seed: int) -> pd.DataFrame:
    is_malignant = np.random.default_rng(0).random(N) < 0.3
    noise = np.random.default_rng(seed).normal(0, 1.2, N)
    p = 1 / (1 + np.exp(-(1.2 * (2 * is_malignant - 1) + noise)))
    ids = [f"ISIC_{i}" for i in range(N)]
    labels = np.where(is_malignant, "malignant", "benign")
    return pd.DataFrame({"image": ids, "label": labels, "benign": 1 - p, "malignant": p})


def mid_p(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Return McNemar's mid-p of two tables of the same images, from its definition."""
    right = [(table["malignant"] > 0.5) == (table["label"] == "malignant") for table in (first, second)]
    b, c = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    return float(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5) - binom.pmf(min(b, c), b + c, 0.5)))


def evaluated(table: pd.DataFrame, folder: Path) -> Path:
    folder.mkdir()
    table.to_csv(folder / "table.csv", index=False)
    return evaluate_foreign(folder / "table.csv", dataset=None, out=folder / "out", progress=Progress())


def test_two_tables_of_the_same_images_are_paired_by_their_ids(tmp_path: Path) -> None:
    first, second = made_table(1), made_table(2)
    renamed = second.assign(image="images/" + second["image"].str.lower() + ".jpg").sample(frac=1, random_state=0)
    comparison = compare_runs([evaluated(first, tmp_path / "a"), evaluated(renamed, tmp_path / "b")])
    (pair,) = comparison.pairs
    assert (pair.reason, pair.n, comparison.same_images) == ("", N, {"test": True})
    accuracy = next(item for item in pair.differences if item.metric == "accuracy")
    right = [((table["malignant"] > 0.5) == (table["label"] == "malignant")).mean() for table in (first, second)]
    assert accuracy.estimate.value == pytest.approx(right[0] - right[1])
    assert accuracy.p == pytest.approx(mid_p(first, second))
    assert comparison.image_texts == {"test": "the same 200 images"}
    assert "images were paired by image id, and their labels agree (200 on test)" in comparison.notes[-1]


def test_with_rows_missing_the_common_images_are_tested_and_the_page_says_so(tmp_path: Path) -> None:
    for name, table in (("a", made_table(1)), ("b", made_table(2)[5:])):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    outcome = dk.compare([tmp_path / "a.csv", tmp_path / "b.csv"], out=tmp_path / "out")
    said = "NOT the same images: 195 images were scored by both, of 200, 195"
    assert said in outcome.image_texts["test"] and "not comparable" not in outcome.image_texts["test"]
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert said in page and "not comparable" not in page and "195 images that both scored" in page
    (pair,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    assert (pair["n"], pair["reason"]) == (195, "")
    assert pair["metrics"]["accuracy"]["p"] == pytest.approx(mid_p(made_table(1)[5:], made_table(2)[5:]))


def test_tables_with_other_labels_or_beside_a_data_set_are_not_tested(tmp_path: Path, binary: Path) -> None:
    first, other = made_table(1), made_table(2)
    other["label"] = other["label"].sample(frac=1, random_state=3).to_numpy()
    folder = evaluated(first, tmp_path / "a")
    (pair,) = compare_runs([folder, evaluated(other, tmp_path / "b")]).pairs
    assert "labels of shared images differ" in pair.reason
    dataset = dk.load_dataset(binary)
    table = pd.DataFrame({"image": dataset.manifest["image_id"], "malignant": 0.6, "benign": 0.4})
    table.to_csv(tmp_path / "on.csv", index=False)
    on_dataset = evaluate_foreign(tmp_path / "on.csv", dataset=dataset, out=tmp_path / "on", progress=Progress())
    pairs = compare_runs([folder, on_dataset]).pairs
    assert all("evaluate its table with --on DATASET" in pair.reason for pair in pairs)


def test_file_names_pair_only_where_they_are_unique_and_pair_more() -> None:
    plain, files = pd.Series(["A", "B"]), pd.Series(["x/a.jpg", "y/b.PNG"])
    assert [list(names.values()) for names in common_ids([plain, files])] == [["a", "b"], ["a", "b"]]
    assert [list(names.values()) for names in common_ids([plain, plain])] == [["A", "B"], ["A", "B"]]
    twice = pd.Series(["train/a.jpg", "test/a.jpg"])
    assert list(common_ids([twice, plain])[0].values()) == twice.tolist()


def test_what_is_said_of_shared_images() -> None:
    assert describe_shared_images({"a": 9, "b": 9}, 9, is_same=True, is_paired=True) == "the same 9 images"
    assert "not comparable" in describe_shared_images({"a": 9, "b": 9}, 0, is_same=False, is_paired=False)
    assert "8 images were scored by all 3" in describe_shared_images(
        {"a": 9, "b": 9, "c": 8}, 8, is_same=False, is_paired=True
    )
