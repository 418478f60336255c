"""Bootstrap and jackknife values of named metrics, and the intervals that they give.

Shapes: B resamples, C groups that are left out in turn.
"""

from collections.abc import Callable, Mapping

import numpy as np

from dermkit.metrics.stats import intervals
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.estimate import Estimate

MAX_BCA_GROUPS = 10_000
"""Most groups for BCa intervals, which need every metric without each group in turn; percentile intervals beyond."""

NO_RESAMPLES_REASON = "no interval: nothing was resampled"
_CHUNK_SIZE = 256

NamedArrays = Mapping[str, Floats]


class BootstrapSamples:
    """Bootstrap samples of named metrics over `n_groups` resampling groups.

    compute_metrics: weights (B, n_groups) -> name -> (B, ...). leave_one_group_out: group indices (C,) -> name ->
    (C, ...). method_name: of the bootstrap, in `Estimate.method`. samples, jackknife: name -> all their values; samples
    are empty for a single group, the jackknife also above MAX_BCA_GROUPS.
    """

    def __init__(
        self,
        n_groups: int,
        *,
        compute_metrics: Callable[[Floats], NamedArrays],
        leave_one_group_out: Callable[[Ints], NamedArrays],
        method_name: str,
        seed: int,
        resamples: int,
    ) -> None:
        # With one group every resample is the sample itself.
        weight_chunks = intervals.resample_weights(
            np.arange(n_groups), seed=seed, resamples=resamples if n_groups > 1 else 0
        )
        self.samples = _concatenate([compute_metrics(weights) for weights in weight_chunks])
        use_bca = 1 < n_groups <= MAX_BCA_GROUPS and resamples > 0
        group_chunks = np.array_split(np.arange(n_groups), -(-n_groups // _CHUNK_SIZE)) if use_bca else []
        self.jackknife = _concatenate([leave_one_group_out(group_indices) for group_indices in group_chunks])
        self.method = f"{method_name}, {'BCa' if use_bca else 'percentile'}, {resamples} resamples, seed {seed}"
        self.missing_reason = intervals.ONE_GROUP_REASON if n_groups == 1 else NO_RESAMPLES_REASON

    def estimate(self, value: float, n: int, samples: Floats | None, jackknife: Floats | None) -> Estimate:
        """Return the estimate of a metric of n images from its bootstrap samples and jackknife values."""
        if samples is None:
            return Estimate(value, None, n, self.method, self.missing_reason)
        interval = (
            intervals.percentile_interval(value, samples)
            if jackknife is None
            else intervals.bca_interval(value, samples, jackknife)
        )
        return Estimate(value, interval.ci95, n, self.method, interval.reason)


def _concatenate(chunks: list[NamedArrays]) -> dict[str, Floats]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]} if chunks else {}
