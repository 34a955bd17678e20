"""What `/score` answers: submit, status, result, files, removal."""

from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from steval.errors import OutputError, ServiceError
from steval.machine import num_cores
from steval.service.http.access import CHARGE, KEY_NAME, NOBODY
from steval.service.http.answers import disk_answer, validation_answer
from steval.service.http.observe import AUDIT
from steval.service.http.quotas import taken
from steval.service.http.tenants import JOBS
from steval.service.http.tracing import TRACE
from steval.service.jobs.store import ENDED, INPUTS, SCORE, JobStore
from steval.service.runtime import Runtime
from steval.service.schemas import ScoreJob, ScoreJobs
from steval.service.score.confinement import Limits
from steval.service.score.uploads import InvalidBody, read_submission

REPORT_POLICY = "; ".join(
    (
        "sandbox allow-scripts allow-downloads",
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "img-src data:",
    )
)
"""For reports, whose text holds names that come from users' files: they get no access to the service's origin."""
MEDIA_TYPES = {
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
}
SOON = 2


def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


def _owner(request: Request) -> str:
    """Name of the key that asks."""
    return request.scope.get(KEY_NAME) or NOBODY


async def submit(request: Request) -> Response:
    """Submit a scoring job."""
    runtime = _runtime(request)
    try:
        with taken(request.scope.get(CHARGE), {JOBS: 1}):
            job, named = await _queued(request, runtime)
    except InvalidBody as error:
        return validation_answer(error.findings)
    except (OSError, OutputError) as error:
        raise disk_answer(error) from error
    runtime.runner.wake()
    request.scope[AUDIT] |= {"job": job.id, **named}
    return _job_answer(job, status=202)


async def _queued(request: Request, runtime: Runtime) -> tuple[ScoreJob, dict[str, str | None]]:
    """The job of a submission that is whole, and the model and adapter that it names; of any other nothing is left."""
    settings, store = runtime.settings, runtime.jobs
    job_id = await run_in_threadpool(store.reserve, _owner(request))
    try:
        body, files = await read_submission(request, store.path(job_id) / INPUTS, settings.data_dir)
        found = runtime.find(body.model, body.adapter)
        if "real" not in files and (found.manifest is None or found.manifest.evaluation is None):
            raise ServiceError(
                "the checkpoint records no evaluation data: give the real cells as `real`",
                status=422,
                code="breaks_a_rule",
            )
        limits = Limits(
            memory=settings.max_job_bytes,
            seconds=round(settings.job_timeout) * num_cores(),
            file_bytes=settings.max_upload_bytes,
        )
        details: dict[str, Any] = {
            "body": body.as_dict(),
            "files": files,
            "checkpoint": str(found.checkpoint_path),
            "adapter": None if found.adapter_path is None else str(found.adapter_path),
            "data_dirs": [str(path) for path in settings.data_dir],
            "threads": settings.threads,
            "max_values": settings.max_score_values,
            "recorded": found.recorded_files,
            "limits": asdict(limits),
        }
        named = {"model": body.model, "adapter": body.adapter}
        return await run_in_threadpool(store.submit, job_id, details, request.scope[TRACE]), named
    except Exception:
        await run_in_threadpool(store.remove, job_id)  # up to gigabytes of an upload
        raise
    except BaseException:  # cancelled: there is nothing to wait with
        store.remove(job_id)
        raise


async def listing(request: Request) -> Response:
    """The key's own jobs."""
    jobs = await run_in_threadpool(_runtime(request).jobs.of_owner, _owner(request))
    return JSONResponse(ScoreJobs(jobs=jobs).as_dict(), headers={"Cache-Control": "private, no-store"})


async def status(request: Request) -> Response:
    """State of a job."""
    return _job_answer(await _job(request))


async def result(request: Request) -> Response:
    """`score.json` of a finished job."""
    job = await _finished(request)
    return await _send_file(_runtime(request).jobs, job, "score.json")


async def file(request: Request) -> Response:
    """A file of a finished job's score directory."""
    job = await _finished(request)
    name = request.path_params["name"]
    if name not in job.files:
        raise ServiceError(
            f"the job has no file {name[:100]!r}; it has {', '.join(job.files)}", status=404, code="not_found"
        )
    return await _send_file(_runtime(request).jobs, job, name)


async def remove(request: Request) -> Response:
    """Cancel a job that has not ended, remove one that has."""
    store, job = _runtime(request).jobs, await _job(request)
    if job.state in ENDED:
        await run_in_threadpool(store.remove, job.id)
        return Response(status_code=204)
    job = await run_in_threadpool(store.cancel, job)
    _runtime(request).runner.wake()
    return _job_answer(job, status=202)


async def _job(request: Request) -> ScoreJob:
    return await run_in_threadpool(_runtime(request).jobs.require, request.path_params["id"], _owner(request))


async def _finished(request: Request) -> ScoreJob:
    job = await _job(request)
    if job.state != "done":
        raise ServiceError(
            f"the job is {job.state}, so it has no result" + ("" if job.state in ENDED else " yet"),
            status=409,
            code=f"job_{job.state}",
            retry_after=None if job.state in ENDED else SOON,
        )
    return job


async def _send_file(store: JobStore[ScoreJob], job: ScoreJob, name: str) -> Response:
    path = store.path(job.id) / SCORE / name
    headers = {"Cache-Control": "private, no-store"}
    if path.suffix == ".html":
        headers["Content-Security-Policy"] = REPORT_POLICY
    return FileResponse(path, media_type=MEDIA_TYPES.get(path.suffix, "application/octet-stream"), headers=headers)


def _job_answer(job: ScoreJob, status: int = 200) -> JSONResponse:
    headers = {} if job.state in ENDED else {"Retry-After": str(SOON)}
    if status == 202:
        headers["Location"] = f"/score/{job.id}"
    return JSONResponse(job.as_dict(), status_code=status, headers=headers)
