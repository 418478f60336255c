"""Averaged weights: what they are, and that they are what is validated, saved, resumed and handed on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dermkit.models.net import Net, freeze, set_train_mode
from dermkit.models.weights import import_timm
from dermkit.recipes.experiments import ROTATE_FLIP_ZOOM, full_phase, head_phase
from dermkit.recipes.schema import Recipe, parse_recipe, recipe_to_dict
from dermkit.training.averaging import WeightAverage
from dermkit.training.checkpoint import (
    LAST_CHECKPOINT,
    TrainingProgress,
    checkpoint_bytes,
    load_checkpoint,
    save_checkpoint,
)
from dermkit.training.distributed import process_group
from dermkit.training.loop import train_net
from dermkit.training.samples import PixelSource, Samples
from dermkit.training.state import TrainingHooks
from dermkit.training.validation import validation_metrics
from test_train import BASE, equal, make_job, make_net, run, state

PIXELS: Recipe = replace(BASE, phases=(full_phase(2, lr=1e-3),), augment=ROTATE_FLIP_ZOOM, keep="last")


def averaged(recipe: Recipe, decay: float = 0.9) -> Recipe:
    return replace(recipe, optim=replace(recipe.optim, ema_decay=decay))


def layers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def change(net: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator))
        else:
            tensor.add_(1)


def test_an_average_is_timms_step_by_step() -> None:
    net = layers()
    average, reference = WeightAverage(net, 0.6), import_timm().utils.ModelEmaV3(net)
    decays = []
    for step in range(12):
        change(net, step)
        average.update(net, step)
        decays.append(average.step_decay(step))
        reference.apply_update_(net, decays[-1])
    assert decays == pytest.approx([min(0.6, (1 + n) / (10 + n)) for n in range(12)])
    assert decays[0] == 0.1 and decays[-1] != decays[0] and average.step_decay(100) == 0.6
    assert average.tensors.keys() == net.state_dict().keys()
    assert equal(average.tensors, reference.module.state_dict())
    assert int(average.tensors["1.num_batches_tracked"]) == 12, "counters are copied"


def test_what_does_not_train_is_not_averaged() -> None:
    phase = replace(full_phase(1, lr=1e-3), train_backbone=1)
    net = make_net(PIXELS)
    freeze(net, phase)
    set_train_mode(net, phase)
    names = set(WeightAverage(net, 0.9).tensors)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained <= names < set(net.state_dict())
    assert all(name in trained or "running_" in name or "num_batches" in name for name in names)


def test_a_net_holds_the_average_within_a_block_alone_and_its_tensors_stay_the_same_objects() -> None:
    net = layers()
    average, pointers = WeightAverage(net, 0.9), [tensor.data_ptr() for tensor in net.parameters()]
    change(net, 0)
    raw = state(net)
    with pytest.raises(KeyError), average.applied(net):
        assert equal(state(net), average.tensors)
        raise KeyError
    assert equal(state(net), raw)
    assert [tensor.data_ptr() for tensor in net.parameters()] == pointers


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, TrainingProgress, list[dict[str, Any]], Path]:
    """Return an averaged run of two epochs, and the net's raw tensors before and after each of its steps."""
    recipe, folder = averaged(PIXELS, 0.5), tmp_path_factory.mktemp("watched")
    net = make_net(recipe)
    raw = [state(net)]

    def note() -> bool:
        raw.append(state(net))
        return False

    progress = train_net(
        make_job(recipe, folder),
        net,
        folder,
        fabric=process_group.start_fabric("cpu"),
        hooks=TrainingHooks(should_stop=note),
    )
    return net, progress, raw, folder


def test_the_average_of_a_run_is_that_of_its_steps(watched: tuple[Any, ...]) -> None:
    """Computed anew in float64 from the raw tensors after every step."""
    net, progress, raw, folder = watched
    assert len(raw) == 1 + 2 * 6
    for name, value in net.state_dict().items():
        expected = raw[0][name].double()
        for n, tensors in enumerate(raw[1:]):
            decay = min(0.5, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * tensors[name].double()
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, raw[-1][name])
    assert not equal(state(net), raw[-1])
    with safe_open(folder / LAST_CHECKPOINT, framework="pt") as stream:
        saved = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    assert equal({name: saved[f"net.{name}"] for name in raw[-1]}, state(net))
    assert equal({name: saved[f"raw.{name}"] for name in raw[-1]}, raw[-1])
    assert progress.raw_weights == {}


def test_the_average_is_what_is_validated(watched: tuple[Any, ...], tmp_path: Path) -> None:
    net, progress, _, _ = watched
    job = make_job(PIXELS, tmp_path)
    samples = Samples.build(job.image_ids, job.labels, job.train_rows, ROTATE_FLIP_ZOOM, None, seed=0)
    source = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        logits = net(source.validation_batch(np.arange(16))).double().numpy()
    metrics = validation_metrics(logits, job.labels[job.validation_rows])
    assert progress.log_rows[-1]["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-6)


def test_a_loaded_checkpoint_is_the_averaged_net_and_goes_on_from_the_raw_one(tmp_path: Path) -> None:
    net, path = layers(), tmp_path / LAST_CHECKPOINT
    average = WeightAverage(net, 0.9)
    change(net, 0)
    average.update(net, 5)
    raw, size = state(net), checkpoint_bytes(net)
    assert checkpoint_bytes(net, with_average=True) - size == 4 * sum(t.nbytes for t in raw.values())
    save_checkpoint(path, net, TrainingProgress(step=3), with_backbone=True, averaged=average.tensors)
    progress = load_checkpoint(path, net)
    assert progress is not None and progress.step == 3
    assert equal(state(net), average.tensors)
    assert equal(progress.raw_weights, raw)
    progress.start_phase(1)
    assert progress.raw_weights == {}, "the next phase begins with the averaged net, and an average of its own"


def test_a_phase_begins_with_the_average_of_the_one_before(tmp_path: Path) -> None:
    """Head on cached features first, whose backbone is in no checkpoint of its own and is not averaged."""
    one = averaged(replace(PIXELS, phases=(head_phase(2),)), 0.8)
    first, _ = run(one, tmp_path / "one")
    two = replace(one, phases=(head_phase(2), replace(full_phase(1, lr=0.0), freeze_batch_norm=True)))
    second, progress = run(two, tmp_path / "two")
    assert [row["phase"] for row in progress.log_rows] == [0, 0, 1]
    for name, value in first.state_dict().items():  # the second phase, at a rate of 0, changes nothing
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)
    plain, _ = run(averaged(one, 0.0), tmp_path / "plain")
    assert not equal(state(plain), state(first))
    assert equal(state(plain.backbone), state(first.backbone))


def test_averaged_weights_are_trained_and_refused_only_where_nothing_has_steps() -> None:
    classifier = {
        "kind": "svm", "penalty": 1.0, "neighbours": 5, "iterations": 10, "learning_rate": 0.1, "max_leaves": 31,
    }  # fmt: skip
    fields = recipe_to_dict(averaged(replace(PIXELS, phases=(head_phase(1),))))
    with pytest.raises(Exception, match=r"optim\.ema_decay has no effect on model\.classifier"):
        parse_recipe({**fields, "model": {**fields["model"], "classifier": classifier}}, "recipe")
