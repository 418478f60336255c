"""Which inference engine scores images: the one that is named, or the fastest that gives torch's numbers here.

A model's nets are written as ONNX once and stay in a cache folder of the user, with what was measured: images per
second and the largest difference from torch, for these versions, this processor and this number of threads.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dermkit import __version__
from dermkit.errors import DermkitError, OutputError, ResourceError, UntrustedError, UsageError
from dermkit.files import JsonFile, fingerprint, lock, make_folder, write_bytes
from dermkit.models.checksums import CHECKSUM_FILE, check_hashes, expected_hashes, write_checksums
from dermkit.models.engines.packages import (
    AUTO,
    FILE_ENGINES,
    ONNXRUNTIME,
    OPENVINO,
    TITLES,
    TORCH,
    check_engine_name,
    check_packages,
    engine_text,
    installed_version,
    load_onnxruntime,
    load_openvino,
)
from dermkit.models.engines.scoring import TOLERANCE, SessionRuntime, session_engine
from dermkit.models.engines.sessions import OnnxRuntimeSession, OpenVinoSession, Session
from dermkit.prediction.parity import compare_nets
from dermkit.prediction.parity_images import ParityImages
from dermkit.progress import Progress

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

_LOADERS: Mapping[str, Callable[[], object]] = {ONNXRUNTIME: load_onnxruntime, OPENVINO: load_openvino}
_WRITERS = ("onnx", "onnxscript")
GRAPH_FORMAT = 1
"""Of the cached nets: raised with each change of what `models.engines.graph` writes, so that no older net is taken."""
_DRAWN = ParityImages("drawn lesions", ())

MEASUREMENTS_FORMAT = 1
CACHE_VARIABLE = "DERMKIT_CACHE"

_ROUNDS = 3
_BATCHES_PER_THREAD = 2


@dataclass(frozen=True)
class Measurement:
    """One engine on this machine. images_per_second: median of three rounds, None where only numbers were compared.

    max_probability_difference: from torch, on n_images images; None where it is no number, which is a problem.
    problem: why it cannot be used, "" where it can.
    """

    images_per_second: float | None
    max_probability_difference: float | None
    n_images: int
    problem: str = ""

    @property
    def is_consistent(self) -> bool:
        """Whether a record can have been written here: an engine without a problem is near torch."""
        difference, rate = self.max_probability_difference, self.images_per_second
        is_near = difference is not None and 0 <= difference <= TOLERANCE
        return (bool(self.problem) or is_near) and (rate is None or rate > 0)


class _Load(NamedTuple):
    """How a prediction uses the processor: threads that score a batch each, and images of a batch."""

    threads: int
    batch_size: int


def check_engine(engine: str) -> None:
    """Raise `UsageError` for an unknown engine, and one that is named and absent, too old or broken."""
    check_engine_name(engine)
    if engine in FILE_ENGINES:
        check_packages([engine, *_WRITERS], purpose=f"--engine {engine}", extra="export")
        _LOADERS[engine]()


def select_engine(
    predictor: "Predictor", engine: str, *, threads: int, batch_size: int = 0, progress: Progress | None = None
) -> "Predictor":
    """Return the model scored by an engine: torch, onnxruntime, openvino, or auto, the fastest that is installed.

    An engine other than torch is compared with torch first, once for a model and machine; `progress` is told which
    engine it is and why. threads: batches that are scored at once. batch_size: images of each, 0 = the default.

    Raises `UsageError` for an unknown or absent engine and a net that ONNX does not hold, `UntrustedError` where a
    named engine does not give torch's numbers. auto says why it leaves an engine out.
    """
    say = (progress or Progress()).say
    check_engine(engine)
    if engine == TORCH:
        return predictor
    if predictor.runtime.device_type != "cpu":
        if engine == AUTO:
            say("engine: torch, since a GPU computes")
            return predictor
        raise UsageError(f"--engine {engine}: computes on the CPU, and a GPU was chosen", remedy="--device cpu")
    load = _Load(threads, batch_size or predictor.batch_size)
    if engine != AUTO:
        return _named(predictor, engine, load, progress or Progress())
    return _fastest(predictor, load, progress or Progress())


def _named(predictor: "Predictor", engine: str, load: _Load, progress: Progress) -> "Predictor":
    with _net_files(predictor, progress) as files:
        candidate = _with_engine(predictor, engine, files, load.threads)
        records = _Records(predictor, load)
        measurement = records.measurements.get(engine) or _compare(predictor, candidate)
        records.add(engine, measurement)
    if measurement.problem:
        raise UntrustedError(
            f"--engine {engine}: does not give what torch gives: {measurement.problem}",
            outcome="nothing was predicted",
            remedy="--engine torch, or auto, which leaves such engines out",
        )
    progress.say(
        f"engine: {engine_text(engine)}; largest difference of a probability from torch "
        f"{measurement.max_probability_difference:.1g} on {measurement.n_images} drawn lesions"
    )
    return candidate


def _fastest(predictor: "Predictor", load: _Load, progress: Progress) -> "Predictor":
    engines = [engine for engine in FILE_ENGINES if _reason_not(engine, progress) == ""]
    if not engines:
        is_absent = all(installed_version(engine) is None for engine in FILE_ENGINES)
        reason = "no other is installed (pip install 'dermkit[export]')" if is_absent else "no other can be used"
        progress.say(f"engine: torch, since {reason}")
        return predictor
    records, candidates = _Records(predictor, load), {TORCH: predictor}
    try:
        with _net_files(predictor, progress) as files:
            for engine in engines:
                try:
                    candidates[engine] = _with_engine(predictor, engine, files, load.threads)
                except UntrustedError as error:
                    progress.say(f"{error.message}: it is left out")
    except (UsageError, ResourceError) as error:  # ONNX does not hold the net, or memory does not hold both
        progress.say(f"engine: torch, since {error.message}")
        return predictor
    for engine, candidate in tuple(candidates.items()):
        known = records.measurements.get(engine)
        if known is None or (known.images_per_second is None and not known.problem):
            progress.say(f"measuring {engine_text(engine)} on this machine, once for this model")
            try:
                records.add(engine, _measure(predictor, candidate, load))
            except ResourceError as error:
                if engine == TORCH:
                    raise
                progress.say(f"{error.message}: it is left out")
                del candidates[engine]
    return _pick(candidates, records.measurements, load, progress)


def _pick(
    candidates: Mapping[str, "Predictor"],
    measurements: Mapping[str, Measurement],
    load: _Load,
    progress: Progress,
) -> "Predictor":
    """Return the fastest candidate without a problem, and say how fast each is."""
    for engine in candidates:
        if measurements[engine].problem:
            progress.say(f"engine {engine_text(engine)} is left out: {measurements[engine].problem}")
    rates = {
        engine: measurements[engine].images_per_second or 0.0
        for engine in candidates
        if not measurements[engine].problem
    }
    best = max(rates, key=lambda engine: rates[engine])
    listed = ", ".join(f"{engine_text(engine)} {rate:.0f}" for engine, rate in sorted(rates.items(), key=_by_rate))
    progress.say(
        f"engine: {engine_text(best)}, the fastest; images per second in batches of {load.batch_size} on "
        f"{load.threads} threads, without opening files, medians of {_ROUNDS}: {listed}"
    )
    return candidates[best]


def _by_rate(entry: tuple[str, float]) -> float:
    return -entry[1]


def _reason_not(engine: str, progress: Progress) -> str:
    """Return why an engine is not there; one that is too old or broken is said, one that is absent is not."""
    try:
        check_packages([engine, *_WRITERS], purpose=f"engine {engine}", extra="export")
        _LOADERS[engine]()
    except UsageError as error:
        if installed_version(engine) is not None:
            progress.say(f"{error.message}: it is left out")
        return error.message
    return ""


def _with_engine(predictor: "Predictor", engine: str, files: Sequence[Path], threads: int) -> "Predictor":
    """Return the model whose nets are run from files."""
    sessions: list[Session] = [
        OnnxRuntimeSession(path) if engine == ONNXRUNTIME else OpenVinoSession(path, n_threads=threads)
        for path in files
    ]
    engines = tuple(
        session_engine(session, member, engine_text(engine))
        for session, member in zip(sessions, predictor.members, strict=True)
    )
    return replace(predictor, runtime=SessionRuntime(engines, predictor.runtime.versions), reload=None)


def engine_of(inference_mode: str) -> str:
    """Return the engine that a prediction's `inference_mode` names: an engine in a file says its title and version."""
    names = [engine for engine in FILE_ENGINES if inference_mode.startswith(f"{TITLES[engine]} ")]
    return names[0] if names else TORCH


# Measuring ------------------------------------------------------------------------------------------------------------


def _compare(predictor: "Predictor", candidate: "Predictor") -> Measurement:
    if not isinstance(candidate.runtime, SessionRuntime):
        return Measurement(None, 0.0, 0)
    report = compare_nets(predictor, [engine.session for engine in candidate.runtime.session_engines], _DRAWN)
    difference = report.max_probability_difference
    return Measurement(None, difference if np.isfinite(difference) else None, report.n_images, report.problem)


def _measure(predictor: "Predictor", candidate: "Predictor", load: _Load) -> Measurement:
    """Return how near and how fast a candidate is."""
    measurement = _compare(predictor, candidate)
    return (
        measurement
        if measurement.problem
        else replace(measurement, images_per_second=_images_per_second(candidate, load))
    )


def _images_per_second(candidate: "Predictor", load: _Load) -> float:
    """Return the median rate of three rounds, after one that is not counted; batches run as in a prediction."""
    (_, pixels) = next(_DRAWN.batches(candidate.resizings))
    rows = np.arange(load.batch_size) % len(pixels[0])
    batch = [array[rows] for array in pixels]
    batches = [batch] * (_BATCHES_PER_THREAD * load.threads)

    def score(arrays: list[NDArray[np.uint8]]) -> int:
        return len(candidate.probabilities(arrays))

    seconds = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        n_images = sum(candidate.runtime.parallel_batches(score, batches, workers=load.threads))
        seconds.append(time.perf_counter() - start)
    return n_images / statistics.median(seconds[1:])


# The cache folder -----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return where nets and measurements are cached: `DERMKIT_CACHE`, or the system's place for caches of this user."""
    if place := os.environ.get(CACHE_VARIABLE):
        return Path(place)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "dermkit"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dermkit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dermkit"


def _model_cache(predictor: "Predictor") -> Path:
    """Return the folder of a model's nets, as these versions write them: another version has another folder.

    By the bytes that were loaded: the model's own folder may hold another model by now.
    """
    versions = [
        str(GRAPH_FORMAT),
        __version__,
        *(installed_version(package) for package in ("torch", "timm", *_WRITERS)),
    ]
    return cache_folder() / "engines" / fingerprint(predictor.files_sha256, versions)


@contextmanager
def _net_files(predictor: "Predictor", progress: Progress) -> Iterator[list[Path]]:
    """Yield the files of the nets: from the cache, written now, or in a scratch folder where the cache is closed."""
    folder = _model_cache(predictor)
    try:
        files = _cached_files(folder, predictor, progress)
    except ResourceError:  # memory ran out: it would again
        raise
    except OutputError as error:
        progress.say(f"{error.message}: the nets are not cached, and are written again each time")
        with tempfile.TemporaryDirectory() as scratch:
            yield _write_nets(predictor, Path(scratch), progress)
        return
    yield files


def _cached_files(folder: Path, predictor: "Predictor", progress: Progress) -> list[Path]:
    make_folder(folder)
    nets = folder / "nets"  # alone with their checksums: the files of the lock change
    with lock(folder, timeout=600.0):
        files = [nets / f"net-{number}.onnx" for number in range(len(predictor.nets))]
        if (nets / CHECKSUM_FILE).is_file():
            try:
                check_hashes(nets, preserved="")
                # A file that is not listed was not verified.
                if {path.name for path in files} <= set(expected_hashes(nets)):
                    return files
            except UntrustedError as error:
                progress.say(f"{error.message}: written again")
        _write_nets(predictor, nets, progress)
        write_checksums(nets)
        return files


def _write_nets(predictor: "Predictor", folder: Path, progress: Progress) -> list[Path]:
    from dermkit.models.engines.graph import onnx_bytes

    files = []
    for number, (net, member) in enumerate(zip(predictor.nets, predictor.members, strict=True)):
        progress.say(
            f"writing net {number + 1} of {len(predictor.nets)} as onnx for this engine, once for this model"
        )
        files.append(folder / f"net-{number}.onnx")
        write_bytes(files[-1], onnx_bytes(net, member.preprocessing, member.views, properties={}, description=""))
    return files


_MEASUREMENTS: TypeAdapter[dict[str, Measurement]] = TypeAdapter(dict[str, Measurement])


class _Records:
    """What was measured for a model on this processor, with these versions, threads and batch size, as a JSON file.

    A file that is broken or cannot be written costs a measurement, and nothing else.
    """

    def __init__(self, predictor: "Predictor", load: _Load) -> None:
        versions = [installed_version(engine) for engine in FILE_ENGINES]
        key = fingerprint(processor_name(), load, versions, [asdict(r) for r in predictor.resizings])
        self._file = JsonFile(f"measurements-{key}.json", MEASUREMENTS_FORMAT, error=UntrustedError)
        self._folder = _model_cache(predictor)
        try:
            engines = json.dumps(self._file.read_optional(self._folder).get("engines", {}))
            records = _MEASUREMENTS.validate_json(engines, strict=True)
        except (DermkitError, ValidationError):
            records = {}
        self.measurements = {engine: record for engine, record in records.items() if record.is_consistent}

    def add(self, engine: str, measurement: Measurement) -> None:
        """Add a measurement, and write the file where it can be."""
        self.measurements[engine] = measurement
        content: dict[str, Any] = {name: asdict(known) for name, known in self.measurements.items()}
        try:
            self._file.write(self._folder, {"engines": content})
        except OutputError:
            return


def processor_name() -> str:
    """Return the processor's name; on Linux from the kernel, since Python has none there."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} {platform.processor()}"
