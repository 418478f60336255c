"""monitor.json, its tables, the page, and the same figures for Prometheus."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dermkit.files import write_bytes, write_rows
from dermkit.monitoring.checks import Check
from dermkit.monitoring.drift import CheckState
from dermkit.monitoring.page import write_monitor_page
from dermkit.monitoring.records import ALARM_IMAGES_TABLE, MONITOR, PERFORMANCE_TABLE, PERIODS_TABLE
from dermkit.monitoring.watch import Watch
from dermkit.render.cells import defused

_Json = Mapping[str, Any]
_LARGEST_LOG = 600.0
"""Beyond it, a capital is written as e to this power."""


def check_as_dict(check: Check, state: CheckState, reason: str) -> dict[str, Any]:
    """Return a check as monitor.json holds it. reason: why it is not applicable, "" where it is."""
    return {
        "name": check.name, "title": check.title, "action": check.action, "reason": reason,
        "is_alarm": state.crossing is not None,
        "evidence": capital_of(state.log_capital), "evidence_limit": capital_of(state.limit),
        "evidence_by_period": {name: capital_of(value) for name, value in sorted(state.evidence_by_period.items())},
        "statistics": [_statistic_as_dict(watch) for watch in state.watches],
    }  # fmt: skip


def capital_of(log_capital: float) -> float:
    """Return a capital from its log, a finite number."""
    return math.exp(min(log_capital, _LARGEST_LOG))


def _statistic_as_dict(watch: Watch) -> dict[str, Any]:
    statistic = watch.statistic
    return {
        "title": statistic.title, "column": statistic.column, "value": statistic.value, "unit": statistic.unit,
        "group": None if statistic.group is None else list(statistic.group), "is_event": statistic.is_event,
        "source": watch.source, "reason": watch.reason, "evidence": capital_of(watch.latest),
        "reference": watch.reference_estimate.as_dict(),
        "reference_sd": watch.reference.sd,
        "periods": {
            name: sums.estimate(is_event=statistic.is_event).as_dict() for name, sums in sorted(watch.periods.items())
        },
    }  # fmt: skip


def write_outputs(out: Path, content: dict[str, Any], *, prometheus: Path | None) -> Path:
    """Write all files of a monitoring; returns the path of the page."""
    write_rows(out / PERIODS_TABLE, _PERIOD_COLUMNS, map(defused, _period_rows(content)))
    write_rows(out / ALARM_IMAGES_TABLE, _IMAGE_COLUMNS, map(defused, _image_rows(content)))
    write_rows(out / PERFORMANCE_TABLE, _PERFORMANCE_COLUMNS, map(defused, _performance_rows(content)))
    MONITOR.write(out, content)
    if prometheus is not None:
        write_bytes(prometheus, prometheus_text(content))
    return write_monitor_page(out, content)


_PERIOD_COLUMNS = ("check", "statistic", "period", "n", "value", "low", "high", "reference", "n_reference")
_IMAGE_COLUMNS = ("check", "statistic", "row_id", "pixel_sha256", "time", "value", "site", "device")
_PERFORMANCE_COLUMNS = (
    "period", "n_outcomes", "n_malignant",
    *(f"{figure}_{name}" for figure in ("sensitivity", "specificity", "observed_over_expected")
      for name in ("value", "low", "high", "n")),
    "expected_malignant",
)  # fmt: skip


def _bounds(estimate: _Json) -> tuple[object, object]:
    low, high = estimate["ci95"] or ("", "")
    return low, high


def _period_rows(content: _Json) -> Iterator[tuple[object, ...]]:
    for check in content["checks"]:
        for one in check["statistics"]:
            reference = one["reference"]
            for period, estimate in one["periods"].items():
                yield (
                    check["name"], one["title"], period, estimate["n"], estimate["value"], *_bounds(estimate),
                    "" if reference["value"] is None else reference["value"], reference["n"],
                )  # fmt: skip


def _image_rows(content: _Json) -> Iterator[tuple[object, ...]]:
    for alarm in content["alarms"]:
        for image in alarm["images"]:
            yield (alarm["check"], alarm["statistic"], *(image[name] for name in _IMAGE_COLUMNS[2:]))


def _performance_rows(content: _Json) -> Iterator[tuple[object, ...]]:
    for row in content["performance"]:
        cells: list[object] = [row["period"], row["n_outcomes"], row["n_malignant"]]
        for figure in ("sensitivity", "specificity", "observed_over_expected"):
            estimate = row[figure]
            cells += ["" if estimate["value"] is None else estimate["value"], *_bounds(estimate), estimate["n"]]
        yield (*cells, row["expected_malignant"])


def prometheus_text(content: _Json) -> bytes:
    """Return the state of a monitoring in Prometheus' text format, for its textfile collector."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry(auto_describe=False)

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=registry)

    gauge("dermkit_monitor_rows", "Rows of the model in the log.").set(content["n_rows"])
    gauge("dermkit_monitor_log_verifies", "1 where the chain of the log holds.").set(
        float(not content["chain_problem"])
    )
    gauge("dermkit_monitor_alarms", "Checks that have raised an alarm.").set(len(content["alarms"]))
    alarm = gauge("dermkit_monitor_alarm", "1 where the check has raised an alarm.", "check")
    applicable = gauge("dermkit_monitor_applicable", "1 where the check has a reference and enough rows.", "check")
    evidence = gauge(
        "dermkit_monitor_evidence", "Capital of the check now; an alarm is raised at evidence_limit.", "check"
    )
    for check in content["checks"]:
        alarm.labels(check["name"]).set(float(check["is_alarm"]))
        applicable.labels(check["name"]).set(float(not check["reason"]))
        evidence.labels(check["name"]).set(check["evidence"])
        gauge_limit = check["evidence_limit"]
    gauge("dermkit_monitor_evidence_limit", "Capital at which a check raises an alarm.").set(gauge_limit)
    _add_performance(content, registry)
    return generate_latest(registry)


def _add_performance(content: _Json, registry: Any) -> None:
    """Add the figures over all outcomes, as far as they are defined."""
    from prometheus_client import Gauge

    figures = Gauge(
        "dermkit_monitor_performance", "Figures where outcomes came back.", ("figure", "bound"), registry=registry
    )
    for row in content["performance"][-1:]:
        for name in ("sensitivity", "specificity", "observed_over_expected"):
            if row[name]["value"] is not None:
                figures.labels(name, "value").set(row[name]["value"])
                low, high = _bounds(row[name])
                figures.labels(name, "low").set(float(str(low)))
                figures.labels(name, "high").set(float(str(high)))
