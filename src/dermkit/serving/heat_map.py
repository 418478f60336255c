"""The heat map of one image for a client: a picture to lay over the image, its legend, the nearest training cases."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from dermkit.explanation.nearest_cases import training_cases
from dermkit.explanation.overlay import NOT_SEEN
from dermkit.explanation.target import ROLLOUT_NAME, choose_target
from dermkit.images.decode import LesionImage
from dermkit.render.sheets import thumbnail
from dermkit.serving.jobs import ExplainJob

if TYPE_CHECKING:
    import pandas as pd

    from dermkit.metrics.decisions.apply import ActivePolicy
    from dermkit.prediction.predictor import Predictor

_PICTURE_SIDE = 512
"""Longest side in pixels; a map of 7 to 14 positions a side has no more to show."""
_COLOUR_MAP = "inferno"
_N_COLOURS = 9
_UNSEEN_COLOUR = (128, 128, 128, 200)


class MapMaker:
    """Makes heat maps of a model; the explainers of its nets are made once. policy: whose calibration is in use."""

    def __init__(self, predictor: "Predictor", policy: "ActivePolicy | None" = None) -> None:
        from dermkit.explanation.model_maps import ModelExplainer  # here: it loads torch

        self._predictor, self._explainer, self._policy = predictor, ModelExplainer(predictor), policy
        self._cases = training_cases(predictor.training_features, predictor.members, predictor.class_names)

    def explain(self, image: LesionImage, job: ExplainJob, metadata: "pd.DataFrame | None") -> dict[str, Any]:
        """Return the fields of `ExplainAnswer` that are of this image, and those of its row in the log.

        metadata: one row, None = all unknown.
        """
        names = self._predictor.class_names
        picture = thumbnail(image.pixels, min(_PICTURE_SIDE, max(image.pixels.shape[:2])))
        inputs = self._explainer.resize(image.pixels)
        p = self._predictor.probabilities([array[None] for array in inputs], metadata)[0]
        calibrated = None if self._policy is None else self._policy.policy.calibration.apply(p[None])[0]
        target = choose_target(names, job.class_name, job.against).for_image(
            p if calibrated is None else calibrated
        )
        values = self._explainer.map_image(inputs, target, (picture.height, picture.width), metadata).combined
        class_name = names[target.class_index]
        against = None if target.against_index is None else names[target.against_index]
        return {
            "predicted": names[int((p if calibrated is None else calibrated).argmax())], "class_name": class_name,
            "probability": float(p[target.class_index]),
            "calibrated_probability": None if calibrated is None else float(calibrated[target.class_index]),
            "probabilities": dict(zip(names, p.tolist(), strict=True)),
            "calibrated_probabilities": {}
            if calibrated is None
            else dict(zip(names, calibrated.tolist(), strict=True)),
            "method": ", ".join(dict.fromkeys(self._explainer.methods)),
            "layer": ", ".join(dict.fromkeys(layer for layer in self._explainer.layers if layer)),
            "heat_map_png": _base64(colour_map_png(values)), "picture_jpeg": _base64(_jpeg(picture)),
            "width": picture.width, "height": picture.height, "legend": _legend(class_name, against),
            "notes": self._notes(values, class_name), "pixel_sha256": image.pixel_sha256,
            "nearest_cases": self._nearest_cases(inputs, image.pixel_sha256),
        }  # fmt: skip

    def _nearest_cases(self, inputs: Sequence[NDArray[np.uint8]], pixel_sha256: str) -> list[dict[str, Any]]:
        if self._cases is None:
            return []
        features = [one for one in self._predictor.features([array[None] for array in inputs]) if one is not None]
        cases = self._cases.nearest(features, pixel_sha256)
        return [{name: value for name, value in asdict(case).items() if name != "uri"} for case in cases]

    def _notes(self, values: NDArray[np.float32], class_name: str) -> list[str]:
        visible_fraction = float((~np.isnan(values)).mean())
        notes = (
            [] if np.nanmax(values) > 0 else [f"Nothing in the image speaks for {class_name}: the map is empty."]
        )
        if ROLLOUT_NAME in self._explainer.methods:
            notes.append(
                "Attention roll-out is the same for every class: it shows where the net attends, no evidence."
            )
        if visible_fraction < 0.995:
            notes.append(
                f"The net saw {100 * visible_fraction:.0f} % of the image; the rest was cut off and has no map."
            )
        return [*notes, "A heat map does not show that the answer is right."]


def colour_map_png(values: NDArray[np.float32]) -> bytes:
    """Return a map (h, w) in 0..1 as an RGBA PNG: opacity grows with the evidence; NaN, which was not seen, is grey."""
    is_seen = ~np.isnan(values)
    filled = np.where(is_seen, values, 0.0).astype(np.float64)
    rgba = np.rint(colormaps[_COLOUR_MAP](filled) * 255).astype(np.uint8)
    rgba[..., 3] = np.rint(255 * filled).astype(np.uint8)
    rgba[~is_seen] = _UNSEEN_COLOUR
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _legend(class_name: str, against: str | None) -> dict[str, Any]:
    target = class_name if against is None else f"{class_name} against {against}"
    return {
        "text": f"Evidence for {target}, relative to the strongest in this image",
        "low": "none", "high": "strongest in this image", "unseen": NOT_SEEN.replace("hatched", "grey"),
        "colours": [to_hex(colour) for colour in colormaps[_COLOUR_MAP](np.linspace(0, 1, _N_COLOURS))],
    }  # fmt: skip


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
