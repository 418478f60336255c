"""Train, tune and the named recipes, as commands."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from dermkit.cli.console import DatasetArgument, echo, progress_bar
from dermkit.errors import UsageError
from dermkit.files import shell_path
from dermkit.progress import Progress
from dermkit.threads import cpu_count
from dermkit.training.distributed.environment import is_rank, read_rank_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from dermkit.data.manifest import Dataset
    from dermkit.pipeline.plan import RunSettings
    from dermkit.recipes.schema import Recipe

recipes_app = typer.Typer(no_args_is_help=True, help="List the named recipes, or print one as JSON.")
TrainOutOption = Annotated[Path, typer.Option("--out", help="Folder for the runs: OUT/RECIPE/RUN.")]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="A split of the data set by name, or a split file (default: the recipe's own)."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="First random seed (default: the recipe's).")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Start from this weights file (.safetensors, with its .json beside it; docs/training.md).",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
DevicesOption = Annotated[
    int, typer.Option("--devices", min=1, help="Processes on this machine, each with its own GPU or CPU cores.")
]
NodesOption = Annotated[
    int, typer.Option("--nodes", min=1, help="Machines that train together (docs/machines.md).")
]
RestartsOption = Annotated[
    int,
    typer.Option("--restarts", min=0, help="With several processes: how often to restart them if one is lost."),
]
WorkersOption = Annotated[
    int,
    typer.Option("--workers", min=0, help="Threads that prepare batches ahead (0 = none). They change no number."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue an unfinished run from its last checkpoint.")
]
ContinueOption = Annotated[
    Path | None,
    typer.Option(
        "--continue",
        help="Go on from this run, whose recipe differs in epochs, patience or later phases only (docs/training.md).",
    ),
]


@recipes_app.command("list", help="List the named recipes, and the grids of `dermkit tune`.")
def list_recipes() -> None:
    from dermkit.recipes.experiments import GRIDS, RECIPES

    for recipe in RECIPES.values():
        echo(f"{recipe.name:40} {recipe.system:5} {recipe.about}")
    echo("\nGrids for `dermkit tune`:")
    for name, members in GRIDS.items():
        echo(f"{name:40} {len(members)} recipes of {members[0].system}")


@recipes_app.command("show", help="Print a recipe as JSON, to edit and train.")
def show_recipe(name: str) -> None:
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.formats import RECIPE_FORMAT
    from dermkit.recipes.schema import recipe_to_dict

    echo(json.dumps({"format": RECIPE_FORMAT, **recipe_to_dict(find_recipe(name))}, indent=1))


@recipes_app.command(
    "presets", help='List the augmentation presets: in a recipe, `"augment": "NAME"` stands for the whole spec.'
)
def list_presets() -> None:
    from dermkit.recipes.augmentation import PRESET_NOTES

    for name, note in PRESET_NOTES.items():
        echo(f"{name:14} {note}")


def _find_or_load_recipe(name: str) -> "Recipe":
    """Return a recipe by name, or from a file when the argument is one."""
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.schema import load_recipe

    path = Path(name)
    return load_recipe(path) if path.suffix == ".json" else find_recipe(name)


class _MachineOptions(NamedTuple):
    """The options of train and tune that say where and how to train."""

    out: Path
    device: str
    devices: int
    nodes: int
    restarts: int
    workers: int
    weights: Path | None
    resume: bool

    def command(self) -> str:
        """Return the command as it was typed, without what a message proposes in its place."""
        words, rest = [], iter(sys.argv[1:])
        for word in rest:
            if word == "--continue":
                next(rest, None)
            elif word != "--resume" and not word.startswith("--continue="):
                words.append(shell_path(word))
        return " ".join(["dermkit", *words])


def _launch_ranks(devices: int, nodes: int, restarts: int) -> None:
    """If several processes are asked for and this is none of them, start them, wait, and exit with their code."""
    if devices * nodes == 1:
        return
    max_devices = max(2, cpu_count())
    if devices > max_devices:  # each rank is a process with a net: thousands would take the machine down
        raise UsageError(
            f"--devices {devices}: this machine has {max_devices} cores, and every process needs one",
            outcome="nothing was started",
            remedy=f"--devices {max_devices} or less; several machines with --nodes (docs/machines.md)",
        )
    if is_rank():
        return
    from dermkit.training.distributed.launcher import supervise

    def print_line(line: str) -> None:  # rank 0 draws the bar; a second one would draw over it
        echo(line, err=True)

    raise typer.Exit(supervise(sys.argv[1:], devices=devices, nodes=nodes, restarts=restarts, say=print_line))


def _train_on(
    dataset: Path, options: _MachineOptions, train: "Callable[[Dataset, RunSettings, Progress], Path]"
) -> Path:
    """Load a data set and call `train` on it, in every process; returns the run folder."""
    _launch_ranks(options.devices, options.nodes, options.restarts)
    import dermkit as dk

    settings = dk.RunSettings(
        out=options.out, device=options.device, devices=options.devices, nodes=options.nodes,
        workers=options.workers, weights=options.weights, resume=options.resume,
        command=options.command(),
    )  # fmt: skip
    loaded_dataset = dk.load_dataset(dataset)
    with progress_bar() as progress:
        return train(loaded_dataset, settings, progress)


def _print_paths(*paths: Path) -> None:
    """Print what was written, once: of several processes, the first one does."""
    rank_info = read_rank_info(os.environ)
    if rank_info is None or rank_info.rank == 0:
        for path in paths:
            echo(str(path))


def train_command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: a name of `dermkit recipes list`, or a recipe.json file.")
    ],
    dataset: DatasetArgument,
    out: TrainOutOption = Path("runs"),
    split: SplitOption = None,
    seed: SeedOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    restarts: RestartsOption = 3,
    workers: WorkersOption = 0,
    resume: ResumeOption = False,
    continue_from: ContinueOption = None,
) -> None:
    import dermkit as dk
    from dermkit.runs.layout import REPORT_FILE

    chosen_recipe = _find_or_load_recipe(recipe)
    options = _MachineOptions(out, device, devices, nodes, restarts, workers, weights, resume)

    def train(dataset: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        return dk.train(
            chosen_recipe, dataset, settings=settings, split=split, seed=seed, continue_from=continue_from,
            progress=progress,
        )  # fmt: skip

    folder = _train_on(dataset, options, train)
    _print_paths(folder / REPORT_FILE)


def tune_command(
    grid: Annotated[str, typer.Argument(help="A grid of recipes: a name of `dermkit recipes list`.")],
    dataset: DatasetArgument,
    out: TrainOutOption = Path("runs"),
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
    import dermkit as dk
    from dermkit.runs.layout import REPORT_FILE, TUNE_TABLE

    recipes = dk.find_grid(grid)
    options = _MachineOptions(out, device, devices, nodes, restarts, workers, weights, resume)

    def train(dataset: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        return dk.tune(recipes, dataset, name=grid, settings=settings, split=split, seed=seed, progress=progress)

    folder = _train_on(dataset, options, train)
    _print_paths(out / grid / TUNE_TABLE, folder / REPORT_FILE)
