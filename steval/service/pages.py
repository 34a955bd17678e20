"""What the addresses answer that need no queue: the page and its files, the model card, names, the description, metrics."""

from importlib.resources import files
from pathlib import PurePath

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from steval.errors import ServiceError
from steval.service.forms import LONGEST_NAME, MOST_LISTED, MOST_OFFSET, SHOWN_NAMES
from steval.service.http.conditional import tagged
from steval.service.http.telemetry import exposition
from steval.service.openapi import openapi_document
from steval.service.predict.search import search_perturbations
from steval.service.runtime import Runtime
from steval.service.schemas import ModelList
from steval.service.score.handlers import REPORT_POLICY
from steval.wording import whole_number

PAGE_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
FRAME_POLICY = f"{REPORT_POLICY}; frame-ancestors 'self'"
"""For the frame that the page shows reports in: what a report may do, and framed by the page alone."""
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_FILES = frozenset(
    (
        "index.html", "frame.html", "style.css", "icon.svg", "app.js", "batches.js", "call.js", "chart.js", "compare.js", "dom.js",
        "names.js", "prediction.js", "score.js", "views.js",
    )
)  # fmt: skip


async def page(request: Request) -> Response:
    """The page, or one of its files."""
    name = request.path_params.get("name", "index.html")
    if name not in PAGE_FILES:
        raise HTTPException(404)
    content = await run_in_threadpool((files("steval.service") / "page" / name).read_bytes)
    policy = FRAME_POLICY if name == "frame.html" else PAGE_POLICY
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return tagged(request.headers, content, _MEDIA_TYPES[PurePath(name).suffix], headers)


async def model(request: Request) -> Response:
    """The model card."""
    async with _runtime(request).using(*_asked(request)) as chosen:
        return _json(request, chosen.card)


async def models(request: Request) -> Response:
    """The models that can be asked."""
    runtime = _runtime(request)
    runtime.require_ready()
    return _json(request, ModelList(models=runtime.models.items()))


async def perturbations(request: Request) -> Response:
    """Names of the vocabulary that match a search."""
    search = request.query_params.get("search", "")
    if len(search) > LONGEST_NAME:
        raise ServiceError(f"search takes at most {LONGEST_NAME} characters", status=422, code="breaks_a_rule")
    limit = _number(request, "limit", SHOWN_NAMES, 1, MOST_LISTED)
    offset = _number(request, "offset", 0, 0, MOST_OFFSET)
    async with _runtime(request).using(*_asked(request)) as chosen:
        return _json(request, await run_in_threadpool(search_perturbations, chosen.manifest, search, limit, offset))


async def openapi(request: Request) -> Response:
    """The description of the addresses."""
    return JSONResponse(openapi_document(request.app.state.routes))


async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    content, media_type = await run_in_threadpool(exposition)
    return Response(content, headers={"Content-Type": media_type})


def _asked(request: Request) -> list[str | None]:
    """The model, and the adapter to it, that the query names."""
    names = {what: request.query_params.get(what) for what in ("model", "adapter")}
    for what, name in names.items():
        if name is not None and not 1 <= len(name) <= LONGEST_NAME:
            raise ServiceError(f"{what} takes 1 to {LONGEST_NAME} characters", status=422, code="breaks_a_rule")
    return list(names.values())


def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


def _json(request: Request, answer: BaseModel) -> Response:
    headers = {"Cache-Control": "private, no-cache", "Vary": "Authorization, X-API-Key"}
    return tagged(request.headers, answer.model_dump_json().encode(), "application/json", headers)


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    number = whole_number(text)
    if number is None:
        raise ServiceError(f"{name} must be a whole number, got {text[:50]!r}", status=400, code="bad_request")
    if not least <= number <= most:
        raise ServiceError(f"{name} must be between {least} and {most}, got {text}", status=422, code="breaks_a_rule")
    return number
