"""From a data set's profile, the machine's speed and a time to a few recipes, each choice with its reason.

The order of the race is fixed: a frozen net first, since it is never long; then whole nets, those given first; then
their ensemble, which costs seconds. All train on the same folds of the images outside the test split, so that their
out-of-fold predictions can be compared image by image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dermkit.pipeline.dataset_profile import DatasetProfile
from dermkit.pipeline.estimate_cost import NetSpeed, estimate_seconds
from dermkit.recipes.schema import ModelSpec, Recipe, SplitSpec
from dermkit.recipes.strong import STRONG_1H, STRONG_5MIN

_USABLE = 0.8
"""Of the time, what is planned: other programs may slow the machine down. What is left goes unused."""
_FOLDS = (5, 3, 2)
_MOST_EPOCHS = 16
_FEWEST_EPOCHS = 4
"""A whole net that sees each image less often is not trained: its head has hardly moved. Chosen, not measured."""
_WANTED_EPOCHS = 8
"""More folds are taken only if the first whole net still gets this many epochs. Chosen, not measured."""
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
    """What `train auto` does in a time. seconds: the whole time; decoding: seconds of it until pixels are there."""

    seconds: float
    decoding: float
    n_folds: int
    candidates: tuple[Candidate, ...]
    choices: tuple[PlanChoice, ...]

    @property
    def planned_seconds(self) -> float:
        """The seconds that the plan expects to take."""
        return self.decoding + sum(candidate.seconds for candidate in self.candidates)


def make_plan(
    profile: DatasetProfile,
    nets: Sequence[MeasuredNet],
    *,
    images_decoded_per_second: float,
    seconds: float,
    seed: int,
) -> AutoPlan:
    """Return the recipes of a race that ends in `seconds`; at least one, however short the time.

    nets: those that may be used, the preferred first.
    """
    decoding = profile.n_training / images_decoded_per_second
    budget = _USABLE * seconds - decoding
    tau = _logit_adjustment(profile)
    n_folds = _choose_folds(profile, nets, budget, tau, seed)
    drafts = _Drafts(profile, n_folds, tau, seed)
    first = _first_candidate(drafts, nets, budget)
    trained, trained_choices = _trained_candidates(drafts, nets, budget - first.seconds)
    if not trained:  # then all the time is for it
        first = _first_candidate(drafts, nets, 2 * budget)
    choices = (
        _folds_choice(profile, n_folds),
        _imbalance_choice(profile, tau),
        _first_choice(first, nets, budget),
        *trained_choices,
        *_ids_choice(profile),
        *_audit_choice(profile),
    )
    return AutoPlan(seconds, decoding, n_folds, (first, *trained), choices)


@dataclass(frozen=True)
class _Drafts:
    """What all recipes of a race have in common."""

    profile: DatasetProfile
    n_folds: int
    tau: float
    seed: int

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
        return estimate_seconds(recipe, speed, n_images=self.profile.n_training, n_folds=self.n_folds)


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
    return net.model.backbone.replace("/", "-").replace(":", "-").partition(".")[0]


def _trained_recipe(drafts: _Drafts, net: MeasuredNet, epochs: int) -> Recipe:
    recipe = drafts.recipe(STRONG_1H, net, f"finetuned-{_short_name(net)}")
    (phase,) = recipe.phases
    # A plain transformer has no batch norm that would soften its steps: a third of the rate (chosen).
    rate = phase.backbone_lr / 3 if "vit" in net.model.backbone else phase.backbone_lr
    return replace(
        recipe,
        phases=(replace(phase, epochs=epochs, backbone_lr=rate),),
        compute=replace(recipe.compute, precision=net.speed.precision),  # type: ignore[arg-type]
    )


def _epochs_that_fit(drafts: _Drafts, net: MeasuredNet, budget: float) -> int:
    """Return the epochs of a whole net that fit into some seconds, on all folds; at most `_MOST_EPOCHS`."""
    one, two = (drafts.seconds(_trained_recipe(drafts, net, epochs), net.speed) for epochs in (1, 2))
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
) -> int:
    """Return the most folds with which the first whole net gets enough epochs, or else the fewest; where it gets none,
    the most with which the first recipe fits.
    """
    drafts = [_Drafts(profile, n, tau, seed) for n in _FOLDS if n <= max(2, profile.n_groups // 2)]
    first = [_first_candidate(draft, nets, budget) for draft in drafts]
    for wanted_epochs in (_WANTED_EPOCHS, _FEWEST_EPOCHS):
        for draft, candidate in zip(drafts, first, strict=True):
            if _epochs_that_fit(draft, nets[0], budget - candidate.seconds) >= wanted_epochs:
                return draft.n_folds
    fitting = [
        draft.n_folds for draft, candidate in zip(drafts, first, strict=True) if candidate.seconds <= budget
    ]
    return fitting[0] if fitting else drafts[-1].n_folds


def _first_candidate(drafts: _Drafts, nets: Sequence[MeasuredNet], budget: float) -> Candidate:
    """Return the recipe that is always trained, with as many views of each image as the time allows.

    Of the net that scores fastest; without pretrained weights, a small net of random weights, since a frozen one of
    these knows nothing.
    """
    net = max(nets, key=lambda one: one.speed.forward)
    if net.model.weights == "none":
        epochs = max(_FEWEST_EPOCHS, _epochs_that_fit(drafts, net, budget))
        recipe = _trained_recipe(drafts, net, epochs)
        return Candidate(recipe, None, drafts.seconds(recipe, net.speed))
    for views, test_views in ((5, "dihedral"), (2, "dihedral"), (0, "dihedral"), (0, "identity")):
        recipe = drafts.recipe(STRONG_5MIN, net, f"frozen-{_short_name(net)}")
        recipe = replace(recipe, phases=(replace(recipe.phases[0], views=views),), test_views=test_views)  # type: ignore[arg-type]
        candidate = Candidate(recipe, net.weights_file, drafts.seconds(recipe, net.speed.frozen))
        if candidate.seconds <= budget / 2:
            break
    return candidate


def _trained_candidates(
    drafts: _Drafts, nets: Sequence[MeasuredNet], budget: float
) -> tuple[list[Candidate], list[PlanChoice]]:
    """Return the whole nets that fit, each with an even part of the time that is left, and why the others do not.

    Where an even part is too short for a net, it gets all that is left: one whole net is worth more than none.
    """
    candidates, choices = [], []
    pretrained = [net for net in nets if net.model.weights != "none"]
    for number, net in enumerate(pretrained):
        part = budget / (len(pretrained) - number)
        epochs = _epochs_that_fit(drafts, net, part)
        if epochs < _FEWEST_EPOCHS:
            part, epochs = budget, _epochs_that_fit(drafts, net, budget)
        if epochs >= _FEWEST_EPOCHS:
            recipe = _trained_recipe(drafts, net, epochs)
            seconds = drafts.seconds(recipe, net.speed)
            candidates.append(Candidate(recipe, net.weights_file, seconds))
            budget -= seconds
        choices.append(_trained_choice(drafts, net, epochs, part))
    return candidates, choices


# Choices in words ---------------------------------------------------------------------------------------------------


def _folds_choice(profile: DatasetProfile, n_folds: int) -> PlanChoice:
    smallest = profile.smallest_class
    where = (
        "the published training images" if profile.has_published_test else "all images but a fifth for the test"
    )
    return PlanChoice(
        "folds",
        str(n_folds),
        f"every one of {where} is predicted by a net that did not see it or its group, so that recipes are compared on "
        f"{profile.n_training:,} images",
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
    least = drafts.seconds(_trained_recipe(drafts, net, _FEWEST_EPOCHS), net.speed)
    evidence = (
        f"{net.speed.train:,.0f} images a second in training ({net.speed.precision}), measured; {part:,.0f} s are "
        f"left for it, {_FEWEST_EPOCHS} epochs take {least:,.0f} s"
    )
    if epochs < _FEWEST_EPOCHS:
        return PlanChoice(
            f"whole {net.model.backbone}", "not trained",
            f"fewer than {_FEWEST_EPOCHS} epochs on {drafts.n_folds} folds fit into the time", evidence,
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
