"""Train: a recipe on a data set, from its split to the report of each run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dermkit.data.manifest import Dataset
from dermkit.data.readers import reading
from dermkit.data.split import save_split
from dermkit.models.requirements import check_requirements
from dermkit.pipeline.continuation import with_continuation
from dermkit.pipeline.ensemble_test import score_test_by_ensemble
from dermkit.pipeline.plan import (
    Machine,
    RunSettings,
    check_classes,
    make_plans,
    parent_of_runs,
    prepare_machine,
    say_licence,
    with_seed,
)
from dermkit.pipeline.pooled_views import share_view_choice
from dermkit.pipeline.repeats import summarise_repeats
from dermkit.pipeline.run import run_plan
from dermkit.progress import Progress
from dermkit.recipes.schema import Recipe


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    settings: RunSettings | None = None,
    split: str | None = None,
    seed: int | None = None,
    continue_from: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train, evaluate and report every run of a recipe; returns the run folder, or the parent of repeats and folds.

    split: name or file (default: the recipe's own). seed: the first one, in place of the recipe's. continue_from: a run
    of this recipe but for its length, whose checkpoints this one begins with. Raises
    `RunInterrupt`, `DivergenceError`, `DataError`, `UntrustedError`, `OutputError`, `UsageError`.
    """
    check_classes(dataset)
    check_requirements(recipe, settings.weights if settings else None, settings.teacher if settings else None)
    machine = prepare_machine(settings, progress)
    with reading(dataset, "train"):
        return train_recipe(with_seed(recipe, seed), dataset, split, machine, continue_from)


def train_recipe(
    recipe: Recipe, dataset: Dataset, split: str | None, machine: Machine, continue_from: Path | None = None
) -> Path:
    """Train as `train` does, on a machine that is prepared."""
    plans = make_plans(recipe, dataset, split, machine)
    say_licence(plans[0], machine.progress)
    if continue_from is not None:
        plans = with_continuation(plans, continue_from)
    if len(plans) == 1:
        return run_plan(plans[0], machine)
    parent = parent_of_runs(plans[0])
    has_test_beside = plans[0].leaves_test_to_ensemble
    if has_test_beside and machine.is_first:
        save_split(replace(plans[0].split, name="split"), parent)
    folders = []
    for run_number, plan in enumerate(plans, start=1):
        fold_text = f", fold {plan.fold}" if plan.fold >= 0 else ""
        machine.progress.say(f"version {run_number} of {len(plans)}: seed {plan.seed}{fold_text}")
        folders.append(run_plan(replace(plan, folder=parent / plan.folder.name), machine))
    if not machine.is_first:
        return parent
    share_view_choice(plans, folders, machine)

    def score_test(members: Sequence[Path]) -> None:
        score_test_by_ensemble(parent, members, plans[0], machine)

    return summarise_repeats(
        parent, folders, monitor=recipe.monitor, options=machine.settings.options,
        score_test=score_test if has_test_beside else None, device=machine.fabric.device.type,
        progress=machine.progress,
    )  # fmt: skip
