"""The race of `train auto`: it ends with a leaderboard and a model, touches no test image, and goes on after a stop."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dermkit as dk
from dermkit.errors import DermkitError, RunInterrupt, UsageError
from dermkit.models.card import read_card
from dermkit.pipeline import auto, measure_speed
from dermkit.pipeline import run as pipeline_run
from dermkit.pipeline.auto import train_auto
from dermkit.pipeline.auto_plan import AutoPlan
from dermkit.pipeline.auto_reasons import PlanChoice
from dermkit.pipeline.auto_recipes import KIND_NAMES, Candidate, fold_split
from dermkit.pipeline.auto_results import out_of_fold
from dermkit.pipeline.dataset_plan import AutoOptions
from dermkit.pipeline.dataset_profile import profile_dataset
from dermkit.pipeline.measure_speed import measure_decoding, measure_fits, measure_net
from dermkit.pipeline.plan import Machine, RunPlan
from dermkit.recipes.derive import derive_recipe
from dermkit.recipes.frozen import ClassifierKind
from dermkit.recipes.schema import Recipe
from dermkit.recipes.short_forms import ShortForms, short_form_assignments
from dermkit.recipes.strong import STRONG_1H
from dermkit.reporting.auto_page import chosen_sentence
from dermkit.runs.layout import AUTO, LEADERBOARD_TABLE

Invoke = Callable[..., tuple[int, str, str]]


def small_plan(dataset: dk.Dataset, tiny: Recipe, *, seconds: float, n_trained_folds: int = 2) -> AutoPlan:
    """Return a plan of two recipes that train in a second each, from two seeds."""
    split = fold_split(profile_dataset(dataset), 2, 0)
    recipes = (
        replace(tiny, name="first", split=split),
        replace(tiny, name="second", split=split, optim=replace(tiny.optim, batch_size=6), seed=tiny.seed + 1),
    )
    choice = PlanChoice("folds", "2", "a reason", "evidence", "more time")
    candidates = tuple(Candidate(recipe, None, 2.0) for recipe in recipes)
    return AutoPlan(
        seconds=seconds, decoding=0.1, n_folds=2, n_trained_folds=n_trained_folds, candidates=candidates,
        choices=(choice,),
    )  # fmt: skip


def plan_small_races(monkeypatch: pytest.MonkeyPatch, tiny: Recipe, *, n_trained_folds: int = 2) -> None:
    """Make every race's plan the small one: what a real plan holds is the matter of test_auto_plan.py."""

    def plan(dataset: dk.Dataset, options: AutoOptions, _machine: Any) -> Any:
        plan = small_plan(dataset, tiny, seconds=options.seconds, n_trained_folds=n_trained_folds)
        return profile_dataset(dataset), plan

    monkeypatch.setattr(auto, "plan_auto", plan)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tiny: Recipe) -> None:
    plan_small_races(monkeypatch, tiny)


def race(dataset: Path, out: Path, *, seconds: float = 600.0) -> Path:
    settings = dk.RunSettings(out=out, device="cpu")
    return train_auto(dk.load_dataset(dataset), AutoOptions(seconds=seconds), settings=settings)


def leaderboard(folder: Path) -> list[dict[str, str]]:
    """Return the leaderboard without its times, which differ from run to run."""
    with (folder / LEADERBOARD_TABLE).open(newline="") as stream:
        return [
            {name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(stream)
        ]


@pytest.fixture(scope="module")
def finished(binary: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished race."""
    with pytest.MonkeyPatch.context() as patch:
        plan_small_races(patch, tiny)
        return race(binary, tmp_path_factory.mktemp("race"))


def test_every_recipe_predicts_every_training_image_once_and_no_test_image(finished: Path, binary: Path) -> None:
    manifest = dk.load_dataset(binary).manifest
    training = manifest[manifest["given_split"] != "test"]
    for name in ("first", "second"):
        runs = sorted(path.parent for path in (finished / "trials" / name).glob("*/*/metrics.json"))
        rows = pd.concat(pd.read_csv(run / "predictions.csv") for run in runs)
        assert sorted(rows["image_id"]) == sorted(training["image_id"]) and set(rows["split"]) == {"validation"}
    chosen = finished / AUTO.read(finished)["chosen"]["folder"]
    assert set(pd.read_csv(chosen / "predictions.csv")["split"]) == {"validation"}
    assert "test" not in json.loads((chosen / "metrics.json").read_text())["splits"]


def test_the_leaderboard_holds_the_out_of_fold_figures_and_the_best_is_chosen(finished: Path) -> None:
    rows = leaderboard(finished)
    assert [row["state"] for row in rows] == ["complete"] * 3
    values = {}
    (of_ensemble,) = (row for row in rows if row["name"] == "ensemble")
    mean = pd.read_csv(finished / "ensemble" / "predictions.csv")
    hits = mean["label"] == mean["predicted"]
    values["ensemble"] = hits.groupby(mean["label"]).mean().mean()
    assert float(of_ensemble["balanced_accuracy"]) == pytest.approx(values["ensemble"])
    for row in [row for row in rows if row["name"] != "ensemble"]:
        (parent,) = (finished / "trials" / row["name"]).glob("*-versions")
        scored = out_of_fold(parent)
        assert scored.n_groups == 34 == len(scored.y_true), "every made lesion has one photograph"
        recalls = [(scored.y_pred[scored.y_true == k] == k).mean() for k in (0, 1)]
        values[row["name"]] = sum(recalls) / 2
        assert float(row["balanced_accuracy"]) == pytest.approx(values[row["name"]])
        assert int(row["n"]) == len(scored.y_true)
        assert float(row["balanced_accuracy_low"]) <= values[row["name"]] <= float(row["balanced_accuracy_high"])
    chosen = AUTO.read(finished)["chosen"]
    assert values[chosen["name"]] == max(values.values()) == pytest.approx(chosen["value"])
    assert chosen["optimism"] == pytest.approx(chosen["value"] - chosen["corrected"]["value"])
    assert chosen["n_recipes"] == 3 and chosen["corrected"]["n"] == int(rows[0]["n"])
    assert f"corrected for choosing among 3: {chosen['corrected']['value']:.3f}" in chosen_sentence(
        AUTO.read(finished)
    )
    assert [row["name"] for row in rows if row["is_chosen"] == "True"] == [chosen["name"]]


def test_the_page_has_every_choice_with_its_reason(finished: Path) -> None:
    page = (finished / "auto.html").read_text()
    assert "Research use only. Not a medical device." in page
    assert all(text in page for text in ("A reason", "evidence", "more time", "leaderboard.csv", "chosen"))


def test_the_model_is_the_mean_of_the_folds_and_predicts(finished: Path) -> None:
    chosen = finished / AUTO.read(finished)["chosen"]["folder"]
    n_nets = 4 if chosen.name == "ensemble" else 2
    assert len(read_card(chosen / "model")["members"]) == n_nets


def open_test_as_told(folder: Path, dataset: Path) -> pd.DataFrame:
    """Score the test images of a race's folder by the command of its NEXT_STEPS.txt; returns their rows."""
    (line,) = [line for line in (folder / "NEXT_STEPS.txt").read_text().splitlines() if "--open-test" in line]
    assert folder.name in line
    dk.evaluate(folder, open_test=dk.load_dataset(dataset))
    rows = pd.read_csv(folder / "predictions.csv")
    return rows[rows["split"] == "test"]


def test_the_test_images_of_a_race_are_scored_once_when_they_are_opened(
    finished: Path, binary: Path, tmp_path: Path
) -> None:
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    manifest = dk.load_dataset(binary).manifest
    test_ids = sorted(manifest.loc[manifest["given_split"] == "test", "image_id"])
    (first,) = (folder / "trials" / "first").glob("*-versions")
    for final in (first, folder / "ensemble"):
        assert sorted(open_test_as_told(final, binary)["image_id"]) == test_ids
        assert json.loads((final / "metrics.json").read_text())["splits"]["test"]["n"] == len(test_ids)
        with pytest.raises(UsageError, match="test images were scored on"):
            dk.evaluate(final, open_test=dk.load_dataset(binary))
    run_json = json.loads((first / "run.json").read_text())
    assert len(run_json["openings"]) == 1 and run_json["openings"][0]["n"] == len(test_ids)
    with pytest.raises(UsageError, match="for the ensemble of all"):
        dk.evaluate(next(first.glob("*-f0")), open_test=dk.load_dataset(binary))


def test_an_opening_outlives_the_race_that_goes_on(
    finished: Path, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Recipe
) -> None:
    plan_small_races(monkeypatch, tiny)
    shutil.copytree(finished, tmp_path / finished.name)
    (first,) = (tmp_path / finished.name / "trials" / "first").glob("*-versions")
    rows = open_test_as_told(first, binary)
    race(binary, tmp_path)
    again = pd.read_csv(first / "predictions.csv")
    assert len(json.loads((first / "run.json").read_text())["openings"]) == 1
    pd.testing.assert_frame_equal(again[again["split"] == "test"], rows)


def test_in_a_short_time_one_fold_is_trained_and_its_images_alone_are_compared(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Recipe
) -> None:
    plan_small_races(monkeypatch, tiny, n_trained_folds=1)
    folder = race(binary, tmp_path)
    runs = sorted(path.parent for path in (folder / "trials").glob("*/*/*/metrics.json"))
    assert [run.name[-3:] for run in runs] == ["-f0", "-f0"]
    validated = [sorted(pd.read_csv(run / "predictions.csv")["image_id"]) for run in runs]
    assert validated[0] == validated[1]
    rows = leaderboard(folder)
    assert {row["name"] for row in rows} == {"first", "second", "ensemble"}
    assert {int(row["n"]) for row in rows} == {len(validated[0])}
    (first,) = (folder / "trials" / "first").glob("*-versions")
    assert len(read_card(first / "model")["members"]) == 1
    assert all("LN009" not in (one / "lint.json").read_text() for one in (first, folder / "ensemble"))
    assert len(open_test_as_told(first, binary)) > 0
    assert len(open_test_as_told(folder / "ensemble", binary)) > 0


@pytest.mark.usefixtures("planned")
def test_a_race_stopped_three_times_goes_on_to_the_same_leaderboard(
    finished: Path, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, run_plan = [0], pipeline_run.run_plan

    def stopped(*args: Any) -> Path:
        calls[0] += 1
        if calls[0] in (1, 3, 6):  # before anything, within a recipe, and in the second one
            raise RunInterrupt("stopped")
        return run_plan(*args)

    monkeypatch.setattr(auto, "run_plan", stopped)
    for _ in range(3):
        with pytest.raises(RunInterrupt):
            race(binary, tmp_path)
    assert leaderboard(race(binary, tmp_path)) == leaderboard(finished)
    assert calls[0] == 4 + 3, "no fold was trained twice"


@pytest.mark.usefixtures("planned")
def test_when_the_time_is_over_the_first_recipe_is_the_model_and_the_second_is_said_to_be_late(
    binary: Path, tmp_path: Path
) -> None:
    folder = race(binary, tmp_path, seconds=0.01)
    assert {row["name"]: row["state"] for row in leaderboard(folder)} == {
        "first": "complete", "second": "out of time",
    }  # fmt: skip
    assert AUTO.read(folder)["chosen"]["name"] == "first"
    sentence = chosen_sentence(AUTO.read(folder))
    assert "the only recipe that was finished" in sentence and "corrected" not in sentence


def plan_race_with_classifiers(monkeypatch: pytest.MonkeyPatch, tiny: Recipe) -> None:
    """Make every race's plan one of a net and two classifiers, one of which is said to take eleven days."""

    def plan(dataset: dk.Dataset, options: AutoOptions, _machine: Any) -> Any:
        small = small_plan(dataset, tiny, seconds=options.seconds, n_trained_folds=1)
        first = small.candidates[0]
        kinds: tuple[tuple[ClassifierKind, float], ...] = (("svm", 1e6), ("logistic", 2.0))
        fitted = [
            Candidate(
                derive_recipe(first.recipe, short_form_assignments(first.recipe, ShortForms(classifier=kind))),
                None,
                seconds,
            )
            for kind, seconds in kinds
        ]
        return profile_dataset(dataset), replace(small, candidates=(first, *fitted))

    monkeypatch.setattr(auto, "plan_auto", plan)


def test_a_classifier_is_fitted_in_the_race_only_where_the_time_of_its_fit_is_left(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Recipe
) -> None:
    plan_race_with_classifiers(monkeypatch, tiny)
    names, run_plan = [], pipeline_run.run_plan

    def stop_before_the_fit(plan: RunPlan, machine: Machine) -> Path:
        names.append(plan.recipe.name)
        if len(names) == 2:
            raise RunInterrupt("stopped")
        return run_plan(plan, machine)

    monkeypatch.setattr(auto, "run_plan", stop_before_the_fit)
    with pytest.raises(RunInterrupt):
        race(binary, tmp_path)
    folder = race(binary, tmp_path)
    assert names == ["first", *["first-classifier_logistic"] * 2], "the net was not trained twice"
    assert {row["name"]: row["state"] for row in leaderboard(folder)} == {
        "first": "complete", "first-classifier_logistic": "complete", "ensemble": "complete",
        "first-classifier_svm": "out of time",
    }  # fmt: skip
    assert len(read_card(folder / "ensemble" / "model")["members"]) == 2
    assert len(open_test_as_told(folder / "ensemble", binary)) > 0


def test_a_fold_of_a_classifier_counts_with_the_slowest_that_is_finished(binary: Path, tiny: Recipe) -> None:
    plan = small_plan(dk.load_dataset(binary), tiny, seconds=60.0)
    recipe = derive_recipe(tiny, short_form_assignments(tiny, ShortForms(classifier="svm")))
    candidate, document = Candidate(recipe, None, 10.0), {"seconds_of_runs": {"a-versions/a-f0": 7.0}}
    race_so_far = SimpleNamespace(plan=plan, document=document)
    seconds = {
        name: auto._unbroken_seconds(
            race_so_far,  # type: ignore[arg-type]
            SimpleNamespace(folder=Path(f"trials/{name}-versions/{name}-f1")),  # type: ignore[arg-type]
            candidate,
        )
        for name in ("a", "b")
    }
    assert seconds == {"a": 7.0, "b": 10.0 / 2}


def test_a_fold_of_a_classifier_that_begins_in_time_has_all_the_time_of_the_race(
    binary: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(dk.load_dataset(binary), tiny, seconds=60.0)
    recipe = derive_recipe(tiny, short_form_assignments(tiny, ShortForms(classifier="svm")))
    deadlines: list[float] = []
    monkeypatch.setattr(auto, "run_plan", lambda fold, _: deadlines.append(fold.watch.deadline))
    monkeypatch.setattr(auto, "resuming", lambda *_: None)
    document: dict[str, Any] = {"seconds_of_runs": {}}
    race_so_far = SimpleNamespace(plan=plan, document=document, machine_for=str, save=lambda: None)
    unused: Any = None
    fold = RunPlan(recipe, unused, unused, unused, unused, 0, 0, Path("trials/svm-versions/svm-f0"))
    for left, state in ((4.0, auto.OUT_OF_TIME), (6.0, auto.COMPLETE)):  # 10 s are planned for two folds
        deadline = time.monotonic() + left
        assert auto._train_fold(race_so_far, fold, Candidate(recipe, None, 10.0), deadline) == state  # type: ignore[arg-type]
        assert deadlines == ([] if state == auto.OUT_OF_TIME else [deadline])


def test_fits_of_all_kinds_are_measured_in_the_classes_of_the_data_set() -> None:
    times = measure_fits(KIND_NAMES, 24, [300, 40, 1, 0], seed=0, limit=60.0)
    assert {fit.kind for fit in times} == set(KIND_NAMES)
    assert all(fit.seconds > 0 and 300 < fit.n_rows <= 403 for fit in times)
    assert [fit.kind for fit in measure_fits(KIND_NAMES, 8, [20, 20], seed=0, limit=0.0)] == ["logistic"]


def test_a_classifier_that_cannot_be_exported_is_left_out_of_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(_head: Any, _data: Any, settings: Any) -> None:
        if settings.spec.kind == "svm":
            raise DermkitError("the exported classifier differs from scikit-learn's")

    monkeypatch.setattr("dermkit.training.classifiers.fit_classifier", fit)
    assert [fit.kind for fit in measure_fits(KIND_NAMES, 8, [20, 20], seed=0, limit=60.0)] == [
        "logistic",
        "k_nearest",
    ]


def test_a_deadline_ends_a_training_within_an_epoch(binary: Path, tiny: Recipe, tmp_path: Path) -> None:
    from dermkit.pipeline.plan import EpochWatch, make_plans, prepare_machine
    from dermkit.pipeline.run import run_plan

    machine = prepare_machine(dk.RunSettings(out=tmp_path, device="cpu"), None)
    split = fold_split(profile_dataset(dk.load_dataset(binary)), 2, 0)
    (plan, _) = make_plans(replace(tiny, split=split), dk.load_dataset(binary), None, machine)
    watch = EpochWatch(lambda _row: False, deadline=time.monotonic())
    with pytest.raises(RunInterrupt):
        run_plan(replace(plan, watch=watch), machine)
    assert watch.is_ended and not (plan.folder / "log.csv").exists()


def test_speeds_are_measured(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_speed, "_SECONDS_PER_MEASUREMENT", 0.0)
    small = replace(STRONG_1H.model, backbone="dermkit/cnn-s1", backbone_args={}, weights="none")
    recipe = replace(STRONG_1H, model=small, image=replace(STRONG_1H.image, size=24))
    speed = measure_net(recipe, None, 2, torch.device("cpu"))
    assert min(speed.train, speed.validate, speed.forward) > 0 and speed.precision in ("float32", "bfloat16")
    assert measure_decoding(dk.load_dataset(binary), recipe.image) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("auto", "DATA", "--time", "soon"), "not a time"),
        (("auto", "DATA", "--epochs", "3"), "chooses this itself"),
        (("auto", "DATA", "--set", "seed=3"), "chooses this itself"),
        (("auto", "DATA", "--weights", "gone.safetensors"), "there is no such weights file"),
        (("quick", "DATA", "--time", "3m"), "is for `train auto`"),
        (("quick", "DATA", "--weights", "a.safetensors", "--weights", "b.safetensors"), "a recipe has one net"),
    ],
)
def test_what_does_not_go_together_is_refused(
    invoke: Invoke, binary: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, _, message = invoke("train", *[str(binary) if word == "DATA" else word for word in arguments])
    assert code in (UsageError.exit_code, 6) and words in message and "nothing was trained" in message.lower()


def test_plan_prints_what_it_would_train_and_why(
    invoke: Invoke, binary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure_speed, "_SECONDS_PER_MEASUREMENT", 0.0)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    code, out, _ = invoke("plan", binary, "--time", "10m")
    assert code == 0 and "finetuned-dermkit-cnn-s4" in out and "no pretrained weights are at hand" in out
    assert "would change with" in out and "left alone" in out
    code, out, _ = invoke("plan", binary, "--time", "10m", "--json")
    assert code == 0 and json.loads(out)["plan"]["candidates"][0]["recipe"]["model"]["weights"] == "none"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_race_killed_twenty_times_ends_with_the_leaderboard_of_one_that_was_not(
    binary: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments of the command line; the plan is that of the first start in both."""
    command = [sys.executable, "-m", "dermkit.cli", "train", "auto", str(binary), "--time", "20m"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait(timeout=900) == 0
    (whole,) = (tmp_path / "whole").glob("auto-*")
    seconds = time.monotonic() - begun
    killed = tmp_path / "killed" / whole.name
    killed.mkdir(parents=True)
    plan = AUTO.read(whole)
    AUTO.write(killed, {**plan, "states": {}, "seconds_of_runs": {}, "chosen": None})
    rng, n_kills = np.random.default_rng(0), 0
    while n_kills < 20:
        process = start(killed.parent)
        try:
            assert process.wait(timeout=float(rng.uniform(0.2, 1.0)) * seconds) == 0
            shutil.rmtree(killed)  # it ended before it was killed: another race, with the same plan
            killed.mkdir()
            AUTO.write(killed, {**plan, "states": {}, "seconds_of_runs": {}, "chosen": None})
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            n_kills += 1
    assert start(killed.parent).wait(timeout=900) == 0
    assert leaderboard(killed) == leaderboard(whole)
    assert AUTO.read(killed)["chosen"] == AUTO.read(whole)["chosen"]
