"""Several trainings of two recipes: what trainings move, what test images move, and a difference that minds both.

A figure of one training strays for two reasons: another training of the recipe on the same images gives another one,
and so do other images. A test that minds one of the two finds differences that are not there (`benchmarks/repeats.py`).
"""

import math
from dataclasses import dataclass

from scipy.stats import norm, t

from dermkit.metrics.counts import Floats

LEVEL = 0.95
ROUNDING = 1e-15
ENOUGH = 10_000_000
"""Images beyond which no number is named."""


@dataclass(frozen=True)
class Sources:
    """One figure of several trainings of a recipe on the same images, and what moves it, as standard deviations.

    between: plain deviation of the trainings' values, which another training on these images adds. seed: the same
    without what the images' chance puts into it, so that on endless images it would be this. data: of one training's
    value over other images. between and seed are None for a single training, data for a single unit.
    """

    values: tuple[float, ...]
    between: float | None
    seed: float | None
    data: float | None

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
    df, p: of the t test. borrowed: a recipe was trained once and its spread over seeds was taken from the other.
    """

    value: float
    error: float
    images: float
    seeds: float
    df: float
    p: float
    borrowed: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval, None where nothing varies."""
        if self.error <= 0:
            return None
        half = float(t.isf((1 - LEVEL) / 2, self.df)) * self.error
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


def _noise(drawn: Floats) -> float:
    """Return the variance that images add to the differences between trainings of one recipe."""
    s, b = drawn.shape
    return 0.0 if b < 2 else float((drawn - drawn.mean(axis=0)).var(axis=1).mean()) * s / (s - 1)


def apart(first: tuple[Sources, Floats], second: tuple[Sources, Floats], *, units: int) -> Apart | None:
    """Set two recipes' trainings against each other; each with its (S, B) values on the same resamples of images.

    The variance is that of the difference of means over images, and of each recipe's trainings divided by their
    number; degrees of freedom by Satterthwaite. units: independent observations that carry the figure. A recipe that
    was trained once is one draw of a spread that is taken to be the other's (Crawford and Howell 1998, The Clinical
    Neuropsychologist 12:482). None where neither was trained twice or there is one unit: then nothing says how far
    the difference strays.
    """
    (one, drawn_one), (other, drawn_other) = first, second
    if (one.runs < 2 and other.runs < 2) or units < 2 or drawn_one.shape[1] < 2:
        return None
    value = one.mean - other.mean
    # A bootstrap of G units is too narrow by one of them.
    images = float((drawn_one.mean(axis=0) - drawn_other.mean(axis=0)).var()) * units / (units - 1)
    parts = [images**2 / (units - 1)]
    seeds = 0.0
    for item, weight in _weights(one, other):
        seeds += (item.seed or 0.0) ** 2 * weight
        parts.append(((item.between or 0.0) ** 2 * weight) ** 2 / (item.runs - 1))
    variance, borrowed = images + seeds, min(one.runs, other.runs) < 2
    if variance <= ROUNDING**2:
        same = abs(value) <= ROUNDING
        return Apart(value, 0.0, 0.0, 0.0, math.inf, 1.0 if same else 0.0, borrowed)
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
