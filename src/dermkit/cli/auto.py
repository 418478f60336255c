"""`dermkit plan` and `dermkit train auto`: the recipes that a data set and a time allow, and their race."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import DatasetArgument, echo, print_result, progress_bar
from dermkit.cli.durations import parse_duration
from dermkit.cli.machine import MachineOptions, train_on
from dermkit.errors import UsageError

if TYPE_CHECKING:
    from dermkit.pipeline.dataset_plan import AutoOptions

AUTO_RECIPE = "auto"
"""The name that stands for a race of recipes in place of one."""
_DEFAULT_TIME = "30m"

PlanTimeOption = Annotated[str, typer.Option("--time", help="The time to plan for: 45s, 30m, 2h.")]
WeightsFilesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--weights",
        help="A net that may be chosen: its weights file (.safetensors, with its .json), a folder as on the hub, or "
        "hf-hub:OWNER/NAME. May be repeated; the first is preferred. Default: the weights that were fetched before.",
    ),
]


def plan_command(
    dataset: DatasetArgument,
    time: PlanTimeOption = _DEFAULT_TIME,
    weights: WeightsFilesOption = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of folds and nets.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    import dermkit as dk

    options = auto_options(time, weights, seed)
    loaded = dk.load_dataset(dataset)
    with progress_bar() as progress:
        dataset_plan = dk.plan(loaded, options, settings=dk.RunSettings(device=device), progress=progress)
    if as_json:
        echo(json.dumps(dataset_plan.to_json(), indent=1))
        return
    for line in dataset_plan.lines():
        echo(line)
    echo(f"train them: dermkit train auto {dataset} --time {time}")


def auto_options(time: str | None, weights: list[Path] | None, seed: int | None) -> "AutoOptions":
    """Return the options of a race; raises `UsageError` for a time that is none."""
    from dermkit.pipeline.dataset_plan import AutoOptions

    seconds = parse_duration(time or _DEFAULT_TIME)
    return AutoOptions(seconds=seconds, weights=tuple(weights or ()), seed=seed or 0)


def refuse_with_auto(flags: list[str]) -> None:
    """Raise `UsageError` for options that change a recipe: `auto` chooses these itself."""
    if flags:
        raise UsageError(
            f"{', '.join(flags)}: `train auto` chooses this itself",
            outcome="nothing was trained",
            remedy="leave it out, or train one recipe: `dermkit recipes list`",
        )


def run_auto(dataset: Path, machine: MachineOptions, options: "AutoOptions") -> None:
    """Run the race, and print what it found."""
    from dermkit.pipeline.auto import train_auto
    from dermkit.reporting.auto_page import auto_lines
    from dermkit.runs.layout import AUTO, AUTO_PAGE, REPORT_FILE

    folder = train_on(
        dataset,
        machine,
        lambda data, settings, progress: train_auto(data, options, settings=settings, progress=progress),
    )
    for line in auto_lines(folder):
        echo(line)
    final = folder / AUTO.read(folder)["chosen"]["folder"]
    print_result(final, folder / AUTO_PAGE, final / REPORT_FILE)
