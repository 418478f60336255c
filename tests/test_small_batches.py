"""Known before the first epoch: one class to learn, or batches that batch norm has no variance of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dermkit as dk
from dermkit.data.importers.run import import_dataset
from dermkit.data.manifest import Dataset, load_dataset
from dermkit.errors import DataError, UsageError
from dermkit.pipeline.plan import RunSettings
from dermkit.recipes.augmentation import NO_AUGMENTATION
from dermkit.recipes.experiments import full_phase, head_phase
from dermkit.recipes.schema import Recipe
from dermkit.recipes.training_specs import Phase
from dermkit.training.batch_norm import check_batch_norm, single_value_layers
from dermkit.training.distributed import process_group
from dermkit.training.learning_rates import LearningRates
from dermkit.training.loop import train_net
from dermkit.training.loss import TrainingLoss
from dermkit.training.samples import PixelSource, Samples
from dermkit.training.step import TrainStep
from made_images import speckled
from test_train import BASE, SMALL, equal, make_job, make_net, state

SINGLE: Recipe = replace(
    BASE, model=SMALL, phases=(full_phase(1, lr=1e-3),), optim=replace(BASE.optim, batch_size=1)
)


def test_a_batch_of_one_on_a_map_of_one_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        train_net(make_job(SINGLE, tmp_path), make_net(SINGLE), tmp_path, fabric=process_group.start_fabric("cpu"))
    assert "optim.batch_size is 1" in caught.value.message and "1 x 1 at image.size 32" in caught.value.message
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_later_phase_is_looked_at_before_the_first(tmp_path: Path) -> None:
    recipe = replace(SINGLE, phases=(head_phase(1, lr=1e-3), full_phase(1, lr=1e-3)))
    with pytest.raises(UsageError, match="in phase 1 the layer backbone"):
        check_batch_norm(make_net(recipe), recipe, 44)


@pytest.mark.parametrize(
    ("size", "batch_size", "n_samples", "phase"),
    [
        (32, 8, 44, full_phase(1, lr=1e-3)),
        (64, 1, 44, full_phase(1, lr=1e-3)),  # mobilenetv2 reduces 32 times: 2 x 2 values are left
        (32, 1, 44, head_phase(1, lr=1e-3)),
        (32, 1, 44, replace(full_phase(1, lr=1e-3), freeze_batch_norm=True)),
    ],
)
def test_batches_that_can_be_trained_on_are_not_refused(
    size: int, batch_size: int, n_samples: int, phase: Phase
) -> None:
    recipe = replace(
        SINGLE,
        image=replace(SINGLE.image, size=size),
        optim=replace(SINGLE.optim, batch_size=batch_size),
        phases=(phase,),
    )
    check_batch_norm(make_net(recipe), recipe, n_samples)


def test_one_training_image_is_a_batch_of_one() -> None:
    recipe = replace(SINGLE, optim=replace(SINGLE.optim, batch_size=8))
    with pytest.raises(UsageError, match="there is one training image"):
        check_batch_norm(make_net(recipe), recipe, 1)


def test_looking_at_a_net_changes_nothing_of_it() -> None:
    net = make_net(SINGLE)
    before, modes = state(net), [module.training for module in net.modules()]
    learns, random = [p.requires_grad for p in net.parameters()], torch.get_rng_state()
    assert single_value_layers(net, SINGLE.phases[0], 32)
    assert equal(before, state(net))
    assert modes == [module.training for module in net.modules()]
    assert learns == [p.requires_grad for p in net.parameters()]
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("size", "micro", "expected"), [(5, 2, [3, 2]), (3, 2, [3]), (7, 2, [3, 2, 2]), (4, 2, [2, 2]), (3, 1, [3])]
)
def test_no_pass_is_of_one_image_where_batch_norm_needs_two(
    tmp_path: Path, size: int, micro: int, expected: list[int]
) -> None:
    job = make_job(BASE, tmp_path)
    samples = Samples.build(job.image_ids, job.labels, job.train_rows, NO_AUGMENTATION, None, seed=0)
    stepper = TrainStep(
        module=None, optimizer=None, fabric=process_group.start_fabric("cpu"),
        process_group=process_group.SINGLE_PROCESS,
        source=PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu")),
        compute=BASE.compute, loss=TrainingLoss(None, 0.0),
        rates=LearningRates((), SINGLE.phases[0], SINGLE.optim, 1, 1.0), n_classes=2, seed=0,
        micro_batch_size=micro, min_pass_size=2,
    )  # fmt: skip
    assert [len(images) for (images,), _ in stepper.prepare(np.arange(size), epoch=1)] == expected


# One class -----------------------------------------------------------------------------------------------------------


def make_dataset(root: Path, names: list[str]) -> Dataset:
    for seed, name in enumerate(names):
        (root / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        speckled(seed=seed).save(root / "src" / name)
    return import_dataset("folder", root / "src", out=root / "ds").dataset


def test_a_data_set_of_one_class_is_told_at_import_and_not_trained_on(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [f"{split}/nevus/{n}.png" for split in ("train", "test") for n in range(4)])
    assert "one_class" in [note["code"] for note in dataset.notes["warnings"]]
    settings = RunSettings(out=tmp_path / "runs")
    with pytest.raises(DataError, match="has one class, nevus, and a classifier needs two"):
        dk.train(BASE, dataset, settings=settings)
    with pytest.raises(DataError, match="has one class, nevus, and a classifier needs two"):
        dk.tune([BASE], dataset, name="grid", settings=settings)
    assert not (tmp_path / "runs").exists()


def test_training_images_of_one_class_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [f"{label}/{n}.png" for label in ("melanoma", "nevus") for n in range(4)])
    rows = [("melanoma", "validation"), ("nevus", "train"), ("melanoma", "test"), ("nevus", "test")]
    lines = [
        f"{label}/{n},{rows[2 * (n > 1) + (label == 'nevus')][1]},\n" for label, _ in rows[:2] for n in range(4)
    ]
    path = tmp_path / "ds" / "splits" / "odd.csv"
    path.parent.mkdir()
    path.write_text("image_id,split,fold\n" + "".join(lines))
    with pytest.raises(DataError, match="split odd: all 2 training images are of the class nevus"):
        dk.train(BASE, dataset, split="odd", settings=RunSettings(out=tmp_path / "runs"))


def test_predictions_of_one_class_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [f"{split}/nevus/{n}.png" for split in ("train", "test") for n in range(4)])
    table = tmp_path / "p.csv"
    table.write_text("image,nevus\n" + "".join(f"{image},1.0\n" for image in dataset.manifest["image_id"]))
    with pytest.raises(DataError, match="of one class, nevus; figures need two"):
        dk.evaluate(None, dataset=load_dataset(tmp_path / "ds"), predictions=table, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()
