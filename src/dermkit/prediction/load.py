"""A model folder becomes a `Predictor`. torch is imported when it is needed."""

from pathlib import Path

from dermkit.errors import UntrustedError
from dermkit.files import sha256_bytes
from dermkit.models.card import MODEL_JSON, TRAINING_IMAGES_FILE
from dermkit.models.card_fields import read_broken_guarantees, read_card_policy
from dermkit.models.checksums import CHECKSUM_FILE
from dermkit.models.training_images import parse_training_images
from dermkit.prediction.model_content import read_model_content
from dermkit.prediction.predictor import Predictor
from dermkit.progress import Progress
from dermkit.runs.layout import MODEL_FOLDER
from dermkit.runs.model_key import model_key


def load_model(folder: str | Path, *, device: str = "cpu", progress: Progress | None = None) -> Predictor:
    """Verify and load a model folder, or the one in a run folder. device: auto, cpu or cuda.

    Raises `UntrustedError` where a byte differs or the files do not fit together, `UsageError` for an absent device.
    """
    from dermkit.models.inference import pick_device
    from dermkit.prediction.torch_model import build_torch_nets, read_training_features

    torch_device, folder = pick_device(device), Path(folder)
    folder = folder / MODEL_FOLDER if (folder / MODEL_FOLDER / CHECKSUM_FILE).is_file() else folder
    content = read_model_content(folder)
    files, card = content.files, content.card
    runtime = build_torch_nets(content, torch_device)
    return Predictor(
        folder, content.classes, content.members, runtime, card, sha256_bytes(files[MODEL_JSON.name]),
        progress or Progress(), read_card_policy(folder, card),
        parse_training_images(files[TRAINING_IMAGES_FILE], folder), read_broken_guarantees(folder, card),
        read_training_features(content, runtime.nets), files_sha256=files.sha256,
        model_key=model_key(card, files.hashes),
        reload=(_load_again, (folder.absolute(), torch_device.type, files.sha256)),
    )  # fmt: skip


def _load_again(folder: Path, device: str, files_sha256: str) -> Predictor:
    """Return the model of a folder, which another process loaded and names; raises `UntrustedError` if it changed."""
    predictor = load_model(folder, device=device)
    if predictor.files_sha256 != files_sha256:
        raise UntrustedError(
            f"{folder}: is another model than the process loaded that sent it", remedy="load it again"
        )
    return predictor
