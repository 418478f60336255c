"""What a model folder knows that monitoring compares with: figures on test images, and its validation distances."""

import json
import math
import struct
from bisect import bisect_left
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dermkit.errors import UntrustedError
from dermkit.metrics.stats.intervals import proportion_interval
from dermkit.models.card import EVALUATION_FIELD, MODEL_JSON, features_file, is_tested_ensemble
from dermkit.models.exported_folder import INT8, exported_features_file, exported_model_key
from dermkit.models.model_content import ModelContent, find_model_folder, read_model_content
from dermkit.monitoring.reference import KnownRate, MonitoredModel
from dermkit.runs.layout import MODEL_FOLDER
from dermkit.runs.model_key import model_key
from dermkit.runs.registry import serving_model

_MAX_HEADER_BYTES = 2**20


SINGLE_NETS_REASON = (
    "the test figures of the model are of its single nets, each at its own threshold, not of their mean"
)
INT8_REASON = "the model is in int8, and the test figures of its card are of float32"


def read_monitored_model(folder: Path) -> MonitoredModel:
    """Read a model folder, the run that holds it, or an exported folder; raises `UntrustedError` for any other.

    Its files are compared with their checksums, and the bytes that were compared are those that are used.
    """
    content = read_model_content(find_model_folder(serving_model(folder), MODEL_FOLDER))
    card, files, export = content.card, content.files, content.export
    try:
        key = exported_model_key(export, files.hashes) if export else model_key(card, files.hashes)
        why_no_rates = _why_no_rates(card, export or {})
        return MonitoredModel(
            str(card["recipe"].get("name", "unnamed")), key,
            {one.name: one.malignancy == "malignant" for one in content.classes},
            {} if why_no_rates else _test_rates(card), _validation_group_count(content),
            why_no_rates,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UntrustedError(
            f"{content.folder / MODEL_JSON.name}: cannot be used for monitoring: {error}",
            remedy="copy the model anew",
        ) from error


def _why_no_rates(card: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    """Return why the test figures of a card are not of the model that answers, "" where they are; export: or {}."""
    if not card.get(EVALUATION_FIELD):
        return ""
    if export.get("precision") == INT8:
        return INT8_REASON
    return "" if is_tested_ensemble(card) else SINGLE_NETS_REASON


def _test_rates(card: Mapping[str, Any]) -> dict[str, dict[str, KnownRate]]:
    points = (card.get(EVALUATION_FIELD) or {}).get("operating_points") or {}
    return {
        str(name): {
            rate: _test_rate(point[rate])
            for rate in ("sensitivity", "specificity")
            if rate in point and point[rate]["value"] is not None
        }
        for name, point in points.items()
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


def _validation_group_count(content: ModelContent) -> int:
    """Return the number of validation distances of the only net, 0 where there are none or several nets."""
    if len(content.members) != 1:
        return 0
    files = content.files
    if exported_features_file(0) in files:
        with np.load(BytesIO(files[exported_features_file(0)]), allow_pickle=False) as archive:
            return len(archive["calibration"])
    return _length_of_calibration(files[features_file(0)]) if features_file(0) in files else 0


def _length_of_calibration(content: bytes) -> int:
    """Return a length from the header of a safetensors file, without the package, which the base install lacks."""
    (n_bytes,) = struct.unpack("<Q", content[:8])
    if n_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {n_bytes:,} bytes")
    (length,) = json.loads(content[8 : 8 + n_bytes])["calibration"]["shape"]
    return int(length)
