"""What a model folder knows that monitoring compares with: figures on test images, and its validation distances."""

import json
import math
import struct
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dermkit.errors import UntrustedError
from dermkit.files import open_regular, sha256_file
from dermkit.metrics.stats.intervals import proportion_interval
from dermkit.models.card import EVALUATION_FIELD, MODEL_JSON, features_file, read_card
from dermkit.models.card_fields import read_card_classes
from dermkit.models.checksums import CHECKSUM_FILE, check_hashes
from dermkit.models.exported_folder import EXPORT, exported_features_file, is_exported
from dermkit.monitoring.reference import KnownRate, MonitoredModel
from dermkit.runs.layout import MODEL_FOLDER
from dermkit.runs.model_key import model_key

_MAX_HEADER_BYTES = 2**20


def read_monitored_model(folder: Path) -> MonitoredModel:
    """Read a model folder, the run that holds it, or an exported folder; raises `UntrustedError` for any other.

    Its files are compared with their checksums.
    """
    folder = folder / MODEL_FOLDER if (folder / MODEL_FOLDER / CHECKSUM_FILE).is_file() else folder
    check_hashes(folder, preserved="the prediction log as it is")
    card = read_card(folder)
    try:
        classes = read_card_classes(card)
        return MonitoredModel(
            str(card["recipe"].get("name", "unnamed")), _key_of(folder, card),
            {one.name: one.malignancy == "malignant" for one in classes},
            _test_rates(card), _validation_group_count(folder, card),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UntrustedError(
            f"{folder / MODEL_JSON.name}: cannot be used for monitoring: {error}", remedy="copy the model anew"
        ) from error


def _key_of(folder: Path, card: Mapping[str, Any]) -> str:
    if is_exported(folder):
        return str(EXPORT.read(folder)["model_key"])
    return model_key(card, {path.name: sha256_file(path) for path in folder.glob("*.safetensors")})


def _test_rates(card: Mapping[str, Any]) -> dict[str, dict[str, KnownRate]]:
    points = (card.get(EVALUATION_FIELD) or {}).get("operating_points") or {}
    return {
        str(name): {rate: _test_rate(point[rate]) for rate in ("sensitivity", "specificity") if rate in point}
        for name, point in points.items()
        if all(point[rate]["value"] is not None for rate in point)
    }


def _test_rate(rate_json: Mapping[str, Any]) -> KnownRate:
    value, n, ci95 = float(rate_json["value"]), int(rate_json["n"]), rate_json.get("ci95")
    if ci95 is None:
        return KnownRate(value, n, 0)
    bounds = (float(ci95[0]), float(ci95[1]))
    return KnownRate(value, n, effective_count(value, n, bounds), bounds)


def effective_count(value: float, n: int, ci95: tuple[float, float]) -> int:
    """Return how many independent images give an interval as wide as this one: fewer than n where lesions have several.

    value: a proportion, 0..1, of n images.
    """
    if not (0 <= value <= 1 and n > 0 and math.isfinite(ci95[1] - ci95[0])):
        raise ValueError(f"a test figure of {value} on {n} images")

    def is_narrow(count: int) -> bool:
        low, high = proportion_interval(round(value * count), count)[0]
        return high - low <= (ci95[1] - ci95[0]) + 1e-9

    return min(n, bisect_left(range(1, n), True, key=is_narrow) + 1)


def _validation_group_count(folder: Path, card: Mapping[str, Any]) -> int:
    """Return the number of validation distances of the only net, 0 where there are none or several nets."""
    if len(card["members"]) != 1:
        return 0
    exported = folder / exported_features_file(0)
    if exported.is_file():
        with np.load(exported, allow_pickle=False) as archive:
            return len(archive["calibration"])
    file = folder / features_file(0)
    return _length_of_calibration(file) if file.is_file() else 0


def _length_of_calibration(file: Path) -> int:
    """Return a length from the header of a safetensors file, without the package, which the base install lacks."""
    with open_regular(file) as stream:
        (n_bytes,) = struct.unpack("<Q", stream.read(8))
        if n_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {n_bytes:,} bytes")
        header = json.loads(stream.read(n_bytes))
    (length,) = header["calibration"]["shape"]
    return int(length)
