"""The command ensemble."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dermkit.cli.console import OutOption, echo, print_result, progress_bar

WeightsSchemeOption = Annotated[
    Literal["fitted", "equal"],
    typer.Option(
        "--weights",
        help="fitted: on validation images that no member learned from, and used where they beat equal ones there in "
        "a cross-validation.",
    ),
]


def ensemble_command(
    models: Annotated[
        list[Path], typer.Argument(help="Runs, folders of repeats or folds, or model folders of one data set.")
    ],
    out: OutOption,
    weights: WeightsSchemeOption = "fitted",
) -> None:
    from dermkit.pipeline.ensemble import ensemble
    from dermkit.reporting.terminal import wrapped

    with progress_bar() as progress:
        outcome = ensemble(models, out=out, weights=weights, progress=progress)
    for sentence in outcome.sentences:
        for line in wrapped(sentence, indent="  "):
            echo(line)
    if outcome.report is None:
        echo(str(outcome.folder))
    else:
        print_result(outcome.folder, outcome.report)
