"""Everything but `POST /predict` and health, as a Starlette application that BentoML mounts at `/`.

Its `state` holds the table of routes, and `runtime`, set when a worker starts.
"""

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from steval.errors import StevalError
from steval.service.http.answers import code_of, error_answer, shaped
from steval.service.routes import ROUTES


def make_site() -> Starlette:
    """The application; `site.state.runtime` is to be set before requests come."""
    routes = [
        Route(route.path, operation.handler, methods=[operation.method])
        for route in ROUTES
        for operation in route.operations
        if operation.handler is not None
    ]
    handlers: dict[Any, Any] = {StevalError: _on_error, HTTPException: _on_http_error}
    site = Starlette(routes=routes, exception_handlers=handlers)
    site.state.routes = ROUTES
    return site


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StevalError)
    return error_answer(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return shaped(error.status_code, code_of(error.status_code), str(error.detail))
