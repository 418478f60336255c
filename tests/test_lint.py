"""The lint: every rule finds its planted fault, and is silent where there is none."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from dermkit.data.diagnoses import classify_label
from dermkit.lint.column_order import find_column_order
from dermkit.lint.predictions import lint_predictions
from dermkit.lint.rules import LINT_RULES, LintFinding, lint_rows, read_lint, write_lint
from dermkit.lint.training import BatchNormState, TrainingFacts, _origins, lint_training
from dermkit.recipes.experiments import (
    RECIPES,
    S1_CNN,
    S2_FINETUNED,
    S2_NORMALISED,
    S2_PUBLISHED,
    S4_CNN,
    full_phase,
    head_phase,
    on_mobilenet_v2,
)
from dermkit.recipes.schema import Recipe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SEVEN = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
DIAGNOSES = {name: classify_label(name).diagnosis for name in SEVEN}


def codes(lints: list[LintFinding]) -> list[str]:
    return [item.code for item in lints]


def one(lints: list[LintFinding], code: str) -> LintFinding:
    (found,) = [item for item in lints if item.code == code]
    return found


# Trainings ----------------------------------------------------------------------------------------------------------


def training(
    recipe: Recipe, weights: tuple[tuple[float, ...], tuple[float, ...]] | None = IMAGENET
) -> TrainingFacts:
    """Return a training of a recipe as it would run with weights of this normalisation."""
    scaled = recipe.image.normalise == "weights" and weights
    mean, std = weights if scaled and weights else PLAIN
    return TrainingFacts(
        recipe=recipe, mean=mean, std=std,  # type: ignore[arg-type]
        weights_mean=weights[0] if weights else None, weights_std=weights[1] if weights else None,  # type: ignore[arg-type]
    )  # fmt: skip


def images(n: int = 40, **columns: Any) -> pd.DataFrame:
    """Return clean manifest rows on three sides."""
    frame = pd.DataFrame(
        {
            "image_id": [f"c/{i}" for i in range(n)],
            "path": [f"c/photo_{i:04d}.jpg" for i in range(n)],
            "label": ["nv", "mel"] * (n // 2),
            "isic_id": "",
            "pixel_sha256": [f"{i:064x}" for i in range(n)],
            "width": 100,
            "height": 100,
            "split": ["train", "train", "validation", "test"] * (n // 4),
        }
    )
    return frame.assign(**columns)


@pytest.mark.parametrize("recipe", [S2_PUBLISHED, on_mobilenet_v2(S2_PUBLISHED)], ids=lambda item: item.name)
def test_s2_as_published_is_scaled_wrongly(recipe: Recipe) -> None:
    found = one(lint_training(training(recipe)), "LN001")
    assert found.severity == "warning"
    assert "The net gets pixels in 0 to 1" in found.sentence
    assert "ImageNet's mean and deviation" in found.sentence
    assert "up to 2.1 standard deviations" in found.sentence


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda item: item.name)
def test_of_the_named_recipes_only_s2_as_published_is(recipe: Recipe) -> None:
    weights = IMAGENET if recipe.model.weights == "imagenet" else None
    wrong = codes(lint_training(training(recipe, weights))) == ["LN001"]
    assert wrong == (recipe.name in ("s2-resnet50", "s2-resnet50-mobilenetv2"))


def test_every_other_scaling_is_told_from_the_right_one() -> None:
    right = training(S2_NORMALISED)
    assert codes(lint_training(right)) == []
    assert codes(lint_training(replace(right, mean=(0.4850001, 0.456, 0.406)))) == []
    caffe = replace(right, weights_std=(1 / 255,) * 3)
    sentence = one(lint_training(caffe), "LN001").sentence
    assert "caffe's (mean taken off, 0 to 255)" in sentence
    odd = replace(right, weights_mean=(0.3, 0.3, 0.3), weights_std=(0.1, 0.2, 0.3))
    assert "mean 0.3 0.3 0.3 and deviation 0.1 0.2 0.3" in one(lint_training(odd), "LN001").sentence
    assert "LN001" in codes(lint_training(replace(right, mean=HALVES[0], std=HALVES[1])))
    # Weights that want pixels in 0 to 1 get them.
    assert codes(lint_training(training(S2_PUBLISHED, PLAIN))) == []


def test_a_net_that_learns_as_a_whole_gets_a_note() -> None:
    found = one(lint_training(training(replace(S2_PUBLISHED, phases=(full_phase(3, lr=1e-3),)))), "LN001")
    assert found.severity == "note"


def test_batch_norm_that_moves_in_a_frozen_net() -> None:
    right = replace(training(S2_NORMALISED), batch_norm=[BatchNormState(53, 0, 0)])
    assert codes(lint_training(right)) == []
    found = one(lint_training(replace(right, batch_norm=[BatchNormState(53, 53, 53)])), "LN002")
    assert (found.severity, found.n) == ("warning", 53)
    assert codes(lint_training(replace(right, batch_norm=[BatchNormState(53, 53, 0)]))) == []  # a net that learns


def test_batch_norm_that_learns_in_the_last_groups_alone() -> None:
    assert codes(lint_training(training(S2_FINETUNED))) == []
    phases = (S2_FINETUNED.phases[0], replace(S2_FINETUNED.phases[1], freeze_batch_norm=False))
    loose = training(replace(S2_FINETUNED, phases=phases))
    assert one(lint_training(loose), "LN002").severity == "note"
    without = replace(loose, batch_norm=[BatchNormState(0, 0, 0), BatchNormState(0, 0, 0)])
    assert codes(lint_training(without)) == []


def test_the_state_of_the_net_itself_is_read() -> None:
    from dermkit.models.net import build_net, count_batch_norms
    from dermkit.models.weights import resolve_weights

    spec = replace(S4_CNN.model, backbone="resnet18", hidden=())
    net = build_net(spec, 3, weights=resolve_weights(spec, None), seed=0)
    before = [parameter.requires_grad for parameter in net.parameters()], [item.training for item in net.modules()]
    assert count_batch_norms(net, head_phase(1)) == (20, 0, 0)
    assert count_batch_norms(net, full_phase(1, lr=1e-3)) == (20, 20, 0)
    assert count_batch_norms(net, replace(full_phase(1, lr=1e-3), freeze_batch_norm=True)) == (20, 0, 0)
    layers, moving, still = count_batch_norms(net, replace(full_phase(1, lr=1e-3), train_backbone=2))
    assert layers == 20
    assert 0 < moving < 20
    assert still == 0
    assert before == (
        [parameter.requires_grad for parameter in net.parameters()],
        [m.training for m in net.modules()],
    )


def test_validation_that_holds_test_images() -> None:
    assert codes(lint_training(replace(training(S1_CNN, None), images=images()))) == []
    pixels = images()["pixel_sha256"].tolist()
    pixels[3] = pixels[2]  # a test image with the pixels of a validation image
    found = one(lint_training(replace(training(S1_CNN, None), images=images(pixel_sha256=pixels))), "LN003")
    assert (found.severity, found.n) == ("warning", 1)
    for i in range(3, 40, 4):
        pixels[i] = pixels[i - 1]
    same = one(lint_training(replace(training(S1_CNN, None), images=images(pixel_sha256=pixels))), "LN003")
    assert (same.severity, same.n) == ("error", 10)


@pytest.mark.parametrize(
    "name",
    [
        "photo_{0:04d}_aug_{1}.jpg", "photo_{0:04d}_rotated90.jpg", "photo_{0:04d}-flip.jpg",
        "photo_{0:04d}_{1}_8193.jpeg",
        "photo_{0:04d} (1).jpg", "mel_original_photo_{0:04d}.jpg_0a1b2c3d-0a1b-0a1b-0a1b-0123456789ab.jpg",
    ],
)  # fmt: skip
def test_augmented_copies_on_two_sides(name: str) -> None:
    paths = images()["path"].tolist()
    for i in (3, 7, 11):  # test images that are made from training images
        paths[i] = f"c/{name.format(i - 3, i)}"
    found = one(lint_training(replace(training(S1_CNN, None), images=images(path=paths))), "LN004")
    assert found.severity == "error"
    assert found.n == 6


def test_an_archive_id_with_other_pixels_on_two_sides() -> None:
    ids = [f"ISIC_{i:07d}" for i in range(40)]
    assert codes(lint_training(replace(training(S1_CNN, None), images=images(isic_id=ids)))) == []
    for i in (3, 7, 11):
        ids[i] = ids[i - 3]
    assert codes(lint_training(replace(training(S1_CNN, None), images=images(isic_id=ids)))) == ["LN004"]


@pytest.mark.parametrize(
    "name",
    ["lesion_crop_{0:04d}.jpg", "nevus ({0}).jpg", "PAT_{0}_15_820.jpg", "{0}.jpg", "1_{0}.jpg", "copy {0}.jpg"],
)
def test_names_that_only_look_like_copies(name: str) -> None:
    paths = [f"c/{name.format(i)}" for i in range(40)]
    assert codes(lint_training(replace(training(S1_CNN, None), images=images(path=paths)))) == []


def test_squashed_pictures() -> None:
    def found(**columns: Any) -> list[LintFinding]:
        return lint_training(replace(training(S1_CNN, None), images=images(**columns)))

    assert found() == []
    assert one(found(width=600, height=450), "LN005").severity == "note"
    mixed = one(found(width=[600, 450] * 20, height=450), "LN005")
    assert mixed.severity == "warning"
    assert "It tells class: mel has 1.00, nv 1.33." in mixed.sentence
    cropped = replace(S1_CNN, image=replace(S1_CNN.image, resize="crop"))
    assert lint_training(replace(training(cropped, None), images=images(width=600, height=450))) == []


# Predictions --------------------------------------------------------------------------------------------------------


def softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def predictions(
    classes: tuple[str, ...] = SEVEN, n: int = 420, strength: float = 1.5, seed: int = 0, split: str = "test"
) -> pd.DataFrame:
    """Return predictions of an honest model: its own class is `strength` standard deviations ahead."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    z = rng.normal(size=(n, len(classes)))
    z[np.arange(n), labels] += strength
    return table(softmax(z), labels, classes, split)


def table(
    p: NDArray[np.float64], labels: NDArray[np.int64], classes: tuple[str, ...], split: str = "test"
) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"image_id": [f"{split}/{i:04d}" for i in range(len(p))], "split": split, "fold": "", "seed": 0}
    )
    frame["label"] = np.array(classes, dtype=object)[labels]
    frame["predicted"] = np.array(classes, dtype=object)[p.argmax(axis=1)]
    return frame.assign(**{f"p_{name}": p[:, k] for k, name in enumerate(classes)})


def lint(frame: pd.DataFrame, classes: tuple[str, ...] = SEVEN, **facts: object) -> list[LintFinding]:
    return lint_predictions(frame, classes, diagnoses=DIAGNOSES, **facts)  # type: ignore[arg-type]


def test_an_honest_table_is_clean() -> None:
    both = pd.concat([predictions(), predictions(seed=1, split="validation")], ignore_index=True)
    sides, labels = both[["image_id", "split"]], dict(zip(both["image_id"], both["label"], strict=True))
    assert lint(both, split_frame=sides, labels=labels) == []
    assert lint(both.astype(str)) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [("benign", "malignant"), ("mel", "nv", "bkl"), SEVEN])
def test_weak_and_blind_models_are_not_taken_for_permuted_ones(classes: tuple[str, ...], seed: int) -> None:
    for strength in (0.0, 0.4, 1.0):
        frame = predictions(classes, n=147, strength=strength, seed=seed)
        assert "LN006" not in codes(lint(frame, classes))


def test_a_model_that_always_says_the_commonest_class_is_not_taken_for_a_permuted_one() -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(7, 700, p=[0.03, 0.05, 0.6, 0.02, 0.1, 0.18, 0.02])
    z = rng.normal(size=(700, 7)) + np.eye(7)[labels] + 4 * np.eye(7)[5]  # it was trained where nevi are commonest
    assert "LN006" not in codes(lint(table(softmax(z), labels, SEVEN)))


def renamed(frame: pd.DataFrame, given: tuple[str, ...], meant: tuple[str, ...]) -> pd.DataFrame:
    """Return the table as if column k, which holds `meant[k]`, were called `given[k]`."""
    values = {f"p_{name}": frame[f"p_{other}"] for name, other in zip(given, meant, strict=True)}
    return frame.assign(**values)


@pytest.mark.parametrize("seed", range(5))
def test_alphabetical_columns_under_given_names_are_found(seed: int) -> None:
    given = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
    frame = renamed(predictions(given, seed=seed), given, tuple(sorted(given)))
    found = one(lint(frame, given), "LN006")
    assert found.severity == "error"
    assert "This is the alphabetical order of the classes." in found.sentence
    assert "p_nv ranks akiec" in found.sentence or "p_mel ranks bcc" in found.sentence or "p_" in found.sentence


@pytest.mark.parametrize("seed", range(5))
def test_any_order_is_found(seed: int) -> None:
    meant = tuple(SEVEN[k] for k in (3, 0, 6, 1, 5, 2, 4))
    found = one(lint(renamed(predictions(seed=seed), SEVEN, meant)), "LN006")
    assert found.severity == "error"
    swapped = renamed(predictions(seed=seed), ("mel", "nv"), ("nv", "mel"))
    two = one(lint(swapped), "LN006")
    assert two.severity == "warning"
    assert "p_nv ranks mel; p_mel ranks nv" in two.sentence


def test_swapped_columns_of_two_classes_are_found() -> None:
    classes = ("benign", "malignant")
    frame = renamed(predictions(classes, n=100), classes, ("malignant", "benign"))
    assert one(lint(frame, classes), "LN006").severity == "error"


def test_a_class_of_few_images_proves_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 119 + [1])
    p = softmax(rng.normal(size=(120, 2)))
    assert find_column_order(p, labels, ("a", "b")) is None
    assert find_column_order(p, np.zeros(120, dtype=np.int64), ("a", "b")) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: np.log(p), "values outside 0 to 1, as logits have"),
        (lambda p: 100 * p, "percentages"),
        (lambda p: 1 / (1 + np.exp(-3 * p)), "as one-against-rest scores have"),
        (lambda p: np.where(p == p.max(), np.nan, p), "no numbers"),
    ],
)
def test_no_probabilities(change: Callable[[NDArray[np.float64]], Any], words: str) -> None:
    frame = predictions()
    columns = [f"p_{name}" for name in SEVEN]
    changed = change(frame[columns].to_numpy())
    frame = frame.assign(**dict(zip(columns, changed.T, strict=True)))
    found = one(lint(frame), "LN007")
    assert found.severity == "error"
    assert words in found.sentence


def test_text_instead_of_numbers_is_told() -> None:
    frame = predictions().astype(str)
    frame.loc[0, "p_nv"] = "high"
    assert one(lint(frame), "LN007").n == 1


def test_a_class_without_a_column_is_told() -> None:
    (found,) = lint(predictions().drop(columns="p_nv"))
    assert (found.code, found.sentence) == ("LN007", "There is no column p_nv.")


def test_repeated_images() -> None:
    frame = predictions()
    twice = pd.concat([frame, frame.head(3)], ignore_index=True)
    assert one(lint(twice), "LN008").n == 3
    runs = pd.concat([frame, frame.assign(seed=1)], ignore_index=True)
    assert "LN008" not in codes(lint(runs))


def test_images_that_are_not_on_the_side() -> None:
    frame = predictions()
    sides = frame[["image_id", "split"]]
    assert "LN009" not in codes(lint(frame, split_frame=sides))
    assert "420 images have no prediction" in one(lint(frame.head(400), split_frame=sides), "LN009").sentence
    moved = sides.assign(split=["train"] * 5 + ["test"] * 415)
    assert (
        "5 predictions are of images that are not on that side"
        in one(lint(frame, split_frame=moved), "LN009").sentence
    )


def test_too_good_to_be_true() -> None:
    frame = predictions(strength=6.0)
    assert one(lint(frame), "LN010").severity == "warning"
    assert one(lint(frame, is_audited=True), "LN010").severity == "note"
    assert codes(lint_predictions(frame, SEVEN)) == []  # nothing says that these are lesions
    assert "LN010" not in codes(lint(frame.head(42)))
    assert "LN010" not in codes(lint(predictions(strength=2.5)))


def test_saturated_probabilities() -> None:
    frame = predictions()
    columns = [f"p_{name}" for name in SEVEN]
    hard = frame.assign(**dict(zip(columns, np.eye(7)[frame[columns].to_numpy().argmax(axis=1)].T, strict=True)))
    found = one(lint(hard), "LN011")
    assert found.severity == "warning"
    assert "decisions, not probabilities" in found.sentence
    sharp = table(softmax(60 * np.log(frame[columns].to_numpy())), np.arange(420) % 7, SEVEN)
    assert one(lint(sharp), "LN011").severity == "note"


def test_a_predicted_class_that_is_not_the_most_probable() -> None:
    frame = predictions()
    frame.loc[[0, 1], "predicted"] = ["nv" if frame["predicted"][i] != "nv" else "mel" for i in (0, 1)]
    assert one(lint(frame), "LN012").n == 2
    frame.loc[2, "predicted"] = "no class"
    assert one(lint(frame), "LN012").n == 3
    assert "LN012" not in codes(lint(frame.drop(columns="predicted")))


def test_the_same_answer_for_all() -> None:
    p = np.tile(softmax(np.arange(7.0)[None]), (50, 1))
    found = one(lint(table(p, np.arange(50) % 7, SEVEN)), "LN013")
    assert "All 50 images get the same probabilities (vasc first)." in found.sentence
    assert "LN013" not in codes(lint(table(p[:5], np.arange(5), SEVEN)))


def test_labels_of_another_table() -> None:
    frame = predictions()
    labels = dict(zip(frame["image_id"], frame["label"], strict=True))
    labels["test/0003"] = "nv"
    found = one(lint(frame, labels=labels), "LN014")
    assert (found.n, "test/0003" in found.sentence) == (1, True)


def test_validation_and_test_of_one_table() -> None:
    test, validation = predictions(n=70), predictions(n=70, seed=1, split="validation")
    same = validation.assign(image_id=test["image_id"])
    assert one(lint(pd.concat([test, same])), "LN003").severity == "error"
    other_names = test.assign(split="validation", image_id=[f"v{i}" for i in range(70)])
    assert "very probabilities of a test row" in one(lint(pd.concat([test, other_names])), "LN003").sentence
    folds = pd.concat([test.assign(fold=0), same.assign(fold=1)])
    assert "LN003" not in codes(lint(folds))


def test_saturated_rows_do_not_make_validation_and_test_the_same() -> None:
    p = np.eye(7)[np.arange(70) % 7]
    sides = [table(p, np.arange(70) % 7, SEVEN, split) for split in ("validation", "test")]
    assert "LN003" not in codes(lint(pd.concat(sides)))


# Files and pages ----------------------------------------------------------------------------------------------------


def test_rows_are_written_worst_first_and_read_back(tmp_path: Path) -> None:
    assert read_lint(tmp_path) is None
    rows = lint_rows([LintFinding("LN005", "note", "b", 2), LintFinding("LN006", "error", "a", 1)])
    write_lint(tmp_path, [*rows[1:], *rows[:1]])
    assert read_lint(tmp_path) == rows
    assert [row["code"] for row in rows] == ["LN006", "LN005"]
    assert set(rows[0]) == {"code", "severity", "title", "sentence", "n", "effect", "remedy"}


def test_every_rule_stands_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "lint.md").read_text()
    for code, rule in LINT_RULES.items():
        assert f"| {code} | {rule.title} | {rule.threshold} | {rule.effect} | {rule.remedy} |" in text
    assert set(re.findall(r"LN\d{3}", text)) == set(LINT_RULES)


def test_every_rule_has_a_planted_case_here() -> None:
    text = Path(__file__).read_text()
    assert [code for code in LINT_RULES if f'"{code}")' not in text] == []


def test_a_run_writes_its_lint_and_its_report_shows_it(trained: Path) -> None:
    rows = read_lint(trained)
    assert rows is not None
    html = (trained / "report.html").read_text()
    assert 'id="lint"' in html
    assert re.findall(r'data-lint="(LN\d{3})"', html) == [row["code"] for row in rows]


def test_folders_that_number_their_files_from_zero_say_nothing_of_each_other() -> None:
    """Flips of training images beside their originals are no leak; a flip on the other side is one."""
    names = [f"train/benign/{n}.jpg" for n in range(4)] + [f"train/benign/{n}_flip.jpg" for n in range(4)]
    names += [
        "test/benign/0.jpg",
        "test/benign/1.jpg",
        "train/malignant/ISIC_0000007.jpg",
        "test/x/ISIC_0000007_flip.jpg",
    ]
    found = dict(zip(names, _origins(pd.Series(names)), strict=True))
    assert found["train/benign/0_flip.jpg"] == found["train/benign/0.jpg"] == "train/benign/0"
    assert found["test/benign/0.jpg"] == ""
    assert found["test/x/ISIC_0000007_flip.jpg"] == found["train/malignant/ISIC_0000007.jpg"] != ""


def test_a_long_name_of_many_words_is_read_at_once() -> None:
    began = time.perf_counter()
    _origins(pd.Series(["a/" + "copy_" * 40 + "x.jpg", "a/" + "flip " * 40 + "!.jpg", "a/x_copy_2_flip.jpg"]))
    # Tried in every way there is, this would take longer than the machine lasts.
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(("classes", "digits", "rows"), [(2, 3, 1000), (2, 4, 4000), (9, 2, 400)])
def test_rounded_probabilities_are_neither_twins_nor_wrong(classes: int, digits: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(classes), rows).round(digits)
    names = [f"c{number}" for number in range(classes)]
    frame = pd.DataFrame({f"p_{name}": p[:, at] for at, name in enumerate(names)})
    frame["image_id"] = [f"i{number}" for number in range(rows)]
    frame["label"] = rng.choice(names, rows)
    frame["split"] = np.where(np.arange(rows) < rows // 3, "validation", "test")
    frame["predicted"] = [names[at] for at in p.argmax(axis=1)]
    assert {item.code for item in lint_predictions(frame, names)} & {"LN003", "LN007"} == set()
