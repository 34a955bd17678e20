"""What a worker holds: its models, which are loaded in the background, and its scoring jobs.

`state` goes from starting to ready, or to failed with the reason; `/readyz` tells it.
"""

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from steval.checkpoints.location import local
from steval.data.files import ScratchDirectory
from steval.errors import ServiceError, StevalError
from steval.machine import num_cores
from steval.service.http.telemetry import service_metrics
from steval.service.http.tracing import Tracing
from steval.service.jobs.runner import JobRunner, Work
from steval.service.jobs.store import JobStore
from steval.service.models.below import Found
from steval.service.models.loaded import Model
from steval.service.models.shelf import Lease, Shelf
from steval.service.models.threads import NetworkThread
from steval.service.private import shared_directory
from steval.service.schemas import PredictionJob, ScoreJob
from steval.service.score.work import ScoreWork
from steval.service.settings import ServiceSettings, require_checkpoint

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "failed", "stopping"]
STARTING_RETRY = 2.0


class Runtime:
    """A worker's life: `start` loads in the background, `close` drains."""

    def __init__(self, settings: ServiceSettings, tracing: Tracing):
        self.settings = settings
        self.metrics = service_metrics()
        self.state: State = "starting"
        self.reason = "the checkpoint is being loaded"
        self._networks = NetworkThread()
        self._default = None if settings.checkpoint is None else require_checkpoint(settings)
        self._adapters = {name: local(path) for name, path in settings.adapters.items()}
        self.models = Shelf(
            self._load_model,
            self.metrics,
            default=self._default,
            adapters=self._adapters,
            directory=settings.models,
            max_bytes=None if settings.models is None else settings.max_model_bytes,
            patience=settings.queue_timeout,
        )
        self._scratch = ScratchDirectory("steval-service")
        directory = settings.job_dir or shared_directory("jobs")
        most, ttl = settings.max_jobs, settings.job_ttl
        self.jobs: JobStore[ScoreJob] = JobStore(directory, ScoreJob, max_jobs=most, ttl=ttl)
        self.runner = JobRunner(self.jobs, ScoreWork(), settings, self.metrics, tracing)
        self.predictions: JobStore[PredictionJob] = JobStore(
            directory / "predictions", PredictionJob, max_jobs=most, ttl=ttl, what="prediction"
        )
        work = Work("prediction", "steval.service.predict.job_process")
        self.prediction_runner = JobRunner(self.predictions, work, settings, self.metrics, tracing)
        self._loader = threading.Thread(target=self._load, name="steval-start", daemon=True)
        self._stopping = threading.Event()

    @property
    def scratch(self) -> Path:
        """A directory for this worker's temporary files."""
        return self._scratch.path

    def require_ready(self) -> None:
        """A `ServiceError` 503 with the reason while nothing is served."""
        if self.state != "ready":
            retry = STARTING_RETRY if self.state == "starting" else None
            raise ServiceError(f"not ready: {self.reason}", status=503, code="not_ready", retry_after=retry)

    def find(self, model: str | None, adapter: str | None = None) -> Found:
        """The model that a request means, or an adapter to it, not loaded; raises `ServiceError`."""
        self.require_ready()
        return self.models.find(model, adapter)

    async def lease(self, model: str | None, adapter: str | None = None) -> Lease:
        """The model that a request means, loaded where it was not, for the caller to close; raises `ServiceError`."""
        self.require_ready()
        deadline = time.monotonic() + self.settings.queue_timeout
        while True:
            lease = self.models.lease(model, adapter)
            if lease is not None:
                return lease
            loading = asyncio.wrap_future(self.models.load(model, adapter))
            loading.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait((loading,), timeout=max(0.0, deadline - time.monotonic()))
            if not loading.done():
                raise ServiceError(
                    "the model is being loaded; come back after the time in Retry-After",
                    status=503,
                    code="model_loading",
                    retry_after=STARTING_RETRY,
                )
            await loading

    @asynccontextmanager
    async def using(self, model: str | None, adapter: str | None = None) -> AsyncGenerator[Model]:
        """As `lease`, closed at the end."""
        lease = await self.lease(model, adapter)
        try:
            yield lease.model
        finally:
            lease.close()

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._loader.start()

    def wait(self, timeout: float | None = None) -> State:
        """Wait until loading has ended, well or not."""
        self._loader.join(timeout)
        return self.state

    def close(self) -> None:
        """Finish what was accepted, then let everything go."""
        self._stopping.set()
        self._loader.join()
        self.state, self.reason = "stopping", "the service is shutting down"
        self.models.close()
        self.runner.stop()
        self.prediction_runner.stop()
        self._scratch.close()
        if self.settings.job_dir is None and self.settings.workers == 1:
            shutil.rmtree(self.jobs.directory, ignore_errors=True)

    def _load_model(self, found: Found, base: Model | None) -> Model:
        settings, shared = self.settings, None if base is None else base.shared
        is_given = found.path in (self._default, *self._adapters.values())
        controls = settings.controls if is_given else None
        return Model(found.path, settings, self.metrics, networks=self._networks, controls=controls, base=shared)

    def _load(self) -> None:
        import torch

        settings = self.settings
        torch.set_num_threads(settings.threads or max(1, num_cores() // settings.workers))
        try:
            self.models.refresh()
            if self._default is not None:
                self.models.bring_given()
            else:
                self._wait_for_any()
        except StevalError as error:
            self._fail(str(error))
            return
        except Exception as error:
            log.exception("the checkpoint could not be loaded")
            self._fail(f"internal error while loading: {type(error).__name__}")
            return
        self.models.watch(settings.model_poll_seconds)
        self.state, self.reason = "ready", "ready"
        log.info("ready: %s", self._default or settings.models)

    def _wait_for_any(self) -> None:
        """Until there is a checkpoint below the directory that can be served."""
        while not self.models.serves_any and not self._stopping.wait(self.settings.model_poll_seconds):
            self.reason = f"there is no checkpoint below {self.settings.models} yet"
            self.models.refresh()

    def _fail(self, reason: str) -> None:
        self.state, self.reason = "failed", reason
        log.error("not ready: %s", reason)
