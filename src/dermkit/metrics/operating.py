"""What an operating point does: sensitivity, specificity, and at a stated prevalence PPV, NPV and counts per 1,000.

The prevalence of a test set is that of its makers; PPV and NPV of its images say nothing about a clinic's. They are
computed for the prevalence that the user states, with intervals that come from those of both rates.
"""

import math
from dataclasses import dataclass

from dermkit.metrics import intervals
from dermkit.metrics.estimate import Estimate
from dermkit.metrics.scored import Scored
from dermkit.metrics.thresholds import per_thousand, predictive_values

PREVALENCES = (0.01, 0.05, 0.2)
"""Malignant lesions among those looked at, from screening to a specialist's clinic: to be stated, not measured."""

PREDICTIVE = "from the intervals of both rates, at the stated prevalence"


@dataclass(frozen=True)
class AtThreshold:
    """One threshold on one split, each with its interval. `at`: per stated prevalence."""

    threshold: float
    sensitivity: Estimate
    specificity: Estimate
    at: "tuple[AtPrevalence, ...]"


@dataclass(frozen=True)
class AtPrevalence:
    """Per 1,000 people of whom `prevalence` have the disease. biopsies_per_found: how many are called per one found."""

    prevalence: float
    ppv: Estimate
    npv: Estimate
    found: Estimate
    missed: Estimate
    false_alarms: Estimate
    biopsies_per_found: Estimate


def at_threshold(scored: Scored, threshold: float, *, prevalences: tuple[float, ...] = PREVALENCES) -> AtThreshold:
    """Call images with a malignant probability of at least `threshold` positive; needs both sides."""
    called, positive = scored.p_malignant >= threshold, scored.is_malignant
    rates = [
        intervals.proportion_estimate(called[positive], scored.groups[positive]),
        intervals.proportion_estimate(~called[~positive], scored.groups[~positive]),
    ]
    found = tuple(_at(prevalence, *rates) for prevalence in prevalences)
    return AtThreshold(threshold, rates[0], rates[1], found)


def _at(prevalence: float, sensitivity: Estimate, specificity: Estimate) -> AtPrevalence:
    sens, spec = sensitivity.value or 0.0, specificity.value or 0.0
    n = sensitivity.n + specificity.n
    ppv, npv = predictive_values(sens, spec, prevalence)
    odds = prevalence / (1 - prevalence)
    low, high = sensitivity.ci95 or (0.0, 1.0)
    low0, high0 = specificity.ci95 or (0.0, 1.0)
    wide = _ratio_interval((sens, low, high), (1 - spec, 1 - high0, 1 - low0), odds)
    narrow = _ratio_interval((spec, low0, high0), (1 - sens, 1 - high, 1 - low), 1 / odds)
    people = per_thousand(sens, spec, prevalence)
    ill, well = 1000 * prevalence, 1000 * (1 - prevalence)
    needed = Estimate(None, None, n, "none", "nothing is found")
    if people.biopsies_per_found is not None:
        needed = Estimate(people.biopsies_per_found, (1 / wide[1], 1 / wide[0]), n, PREDICTIVE)
    return AtPrevalence(
        prevalence=prevalence,
        ppv=_predictive(ppv, wide, n, "nobody is called positive"),
        npv=_predictive(npv, narrow, n, "nobody is called negative"),
        found=Estimate(people.found, (ill * low, ill * high), sensitivity.n, sensitivity.method),
        missed=Estimate(people.missed, (ill * (1 - high), ill * (1 - low)), sensitivity.n, sensitivity.method),
        false_alarms=Estimate(
            people.false_alarms, (well * (1 - high0), well * (1 - low0)), specificity.n, specificity.method
        ),
        biopsies_per_found=needed,
    )


def _predictive(value: float | None, bounds: tuple[float, float], n: int, why: str) -> Estimate:
    return Estimate(None, None, n, "none", why) if value is None else Estimate(value, bounds, n, PREDICTIVE)


def _ratio_interval(
    hit: tuple[float, float, float], alarm: tuple[float, float, float], odds: float
) -> tuple[float, float]:
    """Return the interval of odds * hit / alarm as a probability, from those of both rates (MOVER on the logarithm).

    hit, alarm: share, lower and upper bound, of different images. A rate of 0 leaves one end open: 0 or 1.
    """
    (a, a_low, a_high), (b, b_low, b_high) = hit, alarm
    if a == 0 or b == 0:
        low = odds * a_low / (odds * a_low + b_high) if a_low > 0 else 0.0
        high = odds * a_high / (odds * a_high + b_low) if b_low > 0 else 1.0
        return low, high
    middle = math.log(odds * a / b)
    down = math.hypot(math.log(a / a_low), math.log(b_high / b)) if a_low > 0 else math.inf
    up = math.hypot(math.log(a_high / a), math.log(b / b_low)) if b_low > 0 else math.inf
    return _probability(middle - down), _probability(middle + up)


def _probability(log_odds: float) -> float:
    return 0.0 if log_odds == -math.inf else 1 / (1 + math.exp(-log_odds))
