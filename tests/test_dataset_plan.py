"""`dk.plan` says what `dermkit plan` prints, and trains nothing."""

import dataclasses
from pathlib import Path

import pytest

import dermkit as dk
from dermkit.errors import DataError
from dermkit.pipeline import measure_speed


def test_a_plan_holds_profile_and_recipes_and_trains_nothing(
    binary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure_speed, "_SECONDS_PER_MEASUREMENT", 0.0)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    dataset, out = dk.load_dataset(binary), tmp_path / "runs"
    outcome = dk.plan(dataset, dk.AutoOptions(seconds=600), settings=dk.RunSettings(out=out, device="cpu"))
    (candidate, *_) = outcome.plan.candidates
    assert candidate.recipe.model.weights == "none" and outcome.plan.seconds == 600
    training = dataset.manifest["given_split"] != "test"
    assert outcome.profile.n_training == int(training.sum())
    assert outcome.to_json()["plan"]["candidates"][0]["recipe"]["name"] == candidate.recipe.name
    text = " ".join(" ".join(outcome.lines()).split())
    assert candidate.recipe.name in text and outcome.plan.choices
    assert all(" ".join(choice.reason.split()) in text for choice in outcome.plan.choices)
    assert list(out.iterdir()) == []


def test_one_class_is_refused_before_anything_is_measured(binary: Path) -> None:
    dataset = dk.load_dataset(binary)
    with pytest.raises(DataError, match="has one class"):
        dk.plan(dataclasses.replace(dataset, classes=dataset.classes[:1]), dk.AutoOptions(seconds=60))
