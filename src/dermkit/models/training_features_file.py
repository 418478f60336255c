"""training_features-<number>.safetensors of a model folder: the training features of one of its nets, written and read.

Float16 where that changes no distance by more than rounding; image ids as JSON in a tensor of bytes. A file that does
not fit its net is refused as weights are. An exported folder has them as training_features-<number>.npz, for machines
without safetensors, and without what tells one training image from another: ids, groups and hashes.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import UntrustedError
from dermkit.models.training_features import (
    MAX_AXES,
    MAX_DISTANCE,
    MAX_REFERENCE_IMAGES,
    MAX_VALIDATION_IMAGES,
    ReferenceFeatures,
)

FORMAT = 1

MAX_EXPORTED_BYTES = 16 * 2**20
"""Of an exported file, unpacked: 64 axes of 20,000 features, and 65 numbers of 4,000 images, take 4 MB."""

_DTYPES = {
    "format": np.int64, "mean": np.float32, "axes": np.float16, "points": np.float16, "labels": np.int64,
    "groups": np.int64, "pixel_keys": np.uint64, "image_ids": np.uint8, "calibration": np.float64,
}  # fmt: skip


def training_features_bytes(held: ReferenceFeatures) -> bytes:
    """Return the file of training features."""
    from safetensors.numpy import save

    ids = json.dumps(held.image_ids).encode("ascii")
    values = {
        "format": np.array([FORMAT]), "mean": held.mean, "axes": held.axes, "points": held.points,
        "labels": held.labels, "groups": held.groups, "pixel_keys": held.pixel_keys,
        "image_ids": np.frombuffer(ids, dtype=np.uint8), "calibration": held.calibration,
    }  # fmt: skip
    return save({name: np.ascontiguousarray(value, dtype=_DTYPES[name]) for name, value in values.items()})


def parse_training_features(data: bytes, path: Path, *, n_features: int, n_classes: int) -> ReferenceFeatures:
    """Return the training features of a file's bytes; raises `UntrustedError` for others than this net's.

    n_features: C of the net. n_classes: of its output.
    """
    from safetensors import SafetensorError

    try:
        tensors = _read_tensors(data)
        ids = json.loads(tensors["image_ids"].tobytes())
        _check(tensors, ids, n_features, n_classes)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _foreign_file(path, error) from error
    return _held(tensors, ids)


def _held(tensors: dict[str, NDArray[Any]], ids: list[str]) -> ReferenceFeatures:
    return ReferenceFeatures(
        tensors["mean"], tensors["axes"].astype(np.float32), tensors["points"].astype(np.float32), tensors["labels"],
        tensors["groups"], tensors["pixel_keys"], tuple(ids), tensors["calibration"],
    )  # fmt: skip


def _foreign_file(path: Path, error: Exception) -> UntrustedError:
    return UntrustedError(
        f"{path}: holds no training features of this net: {str(error)[:200]}",
        outcome="nothing was predicted",
        remedy="copy the model anew, or train it again",
    )


def exported_features_bytes(held: ReferenceFeatures) -> bytes:
    """Return the file of training features of an exported folder: of the training images their points and labels."""
    stream = io.BytesIO()
    np.savez(
        stream, format=np.array([FORMAT]), mean=held.mean, axes=held.axes.astype(np.float16),
        points=held.points.astype(np.float16), labels=held.labels, calibration=held.calibration,
    )  # fmt: skip
    return stream.getvalue()


def parse_exported_features(data: bytes, path: Path, *, n_features: int, n_classes: int) -> ReferenceFeatures:
    """Return the training features of such a file; raises `UntrustedError` as `parse_training_features` does."""
    try:
        with np.load(_checked_archive(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        n = len(arrays["labels"])
        tensors = {
            **arrays,
            "groups": np.arange(n), "pixel_keys": np.zeros(n, np.uint64), "image_ids": np.zeros(0, np.uint8),
        }  # fmt: skip
        _check_types(tensors)
        _check(tensors, [""] * n, n_features, n_classes)
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, MemoryError) as error:
        raise _foreign_file(path, error) from error
    return _held(tensors, [""] * n)


def _checked_archive(data: bytes) -> io.BytesIO:
    """Return the bytes of an archive that is not larger than what it may hold; raises `ValueError`."""
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream) as archive:
        n_bytes = sum(entry.file_size for entry in archive.infolist())
    if n_bytes > MAX_EXPORTED_BYTES:
        raise ValueError(f"{n_bytes:,} bytes")
    stream.seek(0)
    return stream


def _read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    tensors = load(data)
    _check_types(tensors)
    return tensors


def _check_types(tensors: dict[str, NDArray[Any]]) -> None:
    if set(tensors) != set(_DTYPES):
        raise ValueError(f"its tensors are not {', '.join(_DTYPES)}")
    for name, dtype in _DTYPES.items():
        if tensors[name].dtype != dtype:
            raise ValueError(f"`{name}` is {tensors[name].dtype}, not {np.dtype(dtype)}")
    if tensors["format"].tolist() != [FORMAT]:
        raise ValueError(f"format {tensors['format'].tolist()[:3]}, and this dermkit reads {FORMAT}")


def _check(tensors: dict[str, NDArray[Any]], ids: object, n_features: int, n_classes: int) -> None:
    """Raise `ValueError` where shapes or values are not those of training features."""
    n, n_axes = len(tensors["labels"]), len(tensors["axes"])
    if not (1 <= n <= MAX_REFERENCE_IMAGES and 1 <= n_axes <= MAX_AXES):
        raise ValueError(f"{n} training images on {n_axes} axes")
    shapes = {
        "mean": (n_features,), "axes": (n_axes, n_features), "points": (n, n_axes + 1), "labels": (n,), "groups": (n,),
        "pixel_keys": (n,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"`{name}` is {tensors[name].shape}, not {shape}")
    if tensors["calibration"].ndim != 1 or len(tensors["calibration"]) > MAX_VALIDATION_IMAGES:
        raise ValueError(f"`calibration` is {tensors['calibration'].shape}")
    if not isinstance(ids, list) or len(ids) != n or not all(isinstance(one, str) for one in ids):
        raise ValueError(f"`image_ids` is no list of {n} names")
    _check_values(tensors, n_classes)


def _check_values(tensors: dict[str, NDArray[Any]], n_classes: int) -> None:
    for name in ("mean", "axes", "points", "calibration"):
        if not np.isfinite(tensors[name].astype(np.float64)).all():
            raise ValueError(f"`{name}` holds numbers that are not finite")
    points = tensors["points"].astype(np.float64)
    if (np.linalg.norm(points, axis=1) > MAX_DISTANCE / 2).any() or (points[:, -1] < 0).any():
        raise ValueError("`points` are no features of length 1")
    calibration = tensors["calibration"].astype(np.float64)
    if len(calibration) and (
        calibration[0] < 0 or calibration[-1] > MAX_DISTANCE or (np.diff(calibration) < 0).any()
    ):
        raise ValueError("`calibration` is not ascending from 0 to 4")
    labels = tensors["labels"].astype(np.int64)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"`labels` are not of {n_classes} classes")
