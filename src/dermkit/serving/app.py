"""The application: routes of the API, and the middleware around them, outermost first."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from dermkit import __version__
from dermkit.models.card import RESEARCH_ONLY
from dermkit.serving.asgi import AsgiApp, ClientGone
from dermkit.serving.auth import KeyGuard
from dermkit.serving.envelope import Envelope
from dermkit.serving.limits import RequestLimits
from dermkit.serving.problems import Problem, ProblemCode, problem_of_status
from dermkit.serving.routes import ServerState, router
from dermkit.serving.rules import API_RULES, MULTIPART_TYPE, PREDICT_PATH, RouteRule
from dermkit.serving.schemas import ModelAnswer
from dermkit.serving.settings import ServeLimits, ServeSettings

_ABOUT = (
    f"**{RESEARCH_ONLY}** Probabilities and decisions of one trained model for images of single skin lesions. Errors "
    "are problem+json with a closed set of codes."
)
PUBLIC_LIMITS = ("max_images", "max_image_bytes", "max_body_bytes", "max_waiting")


class _Api(FastAPI):
    """FastAPI whose description says how many images this server takes."""

    max_images = 0

    def openapi(self) -> dict[str, Any]:
        """Return /openapi.json."""
        document = super().openapi()
        body = document["paths"][PREDICT_PATH]["post"]["requestBody"]
        body["content"][MULTIPART_TYPE]["schema"]["properties"]["images"]["maxItems"] = self.max_images
        return document


def create_app(
    settings: ServeSettings, state: ServerState, *, guard: KeyGuard | None = None,
    routers: Sequence[APIRouter] = (), rules: Sequence[RouteRule] = (),
) -> AsgiApp:  # fmt: skip
    """Return the server as an ASGI application; its lifespan loads the model, and answers what waits at its end.

    guard: of API keys, None = none are asked for. routers, rules: paths beside those of the API, and what each takes;
    a path without a rule is not reached.
    """
    app = _Api(
        title="dermkit", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json", lifespan=_lifespan(state), redirect_slashes=False,
    )  # fmt: skip
    app.max_images = settings.limits.max_images
    app.state.server = state
    for one in (router, *routers):
        app.include_router(one)
    for kind in (Problem, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_problem)
    app.add_exception_handler(ClientGone, _answer_nobody)
    limited = RequestLimits(
        app, rules=(*API_RULES, *rules), settings=settings, guard=guard, check_room=state.check_room
    )
    return Envelope(limited, metrics=state.metrics, send_seconds=settings.limits.send_seconds)


def _lifespan(state: ServerState) -> Any:
    @contextlib.asynccontextmanager
    async def run(_app: FastAPI) -> AsyncIterator[None]:
        if state.facts is None:
            await load_model_facts(state)
        yield
        await state.queue.stop()

    return run


async def load_model_facts(state: ServerState) -> ModelAnswer:
    """Start the worker, and keep what the model is; raises the error of the loading."""
    facts = await state.queue.start()
    state.facts = ModelAnswer(**facts, limits=public_limits(state.limits))
    return state.facts


def public_limits(limits: ServeLimits) -> dict[str, float]:
    """Return the limits that a client has to know."""
    return {name: getattr(limits, name) for name in PUBLIC_LIMITS}


def _answer_problem(request: Request, error: Exception) -> Response:
    """Return the answer for anything that a route raises."""
    server: ServerState = request.app.state.server
    problem = _problem_of(error)
    server.metrics.count_problem(problem.code)
    response = Response(problem.body(request.state.request_id), problem.status)
    response.raw_headers = [*problem.response_headers(), *response.raw_headers]
    return response


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):  # the web framework's own
        return Problem(problem_of_status(error.status_code), closes=True)
    return Problem(ProblemCode.FAULT, closes=True)


def _answer_nobody(_request: Request, _error: Exception) -> Response:
    """Return what is sent to a client that is gone; the log shows its status."""
    return Response(status_code=499)
