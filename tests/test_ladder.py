"""The leak ladder: planted leaks are found, their absence too; its runs are no results; its intervals are right."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermkit as dk
from conftest import Invoke
from dermkit.comparison.rungs import RungRun, resample_rungs, rung_difference, rung_estimate
from dermkit.data.rungs import count_leaks, make_rungs, rung_options
from dermkit.errors import DataError, UntrustedError, UsageError
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.pipeline import ladder as pipeline_ladder
from dermkit.pipeline.ensemble_sources import find_source
from dermkit.pipeline.plan import Machine, RunPlan
from dermkit.pipeline.run import run_plan
from dermkit.prediction.locate import check_model_folder
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.frozen import CLASSIFIERS, classifier_phase
from dermkit.recipes.schema import Recipe
from dermkit.reporting.ladder_page import ladder_sentences
from dermkit.reporting.warnings import report_warnings
from dermkit.runs.folder import RunFolder
from dermkit.runs.layout import LADDER

N_LESIONS, N_PHOTOS = 48, 4


def make_photographs(folder: Path, *, is_leaking: bool) -> Path:
    """Write photographs whose labels no net can learn; is_leaking: those of a lesion share its texture.

    Without, every photograph has a texture of its own, and its lesion id means nothing.
    """
    rng, rows = np.random.default_rng(5), []
    for lesion in range(N_LESIONS):
        label = ("nevus", "melanoma")[lesion % 2]
        texture = rng.integers(0, 256, (6, 6, 3))
        for photo in range(N_PHOTOS):
            pixels = texture if is_leaking else rng.integers(0, 256, (6, 6, 3))
            noisy = np.clip(np.kron(pixels, np.ones((8, 8, 1))) + rng.normal(0, 12, (48, 48, 3)), 0, 255)
            name = f"{lesion}-{photo}.png"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / name)
            rows.append({"file": name, "dx": label, "lesion": f"L{lesion}"})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    columns = {"image": "file", "label": "dx", "lesion_id": "lesion"}
    options = dk.ImportOptions(columns=columns, images=folder)
    return dk.import_dataset("csv", folder / "table.csv", out=folder / "data", options=options).dataset.folder


@pytest.fixture(scope="module")
def memory(tiny: Recipe) -> Recipe:
    """Return a recipe that remembers its training images: the nearest neighbour on features of a random net."""
    classifier = replace(CLASSIFIERS["k_nearest"], neighbours=1)
    return replace(
        tiny, name="memory", model=replace(tiny.model, hidden=(), dropout=0.0, classifier=classifier),
        augment=NO_AUGMENTATION, phases=(classifier_phase(),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("leaking"), is_leaking=True)


@pytest.fixture(scope="module")
def climbed(leaking: Path, memory: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ladder of the leaking photographs."""
    return climb(memory, leaking, tmp_path_factory.mktemp("ladder") / "out", repeats=4)


def climb(recipe: Recipe, data: Path, out: Path, repeats: int = 2) -> Path:
    settings = dk.RunSettings(device="cpu")
    return dk.ladder(recipe, dk.load_dataset(data), out=out, repeats=repeats, settings=settings)


def differences(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in LADDER.read(folder)["differences"] if not row["class"]}


def test_a_planted_leak_is_found(climbed: Path) -> None:
    rows = differences(climbed)
    assert rows["accuracy"]["first"] == "image" and rows["accuracy"]["second"] == "lesion"
    for metric in ("accuracy", "balanced_accuracy", "sensitivity"):
        assert rows[metric]["ci95"][0] > 0.05, rows[metric]
    sentence, _ = ladder_sentences(LADDER.read(climbed))
    assert "balanced accuracy looks better than it is" in sentence


def test_labels_that_no_net_can_learn_are_not_inflated(memory: Recipe, tmp_path: Path) -> None:
    data = make_photographs(tmp_path / "clean", is_leaking=False)
    for metric, row in differences(climb(memory, data, tmp_path / "out", repeats=3)).items():
        assert row["ci95"][0] <= 0 <= row["ci95"][1], metric


def test_leaks_are_counted_in_the_rung_that_has_them(climbed: Path) -> None:
    image, lesion = (rung for rung in LADDER.read(climbed)["rungs"] if not rung["reason"])
    for counts in image["leaks"][0].values():
        assert 0 < counts["lesion_id"] <= counts["n"] and counts["patient_id"] == 0
    assert all(counts["lesion_id"] == 0 for counts in lesion["leaks"][0].values())
    assert [one["images"] for one in image["sides"]] == [one["images"] for one in lesion["sides"]]


def test_a_run_says_first_that_it_is_no_result_and_has_no_model(climbed: Path, invoke: Invoke) -> None:
    (rung, *_) = [one for one in LADDER.read(climbed)["rungs"] if one["name"] == "image"]
    run = climbed / rung["runs"][0]
    assert not (run / "model").exists() and not (run / "checkpoints").exists()
    for file in ("metrics.json", "run.json"):
        assert json.loads((run / file).read_text())["warnings"][0].startswith(
            "A rung of a leak ladder, split by image"
        )
    assert "on purpose" in json.loads((run / "recipe.json").read_text())["about"]
    serious = [warning.text for warning in report_warnings(RunFolder(run)) if warning.level == "serious"]
    assert any("not the result of a model" in text for text in serious)
    assert any("The split leaks" in text for text in serious)
    (run / "model").mkdir()
    for folder in (run, run / "model"):  # also if somebody saved a model before it was removed
        with pytest.raises(UntrustedError, match="keeps no model"):
            check_model_folder(folder)
        with pytest.raises(UntrustedError, match="keeps no model"):
            find_source(folder)  # of an ensemble or a teacher
    (run / "model").rmdir()
    with pytest.raises(UsageError, match="whose figures are no result"):
        dk.compare_runs([run, climbed / rung["runs"][1]])
    code, _, message = invoke("predict", run, "x.png", "--out", climbed / "p")
    assert code == 6 and "rung of a leak ladder" in message


def test_the_page_and_the_table_hold_the_figures(climbed: Path) -> None:
    ladder, html = LADDER.read(climbed), (climbed / "ladder.html").read_text()
    table = pd.read_csv(climbed / "ladder.csv", keep_default_na=False)
    row = next(row for row in ladder["differences"] if row["metric"] == "accuracy")
    (cells,) = table[(table["kind"] == "difference") & (table["metric"] == "accuracy")].to_dict("records")
    assert float(cells["value"]) == row["value"] and float(cells["low"]) == row["ci95"][0]
    assert f"{row['value']:+.3f}" in html and html.count("Research use only. Not a medical device.") == 2
    assert "not applicable, no image has a known patient" in html and " src=" not in html and "http:" not in html


def test_a_ladder_that_was_stopped_goes_on_and_trains_nothing_twice(
    climbed: Path, leaking: Path, memory: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = LADDER.read(climbed)
    (image, *_) = before["rungs"]
    removed = climbed / image["runs"][1]
    (removed / "metrics.json").unlink()
    (removed / "predictions.csv").unlink()
    trained: list[Path] = []

    def count(plan: RunPlan, machine: Machine) -> Path:
        trained.extend([] if (plan.folder / "metrics.json").exists() else [plan.folder])
        return run_plan(plan, machine)

    monkeypatch.setattr(pipeline_ladder, "run_plan", count)
    climb(memory, leaking, climbed, repeats=4)
    assert trained == [removed] and LADDER.read(climbed) == before


def test_another_ladder_in_the_folder_is_refused(climbed: Path, leaking: Path, memory: Recipe) -> None:
    with pytest.raises(UsageError, match="holds the ladder of another recipe"):
        climb(replace(memory, seed=9), leaking, climbed)
    with pytest.raises(UsageError, match="spread over seeds needs two"):
        climb(memory, leaking, climbed, repeats=1)


def test_a_seed_without_a_split_is_refused_before_anything_is_trained(
    leaking: Path, memory: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []

    def refuse_second(*args: Any, seed: int, **options: Any) -> Any:
        if seed == memory.split.seed + 1:
            raise DataError("no training image of nevus", outcome="nothing was trained")
        return make_rungs(*args, seed=seed, **options)

    monkeypatch.setattr(pipeline_ladder, "make_rungs", refuse_second)
    monkeypatch.setattr(pipeline_ladder, "run_plan", lambda plan, _machine: trained.append(plan.folder))
    with pytest.raises(DataError, match="no training image"):
        climb(memory, leaking, tmp_path / "out")
    assert trained == []


def test_a_data_set_without_ids_has_no_ladder(invoke: Invoke, binary: Path, tmp_path: Path) -> None:
    code, _, message = invoke("ladder", "demo", binary, "--out", tmp_path / "out")
    assert (
        code == DataError.exit_code and "needs two rungs" in message and "no image has a known lesion" in message
    )


# The splits -------------------------------------------------------------------------------------------------------


def rows_of(n_patients: int = 60) -> pd.DataFrame:
    """Return a manifest of patients with two lesions of two photographs, in four sources."""
    rows = [
        {
            "image_id": f"{patient:03d}-{lesion}-{photo}", "label": ("nevus", "melanoma")[patient % 2],
            "lesion_id": f"L{patient}-{lesion}", "patient_id": f"P{patient}", "source": f"S{patient % 8 // 2}",
            "copy_group": "", "pixel_sha256": f"{patient}-{lesion}-{photo}", "given_split": "",
        }
        for patient in range(n_patients) for lesion in range(2) for photo in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_each_rung_leaks_what_it_does_not_keep_together() -> None:
    manifest = rows_of()
    assert [option.reason for option in rung_options(manifest)] == [""] * 4
    splits = make_rungs(manifest, ("image", "lesion", "patient", "source"), validation=0.15, test=0.2, seed=0)
    leaking = {
        name: {
            key: sum(counts[key] for counts in count_leaks(manifest, split.frame).values())
            for key in ("lesion_id", "patient_id", "source")
        }
        for name, split in splits.items()
    }
    assert leaking["image"]["lesion_id"] > 0 and leaking["lesion"] | {"source": 0} == {
        "lesion_id": 0,
        "patient_id": leaking["lesion"]["patient_id"],
        "source": 0,
    }
    assert leaking["lesion"]["patient_id"] > 0
    assert leaking["patient"]["patient_id"] == 0 < leaking["patient"]["source"]
    assert set(leaking["source"].values()) == {0}
    assert splits["image"].leaks["total"] > 0 == splits["patient"].leaks["total"]
    sizes = {name: split.frame["split"].value_counts().to_dict() for name, split in splits.items()}
    assert sizes["image"] == sizes["lesion"] == sizes["patient"]


def test_copies_stay_together_in_every_rung() -> None:
    manifest = rows_of().assign(copy_group=lambda rows: rows["lesion_id"].str[-1].where(rows.index < 8, ""))
    splits = make_rungs(manifest, ("image", "patient"), validation=0.15, test=0.2, seed=1)
    sides = manifest.merge(splits["image"].frame, on="image_id").query("copy_group != ''")
    assert sides.groupby("copy_group")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    ("changes", "rung", "reason"),
    [
        ({"patient_id": ""}, "patient", "no image has a known patient"),
        ({"source": "S"}, "source", "all images are of one source"),
        ({"source": "unknown"}, "source", "no image has a known source"),
    ],
)
def test_a_rung_that_does_not_apply_says_why(changes: dict[str, str], rung: str, reason: str) -> None:
    reasons = {str(option.name): option.reason for option in rung_options(rows_of().assign(**changes))}
    assert reason in reasons[rung]


def test_a_rung_that_is_as_another_does_not_apply() -> None:
    manifest = rows_of().assign(lesion_id=lambda rows: rows["image_id"])
    reasons = {option.name: option.reason for option in rung_options(manifest)}
    assert "no lesion links images" in reasons["lesion"] and not reasons["patient"]


# The intervals ----------------------------------------------------------------------------------------------------


def scored(correct: np.ndarray, groups: np.ndarray) -> RungRun:
    """Return a run of a rung. correct: (N,) whether an image is right; groups: (N,) of the pool."""
    y_true = np.arange(len(correct)) % 2
    y_pred = np.where(correct, y_true, 1 - y_true)
    p = np.where(y_pred == 1, 0.9, 0.1)
    local = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    one = ScoredSet(("a", "b"), np.array([False, True]), y_true, y_pred, np.stack([1 - p, p], axis=1), local)
    return RungRun(one, groups)


def test_the_variance_of_a_difference_is_that_of_the_images_of_both_rungs() -> None:
    """Two rungs on separate halves of a pool: the standard error is the root of the sum of both variances."""
    rng, n = np.random.default_rng(0), 400
    correct = {"image": rng.random(n) < 0.9, "lesion": rng.random(n) < 0.7}
    runs = {name: [scored(flags, np.arange(n) + n * (name == "lesion"))] * 2 for name, flags in correct.items()}
    samples = resample_rungs(runs, n_pool_groups=2 * n, seed=0)
    estimate = rung_difference(samples["image"], samples["lesion"], ("accuracy", ""))
    p, q = correct["image"].mean(), correct["lesion"].mean()
    assert estimate.ci95 is not None and estimate.value == pytest.approx(p - q)
    expected = np.sqrt(p * (1 - p) / n + q * (1 - q) / n)
    assert (estimate.ci95[1] - estimate.ci95[0]) / 2 == pytest.approx(1.97 * expected, rel=0.08)


def test_images_that_two_rungs_share_cancel() -> None:
    rng, n = np.random.default_rng(1), 300
    flags = rng.random(n) < 0.8
    runs = {"image": [scored(flags, np.arange(n))] * 2, "lesion": [scored(flags, np.arange(n))] * 2}
    samples = resample_rungs(runs, n_pool_groups=n, seed=0)
    estimate = rung_difference(samples["image"], samples["lesion"], ("accuracy", ""))
    assert estimate.value == 0 and estimate.ci95 is None and "no spread" in estimate.reason
    assert rung_estimate(samples["image"], ("accuracy", "")).ci95 is not None


@pytest.mark.slow
def test_the_interval_holds_the_true_difference_nineteen_times_of_twenty() -> None:
    """Pools of clustered images, rungs and repeats that share some: at least 93 % of 400 intervals hold the truth."""
    rng, n_groups, n_in, held = np.random.default_rng(2), 150, 3, 0
    for trial in range(400):
        hardness = rng.normal(0, 1, n_groups)
        shifts = {name: rng.normal(0, 0.15, 3) for name in ("image", "lesion")}
        runs: dict[str, list[RungRun]] = {}
        for name, base in (("image", 1.2), ("lesion", 0.8)):
            runs[name] = []
            for shift in shifts[name]:
                groups = np.repeat(rng.permutation(n_groups)[:60], n_in)
                chance = 1 / (1 + np.exp(-(base + shift + hardness[groups])))
                runs[name].append(scored(rng.random(len(groups)) < chance, groups))
        samples = resample_rungs(runs, n_pool_groups=n_groups, seed=trial, resamples=300)
        low, high = rung_difference(samples["image"], samples["lesion"], ("accuracy", "")).ci95 or (0, 0)
        draws = rng.normal(0, np.hypot(1, 0.15), 200_000)
        truth = float((1 / (1 + np.exp(-(1.2 + draws)))).mean() - (1 / (1 + np.exp(-(0.8 + draws)))).mean())
        held += low <= truth <= high
    assert held >= 0.93 * 400
