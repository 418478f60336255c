"""What each path takes, as one table: it is read before a request's body is, and before the web framework sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dermkit.serving.problems import Problem, ProblemCode

PREDICT_PATH = "/v1/predict"
MULTIPART_TYPE = "multipart/form-data"
JSON_TYPE = "application/json"


class Scope(StrEnum):
    """What an API key may be for. `admin` allows everything."""

    PREDICT = "predict"
    EXPLAIN = "explain"
    FEEDBACK = "feedback"
    METRICS = "metrics"
    ADMIN = "admin"


class ContentPolicy(StrEnum):
    """The Content-Security-Policy of an answer: data that nothing is loaded from, or a page of this server."""

    DATA = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    PAGE = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
        "connect-src 'self'; media-src 'self' blob:; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )


@dataclass(frozen=True)
class RouteRule:
    """What one path takes.

    path: whole, or its beginning where `is_prefix`. methods: in upper case; HEAD goes with GET. scope: that a key must
    have where keys are asked for, None = open to all. content_type: of the body, "" = no body. max_body_bytes: of a
    body that holds no images, 0 = the limits of the server. needs_model: refused early while the queue is full.
    """

    path: str
    methods: tuple[str, ...] = ("GET", "HEAD")
    scope: Scope | None = None
    content_type: str = ""
    max_body_bytes: int = 0
    is_prefix: bool = False
    needs_model: bool = False
    policy: ContentPolicy = ContentPolicy.DATA

    def matches(self, path: str) -> bool:
        """Return whether a path is this rule's."""
        return path.startswith(self.path) if self.is_prefix else path == self.path


API_RULES = (
    RouteRule(PREDICT_PATH, ("POST",), Scope.PREDICT, MULTIPART_TYPE, needs_model=True),
    RouteRule("/v1/explain", ("POST",), Scope.EXPLAIN, MULTIPART_TYPE, needs_model=True),
    RouteRule("/v1/model", scope=Scope.PREDICT),
    RouteRule("/metrics", scope=Scope.METRICS),
    RouteRule("/health"),
    RouteRule("/ready"),
    RouteRule("/openapi.json"),
)


def find_rule(rules: Sequence[RouteRule], method: str, path: str) -> RouteRule:
    """Return the rule of a request; raises `Problem` for a path or a method that there is none for."""
    of_path = [rule for rule in rules if rule.matches(path)]
    if not of_path:
        raise Problem(ProblemCode.NOT_FOUND, closes=True)
    for rule in of_path:
        if method in rule.methods:
            return rule
    methods = ", ".join(dict.fromkeys(name for rule in of_path for name in rule.methods))
    raise Problem(
        ProblemCode.METHOD_NOT_ALLOWED, f"methods: {methods}", closes=True, headers=[(b"allow", methods.encode())]
    )
