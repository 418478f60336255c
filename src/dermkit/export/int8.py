"""An export in int8: the images that set its ranges, and what it costs on other images of the validation split."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import UntrustedError, UsageError
from dermkit.metrics.classification.paired import paired_differences
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Floats
from dermkit.models.engines.sessions import METADATA_INPUT, PIXELS_INPUT
from dermkit.models.members import distinct_resizings

if TYPE_CHECKING:
    from dermkit.prediction.parity import ParityReport
    from dermkit.prediction.parity_images import ParityImages
    from dermkit.prediction.predictor import Predictor

MAX_LABEL_CHANGES = 0.05
"""Largest fraction of images whose most probable class may be another one than in float32."""

MAX_CALIBRATION_IMAGES = 128
"""That set the ranges of activations: more hardly widen them."""

_MIN_IMAGES = 8
_METRICS = ("accuracy", "auroc", "loss", "brier")
"""What the cost is told in; of calibration speak the loss and the Brier score."""


@dataclass(frozen=True)
class Int8Images:
    """Images of an export in int8: those that set its ranges, and others, on which it is compared with float32."""

    calibration: "ParityImages"
    comparison: "ParityImages"


def divide_images(images: "ParityImages") -> Int8Images:
    """Return every second image to calibrate on, at most 128, and the others; raises `UsageError` for too few."""
    if len(images.files) < _MIN_IMAGES:
        n = len(images.files) or "no"
        raise UsageError(
            f"--int8: {n} images are at hand ({images.source}), and its ranges and its cost need at least "
            f"{_MIN_IMAGES} real ones",
            outcome="nothing was written",
            remedy="name images like those that the model is for with --images, or leave --int8 out",
        )
    calibration = images.files[::2][:MAX_CALIBRATION_IMAGES]
    others = tuple(file for file in images.files if file not in set(calibration))
    return Int8Images(replace(images, files=calibration), replace(images, files=others))


def calibration_batches(
    predictor: "Predictor", number: int, images: "ParityImages", *, size: int
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Yield inputs of a net, `size` images at once. Metadata are random, as in the comparison."""
    member, rng = predictor.members[number], np.random.default_rng(0)
    resizing = distinct_resizings(predictor.members)[1][number]
    for _, pixels in images.batches(predictor.resizings):
        array = pixels[resizing]
        for start in range(0, len(array), size):
            part = array[start : start + size]
            metadata = (
                {}
                if member.metadata is None
                else {METADATA_INPUT: rng.random((len(part), member.metadata.width), np.float32)}
            )
            yield {PIXELS_INPUT: part, **metadata}


def check_label_changes(report: "ParityReport", limit: float) -> None:
    """Raise `UntrustedError` where more labels change than a limit, a fraction of the images, allows."""
    if np.isfinite(report.exported).all() and report.n_different_labels <= limit * report.n_images:
        return
    raise UntrustedError(
        f"in int8 {report.n_different_labels} of {report.n_images} images ({report.images}) have another label than "
        f"in float32 (at most {limit:.0%} may); largest difference of a probability "
        f"{report.max_probability_difference:.2g}",
        outcome="nothing was written",
        remedy="export it without --int8, or, if this is good enough for what it is for, with a larger "
        "--max-label-changes",
    )


def int8_parity(
    predictor: "Predictor", report: "ParityReport", images: Int8Images, limit: float
) -> dict[str, Any]:
    """Return `parity` of export.json: with a limit on labels instead of probabilities, and the cost."""
    content = {name: value for name, value in report.as_dict().items() if not name.endswith("tolerance")}
    return {
        **content,
        "max_label_changes": limit,
        "n_calibration_images": len(images.calibration.files),
        "cost": _cost(predictor, report, images.comparison),
    }


def _cost(predictor: "Predictor", report: "ParityReport", images: "ParityImages") -> list[dict[str, Any]]:
    """Return int8 minus float32 in each metric with its 95 % interval, on labelled images; [] without labels.

    Probabilities are those after the calibration of the decision policy, where the model has one.
    """
    rows = [row for row, name in enumerate(report.names) if name in images.labels]
    if not rows:
        return []
    quantised, original = (
        _scored(predictor, p[rows], [images.labels[report.names[row]] for row in rows])
        for p in (report.exported, report.expected)
    )
    differences = {one.metric: one.estimate for one in paired_differences(quantised, original, seed=0)}
    return [
        {
            "metric": name, "difference": differences[name].value, "ci95": differences[name].ci95,
            "n": differences[name].n, "method": differences[name].method,
        }
        for name in _METRICS
        if name in differences
    ]  # fmt: skip


def _scored(predictor: "Predictor", p: Floats, labels: list[tuple[str, int]]) -> ScoredSet:
    calibrated = p if predictor.policy is None else predictor.policy.calibration.apply(p)
    names = list(predictor.class_names)
    groups = np.unique([group for _, group in labels], return_inverse=True)[1].astype(np.int64)
    return ScoredSet(
        names, np.array([one.malignancy == "malignant" for one in predictor.classes]),
        np.array([names.index(label) for label, _ in labels]), calibrated.argmax(axis=1), calibrated, groups,
    )  # fmt: skip


def cost_lines(parity: Mapping[str, Any]) -> list[str]:
    """Return what a person reads of the cost of int8."""
    n_images, n_labels, n_calls = (
        parity[name] for name in ("n_images", "n_different_labels", "n_different_calls")
    )
    changes = (
        f"in int8, with ranges from {parity['n_calibration_images']} images, {n_labels} of {n_images} others "
        f"({parity['images']}) have another label than in float32 and {n_calls} another decision; largest difference "
        f"of a probability {parity['max_probability_difference']:.2g}"
    )
    costs = [_cost_line(entry) for entry in parity["cost"]]
    return [changes, *(costs or ["accuracy, AUROC and calibration: not measured, since no labels are at hand"])]


def _cost_line(entry: Mapping[str, Any]) -> str:
    name = entry["metric"].replace("auroc", "AUROC")
    if entry["difference"] is None:
        return f"{name}: not defined on these {entry['n']} images"
    ci95 = entry["ci95"]
    interval = "no interval" if ci95 is None else f"95 % interval {ci95[0]:+.4f} to {ci95[1]:+.4f}"
    return f"{name}, int8 minus float32: {entry['difference']:+.4f} ({interval}, n = {entry['n']})"
