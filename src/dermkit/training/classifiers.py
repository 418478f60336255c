"""Classifiers of scikit-learn, fitted on features of the frozen backbone and written into a head's tensors.

Class weights and sampling become weights of the samples, of mean 1. The seed alone decides: gradient boosting runs on
one thread, whose sums always have the same order.

Shapes: N samples (images, views of them, and what SMOTE adds), C features, K classes, P of them with samples.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from dermkit.errors import DermkitError
from dermkit.models.heads import ClassifierHead
from dermkit.recipes.schema import ClassifierSpec
from dermkit.recipes.training_specs import OptimSpec, SmoteSpec
from dermkit.training.augment.batch import class_shares
from dermkit.training.loss import class_weights
from dermkit.training.smote import make_samples

_MAX_ITERATIONS = 2000
"""Steps of logistic regression's solver; on standardised features some hundred are usual."""

_TOLERANCE = 1e-7
"""Largest gradient at the solver's end. At scikit-learn's 1e-4 probabilities of nine classes were 0.006 from the
optimum's (240 samples of 12 features)."""

_N_INNER_FOLDS = 3
"""Folds by group that an SVM's probabilities are fitted on. Chosen, not measured: each costs another fit."""

_EXPORT_TOLERANCE = 1e-4
"""Largest allowed difference of a head's probabilities from scikit-learn's. They differ by the rounding of stored
numbers alone, but trees are read from attributes that scikit-learn may change."""

_N_EXPORT_CHECKS = 500
"""Training samples that both are compared on."""

_SVM_CACHE_MB = 500

_MOST_ROWS_ON_ONE_THREAD = 20_000
"""Training samples up to which a fit's linear algebra runs on one thread. Its steps are so short that threads wait for
each other: on two busy cores 400 rows of 1,280 features took minutes in place of a second."""

_Floats = NDArray[np.float64]
_Labels = NDArray[np.int64]
_Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TrainingFeatures:
    """What a classifier is fitted on: of each view of an image features (N, C) float32, its label, its group and the
    number of the view, (N,) int64. Images of a group are not divided.
    """

    features: NDArray[np.float32]
    labels: _Labels
    groups: NDArray[np.int64]
    views: NDArray[np.int64]


@dataclass(frozen=True)
class ClassifierFit:
    """How a classifier is fitted to training features: the recipe's settings and the run's seed."""

    spec: ClassifierSpec
    optim: OptimSpec
    smote: SmoteSpec | None
    n_classes: int
    seed: int


@dataclass(frozen=True)
class _Samples:
    """Standardised samples: z (N, C) float64, labels (N,), weights (N,) of mean 1."""

    z: _Floats
    labels: _Labels
    weights: _Floats


def fit_classifier(head: ClassifierHead, data: TrainingFeatures, fit: ClassifierFit) -> list[str]:
    """Fit a classifier and write it into a net's head; returns what should be known about the fit.

    Raises `DermkitError` where the head gives other probabilities than scikit-learn.
    """
    mean, scale = _standardisation(data.features, fit.spec)
    samples = _samples(data, fit, mean, scale, np.arange(len(data.labels)))
    n_threads = 1 if len(samples.labels) <= _MOST_ROWS_ON_ONE_THREAD else None  # None: as many as there are
    with threadpool_limits(n_threads, user_api="blas"):
        if fit.spec.kind == "svm":
            tensors, expected, notes = _fit_svm(samples, data, fit, mean, scale)
        else:
            tensors, expected, notes = _FITS[fit.spec.kind](samples, fit)
    is_absent = np.bincount(data.labels, minlength=fit.n_classes) == 0
    tensors |= {"mean": mean, "scale": scale, "is_absent": is_absent}
    state = {
        name: torch.from_numpy(np.ascontiguousarray(tensors[name])).to(buffer.dtype)
        for name, buffer in head.state_dict().items()
    }
    head.load_state_dict(state, strict=True)
    if expected is not None:
        _check_export(head, samples, expected)
    return notes


def _standardisation(
    features: NDArray[np.float32], spec: ClassifierSpec
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what features are standardised with, (C,) float32 each; trees see them as they are."""
    if spec.kind == "gradient_boosting":
        return np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32)
    scaler = StandardScaler().fit(features.astype(np.float64))
    return scaler.mean_.astype(np.float32), (1 / scaler.scale_).astype(np.float32)


def _samples(
    data: TrainingFeatures,
    fit: ClassifierFit,
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    rows: _Labels,
) -> _Samples:
    """Return these rows standardised, with what SMOTE adds to each of their views, and then their weights."""
    features, labels = [data.features[rows]], [data.labels[rows]]
    if fit.smote is not None:
        for view in np.unique(data.views[rows]):
            view_rows = rows[data.views[rows] == view]
            new = make_samples(
                data.features[view_rows], data.labels[view_rows], fit.smote, seed=fit.seed, view=int(view)
            )
            features.append(new.features)
            labels.append(new.labels)
    all_labels = np.concatenate(labels)
    z = (np.concatenate(features) - mean) * scale  # in float32, as the head does it
    weights = weights_by_class(all_labels, fit.n_classes, fit.optim)[all_labels]
    return _Samples(z.astype(np.float64), all_labels, weights)


def weights_by_class(labels: _Labels, n_classes: int, spec: OptimSpec) -> _Floats:
    """Return the weight of each class's samples, (K,): the loss's, times how often `sampling` shows one of them.

    Their mean over samples is 1; a class without samples has 1.
    """
    counts = np.bincount(labels, minlength=n_classes)
    is_present = counts > 0
    weights = np.ones(n_classes)
    weights[is_present] = (class_shares(counts, spec.sampling) * counts.sum())[is_present] / counts[is_present]
    loss_weights = class_weights(counts, spec)
    if loss_weights is not None:
        weights[is_present] *= loss_weights[is_present]
    weights[is_present] /= weights[labels].mean()
    return weights


def _rows_by_class(values: _Floats, classes: _Labels, n_classes: int) -> _Floats:
    """Return values of the P classes with samples, (P, ...), as (K, ...); 0 for the others."""
    rows = np.zeros((n_classes, *values.shape[1:]))
    rows[classes] = values
    return rows


def _fit_logistic(samples: _Samples, fit: ClassifierFit) -> tuple[_Tensors, _Floats, list[str]]:
    model = LogisticRegression(C=fit.spec.penalty, tol=_TOLERANCE, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(samples.z, samples.labels, sample_weight=samples.weights)
    notes = [f"Logistic regression was not at its optimum after {_MAX_ITERATIONS} steps."] * bool(caught)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row, the log odds of the second class
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    tensors: _Tensors = {
        "weight": _rows_by_class(weight, model.classes_, fit.n_classes),
        "bias": _rows_by_class(bias, model.classes_, fit.n_classes),
    }
    return tensors, _expected(model, samples), notes


def _fit_k_nearest(samples: _Samples, fit: ClassifierFit) -> tuple[_Tensors, None, list[str]]:
    votes = weights_by_class(samples.labels, fit.n_classes, fit.optim)
    prior = np.bincount(samples.labels, weights=samples.weights, minlength=fit.n_classes)
    notes = []
    if len(samples.labels) < fit.spec.neighbours:
        notes = [f"{len(samples.labels)} training samples are fewer than the {fit.spec.neighbours} neighbours."]
    tensors: _Tensors = {
        "vectors": samples.z, "labels": samples.labels, "votes": votes, "prior": prior / prior.sum(),
    }  # fmt: skip
    return tensors, None, notes


def _fit_trees(samples: _Samples, fit: ClassifierFit) -> tuple[_Tensors, _Floats, list[str]]:
    spec = fit.spec
    model = HistGradientBoostingClassifier(
        max_iter=spec.iterations, learning_rate=spec.learning_rate, max_leaf_nodes=spec.max_leaves,
        early_stopping=False, random_state=fit.seed,
    )  # fmt: skip
    with threadpool_limits(1, user_api="openmp"):
        model.fit(samples.z, samples.labels, sample_weight=samples.weights)
    # Of two classes there is one score, the log odds of the second.
    scored_classes = model.classes_ if len(model.classes_) > 2 else model.classes_[1:]
    trees = [
        (tree, label) for trees in model._predictors for tree, label in zip(trees, scored_classes, strict=True)
    ]
    tensors = _tree_tensors([tree.nodes for tree, _ in trees])
    tensors["tree_class"] = np.array([label for _, label in trees], dtype=np.int64)
    tensors["baseline"] = _rows_by_class(model._baseline_prediction[0], scored_classes, fit.n_classes)
    return tensors, _expected(model, samples), []


def _tree_tensors(trees: list[NDArray[Any]]) -> _Tensors:
    """Return scikit-learn's node tables as arrays (trees, most nodes); the rest are leaves that nothing leads to."""
    shape = (len(trees), max(map(len, trees)))
    own_number = np.broadcast_to(np.arange(shape[1]), shape)
    tensors: _Tensors = {
        "feature": np.zeros(shape), "threshold": np.zeros(shape), "value": np.zeros(shape),
        "left": own_number.copy(), "right": own_number.copy(),
    }  # fmt: skip
    for index, nodes in enumerate(trees):
        inner = np.flatnonzero(nodes["is_leaf"] == 0)
        tensors["value"][index, : len(nodes)] = nodes["value"]
        tensors["feature"][index, inner] = nodes["feature_idx"][inner]
        tensors["threshold"][index, inner] = _float32_below(nodes["num_threshold"][inner])
        for side in ("left", "right"):
            tensors[side][index, inner] = nodes[side][inner]
    return tensors


def _float32_below(thresholds: _Floats) -> NDArray[np.float32]:
    """Return the largest float32 at most each threshold: features are float32, so that all compare as before."""
    limit = np.finfo(np.float32).max
    rounded = np.clip(thresholds, -limit, limit).astype(np.float32)
    below = np.nextafter(rounded, np.float32(-limit))
    return np.where(rounded > thresholds, below, rounded)


def _fit_svm(
    samples: _Samples,
    data: TrainingFeatures,
    fit: ClassifierFit,
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> tuple[_Tensors, None, list[str]]:
    """Fit one machine per class against the rest, and what makes their decisions probabilities.

    That is a temperature and an offset per class (of two classes Platt's scaling, 1999), fitted to decisions about
    images that inner folds had left out: about those that it was fitted on, a machine is too sure.
    """
    gamma = float(np.float32(1 / (samples.z.shape[1] * samples.z.var())))
    machines = _fit_machines(samples, fit, gamma)
    left_out = _decisions_of_inner_folds(data, fit, mean, scale, gamma)
    if left_out is None:
        temperature, offset = 1.0, np.zeros(fit.n_classes)
        notes = [
            "The SVM's probabilities are softmax(decisions): there are too few groups of images for inner folds."
        ]
    else:
        temperature, offset = _fit_temperature(left_out, weights_by_class(left_out[1], fit.n_classes, fit.optim))
        notes = []
    support_rows = np.unique(np.concatenate([machine.support_ for machine in machines.values()]))
    dual, intercept = np.zeros((fit.n_classes, len(support_rows))), np.zeros(fit.n_classes)
    for label, machine in machines.items():
        dual[label, np.searchsorted(support_rows, machine.support_)] = machine.dual_coef_[0]
        intercept[label] = machine.intercept_[0]
    if len(classes := np.unique(samples.labels)) == 2:
        dual[classes[0]], intercept[classes[0]] = -dual[classes[1]], -intercept[classes[1]]
    tensors: _Tensors = {
        "vectors": samples.z[support_rows], "dual": dual, "intercept": intercept, "gamma": np.array([gamma]),
        "temperature": np.array([temperature]), "offset": offset,
    }  # fmt: skip
    return tensors, None, notes


def _fit_machines(samples: _Samples, fit: ClassifierFit, gamma: float) -> dict[int, SVC]:
    """Return class -> its machine against the rest; of two classes the second's alone."""
    classes = np.unique(samples.labels)
    machines = {}
    for label in classes if len(classes) > 2 else classes[1:]:
        machine = SVC(C=fit.spec.penalty, kernel="rbf", gamma=gamma, cache_size=_SVM_CACHE_MB)
        machine.fit(samples.z, (samples.labels == label).astype(np.int64), sample_weight=samples.weights)
        machines[int(label)] = machine
    return machines


def _decisions_of_inner_folds(
    data: TrainingFeatures, fit: ClassifierFit, mean: NDArray[np.float32], scale: NDArray[np.float32], gamma: float
) -> tuple[_Floats, _Labels] | None:
    """Return decisions (N, K) about images that machines were not fitted on, and their labels; None without folds.

    SMOTE is applied anew in each fold: a new sample between an image that was left out and another would show it.
    """
    n_folds = min(_N_INNER_FOLDS, len(np.unique(data.groups)))
    if n_folds < 2 or np.bincount(data.labels).max() < n_folds:
        return None
    decisions, labels = [], []
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=fit.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of fewer images than folds: it is in some of them
        divisions = list(folds.split(data.features, data.labels, data.groups))
    for fitted_rows, held_rows in divisions:
        samples = _samples(data, fit, mean, scale, fitted_rows)
        if len(np.unique(samples.labels)) < 2 or not len(held_rows):
            continue
        z = ((data.features[held_rows] - mean) * scale).astype(np.float64)
        decisions.append(
            _decisions(_fit_machines(samples, fit, gamma), np.unique(samples.labels), z, fit.n_classes)
        )
        labels.append(data.labels[held_rows])
    return (np.concatenate(decisions), np.concatenate(labels)) if decisions else None


def _decisions(machines: Mapping[int, SVC], classes: _Labels, z: _Floats, n_classes: int) -> _Floats:
    """Return decisions (N, K); a class that is not fitted has that of an image far from it."""
    decisions = np.full((len(z), n_classes), -1.0)
    for label, machine in machines.items():
        decisions[:, label] = machine.decision_function(z)
    if len(classes) == 2:
        decisions[:, classes[0]] = -decisions[:, classes[1]]
    return decisions


_MAX_LOG_TEMPERATURE, _MAX_OFFSET, _RIDGE = 5.0, 10.0, 1e-3
"""Bounds of the temperature's logarithm and the offsets, and the penalty of the latter: without it, that of a class
without images would go to minus infinity."""


def _fit_temperature(left_out: tuple[_Floats, _Labels], weights: _Floats) -> tuple[float, _Floats]:
    """Return the temperature and the offset per class, (K,), that minimise the weighted log loss.

    weights: (K,), of each class. Targets are Platt's: of a class with n images, one more is of it and one is not, so
    that classes that are told apart without error do not get probabilities of 1.
    """
    decisions, labels = left_out
    k = decisions.shape[1]
    sample_weights = weights[labels] / weights[labels].sum()
    counts = np.bincount(labels, minlength=k)
    other = 1 / ((counts + 2) * (k - 1))
    targets = (np.diag(1 - k * other) + other[:, None])[labels]

    def loss(x: _Floats) -> tuple[float, _Floats]:
        scaled = decisions / np.exp(x[0])
        log_probabilities = log_softmax(scaled + x[1:], axis=1)
        residuals = sample_weights[:, None] * (np.exp(log_probabilities) - targets)
        value = -(sample_weights * (targets * log_probabilities).sum(1)).sum() + _RIDGE * (x[1:] ** 2).mean()
        return float(value), np.append(-(residuals * scaled).sum(), residuals.sum(0) + 2 * _RIDGE * x[1:] / k)

    bounds = [(-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE), *[(-_MAX_OFFSET, _MAX_OFFSET)] * k]
    optimum = minimize(loss, np.zeros(1 + k), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(np.exp(optimum.x[0])), optimum.x[1:]


_FITS: Mapping[str, Any] = {
    "logistic": _fit_logistic, "k_nearest": _fit_k_nearest, "gradient_boosting": _fit_trees,
}  # fmt: skip


def _expected(model: Any, samples: _Samples) -> _Floats:
    """Return scikit-learn's probabilities of the first samples, (at most _N_EXPORT_CHECKS, P)."""
    return np.asarray(model.predict_proba(samples.z[:_N_EXPORT_CHECKS]))


def _check_export(head: ClassifierHead, samples: _Samples, expected: _Floats) -> None:
    """Raise `DermkitError` where the head gives other probabilities than scikit-learn."""
    with torch.inference_mode():
        scores = head.scores(torch.from_numpy(samples.z[:_N_EXPORT_CHECKS]).to(head.mean.device))
    probabilities = (
        scores[:, torch.from_numpy(np.unique(samples.labels)).to(scores.device)].softmax(1).cpu().numpy()
    )
    if not float(np.abs(probabilities - expected).max()) <= _EXPORT_TOLERANCE:
        raise DermkitError(
            f"the exported classifier differs from scikit-learn's by {np.abs(probabilities - expected).max():.2g}",
            outcome="no model was saved",
            remedy="install a version of scikit-learn that requirements.txt names",
        )
