"""The main job from images to report: every named recipe, splits, grids, replay, and other people's data."""

import html
import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from conftest import Invoke, before_format_5
from dermkit.comparison.compare import compare_runs
from dermkit.data.diagnoses import classify_label
from dermkit.errors import DataError, UsageError
from dermkit.files import write_json
from dermkit.models.checksums import write_checksums
from dermkit.models.net import Net, build_net, freeze, preprocessing_for
from dermkit.models.weights import resolve_weights
from dermkit.prediction.load import load_model
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.experiments import (
    GIVEN_SPLIT,
    GIVEN_SPLIT_AS_PUBLISHED,
    GRIDS,
    RECIPES,
    ROTATE_FLIP_ZOOM,
    find_grid,
    find_recipe,
    full_phase,
    head_phase,
    make_grid,
)
from dermkit.recipes.schema import (
    ModelSpec,
    OversampleSpec,
    Recipe,
    load_recipe,
    parse_recipe,
    recipe_to_dict,
    save_recipe,
)
from dermkit.recipes.training_specs import Phase
from dermkit.reporting.comparison_page import write_comparison_tables

MODEL = Path("model") / "member-0.safetensors"
EVERY = {**RECIPES, **{item.name: item for members in GRIDS.values() for item in members}}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def train(recipe: Recipe, data: Path, out: Path, **more: Any) -> Path:
    where = dk.RunSettings(out=out, device="cpu")
    return dk.train(recipe, dk.load_dataset(data), settings=where, **more)


# Named recipes --------------------------------------------------------------------------------------------------------


def test_all_five_systems_are_there() -> None:
    systems = {recipe.system for recipe in RECIPES.values()}
    assert systems == {"S0", "S1", "S2", "S3", "S4", "demo", "any"}
    assert {members[0].system for members in GRIDS.values()} == {"S0", "S2"}
    assert find_recipe("s3-resnet50").repeats == 6
    assert find_recipe("s3-resnet50").split.per_class == 584
    published = find_recipe("s2-resnet50")
    assert (published.image.size, published.image.normalise, published.phases) == (
        128,
        "zero_one",
        (head_phase(10),),
    )
    assert find_recipe("s4-cnn").grow is not None
    for members in GRIDS.values():
        assert len({recipe.name for recipe in members}) == len(members) > 3
        assert len({(recipe.split, recipe.image, recipe.monitor, recipe.seed) for recipe in members}) == 1


@pytest.mark.parametrize("name", list(EVERY))
def test_a_named_recipe_is_valid_and_survives_json(name: str, tmp_path: Path) -> None:
    recipe = EVERY[name]
    assert recipe.name == name
    assert parse_recipe(recipe_to_dict(recipe), name) == recipe
    save_recipe(recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    assert name in RECIPES or recipe in find_grid(next(k for k, items in GRIDS.items() if recipe in items))


@cache
def net_of(backbone: str, arguments: tuple[tuple[str, Any], ...], skip: tuple[str, ...]) -> Net:
    """Build each backbone once: its head is a matter of milliseconds."""
    spec = ModelSpec(
        backbone=backbone,
        backbone_args=dict(arguments),
        weights="none",
        skip_blocks=skip,
        hidden=(),
        dropout=0.0,
        drop_path=0.0,
        classifier=None,
        metadata=None,
    )
    return build_net(spec, 2, weights=resolve_weights(spec, None), seed=0)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_named_recipe_builds_its_net_and_its_phases_fit_it(name: str) -> None:
    recipe = RECIPES[name]
    model = recipe.model
    net = net_of(model.backbone, tuple(model.backbone_args.items()), model.skip_blocks)
    for phase in recipe.phases:
        freeze(net, phase)
        learns = any(parameter.requires_grad for parameter in net.backbone.parameters())
        assert learns == (phase.train_backbone != "none")
    bare = replace(model, weights="none")
    preprocessing = preprocessing_for(recipe.image, resolve_weights(bare, None))
    assert preprocessing.size == recipe.image.size
    assert (preprocessing.mean == (0.0, 0.0, 0.0)) == (recipe.image.normalise == "zero_one")


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("name", ["s1-cnn", "s2-finetuned-mobilenetv2", "s4-cnn", "demo"])
def test_the_classes_are_those_of_the_data(name: str, classes: int) -> None:
    import torch

    spec = replace(RECIPES[name].model, weights="none")
    net = build_net(spec, classes, weights=resolve_weights(spec, None), seed=0).eval()
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, classes)


# The five systems, small ----------------------------------------------------------------------------------------------


def shorter(phase: Phase) -> Phase:
    return replace(phase, epochs=1, views=min(phase.views, 2), patience=0)


def reduced(name: str, size: int, **changes: Any) -> Recipe:
    """Return a named recipe that runs in seconds: one epoch a phase, small images, random weights."""
    recipe = RECIPES[name]
    return replace(
        recipe,
        image=replace(recipe.image, size=size),
        model=replace(recipe.model, weights="none"),
        phases=tuple(map(shorter, recipe.phases)),
        optim=replace(recipe.optim, batch_size=16),
        **changes,
    )


SYSTEMS: dict[str, tuple[Recipe, str]] = {
    "S0 InceptionV3": (reduced("s0-inception-v3", 80), "binary"),
    "S0 ResNet50": (reduced("s0-resnet50", 32), "binary"),
    "S0 on frozen features": (reduced("s0-inception-v3-mixed7a", 80), "binary"),
    "S1": (reduced("s1-cnn", 32), "binary"),
    "S2 as published": (reduced("s2-resnet50-mobilenetv2", 32), "nine"),
    "S2 improved": (reduced("s2-finetuned-mobilenetv2", 32), "nine"),
    "S3": (
        reduced("s3-resnet50", 32, repeats=2, split=replace(RECIPES["s3-resnet50"].split, per_class=14)),
        "binary",
    ),
    "S4": (reduced("s4-cnn", 32), "nine"),
}


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_a_system_runs_from_import_to_report(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    recipe, wanted = SYSTEMS[name]
    data: Path = request.getfixturevalue(wanted)
    folder = train(recipe, data, tmp_path)
    runs = [path.parent for path in folder.glob("*/run.json")] if recipe.repeats > 1 else [folder]
    assert len(runs) == recipe.repeats
    classes = len(dk.load_dataset(data).classes)
    for run in runs:
        metrics = read(run / "metrics.json")
        for split in ("validation", "test"):
            figures = metrics["splits"][split]["metrics"]
            for metric in ("loss", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc_macro"):
                assert metric in figures
            assert figures["accuracy"]["n"] > 0
            assert len(figures["accuracy"]["ci95"]) == 2
            assert np.shape(metrics["splits"][split]["confusion_matrix"]) == (classes, classes)
        assert len(pd.read_csv(run / "log.csv")) == len(recipe.phases)
        assert read(run / "run.json")["weights"]["note"] == "trained from scratch"
    text = (folder / "report.html").read_text()
    assert "Research use only. Not a medical device." in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_balance_leaves_a_reason_for_every_image_not_used(binary: Path, tiny: Recipe, tmp_path: Path) -> None:
    spec = replace(RECIPES["s3-resnet50"].split, per_class=12)
    run = train(replace(tiny, split=spec), binary, tmp_path)
    manifest = dk.load_dataset(binary).manifest.set_index("image_id")
    split = pd.read_csv(run / "split.csv", dtype=str)
    assert manifest.loc[split["image_id"], "label"].value_counts().to_dict() == {"benign": 12, "malignant": 12}
    assert set(manifest.loc[split["image_id"], "given_split"]) == {"train"}
    excluded = pd.read_csv(run / "excluded.csv")
    assert len(excluded) + len(split) == len(manifest)
    assert set(excluded["reason"]) == {"not in draw_from=train", "balance: not drawn (12 per class wanted)"}


def test_leaks_are_removed_or_stamped_as_the_scheme_says(nine: Path, tiny: Recipe, tmp_path: Path) -> None:
    clean = train(replace(tiny, name="clean", split=GIVEN_SPLIT), nine, tmp_path)
    leaky = train(replace(tiny, name="leaky", split=GIVEN_SPLIT_AS_PUBLISHED), nine, tmp_path)
    removed = pd.read_csv(clean / "excluded.csv")
    assert len(removed) == 2
    assert removed["reason"].str.startswith("same pixels as test image").all()
    assert read(clean / "metrics.json")["leaks"]["total"] == 0
    assert read(leaky / "metrics.json")["leaks"]["total"] == 2
    assert read(leaky / "metrics.json")["leaks"]["identical_pixels"] == 2
    assert any("the split leaks: 2 of" in line for line in read(leaky / "metrics.json")["warnings"])
    words = "The split leaks (scheme given-as-published): 2 of 20 test images"
    assert words in (leaky / "report.html").read_text()
    assert "The split leaks" not in (clean / "report.html").read_text()
    sides = [pd.read_csv(run / "split.csv") for run in (clean, leaky)]
    tests = [set(side.loc[side["split"] == "test", "image_id"]) for side in sides]
    assert tests[0] == tests[1], "the published test folder stays whole"
    # What leaks is allowed for where the run says so: its own split file repeats it.
    again = train(load_recipe(leaky / "recipe.json"), nine, tmp_path / "again", split=str(leaky / "split.csv"))
    assert (again / MODEL).read_bytes() == (leaky / MODEL).read_bytes()
    assert again.name == leaky.name


def test_growth_changes_training_and_nothing_else(seven: Path, tiny: Recipe, tmp_path: Path) -> None:
    plain = replace(tiny, name="plain", augment=NO_AUGMENTATION, phases=(full_phase(1, lr=1e-2),))
    grow = OversampleSpec(target_fraction=1.0, max_copies=8, augment=ROTATE_FLIP_ZOOM)
    runs = [train(recipe, seven, tmp_path) for recipe in (plain, replace(plain, name="grown", grow=grow))]
    one, two = (pd.read_csv(run / "split.csv") for run in runs)
    pd.testing.assert_frame_equal(one, two)
    assert (runs[0] / MODEL).read_bytes() != (runs[1] / MODEL).read_bytes()
    counts = [read(run / "run.json")["split"] for run in runs]
    assert counts[0] == counts[1]
    ids = [pd.read_csv(run / "predictions.csv")["image_id"].tolist() for run in runs]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])


# Splits, seeds, replay ------------------------------------------------------------------------------------------------


def test_the_same_run_twice_gives_the_same_bytes_and_its_files_repeat_it(
    trained: Path, binary: Path, tiny: Recipe, tmp_path: Path
) -> None:
    twice = train(tiny, binary, tmp_path / "twice")
    recipe = load_recipe(trained / "recipe.json")
    assert recipe == tiny
    replayed = train(recipe, binary, tmp_path / "again", split=str(trained / "split.csv"))
    for run in (twice, replayed):
        assert run.name == trained.name, "the same experiment has the same name"
        for name in (MODEL, Path("predictions.csv"), Path("metrics.json"), Path("split.csv")):
            assert (run / name).read_bytes() == (trained / name).read_bytes()
    other = train(tiny, binary, tmp_path / "twice", seed=5)
    assert other.name.endswith("-s5")
    assert (other / MODEL).read_bytes() != (trained / MODEL).read_bytes()
    assert read(other / "run.json")["seed"] == load_recipe(other / "recipe.json").seed == 5
    assert (other / "split.csv").read_bytes() == (trained / "split.csv").read_bytes(), "a seed moves no image"


def test_the_next_steps_are_commands_that_work(
    trained: Path, binary: Path, invoke: Invoke, tmp_path: Path
) -> None:
    lines = (trained / "NEXT_STEPS.txt").read_text().splitlines()
    (command,) = (line.split() for line in lines if line.startswith("  dermkit train "))
    words = [str(binary) if word == "DATASET" else word for word in command[1:]]
    words[words.index("--out") + 1] = str(tmp_path)
    code, out, messages = invoke(*words)
    assert code == 0, messages
    run = tmp_path / "tiny" / trained.name
    assert str(run / "report.html") in out
    assert (run / MODEL).read_bytes() == (trained / MODEL).read_bytes()


def test_a_split_is_used_by_name_or_by_file(binary: Path, tiny: Recipe, tmp_path: Path, invoke: Invoke) -> None:
    data = Path(shutil.copytree(binary, tmp_path / "data", ignore=shutil.ignore_patterns("splits")))
    code, out, _ = invoke("split", data, "--scheme", "given", "--name", "mine", "--validation", "0.3", "--seed", 3)
    assert code == 0
    assert out.splitlines()[-1] == str(data / "splits" / "mine.csv")
    save_recipe(tiny, tmp_path / "tiny.json")
    for split in ("mine", data / "splits" / "mine.csv"):
        out_folder = tmp_path / f"runs-{len(str(split))}"
        words = ("train", tmp_path / "tiny.json", data, "--split", split, "--out", out_folder, "--seed", "2")
        code, _, messages = invoke(*words, "--device", "cpu")
        assert code == 0, messages
        (run,) = (out_folder / "tiny").iterdir()
        assert run.name.endswith("-s2")
        sides = pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)
        pd.testing.assert_frame_equal(
            sides, pd.read_csv(data / "splits" / "mine.csv", dtype=str, keep_default_na=False)
        )
        assert read(run / "run.json")["split"]["scheme"] == "given"
    with pytest.raises(UsageError, match="no such split") as caught:
        train(tiny, data, tmp_path, split="min")
    assert "mine" in caught.value.remedy


def test_a_test_side_that_lacks_a_class_is_evaluated_with_nulls(nine: Path, tiny: Recipe, tmp_path: Path) -> None:
    manifest = dk.load_dataset(nine).manifest
    held = manifest["given_split"] == "test"
    malignant = manifest["label"].isin(["melanoma", "basal cell carcinoma", "squamous cell carcinoma"])
    sides = np.where(np.arange(len(manifest)) % 4 == 0, "validation", "train")
    frame = manifest.assign(split=np.where(held, "test", sides))[~(held & malignant)]
    twin = frame.groupby("pixel_sha256")["split"].transform("nunique") > 1
    frame[~twin | (frame["split"] == "test")][["image_id", "split"]].to_csv(tmp_path / "mine.csv", index=False)
    run = train(tiny, nine, tmp_path, split=str(tmp_path / "mine.csv"))
    test = read(run / "metrics.json")["splits"]["test"]
    for body in (test["metrics"]["sensitivity"], test["per_class"]["melanoma"]["recall"]):
        assert body["value"] is None
        assert body["reason"]
    assert test["metrics"]["specificity"]["value"] is not None
    assert read(run / "run.json")["split"]["scheme"] == "file"
    assert (run / "report.html").is_file()


# Tuning ---------------------------------------------------------------------------------------------------------------


def test_a_grid_is_decided_on_validation_and_its_trials_never_see_the_test_side(
    binary: Path, tiny: Recipe, tmp_path: Path
) -> None:
    base = replace(tiny, name="grid", monitor="val_auroc_macro", phases=(full_phase(1, lr=1e-3),))
    members = make_grid(base, learning_rates=(1e-2, 1e-4), dropouts=(0.0, 0.5))
    data, where = dk.load_dataset(binary), dk.RunSettings(out=tmp_path, device="cpu")
    final = dk.tune(members, data, name="small", settings=where)
    trials = sorted((tmp_path / "small" / "trials").glob("*/*/metrics.json"))
    assert len(trials) == len(members) == 4
    for path in trials:
        assert list(read(path)["splits"]) == ["validation"]
        assert set(pd.read_csv(path.parent / "predictions.csv")["split"]) == {"validation"}
        assert not (path.parent / "report.html").exists()
    table = pd.read_csv(tmp_path / "small" / "tune.csv")
    assert table["recipe"].tolist() == [recipe.name for recipe in members]
    for name, value in zip(table["recipe"], table["val_auroc_macro"], strict=True):
        (path,) = (tmp_path / "small" / "trials" / name).glob("*/metrics.json")
        assert read(path)["splits"]["validation"]["metrics"]["auroc_macro"]["value"] == value
    best = table["recipe"].iloc[int(table["val_auroc_macro"].argmax())]
    assert table.loc[table["is_best"], "recipe"].tolist() == [best]
    assert read(tmp_path / "small" / "tune.json")["best_recipe"] == best == final.parent.name
    assert set(read(final / "metrics.json")["splits"]) == {"validation", "test"}
    trial = tmp_path / "small" / "trials" / best / final.name
    assert (trial / MODEL).read_bytes() == (final / MODEL).read_bytes()


# Again, and on other data ---------------------------------------------------------------------------------------------


def test_evaluated_again_the_figures_are_the_same(trained: Path, tmp_path: Path, invoke: Invoke) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "metrics.json").unlink()
    code, out, messages = invoke("evaluate", run)
    assert code == 0, messages
    assert out.splitlines()[-1] == str(run / "report.html")
    assert (run / "metrics.json").read_bytes() == (trained / "metrics.json").read_bytes()
    (run / "report.html").unlink()
    code, out, _ = invoke("report", run)
    assert (code, out.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").stat().st_size > 20_000


def test_what_is_no_run_is_a_usage_error(trained: Path, binary: Path, tmp_path: Path) -> None:
    for call in (dk.evaluate, dk.report):
        with pytest.raises(UsageError, match="not a run folder"):
            call(tmp_path)
    with pytest.raises(UsageError, match="--map goes with --on"):
        dk.evaluate(trained, mapping=tmp_path / "map.json")


def test_the_report_of_a_run_whose_images_are_gone_still_comes(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    write_json(run / "location.json", {"images": str(tmp_path / "gone")}, format=1)
    assert dk.report(run).stat().st_size > 20_000


def test_two_classes_are_tested_on_seven(trained: Path, seven: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, out, messages = invoke("evaluate", trained, "--on", seven, "--out", tmp_path / "on")
    assert code == 0, messages
    folder = tmp_path / "on"
    assert out.splitlines()[-1] == str(folder / "report.html")
    manifest = dk.load_dataset(seven).manifest
    labels = dict(zip(manifest["image_id"], manifest["label"], strict=True))
    metrics, predictions = read(folder / "metrics.json"), pd.read_csv(folder / "predictions.csv")
    assert metrics["classes"] == ["benign", "malignant"]
    assert metrics["unmapped"] == {"akiec": list(labels.values()).count("akiec")}
    assert len(predictions) + metrics["unmapped"]["akiec"] == len(labels)
    assert pd.read_csv(folder / "unmapped.csv")["label"].tolist() == ["akiec"] * metrics["unmapped"]["akiec"]
    for image_id, label in zip(predictions["image_id"], predictions["label"], strict=True):
        assert label == classify_label(labels[image_id]).malignancy
    assert metrics["overlap"]["same_pixels"] == 0
    report = (folder / "report.html").read_text()
    assert "images are not scored: their labels map to no class" in report
    assert "Overlap cannot be ruled out" in report


def test_nine_classes_are_tested_on_two_with_a_map(
    nine: Path, binary: Path, tiny: Recipe, tmp_path: Path, invoke: Invoke
) -> None:
    run = train(replace(tiny, split=GIVEN_SPLIT, phases=(full_phase(1, lr=1e-3),)), nine, tmp_path)
    names = dk.load_dataset(nine).class_names
    bad = {"melanoma", "basal cell carcinoma", "squamous cell carcinoma", "actinic keratosis"}
    model = {name: "malignant" if name in bad else "benign" for name in names}
    path = tmp_path / "classes.json"
    write_json(path, {"classes": {"benign": "benign", "malignant": "malignant"}, "model": model}, format=1)
    code, out, messages = invoke("evaluate", run, "--on", binary, "--map", path)
    assert code == 0, messages
    folder = Path(out.splitlines()[-1]).parent
    assert folder.parent == run / "external"
    metrics = read(folder / "metrics.json")
    assert metrics["classes"] == ["malignant", "benign"], "in the order in which the map first names them"
    assert metrics["splits"]["test"]["n"] == len(dk.load_dataset(binary).manifest)
    assert metrics["unmapped"] == {}
    frame = pd.read_csv(folder / "predictions.csv")
    np.testing.assert_allclose(frame["p_benign"] + frame["p_malignant"], 1.0, atol=1e-12)
    write_json(path, {"classes": {"benign": "benign"}, "model": model}, format=1)
    code, _, messages = invoke("evaluate", run, "--on", binary, "--map", path)
    assert code == 3
    assert "'malignant' is not mentioned" in messages
    assert str(path) in messages


def test_images_that_training_looked_at_count_in_no_test_figure(
    trained: Path, binary: Path, tmp_path: Path
) -> None:
    report = dk.evaluate(trained / "model", dataset=dk.load_dataset(binary), out=tmp_path / "same")
    split = pd.read_csv(trained / "split.csv")
    known = int((split["split"] != "test").sum())
    metrics = read(report.parent / "metrics.json")
    assert metrics["overlap"]["same_pixels"] == known
    assert (metrics["overlap"]["seen_images"], metrics["overlap"]["same_group"]) == (known, 0)
    sizes = {name: part["n"] for name, part in metrics["splits"].items()}
    assert sizes == {"test": len(split) - known, "seen_in_training": known}
    predictions = pd.read_csv(report.parent / "predictions.csv").set_index("image_id")["split"]
    learned = set(split.loc[split["split"] != "test", "image_id"])
    assert set(predictions.index[predictions == "seen_in_training"]) == learned
    assert (
        metrics["splits"]["test"]["metrics"]["accuracy"]
        == (read(trained / "metrics.json")["splits"]["test"]["metrics"]["accuracy"])
    ), "the figure of the run's own test images"
    page = report.read_text()
    assert f"Not external: {known} of {len(split)} images were looked at in training" in page
    assert "They count in no test figure and stand beside as `seen_in_training`." in page
    assert page.index("(they are left out of the test figures)") < page.index("Warnings (")


def test_the_model_folder_holds_what_validation_settled(trained: Path, binary: Path, tmp_path: Path) -> None:
    decision, card = read(trained / "policy.json"), read(trained / "model" / "model.json")
    assert card["format"] == 9
    for name in ("calibration", "operating_points", "conformal"):
        assert card[name] == decision[name]
    text = (trained / "model" / "MODEL_CARD.md").read_text()
    assert ("log probabilities divided by" in text) == (decision["calibration"]["kind"] != "none")
    report = dk.evaluate(trained / "model", dataset=dk.load_dataset(binary), out=tmp_path / "same")
    told = read(report.parent / "metrics.json")
    assert told["policy"]["calibration"] == decision["calibration"]
    assert "policy" in told["splits"]["test"]


def test_a_model_of_the_first_format_is_still_read(trained: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    card = before_format_5(read(model / "model.json"))
    older = {name: value for name, value in card.items() if name not in ("conformal", "n_validation_images")}
    older |= {"format": 1, "calibration": {"method": "none", "temperature": 1.0}, "operating_points": []}
    write_json(model / "model.json", {k: v for k, v in older.items() if k != "format"}, format=1)
    write_checksums(model)
    assert load_model(model).card["conformal"] is None


# Comparison -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(trained: Path, tmp_path: Path) -> list[Path]:
    """Return two runs of one name in two places."""
    return [trained, Path(shutil.copytree(trained, tmp_path / "other" / trained.parent.name / trained.name))]


def test_runs_are_set_side_by_side(pair: list[Path], invoke: Invoke, tmp_path: Path) -> None:
    comparison = compare_runs(pair)
    assert comparison.same_images == {"test": True, "validation": True}
    assert comparison.table["run"].nunique() == 2, "two folders of one name stay two runs"
    wide = comparison.wide_table(("accuracy", "nonsense"), split="test")
    assert len(set(wide["accuracy"])) == 1
    assert set(wide["nonsense"]) == {"not reported"}
    assert pd.read_csv(write_comparison_tables(comparison, tmp_path / "tables"))["metric"].nunique() > 5
    code, out, _ = invoke("compare", *pair, "--out", tmp_path / "comparison")
    assert code == 0
    assert "test (the same 12 images)" in out
    assert "not distinguishable on" in out
    assert out.strip().endswith(str(tmp_path / "comparison" / "comparison.html"))


def test_the_page_and_the_tables_say_what_the_pairs_found(pair: list[Path], tmp_path: Path) -> None:
    """Half of the second run's test answers are turned: it must lose, and its images must be listed."""
    path = pair[1] / "predictions.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    columns = [str(name) for name in frame if str(name).startswith("p_")]
    turned = frame.index[(frame["split"] == "test") & (frame["label"] == frame["predicted"])]
    frame.loc[turned, columns] = frame.loc[turned, columns[::-1]].to_numpy()
    names = [name.removeprefix("p_") for name in columns]
    other = dict(zip(names, names[::-1], strict=True))
    frame.loc[turned, "predicted"] = frame.loc[turned, "predicted"].map(other)
    frame.to_csv(path, index=False)
    dk.evaluate(pair[1])
    outcome = dk.compare(pair, claim_texts=["S2: accuracy=.4661,n=118"], out=tmp_path / "out")
    body = read(tmp_path / "out" / "comparison.json")
    figures = next(item for item in body["pairs"] if item["split"] == "test")["metrics"]
    accuracy = figures["accuracy"]
    assert accuracy["discordant_counts"] == [len(turned), 0]
    assert accuracy["is_significant"] == (accuracy["p_holm"] <= 0.05)
    assert accuracy["value"] == pytest.approx(len(turned) / accuracy["n"])
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert outcome.page.read_text() == page
    assert "Research use only. Not a medical device." in page
    assert accuracy["verdict"] in html.unescape(page)
    assert "37.9 to 55.6 %" in page
    stored = re.findall(r'data-metric="test.accuracy" data-value="([^"]+)"', page)
    runs = [item["test"]["accuracy"]["value"] for item in body["runs"].values()]
    assert sorted(map(float, stored)) == sorted([*runs, accuracy["value"]])
    listed = pd.read_csv(tmp_path / "out" / "disagreements_test.csv", dtype=str)
    assert set(listed["image_id"]) == set(frame.loc[turned, "image_id"])
    rows = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert set(rows["metric"]) >= {"accuracy", "auroc", "loss"}


def test_published_figures_need_no_run(invoke: Invoke, tmp_path: Path) -> None:
    claim = "S3: accuracy=.74,precision=.76,recall=.71,specificity=.75"
    code, out, _ = invoke("compare", "--published", claim, "--out", tmp_path / "one")
    assert code == 0
    assert "no single confusion matrix" in out
    assert read(tmp_path / "one" / "comparison.json")["published"][0]["is_consistent"] is False
    code, _, err = invoke("compare", "--published", "auc=.9", "--out", tmp_path / "two")
    assert code == 2 and "not a figure" in err
    code, _, err = invoke("compare", "--out", tmp_path / "two")
    assert code == 2 and "nothing to compare" in err
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "mine.txt").write_text("x")
    code, _, err = invoke("compare", "--published", claim, "--out", tmp_path / "three")
    assert code == 2 and "mine.txt" in err


def test_other_test_images_are_told(pair: list[Path], invoke: Invoke, tmp_path: Path) -> None:
    path = pair[1] / "predictions.csv"
    frame = pd.read_csv(path, dtype=str)
    frame.drop(index=frame.index[frame["split"] == "test"][:1]).to_csv(path, index=False)
    found = compare_runs(pair)
    assert found.same_images == {"test": False, "validation": True}
    whole = int((frame["split"] == "test").sum())
    assert {item.split: item.n for item in found.pairs}["test"] == whole - 1, "on the images that both scored"
    _, out, _ = invoke("compare", *pair, "--out", tmp_path / "comparison")
    assert f"test (NOT the same images: {whole - 1} images were scored by both, of {whole}, {whole - 1}." in out
    page = (tmp_path / "comparison" / "comparison.html").read_text()
    assert f"{whole - 1} images were scored by both" in page and "not comparable" not in page


def test_what_cannot_be_compared_is_refused(pair: list[Path], tmp_path: Path) -> None:
    for runs in ([pair[0]], [pair[0], pair[0]]):
        with pytest.raises(UsageError, match="two different runs"):
            compare_runs(runs)
    with pytest.raises(DataError, match=r"metrics\.json"):
        compare_runs([pair[0], tmp_path])
    (pair[1] / "predictions.csv").unlink()
    with pytest.raises(DataError, match=r"predictions\.csv"):
        compare_runs(pair)


# What must change a run's name -------------------------------------------------------------------------


def test_another_class_table_is_another_run(binary: Path, tiny: Recipe, tmp_path: Path) -> None:
    """A finished run of the old table must not be served for the new one."""
    first = train(tiny, binary, tmp_path / "runs")
    swapped = tmp_path / "swapped"
    shutil.copytree(binary, swapped)
    table = read(swapped / "dataset.json")
    for item in table["classes"]:
        item["malignancy"] = {"benign": "malignant", "malignant": "benign"}.get(item["malignancy"], "malignant")
    (swapped / "dataset.json").write_text(json.dumps(table))
    second = train(tiny, swapped, tmp_path / "runs")
    assert first.name != second.name
    assert read(first / "metrics.json")["positive"] != read(second / "metrics.json")["positive"]


def test_a_recipe_file_says_the_split_that_was_used(binary: Path, tiny: Recipe, tmp_path: Path) -> None:
    """Replayed without --split, it divides the data as the run did."""
    other = replace(tiny.split, seed=tiny.split.seed + 1, validation=0.3)
    dk.split(dk.load_dataset(binary), other, name="other")
    first = train(tiny, binary, tmp_path / "runs", split="other")
    assert load_recipe(first / "recipe.json").split == other
    again = train(load_recipe(first / "recipe.json"), binary, tmp_path / "again")
    assert (again / MODEL).read_bytes() == (first / MODEL).read_bytes()
    assert again.name == first.name


def test_two_data_sets_of_the_same_files_are_the_same_images(binary: Path, tiny: Recipe, tmp_path: Path) -> None:
    """Files that differ are not: `test_comparison_sentences.py`."""
    twin = tmp_path / "twin"
    shutil.copytree(binary, twin)
    frame = pd.read_csv(twin / "manifest.csv", dtype=str, keep_default_na=False)
    frame["age"] = "50"
    frame.to_csv(twin / "manifest.csv", index=False)
    runs = [train(tiny, data, tmp_path / data.name) for data in (binary, twin)]
    found = compare_runs(runs)
    assert found.same_images == {"test": True, "validation": True}
    assert any("different" in note or "several data sets" in note for note in found.notes)


def test_unnamed_images_on_either_side_leave_overlap_open(trained: Path, seven: Path, tmp_path: Path) -> None:
    """Whoever lacks the ids: a count of none is no proof."""
    data = dk.load_dataset(seven)
    nameless = replace(data, manifest=data.manifest.assign(isic_id=""))
    dk.evaluate(trained, dataset=nameless, out=tmp_path / "out")
    assert any("cannot be ruled out" in text for text in read(tmp_path / "out" / "run.json")["warnings"])


def test_an_absent_validation_class_still_leaves_a_choice(trained: Path, tmp_path: Path) -> None:
    from dermkit.pipeline.validation_values import validation_value

    shutil.copytree(trained, tmp_path / "run")
    body = read(tmp_path / "run" / "metrics.json")
    body["splits"]["validation"]["metrics"]["balanced_accuracy"]["value"] = None
    body["splits"]["validation"]["metrics"]["recall_macro_present"]["value"] = 0.625
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(body))
    assert validation_value(tmp_path / "run", "val_balanced_accuracy") == 0.625
