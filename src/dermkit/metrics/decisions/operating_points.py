"""What an operating point does: sensitivity, specificity, and at a stated prevalence PPV, NPV and counts per 1,000.

The prevalence of a test set is that of its makers; PPV and NPV of its images say nothing about a clinic's. They are
computed for the prevalence that the user states, with intervals that come from those of both rates.
"""

import math
from dataclasses import dataclass

from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.decisions.thresholds import per_thousand, predictive_values
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.estimate import NO_METHOD, Estimate, doubted, doubts, undefined

PREVALENCES = (0.01, 0.05, 0.2)
"""Malignant lesions among those looked at, from screening to a specialist's clinic: to be stated, not measured."""

PREDICTIVE = "from the intervals of both rates, at the stated prevalence"

Bounds = tuple[float, float]


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
    people = per_thousand(sens, spec, prevalence)
    wide, narrow = _predictive_bounds(sensitivity, specificity, prevalence / (1 - prevalence))
    # With a lower bound of 0 for the PPV there is no upper one for those called per one found.
    needed = (1 / wide[1], 1 / wide[0]) if wide and wide[0] > 0 else None
    ill, well = 1000 * prevalence, 1000 * (1 - prevalence)

    def both(value: float | None, bounds: Bounds | None, why: str) -> Estimate:
        if value is None:
            return undefined(n, why)
        return _derived(value, bounds, n, PREDICTIVE, (sensitivity, specificity))

    return AtPrevalence(
        prevalence=prevalence,
        ppv=both(ppv, wide, "nobody is called positive"),
        npv=both(npv, narrow, "nobody is called negative"),
        found=_of_rate(people.found, sensitivity, ill),
        missed=_of_rate(people.missed, sensitivity, ill, others=True),
        false_alarms=_of_rate(people.false_alarms, specificity, well, others=True),
        biopsies_per_found=both(people.biopsies_per_found, needed, "nothing is found"),
    )


def _of_rate(value: float, rate: Estimate, people: float, *, others: bool = False) -> Estimate:
    """Return how many of so many people a rate calls right, or with `others` how many it does not."""
    bounds = None
    if rate.ci95 is not None:
        low, high = (1 - rate.ci95[1], 1 - rate.ci95[0]) if others else rate.ci95
        bounds = (people * low, people * high)
    return _derived(value, bounds, rate.n, rate.method, (rate,))


def _derived(value: float, bounds: Bounds | None, n: int, method: str, rates: tuple[Estimate, ...]) -> Estimate:
    """Return what follows from rates: with their doubts, or with why one of them has no interval."""
    if bounds is not None:
        return doubted(
            Estimate(value, bounds, n, method), [part for rate in rates for part in doubts(rate.reason)]
        )
    why = dict.fromkeys(rate.reason for rate in rates if rate.ci95 is None and rate.reason)
    return Estimate(value, None, n, NO_METHOD, "; ".join(why) or "no interval: it has no upper bound")


def _predictive_bounds(
    sensitivity: Estimate, specificity: Estimate, odds: float
) -> tuple[Bounds, Bounds] | tuple[None, None]:
    """Return the intervals of PPV and NPV; none where a rate has none. odds: of the disease, as stated."""
    if sensitivity.ci95 is None or specificity.ci95 is None:
        return None, None
    sens, spec = sensitivity.value or 0.0, specificity.value or 0.0
    (low, high), (low0, high0) = sensitivity.ci95, specificity.ci95
    wide = _ratio_interval((sens, low, high), (1 - spec, 1 - high0, 1 - low0), odds)
    return wide, _ratio_interval((spec, low0, high0), (1 - sens, 1 - high, 1 - low), 1 / odds)


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
