"""The command line: parse, call one function, print the path that was written. Heavy imports are inside commands."""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermkit import __version__
from dermkit.ahead import cores
from dermkit.cli_data import audit, import_, split
from dermkit.cli_results import compare, evaluate, report
from dermkit.errors import DermkitError, OutputError, UsageError
from dermkit.terminal import Out, end_refused, watching
from dermkit.training.distributed.environment import find_place, follow_supervisor, started_as_rank

if TYPE_CHECKING:
    from dermkit.prediction.run import PredictOutcome
    from dermkit.recipes.schema import Recipe

app = typer.Typer(
    name="dermkit", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train, compare and serve skin-lesion image classifiers, and say whether to believe them. "
    "Research use only. Not a medical device.",
)  # fmt: skip
recipes_app = typer.Typer(no_args_is_help=True, help="Named experiments: list them, or print one as JSON.")
app.add_typer(recipes_app, name="recipes")


FAULT = "Kept: files written before it\nTo do: run it again with `dermkit --debug ...` and report what it prints"
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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dermkit {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Options that every command has."""


app.command("import")(import_)
app.command()(audit)
app.command()(split)
app.command()(evaluate)
app.command()(report)
app.command()(compare)


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


@app.command()
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
    from dermkit import workflow

    data = workflow.load_dataset(dataset)
    where = workflow.Where(
        out=out, device=device, devices=devices, nodes=nodes, workers=workers, weights=weights, resume=resume
    )
    with watching() as watch:
        folder = workflow.train(chosen, data, where=where, split=split, seed=seed, watch=watch)
    _tell(folder / "report.html")


@app.command()
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
    from dermkit import workflow

    data = workflow.load_dataset(dataset)
    where = workflow.Where(
        out=out, device=device, devices=devices, nodes=nodes, workers=workers, weights=weights, resume=resume
    )
    with watching() as watch:
        folder = workflow.tune(members, data, name=grid, where=where, split=split, seed=seed, watch=watch)
    _tell(out / grid / "tune.csv")
    _tell(folder / "report.html")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model folder, or the run folder that holds it.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders or patterns.")],
    out: Out,
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass; by default as the device likes it.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0 = all cores. They change no figure.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep small copies of the images' pixels in this folder: the next time is faster."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop what an unfinished prediction there has scored.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", help='Operating point that says positive, as in "sensitivity=.95"; else the first kept.'
        ),
    ] = None,
    refer: Annotated[
        float | None,
        typer.Option(
            "--refer",
            help="Answer only images as sure as the surest share (such as 0.8) of validation; refer the others.",
        ),
    ] = None,
) -> None:
    """Predict new images: every class probability, what validation settled applied to it, and labelled sheets.

    The same command goes on where it was stopped.
    """
    from dermkit.prediction.run import predict as run_predict

    with watching() as watch:
        outcome = run_predict(
            model, images, out=out, batch_size=batch_size, workers=workers, cache=cache, device=device,
            restart=restart, at=at, refer=refer, watch=watch,
        )  # fmt: skip
    _tell_predicted(outcome, out)
    end_refused(outcome.n_refused, out / "refused.csv")


def _tell_predicted(outcome: "PredictOutcome", out: Path) -> None:
    typer.echo(f"{outcome.scored} images scored: {out / 'predictions.csv'}")
    if outcome.decided:
        typer.echo(f"{outcome.decided}: {out / 'decided.csv'}")
        for caution in outcome.decided.cautions:
            typer.echo(f"warning: {caution}", err=True)
    else:
        typer.echo("warning: the model settled nothing on validation images, so nothing is calibrated", err=True)
    if outcome.n_seen:
        typer.echo(f"warning: the model's training looked at {outcome.n_seen} of them (predict.json)", err=True)
    typer.echo(str(out / "sheet-1.png"))


@app.command()
def demo(out: Out = Path("demo")) -> None:
    """Make images, import, split, train, evaluate, report and predict: offline, on the CPU, in minutes."""
    from dermkit.pipeline.demo import demo as run_demo

    with watching() as watch:
        outcome = run_demo(out, watch=watch)
    typer.echo(
        "\nResearch use only. Not a medical device. The images are made, so the figures say nothing about skin."
    )
    typer.echo(f"images       {outcome.images}")
    typer.echo(f"data set     {outcome.dataset}")
    typer.echo(f"overview     {outcome.overview}")
    typer.echo(f"run          {outcome.run}")
    typer.echo(f"predictions  {outcome.predictions.out}")
    typer.echo(f"report       {outcome.report}")


def run(command: Callable[[], Any], *, debug: bool) -> int:
    """Call a command; returns the exit code and prints a DermkitError's message to standard error."""
    try:
        result = command()
    except DermkitError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stdout = None  # what could not be written is not tried again at exit
        typer.echo(f"error: standard output: cannot be written: {error.strerror}\nTo do: free space", err=True)
        return OutputError.exit_code
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        return 130
    except SystemExit as end:
        if end.code == 130 and _by_interrupt(end):
            typer.echo("interrupted\nTo do: run the same command again", err=True)
        raise
    except Exception as error:
        if debug:
            raise
        if started_as_rank() and "onnection" in str(error):  # gloo's words are long, and blame the wrong process
            typer.echo("error: the connection to another rank broke: one of them has ended", err=True)
            return 1
        typer.echo(f"error: a fault in dermkit: {type(error).__name__}: {error}\n{FAULT}", err=True)
        return 1
    return result if isinstance(result, int) else 0


def _by_interrupt(error: BaseException | None) -> bool:
    """Tell whether a Ctrl-C stands behind an exit; what dermkit itself tells of one has been told."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _as_interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and leave with its exit code."""
    follow_supervisor()
    signal.signal(signal.SIGTERM, _as_interrupt)  # a scheduler's stop keeps what a person's Ctrl-C keeps
    # Waiting threads that spin starve whatever else the machine does, and us with it: on two shared cores, scoring
    # fell to 19 images/s, and rose to 263 with this. It must stand before torch is loaded, and changes no number.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(lambda: app(standalone_mode=True), debug="--debug" in sys.argv))


if __name__ == "__main__":
    main()
