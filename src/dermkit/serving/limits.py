"""ASGI middleware that refuses a request by its headers alone, and ends one whose body is too long or too slow.

The order of the checks: name of the host, origin, path and method, key, type of the body, length, room in the queue.
Nothing of a body is read before all of them passed.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import urlsplit

from dermkit.serving.asgi import AsgiApp, AsgiMessage, AsgiScope, Receive, Send, header_values, single_header
from dermkit.serving.auth import KeyGuard
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.rules import RouteRule, find_rule
from dermkit.serving.settings import ServeLimits, ServeSettings

_RETRY_SECONDS = 1
_MAX_WAIT_SECONDS = 1.0
_UPLOAD_SECONDS = 0.25
"""A photograph takes some milliseconds in a local network; a queue that is full of slow uploads would be empty."""
_SAME_SITE = ("same-origin", "none")


class BodyBudget:
    """How many bytes of bodies are held at one time, by all requests together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.n_reserved = max_bytes, 0

    def take(self, n_bytes: int) -> None:
        """Count bytes that arrived; raises `Problem` where they are too many for now."""
        if self.n_reserved + n_bytes > self._max_bytes:
            raise Problem(
                ProblemCode.QUEUE_FULL, "the server holds as many uploads as it may", retry_after=_RETRY_SECONDS,
                closes=True,
            )  # fmt: skip
        self.n_reserved += n_bytes

    def release(self, n_bytes: int) -> None:
        """Forget bytes that are no longer held."""
        self.n_reserved -= n_bytes


class Uploads:
    """Requests whose images are on their way: they will want room in the queue in a moment.

    Of many that come at one time only as many are read as would find room; the others wait for a moment, since most are
    refused as soon as the first have filled the queue. An upload that takes long no longer counts: slow clients must
    not keep others out. check_room: raises `Problem` where so many images would not be accepted now.
    """

    def __init__(self, check_room: Callable[[int], None]) -> None:
        self._check_room = check_room
        self._start_times: dict[int, float] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._number = 0

    async def begin(self) -> int:
        """Return the number of an upload that may be read; raises `Problem` where the queue is full."""
        deadline = time.monotonic() + _MAX_WAIT_SECONDS
        try:
            self._check_room(1)
            while not self._has_room() and time.monotonic() < deadline:
                await self._wait()
                self._check_room(1)
        except Problem:
            self._wake_next()  # who will be refused too
            raise
        self._number += 1
        self._start_times[self._number] = time.monotonic()
        return self._number

    def end(self, number: int) -> None:
        """Count an upload no longer."""
        self._start_times.pop(number, None)
        self._wake_next()

    def _has_room(self) -> bool:
        oldest = time.monotonic() - _UPLOAD_SECONDS
        while self._start_times and next(iter(self._start_times.values())) <= oldest:
            del self._start_times[next(iter(self._start_times))]
        try:
            self._check_room(1 + len(self._start_times))
        except Problem:
            return False
        return True

    async def _wait(self) -> None:
        """Wait until an upload ends, or the oldest no longer counts."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        oldest = next(iter(self._start_times.values()), time.monotonic())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(waiter, max(0.001, oldest + _UPLOAD_SECONDS - time.monotonic()))

    def _wake_next(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class RequestLimits:
    """Checks each request of an ASGI application; `state` of those that pass gets `rule` and `key_id`.

    guard: of API keys, None = none are asked for. check_room: gets a number of images, and raises `Problem` where they
    would not be accepted now. A route that has its images calls `end_upload` of `state`.
    """

    def __init__(
        self, app: AsgiApp, *, rules: Sequence[RouteRule], settings: ServeSettings, guard: KeyGuard | None,
        check_room: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._app, self._rules, self._limits = app, tuple(rules), settings.limits
        self._trusted_hosts, self._named_hosts = settings.trusted_hosts, settings.named_hosts
        self._guard, self._uploads = guard, Uploads(check_room)
        self.budget = BodyBudget(settings.limits.max_buffered_bytes)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Check one request, and hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check_host(scope)
        self._check_origin(scope)
        rule = find_rule(self._rules, scope["method"], scope["path"])
        scope["state"]["rule"] = rule
        if self._guard is not None and rule.scope is not None:
            scope["state"]["key_id"] = await self._guard.check(single_header(scope, b"authorization"), rule.scope)
        max_bytes = rule.max_body_bytes or self._limits.max_body_bytes
        if rule.content_type:
            _check_type(scope, rule.content_type)
            _check_length(scope, max_bytes)
        else:
            _check_no_body(scope)
        upload = await self._uploads.begin() if rule.needs_model else 0
        end_upload = scope["state"]["end_upload"] = partial(self._uploads.end, upload)
        if scope["method"] == "HEAD":  # the server leaves the body of its answer out
            scope = {**scope, "method": "GET"}
        body = _CountedBody(receive, max_bytes, self._limits, self.budget)
        try:
            await self._app(scope, body.receive if rule.content_type else receive, send)
        finally:
            end_upload()
            body.release()

    def _check_host(self, scope: AsgiScope) -> None:
        """Raise `Problem` for a name that is not the server's: a page of another site may point its name here."""
        hosts = [single_header(scope, b"host")]
        if (target_host := scope["state"].get("target_host")) is not None:
            hosts.append(target_host)
        if any(host_name(host) not in self._trusted_hosts for host in hosts):
            raise Problem(ProblemCode.HOST_NOT_ALLOWED, closes=True)

    def _check_origin(self, scope: AsgiScope) -> None:
        """Raise `Problem` where a browser says that a page of another site sends this; other programs say nothing.

        A proxy may name this server to us by another name than to the browser: by one that `--allow-host` gave.
        """
        host, site = single_header(scope, b"host").lower(), single_header(scope, b"sec-fetch-site")
        origins = [origin.lower().partition("://")[2] for origin in header_values(scope, b"origin")]
        is_foreign = any(origin != host and host_name(origin) not in self._named_hosts for origin in origins)
        is_navigation = single_header(scope, b"sec-fetch-mode") == "navigate" and scope["method"] in (
            "GET",
            "HEAD",
        )
        if is_foreign or (site and site not in _SAME_SITE and not is_navigation):
            raise Problem(ProblemCode.ORIGIN_NOT_ALLOWED, closes=True)


def host_name(host: str) -> str:
    """Return the name of a Host header without its port, in lower case; "" where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if host and "@" not in host else ""
    except ValueError:
        return ""


def _check_type(scope: AsgiScope, content_type: str) -> None:
    """Raise `Problem` for a body of another type, and for one that is compressed."""
    media_type = single_header(scope, b"content-type").partition(";")[0].strip().lower()
    if media_type != content_type:
        raise Problem(ProblemCode.WRONG_TYPE, f"the body must be {content_type}", closes=True)
    if header_values(scope, b"content-encoding"):
        raise Problem(ProblemCode.WRONG_TYPE, "the body must not be compressed", closes=True)


def _check_length(scope: AsgiScope, max_bytes: int) -> None:
    """Raise `Problem` for a stated length over the limit; a body without one is counted as it arrives."""
    for text in header_values(scope, b"content-length"):
        if not (text.isascii() and text.isdigit()):
            raise Problem(ProblemCode.BAD_REQUEST, "content-length is no number", closes=True)
        if len(text) > 18 or int(text) > max_bytes:
            raise Problem(ProblemCode.TOO_LARGE, f"a body may have {max_bytes:,} bytes", closes=True)


def _check_no_body(scope: AsgiScope) -> None:
    """Raise `Problem` for a body where none is taken."""
    has_length = any(text != "0" for text in header_values(scope, b"content-length"))
    if has_length or header_values(scope, b"transfer-encoding"):
        raise Problem(ProblemCode.TOO_LARGE, "no body is taken here", closes=True)


class _CountedBody:
    """A body whose bytes and time are counted as it arrives.

    Each byte that arrives buys time: a body has its first seconds, and those that its bytes would take at the lowest
    rate. A client that sends a byte now and then is out of time soon after the first seconds.
    """

    def __init__(self, receive: Receive, max_bytes: int, limits: ServeLimits, budget: BodyBudget) -> None:
        self._receive, self._max_bytes, self._limits, self._budget = receive, max_bytes, limits, budget
        self._n_bytes, self._start_time, self._is_complete = 0, time.monotonic(), False

    async def receive(self) -> AsgiMessage:
        if self._is_complete:  # what follows is the end of the connection, however late
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._seconds_left()))
        except TimeoutError:
            raise Problem(ProblemCode.TOO_SLOW, closes=True) from None
        n_bytes = len(message.get("body", b""))
        if self._n_bytes + n_bytes > self._max_bytes:
            raise Problem(ProblemCode.TOO_LARGE, f"a body may have {self._max_bytes:,} bytes", closes=True)
        self._budget.take(n_bytes)
        self._n_bytes += n_bytes
        self._is_complete = not message.get("more_body", False)
        return message

    def _seconds_left(self) -> float:
        limits = self._limits
        allowed = min(limits.body_seconds + self._n_bytes / limits.min_body_rate, limits.max_body_seconds)
        return self._start_time + allowed - time.monotonic()

    def release(self) -> None:
        self._budget.release(self._n_bytes)
        self._n_bytes = 0
