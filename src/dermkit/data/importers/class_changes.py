"""Which labels of a source become which classes: spellings of one class are joined, then classes as a person asks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dermkit.data.class_names import class_key, clean_label, find_class, group_names, preferred_name
from dermkit.data.diagnoses import check_malignancy, classify_label, find_diagnosis, is_known_label
from dermkit.data.importers.records import Note, Records
from dermkit.data.importers.table_rows import ImportOptions
from dermkit.data.manifest import LesionClass
from dermkit.errors import DataError, UsageError, did_you_mean, first_of

NOTE_OPPOSITE_CLASSES = "opposite_classes"
"""Code of the warning that a benign and a malignant class were merged."""
_MAX_EXAMPLES = 5


@dataclass(frozen=True, eq=False)
class ClassChanges:
    """Records under the final class names. labels_of_class: class -> the labels that the source gives its images."""

    records: Records
    labels_of_class: Mapping[str, tuple[str, ...]]


def change_classes(records: Records, options: ImportOptions) -> ClassChanges:
    """Join the spellings of one class (unless `as_written`), then merge, rename and drop classes, with notes.

    Raises `UsageError` for a class that is not there or a name that is taken, `DataError` if no image is left.
    """
    labels = records.frame["label"]
    class_of, notes = ({}, []) if options.as_written else _join_spellings(records.frame)
    class_of = {str(label): class_of.get(str(label), str(label)) for label in labels.unique()}
    renamed = _renames(list(dict.fromkeys(class_of.values())), options)
    dropped = {_existing_class(name, list(class_of.values()), "--drop") for name in options.drop}
    is_dropped = labels.map(class_of).isin(dropped)
    notes += _change_notes(labels.map(class_of)[~is_dropped], renamed, options)
    notes += _drop_notes(labels.map(class_of)[is_dropped])
    final_of = {label: renamed.get(name, name) for label, name in class_of.items() if name not in dropped}
    frame = records.frame[~is_dropped].reset_index(drop=True)
    if frame.empty:
        raise DataError(
            "every class was dropped", outcome="nothing was written", remedy="leave out one --drop, or more"
        )
    frame["label"] = frame["label"].map(final_of).astype("str")
    notes += _subtype_notes(frame["label"])
    labels_of_class: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for label, name in final_of.items():
        labels_of_class[name] += (label,)
    return ClassChanges(replace(records, frame=frame, notes=[*records.notes, *notes]), dict(labels_of_class))


def classes_of_labels(names: Sequence[str], labels_of_class: Mapping[str, tuple[str, ...]]) -> list[LesionClass]:
    """Return the classes with diagnosis and malignancy of the table.

    A name that the table does not know ("cancer" for a merged melanoma and carcinoma) has those of its labels, where
    they agree.
    """
    return [_class_of_labels(name, labels_of_class.get(name, ())) for name in names]


def inherits(name: str, labels_of_class: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether a class has its malignancy from the labels that it was made of, not from its name."""
    return classify_label(name) != _class_of_labels(name, labels_of_class.get(name, ()))


def _class_of_labels(name: str, labels: Sequence[str]) -> LesionClass:
    lesion_class = classify_label(name)
    sources = [classify_label(label) for label in labels if is_known_label(label)]
    if is_known_label(name) or len(sources) != len(labels) or len({source.malignancy for source in sources}) != 1:
        return lesion_class
    diagnoses = {source.diagnosis for source in sources}
    diagnosis = diagnoses.pop() if len(diagnoses) == 1 else ""
    return replace(lesion_class, malignancy=sources[0].malignancy, diagnosis=diagnosis)


def malignancy_of_classes(malignancy: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the given malignancies under the names of the classes; raises `UsageError` (see `check_malignancy`)."""
    under_names = {find_class(name, names) or name: value for name, value in malignancy.items()}
    check_malignancy(under_names, names)
    if len(under_names) < len(malignancy):
        raise UsageError(
            f"--malignancy {' '.join(malignancy)}: two of these are one class", remedy="name each class once"
        )
    return under_names


# Spellings --------------------------------------------------------------------------------------------------------


def _join_spellings(frame: pd.DataFrame) -> tuple[dict[str, str], list[Note]]:
    """Return label -> class, with a note per class that is written in several ways; training images name it first."""
    counts = {str(label): int(n) for label, n in frame["label"].value_counts().items()}
    training = {
        str(label): int(n) for label, n in frame["label"][frame["given_split"] == "train"].value_counts().items()
    }
    class_of: dict[str, str] = {}
    notes: list[Note] = []
    for names in group_names(sorted(counts)):
        name = preferred_name(names, {n: training.get(n, 0) for n in names} if training else counts)
        class_of |= dict.fromkeys(names, name if len(names) > 1 else clean_label(names[0]))
        if len(names) > 1:
            spellings = " and ".join(f"{label!r} ({counts[label]:,})" for label in names)
            text = f"Taken for one class, called {name!r}: {spellings}; --as-written keeps them apart."
            notes.append(Note("spellings", text, sum(counts[label] for label in names)))
    return class_of, notes


def _subtype_notes(labels: "pd.Series[str]") -> list[Note]:
    """Note classes of one diagnosis that stay apart beside a class with the name of the diagnosis itself."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name in sorted(map(str, labels.unique())):
        if diagnosis := find_diagnosis(name):
            names_of[diagnosis.name].append(name)
    groups = {
        str(find_class(diagnosis, names)): names
        for diagnosis, names in names_of.items()
        if len(names) > 1 and find_class(diagnosis, names)
    }
    if not groups:
        return []
    text = "; ".join(first_of(map(repr, names), _MAX_EXAMPLES, " and ") for names in groups.values())
    general, names = next(iter(groups.items()))
    other = next(name for name in names if name != general)
    n = int(labels.isin([name for names in groups.values() for name in names]).sum())
    return [
        Note(
            "subtypes",
            f"Classes of one diagnosis stay apart: {text}; if they are one to you, merge them, such as --merge "
            f'"{other}={general}".',
            n,
        )
    ]


# Merging, renaming, dropping --------------------------------------------------------------------------------------


def _renames(names: Sequence[str], options: ImportOptions) -> dict[str, str]:
    """Return class -> its name after merging and renaming; raises `UsageError`."""
    merged = {_existing_class(old, names, "--merge"): new for old, new in options.merge.items()}
    targets = {old: find_class(new, names) or clean_label(new) for old, new in merged.items()}
    for old, new in targets.items():
        if new in merged and new != old:
            raise UsageError(
                f"--merge {old}={new}: {new} is merged itself", remedy=f"--merge {old}={targets[new]}"
            )
        if new not in names and list(targets.values()).count(new) == 1:
            raise UsageError(
                f"--merge {old}={new}: there is no class {new!r} to merge with{did_you_mean(new, names)}",
                remedy=f'give a class a new name with --rename "{old}={new}"; the classes are: {", ".join(names)}',
            )
    after_merging = list(dict.fromkeys(targets.get(name, name) for name in names))
    renamed = {_existing_class(old, after_merging, "--rename"): new for old, new in options.rename.items()}
    for old, new in renamed.items():
        taken = find_class(new, [name for name in after_merging if name != old and name not in renamed])
        is_given_twice = sum(class_key(other) == class_key(new) for other in renamed.values()) > 1
        if not clean_label(new) or taken or is_given_twice:
            raise UsageError(
                f"--rename {old}={new}: {f'a class is called {taken!r}' if taken else 'needs a name of its own'}",
                remedy=f'join two classes with --merge "{old}={taken or new}"',
            )
    _check_not_dropped({*merged, *targets.values(), *renamed}, names, options)
    return {
        name: clean_label(renamed.get(targets.get(name, name), targets.get(name, name)))
        for name in names
        if name in targets or name in renamed
    }


def _existing_class(name: str, names: Sequence[str], flag: str) -> str:
    match = find_class(name, list(dict.fromkeys(names)))
    if match is None:
        raise UsageError(
            f"{flag} {name}: there is no class {name!r}{did_you_mean(name, names)}",
            outcome="nothing was written",
            remedy=f"the classes are: {', '.join(dict.fromkeys(names))}",
        )
    return match


def _check_not_dropped(changed: Iterable[str], names: Sequence[str], options: ImportOptions) -> None:
    dropped = {find_class(name, names) for name in options.drop}
    for name in sorted(dropped & set(changed) - {None}, key=str):
        raise UsageError(f"--drop {name}: is merged or renamed too", remedy="do one or the other")


def _change_notes(labels: "pd.Series[str]", renamed: Mapping[str, str], options: ImportOptions) -> list[Note]:
    """Return a note per class that was made by --merge or --rename. labels: of the images, before it."""
    counts = {str(name): int(n) for name, n in labels.value_counts().items()}
    notes = []
    for target in dict.fromkeys(renamed.values()):
        sources = [name for name in counts if renamed.get(name, name) == target]
        n = sum(counts[name] for name in sources)
        if len(sources) == 1:
            notes.append(Note("renamed_class", f"Class {sources[0]!r} is called {target!r}, as asked.", n))
            continue
        text = " and ".join(f"{name!r} ({counts[name]:,})" for name in sorted(sources))
        notes.append(Note("merged_classes", f"Merged into one class, {target!r}, as asked: {text}.", n))
        malignancies = {classify_label(name).malignancy: name for name in sorted(sources) if is_known_label(name)}
        if {"benign", "malignant"} <= malignancies.keys() and options.merge:
            text = (
                f"{target!r} now holds malignant images ({malignancies['malignant']}) and benign ones "
                f'({malignancies["benign"]}): say what it counts as with --malignancy "{target}=...".'
            )
            notes.append(Note(NOTE_OPPOSITE_CLASSES, text, n))
    return notes


def _drop_notes(labels: "pd.Series[str]") -> list[Note]:
    return [
        Note("dropped_class", f"Left out, as asked: class {name!r}.", int(n))
        for name, n in labels.value_counts().items()
    ]
