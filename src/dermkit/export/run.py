"""Export a model: its nets as ONNX or OpenVINO files, what they mean as JSON, compared with torch before they stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermkit.errors import UntrustedError, UsageError, did_you_mean
from dermkit.export.document import export_json, net_description, net_properties, readme_text
from dermkit.export.folder import export_place, move_into_place, scratch_folder
from dermkit.export.int8 import (
    MAX_LABEL_CHANGES,
    CalibrationInputs,
    Int8Images,
    check_compared,
    check_label_changes,
    cost_lines,
    divide_images,
    int8_parity,
)
from dermkit.files import output_errors, read_regular, sha256_bytes, write_bytes, write_rows, write_text
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import EVALUATION_FIELD, MODEL_CARD_FILE, MODEL_JSON, TRAINING_IMAGES_FILE, card_text
from dermkit.models.checksums import write_checksums
from dermkit.models.engines.packages import check_packages, installed_version, load_openvino
from dermkit.models.engines.quantisation import quantise
from dermkit.models.engines.scoring import session_engine
from dermkit.models.engines.sessions import OnnxRuntimeSession, OpenVinoSession, Session, openvino_core
from dermkit.models.exported_folder import (
    EXPORT,
    FLOAT32,
    INT8,
    ONNX_FORMAT,
    OPENVINO_FORMAT,
    README_FILE,
    SUFFIXES,
    exported_features_file,
    net_file,
)
from dermkit.models.net_engine import NetEngine
from dermkit.models.test_pictures import draw_test_pictures
from dermkit.models.training_images import TRAINING_IMAGE_COLUMNS
from dermkit.prediction.locate import check_model_folder
from dermkit.prediction.parity import ParityReport, compare_nets, images_at_once
from dermkit.prediction.parity_images import ParityImages, check_usable, choose_images
from dermkit.progress import Progress
from dermkit.runs.registry import serving_model

if TYPE_CHECKING:
    from dermkit.prediction.predictor import Predictor

_PACKAGES = {
    ONNX_FORMAT: ("onnx", "onnxscript", "onnxruntime"),
    OPENVINO_FORMAT: ("onnx", "onnxscript", "openvino"),
}
_NOT_HERE = {
    "torchscript": "PyTorch has deprecated it in favour of what ONNX is written with",
    "tflite": "its converter for torch nets writes a net for one fixed number of images alone",
}
"""Formats that are asked for, and why there is no export to them (docs/decisions/0018-engines-and-export.md)."""


@dataclass(frozen=True)
class ExportOutcome:
    """An exported folder, the file of each net in it, its comparison with torch, and what a person reads of that."""

    folder: Path
    nets: tuple[Path, ...]
    parity: ParityReport
    comparison_lines: tuple[str, ...]


def export_model(
    model: Path, *, to: str, out: Path, images: Sequence[str] = (), int8: bool = False,
    max_label_changes: float = MAX_LABEL_CHANGES, progress: Progress | None = None,
) -> ExportOutcome:  # fmt: skip
    """Write the nets of a model folder as files that other tools run, and compare them with torch first.

    to: "onnx" or "openvino". out: a new folder, or one of an earlier export, which is replaced at the end. images:
    files, folders or patterns to compare on; () = validation images of the model's run, or drawn lesions where these
    are not at hand. int8: weights and activations in 8 bits, with ranges from images at equal steps, compared on the
    others. max_label_changes: largest fraction of these, 0 to 1, that may have another label in int8, its interval
    included. Whatever fails, nothing is left in `out` or beside it, and an earlier export stays.

    Raises `UsageError` for another format, a package that is absent or too old, a net that the format cannot hold, and
    too few images for int8; `UntrustedError` for a changed model, and where the exported nets do not give what torch
    gives; `DataError` where no image could be used; `OutputError`.
    """
    say = (progress or Progress()).say
    _check_format(to)
    check_packages(_PACKAGES[to], purpose=f"export --to {to}", extra="export")
    check_model_folder(model)
    model = serving_model(model)
    place = export_place(out)
    parity_images = choose_images(model, images)
    int8_images = divide_images(parity_images) if int8 else None
    from dermkit.prediction.load import load_model

    with scratch_folder(place, progress or Progress()) as scratch:
        predictor = load_model(model, progress=progress)
        for part in (int8_images.calibration, int8_images.comparison) if int8_images else (parity_images,):
            check_usable(part, predictor.resizings)
        n_calibration_images = 0  # the same of each net
        for number in range(len(predictor.nets)):
            say(f"writing net {number + 1} of {len(predictor.nets)} as {to}")
            n_calibration_images = _write_net(predictor, number, to, scratch, int8_images)
        sessions = open_sessions(scratch, to, len(predictor.nets))
        compared = int8_images.comparison if int8_images else parity_images
        report = compare_nets(predictor, sessions, compared)
        if int8:
            comparison = _check_int8(predictor, report, compared, max_label_changes, n_calibration_images)
        else:
            report.check(to)
            comparison = _Comparison(report.as_dict(), tuple(report.sentences()))
        _write_documents(predictor, to, scratch, comparison, sessions if int8 else None)
        move_into_place(scratch, place)
    folder = out if out.is_dir() else place  # a path through an absent folder and back leads nowhere
    files = tuple(folder / net_file(number, to) for number in range(len(predictor.nets)))
    return ExportOutcome(folder, files, report, comparison.lines)


@dataclass(frozen=True)
class _Comparison:
    """The comparison with torch as export.json has it, and for a person."""

    parity: dict[str, Any]
    lines: tuple[str, ...]


def _check_int8(
    predictor: "Predictor",
    report: ParityReport,
    images: ParityImages,
    max_label_changes: float,
    n_calibration: int,
) -> _Comparison:
    """Return what is said of the comparison in int8; raises `UntrustedError` where too many labels change."""
    check_compared(report)
    check_label_changes(report, max_label_changes)
    parity = int8_parity(predictor, report, images, max_label_changes, n_calibration_images=n_calibration)
    return _Comparison(parity, tuple(cost_lines(parity)))


def _check_format(to: str) -> None:
    if to in SUFFIXES:
        return
    reason = f": {_NOT_HERE[to]}" if to in _NOT_HERE else did_you_mean(to, SUFFIXES)
    raise UsageError(
        f"--to {to}: there is no export to this format{reason}",
        outcome="nothing was written",
        remedy=f"one of {', '.join(SUFFIXES)}",
    )


def _write_net(
    predictor: "Predictor", number: int, to: str, folder: Path, int8_images: Int8Images | None = None
) -> int:
    """Write one net, and return how many images set its ranges, 0 in float32.

    OpenVINO's converter reports every use to its maker, so it reads the ONNX file.
    """
    from dermkit.models.engines.graph import onnx_bytes

    member, properties = predictor.members[number], net_properties(predictor, number)
    path = folder / net_file(number, ONNX_FORMAT)
    content = onnx_bytes(
        predictor.nets[number], member.preprocessing, member.views, properties=properties,
        description=net_description(predictor),
    )  # fmt: skip
    n_calibration_images = 0
    if int8_images is not None:
        inputs = CalibrationInputs(predictor, number, int8_images.calibration, size=images_at_once(member))
        content, n_calibration_images = quantise(content, inputs), inputs.n_images
    write_bytes(path, content)
    if to == ONNX_FORMAT:
        return n_calibration_images
    openvino = load_openvino()
    try:
        graph = openvino_core().read_model(str(path))
        for name, text in properties.items():
            graph.set_rt_info(text, ["dermkit", name])
        # Its default would round the weights to 16 bits.
        openvino.save_model(graph, str(folder / net_file(number, to)), compress_to_fp16=False)
    except RuntimeError as error:  # an operator that it lacks, or a file that it cannot write
        raise UsageError(
            f"net {number}: OpenVINO cannot write it: {str(error).strip().splitlines()[0][:300]}",
            outcome="nothing was written",
            remedy="check the space on the disk; export with --to onnx, which OpenVINO reads too, or score with torch",
        ) from error
    with output_errors(folder):
        path.unlink()
    return n_calibration_images


def open_sessions(folder: Path, exported: str, n_nets: int) -> list[Session]:
    """Return the nets of an exported folder, ready to run."""
    paths = [folder / net_file(number, exported) for number in range(n_nets)]
    if exported == ONNX_FORMAT:
        return [OnnxRuntimeSession(path) for path in paths]
    return [OpenVinoSession(path, n_threads=1) for path in paths]


def _write_documents(
    predictor: "Predictor", to: str, folder: Path, comparison: _Comparison, int8_sessions: Sequence[Session] | None
) -> None:
    """Write all but the nets, the checksums last. int8_sessions: of nets in int8, None for float32."""
    packages = {package: installed_version(package) or "" for package in _PACKAGES[to]}
    _write_model_files(predictor, folder, has_features=not int8_sessions)
    content = export_json(
        predictor, to, folder, parity=comparison.parity, versions={**predictor.runtime.versions, **packages},
        test_pictures=_score_test_pictures(predictor, int8_sessions), precision=INT8 if int8_sessions else FLOAT32,
    )  # fmt: skip
    EXPORT.write(folder, content)
    evaluation = predictor.card.get(EVALUATION_FIELD) or {}
    broken = [str(entry.get("sentence", "")) for entry in evaluation.get("broken_guarantees", ())]
    write_text(folder / README_FILE, readme_text(predictor, content, comparison.lines, broken))
    write_text(folder / MODEL_CARD_FILE, card_text(predictor.card))
    write_checksums(folder)


def _write_model_files(predictor: "Predictor", folder: Path, *, has_features: bool) -> None:
    """Write what dermkit needs beside the nets: the card as it is, the training images, the training features.

    has_features: false in int8, whose features lie elsewhere than those that the distances were fitted on.
    """
    from dermkit.models.training_features_file import exported_features_bytes

    card = read_regular(predictor.folder / MODEL_JSON.name)
    if sha256_bytes(card) != predictor.sha256:
        raise UntrustedError(
            f"{predictor.folder / MODEL_JSON.name}: was changed while the model was exported",
            outcome="nothing was written",
            remedy="export it again",
        )
    write_bytes(folder / MODEL_JSON.name, card)
    write_rows(folder / TRAINING_IMAGES_FILE, TRAINING_IMAGE_COLUMNS, predictor.training_images)
    for number, features in enumerate(predictor.training_features):
        if features is not None and has_features:
            write_bytes(folder / exported_features_file(number), exported_features_bytes(features))


def _score_test_pictures(predictor: "Predictor", int8_sessions: Sequence[Session] | None) -> list[Floats]:
    """Return each net's probabilities of the test pictures, (N, K): torch's, or those of the nets in int8."""
    engines: Sequence[NetEngine] = predictor.net_engines
    if int8_sessions:
        engines = [session_engine(*pair, INT8) for pair in zip(int8_sessions, predictor.members, strict=True)]
    return [
        engine.score(draw_test_pictures(member.preprocessing.size))[0]
        for engine, member in zip(engines, predictor.members, strict=True)
    ]
