"""The types of ASGI, which the middleware is written in, and what is read of a request's headers."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

AsgiScope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]


class ClientGone(Exception):
    """The client closed the connection before it had sent the whole request; nobody waits for an answer."""


def header_values(scope: AsgiScope, name: bytes) -> list[str]:
    """Return every value of a header, whose name is in lower case."""
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]


def single_header(scope: AsgiScope, name: bytes) -> str:
    """Return the value of a header, "" where it is absent or given more than once."""
    values = header_values(scope, name)
    return values[0] if len(values) == 1 else ""


async def drain(receive: Receive) -> bytes:
    """Return a whole body; what `receive` raises for one that is too long or too slow goes through."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
