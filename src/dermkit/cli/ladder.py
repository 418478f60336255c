"""`dermkit ladder`: what a split by image, lesion, patient or source makes of a recipe's figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import DatasetArgument, OutOption, echo
from dermkit.cli.machine import MachineOptions, train_on
from dermkit.cli.train import (
    DeviceOption,
    SeedOption,
    SetOption,
    WeightsOption,
    WorkersOption,
    check_derived,
    field_assignments,
    find_or_load_recipe,
)
from dermkit.progress import Progress

if TYPE_CHECKING:
    from dermkit.data.manifest import Dataset
    from dermkit.pipeline.plan import RunSettings


def ladder_command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: a name of `dermkit recipes list`, or a recipe.json file.")
    ],
    dataset: DatasetArgument,
    out: OutOption = Path("ladder"),
    repeats: Annotated[
        int,
        typer.Option("--repeats", min=2, help="Splits and trainings of each rung, each with a seed of its own."),
    ] = 3,
    seed: SeedOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = 0,
    set_fields: SetOption = None,
) -> None:
    import dermkit as dk
    from dermkit.recipes.derive import derive_recipe
    from dermkit.recipes.short_forms import ShortForms
    from dermkit.reporting.ladder_page import ladder_lines
    from dermkit.runs.layout import LADDER_PAGE

    base = find_or_load_recipe(recipe)
    assignments = field_assignments(base, set_fields, ShortForms(), None)
    chosen_recipe = derive_recipe(base, assignments)
    check_derived(chosen_recipe, bool(assignments))

    def climb(dataset: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        return dk.ladder(
            chosen_recipe, dataset, out=out, repeats=repeats, seed=seed, settings=settings, progress=progress
        )

    folder = train_on(dataset, MachineOptions(out, device, 1, 1, 0, workers, weights, resume=False), climb)
    for line in ladder_lines(folder):
        echo(line)
    echo(str(folder / LADDER_PAGE))
