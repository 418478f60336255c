"""What was found for each image, as rows of explanations.csv and curves.csv and as the text of explain.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermkit.explanation.deletion import CurveSet, CurveSummary, curve_area
from dermkit.explanation.metadata_weights import InputWeight, write_metadata_weights
from dermkit.explanation.nearest_cases import NearestCase, write_nearest_cases
from dermkit.explanation.random_net_check import RandomNetCheck
from dermkit.explanation.target import ROLLOUT_NAME
from dermkit.files import JsonFile, write_rows
from dermkit.images.lesion_masks import LesionShare
from dermkit.prediction.inputs import ImageRef
from dermkit.render.cells import defused

EXPLAIN = JsonFile(
    "explain.json",
    3,
    {
        1: lambda document: {**document, "nearest_cases": None, "format": 2},
        2: lambda document: {**document, "metadata": None, "format": 3},
    },
)
"""Format 2 added the nearest training cases: why there are none, "" where there are some. Format 3 added the metadata
of the images and what they weigh, null where the model takes none."""
EXPLANATIONS_TABLE, CURVES_TABLE, CURVES_PICTURE = "explanations.csv", "curves.csv", "curves.png"
REFUSED_TABLE, EXPLAIN_PAGE = "refused.csv", "explain.html"
OVERLAY_FOLDER, MAP_FOLDER = "overlays", "maps"

_COLUMNS = (
    "image_id", "path", "predicted", "predicted_uncalibrated", "class", "against", "p", "p_against", "method", "layer",
    "random_net_correlation",
    "deletion_area", "deletion_area_random", "insertion_area", "insertion_area_random", "mask_inside", "mask_area",
    "training_split", "overlay", "map", "note",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ImageExplanation:
    """One image, its class and the checks of its map; what was not checked is None.

    image: its name and path, safe to write as UTF-8. predicted: the class that is answered, after calibration.
    predicted_uncalibrated: the most probable class before. p, p_against: the model's probabilities of the class and of
    the one it is set against. seen: fraction of the image that the net saw, 0..1. file_stem: of its overlay and map.
    training_split: "" for an image that training did not use. cases: the nearest training cases. is_outside: the image
    lies outside the training distribution. weights: of metadata and image in the answer, () where none are known.
    """

    image: ImageRef
    predicted: str
    class_name: str
    against: str | None
    p: float
    p_against: float | None
    method: str
    layer: str
    file_stem: str
    seen: float
    has_evidence: bool
    training_split: str = ""
    random_net_correlation: float | None = None
    curves: CurveSet | None = None
    share: LesionShare | None = None
    cases: tuple[NearestCase, ...] = ()
    is_outside: bool = False
    weights: tuple[InputWeight, ...] = ()
    predicted_uncalibrated: str = ""
    original_uri: str = ""
    overlay_uri: str = ""

    @property
    def overlay(self) -> str:
        """Return the path of the overlay below the output folder."""
        return f"{OVERLAY_FOLDER}/{self.file_stem}.png"

    @property
    def map_file(self) -> str:
        """Return the path of the maps below the output folder."""
        return f"{MAP_FOLDER}/{self.file_stem}.npz"

    @property
    def weight_sentences(self) -> list[str]:
        """Return what the answer would be without each part of the input."""
        return [one.sentence(self.class_name, self.against) for one in self.weights]

    @property
    def notes(self) -> list[str]:
        """Return what a reader of the map has to know."""
        notes = (
            [] if self.has_evidence else [f"Nothing in the image speaks for {self.class_name}: the map is empty."]
        )
        if ROLLOUT_NAME in self.method.split(", "):
            notes.append(
                "Attention roll-out is the same for every class: it shows where the net attends, no evidence."
            )
        if self.share is not None and self.share.sentence:
            notes.append(self.share.sentence)
        if self.seen < 0.995:
            notes.append(f"The net saw {100 * self.seen:.0f} % of the image; the rest was cut off and has no map.")
        if self.is_outside:
            notes.append("The image lies outside the training distribution: do not rely on the prediction.")
        if self.training_split:
            notes.append(f"The model learned from this image (split: {self.training_split}).")
        return notes


def target_text(explanation: ImageExplanation) -> str:
    """Return the class of a map and its probability, for people."""
    text = f"{explanation.class_name}, {_p_text(explanation.p)}"
    if explanation.against is not None and explanation.p_against is not None:
        text += f", against {explanation.against}, {_p_text(explanation.p_against)}"
    return text


def _p_text(p: float) -> str:
    """Return a probability for people: one that is not 0 or 1 is not written as such."""
    return "p < 0.001" if p < 0.001 else "p > 0.999" if p > 0.999 else f"p = {p:.3f}"


def method_text(explanation: ImageExplanation) -> str:
    """Return the method and layer of a map, for people."""
    return f"{explanation.method} at layer {explanation.layer}" if explanation.layer else explanation.method


def write_tables(out: Path, explanations: Sequence[ImageExplanation], *, is_raw: bool) -> None:
    """Write explanations.csv, nearest_cases.csv and, where there are any, metadata_weights.csv and curves.csv."""
    clean = tuple if is_raw else defused
    write_rows(out / EXPLANATIONS_TABLE, _COLUMNS, (clean(_row(one)) for one in explanations))
    write_nearest_cases(out, [(one.image, one.cases) for one in explanations], is_raw=is_raw)
    weights = [(one.image.image_id, one.class_name, one.against, one.weights) for one in explanations]
    write_metadata_weights(out, weights, is_raw=is_raw)
    with_curves = [one for one in explanations if one.curves is not None]
    if not with_curves:
        (out / CURVES_TABLE).unlink(missing_ok=True)
        return
    header = ("image_id", "fraction", "deletion", "deletion_random", "insertion", "insertion_random")
    rows = (clean((one.image.image_id, *values)) for one in with_curves for values in _curve_rows(one))
    write_rows(out / CURVES_TABLE, header, rows)


def _row(one: ImageExplanation) -> tuple[Any, ...]:
    curves, share = one.curves, one.share
    areas: tuple[Any, ...] = ("",) * 4
    if curves is not None:
        pairs = (curves.deletion, curves.random_deletion, curves.insertion, curves.random_insertion)
        areas = tuple(float(np.mean(curve_area(curve))) for curve in pairs)
    return (
        one.image.image_id, one.image.path, one.predicted, one.predicted_uncalibrated, one.class_name,
        one.against or "", one.p, _cell(one.p_against), one.method, one.layer,
        _cell(one.random_net_correlation), *areas,
        _cell(share.inside if share else None), _cell(share.area if share else None), one.training_split, one.overlay,
        one.map_file, " ".join(one.notes),
    )  # fmt: skip


def _cell(value: float | None) -> float | str:
    return "" if value is None else value


def _curve_rows(one: ImageExplanation) -> list[list[float]]:
    curves = one.curves
    if curves is None:
        return []
    columns = (
        curves.fractions, curves.deletion, curves.random_deletion.mean(axis=0), curves.insertion,
        curves.random_insertion.mean(axis=0),
    )  # fmt: skip
    rows: list[list[float]] = np.stack(columns, axis=1).tolist()
    return rows


def check_fields(check: RandomNetCheck | None, curves: CurveSummary | None) -> dict[str, Any]:
    """Return the checks over all images as JSON values; None for one that was not made."""
    return {
        "random_nets": None if check is None else {**asdict(check), "fails": check.fails, "text": check.sentence},
        "deletion_insertion": None if curves is None else {**asdict(curves), "text": curves.sentence},
    }
