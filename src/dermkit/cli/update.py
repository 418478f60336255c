"""`dermkit update`: a challenger on old and new data, promoted into a registry where it is not worse."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import echo
from dermkit.cli.machine import MachineOptions, train_on
from dermkit.cli.train import DeviceOption, WeightsOption, WorkersOption
from dermkit.progress import Progress

if TYPE_CHECKING:
    from dermkit.data.manifest import Dataset
    from dermkit.pipeline.plan import RunSettings
    from dermkit.pipeline.update import UpdateOutcome

EXIT_REFUSED = 8
"""Exit code of a challenger that was refused, with --fail-on-refusal; `monitor` has it for an alarm."""


ModelArgument = Annotated[
    Path, typer.Argument(help="The champion: a run folder that `dermkit train` printed, or the registry itself.")
]
NewDataArgument = Annotated[Path, typer.Argument(help="A data set folder of new images, of the same classes.")]
RegistryOption = Annotated[
    Path,
    typer.Option("--registry", help="Folder of all versions; made with the champion as v1 where there is none."),
]
MarginOption = Annotated[
    float, typer.Option("--margin", help="Largest loss of the figure that counts as none, as a fraction.")
]
SensitivityMarginOption = Annotated[
    float, typer.Option("--sensitivity-margin", help="The same for sensitivity at the operating point.")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", help="auroc or balanced_accuracy (default: auroc for benign and malignant, else the other)."
    ),
]
OldDataOption = Annotated[
    Path | None,
    typer.Option("--dataset", help="The data set that the champion was trained on (default: as recorded)."),
]
NewSplitOption = Annotated[
    str | None, typer.Option("--split", help="A split of the new data set by name (default: one is drawn).")
]
ValidationOption = Annotated[
    float, typer.Option("--validation", help="Fraction of the new images for validation.")
]
TestOption = Annotated[float, typer.Option("--test", help="Fraction of the new images for the sealed test.")]
MlflowOption = Annotated[
    str | None,
    typer.Option(
        "--mlflow", help="Also write parameters, figures and the version to this MLflow tracking store, a URI."
    ),
]
FailOption = Annotated[
    bool, typer.Option("--fail-on-refusal", help="Exit code 8 where the challenger is refused; for cron.")
]


def update_command(
    model: ModelArgument,
    new_data: NewDataArgument,
    registry: RegistryOption = Path("registry"),
    margin: MarginOption = 0.05,
    sensitivity_margin: SensitivityMarginOption = 0.05,
    metric: MetricOption = None,
    dataset: OldDataOption = None,
    split: NewSplitOption = None,
    validation: ValidationOption = 0.15,
    test: TestOption = 0.35,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = 0,
    mlflow: MlflowOption = None,
    fail_on_refusal: FailOption = False,
) -> None:
    from dermkit.pipeline.update import UpdateOptions, update
    from dermkit.pipeline.update_data import NewSplitOptions

    _check_store(mlflow)
    options = UpdateOptions(
        metric=metric, margin=margin, sensitivity_margin=sensitivity_margin, dataset=dataset,
        new_split=NewSplitOptions(split, validation, test),
    )  # fmt: skip
    outcomes: list[UpdateOutcome] = []

    def run_update(new: "Dataset", settings: "RunSettings", progress: Progress) -> Path:
        outcomes.append(
            update(model, new, registry=registry, options=options, settings=settings, progress=progress)
        )
        return outcomes[0].folder

    train_on(new_data, MachineOptions(registry, device, 1, 1, 0, workers, weights, resume=False), run_update)
    _tell(outcomes[0], mlflow)
    if fail_on_refusal and not outcomes[0].is_promoted:
        raise typer.Exit(EXIT_REFUSED)


def _check_store(mlflow: str | None) -> None:
    """Raise `UsageError`, before anything is trained, where a store is named and MLflow is not installed."""
    if mlflow is not None:
        from dermkit.integrations.mlflow import check_mlflow

        check_mlflow()


def _tell(outcome: "UpdateOutcome", mlflow: str | None) -> None:
    from dermkit.runs.registry import read_registry

    current = read_registry(outcome.registry).current
    echo(f"{outcome.version} is {'promoted' if outcome.is_promoted else 'refused'}; {current} serves")
    for sentence in outcome.sentences:
        echo(f"- {sentence}")
    if mlflow is not None:
        from dermkit.integrations.mlflow import log_update

        echo(f"mlflow  {log_update(outcome.registry, outcome.version, mlflow)}")
    echo(str(outcome.page))
    echo("Research use only. Not a medical device.")
