"""Groups -> sides: one greedy pass that keeps every class's share on every side. NumPy only.

scikit-learn's StratifiedGroupKFold knows equal folds only, no fractions, and compares every fold's spread anew for
every group; this pass needs a second for 100,000 groups and also keeps the share of each group size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Members:
    """Which classes each group holds, flat: entries start[g]:start[g + 1] of `label` and `count` belong to group g."""

    group: _Ints
    label: _Ints
    count: _Ints
    start: _Ints


def stratified_group_split(label: _Ints, group: _Ints, fractions: Sequence[float], seed: int) -> _Ints:
    """Return the side (an index into `fractions`) of each row; a group is never divided.

    label, group: (N,) codes. shares: fractions that sum to 1. A class with fewer groups than sides gets the sides in
    the order of `fractions`, one group each; every other class gets at least one group on every side, wherever moving
    groups can bring that about. Where each group holds one class, a side's share of a class is met to within the
    largest group of that class.
    """
    group_number = np.unique(group, return_inverse=True)[1].astype(np.int64)
    members = _members(label, group_number)
    split_index = _assign_groups(members, np.asarray(fractions, float), seed)
    _fill_gaps(members, split_index, len(fractions))
    return split_index[group_number]


def _members(label: _Ints, group_number: _Ints) -> _Members:
    width = int(label.max()) + 1
    pairs, count = np.unique(group_number * width + label, return_counts=True)
    group = pairs // width
    start = np.searchsorted(group, np.arange(int(group_number.max()) + 2))
    return _Members(group, pairs % width, count.astype(np.int64), start.astype(np.int64))


def _assign_groups(members: _Members, fractions: NDArray[np.float64], seed: int) -> _Ints:
    """Seat groups one by one, large ones first, each on the side that is emptiest for the classes it holds.

    Emptiest by Sainte-Lague's rule, (seated + half of this group) / share: the only divisor rule without a bias to
    large or small sides. Ties go to the side that is emptiest over all classes.
    """
    n = len(members.start) - 1
    size = np.bincount(members.group, weights=members.count, minlength=n)
    order = np.random.default_rng([seed, 0]).permutation(n)
    order = order[np.argsort(-size[order], kind="stable")]
    totals = np.bincount(members.label, weights=members.count)
    # Plain lists: a loop over 100,000 groups is ten times slower on NumPy scalars.
    weight = [[1.0 / (fraction * total) if total else 0.0 for total in totals] for fraction in fractions]
    counts_by_split = [[0] * len(totals) for _ in fractions]
    fill = [0.0] * len(fractions)
    start, labels, counts = members.start.tolist(), members.label.tolist(), members.count.tolist()
    split_index = [0] * n
    for group in order.tolist():
        entries = range(start[group], start[group + 1])
        best_split, lowest_need = 0, (float("inf"), 0.0)
        for s, class_counts in enumerate(counts_by_split):
            need = sum(
                counts[i] * (class_counts[labels[i]] + counts[i] / 2) * weight[s][labels[i]] for i in entries
            )
            if (need, fill[s]) < lowest_need:
                best_split, lowest_need = s, (need, fill[s])
        split_index[group] = best_split
        for i in entries:
            counts_by_split[best_split][labels[i]] += counts[i]
            fill[best_split] += counts[i] / fractions[best_split]
    return np.array(split_index, dtype=np.int64)


def _fill_gaps(members: _Members, split_index: _Ints, n_splits: int) -> None:
    """Move groups, smallest first, to sides that lack a class, never emptying a side of another class."""
    n, width = len(members.start) - 1, int(members.label.max()) + 1
    presence = np.zeros((n_splits, width), np.int64)
    np.add.at(presence, (split_index[members.group], members.label), 1)
    size = np.bincount(members.group, weights=members.count, minlength=n).astype(np.int64)
    for label in range(width):
        n_wanted = min(n_splits, int(presence[:, label].sum()))
        for target in range(n_wanted):
            if presence[target, label] == 0:
                _move_group(members, split_index, presence, size, (label, target, n_wanted))


def _move_group(
    members: _Members, split_index: _Ints, presence: _Ints, size: _Ints, gap: tuple[int, int, int]
) -> None:
    label, target, n_wanted = gap
    candidates = members.group[members.label == label]
    donors = presence[split_index[candidates], label]
    for group in candidates[np.lexsort((candidates, size[candidates], -donors))].tolist():
        group_labels = members.label[members.start[group] : members.start[group + 1]]
        donor = int(split_index[group])
        # A side past the wanted ones may lose its last group of this class, but of no other class.
        removable_labels = group_labels[group_labels != label] if donor >= n_wanted else group_labels
        if (presence[donor, removable_labels] >= 2).all():
            presence[donor, group_labels] -= 1
            presence[target, group_labels] += 1
            split_index[group] = target
            return
