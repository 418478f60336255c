"""Image-blind rules: what can be answered without looking at the lesion, as small classifiers beside the net.

Each is fitted on the training images of the run alone, as the net is, and scores just the images that the net scores.
But for the first and that of mean colour, each is a logistic regression or a forest, whichever is better in a
cross-validation of the training images by group (lesion, patient, copies); classes count alike in both, so that a
rule's labels reach the best balanced accuracy that it has.

Shapes: T training images, M scored images, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dermkit.audit.checks.predictability import FOREST_TREES, MIN_LEAF_GROUPED, min_leaf
from dermkit.data.groups import leakage_groups
from dermkit.data.manifest import Dataset
from dermkit.data.stratify import stratified_group_split
from dermkit.evaluation.blind_features import file_columns, pixel_columns
from dermkit.evaluation.colour_baseline import predict_by_colour
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.recipes.training_specs import METADATA_FIELDS
from dermkit.runs.image_blind import MEAN_COLOUR

if TYPE_CHECKING:
    from dermkit.data.cache.pixels import PixelCache

MIN_TRAINING_IMAGES = 20
MIN_TRAINING_GROUPS = 10
"""Fewest training images, and groups of them, of a rule: with fewer it would learn them by heart."""

MAX_TRAINING_IMAGES = 20_000
"""Training images used; more would cost time and change little in rules with so few columns."""

_N_FOLDS = 5
_MAX_CATEGORIES = 30
_ITERATIONS = 2000
_SEED = 20181601  # any; fixed, so that the same data always get the same rules
_LEAST_PROBABILITY = 1e-6

LOGISTIC, FOREST = "logistic regression", "forest"


@dataclass(frozen=True, eq=False)
class BlindRules:
    """What the rules say of the scored images.

    probabilities: rule -> (M, K). classifiers: rule -> what was fitted. n_train: images that they were fitted on.
    not_applicable: rule -> why there is none.
    """

    probabilities: Mapping[str, Floats]
    classifiers: Mapping[str, str]
    n_train: int
    not_applicable: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the body of image_blind_rules.json."""
        rules = {name: {"classifier": text, "n_train": self.n_train} for name, text in self.classifiers.items()}
        return {"rules": rules, "not_applicable": dict(self.not_applicable)}


def predict_by_rules(
    dataset: Dataset,
    pixels: "PixelCache",
    *,
    train_ids: Sequence[str],
    score_ids: Sequence[str],
    class_names: Sequence[str],
) -> BlindRules:
    """Fit every rule that applies on the training images; returns what it says of the images to score.

    Nothing of another image is used: neither its label nor its columns. Deterministic. A class without training images
    gets probability 0.
    """
    labels = _labels(dataset, train_ids, class_names)
    rows = [np.array([pixels.index[name] for name in ids], dtype=np.int64) for ids in (train_ids, score_ids)]
    probabilities = {"majority": _constant(labels, len(score_ids), len(class_names))}
    classifiers, not_applicable = {"majority": "constant"}, {}
    if len(labels):
        labels_by_row = np.full(len(pixels.pixels), -1)
        labels_by_row[rows[0]] = labels
        probabilities[MEAN_COLOUR] = predict_by_colour(
            pixels.pixels, labels_by_row, train_rows=rows[0], score_rows=rows[1], n_classes=len(class_names)
        )
        classifiers[MEAN_COLOUR] = LOGISTIC
    chosen = _training_sample(len(train_ids))
    group_ids = pd.Series(leakage_groups(dataset.manifest), index=dataset.manifest["image_id"])
    groups = group_ids.loc[list(train_ids)].to_numpy(dtype=np.int64)[chosen]
    problem = _training_problem(labels[chosen], groups)
    for name, train, score in _columns(dataset, pixels, [list(train_ids), list(score_ids)], rows):
        reason = problem or _column_problem(name, train, score)
        if reason:
            not_applicable[name] = reason
            continue
        rule = FittedRule.fit(train.iloc[chosen], labels[chosen], groups)
        probabilities[name] = rule.predict(score, len(class_names))
        classifiers[name] = rule.classifier
    return BlindRules(probabilities, classifiers, len(chosen), not_applicable)


def _labels(dataset: Dataset, image_ids: Sequence[str], class_names: Sequence[str]) -> Ints:
    labels = dataset.manifest.set_index("image_id")["label"].loc[list(image_ids)]
    return np.asarray(pd.Index(list(class_names)).get_indexer(pd.Index(labels)), dtype=np.int64)


def _constant(labels: Ints, n: int, n_classes: int) -> Floats:
    """Return the class frequencies of the training images, (n, K)."""
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    return np.tile(counts / counts.sum() if counts.any() else np.full(n_classes, 1 / n_classes), (n, 1))


def _training_sample(n: int) -> Ints:
    if n <= MAX_TRAINING_IMAGES:
        return np.arange(n)
    return np.sort(np.random.default_rng(_SEED).choice(n, MAX_TRAINING_IMAGES, replace=False))


def _training_problem(labels: Ints, groups: Ints) -> str:
    if len(labels) < MIN_TRAINING_IMAGES or len(np.unique(groups)) < MIN_TRAINING_GROUPS:
        return (
            f"{len(labels)} training images in {len(np.unique(groups))} groups are too few: a rule needs "
            f"{MIN_TRAINING_IMAGES} in {MIN_TRAINING_GROUPS}"
        )
    return "the training images are of one class" if len(np.unique(labels)) < 2 else ""


# What a rule sees -------------------------------------------------------------------------------------------------


def _columns(
    dataset: Dataset, pixels: "PixelCache", ids: Sequence[list[str]], rows: Sequence[Ints]
) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Yield name, columns of the training images and columns of the scored images of each rule that sees some."""
    n_train, all_ids = len(ids[0]), [*ids[0], *ids[1]]
    manifest = dataset.manifest.set_index("image_id").loc[all_ids]
    metadata = manifest[list(METADATA_FIELDS)].assign(age=pd.to_numeric(manifest["age"], errors="coerce"))
    seen = pixel_columns(pixels.pixels, np.concatenate(rows))
    tables = {
        "metadata": metadata,
        "source": manifest[["source"]],
        "file": file_columns(dataset, all_ids),
        "border": pd.DataFrame(seen.border),
        "colour_histogram": pd.DataFrame(seen.histogram),
    }
    for name, table in tables.items():
        columns = table.rename(columns=str).reset_index(drop=True)
        yield name, columns.iloc[:n_train], columns.iloc[n_train:]


def _column_problem(name: str, train: pd.DataFrame, score: pd.DataFrame) -> str:
    """Return why a rule does not apply to these columns, "" where it does."""
    if name == "file":
        is_unread = pd.concat([train["bytes"], score["bytes"]]).isna()
        if is_unread.any():
            return f"{int(is_unread.sum())} of {len(is_unread)} image files could not be read"
    is_known = [(train[column] != "") & train[column].notna() for column in train]
    if not any(known.any() for known in is_known):
        return {
            "metadata": "age, sex and site of the training images are not known",
            "source": "the source of the training images is not known",
        }.get(name, "nothing is known of the training images")
    if all(train[column].nunique(dropna=False) < 2 for column in train):
        return {"source": "the training images are of one source"}.get(
            name, "the training images do not differ in it"
        )
    return ""


# Classifiers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FittedRule:
    """A fitted rule. classifier: its kind."""

    classifier: str
    pipeline: Pipeline

    @classmethod
    def fit(cls, columns: pd.DataFrame, labels: Ints, groups: Ints) -> "FittedRule":
        """Fit the better kind of classifier on T images; columns: numbers with NaN, texts with ""; groups: (T,)."""
        losses = {kind: _cross_validated_loss(kind, columns, labels, groups) for kind in (LOGISTIC, FOREST)}
        kind = min(losses, key=lambda name: losses[name])
        return cls(kind, _pipeline(kind, columns).fit(columns, labels))

    def predict(self, columns: pd.DataFrame, n_classes: int) -> Floats:
        """Return probabilities, (M, n_classes), 0 for classes without training images."""
        return _probabilities(self.pipeline, columns, n_classes)


def _pipeline(kind: str, columns: pd.DataFrame) -> Pipeline:
    """Return an unfitted classifier: numbers standardised, unknown ones marked; the commonest texts as indicators."""
    numbers = [name for name in columns if pd.api.types.is_numeric_dtype(columns[name])]
    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    encoder = ColumnTransformer(
        [
            ("numbers", make_pipeline(impute, StandardScaler()), numbers),
            (
                "texts",
                OneHotEncoder(
                    handle_unknown="infrequent_if_exist", max_categories=_MAX_CATEGORIES, sparse_output=False
                ),
                [name for name in columns if name not in numbers],
            ),
        ]
    )
    classifier = (
        LogisticRegression(max_iter=_ITERATIONS, class_weight="balanced")
        if kind == LOGISTIC
        else ExtraTreesClassifier(
            FOREST_TREES, min_samples_leaf=min_leaf(len(columns), MIN_LEAF_GROUPED), class_weight="balanced",
            random_state=_SEED,
        )
    )  # fmt: skip
    return make_pipeline(encoder, classifier)


def _probabilities(pipeline: Pipeline, columns: pd.DataFrame, n_classes: int) -> Floats:
    p = np.zeros((len(columns), n_classes))
    p[:, pipeline.classes_] = pipeline.predict_proba(columns)
    return p


def rule_folds(labels: Ints, groups: Ints) -> Ints:
    """Return the fold of each training image, (T,), by which a rule's classifier is chosen; groups stay whole."""
    return stratified_group_split(labels, groups, [1 / _N_FOLDS] * _N_FOLDS, _SEED)


def _cross_validated_loss(kind: str, columns: pd.DataFrame, labels: Ints, groups: Ints) -> float:
    """Return the log loss of images held out by group, the mean over classes."""
    fold, n_classes = rule_folds(labels, groups), int(labels.max()) + 1
    p_true = np.full(len(labels), 1 / n_classes)
    for number in range(_N_FOLDS):
        is_held_out = fold == number
        if not is_held_out.any() or len(np.unique(labels[~is_held_out])) < 2:
            continue
        pipeline = _pipeline(kind, columns).fit(columns[~is_held_out], labels[~is_held_out])
        p = _probabilities(pipeline, columns[is_held_out], n_classes)
        p_true[is_held_out] = p[np.arange(len(p)), labels[is_held_out]]
    losses = -np.log(np.maximum(p_true, _LEAST_PROBABILITY))
    return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))
