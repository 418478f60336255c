"""SMOTE: new feature vectors of small classes, of training samples alone, seen by weights and priors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dermkit.errors import UsageError
from dermkit.models.requirements import check_requirements
from dermkit.recipes.experiments import ROTATE_FLIP_ZOOM, head_phase
from dermkit.recipes.schema import ClassifierSpec
from dermkit.recipes.training_specs import MixupSpec, SmoteSpec
from dermkit.training.distributed import process_group
from dermkit.training.distributed.process_group import SINGLE_PROCESS
from dermkit.training.loop import train_net
from dermkit.training.loss import make_loss
from dermkit.training.phase_setup import make_batch_source, make_pixel_source
from dermkit.training.smote import make_samples, small_class_notes
from dermkit.training.smote_source import SmoteSource
from dermkit.training.state import TrainingHooks, TrainingState
from test_train import BASE, SMALL, equal, make_job, make_net, run, state

FULL = SmoteSpec(target_fraction=1.0, neighbours=3)
DENSE = replace(BASE, model=SMALL, phases=(head_phase(3, lr=1e-2),), smote=FULL)


def made(counts: list[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 4)) + labels[:, None]
    return features.astype(np.float32), labels


def is_between(new: NDArray[np.float32], features: NDArray[np.float32], k: int) -> bool:
    """Say whether a vector lies between one of these and one of its k nearest among them, by brute force."""
    for number, start in enumerate(features):
        distances = np.square(features - start).sum(1)
        distances[number] = np.inf
        for end in features[np.argsort(distances)[:k]]:
            t = np.dot(new - start, end - start) / np.square(end - start).sum()
            if 0 <= t <= 1 and np.abs(start + t * (end - start) - new).max() < 1e-5:
                return True
    return False


def test_new_vectors_lie_between_neighbours_of_their_class() -> None:
    features, labels = made([20, 6, 3, 2])
    new = make_samples(features, labels, FULL, seed=1, view=1)
    assert np.bincount(new.labels).tolist() == [0, 14, 17, 18]
    for vector, label in zip(new.features, new.labels, strict=True):
        k = {1: 3, 2: 2, 3: 1}[int(label)]
        assert is_between(vector, features[labels == label], k)
    half = make_samples(features, labels, replace(FULL, target_fraction=0.25), seed=1, view=1)
    assert np.bincount(half.labels).tolist() == [0, 0, 2, 3]


def test_a_class_of_one_is_repeated_and_one_of_none_stays_empty() -> None:
    features, labels = made([5, 0, 1])
    new = make_samples(features, labels, FULL, seed=0, view=1)
    assert new.labels.tolist() == [2] * 4 and (new.features == features[labels == 2]).all()
    notes = small_class_notes({"NV": 5, "BCC": 0, "MEL": 1, "DF": 2}, FULL)
    assert notes[0].startswith("SMOTE: MEL has one training image, whose features are repeated 4 times")
    assert notes[1] == "SMOTE: DF has 2 training images, so the neighbours of each are 1 in place of 3."
    assert small_class_notes({"NV": 5, "BCC": 4}, FULL) == []


def test_new_vectors_depend_on_seed_view_and_their_own_class_alone() -> None:
    features, labels = made([20, 6, 3])
    one = make_samples(features, labels, FULL, seed=1, view=1).features
    assert np.array_equal(one, make_samples(features, labels, FULL, seed=1, view=1).features)
    for seed, view in ((2, 1), (1, 2)):
        assert not np.array_equal(one, make_samples(features, labels, FULL, seed=seed, view=view).features)
    others = features.copy()
    others[labels == 2] += 100
    changed = make_samples(others, labels, FULL, seed=1, view=1).features
    assert np.array_equal(one[:14], changed[:14]) and not np.array_equal(one[14:], changed[14:])


@pytest.fixture(scope="module")
def views_source(tmp_path_factory: pytest.TempPathFactory) -> SmoteSource:
    folder = tmp_path_factory.mktemp("smote")
    recipe = replace(DENSE, phases=(replace(head_phase(1), views=2),), augment=ROTATE_FLIP_ZOOM)
    job, fabric = make_job(recipe, folder, imbalanced=True), process_group.start_fabric("cpu")
    state_ = TrainingState(job, folder, make_net(recipe), fabric, SINGLE_PROCESS, TrainingHooks())
    source = make_batch_source(state_, recipe.phases[0], make_pixel_source(state_))
    assert isinstance(source, SmoteSource)
    return source


def test_batches_hold_real_and_new_samples_of_each_view(views_source: SmoteSource) -> None:
    samples, n_real = views_source.samples, len(views_source.source.samples)
    assert np.bincount(samples.labels).tolist() == [33, 33] and n_real == 44
    rows = np.array([50, 3, 65, 0])
    for epoch in (1, 2, 3):
        batch = views_source.batch(rows, epoch=epoch, seed=0)
        view = (epoch - 1) % 2 + 1
        real = views_source.source.batch(np.arange(n_real), epoch=epoch, seed=0).numpy()
        new = make_samples(real, views_source.source.samples.labels, FULL, seed=0, view=view).features
        assert np.array_equal(batch.numpy(), np.stack([new[6], real[3], new[21], real[0]]))
    targets = views_source.targets(rows, epoch=1, seed=0, n_classes=2)
    assert targets.tolist() == [1, *samples.labels[[3]], 1, *samples.labels[[0]]]
    assert samples.ids_of(rows) == ["SMOTE of class 1", "image-3", "SMOTE of class 1", "image-0"]
    assert views_source.validation_logits(make_net(DENSE).eval(), np.arange(16)).shape == (16, 2)


def test_weights_and_priors_count_the_new_samples(views_source: SmoteSource) -> None:
    optim = replace(BASE.optim, class_weights="balanced", logit_adjustment=1.0)
    loss = make_loss(views_source.samples.labels, 2, optim, torch.device("cpu"))
    assert loss.class_weights is not None and loss.logit_offsets is not None
    assert loss.class_weights.tolist() == [1.0, 1.0] and np.allclose(loss.logit_offsets.exp(), 0.5)


@pytest.mark.parametrize("is_dense", [True, False])
def test_training_changes_with_smote_and_never_with_images_of_other_splits(is_dense: bool, tmp_path: Path) -> None:
    spec = ClassifierSpec(
        kind="k_nearest", penalty=1.0, neighbours=3, iterations=1, learning_rate=0.1, max_leaves=2
    )
    model = SMALL if is_dense else replace(SMALL, dropout=0.0, classifier=spec)
    phases = DENSE.phases if is_dense else (head_phase(1),)
    recipe = replace(DENSE, model=model, phases=phases, keep="last")
    with_smote, _ = run(recipe, tmp_path / "with", imbalanced=True)
    without, _ = run(replace(recipe, smote=None), tmp_path / "without", imbalanced=True)
    assert not equal(head(with_smote), head(without))
    if not is_dense:
        labels = with_smote.head.get_buffer("labels")
        assert torch.bincount(labels).tolist() == [33, 33]
        assert torch.bincount(without.head.get_buffer("labels")).tolist() == [33, 11]
    job = make_job(recipe, tmp_path / "other", imbalanced=True)
    pixels, keys = np.array(job.pixels[np.arange(60)]), job.pixel_keys.copy()
    pixels[44:], keys[44:] = 255 - pixels[44:], 255 - keys[44:]
    net, folder = make_net(recipe), tmp_path / "changed"
    folder.mkdir()
    changed = replace(job, pixels=pixels, pixel_keys=keys, labels=np.where(np.arange(60) < 44, job.labels, 0))
    train_net(changed, net, folder, fabric=process_group.start_fabric("cpu"))
    assert equal(head(with_smote), head(net))


def head(net: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state(net).items() if name.startswith("head.")}


def test_mixing_is_refused_beside_smote() -> None:
    recipe = replace(DENSE, phases=(replace(head_phase(1), views=1),), mix=MixupSpec(mixup=0.2, cutmix=0.0, p=1.0))
    with pytest.raises(
        UsageError, match="mix: mixed images have two labels, and smote makes samples of one class"
    ):
        check_requirements(recipe, None)
