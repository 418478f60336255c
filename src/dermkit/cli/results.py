"""The commands about results: evaluate, report, compare."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import echo, one_of_names, parse_malignancy, print_result, progress_bar

MAP_HELP = (
    "How classes correspond, as a JSON file: "
    '{"format": 1, "classes": {"LABEL OF --on": "TARGET or null"}, "model": {"MODEL CLASS": "TARGET"}}.'
)
TARGET_HELP = "A further operating point, such as sensitivity=.97 or specificity=.8. May be repeated."
PREVALENCE_HELP = "A prevalence of malignant lesions, such as .03, to give predictive values for. May be repeated."

SAVE_TARGETS_HELP = "Store the targets in the run's model, for `predict --target`; its checksums change."
SPLIT_HELP = (
    "With --predictions and --on: the split of the data set whose test images count (default: the given split)."
)
MALIGNANCY_HELP = "With --predictions alone: CLASS=benign|malignant|indeterminate. May be repeated."
PROBABILITIES_HELP = (
    "With --predictions: what the numbers are if no probabilities: logits, percent or independent (sigmoids)."
)
NO_HEAT_MAPS_HELP = "Make no heat maps of the run's mistakes and best hits; those of the same answers stay."
MASKS_HELP = (
    "A folder of lesion masks, PNG by image name: the run's heat maps are made anew, with how much of each lies in the "
    "lesion."
)
OPEN_TEST_HELP = (
    "The run's data set, to score its sealed test split now. Every opening is logged and counted (docs/seal.md)."
)


def evaluate_command(
    folder: Annotated[Path | None, typer.Argument(help="A run folder; with --on also a model folder.")] = None,
    dataset: Annotated[Path | None, typer.Option("--on", help="Another data set, to test the model on.")] = None,
    mapping: Annotated[Path | None, typer.Option("--map", help=MAP_HELP)] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", help="A CSV of another tool's probabilities (docs/metrics.md), in place of a run."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --on or --predictions: folder to write into.")
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Also compute the metrics of the official ISIC challenge scorer.")
    ] = False,
    targets: Annotated[list[str] | None, typer.Option("--target", help=TARGET_HELP)] = None,
    old_targets: Annotated[list[str] | None, typer.Option("--wish", hidden=True)] = None,
    prevalences: Annotated[list[str] | None, typer.Option("--prevalence", help=PREVALENCE_HELP)] = None,
    save_targets: Annotated[bool, typer.Option("--save-targets", help=SAVE_TARGETS_HELP)] = False,
    old_save_targets: Annotated[bool, typer.Option("--keep", hidden=True)] = False,
    open_test: Annotated[Path | None, typer.Option("--open-test", help=OPEN_TEST_HELP)] = None,
    split: Annotated[str | None, typer.Option("--split", help=SPLIT_HELP)] = None,
    malignancy: Annotated[list[str] | None, typer.Option("--malignancy", help=MALIGNANCY_HELP)] = None,
    probabilities: Annotated[str | None, typer.Option("--probabilities", help=PROBABILITIES_HELP)] = None,
    no_heat_maps: Annotated[bool, typer.Option("--no-heat-maps", help=NO_HEAT_MAPS_HELP)] = False,
    masks: Annotated[Path | None, typer.Option("--masks", help=MASKS_HELP)] = None,
) -> None:
    import dermkit as dk
    from dermkit.evaluation.options import parse_options

    options = parse_options(
        official=official,
        targets=one_of_names("--target", targets or None, "--wish", old_targets or None) or [],
        prevalences=prevalences or [],
        save_targets=bool(
            one_of_names("--save-targets", save_targets or None, "--keep", old_save_targets or None)
        ),
        heat_maps=not no_heat_maps,
        masks=masks,
    )
    with progress_bar() as progress:
        path = dk.evaluate(
            folder, dataset=dk.load_dataset(dataset) if dataset else None, mapping=mapping, predictions=predictions,
            out=out, open_test=dk.load_dataset(open_test) if open_test else None, progress=progress, options=options,
            split=split, malignancy=parse_malignancy(malignancy or []), probabilities=probabilities,
        )  # fmt: skip
    print_result(path.parent, path)


def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder, or a folder of repeats or folds.")],
) -> None:
    import dermkit as dk

    with progress_bar():
        path = dk.report(run)
    echo(str(path))


def compare_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders, folders of repeats or folds, or tables of predictions."),
    ] = None,
    claim_texts: Annotated[
        list[str] | None,
        typer.Option(
            "--published",
            help="A published result to compare with, such as 'S2: accuracy=.4661,n=118'. May be repeated.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path("comparison"),
) -> None:
    import dermkit as dk
    from dermkit.reporting.terminal import wrapped

    with progress_bar():
        outcome = dk.compare(runs or [], claim_texts=claim_texts or [], out=out)
    for name, table in outcome.tables.items():
        for line in ["", *wrapped(f"{name} ({outcome.image_texts[name]})"), table, ""]:
            echo(line)
    for sentence in [*outcome.notes, *outcome.sentences, *outcome.verdicts]:
        for line in wrapped(sentence, indent="  "):
            echo(line)
    echo(str(outcome.page))
