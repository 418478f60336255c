"""Artefacts on a run's images, and what they do to the net's answers, as a command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import echo, exit_with_refused, progress_bar
from dermkit.cli.train import DeviceOption


class _Split(StrEnum):
    TEST = "test"
    VALIDATION = "validation"


def counterfactuals_command(
    run: Annotated[Path, typer.Argument(help="A run folder, or with --on also a model folder.")],
    dataset: Annotated[
        Path | None,
        typer.Option("--on", help="A data set, for images of its own; or the run's data set where it lies now."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write into (default: counterfactuals in the run folder)."),
    ] = None,
    split: Annotated[
        _Split | None,
        typer.Option(help="Which images of the run (default: test; validation where the test split is sealed)."),
    ] = None,
    images: Annotated[
        str, typer.Option("--images", help="How many images: whole lesions are drawn at random; or `all`.")
    ] = "500",
    artefacts: Annotated[
        list[str] | None,
        typer.Option("--artefact", help="One artefact, such as ink (default: all). May be repeated."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="A folder of lesion masks, PNG by image name, to hide lesion or background."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="The operating point, such as sensitivity=.95 (default: the first guaranteed)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample of images and of what is drawn.")] = 0,
    device: DeviceOption = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures per forward pass.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write names that begin with = + - @ as they are.")] = False,
) -> None:
    import dermkit as dk
    from dermkit.perturbation.run import parse_image_count

    with progress_bar() as progress:
        outcome = dk.counterfactuals(
            run, dataset=dk.load_dataset(dataset) if dataset else None, out=out,
            split=None if split is None else split.value, n_images=parse_image_count(images),
            artefacts=artefacts or [], masks=masks, target=target, seed=seed, device=device, batch_size=batch_size,
            raw=raw, progress=progress,
        )  # fmt: skip
    for line in outcome.sentences:
        echo(line)
    echo(str(outcome.page))
    exit_with_refused([reason for _, reason, _ in outcome.rejected_images], outcome.out / "refused.csv")
