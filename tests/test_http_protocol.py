"""One connection, on a transport in memory: trailers, requests that come together, and what follows a refusal."""

import asyncio
from typing import Any

import pytest
from uvicorn.server import ServerState

from dermkit.serving.http_protocol import GuardedProtocol
from dermkit.serving.server import server_config
from dermkit.serving.settings import ServeLimits
from server_parts import open_server, run

GET = b"GET /one HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written; refuses what the system refuses after the end of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.reads_on, self.is_closed, self.is_ended = b"", True, False, False

    def write(self, data: Any) -> None:
        assert not self.is_ended, "written after the end"
        self.written += data

    def write_eof(self) -> None:
        self.is_ended = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.reads_on = False

    def resume_reading(self) -> None:
        self.reads_on = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.written.split(b"HTTP/1.1 ")[1:]]


class App:
    """Answers when `go` is set, after it has read the body; keeps the scopes of requests and what went wrong."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.faults: list[Exception] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        try:
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                pass
            await self.go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
        except Exception as error:  # noqa: BLE001  the server would log it as a fault
            self.faults.append(error)


def connect(app: Any, limits: ServeLimits | None = None) -> tuple[GuardedProtocol, Transport]:
    """Return a connection of a server, and its transport."""
    config = server_config(app, limits or ServeLimits())
    config.load()
    transport = Transport()
    protocol: GuardedProtocol = config.http_protocol_class(config, ServerState(), {})  # type: ignore[call-arg,assignment]
    protocol.connection_made(transport)
    return protocol, transport


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(30):
        await asyncio.sleep(0)


def test_a_trailer_is_no_header() -> None:
    async def check() -> None:
        app = App()
        protocol, transport = connect(app)
        protocol.data_received(POST)
        await settle()
        protocol.data_received(
            b"1\r\nx\r\n0\r\nAuthorization: Bearer key\r\nHost: other\r\nContent-Type: a/b\r\n\r\n"
        )
        await settle()
        assert transport.statuses == [200]
        names = [name for name, _ in app.scopes[0]["headers"]]
        assert names == [b"host", b"transfer-encoding"]

    run(check())


def test_trailers_count_as_headers_do() -> None:
    async def check() -> None:
        protocol, transport = connect(App())
        protocol.data_received(POST + b"0\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(120)) + b"\r\n")
        await settle()
        assert transport.statuses == [400]

    run(check())


@pytest.mark.parametrize("broken", [b"no http at all\r\n\r\n", POST + b"ZZZ\r\n"], ids=["head", "body"])
@pytest.mark.parametrize("n_good", [1, 3])
def test_requests_before_a_broken_one_are_answered_first(broken: bytes, n_good: int) -> None:
    async def check() -> None:
        app = App()
        app.go.clear()
        protocol, transport = connect(app)
        protocol.data_received(GET * n_good + broken)
        await settle()
        assert transport.written == b""
        protocol.data_received(GET)
        app.go.set()
        await settle()
        assert transport.statuses == [200] * n_good + [400] and not app.faults
        assert len(app.scopes) == n_good and transport.is_ended

    run(check())


def test_nothing_is_read_or_written_after_a_refusal() -> None:
    async def check() -> None:
        app = App()
        protocol, transport = connect(app)
        protocol.data_received(POST)
        await settle()
        protocol.data_received(b"ZZZ\r\n")
        protocol.flow.resume_reading()
        assert transport.statuses == [400] and not transport.reads_on
        protocol.flow.pause_reading()
        protocol.flow.resume_reading()
        assert not transport.reads_on
        protocol.cycle.disconnected = True
        protocol.cycle.message_event.set()
        await settle()
        assert transport.statuses == [400] and not app.faults

    run(check())


def test_an_answer_that_comes_after_a_refusal_is_no_fault() -> None:
    async def check() -> None:
        app = App()
        protocol, transport = connect(app)
        protocol.data_received(POST + b"ZZZ\r\n")
        protocol.cycle.more_body = False  # as where the application answers without the body
        protocol.cycle.message_event.set()
        await settle()
        assert transport.statuses == [400] and not app.faults

    run(check())


def test_the_extensions_of_chunks_count() -> None:
    async def check() -> None:
        protocol, transport = connect(App(), ServeLimits(max_body_bytes=1000, max_image_bytes=1000))
        protocol.data_received(POST)
        await settle()
        for _ in range(3):
            protocol.data_received(b"1;" + b"x" * 30_000 + b"\r\nx\r\n")
        await settle()
        assert transport.statuses == [413]

    run(check())


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/health", 200),
        (b"http://localhost:8000/health", 200),
        (b"http://evil.example/health", 421),
        (b"http://localhost@evil.example/health", 421),
        (b"http://[::1/health", 400),
    ],
)
def test_the_host_of_an_absolute_target_is_checked_too(target: bytes, status: int) -> None:
    async def check() -> None:
        async with open_server() as client:
            protocol, transport = connect(client.app)
            protocol.data_received(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for _ in range(200):
                await asyncio.sleep(0.005)
                if transport.statuses:
                    break
            assert transport.statuses == [status]

    run(check())
