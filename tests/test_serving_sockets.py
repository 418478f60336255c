"""The server on a real socket, with a worker of the test's own process: deadlines, sizes, and how connections end."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from dermkit.serving.app import create_app
from dermkit.serving.auth import KeyGuard, KeyRing
from dermkit.serving.http_protocol import GuardedProtocol
from dermkit.serving.key_file import make_key
from dermkit.serving.prometheus import ServerMetrics
from dermkit.serving.routes import ServerState
from dermkit.serving.scoring_queue import ScoringQueue
from dermkit.serving.server import server_config
from dermkit.serving.settings import MEBIBYTE, ServeLimits, ServeSettings
from server_parts import FORM_TYPE, QuickWorker, form

LIMITS = ServeLimits(
    header_seconds=0.6, body_seconds=0.6, min_body_rate=10_000, idle_seconds=1, max_connections=40, stop_seconds=5
)
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class ServerThread:
    """A running server: its port, how many bytes it has read, and its worker."""

    port: int
    n_read: Callable[[], int]
    worker: QuickWorker

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextlib.contextmanager
def running(
    patch: pytest.MonkeyPatch, *, keys: Path | None = None, limits: ServeLimits = LIMITS
) -> Iterator[ServerThread]:
    """Run a server in a thread."""
    settings, worker, n_read = ServeSettings(model=Path("m"), keys=keys, limits=limits), QuickWorker(), [0]
    receive = GuardedProtocol.data_received

    def count(self: GuardedProtocol, data: bytes) -> None:
        n_read[0] += len(data)
        receive(self, data)

    patch.setattr(GuardedProtocol, "data_received", count)
    server_metrics = ServerMetrics()
    state = ServerState(limits, ScoringQueue(worker, limits, server_metrics), server_metrics)
    app = create_app(settings, state, guard=None if keys is None else KeyGuard(KeyRing(keys)))
    server = uvicorn.Server(server_config(app, limits))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield ServerThread(port, lambda: n_read[0], worker)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    """Return a running server."""
    with pytest.MonkeyPatch.context() as patch, running(patch) as one:
        yield one


def read_reply(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer; status 0 where the connection ends without one."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return 0, {}, data
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(status_line.split()[1]), headers, body


def is_closed(connection: socket.socket, *, seconds: float) -> bool:
    """Return whether the server ends a connection in this time, answering or not."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def post_head(length: int | None = None, *extra: str) -> bytes:
    lines = ["POST /v1/predict HTTP/1.1", "Host: localhost", f"Content-Type: {FORM_TYPE}", *extra]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_one_connection_takes_several_requests_and_then_idles_out(server: ServerThread) -> None:
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(GET)
            status, headers, body = read_reply(connection)
            assert (status, json.loads(body)) == (200, {"status": "alive"})
            assert "server" not in headers and "access-control-allow-origin" not in headers
        body = form(b"one")
        connection.sendall(post_head(len(body)) + body)
        assert read_reply(connection)[0] == 200
        connection.sendall(post_head() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert read_reply(connection)[0] == 200
        connection.sendall(b"HEAD" + GET[3:])
        assert connection.recv(65536).endswith(b"\r\n\r\n")
        assert is_closed(connection, seconds=10)


def test_a_client_that_closes_its_end_still_gets_its_answer(server: ServerThread) -> None:
    with server.connect() as connection:
        body = form(b"one")
        connection.sendall(post_head(len(body)) + body)
        connection.shutdown(socket.SHUT_WR)
        assert read_reply(connection)[0] == 200


@pytest.mark.parametrize(
    "pieces",
    [
        [b""],
        [b"GET /hea"],
        [b"GET /health HTTP/1.1\r\n", *[b"X-%d: a\r\n" % number for number in range(200)]],
        [GET, b"GET /health HTT"],
    ],
)
def test_headers_that_do_not_come_are_not_waited_for(server: ServerThread, pieces: list[bytes]) -> None:
    with server.connect() as connection:
        start_time = time.monotonic()
        connection.sendall(pieces[0])
        if pieces[0] == GET:
            assert read_reply(connection)[0] == 200
        for piece in pieces[1:]:
            time.sleep(0.05)
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        assert is_closed(connection, seconds=10)
        assert time.monotonic() - start_time < 10


def test_late_headers_get_a_problem(server: ServerThread) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /hea")
        status, headers, body = read_reply(connection)
        assert (status, headers["content-type"], json.loads(body)["code"]) == (
            408, "application/problem+json", "too_slow",
        )  # fmt: skip


@pytest.mark.parametrize("length", [100_000, None])
def test_a_body_that_trickles_is_ended(server: ServerThread, length: int | None) -> None:
    with server.connect() as connection:
        start = form(b"").rsplit(b"\r\n--", 1)[0]
        connection.sendall(post_head(length) + (start if length else b"%x\r\n%s\r\n" % (len(start), start)))
        start_time, status = time.monotonic(), 0
        connection.settimeout(0.05)
        while time.monotonic() - start_time < 10:
            connection.sendall(b"x" if length else b"1\r\nx\r\n")
            with contextlib.suppress(TimeoutError):
                status = read_reply(connection)[0]
                break
        assert status == 408 and time.monotonic() - start_time < 8
        connection.settimeout(20)
        assert is_closed(connection, seconds=10)


def test_two_hundred_slow_sockets_do_not_shut_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ServeLimits(header_seconds=3, body_seconds=3, max_connections=300)
    with running(monkeypatch, limits=limits) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(200)]
        for index, connection in enumerate(slow):
            connection.sendall(post_head(1000)[:-4] if index % 2 else post_head(1000) + b"--")
        body = form(b"one")
        for _ in range(5):
            with server.connect() as connection:
                connection.sendall(post_head(len(body)) + body)
                assert read_reply(connection)[0] == 200
        assert all(is_closed(connection, seconds=15) for connection in slow)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), 400),
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v1/predict HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 150 + b"\r\n", 431),
    ],
)
def test_what_is_no_request_gets_a_problem(server: ServerThread, data: bytes, status: int) -> None:
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        got, headers, body = read_reply(connection)
        assert (got, headers["content-type"]) == (status, "application/problem+json")
        assert headers["x-content-type-options"] == "nosniff" and json.loads(body)["status"] == status
        assert is_closed(connection, seconds=10)


def test_of_a_huge_body_without_a_key_hardly_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    make_key(path, name="a", scopes=["predict"])
    with running(monkeypatch, keys=path) as server, server.connect() as connection:
        connection.sendall(post_head(300 * MEBIBYTE))
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.settimeout(5)
            for _ in range(300):
                connection.sendall(bytes(MEBIBYTE))
        status, headers, _ = read_reply(connection)
        assert (status, headers["connection"]) == (401, "close")
        assert server.n_read() <= 256 * 1024


def test_one_connection_too_many_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ServeLimits(max_connections=3)
    with running(monkeypatch, limits=limits) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(3)]
        connections[0].sendall(GET)
        assert read_reply(connections[0])[0] == 200
        with server.connect() as connection:
            assert is_closed(connection, seconds=5)
        connections[1].close()
        deadline = time.monotonic() + 5
        status = 0
        while status != 200 and time.monotonic() < deadline:
            with server.connect() as connection, contextlib.suppress(ConnectionError):
                connection.sendall(GET)
                status = read_reply(connection)[0]
        assert status == 200


def test_a_stop_answers_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    with contextlib.ExitStack() as stack:
        with running(monkeypatch) as server:
            server.worker.wait = lambda: go.wait(20)
            connection = stack.enter_context(server.connect())
            body = form(b"one")
            connection.sendall(post_head(len(body)) + body)
            while not server.worker.batches:
                time.sleep(0.01)
            threading.Timer(0.5, go.set).start()
        assert read_reply(connection)[0] == 200
        assert is_closed(connection, seconds=5)
