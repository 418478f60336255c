"""Numbers and lists as the sentences of findings write them."""

from collections.abc import Sequence
from typing import Any

from dermkit.metrics.stats.intervals import wilson_interval


def join_words(phrases: Sequence[str]) -> str:
    """Return phrases as a list in a sentence: `a, b and c`."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else "".join(phrases)


def proportion_text(n: int, total: int) -> str:
    """Return a count with its percentage and 95 % interval: `39 (33 %, 95 % CI 25 to 42 %)`; `0` if total is 0."""
    if not total:
        return str(n)
    low, high = wilson_interval(n, total)
    return f"{n:,} ({100 * n / total:.0f} %, 95 % CI {100 * low:.0f} to {100 * high:.0f} %)"


def interval_text(n: int, total: int) -> str:
    """Return a percentage with its 95 % interval: `64.1 %, 95 % interval 62.2 to 66.1 %`."""
    low, high = wilson_interval(n, total)
    return f"{100 * n / total:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"


def proportion_json(n: int, total: int) -> dict[str, Any]:
    """Return a proportion as JSON: n, total, proportion, ci95 (Wilson); the last two are None where total is 0."""
    return {
        "n": n,
        "total": total,
        "proportion": n / total if total else None,
        "ci95": list(wilson_interval(n, total)) if total else None,
    }


def plural(n: int, noun: str) -> str:
    """Return `1 image`, `1,200 images`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
