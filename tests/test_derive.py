"""A recipe changed by `--set` and its short forms: what changes, what is recorded, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Invoke
from dermkit.cli.train import field_assignments
from dermkit.errors import UsageError
from dermkit.pipeline.continuation import changed_fields
from dermkit.recipes.augmentation import PRESETS
from dermkit.recipes.derive import check_record, derive_grid, derive_recipe, parse_assignment
from dermkit.recipes.experiments import GRIDS, RECIPES
from dermkit.recipes.frozen import CLASSIFIERS, ClassifierKind
from dermkit.recipes.head_checks import check_head_fields
from dermkit.recipes.schema import (
    Recipe,
    changes_text,
    load_recipe,
    parse_recipe,
    recipe_fingerprint,
    recipe_to_dict,
    save_recipe,
)
from dermkit.recipes.short_forms import ShortForms, short_form_assignments
from dermkit.reporting.recipe_rows import recipe_rows


def derive(name: str, *texts: str, **forms: Any) -> Recipe:
    base = RECIPES[name]
    assignments = [*map(parse_assignment, texts), *short_form_assignments(base, ShortForms(**forms))]
    return derive_recipe(base, assignments)


def refusal(name: str, *texts: str, **forms: Any) -> str:
    with pytest.raises(UsageError) as caught:
        derive(name, *texts, **forms)
    assert caught.value.exit_code == 2 and "nothing was trained" in str(caught.value)
    return str(caught.value)


def test_a_derived_recipe_has_the_new_values_and_says_what_they_were() -> None:
    derived = derive("s2-finetuned", "optim.batch_size=16", "phases.0.epochs=20", "model.backbone=convnext_tiny")
    assert derived.optim.batch_size == 16 and derived.model.backbone == "convnext_tiny"
    assert derived.phases == RECIPES["s2-finetuned"].phases  # 20 is what it had
    assert derived.name == "s2-finetuned-backbone_convnext-tiny-batch_size_16"
    assert derived.derived_from is not None and derived.derived_from.recipe == "s2-finetuned"
    assert [(change.field, change.before, change.after) for change in derived.derived_from.changes] == [
        ("model.backbone", '"resnet50"', '"convnext_tiny"'),
        ("optim.batch_size", "32", "16"),
    ]
    assert dict(recipe_rows(derived))["Changed from"] == (
        's2-finetuned with model.backbone "resnet50" -> "convnext_tiny"; optim.batch_size 32 -> 16'
    )
    assert "Changed from" not in dict(recipe_rows(RECIPES["s2-finetuned"]))


def test_the_order_of_the_options_and_their_form_change_nothing() -> None:
    first = derive("demo", "optim.batch_size=16", "phases.0.epochs=20")
    assert derive("demo", "phases.0.epochs=20", "optim.batch_size=16") == first
    assert derive("demo", batch_size=16, epochs="20") == first
    assert derive("demo", "optim.batch_size=16", batch_size=16, epochs="20") == first
    assert recipe_fingerprint(first) != recipe_fingerprint(RECIPES["demo"])


def test_what_changes_nothing_is_the_recipe_itself() -> None:
    assert derive("demo", "optim.batch_size=32") == RECIPES["demo"]


def test_a_change_of_a_derived_recipe_is_told_from_the_first_one_and_back_is_none() -> None:
    derived = derive("demo", "optim.batch_size=16")
    again = derive_recipe(derived, [parse_assignment("model.dropout=.5")])
    assert changes_text(again) == "demo with model.dropout 0.2 -> 0.5; optim.batch_size 32 -> 16"
    assert again == derive("demo", "optim.batch_size=16", "model.dropout=0.5")
    assert derive_recipe(derived, [parse_assignment("optim.batch_size=32")]) == RECIPES["demo"]


def test_fields_that_belong_to_a_backbone_go_with_it() -> None:
    derived = derive("s0-inception-v3-mixed7a", backbone="convnext_tiny")
    assert derived.model.backbone_args == {} and derived.model.skip_blocks == ()
    assert derived.name == "s0-inception-v3-mixed7a-backbone_convnext-tiny"
    kept = derive("s0-inception-v3-mixed7a", 'model.backbone_args={"pad_type":"same"}', backbone="mobilenetv2_100")
    assert kept.model.backbone_args == {"pad_type": "same"}
    for _ in range(2):  # a part of them belongs to the new backbone too, and stays with this one recipe
        part = derive("s0-inception-v3-mixed7a", "model.backbone_args.pad_type=same", backbone="mobilenetv2_100")
        assert part.model.backbone_args == {"pad_type": "same"}
        assert derive("s0-inception-v3-mixed7a", backbone="mobilenetv2_100").model.backbone_args == {}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("model.dropout=.5", ("model", "dropout"), 0.5),
        ("model.dropout=5e-1", ("model", "dropout"), 0.5),
        ("model.hidden=64,32", ("model", "hidden"), [64, 32]),
        ("model.hidden=[64, 32]", ("model", "hidden"), [64, 32]),
        ("model.hidden=", ("model", "hidden"), []),
        ("model.backbone=1e5", ("model", "backbone"), "1e5"),
        ("optim.class_weights=balanced", ("optim", "class_weights"), "balanced"),
        ("phases.0.train_backbone=none", ("phases", 0, "train_backbone"), "none"),
        ("phases.0.train_backbone=3", ("phases", 0, "train_backbone"), 3),
        ("compute.compile=True", ("compute", "compile"), True),
        ("grow=none", ("grow",), None),
        ("grow.augment=light", ("grow", "augment", "rotate"), PRESETS["light"].rotate),
        ("split.draw_from=train", ("split", "draw_from"), "train"),
        ("about=a=b", ("about",), "a=b"),
    ],
)
def test_a_value_is_read_as_the_field_means_it(text: str, path: tuple[Any, ...], value: Any) -> None:
    found: Any = recipe_to_dict(derive("s4-cnn", text))
    for component in path:
        found = found[component]
    assert found == value and type(found) is type(value)


def test_a_preset_and_a_field_of_it_go_together_in_either_order() -> None:
    first = derive("demo", "augment=dermoscopy", "augment.rotate=20")
    assert derive("demo", "augment.rotate=20", "augment=dermoscopy") == first
    assert first.augment.rotate == 20 and first.augment.hsv == PRESETS["dermoscopy"].hsv


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["optim.bath_size=3"], ["no field optim.bath_size", "did you mean `optim.batch_size`"]),
        (["bachsize=3"], ["did you mean `optim.batch_size`"]),
        (["lr=3"], ["`phases.N.head_lr`", "N: the number of a phase, from 0"]),
        (["batch_size=3"], ["did you mean `optim.batch_size`"]),
        (["phases.epochs=3"], ["did you mean `phases.N.epochs`"]),
        (["phases.3.epochs=3"], ["this recipe has phases.0"]),
        (["grow.max_copies=3"], ["this recipe has no grow (it is null)", '"target_fraction": ...']),
        (["mix.p=.3"], ["this recipe has no mix"]),
        (["optim.batch_size=0"], ["optim.batch_size: Input should be greater than or equal to 1"]),
        (["optim.batch_size=many"], ["optim.batch_size: Input should be a valid integer"]),
        (["optim.optimizer=adamm"], ["optim.optimizer", "'adam', 'adamw' or 'sgd'"]),
        (["model.dropout=NaN"], ["model.dropout"]),
        (["augment=lite"], ["unknown augmentation preset `lite`; did you mean `light`?"]),
        (["split.folds=1"], ["folds is 0 (none) or at least 2"]),
        (["optim.batch_size"], ["not of the form FIELD=VALUE"]),
        (["=3"], ["not of the form FIELD=VALUE"]),
        (["derived_from=null"], ["derived_from is written by dermkit"]),
        (["name=s1-cnn"], ["a named recipe has this name"]),
        (["name=../x"], ["name"]),
        (["model.backbone_args.x.y=1"], ["model.backbone_args holds no fields"]),
        (["optim.batch_size=16", "optim.batch_size=8"], ["--set optim.batch_size=16", "=8 give optim.batch_size two"]),
        (["model.dropout=1", "model.dropout=true"], ["two values"]),
    ],
    ids=lambda item: " ".join(item),
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_nearest_field(texts: list[str], words: list[str]) -> None:
    message = refusal("demo", *texts)
    assert all(word in message for word in words), message


def test_a_short_form_that_contradicts_a_set_is_refused() -> None:
    message = refusal("demo", "optim.batch_size=16", batch_size=8)
    assert "--set optim.batch_size=16 and --batch-size 8 give optim.batch_size two values" in message


# Short forms, with one phase and with several ---------------------------------------------------------------------


def phases_of(recipe: Recipe) -> list[tuple[int, float, float]]:
    return [(phase.epochs, phase.head_lr, phase.backbone_lr) for phase in recipe.phases]


def test_epochs_and_rates_of_several_phases() -> None:
    """`s2-finetuned` has 20 epochs of the head at 1e-3, then 8 with the last layers at 1e-4 and 1e-5."""
    assert phases_of(RECIPES["s2-finetuned"]) == [(20, 1e-3, 0.0), (8, 1e-4, 1e-5)]
    every = derive("s2-finetuned", epochs="5")
    assert phases_of(every) == [(5, 1e-3, 0.0), (5, 1e-4, 1e-5)]
    assert every.name == "s2-finetuned-epochs_5"
    assert phases_of(derive("s2-finetuned", epochs="30,4")) == [(30, 1e-3, 0.0), (4, 1e-4, 1e-5)]
    assert derive("s2-finetuned", epochs="20,4").name == "s2-finetuned-phase1_epochs_4"
    assert phases_of(derive("s2-finetuned", learning_rate="3e-4")) == [(20, 3e-4, 0.0), (8, 3e-5, 3e-6)]
    assert phases_of(derive("s2-finetuned", learning_rate="3e-3,2e-4")) == [(20, 3e-3, 0.0), (8, 2e-4, 2e-5)]


def test_other_short_forms() -> None:
    derived = derive("demo", image_size=96, class_weights="balanced", folds=5)
    assert (derived.image.size, derived.optim.class_weights) == (96, "balanced")
    assert (derived.split.scheme, derived.split.folds, derived.split.test) == ("kfold", 5, 0.0)
    assert derive("demo", folds=5).name == "demo-folds_5"
    # A recipe that keeps published test images keeps them: its folds are of the training images beside them.
    beside = derive("s2-finetuned", folds=2).split
    assert (beside.scheme, beside.folds, beside.test) == ("given-as-published", 2, 0.0)
    assert "kfold needs folds >= 3" in refusal("s3-resnet50", folds=2)
    typed = field_assignments(RECIPES["strong"], ["split.scheme=given"], ShortForms(folds=5), None)
    beside = derive_recipe(RECIPES["strong"], typed).split
    assert (beside.scheme, beside.folds, beside.test) == ("given", 5, 0.0)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_replaces_the_dense_layers_of_any_recipe(kind: ClassifierKind) -> None:
    for name, recipe in RECIPES.items():
        derived = derive(name, classifier=kind)
        check_head_fields(derived)
        assert derived.model.classifier == CLASSIFIERS[kind]
        (phase,), first = derived.phases, recipe.phases[0]
        assert (phase.epochs, phase.train_backbone) == (1, "none")
        assert phase.views == (first.views if first.train_backbone == "none" else 0)


def test_names_and_fields_of_a_classifier_and_smote() -> None:
    assert derive("s2-finetuned", classifier="svm").name == "s2-finetuned-classifier_svm"
    assert derive("quick", classifier="logistic", smote=True).name == "quick-classifier_logistic-smote_1.0-5"
    stronger = derive("quick", "model.classifier.penalty=7.0", classifier="svm")
    assert stronger.model.classifier is not None and stronger.model.classifier.penalty == 7.0
    assert stronger.name == "quick-classifier_svm-7.0-15-100-0.1-15"
    assert "smote makes features of a frozen backbone" in refusal("strong", smote=True)
    assert "model.classifier is fitted once" in refusal("quick", classifier="svm", epochs="5")


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        (
            {"epochs": "1,2,3"},
            "3 numbers, but s2-finetuned has 2 phases (head alone, 20 epochs; last 12 layer groups",
        ),
        ({"epochs": "many"}, "--epochs many: not a number"),
        ({"epochs": "1.5"}, "--epochs 1.5: not a whole number"),
        ({"epochs": "inf"}, "not a whole number"),
        ({"epochs": "0"}, "phases.0.epochs: Input should be greater than or equal to 1"),
        ({"learning_rate": "-1"}, "phases.0.head_lr"),
        ({"learning_rate": "nan"}, "phases.0.head_lr"),
        ({"image_size": 4}, "image.size: Input should be greater than or equal to 16"),
        ({"folds": 1}, "folds is 0 (none) or at least 2"),
    ],
    ids=str,
)
def test_a_short_form_that_does_not_fit_is_refused(forms: dict[str, Any], words: str) -> None:
    assert words in refusal("s2-finetuned", **forms)


# Names and records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["0", "1e-400", "0,0"])
def test_a_rate_that_trains_nothing_is_refused(rate: str) -> None:
    base = next(recipe for recipe in RECIPES.values() if len(recipe.phases) == 1 + rate.count(","))
    with pytest.raises(UsageError, match="nothing would be trained"):
        short_form_assignments(base, ShortForms(learning_rate=rate))


def test_a_long_name_becomes_a_hash_of_the_changes_and_every_name_is_a_folder() -> None:
    many = [f"augment.{name}=0.123456" for name in ("shift", "zoom", "brightness", "contrast", "saturation")]
    long, other = derive("s2-finetuned", *many), derive("s2-finetuned", *many[:4], "augment.saturation=0.2")
    assert long.name.startswith("s2-finetuned-changed-") and len(long.name) <= 80
    assert long.name != other.name
    assert derive("demo", "model.backbone=dermkit/cnn-s1").name == "demo-backbone_dermkit-cnn-s1"


def test_a_record_is_read_back_and_one_that_is_no_longer_true_is_refused(tmp_path: Path) -> None:
    derived = derive("demo", "optim.batch_size=16", "seed=3")
    save_recipe(derived, tmp_path / "recipe.json")
    again = load_recipe(tmp_path / "recipe.json")
    assert again == derived
    check_record(again, "recipe.json")
    run_json = {**recipe_to_dict(derived), "seed": 4, "repeats": 1}  # as the second of several runs
    check_record(parse_recipe(run_json, "run"), "run")
    edited = recipe_to_dict(derived)
    edited["optim"]["batch_size"] = 24
    with pytest.raises(UsageError, match=r"derived_from says that optim\.batch_size is 16, but it is 24"):
        check_record(parse_recipe(edited, "mine.json"), "mine.json")
    edited["derived_from"]["changes"][0]["field"] = "phases.7.epochs"
    with pytest.raises(UsageError, match=r"phases\.7\.epochs is 16, but it is null"):
        check_record(parse_recipe(edited, "mine.json"), "mine.json")


def test_a_grid_is_changed_in_every_recipe_but_not_in_what_it_tries() -> None:
    members = GRIDS["s2-grid"]
    name, derived = derive_grid("s2-grid", members, [parse_assignment("image.size=64")])
    assert name == "s2-grid-size_64"
    assert {recipe.image.size for recipe in derived} == {64}
    assert len({recipe.name for recipe in derived}) == len(members)
    assert derive_grid("s2-grid", members, [])[0] == "s2-grid"
    for text in ("model.dropout=.1", "phases.0.head_lr=1e-3"):
        with pytest.raises(UsageError, match="the grid s2-grid tries several values of"):
            derive_grid("s2-grid", members, [parse_assignment(text)])


# By command -------------------------------------------------------------------------------------------------------


def test_a_changed_recipe_is_trained_recorded_and_found_again(
    invoke: Invoke, binary: Path, tmp_path: Path
) -> None:
    words = ("--out", tmp_path / "runs", "--device", "cpu", "--set", "image.size=16", "--epochs", "1")
    code, _, err = invoke("train", "s1-cnn", binary, *words)
    assert code == 0, err
    assert "recipe s1-cnn-size_16-epochs_1: s1-cnn with image.size 64 -> 16; phases.0.epochs 30 -> 1" in err
    (run,) = (tmp_path / "runs" / "s1-cnn-size_16-epochs_1").iterdir()
    saved = json.loads((run / "recipe.json").read_text())
    assert saved["derived_from"] == {
        "recipe": "s1-cnn",
        "changes": [
            {"field": "image.size", "before": "64", "after": "16"},
            {"field": "phases.0.epochs", "before": "30", "after": "1"},
        ],
    }
    assert "Changed from" in (run / "report.html").read_text()
    code, _, err = invoke("train", run / "recipe.json", binary, "--out", tmp_path / "runs", "--device", "cpu")
    assert code == 0 and f"{run}: already finished" in err


def test_a_run_can_go_on_as_one_of_more_epochs() -> None:
    """Name and record differ, and are nothing that a continued training could trip over."""
    shorter, longer = derive("s1-cnn", epochs="1"), derive("s1-cnn", epochs="2")
    assert shorter.name != longer.name and shorter.derived_from != longer.derived_from
    assert changed_fields(shorter, longer) == {"phases.0.epochs": "1 -> 2"}


def test_a_split_that_is_there_hides_no_change(invoke: Invoke, binary: Path) -> None:
    code, _, err = invoke("train", "s1-cnn", binary, "--split", "given", "--folds", "5")
    assert code == 2 and "--folds 5 and --split given: a split that is there already is taken as it is" in err
