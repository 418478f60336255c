"""Find a learning rate, as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import DatasetArgument, echo
from dermkit.cli.machine import MachineOptions, train_on
from dermkit.cli.train import (
    DeviceOption,
    SeedOption,
    SetOption,
    SplitOption,
    WeightsOption,
    WorkersOption,
    check_derived,
    field_assignments,
    find_or_load_recipe,
)
from dermkit.files import shell_path
from dermkit.progress import Progress

if TYPE_CHECKING:
    from dermkit.data.manifest import Dataset
    from dermkit.pipeline.find_lr import RateSearch
    from dermkit.pipeline.plan import RunSettings


def find_lr_command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: a name of `dermkit recipes list`, or a recipe.json file.")
    ],
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for the table and the chart.")] = Path("find-lr"),
    phase: Annotated[int, typer.Option("--phase", min=0, help="The recipe's phase, from 0.")] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Steps of training, 20 to 400.")] = 140,
    split: SplitOption = None,
    seed: SeedOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = 0,
    set_fields: SetOption = None,
) -> None:
    from dermkit.pipeline.find_lr import find_lr, rate_lines
    from dermkit.recipes.derive import derive_recipe
    from dermkit.recipes.short_forms import ShortForms

    base = find_or_load_recipe(recipe)
    assignments = field_assignments(base, set_fields, ShortForms(), split)
    chosen_recipe = derive_recipe(base, assignments)
    check_derived(chosen_recipe, bool(assignments))
    results: list[RateSearch] = []

    def find(dataset: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        results.append(
            find_lr(
                chosen_recipe, dataset, phase=phase, steps=steps, settings=settings, split=split, seed=seed,
                progress=progress,
            )
        )  # fmt: skip
        return results[-1].chart

    chart = train_on(dataset, MachineOptions(out, device, 1, 1, 0, workers, weights, resume=False), find)
    changes = [word for text in set_fields or () for word in ("--set", shell_path(text))]
    command = " ".join(["dermkit train", shell_path(recipe), shell_path(str(dataset)), *changes])
    for line in rate_lines(results[0], phase=phase, command=command):
        echo(line)
    echo(f"table  {results[0].table}")
    echo(str(chart))
