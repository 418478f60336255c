"""What commands say on a terminal: the result in few lines, no long silence, and errors before torch is loaded."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.cli import line_progress as line_progress_module
from dermkit.cli.line_progress import LineProgress, duration_text, line_progress
from dermkit.errors import UntrustedError, UsageError
from dermkit.models.requirements import check_requirements, scratch_recipe
from dermkit.pipeline.plan import Machine, RunSettings, make_plans
from dermkit.pipeline.search import search
from dermkit.pipeline.train import train
from dermkit.recipes.search_space import Range, SearchSpace
from dermkit.recipes.training_specs import DistilSpec
from dermkit.reporting.terminal import WIDTH, figure_lines, metric_lines, result_lines, wrapped
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import METRICS, SUMMARY, VERDICT
from dermkit.runs.verdict import judge_run
from test_evaluation_options import make_frame, make_run

# The result -------------------------------------------------------------------------------------------------------


def test_evaluate_ends_with_the_result_and_the_path_once(tmp_path: Path, invoke: Invoke) -> None:
    run = make_run(tmp_path / "run", make_frame(400))
    code, out, err = invoke("evaluate", run)
    assert code == 0, err
    lines = out.splitlines()
    estimate = json.loads((run / "metrics.json").read_text())["splits"]["test"]["metrics"]["balanced_accuracy"]
    low, high = estimate["ci95"]
    assert lines[0] == "test: 200 images"
    assert lines[1].split("  ", 2)[1:] == [
        "balanced accuracy",
        f"     {100 * estimate['value']:.1f} % (95 % interval {100 * low:.1f} % to {100 * high:.1f} %, n = 200)",
    ]
    assert any(line.startswith("  sensitivity, malignant  ") for line in lines)
    saved, rule_text = VERDICT.read(run), judge_run(RunFolder(run)).text
    is_reason = rule_text in [doubt["sentence"] for doubt in saved["doubts"]]
    assert (f"simple rules: {rule_text}" in " ".join(out.split())) != is_reason, "a sentence is said once"
    assert f"verdict: {saved['verdict']}" in lines, "the terminal, the page and the file say the same word"
    assert all(doubt["sentence"] in " ".join(out.split()) for doubt in saved["doubts"][:1])
    assert lines[-1] == str(run / "report.html")
    assert (out + err).count("report.html") == 1
    assert max(map(len, lines[:-1])) <= WIDTH


def test_grouped_images_are_in_groups_whatever_groups_them(tmp_path: Path) -> None:
    """Copies of a picture are a group without any lesion or patient id."""
    run = make_run(tmp_path / "run", make_frame(400))
    dk.evaluate(run)
    metrics = METRICS.read(run)
    metrics["splits"]["test"]["n_groups"] = 199
    METRICS.write(run, metrics)
    assert result_lines(run)[0] == "test: 200 images in 199 groups (lesion, patient, copies)"


def test_what_matters_is_warned_of_and_a_broken_guarantee_comes_first(tmp_path: Path) -> None:
    frame = make_frame(400)
    rows = (frame["split"] == "test") & (frame["label"] == "malignant")
    frame.loc[rows, "p_malignant"] *= 0.5
    frame["p_benign"] = 1 - frame["p_malignant"]
    frame["predicted"] = [("benign", "malignant")[p > 0.5] for p in frame["p_malignant"]]
    run = make_run(tmp_path / "run", frame)
    dk.evaluate(run)
    metrics = METRICS.read(run)
    METRICS.write(run, {**metrics, "leaks": {"n": 200, "total": 12, "identical_pixels": 12, "same_group": 0}})
    lines = result_lines(run)
    assert lines[0].startswith("Broken guarantee: a sensitivity of 95 % was guaranteed on validation images")
    assert any(line.startswith("warning: The split leaks") for line in lines)
    assert max(map(len, lines)) <= WIDTH


def test_repeats_end_with_their_mean_and_the_final_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "parent" / "one", make_frame(400))
    dk.evaluate(run)
    spread = {"mean": 0.8, "std": 0.02, "min": 0.78, "max": 0.83, "n_runs": 3}
    SUMMARY.write(
        tmp_path / "parent",
        {"runs": [{}, {}, {}], "final": {"folder": "one"}, "metrics": {"test": {"accuracy": spread}}},
    )
    lines = result_lines(tmp_path / "parent")
    assert lines[:2] == [
        "test: mean of 3 runs",
        "  accuracy                80.0 % (SD 2.0 %, 78.0 % to 83.0 %, 3 runs)",
    ]
    assert lines[2:4] == ["final model: one", "test: 200 images"]


def test_tables_and_sentences_fit_the_width() -> None:
    names = ["a", "s2-resnet50-mobilenetv2/0123456789ab-s0", "x" * 90]
    text = "0.466 [0.379, 0.556] (unreliable), n 118; mean over 7 of 9 classes, without: squamous cell carcinoma"
    table = pd.DataFrame({"balanced_accuracy": [text] * 3, "accuracy": ["0.5"] * 3}, index=names)
    lines = metric_lines(table)
    assert max(map(len, lines)) <= WIDTH
    assert (lines[0], lines.count("accuracy")) == ("balanced accuracy", 1)
    assert " ".join(" ".join(lines).split()).count(text.split(";")[0]) == 3
    assert figure_lines([("a", "1"), ("bcd", "2")]) == ["  a    1", "  bcd  2"]
    path = "/" + "long/" * 40
    assert path in wrapped(f"see {path}"), "a path is not broken"


def test_a_comparison_fits_and_ends_with_its_path(tmp_path: Path, invoke: Invoke) -> None:
    for name, seed in (("first-of-two", 0), ("second-of-two", 0)):
        frame = make_frame(300, splits=("test",), seed=seed)
        frame = frame.rename(columns={"image_id": "image"})[["image", "label", "p_benign", "p_malignant"]]
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    code, out, err = invoke("compare", *sorted(tmp_path.glob("*.csv")), "--out", tmp_path / "comparison")
    assert code == 0, err
    *lines, last = out.splitlines()
    assert last == str(tmp_path / "comparison" / "comparison.html")
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(out.split()).count(": Better than always answering “") == 2
    assert "The verdict on each run by itself" in (tmp_path / "comparison" / "comparison.html").read_text()


# No long silence --------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


def test_a_silent_job_says_what_is_done_and_the_time_left(clock: Clock) -> None:
    said: list[str] = []
    lines = LineProgress(said.append, clock)
    lines.step("epochs", 1, 5)
    lines.step("train", 0, 100)
    clock.now = 10
    lines.step("train", 20, 100)
    lines.break_silence()
    assert said == [], "not yet"
    clock.now = 15
    lines.break_silence()
    assert said == ["epochs: 1 of 5; train: 20 of 100, about 60 s left"]
    clock.now = 25
    lines.break_silence()
    assert len(said) == 1
    lines.step("train", 100, 100)
    clock.now = 300
    lines.step("epochs", 2, 5)
    lines.break_silence()
    assert said[-1] == "epochs: 2 of 5, about 15 min left"
    lines.step("epochs", 5, 5)
    lines.say("evaluating")
    clock.now = 340
    lines.break_silence()
    assert said[-1] == "still working, for 6 min; last: evaluating"


def test_a_step_that_begins_anew_is_counted_anew(clock: Clock) -> None:
    said: list[str] = []
    lines = LineProgress(said.append, clock)
    lines.step("train", 90, 100)
    clock.now = 100
    lines.step("train", 0, 100)
    clock.now = 110
    lines.step("train", 50, 100)
    lines.break_silence()
    assert said == ["train: 50 of 100, about 10 s left"]


def test_lines_come_while_the_job_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_progress_module, "SILENT_SECONDS", 0.02)
    monkeypatch.setattr(line_progress_module, "_CHECK_SECONDS", 0.01)
    said: list[str] = []
    with line_progress(said.append) as progress:
        progress.step("scoring", 10, 1000)
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said[0] == "scoring: 10 of 1,000"
    n_lines = len(said)
    time.sleep(0.05)
    assert len(said) == n_lines, "the job is over"


def test_only_the_first_of_several_processes_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_progress_module, "is_first_rank", lambda: False)
    said: list[str] = []
    with line_progress(said.append) as progress:
        progress.say("epoch 1")
    assert said == []


@pytest.mark.parametrize(("seconds", "text"), [(4.2, "4 s"), (99, "99 s"), (130, "2 min"), (7500, "2 h 5 min")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


# Errors before torch ----------------------------------------------------------------------------------------------


def _with_backbone(name: str) -> dk.Recipe:
    recipe = dk.find_recipe("s2-resnet50")
    return replace(recipe, model=replace(recipe.model, backbone=name))


def test_an_unknown_backbone_and_absent_weights_are_known_before_torch(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("torch is loaded here")

    for module in ("train", "tune"):
        monkeypatch.setattr(f"dermkit.pipeline.{module}.prepare_machine", never)
    dataset = dk.load_dataset(binary)
    with pytest.raises(UsageError, match="resnet5O: no such backbone; did you mean `resnet50` or `resnet"):
        train(_with_backbone("resnet5O"), dataset)
    with pytest.raises(UsageError, match="convnext_tinny: no such backbone; did you mean `convnext_tiny`"):
        dk.tune([_with_backbone("convnext_tinny")], dataset, name="grid")
    absent = dk.RunSettings(weights=tmp_path / "absent.safetensors")
    with pytest.raises(UntrustedError, match=r"absent\.safetensors: there is no such weights file") as caught:
        train(dk.find_recipe("s2-resnet50"), dataset, settings=absent)
    assert "`dermkit train s2-resnet50-scratch DATASET`" in caught.value.remedy
    assert "s2-resnet50-scratch" in dk.RECIPES


def _without_effect() -> list[tuple[str, dk.Recipe]]:
    teacher = DistilSpec(weight=0.5, temperature=2.0)
    return [("distil", replace(dk.find_recipe("s2-resnet50"), distil=teacher))]


@pytest.mark.parametrize(("field", "recipe"), _without_effect())
def test_what_training_would_leave_out_is_refused_before_torch(
    field: str, recipe: dk.Recipe, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("torch is loaded here")

    for module in ("train", "tune", "search"):
        monkeypatch.setattr(f"dermkit.pipeline.{module}.prepare_machine", never)
    dataset, refused = dk.load_dataset(binary), f"s2-resnet50: has `{field}` and no teacher"
    with pytest.raises(UsageError, match=refused) as caught:
        train(recipe, dataset)
    assert caught.value.outcome == "nothing was trained" and "null" in caught.value.remedy
    with pytest.raises(UsageError, match=refused):
        dk.tune([dk.find_recipe("s2-resnet50"), recipe], dataset, name="grid")
    with pytest.raises(UsageError, match=refused):
        search(recipe, SearchSpace({"optim.weight_decay": Range(0.0, 0.1)}), dataset)


@pytest.mark.parametrize(("field", "recipe"), _without_effect())
def test_a_trial_cannot_bring_in_what_training_would_leave_out(
    field: str, recipe: dk.Recipe, binary: Path
) -> None:
    machine = cast("Machine", SimpleNamespace(settings=RunSettings()))  # refused before it is asked for more
    with pytest.raises(UsageError, match=f"{field}. and no teacher"):
        make_plans(recipe, dk.load_dataset(binary), None, machine)


def test_recipes_that_need_no_weights_are_named() -> None:
    for recipe in dk.RECIPES.values():
        check_requirements(recipe, None)
    assert scratch_recipe("s0-resnet50-mobilenetv2", "mobilenetv2_100") == "s0-resnet50-scratch"
    assert scratch_recipe("mine", "resnet50").endswith("-scratch")
    assert scratch_recipe("quick", "mobilenetv3_large_100") == "scratch"  # a recipe for anybody's images, too
    assert scratch_recipe("mine", "vit_tiny_patch16_224") == "scratch"
