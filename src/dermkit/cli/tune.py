"""Tune, as a command: a recipe's own search space or one from a file, or a grid of named recipes."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import DatasetArgument, echo
from dermkit.cli.durations import parse_duration
from dermkit.cli.machine import MachineOptions, print_run, train_on
from dermkit.cli.train import (
    BackboneOption,
    BatchSizeOption,
    ClassifierOption,
    ClassWeightsOption,
    DeviceOption,
    DevicesOption,
    EpochsOption,
    FoldsOption,
    ImageSizeOption,
    LearningRateOption,
    MetadataOption,
    NodesOption,
    RestartsOption,
    ResumeOption,
    SeedOption,
    SetOption,
    SmoteOption,
    SplitOption,
    TrainOutOption,
    WeightsOption,
    WorkersOption,
    check_derived,
    field_assignments,
    find_or_load_recipe,
)
from dermkit.errors import UsageError
from dermkit.progress import Progress
from dermkit.training.distributed.environment import is_first_rank

if TYPE_CHECKING:
    from dermkit.data.manifest import Dataset
    from dermkit.pipeline.plan import RunSettings
    from dermkit.pipeline.search import SearchOptions
    from dermkit.recipes.derive import Assignment
    from dermkit.recipes.schema import Recipe
    from dermkit.recipes.search_space import SearchSpace
    from dermkit.recipes.short_forms import ShortForms

_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


RecipeOrGridArgument = Annotated[
    str,
    typer.Argument(help="A recipe or a grid of recipes: names of `dermkit recipes list`, or a recipe.json file."),
]
TrialsOption = Annotated[
    int | None, typer.Option("--trials", min=1, help="Finished trials of the whole study (default: 30).")
]
TimeOption = Annotated[
    str | None, typer.Option("--time", help="Begin no trial that would not end in this time: 45s, 30m, 2h.")
]
SpaceOption = Annotated[
    Path | None, typer.Option("--space", help="A JSON file with the fields to try (docs/tuning.md).")
]
StudyOption = Annotated[
    str | None, typer.Option("--study", help="Name of the study (default: RECIPE-study). The same one goes on.")
]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage", help="Journal file, or URL of a database, that several machines share."),
]
NoPruneOption = Annotated[
    bool, typer.Option("--no-prune", help="Train every trial to its end, also those that fall behind.")
]
NoFinalOption = Annotated[bool, typer.Option("--no-final", help="Do not train the selected recipe in full.")]


def tune_command(
    recipe: RecipeOrGridArgument,
    dataset: DatasetArgument,
    trials: TrialsOption = None,
    time: TimeOption = None,
    space: SpaceOption = None,
    study: StudyOption = None,
    storage: StorageOption = None,
    no_prune: NoPruneOption = False,
    no_final: NoFinalOption = False,
    out: TrainOutOption = Path("runs"),
    split: SplitOption = None,
    seed: SeedOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    restarts: RestartsOption = 3,
    workers: WorkersOption = 0,
    resume: ResumeOption = False,
    set_fields: SetOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    lr: LearningRateOption = None,
    image_size: ImageSizeOption = None,
    backbone: BackboneOption = None,
    folds: FoldsOption = None,
    class_weights: ClassWeightsOption = None,
    classifier: ClassifierOption = None,
    smote: SmoteOption = False,
    metadata: MetadataOption = None,
) -> None:
    from dermkit.recipes.short_forms import ShortForms

    forms = ShortForms(
        epochs=epochs, batch_size=batch_size, learning_rate=lr, image_size=image_size, backbone=backbone,
        folds=folds, class_weights=class_weights, classifier=classifier, smote=smote, metadata=metadata,
    )  # fmt: skip
    machine = MachineOptions(out, device, devices, nodes, restarts, workers, weights, resume)
    if _is_grid(recipe):
        of_study = {
            "--trials": trials, "--time": time, "--space": space, "--study": study, "--storage": storage,
            "--no-prune": no_prune, "--no-final": no_final, "--folds": folds}  # fmt: skip
        _refuse_study_options(recipe, [flag for flag, value in of_study.items() if value])
        _tune_grid(recipe, dataset, forms, machine, set_fields, split, seed)
        return
    base = _changed_recipe(recipe, set_fields, forms, split)
    _check_single_process(machine)
    options = _search_options(trials, time, study, storage, prunes=not no_prune, trains_final=not no_final)
    _search(base, _search_space(base, space, set_fields, forms), dataset, options, machine, split, seed)


def _is_grid(name: str) -> bool:
    """Whether a name is that of a grid; raises `UsageError` for a name that is most like one and is none."""
    from dermkit.errors import did_you_mean
    from dermkit.recipes.experiments import GRIDS, RECIPES, find_grid

    if name in GRIDS:
        return True
    if name.endswith(".json") or name in RECIPES:
        return False
    nearest = did_you_mean(name, [*GRIDS, *RECIPES], cutoff=0.5)
    if any(f"`{grid}`" in nearest for grid in GRIDS):
        find_grid(name)
    return False


def _refuse_study_options(grid: str, flags: list[str]) -> None:
    if flags:
        raise UsageError(
            f"{flags[0]}: {grid} is a grid, whose recipes are all trained on one split",
            outcome="nothing was trained",
            remedy="leave it out, or tune one recipe: `dermkit recipes list`",
        )


def _tune_grid(
    grid: str, dataset: Path, forms: "ShortForms", options: MachineOptions, set_fields: list[str] | None,
    split: str | None, seed: int | None,
) -> None:  # fmt: skip
    import dermkit as dk
    from dermkit.recipes.derive import derive_grid
    from dermkit.runs.layout import REPORT_FILE, TUNE_TABLE

    members = dk.find_grid(grid)
    assignments = field_assignments(members[0], set_fields, forms, split)
    name, recipes = derive_grid(grid, members, assignments)
    check_derived(recipes[0], bool(assignments))

    def train(dataset: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        return dk.tune(recipes, dataset, name=name, settings=settings, split=split, seed=seed, progress=progress)

    folder = train_on(dataset, options, train)
    print_run(folder, options.out / name / TUNE_TABLE, folder / REPORT_FILE)


def _changed_recipe(name: str, set_fields: list[str] | None, forms: "ShortForms", split: str | None) -> "Recipe":
    from dermkit.recipes.derive import derive_recipe

    base = find_or_load_recipe(name)
    assignments = field_assignments(base, set_fields, forms, split)
    recipe = derive_recipe(base, assignments)
    check_derived(recipe, bool(assignments))
    return recipe


def _search_space(
    recipe: "Recipe", path: Path | None, set_fields: list[str] | None, forms: "ShortForms"
) -> "SearchSpace":
    """Return the space of a file or of the recipe, without the fields that the command line sets."""
    from dermkit.recipes.default_space import default_space
    from dermkit.recipes.derive import parse_assignment
    from dermkit.recipes.search_space import load_space
    from dermkit.recipes.short_forms import short_form_assignments

    assignments = [*map(parse_assignment, set_fields or []), *short_form_assignments(recipe, forms)]
    fixed = (_fixed_field(assignment) for assignment in assignments)
    paths = tuple(field for field in fixed if field and not field.startswith("split."))
    if path is None:
        return default_space(recipe, set_fields=paths)
    return load_space(path, recipe, set_fields=paths)


def _fixed_field(assignment: "Assignment") -> str:
    """Return the field that a search leaves alone: of --classifier the kind, of --smote none, so that settings vary."""
    of_short_form = {"model.classifier": "model.classifier.kind", "smote": ""}
    is_short_form = not assignment.option.startswith("--set")
    return of_short_form.get(assignment.path, assignment.path) if is_short_form else assignment.path


def _search_options(
    trials: int | None,
    time: str | None,
    study: str | None,
    storage: str | None,
    *,
    prunes: bool,
    trains_final: bool,
) -> "SearchOptions":
    from dermkit.pipeline.search import DEFAULT_TRIALS, SearchOptions

    if study is not None and not _STUDY_NAME.fullmatch(study):
        raise UsageError(
            f"--study {study}: becomes a folder: letters, digits, . _ - only", remedy="give another name"
        )
    seconds = None if time is None else parse_duration(time)
    return SearchOptions(
        trials=trials or (None if seconds else DEFAULT_TRIALS), seconds=seconds, study=study or "", storage=storage,
        prunes=prunes, trains_final=trains_final,
    )  # fmt: skip


def _check_single_process(machine: MachineOptions) -> None:
    if machine.devices * machine.nodes > 1:
        raise UsageError(
            "--devices and --nodes: each trial of a study is trained by one process",
            outcome="nothing was started",
            remedy="give the same command several times, on as many machines as you like: they share the study",
        )


def _search(
    recipe: "Recipe", space: "SearchSpace", dataset: Path, options: "SearchOptions", machine: MachineOptions,
    split: str | None, seed: int | None,
) -> None:  # fmt: skip
    from dermkit.pipeline.search import search
    from dermkit.reporting.search_page import search_lines
    from dermkit.runs.layout import REPORT_FILE, STUDY, TUNE_PAGE

    def train(dataset: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        return search(
            recipe, space, dataset, options=options, settings=settings, split=split, seed=seed, progress=progress
        )

    folder = train_on(dataset, machine, train)
    if not is_first_rank():
        return
    for line in search_lines(folder):
        echo(line)
    if final := STUDY.read(folder)["final"]:
        echo(f"the selected recipe, trained in full: {final}")
        print_run(Path(final), folder / TUNE_PAGE, Path(final) / REPORT_FILE)
    else:
        echo(str(folder / TUNE_PAGE))
