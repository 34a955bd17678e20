"""Jobs on disk (`files`), so that every worker can tell a job's state and a restart loses none."""

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from steval.data.files import atomic_path
from steval.errors import ServiceError
from steval.service.http.access import NOBODY
from steval.service.http.tracing import UNTRACED, Trace
from steval.service.jobs.files import INPUTS, OWNER, PROGRESS, REQUEST, SCORE, TEMPORARY
from steval.service.schemas import Job
from steval.wording import counted

log = logging.getLogger(__name__)

ENDED = frozenset({"done", "failed", "cancelled"})
ABANDONED_SECONDS = 3600.0
"""After which an upload without a status, and without its request, is removed."""
J = TypeVar("J", bound=Job)
_TRACE = "trace"
"""In the request: see `JobStore.trace`."""
_ID = re.compile(r"[0-9a-f]{32}")


class JobStore(Generic[J]):
    """The jobs of one kind below one directory; `what` names them in messages, `schema` is their status."""

    def __init__(self, directory: Path, schema: type[J], *, max_jobs: int, ttl: float, what: str = "scoring job"):
        self.directory = directory
        self.what = what
        self._schema = schema
        self._max_jobs = max_jobs
        self._ttl = ttl

    def reserve(self, owner: str = NOBODY) -> str:
        """A new job's id and directory, to be filled and submitted; a full store is a `ServiceError` 503.

        A key may hold half of the places, so that none fills the queue for the others.
        """
        waiting = [self.owner(job_id) for job_id in self.ids() if self._waits(job_id)]
        own, share = waiting.count(owner), max(1, self._max_jobs // 2)
        full = len(waiting) >= self._max_jobs
        if full or (owner != NOBODY and own >= share):
            which = (
                f"{counted(len(waiting), self.what)} waiting"
                if full
                else f"{counted(own, self.what)} of this key waiting"
            )
            raise ServiceError(
                f"{which} already, the most that are allowed; come back later", status=503, code="busy", retry_after=30
            )
        # as root, jobs run under other users' ids: they may pass through to their own directory, and list nothing
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        job_id = secrets.token_hex(16)
        self.path(job_id).mkdir(mode=0o711)
        (self.path(job_id) / INPUTS).mkdir(mode=0o700)
        (self.path(job_id) / OWNER).write_text(owner, encoding="utf-8")
        return job_id

    def owner(self, job_id: str) -> str:
        """Name of the key that submitted a job; empty where there was none."""
        try:
            return (self.path(job_id) / OWNER).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return NOBODY

    def submit(self, job_id: str, request: dict[str, Any], trace: Trace = UNTRACED, **facts: Any) -> J:
        """Put a filled job into the queue; `trace` is that of the submission, `facts` are fields of its status."""
        with atomic_path(self.path(job_id) / REQUEST) as partial:
            partial.write_text(json.dumps({**request, _TRACE: trace.headers()}), encoding="utf-8")
        job = self._schema(id=job_id, state="queued", created=_now(), trace_id=trace.trace_id, **facts)
        self.write(job)
        return job

    def path(self, job_id: str) -> Path:
        """The directory of a job, whose id is checked to be one of ours."""
        if not _ID.fullmatch(job_id):
            raise self._unknown(job_id)
        return self.directory / job_id

    def read(self, job_id: str) -> J | None:
        """Status of a job; None where there is none (or not yet)."""
        path = self.path(job_id) / "job.json"
        try:
            return self._schema.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the status of %s %s cannot be read: %s", self.what, job_id, type(error).__name__)
            return self._damaged(job_id)

    def require(self, job_id: str, owner: str = NOBODY) -> J:
        """Status of a job of `owner`'s; one that there is not, or that is another's, is the same `ServiceError` 404."""
        job = self.read(job_id)
        if job is None or self.owner(job_id) != owner:
            raise self._unknown(job_id)
        return job

    def of_owner(self, owner: str) -> list[J]:
        """Every job of a key, the newest first."""
        mine = [job for job_id in self.ids() if self.owner(job_id) == owner and (job := self.read(job_id)) is not None]
        return sorted(mine, key=lambda job: (job.created, job.id), reverse=True)

    def num_waiting(self) -> int:
        """Jobs that wait, of all keys."""
        return sum(map(self._waits, self.ids()))

    def write(self, job: J) -> None:
        """Replace a job's status; a job that was removed meanwhile stays removed."""
        directory = self.path(job.id)
        if directory.is_dir():
            with atomic_path(directory / "job.json") as partial:
                partial.write_text(job.model_dump_json(), encoding="utf-8")

    def request(self, job_id: str) -> dict[str, Any]:
        """What was submitted."""
        return json.loads((self.path(job_id) / REQUEST).read_text(encoding="utf-8"))

    def trace(self, job_id: str) -> dict[str, str]:
        """The place in a trace where a job was submitted, see `Trace.headers`; empty where there is none."""
        try:
            return self.request(job_id).get(_TRACE, {})
        except (OSError, ValueError):  # removed, or damaged
            return {}

    def ids(self) -> list[str]:
        """All jobs, also those that are still being uploaded."""
        if not self.directory.is_dir():  # it is made for the first job
            return []
        return [path.name for path in self.directory.iterdir() if _ID.fullmatch(path.name)]

    def runnable(self) -> list[J]:
        """Queued jobs, and running ones whose worker may have died; a lock tells (see `claim`).

        Keys take turns, each with its oldest job.
        """
        jobs = [job for job_id in self.ids() if (job := self.read(job_id)) is not None]
        oldest_first = sorted(
            (job for job in jobs if job.state in ("queued", "running")), key=lambda job: (job.created, job.id)
        )
        counts: Counter[str] = Counter()
        turns = []
        for job in oldest_first:
            owner = self.owner(job.id)
            turns.append((counts[owner], job))
            counts[owner] += 1
        return [job for _, job in sorted(turns, key=lambda turn: turn[0])]

    def requeue(self, job: J) -> None:
        """Put a job that was stopped before its end back into the queue."""
        self.write(job.model_copy(update={"state": "queued", "started": None}))

    @contextlib.contextmanager
    def claim(self, job_id: str) -> Generator[bool, None, None]:
        """Whether this process now holds the job; while it does no other worker runs it."""
        try:
            handle = (self.path(job_id) / "lock").open("w")
        except FileNotFoundError:
            yield False
            return
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def ask_to_cancel(self, job_id: str) -> None:
        """Leave word for the worker that runs the job."""
        with contextlib.suppress(FileNotFoundError):
            (self.path(job_id) / "cancel").touch()

    def cancel(self, job: J) -> J:
        """End a job that nobody runs at once; leave word for the worker that runs it otherwise."""
        self.ask_to_cancel(job.id)
        with self.claim(job.id) as is_ours:
            return self.finish(job, state="cancelled") if is_ours else job

    def is_cancelled(self, job_id: str) -> bool:
        """Whether cancelling was asked for."""
        return (self.path(job_id) / "cancel").exists()

    def progress(self, job_id: str) -> int:
        """Cells of a running prediction that are done."""
        try:
            return int(json.loads((self.path(job_id) / TEMPORARY / PROGRESS).read_text(encoding="utf-8"))["cells"])
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def take_result(self, job_id: str) -> bool:
        """Move the result out of the place that the job could write to; False where there is none."""
        made, target = self.path(job_id) / TEMPORARY / SCORE, self.path(job_id) / SCORE
        if not made.is_dir():
            return False
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
        target.chmod(0o700)
        return True

    def finish(self, job: J, **changes: Any) -> J:
        """Write the final state; inputs are removed, the result is kept for the time to live."""
        expires = datetime.now(UTC) + timedelta(seconds=self._ttl)
        ended = job.model_copy(update={"finished": _now(), "expires": expires.isoformat(timespec="seconds"), **changes})
        self.write(ended)
        for name in (INPUTS, TEMPORARY):
            shutil.rmtree(self.path(job.id) / name, ignore_errors=True)
        return ended

    def remove(self, job_id: str) -> None:
        """Forget a job and its files."""
        shutil.rmtree(self.path(job_id), ignore_errors=True)

    def clean(self) -> int:
        """Remove what has expired and uploads that were given up; returns how many."""
        removed = 0
        for job_id in self.ids():
            job = self.read(job_id)
            if job is None:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - self.path(job_id).stat().st_mtime > ABANDONED_SECONDS:
                        self.remove(job_id)
                        removed += 1
            elif job.expires is not None and datetime.fromisoformat(job.expires) < datetime.now(UTC):
                self.remove(job_id)
                removed += 1
        return removed

    def _waits(self, job_id: str) -> bool:
        job = self.read(job_id)
        return job is None or job.state == "queued"

    def _damaged(self, job_id: str) -> J | None:
        """What stands for a job whose status cannot be read: one that failed then, and expires like the others."""
        try:
            at = datetime.fromtimestamp(self.path(job_id).stat().st_mtime, UTC)
        except FileNotFoundError:
            return None
        return self._schema(
            id=job_id,
            state="failed",
            created=at.isoformat(timespec="milliseconds"),
            expires=(at + timedelta(seconds=self._ttl)).isoformat(timespec="seconds"),
            error={
                "code": "damaged_record",
                "message": "the service cannot read its record of this job; submit it again",
            },
        )

    def _unknown(self, job_id: str) -> ServiceError:
        return ServiceError(
            f"there is no {self.what} {job_id[:64]!r}; it may have expired or been removed",
            status=404,
            code="unknown_job",
        )

    def files(self, job_id: str) -> list[str]:
        """Names of the files of a result."""
        directory = self.path(job_id) / SCORE
        return sorted(path.name for path in directory.iterdir() if path.is_file()) if directory.is_dir() else []


def started(job: J) -> J:
    """The job as it begins to run."""
    return job.model_copy(update={"state": "running", "started": _now()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
