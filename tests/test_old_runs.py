"""Folders that the release before this one wrote (commit 6429fce) are read, evaluated and gone on with.

`data/run-6429fce.tar.xz` holds, made by that commit on synthetic images: two data sets (`data`, `other`), a run with
an operating point of its own (`tiny`), one with a sealed test split (`tiny-sealed`), one that was opened
(`tiny-opened`), two repeats (`tiny-repeats`), a training that was interrupted in its second epoch
(`tiny-unfinished`), an evaluation on
`other` (`external`) and one of a table (`foreign`). Charts, pages and pixels that can be made again are left out.

`data/dataset-6429fce.tar.xz` holds two data sets by that commit: `data` was audited, cleaned, split and checked against
`other`, and findings of all three were accepted.
"""

import json
import lzma
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from dermkit.audit.split_view import read_audited_split
from dermkit.audit.status import audit_state
from dermkit.metrics.decisions.policy import CALIBRATION_FOLDS
from dermkit.metrics.decisions.recalibration import fit_temperature_and_bias
from dermkit.recipes.schema import load_recipe
from dermkit.runs.folder import RunFolder, read_metrics
from dermkit.runs.migrations import run_1_to_2

ARCHIVES = Path(__file__).parent / "data"
METRICS_1 = ARCHIVES / "metrics-c459311.json.xz"


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(ARCHIVES / name) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace("@HERE@", str(folder)))
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a folder with what the earlier release wrote; a test may change it."""
    return unpack("run-6429fce.tar.xz", tmp_path / "old")


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    """Return a folder with data sets that the earlier release audited."""
    return unpack("dataset-6429fce.tar.xz", tmp_path / "audited")


def run_in(old: Path, name: str) -> Path:
    (run,) = (old / "runs" / name).iterdir()
    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def numbers_of(value: Any) -> Iterator[float | str]:
    """Yield every number and text of a JSON value, sorted by nothing but their place; keys left out."""
    if isinstance(value, Mapping):
        for field in value.values():
            yield from numbers_of(field)
    elif isinstance(value, list):
        for field in value:
            yield from numbers_of(field)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def figures(metrics: Mapping[str, Any]) -> list[Any]:
    return sorted(numbers_of({key: value for key, value in metrics.items() if key != "format"}))


def texts_of(value: Any) -> Any:
    """Return a JSON value with 0 in place of every number."""
    if isinstance(value, Mapping):
        return {key: texts_of(field) for key, field in value.items()}
    if isinstance(value, list):
        return [texts_of(field) for field in value]
    return 0 if isinstance(value, float) or type(value) is int else value


RUNS = ("tiny", "tiny-sealed", "tiny-opened")


@pytest.mark.parametrize("name", RUNS)
def test_a_report_is_written_from_an_old_run(old: Path, name: str) -> None:
    page = dk.report(run_in(old, name)).read_text()
    assert "Balanced accuracy" in page
    assert ("data-seal=" in page) == (name != "tiny")


@pytest.mark.parametrize("name", ["external", "foreign"])
def test_a_report_is_written_from_an_old_evaluation(old: Path, name: str) -> None:
    assert "Balanced accuracy" in dk.report(old / name).read_text()


def test_a_report_is_written_from_old_repeats(old: Path) -> None:
    assert "2 runs" in dk.report(run_in(old, "tiny-repeats")).read_text()


LOSS_OF_SEARCH_ENDED_EARLY, LOSS_OF_CALIBRATION = 0.7896573460284377, 0.9028593098189762
"""Of `tiny`, calibrations with a bias, out of fold: the release before ended one search above the least loss."""


def as_today(before: list[Any]) -> list[Any]:
    return sorted(LOSS_OF_CALIBRATION if value == LOSS_OF_SEARCH_ENDED_EARLY else value for value in before)


def test_the_fit_of_a_calibration_does_not_hang_on_the_last_bit_of_a_probability(old: Path) -> None:
    run = RunFolder(run_in(old, "tiny"))
    rows = run.predictions[run.predictions["split"] == "validation"]
    y = np.array([run.class_names.index(label) for label in rows["label"]])
    p = rows[[f"p_{name}" for name in run.class_names]].to_numpy()
    group = np.unique(rows["image_id"].map(run.groups() or {}), return_inverse=True)[1]
    is_fitted = np.random.default_rng(0).permutation(group.max() + 1)[group] % CALIBRATION_FOLDS != 3
    rng, fits = np.random.default_rng(0), []
    for _ in range(20):
        changed = p[is_fitted] * (1 + rng.normal(0, 1e-15, p[is_fitted].shape))
        fits.append(fit_temperature_and_bias(y[is_fitted], changed))
    assert [fit.temperature for fit in fits] == pytest.approx([0.05] * 20)
    assert [fit.bias[1] for fit in fits] == pytest.approx([5.2773] * 20, abs=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_evaluation_gives_an_old_run_the_same_figures(old: Path, name: str) -> None:
    run = run_in(old, name)
    before = as_today(figures(read(run / "metrics.json")))
    options = dk.EvaluationOptions(
        official=name == "tiny",
        targets=(("sensitivity", 0.8),) if name == "tiny" else (),
        prevalences=(0.05,) if name == "tiny" else (),
    )
    dk.evaluate(run, options=options)
    # Processors differ in the last digits.
    assert figures(read(run / "metrics.json")) == pytest.approx(before, rel=1e-9, abs=1e-12)


def test_an_old_table_of_the_decision_curve_is_drawn(old: Path) -> None:
    run = run_in(old, "tiny")
    dk.evaluate(run)
    path = run / "figures" / "net_benefit_test.csv"
    pd.read_csv(path).rename(columns={"as_trained": "model"}).to_csv(path, index=False)
    path.with_suffix(".png").unlink()
    dk.report(run)
    assert path.with_suffix(".png").is_file()


def test_an_old_metrics_json_is_read_as_a_new_one(old: Path) -> None:
    run = run_in(old, "tiny")
    migrated = read_metrics(run)
    dk.evaluate(
        run, options=dk.EvaluationOptions(official=True, targets=(("sensitivity", 0.8),), prevalences=(0.05,))
    )
    now = read_metrics(run)
    assert texts_of(now) == texts_of(migrated)
    assert figures(now) == pytest.approx(as_today(figures(migrated)), rel=1e-9, abs=1e-12)


def test_the_model_of_an_old_run_is_not_rewritten_where_its_policy_stays(old: Path) -> None:
    model = run_in(old, "tiny") / "model"
    files, card = {path.name: path.read_bytes() for path in model.iterdir()}, read(model / "model.json")
    dk.evaluate(model.parent)
    if read(model / "model.json") != card:
        # Another last digit or search makes another policy than the archive's; of that the same must hold.
        now = figures(read(model / "model.json")["calibration"])
        assert now != figures(card["calibration"])
        assert now == pytest.approx(as_today(figures(card["calibration"])), rel=1e-9, abs=1e-12)
        files = {path.name: path.read_bytes() for path in model.iterdir()}
        dk.evaluate(model.parent)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == files


def test_old_runs_are_compared(old: Path) -> None:
    outcome = dk.compare([run_in(old, "tiny"), run_in(old, "tiny-repeats")], out=old / "comparison")
    assert outcome.page.is_file()
    assert outcome.same_images == {"validation": True, "test": True}


def test_an_old_model_predicts_as_before(old: Path) -> None:
    out = old / "again"
    dk.predict(run_in(old, "tiny") / "model", [str(old / "other-images")], out=out)
    before, after = (pd.read_csv(path / "predictions.csv") for path in (old / "predictions", out))
    assert after["predicted"].tolist() == before["predicted"].tolist()
    assert after["p_malignant"].to_numpy() == pytest.approx(before["p_malignant"].to_numpy(), abs=1e-6)


def test_an_old_model_is_tested_on_other_data(old: Path) -> None:
    options = dk.EvaluationOptions(targets=(("sensitivity", 0.8),))
    dataset = dk.load_dataset(old / "other")
    dk.evaluate(run_in(old, "tiny"), dataset=dataset, out=old / "external", options=options)
    (split_metrics,) = read_metrics(old / "external")["splits"].values()
    assert split_metrics["n"] == 16


def test_the_sealed_test_split_of_an_old_run_is_opened(old: Path) -> None:
    run, seal = run_in(old, "tiny-sealed"), old / "data" / "splits" / "sealed.seal.json"
    before = read(seal)["openings"]
    dk.evaluate(run, open_test=dk.load_dataset(old / "data"))
    assert set(pd.read_csv(run / "predictions.csv")["split"]) == {"validation", "test"}
    after = read(seal)["openings"]
    assert len(after) == len(before) + 1
    assert (after[-1]["run"], after[-1]["finished"]) == (run.name, True)
    assert [opening["date"] for opening in after[:-1]] == [opening["date"] for opening in before]


def resume(old: Path, progress: dk.Progress) -> Path:
    """Continue the interrupted training."""
    run = run_in(old, "tiny-unfinished")
    settings = dk.RunSettings(out=old / "runs", device="cpu", resume=True)
    dataset = dk.load_dataset(old / "data")
    assert dk.train(
        load_recipe(run / "recipe.json"), dataset, settings=settings, split="open", progress=progress
    ) == run  # fmt: skip
    return run


def test_an_interrupted_old_training_is_resumed_inside_its_epoch(old: Path) -> None:
    """The checkpoint `inside.safetensors` holds the first of three batches of the second epoch."""
    batches: list[tuple[int, int]] = []

    def note(what: str, done: int, total: int) -> None:
        if what == "train":
            batches.append((done, total))

    run = resume(old, dk.Progress(step=note))
    assert batches[0] == (2, 3)
    log, uninterrupted = (pd.read_csv(path / "log.csv") for path in (run, run_in(old, "tiny")))
    assert log["val_loss"].tolist() == pytest.approx(uninterrupted["val_loss"].tolist(), rel=1e-5)


def test_without_the_old_mid_epoch_checkpoint_the_epoch_begins_again(old: Path) -> None:
    (run_in(old, "tiny-unfinished") / "checkpoints" / "inside.safetensors").unlink()
    batches: list[int] = []
    resume(old, dk.Progress(step=lambda what, done, _total: batches.append(done) if what == "train" else None))
    assert batches[0] == 1


def test_how_many_images_memory_held_in_an_old_training_is_kept(old: Path) -> None:
    """`passes.json`, as commit 6429fce wrote it once memory had run out."""
    checkpoints = run_in(old, "tiny-unfinished") / "checkpoints"
    (checkpoints / "passes.json").write_text('{\n "format": 1,\n "micro": 4\n}\n')
    (checkpoints / "inside.safetensors").unlink()  # memory ran out before it
    run = resume(old, dk.Progress())
    assert any("Memory held 4 images at a time" in warning for warning in read(run / "run.json")["warnings"])


def test_metrics_of_the_first_format_are_read_as_they_are(old: Path) -> None:
    """Commit c459311, the last of that format, wrote them from the predictions of `tiny`."""
    run = run_in(old, "tiny")
    with lzma.open(METRICS_1, "rt") as stream:
        first_format = json.load(stream)
    assert first_format.pop("format") == 1
    (run / "metrics.json").write_text(json.dumps({"format": 1, **first_format}))
    assert read_metrics(run) == first_format
    assert "npv" not in read_metrics(run)["splits"]["test"]["metrics"]
    assert "Balanced accuracy" in dk.report(run).read_text()
    dk.evaluate(run)
    renewed = read_metrics(run)["splits"]["test"]["metrics"]
    assert "npv" in renewed
    for name, metric in first_format["splits"]["test"]["metrics"].items():
        assert renewed[name]["value"] == (metric["value"] and pytest.approx(metric["value"], rel=1e-12))


def test_an_audit_of_an_old_data_set_honours_what_was_accepted(audited: Path) -> None:
    outcome = dk.audit_dataset(dk.load_dataset(audited / "data"), workers=1)
    outcome.raise_for_errors()
    before = read(audited / "data" / "dataset.json")
    assert {item.card.code for item in outcome.findings if item.acceptance} == set(before["accepted"])
    assert "Cleaned on" in outcome.page.read_text()
    assert before["format"] == 1, "nothing new was accepted, so nothing was written"


def test_a_further_acceptance_brings_an_old_data_set_to_the_new_format(audited: Path) -> None:
    folder = audited / "data"
    before = read(folder / "dataset.json")
    dk.audit_dataset(dk.load_dataset(folder), accept=["DA032"], workers=1)
    after = read(folder / "dataset.json")
    assert after["format"] == 2
    assert after["cleanings"] == before["cleaned"]
    assert after["accepted_external"] == before["accepted_against"]
    assert set(after["accepted"]) == {*before["accepted"], "DA032"}
    assert {record["split_sha256"] for record in after["accepted"].values()} == {
        record["division"] for record in before["accepted"].values()
    }
    dk.audit_dataset(dk.load_dataset(folder), workers=1).raise_for_errors()


def test_an_acceptance_of_an_old_data_set_is_not_valid_for_another_split(audited: Path) -> None:
    folder = audited / "data"
    split = folder / "splits" / "other.csv"
    frame = pd.read_csv(folder / "manifest.csv")
    sides = ["test" if side == "train" else "train" for side in frame["given_split"]]
    pd.DataFrame({"image_id": frame["image_id"], "split": sides}).to_csv(split, index=False)
    outcome = dk.audit_dataset(dk.load_dataset(folder), split="other", workers=1)
    assert {item.card.code for item in outcome.open_errors} == {"DA015", "DA020", "DA021"}
    assert all("the published split" in item.invalid_reason for item in outcome.open_errors)


def test_an_external_check_of_old_data_sets_honours_what_was_accepted(audited: Path) -> None:
    outcome = dk.check_external(dk.load_dataset(audited / "data"), dk.load_dataset(audited / "other"), workers=1)
    outcome.raise_for_errors()
    assert [item.acceptance is not None for item in outcome.findings if item.card.code == "DA080"] == [True]


def test_an_old_audit_is_told_in_a_run_and_an_old_data_set_is_trained_on(audited: Path, old: Path) -> None:
    dataset = dk.load_dataset(audited / "data")
    assert audit_state(dataset, read_audited_split(dataset, None).frame)["state"] == "done"
    recipe = load_recipe(run_in(old, "tiny") / "recipe.json")
    run = dk.train(recipe, dataset, settings=dk.RunSettings(out=audited / "runs", device="cpu"), split="holdout")
    run_json = read(run / "run.json")["dataset"]
    assert run_json["audit"]["reason"] == "split", "the given split was audited, not this one"
    assert run_json["notes"]["cleanings"][0]["dropped"] == 5


def test_the_notes_of_an_old_run_have_the_keys_of_today() -> None:
    notes = {"cleaned": [{"dropped": 2}], "accepted": {"DA010": {"n": 1, "division": "d"}}, "defects": ["x"]}
    run = run_1_to_2({"format": 1, "dataset": {"name": "d", "notes": notes}})
    assert run["dataset"]["notes"] == {
        "cleanings": [{"dropped": 2}], "accepted": {"DA010": {"n": 1, "split_sha256": "d"}}, "defects": ["x"]
    }  # fmt: skip
