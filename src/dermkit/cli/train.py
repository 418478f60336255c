"""Train, tune and the named recipes, as commands."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import Out, watching
from dermkit.errors import UsageError
from dermkit.threads import cores
from dermkit.training.distributed.environment import find_place, started_as_rank

if TYPE_CHECKING:
    from dermkit.recipes.schema import Recipe

recipes_app = typer.Typer(no_args_is_help=True, help="Named experiments: list them, or print one as JSON.")
SplitName = Annotated[
    str | None, typer.Option("--split", help="A split of the data set by name, or a split file.")
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="First seed; recorded and part of the fingerprint.")
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="A weights file (.safetensors) with its JSON beside.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Devices = Annotated[
    int, typer.Option("--devices", min=1, help="Processes on this machine, each with a device of its own.")
]
Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Machines (docs/machines.md).")]
Restarts = Annotated[
    int, typer.Option("--restarts", min=0, help="Fresh launches from the last checkpoint when a rank is lost.")
]
Workers = Annotated[
    int, typer.Option("--workers", min=0, help="Threads that prepare batches ahead; changes no number.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


@recipes_app.command("list")
def recipes_list() -> None:
    """List the named experiments."""
    from dermkit.recipes.experiments import GRIDS, RECIPES

    for recipe in RECIPES.values():
        typer.echo(f"{recipe.name:40} {recipe.system:5} {recipe.about}")
    typer.echo("\nGrids for `dermkit tune`:")
    for name, members in GRIDS.items():
        typer.echo(f"{name:40} {len(members)} recipes of {members[0].system}")


@recipes_app.command("show")
def recipes_show(name: str) -> None:
    """Print a recipe as JSON, to edit and train."""
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.schema import FORMAT, as_dict

    typer.echo(json.dumps({"format": FORMAT, **as_dict(find_recipe(name))}, indent=1))


@recipes_app.command("presets")
def recipes_presets() -> None:
    """List the augmentation presets: in a recipe, `"augment": "NAME"` stands for the whole spec."""
    from dermkit.recipes.augmentation import PRESET_NOTES

    for name, note in PRESET_NOTES.items():
        typer.echo(f"{name:14} {note}")


def _recipe(name: str) -> "Recipe":
    """Return a recipe by name, or from a file when the argument is one."""
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.schema import load

    path = Path(name)
    return load(path) if path.suffix == ".json" else find_recipe(name)


def _start_ranks(devices: int, nodes: int, restarts: int) -> None:
    """Where several processes are asked for and this is none of them, start and watch them, and end as they end."""
    if devices * nodes == 1:
        return
    most = max(2, cores())
    if devices > most:  # each rank is a process with a net of its own: thousands would take the machine down
        raise UsageError(
            f"--devices {devices}: this machine has {most} cores, and every device needs one",
            remedy=f"--devices {most} or less; several machines with --nodes (docs/machines.md)",
        )
    from dermkit.training.distributed.launcher import supervise

    if not started_as_rank():

        def say(line: str) -> None:  # rank 0 draws the bar; a second one would draw over it
            typer.echo(line, err=True)

        code = supervise(sys.argv[1:], devices=devices, nodes=nodes, restarts=restarts, say=say)
        raise typer.Exit(code)


def _tell(path: Path) -> None:
    """Print what was written, once: of several ranks, the first one does."""
    place = find_place(os.environ)
    if place is None or place.rank == 0:
        typer.echo(str(path))


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a recipe.json.")],
    dataset: Path,
    out: Out = Path("runs"),
    split: SplitName = None,
    seed: Seed = None,
    weights: Weights = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    restarts: Restarts = 3,
    workers: Workers = 0,
    resume: Resume = False,
) -> None:
    """Train a recipe on a data set; ends evaluated and with its report written."""
    chosen = _recipe(recipe)
    _start_ranks(devices, nodes, restarts)
    import dermkit as dk

    data = dk.load_dataset(dataset)
    where = dk.Where(
        out=out, device=device, devices=devices, nodes=nodes, workers=workers, weights=weights, resume=resume
    )
    with watching() as watch:
        folder = dk.train(chosen, data, where=where, split=split, seed=seed, watch=watch)
    _tell(folder / "report.html")


def tune(
    grid: Annotated[str, typer.Argument(help="A named grid of recipes (`dermkit recipes list`).")],
    dataset: Path,
    out: Out = Path("runs"),
    split: SplitName = None,
    seed: Seed = None,
    weights: Weights = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    restarts: Restarts = 3,
    workers: Workers = 0,
    resume: Resume = False,
) -> None:
    """Train every recipe of a grid, choose one on validation alone, run it whole."""
    from dermkit.recipes.experiments import find_grid

    members = find_grid(grid)
    _start_ranks(devices, nodes, restarts)
    import dermkit as dk

    data = dk.load_dataset(dataset)
    where = dk.Where(
        out=out, device=device, devices=devices, nodes=nodes, workers=workers, weights=weights, resume=resume
    )
    with watching() as watch:
        folder = dk.tune(members, data, name=grid, where=where, split=split, seed=seed, watch=watch)
    _tell(out / grid / "tune.csv")
    _tell(folder / "report.html")
