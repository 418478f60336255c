"""What a person asks of an evaluation beside what all get: wishes, prevalences, the official scorer's rules."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dermkit.errors import UsageError
from dermkit.metrics.decisions.apply import parse_target

TARGET_RATES = ("sensitivity", "specificity")
TARGET_USAGE = "--wish sensitivity=.97 or --wish specificity=.8: a rate above 0 and below 1; may be repeated"
PREVALENCE_USAGE = "--prevalence .03: a share above 0 and below 1 (3 % is .03); may be repeated"

Target = tuple[str, float]


@dataclass(frozen=True)
class EvaluationOptions:
    """Nothing by default. official: score by the official challenge scorer's rules too.

    wishes: (rate, 0..1) for operating points of one's own; prevalences: 0..1, for what they cost. Both come beside the
    usual ones. keep: the run's model takes the wishes over. Raises `UsageError` for another rate, a number outside, or
    one that stands twice.
    """

    official: bool = False
    targets: tuple[Target, ...] = ()
    prevalences: tuple[float, ...] = ()
    save_targets: bool = False

    def __post_init__(self) -> None:
        if self.save_targets and not self.targets:
            raise UsageError("--keep: there is no wish to keep", remedy=TARGET_USAGE)
        for rate, value in self.targets:
            if rate not in TARGET_RATES:
                raise UsageError(
                    f"--wish {rate}={value:g}: a wish is a {' or a '.join(TARGET_RATES)}", remedy=TARGET_USAGE
                )
            _check_proportion(value, f"--wish {rate}={value:g}", TARGET_USAGE)
        for prevalence in self.prevalences:
            _check_proportion(prevalence, f"--prevalence {prevalence:g}", PREVALENCE_USAGE)
        _check_unique(self.targets, lambda value: f"--wish {value[0]}={value[1]:g}", TARGET_USAGE)
        _check_unique(self.prevalences, lambda prevalence: f"--prevalence {prevalence:g}", PREVALENCE_USAGE)

    @property
    def needs_policy(self) -> bool:
        """Whether something is asked that only validation images can settle."""
        return bool(self.targets or self.prevalences)

    def with_targets(self, model_targets: Sequence[Target]) -> "EvaluationOptions":
        """Return the same with the wishes that a model holds from before."""
        return replace(self, targets=tuple(dict.fromkeys((*self.targets, *model_targets))))

    def as_dict(self) -> dict[str, Any]:
        """Return what metrics.json says of it."""
        target_rows = [{"rate": rate, "target": value} for rate, value in self.targets]
        return {"official": self.official, "targets": target_rows, "prevalences": list(self.prevalences)}


def parse_options(
    *, official: bool, targets: Sequence[str], prevalences: Sequence[str], save_targets: bool = False
) -> EvaluationOptions:
    """Return what the command line asks; raises `UsageError` for a text that says no wish or no number."""
    return EvaluationOptions(
        official,
        tuple(_parse_target(text) for text in targets),
        tuple(_parse_number(text, f"--prevalence {text}", PREVALENCE_USAGE) for text in prevalences),
        save_targets,
    )


def _parse_target(text: str) -> Target:
    try:
        return parse_target(text)
    except ValueError as error:
        raise UsageError(f"--wish {text}: {error}", remedy=TARGET_USAGE) from None


def _parse_number(text: str, flag: str, usage: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{flag}: {text!r} is no number", remedy=usage) from None


def _check_proportion(proportion: float, flag: str, usage: str) -> None:
    if not math.isfinite(proportion) or not 0 < proportion < 1:
        raise UsageError(f"{flag}: must lie above 0 and below 1", remedy=usage)


def _check_unique(values: Collection[Any], describe: Callable[[Any], str], usage: str) -> None:
    repeated_values = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if repeated_values:
        raise UsageError(f"{describe(repeated_values[0])}: stands twice", remedy=usage)


DEFAULT_OPTIONS = EvaluationOptions()
"""What all get."""
