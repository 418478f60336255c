"""Export a model: its nets as ONNX or OpenVINO files, what they mean as JSON, compared with torch before they stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dermkit.errors import UntrustedError, UsageError, did_you_mean
from dermkit.export.document import export_json, net_description, net_properties, readme_text
from dermkit.export.folder import export_place, move_into_place, scratch_folder
from dermkit.files import output_errors, read_regular, sha256_bytes, write_bytes, write_rows, write_text
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.card import EVALUATION_FIELD, MODEL_CARD_FILE, MODEL_JSON, TRAINING_IMAGES_FILE, card_text
from dermkit.models.checksums import write_checksums
from dermkit.models.engines.packages import check_packages, installed_version, load_openvino
from dermkit.models.engines.sessions import OnnxRuntimeSession, OpenVinoSession, Session
from dermkit.models.exported_folder import (
    EXPORT,
    ONNX_FORMAT,
    OPENVINO_FORMAT,
    README_FILE,
    SUFFIXES,
    exported_features_file,
    net_file,
)
from dermkit.models.test_pictures import draw_test_pictures
from dermkit.models.training_images import TRAINING_IMAGE_COLUMNS
from dermkit.prediction.locate import check_model_folder
from dermkit.prediction.parity import ParityReport, compare_nets
from dermkit.prediction.parity_images import check_usable, choose_images
from dermkit.progress import Progress

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
    """An exported folder, the file of each net in it, and its comparison with torch."""

    folder: Path
    nets: tuple[Path, ...]
    parity: ParityReport


def export_model(
    model: Path, *, to: str, out: Path, images: Sequence[str] = (), progress: Progress | None = None
) -> ExportOutcome:
    """Write the nets of a model folder as files that other tools run, and compare them with torch first.

    to: "onnx" or "openvino". out: a new folder, or one of an earlier export, which is replaced at the end. images:
    files, folders or patterns to compare on; () = validation images of the model's run, or drawn lesions where these
    are not at hand. Whatever fails, nothing is left in `out` or beside it, and an earlier export stays.

    Raises `UsageError` for another format, a package that is absent or too old, and a net that the format cannot hold;
    `UntrustedError` for a changed model, and where the exported nets do not give what torch gives; `DataError` where no
    image could be used; `OutputError`.
    """
    say = (progress or Progress()).say
    _check_format(to)
    check_packages(_PACKAGES[to], purpose=f"export --to {to}", extra="export")
    check_model_folder(model)
    place = export_place(out)
    parity_images = choose_images(model, images)
    from dermkit.prediction.load import load_model

    with scratch_folder(place, progress or Progress()) as scratch:
        predictor = load_model(model, progress=progress)
        check_usable(parity_images, predictor.resizings)
        for number in range(len(predictor.nets)):
            say(f"writing net {number + 1} of {len(predictor.nets)} as {to}")
            _write_net(predictor, number, to, scratch)
        report = compare_nets(predictor, open_sessions(scratch, to, len(predictor.nets)), parity_images)
        report.check(to)
        _write_documents(predictor, to, scratch, report)
        move_into_place(scratch, place)
    folder = out if out.is_dir() else place  # a path through an absent folder and back leads nowhere
    files = tuple(folder / net_file(number, to) for number in range(len(predictor.nets)))
    return ExportOutcome(folder, files, report)


def _check_format(to: str) -> None:
    if to in SUFFIXES:
        return
    reason = f": {_NOT_HERE[to]}" if to in _NOT_HERE else did_you_mean(to, SUFFIXES)
    raise UsageError(
        f"--to {to}: there is no export to this format{reason}",
        outcome="nothing was written",
        remedy=f"one of {', '.join(SUFFIXES)}",
    )


def _write_net(predictor: "Predictor", number: int, to: str, folder: Path) -> None:
    """Write one net; OpenVINO's own converter reports every use to its maker, so it reads the ONNX file."""
    from dermkit.models.engines.graph import onnx_bytes

    member, properties = predictor.members[number], net_properties(predictor, number)
    path = folder / net_file(number, ONNX_FORMAT)
    content = onnx_bytes(
        predictor.nets[number], member.preprocessing, member.views, properties=properties,
        description=net_description(predictor),
    )  # fmt: skip
    write_bytes(path, content)
    if to == ONNX_FORMAT:
        return
    openvino = load_openvino()
    try:
        graph = openvino.Core().read_model(str(path))
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


def open_sessions(folder: Path, exported: str, n_nets: int) -> list[Session]:
    """Return the nets of an exported folder, ready to run."""
    paths = [folder / net_file(number, exported) for number in range(n_nets)]
    if exported == ONNX_FORMAT:
        return [OnnxRuntimeSession(path) for path in paths]
    return [OpenVinoSession(path, n_threads=1) for path in paths]


def _write_documents(predictor: "Predictor", to: str, folder: Path, report: ParityReport) -> None:
    packages = {package: installed_version(package) or "" for package in _PACKAGES[to]}
    _write_model_files(predictor, folder)
    content = export_json(
        predictor, to, folder, parity=report.as_dict(), versions={**predictor.runtime.versions, **packages},
        test_pictures=_score_test_pictures(predictor),
    )  # fmt: skip
    EXPORT.write(folder, content)
    evaluation = predictor.card.get(EVALUATION_FIELD) or {}
    broken = [str(entry.get("sentence", "")) for entry in evaluation.get("broken_guarantees", ())]
    write_text(folder / README_FILE, readme_text(predictor, content, broken))
    write_text(folder / MODEL_CARD_FILE, card_text(predictor.card))
    write_checksums(folder)


def _write_model_files(predictor: "Predictor", folder: Path) -> None:
    """Write what dermkit needs beside the nets: the card as it is, the training images, the training features."""
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
        if features is not None:
            write_bytes(folder / exported_features_file(number), exported_features_bytes(features))


def _score_test_pictures(predictor: "Predictor") -> list[Floats]:
    """Return each net's probabilities of the test pictures, (N, K), as torch gives them."""
    return [
        engine.score(draw_test_pictures(member.preprocessing.size))[0]
        for engine, member in zip(predictor.net_engines, predictor.members, strict=True)
    ]
