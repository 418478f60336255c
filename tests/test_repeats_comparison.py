"""Several trainings of a recipe: what seeds and images move, tests that mind both, and which runs belong together."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conftest import Cli
from dermkit.comparison import variance
from dermkit.comparison.compare import compare_runs
from dermkit.comparison.entries import group_runs
from dermkit.comparison.repeated import (
    FOLD_T_METHOD,
    TRAINING_T_METHOD,
    fold_differences,
    resample_run,
    training_differences,
    variance_components,
)
from dermkit.comparison.verdict import RepeatedDifference, verdict
from dermkit.errors import DataError, UsageError
from dermkit.files import write_json
from dermkit.metrics.classification.confusion import confusion_matrix
from dermkit.metrics.classification.difference import COMPARED_METRICS
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats import paired_tests
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.intervals import resample_weights
from dermkit.pipeline.results import compare
from dermkit.recipes.augmentation import PRESETS
from dermkit.runs.layout import METRICS, RUN, SUMMARY
from dermkit.runs.predictions import write_predictions

# Arithmetic -------------------------------------------------------------------------------------------------------


def drawn(right: Floats, *, resamples: int = 4000) -> Floats:
    """Return (S, B) means of (S, n) values over the same resamples of images."""
    n = right.shape[1]
    return np.concatenate([w @ right.T / n for w in resample_weights(np.arange(n), seed=0, resamples=resamples)]).T


def right(seed: int, runs: int, n: int, *, accuracy: float = 0.8, own: float = 0.0) -> Floats:
    """Return (S, n) rights and wrongs: difficulty shared by all recipes of a seed, and by a recipe, and by a run."""
    shared = np.random.default_rng(seed).normal(0, 1, n)
    of = np.random.default_rng([seed, runs, round(1000 * accuracy)])
    score = shared + 0.6 * of.normal(0, 1, n) + 0.7 * of.normal(0, 1, (runs, n)) + own * of.normal(0, 1, (runs, 1))
    return (score / math.sqrt(1 + 0.36 + 0.49) > -stats.norm.ppf(accuracy)).astype(np.float64)


def test_seeds_and_images_are_parted_as_the_two_way_table_parts_them() -> None:
    for seed, own in ((0, 0.0), (1, 0.6), (2, 0.3)):
        values = right(seed, 6, 400, own=own)
        found, table = (
            variance.decompose_variance(values.mean(axis=1), drawn(values)),
            paired_tests.two_way_spread(values),
        )
        assert found.sd == pytest.approx(table.sd)
        assert found.sd_images == pytest.approx(table.sd_images, rel=0.05)
        assert found.sd_seed == pytest.approx(table.sd_seed, abs=0.004)
        assert found.mean == pytest.approx(values.mean())


def test_the_variance_is_that_of_images_and_of_each_ones_trainings() -> None:
    one, other = right(3, 5, 300, accuracy=0.85, own=0.4), right(3, 4, 300, accuracy=0.75, own=0.2)
    sides = [(variance.decompose_variance(item.mean(axis=1), drawn(item)), drawn(item)) for item in (one, other)]
    found = variance.recipe_difference(sides[0], sides[1], n_groups=300)
    assert found is not None and not found.is_spread_borrowed
    images = (one.mean(axis=0) - other.mean(axis=0)).var(ddof=1) / 300
    tables = [paired_tests.two_way_spread(item) for item in (one, other)]
    seeds = tables[0].sd_seed ** 2 / 5 + tables[1].sd_seed ** 2 / 4
    assert found.standard_error == pytest.approx(math.sqrt(images + seeds), rel=0.05)
    assert found.error_images == pytest.approx(math.sqrt(images), rel=0.05)
    parts = (images**2 / 299, (tables[0].sd ** 2 / 5) ** 2 / 4, (tables[1].sd ** 2 / 4) ** 2 / 3)
    assert found.df == pytest.approx((images + seeds) ** 2 / sum(parts), rel=0.2)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / found.standard_error, found.df))
    assert found.interval == pytest.approx(stats.t.interval(0.95, found.df, found.value, found.standard_error))


def test_without_any_spread_of_seeds_it_is_the_paired_t_over_images() -> None:
    one, other = np.tile(right(4, 1, 200), (3, 1)), np.tile(right(4, 1, 200, accuracy=0.7), (3, 1))
    sides = [(variance.decompose_variance(item.mean(axis=1), drawn(item)), drawn(item)) for item in (one, other)]
    found = variance.recipe_difference(sides[0], sides[1], n_groups=200)
    assert found is not None and found.error_seeds == 0
    assert found.p == pytest.approx(stats.ttest_rel(one[0], other[0]).pvalue, rel=0.15)


def test_a_recipe_trained_once_borrows_the_others_spread() -> None:
    many, single = right(5, 6, 300, own=0.5), right(5, 1, 300)
    side = variance.decompose_variance(many.mean(axis=1), drawn(many)), drawn(many)
    alone = variance.decompose_variance(single.mean(axis=1), drawn(single)), drawn(single)
    assert alone[0].sd is None and alone[0].sd_seed is None
    found = variance.recipe_difference(side, alone, n_groups=300)
    assert found is not None and found.is_spread_borrowed and side[0].sd is not None and found.p is not None
    assert found.error_seeds == pytest.approx(side[0].sd * math.sqrt(1 + 1 / 6)), (
        "one draw of it, and a mean of six"
    )
    assert found.standard_error == pytest.approx(math.hypot(found.error_images, found.error_seeds))
    half = math.hypot(stats.t.isf(0.025, 299) * found.error_images, stats.t.isf(0.025, 5) * found.error_seeds)
    assert found.interval == pytest.approx((found.value - half, found.value + half))
    at_p = math.hypot(
        *(stats.t.isf(found.p / 2, df) * e for df, e in ((299, found.error_images), (5, found.error_seeds)))
    )
    assert at_p == pytest.approx(abs(found.value)), "the test and the interval say the same"
    assert variance.recipe_difference(alone, alone, n_groups=300) is None, "two single runs say nothing of seeds"
    assert variance.recipe_difference(side, side, n_groups=1) is None


@pytest.mark.parametrize(("images", "stray", "noise"), [(0.01, 0.04, 0.01), (0.02, 0.0, 0.03), (0.02, 0.03, 0.02)])
def test_one_against_two_finds_no_more_than_it_may(images: float, stray: float, noise: float) -> None:
    """Equal recipes: how far another seed goes is known from two trainings, that may lie together by chance."""
    of, found, draws = np.random.default_rng(0), 0, 1500
    seen = math.sqrt(images**2 + noise**2 * 1.5)
    resampled = np.array([[-seen, seen]]), np.zeros((1, 2))
    for _ in range(draws):
        values = of.normal(0, math.hypot(stray, noise), 3)
        between = float(values[:2].std(ddof=1))
        two = variance.VarianceComponents(tuple((values[:2] + of.normal(0, images)).tolist()), between,
                                math.sqrt(max(0.0, between**2 - noise**2)), seen)  # fmt: skip
        single = variance.VarianceComponents((float(values[2]),), None, None, seen)
        apart = variance.recipe_difference((two, resampled[0]), (single, resampled[1]), n_groups=118)
        assert apart is not None and apart.p is not None
        found += apart.p <= 0.05
    assert found <= 0.06 * draws


def test_without_any_spread_nothing_is_better() -> None:
    flat = np.full((2, 50), 0.9), np.full((2, 50), 0.5)
    sides = [(variance.decompose_variance(item[:, 0], item), item) for item in flat]
    found = variance.recipe_difference(sides[0], sides[1], n_groups=30)
    assert found is not None and found.p is None and found.interval is None
    same = variance.recipe_difference(sides[0], sides[0], n_groups=30)
    assert same is not None and same.p == 1.0
    true = np.arange(40) % 2
    perfect, wrong = (draws([scored((way * (2.0 * true - 1)).astype(np.float64), true)] * 2) for way in (1, -1))
    accuracy = training_differences(perfect, wrong)[0]
    assert accuracy.estimate.value == 1.0 and accuracy.p is None and not accuracy.is_significant
    said = verdict(accuracy, "a", "b")
    assert "not tested on 40 images: a is ahead, +1.000, no test (no interval: no spread to judge by)" in said


def test_more_images_help_only_against_what_images_move() -> None:
    found = variance.RecipeDifference(0.03, 0.03, error_images=0.028, error_seeds=0.005, df=20, p=0.3)
    needed = variance.images_to_detect(found, 200)
    assert needed is not None and not variance.needs_trainings(found)
    reach = stats.norm.isf(0.025) + stats.norm.ppf(0.8)
    assert reach * math.sqrt(0.005**2 + 0.028**2 * 200 / needed) == pytest.approx(0.03, rel=0.01)
    stuck = replace(found, error_seeds=0.02)
    assert variance.images_to_detect(stuck, 200) is None and variance.needs_trainings(stuck)
    same = replace(found, value=0.0, error_seeds=0.0)
    assert variance.images_to_detect(same, 200) is None and not variance.needs_trainings(same)


# Figures ----------------------------------------------------------------------------------------------------------


def scored(score: Floats, true: Ints, *, per: int = 1) -> ScoredSet:
    """Return one run of two classes: above 0 it says malignant. per: images of a lesion."""
    p = 1 / (1 + np.exp(-score))
    return ScoredSet(
        ["benign", "malignant"], np.array([False, True]), true, (score > 0).astype(np.int64),
        np.column_stack([1 - p, p]), np.arange(len(score)) // per,
    )  # fmt: skip


def recipe(
    seed: int, runs: int, n: int, *, skill: float = 1.0, stray: float = 0.0, per: int = 1
) -> list[ScoredSet]:
    """Return trainings on the same images; `stray` is how unlike their skills are."""
    true = np.arange(n) % 2
    shared = np.random.default_rng(99).normal(0, 1, n)
    of = np.random.default_rng(seed)
    skills = skill + stray * of.normal(0, 1, runs)
    return [scored((2 * true - 1) * (own + shared + 0.7 * of.normal(0, 1, n)), true, per=per) for own in skills]


def draws(runs: Sequence[ScoredSet]) -> list[Any]:
    return [resample_run(item, seed=0, resamples=150) for item in runs]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), counts=st.tuples(st.integers(2, 4), st.integers(1, 4)), data=st.data())
def test_swapped_it_is_the_same_with_another_sign_and_the_order_of_trainings_is_nothing(
    seed: int, counts: tuple[int, int], data: st.DataObject
) -> None:
    first, second = (draws(recipe(seed + k, count, 40, stray=0.3)) for k, count in enumerate(counts))
    mixed = data.draw(st.permutations(first))
    found = training_differences(first, second)
    for a, b, c in zip(
        found, training_differences(second, first), training_differences(mixed, second), strict=True
    ):
        assert (a.estimate.value is None) == (b.estimate.value is None)
        if a.estimate.value is None or a.p is None:
            continue
        assert b.estimate.value == pytest.approx(-a.estimate.value, abs=1e-12)
        assert (a.p, a.p) == pytest.approx((b.p, c.p), rel=1e-6)
        assert c.estimate.value == pytest.approx(a.estimate.value, abs=1e-12)
        if a.estimate.ci95 and b.estimate.ci95:
            assert a.estimate.ci95 == pytest.approx((-b.estimate.ci95[1], -b.estimate.ci95[0]), abs=1e-9)
            assert a.estimate.ci95[0] <= a.estimate.value <= a.estimate.ci95[1]


def test_all_figures_have_a_test_and_a_better_recipe_is_found() -> None:
    found = training_differences(draws(recipe(1, 4, 200, skill=2.0)), draws(recipe(2, 5, 200, skill=0.6)))
    assert [item.metric for item in found] == list(COMPARED_METRICS)
    assert all(item.test == TRAINING_T_METHOD and item.n_trainings == (4, 5) for item in found)
    accuracy = found[0]
    assert accuracy.is_significant
    said = verdict(accuracy, "new", "old")
    assert said.startswith("accuracy: new is better: 4 against 5 trainings, 200 images (+")
    assert "another training moves it by" in said and "(SD), other images by" in said
    loss = next(item for item in found if item.metric == "loss")
    assert (loss.estimate.value or 0) < 0 and "new is better" in verdict(loss, "new", "old")
    by_side = {item.metric: item.estimate.n for item in found}
    assert by_side["sensitivity"] == by_side["specificity"] == 100


def test_a_lucky_seed_is_significant_and_its_recipe_is_not_better() -> None:
    """Both recipes stray alike; the first one's first training was lucky, and the other's was not."""
    first, second = recipe(3, 6, 400, stray=0.5), recipe(4, 6, 400, stray=0.5)
    hits = [[float((run.y_pred == run.y_true).mean()) for run in side] for side in (first, second)]
    best, worst = first[int(np.argmax(hits[0]))], second[int(np.argmin(hits[1]))]
    assert paired_tests.mcnemar(best.y_pred == best.y_true, worst.y_pred == worst.y_true).p < 0.001
    accuracy = training_differences(draws(first), draws(second))[0]
    assert accuracy.p is not None and accuracy.p > 0.05
    assert (
        accuracy.error_seeds is not None
        and accuracy.error_images is not None
        and accuracy.error_seeds > accuracy.error_images
    )
    assert "not distinguishable: 6 trainings each" in verdict(accuracy, "a", "b")


def test_photographs_of_one_lesion_are_not_several_images() -> None:
    """Three copies of every image: the errors of the images stay as they were, and do not shrink by the root of 3."""
    alone = [recipe(seed, 3, 60) for seed in (5, 6)]
    copied = [
        [
            scored(np.repeat(np.log(run.p_malignant / (1 - run.p_malignant)), 3), run.y_true.repeat(3), per=3)
            for run in side
        ]
        for side in alone
    ]
    plain, tripled = (training_differences(*map(draws, sides))[0] for sides in (alone, copied))
    assert (tripled.error_images, tripled.p) == pytest.approx((plain.error_images, plain.p))
    assert tripled.estimate.n == 180


def test_trainings_on_few_images_of_a_class_say_so() -> None:
    found = {}
    for n in (40, 200):
        one, other = draws(recipe(1, 3, n, skill=2.0)), draws(recipe(2, 3, n, skill=0.5))
        found[n] = {item.metric: item.estimate.reason for item in training_differences(one, other)}
    units = int(recipe(1, 3, 40)[0].is_malignant.sum())
    assert units < 30
    for name in ("sensitivity", "auroc", "balanced_accuracy"):
        assert found[40][name] == f"interval unreliable: {units} units, 30 needed"
    assert found[40]["accuracy"] == ""
    assert set(found[200].values()) == {""}


def test_what_a_training_does_not_define_is_not_compared() -> None:
    first, second = recipe(7, 2, 40), recipe(8, 2, 40)
    flat = replace(first[0], y_pred=np.zeros(40, dtype=np.int64))
    found = {item.metric: item for item in training_differences(draws([flat, first[1]]), draws(second))}
    assert found["mcc_multiclass"].estimate.value is None and found["mcc_multiclass"].p is None
    assert "not defined" in verdict(found["mcc_multiclass"], "a", "b")
    assert found["accuracy"].p is not None
    assert "mcc_multiclass" not in variance_components(draws([flat, first[1]]))


# Folds ------------------------------------------------------------------------------------------------------------


def test_folds_are_the_corrected_t_of_means_over_seeds() -> None:
    figures = dict.fromkeys(COMPARED_METRICS, 0.5)
    first = [
        [{**figures, "accuracy": a}, {**figures, "accuracy": b}] for a, b in ((0.8, 0.9), (0.7, 0.8), (0.9, 0.9))
    ]
    second = [[{**figures, "accuracy": a}] for a in (0.8, 0.7, 0.86)]
    like = recipe(0, 1, 60)[0]
    found = {item.metric: item for item in fold_differences(first, second, pooled_set=like, n_train=40, n_test=20)}
    accuracy = found["accuracy"]
    known = paired_tests.corrected_resampled_t([0.05, 0.05, 0.04], n_train=40, n_test=20)
    assert (accuracy.estimate.value, accuracy.p) == pytest.approx((known.mean, known.p))
    assert accuracy.estimate.ci95 == pytest.approx(stats.t.interval(0.95, 2, known.mean, known.standard_error))
    assert (accuracy.n_folds, accuracy.n_trainings, accuracy.test) == (3, (6, 3), FOLD_T_METHOD)
    assert accuracy.first is not None and accuracy.first.sd_seed == pytest.approx(math.sqrt((0.005 + 0.005) / 3))
    assert "3 folds, 6 against 3 trainings, 60 images" in verdict(accuracy, "a", "b")
    steady = fold_differences(first, [[{**run, "accuracy": run["accuracy"] - 0.1} for run in fold]
                                            for fold in first], pooled_set=like, n_train=40, n_test=20)[0]  # fmt: skip
    assert steady.p is None and not steady.is_significant and "no spread to judge by" in verdict(steady, "a", "b")
    broken = [[{**run, "auroc": float("nan")} for run in fold] for fold in second]
    found = {item.metric: item for item in fold_differences(first, broken, pooled_set=like, n_train=40, n_test=20)}
    assert found["auroc"].estimate.value is None and "in a fold" in found["auroc"].estimate.reason
    assert found["f1_macro"].p == 1.0


# Folders ----------------------------------------------------------------------------------------------------------

CLASSES = [{"name": name, "diagnosis": name, "malignancy": name} for name in ("benign", "malignant")]


def made_run(
    folder: Path,
    run: ScoredSet,
    *,
    seed: int,
    fold: int | None = None,
    lr: float = 0.1,
    ids: Sequence[int] | None = None,
    data: str = "d",
    bare: bool = False,
) -> Path:
    """Write what compare reads of a run. bare: as from another tool, without recipe and split."""
    ids = range(len(run.y_true)) if ids is None else ids
    names = [f"i{number}" for number in ids]
    folder.mkdir(parents=True)
    at = "" if fold is None else fold
    write_predictions(
        folder / "predictions.csv", run.classes,
        [(name, f"{name}.png", run.classes[t], "test", at, seed, run.classes[p], *map(repr, row))
         for name, t, p, row in zip(names, run.y_true, run.y_pred, run.probabilities.tolist(), strict=True)],
    )  # fmt: skip
    facts = {"dataset": {"classes": CLASSES, "manifest_sha256": data}, "seed": seed, "fold": fold}
    RUN.write(folder, {**facts, "split": {"name": "s", "counts": {"train": 100}}})
    value = float((run.y_pred == run.y_true).mean())
    item = {"value": value, "ci95": [value - 0.1, value + 0.1], "n": len(names), "method": "wilson"}
    counts = confusion_matrix(run.y_true, run.y_pred, len(run.classes)).tolist()
    scored = {"metrics": {"accuracy": item, "balanced_accuracy": item}, "confusion_matrix": counts}
    METRICS.write(folder, {"classes": list(run.classes), "positive": [], "splits": {"test": scored}})
    if not bare:
        write_json(folder / "recipe.json", {"name": "r", "lr": lr, "seed": seed, "repeats": 1}, format=2)
        rows = [f"{name},{'test' if fold is None else 'fold'}," for name in names]
        (folder / "split.csv").write_text("\n".join(["image_id,split,fold", *rows]))
    return folder


def made_parent(folder: Path, runs: Sequence[Path]) -> Path:
    listed = [{"folder": run.name} for run in runs]
    SUMMARY.write(folder, {"runs": listed, "final": {"folder": runs[-1].name}})
    return folder


def repeats(parent: Path, side: Sequence[ScoredSet], *, lr: float = 0.1) -> Path:
    return made_parent(
        parent, [made_run(parent / f"m-s{seed}", run, seed=seed, lr=lr) for seed, run in enumerate(side)]
    )


def grouped(run: Path, group: Callable[[str], str]) -> Path:
    """Write groups.csv as a run has it: of its own images alone."""
    names = pd.read_csv(run / "predictions.csv", dtype=str)["image_id"]
    (run / "groups.csv").write_text("\n".join(["image_id,group", *(f"{name},{group(name)}" for name in names)]))
    return run


def folded(parent: Path, side: Sequence[ScoredSet], cuts: Sequence[Sequence[int]]) -> Path:
    runs = [
        made_run(parent / f"m-s0-f{fold}", part(run, ids), seed=0, fold=fold, ids=ids)
        for fold, (run, ids) in enumerate(zip(side, cuts, strict=True))
    ]
    return made_parent(parent, runs)


def part(run: ScoredSet, rows: Sequence[int]) -> ScoredSet:
    kept = list(rows)
    return replace(
        run, y_true=run.y_true[kept], y_pred=run.y_pred[kept], probabilities=run.probabilities[kept],
        groups=np.arange(len(kept)),
    )  # fmt: skip


def test_a_folder_of_repeats_and_runs_unlike_in_seed_are_one_each(tmp_path: Path) -> None:
    parent = repeats(tmp_path / "a" / "m-s0-versions", recipe(1, 3, 40))
    singles = [
        made_run(tmp_path / "b" / f"k-s{seed}", run, seed=seed, lr=0.2)
        for seed, run in enumerate(recipe(2, 2, 40))
    ]
    other = made_run(tmp_path / "c" / "x-s0", recipe(3, 1, 40)[0], seed=0, lr=0.3)
    found = group_runs([parent, singles[0], other, singles[1]])
    assert [(item.name, len(item.runs)) for item in found] == [("a/m-s0-versions", 3), ("b/k", 2), ("c/x-s0", 1)]
    assert "final model is m-s2, the best" in found[0].note
    assert "differ in the seed or fold alone (k-s0, k-s1)" in found[1].note and not found[2].note


def test_what_is_not_known_to_belong_together_stays_apart(tmp_path: Path) -> None:
    runs = recipe(1, 4, 40)
    one = made_run(tmp_path / "a-s0", runs[0], seed=0)
    two = made_run(tmp_path / "a-s1", runs[1], seed=1)
    assert [item.is_group for item in group_runs([one, two])] == [False, False], (
        "two runs are compared as two runs"
    )
    unlike = [
        made_run(tmp_path / "lr" / "a-s2", runs[2], seed=2, lr=0.5),
        made_run(tmp_path / "data" / "a-s2", runs[2], seed=2, data="other"),
        made_run(tmp_path / "split" / "a-s2", part(runs[2], range(30)), seed=2),
        made_run(tmp_path / "bare" / "a-s2", runs[2], seed=2, bare=True),
    ]
    for other in unlike:
        assert [len(item.runs) for item in group_runs([one, other, two])] == [2, 1]
    copy = made_run(tmp_path / "copy" / "a-s1", runs[1], seed=1)
    assert not any(item.is_group for item in group_runs([one, two, copy])), "which seed 1 counts?"


def test_runs_of_one_recipe_written_in_different_formats_are_one_group(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / f"a-s{seed}", run, seed=seed) for seed, run in enumerate(recipe(0, 3, 40))]
    augment = asdict(PRESETS["dermoscopy"])
    hsv = augment["hsv"]
    old = {**augment, "hsv": {"share": hsv.pop("p"), **hsv}, "moved": augment["p_geometric"], "toned": 1.0}
    del old["p_geometric"], old["p_colour"]
    for seed, run in enumerate(runs):
        fields = {"name": "r", "mix": None, "grow": None, "seed": seed}
        if seed == 1:
            write_json(run / "recipe.json", {**fields, "augment": old}, format=2)
        else:
            write_json(run / "recipe.json", {**fields, "augment": asdict(PRESETS["dermoscopy"])}, format=3)
    assert [len(entry.runs) for entry in group_runs(runs)] == [3]
    write_json(runs[1] / "recipe.json", {**fields, "seed": 1, "augment": {**old, "toned": 0.5}}, format=2)
    assert [len(entry.runs) for entry in group_runs(runs)] == [2, 1], "another probability is another recipe"


def test_a_broken_parent_and_a_run_named_twice_are_refused(tmp_path: Path) -> None:
    parent = repeats(tmp_path / "m-s0-versions", recipe(1, 2, 40))
    with pytest.raises(UsageError, match="two different runs"):
        group_runs([parent, parent / "m-s1"])
    (parent / "m-s1" / "run.json").unlink()
    with pytest.raises(DataError, match="not there: m-s1"):
        group_runs([parent])


def test_two_recipes_by_their_trainings(tmp_path: Path) -> None:
    parents = [
        repeats(tmp_path / name / "m-s0-versions", recipe(k, 3, 60, stray=0.3)) for k, name in enumerate("ab")
    ]
    comparison = compare_runs(parents)
    (pair,) = comparison.pairs
    assert (pair.design, pair.n, pair.reason) == ("trainings", 60, "")
    accuracy = pair.differences[0]
    means = [np.mean([(run.y_pred == run.y_true).mean() for run in recipe(k, 3, 60, stray=0.3)]) for k in (0, 1)]
    assert accuracy.estimate.value == pytest.approx(means[0] - means[1])
    assert all(
        item.p_holm is not None and item.p is not None and item.p_holm >= item.p for item in pair.differences
    )
    table = comparison.table
    group = table[(table["run"] == "a/m-s0-versions") & (table["metric"] == "accuracy")].iloc[0]
    assert group["value"] == pytest.approx(means[0]) and group["n_trainings"] == 3 and pd.isna(group["low"])
    assert len(table["run"].unique()) == 8, "two recipes and their six runs"


def test_a_single_run_beside_a_recipe(tmp_path: Path) -> None:
    parent = repeats(tmp_path / "a" / "m-s0-versions", recipe(0, 3, 60, stray=0.3))
    single = made_run(tmp_path / "b" / "k-s0", recipe(9, 1, 60)[0], seed=0, lr=0.5)
    (pair,) = compare_runs([parent, single]).pairs
    accuracy = pair.differences[0]
    assert (
        isinstance(accuracy, RepeatedDifference) and accuracy.is_spread_borrowed and accuracy.n_trainings == (3, 1)
    )
    assert "b/k-s0 was trained once" in pair.sentences()[0]


def test_folds_are_compared_fold_by_fold_and_only_the_same_ones(tmp_path: Path) -> None:
    cuts = [range(start, 60, 3) for start in range(3)]
    first = folded(tmp_path / "a" / "m-s0-versions", recipe(1, 3, 60, skill=1.5), cuts)
    second = folded(tmp_path / "b" / "m-s0-versions", recipe(2, 3, 60), cuts)
    (pair,) = compare_runs([first, second]).pairs
    assert (pair.design, pair.n, pair.reason) == ("folds", 60, "")
    gaps = [
        float((a.y_pred == a.y_true)[list(cut)].mean() - (b.y_pred == b.y_true)[list(cut)].mean())
        for a, b, cut in zip(recipe(1, 3, 60, skill=1.5), recipe(2, 3, 60), cuts, strict=True)
    ]
    known = paired_tests.corrected_resampled_t(gaps, n_train=100, n_test=20)
    assert pair.differences[0].p == pytest.approx(known.p)
    other = folded(
        tmp_path / "c" / "m-s0-versions", recipe(2, 3, 60), [range(s * 20, s * 20 + 20) for s in range(3)]
    )
    (pair,) = compare_runs([first, other]).pairs
    assert not pair.differences and "on different folds (3 and 3, 0 of them" in pair.sentences()[0]
    seeds = repeats(tmp_path / "d" / "m-s0-versions", recipe(3, 2, 60))
    (pair,) = compare_runs([first, seeds]).pairs
    assert not pair.differences and "one was tested on folds" in pair.reason


def test_every_fold_knows_the_lesions_of_its_own_images_alone(tmp_path: Path) -> None:
    cuts = [range(30), range(30, 60)]
    bare = [folded(tmp_path / name / "m-s0-versions", recipe(k, 2, 60), cuts) for k, name in enumerate("ab")]
    plain = compare_runs(bare)
    for run in [run for parent in bare for run in sorted(parent.glob("m-s0-f*"))]:
        grouped(run, lambda name: f"lesion {int(name[1:]) // 2}")
    found = compare_runs(bare)
    assert found.pairs == plain.pairs and found.pairs[0].design == "folds"
    assert found.components == plain.components, "what moves a recipe over folds are its point figures"


def test_trainings_stray_over_lesions_where_one_of_them_states_these(tmp_path: Path) -> None:
    parent = repeats(tmp_path / "a" / "m-s0-versions", recipe(0, 2, 60))
    plain = compare_runs([parent]).components["a/m-s0-versions"]["test"]["accuracy"]
    grouped(parent / "m-s1", lambda name: f"lesion {int(name[1:]) // 20}")
    found = compare_runs([parent]).components["a/m-s0-versions"]["test"]["accuracy"]
    assert found.values == plain.values and found.sd_images != plain.sd_images


def test_runs_that_call_other_classes_malignant_are_not_compared(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name / "x-s0", recipe(k, 1, 40)[0], seed=0) for k, name in enumerate("ab")]
    facts = json.loads((runs[1] / "run.json").read_text())
    for item, other in zip(facts["dataset"]["classes"], CLASSES[::-1], strict=True):
        item["malignancy"] = other["malignancy"]
    RUN.write(runs[1], facts)
    (pair,) = compare_runs(runs).pairs
    assert not pair.differences and "do not call the same classes malignant" in pair.reason


def test_what_cannot_be_set_against_each_other_says_why(tmp_path: Path) -> None:
    first = repeats(tmp_path / "a" / "m-s0-versions", recipe(1, 2, 40))
    runs = [
        made_run(tmp_path / "b" / "m" / f"m-s{k}", run, seed=k, data="other")
        for k, run in enumerate(recipe(2, 2, 40))
    ]
    (pair,) = compare_runs([first, made_parent(tmp_path / "b" / "m", runs)]).pairs
    assert "different data sets" in pair.reason and not pair.differences
    silent = folded(tmp_path / "c" / "m", recipe(1, 2, 40), [range(20), range(20, 40)])
    facts = json.loads((silent / "m-s0-f1" / "run.json").read_text())
    write_json(silent / "m-s0-f1" / "run.json", {**facts, "split": {}}, format=1)
    again = folded(tmp_path / "d" / "m", recipe(2, 2, 40), [range(20), range(20, 40)])
    (pair,) = compare_runs([silent, again]).pairs
    assert "does not say how many images it learnt from" in pair.reason


def test_the_page_and_the_files(tmp_path: Path, cli: Cli) -> None:
    parent = repeats(tmp_path / "a" / "m-s0-versions", recipe(0, 3, 60, stray=0.3))
    singles = [made_run(tmp_path / "b" / f"k-s{k}", run, seed=k, lr=0.5) for k, run in enumerate(recipe(9, 2, 60))]
    done = cli("compare", parent, *singles, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "b/k: 2 runs share recipe, split and data" in done.stdout
    assert "3 against 2 trainings, 60 images" in done.stdout and "mean of 3" in done.stdout
    body = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert set(body["groups"]) == {"a/m-s0-versions", "b/k"} and len(body["runs"]) == 5
    moved = body["groups"]["b/k"]["variance_components"]["test"]["accuracy"]
    figure = body["groups"]["b/k"]["metrics"]["test"]["accuracy"]
    assert moved["mean"] == pytest.approx(figure["value"]) and moved["sd"] == pytest.approx(figure["sd"])
    (pair,) = body["pairs"]
    accuracy = pair["metrics"]["accuracy"]
    assert pair["design"] == "trainings" and accuracy["n_trainings"] == [3, 2]
    rows = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert rows["first_mean"][0] == pytest.approx(accuracy["first"]["mean"])
    assert rows["error_seeds"][0] == pytest.approx(accuracy["error_seeds"])
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "How much seeds and images change the results of b/k" in page and "mean of 3 trainings" in page
    assert "the best of its trainings on validation" in page
    listed = pd.read_csv(tmp_path / "out" / "disagreements_test.csv", dtype=str)
    assert listed["a/m-s0-versions"].str.fullmatch(r"(benign|malignant) \([23] of 3\)").all()


def test_a_lone_folder_of_repeats_says_what_moves_it(tmp_path: Path) -> None:
    parent = repeats(tmp_path / "a" / "m-s0-versions", recipe(0, 3, 60, stray=0.3))
    outcome = compare([parent], out=tmp_path / "out")
    assert any("another training on these images lies" in sentence for sentence in outcome.sentences)
    assert outcome.notes


def doubt(run: Path, figure: str, reason: str, **other: object) -> None:
    body = json.loads((run / "metrics.json").read_text())
    body["splits"]["test"]["metrics"][figure] |= {"reason": reason, **other}
    (run / "metrics.json").write_text(json.dumps(body))


def test_intervals_carry_their_mark_and_means_what_they_lack(tmp_path: Path) -> None:
    parent = repeats(tmp_path / "a" / "m-s0-versions", recipe(0, 3, 60, stray=0.3))
    doubt(parent / "m-s0", "accuracy", "interval unreliable: 20 units, 30 needed")
    doubt(
        parent / "m-s1", "accuracy", "interval unreliable: every resample gave the same value", ci95=[0.111, 0.999]
    )
    doubt(parent / "m-s2", "balanced_accuracy", "a class has no image", value=None, ci95=None)
    outcome = compare([parent], out=tmp_path / "out")
    (printed,) = outcome.tables.values()
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert printed.count(" (unreliable), n 60") == 1 and printed.count(" (interval unreliable), n 60") == 1
    assert "0.999" not in printed and "0.999" not in page, "a misleading interval is not shown"
    assert page.count("*</span>") == 1 and page.count(">interval not reliable</span>") == 1
    assert 'title="unreliable: 20 independent images, 30 needed"' in page
    lost = "not defined in 1 of 3 trainings"
    assert f"mean of 2; {lost}" in printed and f'<span class="reason">{lost}</span>' in page


def test_differences_carry_their_mark(tmp_path: Path) -> None:
    """One malignant image is not in every resample; a run beside its copy differs in nothing."""
    one = [part(recipe(k, 1, 60)[0], [1, *range(0, 60, 2)]) for k in (0, 1)]
    first, second = (made_run(tmp_path / f"{k}" / "x-s0", run, seed=0) for k, run in enumerate(one))
    copy = made_run(tmp_path / "c" / "y-s0", one[0], seed=0, lr=0.7)
    outcome = compare([first, second, copy], claim_texts=["S2: accuracy=.4661,n=118"], out=tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "*</span>" in page and ">interval not reliable</span>" in page
    sentences = [said for pair in compare_runs([first, second]).pairs for said in pair.sentences()]
    assert any("] (unreliable), " in said for said in sentences)
    assert any("+0.000, no interval" in said for said in outcome.sentences)
    assert "+nan" not in str(outcome.sentences)
    assert "not corrected for several comparisons" in page
