"""API keys of `dermkit serve`, as commands."""

from pathlib import Path
from typing import Annotated

import typer

from dermkit.cli.console import echo
from dermkit.cli.examples import examples_text

KeyFileArgument = Annotated[Path, typer.Argument(help="The file of API keys.")]
DaysOption = Annotated[float | None, typer.Option("--days", help="Days until the key expires (default: never).")]

keys_app = typer.Typer(
    no_args_is_help=True, help="API keys of `dermkit serve`: make, list, rotate and revoke them."
)


@keys_app.command(
    "make",
    help="Make an API key and add its hash to a file; the key itself is printed once.",
    epilog=examples_text("keys make"),
)
def make_key_command(
    file: KeyFileArgument,
    name: Annotated[str, typer.Option(help="Who will use the key, in words.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="predict, explain, feedback, metrics or admin; may be repeated (default: predict and explain)."
        ),
    ] = None,
    days: DaysOption = None,
) -> None:
    from dermkit.serving.key_file import make_key

    key, text = make_key(file, name=name, scopes=scope or ["predict", "explain"], days=days)
    _print_key(text, key.id, file)


@keys_app.command(
    "list", help="List the keys of a file: id, name, scopes, until when.", epilog=examples_text("keys list")
)
def list_keys_command(file: KeyFileArgument) -> None:
    from datetime import UTC, datetime

    from dermkit.serving.key_file import read_keys

    for key in read_keys(file):
        state = key.why_invalid(datetime.now(UTC)) or f"valid until {key.expires or 'never'}"
        echo(f"{key.id}  {key.name}  {','.join(scope.value for scope in key.scopes)}  made {key.created}  {state}")


@keys_app.command(
    "revoke",
    help="Let a key be taken no longer; a running server notices within a second.",
    epilog=examples_text("keys revoke"),
)
def revoke_key_command(
    file: KeyFileArgument, key_id: Annotated[str, typer.Argument(help="Its id, as `dermkit keys list` shows it.")]
) -> None:
    from dermkit.serving.key_file import revoke_key

    echo(f"{revoke_key(file, key_id).id} is revoked; a running server notices within a second")


@keys_app.command(
    "rotate",
    help="Make a key in place of another; both are taken for some days.",
    epilog=examples_text("keys rotate"),
)
def rotate_key_command(
    file: KeyFileArgument,
    key_id: Annotated[str, typer.Argument(help="The id of the key to replace.")],
    overlap: Annotated[float, typer.Option(help="Days for which both keys are taken.")] = 7.0,
    days: DaysOption = None,
) -> None:
    from dermkit.serving.key_file import rotate_key

    key, text = rotate_key(file, key_id, overlap_days=overlap, days=days)
    _print_key(text, key.id, file)
    echo(f"{key_id} is taken for {overlap:g} more days", err=True)


def _print_key(text: str, key_id: str, file: Path) -> None:
    """Print a new key alone on standard output, so that a script can take it; it is shown this once."""
    echo(text)
    echo(f"key {key_id} is in {file} as a hash: this is the only time that it is shown", err=True)
    echo("clients send it as `Authorization: Bearer KEY`", err=True)
