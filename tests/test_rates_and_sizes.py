"""Warm-up, rates by layer, stochastic depth, smaller training images: what each changes, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dermkit.errors import RunInterrupt, UsageError
from dermkit.models.net import build_net, freeze, layer_groups, parameter_groups
from dermkit.models.weights import resolve_weights
from dermkit.recipes.experiments import full_phase, head_phase
from dermkit.recipes.schema import Recipe, parse_recipe, recipe_to_dict
from dermkit.training.learning_rates import LearningRates
from dermkit.training.phase_checks import check_phases
from dermkit.training.samples import PixelSource, Samples
from dermkit.training.state import TrainingHooks
from test_train import BASE, equal, make_job, make_net, run, state

SMALL_CNN = replace(BASE.model, backbone="dermkit/cnn-s4")
TINY: Recipe = replace(BASE, model=SMALL_CNN, phases=(full_phase(3, lr=1e-2),))


def test_warm_up_rises_by_equal_steps_and_meets_the_schedule() -> None:
    phase, optim = full_phase(4, lr=0.4), replace(BASE.optim, schedule="cosine", warmup_epochs=1.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rates = LearningRates((0.4,), phase, optim, 4, 0.5)
    got = [rates.set(optimizer, epoch=epoch, step=step) for epoch in range(4) for step in range(4)]
    cosine = 0.5 * (1 + np.cos(np.pi * np.repeat(np.arange(4), 4) / 4))
    line = np.minimum(np.arange(1, 17) / 6, 1.0)
    assert got == pytest.approx((0.4 * 0.5 * cosine * line).tolist())
    plain = LearningRates((0.4,), phase, replace(optim, warmup_epochs=0.0), 4, 0.5)
    assert plain.set(optimizer, epoch=2, step=1) == 0.4 * (0.5 * (1 + float(np.cos(np.pi * 2 / 4)))) * 0.5


def test_each_layer_group_has_the_rate_of_the_one_above_times_the_decay() -> None:
    phase = replace(full_phase(1, lr=0.1), backbone_lr=0.01, layer_decay=0.5)
    net = make_net(TINY)
    freeze(net, phase)
    groups = parameter_groups(net, phase)
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.01, 0.005, 0.0025, 0.00125])
    names = {id(parameter): name for name, parameter in net.backbone.named_parameters()}
    assert [[names[id(p)] for p in group["params"]] for group in groups[1:]] == layer_groups(net)[::-1]


@pytest.mark.parametrize(
    "changed",
    [
        replace(TINY, optim=replace(TINY.optim, warmup_epochs=2.0)),
        replace(TINY, phases=(replace(TINY.phases[0], layer_decay=0.5),)),
        replace(TINY, phases=(replace(TINY.phases[0], image_size=16),)),
        replace(TINY, model=replace(BASE.model, weights="none", backbone="resnet18", drop_path=0.5)),
    ],
    ids=["warm-up", "layer decay", "image size", "drop path"],
)
def test_each_changes_training_and_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, changed: Recipe) -> None:
    changed = replace(changed, phases=(replace(changed.phases[0], epochs=2),))
    plain = replace(
        changed, optim=TINY.optim, model=replace(changed.model, drop_path=0.0), phases=(full_phase(2, lr=1e-2),)
    )
    left_alone, _ = run(changed, tmp_path / "alone")
    assert not equal(state(left_alone), state(run(plain, tmp_path / "plain")[0]))
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(RunInterrupt):
        run(changed, tmp_path / "stopped", hooks=TrainingHooks(should_stop=stop))
    assert equal(state(run(changed, tmp_path / "stopped")[0]), state(left_alone))


def test_a_smaller_training_image_is_the_antialiased_one_and_validation_keeps_its_size(tmp_path: Path) -> None:
    job = make_job(TINY, tmp_path)
    samples = Samples.build(job.image_ids, job.labels, job.train_rows, TINY.augment, None, seed=0)
    source = PixelSource(samples, job.pixels, job.validation_rows, job.preprocessing, torch.device("cpu"))
    rows = np.arange(5)
    small, full = (s.batch(rows, epoch=1, seed=0) for s in (source.with_train_size(16), source))
    assert small.shape == (5, 3, 16, 16) and source.with_train_size(16).validation_batch(rows).shape[-1] == 32
    # Halved by a triangle filter: weights 1, 3, 3, 1 of eight along each axis, inside.
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    expected = torch.einsum("bcij,i,j->bc", full[:, :, 9:13, 9:13], kernel, kernel)
    assert torch.allclose(small[:, :, 5, 5], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        ("model", {"drop_path": 0.1}, "drop_path drops residual blocks, and dermkit/cnn-s4 has none"),
        ("optim", {"warmup_epochs": 4.0}, "warmup_epochs is longer than a phase"),
        ("phases", {"train_backbone": "none", "layer_decay": 0.5}, "layer_decay has no effect unless"),
        ("phases", {"train_backbone": "none", "image_size": 16}, "image_size has no effect on a frozen backbone"),
        ("phases", {"image_size": 8}, "image_size is 0 or at least 16"),
    ],
)
def test_what_can_have_no_effect_is_refused(group: str, fields: dict[str, Any], message: str) -> None:
    recipe_json = recipe_to_dict(TINY)
    (recipe_json["phases"][0] if group == "phases" else recipe_json[group]).update(fields)
    with pytest.raises(UsageError, match=message):
        parse_recipe(recipe_json, "mine.json")


def test_drop_path_of_a_frozen_backbone_is_refused() -> None:
    recipe = replace(BASE, phases=(head_phase(1, lr=1e-3),))
    recipe_json = recipe_to_dict(recipe)
    recipe_json["model"] |= {"backbone": "resnet18", "drop_path": 0.1}
    with pytest.raises(UsageError, match="drop_path has no effect if the backbone is frozen in every phase"):
        parse_recipe(recipe_json, "mine.json")


def test_backbones_without_stochastic_depth_or_of_one_size_are_refused() -> None:
    model = replace(BASE.model, weights="none", backbone="densenet121", drop_path=0.1)
    with pytest.raises(UsageError, match="densenet121: timm has no stochastic depth for it"):
        build_net(model, 2, weights=resolve_weights(model, None), seed=0)
    vit = replace(model, backbone="vit_tiny_patch16_224", drop_path=0.0)
    recipe = replace(
        TINY, model=vit, image=replace(TINY.image, size=224), phases=(replace(TINY.phases[0], image_size=160),)
    )
    net = build_net(vit, 2, weights=resolve_weights(vit, None), seed=0)
    with pytest.raises(UsageError, match="image_size is 160, and vit_tiny_patch16_224 does not take such images"):
        check_phases(net, recipe)
