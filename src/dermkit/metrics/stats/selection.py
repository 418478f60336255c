"""What the best of several configurations is worth: its value without the optimism of having been chosen.

The bootstrap bias correction of cross-validation (Tsamardinos, Greasidou and Borboudakis 2018, Machine Learning 107,
"BBC-CV"): in each resample of the units the best configuration is chosen on the units drawn, and its value is taken
from the units that were not drawn. Nothing is trained again.

Shapes: B resamples, T configurations.
"""

from dataclasses import dataclass

import numpy as np

from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.estimate import UNRELIABLE_PREFIX, Estimate, undefined_estimate, with_caveats
from dermkit.metrics.stats.intervals import CONFIDENCE_LEVEL, MAX_UNDEFINED_FRACTION, too_few


@dataclass(frozen=True)
class SelectedValue:
    """The value of the configuration that was chosen, and what is left of it.

    best: its index, the first of equals. value: its value on the units that chose it, too good. corrected: its value as
    on new units, with the percentile interval of the out-of-bag values, which is a little too wide. optimism: by how
    much `value` is too good, above 0 whether larger or smaller is better; None where `corrected` is undefined.
    """

    best: int
    value: float
    corrected: Estimate
    optimism: float | None


def select_best(values: Floats, *, higher_is_better: bool) -> int:
    """Return the index of the best of (T,) values, the first of equals; NaN is never chosen.

    Raises `ValueError` where all are NaN.
    """
    signed = np.where(np.isnan(values), -np.inf, values if higher_is_better else -values)
    if np.isneginf(signed).all():
        raise ValueError("no configuration has a value")
    return int(signed.argmax())


def correct_selection(
    values: Floats,
    in_bag: Floats,
    out_of_bag: Floats,
    *,
    higher_is_better: bool,
    n: int,
    n_units: int,
    method: str,
) -> SelectedValue:
    """Return the best configuration with its value and the corrected one.

    values: (T,) on all units. in_bag, out_of_bag: (B, T) on the units drawn and not drawn, NaN = undefined. n: images.
    n_units: units that were resampled. method: of the bootstrap, for the estimate.
    """
    best = select_best(values, higher_is_better=higher_is_better)
    value = float(values[best])
    chosen_values = _values_of_chosen(in_bag, out_of_bag, higher_is_better=higher_is_better)
    if not len(chosen_values):
        reason = "no resample has a value on the units drawn and on those left out"
        return SelectedValue(best, value, undefined_estimate(n, reason), None)
    corrected = float(chosen_values.mean())
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low, high = (float(bound) for bound in np.quantile(chosen_values, [tail, 1 - tail]))
    undefined_fraction = 1 - len(chosen_values) / len(in_bag)
    caveats = too_few(n_units)
    if undefined_fraction > MAX_UNDEFINED_FRACTION:
        caveats.append(f"{UNRELIABLE_PREFIX}: undefined in {undefined_fraction:.0%} of the resamples")
    estimate = with_caveats(Estimate(corrected, (low, high), n, method), caveats)
    return SelectedValue(best, value, estimate, value - corrected if higher_is_better else corrected - value)


def _values_of_chosen(in_bag: Floats, out_of_bag: Floats, *, higher_is_better: bool) -> Floats:
    """Return the out-of-bag values of the in-bag best, at most (B,): undefined ones are left out."""
    signed = np.where(np.isnan(in_bag), -np.inf, in_bag if higher_is_better else -in_bag)
    values: Floats = out_of_bag[np.arange(len(out_of_bag)), signed.argmax(axis=1)]
    is_defined = ~np.isneginf(signed).all(axis=1) & np.isfinite(values)
    return np.asarray(values[is_defined], dtype=np.float64)
