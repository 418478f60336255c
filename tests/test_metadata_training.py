"""A net with metadata as its second input: batches, mixing, unknown values, learning, resuming."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dermkit.errors import RunInterrupt, UsageError
from dermkit.models.metadata import fit_metadata
from dermkit.models.net import Net, build_net
from dermkit.models.requirements import check_requirements
from dermkit.models.weights import resolve_weights
from dermkit.recipes.derive import derive_recipe
from dermkit.recipes.experiments import ROTATE_FLIP_ZOOM, find_recipe, full_phase, head_phase
from dermkit.recipes.schema import ClassifierSpec, Recipe
from dermkit.recipes.short_forms import ShortForms, short_form_assignments
from dermkit.recipes.training_specs import MetadataSpec, MixupSpec, SmoteSpec
from dermkit.training.checkpoint import TrainingProgress
from dermkit.training.distributed import process_group
from dermkit.training.distributed.process_group import SINGLE_PROCESS
from dermkit.training.features import FeatureSource
from dermkit.training.loop import train_net
from dermkit.training.metadata_batches import EncodedMetadata
from dermkit.training.phase_setup import make_batch_source, make_pixel_source
from dermkit.training.samples import PixelSource
from dermkit.training.state import TrainingHooks, TrainingJob, TrainingState
from test_train import BASE, SMALL, N, equal, make_job, state

CNN = replace(SMALL, backbone="dermkit/cnn-s1", dropout=0.0)
SPEC = MetadataSpec(fields=("age", "sex", "site"), p_unknown=0.0)
OPTIM = replace(BASE.optim, batch_size=11)
FROZEN = replace(BASE, model=replace(SMALL, metadata=SPEC), phases=(head_phase(30, lr=3e-2),), optim=OPTIM)
WHOLE = replace(BASE, model=replace(CNN, metadata=SPEC), phases=(full_phase(12, lr=3e-3),), optim=OPTIM)


def table(labels: Any) -> pd.DataFrame:
    """Return metadata that hold the label in `sex`; ages and sites are chance, some unknown."""
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "age": [str(age) if age > 30 else "" for age in rng.integers(20, 80, len(labels))],
            "sex": np.where(np.asarray(labels) == 1, "female", "male"),
            "site": rng.choice(["back", "face", ""], len(labels)),
        }
    )


def job_of(recipe: Recipe, folder: Path) -> TrainingJob:
    """Return a training of images that are noise alone, whose label is in the metadata alone."""
    job = make_job(recipe, folder / "cache")
    noise = np.random.default_rng(5).integers(0, 256, (N, 32, 32, 3)).astype(np.uint8)
    metadata = None
    if spec := recipe.model.metadata:
        frame = table(job.labels)
        encoder = fit_metadata(spec.fields, frame.iloc[job.train_rows])
        metadata = EncodedMetadata(encoder, encoder.encode(frame), spec.p_unknown)
    return replace(job, pixels=noise, metadata=metadata)


def net_of(recipe: Recipe, job: TrainingJob, seed: int = 0) -> Net:
    n_metadata = 0 if job.metadata is None else job.metadata.encoder.width
    return build_net(
        recipe.model, 2, weights=resolve_weights(recipe.model, None), seed=seed, n_metadata=n_metadata
    )


def train(recipe: Recipe, folder: Path, hooks: TrainingHooks | None = None) -> tuple[Net, TrainingProgress]:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    job = job_of(recipe, folder)
    net = net_of(recipe, job)
    fabric = process_group.start_fabric("cpu")
    return net, train_net(job, net, folder / "checkpoints", fabric=fabric, hooks=hooks)


def without(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, metadata=None))


def classifier(kind: Any) -> Recipe:
    spec = ClassifierSpec(kind=kind, penalty=1.0, neighbours=3, iterations=20, learning_rate=0.3, max_leaves=4)
    return replace(
        FROZEN,
        model=replace(FROZEN.model, dropout=0.0, classifier=spec),
        phases=(head_phase(1),),
        optim=BASE.optim,
    )


@pytest.mark.parametrize(
    "recipe",
    [FROZEN, WHOLE, classifier("gradient_boosting")],
    ids=["frozen", "whole", "gradient_boosting"],
)
def test_a_label_that_is_in_the_metadata_alone_is_learnt_with_them_and_not_without(
    recipe: Recipe, tmp_path: Path
) -> None:
    _, with_metadata = train(recipe, tmp_path / "with")
    _, image_alone = train(without(recipe), tmp_path / "without")
    assert max(row["val_accuracy"] for row in with_metadata.log_rows) > 0.9
    assert image_alone.log_rows[-1]["val_accuracy"] < 0.85


@pytest.mark.parametrize("kind", ["k_nearest", "svm"])
def test_other_classifiers_get_the_features_with_the_metadata_beside_them(kind: Any, tmp_path: Path) -> None:
    net, _ = train(classifier(kind), tmp_path)
    assert net.head.get_buffer("mean").shape == (net.n_features + net.n_metadata,) == (1280 + 6,)


def test_a_logistic_regression_is_that_of_scikit_learn_on_features_and_metadata(tmp_path: Path) -> None:
    recipe = classifier("logistic")
    net, _ = train(recipe, tmp_path)
    source, metadata = sources(recipe, tmp_path)
    joined = np.hstack([source.batch(np.arange(44), epoch=1, seed=0).numpy(), metadata.vectors[:44]])
    z = (joined - joined.mean(0)) / np.where(joined.std(0) > 0, joined.std(0), 1)
    reference = LogisticRegression(C=1.0, max_iter=5000, tol=1e-9).fit(z, source.samples.labels)
    with torch.inference_mode():
        p = net.head(torch.from_numpy(joined)).softmax(1).numpy()
    assert np.abs(p - reference.predict_proba(z)).max() < 1e-4


def sources(recipe: Recipe, folder: Path) -> tuple[Any, EncodedMetadata]:
    job = job_of(recipe, folder)
    training = TrainingState(
        job, folder, net_of(recipe, job), process_group.start_fabric("cpu"), SINGLE_PROCESS, TrainingHooks()
    )
    assert job.metadata is not None
    return make_batch_source(training, recipe.phases[0], make_pixel_source(training)), job.metadata


ROWS = np.array([3, 0, 41, 7])


def test_pixels_and_features_come_with_the_vectors_of_their_samples(tmp_path: Path) -> None:
    pixels, metadata = sources(WHOLE, tmp_path / "pixels")
    assert isinstance(pixels, PixelSource)
    images, vectors = pixels.inputs(ROWS, epoch=1, seed=0)
    assert torch.equal(images, pixels.batch(ROWS, epoch=1, seed=0))
    assert np.array_equal(vectors.numpy(), metadata.vectors[ROWS])
    (validation,) = pixels.validation_metadata(ROWS[:2])
    assert np.array_equal(validation.numpy(), metadata.vectors[[47, 44]])
    features, metadata = sources(FROZEN, tmp_path / "features")
    assert isinstance(features, FeatureSource)
    (joined,) = features.inputs(ROWS, epoch=1, seed=0)
    assert torch.equal(joined[:, :1280], features.batch(ROWS, epoch=1, seed=0))
    assert np.array_equal(joined[:, 1280:].numpy(), metadata.vectors[ROWS])


def test_without_metadata_inputs_are_those_of_before_and_the_net_is_its_head_on_features(tmp_path: Path) -> None:
    recipe = without(WHOLE)
    job = job_of(recipe, tmp_path)
    net = net_of(recipe, job).eval()
    fabric = process_group.start_fabric("cpu")
    pixels = make_pixel_source(TrainingState(job, tmp_path, net, fabric, SINGLE_PROCESS, TrainingHooks()))
    (images,) = pixels.inputs(ROWS, epoch=1, seed=0)
    assert torch.equal(images, pixels.batch(ROWS, epoch=1, seed=0))
    assert pixels.validation_metadata(ROWS) == () and net.n_metadata == 0
    with torch.inference_mode():
        assert torch.equal(net(images), net.head(net.backbone(images)))


def test_fields_are_set_to_unknown_as_often_as_asked_anew_in_each_epoch_and_never_in_validation(
    tmp_path: Path,
) -> None:
    spec = replace(SPEC, p_unknown=0.3)
    recipe = replace(WHOLE, model=replace(WHOLE.model, metadata=spec))
    pixels, metadata = sources(recipe, tmp_path)
    rows = np.arange(44)
    epochs = [pixels.inputs(rows, epoch=epoch, seed=0)[1].numpy() for epoch in range(1, 61)]
    assert np.array_equal(epochs[0], pixels.inputs(rows, epoch=1, seed=0)[1].numpy())
    assert not np.array_equal(epochs[0], pixels.inputs(rows, epoch=1, seed=1)[1].numpy())
    halves = [pixels.inputs(part, epoch=1, seed=0)[1].numpy() for part in np.split(rows, 2)]
    assert np.array_equal(np.concatenate(halves), epochs[0])
    sex = metadata.encoder.columns_of_field["sex"]
    drawn = np.array([(vectors[:, sex] == 0).all(1) for vectors in epochs])
    assert drawn.mean() == pytest.approx(0.3, abs=0.03) and 0.1 < drawn.mean(0).min() < drawn.mean(0).max() < 0.55
    known = metadata.vectors[rows, 1] == 1
    age = np.array([vectors[known, 1] == 0 for vectors in epochs])
    assert age.mean() == pytest.approx(0.3, abs=0.03)
    assert (age & drawn[:, known]).mean() == pytest.approx(0.09, abs=0.03), "fields are drawn apart"
    assert np.array_equal(pixels.validation_metadata(rows[:16])[0].numpy(), metadata.vectors[44:])


@pytest.mark.parametrize("mix", [MixupSpec(mixup=0.4, cutmix=0.0, p=1.0), MixupSpec(mixup=0.4, cutmix=1.0, p=0.7)])
def test_vectors_are_mixed_in_the_ratio_of_the_labels(mix: MixupSpec, tmp_path: Path) -> None:
    whole, metadata = sources(replace(WHOLE, mix=mix), tmp_path / "pixels")
    views = replace(FROZEN, mix=mix, phases=(replace(head_phase(1), views=2),), augment=ROTATE_FLIP_ZOOM)
    features, _ = sources(views, tmp_path / "features")
    rows = np.arange(44)
    sex = metadata.encoder.columns_of_field["sex"]  # its columns are the label's, so both must be mixed alike
    for source, epoch in ((whole, 2), (features, 1), (features, 3)):
        targets = source.targets(rows, epoch=epoch, seed=0, n_classes=2).numpy()
        vectors = source.inputs(rows, epoch=epoch, seed=0)[-1].numpy()[:, -metadata.encoder.width :]
        np.testing.assert_allclose(vectors[:, sex], targets[:, ::-1], atol=1e-6)
    assert np.unique(targets).size > 10


def test_unknown_is_what_a_net_gets_that_is_given_no_metadata(tmp_path: Path) -> None:
    job = job_of(WHOLE, tmp_path)
    net = net_of(WHOLE, job).eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(net(images), net(images, torch.zeros(3, net.n_metadata)))
        assert not torch.allclose(net(images), net(images, torch.ones(3, net.n_metadata)))


@pytest.mark.parametrize(
    "recipe", [replace(WHOLE, phases=(full_phase(2, lr=3e-3),)), FROZEN], ids=["whole", "frozen"]
)
def test_a_stopped_training_ends_with_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    spec = replace(SPEC, p_unknown=0.4)
    recipe = replace(
        recipe, model=replace(recipe.model, metadata=spec), phases=(replace(recipe.phases[0], epochs=2),)
    )
    left_alone, _ = train(recipe, tmp_path / "alone")
    answers = iter([False] * 5)
    with pytest.raises(RunInterrupt):
        train(recipe, tmp_path / "stopped", TrainingHooks(should_stop=lambda: next(answers, True)))
    resumed, _ = train(recipe, tmp_path / "stopped")
    assert equal(state(left_alone), state(resumed))


def test_metadata_and_smote_are_refused_together() -> None:
    recipe = replace(FROZEN, smote=SmoteSpec(target_fraction=1.0, neighbours=3))
    with pytest.raises(UsageError, match="no image is half a category"):
        check_requirements(recipe, None)


# The short form -----------------------------------------------------------------------------------------------------


def derived(text: str, name: str = "demo") -> Recipe:
    recipe = find_recipe(name)
    return derive_recipe(recipe, short_form_assignments(recipe, ShortForms(metadata=text)))


def test_the_short_form_puts_fields_in_order_and_takes_them_out_again() -> None:
    with_metadata = derived("site, age")
    assert with_metadata.model.metadata == MetadataSpec(fields=("age", "site"), p_unknown=0.1)
    assert with_metadata.name == "demo-metadata_age-site-0.1"
    back = derive_recipe(with_metadata, short_form_assignments(with_metadata, ShortForms(metadata="none")))
    assert back == find_recipe("demo")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,sxe", "did you mean `sex`"),
        ("age,age", "'age' is twice"),
        ("", "'' is unknown"),
        ("age,none", "'none' is"),
    ],
)
def test_a_wrong_field_of_the_short_form_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        derived(text)
