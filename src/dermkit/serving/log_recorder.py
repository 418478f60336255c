"""The server's answers as rows of the prediction log, written before the answer is sent."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from dermkit.data.importers.normalise import parse_age, parse_site
from dermkit.errors import printable
from dermkit.images.statistics import ImageStatistics
from dermkit.prediction_log.rows import EXPLAIN, GROUP_FIELDS, MAX_TEXT_LENGTH, PredictionRow
from dermkit.prediction_log.writer import PredictionLog
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.recorder import ExplainRecord, PredictionRecord, record_id
from dermkit.serving.schemas import ImageAnswer, ModelReference, PredictAnswer

GROUPS_FIELD = "groups"
_MAX_GROUP_CHARACTERS = 64


class LogRecorder:
    """Writes a row for each image of a request to a prediction log."""

    field_names = (GROUPS_FIELD,)

    def __init__(self, log: PredictionLog) -> None:
        self.log = log

    def reasons_not_ready(self) -> list[str]:
        """Return why no row could be written now, nothing where one could: what the last row or probe showed."""
        return ["the prediction log cannot be written"] * self.log.status.is_silent

    def check_fields(self, fields: Mapping[str, str], n_images: int) -> None:
        """Raise `Problem` for groups that the log does not take."""
        parse_groups(fields.get(GROUPS_FIELD), n_images)

    async def record(self, record: PredictionRecord) -> None:
        """Write the rows of a request, on disk when this returns.

        Raises `Problem` for groups that the client gave and the log does not take, `LogUnavailable` where neither the
        database nor the outbox takes rows.
        """
        groups = parse_groups(record.fields.get(GROUPS_FIELD), len(record.answer.images))
        rows = [
            _row(record.answer, image, _statistics(statistics), {**groups_of_metadata(metadata), **client_groups})
            for image, statistics, metadata, client_groups in zip(
                record.answer.images, record.statistics, record.metadata, groups, strict=True
            )
        ]
        await asyncio.wrap_future(self.log.submit(rows))

    async def record_explain(self, record: ExplainRecord) -> None:
        """Write the row of an image that a heat map was made of; raises as `record` does."""
        await asyncio.wrap_future(self.log.submit([_explain_row(record)]))

    def watch(self, registry: CollectorRegistry) -> None:
        """Let /metrics say what the log has done."""
        for name, text, field in (
            ("dermkit_log_rows", "Rows of the prediction log that were written.", "n_rows"),
            ("dermkit_log_commits", "Commits and flushes that wrote them.", "n_commits"),
            ("dermkit_log_seconds", "Time that these took.", "seconds"),
            ("dermkit_log_outbox_rows", "Rows that wait in the outbox for the database.", "n_outbox"),
            ("dermkit_log_damaged_lines", "Lines of the outbox that could not be read.", "n_damaged"),
            ("dermkit_log_database_up", "1 where the last commit reached the database.", "is_database_up"),
        ):
            gauge = Gauge(name, text, registry=registry)
            gauge.set_function(lambda field=field: float(getattr(self.log.status, field)))  # type: ignore[misc]


def _row(
    answer: PredictAnswer, image: ImageAnswer, statistics: ImageStatistics | None, groups: Mapping[str, str]
) -> PredictionRow:
    """Return the row of one image; raises `UsageError` for a value that the log does not take."""
    decisions, distribution = image.decisions, image.distribution
    values: dict[str, Any] = {
        "row_id": image.prediction_id, "request_id": answer.request_id, "position": image.position,
        "statistics": statistics, **_model_fields(answer.model), **groups,
    }  # fmt: skip
    if image.refusal is not None:
        return PredictionRow(**values, refusal_reason=image.refusal.reason)
    values |= {
        "pixel_sha256": image.pixel_sha256, "predicted": printable(image.answered or "")[:MAX_TEXT_LENGTH],
        "probabilities": {one.name: one.probability for one in image.classes},
        "calibrated_probabilities": {
            one.name: one.calibrated_probability for one in image.classes if one.calibrated_probability is not None
        },
    }  # fmt: skip
    if decisions is not None:
        values |= {
            "operating_point": decisions.operating_point, "threshold": answer.decision_threshold,
            "malignant_probability": decisions.malignant_probability, "positive": decisions.positive,
            "referral": decisions.referral, "prediction_set": tuple(decisions.prediction_set),
        }  # fmt: skip
    if distribution is not None:
        values |= distribution.model_dump()
    return PredictionRow(**values)


def _explain_row(record: ExplainRecord) -> PredictionRow:
    """Return the row of a heat map: the predicted class and the probabilities of all, whichever was explained."""
    result = record.result
    values: dict[str, Any] = {
        "row_id": record_id(record.request_id, 0), "request_id": record.request_id, "position": 0, "route": EXPLAIN,
        **_model_fields(record.model), **groups_of_metadata(record.metadata),
    }  # fmt: skip
    if result["refusal"] is not None:
        return PredictionRow(**values, refusal_reason=result["refusal"]["reason"])
    return PredictionRow(
        **values, predicted=printable(result["predicted"])[:MAX_TEXT_LENGTH], pixel_sha256=result["pixel_sha256"],
        probabilities=result["probabilities"], calibrated_probabilities=result["calibrated_probabilities"],
    )  # fmt: skip


def _model_fields(model: ModelReference) -> dict[str, str]:
    return {
        "dermkit_version": model.version, "model_key": model.model_key,
        "preprocessing_sha256": model.preprocessing_sha256,
    }  # fmt: skip


def _statistics(fields: Mapping[str, Any] | None) -> ImageStatistics | None:
    return None if fields is None else ImageStatistics(**fields)


def groups_of_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the groups that the model's second input tells: the site, and the decade of the age."""
    site, age = parse_site(metadata.get("site", "")), parse_age(metadata.get("age", ""))
    groups = {"site": site} if site else {}
    if age:
        decade = 10 * int(float(age) // 10)
        groups["age_group"] = "90+" if decade >= 90 else f"{decade}-{decade + 9}"
    return groups


def parse_groups(text: str | None, n_images: int) -> list[dict[str, str]]:
    """Return the groups of each image, {} = none given; raises `Problem` for a wrong field.

    text: a JSON object for all images, or a list of an object for each, None = nothing given.
    """
    if text is None:
        return [{} for _ in range(n_images)]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("not JSON") from None
    rows: Sequence[Any] = value if isinstance(value, list) else [value] * n_images
    if len(rows) != n_images:
        raise _wrong(f"{len(rows)} objects for {n_images} images")
    return [_parse_group_row(row) for row in rows]


def _parse_group_row(row: Any) -> dict[str, str]:
    if not isinstance(row, Mapping) or set(row) - set(GROUP_FIELDS):
        raise _wrong(f"not an object with any of {', '.join(GROUP_FIELDS)}")
    for name, text in row.items():
        if not isinstance(text, str) or len(text) > _MAX_GROUP_CHARACTERS or not text.isprintable():
            raise _wrong(f"{name}: no printable text of at most {_MAX_GROUP_CHARACTERS} characters")
        if text != printable(text):
            raise _wrong(f"{name}: has characters that turn the direction of writing")
    return {str(name): str(text) for name, text in row.items() if text}


def _wrong(detail: str) -> Problem:
    return Problem(ProblemCode.FIELD_NOT_VALID, f"{GROUPS_FIELD}: {detail}")
