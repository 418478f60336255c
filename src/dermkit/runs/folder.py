"""A run folder: the one way to read its files. What it holds in a file of an older format has the names of today."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dermkit.data.groups import distinct_codes, id_groups
from dermkit.data.manifest import Dataset, LesionClass
from dermkit.errors import DataError, UsageError
from dermkit.files import lock, open_regular, read_regular, shell_path, sweep_temp
from dermkit.recipes.schema import Recipe, load_recipe
from dermkit.runs import layout
from dermkit.runs.documents import check_metrics_json, check_run_json, saved_content
from dermkit.runs.image_blind import MEAN_COLOUR
from dermkit.runs.predictions import ATTRIBUTES, PIXEL_HASH, read_predictions, read_rule_predictions

Json = dict[str, Any]

SEEN_SPLIT = "seen_in_training"
"""The split of an external test's images that the model's training looked at: they count in no test figure."""

_LOCK_SECONDS = 30.0
"""The longest wait for another command that writes into the same folder: it writes a report in a few seconds."""

_SPLIT_ORDER = {"train": 0, SEEN_SPLIT: 1, "validation": 2, "test": 3}


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Lock a folder of results, and remove the temporary files that killed commands left in it.

    Only those that evaluations and reports write: other runs and evaluations below it may be going on.
    """
    with lock(folder, timeout=_LOCK_SECONDS):
        children = {path.name for path in folder.iterdir() if path.is_dir()}
        sweep_temp(folder, skip=children - {layout.FIGURES_FOLDER, layout.MODEL_FOLDER, layout.HEAT_MAPS_FOLDER})
        yield


def read_metrics(folder: Path) -> Json:
    """Read a run's metrics.json of this or an older format; raises `DataError` where it is missing or broken."""
    with saved_content(folder):  # a migration of an older format may miss anything
        metrics = layout.METRICS.read(folder)
    check_metrics_json(metrics, folder / layout.METRICS.name)
    return metrics


@dataclass(frozen=True)
class RunFolder:
    """A run folder; each file is read when it is first needed, and then kept.

    None, {} and "" stand for files that a run need not have. A broken file raises `DataError`.
    """

    path: Path

    # --- the files ---

    @cached_property
    def run_json(self) -> Json:
        """run.json, {} where it is missing."""
        return self._read_run_json() if (self.path / layout.RUN.name).exists() else {}

    @cached_property
    def metrics(self) -> Json:
        """metrics.json; raises `DataError` where it is missing or has no split."""
        metrics = read_metrics(self.path)
        if not metrics.get("splits"):
            raise DataError(
                f"{self.path / layout.METRICS.name}: has no split",
                remedy=f"dermkit evaluate {shell_path(self.path)}",
            )
        return metrics

    @cached_property
    def environment(self) -> Json:
        """environment.json: versions and machine, {} where it is missing."""
        return layout.ENVIRONMENT.read_optional(self.path)

    @cached_property
    def seal(self) -> Json:
        """The run's copy of its test split's seal, {} where that split is not sealed."""
        return layout.RUN_SEAL.read_optional(self.path)

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe, None where it is missing or cannot be read: old runs stay readable."""
        try:
            return load_recipe(self.path / layout.RECIPE_FILE)
        except UsageError:
            return None

    @cached_property
    def log(self) -> pd.DataFrame | None:
        """log.csv as text, one row per epoch."""
        return self.table(layout.LOG_FILE)

    @cached_property
    def next_steps(self) -> str:
        """NEXT_STEPS.txt."""
        return self.text(layout.NEXT_STEPS_FILE)

    def table(self, name: str) -> pd.DataFrame | None:
        """Return a CSV of the folder as text, so that a class called NA stays one; None where absent or empty."""
        path = self.path / name
        return read_table(path) if path.exists() and path.stat().st_size else None

    def figures_table(self, name: str) -> pd.DataFrame | None:
        """Return a CSV of the figures folder, as `table` does."""
        return self.table(f"{layout.FIGURES_FOLDER}/{name}")

    def text(self, name: str) -> str:
        """Return a text file without its outer blank lines, "" where it is absent."""
        path = self.path / name
        if not path.exists():
            return ""
        try:
            return read_regular(path).decode("utf-8", "replace").replace("\r\n", "\n").strip("\n")
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read: {error.strerror or error}", remedy="evaluate the run again"
            ) from error

    # --- what run.json says ---

    @property
    def classes(self) -> tuple[LesionClass, ...]:
        """The class table; raises `DataError` where run.json is missing or has none."""
        run_json = self.run_json or self._read_run_json()
        try:
            classes = tuple(LesionClass(**fields) for fields in run_json["dataset"]["classes"])
            if not all(isinstance(text, str) for entry in classes for text in vars(entry).values()):
                raise TypeError("a name is no text")
            return classes
        except (KeyError, TypeError, AttributeError) as error:
            path = self.path / layout.RUN.name
            raise DataError(f"{path}: has no class table", remedy="train again, or restore the file") from error

    def _read_run_json(self) -> Json:
        with saved_content(self.path):
            run_json = layout.RUN.read(self.path)
        check_run_json(run_json, self.path / layout.RUN.name)
        return run_json

    @property
    def class_names(self) -> list[str]:
        """The names of `classes`, in order."""
        return [lesion_class.name for lesion_class in self.classes]

    @property
    def split_json(self) -> Json:
        """What run.json says of the split: name, scheme, counts, train_counts, leaks; {} where it says nothing."""
        split_json: Json = self.run_json.get("split", {})
        return split_json

    @property
    def rung_warnings(self) -> list[str]:
        """The warning that this is a rung of a leak ladder, which is no result; none for any other run."""
        return [text for text in self.run_json.get("warnings", []) if str(text).startswith(layout.RUNG_WARNING)]

    @property
    def leaves_test_to_ensemble(self) -> bool:
        """Whether it is the run of a fold beside test images, which the ensemble of all folds scores."""
        return bool(self.split_json.get("leaves_test_to_ensemble"))

    @property
    def dataset_hash(self) -> str:
        """The SHA-256 of the manifest that the run's images are of, "" where run.json does not say."""
        return str(self.run_json.get("dataset", {}).get("manifest_sha256", ""))

    @property
    def notes(self) -> Json:
        """What the import noted about the data set: source of the malignancy, licence, defects, warnings, ..."""
        notes = self.run_json.get("dataset", {}).get("notes") or {}
        return notes if isinstance(notes, dict) else {"warnings": notes}

    @property
    def title(self) -> str:
        """The recipe's name, or the folder's."""
        recipe_name = self.recipe.name if self.recipe else self.path.resolve().name
        return str(self.run_json.get("recipe") or recipe_name)

    # --- what metrics.json says; of a missing field, what run.json says ---

    @property
    def split_names(self) -> list[str]:
        """The evaluated splits, validation before test."""
        return sorted(self.metrics["splits"], key=lambda name: _SPLIT_ORDER.get(name, len(_SPLIT_ORDER)))

    @property
    def headline_split(self) -> str:
        """The split that the verdict is about: test, or the last one there is."""
        return "test" if "test" in self.metrics["splits"] else self.split_names[-1]

    @property
    def class_rows(self) -> list[Json]:
        """The evaluated classes, each with name, diagnosis and malignancy ("" where run.json does not say)."""
        class_by_name = {fields["name"]: fields for fields in self.run_json.get("dataset", {}).get("classes", [])}
        positive = self.metrics.get("positive", [])
        return [
            class_by_name.get(
                name, {"name": name, "diagnosis": "", "malignancy": "malignant" if name in positive else ""}
            )
            for name in self.metrics["classes"]
        ]

    @property
    def is_external(self) -> bool:
        """Whether a finished model was tested on another data set than the one it was trained on."""
        return bool(self.mapping)

    @property
    def is_foreign(self) -> bool:
        """Whether its predictions are those of another tool."""
        return str(self.split_json.get("scheme", "")) == "foreign"

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
    def ensemble(self) -> Json:
        """What an ensemble of recipes is made of and how it was weighed (`pipeline.ensemble`); {} for any other run."""
        ensemble: Json = self.run_json.get("ensemble") or {}
        return ensemble

    @property
    def leaks(self) -> Json:
        """Leak counts as the split's check returns them: n, total, identical_pixels, same_group, per_class, ..."""
        leaks: Json = self.metrics.get("leaks") or self.split_json.get("leaks") or {}
        return leaks

    # --- what an evaluation needs ---

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """predictions.csv, checked, probabilities as float64 in the order of `classes`; raises `DataError`.

        Of a cross-validation with several seeds: the rows of the seed that its pages show.
        """
        rows = read_predictions(self.path / layout.PREDICTIONS_FILE, self.class_names)
        return rows if self.pooled is None else rows[rows["seed"] == str(self.pooled["shown_seed"])]

    @cached_property
    def pooled(self) -> Json | None:
        """What summary.json says of pooled folds: n_folds, splits, shown_seed, seeds; None for any other folder."""
        pooled: Json | None = layout.SUMMARY.read_optional(self.path).get("pooled")
        return pooled

    @property
    def scores_test_by_ensemble(self) -> bool:
        """Whether it holds folds beside test images: validation rows of single nets, test rows of their ensemble."""
        return bool(self.pooled and self.pooled["scores_test_by_ensemble"])

    def rule_predictions(self) -> dict[str, pd.DataFrame]:
        """Return the predictions of the image-blind rules, rule -> table; of an old run that of mean colour alone."""
        path = self.path / layout.IMAGE_BLIND_FILE
        if path.exists():
            return read_rule_predictions(path, self.class_names)
        old_paths = [self.path / name for name in layout.OLD_COLOUR_FILES if (self.path / name).exists()]
        return {MEAN_COLOUR: read_predictions(old_paths[0], self.class_names)} if old_paths else {}

    def groups(self, dataset: Dataset | None = None) -> dict[str, int] | None:
        """Return image_id -> group (lesion, patient, copies) of groups.csv, else of the data set; None: unknown."""
        path = self.path / layout.GROUPS_FILE
        if path.exists():
            frame = read_table(path, "image_id", "group")
            return dict(zip(frame["image_id"], distinct_codes(frame["group"]).tolist(), strict=True))
        if dataset is None:
            return None
        return dict(zip(dataset.manifest["image_id"], id_groups(dataset.manifest).tolist(), strict=True))

    def attributes(self, dataset: Dataset | None = None) -> pd.DataFrame | None:
        """Return age, sex, site and skin type by image_id, of attributes.csv, else of the data set; None: unknown."""
        path = self.path / layout.ATTRIBUTES_FILE
        if path.exists():
            return read_table(path, "image_id", *ATTRIBUTES).set_index("image_id")[list(ATTRIBUTES)]
        return None if dataset is None else dataset.manifest.set_index("image_id")[list(ATTRIBUTES)]

    def pixel_hashes(self) -> dict[str, str]:
        """Return image_id -> hash of the pixels that were scored, of attributes.csv; {} for a run of before it."""
        table = self.table(layout.ATTRIBUTES_FILE)
        if table is None or not {"image_id", PIXEL_HASH} <= set(table):
            return {}
        known = table[table[PIXEL_HASH] != ""]
        return dict(zip(known["image_id"], known[PIXEL_HASH], strict=True))

    def train_counts(self, dataset: Dataset | None = None) -> dict[str, int] | None:
        """Return training images per class: of run.json, else of split.csv and the data set, else of predictions."""
        if "train_counts" in self.split_json:
            return dict(self.split_json["train_counts"])
        labels = self.predictions.loc[self.predictions["split"] == "train", "label"]
        split_path = self.path / layout.SPLIT_FILE
        if dataset is not None and split_path.exists():
            split = read_table(split_path, "image_id", "split")
            train_ids = split.loc[split["split"] == "train", "image_id"]
            labels = dataset.manifest.loc[dataset.manifest["image_id"].isin(train_ids), "label"]
        return {str(name): int(n) for name, n in labels.value_counts().items()} if len(labels) else None

    def seal_summary(self) -> Json:
        """Return what metrics.json says of a sealed test split, {} without one; opening_number None: not scored."""
        if not self.seal:
            return {}
        summary = {key: self.seal[key] for key in ("name", "date", "n", "opening_number")}
        return {**summary, "n_openings": len(self.seal["openings"])}

    def images_root(self) -> Path | None:
        """Return where the images lay on this machine, None where they no longer do."""
        if not layout.LOCATION.exists(self.path):
            return None
        images = Path(str(layout.LOCATION.read(self.path)["images"]))
        return images if images.is_dir() else None


def leak_warnings(leaks: Mapping[str, Any]) -> list[str]:
    """Return a line per split whose images share a lesion or their pixels with training images."""
    leaks_by_split = (("test", leaks), ("validation", leaks.get("validation", {})))
    return [
        f"the split leaks: {counts['total']} of {counts.get('n', '?')} {split_name} images share a lesion or their "
        f"exact pixels with images learned from; the {split_name} figures are not those of unseen lesions"
        for split_name, counts in leaks_by_split
        if counts.get("total", 0)
    ]


def read_table(path: Path, *columns: str, as_text: bool = True) -> pd.DataFrame:
    """Read a CSV of a run; raises `DataError` where it cannot be read or lacks one of `columns`.

    as_text: every cell as it is written; otherwise numbers are parsed.
    """
    try:
        with open_regular(path) as stream:
            frame = pd.read_csv(stream, dtype=str, keep_default_na=False) if as_text else pd.read_csv(stream)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}", remedy=_TABLE_REMEDY) from error
    missing_columns = [name for name in columns if name not in frame]
    if missing_columns:
        raise DataError(f"{path}: has no column {', '.join(missing_columns)}", remedy=_TABLE_REMEDY)
    return frame


_TABLE_REMEDY = "restore the file; `dermkit evaluate` writes those of figures anew, `dermkit train` the others"
