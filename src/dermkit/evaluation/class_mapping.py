"""Map the classes of a model and of another data set to common targets: by name, diagnosis, malignancy or a file."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.data.class_names import find_class
from dermkit.data.manifest import LesionClass, Malignancy
from dermkit.errors import DataError
from dermkit.files import read_json
from dermkit.metrics.classification.scored_set import summed_probability
from dermkit.runs.predictions import MAP_FORMAT, PROBABILITY_PREFIX, probabilities_of, raise_problems


@dataclass(frozen=True)
class ClassMapping:
    """Which target each class of a model and each label of a data set belongs to.

    targets: the classes that are evaluated. data: label -> target name, or None (left out, counted and listed). model:
    every model class -> target name; probabilities of one target are summed. rule: identity, diagnosis, malignancy or
    file.
    """

    targets: tuple[LesionClass, ...]
    data: Mapping[str, str | None]
    model: Mapping[str, str]
    rule: str


@dataclass(frozen=True, eq=False)
class MappedPredictions:
    """Predictions in the target classes.

    predictions: rows whose label has a target. unmapped_counts: label -> number of images without a target.
    unmapped_images: their image_id, path and label.
    """

    predictions: pd.DataFrame
    classes: tuple[LesionClass, ...]
    unmapped_counts: dict[str, int]
    unmapped_images: pd.DataFrame


def default_mapping(model_classes: Sequence[LesionClass], data_classes: Sequence[LesionClass]) -> ClassMapping:
    """Return the mapping that needs no file, by the first rule that applies.

    1. Same names, also in other spellings (0 and 0.0): identity. 2. Every model class has a diagnosis, and the data set
    has one of them: by diagnosis; labels with another diagnosis have no target. 3. The model or the data set has a
    class without a diagnosis (benign, malignant): by malignancy; indeterminate labels have no target, an indeterminate
    model class is a target itself. Raises `DataError` if none applies.
    """
    model_names, data_names = [c.name for c in model_classes], [c.name for c in data_classes]
    if set(model_names) == set(data_names):
        identity = {name: name for name in model_names}
        return ClassMapping(tuple(model_classes), identity, identity, "identity")
    if by_name := _map_by_name(model_classes, data_classes):
        return by_name
    shared_diagnoses = {c.diagnosis for c in model_classes} & {c.diagnosis for c in data_classes} - {""}
    if shared_diagnoses and all(c.diagnosis for c in model_classes):
        return _map_by_diagnosis(model_classes, data_classes)
    if not all(c.diagnosis for c in (*model_classes, *data_classes)):
        return _map_by_malignancy(model_classes, data_classes)
    raise DataError(
        f"the model's classes ({', '.join(model_names)}) and the data set's ({', '.join(data_names)}) share nothing",
        outcome="nothing was evaluated",
        remedy='say which is which: --map CLASSES.json with {"format": 1, "classes": {...}, "model": {...}}',
    )


def _map_by_name(model_classes: Sequence[LesionClass], data_classes: Sequence[LesionClass]) -> ClassMapping | None:
    """Return the mapping of names that mean the same class, where diagnoses cannot tell the model's classes apart.

    None where every class of the model has a diagnosis of its own, or a label of the data set means none of them.
    """
    diagnoses = [c.diagnosis for c in model_classes]
    names = [c.name for c in model_classes]
    matches = {c.name: find_class(c.name, names) for c in data_classes}
    if (all(diagnoses) and len(set(diagnoses)) == len(diagnoses)) or None in matches.values():
        return None
    return ClassMapping(tuple(model_classes), matches, {name: name for name in names}, "identity")


def _map_by_diagnosis(model_classes: Sequence[LesionClass], data_classes: Sequence[LesionClass]) -> ClassMapping:
    class_of_diagnosis: dict[str, LesionClass] = {}
    for lesion_class in model_classes:
        class_of_diagnosis.setdefault(lesion_class.diagnosis, lesion_class)
    for diagnosis, lesion_class in class_of_diagnosis.items():
        if sum(c.diagnosis == diagnosis for c in model_classes) > 1:  # subtypes: none of them stands for all
            class_of_diagnosis[diagnosis] = replace(lesion_class, name=diagnosis)
    target_names = {diagnosis: lesion_class.name for diagnosis, lesion_class in class_of_diagnosis.items()}
    return ClassMapping(
        targets=tuple(class_of_diagnosis.values()),
        data={lesion_class.name: target_names.get(lesion_class.diagnosis) for lesion_class in data_classes},
        model={lesion_class.name: target_names[lesion_class.diagnosis] for lesion_class in model_classes},
        rule="diagnosis",
    )


def _map_by_malignancy(model_classes: Sequence[LesionClass], data_classes: Sequence[LesionClass]) -> ClassMapping:
    malignancies: tuple[Malignancy, ...] = ("benign", "malignant")
    if any(lesion_class.malignancy == "indeterminate" for lesion_class in model_classes):
        # The model's probability for such a class has to stay somewhere: probabilities sum to 1.
        malignancies = (*malignancies, "indeterminate")
    return ClassMapping(
        targets=tuple(
            LesionClass(name=malignancy, diagnosis="", malignancy=malignancy) for malignancy in malignancies
        ),
        data={c.name: None if c.malignancy == "indeterminate" else c.malignancy for c in data_classes},
        model={c.name: c.malignancy for c in model_classes},
        rule="malignancy",
    )


def load_mapping(
    path: Path, model_classes: Sequence[LesionClass], data_classes: Sequence[LesionClass]
) -> ClassMapping:
    """Read CLASSES.json: `{"format": 1, "classes": {label: target or null}, "model": {model class: target}}`.

    A target called benign, malignant or indeterminate is that; another one has the malignancy that its model
    classes (else its labels) agree on, or is indeterminate. Raises `DataError` listing every name that is missing,
    unknown or without a target.
    """
    content = read_json(path, format=MAP_FORMAT, error=DataError)
    label_targets, model_targets = content.get("classes"), content.get("model")
    if (
        not isinstance(label_targets, dict)
        or not isinstance(model_targets, dict)
        or set(content) != {"classes", "model"}
    ):
        raise_problems(str(path), ["needs exactly the objects `classes` and `model` beside `format`"])
    problems = _name_problems("classes", label_targets, [c.name for c in data_classes])
    problems += _name_problems("model", model_targets, [c.name for c in model_classes])
    problems += [
        f"classes: {k!r} must go to a name or null" for k, v in label_targets.items() if not _is_target(v or "x")
    ]
    problems += [f"model: {k!r} must go to a name" for k, v in model_targets.items() if not _is_target(v)]
    if not problems:
        unreachable_targets = sorted(set(label_targets.values()) - set(model_targets.values()) - {None})
        problems = [f"classes: no model class goes to {name!r}" for name in unreachable_targets]
        problems += (
            [] if len(set(model_targets.values())) > 1 else ["model: all classes go to one target; two are needed"]
        )
    if problems:
        raise_problems(str(path), problems)
    targets = tuple(
        _target_class(name, model_targets, model_classes, label_targets, data_classes)
        for name in dict.fromkeys(model_targets.values())
    )
    return ClassMapping(targets, label_targets, model_targets, "file")


def _is_target(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _name_problems(section: str, entries: Mapping[str, object], class_names: Sequence[str]) -> list[str]:
    problems = [f"{section}: {name!r} is not mentioned" for name in class_names if name not in entries]
    for name in entries:
        if name not in class_names:
            closest = difflib.get_close_matches(name, class_names, n=1)
            problems.append(
                f"{section}: {name!r} is unknown" + (f"; closest is {closest[0]!r}" if closest else "")
            )
    return problems


def _target_class(
    name: str,
    model_targets: Mapping[str, str],
    model_classes: Sequence[LesionClass],
    label_targets: Mapping[str, str | None],
    data_classes: Sequence[LesionClass],
) -> LesionClass:
    malignancies: dict[str, Malignancy] = {
        malignancy: malignancy for malignancy in ("benign", "malignant", "indeterminate")
    }
    if name in malignancies:
        return LesionClass(name=name, diagnosis="", malignancy=malignancies[name])
    sources = [c for c in model_classes if model_targets[c.name] == name]
    sources += [c for c in data_classes if label_targets[c.name] == name]
    source_malignancies, diagnoses = {c.malignancy for c in sources}, {c.diagnosis for c in sources}
    return LesionClass(
        name=name,
        diagnosis=diagnoses.pop() if len(diagnoses) == 1 else "",
        malignancy=source_malignancies.pop() if len(source_malignancies) == 1 else "indeterminate",
    )


def map_labels(labels: Iterable[str], mapping: ClassMapping) -> list[str | None]:
    """Return each label's target name, None where it has none; raises `DataError` for a label not in the mapping."""
    labels = list(labels)
    unknown_labels = sorted(set(labels) - set(mapping.data))
    if unknown_labels:
        raise_problems("class mapping", [f"label {name!r} is not mentioned" for name in unknown_labels])
    return [mapping.data[name] for name in labels]


def remap_predictions(predictions: pd.DataFrame, mapping: ClassMapping) -> MappedPredictions:
    """Translate predictions of a model on another data set to the mapping's targets.

    predictions: as `check_predictions(..., labels=...)` returns them, `label` in the data set's names, `p_` columns
    in the model's. Probabilities of one target are summed, `predicted` is the most probable target (the first of
    equals). Raises `DataError` if no image has a target.
    """
    targets = [lesion_class.name for lesion_class in mapping.targets]
    p = probabilities_of(predictions, list(mapping.model))
    sources = np.array(list(mapping.model.values()), dtype=object)
    target_probabilities = np.column_stack([summed_probability(p, sources == name) for name in targets])
    labels = pd.Series(map_labels(predictions["label"], mapping), index=predictions.index, dtype=object)
    is_unmapped = labels.isna()
    if is_unmapped.all():
        raise_problems("class mapping", [f"no image has a target: {', '.join(sorted(set(predictions['label'])))}"])
    frame = predictions[["image_id", "path", "label", "split", "fold", "seed"]].assign(
        label=labels, predicted=np.array(targets, dtype=object)[target_probabilities.argmax(axis=1)]
    )
    for name, column in zip(targets, target_probabilities.T, strict=True):
        frame[PROBABILITY_PREFIX + name] = column
    unmapped_rows = predictions.loc[is_unmapped, ["image_id", "path", "label"]]
    return MappedPredictions(
        predictions=frame[~is_unmapped].reset_index(drop=True).astype({"label": str, "predicted": str}),
        classes=mapping.targets,
        unmapped_counts=dict(sorted(Counter(unmapped_rows["label"].tolist()).items())),
        unmapped_images=unmapped_rows.reset_index(drop=True),
    )
