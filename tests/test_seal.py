"""Sealed test sides: no run scores them, every opening is on disk before the first score, and nobody gets around."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from conftest import Cli, Invoke
from dermkit.comparison.compare import compare_runs
from dermkit.data.seal import (
    SEAL_FORMAT,
    Opening,
    Seal,
    find_partial_overlaps,
    log_opening,
    read_seal,
    read_seals,
    seal_split,
)
from dermkit.errors import DataError, DermkitError, OutputError, UsageError
from dermkit.evaluation import external, foreign_predictions, openings, predict_splits
from dermkit.evaluation.openings import log_openings, openings_of_images
from dermkit.files import lock, sha256_file
from dermkit.metrics.stats.power import expected_maximum_of_k
from dermkit.pipeline import open_test as pipeline_open_test
from dermkit.pipeline import run as pipeline_run
from dermkit.recipes.schema import Recipe, SplitSpec, parse_split_spec, save_recipe
from dermkit.reporting.warnings import report_warnings
from dermkit.runs.folder import RunFolder

HOLDOUT = parse_split_spec(
    scheme="holdout", seed=0, validation=0.25, test=0.25, folds=0, per_class=0, draw_from=""
)  # fmt: skip


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def copied(data: Path, to: Path) -> Path:
    return Path(shutil.copytree(data, to, ignore=shutil.ignore_patterns("splits", "audit")))


def train(recipe: Recipe, data: Path, out: Path, split: str = "held") -> Path:
    where = dk.RunSettings(out=out, device="cpu")
    return dk.train(recipe, dk.load_dataset(data), settings=where, split=split)


def open_test(run: Path, data: Path) -> Path:
    return dk.evaluate(run, open_test=dk.load_dataset(data))


def seal_file(data: Path, name: str = "held") -> Path:
    return data / "splits" / f"{name}.seal.json"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def world(binary: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `data`, whose split `held` is sealed, and `runs/tiny/*`, a run on it that was not opened."""
    folder = tmp_path_factory.mktemp("world")
    data = copied(binary, folder / "data")
    dk.split(dk.load_dataset(data), HOLDOUT, name="held", seal=True)
    train(tiny, data, folder / "runs")
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a copy of data set and run that a test may change."""
    folder = Path(shutil.copytree(world, tmp_path / "world"))
    (run,) = (folder / "runs" / "tiny").iterdir()
    return folder / "data", run


# Sealing --------------------------------------------------------------------------------------------------------------


def test_the_whole_way_on_the_command_line(cli: Cli, binary: Path, tiny: Recipe, tmp_path: Path) -> None:
    data = copied(binary, tmp_path / "data")
    save_recipe(tiny, tmp_path / "tiny.json")
    done = cli("split", data, "--name", "held", "--validation", "0.25", "--test", "0.25", "--seal")
    assert done.returncode == 0, done.stderr
    assert "test split sealed on 20" in done.stdout
    assert "openings so far: 0" in done.stdout
    done = cli("train", tmp_path / "tiny.json", data, "--split", "held", "--out", "runs", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "test split sealed (" in done.stderr
    run = (tmp_path / done.stdout.splitlines()[-1]).parent
    assert set(pd.read_csv(run / "predictions.csv")["split"]) == {"validation"}
    (line,) = [line for line in (run / "NEXT_STEPS.txt").read_text().splitlines() if "--open-test" in line]
    done = cli(*line.split()[1:])
    assert done.returncode == 0, done.stderr
    assert "opening 1 of seal held" in done.stderr
    steps = (run / "NEXT_STEPS.txt").read_text()
    assert "sealed" not in steps and "--open-test" not in steps, "opened already, and again would count"
    assert [line[:12] for line in steps.split("\n\n")][1:] == [
        "Predict new ",
        "Open a page ",
        "Test on anot",
        "Evaluate and",
        "Repeat this ",
    ]
    assert "Open the sealed" not in (run / "report.html").read_text()
    assert set(pd.read_csv(run / "predictions.csv")["split"]) == {"validation", "test"}
    (opening,) = read(seal_file(data))["openings"]
    assert (opening["run"], opening["recipe"], opening["finished"]) == (run.name, "tiny", True)


def test_a_seal_names_every_test_image_and_is_kept_when_made_again(here: tuple[Path, Path]) -> None:
    data, _ = here
    dataset = dk.load_dataset(data)
    seal = read_seal(seal_file(data))
    split = pd.read_csv(data / "splits" / "held.csv")
    held = dataset.manifest[dataset.manifest["image_id"].isin(split.loc[split["split"] == "test", "image_id"])]
    assert [list(row) for row in seal.rows] == held[["image_id", "label", "pixel_sha256"]].sort_values(
        "image_id"
    ).to_numpy().tolist()
    log(data, opening())
    before = seal_file(data).read_bytes()
    dk.split(dataset, HOLDOUT, name="held", seal=True)
    assert seal_file(data).read_bytes() == before, "date and openings stay"
    other = dk.split(dataset, HOLDOUT, name="other", seal=True)
    assert not seal_file(data, "other").exists(), "the same rows have one seal and one count"
    found = dk.find_split_seal(dataset, other)
    assert found is not None
    assert (found.name, len(found.openings)) == ("held", 1)


def opening(**changes: Any) -> Opening:
    about = {
        "date": "2026-01-02T03:04:05+00:00", "opened_by": "--open-test", "recipe": "other", "run": "abc-s0",
        "model_sha256": "0" * 64, "dermkit": "0.1.0", "commit": "", "n": 12,
    }  # fmt: skip
    return Opening(**{**about, **changes})


def log(data: Path, entry: Opening) -> None:
    with log_opening(seal_file(data), entry):
        pass


def test_another_test_side_does_not_take_a_sealed_name(here: tuple[Path, Path], invoke: Invoke) -> None:
    data, _ = here
    files = {path: path.read_bytes() for path in (data / "splits").glob("held*")}
    for extra in ((), ("--seal",)):
        code, _, message = invoke("split", data, "--name", "held", "--seed", "9", *extra)
        assert code == 2
        assert "split held is sealed, and its test side is another one" in message
    assert {path: path.read_bytes() for path in (data / "splits").glob("held*")} == files


def test_k_folds_and_splits_without_a_test_side_are_not_sealed(here: tuple[Path, Path], invoke: Invoke) -> None:
    data, _ = here
    code, _, message = invoke("split", data, "--scheme", "kfold", "--name", "folds", "--seal")
    assert code == 2
    assert "every image is a test image of its fold" in message
    assert not list((data / "splits").glob("folds*")), "nothing was written"
    manifest = dk.load_dataset(data).manifest
    with pytest.raises(UsageError, match="no test images"):
        seal_split(data / "splits", "x", manifest[["image_id"]].assign(split="train", fold=-1), manifest)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"format": 2', '"format": 3', "this dermkit reads format 2"),
        ('"name": "held"', '"name": "mine"', "is the seal of split mine"),
        ('"benign"', '"malignant"', "its rows are not those of its hash"),
        ('"openings": []', '"openings": [{"date": "x"}]', "is not a seal"),
        ('"openings": []', '"opened": []', "is not a seal"),
    ],
)
def test_a_seal_that_is_broken_or_unknown_stops_everything(
    here: tuple[Path, Path], tiny: Recipe, tmp_path: Path, old: str, new: str, words: str
) -> None:
    data, run = here
    change(seal_file(data), old, new)
    before = seal_file(data).read_bytes()
    with pytest.raises(DataError, match=words):
        train(tiny, data, tmp_path / "again")
    with pytest.raises(DataError, match=words):
        open_test(run, data)
    assert seal_file(data).read_bytes() == before
    assert SEAL_FORMAT == 2


def test_a_seal_of_format_1_is_read_and_written_anew(here: tuple[Path, Path]) -> None:
    data, run = here
    log(data, opening())
    open_test(run, data)
    openings = read_seal(seal_file(data)).openings
    for path in (seal_file(data), run / "seal.json"):
        path.write_text(path.read_text().replace('"format": 2', '"format": 1').replace('"opened_by"', '"how"'))
    change(run / "seal.json", '"opening_number"', '"opening"')
    assert read_seal(seal_file(data)).openings == openings
    open_test(run, data)
    assert read_seal(seal_file(data)).openings[:2] == openings
    assert read(seal_file(data))["format"] == 2
    assert [entry["opened_by"] for entry in read(run / "seal.json")["openings"]] == ["--open-test"] * 3


# A run beside a sealed test side --------------------------------------------------------------------------------------


def test_a_sealed_run_scores_no_test_image_and_says_so(here: tuple[Path, Path]) -> None:
    data, run = here
    sealed_ids = {row[0] for row in read_seal(seal_file(data)).rows}
    for name in ("predictions.csv", "image_blind_rules.csv", "groups.csv", "attributes.csv"):
        assert not sealed_ids & set(pd.read_csv(run / name)["image_id"]), name
    metrics = read(run / "metrics.json")
    assert set(metrics["splits"]) == {"validation"}
    assert metrics["seal"] == {
        "name": "held", "date": read(seal_file(data))["date"], "n": len(sealed_ids),
        "opening_number": None, "n_openings": 0,
    }  # fmt: skip
    assert metrics["policy"]["n_validation_images"] == metrics["splits"]["validation"]["n"]
    assert read(run / "model" / "model.json")["conformal"] is not None, "settled before the test side is opened"
    report = (run / "report.html").read_text()
    assert f"The test side is sealed: {len(sealed_ids)} images" in report
    assert f"--open-test {data.parents[1] / 'data'}" not in report
    assert "dermkit evaluate RUN --open-test DATASET" in report
    assert read(run / "metrics.json")["splits"]["validation"]["metrics"]["accuracy"]["value"] is not None
    shutil.rmtree(data)  # the report is made from the run's folder alone
    dk.report(run)
    again = (run / "report.html").read_text()
    assert "The test side is sealed" in again
    assert "Nobody had opened the test side when it was trained" in again


def test_sealed_and_opened_is_scored_as_if_it_had_never_been_sealed(
    here: tuple[Path, Path], tiny: Recipe, binary: Path, tmp_path: Path
) -> None:
    data, run = here
    model, weights = sha256_file(run / "model" / "SHA256SUMS"), sha256_file(run / "model" / "member-0.safetensors")
    open_test(run, data)
    plain = copied(binary, tmp_path / "plain")
    dk.split(dk.load_dataset(plain), HOLDOUT, name="held")
    other = train(tiny, plain, tmp_path / "plain-runs")
    assert other.name == run.name
    for name in ("predictions.csv", "image_blind_rules.csv", "groups.csv", "attributes.csv", "policy.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert read(run / "metrics.json")["splits"] == read(other / "metrics.json")["splits"]
    assert sha256_file(run / "model" / "member-0.safetensors") == weights, "the opening changes nothing of the net"
    assert read(run / "model" / "model.json") == read(other / "model" / "model.json")
    (logged,) = read_seal(seal_file(data)).openings
    assert logged.model_sha256 == model
    assert logged.n == len(read_seal(seal_file(data)).rows)
    assert "seal" not in read(other / "metrics.json")


def test_openings_are_counted_and_the_second_one_is_warned_of(here: tuple[Path, Path]) -> None:
    data, run = here
    log(data, opening())
    open_test(run, data)
    report = (run / "report.html").read_text()
    assert "is number 2 of 2 at that time" in report
    (warn,) = [item for item in report_warnings(RunFolder(run)) if "opened 2 times" in item.text]
    assert warn.level == "serious"
    assert "up to 0.6 standard errors too good by chance alone" in warn.text
    assert "no longer the figures of an untouched test side" in report
    first = (run / "predictions.csv").read_bytes()
    open_test(run, data)
    assert [item.run for item in read_seal(seal_file(data)).openings] == ["abc-s0", run.name, run.name]
    assert "is number 3 of 3 at that time" in (run / "report.html").read_text()
    assert (run / "predictions.csv").read_bytes() == first
    logged = seal_file(data).read_bytes()
    dk.evaluate(run)
    assert seal_file(data).read_bytes() == logged, "evaluating what is there counts nothing"
    log(data, opening())
    dk.evaluate(run)
    assert "is number 3 of 3 at that time" in (run / "report.html").read_text()


def test_one_opening_needs_no_warning(here: tuple[Path, Path]) -> None:
    data, run = here
    open_test(run, data)
    assert "is number 1 of 1 at that time" in (run / "report.html").read_text()
    assert not [
        item for item in report_warnings(RunFolder(run)) if "opened" in item.text or "Opening" in item.text
    ]
    assert read(run / "metrics.json")["seal"]["opening_number"] == 1


# What refuses an opening ----------------------------------------------------------------------------------------------


def edit_manifest(data: Path, column: str, value: Callable[[pd.Series], str], image_id: str) -> None:
    path = data / "manifest.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    row = frame.index[frame["image_id"] == image_id][0]
    frame.loc[row, column] = value(frame.loc[row])
    frame.to_csv(path, index=False, lineterminator="\n")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("label", lambda row: "malignant" if row["label"] == "benign" else "benign", "1 with another label"),
        ("pixel_sha256", lambda _row: "f" * 64, "1 with other pixels"),
    ],
)
def test_changed_test_images_are_refused_with_nothing_logged_or_scored(
    here: tuple[Path, Path],
    tiny: Recipe,
    tmp_path: Path,
    column: str,
    value: Callable[[pd.Series], str],
    words: str,
) -> None:
    data, run = here
    image_id = read_seal(seal_file(data)).rows[0][0]
    edit_manifest(data, column, value, image_id)
    log, scored = seal_file(data).read_bytes(), (run / "predictions.csv").read_bytes()
    with pytest.raises(DataError, match=words) as caught:
        open_test(run, data)
    assert image_id in caught.value.message
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match=words):
        train(tiny, data, tmp_path / "again")
    assert seal_file(data).read_bytes() == log
    assert (run / "predictions.csv").read_bytes() == scored


def test_a_change_elsewhere_in_the_manifest_is_told(here: tuple[Path, Path]) -> None:
    data, run = here
    manifest = dk.load_dataset(data).manifest
    held = {row[0] for row in read_seal(seal_file(data)).rows}
    edit_manifest(data, "age", lambda _row: "55", next(name for name in manifest["image_id"] if name not in held))
    open_test(run, data)
    assert pipeline_open_test.MANIFEST_CHANGED_NOTE in [item.text for item in report_warnings(RunFolder(run))]


def test_what_is_no_run_of_this_seal_is_refused_before_it_counts(
    here: tuple[Path, Path], trained: Path, seven: Path, tmp_path: Path
) -> None:
    data, run = here
    log = seal_file(data).read_bytes()
    cases: list[tuple[Path, Path, type[DermkitError], str]] = [
        (tmp_path, data, UsageError, "not a finished run"),
        (trained, data, UsageError, "was not sealed when it was trained"),
        (run, seven, DataError, "other classes"),
    ]
    for target, dataset, error, words in cases:
        with pytest.raises(error, match=words):
            open_test(target, dataset)
    (run / "model" / "seen.csv").write_text("changed")
    with pytest.raises(DermkitError, match="SHA-256 differs"):
        open_test(run, data)
    assert seal_file(data).read_bytes() == log
    seal_file(data).unlink()
    with pytest.raises(DataError, match="has no seal"):
        open_test(run, data)


def test_an_older_log_put_back_is_noticed(here: tuple[Path, Path]) -> None:
    data, run = here
    fresh = seal_file(data).read_bytes()
    open_test(run, data)
    seal_file(data).write_bytes(fresh)
    with pytest.raises(DataError, match="0 openings are logged, but not all 1"):
        open_test(run, data)


# Killed, and together -------------------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
from pathlib import Path
from dermkit.pipeline import open_test, results
from dermkit.data.manifest import load_dataset
open_test.predict_splits = lambda *_args, **_named: os.kill(os.getpid(), signal.SIGKILL)
results.evaluate(Path(sys.argv[1]), open_test=load_dataset(Path(sys.argv[2])))
"""


def test_an_opening_that_is_killed_before_it_scores_counts(here: tuple[Path, Path]) -> None:
    data, run = here
    before = (run / "predictions.csv").read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, run, data], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    (logged,) = read_seal(seal_file(data)).openings
    assert not logged.finished
    assert (run / "predictions.csv").read_bytes() == before
    dk.evaluate(run)
    report = (run / "report.html").read_text()
    assert "Opening 1 of the test side was logged and did not end" in report
    assert "was not scored" in report
    open_test(run, data)
    assert [item.finished for item in read_seal(seal_file(data)).openings] == [False, True]
    (warn,) = [item for item in report_warnings(RunFolder(run)) if "opened 2 times" in item.text]
    assert warn.level == "serious", "one run that looked twice is no repeat"


def test_two_openings_at_once_are_both_logged(here: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = here
    folder = data / "splits"
    with lock(folder), pytest.raises(OutputError, match="in use"), lock(folder, timeout=0.2):
        pass
    with log_opening(seal_file(data), opening()) as seal:
        assert seal.openings == (opening(),)
        with pytest.raises(ZeroDivisionError), log_opening(seal_file(data), opening(run="other-s1")):
            assert read_seal(seal_file(data)).openings == (opening(), opening(run="other-s1")), (
                "on disk before the block"
            )
            raise ZeroDivisionError
    assert [item.finished for item in read_seal(seal_file(data)).openings] == [True, False]
    with lock(run), pytest.raises(OutputError, match="in use"):
        open_test(run, data)
    assert len(read_seal(seal_file(data)).openings) == 2


# Ways around ----------------------------------------------------------------------------------------------------------


def run_facts(run: Path) -> list[str]:
    return list(read(run / "run.json")["warnings"])


def test_the_same_test_rows_are_sealed_under_any_name_and_as_a_file(
    here: tuple[Path, Path], tiny: Recipe, tmp_path: Path
) -> None:
    data, run = here
    frame = pd.read_csv(data / "splits" / "held.csv", dtype=str, keep_default_na=False)
    keep = ~((frame["split"] == "train") & (frame.index % 7 == 0))
    frame[keep].to_csv(tmp_path / "mine.csv", index=False)
    again = train(tiny, data, tmp_path / "again", split=str(tmp_path / "mine.csv"))
    assert set(pd.read_csv(again / "predictions.csv")["split"]) == {"validation"}
    assert read(again / "seal.json")["name"] == "held"
    replayed = train(tiny, data, tmp_path / "replay", split=str(run / "split.csv"))
    assert set(pd.read_csv(replayed / "predictions.csv")["split"]) == {"validation"}
    open_test(again, data)
    assert [item.run for item in read_seal(seal_file(data)).openings] == [again.name]


def test_sealed_images_on_the_sides_of_another_split_are_warned_of_and_counted(
    here: tuple[Path, Path], tiny: Recipe, tmp_path: Path
) -> None:
    data, _ = here
    dataset = dk.load_dataset(data)
    held = {row[0] for row in read_seal(seal_file(data)).rows}
    made = dk.split(dataset, replace(HOLDOUT, seed=5), name="other")
    side = {name: set(part["image_id"]) & held for name, part in made.frame.groupby("split")}
    assert all(side.get(name) for name in ("train", "test")), "the seed divides them"
    other = train(tiny, data, tmp_path / "other", split="other")
    (text,) = [line for line in run_facts(other) if line.startswith("Sealed test images")]
    for name, images in side.items():
        assert not images or f"{len(images)} on the {name!s} side" in text
    (warn,) = [item for item in report_warnings(RunFolder(other)) if item.text == text]
    assert warn.level == "serious"
    (logged,) = read_seal(seal_file(data)).openings
    assert (logged.opened_by, logged.n, logged.run) == ("split other", len(side["test"]), other.name)
    assert logged.finished


def test_a_copy_under_another_id_is_the_same_image(here: tuple[Path, Path]) -> None:
    data, _ = here
    manifest = dk.load_dataset(data).manifest
    name, label, pixels = read_seal(seal_file(data)).rows[0]
    twin = manifest[manifest["image_id"] == name].assign(image_id="twin", path="twin.png")
    frame = pd.DataFrame({"image_id": ["twin"], "split": ["train"]})
    (meeting,) = find_partial_overlaps(data / "splits", pd.concat([manifest, twin]), frame)
    assert meeting.counts == {"train": 1, "validation": 0, "test": 0}
    assert (label, len(pixels)) == (twin["label"].item(), 64)


def look(data: Path, manifest: pd.DataFrame, image_ids: Sequence[str], *, allowed: bool) -> list[Opening]:
    dataset = replace(dk.load_dataset(data), manifest=manifest)
    openings = openings_of_images(
        dataset, image_ids, is_allowed=allowed, model=data / "none", opened_by="--on", recipe="r", run="q"
    )
    with log_openings(openings):
        return [opening for _, opening in openings]


def test_looking_at_copies_of_sealed_images_is_looking_at_them(here: tuple[Path, Path]) -> None:
    data, _ = here
    manifest = dk.load_dataset(data).manifest
    rows = read_seal(seal_file(data)).rows
    twin = manifest[manifest["image_id"] == rows[0][0]].assign(image_id="twin", path="twin.png")
    both = pd.concat([manifest, twin], ignore_index=True)
    with pytest.raises(UsageError, match="1 of split held"):
        look(data, both, ["twin"], allowed=False)
    assert not read_seal(seal_file(data)).openings
    assert [item.n for item in look(data, both, ["twin"], allowed=True)] == [1]
    assert [item.n for item in look(data, both, [rows[0][0], "twin", rows[1][0]], allowed=True)] == [2]
    renamed = manifest.assign(image_id="z" + manifest["image_id"])
    with pytest.raises(UsageError, match=f"{len(rows)} of split held"):
        look(data, renamed, renamed["image_id"].tolist(), allowed=False)
    assert [item.n for item in look(data, renamed, renamed["image_id"].tolist(), allowed=True)] == [len(rows)]
    other = set(manifest["image_id"]) - {row[0] for row in rows}
    assert look(data, manifest, sorted(other), allowed=False) == []


@pytest.mark.parametrize("column", ["label", "pixel_sha256"])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_look_at_changed_sealed_images_is_refused(here: tuple[Path, Path], column: str, renamed: bool) -> None:
    data, _ = here
    manifest = dk.load_dataset(data).manifest
    name, label, _ = read_seal(seal_file(data)).rows[0]
    other = {"label": "malignant" if label == "benign" else "benign", "pixel_sha256": "0" * 64}[column]
    manifest.loc[manifest["image_id"] == name, column] = other
    if renamed:
        manifest.loc[manifest["image_id"] == name, "image_id"] = "moved"
    ids = ["moved" if renamed else name]
    if renamed and column == "pixel_sha256":
        assert look(data, manifest, ids, allowed=False) == [], "another image under another name is another image"
        return
    with pytest.raises(DataError, match=f"1 with (another label|other pixels) .{name}.*"):
        look(data, manifest, ids, allowed=True)
    assert not read_seal(seal_file(data)).openings


def test_scoring_the_whole_data_set_asks_for_an_opening(
    here: tuple[Path, Path], trained: Path, invoke: Invoke, tmp_path: Path
) -> None:
    data, run = here
    words = ("evaluate", trained, "--on", data, "--out", tmp_path / "on")
    code, _, message = invoke(*words)
    assert code == 2
    assert "holds sealed test images" in message
    assert not read_seal(seal_file(data)).openings
    assert invoke(*words, "--open-test", tmp_path)[0] != 0
    code, _, message = invoke(*words, "--open-test", data)
    assert code == 0, message
    (logged,) = read_seal(seal_file(data)).openings
    assert (logged.opened_by, logged.recipe, logged.run, logged.finished) == ("--on", "tiny", trained.name, True)
    assert (
        f"of the sealed test side of split held ({logged.n} images): this is opening 1 of it"
        in (tmp_path / "on" / "report.html").read_text()
    )
    del run


def test_predictions_of_another_tool_count_only_where_they_are_of_sealed_images(
    here: tuple[Path, Path], invoke: Invoke, tmp_path: Path
) -> None:
    data, run = here
    outside = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)[
        ["image_id", "p_benign", "p_malignant"]
    ]
    outside.to_csv(tmp_path / "outside.csv", index=False)
    code, _, message = invoke(
        "evaluate", "--predictions", tmp_path / "outside.csv", "--on", data, "--out", tmp_path / "a"
    )
    assert code == 0, message
    assert not read_seal(seal_file(data)).openings
    one = outside.iloc[:1].assign(image_id=read_seal(seal_file(data)).rows[0][0])
    pd.concat([outside, one]).to_csv(tmp_path / "inside.csv", index=False)
    words = ("evaluate", "--predictions", tmp_path / "inside.csv", "--on", data, "--out", tmp_path / "b")
    assert invoke(*words)[0] == 2
    assert invoke(*words, "--open-test", data)[0] == 0
    (logged,) = read_seal(seal_file(data)).openings
    assert (logged.opened_by, logged.recipe, logged.n) == ("--predictions", "inside.csv", 1)


def test_an_opening_is_finished_once_what_it_was_for_can_be_evaluated(
    here: tuple[Path, Path], trained: Path, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = here
    dataset = dk.load_dataset(data)
    dk.split(dataset, replace(HOLDOUT, seed=5), name="other")
    table = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)[
        ["image_id", "p_benign", "p_malignant"]
    ]
    table.iloc[:1].assign(image_id=read_seal(seal_file(data)).rows[0][0]).to_csv(tmp_path / "one.csv", index=False)

    def look(case: str, out: Path) -> None:
        if case == "--on":
            dk.evaluate(trained, dataset=dataset, out=out, open_test=dataset)
        elif case == "--predictions":
            dk.evaluate(None, predictions=tmp_path / "one.csv", dataset=dataset, out=out, open_test=dataset)
        elif case == "--open-test":
            open_test(run, data)
        else:
            train(tiny, data, out, split="other")

    def fail(*_args: Any, **_named: Any) -> None:
        raise OSError(28, "no space")

    modules = {
        "--on": (external, external), "--predictions": (foreign_predictions, foreign_predictions),
        "--open-test": (predict_splits, pipeline_run), "split other": (predict_splits, pipeline_run),
    }  # fmt: skip
    for case, (scoring, evaluating) in modules.items():
        for module, name, finished in (
            (scoring, "write_predictions", False),
            (evaluating, "evaluate_run", True),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, fail)
                with pytest.raises(OSError, match="no space"):
                    look(case, tmp_path / f"{case}-{name}")
            logged = read_seal(seal_file(data)).openings[-1]
            assert (logged.opened_by, logged.finished) == (case, finished), name


# Several runs, other verbs --------------------------------------------------------------------------------------------


def test_repeats_are_summarised_on_validation_and_opened_together(
    here: tuple[Path, Path], tiny: Recipe, tmp_path: Path
) -> None:
    data, _ = here
    parent = train(replace(tiny, repeats=2), data, tmp_path / "repeats")
    summary = read(parent / "summary.json")
    assert [run["test"] for run in summary["runs"]] == [{}, {}]
    assert not [name for name in pd.read_csv(parent / "summary.csv").columns if name.startswith("test_")]
    assert "The test side is sealed" in (parent / "report.html").read_text()
    open_test(parent, data)
    summary = read(parent / "summary.json")
    assert all(run["test"]["accuracy"] is not None for run in summary["runs"])
    assert summary["metrics"]["test"]["accuracy"]["n_runs"] == 2
    assert len(read_seal(seal_file(data)).openings) == 2
    last = parent / summary["runs"][1]["folder"]
    (warn,) = [item for item in report_warnings(RunFolder(last)) if "opened 2 times" in item.text]
    assert (warn.level, "differ in their seed alone" in warn.text) == ("note", True)


def test_a_grid_is_tuned_beside_a_sealed_test_side(here: tuple[Path, Path], tiny: Recipe, tmp_path: Path) -> None:
    data, _ = here
    members = [replace(tiny, name=f"m{n}", model=replace(tiny.model, dropout=n / 4)) for n in range(2)]
    where = dk.RunSettings(out=tmp_path / "tuned", device="cpu")
    final = dk.tune(members, dk.load_dataset(data), name="grid", settings=where, split="held")
    assert set(pd.read_csv(final / "predictions.csv")["split"]) == {"validation"}
    assert not read_seal(seal_file(data)).openings


def test_a_fold_warns_of_the_sealed_images_on_its_sides(
    here: tuple[Path, Path], tiny: Recipe, tmp_path: Path
) -> None:
    data, _ = here
    folds: SplitSpec = replace(HOLDOUT, scheme="kfold", test=0.0, folds=3)
    dk.split(dk.load_dataset(data), folds, name="folds")
    parent = train(tiny, data, tmp_path / "folds", split="folds")
    lines = [line for run in parent.glob("*/run.json") for line in run_facts(run.parent)]
    assert sum(line.startswith("Sealed test images") for line in lines) == 3
    openings = read_seal(seal_file(data)).openings
    assert sum(item.n for item in openings) == len(read_seal(seal_file(data)).rows), (
        "each is in one fold's test side"
    )


def test_the_other_verbs_take_a_data_set_with_seals(
    here: tuple[Path, Path], invoke: Invoke, tmp_path: Path
) -> None:
    data, run = here
    assert invoke("audit", data, "--split", "held")[0] in (0, 3)
    code, _, message = invoke("train", "demo", data, "--split", "none")
    assert code == 2
    assert message.count("held") == 1, "a seal is not listed as a split"
    dataset = dk.load_dataset(data)
    tested = [dataset.image_path(row[0]) for row in read_seal(seal_file(data)).rows]
    code, _, message = invoke("predict", run / "model", *tested[:4], "--out", tmp_path / "predicted")
    assert code == 0, message
    assert "looked at" not in message
    other = Path(shutil.copytree(run, tmp_path / "other" / run.name))
    open_test(run, data)
    compared = compare_runs([run, other])
    assert [pair.reason for pair in compared.pairs if pair.split == "validation"] == [""]
    assert not [pair for pair in compared.pairs if pair.split == "test" and pair.differences]


# Small things ---------------------------------------------------------------------------------------------------------


def test_the_best_of_equals_is_too_good_by_what_chance_gives() -> None:
    assert expected_maximum_of_k(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum_of_k(2) == pytest.approx(1 / np.sqrt(np.pi), abs=1e-6)
    assert expected_maximum_of_k(3) == pytest.approx(1.5 / np.sqrt(np.pi), abs=1e-6)
    draws = np.random.default_rng(0).standard_normal((20_000, 10)).max(axis=1)
    assert expected_maximum_of_k(10) == pytest.approx(draws.mean(), abs=4 * draws.std() / np.sqrt(len(draws)))
    with pytest.raises(ValueError, match="at least one"):
        expected_maximum_of_k(0)


def test_the_commit_is_that_of_the_checkout_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = openings.git_commit()
    assert found == "" or len(found.removesuffix("-dirty")) == 40
    package = tmp_path / "lib" / "site-packages" / "dermkit"
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr("dermkit.__file__", str(package / "__init__.py"))
    assert openings.git_commit() == "", "a repository around an installation says nothing about it"


@pytest.fixture
def seals() -> Iterator[Seal]:
    yield Seal("held", "2026-01-02T03:04:05+00:00", (("a", "benign", "0" * 64),))


def test_a_seal_changes_with_every_part_of_its_rows(seals: Seal, tmp_path: Path) -> None:
    for column in range(3):
        row = list(seals.rows[0])
        row[column] += "x"
        assert replace(seals, rows=(tuple(row),)).sha256 != seals.sha256
    assert replace(seals, openings=(opening(),)).sha256 == seals.sha256
    assert read_seals(tmp_path / "absent") == []
