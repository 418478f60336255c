"""What evaluate shows on request: wishes, prevalences, the official scorer's rules; and that nothing of it stays."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, UntrustedError, UsageError
from dermkit.evaluation.evaluate import EvaluationInput, evaluate_predictions, evaluate_run
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions, parse_options
from dermkit.evaluation.tables import NET_BENEFIT_HEADER, net_benefit_rows
from dermkit.files import write_rows
from dermkit.metrics.classification.calibration import net_benefit, net_benefit_call_all
from dermkit.metrics.classification.isic_scorer import SCORER_METRICS, image_weights, official_dict
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.policy import policy_from_dict
from dermkit.models import card as models_card
from dermkit.prediction.load import load_model
from dermkit.runs.layout import RUN

TWO = (LesionClass("benign", "", "benign"), LesionClass("malignant", "", "malignant"))
ALL = EvaluationOptions(
    official=True, targets=(("sensitivity", 0.97), ("specificity", 0.8)), prevalences=(0.03, 0.2)
)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def make_frame(n: int = 600, *, splits: Sequence[str] = ("validation", "test"), seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 2, n)
    p = 1 / (1 + np.exp(-generator.normal(2.0 * (2 * true - 1), 1.5)))
    ids = [f"test/ISIC_{i:07d}" for i in range(n)]
    names = np.array([item.name for item in TWO], dtype=object)
    return pd.DataFrame(
        {"image_id": ids, "path": [f"{name}.jpg" for name in ids], "label": names[true],
         "split": [splits[i % len(splits)] for i in range(n)], "fold": "", "seed": "",
         "predicted": names[(p > 0.5).astype(int)], "p_benign": 1 - p, "p_malignant": p}
    )  # fmt: skip


def make_run(folder: Path, frame: pd.DataFrame, classes: Sequence[LesionClass] = TWO) -> Path:
    table = [{"name": c.name, "diagnosis": c.diagnosis, "malignancy": c.malignancy} for c in classes]
    RUN.write(folder, {"dataset": {"name": "made", "classes": table}, "split": {}, "seed": 0})
    write_rows(folder / "predictions.csv", list(frame.columns), frame.itertuples(index=False, name=None))
    return folder


# What may be asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "prevalences", "said"),
    [
        (["recall=.9"], [], "a target is a sensitivity or a specificity"),
        (["sensitivity"], [], "says no rate and number"),
        (["sensitivity=high"], [], "'high' is no number"),
        (["sensitivity=1"], [], "above 0 and below 1"),
        (["specificity=0"], [], "above 0 and below 1"),
        (["sensitivity=nan"], [], "above 0 and below 1"),
        (["sensitivity=.9", "sensitivity=0.90"], [], "sensitivity=0.9: is given twice"),
        ([], ["3%"], "'3%' is not a number"),
        ([], ["3"], "above 0 and below 1"),
        ([], ["-.1"], "above 0 and below 1"),
        ([], ["inf"], "above 0 and below 1"),
        ([], [".2", "0.2"], "prevalence 0.2: is given twice"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error_that_says_what_can(
    wishes: list[str], prevalences: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_options(official=False, targets=wishes, prevalences=prevalences)
    assert caught.value.remedy.startswith("--target sensitivity=.97" if wishes else "--prevalence .03")


def test_what_is_asked_is_read_as_it_stands() -> None:
    asked = parse_options(
        official=True, targets=["sensitivity=.97", "specificity=0.8"], prevalences=[".03", "0.2"]
    )
    assert asked == ALL
    assert parse_options(official=False, targets=[], prevalences=[]) == DEFAULT_OPTIONS


# Asked, and not asked again ---------------------------------------------------------------------------------------


def test_what_was_asked_stands_beside_the_usual_and_goes_with_the_next_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path, make_frame())
    plain = evaluate_run(run).read_bytes()
    decision, usual = (run / "policy.json").read_bytes(), json.loads(plain)["splits"]["test"]
    body = read(evaluate_run(run, options=ALL))
    test = body["splits"]["test"]
    assert body["options"] == ALL.as_dict()
    points = test["policy"]["operating_points"]
    wishes = [(item["name"], item["requested"]) for item in points]
    assert wishes == [("sensitivity 0.95", False), ("sensitivity 0.9", False), ("specificity 0.9", False),
                      ("sensitivity 0.97", True), ("specificity 0.8", True)]  # fmt: skip
    for mine, theirs in zip(points, usual["policy"]["operating_points"], strict=False):
        assert [item["prevalence"] for item in mine["per_prevalence"]] == [0.01, 0.03, 0.05, 0.2]
        kept = [item for item in mine["per_prevalence"] if item["prevalence"] != 0.03]
        assert {**mine, "per_prevalence": kept} == theirs
    assert test["metrics"] == usual["metrics"]
    stored = read(run / "policy.json")
    assert stored["operating_points"] == json.loads(decision)["operating_points"], "the model's own stay"
    assert [item["threshold"] for item in stored["requested_points"]] == [item["threshold"] for item in points[3:]]
    assert (run / "figures" / "official_test.csv").is_file()
    assert evaluate_run(run).read_bytes() == plain
    assert (run / "policy.json").read_bytes() == decision
    assert not list((run / "figures").glob("official_*"))


def test_a_wish_that_is_a_usual_one_stands_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, make_frame())
    body = read(evaluate_run(run, options=EvaluationOptions(targets=(("sensitivity", 0.95),))))
    points = body["splits"]["test"]["policy"]["operating_points"]
    assert [item["name"] for item in points] == ["sensitivity 0.95", "sensitivity 0.9", "specificity 0.9"]


def test_the_wished_threshold_is_settled_on_validation_alone() -> None:
    frame, asked = make_frame(), EvaluationOptions(targets=(("sensitivity", 0.8),))
    one = evaluate_predictions(EvaluationInput(frame, classes=TWO, groups=None, options=asked))
    moved = frame.assign(label=np.where(frame["split"] == "test", "benign", frame["label"]))
    moved.loc[moved.index[-1], "label"] = "malignant"
    two = evaluate_predictions(EvaluationInput(moved, classes=TWO, groups=None, options=asked))
    assert one["policy"] == two["policy"]
    value = one["policy"]["requested_points"][0]["threshold"]
    positives = frame[(frame["split"] == "validation") & (frame["label"] == "malignant")]["p_malignant"]
    assert one["policy"]["calibration"]["kind"] != "none" or (positives >= value).mean() > 0.8


@pytest.mark.parametrize(
    "asked", [EvaluationOptions(targets=(("sensitivity", 0.97),)), EvaluationOptions(prevalences=(0.03,))]
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_what_no_validation_image_settles_is_refused_and_nothing_is_written(
    tmp_path: Path, asked: EvaluationOptions, split: str
) -> None:
    run = make_run(tmp_path, make_frame(90, splits=(split,)))
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(DataError, match=f"these predictions are of {split} only"):
        evaluate_run(run, options=asked)
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize(("label", "rate", "side"), [("benign", "sensitivity", "malignant"),
                                                     ("malignant", "specificity", "other than malignant")])  # fmt: skip
def test_a_wish_for_a_side_without_validation_images_says_which(
    tmp_path: Path, label: str, rate: str, side: str
) -> None:
    frame = make_frame(90)
    frame["label"] = np.where(frame["split"] == "validation", label, frame["label"])
    with pytest.raises(DataError, match=f"no validation image is {side}"):
        evaluate_run(make_run(tmp_path, frame), options=EvaluationOptions(targets=((rate, 0.97),)))


def test_a_class_table_with_one_side_has_no_operating_point(tmp_path: Path) -> None:
    table = tuple(LesionClass(item.name, "", "benign") for item in TWO)
    for asked in (EvaluationOptions(targets=(("sensitivity", 0.97),)), EvaluationOptions(prevalences=(0.03,))):
        with pytest.raises(DataError, match="the class table has not two sides"):
            evaluate_run(make_run(tmp_path, make_frame(90), table), options=asked)


def test_a_test_side_without_two_sides_says_why_it_shows_no_point(tmp_path: Path) -> None:
    frame = make_frame(200)
    frame["label"] = np.where(frame["split"] == "test", "benign", frame["label"])
    told = read(evaluate_run(make_run(tmp_path, frame), options=ALL))["splits"]["test"]["policy"]
    assert told["operating_points"] == []
    assert told["why_no_operating_points"] == "no image here is malignant"


def test_the_commands_take_and_refuse_it(tmp_path: Path, invoke: Invoke) -> None:
    run = make_run(tmp_path / "run", make_frame(120))
    code, out, err = invoke("evaluate", run, "--official", "--target", "sensitivity=.97", "--prevalence", ".03")
    assert code == 0, err
    page = Path(out.splitlines()[-1]).read_text()
    assert "asked for in this evaluation; not in the model folder" in page
    assert "By the official scorer's rules" in page.replace("&#39;", "'")
    code, _, err = invoke("evaluate", run, "--target", "recall=.97")
    assert code == 2
    assert "--target sensitivity=.97" in err
    table = tmp_path / "table.csv"
    make_frame(60, splits=("test",)).drop(columns=["predicted", "fold", "seed"]).to_csv(table, index=False)
    code, _, err = invoke("evaluate", "--predictions", table, "--out", tmp_path / "out", "--prevalence", ".03")
    assert code == 3
    assert "fitted on validation images" in err
    code, out, err = invoke("evaluate", "--predictions", table, "--out", tmp_path / "out", "--official")
    assert code == 0, err
    assert "official" in read(tmp_path / "out" / "metrics.json")["splits"]["test"]


@pytest.mark.parametrize(
    ("wish", "validation", "said"),
    [
        ("sensitivity=.97", "benign", "no validation image is malignant"),
        ("specificity=.8", "malignant", "no validation image is other than malignant"),
        ("sensitivity=.97", "", "fitted on validation images"),
    ],
)
def test_a_refused_wish_of_a_table_leaves_nothing_and_says_so(
    tmp_path: Path, invoke: Invoke, wish: str, validation: str, said: str
) -> None:
    frame = make_frame(60).drop(columns=["predicted", "fold", "seed"])
    frame = frame[(frame["label"] == validation) | (frame["split"] == "test")]
    frame.to_csv(tmp_path / "table.csv", index=False)
    words = ("evaluate", "--predictions", tmp_path / "table.csv", "--out", tmp_path / "out", "--target", wish)
    code, _, err = invoke(*words)
    assert code == 3
    assert said in err and "nothing was written" in err and "the last evaluation" not in err
    assert not (tmp_path / "out").exists()


# The model folder -------------------------------------------------------------------------------------------------


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_evaluating_with_wishes_leaves_the_model_folder_as_training_left_it(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = folder_bytes(run / "model")
    dk.evaluate(run, options=ALL)
    assert folder_bytes(run / "model") == before
    weights = next(path for path in (run / "model").iterdir() if path.suffix == ".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    dk.evaluate(run)
    assert (run / "model" / "SHA256SUMS").read_bytes() == before["SHA256SUMS"], "a changed file is not vouched for"
    other = {**read(run / "policy.json"), "n_validation_images": 1}
    with pytest.raises(UntrustedError, match="not those that were saved"):
        models_card.write_policy(run / "model", other)


def test_a_wish_on_other_data_is_settled_on_the_runs_own_validation_images(
    trained: Path, binary: Path, tmp_path: Path
) -> None:
    data, asked = dk.load_dataset(binary), EvaluationOptions(targets=(("specificity", 0.7),), official=True)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    own = read(dk.evaluate(run, options=asked).parent / "policy.json")["requested_points"]
    report = dk.evaluate(run, dataset=data, out=tmp_path / "other", options=asked)
    body = read(report.parent / "metrics.json")
    point = body["splits"]["test"]["policy"]["operating_points"][-1]
    assert (point["requested"], point["threshold"]) == (True, own[0]["threshold"])
    assert "requested_points" not in read(report.parent / "run.json")["policy"]
    with pytest.raises(DataError, match="these predictions are of seen_in_training, test only"):
        dk.evaluate(report.parent, options=asked)
    again = read(dk.evaluate(report.parent).parent / "metrics.json")
    assert not any(item["requested"] for item in again["splits"]["test"]["policy"]["operating_points"])


# The official rules -----------------------------------------------------------------------------------------------


def test_the_official_figures_of_four_images() -> None:
    true = np.array([0, 0, 1, 1])
    scores = np.array([[0.7, 0.3], [0.5, 0.5], [0.4, 0.6], [0.8, 0.2]])
    found = official_dict(["a", "b"], true, scores, ["1", "2", "3", "4"])
    assert found["balanced_accuracy"] == 0.5, "the tie is wrong; one of two right on either side"
    a, b = found["per_category"]["a"], found["per_category"]["b"]
    assert (a["n"], a["sensitivity"], a["specificity"], a["ppv"], a["npv"]) == (2, 0.5, 0.5, 0.5, 0.5)
    assert (b["sensitivity"], b["specificity"], b["ppv"], b["accuracy"]) == (0.5, 1.0, 1.0, 0.75)
    assert a["auc"] == 0.5
    assert found["macro_average"]["specificity"] == 0.75
    assert set(found["macro_average"]) == set(SCORER_METRICS)
    assert found["n"] == 4 and found["left_out"] == []


def test_an_image_of_weight_nothing_is_left_out_by_its_id() -> None:
    names = ["x ISIC_0035068.jpg", "ISIC_00350681", "images/ISIC_0035067", "ISIC_0035068_downsampled"]
    weight, left_out = image_weights(names)
    assert weight.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert left_out == ["ISIC_0035068"]
    frame = make_frame(60, splits=("test",))
    known = {frame["image_id"][7]: "ISIC_0035068"}
    asked = EvaluationOptions(official=True)
    without = evaluate_predictions(EvaluationInput(frame.drop(index=7), classes=TWO, groups=None, options=asked))[
        "splits"
    ]["test"]
    body = evaluate_predictions(EvaluationInput(frame, classes=TWO, groups=None, options=asked, isic_ids=known))[
        "splits"
    ]["test"]
    assert (body["n"], body["official"]["n"], body["official"]["left_out"]) == (60, 59, ["ISIC_0035068"])
    assert body["official"] == {**without["official"], "left_out": ["ISIC_0035068"]}
    other = frame.index == 7
    renamed = frame.assign(
        image_id=frame["image_id"].mask(other, "seven"), path=frame["path"].mask(other, "test/ISIC_0035068.jpg")
    )
    again = evaluate_predictions(EvaluationInput(renamed, classes=TWO, groups=None, options=asked))["splits"][
        "test"
    ]
    assert again["official"] == body["official"]


def test_an_absent_class_gives_the_reason_and_no_figure(tmp_path: Path) -> None:
    frame = make_frame(60, splits=("test",)).assign(label="benign")
    run = make_run(tmp_path, frame)
    found = read(evaluate_run(run, options=EvaluationOptions(official=True)))["splits"]["test"]["official"]
    assert found["reason"].startswith("no image of malignant")
    assert "balanced_accuracy" not in found
    assert not (run / "figures" / "official_test.csv").exists()


# The decision curve -----------------------------------------------------------------------------------------------


def test_the_decision_curve_is_net_benefit_and_its_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, make_frame())
    body = read(evaluate_run(run))
    table = pd.read_csv(run / "figures" / "net_benefit_test.csv")
    assert tuple(table.columns) == NET_BENEFIT_HEADER
    np.testing.assert_allclose(table["threshold"], np.arange(1, 100) / 100)
    frame = make_frame().query("split == 'test'")
    p, positive = frame["p_malignant"].to_numpy(), (frame["label"] == "malignant").to_numpy()
    np.testing.assert_allclose(
        table["as_trained"], net_benefit(p, positive, table["threshold"].to_numpy()), atol=1e-15
    )
    for at in (5, 10, 20):
        stored = body["splits"]["test"]["metrics"][f"net_benefit_{at}"]["value"]
        assert table["as_trained"][at - 1] == pytest.approx(stored)
    odds = table["threshold"] / (1 - table["threshold"])
    for name, found, alarms in (("as_trained", "true_positives", "false_positives"),
                                ("calibrated", "calibrated_true_positives", "calibrated_false_positives")):  # fmt: skip
        np.testing.assert_allclose(table[name], (table[found] - table[alarms] * odds) / table["n"], atol=1e-12)
    everyone = net_benefit_call_all(positive.mean(), table["threshold"].to_numpy())
    np.testing.assert_allclose(table["call_all"], everyone)
    assert (table["call_none"] == 0).all() and (table["n_malignant"] == positive.sum()).all()
    validation = pd.read_csv(run / "figures" / "net_benefit_validation.csv")
    assert validation["calibrated"].isna().all(), "it was fitted there"


def test_one_side_has_no_decision_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path, make_frame(60, splits=("test",)))
    evaluate_run(run)
    assert (run / "figures" / "net_benefit_test.csv").is_file()
    make_run(run, make_frame(60, splits=("test",)).assign(label="benign"))
    evaluate_run(run)
    assert not (run / "figures" / "net_benefit_test.csv").exists(), "what an earlier evaluation left is gone"
    p = np.array([[0.5, 0.5], [0.2, 0.8]])
    plain = ScoredSet(["a", "b"], np.array([False, False]), np.array([0, 1]), np.array([0, 1]), p, np.arange(2))
    assert net_benefit_rows(plain, None) == []


def test_a_wish_that_is_kept_is_the_models_from_then_on(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    wished = EvaluationOptions(targets=(("sensitivity", 0.6),), save_targets=True)
    dk.evaluate(run, options=wished)
    card = models_card.read_card(run / "model")
    own = [(item["rate"], item["target"]) for item in card["operating_points"] if item.get("requested")]
    assert own == [("sensitivity", 0.6)] == list(models_card.extra_targets(run / "model"))
    point = next(item for item in card["operating_points"] if item.get("requested"))
    assert policy_from_dict(card).operating_points[-1].threshold == point["threshold"]
    predictor = load_model(run / "model")
    chosen = predictor.select_policy(target="sensitivity=.6")
    assert chosen is not None and chosen.point_index == len(card["operating_points"]) - 1
    sums = (run / "model" / "SHA256SUMS").read_bytes()
    dk.evaluate(run)
    assert (run / "model" / "SHA256SUMS").read_bytes() == sums, (
        "a plain evaluation drops nothing and signs nothing"
    )
    told = read(run / "metrics.json")["options"]["targets"]
    assert told == [{"rate": "sensitivity", "target": 0.6}]


def test_the_old_names_of_both_options_are_not_given_beside_the_new_ones(tmp_path: Path, invoke: Invoke) -> None:
    new = ["--target", "sensitivity=.9", "--save-targets"]
    for old in (["--wish", "sensitivity=.8"], ["--keep"]):
        code, _, text = invoke("evaluate", tmp_path, *new, *old)
        assert code == 2
        assert f"{old[0]} is the old name of {new[0 if len(old) == 2 else 2]}: both are given" in text
    code, _, text = invoke("evaluate", tmp_path, "--wish", "sensitivity=2", "--keep")
    assert code == 2
    assert "must lie above 0 and below 1" in text, "alone, the old names are read"


def test_keeping_needs_a_wish_and_a_run() -> None:
    with pytest.raises(UsageError, match="no --target is given"):
        EvaluationOptions(save_targets=True)
    with pytest.raises(UsageError, match="whose validation images"):
        dk.evaluate(
            None,
            predictions=Path("table.csv"),
            options=EvaluationOptions(targets=(("sensitivity", 0.6),), save_targets=True),
        )
