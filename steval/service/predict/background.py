"""What `/predictions` answers: predictions in the background, for more cells than a request may have."""

from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from steval.errors import ConfigError, OutputError, ServiceError
from steval.machine import num_cores
from steval.service.forms import ARROW, H5AD
from steval.service.http.access import CHARGE, KEY_NAME, NOBODY
from steval.service.http.answers import disk_answer, error_answer, validation_answer
from steval.service.http.observe import AUDIT
from steval.service.http.quotas import Charge, taken
from steval.service.http.tenants import CELLS, JOBS
from steval.service.http.tracing import TRACE, Trace
from steval.service.jobs.files import SCORE
from steval.service.jobs.store import ENDED, JobStore
from steval.service.models.loaded import Model
from steval.service.predict.job_process import NAMES
from steval.service.runtime import Runtime
from steval.service.schemas import PredictionJob, PredictionJobs, PredictionsBody
from steval.wording import counted

SOON = 2
_MEDIA_TYPES = {"h5ad": H5AD, "arrow": ARROW}


async def submit(request: Request) -> Response:
    """Submit a prediction in the background."""
    runtime, owner = _runtime(request), _owner(request)
    try:
        body = PredictionsBody.model_validate_json(await request.body())
    except ValidationError as error:
        return validation_answer([dict(item) for item in error.errors(include_input=False, include_context=False)])
    async with runtime.using(body.model, body.adapter) as model:
        body = body.for_all(model.predictor.known)
        _require_size(body, runtime.settings.max_prediction_cells)
        try:
            await run_in_threadpool(_require_possible, model, body)
        except ConfigError as error:
            return error_answer(error, 422)  # the body was well formed: it asks for what cannot be predicted
        found = runtime.find(body.model, body.adapter)
        details = _details(runtime, model, body)
    charge: Charge | None = request.scope.get(CHARGE)
    facts = {"model": found.name, "cells": body.num_cells, "form": body.form}
    try:
        with taken(charge, {JOBS: 1, CELLS: body.num_cells}):
            job = await run_in_threadpool(_put, runtime, owner, details, request.scope[TRACE], facts)
    except (OSError, OutputError) as error:
        raise disk_answer(error) from error
    runtime.prediction_runner.wake()
    request.scope[AUDIT] |= {"job": job.id, "model": found.name, "adapter": body.adapter, "cells": body.num_cells}
    return await _job_answer(request, job, status=202)


async def listing(request: Request) -> Response:
    """The key's own predictions."""
    jobs = await run_in_threadpool(_listed, _runtime(request).predictions, _owner(request))
    return JSONResponse(PredictionJobs(jobs=jobs).as_dict(), headers={"Cache-Control": "private, no-store"})


async def status(request: Request) -> Response:
    """State and progress of a prediction."""
    return await _job_answer(request, await _job(request))


async def result(request: Request) -> Response:
    """The file of a prediction that is done."""
    job = await _job(request)
    if job.state != "done":
        raise ServiceError(
            f"the prediction is {job.state}, so it has no result" + ("" if job.state in ENDED else " yet"),
            status=409,
            code=f"job_{job.state}",
            retry_after=None if job.state in ENDED else SOON,
        )
    name = NAMES[job.form]
    path = _runtime(request).predictions.path(job.id) / SCORE / name
    headers = {"Cache-Control": "private, no-store"}
    return FileResponse(path, media_type=_MEDIA_TYPES[job.form], filename=name, headers=headers)


async def remove(request: Request) -> Response:
    """Cancel a prediction that has not ended, remove one that has."""
    store, job = _runtime(request).predictions, await _job(request)
    if job.state in ENDED:
        await run_in_threadpool(store.remove, job.id)
        return Response(status_code=204)
    job = await run_in_threadpool(store.cancel, job)
    _runtime(request).prediction_runner.wake()
    return await _job_answer(request, job, status=202)


def _put(runtime: Runtime, owner: str, details: dict[str, Any], trace: Trace, facts: dict[str, Any]) -> PredictionJob:
    job_id = runtime.predictions.reserve(owner)
    try:
        return runtime.predictions.submit(job_id, details, trace, **facts)
    except BaseException:
        runtime.predictions.remove(job_id)
        raise


def _details(runtime: Runtime, model: Model, body: PredictionsBody) -> dict[str, Any]:
    """What the job's process needs."""
    settings = runtime.settings
    return {
        "body": body.as_dict(),
        "checkpoint": str(model.shared.path),
        "adapter": None if model.base is None else str(model.predictor.path),
        "controls": None if model.controls is None else str(model.controls),
        "device": settings.device,
        "dtype": settings.dtype,
        "batch_cells": settings.batch_cells,
        "threads": settings.threads or max(1, num_cores() // settings.workers),
        "max_bytes": settings.max_prediction_bytes,
    }


def _require_size(body: PredictionsBody, most: int) -> None:
    if body.num_cells > most:
        raise ServiceError(
            f"the request asks for {counted(body.num_cells, 'cell')} of "
            f"{counted(len(body.perturbations), 'perturbation')}; the limit is {most:,} a job: "
            "send several",
            status=413,
            code="too_many_cells",
        )


def _require_possible(model: Model, body: PredictionsBody) -> None:
    """Whether names, cell types and batches are the model's: planned with one cell each. Raises what a prediction would."""
    one_each = [item.model_copy(update={"num_cells": 1}) for item in body.perturbations]
    model.predictor.plan(body.model_copy(update={"perturbations": one_each}).to_request(), model.pool)


def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


def _owner(request: Request) -> str:
    return request.scope.get(KEY_NAME) or NOBODY


async def _job(request: Request) -> PredictionJob:
    return await run_in_threadpool(_runtime(request).predictions.require, request.path_params["id"], _owner(request))


def _listed(store: JobStore[PredictionJob], owner: str) -> list[PredictionJob]:
    return [_with_progress(store, job) for job in store.of_owner(owner)]


def _with_progress(store: JobStore[PredictionJob], job: PredictionJob) -> PredictionJob:
    """The job with its `cells_done`, which no record on disk has: its state settles it, and while it runs its process says it."""
    done = job.cells if job.state == "done" else store.progress(job.id) if job.state == "running" else 0
    return job.model_copy(update={"cells_done": done})


async def _job_answer(request: Request, job: PredictionJob, status: int = 200) -> JSONResponse:
    job = await run_in_threadpool(_with_progress, _runtime(request).predictions, job)
    headers = {} if job.state in ENDED else {"Retry-After": str(SOON)}
    if status == 202:
        headers["Location"] = f"/predictions/{job.id}"
    return JSONResponse(job.as_dict(), status_code=status, headers=headers)
