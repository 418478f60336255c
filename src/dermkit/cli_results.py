"""The verbs that are about results, as commands: evaluate, report, compare."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.terminal import watching

MAP_HELP = (
    "CLASSES.json, how the classes meet: "
    '{"format": 1, "classes": {"THEIR LABEL": "TARGET or null"}, "model": {"MODEL CLASS": "TARGET"}}.'
)


def evaluate(
    target: Annotated[Path | None, typer.Argument(help="A run folder, or a model folder with --on.")] = None,
    on: Annotated[Path | None, typer.Option("--on", help="Another data set to test the model on.")] = None,
    mapping: Annotated[Path | None, typer.Option("--map", help=MAP_HELP)] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="A table of any tool's probabilities, instead of a run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write into (with --on, --predictions).")
    ] = None,
) -> None:
    """Evaluate a run again, its model on another data set, or predictions of another tool."""
    from dermkit import workflow

    other = workflow.load_dataset(on) if on else None
    with watching() as watch:
        path = workflow.evaluate(target, on=other, mapping=mapping, predictions=predictions, out=out, watch=watch)
    typer.echo(str(path))


def report(run: Path) -> None:
    """Write a run's report again."""
    from dermkit import workflow

    typer.echo(str(workflow.report(run)))


def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of repeats and folds.")
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option("--published", help="Figures in print, such as 'S2: accuracy=.4661,n=118'. May be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path("comparison"),
) -> None:
    """Compare runs or recipes on the same images: differences with intervals and tests, one page, a sentence each."""
    from dermkit import workflow

    outcome = workflow.compare(runs or [], published=published or [], out=out)
    for name, same in outcome.same_images.items():
        typer.echo(f"\n{name} ({'the same images' if same else 'NOT the same images: not comparable'})")
        typer.echo(outcome.tables[name])
    typer.echo("")
    for sentence in [*outcome.notes, *outcome.sentences]:
        typer.echo(sentence)
    typer.echo(str(outcome.page))
