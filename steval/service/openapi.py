"""`/openapi.json`: an OpenAPI 3.1 document made from the table of routes and the schemas (BentoML's own is not valid)."""

import functools
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from steval import __version__
from steval.service.forms import JSON
from steval.service.http.routing import Operation, Route, RouteTable
from steval.service.schemas import (
    ErrorAnswer,
    ModelCard,
    ModelList,
    PerturbationList,
    PredictAnswer,
    PredictBody,
    PredictionJob,
    PredictionJobs,
    PredictionsBody,
    ScoreJob,
    ScoreJobs,
)

BINARY = {"type": "string", "format": "binary"}
_MODELS = (
    *(ErrorAnswer, ModelCard, ModelList, PerturbationList, PredictAnswer, PredictBody),
    *(PredictionJob, PredictionJobs, PredictionsBody, ScoreJob, ScoreJobs),
)
_ERRORS = {
    400: "Malformed: not JSON, wrong types, missing or unknown keys",
    401: "No API key, or one that is not known",
    403: "A key without the role, or a web page of another origin",
    404: "Unknown perturbation (with the nearest names), model, job or address",
    405: "Another method",
    406: "None of the forms in Accept can be made",
    408: "The body came too slowly",
    409: "The job has no result",
    413: "Too large: bytes, cells, or numbers for JSON",
    415: "Another media type",
    422: "Well formed, but breaks a rule",
    429: "Too many requests in progress, or the key's quota is used; see Retry-After",
    507: "The service's disk is full",
    503: "Not ready, or the queue is full; see Retry-After",
}
_ALWAYS = (401, 403, 429)
_RETRIED = (429, 503)


@functools.cache
def openapi_document(routes: RouteTable) -> dict[str, Any]:
    """The document; the same for every checkpoint."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "steval",
            "version": __version__,
            "description": "Predicted cells of State Transition checkpoints, and scores of predictions.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "tags": [{"name": name} for name in ("predict", "score", "operate")],
        "paths": {route.path: _path_item(route) for route in routes if route.documented},
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def success(
    description: str,
    model: type[BaseModel],
    others: dict[str, Any] | None = None,
    *,
    status: str = "200",
    **more: Any,
) -> dict[str, Any]:
    """The response of a success: JSON of `model`, beside the contents `others`."""
    content = {**content_of(JSON, reference(model)), **(others or {})}
    return {status: {"description": description, "content": content, **more}}


def content_of(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's `content` of one media type."""
    return {media_type: {"schema": schema}}


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """A reference to a schema."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter of the query, which may be left out."""
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _path_item(route: Route) -> dict[str, Any]:
    item: dict[str, Any] = {"parameters": [dict(one) for one in route.parameters]} if route.parameters else {}
    return item | {one.method.lower(): _described(one) for one in route.operations}


def _described(operation: Operation) -> dict[str, Any]:
    responses = dict(operation.successes)
    for status in sorted({*_ALWAYS, *operation.errors}):
        answer: dict[str, Any] = {"description": _ERRORS[status], "content": content_of(JSON, reference(ErrorAnswer))}
        if status in _RETRIED:
            answer["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
        responses[str(status)] = answer
    about = {"operationId": operation.name, "summary": operation.summary, "tags": [operation.tag]}
    return {**about, **operation.more, "responses": responses}
