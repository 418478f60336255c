"""Classes with too few images to be learnt or divided: which they are, and the import options that help."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dermkit.data.groups import leakage_groups

_MIN_GROUPS = 3
"""Training, validation and test images need a lesion each."""
_MIN_IMAGES = 10
"""Below this, one image more or less on the test side moves a class's sensitivity by 50 points or more."""


def drop_or_merge_advice(names: Sequence[str]) -> str:
    """Return the options of `import` that leave classes out or join them to another one."""
    drop, merge = (
        " ".join(f'{flag} "{name}{end}"' for name in names)
        for flag, end in (("--drop", ""), ("--merge", "=OTHER"))
    )
    return f"import it again, into a new folder, with {drop}, or with {merge}"


def shrunken_class_texts(before: pd.DataFrame, after: pd.DataFrame) -> list[tuple[str, int]]:
    """Return (text, images left) of each class that a cleaning left with too few images; gone ones are not among them.

    before, after: manifest rows.
    """
    counts_before, counts = Counter(before["label"]), Counter(after["label"])
    rows = zip(after["label"], np.asarray(leakage_groups(after)).tolist(), strict=True)
    n_groups = Counter(label for label, _ in set(rows))
    return [
        (_shrunken_text(name, n, n_groups[name], counts_before[name]), n)
        for name, n in sorted(counts.items())
        if n < counts_before[name] and (n < _MIN_IMAGES or n_groups[name] < _MIN_GROUPS)
    ]


def _shrunken_text(name: str, n: int, n_groups: int, n_before: int) -> str:
    use = "divided into training, validation and test" if n_groups < _MIN_GROUPS else "learnt or judged"
    return (
        f"Class {name} has {n} image{'s' * (n != 1)} of {n_groups} lesion{'s' * (n_groups != 1)} left, of {n_before} "
        f"images before the cleaning: too few to be {use}; {drop_or_merge_advice([name])}."
    )
