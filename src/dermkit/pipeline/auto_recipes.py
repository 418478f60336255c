"""The recipes of a race, and the seconds that each takes on this machine.

A fit of scikit-learn cannot be ended within, so that a classifier on the frozen net's features takes part only where a
bound of its time fits: `FitTime.bound`, from a fit of some hundred rows on this machine. It is trained after the whole
nets, and only while its bound is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dermkit.models.hub_names import is_hub_name, parse_hub_name
from dermkit.models.views import VIEW_SETS
from dermkit.pipeline.dataset_profile import DatasetProfile
from dermkit.pipeline.estimate_cost import FitTime, NetSpeed, estimate_seconds
from dermkit.recipes.frozen import CLASSIFIERS, ClassifierKind, classifier_phase
from dermkit.recipes.schema import ModelSpec, Recipe, SplitSpec
from dermkit.recipes.strong import STRONG_1H, STRONG_5MIN


@dataclass(frozen=True)
class TrainingLength:
    """How long a whole net is trained at least: so many epochs, or, where these are long, so many steps."""

    epochs: int
    steps: int


USABLE_FRACTION = 0.85
"""Of the time, what is planned: other programs may slow the machine down. What is left goes unused."""
MOST_EPOCHS = 16
SHORTEST_TRAINING = TrainingLength(epochs=4, steps=150)
"""A whole net that is trained for less is not trained: its head has hardly moved. Three epochs of isic9 gave what a
frozen net gave (log/LOG.md)."""
RACE_BATCH_NORM_IMAGES = 512
"""For the statistics of batch norm after each epoch: as good as 1,024 (docs/decisions/0019-batch-norm-statistics.md),
which take a fifth of an epoch of 1,600 images."""
MOST_SEEDS = 3
"""Nets of one recipe from different seeds; the gain of an ensemble is largest for its first members (Lakshminarayanan
2017, figure 2)."""
WANTED_TRAINING = TrainingLength(epochs=8, steps=400)
"""More folds are trained only if the first whole net still gets this much. Chosen, not measured."""
_SCORING_PART = 0.15
"""Of the time of a whole net, for scoring its validation images with eight views; else with one."""
MOST_ADJUSTED = 50.0
"""Images of the largest class for each of the smallest, beyond which logits are adjusted as for that. Chosen."""
BALANCED_UP_TO = 1.5
"""Images of the largest class for each of the smallest, up to which classes count as equally frequent."""
MOST_ROWS = 20_000
"""Feature vectors of a fit; with 1,280 features these take half a gigabyte. Chosen."""
LONGEST_FIT = 0.05
"""Of the whole time, for one fit: one that takes twice its bound then overruns the time by no more than this."""

KIND_NAMES: dict[ClassifierKind, tuple[str, str]] = {
    "logistic": ("linear", "logistic regression"),
    "svm": ("svm", "support vector machine"),
    "k_nearest": ("knn", "nearest neighbours"),
}
"""Kind -> its part of a recipe's name, and its name; those that are likelier to pay come first.

Gradient boosting is not among them: scikit-learn divides each weighted feature into bins first, which took half a
minute for 1,280 features however few the images (measured).
"""


@dataclass(frozen=True)
class MeasuredNet:
    """A backbone at hand, with its speed. weights_file: None = from the hub's cache, or none. image_size: of its images
    in pixels, with which it was measured and is trained.
    """

    model: ModelSpec
    weights_file: Path | None
    speed: NetSpeed
    image_size: int = STRONG_1H.image.size


@dataclass(frozen=True)
class Candidate:
    """A recipe of the race, with the seconds that it will take. weights_file: as in `MeasuredNet`."""

    recipe: Recipe
    weights_file: Path | None
    seconds: float

    @property
    def has_all_epochs(self) -> bool:
        """Return whether it is a whole net with all the epochs that a net gets."""
        phase = self.recipe.phases[0]
        return phase.train_backbone == "all" and phase.epochs == MOST_EPOCHS


@dataclass(frozen=True)
class RaceDrafts:
    """What all recipes of a race have in common."""

    profile: DatasetProfile
    n_folds: int
    n_trained_folds: int
    tau: float
    seed: int

    @property
    def n_validation(self) -> float:
        """Images of a fold."""
        return self.profile.n_training / self.n_folds

    def is_long(self, epochs: int, length: TrainingLength) -> bool:
        """Return whether so many epochs of a whole net are at least so long."""
        steps = epochs * (self.profile.n_training - self.n_validation) / STRONG_1H.optim.batch_size
        return epochs >= length.epochs or (epochs > 0 and steps >= length.steps)

    def recipe(self, base: Recipe, net: MeasuredNet, name: str) -> Recipe:
        """Return a recipe of the race for a net."""
        split = fold_split(self.profile, self.n_folds, self.seed)
        optim = replace(base.optim, logit_adjustment=self.tau)
        model = replace(
            base.model,
            backbone=net.model.backbone,
            backbone_args=net.model.backbone_args,
            weights=net.model.weights,
        )
        image = replace(base.image, size=net.image_size)
        return replace(base, name=name, model=model, image=image, split=split, optim=optim, seed=self.seed)

    def seconds(self, recipe: Recipe, speed: NetSpeed, *, has_features: bool = False) -> float:
        """Return the seconds that a recipe takes on all folds. has_features: those of its frozen net are cached."""
        return estimate_seconds(
            recipe, speed, n_images=self.profile.n_training, n_folds=self.n_folds,
            n_trained_folds=self.n_trained_folds, has_features=has_features,
        )  # fmt: skip


def fold_split(profile: DatasetProfile, n_folds: int, seed: int) -> SplitSpec:
    """Return the split of a race: the published test images or a drawn fifth aside, all others in folds."""
    if profile.has_published_test:
        return SplitSpec(
            scheme="given", seed=seed, validation=0.2, test=0.0, folds=n_folds, per_class=0, draw_from=""
        )
    return SplitSpec(
        scheme="holdout", seed=seed, validation=0.2, test=0.2, folds=n_folds, per_class=0, draw_from=""
    )


def _short_name(net: MeasuredNet) -> str:
    backbone = net.model.backbone
    if is_hub_name(backbone):
        return parse_hub_name(backbone).repository.replace("/", "-")[:60]
    return backbone.replace("/", "-").partition(".")[0]


def trained_recipe(drafts: RaceDrafts, net: MeasuredNet, epochs: int, budget: float) -> Recipe:
    """Return the recipe of a whole net. budget: seconds that it may take, for the choice of its test views."""
    n_views = len(VIEW_SETS["dihedral"])
    scoring = drafts.n_trained_folds * drafts.n_validation * n_views / net.speed.forward
    recipe = drafts.recipe(STRONG_1H, net, f"finetuned-{_short_name(net)}")
    (phase,) = recipe.phases
    # A plain transformer has no batch norm that would soften its steps: a third of the rate (chosen).
    rate = phase.backbone_lr / 3 if "vit" in net.model.backbone else phase.backbone_lr
    n_statistics = RACE_BATCH_NORM_IMAGES if net.speed.has_batch_norm else 0
    return replace(
        recipe,
        optim=replace(recipe.optim, batch_norm_images=n_statistics),
        phases=(replace(phase, epochs=epochs, backbone_lr=rate),),
        compute=replace(recipe.compute, precision=net.speed.precision),  # type: ignore[arg-type]
        test_views="dihedral" if scoring <= _SCORING_PART * budget else "identity",
    )


def epochs_that_fit(drafts: RaceDrafts, net: MeasuredNet, budget: float) -> int:
    """Return the epochs of a whole net that fit into some seconds, on all folds; at most `MOST_EPOCHS`."""
    one, two = (drafts.seconds(trained_recipe(drafts, net, epochs, budget), net.speed) for epochs in (1, 2))
    return max(0, min(MOST_EPOCHS, int((budget - one) / (two - one)) + 1)) if budget >= one else 0


def further_seeds(candidates: Sequence[Candidate], budget: float) -> list[Candidate]:
    """Return the whole nets of a race once more, each from further seeds, as many as fit into so many seconds.

    Only nets that have all the epochs that a net gets: for others more epochs are worth more than another seed.
    """
    whole = [candidate for candidate in candidates if candidate.has_all_epochs]
    further = []
    for step in range(1, MOST_SEEDS):
        for candidate in whole:
            if candidate.seconds <= budget:
                seed = candidate.recipe.seed + step
                recipe = replace(candidate.recipe, name=f"{candidate.recipe.name}-seed-{seed}", seed=seed)
                further.append(replace(candidate, recipe=recipe))
                budget -= candidate.seconds
    return further


def logit_adjustment(profile: DatasetProfile) -> float:
    """Return tau of the adjusted logits: 1, 0 for equal classes, and less than 1 beyond `MOST_ADJUSTED`.

    A class of two images among thousands gets a head start that no training takes back: on isic9 it was nine of ten
    answers.
    """
    if profile.imbalance <= BALANCED_UP_TO:
        return 0.0
    return round(min(1.0, math.log(MOST_ADJUSTED) / math.log(profile.imbalance)), 2)


def fastest_net(nets: Sequence[MeasuredNet]) -> MeasuredNet:
    """Return the net that scores fastest, whose features a frozen recipe takes."""
    return max(nets, key=lambda net: net.speed.forward)


def first_candidate(drafts: RaceDrafts, nets: Sequence[MeasuredNet], budget: float, *, part: float) -> Candidate:
    """Return the recipe that is always trained, with as many views of each image as a part of the time allows.

    Of the net that scores fastest; without pretrained weights, a small net of random weights, since a frozen one of
    these knows nothing.
    """
    net = fastest_net(nets)
    if net.model.weights == "none":
        epochs = max(SHORTEST_TRAINING.epochs, epochs_that_fit(drafts, net, budget))
        recipe = trained_recipe(drafts, net, epochs, budget)
        return Candidate(recipe, None, drafts.seconds(recipe, net.speed))
    for views, test_views in ((5, "dihedral"), (2, "dihedral"), (0, "dihedral"), (0, "identity")):
        recipe = drafts.recipe(STRONG_5MIN, net, f"frozen-{_short_name(net)}")
        recipe = replace(
            recipe,
            phases=(replace(recipe.phases[0], views=views),),
            test_views=test_views,  # type: ignore[arg-type]
            compute=replace(recipe.compute, precision=net.speed.frozen.precision),  # type: ignore[arg-type]
        )
        candidate = Candidate(recipe, net.weights_file, drafts.seconds(recipe, net.speed.frozen))
        if candidate.seconds <= part * budget:
            break
    return candidate


# Classifiers of scikit-learn -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifierDraft:
    """A kind of classifier as it may take part. n_rows: feature vectors of one fold's fit; bound: its seconds.

    candidate: None where it does not fit; the others are then those of the fewest views.
    """

    time: FitTime
    n_rows: int
    bound: float
    candidate: Candidate | None

    @property
    def seconds(self) -> float:
        """Seconds that it takes on all folds; 0 where it does not take part."""
        return self.candidate.seconds if self.candidate else 0.0


def draft_classifiers(
    drafts: RaceDrafts, first: Candidate, net: MeasuredNet, fits: Sequence[FitTime], budget: float, longest: float
) -> list[ClassifierDraft]:
    """Return each kind that was measured, with the most views that fit; likelier ones first.

    first: the race's recipe of the frozen net, whose features they share. budget: seconds for all of them. longest:
    seconds for one fit.
    """
    if first.recipe.phases[0].train_backbone != "none":
        return []
    times = {fit.kind: fit for fit in fits}
    classifiers: list[ClassifierDraft] = []
    for kind in KIND_NAMES:
        if kind in times:
            classifiers.append(_draft(drafts, first, net, times[kind], budget, longest))
            budget -= classifiers[-1].seconds
    return classifiers


def _draft(
    drafts: RaceDrafts, first: Candidate, net: MeasuredNet, fit: FitTime, budget: float, longest: float
) -> ClassifierDraft:
    first_views = first.recipe.phases[0].views
    n_images = round(drafts.profile.n_training - drafts.n_validation)
    for views in dict.fromkeys((first_views, 0)):
        n_rows = n_images * max(views, 1)
        bound = fit.bound(n_rows)
        recipe = _classifier_recipe(first.recipe, fit.kind, views)
        # An image without augmentation was computed where it is validated: with one fold, some images alone.
        # It is float32 there, as in prediction.
        is_validated = drafts.n_trained_folds > 1 and recipe.compute.precision == "float32"
        has_features = views == first_views or is_validated
        seconds = drafts.seconds(recipe, net.speed.frozen, has_features=has_features)
        seconds += drafts.n_trained_folds * bound
        if n_rows <= MOST_ROWS and bound <= longest and seconds <= budget:
            return ClassifierDraft(fit, n_rows, bound, Candidate(recipe, first.weights_file, seconds))
    return ClassifierDraft(fit, n_rows, bound, None)


def _classifier_recipe(recipe: Recipe, kind: ClassifierKind, views: int) -> Recipe:
    """Return the recipe of a frozen net with a classifier in place of its dense layers.

    Class weights stand for adjusted logits: both make rare classes count as much as common ones.
    """
    part, words = KIND_NAMES[kind]
    optim = replace(
        recipe.optim, class_weights="balanced" if recipe.optim.logit_adjustment else "none", logit_adjustment=0.0,
        weight_decay=0.0, warmup_epochs=0.0,
    )  # fmt: skip
    return replace(
        recipe,
        name=recipe.name.replace("frozen-", f"frozen-{part}-", 1),
        about=f"A frozen net; {words} on its features.",
        model=replace(recipe.model, classifier=CLASSIFIERS[kind], hidden=(), dropout=0.0),
        optim=optim,
        phases=(classifier_phase(views),),
    )
