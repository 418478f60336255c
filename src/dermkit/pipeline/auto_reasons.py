"""The choices of a plan in words: its value, the reason, the evidence, and what would change it."""

from collections.abc import Sequence
from dataclasses import dataclass

from dermkit.pipeline.auto_recipes import (
    BALANCED_UP_TO,
    KIND_NAMES,
    LONGEST_FIT,
    MOST_ADJUSTED,
    MOST_EPOCHS,
    MOST_ROWS,
    MOST_SEEDS,
    SHORTEST_TRAINING,
    USABLE_FRACTION,
    Candidate,
    ClassifierDraft,
    MeasuredNet,
    RaceDrafts,
    fastest_net,
    trained_recipe,
)
from dermkit.pipeline.dataset_profile import DatasetProfile
from dermkit.pipeline.estimate_cost import FIT_SAFETY

_TEST_FRACTION = 0.2
"""Of the images, where none were published as test images (`fold_split`)."""


@dataclass(frozen=True)
class PlanChoice:
    """One choice of the plan. would_change: what would have to be different for another value."""

    name: str
    value: str
    reason: str
    evidence: str
    would_change: str


def folds_choice(drafts: RaceDrafts) -> PlanChoice:
    """Return why so many folds are drawn, and why all or one are trained."""
    profile, n_folds = drafts.profile, drafts.n_folds
    smallest = profile.smallest_class
    published, part = profile.has_published_test, 1.0 if profile.has_published_test else 1 - _TEST_FRACTION
    where = (
        "the published training images" if published else "four fifths of the images; the others are for the test"
    )
    reason = (
        f"every image is predicted by a net that saw neither it nor another of its group, so that recipes are compared "
        f"on {'' if published else 'about '}{part * profile.n_training:,.0f} images: {where}"
        if drafts.n_trained_folds > 1
        else f"the time is short: one net of each recipe is trained without the first of {n_folds} folds, and recipes "
        f"are compared on about {part * drafts.n_validation:,.0f} images. Folds are of {where}"
    )
    return PlanChoice(
        "folds",
        str(n_folds) if drafts.n_trained_folds > 1 else f"one of {n_folds}",
        reason,
        f"{profile.n_groups:,} groups of lesion, patient and copies; the smallest class, {smallest}, has "
        f"{profile.groups_per_class[smallest]}",
        "more time (up to 5 folds)",
    )


def imbalance_choice(profile: DatasetProfile, tau: float) -> PlanChoice:
    """Return why logits are adjusted by tau."""
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
        f"at most {BALANCED_UP_TO:g} images of the largest class for each of the smallest (0), or more than "
        f"{MOST_ADJUSTED:g} (less than 1)",
    )


def first_choice(candidate: Candidate, nets: Sequence[MeasuredNet], budget: float) -> PlanChoice:
    """Return why the race begins with this recipe. budget: seconds for all recipes."""
    net = fastest_net(nets)
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
        f"a head on a frozen net is trained in a short time, so there is a model whatever happens later{late}",
        f"{net.speed.features:,.0f} images a second through the frozen net ({recipe.compute.precision}), measured; "
        f"about {candidate.seconds:,.0f} s",
        "another net at hand that is faster, or another time",
    )


def trained_choice(drafts: RaceDrafts, net: MeasuredNet, epochs: int, part: float) -> PlanChoice:
    """Return why a whole net is trained for so many epochs, or not. part: seconds that are left for it."""
    fewest = next(n for n in range(1, SHORTEST_TRAINING.epochs + 1) if drafts.is_long(n, SHORTEST_TRAINING))
    least = drafts.seconds(trained_recipe(drafts, net, fewest, part), net.speed)
    fewest_text = f"{fewest} epoch{'s' * (fewest > 1)}"
    evidence = (
        f"{net.speed.train:,.0f} images a second in training ({net.speed.precision}), measured; {part:,.0f} s are "
        f"left for it, {fewest_text} would take {least:,.0f} s"
    )
    if not drafts.is_long(epochs, SHORTEST_TRAINING):
        return PlanChoice(
            f"whole {net.model.backbone}", "not trained",
            f"fewer than {fewest_text} would fit into the time", evidence,
            f"about {(least - part) / USABLE_FRACTION / 60:.0f} min more, or a GPU",
        )  # fmt: skip
    return PlanChoice(
        f"whole {net.model.backbone}", f"{epochs} epochs",
        "all layers trained: on isic9, training images only, better than a frozen net (log/LOG.md)", evidence,
        "more time" if epochs < MOST_EPOCHS else f"nothing: no net gets more than {MOST_EPOCHS} epochs",
    )  # fmt: skip


def classifiers_choice(classifiers: Sequence[ClassifierDraft]) -> list[PlanChoice]:
    """Return which classifiers are fitted to the frozen net's features, and why not others; nothing where none was
    measured.
    """
    if not classifiers:
        return []
    entered = [KIND_NAMES[draft.time.kind][1] for draft in classifiers if draft.candidate]
    bounds = "; ".join(
        f"{KIND_NAMES[draft.time.kind][1]} {draft.time.seconds:.2g} s for {draft.time.n_rows:,} vectors, "
        f"so at most {draft.bound:,.2g} s for {draft.n_rows:,}"
        for draft in classifiers
    )
    measured = {draft.time.kind for draft in classifiers}
    skipped = [title for kind, (_, title) in KIND_NAMES.items() if kind not in measured]
    not_measured = f"; not measured, for lack of time: {', '.join(skipped)}" if skipped else ""
    return [
        PlanChoice(
            "classifiers on frozen features", ", ".join(entered) or "none",
            "the features are computed already, so a classifier costs only its fit and its scoring. A fit cannot be "
            f"stopped halfway: classifiers come last, and one that may take more than {LONGEST_FIT * 100:g} % of the "
            "time, or more than is left, does not take part",
            f"measured on random features, extrapolated, and multiplied by {FIT_SAFETY:g}: {bounds}{not_measured}",
            "nothing: all take part" if len(entered) == len(KIND_NAMES)
            else f"more time, or fewer images (at most {MOST_ROWS:,} feature vectors a fit)",
        )
    ]  # fmt: skip


def seeds_choice(candidates: Sequence[Candidate], further: Sequence[Candidate]) -> list[PlanChoice]:
    """Return which whole nets are trained from further seeds; nothing where none has all its epochs."""
    seconds = {one.recipe.name: one.seconds for one in candidates if one.has_all_epochs}
    if not seconds:
        return []
    costs = "; ".join(f"{name} takes {cost:,.0f} s" for name, cost in seconds.items())
    is_full = len(further) == (MOST_SEEDS - 1) * len(seconds)
    return [
        PlanChoice(
            "further seeds", ", ".join(one.recipe.name for one in further) or "none",
            f"no net gets more than {MOST_EPOCHS} epochs; the mean of nets from several seeds is more often right than "
            "one of them (Lakshminarayanan 2017)",
            f"planned from the measured speed: {costs}",
            f"nothing: no recipe gets more than {MOST_SEEDS} seeds" if is_full else "more time",
        )
    ]  # fmt: skip


def ids_choice(profile: DatasetProfile) -> list[PlanChoice]:
    """Return what is assumed where no image has a lesion or patient id; nothing where some have."""
    if profile.n_with_lesion_or_patient:
        return []
    return [
        PlanChoice(
            "groups", "copies alone",
            "no image has a lesion or patient id, so photographs of one lesion may lie in two folds, which makes the "
            "figures too good",
            f"0 of {profile.n_training:,} images with an id", "ids: import them with the images (docs/layouts.md)",
        )
    ]  # fmt: skip


def audit_choice(profile: DatasetProfile) -> list[PlanChoice]:
    """Return that the data set is trained on as it is, where it was not audited or has open errors."""
    state, errors = profile.audit["state"], profile.audit["errors"]
    if state == "done" and not errors:
        return []
    evidence = f"open errors: {', '.join(errors)}" if errors else {
        "never": "it was never audited", "outdated": "it changed after its audit", "done": "",
    }[state]  # fmt: skip
    return [
        PlanChoice(
            "data", "as they are", "training does not look for copies, contradictory labels and leaks", evidence,
            "an audit before the race: `dermkit audit DATASET --clean`",
        )
    ]  # fmt: skip
