"""Predictions of any other tool: a table of probabilities becomes a folder like a run's, evaluated.

With a data set, its manifest says which image a row is, its label, its class table and what hangs together; without
one, the table must say the label itself, and classes are judged by their names. Columns are matched by name.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermkit.audit.status import audit_state
from dermkit.data.diagnoses import classify
from dermkit.data.importers.csv_tables import Problems, Table, find_column, read_table
from dermkit.data.importers.match_files import match
from dermkit.data.manifest import Dataset, LesionClass
from dermkit.data.split import split_groups
from dermkit.errors import DataError
from dermkit.evaluation.evaluate import evaluate_run
from dermkit.evaluation.options import NOTHING, Asked
from dermkit.evaluation.policy import SETTLES, check_asked, check_wishes
from dermkit.evaluation.seal_log import end_openings, log_looks, looks_in_words
from dermkit.files import check_output, check_writable, fingerprint, sha256_file, write_json
from dermkit.images.headers import IMAGE_SUFFIXES
from dermkit.progress import Watch
from dermkit.runs.predictions import PREFIX, check_predictions, scored_of, write_groups, write_predictions

IDS = ("image_id", "image", "isic_id", "image_name", "path", "file", "filename", "file_name", "name", "id")
OWN = ("label", "split", "fold", "seed", "predicted")
GROUPS = ("group", "patient_id", "lesion_id")
LISTED = 5
FORMAT = 1
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class _Brought:
    """A table as it was read. columns: class name -> its column; ids: which image each row is, as the table says."""

    table: Table
    ids: "pd.Series[str]"
    columns: dict[str, str]

    def own(self, name: str) -> "pd.Series[str] | None":
        """Return a column of ours by its name, None where the table lacks it."""
        column = find_column(self.table.columns, name)
        return None if column is None else self.table.frame[column]


def evaluate_brought(
    file: Path,
    *,
    on: Dataset | None,
    out: Path | None,
    watch: Watch,
    asked: Asked = NOTHING,
    open_test: bool = False,
) -> Path:
    """Evaluate a table of predictions; returns the folder, without a report.

    open_test: sealed test images of the data set may be evaluated; that is logged in their seal. Raises `DataError`
    naming the rows or columns that cannot be used, `UsageError` or `OutputError` for the folder.
    """
    if not file.is_file():
        raise DataError(f"{file}: there is no such file", kept="nothing was written", remedy="check the path")
    folder = out or file.with_name(f"{file.stem}-evaluated-{fingerprint(sha256_file(file))[:8]}")
    check_output(folder, marker="brought.json", what="an evaluation of brought predictions")
    brought = _read(file, on)
    frame, classes = _with_data(brought, on) if on is not None else _alone(brought)
    names = [item.name for item in classes]
    frame = check_predictions(_normalised(frame, names), names, where=str(file))
    _check_settles(frame, classes, asked)
    check_writable(folder)  # makes the folder, so what is refused above leaves none
    opened = (
        []
        if on is None
        else log_looks(
            on, frame["image_id"], allowed=open_test, model=folder, how="--predictions", recipe=file.name, run=""
        )
    )
    write_predictions(folder / "predictions.csv", names, frame.to_numpy(dtype=object).tolist())
    _write_groups(folder, brought, frame, on)
    facts = _facts(file, frame, classes, on)
    facts["warnings"] += [] if on is None else looks_in_words(on, opened)
    for warning in facts["warnings"]:
        watch.say(f"warning: {warning}")
    write_json(folder / "run.json", facts, format=FORMAT)
    write_json(folder / "brought.json", {"file": file.name, "sha256": sha256_file(file)}, format=FORMAT)
    if on is not None:
        write_json(folder / "location.json", {"images": str(on.images.resolve())}, format=FORMAT)
    evaluate_run(folder, on, asked=asked)
    if on is not None:
        end_openings(on, opened)
    return folder


def _check_settles(frame: pd.DataFrame, classes: Sequence[LesionClass], asked: Asked) -> None:
    """Refuse what these predictions cannot settle while no file is written and no opening is logged."""
    check_asked(asked, set(frame["split"]), kept="nothing was written")
    validation = frame[frame["split"] == SETTLES]
    if asked.of_decision:
        check_wishes(scored_of(validation, classes, None), asked, kept="nothing was written")


# The table --------------------------------------------------------------------------------------------------------


def _read(file: Path, on: Dataset | None) -> _Brought:
    problems = Problems()
    table = read_table(file, problems, wanted=[*IDS, *OWN])
    problems.check()
    column = next((found for name in IDS if (found := find_column(table.columns, name))), None)
    if column is None:
        raise _refused(file, f"no column says which image a row is; one of {', '.join(IDS)} is needed")
    if not len(table.frame):
        raise _refused(file, "it has no row")
    return _Brought(table, table.frame[column], _class_columns(table, column, on))


def _class_columns(table: Table, id_column: str, on: Dataset | None) -> dict[str, str]:
    """Return class -> column: those that begin with p_, else those called like a class, else all that are numbers."""
    prefixed = [name for name in table.columns if name.startswith(PREFIX)]
    if prefixed:
        found = {name.removeprefix(PREFIX): name for name in prefixed}
    else:
        taken = {
            id_column,
            *(column for name in (*OWN, *GROUPS, *IDS) if (column := find_column(table.columns, name))),
        }
        free = [name for name in table.columns if name and name not in taken]
        found = {name: name for name in free if on is not None or _is_numeric(table.frame[name])}
    if on is None:
        if len(found) < 2:
            raise _refused(table.path, "two columns of probabilities are needed, called p_CLASS or CLASS")
        return found
    matched = {}
    for name in on.class_names:
        column = find_column(list(found), name)
        if column is None:
            raise _refused(
                table.path,
                f"no column of probabilities for class {name!r} of {on.name} (it has: {', '.join(found) or 'none'})",
            )
        matched[name] = found[column]
    unknown = [name for name in prefixed if name not in matched.values()]
    if unknown:
        raise _refused(table.path, f"{', '.join(unknown)}: no class of {on.name} is called so")
    return matched


def _is_numeric(column: "pd.Series[str]") -> bool:
    return bool(pd.to_numeric(column, errors="coerce").notna().all())


def _refused(file: Path, what: str) -> DataError:
    return DataError(
        f"{file}: {what}", kept="nothing was written", remedy="docs/metrics.md says which columns are read"
    )


# Rows -------------------------------------------------------------------------------------------------------------


def _with_data(brought: _Brought, on: Dataset) -> tuple[pd.DataFrame, tuple[LesionClass, ...]]:
    """Return the rows in the manifest's ids, with its labels."""
    manifest = on.manifest.reset_index(drop=True)
    places = match(brought.ids.tolist(), manifest["path"].tolist(), on.images, IMAGE_SUFFIXES).positions
    by_id = pd.Index(manifest["image_id"]).get_indexer(pd.Index(brought.ids))
    by_isic = _unique(manifest["isic_id"]).reindex(brought.ids).fillna(-1).to_numpy().astype(np.int64)
    places = np.where(by_id >= 0, by_id, np.where(places >= 0, places, by_isic))
    lost = np.flatnonzero(places < 0)
    if len(lost):
        rows = ", ".join(f"{brought.ids.iloc[i]!r} (row {brought.table.rows[i]})" for i in lost[:LISTED])
        raise _refused(brought.table.path, f"{len(lost)} of {len(places)} rows name no image of {on.name}: {rows}")
    chosen = manifest.iloc[places].reset_index(drop=True)
    label = brought.own("label")
    if label is not None:
        differ = np.flatnonzero(label.to_numpy() != chosen["label"].to_numpy())
        if len(differ):
            rows = ", ".join(f"row {brought.table.rows[i]}" for i in differ[:LISTED])
            raise _refused(
                brought.table.path,
                f"{len(differ)} labels are not those of {on.name} ({rows}); without the column, its own are taken",
            )
    return _rows(brought, chosen["image_id"], chosen["path"], chosen["label"], on.class_names), on.classes


def _unique(ids: "pd.Series[str]") -> "pd.Series[int]":
    """Return id -> place, without the empty one and those that stand twice."""
    once = ids[(ids != "") & ~ids.duplicated(keep=False)]
    return pd.Series(once.index.to_numpy(), index=once.to_numpy())


def _alone(brought: _Brought) -> tuple[pd.DataFrame, tuple[LesionClass, ...]]:
    label = brought.own("label")
    if label is None:
        raise _refused(brought.table.path, "no column `label`; without a data set (--on) the table must say it")
    names = list(brought.columns)
    path = brought.own("path")
    return _rows(brought, brought.ids, brought.ids if path is None else path, label, names), tuple(
        map(classify, names)
    )


def _rows(
    brought: _Brought,
    ids: "pd.Series[str]",
    paths: "pd.Series[str]",
    labels: "pd.Series[str]",
    names: Sequence[str],
) -> pd.DataFrame:
    frame = pd.DataFrame({"image_id": ids.to_numpy(), "path": paths.to_numpy(), "label": labels.to_numpy()})
    for name, default in (("split", "test"), ("fold", ""), ("seed", "")):
        own = brought.own(name)
        frame[name] = default if own is None else own.to_numpy()
    numbers = brought.table.frame[[brought.columns[name] for name in names]]
    given = brought.own("predicted")
    p = numbers.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    most = np.array(names, dtype=object)[np.nan_to_num(p, nan=-1.0).argmax(axis=1)]
    frame["predicted"] = most if given is None else given.to_numpy()
    for name in names:
        frame[PREFIX + name] = numbers[brought.columns[name]].to_numpy()
    return frame


def _normalised(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Divide rows whose sum rounding left beside 1; what is further off is refused by the check that follows."""
    columns = [PREFIX + name for name in names]
    p = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    sums = p.sum(axis=1, keepdims=True)
    rounded = np.isfinite(sums) & (np.abs(sums - 1) <= _TOLERANCE) & (np.abs(sums - 1) > 1e-12)
    frame = frame.copy()
    made = np.where(rounded, p / np.where(rounded, sums, 1.0), p)
    for place, column in enumerate(columns):
        texts = frame[column].astype(str).to_numpy(dtype=object)
        frame[column] = np.where(rounded[:, 0], [repr(float(value)) for value in made[:, place]], texts)
    return frame


# The folder -------------------------------------------------------------------------------------------------------


def _write_groups(folder: Path, brought: _Brought, frame: pd.DataFrame, on: Dataset | None) -> None:
    if on is not None:
        write_groups(folder / "groups.csv", on.manifest["image_id"], split_groups(on.manifest), frame["image_id"])
        return
    own = next((found for name in GROUPS if (found := brought.own(name)) is not None), None)
    if own is not None:  # an image without an id is alone
        names = np.where(own == "", [f"alone {i}" for i in range(len(own))], own.to_numpy(dtype=object))
        numbers = pd.factorize(names)[0].astype(np.int64)
        write_groups(folder / "groups.csv", frame["image_id"], numbers, frame["image_id"])


def _facts(file: Path, frame: pd.DataFrame, classes: Sequence[LesionClass], on: Dataset | None) -> dict[str, Any]:
    counts = frame["split"].value_counts().to_dict()
    return {
        "recipe": file.stem,
        "system": "",
        "about": f"Predictions of another tool ({file.name})" + (f" on {on.name}." if on else "."),
        "dataset": {
            "name": on.name if on else "",
            "classes": [asdict(item) for item in classes],
            "n": len(on.manifest) if on else frame["image_id"].nunique(),
            "manifest_sha256": on.manifest_sha256 if on else sha256_file(file),
            "licences": ", ".join(sorted(set(on.manifest["licence"]) - {""})) if on else "",
            "audit": audit_state(on, None) if on else {},
            "notes": dict(on.notes) if on else {},
        },
        "split": {"name": "brought", "scheme": "brought", "counts": {str(k): int(v) for k, v in counts.items()},
                  "excluded": 0},
        "seed": None,
        "fold": None,
        "weights": {},
        "warnings": _warnings(frame, classes, on),
    }  # fmt: skip


def _warnings(frame: pd.DataFrame, classes: Sequence[LesionClass], on: Dataset | None) -> list[str]:
    said = [
        "These predictions were made elsewhere: whether their model saw these images, or the test side chose it, is "
        "not known here."
    ]
    if on is None:
        listed = ", ".join(f"{item.name} {item.malignancy}" for item in classes)
        said.append(f"No data set was named: classes were judged by their names ({listed}).")
        return said
    missing = len(set(on.manifest["image_id"]) - set(frame["image_id"]))
    if missing:
        said.append(f"{missing} of {len(on.manifest)} images of {on.name} have no prediction here.")
    return said
