"""Folds of the training images beside published test images: the ensemble of all folds scores these, once."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

import dermkit as dk
from dermkit.evaluation.predict_splits import predict_splits
from dermkit.metrics.decisions.policy import fit_policy, policy_from_dict
from dermkit.pipeline import ensemble_test
from dermkit.pipeline import run as pipeline_run
from dermkit.prediction.predictor import Predictor, load_model
from dermkit.recipes.schema import Recipe, SplitSpec
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import ENSEMBLE_TEST, METRICS, POLICY, RUN, SUMMARY
from dermkit.runs.predictions import to_scored_set

SPEC = SplitSpec(scheme="given", seed=0, validation=0.2, test=0.0, folds=2, per_class=0, draw_from="")


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    return replace(tiny, name="beside", split=SPEC, repeats=2)


@pytest.fixture(scope="module")
def two_folds(binary: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the parent folder of two folds of two seeds beside test images; tests leave it as it is."""
    write_report = pipeline_run.write_report

    def without_pages_of_folds(folder: Path, **options: Any) -> Path:
        """Write no page for the run of a fold, which would take most of the time here."""
        if not folder.name.endswith("-versions"):
            (folder / "report.html").write_text("of one fold")
            return folder / "report.html"
        return write_report(folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_run, "write_report", without_pages_of_folds)
        return train(recipe, binary, tmp_path_factory.mktemp("beside"))


def train(recipe: Recipe, data: Path, out: Path, said: list[str] | None = None) -> Path:
    settings = dk.RunSettings(out=out, device="cpu", resume=said is not None)
    progress = dk.Progress(say=(said if said is not None else []).append)
    return dk.train(recipe, dk.load_dataset(data), settings=settings, progress=progress)


@pytest.fixture
def parent(two_folds: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change; `train` finds it below its grandparent."""
    return Path(shutil.copytree(two_folds, tmp_path / "runs" / "beside" / two_folds.name))


def versions(parent: Path) -> list[Path]:
    return sorted(path.parent for path in parent.glob("*/run.json"))


def rows_of(folder: Path, split: str) -> pd.DataFrame:
    frame = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    return frame[frame["split"] == split]


def published(data: Path, split: str) -> list[str]:
    manifest = dk.load_dataset(data).manifest
    return sorted(manifest.loc[manifest["given_split"] == split, "image_id"])


def test_no_net_of_a_fold_scores_a_test_image(two_folds: Path, binary: Path) -> None:
    runs = versions(two_folds)
    assert [(RUN.read(run)["seed"], RUN.read(run)["fold"]) for run in runs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for run in runs:
        assert list(METRICS.read(run)["splits"]) == ["validation"]
        assert set(pd.read_csv(run / "predictions.csv")["split"]) == {"validation"}
        assert policy_from_dict(POLICY.read(run)).n_validation == len(rows_of(run, "validation"))
        seen = pd.read_csv(run / "split.csv")
        assert sorted(seen.loc[seen["split"] == "test", "image_id"]) == published(binary, "test")
    test = rows_of(two_folds, "test")
    assert sorted(test["image_id"]) == published(binary, "test"), "each once"
    assert (set(test["fold"]), set(test["seed"])) == ({""}, {"0"})


def test_out_of_fold_predictions_cover_each_training_image_once(two_folds: Path, binary: Path) -> None:
    validation = rows_of(two_folds, "validation")
    for _, rows in validation.groupby("seed"):
        assert sorted(rows["image_id"]) == published(binary, "train")
    body = METRICS.read(two_folds)["splits"]
    shown = validation[validation["seed"] == "0"]
    assert list(body) == ["validation", "test"]
    assert body["validation"]["metrics"]["accuracy"]["value"] == pytest.approx(
        accuracy_score(shown["label"], shown["predicted"])
    )
    pooled = SUMMARY.read(two_folds)["pooled"]
    assert (pooled["splits"], pooled["n_folds"]) == (["validation"], 2)
    assert [seed["seed"] for seed in pooled["seeds"]] == [0, 1]


def test_the_test_rows_are_the_mean_of_the_calibrated_nets(two_folds: Path, binary: Path) -> None:
    data, folder = dk.load_dataset(binary), RunFolder(two_folds)
    model, nets = load_model(two_folds), [load_model(run) for run in versions(two_folds)]
    assert len(model.nets) == 4, "the nets of both seeds"
    rows = rows_of(two_folds, "test")
    pixels = ensemble_test.ensemble_pixels(data, rows, model, dk.Progress())
    images = np.stack([pixels.pixels[[pixels.index[name]]][0] for name in rows["image_id"]])
    saved = rows[[f"p_{name}" for name in folder.class_names]].to_numpy(dtype=float)
    calibrated = [net.policy.calibration.apply(net.probabilities(images)) for net in nets if net.policy]
    assert saved == pytest.approx(np.mean(calibrated, axis=0), abs=1e-6)
    for size in (1, 32):
        batches = [model.probabilities(images[k : k + size]) for k in range(0, len(images), size)]
        assert np.concatenate(batches) == pytest.approx(saved, abs=1e-6)
    body = METRICS.read(two_folds)["splits"]["test"]["metrics"]
    assert body["accuracy"]["value"] == pytest.approx(accuracy_score(rows["label"], rows["predicted"]))


def test_the_policy_is_fitted_out_of_fold_and_tested_on_the_ensemble(two_folds: Path) -> None:
    folder, parts = RunFolder(two_folds), []
    columns = [f"p_{name}" for name in folder.class_names]
    for run in versions(two_folds)[:2]:
        rows = RunFolder(run).predictions.copy()
        rows[columns] = policy_from_dict(POLICY.read(run)).calibration.apply(rows[columns].to_numpy())
        parts.append(rows)
    expected = fit_policy(to_scored_set(pd.concat(parts), folder.classes, folder.groups()), is_calibrated=True)
    found, policy = load_model(two_folds).policy, METRICS.read(two_folds)["splits"]["test"]["policy"]
    assert found is not None
    thresholds = [point.threshold for point in expected.operating_points]
    assert [point.threshold for point in found.operating_points] == thresholds
    assert [point["threshold"] for point in policy["operating_points"]] == thresholds
    malignant = [
        column for column, entry in zip(columns, folder.classes, strict=True) if entry.malignancy == "malignant"
    ]
    test = rows_of(two_folds, "test")
    score, ill = test[malignant].astype(float).sum(axis=1), test["label"].isin([name[2:] for name in malignant])
    called = np.round(score, 10) >= np.round(thresholds[0], 10)
    assert policy["operating_points"][0]["sensitivity"]["value"] == pytest.approx(called[ill].mean())
    assert found.n_validation == len(folder.predictions) - len(test)


# Once ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that grows by (folder, images) with each scoring of pixels by a model."""
    counted: list[tuple[str, int]] = []
    score = Predictor.score_pixels

    def counting(self: Predictor, pixels: Any, rows: Any, **options: Any) -> Any:
        counted.append((self.folder.parent.name, len(rows)))
        return score(self, pixels, rows, **options)

    monkeypatch.setattr(Predictor, "score_pixels", counting)
    return counted


def contents(parent: Path) -> dict[str, bytes]:
    names = ("predictions.csv", "colour_baseline.csv", "groups.csv", "metrics.json", "policy.json")
    return {
        name: (parent / name).read_bytes() for name in (*names, "summary.json", "model/SHA256SUMS", "split.csv")
    }


def test_a_finished_training_scores_nothing_again(
    parent: Path, binary: Path, recipe: Recipe, scorings: list[tuple[str, int]]
) -> None:
    before = contents(parent)
    said: list[str] = []
    assert train(recipe, binary, parent.parent.parent, said) == parent
    assert scorings == []
    assert any("has scored the test images already" in line for line in said)
    assert dk.evaluate(parent) == dk.report(parent) == parent / "report.html"
    assert contents(parent) == before


@pytest.mark.parametrize("killed_at", ["between folds", "before scoring", "while scoring", "after scoring"])
def test_killed_and_resumed_it_ends_with_the_same_files(
    parent: Path, binary: Path, recipe: Recipe, killed_at: str, monkeypatch: pytest.MonkeyPatch,
    scorings: list[tuple[str, int]],
) -> None:  # fmt: skip
    names = (
        "predictions.csv",
        "colour_baseline.csv",
        "groups.csv",
        "attributes.csv",
        "split.csv",
        ENSEMBLE_TEST.name,
    )
    before, out = [(parent / name).read_bytes() for name in names], parent.parent.parent
    monkeypatch.setattr("dermkit.pipeline.repeats.evaluate_folds", lambda *_, **__: None)
    for path in parent.iterdir():
        if path not in versions(parent):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if killed_at == "between folds":
        shutil.rmtree(versions(parent)[-1])
    else:
        with monkeypatch.context() as patch:
            kill_scoring(patch, killed_at)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, binary, out, [])
    scorings.clear()
    assert train(recipe, binary, out, []) == parent
    assert [(parent / name).read_bytes() for name in names] == before
    n_test = len(published(binary, "test"))
    assert [n for name, n in scorings if name == parent.name] == ([] if killed_at == "after scoring" else [n_test])


def kill_scoring(patch: pytest.MonkeyPatch, moment: str) -> None:
    original = predict_splits

    def kill(*arguments: Any, **options: Any) -> None:
        if moment == "while scoring":
            original(*arguments, **options)
        raise KeyboardInterrupt

    if moment == "after scoring":
        patch.setattr("dermkit.pipeline.repeats.evaluate_folds", kill)
    else:
        patch.setattr(ensemble_test, "predict_splits", kill)


def test_other_nets_make_another_ensemble_that_scores_anew(
    parent: Path, binary: Path, recipe: Recipe, scorings: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermkit.pipeline.repeats.evaluate_folds", lambda *_, **__: None)
    before, marker = (parent / "predictions.csv").read_bytes(), ENSEMBLE_TEST.read(parent)
    ENSEMBLE_TEST.write(parent, {"key": "of other nets", "n": marker["n"]})
    train(recipe, binary, parent.parent.parent, [])
    assert [n for _, n in scorings] == [marker["n"]]
    assert ENSEMBLE_TEST.read(parent) == marker
    assert (parent / "predictions.csv").read_bytes() == before
