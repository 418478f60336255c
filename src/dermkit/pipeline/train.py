"""Train: a recipe on a data set, from its split to the report of each run."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dermkit.data.manifest import Dataset
from dermkit.files import (
    check_writable,
)
from dermkit.pipeline.data import resolve_split
from dermkit.pipeline.plan import Where, check_device, make_plans, settled_recipe, start, with_seed
from dermkit.pipeline.repeats import summarise
from dermkit.pipeline.run import run
from dermkit.progress import Watch
from dermkit.recipes.schema import Recipe

if TYPE_CHECKING:
    pass


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    where: Where | None = None,
    split: str | None = None,
    seed: int | None = None,
    watch: Watch | None = None,
) -> Path:
    """Do all that a recipe says; returns the run folder, or the parent folder of repeats and folds.

    Raises `Interrupted`, `Diverged`, `DataError`, `UntrustedError`, `OutputError`, `UsageError`.
    """
    where, watch = where or Where(), watch or Watch()
    check_writable(where.out)
    check_device(where.device)
    fabric = start(where)
    watch = watch if fabric.global_rank == 0 else Watch()
    recipe = settled_recipe(with_seed(recipe, seed), fabric)
    plans = make_plans(recipe, dataset, resolve_split(recipe, dataset, split), where)
    if len(plans) == 1:
        return run(plans[0], where, watch, fabric)
    first = plans[0].folder
    parent = first.with_name(f"{first.name.split('-')[0]}-s{recipe.seed}-versions")
    folders = []
    for number, plan in enumerate(plans, start=1):
        watch.say(
            f"version {number} of {len(plans)}: seed {plan.seed}" + (f", fold {plan.fold}" * (plan.fold >= 0))
        )
        folders.append(run(replace(plan, folder=parent / plan.folder.name), where, watch, fabric))
    return summarise(parent, folders, monitor=recipe.monitor) if fabric.global_rank == 0 else parent
