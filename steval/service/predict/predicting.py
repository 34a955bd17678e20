"""`POST /predict`: from a validated body to an answer, through the batcher.

A request is measured and admitted (`Admission`) before anything is planned. Plans and answers are made by the functions of
`steval predict` (`make_plan`, `predicted_means`, `write_predictions`); the cells between them come from the batcher's queue
(`QueuedCells`). That work, planning included, is done in one thread; when a client leaves, its queued cells are closed and the
thread ends at its next set.
"""

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from steval import __version__
from steval.errors import ServiceError
from steval.predictor.cells.predicted import PredictedBlock, PredictedSet
from steval.predictor.means import PredictedMean, predicted_means
from steval.predictor.output import write_predictions
from steval.predictor.plan import PredictionPlan
from steval.service.forms import ARROW, H5AD, JSON, Format, choose_format, wants_zstd
from steval.service.http.conditional import has_tag, not_modified
from steval.service.http.encoding import compress, compressed, json_array, json_numbers, json_object
from steval.service.http.quotas import Charge, taken
from steval.service.http.tenants import CELLS
from steval.service.http.tracing import UNTRACED, Trace
from steval.service.models.loaded import Model
from steval.service.predict.admission import Admission, Place
from steval.service.predict.arrow import answer_facts, arrow_pieces
from steval.service.predict.cache import AnswerCache
from steval.service.predict.queued import QueuedCells
from steval.service.runtime import Runtime
from steval.service.schemas import PredictBody
from steval.settings import json_digest
from steval.wording import counted

T = TypeVar("T")
R = TypeVar("R", bound=Response)
SMALLEST_COMPRESSED = 1024
_HEADERS = {"Vary": "Accept, Accept-Encoding, Authorization, X-API-Key", "Cache-Control": "private, no-cache"}
"""A client may keep an answer, and asks with its tag whether it is still right."""
_END = object()


class PredictionService:
    """Answers prediction requests of one worker."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._threads = ThreadPoolExecutor(
            max_workers=runtime.settings.max_requests, thread_name_prefix="steval-answer"
        )

        self._cache = AnswerCache(runtime.settings.max_cache_bytes, runtime.metrics)
        self._admission = Admission(runtime.settings.max_queued_cells, runtime.settings.queue_timeout)

    def close(self) -> None:
        """End the threads when they have finished."""
        self._threads.shutdown()

    async def predict(
        self, body: PredictBody, headers: Headers, owner: str, charge: Charge | None = None, trace: Trace = UNTRACED
    ) -> Response:
        """The answer to a request of the key `owner`; raises `StevalError` for everything that is no success."""
        kind = choose_format(headers.get("accept", ""), body.output)
        began = time.monotonic()
        with trace.span("model"):
            lease = await self._runtime.lease(body.model, body.adapter)
        model = lease.model
        try:
            _require_size(model, body, kind)
            tag = answer_tag(model, body, kind)
            if has_tag(headers, tag):
                self._runtime.metrics.cache("not_modified")
                lease.close()
                return not_modified(tag, _HEADERS)
            zstd = wants_zstd(headers.get("accept-encoding", "")) and kind != "h5ad"
            if kind == "json" and (known := self._cache.get(owner, tag)) is not None:
                lease.close()
                return _tagged(_whole(known, JSON, zstd), tag)
            with trace.span("admission"):
                place = await self._admitted(owner, body.num_cells, charge)
        except BaseException:
            lease.close()
            raise
        left = model.settings.request_timeout - (time.monotonic() - began)
        queued = QueuedCells(lease, place, left, trace)
        streaming = False
        try:
            if kind == "json":
                content = await self._run(_summary, model, queued, body)
                self._cache.put(owner, tag, content)
                return _tagged(_whole(content, JSON, zstd), tag)
            if kind == "h5ad":
                return _tagged(await self._file(model, queued, body), tag)
            answer = await self._stream(model, queued, body, zstd)
            streaming = True
            return _tagged(answer, tag)
        except CancelledError as error:
            raise ServiceError("the request was given up", status=503, code="cancelled") from error
        finally:
            if not streaming:
                queued.close()

    async def _admitted(self, owner: str, num_cells: int, charge: Charge | None) -> Place:
        """A place in the queue, charged to the key; what found none costs nothing."""
        with taken(charge, {CELLS: num_cells}):
            return await self._admission.admit(owner, num_cells)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *args))

    async def _stream(self, model: Model, queued: QueuedCells, body: PredictBody, zstd: bool) -> StreamingResponse:
        pieces = _arrow(model, queued, body)
        first = await self._run(next, pieces)

        async def content() -> AsyncIterator[bytes]:
            yield first
            while (piece := await self._run(next, pieces, _END)) is not _END:
                yield piece

        answer = compressed(content()) if zstd else content()
        return _Stream(answer, queued, media_type=ARROW, headers=_headers(zstd))

    async def _file(self, model: Model, queued: QueuedCells, body: PredictBody) -> FileResponse:
        path = self._runtime.scratch / f"{secrets.token_hex(8)}.h5ad"
        try:
            await self._run(_write, path, queued, body, model)
        except BaseException:
            queued.close()  # first: a thread that finishes the file after this removes it itself
            path.unlink(missing_ok=True)
            raise
        return _TemporaryFile(path, media_type=H5AD, filename="predictions.h5ad")


def _require_size(model: Model, body: PredictBody, kind: Format) -> None:
    """A `ServiceError` 413 where more is asked for than one request may."""
    settings = model.settings
    if body.num_cells > settings.max_cells:
        raise ServiceError(
            f"the request asks for {counted(body.num_cells, 'cell')} of "
            f"{counted(len(body.perturbations), 'perturbation')}; the limit is "
            f"{settings.max_cells:,} a request: send several",
            status=413,
            code="too_many_cells",
        )
    num_values = len(body.perturbations) * len(model.genes)
    if kind == "json" and num_values > settings.max_json_values:
        raise ServiceError(
            f"{counted(len(body.perturbations), 'profile')} of {counted(len(model.genes), 'gene')}: "
            f"{counted(num_values, 'number')}; the limit for JSON is "
            f"{settings.max_json_values:,}: ask for Accept: {ARROW} or {H5AD}",
            status=413,
            code="too_large_for_json",
        )


def _plan(model: Model, queued: QueuedCells, body: PredictBody) -> PredictionPlan:
    with queued.trace.span("planning"):
        return model.predictor.plan(body.to_request(), model.pool)


def _decoded(model: Model, plan: PredictionPlan, queued: QueuedCells) -> Iterator[PredictedBlock]:
    """The cells of `plan` as the checkpoint's decoding says; what it asks of the network goes through the queue."""
    return model.predictor.decoder.chosen(plan.request.decoding).blocks(
        plan, lambda inner, _: (PredictedBlock([one.planned], one.cells) for one in queued.admit(inner))
    )


def _sets(blocks: Iterator[PredictedBlock]) -> Iterator[PredictedSet]:
    return (one for block in blocks for one in block.split())


def _write(path: Path, queued: QueuedCells, body: PredictBody, model: Model) -> None:
    """The file of `steval predict`; none where the client has left meanwhile."""
    plan = _plan(model, queued, body)
    with queued.trace.span("encoding"):
        write_predictions(path, plan, _decoded(model, plan, queued), model.predictor.facts_of(plan, "steval serve"))
    if queued.closed:
        path.unlink(missing_ok=True)


def _summary(model: Model, queued: QueuedCells, body: PredictBody) -> bytes:
    """The JSON of `schemas.PredictAnswer`."""
    plan = _plan(model, queued, body)
    profiles = list(predicted_means(plan, _sets(_decoded(model, plan, queued))))
    with queued.trace.span("encoding"):
        return _summary_json(model, plan, profiles)


def _summary_json(model: Model, plan: PredictionPlan, profiles: list[PredictedMean]) -> bytes:
    cell_types = {profile.cell_type for profile in profiles}
    expected = {
        (one["perturbation"], one["cell_type"], one["batch"]): {key: one[key] for key in ("mae", "low", "high")}
        for one in model.predictor.expected_errors(plan) or ()
    }
    predictions = [
        json_object(
            {
                "perturbation": profile.item.perturbation,
                "cell_type": profile.cell_type,
                "batch": profile.batch,
                "num_cells": profile.num_cells,
                "expected_error": expected.get((profile.item.perturbation, profile.cell_type, profile.batch)),
            },
            {"mean": json_numbers(profile.mean)},
        )
        for profile in profiles
    ]
    controls = [piece for cell_type, piece in model.control_json.items() if cell_type in cell_types]
    raw = {"genes": model.genes_json, "controls": json_array(controls), "predictions": json_array(predictions)}
    return json_object(answer_facts(model.card.checkpoint, model.manifest, plan.request), raw)


def _arrow(model: Model, queued: QueuedCells, body: PredictBody) -> Iterator[bytes]:
    plan = _plan(model, queued, body)
    with queued.trace.span("encoding"):
        yield from arrow_pieces(plan, _sets(_decoded(model, plan, queued)), model.card.checkpoint, model.pool.names)


def answer_tag(model: Model, body: PredictBody, kind: Format) -> str:
    """The tag of an answer: weak, because what shares a batch moves values by float32 rounding."""
    what = {
        "steval": __version__,
        "checkpoint": model.predictor.digest,
        "controls": model.controls_version,
        "dtype": model.predictor.dtype,
        "device": str(model.predictor.device),
        "form": kind,
        "body": body.model_copy(update={"model": None, "adapter": None}).as_dict(),
    }
    return f'W/"{json_digest(what)[:32]}"'


def _tagged(answer: R, tag: str) -> R:
    answer.headers["ETag"] = tag
    return answer


def _headers(zstd: bool) -> dict[str, str]:
    return _HEADERS | ({"Content-Encoding": "zstd"} if zstd else {})


def _whole(content: bytes, media_type: str, zstd: bool) -> Response:
    zstd = zstd and len(content) >= SMALLEST_COMPRESSED
    return Response(compress(content) if zstd else content, media_type=media_type, headers=_headers(zstd))


class _Stream(StreamingResponse):
    """A stream that closes its queued cells however it ends."""

    def __init__(self, content: AsyncIterator[bytes], queued: QueuedCells, **options: Any):
        super().__init__(content, **options)
        self._queued = queued

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._queued.close()


class _TemporaryFile(FileResponse):
    """A file that is removed when it has been sent, or could not be."""

    def __init__(self, path: Path, **options: Any):
        super().__init__(path, headers=_HEADERS, **options)
        self._temporary = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._temporary.unlink(missing_ok=True)
