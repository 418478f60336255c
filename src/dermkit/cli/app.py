"""The command line: its commands, its exit codes, and what a Ctrl-C means. Heavy imports are inside commands."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermkit import __version__
from dermkit.cli.console import OutOption, printable_output, progress_bar, say_error
from dermkit.cli.data import audit_command, import_command, split_command
from dermkit.cli.predict import predict_command
from dermkit.cli.results import compare_command, evaluate_command, report_command
from dermkit.cli.train import recipes_app, train_command, tune_command
from dermkit.errors import DermkitError, OutputError, ResourceError, RunInterrupt
from dermkit.files import out_of_memory
from dermkit.training.distributed.environment import die_with_parent, is_rank

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="dermkit", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train, compare and serve skin-lesion image classifiers, and say whether to believe them. "
    "Research use only. Not a medical device.",
)  # fmt: skip
app.add_typer(recipes_app, name="recipes")


INTERRUPTED = RunInterrupt.exit_code
_MAX_PATH_SHOWN = 300

FAULT_TEXT = (
    "Kept: files written before it\nTo do: run it again with `dermkit --debug ...` and report what it prints"
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dermkit {__version__}")
        raise typer.Exit


@app.callback()
def _common_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Options that every command has."""


# Help texts are arguments and not docstrings, because `python -OO` drops docstrings.
app.command("import", help="Read a set of images, in any layout, into a checked manifest with an overview page.")(
    import_command
)
app.command(
    "audit",
    help="Look for defects of a data set: leaks, duplicates, label conflicts, shortcuts. Ends with 3 on an error.",
)(audit_command)
app.command(
    "split", help="Divide a data set: grouped by lesion and patient, stratified, seeded; refuses overlap."
)(split_command)
app.command("train", help="Train a recipe on a data set; the run is evaluated and its report written.")(
    train_command
)
app.command(
    "tune", help="Train every recipe of a grid, choose one on validation alone, and train that one in full."
)(tune_command)
app.command(
    "evaluate", help="Evaluate a run again, its model on another data set, or predictions of another tool."
)(evaluate_command)
app.command("report", help="Write a run's report again.")(report_command)
app.command(
    "compare",
    help="Compare runs or recipes on the same images: differences with intervals and tests, and a sentence on each.",
)(compare_command)
app.command(
    "predict",
    help="Predict new images: probabilities, decisions, labelled sheets. Stopped, it continues with the same command.",
)(predict_command)


@app.command(
    "demo",
    help="Draw images, import, split, train, evaluate, report and predict: offline, on the CPU, in minutes.",
)
def demo_command(out: OutOption = Path("demo")) -> None:
    from dermkit.pipeline.demo import run_demo as run_demo

    with progress_bar() as progress:
        outcome = run_demo(out, progress=progress)
    typer.echo(
        "\nResearch use only. Not a medical device. The images are made, so the figures say nothing about skin."
    )
    typer.echo(f"images       {outcome.images}")
    typer.echo(f"data set     {outcome.dataset}")
    typer.echo(f"overview     {outcome.overview}")
    typer.echo(f"run          {outcome.run}")
    typer.echo(f"predictions  {outcome.predictions.out}")
    typer.echo(f"report       {outcome.report}")


def run_command(command: Callable[[], Any], *, debug: bool) -> int:
    """Call a command; returns the exit code and prints a DermkitError's message to standard error."""
    try:
        with printable_output():
            result = command()
    except KeyboardInterrupt:
        say_error("interrupted")
        return INTERRUPTED
    except SystemExit as exit_request:
        if exit_request.code == INTERRUPTED and _is_interrupt(exit_request):
            say_error("interrupted\nTo do: run the same command again")
        raise
    except Exception as error:
        if debug and isinstance(error, DermkitError):
            traceback.print_exc()
        elif debug:
            raise
        return _report_error(error)
    return result if isinstance(result, int) else 0


def _report_error(error: Exception) -> int:
    """Print what happened, without a traceback, and return the exit code."""
    code = 1
    if isinstance(error, DermkitError):
        message, code = str(error), error.exit_code
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        sys.stdout = None  # what could not be written is not tried again at exit
        message, code = (
            f"standard output: cannot be written: {error.strerror}\nTo do: free space",
            OutputError.exit_code,
        )
    elif is_rank() and "onnection" in str(error):  # gloo's words are long, and blame the wrong process
        message = "the connection to another rank broke: one of them has ended"
    elif isinstance(error, MemoryError):
        message, code = str(out_of_memory("this command")), ResourceError.exit_code
    elif isinstance(error, OSError) and error.errno is not None:
        message, code = _file_error_text(error), OutputError.exit_code
    else:
        message = f"a fault in dermkit: {type(error).__name__}: {error}\n{FAULT_TEXT}"
    say_error(f"error: {message}")
    return code


def _file_error_text(error: OSError) -> str:
    path = "a file" if error.filename is None else str(error.filename)
    path = path if len(path) <= _MAX_PATH_SHOWN else f"{path[:_MAX_PATH_SHOWN]}... ({len(path):,} characters)"
    return (
        f"{path}: {error.strerror or error}\nKept: files written before it\n"
        "To do: check the path, its permissions and its drive, then give the same command again"
    )


def _is_interrupt(error: BaseException | None) -> bool:
    """Tell whether a Ctrl-C stands behind an exit; what dermkit itself tells of one has been told."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _raise_interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and leave with its exit code."""
    die_with_parent()
    _replace_closed_streams()
    signal.signal(signal.SIGTERM, _raise_interrupt)  # a scheduler's stop keeps what a person's Ctrl-C keeps
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _raise_interrupt)
    # Waiting threads that spin starve whatever else the machine does, and us with it: on two shared cores, scoring
    # fell to 19 images/s, and rose to 263 with this. It must stand before torch is loaded, and changes no number.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code: Any = run_command(lambda: app(standalone_mode=True), debug="--debug" in sys.argv)
    except SystemExit as exit_request:
        code = exit_request.code
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    if code == INTERRUPTED and _has_stuck_threads():
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # the interpreter would wait for them; what was to be saved has been saved
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Let output go nowhere where a stream was closed: the exit code still tells how the command ended."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  it stays open


def _has_stuck_threads() -> bool:
    return any(
        thread.is_alive() and not thread.daemon
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
    )
