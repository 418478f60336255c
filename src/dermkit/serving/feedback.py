"""/v1/feedback: what became known of images later, added to the prediction log."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermkit.errors import DermkitError, UsageError
from dermkit.models.card import RESEARCH_ONLY
from dermkit.prediction_log.outcomes import OutcomesAdded, add_outcomes
from dermkit.prediction_log.rows import MAX_TEXT_LENGTH, OUTCOME, OutcomeRow, parse_time
from dermkit.prediction_log.writer import PredictionLog
from dermkit.serving.examples import PROBLEM_RESPONSES
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.rules import JSON_TYPE, RouteRule, Scope

MAX_OUTCOMES = 100
FEEDBACK_RULES = (RouteRule("/v1/feedback", ("POST",), Scope.FEEDBACK, JSON_TYPE, max_body_bytes=128 * 1024),)
_CONFIG = ConfigDict(extra="forbid", frozen=True)
_RETRY_SECONDS = 5
_MAX_WAITING = 8
"""Requests with outcomes at one time: each may hold the thread for as long as the log waits for its database."""


class OutcomeFields(BaseModel):
    """What became known of one image: `prediction_id` of an answer or `pixel_sha256` of an image, and the diagnosis.

    kind: `override` for what a reviewer decided. time: ISO 8601; without a time zone it is UTC.
    """

    model_config = _CONFIG
    prediction_id: str = Field("", max_length=32)
    pixel_sha256: str = Field("", max_length=64)
    kind: Literal["outcome", "override"] = OUTCOME  # type: ignore[assignment]
    diagnosis: str = Field(min_length=1, max_length=MAX_TEXT_LENGTH)
    source: str = Field(min_length=1, max_length=MAX_TEXT_LENGTH)
    time: str = Field(max_length=64)


class FeedbackFields(BaseModel):
    """The body of /v1/feedback."""

    model_config = _CONFIG
    outcomes: list[OutcomeFields] = Field(min_length=1, max_length=MAX_OUTCOMES)


class RejectedFields(BaseModel):
    """An outcome that was not taken: the id that it gives, and why."""

    model_config = _CONFIG
    name: str
    reason: str


class FeedbackAnswer(BaseModel):
    """The answer of /v1/feedback: outcomes that were new, those that the log had, and those that were not taken."""

    model_config = _CONFIG
    request_id: str
    n_new: int
    n_known: int
    rejected: list[RejectedFields]
    notice: Literal["Research use only. Not a medical device."] = RESEARCH_ONLY  # type: ignore[assignment]


class OutcomeWriter:
    """Adds outcomes to the log in a thread of its own: where the database is away, the model waits for none of them."""

    def __init__(self, log: PredictionLog) -> None:
        self._log, self._n_waiting = log, 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="dermkit-feedback")

    async def add(self, rows: list[OutcomeRow]) -> OutcomesAdded:
        """Return what was added; raises `Problem` where the database is away, and at once where too many wait."""
        if self._n_waiting >= _MAX_WAITING:
            raise _log_away("too many requests with outcomes wait for its database")
        self._n_waiting += 1
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, add_outcomes, self._log.address, rows)
        except DermkitError as error:
            raise _log_away("its database cannot be used") from error
        finally:
            self._n_waiting -= 1


def feedback_router(log: PredictionLog) -> APIRouter:
    """Return the route of /v1/feedback. log: where the outcomes are added."""
    router, writer = APIRouter(), OutcomeWriter(log)

    @router.post(
        "/v1/feedback", response_model=FeedbackAnswer, responses=PROBLEM_RESPONSES, openapi_extra=_feedback_body(),
        summary="Diagnoses and reviewers' decisions that came later",
    )  # fmt: skip
    async def post_feedback(request: Request) -> FeedbackAnswer:
        """Add outcomes to the log. The same outcome sent again is kept once; a correction is a new one."""
        rows = _parse_rows(await request.body())
        if log.status.n_outbox:
            raise _log_away("predictions wait for the database of the log")
        added = await writer.add(rows)
        if not added.n_new + added.n_known:
            reasons = "; ".join(dict.fromkeys(one.reason for one in added.rejected))
            raise Problem(ProblemCode.FIELD_NOT_VALID, f"no outcome was taken: {reasons}")
        rejected = [RejectedFields(name=one.name, reason=one.reason) for one in added.rejected]
        return FeedbackAnswer(
            request_id=request.state.request_id, n_new=added.n_new, n_known=added.n_known, rejected=rejected
        )

    return router


def _feedback_body() -> dict[str, Any]:
    schema = FeedbackFields.model_json_schema(ref_template="#/components/schemas/{model}")
    outcome = schema.pop("$defs")["OutcomeFields"]
    schema["properties"]["outcomes"]["items"] = outcome
    example = {
        "outcomes": [
            {"prediction_id": "0" * 32, "diagnosis": "nevus", "source": "histopathology", "time": "2026-12-01"}
        ]
    }
    return {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": schema, "example": example}}}}


def _parse_rows(body: bytes) -> list[OutcomeRow]:
    try:
        fields = FeedbackFields.model_validate_json(body)
        return [
            OutcomeRow(
                kind=one.kind, prediction_id=one.prediction_id, pixel_sha256=one.pixel_sha256,
                diagnosis=one.diagnosis, source=one.source, observed=parse_time(one.time),
            )
            for one in fields.outcomes
        ]  # fmt: skip
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise Problem(ProblemCode.FIELD_NOT_VALID, f"{place[:100]}: {first['msg'][:100]}") from None
    except UsageError as error:
        raise Problem(ProblemCode.FIELD_NOT_VALID, error.message[:200]) from None


def _log_away(detail: str) -> Problem:
    return Problem(ProblemCode.LOG_AWAY, detail, retry_after=_RETRY_SECONDS)
