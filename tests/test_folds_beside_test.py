"""Folds of the training images beside published test images: the ensemble of all folds scores these, once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

import dermkit as dk
from conftest import Invoke
from dermkit import cli as command_line
from dermkit.data.cache.pixels import dataset_pixels
from dermkit.data.seal import read_seal
from dermkit.errors import UsageError
from dermkit.evaluation.predict_splits import predict_splits
from dermkit.metrics.decisions.policy import fit_policy, policy_from_dict
from dermkit.pipeline import ensemble, ensemble_sources, ensemble_test
from dermkit.pipeline import run as pipeline_run
from dermkit.prediction.load import load_model
from dermkit.prediction.predictor import Predictor
from dermkit.recipes.schema import Recipe, SplitSpec, load_recipe, save_recipe
from dermkit.reporting.report import write_report
from dermkit.reporting.warnings import report_warnings
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import ENSEMBLE_TEST, METRICS, POLICY, RUN, SUMMARY
from dermkit.runs.migrations import summary_2_to_3
from dermkit.runs.predictions import to_scored_set

SPEC = SplitSpec(scheme="given", seed=0, validation=0.2, test=0.0, folds=2, per_class=0, draw_from="")


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """Return a list that holds what the command printed once `two_folds` is made."""
    return []


@pytest.fixture(scope="module")
def two_folds(binary: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory, printed: list[str]) -> Path:
    """Return the parent folder of two folds of two seeds beside test images, by the command line."""

    def without_pages_of_folds(folder: Path, **options: Any) -> Path:
        """Write no page for the run of a fold, which would take most of the time here."""
        if not folder.name.endswith("-versions"):
            (folder / "report.html").write_text("of one fold")
            return folder / "report.html"
        return write_report(folder, **options)

    folder = tmp_path_factory.mktemp("beside")
    save_recipe(replace(tiny, name="beside", split=replace(SPEC, folds=0), repeats=2), folder / "recipe.json")
    words = ["train", folder / "recipe.json", binary, "--folds", "2", "--out", folder, "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_run, "write_report", without_pages_of_folds)
        patch.setattr("dermkit.cli.console.echo", lambda text="", **_: printed.append(str(text)))
        with pytest.raises(SystemExit) as ended:
            command_line.app([str(word) for word in words])
    assert not ended.value.code
    (made,) = folder.glob("*/*-versions")
    return made


@pytest.fixture(scope="module")
def recipe(two_folds: Path) -> Recipe:
    return load_recipe(two_folds / "recipe.json")


def train(recipe: Recipe, data: Path, out: Path, said: list[str] | None = None) -> Path:
    settings = dk.RunSettings(out=out, device="cpu", resume=said is not None)
    progress = dk.Progress(say=(said if said is not None else []).append)
    return dk.train(recipe, dk.load_dataset(data), settings=settings, progress=progress)


@pytest.fixture
def parent(two_folds: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change; `train` finds it below its grandparent."""
    return Path(shutil.copytree(two_folds, tmp_path / "runs" / two_folds.parent.name / two_folds.name))


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


def test_predictions_and_split_are_said_to_differ_only_where_they_do(parent: Path) -> None:
    def codes() -> set[str]:
        dk.evaluate(parent)
        return {row["code"] for row in json.loads((parent / "lint.json").read_text())["lint"]}

    assert "LN009" not in codes()
    frame = pd.read_csv(parent / "predictions.csv", dtype=str, keep_default_na=False)
    is_first = (frame["split"] == "validation") & (frame["seed"] == "0")
    frame.drop(index=frame.index[is_first][0]).to_csv(parent / "predictions.csv", index=False)
    assert "LN009" in codes()


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


def test_the_test_rows_are_the_mean_of_the_nets_after_the_temperature_of_each(
    two_folds: Path, binary: Path
) -> None:
    data, folder = dk.load_dataset(binary), RunFolder(two_folds)
    model, nets = load_model(two_folds), [load_model(run) for run in versions(two_folds)]
    assert len(model.nets) == 4, "the nets of both seeds"
    rows = rows_of(two_folds, "test")
    pixels = dataset_pixels(data, rows["image_id"].tolist(), model.preprocessing, dk.Progress())
    images = np.stack([pixels.pixels[[pixels.index[name]]][0] for name in rows["image_id"]])
    saved = rows[[f"p_{name}" for name in folder.class_names]].to_numpy(dtype=float)
    powers = [net.probabilities(images) ** (1 / net.policy.calibration.temperature) for net in nets if net.policy]
    assert saved == pytest.approx(np.mean([p / p.sum(axis=1, keepdims=True) for p in powers], axis=0), abs=1e-6)
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
        powers = rows[columns].to_numpy() ** (1 / policy_from_dict(POLICY.read(run)).calibration.temperature)
        rows[columns] = powers / powers.sum(axis=1, keepdims=True)
        parts.append(rows)
    expected = fit_policy(to_scored_set(pd.concat(parts), folder.classes, folder.groups()))
    found, policy = load_model(two_folds).policy, METRICS.read(two_folds)["splits"]["test"]["policy"]
    assert found is not None
    thresholds = [point.threshold for point in expected.operating_points]
    assert [point.threshold for point in found.operating_points] == thresholds
    assert [point["threshold"] for point in policy["operating_points"]] == thresholds
    malignant = [
        column for column, entry in zip(columns, folder.classes, strict=True) if entry.malignancy == "malignant"
    ]
    test = rows_of(two_folds, "test")
    calibrated = expected.calibration.apply(test[columns].to_numpy(dtype=float))
    score = calibrated[:, [columns.index(column) for column in malignant]].sum(axis=1)
    ill = test["label"].isin([name[2:] for name in malignant]).to_numpy()
    called = np.round(score, 10) >= np.round(thresholds[0], 10)
    assert policy["operating_points"][0]["sensitivity"]["value"] == pytest.approx(called[ill].mean())
    assert found.n_validation == len(folder.predictions) - len(test)


# Once ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that grows by (folder, images) with each scoring of pixels by a model."""
    counted: list[tuple[str, int]] = []
    score = Predictor.score_with_distances

    def counting(self: Predictor, pixels: Any, rows: Any, **options: Any) -> Any:
        counted.append((self.folder.parent.name, len(rows)))
        return score(self, pixels, rows, **options)

    monkeypatch.setattr(Predictor, "score_with_distances", counting)
    return counted


def contents(parent: Path) -> dict[str, bytes]:
    names = ("predictions.csv", "image_blind_rules.csv", "groups.csv", "metrics.json", "policy.json")
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
    assert contents(parent) == before


@pytest.mark.parametrize("killed_at", ["between folds", "before scoring", "while scoring", "after scoring"])
def test_killed_and_resumed_it_ends_with_the_same_files(
    parent: Path, binary: Path, recipe: Recipe, killed_at: str, monkeypatch: pytest.MonkeyPatch,
    scorings: list[tuple[str, int]],
) -> None:  # fmt: skip
    names = (
        "predictions.csv",
        "image_blind_rules.csv",
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
    ENSEMBLE_TEST.write(parent, {"key": "of other nets"})
    train(recipe, binary, parent.parent.parent, [])
    assert [n for _, n in scorings] == [len(published(binary, "test"))]
    assert ENSEMBLE_TEST.read(parent) == marker
    assert (parent / "predictions.csv").read_bytes() == before


# Sealed -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed(parent: Path, binary: Path, recipe: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    """Return a data set whose test images are sealed, and the folder of its folds, trained before any opening."""
    data = Path(shutil.copytree(binary, tmp_path / "data"))
    dk.split(dk.load_dataset(data), SPEC, name="held", seal=True)
    for path in parent.iterdir():
        if path not in versions(parent):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return data, train(recipe, data, parent.parent.parent, [])


def test_sealed_test_images_are_scored_by_one_opening_of_the_parent(
    sealed: tuple[Path, Path], two_folds: Path, recipe: Recipe, scorings: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, parent = sealed
    seal_file = data / "splits" / "held.seal.json"
    assert list(METRICS.read(parent)["splits"]) == ["validation"]
    assert "The test side is sealed" in (parent / "report.html").read_text()
    assert "tested on no image" in (parent / "model" / "MODEL_CARD.md").read_text()
    (line,) = [line for line in (parent / "NEXT_STEPS.txt").read_text().splitlines() if "--open-test" in line]
    assert str(parent) in line
    with pytest.raises(UsageError, match="is the run of one fold") as caught:
        dk.evaluate(versions(parent)[0], open_test=dk.load_dataset(data))
    assert str(parent) in str(caught.value)
    assert not read_seal(seal_file).openings
    dk.evaluate(parent, open_test=dk.load_dataset(data))
    (opening,) = read_seal(seal_file).openings
    n_test = len(rows_of(two_folds, "test"))
    assert (opening.run, opening.n, opening.finished) == (parent.name, n_test, True)
    assert [n for _, n in scorings] == [n_test]
    for name in ("predictions.csv", "image_blind_rules.csv", "groups.csv", ENSEMBLE_TEST.name):
        assert (parent / name).read_bytes() == (two_folds / name).read_bytes()
    assert METRICS.read(parent)["splits"] == METRICS.read(two_folds)["splits"]
    assert "--open-test" not in (parent / "NEXT_STEPS.txt").read_text()
    monkeypatch.setattr("dermkit.pipeline.repeats.evaluate_folds", lambda *_, **__: None)
    train(recipe, data, parent.parent.parent, [])
    assert (len(read_seal(seal_file).openings), len(scorings)) == (1, 1)


# What is said -------------------------------------------------------------------------------------------------------


def test_page_terminal_and_card_name_both_kinds_of_figures(
    two_folds: Path, printed: list[str], binary: Path, tmp_path: Path
) -> None:
    n_train, n_test = len(published(binary, "train")), len(published(binary, "test"))
    assert f"validation, out-of-fold (single nets): {n_train} images" in printed
    assert f"test, the ensemble: {n_test} images" in printed
    text = " ".join((two_folds / "report.html").read_text().split())
    for phrase in (
        "4 nets (dermkit/cnn-s1) were trained, one without each of 2 folds",
        f"{n_test} test images, which no net learned from",
        "The test figures are of the ensemble, which scored these images once",
        f"validation (out-of-fold), {n_train} images",
        "Pooled validation figures of each seed",
        "each calibrated by the temperature of its net",
    ):
        assert phrase in text
    assert "none of these images can test it" not in text
    card = (two_folds / "model" / "MODEL_CARD.md").read_text()
    assert "tested on images that none of its nets learned from" in card
    assert "not of this model" not in card
    outcome = dk.predict(two_folds, [str(dk.load_dataset(binary).image_root)], out=tmp_path / "predicted")
    assert outcome.decision_counts is not None
    (warning,) = [text for text in outcome.decision_counts.warnings if "mean of 4 nets" in text]
    assert "the test images, which the mean scored" in warning
    assert SUMMARY.read(two_folds)["final"]["chosen_by"] == (
        "nothing: it is the mean of the 4 nets of seeds 0, 1, one of each fold"
    )
    run = RunFolder(versions(two_folds)[0])
    assert any("were not scored by this net" in warning.text for warning in report_warnings(run))


def test_compare_takes_the_ensemble_as_one_run(two_folds: Path, tmp_path: Path) -> None:
    outcome = dk.compare([two_folds, versions(two_folds)[0]], out=tmp_path / "versus")
    assert any("out-of-fold" in note and "ensemble of 4 nets" in note for note in outcome.notes)
    n_fold = len(rows_of(versions(two_folds)[0], "validation"))
    pairs = pd.read_csv(tmp_path / "versus" / "pairs.csv")
    assert pairs.loc[pairs["split"] == "validation", "n"].max() == n_fold, "the images that both have scored"
    assert not pairs.loc[pairs["split"] == "test", "difference"].notna().any()
    table = pd.read_csv(tmp_path / "versus" / "leaderboard.csv")
    accuracy = table[(table["metric"] == "accuracy") & (table["run"].str.contains("versions"))]
    assert set(accuracy["split"]) == {"validation", "test"}


def test_an_ensemble_of_recipes_takes_the_nets_of_the_shown_rows_and_finds_the_test_images(
    two_folds: Path, binary: Path
) -> None:
    source = ensemble_sources.find_source(two_folds)
    assert source.nets == {str(fold): versions(two_folds)[fold] / "model" for fold in (0, 1)}, "those of seed 0"
    assert sorted(source.rows["image_id"]) == published(binary, "train")
    split = ensemble._common_split([source, source])
    assert split is not None
    assert sorted(split.loc[split["split"] == "test", "image_id"]) == published(binary, "test")


def test_the_command_line_refuses_folds_that_cannot_be_made(binary: Path, invoke: Invoke, tmp_path: Path) -> None:
    data = Path(shutil.copytree(binary, tmp_path / "data"))
    code, out, _ = invoke("split", data, "--scheme", "given", "--folds", "5", "--name", "five")
    assert code == 0 and "fold: " in out and "test: " in out
    code, _, message = invoke("split", data, "--scheme", "given", "--folds", "40", "--name", "forty")
    assert code == 3 and "cannot fill 40 folds" in message
    assert not (data / "splits" / "forty.csv").exists()
    code, out, _ = invoke("split", data, "--scheme", "holdout", "--folds", "5", "--name", "drawn")
    assert code == 0 and "fold: " in out and "test: " in out
    code, _, message = invoke("train", "s1-cnn", data, "--folds", "40", "--out", tmp_path / "runs")
    assert code == 3 and "cannot fill 40 folds" in message
    assert not list((tmp_path / "runs").glob("*/*"))


def test_a_summary_of_before_has_folds_of_all_images() -> None:
    assert summary_2_to_3({"pooled": None, "format": 2}) == {"pooled": None, "format": 3}
    migrated = summary_2_to_3({"pooled": {"n_folds": 3}, "format": 2})
    assert migrated == {"pooled": {"n_folds": 3, "scores_test_by_ensemble": False}, "format": 3}
