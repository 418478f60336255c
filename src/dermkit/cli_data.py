"""The verbs that are about data, as commands: import, split."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dermkit.errors import UsageError
from dermkit.terminal import Out, end_refused, watching


class Layout(StrEnum):
    """How the source is laid out."""

    FOLDER = "folder"
    HAM10000 = "ham10000"


class SchemeName(StrEnum):
    """How to divide."""

    GIVEN = "given"
    GIVEN_AS_PUBLISHED = "given-as-published"
    HOLDOUT = "holdout"
    KFOLD = "kfold"


def import_(
    layout: Layout,
    source: Annotated[Path, typer.Argument(help="The folder with the images.")],
    out: Out,
    name: Annotated[
        str, typer.Option(help="A name for the data set (default: the known set's, else that of --out).")
    ] = "",
    malignancy: Annotated[
        list[str] | None, typer.Option(help="CLASS=benign|malignant|indeterminate, to overrule the class table.")
    ] = None,
) -> None:
    """Read a folder of images into a checked manifest with an overview page."""
    from dermkit.data.importing import import_dataset

    overrides = dict(_pair(item) for item in malignancy or [])
    with watching() as watch:
        outcome = import_dataset(
            layout.value, source, out=out, name=name, malignancy=overrides,
            on_progress=lambda done, total: watch.step("images", done, total),
        )  # fmt: skip
    typer.echo(f"{len(outcome.dataset.manifest)} images, {len(outcome.dataset.classes)} classes: {out}")
    typer.echo(f"overview: {out / 'overview.html'}")
    end_refused(len(outcome.refused), out / "refused.csv")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals:
        raise UsageError(
            f"--malignancy {text}: not of the form CLASS=VALUE", remedy="e.g. --malignancy nevus=benign"
        )
    return name, value


def split(
    dataset: Path,
    scheme: SchemeName = SchemeName.HOLDOUT,
    name: Annotated[str, typer.Option(help="Name of the split (default: the scheme).")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    validation: Annotated[float, typer.Option(help="Share for validation.")] = 0.15,
    test: Annotated[float, typer.Option(help="Share for test (holdout).")] = 0.15,
    folds: Annotated[int, typer.Option(help="Number of folds (kfold).")] = 5,
    per_class: Annotated[int, typer.Option(help="Draw this many images from each class (0 = all).")] = 0,
    draw_from: Annotated[str, typer.Option(help="Use only rows of this given split.")] = "",
) -> None:
    """Divide a data set: grouped by lesion and patient, stratified, seeded; refuses overlap."""
    from dermkit import workflow
    from dermkit.recipe import split_spec

    spec = split_spec(
        scheme=scheme.value, seed=seed, validation=validation, test=test if scheme == SchemeName.HOLDOUT else 0.0,
        folds=folds if scheme == SchemeName.KFOLD else 0, per_class=per_class, draw_from=draw_from,
    )  # fmt: skip
    made = workflow.split(workflow.load_dataset(dataset), spec, name=name or scheme.value)
    for side, count in made.frame["split"].value_counts(sort=False).items():
        typer.echo(f"{side}: {count} images")
    if len(made.excluded):
        typer.echo(f"excluded: {len(made.excluded)} images, each with its reason")
    for note in made.notes:
        typer.echo(f"note: {note}")
    typer.echo(str(dataset / "splits" / f"{made.name}.csv"))
