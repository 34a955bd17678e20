"""The table of addresses: path, methods, handlers, bodies, keys, metrics label, OpenAPI operation. Everything else reads it."""

from typing import Any

from steval.service import pages
from steval.service.forms import ARROW, H5AD, JSON, LONGEST_NAME, MOST_LISTED, MOST_OFFSET, MULTIPART, SHOWN_NAMES
from steval.service.http.routing import Operation, Route, RouteTable
from steval.service.http.tenants import ADMIN, PREDICT
from steval.service.http.tenants import SCORE as SCORES
from steval.service.openapi import BINARY, content_of, query, reference, success
from steval.service.predict import background
from steval.service.schemas import (
    BatchBoard,
    BatchList,
    ModelCard,
    ModelList,
    PerturbationList,
    PredictAnswer,
    PredictBody,
    PredictionJob,
    PredictionJobs,
    PredictionsBody,
    ScoreBody,
    ScoreJob,
    ScoreJobs,
)
from steval.service.score import batches
from steval.service.score import handlers as score
from steval.service.score.uploads import ROLES

_BODY = (400, 408, 413, 415, 422)
_HEALTHY = {"200": {"description": "Yes", "content": content_of("text/plain", {"type": "string"})}}
_UNCHANGED = {"304": {"description": "What If-None-Match names is still right"}}
_PAGE = {"200": {"description": "The page", "content": content_of("text/html", {"type": "string"})}}
_DOCUMENT = {"200": {"description": "This document", "content": content_of(JSON, {"type": "object"})}}
_SCORE = {"200": {"description": "See docs/scoring.md", "content": content_of(JSON, {"type": "object"})}}
_FILE = {"200": {"description": "The file", "content": content_of("*/*", BINARY)}}
_JOB_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "description": "As it was answered to the submission",
}
_BATCH_ID = {**_JOB_ID, "description": "As GET /batches lists it"}
_NAMED = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
_MODEL = [query("model", _NAMED), query("adapter", _NAMED)]
_FILE_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_JOB_LINKS = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("scoreStatus", "scoreResult", "removeScore")
}


_PREDICTION_LINKS = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("predictionStatus", "predictionResult", "removePrediction")
}
_CELLS = {"200": {"description": "The file", "content": content_of(H5AD, BINARY) | content_of(ARROW, BINARY)}}


def _score_body() -> dict[str, Any]:
    """Files beside form fields, or JSON with paths."""
    schema = ScoreBody.model_json_schema()
    options = {name: value for name, value in schema["properties"].items() if name not in ROLES}
    form = {
        "type": "object",
        "properties": {**dict.fromkeys(ROLES, BINARY), **options},
        "required": ["predictions"],
        "additionalProperties": False,
    }
    path = {"type": "string", "pattern": r"\.h5ad$", "maxLength": 4096}
    given = schema["properties"]["predictions"]
    predictions = {name: value for name, value in given.items() if name not in ("anyOf", "default")} | path
    named = {**schema, "required": ["predictions"], "properties": {**schema["properties"], "predictions": predictions}}
    return {"required": True, "content": {**content_of(MULTIPART, form), **content_of(JSON, named)}}


# Jobs of both kinds have the same addresses below their own. Each row stands whole all the same: a client's generator reads the
# names and sentences of both, and whoever looks for one finds it here by its words.
ROUTES = RouteTable(
    (
        Route(
            "/predict",
            (
                Operation(
                    "POST", "predict", "Predict perturbations", "predict",
                    success(
                        "The prediction, in the form that Accept asks for",
                        PredictAnswer,
                        content_of(ARROW, BINARY) | content_of(H5AD, BINARY),
                    )
                    | _UNCHANGED,
                    (*_BODY, 404, 406, 429, 503),
                    more={"requestBody": {"required": True, "content": content_of(JSON, reference(PredictBody))}},
                ),
            ),
            media_types=(JSON,),
            role=PREDICT,
        ),
        Route(
            "/predictions",
            (
                Operation(
                    "POST", "submitPrediction", "Predict in the background: a whole screen", "predict",
                    success("Accepted; ask Location for its state", PredictionJob, status="202", links=_PREDICTION_LINKS),
                    (*_BODY, 404, 503, 507), background.submit,
                    more={"requestBody": {"required": True, "content": content_of(JSON, reference(PredictionsBody))}},
                ),
                Operation(
                    "GET", "predictions", "The key's own predictions", "predict", success("Newest first", PredictionJobs), (503,),
                    background.listing,
                ),
            ),
            media_types=(JSON,),
            role=PREDICT,
        ),
        Route(
            "/predictions/{id}",
            (
                Operation(
                    "GET", "predictionStatus", "State and progress of a prediction", "predict",
                    success("The job", PredictionJob), (404,), background.status,
                ),
                Operation(
                    "DELETE", "removePrediction", "Cancel a prediction, or remove one that has ended", "predict",
                    success("Being cancelled", PredictionJob, status="202") | {"204": {"description": "Removed"}},
                    (404,), background.remove,
                ),
            ),
            parameters=(_JOB_ID,),
            role=PREDICT,
        ),
        Route(
            "/predictions/{id}/result",
            (Operation("GET", "predictionResult", "The predicted cells", "predict", _CELLS, (404, 409), background.result),),
            parameters=(_JOB_ID,),
            role=PREDICT,
        ),
        Route(
            "/model",
            (
                Operation(
                    "GET", "model", "The model card", "predict", success("The card", ModelCard) | _UNCHANGED, (404, 422, 503),
                    pages.model,
                    more={"parameters": _MODEL},
                ),
            ),
        ),
        Route(
            "/models",
            (
                Operation(
                    "GET", "models", "The models", "predict", success("All models", ModelList) | _UNCHANGED, (503,), pages.models,
                ),
            ),
        ),
        Route(
            "/perturbations",
            (
                Operation(
                    "GET", "perturbations", "Search the vocabulary", "predict",
                    success("Names that match", PerturbationList) | _UNCHANGED, (400, 404, 422, 503), pages.perturbations,
                    more={
                        "parameters": [
                            *_MODEL,
                            query("search", {"type": "string", "maxLength": LONGEST_NAME, "default": ""}),
                            query("limit", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": SHOWN_NAMES}),
                            query("offset", {"type": "integer", "minimum": 0, "maximum": MOST_OFFSET, "default": 0}),
                        ]
                    },
                ),
            ),
        ),
        Route(
            "/score",
            (
                Operation(
                    "POST", "submitScore", "Score predictions in the background", "score",
                    success("Accepted; ask Location for its state", ScoreJob, status="202", links=_JOB_LINKS),
                    (*_BODY, 404, 503, 507), score.submit,
                    more={"requestBody": _score_body()},
                ),
                Operation(
                    "GET", "scores", "The key's own scoring jobs", "score", success("Newest first", ScoreJobs), (503,),
                    score.listing,
                ),
            ),
            media_types=(JSON, MULTIPART),
            upload=True,
            role=SCORES,
        ),
        Route(
            "/score/{id}",
            (
                Operation("GET", "scoreStatus", "State of a job", "score", success("The job", ScoreJob), (404,), score.status),
                Operation(
                    "DELETE", "removeScore", "Cancel a job, or remove one that has ended", "score",
                    success("Being cancelled", ScoreJob, status="202") | {"204": {"description": "Removed"}},
                    (404,), score.remove,
                ),
            ),
            parameters=(_JOB_ID,),
            role=SCORES,
        ),
        Route(
            "/score/{id}/result",
            (Operation("GET", "scoreResult", "score.json of a job", "score", _SCORE, (404, 409), score.result),),
            parameters=(_JOB_ID,),
            role=SCORES,
        ),
        Route(
            "/score/{id}/files/{name}",
            (Operation("GET", "scoreFile", "A file of the score directory", "score", _FILE, (404, 409), score.file),),
            parameters=(_JOB_ID, _FILE_NAME),
            role=SCORES,
        ),
        Route(
            "/batches",
            (
                Operation(
                    "GET", "batches", "The batches in the service's data directories", "score",
                    success("Newest first", BatchList), (503,), batches.listing,
                ),
            ),
            role=SCORES,
        ),
        Route(
            "/batches/{id}",
            (
                Operation(
                    "GET", "batch", "The leaderboard of a batch", "score", success("Best first", BatchBoard), (404, 422),
                    batches.board,
                ),
            ),
            parameters=(_BATCH_ID,),
            role=SCORES,
        ),
        Route(
            "/batches/{id}/{job}/report",
            (
                Operation(
                    "GET", "batchReport", "The score report of a job of a batch", "score", _PAGE, (404, 422), batches.report,
                ),
            ),
            parameters=(_BATCH_ID, {**_FILE_NAME, "name": "job"}),
            role=SCORES,
        ),
        Route("/", (Operation("GET", "page", "The page", "operate", _PAGE, handler=pages.page),), public=True),
        Route(
            "/page/{name}",
            (Operation("GET", "pageFile", "A file of the page", "operate", _FILE, handler=pages.page),),
            public=True,
            documented=False,
        ),
        Route(
            "/livez",
            (Operation("GET", "livez", "Is the process alive?", "operate", _HEALTHY),),
            public=True,
            quiet=True,
        ),
        Route(
            "/readyz",
            (Operation("GET", "readyz", "Has the warm-up succeeded?", "operate", _HEALTHY, (503,)),),
            public=True,
            quiet=True,
        ),
        Route(
            "/healthz",
            (Operation("GET", "healthz", "Is the process alive?", "operate", _HEALTHY),),
            public=True,
            quiet=True,
            documented=False,
        ),
        Route(
            "/metrics",
            (Operation("GET", "metrics", "Prometheus metrics", "operate", _HEALTHY, handler=pages.metrics),),
            role=ADMIN,
            quiet=True,
        ),
        Route(
            "/openapi.json",
            (Operation("GET", "openapi", "This document", "operate", _DOCUMENT, handler=pages.openapi),),
            public=True,
        ),
    )
)  # fmt: skip
