"""`dermkit update` with small nets: a registry, a decision, a record; what cannot be used is refused first."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.data.manifest import save_dataset
from dermkit.data.seal import read_seals
from dermkit.data.synthetic.dataset import make_dataset_folder
from dermkit.errors import DataError, RunInterrupt, UntrustedError, UsageError
from dermkit.pipeline import update as update_module
from dermkit.pipeline.update import UpdateOptions, UpdateOutcome, update
from dermkit.pipeline.update_champion import Champion, find_champion
from dermkit.pipeline.update_data import LIMITS_NOTE, NewSplitOptions, join_data
from dermkit.pipeline.update_data import _copy_groups as copy_groups_of
from dermkit.prediction.load import load_model
from dermkit.recipes.schema import Recipe
from dermkit.runs.layout import UPDATE
from dermkit.runs.registry import read_registry, roll_back

WIDE = UpdateOptions(margin=0.45, sensitivity_margin=0.49, new_split=NewSplitOptions(test=0.5))
"""Margins that a small net on a small test can pass: what is tested here is the way, not the figures."""


def make_data(folder: Path, seed: int, n: int = 72) -> Path:
    make_dataset_folder(
        folder / "images",
        lesions_per_class={"benign": n, "malignant": n},
        photos_per_lesion=(1, 1),
        size=32,
        seed=seed,
    )
    return dk.import_dataset("folder", folder / "images", out=folder / "data").dataset.folder


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("old"), 1)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("new"), 2)


@pytest.fixture(scope="module")
def recipe(tiny: Recipe) -> Recipe:
    split = replace(tiny.split, scheme="holdout", validation=0.15, test=0.45, folds=0, per_class=0, draw_from="")
    return replace(tiny, name="champion", split=split)


@pytest.fixture(scope="module")
def champion(old: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = dk.RunSettings(out=tmp_path_factory.mktemp("runs"), device="cpu", heat_maps=False)
    return dk.train(recipe, dk.load_dataset(old), settings=settings)


def run_update(model: Path, new: Path, registry: Path, options: UpdateOptions = WIDE) -> UpdateOutcome:
    settings = dk.RunSettings(device="cpu", heat_maps=False)
    return update(model, dk.load_dataset(new), registry=registry, options=options, settings=settings)


@pytest.fixture(scope="module")
def promoted(champion: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> UpdateOutcome:
    return run_update(champion, new, tmp_path_factory.mktemp("updated") / "registry")


def test_a_challenger_that_is_not_worse_serves_and_every_step_is_recorded(
    promoted: UpdateOutcome, old: Path, new: Path
) -> None:
    registry = read_registry(promoted.registry)
    assert promoted.is_promoted and registry.current == "v2"
    assert [step.kind for step in registry.steps] == ["register", "begin", "promote"]
    begin = registry.steps[1].details
    assert begin["rule"]["margin"] == 0.45 and begin["champion"] == "v1"
    assert load_model(promoted.registry).files_sha256 == load_model(registry.version_folder("v2")).files_sha256
    content = UPDATE.read(promoted.folder)
    assert {check["test"] for check in content["checks"] if not check["group"]} == {"old", "new"}
    assert all(check["n"] and check["ci95"] for check in content["checks"] if not check["group"])
    page = promoted.page.read_text(encoding="utf-8")
    assert "Research use only" in page and "Promoted" in page and "challenger less champion" in page


def test_the_tests_are_sealed_where_they_are_of_and_opened_once_by_each_model(
    promoted: UpdateOutcome, old: Path, new: Path
) -> None:
    for folder in (old, new, promoted.folder / "dataset"):
        (seal,) = read_seals(folder / "splits")
        assert [opening.opened_by for opening in seal.openings] == ["update", "update"]
        assert len({opening.model_sha256 for opening in seal.openings}) == 2
        assert all(opening.finished for opening in seal.openings)


def test_the_challenger_learned_from_old_and_new_and_from_no_test_image(
    promoted: UpdateOutcome, champion: Path, old: Path
) -> None:
    frame = pd.read_csv(promoted.folder / "dataset" / "splits" / "update.csv", dtype=str)
    train = frame.loc[frame["split"] == "train", "image_id"]
    assert train.str.startswith("old/").sum() > 20 and train.str.startswith("new/").sum() > 20
    dataset = dk.load_dataset(promoted.folder / "dataset")
    tests = set(frame.loc[frame["split"] == "test", "image_id"])
    learned = {row[0] for row in load_model(promoted.registry).training_images}
    pixels = dataset.manifest.set_index("image_id")["pixel_sha256"]
    assert not learned & {pixels[name] for name in tests}
    before = pd.read_csv(champion / "split.csv", dtype=str).set_index("image_id")["split"]
    after = frame.set_index("image_id")["split"]
    assert all(after[f"old/{name}"] == side for name, side in before.items())


def test_the_same_command_again_trains_and_opens_nothing(
    promoted: UpdateOutcome, champion: Path, new: Path
) -> None:
    before = [len(seal.openings) for seal in read_seals(new / "splits")]
    steps = len(read_registry(promoted.registry).steps)
    for model in (champion, promoted.registry):
        assert run_update(model, new, promoted.registry) == promoted
    assert [len(seal.openings) for seal in read_seals(new / "splits")] == before
    assert len(read_registry(promoted.registry).steps) == steps


@pytest.mark.slow
def test_data_that_is_in_the_old_data_already_is_no_new_data(promoted: UpdateOutcome, new: Path) -> None:
    options = replace(WIDE, margin=0.3)
    with pytest.raises(DataError, match="every image is a copy of an old one"):
        run_update(promoted.registry, new, promoted.registry, options)


def test_another_model_than_the_one_that_serves_is_no_champion(
    promoted: UpdateOutcome, champion: Path, new: Path
) -> None:
    with pytest.raises(UsageError, match="is not the model that serves"):
        run_update(champion, new, promoted.registry, replace(WIDE, margin=0.3))


def test_the_commands_of_a_registry(promoted: UpdateOutcome, old: Path, tmp_path: Path, invoke: Invoke) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(promoted.registry, registry, symlinks=True)
    code, out, _ = invoke("registry", "list", registry)
    assert code == 0 and "v1" in out and "earlier" in out and "v2" in out and "serving" in out
    code, out, _ = invoke("registry", "show", registry, "v2")
    assert code == 0 and "not worse beyond the margin" in out and "Research use only" in out
    code, out, _ = invoke("registry", "rollback", registry, "v1", "--reason", "a test")
    assert code == 0 and read_registry(registry).current == "v1"
    assert "a test" in invoke("registry", "show", registry, "v1")[1]
    code, _, err = invoke("registry", "rollback", registry, "v7")
    assert code == 2 and "no version 'v7'" in err
    picture = next((old.parent / "images").rglob("*.jpg"))
    code, _, err = invoke("predict", registry, picture, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0, err
    answer = pd.read_csv(tmp_path / "out" / "predictions.csv")["p_malignant"].iloc[0]
    (served,) = load_model(registry / "versions" / "v1").predict_images([picture])
    assert served.probabilities["malignant"] == pytest.approx(answer, abs=1e-6)


@pytest.mark.slow
def test_a_registry_is_a_model_also_for_evaluate_counterfactuals_and_export(
    promoted: UpdateOutcome, tmp_path: Path, invoke: Invoke
) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(promoted.registry, registry, symlinks=True)
    code, _, err = invoke("evaluate", registry)
    assert code == 2 and "is a registry" in err and str(registry / "versions" / "v2") in err
    other = make_data(tmp_path / "other", 9, n=8)
    code, _, err = invoke("evaluate", registry, "--on", other)
    assert code == 0, err
    assert list((registry / "versions" / "v2" / "external").glob("*/report.html"))
    assert not (registry / "external").exists()
    code, _, err = invoke(
        "counterfactuals",
        registry,
        "--artefact",
        "ink",
        "--images",
        "20",
        "--split",
        "validation",
        "--device",
        "cpu",
    )
    assert code == 0, err
    assert (registry / "versions" / "v2" / "counterfactuals" / "counterfactuals.html").is_file()
    assert load_model(registry).files_sha256 == load_model(promoted.registry).files_sha256


# What cannot be used, said before work begins -------------------------------------------------------------------------


def renamed(folder: Path, source: Path, names: dict[str, str]) -> Path:
    """Return a copy of a data set whose classes have other names."""
    data = dk.load_dataset(source)
    classes = tuple(replace(one, name=names.get(one.name, one.name)) for one in data.classes)
    manifest = data.manifest.assign(label=data.manifest["label"].replace(names))
    save_dataset(replace(data, folder=folder, classes=classes, manifest=manifest))
    return folder


def refusal(champion: Path, new: Path, tmp_path: Path, options: UpdateOptions = WIDE) -> str:
    """Return the message of an update that is refused; nothing was trained and no test was opened."""
    with pytest.raises((DataError, UsageError)) as error:
        run_update(champion, new, tmp_path / "registry", options)
    assert not list((tmp_path / "registry").glob("updates/*/runs/*/*"))
    assert error.value.outcome and error.value.remedy
    return error.value.message


@pytest.mark.parametrize(("validation", "test"), [(0.15, 2.0), (0.0, 0.4), (0.7, 0.3), (float("nan"), 0.4)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(validation: float, test: float) -> None:
    with pytest.raises(UsageError, match="leave no images for training"):
        NewSplitOptions(validation=validation, test=test)


def test_a_split_with_folds_is_refused(champion: Path, new: Path, tmp_path: Path) -> None:
    save_dataset(replace(dk.load_dataset(new), folder=tmp_path / "folds"))
    spec = replace(champion_split(champion), test=0.4, folds=3)
    dk.split(dk.load_dataset(tmp_path / "folds"), spec, name="folds")
    options = replace(WIDE, new_split=NewSplitOptions("folds"))
    assert "has folds" in refusal(champion, tmp_path / "folds", tmp_path, options)


def test_other_classes_are_refused(champion: Path, new: Path, tmp_path: Path) -> None:
    other = renamed(tmp_path / "other", new, {"benign": "naevus"})
    message = refusal(champion, other, tmp_path)
    assert "new classes naevus" in message and "no class benign" in message


def test_the_data_set_of_the_champion_is_no_new_data(champion: Path, old: Path, tmp_path: Path) -> None:
    assert "is the data set of the champion" in refusal(champion, old, tmp_path)


def test_a_champion_without_its_data_set_is_refused(champion: Path, new: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(champion, run)
    location = json.loads((run / "location.json").read_text())
    (run / "location.json").write_text(json.dumps({**location, "dataset": str(tmp_path / "gone")}))
    assert "is not at" in refusal(run, new, tmp_path)


def test_a_data_set_that_changed_is_refused(champion: Path, old: Path, new: Path, tmp_path: Path) -> None:
    data = dk.load_dataset(old)
    save_dataset(replace(data, folder=tmp_path / "changed", manifest=data.manifest.iloc[1:]))
    message = refusal(champion, new, tmp_path, replace(WIDE, dataset=tmp_path / "changed"))
    assert "changed since" in message


def test_too_little_new_data_is_refused_with_the_count_that_is_needed(
    champion: Path, new: Path, tmp_path: Path
) -> None:
    data = dk.load_dataset(new)
    few = data.manifest.groupby("label").head(20)
    save_dataset(replace(data, folder=tmp_path / "few", manifest=few.reset_index(drop=True)))
    message = refusal(champion, tmp_path / "few", tmp_path)
    assert "no promotion rests on fewer than 30" in message


def test_a_test_that_cannot_decide_sensitivity_is_refused_before_the_training(
    champion: Path, new: Path, tmp_path: Path
) -> None:
    message = refusal(champion, new, tmp_path, replace(WIDE, sensitivity_margin=0.05))
    assert "independent malignant lesions" in message and "fewer than 73" in message


def test_a_folder_of_other_files_is_no_registry(champion: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "notes.txt").write_text("mine")
    assert "is not empty and is not a registry" in refusal(champion, new, tmp_path)


def test_a_damaged_registry_is_no_place_for_an_update(promoted: UpdateOutcome, new: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(promoted.registry, registry, symlinks=True)
    (registry / "record.jsonl").write_text("{}")
    with pytest.raises(UntrustedError, match="record"):
        run_update(registry, new, registry)


@pytest.mark.parametrize("kind", ["model", "summary"])
def test_what_is_no_run_of_one_training_is_refused(champion: Path, new: Path, tmp_path: Path, kind: str) -> None:
    if kind == "model":  # a model alone has no split, so nobody knows which images are its test
        shutil.copytree(champion / "model", tmp_path / "alone")
        assert "can be trained again: no run.json" in refusal(tmp_path / "alone", new, tmp_path)
        return
    shutil.copytree(champion, tmp_path / "fold")
    run_json = json.loads((tmp_path / "fold" / "run.json").read_text())
    (tmp_path / "fold" / "run.json").write_text(json.dumps({**run_json, "fold": 1}))
    assert "several nets or of one fold" in refusal(tmp_path / "fold", new, tmp_path)


# Old and new data -----------------------------------------------------------------------------------------------------


def test_copies_are_left_out_and_old_patients_stay_on_their_side(
    champion: Path, old: Path, new: Path, tmp_path: Path
) -> None:
    first, second = dk.load_dataset(old), dk.load_dataset(new)
    split = pd.read_csv(champion / "split.csv", dtype=str).set_index("image_id")["split"]
    patients = {side: f"clinic-a-{side}-patient" for side in ("train", "validation", "test")}
    of_side = {side: split.index[split == side][0] for side in patients}
    old_manifest = first.manifest.copy()
    for side, image in of_side.items():
        old_manifest.loc[old_manifest["image_id"] == image, "patient_id"] = patients[side]
    old_data = replace(first, folder=tmp_path / "old", manifest=old_manifest)
    new_manifest = second.manifest.copy()
    new_manifest.loc[[0, 1], "patient_id"] = patients["train"]
    new_manifest.loc[2, "patient_id"] = patients["test"]
    new_manifest.loc[3, "patient_id"] = patients["validation"]
    copied = first.manifest[first.manifest["image_id"] == of_side["test"]].iloc[0]
    new_manifest.loc[4, "pixel_sha256"] = copied["pixel_sha256"]
    new_data = replace(second, folder=tmp_path / "new", manifest=new_manifest)
    for data in (old_data, new_data):
        save_dataset(data)
    one = find_champion(champion, tmp_path / "registry", old)
    one = replace(one, dataset=dk.load_dataset(tmp_path / "old"))
    joined = join_data(
        one, dk.load_dataset(tmp_path / "new"), tmp_path / "joined", NewSplitOptions(test=0.5), workers=1,
        progress=dk.Progress(),
    )  # fmt: skip
    names = "new/" + new_manifest["image_id"]
    sides = joined.split.frame.set_index("image_id")["split"]
    reasons = joined.split.excluded.set_index("image_id")["reason"]
    assert [sides[names[row]] for row in (0, 1, 3)] == ["train", "train", "validation"]
    assert "old test" in reasons[names[2]] and "copy" in reasons[names[4]]
    assert joined.split.leaks["total"] == 0 and joined.split.leaks["validation"]["total"] == 0
    again = join_data(
        one, new_data, tmp_path / "joined", NewSplitOptions(test=0.5), workers=1, progress=dk.Progress()
    )
    assert again.split.frame.equals(joined.split.frame) and again.counts == joined.counts
    assert not joined.dataset.manifest["path"].str.contains(tmp_path.name).any()


def joined_sides(champion: Champion, new: dk.Dataset, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the side of each new image that is used, and the reason of each that is not."""
    save_dataset(new)
    options = NewSplitOptions(test=0.5)
    data = join_data(
        champion, dk.load_dataset(new.folder), folder, options, workers=1, progress=dk.Progress()
    ).split
    sides = dict(zip(data.frame["image_id"], data.frame["split"], strict=True))
    return sides, dict(zip(data.excluded["image_id"], data.excluded["reason"], strict=True))


def test_a_patient_is_known_by_every_old_image_also_where_the_first_was_left_out(
    champion: Path, old: Path, new: Path, tmp_path: Path
) -> None:
    first, second = dk.load_dataset(old), dk.load_dataset(new)
    one = find_champion(champion, tmp_path / "registry", old)
    side = one.split.set_index("image_id")["split"]
    benign = first.manifest.loc[first.manifest["label"] == "benign", "image_id"]
    tested = [name for name in benign if side[name] == "test"][-1]
    left_out = next(name for name in benign if name != tested)
    is_patient = first.manifest["image_id"].isin([tested, left_out])
    manifest = first.manifest.assign(patient_id=is_patient.map({True: "clinic-a-anna", False: ""}))
    save_dataset(replace(first, folder=tmp_path / "old", manifest=manifest))
    split = one.split[one.split["image_id"] != left_out]
    new_manifest = second.manifest.copy()
    new_manifest.loc[0, "patient_id"] = "clinic-a-anna"
    _, reasons = joined_sides(
        replace(one, dataset=dk.load_dataset(tmp_path / "old"), split=split),
        replace(second, folder=tmp_path / "new", manifest=new_manifest), tmp_path / "joined",
    )  # fmt: skip
    assert "old test" in reasons.get(f"new/{new_manifest['image_id'][0]}", "")


def test_a_published_test_image_of_an_old_patient_is_not_trained_on(
    champion: Path, old: Path, new: Path, tmp_path: Path
) -> None:
    first, second = dk.load_dataset(old), dk.load_dataset(new)
    one = find_champion(champion, tmp_path / "registry", old)
    trained = one.split.loc[one.split["split"] == "train", "image_id"].iloc[0]
    manifest = first.manifest.assign(
        patient_id=(first.manifest["image_id"] == trained).map({True: "clinic-a-anna", False: ""})
    )
    save_dataset(replace(first, folder=tmp_path / "old", manifest=manifest))
    new_manifest = second.manifest.copy()
    new_manifest.loc[[0, 1], "patient_id"] = "clinic-a-anna"
    new_manifest.loc[0, "given_split"] = "test"
    sides, reasons = joined_sides(
        replace(one, dataset=dk.load_dataset(tmp_path / "old")),
        replace(second, folder=tmp_path / "new", manifest=new_manifest), tmp_path / "joined",
    )  # fmt: skip
    names = "new/" + new_manifest["image_id"]
    assert "test image of a patient" in reasons.get(names[0], "") and sides[names[1]] == "train"


def test_numbered_patients_of_both_data_sets_are_said_to_be_taken_for_different_ones(
    champion: Path, old: Path, new: Path, tmp_path: Path
) -> None:
    first, second = dk.load_dataset(old), dk.load_dataset(new)
    numbers = [str(number) for number in range(len(first.manifest))]
    save_dataset(replace(first, folder=tmp_path / "old", manifest=first.manifest.assign(patient_id=numbers)))
    one = replace(find_champion(champion, tmp_path / "registry", old), dataset=dk.load_dataset(tmp_path / "old"))
    joined_sides(
        one, replace(second, folder=tmp_path / "new", manifest=second.manifest.assign(patient_id=numbers)),
        tmp_path / "joined",
    )  # fmt: skip
    texts = dk.load_dataset(tmp_path / "joined").notes[LIMITS_NOTE]
    assert any(f"{len(numbers)} patient ids are in both" in text for text in texts), texts


def test_copies_within_new_data_get_one_group() -> None:
    manifest = pd.DataFrame({"copy_group": ["", "a", "", "a", ""]})
    groups = copy_groups_of(manifest, pd.DataFrame({"a": [0, 2], "b": [1, 4]}))
    assert groups[0] == groups[1] == groups[3] != "" and groups[2] == groups[4] not in ("", groups[0])
    assert copy_groups_of(manifest.iloc[:1], pd.DataFrame({"a": [], "b": []})) == [""]


@pytest.mark.slow
def test_sealed_images_of_new_data_are_not_trained_on(champion: Path, new: Path, tmp_path: Path) -> None:
    data = dk.load_dataset(new)
    save_dataset(replace(data, folder=tmp_path / "sealed"))
    spec = replace(champion_split(champion), seed=9, test=0.5)
    dk.split(dk.load_dataset(tmp_path / "sealed"), spec, name="mine", seal=True)
    assert "sealed as test images" in refusal(champion, tmp_path / "sealed", tmp_path)


def champion_split(champion: Path) -> dk.SplitSpec:
    return dk.load_recipe(champion / "recipe.json").split


# Long -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_margin_refuses_with_the_count_that_would_decide_and_the_champion_serves_on(
    champion: Path, new: Path, tmp_path: Path
) -> None:
    outcome = run_update(champion, new, tmp_path / "registry", replace(WIDE, margin=0.01, sensitivity_margin=0.01))
    assert not outcome.is_promoted and read_registry(outcome.registry).current == "v1"
    assert any("would decide" in sentence or "worse" in sentence for sentence in outcome.sentences)
    with pytest.raises(UsageError, match="was refused"):
        roll_back(outcome.registry, outcome.version)


@pytest.mark.slow
def test_a_stopped_update_goes_on(
    champion: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise RunInterrupt("interrupted")

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(update_module, "score_tests", stop)
        with pytest.raises(RunInterrupt):
            run_update(champion, new, tmp_path / "registry")
    with monkeypatch.context() as patch:
        patch.setattr(update_module, "record_decision", stop)
        with pytest.raises(RunInterrupt):
            run_update(champion, new, tmp_path / "registry")
    assert not list((tmp_path / "registry").glob("updates/*/promotion.html")), "no page of what is not recorded"
    openings = [len(seal.openings) for seal in read_seals(new / "splits")]
    settings = dk.RunSettings(device="cpu", heat_maps=False)
    outcome = update(
        champion, dk.load_dataset(new), registry=tmp_path / "registry", options=WIDE, settings=settings,
        progress=dk.Progress(say=said.append),
    )  # fmt: skip
    assert any("already finished" in line for line in said) and outcome.version == "v2"
    outcome.page.unlink()  # as after a kill between the record and the page
    assert run_update(champion, new, tmp_path / "registry").page.is_file()
    assert [len(seal.openings) for seal in read_seals(new / "splits")] == openings
    assert [step.kind for step in read_registry(tmp_path / "registry").steps] == ["register", "begin", "promote"]
