"""The verbs that are about results, as commands: evaluate, report, compare."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import watching

MAP_HELP = (
    "CLASSES.json, how the classes meet: "
    '{"format": 1, "classes": {"THEIR LABEL": "TARGET or null"}, "model": {"MODEL CLASS": "TARGET"}}.'
)
WISH_HELP = "An operating point of your own, such as sensitivity=.97 or specificity=.8. May be repeated."
PREVALENCE_HELP = "Share of malignant lesions where it would be used, such as .03. May be repeated."

KEEP_HELP = "The run's model takes the wishes over, for `predict --at`; its checksums change."
OPEN_HELP = (
    "The run's data set: score its sealed test side now. Every opening is logged and counted (docs/seal.md)."
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
    official: Annotated[
        bool, typer.Option("--official", help="Also score by the official ISIC challenge scorer's rules.")
    ] = False,
    wish: Annotated[list[str] | None, typer.Option("--wish", help=WISH_HELP)] = None,
    prevalence: Annotated[list[str] | None, typer.Option("--prevalence", help=PREVALENCE_HELP)] = None,
    keep: Annotated[bool, typer.Option("--keep", help=KEEP_HELP)] = False,
    open_test: Annotated[Path | None, typer.Option("--open-test", help=OPEN_HELP)] = None,
) -> None:
    """Evaluate a run again, its model on another data set, or predictions of another tool."""
    import dermkit as dk
    from dermkit.evaluation.options import read_asked

    asked = read_asked(official=official, wishes=wish or [], prevalences=prevalence or [], keep=keep)
    other = dk.load_dataset(on) if on else None
    sealed = dk.load_dataset(open_test) if open_test else None
    with watching() as watch:
        path = dk.evaluate(
            target,
            on=other,
            mapping=mapping,
            predictions=predictions,
            out=out,
            open_test=sealed,
            watch=watch,
            asked=asked,
        )
    typer.echo(str(path))


def report(run: Path) -> None:
    """Write a run's report again."""
    import dermkit as dk

    typer.echo(str(dk.report(run)))


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
    import dermkit as dk

    outcome = dk.compare(runs or [], published=published or [], out=out)
    for name, same in outcome.same_images.items():
        typer.echo(f"\n{name} ({'the same images' if same else 'NOT the same images: not comparable'})")
        typer.echo(outcome.tables[name])
    typer.echo("")
    for sentence in [*outcome.notes, *outcome.sentences]:
        typer.echo(sentence)
    typer.echo(str(outcome.page))
