"""A model folder, or one that was exported, becomes a `Predictor`. torch is imported where it is needed."""

from dataclasses import replace
from pathlib import Path

from dermkit.errors import UntrustedError, UsageError
from dermkit.models.exported_folder import is_exported
from dermkit.models.model_content import find_model_folder, read_model_content
from dermkit.prediction.predictor import Predictor, predictor_of
from dermkit.progress import Progress
from dermkit.runs.layout import MODEL_FOLDER
from dermkit.runs.model_key import model_key
from dermkit.runs.registry import serving_model


def load_model(folder: str | Path, *, device: str = "cpu", progress: Progress | None = None) -> Predictor:
    """Verify and load a model folder, the one in a run folder, an exported folder, which needs no torch, or of a
    registry the version that serves.

    device: auto, cpu or cuda. Raises `UntrustedError` where a byte differs, the files do not fit together or an engine
    gives other numbers than torch did, `UsageError` for an absent device, and where torch or the engine is absent.
    """
    folder = find_model_folder(serving_model(Path(folder)), MODEL_FOLDER)
    if is_exported(folder):
        from dermkit.prediction.exported_model import load_exported_model

        predictor = load_exported_model(folder, device=device, progress=progress)
    else:
        predictor = _load_torch_model(folder, device, progress or Progress())
    arguments = (folder.absolute(), predictor.runtime.device_type, predictor.files_sha256)
    return replace(predictor, reload=(_load_again, arguments))


def _load_torch_model(folder: Path, device: str, progress: Progress) -> Predictor:
    try:
        from dermkit.models.inference import pick_device
        from dermkit.prediction.torch_model import build_torch_nets, read_training_features
    except ImportError as error:
        raise _without_torch(folder, error) from error
    torch_device = pick_device(device)
    content = read_model_content(folder)
    runtime = build_torch_nets(content, torch_device)
    return predictor_of(
        content, runtime, progress, model_key=model_key(content.card, content.files.hashes),
        training_features=read_training_features(content, runtime.nets),
    )  # fmt: skip


def _without_torch(folder: Path, error: ImportError) -> UsageError:
    """Return the error of a model folder on a machine without torch: the two ways on."""
    return UsageError(
        f"{folder}: the nets of a model folder are run by torch, which cannot be imported here: {error}",
        outcome="nothing was predicted",
        remedy="pip install 'dermkit[train]'; or, where torch is installed, `dermkit export MODEL --to onnx --out "
        "FOLDER`, and predict with that FOLDER here, which needs dermkit[serve] and no torch",
    )


def _load_again(folder: Path, device: str, files_sha256: str) -> Predictor:
    """Return the model of a folder, which another process loaded and names; raises `UntrustedError` if it changed."""
    predictor = load_model(folder, device=device)
    if predictor.files_sha256 != files_sha256:
        raise UntrustedError(
            f"{folder}: is another model than the process loaded that sent it", remedy="load it again"
        )
    return predictor
