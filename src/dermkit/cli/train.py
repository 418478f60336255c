"""Train and tune, as commands, with the options that change a recipe."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dermkit.cli.auto import AUTO_RECIPE, WeightsFilesOption, auto_options, refuse_with_auto, run_auto
from dermkit.cli.console import DatasetArgument, echo
from dermkit.cli.machine import MachineOptions, print_run, train_on
from dermkit.errors import UsageError
from dermkit.progress import Progress
from dermkit.training.distributed.environment import is_first_rank

if TYPE_CHECKING:
    from dermkit.data.manifest import Dataset
    from dermkit.pipeline.plan import RunSettings
    from dermkit.recipes.derive import Assignment
    from dermkit.recipes.schema import Recipe
    from dermkit.recipes.short_forms import ShortForms

TrainOutOption = Annotated[Path, typer.Option("--out", help="Folder for the runs: OUT/RECIPE/RUN.")]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="A split of the data set by name, or a split file (default: the recipe's own)."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="First random seed (default: the recipe's).")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Start from this weights file (.safetensors, with its .json or a repository's config.json beside it; "
        "docs/backbones.md), or the folder that holds it.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
DevicesOption = Annotated[
    int, typer.Option("--devices", min=1, help="Processes on this machine, each with its own GPU or CPU cores.")
]
NodesOption = Annotated[
    int, typer.Option("--nodes", min=1, help="Machines that train together (docs/machines.md).")
]
RestartsOption = Annotated[
    int,
    typer.Option("--restarts", min=0, help="With several processes: how often to restart them if one is lost."),
]
WorkersOption = Annotated[
    int,
    typer.Option("--workers", min=0, help="Threads that prepare batches ahead (0 = none). They change no number."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue an unfinished run from its last checkpoint.")
]
ContinueOption = Annotated[
    Path | None,
    typer.Option(
        "--continue",
        help="Go on from this run, whose recipe differs in epochs, patience or later phases only (docs/training.md).",
    ),
]


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a field, such as optim.batch_size=16 or phases.0.epochs=20 (`dermkit recipes explain`). May be "
        "repeated.",
    ),
]
EpochsOption = Annotated[
    str | None, typer.Option("--epochs", help="Epochs of every phase, or one number a phase: 3,12.", metavar="N")
]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", help="Images per step. The learning rate stays as it is.")
]
LearningRateOption = Annotated[
    str | None,
    typer.Option(
        "--lr",
        help="Learning rate of the head in the first phase, all others keep their ratio to it; or one a phase: "
        "1e-3,1e-4.",
        metavar="RATE",
    ),
]
ImageSizeOption = Annotated[int | None, typer.Option("--image-size", help="Side of the net's input, in pixels.")]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Another net: `dermkit recipes backbones`, any name of timm, or hf-hub:OWNER/NAME (docs/backbones.md).",
    ),
]
FoldsOption = Annotated[
    int | None,
    typer.Option(
        "--folds",
        help="Cross-validation with this many folds: of the training images, where the recipe keeps published test "
        "images (scheme given); else of all images.",
    ),
]
ClassWeightsOption = Annotated[
    Literal["none", "balanced"] | None,
    typer.Option("--class-weights", help="Weights of the classes in the loss; balanced: rare ones count more."),
]


ClassifierOption = Annotated[
    Literal["logistic", "k_nearest", "svm", "gradient_boosting"] | None,
    typer.Option(
        "--classifier",
        help="Freeze the backbone and fit this classifier on its features, in place of dense layers.",
    ),
]
SmoteOption = Annotated[
    bool, typer.Option("--smote", help="SMOTE: new features of small classes, with a frozen backbone.")
]
MetadataOption = Annotated[
    str | None,
    typer.Option(
        "--metadata",
        help="A second input beside the image: some of age,sex,site; what is unknown stays unknown (docs/training.md).",
        metavar="FIELDS",
    ),
]
TestViewsOption = Annotated[
    Literal["identity", "dihedral", "dihedral_crops", "choose"] | None,
    typer.Option(
        "--test-views",
        help="Views of an image that the model averages: 1, 8 or 13 passes an image, or what is best on validation.",
    ),
]


NoHeatMapsOption = Annotated[
    bool,
    typer.Option(
        "--no-heat-maps",
        help="Make no heat maps of the run's mistakes and best hits (docs/explain.md). `auto` makes none.",
    ),
]
TeacherOption = Annotated[
    Path | None,
    typer.Option("--teacher", help="The run or model whose probabilities a recipe with `distil` learns."),
]
AutoTimeOption = Annotated[
    str | None,
    typer.Option("--time", help="With `auto` alone: the time to train in, 45s, 30m, 2h (default: 30m)."),
]


def find_or_load_recipe(name: str) -> "Recipe":
    """Return a recipe by name, or from a file when the argument is one."""
    from dermkit.recipes.derive import check_record
    from dermkit.recipes.experiments import find_recipe
    from dermkit.recipes.schema import load_recipe

    path = Path(name)
    if path.suffix != ".json":
        return find_recipe(name)
    recipe = load_recipe(path)
    check_record(recipe, name)
    return recipe


def field_assignments(
    base: "Recipe", texts: list[str] | None, forms: "ShortForms", split: str | None
) -> "list[Assignment]":
    """Return what `--set` and its short forms change; a split of the data set would hide changes of the recipe's."""
    from dermkit.recipes.derive import parse_assignment
    from dermkit.recipes.short_forms import short_form_assignments

    typed = [parse_assignment(text) for text in texts or []]
    scheme = next((str(assignment.value) for assignment in typed if assignment.path == "split.scheme"), "")
    assignments = [*typed, *short_form_assignments(base, forms, scheme=scheme)]
    hidden = [assignment.option for assignment in assignments if assignment.path.split(".")[0] == "split"]
    if split is not None and hidden:
        raise UsageError(
            f"{hidden[0]} and --split {split}: a split that is there already is taken as it is",
            outcome="nothing was trained",
            remedy="leave one of them out, or make the split with `dermkit split`, then give --split alone",
        )
    return assignments


def check_derived(recipe: "Recipe", was_changed: bool) -> None:
    """Refuse a backbone that does not exist before torch is loaded, and say what was changed."""
    from dermkit.models.backbones import check_backbone_name
    from dermkit.recipes.schema import changes_text

    check_backbone_name(recipe.model)
    if was_changed and is_first_rank():
        echo(f"recipe {recipe.name}: {changes_text(recipe) or 'has these values already'}", err=True)


def train_command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe: a name of `dermkit recipes list`, a recipe.json file, or `auto`, which chooses some and "
            "trains them within --time."
        ),
    ],
    dataset: DatasetArgument,
    out: TrainOutOption = Path("runs"),
    split: SplitOption = None,
    seed: SeedOption = None,
    weights: WeightsFilesOption = None,
    time: AutoTimeOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    restarts: RestartsOption = 3,
    workers: WorkersOption = 0,
    resume: ResumeOption = False,
    continue_from: ContinueOption = None,
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
    test_views: TestViewsOption = None,
    teacher: TeacherOption = None,
    no_heat_maps: NoHeatMapsOption = False,
) -> None:
    from dermkit.recipes.short_forms import ShortForms

    forms = ShortForms(
        epochs=epochs, batch_size=batch_size, learning_rate=lr, image_size=image_size, backbone=backbone,
        folds=folds, class_weights=class_weights, test_views=test_views, classifier=classifier, smote=smote,
        metadata=metadata,
    )  # fmt: skip
    options = MachineOptions(out, device, devices, nodes, restarts, workers, None, resume, teacher)
    if recipe == AUTO_RECIPE:
        _check_alone(set_fields, forms, split=split, continue_from=continue_from, teacher=teacher)
        run_auto(dataset, options, auto_options(time, weights, seed))
        return
    options = options._replace(weights=_single_file(weights, time), heat_maps=not no_heat_maps)
    _train_recipe(recipe, dataset, options, forms, set_fields, split=split, seed=seed, continue_from=continue_from)


def _train_recipe(
    name: str,
    dataset: Path,
    options: MachineOptions,
    forms: "ShortForms",
    set_fields: list[str] | None,
    *,
    split: str | None,
    seed: int | None,
    continue_from: Path | None,
) -> None:
    import dermkit as dk
    from dermkit.recipes.derive import derive_recipe
    from dermkit.runs.layout import REPORT_FILE

    base = find_or_load_recipe(name)
    assignments = field_assignments(base, set_fields, forms, split)
    chosen_recipe = derive_recipe(base, assignments)
    check_derived(chosen_recipe, bool(assignments))

    def train(dataset: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        return dk.train(
            chosen_recipe, dataset, settings=settings, split=split, seed=seed, progress=progress,
            continue_from=continue_from)  # fmt: skip

    folder = train_on(dataset, options, train)
    print_run(folder, folder / REPORT_FILE)


def _check_alone(
    set_fields: list[str] | None,
    forms: "ShortForms",
    *,
    split: str | None,
    continue_from: Path | None,
    teacher: Path | None,
) -> None:
    flags = [f"--{name.replace('_', '-')}" for name, value in asdict(forms).items() if value not in (None, False)]
    flags += ["--set"] * bool(set_fields) + ["--split"] * bool(split) + ["--continue"] * bool(continue_from)
    flags += ["--teacher"] * bool(teacher)
    refuse_with_auto(flags)


def _single_file(weights: list[Path] | None, time: str | None) -> Path | None:
    """Return the weights file of one recipe; raises `UsageError` for several, and for a time."""
    if time is not None:
        raise UsageError(
            f"--time {time}: is for `train auto`, which plans for it; a recipe has its number of epochs",
            outcome="nothing was trained",
            remedy="leave it out, or give --epochs",
        )
    if len(weights or ()) > 1:
        raise UsageError(
            f"--weights: {len(weights or ())} files, and a recipe has one net",
            outcome="nothing was trained",
            remedy="give one; `train auto` takes several",
        )
    return weights[0] if weights else None
