"""Texts for a paper: every figure is one of metrics.json, what is undefined is left out, what is not known is open."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dermkit.models.card import card_text, read_card
from dermkit.recipes.experiments import find_recipe
from dermkit.recipes.schema import load_recipe, save_recipe
from dermkit.recipes.training_specs import DistilSpec, MixupSpec
from dermkit.reporting.checklists import CHECKLISTS, CLEAR_DERM, TRIPOD_AI
from dermkit.reporting.paper_facts import paper_facts
from dermkit.reporting.paper_texts import methods_text, write_paper_texts
from dermkit.reporting.recipe_rows import recipe_rows
from dermkit.runs.folder import RunFolder

TEXTS = ("DATASHEET.md", "CHECKLISTS.md", "METHODS.md")
FIGURE = re.compile(
    r"(\d\.\d{3}) \((?:95 % interval (\d\.\d{3}) to (\d\.\d{3})|no reliable interval)[^()]*n = (\d+)\)"
)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a trained run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def recorded_figures(folder: Path) -> set[tuple[str, ...]]:
    """Return (value, low, high, n) of every estimate of metrics.json, as texts print them."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        (f"{one['value']:.3f}", *(f"{bound:.3f}" for bound in one["ci95"] or ()), str(one["n"]))
        for split in metrics["splits"].values()
        for one in split["metrics"].values()
        if one is not None and one["value"] is not None
    }  # fmt: skip


def test_every_figure_is_one_of_metrics_json(run: Path) -> None:
    write_paper_texts(RunFolder(run))
    recorded = recorded_figures(run)
    shown = {(name, found) for name in TEXTS for found in FIGURE.findall((run / name).read_text())}
    assert {name for name, _ in shown} == {"CHECKLISTS.md", "METHODS.md"}
    for name, (value, low, high, n) in shown:
        fits = {
            one for one in recorded if one[0] == value and one[-1] == n and (not low or one[1:3] == (low, high))
        }
        assert fits, f"{name}: {value} [{low}, {high}], n = {n}"
    text = (run / "METHODS.md").read_text()
    counts = json.loads((run / "run.json").read_text())["split"]["counts"]
    assert all(f"{n} {split}" in text for split, n in counts.items())
    assert all("Research use only. Not a medical device." in (run / name).read_text() for name in TEXTS)


def test_another_figure_in_metrics_json_is_another_in_the_text(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["splits"]["test"]["metrics"]["accuracy"] = {
        "value": 0.1234,
        "ci95": [0.05, 0.3],
        "n": 41,
        "method": "m",
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_paper_texts(RunFolder(run))
    for name in ("CHECKLISTS.md", "METHODS.md"):
        assert "accuracy 0.123 (95 % interval 0.050 to 0.300, n = 41)" in (run / name).read_text()


def test_an_undefined_figure_is_left_out_with_its_reason(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["splits"]["test"]["metrics"]["sensitivity"] = {
        "value": None, "ci95": None, "n": 0, "method": "none", "reason": "no malignant image",
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_paper_texts(RunFolder(run))
    text = (run / "METHODS.md").read_text()
    assert "Not defined on the test images: sensitivity for malignant (no malignant image)." in text
    assert "sensitivity for malignant left out: no malignant image" in (run / "CHECKLISTS.md").read_text()


def test_what_no_file_says_is_open(run: Path) -> None:
    whole = paper_facts(RunFolder(run))
    for name in ("environment.json", "recipe.json", "attributes.csv"):
        (run / name).unlink(missing_ok=True)
    (run / "run.json").write_text(
        json.dumps({"format": 2, "dataset": json.loads((run / "run.json").read_text())["dataset"]})
    )
    folder = RunFolder(run)
    facts = paper_facts(folder)
    gone = {"software", "seed", "training", "model_type", "preprocessing", "split_sizes", "weights"}
    assert gone <= set(whole) and not gone & set(facts)
    text = methods_text(folder, facts)
    assert "the net, the training, the versions of the software, the random seed." in text
    assert "None" not in text and "?" not in text
    write_paper_texts(folder)
    rows = (run / "CHECKLISTS.md").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith("| 12c |")]
    assert "open: no file of this run says it" in row


def test_findings_of_the_audit_are_named_and_metadata_that_nobody_knows_are_open(run: Path) -> None:
    run_json = json.loads((run / "run.json").read_text())
    finding = {"code": "DA044", "title": "The mean colour tells the class", "n": 18, "effect": "Much."}
    run_json["dataset"]["audit"] = {"state": "done", "errors": [], "warnings": [finding]}
    (run / "run.json").write_text(json.dumps(run_json))
    (run / "attributes.csv").write_text("image_id,age,sex,site,skin_type\na,,,,\nb,,,,\n")
    facts = paper_facts(RunFolder(run))
    assert facts["audit"] == "audit done; findings: DA044 The mean colour tells the class (18 images)"
    assert "attributes" not in facts


def test_open_items_are_named_and_filled_ones_hold_the_facts(run: Path) -> None:
    write_paper_texts(RunFolder(run))
    text, facts = (run / "CHECKLISTS.md").read_text(), paper_facts(RunFolder(run))
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| ") and not row.startswith("| item")]
    assert len(rows) == sum(len(checklist.items) for checklist in CHECKLISTS)
    (ethics,) = [row for row in rows if row[0] == "| 17" and "ethical" in row[1]]
    assert "open" in ethics[2]
    (sizes,) = [row for row in rows if row[1] == "sizes of training, validation and test sets"]
    assert facts["split_sizes"] in sizes[2]
    datasheet = (run / "DATASHEET.md").read_text()
    assert facts["class_counts"] in datasheet and "- Collection: consent and ethical review" in datasheet


def test_checklists_ask_for_facts_that_exist(run: Path) -> None:
    possible = set(paper_facts(RunFolder(run))) | {
        "external_test", "exclusions", "second_input", "imbalance", "subgroups", "licences", "attributes", "audit",
        "thresholds",
    }  # fmt: skip
    asked = {name for checklist in CHECKLISTS for item in checklist.items for name in item.facts}
    assert asked <= possible, asked - possible


def test_the_numbers_of_the_published_lists() -> None:
    tripod, clear = ([item.number for item in one.items] for one in (TRIPOD_AI, CLEAR_DERM))
    assert len({re.sub(r"\D", "", number) for number in tripod}) == 27 and len(tripod) == len(set(tripod)) == 52
    assert clear == [str(number) for number in range(1, 26)]


def test_a_name_of_the_data_set_is_shown_as_it_is(run: Path) -> None:
    run_json = json.loads((run / "run.json").read_text())
    run_json["dataset"]["name"] = "<b>a|b</b> [x](y)"
    (run / "run.json").write_text(json.dumps(run_json))
    write_paper_texts(RunFolder(run))
    assert all(
        "<b>" not in (run / name).read_text() and "[x](y)" not in (run / name).read_text() for name in TEXTS
    )


def test_a_classifier_on_frozen_features_is_told_without_layers_epochs_and_augmentation() -> None:
    rows = dict(recipe_rows(find_recipe("frozen-knn")))
    assert rows["Head"].startswith("nearest neighbours, weighted by distance (scikit-learn; neighbours 15)")
    assert rows["Phase 1"] == "backbone frozen; the classifier fitted once"
    assert rows["Loss and optimizer"].startswith("the classifier's own") and "batch" not in str(rows)
    assert "Weights kept" not in rows and "SMOTE" not in rows
    smote = dict(recipe_rows(find_recipe("frozen-smote")))
    assert "neighbours" in smote["SMOTE"] and "logistic regression (scikit-learn; penalty" in smote["Head"]


def test_augmentation_that_no_phase_shows_is_not_told_nor_a_best_epoch_where_the_last_is_kept() -> None:
    demo = find_recipe("demo")
    frozen = replace(
        demo, keep="last", phases=(replace(demo.phases[0], train_backbone="none", backbone_lr=0.0, views=0),)
    )
    assert dict(recipe_rows(demo))["Augmentation"] != "none" == dict(recipe_rows(frozen))["Augmentation"]
    assert dict(recipe_rows(frozen))["Weights kept"] == "those of the last epoch"


def test_distillation_mixing_and_the_teacher_are_in_the_paragraph(run: Path) -> None:
    recipe = load_recipe(run / "recipe.json")
    distil, mix = DistilSpec(weight=0.5, temperature=2.0), MixupSpec(mixup=0.2, cutmix=0.0, p=0.5)
    save_recipe(replace(recipe, distil=distil, mix=mix, test_views="dihedral"), run / "recipe.json")
    _change_run(run, teacher={"note": "Distilled from big (runs/big, 5 nets)."})
    text = methods_text(RunFolder(run), paper_facts(RunFolder(run)))
    assert "Distillation: 0.5 of the loss is that of a trained model's probabilities, at temperature 2 " in text
    assert (
        "Distilled from big (runs/big, 5 nets)" in text and "Mixing of training images: mixup 0.2; p 0.5." in text
    )
    assert "the mean of an image's eight symmetries" in text


def test_leaks_are_only_those_that_ids_can_show(run: Path) -> None:
    _change_run(run, warnings=[])
    assert "share a lesion, patient or pixels with" in paper_facts(RunFolder(run))["partition"]
    _change_run(run, warnings=["No lesion or patient ids: intervals take every picture for an independent one."])
    assert "share pixels (lesions and patients are not known) with" in paper_facts(RunFolder(run))["partition"]


def test_an_external_test_does_not_pass_for_the_data_that_the_net_was_trained_on(run: Path) -> None:
    _change_run(
        run,
        mapping={"rule": "identity"},
        training_dataset={"name": "clinic A", "audit": {}},
        split={"name": "external", "scheme": "external", "counts": {"test": 30, "seen_in_training": 4}},
    )
    text = methods_text(RunFolder(run), paper_facts(RunFolder(run)))
    assert "The net was trained on images of clinic A." in text and "scheme external" not in text
    assert "There were 30 test and 4 seen in training images." in text


@pytest.mark.parametrize("is_beside", [False, True])
def test_folds_are_not_told_as_sides_that_add_up(run: Path, is_beside: bool) -> None:
    _change_run(run, split={"scheme": "kfold", "counts": {"train": 60, "validation": 100, "test": 100}})
    folder = RunFolder(run)
    folder.__dict__["pooled"] = {
        "n_folds": 5, "scores_test_by_ensemble": is_beside, "shown_seed": 3, "seeds": [{"seed": 3}, {"seed": 4}],
    }  # fmt: skip
    facts = paper_facts(folder)
    assert "in 5 folds, of which each net learned from about 60" in facts["split_sizes"]
    assert ("100 test images beside them" in facts["split_sizes"]) == is_beside
    assert ("by the mean of all nets" in facts["nets"]) == is_beside
    assert facts["seed"] == "seeds 3 and 4" and "of seed 3" in facts["nets"]


def test_an_ensemble_names_its_models_and_no_seed(run: Path) -> None:
    sources = [{"recipe": "big", "weight": 0.7}, {"recipe": "small", "weight": 0.3}]
    _change_run(run, ensemble={"sources": sources, "note": "The weights are equal."})
    facts = paper_facts(RunFolder(run))
    assert facts["nets"] == "The model is the weighted mean of big (0.7) and small (0.3). The weights are equal."
    assert "seed" not in facts
    assert "model_type" not in facts and "training" not in facts
    text = methods_text(RunFolder(run), facts)
    assert "Not in the files of this run, so not in this text: the net, the training" in text
    recorded = [
        {**source, "model_type": f"{net}, 2 classes", "training": "1 epoch"}
        for source, net in zip(sources, ("resnet50", "resnet18"), strict=True)
    ]
    _change_run(run, ensemble={"sources": recorded, "note": "The weights are equal."})
    text = methods_text(RunFolder(run), paper_facts(RunFolder(run)))
    assert "The net was big: resnet50, 2 classes; small: resnet18, 2 classes." in text
    assert "Training: big: 1 epoch; small: 1 epoch." in text and "so not in this text: the random seed." in text


@pytest.mark.parametrize(("n", "note"), [(1, ""), (3, "not what the recipe gives from the beginning.")])
def test_a_training_that_went_on_began_with_the_weights_of_the_other_run(run: Path, n: int, note: str) -> None:
    weights = {"origin": "file", "sha256": "", "licence": "", "note": ""}
    record = {"run": "abc-s0", "epochs": n, "is_exact": not note, "key": "", "note": note}
    _change_run(run, weights=weights, continued_from=record)
    facts = paper_facts(RunFolder(run))
    bracket = f" ({note.rstrip('.')})" if note else ""
    assert facts["weights"] == (
        f"the weights of run abc-s0 after {n} epoch{'s' * (n > 1)}{bracket}; "
        "that run started from pretrained weights of a file"
    )
    text = methods_text(RunFolder(run), facts)
    assert "It started from the weights of run abc-s0" in text and "weights at the start" not in text


def _change_run(run: Path, **fields: Any) -> None:
    run_json = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**run_json, **fields}))


def test_the_model_card_says_how_it_was_trained_and_what_for(trained: Path) -> None:
    card = read_card(trained / "model")
    text = card_text(card)
    assert f"Random seed: {card['training']['seed']}." in text
    assert f"Epochs: {card['training']['stopped']['epochs_trained']} (" in text
    assert "Not for: the care of patients" in text and "ethical approval" in text
    assert "Not recorded in model.json." in card_text({**card, "training": {}})
