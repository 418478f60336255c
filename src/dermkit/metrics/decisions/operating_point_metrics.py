"""Evaluation of an operating point: sensitivity, specificity, and PPV, NPV and counts per 1,000 at a stated prevalence.

The prevalence of a test set was chosen by its authors, so PPV and NPV of its images do not carry over to a clinic.
They are computed for prevalences that the user states, with intervals derived from those of both rates.
"""

import math
from dataclasses import dataclass

import numpy as np

from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.decisions.operating_points import counts_per_thousand, predictive_values
from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import NO_METHOD, Estimate, caveats, undefined_estimate, with_caveats

DEFAULT_PREVALENCES = (0.01, 0.05, 0.2)
"""Fraction of malignant lesions, from screening to a specialist's clinic: examples, not measurements."""

PREDICTIVE_METHOD = "from the intervals of both rates, at the stated prevalence"
CORRELATED_METHOD = "from the intervals of both rates, which covary by group, at the stated prevalence"

Bounds = tuple[float, float]


@dataclass(frozen=True)
class OperatingPointResult:
    """One threshold evaluated on one split, each rate with its interval."""

    threshold: float | Floats
    sensitivity: Estimate
    specificity: Estimate
    per_prevalence: "tuple[AtPrevalence, ...]"


@dataclass(frozen=True)
class AtPrevalence:
    """Predictive values at a prevalence, and expected counts per 1,000 people.

    number_needed_to_biopsy: people called positive per true positive, 1 / PPV.
    """

    prevalence: float
    ppv: Estimate
    npv: Estimate
    true_positives: Estimate
    false_negatives: Estimate
    false_positives: Estimate
    number_needed_to_biopsy: Estimate


def evaluate_threshold(
    scored_set: ScoredSet, threshold: float | Floats, *, prevalences: tuple[float, ...] = DEFAULT_PREVALENCES
) -> OperatingPointResult:
    """Evaluate the rule p_malignant >= threshold, one or each image's own; needs malignant and other images."""
    is_called, is_positive = np.asarray(scored_set.p_malignant >= threshold, dtype=bool), scored_set.is_malignant
    rates = [
        intervals.proportion_estimate(is_called[is_positive], scored_set.groups[is_positive]),
        intervals.proportion_estimate(~is_called[~is_positive], scored_set.groups[~is_positive]),
    ]
    shared = intervals.shared_groups((is_positive, ~is_positive), (is_called, ~is_called), scored_set.groups)
    per_prevalence = tuple(_at_prevalence(prevalence, rates[0], rates[1], shared) for prevalence in prevalences)
    return OperatingPointResult(threshold, rates[0], rates[1], per_prevalence)


def _at_prevalence(
    prevalence: float, sensitivity: Estimate, specificity: Estimate, shared: intervals.SharedGroups
) -> AtPrevalence:
    sens, spec = sensitivity.value or 0.0, specificity.value or 0.0
    n = sensitivity.n + specificity.n
    ppv, npv = predictive_values(sens, spec, prevalence)
    counts = counts_per_thousand(sens, spec, prevalence)
    odds = prevalence / (1 - prevalence)
    ppv_bounds, npv_bounds = _predictive_bounds(sensitivity, specificity, odds, shared)
    # If the PPV's lower bound is 0, the number needed to biopsy has no upper bound.
    nnb_bounds = (1 / ppv_bounds[1], 1 / ppv_bounds[0]) if ppv_bounds and ppv_bounds[0] > 0 else None
    n_diseased, n_healthy = 1000 * prevalence, 1000 * (1 - prevalence)

    def from_both_rates(value: float | None, bounds: Bounds | None, reason: str) -> Estimate:
        if value is None:
            return undefined_estimate(n, reason)
        method = CORRELATED_METHOD if shared.any else PREDICTIVE_METHOD
        return _derived_estimate(value, bounds, n, method, (sensitivity, specificity))

    return AtPrevalence(
        prevalence=prevalence,
        ppv=from_both_rates(ppv, ppv_bounds, "nobody is called positive"),
        npv=from_both_rates(npv, npv_bounds, "nobody is called negative"),
        true_positives=_count_from_rate(counts.true_positives, sensitivity, n_diseased),
        false_negatives=_count_from_rate(counts.false_negatives, sensitivity, n_diseased, complement=True),
        false_positives=_count_from_rate(counts.false_positives, specificity, n_healthy, complement=True),
        number_needed_to_biopsy=from_both_rates(counts.number_needed_to_biopsy, nnb_bounds, "nothing is found"),
    )


def _count_from_rate(value: float, rate: Estimate, n_people: float, *, complement: bool = False) -> Estimate:
    """Return rate x n_people with its interval, or (1 - rate) x n_people with `complement`."""
    bounds = None
    if rate.ci95 is not None:
        low, high = (1 - rate.ci95[1], 1 - rate.ci95[0]) if complement else rate.ci95
        bounds = (n_people * low, n_people * high)
    return _derived_estimate(value, bounds, rate.n, rate.method, (rate,))


def _derived_estimate(
    value: float, bounds: Bounds | None, n: int, method: str, rates: tuple[Estimate, ...]
) -> Estimate:
    """Return a value derived from rates, with their caveats, or the reason why one of them has no interval."""
    if bounds is not None:
        return with_caveats(
            Estimate(value, bounds, n, method), [caveat for rate in rates for caveat in caveats(rate.reason)]
        )
    reasons = dict.fromkeys(rate.reason for rate in rates if rate.ci95 is None and rate.reason)
    return Estimate(value, None, n, NO_METHOD, "; ".join(reasons) or "no interval: it has no upper bound")


def _predictive_bounds(
    sensitivity: Estimate, specificity: Estimate, odds: float, shared: intervals.SharedGroups
) -> tuple[Bounds, Bounds] | tuple[None, None]:
    """Return the intervals of PPV and NPV, None if a rate has none.

    odds: prevalence / (1 - prevalence). shared: by sensitivity and specificity.
    """
    if sensitivity.ci95 is None or specificity.ci95 is None:
        return None, None
    sens, spec = sensitivity.value or 0.0, specificity.value or 0.0
    (sens_low, sens_high), (spec_low, spec_high) = sensitivity.ci95, specificity.ci95
    ppv_bounds = _ratio_interval(
        (sens, sens_low, sens_high), (1 - spec, 1 - spec_high, 1 - spec_low), odds, shared
    )
    npv_bounds = _ratio_interval(
        (spec, spec_low, spec_high), (1 - sens, 1 - sens_high, 1 - sens_low), 1 / odds, shared
    )
    return ppv_bounds, npv_bounds


def _ratio_interval(
    true_rate: tuple[float, float, float],
    false_rate: tuple[float, float, float],
    odds: float,
    shared: intervals.SharedGroups,
) -> tuple[float, float]:
    """Return the interval of x / (1 + x), x = odds * true_rate / false_rate (MOVER on the log scale).

    Each rate is (value, low, high), of different images. A rate of 0 leaves one end open: 0 or 1.
    """
    (a, a_low, a_high), (b, b_low, b_high) = true_rate, false_rate
    if a == 0 or b == 0:
        low = odds * a_low / (odds * a_low + b_high) if a_low > 0 else 0.0
        high = odds * a_high / (odds * a_high + b_low) if b_low > 0 else 1.0
        return low, high
    log_odds = math.log(odds * a / b)
    lower_distance = _log_distance(math.log(a / a_low), math.log(b_high / b), shared) if a_low > 0 else math.inf
    upper_distance = _log_distance(math.log(a_high / a), math.log(b / b_low), shared) if b_low > 0 else math.inf
    return _expit(log_odds - lower_distance), _expit(log_odds + upper_distance)


def _log_distance(true_distance: float, false_distance: float, shared: intervals.SharedGroups) -> float:
    """Return the distance to a bound of log true rate - log false rate from those of both."""
    if not shared.any:
        return math.hypot(true_distance, false_distance)
    # The false rate is one minus a rate: with it the true rate covaries the other way, and the difference as much more.
    cross_term = 2 * float(shared.correlations[0, 1]) * true_distance * false_distance
    return shared.widening * math.sqrt(max(0.0, true_distance**2 + false_distance**2 + cross_term))


def _expit(log_odds: float) -> float:
    return 0.0 if log_odds == -math.inf else 1 / (1 + math.exp(-log_odds))
