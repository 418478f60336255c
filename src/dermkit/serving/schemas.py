"""The answers of the API as types: what /openapi.json describes, what a client reads, and what is logged.

Names are those of predictions.csv, decisions.csv and out_of_distribution.csv wherever these have them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dermkit.models.card import RESEARCH_ONLY

_CONFIG = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelReference(BaseModel):
    """Which model answered.

    name: of its recipe. model_key: of what decides its answers; sha256: of model.json; files_sha256: of the list of
    hashes of all its files. version: of dermkit. preprocessing_sha256: of how each net's pixels are prepared.
    precision: float32 or int8, of its nets.
    """

    model_config = _CONFIG
    name: str
    model_key: str
    sha256: str
    files_sha256: str
    version: str
    preprocessing_sha256: str = ""
    precision: str = "float32"


class ClassAnswer(BaseModel):
    """One class of one image. probability: as the net gives it; calibrated_probability: null without a policy."""

    model_config = _CONFIG
    name: str
    malignancy: str
    probability: float
    calibrated_probability: float | None


class DecisionAnswer(BaseModel):
    """The decision policy applied to one image: the columns of decisions.csv.

    positive: the decision at `operating_point`; null = no decision was made, which does not mean negative.
    is_point_broken: the test images broke the guarantee of the operating point.
    """

    model_config = _CONFIG
    predicted: str
    confidence: float
    referral: Literal["", "answered", "referred"]
    positive: bool | None
    operating_point: str
    malignant_probability: float | None
    prediction_set: list[str]
    positive_at: dict[str, bool]
    is_point_broken: bool


class DistributionAnswer(BaseModel):
    """How far an image lies from the training images: a row of out_of_distribution.csv."""

    model_config = _CONFIG
    distance: float
    p_value: float
    outside_training_distribution: bool


class RefusalAnswer(BaseModel):
    """Why an image was not scored. reason: a code, those of refused.csv and three of the server's worker."""

    model_config = _CONFIG
    reason: str
    detail: str


class ImageAnswer(BaseModel):
    """What the model says of one image; where it was refused, `refusal` says why and the rest is null or empty.

    position: in the request, from 0. predicted: the most probable class as the net gives it; `decisions.predicted` is
    that after calibration, which is the answer where there are decisions. prediction_id: of its row in the prediction
    log, for /v1/feedback; "" where none is kept. classes: in the order of the model. pixel_sha256: of the upright
    pixels, "" where there are none. training_split: the split in which the model's training used this image, "" = it
    did not. blurred: less sharp than photographs of lesions are; null where there is too little to measure.
    """

    model_config = _CONFIG
    position: int
    prediction_id: str = ""
    predicted: str | None
    classes: list[ClassAnswer]
    decisions: DecisionAnswer | None
    distribution: DistributionAnswer | None
    notes: list[str]
    training_split: str
    pixel_sha256: str
    width: int | None
    height: int | None
    refusal: RefusalAnswer | None
    blurred: bool | None = None

    @property
    def answered(self) -> str | None:
        """Return the class that is answered: after calibration where there are decisions; None where refused."""
        return self.predicted if self.decisions is None else self.decisions.predicted


class PredictAnswer(BaseModel):
    """The answer of /v1/predict. images: in the order of the request. warnings: about the model, the first to be read.

    decision_threshold: of the calibrated malignant probability at the operating point, null where none is in use.
    """

    model_config = _CONFIG
    request_id: str
    model: ModelReference
    operating_point: str
    decision_threshold: float | None
    images: list[ImageAnswer]
    n_scored: int
    n_refused: int
    warnings: list[str]
    notice: Literal["Research use only. Not a medical device."] = RESEARCH_ONLY  # type: ignore[assignment]


class MapLegend(BaseModel):
    """How to read a heat map: what it is evidence of, and its colours from 0 to 1 over white."""

    model_config = _CONFIG
    text: str
    low: str
    high: str
    colours: list[str]
    unseen: str


class NearestCaseAnswer(BaseModel):
    """A training image near to an image in the net's features: its id, label and distance, 0 to 4; never its pixels.

    is_nearest_of_class: not among the nearest of all, and there as the nearest of its class.
    """

    model_config = _CONFIG
    image_id: str
    label: str
    distance: float
    is_nearest_of_class: bool


class ExplainAnswer(BaseModel):
    """The answer of /v1/explain.

    predicted: the most probable class, after calibration where the model has a policy. probability: of `class_name`, as
    the net gives it; calibrated_probability: null without a policy.
    heat_map_png: base64 of an RGBA PNG in the frame of the upright image, to be laid over it; picture_jpeg: base64 of
    that image at the same size, for browsers that cannot show its format. notes: what a reader has to know.
    nearest_cases: the nearest training images, then the nearest of each other class; none where the model holds none.
    """

    model_config = _CONFIG
    request_id: str
    model: ModelReference
    predicted: str
    class_name: str
    probability: float
    calibrated_probability: float | None = None
    method: str
    layer: str
    heat_map_png: str
    picture_jpeg: str
    width: int
    height: int
    legend: MapLegend
    notes: list[str]
    pixel_sha256: str
    nearest_cases: list[NearestCaseAnswer] = Field(default_factory=list)
    notice: Literal["Research use only. Not a medical device."] = RESEARCH_ONLY  # type: ignore[assignment]


class ClassFacts(BaseModel):
    """A class of the model, its canonical diagnosis and whether it counts as malignant."""

    model_config = _CONFIG
    name: str
    diagnosis: str
    malignancy: str


class RateFacts(BaseModel):
    """A rate on the model's test images, 0 to 1, with its 95 % interval; text: with what limits its use."""

    model_config = _CONFIG
    value: float | None
    ci95: tuple[float, float] | None
    n: int
    text: str


class OperatingPointFacts(BaseModel):
    """An operating point of the model. guarantee: in words, with confidence and the number of images behind it.

    test_sensitivity, test_specificity: what it reached on the test images; null where the model does not say.
    """

    model_config = _CONFIG
    name: str
    rate: str
    target: float
    threshold: float
    n: int
    guaranteed: bool
    broken: bool
    guarantee: str
    test_sensitivity: RateFacts | None = None
    test_specificity: RateFacts | None = None


class PredictionSetFacts(BaseModel):
    """What prediction sets guarantee, class by class, for images drawn like the validation images.

    coverage: fraction of the images of a class whose set holds it. always_included: classes with too few validation
    images, which are in every set. broken: classes for which the test images broke the guarantee.
    """

    model_config = _CONFIG
    coverage: float
    always_included: list[str]
    broken: list[str]


class SubgroupFacts(BaseModel):
    """One group of the test images, as of one age band.

    n_groups: independent lesions or patients. too_few: why it supports no conclusion, "" where it does. figures: name
    -> value with n and 95 % interval, in words.
    """

    model_config = _CONFIG
    name: str
    n: int
    n_groups: int
    n_malignant: int
    too_few: str
    figures: dict[str, str]


class EvaluationFacts(BaseModel):
    """What the test images showed.

    figures: name -> value with n and 95 % interval, in words. subgroups: the same by group, of each attribute (age,
    sex, site, skin_type) that is known of some test image.
    """

    model_config = _CONFIG
    split: str
    n: int
    figures: dict[str, str]
    verdict: str
    broken_guarantees: list[str]
    of_single_nets: bool
    subgroups: dict[str, list[SubgroupFacts]] = {}


class ModelAnswer(BaseModel):
    """The answer of /v1/model: the model card as data.

    training: recipe, data set with its number of images, licences and starting weights, as model.json has them.
    prediction_sets: null where the model makes none.
    evaluation: null where the model scored no test images, or in int8; why_no_test_figures: why those of the card are
    not of the model that answers, "" where they are. metadata_fields: which of age, sex and site the model takes.
    explain: whether heat maps can be made; why_no_explain: "" where they can. card: MODEL_CARD.md, for people.
    """

    model_config = _CONFIG
    model: ModelReference
    classes: list[ClassFacts]
    training: dict[str, Any]
    performance: str
    evaluation: EvaluationFacts | None
    why_no_test_figures: str = ""
    operating_points: list[OperatingPointFacts]
    operating_point: str
    decision_threshold: float | None
    coverage: float | None
    why_no_decision: str
    prediction_sets: PredictionSetFacts | None = None
    warnings: list[str]
    metadata_fields: list[str]
    explain: bool
    why_no_explain: str
    out_of_distribution: bool
    why_no_out_of_distribution: str
    limits: dict[str, float]
    card: str
    notice: Literal["Research use only. Not a medical device."] = RESEARCH_ONLY  # type: ignore[assignment]


class HealthAnswer(BaseModel):
    """The answer of /health: the process runs."""

    model_config = _CONFIG
    status: Literal["alive"] = "alive"


class ReadyAnswer(BaseModel):
    """The answer of /ready: whether a request would be accepted now, and why not."""

    model_config = _CONFIG
    status: Literal["ready", "not_ready"]
    reasons: list[str] = Field(default_factory=list)


class ProblemAnswer(BaseModel):
    """A problem (RFC 9457). code: one of a closed set, listed in docs/serve.md. images: refusals, where that is why."""

    model_config = _CONFIG
    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    images: list[ImageAnswer] = Field(default_factory=list)
