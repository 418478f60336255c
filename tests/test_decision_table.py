"""decisions.csv: what a prediction says beyond probabilities, the same as evaluate says of the same images."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from conftest import Cli, Invoke, before_format_5
from dermkit.data.manifest import LesionClass, Malignancy
from dermkit.errors import RunInterrupt, UntrustedError, UsageError
from dermkit.evaluation.external import EXTERNAL_SPLIT
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.apply import ActivePolicy, parse_target
from dermkit.metrics.decisions.policy import DecisionPolicy, apply_calibration, fit_policy, policy_from_dict
from dermkit.models.card import write_policy
from dermkit.models.card_fields import known_performance
from dermkit.models.checksums import write_checksums
from dermkit.prediction import resume
from dermkit.prediction.decisions import (
    NO_POLICY_TEXT,
    decision_columns,
    select_policy,
    sheet_legend,
    tile_caption,
    write_decisions,
)
from dermkit.prediction.inputs import ImageRef
from dermkit.prediction.load import load_model
from dermkit.prediction.output import PredictOutcome
from dermkit.prediction.run import predict
from dermkit.progress import Progress
from dermkit.runs.folder import SEEN_SPLIT, RunFolder
from dermkit.runs.predictions import read_predictions, to_scored_set
from test_active_policy import settled

SIDES: tuple[tuple[str, Malignancy], ...] = (
    ("naevus", "benign"), ("melanoma", "malignant"), ("malignant", "malignant"),
)  # fmt: skip
CLASSES = tuple(LesionClass(name, "", side) for name, side in SIDES)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != ".lock"}


def bare(image_id: str) -> str:
    """Return what predict calls an image that the data set knows by its folders too."""
    return image_id.rsplit("/", 1)[-1]


def of_many(p: np.ndarray[Any, np.dtype[np.float64]]) -> DecisionPolicy:
    """Return what 400 made validation images settle whose probabilities lie about where the net's do."""
    rng = np.random.default_rng(0)
    middle, spread = p.mean(), p.std()
    q = np.clip(rng.normal(middle, 1.5 * spread, 400), 0.01, 0.99)
    true = (rng.random(400) < 1 / (1 + np.exp(-1.7 * (q - middle) / spread))).astype(np.int64)
    made, sides = np.stack([1 - q, q], axis=1), np.array([False, True])
    return fit_policy(ScoredSet(["benign", "malignant"], sides, true, made.argmax(axis=1), made, np.arange(400)))


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the trained model with enough settled: its own ten validation images promise nothing."""
    folder = Path(shutil.copytree(trained / "model", tmp_path_factory.mktemp("settled") / "model"))
    run = read_predictions(trained / "predictions.csv", ["benign", "malignant"])
    write_policy(folder, of_many(run["p_malignant"].to_numpy(dtype=np.float64)).as_dict())
    return folder


@pytest.fixture(scope="module")
def images(binary: Path) -> list[str]:
    data = dk.load_dataset(binary)
    return [str(data.image_path(image_id)) for image_id in data.manifest["image_id"]]


@pytest.fixture(scope="module")
def out(model: Path, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictions")
    predict(model, images, out=folder, target="sensitivity=.9", coverage=0.8)
    return folder


def rewrite(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((model / "model.json").read_text())
    change(card)
    (model / "model.json").write_text(json.dumps(card))
    write_checksums(model)


# The same as evaluate has -----------------------------------------------------------------------------------------


def test_predict_decides_what_evaluate_computes_from_the_run(trained: Path, model: Path, out: Path) -> None:
    decision = load_model(model).policy
    assert decision is not None and decision.calibration.kind != "none"
    classes = load_model(model).classes
    run = read_predictions(trained / "predictions.csv", [item.name for item in classes])
    test = run[run["split"] == "test"].sort_values("image_id")
    expected = apply_calibration(to_scored_set(test, classes, RunFolder(trained).groups()), decision.calibration)
    found = pd.read_csv(out / "decisions.csv").set_index("image_id").loc[test["image_id"].map(bare)]
    assert len(found) > 10
    np.testing.assert_allclose(found[["p_benign", "p_malignant"]], expected.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["malignant_probability"], expected.p_malignant, rtol=0, atol=1e-5)
    for point in decision.operating_points:
        clear = np.abs(expected.p_malignant - point.threshold) > 1e-5
        called = found[f"positive_at_{point.rate}_{point.target:g}"] == "yes"
        assert (called == (expected.p_malignant >= point.threshold))[clear].all()
    inside = decision.conformal_rule.prediction_sets(expected.probabilities)
    assert found["set_size"].tolist() == inside.sum(axis=1).tolist()


@pytest.mark.parametrize(("split", "size"), [(EXTERNAL_SPLIT, 12), (SEEN_SPLIT, 36)])
def test_predict_and_evaluate_on_other_data_agree(
    model: Path, binary: Path, out: Path, tmp_path: Path, split: str, size: int
) -> None:
    """The data set is the model's own: what training looked at stands apart, and is decided alike."""
    data = dk.load_dataset(binary)
    folder = dk.evaluate(model, dataset=data, out=tmp_path / "other").parent
    told = json.loads((folder / "metrics.json").read_text())["splits"][split]["policy"]
    scored = read_predictions(folder / "predictions.csv", ["benign", "malignant"])
    ids = scored.loc[scored["split"] == split, "image_id"].map(bare)
    found = pd.read_csv(out / "decisions.csv").set_index("image_id").loc[ids]
    label = data.manifest.set_index(data.manifest["image_id"].map(bare))["label"].loc[found.index]
    ill = (label == "malignant").to_numpy()
    assert (len(found), len(scored)) == (size, len(data.manifest))
    assert told["conformal"]["set_sizes"] == np.bincount(found["set_size"], minlength=3).tolist()
    assert len(told["operating_points"]) == 3
    for item in told["operating_points"]:
        called = (found[f"positive_at_{item['name'].replace(' ', '_')}"] == "yes").to_numpy()
        assert item["sensitivity"]["value"] == pytest.approx(called[ill].mean(), abs=1e-12)
        assert item["specificity"]["value"] == pytest.approx((~called[~ill]).mean(), abs=1e-12)
    covered = [name in inside.split("; ") for name, inside in zip(label, found["prediction_set"], strict=True)]
    for name, item in told["conformal"]["per_class"].items():
        assert item["value"] == pytest.approx(np.array(covered)[label == name].mean(), abs=1e-12)
    p_true = np.where(ill, found["p_malignant"], found["p_benign"])
    assert told["calibrated"]["metrics"]["loss"]["value"] == pytest.approx(-np.log(p_true).mean(), abs=1e-5)
    (refer,) = (item for item in told["referral"]["at_validation_thresholds"] if item["target_coverage"] == 0.8)
    assert refer["coverage"]["value"] == pytest.approx((found["referral"] == "answered").mean(), abs=1e-12)


# The files --------------------------------------------------------------------------------------------------------


def test_predictions_stay_as_they_were_and_predict_json_says_what_was_applied(
    trained: Path, model: Path, images: list[str], out: Path, tmp_path: Path
) -> None:
    predict(trained, images, out=tmp_path)
    assert (tmp_path / "predictions.csv").read_bytes() == (out / "predictions.csv").read_bytes()
    found, card = pd.read_csv(out / "decisions.csv"), json.loads((model / "model.json").read_text())
    facts = json.loads((out / "predict.json").read_text())["policy"]
    assert facts["calibration"] == card["calibration"]
    assert facts["operating_points"] == card["operating_points"]
    assert facts["operating_point"] == {**card["operating_points"][1], "selected_by": "named by --target"}
    assert facts["operating_point"]["guaranteed"] and facts["operating_point"]["n"] > 100
    assert (found["positive"] == found["positive_at_sensitivity_0.9"]).all()
    assert facts["n_positive"] == (found["positive"] == "yes").sum() > 0
    assert facts["referral"]["n_referred"] == (found["referral"] == "referred").sum() > 0
    assert facts["referral"]["target_coverage"] == 0.8
    assert facts["conformal"]["set_sizes"] == np.bincount(found["set_size"], minlength=3).tolist()
    assert facts["n_validation_images"] == 400
    assert "drawn like the validation images" in facts["scope"]
    assert facts["warnings"] == []
    predict(model, images[:3], out=tmp_path)
    facts = json.loads((tmp_path / "predict.json").read_text())["policy"]
    assert facts["operating_point"]["selected_by"] == "the first guaranteed on validation"
    assert (facts["operating_point"]["name"], facts["referral"]) == ("sensitivity 0.95", None)
    assert pd.read_csv(tmp_path / "decisions.csv")["referral"].isna().all()


def test_a_stopped_prediction_goes_on_and_decides_the_same(
    model: Path, images: list[str], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SAVE_IMAGES", 8)

    def pressed(_what: str, done: int, _total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    def again(watch: Progress | None = None, **asked: Any) -> PredictOutcome:
        return predict(model, images, out=tmp_path, batch_size=16, progress=watch, **asked)

    with pytest.raises(RunInterrupt):
        again(Progress(step=pressed))
    assert not (tmp_path / "decisions.csv").exists()
    with pytest.raises(UsageError, match=r"It has: sensitivity 0\.95"):
        again(target="sensitivity=.8")
    said: list[str] = []
    again(Progress(say=said.append), target="sensitivity=.9", coverage=0.8)
    assert said[0].startswith("going on"), "what is asked of the decision needs no image scored anew"
    assert content(tmp_path) == content(out)


def test_rows_come_in_pieces_and_every_class_may_be_called_malignant(tmp_path: Path) -> None:
    chosen = ActivePolicy(settled(), np.array([False, True, True]), 1, False, None)
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 2500)
    images = [ImageRef(f"{row}.png", f"i{row}", f"a/{row}.png") for row in range(2500)]
    decided = write_decisions(tmp_path / "decisions.csv", chosen, CLASSES, images, p)
    names = decision_columns(chosen, CLASSES)
    assert len(set(names)) == len(names), "a class may be called malignant"
    found, expected = pd.read_csv(tmp_path / "decisions.csv", keep_default_na=False), chosen.apply(p)
    assert tuple(found.columns) == names
    assert np.array_equal(found[["p_naevus", "p_melanoma", "p_malignant"]].to_numpy(), expected.probabilities)
    assert np.array_equal(found["malignant_probability"].to_numpy(), expected.p_malignant)
    assert (found["positive"] == "yes").tolist() == expected.is_positive[:, 1].tolist()
    assert decided.n_positive == expected.is_positive[:, 1].sum()
    whole = [name for name, size in zip(found["prediction_set"], found["set_size"], strict=True) if size == 3]
    assert set(whole) <= {"naevus; melanoma; malignant"}
    empty = found[found["set_size"] == 0]
    assert set(empty["prediction_set"]) <= {""}
    assert sum(decided.set_sizes) == 2500


def test_a_class_table_with_one_side_has_no_calls(tmp_path: Path) -> None:
    benign = tuple(LesionClass(item.name, "", "benign") for item in CLASSES)
    body = {**settled().as_dict(), "operating_points": []}
    chosen = select_policy(policy_from_dict(body), benign)
    assert chosen is not None and not chosen.has_both_sides
    assert not [
        name for name in decision_columns(chosen, benign) if "positive" in name or name == "malignant_probability"
    ]
    decided = write_decisions(
        tmp_path / "d.csv", chosen, benign, [ImageRef("i.png", "i", "i.png")], np.array([[0.5, 0.25, 0.25]])
    )
    assert (decided.operating_point, decided.warnings) == ("", ())
    assert str(decided) == "no decision was made: the model has no operating point"
    with pytest.raises(UsageError, match="not both malignant and other") as caught:
        select_policy(policy_from_dict(body), benign, target="sensitivity=.95")
    assert caught.value.remedy == "leave --target out"


# What was not settled ---------------------------------------------------------------------------------------------


def test_an_unknown_wish_is_refused_with_the_settled_ones(model: Path, images: list[str], tmp_path: Path) -> None:
    for wrong in ("sensitivity=.8", "specificity=.95", "sensitivity", "95", "sensitivity=high", ""):
        with pytest.raises(UsageError) as caught:
            predict(model, images, out=tmp_path / "out", target=wrong)
        text = str(caught.value)
        assert "sensitivity 0.95 (guaranteed with 95 % confidence, on " in text, wrong
        assert "specificity 0.9 (guaranteed" in text
        assert '--target "sensitivity=0.95"' in text
    for share in (0.81, 0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="--coverage") as caught:
            predict(model, images, out=tmp_path / "out", coverage=share)
        assert "one of 0.95, 0.9, 0.85" in caught.value.remedy
    assert not (tmp_path / "out").exists(), "nothing is begun"


def test_points_without_a_promise_answer_only_when_they_are_named(
    trained: Path, images: list[str], tmp_path: Path
) -> None:
    outcome = predict(trained, images[:4], out=tmp_path)
    assert outcome.decision_counts is not None
    (caution,) = outcome.decision_counts.warnings
    assert caution.startswith(
        "no decision was made: no operating point is guaranteed (--target names one). Fitted, but"
    )
    assert (
        str(outcome.decision_counts)
        == "no decision was made: no operating point is guaranteed (--target names one)"
    )
    told = json.loads((tmp_path / "predict.json").read_text())["policy"]
    assert (told["n_positive"], told["why_no_call"]) == (None, str(outcome.decision_counts))
    frame = pd.read_csv(tmp_path / "decisions.csv", keep_default_na=False)
    assert set(frame["positive"]) == {""}
    assert set(frame["set_size"]) == {2}, "five images of a class leave it in every set"
    assert json.loads((tmp_path / "predict.json").read_text())["policy"]["conformal"]["always_included"] == [
        "benign", "malignant",
    ]  # fmt: skip
    named = predict(trained, images[:4], out=tmp_path, target="sensitivity 0.9").decision_counts
    assert named is not None
    assert named.operating_point == "sensitivity 0.9"
    assert named.warnings == (
        "sensitivity 0.9 is not guaranteed: 5 independent malignant validation images, too few",
    )
    assert set(pd.read_csv(tmp_path / "decisions.csv")["positive"]) <= {"yes", "no"}


def first_format(card: dict[str, Any]) -> None:
    for name in ("conformal", "n_validation_images", "referral"):
        del card[name]
    card |= before_format_5(card)
    card |= {"format": 1, "calibration": {"method": "none", "temperature": 1.0}, "operating_points": []}


def never_evaluated(card: dict[str, Any]) -> None:
    card |= {"calibration": {"kind": "none"}, "operating_points": [], "conformal": None}


@pytest.mark.parametrize("change", [first_format, never_evaluated])
def test_a_model_that_settled_nothing_predicts_as_before(
    model: Path, images: list[str], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    older = Path(shutil.copytree(model, tmp_path / "model"))
    out = tmp_path / "out"
    predict(model, images[:3], out=out)
    before = (out / "predictions.csv").read_bytes()
    rewrite(older, change)
    outcome = predict(older, images[:3], out=out)
    assert outcome.decision_counts is None
    assert (out / "predictions.csv").read_bytes() == before
    assert not (out / "decisions.csv").exists(), "the earlier one is of another model"
    facts = json.loads((out / "predict.json").read_text())["policy"]
    assert facts == {"file": None, "reason": NO_POLICY_TEXT}
    for asked in ({"target": "sensitivity=.95"}, {"coverage": 0.8}):
        with pytest.raises(UsageError, match="has no decision policy"):
            predict(older, images[:3], out=out, **asked)


def test_a_model_without_confidences_refers_nothing_and_says_so(
    model: Path, images: list[str], binary: Path, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(model, tmp_path / "model"))
    rewrite(older, lambda card: card.pop("referral"))
    with pytest.raises(UsageError, match="has no referral thresholds"):
        predict(older, images, out=tmp_path / "out", coverage=0.8)
    outcome = predict(older, images[:3], out=tmp_path / "out", target="sensitivity=.9")
    assert outcome.decision_counts is not None and not outcome.decision_counts.has_referral
    folder = dk.evaluate(older, dataset=dk.load_dataset(binary), out=tmp_path / "other").parent
    assert (
        json.loads((folder / "metrics.json").read_text())["splits"][EXTERNAL_SPLIT]["policy"]["referral"][
            "at_validation_thresholds"
        ]
        == []
    )
    write_policy(older, json.loads((model / "model.json").read_text()))
    assert load_model(older).policy is not None
    assert (older / "model.json").read_text().count('"target_coverage"') == 10


def shorter_shift(card: dict[str, Any]) -> None:
    card["calibration"]["bias"].pop()


def no_temperature(card: dict[str, Any]) -> None:
    card["calibration"]["temperature"] = 0


def no_rule(card: dict[str, Any]) -> None:
    del card["conformal"]


def words(card: dict[str, Any]) -> None:
    card["operating_points"][0]["threshold"] = "high"


@pytest.mark.parametrize("change", [shorter_shift, no_temperature, no_rule, words])
def test_a_broken_decision_is_not_trusted(
    model: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    spoilt = Path(shutil.copytree(model, tmp_path / "model"))
    rewrite(spoilt, change)
    with pytest.raises(UntrustedError, match="the decision policy is broken"):
        load_model(spoilt)


# For people -------------------------------------------------------------------------------------------------------


def test_a_sheet_says_what_was_called_and_by_what() -> None:
    chosen = ActivePolicy(settled(), np.array([False, True, True]), 1, False, settled().referral_thresholds[0])
    text = sheet_legend(chosen)
    assert "calibrated on 100 validation images" in text
    assert (
        "at sensitivity 0.9, guaranteed with 95 % confidence, on 40 independent malignant validation images"
        in text
    )
    assert "highest probability below 0.60; 81 % of the validation images reached it" in text
    lines, red = tile_caption(chosen, CLASSES, np.array([0.2, 0.7, 0.1]))
    assert lines == ["POSITIVE", "melanoma 0.91", "naevus 0.07", "malignant in all 0.93"]
    lines, green = tile_caption(chosen, CLASSES, np.array([0.9, 0.1, 0.0]))
    assert lines[:2] == ["negative", "naevus 0.99"]
    lines, amber = tile_caption(chosen, CLASSES, np.array([0.4, 0.2, 0.4]))
    assert lines[0] == "REFERRED (positive)"
    assert len({red, green, amber}) == 3
    lines, _ = tile_caption(chosen, CLASSES, np.array([0.5, 0.25, 0.25]))
    assert lines[-1] == "set: naevus, malignant"
    assert "not calibrated" in sheet_legend(None)
    assert tile_caption(None, CLASSES, np.array([0.2, 0.7, 0.1]))[0] == ["melanoma 0.70", "naevus 0.20"]
    unpromised = ActivePolicy(settled(kept=(False, False)), np.array([False, True, True]), None, False, None)
    assert "No decision was made: no operating point is guaranteed (--target names one)." in sheet_legend(
        unpromised
    )
    assert "called" not in sheet_legend(unpromised)
    assert tile_caption(unpromised, CLASSES, np.array([0.2, 0.7, 0.1]))[0][0] == "melanoma 0.91"


def test_a_sheet_shows_a_set_that_contradicts_the_prediction() -> None:
    decision = settled()
    rule = replace(decision.conformal_rule, min_probability=np.array([0.9, 0.3, 0.9]))
    chosen = ActivePolicy(replace(decision, conformal_rule=rule), np.array([False, True, True]), None, False, None)
    p = np.array([0.55, 0.45, 0.0])
    applied = chosen.apply(p[None])
    assert (applied.y_pred[0], applied.prediction_sets[0].tolist()) == (0, [False, True, False]), (
        "the case is made"
    )
    lines, _ = tile_caption(chosen, CLASSES, p)
    assert lines == ["naevus 0.60", "melanoma 0.40", "set: melanoma"]
    agreeing = replace(decision, conformal_rule=replace(rule, min_probability=np.array([0.3, 0.9, 0.9])))
    lines, _ = tile_caption(replace(chosen, policy=agreeing), CLASSES, p)
    assert lines == ["naevus 0.60", "melanoma 0.40"]
    assert "shown unless it is the predicted class alone" in sheet_legend(chosen)


def test_the_same_code_serves_probabilities_in_python(model: Path, out: Path) -> None:
    predictor = load_model(model)
    chosen = predictor.select_policy(target="sensitivity=.9", coverage=0.8)
    assert chosen is not None
    raw = pd.read_csv(out / "predictions.csv", dtype=str)[["p_benign", "p_malignant"]].astype(float).to_numpy()
    found, frame = chosen.apply(raw), pd.read_csv(out / "decisions.csv")
    assert (frame["positive"] == "yes").tolist() == found.is_positive[:, 1].tolist()
    assert (frame["referral"] == "answered").tolist() == found.is_answered.tolist()


def test_the_command_takes_both_options(cli: Cli, model: Path, images: list[str], tmp_path: Path) -> None:
    done = cli("predict", model, *images[:6], "--out", "out", "--target", "sensitivity=.9", "--coverage", "0.8")
    assert done.returncode == 0, done.stderr
    assert " positive at sensitivity 0.9, " in done.stdout
    assert "referred: out/decisions.csv" in done.stdout
    assert len(pd.read_csv(tmp_path / "out" / "decisions.csv")) == 6
    wrong = cli("predict", model, *images[:6], "--out", "new", "--target", "sensitivity=.5")
    assert wrong.returncode == 2
    assert "It has: sensitivity 0.95 (guaranteed" in wrong.stderr
    assert not (tmp_path / "new").exists()


def test_the_old_names_of_both_options_still_work_and_are_not_shown(
    invoke: Invoke, model: Path, images: list[str], tmp_path: Path
) -> None:
    new = ["--target", "sensitivity=.9", "--coverage", "0.8"]
    for folder, flags in (("new", new), ("old", ["--at", "sensitivity=.9", "--refer", "0.8"])):
        code, _, text = invoke("predict", model, *images[:6], "--out", tmp_path / folder, *flags)
        assert code == 0, text
    assert content(tmp_path / "old") == content(tmp_path / "new")
    for both in ([*new, "--at", "sensitivity=.9"], [*new, "--refer", "0.8"]):
        code, _, text = invoke("predict", model, *images[:6], "--out", tmp_path / "both", *both)
        assert code == 2
        assert "both are given" in text
    assert not (tmp_path / "both").exists()
    _, text, _ = invoke("predict", "--help")
    assert "--target" in text and "--at" not in text and "--refer" not in text


@pytest.mark.parametrize("text", ["sensitivity=.95", "sensitivity 0.95", " sensitivity=0.95 ", "sensitivity= .95"])
def test_a_target_is_read_in_one_way(text: str) -> None:
    assert parse_target(text) == ("sensitivity", 0.95)


@pytest.mark.parametrize(
    ("text", "lacking"), [("", "rate and number"), ("sensitivity", "rate and number"), ("a=b", "'b' is no number")]
)
def test_a_text_that_is_no_target_is_refused(text: str, lacking: str) -> None:
    with pytest.raises(ValueError, match=lacking):
        parse_target(text)


def test_the_head_of_a_sheet_says_how_the_model_did_on_test_images() -> None:
    assert "not known" in known_performance({"members": [{}], "evaluation": None})
    figures = {"accuracy": "56.0 % (95 % interval 46.2 % to 65.3 %, n = 100)", "f1_macro": "50.0 %"}
    text = known_performance({"members": [{}], "evaluation": {"figures": figures}})
    assert text == "Test performance of this model: accuracy 56.0 % (95 % interval 46.2 % to 65.3 %, n = 100)."
    of_nets = known_performance({"members": [{}, {}], "evaluation": {"figures": figures}})
    assert "of its single nets, not of their mean" in of_nets
