"""The BentoML service: a thin shell around `runtime`, `predicting` and `site`.

Served by `steval serve CKPT`, by `bentoml serve` with STEVAL_CHECKPOINT set, or from a bento. The module is imported by the
supervisor, by each worker and by `bentoml build`; torch and the checkpoint are loaded in workers alone.
"""

import os
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLConfigException
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from steval.errors import ConfigError, OutputError, StevalError
from steval.service.http import backstop, connections, journal
from steval.service.http.access import CHARGE, KEY_NAME, NOBODY, AccessMiddleware
from steval.service.http.answers import disk_answer, error_answer
from steval.service.http.body import BodyMiddleware
from steval.service.http.observe import AUDIT, ObserveMiddleware
from steval.service.http.quotas import Quotas
from steval.service.http.routing import GateMiddleware
from steval.service.http.telemetry import count_apart
from steval.service.http.tracing import HEADERS, TRACE, Tracing, require_exporter
from steval.service.private import shared_directory
from steval.service.routes import ROUTES
from steval.service.schemas import PredictBody
from steval.service.settings import ServiceSettings, require_checkpoint
from steval.service.site import make_site

try:
    SETTINGS = ServiceSettings.from_environment()
except StevalError as error:
    raise BentoMLConfigException(str(error)) from error
SITE = make_site()
TRACING = Tracing()
connections.install(SETTINGS.max_connections, SETTINGS.header_timeout, SETTINGS.send_timeout)
connections.stop_listening_first()
backstop.install()
BACKSTOP = max(SETTINGS.request_timeout + SETTINGS.body_timeout, SETTINGS.upload_timeout) + 30
"""BentoML's own time limit until the first byte: behind ours, which answer in our shape and stop the work."""


@bentoml.service(
    name="steval",
    workers=SETTINGS.workers,
    traffic={"timeout": BACKSTOP},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(SITE, path="/")
class StevalService:
    """Predicted cells of State Transition checkpoints, and scores."""

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Before any worker starts: the settings, and the checkpoint's header and digest."""
        from steval.checkpoints.manifest import read_manifest
        from steval.service.http.keys import read_keys

        try:
            if SETTINGS.checkpoint is not None or SETTINGS.models is None:
                read_manifest(require_checkpoint(SETTINGS))
            if SETTINGS.api_key_file is not None:
                read_keys(SETTINGS.api_key_file)
            require_exporter(os.environ)
        except StevalError as error:
            raise BentoMLConfigException(str(error)) from error

    def __init__(self) -> None:
        from steval.service.predict.predicting import PredictionService
        from steval.service.runtime import Runtime

        journal.configure()
        count_apart(shared_directory("metrics"))
        TRACING.start(os.environ)
        self._runtime = Runtime(SETTINGS, TRACING)
        self._predictions = PredictionService(self._runtime)
        SITE.state.runtime = self._runtime
        self._runtime.start()

    @bentoml.api(route="/predict")
    async def predict(self, body: PredictBody, /, ctx: bentoml.Context) -> Any:
        """Predicted mean profiles or cells of perturbations."""
        try:
            scope = ctx.request.scope
            scope[AUDIT] |= {"cells": body.num_cells, "model": body.model, "adapter": body.adapter}
            answer = await self._predictions.predict(
                body, ctx.request.headers, scope.get(KEY_NAME) or NOBODY, scope.get(CHARGE), scope[TRACE]
            )
        except OutputError as error:
            answer = error_answer(disk_answer(error))
        except ConfigError as error:
            answer = error_answer(error, 422)  # the body was well formed: it asks for what cannot be served
        except StevalError as error:
            answer = error_answer(error)
        ctx.response.status_code = answer.status_code  # BentoML would set 200 where the context is a parameter
        return answer

    async def __is_ready__(self) -> bool:
        if self._runtime.state != "ready":
            raise HTTPException(503, detail=f"not ready: {self._runtime.reason}")
        return True

    @bentoml.on_shutdown
    def finish(self) -> None:
        """After the last answer: drain the batcher, stop scoring jobs, remove temporary files."""
        self._predictions.close()
        self._runtime.close()
        TRACING.close()


CORS: dict[str, Any] = {
    "allow_origins": list(SETTINGS.cors_origins),
    "allow_methods": ["GET", "POST", "DELETE"],
    "allow_headers": ["Authorization", "Content-Type", "If-None-Match", "X-API-Key", "X-Request-ID", *HEADERS],
    "expose_headers": ["ETag", "X-Request-ID", "X-Error-Code", "Retry-After"],
    "max_age": 600,
}
ACCESS: dict[str, Any] = {
    "routes": ROUTES,
    "key_file": SETTINGS.api_key_file,
    "quotas": Quotas(lambda: (SETTINGS.job_dir or shared_directory("quotas")) / "quotas"),
    "no_auth": SETTINGS.no_auth,
    "origins": SETTINGS.cors_origins,
}
MIDDLEWARE: list[tuple[Any, dict[str, Any]]] = [
    (ObserveMiddleware, {"routes": ROUTES, "tracing": TRACING}),
    *([(CORSMiddleware, CORS)] if SETTINGS.cors_origins else []),
    (AccessMiddleware, ACCESS),
    (GateMiddleware, {"routes": ROUTES}),
    (BodyMiddleware, {"routes": ROUTES, "settings": SETTINGS}),
]
"""From the outermost to the innermost."""
for middleware, options in MIDDLEWARE:
    StevalService.add_asgi_middleware(middleware, **options)
