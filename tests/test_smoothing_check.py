"""Label smoothing beside adjusted logits, where a class is rare."""

from dataclasses import replace

import numpy as np
import pytest

from dermkit.errors import UsageError
from dermkit.recipes.smoothing_check import check_smoothing
from dermkit.recipes.strong import STRONG_1H
from dermkit.recipes.training_specs import OptimSpec


def optim(smoothing: float, tau: float) -> OptimSpec:
    return replace(STRONG_1H.optim, label_smoothing=smoothing, logit_adjustment=tau)


@pytest.mark.parametrize(("smoothing", "tau"), [(0.1, 1.0), (0.1, 0.5), (0.3, 1.0), (0.01, 1.0)])
@pytest.mark.parametrize("rare", [1, 5, 20, 100, 400])
def test_it_refuses_where_a_perfect_net_would_answer_the_rare_class(
    smoothing: float, tau: float, rare: int
) -> None:
    """Independently: the unadjusted output of a net that fits smoothed labels of the commonest class exactly."""
    counts = np.array([1200.0, 600.0, rare])
    target = np.full(3, smoothing / 3) + np.array([1 - smoothing, 0.0, 0.0])
    answer = (target / (counts / counts.sum()) ** tau).argmax()
    named = dict(zip(("nevus", "melanoma", "rare"), counts.astype(int).tolist(), strict=True))
    if answer == 2:
        with pytest.raises(UsageError, match="rare would be the answer to every image of nevus"):
            check_smoothing(optim(smoothing, tau), named)
    else:
        check_smoothing(optim(smoothing, tau), named)


def test_one_without_the_other_is_free() -> None:
    for smoothing, tau in ((0.0, 1.0), (0.1, 0.0)):
        check_smoothing(optim(smoothing, tau), {"nevus": 10_000, "rare": 1})
