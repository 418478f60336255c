"""How well one class is told from the rest by some columns alone, without a look at the lesion: cross-validated.

One small forest per fold gives every class its score. It needs no tuning and finds signals that are not monotone
(a class with 1022 x 767 pixels between smaller and larger ones). Boosted trees were no better on three public sets
and slower with many classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

from dermkit.audit.checks.finding import Subject, share_of_alpha
from dermkit.data.stratify import divide
from dermkit.metrics.stats.fold_auroc import Placed, placed
from dermkit.metrics.stats.power import effective_size

FOLDS = 5
FEWEST_IMAGES = 20
"""Images that a class, and the rest, must have: with fewer even a perfect rule is hardly told from a good one."""

FEWEST_UNITS = 10
"""Lesions (or what else belongs together) that both must have: two for each fold. It is their effective number: a few
with nearly all photographs would be found to have a signal by chance."""

MOST_IMAGES = 20_000
"""Images that are looked at; more would cost time and narrow an interval that is narrow already."""

LEAST_OF_CLASS = 500
"""Images of a small class that a sample keeps."""

TREES = 60
LEAF = 20
LEAF_UNKNOWN = 40
"""Images in a leaf at least, where lesions or patients are known and where they are not: there a forest must not learn
the siblings of an image by heart. Of 40 made tables without a signal whose siblings were hidden, 18 were found to have
one in their metadata with leaves of 10, 6 with 20 and 2 with 40; real classes were told as well with 40 as with 10."""

LEAF_SHARE = (1 / 400, 1 / 16)
"""A leaf is at least this share of the images, and the numbers above are no more than that share of a small set."""

KNOWN = 0.9
"""Share of the images with a lesion or patient id above which siblings count as kept together."""

MOST_CATEGORIES = 30
SEED = 20180161  # any; fixed, so that the same data always get the same answer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassSignal:
    """What the columns know about one class.

    rows: the class's images (row numbers of the subject); outranks: share of the other images that each stands above.
    ci95: of the AUROC; lower: the bound that decides, adjusted for all classes and checks.
    """

    name: str
    rest: str
    rows: Ints
    outranks: Floats
    auroc: float
    ci95: tuple[float, float]
    lower: float


@dataclass(frozen=True, eq=False)
class Signal:
    """classes: from the best told to the worst. skipped: classes with too few images.

    rows: the images looked at (row numbers), of `of`.
    """

    classes: tuple[ClassSignal, ...]
    skipped: tuple[str, ...]
    rows: Ints
    of: int

    @property
    def n(self) -> int:
        """The number of images looked at."""
        return len(self.rows)


def look(subject: Subject, columns: pd.DataFrame) -> Signal:
    """Return the signal of `columns` (one row per image: numbers with NaN, texts with "") for every class.

    Images of which nothing is known are left out. Of two classes only one is tested: the other is its mirror.
    """
    rows = _sample(subject, np.flatnonzero(_known(columns)))
    label = _labels(subject, rows)
    names = subject.dataset.class_names
    units = subject.units[rows]
    tested = [code for code in range(len(names)) if _is_enough(label == code, units)]
    skipped = tuple(name for code, name in enumerate(names) if code not in tested)
    present = np.unique(label)
    if len(present) == 2 and len(tested) == 2:
        tested = [_positive(subject, tested)]
    if not tested:
        return Signal((), skipped, rows, len(columns))
    fold = divide(label, units, [1 / FOLDS] * FOLDS, SEED)
    leaf = _leaf(len(rows), LEAF if is_grouped(subject) else LEAF_UNKNOWN)
    scores = _scores(encode(columns.iloc[rows]), label, fold, classes=len(names), leaf=leaf)
    level = 1 - 2 * share_of_alpha(len(tested))
    found = []
    for code in tested:
        others = [names[other] for other in present if other != code]
        rest = others[0] if len(others) == 1 else "the rest"
        one = placed(scores[:, code], label == code, units=units, fold=fold)
        found.append(_class_signal((names[code], rest), one, rows, label == code, level))
    return Signal(tuple(sorted(found, key=lambda item: -item.lower)), skipped, rows, len(columns))


def _class_signal(
    words: tuple[str, str], one: Placed, rows: Ints, mine: NDArray[np.bool_], level: float
) -> ClassSignal:
    return ClassSignal(*words, rows[mine], one.outranks[mine], one.auroc, one.interval(), one.interval(level)[0])


def is_grouped(subject: Subject) -> bool:
    """Say whether the lesion or the patient of nearly every image is known, so that siblings are kept together."""
    known = (subject.frame["lesion_id"] != "") | (subject.frame["patient_id"] != "")
    return bool(known.mean() >= KNOWN)


def _known(columns: pd.DataFrame) -> NDArray[np.bool_]:
    """Say of which images something is known."""
    known = [(columns[name] != "") & columns[name].notna() for name in columns]
    return np.asarray(pd.concat(known, axis=1).any(axis=1), dtype=bool)


def _labels(subject: Subject, rows: Ints) -> Ints:
    codes = pd.Categorical(subject.frame["label"].iloc[rows], subject.dataset.class_names).codes
    return np.asarray(codes, dtype=np.int64)


def _positive(subject: Subject, tested: Sequence[int]) -> int:
    """Return which of two classes is called the positive one: the malignant one, or else the second."""
    malignant = [code for code in tested if subject.dataset.class_names[code] in subject.dataset.malignant]
    return malignant[0] if len(malignant) == 1 else tested[-1]


def _is_enough(mine: NDArray[np.bool_], units: Ints) -> bool:
    sides = (mine, ~mine)
    return all(side.sum() >= FEWEST_IMAGES and effective_size(units[side]) >= FEWEST_UNITS for side in sides)


def _sample(subject: Subject, rows: Ints) -> Ints:
    """Return at most about `MOST_IMAGES` rows, each class by its share; a small class keeps `LEAST_OF_CLASS`."""
    if len(rows) <= MOST_IMAGES:
        return rows
    rng = np.random.default_rng(SEED)
    label = _labels(subject, rows)
    drawn = []
    for code in np.unique(label):
        mine = rows[label == code]
        wanted = max(LEAST_OF_CLASS, math.floor(len(mine) * MOST_IMAGES / len(rows)))
        drawn.append(mine if wanted >= len(mine) else rng.choice(mine, wanted, replace=False))
    return np.sort(np.concatenate(drawn))


def encode(columns: pd.DataFrame) -> NDArray[np.float32]:
    """Return numbers that trees can read: unknown numbers below all others, texts as flags of the commonest."""
    parts = [_flags(columns[name]) if _is_text(columns[name]) else _number(columns[name]) for name in columns]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _is_text(values: "pd.Series[Any]") -> bool:
    return not pd.api.types.is_numeric_dtype(values)


def _number(values: "pd.Series[float]") -> Floats:
    numbers = values.to_numpy(dtype=np.float64)[:, None]
    known = numbers[np.isfinite(numbers)]
    below = known.min() - 1.0 - np.ptp(known) if len(known) else 0.0
    return np.where(np.isfinite(numbers), numbers, below)


def _flags(values: "pd.Series[str]") -> Floats:
    """Return a flag for each of the commonest texts, and how common a text is, which groups the rare ones."""
    counts = values.astype(str).value_counts()
    common = sorted(counts.index, key=lambda text: (-counts[text], text))[:MOST_CATEGORIES]
    texts = values.astype(str).to_numpy()
    flags = [texts == text for text in common]
    how_common = values.astype(str).map(counts).to_numpy() / len(texts)
    return np.stack([*flags, how_common], axis=1).astype(np.float64)


def _leaf(n: int, usual: int) -> int:
    least, most = (round(n * share) for share in LEAF_SHARE)
    return max(least, min(usual, most), 1)


def _scores(features: NDArray[np.float32], label: Ints, fold: Ints, *, classes: int, leaf: int) -> Floats:
    """Return (N, classes) scores, each image's from a forest that saw neither it nor what belongs to it."""
    scores = np.zeros((len(label), classes))
    if not (features != features[0]).any():
        return scores
    for number in range(FOLDS):
        away, here = fold != number, fold == number
        if not here.any() or not away.any():
            continue
        forest = ExtraTreesClassifier(TREES, min_samples_leaf=leaf, max_features=None, random_state=SEED)
        forest.fit(features[away], label[away])
        scores[np.ix_(here, forest.classes_)] = forest.predict_proba(features[here])
    return scores
