"""Predict new images, as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import OutOption, echo, exit_with_refused, one_of_names, progress_bar
from dermkit.cli.policy_options import CoverageOption, TargetOption
from dermkit.cli.train import DeviceOption

if TYPE_CHECKING:
    from dermkit.prediction.output import PredictOutcome


MetadataTableOption = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        help="A table with the columns image, age, sex, site, for a model that takes them (docs/predict.md).",
    ),
]


EngineOption = Annotated[
    str | None,
    typer.Option(
        help="What runs the nets: torch, onnxruntime, openvino, or auto, the fastest that is installed and gives "
        "torch's numbers (default: torch; for an exported folder what reads it; docs/predict.md)."
    ),
]


def predict_command(
    model: Annotated[
        Path, typer.Argument(help="A model folder, the run folder that holds it, or an exported folder.")
    ],
    images: Annotated[list[str], typer.Argument(help="Image files, folders or patterns such as 'photos/*.jpg'.")],
    out: OutOption,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass (default: chosen for the device).")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Threads that read images (0 = all cores). They change no number.")
    ] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep the resized pixels in this folder: the next prediction of these images is faster."
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Start anew: discard what an unfinished prediction in --out has scored."),
    ] = False,
    target: TargetOption = None,
    coverage: CoverageOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write names that begin with = + - @ as they are.")] = False,
    metadata: MetadataTableOption = None,
    withhold_outside: Annotated[
        bool,
        typer.Option(
            "--withhold-outside",
            help="Give no answer in decisions.csv for images outside the training distribution.",
        ),
    ] = False,
    engine: EngineOption = None,
    old_target: Annotated[str | None, typer.Option("--at", hidden=True)] = None,
    old_coverage: Annotated[float | None, typer.Option("--refer", hidden=True)] = None,
) -> None:
    from dermkit.prediction.run import predict as run_predict

    target = one_of_names("--target", target, "--at", old_target)
    coverage = one_of_names("--coverage", coverage, "--refer", old_coverage)
    with progress_bar() as progress:
        outcome = run_predict(
            model, images, out=out, batch_size=batch_size, workers=workers, cache=cache, device=device,
            restart=restart, target=target, coverage=coverage, raw=raw, metadata=metadata,
            withhold_outside=withhold_outside, engine=engine, progress=progress,
        )  # fmt: skip
    _print_prediction_summary(outcome, out)
    exit_with_refused([reason for _, reason, _ in outcome.rejected_images], out / "refused.csv")


def _print_prediction_summary(outcome: "PredictOutcome", out: Path) -> None:
    from dermkit.prediction.decisions import DECISIONS_FILE
    from dermkit.runs.layout import DISTANCES_FILE, PREDICTIONS_FILE

    echo(f"{outcome.n_scored} images scored: {out / PREDICTIONS_FILE}")
    if outcome.decision_counts:
        echo(f"{outcome.decision_counts}: {out / DECISIONS_FILE}")
        for warning in outcome.decision_counts.warnings:
            echo(f"warning: {warning}", err=True)
    else:
        echo(
            "warning: the model has no decision policy (it was never evaluated on validation images), so probabilities "
            "are not calibrated",
            err=True,
        )
    if outcome.n_outside:
        echo(
            f"warning: {outcome.n_outside} of {outcome.n_scored} images lie outside the training distribution: "
            f"{out / DISTANCES_FILE}",
            err=True,
        )
    if outcome.n_outside is None and outcome.n_scored:
        echo(f"out-of-distribution test: not applicable: {outcome.why_no_test}", err=True)
    if outcome.n_training_images:
        echo(
            f"warning: {outcome.n_training_images} of them are images that the model was trained on (predict.json)",
            err=True,
        )
    echo(str(out / "sheet-1.png"))
