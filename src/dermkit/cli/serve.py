"""A model behind an HTTP API, as a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermkit.cli.console import echo
from dermkit.cli.policy_options import CoverageOption, TargetOption
from dermkit.cli.train import DeviceOption
from dermkit.errors import UsageError
from dermkit.progress import Progress

if TYPE_CHECKING:
    from dermkit.prediction_log.writer import PredictionLog
    from dermkit.serving.settings import ServeSettings

_PACKAGES = ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")

LogOption = Annotated[
    str | None,
    typer.Option(
        "--log", envvar="DERMKIT_LOG",
        help="Write a row for each image before its answer is sent: an SQLite file or "
        "postgresql://USER@HOST/DATABASE (default: nothing is stored).",
    ),
]  # fmt: skip
LogOutboxOption = Annotated[
    Path | None,
    typer.Option(help="Folder that takes the rows while the database is away (default: beside the log)."),
]


def serve_command(
    model: Annotated[Path, typer.Argument(help="A model folder, the run folder that holds it, or a registry.")],
    host: Annotated[
        str, typer.Option(help="Address to bind. Any other than this machine's own needs --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; 0 = any that is free.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys, as `dermkit keys make` writes it (default: none asked for)."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name under which clients reach the server; may be repeated."),
    ] = None,
    target: TargetOption = None,
    coverage: CoverageOption = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Threads of the model (0 = all cores).")] = 0,
    max_images: Annotated[int | None, typer.Option(min=1, help="Images of one request (default: 16).")] = None,
    max_waiting: Annotated[
        int | None, typer.Option(min=1, help="Images that may wait for the model (default: 64); then 503.")
    ] = None,
    max_image_mb: Annotated[
        float | None, typer.Option(min=0.1, help="Megabytes of an image (default: 32).")
    ] = None,
    log: LogOption = None,
    log_outbox: LogOutboxOption = None,
) -> None:
    _check_packages()
    from dermkit.serving.server import log_to_stderr
    from dermkit.serving.settings import MEBIBYTE, ServeSettings, limits_with

    image_bytes = None if max_image_mb is None else int(max_image_mb * MEBIBYTE)
    limits = limits_with({"max_images": max_images, "max_waiting": max_waiting, "max_image_bytes": image_bytes})
    settings = ServeSettings(
        model=model, host=host, port=port, keys=keys, allowed_hosts=tuple(allow_host or ()), target=target,
        coverage=coverage, device=device, workers=workers, limits=limits,
    )  # fmt: skip
    log_to_stderr()
    echo("Research use only. Not a medical device.")
    _serve(settings, log, log_outbox)


def _serve(settings: "ServeSettings", log: str | None, outbox: Path | None) -> None:
    """Serve with the page, and with a prediction log where one is named."""
    from dermkit.serving.page_routes import PAGE_RULES, page_router
    from dermkit.serving.server import serve

    progress = Progress(say=echo)
    if log is None:
        serve(settings, routers=[page_router()], rules=PAGE_RULES, progress=progress)
        return
    with _open_log(log, outbox) as prediction_log:
        from dermkit.serving.feedback import FEEDBACK_RULES, feedback_router
        from dermkit.serving.log_recorder import LogRecorder

        echo(f"prediction log: {prediction_log.address.name}")
        serve(
            settings, recorder=LogRecorder(prediction_log), routers=[page_router(), feedback_router(prediction_log)],
            rules=(*PAGE_RULES, *FEEDBACK_RULES), progress=progress,
        )  # fmt: skip


def _open_log(log: str, outbox: Path | None) -> "PredictionLog":
    from dermkit.prediction_log.packages import check_log_packages

    check_log_packages()
    from dermkit.prediction_log.writer import open_log

    return open_log(log, outbox)


def _check_packages() -> None:
    """Raise `UsageError` where the packages of the server are not installed."""
    from importlib.util import find_spec

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UsageError(
            f"serve needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            outcome="no server was started",
            remedy="pip install 'dermkit[serve]'",
        )
