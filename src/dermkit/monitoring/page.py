"""monitor.html: is there an alarm, since when, what to do; then every check over time. One file that loads nothing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dermkit.files import write_text
from dermkit.metrics.stats.estimate import Estimate
from dermkit.monitoring.chart import evidence_svg, series_svg
from dermkit.monitoring.records import ALARM_IMAGES_TABLE, MONITOR_PAGE, PERFORMANCE_TABLE, PERIODS_TABLE
from dermkit.monitoring.values import mean_or_share_text
from dermkit.render.html import template_environment

_Json = Mapping[str, Any]
MAX_CHARTS = 12
"""Charts of a check on the page; the tables have every statistic."""
MAX_ROWS_SHOWN = 10
MAX_PERFORMANCE_ROWS = 36


def write_monitor_page(out: Path, content: _Json) -> Path:
    """Write monitor.html from what monitor.json holds; returns its path."""
    html = template_environment().get_template("monitor.html.j2").render(
        title=f"Monitoring of {content['model']['name']}", content=content, word=status_word(content),
        checks=[_check_view(check) for check in content["checks"]],
        alarms=[_alarm_view(alarm) for alarm in content["alarms"]],
        performance=list(_performance_view(content)), n_months=len(content["performance"]) - 1,
        periods_table=PERIODS_TABLE, images_table=ALARM_IMAGES_TABLE, performance_table=PERFORMANCE_TABLE,
        n_applicable=sum(not check["reason"] for check in content["checks"]),
    )  # fmt: skip
    write_text(out / MONITOR_PAGE, html)
    return out / MONITOR_PAGE


def status_word(content: _Json) -> str:
    """Return what to read first: how many alarms there are, or that nothing could be compared."""
    n = len(content["alarms"])
    if n:
        return f"{n} alarm{'s' * (n != 1)}"
    if all(check["reason"] for check in content["checks"]):
        return "Nothing could be compared"
    return "No alarm"


def _check_view(check: _Json) -> dict[str, Any]:
    statistics = sorted(check["statistics"], key=lambda one: -one["evidence"])
    charts = [_chart(one) for one in statistics if one["periods"]]
    evidence = ""
    if not check["reason"]:
        label = f"Evidence of {check['title']} by period, and the limit of an alarm"
        evidence = evidence_svg(check["evidence_by_period"], check["evidence_limit"], label=label)
    return {
        **check, "charts": charts[:MAX_CHARTS], "evidence_chart": evidence,
        "status": "alarm" if check["is_alarm"] else "not applicable" if check["reason"] else "no alarm",
        "peak": max(check["evidence_by_period"].values(), default=1.0),
        "sources": list(dict.fromkeys(one["source"] for one in check["statistics"] if one["source"])),
        "n_reference": max((one["reference"]["n"] for one in check["statistics"]), default=0),
        "n": max((sum(of.get("n", 0) for of in one["periods"].values()) for one in check["statistics"]), default=0),
    }  # fmt: skip


def _chart(statistic: _Json) -> dict[str, str]:
    is_event, reference = statistic["is_event"], statistic["reference"]
    text = mean_or_share_text(Estimate.from_dict(reference), is_event=is_event)
    unit = f", {statistic['unit']}" if statistic["unit"] else ""
    label = f"{statistic['title']} by period, with 95 % intervals, over the reference: {text}"
    return {
        "title": statistic["title"] + unit,
        "reference": text if reference["value"] is not None else "no reference",
        "svg": series_svg(statistic["periods"], reference, label=label, is_event=is_event),
    }


def _alarm_view(alarm: _Json) -> dict[str, Any]:
    is_event = alarm["is_event"]
    return {
        **alarm, "images": alarm["images"][:MAX_ROWS_SHOWN], "n_images": len(alarm["images"]),
        "difference_text": _difference_text(alarm["difference"], is_event=is_event),
    }  # fmt: skip


def _difference_text(difference: _Json, *, is_event: bool) -> str:
    if difference["value"] is None:
        return f"not known ({difference['reason']})"
    factor, unit = (100, " percentage points") if is_event else (1, "")
    low, high = difference["ci95"]
    return f"{factor * difference['value']:+.3g}{unit} [{factor * low:+.3g}, {factor * high:+.3g}]"


def _performance_view(content: _Json) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table: all outcomes first, then the latest periods."""
    rows = content["performance"]
    for row in [*rows[-1:], *reversed(rows[:-1])][:MAX_PERFORMANCE_ROWS]:
        yield {
            **row,
            "texts": [
                mean_or_share_text(Estimate.from_dict(row["sensitivity"]), is_event=True),
                mean_or_share_text(Estimate.from_dict(row["specificity"]), is_event=True),
                mean_or_share_text(Estimate.from_dict(row["observed_over_expected"]), is_event=False),
            ],
        }
