"""Statistics of batch norm from plain training images: whose they are, and that training itself does not change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dermkit.models.net import Net, freeze, set_train_mode
from dermkit.recipes.experiments import full_phase, head_phase
from dermkit.recipes.schema import Recipe
from dermkit.training import batch_norm_statistics
from dermkit.training.augment.batch import epoch_order
from dermkit.training.batch_norm_statistics import estimate_batch_norm
from dermkit.training.distributed import process_group
from dermkit.training.distributed.process_group import process_group_of
from dermkit.training.phase_setup import make_pixel_source
from dermkit.training.state import TrainingHooks, TrainingState
from dermkit.training.validation import validation_metrics
from test_engine import AVERAGED, PIXELS
from test_train import SMALL, equal, make_job, make_net, run, state

N_TRAIN = 44
RESIDUAL = replace(SMALL, backbone="resnet10t", dropout=0.0)
SGD = replace(PIXELS.optim, optimizer="sgd", momentum=0.9)


def estimating(recipe: Recipe, n_images: int = N_TRAIN) -> Recipe:
    return replace(recipe, optim=replace(recipe.optim, batch_norm_images=n_images))


PLAIN = replace(PIXELS, model=RESIDUAL, optim=SGD, phases=(full_phase(2, lr=1e-2),), keep="last")


def buffers(net: Net) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state(net).items() if "running" in name}


def plain_pixels(tmp_path: Path) -> torch.Tensor:
    """The 44 training images as the net is given them, without augmentation."""
    job = make_job(PLAIN, tmp_path / "reference")
    pixels = torch.from_numpy(np.asarray(job.pixels[job.train_rows])).permute(0, 3, 1, 2).float()
    return (pixels / 255.0 - 0.5) / 0.5


def moments_at(net: Net, layer: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of what reaches a layer where all batch norm uses the batch's own, in float64."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    before = state(net)
    with torch.no_grad():
        net(images)
    net.load_state_dict(before)
    net.eval()
    hook.remove()
    values = seen[0].transpose(0, 1).flatten(1)
    return values.mean(dim=1), values.var(dim=1)


@pytest.mark.parametrize(
    "recipe", [PLAIN, replace(PLAIN, optim=replace(SGD, ema_decay=0.5))], ids=["plain", "averaged"]
)
def test_the_statistics_are_those_of_plain_training_images_under_the_final_weights(
    tmp_path: Path, recipe: Recipe
) -> None:
    net, progress = run(estimating(recipe), tmp_path / "run")
    images = plain_pixels(tmp_path)
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in (layers[0], layers[-1]):
        mean, variance = moments_at(net, layer, images)
        assert layer.running_mean is not None and layer.running_var is not None
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-3, atol=1e-5)
        assert layer.momentum == pytest.approx(0.1), "training goes on with running means"
    job = make_job(recipe, tmp_path / "validation")
    pixels = torch.from_numpy(np.asarray(job.pixels[job.validation_rows])).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits = net((pixels / 255.0 - 0.5) / 0.5).double().numpy()
    metrics = validation_metrics(logits, job.labels[job.validation_rows])
    assert progress.log_rows[-1]["val_loss"] == pytest.approx(metrics["val_loss"], rel=1e-5)


def test_the_statistics_of_several_passes_weigh_each_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_norm_statistics, "_BATCH_SIZE", 11)
    recipe = estimating(replace(PLAIN, phases=(full_phase(1, lr=1e-2),)))
    net, _ = run(recipe, tmp_path / "run")
    images = plain_pixels(tmp_path)
    passes = np.array_split(epoch_order(N_TRAIN, seed=0, epoch=1), 4)
    layer = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    moments = [moments_at(net, layer, images[torch.from_numpy(rows)]) for rows in passes]
    mean, variance = (torch.stack(values).mean(dim=0) for values in zip(*moments, strict=True))
    assert layer.running_mean is not None and layer.running_var is not None
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=1e-6)
    whole, last = moments_at(net, layer, images), moments[-1]
    assert not torch.allclose(variance, whole[1], rtol=1e-5), "variances are means of those within passes"
    assert not torch.allclose(mean, last[0], rtol=1e-3)


@pytest.mark.parametrize("recipe", [PLAIN, replace(AVERAGED, model=RESIDUAL, optim=replace(SGD, ema_decay=0.5))])
def test_training_itself_does_not_change(tmp_path: Path, recipe: Recipe) -> None:
    with_estimate, _ = run(estimating(recipe), tmp_path / "with")
    without, _ = run(recipe, tmp_path / "without")
    one, other = ({name: value.data for name, value in net.named_parameters()} for net in (with_estimate, without))
    assert equal(one, other)
    assert not equal(buffers(with_estimate), buffers(without))


def test_frozen_statistics_and_cached_features_stay_what_they_were(tmp_path: Path) -> None:
    frozen, features = replace(full_phase(1, lr=1e-2), freeze_batch_norm=True), head_phase(1, views=0)
    with pytest.raises(
        Exception, match="batch_norm_images has no effect if the backbone is frozen in every phase"
    ):
        estimating(replace(PLAIN, phases=(features,)))
    for name, phases in (("frozen", (frozen,)), ("features", (features, frozen))):
        recipe = estimating(replace(PLAIN, phases=phases))
        before = buffers(make_net(recipe))
        net, _ = run(recipe, tmp_path / name)
        assert equal(buffers(net), before)


def test_passes_are_small_where_memory_is_and_never_of_one_image(tmp_path: Path) -> None:
    recipe = estimating(PLAIN, 7)
    fabric = process_group.start_fabric("cpu")
    net = make_net(recipe)
    job = make_job(recipe, tmp_path / "cache")
    training = TrainingState(job, tmp_path, net, fabric, process_group_of(fabric), TrainingHooks())
    source = make_pixel_source(training)
    sizes: list[int] = []
    layer = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))

    def note(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        sizes.append(len(inputs[0]))

    layer.register_forward_pre_hook(note)
    for limit in (0, 3, 1):
        freeze(net, recipe.phases[0])
        set_train_mode(net, recipe.phases[0])
        estimate_batch_norm(training, source, epoch=1, max_pass_size=limit)
    assert sizes == [7, 3, 2, 2, 3, 2, 2]
    sizes.clear()
    training = replace(training, job=replace(job, recipe=estimating(PLAIN, 1)))
    set_train_mode(net, recipe.phases[0])
    estimate_batch_norm(training, source, epoch=1)
    assert sizes == [2]
