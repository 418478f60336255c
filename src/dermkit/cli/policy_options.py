"""The options that select what of a model's decision policy is applied."""

from typing import Annotated

import typer

TargetOption = Annotated[
    str | None,
    typer.Option(
        help="The operating point above which an image is called positive, such as sensitivity=.95 (default: the "
        "model's first guaranteed one)."
    ),
]
CoverageOption = Annotated[
    float | None,
    typer.Option(
        help="Decide only the most confident images, and refer the others to a person: 0.8 takes the confidence "
        "threshold that kept 80 % of the validation images."
    ),
]
