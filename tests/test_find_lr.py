"""`find-lr`: a sweep of learning rates, on functions whose best and largest rates are known, and on a recipe."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermkit as dk
from conftest import Invoke
from dermkit.errors import UsageError
from dermkit.pipeline.find_lr import find_lr, rate_lines
from dermkit.progress import Progress
from dermkit.recipes.experiments import full_phase, head_phase
from dermkit.recipes.schema import ClassifierSpec, Recipe
from dermkit.training import phase_setup
from dermkit.training.distributed.process_group import start_fabric
from dermkit.training.rate_finder import sweep_learning_rates
from dermkit.training.rate_sweep import RateSweep, describe_sweep, sweep, sweep_rates
from test_train import BASE, N, equal, make_job, make_net, state

RATES = sweep_rates(1e-6, 10.0, 141)  # seven decades of twenty steps


def quadratic(curvature: float) -> RateSweep:
    """Sweep noisy gradient descent on curvature (0.01 + x^2 / 2) from x = 1; noise keeps x from 0, as batches do."""
    x, rng = [1.0], np.random.default_rng(0)

    def take_step(_number: int, rate: float) -> float:
        loss = curvature * (0.01 + x[0] ** 2 / 2)
        x[0] -= rate * curvature * (x[0] + float(rng.normal(0.0, 0.05)))
        return loss

    return sweep(take_step, RATES)


@pytest.mark.parametrize("curvature", [0.5, 8.0, 300.0])
def test_on_a_quadratic_the_suggestion_and_the_end_are_the_known_rates(curvature: float) -> None:
    """Gradient descent diverges above 2 / curvature.

    The excess loss after rates up to r is exp(-2 curvature r / d), where d is the logarithm of a step's factor: each
    step multiplies x by 1 - curvature r, and the rates up to r sum to r / d. Over log r it falls fastest at
    r = d / (2 curvature). Above 2 / curvature a step multiplies x by 1.2, 1.5, 1.8 and so on: within eight steps the
    noise of 0.05 has become a loss of several times the lowest.
    """
    result = quadratic(curvature)
    steepest = math.log(10) / 20 / (2 * curvature)
    assert result.suggestion == pytest.approx(steepest, rel=0.35)
    assert result.suggestion < result.lowest < 2 / curvature
    assert 2 / curvature * 0.8 < result.diverged < 2 / curvature * 10 ** (8 / 20)


def test_a_straight_fall_has_its_slope_everywhere() -> None:
    """3 units a decade, without a step that bears more than another."""
    losses = 30 - 3 * np.log10(RATES)
    result = describe_sweep(RATES, losses, math.nan)
    np.testing.assert_allclose(result.slopes, -3.0, rtol=1e-9)
    np.testing.assert_allclose(result.smoothed, losses, rtol=1e-9)
    assert result.lowest == RATES[-1] and math.isnan(result.diverged)


def test_nothing_is_suggested_where_the_loss_is_noise_or_there_is_next_to_none() -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.2, len(RATES))
    assert math.isnan(describe_sweep(RATES, noise, math.nan).suggestion)
    short = sweep(lambda number, _rate: 1.0 if number < 3 else math.inf, RATES)
    assert len(short.losses) == 3 and math.isnan(short.suggestion)
    assert short.diverged == RATES[3]
    none = sweep(lambda _number, _rate: math.nan, RATES)
    assert len(none.losses) == 0 and none.diverged == RATES[0]


class TrainingPixels:
    """Pixels that say which rows were read."""

    def __init__(self, pixels: Any) -> None:
        self.pixels, self.read = pixels, set[int]()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Any) -> Any:
        self.read |= set(np.asarray(rows).ravel().tolist())
        return self.pixels[rows]


@pytest.mark.parametrize("is_frozen", [False, True])
def test_rates_keep_their_ratio_and_training_images_alone_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_frozen: bool
) -> None:
    phase = head_phase(1, lr=1e-2) if is_frozen else replace(full_phase(1, lr=1e-3), backbone_lr=1e-4)
    recipe: Recipe = replace(BASE, phases=(phase,))
    job = make_job(recipe, tmp_path)
    pixels, net, seen = TrainingPixels(job.pixels), make_net(recipe), list[list[float]]()
    before = state(net)
    original = phase_setup.make_train_step

    def watched(*args: Any) -> Any:
        train_step, optimizer = original(*args)
        step = optimizer.step

        def noted(*arguments: Any, **options: Any) -> Any:
            seen.append([group["lr"] for group in optimizer.param_groups])
            return step(*arguments, **options)

        optimizer.step = noted  # type: ignore[method-assign]
        return train_step, optimizer

    monkeypatch.setattr("dermkit.training.rate_finder.make_train_step", watched)
    result = sweep_learning_rates(
        replace(job, pixels=pixels), net, fabric=start_fabric("cpu"), phase_index=0, low=1e-5, high=1e-2, n_steps=20,
        progress=Progress(),
    )  # fmt: skip
    assert pixels.read == set(range(44)) < set(range(N)), "validation images are rows 44 to 59"
    np.testing.assert_allclose([rates[0] for rates in seen], np.geomspace(1e-5, 1e-2, 20))
    if not is_frozen:
        np.testing.assert_allclose([rates[1] / rates[0] for rates in seen], 0.1)
    assert len(result.losses) == 20 and np.isfinite(result.losses).all()
    assert not equal(before, state(net))
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.glob("*.csv"))


def test_the_command_suggests_a_rate_and_leaves_all_else_alone(
    invoke: Invoke, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "find-lr",
        "demo",
        str(binary),
        "--steps",
        "60",
        "--set",
        "image.size=32",
        "--set",
        "optim.batch_size=8",
    ]
    code, out, err = invoke(*words)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "find-lr" / "learning_rates.csv")
    assert list(table) == ["step", "head_lr", "backbone_lr", "loss", "smoothed_loss", "slope_per_decade"]
    assert 20 <= len(table) <= 60 and table["loss"].notna().all()
    assert "learning rate" in out and out.splitlines()[-1] == str(Path("find-lr") / "learning_rates.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["find-lr"], "no run, and no recipe"


def test_the_terminal_says_the_rate_the_command_and_where_it_ended(tmp_path: Path) -> None:
    from dermkit.pipeline.find_lr import RateSearch

    search = RateSearch(quadratic(8.0), 0.1, tmp_path, tmp_path)
    rate, backbone = f"{search.sweep.suggestion:.2g}", f"{0.1 * search.sweep.suggestion:.2g}"
    first, second = rate_lines(search, phase=0, command="dermkit train quick lesions")
    assert f"suggested learning rate: {rate} for the head, {backbone} for the backbone" in first
    assert f"diverged at {search.sweep.diverged:.2g}" in first
    assert second == f"nothing was changed; to use it: dermkit train quick lesions --lr {rate}"
    second = rate_lines(search, phase=1, command="c")[1]
    assert second.endswith(f"c --set phases.1.head_lr={rate} --set phases.1.backbone_lr={backbone}")
    flat = replace(search, sweep=describe_sweep(RATES, np.ones(len(RATES)), math.nan))
    assert rate_lines(flat, phase=0, command="c")[0].startswith("no learning rate is suggested")


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        ({}, {"phase": 3}, "--phase 3: recipe demo has phases 0 to 0"),
        ({}, {"steps": 401}, "--steps 401: a sweep has 20 to 400 steps"),
        ({"phases": (replace(full_phase(1, lr=0.0), backbone_lr=1e-3),)}, {}, "phases.0.head_lr is 0"),
        ({"classifier": True}, {}, "model.classifier is fitted without a learning rate"),
    ],
)
def test_what_has_no_rate_to_find_is_refused_before_anything_is_read(
    binary: Path, change: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    recipe = dk.find_recipe("demo")
    if change.pop("classifier", False):
        svm = ClassifierSpec(kind="svm", penalty=1.0, neighbours=5, iterations=9, learning_rate=0.1, max_leaves=31)
        change = {"model": replace(recipe.model, classifier=svm), "phases": (head_phase(1),)}
    with pytest.raises(UsageError, match=problem) as caught:
        find_lr(replace(recipe, **change), dk.load_dataset(binary), **options)
    assert caught.value.outcome == "nothing was trained"
