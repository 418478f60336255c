"""Train every recipe of a grid, choose one on validation images, run it in full."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dermkit.data.manifest import Dataset
from dermkit.errors import UsageError
from dermkit.files import (
    check_writable,
    write_rows,
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
from dermkit.pipeline.repeats import best_run_index, validation_value
from dermkit.pipeline.run import run_plan
from dermkit.pipeline.train import train
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe
from dermkit.runs.layout import TUNE, TUNE_TABLE


def tune(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    *,
    name: str,
    settings: RunSettings | None = None,
    split: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train every recipe of a grid, choose one on validation alone, then run it whole; returns its run folder.

    `<out>/<name>/tune.csv` lists every trial. The trials never score the test split.
    """
    settings, progress = settings or RunSettings(), progress or Progress()
    check_writable(settings.out)
    check_device(settings.device)
    fabric = join_process_group(settings)
    progress = progress if fabric.global_rank == 0 else Progress()
    folders: list[Path] = []
    for number, recipe in enumerate(recipes, start=1):
        progress.say(f"trial {number} of {len(recipes)}: {recipe.name}")
        single_run = replace(with_precision(with_seed(recipe, seed), fabric), repeats=1)
        plan, *further_plans = make_plans(single_run, dataset, resolve_split(single_run, dataset, split), settings)
        if further_plans:
            raise UsageError(
                f"{recipe.name}: a grid is decided on one split, not on {1 + len(further_plans)} folds",
                remedy="tune on a given or holdout split, then train the chosen recipe on folds",
            )
        folder = settings.out / name / "trials" / plan.folder.parent.name / plan.folder.name
        folders.append(run_plan(replace(plan, folder=folder, is_trial=True), settings, progress, fabric))
    best_index = best_run_index(folders, recipes[0].monitor)
    if fabric.global_rank == 0:
        _write_trials(settings.out / name, recipes, folders, best_index)
    progress.say(f"chosen on validation: {recipes[best_index].name}")
    return train(recipes[best_index], dataset, settings=settings, split=split, seed=seed, progress=progress)


def _write_trials(folder: Path, recipes: Sequence[Recipe], runs: Sequence[Path], best_index: int) -> None:
    monitor = recipes[0].monitor
    rows = [
        (recipe.name, recipe.phases[0].head_lr, recipe.optim.batch_size, recipe.model.dropout,
         validation_value(path, monitor), number == best_index)
        for number, (recipe, path) in enumerate(zip(recipes, runs, strict=True))
    ]  # fmt: skip
    write_rows(folder / TUNE_TABLE, ("recipe", "head_lr", "batch_size", "dropout", monitor, "is_best"), rows)
    selected_by = f"{monitor} on validation, {len(runs)} trials, test not scored"
    TUNE.write(folder, {"best_recipe": recipes[best_index].name, "selected_by": selected_by})
