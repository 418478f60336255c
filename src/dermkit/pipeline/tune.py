"""Tune: train every recipe of a grid, select one on validation images, train that one in full."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.errors import UsageError
from dermkit.files import write_rows
from dermkit.models.requirements import check_requirements
from dermkit.pipeline.plan import Machine, RunSettings, check_classes, make_plans, prepare_machine, with_seed
from dermkit.pipeline.repeats import best_run_index
from dermkit.pipeline.run import run_plan
from dermkit.pipeline.train import train_recipe
from dermkit.pipeline.validation_values import validation_value
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe
from dermkit.runs.layout import TRIALS_FOLDER, TUNE, TUNE_TABLE


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
    """Train every recipe of a grid once, select the best on validation, then train that one in full; returns its run.

    `<out>/<name>/tune.csv` lists every trial. The trials never score the test split.
    """
    check_classes(dataset)
    for recipe in recipes:
        check_requirements(recipe, settings.weights if settings else None)
    machine = prepare_machine(settings, progress)
    with reading(dataset, "tune"):
        return _tune(recipes, dataset, name, split, seed, machine)


def _tune(
    recipes: Sequence[Recipe], dataset: Dataset, name: str, split: str | None, seed: int | None, machine: Machine
) -> Path:
    seeded_recipes = [with_seed(recipe, seed) for recipe in recipes]
    grid_folder = machine.settings.out / name
    folders = []
    for number, recipe in enumerate(seeded_recipes, start=1):
        machine.progress.say(f"trial {number} of {len(recipes)}: {recipe.name}")
        folders.append(_run_trial(recipe, dataset, split, machine, grid_folder))
    best_index = best_run_index(folders, recipes[0].monitor)
    if machine.is_first:
        _write_trials(grid_folder, recipes, folders, best_index)
    machine.progress.say(f"selected on validation: {recipes[best_index].name}")
    return train_recipe(seeded_recipes[best_index], dataset, split, machine)


def _run_trial(recipe: Recipe, dataset: Dataset, split: str | None, machine: Machine, grid_folder: Path) -> Path:
    """Train a recipe once, without its repeats, and score validation alone; returns the run folder."""
    plan, *further_plans = make_plans(replace(recipe, repeats=1), dataset, split, machine)
    if further_plans:
        raise UsageError(
            f"{recipe.name}: its split has {1 + len(further_plans)} folds, and a grid is tuned on one split",
            outcome="nothing was trained",
            remedy="tune on a given or holdout split (--split), then train the selected recipe on folds",
        )
    folder = grid_folder / TRIALS_FOLDER / plan.folder.parent.name / plan.folder.name
    return run_plan(replace(plan, folder=folder, is_trial=True), machine)


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
