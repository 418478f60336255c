"""What keeps a record of predictions, as the routes see it; the server itself stores nothing."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from dermkit.serving.schemas import ModelReference, PredictAnswer


@dataclass(frozen=True)
class PredictionRecord:
    """One request that was answered, before its answer is sent.

    fields: what the client sent of the recorder's `field_names`. statistics: of each image, the fields of
    `ImageStatistics`; None where it was refused. metadata: age, sex and site of each
    image as they were used, absent = unknown. key_id: "" where no keys are asked for.
    """

    answer: PredictAnswer
    fields: Mapping[str, str]
    statistics: tuple[Mapping[str, Any] | None, ...]
    metadata: tuple[Mapping[str, str], ...]
    key_id: str


@dataclass(frozen=True)
class ExplainRecord:
    """One heat map that was made or refused, before its answer is sent.

    result: what the worker says of the image. metadata: age, sex and site as they were used, absent = unknown.
    """

    request_id: str
    model: ModelReference
    result: Mapping[str, Any]
    metadata: Mapping[str, str]
    key_id: str


class PredictionRecorder(Protocol):
    """Keeps records. field_names: of text fields beside the images that it takes from clients."""

    @property
    def field_names(self) -> tuple[str, ...]:
        """Return the names of fields that a client may send for the record."""

    def watch(self, registry: CollectorRegistry) -> None:
        """Let /metrics say what was recorded."""

    def reasons_not_ready(self) -> list[str]:
        """Return why no record could be kept now, nothing where one could."""

    def check_fields(self, fields: Mapping[str, str], n_images: int) -> None:
        """Raise `Problem` for fields of a client that the record does not take, before its images are scored."""

    async def record(self, record: PredictionRecord) -> None:
        """Keep a record; raises where that fails, and the answer is then not given."""

    async def record_explain(self, record: ExplainRecord) -> None:
        """Keep the record of a heat map, which names the predicted class too; raises as `record` does."""


def record_id(request_id: str, position: int) -> str:
    """Return the id of one image's record: of the request's random id and the image's place in it, 32 hex digits."""
    return hashlib.sha256(f"{request_id}-{position}".encode()).hexdigest()[:32]
