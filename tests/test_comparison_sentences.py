"""Sentences of a comparison name who is ahead, which images they count, and why p and interval seem to disagree."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

import dermkit as dk
from dermkit.comparison.against_published import PublishedComparison
from dermkit.comparison.claims import CountedFigure
from dermkit.comparison.compare import _shared_groups
from dermkit.comparison.disagreements import TIE_SEED, disagreement_table
from dermkit.comparison.image_overlap import ids_of_equal_files
from dermkit.comparison.run_data import RunData
from dermkit.comparison.verdict import RepeatedDifference, verdict
from dermkit.evaluation.foreign_predictions import evaluate_foreign
from dermkit.metrics.classification.difference import Difference
from dermkit.metrics.stats.estimate import Estimate
from dermkit.progress import Progress


def difference(
    value: float, low: float, high: float, *, p: float, p_holm: float | None = None, metric: str = "accuracy",
    n: int = 118, needed: int | None = None,
) -> Difference:  # fmt: skip
    estimate = Estimate(value, (low, high), n, "paired bootstrap by image")
    return Difference(metric, estimate, "sign flips", p=p, p_holm=p_holm, images_needed=needed)


def repeated(item: Difference) -> RepeatedDifference:
    return RepeatedDifference(
        **{name: getattr(item, name) for name in Difference.__dataclass_fields__}, n_trainings=(3, 3)
    )


@pytest.mark.parametrize(
    ("metric", "value", "leader"),
    [("accuracy", 0.02, "new is ahead"), ("accuracy", -0.02, "old is ahead"), ("loss", 0.02, "old is ahead"),
     ("brier", -0.02, "new is ahead"), ("auroc", 0.0, "neither is ahead")],
)  # fmt: skip
def test_every_sentence_names_who_is_ahead(metric: str, value: float, leader: str) -> None:
    item = difference(value, value - 0.1, value + 0.1, p=0.4, metric=metric)
    for sentence in (
        verdict(item, "new", "old"),
        verdict(repeated(item), "new", "old"),
        verdict(replace(item, p=None), "new", "old"),
    ):
        assert leader in sentence, sentence
    if value:
        better = verdict(replace(item, p=0.001), "new", "old")
        assert leader.replace("ahead", "better") in better and "ahead" not in better


def test_what_a_published_figure_is_compared_with_is_named() -> None:
    figure = CountedFigure("accuracy", 0.466, (55,), 118, (0.379, 0.556), "wilson")
    run = Estimate(0.483, (0.39, 0.57), 118, "wilson")
    gap = Estimate(0.017, (-0.108, 0.141), 118, "newcombe")
    sentence = PublishedComparison("s2", "test", 1, "theirs", figure, run, gap).sentence()
    assert "not distinguishable; s2 is ahead, +0.017" in sentence
    lower = replace(gap, value=-0.2, ci95=(-0.3, -0.1))
    assert (
        ": theirs is higher, -0.200"
        in PublishedComparison("s2", "test", 1, "theirs", figure, run, lower).sentence()
    )


@pytest.mark.parametrize(
    ("metric", "noun"),
    [("accuracy", "images"), ("sensitivity", "malignant images"), ("specificity", "non-malignant images")],
)
def test_numbers_of_images_say_of_which(metric: str, noun: str) -> None:
    item = difference(0.1, -0.05, 0.25, p=0.2, metric=metric, n=20, needed=39)
    assert f"not distinguishable on 20 {noun}; a is ahead" in verdict(item, "a", "b")
    assert f"about 39 {noun} would be needed" in verdict(item, "a", "b")
    assert f"3 trainings each, 20 {noun}; a is ahead" in verdict(repeated(item), "a", "b")
    assert f"about 39 {noun} would be needed" in verdict(repeated(item), "a", "b")


def test_a_p_that_seems_to_contradict_its_interval_is_explained() -> None:
    corrected = difference(0.05, 0.01, 0.09, p=0.02, p_holm=0.2, needed=400)
    text = verdict(corrected, "a", "b")
    assert "p 0.200" in text and "about 400 images would be needed" in text
    assert text.endswith("; p is corrected for all comparisons, the interval is of this one alone (p 0.020).")
    near = verdict(difference(0.05, 0.001, 0.099, p=0.052), "a", "b")
    assert near.endswith(
        "; the interval excludes 0: test and interval are different methods, which can differ near the limit."
    )
    other = verdict(difference(0.05, -0.001, 0.101, p=0.048), "a", "b")
    assert "a is better" in other and "the interval includes 0: test and interval are different methods" in other
    for plain in (difference(0.05, 0.01, 0.09, p=0.01), difference(0.05, -0.01, 0.11, p=0.1)):
        assert "interval" not in verdict(plain, "a", "b")
    hidden = replace(corrected, estimate=replace(corrected.estimate, ci95=None, reason="the images are one unit"))
    assert verdict(hidden, "a", "b").endswith("; p is corrected for all comparisons.")


# The most divided images ------------------------------------------------------------------------------------------


def rows(labels: list[str], predicted: list[str]) -> pd.DataFrame:
    ids = [f"{label}/{i:03d}" for i, label in enumerate(labels)]
    return pd.DataFrame(
        {"path": ids, "label": labels, "predicted": predicted}, index=pd.Index(ids, name="image_id")
    )


def test_equally_divided_images_are_in_random_order_by_a_seed() -> None:
    labels = ["a"] * 100 + ["b"] * 100
    first, second = rows(labels, labels), rows(labels, ["b"] * 100 + ["a"] * 100)
    table = disagreement_table({"one": [first], "two": [second]})
    assert table is not None and len(table) == 200
    expected = np.argsort(np.random.default_rng(TIE_SEED).permutation(200))
    assert table["image_id"].tolist() == [sorted(first.index)[row] for row in expected]
    n_of_a = (table["label"].head(24) == "a").sum()
    assert 4 <= n_of_a <= 20, "by name all 24 would be of class a"


def test_more_divided_images_come_first_and_tied_answers_are_both_named() -> None:
    labels = ["a"] * 6
    runs = [["a", "a", "b", "b", "a", "a"], ["a", "b", "b", "b", "a", "a"], ["a", "b", "a", "b", "a", "a"],
            ["a", "b", "a", "b", "a", "b"]]  # fmt: skip
    table = disagreement_table({"recipe": [rows(labels, answers) for answers in runs]})
    assert table is not None
    assert table["n_wrong"].tolist() in ([2, 1, 3], [2, 3, 1])
    assert table["recipe"].tolist()[0] == "a or b (2 of 4 each)"
    assert set(table["recipe"].tolist()[1:]) == {"a (3 of 4)", "b (3 of 4)"}


# Tables beside runs of a data set -----------------------------------------------------------------------------------


def test_a_table_without_a_data_set_is_paired_with_one_that_was_evaluated_on_it(
    binary: Path, tmp_path: Path
) -> None:
    manifest = dk.load_dataset(binary).manifest
    test = manifest[manifest["given_split"] == "test"]
    is_malignant = (test["label"] == "malignant").to_numpy()

    def table(seed: int) -> pd.DataFrame:
        noise = np.random.default_rng(seed).normal(0, 0.3, len(test))
        p = np.clip(0.5 + 0.2 * (2 * is_malignant - 1) + noise, 0.01, 0.99)
        columns = {"image": test["image_id"], "label": test["label"], "benign": 1 - p, "malignant": p}
        return pd.DataFrame(columns)

    first, second = table(1), table(2)
    first.to_csv(tmp_path / "first.csv", index=False)
    second[3:].to_csv(tmp_path / "second.csv", index=False)
    dataset = dk.load_dataset(binary)
    on_dataset = evaluate_foreign(
        tmp_path / "first.csv", dataset=dataset, out=tmp_path / "on", progress=Progress()
    )
    outcome = dk.compare([on_dataset, tmp_path / "second.csv"], out=tmp_path / "out")
    n = len(test) - 3
    assert any(f"paired by image id, and their labels agree ({n} on test)" in note for note in outcome.notes)
    assert f"{n} images were scored by both" in outcome.image_texts["test"]
    right = [(item["malignant"] > 0.5).to_numpy()[3:] == is_malignant[3:] for item in (first, second)]
    b, c = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    accuracy = pairs[(pairs["metric"] == "accuracy") & (pairs["split"] == "test")].iloc[0]
    assert accuracy["difference"] == pytest.approx((b - c) / n)
    if not np.isnan(accuracy["first_only_correct"]):
        assert (accuracy["first_only_correct"], accuracy["second_only_correct"]) == (b, c)
        mid_p = 2 * binom.cdf(min(b, c), b + c, 0.5) - binom.pmf(min(b, c), b + c, 0.5)
        assert accuracy["p"] == pytest.approx(min(1.0, mid_p))


def on_dataset(dataset: dk.Dataset, seed: int, folder: Path) -> tuple[Path, pd.DataFrame]:
    """Evaluate made probabilities of a data set's test images; returns the folder, and the table by class and file."""
    test = dataset.manifest[dataset.manifest["given_split"] == "test"]
    is_malignant = (test["label"] == "malignant").to_numpy()
    # The noise belongs to a picture, whatever its name is
    rng = [np.random.default_rng([seed, int(sha[:8], 16)]) for sha in test["file_sha256"]]
    p = np.clip(0.5 + 0.15 * (2 * is_malignant - 1) + [r.normal(0, 0.3) for r in rng], 0.01, 0.99)
    table = pd.DataFrame({"image": test["image_id"], "benign": 1 - p, "malignant": p})
    folder.mkdir()
    table.to_csv(folder / "table.csv", index=False)
    out = evaluate_foreign(folder / "table.csv", dataset=dataset, out=folder / "out", progress=Progress())
    return out, pd.DataFrame({"sha": test["file_sha256"], "right": (p > 0.5) == is_malignant})


def test_runs_of_two_data_sets_are_paired_where_their_files_are_equal(binary: Path, tmp_path: Path) -> None:
    first = dk.load_dataset(binary)
    shutil.copytree(first.image_root, tmp_path / "photos")
    # Every id is now that of another picture: what shares an id is not what shares its pixels.
    for folder in sorted(path for path in (tmp_path / "photos").rglob("*") if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        contents = [path.read_bytes() for path in files]
        for path, content in zip(files, contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)
    next(path for path in sorted((tmp_path / "photos").rglob("*.*")) if "test" in path.parts).unlink()
    second = dk.import_dataset("folder", tmp_path / "photos", out=tmp_path / "second").dataset
    one, right_one = on_dataset(first, 1, tmp_path / "a")
    two, right_two = on_dataset(second, 2, tmp_path / "b")
    outcome = dk.compare([one, two], out=tmp_path / "out")
    both = right_one.merge(right_two, on="sha")
    assert len(both) == len(right_one) - 1
    assert any(f"where their files are equal ({len(both)} on test)" in note for note in outcome.notes), (
        outcome.notes,
        outcome.sentences,
        outcome.image_texts,
    )
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    accuracy = pairs[pairs["metric"] == "accuracy"].iloc[0]
    assert accuracy["n"] == len(both)
    assert accuracy["difference"] == pytest.approx(both["right_x"].mean() - both["right_y"].mean())


def test_images_are_in_one_group_where_any_of_the_runs_says_so() -> None:
    def run(groups: dict[str, int] | None) -> RunData:
        return RunData("a run", (), pd.DataFrame(), groups, "hash", 1, is_unnamed=False, images_root=None)

    alone = run(
        {"a": 0, "b": 1, "c": 2, "d": 3}
    )  # a data set without lesion ids: every image is a group of its own
    lesions = run({"a": 7, "b": 7, "c": 2, "d": 9, "not shared": 2})
    patients = run({"a": 0, "b": 4, "c": 4, "d": 5})
    for runs in ([alone, lesions], [lesions, alone], [run(None), lesions]):
        groups = _shared_groups(runs, "abcd")
        assert groups is not None and groups["a"] == groups["b"] and len(set(groups.values())) == 3
    joined = _shared_groups([alone, lesions, patients], "abcd")
    assert joined is not None and joined["a"] == joined["b"] == joined["c"] != joined["d"]
    assert _shared_groups([alone, run({"a": 0})], "abcd") == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert _shared_groups([run(None)], "abcd") is None


def test_a_file_that_is_there_twice_or_not_at_hand_is_paired_with_none(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2"), ("c", "2"), ("d", "3"), ("e", "1"), ("f", "2")):
        (tmp_path / name).write_text(text)
    first: dict[str, Path | None] = {"x": tmp_path / "a", "y": tmp_path / "b", "z": tmp_path / "c", "v": None}
    second: dict[str, Path | None] = {"y": tmp_path / "e", "x": tmp_path / "f", "w": tmp_path / "gone", "v": None}
    ids = ids_of_equal_files([first, second])
    assert ids is not None
    assert ids[0] == {"x": "x", "y": "y", "z": "z", "v": "v"}
    assert ids[1] == {
        "y": "x", "x": "x (of data set 2)", "w": "w (of data set 2)", "v": "v (of data set 2)",
    }  # fmt: skip
    assert ids_of_equal_files([first, {"w": tmp_path / "d"}]) is None
    assert ids_of_equal_files([first, {}]) is None
