"""The outermost middleware: a request id, security headers on every answer, and problems in place of exceptions.

The log line of a request holds its method, route, status, id, key id and time. It holds no path, no query, no header
and no name that a client chose.
"""

import asyncio
import logging
import secrets
import time
import traceback
from pathlib import Path

from dermkit.serving.asgi import AsgiApp, AsgiMessage, AsgiScope, ClientGone, Receive, Send
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.rules import ContentPolicy, RouteRule

_LOG = logging.getLogger("dermkit.serving")

FIXED_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cache-control", b"no-store"),
)
_POLICY_NAME = b"content-security-policy"


class Envelope:
    """Wraps an ASGI application; `state` of its requests gets `request_id`.

    send_seconds: how long a client may take for a piece of an answer, before the connection is dropped.
    """

    def __init__(self, app: AsgiApp, *, metrics: ServerMetrics, send_seconds: float) -> None:
        self._app, self._metrics, self._send_seconds = app, metrics, send_seconds

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        await _Exchange(scope, send, self._metrics, self._send_seconds).run(self._app, receive)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: AsgiScope, send: Send, metrics: ServerMetrics, send_seconds: float) -> None:
        self._scope, self._send, self._metrics, self._send_seconds = scope, send, metrics, send_seconds
        self.request_id = secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = self.request_id
        self._status = 0
        self._start_time = time.monotonic()

    async def run(self, app: AsgiApp, receive: Receive) -> None:
        try:
            await app(self._scope, receive, self._send_with_headers)
        except ClientGone:
            self._status = self._status or 499
        except Problem as problem:
            await self._send_problem(problem)
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets a problem and no traceback
            _LOG.error("fault %s: %s", self.request_id, describe_fault(error))
            await self._send_problem(Problem(ProblemCode.FAULT, closes=True))
        finally:
            self._record()

    async def _send_problem(self, problem: Problem) -> None:
        if self._status:  # the answer has begun: the server closes a connection whose answer is not completed
            return
        self._metrics.count_problem(problem.code)
        body = problem.body(self.request_id)
        headers = [*problem.response_headers(), (b"content-length", str(len(body)).encode())]
        await self._send_with_headers(
            {"type": "http.response.start", "status": problem.status, "headers": headers}
        )
        await self._send_with_headers({"type": "http.response.body", "body": body})

    async def _send_with_headers(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers(message)]}
        try:
            await asyncio.wait_for(self._send(message), self._send_seconds)
        except TimeoutError:
            raise ClientGone from None

    def _headers(self, message: AsgiMessage) -> list[tuple[bytes, bytes]]:
        """Return the headers of every answer; a route may say for itself how long its answer may be cached."""
        present = {name.lower() for name, _ in message.get("headers", ())}
        rule: RouteRule | None = self._scope["state"].get("rule")
        policy = ContentPolicy.DATA if rule is None else rule.policy
        headers = [
            *FIXED_HEADERS,
            (_POLICY_NAME, policy.value.encode()),
            (b"x-request-id", self.request_id.encode()),
        ]
        return [(name, value) for name, value in headers if name not in present]

    def _record(self) -> None:
        seconds = time.monotonic() - self._start_time
        state = self._scope["state"]
        rule: RouteRule | None = state.get("rule")
        route = rule.path if rule is not None else "other"
        self._metrics.observe_request(route, self._status, seconds)
        _LOG.info(
            "%s %s %d %.0f ms request=%s key=%s", self._scope["method"] if rule is not None else "-", route,
            self._status, 1000 * seconds, self.request_id, state.get("key_id") or "-",
        )  # fmt: skip


def describe_fault(error: BaseException) -> str:
    """Return the kind of an exception and where in dermkit it arose; its message may hold what a client sent."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "dermkit" in Path(frame.filename).parts
    ]
    place = f" in {Path(frames[-1].filename).stem}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
