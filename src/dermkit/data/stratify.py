"""Groups -> sides: one greedy pass that keeps every class's share on every side. NumPy only.

scikit-learn's StratifiedGroupKFold knows equal folds only, no fractions, and compares every fold's spread anew for
every group; this pass needs a second for 100,000 groups and also keeps the share of each group size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Members:
    """Which classes each group holds, flat: entries start[g]:start[g + 1] of `label` and `count` belong to group g."""

    group: Ints
    label: Ints
    count: Ints
    start: Ints


def divide(label: Ints, group: Ints, shares: Sequence[float], seed: int) -> Ints:
    """Return the side (an index into `shares`) of each row; a group is never divided.

    label, group: (N,) codes. shares: fractions that sum to 1. A class with fewer groups than sides gets the sides in
    the order of `shares`, one group each; every other class gets at least one group on every side, wherever moving
    groups can bring that about. Where each group holds one class, a side's share of a class is met to within the
    largest group of that class.
    """
    number = np.unique(group, return_inverse=True)[1].astype(np.int64)
    members = _members(label, number)
    side = _seat(members, np.asarray(shares, float), seed)
    _fill_gaps(members, side, len(shares))
    return side[number]


def _members(label: Ints, number: Ints) -> _Members:
    width = int(label.max()) + 1
    pairs, count = np.unique(number * width + label, return_counts=True)
    group = pairs // width
    start = np.searchsorted(group, np.arange(int(number.max()) + 2))
    return _Members(group, pairs % width, count.astype(np.int64), start.astype(np.int64))


def _seat(members: _Members, shares: NDArray[np.float64], seed: int) -> Ints:
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
    weight = [[1.0 / (share * total) if total else 0.0 for total in totals] for share in shares]
    seated = [[0] * len(totals) for _ in shares]
    filled = [0.0] * len(shares)
    start, labels, counts = members.start.tolist(), members.label.tolist(), members.count.tolist()
    side = [0] * n
    for group in order.tolist():
        held = range(start[group], start[group + 1])
        best, lowest = 0, (float("inf"), 0.0)
        for s, mine in enumerate(seated):
            need = sum(counts[i] * (mine[labels[i]] + counts[i] / 2) * weight[s][labels[i]] for i in held)
            if (need, filled[s]) < lowest:
                best, lowest = s, (need, filled[s])
        side[group] = best
        for i in held:
            seated[best][labels[i]] += counts[i]
            filled[best] += counts[i] / shares[best]
    return np.array(side, dtype=np.int64)


def _fill_gaps(members: _Members, side: Ints, sides: int) -> None:
    """Move groups, smallest first, to sides that lack a class, never emptying a side of another class."""
    n, width = len(members.start) - 1, int(members.label.max()) + 1
    presence = np.zeros((sides, width), np.int64)
    np.add.at(presence, (side[members.group], members.label), 1)
    size = np.bincount(members.group, weights=members.count, minlength=n).astype(np.int64)
    for label in range(width):
        wanted = min(sides, int(presence[:, label].sum()))
        for target in range(wanted):
            if presence[target, label] == 0:
                _move_one(members, side, presence, size, (label, target, wanted))


def _move_one(members: _Members, side: Ints, presence: Ints, size: Ints, gap: tuple[int, int, int]) -> None:
    label, target, wanted = gap
    candidates = members.group[members.label == label]
    donors = presence[side[candidates], label]
    for group in candidates[np.lexsort((candidates, size[candidates], -donors))].tolist():
        held = members.label[members.start[group] : members.start[group + 1]]
        giver = int(side[group])
        # A side past the wanted ones may lose its last group of this class, but of no other class.
        free = held[held != label] if giver >= wanted else held
        if (presence[giver, free] >= 2).all():
            presence[giver, held] -= 1
            presence[target, held] += 1
            side[group] = target
            return
