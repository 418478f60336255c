"""An export in int8: the images that set its ranges, and what it costs on other images of the validation split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermkit.errors import UntrustedError, UsageError
from dermkit.metrics.classification.paired import paired_differences
from dermkit.metrics.classification.scored_set import ScoredSet
from dermkit.metrics.stats.arrays import Floats
from dermkit.metrics.stats.intervals import proportion_interval
from dermkit.models.engines.sessions import METADATA_INPUT, PIXELS_INPUT
from dermkit.models.members import distinct_resizings

if TYPE_CHECKING:
    from dermkit.prediction.parity import ParityReport
    from dermkit.prediction.parity_images import ParityImages
    from dermkit.prediction.predictor import Predictor

MAX_LABEL_CHANGES = 0.05
"""Largest fraction of images whose most probable class may be another one than in float32: the upper end of its 95 %
interval, which takes images as independent, is held to it."""

MAX_CALIBRATION_IMAGES = 128
"""That set the ranges of activations: more hardly widen them."""

MIN_COMPARED = 30
"""Images that an export in int8 is compared on: fewer say next to nothing of the share of labels that change."""

_METRICS = ("accuracy", "auroc", "loss", "brier")
"""What the cost is told in; of calibration speak the loss and the Brier score."""


@dataclass(frozen=True)
class Int8Images:
    """Images of an export in int8: those that set its ranges, and others, on which it is compared with float32."""

    calibration: "ParityImages"
    comparison: "ParityImages"


def divide_images(images: "ParityImages") -> Int8Images:
    """Return images at equal steps to calibrate on, at most 128 and at most half, and the others.

    Raises `UsageError` for too few.
    """
    step = max(2, -(-len(images.files) // MAX_CALIBRATION_IMAGES))
    calibration = images.files[::step]
    calibration_set = set(calibration)
    comparison = tuple(file for file in images.files if file not in calibration_set)
    if len(comparison) < MIN_COMPARED:
        raise _too_few(len(images.files), images.source, f"at least {2 * MIN_COMPARED} real ones")
    return Int8Images(replace(images, files=calibration), replace(images, files=comparison))


def check_compared(report: "ParityReport") -> None:
    """Raise `UsageError` where too few of the images that int8 is compared on could be used."""
    if report.n_images < MIN_COMPARED:
        raise _too_few(
            report.n_images, report.images, f"{MIN_COMPARED} beside those that set its ranges, each usable"
        )


def _too_few(n_images: int, source: str, needed: str) -> UsageError:
    return UsageError(
        f"--int8: {n_images or 'no'} images are at hand ({source}), and its ranges and its cost need {needed}",
        outcome="nothing was written",
        remedy="name images like those that the model is for with --images, or leave --int8 out",
    )


class CalibrationInputs:
    """Inputs of a net that set its ranges, at most `size` images at once; an iteration decodes the images.

    Metadata are random, as in the comparison. n_images: how many were decoded and could be used, so far.
    """

    def __init__(self, predictor: "Predictor", number: int, images: "ParityImages", *, size: int) -> None:
        self._member, self._images, self._size = predictor.members[number], images, size
        self._resizings, self._place = predictor.resizings, distinct_resizings(predictor.members)[1][number]
        self.n_images = 0

    def __iter__(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        metadata, rng = self._member.metadata, np.random.default_rng(0)
        for names, pixels in self._images.batches(self._resizings):
            self.n_images += len(names)
            array = pixels[self._place]
            for start in range(0, len(array), self._size):
                part = array[start : start + self._size]
                fields = (
                    {}
                    if metadata is None
                    else {METADATA_INPUT: rng.random((len(part), metadata.width), np.float32)}
                )
                yield {PIXELS_INPUT: part, **fields}


def check_label_changes(report: "ParityReport", limit: float) -> None:
    """Raise `UntrustedError` unless at most a fraction of the labels changes, with the whole 95 % interval of it."""
    n_changes, n_images = report.n_different_labels, report.n_images
    interval = proportion_interval(n_changes, n_images)[0]
    if np.isfinite(report.exported).all() and interval[1] <= limit:
        return
    raise UntrustedError(
        f"in int8 {n_changes} of {n_images} images ({report.images}) have another label than in float32 "
        f"({_interval_text(interval)}; at most {limit:.0%} may, with the whole interval); largest difference of a "
        f"probability {report.max_probability_difference:.2g}",
        outcome="nothing was written",
        remedy="export it without --int8, or, where the interval is wide, name more images with --images, or, if this "
        "is good enough for what it is for, take a larger --max-label-changes",
    )


def _interval_text(interval: Sequence[float]) -> str:
    return f"95 % interval {interval[0]:.1%} to {interval[1]:.1%}"


def int8_parity(
    predictor: "Predictor",
    report: "ParityReport",
    images: "ParityImages",
    limit: float,
    *,
    n_calibration_images: int,
) -> dict[str, Any]:
    """Return `parity` of export.json: with a limit on labels instead of probabilities, and the cost.

    images: compared on. n_calibration_images: that set the ranges.
    """
    content = {name: value for name, value in report.as_dict().items() if not name.endswith("tolerance")}
    return {
        **content,
        "max_label_changes": limit,
        "label_change_ci95": list(proportion_interval(report.n_different_labels, report.n_images)[0]),
        "n_calibration_images": n_calibration_images,
        "cost": None if predictor.metadata_fields else _cost(predictor, report, images),
        "notes": _notes(predictor, images),
    }


def _notes(predictor: "Predictor", images: "ParityImages") -> list[str]:
    """Return what limits the comparison, in sentences."""
    notes = []
    if predictor.metadata_fields:
        fields = ", ".join(predictor.metadata_fields)
        notes.append(
            f"the model takes {fields} too, and these were random numbers: labels may change more, or less"
        )
    if len(predictor.members) > 1 and images.labels:
        notes.append(
            "the model has several nets, and validation images of one may be training images of the others: on new "
            "images labels may change more"
        )
    return notes


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
        f"({parity['images']}) have another label than in float32 ({_interval_text(parity['label_change_ci95'])}) and "
        f"{n_calls} another decision; largest difference of a probability {parity['max_probability_difference']:.2g}"
    )
    return [changes, *parity["notes"], *_cost_lines(parity["cost"])]


def _cost_lines(cost: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not cost:
        reason = "the other inputs were random numbers" if cost is None else "no labels are at hand"
        return [f"accuracy, AUROC and calibration: not measured, since {reason}"]
    return [_cost_line(entry) for entry in cost]


def _cost_line(entry: Mapping[str, Any]) -> str:
    name = entry["metric"].replace("auroc", "AUROC")
    if entry["difference"] is None:
        return f"{name}: not defined on these {entry['n']} images"
    ci95 = entry["ci95"]
    interval = "no interval" if ci95 is None else f"95 % interval {ci95[0]:+.4f} to {ci95[1]:+.4f}"
    return f"{name}, int8 minus float32: {entry['difference']:+.4f} ({interval}, n = {entry['n']})"
