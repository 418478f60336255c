"""Export a model to files that other tools run, as a command."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import OutOption, echo, progress_bar


def export_command(
    model: Annotated[Path, typer.Argument(help="A model folder, the run folder that holds it, or a registry.")],
    to: Annotated[str, typer.Option("--to", help="onnx (ONNX Runtime and many others) or openvino.")],
    out: OutOption,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            help="Images to compare the exported net with the model on (default: the run's validation images). May be "
            "repeated.",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Weights and activations in 8 bits: faster, and less accurate; the cost is measured."
        ),
    ] = False,
    max_label_changes: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With --int8, the largest fraction of images whose label may change, else refused.",
        ),
    ] = 0.05,
) -> None:
    from dermkit.export.run import export_model

    with progress_bar() as progress:
        outcome = export_model(
            model, to=to, out=out, images=images or [], int8=int8, max_label_changes=max_label_changes,
            progress=progress,
        )  # fmt: skip
    for sentence in outcome.comparison_lines:
        echo(sentence)
    for path in outcome.nets:
        echo(str(path))
    echo("Research use only. Not a medical device.")
