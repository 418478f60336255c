"""A registry of model versions, as commands: list them, say why one was promoted or refused, roll back by name."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import echo
from dermkit.cli.examples import examples_text

RegistryArgument = Annotated[Path, typer.Argument(help="The registry, as `dermkit update` writes it.")]
VersionArgument = Annotated[str, typer.Argument(help="A version by its name, such as v1.")]

registry_app = typer.Typer(
    no_args_is_help=True, help="Versions of a model that `dermkit update` wrote: list, explain, roll back."
)


@registry_app.command(
    "list",
    help="List the versions: name, date, and whether each serves, served earlier or was refused.",
    epilog=examples_text("registry list"),
)
def list_command(registry: RegistryArgument) -> None:
    from dermkit.runs.registry import read_registry

    for version in read_registry(registry).versions:
        echo(f"{version.name}  {version.date}  {version.state}  model {version.model_key[:12]}")


@registry_app.command(
    "show",
    help="Say why a version was promoted or refused, and what happened to it since.",
    epilog=examples_text("registry show"),
)
def show_command(registry: RegistryArgument, version: VersionArgument) -> None:
    from dermkit.runs.layout import UPDATE_PAGE
    from dermkit.runs.registry import UPDATES_FOLDER, read_registry

    content = read_registry(registry)
    shown = content.version(version)
    echo(f"{shown.name}: {shown.state}")
    for step in content.steps:
        if step.version == version or (shown.update and step.update == shown.update):
            echo(f"{step.date}  {step.kind}")
            for reason in step.details.get(
                "reasons", [step.details["reason"]] if step.details.get("reason") else []
            ):
                echo(f"- {reason}")
    if shown.update:
        echo(str(registry / UPDATES_FOLDER / shown.update / UPDATE_PAGE))
    echo(str(content.version_folder(version)))
    echo("Research use only. Not a medical device.")


@registry_app.command(
    "rollback",
    help="Let an earlier version serve again; nothing is removed. A running server is restarted by you.",
    epilog=examples_text("registry rollback"),
)
def rollback_command(
    registry: RegistryArgument,
    version: VersionArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
) -> None:
    from dermkit.runs.registry import roll_back

    echo(f"{roll_back(registry, version, reason=reason).current} serves; restart `dermkit serve` to load it")
