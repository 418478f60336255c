"""Images that several nets scored, as those of cross-validation: whatever ranks scores ranks those of one net alone."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from dermkit.data.manifest import LesionClass
from dermkit.evaluation.tables import roc_rows
from dermkit.metrics.classification.influence import group_influences
from dermkit.metrics.classification.paired import paired_differences
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.classification.subgroups import select_images
from dermkit.metrics.classification.summary import NETS_AUROC_METHOD, PERFECT_METHOD, evaluate_split
from dermkit.metrics.decisions.policy import apply_calibration
from dermkit.metrics.decisions.recalibration import fit_temperature
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.runs.predictions import to_scored_set

CLASSES = (LesionClass("benign", "", "benign"), LesionClass("malignant", "", "malignant"))


def scored(p: Floats, ill: Ints, groups: Ints, nets: Ints | None) -> ScoredSet:
    probabilities = np.column_stack([1 - p, p])
    return ScoredSet(
        ["benign", "malignant"],
        np.array([False, True]),
        ill,
        (p > 0.5).astype(np.int64),
        probabilities,
        groups,
        nets,
    )


def drawn(seed: int = 0, n: int = 240, shift: float = 1.5) -> tuple[Floats, Ints, Ints]:
    """Return p, labels and nets 0 to 4; each net's log odds are shifted, as those of nets trained apart are."""
    rng = np.random.default_rng(seed)
    nets, ill = np.arange(n) % 5, (rng.random(n) < 0.3).astype(np.int64)
    odds = rng.normal(0, 1, n) + 1.2 * ill + shift * (nets - 2)
    return 1 / (1 + np.exp(-odds)), ill, nets


def weighted(values: list[float], weights: list[int]) -> float:
    return float(np.average(values, weights=weights))


def test_rankings_are_means_over_nets_weighted_by_pairs() -> None:
    p, ill, nets = drawn()
    figures = evaluate_split(scored(p, ill, np.arange(240), nets), seed=0, resamples=0)["metrics"]
    rows = [nets == net for net in range(5)]
    pairs = [int(ill[r].sum() * (1 - ill[r]).sum()) for r in rows]
    area = weighted([roc_auc_score(ill[r], p[r]) for r in rows], pairs)
    assert figures["auroc"]["value"] == pytest.approx(area, abs=1e-12)
    assert figures["average_precision"]["value"] == pytest.approx(
        weighted([average_precision_score(ill[r], p[r]) for r in rows], pairs), abs=1e-12
    )
    assert abs(area - roc_auc_score(ill, p)) > 0.1, "ranked across nets it would be another number"
    assert figures["auroc"]["method"] == NETS_AUROC_METHOD
    low, high = figures["auroc"]["ci95"]
    assert low < area < high


def test_the_mean_roc_curve_has_the_area_within_nets() -> None:
    p, ill, nets = drawn(3)
    p = np.round(p, 1)  # ties are slanted steps
    one = scored(p, ill, np.arange(240), nets)
    rows = [row for row in roc_rows(one) if row[0] == "malignant classes"]
    fpr, tpr = (np.array([row[k] for row in rows], dtype=float) for k in (1, 2))
    area = float(np.trapezoid(tpr, fpr))
    assert area == pytest.approx(evaluate_split(one, seed=0, resamples=0)["metrics"]["auroc"]["value"], abs=1e-12)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= -1e-12).all()
    assert all(row[3] == "" for row in rows), "each net has its own thresholds"
    # At one rate, the weighted mean of what scikit-learn's curves say there.
    at, parts, pairs = 0.3333333, [], []
    for net in range(5):
        x, y, _ = roc_curve(ill[nets == net], p[nets == net])
        parts.append(float(np.interp(at, x, y)))
        pairs.append(int(ill[nets == net].sum() * (1 - ill[nets == net]).sum()))
    assert float(np.interp(at, fpr, tpr)) == pytest.approx(weighted(parts, pairs), abs=1e-9)


def test_one_net_is_scored_as_before() -> None:
    p, ill, _ = drawn(1, shift=0)
    alone = evaluate_split(scored(p, ill, np.arange(240), None), seed=0, resamples=200)
    labelled = evaluate_split(scored(p, ill, np.arange(240), np.zeros(240, dtype=np.int64)), seed=0, resamples=200)
    for name, figure in alone["metrics"].items():
        if not name.startswith("auroc"):  # its interval has another method
            assert labelled["metrics"][name] == figure
    assert labelled["metrics"]["auroc"]["value"] == alone["metrics"]["auroc"]["value"]


def test_a_net_without_both_sides_ranks_nothing() -> None:
    p, ill, nets = drawn(2)
    ill = np.where(nets == 4, 0, ill)
    figures = evaluate_split(scored(p, ill, np.arange(240), nets), seed=0, resamples=0)["metrics"]
    without = nets != 4
    others = evaluate_split(
        scored(p[without], ill[without], np.arange(without.sum()), nets[without]), seed=0, resamples=0
    )
    assert figures["auroc"]["value"] == pytest.approx(others["metrics"]["auroc"]["value"], abs=1e-12)


def test_nets_of_one_side_each_say_why_nothing_is_ranked() -> None:
    ill = np.array([0, 0, 0, 1, 1, 1])
    figures = evaluate_split(scored(np.linspace(0.1, 0.9, 6), ill, np.arange(6), ill), seed=0, resamples=0)
    for name in ("auroc", "average_precision", "pauc_above_tpr80"):
        figure = figures["metrics"][name]
        assert figure["value"] is None
        assert figure["reason"].startswith("no net scored both an image of a malignant class and another"), name
    assert figures["metrics"]["sensitivity"]["value"] is not None


def test_perfect_nets_keep_a_width_whatever_their_scales() -> None:
    nets, ill = np.arange(100) % 2, (np.arange(100) < 40).astype(np.int64)
    p = np.where(ill == 1, 0.3, 0.1) + 0.4 * nets
    figure = evaluate_split(scored(p, ill, np.arange(100), nets), seed=0, resamples=0)["metrics"]["auroc"]
    assert figure["value"] == 1.0
    assert figure["method"] == PERFECT_METHOD
    assert 0.8 < figure["ci95"][0] < 0.999
    # Every image four times, as one group each, adds nothing.
    again = np.repeat(np.arange(100), 4)
    repeated = evaluate_split(scored(p[again], ill[again], again, nets[again]), seed=0, resamples=0)["metrics"][
        "auroc"
    ]
    assert repeated["ci95"] == pytest.approx(figure["ci95"])


def test_the_nets_of_images_follow_them() -> None:
    p, ill, nets = drawn()
    one = scored(p, ill, np.arange(240), nets)
    assert select_images(one, np.array([4, 1, 7])).nets.tolist() == [4, 1, 2]  # type: ignore[union-attr]
    calibrated = apply_calibration(one, fit_temperature(one.y_true, one.probabilities))
    assert calibrated.nets is one.nets
    influences = group_influences(one, np.ones(240, dtype=bool), "auroc")
    assert influences.sum() == pytest.approx(0, abs=1e-12)
    assert (influences**2).sum() ** 0.5 == pytest.approx(0.035, abs=0.01)


def test_a_table_says_its_nets_by_fold_and_seed() -> None:
    rows = pd.DataFrame({
        "image_id": ["a", "b", "c", "d"], "path": "", "label": "benign", "split": "test", "fold": ["0", "1", "0", "1"],
        "seed": ["0", "0", "0", "7"], "predicted": "benign", "p_benign": 0.9, "p_malignant": 0.1,
    })  # fmt: skip
    assert to_scored_set(rows, CLASSES, None).nets.tolist() == [0, 1, 0, 2]  # type: ignore[union-attr]
    assert to_scored_set(rows[rows["fold"] == "0"], CLASSES, None).nets is None


def test_a_paired_difference_of_aurocs_ranks_within_nets() -> None:
    p, ill, nets = drawn(4)
    other = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + np.random.default_rng(5).normal(0, 0.8, 240))))
    pair = scored(p, ill, np.arange(240), nets), scored(other, ill, np.arange(240), nets)
    (auroc,) = (found for found in paired_differences(*pair, seed=0, resamples=200) if found.metric == "auroc")
    areas = [evaluate_split(one, seed=0, resamples=0)["metrics"]["auroc"]["value"] for one in pair]
    assert auroc.estimate.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert auroc.estimate.ci95 is not None and auroc.p is not None
    # Of nets that all have one scale, DeLong's test on all images is nearly the same.
    same = scored(p, ill, np.arange(240), np.zeros(240, dtype=np.int64)), scored(other, ill, np.arange(240), None)
    plain = scored(p, ill, np.arange(240), None), same[1]
    one, two = (
        next(found for found in paired_differences(*sets, seed=0, resamples=200) if found.metric == "auroc")
        for sets in (same, plain)
    )
    assert one.p == pytest.approx(two.p, abs=0.01)
    assert one.estimate.ci95 == pytest.approx(two.estimate.ci95, abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "photographs"), [(300, 1), (150, 2), (1000, 1)])
def test_intervals_within_nets_hold_the_truth(n: int, photographs: int) -> None:
    """1,000 cross-validations whose five nets have other scales; the truth is the AUROC of one scale."""
    truth, rng, held = 0.80, np.random.default_rng(8), 0
    for _ in range(1000):
        group = np.repeat(np.arange(n), photographs)
        nets, ill = group % 5, (rng.random(n) < 0.3).astype(np.int64)[group]
        odds = rng.normal(0, 0.8, n)[group] + rng.normal(0, 0.6, len(group)) + 1.190 * ill + 2 * (nets - 2)
        p = 1 / (1 + np.exp(-odds))
        low, high = evaluate_split(scored(p, ill, group, nets), seed=0, resamples=0)["metrics"]["auroc"]["ci95"]
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 0.975
