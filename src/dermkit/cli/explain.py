"""Heat maps of what a model looked at, as a command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import OutOption, echo, exit_with_refused, progress_bar
from dermkit.cli.train import DeviceOption


class _Method(StrEnum):
    AUTO = "auto"
    GRADIENT = "gradient"
    GRADIENT_ROLLOUT = "gradient-rollout"
    ROLLOUT = "rollout"
    OCCLUSION = "occlusion"


MethodOption = Annotated[
    _Method,
    typer.Option(
        help="gradient: Grad-CAM or HiResCAM at the net's last map; gradient-rollout: attention of all blocks of a "
        "ViT, weighted by gradients; rollout: the same without a class; occlusion: hide windows, for any net; "
        "auto: what suits the net (docs/explain.md)."
    ),
]
ImageMetadataOption = Annotated[
    Path | None,
    typer.Option(
        help="A table with the columns image, age, sex, site, for a model that takes them (docs/predict.md): maps with "
        "them, and what each weighs."
    ),
]


def explain_command(
    model: Annotated[Path, typer.Argument(help="A model folder, the run folder that holds it, or a registry.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders or patterns such as 'photos/*.jpg'.")],
    out: OutOption = Path("explanations"),
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="The class to explain (default: the one that each image is answered with)."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Show what speaks for the class against this one (default: against all others)."),
    ] = None,
    method: MethodOption = _Method.AUTO,
    masks: Annotated[
        Path | None,
        typer.Option(help="A folder of lesion masks, PNG by image name: how much of each map lies in the lesion."),
    ] = None,
    metadata: ImageMetadataOption = None,
    no_checks: Annotated[
        bool,
        typer.Option(
            "--no-checks",
            help="Do not compare the maps with those of random weights, nor hide what they mark, which takes most of "
            "the time.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures per forward pass (default: 16).")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write names that begin with = + - @ as they are.")] = False,
) -> None:
    from dermkit.explanation.run import explain

    with progress_bar() as progress:
        outcome = explain(
            model, images, out=out, class_name=class_name, against=against, method=method.value, masks=masks,
            metadata=metadata, checks=not no_checks, device=device, batch_size=batch_size, raw=raw, progress=progress,
        )  # fmt: skip
    plural = "s" * (outcome.n_explained != 1)
    echo(f"{outcome.n_explained} image{plural} explained: {outcome.page}")
    if outcome.random_net_check is not None:
        echo(f"random weights: {outcome.random_net_check.sentence}")
    if outcome.curves is not None:
        echo(f"deletion and insertion: {outcome.curves.sentence}")
    exit_with_refused([reason for _, reason, _ in outcome.rejected_images], out / "refused.csv")
