"""The class names of foreign tables: which label or column means which class, and which of them mean one class."""

from collections.abc import Iterable, Sequence

import pandas as pd

from dermkit.data.class_names import find_class, group_names, preferred_name
from dermkit.data.diagnoses import canonical_name
from dermkit.data.importers.csv_tables import find_column


def match_name(name: str, names: Sequence[str]) -> str | None:
    """Return the one of `names` that is equal, or but for case, or means the same class, or has the same diagnosis.

    The last two only where a single name does.
    """
    match = find_column(names, name) or find_class(name, names)
    if match is not None:
        return match
    matches = [other for other in names if canonical_name(other) == canonical_name(name)]
    return matches[0] if len(matches) == 1 else None


def match_labels(labels: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """Return label -> class, labels without a class as they are.

    Two different labels never become one class by their diagnosis alone: beside "melanoma", "melanoma in situ" stays.
    """
    labels = sorted(set(labels))
    matched = {label: match_name(label, names) or label for label in labels}
    by_name = {label: find_column(names, label) or find_class(label, names) for label in labels}
    by_diagnosis = [label for label in labels if by_name[label] is None and matched[label] != label]
    for label in by_diagnosis:
        if sum(matched[other] == matched[label] for other in labels) > 1:
            matched[label] = label
    return matched


def join_spellings(labels: "pd.Series[str]") -> tuple["pd.Series[str]", list[str]]:
    """Return the labels with one name for each class, and what was joined: 0 and 0.0, Naevus and nevus."""
    counts = {str(label): int(n) for label, n in labels[labels != ""].value_counts().items()}
    groups = [names for names in group_names(sorted(counts)) if len(names) > 1]
    name_of = {name: preferred_name(names, counts) for names in groups for name in names}
    notes = [
        f"Labels taken for one class, {name_of[names[0]]!r}: {' and '.join(map(repr, names))}." for names in groups
    ]
    return labels.map(lambda label: name_of.get(label, label)), notes


def sum_classes(probabilities: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return one column for each of `names`, the sum of the columns that mean it, and what was summed."""
    columns = [str(column) for column in probabilities.columns]
    more = {column: find_class(column, names) for column in columns if column not in names}
    columns_of = {name: [name, *(column for column in more if more[column] == name)] for name in names}
    summed = {name: columns for name, columns in columns_of.items() if len(columns) > 1}
    frame = pd.DataFrame(
        {name: probabilities[columns].sum(axis=1, skipna=False) for name, columns in columns_of.items()}
    )
    return frame, [f"Columns of one class were summed: {' + '.join(columns)}." for columns in summed.values()]
