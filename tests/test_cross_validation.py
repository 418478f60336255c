"""Folds are one result: pooled out-of-fold rows, evaluated like a run, and an ensemble of the folds' nets."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score

import dermkit as dk
from dermkit.errors import DataError, OutputError, UntrustedError
from dermkit.files import TEMP_PREFIX, lock
from dermkit.metrics.decisions.policy import fit_policy, policy_from_dict
from dermkit.models.card import MAX_NETS, MODEL_JSON, extra_targets
from dermkit.models.checksums import write_checksums
from dermkit.pipeline import repeats
from dermkit.pipeline.cross_validation import CrossValidation, find_folds, pool_folds, write_final_ensemble
from dermkit.pipeline.repeats import summarise_repeats
from dermkit.prediction.load import load_model
from dermkit.recipes.schema import Recipe, SplitSpec, load_recipe
from dermkit.runs import folder as run_folder
from dermkit.runs.folder import SEEN_SPLIT, RunFolder
from dermkit.runs.layout import METRICS, POLICY, RUN, SAVED_TARGETS, SUMMARY
from dermkit.runs.predictions import to_scored_set

Json = dict[str, Any]
SPEC = SplitSpec(scheme="kfold", seed=0, validation=0.34, test=0.0, folds=3, per_class=0, draw_from="")


@pytest.fixture(scope="module")
def three_folds(seven: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the parent folder of three folds of seven classes; tests leave it as it is."""
    out = tmp_path_factory.mktemp("folds")
    recipe = replace(tiny, name="folds", split=SPEC)
    return dk.train(recipe, dk.load_dataset(seven), settings=dk.RunSettings(out=out, device="cpu"))


@pytest.fixture
def parent(three_folds: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    return Path(shutil.copytree(three_folds, tmp_path / "folds" / three_folds.name))


def versions(parent: Path) -> list[Path]:
    return sorted(path.parent for path in parent.glob("*/run.json"))


def rows_of(folder: Path, split: str) -> pd.DataFrame:
    frame = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    return frame[frame["split"] == split]


def test_three_folds_test_every_image_once(three_folds: Path, seven: Path, tmp_path: Path) -> None:
    data, summary = dk.load_dataset(seven), SUMMARY.read(three_folds)
    assert [row["fold"] for row in summary["runs"]] == [0, 1, 2]
    predictions = pd.concat(rows_of(run, "test") for run in versions(three_folds))
    assert sorted(predictions["image_id"]) == sorted(data.manifest["image_id"])
    assert pd.read_csv(three_folds / "summary.csv")["fold"].tolist() == [0, 1, 2]
    # A fold's run can be repeated from its own files, like any other.
    run = versions(three_folds)[1]
    again = dk.train(
        load_recipe(run / "recipe.json"),
        data, settings=dk.RunSettings(out=tmp_path / "again", device="cpu"), split=str(run / "split.csv"),
    )  # fmt: skip
    name = "model/member-0.safetensors"
    assert (again / name).read_bytes() == (run / name).read_bytes()


# Pooled figures -----------------------------------------------------------------------------------------------------


def test_the_parent_pools_what_each_net_said_of_images_it_never_saw(three_folds: Path, seven: Path) -> None:
    for split in ("validation", "test"):
        pooled, manifest = rows_of(three_folds, split), dk.load_dataset(seven).manifest
        assert sorted(pooled["image_id"]) == sorted(manifest["image_id"]), "each image once"
        of_runs = pd.concat(rows_of(run, split) for run in versions(three_folds))
        pd.testing.assert_frame_equal(pooled.reset_index(drop=True), of_runs.reset_index(drop=True))
        assert set(pooled["fold"]) == {"0", "1", "2"}


def test_pooled_figures_are_those_of_independent_tools(three_folds: Path) -> None:
    rows, folder = rows_of(three_folds, "test"), RunFolder(three_folds)
    body = METRICS.read(three_folds)["splits"]["test"]
    assert body["metrics"]["accuracy"]["value"] == pytest.approx(accuracy_score(rows["label"], rows["predicted"]))
    assert (
        body["confusion_matrix"]
        == confusion_matrix(rows["label"], rows["predicted"], labels=folder.class_names).tolist()
    )
    assert body["n_groups"] < body["n"] == len(rows), "photographs of one lesion are one group"
    malignant = [entry.name for entry in folder.classes if entry.malignancy == "malignant"]
    ill = rows["label"].isin(malignant).to_numpy()
    score = np.round(rows[[f"p_{name}" for name in malignant]].astype(float).sum(axis=1).to_numpy(), 10)
    areas, pairs = [], []
    for fold in ("0", "1", "2"):
        at = (rows["fold"] == fold).to_numpy()
        areas.append(roc_auc_score(ill[at], score[at]))
        pairs.append(ill[at].sum() * (~ill[at]).sum())
    assert body["metrics"]["auroc"]["value"] == pytest.approx(np.average(areas, weights=pairs), abs=1e-9)
    assert body["metrics"]["auroc"]["ci95"] is not None
    shown = {
        "roc_test.csv",
        "confusion_test.csv",
        "calibration_test.csv",
        "mistakes_test.csv",
        "confusions_test.csv",
    }
    assert shown <= {path.name for path in (three_folds / "figures").iterdir()}
    assert "subgroups" in body
    assert not json.loads((three_folds / "lint.json").read_text())["lint"], (
        "folds are no repeated or leaking images"
    )


def test_every_fold_applies_its_own_policy(three_folds: Path) -> None:
    folder, body = RunFolder(three_folds), METRICS.read(three_folds)["splits"]["test"]["policy"]
    malignant = np.array([entry.malignancy == "malignant" for entry in folder.classes])
    called, ill = [], []
    for run in versions(three_folds):
        policy, rows = policy_from_dict(POLICY.read(run)), rows_of(run, "test")
        p = policy.calibration.apply(rows[[f"p_{name}" for name in folder.class_names]].to_numpy(dtype=float))
        (point,) = (point for point in policy.operating_points if point.name == "sensitivity 0.9")
        called += (np.round(p[:, malignant].sum(axis=1), 10) >= round(point.threshold, 10)).tolist()
        ill += malignant[[folder.class_names.index(name) for name in rows["label"]]].tolist()
    (pooled,) = (point for point in body["operating_points"] if point["name"] == "sensitivity 0.9")
    is_called, is_ill = np.array(called), np.array(ill)
    assert pooled["threshold"] is None
    assert len(pooled["thresholds"]) == 3
    assert pooled["sensitivity"]["value"] == pytest.approx(is_called[is_ill].mean())
    assert pooled["specificity"]["value"] == pytest.approx((~is_called)[~is_ill].mean())
    assert body["calibrated"]["kinds"] == [
        policy_from_dict(POLICY.read(run)).calibration.kind for run in versions(three_folds)
    ]
    assert sum(body["conformal"]["set_sizes"]) == len(is_ill)


def test_the_page_says_what_the_figures_are_of(three_folds: Path) -> None:
    text = (three_folds / "report.html").read_text()
    for phrase in (
        "Research use only. Not a medical device.",
        "Cross-validation: 3 nets",
        "each scored by the one net that never saw it",
        "none of these images can test it",
        "There is no pooled threshold",
        "dermkit predict",
    ):
        assert phrase in text
    assert all(run.name in text for run in versions(three_folds))


def test_evaluated_and_reported_again_nothing_changes(parent: Path) -> None:
    names = ("metrics.json", "policy.json", "report.html", "model/SHA256SUMS", "summary.json", "predictions.csv")
    before = [(parent / name).read_bytes() for name in names]
    assert dk.evaluate(parent) == dk.report(parent) == parent / "report.html"
    assert [(parent / name).read_bytes() for name in names] == before


@pytest.mark.slow
def test_saved_targets_stay_in_the_ensemble(parent: Path) -> None:
    dk.evaluate(parent, options=dk.EvaluationOptions(targets=(("sensitivity", 0.7),), save_targets=True))
    names = [point["name"] for point in MODEL_JSON.read(parent / "model")["operating_points"]]
    assert "sensitivity 0.7" in names
    summarise_repeats(parent, versions(parent), monitor="val_loss")
    assert [point["name"] for point in MODEL_JSON.read(parent / "model")["operating_points"]] == names


@pytest.mark.parametrize("killed_in", ["write_final_ensemble", "evaluate_folds"])
def test_saved_targets_outlive_a_kill_while_the_ensemble_is_written_anew(
    parent: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """A training that is run again writes the parent's model anew; what a person saved in it is fitted again."""
    dk.evaluate(parent, options=dk.EvaluationOptions(targets=(("sensitivity", 0.7),), save_targets=True))
    before = (parent / "model" / "SHA256SUMS").read_bytes()
    with monkeypatch.context() as patch:

        def kill(folder: Path, *_: object, **__: object) -> None:
            """Leave the model without its points, as the writing of a new ensemble does first of all."""
            folds = find_folds(versions(folder))
            assert folds is not None
            write_final_ensemble(folder, folds)
            raise KeyboardInterrupt

        patch.setattr(repeats, killed_in, kill)
        with pytest.raises(KeyboardInterrupt):
            summarise_repeats(parent, versions(parent), monitor="val_loss")
    assert extra_targets(parent / "model") == ()
    summarise_repeats(parent, versions(parent), monitor="val_loss")
    assert extra_targets(parent / "model") == (("sensitivity", 0.7),)
    assert (parent / "model" / "SHA256SUMS").read_bytes() == before, "the same model as without the kill"
    assert not SAVED_TARGETS.exists(parent)


def test_targets_that_wait_for_a_model_are_read_strictly(parent: Path) -> None:
    SAVED_TARGETS.write(parent, {"targets": [["sensitivity", "high"]]})
    with pytest.raises(DataError, match=r"saved_targets\.json"):
        summarise_repeats(parent, versions(parent), monitor="val_loss")


def test_repeats_are_summarised_by_one_process_at_a_time(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_SECONDS", 0.0)
    before = (parent / "summary.json").read_bytes()
    with lock(parent), pytest.raises(OutputError, match="is in use by process"):
        summarise_repeats(parent, versions(parent), monitor="val_loss")
    assert (parent / "summary.json").read_bytes() == before
    stale = parent / "figures" / f"{TEMP_PREFIX}killed"
    stale.write_text("half a file")
    summarise_repeats(parent, versions(parent), monitor="val_loss")
    assert not stale.exists()


def test_a_half_finished_training_goes_on_to_the_same_result(parent: Path, seven: Path, tiny: Recipe) -> None:
    names = ("predictions.csv", "metrics.json", "model/SHA256SUMS")
    before = [(parent / name).read_bytes() for name in names]
    shutil.rmtree(versions(parent)[2])
    for path in parent.iterdir():
        if path not in versions(parent):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    said: list[str] = []
    where = dk.RunSettings(out=parent.parent.parent, device="cpu", resume=True)
    recipe = replace(tiny, name="folds", split=SPEC)
    again = dk.train(recipe, dk.load_dataset(seven), settings=where, progress=dk.Progress(say=said.append))
    assert again == parent
    assert sum("already finished" in line for line in said) == 2
    assert [(parent / name).read_bytes() for name in names] == before


def with_seed(run: Path, seed: int, target: Path) -> Path:
    """Copy a run as that of another seed, which is sure of the first class."""
    shutil.copytree(run, target)
    RUN.write(target, {**RUN.read(run), "seed": seed})
    frame = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False).assign(seed=str(seed))
    columns = [str(name) for name in frame.columns if str(name).startswith("p_")]
    frame[columns] = "0.0"
    frame[columns[0]] = "1.0"
    frame.assign(predicted=columns[0][2:]).to_csv(target / "predictions.csv", index=False)
    return target


def test_each_seed_has_a_pooled_figure_and_the_first_is_shown(parent: Path) -> None:
    others = [with_seed(run, 7, run.with_name(run.name.replace("-s0-", "-s7-"))) for run in versions(parent)]
    summarise_repeats(parent, [*versions(parent)[:3], *others], monitor="val_loss")
    summary, body = SUMMARY.read(parent), METRICS.read(parent)["splits"]["test"]
    first, second = summary["pooled"]["seeds"]
    assert (first["seed"], second["seed"], summary["pooled"]["shown_seed"]) == (0, 7, 0)
    assert first["test"]["accuracy"] == body["metrics"]["accuracy"]["value"]
    rows = rows_of(parent, "test")
    other = rows[rows["seed"] == "7"]
    assert second["test"]["accuracy"] == pytest.approx((other["label"] == other["predicted"]).mean())
    spread = summary["pooled"]["metrics"]["test"]["accuracy"]
    assert spread["mean"] == pytest.approx((first["test"]["accuracy"] + second["test"]["accuracy"]) / 2)
    assert spread["n_runs"] == 2
    assert body["n"] == len(rows) / 2
    assert summary["final"]["members"] == [run.name for run in versions(parent)[:3]]
    text = (parent / "report.html").read_text()
    assert "This page shows seed 0, the first" in text
    assert load_recipe(parent / "recipe.json").repeats == 2


def test_sealed_test_images_of_a_fold_leave_pooled_validation(parent: Path) -> None:
    run = versions(parent)[1]
    rows_of(run, "validation").to_csv(run / "predictions.csv", index=False)
    summarise_repeats(parent, versions(parent), monitor="val_loss")
    metrics = METRICS.read(parent)
    assert list(metrics["splits"]) == ["validation"]
    assert any("not pooled" in text for text in RUN.read(parent)["warnings"])
    assert load_model(parent).policy is not None


def test_more_folds_than_a_model_holds_nets_are_said(three_folds: Path, tmp_path: Path) -> None:
    folds = find_folds(versions(three_folds))
    assert folds is not None
    final = write_final_ensemble(tmp_path, folds)
    assert final["chosen_by"].endswith("the mean of the 3 nets of seed 0, one of each fold")
    many = CrossValidation({0: folds.shown_runs * 11})
    final = write_final_ensemble(tmp_path, many)
    assert len(final["members"]) == len(MODEL_JSON.read(tmp_path / "model")["members"]) == MAX_NETS
    assert "one of each of the first 32 of 33 folds" in final["chosen_by"]


def test_runs_that_are_no_complete_folds_are_not_pooled(parent: Path) -> None:
    runs = versions(parent)
    folds = find_folds(runs)
    assert folds is not None
    assert folds.shown_runs == tuple(runs)
    other = with_seed(runs[0], 7, runs[0].with_name("other"))
    assert find_folds([*runs, other]) is None, "a seed that lacks a fold"
    assert find_folds(runs[:1]) is None
    RUN.write(runs[0], {**RUN.read(runs[0]), "fold": None})
    assert find_folds(runs) is None


def test_a_parent_of_before_is_still_reported_and_compared(parent: Path, three_folds: Path) -> None:
    summary = {key: value for key, value in SUMMARY.read(parent).items() if key != "pooled"}
    run = versions(parent)[1]
    summary["final"] = {
        "seed": 0,
        "fold": 1,
        "folder": run.name,
        "chosen_by": "val_loss on validation, 1: best of 3",
    }
    (parent / "summary.json").write_text(json.dumps({**summary, "format": 1}))
    for name in ("metrics.json", "run.json", "predictions.csv"):
        (parent / name).unlink()
    assert run.name in dk.report(parent).read_text()
    outcome = dk.compare([parent, three_folds], out=parent / "versus")
    assert any("ensemble of 3 folds" in note for note in outcome.notes)
    assert any("the best of its trainings" in note for note in outcome.notes)


# The ensemble -------------------------------------------------------------------------------------------------------


def test_the_model_is_the_mean_of_the_nets_after_the_temperature_of_each(three_folds: Path) -> None:
    model, pixels = (
        load_model(three_folds),
        np.random.default_rng(0).integers(0, 256, (32, 24, 24, 3), dtype=np.uint8),
    )
    members = [load_model(run) for run in versions(three_folds)]
    temperatures = [one.policy.calibration.temperature for one in members if one.policy is not None]
    powers = [one.probabilities(pixels) ** (1 / t) for one, t in zip(members, temperatures, strict=True)]
    parts = [power / power.sum(axis=1, keepdims=True) for power in powers]  # without the biases
    p = model.probabilities(pixels)
    assert p == pytest.approx(np.mean(parts, axis=0), abs=1e-12)
    assert p.sum(axis=1) == pytest.approx(1)
    one_by_one = np.concatenate([model.probabilities(pixels[k : k + 1]) for k in range(32)])
    assert one_by_one == pytest.approx(p, abs=1e-6)
    assert len(model.nets) == 3
    assert {split for _, _, split in model.training_images} == {"train"}, "some net was trained on each"
    card_text = (three_folds / "model" / "MODEL_CARD.md").read_text()
    assert "tested on no image" in card_text
    assert "3 nets, so 3 passes an image" in card_text
    # The figures in it are of single nets, and say so.
    assert (
        " test images, each scored by the one net that had not learned from it, so not of this model. "
        in card_text
    )


def test_its_policy_is_fitted_on_pooled_validation_images(three_folds: Path) -> None:
    folder = RunFolder(three_folds)
    parts = []
    for run in versions(three_folds):
        rows = RunFolder(run).predictions
        rows, policy = rows[rows["split"] == "validation"].copy(), policy_from_dict(POLICY.read(run))
        columns = [f"p_{name}" for name in folder.class_names]
        powers = rows[columns].to_numpy() ** (1 / policy.calibration.temperature)
        rows[columns] = powers / powers.sum(axis=1, keepdims=True)
        parts.append(rows)
    expected = fit_policy(to_scored_set(pd.concat(parts), folder.classes, folder.groups()))
    found = load_model(three_folds).policy
    assert found is not None
    assert found.calibration.kind == expected.calibration.kind
    assert found.calibration.bias == pytest.approx(expected.calibration.bias)
    assert found.n_validation == len(folder.predictions) / 2
    assert [point.threshold for point in found.operating_points] == [
        point.threshold for point in expected.operating_points
    ]
    assert found.conformal_rule.min_probability == pytest.approx(expected.conformal_rule.min_probability)


def test_the_ensemble_predicts_and_is_evaluated_elsewhere(three_folds: Path, seven: Path, tmp_path: Path) -> None:
    data = dk.load_dataset(seven)
    outcome = dk.predict(three_folds, [str(data.image_root)], out=tmp_path / "predicted")
    assert outcome.decision_counts is not None
    assert any("mean of 3 nets" in warning for warning in outcome.decision_counts.warnings)
    assert outcome.n_training_images == outcome.n_scored
    report = dk.evaluate(three_folds, dataset=data, out=tmp_path / "on", options=dk.EvaluationOptions(
        targets=(("sensitivity", 0.7),)
    ))  # fmt: skip
    splits = METRICS.read(report.parent)["splits"]
    assert list(splits) == [SEEN_SPLIT], (
        "some net has learned from each image, so none is a test image of the mean"
    )
    points = splits[SEEN_SPLIT]["policy"]["operating_points"]
    assert "sensitivity 0.7" in [point["name"] for point in points]


def test_the_ensemble_calls_an_image_alike_alone_and_in_a_batch(
    three_folds: Path, seven: Path, tmp_path: Path
) -> None:
    images, tables = [str(dk.load_dataset(seven).image_root)], []
    for size in (1, 32):
        outcome = dk.predict(three_folds, images, out=tmp_path / str(size), batch_size=size)
        assert outcome.decision_counts is not None
        assert any("(3 passes an image)" in warning for warning in outcome.decision_counts.warnings)
        tables.append(pd.read_csv(tmp_path / str(size) / "decisions.csv", dtype=str, keep_default_na=False))
    alone, batched = tables
    assert len(alone) > 32
    for name in ("image_id", "predicted", "positive", "referral", "prediction_set"):
        assert alone[name].tolist() == batched[name].tolist()
    names = [name for name in alone.columns if name.startswith("p_")]
    p, p_batched = alone[names].to_numpy(dtype=float), batched[names].to_numpy(dtype=float)
    assert p == pytest.approx(p_batched, abs=1e-6)


def test_a_model_of_before_is_read(three_folds: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(versions(three_folds)[0] / "model", tmp_path / "old"))
    card = MODEL_JSON.read(old)
    members = [{key: card["members"][0][key] for key in ("file", "spec", "views")}]
    preprocessing = card["members"][0]["preprocessing"]
    (old / "model.json").write_text(
        json.dumps({**card, "members": members, "preprocessing": preprocessing, "format": 3})
    )
    write_checksums(old)
    pixels = np.full((1, 24, 24, 3), 90, np.uint8)
    assert load_model(old).probabilities(pixels) == pytest.approx(
        load_model(versions(three_folds)[0]).probabilities(pixels), abs=0
    )


MEMBER = "member-1.safetensors"


def changed(**fields: Any) -> Callable[[list[Json]], object]:
    return lambda members: members[1].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(file="../../secret.safetensors"), "not one that SHA256SUMS lists"),
        (changed(file="/etc/passwd"), "not one that SHA256SUMS lists"),
        (changed(file="member-9.safetensors"), "not one that SHA256SUMS lists"),
        (changed(file=["member-1.safetensors"]), "not one that SHA256SUMS lists"),
        (changed(file="member-0.safetensors"), "two members have one weights file"),
        (changed(file="seen.csv"), "not a model folder"),
        (changed(classes=[]), "'classes', which is no field of one"),
        (changed(preprocessing={"size": 24}), "not a model folder: .*validation error"),
        (lambda members: members[1]["preprocessing"].update(size=4096), "less than or equal to 2048"),
        (lambda members: members[1]["preprocessing"].update(size=1), "greater than or equal to 16"),
        (lambda members: members[1]["preprocessing"].update(size=24.5), "not a model folder"),
        (lambda members: members[1]["preprocessing"].update(divide_by=0.0), "not a model folder"),
        (lambda members: members[1]["preprocessing"].update(std=[0.0, 1.0, 1.0]), "not a model folder"),
        (lambda members: members[1]["preprocessing"].update(mean=[1e9] * 3), "less than or equal to 1000000"),
        (lambda members: members[1].pop("weight"), "not a model folder: 'weight'"),
        (changed(weight=None), "not a number from 0 to 1"),
        (changed(weight=float("nan")), "NaN is not a number"),
        (changed(weight=float("inf")), "Infinity is not a number"),
        (changed(weight=-0.1), "not a number from 0 to 1"),
        (changed(weight=True), "not a number from 0 to 1"),
        (changed(weight="0.5"), "not a number from 0 to 1"),
        (changed(weight=10**400), "not a number from 0 to 1"),
        (changed(weight=0.9), "sum to 1.56667, not to 1"),
        (changed(weight=0), "sum to 0.666667, not to 1"),
        (changed(class_order=[0] * 7), "not each of 0 to 6 once"),
        (changed(class_order=[*range(6), -1]), "not each of 0 to 6 once"),
        (changed(class_order=[*range(1, 7), False]), "not each of 0 to 6 once"),
        (changed(class_order=list(range(8))), "not each of 0 to 6 once"),
        (changed(class_order=None), "not each of 0 to 6 once"),
        (changed(calibration=None), "no calibration of its own"),
        (changed(calibration={"kind": "none", "temperature": 1.0, "bias": [0.0]}), "not for 7 classes"),
        (changed(calibration={"kind": "none", "temperature": 1e9, "bias": [0.0] * 7}), "not a model folder"),
        (changed(calibration={"kind": "magic", "temperature": 1.0, "bias": [0.0] * 7}), "not a model folder"),
        (lambda members: members[1]["spec"].update(hidden=[9]), "weights do not fit"),
        (lambda members: members.extend([members[0]] * MAX_NETS), f"a model has 1 to {MAX_NETS}"),
        (lambda members: members.clear(), "0 members"),
        (lambda members: members.append("x"), "a member is no object"),
    ],
)
def test_a_malicious_list_of_members_is_refused(
    three_folds: Path, tmp_path: Path, change: Callable[[list[Json]], object], message: str
) -> None:
    model = Path(shutil.copytree(three_folds / "model", tmp_path / "model"))
    (tmp_path / "secret.safetensors").write_bytes((model / MEMBER).read_bytes())
    card = json.loads((model / "model.json").read_text())
    change(card["members"])
    (model / "model.json").write_text(json.dumps(card))
    write_checksums(model)
    with pytest.raises(UntrustedError, match=message):
        load_model(model)


def test_a_changed_member_is_refused(three_folds: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(three_folds / "model", tmp_path / "model"))
    (model / MEMBER).write_bytes((model / "member-2.safetensors").read_bytes())
    with pytest.raises(UntrustedError, match=r"member-1\.safetensors: its bytes are not those"):
        load_model(model)


def test_pooling_alone_writes_tables(parent: Path, tmp_path: Path) -> None:
    folds = CrossValidation({0: tuple(versions(parent))})
    pooled = pool_folds(tmp_path, folds)
    assert pooled["splits"] == ["validation", "test"]
    counts = RUN.read(tmp_path)["split"]["counts"]
    assert counts["validation"] == counts["test"] == len(rows_of(tmp_path, "test"))
