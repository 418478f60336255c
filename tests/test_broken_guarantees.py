"""A guarantee that the test images broke is the first thing said: in the report, in the model card and at predict."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dermkit as dk
from conftest import Invoke, before_format_5
from dermkit.errors import UntrustedError
from dermkit.evaluation.evaluate import evaluate_run
from dermkit.evaluation.options import EvaluationOptions
from dermkit.files import write_rows
from dermkit.models.card import card_text, read_card, write_policy
from dermkit.models.checksums import write_checksums
from dermkit.prediction.load import load_model
from dermkit.prediction.run import predict
from dermkit.runs.folder import RunFolder
from dermkit.runs.verdict import summarise_test
from dermkit.serving.model_facts import model_facts
from test_evaluation_options import make_frame, make_run

BROKEN = "Broken guarantee: a sensitivity of 95 % was guaranteed on validation images, and the test images show "


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a run with 200 validation and 200 test images whose thresholds hold, and a model that says nothing yet."""
    folder = make_run(tmp_path / "run", make_frame(400))
    shutil.copytree(trained / "model", folder / "model")
    dk.evaluate(folder)
    return folder


def spoil(run: Path) -> None:
    """Make the net less sure of the malignant test images than it was of those of validation."""
    frame = make_frame(400)
    rows = (frame["split"] == "test") & (frame["label"] == "malignant")
    frame.loc[rows, "p_malignant"] *= 0.5
    frame["p_benign"] = 1 - frame["p_malignant"]
    frame["predicted"] = [("benign", "malignant")[p > 0.5] for p in frame["p_malignant"]]
    write_rows(run / "predictions.csv", list(frame.columns), frame.itertuples(index=False, name=None))


def images_of(binary: Path) -> list[str]:
    data = dk.load_dataset(binary)
    return [str(data.image_path(image_id)) for image_id in data.manifest["image_id"][:3]]


def test_what_holds_is_told_without_alarm(run: Path, binary: Path, tmp_path: Path, invoke: Invoke) -> None:
    card, page = (run / "model" / "MODEL_CARD.md").read_text(), (run / "report.html").read_text()
    assert "Broken" not in card + page
    assert "On 200 test images. Better than always answering" in card, "the model card has the report's verdict"
    code, out, err = invoke("predict", run / "model", *images_of(binary), "--out", tmp_path / "out")
    assert code == 0
    assert "roken" not in out + err + (tmp_path / "out" / "decisions.csv").read_text()
    assert json.loads((tmp_path / "out" / "predict.json").read_text())["policy"]["broken_guarantees"] == []


def test_what_the_test_images_break_is_said_first_everywhere(
    run: Path, binary: Path, tmp_path: Path, invoke: Invoke
) -> None:
    spoil(run)
    dk.evaluate(run)
    metrics = json.loads((run / "metrics.json").read_text())
    point = metrics["splits"]["test"]["policy"]["operating_points"][0]
    value, (low, high) = point["sensitivity"]["value"], point["sensitivity"]["ci95"]
    assert point["guaranteed"] and high < point["target"] == 0.95
    sentence = f"{BROKEN}{value:.1%} (95 % interval {low:.1%} to {high:.1%}, n = {point['sensitivity']['n']})."
    sentence = sentence.replace("%", " %").replace("  %", " %")
    card, page = (run / "model" / "MODEL_CARD.md").read_text(), (run / "report.html").read_text()
    assert card.split("\n")[2].startswith(f"**{sentence}")
    assert page.index("Broken guarantee") < page.index("</header>")
    code, out, err = invoke("predict", run / "model", *images_of(binary), "--out", tmp_path / "out")
    assert code == 0
    assert err.split("\n")[0] == f"warning: {sentence} Do not rely on it."
    assert "positive at sensitivity 0.95, whose guarantee the test images broke" in out
    facts = json.loads((tmp_path / "out" / "predict.json").read_text())["policy"]
    assert facts["warnings"][0].startswith(sentence)
    assert facts["broken_guarantees"][0]["name"] == "sensitivity 0.95"


@pytest.fixture
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, which takes most of the time."""
    monkeypatch.setattr("dermkit.pipeline.run.write_report", lambda folder, **_more: folder / "report.html")


@pytest.mark.usefixtures("_no_page")
def test_it_goes_away_when_the_test_images_no_longer_break_it(run: Path) -> None:
    before = (run / "model" / "model.json").read_bytes()
    spoil(run)
    dk.evaluate(run)
    assert load_model(run / "model").broken_guarantees
    frame = make_frame(400)
    write_rows(run / "predictions.csv", list(frame.columns), frame.itertuples(index=False, name=None))
    dk.evaluate(run)
    assert load_model(run / "model").broken_guarantees == ()
    assert (run / "model" / "model.json").read_bytes() == before


@pytest.mark.usefixtures("_no_page")
def test_a_target_of_one_evaluation_is_not_the_models(run: Path) -> None:
    spoil(run)
    dk.evaluate(run, options=EvaluationOptions(targets=(("sensitivity", 0.91),)))
    names = [broken.name for broken in load_model(run / "model").broken_guarantees]
    assert "sensitivity 0.91" not in names
    assert "sensitivity 0.95" in names
    dk.evaluate(run, options=EvaluationOptions(targets=(("sensitivity", 0.91),), save_targets=True))
    assert "sensitivity 0.91" in [broken.name for broken in load_model(run / "model").broken_guarantees]


@pytest.mark.usefixtures("_no_page")
def test_a_model_keeps_what_its_operating_points_reach_on_test_images(run: Path) -> None:
    spoil(run)
    dk.evaluate(run, options=EvaluationOptions(targets=(("sensitivity", 0.91),)))
    test = json.loads((run / "metrics.json").read_text())["splits"]["test"]
    rates = read_card(run / "model")["evaluation"]["operating_points"]
    assert list(rates) == [point["name"] for point in read_card(run / "model")["operating_points"]]
    assert "sensitivity 0.91" not in rates, "of one evaluation alone"
    for point in test["policy"]["operating_points"]:
        for rate in ("sensitivity", "specificity"):
            if point["name"] in rates:
                entry = rates[point["name"]][rate]
                assert {name: entry[name] for name in ("value", "ci95", "n")} == {
                    name: point[rate][name] for name in ("value", "ci95", "n")
                }
                assert f"n = {point[rate]['n']}" in entry["text"]


def test_a_card_of_format_7_knows_no_rates_of_operating_points(run: Path) -> None:
    card = read_card(run / "model")
    evaluation = {name: value for name, value in card["evaluation"].items() if name != "operating_points"}
    (run / "model" / "model.json").write_text(json.dumps({**card, "evaluation": evaluation, "format": 7}))
    assert read_card(run / "model")["evaluation"] == {**evaluation, "operating_points": {}, "subgroups": {}}
    (run / "model" / "model.json").write_text(json.dumps({**card, "evaluation": None, "format": 7}))
    assert read_card(run / "model")["evaluation"] is None


def breakdown(n: int, value: float) -> dict[str, Any]:
    """Return what metrics.json has of an attribute with one group that is large enough and one that is not."""
    figure = {"value": value, "ci95": [value - 0.1, value + 0.05], "n": n, "method": "wilson"}
    empty = {"value": None, "ci95": None, "n": 0, "method": "", "reason": "no malignant images"}
    names = ("accuracy", "balanced_accuracy", "specificity", "auroc")
    large = {"name": "female <b>", "n": n, "n_groups": n - 3, "n_malignant": 60, "too_few": ""}
    small = {"name": "male", "n": 4, "n_groups": 4, "n_malignant": 0, "too_few": "0 malignant lesions"}
    return {
        "groups": [{**large, "metrics": dict.fromkeys(("sensitivity", *names), figure), "coverage": figure},
                   {**small, "metrics": {**dict.fromkeys(names, figure), "sensitivity": empty}}],
        "gaps": [],
    }  # fmt: skip


def test_a_model_says_how_good_it_is_by_group(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["splits"]["test"]["subgroups"] = {"skin_type": breakdown(140, 0.8)}
    (run / "metrics.json").write_text(json.dumps(metrics))
    evaluation = summarise_test(RunFolder(run), ())
    assert evaluation is not None
    large, small = evaluation["subgroups"]["skin_type"]
    assert (large["name"], large["n"], large["n_groups"], large["n_malignant"]) == ("female <b>", 140, 137, 60)
    assert list(large["figures"]) == ["sensitivity", "specificity", "auroc", "accuracy"]
    assert large["figures"]["sensitivity"] == "80.0 % (95 % interval 70.0 % to 85.0 %, n = 140)"
    assert small["too_few"] == "0 malignant lesions" and small["figures"]["sensitivity"].startswith(
        "not defined: "
    )
    card = {**read_card(run / "model"), "evaluation": evaluation}
    facts = model_facts(replace(load_model(run / "model"), card=card), None, coverage=None, card_text="")
    assert facts["evaluation"]["subgroups"] == evaluation["subgroups"], "so /v1/model has them"
    lines = card_text(card).splitlines()
    assert "| by skin type | images | malignant | sensitivity | specificity | auroc | accuracy |" in lines
    (row,) = (line for line in lines if line.startswith("| female"))
    assert row.startswith("| female &lt;b&gt; | 140 | 60 | 80.0 % (95 % interval 70.0 % to 85.0 %, n = 140) | ")
    assert any(line.startswith("| male (too few) | 4 | 0 | ") for line in lines)


def test_a_card_of_format_8_knows_no_figures_of_groups(run: Path) -> None:
    card = read_card(run / "model")
    assert card["evaluation"]["subgroups"] == {}, "nothing is recorded of these images"
    evaluation = {name: value for name, value in card["evaluation"].items() if name != "subgroups"}
    (run / "model" / "model.json").write_text(json.dumps({**card, "evaluation": evaluation, "format": 8}))
    assert read_card(run / "model")["evaluation"] == {**evaluation, "subgroups": {}}
    (run / "model" / "model.json").write_text(json.dumps({**card, "evaluation": None, "format": 8}))
    assert read_card(run / "model")["evaluation"] is None


@pytest.mark.usefixtures("_no_page")
def test_an_evaluation_without_test_images_leaves_what_is_known(run: Path) -> None:
    spoil(run)
    dk.evaluate(run)
    card = read_card(run / "model")
    policy = json.loads((run / "policy.json").read_text())
    write_policy(run / "model", policy)
    assert read_card(run / "model") == card
    write_policy(run / "model", {**policy, "n_validation_images": 199})
    assert read_card(run / "model")["evaluation"] is None, "of another policy nothing is known"
    write_policy(run / "model", policy, evaluation=card["evaluation"])
    assert read_card(run / "model") == card, "as where a sealed test is opened later"


def test_a_model_of_an_older_version_has_nothing_to_say_and_works(run: Path, binary: Path, tmp_path: Path) -> None:
    today = read_card(run / "model")
    del today["evaluation"]
    card = before_format_5(today)
    (run / "model" / "model.json").write_text(json.dumps({"format": 3, **card}))
    write_checksums(run / "model")
    assert load_model(run / "model").broken_guarantees == ()
    outcome = predict(run / "model", images_of(binary), out=tmp_path / "out")
    assert outcome.n_scored == 3
    assert "Broken" not in card_text(today)
    evaluate_run(run)
    for wrong in ({}, {"broken_guarantees": [{"rate": "recall"}]}, {"broken_guarantees": 3}):
        (run / "model" / "model.json").write_text(json.dumps({"format": 3, **card, "evaluation": wrong}))
        write_checksums(run / "model")
        with pytest.raises(UntrustedError, match="its evaluation is broken"):
            load_model(run / "model")
