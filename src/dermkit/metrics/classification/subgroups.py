"""Metrics by age, sex, site or skin type, the gaps between subgroups, and which subgroups are too small to judge.

Two small subgroups nearly always differ, and nearly always by chance, so each gap has an interval, and subgroups with
few malignant images are shown without a conclusion.

Shapes: N images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dermkit.metrics.classification.influence import group_influences, influence_correlation
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Floats, Ints
from dermkit.metrics.stats.estimate import UNRELIABLE_PREFIX, Estimate, caveats, with_caveats
from dermkit.metrics.stats.intervals import difference_interval

MIN_LESIONS = 50
"""Fewest malignant lesions, and fewest others, from which conclusions about a subgroup are drawn; images where lesions
are unknown."""

MAX_INLINE_NAME = 24
"""Longest group name, in characters, that is put before a caveat."""

SUBGROUP_METRICS = (
    "accuracy", "balanced_accuracy", "recall_macro_present", "sensitivity", "specificity", "ppv", "npv", "auroc",
)  # fmt: skip
UNKNOWN_GROUP = "unknown"
AGE_BANDS = ((0, 29), (30, 44), (45, 59), (60, 74), (75, 150))


@dataclass(frozen=True)
class Subgroup:
    """The metrics of one subgroup of the images.

    n_groups: independent lesions or patients (images, if these are unknown). classes_present: the classes with images.
    too_few_reason: "" if the subgroup is large enough for conclusions, else what is missing. influences: metric -> what
    each group of the split adds to it, (G,); empty where every group has one image.
    """

    name: str
    n: int
    n_groups: int
    n_malignant: int
    n_other: int
    classes_present: tuple[str, ...]
    metrics: Mapping[str, Estimate]
    too_few_reason: str
    influences: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class SubgroupGap:
    """The best and the worst subgroup in one metric, of those with enough lesions, and their difference."""

    metric: str
    worst_group: str
    best_group: str
    difference: Estimate


def age_band(text: str) -> str:
    """Return the age band of a text in years, `unknown` if it is no age."""
    try:
        age = float(text)
    except ValueError:
        return UNKNOWN_GROUP
    for low, high in AGE_BANDS:
        if low <= age < high + 1:
            return f"{low}+" if high == AGE_BANDS[-1][1] else f"{low} to {high}"
    return UNKNOWN_GROUP


def subgroup_metrics(
    scored_set: ScoredSet, labels: Sequence[str], *, evaluate_split: Callable[..., Mapping[str, Any]]
) -> list[Subgroup]:
    """Return the metrics of every subgroup, sorted by name, unknown last.

    labels: (N,) the subgroup of each image. evaluate_split: `summary.evaluate_split`.
    """
    group_names = sorted(set(labels), key=lambda group_name: (group_name == UNKNOWN_GROUP, group_name))
    label_array = np.array(labels, dtype=object)
    subgroups = []
    for group_name in group_names:
        rows = np.asarray(label_array == group_name, dtype=bool)
        subset = select_images(scored_set, np.flatnonzero(rows))
        subgroup = _subgroup(group_name, subset, evaluate_split(subset, seed=0, resamples=0)["metrics"])
        influences = (
            {}
            if scored_set.is_ungrouped
            else {metric: group_influences(scored_set, rows, metric) for metric in SUBGROUP_METRICS}
        )
        subgroups.append(replace(subgroup, influences=influences))
    return subgroups


def select_images(scored_set: ScoredSet, row_indices: Ints) -> ScoredSet:
    """Return some of the images as a scored set, groups relabelled."""
    groups = np.unique(scored_set.groups[row_indices], return_inverse=True)[1].astype(np.int64)
    return ScoredSet(
        scored_set.classes,
        scored_set.malignant_classes,
        scored_set.y_true[row_indices],
        scored_set.y_pred[row_indices],
        scored_set.probabilities[row_indices],
        groups,
        None if scored_set.nets is None else scored_set.nets[row_indices],
    )


def _subgroup(name: str, subset: ScoredSet, split_metrics: Mapping[str, Any]) -> Subgroup:
    n_malignant = int(subset.is_malignant.sum())
    n_other = len(subset.y_true) - n_malignant
    unit_name = "images" if subset.is_ungrouped else "lesions"
    class_masks = (("malignant", subset.is_malignant), ("other", ~subset.is_malignant))
    group_counts = [(class_name, subset.n_groups_in(mask)) for class_name, mask in class_masks]
    shortages = [f"{count} {class_name} {unit_name}" for class_name, count in group_counts if count < MIN_LESIONS]
    return Subgroup(
        name=name,
        n=len(subset.y_true),
        n_groups=subset.n_groups,
        n_malignant=n_malignant,
        n_other=n_other,
        classes_present=tuple(subset.classes[k] for k in np.unique(subset.y_true)),
        metrics={metric: Estimate.from_dict(split_metrics[metric]) for metric in SUBGROUP_METRICS},
        too_few_reason=f"too few to conclude: {' and '.join(shortages)}, {MIN_LESIONS} needed"
        if shortages
        else "",
    )


def subgroup_gaps(subgroups: Sequence[Subgroup]) -> list[SubgroupGap]:
    """Return, for each metric, the gap between the best and the worst subgroup with enough lesions; may be empty."""
    large_groups = [group for group in subgroups if not group.too_few_reason and group.name != UNKNOWN_GROUP]
    gap_list = []
    for metric in SUBGROUP_METRICS:
        groups_with_interval = [group for group in large_groups if group.metrics[metric].ci95 is not None]
        if len(groups_with_interval) < 2 or not _is_same_metric(metric, groups_with_interval):
            continue
        sorted_groups = sorted(groups_with_interval, key=lambda group: group.metrics[metric].value or 0.0)
        worst_group, best_group = sorted_groups[0], sorted_groups[-1]
        difference = independent_difference(
            best_group.metrics[metric],
            worst_group.metrics[metric],
            group_names=(best_group.name, worst_group.name),
            correlation=_gap_correlation(best_group, worst_group, metric),
        )
        gap_list.append(SubgroupGap(metric, worst_group.name, best_group.name, difference))
    return gap_list


def _gap_correlation(first: Subgroup, second: Subgroup, metric: str) -> float:
    """Return the correlation of a metric of two subgroups: patients may have lesions in both."""
    if metric not in first.influences or metric not in second.influences:
        return 0.0
    return influence_correlation(first.influences[metric], second.influences[metric])


def _is_same_metric(metric: str, subgroups: Sequence[Subgroup]) -> bool:
    """Tell whether a metric is the same figure in all these subgroups, so that a gap can be taken.

    Means over the classes present are compared only if the same classes are; if these are all classes, the metric
    equals balanced accuracy, whose gap is enough.
    """
    if metric != "recall_macro_present":
        return True
    has_all_classes = all(group.metrics["balanced_accuracy"].value is not None for group in subgroups)
    return len({group.classes_present for group in subgroups}) == 1 and not has_all_classes


def independent_difference(
    first: Estimate, second: Estimate, *, group_names: tuple[str, str] = ("", ""), correlation: float = 0.0
) -> Estimate:
    """Return the difference of two estimates of different images, with Newcombe's interval.

    It is optimistic for the best against the worst of several groups: equal groups differ too. Caveats of either
    interval carry over. group_names: shown with the caveats. correlation: of the two, where patients are in both.
    """
    if first.value is None or second.value is None or first.ci95 is None or second.ci95 is None:
        raise ValueError("a gap needs two figures with intervals")
    bounds = difference_interval((first.value, first.ci95), (second.value, second.ci95), correlation)
    method = "difference of figures that covary by group" if correlation else "difference of independent figures"
    estimate = Estimate(first.value - second.value, bounds, first.n + second.n, method)
    return with_caveats(
        estimate, [*_named_caveats(first, group_names[0]), *_named_caveats(second, group_names[1])]
    )


def _named_caveats(estimate: Estimate, group_name: str) -> list[str]:
    """Return the caveats of an estimate, each with the group's name if it is short."""
    owner_prefix = (
        f"{group_name}: " if group_name and len(group_name) <= MAX_INLINE_NAME and ";" not in group_name else ""
    )
    return [
        caveat.replace(f"{UNRELIABLE_PREFIX}: ", f"{UNRELIABLE_PREFIX}: {owner_prefix}", 1)
        for caveat in caveats(estimate.reason)
    ]
