"""How well some columns alone, without the image, predict each class: cross-validated AUROC.

One small forest per fold scores every class. It needs no tuning and finds signals that are not monotone (a class with
1022 x 767 pixels between smaller and larger ones). Boosted trees were no better on three public sets and slower with
many classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

from dermkit.audit.checks.finding import AuditInput, alpha_per_test
from dermkit.data.stratify import stratified_group_split
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.fold_auroc import FoldAuroc, fold_auroc
from dermkit.metrics.stats.power import effective_sample_size

_N_FOLDS = 5
MIN_IMAGES = 20
"""Fewest images of a class and of the rest: with fewer, intervals cannot tell a perfect predictor from a good one."""

MIN_CLASS_GROUPS = 10
"""Effective number of groups (lesion, patient, duplicates) that both need: two per fold. With a few groups that hold
nearly all photographs a signal would be found by chance."""

MAX_SAMPLE = 20_000
"""Most images used; more would cost time and narrow an interval that is narrow already."""

MIN_CLASS_SAMPLE = 500
"""Images of a small class that a sample retains."""

FOREST_TREES = 60
MIN_LEAF_GROUPED = 20
MIN_LEAF_UNGROUPED = 40
"""Fewest images in a leaf, with and without known lesions or patients: without, a forest must not memorise the siblings
of an image. Of 40 synthetic tables without a signal and with hidden siblings, 18 had a finding in their metadata with
leaves of 10, 6 with 20 and 2 with 40; real classes were predicted as well with 40 as with 10."""

LEAF_FRACTION_BOUNDS = (1 / 400, 1 / 16)
"""Smallest leaf as a fraction of the images: never below the first; the defaults above never above the second."""

MIN_KNOWN_FRACTION = 0.9
"""Fraction of images with a lesion or patient id from which siblings count as grouped."""

MAX_CATEGORIES = 30
_SEED = 20180161  # any; fixed, so that the same data always get the same answer


@dataclass(frozen=True, eq=False)
class ClassPredictability:
    """How well the columns predict one class.

    rows: (n,) row numbers of the class's images. placement_values: (n,) fraction of the other images in
    its fold that each is ranked above. ci95: of the AUROC. lower_bound: adjusted for all classes and checks.
    """

    name: str
    rest_name: str
    rows: Ints
    placement_values: Floats
    auroc: float
    ci95: tuple[float, float]
    lower_bound: float


@dataclass(frozen=True, eq=False)
class Predictability:
    """classes: best predicted first. skipped_classes: with too few images. rows: (n,) images used, of `n_images`."""

    classes: tuple[ClassPredictability, ...]
    skipped_classes: tuple[str, ...]
    rows: Ints
    n_images: int

    @property
    def n(self) -> int:
        """The number of images used."""
        return len(self.rows)


def class_predictability(audit_input: AuditInput, columns: pd.DataFrame) -> Predictability:
    """Return how well `columns` (one row per image: numbers with NaN, texts with "") predict every class.

    Images without any known value are left out. Of two classes only one is tested.
    """
    rows = _sample(audit_input, np.flatnonzero(_is_known(columns)))
    label = _labels(audit_input, rows)
    names = audit_input.dataset.class_names
    group_ids = audit_input.group_ids[rows]
    tested_codes = [code for code in range(len(names)) if _has_enough(label == code, group_ids)]
    skipped_classes = tuple(name for code, name in enumerate(names) if code not in tested_codes)
    present_codes = np.unique(label)
    if len(present_codes) == 2 and len(tested_codes) == 2:
        tested_codes = [_positive_class(audit_input, tested_codes)]
    if not tested_codes:
        return Predictability((), skipped_classes, rows, len(columns))
    fold = stratified_group_split(label, group_ids, [1 / _N_FOLDS] * _N_FOLDS, _SEED)
    leaf = min_leaf(len(rows), MIN_LEAF_GROUPED if is_grouped(audit_input) else MIN_LEAF_UNGROUPED)
    scores = _cross_validated_scores(encode(columns.iloc[rows]), label, fold, n_classes=len(names), leaf=leaf)
    level = 1 - 2 * alpha_per_test(len(tested_codes))
    results = []
    for code in tested_codes:
        other_names = [names[other_code] for other_code in present_codes if other_code != code]
        rest_name = other_names[0] if len(other_names) == 1 else "the rest"
        class_auroc = fold_auroc(scores[:, code], label == code, groups=group_ids, folds=fold)
        results.append(_to_class_predictability((names[code], rest_name), class_auroc, rows, label == code, level))
    return Predictability(
        tuple(sorted(results, key=lambda result: -result.lower_bound)), skipped_classes, rows, len(columns)
    )


def _to_class_predictability(
    class_names: tuple[str, str], class_auroc: FoldAuroc, rows: Ints, in_class: NDArray[np.bool_], level: float
) -> ClassPredictability:
    return ClassPredictability(
        *class_names,
        rows[in_class],
        class_auroc.placement_values[in_class],
        class_auroc.auroc,
        class_auroc.interval(),
        class_auroc.interval(level)[0],
    )


def is_grouped(audit_input: AuditInput) -> bool:
    """Return whether nearly every image has a lesion or patient id, so that siblings are in one fold."""
    is_known = (audit_input.frame["lesion_id"] != "") | (audit_input.frame["patient_id"] != "")
    return bool(is_known.mean() >= MIN_KNOWN_FRACTION)


def _is_known(columns: pd.DataFrame) -> NDArray[np.bool_]:
    """Return flags of the images with any known value."""
    known_columns = [(columns[name] != "") & columns[name].notna() for name in columns]
    return np.asarray(pd.concat(known_columns, axis=1).any(axis=1), dtype=bool)


def _labels(audit_input: AuditInput, rows: Ints) -> Ints:
    codes = pd.Categorical(audit_input.frame["label"].iloc[rows], audit_input.dataset.class_names).codes
    return np.asarray(codes, dtype=np.int64)


def _positive_class(audit_input: AuditInput, tested_codes: Sequence[int]) -> int:
    """Return the positive one of two classes: the malignant one, or else the second."""
    malignant = [
        code
        for code in tested_codes
        if audit_input.dataset.class_names[code] in audit_input.dataset.malignant_classes
    ]
    return malignant[0] if len(malignant) == 1 else tested_codes[-1]


def _has_enough(in_class: NDArray[np.bool_], group_ids: Ints) -> bool:
    class_and_rest = (in_class, ~in_class)
    return all(
        subset.sum() >= MIN_IMAGES and effective_sample_size(group_ids[subset]) >= MIN_CLASS_GROUPS
        for subset in class_and_rest
    )


def _sample(audit_input: AuditInput, rows: Ints) -> Ints:
    """Return about `MAX_SAMPLE` rows at most, stratified by class; small classes retain `MIN_CLASS_SAMPLE`."""
    if len(rows) <= MAX_SAMPLE:
        return rows
    rng = np.random.default_rng(_SEED)
    label = _labels(audit_input, rows)
    samples = []
    for code in np.unique(label):
        class_rows = rows[label == code]
        sample_size = max(MIN_CLASS_SAMPLE, math.floor(len(class_rows) * MAX_SAMPLE / len(rows)))
        samples.append(
            class_rows if sample_size >= len(class_rows) else rng.choice(class_rows, sample_size, replace=False)
        )
    return np.sort(np.concatenate(samples))


def encode(columns: pd.DataFrame) -> NDArray[np.float32]:
    """Return features for trees, (N, F) float32: unknown numbers below all others, texts as indicators."""
    blocks = [
        _encode_texts(columns[name]) if _is_text(columns[name]) else _encode_numbers(columns[name])
        for name in columns
    ]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _is_text(values: "pd.Series[Any]") -> bool:
    return not pd.api.types.is_numeric_dtype(values)


def _encode_numbers(values: "pd.Series[float]") -> Floats:
    numbers = values.to_numpy(dtype=np.float64)[:, None]
    finite = numbers[np.isfinite(numbers)]
    missing_value = finite.min() - 1.0 - np.ptp(finite) if len(finite) else 0.0
    return np.where(np.isfinite(numbers), numbers, missing_value)


def _encode_texts(values: "pd.Series[str]") -> Floats:
    """Return an indicator of each of the commonest texts, and the frequency of a text, which groups the rare ones."""
    counts = values.astype(str).value_counts()
    common = sorted(counts.index, key=lambda text: (-counts[text], text))[:MAX_CATEGORIES]
    texts = values.astype(str).to_numpy()
    flags = [texts == text for text in common]
    frequency = values.astype(str).map(counts).to_numpy() / len(texts)
    return np.stack([*flags, frequency], axis=1).astype(np.float64)


def min_leaf(n: int, default_size: int) -> int:
    """Return the fewest images in a leaf of a forest of n images: the default, within `LEAF_FRACTION_BOUNDS` of n."""
    lower, upper = (round(n * fraction) for fraction in LEAF_FRACTION_BOUNDS)
    return max(lower, min(default_size, upper), 1)


def _cross_validated_scores(
    features: NDArray[np.float32], label: Ints, fold: Ints, *, n_classes: int, leaf: int
) -> Floats:
    """Return out-of-fold scores (N, n_classes): of forests trained on other groups."""
    scores = np.zeros((len(label), n_classes))
    if not (features != features[0]).any():
        return scores
    for fold_number in range(_N_FOLDS):
        is_training, is_held_out = fold != fold_number, fold == fold_number
        if not is_held_out.any() or not is_training.any():
            continue
        forest = ExtraTreesClassifier(FOREST_TREES, min_samples_leaf=leaf, max_features=None, random_state=_SEED)
        forest.fit(features[is_training], label[is_training])
        scores[np.ix_(is_held_out, forest.classes_)] = forest.predict_proba(features[is_held_out])
    return scores
