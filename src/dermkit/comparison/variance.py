"""Several trainings of two recipes: what trainings move, what test images move, and a difference that minds both.

A figure of one training strays for two reasons: another training of the recipe on the same images gives another one,
and so do other images. A test that minds one of the two finds differences that are not there (`benchmarks/repeats.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit
from scipy.stats import norm, t

from dermkit.metrics.stats.arrays import Floats

LEVEL = 0.95
ROUNDING = 1e-15
ENOUGH = 10_000_000
"""Images beyond which no number is named."""


@dataclass(frozen=True)
class Sources:
    """One figure of several trainings of a recipe on the same images, and what moves it, as standard deviations.

    between: plain deviation of the trainings' values, which another training on these images adds. seed: the same
    without what the images' chance puts into it, so that on endless images it would be this. data: of one training's
    value over other images. between and seed are None for a single training, data for a single unit. units:
    independent observations that carry the figure, 0 where it is not known.
    """

    values: tuple[float, ...]
    between: float | None
    seed: float | None
    data: float | None
    units: int = 0

    @property
    def mean(self) -> float:
        """Return the mean over the trainings."""
        return math.fsum(self.values) / len(self.values)

    @property
    def runs(self) -> int:
        """Return how many trainings there are."""
        return len(self.values)


@dataclass(frozen=True)
class Apart:
    """Mean of the first recipe's trainings less that of the second's.

    error: its standard error over new trainings and new images; images, seeds: the two parts of it, as errors too;
    df, p: of the t test; p is None where nothing varies and yet they differ. borrowed: a recipe was trained once and
    its spread over seeds was taken from the other. parts: the variances with their own degrees of freedom, where one
    number of them for their sum would promise too much; empty where df holds.
    """

    value: float
    error: float
    images: float
    seeds: float
    df: float
    p: float | None
    borrowed: bool = False
    parts: tuple[tuple[float, float], ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval, None where nothing varies."""
        if self.error <= 0:
            return None
        half = reach(self.parts or ((self.error**2, self.df),), 1 - LEVEL)
        return self.value - half, self.value + half


def sources(values: Floats, drawn: Floats) -> Sources:
    """Part the spread of any figure: (S,) values of S trainings, (S, B) the same on B resamples of the images.

    Every resample has the same images for all trainings. What trainings do to single images, and the images then
    average, shows as spread of the values beside their mean over resamples; a two-way table without repetition gives
    the same for a mean figure (`paired.spread_of`).
    """
    s = len(values)
    data = math.sqrt(float(drawn.var(axis=1).mean())) if drawn.shape[1] > 1 else None
    if s < 2:
        return Sources(tuple(values.tolist()), None, None, data)
    between = float(values.var(ddof=1))
    seed = math.sqrt(max(0.0, between - _noise(drawn)))
    return Sources(tuple(values.tolist()), math.sqrt(between), seed, data)


def reach(parts: Sequence[tuple[float, float]], alpha: float) -> float:
    """Return how far chance takes a sum of independent parts at most, but for a share `alpha`; two-sided.

    parts: the variance of each and its degrees of freedom. Each counts with its own quantile of t (Banerjee 1960,
    Sankhya 22:357): a part known from two trainings may be small by chance, and then says nothing of that.
    """
    return math.sqrt(math.fsum(variance * float(stdtrit(df, alpha / 2)) ** 2 for variance, df in parts))


def _p_of(value: float, parts: Sequence[tuple[float, float]]) -> float:
    """Return the share `alpha` at which the reach is just the value."""
    least, most = -230.0, 0.0  # of log(alpha), over which the reach falls
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (middle, most) if reach(parts, math.exp(middle)) > abs(value) else (least, middle)
    return math.exp(most)


def _noise(drawn: Floats) -> float:
    """Return the variance that images add to the differences between trainings of one recipe."""
    s, b = drawn.shape
    return 0.0 if b < 2 else float((drawn - drawn.mean(axis=0)).var(axis=1).mean()) * s / (s - 1)


def apart(first: tuple[Sources, Floats], second: tuple[Sources, Floats], *, units: int) -> Apart | None:
    """Set two recipes' trainings against each other; each with its (S, B) values on the same resamples of images.

    The variance is that of the difference of means over images, and of each recipe's trainings divided by their
    number; degrees of freedom by Satterthwaite. units: independent observations that carry the figure. A recipe that
    was trained once is one draw of a spread that is taken to be the other's (Crawford and Howell 1998, The Clinical
    Neuropsychologist 12:482): of the plain spread on these images, and images and trainings each with their own
    degrees of freedom. None where neither was trained twice or there is one unit: then nothing says how far the
    difference strays.
    """
    (one, drawn_one), (other, drawn_other) = first, second
    if (one.runs < 2 and other.runs < 2) or units < 2 or drawn_one.shape[1] < 2:
        return None
    value = one.mean - other.mean
    # A bootstrap of G units is too narrow by one of them.
    images = float((drawn_one.mean(axis=0) - drawn_other.mean(axis=0)).var()) * units / (units - 1)
    parts = [images**2 / (units - 1)]
    seeds, borrowed = 0.0, min(one.runs, other.runs) < 2
    for item, weight in _weights(one, other):
        # Estimated by subtraction it is often 0; the one draw of a borrowed spread then strays further than is said.
        seeds += ((item.between if borrowed else item.seed) or 0.0) ** 2 * weight
        parts.append(((item.between or 0.0) ** 2 * weight) ** 2 / (item.runs - 1))
    variance = images + seeds
    if variance <= ROUNDING**2:
        return Apart(value, 0.0, 0.0, 0.0, math.inf, 1.0 if abs(value) <= ROUNDING else None, borrowed)
    if borrowed:
        runs = max(one.runs, other.runs)
        apart_of = ((images, units - 1.0), (seeds, runs - 1.0))
        errors = math.sqrt(variance), math.sqrt(images), math.sqrt(seeds)
        return Apart(value, *errors, runs - 1.0, _p_of(value, apart_of), borrowed, apart_of)
    df = max(1.0, variance**2 / math.fsum(parts))
    error = math.sqrt(variance)
    p = float(2 * t.sf(abs(value) / error, df))
    return Apart(value, error, math.sqrt(images), math.sqrt(seeds), df, p, borrowed)


def _weights(one: Sources, other: Sources) -> list[tuple[Sources, float]]:
    """Return each recipe whose spread over seeds is known, and how often its variance counts."""
    if one.runs < 2:
        return [(other, 1 + 1 / other.runs)]
    if other.runs < 2:
        return [(one, 1 + 1 / one.runs)]
    return [(one, 1 / one.runs), (other, 1 / other.runs)]


def images_needed(found: Apart, n: int, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return how many images would show this difference with these trainings; None where no number of images would.

    Only the images' part of the variance falls with their number.
    """
    left = _left_to_images(found, alpha, power)
    if left <= 0 or found.images**2 * n > left * ENOUGH:
        return None
    return max(1, math.ceil(n * found.images**2 / left))


def needs_trainings(found: Apart, *, alpha: float = 0.05, power: float = 0.8) -> bool:
    """Tell whether no number of images would show this difference, since so few trainings stray too far."""
    return found.value != 0 and found.seeds > 0 and _left_to_images(found, alpha, power) <= 0


def _left_to_images(found: Apart, alpha: float, power: float) -> float:
    """Return the variance that images may add, the trainings' part taken off."""
    reach = float(norm.isf(alpha / 2) + norm.ppf(power))
    return (found.value / reach) ** 2 - found.seeds**2
