"""What a person asks of an evaluation beside what all get: wishes, prevalences, the official scorer's rules."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dermkit.errors import UsageError

RATES = ("sensitivity", "specificity")
HOW_WISH = "--wish sensitivity=.97 or --wish specificity=.8: a rate above 0 and below 1; may be repeated"
HOW_PREVALENCE = "--prevalence .03: a share above 0 and below 1 (3 % is .03); may be repeated"

Wish = tuple[str, float]


@dataclass(frozen=True)
class Asked:
    """Nothing by default. official: score by the official challenge scorer's rules too.

    wishes: (rate, 0..1) for operating points of one's own; prevalences: 0..1, for what they cost. Both come beside the
    usual ones. keep: the run's model takes the wishes over. Raises `UsageError` for another rate, a number outside, or
    one that stands twice.
    """

    official: bool = False
    wishes: tuple[Wish, ...] = ()
    prevalences: tuple[float, ...] = ()
    keep: bool = False

    def __post_init__(self) -> None:
        if self.keep and not self.wishes:
            raise UsageError("--keep: there is no wish to keep", remedy=HOW_WISH)
        for rate, wish in self.wishes:
            if rate not in RATES:
                raise UsageError(f"--wish {rate}={wish:g}: a wish is a {' or a '.join(RATES)}", remedy=HOW_WISH)
            _check_share(wish, f"--wish {rate}={wish:g}", HOW_WISH)
        for share in self.prevalences:
            _check_share(share, f"--prevalence {share:g}", HOW_PREVALENCE)
        _check_once(self.wishes, lambda wish: f"--wish {wish[0]}={wish[1]:g}", HOW_WISH)
        _check_once(self.prevalences, lambda share: f"--prevalence {share:g}", HOW_PREVALENCE)

    @property
    def of_decision(self) -> bool:
        """Whether something is asked that only validation images can settle."""
        return bool(self.wishes or self.prevalences)

    def beside(self, kept: Sequence[Wish]) -> "Asked":
        """Return the same with the wishes that a model holds from before."""
        return replace(self, wishes=tuple(dict.fromkeys((*self.wishes, *kept))))

    def as_dict(self) -> dict[str, Any]:
        """Return what metrics.json says of it."""
        wishes = [{"rate": rate, "wish_rate": wish} for rate, wish in self.wishes]
        return {"official": self.official, "wishes": wishes, "prevalences": list(self.prevalences)}


def read_asked(*, official: bool, wishes: Sequence[str], prevalences: Sequence[str], keep: bool = False) -> Asked:
    """Return what the command line asks; raises `UsageError` for a text that says no wish or no number."""
    return Asked(
        official,
        tuple(_wish(text) for text in wishes),
        tuple(_number(text, f"--prevalence {text}", HOW_PREVALENCE) for text in prevalences),
        keep,
    )


def _wish(text: str) -> Wish:
    rate, sign, number = text.partition("=")
    if not sign:
        raise UsageError(f"--wish {text}: says no rate and number", remedy=HOW_WISH)
    return rate.strip(), _number(number, f"--wish {text}", HOW_WISH)


def _number(text: str, where: str, how: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r} is no number", remedy=how) from None


def _check_share(share: float, where: str, how: str) -> None:
    if not math.isfinite(share) or not 0 < share < 1:
        raise UsageError(f"{where}: must lie above 0 and below 1", remedy=how)


def _check_once(values: Collection[Any], told: Callable[[Any], str], how: str) -> None:
    twice = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if twice:
        raise UsageError(f"{told(twice[0])}: stands twice", remedy=how)


NOTHING = Asked()
"""What all get."""
