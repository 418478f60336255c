"""A prediction log against the reference of its model, as a command."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import OutOption, echo
from dermkit.cli.prediction_log import LogArgument

EXIT_ALARM = 8


def monitor_command(
    log: LogArgument,
    model: Annotated[
        Path, typer.Option("--model", help="The model folder that answered, or the run that holds it.")
    ],
    out: OutOption,
    since: Annotated[str | None, typer.Option("--since", help="From this time on, such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Before this time.")] = None,
    reference_until: Annotated[
        str | None,
        typer.Option("--reference-until", help="Rows before this time are the reference, and are not watched."),
    ] = None,
    period: Annotated[str, typer.Option("--period", help="Periods of the charts: month or week.")] = "month",
    alpha: Annotated[
        float, typer.Option("--alpha", help="Chance of any false alarm, ever, all checks together.")
    ] = 0.05,
    prometheus: Annotated[
        Path | None, typer.Option("--prometheus", help="File for the same figures as Prometheus text.")
    ] = None,
    fail_on_alarm: Annotated[
        bool,
        typer.Option(
            "--fail-on-alarm",
            help="Exit code 8 where there is an alarm, the log does not verify, or no check is applicable; for cron.",
        ),
    ] = False,
) -> None:
    from dermkit.prediction_log.packages import check_log_packages

    check_log_packages()
    from dermkit.monitoring.run import MonitorOptions, monitor
    from dermkit.prediction_log.rows import parse_time

    first, last, reference_end = (
        None if text is None else parse_time(text) for text in (since, until, reference_until)
    )
    options = MonitorOptions(since=first, until=last, reference_until=reference_end, period=period, alpha=alpha)
    monitoring = monitor(log, model, out, options, prometheus=prometheus)
    if not monitoring.verifies:
        echo("the log does not verify: see the page, and `dermkit verify-log`", err=True)
    echo(f"{len(monitoring.alarms)} alarm{'s' * (len(monitoring.alarms) != 1)} in {monitoring.n_rows:,} rows")
    echo(f"{monitoring.n_applicable} of {monitoring.n_checks} checks applicable")
    for sentence in monitoring.alarms:
        echo(f"- {sentence}")
    echo(str(monitoring.page))
    echo("Research use only. Not a medical device.")
    if fail_on_alarm and (monitoring.alarms or not monitoring.verifies or not monitoring.n_applicable):
        raise typer.Exit(EXIT_ALARM)
