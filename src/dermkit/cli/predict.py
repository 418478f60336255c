"""Predict new images, as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from dermkit.cli.console import OutOption, exit_with_refused, progress_bar
from dermkit.cli.train import DeviceOption
from dermkit.errors import UsageError

if TYPE_CHECKING:
    from dermkit.prediction.run import PredictOutcome

_Value = TypeVar("_Value", str, float)


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
    target: Annotated[
        str | None,
        typer.Option(
            help="Operating point that decides positive, such as sensitivity=.95 (default: the first guaranteed one)."
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Answer only this fraction of images, such as 0.8, by the confidence threshold of validation; refer "
            "the others."
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Write names that begin with = + - @ as they are."),
    ] = False,
    old_target: Annotated[str | None, typer.Option("--at", hidden=True)] = None,
    old_coverage: Annotated[float | None, typer.Option("--refer", hidden=True)] = None,
) -> None:
    from dermkit.prediction.run import predict as run_predict

    target = _either("--target", target, "--at", old_target)
    coverage = _either("--coverage", coverage, "--refer", old_coverage)
    with progress_bar() as progress:
        outcome = run_predict(
            model, images, out=out, batch_size=batch_size, workers=workers, cache=cache, device=device,
            restart=restart, target=target, coverage=coverage, raw=raw, progress=progress,
        )  # fmt: skip
    _print_prediction_summary(outcome, out)
    exit_with_refused(outcome.n_rejected, out / "refused.csv")


def _either(flag: str, value: _Value | None, old_flag: str, old_value: _Value | None) -> _Value | None:
    """Return the value of an option or of its old name; raises `UsageError` where both are given."""
    if value is not None and old_value is not None:
        raise UsageError(f"{old_flag} is the old name of {flag}: both are given", remedy=f"give {flag} alone")
    return old_value if value is None else value


def _print_prediction_summary(outcome: "PredictOutcome", out: Path) -> None:
    typer.echo(f"{outcome.n_scored} images scored: {out / 'predictions.csv'}")
    if outcome.decision_counts:
        typer.echo(f"{outcome.decision_counts}: {out / 'decisions.csv'}")
        for warning in outcome.decision_counts.warnings:
            typer.echo(f"warning: {warning}", err=True)
    else:
        typer.echo(
            "warning: the model has no decision policy (it was never evaluated on validation images), so probabilities "
            "are not calibrated",
            err=True,
        )
    if outcome.n_training_images:
        typer.echo(
            f"warning: {outcome.n_training_images} of them are images that the model was trained on (predict.json)",
            err=True,
        )
    typer.echo(str(out / "sheet-1.png"))
