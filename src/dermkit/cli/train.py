"""Train, tune and the named recipes, as commands."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import OutOption, progress_bar
from dermkit.errors import UsageError
from dermkit.threads import cpu_count
from dermkit.training.distributed.environment import is_rank, read_rank_info

if TYPE_CHECKING:
    from dermkit.recipes.schema import Recipe

recipes_app = typer.Typer(no_args_is_help=True, help="Named experiments: list them, or print one as JSON.")
SplitOption = Annotated[
    str | None, typer.Option("--split", help="A split of the data set by name, or a split file.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="First seed; recorded and part of the fingerprint.")
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="A weights file (.safetensors) with its JSON beside.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
DevicesOption = Annotated[
    int, typer.Option("--devices", min=1, help="Processes on this machine, each with a device of its own.")
]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Machines (docs/machines.md).")]
RestartsOption = Annotated[
    int, typer.Option("--restarts", min=0, help="Fresh launches from the last checkpoint when a rank is lost.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Threads that prepare batches ahead; changes no number.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


@recipes_app.command("list", help="List the named experiments.")
def list_recipes() -> None:
    from dermkit.recipes.experiments import GRIDS, RECIPES

    for recipe in RECIPES.values():
        typer.echo(f"{recipe.name:40} {recipe.system:5} {recipe.about}")
    typer.echo("\nGrids for `dermkit tune`:")
    for name, members in GRIDS.items():
        typer.echo(f"{name:40} {len(members)} recipes of {members[0].system}")


@recipes_app.command("show", help="Print a recipe as JSON, to edit and train.")
def show_recipe(name: str) -> None:
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.formats import RECIPE_FORMAT
    from dermkit.recipes.schema import recipe_to_dict

    typer.echo(json.dumps({"format": RECIPE_FORMAT, **recipe_to_dict(find_recipe(name))}, indent=1))


@recipes_app.command(
    "presets", help='List the augmentation presets: in a recipe, `"augment": "NAME"` stands for the whole spec.'
)
def list_presets() -> None:
    from dermkit.recipes.augmentation import PRESET_NOTES

    for name, note in PRESET_NOTES.items():
        typer.echo(f"{name:14} {note}")


def _find_or_load_recipe(name: str) -> "Recipe":
    """Return a recipe by name, or from a file when the argument is one."""
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.schema import load_recipe

    path = Path(name)
    return load_recipe(path) if path.suffix == ".json" else find_recipe(name)


def _launch_ranks(devices: int, nodes: int, restarts: int) -> None:
    """Where several processes are asked for and this is none of them, start and watch them, and end as they end."""
    if devices * nodes == 1:
        return
    max_devices = max(2, cpu_count())
    if (
        devices > max_devices
    ):  # each rank is a process with a net of its own: thousands would take the machine down
        raise UsageError(
            f"--devices {devices}: this machine has {max_devices} cores, and every device needs one",
            remedy=f"--devices {max_devices} or less; several machines with --nodes (docs/machines.md)",
        )
    from dermkit.training.distributed.launcher import supervise

    if not is_rank():

        def print_line(line: str) -> None:  # rank 0 draws the bar; a second one would draw over it
            typer.echo(line, err=True)

        code = supervise(sys.argv[1:], devices=devices, nodes=nodes, restarts=restarts, say=print_line)
        raise typer.Exit(code)


def _print_path(path: Path) -> None:
    """Print what was written, once: of several ranks, the first one does."""
    rank_info = read_rank_info(os.environ)
    if rank_info is None or rank_info.rank == 0:
        typer.echo(str(path))


def train_command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    dataset: Path,
    out: OutOption = Path("runs"),
    split: SplitOption = None,
    seed: SeedOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    restarts: RestartsOption = 3,
    workers: WorkersOption = 0,
    resume: ResumeOption = False,
) -> None:
    chosen_recipe = _find_or_load_recipe(recipe)
    _launch_ranks(devices, nodes, restarts)
    import dermkit as dk

    loaded_dataset = dk.load_dataset(dataset)
    settings = dk.RunSettings(
        out=out, device=device, devices=devices, nodes=nodes, workers=workers, weights=weights, resume=resume
    )
    with progress_bar() as progress:
        folder = dk.train(
            chosen_recipe, loaded_dataset, settings=settings, split=split, seed=seed, progress=progress
        )
    _print_path(folder / "report.html")


def tune_command(
    grid: Annotated[str, typer.Argument(help="A named grid of recipes (`dermkit recipes list`).")],
    dataset: Path,
    out: OutOption = Path("runs"),
    split: SplitOption = None,
    seed: SeedOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    restarts: RestartsOption = 3,
    workers: WorkersOption = 0,
    resume: ResumeOption = False,
) -> None:
    from dermkit.recipes.experiments import find_grid

    members = find_grid(grid)
    _launch_ranks(devices, nodes, restarts)
    import dermkit as dk

    loaded_dataset = dk.load_dataset(dataset)
    settings = dk.RunSettings(
        out=out, device=device, devices=devices, nodes=nodes, workers=workers, weights=weights, resume=resume
    )
    with progress_bar() as progress:
        folder = dk.tune(
            members, loaded_dataset, name=grid, settings=settings, split=split, seed=seed, progress=progress
        )
    _print_path(out / grid / "tune.csv")
    _print_path(folder / "report.html")
