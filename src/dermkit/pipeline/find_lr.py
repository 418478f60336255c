"""Find a learning rate: a sweep of a recipe's rates over training images, before anything is trained."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.errors import UsageError
from dermkit.files import make_folder, write_rows
from dermkit.models.requirements import check_requirements
from dermkit.pipeline.plan import RunSettings, check_classes, make_plans, prepare_machine, with_seed
from dermkit.pipeline.run import prepare_job
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe
from dermkit.render.rate_chart import draw_rates

if TYPE_CHECKING:
    from dermkit.training.rate_sweep import RateSweep

LOW_RATE, HIGH_RATE = 1e-6, 10.0
MAX_STEPS = 400
RATES_TABLE, RATES_CHART = "learning_rates.csv", "learning_rates.png"


@dataclass(frozen=True)
class RateSearch:
    """What a sweep showed, and where its table and chart lie. backbone_ratio: of its rate to the head's; 0 = frozen."""

    sweep: "RateSweep"
    backbone_ratio: float
    table: Path
    chart: Path


def find_lr(
    recipe: Recipe,
    dataset: Dataset,
    *,
    phase: int = 0,
    steps: int = 140,
    settings: RunSettings | None = None,
    split: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> RateSearch:
    """Sweep the head's learning rate from 1e-6 to 10 in one phase; of folds, on the first one.

    Writes a table and a chart into `settings.out`; recipe and runs stay as they are. A later phase begins with the
    weights that the recipe starts from, as no phase before it is trained here.
    """
    settings = settings or RunSettings()
    _check_request(recipe, phase, steps)
    check_classes(dataset)
    check_requirements(recipe, settings.weights)
    machine = prepare_machine(settings, progress)
    with reading(dataset, "find-lr"):
        prepared = prepare_job(make_plans(with_seed(recipe, seed), dataset, split, machine)[0], machine)
        from dermkit.training.rate_finder import sweep_learning_rates

        sweep = sweep_learning_rates(
            prepared.job, prepared.net, fabric=machine.fabric, phase_index=phase, low=LOW_RATE, high=HIGH_RATE,
            n_steps=steps, progress=machine.progress,
        )  # fmt: skip
    chosen = recipe.phases[phase]
    ratio = chosen.backbone_lr / chosen.head_lr if chosen.train_backbone != "none" else 0.0
    return _write(sweep, ratio, make_folder(settings.out))


def _check_request(recipe: Recipe, phase: int, steps: int) -> None:
    if recipe.model.classifier is not None:
        raise UsageError(
            f"recipe {recipe.name}: model.classifier is fitted without a learning rate",
            outcome="nothing was trained",
            remedy="use a recipe of dense layers, or tune model.classifier with `dermkit tune`",
        )
    if not 0 <= phase < len(recipe.phases):
        raise UsageError(
            f"--phase {phase}: recipe {recipe.name} has phases 0 to {len(recipe.phases) - 1}",
            outcome="nothing was trained",
            remedy="give one of these",
        )
    if recipe.phases[phase].head_lr == 0.0:
        raise UsageError(
            f"recipe {recipe.name}: phases.{phase}.head_lr is 0, and the other rates keep their ratio to it",
            outcome="nothing was trained",
            remedy=f"give it a rate: --set phases.{phase}.head_lr=1e-3",
        )
    if not 20 <= steps <= MAX_STEPS:
        raise UsageError(f"--steps {steps}: a sweep has 20 to {MAX_STEPS} steps", outcome="nothing was trained")


def _write(sweep: "RateSweep", ratio: float, folder: Path) -> RateSearch:
    table, chart = folder / RATES_TABLE, folder / RATES_CHART
    columns = np.column_stack([sweep.rates, sweep.rates * ratio, sweep.losses, sweep.smoothed, sweep.slopes])
    header = ("step", "head_lr", "backbone_lr", "loss", "smoothed_loss", "slope_per_decade")
    write_rows(table, header, [[step, *row] for step, row in enumerate(columns.tolist())])
    draw_rates(
        sweep.rates, sweep.losses, sweep.smoothed, chart, suggestion=sweep.suggestion, diverged=sweep.diverged
    )
    return RateSearch(sweep, ratio, table, chart)


def rate_lines(search: RateSearch, *, phase: int, command: str) -> list[str]:
    """Return what the terminal says. command: the training command that the suggestion would be added to."""
    sweep = search.sweep
    end = (
        f"diverged at {sweep.diverged:.2g}"
        if math.isfinite(sweep.diverged)
        else f"had not diverged at {sweep.rates[-1]:.2g}, the highest that was tried"
    )
    if not math.isfinite(sweep.suggestion):
        return [
            f"no learning rate is suggested: over {len(sweep.rates)} steps the loss fell by less than single batches "
            f"differ; the sweep {end}",
            "take more --steps or larger batches; the recipe's own rates stay",
        ]
    rate = f"{sweep.suggestion:.2g}"
    flags = f"--lr {rate}" if phase == 0 else f"--set phases.{phase}.head_lr={rate}"
    backbone = ""
    if search.backbone_ratio:
        backbone = f", {search.backbone_ratio * sweep.suggestion:.2g} for the backbone"
        if phase:
            flags += f" --set phases.{phase}.backbone_lr={search.backbone_ratio * sweep.suggestion:.2g}"
    return [
        f"suggested learning rate: {rate} for the head{backbone}: there the smoothed training loss falls fastest; it "
        f"is lowest at {sweep.lowest:.2g}, and the sweep {end}",
        f"nothing was changed; to use it: {command} {flags}",
    ]
