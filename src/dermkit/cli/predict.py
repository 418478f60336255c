"""Predict new images, as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import OutOption, exit_with_refused, progress_bar
from dermkit.cli.train import DeviceOption

if TYPE_CHECKING:
    from dermkit.prediction.run import PredictOutcome


def predict_command(
    model: Annotated[Path, typer.Argument(help="A model folder, or the run folder that holds it.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders or patterns.")],
    out: OutOption,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass; by default as the device likes it.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0 = all cores. They change no figure.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep small copies of the images' pixels in this folder: the next time is faster."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop what an unfinished prediction there has scored.")
    ] = False,
    operating_point: Annotated[
        str | None,
        typer.Option(
            "--at", help='Operating point that says positive, as in "sensitivity=.95"; else the first kept.'
        ),
    ] = None,
    answer_fraction: Annotated[
        float | None,
        typer.Option(
            "--refer",
            help="Answer only images as sure as the surest share (such as 0.8) of validation; refer the others.",
        ),
    ] = None,
) -> None:
    from dermkit.prediction.run import predict as run_predict

    with progress_bar() as progress:
        outcome = run_predict(
            model, images, out=out, batch_size=batch_size, workers=workers, cache=cache, device=device,
            restart=restart, target=operating_point, coverage=answer_fraction, progress=progress,
        )  # fmt: skip
    _print_prediction_summary(outcome, out)
    exit_with_refused(outcome.n_rejected, out / "refused.csv")


def _print_prediction_summary(outcome: "PredictOutcome", out: Path) -> None:
    typer.echo(f"{outcome.n_scored} images scored: {out / 'predictions.csv'}")
    if outcome.decision_counts:
        typer.echo(f"{outcome.decision_counts}: {out / 'decided.csv'}")
        for warning in outcome.decision_counts.warnings:
            typer.echo(f"warning: {warning}", err=True)
    else:
        typer.echo("warning: the model settled nothing on validation images, so nothing is calibrated", err=True)
    if outcome.n_training_images:
        typer.echo(
            f"warning: the model's training looked at {outcome.n_training_images} of them (predict.json)", err=True
        )
    typer.echo(str(out / "sheet-1.png"))
