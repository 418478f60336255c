"""What the command line shows: a bar or plain lines while a job runs, and the list of what was refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from dermkit.errors import EXIT_SOME_REJECTED, printable
from dermkit.progress import Progress

OutOption = Annotated[Path, typer.Option("--out", help="Folder to write into.")]


def exit_with_refused(count: int, refused_path: Path) -> None:
    if count:
        typer.echo(f"{count} images were refused and are listed in {refused_path}", err=True)
        raise typer.Exit(EXIT_SOME_REJECTED)


def say_error(line: str) -> None:
    """Print to standard error; where that is closed or full, go on without: hours of work do not depend on it."""
    with suppress(OSError, ValueError):
        typer.echo(printable(line), err=True)


@contextmanager
def printable_output() -> Iterator[None]:
    """Escape what commands print, here and nowhere else: every line may hold a name that somebody else gave a file."""
    echo = typer.echo

    def echo_printable(
        message: Any | None = None,
        file: IO[Any] | None = None,
        nl: bool = True,
        err: bool = False,
        color: bool | None = None,
    ) -> None:
        echo(printable(message) if isinstance(message, str) else message, file, nl, err, color)

    typer.echo = echo_printable
    try:
        yield
    finally:
        typer.echo = echo


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a bar with the time left on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield Progress(say=say_error)
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
