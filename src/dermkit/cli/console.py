"""What the command line shows: a bar or plain lines while a job runs, and how many images were refused."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dermkit.cli.line_progress import line_progress
from dermkit.errors import EXIT_SOME_REJECTED, UsageError, printable
from dermkit.progress import Progress

DatasetArgument = Annotated[Path, typer.Argument(help="A data set folder, as `dermkit import` writes it.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write into.")]


_Value = TypeVar("_Value")


def one_of_names(flag: str, value: _Value | None, old_flag: str, old_value: _Value | None) -> _Value | None:
    """Return the value of an option or of its old name, None = not given; raises `UsageError` where both are given."""
    if value is not None and old_value is not None:
        raise UsageError(f"{old_flag} is the old name of {flag}: both are given", remedy=f"give {flag} alone")
    return old_value if value is None else value


def parse_malignancy(options: Sequence[str]) -> dict[str, str]:
    """Return class -> malignancy of options of the form CLASS=VALUE; raises `UsageError` for any other form."""
    malignancy: dict[str, str] = {}
    for option in options:
        name, equals, value = option.rpartition("=")
        if not equals:
            raise UsageError(
                f"--malignancy {option}: not of the form CLASS=VALUE", remedy="e.g. --malignancy nevus=benign"
            )
        malignancy[name] = value
    return malignancy


def echo(message: object = "", *, err: bool = False) -> None:
    """Print a line, escaped: it may hold a name that somebody else gave a file. Commands print with nothing else."""
    typer.echo(printable(str(message)), err=err)


def exit_with_refused(reasons: Sequence[str], refused_path: Path) -> None:
    """Leave with the exit code for refused images, if there are any, and say for each reason what to do."""
    if reasons:
        from dermkit.data.rejection_texts import rejection_lines

        refused = (
            "1 image was refused and is" if len(reasons) == 1 else f"{len(reasons)} images were refused and are"
        )
        echo(f"{refused} listed in {refused_path}", err=True)
        for line in rejection_lines(reasons):
            echo(line, err=True)
        raise typer.Exit(EXIT_SOME_REJECTED)


def say_error(line: str) -> None:
    """Print to standard error; where that is closed or full, go on without: hours of work do not depend on it."""
    with suppress(OSError, ValueError):
        echo(line, err=True)


def print_result(folder: Path, *pages: Path) -> None:
    """Print the result of an evaluated folder, then the paths of its pages, each once."""
    from dermkit.reporting.terminal import result_lines

    for line in result_lines(folder):
        echo(line)
    for page in pages:
        echo(str(page))


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a bar with the time left on a terminal; elsewhere plain lines, one at least every 20 seconds."""
    if not sys.stderr.isatty():
        with line_progress(say_error) as progress:
            yield progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update_bar(task_name: str, count: int, total: int) -> None:
            if task_name not in tasks:
                tasks[task_name] = bar.add_task(task_name, total=total)
            bar.update(tasks[task_name], completed=count, total=total, visible=count < total)

        yield Progress(
            say=lambda line: console.print(printable(line), markup=False, highlight=False), step=update_bar
        )
