"""predictions.csv: its checks, and its translation to the classes of another data set.

Classes are matched by name, never by order.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermkit.data.manifest import Dataset, LesionClass, Malignancy
from dermkit.data.manifest import groups as manifest_groups
from dermkit.errors import DataError
from dermkit.files import read_json, write_rows
from dermkit.metrics.scored import Scored

MAP_FORMAT = 1
ID_COLUMNS = ("image_id", "path", "label", "split", "fold", "seed", "predicted")
PREFIX = "p_"
ATTRIBUTES = ("age", "sex", "site", "skin_type")
SUM_TOLERANCE = 1e-4
BROUGHT_TOLERANCE = 1e-3
"""In a table of another tool, rows that are off by so much were divided by their sum before they come here."""
SUMS = f"{SUM_TOLERANCE} (a table of another tool: {BROUGHT_TOLERANCE})"
LISTED = 20
"""Line numbers printed per kind of problem; the rest are counted."""


def columns_of(classes: Sequence[str]) -> list[str]:
    """Return the columns of predictions.csv in order."""
    return [*ID_COLUMNS, *(PREFIX + name for name in classes)]


def read_predictions(path: Path, classes: Sequence[str], *, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """Read predictions.csv: text columns as they are, `p_<class>` as float64, in the order of `classes`.

    labels: allowed values of `label`, where they are another data set's. Raises `DataError` listing every problem
    with its line numbers (the header is line 1).
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", remedy="check the path") from error
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{path}: is not a table: {error}", remedy="restore the file or make it again") from error
    return check_predictions(frame, classes, labels=labels, where=str(path))


def check_predictions(
    frame: pd.DataFrame, classes: Sequence[str], *, labels: Sequence[str] | None = None, where: str = "predictions"
) -> pd.DataFrame:
    """Return the table with columns in order and probabilities as float64; raises `DataError` as above."""
    wanted = columns_of(classes)
    problems = [f"no column {name}" for name in wanted if name not in frame.columns]
    problems += [f"unknown column {name}" for name in frame.columns if name not in wanted]
    if problems or frame.empty:
        refuse(where, problems or ["no row"])
    frame = frame[wanted].copy()
    for name in wanted[len(ID_COLUMNS) :]:
        bad = ~np.isfinite(pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64))
        problems += _at(bad, f"{name} is not a finite number")
        # float() of the text, not a fast parser: full precision must read back to the same bits.
        frame[name] = np.where(bad, "0", frame[name].to_numpy(dtype=object)).astype(np.float64)
    problems += [] if problems else _value_problems(frame, classes)
    problems += _row_problems(frame, classes, classes if labels is None else labels)
    if problems:
        refuse(where, problems)
    return frame


def _value_problems(frame: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    p = probabilities_of(frame, classes)
    problems = _at((p.min(axis=1) < 0) | (p.max(axis=1) > 1), "a probability is outside 0 to 1")
    off = np.abs(p.sum(axis=1) - 1.0)
    problems += _at(off > SUM_TOLERANCE, f"probabilities do not sum to 1 within {SUMS}")
    predicted = class_index(frame["predicted"], classes)
    of_predicted = p[np.arange(len(p)), predicted]
    return problems + _at(
        (predicted >= 0) & (of_predicted < p.max(axis=1)), "predicted is not the most probable class"
    )


def _row_problems(frame: pd.DataFrame, classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    problems = []
    for column, known in (("label", labels), ("predicted", classes)):
        for name in sorted(set(frame[column]) - set(known)):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; closest is {close[0]!r}" if close else ""
            problems += _at((frame[column] == name).to_numpy(), f"{column} {name!r} is not a class{hint}")
    names = frame["split"].map(lambda name: bool(re.fullmatch(r"[A-Za-z0-9_-]+", name))).to_numpy(dtype=bool)
    problems += _at(~names, "split must be a name of letters, digits, - and _")
    key = ["image_id", "split", "fold", "seed"]
    problems += _at(frame.duplicated(key).to_numpy(), f"the same {', '.join(key)} as an earlier line")
    return problems


def _at(bad: NDArray[np.bool_], what: str) -> list[str]:
    """Return one sentence with the line numbers of a problem, or none."""
    lines = (np.flatnonzero(bad) + 2).tolist()
    if not lines:
        return []
    more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return [f"{what}: line {', '.join(map(str, lines[:LISTED]))}{more}"]


def refuse(where: str, problems: Iterable[str]) -> NoReturn:
    """Raise `DataError` with one line per problem."""
    listed = "\n".join("  " + problem for problem in problems)
    raise DataError(
        f"{where}: cannot be evaluated:\n{listed}", kept="nothing was written", remedy="correct these lines"
    )


def probabilities_of(frame: pd.DataFrame, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the probability columns by name, (N, K)."""
    return frame[[PREFIX + name for name in classes]].to_numpy(dtype=np.float64)


def class_index(column: "pd.Series[Any]", classes: Sequence[str]) -> NDArray[np.int64]:
    """Return each name's place in `classes`, -1 for a name that is not there."""
    return pd.Index(list(classes)).get_indexer(pd.Index(column)).astype(np.int64)


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


def write_predictions(path: Path, classes: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write predictions.csv: image_id, path, label, split, fold, seed, predicted, then a column per class."""
    write_rows(path, columns_of(classes), rows)


def write_groups(
    path: Path, all_ids: "pd.Series[str]", group: NDArray[np.int64], image_ids: "pd.Series[str]"
) -> None:
    """Write groups.csv: which images hang together (lesion, patient, copies), for intervals by group.

    group: a label for each of `all_ids`; rows are written for `image_ids`.
    """
    of = dict(zip(all_ids, group.tolist(), strict=True))
    write_rows(path, ("image_id", "group"), [(item, of[item]) for item in image_ids])


def write_attributes(path: Path, manifest: pd.DataFrame, image_ids: "pd.Series[str]") -> None:
    """Write attributes.csv: what is known of the person and the place of each scored image, "" = unknown."""
    rows = manifest.set_index("image_id").loc[list(dict.fromkeys(image_ids)), list(ATTRIBUTES)]
    write_rows(path, ("image_id", *ATTRIBUTES), rows.reset_index().to_numpy(dtype=object).tolist())


def read_attributes(run: Path) -> pd.DataFrame | None:
    """Return a run's attributes by image_id, None where it has none."""
    path = run / "attributes.csv"
    return read_table(path, "image_id", *ATTRIBUTES).set_index("image_id") if path.exists() else None


def read_groups(run: Path) -> dict[str, int] | None:
    """Return image_id -> what hangs together, from a run's groups.csv; None where there is none."""
    path = run / "groups.csv"
    if not path.exists():
        return None
    frame = read_table(path, "image_id", "group")
    return dict(zip(frame["image_id"], pd.factorize(frame["group"])[0].tolist(), strict=True))


def groups_of(run: Path, dataset: Dataset | None) -> dict[str, int] | None:
    """Return the groups of a run, else those of the data set; None where neither says."""
    found = read_groups(run)
    if found is not None or dataset is None:
        return found
    return dict(zip(dataset.manifest["image_id"], manifest_groups(dataset.manifest).tolist(), strict=True))


def read_table(path: Path, *text: str) -> pd.DataFrame:
    """Read a CSV, all of it as text where text columns are named, else as numbers; raises `DataError`."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False) if text else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", remedy="restore the file or train again") from error
    missing = [name for name in text if name not in frame]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}", remedy="restore the file or train again")
    return frame


def scored_of(part: pd.DataFrame, classes: Sequence[LesionClass], groups: Mapping[str, int] | None) -> Scored:
    """Return one split's rows as arrays, sorted by image, so that no figure depends on the order of rows."""
    part = part.sort_values(["image_id", "fold", "seed"], kind="stable")
    ids, names = part["image_id"], [item.name for item in classes]
    group = ids if groups is None else ids.map(groups)
    if group.isna().any():
        lost = ids[group.isna()].tolist()
        refuse("groups", [f"{len(lost)} images have no group: {', '.join(lost[:LISTED])}"])
    return Scored(
        classes=names,
        malignant=np.array([item.malignancy == "malignant" for item in classes]),
        true=class_index(part["label"], names),
        predicted=class_index(part["predicted"], names),
        probabilities=probabilities_of(part, names),
        groups=pd.factorize(group)[0].astype(np.int64),
    )
