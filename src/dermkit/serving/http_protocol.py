"""uvicorn's HTTP protocol with what it lacks: a deadline for headers, a limit of their size, and of connections.

A connection that is closed with a part of a body unread lingers for a moment: closed at once, the system would take
back the answer before the client has read it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dermkit.serving.envelope import FIXED_HEADERS
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.rules import ContentPolicy
from dermkit.serving.settings import ServeLimits

MAX_HEADER_BYTES = 32 * 1024
_MAX_HEADERS = 100
_READ_BYTES = 64 * 1024
_MAX_FRAME_SHARE = 4
"""The sizes and ends of chunks may be this part of the largest body: a client that sends in small chunks needs them."""
_LINGER_SECONDS = 2.0
_FLUSH_SECONDS = 20.0


class HeadersTooLarge(ValueError):
    """The headers of a request are larger than the limit."""


class LingeringTransport:
    """A transport whose `close` ends the answer and gives the client a moment to read it.

    has_unread: whether the client has sent, or may still send, what nobody reads; else the connection closes at once.
    """

    def __init__(self, transport: asyncio.Transport, has_unread: Callable[[], bool]) -> None:
        self._transport, self._has_unread, self._is_closing = transport, has_unread, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether nothing more is written."""
        return self._is_closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send bytes; nothing after the end of the answer, which an application may reach late."""
        if not self.is_closing():
            self._transport.write(data)

    def resume_reading(self) -> None:
        """Read on, unless nothing that comes would be answered."""
        if not self.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """End the answer; what the client still sends is not read."""
        if self.is_closing():
            return
        self._is_closing = True
        loop = asyncio.get_running_loop()
        if self._has_unread() and self._transport.can_write_eof():
            self._transport.pause_reading()
            self._transport.write_eof()
            loop.call_later(_LINGER_SECONDS, self._transport.abort)
            return
        self._transport.close()
        if self._transport.get_write_buffer_size():  # a client that does not read would hold it for ever
            loop.call_later(_FLUSH_SECONDS, self._transport.abort)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `limits` are set by `guarded_protocol`, since uvicorn makes protocols by itself."""

    limits: ServeLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first request; one connection too many is dropped at once."""
        self._n_unparsed_bytes, self._n_header_bytes, self._n_headers, self._is_in_headers = 0, 0, 0, True
        self._n_raw_body_bytes = 0
        self._answering: RequestResponseCycle | None = None
        self._late_refusal: ProblemCode | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        if len(self.connections) >= self.limits.max_connections:
            transport.abort()
            return
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES  # of one read; by default 256 KiB, of a body that may be refused
        super().connection_made(LingeringTransport(transport, self._has_unread))  # type: ignore[arg-type]
        self._start_header_timer()

    def _has_unread(self) -> bool:
        return self._is_in_headers or (self.cycle is not None and self.cycle.more_body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._stop_header_timer()
        if self.flow is None:  # it was one too many
            return
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection of a client that has said all it has to say until its answer is sent."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Count bytes of headers, and of bodies with their chunks' extensions, before they are parsed."""
        if self.transport is None or self.transport.is_closing() or self._late_refusal is not None:
            return
        if self._is_in_headers:
            self._start_header_timer()
            self._n_unparsed_bytes += len(data)
            if self._n_unparsed_bytes > MAX_HEADER_BYTES + _READ_BYTES:
                self._refuse(ProblemCode.HEADERS_TOO_LARGE)
                return
        else:
            self._n_raw_body_bytes += len(data)
            max_bytes = self.limits.max_body_bytes
            if self._n_raw_body_bytes > max_bytes + max_bytes // _MAX_FRAME_SHARE + _READ_BYTES:
                self._refuse(ProblemCode.TOO_LARGE)
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start the deadline of a further request on this connection."""
        self._is_in_headers, self._n_header_bytes, self._n_headers = True, 0, 0
        self._start_header_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count its bytes."""
        self._count_header(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header. One after the body, a trailer, is no header of the request: nothing may depend on it."""
        self._n_headers += 1
        self._count_header(name + value)
        if self._is_in_headers:
            super().on_header(name, value)

    def _count_header(self, data: bytes) -> None:
        """Raise `HeadersTooLarge`, which ends the parser, where it is too much; `send_400_response` then answers."""
        self._n_header_bytes += len(data)
        if self._n_header_bytes > MAX_HEADER_BYTES or self._n_headers > _MAX_HEADERS:
            raise HeadersTooLarge

    def on_headers_complete(self) -> None:
        """Stop the deadline, and read nothing more until the application asks for the body."""
        self._is_in_headers, self._n_unparsed_bytes, self._n_raw_body_bytes = False, 0, 0
        self._stop_header_timer()
        if not self.url.startswith((b"/", b"*")):  # it names the server, as a request to a proxy does
            self.scope["state"]["target_host"] = _host_of(self.url)
        super().on_headers_complete()
        self.flow.pause_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle  # `self.cycle` is the last one that was read
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Let the next request have its deadline from its first byte on, or its refusal."""
        is_last = not self.pipeline
        super().on_response_complete()
        if not is_last:
            return
        self._is_in_headers, self._n_unparsed_bytes = True, 0
        if self._late_refusal is not None:
            self._refuse(self._late_refusal)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words are not passed on
        """Answer what is no HTTP with a problem."""
        is_large = self._is_in_headers and (
            self._n_header_bytes > MAX_HEADER_BYTES or self._n_headers > _MAX_HEADERS
        )
        self._refuse(ProblemCode.HEADERS_TOO_LARGE if is_large else ProblemCode.BAD_REQUEST)

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.limits.header_seconds, self._end_late_headers)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _end_late_headers(self) -> None:
        self._header_timer = None
        self._refuse(ProblemCode.TOO_SLOW)

    def _refuse(self, code: ProblemCode) -> None:
        """Answer with a problem where no answer has begun, and close the connection.

        Whole requests that came before the broken one get their answers first.
        """
        self._stop_header_timer()
        if self.transport.is_closing():
            return
        cycle = self._answering
        is_open = cycle is not None and not cycle.response_complete
        if cycle is not None and is_open and not (cycle is self.cycle and cycle.more_body):
            self._late_refusal = code
            self.pipeline = deque(waiting for waiting in self.pipeline if not waiting[0].more_body)
            self.flow.pause_reading()
            return
        if cycle is None or not is_open or not cycle.response_started:
            self.transport.write(problem_bytes(Problem(code, closes=True)))
        self.transport.close()


def _host_of(url: bytes) -> str:
    """Return the host and port of an absolute target, "" where it has none."""
    try:
        return urlsplit(url.decode("latin-1")).netloc
    except ValueError:
        return ""


def problem_bytes(problem: Problem) -> bytes:
    """Return a whole answer, for a request that never became one."""
    body = problem.body("")
    headers = [
        *problem.response_headers(),
        *FIXED_HEADERS,
        (b"content-security-policy", ContentPolicy.DATA.value.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    lines = [b"HTTP/1.1 %d Refused" % problem.status, *(b"%s: %s" % header for header in headers), b"", body]
    return b"\r\n".join(lines)


def guarded_protocol(limits: ServeLimits) -> type[GuardedProtocol]:
    """Return the protocol of a server with these limits."""
    return type("ServerProtocol", (GuardedProtocol,), {"limits": limits})
