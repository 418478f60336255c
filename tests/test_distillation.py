"""Distillation: the loss against NumPy, its targets, what a teacher may have seen, and exact resuming."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dermkit as dk
from dermkit.errors import DataError, DermkitError, RunInterrupt, UsageError
from dermkit.models.checksums import write_checksums
from dermkit.pipeline.ensemble_sources import find_source
from dermkit.pipeline.teacher import TEACHER_FILE, Teacher, teacher_table
from dermkit.prediction.load import load_model
from dermkit.prediction.run import predict
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.distil_checks import check_distillation
from dermkit.recipes.experiments import DEMO
from dermkit.recipes.schema import Recipe
from dermkit.recipes.training_specs import DistilSpec, MixupSpec
from dermkit.training.augment.mixup import CUTMIX, MIXUP, NO_MIX, MixPlan
from dermkit.training.distillation import soften, with_teacher
from dermkit.training.loss import TrainingLoss, make_loss
from dermkit.training.samples import PixelSource, Samples

DISTIL = DistilSpec(weight=0.7, temperature=3.0)
CPU = torch.device("cpu")


def drawn(n: int = 6, k: int = 4) -> tuple[np.ndarray[Any, Any], ...]:
    """Return logits, shares of labels and a teacher's probabilities."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, k)) * 3, np.eye(k)[rng.integers(0, k, n)], rng.dirichlet(np.ones(k), n)


def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_those_of_the_paper(weights: list[float] | None, smoothing: float) -> None:
    z, shares, teacher = drawn()
    w, t = DISTIL.weight, DISTIL.temperature
    class_weights = np.ones(4) if weights is None else np.array(weights)
    q = softmax(np.log(teacher) / t)
    smooth = (1 - smoothing) * shares + smoothing / 4
    own = shares @ class_weights
    cross_entropy = -(smooth * class_weights * np.log(softmax(z))).sum(axis=1)
    divergence = (q * (np.log(q) - np.log(softmax(z / t)))).sum(axis=1)
    expected = (1 - w) * cross_entropy.sum() + w * t**2 * (own * divergence).sum()
    weighted = smooth * class_weights
    gradient = (1 - w) * (softmax(z) * weighted.sum(axis=1, keepdims=True) - weighted)
    gradient += w * t * own[:, None] * (softmax(z / t) - q)  # T squared over T, so that both parts stay comparable

    logits = torch.tensor(z, requires_grad=True)
    loss = TrainingLoss(None if weights is None else torch.tensor(class_weights), smoothing, distil=DISTIL)
    targets = torch.tensor(np.concatenate([shares, soften(teacher, t).astype(np.float64)], axis=1))
    value = loss.sum(logits, targets)
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), gradient, atol=1e-6)
    assert loss.total_weight(targets) == pytest.approx(own.sum())


def test_a_net_that_agrees_with_its_teacher_has_no_loss_of_it() -> None:
    _, shares, teacher = drawn()
    loss = TrainingLoss(None, 0.0, distil=DistilSpec(weight=1.0, temperature=2.0))
    logits = torch.tensor(np.log(teacher), requires_grad=True)
    targets = torch.tensor(np.concatenate([shares, soften(teacher, 2.0)], axis=1))
    value = loss.sum(logits, targets)
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)
    assert float(logits.grad.abs().max()) < 1e-6  # type: ignore[union-attr]


def test_probabilities_are_softened_and_a_certain_teacher_is_no_nan() -> None:
    p = np.array([[0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [np.nan] * 3])
    found = soften(p, 2.0)
    root = np.sqrt([0.9, 0.1])
    assert found[0] == pytest.approx([*(root / root.sum()), 0.0], abs=1e-7)
    assert found[1].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(found[2]).all()
    loss = TrainingLoss(None, 0.0, distil=DISTIL)
    targets = torch.tensor(np.concatenate([np.eye(3)[[0]], found[[1]]], axis=1))
    assert torch.isfinite(loss.sum(torch.zeros(1, 3), targets.float()))


def test_a_mixed_image_has_its_teachers_probabilities_mixed_as_its_labels() -> None:
    teacher = np.eye(3, dtype=np.float32)
    plan = MixPlan(
        partner=np.array([1, 2, 2]), kind=np.array([MIXUP, CUTMIX, NO_MIX]),
        self_weight=np.array([0.25, 0.75, 1.0]), centres=np.array([[0.5, 0.5]] * 3),
    )  # fmt: skip
    shares = torch.zeros(3, 3)
    found = with_teacher(
        shares, teacher, np.array([0, 1, 2]), np.array([1, 2, 2]), plan, n_classes=3, size=16
    ).numpy()[:, 3:]
    own = plan.label_weights(16)
    assert own.tolist() == [0.25, 0.75, 1.0]  # a square of 8 of 16 pixels is a quarter of the image
    np.testing.assert_allclose(found, [[0.25, 0.75, 0.0], [0.0, 0.75, 0.25], [0.0, 0.0, 1.0]], atol=1e-7)


def test_copies_and_mixed_samples_of_a_source_have_the_teacher_of_their_image() -> None:
    rng = np.random.default_rng(1)
    labels, p = np.array([0, 0, 0, 1]), rng.dirichlet(np.ones(2), 4).astype(np.float32)
    mix = MixupSpec(mixup=1.0, cutmix=0.0, p=1.0)
    grow = dk.RECIPES["s4-cnn"].grow
    assert grow is not None
    samples = Samples.build(tuple("abcd"), labels, np.arange(4), NO_AUGMENTATION, grow, seed=0, mixup=mix)
    samples = replace(samples, teacher=p)
    source = PixelSource(samples, rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), np.arange(0), PIXELS, CPU)
    rows = np.arange(len(samples))
    assert len(rows) > 4
    targets = source.targets(rows, epoch=1, seed=0, n_classes=2).numpy()
    plan = samples.mix_plan(rows, seed=0, epoch=1)
    assert plan is not None
    own = plan.label_weights(8)[:, None]
    expected = own * p[samples.rows[rows]] + (1 - own) * p[samples.rows[plan.partner]]
    np.testing.assert_allclose(targets[:, 2:], expected, atol=1e-6)
    assert targets[:, :2].sum(axis=1) == pytest.approx(1)
    plain = replace(samples, teacher=None)
    again = PixelSource(plain, source.pixels, np.arange(0), PIXELS, CPU)
    np.testing.assert_array_equal(again.targets(rows, epoch=1, seed=0, n_classes=2).numpy(), targets[:, :2])


def test_without_a_teacher_the_loss_is_what_it_was() -> None:
    assert make_loss(np.array([0, 1]), 2, DEMO.optim, CPU).distil is None


PIXELS = dk.Preprocessing(
    size=16, resize="squash", interpolation="bilinear", divide_by=255.0, mean=(0.0,) * 3, std=(1.0,) * 3
)


# Teachers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tiny: Recipe) -> Recipe:
    return replace(tiny, name="student", model=replace(tiny.model, hidden=(4,)), distil=DISTIL)


@pytest.fixture(scope="module")
def distilled(student: Recipe, trained: Path, binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that learned from `trained`, on its split."""
    settings = dk.RunSettings(out=tmp_path_factory.mktemp("distilled"), device="cpu", teacher=trained)
    return dk.train(student, dk.load_dataset(binary), settings=settings)


def test_a_net_learns_from_its_teacher_and_says_so(distilled: Path, trained: Path, binary: Path) -> None:
    run_json = json.loads((distilled / "run.json").read_text())
    teacher = run_json["teacher"]
    assert teacher["recipe"] == "tiny" and not teacher["is_out_of_fold"]
    assert "has learned from those that are its own" in (distilled / "model" / "MODEL_CARD.md").read_text()
    assert json.loads((distilled / "model" / "model.json").read_text())["training"]["teacher"] == teacher
    # The table holds, for each training image, what the teacher's folder predicts after its temperature.
    table = pd.read_csv(distilled / TEACHER_FILE)
    dataset, model = dk.load_dataset(binary), load_model(trained)
    split = pd.read_csv(distilled / "split.csv")
    assert table["image_id"].tolist() == split.loc[split["split"] == "train", "image_id"].tolist()
    paths = dataset.manifest.set_index("image_id").loc[table["image_id"], "path"]
    scores = model.score_files([(path, dataset.image_root / path) for path in paths])
    assert model.policy is not None
    p = model.policy.calibration.without_bias().apply(
        np.array([score.probabilities for score in scores], dtype=np.float64)
    )
    np.testing.assert_allclose(table[["p_benign", "p_malignant"]], p, atol=1e-6)
    steps = (distilled / "NEXT_STEPS.txt").read_text()
    assert f"--teacher {trained}" in steps


def test_a_distilled_model_gives_the_same_labels_alone_and_in_batches(
    distilled: Path, binary: Path, tmp_path: Path
) -> None:
    images = str(dk.load_dataset(binary).image_root)
    tables = [
        pd.read_csv(
            predict(distilled, [images], out=tmp_path / f"{size}", batch_size=size).out / "predictions.csv"
        )
        for size in (1, 32)
    ]
    assert tables[0]["predicted"].tolist() == tables[1]["predicted"].tolist()
    columns = ["p_benign", "p_malignant"]
    np.testing.assert_allclose(tables[0][columns], tables[1][columns], rtol=0, atol=1e-5)


def test_an_interrupted_distillation_ends_with_the_same_bits(
    distilled: Path, student: Recipe, trained: Path, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, settings = dk.load_dataset(binary), dk.RunSettings(out=tmp_path, device="cpu", teacher=trained)

    def stop(*_args: object) -> None:
        raise RunInterrupt("stopped", outcome="", remedy="")

    with monkeypatch.context() as patched:
        patched.setattr("dermkit.pipeline.run._epoch_line", stop)
        with pytest.raises(RunInterrupt):
            dk.train(student, dataset, settings=settings)
    run = dk.train(student, dataset, settings=replace(settings, resume=True))
    assert run.name == distilled.name
    for name in ("predictions.csv", TEACHER_FILE, "model/member-0.safetensors"):
        assert (run / name).read_bytes() == (distilled / name).read_bytes(), name


def test_the_teacher_is_a_part_of_the_fingerprint_and_its_operating_points_are_not(
    trained: Path, tmp_path: Path
) -> None:
    own = Teacher(find_source(trained)).sha256
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    card = json.loads((copy / "model" / "model.json").read_text())
    for change, is_same in (
        ({"operating_points": []}, True),
        ({"calibration": {**card["calibration"], "temperature": 1.5}}, False),
        ({"members": [{**card["members"][0], "views": ["flip"]}]}, False),
    ):
        (copy / "model" / "model.json").write_text(json.dumps({**card, **change}))
        write_checksums(copy / "model")
        assert (Teacher(find_source(copy)).sha256 == own) is is_same


def test_what_cannot_be_distilled_is_refused_before_training(
    student: Recipe, tiny: Recipe, trained: Path, binary: Path, nine: Path, tmp_path: Path
) -> None:
    dataset = dk.load_dataset(binary)
    other_split = replace(student, split=replace(student.split, seed=5))
    seen_test = with_images_as(trained, tmp_path / "seen-test", dataset, "test", "validation")
    for recipe, data, teacher, message, code in (
        (student, dataset, None, "has `distil` and no teacher", 2),
        (tiny, dataset, trained, "has no `distil`", 2),
        (student, dataset, tmp_path / "absent", "no such folder", 3),
        (other_split, dataset, trained, r"has seen \d+ of the \d+ validation images", 3),
        (student, dataset, seen_test, r"has seen 1 of the \d+ test images", 3),
        (student, dk.load_dataset(nine), trained, "knows other classes", 3),
    ):
        settings = dk.RunSettings(out=tmp_path / "runs", device="cpu", teacher=teacher)
        with pytest.raises(DermkitError, match=message) as caught:
            dk.train(recipe, data, settings=settings)
        assert caught.value.exit_code == code
        assert not list((tmp_path / "runs").rglob("run.json"))
    adjusted = replace(student, optim=replace(student.optim, logit_adjustment=1.0))
    with pytest.raises(UsageError, match=r"distil goes with neither optim\.logit_adjustment"):
        check_distillation(adjusted, trained)


def with_images_as(run: Path, folder: Path, dataset: dk.Dataset, split: str, seen_as: str) -> Path:
    """Return a copy of a run whose model also saw an image of a split."""
    copy = Path(shutil.copytree(run, folder))
    table = pd.read_csv(run / "predictions.csv")
    image = table.loc[table["split"] == split, "image_id"].iloc[0]
    pixels = dataset.manifest.set_index("image_id").loc[image, "pixel_sha256"]
    path = copy / "model" / "seen.csv"
    path.write_text(path.read_text() + f"{pixels},,{seen_as}\n")
    write_checksums(copy / "model")
    return copy


def test_out_of_fold_probabilities_are_those_of_the_net_that_did_not_see_the_image(
    trained: Path, binary: Path, tmp_path: Path
) -> None:
    """A folder of folds made by hand: each image's target is its fold's row, after that net's own calibration."""
    dataset = dk.load_dataset(binary)
    teacher = folds_teacher(trained, tmp_path / "parent", dataset)
    ids = teacher.source.rows["image_id"].tolist()[::-1]
    table = teacher_table(tmp_path, teacher, dataset, ids, dk.Progress(), "cpu")
    rows = teacher.source.rows.set_index("image_id")
    for image_id, found in zip(ids, table, strict=True):
        row, temperature = rows.loc[image_id], {"0": 0.5, "1": 2.0}[rows.loc[image_id, "fold"]]
        expected = softmax(np.log([[row["p_benign"], row["p_malignant"]]]) / temperature)[0]
        assert found == pytest.approx(expected, abs=1e-12)
    assert teacher.is_out_of_fold(dataset, ids)
    assert "by the net that was trained without it" in teacher.describe(dataset, ids)["note"]
    assert not teacher.is_out_of_fold(dataset, [*ids, "another"])
    with pytest.raises(DataError, match="not of the training images of this run"):
        teacher_table(tmp_path, teacher, dataset, ids[1:], dk.Progress(), "cpu")


def folds_teacher(run: Path, parent: Path, dataset: dk.Dataset) -> Teacher:
    """Return a parent of two folds whose nets have temperatures of 0.5 and 2, by the files of a run."""
    shutil.copytree(run, parent)
    rows = pd.read_csv(run / "predictions.csv", dtype=str, keep_default_na=False)
    validation = rows[rows["split"] == "validation"]
    validation.assign(fold=[str(n % 2) for n in range(len(validation))]).to_csv(
        parent / "predictions.csv", index=False
    )
    for fold, temperature in ((0, 0.5), (1, 2.0)):
        model = Path(shutil.copytree(run / "model", parent / f"f{fold}" / "model"))
        card = json.loads((model / "model.json").read_text())
        card["calibration"].update(kind="temperature", temperature=temperature, bias=[0.0, 0.0])
        (model / "model.json").write_text(json.dumps(card))
        write_checksums(model)
    summary = {
        "format": 2, "recipe": "tiny", "dataset": dataset.name, "metrics": {}, "pooled": {"shown_seed": 0},
        "runs": [{"seed": 0, "fold": fold, "folder": f"f{fold}"} for fold in (0, 1)],
        "final": {"seed": 0, "fold": None, "folder": "", "members": ["f0", "f1"]},
    }  # fmt: skip
    (parent / "summary.json").write_text(json.dumps(summary))
    return Teacher(find_source(parent))
