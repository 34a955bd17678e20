"""Everything but `POST /predict` and health, as a Starlette application that BentoML mounts at `/`.

Its `state` holds `runtime`, set when a worker starts.
"""

from importlib.resources import files
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from steval.errors import ServiceError, StevalError
from steval.service.http.answers import error_answer, shaped
from steval.service.http.metrics import exposition
from steval.service.http.observe import route_template
from steval.service.http.openapi import openapi_document
from steval.service.predict.vocabulary import search_perturbations
from steval.service.runtime import Runtime
from steval.service.score import routes as score_routes

PAGE_FILES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "chart.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
MOST_LISTED = 1000
_ANY = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]
_METHODS = {
    **dict.fromkeys(("/predict", "/score"), "POST"),
    **dict.fromkeys(("/", "/model", "/perturbations", "/openapi.json", "/metrics"), "GET"),
    **dict.fromkeys(("/livez", "/readyz", "/healthz", "/page/{name}"), "GET"),
    **dict.fromkeys(("/score/{id}/result", "/score/{id}/files/{name}"), "GET"),
    "/score/{id}": "GET, DELETE",
}
"""What each address takes; asked where no route fits the method."""


def make_site() -> Starlette:
    """The application; `site.state.runtime` is to be set before requests come."""
    routes = [
        Route("/", _page, methods=["GET"]),
        Route("/page/{name}", _page, methods=["GET"]),
        Route("/model", _model, methods=["GET"]),
        Route("/perturbations", _perturbations, methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        *score_routes.routes(),
        Route("/{path:path}", _nothing_here, methods=_ANY),
    ]
    handlers: dict[Any, Any] = {StevalError: _on_error, HTTPException: _on_http_error}
    return Starlette(routes=routes, exception_handlers=handlers)


def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


async def _page(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    if name not in PAGE_FILES:
        raise HTTPException(404)
    content = await run_in_threadpool((files("steval.service") / "page" / name).read_bytes)
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(content, headers={**headers, "Content-Type": PAGE_FILES[name]})


async def _model(request: Request) -> Response:
    return _json(_runtime(request).model.card)


async def _perturbations(request: Request) -> Response:
    manifest = _runtime(request).model.manifest
    search = request.query_params.get("search", "")
    if len(search) > 512:
        raise ServiceError("search takes at most 512 characters", status=422, code="breaks_a_rule")
    limit = _number(request, "limit", 50, 1, MOST_LISTED)
    offset = _number(request, "offset", 0, 0, 2**31)
    return _json(await run_in_threadpool(search_perturbations, manifest, search, limit, offset))


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi_document())


async def _metrics(request: Request) -> Response:
    content, media_type = await run_in_threadpool(exposition)
    return Response(content, headers={"Content-Type": media_type})


async def _nothing_here(request: Request) -> Response:
    path = request.url.path
    allowed = _METHODS.get(route_template(path))
    if allowed is not None:
        return shaped(
            405, "method_not_allowed", f"{path} takes {allowed}, not {request.method}", headers={"Allow": allowed}
        )
    return shaped(404, "not_found", "there is nothing here; GET /openapi.json lists the addresses")


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StevalError)
    return error_answer(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {"Allow": error.headers["Allow"]} if error.headers and "Allow" in error.headers else {}
    codes = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
    return shaped(error.status_code, codes.get(error.status_code, "error"), str(error.detail), headers=headers)


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise ServiceError(f"{name} must be a whole number, got {text[:50]!r}", status=400, code="bad_request")
    if not least <= int(text) <= most:
        raise ServiceError(f"{name} must be between {least} and {most}, got {text}", status=422, code="breaks_a_rule")
    return int(text)
