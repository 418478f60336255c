"""The packages of export and of inference engines: which are installed, and their telemetry, which is switched off.

ONNX Runtime (since 1.29 on every system) and OpenVINO report use to their makers unless told otherwise, OpenVINO
already as it is imported. dermkit sends nothing, so both are loaded here alone, when they are needed.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

from dermkit.errors import UsageError, did_you_mean

TORCH, ONNXRUNTIME, OPENVINO, AUTO = "torch", "onnxruntime", "openvino", "auto"
FILE_ENGINES = (ONNXRUNTIME, OPENVINO)
"""Engines that run nets from files, by the names of their packages."""

TITLES: Mapping[str, str] = MappingProxyType({TORCH: "torch", ONNXRUNTIME: "ONNX Runtime", OPENVINO: "OpenVINO"})

OLDEST_VERSIONS: Mapping[str, str] = MappingProxyType(
    {"onnx": "1.17", "onnxscript": "0.5", "onnxruntime": "1.20", "openvino": "2025.0"}
)
"""Package -> its oldest version that dermkit takes, as in pyproject.toml."""

_TORCH_SCORES = "without it, `dermkit predict` scores images of a model folder with torch"


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed. Nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def engine_text(engine: str) -> str:
    """Return the title and version of an installed engine."""
    return f"{TITLES[engine]} {installed_version(engine)}"


def check_engine_name(engine: str) -> None:
    """Raise `UsageError` for an engine that does not exist."""
    if engine not in (TORCH, AUTO, *FILE_ENGINES):
        raise UsageError(
            f"--engine {engine}: unknown{did_you_mean(engine, (TORCH, AUTO, *FILE_ENGINES))}",
            remedy=f"one of {', '.join((AUTO, TORCH, *FILE_ENGINES))}",
        )


def check_packages(packages: Sequence[str], *, purpose: str, extra: str, otherwise: str = _TORCH_SCORES) -> None:
    """Raise `UsageError` for the first package of `OLDEST_VERSIONS` that is absent or too old.

    purpose: what needs it, for the message. extra: of dermkit, which installs it. otherwise: what can be done without.
    """
    for package in packages:
        present, oldest = installed_version(package), OLDEST_VERSIONS[package]
        if present is not None and _numbers(present) >= _numbers(oldest):
            continue
        problem = "is not installed" if present is None else f"{present} is too old: {oldest} or newer is needed"
        raise UsageError(
            f"{purpose}: the package {package} {problem}",
            outcome="nothing was written",
            remedy=f"pip install 'dermkit[{extra}]'; {otherwise}",
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def load_onnxruntime() -> Any:
    """Return the module onnxruntime, its telemetry off unless the environment asks for it."""
    # Read once, as the library starts: no later call stops its first report (microsoft/onnxruntime#25573).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with _broken_package("onnxruntime"):
        import onnxruntime
    if os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        onnxruntime.disable_telemetry_events()  # of its builds for Windows, which do not read the environment
    return onnxruntime


def load_openvino() -> Any:
    """Return the module openvino, without its telemetry.

    It reports its import and every conversion by the package openvino_telemetry, and takes an empty stand-in of its own
    where that cannot be imported. Its own switch, opt_in_out, would write into the user's home folder.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: cannot be imported
    with _broken_package("openvino"):
        import openvino
    return openvino


def load_onnx() -> Any:
    """Return the module onnx; onnxscript is tried too, which torch writes nets with."""
    with _broken_package("onnx"):
        import onnx
    with _broken_package("onnxscript"):
        import onnxscript  # noqa: F401
    return onnx


@contextmanager
def _broken_package(package: str) -> Iterator[None]:
    """Raise `UsageError` where an installed package cannot be imported: a library it lacks, or another NumPy's."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # whatever its modules do as they start
        raise UsageError(
            f"the package {package} {installed_version(package)} is installed and cannot be imported: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            outcome="nothing was written",
            remedy=f"pip install --force-reinstall {package}; {_TORCH_SCORES}",
        ) from error
