"""Test-time views of folds beside test images are chosen once, on the out-of-fold predictions of all nets."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from dermkit.evaluation.predict_splits import predict_splits
from dermkit.models.card import read_card
from dermkit.models.views import DIHEDRAL_VIEWS, VIEW_SETS
from dermkit.pipeline import ensemble_test, pooled_views, view_choice
from dermkit.pipeline import run as pipeline_run
from dermkit.pipeline.view_choice import ViewChoice, pool_choices
from dermkit.prediction.load import load_model
from dermkit.recipes.schema import Recipe, SplitSpec
from dermkit.reporting.report import write_report
from dermkit.runs.layout import ENSEMBLE_TEST, METRICS, POLICY, RUN, VIEW_CHOICE

FOLDS = SplitSpec(scheme="given", seed=0, validation=0.2, test=0.0, folds=2, per_class=0, draw_from="")
OWN_LOSSES = ((0.9, 0.5, 0.8), (0.4, 0.7, 0.8))
"""Of identity, dihedral and dihedral_crops: the first net chooses dihedral, the second identity."""


def own_choices() -> Iterator[ViewChoice]:
    """Yield the choice of each net, of 10 and 30 images."""
    for losses, n in zip(OWN_LOSSES, (10, 30), strict=True):
        by_name = dict(zip(VIEW_SETS, losses, strict=True))
        yield ViewChoice(min(by_name, key=lambda name: by_name[name]), by_name, n)


def test_the_pooled_loss_is_that_of_all_images_together() -> None:
    pooled = pool_choices(list(own_choices()))
    per_image = {
        name: np.repeat([own[k] for own in OWN_LOSSES], (10, 30)).mean() for k, name in enumerate(VIEW_SETS)
    }
    assert pooled.log_loss == pytest.approx(per_image)
    assert (pooled.name, pooled.n, pooled.n_nets) == ("identity", 40, 2)
    assert "on all 40 out-of-fold predictions of 2 nets" in pooled.sentence()
    equal = ViewChoice("dihedral", dict.fromkeys(VIEW_SETS, 0.5), 3)
    assert pool_choices([equal, equal]).name == "identity", "of equals the one of fewer passes"


@pytest.fixture
def recipe(tiny: Recipe) -> Recipe:
    return replace(tiny, name="pooled", split=FOLDS, test_views="choose")


def write_no_page(folder: Path, **_options: Any) -> Path:
    """Stand for the page of a fold's run, which would take most of the time here; a finished run has one."""
    (folder / "report.html").write_text("of one fold")
    return folder / "report.html"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what was scored, in order: run name and split; nets choose as `own_choices` says."""
    done: list[str] = []
    choices = own_choices()

    def score(folder: Path, dataset: Any, table: Any, splits: list[str], **options: Any) -> None:
        done.append(f"{folder.name[-2:]} {' '.join(splits)}")
        predict_splits(folder, dataset, table, splits, **options)

    monkeypatch.setattr(view_choice, "choose_on_validation", lambda *_: next(choices))
    monkeypatch.setattr(pipeline_run, "predict_splits", score)
    monkeypatch.setattr("dermkit.evaluation.predict_splits.predict_splits", score)
    monkeypatch.setattr(ensemble_test, "predict_splits", score)
    monkeypatch.setattr(pipeline_run, "write_report", write_no_page)
    monkeypatch.setattr(pooled_views, "write_report", write_no_page)
    return done


def train(recipe: Recipe, data: Path, out: Path) -> Path:
    return dk.train(recipe, dk.load_dataset(data), settings=dk.RunSettings(out=out, device="cpu"))


def runs_of(parent: Path) -> list[Path]:
    return sorted(path.parent for path in parent.glob("*/run.json"))


def views_of(model: Path) -> list[list[str]]:
    return [member["views"] for member in read_card(model)["members"]]


def test_all_nets_take_the_pooled_choice_before_a_test_image_is_scored(
    recipe: Recipe, binary: Path, tmp_path: Path, steps: list[str]
) -> None:
    parent = train(recipe, binary, tmp_path)
    assert steps == ["f0 validation", "f1 validation", "f0 validation", "ns test"], (
        "f1 had chosen these views itself"
    )
    runs = runs_of(parent)
    assert views_of(parent / "model") == [["identity"]] * 2
    for run in runs:
        assert views_of(run / "model") == [["identity"]]
        sentences = [text for text in RUN.read(run)["warnings"] if text.startswith("Test-time views")]
        assert len(sentences) == 1 and "of 2 nets" in sentences[0]
        rows = pd.read_csv(run / "predictions.csv")
        assert set(rows["split"]) == {"validation"}
        predictor, dataset = load_model(run), dk.load_dataset(binary)
        pixels = np.stack([
            dk.resize_pixels(dk.open_image(dataset.image_path(image_id)).pixels, predictor.preprocessing)
            for image_id in rows["image_id"]
        ])  # fmt: skip
        expected = predictor.probabilities(pixels)
        np.testing.assert_allclose(rows[[f"p_{name}" for name in dataset.class_names]], expected, atol=1e-6)
        assert read_card(run / "model")["calibration"] == POLICY.read(run)["calibration"]
    pooled = pd.read_csv(parent / "predictions.csv")
    of_runs = pd.concat(pd.read_csv(run / "predictions.csv") for run in runs).sort_values("image_id")
    validation = pooled[pooled["split"] == "validation"].sort_values("image_id")
    np.testing.assert_array_equal(validation["p_malignant"], of_runs["p_malignant"])

    key = ENSEMBLE_TEST.read(parent)
    steps.clear()
    assert train(recipe, binary, tmp_path) == parent and ENSEMBLE_TEST.read(parent) == key
    assert steps == [], "the same command again scores nothing"


@pytest.mark.parametrize("stop", ["_score_validation", "evaluate_and_report"])
def test_a_stop_while_a_run_takes_the_views_is_made_good(
    recipe: Recipe, binary: Path, tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    room = pipeline_run if stop == "evaluate_and_report" else pooled_views
    real, calls = getattr(room, stop), [0]

    def fail(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == (3 if stop == "evaluate_and_report" else 1):  # the first two end the runs of the folds
            real(*args, **options)
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(room, stop, fail)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, binary, tmp_path)
    (parent,) = tmp_path.glob("pooled/*-versions")
    assert not ENSEMBLE_TEST.exists(parent) and VIEW_CHOICE.read(runs_of(parent)[0])["applied"] == ""
    steps.clear()
    train(recipe, binary, tmp_path)
    assert steps == ["f0 validation", "ns test"]
    for run in runs_of(parent):
        assert VIEW_CHOICE.read(run)["applied"] == "identity" and views_of(run / "model") == [["identity"]]
        load_model(run)


def test_runs_of_an_older_version_keep_their_own_views(
    recipe: Recipe, binary: Path, tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # as a version that noted no losses
        patch.setattr("dermkit.pipeline.train.share_view_choice", lambda *_: None)
        parent = train(recipe, binary, tmp_path)
    for run in runs_of(parent):
        (run / VIEW_CHOICE.name).unlink()
    key = ENSEMBLE_TEST.read(parent)
    steps.clear()
    train(recipe, binary, tmp_path)
    assert views_of(parent / "model") == [list(DIHEDRAL_VIEWS), ["identity"]] and steps == []
    assert ENSEMBLE_TEST.read(parent) == key


def test_folds_of_all_images_keep_their_own_views(
    recipe: Recipe, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the pooled images are those that the figures are of: each net's choice has not seen its test images."""
    choices = [*own_choices(), *own_choices()]
    monkeypatch.setattr(view_choice, "choose_on_validation", lambda *_: choices.pop())
    monkeypatch.setattr(pipeline_run, "write_report", write_no_page)
    parent = train(replace(recipe, split=replace(FOLDS, scheme="kfold", folds=3)), binary, tmp_path)
    assert views_of(parent / "model") == [["identity"], list(DIHEDRAL_VIEWS), ["identity"]]
    check_parts_that_validate(parent, binary)
    shutil.rmtree(parent)


def check_parts_that_validate(parent: Path, data: Path) -> None:
    """Check three folds of which a part validates (decision 0017), from each net's images to figures and report."""
    runs = sorted((path.parent for path in parent.glob("*/run.json")), key=lambda run: RUN.read(run)["fold"])
    tables = [pd.read_csv(run / "split.csv", dtype=str) for run in runs]
    sides = [{name: set(rows["image_id"]) for name, rows in table.groupby("split")} for table in tables]
    everything = set(dk.load_dataset(data).manifest["image_id"])
    for fold, own in enumerate(sides):
        next_fold = sides[(fold + 1) % len(sides)]["test"]
        assert own["validation"] < next_fold, "a part of the next fold, and not all of it"
        assert own["train"] == everything - own["test"] - own["validation"], "whose rest trains"
    parts = sorted(image_id for own in sides for image_id in own["validation"])
    rows = pd.read_csv(parent / "predictions.csv", dtype={"image_id": str})
    metrics = METRICS.read(parent)
    for name, ids in (("test", sorted(everything)), ("validation", parts)):
        pooled = rows[rows["split"] == name]
        assert sorted(pooled["image_id"]) == ids, "each image once, by the net of its fold"
        assert metrics["splits"][name]["n"] == len(ids)
        accuracy = (pooled["label"] == pooled["predicted"]).mean()
        assert metrics["splits"][name]["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert metrics["policy"]["n_validation_images"] == len(parts) < len(everything)
    write_report(parent)
    assert f"{len(parts)} also a validation image of one" in (parent / "CHECKLISTS.md").read_text()
