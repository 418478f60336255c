"""The same figures for parts of the people: by age, sex, site or skin type, the gaps between them, and what is too few.

A gap between two small groups is nearly always there and nearly always noise, so each comes with its interval, and
groups with few malignant images are shown without a conclusion.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermkit.metrics.classification.scored_set import Scored
from dermkit.metrics.stats.arrays import Ints
from dermkit.metrics.stats.estimate import UNRELIABLE, Estimate, doubted, doubts

FEWEST = 50
"""Malignant lesions (independent units; images where these are not known) below which a group's sensitivity supports no
conclusion; the same for benign ones."""

SHORT = 24
"""Letters of a group's name up to which it stands before a doubt."""

FIGURES = (
    "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "auroc",
)  # fmt: skip
UNKNOWN = "unknown"
AGES = ((0, 29), (30, 44), (45, 59), (60, 74), (75, 150))


@dataclass(frozen=True)
class Subgroup:
    """One part of the images. too_few: "" where conclusions may be drawn, else what is missing."""

    name: str
    n: int
    n_groups: int
    positives: int
    negatives: int
    metrics: Mapping[str, Estimate]
    too_few: str


@dataclass(frozen=True)
class Gap:
    """The best and the worst group in one figure, of those with enough lesions, and how far they lie apart."""

    figure: str
    worst: str
    best: str
    difference: Estimate


def age_band(text: str) -> str:
    """Return the band of an age in years, `unknown` for what is none."""
    try:
        age = float(text)
    except ValueError:
        return UNKNOWN
    for low, high in AGES:
        if low <= age < high + 1:
            return f"{low}+" if high == AGES[-1][1] else f"{low} to {high}"
    return UNKNOWN


def subgroups(
    scored: Scored, labels: Sequence[str], *, summarise: Callable[..., Mapping[str, Any]]
) -> list[Subgroup]:
    """Return the figures of every group, sorted by name, unknown last.

    labels: (N,) the group of every image. summarise: `summary.summarise`, whose figures these are.
    """
    names = sorted(set(labels), key=lambda name: (name == UNKNOWN, name))
    of = np.array(labels, dtype=object)
    parts = [(name, part_of(scored, np.flatnonzero(of == name))) for name in names]
    return [_one(name, part, summarise(part, seed=0, resamples=0)["metrics"]) for name, part in parts]


def part_of(scored: Scored, rows: Ints) -> Scored:
    """Return some of the images as a split of their own."""
    groups = np.unique(scored.groups[rows], return_inverse=True)[1].astype(np.int64)
    return Scored(
        scored.classes,
        scored.malignant,
        scored.true[rows],
        scored.predicted[rows],
        scored.probabilities[rows],
        groups,
    )


def _one(name: str, part: Scored, figures: Mapping[str, Any]) -> Subgroup:
    metrics = {**figures, "balanced_accuracy": figures["recall_macro_present"]}
    positives = int(part.is_malignant.sum())
    negatives = len(part.true) - positives
    unit = "images" if part.independent else "lesions"
    sides = (("malignant", part.is_malignant), ("other", ~part.is_malignant))
    counts = [(side, part.units_in(rows)) for side, rows in sides]
    few = [f"{count} {side} {unit}" for side, count in counts if count < FEWEST]
    return Subgroup(
        name=name,
        n=len(part.true),
        n_groups=part.units,
        positives=positives,
        negatives=negatives,
        metrics={figure: Estimate.from_dict(metrics[figure]) for figure in FIGURES},
        too_few=f"too few to conclude: {' and '.join(few)}, {FEWEST} needed" if few else "",
    )


def gaps(found: Sequence[Subgroup]) -> list[Gap]:
    """Return for each figure the gap between the best and the worst group that have enough lesions; may be empty."""
    enough = [item for item in found if not item.too_few and item.name != UNKNOWN]
    made = []
    for figure in FIGURES:
        having = [item for item in enough if item.metrics[figure].ci95 is not None]
        if len(having) < 2:
            continue
        ordered = sorted(having, key=lambda item: item.metrics[figure].value or 0.0)
        worst, best = ordered[0], ordered[-1]
        gap = apart(best.metrics[figure], worst.metrics[figure], names=(best.name, worst.name))
        made.append(Gap(figure, worst.name, best.name, gap))
    return made


def apart(first: Estimate, second: Estimate, *, names: tuple[str, str] = ("", "")) -> Estimate:
    """Return the difference of two figures of different images, its interval from the interval of each (Newcombe).

    Of the best against the worst of many groups it is too hopeful: with g groups, even equal ones lie apart. What
    makes either interval unreliable is handed on. names: of both, told with it.
    """
    if first.value is None or second.value is None or first.ci95 is None or second.ci95 is None:
        raise ValueError("a gap needs two figures with intervals")
    gap = first.value - second.value
    down = math.hypot(first.value - first.ci95[0], second.ci95[1] - second.value)
    up = math.hypot(first.ci95[1] - first.value, second.value - second.ci95[0])
    made = Estimate(gap, (gap - down, gap + up), first.n + second.n, "difference of independent figures")
    return doubted(made, [*_doubts(first, names[0]), *_doubts(second, names[1])])


def _doubts(estimate: Estimate, name: str) -> list[str]:
    """Return what makes an interval unreliable, with whose it is where that is short."""
    whose = f"{name}: " if name and len(name) <= SHORT and ";" not in name else ""
    return [part.replace(f"{UNRELIABLE}: ", f"{UNRELIABLE}: {whose}", 1) for part in doubts(estimate.reason)]
