"""A run folder as it lies on disk: its JSON and its tables, read once and checked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.errors import DataError, UsageError
from dermkit.files import open_regular, read_regular
from dermkit.recipes import schema
from dermkit.runs import layout
from dermkit.runs.metrics_json import read_metrics

Json = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds; None, {} and "" stand for files that are not there."""

    folder: Path
    metrics: Json
    run_json: Json
    environment: Json
    recipe: schema.Recipe | None
    log: pd.DataFrame | None
    next_steps: str
    seal: Json = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The recipe's name, or the folder's."""
        return str(
            self.run_json.get("recipe") or (self.recipe.name if self.recipe else self.folder.resolve().name)
        )

    @property
    def splits(self) -> list[str]:
        """The evaluated splits, validation before test."""
        order = {"train": 0, "validation": 1, "test": 2}
        return sorted(self.metrics["splits"], key=lambda name: order.get(name, 3))

    @property
    def headline_split(self) -> str:
        """The split that the verdict is about: test, or the last one there is."""
        return "test" if "test" in self.metrics["splits"] else self.splits[-1]

    @property
    def classes(self) -> list[Json]:
        """The classes in order, each with name, diagnosis and malignancy ("" where run.json is missing)."""
        class_by_name = {fields["name"]: fields for fields in self.run_json.get("dataset", {}).get("classes", [])}
        positive = self.metrics.get("positive", [])
        return [
            class_by_name.get(
                name, {"name": name, "diagnosis": "", "malignancy": "malignant" if name in positive else ""}
            )
            for name in self.metrics["classes"]
        ]

    @property
    def notes(self) -> Json:
        """What the import found out about the data set: source of the malignancy, licence, defects, warnings, ..."""
        notes = self.run_json.get("dataset", {}).get("notes") or {}
        return notes if isinstance(notes, dict) else {"warnings": notes}

    @property
    def is_external(self) -> bool:
        """Whether a finished model was tested on another data set than the one it was made from."""
        return bool(self.mapping)

    @property
    def mapping(self) -> Json:
        """How the classes of an external test were matched: rule, data and model; {} otherwise."""
        mapping: Json = self.metrics.get("mapping") or self.run_json.get("mapping") or {}
        return mapping

    @property
    def unmapped_counts(self) -> Json:
        """Label -> images of it that were not scored, since no class of the model fits."""
        counts: Json = self.metrics.get("unmapped") or self.run_json.get("unmapped") or {}
        return counts

    @property
    def leaks(self) -> Json:
        """Leak counts as the split's check returns them: n, total, identical_pixels, same_group, per_class, ..."""
        leaks: Json = self.metrics.get("leaks") or self.run_json.get("split", {}).get("leaks") or {}
        return leaks


def read_run_folder(folder: Path) -> RunFolder:
    """Read a run folder; raises `DataError` without a metrics.json, or where a file of it is broken."""
    metrics = read_metrics(folder)
    if not metrics.get("splits"):
        raise DataError(f"{folder / 'metrics.json'}: has no split", remedy="run `dermkit evaluate` on this folder")
    return RunFolder(
        folder=folder,
        metrics=metrics,
        run_json=layout.RUN.read_optional(folder),
        environment=layout.ENVIRONMENT.read_optional(folder),
        recipe=_read_recipe(folder / layout.RECIPE_FILE),
        log=read_optional_csv(folder / layout.LOG_FILE),
        next_steps=read_text(folder / layout.NEXT_STEPS_FILE),
        seal=layout.RUN_SEAL.read_optional(folder),
    )


def _read_recipe(path: Path) -> schema.Recipe | None:
    """Return the recipe, or None where it is absent or of another version: old runs stay readable."""
    try:
        return schema.load_recipe(path)
    except UsageError:
        return None


def read_text(path: Path) -> str:
    """Return a text file without its outer blank lines, "" where it is absent."""
    if not path.exists():
        return ""
    try:
        return read_regular(path).decode("utf-8", "replace").replace("\r\n", "\n").strip("\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}", remedy="evaluate the run again"
        ) from error


def read_optional_csv(path: Path) -> pd.DataFrame | None:
    """Return a CSV as text, so that a class called NA stays one; None where it is absent or empty."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with open_regular(path) as stream:
            return pd.read_csv(stream, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}", remedy="evaluate the run again") from error
