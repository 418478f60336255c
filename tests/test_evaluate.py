"""predictions.csv to metrics.json: the checks, the files, the baselines, and evaluation on other classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermkit.data.manifest import MANIFEST_COLUMNS, Dataset, LesionClass
from dermkit.errors import DataError
from dermkit.evaluation.class_mapping import default_mapping, load_mapping, map_labels, remap_predictions
from dermkit.evaluation.evaluate import (
    EvaluationInput,
    evaluate_predictions,
    evaluate_run,
    mistake_rows,
    write_evaluation,
)
from dermkit.files import write_json, write_rows
from dermkit.metrics.stats.intervals import clopper_pearson_interval
from dermkit.runs.folder import read_metrics
from dermkit.runs.layout import METRICS, RUN
from dermkit.runs.predictions import check_predictions, read_predictions


def lesion_class(name: str, malignancy: Any, diagnosis: str = "-") -> LesionClass:
    return LesionClass(name=name, diagnosis=name if diagnosis == "-" else diagnosis, malignancy=malignancy)


THREE = (
    lesion_class("nevus", "benign"),
    lesion_class("melanoma", "malignant"),
    lesion_class("AK", "indeterminate"),
)
NAMES = tuple(item.name for item in THREE)
TWO = (lesion_class("benign", "benign", ""), lesion_class("malignant", "malignant", ""))


def make_predictions(
    n: int = 60, *, names: tuple[str, ...] = NAMES, labels: tuple[str, ...] = (), seed: int = 0
) -> pd.DataFrame:
    """n images of validation and test, right more often than not."""
    rng = np.random.default_rng(seed)
    own = labels or names
    true = rng.integers(0, len(own), n)
    logits = rng.normal(size=(n, len(names))) + (0.0 if labels else 1.5 * np.eye(len(names))[true])
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    frame = pd.DataFrame(
        {
            "image_id": [f"test/i{i:04d}" for i in range(n)],
            "path": [f"test/i{i:04d}.jpg" for i in range(n)],
            "label": np.array(own, dtype=object)[true],
            "split": np.where(np.arange(n) % 3 == 0, "validation", "test"),
            "fold": "",
            "seed": "0",
            "predicted": np.array(names, dtype=object)[p.argmax(axis=1)],
        }
    )
    for i, name in enumerate(names):
        frame[f"p_{name}"] = p[:, i]
    return frame


def write_predictions(path: Path, frame: pd.DataFrame) -> Path:
    write_rows(path, list(frame.columns), frame.itertuples(index=False, name=None))
    return path


def make_run(folder: Path, frame: pd.DataFrame, **split: Any) -> Path:
    table = [{"name": c.name, "diagnosis": c.diagnosis, "malignancy": c.malignancy} for c in THREE]
    body = {"dataset": {"name": "made", "classes": table}, "split": {"leaks": {}, **split}, "seed": 0}
    RUN.write(folder, body)
    write_predictions(folder / "predictions.csv", frame)
    return folder


def test_predictions_read_back_to_the_same_bits_whatever_the_order_of_columns(tmp_path: Path) -> None:
    frame = make_predictions()
    shuffled = frame[list(frame.columns)[::-1]]
    read = read_predictions(write_predictions(tmp_path / "p.csv", shuffled), NAMES)
    assert list(read.columns) == list(frame.columns)
    for name in NAMES:
        assert (read[f"p_{name}"] == frame[f"p_{name}"]).all()


def set_cell(frame: pd.DataFrame, row: int, column: str, value: float | str) -> pd.DataFrame:
    changed = frame.astype(object)
    changed.loc[row, column] = value
    return changed


REFUSALS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "missing column": (lambda f: f.drop(columns="p_AK"), "no column p_AK"),
    "unknown column": (lambda f: f.assign(p_scc=0.0), "unknown column p_scc"),
    "no row": (lambda f: f.head(0), "no row"),
    "text": (lambda f: set_cell(f, 3, "p_AK", "high"), "p_AK is not a finite number: line 5"),
    "empty": (lambda f: set_cell(f, 3, "p_AK", ""), "p_AK is not a finite number: line 5"),
    "nan": (lambda f: set_cell(f, 0, "p_AK", "nan"), "p_AK is not a finite number: line 2"),
    "infinite": (lambda f: set_cell(f, 0, "p_AK", "inf"), "p_AK is not a finite number: line 2"),
    "negative": (lambda f: set_cell(f, 1, "p_AK", -0.1), "outside 0 to 1: line 3"),
    "above one": (lambda f: set_cell(f, 1, "p_AK", 1.1), "outside 0 to 1: line 3"),
    "sum": (
        lambda f: f.assign(p_AK=f["p_AK"] / 2),
        r"do not sum to 1 within 0.0001 \(a table of another tool: 0.001\): line 2",
    ),
    "label": (
        lambda f: set_cell(f, 2, "label", "melanom"),
        "label 'melanom' is not a class; closest is 'melanoma'",
    ),
    "predicted": (lambda f: set_cell(f, 2, "predicted", "scc"), "predicted 'scc' is not a class"),
    "not most probable": (
        lambda f: set_cell(f, 4, "predicted", next(n for n in NAMES if n != f.loc[4, "predicted"])),
        "predicted is not the most probable class: line 6",
    ),
    "split name": (lambda f: set_cell(f, 7, "split", "../test"), "split must be a name.*line 9"),
    "duplicate": (lambda f: pd.concat([f, f.iloc[[5]]], ignore_index=True), "an earlier line: line 62"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_broken_predictions_are_refused_with_the_line(tmp_path: Path, case: str) -> None:
    break_it, message = REFUSALS[case]
    path = write_predictions(tmp_path / "p.csv", break_it(make_predictions()))
    with pytest.raises(DataError, match=message):
        read_predictions(path, NAMES)


def test_all_problems_are_listed_at_once_and_long_lists_are_counted() -> None:
    frame = make_predictions()
    frame = set_cell(frame.assign(split="a b"), 0, "label", "scc")
    with pytest.raises(DataError) as caught:
        check_predictions(frame, NAMES)
    assert "'scc'" in str(caught.value) and "and 40 more" in str(caught.value)


def test_a_file_that_is_missing_or_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "none.csv", NAMES)
    for content in (b"", b"\xff\xfe\x00\x81", b'a,b\n"1,2\n3,4,5,6\n1,2,3'):
        (tmp_path / "p.csv").write_bytes(content)
        with pytest.raises(DataError):
            read_predictions(tmp_path / "p.csv", NAMES)


def test_ties_may_name_either_class() -> None:
    frame = make_predictions(2, names=("a", "b")).assign(p_a=0.5, p_b=0.5, label="a", predicted=["a", "b"])
    assert len(check_predictions(frame, ("a", "b"))) == 2


def test_figures_do_not_depend_on_the_order_of_rows() -> None:
    frame = make_predictions()
    groups = {image: i // 2 for i, image in enumerate(frame["image_id"])}
    moved = frame.sample(frac=1.0, random_state=1)
    one, other = (evaluate_predictions(EvaluationInput(f, classes=THREE, groups=groups)) for f in (frame, moved))
    assert one == other
    assert list(one["splits"]) == ["validation", "test"]
    test = one["splits"]["test"]
    assert test["n"] == 40 and test["n_groups"] == 30 and one["positive"] == ["melanoma"]
    assert test["metrics"]["accuracy"]["method"].startswith("wilson by group")
    assert test["metrics"]["loss"]["method"].startswith("bootstrap by group, BCa")


def test_indeterminate_classes_and_unknown_lesions_are_warned_of() -> None:
    body = evaluate_predictions(EvaluationInput(make_predictions(), classes=THREE, groups=None))
    assert any("AK" in warning and "not malignant" in warning for warning in body["warnings"])
    assert any("independent" in warning for warning in body["warnings"])
    test = body["splits"]["test"]
    assert test["metrics"]["accuracy"]["method"] == "wilson" and body["bootstrap"]["unit"] == "image"


def test_sensitivity_counts_the_malignant_classes_together() -> None:
    """A melanoma called bcc is found: both are malignant."""
    classes = (lesion_class("nevus", "benign"), lesion_class("mel", "malignant"), lesion_class("bcc", "malignant"))
    frame = make_predictions(4, names=("nevus", "mel", "bcc")).assign(
        split="test", label=["mel", "mel", "nevus", "nevus"], predicted=["bcc", "nevus", "nevus", "mel"],
        p_nevus=[0.2, 0.6, 0.6, 0.3], p_mel=[0.3, 0.3, 0.2, 0.4], p_bcc=[0.5, 0.1, 0.2, 0.3],
    )  # fmt: skip
    metrics = evaluate_predictions(EvaluationInput(frame, classes=classes, groups=None))["splits"]["test"][
        "metrics"
    ]
    assert metrics["sensitivity"]["value"] == 0.5 and metrics["sensitivity"]["ci95"] == list(
        clopper_pearson_interval(1, 2)
    )
    assert metrics["specificity"]["value"] == 0.5 and metrics["accuracy"]["value"] == 0.25
    # Scores .8 and .4 of the melanomas against .4 and .7: pairs won 1 + 1 + 0.5 + 0 of 4.
    assert metrics["auroc"]["value"] == pytest.approx(0.625)


def test_an_image_without_group_is_refused() -> None:
    frame = make_predictions()
    groups = dict.fromkeys(frame["image_id"][1:], 0)
    with pytest.raises(DataError, match=r"1 images have no group: test/i0000"):
        evaluate_predictions(EvaluationInput(frame, classes=THREE, groups=groups))


def test_repeats_of_an_image_are_one_group() -> None:
    frame = make_predictions()
    twice = pd.concat([frame, frame.assign(seed="1")])
    body = evaluate_predictions(EvaluationInput(twice, classes=THREE, groups=None))
    assert body["splits"]["test"]["n"] == 80 and body["splits"]["test"]["n_groups"] == 40
    assert any("test: 40 rows repeat an image" in warning for warning in body["warnings"])


def test_a_test_set_lacking_a_class_gives_nulls(tmp_path: Path) -> None:
    frame = make_predictions().query("label != 'melanoma'")
    path = write_evaluation(tmp_path, EvaluationInput(frame, classes=THREE, groups=None))
    test = json.loads(path.read_text())["splits"]["test"]
    assert test["per_class"]["melanoma"]["auroc"]["value"] is None
    assert test["metrics"]["sensitivity"]["reason"] == "no image of a malignant class"
    assert test["metrics"]["auroc_macro"]["value"] is None and test["metrics"]["accuracy"]["value"] is not None
    present = test["metrics"]["recall_macro_present"]
    low, high = present["ci95"]
    assert 0 < low < present["value"] < high < 1 and present["reason"].startswith(
        "mean over 2 of 3 classes, without: melanoma"
    )
    assert "melanoma" not in set(pd.read_csv(tmp_path / "figures/roc_test.csv")["class"])


def test_baselines_know_only_the_training_counts() -> None:
    frame = make_predictions()
    counts = {"nevus": 50, "melanoma": 30, "AK": 20}
    body = evaluate_predictions(EvaluationInput(frame, classes=THREE, groups=None, train_counts=counts))
    test = frame[frame["split"] == "test"]
    baselines = body["splits"]["test"]["baselines"]
    assert baselines["majority"]["class"] == "nevus"
    assert baselines["majority"]["accuracy"]["value"] == pytest.approx((test["label"] == "nevus").mean())
    assert baselines["majority"]["balanced_accuracy"]["value"] == pytest.approx(1 / 3)
    assert baselines["majority"]["sensitivity"]["value"] == 0.0
    shares = test["label"].map({name: n / 100 for name, n in counts.items()}).to_numpy(dtype=float)
    assert baselines["prior"]["loss"]["value"] == pytest.approx(-np.log(shares).mean())
    assert (
        evaluate_predictions(EvaluationInput(frame, classes=THREE, groups=None))["splits"]["test"]["baselines"]
        == {}
    )


def test_evaluate_run_writes_every_table(tmp_path: Path) -> None:
    frame = make_predictions()
    leaks = {
        "n": 40,
        "total": 3,
        "per_class": {"melanoma": {"n": 9, "total": 3}},
        "validation": {"n": 20, "total": 0},
    }
    run = make_run(tmp_path / "run", frame, leaks=leaks, train_counts={"nevus": 9, "AK": 1})
    write_rows(
        run / "groups.csv", ["image_id", "group"], [[image, i // 4] for i, image in enumerate(frame["image_id"])]
    )
    columns = ["epoch", "phase", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_auroc_macro"]
    log: list[list[object]] = [
        [1, 0, 1.0, 0.5, 1.0, 0.5, ""],
        [2, 0, 0.5, 0.8, 1.2, 0.5, 0.7],
        [3, 0, 0.2, 0.9, 1.5, 0.4, 0.7],
    ]
    write_rows(run / "log.csv", columns, log)
    path = evaluate_run(run)
    body = json.loads(path.read_text())
    assert path == run / "metrics.json" and body["format"] == METRICS.format
    assert body["overfitting"]["epoch"] == 2 and body["leaks"] == leaks
    assert [line[:40] for line in body["warnings"] if "leaks" in line] == [
        "the split leaks: 3 of 40 test images sha"
    ]
    assert body["splits"]["test"]["n_groups"] == 15 and body["splits"]["test"]["baselines"]["majority"]
    names = ("confusion", "roc", "classification_report", "mistakes", "confusions", "calibration")
    for split, name in ((split, name) for split in ("validation", "test") for name in names):
        assert (run / f"figures/{name}_{split}.csv").exists()
    assert "melanoma" in (run / "figures/classification_report_test.txt").read_text()
    confusion = pd.read_csv(run / "figures/confusion_test.csv", index_col="label")
    assert confusion.to_numpy().tolist() == body["splits"]["test"]["confusion_matrix"]
    calibration = pd.read_csv(run / "figures/calibration_test.csv")
    assert calibration["n"].sum() == 40 and list(calibration.columns) == ["bin", "n", "confidence", "accuracy"]
    before = path.read_bytes()
    assert evaluate_run(run).read_bytes() == before


def test_validation_settles_what_the_other_splits_are_shown_with(tmp_path: Path) -> None:
    frame = make_predictions(900)
    body = json.loads(evaluate_run(make_run(tmp_path, frame)).read_text())
    decision = json.loads((tmp_path / "policy.json").read_text())
    assert {name: decision[name] for name in body["policy"]} == body["policy"]
    assert decision["n_validation_images"] == 300
    assert "policy" not in body["splits"]["validation"], "it was fitted there"
    told = body["splits"]["test"]["policy"]
    assert told["calibrated"]["kind"] == decision["calibration"]["kind"]
    assert [item["threshold"] for item in told["operating_points"]] == [
        item["threshold"] for item in decision["operating_points"]
    ]
    moved = frame.assign(label=np.where(frame["split"] == "test", "nevus", frame["label"]))
    again = evaluate_predictions(EvaluationInput(moved, classes=THREE, groups=None))
    assert again["policy"] == body["policy"], "the test side has no part in it"
    alone = evaluate_predictions(EvaluationInput(frame[frame["split"] == "test"], classes=THREE, groups=None))
    assert alone["policy"] is None and "policy" not in alone["splits"]["test"]


def test_what_a_model_settled_before_is_shown_on_other_data(tmp_path: Path) -> None:
    evaluate_run(make_run(tmp_path / "own", make_predictions(900)))
    decision = json.loads((tmp_path / "own" / "policy.json").read_text())
    other = make_predictions(200, seed=5).assign(split="test")
    run = make_run(tmp_path / "other", other)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "policy": decision}))
    body = json.loads(evaluate_run(run).read_text())
    told = body["splits"]["test"]["policy"]["operating_points"]
    assert [item["threshold"] for item in told] == [item["threshold"] for item in decision["operating_points"]]
    (run / "run.json").write_text(json.dumps({**about, "policy": {"calibration": 3}}))
    with pytest.raises(DataError, match="broken policy"):
        evaluate_run(run)


def test_figures_by_what_is_known_of_people(tmp_path: Path) -> None:
    frame = make_predictions(900)
    run = make_run(tmp_path, frame)
    rows = [
        (image, "" if i % 7 == 0 else str(20 + i % 60), ("male", "female", "")[i % 3], "", "")
        for i, image in enumerate(frame["image_id"])
    ]
    write_rows(run / "attributes.csv", ("image_id", "age", "sex", "site", "skin_type"), rows)
    found = json.loads(evaluate_run(run).read_text())["splits"]["test"]["subgroups"]
    assert set(found) == {"age", "sex"}, "nothing is known of the others"
    sexes = {item["name"]: item for item in found["sex"]["groups"]}
    test = frame[frame["split"] == "test"]
    sex = dict(zip(frame["image_id"], [row[2] or "unknown" for row in rows], strict=True))
    own = test[test["image_id"].map(sex) == "female"]
    assert sexes["female"]["n"] == len(own)
    assert sexes["female"]["metrics"]["accuracy"]["value"] == (own["label"] == own["predicted"]).mean()
    assert "unknown" in sexes
    assert [item["name"] for item in found["age"]["groups"]][-1] == "unknown"


def test_metrics_of_a_format_to_come_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, make_predictions())
    path = evaluate_run(run)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": METRICS.format + 1}))
    with pytest.raises(DataError, match=f"format {METRICS.format + 1}"):
        read_metrics(run)


def test_mistakes_are_the_wrong_rows_worst_first() -> None:
    frame = make_predictions()
    rows: Any = mistake_rows(frame, NAMES)
    assert len(rows) == (frame["label"] != frame["predicted"]).sum() > 5
    assert [row[4] for row in rows] == sorted((row[4] for row in rows), reverse=True)
    image, path, label, predicted, p_predicted, p_label = rows[0]
    truth = frame.set_index("image_id").loc[image]
    assert (truth["path"], truth["label"], truth["predicted"]) == (path, label, predicted)
    assert (truth[f"p_{predicted}"], truth[f"p_{label}"]) == (p_predicted, p_label)


def test_evaluate_run_takes_training_counts_from_predictions(tmp_path: Path) -> None:
    frame = make_predictions().assign(split=lambda f: np.where(np.arange(len(f)) % 2 == 0, "train", "test"))
    body = json.loads(evaluate_run(make_run(tmp_path, frame)).read_text())
    common = frame.loc[frame["split"] == "train", "label"].mode()
    assert body["splits"]["test"]["baselines"]["majority"]["class"] in set(common)
    assert list(body["splits"]) == ["train", "test"]


def test_groups_and_training_counts_come_from_the_data_set_where_files_lack_them(tmp_path: Path) -> None:
    frame = make_predictions()
    manifest = pd.DataFrame("", index=range(60), columns=list(MANIFEST_COLUMNS)).assign(
        image_id=frame["image_id"], path=frame["path"], label=frame["label"],
        lesion_id=[f"lesion{i // 2}" for i in range(60)], width=8, height=8,
    )  # fmt: skip
    extra = manifest.head(9).assign(image_id=[f"train/{i}" for i in range(9)], label="AK", lesion_id="own")
    dataset = Dataset(folder=tmp_path, image_root=tmp_path, name="made", classes=THREE,
                      manifest=pd.concat([manifest, extra], ignore_index=True), importer="test", notes={})  # fmt: skip
    run = make_run(tmp_path / "run", frame)
    write_rows(
        run / "split.csv", ["image_id", "split", "fold"], [[name, "train", ""] for name in extra["image_id"]]
    )
    test = json.loads(evaluate_run(run, dataset).read_text())["splits"]["test"]
    assert test["n_groups"] == 30 and test["baselines"]["majority"]["class"] == "AK"


def test_a_broken_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        evaluate_run(tmp_path)
    run = make_run(tmp_path, make_predictions())
    write_rows(run / "groups.csv", ["image_id", "lesion"], [])
    with pytest.raises(DataError, match="no column group"):
        evaluate_run(run)
    (run / "groups.csv").unlink()
    (run / "log.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"log\.csv: cannot be read"):
        evaluate_run(run)
    RUN.write(run, {"dataset": {}})
    with pytest.raises(DataError, match="no class table"):
        evaluate_run(run)


def test_default_mapping_by_name_diagnosis_and_malignancy() -> None:
    assert default_mapping(THREE, THREE[::-1]).rule == "identity"
    short = (lesion_class("nv", "benign", "nevus"), lesion_class("mel", "malignant", "melanoma"),
             lesion_class("df", "benign", "dermatofibroma"))  # fmt: skip
    by_diagnosis = default_mapping(THREE, short)
    assert by_diagnosis.rule == "diagnosis" and by_diagnosis.data == {"nv": "nevus", "mel": "melanoma", "df": None}
    assert [item.name for item in by_diagnosis.targets] == list(NAMES)
    to_two = default_mapping(TWO, THREE)
    assert to_two.rule == "malignancy" and to_two.data == {"nevus": "benign", "melanoma": "malignant", "AK": None}
    from_three = default_mapping(THREE, TWO)
    assert from_three.model == {"nevus": "benign", "melanoma": "malignant", "AK": "indeterminate"}
    assert [item.name for item in from_three.targets] == ["benign", "malignant", "indeterminate"]
    with pytest.raises(DataError, match="share nothing"):
        default_mapping(THREE, short[2:])


def test_unmapped_images_are_counted_and_no_probability_is_lost() -> None:
    """A 3-class model on a benign / malignant / unknown data set."""
    data = (*TWO, lesion_class("unknown", "indeterminate", ""))
    frame = make_predictions(labels=("benign", "malignant", "unknown"))
    mapping = default_mapping(THREE, data)
    remapped = remap_predictions(frame, mapping)
    n_unknown = int((frame["label"] == "unknown").sum())
    assert remapped.unmapped_counts == {"unknown": n_unknown} and len(remapped.unmapped_images) == n_unknown > 0
    assert len(remapped.predictions) + n_unknown == len(frame)
    own = frame[frame["label"] != "unknown"].reset_index(drop=True)
    assert (remapped.predictions["p_malignant"] == own["p_melanoma"]).all()
    body = evaluate_predictions(EvaluationInput(remapped.predictions, classes=remapped.classes, groups=None))
    assert body["positive"] == ["malignant"]
    assert body["splits"]["test"]["per_class"]["indeterminate"]["recall"]["value"] is None


def test_what_was_left_out_on_another_data_set_is_carried_over(tmp_path: Path) -> None:
    run = make_run(tmp_path, make_predictions())
    facts = json.loads((run / "run.json").read_text())
    RUN.write(run, {**facts, "unmapped": {"scc": 4}, "mapping": {"rule": "file"}})
    body = json.loads(evaluate_run(run).read_text())
    assert body["unmapped"] == {"scc": 4} and body["mapping"] == {"rule": "file"}
    assert not any("leaks" in warning for warning in body["warnings"])


def make_map(path: Path, classes: dict[str, Any], model: dict[str, Any]) -> Path:
    write_json(path, {"classes": classes, "model": model}, format=1)
    return path


def test_a_mapping_file_joins_classes(tmp_path: Path) -> None:
    data = (lesion_class("nv", "benign"), lesion_class("mel", "malignant"), lesion_class("bcc", "malignant"))
    path = make_map(tmp_path / "c.json", {"nv": "rest", "mel": "melanoma", "bcc": None},
                    {"nevus": "rest", "AK": "rest", "melanoma": "melanoma"})  # fmt: skip
    mapping = load_mapping(path, THREE, data)
    assert {item.name: item.malignancy for item in mapping.targets} == {
        "rest": "indeterminate",
        "melanoma": "malignant",
    }
    frame = make_predictions(labels=("nv", "mel", "bcc"))
    remapped = remap_predictions(check_predictions(frame, NAMES, labels=("nv", "mel", "bcc")), mapping)
    kept = frame[frame["label"] != "bcc"].reset_index(drop=True)
    # Sums of several classes have ten significant digits, so that equal ones tie.
    np.testing.assert_allclose(remapped.predictions["p_rest"], kept["p_nevus"] + kept["p_AK"], rtol=1e-9)
    most = np.where(remapped.predictions["p_rest"] >= remapped.predictions["p_melanoma"], "rest", "melanoma")
    assert (remapped.predictions["predicted"] == most).all()
    assert map_labels(["bcc", "nv"], mapping) == [None, "rest"]
    body = evaluate_predictions(EvaluationInput(remapped.predictions, classes=remapped.classes, groups=None))
    assert body["positive"] == ["melanoma"]


BROKEN_MAPS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "label left out": (
        {"benign": "a"},
        {"nevus": "a", "melanoma": "b", "AK": "a"},
        "'malignant' is not mentioned",
    ),
    "class left out": (
        {"benign": "a", "malignant": "b"},
        {"nevus": "a", "melanoma": "b"},
        "'AK' is not mentioned",
    ),
    "typo": (
        {"benign": "a", "malignant": "b"},
        {"nevus": "a", "melanom": "b", "melanoma": "b", "AK": "a"},
        "'melanom' is unknown; closest is 'melanoma'",
    ),
    "class to nothing": (
        {"benign": "a", "malignant": "b"},
        {"nevus": "a", "melanoma": "b", "AK": None},
        "model: 'AK' must go to a name",
    ),
    "label to a number": (
        {"benign": 1, "malignant": "b"},
        {"nevus": "a", "melanoma": "b", "AK": "b"},
        "classes: 'benign' must go to a name or null",
    ),
    "unknown target": (
        {"benign": "a", "malignant": "c"},
        {"nevus": "a", "melanoma": "b", "AK": "b"},
        "no model class goes to 'c'",
    ),
    "one target": (
        {"benign": "a", "malignant": "a"},
        {"nevus": "a", "melanoma": "a", "AK": "a"},
        "two are needed",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MAPS)
def test_broken_mappings_are_refused(tmp_path: Path, case: str) -> None:
    classes, model, message = BROKEN_MAPS[case]
    with pytest.raises(DataError, match=message):
        load_mapping(make_map(tmp_path / "c.json", classes, model), THREE, TWO)


def test_a_mapping_that_is_no_object_or_maps_nothing_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "c.json", {"classes": [], "model": {}}, format=1)
    with pytest.raises(DataError, match="needs exactly"):
        load_mapping(tmp_path / "c.json", THREE, TWO)
    frame = make_predictions(labels=("AK2",))
    by_diagnosis = default_mapping(
        THREE, (lesion_class("AK2", "benign", "x"), lesion_class("n", "benign", "nevus"))
    )
    with pytest.raises(DataError, match="no image has a target: AK2"):
        remap_predictions(frame, by_diagnosis)
    with pytest.raises(DataError, match="'scc' is not mentioned"):
        map_labels(["scc"], by_diagnosis)
