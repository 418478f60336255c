"""What the command line shows: a bar or plain lines while a job runs, and the list of what was refused."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from dermkit.errors import EXIT_SOME_REFUSED
from dermkit.progress import Watch

Out = Annotated[Path, typer.Option("--out", help="Folder to write into.")]


def end_refused(count: int, where: Path) -> None:
    if count:
        typer.echo(f"{count} images were refused and are listed in {where}", err=True)
        raise typer.Exit(EXIT_SOME_REFUSED)


@contextmanager
def watching() -> Iterator[Watch]:
    """Show a bar with the time left on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield Watch(say=lambda line: typer.echo(line, err=True))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, visible=done < total)

        yield Watch(say=lambda line: console.print(line, markup=False, highlight=False), step=step)
