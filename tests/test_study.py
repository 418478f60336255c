"""Studies: shared, resumed after kills, refused where they are of something else."""

import json
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.storages import RDBStorage

import dermkit as dk
from conftest import Invoke
from dermkit.errors import DataError, OutputError, UntrustedError, UsageError
from dermkit.evaluation.selection import selected_value
from dermkit.pipeline.search import SearchOptions, search
from dermkit.pipeline.study import JOURNAL_FILE, Study, open_study
from dermkit.pipeline.study_database import database_errors, heartbeat, open_database
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.experiments import head_phase
from dermkit.recipes.schema import Recipe, save_recipe
from dermkit.recipes.search_space import SearchSpace, parse_space

IDENTITY = {"recipe": "a", "data set": "b", "split": "c", "weights": "d", "search space": "e", "seed": "0"}
RATES = {"phases.0.head_lr": {"low": 1e-4, "high": 1e-1, "log": True}, "optim.batch_size": [8, 16]}


@pytest.fixture
def frozen(tiny: Recipe) -> Recipe:
    """Return a recipe on cached features of a frozen backbone, which trains in half a second."""
    return replace(
        tiny, name="frozen", augment=NO_AUGMENTATION, phases=(head_phase(3),), monitor="val_accuracy"
    )  # fmt: skip


def study_in(folder: Path, space: SearchSpace, *, storage: str | None = None, **changes: str) -> Study:
    return open_study(
        folder, "study", storage=storage, space=space, seed=0, identity={**IDENTITY, **changes},
        higher_is_better=True, prunes=True,
    )  # fmt: skip


def space_of(recipe: Recipe, content: Any = RATES) -> SearchSpace:
    return parse_space(content, recipe, "test")


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_study import space_of, study_in
from dermkit.recipes.experiments import RECIPES
study = study_in(Path(sys.argv[1]), space_of(RECIPES["demo"]))
trial = study.claim(5)
print(trial.number, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_trial_is_taken_once_and_a_study_has_as_many_as_wanted(
    tmp_path: Path, frozen: Recipe, storage: str
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}" if storage == "sqlite" else None
    first, second = (study_in(tmp_path, space_of(frozen), storage=url) for _ in range(2))
    one, two = first.claim(2), second.claim(2)
    assert one is not None and two is not None and {one.number, two.number} == {0, 1}
    assert first.values_of(one) != second.values_of(two)
    assert first.claim(2) is None
    second.finish(two, "COMPLETE", {}, value=0.5)
    assert second.claim(2) is None
    first.give_back(one, "interrupted")
    again = second.claim(2)
    assert again is not None and again.user_attrs["repeats"] == 0
    assert second.values_of(again) == first.values_of(first.trials("FAIL")[0])
    second.finish(again, "PRUNED", {})
    assert second.claim(2) is None and second.n_finished() == 2 and not second.trials("RUNNING", "WAITING")


def test_a_killed_process_leaves_its_trial_to_the_next(tmp_path: Path, frozen: Recipe) -> None:
    study = study_in(tmp_path, space_of(frozen))
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "0\n"
        mine = study.claim(5)
        assert mine is not None and mine.number == 1 and len(study.trials("RUNNING")) == 2
        holder.kill()
        holder.wait()
    again = study.claim(5)
    assert again is not None and again.user_attrs["repeats"] == 0
    assert again.params == study.trials("FAIL")[0].params


def test_a_line_that_was_half_written_is_cut_off(tmp_path: Path, frozen: Recipe) -> None:
    space = space_of(frozen)
    study_in(tmp_path, space)
    journal = tmp_path / JOURNAL_FILE
    with journal.open("ab") as stream:
        stream.write(b'{"op_code":4,"wor')
    study = study_in(tmp_path, space)
    trial = study.claim(1)
    assert trial is not None
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    journal.write_text("no journal\nat all\n")
    with pytest.raises(DataError, match="is no journal of a study"):
        study_in(tmp_path, space)


@pytest.mark.parametrize(
    ("changed", "error"),
    [("recipe", UsageError), ("search space", UsageError), ("seed", UsageError), ("data set", DataError),
     ("split", DataError), ("weights", UntrustedError)],
)  # fmt: skip
def test_a_study_of_something_else_is_refused(
    tmp_path: Path, frozen: Recipe, changed: str, error: type[Exception]
) -> None:
    study_in(tmp_path, space_of(frozen))
    study_in(tmp_path, space_of(frozen))
    with pytest.raises(error, match=f"the study study is of another {changed}"):
        study_in(tmp_path, space_of(frozen), **{changed: "other"})


def test_a_database_that_is_not_there_is_said_without_its_password(tmp_path: Path, frozen: Recipe) -> None:
    with pytest.raises(UsageError, match="the database cannot be used") as caught:
        study_in(tmp_path, space_of(frozen), storage="nosuch://user:secret@host/db")
    assert "secret" not in str(caught.value)


# Whole searches -------------------------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_search_selects_on_validation_resumes_and_trains_the_best(
    binary: Path, frozen: Recipe, tmp_path: Path
) -> None:
    said: list[str] = []
    data, settings = dk.load_dataset(binary), dk.RunSettings(out=tmp_path, device="cpu")
    space = space_of(frozen, {"phases.0.head_lr": [1e-3, 1e-2], "optim.batch_size": [8, 16]})

    def run(trials: int) -> Path:
        options = SearchOptions(trials=trials, prunes=False)
        return search(
            frozen, space, data, options=options, settings=settings, progress=dk.Progress(say=said.append)
        )

    run(2)
    assert len(pd.read_csv(tmp_path / "frozen-study" / "tune.csv").query("state == 'complete'")) == 2
    folder = run(30)
    table = pd.read_csv(folder / "tune.csv").query("state == 'complete'")
    assert len(table) == 4 and "the space has 4 combinations: each is tried once" in said
    assert sum(line.startswith("trial ") and " of " in line for line in said) == 4
    for trial in table.to_dict("records"):
        metrics = read(folder / trial["runs"] / "metrics.json")["splits"]
        assert list(metrics) == ["validation"]
        assert metrics["validation"]["metrics"]["accuracy"]["value"] == trial["val_accuracy"]
    study = read(folder / "study.json")
    best = table.iloc[int(table["val_accuracy"].argmax())]
    assert (study["best"]["trial"], study["best"]["value"]) == (best["trial"], best["val_accuracy"])
    assert study["best"]["recipe"] == read(folder / "tune.json")["best_recipe"] == Path(study["final"]).parent.name
    assert study["optimism"] == pytest.approx(study["best"]["value"] - study["corrected"]["value"])
    page = (folder / "tune.html").read_text()
    assert "Research use only. Not a medical device." in page and "best of 4, as measured" in page
    assert "4 settings of the recipe frozen were tried (4 trained to the end, 0 ended early)" in page
    assert (folder / "history.png").is_file() and len(pd.read_csv(folder / "history.csv")) == 4


def test_with_folds_a_trial_is_worth_the_mean_over_all_of_them(
    binary: Path, frozen: Recipe, tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = replace(frozen, split=replace(frozen.split, scheme="kfold", folds=3, test=0.0, validation=0.34))
    folder = search(
        recipe, space_of(recipe, {"phases.0.head_lr": [1e-3, 1e-2]}), dk.load_dataset(binary),
        options=SearchOptions(study="folds", prunes=False, trains_final=False),
        settings=dk.RunSettings(out=tmp_path, device="cpu"), progress=dk.Progress(say=said.append),
    )  # fmt: skip
    table, result = pd.read_csv(folder / "tune.csv"), read(folder / "study.json")
    assert result["n_folds"] == 3 and result["final"] == ""
    for trial in table.to_dict("records"):
        values = [
            read(folder / run / "metrics.json")["splits"]["validation"]["metrics"]["accuracy"]["value"]
            for run in trial["runs"].split()
        ]
        assert trial["val_accuracy"] == pytest.approx(sum(values) / 3)
    assert result["best"]["value"] == pytest.approx(table["val_accuracy"].max())
    assert any("every image of the folds takes part in choosing" in line for line in said)
    assert result["corrected"]["n"] == len(dk.load_dataset(binary).manifest)


@pytest.mark.parametrize("metric", ["loss", "accuracy", "balanced_accuracy", "auroc_macro"])
def test_the_value_that_is_corrected_is_that_of_metrics_json(trained: Path, metric: str) -> None:
    selected = selected_value([[trained]], metric, resamples=50)
    expected = read(trained / "metrics.json")["splits"]["validation"]["metrics"][metric]["value"]
    assert selected.value == pytest.approx(expected, abs=1e-12)
    assert selected.corrected.value == pytest.approx(expected, abs=0.3)


def test_no_trial_begins_after_the_time(binary: Path, frozen: Recipe, tmp_path: Path) -> None:
    folder = search(
        frozen, space_of(frozen), dk.load_dataset(binary),
        options=SearchOptions(trials=None, seconds=0.001, trains_final=False),
        settings=dk.RunSettings(out=tmp_path, device="cpu"),
    )  # fmt: skip
    assert len(pd.read_csv(folder / "tune.csv")) == 1, "the smallest useful thing is done"


def test_a_trial_that_gives_an_earlier_recipe_is_not_trained_again(
    binary: Path, frozen: Recipe, tmp_path: Path
) -> None:
    """Rates are rounded to three digits, so that these are all one recipe."""
    said: list[str] = []
    folder = search(
        frozen, space_of(frozen, {"phases.0.head_lr": {"low": 1e-3, "high": 1.000001e-3}}),
        dk.load_dataset(binary), options=SearchOptions(trials=3, trains_final=False),
        settings=dk.RunSettings(out=tmp_path, device="cpu"), progress=dk.Progress(say=said.append),
    )  # fmt: skip
    table = pd.read_csv(folder / "tune.csv")
    assert table["same_as"].tolist()[1:] == [0, 0] and table["val_accuracy"].nunique() == 1
    assert "trial 2 is trial 0 again: its value is taken" in said
    assert len(list(folder.glob("trials/*/*/metrics.json"))) == 1
    assert read(folder / "study.json")["n_values"] == 1


def test_the_command_refuses_before_torch_and_prints_the_end(
    binary: Path, frozen: Recipe, tmp_path: Path, invoke: Invoke
) -> None:
    save_recipe(frozen, tmp_path / "frozen.json")
    (tmp_path / "space.json").write_text('{"optim.batchsize": [1, 2]}')
    words: tuple[Any, ...] = (
        "tune",
        tmp_path / "frozen.json",
        binary,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    )
    for more, message in (
        (("--space", tmp_path / "space.json"), "did you mean `optim.batch_size`"),
        (("--time", "soon"), "not a time"),
        (("--study", "../up"), "becomes a folder"),
        (("--devices", "2"), "they share the study"),
    ):
        code, _, messages = invoke(*words, *more)
        assert (code, message in messages) == (2, True), messages
    code, _, messages = invoke("tune", "s2-grid", binary, "--trials", "3")
    assert (code, "s2-grid is a grid" in messages) == (2, True)
    code, out, messages = invoke(*words, "--trials", "2", "--no-final")
    assert code == 0, messages
    assert "best of 2 trials" in out and "corrected for choosing" in out and "verdict: " in out
    assert out.splitlines()[-1] == str(tmp_path / "runs" / "frozen-study" / "tune.html")
    code, _, messages = invoke(*words, "--trials", "2", "--seed", "5")
    assert (code, "of another seed" in messages) == (2, True)


# Kills ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_thirty_trials_through_five_kills(
    binary: Path, frozen: Recipe, tmp_path: Path
) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "tuning.py"
    kill_campaign = runpy.run_path(str(script), run_name="benchmark")["kill_campaign"]
    save_recipe(frozen, tmp_path / "frozen.json")
    figures = kill_campaign(tmp_path / "frozen.json", binary, tmp_path / "runs", n_trials=30, n_kills=5, seed=1)
    assert (figures["finished"], figures["trained_twice"], figures["running"]) == (30, 0, 0)
    assert figures["kills"] == 5


def test_a_database_that_drops_out_is_said_and_what_is_there_is_kept() -> None:
    from optuna.exceptions import StorageInternalError

    words = "the database dropped out: the server closed the connection"
    with pytest.raises(OutputError, match=words) as caught, database_errors():
        raise StorageInternalError("commit") from OSError("the server closed the connection")
    assert "give the same command again" in str(caught.value) and caught.value.exit_code == 5


def test_a_heartbeat_goes_on_after_the_database_was_away() -> None:
    from optuna.exceptions import StorageInternalError

    beats: list[int] = []
    came_back = threading.Event()

    class Storage:
        def record_heartbeat(self, trial_id: int) -> None:
            beats.append(trial_id)
            if len(beats) == 2:
                raise StorageInternalError("away")
            if len(beats) > 2:
                came_back.set()

    with heartbeat(Storage(), 7, seconds=0.01):
        assert came_back.wait(timeout=30)
    assert set(beats) == {7}


def test_connections_of_a_database_are_tried_before_they_are_used(tmp_path: Path) -> None:
    storage = open_database(f"sqlite:///{tmp_path / 'study.db'}")
    assert isinstance(storage, RDBStorage) and storage.engine.pool._pre_ping
