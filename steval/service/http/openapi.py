"""`/openapi.json`: an OpenAPI 3.1 document made from the schemas (BentoML's own at `/docs.json` is not valid)."""

import functools
from typing import Any

from pydantic.json_schema import models_json_schema

from steval import __version__
from steval.service.http.encoding import ARROW, H5AD, JSON
from steval.service.schemas import (
    ErrorAnswer,
    ModelCard,
    PerturbationList,
    PredictAnswer,
    PredictBody,
    ScoreBody,
    ScoreJob,
)

_MODELS = (ErrorAnswer, ModelCard, PerturbationList, PredictAnswer, PredictBody, ScoreJob)
_ERRORS = {
    400: "Malformed: not JSON, wrong types, missing or unknown keys",
    401: "No API key, or one that is not known",
    403: "A web page of another origin",
    404: "Unknown perturbation (with the nearest names), job or address",
    405: "Another method",
    406: "None of the forms in Accept can be made",
    408: "The body came too slowly",
    409: "The job has no result",
    413: "Too large: bytes, cells, or numbers for JSON",
    415: "Another media type",
    422: "Well formed, but breaks a rule",
    429: "Too many requests in progress; see Retry-After",
    503: "Not ready, or the queue is full; see Retry-After",
}
_ALWAYS = (401, 403)
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "description": "As POST /score answered it",
}


_JOB_LINKS = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("scoreStatus", "scoreResult", "removeScore")
}


@functools.cache
def openapi_document() -> dict[str, Any]:
    """The document; the same for every checkpoint."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "steval",
            "version": __version__,
            "description": "Predicted cells of a State Transition checkpoint, and scores of predictions.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "tags": [{"name": name} for name in ("predict", "score", "operate")],
        "paths": {**_predict_paths(), **_score_paths(), **_operate_paths()},
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _predict_paths() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "/predict": {
            "post": _operation(
                "predict",
                "Predict perturbations",
                "predict",
                {
                    "200": _success(
                        "The prediction, in the form that Accept asks for", PredictAnswer, {ARROW: binary, H5AD: binary}
                    )
                },
                (400, 404, 406, 408, 413, 415, 422, 429, 503),
                requestBody={"required": True, "content": {JSON: {"schema": _ref(PredictBody)}}},
            )
        },
        "/model": {
            "get": _operation("model", "The model card", "predict", {"200": _success("The card", ModelCard)}, (503,))
        },
        "/perturbations": {
            "get": _operation(
                "perturbations",
                "Search the vocabulary",
                "predict",
                {"200": _success("Names that match", PerturbationList)},
                (400, 422, 503),
                parameters=[
                    _query("search", {"type": "string", "maxLength": 512, "default": ""}),
                    _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}),
                    _query("offset", {"type": "integer", "minimum": 0, "maximum": 2**31, "default": 0}),
                ],
            )
        },
    }


def _score_paths() -> dict[str, Any]:
    upload = {role: {"type": "string", "format": "binary"} for role in ("predictions", "real", "train")}
    options = {name: value for name, value in ScoreBody.model_json_schema()["properties"].items() if name not in upload}
    form = {
        "type": "object",
        "properties": {**upload, **options},
        "required": ["predictions"],
        "additionalProperties": False,
    }
    named = {"type": "string", "pattern": r"\.h5ad$", "maxLength": 4096}
    body = {**ScoreBody.model_json_schema(), "required": ["predictions"]}
    body["properties"] = {**body["properties"], "predictions": {**body["properties"]["predictions"], **named}}
    del body["properties"]["predictions"]["anyOf"], body["properties"]["predictions"]["default"]
    content = {"multipart/form-data": {"schema": form}, JSON: {"schema": body}}
    job = _success("The job", ScoreJob)
    files = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "/score": {
            "post": _operation(
                "submitScore",
                "Score predictions in the background",
                "score",
                {"202": {**_success("Accepted; ask Location for its state", ScoreJob), "links": _JOB_LINKS}},
                (400, 408, 413, 415, 422, 503),
                requestBody={"required": True, "content": content},
            )
        },
        "/score/{id}": {
            "parameters": [_ID],
            "get": _operation("scoreStatus", "State of a job", "score", {"200": job}, (404,)),
            "delete": _operation(
                "removeScore",
                "Cancel a job, or remove one that has ended",
                "score",
                {"202": _success("Being cancelled", ScoreJob), "204": {"description": "Removed"}},
                (404,),
            ),
        },
        "/score/{id}/result": {
            "parameters": [_ID],
            "get": _operation(
                "scoreResult",
                "score.json of a job",
                "score",
                {"200": {"description": "See docs/scoring.md", "content": {JSON: {"schema": {"type": "object"}}}}},
                (404, 409),
            ),
        },
        "/score/{id}/files/{name}": {
            "parameters": [_ID, {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": _operation(
                "scoreFile",
                "A file of the score directory",
                "score",
                {"200": {"description": "The file", "content": files}},
                (404, 409),
            ),
        },
    }


def _operate_paths() -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    healthy = {"200": {"description": "Yes", "content": text}}
    html = {"200": {"description": "The page", "content": {"text/html": {"schema": {"type": "string"}}}}}
    schema = {"200": {"description": "This document", "content": {JSON: {"schema": {"type": "object"}}}}}
    return {
        "/": {"get": _operation("page", "The page", "operate", html, ())},
        "/livez": {"get": _operation("livez", "Is the process alive?", "operate", healthy, ())},
        "/readyz": {"get": _operation("readyz", "Has the warm-up succeeded?", "operate", healthy, (503,))},
        "/metrics": {"get": _operation("metrics", "Prometheus metrics", "operate", healthy, ())},
        "/openapi.json": {"get": _operation("openapi", "This document", "operate", schema, ())},
    }


def _operation(
    name: str, summary: str, tag: str, successes: dict[str, Any], errors: tuple[int, ...], **more: Any
) -> dict[str, Any]:
    responses = dict(successes)
    for status in sorted({*_ALWAYS, *errors}):
        answer: dict[str, Any] = {"description": _ERRORS[status], "content": {JSON: {"schema": _ref(ErrorAnswer)}}}
        if status in (429, 503):
            answer["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
        responses[str(status)] = answer
    return {"operationId": name, "summary": summary, "tags": [tag], **more, "responses": responses}


def _success(description: str, model: type, others: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": _ref(model)}, **(others or {})}}


def _ref(model: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}
