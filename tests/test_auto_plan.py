"""The plan of `train auto`: what a data set, a machine's speed and a time become, and the estimate behind it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermkit.pipeline.auto_nets import SMALL_NET, input_size
from dermkit.pipeline.auto_plan import AutoPlan, make_plan
from dermkit.pipeline.auto_recipes import KIND_NAMES, MeasuredNet
from dermkit.pipeline.dataset_profile import DatasetProfile
from dermkit.pipeline.estimate_cost import FitTime, NetSpeed, estimate_seconds
from dermkit.recipes.head_checks import check_head_fields
from dermkit.recipes.schema import ModelSpec, parse_recipe, recipe_to_dict
from dermkit.recipes.strong import STRONG_1H, STRONG_5MIN


def profile_of(counts: dict[str, int], *, n_test: int = 100, audit: str = "done") -> DatasetProfile:
    return DatasetProfile(
        name="made", n_training=sum(counts.values()), n_test=n_test, class_counts=counts, groups_per_class=counts,
        n_groups=sum(counts.values()), n_with_lesion_or_patient=1, n_copies=0, median_side=180, known_metadata={},
        malignant_classes=("melanoma",), audit={"state": audit, "errors": [], "warnings": []},
    )  # fmt: skip


def net(name: str = "mobilenetv2_100", *, train: float = 70.0, forward: float = 300.0) -> MeasuredNet:
    model: ModelSpec = replace(STRONG_1H.model, backbone=name, backbone_args={})
    if name == SMALL_NET:
        model = replace(model, weights="none")
    weights_file = None if name == SMALL_NET else Path(f"{name}.safetensors")
    return MeasuredNet(model, weights_file, NetSpeed(train, forward, forward, "float32"))


def plan_of(profile: DatasetProfile, *nets: MeasuredNet, seconds: float, fits: Sequence[FitTime] = ()) -> AutoPlan:
    return make_plan(
        profile, nets or (net(),), images_decoded_per_second=500.0, seconds=seconds, seed=3, fits=fits
    )


def fits_of(seconds: float) -> list[FitTime]:
    """Return the time of every kind of classifier that takes part, the same for all."""
    return [FitTime(kind, 400, seconds) for kind in KIND_NAMES]


def kinds(plan: AutoPlan) -> list[str]:
    """Return the classifiers of a plan, in order."""
    specs = (candidate.recipe.model.classifier for candidate in plan.candidates)
    return [spec.kind for spec in specs if spec]


BALANCED = profile_of({"nevus": 1000, "melanoma": 1000})


def test_half_an_hour_trains_a_frozen_net_and_a_whole_one() -> None:
    plan = plan_of(BALANCED, seconds=3600.0)
    frozen, trained = plan.candidates
    assert [phase.train_backbone for phase in frozen.recipe.phases] == ["none"]
    assert [phase.train_backbone for phase in trained.recipe.phases] == ["all"]
    assert plan.n_folds == plan.n_trained_folds == frozen.recipe.split.folds == trained.recipe.split.folds == 5
    # By hand: 5 folds of 16 epochs on 1,600 images at 70 a second, 400 validated and 512 for the statistics of batch
    # norm at 300, scored with eight views.
    by_hand = 5 * (4.0 + 16 * (1600 / 70 + (400 + 512) / 300) + 400 * 8 / 300)
    assert trained.recipe.phases[0].epochs == 16 and trained.seconds == pytest.approx(by_hand)


def test_five_minutes_train_a_whole_net_on_one_of_five_folds() -> None:
    plan = plan_of(BALANCED, seconds=300.0)
    frozen, trained = (one.recipe for one in plan.candidates)
    assert (plan.n_folds, plan.n_trained_folds, frozen.split.folds) == (5, 1, 5)
    # By hand: 200 s of .85 of the time less decoding; 22.9 and 4.7 s an epoch, 4 s and eight views beside.
    left = 0.85 * 300 - 2000 / 500 - plan.candidates[0].seconds - 4.0 - 400 * 8 / 300
    assert (
        trained.phases[0].epochs == int(left / (1600 / 70 + (400 + 512) / 300))
        and trained.test_views == "dihedral"
    )
    assert plan.candidates[0].seconds <= 0.2 * (0.85 * 300 - 4)
    (choice,) = (one for one in plan.choices if one.name == "folds")
    assert choice.value == "one of 5" and "about 400 images" in choice.reason


def test_a_net_is_trained_at_the_size_that_it_was_measured_at_and_with_what_it_has() -> None:
    small = replace(net(), image_size=96)
    assert {one.recipe.image.size for one in plan_of(BALANCED, small, seconds=3600.0).candidates} == {96}
    without = replace(small, speed=replace(small.speed, has_batch_norm=False))
    for one, images in ((small, 512), (without, 0)):
        trained = plan_of(BALANCED, one, seconds=3600.0).candidates[1].recipe
        assert trained.optim.batch_norm_images == images


def test_features_for_training_are_computed_in_bfloat16_where_that_is_faster() -> None:
    slow = net(forward=60.0)
    fast = replace(slow, speed=replace(slow.speed, bfloat16_forward=120.0))
    frozen, *others = (
        one.recipe for one in plan_of(BALANCED, fast, seconds=1200.0, fits=fits_of(0.01)).candidates
    )
    assert frozen.compute.precision == "bfloat16" and kinds(
        plan_of(BALANCED, fast, seconds=1200.0, fits=fits_of(0.01))
    )
    for recipe in others:
        is_frozen = recipe.phases[0].train_backbone == "none"
        assert recipe.compute.precision == ("bfloat16" if is_frozen else "float32"), "they share the features"
    plain = plan_of(BALANCED, slow, seconds=1200.0).candidates[0].recipe
    assert (plain.compute.precision, plain.phases[0].views, frozen.phases[0].views) == ("float32", 2, 5)
    # By hand: 5 views at 120 a second, and the images as they are, for validation, at 60.
    recipe = replace(frozen, test_views="identity", phases=(replace(frozen.phases[0], epochs=1),))
    seconds = estimate_seconds(recipe, fast.speed.frozen, n_images=2000, n_folds=5)
    assert seconds == pytest.approx(2000 * 5 / 120 + 2000 / 60 + 5 * (4.0 + 1600 / 20_000 + 400 / 60))


def test_few_passes_over_many_images_are_enough_and_are_scored_with_one_view() -> None:
    profile = profile_of({"nevus": 4800, "melanoma": 4800})
    frozen, trained = (one.recipe for one in plan_of(profile, net(train=80.0), seconds=330.0).candidates)
    assert trained.phases[0].epochs < 4 and trained.phases[0].epochs * 0.8 * 9600 / 32 >= 150
    assert (trained.test_views, frozen.test_views) == ("identity", "identity")


def test_seconds_spent_on_measuring_are_not_planned_again() -> None:
    plans = [
        make_plan(BALANCED, [net()], images_decoded_per_second=500.0, seconds=300.0, seed=0, elapsed=elapsed)
        for elapsed in (0.0, 60.0)
    ]
    assert plans[1].planned_seconds <= 0.85 * 300 - 60 < plans[0].planned_seconds


def test_a_short_time_trains_the_frozen_net_alone_and_says_what_the_whole_one_would_take() -> None:
    plan = plan_of(BALANCED, seconds=90.0)
    assert [one.recipe.phases[0].train_backbone for one in plan.candidates] == ["none"]
    (choice,) = (one for one in plan.choices if one.name == "whole mobilenetv2_100")
    assert choice.value == "not trained" and "min more" in choice.would_change


def test_where_no_whole_net_fits_the_frozen_one_takes_the_time() -> None:
    profile = profile_of({"nevus": 4000, "melanoma": 4000})
    (only,) = plan_of(profile, net(train=5.0), seconds=480.0).candidates
    assert (only.recipe.phases[0].views, only.recipe.test_views) == (2, "dihedral")
    assert 0.85 * 480.0 / 2 < only.seconds <= 0.85 * 480.0 - 8000 / 500


def test_a_time_too_short_for_anything_still_gives_the_least_there_is_and_says_so() -> None:
    plan = plan_of(profile_of({"nevus": 50_000, "melanoma": 50_000}), seconds=10.0)
    (only,) = plan.candidates
    assert only.recipe.phases[0].views == 0 and only.recipe.test_views == "identity" and only.seconds > 10.0
    assert any("longer than the time given" in choice.reason for choice in plan.choices)


def test_without_weights_a_small_net_is_trained_from_random_ones() -> None:
    plan = plan_of(BALANCED, net(SMALL_NET), seconds=600.0)
    (only,) = plan.candidates
    assert only.recipe.model.weights == "none" and only.recipe.phases[0].train_backbone == "all"
    assert any("no pretrained weights" in choice.reason for choice in plan.choices)


def test_common_classes_are_adjusted_for_and_equal_ones_are_not() -> None:
    def taus(**counts: int) -> set[float]:
        return {one.recipe.optim.logit_adjustment for one in plan_of(profile_of(counts), seconds=900.0).candidates}

    assert (taus(nevus=1000, melanoma=20), taus(nevus=1000, melanoma=1000)) == ({1.0}, {0.0})
    # 2,500 to 1 is twice as many powers of 50: half of it.
    assert taus(nevus=2500, melanoma=1) == {0.5}


def test_a_rare_class_does_not_keep_the_others_from_five_folds() -> None:
    assert plan_of(profile_of({"nevus": 500, "melanoma": 3}), seconds=7200.0).n_folds == 5
    assert plan_of(profile_of({"nevus": 4, "melanoma": 2}), seconds=7200.0).n_folds == 3


def test_where_the_time_is_short_for_two_nets_the_preferred_one_gets_all_of_it() -> None:
    first, second = net(), net("vit_tiny_patch16_224", train=40.0)
    plan = plan_of(BALANCED, first, second, seconds=420.0)
    assert [one.recipe.name for one in plan.candidates] == ["frozen-mobilenetv2_100", "finetuned-mobilenetv2_100"]


def test_published_test_images_are_left_aside_and_others_are_drawn() -> None:
    (published, *_), (drawn, *_) = (
        plan_of(profile_of({"nevus": 500, "melanoma": 500}, n_test=n), seconds=900.0).candidates for n in (100, 0)
    )
    assert published.recipe.split.scheme == "given"
    assert (drawn.recipe.split.scheme, drawn.recipe.split.test) == ("holdout", 0.2)


def test_an_audit_that_was_never_done_is_said() -> None:
    plan = plan_of(profile_of({"nevus": 500, "melanoma": 500}, audit="never"), seconds=900.0)
    assert any("dermkit audit" in choice.would_change for choice in plan.choices)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(2, 20_000), min_size=2, max_size=9),
    speeds=st.lists(st.tuples(st.floats(1, 2000), st.floats(2, 8000)), min_size=1, max_size=3),
    seconds=st.floats(5, 100_000),
    n_test=st.sampled_from([0, 50]),
)
def test_every_plan_ends_in_time_or_is_the_least_there_is(
    counts: list[int], speeds: list[tuple[float, float]], seconds: float, n_test: int
) -> None:
    profile = profile_of({f"class {k}": count for k, count in enumerate(counts)}, n_test=n_test)
    nets = [net(f"net{k}", train=train, forward=forward) for k, (train, forward) in enumerate(speeds)]
    plan = plan_of(profile, *nets, seconds=seconds)
    assert plan.planned_seconds <= 0.85 * seconds + 1e-6 or len(plan.candidates) == 1
    assert len({one.recipe.name for one in plan.candidates}) == len(plan.candidates)
    assert plan.n_trained_folds in (1, plan.n_folds)
    for candidate in plan.candidates:
        assert parse_recipe(recipe_to_dict(candidate.recipe), "a plan") == candidate.recipe
        assert candidate.recipe.split.folds == plan.n_folds <= 5 and candidate.recipe.split.seed == 3
        assert candidate.recipe.seed in (3, 4, 5) and (candidate.recipe.seed == 3) == (
            "seed" not in candidate.recipe.name
        )
        speed = nets[0].speed.frozen if candidate is plan.candidates[0] else None
        assert candidate.recipe.phases[0].train_backbone == ("none" if speed else "all")
    assert all(one.reason and one.evidence and one.would_change for one in plan.choices)


def test_more_views_epochs_and_folds_cost_more() -> None:
    speed = NetSpeed(100.0, 400.0, 400.0, "float32")
    base = estimate_seconds(STRONG_1H, speed, n_images=1000, n_folds=5)
    longer = replace(STRONG_1H, phases=(replace(STRONG_1H.phases[0], epochs=24),))
    assert estimate_seconds(longer, speed, n_images=1000, n_folds=5) > 1.8 * base
    assert estimate_seconds(STRONG_1H, speed, n_images=1000, n_folds=2) < base / 2
    running = replace(STRONG_1H, optim=replace(STRONG_1H.optim, batch_norm_images=0))
    saved = 5 * STRONG_1H.phases[0].epochs * 800 / speed.validate
    assert estimate_seconds(running, speed, n_images=1000, n_folds=5) == pytest.approx(base - saved)
    one_view = replace(STRONG_1H, test_views="identity")
    assert estimate_seconds(one_view, speed, n_images=1000, n_folds=5) == pytest.approx(base - 7 * 1000 / 400)
    fewer_views = replace(STRONG_5MIN, phases=(replace(STRONG_5MIN.phases[0], views=0),))
    frozen = estimate_seconds(STRONG_5MIN, speed, n_images=1000, n_folds=5)
    assert frozen - estimate_seconds(fewer_views, speed, n_images=1000, n_folds=5) == pytest.approx(4 * 1000 / 400)


@pytest.mark.parametrize(
    ("backbone", "median_side", "size"),
    [("mobilenetv2_100", 180, 160), ("mobilenetv2_100", 28, 64), ("mobilenetv2_100", 100, 128),
     ("vit_tiny_patch16_224", 600, 160), ("swin_tiny_patch4_window7_224", 600, 224)],
)  # fmt: skip
def test_the_size_of_the_input_is_that_of_the_images_up_to_160_pixels(
    backbone: str, median_side: int, size: int
) -> None:
    assert input_size(replace(STRONG_1H.model, backbone=backbone), median_side) == size


# Classifiers on frozen features --------------------------------------------------------------------------------------


def test_the_bound_of_a_fit_is_extrapolated_by_its_kind_and_doubled() -> None:
    bounds = {fit.kind: fit.bound(1600) for fit in fits_of(0.5)}  # four times as many rows
    assert bounds == {"logistic": 8.0, "svm": 16.0, "k_nearest": 16.0}
    assert {fit.bound(100) for fit in fits_of(0.5)} == {1.0}, "never less than was measured, doubled"


def test_classifiers_that_fit_are_trained_last_on_the_features_of_the_frozen_net() -> None:
    plan = plan_of(profile_of({"nevus": 1000, "melanoma": 500}), seconds=3600.0, fits=fits_of(0.1))
    first, trained, *classifiers = (candidate.recipe for candidate in plan.candidates)
    assert kinds(plan) == ["logistic", "svm", "k_nearest"]
    assert [recipe.name.split("-")[1] for recipe in classifiers] == ["linear", "svm", "knn"]
    assert first.model.classifier is None and trained.phases[0].train_backbone == "all"
    for recipe in classifiers:
        check_head_fields(recipe)
        assert parse_recipe(recipe_to_dict(recipe), "a plan") == recipe
        assert (recipe.split, recipe.augment, recipe.seed) == (first.split, first.augment, first.seed)
        assert (recipe.optim.class_weights, first.optim.logit_adjustment) == ("balanced", 1.0)
    assert classifiers[0].phases[0].views == first.phases[0].views == 5
    # By hand: 5 folds, each 4 s, an epoch of 1,200 at 20,000 a second, 300 images with eight views at 300 a second,
    # and twice .1 s for 400 rows, for 6,000 rows to the power of 1.5. The features are there.
    by_hand = 5 * (4.0 + 1200 / 20_000 + 300 * 8 / 300 + 0.2 * 15**1.5)
    assert plan.candidates[2].seconds == pytest.approx(by_hand)


def test_equal_classes_are_not_weighed() -> None:
    plan = plan_of(BALANCED, seconds=3600.0, fits=fits_of(0.01))
    assert {candidate.recipe.optim.class_weights for candidate in plan.candidates} == {"none"}


def test_a_classifier_takes_fewer_views_where_all_of_them_are_too_many() -> None:
    plan = plan_of(BALANCED, seconds=3600.0, fits=[FitTime("svm", 400, 0.4)])
    (svm,) = (candidate.recipe for candidate in plan.candidates if candidate.recipe.model.classifier)
    # Of 5 views twice .4 s times the square of 20, 320 s; of none 13 s: a twentieth of the hour lies between.
    assert svm.phases[0].views == 0 and plan.candidates[0].recipe.phases[0].views == 5
    (choice,) = (one for one in plan.choices if one.name == "classifiers on frozen features")
    assert choice.evidence.endswith("not measured, for lack of time: logistic regression, nearest neighbours")
    assert "all take part" not in choice.would_change


def test_features_without_augmentation_are_there_where_they_are_those_of_validation_in_float32() -> None:
    slow = net()
    fast = replace(slow, speed=replace(slow.speed, bfloat16_forward=600.0))
    # By hand: 5 folds, each 4 s, an epoch, 400 images with eight views, and twice .4 s times the square of 4.
    by_hand = 5 * (4.0 + 1600 / 20_000 + 400 * 8 / 300 + 2 * 0.4 * 4**2)
    for one, features in ((slow, 0.0), (fast, 2000 / 600 + 2000 / 300)):
        plan = plan_of(BALANCED, one, seconds=3600.0, fits=[FitTime("svm", 400, 0.4)])
        (svm,) = (candidate for candidate in plan.candidates if candidate.recipe.model.classifier)
        assert svm.recipe.phases[0].views == 0 and plan.candidates[0].recipe.phases[0].views > 0
        assert svm.recipe.compute.precision == ("bfloat16" if features else "float32")
        assert svm.seconds == pytest.approx(by_hand + features)


def test_a_fit_that_may_take_more_than_a_twentieth_of_the_time_does_not_take_part_and_the_plan_says_so() -> None:
    profile = profile_of({"nevus": 20_000, "melanoma": 20_000})
    for plan in (
        plan_of(BALANCED, seconds=3600.0, fits=[FitTime("logistic", 400, 12.0)]),  # 192 s for 1,600 images
        plan_of(profile, seconds=1e6, fits=[FitTime("logistic", 400, 1e-6)]),  # too many images, however fast
    ):
        assert kinds(plan) == []
        (choice,) = (one for one in plan.choices if one.name == "classifiers on frozen features")
        assert (
            choice.value == "none"
            and "for 400 vectors" in choice.evidence
            and "fewer images" in choice.would_change
        )


def test_classifiers_keep_no_whole_net_out_and_leave_it_eight_epochs() -> None:
    def epochs(plan: AutoPlan) -> list[int]:
        phases = (candidate.recipe.phases[0] for candidate in plan.candidates)
        return [phase.epochs for phase in phases if phase.train_backbone == "all"]

    for seconds in range(200, 4000, 50):
        alone, beside = (plan_of(BALANCED, seconds=seconds, fits=fits) for fits in ((), fits_of(0.05)))
        assert len(epochs(beside)) == len(epochs(alone))
        assert epochs(beside) == epochs(alone) or min(epochs(beside)) >= 8
    assert kinds(beside) and epochs(beside) == [16]


def test_time_that_is_left_goes_to_further_seeds_of_nets_that_have_all_their_epochs() -> None:
    one_net = plan_of(BALANCED, seconds=3600.0).candidates
    spent = sum(candidate.seconds for candidate in one_net)
    for n_further, seconds in ((0, 3600.0), (1, 3600.0 + 2700.0), (2, 20_000.0), (2, 1e6)):
        plan = plan_of(BALANCED, seconds=seconds)
        _, trained, *further = (candidate.recipe for candidate in plan.candidates)
        assert [recipe.seed for recipe in further] == [4, 5][:n_further]
        for recipe in further:
            assert recipe.name == f"{trained.name}-seed-{recipe.seed}"
            assert replace(recipe, name=trained.name, seed=3) == trained, "the same folds, test images and fields"
        (choice,) = (choice for choice in plan.choices if choice.name == "further seeds")
        assert choice.value == (", ".join(recipe.name for recipe in further) or "none")
        assert ("more time" in choice.would_change) == (n_further < 2)
    # By hand: 2,145 s for a whole net more, of .85 of the time.
    assert 0.85 * (3600 + 2700) - 4 > spent + 2145 > 0.85 * 3600 - 4


def test_a_net_that_could_take_more_epochs_gets_no_further_seed() -> None:
    for seconds in (300.0, 1200.0, 2000.0):
        plan = plan_of(BALANCED, seconds=seconds)
        assert plan.candidates[1].recipe.phases[0].epochs < 16
        assert len(plan.candidates) == 2 and all(choice.name != "further seeds" for choice in plan.choices)


def test_of_two_nets_each_gets_its_second_seed_before_one_gets_a_third() -> None:
    plan = plan_of(BALANCED, net("a"), net("b"), seconds=12_000.0)
    assert [one.recipe.name for one in plan.candidates[3:]] == ["finetuned-a-seed-4", "finetuned-b-seed-4"]


def test_a_net_of_random_weights_has_no_classifier() -> None:
    plan = plan_of(BALANCED, net(SMALL_NET), seconds=3600.0, fits=fits_of(0.01))
    assert kinds(plan) == [] and all("classifiers" not in choice.name for choice in plan.choices)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(2, 5_000), min_size=2, max_size=9),
    fit_seconds=st.lists(st.floats(1e-3, 20), min_size=3, max_size=3),
    forward=st.floats(20, 8000),
    seconds=st.floats(5, 50_000),
)
def test_a_plan_with_classifiers_ends_in_time(
    counts: list[int], fit_seconds: list[float], forward: float, seconds: float
) -> None:
    profile = profile_of({f"class {k}": count for k, count in enumerate(counts)})
    fits = [FitTime(kind, 400, time) for kind, time in zip(KIND_NAMES, fit_seconds, strict=True)]
    plan = plan_of(profile, net(forward=forward), seconds=seconds, fits=fits)
    assert plan.planned_seconds <= 0.85 * seconds + 1e-6 or len(plan.candidates) == 1
    assert len({one.recipe.name for one in plan.candidates}) == len(plan.candidates)
    assert plan == plan_of(profile, net(forward=forward), seconds=seconds, fits=fits)
    n_images = round(profile.n_training * (1 - 1 / plan.n_folds))
    for candidate in plan.candidates:
        if classifier := candidate.recipe.model.classifier:
            n_rows = n_images * max(1, candidate.recipe.phases[0].views)
            (bound,) = (fit.bound(n_rows) for fit in fits if fit.kind == classifier.kind)
            assert bound <= 0.05 * seconds and n_rows <= 20_000
            assert candidate.seconds >= plan.n_trained_folds * bound
