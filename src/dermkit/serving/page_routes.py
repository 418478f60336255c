"""The page for people at `/`: files of the package, each with the hash of its bytes as ETag.

No build step and no framework: docs/decisions/0024-the-page.md.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request, Response

from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.rules import ContentPolicy, RouteRule

_INDEX = "index.html"
_MEDIA_TYPES = MappingProxyType({
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
    ".js": "text/javascript; charset=utf-8",
})  # fmt: skip
PAGE_RULES = (
    RouteRule("/", policy=ContentPolicy.PAGE),
    RouteRule("/page/", is_prefix=True, policy=ContentPolicy.PAGE),
)
"""What the paths of the page take: open to all, also where the API asks for keys, since it holds no answers."""


@dataclass(frozen=True)
class PageFile:
    """A file of the page, and what its answer says of it."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """Return the hash of the bytes as a strong ETag."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    def response(self, known_etags: str) -> Response:
        """Return the file, or 304 where a browser has these bytes. known_etags: its If-None-Match, "" = none."""
        # A browser asks each time, so that page and server are never of two versions.
        headers = {"etag": self.etag, "cache-control": "no-cache"}
        if self.etag in known_etags:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def read_page_files() -> Mapping[str, PageFile]:
    """Return name -> file of everything that the page is made of."""
    entries = sorted(files("dermkit.serving").joinpath("page").iterdir(), key=lambda entry: entry.name)
    return MappingProxyType({
        entry.name: PageFile(entry.read_bytes(), _MEDIA_TYPES[suffix])
        for entry in entries
        if (suffix := "." + entry.name.rpartition(".")[2]) in _MEDIA_TYPES
    })  # fmt: skip


def page_router() -> APIRouter:
    """Return the routes of the page; its files are read once."""
    router, page_files = APIRouter(), read_page_files()

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return page_files[_INDEX].response(request.headers.get("if-none-match", ""))

    @router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file(name: str, request: Request) -> Response:
        if name not in page_files:
            raise Problem(ProblemCode.NOT_FOUND)
        return page_files[name].response(request.headers.get("if-none-match", ""))

    return router
