"""From a data set's profile, the machine's speed and a time to a few recipes, each choice with its reason.

The order of the race is fixed: a frozen net first, since it is never long; then whole nets, those given first; then
classifiers on the frozen net's features, which cannot be ended at a deadline; then the whole nets from further seeds,
where the time allows; then the ensemble of all, which costs seconds. All train on the same folds of the images outside
the test split, so that their out-of-fold predictions can be compared image by image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from dermkit.pipeline.auto_reasons import (
    PlanChoice,
    audit_choice,
    classifiers_choice,
    first_choice,
    folds_choice,
    ids_choice,
    imbalance_choice,
    seeds_choice,
    trained_choice,
)
from dermkit.pipeline.auto_recipes import (
    LONGEST_FIT,
    SHORTEST_TRAINING,
    USABLE_FRACTION,
    WANTED_TRAINING,
    Candidate,
    ClassifierDraft,
    MeasuredNet,
    RaceDrafts,
    draft_classifiers,
    epochs_that_fit,
    fastest_net,
    first_candidate,
    further_seeds,
    logit_adjustment,
    trained_recipe,
)
from dermkit.pipeline.dataset_profile import DatasetProfile
from dermkit.pipeline.estimate_cost import FitTime

_FOLDS = (5, 3, 2)
_FIRST_PART = 0.2
"""Of the time, for the frozen net where a whole one fits."""
_CLASSIFIERS_PART = 0.1
"""Of the time, for classifiers where whole nets would take all of it: these then get some epochs less. Chosen."""


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
    fits: Sequence[FitTime] = (),
) -> AutoPlan:
    """Return the recipes of a race that ends in `seconds`; at least one, however short the time.

    nets: those that may be used, the preferred first. elapsed: seconds that are over already, spent on measuring. fits:
    of classifiers on the features of the net that scores fastest; none take part without.
    """
    decoding = profile.n_training / images_decoded_per_second
    budget = USABLE_FRACTION * seconds - elapsed - decoding
    drafts = _choose_folds(profile, nets, budget, logit_adjustment(profile), seed)
    first = first_candidate(drafts, nets, budget, part=_FIRST_PART)
    trained, trained_choices = _trained_candidates(drafts, nets, budget - first.seconds)
    if not trained:  # then all the time is for it
        first = first_candidate(drafts, nets, budget, part=1.0)
    draft = partial(draft_classifiers, drafts, first, fastest_net(nets), fits, longest=LONGEST_FIT * seconds)
    classifiers = draft(budget=budget - first.seconds - _total_seconds(trained))
    wanted = draft(budget=_CLASSIFIERS_PART * seconds)
    if _total_seconds(wanted) > _total_seconds(classifiers):
        shorter, shorter_choices = _trained_candidates(
            drafts, nets, budget - first.seconds - _total_seconds(wanted)
        )
        if _are_as_many_and_long(drafts, shorter, trained):
            trained, trained_choices, classifiers = shorter, shorter_choices, wanted
    choices = (
        folds_choice(drafts),
        imbalance_choice(profile, drafts.tau),
        first_choice(first, nets, budget),
        *trained_choices,
        *classifiers_choice(classifiers),
        *ids_choice(profile),
        *audit_choice(profile),
    )
    candidates = (first, *trained, *(draft.candidate for draft in classifiers if draft.candidate))
    of_more_seeds = further_seeds(candidates, budget - _total_seconds(candidates))
    return AutoPlan(
        seconds=seconds, decoding=decoding, n_folds=drafts.n_folds, n_trained_folds=drafts.n_trained_folds,
        candidates=(*candidates, *of_more_seeds), choices=(*choices, *seeds_choice(candidates, of_more_seeds)),
    )  # fmt: skip


def _total_seconds(candidates: Sequence[Candidate | ClassifierDraft]) -> float:
    return sum(candidate.seconds for candidate in candidates)


def _are_as_many_and_long(drafts: RaceDrafts, shorter: Sequence[Candidate], trained: Sequence[Candidate]) -> bool:
    """Return whether the same whole nets are trained, each long enough, and there are some."""
    names = [candidate.recipe.name for candidate in trained]
    epochs = [candidate.recipe.phases[0].epochs for candidate in shorter]
    return (
        bool(names)
        and [candidate.recipe.name for candidate in shorter] == names
        and all(drafts.is_long(n_epochs, WANTED_TRAINING) for n_epochs in epochs)
    )


def _choose_folds(
    profile: DatasetProfile, nets: Sequence[MeasuredNet], budget: float, tau: float, seed: int
) -> RaceDrafts:
    """Return the drafts of the most folds with which the first whole net is trained long enough.

    Where the time is too short for three folds, one of five is trained: a net of four fifths of the images is better
    than two of the half. Where no whole net fits, the most folds with which the first recipe does.
    """
    allowed = [n for n in _FOLDS if n <= max(2, profile.n_groups // 2)]
    pairs = [(n, n) for n in allowed if n > 2 or n == allowed[0]] + [(allowed[0], 1)]
    options = [RaceDrafts(profile, n_folds, n_trained, tau, seed) for n_folds, n_trained in pairs]
    for length in (WANTED_TRAINING, SHORTEST_TRAINING):
        for drafts in options:
            first = first_candidate(drafts, nets, budget, part=_FIRST_PART)
            if drafts.is_long(epochs_that_fit(drafts, nets[0], budget - first.seconds), length):
                return drafts
    whole = [RaceDrafts(profile, n, n, tau, seed) for n in allowed]
    fitting = (drafts for drafts in whole if first_candidate(drafts, nets, budget, part=1.0).seconds <= budget)
    return next(fitting, whole[-1])


def _trained_candidates(
    drafts: RaceDrafts, nets: Sequence[MeasuredNet], budget: float
) -> tuple[list[Candidate], list[PlanChoice]]:
    """Return the whole nets that fit, each with an even part of the time that is left, and why the others do not.

    Where an even part is too short for a net to be trained well, it gets all that is left.
    """
    candidates, choices = [], []
    pretrained = [net for net in nets if net.model.weights != "none"]
    for number, net in enumerate(pretrained):
        part = budget / (len(pretrained) - number)
        epochs = epochs_that_fit(drafts, net, part)
        if not drafts.is_long(epochs, WANTED_TRAINING):
            part, epochs = budget, epochs_that_fit(drafts, net, budget)
        if drafts.is_long(epochs, SHORTEST_TRAINING):
            recipe = trained_recipe(drafts, net, epochs, part)
            seconds = drafts.seconds(recipe, net.speed)
            candidates.append(Candidate(recipe, net.weights_file, seconds))
            budget -= seconds
        choices.append(trained_choice(drafts, net, epochs, part))
    return candidates, choices
