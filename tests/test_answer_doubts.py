"""Doubts from images unlike the training's, and from artefacts put on images."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from corner_net import save_corner_model
from dermkit.models.card import EMPTY_POLICY, MODEL_JSON, write_policy
from dermkit.models.checksums import write_checksums
from dermkit.prediction.load import load_model
from dermkit.reporting.counterfactual_lines import read_counterfactuals
from dermkit.reporting.labels import page_templates
from dermkit.runs.answer_doubts import counterfactual_doubts, foreign_doubts
from dermkit.runs.layout import COUNTERFACTUALS, COUNTERFACTUALS_FOLDER, OUT_OF_DISTRIBUTION
from dermkit.runs.model_key import folder_model_key


def estimate(value: float, low: float, high: float, reason: str = "") -> dict[str, Any]:
    return {"value": value, "ci95": [low, high], "n": 100, "method": "bootstrap", "reason": reason}


def write_foreign(run: Path, rate: dict[str, Any]) -> None:
    body = {"n": 100, "n_outside": 12, "false_alarm_rate": rate}
    OUT_OF_DISTRIBUTION.write(run, {"max_false_alarm_rate": 0.05, "reason": "", "splits": {"test": body}})


def write_counterfactuals(
    run: Path,
    change: dict[str, Any],
    remaining: dict[str, Any],
    *,
    is_shown: bool = True,
    is_complete: bool = True,
    split: str = "test",
    **model: str,
) -> None:
    folder = run / COUNTERFACTUALS_FOLDER
    folder.mkdir(exist_ok=True)
    artefact = {"title": "Ink", "text": "Ink moves it.", "is_shown": is_shown, "by_strength": [{"change": change}]}
    hidden = {
        "name": "lesion_hidden", "text": "The lesion is not needed.", "measure": "AUROC",
        "original": estimate(0.9, 0.85, 0.95), "remaining": remaining,
    }  # fmt: skip
    content = {
        "is_complete": is_complete,
        "artefacts": [artefact],
        "hidden": [hidden],
        **model,
    }
    COUNTERFACTUALS.write(folder, {**content, "images": {"split": split, "text": f"20 {split} images"}})


@pytest.mark.parametrize(
    ("low", "reason", "n_doubts"),
    [(0.06, "", 1), (0.04, "", 0), (0.06, "interval unreliable: few lesions", 0)],
)
def test_more_foreign_images_than_promised_are_a_doubt(
    tmp_path: Path, low: float, reason: str, n_doubts: int
) -> None:
    write_foreign(tmp_path, estimate(0.12, low, 0.2, reason))
    doubts = list(foreign_doubts(tmp_path, "test"))
    assert len(doubts) == n_doubts
    assert all("12 of 100 test images" in doubt.text and "at most 5%" in doubt.text for doubt in doubts)
    assert not list(foreign_doubts(tmp_path, "validation"))


def test_a_run_without_these_files_has_no_doubt_of_them(tmp_path: Path) -> None:
    assert not [*foreign_doubts(tmp_path, "test"), *counterfactual_doubts(tmp_path, "test")]


@pytest.mark.parametrize(
    ("change", "is_shown", "is_named"),
    [
        (estimate(0.2, 0.11, 0.3), True, True),
        (estimate(-0.2, -0.3, -0.11), True, True),
        (estimate(0.2, 0.11, 0.3), False, False),
        (estimate(0.12, 0.08, 0.16), True, False),
    ],
)
def test_an_artefact_that_clearly_moves_the_answers_is_a_doubt(
    tmp_path: Path, change: dict[str, Any], *, is_shown: bool, is_named: bool
) -> None:
    write_counterfactuals(tmp_path, change, estimate(0.6, 0.55, 0.65), is_shown=is_shown)
    doubts = list(counterfactual_doubts(tmp_path, "test"))
    assert [doubt.code for doubt in doubts] == ["artefact"] * is_named
    assert all("images with ink" in doubt.remedy for doubt in doubts)


@pytest.mark.parametrize(
    ("value", "low", "is_named"), [(0.83, 0.8, True), (0.75, 0.7, False), (0.83, 0.49, False)]
)
def test_a_net_that_needs_no_lesion_is_doubted(
    tmp_path: Path, value: float, low: float, *, is_named: bool
) -> None:
    write_counterfactuals(tmp_path, estimate(0.0, -0.01, 0.01), estimate(value, low, 0.9))
    assert [doubt.code for doubt in counterfactual_doubts(tmp_path, "test")] == ["lesion_hidden"] * is_named


def test_counterfactuals_that_were_stopped_say_nothing(tmp_path: Path) -> None:
    write_counterfactuals(tmp_path, estimate(0.2, 0.11, 0.3), estimate(0.6, 0.55, 0.65), is_complete=False)
    assert not list(counterfactual_doubts(tmp_path, "test"))


BOTH = (estimate(0.2, 0.11, 0.3), estimate(0.85, 0.8, 0.9))
"""Figures that are doubts, both of them."""


@pytest.mark.parametrize(
    ("images", "split", "n_doubts"),
    [
        ("test", "test", 2),
        ("validation", "validation", 2),
        ("validation", "test", 2),
        ("test", "validation", 0),
        ("other", "test", 0),
    ],
)
def test_counterfactuals_of_other_images_are_no_doubt(
    tmp_path: Path, images: str, split: str, n_doubts: int
) -> None:
    write_counterfactuals(tmp_path, *BOTH, split=images)
    doubts = list(counterfactual_doubts(tmp_path, split))
    assert len(doubts) == n_doubts
    assert all(("(Measured on validation images.)" in doubt.text) == (images != split) for doubt in doubts)
    lines = read_counterfactuals(tmp_path, split)
    assert lines is not None and (lines.warning == "") == (n_doubts > 0)
    assert n_doubts or f"they are of {images} images, and the verdict is on {split} images" in lines.warning


def test_counterfactuals_of_an_earlier_model_are_no_doubt(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    write_counterfactuals(tmp_path, *BOTH, model_sha256=hashlib.sha256(b"{}").hexdigest())
    assert len(list(counterfactual_doubts(tmp_path, "test"))) == 2
    (tmp_path / "model" / "model.json").write_text('{"retrained": true}')
    assert not list(counterfactual_doubts(tmp_path, "test"))
    lines = read_counterfactuals(tmp_path, "test")
    assert lines is not None and "an earlier state of the model" in lines.warning
    html = page_templates().get_template("counterfactual_lines.html.j2").render(counterfactuals=lines)
    assert '<p class="call">The verdict does not use these figures: they are of an earlier state' in html


def shown(verdict: str) -> dict[str, Any]:
    """Return what a card notes of an evaluation of the test images."""
    return {"split": "test", "n": 9, "outcome": "", "verdict": verdict, "figures": {}, "broken_guarantees": [],
            "is_of_single_nets": False}  # fmt: skip


def test_counterfactuals_stay_those_of_a_model_whatever_later_evaluations_note(tmp_path: Path) -> None:
    model = save_corner_model(tmp_path / "model")
    policy = {**EMPTY_POLICY, "n_validation_images": 20}
    write_policy(model, policy, evaluation=shown("first"))
    write_counterfactuals(tmp_path, *BOTH, model_key=folder_model_key(model))
    (model / "notes.json").write_text("no JSON")  # a file of somebody else
    write_policy(model, policy, evaluation=shown("second"))
    requested = {"rate": "sensitivity", "target": 0.97, "threshold": 0.1, "guaranteed": True, "requested": True}
    write_policy(model, {**policy, "operating_points": [requested]}, evaluation=shown("second"))
    assert len(list(counterfactual_doubts(tmp_path, "test"))) == 2
    write_policy(model, {**policy, "operating_points": [{**requested, "requested": False}]})
    assert not list(counterfactual_doubts(tmp_path, "test")), "another operating point"


def test_counterfactuals_of_other_nets_with_the_same_card_are_no_doubt(tmp_path: Path) -> None:
    cards = [save_corner_model(tmp_path / str(cell) / "model", cell=cell) / "model.json" for cell in (0, 15)]
    assert cards[0].read_bytes() == cards[1].read_bytes()
    write_counterfactuals(tmp_path / "0", *BOTH, model_key=folder_model_key(cards[1].parent))
    assert not list(counterfactual_doubts(tmp_path / "0", "test"))
    write_counterfactuals(tmp_path / "0", *BOTH, model_key=folder_model_key(cards[0].parent))
    assert len(list(counterfactual_doubts(tmp_path / "0", "test"))) == 2
    assert folder_model_key(tmp_path) == ""


def test_counterfactuals_stay_those_of_a_model_whose_card_is_brought_to_todays_format(tmp_path: Path) -> None:
    model = save_corner_model(tmp_path / "model")
    policy = {**EMPTY_POLICY, "n_validation_images": 20}
    write_policy(model, policy)
    card = json.loads((model / "model.json").read_text())
    for member in card["members"]:
        del member["training_features"]
    (model / "model.json").write_text(json.dumps({**card, "format": 6}))
    write_checksums(model)
    loaded = load_model(model)
    write_counterfactuals(tmp_path, *BOTH, model_key=loaded.model_key, files_sha256=loaded.files_sha256)
    assert len(list(counterfactual_doubts(tmp_path, "test"))) == 2, "the card is as it was"
    write_policy(model, policy, evaluation=shown("first"))
    assert json.loads((model / "model.json").read_text())["format"] == MODEL_JSON.format > 6
    assert len(list(counterfactual_doubts(tmp_path, "test"))) == 2, "the same card in today's format"
    assert load_model(model).model_key == loaded.model_key == folder_model_key(model)


def test_a_broken_card_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{broken")
    write_counterfactuals(tmp_path, *BOTH, model_sha256="0")
    assert not list(counterfactual_doubts(tmp_path, "test"))


def test_counterfactuals_from_before_the_test_images_were_scored_are_of_the_same_model(tmp_path: Path) -> None:
    save_corner_model(tmp_path / "model")
    policy = {**EMPTY_POLICY, "n_validation_images": 20}
    write_policy(tmp_path / "model", policy)
    sha256 = hashlib.sha256((tmp_path / "model" / "model.json").read_bytes()).hexdigest()
    write_counterfactuals(tmp_path, *BOTH, split="validation", model_sha256=sha256)
    write_policy(tmp_path / "model", policy, evaluation=shown(""))
    assert hashlib.sha256((tmp_path / "model" / "model.json").read_bytes()).hexdigest() != sha256
    path = tmp_path / COUNTERFACTUALS_FOLDER / COUNTERFACTUALS.name
    path.write_text(path.read_text().replace('"format": 3', '"format": 1'))  # format 1 had no key of the model
    content = COUNTERFACTUALS.read(path.parent)
    assert content["model_key"] == ""
    (change,) = content["artefacts"][0]["by_strength"]
    assert (
        change["decision_changes"]["value"] is None and content["hidden"][0]["decision_changes"]["value"] is None
    )
    assert len(list(counterfactual_doubts(tmp_path, "test"))) == 2
