"""The champion of an update: its run, its recipe, its split and its data set, as they were when it was trained."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from dermkit.data.folds import fold_numbers
from dermkit.data.manifest import LOCATION, Dataset, LesionClass, load_dataset
from dermkit.errors import DataError, UsageError
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.prediction.locate import check_folder, check_no_rung
from dermkit.recipes.schema import Recipe
from dermkit.runs.folder import RunFolder, read_table
from dermkit.runs.layout import MODEL_FOLDER, RUN, SPLIT_FILE, run_of_model
from dermkit.runs.model_key import folder_model_key
from dermkit.runs.registry import is_registry, read_registry

_NOTHING = "nothing was trained"
_TRAIN_REMEDY = "name the run folder that `dermkit train` printed, of one training on one split"


@dataclass(frozen=True, eq=False)
class Champion:
    """A finished run that a challenger is compared with.

    recipe: with the run's seed, for one training. dataset: that it was trained on. split: image_id, split of that.
    version: its name in the registry, "v1" where the update begins one.
    """

    run: Path
    recipe: Recipe
    dataset: Dataset
    split: pd.DataFrame
    version: str

    @property
    def model(self) -> Path:
        """Its model folder."""
        return self.run / MODEL_FOLDER


def find_champion(model: Path, registry: Path, dataset: Path | None) -> Champion:
    """Return the run that serves in the registry, or the named one where the registry is to be made.

    model: a run, its model folder, or the registry itself. dataset: the folder that it was trained on, None = where its
    location.json says. Raises `UsageError` for what is no run of one training, or not the version that serves;
    `DataError` where its data set is absent or has changed.
    """
    run, version = _serving_run(model, registry)
    folder = RunFolder(run)
    recipe = folder.recipe
    missing = [name for name in (RUN.name, SPLIT_FILE) if not (run / name).is_file()]
    missing += [] if (run / MODEL_FOLDER / CHECKSUM_FILE).is_file() else [MODEL_FOLDER]
    if missing or recipe is None:
        raise UsageError(
            f"{run}: is no run that can be trained again: no {', '.join(missing or ['readable recipe.json'])}",
            outcome=_NOTHING, remedy=_TRAIN_REMEDY,
        )  # fmt: skip
    split = read_table(run / SPLIT_FILE, "image_id", "split")
    if folder.ensemble or folder.run_json.get("fold") is not None or fold_numbers(split):
        raise UsageError(
            f"{run}: is made of several nets or of one fold, and an update trains one net again",
            outcome=_NOTHING, remedy=_TRAIN_REMEDY,
        )  # fmt: skip
    recipe = replace(recipe, repeats=1, seed=int(folder.run_json["seed"]))
    return Champion(run, recipe, _load_old(folder, run, dataset), split[["image_id", "split"]], version)


def _serving_run(model: Path, registry: Path) -> tuple[Path, str]:
    """Return the champion's run and its version."""
    check_folder(model)
    if not is_registry(registry):
        check_no_rung(model)
        return run_of_model(model), "v1"
    current = read_registry(registry)
    serving = current.version_folder(current.current)
    served_model = current.model_folder(current.current)  # a damaged one is no champion
    is_named = model.resolve() in (registry.resolve(), serving.resolve(), served_model.resolve())
    if not is_named and folder_model_key(run_of_model(model) / MODEL_FOLDER) != folder_model_key(served_model):
        raise UsageError(
            f"{model}: is not the model that serves in {registry} ({current.current})",
            outcome=_NOTHING,
            remedy=f"name the registry itself as MODEL, or roll back to the version that {model} is",
        )
    return serving, current.current


def _load_old(folder: RunFolder, run: Path, dataset: Path | None) -> Dataset:
    recorded = str(LOCATION.read_optional(run).get("dataset", ""))
    if dataset is None and not (recorded and Path(recorded).is_dir()):
        raise DataError(
            f"{run}: the data set that it was trained on is not at {recorded or 'a recorded place'}, and old images "
            "are needed beside the new ones",
            outcome=_NOTHING,
            remedy="name its folder with --dataset",
        )
    old = load_dataset(dataset or Path(recorded))
    is_same = folder.dataset_hash == old.manifest_sha256 and _class_rows(folder.classes) == _class_rows(
        old.classes
    )
    if not is_same:
        raise DataError(
            f"{old.folder}: is not the data set that {run} was trained on, or its manifest or classes changed since",
            outcome=_NOTHING,
            remedy="restore it as it was, name another one with --dataset, or train a first model on it as it is",
        )
    return old


def _class_rows(classes: tuple[LesionClass, ...]) -> list[dict[str, object]]:
    return [asdict(lesion_class) for lesion_class in classes]


def check_same_classes(old: Dataset, new: Dataset) -> None:
    """Raise `DataError` where new data has other classes, or calls other ones malignant."""
    if old.folder.resolve() == new.folder.resolve():
        raise UsageError(
            f"{new.folder}: is the data set of the champion",
            outcome=_NOTHING,
            remedy="name a data set of new images",
        )
    sides = [{one.name: one.malignancy for one in dataset.classes} for dataset in (old, new)]
    added, absent = sorted(sides[1].keys() - sides[0].keys()), sorted(sides[0].keys() - sides[1].keys())
    changed = sorted(name for name in sides[0].keys() & sides[1].keys() if sides[0][name] != sides[1][name])
    clauses = [f"new classes {', '.join(added)}"] if added else []
    clauses += [f"no class {', '.join(absent)}"] if absent else []
    clauses += [f"another malignancy of {', '.join(changed)}"] if changed else []
    if clauses:
        raise DataError(
            f"{new.folder}: has other classes than {old.folder}: {'; '.join(clauses)}",
            outcome=_NOTHING,
            remedy='import it again with the names of the champion\'s classes (`--merge "CLASS=OTHER"`, '
            '`--drop "CLASS"`, `--malignancy`); a model of further classes is trained anew with `dermkit train`',
        )
