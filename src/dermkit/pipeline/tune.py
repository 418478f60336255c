"""Train every recipe of a grid, choose one on validation images, run it in full."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dermkit.data.manifest import Dataset
from dermkit.errors import UsageError
from dermkit.files import (
    check_writable,
    write_json,
    write_rows,
)
from dermkit.pipeline.data import resolve_split
from dermkit.pipeline.plan import Where, check_device, make_plans, settled_recipe, start, with_seed
from dermkit.pipeline.repeats import chosen, validation_value
from dermkit.pipeline.run import run
from dermkit.pipeline.train import train
from dermkit.progress import Watch
from dermkit.recipes.schema import Recipe


def tune(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    *,
    name: str,
    where: Where | None = None,
    split: str | None = None,
    seed: int | None = None,
    watch: Watch | None = None,
) -> Path:
    """Train every recipe of a grid, choose one on validation alone, then run it whole; returns its run folder.

    `<out>/<name>/tune.csv` lists every trial. The trials never score the test split.
    """
    where, watch = where or Where(), watch or Watch()
    check_writable(where.out)
    check_device(where.device)
    fabric = start(where)
    watch = watch if fabric.global_rank == 0 else Watch()
    folders: list[Path] = []
    for number, recipe in enumerate(recipes, start=1):
        watch.say(f"trial {number} of {len(recipes)}: {recipe.name}")
        single = replace(settled_recipe(with_seed(recipe, seed), fabric), repeats=1)
        plan, *more = make_plans(single, dataset, resolve_split(single, dataset, split), where)
        if more:
            raise UsageError(
                f"{recipe.name}: a grid is decided on one split, not on {1 + len(more)} folds",
                remedy="tune on a given or holdout split, then train the chosen recipe on folds",
            )
        folder = where.out / name / "trials" / plan.folder.parent.name / plan.folder.name
        folders.append(run(replace(plan, folder=folder, trial=True), where, watch, fabric))
    best = chosen(folders, recipes[0].monitor)
    if fabric.global_rank == 0:
        _write_trials(where.out / name, recipes, folders, best)
    watch.say(f"chosen on validation: {recipes[best].name}")
    return train(recipes[best], dataset, where=where, split=split, seed=seed, watch=watch)


def _write_trials(folder: Path, recipes: Sequence[Recipe], runs: Sequence[Path], best: int) -> None:
    monitor = recipes[0].monitor
    rows = [
        (item.name, item.phases[0].head_lr, item.optim.batch_size, item.model.dropout,
         validation_value(path, monitor), number == best)
        for number, (item, path) in enumerate(zip(recipes, runs, strict=True))
    ]  # fmt: skip
    write_rows(folder / "tune.csv", ("recipe", "head_lr", "batch_size", "dropout", monitor, "chosen"), rows)
    write_json(
        folder / "tune.json",
        {"chosen": recipes[best].name, "by": f"{monitor} on validation, {len(runs)} trials, test not scored"},
        format=1,
    )
