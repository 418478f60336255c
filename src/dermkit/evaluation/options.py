"""Options of an evaluation: targets of further operating points, prevalences, the official scorer's rules."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermkit.errors import UsageError
from dermkit.metrics.decisions.apply import parse_target

TARGET_RATES = ("sensitivity", "specificity")
TARGET_USAGE = "--target sensitivity=.97 or --target specificity=.8: a rate above 0 and below 1; may be repeated"
PREVALENCE_USAGE = "--prevalence .03: a proportion above 0 and below 1 (3 % is .03); may be repeated"

_MASKS_USAGE = "leave one of them out"

Target = tuple[str, float]


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation adds to the default metrics; nothing by default.

    official: also apply the ISIC challenge scorer's rules. targets: (rate, value in 0..1) of further operating points.
    prevalences: 0..1, further ones for PPV, NPV and counts per 1,000. save_targets: store the targets in the run's
    model. heat_maps: make heat maps of mistakes and best hits, where they are not there; masks: a folder of lesion
    masks for them. Raises `UsageError` for an unknown rate, a value outside 0..1, or one given twice.
    """

    official: bool = False
    targets: tuple[Target, ...] = ()
    prevalences: tuple[float, ...] = ()
    save_targets: bool = False
    heat_maps: bool = True
    masks: Path | None = None

    def __post_init__(self) -> None:
        if self.save_targets and not self.targets:
            raise UsageError("--save-targets: no --target is given", remedy=TARGET_USAGE)
        if self.masks is not None and not self.heat_maps:
            raise UsageError("--masks goes with heat maps, and --no-heat-maps makes none", remedy=_MASKS_USAGE)
        for rate, value in self.targets:
            if rate not in TARGET_RATES:
                raise UsageError(
                    f"--target {rate}={value:g}: a target is a {' or a '.join(TARGET_RATES)}", remedy=TARGET_USAGE
                )
            _check_proportion(value, f"--target {rate}={value:g}", TARGET_USAGE)
        for prevalence in self.prevalences:
            _check_proportion(prevalence, f"--prevalence {prevalence:g}", PREVALENCE_USAGE)
        _check_unique(self.targets, lambda value: f"--target {value[0]}={value[1]:g}", TARGET_USAGE)
        _check_unique(self.prevalences, lambda prevalence: f"--prevalence {prevalence:g}", PREVALENCE_USAGE)

    @property
    def needs_policy(self) -> bool:
        """Whether these options need a decision policy, which only validation images can fit."""
        return bool(self.targets or self.prevalences)

    def with_targets(self, model_targets: Sequence[Target]) -> "EvaluationOptions":
        """Return the same options with the targets that a model has stored."""
        return replace(self, targets=tuple(dict.fromkeys((*self.targets, *model_targets))))

    def as_dict(self) -> dict[str, Any]:
        """Return the options as metrics.json holds them: those that change a figure."""
        target_rows = [{"rate": rate, "target": value} for rate, value in self.targets]
        return {"official": self.official, "targets": target_rows, "prevalences": list(self.prevalences)}


def parse_options(
    *, official: bool, targets: Sequence[str], prevalences: Sequence[str], save_targets: bool = False,
    heat_maps: bool = True, masks: Path | None = None,
) -> EvaluationOptions:  # fmt: skip
    """Return the options of a command line; raises `UsageError` for a text that is no target or no number."""
    return EvaluationOptions(
        official,
        tuple(_parse_target(text) for text in targets),
        tuple(_parse_number(text, f"--prevalence {text}", PREVALENCE_USAGE) for text in prevalences),
        save_targets,
        heat_maps,
        masks,
    )


def _parse_target(text: str) -> Target:
    try:
        return parse_target(text)
    except ValueError as error:
        raise UsageError(f"--target {text}: {error}", remedy=TARGET_USAGE) from None


def _parse_number(text: str, flag: str, usage: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{flag}: {text!r} is not a number", remedy=usage) from None


def _check_proportion(proportion: float, flag: str, usage: str) -> None:
    if not math.isfinite(proportion) or not 0 < proportion < 1:
        raise UsageError(f"{flag}: must lie above 0 and below 1", remedy=usage)


def _check_unique(values: Collection[Any], describe: Callable[[Any], str], usage: str) -> None:
    repeated_values = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if repeated_values:
        raise UsageError(f"{describe(repeated_values[0])}: is given twice", remedy=usage)


DEFAULT_OPTIONS = EvaluationOptions()
"""An evaluation without further targets, prevalences or rules, with heat maps."""
