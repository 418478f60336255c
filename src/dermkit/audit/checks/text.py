"""Numbers and lists as the sentences of findings write them."""

from collections.abc import Sequence
from typing import Any

from dermkit.metrics.stats.intervals import wilson_interval


def join_words(phrases: Sequence[str]) -> str:
    """Return words as a sentence lists them: `a, b and c`."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else "".join(phrases)


def proportion_text(n: int, total: int) -> str:
    """Return a share with its 95 % interval: `39 (33 %, 95 % CI 25 to 42 %)`; no interval of nothing."""
    if not total:
        return str(n)
    low, high = wilson_interval(n, total)
    return f"{n:,} ({100 * n / total:.0f} %, 95 % CI {100 * low:.0f} to {100 * high:.0f} %)"


def interval_text(n: int, total: int) -> str:
    """Return a share of something and its 95 % interval: `64.1 %, 95 % interval 62.2 to 66.1 %`."""
    low, high = wilson_interval(n, total)
    return f"{100 * n / total:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"


def proportion_json(n: int, total: int) -> dict[str, Any]:
    """Return a share for machines: n, of, share and ci95 (Wilson), null where there is nothing to share."""
    return {
        "n": n,
        "of": total,
        "share": n / total if total else None,
        "ci95": list(wilson_interval(n, total)) if total else None,
    }


def plural(n: int, noun: str) -> str:
    """Return `1 image`, `1,200 images`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
