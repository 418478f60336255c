"""Months and weeks of times in UTC."""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from dermkit.metrics.stats.arrays import Floats

MONTH, WEEK = "month", "week"
PERIODS = (MONTH, WEEK)


def names_of_periods(times: Floats, period: str) -> NDArray[np.str_]:
    """Return the month or ISO week of times, (N,) seconds since 1970, such as 2026-11 or 2026-W48."""
    days = np.floor(times / 86400).astype(np.int64).tolist()
    names = {day: _name(datetime.fromtimestamp(day * 86400, UTC), period) for day in set(days)}
    return np.array([names[day] for day in days], dtype=np.str_)


def _name(date: datetime, period: str) -> str:
    year, week, _ = date.isocalendar()
    return f"{date.year:04d}-{date.month:02d}" if period == MONTH else f"{year:04d}-W{week:02d}"


def day_of(seconds: float) -> str:
    """Return the day of a time in UTC, such as 2026-11-30."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def minute_of(seconds: float) -> str:
    """Return a time in UTC to the minute, such as 2026-11-30 08:15."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
