"""Several runs of one recipe: the summary is what the runs say, and the final model is chosen on validation alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import dermkit as dk
from dermkit.errors import DataError
from dermkit.pipeline.repeats import best_run_index
from dermkit.pipeline.validation_values import split_values, validation_value
from dermkit.prediction.load import load_model
from dermkit.recipes.schema import Recipe
from dermkit.runs.layout import METRICS

Figures = Mapping[str, float | None]


def make_run(folder: Path, validation: Figures, test: Figures | None = None) -> Path:
    splits = {"validation": validation, "test": test} if test is not None else {"validation": validation}
    body = {
        name: {"metrics": {metric: {"value": value} for metric, value in figures.items()}}
        for name, figures in splits.items()
    }
    METRICS.write(folder, {"splits": body})
    return folder


def test_the_choice_looks_at_validation_alone(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", {"loss": 0.9, "accuracy": 0.8}, {"loss": 0.1, "accuracy": 1.0}),
        make_run(tmp_path / "b", {"loss": 0.4, "accuracy": 0.7}, {"loss": 2.0, "accuracy": 0.1}),
        make_run(tmp_path / "c", {"loss": 0.4, "accuracy": 0.9}, {"loss": 3.0, "accuracy": 0.0}),
    ]
    assert best_run_index(runs, "val_loss") == 1, "the least loss, the first of equals"
    assert best_run_index(runs, "val_accuracy") == 2, "the highest accuracy"
    assert split_values(runs[0], "test") == {"loss": 0.1, "accuracy": 1.0}
    assert split_values(runs[0], "train") == {}


def test_an_undefined_figure_is_never_the_best(tmp_path: Path) -> None:
    nothing = make_run(tmp_path / "a", {"auroc_macro": None})
    some = make_run(tmp_path / "b", {"auroc_macro": 0.1})
    part = make_run(tmp_path / "c", {"auroc_macro": None, "auroc_macro_present": 0.7})
    assert math.isnan(validation_value(nothing, "val_auroc_macro"))
    assert validation_value(part, "val_auroc_macro") == 0.7
    assert best_run_index([nothing, some], "val_auroc_macro") == 1
    with pytest.raises(DataError, match="undefined in all 2 runs") as caught:
        best_run_index([nothing, nothing], "val_auroc_macro")
    assert "val_loss" in caught.value.remedy
    with pytest.raises(DataError, match=r"metrics\.json"):
        best_run_index([tmp_path / "absent"], "val_loss")


@pytest.fixture(scope="module")
def repeated(binary: Path, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(tiny, name="repeated", repeats=2, seed=3)
    where = dk.RunSettings(out=tmp_path_factory.mktemp("repeated"), device="cpu")
    return dk.train(recipe, dk.load_dataset(binary), settings=where)


def versions(parent: Path) -> list[Path]:
    return sorted(path.parent for path in parent.glob("*/run.json"))


def test_every_version_has_its_own_folder_log_and_weights(repeated: Path) -> None:
    runs = versions(repeated)
    assert [json.loads((run / "run.json").read_text())["seed"] for run in runs] == [3, 4]
    assert all((run / name).is_file() for run in runs for name in ("log.csv", "report.html", "augmented.png"))
    one, two = ((run / "model" / "member-0.safetensors").read_bytes() for run in runs)
    assert one != two
    assert (runs[0] / "split.csv").read_bytes() == (runs[1] / "split.csv").read_bytes()


def test_the_summary_is_what_the_runs_say(repeated: Path) -> None:
    summary = json.loads((repeated / "summary.json").read_text())
    runs = versions(repeated)
    for split in ("validation", "test"):
        values = [split_values(run, split)["accuracy"] for run in runs]
        assert [row[split]["accuracy"] for row in summary["runs"]] == values
        spread = summary["metrics"][split]["accuracy"]
        series = pd.Series(values)
        assert spread["mean"] == pytest.approx(series.mean())
        assert spread["std"] == pytest.approx(series.std(ddof=1))
        assert (spread["min"], spread["max"], spread["n_runs"]) == (series.min(), series.max(), 2)
    table = pd.read_csv(repeated / "summary.csv")
    assert table["seed"].tolist() == [3, 4]
    assert table["test_accuracy"].tolist() == [split_values(run, "test")["accuracy"] for run in runs]
    losses = [validation_value(run, "val_loss") for run in runs]
    best = runs[losses.index(min(losses))]
    assert summary["final"]["folder"] == best.name == table.loc[table["final"], "folder"].item()
    assert "best of 2 on the same validation images" in summary["final"]["chosen_by"]
    assert summary["pooled"] is None


def test_the_final_model_is_that_of_the_best_version(repeated: Path) -> None:
    final = repeated / json.loads((repeated / "summary.json").read_text())["final"]["folder"]
    for path in (final / "model").iterdir():
        assert (repeated / "model" / path.name).read_bytes() == path.read_bytes()
    assert load_model(repeated).class_names == ("benign", "malignant")
    text = (repeated / "report.html").read_text()
    assert "Research use only. Not a medical device." in text
    assert final.name in text
    before = (repeated / "report.html").read_bytes()
    assert dk.report(repeated) == repeated / "report.html"
    assert len((repeated / "report.html").read_bytes()) == len(before)


def test_repeated_again_it_changes_nothing_and_trains_nothing(repeated: Path, binary: Path, tiny: Recipe) -> None:
    said: list[str] = []
    recipe = replace(tiny, name="repeated", repeats=2, seed=3)
    where = dk.RunSettings(out=repeated.parent.parent, device="cpu")
    before = (repeated / "summary.json").read_bytes()
    again = dk.train(recipe, dk.load_dataset(binary), settings=where, progress=dk.Progress(say=said.append))
    assert again == repeated
    assert (repeated / "summary.json").read_bytes() == before
    assert sum("already finished" in line for line in said) == 2
    assert not any(line.startswith("epoch") for line in said)
