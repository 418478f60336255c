"""The command line: its commands, its exit codes, and how Ctrl-C ends it. Heavy imports are inside the commands."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import which
from typing import Annotated, Any

import typer

from dermkit import __version__
from dermkit.cli.auto import plan_command
from dermkit.cli.console import OutOption, echo, print_result, progress_bar, say_error
from dermkit.cli.counterfactuals import counterfactuals_command
from dermkit.cli.data import audit_command, import_command, split_command
from dermkit.cli.ensemble import ensemble_command
from dermkit.cli.examples import examples_text
from dermkit.cli.explain import explain_command
from dermkit.cli.export import export_command
from dermkit.cli.find_lr import find_lr_command
from dermkit.cli.keys import keys_app
from dermkit.cli.ladder import ladder_command
from dermkit.cli.monitor import monitor_command
from dermkit.cli.predict import predict_command
from dermkit.cli.prediction_log import log_app, verify_log_command
from dermkit.cli.recipes import recipes_app
from dermkit.cli.registry import registry_app
from dermkit.cli.results import compare_command, evaluate_command, report_command
from dermkit.cli.serve import serve_command
from dermkit.cli.train import train_command
from dermkit.cli.tune import tune_command
from dermkit.cli.update import update_command
from dermkit.errors import DermkitError, OutputError, ResourceError, RunInterrupt, UsageError, out_of_memory
from dermkit.files import shell_path
from dermkit.training.distributed.environment import die_with_parent, is_rank

app = typer.Typer(
    name="dermkit", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train, evaluate, compare and use skin-lesion image classifiers. Start with `dermkit demo`. "
    "Research use only. Not a medical device.",
)  # fmt: skip
app.add_typer(recipes_app, name="recipes")
app.add_typer(keys_app, name="keys")
app.add_typer(log_app, name="log")
app.add_typer(registry_app, name="registry")


INTERRUPTED = RunInterrupt.exit_code
_MAX_PATH_SHOWN = 300
_TRAIN_PACKAGES = ("torch", "torchvision", "timm", "safetensors", "lightning_fabric", "captum", "imblearn")
"""What dermkit[train] installs; every other command works without them."""

FAULT_TEXT = (
    "Kept: the files written before it\nTo do: run it again with `dermkit --debug ...` and report what it prints"
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        echo(f"dermkit {__version__}")
        raise typer.Exit


@app.callback()
def _common_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that every command has."""


# Help texts are arguments and not docstrings, because `python -OO` drops docstrings.
app.command(
    "import",
    help="Make a data set folder of images in a known layout: a checked manifest and an overview page.",
    epilog=examples_text("import"),
)(import_command)
app.command(
    "audit",
    help="Check a data set for leaks, duplicates, label conflicts and shortcuts. Exit code 3 if an error is found.",
    epilog=examples_text("audit"),
)(audit_command)
app.command(
    "split",
    help="Split a data set into train, validation and test, or into folds: by patient and lesion, stratified by class.",
    epilog=examples_text("split"),
)(split_command)
app.command(
    "plan",
    help="Say which recipes fit a data set, this machine and a time, with the reason of each choice; trains nothing.",
    epilog=examples_text("plan"),
)(plan_command)
app.command(
    "train", help="Train a recipe on a data set, evaluate it and write its report.", epilog=examples_text("train")
)(train_command)
app.command(
    "tune",
    help="Try other values of a recipe's fields, or a grid of recipes, select on validation, train the best in full.",
    epilog=examples_text("tune"),
)(tune_command)
app.command(
    "find-lr",
    help="Suggest a learning rate for a recipe by a short sweep over training images. Nothing is changed.",
    epilog=examples_text("find-lr"),
)(find_lr_command)
app.command(
    "ladder",
    help="Train a recipe on splits by image, lesion, patient and source, and say how much a leak flatters its figures.",
    epilog=examples_text("ladder"),
)(ladder_command)
app.command(
    "evaluate",
    help="Evaluate a run again, a model on another data set, or the predictions of another tool.",
    epilog=examples_text("evaluate"),
)(evaluate_command)
app.command(
    "report", help="Write the report of a run again, without evaluating it.", epilog=examples_text("report")
)(report_command)
app.command(
    "compare",
    help="Compare runs or recipes on the same images: differences, their intervals and tests, and a verdict on each.",
    epilog=examples_text("compare"),
)(compare_command)
app.command(
    "ensemble",
    help="Make one model of several runs: weights fitted on images that none of them learned from, and a report.",
    epilog=examples_text("ensemble"),
)(ensemble_command)
app.command(
    "predict",
    help="Predict new images: probabilities, decisions, sheets of pictures. Interrupted, it continues if repeated.",
    epilog=examples_text("predict"),
)(predict_command)
app.command(
    "export",
    help="Write a model as ONNX or OpenVINO files that other tools run, compared with the model on real images first.",
    epilog=examples_text("export"),
)(export_command)
app.command(
    "explain",
    help="Show where a model finds evidence for a class: heat maps over images, with checks that they mean something.",
    epilog=examples_text("explain"),
)(explain_command)
app.command(
    "counterfactuals",
    help="Put hair, ink, blur and the like on a run's images and measure how the net's answers change, worst first.",
    epilog=examples_text("counterfactuals"),
)(counterfactuals_command)
app.command(
    "serve",
    help="Serve a model as an HTTP API on this machine, or with API keys on a network. Nothing is stored without "
    "--log.",
    epilog=examples_text("serve"),
)(serve_command)
app.command(
    "verify-log",
    help="Check that no row of a prediction log was changed, removed, inserted or moved. Exit code 3 names the first.",
    epilog=examples_text("verify-log"),
)(verify_log_command)
app.command(
    "monitor",
    help="Watch a prediction log for drift and for worse answers: alarms with a controlled false-alarm rate, one page.",
    epilog=examples_text("monitor"),
)(monitor_command)
app.command(
    "update",
    help="Train a challenger on old and new data; it serves only if it is not worse on sealed tests, in no group.",
    epilog=examples_text("update"),
)(update_command)


@app.command(
    "demo",
    help="Try all steps on synthetic images, from import to prediction: offline, on the CPU, in minutes.",
    epilog=examples_text("demo"),
)
def demo_command(out: OutOption = Path("demo")) -> None:
    from dermkit.pipeline.demo import run_demo

    with progress_bar() as progress:
        outcome = run_demo(out, progress=progress)
    echo(
        "\nResearch use only. Not a medical device. The images are synthetic: the figures say nothing about skin."
    )
    print_result(outcome.run)
    echo(f"images       {outcome.images}")
    echo(f"data set     {outcome.dataset}")
    echo(f"overview     {outcome.overview}")
    echo(f"run          {outcome.run}")
    echo(f"predictions  {outcome.predictions.out}")
    echo(f"report       {outcome.report}")
    echo(f"page         {_program()} serve {shell_path(outcome.run)}   then open the address that it prints")


def _program() -> str:
    """Return how this program was called, so that a command that it prints can be run as it stands."""
    called = Path(sys.argv[0])
    return shell_path(called) if called.stem == "dermkit" and which("dermkit") != str(called) else "dermkit"


def run_command(command: Callable[[], Any], *, debug: bool) -> int:
    """Call a command; returns the exit code and prints a DermkitError's message to standard error."""
    try:
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
    elif isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _TRAIN_PACKAGES:
        message, code = _absent_package_text(error), UsageError.exit_code
    elif isinstance(error, OSError) and error.errno is not None:
        message, code = _file_error_text(error), OutputError.exit_code
    else:
        message = f"a fault in dermkit: {type(error).__name__}: {error}\n{FAULT_TEXT}"
    say_error(f"error: {message}")
    return code


def _absent_package_text(error: ImportError) -> str:
    return (
        f"this command needs the packages of dermkit[train]: {error}\nKept: files written before it\n"
        "To do: pip install 'dermkit[train]'; predictions from an exported folder need no torch (docs/export.md)"
    )


def _file_error_text(error: OSError) -> str:
    path = "a file" if error.filename is None else str(error.filename)
    path = path if len(path) <= _MAX_PATH_SHOWN else f"{path[:_MAX_PATH_SHOWN]}... ({len(path):,} characters)"
    return (
        f"{path}: {error.strerror or error}\nKept: files written before it\n"
        "To do: check the path, its permissions and its drive, then give the same command again"
    )


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether a Ctrl-C caused an exit, so that it has not been reported yet."""
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
