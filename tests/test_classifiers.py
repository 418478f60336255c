"""Classifiers on frozen features: saved tensors give scikit-learn's probabilities; those that cannot are refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from dermkit.cli.tune import _search_space
from dermkit.errors import RunInterrupt, UntrustedError, UsageError
from dermkit.models.heads import ABSENT_PROBABILITY, ClassifierHead, SvmHead, build_head
from dermkit.models.net import build_net
from dermkit.models.net_fit import check_fits
from dermkit.models.requirements import check_requirements
from dermkit.models.weights import resolve_weights
from dermkit.recipes.derive import derive_recipe
from dermkit.recipes.experiments import ADAM, ROTATE_FLIP_ZOOM, find_recipe, head_phase
from dermkit.recipes.schema import ClassifierSpec, Recipe
from dermkit.recipes.short_forms import ShortForms, short_form_assignments
from dermkit.training.classifier_phase import fit_classifier_epoch
from dermkit.training.classifiers import ClassifierFit, TrainingFeatures, fit_classifier, weights_by_class
from dermkit.training.distributed import process_group
from dermkit.training.distributed.process_group import ProcessGroup
from dermkit.training.features import FeatureSource
from dermkit.training.state import LOG_COLUMNS, TrainingHooks, TrainingState, train_on_first_rank
from test_train import BASE, SMALL, equal, make_job, make_net, run, state

Kind = Literal["logistic", "k_nearest", "svm", "gradient_boosting"]
KINDS = get_args(Kind)
N, C = 240, 12


def spec(kind: Kind) -> ClassifierSpec:
    return ClassifierSpec(kind=kind, penalty=0.3, neighbours=7, iterations=12, learning_rate=0.2, max_leaves=6)


def made(n_classes: int, n: int = N, noise: float = 1.5) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features of classes that overlap, with means and spreads far from 0 and 1, and their labels."""
    rng = np.random.default_rng(n_classes)
    labels = rng.permutation(np.arange(n) % n_classes).astype(np.int64)
    centres = rng.normal(size=(n_classes, C))
    features = 5 + rng.uniform(0.01, 30, C) * (centres[labels] + noise * rng.normal(size=(n, C)))
    return features.astype(np.float32), labels


def as_data(features: NDArray[np.float32], labels: NDArray[np.int64], **changes: Any) -> TrainingFeatures:
    n = np.arange(len(labels))
    return TrainingFeatures(**{"features": features, "labels": labels, "groups": n, "views": 0 * n + 1, **changes})


def head_of(kind: Kind, n_classes: int) -> ClassifierHead:
    head = build_head(C, replace(SMALL, classifier=spec(kind)), n_classes)
    assert isinstance(head, ClassifierHead)
    return head.eval()


def fitted(
    kind: Kind, data: TrainingFeatures, n_classes: int, optim: Any = ADAM, smote: Any = None
) -> ClassifierHead:
    head = head_of(kind, n_classes)
    fit_classifier(head, data, ClassifierFit(spec(kind), optim, smote, n_classes, seed=3))
    return head


def probabilities(head: ClassifierHead, features: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.inference_mode():
        return np.asarray(head(torch.from_numpy(features)).double().softmax(1).numpy())


def reference(kind: Kind, head: ClassifierHead, n_classes: int, optim: Any) -> NDArray[np.float64]:
    """Return what scikit-learn says of new images, computed without dermkit's fit."""
    x, y = made(n_classes)
    new = made(n_classes, 500)[0]
    weight = {"none": np.ones(n_classes), "balanced": len(y) / (n_classes * np.bincount(y))}[optim.class_weights]
    mean, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    z, z_new = (x - mean) / spread, (new - mean) / spread
    if kind == "logistic":
        model = LogisticRegression(C=0.3, max_iter=5000, tol=1e-9).fit(z, y, sample_weight=weight[y])
        return np.asarray(model.predict_proba(z_new))
    if kind == "gradient_boosting":
        trees = HistGradientBoostingClassifier(
            max_iter=12, learning_rate=0.2, max_leaf_nodes=6, early_stopping=False, random_state=0
        )
        return np.asarray(trees.fit(x, y, sample_weight=weight[y]).predict_proba(new))
    if kind == "k_nearest":
        p = KNeighborsClassifier(7, weights="distance").fit(z, y).predict_proba(z_new) * weight
        prior = np.bincount(y) * weight / (np.bincount(y) * weight).sum()
        return np.asarray((7 * p / p.sum(1, keepdims=True) + prior) / 8)
    classes = range(n_classes) if n_classes > 2 else [1]
    machines = [SVC(C=0.3, gamma=1 / (C * z.var())).fit(z, y == k, sample_weight=weight[y]) for k in classes]
    decisions = np.stack([machine.decision_function(z_new) for machine in machines], axis=1)
    decisions = decisions if n_classes > 2 else np.hstack([-decisions, decisions])
    assert isinstance(head, SvmHead)
    return np.asarray(softmax(decisions / head.temperature.numpy() + head.offset.numpy(), axis=1))


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("n_classes", [2, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_gives_the_probabilities_of_scikit_learn(kind: Kind, n_classes: int, class_weights: Any) -> None:
    optim = replace(ADAM, class_weights=class_weights)
    head = fitted(kind, as_data(*made(n_classes)), n_classes, optim)
    p = probabilities(head, made(n_classes, 500)[0])
    assert np.abs(p - reference(kind, head, n_classes, optim)).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_training_images_has_a_probability_that_is_not_zero(kind: Kind) -> None:
    x, y = made(3)
    head = fitted(kind, as_data(x, 2 * np.minimum(y, 1)), 4)  # classes 1 and 3 have none
    p = probabilities(head, x)
    assert np.allclose(p[:, [1, 3]], ABSENT_PROBABILITY, rtol=1e-3)
    assert (p.argmax(1) == 2 * np.minimum(y, 1)).mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_samples_are_of_mean_1_and_change_what_is_fitted(kind: Kind) -> None:
    x, y = made(2, noise=4.0)
    keep = (y == 0) | (np.arange(N) % 8 == 0)
    x, y = x[keep], y[keep]
    plain = probabilities(fitted(kind, as_data(x, y), 2), x)[:, 1].mean()
    for optim in (replace(ADAM, class_weights="balanced"), replace(ADAM, sampling="balanced")):
        weights = weights_by_class(y, 2, optim)
        assert np.allclose(weights, len(y) / (2 * np.bincount(y)))
        assert probabilities(fitted(kind, as_data(x, y), 2, optim), x)[:, 1].mean() > plain + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_repeats_to_the_bit(kind: Kind) -> None:
    one, two = (fitted(kind, as_data(*made(3)), 3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_svm_is_less_sure_where_images_of_a_lesion_are_kept_together() -> None:
    x, y = made(2, 60, noise=4.0)
    twice = np.repeat(np.arange(60), 4)  # four photographs of each lesion, all but equal
    noise = np.random.default_rng(0).normal(size=(240, C)).astype(np.float32) * 1e-3
    together = fitted("svm", as_data(x[twice] + noise, y[twice], groups=twice), 2)
    apart = fitted("svm", as_data(x[twice] + noise, y[twice]), 2)
    assert isinstance(together, SvmHead) and isinstance(apart, SvmHead)
    assert float(together.temperature) > 1.2 * float(apart.temperature)


def broken(kind: Kind) -> list[tuple[str, dict[str, torch.Tensor], str]]:
    """Return what a malicious model folder could hold: the name, the tensors, and words of the refusal."""
    state = fitted(kind, as_data(*made(3)), 3).state_dict()
    cases: list[tuple[str, dict[str, torch.Tensor], str]] = [
        ("another type", {**state, "mean": state["mean"].double()}, "mean is"),
        ("another width", {**state, "scale": torch.ones(C + 1)}, "scale is"),
        ("not finite", {**state, "scale": torch.full((C,), torch.inf)}, "not finite"),
    ]
    if kind == "k_nearest":
        cases.append(("a class beyond the last", {**state, "labels": state["labels"] + 1}, "other classes"))
        cases.append(("no vectors", {**state, "vectors": torch.zeros(0, C)}, "is empty"))
        cases.append(("fewer labels", {**state, "labels": state["labels"][1:]}, "labels is"))
        cases.append(("no weight", {**state, "votes": state["votes"] * 0}, "no weights"))
    if kind == "svm":
        cases.append(("gamma below 0", {**state, "gamma": -state["gamma"]}, "gamma is not above 0"))
        cases.append(("more machines", {**state, "dual": state["dual"].repeat(2, 1)}, "dual is"))
    if kind == "gradient_boosting":
        endless, outside = state["left"].clone(), state["left"].clone()
        endless[0, 1], outside[0, 0] = 0, 9999
        many = {name: state[name].repeat(20, *[1] * (state[name].ndim - 1)) for name in TREES}
        cases.append(("a ring", {**state, "left": endless}, "no trees"))
        cases.append(("a child outside", {**state, "left": outside}, "no trees"))
        cases.append(("a feature outside", {**state, "feature": state["feature"] + C}, "out of range"))
        cases.append(("a class outside", {**state, "tree_class": state["tree_class"] + 3}, "out of range"))
        cases.append(("too many trees", {**state, **many}, "1 to 36 trees"))
        wide = {name: torch.nn.functional.pad(state[name], (0, 5)) for name in TREES if name != "tree_class"}
        cases.append(("too many nodes", {**state, **wide}, "1 to 11 nodes"))
    return cases


TREES = ("feature", "threshold", "left", "right", "value", "tree_class")


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_cannot_be_of_a_head_are_refused_before_anything_is_made(kind: Kind) -> None:
    for name, tensors, words in broken(kind):
        head = head_of(kind, 3)
        before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        with pytest.raises(RuntimeError, match=words):
            head.load_state_dict(tensors)
        after = head.state_dict()
        assert all(after[key].shape == before[key].shape for key in before), name


# In training --------------------------------------------------------------------------------------------------------


def recipe_of(kind: Kind, **changes: Any) -> Recipe:
    model = replace(SMALL, dropout=0.0, classifier=spec(kind))
    return replace(BASE, **{"model": model, "phases": (head_phase(1),), **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_fits_validates_and_saves_a_classifier_as_one_epoch(kind: Kind, tmp_path: Path) -> None:
    recipe = recipe_of(kind)
    net, progress = run(recipe, tmp_path)
    (row,) = progress.log_rows
    log = pd.read_csv(tmp_path / "log.csv")
    assert tuple(row) == tuple(log) == LOG_COLUMNS
    assert log["val_accuracy"].tolist() == [row["val_accuracy"]] and row["val_accuracy"] > 0.6
    assert (progress.best_epoch, bool(np.isnan(row["train_loss"]))) == (1, kind == "k_nearest")
    rebuilt = make_net(recipe).eval()
    check_fits(recipe.model, 2, net.state_dict(), image_size=32)
    rebuilt.load_state_dict(net.state_dict())
    images = torch.rand(5, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(rebuilt(images), net(images), rtol=1e-3, atol=1e-3)  # another order in memory
    (tmp_path / "log.csv").unlink()
    again, _ = run(recipe, tmp_path)  # a run that was killed before its log was written
    assert equal(state(net), state(again)) and (tmp_path / "log.csv").exists()


def test_views_are_stacked_and_a_stop_before_the_fit_keeps_the_features(tmp_path: Path) -> None:
    recipe = recipe_of("k_nearest", phases=(replace(head_phase(1), views=2),), augment=ROTATE_FLIP_ZOOM)
    answers = iter([False] * 7)  # asked after each of three batches of two views and one of validation images
    with pytest.raises(RunInterrupt, match="before the classifier was fitted"):
        run(recipe, tmp_path, hooks=TrainingHooks(should_stop=lambda: next(answers, True)))
    net, _ = run(recipe, tmp_path)
    vectors, labels = net.head.get_buffer("vectors"), net.head.get_buffer("labels")
    assert (
        len(vectors) == 88
        and torch.equal(labels[:44], labels[44:])
        and not torch.equal(vectors[:44], vectors[44:])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_folder_with_tensors_that_cannot_be_is_refused(kind: Kind) -> None:
    model = replace(recipe_of(kind).model, backbone="dermkit/cnn-s1")
    net = build_net(model, 3, weights=resolve_weights(model, None), seed=0)
    assert isinstance(net.head, ClassifierHead)
    features = np.random.default_rng(0).normal(size=(60, net.n_features)).astype(np.float32)
    fit_classifier(net.head, as_data(features, np.arange(60) % 3), ClassifierFit(spec(kind), ADAM, None, 3, 0))
    check_fits(model, 3, net.state_dict(), image_size=64)
    for changed in ({"head.mean": torch.zeros(2)}, {"head.extra": torch.zeros(1)}, {"head.scale": None}):
        tensors = {name: tensor for name, tensor in {**net.state_dict(), **changed}.items() if tensor is not None}
        with pytest.raises(UntrustedError, match=f"do not fit dermkit/cnn-s1 with {kind}"):
            check_fits(model, 3, tensors, image_size=64)


def test_rank_1_takes_the_classifier_that_rank_0_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("logistic")
    first, _ = run(recipe, tmp_path)
    job, fabric = make_job(recipe, tmp_path / "cache"), process_group.start_fabric("cpu")
    second = TrainingState(
        job, tmp_path / "checkpoints", make_net(recipe), fabric, ProcessGroup(1, 2), TrainingHooks()
    )
    monkeypatch.setattr(ProcessGroup, "any", lambda _group, flag: flag)  # rank 0 is done and waits for nothing
    monkeypatch.setattr("dermkit.training.classifier_phase.fit_classifier", lambda *_: pytest.fail("rank 1 fits"))
    assert isinstance(second.net.head, ClassifierHead)
    fit = partial(fit_classifier_epoch, second, second.net.head, cast("FeatureSource", None))
    train_on_first_rank(second, fit)
    assert torch.equal(second.net.head.get_buffer("weight"), first.head.get_buffer("weight"))
    assert len(second.progress.log_rows) == 1


@pytest.mark.parametrize(("changes", "words"), [
    ({"model": {"hidden": (8,)}}, "model.hidden: a classifier stands in place of dense layers"),
    ({"model": {"dropout": 0.1}}, "model.dropout"),
    ({"optim": {"label_smoothing": 0.1}}, "optim.label_smoothing: a classifier has a loss of its own"),
    ({"optim": {"logit_adjustment": 1.0}}, "optim.class_weights and optim.sampling weigh its samples"),
    ({"optim": {"weight_decay": 0.1}}, "regularised by model.classifier"),
])  # fmt: skip
def test_what_a_classifier_would_leave_out_is_refused(changes: dict[str, Any], words: str) -> None:
    recipe = recipe_of("svm")
    for group, fields in changes.items():
        recipe = replace(recipe, **{group: replace(getattr(recipe, group), **fields)})
    with pytest.raises(UsageError, match=words):
        check_requirements(recipe, None)
    check_requirements(recipe_of("svm"), None)


def test_a_search_leaves_the_kind_of_classifier_and_tries_its_settings() -> None:
    recipe = derive_recipe(find_recipe("quick"), short_form_assignments(find_recipe("quick"), FORMS))
    fields = set(_search_space(recipe, None, None, FORMS).dimensions)
    assert {"model.classifier.penalty", "optim.class_weights", "smote.target_fraction"} <= fields
    assert not {"model.classifier.neighbours", "optim.batch_size", "phases.0.head_lr", "model.dropout"} & fields


FORMS = ShortForms(classifier="svm", smote=True)
