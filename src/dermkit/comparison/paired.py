"""How far two models lie apart on the same images: difference, interval, test, and what would be needed to tell.

Accuracy, sensitivity and specificity of independent images: McNemar's mid-p. AUROC: DeLong's test over groups.
Everything else, and proportions of grouped images: both models exchanged in units (images or groups) by chance. What a
unit adds to the difference is the sum of its images' terms; where a figure is no mean of terms, what it loses without.
Intervals, and the test beyond 10,000 units, are a bootstrap over units, both models on the same resamples: its own p
finds too much with few groups (benchmarks/paired.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dermkit.comparison.verdict import FIGURES, Difference, verdict
from dermkit.metrics.classification import probabilistic
from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.classification.vectorised import Figures, Plan, figures_compared, images_behind, units_behind
from dermkit.metrics.stats import delong, intervals, paired_tests, power
from dermkit.metrics.stats.arrays import Bools, Floats
from dermkit.metrics.stats.bootstrap import MOST_CORRECTED, Named, Resampled
from dermkit.metrics.stats.estimate import Estimate, doubted

__all__ = [
    "FIGURES",
    "Difference",
    "bootstrap_p",
    "corrected",
    "differences",
    "exchanged_p",
    "linear_p",
    "terms",
    "verdict",
]

MCNEMAR = "McNemar, mid-p"
DELONG = "DeLong"
BOOTSTRAP = "paired bootstrap"
EXCHANGED = "sign flips"
ROUNDING = 1e-9
"""Below this, parts of a difference are nothing but rounding."""


def differences(
    first: Scored, second: Scored, *, seed: int, resamples: int = intervals.RESAMPLES
) -> list[Difference]:
    """Compare two models that scored the same images in the same order, with the same classes and groups.

    Raises `ValueError` where they did not.
    """
    same = (
        list(first.classes) == list(second.classes)
        and np.array_equal(first.true, second.true)
        and np.array_equal(first.groups, second.groups)
        and np.array_equal(first.malignant, second.malignant)
    )
    if not same:
        raise ValueError("a paired comparison needs the same images, labels, classes and groups")
    drawn = _Both(first, second, seed=seed, resamples=resamples)
    found = {item.figure: item for item in drawn.all()}
    for item in _exact(first, second, found):
        found[item.figure] = item
    return [found[name] for name in FIGURES if name in found]


def corrected(families: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """Return the same with `p_holm`: every figure of every pair is one of the questions that were asked."""
    p = [item.p for family in families for item in family if item.p is not None]
    adjusted = iter(paired_tests.holm(p))
    return [
        [item if item.p is None else replace(item, p_holm=next(adjusted)) for item in family]
        for family in families
    ]


# Exact tests ------------------------------------------------------------------------------------------------------


def _exact(first: Scored, second: Scored, found: dict[str, Difference]) -> Iterator[Difference]:
    """Yield what has a better test than the bootstrap; intervals stay those of the bootstrap."""
    if first.independent:
        one, other = first.malignant[first.predicted], second.malignant[second.predicted]
        everyone = np.ones(len(first.true), dtype=bool)
        yield _mcnemar(found["accuracy"], first.predicted == first.true, second.predicted == first.true, everyone)
        if first.has_binary_view:
            if found["sensitivity"].estimate.value is not None:
                yield _mcnemar(found["sensitivity"], one, other, first.is_malignant)
            if found["specificity"].estimate.value is not None:
                yield _mcnemar(found["specificity"], ~one, ~other, ~first.is_malignant)
    if "auroc" in found and found["auroc"].estimate.value is not None:
        yield _delong(first, second)


def _mcnemar(item: Difference, first: Bools, second: Bools, rows: Bools) -> Difference:
    pairs = paired_tests.mcnemar(first[rows], second[rows])
    share, gap = (pairs.first + pairs.second) / pairs.n, abs(pairs.first - pairs.second) / pairs.n
    needed = power.images_needed(gap, share) if gap else None
    return replace(item, test=MCNEMAR, p=pairs.p, discordant=(pairs.first, pairs.second), needed=needed)


def _delong(first: Scored, second: Scored) -> Difference:
    areas = delong.areas(np.stack([first.p_malignant, second.p_malignant]), first.is_malignant, first.groups)
    gap, error, p = delong.difference(areas, 0, 1)
    half, n = intervals.Z * error, len(first.true)
    if not error:  # neither order leaves a doubt: perfect, or constant scores
        sure = Estimate(gap, None, n, "none", "no interval: no variance")
        return Difference("auroc", sure, DELONG, 1.0) if gap == 0 else Difference("auroc", sure, "none", None)
    estimate = Estimate(gap, (max(-1.0, gap - half), min(1.0, gap + half)), n, f"{DELONG}, normal")
    made = doubted(estimate, intervals.few(units_behind(first, "auroc")))
    return Difference("auroc", made, DELONG, p, needed=power.scaled_need(n, gap, error))


# Bootstrap --------------------------------------------------------------------------------------------------------


class _Both:
    """Two models' figures on the same resamples."""

    def __init__(self, first: Scored, second: Scored, *, seed: int, resamples: int) -> None:
        self.scored = first
        plans = Plan(first), Plan(second)
        self.point = _gap(*(plan.point for plan in plans))
        self.drawn = Resampled(
            first.units, figures=lambda weights: _gap(*(plan.resampled(weights) for plan in plans)),
            without_each=lambda rows: _gap(*(plan.without_each(rows) for plan in plans)),
            name=f"{BOOTSTRAP} by {'image' if first.independent else 'group'}", seed=seed, resamples=resamples,
        )  # fmt: skip
        few = 1 < first.units <= MOST_CORRECTED  # beyond, the bootstrap is as good, and exchanging takes minutes
        self.p = exchanged_p(self.point, self.drawn.left_out, seed=seed) if few else {}
        self.p |= linear_p(first, second, seed=seed) if few else {}

    def all(self) -> Iterator[Difference]:
        for name in FIGURES:
            yield self._one(name, float(self.point[name][0]))

    def _one(self, name: str, value: float) -> Difference:
        n = images_behind(self.scored, name)
        if np.isnan(value):
            missing = Estimate(
                None, None, n, "none", "the figure is undefined for these images or one of the models"
            )
            return Difference(name, missing, "none", None)
        samples = self.drawn.samples.get(name)
        estimate = doubted(
            self.drawn.estimate(value, n, samples, self.drawn.left_out.get(name)),
            intervals.few(units_behind(self.scored, name)),
        )
        if samples is None:
            return Difference(name, estimate, "none", None)
        kept = samples[np.isfinite(samples)]
        needed = power.scaled_need(n, value, float(kept.std())) if len(kept) else None
        if name in self.p:
            return Difference(name, estimate, EXCHANGED, self.p[name], needed=needed)
        if self.scored.units <= MOST_CORRECTED:  # with one unit less it may not exist: nothing to exchange
            return Difference(name, estimate, "none", None)
        return Difference(name, estimate, BOOTSTRAP, bootstrap_p(kept), needed=needed)


def linear_p(first: Scored, second: Scored, *, seed: int) -> dict[str, float]:
    """Return the two-sided p of no difference in every figure that is a mean of per-image terms: exact."""
    found = terms(first, second)
    sums = [np.bincount(first.groups, weights=column, minlength=first.units) for column in found.values()]
    values = np.column_stack(sums).astype(np.float64)
    values[np.abs(values) < ROUNDING / first.units] = 0.0
    return dict(zip(found, paired_tests.sign_flips(values, seed=seed).tolist(), strict=True))


def terms(first: Scored, second: Scored) -> dict[str, Floats]:
    """Return figure -> what each image adds to its difference, (N,); figures without images are left out."""
    true, n, k = first.true, len(first.true), len(first.classes)
    hit = (first.predicted == true).astype(np.float64) - (second.predicted == true)
    called = first.malignant[first.predicted].astype(np.float64) - second.malignant[second.predicted]
    counts = np.bincount(true, minlength=k)
    loss = [probabilistic.log_loss_terms(true, model.probabilities) for model in (first, second)]
    brier = [probabilistic.brier_terms(true, model.probabilities) for model in (first, second)]
    found = {"accuracy": hit / n, "loss": (loss[0] - loss[1]) / n, "brier": (brier[0] - brier[1]) / n}
    if counts.all():
        found["balanced_accuracy"] = hit / (k * counts[true])
    positive = first.is_malignant
    for name, rows, sign in (("sensitivity", positive, 1.0), ("specificity", ~positive, -1.0)):
        if first.has_binary_view and rows.any():
            found[name] = np.where(rows, sign * called / rows.sum(), 0.0)
    return found


def exchanged_p(point: Named, left_out: Named, *, seed: int) -> dict[str, float]:
    """Return the two-sided p of no difference for figures that are no means, where they exist without any one unit.

    point: name -> (1,) the difference; left_out: name -> (G,) the same without each unit. A unit's part is the
    difference plus (G - 1) times what is lost without it (Tukey's pseudo-value, centred).
    """
    names = [
        name for name, without in left_out.items() if np.isfinite(without).all() and np.isfinite(point[name][0])
    ]
    if not names:
        return {}
    without = np.column_stack([left_out[name] for name in names])
    values = (len(without) - 1) * (without.mean(axis=0) - without)
    values += np.array([point[name][0] for name in names])
    values[:, np.abs(values).max(axis=0) < ROUNDING] = 0.0
    return dict(zip(names, paired_tests.sign_flips(values, seed=seed).tolist(), strict=True))


def bootstrap_p(samples: Floats) -> float:
    """Return the two-sided p of no difference: twice the share of resamples on the wrong side, ties half."""
    if not len(samples):
        return 1.0
    below = float((samples < 0).sum() + 0.5 * (samples == 0).sum())
    return min(1.0, 2 * (min(below, len(samples) - below) + 1) / (len(samples) + 1))


def _gap(first: Figures, second: Figures) -> dict[str, Floats]:
    one, other = figures_compared(first), figures_compared(second)
    return {name: one[name] - other[name] for name in FIGURES}
