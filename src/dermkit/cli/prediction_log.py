"""The prediction log of a server, as commands: verify its chain, add outcomes, export it, delete what is old."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import echo
from dermkit.cli.examples import examples_text
from dermkit.errors import EXIT_SOME_REJECTED, DataError

log_app = typer.Typer(
    no_args_is_help=True, help="Outcomes, export and retention of the log that `dermkit serve` keeps."
)

LogArgument = Annotated[
    str,
    typer.Argument(
        metavar="LOG", envvar="DERMKIT_LOG",
        help="The log: an SQLite file, or postgresql://USER@HOST/DATABASE.",
    ),
]  # fmt: skip
_SHOWN = 20


def verify_log_command(
    log: LogArgument,
    heads: Annotated[
        Path | None,
        typer.Option(
            "--heads",
            help="A file, best on another machine, of the heads that earlier checks saw: they must still be there. "
            "Today's are added.",
        ),
    ] = None,
) -> None:
    from dermkit.prediction_log.packages import check_log_packages

    check_log_packages()
    from dermkit.prediction_log.verify import verify_log

    verified = verify_log(log, heads=heads)
    deleted_text = f"; {verified.n_deleted} were deleted by retention" if verified.n_deleted else ""
    echo(f"the chains hold: {verified.n_rows} rows{deleted_text}")
    if heads is not None:
        echo(f"heads noted before: {verified.n_heads} in the log, {verified.n_heads_deleted} in what was deleted")
    for head in verified.heads:
        echo(f"head  {head}")


@log_app.command(
    "outcomes",
    help="Add diagnoses and reviewers' decisions from a CSV file. A line given again is added once; a correction "
    "is a new row. Exit code 7 if some lines were not taken.",
    epilog=examples_text("log outcomes"),
)
def outcomes_command(
    log: LogArgument,
    table: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv",
            help="Columns: prediction_id or pixel_sha256, diagnosis, source, time; kind (outcome or override) may be "
            "left out.",
        ),
    ],
) -> None:
    from dermkit.prediction_log.packages import check_log_packages

    check_log_packages()
    from dermkit.prediction_log.outcomes import import_outcomes

    added = import_outcomes(log, table)
    echo(f"outcomes: {added.n_new} new, {added.n_known} known before, {len(added.rejected)} not taken")
    for rejected in added.rejected[:_SHOWN]:
        echo(f"{rejected.name}: {rejected.reason}", err=True)
    if len(added.rejected) > _SHOWN:
        echo(f"... and {len(added.rejected) - _SHOWN} more", err=True)
    if added.rejected and not added.n_new + added.n_known:
        raise DataError(
            f"{table}: no outcome was taken",
            outcome="the log as it was",
            remedy="check that the ids are of this log; give the file again, lines that are in the log are skipped",
        )
    if added.rejected:
        raise typer.Exit(EXIT_SOME_REJECTED)


@log_app.command(
    "export",
    help="Write the log as a CSV file with today's outcomes; no cell is a formula to a spreadsheet.",
    epilog=examples_text("log export"),
)
def export_log_command(
    log: LogArgument,
    out: Annotated[Path, typer.Option("--out", help="The CSV file to write.")],
    since: Annotated[str | None, typer.Option("--since", help="From this time on, such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Before this time.")] = None,
) -> None:
    from dermkit.prediction_log.packages import check_log_packages

    check_log_packages()
    from dermkit.prediction_log.export import export_log
    from dermkit.prediction_log.rows import parse_time

    n_rows = export_log(
        log,
        out,
        parse_time(since) if since is not None else None,
        parse_time(until) if until is not None else None,
    )
    echo(f"{n_rows} rows")
    echo(str(out))
    echo("Research use only. Not a medical device.")


@log_app.command(
    "delete",
    help="Delete rows older than some days, whole stretches from the begin; a record stays, and the chain still "
    "verifies. The log is verified first.",
    epilog=examples_text("log delete"),
)
def delete_command(
    log: LogArgument,
    keep_days: Annotated[float, typer.Option("--keep-days", help="Rows that are younger than so many days stay.")],
    reason: Annotated[str, typer.Option("--reason", help="Who deletes, and why; it is recorded.")],
    under_six_months: Annotated[
        bool, typer.Option("--under-six-months", help="Also delete what is younger than six months (184 days).")
    ] = False,
) -> None:
    from dermkit.prediction_log.packages import check_log_packages

    check_log_packages()
    from dermkit.prediction_log.retention import delete_old

    stretches = delete_old(log, keep_days, reason=reason, under_six_months=under_six_months)
    for stretch in stretches:
        echo(f"{stretch.chain}: {stretch.n_rows} rows deleted, the last was row {stretch.sequence}")
    if not stretches:
        echo("nothing is that old")
