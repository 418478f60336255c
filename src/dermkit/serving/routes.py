"""The paths of the API. Limits and keys were checked before any of this runs (`limits.py`)."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from dermkit.serving.asgi import ClientGone, Receive, single_header
from dermkit.serving.examples import PROBLEM_RESPONSES, explain_body, predict_body
from dermkit.serving.jobs import ExplainJob, ImageJob
from dermkit.serving.metadata_field import parse_metadata
from dermkit.serving.multipart import Form, read_form
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.prometheus import METRICS_TYPE, ServerMetrics
from dermkit.serving.recorder import ExplainRecord, PredictionRecord, PredictionRecorder, record_id
from dermkit.serving.schemas import (
    ExplainAnswer,
    HealthAnswer,
    ImageAnswer,
    ModelAnswer,
    PredictAnswer,
    ReadyAnswer,
    RefusalAnswer,
)
from dermkit.serving.scoring_queue import ScoringQueue
from dermkit.serving.settings import ServeLimits

_Result = TypeVar("_Result")
_LOG_RETRY_SECONDS = 2
"""As often as the log tries whether it can be written again."""


@dataclass
class ServerState:
    """What the routes of one server share. facts: what the model is, set when it is loaded."""

    limits: ServeLimits
    queue: ScoringQueue
    metrics: ServerMetrics
    recorder: PredictionRecorder | None = None
    facts: ModelAnswer | None = None

    @property
    def model(self) -> ModelAnswer:
        """Return what the model is; raises `Problem` while it is not loaded."""
        if self.facts is None:
            raise Problem(ProblemCode.NOT_READY, retry_after=1)
        return self.facts

    def reasons_not_ready(self) -> list[str]:
        """Return why a request would not be answered now, nothing where it would."""
        record_reasons = [] if self.recorder is None else self.recorder.reasons_not_ready()
        return self.queue.reasons_not_ready() + record_reasons

    def check_room(self, n_images: int = 1) -> None:
        """Raise `Problem` where so many images would not be answered now: before any of them takes work."""
        self.queue.check_room(n_images)
        if self.recorder is not None and (reasons := self.recorder.reasons_not_ready()):
            raise Problem(ProblemCode.NOT_LOGGED, reasons[0], retry_after=_LOG_RETRY_SECONDS, closes=True)


def state_of(request: Request) -> ServerState:
    """Return what the server of a request has."""
    state: ServerState = request.app.state.server
    return state


router = APIRouter()


@router.post(
    "/v1/predict", response_model=PredictAnswer, responses=PROBLEM_RESPONSES, openapi_extra=predict_body(),
    summary="Class probabilities and decisions for one or several images",
)  # fmt: skip
async def post_predict(request: Request) -> PredictAnswer:
    """Score images.

    A refused image does not fail the request: `refusal` says why it was not scored. 422 where none of them could be.
    """
    server = state_of(request)
    record_names = () if server.recorder is None else server.recorder.field_names
    content_type = single_header(request.scope, b"content-type")
    form = await read_form(request.receive, content_type, server.limits, ("metadata", *record_names))
    if not form.images:
        raise Problem(ProblemCode.FIELD_NOT_VALID, "images: none given")
    metadata = parse_metadata(form.fields.get("metadata"), len(form.images), server.model.metadata_fields)
    record_fields = {name: text for name, text in form.fields.items() if name in record_names}
    if server.recorder is not None:
        server.recorder.check_fields(record_fields, len(form.images))
    jobs = [ImageJob(data, values) for data, values in zip(form.images, metadata, strict=True)]
    request.state.end_upload()
    results = await _while_connected(request.receive, server.queue.predict(jobs))
    images = [
        image_answer(
            position, fields, record_id(request.state.request_id, position) if server.recorder is not None else ""
        )
        for position, fields in enumerate(results)
    ]
    answer = _predict_answer(server, request.state.request_id, images)
    _count(server.metrics, images)
    if server.recorder is not None:
        statistics = tuple(result.get("statistics") for result in results)
        await _record(
            server.recorder.record(
                PredictionRecord(answer, record_fields, statistics, tuple(metadata), _key_id(request))
            )
        )
    if not answer.n_scored:
        raise Problem(ProblemCode.IMAGE_REFUSED, images=[image.model_dump() for image in images])
    return answer


@router.post(
    "/v1/explain", response_model=ExplainAnswer, responses=PROBLEM_RESPONSES, openapi_extra=explain_body(),
    summary="Where the model finds evidence for a class",
)  # fmt: skip
async def post_explain(request: Request) -> ExplainAnswer:
    """Make the heat map of one image for one class."""
    server = state_of(request)
    model = server.model
    if not model.explain:
        raise Problem(ProblemCode.NOT_SUPPORTED, model.why_no_explain, closes=True)
    names = ("class_name", "against", "metadata")
    form = await read_form(request.receive, single_header(request.scope, b"content-type"), server.limits, names)
    if len(form.images) != 1:
        raise Problem(ProblemCode.FIELD_NOT_VALID, f"image: {len(form.images)} given; one is taken")
    job = _explain_job(form, model)
    request.state.end_upload()
    result = await _while_connected(request.receive, server.queue.explain(job))
    if "not_supported" in result:
        raise Problem(ProblemCode.NOT_SUPPORTED, str(result["not_supported"]))
    if server.recorder is not None:
        record = ExplainRecord(request.state.request_id, model.model, result, job.metadata, _key_id(request))
        await _record(server.recorder.record_explain(record))
    if result["refusal"] is not None:
        refusal = image_answer(0, result)
        raise Problem(ProblemCode.IMAGE_REFUSED, images=[refusal.model_dump()])
    fields = {name: value for name, value in result.items() if name in ExplainAnswer.model_fields}
    return ExplainAnswer(request_id=request.state.request_id, model=model.model, **fields)


@router.get("/v1/model", response_model=ModelAnswer, responses=PROBLEM_RESPONSES, summary="The model card as data")
async def get_model(request: Request) -> ModelAnswer:
    """Say what the model is, what it learned from, and how it did on test images."""
    return state_of(request).model


@router.get("/health", response_model=HealthAnswer, summary="The process runs")
async def get_health() -> HealthAnswer:
    """Say that the process runs; nothing is asked of the model."""
    return HealthAnswer()


@router.get(
    "/ready", response_model=ReadyAnswer, summary="Whether a request would be accepted now",
    responses={503: {"model": ReadyAnswer}},
)  # fmt: skip
async def get_ready(request: Request, response: Response) -> ReadyAnswer:
    """Say whether the model is loaded, its worker alive, the queue not full and the prediction log written."""
    reasons = state_of(request).reasons_not_ready()
    response.status_code = 503 if reasons else 200
    return ReadyAnswer(status="not_ready" if reasons else "ready", reasons=reasons)


@router.get("/metrics", summary="Counters of the server, for Prometheus", response_class=Response)
async def get_metrics(request: Request) -> Response:
    """Return the counters in Prometheus' text format."""
    return Response(state_of(request).metrics.text(), headers={"content-type": METRICS_TYPE})


# What a request asks, and what it gets ------------------------------------------------------------------------------


def _explain_job(form: Form, model: ModelAnswer) -> ExplainJob:
    names = [entry.name for entry in model.classes]
    for field in ("class_name", "against"):
        if (value := form.fields.get(field)) is not None and value not in names:
            raise Problem(ProblemCode.FIELD_NOT_VALID, f"{field}: the model's classes are {', '.join(names)}")
    class_name, against = form.fields.get("class_name"), form.fields.get("against")
    if class_name is not None and class_name == against:
        raise Problem(ProblemCode.FIELD_NOT_VALID, "against: a class cannot be set against itself")
    metadata = parse_metadata(form.fields.get("metadata"), 1, model.metadata_fields)[0]
    return ExplainJob(form.images[0], metadata, class_name, against)


def image_answer(position: int, fields: Mapping[str, Any], prediction_id: str = "") -> ImageAnswer:
    """Return the answer for an image from what the worker says of it, which is checked."""
    place = {"position": position, "prediction_id": prediction_id}
    if fields["refusal"] is not None:
        return ImageAnswer(
            **place, predicted=None, classes=[], decisions=None, distribution=None, notes=[],
            training_split="", pixel_sha256="", width=None, height=None,
            refusal=RefusalAnswer(**fields["refusal"]),
        )  # fmt: skip
    return ImageAnswer(**place, **{name: value for name, value in fields.items() if name != "statistics"})


def _predict_answer(server: ServerState, request_id: str, images: Sequence[ImageAnswer]) -> PredictAnswer:
    model = server.model
    n_refused = sum(image.refusal is not None for image in images)
    return PredictAnswer(
        request_id=request_id, model=model.model, operating_point=model.operating_point,
        decision_threshold=model.decision_threshold, images=list(images), n_scored=len(images) - n_refused,
        n_refused=n_refused, warnings=model.warnings,
    )  # fmt: skip


def _key_id(request: Request) -> str:
    return str(getattr(request.state, "key_id", ""))


async def _record(work: Awaitable[None]) -> None:
    try:
        await work
    except Problem:  # a field of the client's that the recorder does not take
        raise
    except Exception as error:
        raise Problem(ProblemCode.NOT_LOGGED, retry_after=1) from error


def _count(server_metrics: ServerMetrics, images: Sequence[ImageAnswer]) -> None:
    for image in images:
        outcome = "scored" if image.refusal is None else image.refusal.reason
        is_outside = image.distribution is not None and image.distribution.outside_training_distribution
        server_metrics.count_image(outcome, image.answered, is_outside=is_outside)


async def _while_connected(receive: Receive, work: Awaitable[_Result]) -> _Result:
    """Return the result of work for a client; where the client leaves, its places in the queue are given up."""
    task, disconnection = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, disconnection}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        disconnection.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
