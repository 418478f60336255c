"""The verbs that are about data, as commands: import, split, audit."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import Out, end_refused, watching
from dermkit.errors import UsageError

if TYPE_CHECKING:
    from dermkit.audit.output import Reported
    from dermkit.data.manifest import Dataset


class Layout(StrEnum):
    """How the source is laid out."""

    FOLDER = "folder"
    HAM10000 = "ham10000"
    CSV = "csv"
    ISIC2018 = "isic2018"
    ISIC2019 = "isic2019"
    ISIC2020 = "isic2020"
    ISIC_ARCHIVE = "isic-archive"
    MEDMNIST = "medmnist"


class SchemeName(StrEnum):
    """How to divide."""

    GIVEN = "given"
    GIVEN_AS_PUBLISHED = "given-as-published"
    HOLDOUT = "holdout"
    KFOLD = "kfold"


def import_(
    layout: Layout,
    source: Annotated[Path, typer.Argument(help="The folder with the images, a .zip of it, or a MedMNIST .npz.")],
    out: Out,
    name: Annotated[
        str, typer.Option(help="A name for the data set (default: the known set's, else that of --out).")
    ] = "",
    malignancy: Annotated[
        list[str] | None, typer.Option(help="CLASS=benign|malignant|indeterminate, to overrule the class table.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="csv: TARGET=COLUMN, such as image=file, label=dx (or label=MEL,NV,BCC for one-hot), age=..."
        ),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="The table, where SOURCE holds several.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images, if not SOURCE.")] = None,
    label: Annotated[
        str, typer.Option(help="The column of the label (isic2020, isic-archive), such as diagnosis.")
    ] = "",
    join: Annotated[
        list[Path] | None,
        typer.Option(help="A table that gives lesion ids, age, ... back, by ISIC id in file names."),
    ] = None,
) -> None:
    """Read a set of images, in any layout, into a checked manifest with an overview page."""
    from dermkit.data.importers.run import import_dataset
    from dermkit.data.importers.table_rows import Options

    overrides = dict(_pair(item, "--malignancy", "nevus=benign") for item in malignancy or [])
    columns = _columns(column or [])
    with watching() as watch:
        outcome = import_dataset(
            layout.value, source, out=out, name=name, malignancy=overrides,
            options=Options(columns, table, images, label), joined=join or [],
            on_progress=lambda done, total: watch.step("images", done, total),
            on_unpack=lambda done, total: watch.step("unpacked", done, total),
        )  # fmt: skip
    typer.echo(f"{len(outcome.dataset.manifest)} images, {len(outcome.dataset.classes)} classes: {out}")
    for note in outcome.dataset.notes.get("warnings", []):
        typer.echo(f"note: {note['text']} ({note['n']})")
    typer.echo(f"overview: {out / 'overview.html'}")
    end_refused(len(outcome.refused), out / "refused.csv")


def _columns(given: list[str]) -> dict[str, str]:
    """Return target -> column. A target has no `=` in it, a column may."""
    columns: dict[str, str] = {}
    for item in given:
        target, equals, name = item.partition("=")
        if not equals or not name:
            raise UsageError(f"--column {item}: not of the form TARGET=COLUMN", remedy="e.g. --column label=dx")
        if target in columns:
            raise UsageError(
                f"--column {item}: {target} is {columns[target]} already", remedy="name each target once"
            )
        columns[target] = name
    return columns


def _pair(text: str, flag: str, example: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals:
        raise UsageError(f"{flag} {text}: not of the form CLASS=VALUE", remedy=f"e.g. {flag} {example}")
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
    seal: Annotated[
        bool,
        typer.Option("--seal", help="Seal the test side: no run scores it until it is opened, which is counted."),
    ] = False,
) -> None:
    """Divide a data set: grouped by lesion and patient, stratified, seeded; refuses overlap."""
    import dermkit as dk
    from dermkit.recipes.schema import split_spec

    spec = split_spec(
        scheme=scheme.value, seed=seed, validation=validation, test=test if scheme == SchemeName.HOLDOUT else 0.0,
        folds=folds if scheme == SchemeName.KFOLD else 0, per_class=per_class, draw_from=draw_from,
    )  # fmt: skip
    data = dk.load_dataset(dataset)
    made = dk.split(data, spec, name=name or scheme.value, seal=seal)
    for side, count in made.frame["split"].value_counts(sort=False).items():
        typer.echo(f"{side}: {count} images")
    if len(made.excluded):
        typer.echo(f"excluded: {len(made.excluded)} images, each with its reason")
    for note in made.notes:
        typer.echo(f"note: {note}")
    if sealed := dk.find_split_seal(data, made):
        opened = f"openings so far: {len(sealed.openings)}"
        typer.echo(f"test side sealed on {sealed.date[:10]} as {sealed.name}, {opened}: {len(sealed.rows)} images")
    typer.echo(str(dataset / "splits" / f"{made.name}.csv"))


class UseName(StrEnum):
    """What the data is to be used for."""

    RESEARCH = "research"
    COMMERCIAL = "commercial"
    REDISTRIBUTION = "redistribution"


def _codes(wanted: bool) -> None:
    if wanted:
        import dermkit as dk

        typer.echo(dk.audit_codes())
        raise typer.Exit


def audit(
    dataset: Path,
    split: Annotated[
        str | None, typer.Option("--split", help="A split by name or file (default: the published one).")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Another data set: is it free of this one's images?")
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Write a clean manifest, each dropped row with its reason.")
    ] = False,
    accept: Annotated[
        list[str] | None, typer.Option(help="Accept a finding by its code; recorded, and told in every report.")
    ] = None,
    use: Annotated[UseName, typer.Option(help="What you plan; licences are judged by it.")] = UseName.RESEARCH,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read images (0 = all cores).")] = 0,
    _listed: Annotated[
        bool, typer.Option("--codes", callback=_codes, is_eager=True, help="List all checks and end.")
    ] = False,
) -> None:
    """Look for every known defect: leaks, copies, contradictions, shortcuts; ends with 3 where there is an error."""
    import dermkit as dk

    data = dk.load_dataset(dataset)
    if against is not None:
        if clean or split is not None:
            raise UsageError(
                "--against goes without --clean and --split: it only compares two data sets",
                remedy=f"run `dermkit audit {dataset}` for itself",
            )
        _audit_against(data, against, accept=accept or [], workers=workers)
        return
    with watching() as watch:
        outcome = dk.audit_dataset(
            data, split=split, clean=clean, accept=accept or [], use=use.value, workers=workers, watch=watch
        )
    _say_findings(outcome.findings)
    typer.echo(outcome.audit.verdict)
    typer.echo(str(outcome.page))
    outcome.refuse_errors()


def _audit_against(first: "Dataset", other: Path, *, accept: list[str], workers: int) -> None:
    import dermkit as dk

    second = dk.load_dataset(other)
    with watching() as watch:
        outcome = dk.check_external(first, second, accept=accept, workers=workers, watch=watch)
    _say_findings(outcome.findings)
    typer.echo(outcome.verdict)
    typer.echo(str(outcome.page))
    outcome.refuse_errors()


def _say_findings(findings: "Sequence[Reported]") -> None:
    for item in findings:
        mark = " (accepted, not repaired)" if item.accepted else ""
        typer.echo(f"{item.card.code}  {item.finding.severity:7}  {item.finding.n:>7}  {item.card.title}{mark}")
