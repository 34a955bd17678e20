"""Runs a plan: claims jobs in the ledger, feeds their tasks to an engine, records how each ended."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from steval.batch.engines.base import Engine
from steval.batch.identity import RunnerIdentity, own_identity
from steval.batch.jobs import Job, Outcome, Task
from steval.batch.ledger import Ledger
from steval.batch.plan import BatchPlan
from steval.batch.results import fail, finish, is_whole, one_line
from steval.batch.settings import Running
from steval.batch.work.stages import job_stages
from steval.data.files import require_directory
from steval.errors import BatchError
from steval.logs import progress_bar
from steval.wording import counted

logger = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
BEAT_SECONDS = 5.0
WORD_SECONDS = 60.0
"""Between two messages of a runner that waits for others."""


@dataclass
class _Active:
    """A job in work."""

    job: Job
    stages: deque[list[Task]]
    missing: set[Path] = field(default_factory=set)
    """Outputs of the present stage that are not there yet."""
    seconds: float = 0.0


@dataclass
class RunCounts:
    """What one run did."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Job name → error."""
    reused: int = 0
    """Jobs that were done before."""


class Runner:
    """One run of a plan over one ledger; several may run at the same time."""

    def __init__(self, plan: BatchPlan, jobs: Sequence[Job], ledger: Ledger, engine: Engine):
        self._plan, self._ledger, self._engine = plan, ledger, engine
        self._layout = plan.layout
        self._running = plan.manifest.run
        self._identity = own_identity()
        self._open: deque[Job] = deque(jobs)
        self._active: dict[str, _Active] = {}
        self._ready: deque[Task] = deque()
        self._waiters: dict[Path, list[str]] = {}
        """Output that was submitted or is to be → jobs that need it."""
        self._tries: dict[Path, int] = {}
        self._submitted: set[Path] = set()
        """Outputs of the tasks that the engine has of this runner."""
        self._next_word = 0.0
        self._started = time.time()
        self._counts = RunCounts()

    def run(self) -> RunCounts:
        """Work until every job is done or failed, here or by another runner on the ledger."""
        total = len(self._open)
        self._reconcile()
        self._ledger.join(self._identity)
        beat = _Heartbeat(self._ledger.path, self._identity, self._running)
        try:
            with progress_bar(total, "jobs", "job") as bar:
                bar.update(total - len(self._open))
                while self._open or self._active:
                    left = len(self._open) + len(self._active)
                    self._step()
                    bar.update(left - len(self._open) - len(self._active))
        finally:
            beat.stop()
            self._engine.withdraw(self._identity.id)
            self._ledger.leave(self._identity)
        return self._counts

    def _step(self) -> None:
        """Submit what can be done, then wait for something to happen."""
        self._fill()
        if self._submitted:
            for outcome in self._engine.wait(WAIT_SECONDS):
                self._submitted.remove(outcome.task.output)
                self._settle(outcome)
        elif self._active:
            lacking = sorted({path.name for active in self._active.values() for path in active.missing})
            raise BatchError(
                f"the batch stands still: {counted(len(self._active), 'job waits', 'jobs wait')} for "
                f"{counted(len(lacking), 'task')} that nobody does "
                f"({', '.join(lacking[:5])}). This is a bug; what is done is kept, and the same command goes on from there"
            )
        elif self._open:
            self._say_who_holds()
            time.sleep(WAIT_SECONDS)

    def _say_who_holds(self) -> None:
        """Now and then, while other runners hold all that is left."""
        if time.monotonic() < self._next_word:
            return
        self._next_word = time.monotonic() + WORD_SECONDS
        holders = self._ledger.holders([job.key for job in self._open])
        logger.info(
            "waiting for %s: %s",
            counted(len(self._open), "job that others hold", "jobs that others hold"),
            ", ".join(sorted(set(holders.values()))) or "?",
        )

    def _reconcile(self) -> None:
        """Whole results on disk are done, whatever the ledger says; the ledger's others are to be made again."""
        for job in list(self._open):
            whole = is_whole(self._layout, job)
            self._ledger.note(job.key, job.name, whole)
            if whole:
                self._open.remove(job)
                self._counts.reused += 1

    def _fill(self) -> None:
        while len(self._submitted) < self._engine.capacity:
            if not self._ready and not self._claim():
                return
            if self._ready:
                task = replace(self._ready.popleft(), owner=self._identity.id)
                self._engine.submit(task)
                self._submitted.add(task.output)

    def _claim(self) -> bool:
        """Take the next job that nobody holds; False where there is none."""
        for job in list(self._open):
            answer = self._ledger.claim(job.key, job.name, self._identity, self._running.lease_seconds, self._started)
            if answer == "held":
                continue
            self._open.remove(job)
            if answer == "claimed":
                require_directory(self._layout.directory(job))
                active = _Active(job, deque(job_stages(job, self._plan)))
                self._active[job.key] = active
                self._advance(active)
                return True
            self._left_by_another(job, answer)
        return False

    def _left_by_another(self, job: Job, state: str) -> None:
        if state == "failed":
            error = self._ledger.states([job.key])[job.key].error
            self._counts.failed[job.name] = error or "failed in another run"
        else:
            self._counts.reused += 1

    def _advance(self, active: _Active) -> None:
        """Make the tasks of the next stage that has anything left to do ready, or finish the job."""
        while active.stages:
            tasks = [task for task in active.stages.popleft() if not task.output.exists()]
            if not tasks:
                continue
            active.missing = {task.output for task in tasks}
            for task in reversed(tasks):
                waiters = self._waiters.setdefault(task.output, [])
                if not waiters:
                    require_directory(task.output.parent)
                    self._ready.appendleft(task)
                waiters.append(active.job.key)
            return
        self._finish(active)

    def _settle(self, outcome: Outcome) -> None:
        task = outcome.task
        tries = self._tries[task.output] = self._tries.get(task.output, 0) + 1
        waiting = [self._active[key] for key in self._waiters.get(task.output, ()) if key in self._active]
        if outcome.error is not None and outcome.retriable and tries <= self._running.retries and waiting:
            logger.warning(
                "%s failed (%s); trying again (%d of %d)", task.name, outcome.error, tries, self._running.retries
            )
            self._ready.append(task)
            return
        self._waiters.pop(task.output, None)
        if outcome.error is None:
            self._ledger.record_task(task, outcome.seconds)
        for active in waiting:
            if outcome.error is not None:
                self._fail(active, outcome)
                continue
            active.missing.discard(task.output)
            active.seconds += outcome.seconds
            if not active.missing:
                self._advance(active)

    def _finish(self, active: _Active) -> None:
        job = active.job
        finish(self._layout, job, active.seconds)
        del self._active[job.key]
        if self._ledger.settle(job.key, self._identity, None):
            logger.info("done: %s (%.1f s of work)", job.name, active.seconds)
        else:
            logger.warning("%s was taken over by another runner; the results are the same", job.name)
        self._counts.finished.append(job.name)

    def _fail(self, active: _Active, outcome: Outcome) -> None:
        job = active.job
        message = one_line(f"{outcome.task.kind}: {outcome.error}")
        if outcome.details:
            logger.debug("%s", outcome.details)
        fail(self._layout, job, outcome.error_kind, message, outcome.details)
        del self._active[job.key]
        self._ready = deque(task for task in self._ready if not self._is_only_for(job.key, task))
        self._ledger.settle(job.key, self._identity, message)
        logger.warning("failed: %s: %s", job.name, message)
        self._counts.failed[job.name] = message

    def _is_only_for(self, key: str, task: Task) -> bool:
        """Whether a ready task is wanted by no other active job; it then leaves the queue."""
        waiters = self._waiters.get(task.output, [])
        if key in waiters:
            waiters.remove(key)
        if waiters:
            return False
        self._waiters.pop(task.output, None)
        return True


class _Heartbeat:
    """A thread that shows the runner's life while its main thread waits."""

    def __init__(self, path: Path | str, identity: RunnerIdentity, running: Running):
        self._path, self._identity = path, identity
        self._seconds = min(BEAT_SECONDS, running.lease_seconds / 4)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="steval-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _beat(self) -> None:
        with Ledger(self._path) as ledger:
            while not self._stopping.wait(self._seconds):
                with suppress(BatchError):  # the disk is full, or the ledger locked for long: the next beat may do
                    ledger.beat(self._identity)
