"""The commands about data: import, split, audit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dermkit.cli.console import DatasetArgument, OutOption, echo, exit_with_refused, parse_malignancy, progress_bar
from dermkit.errors import UsageError

if TYPE_CHECKING:
    from dermkit.audit.output import ReportedFinding
    from dermkit.data.manifest import Dataset


# The names are written here again, because the modules that define them take long to import; a test compares.
LayoutName = Literal["folder", "ham10000", "csv", "isic2018", "isic2019", "isic2020", "isic-archive", "medmnist"]
SchemeName = Literal["given", "given-as-published", "holdout", "kfold"]
UseName = Literal["research", "commercial", "redistribution"]


MalignancyOption = Annotated[
    list[str] | None,
    typer.Option(
        help="CLASS=benign|malignant|indeterminate, in place of the built-in class table. May be repeated."
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        help="csv: TARGET=COLUMN, such as image=file or label=dx (label=MEL,NV,BCC if one-hot). May be repeated."
    ),
]
MergeOption = Annotated[
    list[str] | None, typer.Option(help='"A=B": the images of class A belong to class B. May be repeated.')
]
RenameOption = Annotated[list[str] | None, typer.Option(help='"A=B": class A is called B. May be repeated.')]
DropOption = Annotated[list[str] | None, typer.Option(help="A class to leave out. May be repeated.")]
AsWrittenOption = Annotated[
    bool, typer.Option("--as-written", help="Keep spellings of one class apart (0 and 0.0, Naevus and nevus).")
]
JoinOption = Annotated[
    list[Path] | None,
    typer.Option(help="A table to add lesion ids, age, ... from, by the ISIC id in file names. May be repeated."),
]
MasksOption = Annotated[
    Path | None,
    typer.Option(help="A folder of lesion masks, PNG by image name, for heat maps and counterfactuals."),
]
ReplaceOption = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Undo what was made of the data set in --out (cleanings, acceptances); its manifest is kept aside.",
    ),
]


def import_command(
    layout: Annotated[LayoutName, typer.Argument(help="How the source is laid out (docs/layouts.md).")],
    source: Annotated[Path, typer.Argument(help="The folder with the images, a .zip of it, or a MedMNIST .npz.")],
    out: OutOption,
    name: Annotated[str, typer.Option(help="Name of the data set (default: that of --out).")] = "",
    malignancy: MalignancyOption = None,
    column: ColumnOption = None,
    table: Annotated[Path | None, typer.Option(help="The table to read, if SOURCE holds several.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images, if it is not SOURCE.")] = None,
    label: Annotated[
        str, typer.Option(help="isic2020, isic-archive: the column of the label, such as diagnosis.")
    ] = "",
    merge: MergeOption = None,
    rename: RenameOption = None,
    drop: DropOption = None,
    as_written: AsWrittenOption = False,
    join: JoinOption = None,
    masks: MasksOption = None,
    replace_earlier: ReplaceOption = False,
) -> None:
    from dermkit.data.importers.run import import_dataset
    from dermkit.data.importers.table_rows import ImportOptions

    overrides = parse_malignancy(malignancy or [])
    options = ImportOptions(
        _parse_columns(column or []), table, images, label, _parse_classes("--merge", merge or []),
        _parse_classes("--rename", rename or []), drop or [], as_written,
    )  # fmt: skip
    with progress_bar() as progress:
        outcome = import_dataset(
            layout, source, out=out, name=name, malignancy=overrides,
            options=options, metadata_tables=join or [], masks=masks, replace_earlier=replace_earlier,
            on_progress=lambda count, total: progress.step("images", count, total),
            on_unpack=lambda count, total: progress.step("unpacked", count, total),
        )  # fmt: skip
    echo(f"{len(outcome.dataset.manifest)} images, {len(outcome.dataset.classes)} classes: {out}")
    for note in outcome.dataset.notes.get("warnings", []):
        level = (
            "warning"
            if note["code"] in ("unknown_class", "class_contradiction", "opposite_classes", "unusable_masks")
            else "note"
        )
        echo(f"{level}: {note['text']} ({note['n']})")
    if outcome.retained:
        echo(f"kept as it was: {'; '.join(outcome.retained)} (--replace undoes it)")
    if outcome.masks:
        n_refused = sum(bool(row.reason) for row in outcome.masks)
        echo(f"lesion masks: {len(outcome.masks) - n_refused} used, {n_refused} refused: {out / 'masks.csv'}")
    echo(f"overview: {out / 'overview.html'}")
    exit_with_refused([rejection.reason for rejection in outcome.rejected], out / "refused.csv")


def _parse_columns(column_options: list[str]) -> dict[str, str]:
    """Return target -> column. A target has no `=` in it, a column may."""
    columns: dict[str, str] = {}
    for column_option in column_options:
        field, equals, name = column_option.partition("=")
        if not equals or not name:
            raise UsageError(
                f"--column {column_option}: not of the form TARGET=COLUMN", remedy="e.g. --column label=dx"
            )
        if field in columns:
            raise UsageError(
                f"--column {column_option}: {field} is {columns[field]} already", remedy="name each target once"
            )
        columns[field] = name
    return columns


def _parse_classes(flag: str, class_options: list[str]) -> dict[str, str]:
    """Return class -> class of options of the form A=B; raises `UsageError` for any other form."""
    classes: dict[str, str] = {}
    for class_option in class_options:
        old, equals, new = (text.strip() for text in class_option.partition("="))
        if not equals or not old or not new:
            raise UsageError(f"{flag} {class_option}: not of the form A=B", remedy=f'e.g. {flag} "naevus=nevus"')
        if classes.get(old, new) != new:
            raise UsageError(
                f"{flag} {class_option}: {old} is {classes[old]} already", remedy="name each class once"
            )
        classes[old] = new
    return classes


SchemeOption = Annotated[
    SchemeName,
    typer.Option(
        help="given: the published train, validation and test images, less those that leak; given-as-published: leaks "
        "left in; holdout: a random split; kfold: cross-validation."
    ),
]
SealOption = Annotated[
    bool,
    typer.Option(
        "--seal",
        help="Seal the test split: no run scores it until it is opened, and openings are counted (docs/seal.md).",
    ),
]


def split_command(
    dataset: DatasetArgument,
    scheme: SchemeOption = "holdout",
    name: Annotated[str, typer.Option(help="Name of the split (default: the scheme).")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    validation: Annotated[float, typer.Option(help="Fraction of the images for validation.")] = 0.15,
    test: Annotated[float, typer.Option(help="holdout: fraction of the images for test.")] = 0.15,
    folds: Annotated[
        int | None,
        typer.Option(
            help="kfold: number of folds (5). given: folds of the training images beside the test images."
        ),
    ] = None,
    per_class: Annotated[
        int, typer.Option(help="Use only this many images of each class, drawn at random (0 = all).")
    ] = 0,
    draw_from: Annotated[
        str, typer.Option(help="Use only the images of this published split, such as train.")
    ] = "",
    seal: SealOption = False,
) -> None:
    import dermkit as dk
    from dermkit.recipes.schema import parse_split_spec

    spec = parse_split_spec(
        scheme=scheme, seed=seed, validation=validation, test=test if scheme == "holdout" else 0.0,
        folds=(5 if scheme == "kfold" else 0) if folds is None else folds, per_class=per_class, draw_from=draw_from,
    )  # fmt: skip
    loaded_dataset = dk.load_dataset(dataset)
    new_split = dk.split(loaded_dataset, spec, name=name or scheme, seal=seal)
    for split_name, count in new_split.frame["split"].value_counts(sort=False).items():
        echo(f"{split_name}: {count} images")
    if len(new_split.excluded):
        echo(f"excluded: {len(new_split.excluded)} images, each with its reason")
    for note in new_split.notes:
        echo(f"note: {note}")
    if split_seal := dk.find_split_seal(loaded_dataset, new_split):
        openings_text = f"openings so far: {len(split_seal.openings)}"
        echo(
            f"test split sealed on {split_seal.date[:10]} as {split_seal.name}, {openings_text}: "
            f"{len(split_seal.rows)} images"
        )
    echo(str(dataset / "splits" / f"{new_split.name}.csv"))


def _print_codes(is_asked: bool) -> None:
    if is_asked:
        import dermkit as dk

        echo(dk.audit_codes())
        raise typer.Exit


SplitToCheckOption = Annotated[
    str | None,
    typer.Option("--split", help="The split to check for leaks, by name or file (default: the published one)."),
]
AgainstOption = Annotated[
    Path | None,
    typer.Option(
        "--against", help="Another data set, for an external test: report which of its images are in this one."
    ),
]
CleanOption = Annotated[
    bool,
    typer.Option("--clean", help="Write a manifest without the defective rows; each is listed with its reason."),
]
AcceptOption = Annotated[
    list[str] | None,
    typer.Option(help="Accept a finding, by its code; every report mentions it. May be repeated."),
]
UseOption = Annotated[UseName, typer.Option(help="The planned use, by which licences are judged.")]
CodesOption = Annotated[
    bool,
    typer.Option(
        "--codes", callback=_print_codes, is_eager=True, help="List all checks with their codes, and exit."
    ),
]


def audit_command(
    dataset: DatasetArgument,
    split: SplitToCheckOption = None,
    other_path: AgainstOption = None,
    clean: CleanOption = False,
    accept: AcceptOption = None,
    use: UseOption = "research",
    workers: Annotated[int, typer.Option(min=0, help="Threads that read images (0 = all cores).")] = 0,
    _codes_flag: CodesOption = False,
) -> None:
    import dermkit as dk

    loaded_dataset = dk.load_dataset(dataset)
    if other_path is not None:
        if clean or split is not None:
            raise UsageError(
                "--against goes without --clean and --split: it only compares two data sets",
                remedy=f"run `dermkit audit {dataset}` for itself",
            )
        _check_external(loaded_dataset, other_path, accept=accept or [], workers=workers)
        return
    with progress_bar() as progress:
        outcome = dk.audit_dataset(
            loaded_dataset,
            split=split,
            clean=clean,
            accept=accept or [],
            use=use,
            workers=workers,
            progress=progress,
        )
    _print_findings(outcome.findings)
    echo(outcome.audit.verdict)
    echo(str(outcome.page))
    outcome.raise_for_errors()


def _check_external(reference: "Dataset", other_path: Path, *, accept: list[str], workers: int) -> None:
    import dermkit as dk

    other_dataset = dk.load_dataset(other_path)
    with progress_bar() as progress:
        outcome = dk.check_external(reference, other_dataset, accept=accept, workers=workers, progress=progress)
    _print_findings(outcome.findings)
    echo(outcome.verdict)
    echo(str(outcome.page))
    outcome.raise_for_errors()


def _print_findings(findings: "Sequence[ReportedFinding]") -> None:
    for reported in findings:
        acceptance_note = " (accepted, not repaired)" if reported.acceptance else ""
        echo(
            f"{reported.card.code}  {reported.finding.severity:7}  {reported.finding.n:>7}  "
            f"{reported.card.title}{acceptance_note}"
        )
