"""What a model says of one image, for Python code: a row of predictions.csv and one of decisions.csv, with types."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dermkit.data.manifest import LesionClass
from dermkit.errors import RejectionReason
from dermkit.metrics.decisions.apply import ActivePolicy
from dermkit.prediction.inputs import ImageRef
from dermkit.prediction.out_of_distribution import is_outside
from dermkit.prediction.pixels import ImageScore
from dermkit.runs.predictions import PREDICTION_COLUMNS, prediction_columns


@dataclass(frozen=True)
class ImageDecisions:
    """The decision policy applied to one image: the fields are the columns of decisions.csv.

    predicted, confidence: the most probable class after calibration, and its probability. referral: "answered" or
    "referred", "" without a coverage. positive: the decision at `operating_point`; None = no decision was made, which
    does not mean negative. malignant_probability: the sum of the malignant classes, None where the class table does
    not have both sides. prediction_set: class names. positive_at: operating point -> decision. probabilities: class
    -> calibrated probability. is_point_broken: the test images broke the guarantee of the operating point.
    """

    predicted: str
    confidence: float
    referral: str
    positive: bool | None
    operating_point: str
    malignant_probability: float | None
    prediction_set: tuple[str, ...]
    positive_at: Mapping[str, bool]
    probabilities: Mapping[str, float]
    is_point_broken: bool = False


@dataclass(frozen=True)
class ImagePrediction:
    """One image of a prediction; where it was refused, `refused` says why, and it has no class and no probabilities.

    position: in the images, from 0. image_id, path: as in predictions.csv; of an image in memory its position, and "".
    predicted, probabilities: the most probable class, and class -> probability, as the net gave them. decisions: None
    where the model has no decision policy. distance, p_value, outside_training_distribution: as in
    out_of_distribution.csv, None where the model cannot tell. notes: what opening the image decided. training_split:
    the split in which the model's training used this image, "" = it did not. reason, detail: as in refused.csv.
    """

    position: int
    image_id: str
    path: str
    predicted: str
    probabilities: Mapping[str, float]
    decisions: ImageDecisions | None = None
    distance: float | None = None
    p_value: float | None = None
    outside_training_distribution: bool | None = None
    notes: tuple[str, ...] = ()
    training_split: str = ""
    refused: str = ""
    reason: RejectionReason | None = None
    detail: str = ""


def describe_scores(
    pairs: Iterable[tuple[ImageRef, ImageScore]],
    classes: Sequence[LesionClass],
    policy: ActivePolicy | None,
    training_images: Iterable[tuple[str, str, str]],
) -> Generator[ImagePrediction, None, None]:
    """Yield the prediction of each scored image. training_images: (pixel_sha256, isic_id, split) of the model's."""
    splits = {pixels: split for pixels, _, split in training_images}
    for position, (ref, score) in enumerate(pairs):
        yield _describe(position, ref, score, classes, policy, splits)


def _describe(
    position: int,
    ref: ImageRef,
    score: ImageScore,
    classes: Sequence[LesionClass],
    policy: ActivePolicy | None,
    training_splits: Mapping[str, str],
) -> ImagePrediction:
    if score.probabilities is None:
        refusal = score.refusal
        return ImagePrediction(
            position, ref.image_id, ref.path, "", {}, refused=refusal.message if refusal else "refused",
            reason=refusal.reason if refusal else None, detail=refusal.detail if refusal else "",
        )  # fmt: skip
    names = [entry.name for entry in classes]
    distance, p_value = score.distance or (None, None)
    return ImagePrediction(
        position, ref.image_id, ref.path, names[int(score.probabilities.argmax())],
        dict(zip(names, score.probabilities.tolist(), strict=True)),
        decisions=None if policy is None else _decide(policy, names, score),
        distance=distance, p_value=p_value,
        outside_training_distribution=None if p_value is None else bool(is_outside(p_value)),
        notes=score.notes, training_split=training_splits.get(score.pixel_sha256, ""),
    )  # fmt: skip


def _decide(policy: ActivePolicy, names: Sequence[str], score: ImageScore) -> ImageDecisions:
    output = policy.apply(np.asarray(score.probabilities)[None])
    points = policy.policy.operating_points
    positive_at = dict(zip((point.name for point in points), output.is_positive[0].tolist(), strict=True))
    point = "" if policy.point_index is None else points[policy.point_index].name
    return ImageDecisions(
        predicted=names[int(output.y_pred[0])],
        confidence=float(output.confidence[0]),
        referral="" if policy.referral is None else "answered" if output.is_answered[0] else "referred",
        positive=positive_at[point] if point and policy.has_both_sides else None,
        operating_point=point,
        malignant_probability=float(output.p_malignant[0]) if policy.has_both_sides else None,
        prediction_set=tuple(
            name for name, is_in_set in zip(names, output.prediction_sets[0], strict=True) if is_in_set
        ),
        positive_at=positive_at,
        probabilities=dict(zip(names, output.probabilities[0].tolist(), strict=True)),
        is_point_broken=policy.broken_point is not None,
    )


def prediction_frame(predictions: Iterable[ImagePrediction], class_names: Sequence[str]) -> pd.DataFrame:
    """Return predictions as a table with the columns of predictions.csv, and `refused`.

    `label`, `split`, `fold` and `seed` are "". A refused image has its row too: no class, and probabilities nan.
    """
    columns = [*prediction_columns(class_names), "refused"]
    rows = [
        (
            one.image_id, one.path, "", "", "", "", one.predicted,
            *(one.probabilities.get(name, np.nan) for name in class_names), one.refused,
        )
        for one in predictions
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns)
    numbers = columns[len(PREDICTION_COLUMNS) : -1]
    return frame.astype(dict.fromkeys(numbers, "float64"))
