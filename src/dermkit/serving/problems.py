"""Everything that a request can fail with: a closed set of codes, each with a status, as problem+json (RFC 9457).

A problem never holds a traceback, a path, or the name of a file.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

PROBLEM_TYPE = "application/problem+json"


class ProblemCode(StrEnum):
    """Why a request was not answered. The value is the field `code` of a problem."""

    BAD_REQUEST = "bad_request"
    KEY_MISSING = "key_missing"
    KEY_NOT_VALID = "key_not_valid"
    SCOPE_MISSING = "scope_missing"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TOO_SLOW = "too_slow"
    TOO_LARGE = "too_large"
    TOO_MANY_IMAGES = "too_many_images"
    WRONG_TYPE = "wrong_type"
    HOST_NOT_ALLOWED = "host_not_allowed"
    FIELD_NOT_VALID = "field_not_valid"
    IMAGE_REFUSED = "image_refused"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    HEADERS_TOO_LARGE = "headers_too_large"
    FAULT = "fault"
    NOT_SUPPORTED = "not_supported"
    QUEUE_FULL = "queue_full"
    NOT_READY = "not_ready"
    STOPPING = "stopping"
    NOT_LOGGED = "not_logged"
    LOG_AWAY = "log_away"


class ProblemKind(NamedTuple):
    """The status of a code, and what it means."""

    status: int
    title: str


PROBLEM_KINDS: Mapping[ProblemCode, ProblemKind] = MappingProxyType({
    ProblemCode.BAD_REQUEST: ProblemKind(400, "The request is not HTTP as this server reads it"),
    ProblemCode.KEY_MISSING: ProblemKind(401, "An API key is needed: Authorization: Bearer KEY"),
    ProblemCode.KEY_NOT_VALID: ProblemKind(401, "The API key is unknown, revoked or expired"),
    ProblemCode.SCOPE_MISSING: ProblemKind(403, "The API key does not allow this"),
    ProblemCode.ORIGIN_NOT_ALLOWED: ProblemKind(403, "The request comes from a page of another site"),
    ProblemCode.NOT_FOUND: ProblemKind(404, "There is nothing at this path"),
    ProblemCode.METHOD_NOT_ALLOWED: ProblemKind(405, "This path has other methods"),
    ProblemCode.TOO_SLOW: ProblemKind(408, "The request did not arrive in time"),
    ProblemCode.TOO_LARGE: ProblemKind(413, "The request is larger than the limit"),
    ProblemCode.TOO_MANY_IMAGES: ProblemKind(413, "The request has more images than the limit"),
    ProblemCode.WRONG_TYPE: ProblemKind(415, "The body is of a type that is not taken here"),
    ProblemCode.HOST_NOT_ALLOWED: ProblemKind(421, "The server is not reached by this name"),
    ProblemCode.FIELD_NOT_VALID: ProblemKind(422, "A field of the request is absent or wrong"),
    ProblemCode.IMAGE_REFUSED: ProblemKind(422, "None of the images could be scored"),
    ProblemCode.TOO_MANY_ATTEMPTS: ProblemKind(429, "Too many wrong API keys at one time"),
    ProblemCode.HEADERS_TOO_LARGE: ProblemKind(431, "The headers are larger than the limit"),
    ProblemCode.FAULT: ProblemKind(500, "A fault of the server"),
    ProblemCode.NOT_SUPPORTED: ProblemKind(501, "This model cannot do that"),
    ProblemCode.QUEUE_FULL: ProblemKind(503, "As many images wait as may wait: try again later"),
    ProblemCode.NOT_READY: ProblemKind(503, "The model is not loaded: try again later"),
    ProblemCode.STOPPING: ProblemKind(503, "The server is stopping"),
    ProblemCode.NOT_LOGGED: ProblemKind(503, "The prediction could not be logged, so it is not given"),
    ProblemCode.LOG_AWAY: ProblemKind(503, "The prediction log cannot be reached now: try again later"),
})  # fmt: skip


class Problem(Exception):
    """A request that is not answered.

    detail: what exactly is wrong, without names of files and paths. retry_after: seconds, None = no use. closes:
    whether the connection is closed, since its body was not read. headers: more of the answer's. images: the refusal
    of each image, as the answer would have held it.
    """

    def __init__(
        self, code: ProblemCode, detail: str = "", *, retry_after: int | None = None, closes: bool = False,
        headers: Sequence[tuple[bytes, bytes]] = (), images: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        super().__init__(code.value)
        self.code, self.detail, self.retry_after, self.closes = code, detail, retry_after, closes
        self.headers, self.images = tuple(headers), tuple(images)

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return PROBLEM_KINDS[self.code].status

    def body(self, request_id: str) -> bytes:
        """Return the problem as JSON."""
        document: dict[str, Any] = {
            "type": f"urn:dermkit:problem:{self.code.value}",
            "title": PROBLEM_KINDS[self.code].title,
            "status": self.status,
            "code": self.code.value,
            "detail": self.detail or PROBLEM_KINDS[self.code].title,
            "request_id": request_id,
        }
        if self.images:
            document["images"] = [dict(image) for image in self.images]
        return json.dumps(document, ensure_ascii=True, allow_nan=False).encode()

    def response_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the problem's answer, without length and those of every answer."""
        headers = [(b"content-type", PROBLEM_TYPE.encode()), *self.headers]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        return [*headers, (b"connection", b"close")] if self.closes else headers


def problem_of_status(status: int) -> ProblemCode:
    """Return the code of a status that the web framework raises by itself."""
    for code, kind in PROBLEM_KINDS.items():
        if kind.status == status:
            return code
    return ProblemCode.BAD_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else ProblemCode.FAULT
