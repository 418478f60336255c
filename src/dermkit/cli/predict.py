"""Predict new images, as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import Out, end_refused, watching
from dermkit.cli.train import Device

if TYPE_CHECKING:
    from dermkit.prediction.run import PredictOutcome


def predict(
    model: Annotated[Path, typer.Argument(help="A model folder, or the run folder that holds it.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders or patterns.")],
    out: Out,
    device: Device = "auto",
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
    at: Annotated[
        str | None,
        typer.Option(
            "--at", help='Operating point that says positive, as in "sensitivity=.95"; else the first kept.'
        ),
    ] = None,
    refer: Annotated[
        float | None,
        typer.Option(
            "--refer",
            help="Answer only images as sure as the surest share (such as 0.8) of validation; refer the others.",
        ),
    ] = None,
) -> None:
    """Predict new images: every class probability, what validation settled applied to it, and labelled sheets.

    The same command goes on where it was stopped.
    """
    from dermkit.prediction.run import predict as run_predict

    with watching() as watch:
        outcome = run_predict(
            model, images, out=out, batch_size=batch_size, workers=workers, cache=cache, device=device,
            restart=restart, at=at, refer=refer, watch=watch,
        )  # fmt: skip
    _tell_predicted(outcome, out)
    end_refused(outcome.n_refused, out / "refused.csv")


def _tell_predicted(outcome: "PredictOutcome", out: Path) -> None:
    typer.echo(f"{outcome.scored} images scored: {out / 'predictions.csv'}")
    if outcome.decided:
        typer.echo(f"{outcome.decided}: {out / 'decided.csv'}")
        for caution in outcome.decided.cautions:
            typer.echo(f"warning: {caution}", err=True)
    else:
        typer.echo("warning: the model settled nothing on validation images, so nothing is calibrated", err=True)
    if outcome.n_seen:
        typer.echo(f"warning: the model's training looked at {outcome.n_seen} of them (predict.json)", err=True)
    typer.echo(str(out / "sheet-1.png"))
