"""From a data set's profile, the machine's speed and a time to a few recipes, each choice with its reason.

The order of the race is fixed: a frozen net first, since it is never long; then whole nets, those given first; then
their ensemble, which costs seconds. All train on the same folds of the images outside the test split, so that their
out-of-fold predictions can be compared image by image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dermkit.models.hub_names import is_hub_name, parse_hub_name
from dermkit.models.views import VIEW_SETS
from dermkit.pipeline.dataset_profile import DatasetProfile
from dermkit.pipeline.estimate_cost import NetSpeed, estimate_seconds
from dermkit.recipes.schema import ModelSpec, Recipe, SplitSpec
from dermkit.recipes.strong import STRONG_1H, STRONG_5MIN


@dataclass(frozen=True)
class TrainingLength:
    """How long a whole net is trained at least: so many epochs, or, where these are long, so many steps."""

    epochs: int
    steps: int


_USABLE = 0.85
"""Of the time, what is planned: other programs may slow the machine down. What is left goes unused."""
_FOLDS = (5, 3, 2)
_MOST_EPOCHS = 16
_FEWEST = TrainingLength(epochs=4, steps=150)
"""A whole net that is trained for less is not trained: its head has hardly moved. Three epochs of isic9 gave what a
frozen net gave (log/LOG.md)."""
_WANTED = TrainingLength(epochs=8, steps=400)
"""More folds are trained only if the first whole net still gets this much. Chosen, not measured."""
_FIRST_PART = 0.2
"""Of the time, for the frozen net where a whole one fits."""
_SCORING_PART = 0.15
"""Of the time of a whole net, for scoring its validation images with eight views; else with one."""
_MOST_ADJUSTED = 50.0
"""Images of the largest class for each of the smallest, beyond which logits are adjusted as for that. Chosen."""
_BALANCED_UP_TO = 1.5
"""Images of the largest class for each of the smallest, up to which classes count as equally frequent."""


@dataclass(frozen=True)
class MeasuredNet:
    """A backbone at hand, with its speed. weights_file: None = from the hub's cache, or none."""

    model: ModelSpec
    weights_file: Path | None
    speed: NetSpeed


@dataclass(frozen=True)
class PlanChoice:
    """One choice of the plan. would_change: what would have to be different for another value."""

    name: str
    value: str
    reason: str
    evidence: str
    would_change: str


@dataclass(frozen=True)
class Candidate:
    """A recipe of the race, with the seconds that it will take. weights_file: as in `MeasuredNet`."""

    recipe: Recipe
    weights_file: Path | None
    seconds: float


@dataclass(frozen=True)
class AutoPlan:
    """What `train auto` does in a time. seconds: the whole time; decoding: seconds of it until pixels are there.

    n_trained_folds: how many of the folds are left out of a training in turn; 1 where time is short, so that the
    figures rest on the images of the first fold.
    """

    seconds: float
    decoding: float
    n_folds: int
    n_trained_folds: int
    candidates: tuple[Candidate, ...]
    choices: tuple[PlanChoice, ...]

    @property
    def planned_seconds(self) -> float:
        """The seconds that the plan expects to take."""
        return self.decoding + sum(candidate.seconds for candidate in self.candidates)

    @property
    def folds_text(self) -> str:
        """The folds that are trained, in words."""
        return f"{self.n_folds} folds" if self.n_trained_folds > 1 else f"one of {self.n_folds} folds"


def make_plan(
    profile: DatasetProfile,
    nets: Sequence[MeasuredNet],
    *,
    images_decoded_per_second: float,
    seconds: float,
    seed: int,
    elapsed: float = 0.0,
) -> AutoPlan:
    """Return the recipes of a race that ends in `seconds`; at least one, however short the time.

    nets: those that may be used, the preferred first. elapsed: seconds that are over already, spent on measuring.
    """
    decoding = profile.n_training / images_decoded_per_second
    budget = _USABLE * seconds - elapsed - decoding
    drafts = _choose_folds(profile, nets, budget, _logit_adjustment(profile), seed)
    first = _first_candidate(drafts, nets, budget, part=_FIRST_PART)
    trained, trained_choices = _trained_candidates(drafts, nets, budget - first.seconds)
    if not trained:  # then all the time is for it
        first = _first_candidate(drafts, nets, budget, part=1.0)
    choices = (
        _folds_choice(drafts),
        _imbalance_choice(profile, drafts.tau),
        _first_choice(first, nets, budget),
        *trained_choices,
        *_ids_choice(profile),
        *_audit_choice(profile),
    )
    return AutoPlan(
        seconds=seconds, decoding=decoding, n_folds=drafts.n_folds, n_trained_folds=drafts.n_trained_folds,
        candidates=(first, *trained), choices=choices,
    )  # fmt: skip


@dataclass(frozen=True)
class _Drafts:
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

    def is_long(self, epochs: int, length: "TrainingLength") -> bool:
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
        return replace(base, name=name, model=model, split=split, optim=optim, seed=self.seed)

    def seconds(self, recipe: Recipe, speed: NetSpeed) -> float:
        """Return the seconds that a recipe takes on all folds."""
        return estimate_seconds(
            recipe, speed, n_images=self.profile.n_training, n_folds=self.n_folds,
            n_trained_folds=self.n_trained_folds,
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


def _trained_recipe(drafts: _Drafts, net: MeasuredNet, epochs: int, budget: float) -> Recipe:
    """Return the recipe of a whole net. budget: seconds that it may take, for the choice of its test views."""
    n_views = len(VIEW_SETS["dihedral"])
    scoring = drafts.n_trained_folds * drafts.n_validation * n_views / net.speed.forward
    recipe = drafts.recipe(STRONG_1H, net, f"finetuned-{_short_name(net)}")
    (phase,) = recipe.phases
    # A plain transformer has no batch norm that would soften its steps: a third of the rate (chosen).
    rate = phase.backbone_lr / 3 if "vit" in net.model.backbone else phase.backbone_lr
    return replace(
        recipe,
        phases=(replace(phase, epochs=epochs, backbone_lr=rate),),
        compute=replace(recipe.compute, precision=net.speed.precision),  # type: ignore[arg-type]
        test_views="dihedral" if scoring <= _SCORING_PART * budget else "identity",
    )


def _epochs_that_fit(drafts: _Drafts, net: MeasuredNet, budget: float) -> int:
    """Return the epochs of a whole net that fit into some seconds, on all folds; at most `_MOST_EPOCHS`."""
    one, two = (drafts.seconds(_trained_recipe(drafts, net, epochs, budget), net.speed) for epochs in (1, 2))
    return max(0, min(_MOST_EPOCHS, int((budget - one) / (two - one)) + 1)) if budget >= one else 0


def _logit_adjustment(profile: DatasetProfile) -> float:
    """Return tau of the adjusted logits: 1, 0 for equal classes, and less than 1 beyond `_MOST_ADJUSTED`.

    A class of two images among thousands gets a head start that no training takes back: on isic9 it was nine of ten
    answers.
    """
    if profile.imbalance <= _BALANCED_UP_TO:
        return 0.0
    return round(min(1.0, math.log(_MOST_ADJUSTED) / math.log(profile.imbalance)), 2)


def _choose_folds(
    profile: DatasetProfile, nets: Sequence[MeasuredNet], budget: float, tau: float, seed: int
) -> _Drafts:
    """Return the drafts of the most folds with which the first whole net is trained long enough.

    Where the time is too short for three folds, one of five is trained: a net of four fifths of the images is better
    than two of the half. Where no whole net fits, the most folds with which the first recipe does.
    """
    allowed = [n for n in _FOLDS if n <= max(2, profile.n_groups // 2)]
    pairs = [(n, n) for n in allowed if n > 2 or n == allowed[0]] + [(allowed[0], 1)]
    options = [_Drafts(profile, n_folds, n_trained, tau, seed) for n_folds, n_trained in pairs]
    for length in (_WANTED, _FEWEST):
        for drafts in options:
            first = _first_candidate(drafts, nets, budget, part=_FIRST_PART)
            if drafts.is_long(_epochs_that_fit(drafts, nets[0], budget - first.seconds), length):
                return drafts
    whole = [_Drafts(profile, n, n, tau, seed) for n in allowed]
    fitting = (drafts for drafts in whole if _first_candidate(drafts, nets, budget, part=1.0).seconds <= budget)
    return next(fitting, whole[-1])


def _first_candidate(drafts: _Drafts, nets: Sequence[MeasuredNet], budget: float, *, part: float) -> Candidate:
    """Return the recipe that is always trained, with as many views of each image as a part of the time allows.

    Of the net that scores fastest; without pretrained weights, a small net of random weights, since a frozen one of
    these knows nothing.
    """
    net = max(nets, key=lambda one: one.speed.forward)
    if net.model.weights == "none":
        epochs = max(_FEWEST.epochs, _epochs_that_fit(drafts, net, budget))
        recipe = _trained_recipe(drafts, net, epochs, budget)
        return Candidate(recipe, None, drafts.seconds(recipe, net.speed))
    for views, test_views in ((5, "dihedral"), (2, "dihedral"), (0, "dihedral"), (0, "identity")):
        recipe = drafts.recipe(STRONG_5MIN, net, f"frozen-{_short_name(net)}")
        recipe = replace(recipe, phases=(replace(recipe.phases[0], views=views),), test_views=test_views)  # type: ignore[arg-type]
        candidate = Candidate(recipe, net.weights_file, drafts.seconds(recipe, net.speed.frozen))
        if candidate.seconds <= part * budget:
            break
    return candidate


def _trained_candidates(
    drafts: _Drafts, nets: Sequence[MeasuredNet], budget: float
) -> tuple[list[Candidate], list[PlanChoice]]:
    """Return the whole nets that fit, each with an even part of the time that is left, and why the others do not.

    Where an even part is too short for a net to be trained well, it gets all that is left.
    """
    candidates, choices = [], []
    pretrained = [net for net in nets if net.model.weights != "none"]
    for number, net in enumerate(pretrained):
        part = budget / (len(pretrained) - number)
        epochs = _epochs_that_fit(drafts, net, part)
        if not drafts.is_long(epochs, _WANTED):
            part, epochs = budget, _epochs_that_fit(drafts, net, budget)
        if drafts.is_long(epochs, _FEWEST):
            recipe = _trained_recipe(drafts, net, epochs, part)
            seconds = drafts.seconds(recipe, net.speed)
            candidates.append(Candidate(recipe, net.weights_file, seconds))
            budget -= seconds
        choices.append(_trained_choice(drafts, net, epochs, part))
    return candidates, choices


# Choices in words ---------------------------------------------------------------------------------------------------


def _folds_choice(drafts: _Drafts) -> PlanChoice:
    profile, n_folds = drafts.profile, drafts.n_folds
    smallest = profile.smallest_class
    where = (
        "the published training images" if profile.has_published_test else "all images but a fifth for the test"
    )
    reason = (
        f"every one of {where} is predicted by a net that did not see it or its group, so that recipes are compared on "
        f"{profile.n_training:,} images"
        if drafts.n_trained_folds > 1
        else f"the time is short: one net of each recipe is trained without the first of {n_folds} folds of {where}, "
        f"and recipes are compared on about {drafts.n_validation:,.0f} images"
    )
    return PlanChoice(
        "folds",
        str(n_folds) if drafts.n_trained_folds > 1 else f"one of {n_folds}",
        reason,
        f"{profile.n_groups:,} groups of lesion, patient and copies; the smallest class, {smallest}, has "
        f"{profile.groups_per_class[smallest]}",
        "more time (up to 5 folds)",
    )


def _imbalance_choice(profile: DatasetProfile, tau: float) -> PlanChoice:
    counts = ", ".join(f"{name} {count:,}" for name, count in profile.class_counts.items())
    reason = (
        "rare classes count as much as common ones: the class frequencies are added to the logits in training"
        if tau
        else "the classes are about equally frequent"
    )
    return PlanChoice(
        "optim.logit_adjustment",
        f"{tau:g}",
        reason,
        f"{counts}: the largest has {profile.imbalance:.1f} images for each of the smallest. Menon 2021; on made "
        "images at 1:50 balanced accuracy went from below .62 to .84",
        f"at most {_BALANCED_UP_TO:g} images of the largest class for each of the smallest (0), or more than "
        f"{_MOST_ADJUSTED:g} (less than 1)",
    )


def _first_choice(candidate: Candidate, nets: Sequence[MeasuredNet], budget: float) -> PlanChoice:
    net = max(nets, key=lambda one: one.speed.forward)
    recipe = candidate.recipe
    if net.model.weights == "none":
        return PlanChoice(
            "first recipe",
            f"{recipe.name}, {recipe.phases[0].epochs} epochs",
            "no pretrained weights are at hand, so a small net is trained from random ones",
            "a frozen net of random weights knows nothing",
            "weights: give `--weights FILE`, or fetch some once with a network (`dermkit recipes backbones`)",
        )
    late = (
        "" if candidate.seconds <= budget else "; it takes longer than the time given, and is the least there is"
    )
    return PlanChoice(
        "first recipe",
        f"{recipe.name}: {recipe.phases[0].views or 'no'} augmented views, {recipe.test_views} test views",
        f"a frozen net with a trained head is never long, so that there is a model whatever happens{late}",
        f"{net.speed.forward:,.0f} images a second through the frozen net; about {candidate.seconds:,.0f} s",
        "another net at hand that is faster, or another time",
    )


def _trained_choice(drafts: _Drafts, net: MeasuredNet, epochs: int, part: float) -> PlanChoice:
    fewest = next(n for n in range(1, _FEWEST.epochs + 1) if drafts.is_long(n, _FEWEST))
    least = drafts.seconds(_trained_recipe(drafts, net, fewest, part), net.speed)
    fewest_text = f"{fewest} epoch{'s' * (fewest > 1)}"
    evidence = (
        f"{net.speed.train:,.0f} images a second in training ({net.speed.precision}), measured; {part:,.0f} s are "
        f"left for it, {fewest_text} would take {least:,.0f} s"
    )
    if not drafts.is_long(epochs, _FEWEST):
        return PlanChoice(
            f"whole {net.model.backbone}", "not trained",
            f"fewer than {fewest_text} would fit into the time", evidence,
            f"about {(least - part) / _USABLE / 60:.0f} min more, or a GPU",
        )  # fmt: skip
    return PlanChoice(
        f"whole {net.model.backbone}", f"{epochs} epochs",
        "all layers trained: on isic9, training images only, better than a frozen net (log/LOG.md)", evidence,
        "more time" if epochs < _MOST_EPOCHS else f"nothing: no net gets more than {_MOST_EPOCHS} epochs",
    )  # fmt: skip


def _ids_choice(profile: DatasetProfile) -> list[PlanChoice]:
    if profile.n_with_lesion_or_patient:
        return []
    return [
        PlanChoice(
            "groups", "copies alone",
            "no image has a lesion or patient id, so photographs of one lesion may lie in two folds, and the figures "
            "be too good",
            f"0 of {profile.n_training:,} images with an id", "ids: import them with the images (docs/layouts.md)",
        )
    ]  # fmt: skip


def _audit_choice(profile: DatasetProfile) -> list[PlanChoice]:
    state, errors = profile.audit["state"], profile.audit["errors"]
    if state == "done" and not errors:
        return []
    evidence = f"open errors: {', '.join(errors)}" if errors else {
        "never": "it was never audited", "outdated": "it changed after its audit", "done": "",
    }[state]  # fmt: skip
    return [
        PlanChoice(
            "data", "as they are", "copies, contradictory labels and leaks are not looked for while training", evidence,
            "`dermkit audit DATASET --clean` before",
        )
    ]  # fmt: skip
