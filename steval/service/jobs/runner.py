"""Runs jobs of one kind, one at a time a worker, each in a process of its own.

A process of its own, because a job takes minutes and gigabytes, may read files that strangers made, and must be stoppable. Its
standard input is a pipe from the worker: when the worker dies, the pipe closes and the job ends itself.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from steval.service.http.telemetry import ServiceMetrics
from steval.service.http.tracing import Trace, Tracing
from steval.service.jobs.files import ERROR, LOG, TEMPORARY
from steval.service.jobs.store import JobStore, started
from steval.service.schemas import Job
from steval.service.settings import ServiceSettings

log = logging.getLogger(__name__)

J = TypeVar("J", bound=Job)
POLL_SECONDS = 0.5
CLEAN_SECONDS = 60.0
END_SECONDS = 5.0
"""From the end of its standard input, which tells a process to end."""
LOG_TAIL = 2000
MOST_STOPS = 3


class Work:
    """What a kind of job is done by: the module of its process, and what is to happen around it."""

    def __init__(self, name: str, module: str):
        self.name = name
        """In messages: `scoring took longer`."""
        self.module = module

    def before(self, directory: Path) -> None:
        """The job's process is about to start in this directory."""

    def after(self, directory: Path) -> None:
        """It has ended, well or not."""

    def stop(self) -> None:
        """There will be no more jobs."""


class JobRunner(Generic[J]):
    """A thread that takes the oldest job nobody runs; `wake` after a submission, `stop` at the end."""

    def __init__(
        self, store: JobStore[J], work: Work, settings: ServiceSettings, metrics: ServiceMetrics, tracing: Tracing
    ):
        self._store = store
        self._work = work
        self._settings = settings
        self._metrics = metrics
        self._tracing = tracing
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._cleaned = 0.0
        self._times_stopped: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._loop, name=f"steval-{work.name}-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the running job, which goes back into the queue, and end the thread."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        self._work.stop()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._metrics.waiting(self._work.name, self._store.num_waiting())
                if time.monotonic() - self._cleaned > CLEAN_SECONDS:
                    self._cleaned = time.monotonic()
                    self._store.clean()
                if self._run_next():
                    continue
            except Exception:
                log.exception("the queue of %ss failed; it goes on", self._store.what)
            self._wake.wait(2 * POLL_SECONDS)

    def _run_next(self) -> bool:
        """Run the oldest free job; False where there is none."""
        for job in self._store.runnable():
            with self._store.claim(job.id) as is_ours:
                fresh = self._store.read(job.id) if is_ours else None
                if fresh is not None and fresh.state in ("queued", "running"):
                    self._run(fresh)
                    return True
        return False

    def _run(self, job: J) -> None:
        if self._store.is_cancelled(job.id):
            self._ended(job, state="cancelled")
            return
        job = started(job)
        self._store.write(job)
        directory = self._store.path(job.id)
        own = directory / TEMPORARY
        shutil.rmtree(own, ignore_errors=True)  # of a run that was cut
        own.mkdir(mode=0o700)
        self._work.before(directory)
        command = [sys.executable, "-m", self._work.module, str(directory)]
        with (directory / LOG).open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
            try:
                reason = self._wait(process, job)
            finally:
                _end(process)
                self._work.after(directory)
        if reason == "stopping" or self._stopped_from_outside(job, reason, process.returncode):
            self._store.requeue(job)
        elif reason == "cancelled":
            self._ended(job, state="cancelled")
        elif reason == "timeout":
            limit = f"{self._work.name} took longer than the limit of {self._settings.job_timeout:g} seconds"
            self._ended(job, state="failed", error={"code": "timeout", "message": limit})
        elif process.returncode == 0 and self._store.take_result(job.id):
            self._ended(job, state="done", files=self._store.files(job.id))
        else:
            self._ended(job, state="failed", error=self._error(job, process.returncode))

    def _stopped_from_outside(self, job: J, reason: str, returncode: int) -> bool:
        """Whether a process was asked to end before it could refuse to: it is not the job that failed. Believed three times."""
        if reason != "ended" or returncode not in (-signal.SIGTERM, -signal.SIGINT):
            return False
        self._times_stopped[job.id] += 1
        return self._times_stopped[job.id] <= MOST_STOPS

    def _wait(self, process: "subprocess.Popen[bytes]", job: J) -> str:
        deadline = time.monotonic() + self._settings.job_timeout
        while True:
            try:
                process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            else:
                return "ended"
            if self._store.is_cancelled(job.id) or not self._store.path(job.id).is_dir():
                return "cancelled"
            if self._stopping.is_set():
                return "stopping"
            if time.monotonic() > deadline:
                return "timeout"

    def _error(self, job: J, returncode: int) -> dict[str, Any]:
        directory = self._store.path(job.id)
        try:
            return json.loads((directory / TEMPORARY / ERROR).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            tail = (directory / LOG).read_bytes()[-LOG_TAIL:].decode("utf-8", "replace") if directory.is_dir() else ""
            log.error("%s %s ended with %d: %s", self._store.what, job.id, returncode, tail)
            how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
            return {
                "code": f"{self._work.name}_failed",
                "message": f"the {self._work.name} process ended unexpectedly ({how}); the file may be damaged, or too large for "
                "the memory",
            }

    def _ended(self, job: J, **changes: Any) -> None:
        trace = self._tracing.under(self._store.trace(job.id))
        ended = self._store.finish(job, **changes)
        self._metrics.job(self._work.name, ended.state)
        facts = {"job": job.id, "trace_id": job.trace_id}
        log.info("%s %s is %s", self._store.what, job.id, ended.state, extra=facts)
        _record(trace, self._work.name, ended)


def _record(trace: Trace, kind: str, job: Job) -> None:
    """Spans of a job that has ended: of the wait for its turn (the last one, where it was stopped meanwhile) and of the work."""
    began, ended = job.started or job.finished, job.finished
    facts = {"steval.job": job.id, "steval.state": job.state}
    if began is not None:
        trace.record(f"{kind} queue", _nanoseconds(job.created), _nanoseconds(began), **facts)
    if job.started is not None and ended is not None:
        trace.record(f"{kind} work", _nanoseconds(job.started), _nanoseconds(ended), **facts)


def _nanoseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000) * 10**6


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started and left behind
