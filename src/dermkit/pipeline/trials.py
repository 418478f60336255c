"""One trial of a study: a derived recipe, trained on every fold with its test images left alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from dermkit.data.manifest import Dataset
from dermkit.errors import DivergenceError, RunInterrupt
from dermkit.pipeline.plan import EpochWatch, Machine, RunPlan, make_plans
from dermkit.pipeline.run import run_plan
from dermkit.pipeline.validation_values import validation_value
from dermkit.recipes.schema import Recipe
from dermkit.runs.layout import CHECKPOINTS_FOLDER, TRIALS_FOLDER

Report = Callable[[float, int], bool]
"""(value so far, step) -> whether the trial is to end: steps are epochs of one split, or folds."""


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended. state: COMPLETE or PRUNED. value: None unless complete. reason: why there is none."""

    state: str
    value: float | None
    reason: str = ""


def trial_plans(
    recipe: Recipe, dataset: Dataset, split: str | None, machine: Machine, folder: Path
) -> list[RunPlan]:
    """Return the runs of a trial, one a fold, in the study's folder."""
    return [
        replace(
            plan, is_trial=True, folder=folder / TRIALS_FOLDER / plan.folder.parent.name / plan.folder.name
        )
        for plan in make_plans(replace(recipe, repeats=1), dataset, split, machine)
    ]  # fmt: skip


def run_trial(plans: Sequence[RunPlan], machine: Machine, report: Report) -> TrialResult:
    """Train a trial fold by fold, until it is finished or `report` ends it; raises what a training raises.

    A training that diverged is a result of the trial, and no error.
    """
    monitor = plans[0].recipe.monitor
    values: list[float] = []
    for number, plan in enumerate(plans):
        watch = EpochWatch(_epoch_reporter(monitor, report) if len(plans) == 1 else lambda _row: False)
        try:
            run_plan(replace(plan, watch=watch), resuming(plan, machine))
        except RunInterrupt:
            if not watch.is_ended:
                raise
            return TrialResult("PRUNED", None, "worse than the median of the trials before")
        except DivergenceError as error:
            return TrialResult("PRUNED", None, f"diverged: {error.message}")
        values.append(validation_value(plan.folder, monitor))
        if math.isnan(values[-1]):
            return TrialResult("PRUNED", None, f"{monitor} is undefined")
        if len(plans) > 1 and report(fmean(values), number) and number + 1 < len(plans):
            return TrialResult("PRUNED", None, "worse than the median of the trials before")
    return TrialResult("COMPLETE", fmean(values))


def _epoch_reporter(monitor: str, report: Report) -> Callable[[Mapping[str, Any]], bool]:
    """Return what reports the best value so far after each epoch: a later, worse epoch does not count against it."""
    best: list[float] = []
    choose = min if monitor == "val_loss" else max

    def on_epoch(row: Mapping[str, Any]) -> bool:
        value = float(row[monitor])
        if not math.isfinite(value):
            return False
        best.append(value if not best else choose(best[-1], value))
        return report(best[-1], int(row["epoch"]))

    return on_epoch


def resuming(plan: RunPlan, machine: Machine) -> Machine:
    """Return the machine, told to go on with what a killed process left, to the same bits."""
    is_begun = (plan.folder / CHECKPOINTS_FOLDER).is_dir()
    return replace(machine, settings=replace(machine.settings, resume=is_begun))
