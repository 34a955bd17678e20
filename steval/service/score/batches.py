"""What `/batches` answers: leaderboards and reports of batches that `steval batch` left in the service's data directories.

A client never names a path: a batch goes by a digest of its own, a job by a line of its leaderboard.
"""

import contextlib
import csv
import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from steval.data.outputs import real_path
from steval.errors import ConfigError, ServiceError
from steval.evaluator.spreadsheet import unguarded
from steval.service.runtime import Runtime
from steval.service.schemas import BatchBoard, BatchItem, BatchList, BatchRow
from steval.service.score.handlers import REPORT_POLICY

LEADERBOARD, MANIFEST, REPORT = "leaderboard.csv", "manifest.yaml", "score/report.html"
"""Of a batch's directory (the first two) and of a job's; see docs/deployment.md."""
MOST_BATCHES, MOST_BYTES = 200, 20 * 2**20
"""Batches that are listed, and bytes of a leaderboard that are read."""
_PRIVATE = {"Cache-Control": "private, no-cache"}


async def listing(request: Request) -> Response:
    """The batches."""
    found = await run_in_threadpool(lambda: [_item(path) for path in _batches(request)])
    newest = sorted(found, key=lambda one: one.changed, reverse=True)[:MOST_BATCHES]
    return JSONResponse(BatchList(batches=newest).as_dict(), headers=_PRIVATE)


async def board(request: Request) -> Response:
    """The leaderboard of a batch."""
    directory = await run_in_threadpool(_require, request)
    rows = await run_in_threadpool(read_board, directory)
    answer = BatchBoard(id=_identity(directory), name=directory.name, rows=rows)
    return JSONResponse(answer.as_dict(), headers=_PRIVATE)


async def report(request: Request) -> Response:
    """The score report of a job of a batch."""
    directory = await run_in_threadpool(_require, request)
    job = request.path_params["job"]
    rows = await run_in_threadpool(read_board, directory)
    path = real_path(directory / "jobs" / job / REPORT) if any(row.job == job for row in rows) else None
    if path is None or not path.is_relative_to(directory) or not path.is_file():
        raise ServiceError(f"the batch has no report of a job {job[:100]!r}", status=404, code="not_found")
    headers = {**_PRIVATE, "Content-Security-Policy": REPORT_POLICY}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


def find_batches(data_dirs: Sequence[Path]) -> Iterator[Path]:
    """Directories of batches that have a leaderboard: the data directories themselves and what lies directly in them."""
    seen = set()
    for root in map(real_path, data_dirs):
        for path in (root, *_inside(root)):
            directory = real_path(path)
            is_new = directory.is_relative_to(root) and directory not in seen
            if is_new and (directory / MANIFEST).is_file() and (directory / LEADERBOARD).is_file():
                seen.add(directory)
                yield directory


def _inside(root: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # not there any more, or not to be listed: no batch is seen in it
        return sorted(root.iterdir())
    return []


def read_board(directory: Path) -> list[BatchRow]:
    """The lines of a batch's leaderboard; a file that is none is a `ServiceError`."""
    path = real_path(directory / LEADERBOARD)
    try:
        if not path.is_relative_to(directory) or path.stat().st_size > MOST_BYTES:
            raise ConfigError("it is too large, or a link out of the batch")
        with path.open(encoding="utf-8", newline="") as file:
            return [_row(line) for line in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error, ConfigError) as error:
        raise ServiceError(
            f"the leaderboard of {directory.name} cannot be read: {error}; steval batch --collect writes it again",
            status=422,
            code="breaks_a_rule",
        ) from error


def _row(line: dict[str, Any]) -> BatchRow:
    values = {name: unguarded(line.get(name) or "") or None for name in BatchRow.model_fields if name != "job"}
    job = Path(line.get("directory") or "").name or None
    known = {**values, "job": job if values["state"] == "scored" else None}
    return BatchRow.parse(known, source="a line of it")


def _batches(request: Request) -> Iterator[Path]:
    runtime: Runtime = request.app.state.runtime
    return find_batches(runtime.settings.data_dir)


def _require(request: Request) -> Path:
    asked = request.path_params["id"]
    for directory in _batches(request):
        if _identity(directory) == asked:
            return directory
    raise ServiceError("there is no such batch; GET /batches lists them", status=404, code="not_found")


def _item(directory: Path) -> BatchItem:
    changed = datetime.fromtimestamp((directory / LEADERBOARD).stat().st_mtime, UTC)
    return BatchItem(id=_identity(directory), name=directory.name, changed=changed.isoformat(timespec="seconds"))


def _identity(directory: Path) -> str:
    return hashlib.sha256(str(directory).encode("utf-8", "surrogateescape")).hexdigest()[:32]
