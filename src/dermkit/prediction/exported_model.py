"""An exported folder becomes a `Predictor`: its nets run by ONNX Runtime or OpenVINO. Without torch.

Every byte is verified before use, what export.json repeats of model.json must be the same in both, and each net is run
on test pictures, whose probabilities must be those of the export: torch's, or in int8 its own.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import UntrustedError, UsageError
from dermkit.files import canonical_json, sha256_bytes
from dermkit.metrics.stats.intervals import proportion_interval
from dermkit.models.card import MODEL_JSON
from dermkit.models.checksums import VerifiedFiles
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
)
from dermkit.models.engines.scoring import (
    BATCH_TOLERANCE,
    FEATURE_TOLERANCE,
    INT8_TOLERANCE,
    TOLERANCE,
    SessionEngine,
    SessionRuntime,
    session_engine,
)
from dermkit.models.engines.sessions import OnnxRuntimeSession, OpenVinoSession, Session
from dermkit.models.exported_folder import (
    EXPORT,
    FLOAT32,
    INT8,
    ONNX_FORMAT,
    OPENVINO_FORMAT,
    README_FILE,
    SUFFIXES,
    cards_by_format,
    described_card,
    described_member,
    exported_features_file,
    exported_model_key,
    net_files,
)
from dermkit.models.members import MemberFields
from dermkit.models.model_content import ModelContent, read_model_content
from dermkit.models.net_engine import software_versions
from dermkit.models.test_pictures import draw_test_pictures
from dermkit.models.training_features import ReferenceFeatures
from dermkit.models.training_features_file import parse_exported_features
from dermkit.prediction.predictor import Predictor, predictor_of
from dermkit.progress import Progress

_ENGINES_OF_FORMAT: Mapping[str, tuple[str, ...]] = {
    ONNX_FORMAT: (ONNXRUNTIME, OPENVINO),
    OPENVINO_FORMAT: (OPENVINO,),
}
"""What reads each format; the first that is installed is taken where nobody names one."""

_EXTRAS = {ONNXRUNTIME: "serve", OPENVINO: "export"}
_LIMITS = {
    "max_probability_difference": ("tolerance", TOLERANCE),
    "max_batch_difference": ("batch_tolerance", BATCH_TOLERANCE),
    "max_feature_difference": ("feature_tolerance", FEATURE_TOLERANCE),
}
"""What the export measured, the limit that it was held to, and the largest limit that is taken here."""

_NOTHING = "nothing was predicted"
_EXPORT_AGAIN = "export the model again, or copy the folder anew"


def load_exported_model(
    folder: Path, *, engine: str | None = None, device: str = "auto", n_threads: int = 0,
    progress: Progress | None = None,
) -> Predictor:  # fmt: skip
    """Verify and load an exported folder.

    engine: onnxruntime or openvino; None or auto = what reads the files and is installed. device: auto or cpu.
    n_threads: batches that are scored at once, 0 = one on each core.

    Raises `UntrustedError` where a byte differs, the files do not fit together or an engine gives other numbers than
    torch gave, `UsageError` for an engine that is absent, too old or cannot read the format, and for a GPU.
    """
    _check_device(device)
    content = read_model_content(folder)
    export = content.export or {}
    try:
        exported = _check_export(content, export)
        pictures = [_recorded_pictures(net, len(content.classes)) for net in export["nets"]]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _broken(folder, f"not that of an exported model: {error}") from error
    name, is_int8 = _choose_engine(folder, exported, engine), export["precision"] == INT8
    engines = [
        _open_net(content, number, exported, name, n_threads, is_int8=is_int8)
        for number in range(len(content.members))
    ]
    n_features = [
        _check_pictures(folder / net_files(number, exported)[0], *of_net, INT8_TOLERANCE if is_int8 else TOLERANCE)
        for number, of_net in enumerate(zip(engines, content.members, pictures, strict=True))
    ]
    progress = progress or Progress()
    progress.say(f"engine: {engine_text(name)}, which reads this folder, exported to {exported}")
    if is_int8:
        progress.say(_int8_warning(export["parity"]))
    features = (None if is_int8 else _read_features(content, number, n) for number, n in enumerate(n_features))
    return predictor_of(
        content, SessionRuntime(tuple(engines), software_versions()), progress, training_features=tuple(features),
        model_key=exported_model_key(export, content.files.hashes), precision=export["precision"],
    )  # fmt: skip


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: unknown", remedy="one of auto, cpu, cuda")
    if device == "cuda":
        raise UsageError(
            "--device cuda: an exported folder computes on the CPU",
            outcome=_NOTHING,
            remedy="--device cpu, or the model folder, which torch runs on a GPU",
        )


# What export.json says ----------------------------------------------------------------------------------------------


def _check_export(content: ModelContent, export: Mapping[str, Any]) -> str:
    """Return the format of an exported folder; raises `UntrustedError` where its documents do not fit together."""
    folder, exported = content.folder, export["exported_to"]
    if exported not in SUFFIXES:
        raise ValueError(f"exported_to {str(exported)[:40]!r} is not one of {', '.join(SUFFIXES)}")
    if export["precision"] not in (FLOAT32, INT8):
        raise ValueError(f"precision {str(export['precision'])[:40]!r} is not {FLOAT32} or {INT8}")
    if export["model_sha256"] != sha256_bytes(content.files[MODEL_JSON.name]):
        raise _broken(folder, f"of another model than {MODEL_JSON.name} beside it: model_sha256 differs")
    if len(export["nets"]) != len(content.members):
        raise ValueError(f"{len(export['nets'])} nets, and the model has {len(content.members)}")
    _check_card(content, export)
    for number, (net, member) in enumerate(zip(export["nets"], content.members, strict=True)):
        for name, value in described_member(member).items():
            _check_same(folder, f"nets[{number}].{name}", net[name], value)
        _check_listed(content.files, net_files(number, exported))
    check = _check_parity if export["precision"] == FLOAT32 else _check_label_changes
    check(folder, export["parity"])
    return str(exported)


def _check_card(content: ModelContent, export: Mapping[str, Any]) -> None:
    """Raise `UntrustedError` unless export.json repeats model.json, in one of the formats up to today's."""
    described: dict[str, Any] = {}
    for card in cards_by_format(content.files[MODEL_JSON.name]):
        described = described_card(card, content.classes)
        if all(canonical_json(export[name]) == canonical_json(value) for name, value in described.items()):
            return
    for name, value in described.items():
        _check_same(content.folder, name, export[name], value)


def _check_same(folder: Path, field: str, exported: Any, original: Any) -> None:
    """Raise `UntrustedError` where export.json and model.json differ: a reader of either would take another for it."""
    if canonical_json(exported) != canonical_json(original):
        raise _broken(folder, f"{field} is not what {MODEL_JSON.name} has")


def _check_listed(files: VerifiedFiles, names: Sequence[str]) -> None:
    if absent := [name for name in names if name not in files]:
        raise ValueError(f"the net {absent[0]} is not in the list of checksums")


def _check_parity(folder: Path, parity: Mapping[str, Any]) -> None:
    """Raise `UntrustedError` where an exported net was further from torch than is taken here, or held to less."""
    for measured, (limit, largest) in _LIMITS.items():
        difference, allowed = float(parity[measured]), float(parity[limit])
        if not 0 <= difference <= allowed <= largest:  # false for nan
            raise _broken(
                folder,
                f"its comparison with torch has {measured} {difference:g} at {limit} {allowed:g}, and at most "
                f"{largest:g} is taken",
            )


def _check_label_changes(folder: Path, parity: Mapping[str, Any]) -> None:
    """Raise `UntrustedError` where more labels changed in int8 than the export was held to."""
    n_images, n_changes, limit = (parity[name] for name in ("n_images", "n_different_labels", "max_label_changes"))
    if not (type(n_changes) is type(n_images) is int and 0 <= n_changes <= float(limit) * n_images <= n_images):
        raise _broken(folder, f"{n_changes} of {n_images} labels changed in int8, and at most {limit} of them may")
    if n_images == 0 or not proportion_interval(n_changes, n_images)[0][1] <= float(limit):
        raise _broken(
            folder, f"{n_changes} of {n_images} labels changed in int8: more than {limit} of all images may do so"
        )


def _int8_warning(parity: Mapping[str, Any]) -> str:
    return (
        f"warning: its nets are in int8: {parity['n_different_labels']} of {parity['n_images']} images had another "
        f"label than in float32 when it was exported; {README_FILE} of the folder says what it costs"
    )


def _recorded_pictures(net: Mapping[str, Any], n_classes: int) -> NDArray[np.float64]:
    """Return torch's probabilities of the test pictures, (N, K)."""
    probabilities = np.array(net["test_pictures"], dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] != n_classes or not np.isfinite(probabilities).all():
        raise ValueError(f"test_pictures are {probabilities.shape}, not finite numbers for {n_classes} classes")
    return probabilities


def _broken(folder: Path, problem: str) -> UntrustedError:
    return UntrustedError(f"{folder / EXPORT.name}: {problem}", outcome=_NOTHING, remedy=_EXPORT_AGAIN)


# The nets -----------------------------------------------------------------------------------------------------------


def _choose_engine(folder: Path, exported: str, engine: str | None) -> str:
    """Return the engine that runs an exported folder; raises `UsageError` where it cannot."""
    able = _ENGINES_OF_FORMAT[exported]
    if engine not in (None, AUTO):
        check_engine_name(engine)
        if engine not in able:
            reason = "it holds no torch net" if engine == TORCH else f"{TITLES[engine]} cannot read it"
            raise UsageError(
                f"--engine {engine}: {folder} was exported to {exported}: {reason}",
                outcome=_NOTHING,
                remedy=f"--engine {' or '.join(able)}, or name the model folder that it was exported from",
            )
    name = engine if engine in FILE_ENGINES else next(filter(installed_version, able), able[0])
    others = [f"or pip install {other}, which reads it too" for other in able if other != name]
    check_packages(
        [name], purpose=f"{folder}, exported to {exported}", extra=_EXTRAS[name],
        otherwise=others[0] if others else "or export the model to onnx",
    )  # fmt: skip
    return name


def _open_net(
    content: ModelContent, number: int, exported: str, engine: str, n_threads: int, *, is_int8: bool
) -> SessionEngine:
    """Return the engine of a net, from the bytes that were verified."""
    names, member = net_files(number, exported), content.members[number]
    path, net_bytes = content.folder / names[0], [content.files[name] for name in names]
    session: Session = (
        OnnxRuntimeSession(path, content=net_bytes)
        if engine == ONNXRUNTIME
        else OpenVinoSession(path, n_threads=n_threads, content=net_bytes)
    )
    return session_engine(session, member, engine_text(engine) + ", int8" * is_int8)


def _check_pictures(
    path: Path, engine: SessionEngine, member: MemberFields, recorded: NDArray[np.float64], tolerance: float
) -> int:
    """Raise `UntrustedError` unless an engine gives what was recorded of the test pictures; returns C."""
    probabilities, features = _score_pictures(path, engine, member)
    is_alike = probabilities.shape == recorded.shape and features is not None
    difference = float(np.abs(probabilities - recorded).max()) if is_alike else math.nan
    if features is None or not difference <= tolerance:
        raise UntrustedError(
            f"{path}: {engine.net_variant} does not give here what was recorded when it was exported: a probability of "
            f"a test picture differs by {difference:.2g} (at most {tolerance:g} may be)",
            outcome=_NOTHING,
            remedy="install another version of this engine, or --engine with the other one",
        )
    return int(features.shape[1])


def _score_pictures(path: Path, engine: SessionEngine, member: MemberFields) -> tuple[Any, Any]:
    """Return a net's probabilities (N, K) and features (N, C) of the test pictures."""
    try:
        return engine.score(draw_test_pictures(member.preprocessing.size))
    except UntrustedError as error:
        message = f"{path}: {error.message}"
        raise UntrustedError(message, outcome=error.outcome or _NOTHING, remedy=error.remedy) from error
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        problem = f"{path}: its outputs are not those of an exported net: {error}"
        raise UntrustedError(problem, outcome=_NOTHING, remedy=_EXPORT_AGAIN) from error


def _read_features(content: ModelContent, number: int, n_features: int) -> ReferenceFeatures | None:
    """Return the training features of a net; None where its model folder holds none."""
    name = exported_features_file(number)
    if content.members[number].training_features is None:
        return None
    if name not in content.files:
        raise _broken(content.folder, f"of a model with training features, and {name} is not beside it")
    path = content.folder / name
    return parse_exported_features(
        content.files[name], path, n_features=n_features, n_classes=len(content.classes)
    )
