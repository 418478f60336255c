"""The verbs that are about results, as commands: evaluate, report, compare."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import progress_bar

MAP_HELP = (
    "CLASSES.json, how the classes meet: "
    '{"format": 1, "classes": {"THEIR LABEL": "TARGET or null"}, "model": {"MODEL CLASS": "TARGET"}}.'
)
TARGET_HELP = "A further operating point, such as sensitivity=.97 or specificity=.8. May be repeated."
PREVALENCE_HELP = "Share of malignant lesions where it would be used, such as .03. May be repeated."

SAVE_TARGETS_HELP = "Store the targets in the run's model, for `predict --target`; its checksums change."
OPEN_TEST_HELP = (
    "The run's data set: score its sealed test side now. Every opening is logged and counted (docs/seal.md)."
)


def evaluate_command(
    folder: Annotated[Path | None, typer.Argument(help="A run folder, or a model folder with --on.")] = None,
    dataset: Annotated[Path | None, typer.Option("--on", help="Another data set to test the model on.")] = None,
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
    targets: Annotated[list[str] | None, typer.Option("--target", help=TARGET_HELP)] = None,
    old_targets: Annotated[list[str] | None, typer.Option("--wish", hidden=True)] = None,
    prevalences: Annotated[list[str] | None, typer.Option("--prevalence", help=PREVALENCE_HELP)] = None,
    save_targets: Annotated[bool, typer.Option("--save-targets", help=SAVE_TARGETS_HELP)] = False,
    old_save_targets: Annotated[bool, typer.Option("--keep", hidden=True)] = False,
    open_test: Annotated[Path | None, typer.Option("--open-test", help=OPEN_TEST_HELP)] = None,
) -> None:
    import dermkit as dk
    from dermkit.evaluation.options import parse_options

    options = parse_options(
        official=official,
        targets=[*(targets or []), *(old_targets or [])],
        prevalences=prevalences or [],
        save_targets=save_targets or old_save_targets,
    )
    other_dataset = dk.load_dataset(dataset) if dataset else None
    sealed_dataset = dk.load_dataset(open_test) if open_test else None
    with progress_bar() as progress:
        path = dk.evaluate(
            folder,
            dataset=other_dataset,
            mapping=mapping,
            predictions=predictions,
            out=out,
            open_test=sealed_dataset,
            progress=progress,
            options=options,
        )
    typer.echo(str(path))


def report_command(run: Path) -> None:
    import dermkit as dk

    typer.echo(str(dk.report(run)))


def compare_command(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of repeats and folds.")
    ] = None,
    claim_texts: Annotated[
        list[str] | None,
        typer.Option("--published", help="Figures in print, such as 'S2: accuracy=.4661,n=118'. May be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path("comparison"),
) -> None:
    import dermkit as dk

    outcome = dk.compare(runs or [], claim_texts=claim_texts or [], out=out)
    for name, is_same in outcome.same_images.items():
        typer.echo(f"\n{name} ({'the same images' if is_same else 'NOT the same images: not comparable'})")
        typer.echo(outcome.tables[name])
    typer.echo("")
    for sentence in [*outcome.notes, *outcome.sentences]:
        typer.echo(sentence)
    typer.echo(str(outcome.page))
