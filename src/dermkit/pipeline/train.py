"""Train: a recipe on a data set, from its split to the report of each run."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dermkit.data.manifest import Dataset
from dermkit.files import (
    check_writable,
)
from dermkit.pipeline.data import resolve_split
from dermkit.pipeline.plan import (
    RunSettings,
    check_device,
    join_process_group,
    make_plans,
    with_precision,
    with_seed,
)
from dermkit.pipeline.repeats import summarise_repeats
from dermkit.pipeline.run import run_plan
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe

if TYPE_CHECKING:
    pass


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    settings: RunSettings | None = None,
    split: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Do all that a recipe says; returns the run folder, or the parent folder of repeats and folds.

    Raises `Interrupted`, `Diverged`, `DataError`, `UntrustedError`, `OutputError`, `UsageError`.
    """
    settings, progress = settings or RunSettings(), progress or Progress()
    check_writable(settings.out)
    check_device(settings.device)
    fabric = join_process_group(settings)
    progress = progress if fabric.global_rank == 0 else Progress()
    recipe = with_precision(with_seed(recipe, seed), fabric)
    plans = make_plans(recipe, dataset, resolve_split(recipe, dataset, split), settings)
    if len(plans) == 1:
        return run_plan(plans[0], settings, progress, fabric)
    first_folder = plans[0].folder
    parent = first_folder.with_name(f"{first_folder.name.split('-')[0]}-s{recipe.seed}-versions")
    folders = []
    for run_number, plan in enumerate(plans, start=1):
        progress.say(
            f"version {run_number} of {len(plans)}: seed {plan.seed}" + (f", fold {plan.fold}" * (plan.fold >= 0))
        )
        folders.append(run_plan(replace(plan, folder=parent / plan.folder.name), settings, progress, fabric))
    return summarise_repeats(parent, folders, monitor=recipe.monitor) if fabric.global_rank == 0 else parent
