"""Classes of a model matched with the classes of another data set, by name, diagnosis or a given map."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dermkit.data.manifest import LesionClass, Malignancy
from dermkit.errors import DataError
from dermkit.files import read_json
from dermkit.runs.predictions import MAP_FORMAT, PREFIX, probabilities_of, refuse


@dataclass(frozen=True)
class ClassMapping:
    """How the classes of a model and of another data set meet.

    targets: the classes evaluated. data: label -> target name, or None (left out, counted and listed). model: every
    model class -> target name; probabilities of one target are summed. rule: identity, diagnosis, malignancy or file.
    """

    targets: tuple[LesionClass, ...]
    data: Mapping[str, str | None]
    model: Mapping[str, str]
    rule: str


@dataclass(frozen=True, eq=False)
class Remapped:
    """predictions: rows whose label has a target, in the targets' names. unmapped: label -> images left out.

    unmapped_images: image_id, path, label of each of them.
    """

    predictions: pd.DataFrame
    classes: tuple[LesionClass, ...]
    unmapped: dict[str, int]
    unmapped_images: pd.DataFrame


def default_mapping(model_classes: Sequence[LesionClass], data_classes: Sequence[LesionClass]) -> ClassMapping:
    """Return the mapping that needs no file, by the first rule that applies.

    Same names: identity. Every model class with a diagnosis, one of them in the data: by diagnosis; labels with
    another one have no target. One side with a class that names no diagnosis (benign, malignant): by malignancy;
    indeterminate labels have no target, an indeterminate model class stays a class of its own.
    Raises `DataError` where none applies.
    """
    model_names, data_names = [c.name for c in model_classes], [c.name for c in data_classes]
    if set(model_names) == set(data_names):
        same = {name: name for name in model_names}
        return ClassMapping(tuple(model_classes), same, same, "identity")
    shared = {c.diagnosis for c in model_classes} & {c.diagnosis for c in data_classes} - {""}
    if shared and all(c.diagnosis for c in model_classes):
        return _by_diagnosis(model_classes, data_classes)
    if not all(c.diagnosis for c in (*model_classes, *data_classes)):
        return _by_malignancy(model_classes, data_classes)
    raise DataError(
        f"the model's classes ({', '.join(model_names)}) and the data set's ({', '.join(data_names)}) share nothing",
        kept="nothing was evaluated",
        remedy='say which is which: --map CLASSES.json with {"format": 1, "classes": {...}, "model": {...}}',
    )


def _by_diagnosis(model: Sequence[LesionClass], data: Sequence[LesionClass]) -> ClassMapping:
    first: dict[str, LesionClass] = {}
    for item in model:
        first.setdefault(item.diagnosis, item)
    known = {diagnosis: item.name for diagnosis, item in first.items()}
    return ClassMapping(
        targets=tuple(first.values()),
        data={item.name: known.get(item.diagnosis) for item in data},
        model={item.name: known[item.diagnosis] for item in model},
        rule="diagnosis",
    )


def _by_malignancy(model: Sequence[LesionClass], data: Sequence[LesionClass]) -> ClassMapping:
    sides: tuple[Malignancy, ...] = ("benign", "malignant")
    if any(item.malignancy == "indeterminate" for item in model):
        # The model's probability for such a class has to stay somewhere: probabilities sum to 1.
        sides = (*sides, "indeterminate")
    return ClassMapping(
        targets=tuple(LesionClass(name=side, diagnosis="", malignancy=side) for side in sides),
        data={c.name: None if c.malignancy == "indeterminate" else c.malignancy for c in data},
        model={c.name: c.malignancy for c in model},
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
    value = read_json(path, format=MAP_FORMAT, error=DataError)
    data, model = value.get("classes"), value.get("model")
    if not isinstance(data, dict) or not isinstance(model, dict) or set(value) != {"classes", "model"}:
        refuse(str(path), ["needs exactly the objects `classes` and `model` beside `format`"])
    problems = _name_problems("classes", data, [c.name for c in data_classes])
    problems += _name_problems("model", model, [c.name for c in model_classes])
    problems += [f"classes: {k!r} must go to a name or null" for k, v in data.items() if not _is_target(v or "x")]
    problems += [f"model: {k!r} must go to a name" for k, v in model.items() if not _is_target(v)]
    if not problems:
        strange = sorted(set(data.values()) - set(model.values()) - {None})
        problems = [f"classes: no model class goes to {name!r}" for name in strange]
        problems += [] if len(set(model.values())) > 1 else ["model: all classes go to one target; two are needed"]
    if problems:
        refuse(str(path), problems)
    targets = tuple(
        _target(name, model, model_classes, data, data_classes) for name in dict.fromkeys(model.values())
    )
    return ClassMapping(targets, data, model, "file")


def _is_target(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _name_problems(where: str, given: Mapping[str, object], known: Sequence[str]) -> list[str]:
    problems = [f"{where}: {name!r} is not mentioned" for name in known if name not in given]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            problems.append(f"{where}: {name!r} is unknown" + (f"; closest is {close[0]!r}" if close else ""))
    return problems


def _target(
    name: str,
    model: Mapping[str, str],
    model_classes: Sequence[LesionClass],
    data: Mapping[str, str | None],
    data_classes: Sequence[LesionClass],
) -> LesionClass:
    sides: dict[str, Malignancy] = {side: side for side in ("benign", "malignant", "indeterminate")}
    if name in sides:
        return LesionClass(name=name, diagnosis="", malignancy=sides[name])
    sources = [c for c in model_classes if model[c.name] == name]
    sources += [c for c in data_classes if data[c.name] == name]
    kinds, diagnoses = {c.malignancy for c in sources}, {c.diagnosis for c in sources}
    return LesionClass(
        name=name,
        diagnosis=diagnoses.pop() if len(diagnoses) == 1 else "",
        malignancy=kinds.pop() if len(kinds) == 1 else "indeterminate",
    )


def map_labels(labels: Iterable[str], mapping: ClassMapping) -> list[str | None]:
    """Return each label's target name, None where it has none; raises `DataError` for a label not in the mapping."""
    labels = list(labels)
    unknown = sorted(set(labels) - set(mapping.data))
    if unknown:
        refuse("class mapping", [f"label {name!r} is not mentioned" for name in unknown])
    return [mapping.data[name] for name in labels]


def remap_predictions(predictions: pd.DataFrame, mapping: ClassMapping) -> Remapped:
    """Translate predictions of a model on another data set to the mapping's targets.

    predictions: as `check_predictions(..., labels=...)` returns them, `label` in the data set's names, `p_` columns
    in the model's. Probabilities of one target are summed, `predicted` is the most probable target (the first of
    equals). Raises `DataError` if no image has a target.
    """
    targets = [item.name for item in mapping.targets]
    p = probabilities_of(predictions, list(mapping.model))
    to_target = np.array([[goal == name for name in targets] for goal in mapping.model.values()], dtype=np.float64)
    # Sums of probabilities rounded up past 1 would be refused as probabilities.
    summed = np.minimum(p @ to_target, 1.0)
    labels = pd.Series(map_labels(predictions["label"], mapping), index=predictions.index, dtype=object)
    gone = labels.isna()
    if gone.all():
        refuse("class mapping", [f"no image has a target: {', '.join(sorted(set(predictions['label'])))}"])
    frame = predictions[["image_id", "path", "label", "split", "fold", "seed"]].assign(
        label=labels, predicted=np.array(targets, dtype=object)[summed.argmax(axis=1)]
    )
    for name, column in zip(targets, summed.T, strict=True):
        frame[PREFIX + name] = column
    left = predictions.loc[gone, ["image_id", "path", "label"]]
    return Remapped(
        predictions=frame[~gone].reset_index(drop=True).astype({"label": str, "predicted": str}),
        classes=mapping.targets,
        unmapped=dict(sorted(Counter(left["label"].tolist()).items())),
        unmapped_images=left.reset_index(drop=True),
    )
