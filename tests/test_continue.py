"""Going on from a shorter run: the bits of a run from the beginning where they exist, and said where they do not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

import dermkit as dk
from conftest import Invoke
from dermkit.errors import UsageError
from dermkit.pipeline.continuation import changed_fields, read_earlier_run, why_not_continued, with_continuation
from dermkit.pipeline.plan import Machine, RunPlan, make_plans, prepare_machine
from dermkit.progress import Progress
from dermkit.recipes.experiments import full_phase, head_phase
from dermkit.recipes.schema import Recipe, save_recipe
from dermkit.training.checkpoint import LAST_CHECKPOINT, TrainingProgress
from test_train import equal


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Return a folder of runs with one of two epochs."""
    out = tmp_path / "runs"
    shutil.copytree(trained, out / trained.parent.name / trained.name)
    return out


@pytest.fixture
def long(tiny: Recipe) -> Recipe:
    return replace(tiny, phases=(replace(tiny.phases[0], epochs=3),))


def train(recipe: Recipe, data: Path, out: Path, source: Path | None = None, *, resume: bool = False) -> Path:
    settings = dk.RunSettings(out=out, device="cpu", resume=resume)
    return dk.train(recipe, dk.load_dataset(data), settings=settings, continue_from=source)


def plan_machine(out: Path) -> Machine:
    return prepare_machine(dk.RunSettings(out=out, device="cpu"), Progress())


def plan_of(recipe: Recipe, data: Path, out: Path) -> RunPlan:
    return make_plans(recipe, dk.load_dataset(data), None, plan_machine(out))[0]


def why_not(recipe: Recipe, data: Path, run: Path) -> str:
    earlier = read_earlier_run(run)
    assert earlier is not None
    return why_not_continued(earlier, plan_of(recipe, data, run.parents[1]))


def only_run(out: Path) -> Path:
    return next(path.parent for path in out.glob("*/*/recipe.json"))


def test_resume_names_the_shorter_run_and_the_command_that_goes_on(
    runs: Path, long: Recipe, binary: Path, tmp_path: Path, invoke: Invoke
) -> None:
    save_recipe(long, tmp_path / "r.json")
    old = only_run(runs)
    code, _, said = invoke("train", tmp_path / "r.json", binary, "--out", runs, "--resume")
    assert code == 2
    said = " ".join(said.split())
    assert f"{old} (finished, 2 epochs) differs from it only in phases.0.epochs (2 -> 3)" in said
    assert f"--continue {old}" in said and "to train from the beginning:" in said
    assert sorted(runs.glob("*/*")) == [old]  # nothing was begun


def test_what_goes_on_ends_with_the_bits_of_a_run_from_the_beginning(
    runs: Path, long: Recipe, binary: Path, tmp_path: Path
) -> None:
    old = only_run(runs)
    continued = train(long, binary, runs, old)
    fresh = train(long, binary, tmp_path / "fresh")
    assert continued.name == fresh.name != old.name
    models = [load_file(next((run / "model").glob("*.safetensors"))) for run in (continued, fresh)]
    assert equal(models[0], models[1])
    logs = [pd.read_csv(run / "log.csv")[["epoch", "lr", "train_loss", "val_loss"]] for run in (continued, fresh)]
    assert len(logs[0]) == 3
    pd.testing.assert_frame_equal(logs[0], logs[1], check_exact=True)
    assert (continued / "predictions.csv").read_bytes() == (fresh / "predictions.csv").read_bytes()
    record = json.loads((continued / "run.json").read_text())["continued_from"]
    assert (record["run"], record["epochs"], record["is_exact"], record["note"]) == (old.name, 2, True, "")
    methods = (continued / "METHODS.md").read_text()
    assert f"It started from the weights of run {old.name} after 2 epochs; that run started from random" in methods
    assert "weights at the start" not in methods
    # Resumed, it is the run that is there.
    assert train(long, binary, runs, resume=True) == continued


def test_a_cosine_schedule_is_another_run_and_says_so(
    runs: Path, tiny: Recipe, long: Recipe, binary: Path
) -> None:
    cosine, longer = (replace(recipe, optim=replace(recipe.optim, schedule="cosine")) for recipe in (tiny, long))
    old = train(cosine, binary, runs)
    continued = train(longer, binary, runs, old)
    assert continued.name != plan_of(longer, binary, runs).folder.name
    run_json = json.loads((continued / "run.json").read_text())
    assert run_json["continued_from"]["is_exact"] is False
    note = run_json["continued_from"]["note"]
    assert "a cosine of 2 epochs and the others one of 3" in note
    assert note in run_json["warnings"]
    assert "not what the recipe gives from the start" in (continued / "report.html").read_text()
    # lr(epoch) = lr/2 (1 + cos(pi epoch / epochs)): of 2 epochs in the first two, of 3 in the last.
    rates = pd.read_csv(continued / "log.csv")["lr"].tolist()
    assert rates == pytest.approx([1e-2, 5e-3, 2.5e-3])
    # And on from that one again: its hash is found with what it was continued from.
    assert why_not(replace(longer, phases=(replace(longer.phases[0], epochs=4),)), binary, continued) == ""


def test_what_cannot_change_on_the_way_is_named_and_trained_anew(
    runs: Path, tiny: Recipe, long: Recipe, binary: Path
) -> None:
    old, other = only_run(runs), replace(long, optim=replace(long.optim, batch_size=16))
    with pytest.raises(UsageError, match=r"optim\.batch_size \(8 -> 16\) cannot change on the way"):
        train(other, binary, runs, old)
    said: list[str] = []
    settings = dk.RunSettings(out=runs, device="cpu", resume=True)
    short = replace(other, phases=(replace(other.phases[0], epochs=1),))
    dk.train(short, dk.load_dataset(binary), settings=settings, progress=Progress(say=said.append))
    assert "nothing to resume: no run of this recipe and data" in said[0]
    assert str(old) in said[1] and "optim.batch_size (8 -> 16)" in said[1]


def test_the_reasons_against_going_on(runs: Path, tiny: Recipe, long: Recipe, binary: Path) -> None:
    old, phase = only_run(runs), long.phases[0]
    assert why_not(long, binary, old) == ""
    assert why_not(replace(long, name="other", about="x", repeats=3), binary, old) == ""
    assert why_not(replace(long, phases=(*tiny.phases, full_phase(2, lr=1e-4))), binary, old) == ""
    assert "this recipe 1" in why_not(replace(long, phases=(replace(phase, epochs=1),)), binary, old)
    assert "phases.0.head_lr" in why_not(replace(long, phases=(replace(phase, head_lr=1e-3),)), binary, old)
    renamed = old.rename(old.with_name("000000000000-s0"))
    assert "its split, classes or weights were others, or its folder was renamed" in why_not(long, binary, renamed)
    (renamed / "checkpoints" / LAST_CHECKPOINT).unlink()
    assert why_not(long, binary, renamed) == "it has no checkpoint"


@pytest.mark.parametrize(("field", "value"), [("seed", 1), ("fold", 0)])
def test_a_run_json_with_another_seed_or_fold_is_nothing_to_go_on_from(
    runs: Path, long: Recipe, binary: Path, field: str, value: int
) -> None:
    old = only_run(runs)  # of seed 0, without folds: its weights learned from other images than those of fold 0
    run_json = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({**run_json, field: value}))
    earlier, plan = read_earlier_run(old), plan_of(long, binary, runs)
    seed, fold = (value, -1) if field == "seed" else (0, value)
    name = f"{plan.folder.name.split('-')[0]}-s{seed}{'-f0' if fold == 0 else ''}"
    plan = replace(plan, seed=seed, fold=fold, folder=plan.folder.with_name(name))
    assert earlier is not None and earlier.is_version_of(plan)
    assert "its run.json changed" in why_not_continued(earlier, plan)


def test_another_cosine_after_other_epochs_is_another_run(
    runs: Path, tiny: Recipe, long: Recipe, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosine, longer = (replace(recipe, optim=replace(recipe.optim, schedule="cosine")) for recipe in (tiny, long))
    old, plan = only_run(runs), plan_of(longer, binary, runs)
    earlier_plan = plan_of(cosine, binary, runs)
    save_recipe(cosine, old / "recipe.json")
    old = old.rename(old.with_name(earlier_plan.folder.name))
    plans = []
    for epochs in (1, 2, 2):
        rows = [{"epoch": float(n + 1), "phase": 0.0, "val_loss": 1.0} for n in range(epochs)]
        progress = TrainingProgress(phase_epoch=epochs, log_rows=rows)
        monkeypatch.setattr("dermkit.training.checkpoint.read_progress", lambda _path, value=progress: value)
        plans += with_continuation([plan], old)
    # Their learning rates differ, so a folder of one, with what its run.json says, is never that of the other.
    assert plans[0].folder != plans[1].folder == plans[2].folder
    assert [one.continued.n_epochs for one in plans if one.continued] == [1, 2, 2]


def test_a_patience_that_would_have_stopped_earlier(
    runs: Path, long: Recipe, binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [0.9, 0.8, 0.85, 0.84, 0.7, 0.75]  # two epochs without improvement after the second
    rows = [{"epoch": float(n + 1), "phase": 0.0, "val_loss": loss} for n, loss in enumerate(losses)]
    progress = TrainingProgress(phase_epoch=6, log_rows=rows)
    monkeypatch.setattr("dermkit.training.checkpoint.read_progress", lambda _path: progress)
    phases = [replace(long.phases[0], epochs=9, patience=patience) for patience in (0, 3, 2)]
    reasons = [why_not(replace(long, phases=(phase,)), binary, only_run(runs)) for phase in phases]
    assert reasons == ["", "", "with a patience of 2 it would have stopped after epoch 4"]


def test_more_versions_go_on_from_the_one_that_is_there(
    runs: Path, tiny: Recipe, binary: Path, tmp_path: Path
) -> None:
    plans = make_plans(replace(tiny, repeats=2), dk.load_dataset(binary), None, plan_machine(runs))
    assert [plan.continued is not None for plan in with_continuation(plans, only_run(runs))] == [True, False]
    with pytest.raises(UsageError, match="is no run of seed 0"):
        with_continuation(plans, tmp_path)


def test_changed_fields_are_named_as_in_the_recipe(tiny: Recipe) -> None:
    other = replace(tiny, about="x", seed=7, phases=(head_phase(1, lr=0.01), *tiny.phases))
    assert {name: text for name, text in changed_fields(tiny, other).items() if "epochs" in name} == {
        "phases.0.epochs": "2 -> 1",
        "phases.1.epochs": "none -> 2",
    }
    assert changed_fields(tiny, replace(tiny, name="b", about="x", seed=3, repeats=2)) == {}
