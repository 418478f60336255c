"""`dermkit monitor`: a prediction log against the reference of its model, in bounded memory."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from dermkit import __version__
from dermkit.errors import DataError, UsageError
from dermkit.files import check_output, lock
from dermkit.monitoring.alerts import Alarm, collect_alarms
from dermkit.monitoring.checks import MONITOR_CHECKS, PERFORMANCE_CHECKS, RATE_CHECKS
from dermkit.monitoring.drift import CheckState, count_texts, follow, start_checks
from dermkit.monitoring.model_reference import read_monitored_model
from dermkit.monitoring.output import check_as_dict, write_outputs
from dermkit.monitoring.performance import SELECTION_WARNING, performance_rows
from dermkit.monitoring.periods import MONTH, PERIODS, day_of, minute_of
from dermkit.monitoring.records import MONITOR
from dermkit.monitoring.reference import MonitoredModel
from dermkit.monitoring.units import UnitReader
from dermkit.monitoring.values import TEXT_FIELDS
from dermkit.monitoring.watch import MIN_MONITORED_UNITS
from dermkit.prediction_log.database import parse_address
from dermkit.prediction_log.read import count_models
from dermkit.prediction_log.rows import PREDICT
from dermkit.prediction_log.verify import ChainBroken, verify_log

DEFAULT_ALPHA = 0.05
"""Chance of any false alarm, ever, of one log that is watched."""

UNIT_TEXT = (
    "One image of each request, and each image once. The log knows neither patients nor lesions: where several "
    "requests are of one person, intervals are too narrow and the false-alarm rate is not kept."
)


@dataclass(frozen=True)
class MonitorOptions:
    """What to watch. since, until, reference_until: times of scoring; rows before the last one are the reference.

    period: `month` or `week`. alpha: chance of any false alarm, ever, all checks together.
    """

    since: datetime | None = None
    until: datetime | None = None
    reference_until: datetime | None = None
    period: str = MONTH
    alpha: float = DEFAULT_ALPHA

    def check(self) -> None:
        """Raise `UsageError` for values that cannot be used."""
        if self.period not in PERIODS:
            raise _wrong(f"--period {self.period}", f"one of {', '.join(PERIODS)}")
        if not 0 < self.alpha < 1:
            raise _wrong(f"--alpha {self.alpha:g}", "a chance between 0 and 1, such as 0.05")
        edges = [time for time in (self.since, self.reference_until, self.until) if time is not None]
        if edges != sorted(edges) or len(set(edges)) < len(edges):
            raise _wrong(
                "--since, --reference-until, --until", "give them in this order, each later than the one before"
            )


@dataclass(frozen=True, eq=False)
class Monitoring:
    """What was written. page: its path. alarms: a sentence of each. verifies: whether the log's chain holds.
    n_rows: rows of the model that were read. n_checks, n_applicable: checks, and those that had a reference and rows.
    """

    page: Path
    alarms: tuple[str, ...]
    verifies: bool
    n_rows: int
    n_checks: int
    n_applicable: int


def monitor(
    log: str, model: Path, out: Path, options: MonitorOptions, *, prometheus: Path | None = None
) -> Monitoring:
    """Watch a prediction log and write monitor.json, tables and monitor.html into `out`; alarms are no error.

    model: the model folder that answered, or its run. prometheus: file for the same figures as Prometheus text. Raises
    `DataError` for no log or one of other models alone, `UntrustedError` for the model folder, `LogUnavailable` and
    `UsageError` as the log does, `UsageError` for a folder of other files too, `OutputError` where it is in use.
    """
    options.check()
    options = replace(
        options, until=options.until or datetime.now(UTC)
    )  # the log is read several times, and grows
    facts = read_monitored_model(model)
    chain_problem = _chain_problem(log)
    model_counts = count_models(log, options.since, options.until, route=PREDICT)
    if model_counts and facts.key not in model_counts:
        raise _other_model(log, model, facts, model_counts)
    check_output(out, marker=MONITOR.name, description="a monitoring")
    with lock(out):
        content, alarms = _watch(log, facts, options)
        content |= {
            "log": parse_address(log).name, "chain_problem": chain_problem,
            "n_rows_of_other_models": sum(model_counts.values()) - model_counts.get(facts.key, 0),
        }  # fmt: skip
        page = write_outputs(out, content, prometheus=prometheus)
    sentences = tuple(alarm.as_dict()["sentence"] for alarm in alarms)
    n_applicable = sum(not check["reason"] for check in content["checks"])
    return Monitoring(page, sentences, not chain_problem, content["n_rows"], len(content["checks"]), n_applicable)


def _chain_problem(log: str) -> str:
    """Return what is wrong with the chain of a log, "" where it holds."""
    try:
        verify_log(log)
    except ChainBroken as error:
        return error.message
    return ""


def _watch(log: str, facts: MonitoredModel, options: MonitorOptions) -> tuple[dict[str, Any], list[Alarm]]:
    text_counts, point = _read_reference(log, facts, options)
    limit = math.log(len(MONITOR_CHECKS) / options.alpha)
    date = "" if options.reference_until is None else day_of(options.reference_until.timestamp())
    checks = start_checks(facts, point, text_counts, limit=limit, date=date)
    reader = UnitReader(log, facts, options.since, options.until, point)
    outcomes = follow(reader, checks, reference_until=options.reference_until, period=options.period)
    crossings = [check.crossing for check in checks.values() if check.crossing is not None]
    again = UnitReader(log, facts, options.since, options.until, point)
    first_time = -math.inf if options.reference_until is None else options.reference_until.timestamp()
    alarms = collect_alarms(crossings, again, first_time=first_time)
    content = _facts(facts, options, reader) | {
        "checks": [
            check_as_dict(check, checks[check.name], _reason(checks[check.name], options, facts.rates_reason))
            for check in MONITOR_CHECKS
        ],
        "alarms": [alarm.as_dict() for alarm in sorted(alarms, key=lambda one: one.crossing.time)],
        "performance": performance_rows(outcomes, options.period) if len(outcomes) else [],
    }  # fmt: skip
    return content, alarms


def _read_reference(
    log: str, facts: MonitoredModel, options: MonitorOptions
) -> tuple[dict[str, Counter[str]], str]:
    """Return the values of text fields in the reference, and the operating point of the log's first decision."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in TEXT_FIELDS}
    if options.reference_until is not None:
        reader = UnitReader(log, facts, options.since, options.reference_until)
        counts = count_texts(reader)
        if reader.operating_point:
            return counts, reader.operating_point
    reader = UnitReader(log, facts, options.since, options.until)
    for _ in islice(reader.chunks(), 1):
        pass
    return counts, reader.operating_point


def _facts(facts: MonitoredModel, options: MonitorOptions, reader: UnitReader) -> dict[str, Any]:
    def text(time: datetime | None) -> str:
        return "" if time is None else minute_of(time.timestamp())

    return {
        "dermkit": __version__, "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "n_unused_outcomes": reader.n_unused_outcomes, "rates_reason": facts.rates_reason,
        "model": {"name": facts.name, "model_key": facts.key},
        "since": text(options.since), "until": text(options.until), "reference_until": text(options.reference_until),
        "period": options.period, "alpha": options.alpha, "alpha_per_check": options.alpha / len(MONITOR_CHECKS),
        "operating_point": reader.operating_point, "unit": UNIT_TEXT, "n_rows": reader.n_rows,
        "n_units": reader.n_units, "n_repeated": reader.n_repeated, "n_other_points": reader.n_other_points,
        "n_unknown_outcomes": reader.n_unknown_outcomes, "selection_warning": SELECTION_WARNING,
        "first_row": minute_of(reader.first_time) if reader.n_rows else "",
        "last_row": minute_of(reader.last_time) if reader.n_rows else "",
    }  # fmt: skip


def _reason(check: CheckState, options: MonitorOptions, rates_reason: str) -> str:
    """Return why a check is not applicable, "" where it is. rates_reason: why the model gives no test rates."""
    if not check.watches:
        return _no_reference(check.name, options, "no rows that say so")
    if not check.active_watches:
        sources = {watch.source: watch.reason for watch in check.watches if watch.source}
        if not sources:
            reason = _no_reference(check.name, options, "")
            return f"{rates_reason}; {reason}" if rates_reason and check.name in RATE_CHECKS else reason
        return "; ".join(f"{source}: {reason}" for source, reason in sources.items())
    n = max(watch.monitored.n for watch in check.active_watches)
    if n < MIN_MONITORED_UNITS and check.crossing is None:
        what = "outcomes" if check.name in PERFORMANCE_CHECKS else "units"
        return f"{n} {what} to compare with the reference, {MIN_MONITORED_UNITS} needed"
    return ""


def _no_reference(name: str, options: MonitorOptions, absent: str) -> str:
    if options.reference_until is None:
        return "the model folder holds no reference for it; --reference-until makes the first rows of the log one"
    return f"the rows before --reference-until have {absent or 'no values'}" + (
        ", or one group alone of enough units" if name == "within_groups" else ""
    )


def _wrong(what: str, remedy: str) -> UsageError:
    return UsageError(f"{what}: cannot be used", outcome="nothing was written", remedy=remedy)


def _other_model(log: str, model: Path, facts: MonitoredModel, counts: dict[str, int]) -> DataError:
    keys = ", ".join(f"{key[:12]} ({n:,} rows)" for key, n in list(counts.items())[:5])
    return DataError(
        f"{parse_address(log).name}: holds no answer of the model {model} ({facts.key[:12]}), but of {keys}",
        outcome="nothing was written",
        remedy="name the model folder that served these rows",
    )
