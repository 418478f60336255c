"""One run before it starts: its recipe, data, split, weights, seed, folder and machine."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dermkit.data.folds import leaves_test_to_ensemble
from dermkit.data.manifest import Dataset
from dermkit.data.seal import PartialOverlap, Seal, find_partial_overlaps, find_seal
from dermkit.data.split import Split, division_bytes, tables_by_fold
from dermkit.errors import DataError, UsageError
from dermkit.evaluation.options import DEFAULT_OPTIONS, EvaluationOptions
from dermkit.files import check_writable, fingerprint, sha256_bytes
from dermkit.models.metadata import fit_metadata
from dermkit.pipeline.data import resolve_split
from dermkit.progress import Progress
from dermkit.recipes.head_checks import check_head_fields
from dermkit.recipes.schema import Recipe, recipe_fingerprint
from dermkit.recipes.smoothing_check import check_smoothing

if TYPE_CHECKING:
    import pandas as pd
    from lightning_fabric import Fabric

    from dermkit.models.weights import BackboneWeights
    from dermkit.pipeline.teacher import Teacher


@dataclass(frozen=True)
class RunSettings:
    """Where and how a run is executed: what may differ between machines without changing the experiment.

    devices: processes on this machine, each with a device of its own; nodes: machines; workers: threads that prepare
    batches ahead, in each process. teacher: a run or model whose probabilities a recipe with `distil` learns.
    heat_maps: whether runs get heat maps of their mistakes and best hits.
    """

    out: Path = Path("runs")
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 0
    weights: Path | None = None
    resume: bool = False
    teacher: Path | None = None
    command: str = ""
    """The command as it was typed, without --resume and --continue, for messages."""
    heat_maps: bool = True

    @property
    def options(self) -> EvaluationOptions:
        """Return the options of the evaluation that ends a training."""
        return replace(DEFAULT_OPTIONS, heat_maps=self.heat_maps)


@dataclass(frozen=True)
class Machine:
    """This machine, ready to train: its device, where it is one of several processes joined with the others.

    progress: silent in every process but the first.
    """

    settings: RunSettings
    fabric: "Fabric"
    progress: Progress

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of all, which alone writes."""
        return self.fabric.global_rank == 0


def check_classes(dataset: Dataset) -> None:
    """Raise `DataError` for a data set of one class, before torch is loaded: nothing can be told apart in it."""
    if len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.folder}: has one class, {', '.join(dataset.class_names)}, and a classifier needs two",
            outcome="nothing was trained",
            remedy="import images of another class with it",
        )


def _check_training_classes(dataset: Dataset, split_name: str, table: "pd.DataFrame", recipe: Recipe) -> None:
    """Raise `DataError` where the training images of a split are of one class, `UsageError` where one is too rare."""
    train_ids = table.loc[table["split"] == "train", "image_id"]
    train_labels = dataset.manifest.loc[dataset.manifest["image_id"].isin(train_ids), "label"]
    labels = sorted(set(train_labels))
    if recipe.grow is None and recipe.smote is None and recipe.optim.sampling == "shuffled":
        counts = train_labels.value_counts()
        check_smoothing(recipe.optim, {name: int(counts.get(name, 0)) for name in dataset.class_names})
    if len(labels) < 2:
        raise DataError(
            f"split {split_name}: all {len(train_ids)} training images are of the class {', '.join(labels)}, and a "
            "classifier needs two",
            outcome="nothing was trained",
            remedy="make another split with `dermkit split`, or import more images of the other classes",
        )


def _check_tables(
    recipe: Recipe,
    dataset: Dataset,
    split_name: str,
    tables: "Iterable[pd.DataFrame]",
    teacher: "Teacher | None",
) -> None:
    """Raise `DataError` for a split or fold that nothing can be learned from, or whose images a teacher has seen."""
    for table in tables:
        _check_training_classes(dataset, split_name, table, recipe)
        if recipe.model.metadata is not None:
            train_ids = table.loc[table["split"] == "train", "image_id"]
            manifest = dataset.manifest
            # It refuses a field that no training image has.
            fit_metadata(recipe.model.metadata.fields, manifest[manifest["image_id"].isin(train_ids)])
        if teacher is not None:
            teacher.check(dataset, table)


def prepare_machine(settings: RunSettings | None, progress: Progress | None) -> Machine:
    """Check that this machine can train before any work is done; raises `OutputError`, `UsageError`."""
    from dermkit.models.inference import pick_device
    from dermkit.training.distributed.process_group import start_fabric

    settings = settings or RunSettings()
    check_writable(settings.out)
    pick_device(settings.device)  # refuses a device that is not there
    fabric = start_fabric(settings.device, settings.devices, settings.nodes)
    return Machine(settings, fabric, progress if progress and fabric.global_rank == 0 else Progress())


@dataclass(frozen=True)
class Continuation:
    """The run whose checkpoints a run begins with. n_epochs: epochs that it had trained.

    is_exact: whether the result is that of the recipe from the beginning, to the last bit; else `note` says why not and
    `key` tells the run from that one.
    """

    folder: Path
    n_epochs: int
    is_exact: bool
    key: str
    note: str


@dataclass
class EpochWatch:
    """Who looks at a trial after each epoch, and its deadline.

    on_epoch: gets the row of log.csv, and says whether to end the training, which then stops as if it were interrupted.
    deadline: on the clock of `time.monotonic`, after which it ends within a batch.
    """

    on_epoch: Callable[[Mapping[str, Any]], bool]
    deadline: float = math.inf
    _is_enough: bool = False

    def look(self, row: Mapping[str, Any]) -> None:
        """Show it the row of an epoch."""
        self._is_enough = self._is_enough or self.on_epoch(row)

    @property
    def is_ended(self) -> bool:
        """Whether the training is to end."""
        return self._is_enough or time.monotonic() > self.deadline


@dataclass(frozen=True)
class RunPlan:
    """One run with every choice made."""

    recipe: Recipe
    dataset: Dataset
    split: Split
    split_table: "pd.DataFrame"
    weights: "BackboneWeights"
    seed: int
    fold: int
    folder: Path
    is_trial: bool = False
    """A trial of a search: the test split is not scored and no report is written."""
    seal: "Seal | None" = None
    """The seal of this test split: it is not scored until somebody opens it. None: not sealed."""
    partial_overlaps: "tuple[PartialOverlap, ...]" = ()
    """Seals of other splits that share some images with this one."""
    input_hashes: Mapping[str, str] = field(default_factory=dict)
    """Hashes of manifest, split, weights and classes, which with the recipe's name the run."""
    continued: Continuation | None = None
    """The run that this one goes on from."""
    watch: EpochWatch | None = None
    """Who may end a trial early."""
    leaves_test_to_ensemble: bool = False
    """A fold beside test images: the ensemble of all folds scores these."""
    teacher: "Teacher | None" = None
    """The model whose probabilities it learns."""
    is_rung: bool = False
    """A run of a leak ladder: its test images are scored, no report is written, and its model is not kept."""

    @property
    def has_report(self) -> bool:
        """Whether this run ends with a report of its own, after the image-blind rules."""
        return not self.is_trial and not self.is_rung

    @property
    def hides_test(self) -> bool:
        """Whether this run leaves its test images unscored."""
        return self.is_trial or self.seal is not None or self.leaves_test_to_ensemble


def with_seed(recipe: Recipe, seed: int | None) -> Recipe:
    """Return the recipe with another first seed; raises `UsageError` for one out of range."""
    try:
        return recipe if seed is None else replace(recipe, seed=seed)
    except ValidationError as error:
        raise UsageError(f"--seed {seed}: {error.errors()[0]['msg']}", remedy="give 0 to 4294967295") from error


def make_plans(recipe: Recipe, dataset: Dataset, split: str | Split | None, machine: Machine) -> list[RunPlan]:
    """Return the runs of a recipe, seeds times folds, on a split, or on that of a name or file (None: the recipe's)."""
    from dermkit.models.precision import resolve_precision
    from dermkit.pipeline.teacher import find_teacher

    teacher = find_teacher(recipe, machine.settings.teacher)  # here too: a study's trials are other recipes
    check_head_fields(recipe)
    # recipe.json must say the precision and the split that were used, or it would not repeat the run.
    recipe = replace(recipe, compute=resolve_precision(recipe.compute, machine.fabric.device.type))
    chosen_split = split if isinstance(split, Split) else resolve_split(recipe, dataset, split)
    if chosen_split.spec is not None:
        recipe = replace(recipe, split=chosen_split.spec)
    recipe, weights = _with_weights(recipe, machine)
    split_rows, tables = chosen_split.frame, tables_by_fold(chosen_split, dataset.manifest)
    input_hashes = {
        "manifest": dataset.manifest_sha256,
        "split": sha256_bytes(division_bytes(chosen_split, tables)),
        "weights": fingerprint(weights.sha256, weights.mean, weights.std, weights.missing),
        "classes": fingerprint([asdict(lesion_class) for lesion_class in dataset.classes]),
    }
    input_hashes |= {} if teacher is None else {"teacher": teacher.sha256}
    recipe_hash = recipe_fingerprint(recipe, **input_hashes)
    leaves_test = leaves_test_to_ensemble(split_rows, chosen_split.spec)
    seals = {fold: _seals_of(dataset, table, leaves_test) for fold, table in tables.items()}
    _check_tables(recipe, dataset, chosen_split.name, tables.values(), teacher)
    return [
        RunPlan(
            recipe=recipe,
            dataset=dataset,
            split=chosen_split,
            split_table=table,
            weights=weights,
            seed=seed,
            fold=fold,
            folder=machine.settings.out / recipe.name / f"{recipe_hash}-s{seed}{f'-f{fold}' if fold >= 0 else ''}",
            seal=seals[fold][0],
            partial_overlaps=seals[fold][1],
            input_hashes=input_hashes,
            leaves_test_to_ensemble=leaves_test,
            teacher=teacher,
        )
        for seed in range(recipe.seed, recipe.seed + recipe.repeats)
        for fold, table in tables.items()
    ]


def _with_weights(recipe: Recipe, machine: Machine) -> "tuple[Recipe, BackboneWeights]":
    """Return a recipe's weights, and the recipe with the exact revision of a net of the hub."""
    from dermkit.models.hub import pin_hub_revision
    from dermkit.models.weights import resolve_weights

    weights = resolve_weights(recipe.model, machine.settings.weights)
    return pin_hub_revision(recipe, weights.net), weights


def say_licence(plan: RunPlan, progress: Progress) -> None:
    """Say the licence of a net of the hub, before anything is trained."""
    from dermkit.models.hub import licence_sentence

    if plan.weights.net is not None:
        progress.say(licence_sentence(plan.weights.net))


def _seals_of(
    dataset: Dataset, table: "pd.DataFrame", leaves_test: bool
) -> tuple[Seal | None, tuple[PartialOverlap, ...]]:
    """Return the seal of a run's test images, and those of other splits on its sides; of a test side that it scores."""
    folder, manifest = dataset.folder / "splits", dataset.manifest
    rows = table[table["split"] != "test"] if leaves_test else table
    seal = None if leaves_test else find_seal(folder, manifest, rows)
    return seal, tuple(find_partial_overlaps(folder, manifest, rows))


def parent_of_runs(first: RunPlan) -> Path:
    """Return the folder that holds the runs of a recipe's seeds and folds. first: the run of the first seed."""
    return first.folder.with_name(f"{first.folder.name.split('-')[0]}-s{first.seed}-versions")
